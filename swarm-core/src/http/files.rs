//! Files that consumers upload as inputs.

use std::sync::Arc;

use rocket::data::Data;
use rocket::response::{Responder, Response};
use rocket::serde::json::Json;
use rocket::{State, head, post};
use swarm_protocol::Digest;
use swarm_protocol::api::FileView;

use super::guards::{Consumer, Headers, User, With, created, param};
use super::problem::{Answer, not_found};
use super::transfer::receive_blob;
use super::{ApiState, Uploads};
use crate::store::Transition;

#[post("/files", data = "<data>")]
pub(super) async fn upload(
    consumer: Consumer,
    headers: Headers,
    data: Data<'_>,
    state: &State<Arc<ApiState>>,
    uploads: &State<Uploads>,
) -> Answer<With<Json<FileView>>> {
    let info = receive_blob(state, &uploads.users, data, state.config.limits.upload_bytes, headers.expected?).await?;
    let (group, at) = (consumer.0.group, state.clock.now());
    let link = Transition::LinkBlob { group, digest: info.digest, size_bytes: info.size_bytes, at };
    state.commit(link).await?;
    Ok(created(FileView { digest: info.digest, size_bytes: info.size_bytes }))
}

/// A length without its bytes.
pub(super) struct Length(u64);

impl<'r> Responder<'r, 'static> for Length {
    fn respond_to(self, _: &'r rocket::Request<'_>) -> rocket::response::Result<'static> {
        let length = usize::try_from(self.0).map_err(|_| rocket::http::Status::InternalServerError)?;
        Response::build().sized_body(length, std::io::Cursor::new(Vec::new())).ok()
    }
}

#[head("/files/<digest>")]
pub(super) async fn head(user: User, digest: &str, state: &State<Arc<ApiState>>) -> Answer<Length> {
    let digest: Digest = param("digest", digest)?;
    let group = user.account.group;
    let linked = state.read(move |store| store.linked_blob(group, &digest)).await?;
    linked.map(Length).ok_or_else(|| not_found("file", digest))
}
