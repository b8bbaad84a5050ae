//! Workers: who they are, how they come and go.

use std::collections::HashMap;
use std::sync::Arc;

use rocket::http::Status;
use rocket::response::status::NoContent;
use rocket::serde::json::Json;
use rocket::{State, delete, get, post};
use swarm_protocol::WorkerId;
use swarm_protocol::api::{JoinAnswer, JoinRequest, JoinToken, JoinTokenRequest, Page, WorkerView};
use swarm_protocol::link::WorkerFacts;

use super::guards::{Admin, Body, Client, Operator, User, With, created, param};
use super::problem::{Answer, not_found};
use super::{ApiState, tell};
use crate::messages::{DispatcherMsg, HarvesterMsg};
use crate::store::{Applied, Store, Transition, WorkerRecord};

/// The store knows every worker, the dispatcher those it has heard of.
fn merge(records: Vec<WorkerRecord>, heard: Vec<WorkerView>) -> Vec<WorkerView> {
    let mut heard: HashMap<WorkerId, WorkerView> = heard.into_iter().map(|view| (view.id, view)).collect();
    let view = |record: WorkerRecord| {
        let silent = || WorkerView {
            id: record.id,
            name: record.name.clone(),
            state: "offline".to_owned(),
            facts: WorkerFacts::default(),
            labels: record.labels.clone().unwrap_or_default(),
            live: 0,
            used_cpu_millis: 0,
            used_memory_bytes: 0,
            heard_at: None,
        };
        let mut view = heard.remove(&record.id).unwrap_or_else(silent);
        if record.revoked {
            view.state = "revoked".to_owned();
        }
        view
    };
    records.into_iter().map(view).collect()
}

#[get("/workers")]
pub(super) async fn list(_user: User, state: &State<Arc<ApiState>>) -> Answer<Json<Page<WorkerView>>> {
    let records = state.read(Store::workers).await?;
    let heard = state.ask(&state.handles.dispatcher, |reply| DispatcherMsg::Workers { reply }).await?;
    Ok(Json(Page { items: merge(records, heard), next: None }))
}

#[post("/workers/tokens", data = "<body>")]
pub(super) async fn create_token(
    admin: Admin,
    body: Body<JoinTokenRequest>,
    state: &State<Arc<ApiState>>,
) -> Answer<With<Json<JoinToken>>> {
    let identity = Arc::clone(&state.identity);
    let token = state.carry(async move { Ok(identity.join_token(body.value).await?) }).await?;
    crate::audit!(user = admin.0.name, "`{}` made a join token for worker `{}`", admin.0.name, token.worker);
    Ok(created(token))
}

#[post("/workers/join", data = "<body>")]
pub(super) async fn join(
    client: Client,
    body: Body<JoinRequest>,
    state: &State<Arc<ApiState>>,
) -> Answer<With<Json<JoinAnswer>>> {
    let identity = Arc::clone(&state.identity);
    let answer = state.carry(async move { Ok(identity.join(client.0, body.value).await?) }).await?;
    Ok(rocket::response::status::Custom(Status::Ok, Json(answer)))
}

async fn existing(state: &ApiState, worker: &str) -> Answer<WorkerRecord> {
    let id: WorkerId = param("worker", worker)?;
    let records = state.read(Store::workers).await?;
    records.into_iter().find(|record| record.id == id).ok_or_else(|| not_found("worker", id))
}

#[delete("/workers/<worker>")]
pub(super) async fn revoke(admin: Admin, worker: &str, state: &State<Arc<ApiState>>) -> Answer<NoContent> {
    let record = existing(state, worker).await?;
    let (identity, dispatcher) = (Arc::clone(&state.identity), state.handles.dispatcher.clone());
    let work = async move {
        identity.revoke_worker(record.id).await?;
        tell(&dispatcher, DispatcherMsg::Revoked(record.id)).await?;
        crate::audit!(user = admin.0.name, "`{}` revoked the key of worker `{}`", admin.0.name, record.name);
        Ok(NoContent)
    };
    state.carry(work).await
}

async fn set_draining(state: &ApiState, by: &str, worker: &str, draining: bool) -> Answer<NoContent> {
    let record = existing(state, worker).await?;
    let worker = record.id;
    let notice = move |_: &Applied| DispatcherMsg::Drain { worker, draining };
    let drain = Transition::DrainWorker { worker, draining };
    state.commit_and_tell(drain, &state.handles.dispatcher, notice).await??;
    let verb = if draining { "drains" } else { "resumes" };
    crate::audit!(user = by, "`{by}` {verb} worker `{}`", record.name);
    Ok(NoContent)
}

#[post("/workers/<worker>/drain")]
pub(super) async fn drain(operator: Operator, worker: &str, state: &State<Arc<ApiState>>) -> Answer<NoContent> {
    set_draining(state, &operator.0.name, worker, true).await
}

#[post("/workers/<worker>/resume")]
pub(super) async fn resume(operator: Operator, worker: &str, state: &State<Arc<ApiState>>) -> Answer<NoContent> {
    set_draining(state, &operator.0.name, worker, false).await
}

#[post("/workers/<worker>/declare-lost")]
pub(super) async fn declare_lost(operator: Operator, worker: &str, state: &State<Arc<ApiState>>) -> Answer<NoContent> {
    let record = existing(state, worker).await?;
    let worker = record.id;
    let ended = state.ask(&state.handles.harvester, |reply| HarvesterMsg::DeclareLost { worker, reply }).await?;
    let (by, name) = (&operator.0.name, &record.name);
    crate::audit!(user = by, attempts = ended, "`{by}` declared worker `{name}` lost; {ended} attempts ended");
    Ok(NoContent)
}
