//! The conversation with a worker over its link: batches of frames, whatever carries them. Its handshake and its labels go
//! to the dispatcher, all else that comes in goes to the harvester in the order it came, what goes out comes from both.

use std::fmt::Display;
use std::time::Duration;

use futures_util::{Sink, SinkExt as _, Stream, StreamExt as _};
use swarm_protocol::labels::Labels;
use swarm_protocol::link::{
    FRAMES_MAX, HANDSHAKE, Hello, LOG_CHUNK_BYTES_MAX, MESSAGE_BYTES_MAX, ToCore, ToWorker, Welcome, decode, encode,
};
use swarm_protocol::{SessionId, WorkerId};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, interval, timeout};

use crate::messages::{DispatcherMsg, Handles, HarvesterMsg, Stopping};

/// Frames that may wait for a worker; more than any worker is given at once.
const QUEUE: usize = 4096;
/// How long a worker may take to say hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause between pings; each also asks whether the worker's key still counts.
const PING: Duration = Duration::from_secs(5);
/// Silence after which a link is given up.
const SILENCE: Duration = Duration::from_secs(30);
/// How long a worker may take to take in a message.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);

/// What comes from a worker.
#[derive(Debug)]
pub enum Incoming {
    /// A message, at most [`MESSAGE_BYTES_MAX`] long.
    Message(Vec<u8>),
    /// A sign of life without content.
    Sign,
    /// What no worker sends.
    Foreign,
    /// The worker said goodbye.
    Closed,
}

/// What goes to a worker.
#[derive(Debug)]
pub enum Outgoing {
    /// A message, at most [`MESSAGE_BYTES_MAX`] long.
    Message(Vec<u8>),
    /// To be answered by a sign of life.
    Ping,
}

/// Whose doing the end of a link is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The worker left.
    Left,
    /// The core is stopping.
    Stopping,
    /// The worker said what cannot be understood.
    Protocol,
    /// The worker is not wanted, or does not keep up.
    Policy,
    /// A message or a part of one was too large.
    Size,
    /// A message was of a kind that no worker sends.
    Unsupported,
    /// It cannot be sent to.
    Broken,
}

/// Why a link ended.
#[derive(Debug)]
pub struct End {
    /// Whose doing it is.
    pub cause: Cause,
    /// For people, and for the worker's log.
    pub reason: String,
}

fn end(cause: Cause, reason: impl Into<String>) -> End {
    End { cause, reason: reason.into() }
}

impl From<Stopping> for End {
    fn from(_: Stopping) -> Self {
        end(Cause::Stopping, "the core is stopping")
    }
}

/// The worker at the other end of a link, by its key.
pub struct Peer<'a> {
    /// Its number.
    pub id: WorkerId,
    /// Its name.
    pub name: &'a str,
    /// Whether its key still counts.
    pub is_accepted: &'a (dyn Fn() -> bool + Sync),
}

/// A session, agreed upon.
struct Session<'a> {
    handles: &'a Handles,
    peer: &'a Peer<'a>,
    id: SessionId,
    version: u8,
    _farewell: Farewell,
}

/// Speaks with a worker, from its hello on until the link ends. The modules hear of the end, also when this is dropped.
pub async fn converse<O, I, E>(handles: &Handles, peer: &Peer<'_>, mut sink: O, mut stream: I) -> End
where
    O: Sink<Outgoing, Error: Display> + Unpin,
    I: Stream<Item = Result<Incoming, E>> + Unpin,
    E: Display,
{
    let (queue, frames) = mpsc::channel(QUEUE);
    let session = match handshake(handles, peer, queue, &mut sink, &mut stream).await {
        Ok(session) => session,
        Err(end) => return end,
    };
    tracing::info!(worker.id = %peer.id, worker.name = peer.name, "worker `{}` is linked", peer.name);
    // Either loop may wait, for the worker or for the harvester, without holding up the other.
    tokio::select! {
        biased;
        end = outgoing(&session, &mut sink, frames) => end,
        end = incoming(&session, &mut stream) => end,
    }
}

async fn handshake<'a, O, I, E>(
    handles: &'a Handles,
    peer: &'a Peer<'a>,
    link: mpsc::Sender<ToWorker>,
    sink: &mut O,
    stream: &mut I,
) -> Result<Session<'a>, End>
where
    O: Sink<Outgoing, Error: Display> + Unpin,
    I: Stream<Item = Result<Incoming, E>> + Unpin,
    E: Display,
{
    let hello = timeout(HELLO_TIMEOUT, read_hello(stream)).await;
    let hello = hello.map_err(|_| end(Cause::Policy, "no hello came in time"))??;
    let (worker, name) = (peer.id, peer.name.to_owned());
    let (reply, answer) = oneshot::channel();
    let connect = DispatcherMsg::Connect { worker, name, hello: Box::new(hello), link, reply };
    handles.dispatcher.send(connect).await.map_err(|_| Stopping)?;
    let welcome = answer.await.map_err(|_| Stopping)?;
    // From here on the dispatcher counts the session; it hears of its end even if the welcome cannot be sent.
    let accepted = match &welcome {
        Welcome::Accepted { version, session, .. } => Ok((*version, *session)),
        Welcome::Refused { reason, .. } => Err(end(Cause::Policy, reason.clone())),
    };
    let session = accepted.map(|(version, id)| {
        let _farewell = Farewell { handles: handles.clone(), worker, session: id };
        Session { handles, peer, id, version, _farewell }
    });
    let sent = send(sink, Outgoing::Message(encode(HANDSHAKE, &[welcome]))).await;
    session.and_then(|session| sent.map(|()| session))
}

async fn read_hello<I, E>(stream: &mut I) -> Result<Hello, End>
where
    I: Stream<Item = Result<Incoming, E>> + Unpin,
    E: Display,
{
    loop {
        match stream.next().await {
            Some(Ok(Incoming::Message(bytes))) => {
                let frames =
                    decode::<Hello>(HANDSHAKE, &bytes).map_err(|error| end(Cause::Protocol, error.to_string()))?;
                let one: Result<[Hello; 1], _> = frames.try_into();
                return one.map(|[hello]| hello).map_err(|_| end(Cause::Protocol, "not exactly one hello"));
            }
            Some(Ok(Incoming::Sign)) => {}
            Some(Ok(Incoming::Foreign | Incoming::Closed)) => {
                return Err(end(Cause::Protocol, "a hello must be a binary message"));
            }
            Some(Err(error)) => return Err(end(Cause::Protocol, error.to_string())),
            None => return Err(end(Cause::Left, "the worker left")),
        }
    }
}

async fn send<O>(sink: &mut O, message: Outgoing) -> Result<(), End>
where
    O: Sink<Outgoing, Error: Display> + Unpin,
{
    match timeout(SEND_TIMEOUT, sink.send(message)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(end(Cause::Broken, error.to_string())),
        Err(_) => Err(end(Cause::Policy, "the worker does not read")),
    }
}

/// Sends what is queued, everything that is there in one message; pings in between.
async fn outgoing<O>(session: &Session<'_>, sink: &mut O, mut queue: mpsc::Receiver<ToWorker>) -> End
where
    O: Sink<Outgoing, Error: Display> + Unpin,
{
    let mut frames = Vec::new();
    let mut ping = interval(PING);
    loop {
        let sent = tokio::select! {
            biased;
            _ = ping.tick() => {
                if !(session.peer.is_accepted)() {
                    return end(Cause::Policy, "the worker's key was revoked");
                }
                send(sink, Outgoing::Ping).await
            }
            count = queue.recv_many(&mut frames, FRAMES_MAX) => {
                if count == 0 {
                    return end(Cause::Policy, "replaced by another link, or revoked");
                }
                send_batch(session.version, sink, std::mem::take(&mut frames)).await
            }
        };
        if let Err(end) = sent {
            return end;
        }
    }
}

async fn send_batch<O>(version: u8, sink: &mut O, frames: Vec<ToWorker>) -> Result<(), End>
where
    O: Sink<Outgoing, Error: Display> + Unpin,
{
    for message in messages(version, frames)? {
        send(sink, Outgoing::Message(message)).await?;
    }
    Ok(())
}

/// One message, or as many as their bound asks for, in order.
fn messages(version: u8, frames: Vec<ToWorker>) -> Result<Vec<Vec<u8>>, End> {
    let (mut done, mut open) = (Vec::new(), vec![frames]);
    while let Some(mut frames) = open.pop() {
        let bytes = encode(version, &frames);
        if bytes.len() <= MESSAGE_BYTES_MAX {
            done.push(bytes);
        } else if frames.len() > 1 {
            let second = frames.split_off(frames.len() / 2);
            open.push(second);
            open.push(frames);
        } else {
            return Err(end(Cause::Size, "a frame is over the bound of a message"));
        }
    }
    Ok(done)
}

/// Hands on what comes; a full inbox holds the worker back.
async fn incoming<I, E>(session: &Session<'_>, stream: &mut I) -> End
where
    I: Stream<Item = Result<Incoming, E>> + Unpin,
    E: Display,
{
    let mut heard = Instant::now();
    loop {
        let message = match tokio::time::timeout_at(heard + SILENCE, stream.next()).await {
            Err(_) => return end(Cause::Policy, "the worker was silent for 30 s"),
            Ok(None) => return end(Cause::Left, "the worker left"),
            Ok(Some(Err(error))) => return end(Cause::Protocol, error.to_string()),
            Ok(Some(Ok(message))) => message,
        };
        match message {
            Incoming::Message(bytes) => match decode::<ToCore>(session.version, &bytes) {
                Ok(frames) if frames.iter().any(is_oversized) => {
                    return end(Cause::Size, "a piece of log is over its bound");
                }
                Ok(frames) => {
                    if let Err(stopping) = deliver(session, frames).await {
                        return stopping.into();
                    }
                }
                Err(error) => return end(Cause::Protocol, error.to_string()),
            },
            Incoming::Closed => return end(Cause::Left, "the worker closed it"),
            Incoming::Foreign => return end(Cause::Unsupported, "not a binary message"),
            Incoming::Sign => {}
        }
        // After the delivery: waiting for the harvester is not the worker's silence.
        heard = Instant::now();
    }
}

/// Pieces of log wait for the disk by their number, so each must be small.
fn is_oversized(frame: &ToCore) -> bool {
    matches!(frame, ToCore::Log { bytes, .. } if bytes.len() > LOG_CHUNK_BYTES_MAX)
}

/// Labels go first, so that a worker whose state report is judged is known by them.
async fn deliver(session: &Session<'_>, mut frames: Vec<ToCore>) -> Result<(), Stopping> {
    let (worker, id) = (session.peer.id, session.id);
    if let Some(labels) = take_labels(&mut frames) {
        let message = DispatcherMsg::Labels { worker, session: id, labels };
        session.handles.dispatcher.send(message).await.map_err(|_| Stopping)?;
    }
    if frames.is_empty() {
        return Ok(());
    }
    let message = HarvesterMsg::Frames { worker, session: id, frames };
    session.handles.harvester.send(message).await.map_err(|_| Stopping)
}

/// Takes the labels out of `frames`, the last ones if there are several.
fn take_labels(frames: &mut Vec<ToCore>) -> Option<Labels> {
    let found = frames.extract_if(.., |frame| matches!(frame, ToCore::Labels { .. }));
    found.last().and_then(|frame| if let ToCore::Labels { labels } = frame { Some(labels) } else { None })
}

/// Tells the modules that a session is over, when dropped.
struct Farewell {
    handles: Handles,
    worker: WorkerId,
    session: SessionId,
}

impl Drop for Farewell {
    fn drop(&mut self) {
        let (dispatcher, harvester) = (self.handles.dispatcher.clone(), self.handles.harvester.clone());
        let (worker, session) = (self.worker, self.session);
        // One short task per link that ended, and at a stop the modules' inboxes close.
        tokio::spawn(async move {
            let _ = dispatcher.send(DispatcherMsg::Disconnected { worker, session }).await;
            let _ = harvester.send(HarvesterMsg::LinkDown { worker, session }).await;
        });
    }
}

#[cfg(test)]
mod tests {
    use swarm_protocol::{AttemptId, JobId};

    use super::*;

    #[test]
    fn labels_are_taken_out_of_a_message_and_the_last_count() {
        let said = |value: &str| ToCore::Labels { labels: Labels::from([("zone".to_owned(), value.to_owned())]) };
        let recalled = || ToCore::Recalled { attempts: Vec::new() };
        let mut frames = vec![recalled(), said("a"), recalled(), said("b")];
        assert_eq!(take_labels(&mut frames).map(|labels| ToCore::Labels { labels }), Some(said("b")));
        assert_eq!(frames, [recalled(), recalled()]);
        assert_eq!(take_labels(&mut frames), None);
    }

    #[test]
    fn a_batch_is_split_at_the_bound_and_keeps_its_order() {
        let frame = |job| ToWorker::Recall {
            attempts: vec![AttemptId { job: JobId(job), task: u32::MAX, attempt: u16::MAX }; 150_000],
        };
        let frames: Vec<_> = (1..=6).map(frame).collect();
        let messages = messages(1, frames.clone()).unwrap();
        assert!(messages.len() > 1);
        let back: Vec<ToWorker> = messages.iter().flat_map(|bytes| decode(1, bytes).unwrap()).collect();
        assert_eq!(back, frames);
    }
}
