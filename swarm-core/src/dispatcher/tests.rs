//! Scheduler and dispatcher together, against a store and a ledger in memory, with workers that are a queue and a socket.

mod requirements;

use std::io::ErrorKind;

use swarm_protocol::heartbeat::{Heartbeat, WorkerEnd};
use swarm_protocol::link::{LiveSet, TaskOrder, VERSION, VERSION_MIN};
use swarm_protocol::spec::{JobSpec, Resources};
use swarm_protocol::{AttemptId, BootId, GroupId, JobId, TaskRange};
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::time::timeout;

use super::*;
use crate::clock::ManualClock;
use crate::messages::{Expected, Runnable};
use crate::plan::policy::PolicyConfig;
use crate::store::{Transition, Work};
use crate::testing::{Memory, at, eventually, job_record};

const DEADLINE: Duration = Duration::from_secs(10);
const GIB: u64 = 1 << 30;

struct Swarm {
    memory: Memory,
    clock: Arc<ManualClock>,
    scheduler: mpsc::Sender<SchedulerMsg>,
    dispatcher: mpsc::Sender<DispatcherMsg>,
    sessions: Arc<Sessions>,
    heartbeats: SocketAddr,
    /// Whether the database takes what is to be committed.
    database: watch::Sender<bool>,
    /// What the harvester was told, in a few words each.
    told: watch::Sender<Vec<String>>,
    stop: CancellationToken,
}

impl Drop for Swarm {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

struct FakeWorker {
    id: WorkerId,
    session: SessionId,
    orders: mpsc::Receiver<ToWorker>,
    end: WorkerEnd,
    socket: UdpSocket,
}

async fn harvester(mut inbox: mpsc::Receiver<HarvesterMsg>, told: watch::Sender<Vec<String>>) {
    while let Some(message) = inbox.recv().await {
        let words = match message {
            HarvesterMsg::Expect(expected) => {
                let one =
                    |e: Expected| format!("expect {} on {} after {}+{}", e.attempt, e.worker, e.losses, e.failures);
                expected.into_iter().map(one).collect::<Vec<_>>().join(", ")
            }
            HarvesterMsg::Unsent(attempts) => {
                format!("unsent {}", attempts.iter().map(ToString::to_string).collect::<String>())
            }
            HarvesterMsg::LinkUp { worker, .. } => format!("up {worker}"),
            HarvesterMsg::LinkDown { worker, .. } => format!("down {worker}"),
            HarvesterMsg::Renew { worker, reply, .. } => {
                let _ = reply.send(true);
                format!("renew {worker}")
            }
            other => format!("{other:?}"),
        };
        told.send_modify(|told| told.push(words));
    }
}

impl Swarm {
    async fn start() -> Self {
        let (memory, database) = (Memory::default(), watch::Sender::new(true));
        let clock = Arc::new(ManualClock::new(at(0)));
        let (scheduler, scheduler_inbox) = mpsc::channel(64);
        let (dispatcher, dispatcher_inbox) = mpsc::channel(64);
        let (to_harvester, harvester_inbox) = mpsc::channel(64);
        let (told, sessions, stop) =
            (watch::Sender::default(), Arc::new(Sessions::default()), CancellationToken::new());
        tokio::spawn(harvester(harvester_inbox, told.clone()));
        let socket = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let heartbeats = socket.local_addr().unwrap();
        let deps = Deps {
            ledger: memory.ledger_behind(database.subscribe()),
            store: Arc::new(memory.clone()),
            scheduler: scheduler.clone(),
            harvester: to_harvester,
            cache: crate::testing::cache(),
            clock: Arc::clone(&clock) as Arc<dyn Clock>,
            socket,
            sessions: Arc::clone(&sessions),
            swarm: SwarmId(uuid::Uuid::nil()),
            epoch: Epoch(3),
            config: Config { sweep_ms: 20, heartbeat_interval_ms: 2000, ..Config::of(&CoreConfig::default()) },
        };
        let gauge = Gauge::new("scheduler", &scheduler);
        let policy = PolicyConfig::default().build();
        tokio::spawn(crate::scheduler::run(scheduler_inbox, policy, dispatcher.clone(), gauge, stop.clone()));
        tokio::spawn(run(dispatcher_inbox, deps, Gauge::new("dispatcher", &dispatcher), stop.clone()));
        Self { memory, clock, scheduler, dispatcher, sessions, heartbeats, database, told, stop }
    }

    async fn tell(&self, message: DispatcherMsg) {
        self.dispatcher.send(message).await.unwrap();
    }

    /// A job of `tasks` tasks that may run now.
    async fn enqueue(&self, id: u64, priority: i32, cores: u32, tasks: u32) {
        let mut record = job_record(id);
        record.spec = JobSpec::new("busybox");
        record.spec.priority = priority;
        record.spec.resources = Resources { cpu_millis: cores * 1000, memory_bytes: GIB };
        record.spec.array = TaskRange::new(0, tasks - 1);
        self.memory.change(|jobs| jobs.entry(JobId(id)).or_insert(record).id);
        self.offer(id, priority, cores, Work::Fresh(TaskRange { first: 0, last: tasks - 1 })).await;
    }

    async fn offer(&self, id: u64, priority: i32, cores: u32, work: Work) {
        let shape = shape(cores);
        let runnable = Runnable { job: JobId(id), group: GroupId(1), priority, runnable_since: at(0), shape, work };
        self.scheduler.send(SchedulerMsg::Enqueue(runnable)).await.unwrap();
    }

    async fn try_connect(&self, id: u64, hello: Hello) -> (Welcome, mpsc::Receiver<ToWorker>) {
        let ((link, orders), (reply, welcome)) = (mpsc::channel(64), oneshot::channel());
        let (worker, name, hello) = (WorkerId(id), format!("w{id}"), Box::new(hello));
        self.tell(DispatcherMsg::Connect { worker, name, hello, link, reply }).await;
        (welcome.await.unwrap(), orders)
    }

    /// Connects a worker whose state report is not judged yet.
    async fn connect(&self, id: u64, cores: u32, slots: u32) -> FakeWorker {
        let hello = hello(cores, slots);
        let (welcome, orders) = self.try_connect(id, hello.clone()).await;
        let Welcome::Accepted { version, worker, epoch, session, nonce, secret, .. } = welcome else {
            panic!("{welcome:?}")
        };
        let (worker_nonce, core_nonce) = (hello.nonce, nonce);
        let handshake = Handshake { worker_nonce, core_nonce, session, worker, epoch, link_version: version };
        let end = WorkerEnd::new(&secret, &handshake);
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(self.heartbeats).await.unwrap();
        FakeWorker { id: worker, session, orders, end, socket }
    }

    async fn worker(&self, id: u64, cores: u32, slots: u32) -> FakeWorker {
        let worker = self.connect(id, cores, slots).await;
        self.tell(DispatcherMsg::Ready { worker: worker.id, session: worker.session, held: Vec::new() }).await;
        worker
    }

    async fn freed(&self, worker: &FakeWorker, order: &TaskOrder) {
        self.tell(DispatcherMsg::Freed { worker: worker.id, attempt: order.attempt }).await;
    }

    async fn views(&self) -> Vec<swarm_protocol::api::WorkerView> {
        let (reply, views) = oneshot::channel();
        self.tell(DispatcherMsg::Workers { reply }).await;
        views.await.unwrap()
    }

    /// Waits until the dispatcher has filled the workers with what it was told of so far.
    async fn settle(&self) {
        for _ in 0..4 {
            let (reply, position) = oneshot::channel();
            self.scheduler.send(SchedulerMsg::Position { job: JobId(0), reply }).await.unwrap();
            position.await.unwrap();
            self.tell(DispatcherMsg::WorkAvailable).await;
            let (reply, settled) = oneshot::channel();
            self.tell(DispatcherMsg::Settled { reply }).await;
            settled.await.unwrap();
        }
    }

    /// Waits until the worker is promised so many tasks.
    async fn until_live(&self, worker: WorkerId, count: u32) {
        let is_live = async || self.views().await.iter().any(|view| view.id == worker && view.live == count);
        eventually("it is promised work", is_live).await;
    }

    async fn until(&self, words: &str) {
        let mut told = self.told.subscribe();
        let heard = timeout(DEADLINE, told.wait_for(|told| told.iter().any(|one| one == words))).await;
        assert!(heard.is_ok(), "never told `{words}`: {:?}", self.told.borrow());
    }
}

fn shape(cores: u32) -> Shape {
    Shape { needs: Resources { cpu_millis: cores * 1000, memory_bytes: GIB }, ..Shape::default() }
}

fn hello(cores: u32, slots: u32) -> Hello {
    let facts = WorkerFacts {
        cpu_millis: cores * 1000,
        memory_bytes: 64 * GIB,
        slots,
        os: "linux\u{1b}[31m".into(),
        ..WorkerFacts::default()
    };
    Hello { version_min: VERSION_MIN, version_max: VERSION, boot: BootId::random(), nonce: rand::random(), facts }
}

impl FakeWorker {
    async fn order(&mut self) -> TaskOrder {
        match timeout(DEADLINE, self.orders.recv()).await.expect("an order in time").expect("a link") {
            ToWorker::Assign(order) => *order,
            other => panic!("{other:?} where an order was due"),
        }
    }

    fn has_nothing(&mut self) -> bool {
        self.orders.try_recv().is_err()
    }

    fn beat(&mut self, seq: u64) -> Vec<u8> {
        let beat = Heartbeat { seq, live: LiveSet::default(), free_slots: 1, load_millis: 0, accepting: true };
        self.end.seal(&beat).unwrap()
    }

    async fn send(&self, datagram: &[u8]) {
        self.socket.send(datagram).await.unwrap();
    }

    /// Sends a heartbeat; true when the answer to it renews.
    async fn renewed(&mut self, seq: u64) -> bool {
        let beat = self.beat(seq);
        self.answered(seq, &beat).await
    }

    /// As [`Self::renewed`], with the datagram of that heartbeat.
    async fn answered(&mut self, seq: u64, beat: &[u8]) -> bool {
        self.send(beat).await;
        let mut buffer = [0; 512];
        let count = timeout(DEADLINE, self.socket.recv(&mut buffer)).await.expect("an answer in time").unwrap();
        let answer = self.end.open(&buffer[..count]).unwrap();
        assert_eq!(answer.seq, seq);
        answer.renewed
    }

    /// Whether all that ever came back on its socket was read.
    fn heard_no_more(self) -> bool {
        self.socket.into_std().unwrap().recv(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }
}

#[tokio::test]
async fn jobs_go_out_by_priority_one_per_slot_and_only_after_their_commit() {
    let swarm = Swarm::start().await;
    swarm.enqueue(1, 0, 1, 1).await;
    swarm.enqueue(2, 50, 1, 1).await;
    swarm.enqueue(3, 10, 1, 1).await;
    let mut worker = swarm.worker(7, 8, 1).await;
    for (count, job) in [2, 3, 1].into_iter().enumerate() {
        let order = worker.order().await;
        assert_eq!(order.attempt, AttemptId { job: JobId(job), task: 0, attempt: 1 });
        assert_eq!(swarm.memory.log().len(), count + 1);
        let told = swarm.told.borrow().clone();
        assert!(told.contains(&format!("expect {job}.0.1 on 7 after 0+0")), "{told:?}");
        swarm.settle().await;
        assert!(worker.has_nothing(), "one slot, one task");
        swarm.freed(&worker, &order).await;
    }
}

#[tokio::test]
async fn an_idle_worker_that_refused_is_passed_over_for_a_while() {
    let swarm = Swarm::start().await;
    let (mut refusing, mut other) = (swarm.worker(1, 8, 8).await, swarm.worker(2, 2, 2).await);
    swarm.tell(DispatcherMsg::Declined(refusing.id)).await;
    // Or a round that began before could still choose it.
    swarm.settle().await;
    for job in 1..=3 {
        swarm.enqueue(job, 0, 1, 1).await;
    }
    let (first, second) = (other.order().await, other.order().await);
    assert_eq!([first, second].map(|order| order.attempt.job), [JobId(1), JobId(2)]);
    swarm.settle().await;
    assert!(refusing.has_nothing());
    swarm.clock.advance_ms(9_999);
    assert!(refusing.renewed(1).await);
    swarm.settle().await;
    assert!(refusing.has_nothing());
    swarm.clock.advance_ms(1);
    assert_eq!(refusing.order().await.attempt.job, JobId(3));
}

#[tokio::test]
async fn a_big_job_waits_without_blocking_and_runs_when_room_appears() {
    let swarm = Swarm::start().await;
    let mut worker = swarm.worker(1, 4, 8).await;
    swarm.enqueue(1, 0, 3, 1).await;
    let first = worker.order().await;
    swarm.enqueue(2, 100, 4, 1).await;
    swarm.enqueue(3, 0, 1, 1).await;
    let small = worker.order().await;
    assert_eq!(small.attempt.job, JobId(3));
    let (reply, reasons) = oneshot::channel();
    let shape = shape(4);
    swarm.tell(DispatcherMsg::Why { shape, reply }).await;
    let reasons = reasons.await.unwrap();
    assert_eq!((reasons[0].code.as_str(), reasons[0].worker.as_deref()), ("cpu", Some("w1")));
    swarm.freed(&worker, &first).await;
    swarm.settle().await;
    assert!(worker.has_nothing(), "three of four cores are not enough");
    swarm.freed(&worker, &small).await;
    assert_eq!(worker.order().await.attempt.job, JobId(2));
}

#[tokio::test]
async fn an_array_is_spread_and_committed_in_ascending_order() {
    let swarm = Swarm::start().await;
    let (mut one, mut two) = (swarm.worker(1, 2, 2).await, swarm.worker(2, 4, 4).await);
    swarm.enqueue(5, 0, 1, 10).await;
    let mut seen = Vec::new();
    for _ in 0..2 {
        seen.push(one.order().await);
    }
    for _ in 0..4 {
        seen.push(two.order().await);
    }
    swarm.settle().await;
    assert!(one.has_nothing() && two.has_nothing());
    swarm.freed(&one, &seen[0]).await;
    seen.push(one.order().await);
    let mut tasks: Vec<_> = seen.iter().map(|order| order.attempt.task).collect();
    tasks.sort_unstable();
    assert_eq!(tasks, [0, 1, 2, 3, 4, 5, 6]);
    let mut next = 0;
    for transition in swarm.memory.log() {
        let Transition::Assign { work: Work::Fresh(range), .. } = transition else { panic!("{transition:?}") };
        assert_eq!(range.first, next);
        next = range.last + 1;
    }
    swarm.offer(5, 0, 1, Work::Again(vec![(0, 2)])).await;
    swarm.freed(&two, &seen[2]).await;
    swarm.until("expect 5.0.2 on 2 after 1+3").await;
}

#[tokio::test]
async fn a_refused_assignment_frees_its_room() {
    let swarm = Swarm::start().await;
    let mut cancelled = job_record(1);
    cancelled.cancel_requested = true;
    swarm.memory.change(|jobs| jobs.insert(JobId(1), cancelled));
    swarm.enqueue(1, 100, 1, 1).await;
    let mut worker = swarm.worker(1, 1, 1).await;
    swarm.enqueue(2, 0, 1, 1).await;
    assert_eq!(worker.order().await.attempt.job, JobId(2));
    assert_eq!(swarm.views().await[0].live, 1);
    assert!(!swarm.told.borrow().iter().any(|told| told.contains("expect 1.")));
}

#[tokio::test]
async fn while_an_assignment_waits_for_its_commit_all_else_is_answered() {
    let swarm = Swarm::start().await;
    let mut worker = swarm.worker(1, 1, 1).await;
    swarm.settle().await;
    swarm.database.send_replace(false);
    swarm.enqueue(1, 0, 1, 1).await;
    swarm.until_live(worker.id, 1).await;
    let (reply, mut settled) = oneshot::channel();
    swarm.tell(DispatcherMsg::Settled { reply }).await;
    let mut other = swarm.worker(2, 1, 1).await;
    swarm.enqueue(2, 0, 1, 1).await;
    swarm.until_live(other.id, 1).await;
    assert!(worker.has_nothing() && settled.try_recv().is_err(), "it is on its way");
    assert!(!swarm.told.borrow().iter().any(|told| told.contains("expect")), "{:?}", swarm.told.borrow());

    swarm.database.send_replace(true);
    assert_eq!(worker.order().await.attempt.job, JobId(1));
    let told = swarm.told.borrow().clone();
    assert!(told.iter().any(|told| told.contains("expect 1.0.1 on 1")), "before its order: {told:?}");
    timeout(DEADLINE, settled).await.expect("it is told in time").unwrap();
    assert_eq!(other.order().await.attempt.job, JobId(2));
}

#[tokio::test]
async fn a_worker_that_links_anew_during_a_commit_keeps_its_promise_and_gets_the_order_if_it_is_still_fit() {
    let swarm = Swarm::start().await;
    let requires = |id| {
        let shape = Shape { require: crate::testing::labels(&[("disk", "fast")]), ..shape(1) };
        let work = Work::Fresh(TaskRange { first: 0, last: 0 });
        Runnable { job: JobId(id), group: GroupId(1), priority: 0, runnable_since: at(0), shape, work }
    };
    let relabel = async |worker: &FakeWorker, disk: &str| {
        let (id, session) = (worker.id, worker.session);
        let labels = Labels::clone(&crate::testing::labels(&[("disk", disk)]));
        swarm.tell(DispatcherMsg::Labels { worker: id, session, labels }).await;
        swarm.tell(DispatcherMsg::Ready { worker: id, session, held: Vec::new() }).await;
    };
    // As it was, under other labels, and smaller.
    for (job, then, cores) in [(1, "fast", 1), (2, "slow", 1), (3, "fast", 0)] {
        let worker = swarm.connect(job, 1, 1).await;
        relabel(&worker, "fast").await;
        swarm.settle().await;
        swarm.database.send_replace(false);
        swarm.memory.change(|jobs| jobs.insert(JobId(job), job_record(job)));
        swarm.scheduler.send(SchedulerMsg::Enqueue(requires(job))).await.unwrap();
        swarm.until_live(worker.id, 1).await;
        let mut anew = swarm.connect(job, cores, 1).await;
        relabel(&anew, then).await;
        swarm.until_live(worker.id, 1).await;
        swarm.database.send_replace(true);
        swarm.until(&format!("expect {job}.0.1 on {job} after 0+0")).await;
        swarm.settle().await;
        if (then, cores) == ("fast", 1) {
            assert_eq!(anew.order().await.attempt.job, JobId(job));
        } else {
            // Nobody waits for the end of its lease.
            swarm.until(&format!("unsent {job}.0.1")).await;
        }
        assert!(anew.has_nothing());
        assert_eq!(swarm.views().await.iter().find(|view| view.id == anew.id).unwrap().live, 1);
    }
}

#[tokio::test]
async fn nothing_goes_to_workers_that_are_not_judged_drained_or_silent() {
    let swarm = Swarm::start().await;
    let mut worker = swarm.connect(1, 8, 8).await;
    swarm.enqueue(1, 0, 1, 1).await;
    swarm.settle().await;
    assert!(worker.has_nothing(), "its state report was not judged");
    let held = vec![(AttemptId { job: JobId(9), task: 0, attempt: 1 }, Resources { cpu_millis: 500, memory_bytes: 7 })];
    swarm.tell(DispatcherMsg::Ready { worker: worker.id, session: worker.session, held }).await;
    worker.order().await;
    let view = swarm.views().await.remove(0);
    assert_eq!((view.live, view.used_cpu_millis, view.used_memory_bytes), (2, 1500, GIB + 7));
    assert!(!view.facts.os.contains('\u{1b}'), "hostile facts are made harmless");

    swarm.tell(DispatcherMsg::Drain { worker: worker.id, draining: true }).await;
    assert_eq!(worker.orders.recv().await, Some(ToWorker::Drain));
    swarm.enqueue(2, 0, 1, 1).await;
    swarm.settle().await;
    assert!(worker.has_nothing());
    swarm.tell(DispatcherMsg::Drain { worker: worker.id, draining: false }).await;
    assert_eq!(worker.orders.recv().await, Some(ToWorker::Resume));
    worker.order().await;

    swarm.clock.advance_ms(6_001);
    swarm.enqueue(3, 0, 1, 1).await;
    swarm.settle().await;
    assert!(worker.has_nothing());
    assert_eq!(swarm.views().await[0].state, "suspect");
    assert!(worker.renewed(1).await);
    assert_eq!(worker.order().await.attempt.job, JobId(3));
}

#[tokio::test]
async fn only_fresh_heartbeats_of_the_current_session_count() {
    let swarm = Swarm::start().await;
    // Datagrams are taken in order: when this worker is answered, what was sent before has been judged.
    let mut other = swarm.worker(2, 1, 1).await;
    let mut old = swarm.worker(1, 1, 1).await;
    let first = old.beat(1);
    assert!(old.answered(1, &first).await);
    let heard = swarm.sessions.heard(old.session);
    swarm.clock.advance_ms(1000);
    let mut forged = old.beat(2);
    forged[40] ^= 1;
    let garbage = [&first[..], &forged, &[0; 4], &[1; 300], &first[..60]];
    for datagram in garbage {
        old.send(datagram).await;
    }
    assert!(other.renewed(1).await);
    assert_eq!(swarm.sessions.counts(), (2, 5));
    assert_eq!(swarm.sessions.heard(old.session), heard, "garbage is no sign of life");

    let mut new = swarm.worker(1, 1, 1).await;
    swarm.until("down 1").await;
    let stale = old.beat(3);
    old.send(&stale).await;
    assert!(new.renewed(1).await);
    assert_eq!(swarm.sessions.counts(), (3, 6));
    assert_eq!(old.orders.recv().await, None, "the replaced link is dropped");
    // The end of the old link, told late, does not touch the new one.
    swarm.tell(DispatcherMsg::Disconnected { worker: old.id, session: old.session }).await;
    assert_eq!(swarm.views().await[0].state, "ready");
    swarm.tell(DispatcherMsg::Disconnected { worker: new.id, session: new.session }).await;
    assert_eq!(swarm.views().await[0].state, "offline");
    let late = new.beat(2);
    new.send(&late).await;
    assert!(other.renewed(2).await);
    assert_eq!(swarm.sessions.counts(), (4, 7));
    assert!(old.heard_no_more() && new.heard_no_more());
}

#[tokio::test]
async fn unknown_versions_and_revoked_workers_are_refused_with_a_reason() {
    let swarm = Swarm::start().await;
    let (welcome, _) = swarm.try_connect(1, Hello { version_min: 9, version_max: 9, ..hello(1, 1) }).await;
    let Welcome::Refused { reason, retry: true } = welcome else { panic!("{welcome:?}") };
    assert!(reason.contains("9 to 9") && reason.contains("update the core"), "{reason}");
    let mut worker = swarm.worker(1, 1, 1).await;
    swarm.tell(DispatcherMsg::Revoked(worker.id)).await;
    assert_eq!(worker.orders.recv().await, None);
    swarm.until("down 1").await;
    assert!(matches!(swarm.try_connect(1, hello(1, 1)).await.0, Welcome::Refused { retry: false, .. }));
}

#[tokio::test]
async fn a_worker_that_does_not_read_is_cut_off_and_orders_never_do_that() {
    let swarm = Swarm::start().await;
    let worker = swarm.worker(1, 1000, 1000).await;
    swarm.enqueue(1, 0, 1, 1000).await;
    swarm.settle().await;
    let view = swarm.views().await.remove(0);
    assert!(view.live > 0 && view.live < 64, "no more orders than the link takes: {}", view.live);
    assert_eq!(view.state, "ready");
    for _ in 0..64 {
        swarm.tell(DispatcherMsg::Send { worker: worker.id, frame: Box::new(ToWorker::Drain) }).await;
    }
    swarm.until("down 1").await;
    assert_eq!(swarm.views().await[0].state, "offline");
}
