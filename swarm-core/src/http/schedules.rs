//! Schedules: jobs that are made again and again.

use std::sync::Arc;

use rocket::response::status::NoContent;
use rocket::serde::json::Json;
use rocket::{State, delete, get, post};
use swarm_protocol::ScheduleId;
use swarm_protocol::api::{LaunchView, Page, Role, ScheduleRequest, ScheduleView, Submitted};
use swarm_protocol::problem::{FieldError, Problem};
use swarm_protocol::validate::{NAME_HINT, is_name};

use super::ApiState;
use super::guards::{Body, Consumer, User, With, created, param};
use super::openapi::Conflict;
use super::problem::{Answer, conflict, invalid, not_found};
use super::submit::{prepare, submit};
use crate::identity::Account;
use crate::messages::HibernatorMsg;
use crate::plan::cron::{CronError, CronRule};
use crate::store::{Applied, NewSchedule, Refusal, ScheduleRecord, Transition};

/// Instants shown ahead.
const NEXT_SHOWN: usize = 5;

fn view(state: &ApiState, record: &ScheduleRecord) -> ScheduleView {
    let mut next = Vec::new();
    if let (false, Ok(rule)) = (record.paused, CronRule::parse(&record.cron, &record.zone)) {
        let after = Some(state.clock.now());
        next = std::iter::successors(after, |at| rule.next_after(*at)).skip(1).take(NEXT_SHOWN).collect();
    }
    ScheduleView {
        id: record.id,
        name: record.name.clone(),
        cron: record.cron.clone(),
        zone: record.zone.clone(),
        paused: record.paused,
        owner: record.owner_name.clone(),
        next,
        last: record.last.map(|(nominal_at, job)| LaunchView { nominal_at, job }),
        missed: record.missed,
        spec: record.job.spec.clone(),
    }
}

async fn visible(state: &ApiState, account: &Account, schedule: &str) -> Answer<ScheduleRecord> {
    let id: ScheduleId = param("schedule", schedule)?;
    let (group, all) = (account.group, account.role >= Role::Operator);
    let record = state.read(move |store| store.schedule(id)).await?;
    record.filter(|record| all || record.group == group).ok_or_else(|| not_found("schedule", id))
}

/// The group's schedules
#[utoipa::path(
    tag = "schedules",
    security(("account" = ["viewer"])),
    responses((status = 200, body = Page<ScheduleView>, description = "Every schedule")),
)]
#[get("/schedules")]
pub(super) async fn list(user: User, state: &State<Arc<ApiState>>) -> Answer<Json<Page<ScheduleView>>> {
    let group = (user.account.role < Role::Operator).then_some(user.account.group);
    let records = state.read(move |store| store.schedules(group)).await?;
    Ok(Json(Page { items: records.iter().map(|record| view(state, record)).collect(), next: None }))
}

fn cron_fault(error: CronError) -> FieldError {
    let field = match error.field {
        "zone" => "zone".to_owned(),
        "text" => "cron".to_owned(),
        part => format!("cron.{part}"),
    };
    FieldError::new(field, error.problem, error.hint)
}

/// Makes a schedule
#[utoipa::path(
    tag = "schedules",
    request_body = ScheduleRequest,
    security(("account" = ["consumer"])),
    responses((status = 201, body = ScheduleView, description = "It is kept"), Conflict),
)]
#[post("/schedules", data = "<body>")]
pub(super) async fn create(
    consumer: Consumer,
    body: Body<ScheduleRequest>,
    state: &State<Arc<ApiState>>,
) -> Answer<With<Json<ScheduleView>>> {
    let account = &*consumer.0;
    let ScheduleRequest { name, cron, zone, spec } = body.value;
    if !is_name(&name) {
        return Err(invalid("name", "is not a name", NAME_HINT));
    }
    CronRule::parse(&cron, &zone).map_err(|error| Problem::invalid(vec![cron_fault(error)]))?;
    if spec.start_at.is_some() {
        return Err(invalid("spec.start_at", "has no meaning in a schedule", "leave it out: `cron` says when"));
    }
    let job = prepare(state, account.group, spec, "spec.").await?;
    let created_at = state.clock.now();
    let (owner, group) = (account.id, account.group);
    let new = NewSchedule { owner, group, name, cron, zone, job, created_at };
    let create = Transition::CreateSchedule(Box::new(new));
    let by = account.name.clone();
    let notice = move |applied: &Applied| match applied {
        Applied::Schedule(id) => {
            crate::audit!(user = by, "`{by}` made schedule {id}");
            HibernatorMsg::ScheduleChanged(*id)
        }
        other => unreachable!("a new schedule is answered by its number, not by {other:?}"),
    };
    let id = match state.commit_and_tell(create, &state.handles.hibernator, notice).await? {
        Ok(Applied::Schedule(id)) => id,
        Ok(other) => return Err(Refusal::Broken(format!("the store answered {other:?}")).into()),
        Err(Refusal::Conflict(taken)) => {
            return Err(conflict("name", taken, "choose another name, or delete that schedule first"));
        }
        Err(refusal) => return Err(refusal.into()),
    };
    Ok(created(view(state, &visible(state, account, &id.to_string()).await?)))
}

/// A schedule, and when it fires next
#[utoipa::path(
    tag = "schedules",
    security(("account" = ["viewer"])),
    responses((status = 200, body = ScheduleView, description = "The schedule")),
)]
#[get("/schedules/<schedule>")]
pub(super) async fn get(user: User, schedule: &str, state: &State<Arc<ApiState>>) -> Answer<Json<ScheduleView>> {
    Ok(Json(view(state, &visible(state, &user.account, schedule).await?)))
}

/// Deletes a schedule
///
/// Jobs that it made stay.
#[utoipa::path(
    tag = "schedules",
    security(("account" = ["consumer"])),
    responses((status = 204, description = "It is gone")),
)]
#[delete("/schedules/<schedule>")]
pub(super) async fn delete(consumer: Consumer, schedule: &str, state: &State<Arc<ApiState>>) -> Answer<NoContent> {
    let id = visible(state, &consumer.0, schedule).await?.id;
    let by = consumer.0.name.clone();
    let done = move || crate::audit!(user = by, "`{by}` deleted schedule {id}");
    change(state, Transition::DeleteSchedule { schedule: id }, id, done).await?;
    Ok(NoContent)
}

/// Commits a change of a schedule, notes that by `done`, and has the hibernator look at it.
async fn change(
    state: &ApiState,
    change: Transition,
    schedule: ScheduleId,
    done: impl FnOnce() + Send + 'static,
) -> Answer<Applied> {
    let notice = move |_: &Applied| {
        done();
        HibernatorMsg::ScheduleChanged(schedule)
    };
    Ok(state.commit_and_tell(change, &state.handles.hibernator, notice).await??)
}

async fn set_paused(state: &ApiState, account: &Account, schedule: &str, paused: bool) -> Answer<Json<ScheduleView>> {
    let id = visible(state, account, schedule).await?.id;
    let (at, by, verb) = (state.clock.now(), account.name.clone(), if paused { "paused" } else { "resumed" });
    let done = move || crate::audit!(user = by, "`{by}` {verb} schedule {id}");
    change(state, Transition::PauseSchedule { schedule: id, paused, at }, id, done).await?;
    Ok(Json(view(state, &visible(state, account, schedule).await?)))
}

/// Pauses a schedule
#[utoipa::path(
    tag = "schedules",
    security(("account" = ["consumer"])),
    responses((status = 200, body = ScheduleView, description = "It fires no more")),
)]
#[post("/schedules/<schedule>/pause")]
pub(super) async fn pause(
    consumer: Consumer,
    schedule: &str,
    state: &State<Arc<ApiState>>,
) -> Answer<Json<ScheduleView>> {
    set_paused(state, &consumer.0, schedule, true).await
}

/// Lets a schedule fire again
#[utoipa::path(
    tag = "schedules",
    security(("account" = ["consumer"])),
    responses((status = 200, body = ScheduleView, description = "It fires again")),
)]
#[post("/schedules/<schedule>/resume")]
pub(super) async fn resume(
    consumer: Consumer,
    schedule: &str,
    state: &State<Arc<ApiState>>,
) -> Answer<Json<ScheduleView>> {
    set_paused(state, &consumer.0, schedule, false).await
}

/// Launches now
///
/// It counts as no launch of an instant: the ones that are due are neither used up nor passed over by it.
#[utoipa::path(
    tag = "schedules",
    security(("account" = ["consumer"])),
    responses((status = 201, body = Submitted, description = "The job")),
)]
#[post("/schedules/<schedule>/trigger")]
pub(super) async fn trigger(
    consumer: Consumer,
    schedule: &str,
    state: &State<Arc<ApiState>>,
) -> Answer<With<Json<Submitted>>> {
    let record = visible(state, &consumer.0, schedule).await?;
    let (state, account) = (Arc::clone(state), consumer.0);
    let here = Arc::clone(&state);
    let work = async move {
        let submitted = submit(&here, &account, record.group, record.job, None).await?;
        let (by, id, job) = (&account.name, record.id, submitted.job);
        crate::audit!(user = by, job.id = %job, "`{by}` triggered schedule {id}: job {job}");
        Ok(created(submitted))
    };
    state.carry(work).await
}
