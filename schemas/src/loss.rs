//! Proof of no loss: where each message stood on its node, what a lane could not carry, and the report made of both.
//!
//! A node's server numbers what it acknowledges. Every message that goes up names its number ([`Origin`], header
//! `ew-origin`), and every cursor where its lane began and what it gave up and why ([`Account`], header `ew-account`). The hub's `ledger` keeps
//! count of them, apart from the modules that carry them: what was acknowledged and neither came nor was given up with a
//! reason is a gap.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Timestamp;
use crate::subject::Lane;

/// Ranges that a cursor, or a report, names at most; their number is always whole.
pub const RANGES_MAX: usize = 16;

/// No stream comes so far: beyond it a sequence is rubbish.
pub const SEQUENCE_MAX: u64 = 1 << 62;

/// Where a message stands in a stream of its node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Which stream: one that was made anew counts anew.
    pub generation: String,
    /// Its sequence there.
    pub sequence: u64,
}

impl Origin {
    /// Reads a header's value; `None` when it is none that [`fmt::Display`] makes.
    pub fn parse(text: &str) -> Option<Self> {
        let (generation, sequence) = text.rsplit_once('.')?;
        let good = !generation.is_empty()
            && generation.len() <= 64
            && generation.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        let sequence =
            sequence.parse().ok().filter(|sequence| good && (0..=SEQUENCE_MAX).contains(sequence))?;
        Some(Self { generation: generation.to_owned(), sequence })
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}.{}", self.generation, self.sequence)
    }
}

/// Why a message did not go up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The node's stream of telemetry was full: the oldest went.
    Overflow,
    /// The node's disk was nearly full: telemetry went first.
    DiskFull,
    /// The hub would never take it: it stands among the node's dead letters.
    DeadLetter,
    /// The hub had it and lost it, being restored from an older backup; the node had let it go by then.
    HubRestored,
    /// No workload said it: it was an answer of the node's own server, put on that subject by who asked.
    Answer,
    /// Something that this version does not know.
    #[serde(other)]
    Other,
}

impl Reason {
    /// As it is shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Overflow => "overflow",
            Reason::DiskFull => "disk-full",
            Reason::DeadLetter => "dead-letter",
            Reason::HubRestored => "hub-restored",
            Reason::Answer => "answer",
            Reason::Other => "other",
        }
    }
}

/// Sequences that were given up together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// The first of them.
    pub first: u64,
    /// The last of them.
    pub last: u64,
    /// Why.
    pub reason: Reason,
}

/// All that a lane gave up since its stream was made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drops {
    /// How many, by reason.
    pub total: BTreeMap<Reason, u64>,
    /// The last ones, oldest first, at most [`RANGES_MAX`].
    pub recent: Vec<Dropped>,
}

impl Drops {
    /// Nothing was.
    pub fn is_empty(&self) -> bool {
        self.total.is_empty()
    }

    /// How many, of all reasons.
    pub fn count(&self) -> u64 {
        self.total.values().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// What can be believed of what a node says up to `taken`.
    pub fn believed(mut self, taken: u64) -> Self {
        self.recent.retain(|range| range.first <= range.last && range.last <= taken);
        self.recent.truncate(RANGES_MAX);
        self.total.values_mut().for_each(|count| *count = (*count).min(taken));
        self
    }

    /// `first` to `last` are given up.
    pub fn add(&mut self, first: u64, last: u64, reason: Reason) {
        if first > last {
            return;
        }
        *self.total.entry(reason).or_default() += last - first + 1;
        if let Some(before) = self.recent.last_mut().filter(|b| b.reason == reason && b.last + 1 == first) {
            before.last = last;
            return;
        }
        self.recent.push(Dropped { first, last, reason });
        if self.recent.len() > RANGES_MAX {
            self.recent.remove(0);
        }
    }
}

/// What a cursor says to the ledger besides its sequence, as JSON in header `ew-account`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// The first sequence that this hub was to get of the lane's stream.
    pub began: u64,
    /// What the lane gave up since.
    #[serde(default, skip_serializing_if = "Drops::is_empty")]
    pub drops: Drops,
}

/// Rows of one answer at most; the next are asked for.
pub const ROWS_MAX: usize = 2_000;

/// What the ledger is asked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LossQuery {
    /// Only this node.
    pub node: Option<String>,
    /// Only rows behind this one (node, stream): the last of the answer before.
    pub after: Option<(String, String)>,
}

/// What the hub's ledger says: one row for each stream of each node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LossReport {
    /// It has counted since then. A hub that was restored counts anew.
    pub since: Timestamp,
    /// By node and stream, at most [`ROWS_MAX`].
    pub rows: Vec<LossRow>,
    /// There are more rows.
    pub more: bool,
    /// What the hub itself let go of FROM to keep it within its bound, after it had come: by lane.
    pub shed: BTreeMap<Lane, u64>,
}

/// One stream of one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LossRow {
    /// The node.
    pub node: String,
    /// Its stream.
    pub stream: String,
    /// The first sequence that is counted.
    pub first: u64,
    /// The last that came.
    pub last: u64,
    /// How many came, each counted once, by lane.
    pub received: BTreeMap<Lane, u64>,
    /// Sequences that neither came nor were given up with a reason, though their lanes are beyond them.
    pub gaps: u64,
    /// Some of them, as ranges, at most [`RANGES_MAX`].
    pub gap_ranges: Vec<(u64, u64)>,
    /// How many came again.
    pub duplicates: u64,
    /// The last sequences that did, at most [`RANGES_MAX`].
    pub duplicate_sequences: Vec<u64>,
    /// What the node gave up, by reason.
    pub dropped: BTreeMap<Reason, u64>,
    /// Some of it, as ranges.
    pub dropped_ranges: Vec<Dropped>,
    /// Messages that named no origin: of a node of an older version.
    pub unnumbered: u64,
    /// How often the node's stream was another one. What stood in the one before and had not come is not known.
    pub replaced: u64,
    /// When something came last, by the hub's clock.
    pub at: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_origin_survives_its_header(generation in "[A-Za-z0-9-]{1,64}", sequence in 0..=SEQUENCE_MAX) {
            let origin = Origin { generation, sequence };
            prop_assert_eq!(Origin::parse(&origin.to_string()), Some(origin));
        }

        #[test]
        fn any_header_is_read_or_refused(text in ".*") {
            if let Some(origin) = Origin::parse(&text) {
                prop_assert!(Origin::parse(&origin.to_string()) == Some(origin));
            }
        }
    }

    #[test]
    fn what_is_given_up_is_counted_whole_and_named_in_part() {
        let mut drops = Drops::default();
        drops.add(5, 4, Reason::Overflow);
        assert!(drops.is_empty());
        drops.add(1, 3, Reason::Overflow);
        drops.add(4, 4, Reason::Overflow);
        assert_eq!(drops.recent, [Dropped { first: 1, last: 4, reason: Reason::Overflow }], "one range");
        for sequence in (10..100).step_by(2) {
            drops.add(sequence, sequence, Reason::DeadLetter);
        }
        assert_eq!((drops.count(), drops.recent.len()), (4 + 45, RANGES_MAX));
        assert_eq!(drops.recent.last().map(|range| range.last), Some(98));
    }

    #[test]
    fn a_reason_of_another_version_is_other() {
        let reason: Reason = serde_json::from_str("\"sunspots\"").unwrap();
        assert_eq!(reason, Reason::Other);
        assert_eq!(serde_json::to_string(&Reason::DiskFull).unwrap(), "\"disk-full\"");
    }
}
