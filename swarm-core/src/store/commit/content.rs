//! What groups may read: blobs and images.

use diesel::prelude::*;
use swarm_protocol::{Digest, GroupId, Timestamp};

use super::super::connect::{Conn, both};
use super::super::schema::{blob_links, images};
use super::super::sqltypes::{Fault, int, json, micros};
use super::super::{Applied, NewImage};
use super::{Step, done_or_not_found};

/// Lets `group` read a blob; a link that exists stays as it is.
pub(super) fn link(
    conn: &mut Conn,
    group: GroupId,
    digest: &Digest,
    size_bytes: u64,
    at: Timestamp,
) -> Result<(), Fault> {
    let row = (
        blob_links::group_id.eq(int(group.0)),
        blob_links::digest.eq(digest.0.to_vec()),
        blob_links::size_bytes.eq(int(size_bytes)),
        blob_links::linked_at.eq(micros(at)),
    );
    both!(conn, c => diesel::insert_into(blob_links::table).values(row).on_conflict_do_nothing().execute(c))?;
    Ok(())
}

pub(super) fn tag(conn: &mut Conn, new: &NewImage) -> Step {
    let content = (
        images::config.eq(new.image.config.0.to_vec()),
        images::image.eq(json(&new.image)),
        images::platform.eq(&new.platform),
        images::pushed_at.eq(micros(new.pushed_at)),
    );
    let name = (images::group_id.eq(int(new.group.0)), images::name.eq(&new.name));
    let row = (name, content.clone());
    both!(conn, c => diesel::insert_into(images::table)
        .values(row)
        .on_conflict((images::group_id, images::name))
        .do_update()
        .set(content)
        .execute(c))?;
    link(conn, new.group, &new.image.config, new.image.config_bytes, new.pushed_at)?;
    for layer in &new.image.layers {
        link(conn, new.group, &layer.digest, layer.size_bytes, new.pushed_at)?;
    }
    Ok(Ok(Applied::Done))
}

pub(super) fn untag(conn: &mut Conn, group: GroupId, name: &str) -> Step {
    let rows = both!(conn, c => diesel::delete(images::table.find((int(group.0), name))).execute(c))?;
    done_or_not_found(rows, || format!("image `{name}`"))
}
