//! What has not ended, and how far past the deadline that governs its state it is. For swarms that run alike jobs of one
//! group, the oldest first.

use std::collections::BTreeMap;
use std::fmt;

use diesel::prelude::*;
use diesel::sql_types::BigInt;
use swarm_protocol::spec::JobSpec;
use swarm_protocol::{JobId, TaskId};

use crate::db::{LoadError, json, number};
use crate::rows::{Job, Live, read};

/// How long an assigned task may take to start, in microseconds: the core's default for an order that nobody accepts. What
/// a worker accepted it may prepare for hours, but jobs without inputs need none of them.
const START_US: i64 = 60_000_000;
/// What a core waits past the end of a lease by default, in microseconds.
const LEASE_MARGIN_US: i64 = 5_000_000;

/// Where a task stands. Instants are Unix time in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It may run from this instant on, and waits for its turn.
    Waiting {
        /// Its submit, its start time or the end of its backoff.
        from_us: i64,
    },
    /// It is to be started.
    Assigned {
        /// Since when.
        at_us: i64,
    },
    /// It runs.
    Started {
        /// Since when.
        at_us: i64,
    },
}

/// What has not ended at one instant.
#[derive(Debug, Clone, Default)]
pub struct Unended {
    /// Tasks; of those of a job that never left the waiting state the first one stands for all.
    pub tasks: Vec<(TaskId, Standing)>,
    /// Jobs' leases in microseconds.
    pub leases_us: BTreeMap<JobId, i64>,
    /// When a task of each job was last assigned, or when the job ended.
    pub moved_us: BTreeMap<JobId, i64>,
}

/// A task that is past its deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Late {
    /// Which.
    pub task: TaskId,
    /// Where it stands.
    pub standing: Standing,
    /// How far past, in microseconds.
    pub by_us: i64,
}

impl fmt::Display for Late {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.standing {
            Standing::Waiting { .. } => "waiting",
            Standing::Assigned { .. } => "assigned",
            Standing::Started { .. } => "started",
        };
        write!(f, "task {}, {state}, by {:.1} s", self.task, self.by_us as f64 / 1e6)
    }
}

impl Unended {
    /// The task that is furthest past its deadline at `now_us`. No deadline counts from before `since_us`, when the last
    /// part that was away came back.
    #[must_use]
    pub fn latest(&self, now_us: i64, since_us: i64) -> Option<Late> {
        let late = |&(task, standing): &(TaskId, Standing)| {
            let by_us = now_us - self.due_us(task, standing, since_us);
            (by_us > 0).then_some(Late { task, standing, by_us })
        };
        self.tasks.iter().filter_map(late).max_by_key(|late| late.by_us)
    }

    fn due_us(&self, task: TaskId, standing: Standing, since_us: i64) -> i64 {
        match standing {
            // It is its turn as soon as nothing older is being assigned any more.
            Standing::Waiting { from_us } => {
                let turn_us = self.moved_us.range(..=task.job).map(|(_, at_us)| *at_us).max();
                from_us.max(since_us).max(turn_us.unwrap_or(0))
            }
            Standing::Assigned { at_us } => at_us.max(since_us) + START_US,
            Standing::Started { at_us } => {
                at_us.max(since_us) + self.leases_us.get(&task.job).copied().unwrap_or(0) + LEASE_MARGIN_US
            }
        }
    }
}

#[derive(QueryableByName)]
struct Moved {
    #[diesel(sql_type = BigInt)]
    job_id: i64,
    #[diesel(sql_type = BigInt)]
    at: i64,
}

struct Rows {
    jobs: Vec<Job>,
    live: Vec<Live>,
    moved: Vec<Moved>,
}

const MOVED: &str = "SELECT job_id, MAX(assigned_at) AS at FROM attempts \
                     WHERE job_id IN (SELECT id FROM jobs WHERE ended_at IS NULL) GROUP BY job_id \
                     UNION ALL SELECT id AS job_id, ended_at AS at FROM jobs WHERE ended_at IS NOT NULL";

/// Reads what has not ended from the store at `location`, as [`load`](crate::load) takes it. The core has to run: a store
/// in SQLite that nobody else has open would be closed in its place.
///
/// # Errors
/// [`LoadError`].
pub fn unended(location: &str) -> Result<Unended, LoadError> {
    let rows = read!(location, |conn| Rows {
        jobs: diesel::sql_query("SELECT * FROM jobs WHERE ended_at IS NULL").load(conn)?,
        live: diesel::sql_query("SELECT * FROM live_tasks").load(conn)?,
        moved: diesel::sql_query(MOVED).load(conn)?,
    });
    sort(rows)
}

fn sort(rows: Rows) -> Result<Unended, LoadError> {
    let mut unended = Unended::default();
    for row in rows.moved {
        unended.moved_us.insert(JobId(number(row.job_id, "jobs.id")?), row.at);
    }
    for row in rows.jobs {
        let (job, spec): (JobId, JobSpec) = (JobId(number(row.id, "jobs.id")?), json(&row.spec, "jobs.spec")?);
        let lease_us = i64::try_from(spec.lease_s).ok().and_then(|s| s.checked_mul(1_000_000));
        unended.leases_us.insert(job, lease_us.ok_or_else(|| LoadError::Corrupt("jobs.spec (its lease)".into()))?);
        if row.next_fresh <= row.last_task {
            let from_us = spec.start_at.map_or(row.submitted_at, |at| at.timestamp_micros().max(row.submitted_at));
            let task = TaskId { job, task: number(row.next_fresh, "jobs.next_fresh")? };
            unended.tasks.push((task, Standing::Waiting { from_us }));
        }
    }
    for row in rows.live {
        let job = JobId(number(row.job_id, "live_tasks.job_id")?);
        let task = TaskId { job, task: number(row.task, "live_tasks.task")? };
        let at = |at: Option<i64>, what: &str| at.ok_or_else(|| LoadError::Corrupt(format!("{what} of {task} (null)")));
        unended.tasks.push((
            task,
            match row.phase {
                0 => Standing::Waiting { from_us: at(row.not_before, "live_tasks.not_before")? },
                1 => Standing::Assigned { at_us: at(row.assigned_at, "live_tasks.assigned_at")? },
                _ => Standing::Started { at_us: at(row.started_at, "live_tasks.started_at")? },
            },
        ));
        let last = unended.moved_us.entry(job).or_default();
        *last = row.assigned_at.unwrap_or(0).max(*last);
    }
    Ok(unended)
}

#[cfg(test)]
mod tests {
    use diesel::connection::SimpleConnection as _;
    use diesel::sqlite::SqliteConnection;

    use super::*;

    const S: i64 = 1_000_000;

    fn of(standing: Standing) -> Unended {
        let task = TaskId { job: JobId(2), task: 7 };
        Unended {
            tasks: vec![(task, standing)],
            leases_us: [(JobId(2), 30 * S)].into(),
            moved_us: [(JobId(1), 50 * S), (JobId(3), 900 * S)].into(),
        }
    }

    fn late_s(standing: Standing, now_s: i64, since_s: i64) -> Option<i64> {
        of(standing).latest(now_s * S, since_s * S).map(|late| late.by_us / S)
    }

    #[test]
    fn what_waits_is_late_once_nothing_older_is_assigned_any_more() {
        assert_eq!(late_s(Standing::Waiting { from_us: 100 * S }, 100, 0), None);
        assert_eq!(late_s(Standing::Waiting { from_us: 100 * S }, 161, 0), Some(61));
        assert_eq!(late_s(Standing::Waiting { from_us: 10 * S }, 161, 0), Some(111), "job 1 went on until 50");
        assert_eq!(late_s(Standing::Waiting { from_us: 10 * S }, 161, 150), Some(11), "all was back at 150");
    }

    #[test]
    fn what_is_assigned_has_a_time_to_start_and_what_has_started_its_lease() {
        assert_eq!(late_s(Standing::Assigned { at_us: 100 * S }, 160, 0), None);
        assert_eq!(late_s(Standing::Assigned { at_us: 100 * S }, 170, 105), Some(5));
        assert_eq!(late_s(Standing::Started { at_us: 100 * S }, 135, 0), None);
        assert_eq!(late_s(Standing::Started { at_us: 100 * S }, 136, 0), Some(1));
    }

    #[test]
    fn the_latest_is_told_and_what_has_ended_is_not_late() {
        let mut unended = of(Standing::Assigned { at_us: 100 * S });
        let other = TaskId { job: JobId(2), task: 8 };
        unended.tasks.push((other, Standing::Started { at_us: 100 * S }));
        let late = unended.latest(300 * S, 0).unwrap();
        assert_eq!((late.task, late.to_string().as_str()), (other, "task 2.8, started, by 165.0 s"));
        assert_eq!(Unended::default().latest(300 * S, 0), None);
    }

    #[test]
    fn a_store_tells_what_has_not_ended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("swarm.db");
        let path = path.to_str().unwrap();
        let mut conn = SqliteConnection::establish(path).unwrap();
        conn.batch_execute(crate::db::TABLES).unwrap();
        let mut spec = JobSpec::new("x");
        spec.lease_s = 15;
        let spec = serde_json::to_string(&spec).unwrap();
        conn.batch_execute(&format!(
            "PRAGMA foreign_keys = OFF;
             INSERT INTO jobs VALUES (1, 1, 1, NULL, '{spec}', '', '[]', 0, 9, 10, 0, 10, 0, 0, 5, NULL, 7, 0, 3, 4, 'k', x'00');
             INSERT INTO jobs VALUES (2, 1, 1, NULL, '{spec}', '', '[]', 0, 9, 4, 3, 0, 0, 0, 6, NULL, NULL, 0, 3, 4, 'l', x'00');
             INSERT INTO attempts VALUES (1, 0, 1, 8, 99, 6, 7, NULL, '', 1, 1, 0, 4, '[]');
             INSERT INTO attempts VALUES (2, 0, 1, 8, 55, 6, 7, NULL, '', 0, 1, 0, 4, '[]');
             INSERT INTO live_tasks VALUES (2, 0, 2, 0, 70, NULL, NULL, NULL, 1, 0);
             INSERT INTO live_tasks VALUES (2, 1, 1, 1, NULL, 8, 60, NULL, 0, 0);
             INSERT INTO live_tasks VALUES (2, 2, 1, 2, NULL, 8, 58, 59, 0, 0);"
        ))
        .unwrap();
        let found = unended(path).unwrap();
        let task = |task| TaskId { job: JobId(2), task };
        let expected = [
            (task(4), Standing::Waiting { from_us: 6 }),
            (task(0), Standing::Waiting { from_us: 70 }),
            (task(1), Standing::Assigned { at_us: 60 }),
            (task(2), Standing::Started { at_us: 59 }),
        ];
        assert_eq!(found.tasks, expected);
        assert_eq!(
            (found.leases_us, found.moved_us),
            ([(JobId(2), 15 * S)].into(), [(JobId(1), 7), (JobId(2), 60)].into())
        );
    }
}
