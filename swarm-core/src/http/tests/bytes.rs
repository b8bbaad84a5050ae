use swarm_protocol::Outcome;
use swarm_protocol::link::OutputReport;

use super::*;
use crate::blobs::LogKey;
use crate::cache::LogNotice;
use crate::store::{AttemptEnd, Next, SENT_MAX};

#[tokio::test]
async fn a_file_is_stored_checked_and_bounded() {
    let mut config = CoreConfig::default();
    config.limits.upload_bytes = 100_000;
    let swarm = Swarm::with(config).await;
    let (_, token) = swarm.user("ada", Role::Consumer, "lab").await;
    let bytes = vec![7u8; 100_000];
    let (digest, wrong) = (Digest::of(&bytes).to_string(), Digest::of(b"other").to_string());
    let upload = async |headers: &[(&'static str, &str)], body: &[u8]| {
        let answer = swarm.send(Method::Post, "/api/v1/files", &token, headers, body).await;
        let status = answer.status().code;
        (status, serde_json::from_str::<Value>(&answer.into_string().await.unwrap()).unwrap())
    };
    let (status, problem) = upload(&[("Digest-Expected", &wrong)], &bytes).await;
    assert_eq!((status, fields(&problem)), (422, vec!["Digest-Expected"]), "{problem}");
    assert_eq!(upload(&[("Digest-Expected", "md5:1")], &bytes).await.0, 422);
    assert_eq!(upload(&[], &vec![0; 100_001]).await.0, 413);
    let path = format!("/api/v1/files/{digest}");
    assert_eq!(swarm.send(Method::Head, &path, &token, &[], "").await.status(), Status::NotFound);
    let (status, file) = upload(&[("Digest-Expected", &digest)], &bytes).await;
    assert_eq!((status, &file["size_bytes"]), (201, &100_000.into()), "{file}");
    assert_eq!(swarm.send(Method::Head, &path, &token, &[], "").await.status(), Status::Ok);
}

#[tokio::test]
async fn an_upload_goes_on_only_from_where_its_sender_s_stands() {
    let swarm = Swarm::start().await;
    let (ada, token) = swarm.user("ada", Role::Consumer, "lab").await;
    let (_, other) = swarm.user("bob", Role::Consumer, "lab").await;
    let digest = Digest::of(b"hello world");
    let mut broken = swarm.blobs.begin(100).unwrap();
    std::io::Write::write_all(&mut broken, b"hello ").unwrap();
    let parked = Arc::clone(&swarm.client.rocket().state::<Uploads>().unwrap().parked);
    parked.park((parked::Sender::User(ada.id), digest), broken);
    let path = format!("/api/v1/files/{digest}/upload");
    assert_eq!(swarm.get(&path, &token).await, (200, serde_json::json!({ "offset": 6 })));
    assert_eq!(swarm.get(&path, &other).await, (200, serde_json::json!({ "offset": 0 })));
    let text = digest.to_string();
    let go_on = async |token: &str, offset: &str| {
        let headers = [("Digest-Expected", text.as_str()), ("Upload-Offset", offset)];
        let answer = swarm.send(Method::Post, "/api/v1/files", token, &headers, "world").await;
        let status = answer.status().code;
        (status, serde_json::from_str::<Value>(&answer.into_string().await.unwrap()).unwrap())
    };
    for (token, offset, status) in [(&other, "6", 412), (&token, "5", 412), (&token, "six", 422)] {
        let (answered, problem) = go_on(token, offset).await;
        assert_eq!(answered, status, "{problem}");
    }
    let unnamed = swarm.send(Method::Post, "/api/v1/files", &token, &[("Upload-Offset", "6")], "world").await;
    assert_eq!(unnamed.status().code, 422);
    let (status, file) = go_on(&token, "6").await;
    assert_eq!((status, &file["digest"], &file["size_bytes"]), (201, &text.as_str().into(), &11.into()), "{file}");
    assert_eq!(swarm.get(&path, &token).await.1["offset"], 0);
}

#[tokio::test]
async fn a_corrupt_archive_is_refused_and_leaves_nothing() {
    let swarm = Swarm::start().await;
    let (_, token) = swarm.user("ada", Role::Consumer, "lab").await;
    for (body, part) in
        [(&b"hello"[..], "archive"), (&[0x1f, 0x8b, 8, 0, 0][..], "archive"), (&[0; 1024][..], "neither manifest.json")]
    {
        let (status, problem) = swarm.json(Method::Post, "/api/v1/images?name=tool", &token, body).await;
        assert_eq!((status, fields(&problem)), (422, vec!["archive"]), "{problem}");
        assert!(problem["detail"].as_str().unwrap().contains(part), "{problem}");
    }
    let (status, problem) = swarm.json(Method::Post, "/api/v1/images?name=Bad!", &token, "").await;
    assert_eq!((status, fields(&problem)), (422, vec!["name"]));
    assert_eq!(swarm.get("/api/v1/images", &token).await.1["items"], Value::Array(Vec::new()));
    assert!(swarm.blobs.list(None, 10).unwrap().is_empty());
}

#[tokio::test]
async fn an_image_is_stored_named_again_and_unnamed() {
    let swarm = Swarm::start().await;
    let (_, token) = swarm.user("ada", Role::Consumer, "lab").await;
    let archive = docker_archive();
    let (status, image) = swarm.json(Method::Post, "/api/v1/images", &token, &archive).await;
    assert_eq!(
        (status, &image["name"], &image["platform"]),
        (201, &"tools/one:2".into(), &"linux/amd64".into()),
        "{image}"
    );
    let path = format!("/api/v1/images/{}", image["config_digest"].as_str().unwrap());
    assert_eq!(swarm.get(&path, &token).await.0, 200);
    let (status, tagged) = swarm.json(Method::Post, &format!("{path}/tags"), &token, r#"{"name":"other"}"#).await;
    assert_eq!((status, &tagged["name"]), (200, &"other:latest".into()), "{tagged}");
    let untag = "/api/v1/images?name=tools/one:2";
    assert_eq!(swarm.json(Method::Delete, untag, &token, "").await.0, 204);
    assert_eq!(swarm.json(Method::Delete, untag, &token, "").await.0, 404);
    assert_eq!(swarm.get("/api/v1/images", &token).await.1["items"].as_array().unwrap().len(), 1);
    swarm.job(&token, r#"{"image":"other"}"#).await;
}

/// What `docker save` writes for an image with one empty layer.
fn docker_archive() -> Vec<u8> {
    let layer = tar::Builder::new(Vec::new()).into_inner().unwrap();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": [Digest::of(&layer)] },
    });
    let manifest = serde_json::json!([{ "Config": "c.json", "RepoTags": ["tools/one:2"], "Layers": ["l.tar"] }]);
    let mut archive = tar::Builder::new(Vec::new());
    for (name, bytes) in [
        ("c.json", config.to_string().into_bytes()),
        ("l.tar", layer),
        ("manifest.json", manifest.to_string().into_bytes()),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, bytes.as_slice()).unwrap();
    }
    archive.into_inner().unwrap()
}

/// A job whose one attempt ended well with the output `the output`.
async fn ended_job(swarm: &Swarm, account: &Account, token: &str) -> JobId {
    swarm.image(account.group).await;
    let job = swarm.job(token, r#"{"image":"tool","outputs":[{"path":"/out/r"}]}"#).await;
    let (worker, _) = swarm.worker("w1").await;
    let attempt = swarm.assign(job, worker).await;
    swarm.blobs.log_append(&LogKey::from(attempt), 0, b"log bytes").unwrap();
    end_well(swarm, attempt, worker).await;
    job
}

async fn end_well(swarm: &Swarm, attempt: AttemptId, worker: WorkerId) {
    let (now, digest) = (swarm.clock.now(), swarm.store_blob(b"the output"));
    let output = OutputReport { path: "/out/r".into(), digest, size_bytes: 10, is_dir: false, mode: 0o644 };
    let end = AttemptEnd {
        attempt,
        worker,
        outcome: Outcome::Succeeded,
        next: Next::Final,
        started_at: Some(now),
        ended_at: now,
        ran_ms: Some(1),
        may_have_run: true,
        log_bytes: 9,
        log_cut_bytes: 0,
        outputs: vec![output],
        usage: None,
    };
    swarm.commit(Transition::End(Box::new(end))).await;
}

#[tokio::test]
async fn outputs_and_logs_are_read_whole_and_from_the_middle() {
    let swarm = Swarm::start().await;
    let (ada, token) = swarm.user("ada", Role::Consumer, "lab").await;
    let job = ended_job(&swarm, &ada, &token).await;
    let path = format!("/api/v1/jobs/{job}/tasks/0/outputs/0");
    let whole = swarm.send(Method::Get, &path, &token, &[], "").await;
    assert_eq!(whole.status(), Status::Ok);
    let etag = format!("\"{}\"", Digest::of(b"the output"));
    assert_eq!(whole.headers().get_one("ETag"), Some(etag.as_str()));
    assert_eq!(whole.headers().get_one("Content-Disposition"), Some("attachment"));
    assert_eq!(whole.headers().get_one("X-Content-Type-Options"), Some("nosniff"));
    assert_eq!(whole.into_string().await.unwrap(), "the output");
    let part = swarm.send(Method::Get, &path, &token, &[("Range", "bytes=4-")], "").await;
    assert_eq!(part.status(), Status::PartialContent);
    assert_eq!(part.headers().get_one("Content-Range"), Some("bytes 4-9/10"));
    assert_eq!(part.into_string().await.unwrap(), "output");
    let beyond = swarm.send(Method::Get, &path, &token, &[("Range", "bytes=10-")], "").await;
    assert_eq!(beyond.status(), Status::RangeNotSatisfiable);
    let problem: Value = serde_json::from_str(&beyond.into_string().await.unwrap()).unwrap();
    assert!(problem["hint"].as_str().unwrap().contains("Range"), "{problem}");
    assert_eq!(swarm.get(&format!("/api/v1/jobs/{job}/tasks/0/outputs/1"), &token).await.0, 422);
    assert_eq!(swarm.get(&format!("{path}?attempt=2"), &token).await.0, 404);

    let path = format!("/api/v1/jobs/{job}/tasks/0/log?follow=true&offset=4");
    let log = swarm.send(Method::Get, &path, &token, &[], "").await;
    assert_eq!(log.headers().get_one("Swarm-Attempt"), Some("1"));
    assert_eq!(log.into_string().await.unwrap(), "bytes");
    assert_eq!(swarm.get(&format!("/api/v1/jobs/{job}/tasks/0/log?attempt=3"), &token).await.0, 404);
}

#[tokio::test]
async fn who_follows_a_log_is_woken_by_notices_and_not_driven_by_false_ones() {
    let swarm = Swarm::start().await;
    let (ada, token) = swarm.user("ada", Role::Consumer, "lab").await;
    swarm.image(ada.group).await;
    let job = swarm.job(&token, r#"{"image":"tool","outputs":[{"path":"/out/r"}]}"#).await;
    let (worker, _) = swarm.worker("w1").await;
    let attempt = swarm.assign(job, worker).await;
    let looks = async || {
        let modules = swarm.get("/api/v1/modules", &token).await.1;
        let archive = modules["items"].as_array().unwrap().iter().find(|module| module["name"] == "archive");
        archive.unwrap()["handled"].as_u64().unwrap()
    };
    let path = format!("/api/v1/jobs/{job}/tasks/0/log?follow=true");
    let follow = async { swarm.send(Method::Get, &path, &token, &[], "").await.into_string().await.unwrap() };
    let tell = async {
        let (before, began) = (looks().await, std::time::Instant::now());
        for count in 0..1000 {
            swarm.cache.tell(LogNotice { attempt, bytes: u64::MAX, ended: count >= 500 });
            // The pace of the notices is what is tested.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let (looked, tenths) = (looks().await - before, began.elapsed().as_millis() as u64 / 100);
        // Once at the log, and if it was told of the end, at the attempt as well.
        assert!(looked < 3 * tenths + 10, "it looked {looked} times in {tenths} tenths of a second");
        swarm.blobs.log_append(&LogKey::from(attempt), 0, b"log bytes").unwrap();
        end_well(&swarm, attempt, worker).await;
        swarm.cache.tell(LogNotice { attempt, bytes: 0, ended: true });
    };
    let (log, ()) = tokio::join!(follow, tell);
    assert_eq!(log, "log bytes");
}

#[tokio::test]
async fn a_worker_reaches_only_what_its_live_attempt_names() {
    let swarm = Swarm::start().await;
    let (ada, token) = swarm.user("ada", Role::Consumer, "lab").await;
    let image = swarm.image(ada.group).await;
    let job = swarm.job(&token, r#"{"image":"tool"}"#).await;
    let (worker, key) = swarm.worker("w1").await;
    let (_, other) = swarm.worker("w2").await;
    let blob = |attempt: u16, digest: Digest| format!("/api/v1/link/attempts/{job}/0/{attempt}/blobs/{digest}");
    assert_eq!(swarm.get(&blob(1, image.config), &key).await.0, 404, "not assigned yet");
    let attempt = swarm.assign(job, worker).await;
    let config = swarm.send(Method::Get, &blob(1, image.config), &key, &[("Range", "bytes=4-")], "").await;
    assert_eq!(config.into_string().await.unwrap(), "config");
    assert_eq!(swarm.get(&blob(1, image.layers[0].digest), &key).await.0, 200);
    let unnamed = swarm.store_blob(b"somebody's");
    for (path, key) in [(blob(1, unnamed), &key), (blob(2, image.config), &key), (blob(1, image.config), &other)] {
        assert_eq!(swarm.get(&path, key).await.0, 404, "{path}");
    }
    let outputs = format!("/api/v1/link/attempts/{job}/0/1/outputs");
    assert_eq!(swarm.json(Method::Post, &outputs, &other, "x").await.0, 404);
    let (status, file) = swarm.json(Method::Post, &outputs, &key, "x").await;
    assert_eq!((status, &file["digest"]), (201, &Digest::of(b"x").to_string().into()));
    let sent = swarm.store.sent_outputs(attempt).unwrap();
    assert_eq!(sent, [(Digest::of(b"x"), 1)], "noted before it is acknowledged");
    swarm.commit(Transition::Recall { attempt, worker, at: swarm.clock.now() }).await;
    assert_eq!(swarm.json(Method::Post, &outputs, &key, "x").await.0, 404, "given back");
}

#[tokio::test]
async fn uploads_of_users_do_not_hold_up_those_of_workers() {
    let swarm = Swarm::start().await;
    let (ada, token) = swarm.user("ada", Role::Consumer, "lab").await;
    swarm.image(ada.group).await;
    let job = swarm.job(&token, r#"{"image":"tool"}"#).await;
    let (worker, key) = swarm.worker("w1").await;
    swarm.assign(job, worker).await;
    let uploads = swarm.client.rocket().state::<Uploads>().unwrap();
    let mut all = Vec::new();
    for user in 0..u64::from(CoreConfig::default().limits.uploads) {
        all.push(uploads.users.take(UserId(1000 + user)).await.unwrap());
    }
    let outputs = format!("/api/v1/link/attempts/{job}/0/1/outputs");
    let sent = tokio::time::timeout(Duration::from_secs(20), swarm.json(Method::Post, &outputs, &key, "x"));
    assert_eq!(sent.await.expect("no wait for users").0, 201);
    let file = swarm.json(Method::Post, "/api/v1/files", &token, "x");
    tokio::pin!(file);
    assert!(futures_util::poll!(&mut file).is_pending());
    drop(all);
    assert_eq!(file.await.0, 201);
}

#[tokio::test]
async fn uploads_of_one_user_do_not_hold_up_those_of_another() {
    let swarm = Swarm::start().await;
    let (ada, token) = swarm.user("ada", Role::Consumer, "lab").await;
    let (_, other) = swarm.user("bob", Role::Consumer, "lab").await;
    let uploads = swarm.client.rocket().state::<Uploads>().unwrap();
    let mut hers = Vec::new();
    for _ in 0..CoreConfig::default().limits.uploads / 4 {
        hers.push(uploads.users.take(ada.id).await.unwrap());
    }
    let file = swarm.json(Method::Post, "/api/v1/files", &token, "x");
    tokio::pin!(file);
    let image = tokio::time::timeout(
        Duration::from_secs(20),
        swarm.json(Method::Post, "/api/v1/images", &other, docker_archive()),
    );
    tokio::select! {
        image = image => assert_eq!(image.expect("no wait for ada").0, 201),
        file = &mut file => panic!("a ninth at a time: {file:?}"),
    }
    hers.pop();
    assert_eq!(file.await.0, 201);
}

#[tokio::test]
async fn the_outputs_of_an_attempt_are_bounded_together() {
    let mut config = CoreConfig::default();
    config.limits.output_bytes = 100;
    let swarm = Swarm::with(config).await;
    let (ada, token) = swarm.user("ada", Role::Consumer, "lab").await;
    swarm.image(ada.group).await;
    let job = swarm.job(&token, r#"{"image":"tool"}"#).await;
    let (worker, key) = swarm.worker("w1").await;
    swarm.assign(job, worker).await;
    let outputs = format!("/api/v1/link/attempts/{job}/0/1/outputs");
    let (first, digest) = ([1; 60], Digest::of(&[1; 60]).to_string());
    let send = async |body: &[u8], digest: &str| {
        swarm.send(Method::Post, &outputs, &key, &[("Digest-Expected", digest)], body).await.status().code
    };
    assert_eq!(send(&first, &digest).await, 201);
    assert_eq!(send(&first, &digest).await, 201, "sent again after its answer was lost");
    assert_eq!(send(&[2; 41], &Digest::of(&[2; 41]).to_string()).await, 413);
    let (three, four) = (Digest::of(&[3; 30]).to_string(), Digest::of(&[4; 30]).to_string());
    let (one, other) = tokio::join!(send(&[3; 30], &three), send(&[4; 30], &four));
    assert_eq!(one.min(other)..=one.max(other), 201..=413, "both at once do not fit");
    assert_eq!(send(&[2; 10], &Digest::of(&[2; 10]).to_string()).await, 201);
}

#[tokio::test]
async fn an_output_that_does_not_count_is_not_kept() {
    let swarm = Swarm::start().await;
    let (ada, token) = swarm.user("ada", Role::Consumer, "lab").await;
    swarm.image(ada.group).await;
    let job = swarm.job(&token, r#"{"image":"tool"}"#).await;
    let (worker, key) = swarm.worker("w1").await;
    let attempt = swarm.assign(job, worker).await;
    let outputs = format!("/api/v1/link/attempts/{job}/0/1/outputs");
    let kept = |bytes: &[u8]| swarm.blobs.contains(&Digest::of(bytes)).unwrap();
    let send = |digest| Transition::SendOutput { attempt, worker, digest, size_bytes: 1 };
    let mut sent = Vec::new();
    for number in 1..SENT_MAX {
        let digest = Digest::of(number.to_string().as_bytes());
        sent.push(swarm.handles.ledger.queue(send(digest)).await.unwrap());
    }
    for verdict in sent {
        verdict.await.unwrap().unwrap();
    }
    swarm.ahead.of(|transition| matches!(transition, Transition::SendOutput { .. }), send(Digest::of(b"z")));
    for (bytes, why) in [("x", "the last one came while it was sent"), ("y", "there are as many as there may be")] {
        let (status, problem) = swarm.json(Method::Post, &outputs, &key, bytes).await;
        assert_eq!((status, kept(bytes.as_bytes())), (409, false), "{why}: {problem}");
        assert!(problem["hint"].is_string(), "{problem}");
    }
    let (_, problem) = swarm.json(Method::Post, &outputs, &key, "y").await;
    assert_eq!(fields(&problem), ["outputs"]);
    let digest = Digest::of(b"z").to_string();
    let again = swarm.send(Method::Post, &outputs, &key, &[("Digest-Expected", &digest)], "z").await;
    assert_eq!((again.status().code, kept(b"z")), (201, true), "one that counts already");
    let recall = Transition::Recall { attempt, worker, at: swarm.clock.now() };
    swarm.ahead.of(|transition| matches!(transition, Transition::SendOutput { .. }), recall);
    let again =
        swarm.send(Method::Post, &outputs, &key, &[("Digest-Expected", &Digest::of(b"1").to_string())], "1").await;
    assert_eq!((again.status().code, kept(b"1")), (404, false), "given back meanwhile");
}
