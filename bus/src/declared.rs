//! Streams that are declared while the node runs: those of Topics, in WORK.
//!
//! Each carries in its metadata which Topic made it ([`OWNER`]). One without it, or outside [`subject::TOPIC_STREAM`], is not
//! touched, whoever asks.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::jetstream::stream::{Config, DiscardPolicy, PersistenceMode, RetentionPolicy, StorageType};
use data_encoding::HEXLOWER;
use futures::TryStreamExt;
use schemas::subject;
use schemas::topic::{Class, Consumer, Topic};
use sha2::{Digest, Sha256};

use crate::connection::Bus;

/// Metadata of a stream: the UID of the Topic that it is for.
pub const OWNER: &str = "edgewire.io/topic-uid";
/// Metadata of a stream: which form of the Topic it was made of.
const FORM: &str = "edgewire.io/topic-form";
/// A message that was not acknowledged comes again after so long.
pub const ACK_WAIT: Duration = Duration::from_secs(30);
/// Messages of a consumer that may be unacknowledged at a time.
pub const ACK_PENDING_MAX: i64 = 1_000;
/// JetStream's code for a stream that is not there.
const NOT_FOUND: u64 = 10_059;

/// Why a declared stream is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeclareError {
    /// The server has a stream of that name that no Topic made.
    #[error("stream {0} is there already and belongs to no Topic")]
    Foreign(String),
    /// The server refused it.
    #[error("the node's server refused it: {0}")]
    Refused(String),
    /// No answer in time, or no connection: try again.
    #[error("the node's server did not answer: {0}")]
    Lost(String),
}

impl DeclareError {
    /// Would the same be taken later, with nothing changed by people?
    pub fn is_passing(&self) -> bool {
        matches!(self, DeclareError::Lost(_))
    }
}

/// A stream that a Topic made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    /// Its name.
    pub stream: String,
    /// UID of its Topic.
    pub owner: String,
    /// Its bound in bytes.
    pub size_max_bytes: u64,
    /// [`form`] of the Topic that it was made of last.
    pub form: String,
    /// How many consumers it has.
    pub consumers: usize,
}

impl Declared {
    /// Is it as the Topic has it?
    pub fn is(&self, topic: &Topic) -> bool {
        self.owner == topic.uid && self.form == form(topic) && self.consumers == topic.consumers.len()
    }
}

/// What was done for a Topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// Its stream was made.
    Made,
    /// Its stream was brought to what it says.
    Changed,
}

/// A short text that differs where Topics differ.
pub fn form(topic: &Topic) -> String {
    let hash = HEXLOWER.encode(&Sha256::digest(schemas::encode(topic)));
    hash.get(..16).unwrap_or(&hash).to_owned()
}

fn lost(error: impl std::fmt::Display) -> DeclareError {
    DeclareError::Lost(error.to_string())
}

/// The streams that Topics made, in the account of `bus`.
pub async fn list(bus: &Bus) -> Result<Vec<Declared>, DeclareError> {
    let mut streams = bus.jetstream.streams();
    let mut found = Vec::new();
    while let Some(info) = streams.try_next().await.map_err(lost)? {
        let of = |name: &str| info.config.metadata.get(name).cloned();
        if let (true, Some(owner)) = (info.config.name.starts_with(subject::TOPIC_STREAM), of(OWNER)) {
            found.push(Declared {
                owner,
                size_max_bytes: u64::try_from(info.config.max_bytes).unwrap_or(0),
                form: of(FORM).unwrap_or_default(),
                consumers: info.state.consumer_count,
                stream: info.config.name,
            });
        }
    }
    Ok(found)
}

/// UID of the Topic that made the stream; `None` when there is no stream of that name.
async fn owner(bus: &Bus, stream: &str) -> Result<Option<String>, DeclareError> {
    match bus.jetstream.get_stream(stream).await {
        Ok(found) => match found.cached_info().config.metadata.get(OWNER) {
            Some(owner) if stream.starts_with(subject::TOPIC_STREAM) => Ok(Some(owner.clone())),
            _ => Err(DeclareError::Foreign(stream.to_owned())),
        },
        Err(error) => match error.kind() {
            GetStreamErrorKind::JetStream(cause) if cause.error_code().0 == NOT_FOUND => Ok(None),
            _ => Err(lost(error)),
        },
    }
}

fn config(topic: &Topic) -> Config {
    Config {
        name: topic.stream(),
        description: Some(format!("Topic {}/{}", topic.namespace, topic.name)),
        subjects: topic.subjects.clone(),
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        num_replicas: 1,
        max_bytes: i64::try_from(topic.size_max_bytes).unwrap_or(i64::MAX),
        max_age: topic.age_max_ms.map(Duration::from_millis).unwrap_or_default(),
        max_message_size: i32::try_from(schemas::MESSAGE_MAX_BYTES).unwrap_or(i32::MAX),
        discard: match topic.class {
            Class::Durable => DiscardPolicy::New,
            Class::Bulk => DiscardPolicy::Old,
        },
        duplicate_window: duplicate_window(topic),
        // Whoever may publish one message must not take away the others'.
        allow_rollup: false,
        persist_mode: (topic.class == Class::Bulk).then_some(PersistenceMode::Async),
        metadata: HashMap::from([(OWNER.to_owned(), topic.uid.clone()), (FORM.to_owned(), form(topic))]),
        ..Config::default()
    }
}

/// Two minutes; the server takes none that is longer than a message lives.
fn duplicate_window(topic: &Topic) -> Duration {
    const USUAL: Duration = Duration::from_secs(120);
    topic.age_max_ms.map_or(USUAL, |ms| USUAL.min(Duration::from_millis(ms)))
}

/// Makes the topic's stream and its consumers, or brings them to what it says now. Consumers that it does not name go.
pub async fn declare(bus: &Bus, topic: &Topic) -> Result<Done, DeclareError> {
    let name = topic.stream();
    let refused = |error: &dyn ToString| DeclareError::Refused(error.to_string());
    let done = match owner(bus, &name).await? {
        None => {
            bus.jetstream.create_stream(config(topic)).await.map_err(|error| refused(&error))?;
            Done::Made
        }
        Some(_) => {
            bus.jetstream.update_stream(config(topic)).await.map_err(|error| refused(&error))?;
            Done::Changed
        }
    };
    let stream = bus.jetstream.get_stream(&name).await.map_err(lost)?;
    let mut there = BTreeSet::new();
    let mut consumers = stream.consumers();
    while let Some(info) = consumers.try_next().await.map_err(lost)? {
        there.insert((info.name, info.config.deliver_policy == DeliverPolicy::New));
    }
    let declared: BTreeSet<&str> = topic.consumers.iter().map(|consumer| consumer.name.as_str()).collect();
    for (name, _) in there.iter().filter(|(name, _)| !declared.contains(name.as_str())) {
        stream.delete_consumer(name).await.map_err(|error| refused(&error))?;
    }
    for consumer in &topic.consumers {
        // Where it began is done: the server does not change it.
        let began = there.iter().find(|(name, _)| *name == consumer.name).map(|(_, only_new)| *only_new);
        let config = consumer_config(consumer, began.unwrap_or(consumer.only_new));
        stream.create_consumer(config).await.map_err(|error| refused(&error))?;
    }
    Ok(done)
}

fn consumer_config(consumer: &Consumer, only_new: bool) -> pull::Config {
    pull::Config {
        durable_name: Some(consumer.name.clone()),
        filter_subject: consumer.filter.clone().unwrap_or_default(),
        deliver_policy: if only_new { DeliverPolicy::New } else { DeliverPolicy::All },
        ack_policy: AckPolicy::Explicit,
        ack_wait: ACK_WAIT,
        max_ack_pending: ACK_PENDING_MAX,
        ..pull::Config::default()
    }
}

/// Removes the stream, with all that it holds, if the Topic of that UID made it.
pub async fn remove(bus: &Bus, stream: &str, uid: &str) -> Result<(), DeclareError> {
    if owner(bus, stream).await?.as_deref() != Some(uid) {
        return Ok(());
    }
    bus.jetstream.delete_stream(stream).await.map_err(lost)?;
    Ok(())
}
