//! `/edgewire/v1/…`: enrolment and revocation of nodes, join tokens, and the tool's own bus credential.
//!
//! Nothing is decided here: the body goes to the identity module and its answer comes back. Only `enroll` needs no
//! bearer token, because the join token in its body is what proves the asker.

use axum::body::Body;
use axum::http::Method;
use axum::http::request::Parts as Head;
use axum::response::Response;
use serde_json::{Value, json};

use super::{Api, read_body};
use crate::status::{ApiError, json_response};

/// An enrolment is small, and anybody may send one.
const ENROLL_MAX_BYTES: usize = 64 * 1024;

impl Api {
    pub(crate) async fn edgewire(&self, head: Head, body: Body, known: bool) -> Result<Response, ApiError> {
        let path = head.uri.path().trim_start_matches("/edgewire/v1/").trim_end_matches('/').to_owned();
        let parts: Vec<&str> = path.split('/').collect();
        let (verb, extra) = match (&head.method, parts.as_slice()) {
            (&Method::POST, ["enroll"]) => ("enroll", None),
            (&Method::POST, ["tokens"]) if known => ("token.create", None),
            (&Method::GET, ["tokens"]) if known => ("token.list", None),
            (&Method::DELETE, ["tokens"]) if known => ("token.delete", None),
            (&Method::DELETE, ["tokens", id]) if known => ("token.delete", Some(*id)),
            (&Method::GET, ["nodes"]) if known => ("node.list", None),
            (&Method::POST, ["nodes", name, "revoke"]) if known => ("node.revoke", Some(*name)),
            (&Method::GET, ["bus"]) if known => ("bus", None),
            (_, ["enroll" | "tokens" | "nodes" | "bus", ..]) => {
                return Err(ApiError::method_not_allowed(format!(
                    "{} is not possible on {}",
                    head.method,
                    head.uri.path()
                )));
            }
            _ => return Err(ApiError::not_served(&format!("path {:?}", head.uri.path()))),
        };
        let bytes = read_body(body).await?;
        if verb == "enroll" && bytes.len() > ENROLL_MAX_BYTES {
            return Err(ApiError::too_large(ENROLL_MAX_BYTES));
        }
        let body: Value = match (extra, bytes.is_empty()) {
            (Some(id), _) => json!({"id": id}),
            (None, true) => json!({}),
            (None, false) => serde_json::from_slice(&bytes).map_err(|error| {
                ApiError::bad_request(format!("the request body is not valid JSON: {error}"))
            })?,
        };
        let answer = self.parts.identity.call(verb, body).await?;
        Ok(json_response(200, &answer))
    }
}
