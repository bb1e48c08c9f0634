//! The service bus: a program on the node POSTs what a rule's target at the hub shall be called with, and has its answer.
//!
//! KubeEdge's own form: `{"method", "targetURL", "payload"}` to any path, answered with HTTP 200 and `{"code", "msg", "body"}`;
//! `code` says how it went. As KubeEdge has it, the target is sent all of that document, with POST whatever `method` says: a
//! rule's `map` gives it the payload alone.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::{Request, Response, StatusCode, header};
use bus::connection::Bus;
use bus::tool::ToolError;
use bytes::Bytes;
use schemas::command::{Refusal, Reply};
use schemas::envelope::Headers;
use schemas::name::NodeName;
use schemas::routing::{BODY_MAX_BYTES, Call, Delivered};
use schemas::subject;
use serde::Deserialize;
use serde_json::json;

use crate::CALL;
use crate::caller::CALL_TIMEOUT;
use crate::listener::Answer;
use crate::table::Table;

/// The hub has so much more than a call for its answer.
const HUB_TIMEOUT: Duration = CALL_TIMEOUT.saturating_add(Duration::from_secs(5));

/// What a program asks.
#[derive(Debug, Deserialize)]
struct Asked {
    #[serde(rename = "targetURL")]
    target_url: String,
}

/// The service.
pub(super) struct ServiceBus {
    node: NodeName,
    bus: Bus,
    table: Arc<RwLock<Arc<Table>>>,
}

impl ServiceBus {
    pub(super) fn new(node: NodeName, bus: Bus, table: Arc<RwLock<Arc<Table>>>) -> Self {
        Self { node, bus, table }
    }

    async fn ask(&self, body: Bytes) -> Reply<Delivered> {
        let asked: Asked = serde_json::from_slice(&body).map_err(|error| {
            let text = format!("send JSON: {{\"method\": …, \"targetURL\": …, \"payload\": …}}: {error}");
            Refusal::new(400, "EW-BAD-REQUEST", text)
        })?;
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner).clone();
        let route = table.service(&self.node, &asked.target_url).ok_or_else(|| {
            let text = format!("no rule of node {} has the target_url {:?}", self.node, asked.target_url);
            Refusal::new(404, "EW-RULE-NOT-FOUND", text)
        })?;
        let call = Call { uid: route.uid.clone(), body };
        let to = subject::request(&self.node, CALL);
        let question = Bytes::from(schemas::encode(&call));
        let answer = self.bus.ask(&to, &Headers::new(), question, HUB_TIMEOUT).await.map_err(|error| {
            let (status, code) = match error {
                ToolError::NoResponders { .. } => (503, "EW-HUB-UNREACHABLE"),
                ToolError::Timeout { .. } => (504, "EW-HUB-UNREACHABLE"),
                ToolError::Failed { .. } => (500, "EW-INTERNAL"),
            };
            Refusal::new(
                status,
                code,
                format!("the hub was not asked: {error}; try again when the link is up"),
            )
        })?;
        let bad = |error| Refusal::new(502, "EW-BAD-ANSWER", format!("the hub's answer: {error}"));
        schemas::decode::<Reply<Delivered>>(&answer.payload).map_err(bad)?
    }
}

impl Answer for ServiceBus {
    async fn answer(self: Arc<Self>, request: Request<Body>) -> Response<Body> {
        let answer = match to_bytes(request.into_body(), BODY_MAX_BYTES).await {
            Ok(body) => self.ask(body).await,
            Err(_) => {
                let text = format!("a request has at most {BODY_MAX_BYTES} bytes");
                Err(Refusal::new(413, "EW-PAYLOAD-TOO-LARGE", text))
            }
        };
        let json = match answer {
            Ok(delivered) => json!({
                "code": delivered.status,
                "msg": "receive response from cloud successfully",
                "body": String::from_utf8_lossy(&delivered.body),
            }),
            Err(refusal) => json!({"code": refusal.status, "msg": refusal.to_string(), "body": ""}),
        };
        let mut response = Response::new(Body::from(json.to_string()));
        *response.status_mut() = StatusCode::OK;
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
        response
    }
}
