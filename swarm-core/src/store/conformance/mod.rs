//! One suite for both backends: every case runs on SQLite and on Postgres.

mod content;
mod faults;
mod identity;
mod jobs;
mod model;
mod places;
mod schedules;
mod tasks;

use std::cell::Cell;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use swarm_protocol::link::{ImageOrder, LayerOrder};
use swarm_protocol::spec::JobSpec;
use swarm_protocol::{
    AttemptId, AttemptNo, Digest, Epoch, GroupId, JobId, LossReason, Outcome, TaskIndex, TaskRange, Timestamp, UserId,
    WorkerId,
};

use super::connect::{Conn, Location, Purpose};
use super::*;
use swarm_protocol::api::Role;

/// Where the suite finds a Postgres it may make schemas in.
const POSTGRES_URL: &str = "SWARM_TEST_POSTGRES_URL";

/// A fresh store under one core, with a user and two workers.
pub(crate) struct Bench {
    pub(crate) store: Db,
    pub(crate) url: String,
    epoch: Epoch,
    number: Cell<u64>,
    owner: UserId,
    group: GroupId,
    workers: [WorkerId; 2],
    _place: Place,
}

/// What is removed after the test.
enum Place {
    Folder { _folder: tempfile::TempDir },
    Schema { url: String, name: String },
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Self::Schema { url, name } = self
            && let Ok(mut conn) = Location::parse(&Source::from(&*url)).unwrap().connect(Purpose::Write)
        {
            let _ = conn.execute(&format!("DROP SCHEMA {name} CASCADE"));
        }
    }
}

impl Bench {
    pub(crate) fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", folder.path().join("swarm.db").display());
        Self::new(url, Place::Folder { _folder: folder })
    }

    pub(crate) fn postgres() -> Self {
        let Ok(base) = std::env::var(POSTGRES_URL) else {
            panic!("{POSTGRES_URL} names no Postgres to test on: run `cargo xtask test`, which starts one");
        };
        Self::postgres_at(&base)
    }

    /// In a schema of the Postgres at `base`.
    pub(crate) fn postgres_at(base: &str) -> Self {
        let name = format!("t_{}", uuid::Uuid::new_v4().simple());
        connect(base).execute(&format!("CREATE SCHEMA {name}")).unwrap();
        let separator = if base.contains('?') { '&' } else { '?' };
        let url = format!("{base}{separator}options=-csearch_path%3D{name}&application_name={name}");
        Self::new(url, Place::Schema { url: base.to_owned(), name })
    }

    /// Has the database do something that is not the store's business.
    pub(crate) fn administer(&self, statement: &str) {
        self.connection().execute(statement).unwrap();
    }

    /// Ends the sessions of a Postgres that are about to commit: their number.
    pub(crate) fn ended_in_commit(&self) -> usize {
        let Conn::Postgres(c) = &mut self.connection() else { return 0 };
        let waiting = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        diesel::sql_query(waiting).execute(c).unwrap()
    }

    /// Keeps everyone from writing until the answer is dropped.
    pub(crate) fn lock(&self) -> impl Send + use<> {
        let mut conn = self.connection();
        conn.execute(match conn {
            Conn::Postgres(_) => "BEGIN; LOCK TABLE users",
            Conn::Sqlite(_) => "BEGIN IMMEDIATE",
        })
        .unwrap();
        conn
    }

    /// Ends every connection to the store but the one that does it; on SQLite there are none to lose.
    pub(crate) fn cut_connections(&self) {
        if let Conn::Postgres(c) = &mut self.connection() {
            // Each test has an application name of its own, so only its own sessions are ended.
            let others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                          WHERE application_name = current_setting('application_name') AND pid <> pg_backend_pid()";
            c.batch_execute(others).unwrap();
        }
    }

    fn new(url: String, place: Place) -> Self {
        let store = open_at_once(&url);
        let epoch = store.take_over().unwrap();
        let mut bench = Self {
            store,
            url,
            epoch,
            number: Cell::new(0),
            owner: UserId(0),
            group: GroupId(0),
            workers: [WorkerId(0); 2],
            _place: place,
        };
        (bench.owner, bench.group) = bench.user("ada", "physics");
        bench.workers = ["w1", "w2"].map(|name| bench.worker(name));
        bench
    }

    /// Commits a batch.
    fn commit(&self, transitions: &[Transition]) -> Result<Vec<Verdict>, StoreError> {
        self.number.set(self.number.get() + 1);
        self.store.commit(self.epoch, self.number.get(), transitions)
    }

    /// Commits one transition.
    fn apply(&self, transition: Transition) -> Verdict {
        self.commit(&[transition]).unwrap().remove(0)
    }

    pub(crate) fn worker_ids(&self) -> [WorkerId; 2] {
        self.workers
    }

    fn user(&self, name: &str, group: &str) -> (UserId, GroupId) {
        match self.apply(new_user(name, group)) {
            Ok(Applied::User(user, group)) => (user, group),
            other => panic!("{other:?}"),
        }
    }

    fn worker(&self, name: &str) -> WorkerId {
        let key = Digest::of(name.as_bytes());
        match self.join(name, key) {
            Ok(Applied::Worker(worker)) => worker,
            other => panic!("{other:?}"),
        }
    }

    /// A worker joins with a token of its own.
    fn join(&self, name: &str, key: Digest) -> Verdict {
        let (token, worker) = (Digest(rand::random()), name.to_owned());
        let create = Transition::CreateJoinToken { hash: token, worker: worker.clone(), expires_at: at(86_400) };
        let join = Transition::JoinWorker { token, worker, key, at: at(0) };
        self.commit(&[create, join]).unwrap().remove(1)
    }

    pub(crate) fn new_job(&self, tasks: u32) -> NewJob {
        let mut spec = JobSpec::new("busybox");
        spec.array = TaskRange::new(0, tasks - 1);
        NewJob {
            owner: self.owner,
            group: self.group,
            job: prepared(spec, vec![3]),
            submitted_at: at(1),
            idempotency: None,
            launch: None,
        }
    }

    fn submit(&self, new: NewJob) -> JobId {
        match self.apply(Transition::CreateJob(Box::new(new))) {
            Ok(Applied::Job { job, repeated: false }) => job,
            other => panic!("{other:?}"),
        }
    }

    /// Submits a job of so many tasks.
    fn job(&self, tasks: u32) -> JobId {
        self.submit(self.new_job(tasks))
    }

    fn fresh(&self, job: JobId, first: TaskIndex, last: TaskIndex) -> Transition {
        let work = Work::Fresh(TaskRange { first, last });
        Transition::Assign { job, work, worker: self.workers[0], at: at(2) }
    }

    fn again(&self, job: JobId, tasks: &[(TaskIndex, AttemptNo)]) -> Transition {
        Transition::Assign { job, work: Work::Again(tasks.to_vec()), worker: self.workers[0], at: at(2) }
    }

    fn start(&self, attempt: AttemptId) -> Transition {
        Transition::Start { attempt, worker: self.workers[0], started_at: at(3) }
    }

    fn recall(&self, attempt: AttemptId) -> Transition {
        Transition::Recall { attempt, worker: self.workers[0], at: at(3) }
    }

    fn end(&self, attempt: AttemptId, outcome: Outcome, next: Next) -> Transition {
        Transition::End(Box::new(AttemptEnd {
            attempt,
            worker: self.workers[0],
            outcome,
            next,
            started_at: Some(at(3)),
            ended_at: at(9),
            ran_ms: Some(6000),
            may_have_run: true,
            log_bytes: 12,
            log_cut_bytes: 1,
            outputs: Vec::new(),
            usage: Some(swarm_protocol::Usage { cpu_ms: Some(5), input_bytes: 6, ..Default::default() }),
        }))
    }

    fn record(&self, job: JobId) -> JobRecord {
        self.store.job(job).unwrap().unwrap()
    }

    /// (waiting, live, succeeded, failed, cancelled).
    fn counts(&self, job: JobId) -> [u64; 5] {
        let counts = self.record(job).counts;
        [counts.waiting, counts.live, counts.succeeded, counts.failed, counts.cancelled]
    }

    /// A connection beside the store's own.
    fn connection(&self) -> Conn {
        connect(&self.url)
    }
}

fn connect(url: &str) -> Conn {
    Location::parse(&url.into()).unwrap().connect(Purpose::Write).unwrap()
}

/// Opens a new store from several threads at once, as cores that start together do: they agree on what it is.
fn open_at_once(url: &str) -> Db {
    let mut stores: Vec<Db> = std::thread::scope(|scope| {
        let opening: Vec<_> = (0..3).map(|_| scope.spawn(|| Db::open(url).unwrap())).collect();
        opening.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let store = stores.remove(0);
    assert!(stores.iter().all(|other| other.swarm_id().unwrap() == store.swarm_id().unwrap()));
    store
}

pub(crate) fn new_user(name: &str, group: &str) -> Transition {
    Transition::CreateUser(Box::new(NewUser {
        name: name.to_owned(),
        password_hash: "$argon2id$x".to_owned(),
        role: Role::Consumer,
        group: group.to_owned(),
        allow_root: false,
        created_at: at(0),
    }))
}

/// So many seconds after some instant.
fn at(second: i64) -> Timestamp {
    Timestamp::from_timestamp_micros(1_767_225_600_000_000 + second * 1_000_000 + 7).unwrap()
}

fn id(job: JobId, task: TaskIndex, attempt: AttemptNo) -> AttemptId {
    AttemptId { job, task, attempt }
}

fn prepared(spec: JobSpec, input_bytes: Vec<u64>) -> Prepared {
    Prepared { spec, image: image("busybox"), input_bytes }
}

fn image(name: &str) -> ImageOrder {
    let layer = |text: String| LayerOrder {
        digest: Digest::of(text.as_bytes()),
        diff_id: Digest::of(b"tar"),
        size_bytes: text.len() as u64,
    };
    ImageOrder {
        config: Digest::of(name.as_bytes()),
        config_bytes: 7,
        layers: vec![layer(format!("{name}/a")), layer(format!("{name}/b"))],
    }
}

fn lost() -> Outcome {
    Outcome::Lost { reason: LossReason::LeaseExpired, detail: "silent".to_owned() }
}

fn retry(second: i64) -> Next {
    Next::Retry { not_before: at(second) }
}

fn is_stale(verdict: &Verdict) -> bool {
    matches!(verdict, Err(Refusal::Stale(_)))
}

fn is_conflict(verdict: &Verdict) -> bool {
    matches!(verdict, Err(Refusal::Conflict(_)))
}

fn is_not_found(verdict: &Verdict) -> bool {
    matches!(verdict, Err(Refusal::NotFound(_)))
}

/// Makes a test of every case for each backend.
macro_rules! suite {
    ($($module:ident: $($case:ident),+;)+) => {
        mod sqlite {
            $($(#[test] fn $case() { super::$module::$case(&super::Bench::sqlite()); })+)+
        }
        mod postgres {
            $($(#[test] fn $case() { super::$module::$case(&super::Bench::postgres()); })+)+
        }
    };
}

suite! {
    tasks: fresh_tasks_are_assigned_once_and_in_order, a_million_tasks_are_few_rows, the_life_of_an_attempt_is_kept,
        what_is_not_current_is_refused, a_recall_costs_no_retry, what_is_open_is_read_in_pages, retries_wait_and_count, a_cancel_ends_what_waits,
        a_task_has_one_final_record, the_last_attempt_number_is_final, late_reports_change_nothing;
    jobs: a_submit_repeats_by_its_key, a_refused_transition_does_not_spoil_its_batch,
        a_broken_transition_undoes_its_batch, a_deposed_core_writes_nothing, nothing_lands_after_a_take_over, a_store_is_the_same_when_reopened,
        jobs_are_listed_by_state_group_and_name, an_open_snapshot_holds_what_is_not_final,
        a_lost_connection_heals, a_database_that_cannot_write_now_is_asked_again;
    schedules: a_schedule_is_launched_once_for_each_instant, schedules_are_paused_missed_and_deleted;
    content: blobs_are_readable_by_linked_groups_alone, names_of_images_move, outputs_are_linked_to_the_group,
        what_an_attempt_sent_is_kept_while_it_lives;
    identity: accounts_are_unique_and_can_be_reset, root_is_allowed_to_a_group_and_taken_back,
        failed_logins_are_counted, a_refresh_token_is_used_once,
        jwts_are_revoked_until_they_expire, what_has_expired_is_removed_a_few_at_a_time, a_join_token_is_good_once_in_time_for_its_name,
        a_worker_keeps_its_name_and_key, what_a_worker_says_of_itself_is_kept,
        the_labels_of_a_worker_are_kept, workers_drain_and_are_revoked;
    model: the_store_agrees_with_the_drawn_state_machine;
    faults: a_batch_is_whole_or_not_there_whatever_statement_fails, a_read_of_which_any_statement_fails_can_be_repeated;
}
