//! Everything about a job spec that can be judged without looking anything up. Used by the consumer before it sends and
//! by the receiver again, for no client is trusted. All faults are reported at once.

use std::collections::HashSet;

use chrono::TimeDelta;

use crate::Timestamp;
use crate::globs::{OutputGlob, dir_of};
use crate::labels;
use crate::problem::FieldError;
use crate::spec::{Input, JobSpec, Limits, Resources, default_mode};

/// Bounds that a spec must keep; chosen so that a whole spec stays far below the request body's bound of 1 MiB.
pub mod bounds {
    /// Tasks of one job.
    pub const TASKS_MAX: u64 = 10_000_000;
    /// Words of a command or entrypoint.
    pub const WORDS_MAX: usize = 1_024;
    /// Bytes of all words, and of all environment variables.
    pub const TEXT_BYTES_MAX: usize = 128 << 10;
    /// Environment variables.
    pub const ENV_MAX: usize = 512;
    /// Inputs, and outputs.
    pub const FILES_MAX: usize = 256;
    /// Entries of an archive that is unpacked as an input, its directories included.
    pub const UNPACKED_MAX: usize = 200_000;
    /// Bytes of all their names together.
    pub const UNPACKED_NAME_BYTES_MAX: usize = 32 << 20;
    /// Files that one attempt may hand back, those that globs match included.
    pub const COLLECTED_MAX: usize = 1_000;
    /// Smallest and largest memory of a task; docker refuses less than 6 MiB.
    pub const MEMORY_BYTES: std::ops::RangeInclusive<u64> = 6 << 20..=64 << 40;
    /// Smallest and largest share of cores in thousandths.
    pub const CPU_MILLIS: std::ops::RangeInclusive<u32> = 10..=1_024_000;
    /// A lease in seconds: 15 s to 1 day.
    pub const LEASE_S: std::ops::RangeInclusive<u64> = 15..=86_400;
    /// A run timeout in seconds: 1 s to 30 days.
    pub const TIMEOUT_S: std::ops::RangeInclusive<u64> = 1..=30 * 86_400;
    /// Priorities.
    pub const PRIORITY: std::ops::RangeInclusive<i32> = -100..=100;
    /// Retries of either kind.
    pub const RETRIES_MAX: u16 = 1_000;
    /// Processes and threads of a container.
    pub const PIDS: std::ops::RangeInclusive<u32> = 1..=32_768;
    /// Open files of a process.
    pub const OPEN_FILES: std::ops::RangeInclusive<u32> = 16..=1_048_576;
    /// Bytes a container may write to disk.
    pub const DISK_BYTES: std::ops::RangeInclusive<u64> = 1 << 20..=64 << 40;
    /// Bytes of log kept.
    pub const LOG_BYTES: std::ops::RangeInclusive<u64> = 1 << 10..=64 << 30;
    /// Scratch directories.
    pub const TMPFS_MAX: usize = 16;
    /// How far in the past a start may lie, in seconds: what a request takes, and what clocks differ.
    pub const START_PAST_S_MAX: i64 = 60;
    /// How far ahead a start may lie, in days: 5 years.
    pub const START_AHEAD_DAYS_MAX: i64 = 1_827;
}

/// Collects what is wrong, field by field.
#[derive(Default)]
struct Faults(Vec<FieldError>);

impl Faults {
    fn check(&mut self, ok: bool, field: impl Into<String>, problem: impl Into<String>, hint: impl Into<String>) {
        if !ok {
            self.0.push(FieldError::new(field, problem, hint));
        }
    }
}

/// Checks `spec` by itself.
///
/// # Errors
/// Every field that is wrong, each with its way out.
pub fn validate(spec: &JobSpec) -> Result<(), Vec<FieldError>> {
    let mut faults = Faults::default();
    texts(spec, &mut faults);
    numbers(spec, &mut faults);
    files(spec, &mut faults);
    requirements(spec, &mut faults);
    limits(spec, &mut faults);
    if faults.0.is_empty() { Ok(()) } else { Err(faults.0) }
}

/// What is wrong with a start at `start_at` when it is `now`.
#[must_use]
pub fn start_fault(start_at: Timestamp, now: Timestamp) -> Option<FieldError> {
    use bounds::{START_AHEAD_DAYS_MAX, START_PAST_S_MAX};
    let text = |at: Timestamp| at.to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
    if start_at < now - TimeDelta::seconds(START_PAST_S_MAX) {
        let problem = format!("{} is in the past; for the core it is {}", text(start_at), text(now));
        return Some(FieldError::new("start_at", problem, "leave it out to start the job now"));
    }
    let ahead_max = now + TimeDelta::days(START_AHEAD_DAYS_MAX);
    let problem = || format!("{} is more than 5 years ahead", text(start_at));
    let hint = || format!("give an instant up to {}", text(ahead_max));
    (start_at > ahead_max).then(|| FieldError::new("start_at", problem(), hint()))
}

/// What to say to whoever gave a name that is none.
pub const NAME_HINT: &str = "use at most 128 letters, digits, `.`, `_`, `-`, `/`, beginning with a letter or digit";

/// Checks a name given by a user to a job, schedule or worker.
#[must_use]
pub fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 128
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/".contains(&b))
        && name.as_bytes()[0].is_ascii_alphanumeric()
}

fn texts(spec: &JobSpec, faults: &mut Faults) {
    if let Some(name) = &spec.name {
        faults.check(is_name(name), "name", "is not a name", NAME_HINT);
    }
    faults.check(
        !spec.image.is_empty() && spec.image.len() <= 255,
        "image",
        "is empty or longer than 255 bytes",
        "name an image uploaded with `image push`",
    );
    for (field, words) in [("command", &spec.command), ("entrypoint", &spec.entrypoint)] {
        let Some(words) = words else { continue };
        let bytes: usize = words.iter().map(String::len).sum();
        faults.check(
            words.len() <= bounds::WORDS_MAX && bytes <= bounds::TEXT_BYTES_MAX,
            field,
            format!("has {} words of {bytes} bytes together", words.len()),
            "keep to 1,024 words and 128 KiB; put larger data into an input file",
        );
        faults.check(!words.iter().any(|w| w.contains('\0')), field, "contains a NUL byte", "remove it");
    }
    if let Some(user) = &spec.user {
        let ok = user.len() <= 64
            && !user.is_empty()
            && user.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-:".contains(&b));
        faults.check(ok, "user", "is not a user", "give a name, a uid, or uid:gid");
    }
    if let Some(dir) = &spec.workdir {
        check_path(dir, "workdir", faults);
    }
    environment(spec, faults);
}

fn environment(spec: &JobSpec, faults: &mut Faults) {
    let bytes: usize = spec.env.iter().map(|(name, value)| name.len() + value.len()).sum();
    faults.check(
        spec.env.len() <= bounds::ENV_MAX && bytes <= bounds::TEXT_BYTES_MAX,
        "env",
        format!("has {} variables of {bytes} bytes together", spec.env.len()),
        "keep to 512 variables and 128 KiB; put larger data into an input file",
    );
    for (name, value) in &spec.env {
        let named = !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0');
        let field = format!("env.{name}");
        faults.check(
            named,
            field.clone(),
            "is not a variable",
            "names are not empty and hold no `=`; nothing holds NUL",
        );
        faults.check(
            !name.starts_with("SWARM_"),
            field,
            "is reserved",
            "choose a name that does not begin with SWARM_",
        );
    }
}

fn requirements(spec: &JobSpec, faults: &mut Faults) {
    let count = spec.require.len();
    let hint = format!("require at most {}", labels::REQUIRE_MAX);
    faults.check(count <= labels::REQUIRE_MAX, "require", format!("{count} labels are too many"), hint);
    for (name, value) in &spec.require {
        let field = format!("require.{name}");
        faults.check(labels::is_name(name), field.clone(), "is not a label's name", labels::NAME_HINT);
        faults.check(labels::is_value(value), field, "has a value that no label can have", labels::VALUE_HINT);
    }
}

fn numbers(spec: &JobSpec, faults: &mut Faults) {
    use bounds::{CPU_MILLIS, LEASE_S, MEMORY_BYTES, PRIORITY, RETRIES_MAX, TASKS_MAX, TIMEOUT_S};
    let range = |low: &dyn std::fmt::Display, high: &dyn std::fmt::Display| format!("give {low} to {high}");
    let Resources { cpu_millis, memory_bytes } = spec.resources;
    faults.check(
        CPU_MILLIS.contains(&cpu_millis),
        "resources.cpu_millis",
        format!("{cpu_millis} thousandths of a core cannot be given"),
        range(CPU_MILLIS.start(), CPU_MILLIS.end()),
    );
    faults.check(
        MEMORY_BYTES.contains(&memory_bytes),
        "resources.memory_bytes",
        format!("{memory_bytes} bytes cannot be given"),
        range(MEMORY_BYTES.start(), MEMORY_BYTES.end()),
    );
    if let Some(array) = spec.array {
        let hint = format!("write FIRST-LAST with FIRST <= LAST and at most {TASKS_MAX} tasks");
        faults.check(
            array.first <= array.last,
            "array",
            format!("{} is after {}", array.first, array.last),
            hint.clone(),
        );
        let fits = array.first > array.last || array.count() <= TASKS_MAX;
        faults.check(fits, "array", format!("{array} has too many tasks"), hint);
    }
    if let Some(timeout_s) = spec.timeout_s {
        let hint = range(TIMEOUT_S.start(), TIMEOUT_S.end());
        faults.check(TIMEOUT_S.contains(&timeout_s), "timeout_s", format!("{timeout_s} s is out of range"), hint);
    }
    let hint = range(LEASE_S.start(), LEASE_S.end());
    faults.check(LEASE_S.contains(&spec.lease_s), "lease_s", format!("{} s is out of range", spec.lease_s), hint);
    let hint = range(PRIORITY.start(), PRIORITY.end());
    faults.check(PRIORITY.contains(&spec.priority), "priority", format!("{} is out of range", spec.priority), hint);
    for (field, count) in [("retries.lost", spec.retries.lost), ("retries.failed", spec.retries.failed)] {
        faults.check(count <= RETRIES_MAX, field, format!("{count} is too many"), range(&0, &RETRIES_MAX));
    }
    let both = spec.at_most_once && spec.eager;
    faults.check(!both, "eager", "contradicts `at_most_once`", "keep one of the two");
    let retried = spec.at_most_once && spec.retries.failed > 0;
    faults.check(!retried, "retries.failed", "contradicts `at_most_once`", "set it to 0, or drop `at_most_once`");
}

fn files(spec: &JobSpec, faults: &mut Faults) {
    for (field, count) in [("inputs", spec.inputs.len()), ("outputs", spec.outputs.len())] {
        faults.check(count <= bounds::FILES_MAX, field, format!("{count} are too many"), "pack them into an archive");
    }
    let mut seen = HashSet::new();
    // More are refused anyway, and looking at each takes time.
    for (at, input) in spec.inputs.iter().enumerate().take(bounds::FILES_MAX) {
        check_input_path(spec, input, at, faults);
        let twice = !seen.insert(("input", input.path.as_str()));
        faults.check(!twice, format!("inputs[{at}].path"), "is given twice", "give each input its own path");
        let field = format!("inputs[{at}].mode");
        faults.check(input.mode <= 0o777, field.as_str(), "is more than permission bits", MODE_HINT);
        let idle = input.unpack && input.mode != default_mode();
        faults.check(!idle, field, "means nothing for an archive", "leave it out: each entry has its own");
    }
    for (at, output) in spec.outputs.iter().enumerate().take(bounds::FILES_MAX) {
        let field = format!("outputs[{at}].path");
        if check_file_path(&output.path, &field, faults)
            && let Err(error) = OutputGlob::parse(&output.path)
        {
            let hint = "correct it, or write [*], [?], [[] or [{] for the character itself";
            faults.check(false, field, format!("is not a glob: {error}"), hint);
        }
        let twice = !seen.insert(("output", output.path.as_str()));
        faults.check(!twice, format!("outputs[{at}].path"), "is given twice", "name each output once");
    }
}

fn limits(spec: &JobSpec, faults: &mut Faults) {
    use bounds::{DISK_BYTES, LOG_BYTES, OPEN_FILES, PIDS, TMPFS_MAX};
    let Limits { pids, open_files, disk_bytes, log_bytes, ref tmpfs, read_only_root: _ } = spec.limits;
    let ranges = [
        ("limits.pids", pids.into(), u64::from(*PIDS.start())..=u64::from(*PIDS.end())),
        ("limits.open_files", open_files.into(), u64::from(*OPEN_FILES.start())..=u64::from(*OPEN_FILES.end())),
        ("limits.disk_bytes", disk_bytes, DISK_BYTES),
        ("limits.log_bytes", log_bytes.unwrap_or(*LOG_BYTES.start()), LOG_BYTES),
    ];
    for (field, value, range) in ranges {
        let hint = format!("give {} to {}", range.start(), range.end());
        faults.check(range.contains(&value), field, format!("{value} is out of range"), hint);
    }
    faults.check(
        tmpfs.len() <= TMPFS_MAX,
        "limits.tmpfs",
        format!("{} are too many", tmpfs.len()),
        format!("give at most {TMPFS_MAX}"),
    );
    let sum = tmpfs.iter().fold(0_u64, |sum, mount| sum.saturating_add(mount.bytes));
    faults.check(
        sum <= spec.resources.memory_bytes,
        "limits.tmpfs",
        format!("{sum} bytes together are more than the task's memory"),
        "scratch space counts as memory: ask for more memory or less scratch",
    );
    let files = || spec.inputs.iter().map(|input| &input.path).chain(spec.outputs.iter().map(|output| &output.path));
    for (at, mount) in tmpfs.iter().enumerate().take(TMPFS_MAX) {
        let field = format!("limits.tmpfs[{at}]");
        if check_path(&mount.path, &format!("{field}.path"), faults) {
            check_hidden(&mount.path, &format!("{field}.path"), faults);
        }
        let twice = tmpfs[..at].iter().any(|other| other.path == mount.path);
        faults.check(!twice, format!("{field}.path"), "is given twice", "give each scratch directory its own path");
        let below = format!("{}/", mount.path);
        let hides = files().any(|path| *path == mount.path || path.starts_with(&below));
        let hint = "keep scratch and files in different directories; files in memory cannot be collected";
        faults.check(!hides, format!("{field}.path"), "holds an input or an output", hint);
        faults.check(mount.bytes >= 4096, format!("{field}.bytes"), "is less than a page", "give at least 4096");
    }
}

/// Directories that a volume would hide or that the kernel owns.
const RESERVED_DIRS: [&str; 11] =
    ["/proc", "/sys", "/dev", "/bin", "/sbin", "/lib", "/lib64", "/usr", "/etc", "/boot", "/run/secrets"];

const MODE_HINT: &str = "give 0 to 0o777, for instance 0o644";

/// The directory of a file becomes a volume, and so does one that an archive fills. No other input goes into the latter:
/// either would have to give way.
fn check_input_path(spec: &JobSpec, input: &Input, at: usize, faults: &mut Faults) {
    let field = format!("inputs[{at}].path");
    if !input.unpack {
        check_file_path(&input.path, &field, faults);
    } else if check_path(&input.path, &field, faults) {
        check_hidden(&input.path, &field, faults);
    }
    let archives = || spec.inputs.iter().take(bounds::FILES_MAX).enumerate().filter(|(_, other)| other.unpack);
    if let Some((above, dir)) = archives().find(|(_, dir)| is_below(&input.path, &dir.path)) {
        let problem = format!("lies in the directory of inputs[{above}], {}", crate::text::sanitise(&dir.path, false));
        faults.check(false, field, problem, "put it into that directory before it is packed, or give it another path");
    }
}

/// Whether `path` lies in `dir`, at any depth.
#[must_use]
pub fn is_below(path: &str, dir: &str) -> bool {
    path.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/'))
}

/// A file's directory becomes a volume, so it must be one that can be hidden without breaking the image.
fn check_file_path(path: &str, field: &str, faults: &mut Faults) -> bool {
    let is_path = check_path(path, field, faults);
    if is_path {
        check_hidden(dir_of(path), field, faults);
    }
    is_path
}

/// Whether the image can do without what it has in `dir`.
fn check_hidden(dir: &str, field: &str, faults: &mut Faults) {
    let hint = "use a directory of its own, for instance /data";
    faults.check(!matches!(dir, "" | "/"), field, "would hide the whole image", hint);
    let reserved = RESERVED_DIRS.iter().find(|root| dir == **root || dir.starts_with(&format!("{root}/")));
    if let Some(root) = reserved {
        faults.check(false, field, format!("lies in {root}, which belongs to the system"), hint);
    }
}

/// Whether `path` is absolute, of at most 1,024 bytes, and has no part that leads elsewhere.
fn is_plain(path: &str) -> bool {
    path.starts_with('/')
        && path.len() <= 1024
        && !path.contains('\0')
        && (path == "/" || path[1..].split('/').all(|part| !matches!(part, "" | "." | "..")))
}

/// Whether a file that a glob matched may be handed back under this path: it becomes the name of a file on somebody's
/// machine, and is printed there.
#[must_use]
pub fn is_output_path(path: &str) -> bool {
    is_plain(path) && !path.chars().any(crate::text::is_hostile)
}

fn check_path(path: &str, field: &str, faults: &mut Faults) -> bool {
    let plain = is_plain(path);
    let shown = crate::text::sanitise(path, false);
    let hint = "give an absolute path without `.`, `..`, `//` or a final `/`, for instance /data/in.csv";
    faults.check(plain, field, format!("`{shown}` is not a plain absolute path"), hint);
    let harmless = !plain || is_output_path(path);
    let hint = "leave out control characters and those that turn the direction of text";
    faults.check(harmless, field, format!("`{shown}` holds characters that act on a terminal"), hint);
    plain && harmless
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Digest;
    use crate::spec::{Input, Output, Tmpfs};
    use crate::tasks::TaskRange;

    fn faults_of(change: impl FnOnce(&mut JobSpec)) -> Vec<String> {
        let mut spec = JobSpec::new("alpine");
        change(&mut spec);
        validate(&spec).err().unwrap_or_default().into_iter().map(|fault| fault.field).collect()
    }

    fn input(path: &str) -> Input {
        Input { digest: Digest::of(b""), path: path.into(), mode: 0o644, unpack: false }
    }

    fn archive(path: &str) -> Input {
        Input { unpack: true, ..input(path) }
    }

    #[test]
    fn the_default_spec_is_valid_and_each_fault_names_its_field() {
        assert!(faults_of(|_| ()).is_empty());
        assert_eq!(faults_of(|s| s.image.clear()), ["image"]);
        assert_eq!(faults_of(|s| s.name = Some("../x".into())), ["name"]);
        assert_eq!(faults_of(|s| s.resources.memory_bytes = 1), ["resources.memory_bytes"]);
        assert_eq!(faults_of(|s| s.resources.cpu_millis = 0), ["resources.cpu_millis"]);
        assert_eq!(faults_of(|s| s.array = Some(TaskRange { first: 5, last: 1 })), ["array"]);
        assert_eq!(faults_of(|s| s.array = Some(TaskRange { first: 0, last: u32::MAX })), ["array"]);
        assert_eq!(faults_of(|s| s.lease_s = 1), ["lease_s"]);
        assert_eq!(faults_of(|s| s.timeout_s = Some(0)), ["timeout_s"]);
        assert_eq!(faults_of(|s| s.priority = 101), ["priority"]);
        assert_eq!(faults_of(|s| s.workdir = Some("rel".into())), ["workdir"]);
        assert_eq!(faults_of(|s| s.user = Some("a b".into())), ["user"]);
        assert_eq!(faults_of(|s| drop(s.env.insert("SWARM_X".into(), "1".into()))), ["env.SWARM_X"]);
        let require = |name: &str, value: &str| faults_of(|s| drop(s.require.insert(name.into(), value.into())));
        assert_eq!((require("zone", "a"), require("Zone", "a")), (vec![], vec!["require.Zone".to_owned()]));
        assert_eq!(require("zone", "\u{1b}"), ["require.zone"]);
        assert_eq!(faults_of(|s| s.require = (0..17).map(|n| (n.to_string(), String::new())).collect()), ["require"]);
        assert_eq!(faults_of(|s| (s.at_most_once, s.eager) = (true, true)), ["eager"]);
        let huge = vec!["x".repeat(200 << 10)];
        assert_eq!(faults_of(|s| s.command = Some(huge)), ["command"]);
    }

    #[test]
    fn paths_cannot_climb_or_hide_the_system() {
        for bad in ["in", "/in", "/data/../etc/x", "/data//x", "/data/./x", "/data/", "/etc/passwd", "/usr/bin/x", ""] {
            assert_eq!(faults_of(|s| s.inputs.push(input(bad))), ["inputs[0].path"], "{bad}");
            assert_eq!(faults_of(|s| s.outputs.push(Output { path: bad.into() })), ["outputs[0].path"], "{bad}");
        }
        assert!(faults_of(|s| s.inputs.push(input("/data/in.csv"))).is_empty());
        for bad in ["/*", "/*/x", "/etc/*", "/out/[a", "/out/*/../x"] {
            assert_eq!(faults_of(|s| s.outputs.push(Output { path: bad.into() })), ["outputs[0].path"], "{bad}");
        }
        assert!(faults_of(|s| s.outputs.push(Output { path: "/out/**/part-*.csv".into() })).is_empty());
        // Of too many nothing is looked at but the first ones.
        let many = (0..45_000).map(|n| Output { path: format!("/out/{n}/[") });
        assert_eq!(faults_of(|s| s.outputs = many.collect()).len(), 1 + bounds::FILES_MAX);
        assert_eq!(faults_of(|s| s.inputs = vec![input("/a/b"), input("/a/b")]), ["inputs[1].path"]);
    }

    #[test]
    fn a_directory_hides_nothing_of_the_system_and_no_other_input_goes_into_it() {
        assert!(
            faults_of(|s| s.inputs = vec![archive("/data"), archive("/in/a"), input("/in/b"), input("/data2/x")])
                .is_empty()
        );
        for bad in ["/", "/etc/x", "/usr", "data", "/data/", "/data/../etc"] {
            assert_eq!(faults_of(|s| s.inputs.push(archive(bad))), ["inputs[0].path"], "{bad}");
        }
        assert_eq!(faults_of(|s| s.inputs = vec![input("/data/x/y"), archive("/data")]), ["inputs[0].path"]);
        assert_eq!(faults_of(|s| s.inputs = vec![archive("/data"), archive("/data/x")]), ["inputs[1].path"]);
        assert_eq!(faults_of(|s| s.inputs = vec![archive("/in/data"), input("/in/data")]), ["inputs[1].path"]);
        assert_eq!(faults_of(|s| s.inputs.push(Input { mode: 0o755, ..archive("/data") })), ["inputs[0].mode"]);
        let inside = |s: &mut JobSpec| {
            s.inputs.push(archive("/data"));
            s.outputs.push(Output { path: "/data/sub/out".into() });
        };
        assert!(faults_of(inside).is_empty(), "a job may write into what it was given");
    }

    #[test]
    fn limits_are_within_bounds_and_scratch_hides_nothing() {
        let tmpfs = |path: &str, bytes| Tmpfs { path: path.into(), bytes };
        assert_eq!(faults_of(|s| s.limits.pids = 0), ["limits.pids"]);
        assert_eq!(faults_of(|s| s.limits.open_files = 1), ["limits.open_files"]);
        assert_eq!(faults_of(|s| s.limits.disk_bytes = 1), ["limits.disk_bytes"]);
        assert_eq!(faults_of(|s| s.limits.log_bytes = Some(0)), ["limits.log_bytes"]);
        assert_eq!(faults_of(|s| s.limits.tmpfs = vec![tmpfs("/scratch", 1 << 40)]), ["limits.tmpfs"]);
        assert_eq!(faults_of(|s| s.limits.tmpfs = vec![tmpfs("/scratch", 1)]), ["limits.tmpfs[0].bytes"]);
        for bad in ["/", "tmp", "/etc", "/usr/lib", "/a/../b"] {
            assert_eq!(faults_of(|s| s.limits.tmpfs = vec![tmpfs(bad, 4096)]), ["limits.tmpfs[0].path"], "{bad}");
        }
        let twice = vec![tmpfs("/tmp", 4096), tmpfs("/tmp", 4096)];
        assert_eq!(faults_of(|s| s.limits.tmpfs = twice), ["limits.tmpfs[1].path"]);
        let hides = |s: &mut JobSpec| {
            s.inputs.push(input("/data/in/a"));
            s.limits.tmpfs = vec![tmpfs("/data", 4096)];
        };
        assert_eq!(faults_of(hides), ["limits.tmpfs[0].path"]);
        let is_output = |s: &mut JobSpec| {
            s.outputs.push(Output { path: "/data/out".into() });
            s.limits.tmpfs = vec![tmpfs("/data/out", 4096)];
        };
        assert_eq!(faults_of(is_output), ["limits.tmpfs[0].path"], "it would lie in memory, and nothing be collected");
        assert!(faults_of(|s| s.limits.tmpfs = vec![tmpfs("/tmp", 1 << 20)]).is_empty());
    }

    #[test]
    fn a_start_lies_neither_behind_nor_years_ahead() {
        let at = |second| Timestamp::from_timestamp(1_800_000_000 + second, 0).unwrap();
        let fault = |second| start_fault(at(second), at(0));
        for fine in [-60, 0, 60, bounds::START_AHEAD_DAYS_MAX * 86_400] {
            assert_eq!(fault(fine), None, "{fine}");
        }
        let past = fault(-61).unwrap();
        assert_eq!(past.problem, "2027-01-15T07:58:59Z is in the past; for the core it is 2027-01-15T08:00:00Z");
        assert_eq!((past.field.as_str(), past.hint.as_str()), ("start_at", "leave it out to start the job now"));
        let ahead = fault(bounds::START_AHEAD_DAYS_MAX * 86_400 + 1).unwrap();
        assert_eq!(
            (ahead.field.as_str(), ahead.hint.as_str()),
            ("start_at", "give an instant up to 2032-01-16T08:00:00Z")
        );
        assert!(start_fault(Timestamp::MIN_UTC, at(0)).is_some() && start_fault(Timestamp::MAX_UTC, at(0)).is_some());
    }

    #[test]
    fn paths_hold_nothing_that_acts_on_a_terminal() {
        for bad in ["/out/\u{1b}]52;c;eA==\u{7}", "/out/a\nb", "/out/\u{9b}31m", "/out/\u{202e}gpj.exe", "/out/\t"] {
            assert_eq!(faults_of(|s| s.inputs.push(input(bad))), ["inputs[0].path"], "{bad:?}");
            assert_eq!(faults_of(|s| s.outputs.push(Output { path: bad.into() })), ["outputs[0].path"], "{bad:?}");
            assert_eq!(faults_of(|s| s.workdir = Some(bad.into())), ["workdir"], "{bad:?}");
        }
        assert!(faults_of(|s| s.outputs.push(Output { path: "/out/naïve ✓".into() })).is_empty());
    }

    /// Puts an unknown field into each object within `whole`, one at a time, expects its refusal, and counts the objects.
    fn refuses_strangers(whole: &serde_json::Value) -> usize {
        let mut objects = vec![String::new()];
        let mut seen = 0;
        while let Some(path) = objects.pop() {
            let at = whole.pointer(&path).unwrap();
            let keys: Vec<String> = match at {
                serde_json::Value::Object(fields) => fields.keys().cloned().collect(),
                serde_json::Value::Array(items) => (0..items.len()).map(|index| index.to_string()).collect(),
                _ => continue,
            };
            objects.extend(keys.into_iter().map(|key| format!("{path}/{key}")));
            // The names of variables and labels are the user's own.
            if !at.is_object() || matches!(path.as_str(), "/env" | "/require") {
                continue;
            }
            let mut changed = whole.clone();
            changed.pointer_mut(&path).unwrap()["privileged"] = true.into();
            let error = serde_json::from_value::<JobSpec>(changed).expect_err(&path).to_string();
            assert!(error.contains("privileged"), "{path}: {error}");
            seen += 1;
        }
        seen
    }

    #[test]
    fn unknown_fields_are_refused_by_name_in_every_part() {
        let mut spec = JobSpec::new("alpine");
        spec.array = Some(TaskRange { first: 0, last: 3 });
        spec.env.insert("A".into(), "1".into());
        spec.require.insert("zone".into(), "a".into());
        spec.limits.tmpfs.push(Tmpfs { path: "/tmp".into(), bytes: 4096 });
        spec.inputs.push(input("/data/in"));
        spec.outputs.push(Output { path: "/data/out".into() });
        // The spec, its resources, limits, scratch, array, input, output and retries.
        assert_eq!(refuses_strangers(&serde_json::to_value(&spec).unwrap()), 8);
    }
}
