//! Applies a batch of transitions inside the ledger's transaction. A refused one changes nothing and the rest goes on;
//! an error of the database ends the whole transaction.
//!
//! The epoch row is locked first, and only its holder writes, so what is read here cannot change before the commit:
//! guards may be read and then acted on. Unique indexes and checks stand behind them.

mod attempts;
mod content;
mod identity;
mod jobs;
mod outputs;
mod schedules;

use diesel::prelude::*;
use swarm_protocol::Epoch;

use super::connect::{Conn, both};
use super::schema::{counters, epoch as epochs, last_batch};
use super::sqltypes::{Fault, int, number};
use super::{Applied, Refusal, StoreError, Transition, Verdict};

/// What one transition came to.
type Step = Result<Verdict, Fault>;

/// Rows per multi-row statement: below SQLite's 32,766 and Postgres's 65,535 binds at the widest table.
const ROWS_MAX: usize = 1000;

/// Locks the epoch row and checks that the epoch is ours. The lock makes a take-over wait for this transaction.
pub(super) fn fence(conn: &mut Conn, ours: Epoch) -> Result<(), StoreError> {
    let query = epochs::table.select(epochs::current);
    let current: i64 = both!(conn, p => query.for_share().first(p), s => query.first(s)).map_err(Fault::from)?;
    let theirs = Epoch(number(current, "epoch.current")?);
    if theirs == ours { Ok(()) } else { Err(StoreError::Deposed { ours, theirs }) }
}

/// The whole of one batch but for BEGIN and COMMIT.
pub(super) fn batch(
    conn: &mut Conn,
    epoch: Epoch,
    number: u64,
    transitions: &[Transition],
) -> Result<Vec<Verdict>, StoreError> {
    fence(conn, epoch)?;
    let mut verdicts = Vec::with_capacity(transitions.len());
    for transition in transitions {
        verdicts.push(apply(conn, transition)?);
    }
    both!(conn, c => diesel::update(last_batch::table)
        .set((last_batch::epoch.eq(int(epoch.0)), last_batch::number.eq(int(number))))
        .execute(c))
    .map_err(Fault::from)?;
    Ok(verdicts)
}

fn apply(conn: &mut Conn, transition: &Transition) -> Step {
    match transition {
        Transition::CreateJob(new) => jobs::create(conn, new),
        Transition::Cancel { job, at } => jobs::cancel(conn, *job, *at),
        Transition::Assign { job, work, worker, at } => attempts::assign(conn, *job, work, *worker, *at),
        Transition::Start { attempt, worker, started_at } => attempts::start(conn, *attempt, *worker, *started_at),
        Transition::Recall { attempt, worker, at } => attempts::recall(conn, *attempt, *worker, *at),
        Transition::End(end) => attempts::end(conn, end),
        Transition::SendOutput { attempt, worker, digest, size_bytes } => {
            outputs::send(conn, *attempt, *worker, digest, *size_bytes)
        }
        Transition::Superseded { attempt, worker, outcome, at } => {
            attempts::superseded(conn, *attempt, *worker, outcome, *at)
        }
        Transition::CreateSchedule(new) => schedules::create(conn, new),
        Transition::PauseSchedule { schedule, paused, at } => schedules::pause(conn, *schedule, *paused, *at),
        Transition::DeleteSchedule { schedule } => schedules::delete(conn, *schedule),
        Transition::MissLaunches { schedule, missed, until } => schedules::miss(conn, *schedule, *missed, *until),
        Transition::LinkBlob { group, digest, size_bytes, at } => {
            content::link(conn, *group, digest, *size_bytes, *at).map(|()| Ok(Applied::Done))
        }
        Transition::TagImage(new) => content::tag(conn, new),
        Transition::UntagImage { group, name } => content::untag(conn, *group, name),
        Transition::CreateUser(new) => identity::create_user(conn, new),
        Transition::ResetUser { user, password_hash } => identity::reset_user(conn, *user, password_hash.as_deref()),
        Transition::AllowRoot { group, allow_root } => identity::allow_root(conn, *group, *allow_root),
        Transition::NoteLogin { user, failed, at } => identity::note_login(conn, *user, *failed, *at),
        Transition::IssueRefresh { hash, family, user, token_version, expires_at, replaces } => {
            identity::issue_refresh(conn, hash, *family, (*user, *token_version), *expires_at, replaces.as_ref())
        }
        Transition::RevokeFamily { family } => identity::revoke_family(conn, *family),
        Transition::RevokeJwt { jti, expires_at } => identity::revoke_jwt(conn, *jti, *expires_at),
        Transition::PurgeExpired { before, rows_max } => identity::purge_expired(conn, *before, *rows_max),
        Transition::CreateJoinToken { hash, worker, expires_at } => {
            identity::create_join_token(conn, hash, worker, *expires_at)
        }
        Transition::JoinWorker { token, worker, key, at } => identity::join_worker(conn, token, worker, key, *at),
        Transition::NoteFacts { worker, facts } => identity::note_facts(conn, *worker, facts),
        Transition::NoteLabels { worker, labels } => identity::note_labels(conn, *worker, labels),
        Transition::RevokeWorker { worker } => identity::revoke_worker(conn, *worker),
        Transition::DrainWorker { worker, draining } => identity::drain_worker(conn, *worker, *draining),
    }
}

/// The next number of `name`, a row of `counters`; never handed out again.
fn next_number(conn: &mut Conn, name: &str) -> Result<i64, Fault> {
    Ok(both!(conn, c => diesel::update(counters::table.find(name))
        .set(counters::value.eq(counters::value + 1))
        .returning(counters::value)
        .get_result(c))?)
}

fn stale(why: impl Into<String>) -> Step {
    Ok(Err(Refusal::Stale(why.into())))
}

fn not_found(what: impl Into<String>) -> Step {
    Ok(Err(Refusal::NotFound(what.into())))
}

fn conflict(why: impl Into<String>) -> Step {
    Ok(Err(Refusal::Conflict(why.into())))
}

/// Done if a row was changed, else there is no such thing.
fn done_or_not_found(rows: usize, what: impl FnOnce() -> String) -> Step {
    if rows == 0 { not_found(what()) } else { Ok(Ok(Applied::Done)) }
}
