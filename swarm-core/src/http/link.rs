//! A worker's link as a WebSocket.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use rocket::{State, get};
use rocket_ws::frame::{CloseCode, CloseFrame};
use rocket_ws::result::Error;
use rocket_ws::stream::DuplexStream;
use rocket_ws::{Channel, Config, Message, WebSocket};
use swarm_protocol::link::MESSAGE_BYTES_MAX;
use tokio::time::timeout;

use super::ApiState;
use super::guards::Worker;
use crate::identity::WorkerPeer;
use crate::link::{Cause, End, Incoming, Outgoing, Peer, converse};
use crate::messages::Stopping;

/// How long a farewell may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// A worker's link, as a WebSocket
#[utoipa::path(
    tag = "link",
    security(("worker" = [])),
    responses((status = 101, description = "The link is up")),
)]
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
            serve(&state, &worker.0, socket).await;
            Ok(())
        })
    })
}

async fn serve(state: &ApiState, peer: &WorkerPeer, socket: DuplexStream) {
    let (mut sink, stream) = socket.split();
    let is_accepted = || state.identity.is_accepted(peer.id);
    let end = {
        let peer = Peer { id: peer.id, name: &peer.name, is_accepted: &is_accepted };
        let outgoing = (&mut sink).with(|message| std::future::ready(Ok::<_, Error>(framed(message))));
        let incoming = stream.map(|message| message.map(unframed).map_err(Box::new));
        tokio::select! {
            biased;
            () = state.stop().cancelled() => Stopping.into(),
            end = converse(&state.handles, &peer, outgoing, incoming) => end,
        }
    };
    let End { cause, reason } = end;
    tracing::info!(worker.id = %peer.id, worker.name = peer.name, "the link to worker `{}` ended: {reason}", peer.name);
    // A close frame holds at most 123 bytes of text.
    let reason: String = reason.chars().take(40).collect();
    let farewell = Message::Close(Some(CloseFrame { code: code(cause), reason: reason.into() }));
    let _ = timeout(CLOSE_TIMEOUT, sink.send(farewell)).await;
}

fn framed(message: Outgoing) -> Message {
    match message {
        Outgoing::Message(bytes) => Message::Binary(bytes),
        Outgoing::Ping => Message::Ping(Vec::new()),
    }
}

fn unframed(message: Message) -> Incoming {
    match message {
        Message::Binary(bytes) => Incoming::Message(bytes),
        Message::Ping(_) | Message::Pong(_) => Incoming::Sign,
        Message::Close(_) => Incoming::Closed,
        Message::Text(_) | Message::Frame(_) => Incoming::Foreign,
    }
}

fn code(cause: Cause) -> CloseCode {
    match cause {
        Cause::Left => CloseCode::Normal,
        Cause::Stopping => CloseCode::Away,
        Cause::Protocol => CloseCode::Protocol,
        Cause::Policy => CloseCode::Policy,
        Cause::Size => CloseCode::Size,
        Cause::Unsupported => CloseCode::Unsupported,
        Cause::Broken => CloseCode::Error,
    }
}
