//! Errors on the wire: RFC 9457 problem details, extended by a stable code, the field and a hint.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The media type of [`Problem`].
pub const PROBLEM_JSON: &str = "application/problem+json";

/// One thing that is wrong with one field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FieldError {
    /// The path of the field, for instance `resources.memory`.
    pub field: String,
    /// What is wrong with it.
    pub problem: String,
    /// What to try instead.
    pub hint: String,
}

impl FieldError {
    /// Names the field, what is wrong, and the way out.
    pub fn new(field: impl Into<String>, problem: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { field: field.into(), problem: problem.into(), hint: hint.into() }
    }
}

/// An error answer of the API.
/// Source: RFC 9457.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// `about:blank#` followed by the code.
    #[serde(rename = "type")]
    pub kind: String,
    /// A few words, the same for every problem with this code.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// The stable code that programs test, for instance `job-not-found`.
    pub code: String,
    /// What happened, in plain words.
    pub detail: String,
    /// What to try next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Whether the same request may succeed later.
    #[serde(default)]
    pub retryable: bool,
    /// Every field that was wrong, all at once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
}

impl Problem {
    /// A problem with a status, a stable code, a title and a sentence on what happened.
    pub fn new(status: u16, code: &str, title: &str, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("about:blank#{code}"),
            title: title.to_owned(),
            status,
            code: code.to_owned(),
            detail: detail.into(),
            hint: None,
            retryable: false,
            errors: Vec::new(),
        }
    }

    /// Adds the way out.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Says that the same request may succeed later.
    #[must_use]
    pub fn retryable(mut self) -> Self {
        self.retryable = true;
        self
    }

    /// The answer to a request with wrong fields.
    #[must_use]
    pub fn invalid(errors: Vec<FieldError>) -> Self {
        let detail = match errors.as_slice() {
            [one] => format!("{}: {}", one.field, one.problem),
            many => format!("{} fields are wrong", many.len()),
        };
        let hint = if let [one] = errors.as_slice() { Some(one.hint.clone()) } else { None };
        Self { errors, hint, ..Self::new(422, "invalid", "The request has wrong fields", detail) }
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.detail)
    }
}
