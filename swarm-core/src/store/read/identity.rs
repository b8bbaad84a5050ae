//! Accounts, tokens and workers as records.

use diesel::prelude::*;
use swarm_protocol::api::Role;
use swarm_protocol::{Digest, GroupId, Timestamp, UserId, WorkerId};
use uuid::Uuid;

use super::super::connect::{Conn, both};
use super::super::schema::{owner_groups, refresh_tokens, revoked_jwts, users, workers};
use super::super::sqltypes::{Fault, corrupt, digest, instant, maybe_instant, micros, number, uuid};
use super::super::{RefreshRecord, UserRecord, WorkerRecord};

#[derive(Queryable, Selectable)]
#[diesel(table_name = users)]
struct UserRow {
    id: i64,
    name: String,
    password_hash: String,
    role: String,
    group_id: i64,
    token_version: i64,
    failed_logins: i64,
    last_failed_at: Option<i64>,
    created_at: i64,
}

pub(in crate::store) fn user(conn: &mut Conn, name: &str) -> Result<Option<UserRecord>, Fault> {
    let row: Option<(UserRow, String)> = both!(conn, c => users::table
        .inner_join(owner_groups::table)
        .filter(users::name.eq(name))
        .select((UserRow::as_select(), owner_groups::name))
        .first(c)
        .optional())?;
    row.map(account).transpose()
}

pub(in crate::store) fn users(conn: &mut Conn) -> Result<Vec<UserRecord>, Fault> {
    let rows: Vec<(UserRow, String)> = both!(conn, c => users::table
        .inner_join(owner_groups::table)
        .order(users::id)
        .select((UserRow::as_select(), owner_groups::name))
        .load(c))?;
    rows.into_iter().map(account).collect()
}

fn account((row, group_name): (UserRow, String)) -> Result<UserRecord, Fault> {
    Ok(UserRecord {
        id: UserId(number(row.id, "users.id")?),
        name: row.name,
        password_hash: row.password_hash,
        role: Role::parse(&row.role).ok_or_else(|| corrupt("users.role"))?,
        group: GroupId(number(row.group_id, "users.group_id")?),
        group_name,
        token_version: number(row.token_version, "users.token_version")?,
        failed_logins: number(row.failed_logins, "users.failed_logins")?,
        last_failed_at: maybe_instant(row.last_failed_at, "users.last_failed_at")?,
        created_at: instant(row.created_at, "users.created_at")?,
    })
}

pub(in crate::store) fn refresh_token(conn: &mut Conn, hash: &Digest) -> Result<Option<RefreshRecord>, Fault> {
    let row: Option<(Vec<u8>, String, i64, bool, bool)> = both!(conn, c => refresh_tokens::table
        .inner_join(users::table)
        .filter(refresh_tokens::hash.eq(hash.0.to_vec()))
        .select((
            refresh_tokens::family,
            users::name,
            refresh_tokens::expires_at,
            refresh_tokens::used,
            refresh_tokens::revoked,
        ))
        .first(c)
        .optional())?;
    let Some((family, user_name, expires_at, used, revoked)) = row else { return Ok(None) };
    let family = uuid(&family, "refresh_tokens.family")?;
    let expires_at = instant(expires_at, "refresh_tokens.expires_at")?;
    Ok(Some(RefreshRecord { family, user_name, expires_at, used, revoked }))
}

pub(in crate::store) fn revoked_jwts(conn: &mut Conn, now: Timestamp) -> Result<Vec<(Uuid, Timestamp)>, Fault> {
    let rows: Vec<(Vec<u8>, i64)> = both!(conn, c => revoked_jwts::table
        .filter(revoked_jwts::expires_at.gt(micros(now)))
        .select((revoked_jwts::jti, revoked_jwts::expires_at))
        .load(c))?;
    let read =
        |(jti, at): (Vec<u8>, i64)| Ok((uuid(&jti, "revoked_jwts.jti")?, instant(at, "revoked_jwts.expires_at")?));
    rows.into_iter().map(read).collect()
}

pub(in crate::store) fn workers(conn: &mut Conn) -> Result<Vec<WorkerRecord>, Fault> {
    type Row = (i64, String, Vec<u8>, bool, bool, Option<String>, Option<String>);
    let rows: Vec<Row> = both!(conn, c => workers::table
        .order(workers::id)
        .select((
            workers::id,
            workers::name,
            workers::key_hash,
            workers::revoked,
            workers::draining,
            workers::facts,
            workers::labels,
        ))
        .load(c))?;
    let record = |(id, name, key, revoked, draining, facts, labels): Row| {
        let key = digest(&key, "workers.key_hash")?;
        // What another release wrote and this one cannot read is said anew at the next link.
        let facts = facts.and_then(|text| serde_json::from_str(&text).ok());
        let labels = labels.and_then(|text| serde_json::from_str(&text).ok());
        Ok(WorkerRecord { id: WorkerId(number(id, "workers.id")?), name, key, revoked, draining, facts, labels })
    };
    rows.into_iter().map(record).collect()
}
