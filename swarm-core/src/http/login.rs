//! Sessions.

use std::sync::Arc;

use rocket::serde::json::Json;
use rocket::{State, get, post, response::status::NoContent};
use swarm_protocol::api::{LoginRequest, RefreshRequest, Tokens, Whoami};

use super::ApiState;
use super::guards::{Body, Client, User};
use super::openapi::TooManyRequests;
use super::problem::Answer;

/// Opens a session
///
/// After a few failures the name and the address have to wait.
#[utoipa::path(
    tag = "sessions",
    request_body = LoginRequest,
    security(()),
    responses((status = 200, body = Tokens, description = "The session"), TooManyRequests),
)]
#[post("/login", data = "<body>")]
pub(super) async fn login(
    client: Client,
    body: Body<LoginRequest>,
    state: &State<Arc<ApiState>>,
) -> Answer<Json<Tokens>> {
    let identity = Arc::clone(&state.identity);
    Ok(Json(state.carry(async move { Ok(identity.login(client.0, body.value).await?) }).await?))
}

/// Exchanges a refresh token
///
/// It is used up thereby. A second use of one ends its session, for somebody else may hold a copy; within 30 s it gets the
/// same answer, which may have been lost.
#[utoipa::path(
    tag = "sessions",
    request_body = RefreshRequest,
    security(()),
    responses((status = 200, body = Tokens, description = "The session, with a new refresh token")),
)]
#[post("/refresh", data = "<body>")]
pub(super) async fn refresh(body: Body<RefreshRequest>, state: &State<Arc<ApiState>>) -> Answer<Json<Tokens>> {
    let identity = Arc::clone(&state.identity);
    Ok(Json(state.carry(async move { Ok(identity.refresh(body.value).await?) }).await?))
}

/// Ends this session
#[utoipa::path(
    tag = "sessions",
    security(("account" = ["viewer"])),
    responses((status = 204, description = "It is over")),
)]
#[post("/logout")]
pub(super) async fn logout(user: User, state: &State<Arc<ApiState>>) -> Answer<NoContent> {
    let identity = Arc::clone(&state.identity);
    let work = async move {
        identity.logout(&user.bearer).await?;
        crate::audit!(user = user.account.name, "`{}` logged out", user.account.name);
        Ok(NoContent)
    };
    state.carry(work).await
}

/// Whose session this is
#[utoipa::path(
    tag = "sessions",
    security(("account" = ["viewer"])),
    responses((status = 200, body = Whoami, description = "The account")),
)]
#[get("/whoami")]
pub(super) fn whoami(user: User) -> Json<Whoami> {
    let account = user.account;
    Json(Whoami { id: account.id, user: account.name.clone(), group: account.group_name.clone(), role: account.role })
}
