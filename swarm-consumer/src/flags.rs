//! From flags to a job spec.

mod inputs;
mod limits;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use chrono::{DateTime, SubsecRound as _, Utc};
use clap::Args;
use swarm_client::{Client, ClientError};
use swarm_protocol::labels;
use swarm_protocol::spec::{JobSpec, Output};
use swarm_protocol::text::sanitise;
use swarm_protocol::validate::{bounds, validate};
use swarm_protocol::{Digest, TaskRange};

use self::inputs::{InputFile, input_file};
use self::limits::LimitFlags;
use crate::failure::{Done, Failure};

/// A spec larger than this is refused by the core.
const SPEC_BYTES_MAX: u64 = 1 << 20;

/// What a job is, as flags.
#[derive(Debug, Clone, Args)]
pub(crate) struct SpecFlags {
    /// An image uploaded with `image push`, `NAME[:TAG]` or sha256:DIGEST
    #[arg(value_name = "IMAGE", required_unless_present = "spec")]
    image: Option<String>,
    /// The command and its arguments; replaces the image's own
    #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
    /// Begin with a job's description as JSON, from a file or from standard input with `-`
    #[arg(long, value_name = "FILE|-")]
    spec: Option<PathBuf>,
    /// A name for people; need not be unique
    #[arg(long)]
    name: Option<String>,
    /// Make one task for each index of a range; each finds its own in SWARM_TASK_INDEX
    #[arg(long, value_name = "A-B", value_parser = parse_range)]
    array: Option<TaskRange>,
    /// Cores of one task, such as 0.5 [default: 1]
    #[arg(long, value_name = "CORES", value_parser = parse_cpus)]
    cpus: Option<u32>,
    /// Memory of one task, such as 512MiB [default: 256MiB]
    #[arg(long, value_name = "SIZE")]
    memory: Option<ByteSize>,
    /// Run only on workers with this label, such as zone=a; repeatable
    #[arg(long, value_name = "KEY=VALUE", value_parser = labels::parse)]
    require: Vec<(String, String)>,
    #[command(flatten)]
    limits: LimitFlags,
    /// Try a failed task so often again [default: 0]
    #[arg(long, value_name = "N")]
    retries: Option<u16>,
    /// Try a task so often again that was lost with its worker [default: 2]
    #[arg(long, value_name = "N")]
    retries_lost: Option<u16>,
    /// End an attempt that runs longer, such as 10m
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
    /// How long a silent worker keeps a task [default: 30m]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    lease: Option<Duration>,
    /// Higher runs earlier, -100 to 100 [default: 0]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    priority: Option<i32>,
    /// Run as this user: a name, a uid or uid:gid
    #[arg(long)]
    user: Option<String>,
    /// Run in this directory of the container
    #[arg(long, value_name = "DIR")]
    workdir: Option<String>,
    /// Run this program instead of the image's entrypoint
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Set a variable; K alone passes on the one of this shell
    #[arg(short, long = "env", value_name = "K[=V]")]
    env: Vec<String>,
    /// Set the variables of a file with a K=V or K on each line
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Upload a file for each task to find at PATH [default: /in/NAME]. PATH's directory is a volume of its own: what the
    /// image has there is hidden, so name one the image does not need. A directory is uploaded whole, with its modes and
    /// the links within it, and is a volume itself; so is what the tar archive FILE holds, if PATH ends in `/`
    #[arg(short, long = "input", value_name = "FILE|DIR[:PATH]")]
    input: Vec<String>,
    /// Keep this file or directory of the container, or the files that match, such as '/out/**/*.csv'. The directory it
    /// lies in is a volume of its own and empty at the start, whatever the image has there
    #[arg(short = 'o', long = "out", value_name = "PATH")]
    out: Vec<String>,
    /// Start after this long
    #[arg(long = "in", value_name = "DURATION", value_parser = parse_delay, conflicts_with = "at")]
    delay: Option<Duration>,
    /// Start at this instant, such as 2030-01-31T08:00:00Z
    #[arg(long, value_name = "RFC3339", value_parser = parse_instant)]
    at: Option<DateTime<Utc>>,
    /// Never run a task again that may have run
    #[arg(long, conflicts_with = "eager")]
    at_most_once: bool,
    /// Run again on the mere suspicion that a worker is lost; may run twice
    #[arg(long)]
    eager: bool,
}

/// A checked spec that still lacks the digests of what is to be uploaded.
#[derive(Debug)]
pub(crate) struct Draft {
    spec: JobSpec,
    files: Vec<InputFile>,
}

impl Draft {
    /// The spec without the files.
    pub(crate) fn spec(&self) -> &JobSpec {
        &self.spec
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
    /// Reads what the flags name and checks everything that can be checked here.
    pub(crate) fn draft(&self, now: DateTime<Utc>) -> Done<Draft> {
        let base = self.spec.as_deref().map(read_spec).transpose()?;
        let mut env = BTreeMap::new();
        for file in &self.env_file {
            let text = std::fs::read_to_string(file)
                .map_err(|error| Failure::io(format!("cannot read the --env-file {}", file.display()), &error))?;
            add_env(&mut env, env_lines(&text), &|name| std::env::var(name).ok())?;
        }
        add_env(&mut env, self.env.iter().map(String::as_str), &|name| std::env::var(name).ok())?;
        let spec = self.merge(base, env, now);
        let files = self.input.iter().map(|text| input_file(text)).collect::<Done<Vec<_>>>()?;
        let draft = Draft { spec, files };
        check(&draft)?;
        Ok(draft)
    }

    fn merge(&self, base: Option<JobSpec>, env: BTreeMap<String, String>, now: DateTime<Utc>) -> JobSpec {
        let mut spec = base.unwrap_or_else(|| JobSpec::new(""));
        fn put<T: Clone, U: From<T>>(field: &mut U, flag: Option<&T>) {
            if let Some(value) = flag {
                *field = value.clone().into();
            }
        }
        put(&mut spec.image, self.image.as_ref());
        put(&mut spec.name, self.name.as_ref());
        put(&mut spec.user, self.user.as_ref());
        put(&mut spec.workdir, self.workdir.as_ref());
        put(&mut spec.array, self.array.as_ref());
        put(&mut spec.priority, self.priority.as_ref());
        put(&mut spec.resources.cpu_millis, self.cpus.as_ref());
        put(&mut spec.resources.memory_bytes, self.memory.map(|size| size.0).as_ref());
        spec.require.extend(self.require.iter().cloned());
        self.limits.apply(&mut spec.limits);
        put(&mut spec.retries.failed, self.retries.as_ref());
        put(&mut spec.retries.lost, self.retries_lost.as_ref());
        put(&mut spec.timeout_s, self.timeout.map(whole_seconds).as_ref());
        put(&mut spec.lease_s, self.lease.map(whole_seconds).as_ref());
        put(&mut spec.entrypoint, self.entrypoint.clone().map(|program| vec![program]).as_ref());
        if !self.command.is_empty() {
            spec.command = Some(self.command.clone());
        }
        spec.env.extend(env);
        spec.outputs.extend(self.out.iter().map(|path| Output { path: path.clone() }));
        let delayed = self.delay.and_then(|delay| now.checked_add_signed(chrono::Duration::from_std(delay).ok()?));
        if let Some(at) = self.at.or(delayed) {
            spec.start_at = Some(at.trunc_subsecs(6));
        }
        spec.at_most_once |= self.at_most_once;
        spec.eager |= self.eager;
        spec
    }
}

/// Rounds up: a timeout of 500 ms must not become none.
fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

/// Checks the spec as the core will, with stand-ins for the digests to come, and speaks of flags where flags were given.
fn check(draft: &Draft) -> Done<()> {
    let mut whole = draft.spec.clone();
    let given = whole.inputs.len();
    whole.inputs.extend(draft.files.iter().map(|file| file.input(Digest::of(b""))));
    validate(&whole).map_err(|faults| Failure::fields(faults).speak_of_flags(given))
}

impl Failure {
    /// Names flags beside the spec's fields; the first `given` inputs came from a spec file.
    pub(crate) fn speak_of_flags(mut self, given: usize) -> Self {
        for fault in &mut self.fields {
            fault.field = flag_of(std::mem::take(&mut fault.field), given);
        }
        self
    }
}

fn flag_of(field: String, given: usize) -> String {
    let flag = match field.as_str() {
        "resources.cpu_millis" => "--cpus",
        "resources.memory_bytes" => "--memory",
        "retries.failed" => "--retries",
        "retries.lost" => "--retries-lost",
        "timeout_s" => "--timeout",
        "lease_s" => "--lease",
        "array" => "--array",
        "priority" => "--priority",
        "name" => "--name",
        "user" => "--user",
        "workdir" => "--workdir",
        "entrypoint" => "--entrypoint",
        "start_at" => "--at, --in",
        "require" => "--require",
        label if label.starts_with("require.") => "--require",
        other => {
            if let Some(flag) = limits::flag_of(other) {
                return format!("{flag} ({field})");
            }
            let index = other.strip_prefix("inputs[").and_then(|rest| rest.split(']').next()?.parse::<usize>().ok());
            return match index.and_then(|index| index.checked_sub(given)) {
                Some(nth) => format!("-i number {} ({field})", nth + 1),
                None => field,
            };
        }
    };
    format!("{flag} ({field})")
}

fn read_spec(path: &Path) -> Done<JobSpec> {
    let name = if path == Path::new("-") { "standard input".to_owned() } else { path.display().to_string() };
    let mut text = String::new();
    let read = if path == Path::new("-") {
        std::io::stdin().take(SPEC_BYTES_MAX + 1).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(SPEC_BYTES_MAX + 1).read_to_string(&mut text))
    };
    read.map_err(|error| Failure::io(format!("cannot read the --spec {name}"), &error))?;
    if text.len() as u64 > SPEC_BYTES_MAX {
        return Err(Failure::usage(format!("the --spec {name} is larger than 1 MiB"))
            .hint("put larger data into an input file, with -i"));
    }
    serde_json::from_str(&text).map_err(|error| {
        Failure::usage(format!("the --spec {name} is not a job: {error}"))
            .hint("`show JOB -o json` prints the spec of a job that was accepted")
    })
}

/// The lines of an env file that say something.
fn env_lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn add_env<'a>(
    env: &mut BTreeMap<String, String>,
    words: impl Iterator<Item = &'a str>,
    ours: &dyn Fn(&str) -> Option<String>,
) -> Done<()> {
    for word in words {
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name, value.to_owned()),
            None => {
                let value = ours(word).ok_or_else(|| {
                    Failure::usage(format!("-e {}: this shell has no such variable", sanitise(word, false)))
                        .hint(format!("export it, or write -e {word}=VALUE"))
                })?;
                (word, value)
            }
        };
        env.insert(name.to_owned(), value);
    }
    Ok(())
}

fn parse_range(text: &str) -> Result<TaskRange, String> {
    let hint = || "write FIRST-LAST, for instance 0-99".to_owned();
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |word: &str| word.parse::<u32>().map_err(|_| hint());
    TaskRange::new(number(first)?, number(last)?).ok_or_else(hint)
}

fn parse_cpus(text: &str) -> Result<u32, String> {
    let hint = || "write a number of cores, for instance 0.5 or 4".to_owned();
    let cores: f64 = text.parse().map_err(|_| hint())?;
    let millis = (cores * 1000.0).round();
    if (0.0..=f64::from(u32::MAX)).contains(&millis) { Ok(millis as u32) } else { Err(hint()) }
}

fn parse_delay(text: &str) -> Result<Duration, String> {
    let delay = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    let max = Duration::from_secs(bounds::START_AHEAD_DAYS_MAX as u64 * 86_400);
    if delay <= max { Ok(delay) } else { Err("no job is held for longer than 5 years".to_owned()) }
}

fn parse_instant(text: &str) -> Result<DateTime<Utc>, String> {
    let parsed = DateTime::parse_from_rfc3339(text).map(|at| at.to_utc());
    parsed.map_err(|error| format!("{error}; write it as 2030-01-31T08:00:00Z or 2030-01-31T09:00:00+01:00"))
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
    fn flags_win_over_the_spec_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("job.json");
        std::fs::write(&path, r#"{"image": "a", "priority": 3, "env": {"X": "1", "Y": "1"}}"#).unwrap();
        let path = path.to_str().unwrap();
        let merged = spec(&["--spec", path, "--priority", "9", "-e", "X=2"]);
        assert_eq!((merged.image.as_str(), merged.priority), ("a", 9));
        assert_eq!(merged.env, BTreeMap::from([("X".into(), "2".into()), ("Y".into(), "1".into())]));

        std::fs::write(path, r#"{"image": "a", "privileged": true}"#).unwrap();
        assert!(refused(&["--spec", path]).contains("privileged"));
        assert!(refused(&["--spec", "/nowhere/job.json"]).contains("/nowhere/job.json"));
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
        assert!(refused(&many).contains("--require (require)"));
        assert!(Cli::try_parse_from(["x", "submit", "--require", "zone", "a"]).is_err());
        assert!(refused(&["-e", "NO_SUCH_VARIABLE_HERE", "a"]).contains("NO_SUCH_VARIABLE_HERE"));
        assert!(refused(&["-i", "/no/such/file", "a"]).starts_with("error: -i /no/such/file: "));
    }

    #[test]
    fn env_files_skip_comments_and_pass_variables_on() {
        let mut env = BTreeMap::new();
        let ours = |name: &str| (name == "HOME").then(|| "/h".to_owned());
        add_env(&mut env, env_lines("# c\n\nA=1 2\n  HOME\n"), &ours).unwrap();
        assert_eq!(env, BTreeMap::from([("A".into(), "1 2".into()), ("HOME".into(), "/h".into())]));
    }
}
