//! Whether any worker could ever run a task, were it idle and linked.

use swarm_protocol::api::Warning;
use swarm_protocol::spec::Resources;

use super::place::Amount;
use super::why::{Standing, Subject};

/// Why none of `workers` could ever run a task of these needs. Workers that have not said yet what they offer may be able
/// to; those whose key was revoked are not.
#[must_use]
pub fn misfit(workers: &[Subject], needs: Resources) -> Option<Warning> {
    let enrolled: Vec<_> = workers.iter().filter(|worker| worker.standing != Standing::Revoked).collect();
    if enrolled.is_empty() {
        let problem = "no worker has joined the swarm yet".to_owned();
        return Some(warning("no-worker", "resources", problem, "start a worker, or let one join".to_owned()));
    }
    let able = |worker: &&Subject| worker.capacity == Amount::default() || worker.capacity.fits(needs);
    if enrolled.iter().any(able) {
        return None;
    }
    let roomiest = enrolled.iter().max_by_key(|worker| worker.capacity.memory_bytes)?;
    let (wanted, largest) = (bytes(needs.memory_bytes), bytes(roomiest.capacity.memory_bytes));
    if needs.memory_bytes > roomiest.capacity.memory_bytes {
        let problem = format!("a task needs {wanted} of memory; the largest worker, {}, has {largest}", roomiest.name);
        let hint = format!("ask for at most {largest} of memory, or add a larger worker");
        return Some(warning("no-worker-fits", "resources.memory_bytes", problem, hint));
    }
    let fastest = enrolled.iter().max_by_key(|worker| worker.capacity.cpu_millis)?;
    let (wanted_cores, most) = (cores(u64::from(needs.cpu_millis)), cores(fastest.capacity.cpu_millis));
    if u64::from(needs.cpu_millis) > fastest.capacity.cpu_millis {
        let problem = format!("a task needs {wanted_cores} cores; the largest worker, {}, has {most}", fastest.name);
        let hint = format!("ask for at most {most} cores, or add a larger worker");
        return Some(warning("no-worker-fits", "resources.cpu_millis", problem, hint));
    }
    let problem = format!(
        "no single worker has a slot, {wanted_cores} cores and {wanted} of memory; {} has the most memory, {} the most cores",
        roomiest.name, fastest.name
    );
    Some(warning("no-worker-fits", "resources", problem, "ask for less of one, or add a larger worker".to_owned()))
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
    use super::*;

    const GIB: u64 = 1 << 30;

    fn worker(name: &str, standing: Standing, cores: u64, gib: u64, slots: u32) -> Subject {
        let capacity = Amount { cpu_millis: cores * 1000, memory_bytes: gib * GIB, slots };
        Subject { name: name.to_owned(), standing, capacity, used: capacity }
    }

    fn told(workers: &[Subject], cores: u32, gib: u64) -> Option<(String, String)> {
        let needs = Resources { cpu_millis: cores * 1000, memory_bytes: gib * GIB };
        misfit(workers, needs).map(|warning| (warning.field, format!("{}; {}", warning.problem, warning.hint)))
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
            assert_eq!(misfit(workers, Resources::default()).unwrap().code, "no-worker");
        }
    }
}
