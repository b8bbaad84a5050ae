//! The users of a simulated world: they submit with idempotency keys until they know what came of it, watch their jobs,
//! cancel some, read the logs, and write down what they saw.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use swarm_checker::{Entry, JobSeen, LogRead, Op, Seen, Submit, TaskSeen, Verdict};
use swarm_protocol::api::{JobView, TaskView};
use swarm_protocol::logs::{LogDecoder, LogStream};
use swarm_protocol::{AttemptId, JobId, OutcomeKind};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::calls::{Answer, Request};
use crate::host::Host;
use crate::net::{Net, USERS};
use crate::plan::{JobPlan, SchedulePlan};
use crate::promises::Promises;
use crate::time::wall_us;
use crate::work::result;

/// Between two tries, and between two looks.
const PAUSE: Duration = Duration::from_secs(2);

/// From the end of all faults to the end of a schedule: instants of this time are launched on time.
const CALM: Duration = Duration::from_secs(200);

/// See the module; clones are the same users.
#[derive(Clone)]
pub(crate) struct Users {
    net: Net,
    history: Arc<Mutex<Vec<Entry>>>,
    /// Those who still wait for something.
    waiting: Arc<AtomicUsize>,
    /// The core's clock is set now and then, so that a job may be delayed again.
    clocks_are_set: bool,
    promises: Promises,
    /// Cancelled once all faults are over.
    pub(crate) healed: CancellationToken,
}

impl Users {
    pub(crate) fn new(net: Net, promises: Promises, clocks_are_set: bool) -> Self {
        let (history, waiting, healed) = (Arc::default(), Arc::default(), CancellationToken::new());
        Self { net, history, waiting, clocks_are_set, promises, healed }
    }

    pub(crate) fn start(&self, host: &Host, jobs: &[JobPlan], schedule: Option<&SchedulePlan>) {
        for plan in jobs.iter().cloned() {
            self.spawn(host, |users| async move { users.run(plan).await });
        }
        let scheduled = schedule.cloned();
        self.spawn(host, |users| async move {
            if let Some(plan) = scheduled {
                users.keep_schedule(plan).await;
            }
            users.healed.cancelled().await;
            while !matches!(users.ask(|| Request::Open).await, Answer::Open(0)) {
                sleep(PAUSE).await;
            }
        });
    }

    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, host: &Host, body: impl FnOnce(Self) -> F) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let (work, waiting) = (body(self.clone()), Arc::clone(&self.waiting));
        host.spawn(async move {
            work.await;
            waiting.fetch_sub(1, Ordering::SeqCst);
        });
    }

    /// How many still wait for something.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    pub(crate) fn history(&self) -> Vec<Entry> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, start_us: u64, result: Verdict, op: Op) {
        let (start_us, end_us) = (start_us.cast_signed(), wall_us().cast_signed());
        let entry = Entry { start_us, end_us, result, op };
        self.history.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
    }

    /// Asks until there is an answer.
    async fn ask(&self, request: impl Fn() -> Request) -> Answer {
        loop {
            match self.net.call(USERS, request()).await {
                None | Some(Answer::Again) => sleep(PAUSE).await,
                Some(answer) => return answer,
            }
        }
    }

    async fn run(self, plan: JobPlan) {
        sleep(Duration::from_millis(plan.at_ms)).await;
        let Some(job) = self.submit(&plan).await else { return };
        if plan.is_repeated {
            self.submit(&plan).await;
        }
        if let Some(after_ms) = plan.cancel_after_ms {
            let users = self.clone();
            tokio::spawn(async move {
                sleep(Duration::from_millis(after_ms)).await;
                users.ask(|| Request::Cancel(job)).await;
            });
        }
        let tasks = self.watch(job).await;
        for task in tasks {
            self.read_log(job, &plan, &task).await;
            self.read_outputs(job, &plan, &task).await;
        }
    }

    async fn submit(&self, plan: &JobPlan) -> Option<JobId> {
        loop {
            let start_us = wall_us();
            let request = Request::Submit { key: plan.key.clone(), spec: Box::new(plan.spec.clone()) };
            let answer = self.net.call(USERS, request).await;
            let (result, job) = match &answer {
                Some(Answer::Accepted(job, _)) => (Verdict::Ok, Some(*job)),
                Some(Answer::Refused(_)) => (Verdict::Fail, None),
                _ => (Verdict::Unknown, None),
            };
            let tasks = plan.spec.tasks().count();
            let submit = Submit { job: job.map(|job| job.0), key: Some(plan.key.clone()), name: None, tasks };
            self.note(start_us, result, Op::Submit(submit));
            if result != Verdict::Unknown {
                return job;
            }
            sleep(PAUSE).await;
        }
    }

    /// Looks until the job has ended.
    async fn watch(&self, job: JobId) -> Vec<TaskView> {
        loop {
            sleep(PAUSE).await;
            let start_us = wall_us();
            if let Some(Answer::Seen(seen)) = self.net.call(USERS, Request::Look(job)).await {
                let (view, tasks) = *seen;
                self.note(start_us, Verdict::Ok, job_seen(&view, self.clocks_are_set));
                tasks.iter().for_each(|task| self.note(start_us, Verdict::Ok, Op::Task(TaskSeen::of(job, task))));
                if view.state.is_final() {
                    return tasks;
                }
            }
        }
    }

    /// The log of a task that ended by itself must be what it wrote.
    async fn read_log(&self, job: JobId, plan: &JobPlan, task: &TaskView) {
        let by_itself = matches!(task.outcome, Some(OutcomeKind::Succeeded | OutcomeKind::Failed));
        let last = task.attempts.iter().find(|attempt| attempt.is_final).filter(|_| by_itself);
        let Some(last) = last else { return };
        let (start_us, id) = (wall_us(), AttemptId { job, task: task.task, attempt: last.attempt });
        let Answer::Bytes(log) = self.ask(|| Request::Log(id)).await else { return };
        let (mut decoder, mut read, mut cut_bytes, mut cut_at_least) = (LogDecoder::default(), Vec::new(), 0, false);
        decoder.push(&log);
        while let Ok(Some(record)) = decoder.next_record() {
            match record.stream {
                LogStream::Stdout => read.extend(record.bytes),
                LogStream::Stderr => {}
                LogStream::Cut => {
                    let mark = String::from_utf8_lossy(&record.bytes).into_owned();
                    cut_at_least |= mark.starts_with(">=");
                    cut_bytes += mark.trim_start_matches(">=").parse().unwrap_or(1);
                }
            }
        }
        let written = plan.work.written(task.task);
        let digest = |bytes: &[u8]| hex::encode(Sha256::digest(bytes));
        let seen = LogRead {
            job: job.0,
            task: task.task,
            stream: "stdout".to_owned(),
            written_bytes: written.len() as u64,
            written_digest: digest(written.as_bytes()),
            read_bytes: read.len() as u64,
            read_digest: digest(&read),
            cut_bytes,
            cut_at_least,
        };
        self.note(start_us, Verdict::Ok, Op::Log(seen));
    }

    /// What a task that succeeded handed back must be there, and be what it left.
    async fn read_outputs(&self, job: JobId, plan: &JobPlan, task: &TaskView) {
        let last = task.attempts.iter().find(|attempt| attempt.is_final);
        let count = last.map_or(0, |attempt| attempt.outputs.len());
        if task.outcome == Some(OutcomeKind::Succeeded) && count != plan.spec.outputs.len() {
            self.promises.note(format!("task {job}.{} succeeded and has {count} outputs", task.task));
        }
        for output in last.into_iter().flat_map(|attempt| &attempt.outputs) {
            let Answer::Bytes(bytes) = self.ask(|| Request::File(output.digest)).await else { continue };
            if bytes != result(task.task) {
                self.promises.note(format!("an output of task {job}.{} is not what it left", task.task));
            }
        }
    }

    /// Makes a schedule, and pauses it some time after all faults are over, so that no more jobs come.
    async fn keep_schedule(&self, plan: SchedulePlan) {
        let SchedulePlan { job, cron, zone } = plan;
        let request = || Request::Schedule {
            name: job.key.clone(),
            cron: cron.to_owned(),
            zone: zone.to_owned(),
            spec: Box::new(job.spec.clone()),
        };
        let Answer::Scheduled(schedule) = self.ask(request).await else { return };
        self.healed.cancelled().await;
        sleep(CALM).await;
        self.ask(|| Request::Pause(schedule)).await;
    }
}

/// A job that was held may wait again once a clock is set back.
fn job_seen(view: &JobView, clocks_are_set: bool) -> Op {
    let seen = JobSeen::of(view);
    let is_held = seen.seen == Seen::Delayed && clocks_are_set;
    Op::Job(JobSeen { seen: if is_held { Seen::Open } else { seen.seen }, ..seen })
}
