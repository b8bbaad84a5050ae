//! What this worker is known by: labels found out from the engine and its machine, beside the operator's own. Jobs may
//! require any of them.
//!
//! Nothing that changes with every job is a label, so that one is sent to the core only when the machine changed.

use swarm_protocol::labels::{LABELS_MAX, Labels, NAME_HINT, VALUE_HINT, is_name, is_value, tidy_value};

use crate::offer::arch;
use crate::runtime::{DiskQuota, EngineFacts};

/// Labels the worker finds out itself; no other may have such a name.
const BUILT_IN: [&str; 13] = [
    "arch",
    "cgroup",
    "cores",
    "disk_bytes",
    "disk_limit",
    "engine",
    "gpu",
    "gpu.count",
    "host",
    "kernel",
    "memory_bytes",
    "os",
    "storage_driver",
];
/// The beginning of further ones.
const RUNTIME: &str = "runtime.";
/// Runtimes of the engine that become labels.
const RUNTIMES_MAX: usize = 16;
/// Labels of the operator's own, so that all labels keep within [`LABELS_MAX`].
const OWN_MAX: usize = 32;
const _: () = assert!(BUILT_IN.len() + RUNTIMES_MAX + OWN_MAX <= LABELS_MAX);

/// The operator's label that cannot be had: its name, what is wrong and what to write instead.
pub(crate) fn fault(own: &Labels) -> Option<(String, &'static str, &'static str)> {
    if own.len() > OWN_MAX {
        return Some(("labels".to_owned(), "are more than 32", "keep to 32"));
    }
    own.iter().find_map(|(name, value)| {
        let (problem, hint) = match () {
            () if !is_name(name) => ("is not a label's name", NAME_HINT),
            () if BUILT_IN.contains(&name.as_str()) || name.starts_with(RUNTIME) => {
                ("is a label the worker finds out itself", "choose another name")
            }
            () if !is_value(value) => ("has a value that no label can have", VALUE_HINT),
            () => return None,
        };
        Some((format!("labels.{}", swarm_protocol::text::sanitise(name, false)), problem, hint))
    })
}

/// All labels of a worker on this engine; `own` are the operator's.
pub(crate) fn labels(engine: &EngineFacts, own: &Labels) -> Labels {
    let found = [
        ("arch", arch(engine).to_owned()),
        ("cgroup", engine.cgroup_version.clone()),
        ("cores", engine.cpus.to_string()),
        ("disk_bytes", engine.disk_bytes.map(|bytes| bytes.to_string()).unwrap_or_default()),
        ("disk_limit", disk_limit(engine).to_owned()),
        ("engine", format!("docker {}", engine.engine_version)),
        ("host", engine.host.clone()),
        ("kernel", engine.kernel.clone()),
        ("memory_bytes", engine.memory_bytes.to_string()),
        ("os", engine.os.clone()),
        ("storage_driver", engine.storage_driver.clone()),
    ];
    let runtimes = engine.runtimes.iter().map(|name| format!("{RUNTIME}{name}")).filter(|name| is_name(name));
    let runtimes = runtimes.take(RUNTIMES_MAX).map(|name| (name, "true".to_owned()));
    let known = found.into_iter().filter(|(_, value)| !value.is_empty());
    let known = known.map(|(name, value)| (name.to_owned(), tidy_value(&value)));
    known.chain(runtimes).chain(gpus(engine)).chain(own.clone()).collect()
}

/// `hard` where the engine stops a root filesystem at its size; elsewhere the worker looks at what was written, now and
/// then. `root-only` where it sees nothing of volumes, so that what is written there has no limit.
fn disk_limit(engine: &EngineFacts) -> &'static str {
    match engine.disk_quota {
        _ if !engine.sees_volumes => "root-only",
        DiskQuota::Yes => "hard",
        DiskQuota::Unknown | DiskQuota::No => "sampled",
    }
}

/// Kind and count of the GPUs that the engine can hand to containers: those it discovered as CDI devices
/// (`VENDOR.com/gpu=INDEX`), else whatever a runtime named `nvidia` brings, whose count the engine does not know. GPUs of
/// several vendors are counted for the first.
fn gpus(engine: &EngineFacts) -> Vec<(String, String)> {
    let devices = engine.devices.iter().filter_map(|id| {
        let (kind, device) = id.split_once('=')?;
        Some((kind.strip_suffix("/gpu")?.split('.').next()?, device))
    });
    let mut devices: Vec<_> = devices.collect();
    devices.sort_unstable();
    devices.dedup();
    let has_runtime = engine.runtimes.iter().any(|name| name == "nvidia");
    let Some(kind) = devices.first().map(|(vendor, _)| *vendor).or(has_runtime.then_some("nvidia")) else {
        return Vec::new();
    };
    // A device has further names beside its index: `all`, and one by its UUID.
    let is_index = |device: &str| !device.is_empty() && device.bytes().all(|b| b.is_ascii_digit());
    let count = devices.iter().filter(|(vendor, device)| *vendor == kind && is_index(device)).count();
    let count = (count > 0).then(|| ("gpu.count".to_owned(), count.to_string()));
    [("gpu".to_owned(), tidy_value(kind))].into_iter().chain(count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::ContainerRuntime as _;
    use crate::runtime::fake::FakeRuntime;

    fn of(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    async fn engine() -> EngineFacts {
        let bare = FakeRuntime::new().facts().await.unwrap();
        EngineFacts { runtimes: vec!["runc".into(), "Bad name".into()], devices: Vec::new(), ..bare }
    }

    #[tokio::test]
    async fn what_the_engine_says_becomes_labels() {
        let mut engine = engine().await;
        engine.kernel = "6.1.0\u{1b}[31m".into();
        let found = labels(&engine, &of(&[("zone", "a")]));
        let expected = of(&[
            ("arch", "amd64"),
            ("cgroup", "2"),
            ("cores", "4"),
            ("disk_bytes", "1099511627776"),
            ("disk_limit", "sampled"),
            ("engine", "docker 0.0.0-fake"),
            ("host", "fake"),
            ("kernel", "6.1.0\\u{1b}[31m"),
            ("memory_bytes", "8589934592"),
            ("os", "linux"),
            ("runtime.runc", "true"),
            ("storage_driver", "memory"),
            ("zone", "a"),
        ]);
        assert_eq!(found, expected);
        assert!(found.iter().all(|(name, value)| is_name(name) && is_value(value)));
        let built_in = |name: &String| BUILT_IN.contains(&name.as_str()) || name.starts_with(RUNTIME);
        assert!(found.keys().filter(|name| *name != "zone").all(built_in));
        (engine.disk_bytes, engine.cgroup_version) = (None, String::new());
        let found = labels(&engine, &Labels::new());
        assert!(!found.contains_key("disk_bytes") && !found.contains_key("cgroup"), "what is not known is no label");
        engine.disk_quota = DiskQuota::Yes;
        assert_eq!(labels(&engine, &Labels::new())["disk_limit"], "hard");
        engine.sees_volumes = false;
        assert_eq!(labels(&engine, &Labels::new())["disk_limit"], "root-only", "volumes have no limit then");
        engine.runtimes = (0..99).map(|n| format!("r{n}")).collect();
        let own: Labels = (0..OWN_MAX).map(|n| (format!("own-{n}"), String::new())).collect();
        assert!(labels(&engine, &own).len() <= LABELS_MAX);
    }

    #[tokio::test]
    async fn gpus_are_those_the_engine_can_hand_out() {
        let bare = engine().await;
        let told = |runtimes: &[&str], devices: &[&str]| {
            let owned = |words: &[&str]| words.iter().map(ToString::to_string).collect();
            let engine = EngineFacts { runtimes: owned(runtimes), devices: owned(devices), ..bare.clone() };
            let found = labels(&engine, &Labels::new());
            (found.get("gpu").cloned(), found.get("gpu.count").cloned())
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(told(&["runc"], &["vendor.com/nic=0"]), (None, None));
        assert_eq!(told(&["nvidia"], &[]), (some("nvidia"), None));
        let cdi = ["nvidia.com/gpu=0", "nvidia.com/gpu=1", "nvidia.com/gpu=GPU-4cf8db2d", "nvidia.com/gpu=all"];
        assert_eq!(told(&["runc"], &cdi), (some("nvidia"), some("2")));
        assert_eq!(told(&["runc"], &["amd.com/gpu=all"]), (some("amd"), None));
        assert_eq!(told(&["nvidia"], &["amd.com/gpu=0", "junk", "=/gpu="]), (some("amd"), some("1")));
    }

    #[test]
    fn an_own_label_is_refused_by_its_name() {
        assert_eq!(fault(&of(&[("zone", "a"), ("example.org/rack", "4")])), None);
        let field = |pairs| fault(&of(pairs)).map(|(field, _, _)| field);
        assert_eq!(field(&[("zone", "a"), ("kernel", "7")]).as_deref(), Some("labels.kernel"));
        assert_eq!(field(&[("runtime.x", "true")]).as_deref(), Some("labels.runtime.x"));
        assert_eq!(field(&[("disk_limit", "hard")]).as_deref(), Some("labels.disk_limit"));
        assert_eq!(field(&[("Zone", "a")]).as_deref(), Some("labels.Zone"));
        assert_eq!(field(&[("zone", "a\nb")]).as_deref(), Some("labels.zone"));
        let many = (0..=OWN_MAX).map(|n| (n.to_string(), String::new())).collect();
        assert_eq!(fault(&many).map(|(field, _, _)| field).as_deref(), Some("labels"));
    }
}
