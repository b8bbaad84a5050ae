//! A real store that cannot always be reached, loses answers, and around whose commits the core dies.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use swarm_core::store::*;
use swarm_protocol::{
    AttemptId, Digest, Epoch, GroupId, JobId, ScheduleId, SwarmId, TaskId, TaskIndex, TaskRange, Timestamp, WorkerId,
};

use crate::core::{DATABASE, DATABASE_LOG};
use crate::promises::Promises;
use crate::time::{now_us, trace};

/// At which commit the core dies, and on which side of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Death {
    pub(crate) of: Moment,
    pub(crate) is_committed: bool,
}

/// What is committed then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    Anything,
    Submit,
    Assign,
    Start,
    End,
}

impl Moment {
    fn is_in(self, transitions: &[Transition]) -> bool {
        transitions.iter().any(|transition| match self {
            Self::Anything => true,
            Self::Submit => matches!(transition, Transition::CreateJob(_)),
            Self::Assign => matches!(transition, Transition::Assign { .. }),
            Self::Start => matches!(transition, Transition::Start { .. }),
            Self::End => matches!(transition, Transition::End(_)),
        })
    }
}

/// What goes wrong between a core and its database. Outlives the core.
#[derive(Clone)]
pub(crate) struct StoreFaults(Arc<Mutex<Inner>>);

struct Inner {
    rng: StdRng,
    unreachable_until_us: u64,
    /// Share of commits whose answer is lost.
    lost: f64,
    dies: Option<Death>,
    dead: Option<Died>,
    hits: u64,
}

/// The core has died.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Died {
    /// Whose attempt the commit was about, by its place in the list.
    pub(crate) worker: Option<usize>,
}

impl StoreFaults {
    pub(crate) fn new(seed: u64) -> Self {
        let rng = StdRng::seed_from_u64(seed);
        let inner = Inner { rng, unreachable_until_us: 0, lost: 0.0, dies: None, dead: None, hits: 0 };
        Self(Arc::new(Mutex::new(inner)))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn unreachable_until(&self, until_us: u64) {
        self.lock().unreachable_until_us = until_us;
    }

    pub(crate) fn lose_answers(&self, share: f64) {
        self.lock().lost = share;
    }

    /// The core dies at its next such commit.
    pub(crate) fn die_at_commit(&self, death: Death) {
        self.lock().dies = Some(death);
    }

    /// Whether the core has died of that, told once. Nothing can be read or written between that and this.
    pub(crate) fn take_dead(&self) -> Option<Died> {
        self.lock().dead.take()
    }

    /// Everything works from now on.
    pub(crate) fn heal(&self) {
        let mut inner = self.lock();
        (inner.unreachable_until_us, inner.lost, inner.dies) = (0, 0.0, None);
    }

    pub(crate) fn hits(&self) -> u64 {
        self.lock().hits
    }

    fn ask(&self) -> Result<(), StoreError> {
        let mut inner = self.lock();
        if inner.dead.is_some() || now_us() < inner.unreachable_until_us {
            inner.hits += 1;
            return Err(gone());
        }
        Ok(())
    }

    /// Whether the core dies on this side of the commit.
    fn dies(&self, transitions: &[Transition], is_committed: bool, promises: &Promises) -> bool {
        let mut inner = self.lock();
        let is_due = |death: &mut Death| death.is_committed == is_committed && death.of.is_in(transitions);
        let Some(death) = inner.dies.take_if(is_due) else { return false };
        let worker = transitions.iter().filter(|transition| death.of.is_in(std::slice::from_ref(transition)));
        inner.dead = Some(Died { worker: worker.filter_map(worker_of).find_map(|worker| promises.place_of(worker)) });
        inner.hits += 1;
        trace(format_args!("the core dies: {death:?}"));
        true
    }

    fn loses(&self) -> bool {
        let mut inner = self.lock();
        let share = inner.lost;
        let loses = share > 0.0 && inner.rng.random_bool(share);
        inner.hits += u64::from(loses);
        loses
    }

    fn is_one_of_two(&self) -> bool {
        self.lock().rng.random_bool(0.5)
    }
}

fn worker_of(transition: &Transition) -> Option<WorkerId> {
    match transition {
        Transition::Assign { worker, .. } | Transition::Start { worker, .. } | Transition::Recall { worker, .. } => {
            Some(*worker)
        }
        Transition::End(end) => Some(end.worker),
        _ => None,
    }
}

fn gone() -> StoreError {
    StoreError::Connection("the database does not answer".into())
}

fn unknown(verdicts: Vec<Verdict>) -> Result<Vec<Verdict>, StoreError> {
    Err(StoreError::CommitUnknown { verdicts, source: "the answer was lost".into() })
}

/// The store of one life of the core.
pub(crate) struct FaultyStore {
    pub(crate) db: Db,
    /// Where its file is.
    pub(crate) dir: PathBuf,
    pub(crate) faults: StoreFaults,
    pub(crate) promises: Promises,
}

impl FaultyStore {
    /// What the database would have said to a commit that it does not make: of a copy, which is then gone.
    fn lose(&self, epoch: Epoch, number: u64, transitions: &[Transition]) -> Result<Vec<Verdict>, StoreError> {
        let lost = |error: io::Error| StoreError::Connection(error.into());
        let copy = tempfile::tempdir_in(&self.dir).map_err(lost)?;
        for name in [DATABASE, DATABASE_LOG] {
            std::fs::copy(self.dir.join(name), copy.path().join(name)).map_err(lost)?;
        }
        let db = Db::open(copy.path().join(DATABASE).display().to_string().as_str())
            .map_err(|error| StoreError::Connection(error.into()))?;
        db.commit(epoch, number, transitions)
    }
}

macro_rules! delegate {
    ($($verb:ident($($name:ident: $type:ty),*) -> $answer:ty;)+) => {
        $(fn $verb(&self, $($name: $type),*) -> Result<$answer, StoreError> {
            self.faults.ask()?;
            self.db.$verb($($name),*)
        })+
    };
}

impl Store for FaultyStore {
    fn commit(&self, epoch: Epoch, number: u64, transitions: &[Transition]) -> Result<Vec<Verdict>, StoreError> {
        self.faults.ask()?;
        if self.faults.dies(transitions, false, &self.promises) {
            return Err(gone());
        }
        let loses = self.faults.loses();
        if loses && self.faults.is_one_of_two() {
            trace(format_args!("a commit is lost"));
            return unknown(self.lose(epoch, number, transitions)?);
        }
        let verdicts = self.db.commit(epoch, number, transitions)?;
        self.promises.committed(epoch, transitions, &verdicts);
        if loses || self.faults.dies(transitions, true, &self.promises) { unknown(verdicts) } else { Ok(verdicts) }
    }

    fn take_over(&self) -> Result<Epoch, StoreError> {
        self.faults.ask()?;
        let epoch = self.db.take_over()?;
        self.promises.taken_over(epoch);
        Ok(epoch)
    }

    delegate! {
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
