//! What the ledger lets go, because it knows that it is counted.

use std::collections::BTreeMap;

use bus::connection::{Bus, Handles};
use bus::link::{self, LinkError};
use bus::module::Rim;
use schemas::subject::{Lane, STREAM_FROM};

use crate::Ledger;

/// FROM lets its oldest go when it is so full.
pub const FROM_FULL_PERCENT: u64 = 90;
/// So much of it then goes, of telemetry first.
const FROM_SHED_PERCENT: u64 = 10;

/// What only the rim can do.
#[derive(Debug, Clone, PartialEq)]
pub enum Act {
    /// Drop the cursors that are older than the newest.
    TrimCursors {
        /// The hub's stream.
        stream: String,
        /// The cursor's subject.
        subject: String,
        /// Sequence of the newest.
        newest: u64,
    },
    /// Look whether FROM is nearly full, and let its oldest go.
    Shed,
}

/// What the rim tells.
#[derive(Debug, Clone, PartialEq)]
pub enum Done {
    /// So many messages of each lane went.
    Shed(BTreeMap<Lane, u64>),
}

/// The ledger's rim.
pub struct LedgerRim;

impl Rim<Ledger> for LedgerRim {
    async fn act(&self, bus: &Handles, act: Act) -> Option<Done> {
        match act {
            Act::TrimCursors { stream, subject, newest } => {
                let before = newest.saturating_sub(1);
                if let Err(error) = link::trim(&bus.control, &stream, Some(&subject), before).await {
                    tracing::debug!(subject, %error, "older cursors go with the next");
                }
                None
            }
            Act::Shed => Some(Done::Shed(shed(&bus.control).await.unwrap_or_else(|error| {
                tracing::debug!(%error, "looked at again");
                BTreeMap::new()
            }))),
        }
    }
}

/// FROM is the hub's copy of workloads' messages: nobody tells it when they were read. It is kept to its bound by letting
/// the oldest go, said aloud; otherwise a full stream would stop every node's uplink.
async fn shed(bus: &Bus) -> Result<BTreeMap<Lane, u64>, LinkError> {
    let state = link::state(bus, STREAM_FROM).await?;
    if state.bytes < state.bytes_max / 100 * FROM_FULL_PERCENT {
        return Ok(BTreeMap::new());
    }
    let length = state.last_sequence.saturating_sub(state.first_sequence);
    // Telemetry as far as the younger half; the durable oldest only when that made no room.
    let steps = [
        (Lane::Bulk, "from-bulk.>", state.first_sequence + length / 2),
        (Lane::Workload, "from.>", state.first_sequence + length * FROM_SHED_PERCENT / 100),
    ];
    for (lane, filter, oldest) in steps {
        // Cursors stand outside the filters: they stay.
        let count = link::trim(bus, STREAM_FROM, Some(filter), oldest).await?;
        if count > 0 {
            tracing::warn!(lane = lane.as_str(), count, "stream FROM is nearly full: its oldest messages go");
            return Ok(BTreeMap::from([(lane, count)]));
        }
    }
    Ok(BTreeMap::new())
}
