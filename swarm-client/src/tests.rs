//! The client against a server that fails in every way the network knows.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use secrecy::ExposeSecret as _;
use serde_json::json;
use swarm_protocol::api::OutputView;
use swarm_protocol::logs::{LogRecord, LogStream};
use swarm_protocol::spec::JobSpec;
use swarm_protocol::{Digest, JobId, ScheduleId, TaskId};

use crate::testserver::{Reply, Request, Server};
use crate::{Client, ClientError, Destination, LogOptions, MemoryTokens, SavedTokens, Timeouts, TokenStore as _};

const TASK: TaskId = TaskId { job: JobId(4), task: 7 };

fn tokens() -> Arc<MemoryTokens> {
    Arc::new(MemoryTokens::new(SavedTokens { access: "old".into(), refresh: "r1".into() }))
}

fn client(server: &Server) -> Client {
    Client::new(&server.url, tokens()).unwrap()
}

fn whoami() -> Reply {
    Reply::json(200, &json!({"id": 1, "user": "ana", "group": "lab", "role": "consumer"}))
}

#[tokio::test]
async fn a_burst_with_an_expired_token_makes_one_refresh_and_keeps_the_rotated_token() {
    let server = Server::start(|request| match (request.route().as_str(), request.header("authorization")) {
        ("POST /api/v1/refresh", "") => {
            Reply::json(200, &json!({"access_token": "new", "expires_in_s": 60, "refresh_token": "r2"}))
        }
        (_, "Bearer new") => whoami(),
        _ => Reply::problem(401, "token-expired"),
    })
    .await;
    let store = tokens();
    let client = Client::new(&server.url, Arc::clone(&store) as _).unwrap();
    let calls = futures_util::future::join_all((0..8).map(|_| client.whoami())).await;
    assert!(calls.iter().all(|answer| answer.as_ref().is_ok_and(|who| who.user == "ana")), "{calls:?}");
    let refreshes = server.seen("POST /api/v1/refresh");
    assert_eq!(refreshes.len(), 1);
    assert_eq!(refreshes[0].body, br#"{"refresh_token":"r1"}"#);
    assert_eq!(store.load().unwrap().unwrap().refresh.expose_secret(), "r2");
}

/// Even where the call itself may not be sent twice: it was not done.
#[tokio::test]
async fn a_refresh_that_a_busy_core_cannot_answer_is_repeated() {
    let busy = AtomicBool::new(true);
    let server = Server::start(move |request| match (request.route().as_str(), request.header("authorization")) {
        ("POST /api/v1/refresh", "") if busy.swap(false, Ordering::Relaxed) => {
            Reply::problem(503, "unavailable").header("retry-after", 0)
        }
        ("POST /api/v1/refresh", "") => {
            Reply::json(200, &json!({"access_token": "new", "expires_in_s": 60, "refresh_token": "r2"}))
        }
        (_, "Bearer new") => Reply::json(201, &json!({"job": 7, "repeated": false})),
        _ => Reply::problem(401, "token-expired"),
    })
    .await;
    let made = client(&server).trigger_schedule(ScheduleId(1)).await.unwrap();
    assert_eq!(made.job, JobId(7));
    let sent: Vec<_> = server.seen("POST /api/v1/refresh").into_iter().map(|request| request.body).collect();
    assert_eq!(sent, vec![br#"{"refresh_token":"r1"}"#.to_vec(); 2]);
}

#[tokio::test]
async fn a_refused_refresh_is_told_and_not_repeated() {
    let server = Server::start(|request| match request.route().as_str() {
        "POST /api/v1/refresh" => Reply::problem(401, "unauthenticated"),
        _ => Reply::problem(401, "token-expired"),
    })
    .await;
    let error = client(&server).whoami().await.unwrap_err();
    assert!(error.is_status(401) && error.hint().unwrap().contains("login"), "{error:?}");
    assert_eq!(server.seen("POST /api/v1/refresh").len(), 1);
}

#[tokio::test]
async fn nobody_logged_in_sends_nothing() {
    let server = Server::start(|_| whoami()).await;
    let client = Client::new(&server.url, Arc::new(MemoryTokens::default())).unwrap();
    assert!(matches!(client.whoami().await, Err(ClientError::NotLoggedIn)));
    assert!(server.seen("GET /api/v1/whoami").is_empty());
}

fn first_fails(good: fn() -> Reply) -> impl Fn(&Request) -> Reply {
    let calls = AtomicUsize::new(0);
    move |_| match calls.fetch_add(1, Ordering::SeqCst) {
        0 => Reply::problem(503, "unavailable").header("retry-after", 0),
        1 => good().cut(5, Duration::ZERO),
        _ => good(),
    }
}

#[tokio::test]
async fn a_read_is_repeated_after_a_busy_core_and_a_broken_answer() {
    let server = Server::start(first_fails(whoami)).await;
    assert_eq!(client(&server).whoami().await.unwrap().group, "lab");
    assert_eq!(server.seen("GET /api/v1/whoami").len(), 3);
}

#[tokio::test]
async fn a_submit_is_repeated_only_under_one_key() {
    let submitted = || Reply::json(201, &json!({"job": 9}));
    let server = Server::start(first_fails(submitted)).await;
    let job = client(&server).submit(&JobSpec::new("a"), Some("k")).await.unwrap().job;
    assert_eq!(job, JobId(9));
    let sent = server.seen("POST /api/v1/jobs");
    assert_eq!(sent.len(), 3);
    assert!(sent.iter().all(|request| request.header("idempotency-key") == "k"));

    let server = Server::start(first_fails(submitted)).await;
    let error = client(&server).submit(&JobSpec::new("a"), None).await.unwrap_err();
    assert!(error.is_status(503) && error.is_retryable());
    assert_eq!(server.seen("POST /api/v1/jobs").len(), 1);
}

#[tokio::test]
async fn an_error_page_of_somebody_else_is_still_a_problem() {
    let server = Server::start(|_| Reply::bytes(404, "<html>no</html>")).await;
    let error = client(&server).job(JobId(1)).await.unwrap_err();
    assert_eq!(error.problem().unwrap().code, "not-found");
    assert!(client(&server).image(Digest::of(b"")).await.unwrap().is_none());
}

/// Serves `body` in pieces of `step` bytes, each on a connection that breaks, from the byte the query or range names.
fn broken(body: Vec<u8>, step: usize, ranges: bool) -> impl Fn(&Request) -> Reply {
    move |request| {
        let range = request.header("range").strip_prefix("bytes=").and_then(|range| range.strip_suffix('-'));
        let from: usize = range.or(request.query("offset")).map_or(0, |from| from.parse().unwrap());
        let rest = body[from..].to_vec();
        let reply = if range.is_some() && ranges {
            Reply::bytes(206, rest).header("content-range", format!("bytes {from}-{}/{}", body.len() - 1, body.len()))
        } else if range.is_some() {
            return Reply::bytes(200, body.clone());
        } else {
            Reply::bytes(200, rest)
        };
        reply.header("swarm-attempt", 2).cut(step, Duration::ZERO)
    }
}

#[tokio::test]
async fn a_log_over_breaking_connections_loses_and_doubles_nothing() {
    let records: Vec<_> = (0u8..20)
        .map(|n| LogRecord {
            stream: if n % 2 == 0 { LogStream::Stdout } else { LogStream::Stderr },
            at_us: u64::from(n),
            bytes: vec![n; usize::from(n)],
        })
        .collect();
    let mut body = Vec::new();
    records.iter().for_each(|record| record.encode(&mut body));
    let length = body.len() as u64;
    let server = Server::start(broken(body, 37, true)).await;
    let mut tail = client(&server).log(TASK, LogOptions { follow: true, ..LogOptions::default() });
    let mut got = Vec::new();
    while let Some(record) = tail.next().await.unwrap() {
        got.push(record);
    }
    assert_eq!(got, records);
    assert_eq!((tail.offset(), tail.attempt()), (length, Some(2)));
    let asked = server.seen("GET /api/v1/jobs/4/tasks/7/log");
    assert!(asked.len() > 5, "the connection never broke");
    assert_eq!(asked[0].query("attempt"), None);
    assert!(asked[1..].iter().all(|request| request.query("attempt") == Some("2")));
}

/// More silences than tries: a job that says nothing is no failure, before its first word and after it.
#[tokio::test]
async fn a_quiet_job_s_log_is_awaited() {
    let record = LogRecord { stream: LogStream::Stdout, at_us: 1, bytes: b"at last".to_vec() };
    let mut body = Vec::new();
    record.encode(&mut body);
    let calls = AtomicUsize::new(0);
    let server = Server::start(move |request| {
        let from: usize = request.query("offset").unwrap().parse().unwrap();
        let rest = Reply::bytes(200, &body[from..]).header("swarm-attempt", 1);
        let silence = Duration::from_secs(20);
        match calls.fetch_add(1, Ordering::SeqCst) {
            0..7 => rest.cut(0, silence),
            7 => rest.cut(3, silence),
            _ => rest,
        }
    })
    .await;
    let timeouts = Timeouts { idle: Duration::from_millis(100), ..Timeouts::default() };
    let client = Client::with_timeouts(&server.url, tokens(), timeouts).unwrap();
    let mut tail = client.log(TASK, LogOptions { follow: true, ..LogOptions::default() });
    assert_eq!(tail.next().await.unwrap(), Some(record));
    assert_eq!(tail.next().await.unwrap(), None);
}

/// An upgrade takes longer than the tries of one call: who follows a job waits for it, and is told once.
#[tokio::test]
async fn a_followed_log_goes_on_when_the_core_is_back() {
    let record = |n: u8| LogRecord { stream: LogStream::Stdout, at_us: u64::from(n), bytes: vec![n; 20] };
    let records: Vec<_> = (0..3).map(record).collect();
    let mut body = Vec::new();
    records.iter().for_each(|record| record.encode(&mut body));
    let core = tokio::runtime::Runtime::new().unwrap();
    let server = core.spawn(Server::start(broken(body.clone(), 40, true))).await.unwrap();
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let patient = client(&server).patient(Duration::from_secs(600), move |error| tell.send(error.to_string()).unwrap());
    let mut tail = patient.log(TASK, LogOptions { follow: true, ..LogOptions::default() });
    let mut got = vec![tail.next().await.unwrap().unwrap()];
    core.shutdown_background();
    let come_back = async {
        let told = told.recv().await.unwrap();
        assert!(told.contains("no answer"), "{told}");
        let listener = tokio::net::TcpListener::bind(server.url.trim_start_matches("http://")).await.unwrap();
        Server::on(listener, broken(body, 40, true))
    };
    let read_on = async {
        while let Some(record) = tail.next().await.unwrap() {
            got.push(record);
        }
    };
    tokio::join!(come_back, read_on);
    assert_eq!(got, records);
    assert!(told.try_recv().is_err(), "one absence is told once");
}

/// It would hide that the address is wrong, and no absence is waited for without end.
#[tokio::test]
async fn a_core_that_never_answered_or_stays_away_is_given_up() {
    let core = tokio::runtime::Runtime::new().unwrap();
    let server = core.spawn(Server::start(|_| whoami())).await.unwrap();
    let patient = |span| client(&server).patient(span, |_| panic!("nothing is waited for"));
    let tired = patient(Duration::ZERO);
    tired.whoami().await.unwrap();
    core.shutdown_background();
    let never_heard = patient(Duration::from_secs(600));
    let (never_heard, given_up) = tokio::join!(never_heard.whoami(), tired.whoami());
    assert!(matches!(never_heard, Err(ClientError::Unreachable { .. })), "{never_heard:?}");
    assert!(matches!(given_up, Err(ClientError::Unreachable { .. })), "{given_up:?}");
}

#[tokio::test]
async fn an_upload_that_stands_still_is_given_up() {
    let server = Server::start(|request| match request.method.as_str() {
        "POST" => Reply::bytes(201, "{}"),
        _ => whoami(),
    })
    .await;
    let timeouts = Timeouts { upload_idle: Duration::from_millis(100), ..Timeouts::default() };
    let client = Client::with_timeouts(&server.url, tokens(), timeouts).unwrap();
    let error = client.upload_image(None, futures_util::stream::pending(), Arc::new(|_| ())).await.unwrap_err();
    assert!(matches!(error, ClientError::Stalled { .. }) && error.is_retryable(), "{error:?}");
}

/// Where the fault lies decides what the user looks at: here, not at the core.
#[tokio::test]
async fn an_upload_whose_source_fails_blames_the_source() {
    let server = Server::start(|request| match request.method.as_str() {
        "POST" => Reply::bytes(201, "{}"),
        _ => whoami(),
    })
    .await;
    let broken = [Ok(bytes::Bytes::from_static(b"begun")), Err(std::io::Error::other("the engine hung up"))];
    let sent = client(&server).upload_image(None, futures_util::stream::iter(broken), Arc::new(|_| ())).await;
    let error = sent.unwrap_err();
    assert!(matches!(&error, ClientError::Source(source) if source.to_string() == "the engine hung up"), "{error:?}");
    assert!(!error.is_retryable());
}

/// The container's bits are an offer; what this process gives no new file, it does not give these either.
#[tokio::test]
async fn a_downloaded_file_is_as_open_as_any_new_file() {
    use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
    let server = Server::start(|_| Reply::bytes(200, "x")).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    download(&server, &OutputView { mode: 0o4777, ..output(b"x") }, &path).await.unwrap();
    let plain = dir.path().join("plain");
    std::fs::File::options().write(true).create_new(true).mode(0o777).open(&plain).unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&path), mode(&plain));
}

#[tokio::test]
async fn a_log_that_is_none_is_an_error() {
    let server = Server::start(|_| Reply::bytes(200, vec![9; 40]).header("swarm-attempt", 1)).await;
    let mut tail = client(&server).log(TASK, LogOptions::default());
    assert!(matches!(tail.next().await, Err(ClientError::Log { at: 0, .. })));
}

/// What was lost with its attempt is lost: all that came of the log is read, and no error made of the rest.
#[tokio::test]
async fn a_log_that_ends_inside_a_record_is_read_to_its_last_whole_one() {
    let record = LogRecord { stream: LogStream::Stdout, at_us: 1, bytes: b"whole\n".to_vec() };
    let mut body = Vec::new();
    (0..2).for_each(|_| record.encode(&mut body));
    for (end, torn) in [(19, false), (20, true), (37, true)] {
        let body = body[..end].to_vec();
        let server = Server::start(move |_| Reply::bytes(200, body.clone()).header("swarm-attempt", 1)).await;
        for follow in [false, true] {
            let mut tail = client(&server).log(TASK, LogOptions { follow, ..LogOptions::default() });
            assert_eq!(tail.next().await.unwrap().as_ref(), Some(&record));
            assert_eq!(tail.next().await.unwrap(), None);
            assert_eq!((tail.offset(), tail.is_torn()), (19, torn));
        }
    }
}

fn output(body: &[u8]) -> OutputView {
    let (digest, size_bytes) = (Digest::of(body), body.len() as u64);
    OutputView { path: "/out/a".into(), digest, size_bytes, is_dir: false, mode: 0o4755 }
}

async fn download(server: &Server, output: &OutputView, path: &Path) -> Result<(), ClientError> {
    let destination = Destination { path, overwrite: false };
    client(server).download_output(TASK, None, 0, output, destination, Arc::new(|_| ())).await
}

fn names(dir: &Path) -> Vec<String> {
    std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[tokio::test]
async fn a_download_goes_on_where_it_broke() {
    use std::os::unix::fs::PermissionsExt as _;
    let body: Vec<u8> = (0..100_000u32).map(|n| (n * 7) as u8).collect();
    for ranges in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let server = Server::start(broken(body.clone(), 30_000, ranges)).await;
        download(&server, &output(&body), &path).await.unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), body);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o755);
        assert_eq!(names(dir.path()), ["a"]);
        let asked = server.seen("GET /api/v1/jobs/4/tasks/7/outputs/0");
        assert_eq!(asked[1].header("range"), "bytes=30000-");
    }
}

#[tokio::test]
async fn an_empty_output_is_a_file_too() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|_| Reply::bytes(200, "")).await;
    download(&server, &output(b""), &dir.path().join("a")).await.unwrap();
    assert_eq!(names(dir.path()), ["a"]);
}

#[tokio::test]
async fn wrong_long_or_unwanted_bytes_leave_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    let server = Server::start(|_| Reply::bytes(200, "other")).await;
    assert!(matches!(download(&server, &output(b"bytes"), &path).await, Err(ClientError::Digest { .. })));
    assert!(matches!(download(&server, &output(b"byte"), &path).await, Err(ClientError::Protocol { .. })));
    assert!(names(dir.path()).is_empty());

    std::fs::write(&path, "mine").unwrap();
    let error = download(&server, &output(b"other"), &path).await.unwrap_err();
    assert!(matches!(error, ClientError::Io { source, .. } if source.kind() == std::io::ErrorKind::AlreadyExists));
    assert_eq!(std::fs::read(&path).unwrap(), b"mine");
    assert_eq!(names(dir.path()), ["a"]);
}

#[tokio::test]
async fn a_file_is_sent_once_and_with_its_digest() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("in");
    std::fs::write(&path, "hello").unwrap();
    let digest = Digest::of(b"hello");
    let known = AtomicUsize::new(0);
    let server = Server::start(move |request| match request.method.as_str() {
        "HEAD" if known.load(Ordering::SeqCst) == 0 => Reply::bytes(404, ""),
        "HEAD" => Reply::bytes(200, "hello"),
        "POST" => {
            known.store(1, Ordering::SeqCst);
            Reply::json(201, &json!({"digest": Digest::of(&request.body), "size_bytes": request.body.len()}))
        }
        _ => whoami(),
    })
    .await;
    let client = client(&server);
    for _ in 0..2 {
        let file = client.upload_file(&path, Arc::new(|_| ())).await.unwrap();
        assert_eq!((file.digest, file.size_bytes), (digest, 5));
    }
    let sent = server.seen("POST /api/v1/files");
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0].header("digest-expected"), digest.to_string());
    assert_eq!(sent[0].header("content-length"), "5");

    let error = client.upload_file(&dir.path().join("absent"), Arc::new(|_| ())).await.unwrap_err();
    assert!(error.to_string().contains("absent"), "{error}");
}

/// However often the connection breaks: only tries that bring nothing are counted.
#[tokio::test]
async fn an_upload_that_gets_on_is_not_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("in");
    std::fs::write(&path, "0123456789").unwrap();
    let there = AtomicUsize::new(0);
    let server = Server::start(move |request| match request.method.as_str() {
        "HEAD" => Reply::bytes(404, ""),
        "POST" if there.fetch_add(1, Ordering::SeqCst) < 9 => Reply::problem(503, "unavailable"),
        "POST" => Reply::json(201, &json!({"digest": Digest::of(b"0123456789"), "size_bytes": 10})),
        _ if request.target.ends_with("/upload") => Reply::json(200, &json!({"offset": there.load(Ordering::SeqCst)})),
        _ => whoami(),
    })
    .await;
    client(&server).upload_file(&path, Arc::new(|_| ())).await.unwrap();
    let sent = server.seen("POST /api/v1/files");
    assert_eq!(sent.len(), 10);
    assert_eq!((sent[9].header("upload-offset"), &sent[9].body[..]), ("9", &b"9"[..]));
}

#[tokio::test]
async fn an_image_is_streamed_under_its_name() {
    let server = Server::start(|request| match request.method.as_str() {
        "POST" => Reply::json(
            201,
            &json!({"name": "a:1", "config_digest": Digest::of(&request.body), "size_bytes": 1, "platform": "linux/amd64",
                    "pushed_at": "2030-01-01T00:00:00Z"}),
        ),
        _ => whoami(),
    })
    .await;
    let pieces = ["one", "two"].map(|piece| Ok(bytes::Bytes::from(piece)));
    let stream = futures_util::stream::iter(pieces);
    let image = client(&server).upload_image(Some("a:1"), stream, Arc::new(|_| ())).await.unwrap();
    assert_eq!(image.config_digest, Digest::of(b"onetwo"));
    assert_eq!(server.seen("POST /api/v1/images")[0].target, "/api/v1/images?name=a%3A1");
}
