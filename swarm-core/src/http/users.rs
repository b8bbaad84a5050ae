//! Accounts.

use std::sync::Arc;

use rocket::response::status::NoContent;
use rocket::serde::json::Json;
use rocket::{State, get, post};
use swarm_protocol::UserId;
use swarm_protocol::api::{Page, UserRequest, UserResetRequest, UserView};

use super::ApiState;
use super::guards::{Admin, Body, With, created, param};
use super::openapi::Conflict;
use super::problem::{Answer, conflict, not_found};
use crate::identity::{Account, AuthError};
use crate::store::Refusal;

fn view(account: &Account) -> UserView {
    UserView {
        id: account.id,
        user: account.name.clone(),
        group: account.group_name.clone(),
        role: account.role,
        created_at: account.created_at,
    }
}

/// All accounts
#[utoipa::path(
    tag = "users",
    security(("account" = ["admin"])),
    responses((status = 200, body = Page<UserView>, description = "Every account")),
)]
#[get("/users")]
pub(super) fn list(_admin: Admin, state: &State<Arc<ApiState>>) -> Json<Page<UserView>> {
    let items = state.identity.accounts().iter().map(|account| view(account)).collect();
    Json(Page { items, next: None })
}

/// Makes an account
#[utoipa::path(
    tag = "users",
    request_body = UserRequest,
    security(("account" = ["admin"])),
    responses((status = 201, body = UserView, description = "It is there"), Conflict),
)]
#[post("/users", data = "<body>")]
pub(super) async fn create(
    admin: Admin,
    body: Body<UserRequest>,
    state: &State<Arc<ApiState>>,
) -> Answer<With<Json<UserView>>> {
    let identity = Arc::clone(&state.identity);
    let work = async move {
        let account = identity.create_user(body.value).await.map_err(|error| match error {
            AuthError::Refused(Refusal::Conflict(taken)) => {
                conflict("user", taken, "choose another name; a lost password is set anew by a reset")
            }
            error => error.into(),
        })?;
        let (by, name) = (&admin.0.name, &account.name);
        crate::audit!(user = by, "`{by}` made the account `{name}` with the role {}", account.role.as_str());
        Ok(created(view(&account)))
    };
    state.carry(work).await
}

/// Ends all sessions of an account, and sets another password
///
/// For a password that was lost or stolen.
#[utoipa::path(
    tag = "users",
    request_body = UserResetRequest,
    security(("account" = ["admin"])),
    responses((status = 204, description = "Done")),
)]
#[post("/users/<user>/reset", data = "<body>")]
pub(super) async fn reset(
    admin: Admin,
    user: &str,
    body: Body<UserResetRequest>,
    state: &State<Arc<ApiState>>,
) -> Answer<NoContent> {
    let id: UserId = param("user", user)?;
    let account = state.identity.account(id).ok_or_else(|| not_found("user", id))?;
    let what = if body.value.password.is_some() { "password and sessions" } else { "sessions" };
    let identity = Arc::clone(&state.identity);
    let work = async move {
        identity.reset_user(&account, body.value).await?;
        let (by, name) = (&admin.0.name, &account.name);
        crate::audit!(user = by, "`{by}` reset the {what} of the account `{name}`");
        Ok(NoContent)
    };
    state.carry(work).await
}
