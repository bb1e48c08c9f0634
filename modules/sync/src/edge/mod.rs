//! The edge's end as one module: heartbeat, down and the lanes up, composed. Pure.

mod acts;
mod downward;
mod heartbeat;
mod messages;
mod upward;

use std::collections::BTreeMap;

use bus::module::{Effect, EntryValue, Expect, Input, Module};
use schemas::Timestamp;
use schemas::desired::Local;
use schemas::name::NodeName;
use schemas::report::{NodeReport, Severity};
use schemas::subject::{self, BUCKET_LOCAL, DesiredKey, KEY_LINEAGE, Lane};

use crate::disk::Disk;
use crate::down::Down;
use crate::downlink::hub::ARRIVED;
use crate::pace::Pace;
use crate::turns::{Caps, Turns};
use crate::up::{Confirmed, Up};
use crate::watchdog::Watchdog;
use crate::ways::{RETURN_AFTER_MS, Ways};

pub use acts::{Act, Done, account, bytes, flows};
use downward::Batch;
use heartbeat::Link;
use messages::Messages;
pub use messages::{Came, Wanted};

/// Name of the module.
pub const NAME: &str = "sync";
/// The question what the node has and the hub does not.
const DIVERGED: &str = "diverged";
/// After a failure, the next try.
const RETRY_MS: u64 = 1_000;
/// How often the local bucket is looked at. Its watch goes on after a crash of the server where it was, so it does not
/// tell what the server lost in it.
const LOOK_INTERVAL_MS: u64 = 15_000;
/// How often the machine is looked at.
const INSPECT_INTERVAL_MS: u64 = 30_000;

const HEARTBEAT: u64 = 1;
const LIST: u64 = 2;
const GET: u64 = 3;
const MARK: u64 = 4;
const WRITES: u64 = 100;
/// From here on looks at what the hub has for this node's workloads, each with its round.
const LOOK: u64 = 1 << 40;
/// Saved while the hub is known to be an older one and the local bucket does not say so yet.
const REWOUND: &str = "rewound";

/// The module.
pub struct Sync {
    node: NodeName,
    boot_id: String,
    down: Down,
    pull_pace: Pace,
    pull_round: u64,
    batches: BTreeMap<u64, Batch>,
    writes: BTreeMap<u64, (DesiredKey, u64)>,
    next_write: u64,
    asking: bool,
    ask_patience_ms: u64,
    asked_down_at: Timestamp,
    retry_down_at: Option<Timestamp>,
    list_again_at: Option<Timestamp>,
    lanes: BTreeMap<Lane, LaneUp>,
    messages: Messages,
    turns: Turns,
    local_current: bool,
    link: Link,
    watchdog: Watchdog,
    disk: Disk,
    ways: Ways,
    started_at: Option<Timestamp>,
    report: Option<NodeReport>,
    report_sequence: u64,
    inspected_at: Option<Timestamp>,
    looked_at: Option<Timestamp>,
    notices: Vec<(String, String)>,
    events: u64,
    /// The hub lacks reports that it had confirmed: the local bucket is to say so, for those who report.
    rewound: bool,
    marking: bool,
}

/// A lane with its pace.
#[derive(Debug)]
struct LaneUp {
    up: Up,
    pace: Pace,
    retry_at: Option<Timestamp>,
    /// A batch that waits for its turn.
    held: Option<Act>,
    /// How many dropped messages were told, and when.
    told_drops: (u64, Timestamp),
    /// Counts what the lane wanted done across the link: one thing at a time, and only its outcome counts.
    round: u64,
    /// The same for what it wanted read here.
    read_round: u64,
}

type Effects = Vec<Effect<Act>>;

impl Sync {
    /// A module of `node`. `boot_id` is random, new with every start of the process. `notices` are told as events: what
    /// the runtime found at its start (reason, message).
    pub fn new(node: NodeName, boot_id: String, notices: Vec<(String, String)>) -> Self {
        let lanes = Lane::ALL
            .into_iter()
            .map(|lane| {
                let up = Up::new(node.clone(), lane);
                (
                    lane,
                    LaneUp {
                        up,
                        pace: Pace::default(),
                        retry_at: None,
                        held: None,
                        told_drops: Default::default(),
                        round: 0,
                        read_round: 0,
                    },
                )
            })
            .collect();
        let ways = Ways::new(node.as_str(), RETURN_AFTER_MS);
        let messages = Messages::new(node.clone());
        Self {
            node,
            boot_id,
            down: Down::default(),
            pull_pace: Pace::default(),
            pull_round: 0,
            batches: BTreeMap::new(),
            writes: BTreeMap::new(),
            next_write: WRITES,
            asking: false,
            ask_patience_ms: downward::ASK_FIRST_MS,
            asked_down_at: Timestamp::default(),
            retry_down_at: None,
            list_again_at: None,
            lanes,
            messages,
            turns: Turns::default(),
            local_current: false,
            link: Link::default(),
            watchdog: Watchdog::default(),
            disk: Disk::default(),
            ways,
            started_at: None,
            report: None,
            report_sequence: 0,
            inspected_at: None,
            looked_at: None,
            notices,
            events: 0,
            rewound: false,
            marking: false,
        }
    }

    /// With another time that the link stays on the worse way before the better one is tried.
    #[must_use]
    pub fn returning_after(mut self, ms: u64) -> Self {
        self.ways = Ways::new(self.node.as_str(), ms);
        self
    }

    /// With caps on the lanes of the uplink.
    #[must_use]
    pub fn capped(mut self, caps: Caps) -> Self {
        self.turns = Turns::new(caps);
        self
    }

    /// Does the node follow the hub, with nothing missing and nothing waiting? For tests and the simulator.
    pub fn is_settled(&self) -> bool {
        self.link.up && self.down.is_settled()
    }

    /// The hub is an older one: its history goes into the local bucket, where whoever reports sees it and reports anew.
    fn mark(&mut self, effects: &mut Effects) {
        let Some(lineage) = self.down.lineage().filter(|_| self.rewound && !self.marking) else { return };
        self.marking = true;
        let value = schemas::encode(lineage);
        effects.push(Effect::put(BUCKET_LOCAL, KEY_LINEAGE.to_owned(), value, Expect::Any, MARK));
    }

    fn marked(&mut self, failed: bool, effects: &mut Effects) {
        self.marking = false;
        // A failed one is written again at the next tick.
        if !failed {
            self.rewound = false;
            effects.push(Effect::Forget { key: REWOUND.to_owned() });
        }
    }

    fn tick(&mut self, now: Timestamp, effects: &mut Effects) {
        for (reason, message) in std::mem::take(&mut self.notices) {
            self.tell(Severity::Warning, &reason, message, now, effects);
        }
        self.beat(now, effects);
        self.watch_link(now, effects);
        let silent_ms = self.silent_ms(now);
        let call = self.ways.due(silent_ms, now);
        if self.watchdog.due(silent_ms, now) || call {
            let reach = self.watchdog.may_have_given_up(now) || call;
            effects.push(Effect::Act(Act::LookAtLink { reach }));
        }
        if self.disk.due(now) {
            effects.push(Effect::Act(Act::LookAtDisk));
        }
        if self.inspected_at.is_none_or(|at| now.since_ms(at) >= INSPECT_INTERVAL_MS) {
            self.inspected_at = Some(now);
            effects.push(Effect::Act(Act::Inspect));
        }
        if self.local_current && self.looked_at.is_none_or(|at| now.since_ms(at) >= LOOK_INTERVAL_MS) {
            self.looked_at = Some(now);
            effects.push(Effect::Act(Act::LookAtStore));
        }
        self.tell_drops(now, effects);
        self.messages_tick(now, effects);
        if !self.link.up {
            self.count(now, effects);
            return;
        }
        self.looked(None, now, effects);
        self.take_turns(now, effects);
        self.mark(effects);
        if self.retry_down_at.is_some_and(|at| at <= now) && !self.asking && self.local_current {
            self.retry_down_at = None;
            self.contact(now, effects);
        }
        self.list_again(now, effects);
        for lane in Lane::ALL {
            let Some(of) = self.lanes.get_mut(&lane) else { continue };
            if of.retry_at.is_some_and(|at| at <= now) {
                of.retry_at = None;
                self.lane(lane, now, effects, |up, _| vec![up.connect()]);
            }
        }
    }
}

impl Module for Sync {
    type Act = Act;
    type Done = Done;

    fn restore(&mut self, saved: Vec<(String, Vec<u8>)>, _now: Timestamp) -> Effects {
        for (key, value) in saved {
            self.rewound |= key == REWOUND;
            if key == "sequence" {
                self.report_sequence = schemas::decode(&value).unwrap_or(0);
            }
            if let (messages::SAVED, Ok(saved)) = (key.as_str(), schemas::decode(&value)) {
                self.messages.core.restore(saved);
            }
            for (lane, of) in &mut self.lanes {
                let confirmed = schemas::decode::<Confirmed>(&value);
                if let (true, Ok(confirmed)) = (key.strip_prefix("lane.") == Some(lane.as_str()), confirmed) {
                    of.told_drops.0 = confirmed.cursor.account.drops.count();
                    of.up.restore(confirmed);
                }
            }
        }
        Vec::new()
    }

    fn apply(&mut self, input: Input<Done>, now: Timestamp) -> Effects {
        let mut effects = Vec::new();
        match input {
            Input::Entry(entry) => {
                let Some(key) = DesiredKey::parse_local(&entry.key) else { return effects };
                match entry.value {
                    EntryValue::Removed(_) => self.down.local(key, None),
                    EntryValue::Put(bytes) => match schemas::decode::<Local>(&bytes) {
                        Ok(local) => self.down.local(key, Some(local)),
                        // Not readable is not held: the list finds it missing and it is fetched again.
                        Err(_) => self.down.local(key, None),
                    },
                }
            }
            Input::Current { .. } => {
                self.local_current = true;
                self.contact(now, &mut effects);
            }
            Input::Answered { token: HEARTBEAT, outcome } => self.beaten(outcome, now, &mut effects),
            Input::Answered { token, outcome } if token >= LOOK => {
                self.looked_down(token, outcome, now, &mut effects);
            }
            Input::Answered { token, outcome } => self.answered(token, outcome, now, &mut effects),
            Input::Wrote { token: MARK, outcome } => self.marked(outcome.is_err(), &mut effects),
            Input::Wrote { token, outcome } => self.wrote(token, outcome.is_err(), now, &mut effects),
            Input::Tick => self.tick(now, &mut effects),
            Input::Done(done) => self.done(done, now, &mut effects),
            Input::Message(message) if message.subject == subject::command(&self.node, NAME, ARRIVED) => {
                self.messages_called(now, &mut effects);
            }
            Input::Message(message) => effects.extend(self.asked(&message)),
            // Nothing is consumed by the runner: arrivals only wake the rim.
            Input::Delivery(_) => {}
        }
        effects
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bus::link::Pulled;
    use schemas::command::Reply;
    use schemas::desired::{Content, Desired, Epoch, Lineage, ListPage};
    use schemas::object::Object;
    use schemas::report::HeartbeatAck;

    const NOW: Timestamp = Timestamp(1_000_000);

    fn beat(sync: &mut Sync, hub: &str) -> Effects {
        sync.apply(Input::Tick, NOW);
        let ack = HeartbeatAck { sequence: 1, at: NOW, known: true, hub_boot_id: hub.into() };
        sync.apply(Input::Answered { token: HEARTBEAT, outcome: Ok(schemas::encode(&ack)) }, NOW)
    }

    fn list(sync: &mut Sync, epochs: &[(&str, u64)]) -> Effects {
        let epochs = epochs.iter().map(|(id, start)| Epoch { id: (*id).into(), start: *start }).collect();
        let lineage = Lineage { generation: "g".into(), epochs };
        let page = ListPage { lineage, at_revision: 3, entries: Vec::new(), more: false };
        let outcome = Ok(schemas::encode(&Reply::Ok(page)));
        sync.apply(Input::Answered { token: LIST, outcome }, NOW)
    }

    fn pulled(sync: &mut Sync, round: u64, epoch: &str) -> Effects {
        let desired = Desired {
            generation: "g".into(),
            epoch: epoch.into(),
            resource_version: 9,
            content: Content::Object(Object::new("v1", "Pod", "d", "late")),
        };
        let entry = Pulled {
            key: "n1.pods.d.late.u".into(),
            revision: 4,
            payload: schemas::encode(&desired),
            ack: "ack".into(),
        };
        sync.apply(Input::Done(Done::Pulled { round, outcome: Ok(vec![entry]), took_ms: 0 }), NOW)
    }

    fn following() -> Sync {
        let mut sync = Sync::new(NodeName::new("n1").unwrap(), "b".into(), Vec::new());
        sync.apply(Input::Current { bucket: subject::BUCKET_LOCAL.into(), filter: ">".into() }, NOW);
        beat(&mut sync, "h1");
        list(&mut sync, &[("e1", 1)]);
        sync
    }

    fn writes(effects: &Effects) -> usize {
        effects.iter().filter(|effect| matches!(effect, Effect::Put { .. })).count()
    }

    /// The state lane finds that cursor at the hub.
    fn finds(sync: &mut Sync, sequence: u64) -> Effects {
        let round = sync.lanes[&Lane::State].round;
        let cursor = schemas::encode(&crate::up::Cursor {
            outbox_generation: "o".into(),
            sequence,
            account: Default::default(),
        });
        let state = bus::link::StreamState {
            generation: "o".into(),
            first_sequence: 1,
            last_sequence: 9,
            messages: 9,
            bytes: 0,
            bytes_max: 1,
        };
        let done = Done::Found { lane: Lane::State, round, outcome: Ok((Some((1, cursor)), state)) };
        sync.apply(Input::Done(done), NOW)
    }

    #[test]
    fn a_hub_without_what_it_confirmed_is_marked_in_the_local_bucket() {
        let marks = |effects: &Effects| {
            let mark = |e: &&Effect<Act>| matches!(e, Effect::Put { key, .. } if key == KEY_LINEAGE);
            effects.iter().filter(mark).count()
        };
        let mut sync = Sync::new(NodeName::new("n1").unwrap(), "b".into(), Vec::new());
        let confirmed =
            crate::up::Cursor { outbox_generation: "o".into(), sequence: 8, account: Default::default() };
        let confirmed = schemas::encode(&Confirmed { cursor: confirmed });
        sync.restore(vec![("lane.state".into(), confirmed)], NOW);
        sync.apply(Input::Current { bucket: BUCKET_LOCAL.into(), filter: ">".into() }, NOW);
        beat(&mut sync, "h2");
        let effects = finds(&mut sync, 5);
        assert!(
            effects.iter().any(|e| matches!(e, Effect::Save { key, .. } if key == REWOUND)),
            "{effects:?}"
        );
        assert_eq!(marks(&sync.apply(Input::Tick, NOW)), 0, "the hub's history is not known yet");

        // Our own end in between does not lose it.
        let mut sync = Sync::new(NodeName::new("n1").unwrap(), "b".into(), Vec::new());
        sync.restore(vec![(REWOUND.into(), schemas::encode(&true))], NOW);
        sync.apply(Input::Current { bucket: BUCKET_LOCAL.into(), filter: ">".into() }, NOW);
        beat(&mut sync, "h2");
        list(&mut sync, &[("e1", 1), ("e2", 2)]);
        assert_eq!(marks(&sync.apply(Input::Tick, NOW)), 1);
        assert_eq!(marks(&sync.apply(Input::Tick, NOW)), 0, "it is under way");
        let failed = Err(bus::module::WriteError::Failed("cut".into()));
        sync.apply(Input::Wrote { token: MARK, outcome: failed }, NOW);
        assert_eq!(marks(&sync.apply(Input::Tick, NOW)), 1);
        let effects = sync.apply(Input::Wrote { token: MARK, outcome: Ok(7) }, NOW);
        assert!(matches!(effects.as_slice(), [Effect::Forget { key }] if key == REWOUND), "{effects:?}");
        assert_eq!(marks(&sync.apply(Input::Tick, NOW)), 0);
    }

    #[test]
    fn the_heart_beats_faster_while_answers_are_late() {
        /// When it beats; each beat is refused at once, or is not answered.
        fn beats(sync: &mut Sync, ms: std::ops::Range<u64>, refused: bool) -> Vec<u64> {
            let mut at = Vec::new();
            for ms in ms.step_by(250) {
                let effects = sync.apply(Input::Tick, NOW.plus_ms(ms));
                if effects.iter().any(|e| matches!(e, Effect::Request { token: HEARTBEAT, .. })) {
                    at.push(ms);
                    if refused {
                        give_up(sync, ms);
                    }
                }
            }
            at
        }
        fn give_up(sync: &mut Sync, ms: u64) {
            let outcome = Err("no answer".to_owned());
            sync.apply(Input::Answered { token: HEARTBEAT, outcome }, NOW.plus_ms(ms));
        }
        let mut sync = following();
        // Answered at 0. The beat of 2 s goes unanswered; later ones do not wait for it.
        assert_eq!(beats(&mut sync, 0..6_000, false), [2_000, 3_000, 4_000, 5_000]);
        (0..4).for_each(|_| give_up(&mut sync, 6_000));
        assert_eq!(beats(&mut sync, 6_000..8_000, true), [6_000, 6_500, 7_000, 7_500], "there is no link");
        let ack = HeartbeatAck { sequence: 9, at: NOW, known: true, hub_boot_id: "h1".into() };
        let outcome = Ok(schemas::encode(&ack));
        sync.apply(Input::Answered { token: HEARTBEAT, outcome }, NOW.plus_ms(8_000));
        assert_eq!(beats(&mut sync, 8_000..11_000, false), [9_500], "in time again");
    }

    #[test]
    fn a_contact_is_followed_by_one_list_more() {
        let mut sync = following();
        let lists = |effects: &Effects| {
            effects.iter().filter(|e| matches!(e, Effect::Request { token: LIST, .. })).count()
        };
        let at = |ms| NOW.plus_ms(ms);
        assert_eq!(lists(&sync.apply(Input::Tick, at(downward::LIST_AGAIN_MS - 1))), 0);
        assert_eq!(lists(&sync.apply(Input::Tick, at(downward::LIST_AGAIN_MS))), 1);
        let effects = list(&mut sync, &[("e1", 1)]);
        assert!(effects.iter().any(|e| matches!(e, Effect::Act(Act::Pull { .. }))), "{effects:?}");
        assert_eq!(lists(&sync.apply(Input::Tick, at(3 * downward::LIST_AGAIN_MS))), 0, "once");
    }

    #[test]
    fn a_question_that_nobody_answers_is_asked_again_soon_and_with_more_patience() {
        let mut sync = Sync::new(NodeName::new("n1").unwrap(), "b".into(), Vec::new());
        sync.apply(Input::Current { bucket: subject::BUCKET_LOCAL.into(), filter: ">".into() }, NOW);
        let mut effects = beat(&mut sync, "h1");
        let (mut at, mut waits) = (NOW, Vec::new());
        let unanswered = || Input::Answered { token: LIST, outcome: Err("no answer".into()) };
        for _ in 0..6 {
            let wait = effects.iter().find_map(|effect| match effect {
                Effect::Request { token: LIST, timeout_ms, .. } => Some(*timeout_ms),
                _ => None,
            });
            waits.push(wait.unwrap());
            at = at.plus_ms(wait.unwrap());
            sync.apply(unanswered(), at);
            sync.link.answered_at = Some(at);
            effects = sync.apply(Input::Tick, at);
        }
        assert_eq!(waits, [1_000, 2_000, 4_000, 8_000, 16_000, 16_000]);
        // Refused at once: there is no way to the hub, and patience has nothing to do with it.
        sync.apply(unanswered(), at);
        assert_eq!(
            sync.apply(Input::Tick, at)
                .iter()
                .filter(|e| matches!(e, Effect::Request { token: LIST, .. }))
                .count(),
            0
        );
    }

    #[test]
    fn what_a_pull_brings_while_a_list_is_out_is_taken() {
        let mut sync = following();
        sync.contact(NOW, &mut Vec::new());
        assert_eq!(writes(&pulled(&mut sync, 1, "e1")), 1);
    }

    #[test]
    fn what_cannot_be_placed_is_asked_for_after_the_next_list_even_if_that_does_not_name_it() {
        let mut sync = following();
        let effects = pulled(&mut sync, 1, "e2");
        assert_eq!(writes(&effects), 0, "its epoch is not known yet");
        let effects = list(&mut sync, &[("e1", 1), ("e2", 3)]);
        assert!(
            effects.iter().any(|e| matches!(e, Effect::Act(Act::Pull { wait: false, .. }))),
            "{effects:?}"
        );
        let nothing = Done::Pulled { round: 2, outcome: Ok(Vec::new()), took_ms: 0 };
        let effects = sync.apply(Input::Done(nothing), NOW);
        let get = subject::request(&sync.node, "desired.get");
        assert!(effects.iter().any(|e| matches!(e, Effect::Request { subject, .. } if *subject == get)));
    }
}
