//! What comes to the core from the network, and what its routes make of it.

use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use swarm_core::archive;
use swarm_core::blobs::{BlobStore, DiskBlobs};
use swarm_core::clock::Clock as _;
use swarm_core::http::parked::{Parked, Sender};
use swarm_core::link::{End, Incoming, Outgoing, Peer, converse};
use swarm_core::messages::{Handles, HibernatorMsg, ReceiverMsg};
use swarm_core::store::{
    Applied, JobRecord, LivePhase, NewJob, NewSchedule, Prepared, Refusal, Store, StoreError, Transition, Verdict,
};
use swarm_host::blocking;
use swarm_protocol::link::ImageOrder;
use swarm_protocol::problem::Problem;
use swarm_protocol::spec::JobSpec;
use swarm_protocol::{AttemptId, Digest, JobId, WorkerId};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::{IMAGE, INPUT, SimClock, USER};
use crate::calls::{Answer, Request};
use crate::net::{Arrival, LinkEnd, Net};
use crate::promises::Promises;
use crate::store::FaultyStore;
use crate::time::trace;

/// Bytes of a log that are read at a time.
const READ_BYTES: usize = 1 << 20;

/// More than any output has.
const OUTPUT_BYTES_MAX: u64 = 1 << 20;

/// What comes of an output at one time.
struct Part {
    offset: u64,
    bytes: Bytes,
    is_torn: bool,
}

/// The core as the network sees it.
#[derive(Clone)]
pub(super) struct Server {
    pub(super) handles: Handles,
    pub(super) store: Arc<FaultyStore>,
    pub(super) blobs: Arc<DiskBlobs>,
    pub(super) parked: Arc<Parked>,
    pub(super) clock: SimClock,
    pub(super) promises: Promises,
    pub(super) stop: CancellationToken,
}

/// Why something was not done.
enum Trouble {
    /// It cannot be done now, or nobody knows.
    Again,
    Refused(Refusal),
}

impl From<StoreError> for Trouble {
    fn from(_: StoreError) -> Self {
        Self::Again
    }
}

impl From<swarm_core::messages::Stopping> for Trouble {
    fn from(_: swarm_core::messages::Stopping) -> Self {
        Self::Again
    }
}

impl From<swarm_core::blobs::BlobError> for Trouble {
    fn from(_: swarm_core::blobs::BlobError) -> Self {
        Self::Again
    }
}

type Done<T> = Result<T, Trouble>;

fn gone(what: &str) -> Trouble {
    Trouble::Refused(Refusal::NotFound(what.to_owned()))
}

impl Server {
    pub(super) async fn serve(self, net: Net) -> anyhow::Result<()> {
        let mut arrivals = net.listen();
        loop {
            let arrival = tokio::select! {
                biased;
                () = self.stop.cancelled() => return Ok(()),
                arrival = arrivals.recv() => arrival,
            };
            let server = self.clone();
            match arrival {
                Some(Arrival::Link { key, end }) => drop(tokio::spawn(async move { server.link(&key, end).await })),
                Some(Arrival::Call { request, reply }) => drop(tokio::spawn(async move {
                    let answer = server.stop.run_until_cancelled(server.answer(request)).await;
                    let answer = answer.unwrap_or(Answer::Again);
                    server.promises.answered(&answer);
                    reply.send(answer);
                })),
                None => return Ok(()),
            }
        }
    }

    /// A key is the worker's number: whether keys are good is not what is simulated.
    async fn link(&self, key: &str, end: LinkEnd) {
        let Ok(id) = key.parse().map(WorkerId) else { return };
        let name = format!("w{id}");
        let peer = Peer { id, name: &name, is_accepted: &|| true };
        let (outlet, inlet) = end.split();
        let mut is_welcome = true;
        let sink = outlet.with_flat_map(|message| {
            let bytes = match message {
                Outgoing::Message(bytes) => {
                    if !std::mem::take(&mut is_welcome) {
                        self.promises.said(&bytes);
                    }
                    Some(Ok(Bytes::from(bytes)))
                }
                // Nothing is lost on a link, so nothing has to be kept alive.
                Outgoing::Ping => None,
            };
            futures_util::stream::iter(bytes)
        });
        let stream = inlet.map(|message| message.map(|bytes| Incoming::Message(bytes.into())));
        let talk = converse(&self.handles, &peer, sink, stream);
        if let Some(End { reason, .. }) = self.stop.run_until_cancelled(talk).await {
            trace(format_args!("core: the link to {name} ended: {reason}"));
        }
    }

    async fn answer(&self, request: Request) -> Answer {
        let answer = match request {
            Request::Join { worker } => self.join(worker).await,
            Request::Blob { worker, attempt, digest, offset } => self.blob(worker, attempt, digest, offset).await,
            Request::Output { worker, attempt, digest, offset, bytes, is_torn } => {
                self.output(worker, attempt, digest, Part { offset, bytes, is_torn }).await
            }
            Request::Sent { worker, attempt, digest } => {
                let key = (Sender::Worker(worker, attempt), digest);
                Ok(Answer::Offset(self.parked.settled_offset(&key).await))
            }
            Request::Submit { key, spec } => self.submit(key, *spec).await,
            Request::Cancel(job) => {
                self.receiver(|reply| ReceiverMsg::Cancel { job, reply }).await.map(|_| Answer::Done)
            }
            Request::Look(job) => self.look(job).await,
            Request::Log(attempt) => self.log(attempt).await,
            Request::File(digest) => self.file(digest, 0).await,
            Request::Schedule { name, cron, zone, spec } => self.schedule(name, cron, zone, *spec).await,
            Request::Pause(schedule) => {
                let pause = Transition::PauseSchedule { schedule, paused: true, at: self.clock.now() };
                let paused = self.commit(pause).await;
                let _ = self.handles.hibernator.send(HibernatorMsg::ScheduleChanged(schedule)).await;
                paused.map(|_| Answer::Done)
            }
            Request::Open => self.read(Store::load).await.map(|open| Answer::Open(open.jobs.len() as u64)),
        };
        match answer {
            Ok(answer) => answer,
            Err(Trouble::Again) => Answer::Again,
            Err(Trouble::Refused(refusal)) => {
                Answer::Refused(Box::new(Problem::new(409, "conflict", "Refused", refusal.to_string())))
            }
        }
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&FaultyStore) -> Result<T, StoreError> + Send + 'static,
    ) -> Done<T> {
        let store = Arc::clone(&self.store);
        Ok(blocking::run(move || read(&store)).await?)
    }

    async fn commit(&self, transition: Transition) -> Done<Applied> {
        self.handles.ledger.commit(transition).await?.map_err(Trouble::Refused)
    }

    async fn receiver(&self, message: impl FnOnce(oneshot::Sender<Verdict>) -> ReceiverMsg) -> Done<Applied> {
        let (reply, verdict) = oneshot::channel();
        self.handles.receiver.send(message(reply)).await.map_err(|_| Trouble::Again)?;
        verdict.await.map_err(|_| Trouble::Again)?.map_err(Trouble::Refused)
    }

    /// A worker that asks again gets what it was given: whether tokens are good once is not what is simulated.
    async fn join(&self, name: String) -> Done<Answer> {
        let wanted = name.clone();
        let known = self.read(move |store| Ok(store.workers()?.into_iter().find(|one| one.name == wanted))).await?;
        if let Some(known) = known {
            return Ok(Answer::Joined(known.id));
        }
        let (now, token, key) =
            (self.clock.now(), Digest::of(name.as_bytes()), Digest::of(format!("{name}'s").as_bytes()));
        let expires_at = now + chrono::TimeDelta::days(1);
        self.commit(Transition::CreateJoinToken { hash: token, worker: name.clone(), expires_at }).await?;
        match self.commit(Transition::JoinWorker { token, worker: name, key, at: now }).await? {
            Applied::Worker(worker) => Ok(Answer::Joined(worker)),
            _ => Err(Trouble::Again),
        }
    }

    /// Only for who has the attempt now.
    async fn held(&self, worker: WorkerId, attempt: AttemptId) -> Done<()> {
        let live = self.read(move |store| store.live_task(attempt.task_id())).await?;
        let on = live.filter(|live| live.attempt == attempt.attempt).and_then(|live| match live.phase {
            LivePhase::Waiting { .. } => None,
            LivePhase::Assigned { worker, .. } | LivePhase::Started { worker, .. } => Some(worker),
        });
        if on == Some(worker) { Ok(()) } else { Err(gone("the attempt")) }
    }

    async fn blob(&self, worker: WorkerId, attempt: AttemptId, digest: Digest, offset: u64) -> Done<Answer> {
        self.held(worker, attempt).await?;
        self.file(digest, offset).await
    }

    async fn file(&self, digest: Digest, offset: u64) -> Done<Answer> {
        let blobs = Arc::clone(&self.blobs);
        let bytes = blocking::run(move || {
            let mut blob = blobs.open(&digest)?;
            let mut bytes = Vec::new();
            blob.seek(SeekFrom::Start(offset))
                .and_then(|_| blob.read_to_end(&mut bytes))
                .map_err(|_| Trouble::Again)?;
            Ok::<_, Trouble>(bytes)
        });
        Ok(Answer::Bytes(bytes.await?.into()))
    }

    async fn output(&self, worker: WorkerId, attempt: AttemptId, digest: Digest, part: Part) -> Done<Answer> {
        self.held(worker, attempt).await?;
        let (blobs, parked, key) =
            (Arc::clone(&self.blobs), Arc::clone(&self.parked), (Sender::Worker(worker, attempt), digest));
        let active = self.parked.begin(key);
        let staged = blocking::run(move || {
            let _active = active;
            let mut upload = match part.offset {
                0 => blobs.begin(OUTPUT_BYTES_MAX)?,
                offset => parked.take(&key, offset).map_err(|_| Trouble::Again)?,
            };
            upload.write_all(&part.bytes).map_err(|_| Trouble::Again)?;
            if part.is_torn {
                if upload.written_bytes() > 0 {
                    parked.park(key, upload);
                }
                return Err(Trouble::Again);
            }
            let size_bytes = upload.written_bytes();
            Ok::<_, Trouble>((upload.stage()?, size_bytes))
        });
        let (staged, size_bytes) = staged.await?;
        let stored = staged.info().digest;
        if stored != digest {
            return Err(gone("what was promised"));
        }
        self.commit(Transition::SendOutput { attempt, worker, digest, size_bytes }).await?;
        blocking::run(move || staged.publish()).await?;
        Ok(Answer::Stored(stored))
    }

    fn prepared(spec: JobSpec) -> Prepared {
        let image = ImageOrder { config: Digest::of(IMAGE), config_bytes: IMAGE.len() as u64, layers: Vec::new() };
        let input_bytes = spec.inputs.iter().map(|_| INPUT.len() as u64).collect();
        Prepared { spec, image, input_bytes }
    }

    async fn submit(&self, key: String, spec: JobSpec) -> Done<Answer> {
        let user = self.read(|store| store.user(USER)).await?.ok_or(Trouble::Again)?;
        let body = serde_json::to_vec(&spec).unwrap_or_default();
        let new = Box::new(NewJob {
            owner: user.id,
            group: user.group,
            job: Self::prepared(spec),
            submitted_at: self.clock.now(),
            idempotency: Some((key, Digest::of(&body))),
            launch: None,
        });
        match self.receiver(|reply| ReceiverMsg::Submit { new, reply }).await? {
            Applied::Job { job, repeated } => Ok(Answer::Accepted(job, repeated)),
            _ => Err(Trouble::Again),
        }
    }

    async fn schedule(&self, name: String, cron: String, zone: String, spec: JobSpec) -> Done<Answer> {
        let wanted = name.clone();
        let (user, known) = self
            .read(move |store| {
                let known = store.schedules(None)?.into_iter().find(|one| one.name == wanted);
                Ok((store.user(USER)?, known))
            })
            .await?;
        if let Some(known) = known {
            return Ok(Answer::Scheduled(known.id));
        }
        let user = user.ok_or(Trouble::Again)?;
        let new = NewSchedule {
            owner: user.id,
            group: user.group,
            name,
            cron,
            zone,
            job: Self::prepared(spec),
            created_at: self.clock.now(),
        };
        match self.commit(Transition::CreateSchedule(Box::new(new))).await? {
            Applied::Schedule(schedule) => {
                let _ = self.handles.hibernator.send(HibernatorMsg::ScheduleChanged(schedule)).await;
                Ok(Answer::Scheduled(schedule))
            }
            _ => Err(Trouble::Again),
        }
    }

    async fn look(&self, job: JobId) -> Done<Answer> {
        let now = self.clock.now();
        let read = move |store: &FaultyStore| {
            let Some(record) = store.job(job)? else { return Ok(None) };
            let tasks = store.tasks(job, 0, u32::MAX)?;
            Ok(Some((record, tasks)))
        };
        let (record, tasks): (JobRecord, _) = self.read(read).await?.ok_or_else(|| gone("the job"))?;
        let tasks = tasks.iter().map(|task| archive::task_view(job, task, &|worker| format!("w{worker}"))).collect();
        Ok(Answer::Seen(Box::new((archive::job_view(&record, now), tasks))))
    }

    async fn log(&self, attempt: AttemptId) -> Done<Answer> {
        let blobs = Arc::clone(&self.blobs);
        let read = blocking::run(move || {
            let mut log = Vec::new();
            loop {
                let piece = blobs.log_read(&attempt.into(), log.len() as u64, READ_BYTES)?;
                if piece.is_empty() {
                    return Ok::<_, Trouble>(log);
                }
                log.extend(piece);
            }
        });
        Ok(Answer::Bytes(read.await?.into()))
    }
}
