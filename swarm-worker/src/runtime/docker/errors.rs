//! From bollard's errors to the kinds a caller must tell apart, and the deadline around every call.

use std::error::Error as _;
use std::time::Duration;

use bollard::errors::Error;

use super::points::around;
use crate::runtime::RuntimeError;

/// What the engine says when the job's own words make a start impossible, whatever status it gives that.
const START_REFUSALS: [&str; 5] = [
    "executable file not found",
    "chdir to cwd",
    "unable to find user",
    "unable to find group",
    "mount a directory onto a file",
];

/// How the OCI runtime begins when it speaks of the command itself, and what it then finds. The same findings about
/// cgroups, mounts or its own files are the machine's fault.
const COMMAND: [&str; 2] = [": exec: \"", ": exec /"];
const COMMAND_FAULTS: [&str; 5] =
    ["no such file or directory", "permission denied", "exec format error", "is a directory", "not a directory"];

/// Waits for one call to the engine, at most `deadline`.
pub(super) async fn within<T>(
    call: &'static str,
    deadline: Duration,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, RuntimeError> {
    match tokio::time::timeout(deadline, around(call, work)).await {
        Ok(answer) => answer.map_err(|error| map(call, deadline, error)),
        Err(_) => Err(timed_out(call, deadline)),
    }
}

pub(super) fn timed_out(call: &'static str, deadline: Duration) -> RuntimeError {
    RuntimeError::Timeout { call, after_ms: u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX) }
}

/// The kind of a failed call.
pub(super) fn map(call: &'static str, deadline: Duration, error: Error) -> RuntimeError {
    match error {
        Error::DockerResponseServerError { status_code: 404, message } => RuntimeError::NotFound { call, message },
        Error::DockerResponseServerError { status_code: 409, message } => RuntimeError::Conflict { call, message },
        // An upload to a place that cannot be written; engine 20.10 says 500, later ones 403. Any other 403 is that of a
        // proxy or an authorisation plugin.
        Error::DockerResponseServerError { message, .. } if message.contains("rootfs is marked read-only") => {
            RuntimeError::Invalid { field: call, reason: message }
        }
        Error::DockerResponseServerError { status_code, message } => {
            RuntimeError::Engine { call, message: format!("{message} (status {status_code})") }
        }
        Error::RequestTimeoutError => timed_out(call, deadline),
        other => RuntimeError::Engine { call, message: with_causes(&other) },
    }
}

/// As [`map`], for `start` of a container: tells the job's faults from the machine's.
pub(super) fn map_start(deadline: Duration, id: &str, error: Error) -> RuntimeError {
    match error {
        Error::DockerResponseServerError { status_code: 400 | 404 | 500, message } if is_the_jobs_fault(&message) => {
            RuntimeError::StartRefused { message: message.trim().to_owned() }
        }
        Error::DockerResponseServerError { message, .. } if is_join(&message) || misses_another(&message, id) => {
            RuntimeError::JoinRefused { message: message.trim().to_owned() }
        }
        // The engine takes any "permission denied" from below for a bad request.
        Error::DockerResponseServerError { status_code: 400, message } if is_by_oci_runtime(&message) => {
            RuntimeError::Engine { call: "start", message }
        }
        other => map_spec("start", deadline, other),
    }
}

/// As [`map`], for the calls that hand the engine what the job asks for: it may not like that.
fn map_spec(call: &'static str, deadline: Duration, error: Error) -> RuntimeError {
    match error {
        Error::DockerResponseServerError { status_code: 400, message } => {
            RuntimeError::Invalid { field: call, reason: message }
        }
        other => map(call, deadline, other),
    }
}

/// What the engine or the OCI runtime says when a network namespace to be joined is gone.
const JOINS: [&str; 3] = ["cannot join network", "joining network namespace", "/ns/net"];

fn is_join(message: &str) -> bool {
    JOINS.iter().any(|words| message.contains(words))
}

/// Another container than the one that the call was about is the one to be joined.
fn misses_another(message: &str, id: &str) -> bool {
    message.contains("No such container") && !message.contains(id)
}

/// The OCI runtime itself could not be run, in the same words.
const NO_RUNTIME: &str = "unable to retrieve OCI runtime error";

fn is_the_jobs_fault(message: &str) -> bool {
    if message.contains(NO_RUNTIME) {
        return false;
    }
    let about_command = COMMAND
        .iter()
        .filter_map(|begin| message.split_once(begin))
        .any(|(_, rest)| COMMAND_FAULTS.iter().any(|fault| rest.contains(fault)));
    about_command || START_REFUSALS.iter().any(|known| message.contains(known))
}

fn is_by_oci_runtime(message: &str) -> bool {
    ["OCI runtime", "runc", "shim task"].iter().any(|words| message.contains(words))
}

/// As [`map`], for `create`, where the engine already makes the working directory.
pub(super) fn map_create(deadline: Duration, error: Error) -> RuntimeError {
    match error {
        Error::DockerResponseServerError { status_code: 400 | 500, message }
            if message.starts_with("Cannot mkdir") && message.contains("not a directory") =>
        {
            RuntimeError::StartRefused { message }
        }
        // There is no container yet that it could be about but the one to be joined.
        Error::DockerResponseServerError { message, .. }
            if is_join(&message) || message.contains("No such container") =>
        {
            RuntimeError::JoinRefused { message: message.trim().to_owned() }
        }
        other => map_spec("create", deadline, other),
    }
}

/// bollard hides the interesting part (connection refused, no such socket) in the sources.
fn with_causes(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(status_code: u16, message: &str) -> Error {
        Error::DockerResponseServerError { status_code, message: message.to_owned() }
    }

    #[test]
    fn a_namespace_that_cannot_be_joined_is_told_apart() {
        let second = Duration::from_secs(1);
        for (status, message) in [
            (409, "cannot join network of a non running container: abc"),
            (404, "No such container: abc"),
            (400, "OCI runtime create failed: lstat /proc/4711/ns/net: no such file or directory: unknown"),
        ] {
            let error = map_start(second, "own", server(status, message));
            assert!(matches!(error, RuntimeError::JoinRefused { .. }), "{message}: {error}");
        }
        let command = "OCI runtime create failed: exec: \"/ns/net\": stat /ns/net: no such file or directory: unknown";
        let error = map_start(second, "own", server(400, command));
        assert!(matches!(error, RuntimeError::StartRefused { .. }), "a job can name a file as it likes: {error}");
        let gone = map_create(second, server(404, "No such container: abc"));
        assert!(matches!(gone, RuntimeError::JoinRefused { .. }), "{gone}");
        assert!(map_create(second, server(404, "No such image: sha256:abc")).is_not_found());
    }

    #[test]
    fn start_errors_are_split_by_fault() {
        let second = Duration::from_secs(1);
        let old = "OCI runtime create failed: container_linux.go:380: starting container process caused: ";
        let new = "failed to create task for container: failed to create shim task: OCI runtime create failed: runc create \
                   failed: unable to start container process: ";
        let job = [
            (400, old, "exec: \"nope\": executable file not found in $PATH: unknown"),
            (400, old, "exec: \"/etc\": permission denied: unknown"),
            (
                400,
                new,
                "error during container init: exec: \"/bin/nope\": stat /bin/nope: no such file or directory: unknown",
            ),
            (400, new, "error during container init: exec /bin/other: exec format error: unknown"),
            (500, "", "unable to find user ghost: no matching entries in passwd file"),
            (500, old, "chdir to cwd (\"/x\") set in config.json failed: not a directory"),
            (
                400,
                new,
                "error during container init: chdir to cwd (\"/x\") set in config.json failed: permission denied",
            ),
            (
                400,
                new,
                "error mounting \"/v\" to rootfs at \"/etc/passwd\": not a directory: Are you trying to mount a \
                        directory onto a file (or vice-versa)?",
            ),
        ];
        for (status, begin, end) in job {
            let error = map_start(second, "id", server(status, &format!("{begin}{end}")));
            assert!(matches!(error, RuntimeError::StartRefused { .. }), "{error}");
            assert!(!error.is_infrastructure());
        }
        let cgroup = "unable to apply cgroup configuration: failed to write 4711: open \
                      /sys/fs/cgroup/x/cgroup.procs: no such file or directory";
        let machine = [
            (500, old, "cannot allocate memory"),
            (500, old, cgroup),
            (400, new, cgroup),
            (400, new, "error setting cgroup config for procHooks process: openat2 memory.max: permission denied"),
            (500, new, "error mounting \"proc\" to rootfs at \"/proc\": mount proc:/proc: permission denied"),
            (500, new, "exec: \"/bin/sh\": cannot allocate memory"),
            (500, "", "fork/exec /usr/bin/runc: no such file or directory"),
            (
                400,
                "OCI runtime create failed: unable to retrieve OCI runtime error (open log.json: no such file or \
                  directory): ",
                "exec: \"runc\": executable file not found in $PATH: unknown",
            ),
            (500, "", "error creating overlay mount: no space left on device"),
            (503, "", "the engine is shutting down"),
        ];
        for (status, begin, end) in machine {
            let error = map_start(second, "id", server(status, &format!("{begin}{end}")));
            assert!(error.is_infrastructure(), "{error}");
        }
        assert!(map_start(second, "id", server(404, "No such container: id")).is_not_found());
    }

    #[test]
    fn other_calls_keep_their_kind() {
        let second = Duration::from_secs(1);
        assert!(map("inspect", second, server(404, "No such container: x")).is_not_found());
        assert!(matches!(map("create", second, server(409, "in use")), RuntimeError::Conflict { .. }));
        for status in [400, 403, 500] {
            assert!(map("put archive", second, server(status, "boom")).is_infrastructure(), "{status}");
        }
        let read_only = map("put archive", second, server(403, "container rootfs is marked read-only"));
        assert!(matches!(read_only, RuntimeError::Invalid { .. }), "{read_only}");
        // What a proxy in between forbids, it forbids whatever the job says.
        assert!(map_create(second, server(403, "denied by plugin")).is_infrastructure());
        assert!(map_start(second, "id", server(403, "Forbidden")).is_infrastructure());
        let invalid = map_create(second, server(400, "invalid reference"));
        assert!(matches!(invalid, RuntimeError::Invalid { field: "create", .. }), "{invalid}");
        assert_eq!(
            map("stop", second, Error::RequestTimeoutError),
            RuntimeError::Timeout { call: "stop", after_ms: 1000 }
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_engine_is_a_timeout() {
        let never = std::future::pending::<Result<(), Error>>();
        let error = within("ping", Duration::from_millis(1500), never).await.expect_err("nothing answers");
        assert_eq!(error, RuntimeError::Timeout { call: "ping", after_ms: 1500 });
    }
}
