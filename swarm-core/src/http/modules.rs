//! The core's own state and log.

use std::sync::Arc;

use rocket::http::ContentType;
use rocket::serde::json::Json;
use rocket::{State, get};
use swarm_protocol::api::{ModuleView, Page};

use super::ApiState;
use super::guards::{Operator, User, optional};
use super::problem::{Answer, internal, invalid};
use crate::cache;
use crate::logger::{Filter, LoggerHandle};

const LINES_MAX: usize = 10_000;

/// The core's modules, and how they do
#[utoipa::path(
    tag = "core",
    security(("account" = ["viewer"])),
    responses((status = 200, body = Page<ModuleView>, description = "Every module")),
)]
#[get("/modules")]
pub(super) fn list(_user: User, state: &State<Arc<ApiState>>) -> Json<Page<ModuleView>> {
    let mut items = state.supervisor.views();
    if let Some(view) = items.iter_mut().find(|view| view.name == cache::NAME) {
        state.cache.health().show_in(view);
    }
    items.extend(state.logger.as_ref().map(LoggerHandle::view));
    Json(Page { items, next: None })
}

/// The last lines of the core's own log
#[utoipa::path(
    tag = "core",
    security(("account" = ["operator"])),
    params(
        ("lines" = Option<u32>, Query, description = "At most so many, 100 by default", minimum = 1, maximum = 10000),
    ),
    responses(
        (status = 200, body = String, content_type = "application/x-ndjson", description = "One JSON object a line, the oldest first"),
    ),
)]
#[get("/log?<lines>")]
pub(super) fn log(
    _operator: Operator,
    lines: Option<&str>,
    state: &State<Arc<ApiState>>,
) -> Answer<(ContentType, Vec<u8>)> {
    let lines = optional("lines", lines)?.unwrap_or(100);
    if !(1..=LINES_MAX).contains(&lines) {
        return Err(invalid("lines", format!("{lines} is out of range"), "give 1 to 10000"));
    }
    let everything: Filter = "trace".parse().map_err(|error: crate::logger::FilterError| internal(&error))?;
    let entries = state.logger.as_ref().map(|logger| logger.recent(lines, &everything)).unwrap_or_default();
    let mut text = Vec::new();
    for entry in entries {
        serde_json::to_writer(&mut text, &*entry).map_err(|error| internal(&error))?;
        text.push(b'\n');
    }
    Ok((ContentType::new("application", "x-ndjson"), text))
}
