//! Dead letters: what could not be read, applied or delivered, kept with its reason, for people.

use std::time::Duration;

use async_nats::HeaderMap;
use schemas::envelope::header;
use schemas::subject;

use crate::connection::Bus;
use crate::link::LinkError;

/// A dead letter is on disk within this, or the caller is told that it is not.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// Of a reason, so much is kept.
const REASON_CHARS_MAX: usize = 500;

/// Where a module's dead letter goes, and its headers.
pub(crate) fn addressed(module: &str, subject: &str, reason: &str) -> (String, HeaderMap) {
    let mut headers = HeaderMap::new();
    headers.insert(header::DEAD_REASON, one_line(reason, REASON_CHARS_MAX).as_str());
    headers.insert(header::DEAD_SUBJECT, one_line(subject, subject.len()).as_str());
    (subject::dead(module), headers)
}

/// Keeps what came on `subject`; it is on disk when this returns. For a rim that acknowledges afterwards; decisions use
/// [`crate::module::Effect::Dead`].
pub async fn write(
    bus: &Bus,
    module: &str,
    subject: &str,
    payload: bytes::Bytes,
    reason: &str,
) -> Result<(), LinkError> {
    let lost = |cause: &dyn ToString| LinkError::Lost(cause.to_string());
    let (to, headers) = addressed(module, subject, reason);
    let written = async {
        let sent = bus.jetstream.publish_with_headers(to, headers, payload).await;
        sent.map_err(|error| lost(&error))?.await.map_err(|error| lost(&error))
    };
    let written = tokio::time::timeout(WRITE_TIMEOUT, written).await;
    written.map_err(|_| lost(&"no acknowledgement in time"))?.map(drop)
}

/// Text as a header may hold it.
fn one_line(text: &str, chars_max: usize) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(chars_max).collect()
}
