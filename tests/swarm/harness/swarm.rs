//! One swarm: a core, a worker, clients, and everything that is recorded about them.

use std::io::Write;
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::time::Duration;

use futures_util::StreamExt;
use rustix::process::Signal;
use swarm_checker::{Op, Submit, Verdict};
use swarm_client::{Client, ClientError, LogOptions, MemoryTokens};
use swarm_protocol::api::{JobDetail, JoinTokenRequest, TaskPhase, TaskView};
use swarm_protocol::logs::LogStream;
use swarm_protocol::spec::{JobSpec, Resources};
use swarm_protocol::{JobId, TaskId};
use swarm_worker::WorkerConfig;
use swarm_worker::runtime::ByteStream;
use swarm_worker::runtime::testimage::{HostImage, host_image_with};

use super::disks::Disks;
use super::process::{command, run, strays};
use super::recorder::{Log, Recorder, job_seen, log_read, task_seen, verdict};
use super::{Docker, Ended, Engine, NOISE, PATIENCE, Proc, eventually, noise, now_us, signal};

/// What a swarm is made of.
#[derive(Default)]
pub(crate) struct Setup {
    /// A Postgres server; SQLite without one.
    pub(crate) postgres: Option<String>,
    /// A Redis for the core; its cache lies in the process without one.
    pub(crate) redis: Option<String>,
    /// Slots of the worker, 4 when not said.
    pub(crate) slots: Option<u32>,
    /// `swarm up` instead of a core and a worker apart.
    pub(crate) up: bool,
    /// The engine's address, where it is not the usual one.
    pub(crate) engine: Option<String>,
    /// Variables for the core, beside what every core gets.
    pub(crate) core_env: Vec<(&'static str, &'static str)>,
    /// Core and worker keep their data on disks whose power can be cut.
    pub(crate) disks: bool,
}

/// See the module.
pub(crate) struct Swarm {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) url: String,
    pub(crate) address: String,
    /// Where the checker finds the store.
    pub(crate) store: String,
    pub(crate) client: Client,
    pub(crate) recorder: Recorder,
    pub(crate) engine: Engine,
    /// The image's name in the swarm.
    pub(crate) image: String,
    setup: Setup,
    database: Option<(String, String)>,
    host_image: HostImage,
    core: Mutex<Option<Proc>>,
    worker: Mutex<Option<Proc>>,
    runtime: tokio::runtime::Runtime,
    pub(super) disks: Disks,
}

const PROGRAMS: [&str; 20] = [
    "sh",
    "cat",
    "sleep",
    "id",
    "env",
    "head",
    "dd",
    "mkdir",
    "od",
    "wc",
    "date",
    "echo",
    "chmod",
    "cp",
    "ln",
    "mkfifo",
    "setsid",
    "sha256sum",
    "stat",
    "truncate",
];

/// Held while ports are chosen and taken, so that two swarms of this process do not choose the same.
static PORTS: Mutex<()> = Mutex::new(());

impl Swarm {
    /// Starts one and waits until its worker is ready and an image is there.
    pub(crate) fn start(setup: Setup) -> Self {
        let dir = tempfile::Builder::new().prefix("swarm-test-").tempdir().expect("a directory can be made");
        let home = dir.path();
        std::fs::create_dir(home.join("config")).expect("a directory can be made");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime can be started");
        let database = setup.postgres.as_ref().map(|server| {
            let name = format!("swarm_test_{}", uuid::Uuid::new_v4().simple());
            let url = swarm_checker::create_database(server, &name).expect("a database can be made");
            (url, name)
        });
        let store = match &database {
            Some((url, _)) => url.clone(),
            None => home.join("core/swarm.db").display().to_string(),
        };
        let ports = PORTS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let address = free_address();
        let url = format!("http://{address}");
        let client = Client::new(&url, Arc::new(MemoryTokens::default())).expect("loopback is an address");
        let swarm = Self {
            recorder: Recorder::new(home),
            disks: if setup.disks { Disks::mount(home) } else { Disks::default() },
            engine: Engine::watch(Docker { host: setup.engine.clone() }, home),
            image: "host:1".to_owned(),
            host_image: host_image_with(&PROGRAMS, None, &[("etc/noise", &noise(NOISE, 0))])
                .expect("host programs can be packed"),
            core: Mutex::new(None),
            worker: Mutex::new(None),
            dir,
            url,
            address,
            store,
            client,
            setup,
            database,
            runtime,
        };
        swarm.start_core();
        drop(ports);
        swarm.login();
        if !swarm.setup.up {
            swarm.join_worker();
        }
        swarm.wait_ready();
        swarm.push_image();
        swarm
    }

    /// Runs a future to its end.
    pub(crate) fn block<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    pub(crate) fn home(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn docker(&self) -> &Docker {
        &self.engine.docker
    }

    pub(crate) fn core(&self) -> MutexGuard<'_, Option<Proc>> {
        self.core.lock().expect("no test panics while it holds it")
    }

    pub(crate) fn worker(&self) -> MutexGuard<'_, Option<Proc>> {
        self.worker.lock().expect("no test panics while it holds it")
    }

    /// Starts the core (or core and worker in one) and waits until it answers.
    pub(crate) fn start_core(&self) {
        self.start_core_with("");
    }

    /// As `start_core`; the core fails at the points that `faults` names, in the syntax of the crate `fail`.
    pub(crate) fn start_core_with(&self, faults: &str) {
        self.start_core_in(&[("FAILPOINTS", faults)]);
    }

    /// As `start_core`, with variables of its environment.
    pub(crate) fn start_core_in(&self, environment: &[(&str, &str)]) {
        let data = self.home().join("core");
        let data = data.to_str().expect("a plain path");
        let part = if self.setup.up { "up" } else { "core" };
        let mut command = command(self.home(), &[part, "--data-dir", data, "--listen", &self.address]);
        if let Some((url, _)) = &self.database {
            command.env("SWARM_CORE_DATABASE_URL", url);
        }
        command.envs(self.setup.redis.iter().map(|url| ("SWARM_CORE_REDIS", url)));
        command.envs(self.setup.engine.iter().map(|host| ("DOCKER_HOST", host)));
        command.envs(environment.iter().copied()).envs(self.setup.core_env.iter().copied());
        let mut core = Proc::start("core", self.home(), command);
        eventually("the core answers", PATIENCE, || {
            if let Some(status) = core.ended() {
                panic!("the core ended at its start: {status}\n{}", core.printed());
            }
            self.block(self.client.ready()).ok()
        });
        *self.core() = Some(core);
    }

    /// The admin's password, as the first start leaves it.
    pub(crate) fn password_file(&self) -> PathBuf {
        self.home().join("core/admin-password")
    }

    /// An admin's client that reaches the core at another address.
    pub(crate) fn client_at(&self, url: &str) -> Client {
        let client = Client::new(url, Arc::new(MemoryTokens::default())).expect("loopback is an address");
        let password = std::fs::read_to_string(self.password_file()).expect("the first start leaves a password");
        self.block(client.login("admin", password.trim_end())).expect("the admin can log in");
        client
    }

    fn login(&self) {
        let password = std::fs::read_to_string(self.password_file()).expect("the first start leaves a password");
        self.block(self.client.login("admin", password.trim_end())).expect("the admin can log in");
        let file = self.password_file();
        let words = ["login", "--user", "admin", "--password-file", file.to_str().expect("a plain path")];
        let ended = self.consumer(&words);
        assert_eq!(ended.code, Some(0), "login: {}", ended.stderr);
    }

    fn join_worker(&self) {
        let request = JoinTokenRequest { worker: "w1".to_owned(), expires_in_s: 600 };
        let token = self.block(self.client.join_token(&request)).expect("the admin gets a join token").token;
        std::fs::write(self.home().join("join-token"), token).expect("a file can be written");
        self.start_worker();
    }

    /// Starts the worker; the join token counts at the first start only.
    pub(crate) fn start_worker(&self) {
        self.start_worker_with(&[]);
    }

    /// As `start_worker`, with further flags.
    pub(crate) fn start_worker_with(&self, flags: &[&str]) {
        let path = |name: &str| self.home().join(name).display().to_string();
        let slots = self.setup.slots.unwrap_or(4).to_string();
        let mut words = vec!["worker".to_owned(), "--core".into(), self.url.clone(), "--data".into(), path("worker")];
        words.extend(["--name".into(), "w1".into(), "--slots".into(), slots, "--cpu-millis".into(), "8000".into()]);
        if !self.home().join("worker/identity.json").exists() {
            words.extend(["--join-token-file".into(), path("join-token")]);
        }
        words.extend(self.setup.engine.iter().flat_map(|host| ["--docker-host".to_owned(), host.clone()]));
        let words: Vec<&str> = words.iter().map(String::as_str).chain(flags.iter().copied()).collect();
        *self.worker() = Some(Proc::start("worker", self.home(), command(self.home(), &words)));
    }

    /// Waits until a worker takes work.
    pub(crate) fn wait_ready(&self) {
        eventually("the worker is ready", PATIENCE, || {
            let workers = self.block(self.client.workers()).ok()?;
            workers.items.iter().any(|worker| worker.state == "ready").then_some(())
        });
    }

    /// Writes what comes into a file.
    pub(crate) fn write_stream(&self, path: &Path, mut stream: ByteStream) {
        let mut file = std::fs::File::create(path).expect("a file can be made");
        while let Some(chunk) = self.block(stream.next()) {
            file.write_all(&chunk.expect("the stream can be read")).expect("a file can be written");
        }
    }

    fn push_image(&self) {
        let archive = self.home().join("image.tar");
        self.write_stream(&archive, self.host_image.archive());
        let ended = self.consumer(&["image", "push", archive.to_str().expect("a plain path"), "--name", &self.image]);
        assert_eq!(ended.code, Some(0), "image push: {}", ended.stderr);
    }

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
        self.recorder.add(start, Verdict::Ok, job_seen(&detail));
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
        self.recorder.add(start, Verdict::Ok, task_seen(task.job, &view));
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

    /// This installation's id, as containers are labelled.
    pub(crate) fn id(&self) -> Option<String> {
        swarm_checker::load(&self.store).ok()?.swarm
    }
}

/// A swarm that tests share which neither stop nor overload it; the last one that holds it ends it.
pub(crate) fn shared() -> Arc<Swarm> {
    static SHARED: OnceLock<Mutex<Weak<Swarm>>> = OnceLock::new();
    let shared = SHARED.get_or_init(Mutex::default);
    let mut shared = shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    shared.upgrade().unwrap_or_else(|| {
        let swarm = Arc::new(Swarm::start(Setup::default()));
        *shared = Arc::downgrade(&swarm);
        swarm
    })
}

impl Drop for Swarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.tell();
        }
        let id = self.id();
        let take = |proc: &Mutex<Option<Proc>>| proc.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        let (mut worker, mut core) = (take(&self.worker), take(&self.core));
        // A worker that is killed may have asked the engine for one more container.
        if let Some(worker) = if self.setup.up { &mut core } else { &mut worker } {
            worker.ask_to_stop(Duration::from_secs(15));
        }
        drop((worker, core));
        for pid in strays(self.home()) {
            signal(pid, Signal::KILL);
        }
        if let Some(id) = id {
            self.docker().clean(&id);
        }
        // Not there when no job ran.
        self.docker().run(&["rmi", "--force", &self.host_image.config_digest.to_string()]);
        for data in ["worker", "core/worker"] {
            let config = WorkerConfig { data: self.home().join(data), ..WorkerConfig::default() };
            self.docker().clean_images(&config.engine_settings().repository);
        }
        if let (Some(server), Some((_, name))) = (&self.setup.postgres, &self.database) {
            let _ = swarm_checker::drop_database(server, name);
        }
        // Before the directory they are mounted in goes.
        self.disks.unmount();
    }
}

impl Swarm {
    /// Says what the processes printed last.
    fn tell(&self) {
        use std::io::Write;
        for name in ["core", "worker"] {
            let text = std::fs::read_to_string(self.home().join(format!("{name}.out"))).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let tail = lines[lines.len().saturating_sub(60)..].join("\n");
            let _ = writeln!(std::io::stderr(), "--- {name} printed last:\n{tail}");
        }
    }
}

/// A loopback address whose port is free for TCP and UDP alike.
pub(super) fn free_address() -> String {
    eventually("a port is free", PATIENCE, || {
        let tcp = TcpListener::bind("127.0.0.1:0").ok()?;
        let address = tcp.local_addr().ok()?;
        UdpSocket::bind(address).ok()?;
        Some(address.to_string())
    })
}
