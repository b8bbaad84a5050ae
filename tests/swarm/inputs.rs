//! Bad input and strangers: refused with the field's name, and nothing is lost.

use std::net::UdpSocket;
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use swarm_checker::{Op, Probe, Verdict};
use swarm_protocol::problem::Problem;
use swarm_protocol::state::JobState;

use crate::harness::{PATIENCE, Swarm, now_us, report, rounds, shared};

/// An answer to a raw request.
struct Answer {
    status: u16,
    body: Vec<u8>,
}

fn token(swarm: &Swarm) -> String {
    let password = std::fs::read_to_string(swarm.password_file()).unwrap();
    let body = json!({ "user": "admin", "password": password.trim_end() }).to_string();
    let answer = send(swarm, "POST", "/api/v1/login", None, &[], body.into_bytes());
    let tokens: Value = serde_json::from_slice(&answer.body).expect("a login answers with tokens");
    tokens["access_token"].as_str().expect("a login answers with tokens").to_owned()
}

fn send(
    swarm: &Swarm,
    method: &str,
    path: &str,
    token: Option<&str>,
    headers: &[(&str, &str)],
    body: Vec<u8>,
) -> Answer {
    swarm.block(async {
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(30)).build().unwrap();
        let mut request = client.request(method.parse().unwrap(), format!("{}{path}", swarm.url)).body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        let response = request.send().await.unwrap_or_else(|error| panic!("{method} {path}: no answer: {error:?}"));
        let status = response.status().as_u16();
        Answer { status, body: response.bytes().await.unwrap_or_default().to_vec() }
    })
}

#[test]
fn bad_specs_are_refused_by_their_fields() {
    let swarm = shared();
    let token = token(&swarm);
    let absent = format!("sha256:{}", "0".repeat(64));
    let input = |path: &str| json!([{ "digest": absent, "path": path }]);
    let good = serde_json::to_value(swarm.shell("true")).unwrap();
    let cases = [
        ("nonsense", json!(1), "nonsense"),
        ("resources", json!({ "cpu_millis": 100, "memory": 5 }), "memory"),
        ("resources", json!({ "memory_bytes": 1_u64 << 60 }), "resources.memory_bytes"),
        ("resources", json!({ "cpu_millis": 0 }), "resources.cpu_millis"),
        ("inputs", input("/in/../../etc/passwd"), "inputs[0].path"),
        ("inputs", input("in/relative"), "inputs[0].path"),
        ("inputs", input("/in/data"), "inputs[0].digest"),
        ("outputs", json!([{ "path": "/out/../x" }]), "outputs[0].path"),
        ("outputs", json!([{ "path": "/etc/shadow" }]), "outputs[0].path"),
        ("image", json!("never/pushed:1"), "image"),
        ("image", json!("../../etc"), "image"),
        ("array", json!({ "first": 5, "last": 2 }), "array"),
        ("array", json!({ "first": 0, "last": 4_294_967_295_u32 }), "array"),
        ("lease_s", json!(1), "lease_s"),
        ("timeout_s", json!(0), "timeout_s"),
        ("priority", json!(101), "priority"),
        ("name", json!("\u{1b}]52;c;eA==\u{7}"), "name"),
        ("user", json!("a b"), "user"),
        ("env", json!({ "SWARM_ATTEMPT": "9" }), "env.SWARM_ATTEMPT"),
        ("command", json!("not a list"), "command"),
        ("privileged", json!(true), "privileged"),
    ];
    let before = swarm.block(swarm.client.jobs(&swarm_client::JobFilter::default())).unwrap().items.len();
    for (field, value, named) in cases {
        let mut spec = good.clone();
        spec[field] = value.clone();
        let start = now_us();
        let json = [("content-type", "application/json")];
        let answer = send(&swarm, "POST", "/api/v1/jobs", Some(&token), &json, spec.to_string().into_bytes());
        let what = format!("a job with {field} = {value}");
        let probe = Probe { what: what.clone(), denied_by: vec![400, 422], status: Some(answer.status) };
        swarm.recorder.add(start, Verdict::Ok, Op::Probe(probe));
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        let problem: Problem = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{what}: {error}: {text}"));
        assert_eq!(problem.status, 422, "{what}: {text}");
        let fields: Vec<_> = problem.errors.iter().map(|fault| fault.field.as_str()).collect();
        let is_named = fields.iter().any(|field| field.contains(named)) || problem.detail.contains(named);
        assert!(is_named, "{what}: the field is not named: {text}");
        let has_hint = problem.hint.is_some() || problem.errors.iter().all(|fault| !fault.hint.is_empty());
        assert!(has_hint, "{what}: no way out is told: {text}");
    }
    // Other tests may submit meanwhile; none of these names is theirs.
    let jobs = swarm.block(swarm.client.jobs(&swarm_client::JobFilter::default())).unwrap().items;
    assert!(jobs.len() >= before.min(50) && jobs.iter().all(|job| job.image != "never/pushed:1"));
    swarm.judge("bad specs", false);
}

#[test]
fn hostile_bodies_are_refused_and_the_core_goes_on() {
    let swarm = shared();
    let token = token(&swarm);
    let json = [("content-type", "application/json")];
    let huge = format!("{{\"image\":\"{}\"}}", "x".repeat(3 << 20)).into_bytes();
    let deep = [vec![b'['; 200_000], vec![b']'; 200_000]].concat();
    let cases: [(&str, Vec<u8>, &[u16]); 5] = [
        ("huge JSON", huge, &[413]),
        ("deep JSON", deep, &[400, 413, 422]),
        ("no JSON", b"\xff\xfe{".to_vec(), &[400, 422]),
        ("half JSON", b"{\"image\":\"a".to_vec(), &[400, 422]),
        ("nothing", Vec::new(), &[400, 422]),
    ];
    for (what, body, denied_by) in cases {
        let start = now_us();
        let answer = send(&swarm, "POST", "/api/v1/jobs", Some(&token), &json, body);
        let probe = Probe { what: what.into(), denied_by: denied_by.to_vec(), status: Some(answer.status) };
        swarm.recorder.add(start, Verdict::Ok, Op::Probe(probe));
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        assert!(denied_by.contains(&answer.status), "{what}: {} {text}", answer.status);
        let problem: Problem = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{what}: {error}: {text}"));
        assert_eq!(problem.status, answer.status, "{what}");
    }
    let job = swarm.submit(&swarm.shell("true"));
    assert_eq!(swarm.wait_ended(job, PATIENCE).job.state, JobState::Succeeded);
    swarm.judge("hostile bodies", false);
}

#[test]
fn damaged_uploads_are_refused_and_leave_nothing() {
    let swarm = shared();
    let token = token(&swarm);
    let right = hex::encode(Sha256::digest(b"content"));
    let wrong = format!("sha256:{}", "1".repeat(64));
    let headers = [("digest-expected", wrong.as_str()), ("content-type", "application/octet-stream")];
    let answer = send(&swarm, "POST", "/api/v1/files", Some(&token), &headers, b"content".to_vec());
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    assert!((400..500).contains(&answer.status) && text.contains("igest"), "{} {text}", answer.status);
    let answer = send(&swarm, "HEAD", &format!("/api/v1/files/sha256:{right}"), Some(&token), &[], Vec::new());
    assert_eq!(answer.status, 404, "a file of the wrong digest was kept");

    let whole = std::fs::read(swarm.home().join("image.tar")).unwrap();
    let mut flipped = whole.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0x40;
    let cases = [
        ("cut in the middle", whole[..middle].to_vec()),
        ("one bit flipped", flipped),
        ("no archive", b"this is no archive of an image".repeat(100)),
        ("empty", Vec::new()),
    ];
    let images = || swarm.block(swarm.client.images()).unwrap().items;
    for (what, bytes) in cases {
        let file = swarm.home().join("damaged.tar");
        std::fs::write(&file, bytes).unwrap();
        let ended = swarm.consumer(&["image", "push", file.to_str().unwrap(), "--name", "damaged:1"]);
        assert!(ended.code != Some(0) && ended.code.is_some(), "{what}: it was taken");
        assert!(ended.stderr.contains("rror") && ended.stderr.len() < 4_000, "{what}: {}", ended.stderr);
        assert!(images().iter().all(|image| image.name != "damaged:1"), "{what}: it is listed");
    }
    // An absent file is the user's mistake, and said so before anything is sent.
    let ended = swarm.consumer(&["run", "-i", "/no/such/file", &swarm.image, "true"]);
    assert!(ended.stderr.contains("/no/such/file") && ended.code != Some(0), "{ended:?}");
    let (ended, _) = swarm.run(&[], &["sh", "-c", "echo still here"]);
    assert_eq!(ended.stdout, b"still here\n", "{}", ended.stderr);
    swarm.judge("damaged uploads", false);
}

#[test]
fn garbage_datagrams_get_no_answer_and_change_nothing() {
    let swarm = shared();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(&swarm.address).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let job = swarm.submit(&swarm.shell("sleep 3; echo done"));
    let count = 20_000 * rounds(50);
    let start = now_us();
    for at in 0..count {
        let noise = Sha256::digest(at.to_le_bytes());
        let mut datagram = noise.repeat(at as usize % 40);
        if at % 3 == 0 && !datagram.is_empty() {
            // As if it were of a known version.
            datagram[0] = 1;
        }
        let _ = socket.send(&datagram);
    }
    let answered = socket.recv(&mut [0; 2048]).ok();
    let what = format!("{count} garbage datagrams");
    let probe = Probe { what, denied_by: Vec::new(), status: answered.map(|bytes| bytes as u16) };
    swarm.recorder.add(start, Verdict::Ok, Op::Probe(probe));
    assert_eq!(answered, None, "a stranger got an answer");
    assert_eq!(swarm.wait_ended(job, PATIENCE).job.state, JobState::Succeeded);
    let workers = swarm.block(swarm.client.workers()).unwrap().items;
    assert!(workers.iter().any(|worker| worker.state == "ready"), "{workers:?}");
    report(&format!("garbage datagrams: {count} sent, 0 answered"));
    swarm.judge("garbage datagrams", false);
}

#[test]
fn only_the_listed_routes_are_open_to_strangers() {
    let swarm = shared();
    let routes = [
        ("POST", "/api/v1/logout"),
        ("GET", "/api/v1/whoami"),
        ("GET", "/api/v1/users"),
        ("POST", "/api/v1/users"),
        ("GET", "/api/v1/workers"),
        ("POST", "/api/v1/workers/tokens"),
        ("DELETE", "/api/v1/workers/1"),
        ("POST", "/api/v1/workers/1/drain"),
        ("POST", "/api/v1/workers/1/resume"),
        ("POST", "/api/v1/workers/1/declare-lost"),
        ("GET", "/api/v1/modules"),
        ("GET", "/api/v1/log?lines=10"),
        ("POST", "/api/v1/files"),
        ("GET", "/api/v1/images"),
        ("POST", "/api/v1/images?name=x"),
        ("DELETE", "/api/v1/images?name=x"),
        ("GET", "/api/v1/jobs"),
        ("POST", "/api/v1/jobs"),
        ("GET", "/api/v1/jobs/1"),
        ("GET", "/api/v1/jobs/1/wait"),
        ("GET", "/api/v1/jobs/1/tasks"),
        ("GET", "/api/v1/jobs/1/tasks/0"),
        ("GET", "/api/v1/jobs/1/tasks/0/log"),
        ("GET", "/api/v1/jobs/1/tasks/0/outputs/0"),
        ("POST", "/api/v1/jobs/1/cancel"),
        ("GET", "/api/v1/jobs/1/why"),
        ("GET", "/api/v1/schedules"),
        ("POST", "/api/v1/schedules"),
        ("GET", "/api/v1/schedules/1"),
        ("DELETE", "/api/v1/schedules/1"),
        ("POST", "/api/v1/schedules/1/trigger"),
        ("GET", "/api/v1/link"),
        ("POST", "/api/v1/link/attempts/1/0/1/outputs"),
    ];
    let unlisted = [
        ("GET", "/no/such/route"),
        ("GET", "/api/v1/no-such-route"),
        ("GET", "/api/v1/../../etc/passwd"),
        ("PUT", "/api/v1/jobs/1"),
    ];
    let strangers = [None, Some("swk_0123456789abcdef"), Some("eyJhbGciOiJub25lIn0.eyJzdWIiOiIxIn0.")];
    let all = routes.iter().map(|route| (route, true)).chain(unlisted.iter().map(|route| (route, false)));
    for ((method, path), exists) in all {
        for stranger in strangers {
            let start = now_us();
            let answer = send(&swarm, method, path, stranger, &[], Vec::new());
            let what = format!("{method} {path} with {stranger:?}");
            let denied_by = if exists { vec![401] } else { vec![401, 404, 405] };
            let probe = Probe { what, denied_by, status: Some(answer.status) };
            swarm.recorder.add(start, Verdict::Ok, Op::Probe(probe));
            // Of what exists, nobody without a key learns more than that they need one.
            assert!(!exists || answer.status == 401, "{method} {path} with {stranger:?}: {}", answer.status);
        }
    }
    for path in ["/livez", "/readyz"] {
        assert_eq!(send(&swarm, "GET", path, None, &[], Vec::new()).status, 200, "{path}");
    }
    let wrong = json!({ "user": "admin", "password": "wrong" }).to_string().into_bytes();
    let json = [("content-type", "application/json")];
    assert_eq!(send(&swarm, "POST", "/api/v1/login", None, &json, wrong).status, 401);
    let join = json!({ "token": "nonsense", "worker": "w9" }).to_string().into_bytes();
    let status = send(&swarm, "POST", "/api/v1/workers/join", None, &json, join).status;
    assert!(matches!(status, 401 | 403 | 422), "{status}");
    swarm.judge("routes without a key", false);
}
