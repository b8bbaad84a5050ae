use futures_util::{SinkExt as _, StreamExt as _};
use swarm_protocol::link::{
    HANDSHAKE, Hello, LOG_CHUNK_BYTES_MAX, ToCore, ToWorker, VERSION, VERSION_MIN, WorkerFacts, decode, encode,
};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Bytes, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use super::*;

type Socket = WebSocketStream<MaybeTlsStream<tokio::net::TcpStream>>;
const DEADLINE: Duration = Duration::from_secs(10);

struct Served {
    address: SocketAddr,
    key: String,
    stop: CancellationToken,
    server: tokio::task::JoinHandle<anyhow::Result<()>>,
    seen: mpsc::Receiver<Seen>,
    identity: Arc<Identity>,
    dir: tempfile::TempDir,
}

async fn served() -> Served {
    let (state, _, _, seen, dir) = state(CoreConfig::default()).await;
    let (_, key) = join(&state.identity, "w1").await;
    let (stop, identity) = (state.stop().clone(), Arc::clone(&state.identity));
    let (bound, address) = oneshot::channel();
    let listener = Listener { address: "127.0.0.1:0".parse().unwrap(), bound: Some(bound) };
    let server = tokio::spawn(serve(state, listener, stop.clone()));
    let address = timeout(DEADLINE, address).await.unwrap().unwrap();
    Served { address, key, stop, server, seen, identity, dir }
}

impl Served {
    async fn connect(&self) -> Socket {
        let mut request = format!("ws://{}/api/v1/link", self.address).into_client_request().unwrap();
        request.headers_mut().insert("Authorization", format!("Bearer {}", self.key).parse().unwrap());
        tokio_tungstenite::connect_async(request).await.unwrap().0
    }

    async fn next(&mut self) -> Seen {
        timeout(DEADLINE, self.seen.recv()).await.unwrap().unwrap()
    }
}

async fn receive(socket: &mut Socket) -> Message {
    loop {
        match timeout(DEADLINE, socket.next()).await.unwrap().unwrap().unwrap() {
            Message::Ping(_) | Message::Pong(_) => {}
            message => return message,
        }
    }
}

fn hello() -> Message {
    let facts = WorkerFacts::default();
    let hello = Hello { version_min: VERSION_MIN, version_max: VERSION, boot: BootId::random(), nonce: [0; 32], facts };
    Message::Binary(Bytes::from(encode(HANDSHAKE, &[hello])))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_go_both_ways_and_a_stop_says_goodbye() {
    let mut served = served().await;
    let mut socket = served.connect().await;
    socket.send(hello()).await.unwrap();
    let Seen::Linked(link) = served.next().await else { panic!("no link") };
    let Message::Binary(welcome) = receive(&mut socket).await else { panic!("no welcome") };
    assert!(matches!(
        decode::<Welcome>(HANDSHAKE, &welcome).unwrap()[..],
        [Welcome::Accepted { version: VERSION, .. }]
    ));
    let reports: Vec<_> = (1..=3).map(|seq| ToCore::StateReport { seq, attempts: Vec::new() }).collect();
    socket.send(Message::Binary(Bytes::from(encode(VERSION, &reports)))).await.unwrap();
    let Seen::Frames(frames) = served.next().await else { panic!("no frames") };
    assert_eq!(frames, reports);
    link.send(ToWorker::Drain).await.unwrap();
    let Message::Binary(batch) = receive(&mut socket).await else { panic!("no batch") };
    assert_eq!(decode::<ToWorker>(VERSION, &batch).unwrap(), [ToWorker::Drain]);

    served.stop.cancel();
    let Message::Close(Some(frame)) = receive(&mut socket).await else { panic!("no close frame") };
    assert_eq!(u16::from(frame.code), 1001, "{frame:?}");
    timeout(DEADLINE, served.server).await.unwrap().unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_ends_the_link_and_the_modules_hear_of_it() {
    let mut served = served().await;
    let mut socket = served.connect().await;
    socket.send(Message::Binary(Bytes::from_static(b"\x01garbage"))).await.unwrap();
    let Message::Close(Some(frame)) = receive(&mut socket).await else { panic!("no close frame") };
    assert_eq!(u16::from(frame.code), 1002, "{frame:?}");

    let mut socket = served.connect().await;
    socket.send(hello()).await.unwrap();
    let Seen::Linked(_link) = served.next().await else { panic!("no link") };
    receive(&mut socket).await;
    socket.send(Message::Binary(Bytes::from_static(b"\x09"))).await.unwrap();
    assert!(matches!(receive(&mut socket).await, Message::Close(Some(_))));
    // Two modules hear of it, in whichever order they come to speak.
    let both = [served.next().await, served.next().await];
    assert!(both.iter().any(|seen| matches!(seen, Seen::Disconnected)), "{both:?}");
    assert!(both.iter().any(|seen| matches!(seen, Seen::LinkDown)), "{both:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_piece_of_log_over_its_bound_ends_the_link() {
    let mut served = served().await;
    let mut socket = served.connect().await;
    socket.send(hello()).await.unwrap();
    let Seen::Linked(_link) = served.next().await else { panic!("no link") };
    receive(&mut socket).await;
    let attempt = AttemptId { job: JobId(1), task: 0, attempt: 1 };
    let piece = |len| ToCore::Log { attempt, offset: 0, bytes: vec![7; len] };
    let message = |len| Message::Binary(Bytes::from(encode(VERSION, &[piece(len)])));
    socket.send(message(LOG_CHUNK_BYTES_MAX)).await.unwrap();
    let Seen::Frames(frames) = served.next().await else { panic!("no frames") };
    assert!(frames == [piece(LOG_CHUNK_BYTES_MAX)]);
    socket.send(message(LOG_CHUNK_BYTES_MAX + 1)).await.unwrap();
    let closed = timeout(DEADLINE, receive(&mut socket)).await.expect("the link ends in time");
    let Message::Close(Some(frame)) = closed else { panic!("no close frame") };
    assert_eq!(u16::from(frame.code), 1009, "{frame:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replaced_link_is_closed() {
    let mut served = served().await;
    let mut socket = served.connect().await;
    socket.send(hello()).await.unwrap();
    let Seen::Linked(link) = served.next().await else { panic!("no link") };
    receive(&mut socket).await;
    drop(link);
    assert!(matches!(receive(&mut socket).await, Message::Close(Some(_))));
}

/// One request over a connection of its own; the answer's head in lower case, and its body.
async fn exchange(served: &Served, request: &str, token: &str, body: &str) -> (String, String) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(served.address).await.unwrap();
    let length = body.len();
    let text = format!(
        "{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {token}\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(DEADLINE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_lowercase(), body.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_length_is_told_without_the_bytes() {
    let served = served().await;
    let password = std::fs::read_to_string(served.dir.path().join("admin-password")).unwrap();
    let request = LoginRequest { user: "admin".into(), password: password.trim().into() };
    let token = served.identity.login("127.0.0.1".parse().unwrap(), request).await.unwrap().access_token;
    let (head, _) = exchange(&served, "POST /api/v1/files", &token, "twelve bytes").await;
    assert!(head.starts_with("http/1.1 201"), "{head}");
    let path = format!("HEAD /api/v1/files/{}", Digest::of(b"twelve bytes"));
    let (head, body) = exchange(&served, &path, &token, "").await;
    assert!(head.starts_with("http/1.1 200"), "{head}");
    assert_eq!((head.matches("content-length").count(), body.as_str()), (1, ""), "{head}");
    assert!(head.contains("content-length: 12"), "{head}");
    let (head, body) = exchange(&served, "GET /api/v1/jobs/1", "x", "").await;
    assert!(head.starts_with("http/1.1 401") && head.contains("application/problem+json"), "{head}");
    assert!(body.contains("unauthenticated"), "{body}");
}
