//! Rebuilds a link that is dead though the node's server believes in it, and never one whose bytes advance. Pure.
//!
//! What shows is the heartbeat, which goes through the link and is answered by the hub's modules. While it is answered the
//! link is looked at now and then only. When it is not, what the servers and the kernel know tells why:
//!
//! * no link, the hub refuses our credentials, or we its certificate: a person must know; trying again is the server's own
//!   business
//! * no link, though the hub can be reached, for [`GIVEN_UP_MS`]: the server has given up (measured with 2.15.1: a reset in
//!   the middle of the TLS handshake does that). Nothing is left to kick, so the server is started anew
//! * a link over which nothing comes for [`DEAD_MS`]: it is dropped, and made anew
//! * a link over which something comes (pings, say) but no answer for [`DEAF_MS`]: interest was lost on the way; the same

use std::mem::discriminant;

use bus::server::{LinkFacts, Refusal};
use schemas::Timestamp;

/// How often a healthy link is looked at: one account's may be missing though the other's heartbeat is answered.
const LOOK_MS: u64 = 15_000;
/// How often one is looked at that is not.
const SUSPECT_LOOK_MS: u64 = 2_000;
/// A heartbeat that is not answered for so long is a suspicion.
const SUSPECT_MS: u64 = 4_500;
/// Nothing came for so long: dead.
const DEAD_MS: u64 = 7_000;
/// No answer for so long, though something comes: deaf.
const DEAF_MS: u64 = 10_000;
/// Less than this between two looks is no progress: pings, heartbeats that nobody answers. A link of 64 kbit/s moves eight
/// times as much.
const PROGRESS_MIN_BYTES: u64 = 2_048;
/// No link for so long, though the hub can be reached: given up.
const GIVEN_UP_MS: u64 = 20_000;
/// After a link was dropped it has so long; twice that after the next, and so on.
const PAUSE_MIN_MS: u64 = 10_000;
/// At most so long.
const PAUSE_MAX_MS: u64 = 120_000;
/// The server is not started anew more often: workloads lose their connections each time.
const RESTART_PAUSE_MS: u64 = 60_000;

/// What shall be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Leave,
    /// Drop the links: the server makes them anew.
    Rebuild(String),
    /// Start the node's server anew.
    Restart,
    /// Tell that one end refuses the other.
    Refused(Refusal),
}

/// What is remembered between two looks.
#[derive(Debug, Default)]
pub struct Watchdog {
    looked_at: Option<Timestamp>,
    moved_bytes: Option<u64>,
    missing_since: Option<Timestamp>,
    not_before: Option<Timestamp>,
    pause_ms: u64,
    refused: Option<Refusal>,
}

impl Watchdog {
    /// Is it time to look? `silent_ms`: since a heartbeat was answered last (or since the start).
    pub fn due(&mut self, silent_ms: u64, now: Timestamp) -> bool {
        let every =
            if silent_ms < SUSPECT_MS && self.missing_since.is_none() { LOOK_MS } else { SUSPECT_LOOK_MS };
        let due = self.looked_at.is_none_or(|at| now.since_ms(at) >= every);
        if due {
            self.looked_at = Some(now);
        }
        due
    }

    /// Has a link been missing for so long that it counts whether the hub could be reached?
    pub fn may_have_given_up(&self, now: Timestamp) -> bool {
        self.missing_since.is_some_and(|since| now.since_ms(since) >= GIVEN_UP_MS) && self.may_act(now)
    }

    /// The link goes another way now: what was seen of the former counts no more.
    pub fn moved(&mut self) {
        (self.moved_bytes, self.missing_since) = (None, None);
    }

    /// What was seen.
    pub fn seen(&mut self, facts: &LinkFacts, silent_ms: u64, now: Timestamp) -> Verdict {
        if !facts.linked {
            self.moved_bytes = None;
            return self.missing(facts, now);
        }
        self.missing_since = None;
        self.refused = None;
        let before = std::mem::replace(&mut self.moved_bytes, facts.moved_bytes);
        if silent_ms < SUSPECT_MS {
            self.pause_ms = 0;
            self.not_before = None;
            return Verdict::Leave;
        }
        // A first look has nothing to compare with, less than before is another connection, and a kernel that does not tell
        // leaves it to the server's own pings.
        let moved = before.zip(facts.moved_bytes).and_then(|(before, now)| now.checked_sub(before));
        let idle = moved.is_some_and(|bytes| bytes < PROGRESS_MIN_BYTES);
        let dead = facts.quiet_ms >= DEAD_MS && silent_ms >= DEAD_MS;
        let deaf = silent_ms >= DEAF_MS;
        if !idle || !(dead || deaf) || !self.may_act(now) {
            return Verdict::Leave;
        }
        self.pause_ms = (self.pause_ms * 2).clamp(PAUSE_MIN_MS, PAUSE_MAX_MS);
        self.not_before = Some(now.plus_ms(self.pause_ms));
        self.moved_bytes = None;
        let seconds = silent_ms / 1000;
        Verdict::Rebuild(if dead {
            format!("nothing came over the link for {} s", facts.quiet_ms / 1000)
        } else {
            format!("the link stands, but the hub has not answered for {seconds} s")
        })
    }

    fn missing(&mut self, facts: &LinkFacts, now: Timestamp) -> Verdict {
        self.missing_since.get_or_insert(now);
        if let Some(refusal) = &facts.refusal {
            let told = self.refused.replace(refusal.clone());
            // Of one kind once: the words may tell the time.
            let same = told.is_some_and(|told| discriminant(&told) == discriminant(refusal));
            return if same { Verdict::Leave } else { Verdict::Refused(refusal.clone()) };
        }
        let reachable = facts.open.iter().flatten().any(|open| Some(*open) == facts.way);
        if !reachable || !self.may_have_given_up(now) {
            return Verdict::Leave;
        }
        self.not_before = Some(now.plus_ms(RESTART_PAUSE_MS));
        self.missing_since = None;
        Verdict::Restart
    }

    fn may_act(&self, now: Timestamp) -> bool {
        self.not_before.is_none_or(|at| at <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bus::server::Way;

    fn down() -> LinkFacts {
        LinkFacts { way: Some(Way::Tls), ways: vec![Way::Tls], ..LinkFacts::default() }
    }

    fn up(moved_bytes: u64, quiet_ms: u64) -> LinkFacts {
        LinkFacts { linked: true, moved_bytes: Some(moved_bytes), quiet_ms, ..down() }
    }

    /// The verdicts of looks two seconds apart on a link whose heartbeat was answered last at 0.
    fn looks(
        watchdog: &mut Watchdog,
        from_s: u64,
        facts: impl Fn(u64) -> LinkFacts,
        count: u64,
    ) -> Vec<(u64, Verdict)> {
        let seconds = (0..count).map(|n| from_s + n * 2);
        seconds
            .filter_map(|s| {
                let now = Timestamp(0).plus_ms(s * 1000);
                assert!(watchdog.due(s * 1000, now), "at {s} s");
                let verdict = watchdog.seen(&facts(s), s * 1000, now);
                (verdict != Verdict::Leave).then_some((s, verdict))
            })
            .collect()
    }

    fn times(verdicts: &[(u64, Verdict)]) -> Vec<u64> {
        verdicts.iter().map(|(s, _)| *s).collect()
    }

    #[test]
    fn a_dead_link_is_rebuilt_within_ten_seconds_and_then_less_and_less_often() {
        let mut watchdog = Watchdog::default();
        let verdicts = looks(&mut watchdog, 5, |s| up(100, s * 1000), 60);
        assert!(
            verdicts
                .iter()
                .all(|(_, v)| matches!(v, Verdict::Rebuild(why) if why.starts_with("nothing came")))
        );
        assert_eq!(times(&verdicts), [7, 17, 37, 77]);
    }

    #[test]
    fn a_link_on_which_only_pings_move_is_rebuilt_too() {
        let verdicts = looks(&mut Watchdog::default(), 5, |s| up(100 + s * 200, 1_000), 5);
        assert_eq!(times(&verdicts), [11]);
        assert!(matches!(&verdicts[0].1, Verdict::Rebuild(why) if why.contains("has not answered")));
    }

    #[test]
    fn a_slow_link_whose_bytes_advance_is_left_alone_however_long() {
        assert_eq!(looks(&mut Watchdog::default(), 5, |s| up(s * 8_000, 300), 200), []);
    }

    #[test]
    fn a_kernel_that_does_not_count_leaves_the_link_to_the_servers_pings() {
        let uncounted = |s| LinkFacts { moved_bytes: None, ..up(0, s * 1000) };
        assert_eq!(looks(&mut Watchdog::default(), 5, uncounted, 60), []);
    }

    #[test]
    fn an_answered_heartbeat_is_enough() {
        let mut watchdog = Watchdog::default();
        for s in (0..200).step_by(2) {
            let now = Timestamp(s * 1000);
            if watchdog.due(1_000, now) {
                assert_eq!(watchdog.seen(&up(5, 60_000), 1_000, now), Verdict::Leave);
                assert_eq!(s % 16, 0, "a healthy link is looked at seldom");
            }
        }
    }

    #[test]
    fn a_server_that_has_given_up_is_started_anew_if_the_hub_can_be_reached() {
        assert_eq!(looks(&mut Watchdog::default(), 5, |_| down(), 100), []);
        let other = |_| LinkFacts { open: Some(vec![Way::Wss]), ..down() };
        assert_eq!(
            looks(&mut Watchdog::default(), 5, other, 100),
            [],
            "on another way: not this one's matter"
        );
        let reached = |_| LinkFacts { open: Some(vec![Way::Tls]), ..down() };
        let verdicts = looks(&mut Watchdog::default(), 5, reached, 60);
        assert!(verdicts.iter().all(|(_, v)| *v == Verdict::Restart));
        assert_eq!(times(&verdicts), [25, 85]);
    }

    #[test]
    fn a_refusal_is_told_once_and_restarts_nothing() {
        let refused = |_| LinkFacts {
            open: Some(vec![Way::Tls]),
            refusal: Some(Refusal::ByHub("Authorization Violation".into())),
            ..down()
        };
        let mut watchdog = Watchdog::default();
        assert_eq!(times(&looks(&mut watchdog, 5, refused, 100)), [5]);
        watchdog.seen(&up(1, 0), 0, Timestamp(500_000));
        assert_eq!(times(&looks(&mut watchdog, 600, refused, 10)), [600], "told again after it was in");
    }
}
