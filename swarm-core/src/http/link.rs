//! The link to a worker: a WebSocket of batched frames. Its handshake and its labels go to the dispatcher, all else that
//! comes in goes to the harvester in the order it came, what goes out comes from both.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use rocket::{State, get};
use rocket_ws::frame::{CloseCode, CloseFrame};
use rocket_ws::stream::DuplexStream;
use rocket_ws::{Channel, Config, Message, WebSocket};
use swarm_protocol::labels::Labels;
use swarm_protocol::link::{
    FRAMES_MAX, HANDSHAKE, Hello, LOG_CHUNK_BYTES_MAX, MESSAGE_BYTES_MAX, ToCore, ToWorker, Welcome, decode, encode,
};
use swarm_protocol::{SessionId, WorkerId};
use tokio::sync::mpsc;
use tokio::time::{Instant, interval, timeout};

use super::guards::Worker;
use super::{ApiState, ask, tell};
use crate::identity::WorkerPeer;
use crate::messages::{DispatcherMsg, HarvesterMsg};

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
/// How long a farewell may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

type Sink = SplitSink<DuplexStream, Message>;
type Stream = SplitStream<DuplexStream>;

/// Why a link ended, with what its close frame says.
#[derive(Debug)]
struct End(CloseCode, String);

fn end(code: CloseCode, reason: impl Into<String>) -> End {
    End(code, reason.into())
}

/// A session, agreed upon.
struct Session {
    state: Arc<ApiState>,
    peer: WorkerPeer,
    id: SessionId,
    version: u8,
}

#[get("/link")]
pub(super) fn link(worker: Worker, socket: WebSocket, state: &State<Arc<ApiState>>) -> Channel<'static> {
    let state = Arc::clone(state);
    let config = Config {
        max_message_size: Some(MESSAGE_BYTES_MAX),
        max_frame_size: Some(MESSAGE_BYTES_MAX),
        max_write_buffer_size: 2 * MESSAGE_BYTES_MAX,
        ..Config::default()
    };
    socket.config(config).channel(move |socket| {
        Box::pin(async move {
            serve(state, worker.0, socket).await;
            Ok(())
        })
    })
}

async fn serve(state: Arc<ApiState>, peer: WorkerPeer, socket: DuplexStream) {
    let (mut sink, mut stream) = socket.split();
    let stop = state.stop().clone();
    let End(code, reason) = tokio::select! {
        ended = converse(&state, &peer, &mut sink, &mut stream) => ended,
        () = stop.cancelled() => end(CloseCode::Away, "the core is stopping"),
    };
    tracing::info!(worker.id = %peer.id, worker.name = peer.name, "the link to worker `{}` ended: {reason}", peer.name);
    // A close frame holds at most 123 bytes of text.
    let reason: String = reason.chars().take(40).collect();
    let farewell = Message::Close(Some(CloseFrame { code, reason: reason.into() }));
    let _ = timeout(CLOSE_TIMEOUT, sink.send(farewell)).await;
}

/// Everything from the handshake on.
async fn converse(state: &Arc<ApiState>, peer: &WorkerPeer, sink: &mut Sink, stream: &mut Stream) -> End {
    let (queue, frames) = mpsc::channel(QUEUE);
    let session = match handshake(state, peer, queue, sink, stream).await {
        Ok(session) => session,
        Err(end) => return end,
    };
    tracing::info!(worker.id = %peer.id, worker.name = peer.name, "worker `{}` is linked", peer.name);
    // Told however this future ends, also when it is dropped at a stop.
    let _farewell = Farewell { state: Arc::clone(state), worker: peer.id, session: session.id };
    // Either loop may wait, for the worker or for the harvester, without holding up the other.
    tokio::select! {
        end = outgoing(&session, sink, frames) => end,
        end = incoming(&session, stream) => end,
    }
}

async fn handshake(
    state: &Arc<ApiState>,
    peer: &WorkerPeer,
    link: mpsc::Sender<ToWorker>,
    sink: &mut Sink,
    stream: &mut Stream,
) -> Result<Session, End> {
    let hello = timeout(HELLO_TIMEOUT, read_hello(stream)).await;
    let hello = hello.map_err(|_| end(CloseCode::Policy, "no hello came in time"))??;
    let (worker, name) = (peer.id, peer.name.clone());
    let connect = |reply| DispatcherMsg::Connect { worker, name, hello: Box::new(hello), link, reply };
    let welcome = ask(&state.handles.dispatcher, connect).await;
    let welcome = welcome.map_err(|_| end(CloseCode::Away, "the core is stopping"))?;
    // From here on the dispatcher counts the session; it hears of its end even if the welcome cannot be sent.
    let accepted = match &welcome {
        Welcome::Accepted { version, session, .. } => Ok((*version, *session)),
        Welcome::Refused { reason, .. } => Err(end(CloseCode::Policy, reason.clone())),
    };
    let sent = send(sink, Message::Binary(encode(HANDSHAKE, &[welcome]))).await;
    match (accepted, sent) {
        (Ok((version, id)), Ok(())) => Ok(Session { state: Arc::clone(state), peer: peer.clone(), id, version }),
        (Ok((_, session)), Err(end)) => {
            drop(Farewell { state: Arc::clone(state), worker, session });
            Err(end)
        }
        (Err(end), _) => Err(end),
    }
}

async fn read_hello(stream: &mut Stream) -> Result<Hello, End> {
    loop {
        match stream.next().await {
            Some(Ok(Message::Binary(bytes))) => {
                let frames =
                    decode::<Hello>(HANDSHAKE, &bytes).map_err(|error| end(CloseCode::Protocol, error.to_string()))?;
                let one: Result<[Hello; 1], _> = frames.try_into();
                return one.map(|[hello]| hello).map_err(|_| end(CloseCode::Protocol, "not exactly one hello"));
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(_)) => return Err(end(CloseCode::Protocol, "a hello must be a binary message")),
            Some(Err(error)) => return Err(end(CloseCode::Protocol, error.to_string())),
            None => return Err(end(CloseCode::Normal, "the worker left")),
        }
    }
}

async fn send(sink: &mut Sink, message: Message) -> Result<(), End> {
    match timeout(SEND_TIMEOUT, sink.send(message)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(end(CloseCode::Error, error.to_string())),
        Err(_) => Err(end(CloseCode::Policy, "the worker does not read")),
    }
}

/// Sends what is queued, everything that is there in one message; pings in between.
async fn outgoing(session: &Session, sink: &mut Sink, mut queue: mpsc::Receiver<ToWorker>) -> End {
    let mut frames = Vec::new();
    let mut ping = interval(PING);
    loop {
        let sent = tokio::select! {
            count = queue.recv_many(&mut frames, FRAMES_MAX) => {
                if count == 0 {
                    return end(CloseCode::Policy, "replaced by another link, or revoked");
                }
                send_batch(session.version, sink, std::mem::take(&mut frames)).await
            }
            _ = ping.tick() => {
                if !session.state.identity.is_accepted(session.peer.id) {
                    return end(CloseCode::Policy, "the worker's key was revoked");
                }
                send(sink, Message::Ping(Vec::new())).await
            }
        };
        if let Err(end) = sent {
            return end;
        }
    }
}

async fn send_batch(version: u8, sink: &mut Sink, frames: Vec<ToWorker>) -> Result<(), End> {
    for message in messages(version, frames)? {
        send(sink, Message::Binary(message)).await?;
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
            return Err(end(CloseCode::Size, "a frame is over the bound of a message"));
        }
    }
    Ok(done)
}

/// Hands on what comes; a full inbox holds the worker back.
async fn incoming(session: &Session, stream: &mut Stream) -> End {
    let mut heard = Instant::now();
    loop {
        let message = match tokio::time::timeout_at(heard + SILENCE, stream.next()).await {
            Err(_) => return end(CloseCode::Policy, "the worker was silent for 30 s"),
            Ok(None) => return end(CloseCode::Normal, "the worker left"),
            Ok(Some(Err(error))) => return end(CloseCode::Protocol, error.to_string()),
            Ok(Some(Ok(message))) => message,
        };
        match message {
            Message::Binary(bytes) => match decode::<ToCore>(session.version, &bytes) {
                Ok(frames) if frames.iter().any(is_oversized) => {
                    return end(CloseCode::Size, "a piece of log is over its bound");
                }
                Ok(frames) => {
                    if deliver(session, frames).await.is_err() {
                        return end(CloseCode::Away, "the core is stopping");
                    }
                }
                Err(error) => return end(CloseCode::Protocol, error.to_string()),
            },
            Message::Close(_) => return end(CloseCode::Normal, "the worker closed it"),
            Message::Text(_) | Message::Frame(_) => return end(CloseCode::Unsupported, "not a binary message"),
            Message::Ping(_) | Message::Pong(_) => {}
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
async fn deliver(session: &Session, mut frames: Vec<ToCore>) -> super::problem::Answer<()> {
    if let Some(labels) = take_labels(&mut frames) {
        let message = DispatcherMsg::Labels { worker: session.peer.id, session: session.id, labels };
        tell(&session.state.handles.dispatcher, message).await?;
    }
    if frames.is_empty() {
        return Ok(());
    }
    let message = HarvesterMsg::Frames { worker: session.peer.id, session: session.id, frames };
    tell(&session.state.handles.harvester, message).await
}

/// Takes the labels out of `frames`, the last ones if there are several.
fn take_labels(frames: &mut Vec<ToCore>) -> Option<Labels> {
    let found = frames.extract_if(.., |frame| matches!(frame, ToCore::Labels { .. }));
    found.last().and_then(|frame| if let ToCore::Labels { labels } = frame { Some(labels) } else { None })
}

/// Tells the modules that a session is over, when dropped.
struct Farewell {
    state: Arc<ApiState>,
    worker: WorkerId,
    session: SessionId,
}

impl Drop for Farewell {
    fn drop(&mut self) {
        let (dispatcher, harvester) = (self.state.handles.dispatcher.clone(), self.state.handles.harvester.clone());
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
