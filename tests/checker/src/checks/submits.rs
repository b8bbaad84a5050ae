//! I1: what was acknowledged is in the store.

use std::collections::BTreeMap;

use swarm_protocol::JobId;

use crate::history::{Entry, Op, Submit, Verdict};
use crate::report::{Invariant, Report};
use crate::world::World;

pub(super) fn check(history: &[Entry], world: &World, report: &mut Report) {
    let finding = report.at(Invariant::I1);
    let mut by_key = BTreeMap::<&str, u64>::new();
    let submits = history.iter().filter_map(|entry| match &entry.op {
        Op::Submit(submit) => Some((entry.result, submit)),
        _ => None,
    });
    for (result, submit) in submits {
        match (result, submit.job) {
            (Verdict::Ok, Some(job)) => {
                let row = world.jobs.get(&JobId(job));
                finding.expect(row.is_some(), || format!("job {job} was acknowledged and is not in the store"));
                if let Some(row) = row {
                    let stored = row.last_task - row.first_task + 1;
                    let text = || format!("job {job} was acknowledged with {} tasks and has {stored}", submit.tasks);
                    finding.expect(stored == submit.tasks, text);
                }
                keyed(submit, job, &mut by_key, row.and_then(|row| row.key.as_deref()), finding);
            }
            (Verdict::Ok, None) => finding.expect(false, || "a submit was acknowledged without a job number".into()),
            (Verdict::Fail, _) => {
                let made = submit.key.as_deref().and_then(|key| job_of_key(world, key));
                // A key may have been used well before it was refused for another body.
                let excused = made.is_none_or(|job| by_key.values().any(|known| JobId(*known) == job));
                finding.expect(excused, || format!("a refused submit (key {:?}) made job {made:?}", submit.key));
            }
            (Verdict::Unknown, _) => finding.unknown += 1,
        }
    }
}

fn keyed<'a>(
    submit: &'a Submit,
    job: u64,
    by_key: &mut BTreeMap<&'a str, u64>,
    stored: Option<&str>,
    finding: &mut crate::report::Finding,
) {
    let Some(key) = submit.key.as_deref() else { return };
    let earlier = *by_key.entry(key).or_insert(job);
    finding.expect(earlier == job, || format!("key {key} was acknowledged for jobs {earlier} and {job}"));
    finding
        .expect(stored == Some(key), || format!("job {job} was submitted with key {key} and stored with {stored:?}"));
}

fn job_of_key(world: &World, key: &str) -> Option<JobId> {
    world.jobs.iter().find(|(_, row)| row.key.as_deref() == Some(key)).map(|(id, _)| *id)
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    fn submit(job: Option<u64>, key: Option<&str>, tasks: u64) -> Op {
        Op::Submit(Submit { job, key: key.map(str::to_owned), name: None, tasks })
    }

    #[test]
    fn a_lost_job_is_found() {
        broken(&[Invariant::I1], |history, _, _| history.push(entry(1, submit(Some(7), None, 1))));
    }

    #[test]
    fn a_job_of_another_size_is_found() {
        broken(&[Invariant::I1], |history, _, _| history.push(entry(1, submit(Some(1), None, 5))));
    }

    #[test]
    fn two_jobs_of_one_key_are_found() {
        broken(&[Invariant::I1], |history, world, _| {
            world.jobs.get_mut(&JobId(1)).unwrap().key = Some("k".into());
            let mut twin = world.jobs[&JobId(1)].clone();
            twin.succeeded = 0;
            twin.cancelled = 1;
            world.jobs.insert(JobId(2), twin);
            let ended = crate::world::EndedRow { job: JobId(2), first: 0, last: 0, outcome: "cancelled".into() };
            world.ended.push(ended);
            history.push(entry(1, submit(Some(1), Some("k"), 1)));
            history.push(entry(2, submit(Some(2), Some("k"), 1)));
        });
    }

    #[test]
    fn a_refused_submit_that_made_a_job_is_found() {
        broken(&[Invariant::I1], |history, world, _| {
            world.jobs.get_mut(&JobId(1)).unwrap().key = Some("k".into());
            let mut refused = entry(1, submit(None, Some("k"), 1));
            refused.result = Verdict::Fail;
            history.push(refused);
        });
    }

    #[test]
    fn an_unanswered_submit_is_unknown_and_never_a_pass() {
        let (world, stamps) = good();
        let mut entry = entry(1, submit(None, None, 1));
        entry.result = Verdict::Unknown;
        let report = judge(vec![entry], world, stamps);
        assert_eq!((report.of(Invariant::I1).checked, report.of(Invariant::I1).unknown), (0, 1));
    }
}
