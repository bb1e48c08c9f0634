//! One request from its head to its answer. The files below hold one verb family each; this one sorts requests to them.

pub mod accept;
pub mod delete;
pub mod edgewire;
pub mod exec;
pub mod logs;
pub mod prepare;
pub mod read;
pub mod watch;
pub mod write;

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::request::Parts as Head;
use axum::http::{HeaderValue, Method};
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use schemas::Timestamp;
use schemas::object::new_uid;
use schemas::subject::ObjectKey;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::cache::Cache;
use crate::resource::{KINDS, Kind};
use crate::route::{Query, Target};
use crate::status::{ApiError, json_response};
use crate::{Parts, Token, audit, auth, discovery, openapi, protobuf};

/// The largest request body, as in Kubernetes.
pub const BODY_MAX_BYTES: usize = 3 * 1024 * 1024;
/// A request body has to arrive within so long.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a write without `resourceVersion` is tried when others write the same object.
pub const CONFLICT_TRIES_MAX: usize = 16;

/// What all requests share.
pub struct Api {
    pub(crate) parts: Parts,
    pub(crate) tokens: Vec<Token>,
    pub(crate) caches: Vec<(&'static Kind, Arc<Cache>)>,
    pub(crate) stop: CancellationToken,
}

/// One request, read.
pub struct Asked {
    /// What it is about.
    pub target: Target,
    /// Its query parameters.
    pub query: Query,
    /// Its head.
    pub head: Head,
}

impl Asked {
    /// The key of the object that is meant; 405 for a collection.
    pub fn key(&self) -> Result<ObjectKey, ApiError> {
        let name = self.target.name.clone().ok_or_else(|| self.not_allowed())?;
        Ok(ObjectKey {
            resource: self.target.kind.resource(),
            namespace: self.target.namespace.clone().unwrap_or_default(),
            name,
        })
    }
    /// 405 for what was asked.
    pub fn not_allowed(&self) -> ApiError {
        let kind = self.target.kind;
        let sub = if self.target.subresource.is_empty() {
            String::new()
        } else {
            format!("/{}", self.target.subresource)
        };
        let hint =
            if kind.allows("create") { "" } else { ": this kind is not served yet beyond an empty list" };
        ApiError::method_not_allowed(format!(
            "{} is not possible on {}{sub}{hint}",
            self.head.method, kind.plural
        ))
    }
    /// A header as text.
    pub fn header(&self, name: &str) -> &str {
        self.head.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("")
    }
}

impl Api {
    /// What all requests share; nothing runs yet.
    pub fn new(parts: Parts, tokens: Vec<Token>, stop: CancellationToken) -> Self {
        let caches = KINDS.iter().map(|kind| (kind, Arc::new(Cache::new(kind.resource())))).collect();
        Self { parts, tokens, caches, stop }
    }

    /// The watch cache of a kind.
    pub fn cache(&self, kind: &Kind) -> Result<Arc<Cache>, ApiError> {
        let found = self.caches.iter().find(|(k, _)| *k == kind).map(|(_, cache)| cache.clone());
        found.ok_or_else(|| ApiError::internal("the kind has no watch cache"))
    }

    /// Answers one request.
    pub async fn handle(&self, request: Request) -> Response {
        let (head, body) = request.into_parts();
        let line = format!("{} {}", head.method, head.uri.path());
        let user = auth::authenticate(&self.tokens, &head.headers).unwrap_or_default();
        let asked = audit::Asked::of(&head, user);
        let (response, why) = match self.answer(head, body).await {
            Ok(response) => (response, String::new()),
            Err(error) => {
                tracing::debug!(request = line, code = error.code, error = error.message, "refused");
                let why = error.message.clone();
                (error.into_response(), why)
            }
        };
        let (code, named) = (response.status().as_u16(), response.extensions().get());
        if let Some(record) = asked.record(new_uid, code, named, &why, Timestamp::now()) {
            self.parts.audit.write(record).await;
        }
        response
    }

    async fn answer(&self, head: Head, body: Body) -> Result<Response, ApiError> {
        let path = head.uri.path().to_owned();
        match path.as_str() {
            "/healthz" | "/livez" => return Ok("ok".into_response()),
            "/readyz" => return self.ready(),
            "/version" | "/version/" => return Ok(json_response(200, &discovery::version())),
            "/edgewire/v1/enroll" => return self.edgewire(head, body, false).await,
            _ => {}
        }
        let user = auth::authenticate(&self.tokens, &head.headers)?;
        if head.method != Method::GET {
            tracing::debug!(user, method = %head.method, path, "asked");
        }
        if path.starts_with("/edgewire/") {
            return self.edgewire(head, body, true).await;
        }
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let aggregated =
            head.headers.get("accept").and_then(|v| v.to_str().ok()).is_some_and(|accept| {
                accept.contains("as=APIGroupDiscoveryList") && accept.contains("v=v2;")
            });
        match parts.as_slice() {
            [""] => Ok(json_response(
                200,
                &json!({"paths": ["/api", "/api/v1", "/apis", "/healthz", "/livez", "/openapi/v2", "/openapi/v3", "/readyz", "/version"]}),
            )),
            ["api" | "apis"] if aggregated => {
                let mut response = json_response(200, &discovery::aggregated(parts == ["api"]));
                response
                    .headers_mut()
                    .insert("content-type", HeaderValue::from_static(discovery::AGGREGATED));
                Ok(response)
            }
            ["api"] => Ok(json_response(200, &discovery::core_versions())),
            ["apis"] => Ok(json_response(200, &discovery::group_list())),
            ["api", version] => found(discovery::resource_list("", version), &path),
            ["apis", group, version] => found(discovery::resource_list(group, version), &path),
            ["openapi", "v2"] => {
                let accept = head.headers.get("accept").and_then(|v| v.to_str().ok()).unwrap_or("");
                if !accept.contains("proto-openapi") {
                    return Ok(json_response(200, &openapi::v2()));
                }
                let mut response = Response::new(Body::from(protobuf::empty_openapi_v2()));
                response.headers_mut().insert("content-type", HeaderValue::from_static(openapi::V2_PROTOBUF));
                Ok(response)
            }
            ["openapi", "v3"] => Ok(json_response(200, &openapi::v3_index())),
            ["openapi", "v3", rest @ ..] => found(openapi::v3(&rest.join("/")), &path),
            ["api" | "apis", ..] => {
                let target = Target::parse(&path)?;
                let query = Query::parse(head.uri.query().unwrap_or(""));
                self.resource(Asked { target, query, head }, body).await
            }
            _ => Err(ApiError::new(404, "NotFound", format!("path {path:?} is not served"))),
        }
    }

    fn ready(&self) -> Result<Response, ApiError> {
        match self.caches.iter().find(|(_, cache)| !cache.is_started()) {
            None => Ok("ok".into_response()),
            Some((kind, _)) => Err(ApiError::unavailable(format!("{} are not read yet", kind.plural))),
        }
    }

    async fn resource(&self, asked: Asked, body: Body) -> Result<Response, ApiError> {
        let kind = asked.target.kind;
        let named = asked.target.name.is_some();
        let method = asked.head.method.clone();
        match (asked.target.subresource.as_str(), &method) {
            ("log", &Method::GET) => return self.logs(asked).await,
            ("exec", &Method::GET | &Method::POST) => return self.exec(asked).await,
            ("binding", &Method::POST) => return self.bind(asked, read_body(body).await?).await,
            ("" | "status" | "finalize", _) => {}
            _ => return Err(asked.not_allowed()),
        }
        let verb = match (&method, named) {
            (&Method::GET, _) if asked.query.flag("watch") => "watch",
            (&Method::GET, true) => "get",
            (&Method::GET, false) => "list",
            (&Method::POST, false) => "create",
            (&Method::PUT, true) => "update",
            (&Method::PATCH, true) => "patch",
            (&Method::DELETE, true) => "delete",
            (&Method::DELETE, false) => "deletecollection",
            _ => return Err(asked.not_allowed()),
        };
        let sub = kind.subresources.iter().find(|s| s.name == asked.target.subresource);
        if !sub.map_or(kind.allows(verb), |s| s.verbs.contains(&verb)) {
            return Err(asked.not_allowed());
        }
        match verb {
            "watch" => self.watch(asked).await,
            "get" => self.get(asked).await,
            "list" => self.list(asked).await,
            "create" => self.create(asked, read_body(body).await?).await,
            "update" => self.update(asked, read_body(body).await?).await,
            "patch" => self.patch(asked, read_body(body).await?).await,
            "delete" => self.delete(asked, read_body(body).await?).await,
            _ => self.delete_collection(asked, read_body(body).await?).await,
        }
    }
}

fn found(value: Option<Value>, path: &str) -> Result<Response, ApiError> {
    value.map(|v| json_response(200, &v)).ok_or_else(|| ApiError::not_served(&format!("path {path:?}")))
}

/// The whole body, bounded in size and time.
async fn read_body(body: Body) -> Result<Bytes, ApiError> {
    let limited = http_body_util::Limited::new(body, BODY_MAX_BYTES);
    match tokio::time::timeout(BODY_TIMEOUT, limited.collect()).await {
        Err(_) => Err(ApiError::new(408, "Timeout", "the request body did not arrive in time")),
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            Err(ApiError::too_large(BODY_MAX_BYTES))
        }
        Ok(Err(error)) => Err(ApiError::bad_request(format!("the request body broke off: {error}"))),
    }
}

/// A JSON body by its `Content-Type`.
fn json_body(asked: &Asked, body: &[u8]) -> Result<Value, ApiError> {
    let media = asked.header("content-type").split(';').next().unwrap_or("").trim().to_owned();
    if media == protobuf::MEDIA {
        return protobuf::to_json(body).map_err(|why| match why {
            protobuf::Refused::Broken => ApiError::bad_request("the request body is not valid protobuf"),
            protobuf::Refused::Kind(kind) => {
                ApiError::media_type(format!("{kind:?} is read as JSON only: send application/json"))
            }
        });
    }
    if !matches!(media.as_str(), "" | "application/json") {
        return Err(ApiError::media_type(format!(
            "the body of the request was in an unknown format - accepted media types include: application/json, application/vnd.kubernetes.protobuf; got {media:?}"
        )));
    }
    serde_json::from_slice(body)
        .map_err(|error| ApiError::bad_request(format!("the request body is not valid JSON: {error}")))
}
