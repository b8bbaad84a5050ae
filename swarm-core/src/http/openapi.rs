//! The description of the API (OpenAPI 3.1), made from the routes themselves. What all routes have in common is said here
//! once: parts of paths, pages, and the problems that any request may meet.

use rocket::get;
use rocket::http::ContentType;
use swarm_protocol::problem::{PROBLEM_JSON, Problem};
use swarm_protocol::{Digest, JobId, ScheduleId, UserId, WorkerId};
use utoipa::openapi::path::{Operation, Parameter, ParameterIn, PathItem};
use utoipa::openapi::response::{Response, ResponseBuilder};
use utoipa::openapi::schema::{ObjectBuilder, Schema, SchemaType, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{ContentBuilder, Ref, RefOr, Required};
use utoipa::{IntoResponses, Modify, OpenApi, PartialSchema, ToSchema};

use super::guards::User;
use super::{BASE, files, health, images, jobs, link, login, logs, modules, schedules, users, worker_files, workers};

/// It clashes with what is there.
#[derive(IntoResponses)]
#[response(status = 409, content_type = PROBLEM_JSON)]
pub(super) struct Conflict(#[expect(dead_code, reason = "it only describes")] Problem);

/// Too many tries; `Retry-After` says when the next one makes sense.
#[derive(IntoResponses)]
#[response(status = 429, content_type = PROBLEM_JSON)]
pub(super) struct TooManyRequests(#[expect(dead_code, reason = "it only describes")] Problem);

/// The upload stands at another byte.
#[derive(IntoResponses)]
#[response(status = 412, content_type = PROBLEM_JSON)]
pub(super) struct StandsElsewhere(#[expect(dead_code, reason = "it only describes")] Problem);

/// There is nothing in this range.
#[derive(IntoResponses)]
#[response(status = 416, content_type = PROBLEM_JSON)]
pub(super) struct OutOfRange(#[expect(dead_code, reason = "it only describes")] Problem);

/// There is no such thing, or it is not for the asker.
#[derive(IntoResponses)]
#[response(status = 404, content_type = PROBLEM_JSON)]
pub(super) struct NotFound(#[expect(dead_code, reason = "it only describes")] Problem);

#[derive(OpenApi)]
#[openapi(
    info(
        title = "swarm-sync",
        description = "Container jobs on a swarm of machines. Errors are RFC 9457 problems with a stable `code`, the wrong \
                       fields, a hint, and whether the same request may succeed later. Lists come in pages: where \
                       there is a `next`, send it as `cursor`.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0"),
    ),
    paths(
        health::livez,
        health::readyz,
        login::login,
        login::refresh,
        login::logout,
        login::whoami,
        users::list,
        users::create,
        users::reset,
        workers::list,
        workers::create_token,
        workers::join,
        workers::revoke,
        workers::drain,
        workers::resume,
        workers::declare_lost,
        modules::list,
        modules::log,
        files::upload,
        files::head,
        files::offset,
        images::upload,
        images::list,
        images::get,
        images::tag,
        images::untag,
        jobs::submit,
        jobs::plan,
        jobs::list,
        jobs::get,
        jobs::wait,
        jobs::tasks,
        jobs::task,
        jobs::cancel,
        jobs::why,
        logs::log,
        logs::output,
        schedules::list,
        schedules::create,
        schedules::get,
        schedules::delete,
        schedules::pause,
        schedules::resume,
        schedules::trigger,
        link::link,
        worker_files::blob,
        worker_files::output,
        worker_files::output_offset,
        description,
    ),
    tags(
        (name = "jobs", description = "Jobs, their tasks and attempts, logs and outputs"),
        (name = "schedules", description = "Jobs that are made again and again"),
        (name = "images", description = "What jobs run"),
        (name = "files", description = "What jobs take in"),
        (name = "sessions", description = "Logging in and out"),
        (name = "users", description = "Accounts"),
        (name = "workers", description = "Who runs jobs"),
        (name = "core", description = "The core itself"),
        (name = "link", description = "For workers alone, by their own key"),
    ),
    modifiers(&Common),
)]
struct Described;

/// The description as JSON, indented.
///
/// # Errors
/// When it cannot be written as JSON, which would be a bug.
pub fn json() -> serde_json::Result<String> {
    Described::openapi().to_pretty_json()
}

/// This description
#[utoipa::path(
    tag = "core",
    security(("account" = ["viewer"])),
    responses((status = 200, content_type = "application/json", description = "OpenAPI 3.1")),
)]
#[get("/openapi.json")]
pub(super) fn description(_user: User) -> super::problem::Answer<(ContentType, String)> {
    let json = json().map_err(|error| super::problem::internal(&error))?;
    Ok((ContentType::JSON, json))
}

/// Routes that are not below [`BASE`].
const HEALTH: [&str; 2] = ["/livez", "/readyz"];

/// What is said of every route.
struct Common;

impl Modify for Common {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let bearer = |what: &str| {
            let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(what));
            SecurityScheme::Http(scheme.build())
        };
        let components = openapi.components.get_or_insert_default();
        components
            .add_security_scheme("account", bearer("An access token of `POST /login`; the role is the least one"));
        components.add_security_scheme("worker", bearer("A worker's own key"));
        let mut schemas = vec![(Problem::name().into_owned(), Problem::schema())];
        Problem::schemas(&mut schemas);
        components.schemas.extend(schemas);
        components.responses.extend(COMMON.map(|(_, name, what)| (name.to_owned(), RefOr::T(problem(what)))));
        let paths = std::mem::take(&mut openapi.paths.paths);
        for (path, mut item) in paths {
            changes(&mut item).for_each(|operation| add(operation, "409", "Clash"));
            operations(&mut item).for_each(|operation| complete(&path, operation));
            let is_open = HEALTH.contains(&path.as_str());
            let path = if is_open { path } else { format!("{BASE}{path}") };
            openapi.paths.paths.insert(path, item);
        }
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut item.get, &mut item.post, &mut item.delete, &mut item.head].into_iter().flatten()
}

/// Those that change something.
fn changes(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut item.post, &mut item.delete].into_iter().flatten()
}

/// Problems of many routes: status, name in the description, meaning.
const COMMON: [(&str, &str, &str); 10] = [
    ("400", "CutShort", "The body did not arrive whole"),
    ("401", "Unauthenticated", "No token, or one that is not valid"),
    ("401", "WrongSecret", "The secret is wrong, used up or expired"),
    ("403", "Forbidden", "The account's role is too low"),
    ("404", "Missing", "There is no such thing, or it is not for the asker"),
    ("409", "Clash", "It clashes with what is there"),
    ("413", "TooLarge", "The body is too large"),
    ("422", "Invalid", "A part of the request is wrong; `errors` names the fields"),
    ("500", "Failed", "The core failed"),
    ("503", "Unavailable", "Not now; `Retry-After` says when to come again"),
];

/// Completes what a route says of itself by what is true of all that are like it.
fn complete(path: &str, operation: &mut Operation) {
    for parameter in operation.parameters.iter_mut().flatten() {
        if let RefOr::T(parameter) = parameter {
            explain(parameter);
        }
    }
    let tag = operation.tags.iter().flatten().next();
    if let (Some(tag), Some(function)) = (tag, &operation.operation_id) {
        operation.operation_id = Some(format!("{tag}.{function}"));
    }
    let is_health = HEALTH.contains(&path);
    let has_body = operation.request_body.is_some();
    let is_open = operation.security.iter().flatten().all(|needed| *needed == SecurityRequirement::default());
    for (status, name, _) in COMMON {
        let applies = match name {
            "CutShort" | "TooLarge" => has_body,
            "Unauthenticated" | "Forbidden" => !is_open,
            "WrongSecret" => is_open && has_body,
            "Missing" => path.contains('{'),
            "Invalid" => !is_health,
            // Of those that change something, see above.
            "Clash" => false,
            _ => true,
        };
        if applies {
            add(operation, status, name);
        }
    }
}

fn add(operation: &mut Operation, status: &str, name: &str) {
    let response = RefOr::Ref(Ref::from_response_name(name));
    operation.responses.responses.entry(status.to_owned()).or_insert(response);
}

fn problem(what: &str) -> Response {
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
    ResponseBuilder::new().description(what).content(PROBLEM_JSON, content).build()
}

/// Types and describes what has the same name everywhere.
fn explain(parameter: &mut Parameter) {
    let (schema, description) = match (parameter.parameter_in.clone(), parameter.name.as_str()) {
        (ParameterIn::Path, "job") => (JobId::schema(), "The job's number"),
        (ParameterIn::Path, "task") => (u32::schema(), "The task's index"),
        (ParameterIn::Path, "attempt_no") => (u16::schema(), "The attempt's number, from 1"),
        (ParameterIn::Path, "n") => (u32::schema(), "Its place in the attempt's list of outputs, from 0"),
        (ParameterIn::Path, "schedule") => (ScheduleId::schema(), "The schedule's number"),
        (ParameterIn::Path, "user") => (UserId::schema(), "The account's number"),
        (ParameterIn::Path, "worker") => (WorkerId::schema(), "The worker's number"),
        (ParameterIn::Path, "digest") => (Digest::schema(), "SHA-256 of the whole"),
        (ParameterIn::Query, "limit") => (whole_number(1, 1000), "At most so many; 100 by default"),
        (ParameterIn::Query, "cursor") => (String::schema(), "`next` of the page before"),
        _ => return,
    };
    parameter.schema = Some(schema);
    parameter.description = Some(description.to_owned());
    if parameter.parameter_in == ParameterIn::Query {
        parameter.required = Required::False;
    }
}

fn whole_number(least: u32, most: u32) -> RefOr<Schema> {
    let number = ObjectBuilder::new().schema_type(SchemaType::Type(Type::Integer));
    number.minimum(Some(least)).maximum(Some(most)).into()
}
