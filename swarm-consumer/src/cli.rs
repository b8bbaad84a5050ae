//! The command line's grammar. It only parses; [`crate::commands`] acts.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use swarm_protocol::{AttemptNo, JobId, TaskId};

use crate::flags::SpecFlags;
use crate::output::Format;

const EXAMPLES: &str = "\
Examples:
  swarm consumer login --user admin              log in; asks for the password
  swarm consumer image push alpine:3.20          upload an image of the local Docker
  swarm consumer run alpine:3.20 echo hello      run, show the log, end with the container's code
  swarm consumer submit --array 0-99 alpine:3.20 sh -c 'echo $SWARM_TASK_INDEX'
  swarm consumer logs -f 42                      follow the log of job 42
  swarm consumer fetch 42 --into results         fetch what job 42 made
  swarm consumer why 42                          why does it wait?

A job is written 42, its task 7 is written 42.7.
Environment: SWARM_URL, SWARM_CONFIG_DIR, SWARM_OUTPUT, NO_COLOR (output is never coloured).";

/// Submit container jobs to a swarm, watch them and fetch what they made.
#[derive(Debug, Parser)]
#[command(name = "swarm-consumer", version, after_help = EXAMPLES, disable_help_subcommand = true)]
pub struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// The core's address [default: that of the last login, else http://127.0.0.1:7077]
    #[arg(long, global = true, env = "SWARM_URL", hide_env_values = true, value_name = "URL")]
    pub(crate) url: Option<String>,
    /// How answers are printed; `-o json` is short for it except where -o names an output file
    #[arg(long, global = true, env = "SWARM_OUTPUT", value_name = "FORMAT", value_enum)]
    output: Option<Format>,
    /// Print ids only
    #[arg(short, long, global = true)]
    quiet: bool,
}

impl Global {
    pub(crate) fn format(&self, short: &ShortFormat) -> Format {
        match short.format.or(self.output) {
            Some(format) => format,
            None if self.quiet => Format::Quiet,
            None => Format::Human,
        }
    }
}

/// `-o json`, on commands where `-o` means nothing else.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ShortFormat {
    /// Short for --output
    #[arg(short = 'o', value_name = "FORMAT", value_enum)]
    format: Option<Format>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Log in and keep the session in the credentials file
    Login(Login),
    /// End the session, here and on the core
    Logout(ShortFormat),
    /// Show the account behind the session
    Whoami(ShortFormat),
    /// Upload and list images
    #[command(subcommand)]
    Image(ImageCommand),
    /// Submit a job, show its log, fetch its outputs, end with the container's exit code
    Run(Run),
    /// Submit a job and return at once
    Submit(Submit),
    /// Check and describe job files, or make them of what you have
    #[command(subcommand)]
    Job(JobCommand),
    /// List jobs, the newest first
    Ls(Ls),
    /// Show a job and its tasks
    Show(Show),
    /// Print what a task wrote
    Logs(Logs),
    /// Wait until a job has ended; ends with the container's exit code
    Wait(Wait),
    /// Cancel a job
    Cancel(OneJob),
    /// Fetch what a job made
    Fetch(Fetch),
    /// Tell why a job stands where it stands
    Why(OneJob),
    /// Let jobs be made at set times
    #[command(subcommand)]
    Schedule(ScheduleCommand),
    /// Print a token with which one worker can join (admins)
    WorkerToken(WorkerToken),
    /// List the exit codes and what they mean
    ExitCodes(ShortFormat),
}

impl Command {
    /// What the command's own `-o` says.
    pub(crate) fn short(&self) -> ShortFormat {
        let format = match self {
            Self::Logout(format) | Self::Whoami(format) | Self::ExitCodes(format) => format,
            Self::Login(login) => &login.format,
            Self::WorkerToken(token) => &token.format,
            Self::Image(ImageCommand::Push(push)) => &push.format,
            Self::Image(ImageCommand::Ls(format)) => format,
            Self::Ls(ls) => &ls.format,
            Self::Show(show) => &show.format,
            Self::Logs(logs) => &logs.format,
            Self::Wait(wait) => &wait.format,
            Self::Cancel(one) | Self::Why(one) => &one.format,
            Self::Fetch(fetch) => &fetch.format,
            Self::Schedule(command) => return command.short(),
            Self::Job(JobCommand::Validate(validate)) => &validate.format,
            Self::Run(_) | Self::Submit(_) | Self::Job(_) => return ShortFormat::default(),
        };
        format.clone()
    }
}

impl ScheduleCommand {
    fn short(&self) -> ShortFormat {
        match self {
            Self::Create(_) => ShortFormat::default(),
            Self::Ls(format) => format.clone(),
            Self::Show(one) | Self::Pause(one) | Self::Resume(one) | Self::Trigger(one) | Self::Delete(one) => {
                one.format.clone()
            }
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Login {
    /// The account's name; asked for on a terminal
    #[arg(long, value_name = "NAME")]
    pub(crate) user: Option<String>,
    /// Read the password from a file, or from standard input with `-`; asked for on a terminal
    #[arg(long, value_name = "FILE")]
    pub(crate) password_file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) format: ShortFormat,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  swarm consumer worker-token second | swarm worker --name second --data second-data --join-token-file -

The token is good once, and for a worker of that name only.")]
pub(crate) struct WorkerToken {
    /// The worker's name
    pub(crate) name: String,
    /// How long it is good, at most 15m
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "15m")]
    pub(crate) expires: Duration,
    #[command(flatten)]
    pub(crate) format: ShortFormat,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Upload an image: an archive of `docker save`, an OCI layout as tar, `-`, or the name of an image in the local Docker
    #[command(after_help = "\
Examples:
  swarm consumer image push alpine:3.20          from the local Docker; only tagged if the core has it already
  swarm consumer image push ./app.tar --name app:1
  docker save app:1 | swarm consumer image push -

A word that names an existing file is taken for the file; write ./NAME to insist, or NAME:TAG for an image.")]
    Push(ImagePush),
    /// List the images your group may use
    Ls(ShortFormat),
}

#[derive(Debug, Args)]
pub(crate) struct ImagePush {
    /// An archive file, `-` for standard input, or an image of the local Docker
    #[arg(value_name = "FILE|IMAGE|-")]
    pub(crate) source: String,
    /// Its name in the swarm, `NAME[:TAG]`; by default as the archive or Docker names it
    #[arg(long)]
    pub(crate) name: Option<String>,
    #[command(flatten)]
    pub(crate) format: ShortFormat,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  swarm consumer run alpine:3.20 echo hello
  swarm consumer run -i data.csv -o /out/result.csv --into results tool:1 /in/data.csv
  swarm consumer run --cpus 0.5 --memory 512MiB --timeout 10m --retries 2 tool:1
  swarm consumer run --file job.toml

Flags go before IMAGE; all words after it are the command.
Ctrl-C detaches and the job goes on; a second Ctrl-C cancels it.
An array shows its progress; its logs are shown by `logs JOB.TASK`.
While a job waits, the reason is shown; --must-fit refuses one that no worker known could ever run.
With --output json no log is shown, and how the job ended is one JSON value.
The exit code is the container's, that of the first failed task for an array; see `exit-codes`.")]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) spec: SpecFlags,
    #[command(flatten)]
    pub(crate) sending: Sending,
    /// Where outputs are put
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) into: PathBuf,
    /// Replace files that are there
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  swarm consumer submit --in 10m alpine:3.20 echo later
  swarm consumer submit --array 0-999 --name sweep tool:1
  swarm consumer submit --file job.toml --priority 10
  swarm consumer submit --file job.toml --dry-run    what would become of it
  JOB=$(swarm consumer -q submit alpine:3.20 true)

Flags go before IMAGE; all words after it are the command. A flag wins over the same key of --file.")]
pub(crate) struct Submit {
    #[command(flatten)]
    pub(crate) spec: SpecFlags,
    /// Have the core check and place it, and tell what would become of it, without uploading or keeping anything; ends with
    /// 6 if no worker known could ever run it
    #[arg(long, conflicts_with_all = ["idempotency_key", "must_fit"])]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) sending: Sending,
}

#[derive(Debug, Subcommand)]
pub(crate) enum JobCommand {
    /// Check a job file without a core: every fault is named
    Validate(JobValidate),
    /// Print the JSON schema of job files, for editors
    Schema,
    /// Make a job file of a `docker run` line, a service of a compose file, or a line of a crontab
    #[command(subcommand)]
    Convert(JobConvert),
}

#[derive(Debug, Args)]
pub(crate) struct JobValidate {
    /// A job file, or `-` for standard input
    #[arg(value_name = "FILE|-")]
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) format: ShortFormat,
}

/// What a job has no word for is left out, and told on standard error.
#[derive(Debug, Subcommand)]
pub(crate) enum JobConvert {
    /// A `docker run` line
    #[command(after_help = "\
Examples:
  swarm consumer job convert docker-run -- docker run --rm -e A=1 -v ./data:/in:ro alpine:3.20 ls /in > job.toml
  swarm consumer job convert docker-run 'docker run -m 1g alpine:3.20 sh -c \"echo hello\"'")]
    DockerRun {
        /// The line, in words after `--` or as one word in quotes
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        line: Vec<String>,
        #[command(flatten)]
        to: Syntax,
    },
    /// A service of a compose file
    #[command(
        after_help = "Example:\n  swarm consumer job convert compose compose.yaml report --to yaml > report.yaml"
    )]
    Compose {
        /// The compose file, or `-` for standard input
        #[arg(value_name = "FILE|-")]
        file: PathBuf,
        /// Which service, where there are several
        service: Option<String>,
        #[command(flatten)]
        to: Syntax,
    },
    /// A line of a crontab; the job file has a schedule
    #[command(after_help = "\
Example:
  swarm consumer job convert crontab --image tool:1 '30 2 * * * report --all' > report.toml
  swarm consumer schedule create nightly --file report.toml")]
    Crontab {
        /// The line, in quotes
        line: String,
        /// The image that the command runs in
        #[arg(long)]
        image: String,
        /// The time zone the line is meant in, an IANA name [default: UTC]
        #[arg(long)]
        zone: Option<String>,
        #[command(flatten)]
        to: Syntax,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Syntax {
    /// The syntax of the job file
    #[arg(long, value_enum, default_value_t = swarm_jobfile::Format::Toml, value_name = "SYNTAX")]
    pub(crate) to: swarm_jobfile::Format,
}

/// How a job is sent.
#[derive(Debug, Args)]
pub(crate) struct Sending {
    /// However often this is sent with one key, one job is made [default: a fresh one, kept across retries]
    #[arg(long, value_name = "KEY")]
    pub(crate) idempotency_key: Option<String>,
    /// Refuse a job that no worker known could ever run, with exit code 6, instead of letting it wait for a larger one
    #[arg(long)]
    pub(crate) must_fit: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Ls {
    /// Only jobs in this state: delayed, waiting, running, succeeded, failed, cancelled
    #[arg(long, value_name = "STATE", value_parser = parse_state)]
    pub(crate) state: Option<swarm_protocol::state::JobState>,
    /// Only jobs with this name
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// At most so many
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) limit: u32,
    #[command(flatten)]
    pub(crate) format: ShortFormat,
}

fn parse_state(word: &str) -> Result<swarm_protocol::state::JobState, String> {
    swarm_protocol::state::JobState::parse(word)
        .ok_or_else(|| "states are delayed, waiting, running, succeeded, failed, cancelled".to_owned())
}

#[derive(Debug, Args)]
pub(crate) struct Show {
    /// A job, such as 42
    pub(crate) job: JobId,
    /// At most so many of its tasks
    #[arg(long, default_value_t = 20)]
    pub(crate) tasks: u32,
    #[command(flatten)]
    pub(crate) format: ShortFormat,
}

#[derive(Debug, Args)]
pub(crate) struct OneJob {
    /// A job, such as 42
    pub(crate) job: JobId,
    #[command(flatten)]
    pub(crate) format: ShortFormat,
}

#[derive(Debug, Args)]
#[command(after_help = "\
What the task wrote to standard output and error goes to those of this command: as it is when they are files or pipes,
with control characters made visible when they are a terminal. With --output json each record is one line.

To go on with a log of which a part was printed already, give the same flags and tell how many bytes there are:
  logs -f --attempt 1 --skip-stdout $(stat -c %s task.log) 42.7 >> task.log
or, with --output json, `--from` and the `next` of the last whole line: then what lies before is not even read.")]
pub(crate) struct Logs {
    /// A job or a task of it, such as 42 or 42.7
    pub(crate) task: TaskId,
    /// Wait for more until the attempt has ended
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Which attempt, from 1 [default: the newest]
    #[arg(long, value_name = "N")]
    pub(crate) attempt: Option<AttemptNo>,
    /// Begin each line with the time it was written, in UTC
    #[arg(short, long)]
    pub(crate) timestamps: bool,
    /// Begin at this position: 0, or the `next` of a record that --output json printed (needs --attempt)
    #[arg(long, value_name = "POSITION", default_value_t = 0, hide_default_value = true, requires = "attempt")]
    pub(crate) from: u64,
    /// Leave out the first bytes of what goes to standard output (needs --attempt)
    #[arg(long, value_name = "BYTES", default_value_t = 0, hide_default_value = true, requires = "attempt")]
    #[arg(conflicts_with = "from")]
    pub(crate) skip_stdout: u64,
    /// Leave out the first bytes that the task wrote to standard error (needs --attempt)
    #[arg(long, value_name = "BYTES", default_value_t = 0, hide_default_value = true, requires = "attempt")]
    #[arg(conflicts_with = "from")]
    pub(crate) skip_stderr: u64,
    #[command(flatten)]
    pub(crate) format: ShortFormat,
}

#[derive(Debug, Args)]
pub(crate) struct Wait {
    /// A job, such as 42
    pub(crate) job: JobId,
    /// Give up after this long, with exit code 124
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) timeout: Option<Duration>,
    #[command(flatten)]
    pub(crate) format: ShortFormat,
}

#[derive(Debug, Args)]
#[command(after_help = "\
A file keeps its own name, a directory becomes NAME.tar. Outputs of an array go to DIR/TASK/. A file appears whole, with
its digest checked, or not at all.")]
pub(crate) struct Fetch {
    /// A job or a task of it, such as 42 or 42.7
    pub(crate) job: String,
    /// Where outputs are put
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) into: PathBuf,
    /// Only this task
    #[arg(long, value_name = "N")]
    pub(crate) task: Option<u32>,
    /// Replace files that are there
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) format: ShortFormat,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ScheduleCommand {
    /// Make a schedule
    #[command(after_help = "\
Examples:
  swarm consumer schedule create nightly --cron '30 2 * * *' --zone Europe/Berlin tool:1 report
  swarm consumer schedule create tick --cron '*/5 * * * *' --file job.toml

The five fields of --cron are minute, hour, day of month, month, day of week.")]
    Create(Box<ScheduleCreate>),
    /// List schedules
    Ls(ShortFormat),
    /// Show one and the next instants it fires at
    Show(OneSchedule),
    /// Let it launch nothing
    Pause(OneSchedule),
    /// Let it launch again
    Resume(OneSchedule),
    /// Launch its job now
    Trigger(OneSchedule),
    /// Remove it; jobs it made stay
    Delete(OneSchedule),
}

#[derive(Debug, Args)]
pub(crate) struct ScheduleCreate {
    /// The schedule's name
    #[arg(value_name = "SCHEDULE")]
    pub(crate) schedule: String,
    /// When: five fields
    #[arg(long, value_name = "FIELDS")]
    pub(crate) cron: Option<String>,
    /// The time zone the fields are meant in, an IANA name [default: UTC]
    #[arg(long)]
    pub(crate) zone: Option<String>,
    #[command(flatten)]
    pub(crate) spec: SpecFlags,
}

#[derive(Debug, Args)]
pub(crate) struct OneSchedule {
    /// Its name or number
    pub(crate) schedule: String,
    #[command(flatten)]
    pub(crate) format: ShortFormat,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_grammar_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn short_and_long_formats_agree() {
        let format = |args: &[&str]| {
            let cli = Cli::try_parse_from([&["x"], args].concat()).unwrap();
            let Command::Ls(ls) = cli.command else { panic!("not ls") };
            cli.global.format(&ls.format)
        };
        assert_eq!(format(&["ls", "-o", "json"]), Format::Json);
        assert_eq!(format(&["--output", "json", "ls"]), Format::Json);
        assert_eq!(format(&["ls", "--output", "json"]), Format::Json);
        assert_eq!(format(&["-q", "ls"]), Format::Quiet);
        assert_eq!(format(&["ls"]), Format::Human);
    }
}
