//! A store and a ledger in memory for the tests of the modules: they keep what the guards need, and every transition.

pub(crate) mod cluster;
mod troubled;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use swarm_protocol::labels::Labels;
use swarm_protocol::link::{FinalReport, ImageOrder};
use swarm_protocol::spec::JobSpec;
use swarm_protocol::state::TaskCounts;
use swarm_protocol::{
    AttemptId, Digest, Epoch, GroupId, JobId, Outcome, ScheduleId, SwarmId, TaskId, TaskIndex, TaskRange, Timestamp,
    UserId,
};
use tokio::sync::{mpsc, watch};

use crate::cache::{Cache, LocalCache, LoginLimit};
use crate::clock::SystemClock;
use crate::identity::limits::Rate;
use crate::messages::{LedgerEntry, LedgerHandle};
use crate::store::*;
pub(crate) use troubled::{Trouble, Troubled};

/// A cache in the process, whose limits no test comes near.
pub(crate) fn cache() -> Arc<dyn Cache> {
    let limit = LoginLimit { rate: Rate { burst: 1000, interval_ms: 1 }, share: 1 };
    Arc::new(LocalCache::new(limit, Arc::new(SystemClock)))
}

/// How long tests wait for what must come.
const DEADLINE: Duration = Duration::from_secs(60);
/// How soon they look again at what tells nobody that it changed: a database, a directory, a gauge.
const PACE: Duration = Duration::from_millis(5);

/// Waits until it is so.
///
/// # Panics
/// When it is not in time.
pub(crate) async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let looking = async {
        while !is_so().await {
            tokio::time::sleep(PACE).await;
        }
    };
    assert!(tokio::time::timeout(DEADLINE, looking).await.is_ok(), "never: {what}");
}

/// `seconds` after a fixed beginning.
pub(crate) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_timestamp(1_800_000_000 + seconds, 0).unwrap()
}

/// Labels of a worker, or what a job requires.
pub(crate) fn labels(pairs: &[(&str, &str)]) -> Arc<Labels> {
    Arc::new(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
}

fn prepared(spec: JobSpec) -> Prepared {
    let image = ImageOrder { config: Digest::of(b"image"), config_bytes: 5, layers: Vec::new() };
    Prepared { spec, image, input_bytes: Vec::new() }
}

pub(crate) fn job_record(id: u64) -> JobRecord {
    record_of(JobId(id), new_job(JobSpec::new("busybox")))
}

pub(crate) fn new_job(spec: JobSpec) -> NewJob {
    NewJob {
        owner: UserId(1),
        group: GroupId(1),
        job: prepared(spec),
        submitted_at: at(0),
        idempotency: None,
        launch: None,
    }
}

pub(crate) fn schedule(id: u64, cron: &str, considered_until: Timestamp) -> ScheduleRecord {
    ScheduleRecord {
        id: ScheduleId(id),
        owner: UserId(1),
        owner_name: "ann".into(),
        group: GroupId(1),
        name: format!("s{id}"),
        cron: cron.into(),
        zone: "UTC".into(),
        job: prepared(JobSpec::new("busybox")),
        paused: false,
        considered_until,
        missed: 0,
        last: None,
    }
}

fn record_of(id: JobId, new: NewJob) -> JobRecord {
    JobRecord {
        id,
        owner: new.owner,
        owner_name: "ann".into(),
        group: new.group,
        group_name: "lab".into(),
        allow_root: false,
        counts: TaskCounts::default(),
        next_fresh: u64::from(new.job.spec.tasks().first),
        spec: new.job.spec,
        image: new.job.image,
        input_bytes: new.job.input_bytes,
        submitted_at: new.submitted_at,
        ended_at: None,
        cancel_requested: false,
        launch: new.launch,
    }
}

/// The report of an attempt that wrote and left nothing.
pub(crate) fn report(attempt: AttemptId, outcome: Outcome) -> FinalReport {
    FinalReport {
        attempt,
        outcome,
        started_at_us: Some(1),
        finished_at_us: Some(2),
        ran_ms: Some(1),
        log_bytes: 0,
        log_digest: Digest::of(b""),
        log_cut_bytes: 0,
        outputs: Vec::new(),
        usage: swarm_protocol::Usage::default(),
    }
}

/// The store and what was committed to it.
#[derive(Clone, Default)]
pub(crate) struct Memory(Arc<watch::Sender<State>>);

#[derive(Default)]
struct State {
    jobs: BTreeMap<JobId, JobRecord>,
    schedules: BTreeMap<ScheduleId, ScheduleRecord>,
    launches: BTreeSet<(ScheduleId, Timestamp)>,
    keys: BTreeMap<String, JobId>,
    unreadable: bool,
    log: Vec<Transition>,
}

impl Memory {
    pub(crate) fn change<R>(&self, change: impl FnOnce(&mut BTreeMap<JobId, JobRecord>) -> R) -> R {
        self.modify(|state| change(&mut state.jobs))
    }

    pub(crate) fn add_schedule(&self, schedule: ScheduleRecord) {
        self.modify(|state| state.schedules.insert(schedule.id, schedule));
    }

    /// Whether single schedules cannot be read.
    pub(crate) fn set_unreadable(&self, unreadable: bool) {
        self.modify(|state| state.unreadable = unreadable);
    }

    pub(crate) fn all_schedules(&self) -> Vec<ScheduleRecord> {
        self.0.borrow().schedules.values().cloned().collect()
    }

    /// What was committed, in order.
    pub(crate) fn log(&self) -> Vec<Transition> {
        self.0.borrow().log.clone()
    }

    /// A ledger that commits at once, in order.
    pub(crate) fn ledger(&self) -> LedgerHandle {
        self.ledger_behind(watch::channel(true).1)
    }

    /// A ledger that commits while its database is there, as the other end says.
    pub(crate) fn ledger_behind(&self, mut is_there: watch::Receiver<bool>) -> LedgerHandle {
        let (sender, mut entries) = mpsc::channel::<LedgerEntry>(64);
        let memory = self.clone();
        tokio::spawn(async move {
            while let Some(entry) = entries.recv().await {
                // Whoever says it may be gone: then it stays as it was.
                let _ = is_there.wait_for(|is_there| *is_there).await;
                let _ = entry.reply.send(memory.apply(entry.transition));
            }
        });
        LedgerHandle(sender)
    }

    /// Waits until `condition` holds: looked at after every change.
    pub(crate) async fn until(&self, condition: impl Fn(&Self) -> bool) {
        let mut changes = self.0.subscribe();
        let holds = async {
            while !condition(self) {
                changes.changed().await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(10), holds).await.expect("the condition comes true in time");
    }

    fn modify<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let mut done = None;
        self.0.send_modify(|state| done = Some(change(state)));
        done.unwrap()
    }

    fn apply(&self, transition: Transition) -> Verdict {
        self.modify(|state| {
            let verdict = state.apply(&transition);
            if verdict.is_ok() {
                state.log.push(transition);
            }
            verdict
        })
    }
}

impl State {
    fn apply(&mut self, transition: &Transition) -> Verdict {
        match transition {
            Transition::CreateJob(new) => self.create(new),
            Transition::Assign { job, work, .. } => {
                let job = self.jobs.get_mut(job).ok_or_else(|| Refusal::NotFound(format!("job {job}")))?;
                let stale = || Refusal::Stale("not waiting".into());
                if job.cancel_requested {
                    return Err(stale());
                }
                if let Work::Fresh(range) = work {
                    if u64::from(range.first) != job.next_fresh {
                        return Err(stale());
                    }
                    job.next_fresh = u64::from(range.last) + 1;
                }
                Ok(Applied::Done)
            }
            Transition::Cancel { job, .. } => {
                let job = self.jobs.get_mut(job).ok_or_else(|| Refusal::NotFound(format!("job {job}")))?;
                job.cancel_requested = true;
                Ok(Applied::Cancelled { live: Vec::new(), job_ended: true })
            }
            Transition::MissLaunches { schedule, missed, until } => {
                let record = self.schedules.get_mut(schedule);
                let record = record.ok_or_else(|| Refusal::NotFound(format!("schedule {schedule}")))?;
                record.missed += missed;
                record.considered_until = record.considered_until.max(*until);
                Ok(Applied::Done)
            }
            Transition::NoteLabels { .. } => Ok(Applied::Done),
            other => Err(Refusal::Broken(format!("not asked for in these tests: {other:?}"))),
        }
    }

    fn create(&mut self, new: &NewJob) -> Verdict {
        if let Some((key, _)) = &new.idempotency
            && let Some(&job) = self.keys.get(key)
        {
            return Ok(Applied::Job { job, repeated: true });
        }
        if let Some(launch) = &new.launch
            && !self.launches.insert((launch.schedule, launch.nominal_at))
        {
            return Err(Refusal::Conflict("launched before".into()));
        }
        if let Some(record) = new.launch.as_ref().and_then(|launch| self.schedules.get_mut(&launch.schedule)) {
            record.considered_until = record.considered_until.max(new.launch.as_ref().map_or(at(0), |l| l.nominal_at));
        }
        let job = JobId(self.jobs.len() as u64 + 1);
        if let Some((key, _)) = &new.idempotency {
            self.keys.insert(key.clone(), job);
        }
        self.jobs.insert(job, record_of(job, new.clone()));
        Ok(Applied::Job { job, repeated: false })
    }
}

const NOT_ASKED: &str = "not asked for in these tests";

fn not_asked<T>() -> Result<T, StoreError> {
    Err(StoreError::Corrupt { what: NOT_ASKED.into() })
}

impl Store for Memory {
    fn take_over(&self) -> Result<Epoch, StoreError> {
        not_asked()
    }
    fn epoch(&self) -> Result<Epoch, StoreError> {
        not_asked()
    }
    fn swarm_id(&self) -> Result<SwarmId, StoreError> {
        not_asked()
    }
    fn commit(&self, _: Epoch, _: u64, _: &[Transition]) -> Result<Vec<Verdict>, StoreError> {
        not_asked()
    }
    fn batch_committed(&self, _: Epoch, _: u64) -> Result<bool, StoreError> {
        not_asked()
    }
    fn load(&self) -> Result<Snapshot, StoreError> {
        not_asked()
    }
    fn job(&self, job: JobId) -> Result<Option<JobRecord>, StoreError> {
        Ok(self.0.borrow().jobs.get(&job).cloned())
    }
    fn job_of_key(&self, _: GroupId, _: &str) -> Result<Option<JobId>, StoreError> {
        not_asked()
    }
    fn jobs(&self, _: &JobFilter) -> Result<Vec<JobRecord>, StoreError> {
        not_asked()
    }
    fn tasks(&self, _: JobId, _: TaskIndex, _: u32) -> Result<Vec<TaskRecord>, StoreError> {
        not_asked()
    }
    fn attempt(&self, _: AttemptId) -> Result<Option<AttemptRecord>, StoreError> {
        not_asked()
    }
    fn live_task(&self, task: TaskId) -> Result<Option<LiveTask>, StoreError> {
        let phase = LivePhase::Waiting { not_before: at(0) };
        Ok(Some(LiveTask { job: task.job, task: task.task, attempt: 2, phase, losses: 1, failures: 3 }))
    }
    fn fresh_tasks(&self, _: Option<JobId>, _: Timestamp, _: u32) -> Result<Vec<(JobId, TaskRange)>, StoreError> {
        not_asked()
    }
    fn live_tasks(&self, _: Option<TaskId>, _: u32) -> Result<Vec<LiveTask>, StoreError> {
        not_asked()
    }
    fn sent_outputs(&self, _: AttemptId) -> Result<Vec<(Digest, u64)>, StoreError> {
        not_asked()
    }
    fn linked_blob(&self, _: GroupId, _: &Digest) -> Result<Option<u64>, StoreError> {
        not_asked()
    }
    fn image(&self, _: GroupId, _: &str) -> Result<Option<ImageRecord>, StoreError> {
        not_asked()
    }
    fn images(&self, _: GroupId) -> Result<Vec<ImageRecord>, StoreError> {
        not_asked()
    }
    fn schedules(&self, _: Option<GroupId>) -> Result<Vec<ScheduleRecord>, StoreError> {
        Ok(self.all_schedules())
    }
    fn schedule(&self, schedule: ScheduleId) -> Result<Option<ScheduleRecord>, StoreError> {
        let state = self.0.borrow();
        if state.unreadable {
            return Err(StoreError::Connection("no reader is free".into()));
        }
        Ok(state.schedules.get(&schedule).cloned())
    }
    fn user(&self, _: &str) -> Result<Option<UserRecord>, StoreError> {
        not_asked()
    }
    fn users(&self) -> Result<Vec<UserRecord>, StoreError> {
        not_asked()
    }
    fn refresh_token(&self, _: &Digest) -> Result<Option<RefreshRecord>, StoreError> {
        not_asked()
    }
    fn revoked_jwts(&self, _: Timestamp) -> Result<Vec<(uuid::Uuid, Timestamp)>, StoreError> {
        not_asked()
    }
    fn workers(&self) -> Result<Vec<WorkerRecord>, StoreError> {
        Ok(Vec::new())
    }
}
