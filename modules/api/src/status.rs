//! Refusals, as Kubernetes says them: `metav1.Status` with code, reason, message and causes.
//!
//! kubectl prints `message` and decides by `reason`, so both follow Kubernetes' API conventions ("Response Status
//! Kind"). Every error that leaves this module is an [`ApiError`].

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::store::StoreError;

/// One field that is wrong: a path such as `spec.containers[0].image`, Kubernetes' word for why, and a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// `FieldValueRequired`, `FieldValueInvalid`, ...
    pub reason: &'static str,
    /// Path of the field.
    pub field: String,
    /// What is wrong, beginning with Kubernetes' words for the reason.
    pub message: String,
}

impl Cause {
    /// The field has to be given.
    pub fn required(field: impl Into<String>, why: &str) -> Self {
        let message = if why.is_empty() { "Required value".into() } else { format!("Required value: {why}") };
        Self { reason: "FieldValueRequired", field: field.into(), message }
    }
    /// The field's value is wrong.
    pub fn invalid(field: impl Into<String>, value: &Value, why: impl std::fmt::Display) -> Self {
        let message = format!("Invalid value: {}: {why}", clip(&value.to_string()));
        Self { reason: "FieldValueInvalid", field: field.into(), message }
    }
    /// The field's value is none of the known ones.
    pub fn unsupported(field: impl Into<String>, value: &str, known: &[&str]) -> Self {
        let known = known.iter().map(|k| format!("{k:?}")).collect::<Vec<_>>().join(", ");
        let message = format!("Unsupported value: {:?}: supported values: {known}", clip(value));
        Self { reason: "FieldValueNotSupported", field: field.into(), message }
    }
    /// Two of what must be one of a kind.
    pub fn duplicate(field: impl Into<String>, value: &str) -> Self {
        let message = format!("Duplicate value: {:?}", clip(value));
        Self { reason: "FieldValueDuplicate", field: field.into(), message }
    }
    /// The field may not be set or changed.
    pub fn forbidden(field: impl Into<String>, why: &str) -> Self {
        Self { reason: "FieldValueForbidden", field: field.into(), message: format!("Forbidden: {why}") }
    }
    /// The field names what is not there.
    pub fn not_found(field: impl Into<String>, value: &str) -> Self {
        let message = format!("Not found: {:?}", clip(value));
        Self { reason: "FieldValueNotFound", field: field.into(), message }
    }
}

/// Values from outside are quoted in messages, but never at full length.
fn clip(text: &str) -> String {
    const QUOTED_MAX_CHARS: usize = 120;
    if text.chars().count() <= QUOTED_MAX_CHARS {
        return text.to_owned();
    }
    let short: String = text.chars().take(QUOTED_MAX_CHARS).collect();
    format!("{short}...")
}

/// Why a request was refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// HTTP status.
    pub code: u16,
    /// Kubernetes' reason, such as `NotFound`.
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// `details`, when there are any.
    pub details: Option<Value>,
}

impl ApiError {
    /// An error without details.
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: None }
    }
    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }
    /// 401.
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized: send a valid bearer token (is it in your kubeconfig?)")
    }
    /// 403.
    pub fn forbidden(plural: &str, name: &str, why: impl std::fmt::Display) -> Self {
        let mut this = Self::new(403, "Forbidden", format!("{plural} {name:?} is forbidden: {why}"));
        this.details = Some(json!({"name": name, "kind": plural}));
        this
    }
    /// 404 for an object.
    pub fn not_found(plural: &str, group: &str, name: &str) -> Self {
        let mut this = Self::new(404, "NotFound", format!("{} {name:?} not found", qualified(plural, group)));
        this.details = Some(json!({"name": name, "group": group, "kind": plural}));
        this
    }
    /// 404 for a kind or path that we do not serve.
    pub fn not_served(what: &str) -> Self {
        let message = format!("{what} is not served yet: run 'kubectl api-resources' to see what is");
        Self { details: Some(json!({})), ..Self::new(404, "NotFound", message) }
    }
    /// 405.
    pub fn method_not_allowed(what: impl std::fmt::Display) -> Self {
        Self::new(405, "MethodNotAllowed", format!("{what}"))
    }
    /// 409: the name is taken.
    pub fn already_exists(plural: &str, group: &str, name: &str) -> Self {
        let message = format!("{} {name:?} already exists", qualified(plural, group));
        let mut this = Self::new(409, "AlreadyExists", message);
        this.details = Some(json!({"name": name, "group": group, "kind": plural}));
        this
    }
    /// 409: somebody else was faster, or a precondition fails.
    pub fn conflict(plural: &str, name: &str, why: impl std::fmt::Display) -> Self {
        let message = format!("Operation cannot be fulfilled on {plural} {name:?}: {why}");
        let mut this = Self::new(409, "Conflict", message);
        this.details = Some(json!({"name": name, "kind": plural}));
        this
    }
    /// 409 for a stale `resourceVersion`.
    pub fn modified(plural: &str, name: &str) -> Self {
        Self::conflict(
            plural,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }
    /// 410: a watch or list position that is no longer known.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }
    /// 413.
    pub fn too_large(max_bytes: usize) -> Self {
        Self::new(
            413,
            "RequestEntityTooLarge",
            format!("the request body is over the bound of {max_bytes} bytes"),
        )
    }
    /// 415.
    pub fn media_type(message: impl Into<String>) -> Self {
        Self::new(415, "UnsupportedMediaType", message)
    }
    /// 422.
    pub fn invalid(kind: &str, name: &str, causes: Vec<Cause>) -> Self {
        let list: Vec<String> = causes.iter().map(|c| format!("{}: {}", c.field, c.message)).collect();
        let text = match list.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let mut this = Self::new(422, "Invalid", format!("{kind} {name:?} is invalid: {text}"));
        let causes: Vec<Value> = causes
            .into_iter()
            .map(|c| json!({"reason": c.reason, "message": c.message, "field": c.field}))
            .collect();
        this.details = Some(json!({"name": name, "kind": kind, "causes": causes}));
        this
    }
    /// 500.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(500, "InternalError", message)
    }
    /// 503: try again.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self {
            details: Some(json!({"retryAfterSeconds": 1})),
            ..Self::new(503, "ServiceUnavailable", message)
        }
    }

    /// The `metav1.Status`.
    pub fn to_json(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if let (Some(details), Some(map)) = (&self.details, status.as_object_mut()) {
            map.insert("details".into(), details.clone());
        }
        status
    }
}

fn qualified(plural: &str, group: &str) -> String {
    if group.is_empty() { plural.to_owned() } else { format!("{plural}.{group}") }
}

impl From<schemas::command::Refusal> for ApiError {
    fn from(refusal: schemas::command::Refusal) -> Self {
        let reason = match refusal.status {
            400 => "BadRequest",
            401 => "Unauthorized",
            403 => "Forbidden",
            404 => "NotFound",
            409 => "Conflict",
            410 => "Expired",
            422 => "Invalid",
            429 => "TooManyRequests",
            503 => "ServiceUnavailable",
            504 => "Timeout",
            _ => "InternalError",
        };
        let code = if (400..600).contains(&refusal.status) { refusal.status } else { 500 };
        Self::new(code, reason, refusal.to_string())
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(why) => {
                Self::unavailable(format!("the object store does not answer: {why}; try again"))
            }
            // Callers turn these into words about the object; what reaches here is a race that they do not retry.
            StoreError::AlreadyExists | StoreError::Conflict => {
                Self::new(409, "Conflict", "the object changed at the same moment; try again")
            }
            StoreError::Compacted { floor } => {
                Self::expired(format!("the position is too old: the history begins at {floor}"))
            }
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = json_response(self.code, &self.to_json());
        if self.code == 401 {
            response.headers_mut().insert(
                "www-authenticate",
                axum::http::HeaderValue::from_static("Bearer realm=\"edgewire\""),
            );
        }
        // kubectl waits and tries ten times when it sees this: right for a store that restarts, not for a node that is away.
        if self.details.as_ref().is_some_and(|details| details.get("retryAfterSeconds").is_some()) {
            response.headers_mut().insert("retry-after", axum::http::HeaderValue::from_static("1"));
        }
        response
    }
}

/// A JSON answer.
pub fn json_response(code: u16, value: &Value) -> Response {
    let mut response = Response::new(Body::from(value.to_string()));
    *response.status_mut() =
        axum::http::StatusCode::from_u16(code).unwrap_or(axum::http::StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert("content-type", axum::http::HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_follow_kubernetes() {
        assert_eq!(ApiError::not_found("pods", "", "a").message, "pods \"a\" not found");
        assert_eq!(ApiError::not_found("leases", "x.io", "a").message, "leases.x.io \"a\" not found");
        let one = ApiError::invalid("Pod", "a", vec![Cause::required("spec.containers", "")]);
        assert_eq!(one.message, "Pod \"a\" is invalid: spec.containers: Required value");
        assert_eq!(one.to_json()["details"]["causes"][0]["field"], "spec.containers");
        assert_eq!(one.to_json()["code"], 422);
    }
}
