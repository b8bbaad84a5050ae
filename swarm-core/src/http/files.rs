//! Files that consumers upload as inputs.

use std::sync::Arc;

use rocket::data::Data;
use rocket::response::{Responder, Response};
use rocket::serde::json::Json;
use rocket::{State, get, head, post};
use swarm_protocol::Digest;
use swarm_protocol::api::{FileView, UploadView};

use super::guards::{Consumer, Headers, User, With, created, param};
use super::openapi::StandsElsewhere;
use super::parked::Sender;
use super::problem::{Answer, not_found};
use super::transfer::{Incoming, stage_blob};
use super::{ApiState, Uploads};
use crate::store::Transition;
use swarm_host::blocking;

/// Uploads a file, for jobs to take in
///
/// A file that is there already is uploaded all the same: that it is there is nobody else's business.
#[utoipa::path(
    tag = "files",
    request_body(content = Vec<u8>, content_type = "application/octet-stream", description = "The bytes"),
    security(("account" = ["consumer"])),
    params(
        ("Digest-Expected" = Option<Digest>, Header, description = "What the whole must have; anything else is refused"),
        ("Upload-Offset" = Option<u64>, Header, description = "From which byte an upload that broke off goes on"),
    ),
    responses((status = 201, body = FileView, description = "It is kept"), StandsElsewhere),
)]
#[post("/files", data = "<data>")]
pub(super) async fn upload(
    consumer: Consumer,
    headers: Headers,
    data: Data<'_>,
    state: &State<Arc<ApiState>>,
    uploads: &State<Uploads>,
) -> Answer<With<Json<FileView>>> {
    let incoming = Incoming {
        data,
        bytes_max: state.config.limits.upload_bytes,
        expected: headers.expected?,
        offset: headers.offset?,
        sender: Sender::User(consumer.0.id),
    };
    let turn = uploads.users.take(consumer.0.id).await?;
    let staged = stage_blob(state, turn, &uploads.parked, incoming).await?;
    let info = blocking::run(move || staged.publish()).await?;
    let (group, at) = (consumer.0.group, state.clock.now());
    let link = Transition::LinkBlob { group, digest: info.digest, size_bytes: info.size_bytes, at };
    state.commit(link).await??;
    Ok(created(FileView { digest: info.digest, size_bytes: info.size_bytes }))
}

/// How much of an upload that broke off is there
///
/// It goes on from that byte with `Upload-Offset`.
#[utoipa::path(
    tag = "files",
    security(("account" = ["consumer"])),
    responses((status = 200, body = UploadView, description = "0 when nothing is there")),
)]
#[get("/files/<digest>/upload")]
pub(super) async fn offset(consumer: Consumer, digest: &str, uploads: &State<Uploads>) -> Answer<Json<UploadView>> {
    let key = (Sender::User(consumer.0.id), param("digest", digest)?);
    Ok(Json(UploadView { offset: uploads.parked.settled_offset(&key).await }))
}

/// A length without its bytes.
pub(super) struct Length(u64);

impl<'r> Responder<'r, 'static> for Length {
    fn respond_to(self, _: &'r rocket::Request<'_>) -> rocket::response::Result<'static> {
        let length = usize::try_from(self.0).map_err(|_| rocket::http::Status::InternalServerError)?;
        Response::build().sized_body(length, std::io::Cursor::new(Vec::new())).ok()
    }
}

/// Whether the group has a file, and its length
#[utoipa::path(
    tag = "files",
    security(("account" = ["viewer"])),
    responses((status = 200, description = "Content-Length is the file's")),
)]
#[head("/files/<digest>")]
pub(super) async fn head(user: User, digest: &str, state: &State<Arc<ApiState>>) -> Answer<Length> {
    let digest: Digest = param("digest", digest)?;
    let group = user.account.group;
    let linked = state.read(move |store| store.linked_blob(group, &digest)).await?;
    linked.map(Length).ok_or_else(|| not_found("file", digest))
}
