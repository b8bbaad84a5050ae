//! Whom a container runs as, in numbers. The engine is given these and never a name: it reads accounts by rules of its
//! own, and a line that it reads otherwise than we do would be a way around the policy on root.

use swarm_protocol::Outcome;

use super::{End, engine_end};
use crate::runtime::{ContainerId, ContainerRuntime, RuntimeError};

/// The largest passwd or group file read.
const ACCOUNTS_BYTES_MAX: usize = 1 << 20;
/// The longest name of a user with its group.
const NAME_BYTES_MAX: usize = 256;
/// Supplementary groups of one user.
const GROUPS_MAX: usize = 1024;

/// A user and its groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owner {
    /// The user's number.
    pub(crate) uid: u32,
    /// The group's number.
    pub(crate) gid: u32,
    /// Supplementary groups: those that list the user, unless a group was named.
    pub(crate) groups: Vec<u32>,
}

/// Where neither job nor image names a user.
pub(super) const NOBODY: Owner = Owner { uid: 65534, gid: 65534, groups: Vec::new() };

/// The user to run as, as the job or else the image names it.
pub(super) enum User<'a> {
    /// No account needs to be looked at.
    Known(Owner),
    /// To be looked up in the image.
    Named(Named<'a>),
}

/// A user that cannot be told without the image's accounts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Named<'a> {
    user: Part<'a>,
    group: Option<Part<'a>>,
}

#[derive(Debug, Clone, Copy)]
enum Part<'a> {
    Number(u32),
    Name(&'a str),
}

impl std::fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let group = self.group.iter();
        [self.user].iter().chain(group).try_for_each(|part| match part {
            Part::Number(number) => write!(f, "{number}:"),
            Part::Name(name) => write!(f, "{name}:"),
        })
    }
}

/// Reads `name`, `uid`, or either with `:group`; the job's, else the image's, else nobody.
///
/// # Errors
/// What is neither a name nor a number, in words.
pub(super) fn effective<'a>(job: Option<&'a str>, image: Option<&'a str>) -> Result<User<'a>, End> {
    let Some(text) = job.or(image).filter(|text| !text.is_empty()) else { return Ok(User::Known(NOBODY)) };
    let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    let group = group.filter(|group| !group.is_empty());
    let parts = (part(user), group.map(part));
    match parts {
        _ if text.len() > NAME_BYTES_MAX => Err(refused(format!("a user of {} bytes is too long", text.len()))),
        (Some(Part::Number(uid)), Some(Some(Part::Number(gid)))) => {
            Ok(User::Known(Owner { uid, gid, groups: Vec::new() }))
        }
        (Some(user), None) => Ok(User::Named(Named { user, group: None })),
        (Some(user), Some(Some(group))) => Ok(User::Named(Named { user, group: Some(group) })),
        _ => Err(refused(format!("`{text}` is neither the name nor the number of a user"))),
    }
}

/// Digits are always a number. What only looks like one, as `-0` or `+0`, and an empty part are nothing: the engine
/// would take them for root.
fn part(text: &str) -> Option<Part<'_>> {
    if text.is_empty() || text.starts_with(['+', '-']) {
        return None;
    }
    if text.bytes().all(|byte| byte.is_ascii_digit()) { number(text).map(Part::Number) } else { Some(Part::Name(text)) }
}

/// A user's or group's number, within what the engine takes.
fn number(text: &str) -> Option<u32> {
    let is_plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|number| is_plain && i32::try_from(*number).is_ok())
}

/// Finds the numbers of a user in the accounts of the container's image.
pub(super) async fn look_up(runtime: &dyn ContainerRuntime, id: &ContainerId, named: Named<'_>) -> Result<Owner, End> {
    let passwd = read(runtime, id, "/etc/passwd").await?;
    let group = read(runtime, id, "/etc/group").await?;
    named.find(&passwd, &group).map_err(refused)
}

impl Named<'_> {
    /// The first account that fits counts, and a number without an account has group 0. Lines that are no accounts are
    /// passed over.
    fn find(self, passwd: &str, group: &str) -> Result<Owner, String> {
        let account = lines(passwd).find(|(name, uid, _)| match self.user {
            Part::Number(wanted) => *uid == wanted,
            Part::Name(wanted) => *name == wanted,
        });
        let (uid, own_gid) = match (account, self.user) {
            (Some((_, uid, rest)), _) => (uid, rest.split(':').next().and_then(number).unwrap_or(0)),
            (None, Part::Number(uid)) => (uid, 0),
            (None, Part::Name(name)) => return Err(format!("the image has no user `{name}`")),
        };
        let (gid, groups) = match self.group {
            Some(Part::Number(gid)) => (gid, Vec::new()),
            Some(Part::Name(wanted)) => {
                let found = lines(group).find(|(name, ..)| *name == wanted);
                (found.ok_or_else(|| format!("the image has no group `{wanted}`"))?.1, Vec::new())
            }
            None => (own_gid, account.map_or_else(Vec::new, |(name, ..)| memberships(group, name))),
        };
        if groups.len() > GROUPS_MAX {
            return Err(format!("the image's user is in more than {GROUPS_MAX} groups"));
        }
        Ok(Owner { uid, gid, groups })
    }
}

/// Name, number and what follows, of each line of a passwd or group file.
fn lines(file: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    file.lines().filter_map(|line| {
        let mut fields = line.trim().splitn(4, ':');
        let (name, _password, id) = (fields.next()?, fields.next()?, number(fields.next()?)?);
        Some((name, id, fields.next().unwrap_or_default()))
    })
}

fn memberships(group: &str, user: &str) -> Vec<u32> {
    let of_user = lines(group).filter(|(.., members)| members.split(',').any(|member| member == user));
    let mut gids: Vec<u32> = of_user.map(|(_, gid, _)| gid).collect();
    gids.sort_unstable();
    gids.dedup();
    gids
}

async fn read(runtime: &dyn ContainerRuntime, id: &ContainerId, path: &str) -> Result<String, End> {
    match runtime.read_small_file(id, path, ACCOUNTS_BYTES_MAX).await {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned()),
        Err(error @ RuntimeError::BadFile { .. }) => Err(refused(format!("the image's {error}"))),
        Err(error) => Err(engine_end(&error)),
    }
}

fn refused(why: String) -> End {
    let reason = format!("{why}; give the job a numeric `user` such as 1000:1000");
    End::With(Outcome::Refused { reason: swarm_protocol::text::sanitise(&reason, false) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(user: Option<&str>) -> Owner {
        match effective(None, user) {
            Ok(User::Known(owner)) => owner,
            _ => panic!("{user:?} needs no accounts"),
        }
    }

    fn found(user: &str, passwd: &str, group: &str) -> Result<(u32, u32, Vec<u32>), String> {
        match effective(None, Some(user)) {
            Ok(User::Named(named)) => named.find(passwd, group).map(|owner| (owner.uid, owner.gid, owner.groups)),
            _ => panic!("{user} is to be looked up"),
        }
    }

    #[test]
    fn the_job_overrides_the_image_and_nobody_is_the_last_resort() {
        assert!(matches!(effective(Some("7:8"), Some("app")), Ok(User::Known(Owner { uid: 7, gid: 8, .. }))));
        assert_eq!((known(None), known(Some("")), known(Some("0:5")).uid), (NOBODY, NOBODY, 0));
    }

    #[test]
    fn what_the_engine_would_take_for_root_is_no_user() {
        for user in [":1000", ":", "-0", "+0", "-0:5", "5:-0", "+0:+0", "4294967296", "4294967295", "2147483648"] {
            assert!(matches!(effective(None, Some(user)), Err(End::With(Outcome::Refused { .. }))), "{user}");
        }
        assert!(effective(None, Some(&"x".repeat(300))).is_err());
    }

    #[test]
    fn the_first_account_counts_and_what_is_none_does_not() {
        let passwd = "# comment\nbroken\napp\napp:x:-0:0\napp:x\nroot:x:0:0:root:/root:/bin/sh\n  app:x:1000:50::/:\n\
                      app:x:0:0::/:\n1001:x:0:0::/:\n:x:1000:0::/:\n";
        assert_eq!(found("app", passwd, ""), Ok((1000, 50, vec![])));
        assert_eq!(found("1000", passwd, ""), Ok((1000, 50, vec![])));
        assert_eq!(found("1001", passwd, ""), Ok((1001, 0, vec![])), "digits are no name");
        assert_eq!(found("root", passwd, "").unwrap().0, 0);
        assert!(found("broken", passwd, "").unwrap_err().contains("no user `broken`"));
        assert!(found(" root", passwd, "").is_err());
    }

    #[test]
    fn groups_come_with_the_user_unless_one_is_named() {
        let (passwd, group) =
            ("app:x:1000:50\n", "wheel:x:10:root,app\ndata:x:77:app\ndata2:x:77:app\nappx:x:3:apps\n");
        assert_eq!(found("app", passwd, group), Ok((1000, 50, vec![10, 77])));
        assert_eq!(found("app:", passwd, group), Ok((1000, 50, vec![10, 77])));
        assert_eq!(found("app:data", passwd, group), Ok((1000, 77, vec![])));
        assert_eq!(found("app:5", passwd, group), Ok((1000, 5, vec![])));
        assert_eq!(found("7:data", passwd, group), Ok((7, 77, vec![])));
        assert!(found("app:none", passwd, group).unwrap_err().contains("no group `none`"));
        let many: String = (0..2000).map(|n| format!("g{n}:x:{n}:app\n")).collect();
        assert!(found("app", passwd, &many).unwrap_err().contains("more than 1024 groups"));
    }
}
