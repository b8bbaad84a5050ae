//! Which user a container runs as, in numbers: the owner of its files, and whether it is root.

use swarm_protocol::Outcome;

use super::{End, engine_end};
use crate::runtime::{ContainerId, ContainerRuntime};

/// Where neither job nor image names a user.
const NOBODY: &str = "65534:65534";
/// The largest passwd or group file read.
const ACCOUNTS_BYTES_MAX: usize = 1 << 20;

/// A user and its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner {
    /// The user's number.
    pub(super) uid: u32,
    /// The group's number.
    pub(super) gid: u32,
}

/// The user to run as: the job's, else the image's, else nobody.
pub(super) fn effective(job: Option<&str>, image: Option<&str>) -> String {
    job.or(image).filter(|user| !user.is_empty()).unwrap_or(NOBODY).to_owned()
}

/// Finds the numbers of `user` (`name`, `uid`, either with `:group`) in the container's own accounts, by the rules of
/// the engine: digits are always a number, the first matching line counts, and a uid without an account has group 0.
pub(super) async fn resolve(runtime: &dyn ContainerRuntime, id: &ContainerId, user: &str) -> Result<Owner, End> {
    let (name, group) = user.split_once(':').map_or((user, None), |(name, group)| (name, Some(group)));
    let group = group.filter(|group| !group.is_empty());
    if let (Ok(uid), Some(Ok(gid))) = (name.parse(), group.map(str::parse)) {
        return Ok(Owner { uid, gid });
    }
    let passwd = read(runtime, id, "/etc/passwd").await?;
    let (uid, own_gid) = match name.parse::<u32>() {
        Ok(uid) => {
            (uid, account(&passwd, |fields| fields[2].parse() == Ok(uid)).and_then(|fields| fields[3].parse().ok()))
        }
        Err(_) => {
            let fields = account(&passwd, |fields| fields[0] == name);
            let found = fields.and_then(|fields| Some((fields[2].parse().ok()?, fields[3].parse().ok())));
            found.ok_or_else(|| unknown("user", name))?
        }
    };
    let gid = match group {
        None => own_gid.unwrap_or(0),
        Some(group) => match group.parse() {
            Ok(gid) => gid,
            Err(_) => {
                let groups = read(runtime, id, "/etc/group").await?;
                let fields = account(&groups, |fields| fields[0] == group);
                fields.and_then(|fields| fields[2].parse().ok()).ok_or_else(|| unknown("group", group))?
            }
        },
    };
    Ok(Owner { uid, gid })
}

async fn read(runtime: &dyn ContainerRuntime, id: &ContainerId, path: &str) -> Result<String, End> {
    let bytes = runtime.read_small_file(id, path, ACCOUNTS_BYTES_MAX).await;
    match bytes {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned()),
        Err(error) if error.is_infrastructure() => Err(engine_end(&error)),
        Err(error) => {
            let reason = format!("the image's {error}; give the job a numeric `user` such as 1000:1000");
            Err(End::With(Outcome::Refused { reason: swarm_protocol::text::sanitise(&reason, false) }))
        }
    }
}

/// The first line with at least four fields (three suffice in a group file, which has four as well) that matches.
fn account(file: &str, matches: impl Fn(&[&str]) -> bool) -> Option<Vec<&str>> {
    let lines = file.lines().map(|line| line.split(':').collect::<Vec<_>>());
    lines.filter(|fields| fields.len() >= 3).map(padded).find(|fields| matches(fields))
}

fn padded(mut fields: Vec<&str>) -> Vec<&str> {
    fields.resize(fields.len().max(4), "");
    fields
}

fn unknown(kind: &str, name: &str) -> End {
    let name = swarm_protocol::text::sanitise(name, false);
    let reason = format!("the image has no {kind} `{name}`; give the job a numeric `user` such as 1000:1000");
    End::With(Outcome::Refused { reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_job_overrides_the_image_and_nobody_is_the_last_resort() {
        assert_eq!(effective(Some("7"), Some("app")), "7");
        assert_eq!(effective(None, Some("app")), "app");
        assert_eq!(effective(None, None), "65534:65534");
    }

    #[test]
    fn the_first_matching_account_counts() {
        let passwd =
            "# comment\nbroken\nroot:x:0:0:root:/root:/bin/sh\napp:x:1000:50::/:\napp:x:0:0::/:\n1001:x:0:0::/:\n";
        assert_eq!(account(passwd, |fields| fields[0] == "app").unwrap()[2..4], ["1000", "50"]);
        assert!(account(passwd, |fields| fields[2].parse() == Ok(1001u32)).is_none(), "digits are no name");
        assert!(account(passwd, |fields| fields[0] == "broken").is_none());
    }
}
