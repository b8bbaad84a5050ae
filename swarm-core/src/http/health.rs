//! Whether the core lives, and whether it can do its work. Open to everybody, and telling nobody more than that.

use std::sync::Arc;
use std::time::Duration;

use rocket::{State, get};

use super::ApiState;
use super::problem::{Answer, unavailable};
use crate::store::Store;

/// How long the database may take to answer.
const READY_TIMEOUT: Duration = Duration::from_secs(2);

/// Whether the core lives
#[utoipa::path(
    tag = "core",
    security(()),
    responses((status = 200, body = String, content_type = "text/plain", description = "It does")),
)]
#[get("/livez")]
pub(super) fn livez() -> &'static str {
    "ok\n"
}

/// Whether the core can work
#[utoipa::path(
    tag = "core",
    security(()),
    responses(
        (status = 200, body = String, content_type = "text/plain", description = "It can; one line tells of the cache"),
    ),
)]
#[get("/readyz")]
pub(super) async fn readyz(state: &State<Arc<ApiState>>) -> Answer<String> {
    if state.stop().is_cancelled() {
        return Err(unavailable("the core is stopping"));
    }
    let answered = tokio::time::timeout(READY_TIMEOUT, state.read(Store::swarm_id)).await;
    match answered {
        // Without Redis it is ready all the same.
        Ok(Ok(_)) => Ok(format!("ready\ncache: {}\n", state.cache.health().word())),
        Ok(Err(failure)) => Err(failure),
        Err(_) => Err(unavailable("the database does not answer")),
    }
}
