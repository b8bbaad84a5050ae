//! What clients are told while the database does not answer.

use std::time::Instant;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sqlite::SqliteConnection;

use super::sessions::{refresh, refresh_hash};
use super::*;

const DEADLINE: Duration = Duration::from_secs(60);

/// A database that takes no writes until this is dropped: somebody else writes.
struct Outage(SqliteConnection);

impl Outage {
    fn of(swarm: &Swarm) -> Self {
        let file = swarm.dir.path().join("swarm.db").display().to_string();
        let mut other = SqliteConnection::establish(&file).unwrap();
        other.batch_execute("BEGIN IMMEDIATE").unwrap();
        Self(other)
    }
}

impl Drop for Outage {
    fn drop(&mut self) {
        self.0.batch_execute("ROLLBACK").unwrap();
    }
}

/// Requests are told 503 soon.
async fn impatient() -> Swarm {
    let mut config = CoreConfig::default();
    config.limits.answer_ms = 700;
    Swarm::with(config).await
}

/// The first answer that is not 503: a busy machine may take its time, too.
async fn answer(mut ask: impl AsyncFnMut() -> (u16, Value)) -> (u16, Value) {
    let begun = Instant::now();
    loop {
        match ask().await {
            (503, late) => assert!(begun.elapsed() < DEADLINE, "{late}"),
            answer => return answer,
        }
    }
}

#[tokio::test]
async fn a_refresh_that_was_answered_503_may_be_repeated_and_so_may_one_whose_answer_was_lost() {
    let swarm = impatient().await;
    swarm.user("ada", Role::Consumer, "lab").await;
    let old = &Value::from(swarm.login("ada", "a password of ada").await.refresh_token);
    let outage = Outage::of(&swarm);
    let ((one, _), (other, _)) = tokio::join!(refresh(&swarm, old), refresh(&swarm, old));
    assert_eq!((one, other, refresh(&swarm, old).await.0), (503, 503, 503));
    drop(outage);
    let hash = refresh_hash(old);
    eventually("committed", async || swarm.store.refresh_token(&hash).unwrap().unwrap().used).await;

    let (status, new) = answer(async || refresh(&swarm, old).await).await;
    assert_eq!(status, 200, "{new}");
    assert_eq!(swarm.get("/api/v1/whoami", new["access_token"].as_str().unwrap()).await.0, 200);
    let (status, again) = answer(async || refresh(&swarm, old).await).await;
    assert_eq!((status, &again["refresh_token"]), (200, &new["refresh_token"]), "the first one may not have arrived");
    let (status, newer) = answer(async || refresh(&swarm, &new["refresh_token"]).await).await;
    assert_eq!(status, 200, "the session goes on: {newer}");
    swarm.identity.forget_refreshes();
    let (status, problem) = answer(async || refresh(&swarm, old).await).await;
    assert_eq!(status, 401, "its answer was given long ago: {problem}");
    let (status, _) = answer(async || refresh(&swarm, &newer["refresh_token"]).await).await;
    assert_eq!(status, 401, "whoever has it stole it");
}

#[tokio::test]
async fn a_join_that_was_answered_503_may_be_repeated_by_the_same_worker() {
    let swarm = impatient().await;
    let request = JoinTokenRequest { worker: "w1".to_owned(), expires_in_s: 60 };
    let token = swarm.identity.join_token(request).await.unwrap().token;
    let join = async |worker: &str| {
        let body = serde_json::json!({ "token": token, "worker": worker }).to_string();
        swarm.json(Method::Post, "/api/v1/workers/join", "", body).await
    };
    let outage = Outage::of(&swarm);
    assert_eq!((join("w1").await.0, join("w1").await.0), (503, 503));
    drop(outage);
    eventually("joined", async || !swarm.store.workers().unwrap().is_empty()).await;
    assert_eq!(answer(async || join("w2").await).await.0, 401, "the answer is another worker's");
    let (status, joined) = answer(async || join("w1").await).await;
    assert_eq!(status, 200, "{joined}");
    assert_eq!(swarm.identity.worker(joined["key"].as_str().unwrap()).unwrap().name, "w1");
    assert_eq!((answer(async || join("w1").await).await.0, swarm.store.workers().unwrap().len()), (401, 1));
}

#[tokio::test]
async fn a_request_does_not_wait_for_ever_and_its_key_makes_one_job_in_the_end() {
    let swarm = impatient().await;
    let (account, token) = swarm.user("ann", Role::Operator, "physics").await;
    swarm.image(account.group).await;
    let (worker, _) = swarm.worker("w1").await;
    let outage = Outage::of(&swarm);

    let submit = async || {
        let headers = [("Idempotency-Key", "k1")];
        swarm.send(Method::Post, "/api/v1/jobs", &token, &headers, r#"{"image":"tool"}"#).await
    };
    let drain = format!("/api/v1/workers/{worker}/drain");
    let begun = Instant::now();
    for answer in [submit().await, swarm.send(Method::Post, &drain, &token, &[], "").await] {
        assert_eq!(answer.status().code, 503);
        assert!(answer.headers().get_one("Retry-After").is_some_and(|pause| pause.parse::<u8>().is_ok()));
        let problem: Value = serde_json::from_slice(&answer.into_bytes().await.unwrap()).unwrap();
        assert_eq!((&problem["code"], &problem["retryable"]), (&"unavailable".into(), &true.into()), "{problem}");
        assert!(problem["hint"].as_str().unwrap().contains("Idempotency-Key"), "{problem}");
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let (status, jobs) = swarm.get("/api/v1/jobs", &token).await;
    assert_eq!((status, &jobs["items"]), (200, &Value::Array(Vec::new())), "reads go on, and nothing was acknowledged");

    drop(outage);
    let job = loop {
        assert!(begun.elapsed() < DEADLINE, "the submit is never taken");
        let answer = submit().await;
        match answer.status().code {
            // The first one may have been committed meanwhile, or not.
            200 | 201 => break serde_json::from_slice::<Value>(&answer.into_bytes().await.unwrap()).unwrap(),
            code => assert_eq!(code, 503),
        }
    };
    let (_, jobs) = swarm.get("/api/v1/jobs", &token).await;
    let made: Vec<&Value> = jobs["items"].as_array().unwrap().iter().map(|item| &item["id"]).collect();
    assert_eq!(made, [&job["job"]]);
    let drains = async || swarm.store.workers().unwrap().iter().any(|record| record.id == worker && record.draining);
    eventually("what was asked for is done", drains).await;
}

#[tokio::test]
async fn a_submit_that_is_repeated_too_late_to_be_judged_anew_is_the_first_one() {
    let swarm = impatient().await;
    let (account, token) = swarm.user("ann", Role::Consumer, "physics").await;
    swarm.image(account.group).await;
    let start_at = swarm.clock.now() + chrono::TimeDelta::seconds(30);
    let spec = serde_json::json!({ "image": "tool", "start_at": start_at }).to_string();
    let submit = async || {
        let answer = swarm.send(Method::Post, "/api/v1/jobs", &token, &[("Idempotency-Key", "k1")], &spec).await;
        (answer.status().code, answer.into_string().await.unwrap_or_default())
    };
    let outage = Outage::of(&swarm);
    assert_eq!(submit().await.0, 503);
    // More than a start may lie in the past.
    swarm.clock.advance_ms(200_000);
    let (status, told) = submit().await;
    assert_eq!(status, 503, "nobody knows yet whether it was in time: {told}");
    drop(outage);
    eventually("it is told of the job", async || matches!(submit().await.0, 200 | 201)).await;
    let (_, jobs) = swarm.get("/api/v1/jobs", &token).await;
    assert_eq!(jobs["items"].as_array().unwrap().len(), 1);
    let (status, late) = answer(async || swarm.json(Method::Post, "/api/v1/jobs", &token, &spec).await).await;
    assert_eq!((status, fields(&late)), (422, vec!["start_at"]), "another submit is too late");
}

#[tokio::test]
async fn a_submit_that_must_fit_is_no_repetition_of_one_that_need_not() {
    let swarm = impatient().await;
    let (account, token) = swarm.user("ann", Role::Consumer, "physics").await;
    swarm.image(account.group).await;
    let spec = serde_json::json!({ "image": "tool", "resources": { "memory_bytes": 64_u64 << 30 } }).to_string();
    let submit = async |query: &str| {
        let path = format!("/api/v1/jobs{query}");
        swarm.send(Method::Post, &path, &token, &[("Idempotency-Key", "k1")], &spec).await.status().code
    };
    let _outage = Outage::of(&swarm);
    assert_eq!(submit("").await, 503, "it is under way");
    assert_eq!(submit("?must_fit=true").await, 422, "it is judged by itself");
}

#[tokio::test]
async fn what_is_done_after_its_answer_was_given_up_is_in_the_audit_log() {
    let swarm = impatient().await;
    let (account, token) = swarm.user("ann", Role::Admin, "physics").await;
    swarm.image(account.group).await;
    let (worker, _) = swarm.worker("w1").await;
    let schedule = |name: &str| {
        let cron = serde_json::json!({ "name": name, "cron": "0 0 1 1 *", "zone": "UTC", "spec": { "image": "tool" } });
        cron.to_string()
    };
    let (status, made) = swarm.json(Method::Post, "/api/v1/schedules", &token, schedule("old")).await;
    assert_eq!(status, 201, "{made}");
    let job = swarm.job(&token, r#"{"image":"tool"}"#).await;
    let old = format!("/api/v1/schedules/{}", made["id"]);
    let (_guard, log) = logged();
    let outage = Outage::of(&swarm);
    let worker = format!("/api/v1/workers/{worker}");
    for (method, path, body) in [
        (Method::Post, format!("{worker}/drain"), String::new()),
        (Method::Post, "/api/v1/workers/tokens".to_owned(), r#"{"worker":"w2"}"#.to_owned()),
        (Method::Post, format!("/api/v1/jobs/{job}/cancel"), String::new()),
        (Method::Post, "/api/v1/schedules".to_owned(), schedule("new")),
        (Method::Post, format!("{old}/pause"), String::new()),
        (Method::Post, format!("{old}/trigger"), String::new()),
        (Method::Delete, old.clone(), String::new()),
    ] {
        let (status, answer) = swarm.json(method, &path, &token, body).await;
        assert_eq!(status, 503, "{path}: {answer}");
    }
    drop(outage);
    for words in [
        "`ann` drains worker `w1`",
        "`ann` made a join token for worker `w2`",
        "`ann` cancelled job 1",
        "`ann` made schedule 2",
        "`ann` paused schedule 1",
        "`ann` triggered schedule 1: job 2",
        "`ann` deleted schedule 1",
    ] {
        eventually(words, async || log().iter().any(|message| message == words)).await;
    }
}
