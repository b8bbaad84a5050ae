//! The API over a real store, blobs on disk and modules that only answer.

mod access;
mod bytes;
mod jobs;
mod links;
mod openapi;
mod outages;
mod sessions;

use std::sync::Mutex;

use rocket::http::{Header, Method, Status};
use rocket::local::asynchronous::{Client, LocalResponse};
use serde_json::Value;
use swarm_protocol::api::{JoinRequest, JoinTokenRequest, LoginRequest, Role, UserRequest};
use swarm_protocol::link::{ImageOrder, LayerOrder, Welcome};
use swarm_protocol::{BootId, JobId, SessionId, TaskRange};
use tokio::sync::mpsc;
use zeroize::Zeroizing;

use super::*;
use crate::blobs::{DiskBlobs, MasterKey};
use crate::clock::{ManualClock, truncate};
use crate::identity::{Account, IdentityConfig};
use crate::logger::{Filter, LoggerConfig, Stderr, scoped};
use crate::messages::{
    DispatcherMsg, HarvesterMsg, HibernatorMsg, LedgerEntry, LedgerHandle, LinkTx, ReceiverMsg, SchedulerMsg,
};
use crate::plan::fit::misfit;
use crate::plan::place::Amount;
use crate::plan::why::{Standing, Subject};
use crate::store::{Applied, NewImage, Transition, Work};
use crate::supervise::{Gauge, History};
use crate::testing::eventually;

/// What the stub modules saw.
#[derive(Debug)]
enum Seen {
    Linked(LinkTx),
    Frames(Vec<swarm_protocol::link::ToCore>),
    Disconnected,
    LinkDown,
}

/// A transition that is committed just before the first one that is such: somebody was quicker.
type Quicker = (fn(&Transition) -> bool, Transition);

#[derive(Clone, Default)]
struct Ahead(Arc<Mutex<Option<Quicker>>>);

impl Ahead {
    fn of(&self, which: fn(&Transition) -> bool, quicker: Transition) {
        *self.0.lock().unwrap() = Some((which, quicker));
    }

    /// A ledger before `ledger`.
    fn before(&self, ledger: LedgerHandle) -> LedgerHandle {
        let (sender, mut entries) = mpsc::channel::<LedgerEntry>(64);
        let ahead = self.clone();
        tokio::spawn(async move {
            while let Some(entry) = entries.recv().await {
                let quicker = ahead.0.lock().unwrap().take_if(|(which, _)| which(&entry.transition));
                if let Some((_, quicker)) = quicker {
                    ledger.commit(quicker).await.unwrap().unwrap();
                }
                if ledger.0.send(entry).await.is_err() {
                    return;
                }
            }
        });
        LedgerHandle(sender)
    }
}

/// What is logged on this thread until the first part is dropped.
fn logged() -> (tracing::dispatcher::DefaultGuard, impl Fn() -> Vec<String>) {
    let (dispatch, log) = scoped(&LoggerConfig { stderr: Stderr::Off, ..LoggerConfig::default() }).unwrap();
    let messages =
        move || log.recent(usize::MAX, &Filter::everything()).iter().map(|e| e.message.to_string()).collect();
    (tracing::dispatcher::set_default(&dispatch), messages)
}

struct Swarm {
    client: Client,
    handles: Handles,
    ahead: Ahead,
    store: Arc<dyn Store>,
    blobs: Arc<dyn BlobStore>,
    identity: Arc<Identity>,
    cache: Arc<dyn Cache>,
    clock: Arc<ManualClock>,
    dir: tempfile::TempDir,
    _seen: mpsc::Receiver<Seen>,
    _stop: tokio_util::sync::DropGuard,
}

fn stub<M: Send + 'static, F: Future<Output = ()> + Send>(
    answer: impl Fn(M) -> F + Send + Sync + 'static,
) -> mpsc::Sender<M> {
    let (inbox, mut messages) = mpsc::channel(64);
    tokio::spawn(async move {
        while let Some(message) = messages.recv().await {
            answer(message).await;
        }
    });
    inbox
}

fn receiver(ledger: LedgerHandle) -> mpsc::Sender<ReceiverMsg> {
    stub(move |message| {
        let ledger = ledger.clone();
        async move {
            let (transition, reply) = match message {
                ReceiverMsg::Submit { new, reply } => (Transition::CreateJob(new), reply),
                ReceiverMsg::Cancel { job, reply } => {
                    (Transition::Cancel { job, at: truncate(chrono::Utc::now()) }, reply)
                }
            };
            let _ = reply.send(ledger.commit(transition).await.unwrap());
        }
    })
}

fn dispatcher(seen: mpsc::Sender<Seen>, swarm: SwarmId) -> mpsc::Sender<DispatcherMsg> {
    stub(move |message| {
        let seen = seen.clone();
        async move {
            match message {
                DispatcherMsg::Connect { worker, link, reply, hello, .. } => {
                    let version = swarm_protocol::link::agree(&hello).unwrap();
                    let (epoch, session) = (Epoch(1), SessionId(7));
                    let (nonce, secret) = ([1; 32], [2; 32]);
                    seen.send(Seen::Linked(link)).await.unwrap();
                    let _ = reply.send(Welcome::Accepted {
                        version,
                        swarm,
                        worker,
                        epoch,
                        session,
                        nonce,
                        secret,
                        heartbeat_port: 1,
                        heartbeat_interval_ms: 1000,
                    });
                }
                DispatcherMsg::Why { reply, .. } => drop(reply.send(Vec::new())),
                DispatcherMsg::Workers { reply } => drop(reply.send(Vec::new())),
                DispatcherMsg::Misfit { shape, reply } => drop(reply.send(misfit(&[one_worker()], &shape))),
                DispatcherMsg::Disconnected { session: SessionId(7), .. } => {
                    seen.send(Seen::Disconnected).await.unwrap();
                }
                _ => {}
            }
        }
    })
}

/// All that the stub dispatcher knows of: 4 cores and 8 GiB.
fn one_worker() -> Subject {
    let capacity = Amount { cpu_millis: 4_000, memory_bytes: 8 << 30, slots: 4 };
    let (used, labels) = (Amount::default(), Some(Arc::default()));
    Subject { name: "w1".to_owned(), standing: Standing::Offline, capacity, used, labels, link_version: None }
}

fn harvester(seen: mpsc::Sender<Seen>) -> mpsc::Sender<HarvesterMsg> {
    stub(move |message| {
        let seen = seen.clone();
        async move {
            match message {
                HarvesterMsg::DeclareLost { reply, .. } => drop(reply.send(0)),
                HarvesterMsg::Frames { frames, .. } => seen.send(Seen::Frames(frames)).await.unwrap(),
                HarvesterMsg::LinkDown { .. } => seen.send(Seen::LinkDown).await.unwrap(),
                _ => {}
            }
        }
    })
}

async fn state(config: CoreConfig) -> (ApiState, Ahead, Arc<ManualClock>, mpsc::Receiver<Seen>, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let url = dir.path().join("swarm.db").display().to_string();
    let store: Arc<dyn Store> = Arc::new(blocking::run(move || crate::store::Db::open(&url).unwrap()).await);
    let key = Arc::new(MasterKey::from_bytes(Zeroizing::new([1; 32])));
    let blobs: Arc<dyn BlobStore> = Arc::new(DiskBlobs::open(&dir.path().join("blobs"), key).unwrap());
    let clock = Arc::new(ManualClock::new(truncate(chrono::Utc::now())));
    let supervisor = Supervisor::new(CancellationToken::new(), History::default());
    let epoch = store.take_over().unwrap();
    let swarm = store.swarm_id().unwrap();
    let (ledger, inbox) = mpsc::channel(64);
    let gauge = Gauge::new("ledger", &ledger);
    supervisor
        .spawn(gauge.clone(), crate::ledger::run(inbox, Arc::clone(&store), epoch, gauge, supervisor.stop().clone()));
    let ahead = Ahead::default();
    let ledger = ahead.before(LedgerHandle(ledger));
    let cache = crate::cache::open(&config, swarm, clock.clone()).unwrap();
    let identity = IdentityConfig { data_dir: dir.path().into(), swarm, allow_root: true };
    let (records, counts) = (Arc::clone(&store), Arc::clone(&cache));
    let identity = Identity::start(identity, records, ledger.clone(), counts, clock.clone()).await.unwrap();
    let (seen, watch) = mpsc::channel(64);
    let handles = Handles {
        receiver: receiver(ledger.clone()),
        ledger,
        scheduler: stub(|message| async {
            if let SchedulerMsg::Position { reply, .. } = message {
                let _ = reply.send(Some(3));
            }
        }),
        hibernator: stub(|_: HibernatorMsg| async {}),
        dispatcher: dispatcher(seen.clone(), swarm),
        harvester: harvester(seen),
    };
    let config = Arc::new(config);
    let archive = Gauge::without_inbox("archive");
    supervisor.show(archive.clone());
    let state = ApiState {
        handles,
        store,
        blobs,
        identity,
        cache,
        clock: clock.clone(),
        supervisor,
        archive,
        config,
        swarm,
        epoch,
        logger: None,
    };
    (state, ahead, clock, watch, dir)
}

impl Swarm {
    async fn start() -> Self {
        Self::with(CoreConfig::default()).await
    }

    async fn with(config: CoreConfig) -> Self {
        let (state, ahead, clock, seen, dir) = state(config).await;
        let stop = state.stop().clone().drop_guard();
        let (handles, blobs, identity) = (state.handles.clone(), Arc::clone(&state.blobs), Arc::clone(&state.identity));
        let (store, cache) = (Arc::clone(&state.store), Arc::clone(&state.cache));
        let rocket = build(state, "127.0.0.1:0".parse().unwrap());
        let client = Client::untracked(rocket).await.unwrap();
        Self { client, handles, ahead, store, blobs, identity, cache, clock, dir, _seen: seen, _stop: stop }
    }

    async fn login(&self, user: &str, password: &str) -> swarm_protocol::api::Tokens {
        let request = LoginRequest { user: user.into(), password: password.into() };
        self.identity.login("127.0.0.1".parse().unwrap(), request).await.unwrap()
    }

    async fn admin(&self) -> String {
        let password = std::fs::read_to_string(self.dir.path().join("admin-password")).unwrap();
        self.login("admin", password.trim()).await.access_token
    }

    /// An account with the password `a password of <name>`, and a token for it.
    async fn user(&self, name: &str, role: Role, group: &str) -> (Arc<Account>, String) {
        let password = format!("a password of {name}");
        let request = UserRequest { user: name.into(), password: password.clone(), role, group: Some(group.into()) };
        let account = self.identity.create_user(request).await.unwrap();
        (account, self.login(name, &password).await.access_token)
    }

    async fn send<'c>(
        &'c self,
        method: Method,
        path: &str,
        token: &str,
        headers: &[(&'static str, &str)],
        body: impl AsRef<[u8]>,
    ) -> LocalResponse<'c> {
        let mut request = self.client.req(method, path.to_owned()).body(body);
        if !token.is_empty() {
            request.add_header(Header::new("Authorization", format!("Bearer {token}")));
        }
        for (name, value) in headers {
            request.add_header(Header::new(*name, (*value).to_owned()));
        }
        request.dispatch().await
    }

    async fn json(&self, method: Method, path: &str, token: &str, body: impl AsRef<[u8]>) -> (u16, Value) {
        let answer = self.send(method, path, token, &[], body).await;
        let status = answer.status().code;
        let bytes = answer.into_bytes().await.unwrap_or_default();
        (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    async fn get(&self, path: &str, token: &str) -> (u16, Value) {
        self.json(Method::Get, path, token, "").await
    }

    async fn commit(&self, transition: Transition) -> Applied {
        self.handles.ledger.commit(transition).await.unwrap().unwrap()
    }

    fn store_blob(&self, bytes: &[u8]) -> Digest {
        let mut upload = self.blobs.begin(1 << 20).unwrap();
        std::io::Write::write_all(&mut upload, bytes).unwrap();
        upload.finish(None).unwrap().digest
    }

    /// An image named `tool:latest` for the group.
    async fn image(&self, group: GroupId) -> ImageOrder {
        let config = self.store_blob(b"the config");
        let layer = LayerOrder { digest: self.store_blob(b"the layer"), diff_id: Digest::of(b"x"), size_bytes: 9 };
        let image = ImageOrder { config, config_bytes: 10, layers: vec![layer] };
        let (name, platform, pushed_at) = ("tool:latest".into(), "linux/amd64".into(), self.clock.now());
        self.commit(Transition::TagImage(Box::new(NewImage {
            group,
            name,
            image: image.clone(),
            platform,
            pushed_at,
        })))
        .await;
        image
    }

    async fn job(&self, token: &str, spec: &str) -> JobId {
        let (status, body) = self.json(Method::Post, "/api/v1/jobs", token, spec).await;
        assert_eq!(status, 201, "{body}");
        JobId(body["job"].as_u64().unwrap())
    }

    /// A worker, and its key.
    async fn worker(&self, name: &str) -> (WorkerId, String) {
        join(&self.identity, name).await
    }

    async fn assign(&self, job: JobId, worker: WorkerId) -> AttemptId {
        let work = Work::Fresh(TaskRange::one(0));
        self.commit(Transition::Assign { job, work, worker, at: self.clock.now() }).await;
        AttemptId { job, task: 0, attempt: 1 }
    }
}

/// Lets a worker join: its number, and its key.
async fn join(identity: &Identity, name: &str) -> (WorkerId, String) {
    let request = JoinTokenRequest { worker: name.to_owned(), expires_in_s: 60 };
    let token = identity.join_token(request).await.unwrap().token;
    let request = JoinRequest { token, worker: name.to_owned() };
    // From another address than the logins of the tests, which are limited.
    let joined = identity.join("127.0.0.9".parse().unwrap(), request).await.unwrap().delivered();
    (joined.worker, joined.key)
}

fn fields(problem: &Value) -> Vec<&str> {
    problem["errors"].as_array().unwrap().iter().map(|error| error["field"].as_str().unwrap()).collect()
}
