//! From bollard's errors to the kinds a caller must tell apart, and the deadline around every call.

use std::error::Error as _;
use std::time::Duration;

use bollard::errors::Error;

use crate::runtime::RuntimeError;

/// What the engine says (as API 400, 404 or 500) when the job's own words make a start impossible. Anything else that
/// goes wrong in the OCI runtime (no memory, no disk, cgroups) is the machine's fault.
const START_REFUSALS: [&str; 10] = [
    "executable file not found",
    "no such file or directory",
    "permission denied",
    "exec format error",
    "is a directory",
    "not a directory",
    "unable to find user",
    "unable to find group",
    "chdir to cwd",
    "cannot be started with a working directory",
];

/// Waits for one call to the engine, at most `deadline`.
pub(super) async fn within<T>(
    call: &'static str,
    deadline: Duration,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, RuntimeError> {
    match tokio::time::timeout(deadline, work).await {
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
        Error::DockerResponseServerError { status_code: 400 | 403, message } => {
            RuntimeError::Invalid { field: call, reason: message }
        }
        // An upload to a place that cannot be written; engine 20.10 says 500.
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

/// As [`map`], for `start`: tells the job's faults from the machine's.
pub(super) fn map_start(deadline: Duration, error: Error) -> RuntimeError {
    if let Error::DockerResponseServerError { status_code, message } = &error {
        let gone = *status_code == 404 && message.starts_with("No such container");
        let by_oci_runtime = message.contains("OCI runtime") || message.contains("runc");
        let words = START_REFUSALS.iter().any(|known| message.contains(known));
        let refused = match status_code {
            400 => true,
            404 => !gone,
            500 => words && (by_oci_runtime || message.contains("unable to find")),
            _ => false,
        };
        if refused {
            return RuntimeError::StartRefused { message: message.trim().to_owned() };
        }
    }
    map("start", deadline, error)
}

/// As [`map`], for `create`, where the engine already makes the working directory.
pub(super) fn map_create(deadline: Duration, error: Error) -> RuntimeError {
    match error {
        Error::DockerResponseServerError { status_code: 400 | 500, message }
            if message.starts_with("Cannot mkdir") && message.contains("not a directory") =>
        {
            RuntimeError::StartRefused { message }
        }
        other => map("create", deadline, other),
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
    fn start_errors_are_split_by_fault() {
        let second = Duration::from_secs(1);
        let job = [
            (400, "OCI runtime create failed: exec: \"nope\": executable file not found in $PATH: unknown"),
            (400, "OCI runtime create failed: exec: \"/etc\": permission denied: unknown"),
            (500, "unable to find user ghost: no matching entries in passwd file"),
            (500, "OCI runtime create failed: chdir to cwd (\"/x\") set in config.json failed: not a directory"),
        ];
        for (status, message) in job {
            let error = map_start(second, server(status, message));
            assert!(matches!(error, RuntimeError::StartRefused { .. }), "{error}");
            assert!(!error.is_infrastructure());
        }
        let machine = [
            (500, "OCI runtime create failed: container_linux.go: cannot allocate memory"),
            (500, "error creating overlay mount: no space left on device"),
            (503, "the engine is shutting down"),
        ];
        for (status, message) in machine {
            let error = map_start(second, server(status, message));
            assert!(error.is_infrastructure(), "{error}");
        }
        assert!(map_start(second, server(404, "No such container: abc")).is_not_found());
    }

    #[test]
    fn other_calls_keep_their_kind() {
        let second = Duration::from_secs(1);
        assert!(map("inspect", second, server(404, "No such container: x")).is_not_found());
        assert!(matches!(map("create", second, server(409, "in use")), RuntimeError::Conflict { .. }));
        assert!(map("ping", second, server(500, "boom")).is_infrastructure());
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
