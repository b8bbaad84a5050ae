use super::*;

#[tokio::test]
async fn a_wrong_spec_is_told_field_by_field() {
    let swarm = Swarm::start().await;
    let (ada, token) = swarm.user("ada", Role::Consumer, "lab").await;
    swarm.image(ada.group).await;
    let digest = Digest::of(b"absent");
    let absent = format!(r#"{{"image":"tool","inputs":[{{"digest":"{digest}","path":"/data/x"}}]}}"#);
    let deep = format!(r#"{{"image":{}1{}}}"#, "[".repeat(5000), "]".repeat(5000));
    for (spec, expected) in [
        (r#"{"image":"tool","privileged":true}"#, vec!["privileged"]),
        (r#"{"image":"tool","resources":{"cpus":1}}"#, vec!["resources.cpus"]),
        (r#"{"image":"tool","resources":{"memory_bytes":"much"}}"#, vec!["resources.memory_bytes"]),
        (r#"{"image":"absent"}"#, vec!["image"]),
        (r#"{"image":"UPPER"}"#, vec!["image"]),
        (&absent, vec!["inputs[0].digest"]),
        (
            r#"{"image":"absent","outputs":[{"path":"/out/../x"}],"priority":999}"#,
            vec!["priority", "outputs[0].path", "image"],
        ),
        (&deep, vec!["image"]),
        (r#"{"image":"tool"} trailing"#, vec!["body"]),
        ("", vec!["body"]),
    ] {
        let (status, problem) = swarm.json(Method::Post, "/api/v1/jobs", &token, spec).await;
        assert_eq!((status, fields(&problem)), (422, expected), "{problem}");
        assert!(problem["errors"][0]["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "{problem}");
    }
    for (body, kind) in [(" [1]", "an array"), ("\"x\"", "a string"), ("7", "a number"), ("null", "null")] {
        let (status, problem) = swarm.json(Method::Post, "/api/v1/jobs", &token, body).await;
        assert_eq!((status, fields(&problem)), (422, vec!["body"]), "{problem}");
        let expected = format!("body: must be a JSON object, not {kind}");
        assert_eq!(problem["detail"].as_str(), Some(expected.as_str()));
    }
    let (_, problem) = swarm.json(Method::Post, "/api/v1/jobs", &token, r#"{"image":"tool","privileged":true}"#).await;
    assert!(problem["detail"].as_str().unwrap().contains("`command`"), "what is allowed is named: {problem}");
    let huge = format!(r#"{{"image":"{}"}}"#, "x".repeat(2 << 20));
    let (status, problem) = swarm.json(Method::Post, "/api/v1/jobs", &token, huge).await;
    assert_eq!((status, &problem["code"]), (413, &"too-large".into()));
    let (status, problem) = swarm.get("/api/v1/jobs/seven", &token).await;
    assert_eq!((status, fields(&problem)), (422, vec!["job"]));
    for query in ["limit=0", "limit=9999", "state=odd", "cursor=x", "state=waiting&state=waiting", "limit=1&limit=1"] {
        assert_eq!(swarm.get(&format!("/api/v1/jobs?{query}"), &token).await.0, 422, "{query}");
    }
    for (path, unknown) in
        [("jobs?stat=waiting", "stat"), ("jobs?state=waiting&x", "x"), ("jobs/1?follow=true", "follow")]
    {
        let (status, problem) = swarm.get(&format!("/api/v1/{path}"), &token).await;
        assert_eq!((status, fields(&problem)), (422, vec![unknown]), "{problem}");
    }
}

#[tokio::test]
async fn a_plan_tells_what_would_become_of_a_job_and_keeps_nothing() {
    let swarm = Swarm::start().await;
    let (ada, token) = swarm.user("ada", Role::Consumer, "lab").await;
    let image = swarm.image(ada.group).await;
    let plan = async |spec: &str| swarm.json(Method::Post, "/api/v1/jobs/plan", &token, spec).await;
    let (status, fits) = plan(r#"{"image":"tool","array":{"first":0,"last":9}}"#).await;
    assert_eq!((status, &fits["tasks"], &fits["image"]), (200, &10.into(), &image.config.to_string().into()));
    assert!(fits.get("warnings").is_none() && fits["reasons"].as_array().unwrap().is_empty(), "{fits}");
    let (status, large) = plan(r#"{"image":"tool","resources":{"memory_bytes":70368744177664}}"#).await;
    assert_eq!((status, &large["warnings"][0]["field"]), (200, &"resources.memory_bytes".into()), "{large}");
    let (status, problem) = plan(r#"{"image":"none","timeout_s":0}"#).await;
    assert_eq!((status, fields(&problem)), (422, vec!["timeout_s", "image"]), "{problem}");
    let (_, jobs) = swarm.get("/api/v1/jobs", &token).await;
    assert_eq!(jobs["items"], Value::Array(Vec::new()));
}

#[tokio::test]
async fn a_key_makes_one_job_however_often_it_arrives() {
    let swarm = Swarm::start().await;
    let (ada, token) = swarm.user("ada", Role::Consumer, "lab").await;
    swarm.image(ada.group).await;
    let submit = async |key: &str, spec: &str| {
        let answer = swarm.send(Method::Post, "/api/v1/jobs", &token, &[("Idempotency-Key", key)], spec).await;
        let status = answer.status().code;
        (status, serde_json::from_str::<Value>(&answer.into_string().await.unwrap()).unwrap())
    };
    let (status, first) = submit("k1", r#"{"image":"tool"}"#).await;
    assert_eq!((status, &first["repeated"]), (201, &false.into()));
    let (status, again) = submit("k1", r#"{"image":"tool"}"#).await;
    assert_eq!((status, &again["repeated"], &again["job"]), (200, &true.into(), &first["job"]));
    let (status, problem) = submit("k1", r#"{"image":"tool","priority":1}"#).await;
    assert_eq!((status, &problem["code"]), (422, &"idempotency-key-reused".into()));
    for key in ["", "a b", &"x".repeat(129)] {
        assert_eq!(submit(key, r#"{"image":"tool"}"#).await.0, 422, "{key}");
    }
}

#[tokio::test]
async fn a_start_in_the_past_or_years_ahead_is_refused_but_not_its_repetition() {
    let swarm = Swarm::start().await;
    let (ada, token) = swarm.user("ada", Role::Consumer, "lab").await;
    swarm.image(ada.group).await;
    let spec = |after_s: i64| {
        let at = swarm.clock.now() + chrono::TimeDelta::seconds(after_s);
        serde_json::json!({"image": "tool", "start_at": at}).to_string()
    };
    for (after_s, words) in [(-61, "in the past"), (6 * 365 * 86_400, "5 years")] {
        let (status, problem) = swarm.json(Method::Post, "/api/v1/jobs", &token, spec(after_s)).await;
        assert_eq!((status, fields(&problem)), (422, vec!["start_at"]), "{problem}");
        assert!(problem["detail"].as_str().unwrap().contains(words), "{problem}");
    }
    let submit = async |spec: &str| {
        let answer = swarm.send(Method::Post, "/api/v1/jobs", &token, &[("Idempotency-Key", "k")], spec).await;
        answer.status().code
    };
    let soon = spec(10);
    assert_eq!(submit(&soon).await, 201);
    swarm.clock.advance_ms(120_000);
    assert_eq!(submit(&soon).await, 200, "the answer was lost, and the start is in the past now");
    assert_eq!(submit(&spec(-300)).await, 422, "another job of the same key");
}

#[tokio::test]
async fn a_job_that_no_worker_could_run_is_taken_with_a_warning_or_refused_on_demand() {
    let swarm = Swarm::start().await;
    let (ada, token) = swarm.user("ada", Role::Consumer, "lab").await;
    swarm.image(ada.group).await;
    let large = r#"{"image":"tool","resources":{"memory_bytes":68719476736}}"#;
    let (status, answer) = swarm.json(Method::Post, "/api/v1/jobs", &token, large).await;
    let expected = serde_json::json!([{
        "code": "no-worker-fits", "field": "resources.memory_bytes",
        "problem": "a task needs 64 GiB of memory; the largest worker, w1, has 8 GiB",
        "hint": "ask for at most 8 GiB of memory, or add a larger worker",
    }]);
    assert_eq!((status, &answer["warnings"]), (201, &expected));
    let (_, answer) = swarm.json(Method::Post, "/api/v1/jobs", &token, r#"{"image":"tool"}"#).await;
    assert!(answer.get("warnings").is_none(), "{answer}");

    let submit = async |key: &str, query: &str, spec: &str| {
        let path = format!("/api/v1/jobs{query}");
        let answer = swarm.send(Method::Post, &path, &token, &[("Idempotency-Key", key)], spec).await;
        let status = answer.status().code;
        (status, serde_json::from_slice::<Value>(&answer.into_bytes().await.unwrap()).unwrap())
    };
    let (status, problem) = submit("a", "?must_fit=true", large).await;
    assert_eq!(
        (status, &problem["code"], fields(&problem)),
        (422, &"no-worker-fits".into(), vec!["resources.memory_bytes"])
    );
    assert_eq!(submit("a", "?must_fit=true", r#"{"image":"tool"}"#).await.0, 201);
    assert_eq!(submit("b", "?must_fit=false", large).await.0, 201);
    assert_eq!(submit("b", "?must_fit=true", large).await.0, 200, "it was accepted before");
    assert_eq!(submit("c", "?must_fit=perhaps", large).await.0, 422);
}

#[tokio::test]
async fn a_job_is_listed_explained_cancelled_and_waited_for() {
    let swarm = Swarm::start().await;
    let (ada, token) = swarm.user("ada", Role::Consumer, "lab").await;
    let image = swarm.image(ada.group).await;
    let spec = r#"{"image":"tool","name":"big","array":{"first":5,"last":9}}"#;
    let job = swarm.job(&token, spec).await;
    swarm.job(&token, r#"{"image":"tool:latest"}"#).await;
    let (_, page) = swarm.get("/api/v1/jobs?limit=1&state=waiting", &token).await;
    assert_eq!(page["items"][0]["image_digest"], image.config.to_string());
    let path = format!("/api/v1/jobs?limit=1&cursor={}", page["next"].as_str().unwrap());
    let (_, page) = swarm.get(&path, &token).await;
    assert_eq!((&page["items"][0]["id"], &page["items"][0]["tasks"]["total"]), (&job.0.into(), &5.into()));
    assert_eq!(swarm.get("/api/v1/jobs?name=big", &token).await.1["items"].as_array().unwrap().len(), 1);
    let (_, tasks) = swarm.get(&format!("/api/v1/jobs/{job}/tasks?limit=2"), &token).await;
    assert_eq!((&tasks["items"][0]["task"], &tasks["next"]), (&5.into(), &"7".into()));
    let (_, tasks) = swarm.get(&format!("/api/v1/jobs/{job}/tasks?limit=5&cursor=7"), &token).await;
    assert_eq!((tasks["items"].as_array().unwrap().len(), &tasks["next"]), (3, &Value::Null));
    assert_eq!(swarm.get(&format!("/api/v1/jobs/{job}/tasks/4"), &token).await.0, 404);
    let (_, why) = swarm.get(&format!("/api/v1/jobs/{job}/why"), &token).await;
    let codes: Vec<_> =
        why["reasons"].as_array().unwrap().iter().map(|reason| reason["code"].as_str().unwrap()).collect();
    assert_eq!(codes, ["behind"], "{why}");
    let (worker, _) = swarm.worker("w1").await;
    let partly = swarm.job(&token, r#"{"image":"tool","array":{"first":0,"last":9}}"#).await;
    swarm.assign(partly, worker).await;
    let (_, why) = swarm.get(&format!("/api/v1/jobs/{partly}/why"), &token).await;
    assert_eq!((&why["state"], &why["reasons"][1]["code"]), (&"running".into(), &"behind".into()), "{why}");
    let (_, waited) = swarm.get(&format!("/api/v1/jobs/{job}/wait?timeout_s=0"), &token).await;
    assert_eq!(waited["state"], "waiting");
    for _ in 0..2 {
        let (status, detail) = swarm.json(Method::Post, &format!("/api/v1/jobs/{job}/cancel"), &token, "").await;
        assert_eq!((status, &detail["state"]), (202, &"cancelled".into()), "{detail}");
    }
    let (_, waited) = swarm.get(&format!("/api/v1/jobs/{job}/wait?timeout_s=60"), &token).await;
    assert_eq!(waited["state"], "cancelled");
}

#[tokio::test]
async fn the_archive_has_a_status_among_the_modules() {
    let swarm = Swarm::start().await;
    let (_, token) = swarm.user("ada", Role::Consumer, "lab").await;
    let archive = async || {
        let (_, page) = swarm.get("/api/v1/modules", &token).await;
        let modules = page["items"].as_array().unwrap();
        modules.iter().find(|module| module["name"] == "archive").expect("it is listed").clone()
    };
    let before = archive().await["handled"].as_u64().unwrap();
    assert_eq!(swarm.get("/api/v1/jobs", &token).await.0, 200);
    let after = archive().await;
    assert_eq!(
        (&after["handled"], &after["state"], &after["errors"]),
        (&(before + 1).into(), &"running".into(), &0.into())
    );
}

#[tokio::test]
async fn schedules_are_checked_paused_triggered_and_deleted() {
    let swarm = Swarm::start().await;
    let (ada, token) = swarm.user("ada", Role::Consumer, "lab").await;
    swarm.image(ada.group).await;
    for (body, field) in [
        (r#"{"name":"a","cron":"61 * * * *","spec":{"image":"tool"}}"#, "cron.minute"),
        (r#"{"name":"a","cron":"* * * *","spec":{"image":"tool"}}"#, "cron"),
        (r#"{"name":"a","cron":"* * * * *","zone":"Mars/X","spec":{"image":"tool"}}"#, "zone"),
        (r#"{"name":"a","cron":"* * * * *","spec":{"image":"absent"}}"#, "spec.image"),
        (r#"{"name":"a","cron":"* * * * *","spec":{"image":"tool","x":1}}"#, "spec.x"),
    ] {
        let (status, problem) = swarm.json(Method::Post, "/api/v1/schedules", &token, body).await;
        assert_eq!((status, fields(&problem)), (422, vec![field]), "{problem}");
    }
    let good = r#"{"name":"a","cron":"*/5 * * * *","spec":{"image":"tool"}}"#;
    let (_, made) = swarm.json(Method::Post, "/api/v1/schedules", &token, good).await;
    let (status, problem) = swarm.json(Method::Post, "/api/v1/schedules", &token, good).await;
    assert_eq!((status, fields(&problem), problem["hint"].is_string()), (409, vec!["name"], true), "{problem}");
    let path = format!("/api/v1/schedules/{}", made["id"]);
    let (status, launched) = swarm.json(Method::Post, &format!("{path}/trigger"), &token, "").await;
    assert_eq!((status, &launched["job"]), (201, &1.into()));
    let (_, paused) = swarm.json(Method::Post, &format!("{path}/pause"), &token, "").await;
    assert_eq!((&paused["paused"], &paused["next"]), (&true.into(), &Value::Array(Vec::new())));
    assert_eq!(swarm.json(Method::Post, &format!("{path}/resume"), &token, "").await.1["paused"], false);
    assert_eq!(swarm.json(Method::Delete, &path, &token, "").await.0, 204);
    assert_eq!(swarm.get(&path, &token).await.0, 404);
}
