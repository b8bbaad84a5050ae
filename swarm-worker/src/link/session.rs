//! One life of the link, from the handshake to the break.

use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Sink, SinkExt, Stream, StreamExt};
use swarm_protocol::heartbeat::{Handshake, WorkerEnd};
use swarm_protocol::labels::Labels;
use swarm_protocol::link::{
    HANDSHAKE, Hello, LABELS_SINCE, ToCore, ToWorker, VERSION, VERSION_MIN, Welcome, WorkerFacts, decode, encode,
};
use tokio::sync::{mpsc, watch};

use super::frames::Batches;
use super::{LinkError, Renewals, orders};
use crate::config::WorkerConfig;
use crate::context::Ctx;
use crate::hub::Session;
use crate::labels::labels;
use crate::network::{ConnectError, Link};
use crate::runtime::EngineFacts;
use crate::{heartbeat, offer};

/// Frames queued towards the core; beyond it, attempts wait.
const QUEUE_FRAMES: usize = 256;
/// For connecting and the handshake together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// State reports follow each other at this pace at most.
const REPORT_PAUSE: Duration = Duration::from_millis(100);

/// What the parts of one session share.
pub(super) struct Shared {
    pub(super) out: mpsc::Sender<ToCore>,
    renewals: Mutex<Renewals>,
    /// Send time of the last thing the core has answered on this link: an order read now was sent after that.
    fresh_ns: Mutex<u64>,
    reports: Mutex<Renewals>,
}

impl Shared {
    /// Where the lease of an order read now counts from: the order may have waited in a buffer, but the core sent it
    /// after it had answered what was sent at this instant.
    pub(super) fn fresh_ns(&self) -> u64 {
        *lock(&self.fresh_ns)
    }

    /// A renewal was answered; true when it counts.
    pub(super) fn answered(&self, ctx: &Ctx, seq: u64, matched: bool) {
        let Some((renewal, sent_ns)) = lock(&self.renewals).answer(seq) else { return };
        *lock(&self.fresh_ns) = sent_ns;
        if matched {
            ctx.hub.renew(renewal, sent_ns);
        } else {
            ctx.hub.report_due.notify_one();
        }
    }

    /// A state report was judged: the core then counts the leases of what stays from that report on, and so does this
    /// worker. Without that, a worker whose attempts change all the time would hardly ever match.
    pub(super) fn judged(&self, ctx: &Ctx, seq: u64) {
        let Some((covered, sent_ns)) = lock(&self.reports).answer(seq) else { return };
        *lock(&self.fresh_ns) = sent_ns;
        ctx.hub.renew(covered, sent_ns);
    }

    fn report(&self, ctx: &Ctx) -> ToCore {
        // What is taken in between the two looks is in the report but not covered, which only errs towards caution.
        let covered = ctx.hub.renewal();
        let seq = lock(&self.reports).send(covered, ctx.machine.now_ns());
        ToCore::StateReport { seq, attempts: ctx.hub.report() }
    }

    fn renewal(&self, ctx: &Ctx) -> ToCore {
        let renewal = ctx.hub.renewal();
        let seq = lock(&self.renewals).send(renewal, ctx.machine.now_ns());
        ToCore::Renew { seq, live: renewal.live }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Connects, shakes hands and serves until something breaks.
pub(super) async fn run(ctx: &Arc<Ctx>) -> Result<Infallible, LinkError> {
    let began_ns = ctx.machine.now_ns();
    let mut engine = ctx.engine.subscribe();
    let found = engine.borrow_and_update().clone();
    let offer = offer::facts(&ctx.config, &found);
    let shaken = tokio::time::timeout(CONNECT_TIMEOUT, shake_hands(ctx, &offer)).await;
    let (Link { to_core, from_core }, welcomed) = shaken.map_err(|_| LinkError::Silent(CONNECT_TIMEOUT))??;
    let (out, queue) = mpsc::channel(QUEUE_FRAMES);
    let shared = Shared {
        out: out.clone(),
        renewals: Mutex::default(),
        fresh_ns: Mutex::new(began_ns),
        reports: Mutex::default(),
    };
    // Queued before any attempt can queue anything: the first frame of a link is the state report.
    let _ = out.try_send(shared.report(ctx));
    let mut told = Told { offer, labels: None };
    if welcomed.version >= LABELS_SINCE {
        let labels = labels(&found, &ctx.config.labels);
        let _ = out.try_send(ToCore::Labels { labels: labels.clone() });
        told.labels = Some(labels);
    }
    ctx.hub.set_session(Some(Session { out }));
    tracing::info!(core = %ctx.config.core, epoch = %welcomed.epoch, "the link is up");
    let interval = welcomed.interval;
    // What keeps leases alive comes first, and what may flood last.
    tokio::select! {
        biased;
        ended = renew(ctx, &shared, interval) => ended,
        ended = heartbeat::run(ctx, welcomed.end, welcomed.port, interval) => ended.map_err(LinkError::Heartbeat),
        ended = report(ctx, &shared) => ended,
        ended = tell_news(&ctx.config, engine, told, &shared.out) => ended,
        ended = write(to_core, queue, welcomed.version) => ended,
        ended = read(ctx, &shared, from_core, welcomed.version, silence_max(interval)) => ended,
    }
}

/// The core answers every renewal, so several unanswered ones mean that the connection is dead.
fn silence_max(interval: Duration) -> Duration {
    (interval * 4).max(Duration::from_secs(10))
}

struct Welcomed {
    version: u8,
    epoch: swarm_protocol::Epoch,
    end: WorkerEnd,
    port: u16,
    interval: Duration,
}

async fn shake_hands(ctx: &Ctx, offer: &WorkerFacts) -> Result<(Link, Welcomed), LinkError> {
    let mut link = connect(ctx).await?;
    let nonce: [u8; 32] = rand::random();
    let hello = Hello { version_min: VERSION_MIN, version_max: VERSION, boot: ctx.boot, nonce, facts: offer.clone() };
    link.to_core.send(encode(HANDSHAKE, &[hello]).into()).await?;
    let message = next_message(&mut link.from_core).await?;
    let welcome = decode::<Welcome>(HANDSHAKE, &message)?.into_iter().next().ok_or(LinkError::Closed)?;
    let (version, swarm, worker, epoch, session, core_nonce, secret, port, interval_ms) = match welcome {
        Welcome::Refused { reason, retry } => return Err(LinkError::Refused { reason, retry }),
        Welcome::Accepted {
            version,
            swarm,
            worker,
            epoch,
            session,
            nonce,
            secret,
            heartbeat_port,
            heartbeat_interval_ms,
        } => (version, swarm, worker, epoch, session, nonce, secret, heartbeat_port, heartbeat_interval_ms),
    };
    if !(VERSION_MIN..=VERSION).contains(&version) {
        return Err(LinkError::Version(version));
    }
    settle_swarm(ctx, swarm, worker)?;
    let handshake = Handshake { worker_nonce: nonce, core_nonce, session, worker, epoch, link_version: version };
    let end = WorkerEnd::new(&secret, &handshake);
    // A hostile or broken core must not make this worker spin or sleep for ever.
    let interval = Duration::from_millis(u64::from(interval_ms).clamp(50, 60_000));
    Ok((link, Welcomed { version, epoch, end, port, interval }))
}

/// The first welcome names the swarm for good; any other swarm or number is refused from then on.
fn settle_swarm(ctx: &Ctx, swarm: swarm_protocol::SwarmId, worker: swarm_protocol::WorkerId) -> Result<(), LinkError> {
    if worker != ctx.identity.worker || *ctx.swarm.get_or_init(|| swarm) != swarm {
        return Err(LinkError::OtherSwarm);
    }
    if ctx.identity.swarm.is_none() {
        let identity = crate::identity::Identity { swarm: Some(swarm), ..ctx.identity.clone() };
        identity.save(&ctx.data.path).map_err(|error| LinkError::Identity(format!("{error:#}")))?;
    }
    Ok(())
}

async fn connect(ctx: &Ctx) -> Result<Link, LinkError> {
    ctx.network.link(&ctx.identity.key).await.map_err(|error| match error {
        ConnectError::Unauthorised(status) => LinkError::Unauthorised(status),
        ConnectError::Damaged(_) => LinkError::Identity(error.to_string()),
        ConnectError::Broken(error) => error.into(),
    })
}

async fn next_message(stream: &mut (impl Stream<Item = io::Result<Bytes>> + Unpin)) -> Result<Bytes, LinkError> {
    stream.next().await.transpose()?.ok_or(LinkError::Closed)
}

async fn read(
    ctx: &Arc<Ctx>,
    shared: &Shared,
    mut stream: impl Stream<Item = io::Result<Bytes>> + Unpin,
    version: u8,
    silence_max: Duration,
) -> Result<Infallible, LinkError> {
    loop {
        let message = tokio::time::timeout(silence_max, next_message(&mut stream)).await;
        let message = message.map_err(|_| LinkError::Silent(silence_max))??;
        orders::follow(ctx, shared, decode::<ToWorker>(version, &message)?).await;
    }
}

async fn write(
    mut sink: impl Sink<Bytes, Error = io::Error> + Unpin,
    queue: mpsc::Receiver<ToCore>,
    version: u8,
) -> Result<Infallible, LinkError> {
    let mut batches = Batches::new(queue);
    while let Some(batch) = batches.next().await {
        sink.send(encode(version, &batch).into()).await?;
    }
    Err(LinkError::Closed)
}

async fn renew(ctx: &Ctx, shared: &Shared, interval: Duration) -> Result<Infallible, LinkError> {
    loop {
        let frame = shared.renewal(ctx);
        shared.out.send(frame).await.map_err(|_| LinkError::Closed)?;
        tokio::time::sleep(interval).await;
    }
}

async fn report(ctx: &Ctx, shared: &Shared) -> Result<Infallible, LinkError> {
    loop {
        ctx.hub.report_due.notified().await;
        for frame in [shared.report(ctx), shared.renewal(ctx)] {
            shared.out.send(frame).await.map_err(|_| LinkError::Closed)?;
        }
        tokio::time::sleep(REPORT_PAUSE).await;
    }
}

/// What the core knows of this worker.
struct Told {
    offer: WorkerFacts,
    /// None where it would not understand.
    labels: Option<Labels>,
}

/// Says whatever is not as it was told: labels by a frame, and what is offered by another handshake.
async fn tell_news(
    config: &WorkerConfig,
    mut engine: watch::Receiver<EngineFacts>,
    mut told: Told,
    out: &mpsc::Sender<ToCore>,
) -> Result<Infallible, LinkError> {
    while engine.changed().await.is_ok() {
        let found = engine.borrow_and_update().clone();
        if offer::is_news(&told.offer, &offer::facts(config, &found)) {
            return Err(LinkError::NewOffer);
        }
        let labels = labels(&found, &config.labels);
        if told.labels.as_ref().is_some_and(|told| *told != labels) {
            out.send(ToCore::Labels { labels: labels.clone() }).await.map_err(|_| LinkError::Closed)?;
            told.labels = Some(labels);
        }
    }
    Err(LinkError::Closed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::ContainerRuntime as _;
    use crate::runtime::fake::FakeRuntime;

    #[tokio::test]
    async fn labels_that_changed_are_said_and_an_older_core_hears_nothing() {
        let (config, bare) = (WorkerConfig::default(), FakeRuntime::new().facts().await.unwrap());
        let with = |kernel: &str| EngineFacts { kernel: kernel.to_owned(), ..bare.clone() };
        let (found, (out, mut said)) = (watch::Sender::new(with("6.1")), mpsc::channel(4));
        let told = |labels| Told { offer: offer::facts(&config, &bare), labels };
        let knows = told(Some(labels(&with("6.1"), &config.labels)));
        let telling = async {
            for kernel in ["6.2", "6.3"] {
                found.send_replace(with(kernel));
                let labels = labels(&with(kernel), &config.labels);
                assert_eq!(said.recv().await, Some(ToCore::Labels { labels }));
            }
            // Not everything that an engine says is a label.
            found.send_replace(EngineFacts { api_version: "1.99".into(), ..with("6.3") });
            tokio::task::yield_now().await;
        };
        tokio::select! {
            ended = tell_news(&config, found.subscribe(), knows, &out) => panic!("{ended:?}"),
            ended = tell_news(&config, found.subscribe(), told(None), &out) => panic!("{ended:?}"),
            () = telling => {}
        }
        assert!(said.try_recv().is_err());
    }

    #[tokio::test]
    async fn another_offer_takes_another_handshake() {
        let (config, bare) = (WorkerConfig::default(), FakeRuntime::new().facts().await.unwrap());
        let (found, (out, _said)) = (watch::Sender::new(bare.clone()), mpsc::channel(4));
        let told = Told { offer: offer::facts(&config, &bare), labels: None };
        let news = tell_news(&config, found.subscribe(), told, &out);
        found.send_replace(EngineFacts { cpus: bare.cpus + 1, ..bare });
        assert!(matches!(news.await, Err(LinkError::NewOffer)));
    }
}
