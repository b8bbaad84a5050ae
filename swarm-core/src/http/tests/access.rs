use super::*;

const OPEN: [&str; 5] =
    ["GET /livez", "GET /readyz", "POST /api/v1/login", "POST /api/v1/refresh", "POST /api/v1/workers/join"];

#[tokio::test]
async fn every_route_but_the_open_ones_refuses_strangers() {
    let swarm = Swarm::start().await;
    let routes: Vec<_> =
        swarm.client.rocket().routes().map(|route| (route.method, route.uri.path().to_owned())).collect();
    assert!(routes.len() > 40, "{}", routes.len());
    let mut open = 0;
    for (method, pattern) in routes {
        if OPEN.contains(&format!("{method} {pattern}").as_str()) {
            open += 1;
            continue;
        }
        let path: Vec<_> = pattern.split('/').map(|part| if part.starts_with('<') { "1" } else { part }).collect();
        let path = path.join("/");
        for token in ["", "x", "swk_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "a.b.c"] {
            let answer = swarm.send(method, &path, token, &[], "").await;
            assert_eq!(answer.status(), Status::Unauthorized, "{method} {pattern} with `{token}`");
            assert_eq!(answer.headers().get_one("WWW-Authenticate"), Some("Bearer"), "{method} {pattern}");
        }
    }
    assert_eq!(open, OPEN.len());
    assert_eq!(swarm.get("/api/v1/nothing", "").await.0, 404);
    assert_eq!(swarm.send(Method::Get, "/livez", "", &[], "").await.status(), Status::Ok);
    assert_eq!(swarm.send(Method::Get, "/readyz", "", &[], "").await.status(), Status::Ok);
}

#[tokio::test]
async fn roles_open_what_they_should_and_nothing_else() {
    let swarm = Swarm::start().await;
    let (_, viewer) = swarm.user("vera", Role::Viewer, "lab").await;
    let (_, consumer) = swarm.user("carl", Role::Consumer, "lab").await;
    let (_, operator) = swarm.user("olga", Role::Operator, "ops").await;
    let admin = swarm.admin().await;
    let (id, key) = swarm.worker("w1").await;
    // Statuses for viewer, consumer, operator, admin, worker.
    for (method, path, body, expected) in [
        (Method::Get, "/api/v1/whoami".to_owned(), "", [200, 200, 200, 200, 401]),
        (Method::Get, "/api/v1/jobs".to_owned(), "", [200, 200, 200, 200, 401]),
        (Method::Get, "/api/v1/modules".to_owned(), "", [200, 200, 200, 200, 401]),
        (Method::Get, "/api/v1/workers".to_owned(), "", [200, 200, 200, 200, 401]),
        (Method::Post, "/api/v1/jobs".to_owned(), "{}", [403, 422, 422, 422, 401]),
        (Method::Post, "/api/v1/files".to_owned(), "x", [403, 201, 201, 201, 401]),
        (Method::Post, "/api/v1/jobs/1/cancel".to_owned(), "", [403, 404, 404, 404, 401]),
        (Method::Get, "/api/v1/log".to_owned(), "", [403, 403, 200, 200, 401]),
        (Method::Post, format!("/api/v1/workers/{id}/drain"), "", [403, 403, 204, 204, 401]),
        (Method::Post, format!("/api/v1/workers/{id}/declare-lost"), "", [403, 403, 204, 204, 401]),
        (Method::Post, "/api/v1/workers/9/resume".to_owned(), "", [403, 403, 404, 404, 401]),
        (Method::Get, "/api/v1/users".to_owned(), "", [403, 403, 403, 200, 401]),
        (Method::Post, "/api/v1/users".to_owned(), "{}", [403, 403, 403, 422, 401]),
        (Method::Post, "/api/v1/users/99/reset".to_owned(), "{}", [403, 403, 403, 404, 401]),
        (Method::Post, "/api/v1/users/ada/reset".to_owned(), "{}", [403, 403, 403, 422, 401]),
        (Method::Post, "/api/v1/workers/tokens".to_owned(), "{}", [403, 403, 403, 422, 401]),
        (Method::Delete, "/api/v1/workers/9".to_owned(), "", [403, 403, 403, 404, 401]),
        (Method::Get, "/api/v1/link".to_owned(), "", [401, 401, 401, 401, 400]),
    ] {
        let tokens = [&viewer, &consumer, &operator, &admin, &key];
        for (token, expected) in tokens.into_iter().zip(expected) {
            let answer = swarm.send(method, &path, token, &[], body).await;
            assert_eq!(answer.status().code, expected, "{method} {path}");
        }
    }
}

#[tokio::test]
async fn another_group_sees_nothing_and_operators_see_all() {
    let swarm = Swarm::start().await;
    let (ada, token) = swarm.user("ada", Role::Consumer, "lab").await;
    let (_, stranger) = swarm.user("eve", Role::Admin, "other").await;
    let (_, outsider) = swarm.user("bob", Role::Consumer, "other").await;
    let image = swarm.image(ada.group).await;
    let job = swarm.job(&token, r#"{"image":"tool"}"#).await;
    let schedule = r#"{"name":"nightly","cron":"0 2 * * *","spec":{"image":"tool"}}"#;
    let (status, made) = swarm.json(Method::Post, "/api/v1/schedules", &token, schedule).await;
    assert_eq!((status, made["next"].as_array().map(Vec::len)), (201, Some(5)), "{made}");
    let digest = swarm.store_blob(b"mine");
    let link = Transition::LinkBlob { group: ada.group, digest, size_bytes: 4, at: swarm.clock.now() };
    swarm.commit(link).await;
    let jobs = ["", "/wait?timeout_s=0", "/tasks", "/tasks/0", "/why"].map(|rest| format!("/api/v1/jobs/{job}{rest}"));
    for path in jobs.iter().cloned().chain([format!("/api/v1/schedules/{}", made["id"])]) {
        assert_eq!(swarm.get(&path, &token).await.0, 200, "{path}");
        assert_eq!(swarm.get(&path, &stranger).await.0, 200, "{path}");
        let (status, problem) = swarm.get(&path, &outsider).await;
        assert_eq!(status, 404, "{path}: {problem}");
    }
    let paths = [format!("/api/v1/images/{}", image.config), format!("/api/v1/jobs/{job}/tasks/0/log")];
    for path in &paths {
        assert_eq!(swarm.get(path, &outsider).await.0, 404, "{path}");
    }
    let head = async |token: &str| {
        let answer = swarm.send(Method::Head, &format!("/api/v1/files/{digest}"), token, &[], "").await;
        answer.status().code
    };
    assert_eq!((head(&token).await, head(&outsider).await, head(&stranger).await), (200, 404, 404));
    let cancel = format!("/api/v1/jobs/{job}/cancel");
    assert_eq!(swarm.json(Method::Post, &cancel, &outsider, "").await.0, 404);
    assert_eq!(swarm.get("/api/v1/jobs", &outsider).await.1["items"], Value::Array(Vec::new()));
    assert_eq!(swarm.get("/api/v1/jobs", &stranger).await.1["items"][0]["group"], "lab");
    let (status, problem) = swarm.json(Method::Post, "/api/v1/jobs", &outsider, r#"{"image":"tool"}"#).await;
    assert_eq!((status, fields(&problem)), (422, vec!["image"]), "another group's image is not there");
}

#[rocket::get("/panics")]
fn panics() {
    panic!("of a bug");
}

#[tokio::test]
async fn what_breaks_in_a_handler_is_logged_and_not_told() {
    let (state, ..) = state(CoreConfig::default()).await;
    let rocket = build(state, "127.0.0.1:0".parse().unwrap()).mount("/", routes![panics]);
    let client = Client::untracked(rocket).await.unwrap();
    let (_guard, log) = logged();
    let answer = client.get("/panics").dispatch().await;
    assert_eq!(answer.status(), Status::InternalServerError);
    let text = answer.into_string().await.unwrap();
    let problem: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(problem["code"], "internal");
    assert!(!text.contains("of a bug"), "{text}");
    let log = log();
    assert!(log.iter().any(|message| message == "GET /panics failed with status 500"), "{log:#?}");
}
