//! The user routes of the API, one method each.

use std::time::Duration;

use reqwest::Method;
use swarm_protocol::api::{
    FileView, ImageView, JobDetail, JobView, JoinToken, JoinTokenRequest, ModuleView, Page, Plan, ScheduleRequest,
    ScheduleView, Submitted, TaskView, Whoami, Why, WorkerView,
};
use swarm_protocol::spec::JobSpec;
use swarm_protocol::state::JobState;
use swarm_protocol::{Digest, JobId, ScheduleId, TaskId, WorkerId};

use crate::call::Call;
use crate::{Client, ClientError};

/// Which jobs [`Client::jobs`] lists.
#[derive(Debug, Clone, Default)]
pub struct JobFilter {
    /// Only those in this state.
    pub state: Option<JobState>,
    /// Only those with this name.
    pub name: Option<String>,
    /// Entries of a page.
    pub limit: Option<u32>,
    /// [`Page::next`] of the page before.
    pub cursor: Option<String>,
}

type Answer<T> = Result<T, ClientError>;

/// Every method fails with [`ClientError::Problem`] when the core refuses, and as described there when it cannot be
/// understood or reached.
#[expect(clippy::missing_errors_doc, reason = "the errors are those of every call; see the docs of the block")]
impl Client {
    /// Whether the core answers and is ready to work; needs no login.
    pub async fn ready(&self) -> Answer<()> {
        self.nothing(Call::new(Method::GET, "readyz").anonymous()).await
    }

    /// The account behind the session.
    pub async fn whoami(&self) -> Answer<Whoami> {
        self.json(Call::get("whoami")).await
    }

    /// Every worker.
    pub async fn workers(&self) -> Answer<Page<WorkerView>> {
        self.json(Call::get("workers")).await
    }

    /// Ends the attempts of a worker that is gone for good, so that they run elsewhere (operator). When it is not gone,
    /// its containers may still run: tasks may run twice at once.
    pub async fn declare_worker_lost(&self, worker: WorkerId) -> Answer<()> {
        self.nothing(Call::post(format!("workers/{worker}/declare-lost"))).await
    }

    /// A one-use token with which a worker of that name may join (admin).
    pub async fn join_token(&self, request: &JoinTokenRequest) -> Answer<JoinToken> {
        self.json(Call::post("workers/tokens").json(request)).await
    }

    /// The core's modules.
    pub async fn modules(&self) -> Answer<Page<ModuleView>> {
        self.json(Call::get("modules")).await
    }

    /// The length of a file the caller's group has uploaded; `None` when it has not.
    pub async fn file_size(&self, digest: Digest) -> Answer<Option<FileView>> {
        match self.open(&Call::api(Method::HEAD, format!("files/{digest}"))).await {
            Ok(response) => {
                let length =
                    response.headers().get("content-length").and_then(|value| value.to_str().ok()?.parse().ok());
                Ok(Some(FileView { digest, size_bytes: length.unwrap_or_default() }))
            }
            Err(error) if error.is_status(404) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The images the caller's group may use.
    pub async fn images(&self) -> Answer<Page<ImageView>> {
        self.json(Call::get("images")).await
    }

    /// The image with this config digest; `None` when the caller's group has none.
    pub async fn image(&self, config: Digest) -> Answer<Option<ImageView>> {
        match self.json(Call::get(format!("images/{config}"))).await {
            Ok(image) => Ok(Some(image)),
            Err(error) if error.is_status(404) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Gives an image the group has another name.
    pub async fn tag_image(&self, config: Digest, name: &str) -> Answer<ImageView> {
        let body = serde_json::json!({ "name": name });
        self.json(Call::post(format!("images/{config}/tags")).json(&body).repeatable()).await
    }

    /// Submits a job. With a key the call is retried, and however often it arrives, one job is made.
    pub async fn submit(&self, spec: &JobSpec, idempotency_key: Option<&str>) -> Answer<Submitted> {
        self.send_job(Call::post("jobs").json(spec), idempotency_key).await
    }

    /// As [`Client::submit`], refused with the code `no-worker-fits` when no worker known could ever run it.
    pub async fn submit_fitting(&self, spec: &JobSpec, idempotency_key: Option<&str>) -> Answer<Submitted> {
        self.send_job(Call::post("jobs").query("must_fit", Some(true)).json(spec), idempotency_key).await
    }

    /// What would become of a job; nothing of it is kept.
    pub async fn plan(&self, spec: &JobSpec) -> Answer<Plan> {
        self.json(Call::post("jobs/plan").json(spec).repeatable()).await
    }

    async fn send_job(&self, call: Call, idempotency_key: Option<&str>) -> Answer<Submitted> {
        match idempotency_key {
            Some(key) => self.json(call.header("idempotency-key", key).repeatable()).await,
            None => self.json(call).await,
        }
    }

    /// Jobs, the newest first.
    pub async fn jobs(&self, filter: &JobFilter) -> Answer<Page<JobView>> {
        let call = Call::get("jobs")
            .query("state", filter.state)
            .query("name", filter.name.as_ref())
            .query("limit", filter.limit)
            .query("cursor", filter.cursor.as_ref());
        self.json(call).await
    }

    /// One job.
    pub async fn job(&self, job: JobId) -> Answer<JobDetail> {
        self.json(Call::get(format!("jobs/{job}"))).await
    }

    /// One job, as soon as it is final; or as it stands after `patience`, which the core bounds.
    pub async fn wait_job(&self, job: JobId, patience: Duration) -> Answer<JobDetail> {
        let bounded = patience.min(self.http().timeouts().idle / 2).as_secs();
        self.json(Call::get(format!("jobs/{job}/wait")).query("timeout_s", Some(bounded))).await
    }

    /// A job's tasks, ascending.
    pub async fn tasks(&self, job: JobId, limit: Option<u32>, cursor: Option<&str>) -> Answer<Page<TaskView>> {
        self.json(Call::get(format!("jobs/{job}/tasks")).query("limit", limit).query("cursor", cursor)).await
    }

    /// One task.
    pub async fn task(&self, TaskId { job, task }: TaskId) -> Answer<TaskView> {
        self.json(Call::get(format!("jobs/{job}/tasks/{task}"))).await
    }

    /// Asks for the end of a job.
    pub async fn cancel(&self, job: JobId) -> Answer<JobDetail> {
        self.json(Call::post(format!("jobs/{job}/cancel")).repeatable()).await
    }

    /// Why a job stands where it stands.
    pub async fn why(&self, job: JobId) -> Answer<Why> {
        self.json(Call::get(format!("jobs/{job}/why"))).await
    }

    /// The group's schedules.
    pub async fn schedules(&self) -> Answer<Page<ScheduleView>> {
        self.json(Call::get("schedules")).await
    }

    /// Makes a schedule.
    pub async fn create_schedule(&self, request: &ScheduleRequest) -> Answer<ScheduleView> {
        self.json(Call::post("schedules").json(request)).await
    }

    /// One schedule.
    pub async fn schedule(&self, schedule: ScheduleId) -> Answer<ScheduleView> {
        self.json(Call::get(format!("schedules/{schedule}"))).await
    }

    /// Lets a schedule launch nothing.
    pub async fn pause_schedule(&self, schedule: ScheduleId) -> Answer<ScheduleView> {
        self.json(Call::post(format!("schedules/{schedule}/pause")).repeatable()).await
    }

    /// Lets a paused schedule launch again.
    pub async fn resume_schedule(&self, schedule: ScheduleId) -> Answer<ScheduleView> {
        self.json(Call::post(format!("schedules/{schedule}/resume")).repeatable()).await
    }

    /// Launches a schedule's job now.
    pub async fn trigger_schedule(&self, schedule: ScheduleId) -> Answer<Submitted> {
        self.json(Call::post(format!("schedules/{schedule}/trigger"))).await
    }

    /// Removes a schedule; jobs it made stay.
    pub async fn delete_schedule(&self, schedule: ScheduleId) -> Answer<()> {
        self.nothing(Call::api(Method::DELETE, format!("schedules/{schedule}"))).await
    }
}
