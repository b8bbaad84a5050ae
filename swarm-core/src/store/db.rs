//! The store in a database: one connection that writes, a small pool of connections that read.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use diesel::prelude::*;
use diesel::r2d2::Pool;
use diesel::result::Error as DieselError;
use swarm_protocol::{
    AttemptId, Digest, Epoch, GroupId, JobId, ScheduleId, SwarmId, TaskId, TaskIndex, TaskRange, Timestamp,
};

use super::connect::{Conn, Location, OpenError, Purpose, Readers, Source, both, migrate};
use super::faults::lost;
use super::schema::{epoch, last_batch, swarm};
use super::sqltypes::{Fault, int, number, uuid};
use super::{
    AttemptRecord, ImageRecord, JobFilter, JobRecord, LiveTask, RefreshRecord, ScheduleRecord, Snapshot, Store,
    StoreError, TaskRecord, Transition, UserRecord, Verdict, WorkerRecord, commit, read, sqlite,
};

/// Connections that read at the same time.
const READERS_MAX: u32 = 4;
/// How long a read waits for one of them. The pool's pauses between tries to connect grow to half of it, so it is also how
/// soon reads heal after the database came back.
const READER_WAIT: Duration = Duration::from_secs(5);

/// A store in SQLite or Postgres.
pub struct Db {
    location: Location,
    /// `None` after the connection was lost, until the next use makes a new one.
    writer: Mutex<Option<Conn>>,
    readers: Pool<Readers>,
}

impl Db {
    /// Opens the store at `source`. What does not exist of it is made; a SQLite file that was not closed in order is
    /// checked first. Blocks.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(source: impl Into<Source>) -> Result<Self, OpenError> {
        let location = Location::parse(&source.into())?;
        let at = location.to_string();
        let left_open = matches!(&location, Location::Sqlite(path) if sqlite::was_left_open(path));
        if let (Location::Sqlite(path), true) = (&location, left_open) {
            // Whoever is refused closes it, which removes the log that tells: the next one must not use it unchecked.
            sqlite::note_unchecked(path)
                .map_err(|source| OpenError::Connect { at: at.clone(), source: source.into() })?;
        }
        let _alone =
            location.prepare().map_err(|source| OpenError::Connect { at: at.clone(), source: source.into() })?;
        let mut conn = location.connect(Purpose::Write).map_err(|error| sqlite::cannot_open(at.clone(), error))?;
        if let (Location::Sqlite(path), Conn::Sqlite(c), true) = (&location, &mut conn, left_open) {
            sqlite::check(path, c)?;
            sqlite::note_checked(path)
                .map_err(|source| OpenError::Connect { at: at.clone(), source: source.into() })?;
        }
        migrate(&location, &mut conn, Timestamp::from(std::time::SystemTime::now()).timestamp_micros())
            .map_err(|source| OpenError::Migrate { at: at.clone(), source })?;
        swarm_id(&mut conn).map_err(|source| OpenError::Connect { at, source: source.into() })?;
        let readers = Pool::builder()
            .max_size(READERS_MAX)
            .min_idle(Some(0))
            .connection_timeout(READER_WAIT)
            .test_on_check_out(true)
            .build_unchecked(Readers(location.clone()));
        Ok(Self { location, writer: Mutex::new(Some(conn)), readers })
    }

    fn writer(&self) -> MutexGuard<'_, Option<Conn>> {
        // A transaction takes the connection out, so after a panic in one there is none here, and it was rolled back.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One write transaction. `body` gives what becomes of it: its value once it is committed.
    fn write<T>(&self, body: impl FnOnce(&mut Conn) -> Result<T, StoreError>) -> Result<T, Unfinished<T>> {
        let mut slot = self.writer();
        let mut conn = match slot.take() {
            Some(conn) => conn,
            None => self.location.connect(Purpose::Write).map_err(|error| Unfinished::Undone(lost(error)))?,
        };
        let begin = if matches!(conn, Conn::Sqlite(_)) { "BEGIN IMMEDIATE" } else { "BEGIN" };
        // Nothing was done yet, so whatever fails here is a matter of reaching the database.
        conn.execute(begin).map_err(|error| Unfinished::Undone(lost(error)))?;
        match body(&mut conn) {
            Ok(value) => match conn.execute("COMMIT") {
                Ok(()) => {
                    *slot = Some(conn);
                    Ok(value)
                }
                // Without its connection an unfinished transaction is rolled back; whether this one is unfinished
                // has to be read back.
                Err(source) => Err(Unfinished::Unknown(value, source)),
            },
            Err(error) => {
                // A server that became a standby would refuse every write of this connection.
                let usable =
                    !became_readonly(&error) && conn.execute("ROLLBACK").is_ok() && conn.execute("SELECT 1").is_ok();
                if usable {
                    *slot = Some(conn);
                    return Err(Unfinished::Undone(error));
                }
                Err(Unfinished::Undone(match error {
                    StoreError::Statement(source) => StoreError::Connection(source),
                    other => other,
                }))
            }
        }
    }

    /// Several reads that see one state of the store.
    fn read<T>(&self, body: impl FnOnce(&mut Conn) -> Result<T, Fault>) -> Result<T, StoreError> {
        let mut conn = self.readers.get().map_err(|error| StoreError::Connection(Box::new(error)))?;
        let begin = match *conn {
            Conn::Sqlite(_) => "BEGIN",
            Conn::Postgres(_) => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
        };
        conn.execute(begin).map_err(lost)?;
        let answer = body(&mut conn);
        // A rollback that fails leaves a connection of no use, which its next check finds out.
        let ended = conn.execute("ROLLBACK");
        answer.map_err(|fault| match (fault, ended) {
            (Fault::Database(error), Err(_)) => lost(error),
            (fault, _) => fault.into(),
        })
    }
}

/// Empties SQLite's write-ahead log, by which the next start sees that this one ended in order. The pool's connections may
/// outlive this, so it does not wait for the last one to be closed.
impl Drop for Db {
    fn drop(&mut self) {
        if let Some(conn @ Conn::Sqlite(_)) = self.writer().as_mut() {
            let _ = conn.execute("PRAGMA busy_timeout = 100; PRAGMA wal_checkpoint(TRUNCATE)");
        }
    }
}

fn became_readonly(error: &StoreError) -> bool {
    let StoreError::Connection(source) = error else { return false };
    matches!(
        source.downcast_ref(),
        Some(DieselError::DatabaseError(diesel::result::DatabaseErrorKind::ReadOnlyTransaction, _))
    )
}

/// A write that did not end well.
enum Unfinished<T> {
    /// Nothing of it is in the store.
    Undone(StoreError),
    /// The connection failed while the database was committing.
    Unknown(T, DieselError),
}

impl<T> Unfinished<T> {
    /// For writes of which it does not matter.
    fn or_lost(self) -> StoreError {
        match self {
            Self::Undone(error) => error,
            Self::Unknown(_, source) => lost(source),
        }
    }
}

fn swarm_id(conn: &mut Conn) -> QueryResult<SwarmId> {
    let bytes: Vec<u8> = both!(conn, c => swarm::table.select(swarm::swarm_id).first(c))?;
    uuid(&bytes, "swarm.swarm_id")
        .map(SwarmId)
        .map_err(|_| DieselError::DeserializationError("swarm.swarm_id is not a UUID".into()))
}

impl Store for Db {
    fn take_over(&self) -> Result<Epoch, StoreError> {
        self.write(|conn| {
            let raised: i64 = both!(conn, c => diesel::update(epoch::table)
                .set(epoch::current.eq(epoch::current + 1))
                .returning(epoch::current)
                .get_result(c))
            .map_err(Fault::from)?;
            Ok(Epoch(number(raised, "epoch.current")?))
        })
        .map_err(Unfinished::or_lost)
    }

    fn epoch(&self) -> Result<Epoch, StoreError> {
        self.read(|conn| {
            let current: i64 = both!(conn, c => epoch::table.select(epoch::current).first(c))?;
            Ok(Epoch(number(current, "epoch.current")?))
        })
    }

    fn swarm_id(&self) -> Result<SwarmId, StoreError> {
        self.read(|conn| Ok(swarm_id(conn)?))
    }

    fn commit(&self, epoch: Epoch, number: u64, transitions: &[Transition]) -> Result<Vec<Verdict>, StoreError> {
        self.write(|conn| commit::batch(conn, epoch, number, transitions)).map_err(|unfinished| match unfinished {
            Unfinished::Undone(error) => error,
            Unfinished::Unknown(verdicts, source) => StoreError::CommitUnknown { verdicts, source: Box::new(source) },
        })
    }

    fn batch_committed(&self, epoch: Epoch, number: u64) -> Result<bool, StoreError> {
        self.write(|conn| {
            commit::fence(conn, epoch)?;
            // The server may still be committing for the lost connection, which ended by writing this row: locking it
            // waits for that. SQLite's transactions wait for each other anyway.
            let query = last_batch::table.select((last_batch::epoch, last_batch::number));
            let last: (i64, i64) =
                both!(conn, p => query.for_update().first(p), s => query.first(s)).map_err(Fault::from)?;
            Ok(last == (int(epoch.0), int(number)))
        })
        .map_err(Unfinished::or_lost)
    }

    fn load(&self) -> Result<Snapshot, StoreError> {
        self.read(read::snapshot)
    }

    fn job(&self, job: JobId) -> Result<Option<JobRecord>, StoreError> {
        self.read(|conn| read::jobs::one(conn, job))
    }

    fn job_of_key(&self, group: GroupId, key: &str) -> Result<Option<JobId>, StoreError> {
        self.read(|conn| read::jobs::of_key(conn, group, key))
    }

    fn jobs(&self, filter: &JobFilter) -> Result<Vec<JobRecord>, StoreError> {
        self.read(|conn| read::jobs::list(conn, filter))
    }

    fn tasks(&self, job: JobId, from: TaskIndex, limit: u32) -> Result<Vec<TaskRecord>, StoreError> {
        self.read(|conn| read::tasks::list(conn, job, from, limit))
    }

    fn attempt(&self, attempt: AttemptId) -> Result<Option<AttemptRecord>, StoreError> {
        self.read(|conn| read::tasks::attempt(conn, attempt))
    }

    fn live_task(&self, task: TaskId) -> Result<Option<LiveTask>, StoreError> {
        self.read(|conn| read::tasks::live(conn, task))
    }

    fn fresh_tasks(
        &self,
        after: Option<JobId>,
        now: Timestamp,
        limit: u32,
    ) -> Result<Vec<(JobId, TaskRange)>, StoreError> {
        self.read(|conn| read::jobs::fresh(conn, after, now, limit))
    }

    fn live_tasks(&self, after: Option<TaskId>, limit: u32) -> Result<Vec<LiveTask>, StoreError> {
        self.read(|conn| read::tasks::live_after(conn, after, limit))
    }

    fn sent_outputs(&self, attempt: AttemptId) -> Result<Vec<(Digest, u64)>, StoreError> {
        self.read(|conn| read::content::sent_outputs(conn, attempt))
    }

    fn linked_blob(&self, group: GroupId, digest: &Digest) -> Result<Option<u64>, StoreError> {
        self.read(|conn| read::content::linked_blob(conn, group, digest))
    }

    fn image(&self, group: GroupId, reference: &str) -> Result<Option<ImageRecord>, StoreError> {
        self.read(|conn| read::content::image(conn, group, reference))
    }

    fn images(&self, group: GroupId) -> Result<Vec<ImageRecord>, StoreError> {
        self.read(|conn| read::content::images(conn, group))
    }

    fn schedules(&self, group: Option<GroupId>) -> Result<Vec<ScheduleRecord>, StoreError> {
        self.read(|conn| read::schedules::list(conn, group))
    }

    fn schedule(&self, schedule: ScheduleId) -> Result<Option<ScheduleRecord>, StoreError> {
        self.read(|conn| read::schedules::one(conn, schedule))
    }

    fn user(&self, name: &str) -> Result<Option<UserRecord>, StoreError> {
        self.read(|conn| read::identity::user(conn, name))
    }

    fn users(&self) -> Result<Vec<UserRecord>, StoreError> {
        self.read(read::identity::users)
    }

    fn refresh_token(&self, hash: &Digest) -> Result<Option<RefreshRecord>, StoreError> {
        self.read(|conn| read::identity::refresh_token(conn, hash))
    }

    fn revoked_jwts(&self, now: Timestamp) -> Result<Vec<(uuid::Uuid, Timestamp)>, StoreError> {
        self.read(|conn| read::identity::revoked_jwts(conn, now))
    }

    fn workers(&self) -> Result<Vec<WorkerRecord>, StoreError> {
        self.read(read::identity::workers)
    }
}
