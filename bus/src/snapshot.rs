//! A stream's whole content as bytes, and back: JetStream's own snapshot of a running stream, with its consumers.
//!
//! The server sends chunks to an inbox of ours, each with a reply subject, and at most 16 MiB that are not answered yet;
//! an empty message is the end. Back, each chunk is a request to a subject that the server names, and an empty one is the
//! end. The bytes are a tar in S2 form: the server's business, not ours.
//!
//! A snapshot of a stream that is written to meanwhile holds at least what stood in it when it began (measured, see
//! `bus/tests/snapshot.rs`).

use std::io::{Read, Write};
use std::time::Duration;

use async_nats::connection::State;
use bytes::Bytes;
use futures::StreamExt;
use serde_json::{Value, json};

use crate::connection::Bus;
use crate::identity::Permissions;
use schemas::subject;

/// Bytes of a chunk that we send; the server sends 128 KiB.
const CHUNK_BYTES: usize = 128 * 1024;
/// No chunk for so long, and the server is taken for gone.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// The server reads the whole stream before it answers the last chunk.
const FINISH_TIMEOUT: Duration = Duration::from_secs(300);
/// How often the connection is looked at while nothing comes.
const LOOK: Duration = Duration::from_millis(200);

/// Why a stream could not be taken or put back.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The server said no.
    #[error("the server refuses stream {stream}: {cause}")]
    Refused {
        /// Which.
        stream: String,
        /// Its words.
        cause: String,
    },
    /// The server went away in between.
    #[error("stream {stream}: the server went away ({cause})")]
    Lost {
        /// Which.
        stream: String,
        /// What was seen of it.
        cause: String,
    },
    /// The file at our end.
    #[error("stream {stream}: {source}")]
    Io {
        /// Which.
        stream: String,
        /// The cause.
        source: std::io::Error,
    },
}

/// What the server said of a stream when its snapshot began. Given back to it word for word when it is restored.
#[derive(Debug, Clone, PartialEq)]
pub struct Taken {
    /// The stream's settings.
    pub config: Value,
    /// Its sequences and counts.
    pub state: Value,
}

/// What taking snapshots needs.
pub fn permissions_to_take(owner: &str) -> Permissions {
    Permissions {
        publish_allow: vec![api("STREAM.SNAPSHOT.*"), "$JS.SNAPSHOT.ACK.>".to_owned()],
        subscribe_allow: vec![inbox(owner)],
    }
}

/// What putting them back needs.
pub fn permissions_to_restore(owner: &str) -> Permissions {
    Permissions {
        publish_allow: vec![api("STREAM.RESTORE.*"), "$JS.SNAPSHOT.RESTORE.>".to_owned()],
        subscribe_allow: vec![inbox(owner)],
    }
}

fn api(verb: &str) -> String {
    format!("$JS.{}.API.{verb}", subject::DOMAIN_HUB)
}

fn inbox(owner: &str) -> String {
    format!("{}.>", subject::module_inbox(subject::DOMAIN_HUB, owner))
}

/// Writes the stream's content to `sink`, with its consumers. `progress` is told of each chunk's bytes.
pub async fn take(
    bus: &Bus,
    stream: &str,
    sink: &mut (dyn Write + Send),
    mut progress: impl FnMut(usize),
) -> Result<Taken, SnapshotError> {
    let lost = |cause: &dyn ToString| SnapshotError::Lost { stream: stream.to_owned(), cause: cause.to_string() };
    let inbox = bus.client.new_inbox();
    let mut chunks = bus.client.subscribe(inbox.clone()).await.map_err(|error| lost(&error))?;
    let ask = json!({"deliver_subject": inbox, "chunk_size": CHUNK_BYTES});
    let to = format!("$JS.{}.API.STREAM.SNAPSHOT.{stream}", bus.domain);
    let answer = bus.client.request(to, ask.to_string().into()).await.map_err(|error| lost(&error))?;
    let answer = answered(stream, &answer.payload)?;
    let field = |name: &str| answer.get(name).cloned().unwrap_or(Value::Null);
    let taken = Taken { config: field("config"), state: field("state") };
    loop {
        let Some(chunk) = next(bus, &mut chunks).await.map_err(|cause| lost(&cause))? else {
            return Err(lost(&"the subscription ended"));
        };
        if chunk.payload.is_empty() {
            // The end; with a status, if the server gave up (408: we were too slow, 500: its own disk).
            return match chunk.status.map(|status| status.as_u16()) {
                None | Some(204) => Ok(taken),
                Some(code) => {
                    let cause = format!("{code} {}", chunk.description.unwrap_or_default());
                    Err(SnapshotError::Refused { stream: stream.to_owned(), cause })
                }
            };
        }
        sink.write_all(&chunk.payload)
            .map_err(|source| SnapshotError::Io { stream: stream.to_owned(), source })?;
        progress(chunk.payload.len());
        if let Some(reply) = chunk.reply {
            bus.client.publish(reply, Bytes::new()).await.map_err(|error| lost(&error))?;
        }
    }
}

/// The next message; an error when the connection is lost or nothing comes.
async fn next(bus: &Bus, from: &mut async_nats::Subscriber) -> Result<Option<async_nats::Message>, String> {
    let deadline = tokio::time::Instant::now() + SILENCE_MAX;
    loop {
        if let Ok(message) = tokio::time::timeout(LOOK, from.next()).await {
            return Ok(message);
        }
        // What was under way on a lost connection does not go on after the next.
        if bus.client.connection_state() != State::Connected {
            return Err("the connection was lost".to_owned());
        }
        if tokio::time::Instant::now() > deadline {
            return Err(format!("it said nothing for {} s", SILENCE_MAX.as_secs()));
        }
    }
}

/// Makes the stream again from what [`take`] wrote. The server must not have one of that name. Gives its state then.
pub async fn restore(
    bus: &Bus,
    stream: &str,
    taken: &Taken,
    source: &mut (dyn Read + Send),
    mut progress: impl FnMut(usize),
) -> Result<Value, SnapshotError> {
    let lost = |cause: &dyn ToString| SnapshotError::Lost { stream: stream.to_owned(), cause: cause.to_string() };
    let ask = json!({"config": taken.config, "state": taken.state});
    let to = format!("$JS.{}.API.STREAM.RESTORE.{stream}", bus.domain);
    let answer = bus.client.request(to, ask.to_string().into()).await.map_err(|error| lost(&error))?;
    let answer = answered(stream, &answer.payload)?;
    let Some(to) = answer.get("deliver_subject").and_then(Value::as_str).map(str::to_owned) else {
        return Err(lost(&"it did not say where to send the content"));
    };
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let read = fill(source, &mut buffer)
            .map_err(|source| SnapshotError::Io { stream: stream.to_owned(), source })?;
        let chunk = Bytes::copy_from_slice(buffer.get(..read).unwrap_or_default());
        let timeout = if read == 0 { FINISH_TIMEOUT } else { SILENCE_MAX };
        let request = async_nats::Request::new().payload(chunk).timeout(Some(timeout));
        let answer = bus.client.send_request(to.clone(), request).await.map_err(|error| lost(&error))?;
        if read == 0 {
            let answer = answered(stream, &answer.payload)?;
            return Ok(answer.get("state").cloned().unwrap_or(Value::Null));
        }
        if !answer.payload.is_empty() {
            answered(stream, &answer.payload)?;
        }
        progress(read);
    }
}

/// Reads until the buffer is full or the source ends.
fn fill(source: &mut (dyn Read + Send), buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match source.read(rest) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn answered(stream: &str, payload: &[u8]) -> Result<Value, SnapshotError> {
    let refused = |cause: String| SnapshotError::Refused { stream: stream.to_owned(), cause };
    let answer: Value = serde_json::from_slice(payload)
        .map_err(|error| refused(format!("its answer cannot be read: {error}")))?;
    match answer.get("error") {
        None => Ok(answer),
        Some(error) => {
            let words = error.get("description").and_then(Value::as_str);
            Err(refused(words.map_or_else(|| error.to_string(), str::to_owned)))
        }
    }
}
