//! Whether any worker could ever run a task, were it idle and linked.

use swarm_protocol::api::Warning;
use swarm_protocol::labels::Labels;

use super::place::Amount;
use super::why::{Standing, Subject};
use crate::messages::Shape;

/// The field of warnings about labels, or the beginning of one.
pub(super) const REQUIRE: &str = "require";
/// The field of the warning about directories.
pub(super) const INPUTS: &str = "inputs";

/// Why none of `workers` could ever run a task of this shape. Workers that have not said yet what they offer may be able
/// to; those whose key was revoked are not.
#[must_use]
pub fn misfit(workers: &[Subject], shape: &Shape) -> Option<Warning> {
    let needs = shape.needs;
    let mut enrolled: Vec<_> = workers.iter().filter(|worker| worker.standing != Standing::Revoked).collect();
    if enrolled.is_empty() {
        let problem = "no worker has joined the swarm yet".to_owned();
        return Some(warning("no-worker", "resources", problem, "start a worker, or let one join".to_owned()));
    }
    enrolled.retain(|worker| worker.may_speak(shape.link_version));
    if enrolled.is_empty() {
        let problem = "no worker is new enough to unpack input directories".to_owned();
        let hint = "update a worker, or give the job files instead of directories".to_owned();
        return Some(warning("no-worker-fits", INPUTS, problem, hint));
    }
    if !enrolled.iter().any(|worker| worker.may_have(&shape.require)) {
        return Some(unlabelled(&enrolled, &shape.require));
    }
    enrolled.retain(|worker| worker.may_have(&shape.require));
    let largest_one =
        if shape.require.is_empty() { "the largest worker" } else { "the largest worker with its labels" };
    let able = |worker: &&Subject| worker.capacity == Amount::default() || worker.capacity.fits(needs);
    if enrolled.iter().any(able) {
        return None;
    }
    let roomiest = enrolled.iter().max_by_key(|worker| worker.capacity.memory_bytes)?;
    let (wanted, largest) = (bytes(needs.memory_bytes), bytes(roomiest.capacity.memory_bytes));
    if needs.memory_bytes > roomiest.capacity.memory_bytes {
        let problem = format!("a task needs {wanted} of memory; {largest_one}, {}, has {largest}", roomiest.name);
        let hint = format!("ask for at most {largest} of memory, or add a larger worker");
        return Some(warning("no-worker-fits", "resources.memory_bytes", problem, hint));
    }
    let fastest = enrolled.iter().max_by_key(|worker| worker.capacity.cpu_millis)?;
    let (wanted_cores, most) = (cores(u64::from(needs.cpu_millis)), cores(fastest.capacity.cpu_millis));
    if u64::from(needs.cpu_millis) > fastest.capacity.cpu_millis {
        let problem = format!("a task needs {wanted_cores} cores; {largest_one}, {}, has {most}", fastest.name);
        let hint = format!("ask for at most {most} cores, or add a larger worker");
        return Some(warning("no-worker-fits", "resources.cpu_millis", problem, hint));
    }
    let problem = format!(
        "no single worker has a slot, {wanted_cores} cores and {wanted} of memory; {} has the most memory, {} the most cores",
        roomiest.name, fastest.name
    );
    Some(warning("no-worker-fits", "resources", problem, "ask for less of one, or add a larger worker".to_owned()))
}

/// No worker has the labels: names the first that is nowhere, or all of them if each is somewhere.
fn unlabelled(workers: &[&Subject], require: &Labels) -> Warning {
    let has = |worker: &Subject, (name, value): (&String, &String)| {
        worker.labels.as_ref().is_some_and(|labels| labels.get(name) == Some(value))
    };
    let nowhere = require.iter().find(|label| !workers.iter().any(|worker| has(worker, *label)));
    if let Some((name, value)) = nowhere {
        let problem = format!("no worker has the label `{name}={value}`");
        let hint = format!("require what a worker has, or start one with `--label {name}={value}`");
        return warning("no-worker-fits", &format!("{REQUIRE}.{name}"), problem, hint);
    }
    let all: Vec<_> = require.iter().map(|(name, value)| format!("`{name}={value}`")).collect();
    let problem = format!("no single worker has all of the labels {}", all.join(", "));
    warning("no-worker-fits", REQUIRE, problem, "require fewer, or add a worker with all of them".to_owned())
}

fn warning(code: &str, field: &str, problem: String, hint: String) -> Warning {
    Warning { code: code.to_owned(), field: field.to_owned(), problem, hint }
}

/// Thousandths of cores as people write them: `2`, `0.5`, `1.25`.
pub(super) fn cores(millis: u64) -> String {
    (millis as f64 / 1000.0).to_string()
}

/// Bytes in the largest binary unit that keeps them at one or more, with at most one decimal.
pub(super) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let rounded = (value * 10.0).round() / 10.0;
    format!("{rounded} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use swarm_protocol::spec::Resources;

    use super::*;
    use crate::testing::labels;

    const GIB: u64 = 1 << 30;

    fn worker(name: &str, standing: Standing, cores: u64, gib: u64, slots: u32) -> Subject {
        let capacity = Amount { cpu_millis: cores * 1000, memory_bytes: gib * GIB, slots };
        let (name, labels) = (name.to_owned(), Some(labels(&[])));
        Subject { name, standing, capacity, used: capacity, labels, link_version: Some(4) }
    }

    fn told(workers: &[Subject], cores: u32, gib: u64) -> Option<(String, String)> {
        let needs = Resources { cpu_millis: cores * 1000, memory_bytes: gib * GIB };
        misfit(workers, &Shape { needs, ..Shape::default() })
            .map(|warning| (warning.field, format!("{}; {}", warning.problem, warning.hint)))
    }

    #[test]
    fn busy_and_absent_workers_count_and_revoked_ones_do_not() {
        let mut workers = vec![worker("a", Standing::Offline, 4, 8, 1), worker("b", Standing::Draining, 8, 4, 1)];
        assert_eq!(told(&workers, 4, 8), None);
        assert_eq!(told(&workers, 8, 4), None);
        let text = "a task needs 9 GiB of memory; the largest worker, a, has 8 GiB; \
                    ask for at most 8 GiB of memory, or add a larger worker";
        assert_eq!(told(&workers, 99, 9), Some(("resources.memory_bytes".into(), text.into())));
        let text =
            "a task needs 9 cores; the largest worker, b, has 8; ask for at most 8 cores, or add a larger worker";
        assert_eq!(told(&workers, 9, 8), Some(("resources.cpu_millis".into(), text.into())));
        let text = "no single worker has a slot, 8 cores and 8 GiB of memory; a has the most memory, b the most cores; \
                    ask for less of one, or add a larger worker";
        assert_eq!(told(&workers, 8, 8), Some(("resources".into(), text.into())));
        workers.push(worker("gone", Standing::Revoked, 99, 99, 9));
        assert!(told(&workers, 9, 9).is_some());
        workers.push(worker("new", Standing::Offline, 0, 0, 0));
        assert_eq!(told(&workers, 9, 9), None, "nobody knows yet what it offers");
    }

    #[test]
    fn without_any_worker_that_is_the_reason() {
        for workers in [&[][..], &[worker("gone", Standing::Revoked, 99, 99, 9)]] {
            assert_eq!(misfit(workers, &Shape::default()).unwrap().code, "no-worker");
        }
    }

    #[test]
    fn labels_that_no_worker_has_are_named() {
        let mut workers = vec![worker("a", Standing::Offline, 4, 8, 1), worker("b", Standing::Ready, 64, 64, 1)];
        (workers[0].labels, workers[1].labels) = (Some(labels(&[("zone", "a")])), Some(labels(&[("gpu", "nvidia")])));
        let told = |workers: &[Subject], gib: u64, pairs: &[(&str, &str)]| {
            let needs = Resources { cpu_millis: 1000, memory_bytes: gib * GIB };
            misfit(workers, &Shape { needs, require: labels(pairs), link_version: 0 })
                .map(|warning| (warning.field, warning.problem))
        };
        assert_eq!(told(&workers, 8, &[("zone", "a")]), None, "offline, but it has it");
        let nowhere = ("require.zone".to_owned(), "no worker has the label `zone=b`".to_owned());
        assert_eq!(told(&workers, 8, &[("gpu", "nvidia"), ("zone", "b")]), Some(nowhere));
        let apart = "no single worker has all of the labels `gpu=nvidia`, `zone=a`".to_owned();
        assert_eq!(told(&workers, 8, &[("gpu", "nvidia"), ("zone", "a")]), Some(("require".to_owned(), apart)));
        let small = "a task needs 9 GiB of memory; the largest worker with its labels, a, has 8 GiB".to_owned();
        assert_eq!(told(&workers, 9, &[("zone", "a")]), Some(("resources.memory_bytes".to_owned(), small)));
        workers[1].labels = None;
        assert_eq!(told(&workers, 8, &[("zone", "b")]), None, "nobody knows yet what it has");
    }
}
