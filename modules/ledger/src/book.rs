//! A book: what came of one stream of one node. Pure.
//!
//! The node's server gave its sequences in order, one for each message that it acknowledged. What is counted begins where
//! the node's lanes began, or, when those are older than the ledger, with what is seen first. A sequence that every lane of
//! the stream is beyond, that neither came nor was given up, is a gap.

use std::collections::BTreeMap;

use rangemap::RangeInclusiveSet;
use schemas::Timestamp;
use schemas::loss::{Account, Drops, LossRow, Origin, RANGES_MAX, Reason};
use schemas::subject::Lane;
use serde::{Deserialize, Deserializer, Serialize};

/// What came of one stream of one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Book {
    /// The ledger sees all of it: it was there before the stream was.
    whole: bool,
    /// Which stream it was last.
    generation: String,
    /// Where each lane began.
    began: BTreeMap<Lane, u64>,
    /// Sequences that came.
    #[serde(deserialize_with = "ranges")]
    pub(crate) came: RangeInclusiveSet<u64>,
    received: BTreeMap<Lane, u64>,
    /// Up to where each lane was taken.
    taken: BTreeMap<Lane, u64>,
    drops: BTreeMap<Lane, Drops>,
    duplicates: u64,
    duplicate_sequences: Vec<u64>,
    unnumbered: u64,
    /// Streams of that name before this one, and what was missing and dropped of them.
    replaced: u64,
    earlier_gaps: u64,
    earlier_drops: BTreeMap<Reason, u64>,
    /// When something came last.
    pub(crate) at: Timestamp,
}

/// Reads a set of ranges. The set itself panics on one that ends before it begins.
pub(crate) fn ranges<'de, D: Deserializer<'de>>(from: D) -> Result<RangeInclusiveSet<u64>, D::Error> {
    let ranges = Vec::<(u64, u64)>::deserialize(from)?;
    Ok(ranges.into_iter().filter(|(first, last)| first <= last).map(|(first, last)| first..=last).collect())
}

impl Book {
    /// An empty one. `whole`: the ledger saw the hub's first message.
    pub fn new(whole: bool) -> Self {
        Self {
            whole,
            generation: String::new(),
            began: BTreeMap::new(),
            came: RangeInclusiveSet::new(),
            received: BTreeMap::new(),
            taken: BTreeMap::new(),
            drops: BTreeMap::new(),
            duplicates: 0,
            duplicate_sequences: Vec::new(),
            unnumbered: 0,
            replaced: 0,
            earlier_gaps: 0,
            earlier_drops: BTreeMap::new(),
            at: Timestamp::default(),
        }
    }

    /// A message came.
    pub fn message(&mut self, lane: Lane, origin: &Origin, now: Timestamp) {
        self.at = now;
        self.enter(lane, origin);
        self.began.entry(lane).or_insert(origin.sequence);
        if self.came.contains(&origin.sequence) {
            self.duplicates += 1;
            self.duplicate_sequences.push(origin.sequence);
            if self.duplicate_sequences.len() > RANGES_MAX {
                self.duplicate_sequences.remove(0);
            }
            return;
        }
        self.came.insert(origin.sequence..=origin.sequence);
        *self.received.entry(lane).or_default() += 1;
    }

    /// A lane's cursor came: all of the lane from its beginning up to there was taken or given up.
    pub fn cursor(&mut self, lane: Lane, origin: &Origin, account: Account, now: Timestamp) {
        self.at = now;
        self.enter(lane, origin);
        if self.whole && (1..=origin.sequence + 1).contains(&account.began) {
            self.began.insert(lane, account.began);
        } else {
            self.began.entry(lane).or_insert(origin.sequence + 1);
        }
        self.taken.insert(lane, origin.sequence);
        self.drops.insert(lane, account.drops.believed(origin.sequence));
    }

    /// A message came that does not say where it stood.
    pub fn unnumbered(&mut self, lane: Lane, now: Timestamp) {
        self.at = now;
        self.unnumbered += 1;
        *self.received.entry(lane).or_default() += 1;
    }

    /// Is it still the same stream? If not, what was missing of the one before stays said.
    fn enter(&mut self, lane: Lane, origin: &Origin) {
        if self.generation == origin.generation {
            return;
        }
        if !self.generation.is_empty() {
            self.earlier_gaps += self.gaps().1;
            self.earlier_drops = self.dropped();
            // The server's start alone makes another generation of telemetry: that is no other stream.
            self.replaced += u64::from(lane != Lane::Bulk);
            // It took the place of one that was seen.
            self.whole = true;
        }
        self.generation = origin.generation.clone();
        self.began.clear();
        self.came.clear();
        self.taken.clear();
        self.drops.clear();
    }

    /// What is missing though every lane is beyond it: some ranges, and how many sequences.
    fn gaps(&self) -> (Vec<(u64, u64)>, u64) {
        let lanes = Lane::ALL.into_iter().filter(|lane| self.shares(*lane));
        let horizon = lanes.map(|lane| self.taken.get(&lane).copied().unwrap_or(0)).min().unwrap_or(0);
        let first = self.first();
        if horizon < first {
            return (Vec::new(), 0);
        }
        let mut accounted = self.came.clone();
        let mut unnamed: u64 = 0;
        for drops in self.drops.values() {
            let named: u64 = drops.recent.iter().map(|range| range.last + 1 - range.first).sum();
            unnamed += drops.count().saturating_sub(named);
            for range in &drops.recent {
                accounted.insert(range.first..=range.last);
            }
        }
        let missing: Vec<(u64, u64)> =
            accounted.gaps(&(first..=horizon)).map(|gap| (*gap.start(), *gap.end())).collect();
        let count: u64 = missing.iter().map(|(first, last)| last + 1 - first).sum();
        let ranges = missing.into_iter().take(RANGES_MAX).collect();
        // Drops that are counted and no longer named are the oldest of what is missing.
        match count.saturating_sub(unnamed) {
            0 => (Vec::new(), 0),
            count => (ranges, count),
        }
    }

    /// Is it one of the lanes that the stream carries?
    fn shares(&self, lane: Lane) -> bool {
        let of = self.taken.keys().chain(self.received.keys()).next().copied();
        of.is_some_and(|of| of.edge_stream() == lane.edge_stream())
    }

    /// The first sequence that is counted: of lanes that began at different ones, the last.
    fn first(&self) -> u64 {
        self.began.values().copied().max().unwrap_or(1)
    }

    fn dropped(&self) -> BTreeMap<Reason, u64> {
        let mut dropped = self.earlier_drops.clone();
        for (reason, count) in self.drops.values().flat_map(|drops| &drops.total) {
            let sum: &mut u64 = dropped.entry(*reason).or_default();
            *sum = sum.saturating_add(*count);
        }
        dropped
    }

    /// What the report says of it.
    pub fn row(&self, node: &str, stream: &str) -> LossRow {
        let (gap_ranges, gaps) = self.gaps();
        LossRow {
            node: node.to_owned(),
            stream: stream.to_owned(),
            first: self.first(),
            last: self.came.last().map_or(0, |range| *range.end()),
            received: self.received.clone(),
            gaps: gaps + self.earlier_gaps,
            gap_ranges,
            duplicates: self.duplicates,
            duplicate_sequences: self.duplicate_sequences.clone(),
            dropped: self.dropped(),
            dropped_ranges: self.drops.values().flat_map(|drops| drops.recent.iter().copied()).collect(),
            unnumbered: self.unnumbered,
            replaced: self.replaced,
            at: self.at,
        }
    }
}
