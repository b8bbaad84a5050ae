//! What clients are told while the database does not answer.

use std::time::Instant;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sqlite::SqliteConnection;

use super::*;

const DEADLINE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_request_does_not_wait_for_ever_and_its_key_makes_one_job_in_the_end() {
    let mut config = CoreConfig::default();
    config.limits.answer_ms = 300;
    let swarm = Swarm::with(config).await;
    let (account, token) = swarm.user("ann", Role::Operator, "physics").await;
    swarm.image(account.group).await;
    let (worker, _) = swarm.worker("w1").await;
    let mut other = SqliteConnection::establish(&swarm.dir.path().join("swarm.db").display().to_string()).unwrap();
    other.batch_execute("BEGIN IMMEDIATE").unwrap();

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

    other.batch_execute("ROLLBACK").unwrap();
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
    while !swarm.store.workers().unwrap().iter().any(|record| record.id == worker && record.draining) {
        assert!(begun.elapsed() < DEADLINE, "what was asked for is not done");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
