//! The streams and buckets, in one table, with their bounds and what happens at the bound. Making them is idempotent.

mod mqtt;

pub use mqtt::{MQTT_STREAMS, bound_mqtt, provision_mqtt};

use std::time::Duration;

use async_nats::jetstream::stream::{
    Config, DiscardPolicy, PersistenceMode, Republish, RetentionPolicy, StorageType, SubjectTransform,
};
use futures::TryStreamExt;
use schemas::backup::StreamSummary;
use schemas::name::NodeName;
use schemas::subject;

use crate::connection::Bus;
use crate::module::Account;

const MIB: i64 = 1024 * 1024;

/// Where a stream lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// At the hub.
    Hub,
    /// On each node.
    Edge,
}

/// What happens when a stream is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// The publisher is refused and knows it: nothing is evicted unseen.
    Refuse,
    /// The oldest goes.
    DropOldest,
}

/// What an acknowledgement of a stream's server means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// It is on the disk.
    Durable,
    /// The server has it. What it acknowledged last is lost when it falls (measured: up to some 20 ms of it by a kill; by a
    /// loss of power what the machine had not written yet), for some forty times the throughput.
    Bulk,
}

/// One stream, or the stream behind a bucket.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// Where.
    pub place: Place,
    /// In which account.
    pub account: Account,
    /// Its name; for a bucket the bucket's.
    pub name: &'static str,
    /// Is it a KV bucket?
    pub bucket: bool,
    /// Is there one for each node, made when the node is known (see [`crate::downlink`])? Its name ends with the node's.
    pub for_each_node: bool,
    /// The subjects that it captures; a bucket's follow from its name.
    pub subjects: &'static [&'static str],
    /// Bound in bytes.
    pub size_mib_max: i64,
    /// At the bound.
    pub full: Full,
    /// What its acknowledgement means.
    pub class: Class,
    /// Atomic batches.
    pub atomic: bool,
    /// What it captures is a module's to say ([`capture`]), and a message goes when it was taken.
    pub queue: bool,
    /// The largest message, headers and body.
    pub message_bytes_max: usize,
    /// What it is for.
    pub purpose: &'static str,
}

const fn bucket(place: Place, name: &'static str, size_mib_max: i64, purpose: &'static str) -> Row {
    Row {
        place,
        account: Account::Control,
        name,
        bucket: true,
        for_each_node: false,
        subjects: &[],
        size_mib_max,
        full: Full::Refuse,
        class: Class::Durable,
        atomic: false,
        queue: false,
        message_bytes_max: schemas::MESSAGE_MAX_BYTES,
        purpose,
    }
}

const fn stream(
    place: Place,
    account: Account,
    name: &'static str,
    subjects: &'static [&'static str],
    size_mib_max: i64,
    full: Full,
    purpose: &'static str,
) -> Row {
    let atomic = matches!(place, Place::Hub) && matches!(full, Full::Refuse);
    Row {
        place,
        account,
        name,
        bucket: false,
        for_each_node: false,
        subjects,
        size_mib_max,
        full,
        class: Class::Durable,
        atomic,
        queue: false,
        message_bytes_max: schemas::MESSAGE_MAX_BYTES,
        purpose,
    }
}

/// All streams and buckets of Edgewire.
pub const TABLE: &[Row] = &[
    bucket(Place::Hub, subject::BUCKET_OBJECTS, 1024, "the API's objects"),
    bucket(Place::Hub, subject::BUCKET_DESIRED, 1024, "what each node must have"),
    bucket(Place::Hub, subject::BUCKET_IDENTITY, 64, "join tokens and enrolled nodes"),
    stream(
        Place::Hub,
        Account::Control,
        subject::STREAM_UP,
        &["ew.in.>"],
        1024,
        Full::Refuse,
        "reports and events of all nodes, trimmed when the hub's modules took them",
    ),
    stream(
        Place::Hub,
        Account::Control,
        subject::STREAM_DEAD,
        &["ew.dead.>"],
        64,
        Full::DropOldest,
        "what could not be decoded or applied, with its reason",
    ),
    stream(
        Place::Hub,
        Account::Control,
        subject::STREAM_AUDIT,
        &["ew.audit.done.>"],
        256,
        Full::DropOldest,
        "who did what: `edgewire audit`",
    ),
    stream(
        Place::Hub,
        Account::Control,
        subject::STREAM_REFUSED,
        &["ew.audit.refused.>"],
        32,
        Full::DropOldest,
        "who was refused what; apart, so that who only knocks cannot push out what was done",
    ),
    stream(
        Place::Hub,
        Account::Control,
        subject::STREAM_FROM,
        &["from.>", "from-bulk.>", "_cursor.>"],
        1024,
        Full::Refuse,
        "workload messages of all nodes; at 90 % the oldest tenth goes, telemetry first, counted, so that uplinks never stop",
    ),
    Row {
        for_each_node: true,
        atomic: false,
        message_bytes_max: 1024 * 1024,
        ..stream(
            Place::Hub,
            Account::Control,
            subject::STREAM_TO,
            &["to.>"],
            16,
            Full::Refuse,
            "workload messages for one node, trimmed when it has them; one stream for each node, so that one that is away fills its own alone",
        )
    },
    bucket(Place::Edge, subject::BUCKET_LOCAL, 256, "the node's own copy of what it must have"),
    stream(
        Place::Edge,
        Account::Control,
        subject::STREAM_OUTBOX,
        &["ew.rep.>", "ew.evt.>"],
        64,
        Full::Refuse,
        "reports and events waiting to go up, trimmed when the hub has them",
    ),
    stream(
        Place::Edge,
        Account::Control,
        subject::STREAM_DEAD,
        &["ew.dead.>"],
        16,
        Full::DropOldest,
        "what could not be decoded or applied, with its reason",
    ),
    stream(
        Place::Edge,
        Account::Work,
        subject::STREAM_UPLINK,
        &["up.>"],
        256,
        Full::Refuse,
        "workload messages waiting to go up, trimmed when the hub has them",
    ),
    Row {
        atomic: true,
        ..stream(
            Place::Edge,
            Account::Work,
            subject::STREAM_DOWN,
            &[subject::ARRIVING],
            64,
            Full::Refuse,
            "workload messages from the hub, stored and heard as `down.>`, trimmed when they were acknowledged; when it is full its oldest tenth goes, counted",
        )
    },
    Row {
        class: Class::Bulk,
        ..stream(
            Place::Edge,
            Account::Work,
            subject::STREAM_BULK,
            &["bulk.>"],
            128,
            Full::DropOldest,
            "telemetry waiting to go up, trimmed when the hub has it; what is dropped is counted",
        )
    },
    Row {
        queue: true,
        ..stream(
            Place::Edge,
            Account::Work,
            subject::STREAM_RULES,
            &[subject::RULES_ENTRUSTED],
            64,
            Full::DropOldest,
            "messages that rules carry to the hub, as they came; captures what the rules on this node name",
        )
    },
];

/// Why a stream could not be made.
#[derive(Debug, thiserror::Error)]
#[error("stream {stream} cannot be made: {cause}")]
pub struct ProvisionError {
    stream: String,
    cause: String,
}

impl Row {
    /// Name of the stream.
    pub fn stream(&self) -> String {
        if self.bucket { subject::bucket_stream(self.name) } else { self.name.to_owned() }
    }

    fn config(&self) -> Config {
        let subjects = if self.bucket {
            vec![subject::kv(self.name, ">")]
        } else {
            self.subjects.iter().map(|s| (*s).to_owned()).collect()
        };
        Config {
            name: self.stream(),
            description: Some(self.purpose.to_owned()),
            subjects,
            retention: if self.queue { RetentionPolicy::WorkQueue } else { RetentionPolicy::Limits },
            storage: StorageType::File,
            num_replicas: 1,
            max_bytes: self.size_mib_max * MIB,
            max_messages_per_subject: if self.bucket { 1 } else { -1 },
            max_message_size: i32::try_from(self.message_bytes_max).unwrap_or(i32::MAX),
            discard: match self.full {
                Full::Refuse => DiscardPolicy::New,
                Full::DropOldest => DiscardPolicy::Old,
            },
            duplicate_window: Duration::from_secs(120),
            // A bucket's removals need it. In a stream that others write to, whoever may publish one message could take
            // away everybody's (`Nats-Rollup: all`).
            allow_rollup: self.bucket,
            deny_delete: self.bucket,
            allow_direct: true,
            allow_atomic_publish: self.atomic,
            allow_message_ttl: self.bucket,
            persist_mode: (self.class == Class::Bulk).then_some(PersistenceMode::Async),
            // Heard when it is stored, and once: what is captured as it is said is heard before, and again with each try.
            subject_transform: (self.name == subject::STREAM_DOWN).then(|| SubjectTransform {
                source: subject::ARRIVING.to_owned(),
                destination: subject::ARRIVED.to_owned(),
            }),
            republish: (self.name == subject::STREAM_DOWN).then(|| Republish {
                source: subject::ARRIVED_HEARD.to_owned(),
                destination: "down.{{wildcard(1)}}.>".to_owned(),
                headers_only: false,
            }),
            ..Config::default()
        }
    }

    /// Of a row that is there for each node, that node's.
    fn config_of(&self, node: &NodeName) -> Config {
        Config { name: subject::to_stream(node), subjects: vec![subject::to_filter(node)], ..self.config() }
    }
}

/// The row of the stream that captures `subject` (or all that a filter lets through) in `account`.
pub fn capturing(account: Account, subject: &str) -> Option<&'static Row> {
    let captures = |row: &Row| row.subjects.iter().any(|filter| subject::matches(filter, subject));
    TABLE.iter().find(|row| row.account == account && captures(row))
}

/// Makes every stream of `place` that lives in the account of `bus`, or brings it to its present bounds.
pub async fn provision(bus: &Bus, place: Place) -> Result<(), ProvisionError> {
    let here = |row: &&Row| row.place == place && row.account == bus.account && !row.for_each_node;
    for row in TABLE.iter().filter(here) {
        if row.queue && is_there(bus, row).await? {
            continue; // its module knows what it captures
        }
        bus.jetstream
            .create_or_update_stream(row.config())
            .await
            .map_err(|error| ProvisionError { stream: row.stream(), cause: error.to_string() })?;
    }
    Ok(())
}

async fn is_there(bus: &Bus, row: &Row) -> Result<bool, ProvisionError> {
    use async_nats::jetstream::ErrorCode;
    use async_nats::jetstream::context::GetStreamErrorKind;
    match bus.jetstream.get_stream(row.stream()).await {
        Ok(_) => Ok(true),
        Err(error) => match error.kind() {
            GetStreamErrorKind::JetStream(why) if why.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                Ok(false)
            }
            _ => Err(ProvisionError { stream: row.stream(), cause: error.to_string() }),
        },
    }
}

/// Has a stream of the [`TABLE`] capture these subjects, which must not meet each other, and nothing else. Says whether
/// anything was changed. The server refuses what another stream of the account captures already.
pub async fn capture(bus: &Bus, stream: &str, subjects: &[String]) -> Result<bool, ProvisionError> {
    let fail = |cause: String| ProvisionError { stream: stream.to_owned(), cause };
    let row = TABLE.iter().find(|row| row.account == bus.account && row.queue && row.name == stream);
    let row = row.ok_or_else(|| fail("what it captures is not to be changed".to_owned()))?;
    let found = bus.jetstream.get_stream(stream).await.map_err(|error| fail(error.to_string()))?;
    if found.cached_info().config.subjects == subjects {
        return Ok(false);
    }
    let config = Config { subjects: subjects.to_vec(), ..row.config() };
    bus.jetstream.update_stream(config).await.map_err(|error| fail(error.to_string()))?;
    Ok(true)
}

/// Makes a node's streams of `place` in the account of `bus`, or brings them to their present bounds.
pub async fn provision_for(bus: &Bus, place: Place, node: &NodeName) -> Result<(), ProvisionError> {
    let theirs = |row: &&Row| row.place == place && row.account == bus.account && row.for_each_node;
    for row in TABLE.iter().filter(theirs) {
        let config = row.config_of(node);
        let stream = config.name.clone();
        let made = bus.jetstream.create_or_update_stream(config).await;
        made.map_err(|error| ProvisionError { stream, cause: error.to_string() })?;
    }
    Ok(())
}

/// How much room a stream gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// What the [`TABLE`] says.
    Usual,
    /// So many bytes.
    Bytes(u64),
    /// What it has now: nothing that is there goes, and who adds to it is refused (if it is one that refuses).
    Present,
}

/// Gives a stream of the [`TABLE`] that room, if it does not have it. Says whether anything was changed.
pub async fn bound(bus: &Bus, place: Place, stream: &str, bound: Bound) -> Result<bool, ProvisionError> {
    let fail = |cause: String| ProvisionError { stream: stream.to_owned(), cause };
    let row =
        TABLE.iter().find(|row| row.place == place && row.account == bus.account && row.stream() == stream);
    let usual = row.ok_or_else(|| fail("it is not in the table".to_owned()))?.config();
    rebound(bus, usual, bound).await
}

async fn rebound(bus: &Bus, usual: Config, bound: Bound) -> Result<bool, ProvisionError> {
    let stream = usual.name.clone();
    let fail = |cause: String| ProvisionError { stream: stream.clone(), cause };
    let found = bus.jetstream.get_stream(&stream).await.map_err(|error| fail(error.to_string()))?;
    let (now, bytes) = (found.cached_info().config.max_bytes, found.cached_info().state.bytes);
    let max_bytes = match bound {
        Bound::Usual => usual.max_bytes,
        Bound::Bytes(bytes) => i64::try_from(bytes).unwrap_or(i64::MAX).min(usual.max_bytes),
        // Once; what is taken from it makes room again, up to what was there.
        Bound::Present if now < usual.max_bytes => now,
        Bound::Present => i64::try_from(bytes).unwrap_or(i64::MAX).clamp(1, usual.max_bytes),
    };
    if max_bytes == now {
        return Ok(false);
    }
    let config = Config { max_bytes, ..usual };
    bus.jetstream.update_stream(config).await.map_err(|error| fail(error.to_string()))?;
    Ok(true)
}

/// Every stream in the account of `bus`, in the order of their names: what stands in it.
pub async fn summaries(bus: &Bus) -> Result<Vec<StreamSummary>, ProvisionError> {
    let failed =
        |error: &dyn ToString| ProvisionError { stream: "(list)".to_owned(), cause: error.to_string() };
    let mut streams = bus.jetstream.streams();
    let mut summaries = Vec::new();
    while let Some(info) = streams.try_next().await.map_err(|error| failed(&error))? {
        summaries.push(StreamSummary {
            account: bus.account.as_str().to_owned(),
            stream: info.config.name,
            first_sequence: info.state.first_sequence,
            last_sequence: info.state.last_sequence,
            messages: info.state.messages,
            size_bytes: info.state.bytes,
            consumers: u64::try_from(info.state.consumer_count).unwrap_or(u64::MAX),
        });
    }
    summaries.sort();
    Ok(summaries)
}

/// The streams in the account of `bus`, each with the subjects that it captures.
pub async fn captures(bus: &Bus) -> Result<Vec<(String, Vec<String>)>, ProvisionError> {
    let failed =
        |error: &dyn ToString| ProvisionError { stream: "(list)".to_owned(), cause: error.to_string() };
    let mut streams = bus.jetstream.streams();
    let mut captures = Vec::new();
    while let Some(info) = streams.try_next().await.map_err(|error| failed(&error))? {
        captures.push((info.config.name, info.config.subjects));
    }
    Ok(captures)
}

/// What [`summaries`] may do.
pub fn permissions_to_list(domain: &str) -> crate::identity::Permissions {
    allow(domain, &["API.STREAM.LIST"])
}

/// What provisioning itself may do, besides nothing else.
pub fn permissions(domain: &str) -> crate::identity::Permissions {
    allow(domain, &["API.INFO", "API.STREAM.INFO.*", "API.STREAM.CREATE.*", "API.STREAM.UPDATE.*"])
}

/// The server asks for the right to the domain's subject and to its own.
fn allow(domain: &str, verbs: &[&str]) -> crate::identity::Permissions {
    let publish_allow =
        verbs.iter().flat_map(|verb| [format!("$JS.{domain}.{verb}"), format!("$JS.{verb}")]).collect();
    crate::identity::Permissions { publish_allow, subscribe_allow: vec!["_INBOX.>".to_owned()] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_subject_is_captured_at_both_ends() {
        let of =
            |place| TABLE.iter().filter(move |row| row.place == place && row.name != subject::STREAM_DEAD);
        for hub in of(Place::Hub).flat_map(|row| row.config().subjects) {
            for edge in of(Place::Edge).flat_map(|row| row.config().subjects) {
                let sample = edge.replace('>', "x");
                assert!(!subject::matches(&hub, &sample), "{hub} {edge}");
                assert!(!subject::matches(&edge, &hub.replace('>', "x")), "{hub} {edge}");
            }
        }
    }

    #[test]
    fn a_stream_captures_what_its_filters_say_in_its_account() {
        let stream = |account, subject| capturing(account, subject).map(|row| row.name);
        assert_eq!(stream(Account::Control, "ew.evt.containers.*"), Some(subject::STREAM_OUTBOX));
        assert_eq!(stream(Account::Control, "ew.audit.refused.>"), Some(subject::STREAM_REFUSED));
        assert_eq!(stream(Account::Work, "ew.evt.containers.*"), None);
        assert_eq!(stream(Account::Control, "to.n1.demo.x"), Some(subject::STREAM_TO));
        assert_eq!(stream(Account::Work, "_down.demo.x"), Some(subject::STREAM_DOWN));
        assert_eq!(stream(Account::Work, "down.demo.x"), None, "it is heard, and stored already");
        assert_eq!(stream(Account::Control, "ew.hb.n1"), None);
    }

    #[test]
    fn each_nodes_messages_have_a_stream_of_their_own() {
        let row = TABLE.iter().find(|row| row.for_each_node).unwrap();
        let config = row.config_of(&NodeName::new("n1").unwrap());
        assert_eq!(
            (config.name.as_str(), config.subjects.as_slice()),
            ("TO_n1", &["to.n1.>".to_owned()][..])
        );
        assert!(config.max_bytes < row.config().max_bytes + 1 && config.max_message_size <= 1024 * 1024);
    }

    #[test]
    fn who_may_write_one_message_cannot_take_away_others() {
        for row in TABLE.iter().filter(|row| !row.bucket) {
            assert!(!row.config().allow_rollup && !row.config().allow_message_ttl, "{}", row.name);
        }
    }

    #[test]
    fn everything_is_bounded() {
        for row in TABLE {
            assert!(row.config().max_bytes > 0 && row.config().max_message_size > 0, "{}", row.name);
        }
    }
}
