//! From flags and job files to a job spec.

mod inputs;

use std::io::Read as _;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use clap::Args;
use swarm_client::{Client, ClientError};
use swarm_jobfile::{Format, JobFile, Schedule, Variable};
use swarm_protocol::Digest;
use swarm_protocol::spec::JobSpec;
use swarm_protocol::text::sanitise;
use swarm_protocol::validate::validate;

use self::inputs::{InputFile, input_file};
use crate::failure::{Done, Failure};

/// A spec larger than this is refused by the core.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What a job is, as flags, in a file, or both.
#[derive(Debug, Clone, Args)]
pub(crate) struct SpecFlags {
    #[command(flatten)]
    job: JobFile,
    /// Begin with a job file in TOML, YAML or JSON, or with standard input for `-`; flags win. Its keys are named like the
    /// flags; files that it names lie beside it
    #[arg(short, long, value_name = "FILE|-")]
    file: Option<PathBuf>,
}

/// A checked spec that still lacks the digests of what is to be uploaded.
#[derive(Debug)]
pub(crate) struct Draft {
    spec: JobSpec,
    files: Vec<InputFile>,
    schedule: Option<Schedule>,
}

impl Draft {
    /// The spec without the files.
    pub(crate) fn spec(&self) -> &JobSpec {
        &self.spec
    }

    /// When the job file wants its job to be made again and again.
    pub(crate) fn schedule(&self) -> Option<&Schedule> {
        self.schedule.as_ref()
    }

    /// Refuses a job file that wants to be a schedule, for commands that make one job.
    pub(crate) fn once(self) -> Done<Self> {
        match self.schedule {
            None => Ok(self),
            Some(_) => Err(Failure::usage("the job file has a `schedule`, and this makes one job")
                .hint("give it to `schedule create NAME --file FILE`, or take the table out")),
        }
    }

    /// Uploads the files; the spec with them.
    pub(crate) async fn complete(mut self, client: &Client) -> Result<JobSpec, ClientError> {
        for file in &self.files {
            let digest = file.upload(client).await?;
            self.spec.inputs.push(file.input(digest));
        }
        Ok(self.spec)
    }
}

impl SpecFlags {
    /// Only what a file says.
    pub(crate) fn of_file(file: &Path) -> Self {
        Self { job: JobFile::default(), file: Some(file.to_owned()) }
    }

    /// Reads what the flags and the file name and checks everything that can be checked here.
    pub(crate) fn draft(&self, now: DateTime<Utc>) -> Done<Draft> {
        let base = self.file.as_deref().map(read_job).transpose()?.unwrap_or_default();
        let job = with_env_files(base)?.overlaid(with_env_files(self.job.clone())?);
        let spec = job.spec(now, &|name| std::env::var(name).ok()).map_err(|name| {
            let name = sanitise(&name, false);
            Failure::usage(format!("-e {name}: this shell has no such variable"))
                .hint(format!("export it, or write -e {name}=VALUE"))
        })?;
        let files = job.input.iter().map(|text| input_file(text)).collect::<Done<Vec<_>>>()?;
        let draft = Draft { spec, files, schedule: job.schedule };
        check(&draft)?;
        Ok(draft)
    }
}

/// Puts the variables of the files before those that stand there by themselves, which win.
fn with_env_files(mut job: JobFile) -> Done<JobFile> {
    let mut env = Vec::new();
    for file in std::mem::take(&mut job.env_file) {
        let text = std::fs::read_to_string(&file)
            .map_err(|error| Failure::io(format!("cannot read the --env-file {}", file.display()), &error))?;
        env.extend(env_lines(&text));
    }
    env.append(&mut job.env);
    Ok(JobFile { env, ..job })
}

/// Checks the spec as the core will, with stand-ins for the digests to come, and speaks of flags.
fn check(draft: &Draft) -> Done<()> {
    let mut whole = draft.spec.clone();
    whole.inputs.extend(draft.files.iter().map(|file| file.input(Digest::of(b""))));
    validate(&whole).map_err(|faults| Failure::fields(faults).speak_of_flags())
}

impl Failure {
    /// Names flags beside the spec's fields.
    pub(crate) fn speak_of_flags(mut self) -> Self {
        for fault in &mut self.fields {
            fault.field = flag_of(std::mem::take(&mut fault.field));
        }
        self
    }
}

fn flag_of(field: String) -> String {
    let index = field.strip_prefix("inputs[").and_then(|rest| rest.split(']').next()?.parse::<usize>().ok());
    match (index, swarm_jobfile::flag_of(&field)) {
        (Some(index), _) => format!("-i number {} ({field})", index + 1),
        (None, Some(flag)) => format!("{flag} ({field})"),
        (None, None) => field,
    }
}

fn read_job(path: &Path) -> Done<JobFile> {
    let (name, text) = read_text(path)?;
    let format = Format::of_path(path).unwrap_or_else(|| Format::of_text(&text));
    let job = swarm_jobfile::read(&text, format).map_err(|error| {
        let problem = sanitise(&error.to_string(), false);
        Failure::usage(format!("{name} is no job file in {format}: {problem}"))
            .hint("`job schema` describes job files; `job convert` makes them of what you have")
    })?;
    Ok(job.from_dir(path.parent().unwrap_or(Path::new(""))))
}

/// What a file or standard input holds, and what to call it.
pub(crate) fn read_text(path: &Path) -> Done<(String, String)> {
    let is_standard = path == Path::new("-");
    let name = if is_standard { "standard input".to_owned() } else { path.display().to_string() };
    let mut text = String::new();
    let read = if is_standard {
        std::io::stdin().take(FILE_BYTES_MAX + 1).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text))
    };
    read.map_err(|error| Failure::io(format!("cannot read {name}"), &error))?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(
            Failure::usage(format!("{name} is larger than 1 MiB")).hint("put larger data into an input file, with -i")
        );
    }
    Ok((name, text))
}

/// The lines of an env file that say something.
fn env_lines(text: &str) -> impl Iterator<Item = Variable> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.filter_map(|line| line.parse().ok())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};
    use crate::exit::Exit;

    fn now() -> DateTime<Utc> {
        "2030-01-31T08:00:00Z".parse().unwrap()
    }

    pub(super) fn draft(args: &[&str]) -> Done<Draft> {
        let cli = Cli::try_parse_from([&["x", "submit"], args].concat()).unwrap_or_else(|error| panic!("{error}"));
        let Command::Submit(submit) = cli.command else { panic!("not submit") };
        submit.spec.draft(now())
    }

    fn spec(args: &[&str]) -> JobSpec {
        draft(args).unwrap_or_else(|failure| panic!("{}", failure.human())).spec
    }

    pub(super) fn refused(args: &[&str]) -> String {
        let failure = draft(args).unwrap_err();
        assert_ne!(failure.exit, Exit::Ok);
        failure.human()
    }

    #[test]
    fn an_image_alone_is_the_default_spec() {
        assert_eq!(spec(&["alpine"]), JobSpec::new("alpine"));
    }

    #[test]
    fn every_flag_reaches_its_field() {
        let args = "--name a/b --array 3-7 --cpus 0.5 --memory 512MiB --require zone=a --require gpu=nvidia --retries 1 --retries-lost 4 --timeout 10m \
                    --lease 90s --priority -5 --user 1000:1000 --workdir /w --entrypoint sh -e A=1=2 -e B= -o /out/r \
                    -o /out/s --pids-limit 9 --open-files 64 --disk 1GiB --max-log 1MiB --tmpfs /tmp:1MiB --read-only --at 2030-01-31T09:00:00.123456789+01:00 --eager alpine:3 -c --memory -o x";
        let spec = spec(&args.split_whitespace().collect::<Vec<_>>());
        let shown = serde_json::to_string_pretty(&spec).unwrap();
        insta::assert_snapshot!(shown);
    }

    #[test]
    fn times_are_from_now_and_rounded_up() {
        assert_eq!(spec(&["--in", "10m", "a"]).start_at.unwrap(), now() + chrono::Duration::minutes(10));
        assert_eq!(spec(&["--timeout", "1500ms", "a"]).timeout_s, Some(2));
        assert!(Cli::try_parse_from(["x", "submit", "--in", "1m", "--at", "2030-01-01T00:00:00Z", "a"]).is_err());
        let error = Cli::try_parse_from(["x", "submit", "--in", "300000years", "a"]).unwrap_err().to_string();
        assert!(error.contains("--in <DURATION>") && error.contains("5 years"), "{error}");
    }

    #[test]
    fn flags_win_over_the_job_file() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("vars"), "X=0\nZ=1").unwrap();
        std::fs::write(dir.path().join("data"), "d").unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let text = "image = 'a'\npriority = 3\nenv = { X = 1, Y = 1 }\nenv_file = ['vars']\ninput = ['data:/in/d']\n";
        let path = file("job.toml", text);
        let merged = draft(&["--file", &path, "--priority", "9", "-e", "Y=2"]).unwrap();
        assert_eq!((merged.spec.image.as_str(), merged.spec.priority, merged.files.len()), ("a", 9, 1));
        let env = ["X", "Y", "Z"].map(|name| merged.spec.env[name].as_str());
        assert_eq!(env, ["1", "2", "1"], "a variable wins over a file of variables, and a flag over both");

        let told = refused(&["-f", &file("bad.json", r#"{"image": "a", "privileged": true}"#)]);
        assert!(told.contains("privileged") && told.contains("job schema"), "{told}");
        assert!(refused(&["-f", "/nowhere/job.json"]).contains("/nowhere/job.json"));
        let scheduled = draft(&["-f", &file("tick.yaml", "image: a\nschedule: { cron: '* * * * *' }")]).unwrap();
        assert!(scheduled.once().unwrap_err().human().contains("schedule create"));
    }

    #[test]
    fn faults_name_the_flag_all_at_once() {
        insta::assert_snapshot!(refused(&[
            "--memory",
            "1KiB",
            "--cpus",
            "0",
            "--name",
            "../x",
            "-e",
            "SWARM_X=1",
            "a"
        ]));
        let many: Vec<_> = (0..17).map(|n| format!("--require=l{n}=x")).collect();
        let many = many.iter().map(String::as_str).chain(["a"]).collect::<Vec<_>>();
        assert!(refused(&many).contains("--require (require)"), "{}", refused(&many));
        assert!(Cli::try_parse_from(["x", "submit", "--require", "zone", "a"]).is_err());
        assert!(refused(&["-e", "NO_SUCH_VARIABLE_HERE", "a"]).contains("NO_SUCH_VARIABLE_HERE"));
        assert!(refused(&["-i", "/no/such/file", "a"]).starts_with("error: -i /no/such/file: "));
    }

    #[test]
    fn env_files_skip_comments_and_pass_variables_on() {
        let lines: Vec<Variable> = env_lines("# c\n\nA=1 2\n  HOME\n").collect();
        let named = |name: &str, value: Option<&str>| Variable { name: name.into(), value: value.map(str::to_owned) };
        assert_eq!(lines, [named("A", Some("1 2")), named("HOME", None)]);
    }
}
