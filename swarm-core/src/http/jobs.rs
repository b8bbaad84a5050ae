//! Jobs and their tasks.

use std::sync::Arc;
use std::time::Duration;

use rocket::http::Status;
use rocket::response::status::Custom;
use rocket::serde::json::Json;
use rocket::{State, get, post};
use swarm_protocol::api::{JobDetail, JobView, Page, Plan, Role, Submitted, TaskView, Why};
use swarm_protocol::spec::JobSpec;
use swarm_protocol::state::JobState;
use swarm_protocol::{JobId, TaskIndex};

use super::guards::{Body, Consumer, Headers, User, With, limit, optional, param};
use super::problem::{Answer, invalid, not_found, unavailable};
use super::submit::{plan as plan_for, prepare_job, submit as hand_over};
use super::why::{Facts, answer};
use super::{ApiState, Submits, ask};
use crate::archive::{job_detail, job_state, job_view, task_view};
use crate::identity::Account;
use crate::messages::{DispatcherMsg, ReceiverMsg, SchedulerMsg, Shape};
use crate::store::{JobFilter, JobRecord, TaskRecord};

/// A waiting reader looks often at first, so that short jobs are not made long, and less often the longer it has waited.
const WAIT_POLL_MIN: Duration = Duration::from_millis(10);
const WAIT_POLL_MAX: Duration = Duration::from_millis(500);
const WAIT_S_MAX: u64 = 60;
/// Tasks that are looked at for an answer to `why`.
const WHY_TASKS: u32 = 100;

/// A job the account may see: its group's, or any for operators. Others do not exist for it.
pub(super) async fn visible(state: &ApiState, account: &Account, job: &str) -> Answer<JobRecord> {
    let id: JobId = param("job", job)?;
    let (group, all) = (account.group, account.role >= Role::Operator);
    let record = state.read(move |store| store.job(id)).await?;
    record.filter(|record| all || record.group == group).ok_or_else(|| not_found("job", id))
}

/// A task of a visible job.
pub(super) async fn visible_task(
    state: &ApiState,
    account: &Account,
    job: &str,
    task: &str,
) -> Answer<(JobRecord, TaskRecord)> {
    let job = visible(state, account, job).await?;
    let index: TaskIndex = param("task", task)?;
    let missing = || not_found("task", format!("{}.{index}", job.id));
    if !job.spec.tasks().contains(index) {
        return Err(missing());
    }
    let id = job.id;
    let tasks = state.read(move |store| store.tasks(id, index, 1)).await?;
    let task = tasks.into_iter().find(|record| record.task == index).ok_or_else(missing)?;
    Ok((job, task))
}

/// Submits a job
///
/// Answered when it is kept for good. The same Idempotency-Key with the same body makes one job, however often it is sent.
#[utoipa::path(
    tag = "jobs",
    request_body = JobSpec,
    security(("account" = ["consumer"])),
    params(
        ("must_fit" = Option<bool>, Query, description = "Refuse it if no worker known could ever run it"),
        ("Idempotency-Key" = Option<String>, Header, description = "1 to 128 visible ASCII characters", min_length = 1, max_length = 128),
    ),
    responses(
        (status = 201, body = Submitted, description = "A new job"),
        (status = 200, body = Submitted, description = "The job that this key made before"),
    ),
)]
#[post("/jobs?<must_fit>", data = "<body>")]
pub(super) async fn submit(
    consumer: Consumer,
    must_fit: Option<&str>,
    headers: Headers,
    body: Body<JobSpec>,
    state: &State<Arc<ApiState>>,
    submits: &State<Submits>,
) -> Answer<With<Json<Submitted>>> {
    let idempotency = headers.idempotency?.map(|key| (key, body.digest));
    let must_fit = optional("must_fit", must_fit)?.unwrap_or(false);
    let (here, account, keyed) = (Arc::clone(state), consumer.0, idempotency.clone());
    let same = keyed.map(|(key, digest)| (account.group, key, digest, must_fit));
    let work = async move {
        let key = idempotency.as_ref().map(|(key, _)| key.as_str());
        let prepared = prepare_job(&here, account.group, body.value, key, must_fit).await?;
        hand_over(&here, &account, account.group, prepared, idempotency).await
    };
    let submitted = match same {
        None => state.carry(work).await?,
        // What was fine when it was sent first may be too late by now, or fit nowhere, and yet become a job.
        Some(same) => {
            let submits = Arc::clone(submits);
            state.carry(async move { submits.answer(same, work).await }).await?.delivered()
        }
    };
    let status = if submitted.repeated { Status::Ok } else { Status::Created };
    Ok(Custom(status, Json(submitted)))
}

/// Tells what would become of a job
///
/// It is checked and placed as one that is submitted, and nothing of it is kept.
#[utoipa::path(
    tag = "jobs",
    request_body = JobSpec,
    security(("account" = ["consumer"])),
    responses((status = 200, body = Plan, description = "It would be accepted")),
)]
#[post("/jobs/plan", data = "<body>")]
pub(super) async fn plan(consumer: Consumer, body: Body<JobSpec>, state: &State<Arc<ApiState>>) -> Answer<Json<Plan>> {
    Ok(Json(plan_for(state, consumer.0.group, body.value).await?))
}

/// The group's jobs, the newest first
///
/// Operators see every group's.
#[utoipa::path(
    tag = "jobs",
    security(("account" = ["viewer"])),
    params(
        ("state" = Option<JobState>, Query, description = "Only those in this state"),
        ("name" = Option<String>, Query, description = "Only those of this name"),
    ),
    responses((status = 200, body = Page<JobView>, description = "One page")),
)]
#[get("/jobs?<state>&<name>&<limit>&<cursor>")]
pub(super) async fn list(
    user: User,
    state: Option<&str>,
    name: Option<String>,
    limit: Option<&str>,
    cursor: Option<&str>,
    api: &State<Arc<ApiState>>,
) -> Answer<Json<Page<JobView>>> {
    let words = || JobState::ALL.map(JobState::as_str).join(", ");
    let unknown = |word: &str| {
        let word = swarm_protocol::text::sanitise(word, false);
        invalid("state", format!("`{word}` is no state"), format!("use one of {}", words()))
    };
    let in_state = state.map(|word| JobState::parse(word).ok_or_else(|| unknown(word))).transpose()?;
    let limit = self::limit(limit)?;
    let now = api.clock.now();
    let group = (user.account.role < Role::Operator).then_some(user.account.group);
    let filter = JobFilter { group, state: in_state, name, before: optional("cursor", cursor)?, limit, now };
    let records = api.read(move |store| store.jobs(&filter)).await?;
    let full = records.len() >= limit as usize;
    let next = records.last().filter(|_| full).map(|last| last.id.to_string());
    Ok(Json(Page { items: records.iter().map(|record| job_view(record, now)).collect(), next }))
}

/// A job and its spec
#[utoipa::path(
    tag = "jobs",
    security(("account" = ["viewer"])),
    responses((status = 200, body = JobDetail, description = "The job")),
)]
#[get("/jobs/<job>")]
pub(super) async fn get(user: User, job: &str, state: &State<Arc<ApiState>>) -> Answer<Json<JobDetail>> {
    let record = visible(state, &user.account, job).await?;
    Ok(Json(job_detail(&record, state.clock.now())))
}

/// A job, when it has ended
///
/// Or as it stands when time is up.
#[utoipa::path(
    tag = "jobs",
    security(("account" = ["viewer"])),
    params(("timeout_s" = Option<u64>, Query, description = "Seconds, 30 by default, at most 60")),
    responses((status = 200, body = JobDetail, description = "The job")),
)]
#[get("/jobs/<job>/wait?<timeout_s>")]
pub(super) async fn wait(
    user: User,
    job: &str,
    timeout_s: Option<&str>,
    state: &State<Arc<ApiState>>,
) -> Answer<Json<JobDetail>> {
    let timeout_s = optional("timeout_s", timeout_s)?.unwrap_or(30).min(WAIT_S_MAX);
    let began = tokio::time::Instant::now();
    let deadline = began + Duration::from_secs(timeout_s);
    loop {
        let record = visible(state, &user.account, job).await?;
        let now = state.clock.now();
        if job_state(&record, now).is_final() || tokio::time::Instant::now() >= deadline {
            return Ok(Json(job_detail(&record, now)));
        }
        tokio::select! {
            () = tokio::time::sleep_until(deadline.min(tokio::time::Instant::now() + wait_poll(began.elapsed()))) => {}
            () = state.stop().cancelled() => return Err(unavailable("the core is stopping")),
        }
    }
}

/// Before the next look at a job that was waited for so long: a twentieth of that.
fn wait_poll(waited: Duration) -> Duration {
    (waited / 20).clamp(WAIT_POLL_MIN, WAIT_POLL_MAX)
}

/// The tasks of a job
#[utoipa::path(
    tag = "jobs",
    security(("account" = ["viewer"])),
    responses((status = 200, body = Page<TaskView>, description = "One page, by index")),
)]
#[get("/jobs/<job>/tasks?<limit>&<cursor>")]
pub(super) async fn tasks(
    user: User,
    job: &str,
    limit: Option<&str>,
    cursor: Option<&str>,
    state: &State<Arc<ApiState>>,
) -> Answer<Json<Page<TaskView>>> {
    let job = visible(state, &user.account, job).await?;
    let limit = self::limit(limit)?;
    let range = job.spec.tasks();
    let from = optional("cursor", cursor)?.unwrap_or(range.first).max(range.first);
    let id = job.id;
    let records = state.read(move |store| store.tasks(id, from, limit)).await?;
    let full = records.len() >= limit as usize;
    let next = records.last().filter(|last| full && last.task < range.last).map(|last| (last.task + 1).to_string());
    let name_of = |worker| state.worker_name(worker);
    let items = records.iter().map(|record| task_view(id, record, &name_of)).collect();
    Ok(Json(Page { items, next }))
}

/// A task and its attempts
#[utoipa::path(
    tag = "jobs",
    security(("account" = ["viewer"])),
    responses((status = 200, body = TaskView, description = "The task")),
)]
#[get("/jobs/<job>/tasks/<task>")]
pub(super) async fn task(user: User, job: &str, task: &str, state: &State<Arc<ApiState>>) -> Answer<Json<TaskView>> {
    let (job, task) = visible_task(state, &user.account, job, task).await?;
    Ok(Json(task_view(job.id, &task, &|worker| state.worker_name(worker))))
}

/// Cancels a job
///
/// Tasks that wait end at once; containers are stopped, and killed when their grace is over. A job that has ended stays as it is.
#[utoipa::path(
    tag = "jobs",
    security(("account" = ["consumer"])),
    responses((status = 202, body = JobDetail, description = "The job as it stands now")),
)]
#[post("/jobs/<job>/cancel")]
pub(super) async fn cancel(
    consumer: Consumer,
    job: &str,
    state: &State<Arc<ApiState>>,
) -> Answer<With<Json<JobDetail>>> {
    let account = &*consumer.0;
    let record = visible(state, account, job).await?;
    if !job_state(&record, state.clock.now()).is_final() {
        let (id, by, receiver) = (record.id, account.name.clone(), state.handles.receiver.clone());
        let work = async move {
            ask(&receiver, |reply| ReceiverMsg::Cancel { job: id, reply }).await??;
            crate::audit!(user = by, job.id = %id, "`{by}` cancelled job {id}");
            Ok(())
        };
        state.carry(work).await?;
    }
    let record = visible(state, account, job).await?;
    Ok(Custom(Status::Accepted, Json(job_detail(&record, state.clock.now()))))
}

/// Why a job waits, where it runs, how it ended
#[utoipa::path(
    tag = "jobs",
    security(("account" = ["viewer"])),
    responses((status = 200, body = Why, description = "The reasons")),
)]
#[get("/jobs/<job>/why")]
pub(super) async fn why(user: User, job: &str, state: &State<Arc<ApiState>>) -> Answer<Json<Why>> {
    let record = visible(state, &user.account, job).await?;
    let now = state.clock.now();
    let mut facts = Facts { now, ..Facts::default() };
    let job = record.id;
    let standing = job_state(&record, now);
    if !standing.is_final() {
        let first = record.spec.tasks().first;
        facts.tasks = state.read(move |store| store.tasks(job, first, WHY_TASKS)).await?;
    }
    if matches!(standing, JobState::Waiting | JobState::Running) && record.counts.waiting > 0 {
        facts.position = state.ask(&state.handles.scheduler, |reply| SchedulerMsg::Position { job, reply }).await?;
        let shape = Shape::of(&record.spec);
        facts.placing = state.ask(&state.handles.dispatcher, |reply| DispatcherMsg::Why { shape, reply }).await?;
    }
    Ok(Json(answer(&record, &facts, &|worker| state.worker_name(worker))))
}
