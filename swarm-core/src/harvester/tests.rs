//! The book's rules, event by event.

use std::sync::Arc;

use swarm_protocol::link::{FinalReport, HeldAttempt, HeldPhase, LiveSet, OutputReport, ToWorker, live_hash};
use swarm_protocol::spec::JobSpec;
use swarm_protocol::state::TaskCounts;
use swarm_protocol::{
    AttemptId, BootId, Digest, GroupId, JobId, LossReason, Outcome, SessionId, Timestamp, UserId, WorkerId,
};

use super::book::{Act, Book, Patience};
use crate::messages::Expected;
use crate::store::{AttemptEnd, JobRecord, Next};

const WORKER: WorkerId = WorkerId(7);
const SESSION: SessionId = SessionId(1);
const LEASE_MS: u64 = 30_000;
const PATIENCE: Patience = Patience {
    lease_margin_ms: 5_000,
    start_deadline_ms: 10_000,
    prepare_deadline_ms: 3_600_000,
    suspect_after_ms: 4_000,
    cancel_grace_ms: 3_000,
};

pub(super) fn expected(job: u64, attempt: u16) -> Expected {
    let spec = JobSpec::new("image");
    let record = JobRecord {
        id: JobId(job),
        owner: UserId(1),
        owner_name: "ana".into(),
        group: GroupId(1),
        group_name: "ana".into(),
        allow_root: false,
        image: swarm_protocol::link::ImageOrder { config: Digest::of(b""), config_bytes: 0, layers: Vec::new() },
        input_bytes: Vec::new(),
        counts: TaskCounts::default(),
        next_fresh: 1,
        submitted_at: Timestamp::default(),
        ended_at: None,
        cancel_requested: false,
        launch: None,
        spec,
    };
    Expected {
        attempt: AttemptId { job: JobId(job), task: 0, attempt },
        worker: WORKER,
        needs: record.needs(),
        lease_ms: LEASE_MS,
        losses: 0,
        failures: 0,
        job: Arc::new(record),
    }
}

fn now() -> Timestamp {
    Timestamp::default()
}

/// A book with these jobs' first attempts on one linked and judged worker.
fn book_with(jobs: &[u64]) -> Book {
    let mut book = Book::new(PATIENCE);
    book.link_up(WORKER, BootId::random(), SESSION, 0);
    book.state_report(WORKER, SESSION, 1, &[], 0, now());
    book.expect(jobs.iter().map(|&job| expected(job, 1)).collect(), 0);
    book
}

fn id(job: u64) -> AttemptId {
    AttemptId { job: JobId(job), task: 0, attempt: 1 }
}

fn held(job: u64, phase: HeldPhase) -> HeldAttempt {
    HeldAttempt { attempt: id(job), phase }
}

fn ends(acts: &[Act]) -> Vec<&AttemptEnd> {
    acts.iter().filter_map(|act| if let Act::End { end, .. } = act { Some(&**end) } else { None }).collect()
}

fn report(job: u64) -> Box<FinalReport> {
    Box::new(crate::testing::report(id(job), Outcome::Succeeded))
}

#[test]
fn a_lease_is_judged_only_after_its_full_length_and_margin() {
    let mut book = book_with(&[1]);
    book.accepted(WORKER, id(1));
    assert!(ends(&book.sweep(LEASE_MS + 5_000, now())).is_empty());
    let acts = book.sweep(LEASE_MS + 5_001, now());
    let [end] = ends(&acts)[..] else { panic!("{acts:?}") };
    assert!(matches!(end.outcome, Outcome::Lost { reason: LossReason::LeaseExpired, .. }));
    assert!(end.may_have_run && matches!(end.next, Next::Retry { .. }));
    assert!(ends(&book.sweep(u64::MAX / 2, now())).is_empty(), "judged once");
}

#[test]
fn a_matching_renewal_prolongs_and_a_mismatch_does_not() {
    let mut book = book_with(&[1, 2]);
    book.accepted(WORKER, id(1));
    assert!(!book.renew(WORKER, SESSION, LiveSet::default(), 20_000));
    assert!(!book.renew(WORKER, SessionId(9), live_hash([&id(1)]), 20_000), "another session");
    assert!(book.renew(WORKER, SESSION, live_hash([&id(1)]), 20_000));
    let acts = book.sweep(LEASE_MS + 5_001, now());
    assert_eq!(ends(&acts).iter().map(|end| end.attempt).collect::<Vec<_>>(), [id(2)], "never accepted, not renewed");
}

#[test]
fn an_attempt_that_ended_is_awaited_while_its_worker_renews_and_its_log_comes() {
    let mut book = book_with(&[1]);
    book.accepted(WORKER, id(1));
    book.started(WORKER, id(1), now());
    let ended = LEASE_MS * 80;
    book.renew(WORKER, SESSION, live_hash([&id(1)]), ended);
    assert!(!book.renew(WORKER, SESSION, LiveSet::default(), ended), "the report is spooled, and the core not told");
    book.state_report(WORKER, SESSION, 2, &[held(1, HeldPhase::Ended)], ended, now());
    assert!(ends(&book.sweep(ended + LEASE_MS, now())).is_empty(), "counted from the report, not from the assignment");
    let mut at_ms = ended;
    for _ in 0..40 {
        at_ms += LEASE_MS;
        assert!(book.renew(WORKER, SESSION, LiveSet::default(), at_ms));
        assert!(book.log_came(WORKER, id(1), at_ms));
        assert!(ends(&book.sweep(at_ms + LEASE_MS, now())).is_empty());
    }
    let acts = book.sweep(at_ms + LEASE_MS + 5_001, now());
    assert_eq!(ends(&acts).len(), 1, "its worker is silent");
}

#[test]
fn an_attempt_that_ended_is_not_awaited_for_ever_without_a_word_of_it() {
    let mut book = book_with(&[1]);
    book.accepted(WORKER, id(1));
    for at_ms in (0..=300_000).step_by(1_000) {
        book.state_report(WORKER, SESSION, 2, &[held(1, HeldPhase::Ended)], at_ms, now());
        assert!(ends(&book.sweep(at_ms, now())).is_empty());
    }
    book.link_up(WORKER, BootId::random(), SessionId(2), 300_000);
    book.state_report(WORKER, SessionId(2), 1, &[held(1, HeldPhase::Ended)], 300_000, now());
    for at_ms in (300_000..=605_000).step_by(1_000) {
        book.state_report(WORKER, SessionId(2), 2, &[held(1, HeldPhase::Ended)], at_ms, now());
        assert!(ends(&book.sweep(at_ms, now())).is_empty(), "a new link has the same time again");
    }
    assert_eq!(ends(&book.sweep(605_001, now())).len(), 1);
}

#[test]
fn a_stalled_core_judges_nobody() {
    let mut book = book_with(&[1]);
    book.forgive(1_000_000);
    assert!(ends(&book.sweep(1_000_000 + LEASE_MS, now())).is_empty());
}

#[test]
fn a_restored_attempt_has_a_full_lease_from_the_start_of_the_core() {
    let mut book = Book::new(PATIENCE);
    book.restore(vec![(expected(1, 1), Some(now()))], 500_000);
    assert!(ends(&book.sweep(500_000 + LEASE_MS, now())).is_empty());
    assert_eq!(ends(&book.sweep(500_001 + LEASE_MS + 5_000, now())).len(), 1);
}

#[test]
fn a_report_counts_once_and_only_from_its_worker() {
    let mut book = book_with(&[1]);
    book.accepted(WORKER, id(1));
    assert!(matches!(book.finished(WorkerId(8), report(1))[..], [Act::Supersede(..)]));
    assert!(matches!(book.finished(WORKER, report(1))[..], [Act::Verify(..)]));
    assert!(book.finished(WORKER, report(1)).is_empty(), "doubled while it is being committed");
    assert!(ends(&book.sweep(u64::MAX / 2, now())).is_empty(), "a lease does not overtake a report");
    let acts = book.verified(WORKER, *report(1), None, now());
    assert_eq!(ends(&acts)[0].outcome, Outcome::Succeeded);
    book.settled(id(1));
    assert!(matches!(book.finished(WORKER, report(1))[..], [Act::Supersede(..)]));
}

#[test]
fn a_report_whose_log_is_not_there_is_a_loss() {
    let mut book = book_with(&[1]);
    book.finished(WORKER, report(1));
    let acts = book.verified(WORKER, *report(1), Some("3 of 5 bytes".into()), now());
    assert!(matches!(ends(&acts)[0].outcome, Outcome::Lost { reason: LossReason::Transfer, .. }));
}

#[test]
fn a_state_report_frees_what_is_gone_and_abandons_what_is_foreign() {
    let mut book = book_with(&[1, 2, 3]);
    book.accepted(WORKER, id(2));
    let (boot, session) = (BootId::random(), SessionId(2));
    book.link_up(WORKER, boot, session, 1);
    let held =
        [held(3, HeldPhase::Running { started_at_us: 5 }), held(9, HeldPhase::Pending), held(8, HeldPhase::Ended)];
    let acts = book.state_report(WORKER, session, 4, &held, 1, now());
    let recalled: Vec<_> =
        acts.iter().filter_map(|a| if let Act::Recall(e) = a { Some(e.attempt) } else { None }).collect();
    assert_eq!(recalled, [id(1)], "never accepted: never began");
    let lost = ends(&acts);
    assert_eq!((lost.len(), lost[0].attempt), (1, id(2)));
    assert!(matches!(lost[0].outcome, Outcome::Lost { reason: LossReason::WorkerRestarted, .. }));
    assert!(acts.iter().any(|act| matches!(act, Act::Start { .. })), "the start of 3 is caught up on");
    let judged = acts.iter().find_map(|act| match act {
        Act::Send(_, ToWorker::StateJudged { seq: 4, abandon }) => Some(abandon.clone()),
        _ => None,
    });
    assert_eq!(judged, Some(vec![id(9)]), "an ended one may still report");
    assert!(book.renew(WORKER, session, live_hash([&id(3)]), 2));
}

#[test]
fn nothing_is_renewed_before_the_state_report_is_judged() {
    let mut book = book_with(&[1]);
    book.accepted(WORKER, id(1));
    book.link_up(WORKER, BootId::random(), SessionId(2), 1);
    assert!(!book.renew(WORKER, SessionId(2), live_hash([&id(1)]), 2));
}

#[test]
fn an_at_most_once_start_is_allowed_in_one_life_of_the_worker_only() {
    let mut book = Book::new(PATIENCE);
    let boot = BootId::random();
    book.link_up(WORKER, boot, SESSION, 0);
    let mut once = expected(1, 1);
    Arc::make_mut(&mut once.job).spec.at_most_once = true;
    book.expect(vec![once], 0);
    book.accepted(WORKER, id(1));
    assert!(matches!(book.may_start(WORKER, id(1), now())[..], [Act::Start { allow: Some(_), .. }]));
    book.link_up(WORKER, boot, SESSION, 0);
    assert!(book.may_start(WORKER, id(1), now()).is_empty(), "nothing is allowed before its commit");
    assert!(book.start_committed(WORKER, id(1)));
    assert!(matches!(book.may_start(WORKER, id(1), now())[..], [Act::Send(_, ToWorker::StartCommitted { .. })]));
    book.link_up(WORKER, BootId::random(), SessionId(2), 0);
    let acts = book.may_start(WORKER, id(1), now());
    assert!(matches!(acts[0], Act::Send(_, ToWorker::Abandon { .. })), "{acts:?}");
    assert_eq!(ends(&acts)[0].next, Next::Final);
}

#[test]
fn an_at_most_once_start_that_is_refused_is_not_allowed_but_taken_back() {
    let mut book = Book::new(PATIENCE);
    book.link_up(WORKER, BootId::random(), SESSION, 0);
    let mut once = expected(1, 1);
    Arc::make_mut(&mut once.job).spec.at_most_once = true;
    book.expect(vec![once], 0);
    book.accepted(WORKER, id(1));
    book.may_start(WORKER, id(1), now());
    let acts = book.start_refused(WORKER, id(1));
    assert!(matches!(&acts[..], [Act::Send(_, ToWorker::Abandon { .. }), Act::Recall(_)]), "{acts:?}");
    assert!(!book.start_committed(WORKER, id(1)));
}

#[test]
fn an_order_that_is_never_accepted_is_asked_back() {
    let mut book = book_with(&[1]);
    let acts = book.sweep(10_001, now());
    assert!(matches!(&acts[..], [Act::Send(_, ToWorker::Recall { attempts })] if *attempts == [id(1)]));
    assert!(matches!(book.given_back(WORKER, id(1))[..], [Act::Recall(_)]));
    assert!(book.given_back(WORKER, id(1)).is_empty(), "once");
}

#[test]
fn a_started_attempt_cannot_be_given_back() {
    let mut book = book_with(&[1]);
    book.accepted(WORKER, id(1));
    book.started(WORKER, id(1), now());
    assert!(book.given_back(WORKER, id(1)).is_empty());
}

#[test]
fn a_cancel_is_repeated_when_the_worker_comes_back() {
    let mut book = book_with(&[1]);
    book.accepted(WORKER, id(1));
    assert_eq!(book.cancel(&[(id(1), WORKER)], 0).len(), 1);
    book.link_up(WORKER, BootId::random(), SessionId(2), 1);
    let acts = book.state_report(WORKER, SessionId(2), 1, &[held(1, HeldPhase::Pending)], 1, now());
    assert!(acts.iter().any(|act| matches!(act, Act::Send(_, ToWorker::Cancel { grace_ms: 3_000, .. }))));
}

#[test]
fn an_eager_job_runs_again_on_suspicion() {
    let mut book = Book::new(PATIENCE);
    book.link_up(WORKER, BootId::random(), SESSION, 0);
    let mut eager = expected(1, 1);
    Arc::make_mut(&mut eager.job).spec.eager = true;
    book.expect(vec![eager, expected(2, 1)], 0);
    book.accepted(WORKER, id(1));
    book.accepted(WORKER, id(2));
    let acts = book.sweep(4_001, now());
    assert_eq!(ends(&acts).iter().map(|end| end.attempt).collect::<Vec<_>>(), [id(1)]);
}

#[test]
fn a_state_report_that_crossed_an_order_does_not_give_it_back() {
    let mut book = book_with(&[1]);
    let acts = book.state_report(WORKER, SESSION, 2, &[], 5, now());
    assert!(!acts.iter().any(|act| matches!(act, Act::Recall(_) | Act::End { .. })), "{acts:?}");
    book.link_up(WORKER, BootId::random(), SessionId(2), 6);
    let acts = book.state_report(WORKER, SessionId(2), 1, &[], 6, now());
    assert!(acts.iter().any(|act| matches!(act, Act::Recall(_))), "sent on a session that is over");
}

#[test]
fn a_cancel_that_overtakes_its_assignment_is_remembered() {
    let mut book = book_with(&[]);
    assert!(book.cancel(&[(id(1), WORKER), (id(2), WORKER)], 0).is_empty());
    book.sweep(1_000, now());
    book.expect(vec![expected(1, 1)], 1_000);
    let acts = book.accepted(WORKER, id(1));
    assert!(matches!(&acts[..], [Act::Send(_, ToWorker::Cancel { grace_ms: 3_000, .. })]), "{acts:?}");
    book.sweep(600_001, now());
    book.expect(vec![expected(2, 1)], 600_001);
    assert!(book.accepted(WORKER, id(2)).is_empty(), "not kept for ever");
}

#[test]
fn an_accepted_attempt_that_never_starts_is_given_up() {
    let mut book = book_with(&[1, 2, 3]);
    for job in 1..=3 {
        book.accepted(WORKER, id(job));
    }
    book.started(WORKER, id(2), now());
    book.state_report(WORKER, SESSION, 2, &[1, 2, 3].map(|job| held(job, phase_of(job))), 3_600_000, now());
    assert!(ends(&book.sweep(3_600_000, now())).is_empty());
    let acts = book.sweep(3_600_001, now());
    let [end] = ends(&acts)[..] else { panic!("{acts:?}") };
    assert_eq!(end.attempt, id(1), "the second runs, and the third has ended");
    assert!(matches!(end.outcome, Outcome::Lost { reason: LossReason::StartDeadline, .. }) && end.may_have_run);
}

fn phase_of(job: u64) -> HeldPhase {
    match job {
        1 => HeldPhase::Pending,
        2 => HeldPhase::Running { started_at_us: 5 },
        _ => HeldPhase::Ended,
    }
}

#[test]
fn a_worker_declared_lost_loses_what_it_had_and_what_it_reported_counts() {
    let mut book = book_with(&[1, 2, 3]);
    let other = WorkerId(8);
    book.expect(vec![Expected { worker: other, ..expected(4, 1) }], 0);
    book.accepted(WORKER, id(1));
    book.started(WORKER, id(1), now());
    book.finished(WORKER, report(2));
    let acts = book.declare_lost(WORKER, now());
    let lost = ends(&acts);
    assert_eq!(lost.iter().map(|end| end.attempt).collect::<Vec<_>>(), [id(1), id(3)]);
    for end in lost {
        let Outcome::Lost { reason: LossReason::DeclaredLost, detail } = &end.outcome else { panic!("{end:?}") };
        assert!(detail.contains("may still run") && end.may_have_run && matches!(end.next, Next::Retry { .. }));
    }
    assert!(book.declare_lost(WORKER, now()).is_empty(), "once");
    assert_eq!(ends(&book.verified(WORKER, *report(2), None, now()))[0].outcome, Outcome::Succeeded);
    assert_eq!(book.declare_lost(other, now()).len(), 1);
}

#[test]
fn a_start_that_was_reported_is_remembered_when_the_restarted_worker_does_not_know_of_it() {
    let lost = || {
        let outcome = Outcome::Lost { reason: LossReason::WorkerRestarted, detail: String::new() };
        Box::new(FinalReport { outcome, started_at_us: None, finished_at_us: None, ran_ms: None, ..*report(1) })
    };
    for started in [true, false] {
        let mut book = book_with(&[1]);
        book.accepted(WORKER, id(1));
        if started {
            book.started(WORKER, id(1), now());
        }
        let acts = book.finished(WORKER, lost());
        let Some(Act::Verify(_, report, _)) = acts.into_iter().next() else { panic!("it is to be verified") };
        let acts = book.verified(WORKER, *report, None, now());
        let [end] = ends(&acts)[..] else { panic!("{acts:?}") };
        assert!(end.may_have_run, "started: {started}");
        assert_eq!(end.started_at.is_some(), started);
    }
}

#[test]
fn an_end_is_never_before_its_start() {
    let mut book = book_with(&[1]);
    book.accepted(WORKER, id(1));
    let swapped = Box::new(FinalReport { started_at_us: Some(7), finished_at_us: Some(2), ..*report(1) });
    book.finished(WORKER, swapped.clone());
    let acts = book.verified(WORKER, *swapped, None, now());
    let [end] = ends(&acts)[..] else { panic!("{acts:?}") };
    assert_eq!(Some(end.ended_at), end.started_at);
}

#[test]
fn an_end_that_the_database_refuses_is_awaited_again_for_a_lease() {
    let mut book = book_with(&[1]);
    book.accepted(WORKER, id(1));
    book.started(WORKER, id(1), now());
    let later = LEASE_MS * 9;
    assert!(book.renew(WORKER, SESSION, live_hash([&id(1)]), later));
    for repeat in 0..3 {
        let at = later + repeat * LEASE_MS / 3;
        assert!(matches!(book.finished(WORKER, report(1))[..], [Act::Verify(..)]), "repeated");
        book.refused(id(1), at);
        assert!(ends(&book.sweep(at, now())).is_empty());
    }
    let acts = book.sweep(later + LEASE_MS + 5_001, now());
    let [end] = ends(&acts)[..] else { panic!("{acts:?}") };
    assert!(end.outcome.is_lost() && end.started_at.is_some());
    book.refused(id(1), later * 2);
    assert!(ends(&book.sweep(later * 2 + LEASE_MS, now())).is_empty(), "not judged again every second");
    assert_eq!(ends(&book.sweep(later * 2 + LEASE_MS + 5_001, now())).len(), 1);
}

#[test]
fn an_end_that_the_database_refuses_outlasts_a_short_lease_until_its_report_is_repeated() {
    let mut book = book_with(&[]);
    book.expect(vec![Expected { lease_ms: 15_000, ..expected(1, 1) }], 0);
    book.accepted(WORKER, id(1));
    book.finished(WORKER, report(1));
    book.refused(id(1), 1_000);
    for at_ms in (1_000..=31_000).step_by(500) {
        assert!(book.renew(WORKER, SESSION, LiveSet::default(), at_ms), "reported, so not in the worker's live set");
        assert!(ends(&book.sweep(at_ms, now())).is_empty(), "at {at_ms} ms");
    }
    assert!(matches!(book.finished(WORKER, report(1))[..], [Act::Verify(..)]));
}

#[test]
fn a_report_that_the_core_cannot_check_is_a_word_of_its_worker() {
    let mut book = book_with(&[1]);
    book.accepted(WORKER, id(1));
    let renew = |book: &mut Book, at_ms| assert!(book.renew(WORKER, SESSION, LiveSet::default(), at_ms));
    for at_ms in (30_000..=1_200_000).step_by(30_000) {
        assert!(matches!(book.finished(WORKER, report(1))[..], [Act::Verify(..)]), "repeated");
        book.unread(id(1), at_ms);
        renew(&mut book, at_ms);
        assert!(ends(&book.sweep(at_ms, now())).is_empty(), "at {at_ms} ms");
    }
    renew(&mut book, 1_505_000);
    assert!(ends(&book.sweep(1_505_000, now())).is_empty());
    renew(&mut book, 1_505_001);
    assert_eq!(ends(&book.sweep(1_505_001, now())).len(), 1, "it is repeated no more");
}

#[test]
fn what_got_lost_is_followed_again_and_asked_for() {
    let mut book = book_with(&[]);
    book.restore(vec![(expected(1, 1), None), (expected(2, 1), Some(now()))], 7);
    book.restore(vec![(expected(1, 1), Some(now()))], 8);
    assert!(!book.renew(WORKER, SESSION, LiveSet::default(), 9), "the worker is to report its state");
    let acts = book.state_report(WORKER, SESSION, 2, &[], 9, now());
    assert!(acts.iter().any(|act| matches!(act, Act::Recall(back) if back.attempt == id(1))), "{acts:?}");
    assert_eq!(ends(&acts).iter().map(|end| end.attempt).collect::<Vec<_>>(), [id(2)]);
}

#[test]
fn nothing_is_handed_out_of_a_report_that_does_not_hold() {
    let mut book = book_with(&[1]);
    let output =
        OutputReport { path: "/out/a".into(), digest: Digest::of(b"x"), size_bytes: 1, is_dir: false, mode: 0o644 };
    let report = Box::new(FinalReport { outputs: vec![output], ..*report(1) });
    book.finished(WORKER, report.clone());
    let acts = book.verified(WORKER, *report, Some("not sent".to_owned()), now());
    let [end] = ends(&acts)[..] else { panic!("{acts:?}") };
    assert!(matches!(end.outcome, Outcome::Lost { reason: LossReason::Transfer, .. }) && end.outputs.is_empty());
}
