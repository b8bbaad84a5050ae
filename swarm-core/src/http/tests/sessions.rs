use super::*;
use crate::identity::tokens::{OpaqueToken, TokenKind};

async fn try_login(swarm: &Swarm, user: &str, password: &str) -> (u16, Value) {
    let body = serde_json::json!({ "user": user, "password": password }).to_string();
    swarm.json(Method::Post, "/api/v1/login", "", body).await
}

pub(super) async fn refresh(swarm: &Swarm, token: &Value) -> (u16, Value) {
    let body = serde_json::json!({ "refresh_token": token }).to_string();
    swarm.json(Method::Post, "/api/v1/refresh", "", body).await
}

/// What the store knows a refresh token by.
pub(super) fn refresh_hash(token: &Value) -> Digest {
    Digest(OpaqueToken::parse(token.as_str().unwrap(), TokenKind::Refresh).unwrap().hash().0)
}

#[tokio::test]
async fn the_first_start_makes_an_admin_whose_password_is_in_a_private_file() {
    use std::os::unix::fs::PermissionsExt;
    let swarm = Swarm::start().await;
    let file = swarm.dir.path().join("admin-password");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let (status, who) = swarm.get("/api/v1/whoami", &swarm.admin().await).await;
    assert_eq!((status, &who["user"], &who["role"]), (200, &"admin".into(), &"admin".into()));
}

#[tokio::test]
async fn a_session_is_refreshed_and_a_second_use_ends_it() {
    let swarm = Swarm::start().await;
    swarm.user("ada", Role::Consumer, "lab").await;
    let (status, first) = try_login(&swarm, "ada", "a password of ada").await;
    assert_eq!(status, 200, "{first}");
    let (status, second) = refresh(&swarm, &first["refresh_token"]).await;
    assert_eq!(status, 200, "{second}");
    assert_eq!(swarm.get("/api/v1/whoami", second["access_token"].as_str().unwrap()).await.0, 200);
    let (status, again) = refresh(&swarm, &first["refresh_token"]).await;
    assert_eq!((status, &again["refresh_token"]), (200, &second["refresh_token"]), "the answer may have been lost");
    let (status, third) = refresh(&swarm, &second["refresh_token"]).await;
    assert_eq!(status, 200, "{third}");
    let (status, problem) = refresh(&swarm, &first["refresh_token"]).await;
    assert_eq!((status, &problem["code"]), (401, &"unauthenticated".into()));
    assert!(problem["detail"].as_str().unwrap().contains("used before"), "{problem}");
    assert_eq!(refresh(&swarm, &second["refresh_token"]).await.0, 401, "the whole family is revoked");
    assert_eq!(refresh(&swarm, &third["refresh_token"]).await.0, 401, "the whole family is revoked");
    assert_eq!(refresh(&swarm, &"swr_nonsense".into()).await.0, 401);
}

#[tokio::test]
async fn logout_ends_the_access_token_and_its_refresh_tokens() {
    let swarm = Swarm::start().await;
    swarm.user("ada", Role::Consumer, "lab").await;
    let (_, tokens) = try_login(&swarm, "ada", "a password of ada").await;
    let access = tokens["access_token"].as_str().unwrap();
    assert_eq!(swarm.json(Method::Post, "/api/v1/logout", access, "").await.0, 204);
    let (status, problem) = swarm.get("/api/v1/whoami", access).await;
    assert_eq!((status, &problem["code"]), (401, &"unauthenticated".into()));
    assert_eq!(refresh(&swarm, &tokens["refresh_token"]).await.0, 401);
    let (_, tokens) = try_login(&swarm, "ada", "a password of ada").await;
    let (_, second) = refresh(&swarm, &tokens["refresh_token"]).await;
    let access = second["access_token"].as_str().unwrap();
    assert_eq!(swarm.json(Method::Post, "/api/v1/logout", access, "").await.0, 204);
    assert_eq!(
        refresh(&swarm, &tokens["refresh_token"]).await.0,
        401,
        "an answer is not given again after its session"
    );
}

#[tokio::test]
async fn an_old_token_says_that_a_refresh_helps() {
    let swarm = Swarm::start().await;
    let (_, token) = swarm.user("ada", Role::Consumer, "lab").await;
    swarm.clock.advance_ms(700_000);
    let (status, problem) = swarm.get("/api/v1/whoami", &token).await;
    assert_eq!((status, &problem["code"]), (401, &"token-expired".into()));
}

#[tokio::test]
async fn guessing_locks_known_and_unknown_names_alike() {
    let swarm = Swarm::start().await;
    swarm.user("ada", Role::Consumer, "lab").await;
    for name in ["ada", "nobody"] {
        let mut answers = Vec::new();
        for _ in 0..7 {
            swarm.clock.advance_ms(1000);
            let (status, problem) = try_login(&swarm, name, "wrong wrong wrong").await;
            answers.push((status, problem["code"].clone()));
        }
        let wrong = (401, Value::from("unauthenticated"));
        assert_eq!(answers[..6], vec![wrong; 6], "{name}");
        assert_eq!(answers[6], (429, "too-many-requests".into()), "{name}");
    }
    assert_eq!(try_login(&swarm, "ada", "a password of ada").await.0, 429, "locked for the right password too");
    swarm.clock.advance_ms(60_000);
    assert_eq!(try_login(&swarm, "ada", "a password of ada").await.0, 200);
}

#[tokio::test]
async fn one_address_cannot_try_without_end() {
    let mut config = CoreConfig::default();
    config.limits.login_burst = 3;
    let swarm = Swarm::with(config).await;
    let mut statuses = Vec::new();
    for name in ["a", "b", "c", "d"] {
        statuses.push(try_login(&swarm, name, "wrong").await.0);
    }
    assert_eq!(statuses, [401, 401, 401, 429]);
}

#[tokio::test]
async fn accounts_are_checked_before_they_are_made() {
    let swarm = Swarm::start().await;
    let admin = swarm.admin().await;
    for (body, field) in [
        (r#"{"user":"../x","password":"long enough it is","role":"viewer"}"#, "user"),
        (r#"{"user":"bob","password":"short","role":"viewer"}"#, "password"),
        (r#"{"user":"bob","password":"long enough it is","role":"king"}"#, "role"),
        (r#"{"user":"bob","password":"long enough it is","role":"viewer","group":"a b"}"#, "group"),
    ] {
        let (status, problem) = swarm.json(Method::Post, "/api/v1/users", &admin, body).await;
        assert_eq!((status, fields(&problem)), (422, vec![field]), "{problem}");
    }
    let good = r#"{"user":"bob","password":"long enough it is","role":"viewer"}"#;
    let (status, made) = swarm.json(Method::Post, "/api/v1/users", &admin, good).await;
    assert_eq!((status, &made["group"]), (201, &"bob".into()), "{made}");
    let (status, problem) = swarm.json(Method::Post, "/api/v1/users", &admin, good).await;
    assert_eq!((status, fields(&problem), problem["hint"].is_string()), (409, vec!["user"], true), "{problem}");
}

#[tokio::test]
async fn a_join_token_is_good_once_and_for_its_name_and_a_revoked_key_for_nothing() {
    let swarm = Swarm::start().await;
    let admin = swarm.admin().await;
    let (status, token) = swarm.json(Method::Post, "/api/v1/workers/tokens", &admin, r#"{"worker":"w1"}"#).await;
    assert_eq!(status, 201, "{token}");
    let join = async |worker: &str| {
        let body = serde_json::json!({ "token": token["token"], "worker": worker }).to_string();
        swarm.json(Method::Post, "/api/v1/workers/join", "", body).await
    };
    assert_eq!(join("w2").await.0, 401);
    let (status, joined) = join("w1").await;
    assert_eq!(status, 200, "{joined}");
    assert_eq!(join("w1").await.0, 401);
    let key = joined["key"].as_str().unwrap();
    let blob = format!("/api/v1/link/attempts/1/0/1/blobs/{}", Digest::of(b""));
    assert_eq!(swarm.get(&blob, key).await.0, 404);
    let path = format!("/api/v1/workers/{}", joined["worker"]);
    assert_eq!(swarm.json(Method::Delete, &path, &admin, "").await.0, 204);
    assert_eq!(swarm.get(&blob, key).await.0, 401);
    let (_, workers) = swarm.get("/api/v1/workers", &admin).await;
    assert_eq!((&workers["items"][0]["name"], &workers["items"][0]["state"]), (&"w1".into(), &"revoked".into()));
}

#[tokio::test]
async fn a_reset_ends_every_session_and_a_new_password_opens_the_account_again() {
    let swarm = Swarm::start().await;
    let (ada, token) = swarm.user("ada", Role::Consumer, "lab").await;
    let (_, bystander) = swarm.user("bob", Role::Consumer, "lab").await;
    let admin = swarm.admin().await;
    let (_, tokens) = try_login(&swarm, "ada", "a password of ada").await;
    let path = format!("/api/v1/users/{}/reset", ada.id);
    assert_eq!(swarm.json(Method::Post, &path, &token, "{}").await.0, 403, "not even one's own");
    let (status, problem) = swarm.json(Method::Post, &path, &admin, r#"{"password":"short"}"#).await;
    assert_eq!((status, fields(&problem)), (422, vec!["password"]));
    assert_eq!(swarm.get("/api/v1/whoami", &token).await.0, 200, "a refused reset changes nothing");

    assert_eq!(swarm.json(Method::Post, &path, &admin, "{}").await.0, 204);
    for old in [&token, tokens["access_token"].as_str().unwrap()] {
        assert_eq!(swarm.get("/api/v1/whoami", old).await.0, 401);
    }
    assert_eq!(refresh(&swarm, &tokens["refresh_token"]).await.0, 401);
    assert_eq!(try_login(&swarm, "ada", "a password of ada").await.0, 200, "the password stays");
    for _ in 0..6 {
        swarm.clock.advance_ms(1000);
        try_login(&swarm, "ada", "wrong wrong wrong").await;
    }
    swarm.clock.advance_ms(1000);
    assert_eq!(try_login(&swarm, "ada", "a password of ada").await.0, 429, "locked");
    let (status, _) = swarm.json(Method::Post, &path, &admin, r#"{"password":"another long secret"}"#).await;
    assert_eq!(status, 204);
    assert_eq!(try_login(&swarm, "ada", "another long secret").await.0, 200);
    assert_eq!(try_login(&swarm, "ada", "a password of ada").await.0, 401);
    assert_eq!(swarm.get("/api/v1/whoami", &bystander).await.0, 200);
}

#[tokio::test]
async fn a_reset_that_comes_first_is_no_second_use_of_a_token() {
    let swarm = Swarm::start().await;
    let (ada, _) = swarm.user("ada", Role::Consumer, "lab").await;
    let (_, tokens) = try_login(&swarm, "ada", "a password of ada").await;
    let (_guard, log) = logged();
    let reset_before_issue = || {
        let reset = Transition::ResetUser { user: ada.id, password_hash: None };
        swarm.ahead.of(|transition| matches!(transition, Transition::IssueRefresh { .. }), reset);
    };
    reset_before_issue();
    let (status, problem) = refresh(&swarm, &tokens["refresh_token"]).await;
    assert_eq!(status, 401, "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("not valid"), "{problem}");
    reset_before_issue();
    let (status, problem) = try_login(&swarm, "ada", "a password of ada").await;
    assert_eq!(status, 401, "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("password is wrong"), "{problem}");
    let log = log();
    assert!(!log.iter().any(|message| message.contains("used twice")), "nobody stole anything: {log:#?}");
}

#[tokio::test]
async fn two_uses_of_a_token_at_once_get_one_answer_and_a_later_one_ends_the_session() {
    let swarm = Swarm::start().await;
    swarm.user("ada", Role::Consumer, "lab").await;
    let (_, tokens) = try_login(&swarm, "ada", "a password of ada").await;
    let token = &tokens["refresh_token"];
    let ((one, first), (other, second)) = tokio::join!(refresh(&swarm, token), refresh(&swarm, token));
    assert_eq!((one, other, &first["refresh_token"]), (200, 200, &second["refresh_token"]), "{first} {second}");
    let (_guard, log) = logged();
    swarm.identity.forget_refreshes();
    assert_eq!(refresh(&swarm, token).await.0, 401, "both have their answer");
    assert_eq!(refresh(&swarm, &first["refresh_token"]).await.0, 401, "the family is revoked");
    let log = log();
    assert!(log.iter().any(|message| message.contains("used twice")), "{log:#?}");
}

#[tokio::test]
async fn a_token_that_is_used_at_another_core_at_the_same_time_ends_the_session() {
    let swarm = Swarm::start().await;
    let (ada, _) = swarm.user("ada", Role::Consumer, "lab").await;
    let (_, tokens) = try_login(&swarm, "ada", "a password of ada").await;
    let used = refresh_hash(&tokens["refresh_token"]);
    let record = swarm.store.refresh_token(&used).unwrap().unwrap();
    let there = Transition::IssueRefresh {
        hash: Digest::of(b"theirs"),
        family: record.family,
        user: ada.id,
        token_version: ada.token_version,
        expires_at: record.expires_at,
        replaces: Some(used),
    };
    swarm.ahead.of(|transition| matches!(transition, Transition::IssueRefresh { .. }), there);
    let (status, problem) = refresh(&swarm, &tokens["refresh_token"]).await;
    assert_eq!(status, 401, "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("used before"), "{problem}");
    let theirs = swarm.store.refresh_token(&Digest::of(b"theirs")).unwrap().unwrap();
    assert!(theirs.revoked, "nobody can tell who the thief is");
}
