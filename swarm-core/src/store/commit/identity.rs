//! Accounts, their tokens, and workers.

use diesel::prelude::*;
use swarm_protocol::labels::Labels;
use swarm_protocol::link::WorkerFacts;
use swarm_protocol::{Digest, GroupId, Timestamp, UserId, WorkerId};

use super::super::connect::{Conn, both};
use super::super::schema::{join_tokens, owner_groups, refresh_tokens, revoked_jwts, users, workers};
use super::super::sqltypes::{Fault, int, json, micros, number};
use super::super::{Applied, NewUser, Refusal};
use super::{ROWS_MAX, Step, conflict, done_or_not_found, next_number, stale};

pub(super) fn create_user(conn: &mut Conn, new: &NewUser) -> Step {
    let taken: i64 = both!(conn, c => users::table.filter(users::name.eq(&new.name)).count().get_result(c))?;
    if taken > 0 {
        return conflict(format!("a user named `{}` exists already", new.name));
    }
    let group = find_or_make_group(conn, &new.group, new.allow_root)?;
    let id = next_number(conn, "user")?;
    let row = (
        users::id.eq(id),
        users::name.eq(&new.name),
        users::password_hash.eq(&new.password_hash),
        users::role.eq(new.role.as_str()),
        users::group_id.eq(group),
        users::token_version.eq(0_i64),
        users::failed_logins.eq(0_i64),
        users::created_at.eq(micros(new.created_at)),
    );
    both!(conn, c => diesel::insert_into(users::table).values(row).execute(c))?;
    Ok(Ok(Applied::User(UserId(number(id, "users.id")?), GroupId(number(group, "owner_groups.id")?))))
}

fn find_or_make_group(conn: &mut Conn, name: &str, allow_root: bool) -> Result<i64, Fault> {
    let known: Option<i64> = both!(conn, c => owner_groups::table
        .filter(owner_groups::name.eq(name))
        .select(owner_groups::id)
        .first(c)
        .optional())?;
    if let Some(id) = known {
        return Ok(id);
    }
    let id = next_number(conn, "group")?;
    let row = (owner_groups::id.eq(id), owner_groups::name.eq(name), owner_groups::allow_root.eq(allow_root));
    both!(conn, c => diesel::insert_into(owner_groups::table).values(row).execute(c))?;
    Ok(id)
}

pub(super) fn allow_root(conn: &mut Conn, group: GroupId, allow_root: bool) -> Step {
    let rows = both!(conn, c => diesel::update(owner_groups::table.find(int(group.0)))
        .set(owner_groups::allow_root.eq(allow_root))
        .execute(c))?;
    done_or_not_found(rows, || format!("group {group}"))
}

pub(super) fn reset_user(conn: &mut Conn, user: UserId, password_hash: Option<&str>) -> Step {
    let account = users::table.find(int(user.0));
    let rows = both!(conn, c => diesel::update(account)
        .set(users::token_version.eq(users::token_version + 1))
        .execute(c))?;
    if let Some(hash) = password_hash {
        both!(conn, c => diesel::update(account)
            .set((users::password_hash.eq(hash), users::failed_logins.eq(0_i64), users::last_failed_at.eq(None::<i64>)))
            .execute(c))?;
    }
    // Otherwise an old refresh token would simply buy a JWT of the new version.
    both!(conn, c => diesel::update(refresh_tokens::table.filter(refresh_tokens::user_id.eq(int(user.0))))
        .set(refresh_tokens::revoked.eq(true))
        .execute(c))?;
    done_or_not_found(rows, || format!("user {user}"))
}

pub(super) fn note_login(conn: &mut Conn, user: UserId, failed: bool, at: Timestamp) -> Step {
    let account = users::table.find(int(user.0));
    let rows = if failed {
        both!(conn, c => diesel::update(account)
            .set((users::failed_logins.eq(users::failed_logins + 1), users::last_failed_at.eq(micros(at))))
            .execute(c))?
    } else {
        both!(conn, c => diesel::update(account)
            .set((users::failed_logins.eq(0_i64), users::last_failed_at.eq(None::<i64>)))
            .execute(c))?
    };
    done_or_not_found(rows, || format!("user {user}"))
}

pub(super) fn issue_refresh(
    conn: &mut Conn,
    hash: &Digest,
    family: uuid::Uuid,
    (user, token_version): (UserId, u32),
    expires_at: Timestamp,
    replaces: Option<&Digest>,
) -> Step {
    let known: i64 = both!(conn, c => users::table
        .find(int(user.0))
        .filter(users::token_version.eq(i64::from(token_version)))
        .count()
        .get_result(c))?;
    if known == 0 {
        return stale(format!("user {user} is gone or was reset"));
    }
    if let Some(earlier) = replaces {
        let guard = refresh_tokens::table
            .find(earlier.0.to_vec())
            .filter(refresh_tokens::family.eq(family.as_bytes().to_vec()))
            .filter(refresh_tokens::user_id.eq(int(user.0)))
            .filter(refresh_tokens::used.eq(false))
            .filter(refresh_tokens::revoked.eq(false));
        let rows = both!(conn, c => diesel::update(guard).set(refresh_tokens::used.eq(true)).execute(c))?;
        if rows == 0 {
            return stale("this refresh token was used or revoked already");
        }
    }
    let row = (
        refresh_tokens::hash.eq(hash.0.to_vec()),
        refresh_tokens::family.eq(family.as_bytes().to_vec()),
        refresh_tokens::user_id.eq(int(user.0)),
        refresh_tokens::expires_at.eq(micros(expires_at)),
        refresh_tokens::used.eq(false),
        refresh_tokens::revoked.eq(false),
    );
    both!(conn, c => diesel::insert_into(refresh_tokens::table).values(row).execute(c))?;
    Ok(Ok(Applied::Done))
}

pub(super) fn revoke_family(conn: &mut Conn, family: uuid::Uuid) -> Step {
    let tokens = refresh_tokens::table.filter(refresh_tokens::family.eq(family.as_bytes().to_vec()));
    let rows = both!(conn, c => diesel::update(tokens).set(refresh_tokens::revoked.eq(true)).execute(c))?;
    done_or_not_found(rows, || "this family of refresh tokens".to_owned())
}

pub(super) fn revoke_jwt(conn: &mut Conn, jti: uuid::Uuid, expires_at: Timestamp) -> Step {
    let row = (revoked_jwts::jti.eq(jti.as_bytes().to_vec()), revoked_jwts::expires_at.eq(micros(expires_at)));
    both!(conn, c => diesel::insert_into(revoked_jwts::table).values(row).on_conflict_do_nothing().execute(c))?;
    Ok(Ok(Applied::Done))
}

/// Removes up to `$rows_max` rows of a table whose key is `$key` and that expired before `$before`. The count.
macro_rules! purge {
    ($conn:expr, $table:ident, $key:ident, $before:expr, $rows_max:expr) => {{
        let old = $table::table.filter($table::expires_at.lt($before)).order($table::expires_at).limit($rows_max);
        let keys: Vec<Vec<u8>> = both!($conn, c => old.select($table::$key).load(c))?;
        for some in keys.chunks(ROWS_MAX) {
            both!($conn, c => diesel::delete($table::table.filter($table::$key.eq_any(some))).execute(c))?;
        }
        keys.len() as u64
    }};
}

pub(super) fn purge_expired(conn: &mut Conn, before: Timestamp, rows_max: u32) -> Step {
    let (before, rows_max) = (micros(before), i64::from(rows_max));
    let refresh = purge!(conn, refresh_tokens, hash, before, rows_max);
    let revoked = purge!(conn, revoked_jwts, jti, before, rows_max);
    let join = purge!(conn, join_tokens, hash, before, rows_max);
    Ok(Ok(Applied::Purged(refresh + revoked + join)))
}

pub(super) fn create_join_token(conn: &mut Conn, hash: &Digest, worker: &str, expires_at: Timestamp) -> Step {
    let row = (
        join_tokens::hash.eq(hash.0.to_vec()),
        join_tokens::worker.eq(worker),
        join_tokens::expires_at.eq(micros(expires_at)),
    );
    let made =
        both!(conn, c => diesel::insert_into(join_tokens::table).values(row).on_conflict_do_nothing().execute(c))?;
    if made == 0 { conflict("this join token exists already") } else { Ok(Ok(Applied::Done)) }
}

pub(super) fn join_worker(conn: &mut Conn, token: &Digest, worker: &str, key: &Digest, at: Timestamp) -> Step {
    let good = join_tokens::table
        .find(token.0.to_vec())
        .filter(join_tokens::worker.eq(worker))
        .filter(join_tokens::expires_at.gt(micros(at)))
        .filter(join_tokens::used_at.is_null());
    let known: i64 = both!(conn, c => good.clone().count().get_result(c))?;
    if known == 0 {
        return stale(format!("the join token is unknown, used, expired or not for `{worker}`"));
    }
    let verdict = add_worker(conn, worker, key, at)?;
    if verdict.is_ok() {
        both!(conn, c => diesel::update(good).set(join_tokens::used_at.eq(micros(at))).execute(c))?;
    }
    Ok(verdict)
}

fn add_worker(conn: &mut Conn, worker: &str, key: &Digest, at: Timestamp) -> Step {
    let namesake: Option<(i64, bool)> = both!(conn, c => workers::table
        .filter(workers::name.eq(worker))
        .select((workers::id, workers::revoked))
        .first(c)
        .optional())?;
    let key_of: Option<i64> = both!(conn, c => workers::table
        .filter(workers::key_hash.eq(key.0.to_vec()))
        .select(workers::id)
        .first(c)
        .optional())?;
    if let Some(refusal) = refuse_worker(worker, namesake, key_of) {
        return Ok(Err(refusal));
    }
    let id = if let Some((id, _)) = namesake {
        both!(conn, c => diesel::update(workers::table.find(id))
            .set(workers::key_hash.eq(key.0.to_vec()))
            .execute(c))?;
        id
    } else {
        let id = next_number(conn, "worker")?;
        let row = (
            workers::id.eq(id),
            workers::name.eq(worker),
            workers::key_hash.eq(key.0.to_vec()),
            workers::revoked.eq(false),
            workers::draining.eq(false),
            workers::created_at.eq(micros(at)),
        );
        both!(conn, c => diesel::insert_into(workers::table).values(row).execute(c))?;
        id
    };
    Ok(Ok(Applied::Worker(WorkerId(number(id, "workers.id")?))))
}

/// A key stands for one worker, and a revoked name stays revoked.
fn refuse_worker(name: &str, namesake: Option<(i64, bool)>, key_of: Option<i64>) -> Option<Refusal> {
    if let Some((id, true)) = namesake {
        return Some(Refusal::Conflict(format!("worker {id}, named `{name}`, was revoked: choose another name")));
    }
    match key_of {
        Some(other) if Some(other) != namesake.map(|(id, _)| id) => {
            Some(Refusal::Conflict(format!("the key of `{name}` belongs to worker {other}: draw another one")))
        }
        _ => None,
    }
}

pub(super) fn note_facts(conn: &mut Conn, worker: WorkerId, facts: &WorkerFacts) -> Step {
    let rows = both!(conn, c => diesel::update(workers::table.find(int(worker.0)))
        .set(workers::facts.eq(json(facts)))
        .execute(c))?;
    done_or_not_found(rows, || format!("worker {worker}"))
}

pub(super) fn note_labels(conn: &mut Conn, worker: WorkerId, labels: &Labels) -> Step {
    let rows = both!(conn, c => diesel::update(workers::table.find(int(worker.0)))
        .set(workers::labels.eq(json(labels)))
        .execute(c))?;
    done_or_not_found(rows, || format!("worker {worker}"))
}

pub(super) fn revoke_worker(conn: &mut Conn, worker: WorkerId) -> Step {
    let rows = both!(conn, c => diesel::update(workers::table.find(int(worker.0)))
        .set(workers::revoked.eq(true))
        .execute(c))?;
    done_or_not_found(rows, || format!("worker {worker}"))
}

pub(super) fn drain_worker(conn: &mut Conn, worker: WorkerId, draining: bool) -> Step {
    let rows = both!(conn, c => diesel::update(workers::table.find(int(worker.0)))
        .set(workers::draining.eq(draining))
        .execute(c))?;
    done_or_not_found(rows, || format!("worker {worker}"))
}
