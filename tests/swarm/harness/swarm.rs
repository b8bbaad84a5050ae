//! One swarm: a core, a worker, clients, and everything that is recorded about them.

use std::io::Write;
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::time::Duration;

use futures_util::StreamExt;
use rustix::process::Signal;
use secrecy::ExposeSecret as _;
use swarm_client::{Client, MemoryTokens, TokenStore};
use swarm_protocol::api::JoinTokenRequest;
use swarm_worker::WorkerConfig;
use swarm_worker::runtime::ByteStream;
use swarm_worker::runtime::testimage::{HostImage, host_image_with};

use super::clock::fake_clock;
use super::disks::Disks;
use super::memory;
use super::process::{PROGRAM, command, command_of, strays};
use super::recorder::Recorder;
use super::{Docker, Engine, NOISE, PATIENCE, Proc, Proxy, SmallDisk, eventually, noise, signal};

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
    /// Variables for the worker.
    pub(crate) worker_env: Vec<(&'static str, &'static str)>,
    /// What lies between worker and core.
    pub(crate) link: Option<Arc<Proxy>>,
    /// Directories below the swarm's own that are small disks, with their mount options.
    pub(crate) small_disks: Vec<(&'static str, &'static str)>,
    /// Where below the swarm's directory SQLite's file is, when it is not in the core's.
    pub(crate) database_file: Option<&'static str>,
    /// What is done before the first core starts, in the swarm's directory and with its store: see
    /// [`start`](Swarm::start).
    pub(crate) before: Option<fn(&Path, &str)>,
    /// Core and worker have wall clocks that [`Swarm::set_clock`] changes.
    pub(crate) fake_clocks: bool,
    /// Core and worker keep their data on disks whose power can be cut.
    pub(crate) disks: bool,
    /// The worker's engine is in memory, and its test calls [`be_worker`](super::be_worker) first.
    pub(crate) in_memory: bool,
}

/// See the module.
pub(crate) struct Swarm {
    /// In the order of [`Setup::small_disks`]; unmounted before the directory they lie in goes.
    pub(crate) small_disks: Vec<SmallDisk>,
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
    /// What the worker is started from.
    worker_program: Mutex<PathBuf>,
    runtime: tokio::runtime::Runtime,
    pub(super) disks: Disks,
}

const PROGRAMS: [&str; 23] = [
    "sh",
    "true",
    "ls",
    "touch",
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

/// The last byte of the loopback address on which a core behind a proxy hears heartbeats.
const CORE_HEARTBEATS: u8 = 2;

/// Held while ports are chosen and taken, so that two swarms of this process do not choose the same.
static PORTS: Mutex<()> = Mutex::new(());

impl Swarm {
    /// Starts one and waits until its worker is ready and an image is there.
    pub(crate) fn start(setup: Setup) -> Self {
        let dir = tempfile::Builder::new().prefix("swarm-test-").tempdir().expect("a directory can be made");
        let home = dir.path();
        let small_disks =
            setup.small_disks.iter().map(|(name, options)| SmallDisk::mount(&home.join(name), options)).collect();
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
            None => home.join(setup.database_file.unwrap_or("core/swarm.db")).display().to_string(),
        };
        if let Some(before) = setup.before {
            before(home, &store);
        }
        let ports = PORTS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let address = free_address();
        let url = format!("http://{address}");
        let client = Client::new(&url, Arc::new(MemoryTokens::default())).expect("loopback is an address");
        let swarm = Self {
            small_disks,
            recorder: Recorder::new(home),
            disks: if setup.disks { Disks::mount(home) } else { Disks::default() },
            engine: Engine::watch(Docker { host: setup.engine.clone() }, home),
            image: "host:1".to_owned(),
            host_image: host_image(setup.in_memory),
            core: Mutex::new(None),
            worker: Mutex::new(None),
            worker_program: Mutex::new(PROGRAM.into()),
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

    pub(crate) fn runs_containers(&self) -> bool {
        !self.setup.in_memory
    }

    pub(super) fn has_fake_clocks(&self) -> bool {
        self.setup.fake_clocks
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
        let mut core = self.spawn_core(environment);
        eventually("the core answers", PATIENCE, || {
            if let Some(status) = core.ended() {
                panic!("the core ended at its start: {status}\n{}", core.printed());
            }
            self.block(self.client.ready()).ok()
        });
        *self.core() = Some(core);
    }

    /// As `start_core_in`, but waits for nothing.
    pub(crate) fn spawn_core(&self, environment: &[(&str, &str)]) -> Proc {
        let data = self.home().join("core");
        let data = data.to_str().expect("a plain path");
        let part = if self.setup.up { "up" } else { "core" };
        let mut command = command(self.home(), &[part, "--data-dir", data, "--listen", &self.address]);
        if self.database.is_some() || self.setup.database_file.is_some() {
            command.env("SWARM_CORE_DATABASE_URL", &self.store);
        }
        if let Some(link) = &self.setup.link {
            let heartbeats = link.heartbeats(CORE_HEARTBEATS);
            command.env("SWARM_CORE_HEARTBEAT_LISTEN", heartbeats.to_string());
            link.aim(self.address.parse().expect("an address"), heartbeats);
        }
        if self.setup.fake_clocks {
            fake_clock(self.home(), "core", &mut command);
        }
        command.envs(self.setup.redis.iter().map(|url| ("SWARM_CORE_REDIS", url)));
        command.envs(self.setup.engine.iter().map(|host| ("DOCKER_HOST", host)));
        command.envs(environment.iter().copied()).envs(self.setup.core_env.iter().copied());
        Proc::start("core", self.home(), command)
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

    /// Of a session of its own; waits where too many were opened.
    pub(crate) fn access_token(&self) -> String {
        let tokens = Arc::new(MemoryTokens::default());
        let client =
            Client::new(&self.url, Arc::clone(&tokens) as Arc<dyn TokenStore>).expect("loopback is an address");
        let password = std::fs::read_to_string(self.password_file()).expect("the first start leaves a password");
        eventually("the admin can log in", PATIENCE, || self.block(client.login("admin", password.trim_end())).ok());
        let saved = tokens.load().ok().flatten().expect("a session was opened");
        saved.access.expose_secret().to_owned()
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
        self.start_worker_in(flags, &[]);
    }

    /// As `start_worker`, with further flags and variables of its environment.
    pub(crate) fn start_worker_in(&self, flags: &[&str], environment: &[(&str, &str)]) {
        if self.setup.in_memory {
            let command = memory::command(self.home(), &self.url);
            *self.worker() = Some(Proc::start("worker", self.home(), command));
            return;
        }
        let path = |name: &str| self.home().join(name).display().to_string();
        let slots = self.setup.slots.unwrap_or(4).to_string();
        let core = self.setup.link.as_ref().map_or_else(|| self.url.clone(), |link| format!("http://{}", link.address));
        let mut words = vec!["worker".to_owned(), "--core".into(), core, "--data".into(), path("worker")];
        words.extend(["--name".into(), "w1".into(), "--slots".into(), slots, "--cpu-millis".into(), "8000".into()]);
        if !self.home().join("worker/identity.json").exists() {
            words.extend(["--join-token-file".into(), path("join-token")]);
        }
        words.extend(self.setup.engine.iter().flat_map(|host| ["--docker-host".to_owned(), host.clone()]));
        let words: Vec<&str> = words.iter().map(String::as_str).chain(flags.iter().copied()).collect();
        let program = self.worker_program.lock().expect("no test panics while it holds it").clone();
        let mut command = command_of(&program, self.home(), &words);
        command.envs(self.setup.worker_env.iter().copied()).envs(environment.iter().copied());
        if self.setup.fake_clocks {
            fake_clock(self.home(), "worker", &mut command);
        }
        *self.worker() = Some(Proc::start("worker", self.home(), command));
    }

    /// From its next start on the worker is a copy of the program, which is put into the place of the one there is as a
    /// package manager does: renamed over it.
    pub(crate) fn install_worker(&self) -> PathBuf {
        let (program, fresh) = (self.home().join("bin/swarm"), self.home().join("bin/swarm.new"));
        std::fs::create_dir_all(self.home().join("bin")).expect("a directory can be made");
        std::fs::copy(PROGRAM, &fresh).expect("the program can be copied");
        std::fs::rename(&fresh, &program).expect("it can be renamed");
        *self.worker_program.lock().expect("no test panics while it holds it") = program.clone();
        program
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

/// The image of a swarm's jobs. An engine in memory runs no programs, and has it brought anew after each of its deaths.
fn host_image(in_memory: bool) -> HostImage {
    let noise = noise(if in_memory { 0 } else { NOISE }, 0);
    let programs = if in_memory { &[][..] } else { &PROGRAMS };
    host_image_with(programs, None, &[("etc/noise", &noise)]).expect("host programs can be packed")
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
