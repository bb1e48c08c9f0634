//! What crosses a wire or a disk, and nothing else: names, subjects, objects, envelopes, reports.
//!
//! No tokio and no NATS client here. Everything that leaves a process is built from these types, so two
//! programs that share this crate agree; a program in another language reads `docs/flows.md` and the golden
//! samples under `schemas/tests/golden`.
//!
//! * [`name`] checked names: [`name::NodeName`], [`name::Namespace`]
//! * [`subject`] every subject, stream, bucket and consumer name, and the codec for names inside subjects
//! * [`object`] Kubernetes objects, stored whole, with typed views for reading
//! * [`envelope`] CloudEvents attributes as NATS headers around a MessagePack body
//! * [`event`] every type of event that is told
//! * [`report`] what a node says of itself and of its pods
//! * [`desired`] what a node must have, and the lineage that guards it
//! * [`downlink`] messages from the hub to one node: what waits, and what was taken
//! * [`credential`] credentials of pods, nodes and tools
//! * [`mqtt`] MQTT topics as subjects
//! * [`loss`] where each message stood on its node, and the report that shows none missing
//! * [`audit`] who did what, and who was refused what
//! * [`command`] what the hub asks a node to do, and the frames of a byte stream
//! * [`backup`] the table of contents of a backup of the hub
//! * [`routing`] what hub and node ask each other for a rule; [`expression`] what a rule makes of a message
//! * [`topic`] and [`topic_map`] what a namespace declares for its messages; [`rule`] KubeEdge's rules
//! * [`view`] typed views of those kinds; [`fault`] what is wrong with one; [`pattern`] subject filters
//! * [`class`] the delivery classes of workload subjects
//! * [`quantity`] Kubernetes quantities (`100m`, `64Mi`) as numbers

pub mod audit;
pub mod backup;
pub mod class;
pub mod command;
pub mod credential;
pub mod desired;
pub mod downlink;
pub mod envelope;
pub mod event;
pub mod expression;
pub mod fault;
pub mod loss;
pub mod mqtt;
pub mod name;
pub mod object;
pub mod pattern;
pub mod quantity;
pub mod report;
pub mod routing;
pub mod rule;
pub mod subject;
pub mod topic;
pub mod topic_map;
pub mod view;

/// Milliseconds since the Unix epoch, UTC. The only form of time that crosses a wire.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// The machine's clock, now. For the rim only: deciding code is given its `now`.
    pub fn now() -> Self {
        Self(jiff::Timestamp::now().as_millisecond())
    }

    /// Milliseconds from `earlier` to `self`; 0 when the clock went back.
    pub fn since_ms(self, earlier: Timestamp) -> u64 {
        u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0)
    }

    /// `self` moved on by `ms` milliseconds.
    pub fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(i64::try_from(ms).unwrap_or(i64::MAX)))
    }

    /// RFC 3339 in UTC with seconds, as Kubernetes writes `metav1.Time`.
    pub fn rfc3339(self) -> String {
        let at = jiff::Timestamp::from_millisecond(self.0).unwrap_or_default();
        at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
    }

    /// Reads RFC 3339. `None` when it is not a time.
    pub fn parse(text: &str) -> Option<Self> {
        text.parse::<jiff::Timestamp>().ok().map(|at| Self(at.as_millisecond()))
    }
}

/// MessagePack with field names, so that readers of other versions and languages find their way.
pub fn encode<T: serde::Serialize>(value: &T) -> Vec<u8> {
    // Writing to a Vec fails only for types serde cannot represent; all of ours can be.
    rmp_serde::to_vec_named(value).unwrap_or_default()
}

/// Reads what [`encode`] wrote. Unknown fields are ignored; a wrong shape is an error that says which.
pub fn decode<'a, T: serde::Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, DecodeError> {
    if bytes.len() > MESSAGE_MAX_BYTES {
        return Err(DecodeError::TooLarge { size_bytes: bytes.len() });
    }
    let mut de = rmp_serde::Deserializer::from_read_ref(bytes);
    de.set_max_depth(DEPTH_MAX);
    T::deserialize(&mut de).map_err(DecodeError::Shape)
}

/// The largest body that any decoder of ours reads; the servers' `max_payload` is the same.
pub const MESSAGE_MAX_BYTES: usize = 8 * 1024 * 1024;
/// The deepest nesting that any decoder of ours follows.
pub const DEPTH_MAX: usize = 128;

/// Why bytes could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Over [`MESSAGE_MAX_BYTES`].
    #[error("body has {size_bytes} bytes, over the bound of {MESSAGE_MAX_BYTES}")]
    TooLarge {
        /// How large it was.
        size_bytes: usize,
    },
    /// Not MessagePack, or another shape than asked for.
    #[error("body is not the expected MessagePack: {0}")]
    Shape(#[source] rmp_serde::decode::Error),
}
