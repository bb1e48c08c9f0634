//! The hub's end: each node's consumer on `desired`, the trimming of UP, and the epochs of `desired`.

use std::collections::BTreeSet;

use bus::connection::{Bus, Handles};
use bus::flow::Flow;
use bus::link;
use bus::module::{Effect, EntryValue, Expect, Input, Module, Rim};
use bus::store::{Store, StoreError};
use schemas::Timestamp;
use schemas::desired::Lineage;
use schemas::name::NodeName;
use schemas::subject::{self, ObjectKey, Resource};

/// Name of the module.
pub const NAME: &str = "links";
/// Consumers are made again so often: one that was lost (a restored store) is back by then.
const ENSURE_INTERVAL_MS: u64 = 15_000;
/// UP is trimmed so often.
const TRIM_INTERVAL_MS: u64 = 5_000;

/// FROM lets its oldest go when it is so full.
const FROM_FULL_PERCENT: u64 = 90;
/// So much of it then goes.
const FROM_SHED_PERCENT: u64 = 10;

/// All that the module reads and writes.
pub fn flows() -> Vec<Flow> {
    vec![
        Flow::watch(
            subject::BUCKET_OBJECTS,
            subject::objects_filter(&Resource::core("nodes"), None),
            "Object (Node)",
        ),
        // A node is known here from its enrolment on: its consumer is there before its first pull.
        Flow::watch(subject::BUCKET_IDENTITY, "node.*", "NodeRecord"),
        Flow::manage("KV_desired", "consumers of nodes"),
        Flow::manage(subject::STREAM_UP, "trim"),
        Flow::manage(subject::STREAM_FROM, "trim").in_work(),
    ]
}

/// What only the rim can do.
#[derive(Debug, Clone, PartialEq)]
pub enum Act {
    /// Make this node's consumer, if it is not there.
    Ensure(NodeName),
    /// Drop from UP what all of its readers have taken.
    Trim,
}

/// The module.
#[derive(Default)]
pub struct Links {
    nodes: BTreeSet<NodeName>,
    ensured_at: Timestamp,
    trimmed_at: Timestamp,
}

impl Module for Links {
    type Act = Act;
    type Done = ();

    fn apply(&mut self, input: Input<()>, now: Timestamp) -> Vec<Effect<Act>> {
        match input {
            Input::Entry(entry) => {
                let enrolled = entry.key.strip_prefix("node.").map(str::to_owned);
                let name = enrolled.or_else(|| ObjectKey::parse(&entry.key).map(|key| key.name));
                let node = name.and_then(|name| NodeName::new(name).ok());
                match (node, entry.value) {
                    (Some(node), EntryValue::Put(_)) if self.nodes.insert(node.clone()) => {
                        vec![Effect::Act(Act::Ensure(node))]
                    }
                    (Some(node), EntryValue::Removed(_)) => {
                        self.nodes.remove(&node);
                        Vec::new()
                    }
                    _ => Vec::new(),
                }
            }
            Input::Tick => {
                let mut effects = Vec::new();
                if now.since_ms(self.ensured_at) >= ENSURE_INTERVAL_MS {
                    self.ensured_at = now;
                    effects.extend(self.nodes.iter().cloned().map(|node| Effect::Act(Act::Ensure(node))));
                }
                if now.since_ms(self.trimmed_at) >= TRIM_INTERVAL_MS {
                    self.trimmed_at = now;
                    effects.push(Effect::Act(Act::Trim));
                }
                effects
            }
            _ => Vec::new(),
        }
    }
}

/// The rim: `readers` are UP's durable consumers with what each of them takes.
pub struct LinksRim {
    /// Durable consumer and its filter. What they have all taken goes.
    pub readers: Vec<(&'static str, String)>,
}

impl Rim<Links> for LinksRim {
    async fn act(&self, bus: &Handles, act: Act) -> Option<()> {
        let done = match &act {
            Act::Ensure(node) => link::ensure_consumer(&bus.control, node).await,
            Act::Trim => match self.trim(&bus.control).await {
                Ok(()) => shed(bus).await,
                error => error,
            },
        };
        if let Err(error) = done {
            tracing::debug!(?act, %error, "done again at the next turn");
        }
        None
    }
}

/// FROM is the hub's copy of workloads' messages: nobody tells it when they were read. It is kept to its bound by letting
/// the oldest go, said aloud; otherwise a full stream would stop every node's uplink.
async fn shed(bus: &Handles) -> Result<(), link::LinkError> {
    let Some(work) = &bus.work else { return Ok(()) };
    let state = link::state(work, subject::STREAM_FROM).await?;
    if state.bytes < state.bytes_max / 100 * FROM_FULL_PERCENT {
        return Ok(());
    }
    let oldest =
        state.first_sequence + (state.last_sequence - state.first_sequence) * FROM_SHED_PERCENT / 100;
    tracing::warn!(up_to_sequence = oldest, "stream FROM is nearly full: the oldest workload messages go");
    // Cursors stand outside the filter: they stay.
    link::trim(work, subject::STREAM_FROM, "from.>", oldest).await
}

impl LinksRim {
    async fn trim(&self, bus: &Bus) -> Result<(), link::LinkError> {
        for (durable, filter) in &self.readers {
            let taken = link::ack_floor(bus, subject::STREAM_UP, durable).await?;
            if taken > 0 {
                // Cursors match no reader's filter: they are never trimmed.
                link::trim(bus, subject::STREAM_UP, filter, taken).await?;
            }
        }
        Ok(())
    }
}

/// Begins an epoch of `desired`: before any module of the hub writes. `generation` is used if the bucket is new.
pub async fn begin_epoch(bus: &Bus, epoch: String, generation: String) -> Result<Lineage, StoreError> {
    let store = Store::new(bus, subject::BUCKET_DESIRED);
    let fail = |cause: String| StoreError::Server { bucket: subject::BUCKET_DESIRED.to_owned(), cause };
    let (mut lineage, expect) = match store.get(subject::KEY_LINEAGE).await? {
        Some(entry) => match entry.value {
            EntryValue::Put(bytes) => (
                schemas::decode(&bytes).map_err(|error| fail(error.to_string()))?,
                Expect::Revision(entry.revision),
            ),
            EntryValue::Removed(_) => (Lineage::new(generation), Expect::Revision(entry.revision)),
        },
        None => (Lineage::new(generation), Expect::Absent),
    };
    lineage.begin(epoch, store.last_revision().await?);
    store
        .put(subject::KEY_LINEAGE, schemas::encode(&lineage), expect)
        .await
        .map_err(|error| fail(error.to_string()))?;
    Ok(lineage)
}
