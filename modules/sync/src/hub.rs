//! The hub's end: each node's consumer on `desired`, the trimming of UP, and the epochs of `desired`.

use bus::connection::{Bus, Handles};
use bus::flow::Flow;
use bus::link;
use bus::module::{Effect, EntryValue, Expect, Input, Module, Rim};
use bus::store::{Store, StoreError};
use schemas::Timestamp;
use schemas::desired::Lineage;
use schemas::name::NodeName;
use schemas::subject;

use crate::known::{self, Known};

/// Name of the module.
pub const NAME: &str = "links";
/// Consumers are made again so often: one that was lost (a restored store) is back by then.
const ENSURE_INTERVAL_MS: u64 = 15_000;
/// UP is trimmed so often.
const TRIM_INTERVAL_MS: u64 = 5_000;

/// All that the module reads and writes.
pub fn flows() -> Vec<Flow> {
    let own = [Flow::manage("KV_desired", "consumers of nodes"), Flow::manage(subject::STREAM_UP, "trim")];
    known::flows().into_iter().chain(own).collect()
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
    nodes: Known,
    ensured_at: Timestamp,
    trimmed_at: Timestamp,
}

impl Module for Links {
    type Act = Act;
    type Done = ();

    fn apply(&mut self, input: Input<()>, now: Timestamp) -> Vec<Effect<Act>> {
        match input {
            Input::Entry(entry) => {
                self.nodes.entry(&entry).map(|node| Effect::Act(Act::Ensure(node))).into_iter().collect()
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
    /// Durable consumer and its filter. What it has taken goes.
    pub readers: Vec<(&'static str, String)>,
    /// A consumer that only counts: nothing goes before it was counted.
    pub counter: &'static str,
}

impl Rim<Links> for LinksRim {
    async fn act(&self, bus: &Handles, act: Act) -> Option<()> {
        let done = match &act {
            Act::Ensure(node) => link::ensure_consumer(&bus.control, node).await,
            Act::Trim => self.trim(&bus.control).await,
        };
        if let Err(error) = done {
            tracing::debug!(?act, %error, "done again at the next turn");
        }
        None
    }
}

impl LinksRim {
    async fn trim(&self, bus: &Bus) -> Result<(), link::LinkError> {
        let counted = link::ack_floor(bus, subject::STREAM_UP, self.counter).await?;
        for (durable, filter) in &self.readers {
            let taken = link::ack_floor(bus, subject::STREAM_UP, durable).await?.min(counted);
            if taken > 0 {
                // Cursors match no reader's filter: the newest of each is never trimmed.
                link::trim(bus, subject::STREAM_UP, Some(filter), taken).await?;
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
