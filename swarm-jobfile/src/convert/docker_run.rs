//! A `docker run` line.

use clap::{ArgAction, Parser};

use super::docker_values::{cores, name, open_files, restarts, size, tmpfs, volume};
use super::{ConvertError, Converted};
use crate::model::JobFile;
use crate::values::{Program, Variable};

/// The flags of `docker run` (Docker Engine 28, command line reference) that a job has a word for, and those it has none
/// for, so that they can be named.
#[derive(Debug, Parser)]
#[command(name = "docker run", no_binary_name = true, disable_help_flag = true)]
struct DockerRun {
    image: String,
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
    #[arg(long)]
    name: Option<String>,
    #[arg(short, long)]
    env: Vec<String>,
    #[arg(long)]
    env_file: Vec<String>,
    #[arg(short, long)]
    user: Option<String>,
    #[arg(short, long)]
    workdir: Option<String>,
    #[arg(long)]
    entrypoint: Option<String>,
    #[arg(short, long)]
    memory: Option<String>,
    #[arg(long)]
    cpus: Option<String>,
    #[arg(long, allow_negative_numbers = true)]
    pids_limit: Option<i64>,
    #[arg(long)]
    ulimit: Vec<String>,
    #[arg(long)]
    tmpfs: Vec<String>,
    #[arg(long)]
    read_only: bool,
    #[arg(short, long)]
    volume: Vec<String>,
    #[arg(long)]
    mount: Vec<String>,
    #[arg(long)]
    restart: Option<String>,
    #[arg(long)]
    gpus: Option<String>,
    #[arg(long, alias = "net")]
    network: Vec<String>,
    #[arg(long)]
    privileged: bool,
    // Nothing of a job depends on these.
    #[arg(long)]
    rm: bool,
    #[arg(short, long)]
    detach: bool,
    #[arg(short, long)]
    interactive: bool,
    #[arg(short, long)]
    tty: bool,
    #[arg(long)]
    init: bool,
    #[arg(long)]
    pull: Option<String>,
    #[arg(short, long)]
    label: Vec<String>,
    #[arg(long, action = ArgAction::Append)]
    log_driver: Vec<String>,
    #[arg(long, action = ArgAction::Append)]
    log_opt: Vec<String>,
    #[arg(long, action = ArgAction::Append)]
    memory_swap: Vec<String>,
    // These are named.
    #[arg(short, long)]
    publish: Vec<String>,
    #[arg(short = 'P', long)]
    publish_all: bool,
    #[arg(long)]
    cap_add: Vec<String>,
    #[arg(long)]
    device: Vec<String>,
    #[arg(short = 'h', long)]
    hostname: Option<String>,
    #[arg(long)]
    add_host: Vec<String>,
    #[arg(long)]
    dns: Vec<String>,
    #[arg(long)]
    security_opt: Vec<String>,
    #[arg(long)]
    platform: Option<String>,
    #[arg(long)]
    shm_size: Option<String>,
    #[arg(long)]
    cap_drop: Vec<String>,
    #[arg(long)]
    cpu_shares: Option<String>,
    #[arg(long)]
    cpuset_cpus: Option<String>,
    #[arg(long)]
    runtime: Option<String>,
    #[arg(long)]
    ipc: Option<String>,
    #[arg(long)]
    pid: Option<String>,
    #[arg(long)]
    link: Vec<String>,
    #[arg(long)]
    volumes_from: Vec<String>,
    #[arg(long)]
    sysctl: Vec<String>,
    #[arg(long)]
    stop_signal: Option<String>,
    #[arg(long)]
    stop_timeout: Option<String>,
}

/// Takes over a `docker run` line; the words `docker`, `container` and `run` in front of it may be missing.
///
/// # Errors
/// When it is no such line: unbalanced quotes, no image, a flag that Docker does not have.
pub fn docker_run(line: &str) -> Result<Converted, ConvertError> {
    let joined = line.replace("\\\n", " ");
    let words = shlex::split(&joined)
        .ok_or_else(|| ConvertError::new("the line has a quote that does not end", "quote the whole line with ''"))?;
    let words = arguments(&words)?;
    let run = DockerRun::try_parse_from(words).map_err(|error| {
        let text = error.to_string();
        let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        ConvertError::new(first, "give the line as for Docker: docker run FLAGS IMAGE COMMAND")
    })?;
    if run.image.contains(char::is_whitespace) {
        let hint = "write `--to` before the line, and the line in one word or after `--`";
        return Err(ConvertError::new(format!("`{}` is no image", run.image), hint));
    }
    Ok(run.convert())
}

/// What follows `[sudo] [docker|podman] [container] run`.
fn arguments(words: &[String]) -> Result<&[String], ConvertError> {
    let hint = "give the line as for Docker: docker run FLAGS IMAGE COMMAND";
    let after = |words: &'_ [String], any: &[&str]| words.first().is_some_and(|word| any.contains(&word.as_str()));
    let mut rest = words;
    for optional in [&["sudo"][..], &["docker", "podman"]] {
        rest = &rest[usize::from(after(rest, optional))..];
    }
    let is_whole = rest.len() < words.len();
    rest = &rest[usize::from(after(rest, &["container"]))..];
    let is_run = after(rest, &["run", "create"]);
    if is_whole && !is_run {
        return Err(ConvertError::new("only `docker run` makes a job", hint));
    }
    if let Some(word) = rest.iter().find(|word| ["|", "||", "&&", ";", ">", ">>", "<"].contains(&word.as_str())) {
        return Err(ConvertError::new(
            format!("`{word}` is for the shell, not for Docker"),
            "leave out what belongs to the shell, or quote it",
        ));
    }
    Ok(&rest[usize::from(is_run)..])
}

impl DockerRun {
    fn convert(self) -> Converted {
        let mut notes = Vec::new();
        let left_out = self.left_out();
        let job = JobFile {
            image: Some(self.image),
            command: self.command,
            name: self.name.and_then(|text| name(&text, &mut notes)),
            env: self.env.iter().filter_map(|text| text.parse::<Variable>().ok()).collect(),
            env_file: self.env_file.into_iter().map(Into::into).collect(),
            user: self.user,
            workdir: self.workdir,
            entrypoint: self.entrypoint.map(|program| Program(vec![program])),
            memory: read(self.memory, "--memory", size, &mut notes),
            cpus: read(self.cpus, "--cpus", cores, &mut notes),
            pids_limit: self.pids_limit.and_then(|limit| u32::try_from(limit).ok()).filter(|limit| *limit > 0),
            open_files: self.ulimit.iter().filter_map(|text| open_files(text, &mut notes)).next_back(),
            tmpfs: self.tmpfs.iter().map(|text| tmpfs(text, &mut notes)).collect(),
            read_only: self.read_only,
            input: self.volume.iter().filter_map(|text| volume(text, &mut notes)).collect(),
            retries: self.restart.and_then(|text| restarts(&text, &mut notes)),
            require: self.gpus.iter().map(|_| ("gpu".to_owned(), "nvidia".to_owned())).collect(),
            ..JobFile::default()
        };
        notes.extend(left_out);
        Converted { job, notes }
    }

    /// What a job has no word for.
    fn left_out(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let mut name = |is_given: bool, flag: &str, why: &str| {
            if is_given {
                notes.push(format!("{flag} is left out: {why}"));
            }
        };
        let is_networked = self.network.iter().any(|network| network != "none");
        name(is_networked, "--network", "a job has no network");
        name(!self.publish.is_empty() || self.publish_all, "--publish", "a job serves nothing");
        name(self.privileged, "--privileged", "no job has rights on its machine");
        name(!self.cap_add.is_empty(), "--cap-add", "no job has capabilities");
        name(!self.device.is_empty(), "--device", "no job has devices of its machine");
        name(!self.mount.is_empty(), "--mount", "name files with `input` and `out`, scratch space with `tmpfs`");
        name(!self.volumes_from.is_empty(), "--volumes-from", "jobs share no volumes");
        name(!self.link.is_empty(), "--link", "jobs do not see each other");
        let rest = [
            (self.hostname.is_some(), "--hostname"),
            (!self.add_host.is_empty(), "--add-host"),
            (!self.dns.is_empty(), "--dns"),
            (!self.security_opt.is_empty(), "--security-opt"),
            (self.platform.is_some(), "--platform"),
            (self.shm_size.is_some(), "--shm-size"),
            (self.cpu_shares.is_some(), "--cpu-shares"),
            (self.cpuset_cpus.is_some(), "--cpuset-cpus"),
            (self.runtime.is_some(), "--runtime"),
            (self.ipc.is_some(), "--ipc"),
            (self.pid.is_some(), "--pid"),
            (!self.sysctl.is_empty(), "--sysctl"),
            (self.stop_signal.is_some(), "--stop-signal"),
            (self.stop_timeout.is_some(), "--stop-timeout"),
        ];
        rest.into_iter().for_each(|(is_given, flag)| name(is_given, flag, "a job has no word for it"));
        notes
    }
}

/// A value, or a note that it is none.
fn read<T>(
    text: Option<String>,
    flag: &str,
    parse: impl FnOnce(&str) -> Option<T>,
    notes: &mut Vec<String>,
) -> Option<T> {
    let text = text?;
    let value = parse(&text);
    if value.is_none() {
        notes.push(format!("{flag} {text} is left out: it cannot be read"));
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Format, write};

    fn shown(line: &str) -> String {
        let converted = docker_run(line).unwrap();
        let notes = converted.notes.iter().map(|note| format!("# {note}\n")).collect::<String>();
        notes + &write(&converted.job, Format::Toml).unwrap()
    }

    #[test]
    fn a_line_that_jobs_have_words_for_is_taken_over_whole() {
        let line = r#"sudo docker run --rm -it --name crunch -e A=1 -e "B=two words" -e HOME -u 1000:1000 -w /work \
            --entrypoint sh -m 1.5g --cpus=2 --pids-limit 99 --ulimit nofile=2048 --tmpfs /tmp:size=32m --read-only \
            -v /data/in:/in:ro --restart on-failure:2 --gpus all --network none tool:1 -c 'echo "$A"; ls -l'"#;
        insta::assert_snapshot!(shown(line));
    }

    #[test]
    fn what_a_job_has_no_word_for_is_named() {
        let line = "docker container run -d -p 80:80 --privileged --cap-add SYS_ADMIN --net=host -h x --memory lots \
                    --mount type=bind,src=/a,dst=/b --device /dev/kvm --platform linux/arm64 -v cache:/c _x/y";
        insta::assert_snapshot!(shown(line));
    }

    #[test]
    fn what_is_no_such_line_is_refused() {
        let told = |line: &str| docker_run(line).unwrap_err().problem;
        assert!(told("docker run 'alpine").contains("quote"));
        assert!(told("docker run --rm").contains("required"));
        assert!(told("docker run --no-such-flag a").contains("--no-such-flag"));
        assert!(told("docker compose run web ls").contains("only `docker run`"));
        assert!(told("docker run a ls > out.txt").contains("`>`"));
        assert!(told("'docker run a ls' --to yaml").contains("is no image"));
        assert_eq!(docker_run("docker run docker version").unwrap().job.image.as_deref(), Some("docker"));
        let twice = docker_run("docker run -e A=1 -e A=2 a").unwrap().job;
        assert!(write(&twice, Format::Toml).unwrap().contains("[env]\nA = \"2\""));
    }
}
