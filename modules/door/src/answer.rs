//! One request from its head to its answer: who asks, what is meant, is there room, and then the bus.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bus::guest::{Guest, Guests};
use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Body, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Request, Response, StatusCode};
use schemas::MESSAGE_MAX_BYTES;
use schemas::command::Refusal;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::captures::Captures;
use crate::events;
use crate::headers::{inward, outward};
use crate::listening::Listening;
use crate::login::login;
use crate::route::{Asked, route};
use crate::tally::{Taken, Tally};
use crate::{openapi, refusal};

/// Requests at once (readers of events not counted) ...
pub const REQUESTS_MAX: usize = 512;
/// ... and of one user.
pub const REQUESTS_PER_USER_MAX: usize = 64;
/// Readers of events at once ...
pub const READERS_MAX: usize = 256;
/// ... and of one user.
pub const READERS_PER_USER_MAX: usize = 16;
/// Bytes of bodies that are held at once ...
pub const BODIES_MAX_BYTES: usize = 64 * 1024 * 1024;
/// ... and of one user's.
pub const BODIES_PER_USER_MAX_BYTES: usize = 24 * 1024 * 1024;
/// A body has to arrive within so long.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a stream may take to acknowledge.
const ACK_TIMEOUT: Duration = Duration::from_secs(5);

/// The body of an answer.
pub type Answer = UnsyncBoxBody<Bytes, Infallible>;

/// What all requests share.
pub struct Door {
    pub(crate) guests: Arc<Guests>,
    pub(crate) listening: Arc<Listening>,
    pub(crate) readers: Arc<Tally>,
    pub(crate) tellers: TaskTracker,
    pub(crate) stop: CancellationToken,
    captures: Arc<Captures>,
    requests: Arc<Tally>,
    bodies: Arc<Tally>,
}

/// The connection that a request came on.
#[derive(Clone)]
pub struct Line {
    /// Whose it is.
    pub from: IpAddr,
    /// Cancelled, it is broken off.
    pub cut: CancellationToken,
}

/// An answer in JSON.
pub fn json(status: u16, body: &Value) -> Response<Answer> {
    let mut response = Response::new(Full::new(Bytes::from(format!("{body}\n"))).boxed_unsync());
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

impl Door {
    /// A door to the server of those guests. It closes with `stop`.
    pub fn new(guests: Arc<Guests>, captures: Captures, stop: CancellationToken) -> Arc<Self> {
        let captures = Arc::new(captures);
        Arc::new(Self {
            listening: Listening::new(guests.clone(), captures.clone(), stop.clone()),
            guests,
            captures,
            requests: Tally::new(REQUESTS_MAX, REQUESTS_PER_USER_MAX),
            tellers: TaskTracker::new(),
            readers: Tally::new(READERS_MAX, READERS_PER_USER_MAX),
            bodies: Tally::new(BODIES_MAX_BYTES, BODIES_PER_USER_MAX_BYTES),
            stop,
        })
    }

    /// Answers one request.
    pub async fn answer(&self, request: Request<Incoming>, line: Line) -> Response<Answer> {
        match self.serve(request, line).await {
            Ok(response) => response,
            Err(refusal) => {
                tracing::debug!(%refusal, "refused at the door");
                refusal::answer(&refusal)
            }
        }
    }

    async fn serve(&self, request: Request<Incoming>, line: Line) -> Result<Response<Answer>, Refusal> {
        let asked = route(request.method(), request.uri().path(), request.uri().query())?;
        match &asked {
            Asked::Health => return Ok(json(200, &json!({"status": "ok"}))),
            Asked::Description => return Ok(json(200, &openapi::document())),
            _ => {}
        }
        let pass = login(request.headers())?;
        let who = pass.user.clone();
        if let Asked::Subscribe { filter } = asked {
            let place = self.readers.take(&who, 1).ok_or_else(|| {
                let bound = "subscriptions are read by this login, or in all";
                refusal::busy(&format!("{READERS_PER_USER_MAX} {bound} {READERS_MAX}; end one"))
            })?;
            let guest = self.enter(&pass, line.from).await?;
            return events::tell(self, &guest, &filter, request.headers(), line, place).await;
        }
        let _place = self.requests.take(&who, 1).ok_or_else(|| {
            let bound = "requests of this login are under way, or in all";
            refusal::busy(&format!("{REQUESTS_PER_USER_MAX} {bound} {REQUESTS_MAX}; wait for one of them"))
        })?;
        let guest = self.enter(&pass, line.from).await?;
        let headers = inward(request.headers())?;
        let (body, _held) = self.body(&who, request.into_body()).await?;
        match asked {
            Asked::Request { subject, timeout } => {
                let answer = guest.ask(&subject, &headers, body, timeout).await;
                let answer = answer.map_err(|error| refusal::of_guest(&error))?;
                let mut response = Response::new(Full::new(answer.payload).boxed_unsync());
                response.headers_mut().extend(outward(&answer.headers));
                Ok(response)
            }
            Asked::Publish { subject } if self.captures.is_stored(&subject).await => {
                let stored = guest.store(&subject, &headers, body, ACK_TIMEOUT).await;
                let stored = stored.map_err(|error| refusal::of_store(&error))?;
                let (seq, duplicate) = (stored.sequence, stored.duplicate);
                Ok(json(200, &json!({"stream": stored.stream, "seq": seq, "duplicate": duplicate})))
            }
            Asked::Publish { subject } => {
                let said = guest.publish(&subject, &headers, body).await;
                said.map_err(|error| refusal::of_guest(&error))?;
                let mut response = Response::new(Empty::new().boxed_unsync());
                *response.status_mut() = StatusCode::ACCEPTED;
                Ok(response)
            }
            Asked::Health | Asked::Description | Asked::Subscribe { .. } => {
                Err(Refusal::new(404, "EW-HTTP-PATH", "this is answered elsewhere"))
            }
        }
    }

    async fn enter(&self, pass: &bus::guest::Pass, from: IpAddr) -> Result<Arc<Guest>, Refusal> {
        self.guests.enter(pass, from).await.map_err(|error| refusal::of_enter(&error))
    }

    /// Reads a body, within the bounds of one and of all that are held.
    async fn body(&self, who: &str, mut body: Incoming) -> Result<(Bytes, Taken), Refusal> {
        let told = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
        if told > MESSAGE_MAX_BYTES {
            return Err(refusal::too_large());
        }
        let full = || {
            let mib = BODIES_PER_USER_MAX_BYTES / (1024 * 1024);
            refusal::busy(&format!("this login has {mib} MiB of messages on the way; wait for some of them"))
        };
        let mut held = self.bodies.take(who, told).ok_or_else(full)?;
        let mut room = told;
        let (mut first, mut rest) = (Bytes::new(), BytesMut::new());
        let reading = async {
            while let Some(frame) = body.frame().await {
                let broken =
                    |error| Refusal::new(400, "EW-HTTP-BODY", format!("the body broke off: {error}"));
                let Ok(data) = frame.map_err(broken)?.into_data() else { continue };
                let length = first.len() + rest.len() + data.len();
                if length > MESSAGE_MAX_BYTES {
                    return Err(refusal::too_large());
                }
                if length > room {
                    if !held.more(length - room) {
                        return Err(full());
                    }
                    room = length;
                }
                // Most bodies come in one piece, which is passed on as it is.
                if first.is_empty() && rest.is_empty() {
                    first = data;
                } else {
                    if rest.is_empty() {
                        rest.reserve(room);
                        rest.put(std::mem::take(&mut first));
                    }
                    rest.put(data);
                }
            }
            Ok(if rest.is_empty() { first } else { rest.freeze() })
        };
        let late = || {
            let message =
                format!("the body did not arrive within {} s; send it faster", BODY_TIMEOUT.as_secs());
            Refusal::new(408, "EW-HTTP-BODY", message)
        };
        let body = tokio::time::timeout(BODY_TIMEOUT, reading).await.map_err(|_| late())??;
        Ok((body, held))
    }
}
