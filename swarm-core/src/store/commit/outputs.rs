//! What live attempts have sent.

use diesel::dsl::count_star;
use diesel::prelude::*;
use swarm_protocol::{AttemptId, Digest, WorkerId};

use super::super::connect::{Conn, both};
use super::super::schema::sent_outputs;
use super::super::sqltypes::{Fault, int};
use super::super::{Applied, SENT_MAX};
use super::{Step, attempts, conflict, stale};

pub(super) fn send(conn: &mut Conn, attempt: AttemptId, worker: WorkerId, digest: &Digest, size_bytes: u64) -> Step {
    if attempts::held(conn, attempt, worker)?.is_none() {
        return stale(format!("attempt {attempt} is not on worker {worker}"));
    }
    let (job, task, number) = (int(attempt.job.0), i64::from(attempt.task), i32::from(attempt.attempt));
    let of_attempt = sent_outputs::table
        .filter(sent_outputs::job_id.eq(job))
        .filter(sent_outputs::task.eq(task))
        .filter(sent_outputs::attempt.eq(number));
    let others = of_attempt.filter(sent_outputs::digest.ne(digest.0.to_vec())).select(count_star());
    let others: i64 = both!(conn, c => others.first(c))?;
    if others >= int(SENT_MAX) {
        return conflict(format!("attempt {attempt} has sent {others} outputs already"));
    }
    let row = (
        sent_outputs::job_id.eq(job),
        sent_outputs::task.eq(task),
        sent_outputs::attempt.eq(number),
        sent_outputs::digest.eq(digest.0.to_vec()),
        sent_outputs::size_bytes.eq(int(size_bytes)),
    );
    both!(conn, c => diesel::insert_into(sent_outputs::table).values(row).on_conflict_do_nothing().execute(c))?;
    Ok(Ok(Applied::Done))
}

/// The attempt is over: whatever counts of what it sent is in its record.
pub(super) fn forget(conn: &mut Conn, attempt: AttemptId) -> Result<(), Fault> {
    let of_attempt = sent_outputs::table
        .filter(sent_outputs::job_id.eq(int(attempt.job.0)))
        .filter(sent_outputs::task.eq(i64::from(attempt.task)))
        .filter(sent_outputs::attempt.eq(i32::from(attempt.attempt)));
    both!(conn, c => diesel::delete(of_attempt).execute(c))?;
    Ok(())
}
