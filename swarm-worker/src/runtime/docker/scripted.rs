//! Against an engine that is nothing but a few answers, for what a real one cannot be brought to do in a test.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::{Deadlines, DockerRuntime, DockerSettings};
use crate::runtime::{ContainerId, ContainerPhase, ContainerRuntime, Labels, RuntimeError};

/// What comes back.
pub(super) enum Answer {
    Whole(String),
    /// More may follow: it does not end.
    Open(String),
    /// Status 500.
    Failed,
    /// Takes no byte of what is sent, and says nothing.
    Deaf,
    /// Takes all that is sent, and says nothing.
    Silent,
}

/// An engine that gives these answers to paths with their queries.
pub(super) async fn engine(answer: impl Fn(&str) -> Answer + Send + Sync + 'static) -> DockerRuntime {
    engine_within(Deadlines { call: Duration::from_secs(5), ..Deadlines::default() }, answer).await
}

async fn engine_within(deadlines: Deadlines, answer: impl Fn(&str) -> Answer + Send + Sync + 'static) -> DockerRuntime {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let host = Some(format!("tcp://{}", listener.local_addr().expect("an address")));
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = Arc::clone(&answer);
            tokio::spawn(async move { serve(stream, &*answer).await });
        }
    });
    DockerRuntime::connect(DockerSettings { host, deadlines, ..DockerSettings::default() }).await.expect("it answers")
}

async fn serve(stream: TcpStream, answer: &(dyn Fn(&str) -> Answer + Send + Sync)) -> std::io::Result<()> {
    let (mut lines, mut path) = (BufReader::new(stream), String::new());
    lines.read_line(&mut path).await?;
    let mut header = String::new();
    while lines.read_line(&mut header).await? > 2 {
        header.clear();
    }
    let path = path.split(' ').nth(1).unwrap_or_default();
    let answer = if path.ends_with("/version") { ends(json!({"ApiVersion": "1.41"})) } else { answer(path) };
    let (status, body) = match &answer {
        Answer::Whole(body) | Answer::Open(body) => (200, body.as_str()),
        Answer::Failed => (500, "{}"),
        Answer::Deaf => return std::future::pending().await,
        Answer::Silent => {
            tokio::io::copy(&mut lines, &mut tokio::io::sink()).await?;
            return Ok(());
        }
    };
    let head = format!("HTTP/1.1 {status} x\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n");
    lines.write_all(format!("{head}{body}").as_bytes()).await?;
    lines.flush().await?;
    if matches!(answer, Answer::Open(_)) {
        std::future::pending::<()>().await;
    }
    Ok(())
}

pub(super) fn ends(body: serde_json::Value) -> Answer {
    Answer::Whole(body.to_string())
}

#[tokio::test]
async fn containers_are_listed_while_the_engine_copies_files_of_one() {
    let engine = engine(|path| match path {
        path if path.contains("/containers/json") => ends(json!([
            {"Id": "a1", "Names": ["/one"], "Labels": {"of": "us"}, "State": "running"},
            {"Id": "b2", "Names": ["/two"], "Labels": {"of": "us"}, "State": "created"},
            {"Id": "c3", "Names": ["/three"], "Labels": {"of": "us"}, "State": "exited"},
        ])),
        // To describe one, it would have to wait for the copy.
        _ => Answer::Open(String::new()),
    })
    .await;
    let labels = Labels::from([("of".to_owned(), "us".to_owned())]);
    let listed = engine.list_ours(&labels).await.expect("listed");
    let told: Vec<_> = listed.iter().map(|one| (one.id.0.as_str(), one.name.as_str(), one.phase)).collect();
    assert_eq!(
        told,
        [
            ("a1", "one", ContainerPhase::Running),
            ("b2", "two", ContainerPhase::Created),
            ("c3", "three", ContainerPhase::Exited)
        ]
    );
    assert!(listed.iter().all(|one| one.labels == labels));
}

/// What `wait` tells as interrupted of a container that has just ended, on an engine whose clock goes wrong by so much.
async fn is_interrupted(clock_off: chrono::TimeDelta, was_killed: bool, remembers_end: bool) -> bool {
    let now = move || Utc::now() + clock_off;
    let finished = now();
    // The engine notes a signal when it has sent it, which may be after it ended the container.
    let events = [("kill", was_killed, 3), ("die", remembers_end, 5)]
        .map(|(action, is_there, after_ms)| (action, is_there, finished + chrono::TimeDelta::milliseconds(after_ms)));
    let engine = engine(move |path| match path {
        path if path.contains("/wait") => ends(json!({"StatusCode": 143})),
        path if path.contains("/events") => {
            let until = path.split(['?', '&']).find_map(|word| word.strip_prefix("until=")).expect("a bound");
            let until = DateTime::from_timestamp_micros((until.parse::<f64>().unwrap() * 1e6) as i64).unwrap();
            let told =
                events.iter().filter(|(action, is_there, at)| *is_there && path.contains(action) && *at <= until);
            let lines = told.map(|(action, ..)| json!({"Type": "container", "Action": action}).to_string() + "\n");
            let lines = lines.collect();
            if until > now() + chrono::TimeDelta::seconds(30) { Answer::Open(lines) } else { Answer::Whole(lines) }
        }
        _ => {
            let stamp = finished.to_rfc3339_opts(SecondsFormat::Nanos, true);
            let state = json!({"Status": "exited", "ExitCode": 143, "StartedAt": stamp, "FinishedAt": stamp});
            ends(json!({"Id": "a1", "State": state}))
        }
    })
    .await;
    engine.wait(&ContainerId("a1b2".to_owned())).await.expect("it has ended").interrupted
}

#[tokio::test]
async fn a_signal_is_seen_and_an_end_not_missed_whatever_the_two_clocks_show() {
    for clock_off in [-1, 0, 1].map(chrono::TimeDelta::hours) {
        assert!(is_interrupted(clock_off, true, true).await, "{clock_off}: the engine killed it");
        assert!(!is_interrupted(clock_off, false, true).await, "{clock_off}: it ended by itself");
        assert!(!is_interrupted(clock_off, false, false).await, "{clock_off}: the engine has forgotten");
    }
}

/// Such an engine refuses every container that is to have less than all cores.
#[tokio::test]
async fn an_engine_without_cpu_quotas_is_asked_for_none_and_says_so() {
    let engine =
        engine(|_| ends(json!({"NCPU": 4, "CpuCfsQuota": false, "PidsLimit": true, "MemoryLimit": true}))).await;
    let facts = engine.facts().await.expect("it says");
    assert_eq!((facts.unenforced.as_slice(), facts.cpus), (&["cpu"][..], 4));
    facts.check().expect("jobs can run without");
    assert_eq!(engine.cpu_limit.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn an_engine_that_hangs_in_an_upload_is_given_up_by_what_it_takes() {
    let [stall, load] = [500, 900].map(Duration::from_millis);
    let deadlines = Deadlines { stall, load, ..Deadlines::default() };
    for (is_deaf, bytes) in [(true, 64 << 20), (false, 1000)] {
        let engine = engine_within(deadlines, move |path| match path {
            path if path.contains("/images/json") => ends(json!([])),
            _ if is_deaf => Answer::Deaf,
            _ => Answer::Silent,
        })
        .await;
        // More than any socket holds, or so little that all of it leaves.
        let body = || {
            let pieces = (0..bytes / 1000).map(|_| Ok(bytes::Bytes::from_static(&[7; 1000])));
            futures_util::StreamExt::boxed(futures_util::stream::iter(pieces))
        };
        let after = |after: Duration| after.as_millis() as u64;
        let began = std::time::Instant::now();
        let put = engine.put_archive(&ContainerId("a1b2".to_owned()), "/in", body()).await;
        assert_eq!(put, Err(RuntimeError::Timeout { call: "put archive", after_ms: after(stall) }));
        let loaded = engine.load_image(body(), &swarm_protocol::Digest::of(b"image")).await;
        let limit = after(if is_deaf { stall } else { load });
        assert_eq!(loaded, Err(RuntimeError::Timeout { call: "load image", after_ms: limit }));
        assert!(began.elapsed() >= stall * 2 && loaded.is_err_and(|error| error.is_infrastructure()));
    }
}
