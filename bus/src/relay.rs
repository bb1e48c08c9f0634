//! Taking what clients say on a node, for those who carry it elsewhere: nothing that was acknowledged to an MQTT client is lost.
//!
//! `nats-server` acknowledges a QoS 1 or 2 message of an MQTT client when it stands in its own stream, and it keeps it there
//! while a consumer waits for it. A stream that captures the message's plain subject may have it later, or never (measured with
//! 2.15.1: killed at full speed, it lacked up to 123 of 148 that were acknowledged). So what such clients say is taken from
//! the server's stream ([`Relay::entrusted`]), and only what nobody was promised (QoS 0, plain NATS) is heard live.

use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::AckKind;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use bytes::Bytes;
use futures::StreamExt;
use schemas::envelope::Headers;
use schemas::subject::{STREAM_MQTT_MESSAGES, mqtt_stored};

use crate::connection::{Bus, to_nats};

/// What was taken and not acknowledged comes again after so long, unless it is [held](Entrusted::hold).
const ACK_WAIT: Duration = Duration::from_secs(5);
/// Taken at the same time: one, so that nothing passes a message that has to wait.
const TAKEN_MAX: i64 = 1;
/// A pull that finds nothing is asked again after so long.
const PULL_EXPIRES: Duration = Duration::from_secs(20);
/// A server that is silent for twice as long is asked anew.
const PULL_HEARTBEAT: Duration = Duration::from_secs(5);
/// What names a message's quality of service, in messages that MQTT clients said.
const HEADER_QOS: &str = "Nmqtt-Pub";

/// Why something could not be taken or passed on.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {cause}")]
pub struct RelayError {
    what: String,
    cause: String,
}

fn failed(what: &str) -> impl Fn(&dyn std::fmt::Display) -> RelayError {
    let what = what.to_owned();
    move |cause| RelayError { what: what.clone(), cause: cause.to_string() }
}

/// Takes and passes on, in one account.
#[derive(Clone)]
pub struct Relay {
    bus: Bus,
}

/// A message that stays where it is until [`Entrusted::done`].
pub struct Entrusted {
    /// The subject it was said on.
    pub subject: String,
    /// Its body.
    pub payload: Bytes,
    /// Unique to it: the stream's sequence, and when it was stored.
    pub id: String,
    message: jetstream::Message,
}

impl Entrusted {
    /// It still has to wait for its goal: it does not come again meanwhile.
    pub async fn hold(&self) -> Result<(), RelayError> {
        let held = self.message.ack_with(AckKind::Progress).await;
        held.map_err(|error| failed("word that it waits")(&error))
    }

    /// It is where it had to go.
    pub async fn done(self) -> Result<(), RelayError> {
        self.message.ack().await.map_err(|error| failed("acknowledgement")(&error))
    }
}

/// What is taken from the server's own stream, in order.
pub struct Inbox {
    messages: pull::Stream,
}

impl Inbox {
    /// The next one; an error means: open it anew.
    pub async fn next(&mut self) -> Result<Entrusted, RelayError> {
        let fail = failed("what MQTT clients entrusted");
        let message = self.messages.next().await.ok_or_else(|| fail(&"the pull ended"))?;
        let message = message.map_err(|error| fail(&error))?;
        let info = message.info().map_err(|error| fail(&error))?;
        let id = format!("{}-{}", info.stream_sequence, info.published.unix_timestamp_nanos());
        let subject = message.subject.to_string();
        let subject = subject.strip_prefix(&mqtt_stored("")).unwrap_or(&subject).to_owned();
        Ok(Entrusted { subject, payload: message.payload.clone(), id, message })
    }
}

/// Was it said by an MQTT client at QoS 1 or 2? Then it is taken by [`Relay::entrusted`].
pub fn is_entrusted(headers: &Headers) -> bool {
    headers.get(HEADER_QOS).is_some_and(|qos| qos != "0")
}

impl Relay {
    /// In the account of `bus`.
    pub fn new(bus: &Bus) -> Self {
        Self { bus: bus.clone() }
    }

    /// From now on the server keeps, for `name`, what MQTT clients say at QoS 1 or 2 on these subjects (which must not overlap),
    /// until it is done; also while nobody takes it.
    pub async fn entrusted(&self, name: &str, subjects: &[String]) -> Result<Inbox, RelayError> {
        let fail = failed(name);
        let stream =
            self.bus.jetstream.get_stream(STREAM_MQTT_MESSAGES).await.map_err(|error| fail(&error))?;
        let config = pull::Config {
            durable_name: Some(name.to_owned()),
            filter_subjects: subjects.iter().map(|subject| mqtt_stored(subject)).collect(),
            ack_policy: AckPolicy::Explicit,
            ack_wait: ACK_WAIT,
            deliver_policy: DeliverPolicy::New,
            max_ack_pending: TAKEN_MAX,
            ..pull::Config::default()
        };
        let consumer: PullConsumer = stream.create_consumer(config).await.map_err(|error| fail(&error))?;
        let messages = consumer.stream().expires(PULL_EXPIRES).heartbeat(PULL_HEARTBEAT).messages().await;
        Ok(Inbox { messages: messages.map_err(|error| fail(&error))? })
    }

    /// The server keeps nothing for those any more.
    pub async fn forget(&self, keep: impl Fn(&str) -> bool) -> Result<(), RelayError> {
        let fail = failed("consumers");
        let stream =
            self.bus.jetstream.get_stream(STREAM_MQTT_MESSAGES).await.map_err(|error| fail(&error))?;
        let mut names = stream.consumer_names();
        let mut gone = Vec::new();
        while let Some(name) = names.next().await {
            gone.extend(Some(name.map_err(|error| fail(&error))?).filter(|name| !keep(name)));
        }
        for name in gone {
            stream.delete_consumer(&name).await.map_err(|error| fail(&error))?;
        }
        Ok(())
    }

    /// Says it durably; returns when the stream that captures the subject has it, once for each `id`, if it has one.
    pub async fn store(&self, subject: &str, id: Option<&str>, payload: Bytes) -> Result<(), RelayError> {
        let headers: Headers = id.map(|id| ("Nats-Msg-Id".to_owned(), id.to_owned())).into_iter().collect();
        let fail = failed(subject);
        let sent =
            self.bus.jetstream.publish_with_headers(subject.to_owned(), to_nats(&headers), payload).await;
        sent.map_err(|error| fail(&error))?.await.map(drop).map_err(|error| fail(&error))
    }
}
