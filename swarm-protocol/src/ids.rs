//! Identifiers. Each kind has its own type, so that a worker can never be passed where a job is meant.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

/// Why a text is not an identifier; names what was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {expected}")]
pub struct ParseIdError {
    /// The offending text, cut to 80 characters.
    pub text: String,
    /// What would have been accepted, with an article.
    pub expected: &'static str,
}

impl ParseIdError {
    fn new(text: &str, expected: &'static str) -> Self {
        Self { text: text.chars().take(80).collect(), expected }
    }
}

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident, $inner:ty, $expected:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                text.parse().map(Self).map_err(|_| ParseIdError::new(text, $expected))
            }
        }
    };
}

number_id!(
    /// A job: numbered from 1 in the order of acceptance, never reused within one swarm.
    JobId, u64, "a job number such as 42"
);
number_id!(
    /// A worker as the core knows it; its name is for people.
    WorkerId, u64, "a worker number such as 3"
);
number_id!(
    /// A schedule, numbered from 1.
    ScheduleId, u64, "a schedule number such as 7"
);
number_id!(
    /// A user account.
    UserId, u64, "a user number such as 1"
);
number_id!(
    /// An owner group: the unit of ownership of jobs, images, files and schedules.
    GroupId, u64, "a group number such as 1"
);
number_id!(
    /// The leadership term of a core. Every ledger transaction is fenced by it.
    Epoch, u64, "an epoch number"
);

/// A task within its job: the value of `SWARM_TASK_INDEX`.
pub type TaskIndex = u32;
/// A run of a task, counted from 1; doubles as the fencing token handed to the container.
pub type AttemptNo = u16;

/// One task of one job, written `42.7`; `42` alone means task 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TaskId {
    /// The job.
    pub job: JobId,
    /// The task's index in the job.
    pub task: TaskIndex,
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.job, self.task)
    }
}

impl FromStr for TaskId {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let refuse = || ParseIdError::new(text, "a task such as 42.7");
        let (job, task) = text.split_once('.').unwrap_or((text, "0"));
        Ok(Self { job: job.parse().map_err(|_| refuse())?, task: task.parse().map_err(|_| refuse())? })
    }
}

/// One attempt of one task, written `42.7.1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttemptId {
    /// The job.
    pub job: JobId,
    /// The task's index in the job.
    pub task: TaskIndex,
    /// Counted from 1.
    pub attempt: AttemptNo,
}

impl AttemptId {
    /// The task this is an attempt of.
    #[must_use]
    pub const fn task_id(self) -> TaskId {
        TaskId { job: self.job, task: self.task }
    }
}

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.job, self.task, self.attempt)
    }
}

impl FromStr for AttemptId {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let refuse = || ParseIdError::new(text, "an attempt such as 42.7.1");
        let mut parts = text.splitn(3, '.');
        let mut part = || parts.next().ok_or_else(refuse);
        Ok(Self {
            job: part()?.parse().map_err(|_| refuse())?,
            task: part()?.parse().map_err(|_| refuse())?,
            attempt: part()?.parse().map_err(|_| refuse())?,
        })
    }
}

/// A fresh value at every start of a worker process, so that a rejoining worker is never mistaken for its former self.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootId(pub uuid::Uuid);

impl BootId {
    /// A new random boot id.
    #[must_use]
    pub fn random() -> Self {
        Self(uuid::Uuid::new_v4())
    }
}

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One link session: a fresh value at every (re)connect of a worker; names the heartbeat keys in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SessionId(pub u64);

/// This installation, drawn at the first start and kept in the database; labels every container it makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SwarmId(pub uuid::Uuid);

impl fmt::Display for SwarmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A SHA-256 digest of plaintext, written `sha256:<64 hex digits>` (the OCI form).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        use sha2::Digest as _;
        Self(sha2::Sha256::digest(bytes).into())
    }

    /// The 64 hex digits without the algorithm.
    #[must_use]
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }

    /// The first 12 hex digits, as docker shows them.
    #[must_use]
    pub fn short(&self) -> String {
        hex::encode(&self.0[..6])
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let refuse = || ParseIdError::new(text, "a digest such as sha256:<64 hex digits>");
        let digits = text.strip_prefix("sha256:").ok_or_else(refuse)?;
        let mut bytes = [0u8; 32];
        // Upper case is refused: OCI digests are lower case, and two spellings of one digest invite confusion.
        if digits.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(refuse());
        }
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| refuse())?;
        Ok(Self(bytes))
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { self.0.serialize(serializer) }
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let text = String::deserialize(deserializer)?;
            text.parse().map_err(serde::de::Error::custom)
        } else {
            <[u8; 32]>::deserialize(deserializer).map(Self)
        }
    }
}

impl PartialSchema for Digest {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some("SHA-256 of the plaintext, in the OCI form."))
            .pattern(Some("^sha256:[0-9a-f]{64}$"))
            .into()
    }
}

impl ToSchema for Digest {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_round_trip_through_their_text() {
        let attempt = AttemptId { job: JobId(42), task: 7, attempt: 1 };
        assert_eq!(attempt.to_string().parse(), Ok(attempt));
        assert_eq!("42".parse(), Ok(TaskId { job: JobId(42), task: 0 }));
        assert_eq!("42.7".parse(), Ok(TaskId { job: JobId(42), task: 7 }));
        assert!("42.7.".parse::<AttemptId>().is_err());
        assert!("42.7.1.2".parse::<AttemptId>().is_err());
    }

    #[test]
    fn a_digest_is_lower_case_and_whole() {
        let digest = Digest::of(b"");
        assert_eq!(digest.to_string(), "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(digest.to_string().parse(), Ok(digest));
        assert!(digest.to_string().to_uppercase().parse::<Digest>().is_err());
        assert!("sha256:e3b0".parse::<Digest>().is_err());
        assert_eq!(serde_json::to_string(&digest).unwrap(), format!("\"{digest}\""));
    }
}
