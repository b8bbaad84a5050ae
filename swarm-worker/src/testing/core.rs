//! A core for tests: it speaks join, link, heartbeats and the file routes over loopback, answers as a healthy core does
//! unless told otherwise, and remembers everything.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use swarm_protocol::api::{FileView, JoinAnswer, UploadView};
use swarm_protocol::heartbeat::{CoreEnd, DATAGRAM_BYTES_MAX, Handshake, Heartbeat, HeartbeatAnswer};
use swarm_protocol::link::{
    FinalReport, HANDSHAKE, Hello, TaskOrder, ToCore, ToWorker, VERSION, Welcome, WorkerFacts, decode, encode,
};
use swarm_protocol::problem::Problem;
use swarm_protocol::{AttemptId, Digest, Epoch, SessionId, SwarmId, WorkerId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{mpsc, watch};
use tokio_tungstenite::tungstenite::Message;

/// How long tests wait for what should come at once.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// What the core was told, and how it is to answer.
pub(crate) struct Seen {
    /// What the worker offered in each handshake.
    pub(crate) offers: Vec<WorkerFacts>,
    pub(crate) frames: Vec<ToCore>,
    pub(crate) logs: HashMap<AttemptId, Vec<u8>>,
    pub(crate) finished: HashMap<AttemptId, FinalReport>,
    pub(crate) uploads: HashMap<Digest, Bytes>,
    pub(crate) blobs: HashMap<Digest, Bytes>,
    /// So many more answers with the blob have a byte changed.
    pub(crate) spoils: HashMap<Digest, u32>,
    /// Messages of another version, or damaged.
    pub(crate) unreadable: u32,
    pub(crate) sessions: u64,
    pub(crate) joins: u32,
    pub(crate) heartbeats: u64,
    /// The link version it speaks.
    pub(crate) version: u8,
    /// What the welcome of a healthy core is turned into.
    pub(crate) welcome: fn(Welcome) -> Welcome,
    pub(crate) judges_reports: bool,
    pub(crate) answers_link: bool,
    pub(crate) answers_heartbeats: bool,
    pub(crate) commits_starts: bool,
    pub(crate) stores_finishes: bool,
    /// The link is cut after this many more log bytes.
    pub(crate) cut_after: Option<usize>,
    pub(crate) uploads_begun: u32,
    /// This many more uploads are left lying: not a byte of their bodies is read.
    pub(crate) uploads_ignored: u32,
    /// The next upload is cut off after so many bytes, which are kept.
    pub(crate) upload_cut_after: Option<usize>,
    /// A cut upload is answered as one that came too slowly, instead of not at all.
    pub(crate) says_cut_short: bool,
    /// What is kept is lost once it was told of.
    pub(crate) loses_uploads: bool,
    /// Where each upload began.
    pub(crate) upload_offsets: Vec<usize>,
    upload_kept: Vec<u8>,
    /// Between an upload's last byte and its answer.
    pub(crate) upload_takes: Duration,
    /// Judged not to be the worker's any more.
    pub(crate) abandons: Vec<AttemptId>,
    link: Option<mpsc::UnboundedSender<ToWorker>>,
    ends: HashMap<u64, CoreEnd>,
}

/// See the module.
#[derive(Clone)]
pub(crate) struct ScriptedCore {
    seen: Arc<Mutex<Seen>>,
    changes: Arc<watch::Sender<u64>>,
    pub(crate) swarm: SwarmId,
    pub(crate) address: SocketAddr,
    heartbeat_port: u16,
}

impl ScriptedCore {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let core = Self {
            seen: Arc::new(Mutex::new(Seen::healthy())),
            changes: Arc::new(watch::Sender::new(0)),
            swarm: SwarmId(uuid::Uuid::new_v4()),
            address: listener.local_addr().unwrap(),
            heartbeat_port: udp.local_addr().unwrap().port(),
        };
        tokio::spawn(core.clone().answer_heartbeats(udp));
        let accepting = core.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let core = accepting.clone();
                // A connection that breaks is part of the tests.
                tokio::spawn(async move { core.serve(stream).await.ok() });
            }
        });
        core
    }

    pub(crate) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, work: impl FnOnce(&mut Seen) -> T) -> T {
        let done = work(&mut self.seen());
        self.changes.send_modify(|count| *count += 1);
        done
    }

    /// Waits until `look` finds something, with a deadline.
    pub(crate) async fn until<T>(&self, what: &str, look: impl Fn(&Seen) -> Option<T>) -> T {
        let mut changes = self.changes.subscribe();
        let found = tokio::time::timeout(DEADLINE, async {
            loop {
                if let Some(found) = look(&self.seen()) {
                    return found;
                }
                changes.changed().await.unwrap();
            }
        });
        match found.await {
            Ok(found) => found,
            Err(_) => panic!("waited in vain for {what}; frames: {:?}", self.seen().frames),
        }
    }

    /// Waits for the first frame that fits.
    pub(crate) async fn frame(&self, what: &str, fits: impl Fn(&ToCore) -> bool) -> ToCore {
        self.until(what, |seen| seen.frames.iter().find(|frame| fits(frame)).cloned()).await
    }

    pub(crate) async fn finished(&self, attempt: AttemptId) -> FinalReport {
        self.until("the final report", |seen| seen.finished.get(&attempt).cloned()).await
    }

    pub(crate) async fn assign(&self, order: &TaskOrder) {
        self.tell(ToWorker::Assign(Box::new(order.clone()))).await;
    }

    pub(crate) async fn tell(&self, frame: ToWorker) {
        let link = self.until("a link", |seen| seen.link.clone().filter(|link| !link.is_closed())).await;
        link.send(frame).unwrap();
    }

    /// Closes the link without a word.
    pub(crate) fn cut(&self) {
        self.change(|seen| seen.link = None);
    }

    async fn serve(self, stream: TcpStream) -> io::Result<()> {
        let mut head = [0u8; 64];
        stream.peek(&mut head).await?;
        if head.starts_with(b"GET /api/v1/link HTTP") { self.link(stream).await } else { self.http(stream).await }
    }

    async fn link(&self, stream: TcpStream) -> io::Result<()> {
        let mut socket = tokio_tungstenite::accept_async(stream).await.map_err(io::Error::other)?;
        let Some(Ok(Message::Binary(hello))) = socket.next().await else { return Ok(()) };
        let hello: Hello = decode(HANDSHAKE, &hello).unwrap().remove(0);
        let (out, mut orders) = mpsc::unbounded_channel();
        let version = self.seen().version;
        let session = self.change(|seen| {
            seen.offers.push(hello.facts.clone());
            seen.sessions += 1;
            seen.link = Some(out.clone());
            seen.sessions
        });
        let handshake = Handshake {
            worker_nonce: hello.nonce,
            core_nonce: [1; 32],
            session: SessionId(session),
            worker: WorkerId(3),
            epoch: Epoch(1),
            link_version: version,
        };
        self.seen().keep_end(SessionId(session), CoreEnd::new(&[2; 32], &handshake));
        let welcome = Welcome::Accepted {
            version,
            swarm: self.swarm,
            worker: WorkerId(3),
            epoch: Epoch(1),
            session: SessionId(session),
            nonce: [1; 32],
            secret: [2; 32],
            heartbeat_port: self.heartbeat_port,
            heartbeat_interval_ms: 100,
        };
        let welcome = (self.seen().welcome)(welcome);
        socket.send(Message::binary(encode(HANDSHAKE, &[welcome]))).await.map_err(io::Error::other)?;
        // The test's handle is the only sender left, so that cutting it ends the session.
        let out = {
            let weak = out.downgrade();
            drop(out);
            weak
        };
        let mut first = true;
        loop {
            tokio::select! {
                order = orders.recv() => {
                    let Some(order) = order else { return Ok(()) };
                    socket.send(Message::binary(encode(version, &[order]))).await.map_err(io::Error::other)?;
                }
                message = socket.next() => {
                    let Some(Ok(Message::Binary(bytes))) = message else { return Ok(()) };
                    let Ok(frames) = decode::<ToCore>(version, &bytes) else {
                        self.change(|seen| seen.unreadable += 1);
                        return Ok(());
                    };
                    assert!(!first || matches!(frames[0], ToCore::StateReport { .. }), "the first frame is a report");
                    first = false;
                    for frame in frames {
                        let answers = self.change(|seen| seen.hear(frame));
                        let Some(out) = out.upgrade() else { return Ok(()) };
                        answers.into_iter().for_each(|answer| out.send(answer).unwrap());
                    }
                }
            }
        }
    }

    async fn answer_heartbeats(self, udp: UdpSocket) {
        let mut datagram = [0; DATAGRAM_BYTES_MAX];
        while let Ok((length, from)) = udp.recv_from(&mut datagram).await {
            let heard = self.change(|seen| seen.hear_beat(&datagram[..length]));
            if let Some((_, Some(answer))) = heard {
                let _ = udp.send_to(&answer, from).await;
            }
        }
    }

    async fn http(&self, mut stream: TcpStream) -> io::Result<()> {
        let mut request = Vec::new();
        let end = loop {
            if let Some(at) = request.windows(4).position(|four| four == b"\r\n\r\n") {
                break at;
            }
            if stream.read_buf(&mut request).await? == 0 {
                return Ok(());
            }
        };
        let head = String::from_utf8_lossy(&request[..end]).to_lowercase();
        let value =
            |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned());
        let path = head.split_whitespace().nth(1).unwrap_or_default().to_owned();
        let mut takes = Duration::ZERO;
        if path.ends_with("/outputs") {
            let ignored = self.change(|seen| {
                seen.uploads_begun += 1;
                takes = seen.upload_takes;
                let left = seen.uploads_ignored.checked_sub(1);
                seen.uploads_ignored = left.unwrap_or(0);
                left.is_some()
            });
            if ignored {
                // Held open, so that only the sender's own patience can end it.
                return std::future::pending().await;
            }
        }
        let length: usize = value("content-length:").map_or(0, |length| length.parse().unwrap());
        let mut body = request.split_off(end + 4);
        let is_output = path.ends_with("/outputs");
        let cut_after = if is_output { self.change(|seen| seen.upload_cut_after.take()) } else { None };
        let wanted = cut_after.map_or(length, |cut_after| cut_after.min(length));
        while body.len() < wanted && stream.read_buf(&mut body).await? > 0 {}
        if is_output {
            let offset: usize = value("upload-offset:").map_or(0, |offset| offset.parse().unwrap());
            body.truncate(wanted);
            let whole = self.change(|seen| {
                seen.upload_offsets.push(offset);
                Some([seen.upload_kept.get(..offset)?, &body].concat())
            });
            let Some(whole) = whole else {
                return stream.write_all(b"HTTP/1.1 412 x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
            };
            body = whole;
        }
        if cut_after.is_some() {
            self.change(|seen| seen.upload_kept = body);
            if !self.seen().says_cut_short {
                return Ok(());
            }
            let problem = Problem::new(400, "cut-short", "The upload ended early", "too slow").retryable();
            let answer = serde_json::to_string(&problem).unwrap();
            let head = format!("HTTP/1.1 400 x\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", answer.len());
            return stream.write_all(&[head, answer].concat().into_bytes()).await;
        }
        tokio::time::sleep(takes).await;
        let (status, answer) = self.route(&path, value("digest-expected:"), value("range:"), body);
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", answer.len());
        stream.write_all(&[head.as_bytes(), &answer].concat()).await
    }

    fn route(
        &self,
        path: &str,
        digest: Option<String>,
        range: Option<String>,
        body: Vec<u8>,
    ) -> (&'static str, Vec<u8>) {
        if path.ends_with("/workers/join") {
            self.change(|seen| seen.joins += 1);
            let answer = JoinAnswer { worker: WorkerId(3), key: "swk_test".into() };
            return ("200 OK", serde_json::to_vec(&answer).unwrap());
        }
        if path.ends_with("/outputs") {
            let found = Digest::of(&body);
            assert_eq!(digest, Some(found.to_string()));
            let view = FileView { digest: found, size_bytes: body.len() as u64 };
            self.change(|seen| seen.uploads.insert(found, body.into()));
            return ("201 Created", serde_json::to_vec(&view).unwrap());
        }
        if path.contains("/outputs/") {
            let offset = self.change(|seen| {
                let offset = seen.upload_kept.len() as u64;
                if seen.loses_uploads {
                    seen.upload_kept.clear();
                }
                offset
            });
            return ("200 OK", serde_json::to_vec(&UploadView { offset }).unwrap());
        }
        let digest: Option<Digest> = path.rsplit('/').next().and_then(|digest| digest.parse().ok());
        let blob = digest.and_then(|digest| self.seen().blob(&digest));
        match (blob, range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok())) {
            (Some(blob), Some(from)) => ("206 Partial Content", blob[from..].to_vec()),
            (Some(blob), None) => ("200 OK", blob.to_vec()),
            (None, _) => ("404 Not Found", Vec::new()),
        }
    }
}

impl Seen {
    /// Of a core that was told nothing yet, and answers everything.
    pub(super) fn healthy() -> Self {
        Self {
            offers: Vec::new(),
            frames: Vec::new(),
            logs: HashMap::new(),
            finished: HashMap::new(),
            uploads: HashMap::new(),
            blobs: HashMap::from([(Digest::of(super::CONFIG), Bytes::from_static(super::CONFIG))]),
            spoils: HashMap::new(),
            unreadable: 0,
            sessions: 0,
            joins: 0,
            heartbeats: 0,
            version: VERSION,
            welcome: |welcome| welcome,
            judges_reports: true,
            answers_link: true,
            answers_heartbeats: true,
            commits_starts: true,
            stores_finishes: true,
            cut_after: None,
            uploads_begun: 0,
            uploads_ignored: 0,
            upload_cut_after: None,
            says_cut_short: false,
            loses_uploads: false,
            upload_offsets: Vec::new(),
            upload_kept: Vec::new(),
            upload_takes: Duration::ZERO,
            abandons: Vec::new(),
            link: None,
            ends: HashMap::new(),
        }
    }

    fn blob(&mut self, digest: &Digest) -> Option<Bytes> {
        let blob = self.blobs.get(digest)?;
        let Some(left) = self.spoils.get_mut(digest).filter(|left| **left > 0) else { return Some(blob.clone()) };
        *left -= 1;
        let mut spoilt = blob.to_vec();
        if let Some(byte) = spoilt.last_mut() {
            *byte ^= 1;
        }
        Some(spoilt.into())
    }

    /// Renews no lease, or renews them again.
    pub(crate) fn fall_silent(&mut self, is_silent: bool) {
        (self.answers_link, self.answers_heartbeats, self.judges_reports) = (!is_silent, !is_silent, !is_silent);
    }

    pub(super) fn keep_end(&mut self, session: SessionId, end: CoreEnd) {
        self.ends.insert(session.0, end);
    }

    /// Opens a datagram: what it says, and what is answered if anything.
    pub(super) fn hear_beat(&mut self, datagram: &[u8]) -> Option<(Heartbeat, Option<Vec<u8>>)> {
        let session = swarm_protocol::heartbeat::session_of(datagram)?;
        let end = self.ends.get_mut(&session.0)?;
        let beat: Heartbeat = end.open(datagram).ok()?;
        self.heartbeats += 1;
        let answer = HeartbeatAnswer { seq: beat.seq, renewed: true };
        Some((beat, self.answers_heartbeats.then(|| end.seal(&answer).unwrap())))
    }

    /// Notes a frame; the result is what a healthy core would answer.
    pub(super) fn hear(&mut self, frame: ToCore) -> Vec<ToWorker> {
        self.frames.push(frame.clone());
        match frame {
            ToCore::Log { attempt, offset, bytes } => self.hear_log(attempt, offset, &bytes),
            ToCore::Renew { seq, .. } if self.answers_link => vec![ToWorker::Renewed { seq, matched: true }],
            ToCore::StateReport { seq, attempts } if self.judges_reports => {
                let held = |abandoned: &AttemptId| attempts.iter().any(|held| held.attempt == *abandoned);
                let abandon = self.abandons.iter().copied().filter(held).collect();
                vec![ToWorker::StateJudged { seq, abandon }]
            }
            ToCore::MayStart { attempt } if self.commits_starts => vec![ToWorker::StartCommitted { attempt }],
            ToCore::Finished(report) => {
                let attempt = report.attempt;
                let log = self.logs.get(&attempt).cloned().unwrap_or_default();
                assert_eq!((log.len() as u64, Digest::of(&log)), (report.log_bytes, report.log_digest));
                self.finished.insert(attempt, *report);
                if self.stores_finishes { vec![ToWorker::FinishStored { attempt }] } else { Vec::new() }
            }
            _ => Vec::new(),
        }
    }

    fn hear_log(&mut self, attempt: AttemptId, offset: u64, bytes: &[u8]) -> Vec<ToWorker> {
        let log = self.logs.entry(attempt).or_default();
        let known = log.len() - usize::try_from(offset).unwrap().min(log.len());
        assert!(offset as usize <= log.len(), "a gap in the log");
        let overlap = known.min(bytes.len());
        assert_eq!(&log[offset as usize..offset as usize + overlap], &bytes[..overlap], "the log was rewritten");
        log.extend_from_slice(&bytes[overlap..]);
        let offset = log.len() as u64;
        if let Some(left) = &mut self.cut_after {
            match left.checked_sub(bytes.len()) {
                Some(rest) => *left = rest,
                None => {
                    (self.cut_after, self.link) = (None, None);
                    return Vec::new();
                }
            }
        }
        vec![ToWorker::LogStored { attempt, offset }]
    }
}
