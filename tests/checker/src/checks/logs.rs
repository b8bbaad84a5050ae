//! I9: log bytes are all there, or their loss is counted.

use swarm_protocol::{JobId, TaskId};

use crate::history::{Entry, LogRead, Op, Verdict};
use crate::report::{Finding, Invariant, Report};
use crate::world::World;

pub(super) fn check(history: &[Entry], world: Option<&World>, report: &mut Report) {
    let finding = report.at(Invariant::I9);
    for entry in history {
        let Op::Log(read) = &entry.op else { continue };
        if entry.result == Verdict::Ok {
            one(read, finding);
            if let Some(world) = world {
                marked(world, read, finding);
            }
        } else {
            finding.unknown += 1;
        }
    }
}

fn one(read: &LogRead, finding: &mut Finding) {
    let LogRead { job, task, stream, written_bytes: written, read_bytes, cut_bytes: cut, .. } = read;
    let name = || format!("{stream} of {job}.{task}");
    if *cut == 0 {
        let text = || format!("{}: {written} bytes were written and {read_bytes} read", name());
        finding.expect(read_bytes == written, text);
        let same = read.read_digest == read.written_digest;
        finding.expect(same, || format!("{}: what was read differs from what was written", name()));
    } else if read.cut_at_least && *cut == 1 && read_bytes == written && read.read_digest == read.written_digest {
        // Nothing is missing, and its writer could not know: the engine would not say again where the log ends.
        finding.excepted += 1;
    } else {
        let sum = read_bytes + cut;
        let holds = if read.cut_at_least { sum <= *written } else { sum == *written };
        let text = || format!("{}: {written} bytes were written, {read_bytes} read and {cut} counted as cut", name());
        finding.expect(holds, text);
    }
}

/// A cut that the log shows is in the record too.
fn marked(world: &World, read: &LogRead, finding: &mut Finding) {
    let task = TaskId { job: JobId(read.job), task: read.task };
    let Some((id, row)) = world.attempts_of(task).find(|(_, row)| row.is_final) else { return };
    let text = || format!("attempt {id} records {} cut bytes, its log counts {}", row.log_cut_bytes, read.cut_bytes);
    finding.expect((row.log_cut_bytes > 0) >= (read.cut_bytes > 0), text);
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    fn log(written: u64, read: u64, cut: u64, at_least: bool) -> Entry {
        let log = LogRead {
            job: 1,
            task: 0,
            stream: "stdout".into(),
            written_bytes: written,
            written_digest: written.to_string(),
            read_bytes: read,
            read_digest: read.to_string(),
            cut_bytes: cut,
            cut_at_least: at_least,
        };
        entry(1, Op::Log(log))
    }

    #[test]
    fn whole_and_honestly_cut_logs_are_clean() {
        for read in [log(10, 10, 0, false), log(10, 4, 6, false), log(10, 4, 2, true)] {
            broken(&[], |history, world, _| {
                world.attempts.get_mut(&attempt(1, 0, 2)).unwrap().log_cut_bytes = 6;
                history.push(read);
            });
        }
    }

    #[test]
    fn a_whole_log_that_may_lack_something_is_excepted_and_one_that_counts_too_much_is_not() {
        let excepted = |read: Entry| {
            let mut finding = Finding::default();
            let Op::Log(read) = &read.op else { unreachable!() };
            one(read, &mut finding);
            (finding.excepted, finding.violations.len())
        };
        assert_eq!(excepted(log(10, 10, 1, true)), (1, 0));
        for read in [log(10, 10, 1, false), log(10, 10, 2, true), log(10, 9, 2, true)] {
            assert_eq!(excepted(read), (0, 1));
        }
    }

    #[test]
    fn missing_changed_and_uncounted_bytes_are_found() {
        broken(&[Invariant::I9], |history, _, _| history.push(log(10, 9, 0, false)));
        broken(&[Invariant::I9], |history, _, _| history.push(log(10, 4, 6, false)));
        broken(&[Invariant::I9], |history, world, _| {
            world.attempts.get_mut(&attempt(1, 0, 2)).unwrap().log_cut_bytes = 5;
            history.push(log(10, 4, 5, false));
        });
        broken(&[Invariant::I9], |history, _, _| {
            let mut changed = log(10, 10, 0, false);
            let Op::Log(read) = &mut changed.op else { unreachable!() };
            read.read_digest = "other".into();
            history.push(changed);
        });
    }
}
