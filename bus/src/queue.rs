//! Stored messages, taken one by one by durable consumers that come and go with what they are for (a rule). A module whose
//! consumers are known when it is built declares them as [flows](crate::flow::Flow::consume) instead.
//!
//! The next message comes when the one before it is done, so none overtakes another. One that is not done in time, or whose
//! taker falls, comes again. Each consumer waits for itself alone.

use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::{self, AckKind};
use bytes::Bytes;
use futures::StreamExt;
use futures::TryStreamExt;
use schemas::envelope::Headers;

use crate::connection::{Bus, from_nats};
use crate::link::LinkError;

/// A message that nobody says to be worked on comes again after so long.
const ACK_WAIT: Duration = Duration::from_secs(10);
/// So often it is said that a message is worked on.
const WORKING_INTERVAL: Duration = Duration::from_secs(3);
/// The server says so often that it is there.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// A pause between two tries to take a message up again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

fn lost(error: impl std::fmt::Display) -> LinkError {
    LinkError::Lost(error.to_string())
}

/// What a consumer begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// With the oldest that is there.
    Oldest,
    /// With what is stored after it was made.
    New,
}

/// The messages of one consumer.
pub struct Queue {
    messages: pull::Stream,
}

/// A message that was taken. Dropped without a word, it comes again.
pub struct Taken {
    message: jetstream::Message,
    /// Its subject.
    pub subject: String,
    /// Its sequence in the stream.
    pub sequence: u64,
    /// Its headers.
    pub headers: Headers,
    /// Its body.
    pub payload: Bytes,
}

impl Queue {
    /// Opens the durable consumer of that name, made if it is not there.
    pub async fn open(
        bus: &Bus,
        stream: &str,
        durable: &str,
        filter: &str,
        begin: Begin,
    ) -> Result<Self, LinkError> {
        let source = bus.jetstream.get_stream_no_info(stream).await.map_err(lost)?;
        let config = pull::Config {
            durable_name: Some(durable.to_owned()),
            filter_subject: filter.to_owned(),
            deliver_policy: match begin {
                Begin::Oldest => DeliverPolicy::All,
                Begin::New => DeliverPolicy::New,
            },
            ack_policy: AckPolicy::Explicit,
            ack_wait: ACK_WAIT,
            max_ack_pending: 1,
            num_replicas: 1,
            ..pull::Config::default()
        };
        let consumer = source.create_consumer(config).await.map_err(lost)?;
        let messages = consumer
            .stream()
            .max_messages_per_batch(1)
            .heartbeat(HEARTBEAT)
            .messages()
            .await
            .map_err(lost)?;
        Ok(Self { messages })
    }

    /// The next message. An error: open it again.
    pub async fn next(&mut self) -> Result<Taken, LinkError> {
        let message = self.messages.next().await.ok_or_else(|| lost("the consumer ended"))?.map_err(lost)?;
        let sequence = message.info().map_err(lost)?.stream_sequence;
        Ok(Taken {
            subject: message.subject.to_string(),
            sequence,
            headers: from_nats(message.headers.as_ref()),
            payload: message.payload.clone(),
            message,
        })
    }
}

impl Taken {
    /// Does the work, and says meanwhile that it is being done, however long it takes.
    pub async fn during<T>(&self, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        loop {
            match tokio::time::timeout(WORKING_INTERVAL, &mut work).await {
                Ok(done) => return done,
                Err(_) => {
                    if let Err(error) = self.message.ack_with(AckKind::Progress).await {
                        tracing::debug!(%error, "the message may come again");
                    }
                }
            }
        }
    }

    /// It is done: it does not come again.
    pub async fn done(self) -> Result<(), LinkError> {
        self.message.double_ack().await.map_err(lost)
    }

    /// It could not be done now: it comes again, and the others after it.
    pub async fn again(self) {
        let _ = self.message.ack_with(AckKind::Nak(Some(RETRY_PAUSE))).await;
    }
}

/// The durable consumers of a stream whose names begin with `prefix`.
pub async fn names(bus: &Bus, stream: &str, prefix: &str) -> Result<Vec<String>, LinkError> {
    let source = bus.jetstream.get_stream_no_info(stream).await.map_err(lost)?;
    let names: Vec<String> = source.consumer_names().try_collect().await.map_err(lost)?;
    Ok(names.into_iter().filter(|name| name.starts_with(prefix)).collect())
}

/// Lets a consumer go. Fine when it is not there.
pub async fn remove(bus: &Bus, stream: &str, durable: &str) -> Result<(), LinkError> {
    use async_nats::jetstream::ErrorCode;
    use async_nats::jetstream::stream::ConsumerErrorKind;
    let source = bus.jetstream.get_stream_no_info(stream).await.map_err(lost)?;
    match source.delete_consumer(durable).await {
        Ok(_) => Ok(()),
        Err(error) => match error.kind() {
            ConsumerErrorKind::JetStream(why) if why.error_code() == ErrorCode::CONSUMER_NOT_FOUND => Ok(()),
            _ => Err(lost(error)),
        },
    }
}
