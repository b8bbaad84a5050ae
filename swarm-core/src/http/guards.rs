//! Who may come in: each route has exactly one of these guards, but for the short list of open routes.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use rocket::data::{self, Data, FromData, ToByteUnit};
use rocket::http::Status;
use rocket::request::{FromRequest, Outcome, Request};
use serde::de::DeserializeOwned;
use swarm_protocol::Digest;
use swarm_protocol::api::Role;
use swarm_protocol::problem::{FieldError, Problem};

use super::ApiState;
use super::problem::{Answer, Failure, cut_short, forbidden, invalid, stash, too_large, unauthenticated};
use crate::identity::jwt::Bearer;
use crate::identity::{Account, WorkerPeer};

/// Any account.
pub(crate) struct User {
    pub(crate) account: Arc<Account>,
    pub(crate) bearer: Bearer,
}

/// An account that may submit and change its group's things.
pub(crate) struct Consumer(pub(crate) Arc<Account>);

/// An account that may steer workers and sees every group's jobs.
pub(crate) struct Operator(pub(crate) Arc<Account>);

/// An account that may do everything.
pub(crate) struct Admin(pub(crate) Arc<Account>);

/// A worker that showed its key.
pub(crate) struct Worker(pub(crate) WorkerPeer);

fn bearer_token<'r>(request: &'r Request<'_>) -> Answer<&'r str> {
    let header = request.headers().get_one("Authorization");
    let header = header.ok_or_else(|| unauthenticated("this route needs a token"))?;
    let (scheme, token) = header.split_once(' ').unwrap_or((header, ""));
    if scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() {
        return Ok(token.trim());
    }
    Err(unauthenticated("the Authorization header is not of the form `Bearer TOKEN`"))
}

fn state<'r>(request: &'r Request<'_>) -> Answer<&'r Arc<ApiState>> {
    let missing = || Failure::from(Problem::new(500, "internal", "The core failed", "the API has no state"));
    request.rocket().state::<Arc<ApiState>>().ok_or_else(missing)
}

fn user(request: &Request<'_>, least: Role) -> Answer<User> {
    let (account, bearer) = state(request)?.identity.authenticate(bearer_token(request)?)?;
    if account.role < least {
        let (has, needs) = (account.role.as_str(), least.as_str());
        return Err(forbidden(format!("this needs the role {needs}; `{}` has the role {has}", account.name)));
    }
    Ok(User { account, bearer })
}

/// Refuses a query parameter that the route does not have, and one that is there twice, which Rocket would take for none:
/// a mistyped filter must not list everything.
fn known_query(request: &Request<'_>) -> Answer<()> {
    let known = request.route().and_then(|route| route.uri.query()).unwrap_or_default();
    let names: Vec<_> = known.split('&').map(|part| part.trim_matches(['<', '>'])).filter(|n| !n.is_empty()).collect();
    let mut seen = Vec::new();
    for (name, _) in request.uri().query().map(|query| query.segments()).into_iter().flatten() {
        if !names.contains(&name) {
            let field = swarm_protocol::text::sanitise(name, false).chars().take(200).collect::<String>();
            let hint = match names.as_slice() {
                [] => "leave it out: this route takes no query".to_owned(),
                names => format!("this route takes {}", names.join(", ")),
            };
            return Err(invalid(field, "is not a query parameter of this route", hint));
        }
        if seen.contains(&name) {
            return Err(invalid(name, "is there more than once", "give it once"));
        }
        seen.push(name);
    }
    Ok(())
}

fn outcome<T>(request: &Request<'_>, answer: Answer<T>) -> Outcome<T, ()> {
    // After the answer: who may not come in does not learn what a route takes.
    match answer.and_then(|value| known_query(request).map(|()| value)) {
        Ok(value) => Outcome::Success(value),
        Err(failure) => Outcome::Error((stash(request, failure), ())),
    }
}

#[rocket::async_trait]
impl<'r> FromRequest<'r> for User {
    type Error = ();
    async fn from_request(request: &'r Request<'_>) -> Outcome<Self, ()> {
        outcome(request, user(request, Role::Viewer))
    }
}

#[rocket::async_trait]
impl<'r> FromRequest<'r> for Consumer {
    type Error = ();
    async fn from_request(request: &'r Request<'_>) -> Outcome<Self, ()> {
        outcome(request, user(request, Role::Consumer).map(|user| Self(user.account)))
    }
}

#[rocket::async_trait]
impl<'r> FromRequest<'r> for Operator {
    type Error = ();
    async fn from_request(request: &'r Request<'_>) -> Outcome<Self, ()> {
        outcome(request, user(request, Role::Operator).map(|user| Self(user.account)))
    }
}

#[rocket::async_trait]
impl<'r> FromRequest<'r> for Admin {
    type Error = ();
    async fn from_request(request: &'r Request<'_>) -> Outcome<Self, ()> {
        outcome(request, user(request, Role::Admin).map(|user| Self(user.account)))
    }
}

#[rocket::async_trait]
impl<'r> FromRequest<'r> for Worker {
    type Error = ();
    async fn from_request(request: &'r Request<'_>) -> Outcome<Self, ()> {
        let peer = || Ok(Self(state(request)?.identity.worker(bearer_token(request)?)?));
        outcome(request, peer())
    }
}

/// The address a request comes from. Headers that claim another one are not believed.
pub(crate) struct Client(pub(crate) IpAddr);

#[rocket::async_trait]
impl<'r> FromRequest<'r> for Client {
    type Error = ();
    async fn from_request(request: &'r Request<'_>) -> Outcome<Self, ()> {
        let address = request.remote().map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |remote| remote.ip());
        outcome(request, Ok(Self(address)))
    }
}

/// The headers a handler looks at itself.
pub(crate) struct Headers {
    pub(crate) expected: Answer<Option<Digest>>,
    pub(crate) idempotency: Answer<Option<String>>,
    pub(crate) range: Option<String>,
    /// Where an upload goes on; 0 for a new one.
    pub(crate) offset: Answer<u64>,
}

/// The longest Idempotency-Key, in bytes.
const IDEMPOTENCY_BYTES_MAX: usize = 128;

#[rocket::async_trait]
impl<'r> FromRequest<'r> for Headers {
    type Error = std::convert::Infallible;
    async fn from_request(request: &'r Request<'_>) -> Outcome<Self, Self::Error> {
        let get = |name| request.headers().get_one(name);
        let expected =
            get("Digest-Expected").map(str::parse).transpose().map_err(|error: swarm_protocol::ids::ParseIdError| {
                invalid(
                    "Digest-Expected",
                    error.to_string(),
                    "send sha256: and 64 lower-case hex digits, or leave it out",
                )
            });
        let idempotency = match get("Idempotency-Key") {
            Some(key)
                if key.is_empty()
                    || key.len() > IDEMPOTENCY_BYTES_MAX
                    || !key.bytes().all(|b| b.is_ascii_graphic()) =>
            {
                Err(invalid("Idempotency-Key", "is not a key", "send 1 to 128 visible ASCII characters without spaces"))
            }
            key => Ok(key.map(str::to_owned)),
        };
        let offset = get("Upload-Offset").map_or(Ok(0), |text| {
            text.parse().map_err(|_| invalid("Upload-Offset", "is not a number of bytes", "leave it out to begin anew"))
        });
        Outcome::Success(Self { expected, idempotency, range: get("Range").map(str::to_owned), offset })
    }
}

/// A JSON body.
pub(crate) struct Body<T> {
    pub(crate) value: T,
    /// SHA-256 of the bytes as they came.
    pub(crate) digest: Digest,
}

#[rocket::async_trait]
impl<'r, T: DeserializeOwned + Send> FromData<'r> for Body<T> {
    type Error = ();
    async fn from_data(request: &'r Request<'_>, data: Data<'r>) -> data::Outcome<'r, Self> {
        match body(request, data).await {
            Ok(body) => data::Outcome::Success(body),
            Err(failure) => data::Outcome::Error((stash(request, failure), ())),
        }
    }
}

async fn body<T: DeserializeOwned>(request: &Request<'_>, data: Data<'_>) -> Answer<Body<T>> {
    let bytes_max = state(request)?.config.limits.json_bytes;
    let mut stream = data.open((bytes_max + super::transfer::DRAIN_BYTES_MAX).bytes());
    let mut bytes = Vec::new();
    let mut limited = tokio::io::AsyncReadExt::take(&mut stream, bytes_max + 1);
    let reading = tokio::io::AsyncReadExt::read_to_end(&mut limited, &mut bytes);
    match tokio::time::timeout(super::transfer::CHUNK_TIMEOUT, reading).await {
        Ok(Ok(_)) => {}
        Ok(Err(_)) | Err(_) => return Err(cut_short()),
    }
    if bytes.len() as u64 > bytes_max {
        super::transfer::drain(&mut stream).await;
        return Err(too_large("the JSON body", bytes_max));
    }
    Ok(Body { value: parse(&bytes)?, digest: Digest::of(&bytes) })
}

/// Reads a JSON object; an error names the field. serde_json bounds the depth at 128.
fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Answer<T> {
    if let Some(kind) = other_kind(bytes) {
        let problem = format!("must be a JSON object, not {kind}");
        return Err(invalid("body", problem, "send the fields between { and }"));
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let field = if path == "." { "body".to_owned() } else { path };
        wrong_json(field, &error.into_inner())
    })?;
    json.end().map_err(|error| wrong_json("body".to_owned(), &error))?;
    Ok(value)
}

/// What the JSON begins with instead of an object, if it may be JSON at all.
fn other_kind(bytes: &[u8]) -> Option<&'static str> {
    match bytes.trim_ascii_start().first()? {
        b'[' => Some("an array"),
        b'"' => Some("a string"),
        b'-' | b'0'..=b'9' => Some("a number"),
        b't' | b'f' => Some("a boolean"),
        b'n' => Some("null"),
        _ => None,
    }
}

fn wrong_json(field: String, error: &serde_json::Error) -> Failure {
    use serde_json::error::Category;
    let hint = match error.classify() {
        Category::Data => "see the API's description of this field",
        Category::Eof => "the JSON ends early; send it whole",
        Category::Syntax | Category::Io => "send valid JSON, nested at most 128 deep",
    };
    let problem = swarm_protocol::text::sanitise(&error.to_string(), false).chars().take(2000).collect::<String>();
    let field = swarm_protocol::text::sanitise(&field, false).chars().take(200).collect::<String>();
    Problem::invalid(vec![FieldError::new(field, problem, hint)]).into()
}

/// Reads a part of the path or query; an error names it.
pub(crate) fn param<T>(field: &str, text: &str) -> Answer<T>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|error: T::Err| {
        let problem = swarm_protocol::text::sanitise(&error.to_string(), false);
        invalid(field, problem, "correct this part of the address")
    })
}

/// As [`param`] for one that may be absent.
pub(crate) fn optional<T>(field: &str, text: Option<&str>) -> Answer<Option<T>>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    text.map(|text| param(field, text)).transpose()
}

/// `limit` of a list: 1 to 1000, 100 when absent.
pub(crate) fn limit(text: Option<&str>) -> Answer<u32> {
    match optional("limit", text)? {
        None => Ok(100),
        Some(limit @ 1..=1000) => Ok(limit),
        Some(limit) => Err(invalid("limit", format!("{limit} is out of range"), "give 1 to 1000")),
    }
}

/// A value with another status than 200.
pub(crate) type With<T> = rocket::response::status::Custom<T>;

pub(crate) fn created<T>(value: T) -> With<rocket::serde::json::Json<T>> {
    rocket::response::status::Custom(Status::Created, rocket::serde::json::Json(value))
}
