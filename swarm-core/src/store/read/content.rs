//! Blobs and images as records.

use diesel::prelude::*;
use swarm_protocol::{AttemptId, Digest, GroupId};

use super::super::ImageRecord;
use super::super::connect::{Conn, both};
use super::super::schema::{blob_links, images, sent_outputs};
use super::super::sqltypes::{Fault, digest, from_json, instant, int, number};

pub(in crate::store) fn linked_blob(conn: &mut Conn, group: GroupId, digest: &Digest) -> Result<Option<u64>, Fault> {
    let size: Option<i64> = both!(conn, c => blob_links::table
        .find((int(group.0), digest.0.to_vec()))
        .select(blob_links::size_bytes)
        .first(c)
        .optional())?;
    size.map(|size| number(size, "blob_links.size_bytes")).transpose()
}

pub(in crate::store) fn sent_outputs(conn: &mut Conn, attempt: AttemptId) -> Result<Vec<(Digest, u64)>, Fault> {
    let rows: Vec<(Vec<u8>, i64)> = both!(conn, c => sent_outputs::table
        .filter(sent_outputs::job_id.eq(int(attempt.job.0)))
        .filter(sent_outputs::task.eq(i64::from(attempt.task)))
        .filter(sent_outputs::attempt.eq(i32::from(attempt.attempt)))
        .select((sent_outputs::digest, sent_outputs::size_bytes))
        .load(c))?;
    let read = |(bytes, size): (Vec<u8>, i64)| {
        Ok((digest(&bytes, "sent_outputs.digest")?, number(size, "sent_outputs.size_bytes")?))
    };
    rows.into_iter().map(read).collect()
}

/// Name, image, platform, instant of the push.
type Row = (String, String, String, i64);

/// The columns of [`Row`].
const COLUMNS: (images::name, images::image, images::platform, images::pushed_at) =
    (images::name, images::image, images::platform, images::pushed_at);

/// By name, or by the config's digest, of whose names the first one is given.
pub(in crate::store) fn image(conn: &mut Conn, group: GroupId, reference: &str) -> Result<Option<ImageRecord>, Fault> {
    let of_group = images::table.filter(images::group_id.eq(int(group.0))).order(images::name).select(COLUMNS);
    let row: Option<Row> = match reference.parse::<Digest>() {
        Ok(digest) => both!(conn, c => of_group.filter(images::config.eq(digest.0.to_vec())).first(c).optional()),
        Err(_) => both!(conn, c => of_group.filter(images::name.eq(reference)).first(c).optional()),
    }?;
    row.map(record).transpose()
}

pub(in crate::store) fn images(conn: &mut Conn, group: GroupId) -> Result<Vec<ImageRecord>, Fault> {
    let rows: Vec<Row> = both!(conn, c => images::table
        .filter(images::group_id.eq(int(group.0)))
        .order(images::name)
        .select(COLUMNS)
        .load(c))?;
    rows.into_iter().map(record).collect()
}

fn record((name, image, platform, pushed_at): Row) -> Result<ImageRecord, Fault> {
    let image = from_json(&image, "images.image")?;
    Ok(ImageRecord { name, image, platform, pushed_at: instant(pushed_at, "images.pushed_at")? })
}
