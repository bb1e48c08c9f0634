//! Which way the link goes: the better one (`tls://`), or `wss://` where that is shut, and back again. Pure.
//!
//! A node's server goes one way at a time and does not go back by itself. Three rules, from what the look at the link shows:
//!
//! * no link, and the hub answers (TLS, with its own certificate) on the other way but not on this one, twice: the other
//! * no link for [`STUBBORN_MS`] though the hub answers on this way too: something in between lets the greeting through and
//!   not the link. The other, if that answers
//! * a link over the worse way for a while (minutes, longer or shorter by node, so that a fleet does not move in one beat),
//!   and the hub answers on the better one, twice: back. If that does not carry the link, the next try is twice as far off

use bus::server::{LinkFacts, Way};
use schemas::Timestamp;

/// How long a link stays on the worse way before the better one is tried, unless configured.
pub const RETURN_AFTER_MS: u64 = 300_000;
/// Tries that fail put the next one off, up to so many times as long.
const RETURN_FACTOR_MAX: u64 = 16;
/// No answer for so long, with no link: the ways are tried. A hub that is started anew is back before.
const TRY_MS: u64 = 6_000;
/// They are tried so often, and after [`LONG_MS`] less.
const TRY_EVERY_MS: u64 = 4_000;
const LONG_MS: u64 = 60_000;
const TRY_LONG_EVERY_MS: u64 = 15_000;
/// A heartbeat was answered within this: the link carries.
const CARRIES_MS: u64 = 4_500;
/// The hub answers, and there is no link for so long.
const STUBBORN_MS: u64 = 40_000;
/// Twice as long after each time that this helped nothing, so often.
const MOVES_MAX: u32 = 4;
/// A link that was moved back has so long to stand.
const TRIAL_MS: u64 = 10_000;

/// The link shall go another way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// Which.
    pub to: Way,
    /// Is it the better one?
    pub back: bool,
    /// Why.
    pub why: String,
}

/// What is remembered between two looks.
#[derive(Debug)]
pub struct Ways {
    return_after_ms: u64,
    /// Between 750 and 1250: this node's share of the time before it returns, in thousandths.
    share: u64,
    factor: u64,
    several: bool,
    linked: bool,
    asked_at: Option<Timestamp>,
    /// The link goes the worse way, and nothing speaks for a return, since then.
    worse_since: Option<Timestamp>,
    /// What the last look spoke for.
    seen_once: Option<Way>,
    /// When the link was moved back, until it has proved itself; and whether it has stood since.
    trial: Option<(Timestamp, bool)>,
    moved_at: Option<Timestamp>,
    /// How often it went to and fro with no link on any way.
    moves: u32,
}

impl Ways {
    /// Of the node of that name. `return_after_ms`: see [`RETURN_AFTER_MS`].
    pub fn new(node: &str, return_after_ms: u64) -> Self {
        // FNV-1a: only to be unlike other nodes.
        let hash = node
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, b| (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
        Self {
            return_after_ms,
            share: 750 + (hash >> 32) % 501,
            factor: 1,
            several: false,
            linked: false,
            asked_at: None,
            worse_since: None,
            seen_once: None,
            trial: None,
            moved_at: None,
            moves: 0,
        }
    }

    /// Shall the hub be called on all ways? `silent_ms`: since a heartbeat was answered last.
    pub fn due(&mut self, silent_ms: u64, now: Timestamp) -> bool {
        // What was seen once is soon looked at again.
        let soon = self.seen_once.is_some() || silent_ms < LONG_MS;
        let every = if soon { TRY_EVERY_MS } else { TRY_LONG_EVERY_MS };
        let away = !self.linked && silent_ms >= TRY_MS;
        let stayed = self.worse_since.is_some_and(|since| now.since_ms(since) >= self.patience_ms());
        let rested = self.asked_at.is_none_or(|at| now.since_ms(at) >= every);
        let due = self.several && (away || stayed) && rested;
        if due {
            self.asked_at = Some(now);
        }
        due
    }

    fn patience_ms(&self) -> u64 {
        (self.return_after_ms.saturating_mul(self.factor) / 1000).saturating_mul(self.share)
    }

    /// What was seen.
    pub fn seen(&mut self, facts: &LinkFacts, silent_ms: u64, now: Timestamp) -> Option<Move> {
        self.several = facts.ways.len() > 1;
        self.linked = facts.linked;
        let (way, best) = (facts.way?, *facts.ways.first()?);
        let other = *facts.ways.iter().find(|other| **other != way)?;
        if facts.linked {
            if silent_ms < CARRIES_MS {
                return self.carries(way, best, facts.open.as_deref(), now);
            }
            return None;
        }
        self.worse_since = None;
        // Refused on one way is refused on all.
        if facts.refusal.is_some() {
            return None;
        }
        if let Some((at, false)) = self.trial
            && way == best
            && now.since_ms(at) >= TRIAL_MS
        {
            return self.go(other, false, format!("{way}:// answered, but carries no link"), now);
        }
        let open = facts.open.as_deref()?;
        if silent_ms < TRY_MS || !open.contains(&other) {
            self.seen_once = None;
            return None;
        }
        if !open.contains(&way) {
            if !self.twice(other) {
                return None;
            }
            let why = format!("the hub answers on {other}:// and not on {way}://");
            return self.go(other, other == best, why, now);
        }
        self.seen_once = None;
        let pause_ms = STUBBORN_MS << self.moves;
        let rested = self.moved_at.is_none_or(|at| now.since_ms(at) >= pause_ms);
        if silent_ms < STUBBORN_MS || !rested {
            return None;
        }
        self.moves = (self.moves + 1).min(MOVES_MAX);
        let why = format!("there is no link over {way}://, though the hub answers");
        self.go(other, other == best, why, now)
    }

    /// The link stands and carries.
    fn carries(&mut self, way: Way, best: Way, open: Option<&[Way]>, now: Timestamp) -> Option<Move> {
        self.moves = 0;
        if way == best {
            (self.worse_since, self.seen_once) = (None, None);
            if let Some((at, stood)) = &mut self.trial {
                *stood = true;
                if now.since_ms(*at) >= self.return_after_ms {
                    (self.trial, self.factor) = (None, 1);
                }
            }
            return None;
        }
        let since = self.worse_since.filter(|since| *since <= now).unwrap_or(now);
        self.worse_since = Some(since);
        let open = open?;
        if !open.contains(&best) {
            (self.worse_since, self.seen_once) = (Some(now), None);
            return None;
        }
        if now.since_ms(since) < self.patience_ms() || !self.twice(best) {
            return None;
        }
        let moved = self.go(best, true, format!("the hub answers on {best}:// again"), now);
        self.trial = Some((now, false));
        moved
    }

    fn twice(&mut self, way: Way) -> bool {
        self.seen_once.replace(way) == Some(way)
    }

    fn go(&mut self, to: Way, back: bool, why: String, now: Timestamp) -> Option<Move> {
        if self.trial.take().is_some() && !back {
            self.factor = (self.factor * 2).min(RETURN_FACTOR_MAX);
        }
        (self.worse_since, self.seen_once) = (None, None);
        self.moved_at = Some(now);
        Some(Move { to, back, why })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: [Way; 2] = Way::ALL;

    fn facts(linked: bool, way: Way, open: &[Way]) -> LinkFacts {
        LinkFacts {
            linked,
            way: Some(way),
            ways: BOTH.to_vec(),
            open: Some(open.to_vec()),
            ..LinkFacts::default()
        }
    }

    /// What the world is like at a second: is there a link over that way, and which ways are open?
    struct World {
        ways: Ways,
        way: Way,
        silent_since_s: u64,
        moves: Vec<(u64, Way)>,
    }

    impl World {
        fn new(way: Way) -> Self {
            let mut ways = Ways::new("n", 300_000);
            ways.share = 1000;
            Self { ways, way, silent_since_s: 0, moves: Vec::new() }
        }

        /// From one second to another; a link stands over `way` if `carries(way)`, the hub answers on `open`.
        fn run(&mut self, seconds: std::ops::Range<u64>, open: &[Way], carries: &[Way]) -> &mut Self {
            for s in seconds.step_by(2) {
                let linked = carries.contains(&self.way);
                self.silent_since_s = if linked { s } else { self.silent_since_s };
                let (now, silent_ms) = (Timestamp(0).plus_ms(s * 1000), (s - self.silent_since_s) * 1000);
                let reach = self.ways.due(silent_ms, now);
                let mut facts = facts(linked, self.way, open);
                facts.open = facts.open.filter(|_| reach);
                if let Some(moved) = self.ways.seen(&facts, silent_ms, now) {
                    assert_ne!(moved.to, self.way);
                    assert_eq!(moved.back, moved.to == Way::Tls);
                    self.way = moved.to;
                    self.moves.push((s, moved.to));
                }
            }
            self
        }
    }

    #[test]
    fn a_way_that_is_shut_is_left_for_one_that_is_open() {
        let mut world = World::new(Way::Tls);
        world.run(0..60, &[Way::Wss], &[Way::Wss]);
        assert_eq!(world.moves, [(10, Way::Wss)]);
        // Shut as well, or a hub that is away: nothing to gain.
        assert_eq!(World::new(Way::Tls).run(0..600, &[], &[]).moves, []);
        // A hub that is started anew is there again before anything is tried.
        assert_eq!(World::new(Way::Tls).run(0..6, &[Way::Wss], &[]).run(6..60, &BOTH, &[Way::Tls]).moves, []);
    }

    #[test]
    fn one_look_is_not_enough() {
        let mut ways = Ways::new("n", 300_000);
        let at = |s: u64| Timestamp(0).plus_ms(s * 1000);
        assert_eq!(ways.seen(&facts(false, Way::Tls, &[Way::Wss]), 7_000, at(7)), None);
        assert_eq!(ways.seen(&facts(false, Way::Tls, &BOTH), 11_000, at(11)), None);
        assert_eq!(ways.seen(&facts(false, Way::Tls, &[Way::Wss]), 15_000, at(15)), None);
        assert!(ways.seen(&facts(false, Way::Tls, &[Way::Wss]), 19_000, at(19)).is_some());
    }

    #[test]
    fn a_way_that_answers_and_carries_nothing_is_left_too_and_not_in_haste() {
        let mut world = World::new(Way::Tls);
        world.run(0..86_400, &BOTH, &[]);
        let times: Vec<u64> = world.moves.iter().map(|(s, _)| *s).collect();
        let gaps: Vec<u64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!((40..60).contains(&times[0]) && gaps[0] >= 80 && gaps[1] >= 160, "{times:?}");
        assert!((100..150).contains(&times.len()), "told less and less often, and never given up: {times:?}");
    }

    #[test]
    fn the_better_way_is_taken_again_after_a_while() {
        let mut world = World::new(Way::Wss);
        world.run(0..400, &BOTH, &BOTH);
        assert_eq!(world.moves, [(304, Way::Tls)]);
        world.run(400..4000, &BOTH, &BOTH);
        assert_eq!(world.moves.len(), 1);
        // Not while it is shut; the while begins when it was last seen shut.
        let mut world = World::new(Way::Wss);
        world.run(0..1000, &[Way::Wss], &[Way::Wss]).run(1000..1600, &BOTH, &BOTH);
        assert_eq!(world.moves.len(), 1);
        assert!(world.moves[0].0 > 1000, "{:?}", world.moves);
    }

    #[test]
    fn a_better_way_that_carries_nothing_is_tried_less_and_less_often() {
        let mut world = World::new(Way::Wss);
        world.run(0..20_000, &BOTH, &[Way::Wss]);
        let back: Vec<u64> = world.moves.iter().filter(|(_, to)| *to == Way::Tls).map(|(s, _)| *s).collect();
        let gaps: Vec<u64> = back.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(gaps[..4].windows(2).all(|pair| pair[1] > pair[0] + pair[0] / 2), "{gaps:?}");
        let away: Vec<u64> =
            world.moves.windows(2).filter(|m| m[1].1 == Way::Wss).map(|m| m[1].0 - m[0].0).collect();
        assert!(away.iter().all(|s| *s <= 12), "the link is missing only shortly: {away:?}");
        // It carries again, and stays well: the patience is the first again.
        let last = world.moves.last().unwrap().0;
        world.run(20_000..40_000, &BOTH, &BOTH);
        assert_eq!((world.way, world.ways.factor), (Way::Tls, 1), "{:?} {last}", world.moves);
    }

    #[test]
    fn one_way_is_never_left_and_a_refusal_is_none_of_its_business() {
        let mut ways = Ways::new("n", 300_000);
        let mut only = facts(false, Way::Tls, &[]);
        only.ways = vec![Way::Tls];
        for s in 0..100 {
            let now = Timestamp(0).plus_ms(s * 2000);
            assert!(!ways.due(s * 2000, now));
            assert_eq!(ways.seen(&only, s * 2000, now), None);
        }
        let mut refused = facts(false, Way::Tls, &[Way::Wss]);
        refused.refusal = Some(bus::server::Refusal::ByHub("Authorization Violation".into()));
        for s in 0..100 {
            assert_eq!(ways.seen(&refused, s * 2000, Timestamp(0).plus_ms(s * 2000)), None);
        }
    }

    #[test]
    fn nodes_do_not_return_in_one_beat() {
        let shares: std::collections::BTreeSet<u64> =
            (0..100).map(|n| Ways::new(&format!("edge-{n}"), 1).share).collect();
        assert!(shares.len() > 60 && shares.iter().all(|share| (750..=1250).contains(share)), "{shares:?}");
    }
}
