//! Workers: who they are, how they come and go.

use std::collections::HashMap;
use std::sync::Arc;

use rocket::http::Status;
use rocket::response::status::NoContent;
use rocket::serde::json::Json;
use rocket::{State, delete, get, post};
use swarm_protocol::api::{JoinAnswer, JoinRequest, JoinToken, JoinTokenRequest, Page, WorkerView};
use swarm_protocol::{Epoch, WorkerId};

use super::guards::{Admin, Body, Client, Operator, User, With, created, param};
use super::openapi::TooManyRequests;
use super::problem::{Answer, not_found};
use super::{ApiState, ask, tell};
use crate::cache::{WorkerRow, WorkerState, WorkerTable};
use crate::messages::{DispatcherMsg, HarvesterMsg};
use crate::store::{Applied, Store, Transition, WorkerRecord};

/// The store knows every worker, the dispatcher those that are linked here, and the table what a core that followed this
/// one hears of them.
struct Known {
    heard: HashMap<WorkerId, WorkerView>,
    table: Option<WorkerTable>,
    epoch: Epoch,
}

impl Known {
    fn view(&mut self, record: WorkerRecord) -> WorkerView {
        let silent = WorkerView {
            id: record.id,
            name: record.name,
            state: WorkerState::Offline.as_str().to_owned(),
            facts: record.facts.unwrap_or_default(),
            labels: record.labels.unwrap_or_default(),
            live: 0,
            used_cpu_millis: 0,
            used_memory_bytes: 0,
            free_slots: None,
            load_millis: None,
            heard_at: None,
        };
        let mut view = self.heard.remove(&record.id).unwrap_or(silent);
        let is_here = view.state != WorkerState::Offline.as_str();
        if let Some(table) = self.table.as_ref().filter(|_| !is_here)
            && let Some(row) = table.workers.iter().find(|row| row.id == record.id)
        {
            // An earlier term's word tells when a worker was last heard, not how it stands.
            if table.epoch > self.epoch {
                take_over(&mut view, row);
            }
            view.heard_at = view.heard_at.max(row.heard_at());
        }
        if record.revoked {
            view.state = WorkerState::Revoked.as_str().to_owned();
        }
        view
    }
}

fn take_over(view: &mut WorkerView, row: &WorkerRow) {
    view.state = row.state.as_str().to_owned();
    (view.live, view.used_cpu_millis, view.used_memory_bytes) = (row.live, row.used_cpu_millis, row.used_memory_bytes);
    (view.free_slots, view.load_millis) = (row.free_slots, row.load_millis);
}

/// All workers, and how they stand
#[utoipa::path(
    tag = "workers",
    security(("account" = ["viewer"])),
    responses((status = 200, body = Page<WorkerView>, description = "Every worker")),
)]
#[get("/workers")]
pub(super) async fn list(_user: User, state: &State<Arc<ApiState>>) -> Answer<Json<Page<WorkerView>>> {
    let records = state.read(Store::workers).await?;
    let heard = state.ask(&state.handles.dispatcher, |reply| DispatcherMsg::Workers { reply }).await?;
    let heard = heard.into_iter().map(|view| (view.id, view)).collect();
    let mut known = Known { heard, table: state.cache.workers().await, epoch: state.epoch };
    Ok(Json(Page { items: records.into_iter().map(|record| known.view(record)).collect(), next: None }))
}

/// Makes a token with which one worker may join, once
#[utoipa::path(
    tag = "workers",
    request_body = JoinTokenRequest,
    security(("account" = ["admin"])),
    responses((status = 201, body = JoinToken, description = "The token; it is shown this once")),
)]
#[post("/workers/tokens", data = "<body>")]
pub(super) async fn create_token(
    admin: Admin,
    body: Body<JoinTokenRequest>,
    state: &State<Arc<ApiState>>,
) -> Answer<With<Json<JoinToken>>> {
    let identity = Arc::clone(&state.identity);
    let work = async move {
        let token = identity.join_token(body.value).await?;
        crate::audit!(user = admin.0.name, "`{}` made a join token for worker `{}`", admin.0.name, token.worker);
        Ok(created(token))
    };
    state.carry(work).await
}

/// Exchanges a join token for a worker's own key
#[utoipa::path(
    tag = "workers",
    request_body = JoinRequest,
    security(()),
    responses((status = 200, body = JoinAnswer, description = "The key; it is shown this once"), TooManyRequests),
)]
#[post("/workers/join", data = "<body>")]
pub(super) async fn join(
    client: Client,
    body: Body<JoinRequest>,
    state: &State<Arc<ApiState>>,
) -> Answer<With<Json<JoinAnswer>>> {
    let identity = Arc::clone(&state.identity);
    let joined = state.carry(async move { Ok(identity.join(client.0, body.value).await?) }).await?;
    Ok(rocket::response::status::Custom(Status::Ok, Json(joined.delivered())))
}

async fn existing(state: &ApiState, worker: &str) -> Answer<WorkerRecord> {
    let id: WorkerId = param("worker", worker)?;
    let records = state.read(Store::workers).await?;
    records.into_iter().find(|record| record.id == id).ok_or_else(|| not_found("worker", id))
}

/// Revokes a worker's key
///
/// Its link ends. What it runs goes on until its leases end.
#[utoipa::path(
    tag = "workers",
    security(("account" = ["admin"])),
    responses((status = 204, description = "The key is worthless")),
)]
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

async fn set_draining(state: &ApiState, by: String, worker: &str, draining: bool) -> Answer<NoContent> {
    let WorkerRecord { id: worker, name, .. } = existing(state, worker).await?;
    let notice = move |_: &Applied| {
        let verb = if draining { "drains" } else { "resumes" };
        crate::audit!(user = by, "`{by}` {verb} worker `{name}`");
        DispatcherMsg::Drain { worker, draining }
    };
    let drain = Transition::DrainWorker { worker, draining };
    state.commit_and_tell(drain, &state.handles.dispatcher, notice).await??;
    Ok(NoContent)
}

/// Sends a worker no further tasks
///
/// Those that it has go on.
#[utoipa::path(
    tag = "workers",
    security(("account" = ["operator"])),
    responses((status = 204, description = "It drains")),
)]
#[post("/workers/<worker>/drain")]
pub(super) async fn drain(operator: Operator, worker: &str, state: &State<Arc<ApiState>>) -> Answer<NoContent> {
    set_draining(state, operator.0.name.clone(), worker, true).await
}

/// Lets a worker have tasks again
#[utoipa::path(
    tag = "workers",
    security(("account" = ["operator"])),
    responses((status = 204, description = "It may have tasks")),
)]
#[post("/workers/<worker>/resume")]
pub(super) async fn resume(operator: Operator, worker: &str, state: &State<Arc<ApiState>>) -> Answer<NoContent> {
    set_draining(state, operator.0.name.clone(), worker, false).await
}

/// Gives up all attempts of a worker
///
/// They are tried again elsewhere as their jobs allow, although the worker may still be running them: doubling is possible.
#[utoipa::path(
    tag = "workers",
    security(("account" = ["operator"])),
    responses((status = 204, description = "They are given up")),
)]
#[post("/workers/<worker>/declare-lost")]
pub(super) async fn declare_lost(operator: Operator, worker: &str, state: &State<Arc<ApiState>>) -> Answer<NoContent> {
    let WorkerRecord { id: worker, name, .. } = existing(state, worker).await?;
    let harvester = state.handles.harvester.clone();
    let work = async move {
        let ended = ask(&harvester, |reply| HarvesterMsg::DeclareLost { worker, reply }).await?;
        let by = &operator.0.name;
        crate::audit!(user = by, attempts = ended, "`{by}` declared worker `{name}` lost; {ended} attempts ended");
        Ok(NoContent)
    };
    state.carry(work).await
}

#[cfg(test)]
mod tests {
    use swarm_protocol::Digest;

    use super::*;
    use crate::testing::at;

    fn record(id: u64, revoked: bool) -> WorkerRecord {
        let name = format!("w{id}");
        WorkerRecord {
            id: WorkerId(id),
            name,
            revoked,
            draining: false,
            key: Digest::of(b""),
            facts: None,
            labels: None,
        }
    }

    fn row(id: u64) -> WorkerRow {
        WorkerRow {
            id: WorkerId(id),
            state: WorkerState::Suspect,
            live: 3,
            used_cpu_millis: 4,
            used_memory_bytes: 5,
            free_slots: Some(6),
            load_millis: Some(7),
            heard_at_us: Some(at(8).timestamp_micros()),
        }
    }

    #[test]
    fn of_what_is_not_linked_here_the_core_of_a_later_term_knows_more() {
        let table = |epoch| Some(WorkerTable { epoch: Epoch(epoch), workers: vec![row(1), row(2)] });
        let seen = |epoch, revoked| {
            let mut known = Known { heard: HashMap::new(), table: table(epoch), epoch: Epoch(5) };
            let view = known.view(record(1, revoked));
            (view.state, view.live, view.free_slots, view.heard_at)
        };
        assert_eq!(seen(6, false), ("suspect".into(), 3, Some(6), Some(at(8))));
        assert_eq!(seen(6, true).0, "revoked", "the store has the last word");
        assert_eq!(seen(5, false), ("offline".into(), 0, None, Some(at(8))));
        let mut here = Known { heard: HashMap::new(), table: None, epoch: Epoch(5) }.view(record(1, false));
        here.state = "ready".to_owned();
        let heard = HashMap::from([(WorkerId(1), here.clone())]);
        assert_eq!(Known { heard, table: table(6), epoch: Epoch(5) }.view(record(1, false)), here);
    }
}
