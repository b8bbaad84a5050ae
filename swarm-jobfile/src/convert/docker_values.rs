//! Values that `docker run` and compose files share.

use crate::values::{Cores, Mount, Size};

/// What a scratch directory gets whose size Docker does not bound.
const TMPFS_BYTES: u64 = 64 << 20;
/// Directories of the machine that jobs are wont to be given, and that no job can have.
const SOCKET: &str = "docker.sock";

/// A size as Docker writes it: a number and one of b, k, m, g, binary all.
pub(super) fn size(text: &str) -> Option<Size> {
    let text = text.trim().to_ascii_lowercase();
    let text = text.strip_suffix("ib").or_else(|| text.strip_suffix('b')).unwrap_or(&text);
    let (number, shift) = match text.char_indices().next_back()? {
        (at, 'k') => (&text[..at], 10),
        (at, 'm') => (&text[..at], 20),
        (at, 'g') => (&text[..at], 30),
        (at, 't') => (&text[..at], 40),
        _ => (text, 0),
    };
    let number: f64 = number.trim().parse().ok()?;
    let bytes = number * 2f64.powi(shift);
    (bytes.is_finite() && (0.0..2f64.powi(53)).contains(&bytes)).then_some(Size(bytes as u64))
}

pub(super) fn cores(text: &str) -> Option<Cores> {
    text.trim().parse().ok()
}

/// `/tmp` or `/tmp:size=64m,mode=1777`.
pub(super) fn tmpfs(text: &str, notes: &mut Vec<String>) -> Mount {
    let (path, options) = text.split_once(':').unwrap_or((text, ""));
    let bytes = options.split(',').find_map(|option| size(option.strip_prefix("size=")?));
    if bytes.is_none() {
        notes.push(format!(
            "the scratch space {path} has 64 MiB here: without a size Docker gives it half of the memory"
        ));
    }
    let bytes = bytes.map_or(TMPFS_BYTES, |size| size.0);
    Mount(swarm_protocol::spec::Tmpfs { path: path.to_owned(), bytes })
}

/// `HOST:CONTAINER[:OPTIONS]`: a job gets a copy of what lies on the host.
pub(super) fn volume(text: &str, notes: &mut Vec<String>) -> Option<String> {
    let mut parts = text.split(':');
    let (host, inside, options) = (parts.next()?, parts.next(), parts.next().unwrap_or_default());
    let Some(inside) = inside else {
        notes.push(format!("the volume {host} is left out: jobs keep nothing; name what is to be kept with `out`"));
        return None;
    };
    if host.ends_with(SOCKET) {
        notes.push(format!("{host} is left out: no job reaches the Docker that runs it"));
        return None;
    }
    if !host.starts_with(['/', '.', '~']) {
        notes.push(format!("the volume {host} is left out: jobs share none; upload its content with `input`"));
        return None;
    }
    if !options.split(',').any(|option| option == "ro") {
        notes.push(format!(
            "{inside} is a copy of {host}: what the job writes there is not seen here; keep it with `out`"
        ));
    }
    Some(format!("{host}:{inside}"))
}

/// `on-failure[:N]`, `always`, `unless-stopped`, `no`.
pub(super) fn restarts(text: &str, notes: &mut Vec<String>) -> Option<u16> {
    match text.split_once(':').unwrap_or((text, "")) {
        ("no", _) => None,
        ("on-failure", times) => Some(times.parse().unwrap_or_else(|_| {
            notes.push("a failed task is tried 3 times again: Docker would do so for ever".to_owned());
            3
        })),
        (policy, _) => {
            notes.push(format!("the restart policy {policy} is left out: a job ends; make it again with a schedule"));
            None
        }
    }
}

/// The soft limit of `nofile=SOFT[:HARD]`.
pub(super) fn open_files(text: &str, notes: &mut Vec<String>) -> Option<u32> {
    let limit = text.strip_prefix("nofile=").and_then(|limits| limits.split(':').next()?.parse().ok());
    if limit.is_none() {
        notes.push(format!("the ulimit {text} is left out: of these a job has `open_files` alone"));
    }
    limit
}

/// Docker's names may begin with `_` or `-`, a job's may not.
pub(super) fn name(text: &str, notes: &mut Vec<String>) -> Option<String> {
    let name = text.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
    if name != text {
        notes.push(format!("the name {text} has become `{name}`"));
    }
    Some(name.to_owned()).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_binary_as_docker_s_are() {
        let bytes = |text| size(text).map(|size| size.0);
        assert_eq!(
            ["512m", "1g", "1.5G", "100", "4kb", "2GiB"].map(bytes),
            [Some(512 << 20), Some(1 << 30), Some(3 << 29), Some(100), Some(4 << 10), Some(2 << 30)]
        );
        assert_eq!(["", "m", "much", "-1m", "1e300g"].map(bytes), [None; 5]);
    }

    #[test]
    fn what_a_job_cannot_have_is_named() {
        let mut notes = Vec::new();
        assert_eq!(volume("/data:/in:ro", &mut notes), Some("/data:/in".to_owned()));
        assert_eq!((restarts("on-failure:5", &mut notes), restarts("no", &mut notes)), (Some(5), None));
        assert_eq!(open_files("nofile=1024:2048", &mut notes), Some(1024));
        assert_eq!(tmpfs("/tmp:size=1m", &mut notes).to_string(), "/tmp:1MiB");
        assert_eq!(notes, Vec::<String>::new());
        volume("./src:/src", &mut notes);
        volume("db:/var/lib", &mut notes);
        volume("/var/run/docker.sock:/var/run/docker.sock", &mut notes);
        volume("/cache", &mut notes);
        restarts("always", &mut notes);
        restarts("on-failure", &mut notes);
        open_files("core=0", &mut notes);
        tmpfs("/run", &mut notes);
        insta::assert_snapshot!(notes.join("\n"));
    }
}
