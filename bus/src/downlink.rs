//! Messages from the hub to one node, as both ends of `sync` handle them.
//!
//! At the hub each node has a stream of its own (`TO_<node>`), which the node reads by sequence, from behind what it took last.
//! On the node they are written into DOWN in atomic batches that end with the node's cursor. No consumer stands between: what a
//! lost answer of one held would come again behind what followed it, and order would be gone.
//!
//! On the node each namespace that was sent anything has one durable consumer, which hands out what nobody acknowledged yet.
//! It pushes to one subject that cannot be chosen. A pull would be answered wherever its asker says, also on the subjects of
//! another namespace (measured).

use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::{self, AckPolicy, DeliverPolicy, push};
use futures::TryStreamExt;
use schemas::downlink::{Holds, Taken, Waiting, at_text};
use schemas::name::{Namespace, NodeName};
use schemas::subject::{self, STREAM_DOWN};
use serde_json::json;

use crate::connection::{Bus, REQUEST_TIMEOUT};
use crate::link::{self, LinkError, Stored, lost};
use crate::provision::{self, Place};

/// What a reader took and did not acknowledge is handed out again after so long.
const ACK_WAIT: Duration = Duration::from_secs(30);
/// So many are handed out before one is acknowledged.
const UNACKNOWLEDGED_MAX: i64 = 64;
/// DOWN lets its oldest go when it is so full.
const FULL_PERCENT: u64 = 90;
/// So much of it then goes.
const SHED_PERCENT: u64 = 10;

/// A message as it stands in the node's stream at the hub.
#[derive(Debug, Clone, PartialEq)]
pub struct Sent {
    /// The message.
    pub message: Stored,
    /// When the hub stored it, in nanoseconds since the Unix epoch.
    pub at_ns: i64,
}

/// Where a read of the node's stream begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// At this sequence.
    Sequence(u64),
    /// At what the hub stored then or later, in nanoseconds since the Unix epoch.
    Since(i64),
}

/// The hub's side: makes the streams of those nodes that have none, and with `all` brings the others to their present bounds.
pub async fn ensure(bus: &Bus, nodes: &[NodeName], all: bool) -> Result<(), LinkError> {
    let there: Vec<String> = match all {
        true => Vec::new(),
        false => bus.jetstream.stream_names().try_collect().await.map_err(lost)?,
    };
    for node in nodes.iter().filter(|node| !there.contains(&subject::to_stream(node))) {
        provision::provision_for(bus, Place::Hub, node).await.map_err(lost)?;
    }
    Ok(())
}

/// The hub's side: what it has for the node, whose last message is `taken`. What is older than that one goes; that one stays,
/// and tells by when it was stored whether this is still the stream that the node took it from.
pub async fn waiting(bus: &Bus, node: &NodeName, taken: Option<Taken>) -> Result<Waiting, LinkError> {
    let name = subject::to_stream(node);
    let stream = bus.jetstream.get_stream(&name).await.map_err(lost)?;
    let state = stream.cached_info().state.clone();
    let last = state.last_sequence;
    let Some(taken) = taken else { return Ok(Waiting { last, holds: None }) };
    // One message at least, however few bytes are asked for.
    let from = json!({"seq": taken.sequence, "next_by_subj": subject::to_filter(node)});
    let found = link::direct(bus, &bus.domain, &name, from, 1, REQUEST_TIMEOUT).await?;
    // That message, or the first behind it.
    let next = found.first().map(|found| Taken { sequence: found.message.sequence, at_ns: found.at_ns });
    let holds = Holds::judge(taken, next, last);
    if holds == Holds::Same && state.first_sequence < taken.sequence {
        link::trim(bus, &name, None, taken.sequence - 1).await?;
    }
    Ok(Waiting { last, holds: Some(holds) })
}

/// The node's side: reads its stream at the hub, at most `max_bytes`, but at least one message if there is any. Any answer may
/// take `patience`: a large message on a slow link does. Says how long it took.
pub async fn read(
    bus: &Bus,
    node: &NodeName,
    from: From,
    max_bytes: usize,
    patience: Duration,
) -> Result<(Vec<Sent>, Duration), LinkError> {
    let filter = subject::to_filter(node);
    let body = match from {
        From::Sequence(sequence) => json!({"seq": sequence.max(1), "next_by_subj": filter}),
        From::Since(at_ns) => json!({"start_time": at_text(at_ns), "next_by_subj": filter}),
    };
    let since = Instant::now();
    let stream = subject::to_stream(node);
    let messages = link::direct(bus, subject::DOMAIN_HUB, &stream, body, max_bytes, patience).await?;
    let took = since.elapsed();
    let sent = messages.into_iter().map(|link::Direct { message, at_ns }| Sent { message, at_ns });
    Ok((sent.collect(), took))
}

/// The node's side: its cursor in DOWN, with its revision.
pub async fn cursor(bus: &Bus) -> Result<Option<(u64, Vec<u8>)>, LinkError> {
    let [_, stored] = subject::TAKEN;
    link::cursor_in(bus, &bus.domain, STREAM_DOWN, stored).await
}

/// The node's side: a namespace's consumer on DOWN, made if it is not there.
pub async fn ensure_reader(bus: &Bus, namespace: &Namespace) -> Result<(), LinkError> {
    let stream = bus.jetstream.get_stream_no_info(STREAM_DOWN).await.map_err(lost)?;
    let made = stream.create_consumer(push::Config {
        durable_name: Some(namespace.to_string()),
        description: Some("what the namespace has not acknowledged yet".to_owned()),
        deliver_subject: subject::stored(namespace),
        deliver_group: Some(subject::STORED_GROUP.to_owned()),
        filter_subject: subject::arrived_filter(namespace),
        deliver_policy: DeliverPolicy::All,
        ack_policy: AckPolicy::Explicit,
        ack_wait: ACK_WAIT,
        max_ack_pending: UNACKNOWLEDGED_MAX,
        ..push::Config::default()
    });
    made.await.map(drop).map_err(lost)
}

/// Whose reader is it? `None` when it is none that [`ensure_reader`] made.
fn namespace_of(reader: &consumer::Config) -> Option<Namespace> {
    let namespace = Namespace::new(reader.durable_name.as_deref()?).ok()?;
    (reader.deliver_subject.as_deref() == Some(&subject::stored(&namespace))).then_some(namespace)
}

/// The node's side: what was acknowledged and older cursors go from DOWN. If it is nearly full all the same, its oldest tenth
/// goes: says how many messages that were.
pub async fn tidy(bus: &Bus) -> Result<u64, LinkError> {
    let stream = bus.jetstream.get_stream(STREAM_DOWN).await.map_err(lost)?;
    let first = stream.cached_info().state.first_sequence;
    if stream.cached_info().state.messages <= 1 {
        return Ok(0); // the cursor alone, or not even that
    }
    let mut readers = stream.consumers();
    while let Some(reader) = readers.try_next().await.map_err(lost)? {
        // Others only look, such as a tail: what was shown to them is acknowledged by nobody.
        let Some(namespace) = namespace_of(&reader.config) else { continue };
        let floor = reader.ack_floor.stream_sequence;
        if floor >= first {
            link::trim(bus, STREAM_DOWN, Some(&subject::arrived_filter(&namespace)), floor).await?;
        }
    }
    let Some((newest, _)) = cursor(bus).await? else { return Ok(0) };
    let [_, cursors] = subject::TAKEN;
    link::trim(bus, STREAM_DOWN, Some(cursors), newest.saturating_sub(1)).await?;
    let state = link::state(bus, STREAM_DOWN).await?;
    if state.bytes < state.bytes_max / 100 * FULL_PERCENT {
        return Ok(0);
    }
    let tenth = state.last_sequence.saturating_sub(state.first_sequence) * SHED_PERCENT / 100;
    // Never the newest cursor: it is the last of all.
    let until = (state.first_sequence + tenth).min(newest.saturating_sub(1));
    link::trim(bus, STREAM_DOWN, None, until).await
}
