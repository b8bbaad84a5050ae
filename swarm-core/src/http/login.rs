//! Sessions.

use std::sync::Arc;

use rocket::serde::json::Json;
use rocket::{State, get, post, response::status::NoContent};
use swarm_protocol::api::{LoginRequest, RefreshRequest, Tokens, Whoami};

use super::ApiState;
use super::guards::{Body, Client, User};
use super::problem::Answer;

#[post("/login", data = "<body>")]
pub(super) async fn login(
    client: Client,
    body: Body<LoginRequest>,
    state: &State<Arc<ApiState>>,
) -> Answer<Json<Tokens>> {
    let identity = Arc::clone(&state.identity);
    Ok(Json(state.carry(async move { Ok(identity.login(client.0, body.value).await?) }).await?))
}

#[post("/refresh", data = "<body>")]
pub(super) async fn refresh(body: Body<RefreshRequest>, state: &State<Arc<ApiState>>) -> Answer<Json<Tokens>> {
    let identity = Arc::clone(&state.identity);
    Ok(Json(state.carry(async move { Ok(identity.refresh(body.value).await?) }).await?))
}

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

#[get("/whoami")]
pub(super) fn whoami(user: User) -> Json<Whoami> {
    let account = user.account;
    Json(Whoami { id: account.id, user: account.name.clone(), group: account.group_name.clone(), role: account.role })
}
