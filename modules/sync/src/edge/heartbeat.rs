//! The heartbeat: a request through the link, so its answer proves both ways; and what is told of it. Pure.

use std::collections::BTreeSet;

use bus::module::Effect;
use bus::server::{LinkFacts, Refusal};
use schemas::Timestamp;
use schemas::envelope;
use schemas::report::{EventReport, HEARTBEAT_INTERVAL_MS, Heartbeat, HeartbeatAck, NODE_GRACE_MS, Severity};
use schemas::subject::{self, Lane};

use super::{Act, Effects, HEARTBEAT, NAME, Sync};
use crate::clock::{Clocks, News};
use crate::watchdog::Verdict;
use crate::ways::Move;

/// An answer that is not there after so long is late. Then the heart beats faster, also while answers are outstanding: what was
/// asked of a link that broke is never answered, and the link that is back shall be noticed at once. Few enough for a slow link
/// (four outstanding, as each is given up after two intervals), and for `watchdog` to take them for no progress.
const LATE_MS: u64 = 3_000;
const LATE_INTERVAL_MS: u64 = 1_000;
/// The same when nothing is outstanding: there is no link, and that is known at once.
const AWAY_INTERVAL_MS: u64 = 500;
/// What waits is counted for so long before the link's return is told.
const LOOK_PATIENCE_MS: u64 = 5_000;

/// And, while the link is away, counted so often.
const COUNT_INTERVAL_MS: u64 = 5_000;

/// What is known of the link.
#[derive(Debug, Default)]
pub(super) struct Link {
    pub(super) up: bool,
    pub(super) sequence: u64,
    pub(super) asked_at: Option<Timestamp>,
    /// Heartbeats that are not answered yet, nor given up.
    pub(super) outstanding: u32,
    pub(super) answered_at: Option<Timestamp>,
    pub(super) down_since: Option<Timestamp>,
    pub(super) counted_at: Option<Timestamp>,
    pub(super) hub_boot_id: String,
    /// The hub has the Node object: what it keeps for the node (its consumer) is there, or will be in a moment.
    pub(super) known: bool,
    /// The node has told the hub what it is, as it is now.
    pub(super) hub_knows: bool,
    pub(super) untold: Option<Returned>,
    pub(super) clocks: Clocks,
}

/// A return of the link that is not told yet.
#[derive(Debug)]
pub(super) struct Returned {
    /// How long it was away; `None` at the first contact.
    away_ms: Option<u64>,
    /// When it returned.
    at: Timestamp,
    /// Lanes that have looked at their streams.
    looked: BTreeSet<Lane>,
}

impl Sync {
    pub(super) fn beat(&mut self, now: Timestamp, effects: &mut Effects) {
        let late = self.link.answered_at.is_none_or(|at| now.since_ms(at) >= LATE_MS);
        let pause_ms = match (late, self.link.outstanding) {
            (false, 0) => HEARTBEAT_INTERVAL_MS,
            (false, _) => return,
            (true, 0) => AWAY_INTERVAL_MS,
            (true, _) => LATE_INTERVAL_MS,
        };
        if self.link.asked_at.is_some_and(|at| now.since_ms(at) < pause_ms) {
            return;
        }
        self.link.sequence += 1;
        self.link.asked_at = Some(now);
        self.link.outstanding += 1;
        let beat = Heartbeat {
            boot_id: self.boot_id.clone(),
            sequence: self.link.sequence,
            at: now,
            desired: self.down.position(),
            waiting: self.lanes.iter().map(|(lane, of)| (*lane, of.up.waiting())).collect(),
            waiting_bytes: self.lanes.iter().map(|(lane, of)| (*lane, of.up.waiting_bytes())).collect(),
        };
        effects.push(Effect::Request {
            subject: subject::heartbeat(&self.node),
            payload: schemas::encode(&beat),
            timeout_ms: HEARTBEAT_INTERVAL_MS * 2,
            token: HEARTBEAT,
        });
    }

    pub(super) fn beaten(&mut self, answer: Result<Vec<u8>, String>, now: Timestamp, effects: &mut Effects) {
        self.link.outstanding = self.link.outstanding.saturating_sub(1);
        let Ok(ack) = answer
            .and_then(|bytes| schemas::decode::<HeartbeatAck>(&bytes).map_err(|error| error.to_string()))
        else {
            return;
        };
        self.link.answered_at = Some(now);
        match self.link.clocks.seen(ack.at, now) {
            Some(News::Differ(text)) => self.tell(Severity::Warning, "ClockDiffers", text, now, effects),
            Some(News::Agree(text)) => self.tell(Severity::Normal, "ClockAgrees", text, now, effects),
            None => {}
        }
        let restarted = ack.hub_boot_id != self.link.hub_boot_id;
        self.link.hub_boot_id = ack.hub_boot_id;
        if !ack.known && self.link.hub_knows {
            self.link.hub_knows = false;
        }
        let returned = !self.link.up;
        let joined = ack.known && !self.link.known;
        self.link.known = ack.known;
        if returned {
            self.link.up = true;
            let away = self.link.down_since.take().map(|since| now.since_ms(since));
            self.link.untold = Some(Returned { away_ms: away, at: now, looked: BTreeSet::new() });
        }
        if returned || restarted {
            // What a lane waits for from a hub that is gone never comes.
            for lane in Lane::ALL {
                self.lane(lane, now, effects, |up, _| vec![up.connect()]);
            }
            self.messages_connect(now, effects);
        }
        if restarted {
            // What was listed is another life's, perhaps another history's.
            self.down.disconnect();
            self.less_patience();
        }
        if returned || restarted || joined {
            self.contact(now, effects);
        }
        self.announce(now, effects);
    }

    /// While the link is away what waits grows: it is counted now and then, for whoever asks when it is back.
    pub(super) fn count(&mut self, now: Timestamp, effects: &mut Effects) {
        if self.link.counted_at.is_some_and(|at| now.since_ms(at) < COUNT_INTERVAL_MS) {
            return;
        }
        self.link.counted_at = Some(now);
        effects.extend(Lane::ALL.map(|lane| Effect::Act(Act::Count { lane })));
    }

    /// A lane has looked at its stream, or time passed. When all have, it is known what waited, and the return is told; a
    /// lane that cannot look keeps it back for a moment only.
    pub(super) fn looked(&mut self, lane: Option<Lane>, now: Timestamp, effects: &mut Effects) {
        let Some(returned) = &mut self.link.untold else { return };
        returned.looked.extend(lane);
        let all = Lane::ALL.iter().all(|lane| returned.looked.contains(lane));
        if !all && now.since_ms(returned.at) < LOOK_PATIENCE_MS {
            return;
        }
        let away_ms = returned.away_ms;
        self.link.untold = None;
        let waited = |lane, what: &str| {
            let up = self.lanes.get(&lane).map(|of| &of.up);
            let (count, bytes) = up.map_or((0, 0), |up| (up.waiting(), up.waiting_bytes()));
            format!("{count} {what} ({bytes} bytes)")
        };
        // State and events stand in one stream: it is counted once.
        let text = format!(
            "link is up{}; {}, {} and {} waited",
            away_ms.map(|ms| format!(" after {} s", ms / 1000)).unwrap_or_default(),
            waited(Lane::State, "reports and events"),
            waited(Lane::Workload, "workload messages"),
            waited(Lane::Bulk, "of telemetry"),
        );
        self.tell(Severity::Normal, "LinkUp", text, now, effects);
    }

    /// Says what the node is, when the hub does not know it.
    pub(super) fn announce(&mut self, now: Timestamp, effects: &mut Effects) {
        if self.link.hub_knows || !self.link.up {
            return;
        }
        let Some(report) = &mut self.report else { return };
        self.report_sequence += 1;
        report.sequence = self.report_sequence;
        self.link.hub_knows = true;
        let subject = subject::report(NAME, "node", &[self.node.as_str()]);
        // With the boot: a node whose disk was lost counts from the beginning.
        let id = format!("{}-{}-{}", self.node, self.boot_id, self.report_sequence);
        effects
            .push(Effect::Save { key: "sequence".to_owned(), value: schemas::encode(&self.report_sequence) });
        effects.push(Effect::Report {
            subject,
            headers: envelope::headers(self.node.as_str(), NAME, "Node", &id, now),
            payload: schemas::encode(&*report),
        });
    }

    pub(super) fn watch_link(&mut self, now: Timestamp, effects: &mut Effects) {
        let silent = self.link.answered_at.is_none_or(|at| now.since_ms(at) > NODE_GRACE_MS);
        if self.link.up && silent {
            self.link.up = false;
            self.link.untold = None;
            self.link.down_since = self.link.answered_at;
            self.link.hub_knows = false;
            self.link.known = false;
            self.down.disconnect();
            self.messages_disconnect();
            self.pull_pace.lost();
            self.asking = false;
            self.less_patience();
            for (lane, of) in &mut self.lanes {
                if let Some(sequence) = of.up.disconnect() {
                    effects.push(Effect::Act(Act::Trim { lane: *lane, sequence }));
                }
                of.pace.lost();
                (of.retry_at, of.held) = (None, None);
                of.round += 1;
                of.read_round += 1;
                self.turns.ended(*lane);
            }
            let text = format!("link is down: the hub has not answered for {} s", NODE_GRACE_MS / 1000);
            self.tell(Severity::Warning, "LinkDown", text, now, effects);
        }
    }

    /// How long the hub has not answered; since the start, when it never has.
    pub(super) fn silent_ms(&mut self, now: Timestamp) -> u64 {
        let started = *self.started_at.get_or_insert(now);
        now.since_ms(self.link.answered_at.unwrap_or(started))
    }

    /// What the look at the link means.
    pub(super) fn judge_link(&mut self, facts: &LinkFacts, now: Timestamp, effects: &mut Effects) {
        let silent_ms = self.silent_ms(now);
        if let Some(Move { to, back, why }) = self.ways.seen(facts, silent_ms, now) {
            self.watchdog.moved();
            effects.push(Effect::Act(Act::MoveLink(to)));
            let severity = if back { Severity::Normal } else { Severity::Warning };
            self.tell(severity, "LinkMoved", format!("the link goes over {to}:// now: {why}"), now, effects);
            return;
        }
        match self.watchdog.seen(facts, silent_ms, now) {
            Verdict::Leave => {}
            Verdict::Rebuild(why) => {
                effects.push(Effect::Act(Act::RebuildLink));
                self.tell(Severity::Warning, "LinkRebuilt", format!("{why}: it is made anew"), now, effects);
            }
            Verdict::Restart => {
                effects.push(Effect::Act(Act::RestartServer));
                let text =
                    "the hub can be reached, but the node's server no longer tries: it is started anew";
                self.tell(Severity::Warning, "ServerRestarted", text.to_owned(), now, effects);
            }
            Verdict::Refused(Refusal::OfHub(why)) => {
                let text = format!(
                    "EW-LINK-UNTRUSTED: this node does not trust the certificate that is shown at the hub's address ({why}); \
                     what runs here runs on; if the hub's authority was changed while this node was away, make it known by \
                     joining again, with the keys that are here: edgewire join TOKEN; if it was not, somebody stands between"
                );
                self.tell(Severity::Warning, "LinkUntrusted", text, now, effects);
            }
            Verdict::Refused(Refusal::ByHub(why)) => {
                let text = format!(
                    "EW-LINK-REFUSED: the hub refuses this node's credentials ({why}); what runs here runs on; \
                     was it revoked (`edgewire node ls` at the hub)? then join again: edgewire join TOKEN --new-keys"
                );
                self.tell(Severity::Warning, "LinkRefused", text, now, effects);
            }
        }
    }

    pub(super) fn tell(
        &mut self,
        severity: Severity,
        reason: &str,
        message: String,
        now: Timestamp,
        effects: &mut Effects,
    ) {
        if severity == Severity::Warning {
            effects.push(Effect::Act(Act::Warn(message.clone())));
        }
        self.events += 1;
        // With the time: the module may start again within a boot and count from the beginning.
        let id = format!("{}-{}-{}", self.boot_id, now.0, self.events);
        let event = EventReport::of_node(&id, &self.node, NAME, now, severity, reason, message);
        effects.push(Effect::event(&event));
    }
}
