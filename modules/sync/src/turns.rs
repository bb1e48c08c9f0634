//! Turns: which lane's batch goes over the uplink when. Pure.
//!
//! A batch waits while one of a more urgent lane is on its way: on a slow link a report then waits behind one batch at most,
//! and telemetry takes nothing from messages. It does not wait for ever: after [`WAIT_MAX_MS`] it goes beside the others.
//!
//! A lane may have a cap, for links that are paid for by the byte. It is a token bucket that holds [`WINDOW_MS`] of its rate,
//! so a lane that was idle may begin at once, and over time none is faster than its cap. The bytes are those of bodies and
//! headers before compression: on the wire it is less.

use std::collections::BTreeMap;
use std::str::FromStr;

use schemas::Timestamp;
use schemas::quantity;
use schemas::subject::Lane;

use crate::pace::WINDOW_MS;

/// A batch waits no longer for its turn, but for the cap of its own lane.
pub const WAIT_MAX_MS: u64 = 10_000;
/// The least that a cap may be, in bits each second.
pub const CAP_MIN_BITS_PER_S: u64 = 8_000;

/// Bytes that lanes may carry each second, for those that have a cap.
pub type Caps = BTreeMap<Lane, u64>;

/// One cap as people write it: `bulk=256k`, in bits each second, as Kubernetes writes bandwidths
/// (`kubernetes.io/egress-bandwidth`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cap {
    /// The lane.
    pub lane: Lane,
    /// Its cap.
    pub bytes_per_s: u64,
}

impl Cap {
    /// Reads a cap's two halves.
    pub fn of(lane: &str, rate: &str) -> Result<Self, String> {
        let names = || Lane::ALL.map(Lane::as_str).join(", ");
        let lane = Lane::parse(lane).ok_or_else(|| format!("{lane:?} is no lane; there are {}", names()))?;
        let bits = quantity::units(rate).filter(|bits| *bits >= CAP_MIN_BITS_PER_S);
        let bits = bits.ok_or_else(|| {
            format!("{rate:?} is no rate in bits each second from 8k on, such as 256k or 2M")
        })?;
        Ok(Self { lane, bytes_per_s: bits / 8 })
    }
}

impl FromStr for Cap {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (lane, rate) =
            text.split_once('=').ok_or_else(|| format!("{text:?} is not LANE=RATE, such as bulk=256k"))?;
        Self::of(lane, rate)
    }
}

/// All lanes' turns.
#[derive(Debug, Default)]
pub struct Turns {
    caps: Caps,
    lanes: BTreeMap<Lane, Turn>,
}

#[derive(Debug, Default)]
struct Turn {
    on_its_way: bool,
    waiting_since: Option<Timestamp>,
    /// Until when the cap is used up, but for its window.
    used_until: Option<Timestamp>,
}

impl Turns {
    /// With these caps.
    pub fn new(caps: Caps) -> Self {
        Self { caps, lanes: BTreeMap::new() }
    }

    /// How many bytes a lane's next batch may carry, when the link's pace would let it have `paced`.
    pub fn step_bytes(&self, lane: Lane, paced: usize) -> usize {
        let of_cap = |cap: &u64| usize::try_from(cap * WINDOW_MS / 1000).unwrap_or(usize::MAX);
        self.caps.get(&lane).map_or(paced, |cap| paced.min(of_cap(cap)))
    }

    /// May the lane's batch of so many bytes go? If so it is on its way, until [`ended`](Self::ended). If not, it is asked
    /// again when another one ended, or time passed.
    pub fn may_go(&mut self, lane: Lane, bytes: usize, now: Timestamp) -> bool {
        let behind = self.lanes.range(..lane).any(|(_, urgent)| urgent.on_its_way);
        let turn = self.lanes.entry(lane).or_default();
        let capped = turn.used_until.is_some_and(|at| at > now.plus_ms(WINDOW_MS));
        let since = *turn.waiting_since.get_or_insert(now);
        if capped || behind && now.since_ms(since) < WAIT_MAX_MS {
            return false;
        }
        turn.on_its_way = true;
        turn.waiting_since = None;
        if let Some(cap) = self.caps.get(&lane) {
            let took_ms = u64::try_from(bytes).unwrap_or(u64::MAX).saturating_mul(1000) / (*cap).max(1);
            turn.used_until = Some(turn.used_until.map_or(now, |at| at.max(now)).plus_ms(took_ms));
        }
        true
    }

    /// The lane's batch is through, or given up.
    pub fn ended(&mut self, lane: Lane) {
        let turn = self.lanes.entry(lane).or_default();
        (turn.on_its_way, turn.waiting_since) = (false, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Timestamp {
        Timestamp(1_000_000).plus_ms(ms)
    }

    #[test]
    fn the_more_urgent_goes_first_and_nobody_waits_for_ever() {
        let mut turns = Turns::default();
        assert!(turns.may_go(Lane::Workload, 1, at(0)), "the link is free");
        assert!(!turns.may_go(Lane::Bulk, 1, at(0)));
        assert!(turns.may_go(Lane::State, 1, at(1)), "it waits for nobody");
        turns.ended(Lane::Workload);
        assert!(!turns.may_go(Lane::Bulk, 1, at(2)), "now behind the report");
        turns.ended(Lane::State);
        assert!(turns.may_go(Lane::Bulk, 1, at(3)));
        turns.ended(Lane::Bulk);

        assert!(turns.may_go(Lane::Events, 1, at(10)));
        for ms in [11, 500, 10 + WAIT_MAX_MS] {
            assert!(!turns.may_go(Lane::Workload, 1, at(ms)), "at {ms}");
        }
        assert!(turns.may_go(Lane::Workload, 1, at(11 + WAIT_MAX_MS)));
        turns.ended(Lane::Workload);
        assert!(!turns.may_go(Lane::Workload, 1, at(12 + WAIT_MAX_MS)), "each batch waits anew");
    }

    #[test]
    fn a_capped_lane_is_never_faster_than_its_cap() {
        let cap = Cap::from_str("bulk=80k").unwrap();
        let mut turns = Turns::new([(cap.lane, cap.bytes_per_s)].into());
        assert_eq!(turns.step_bytes(Lane::Bulk, 1_000_000), 20_000);
        assert_eq!(turns.step_bytes(Lane::Bulk, 500), 500);
        assert_eq!(turns.step_bytes(Lane::Workload, 1_000_000), 1_000_000, "it has none");
        let mut went = Vec::new();
        for ms in (0..20_000).step_by(250) {
            if turns.may_go(Lane::Bulk, 5_000, at(ms)) {
                went.push(ms);
                turns.ended(Lane::Bulk);
            }
        }
        // 10,000 B/s for 20 s, and the window.
        assert_eq!(went.len(), 44, "{went:?}");
        assert!(turns.may_go(Lane::Workload, 50_000_000, at(0)));
        turns.ended(Lane::Workload);
        assert!(turns.may_go(Lane::Workload, 50_000_000, at(0)));
    }

    #[test]
    fn a_message_above_its_cap_goes_and_the_next_waits_for_both() {
        let mut turns = Turns::new([(Lane::Bulk, 1_000)].into());
        assert!(turns.may_go(Lane::Bulk, 12_000, at(0)));
        turns.ended(Lane::Bulk);
        assert!(!turns.may_go(Lane::Bulk, 1, at(9_999)));
        assert!(turns.may_go(Lane::Bulk, 1, at(10_000)));
    }

    #[test]
    fn caps_are_read_as_kubernetes_writes_bandwidths() {
        for (text, expected) in [
            ("bulk=256k", Ok((Lane::Bulk, 32_000))),
            ("workload=2M", Ok((Lane::Workload, 250_000))),
            ("state=8000", Ok((Lane::State, 1_000))),
            ("bulk=1", Err("from 8k on")),
            ("bulk=-4M", Err("from 8k on")),
            ("bulk=fast", Err("from 8k on")),
            ("bulk", Err("LANE=RATE")),
            ("all=2M", Err("there are state, events, workload, bulk")),
        ] {
            match (Cap::from_str(text), expected) {
                (Ok(cap), Ok(expected)) => assert_eq!((cap.lane, cap.bytes_per_s), expected, "{text}"),
                (Err(error), Err(words)) => assert!(error.contains(words), "{text}: {error}"),
                (got, _) => panic!("{text}: {got:?}"),
            }
        }
    }
}
