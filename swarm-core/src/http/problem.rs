//! Every error answer is a problem (RFC 9457), those of guards and unknown routes included.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rocket::http::{ContentType, Status};
use rocket::request::Request;
use rocket::response::{Responder, Response, Result as Responded};
use rocket::{Catcher, catch, catchers};
use swarm_protocol::problem::{FieldError, Problem};

use crate::blobs::BlobError;
use crate::identity::AuthError;
use crate::identity::password::PasswordError;
use crate::images::ImageError;
use crate::messages::Stopping;
use crate::once::Full;
use crate::store::{Refusal, StoreError};

/// When whoever was told 503 should come again, in seconds.
const RETRY_AFTER_S: &str = "2";

/// A problem as an answer.
#[derive(Debug)]
pub(crate) struct Failure(pub(crate) Box<Problem>);

/// What handlers give.
pub(crate) type Answer<T> = Result<T, Failure>;

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self(Box::new(problem))
    }
}

impl<'r> Responder<'r, 'static> for Failure {
    fn respond_to(self, _: &'r Request<'_>) -> Responded<'static> {
        let body = serde_json::to_vec(&self.0).map_err(|_| Status::InternalServerError)?;
        let mut answer = Response::build();
        answer.status(Status::new(self.0.status)).header(ContentType::new("application", "problem+json"));
        if self.0.status == 401 {
            answer.raw_header("WWW-Authenticate", "Bearer");
        }
        if self.0.status == 503 {
            answer.raw_header("Retry-After", RETRY_AFTER_S);
        }
        answer.sized_body(body.len(), std::io::Cursor::new(body)).ok()
    }
}

/// One wrong field.
pub(crate) fn invalid(field: impl Into<String>, problem: impl Into<String>, hint: impl Into<String>) -> Failure {
    Problem::invalid(vec![FieldError::new(field, problem, hint)]).into()
}

/// There is no such thing, or it is not for the asker: the answer does not tell which.
pub(crate) fn not_found(kind: &str, which: impl std::fmt::Display) -> Failure {
    let problem = Problem::new(404, &format!("{kind}-not-found"), "Not found", format!("there is no {kind} {which}"));
    problem.with_hint("check the number or name; other groups' things are not shown").into()
}

pub(crate) fn too_large(what: &str, bytes_max: u64) -> Failure {
    let detail = format!("{what} is larger than the {bytes_max} bytes allowed here");
    let problem = Problem::new(413, "too-large", "The request is too large", detail);
    problem.with_hint("send less, or ask an admin to raise the limit").into()
}

pub(crate) fn unauthenticated(detail: impl Into<String>) -> Failure {
    let problem = Problem::new(401, "unauthenticated", "Not authenticated", detail);
    problem.with_hint("log in with `login`, or send the access token as `Authorization: Bearer …`").into()
}

pub(crate) fn forbidden(detail: impl Into<String>) -> Failure {
    Problem::new(403, "forbidden", "Not allowed", detail).with_hint("ask an admin for a higher role").into()
}

fn clash(detail: impl Into<String>) -> Problem {
    Problem::new(409, "conflict", "It clashes with what is there", detail)
}

/// A field that clashes with what is there.
pub(crate) fn conflict(field: &str, problem: impl Into<String>, hint: &str) -> Failure {
    let problem = problem.into();
    let errors = vec![FieldError::new(field, problem.clone(), hint)];
    Problem { errors, ..clash(problem).with_hint(hint) }.into()
}

pub(crate) fn unavailable(detail: impl Into<String>) -> Failure {
    let problem = Problem::new(503, "unavailable", "Not available now", detail);
    problem.with_hint("try again in a few seconds").retryable().into()
}

/// The database takes longer than a request waits: what was asked for may be done later, or not at all.
pub(crate) fn late(waited: Duration) -> Failure {
    let detail = format!(
        "the database has not answered for {} s; what was asked for may still be done",
        waited.as_secs_f32().ceil()
    );
    let problem = Problem::new(503, "unavailable", "Not available now", detail);
    let hint = "look what is there, or send it again: a submit with the same Idempotency-Key makes one job";
    problem.with_hint(hint).retryable().into()
}

/// The upload's source failed: the client went away, was too slow, or sent less than announced.
pub(crate) fn cut_short() -> Failure {
    let problem = Problem::new(400, "cut-short", "The upload ended early", "the body did not arrive whole");
    problem.with_hint("send it again").retryable().into()
}

/// There is no room for what a client wants to have kept.
pub(crate) fn disk_full() -> Failure {
    let problem = Problem::new(503, "unavailable", "Not available now", "the core's disk is full");
    problem.with_hint("try again when there is room on the disk of the core's data directory").retryable().into()
}

/// Whether the system gave this as a reason somewhere below.
fn is_disk_full(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |cause| cause.source());
    causes.any(|cause| {
        let kind = cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        matches!(kind, Some(std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded))
    })
}

/// A fault of ours: the log has the details, the client does not, but for a full disk.
pub(crate) fn internal(error: &(dyn std::error::Error + 'static)) -> Failure {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    tracing::error!(error = text, "a request failed");
    if is_disk_full(error) {
        return disk_full();
    }
    let detail = "the core failed at this request; its log has the details";
    Problem::new(500, "internal", "The core failed", detail).retryable().into()
}

impl From<Stopping> for Failure {
    fn from(_: Stopping) -> Self {
        unavailable("the core is stopping")
    }
}

impl From<Full> for Failure {
    fn from(full: Full) -> Self {
        unavailable(full.to_string())
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Deposed { .. } | StoreError::Connection(_) => {
                tracing::warn!("a request failed: {error}");
                unavailable("the database cannot be reached")
            }
            error => internal(&error),
        }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Stale(detail) | Refusal::Conflict(detail) => {
                clash(detail).with_hint("look at what is there now, and try again if you still want to").into()
            }
            Refusal::NotFound(what) => {
                let detail = format!("{what} does not exist");
                Problem::new(404, "not-found", "Not found", detail).into()
            }
            Refusal::Broken(_) => internal(&refusal),
        }
    }
}

impl From<BlobError> for Failure {
    fn from(error: BlobError) -> Self {
        match error {
            BlobError::WrongDigest { expected, actual } => {
                let problem = format!("says {expected}, but the bytes received have {actual}");
                invalid("Digest-Expected", problem, "send the file again, or correct the digest")
            }
            BlobError::TooLarge { max_bytes } => too_large("the upload", max_bytes),
            error => internal(&error),
        }
    }
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        match error {
            ImageError::Store(error) => error.into(),
            ImageError::StoreMember { .. } | ImageError::ReadBack { .. } => internal(&error),
            ImageError::Read(source) if source.kind() == std::io::ErrorKind::FileTooLarge => {
                let detail = "the archive is larger than allowed here";
                let problem = Problem::new(413, "too-large", "The request is too large", detail);
                problem.with_hint("use a smaller image, or ask an admin to raise `limits.image_bytes`").into()
            }
            ImageError::Read(_) => cut_short(),
            ImageError::TooLarge { .. } => {
                Problem::new(413, "too-large", "The request is too large", error.to_string()).into()
            }
            error => invalid("archive", error.to_string(), "make the archive anew with `docker save IMAGE`"),
        }
    }
}

impl From<AuthError> for Failure {
    fn from(error: AuthError) -> Self {
        match error {
            AuthError::Unauthenticated(detail) => unauthenticated(detail),
            AuthError::Expired => {
                let problem = Problem::new(401, "token-expired", "Not authenticated", error.to_string());
                problem.with_hint("refresh the token or log in again").into()
            }
            AuthError::Limited(limited) => {
                let detail = limited.to_string();
                let problem = Problem::new(429, "too-many-requests", "Too many attempts", detail);
                problem.with_hint("wait, then try again").retryable().into()
            }
            AuthError::Field(error) => Problem::invalid(vec![error]).into(),
            AuthError::Refused(refusal) => refusal.into(),
            AuthError::Busy(full) => full.into(),
            AuthError::Password(PasswordError::Busy) => unavailable("too many logins at this moment"),
            AuthError::Store(error) => error.into(),
            AuthError::Stopping(stopping) => stopping.into(),
            error => internal(&error),
        }
    }
}

/// Where a guard leaves its problem for the catcher.
#[derive(Default)]
struct Stash(Mutex<Option<Failure>>);

/// Keeps `failure` for the catcher and gives its status.
pub(crate) fn stash(request: &Request<'_>, failure: Failure) -> Status {
    let status = Status::new(failure.0.status);
    *request.local_cache(Stash::default).0.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
    status
}

#[catch(default)]
fn catch_all(status: Status, request: &Request<'_>) -> Failure {
    let stashed = request.local_cache(Stash::default).0.lock().unwrap_or_else(PoisonError::into_inner).take();
    stashed.unwrap_or_else(|| {
        let (method, path) = (request.method(), request.uri().path());
        match status.code {
            401 => unauthenticated("this route needs a token"),
            404 => {
                let detail = format!("there is no route {method} {path}");
                Problem::new(404, "not-found", "Not found", detail).into()
            }
            413 => too_large("the body", 1 << 20),
            code @ 500.. => {
                tracing::error!("{method} {path} failed with status {code}");
                Problem::new(code, "internal", "The core failed", "the core failed at this request").into()
            }
            code => {
                let detail = format!("{method} {path} cannot be answered: {}", status.reason_lossy());
                Problem::new(code, "bad-request", "The request cannot be answered", detail).into()
            }
        }
    })
}

pub(crate) fn all() -> Vec<Catcher> {
    catchers![catch_all]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_with_a_way_out_and_other_faults_are_not_told() {
        let failed = |kind: std::io::ErrorKind| {
            let error = BlobError::Io { action: "write", path: "/data/blobs/x".into(), source: kind.into() };
            *Failure::from(error).0
        };
        let full = failed(std::io::ErrorKind::StorageFull);
        assert_eq!((full.status, full.retryable, full.hint.is_some()), (503, true, true), "{full:?}");
        let other = failed(std::io::ErrorKind::PermissionDenied);
        assert_eq!(other.status, 500);
        assert!(!format!("{other:?}").contains("/data"), "{other:?}");
    }
}
