//! An edge's side of the link to the hub, as its `sync` uses it: pulls bounded by bytes, atomic batches that end with
//! the lane's cursor, and reads of the node's own streams from a sequence on.
//!
//! Facts that this rests on (nats-server 2.15): a batch is all or nothing, and its last message's expected subject
//! sequence is checked with it; count-bounded pulls livelock a slow link, byte-bounded ones do not; a commit that is
//! refused names its true cause only on the message's own reply. Names of headers and calls: NATS ADR-50 (batch),
//! ADR-31 (direct get), ADR-13 (pull).

mod error;

use std::time::Duration;

use async_nats::StatusCode;
use async_nats::jetstream::stream::PersistenceMode;
use bytes::Bytes;
use futures::StreamExt;
use schemas::Timestamp;
use schemas::envelope::Headers;
use schemas::name::NodeName;
use schemas::subject;
use serde_json::json;

use crate::connection::{Bus, REQUEST_TIMEOUT, from_nats, to_nats};

pub use error::LinkError;

/// Messages in one batch: the server takes at most 1,000, the cursor among them. Each batch costs a sync at the hub, one of
/// the node's own memory and a trim of its stream, whatever it holds; on a slow link it is the bytes that bound it.
pub const BATCH_MESSAGES_MAX: usize = 900;
/// Entries of one pull.
pub const PULL_MESSAGES_MAX: usize = 200;
/// What an answer that can't come any more is told as.
const SERVER_RENEWED: &str = "the node's server was away";
/// So much of a server's ID tells its starts apart: it is a random key, in base 32.
const START_CHARS: usize = 16;
/// What the server says when the expected sequence does not fit: another committed first.
const WRONG_LAST_SEQUENCE: [u64; 2] = [10_071, 10_164];

pub(crate) fn lost(error: impl std::fmt::Display) -> LinkError {
    LinkError::Lost(error.to_string())
}

/// One entry pulled from the node's consumer on `desired`.
#[derive(Debug, Clone, PartialEq)]
pub struct Pulled {
    /// Key in the bucket `desired`.
    pub key: String,
    /// Revision: the stream's sequence.
    pub revision: u64,
    /// The value.
    pub payload: Vec<u8>,
    /// Where to acknowledge it.
    pub ack: String,
}

/// Takes from the node's consumer what is there, at most `max_bytes` (but one entry, however large); if nothing is, waits
/// `wait` for one. Any answer may take `patience`: a large entry on a slow link does. An empty answer says that there was
/// nothing. The time is that from the question to the last entry, for what was there; 0 for what was waited for. Not from
/// the first entry: they are written to the link together, so it holds them up together and they come at once.
///
/// Two kinds of request, and no third: one that takes what is there and is over at once, and one that waits for a single
/// entry and is over with it. A request for many that was left open takes entries into an inbox that nobody reads any more,
/// and they come again only after the acknowledgement's deadline (measured).
pub async fn pull(
    bus: &Bus,
    node: &NodeName,
    max_bytes: usize,
    wait: Duration,
    patience: Duration,
) -> Result<(Vec<Pulled>, Duration), LinkError> {
    let there = json!({"batch": PULL_MESSAGES_MAX, "max_bytes": max_bytes, "no_wait": true});
    let took = request(bus, node, &there, PULL_MESSAGES_MAX, patience).await?;
    if !took.0.is_empty() || wait.is_zero() {
        return Ok(took);
    }
    let one = json!({"batch": 1, "expires": u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX)});
    let (pulled, _) = request(bus, node, &one, 1, wait + patience).await?;
    Ok((pulled, Duration::ZERO))
}

/// One request to the node's consumer, until it is over: `most` entries came, or the server said so.
async fn request(
    bus: &Bus,
    node: &NodeName,
    body: &serde_json::Value,
    most: usize,
    silence: Duration,
) -> Result<(Vec<Pulled>, Duration), LinkError> {
    let stream = subject::bucket_stream(subject::BUCKET_DESIRED);
    let mut renewed = std::pin::pin!(bus.renewed());
    let inbox = bus.client.new_inbox();
    let mut answers = bus.client.subscribe(inbox.clone()).await.map_err(lost)?;
    let consumer = subject::desired_consumer(node);
    let to = format!("$JS.{}.API.CONSUMER.MSG.NEXT.{stream}.{consumer}", subject::DOMAIN_HUB);
    bus.client.publish_with_reply(to, inbox, body.to_string().into()).await.map_err(lost)?;
    let asked = tokio::time::Instant::now();
    let mut pulled: Vec<Pulled> = Vec::new();
    let mut took = Duration::ZERO;
    while pulled.len() < most {
        let next = tokio::select! {
            next = tokio::time::timeout(silence, answers.next()) => next,
            // What came is acknowledged in vain, or not; it comes again.
            () = &mut renewed => return Err(lost(SERVER_RENEWED)),
        };
        let message = match next {
            Ok(Some(message)) => message,
            // The request or its end was lost: what came is good.
            Err(_) if !pulled.is_empty() => break,
            Err(_) => return Err(lost("pull timed out")),
            Ok(None) => return Err(lost("the inbox ended")),
        };
        match message.status.map(|status| status.as_u16()) {
            // Over: nothing there, the wait is over, or the next entry does not fit into the bytes.
            Some(404 | 408) => break,
            Some(503) => return Err(lost("the hub's JetStream does not answer")),
            Some(409) => {
                let cause = message.description.unwrap_or_default();
                if pulled.is_empty() && !cause.contains("MaxBytes") {
                    return Err(LinkError::Refused { code: 409, cause });
                }
                break;
            }
            Some(100) => continue,
            _ => {}
        }
        // Not over when nothing more waits: an entry written just now would be lost in the inbox. The server says the end.
        let Some(entry) = pulled_of(message) else { continue };
        took = asked.elapsed();
        pulled.push(entry);
    }
    Ok((pulled, took))
}

/// The entry. Its revision stands in the acknowledgement's subject (NATS has two forms of it):
/// `$JS.ACK.[<domain>.<account>.]<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>[.<token>]`.
fn pulled_of(message: async_nats::Message) -> Option<Pulled> {
    let key = message.subject.strip_prefix(&format!("$KV.{}.", subject::BUCKET_DESIRED))?.to_owned();
    let ack = message.reply?.to_string();
    let tokens: Vec<&str> = ack.split('.').collect();
    let at = if tokens.len() > 9 { 7 } else { 5 };
    let revision = tokens.get(at)?.parse().ok()?;
    Some(Pulled { key, revision, payload: message.payload.to_vec(), ack })
}

/// Acknowledges what was pulled. Not confirmed: what is lost comes again.
pub async fn acknowledge(bus: &Bus, acks: &[String]) -> Result<(), LinkError> {
    for ack in acks {
        bus.client.publish(ack.clone(), Bytes::from_static(b"+ACK")).await.map_err(lost)?;
    }
    Ok(())
}

/// A stored message of one of the node's own streams.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// Its sequence.
    pub sequence: u64,
    /// Its subject.
    pub subject: String,
    /// Its headers.
    pub headers: Headers,
    /// Its body.
    pub payload: Bytes,
}

/// What a read of a stream brought.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Have {
    /// The messages.
    pub messages: Vec<Stored>,
    /// When there are none: none of the filter stands up to this sequence. 0 when that is not known.
    pub through: u64,
}

/// Reads from `stream` of the node's own server what matches `filter`, from `sequence` on: at most `max_bytes`, but at
/// least one if there is any.
pub async fn read(
    bus: &Bus,
    stream: &str,
    filter: &str,
    sequence: u64,
    max_bytes: usize,
) -> Result<Vec<Stored>, LinkError> {
    let from = json!({"seq": sequence.max(1), "next_by_subj": filter});
    let messages = direct(bus, &bus.domain, stream, from, max_bytes, REQUEST_TIMEOUT).await?;
    Ok(messages.into_iter().map(|found| found.message).collect())
}

/// As [`read`], from what was stored at `since` or later.
pub async fn read_since(
    bus: &Bus,
    stream: &str,
    filter: &str,
    since: Timestamp,
    max_bytes: usize,
) -> Result<Vec<Stored>, LinkError> {
    let from = json!({"start_time": since.rfc3339(), "next_by_subj": filter});
    let messages = direct(bus, &bus.domain, stream, from, max_bytes, REQUEST_TIMEOUT).await?;
    Ok(messages.into_iter().map(|found| found.message).collect())
}

/// A message as it was read, with what the server says of it.
pub(crate) struct Direct {
    pub message: Stored,
    /// When it was stored, in nanoseconds since the Unix epoch.
    pub at_ns: i64,
}

/// Reads from a stream of `domain`. Of an answer that breaks off what came is good: it is in order.
pub(crate) async fn direct(
    bus: &Bus,
    domain: &str,
    stream: &str,
    mut body: serde_json::Value,
    max_bytes: usize,
    patience: Duration,
) -> Result<Vec<Direct>, LinkError> {
    let mut renewed = std::pin::pin!(bus.renewed());
    let inbox = bus.client.new_inbox();
    let mut answers = bus.client.subscribe(inbox.clone()).await.map_err(lost)?;
    if let serde_json::Value::Object(fields) = &mut body {
        fields.insert("batch".to_owned(), json!(BATCH_MESSAGES_MAX));
        fields.insert("max_bytes".to_owned(), json!(max_bytes));
    }
    let to = format!("$JS.{domain}.API.DIRECT.GET.{stream}");
    bus.client.publish_with_reply(to, inbox, body.to_string().into()).await.map_err(lost)?;
    let mut stored = Vec::new();
    loop {
        let next = tokio::select! {
            next = tokio::time::timeout(patience, answers.next()) => next,
            () = &mut renewed => return Err(lost(SERVER_RENEWED)),
        };
        let message = match next {
            Ok(Some(message)) => message,
            _ if !stored.is_empty() => return Ok(stored),
            _ => return Err(lost(format!("reading {stream} timed out"))),
        };
        match message.status.map(|status| status.as_u16()) {
            Some(204 | 404) => return Ok(stored),
            Some(503) => return Err(lost(format!("stream {stream} is not there"))),
            Some(code) if code >= 400 => {
                let cause = message.description.unwrap_or_default();
                return Err(LinkError::Refused { code: u64::from(code), cause });
            }
            _ => {}
        }
        let said = |name: &str| said_by_server(message.headers.as_ref(), name);
        let sequence = said("Nats-Sequence").and_then(|text| text.parse().ok());
        let at_ns = said("Nats-Time-Stamp").and_then(schemas::downlink::at_ns).unwrap_or_default();
        let (Some(sequence), Some(subject)) = (sequence, said("Nats-Subject").map(str::to_owned)) else {
            continue;
        };
        let is_last = said("Nats-Num-Pending") == Some("0");
        let mut headers = from_nats(message.headers.as_ref());
        headers.retain(|name, _| !name.starts_with("Nats-"));
        let message = Stored { sequence, subject, headers, payload: message.payload };
        stored.push(Direct { message, at_ns });
        if is_last {
            return Ok(stored);
        }
    }
}

/// A header that the server gave a stored message. It stands behind those of the sender, who may have written one of the same
/// name: the first would be his word for where the message stands and what its subject is.
fn said_by_server<'a>(headers: Option<&'a async_nats::HeaderMap>, name: &str) -> Option<&'a str> {
    headers?.get_last(name).map(async_nats::HeaderValue::as_str)
}

/// First and last sequence of one of the node's own streams, and when it was made (its generation).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamState {
    /// Changes when the stream is another one.
    pub generation: String,
    /// First sequence that is there.
    pub first_sequence: u64,
    /// Last sequence that was given.
    pub last_sequence: u64,
    /// Messages in it.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Its bound.
    pub bytes_max: u64,
}

/// State of one of the node's own streams.
pub async fn state(bus: &Bus, stream: &str) -> Result<StreamState, LinkError> {
    let stream = bus.jetstream.get_stream(stream).await.map_err(lost)?;
    let info = stream.cached_info();
    let mut generation = info.created.unix_timestamp_nanos().to_string();
    if info.config.persist_mode == Some(PersistenceMode::Async) {
        // A server that falls may lose the last of it and give its numbers again: what was counted before says nothing of
        // what comes after.
        let start: String = bus.client.server_info().server_id.chars().take(START_CHARS).collect();
        generation = format!("{generation}-{start}");
    }
    Ok(StreamState {
        generation,
        first_sequence: info.state.first_sequence,
        last_sequence: info.state.last_sequence,
        messages: info.state.messages,
        bytes: info.state.bytes,
        bytes_max: u64::try_from(info.config.max_bytes).unwrap_or(u64::MAX),
    })
}

/// Drops from one of this server's own streams what matches `filter` (`None`: all), up to and with `sequence`. Says how many
/// went. With a filter the server takes out one message after the other, and nobody reads meanwhile (measured).
pub async fn trim(bus: &Bus, stream: &str, filter: Option<&str>, sequence: u64) -> Result<u64, LinkError> {
    let stream = bus.jetstream.get_stream_no_info(stream).await.map_err(lost)?;
    let purge = stream.purge().sequence(sequence + 1);
    let purged = match filter {
        Some(filter) => purge.filter(filter).await,
        None => purge.await,
    };
    Ok(purged.map_err(lost)?.purged)
}

/// The cursor of a lane at the hub: its revision there (0: there is none) and its value.
pub async fn cursor(
    bus: &Bus,
    stream: &str,
    cursor_subject: &str,
) -> Result<Option<(u64, Vec<u8>)>, LinkError> {
    cursor_in(bus, subject::DOMAIN_HUB, stream, cursor_subject).await
}

/// The same in `domain`.
pub(crate) async fn cursor_in(
    bus: &Bus,
    domain: &str,
    stream: &str,
    cursor_subject: &str,
) -> Result<Option<(u64, Vec<u8>)>, LinkError> {
    let to = format!("$JS.{domain}.API.DIRECT.GET.{stream}.{cursor_subject}");
    let answer = bus.client.request(to, Bytes::new()).await.map_err(lost)?;
    match answer.status.map(|status| status.as_u16()) {
        Some(404) => Ok(None),
        Some(code) if code >= 400 => Err(lost(answer.description.unwrap_or_default())),
        _ => {
            let revision = said_by_server(answer.headers.as_ref(), "Nats-Sequence");
            let revision = revision.and_then(|text| text.parse().ok());
            let revision = revision.ok_or_else(|| lost("a cursor without its sequence"))?;
            Ok(Some((revision, answer.payload.to_vec())))
        }
    }
}

/// A message to raise to the hub.
#[derive(Debug, Clone, PartialEq)]
pub struct Raise {
    /// Its subject at the hub.
    pub subject: String,
    /// Its headers.
    pub headers: Headers,
    /// Its body.
    pub payload: Bytes,
}

/// Commits messages and the cursor in one atomic batch: all or nothing, and only if the cursor is still at
/// `expect_revision` (0: there is none yet). Gives the cursor's new revision. An answer may take `patience`; without one
/// the batch may have been taken or not: the cursor tells.
pub async fn commit(
    bus: &Bus,
    messages: &[Raise],
    cursor: &Raise,
    expect_revision: u64,
    patience: Duration,
) -> Result<u64, LinkError> {
    let renewed = bus.renewed();
    let id = bus.client.new_inbox();
    let id = id.rsplit('.').next().unwrap_or(&id); // random and short: the server takes 64 bytes
    let mut errors = None;
    for (position, message) in (1u64..).zip(messages) {
        let mut headers = to_nats(&message.headers);
        headers.insert("Nats-Batch-Id", id);
        headers.insert("Nats-Batch-Sequence", position.to_string().as_str());
        let (to, body) = (message.subject.clone(), message.payload.clone());
        if position == 1 {
            // A reply on the first message: the server answers it empty, or with the true error.
            let inbox = bus.client.new_inbox();
            errors = Some(bus.client.subscribe(inbox.clone()).await.map_err(lost)?);
            bus.client.publish_with_reply_and_headers(to, inbox, headers, body).await.map_err(lost)?;
        } else {
            bus.client.publish_with_headers(to, headers, body).await.map_err(lost)?;
        }
    }
    let mut headers = to_nats(&cursor.headers);
    headers.insert("Nats-Batch-Id", id);
    headers.insert("Nats-Batch-Sequence", (messages.len() + 1).to_string().as_str());
    headers.insert("Nats-Batch-Commit", "1");
    headers.insert("Nats-Expected-Last-Subject-Sequence", expect_revision.to_string().as_str());
    let inbox = bus.client.new_inbox();
    let mut acks = bus.client.subscribe(inbox.clone()).await.map_err(lost)?;
    bus.client
        .publish_with_reply_and_headers(cursor.subject.clone(), inbox, headers, cursor.payload.clone())
        .await
        .map_err(lost)?;
    let answer = tokio::select! {
        answer = tokio::time::timeout(patience, acks.next()) => answer,
        () = renewed => return Err(lost(SERVER_RENEWED)),
    };
    let Ok(Some(answer)) = answer else { return Err(lost("the commit was not answered")) };
    if answer.status == Some(StatusCode::NO_RESPONDERS) {
        return Err(lost("nobody at the hub takes the batch"));
    }
    match outcome(&answer.payload) {
        Err(refused @ LinkError::Refused { .. }) => {
            let first = match errors.as_mut() {
                Some(errors) => tokio::time::timeout(Duration::from_millis(500), errors.next()).await,
                None => Ok(None),
            };
            match first {
                Ok(Some(first)) if !first.payload.is_empty() => {
                    Err(outcome(&first.payload).err().unwrap_or(refused))
                }
                _ => Err(refused),
            }
        }
        other => other,
    }
}

fn outcome(payload: &[u8]) -> Result<u64, LinkError> {
    let answer: serde_json::Value = serde_json::from_slice(payload).map_err(lost)?;
    if let Some(error) = answer.get("error") {
        let code = error.get("err_code").and_then(serde_json::Value::as_u64).unwrap_or(0);
        return Err(if WRONG_LAST_SEQUENCE.contains(&code) {
            LinkError::CursorMoved
        } else {
            LinkError::Refused { code, cause: error.to_string() }
        });
    }
    answer
        .get("seq")
        .and_then(serde_json::Value::as_u64)
        .ok_or_else(|| lost("an acknowledgement without a sequence"))
}

/// Wakes whenever something new may stand in a stream of the node's own server: follows its subjects live.
pub async fn arrivals(bus: &Bus, filter: &str) -> Result<async_nats::Subscriber, LinkError> {
    bus.client.subscribe(filter.to_owned()).await.map_err(lost)
}

/// The hub's side: makes the consumer through which a node pulls.
pub async fn ensure_consumer(bus: &Bus, node: &NodeName) -> Result<(), LinkError> {
    use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
    let stream = bus
        .jetstream
        .get_stream_no_info(subject::bucket_stream(subject::BUCKET_DESIRED))
        .await
        .map_err(lost)?;
    stream
        .create_consumer(pull::Config {
            durable_name: Some(subject::desired_consumer(node)),
            description: Some("a node's pull of what it must have".to_owned()),
            filter_subject: subject::kv(subject::BUCKET_DESIRED, &subject::desired_filter(node)),
            deliver_policy: DeliverPolicy::LastPerSubject,
            ack_policy: AckPolicy::Explicit,
            // Long enough for one large entry on a slow link; what is lost before comes by the node's list.
            ack_wait: Duration::from_secs(120),
            max_ack_pending: 1_000,
            num_replicas: 1,
            ..pull::Config::default()
        })
        .await
        .map_err(lost)?;
    Ok(())
}

/// The hub's side: up to which sequence a durable consumer of `stream` has acknowledged everything.
pub async fn ack_floor(bus: &Bus, stream: &str, durable: &str) -> Result<u64, LinkError> {
    let stream = bus.jetstream.get_stream_no_info(stream).await.map_err(lost)?;
    let info = stream.consumer_info(durable).await.map_err(lost)?;
    Ok(info.ack_floor.stream_sequence)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_message_stands_is_the_servers_word_not_the_senders() {
        let mut headers = async_nats::HeaderMap::new();
        headers.append("Nats-Sequence", "77");
        headers.append("Nats-Sequence", "1");
        assert_eq!(said_by_server(Some(&headers), "Nats-Sequence"), Some("1"));
        assert_eq!(said_by_server(Some(&headers), "Nats-Subject"), None);
    }

    #[test]
    fn answers_of_the_server_are_read_whatever_they_are() {
        let samples = [
            br#"{"stream":"UP","seq":7}"#.to_vec(),
            br#"{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 3"}}"#.to_vec(),
            b"$JS.ACK.KV_desired.node_n1.1.9.1.1700000000.0".to_vec(),
            b"$JS.ACK.hub.acc.KV_desired.node_n1.1.9.1.1700000000.0.tok".to_vec(),
        ];
        crate::fuzz::try_bytes("a server's answer", &samples, |bytes| {
            let _ = outcome(bytes);
            let message = async_nats::Message {
                subject: "$KV.desired.n1.pods.demo.a.u".into(),
                reply: Some(String::from_utf8_lossy(bytes).into_owned().into()),
                payload: Bytes::copy_from_slice(bytes),
                headers: None,
                status: None,
                description: None,
                length: 0,
            };
            let _ = pulled_of(message);
        });
    }
}
