//! What a worker may fetch and send: only for attempts that are its own at this moment.

use std::sync::Arc;

use rocket::data::Data;
use rocket::serde::json::Json;
use rocket::{State, get, post};
use swarm_protocol::api::{FileView, UploadView};
use swarm_protocol::{AttemptId, Digest, WorkerId};

use super::guards::{Headers, With, Worker, created, param};
use super::openapi::{Conflict, OutOfRange, StandsElsewhere};
use super::parked::Sender;
use super::problem::{Answer, conflict, not_found};
use super::transfer::{Download, Incoming, send_blob, stage_blob};
use super::{ApiState, Uploads};
use crate::blobs::BlobInfo;
use crate::store::{JobRecord, LivePhase, LiveTask, Refusal, SENT_MAX, Transition};
use swarm_host::blocking;

fn attempt(job: &str, task: &str, attempt: &str) -> Answer<AttemptId> {
    Ok(AttemptId { job: param("job", job)?, task: param("task", task)?, attempt: param("attempt", attempt)? })
}

/// Whether the live row says that this attempt is on that worker now.
fn is_held(live: &LiveTask, attempt: AttemptId, by: WorkerId) -> bool {
    let on = match live.phase {
        LivePhase::Waiting { .. } => None,
        LivePhase::Assigned { worker, .. } | LivePhase::Started { worker, .. } => Some(worker),
    };
    live.attempt == attempt.attempt && on == Some(by)
}

/// Whether the job's tasks need this blob.
fn names_blob(job: &JobRecord, digest: &Digest) -> bool {
    let image = &job.image;
    image.config == *digest
        || image.layers.iter().any(|layer| layer.digest == *digest)
        || job.spec.inputs.iter().any(|input| input.digest == *digest)
}

/// Refuses any attempt that is not this worker's, in one way for all reasons.
async fn held(state: &ApiState, worker: &Worker, attempt: AttemptId) -> Answer<()> {
    let live = state.read(move |store| store.live_task(attempt.task_id())).await?;
    let held = live.is_some_and(|live| is_held(&live, attempt, worker.0.id));
    if held { Ok(()) } else { Err(not_found("attempt", attempt)) }
}

/// What is left of the bytes that all outputs of an attempt may have, unless it has sent too many already. One that is
/// sent again counts once.
async fn room(state: &ApiState, attempt: AttemptId, again: Option<&Digest>) -> Answer<u64> {
    let sent = state.read(move |store| store.sent_outputs(attempt)).await?;
    let others = || sent.iter().filter(|(digest, _)| Some(digest) != again).map(|(_, size_bytes)| size_bytes);
    if others().count() >= SENT_MAX {
        let detail = format!("attempt {attempt} has sent {SENT_MAX} outputs already");
        return Err(conflict("outputs", detail, "have fewer outputs, or one archive of many files"));
    }
    Ok(state.config.limits.output_bytes.saturating_sub(others().sum()))
}

/// A blob that an attempt needs
#[utoipa::path(
    tag = "link",
    security(("worker" = [])),
    params(("Range" = Option<String>, Header, description = "`bytes=FIRST-`: from there on; anything else gets the whole")),
    responses(
        (status = 200, body = Vec<u8>, content_type = "application/octet-stream", description = "The whole"),
        (status = 206, body = Vec<u8>, content_type = "application/octet-stream", description = "The range"),
        OutOfRange,
    ),
)]
#[get("/link/attempts/<job>/<task>/<attempt_no>/blobs/<digest>")]
pub(super) async fn blob(
    worker: Worker,
    job: &str,
    task: &str,
    attempt_no: &str,
    digest: &str,
    headers: Headers,
    state: &State<Arc<ApiState>>,
) -> Answer<Download> {
    let id = attempt(job, task, attempt_no)?;
    let digest: Digest = param("digest", digest)?;
    held(state, &worker, id).await?;
    let job = state.read(move |store| store.job(id.job)).await?;
    if !job.is_some_and(|job| names_blob(&job, &digest)) {
        return Err(not_found("blob", format!("{digest} in attempt {id}")));
    }
    send_blob(state, digest, headers.range.as_deref()).await
}

/// Sends an output of an attempt
#[utoipa::path(
    tag = "link",
    request_body(content = Vec<u8>, content_type = "application/octet-stream", description = "The bytes"),
    security(("worker" = [])),
    params(
        ("Digest-Expected" = Option<Digest>, Header, description = "What the whole must have; anything else is refused"),
        ("Upload-Offset" = Option<u64>, Header, description = "From which byte an upload that broke off goes on"),
    ),
    responses((status = 201, body = FileView, description = "It is kept"), Conflict, StandsElsewhere),
)]
#[post("/link/attempts/<job>/<task>/<attempt_no>/outputs", data = "<data>")]
#[expect(clippy::too_many_arguments, reason = "three of them are the parts of one id in the path")]
pub(super) async fn output(
    worker: Worker,
    job: &str,
    task: &str,
    attempt_no: &str,
    headers: Headers,
    data: Data<'_>,
    state: &State<Arc<ApiState>>,
    uploads: &State<Uploads>,
) -> Answer<With<Json<FileView>>> {
    let id = attempt(job, task, attempt_no)?;
    held(state, &worker, id).await?;
    let (expected, turn) = (headers.expected?, uploads.workers.take(id).await?);
    let bytes_max = room(state, id, expected.as_ref()).await?;
    let sender = Sender::Worker(worker.0.id, id);
    let incoming = Incoming { data, bytes_max, expected, offset: headers.offset?, sender };
    let staged = stage_blob(state, turn.clone(), &uploads.parked, incoming).await?;
    let BlobInfo { digest, size_bytes } = staged.info();
    let send = Transition::SendOutput { attempt: id, worker: worker.0.id, digest, size_bytes };
    let noted = state.handles.ledger.commit(send).await?;
    // What is refused is dropped unpublished, where it may block: in the store it would stay, and be counted nowhere.
    match blocking::run(move || noted.map(|_| staged.publish())).await {
        Ok(published) => Ok(created(FileView { digest, size_bytes: published?.size_bytes })),
        Err(Refusal::Stale(_)) => Err(not_found("attempt", id)),
        Err(refusal) => Err(refusal.into()),
    }
}

/// How much of an output whose upload broke off is there
#[utoipa::path(
    tag = "link",
    security(("worker" = [])),
    responses((status = 200, body = UploadView, description = "0 when nothing is there")),
)]
#[get("/link/attempts/<job>/<task>/<attempt_no>/outputs/<digest>")]
pub(super) async fn output_offset(
    worker: Worker,
    job: &str,
    task: &str,
    attempt_no: &str,
    digest: &str,
    uploads: &State<Uploads>,
) -> Answer<Json<UploadView>> {
    let key = (Sender::Worker(worker.0.id, attempt(job, task, attempt_no)?), param("digest", digest)?);
    Ok(Json(UploadView { offset: uploads.parked.settled_offset(&key).await }))
}
