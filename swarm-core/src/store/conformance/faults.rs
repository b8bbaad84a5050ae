//! Every statement of a batch fails once, in every way a database knows.

use super::*;
use crate::store::injected::{Injected, arm, disarm};

/// Statements of a batch are fewer.
const STATEMENTS_MAX: u32 = 200;

/// A batch in which all kinds of statements occur, on a job of three fresh tasks.
fn mixed(bench: &Bench, round: u32, job: JobId) -> Vec<Transition> {
    let idempotency = Some((format!("k{round}"), Digest::of(b"body")));
    let [first, second] = [id(job, 0, 1), id(job, 1, 1)];
    let digest = Digest::of(&round.to_be_bytes());
    let sent = Transition::SendOutput { attempt: second, worker: bench.workers[0], digest, size_bytes: 7 };
    let name = format!("tool{round}:latest");
    let (group, platform, pushed_at) = (bench.group, "linux/amd64".to_owned(), at(4));
    vec![
        new_user(&format!("u{round}"), "physics"),
        Transition::CreateJob(Box::new(NewJob { idempotency, ..bench.new_job(2) })),
        bench.fresh(job, 0, 1),
        bench.start(first),
        sent,
        bench.end(first, Outcome::Succeeded, Next::Final),
        bench.end(second, lost(), retry(20)),
        Transition::TagImage(Box::new(NewImage { group, name, image: image("busybox"), platform, pushed_at })),
        Transition::Cancel { job, at: at(9) },
    ]
}

/// All that a reader sees of what [`mixed`] changes.
fn picture(bench: &Bench, job: JobId) -> String {
    let store = &bench.store;
    let jobs = store.jobs(&JobFilter { limit: u32::MAX, now: at(50), ..JobFilter::default() }).unwrap();
    let counts: Vec<_> = jobs.iter().map(|job| (job.id, job.counts, job.ended_at)).collect();
    let users: Vec<_> = store.users().unwrap().into_iter().map(|user| user.name).collect();
    let images: Vec<_> = store.images(bench.group).unwrap().into_iter().map(|image| image.name).collect();
    format!("{counts:?} {users:?} {images:?} {:?}", store.tasks(job, 0, 9).unwrap())
}

pub(super) fn a_batch_is_whole_or_not_there_whatever_statement_fails(bench: &Bench) {
    let mut round = 0;
    for fault in Injected::ALL {
        let mut committed = 0;
        for statement in 0..=STATEMENTS_MAX {
            assert!(statement < STATEMENTS_MAX, "{fault:?}: the batch never passes");
            round += 1;
            let job = bench.job(3);
            let batch = mixed(bench, round, job);
            let old = picture(bench, job);
            arm(fault, statement);
            let answer = bench.commit(&batch);
            let struck = disarm();
            let case = format!("{fault:?} at statement {statement}: {answer:?}");
            let is_there = bench.store.batch_committed(bench.epoch, bench.number.get()).unwrap();
            match &answer {
                Ok(_) => assert!(is_there && !struck, "{case}"),
                Err(StoreError::CommitUnknown { .. }) => committed += u32::from(is_there),
                // Only what a statement is to blame for counts as its own fault, and only while it is not the commit.
                Err(StoreError::Statement(_)) => assert!(!is_there && fault == Injected::Refused, "{case}"),
                Err(StoreError::Connection(_)) => assert!(!is_there, "{case}"),
                Err(error) => panic!("{case}: {error}"),
            }
            let verdicts = if is_there {
                match answer {
                    Ok(verdicts) | Err(StoreError::CommitUnknown { verdicts, .. }) => verdicts,
                    Err(_) => unreachable!(),
                }
            } else {
                assert_eq!(picture(bench, job), old, "{case}");
                bench.commit(&batch).unwrap_or_else(|error| panic!("{case}, then {error:?}"))
            };
            assert!(verdicts.iter().all(Result::is_ok), "{case}, then {verdicts:?}");
            assert!(matches!(verdicts[1], Ok(Applied::Job { repeated: false, .. })), "{case}: {verdicts:?}");
            assert_eq!(bench.counts(job), [0, 0, 1, 0, 2], "{case}");
            let again = bench.apply(batch[1].clone());
            assert!(matches!(again, Ok(Applied::Job { repeated: true, .. })), "{case}: {again:?}");
            if !struck {
                break;
            }
        }
        assert_eq!(committed, u32::from(fault == Injected::AnswerLost), "{fault:?}: commits whose answer was lost");
    }
    let users = bench.store.users().unwrap().len() as u32;
    assert_eq!(users, round + 1, "each batch counts once");
}

pub(super) fn a_read_of_which_any_statement_fails_can_be_repeated(bench: &Bench) {
    let job = bench.job(3);
    bench.commit(&mixed(bench, 1, job)).unwrap();
    let whole = format!("{:?}", bench.store.load().unwrap());
    // Reads break no constraints, and cannot fill a disk.
    for fault in [Injected::Contended, Injected::Gone, Injected::AnswerLost] {
        for statement in 0..STATEMENTS_MAX {
            arm(fault, statement);
            let answer = bench.store.load();
            let struck = disarm();
            let case = format!("{fault:?} at statement {statement}");
            match answer {
                Ok(snapshot) => assert_eq!(format!("{snapshot:?}"), whole, "{case}"),
                Err(StoreError::Connection(_)) => assert!(struck, "{case}"),
                Err(error) => panic!("{case}: {error:?}"),
            }
            assert_eq!(format!("{:?}", bench.store.load().unwrap()), whole, "{case}");
            if !struck {
                break;
            }
        }
    }
}
