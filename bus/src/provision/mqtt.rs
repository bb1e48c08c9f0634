//! The streams in which `nats-server` keeps what MQTT clients entrust to it. It makes them itself with the first client, without
//! any bound; made here before, with the same subjects, it takes them as they are (measured with 2.15.1).
//!
//! At the bound of messages a publisher gets no acknowledgement and its connection ends: it knows. At the bound of retained ones
//! the message is delivered and acknowledged but not retained; one that was retained before may still be replaced.

use std::time::Duration;

use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType};
use schemas::subject;

use super::{Bound, MIB, ProvisionError, rebound};
use crate::connection::Bus;

/// A message that a session does not fetch goes after so long: one that never comes back would keep everybody's room.
const MESSAGE_AGE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// One of the server's streams.
struct Row {
    name: &'static str,
    /// `{domain}` stands for the server's JetStream domain.
    subjects: &'static str,
    /// Kept for those who wait for it, and no longer.
    waited_for: bool,
    ages: bool,
    size_mib_max: i64,
}

const TABLE: [Row; 5] = [
    Row {
        name: subject::STREAM_MQTT_MESSAGES,
        subjects: "$MQTT.msgs.>",
        waited_for: true,
        ages: true,
        size_mib_max: 128,
    },
    Row {
        name: subject::STREAM_MQTT_RETAINED,
        subjects: "$MQTT.rmsgs.>",
        waited_for: false,
        ages: false,
        size_mib_max: 64,
    },
    Row {
        name: subject::STREAM_MQTT_SESSIONS,
        subjects: "$MQTT.sess.{domain}.>",
        waited_for: false,
        ages: false,
        size_mib_max: 16,
    },
    Row {
        name: subject::STREAM_MQTT_INCOMING,
        subjects: "$MQTT.qos2.in.>",
        waited_for: false,
        ages: true,
        size_mib_max: 32,
    },
    Row {
        name: subject::STREAM_MQTT_RELEASES,
        subjects: "$MQTT.out.>",
        waited_for: true,
        ages: true,
        size_mib_max: 16,
    },
];

/// The names of those streams.
pub const MQTT_STREAMS: [&str; 5] =
    [TABLE[0].name, TABLE[1].name, TABLE[2].name, TABLE[3].name, TABLE[4].name];

impl Row {
    fn config(&self, domain: &str) -> Config {
        Config {
            name: self.name.to_owned(),
            subjects: vec![self.subjects.replace("{domain}", domain)],
            retention: if self.waited_for { RetentionPolicy::Interest } else { RetentionPolicy::Limits },
            storage: StorageType::File,
            num_replicas: 1,
            max_bytes: self.size_mib_max * MIB,
            max_age: if self.ages { MESSAGE_AGE_MAX } else { Duration::ZERO },
            max_messages_per_subject: if self.waited_for { -1 } else { 1 },
            discard: DiscardPolicy::New,
            // As the server has it: a second message of the same number is a repetition.
            discard_new_per_subject: self.name == subject::STREAM_MQTT_INCOMING,
            duplicate_window: Duration::from_secs(120),
            ..Config::default()
        }
    }
}

/// Makes them, or brings them to their present bounds; in WORK.
pub async fn provision_mqtt(bus: &Bus) -> Result<(), ProvisionError> {
    for row in &TABLE {
        bus.jetstream
            .create_or_update_stream(row.config(&bus.domain))
            .await
            .map_err(|error| ProvisionError { stream: row.name.to_owned(), cause: error.to_string() })?;
    }
    Ok(())
}

/// Gives all of them that room. Where MQTT is not served there are none.
pub async fn bound_mqtt(bus: &Bus, bound: Bound) -> Result<(), ProvisionError> {
    for row in &TABLE {
        if bus.jetstream.get_stream(row.name).await.is_ok() {
            rebound(bus, row.config(&bus.domain), bound).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_bounded_and_nothing_is_taken_from_who_was_promised_it() {
        for row in &TABLE {
            let config = row.config("edge-n1");
            assert!(config.max_bytes > 0 && config.discard == DiscardPolicy::New, "{}", row.name);
            assert!(!config.subjects[0].contains('{'), "{}", row.name);
        }
    }
}
