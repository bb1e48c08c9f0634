//! The REST entry: `https://HUB:9443/<node>/<namespace>/<path>` becomes a message or a call on that node.
//!
//! Any method; KubeEdge's paths. The longest path of a rule of that namespace that the call begins with is meant, and what is
//! beyond it is appended to the rule's topic or path. Who calls waits for what the node says; a node that is away is told at
//! once. Authorization and `edgewire-` headers are the hub's and go no further.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use bus::connection::Bus;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use rustls::server::ResolvesServerCert;
use schemas::command::Refusal;
use schemas::envelope::Headers;
use schemas::name::NodeName;
use schemas::routing::{BODY_MAX_BYTES, Deliver, Delivered, Destination};
use schemas::topic_map::subject_of;
use serde_json::json;
use tokio::sync::{mpsc, watch};

use super::Done;
use super::presence::Presence;
use super::rim::Following;
use crate::caller::{CALL_TIMEOUT, passed};
use crate::listener::Answer;
use crate::table::{Route, To, givable};
use crate::work::Made;
use crate::{DELIVER, NAME};

/// The largest body of a call: KubeEdge's. What a node is sent has the link's bound besides.
pub const REST_MAX_BYTES: usize = 12 * 1024 * 1024;
/// So much of a body that is too large is read on, for the sake of the answer.
const THROWN_AWAY_MAX_BYTES: usize = 64 * 1024 * 1024;
/// A body has to arrive within so long.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// The node has so much more than a call for its answer.
const NODE_TIMEOUT: Duration = CALL_TIMEOUT.saturating_add(Duration::from_secs(10));
/// What a message that was published is answered with, as KubeEdge does.
const PUBLISHED: &str = "message delivered";
/// What a message is answered with that the rule's filter does not want.
const UNWANTED: &str = "message not wanted: the rule's filter does not hold for it";

/// Who may call: the user behind a request's headers.
pub type Authorize = Arc<dyn Fn(&HeaderMap) -> Result<String, Refusal> + Send + Sync>;

/// How the REST entry is served.
#[derive(Clone)]
pub struct Rest {
    /// Where; nowhere when there is none.
    pub listen: Option<SocketAddr>,
    /// What it shows.
    pub certificate: Arc<dyn ResolvesServerCert>,
    /// Who may call.
    pub authorize: Authorize,
}

/// What answers.
pub(super) struct RestEntry {
    pub authorize: Authorize,
    pub bus: Bus,
    pub presence: Arc<Presence>,
    pub following: watch::Receiver<Following>,
    pub tell: mpsc::Sender<Done>,
}

/// What a node is asked for a call.
struct Asked {
    node: NodeName,
    deliver: Deliver,
}

impl RestEntry {
    async fn handle(&self, request: Request<Body>) -> Result<Response<Body>, Refusal> {
        (self.authorize)(request.headers())?;
        let (parts, body) = request.into_parts();
        let (node, namespace, path) = target(parts.uri.path())?;
        let table = self.following.borrow().table.clone();
        let (route, beyond) = table.rest(&namespace, &path).ok_or_else(|| {
            let text = format!("no rule of namespace {namespace:?} has a path that /{path} begins with");
            Refusal::new(404, "EW-RULE-NOT-FOUND", text)
        })?;
        let body = read(body).await?;
        let onward = onward(&parts.headers);
        // Of these, too: an expression must not carry a caller's token on.
        let headers: Headers = onward.iter().cloned().collect();
        let body = match route.make(&body, &format!("/{path}"), &headers) {
            Ok(Made::Message(body)) => body,
            Ok(Made::Unwanted) => return Ok(text(StatusCode::OK, UNWANTED)),
            Err(why) => {
                self.count(route, Err(why.clone())).await;
                return Err(Refusal::new(
                    422,
                    "EW-RULE-EXPRESSION",
                    format!("rule {}: {why}", route.display()),
                ));
            }
        };
        if body.len() > BODY_MAX_BYTES {
            let text =
                format!("the link to a node carries at most {BODY_MAX_BYTES} bytes, this has {}", body.len());
            return Err(Refusal::new(413, "EW-PAYLOAD-TOO-LARGE", text));
        }
        let method = parts.method.as_str().to_owned();
        let to = destination(route, &beyond, parts.uri.query(), method)?;
        let headers = match to {
            Destination::Call { .. } => onward,
            Destination::Publish { .. } => Vec::new(),
        };
        let asked = Asked { node, deliver: Deliver { to, headers, body } };
        let published = matches!(asked.deliver.to, Destination::Publish { .. });
        let answer = self.ask(&asked).await;
        self.count(route, answer.as_ref().map(drop).map_err(ToString::to_string)).await;
        let answer = answer?;
        Ok(if published { text(StatusCode::OK, PUBLISHED) } else { response(answer) })
    }

    /// Asks the node, for as long as it is there.
    async fn ask(&self, asked: &Asked) -> Result<Delivered, Refusal> {
        let node = &asked.node;
        let away = |what: &str| {
            let text =
                format!("node {node} is away: {what}; see `edgewire nodes`, and try again when it is back");
            Refusal::new(503, "EW-NODE-AWAY", text)
        };
        if self.presence.until(node).is_none() {
            return Err(away("nothing was sent to it"));
        }
        tokio::select! {
            answer = bus::command::ask(&self.bus, node, NAME, DELIVER, &asked.deliver, NODE_TIMEOUT) => answer,
            () = self.presence.gone(node) => Err(away("it went before it answered, and may have the message or not")),
        }
    }

    async fn count(&self, route: &Route, outcome: Result<(), String>) {
        let counted = Done::Counted { uid: route.uid.clone(), message: None, outcome };
        // The module is being started again: the count is of no use then either.
        let _ = self.tell.send(counted).await;
    }
}

/// Node, namespace and the rest of `/<node>/<namespace>/<path>`.
fn target(path: &str) -> Result<(NodeName, String, String), Refusal> {
    let mut parts = path.trim_start_matches('/').splitn(3, '/');
    let bad = |why: &str| {
        Refusal::new(404, "EW-RULE-NOT-FOUND", format!("{path}: {why}; call /NODE/NAMESPACE/PATH"))
    };
    let node = NodeName::new(parts.next().unwrap_or("")).map_err(|error| bad(&error.to_string()))?;
    match (parts.next(), parts.next()) {
        (Some(namespace), Some(rest)) if !namespace.is_empty() => {
            Ok((node, namespace.to_owned(), rest.to_owned()))
        }
        _ => Err(bad("there is no namespace or path in it")),
    }
}

/// The body. What is too large is taken in and thrown away, within a bound: who is still writing does not hear an answer.
async fn read(mut body: Body) -> Result<Bytes, Refusal> {
    let (mut whole, mut taken) = (BytesMut::new(), 0_usize);
    let reading = async {
        while let Some(frame) = body.frame().await {
            let broken =
                |error| Refusal::new(400, "EW-BAD-REQUEST", format!("the body did not arrive: {error}"));
            let Ok(data) = frame.map_err(broken)?.into_data() else { continue };
            taken += data.len();
            if taken <= REST_MAX_BYTES {
                whole.extend_from_slice(&data);
            } else if taken > THROWN_AWAY_MAX_BYTES {
                break;
            }
        }
        Ok(())
    };
    match tokio::time::timeout(BODY_TIMEOUT, reading).await {
        Ok(Ok(())) if taken > REST_MAX_BYTES => {
            let text = format!("a call has at most {REST_MAX_BYTES} bytes");
            Err(Refusal::new(413, "EW-PAYLOAD-TOO-LARGE", text))
        }
        Ok(read) => read.map(|()| whole.freeze()),
        Err(_) => {
            let text = format!("the body did not arrive within {} s", BODY_TIMEOUT.as_secs());
            Err(Refusal::new(408, "EW-BAD-REQUEST", text))
        }
    }
}

/// A path that leads out of the rule's own: whoever reads URLs takes these segments for steps up, encoded or not.
fn leads_out(beyond: &str) -> bool {
    let step =
        |segment: &str| matches!(segment.to_ascii_lowercase().replace("%2e", ".").as_str(), "." | "..");
    beyond.contains(['\\', '\t']) || beyond.split('/').any(step)
}

/// Where on the node it goes: what is beyond the rule's path is appended.
fn destination(
    route: &Route,
    beyond: &str,
    query: Option<&str>,
    method: String,
) -> Result<Destination, Refusal> {
    let publish = |subject: String| {
        givable(&subject, &route.namespace).map_err(|why| Refusal::new(400, "EW-BAD-REQUEST", why))?;
        Ok(Destination::Publish { subject })
    };
    let appended = |own: &str, separator: char| match beyond {
        "" => own.to_owned(),
        beyond => format!("{}{separator}{beyond}", own.trim_end_matches(separator)),
    };
    if leads_out(beyond) {
        let text = format!("{beyond:?} leads out of the rule's path");
        return Err(Refusal::new(400, "EW-BAD-REQUEST", text));
    }
    match &route.to {
        To::Topic(topic) => {
            let topic = appended(topic, '/');
            if topic.contains(['+', '#']) {
                let text = format!("{topic:?} is not a topic that can be published to");
                return Err(Refusal::new(400, "EW-BAD-REQUEST", text));
            }
            publish(subject_of(&topic))
        }
        To::Subject(subject) => publish(subject.clone()),
        To::Service { port, path } => {
            let query = query.map(|query| format!("?{query}")).unwrap_or_default();
            Ok(Destination::Call { port: *port, method, path: format!("{}{query}", appended(path, '/')) })
        }
        To::Url(_) => Err(Refusal::new(500, "EW-INTERNAL", "a rule from rest to rest")),
    }
}

/// The headers that go on to a service.
fn onward(headers: &HeaderMap) -> Vec<(String, String)> {
    let ours = |name: &str| name == header::AUTHORIZATION.as_str() || name.starts_with("edgewire-");
    passed(headers).into_iter().filter(|(name, _)| !ours(name)).collect()
}

fn text(status: StatusCode, text: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response
}

fn response(answer: Delivered) -> Response<Body> {
    let mut response = Response::new(Body::from(answer.body));
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::BAD_GATEWAY);
    for (name, value) in answer.headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            response.headers_mut().append(name, value);
        }
    }
    response
}

fn refused(refusal: &Refusal) -> Response<Body> {
    let json = json!({"code": refusal.code, "message": refusal.message, "status": refusal.status});
    let mut response = Response::new(Body::from(json.to_string()));
    *response.status_mut() =
        StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

impl Answer for RestEntry {
    async fn answer(self: Arc<Self>, request: Request<Body>) -> Response<Body> {
        self.handle(request).await.unwrap_or_else(|refusal| refused(&refusal))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::From;

    fn route(to: To) -> Route {
        let from = From::Rest(vec![Some("a".into())]);
        let (namespace, name, uid) = ("default".into(), "r".into(), "u".into());
        Route { namespace, name, uid, from, to, filter: None, map: None }
    }

    #[test]
    fn what_is_beyond_the_rules_path_is_appended_and_never_leads_out() {
        let service = || To::Service { port: 1, path: "/target".into() };
        for (to, beyond, query, want) in [
            (To::Topic("test".into()), "", None, Some("test")),
            (To::Topic("test/".into()), "b/c", Some("q=1"), Some("test.b.c")),
            (To::Topic("test".into()), "+", None, None),
            (To::Topic("a".into()), "b*", None, None),
            (To::Subject("app.default.x".into()), "", None, Some("app.default.x")),
            (service(), "", None, Some("/target")),
            (service(), "x/y", Some("z=1"), Some("/target/x/y?z=1")),
            (service(), "../admin", None, None),
            (service(), "x/%2E%2e/admin", None, None),
            (service(), "..\\admin", None, None),
            (service(), "...", None, Some("/target/...")),
            (To::Url("http://a".into()), "", None, None),
        ] {
            let found = destination(&route(to.clone()), beyond, query, "PUT".into()).ok();
            let found = found.map(|destination| match destination {
                Destination::Publish { subject } => subject,
                Destination::Call { path, .. } => path,
            });
            assert_eq!(found.as_deref(), want, "{to:?} {beyond}");
        }
    }

    #[test]
    fn a_path_names_node_and_namespace() {
        let of = |path: &str| {
            target(path).ok().map(|(node, namespace, rest)| format!("{node} {namespace} {rest}"))
        };
        for (path, want) in [
            ("/n1/default/a/b", Some("n1 default a/b")),
            ("/n1/default/", Some("n1 default ")),
            ("/n1/default", None),
            ("/n1//a", None),
            ("/N_1/default/a", None),
            ("/", None),
        ] {
            assert_eq!(of(path).as_deref(), want, "{path}");
        }
    }

    #[test]
    fn a_callers_token_goes_no_further() {
        let mut headers = HeaderMap::new();
        for (name, value) in
            [("authorization", "Bearer t"), ("edgewire-x", "y"), ("x-mine", "z"), ("host", "h")]
        {
            headers.insert(name, HeaderValue::from_static(value));
        }
        assert_eq!(onward(&headers), [("x-mine".to_owned(), "z".to_owned())]);
    }
}
