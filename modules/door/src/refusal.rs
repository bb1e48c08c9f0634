//! What somebody is told who does not get what was asked for: an HTTP status and `{"code": …, "message": …}`.

use bus::guest::{EnterError, GuestError};
use hyper::Response;
use hyper::header::{ALLOW, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use schemas::command::Refusal;
use serde_json::json;

use crate::answer::{Answer, json};
use crate::route::ROUTES;

/// The server's numbers for a stream that has no room.
const FULL: [u64; 3] = [10_077, 10_047, 10_023];
/// When it is worth to try again.
const RETRY_AFTER_S: HeaderValue = HeaderValue::from_static("1");
const CHALLENGE: HeaderValue = HeaderValue::from_static("Basic realm=\"edgewire\", charset=\"UTF-8\"");

/// A refusal as an answer.
pub fn answer(refusal: &Refusal) -> Response<Answer> {
    let mut response = json(refusal.status, &json!({"code": refusal.code, "message": refusal.message}));
    let headers = response.headers_mut();
    match refusal.status {
        401 => drop(headers.insert(WWW_AUTHENTICATE, CHALLENGE)),
        405 => {
            let allowed = ROUTES.iter().find(|(template, _)| refusal.message.contains(template));
            if let Some((_, method)) = allowed {
                headers.insert(ALLOW, HeaderValue::from_static(method));
            }
        }
        429 | 503 => drop(headers.insert(RETRY_AFTER, RETRY_AFTER_S)),
        _ => {}
    }
    response
}

/// Why a login does not get in.
pub fn of_enter(error: &EnterError) -> Refusal {
    match error {
        EnterError::Refused => {
            let message = format!("{error}; use user and password of BUS_HTTP_URL as the container has it");
            Refusal::new(401, "EW-HTTP-LOGIN", message)
        }
        EnterError::Unfit => {
            let message = format!("{error}; start the pod's containers again, they get another");
            Refusal::new(403, "EW-HTTP-LOGIN", message)
        }
        EnterError::Knocking => busy(&format!("{error}; correct it and try again in ten seconds")),
        EnterError::Full => busy(&format!("{error}; try again")),
        EnterError::Away(_) => away(&format!("{error}; nothing was said; try again")),
    }
}

/// Why a word was not taken, said live or asked.
pub fn of_guest(error: &GuestError) -> Refusal {
    match error {
        GuestError::Forbidden(_) => {
            let message = format!(
                "{error}; a pod has app., local., up. and bulk. of its namespace to say, app., local. and down. to hear"
            );
            Refusal::new(403, "EW-HTTP-FORBIDDEN", message)
        }
        GuestError::NoResponders(_) => {
            Refusal::new(503, "EW-NO-RESPONDERS", format!("{error}; try again when somebody listens"))
        }
        GuestError::Timeout { .. } => {
            let message = format!("{error}; somebody listens: ask again, or with a longer timeout=");
            Refusal::new(504, "EW-NO-ANSWER", message)
        }
        GuestError::TooLarge(_) => too_large(),
        GuestError::Busy => busy(&format!("{error}; wait for one of them")),
        GuestError::Lost => away(&format!("{error}; it may have been said; try again")),
        GuestError::NotStored { code, .. } if FULL.contains(code) => {
            let message = format!("{error}; nothing was dropped for it: keep the message and try again");
            Refusal::new(507, "EW-STORE-FULL", message)
        }
        GuestError::NotStored { .. } => {
            Refusal::new(503, "EW-NOT-STORED", format!("{error}; keep the message and try again"))
        }
        GuestError::NoAcknowledgement(_) => unknown(error),
    }
}

/// Why a message is not known to be stored.
pub fn of_store(error: &GuestError) -> Refusal {
    match error {
        GuestError::NoResponders(subject) => {
            let message = format!("no stream takes {subject} just now; keep the message and try again");
            Refusal::new(503, "EW-NOT-STORED", message)
        }
        GuestError::Timeout { .. } | GuestError::Lost => unknown(error),
        other => of_guest(other),
    }
}

fn unknown(error: &GuestError) -> Refusal {
    let message = format!(
        "{error}: whether it was stored is unknown; send it again with the same Nats-Msg-Id, it counts once"
    );
    Refusal::new(504, "EW-ACK-UNKNOWN", message)
}

/// Larger than a message may be.
pub fn too_large() -> Refusal {
    let message = format!(
        "a message has {} bytes at most, with its headers; send it in parts",
        schemas::MESSAGE_MAX_BYTES
    );
    Refusal::new(413, "EW-PAYLOAD-TOO-LARGE", message)
}

/// A bound was reached.
pub fn busy(message: &str) -> Refusal {
    Refusal::new(429, "EW-HTTP-BUSY", message)
}

/// The node's server is not there.
pub fn away(message: &str) -> Refusal {
    Refusal::new(503, "EW-HTTP-BUS-AWAY", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_status_and_a_code() {
        let subject = || "up.demo.t".to_owned();
        let not_stored = |code| GuestError::NotStored { code, description: "maximum bytes exceeded".into() };
        for (error, live, store) in [
            (GuestError::Forbidden(subject()), (403, "EW-HTTP-FORBIDDEN"), (403, "EW-HTTP-FORBIDDEN")),
            (GuestError::NoResponders(subject()), (503, "EW-NO-RESPONDERS"), (503, "EW-NOT-STORED")),
            (
                GuestError::Timeout { subject: subject(), timeout_ms: 5 },
                (504, "EW-NO-ANSWER"),
                (504, "EW-ACK-UNKNOWN"),
            ),
            (GuestError::Lost, (503, "EW-HTTP-BUS-AWAY"), (504, "EW-ACK-UNKNOWN")),
            (GuestError::Busy, (429, "EW-HTTP-BUSY"), (429, "EW-HTTP-BUSY")),
            (GuestError::TooLarge("x".into()), (413, "EW-PAYLOAD-TOO-LARGE"), (413, "EW-PAYLOAD-TOO-LARGE")),
            (not_stored(10_077), (507, "EW-STORE-FULL"), (507, "EW-STORE-FULL")),
            (not_stored(10_054), (503, "EW-NOT-STORED"), (503, "EW-NOT-STORED")),
            (GuestError::NoAcknowledgement(subject()), (504, "EW-ACK-UNKNOWN"), (504, "EW-ACK-UNKNOWN")),
        ] {
            for (refusal, want) in [(of_guest(&error), live), (of_store(&error), store)] {
                assert_eq!((refusal.status, refusal.code.as_str()), want, "{error}");
            }
        }
        let headers = |refusal: &Refusal| answer(refusal).headers().clone();
        assert!(headers(&of_enter(&EnterError::Refused)).contains_key(WWW_AUTHENTICATE));
        assert!(headers(&of_enter(&EnterError::Away("x".into()))).contains_key(RETRY_AFTER));
        let method = crate::route::route(&hyper::Method::GET, "/v1/pub/a.b", None).unwrap_err();
        assert_eq!(headers(&method).get(ALLOW).unwrap(), "POST");
    }
}
