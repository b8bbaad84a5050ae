//! A real store whose connection fails as told.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use swarm_protocol::{
    AttemptId, Digest, Epoch, GroupId, JobId, ScheduleId, SwarmId, TaskId, TaskIndex, TaskRange, Timestamp,
};
use tokio::sync::watch;

use crate::store::injected::{Injected, arm, disarm};
use crate::store::*;

/// What happens to one commit.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Trouble {
    /// The database cannot be reached.
    Unreachable,
    /// It refuses a statement, without saying that the fault is its own.
    Refused,
    /// It committed, but the answer was lost.
    AnswerLost,
    /// It rolled back, and nobody knows.
    CommitLost,
}

type Which = fn(&Transition) -> bool;

/// A store with trouble ahead.
pub(crate) struct Troubled {
    db: Arc<Db>,
    pub(crate) ahead: Mutex<VecDeque<Trouble>>,
    /// Sizes of the batches that were committed.
    pub(crate) batches: Mutex<Vec<usize>>,
    /// Never reachable.
    pub(crate) dead: bool,
    /// Transitions that the database is to refuse, each once.
    refused: watch::Sender<Vec<Which>>,
    /// The statement of the next commit that fails, and how; afterwards, whether there was one.
    pub(crate) struck: Mutex<Option<(Injected, u32)>>,
    pub(crate) hit: AtomicBool,
    /// The verb that cannot be answered, and how often it was asked for.
    unreadable: watch::Sender<(Option<&'static str>, u32)>,
}

impl Troubled {
    /// Without trouble, so far.
    pub(crate) fn new(db: Arc<Db>) -> Self {
        let (ahead, batches) = (Mutex::default(), Mutex::default());
        let (refused, unreadable) = (watch::Sender::default(), watch::Sender::default());
        let (struck, hit) = (Mutex::default(), AtomicBool::default());
        Self { db, ahead, batches, dead: false, refused, struck, hit, unreadable }
    }

    /// From now on this verb cannot be answered; `None` ends that.
    pub(crate) fn set_unreadable(&self, verb: Option<&'static str>) {
        self.unreadable.send_replace((verb, 0));
    }

    /// Waits until that verb was asked for so often, in vain.
    pub(crate) async fn asked_in_vain(&self, times: u32) {
        let mut asked = self.unreadable.subscribe();
        let waited = tokio::time::timeout(Duration::from_secs(20), asked.wait_for(|(_, count)| *count >= times)).await;
        waited.expect("it is asked for in time").unwrap();
    }

    /// The first transition from now on that is such is refused.
    pub(crate) fn refuse(&self, which: Which) {
        self.refused.send_modify(|ahead| ahead.push(which));
    }

    pub(crate) fn has_refused_all(&self) -> bool {
        self.refused.borrow().is_empty()
    }

    /// Waits until all that was to be refused was.
    pub(crate) async fn refused_all(&self) {
        let mut ahead = self.refused.subscribe();
        let all = ahead.wait_for(Vec::is_empty);
        tokio::time::timeout(Duration::from_secs(20), all).await.expect("they are refused in time").unwrap();
    }

    fn refuses(&self, transition: &Transition) -> bool {
        self.refused.send_if_modified(|ahead| {
            let hit = ahead.iter().position(|which| which(transition));
            hit.map(|at| ahead.remove(at)).is_some()
        })
    }

    /// Commits, but for what is to be refused.
    fn commit_rest(&self, epoch: Epoch, number: u64, transitions: &[Transition]) -> Result<Vec<Verdict>, StoreError> {
        let refused: Vec<bool> = transitions.iter().map(|transition| self.refuses(transition)).collect();
        let rest = transitions.iter().zip(&refused).filter(|(_, refused)| !**refused);
        let rest: Vec<Transition> = rest.map(|(transition, _)| transition.clone()).collect();
        let mut verdicts = self.db.commit(epoch, number, &rest)?.into_iter();
        let broken = || Err(Refusal::Broken("by a fault".to_owned()));
        Ok(refused.into_iter().filter_map(|refused| if refused { Some(broken()) } else { verdicts.next() }).collect())
    }

    fn ask(&self, verb: &str) -> Result<(), StoreError> {
        let is_refused = self.unreadable.send_if_modified(|(unreadable, times)| {
            let is_it = *unreadable == Some(verb);
            *times += u32::from(is_it);
            is_it
        });
        if is_refused { Err(gone()) } else { Ok(()) }
    }
}

fn gone() -> StoreError {
    StoreError::Connection("gone".into())
}

macro_rules! delegate {
    ($($verb:ident($($name:ident: $type:ty),*) -> $answer:ty;)+) => {
        $(fn $verb(&self, $($name: $type),*) -> Result<$answer, StoreError> {
            self.ask(stringify!($verb))?;
            self.db.$verb($($name),*)
        })+
    };
}

impl Store for Troubled {
    fn commit(&self, epoch: Epoch, number: u64, transitions: &[Transition]) -> Result<Vec<Verdict>, StoreError> {
        let trouble = self.ahead.lock().unwrap().pop_front();
        let lost = |verdicts| Err(StoreError::CommitUnknown { verdicts, source: "gone".into() });
        match trouble {
            _ if self.dead => Err(gone()),
            Some(Trouble::Unreachable) => Err(gone()),
            Some(Trouble::Refused) => Err(StoreError::Statement("in a tongue nobody knows".into())),
            // Nothing of these verdicts holds.
            Some(Trouble::CommitLost) => lost(vec![Ok(Applied::Done); transitions.len()]),
            None | Some(Trouble::AnswerLost) => {
                let struck = self.struck.lock().unwrap().take();
                if let Some((fault, passing)) = struck {
                    arm(fault, passing);
                }
                let answer = self.commit_rest(epoch, number, transitions);
                if struck.is_some() {
                    self.hit.store(disarm(), Ordering::Relaxed);
                }
                let verdicts = answer?;
                self.batches.lock().unwrap().push(transitions.len());
                if trouble.is_some() { lost(verdicts) } else { Ok(verdicts) }
            }
        }
    }

    delegate! {
        take_over() -> Epoch;
        epoch() -> Epoch;
        swarm_id() -> SwarmId;
        batch_committed(epoch: Epoch, number: u64) -> bool;
        load() -> Snapshot;
        job(job: JobId) -> Option<JobRecord>;
        job_of_key(group: GroupId, key: &str) -> Option<JobId>;
        jobs(filter: &JobFilter) -> Vec<JobRecord>;
        tasks(job: JobId, from: TaskIndex, limit: u32) -> Vec<TaskRecord>;
        attempt(attempt: AttemptId) -> Option<AttemptRecord>;
        live_task(task: TaskId) -> Option<LiveTask>;
        fresh_tasks(after: Option<JobId>, now: Timestamp, limit: u32) -> Vec<(JobId, TaskRange)>;
        live_tasks(after: Option<TaskId>, limit: u32) -> Vec<LiveTask>;
        sent_outputs(attempt: AttemptId) -> Vec<(Digest, u64)>;
        linked_blob(group: GroupId, digest: &Digest) -> Option<u64>;
        image(group: GroupId, reference: &str) -> Option<ImageRecord>;
        images(group: GroupId) -> Vec<ImageRecord>;
        schedules(group: Option<GroupId>) -> Vec<ScheduleRecord>;
        schedule(schedule: ScheduleId) -> Option<ScheduleRecord>;
        user(name: &str) -> Option<UserRecord>;
        users() -> Vec<UserRecord>;
        refresh_token(hash: &Digest) -> Option<RefreshRecord>;
        revoked_jwts(now: Timestamp) -> Vec<(uuid::Uuid, Timestamp)>;
        workers() -> Vec<WorkerRecord>;
    }
}
