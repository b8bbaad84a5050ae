//! One request as data, so that it can be sent again.

use std::time::Duration;

use bytes::Bytes;
use reqwest::Method;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use serde::Serialize;
use swarm_protocol::problem::Problem;

/// Bytes of an answer that is read whole.
pub(crate) const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Bytes of an error answer.
pub(crate) const PROBLEM_BYTES_MAX: usize = 256 << 10;

/// A request without its token.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) method: Method,
    /// Relative to the core's address.
    pub(crate) path: String,
    pub(crate) query: Vec<(&'static str, String)>,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Option<Bytes>,
    /// Whether sending it twice does no more than sending it once.
    pub(crate) repeatable: bool,
    pub(crate) authorised: bool,
}

impl Call {
    pub(crate) fn new(method: Method, path: impl Into<String>) -> Self {
        let repeatable = matches!(method, Method::GET | Method::HEAD | Method::DELETE);
        Self {
            method,
            path: path.into(),
            query: Vec::new(),
            headers: HeaderMap::new(),
            body: None,
            repeatable,
            authorised: true,
        }
    }

    /// A call under `/api/v1/`.
    pub(crate) fn api(method: Method, path: impl AsRef<str>) -> Self {
        Self::new(method, format!("api/v1/{}", path.as_ref()))
    }

    pub(crate) fn get(path: impl AsRef<str>) -> Self {
        Self::api(Method::GET, path)
    }

    pub(crate) fn post(path: impl AsRef<str>) -> Self {
        Self::api(Method::POST, path)
    }

    pub(crate) fn query(mut self, name: &'static str, value: Option<impl ToString>) -> Self {
        self.query.extend(value.map(|value| (name, value.to_string())));
        self
    }

    /// A header whose value is known to be plain ASCII; anything else is left out, for the core then refuses the call.
    pub(crate) fn header(mut self, name: &'static str, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.insert(HeaderName::from_static(name), value);
        }
        self
    }

    pub(crate) fn json(mut self, body: &impl Serialize) -> Self {
        self.body = Some(serde_json::to_vec(body).expect("API types are plain data").into());
        self
    }

    /// Says that repeating it does no harm: the route is idempotent by its nature or by a key.
    pub(crate) const fn repeatable(mut self) -> Self {
        self.repeatable = true;
        self
    }

    pub(crate) const fn anonymous(mut self) -> Self {
        self.authorised = false;
        self
    }
}

/// The core's wish for a pause, in whole seconds; dates are not used by this API.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// Reads an error answer; what is not problem+json (a proxy's page, an empty HEAD answer) becomes one.
pub(crate) fn problem(status: u16, body: &[u8]) -> Problem {
    serde_json::from_slice::<Problem>(body).map_or_else(
        |_| {
            let (code, what) = match status {
                401 => ("unauthenticated", "the login is not accepted"),
                403 => ("forbidden", "this account may not do that"),
                404 => ("not-found", "there is no such thing here"),
                409 => ("conflict", "that contradicts the present state"),
                413 => ("too-large", "the body is too large"),
                429 => ("too-many-requests", "too many requests"),
                502..=504 => ("unavailable", "the core is not available"),
                _ => ("error", "the core answered with an error"),
            };
            Problem::new(status, code, what, format!("{what} (HTTP {status})"))
        },
        |mut problem| {
            problem.status = status;
            problem
        },
    )
}
