//! Everything about a job spec that can be judged without looking anything up. Used by the consumer before it sends and
//! by the receiver again, for no client is trusted. All faults are reported at once.

use std::collections::HashSet;

use crate::problem::FieldError;
use crate::spec::{JobSpec, Resources};

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
    if faults.0.is_empty() { Ok(()) } else { Err(faults.0) }
}

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
        faults.check(
            is_name(name),
            "name",
            "is not a name",
            "use at most 128 letters, digits, `.`, `_`, `-`, `/`, beginning with a letter or digit",
        );
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
    for (at, input) in spec.inputs.iter().enumerate() {
        check_file_path(&input.path, &format!("inputs[{at}].path"), faults);
        let twice = !seen.insert(("input", input.path.as_str()));
        faults.check(!twice, format!("inputs[{at}].path"), "is given twice", "give each input its own path");
        let field = format!("inputs[{at}].mode");
        faults.check(input.mode <= 0o777, field, "is more than permission bits", "give 0 to 0o777, for instance 0o644");
    }
    for (at, output) in spec.outputs.iter().enumerate() {
        check_file_path(&output.path, &format!("outputs[{at}].path"), faults);
        let twice = !seen.insert(("output", output.path.as_str()));
        faults.check(!twice, format!("outputs[{at}].path"), "is given twice", "name each output once");
    }
}

/// Directories that a volume would hide or that the kernel owns.
const RESERVED_DIRS: [&str; 11] =
    ["/proc", "/sys", "/dev", "/bin", "/sbin", "/lib", "/lib64", "/usr", "/etc", "/boot", "/run/secrets"];

/// A file's directory becomes a volume, so it must be one that can be hidden without breaking the image.
fn check_file_path(path: &str, field: &str, faults: &mut Faults) {
    if !check_path(path, field, faults) {
        return;
    }
    let dir = path.rsplit_once('/').map_or("", |(dir, _)| dir);
    let hint = "keep files in a directory of their own, for instance /data/in.csv";
    faults.check(!dir.is_empty(), field, "lies directly under `/`, which cannot be a volume", hint);
    let reserved = RESERVED_DIRS.iter().find(|root| dir == **root || dir.starts_with(&format!("{root}/")));
    if let Some(root) = reserved {
        faults.check(false, field, format!("lies in {root}, which belongs to the system"), hint);
    }
}

fn check_path(path: &str, field: &str, faults: &mut Faults) -> bool {
    let plain = path.starts_with('/')
        && path.len() <= 1024
        && !path.contains('\0')
        && (path == "/" || path[1..].split('/').all(|part| !matches!(part, "" | "." | "..")));
    let hint = "give an absolute path without `.`, `..`, `//` or a final `/`, for instance /data/in.csv";
    faults.check(plain, field, format!("`{}` is not a plain absolute path", crate::text::sanitise(path, false)), hint);
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Digest;
    use crate::spec::{Input, Output};
    use crate::tasks::TaskRange;

    fn faults_of(change: impl FnOnce(&mut JobSpec)) -> Vec<String> {
        let mut spec = JobSpec::new("alpine");
        change(&mut spec);
        validate(&spec).err().unwrap_or_default().into_iter().map(|fault| fault.field).collect()
    }

    fn input(path: &str) -> Input {
        Input { digest: Digest::of(b""), path: path.into(), mode: 0o644 }
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
        assert_eq!(faults_of(|s| s.inputs = vec![input("/a/b"), input("/a/b")]), ["inputs[1].path"]);
    }

    #[test]
    fn unknown_fields_are_refused_by_name() {
        let error = serde_json::from_str::<JobSpec>(r#"{"image":"a","privileged":true}"#).unwrap_err();
        assert!(error.to_string().contains("privileged"));
    }
}
