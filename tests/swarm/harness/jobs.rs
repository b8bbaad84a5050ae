//! What tests ask of a swarm: submits, jobs, tasks and logs, all recorded.

use std::process::Command;
use std::time::Duration;

use swarm_checker::{JobSeen, Op, Submit, TaskSeen, Verdict};
use swarm_client::{ClientError, LogOptions};
use swarm_protocol::api::{JobDetail, TaskPhase, TaskView};
use swarm_protocol::logs::LogStream;
use swarm_protocol::spec::{JobSpec, Resources};
use swarm_protocol::{JobId, TaskId};

use super::process::{command, run};
use super::recorder::{Log, log_read, verdict};
use super::{Ended, PATIENCE, Swarm, eventually, now_us};

impl Swarm {
    /// Runs `swarm consumer …` to its end.
    #[track_caller]
    pub(crate) fn consumer(&self, words: &[&str]) -> Ended {
        run(self.consumer_command(words), self.home(), PATIENCE)
    }

    pub(crate) fn consumer_command(&self, words: &[&str]) -> Command {
        let mut command = command(self.home(), &[&["consumer"], words].concat());
        command.env("SWARM_URL", &self.url);
        command
    }

    /// As `run`, and notes the job it made, found by a name of its own.
    #[track_caller]
    pub(crate) fn run(&self, flags: &[&str], job: &[&str]) -> (Ended, JobId) {
        let name = format!("run-{}", uuid::Uuid::new_v4().simple());
        let start = now_us();
        let ended = self.consumer(&[&["run", "--name", &name], flags, &[&self.image], job].concat());
        let filter = swarm_client::JobFilter { name: Some(name.clone()), ..Default::default() };
        let jobs = self.block(self.client.jobs(&filter)).expect("jobs can be listed").items;
        let [one] = jobs.as_slice() else { panic!("`run` made {} jobs: {ended:?}", jobs.len()) };
        self.note_submitted(one.id, start);
        (ended, one.id)
    }

    /// Notes a job that the consumer made; `start` is when it began to, in Unix microseconds.
    #[track_caller]
    pub(crate) fn note_submitted(&self, job: JobId, start: i64) {
        let JobDetail { job, .. } = self.detail(job);
        let submit = Submit { job: Some(job.id.0), key: None, name: job.name, tasks: job.tasks.total };
        self.recorder.add(start, Verdict::Ok, Op::Submit(submit));
    }

    /// A spec of a shell job that needs little.
    pub(crate) fn shell(&self, script: &str) -> JobSpec {
        let mut spec = JobSpec::new(&self.image);
        spec.command = Some(["sh", "-c", script].map(str::to_owned).to_vec());
        spec.resources = Resources { cpu_millis: 100, memory_bytes: 32 << 20 };
        spec
    }

    /// Submits and records it, with a key of its own.
    pub(crate) fn try_submit(&self, spec: &JobSpec) -> Result<JobId, ClientError> {
        let (start, key) = (now_us(), uuid::Uuid::new_v4().to_string());
        let result = self.block(self.client.submit(spec, Some(&key)));
        let job = result.as_ref().ok().map(|submitted| submitted.job.0);
        let submit = Submit { job, key: Some(key), name: spec.name.clone(), tasks: spec.tasks().count() };
        self.recorder.add(start, verdict(&result), Op::Submit(submit));
        result.map(|submitted| submitted.job)
    }

    #[track_caller]
    pub(crate) fn submit(&self, spec: &JobSpec) -> JobId {
        self.try_submit(spec).unwrap_or_else(|error| panic!("a good job is refused: {error}"))
    }

    /// Reads and records a job; none while the core is away.
    pub(crate) fn try_detail(&self, job: JobId) -> Option<JobDetail> {
        let start = now_us();
        let detail = self.block(self.client.job(job)).ok()?;
        self.recorder.add(start, Verdict::Ok, Op::Job(JobSeen::of(&detail.job)));
        Some(detail)
    }

    #[track_caller]
    pub(crate) fn detail(&self, job: JobId) -> JobDetail {
        eventually("the job can be read", PATIENCE, || self.try_detail(job))
    }

    /// Reads and records a task.
    pub(crate) fn try_task(&self, task: TaskId) -> Option<TaskView> {
        let start = now_us();
        let view = self.block(self.client.task(task)).ok()?;
        self.recorder.add(start, Verdict::Ok, Op::Task(TaskSeen::of(task.job, &view)));
        Some(view)
    }

    #[track_caller]
    pub(crate) fn task(&self, job: JobId) -> TaskView {
        self.task_of(TaskId { job, task: 0 })
    }

    #[track_caller]
    pub(crate) fn task_of(&self, task: TaskId) -> TaskView {
        eventually("the task can be read", PATIENCE, || self.try_task(task))
    }

    /// Waits until task 0 of `job` has a started container in this attempt.
    #[track_caller]
    pub(crate) fn wait_started(&self, job: JobId, attempt: u16) {
        self.expect(job, "its container starts", PATIENCE, || {
            let view = self.try_task(TaskId { job, task: 0 })?;
            let found = view.attempts.iter().find(|found| found.attempt == attempt)?;
            (found.phase == TaskPhase::Started).then_some(())
        });
    }

    /// Waits for the end of `job` and reads its tasks' record.
    #[track_caller]
    pub(crate) fn wait_ended(&self, job: JobId, deadline: Duration) -> JobDetail {
        self.expect(job, "it ends", deadline, || {
            self.try_task(TaskId { job, task: 0 });
            self.try_detail(job).filter(|detail| detail.job.state.is_final())
        })
    }

    /// As [`eventually`], and says why the job stands where it stands when it does not come.
    #[track_caller]
    pub(crate) fn expect<T>(
        &self,
        job: JobId,
        what: &str,
        deadline: Duration,
        mut ask: impl FnMut() -> Option<T>,
    ) -> T {
        let began = std::time::Instant::now();
        loop {
            if let Some(answer) = ask() {
                return answer;
            }
            if began.elapsed() > deadline {
                let why = self.block(self.client.why(job));
                let task = self.block(self.client.task(TaskId { job, task: 0 }));
                panic!("job {job}: {what}: not within {} s\nwhy: {why:?}\ntask: {task:?}", deadline.as_secs());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The whole log of a task's newest attempt.
    #[track_caller]
    pub(crate) fn log(&self, task: TaskId) -> Log {
        self.block(async {
            let mut log = Log::default();
            let mut tail = self.client.log(task, LogOptions { follow: true, ..LogOptions::default() });
            while let Some(record) = tail.next().await.expect("the log can be read") {
                match record.stream {
                    LogStream::Stdout => log.stdout.extend(record.bytes),
                    LogStream::Stderr => log.stderr.extend(record.bytes),
                    LogStream::Cut => {
                        let text = String::from_utf8(record.bytes).expect("a cut mark is text");
                        log.cut_at_least |= text.starts_with(">=");
                        log.cut_bytes += text.trim_start_matches(">=").parse::<u64>().expect("a cut mark counts");
                    }
                }
            }
            log
        })
    }

    /// Reads an ended task's log and records it beside what the job wrote; the checker compares.
    #[track_caller]
    pub(crate) fn check_log(&self, task: TaskId, stdout: &[u8], stderr: &[u8]) {
        let start = now_us();
        let log = self.log(task);
        self.recorder.add(start, Verdict::Ok, log_read(task, "stdout", stdout, &log.stdout, &log));
        self.recorder.add(start, Verdict::Ok, log_read(task, "stderr", stderr, &log.stderr, &log));
        for (stream, written, read) in [("stdout", stdout, &log.stdout), ("stderr", stderr, &log.stderr)] {
            let at = written.iter().zip(read).position(|(written, read)| written != read);
            let at = at.unwrap_or(written.len().min(read.len()));
            let near = |bytes: &[u8]| bytes[at.saturating_sub(40)..bytes.len().min(at + 80)].escape_ascii().to_string();
            let (whole, got) = (written.len(), read.len());
            let text = || format!("written: {}\nread:    {}", near(written), near(read));
            assert!(
                written == read,
                "{stream} of {task}: {whole} bytes written, {got} read, differ at {at}\n{}",
                text()
            );
        }
    }
}
