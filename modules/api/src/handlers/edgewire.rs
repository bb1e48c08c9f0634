//! `/edgewire/v1/…`: enrolment and revocation of nodes, join tokens, authorities and certificates, and the tool's own bus
//! credential.
//!
//! Nothing is decided here: the body goes to the identity module and its answer comes back. Only `enroll` needs no
//! bearer token, because the join token in its body is what proves the asker.

use axum::body::Body;
use axum::http::Method;
use axum::http::request::Parts as Head;
use axum::response::Response;
use serde_json::{Value, json};

use schemas::Timestamp;

use super::{Api, read_body};
use crate::audit::{Named, Wanted};
use crate::route::Query;
use crate::status::{ApiError, json_response};

const AUDIT: &str = "/edgewire/v1/audit";
/// Audit records of one answer.
const RECORDS_MAX: usize = 5_000;
/// An enrolment is small, and anybody may send one.
const ENROLL_MAX_BYTES: usize = 64 * 1024;

impl Api {
    pub(crate) async fn edgewire(&self, head: Head, body: Body, known: bool) -> Result<Response, ApiError> {
        if (&head.method, head.uri.path()) == (&Method::GET, AUDIT) && known {
            return self.records(&Query::parse(head.uri.query().unwrap_or(""))).await;
        }
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
            (&Method::POST, ["nodes", name, "rotate"]) if known => ("node.rotate", Some(*name)),
            (&Method::GET, ["ca"]) if known => ("ca.list", None),
            (&Method::POST, ["ca", "roll"]) if known => ("ca.roll", None),
            (&Method::POST, ["ca", "finish"]) if known => ("ca.finish", None),
            (&Method::GET, ["certificate"]) if known => ("certificate.list", None),
            (&Method::POST, ["certificate", "renew"]) if known => ("certificate.renew", None),
            (&Method::GET, ["bus"]) if known => ("bus", None),
            (_, ["enroll" | "tokens" | "nodes" | "ca" | "certificate" | "bus" | "audit", ..]) => {
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
        let name = body.get("node").or(body.get("name")).and_then(Value::as_str).map(str::to_owned);
        let answer = self.parts.identity.call(verb, body).await?;
        let mut response = json_response(200, &answer);
        let named = match verb {
            "enroll" => name,
            "token.create" => answer.get("id").and_then(Value::as_str).map(str::to_owned),
            _ => None,
        };
        if let Some(name) = named {
            response.extensions_mut().insert(Named(name));
        }
        Ok(response)
    }

    /// The audit records that are asked for: `since` (ms since 1970), `limit`, `node`, `verb`, `user`, `refused`.
    async fn records(&self, query: &Query) -> Result<Response, ApiError> {
        let number = |name: &str, default: i64| match query.get(name).trim() {
            "" => Ok(default),
            text => {
                text.parse().map_err(|_| ApiError::bad_request(format!("{name}={text:?} is not a number")))
            }
        };
        let text = |name: &str| Some(query.get(name).to_owned()).filter(|text| !text.is_empty());
        let limit = usize::try_from(number("limit", RECORDS_MAX as i64)?).unwrap_or(0).min(RECORDS_MAX);
        let wanted = Wanted {
            since: Timestamp(number("since", 0)?),
            limit,
            node: text("node"),
            verb: text("verb"),
            user: text("user"),
            refused: query.flag("refused"),
        };
        let records = self.parts.audit.read(wanted).await?;
        Ok(json_response(200, &json!({"items": records})))
    }
}
