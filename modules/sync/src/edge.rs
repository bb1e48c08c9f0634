//! The edge's end as one module: heartbeat, down and the lanes up, composed. Pure.

use std::collections::BTreeMap;

use bus::flow::Flow;
use bus::link::{LinkError, Pulled, Raise, Stored, StreamState};
use bus::module::{Account, Effect, EntryValue, Expect, Input, Module};
use schemas::Timestamp;
use schemas::command::Reply;
use schemas::desired::{Desired, GetPage, ListPage, Local};
use schemas::envelope;
use schemas::name::NodeName;
use schemas::report::{
    EventReport, HEARTBEAT_INTERVAL_MS, Heartbeat, HeartbeatAck, NODE_GRACE_MS, NodeReport, Severity,
};
use schemas::subject::{self, DesiredKey, Lane};

use crate::down::{self, Down, Verdict};
use crate::pace::Pace;
use crate::up::{self, Confirmed, Cursor, Up};

/// Name of the module.
pub const NAME: &str = "sync";
/// A question to the hub waits so long.
const ASK_TIMEOUT_MS: u64 = 10_000;
/// After a failure, the next try.
const RETRY_MS: u64 = 1_000;
/// How often the machine is looked at.
const INSPECT_INTERVAL_MS: u64 = 30_000;

const HEARTBEAT: u64 = 1;
const LIST: u64 = 2;
const GET: u64 = 3;
const WRITES: u64 = 100;

/// What only the rim can do.
#[derive(Debug, Clone, PartialEq)]
pub enum Act {
    /// Pull from the node's consumer. The round comes back, so that an old pull is told from the present one.
    Pull {
        /// Which round.
        round: u64,
        /// At most so many bytes.
        max_bytes: usize,
    },
    /// Acknowledge what was pulled.
    Acknowledge(Vec<String>),
    /// Read the lane's cursor at the hub and the state of its stream here. The round comes back with what a lane wants
    /// done, so that the outcome of something older is not taken for the present one's.
    FindCursor {
        /// The lane.
        lane: Lane,
        /// Which round.
        round: u64,
    },
    /// Read the lane's stream, waiting a while for something to come.
    Read {
        /// The lane.
        lane: Lane,
        /// Which round.
        round: u64,
        /// From this sequence on.
        from: u64,
        /// At most so many bytes.
        max_bytes: usize,
    },
    /// Commit a batch.
    Commit {
        /// The lane.
        lane: Lane,
        /// Which round.
        round: u64,
        /// The messages.
        messages: Vec<Raise>,
        /// The new cursor.
        cursor: Cursor,
        /// At which revision the old one is.
        expect_revision: u64,
    },
    /// Drop what the hub has.
    Trim {
        /// The lane.
        lane: Lane,
        /// Up to and with this sequence.
        sequence: u64,
    },
    /// Look at the machine.
    Inspect,
}

/// What the rim tells.
#[derive(Debug, Clone, PartialEq)]
pub enum Done {
    /// What a pull brought.
    Pulled {
        /// Which round.
        round: u64,
        /// The entries.
        outcome: Result<Vec<Pulled>, LinkError>,
        /// How long the bytes took.
        took_ms: u64,
    },
    /// The cursor's revision and value at the hub, and the stream here.
    Found {
        /// The lane.
        lane: Lane,
        /// Which round.
        round: u64,
        /// What was found.
        outcome: Result<(Option<(u64, Vec<u8>)>, StreamState), LinkError>,
    },
    /// What stands in the stream.
    Have {
        /// The lane.
        lane: Lane,
        /// Which round.
        round: u64,
        /// The messages.
        outcome: Result<Vec<Stored>, LinkError>,
    },
    /// What became of a batch.
    Committed {
        /// The lane.
        lane: Lane,
        /// Which round.
        round: u64,
        /// The cursor's new revision.
        outcome: Result<u64, LinkError>,
        /// Size of the batch.
        bytes: usize,
        /// How long it took.
        took_ms: u64,
    },
    /// What the machine is.
    Inspected(Box<NodeReport>),
}

/// All that the module reads and writes.
pub fn flows(node: &NodeName) -> Vec<Flow> {
    let hub = subject::DOMAIN_HUB;
    let desired = subject::bucket_stream(subject::BUCKET_DESIRED);
    let consumer = subject::desired_consumer(node);
    let link_work = |subject: String, payload| Flow::link(subject, payload).in_work();
    vec![
        Flow::watch(subject::BUCKET_LOCAL, ">", "Local"),
        Flow::write(subject::BUCKET_LOCAL, ">", "Local"),
        Flow::request(subject::heartbeat(node), "Heartbeat -> HeartbeatAck"),
        Flow::request(subject::request(node, "desired.list"), "ListRequest -> ListPage"),
        Flow::request(subject::request(node, "desired.get"), "GetRequest -> GetPage"),
        Flow::report(subject::report(NAME, "node", &[node.as_str()]), "NodeReport"),
        Flow::report("ew.evt.sync.*", "EventReport"),
        Flow::link(format!("$JS.{hub}.API.CONSUMER.MSG.NEXT.{desired}.{consumer}"), "pull of Desired"),
        Flow::link(format!("$JS.ACK.{desired}.{consumer}.>"), "acknowledgement"),
        Flow::link(format!("$JS.ACK.*.*.{desired}.{consumer}.>"), "acknowledgement"),
        Flow::link(format!("ew.in.{node}.>"), "reports, events and cursors"),
        Flow::link(
            format!("$JS.{hub}.API.DIRECT.GET.{}.ew.in.{node}._cursor.*", subject::STREAM_UP),
            "read of the node's cursor",
        ),
        link_work(format!("from.{node}.>"), "workload messages"),
        link_work(subject::cursor(node, Lane::Workload), "cursor"),
        link_work(
            format!("$JS.{hub}.API.DIRECT.GET.{}._cursor.{node}.*", subject::STREAM_FROM),
            "read of the node's cursor",
        ),
        Flow::manage(subject::STREAM_OUTBOX, "read and trim"),
        Flow::manage(subject::STREAM_UPLINK, "read and trim").in_work(),
        Flow::arrivals(Lane::State.filter()),
        Flow::arrivals(Lane::Events.filter()),
        Flow::arrivals(Lane::Workload.filter()).in_work(),
    ]
}

/// A pulled batch on its way to disk.
#[derive(Debug, Default)]
struct Batch {
    acks: Vec<String>,
    writing: usize,
    failed: bool,
}

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
    retry_down_at: Option<Timestamp>,
    lanes: BTreeMap<Lane, LaneUp>,
    local_current: bool,
    link: Link,
    report: Option<NodeReport>,
    report_sequence: u64,
    inspected_at: Option<Timestamp>,
    notices: Vec<(String, String)>,
    events: u64,
}

/// A lane with its pace.
#[derive(Debug)]
struct LaneUp {
    up: Up,
    pace: Pace,
    retry_at: Option<Timestamp>,
    /// Counts what the lane wanted done: one thing at a time, and only its outcome counts.
    round: u64,
}

/// What is known of the link.
#[derive(Debug, Default)]
struct Link {
    up: bool,
    sequence: u64,
    asked_at: Option<Timestamp>,
    outstanding: bool,
    answered_at: Option<Timestamp>,
    down_since: Option<Timestamp>,
    hub_boot_id: String,
    hub_knows: bool,
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
                (lane, LaneUp { up, pace: Pace::default(), retry_at: None, round: 0 })
            })
            .collect();
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
            retry_down_at: None,
            lanes,
            local_current: false,
            link: Link::default(),
            report: None,
            report_sequence: 0,
            inspected_at: None,
            notices,
            events: 0,
        }
    }

    /// Does the node follow the hub, with nothing missing and nothing waiting? For tests and the simulator.
    pub fn is_settled(&self) -> bool {
        self.link.up && self.down.is_settled()
    }

    // --- heartbeat -------------------------------------------------------------------------------------------------

    fn beat(&mut self, now: Timestamp, effects: &mut Effects) {
        let due = self.link.asked_at.is_none_or(|at| now.since_ms(at) >= HEARTBEAT_INTERVAL_MS);
        if !due || self.link.outstanding {
            return;
        }
        self.link.sequence += 1;
        self.link.asked_at = Some(now);
        self.link.outstanding = true;
        let beat = Heartbeat {
            boot_id: self.boot_id.clone(),
            sequence: self.link.sequence,
            at: now,
            desired: self.down.position(),
            waiting: self.lanes.iter().map(|(lane, of)| (*lane, of.up.waiting())).collect(),
        };
        effects.push(Effect::Request {
            subject: subject::heartbeat(&self.node),
            payload: schemas::encode(&beat),
            timeout_ms: HEARTBEAT_INTERVAL_MS * 2,
            token: HEARTBEAT,
        });
    }

    fn beaten(&mut self, answer: Result<Vec<u8>, String>, now: Timestamp, effects: &mut Effects) {
        self.link.outstanding = false;
        let Ok(ack) = answer
            .and_then(|bytes| schemas::decode::<HeartbeatAck>(&bytes).map_err(|error| error.to_string()))
        else {
            return;
        };
        self.link.answered_at = Some(now);
        let restarted = ack.hub_boot_id != self.link.hub_boot_id;
        self.link.hub_boot_id = ack.hub_boot_id;
        if !ack.known && self.link.hub_knows {
            self.link.hub_knows = false;
        }
        if !self.link.up {
            self.link.up = true;
            let away = self.link.down_since.take().map(|since| now.since_ms(since));
            let waiting: u64 = self.lanes.values().map(|of| of.up.waiting()).sum();
            let text = match away {
                Some(ms) => format!("link is up after {} s; {waiting} messages wait", ms / 1000),
                None => format!("link is up; {waiting} messages wait"),
            };
            self.tell(Severity::Normal, "LinkUp", text, now, effects);
            for lane in Lane::ALL {
                self.lane(lane, now, effects, |up| vec![up.connect()]);
            }
        } else if !restarted {
            self.announce(now, effects);
            return;
        }
        if self.local_current {
            self.contact(now, effects);
        }
        self.announce(now, effects);
    }

    /// Says what the node is, when the hub does not know it.
    fn announce(&mut self, now: Timestamp, effects: &mut Effects) {
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

    fn watch_link(&mut self, now: Timestamp, effects: &mut Effects) {
        let silent = self.link.answered_at.is_none_or(|at| now.since_ms(at) > NODE_GRACE_MS);
        if self.link.up && silent {
            self.link.up = false;
            self.link.down_since = self.link.answered_at;
            self.link.hub_knows = false;
            self.down.disconnect();
            self.pull_pace.lost();
            self.asking = false;
            for of in self.lanes.values_mut() {
                of.up.disconnect();
                of.pace.lost();
                of.retry_at = None;
                of.round += 1;
            }
            let text = format!("link is down: the hub has not answered for {} s", NODE_GRACE_MS / 1000);
            self.tell(Severity::Warning, "LinkDown", text, now, effects);
        }
    }

    fn tell(
        &mut self,
        severity: Severity,
        reason: &str,
        message: String,
        now: Timestamp,
        effects: &mut Effects,
    ) {
        self.events += 1;
        // With the time: the module may start again within a boot and count from the beginning.
        let id = format!("{}-{}-{}-{}", self.node, self.boot_id, now.0, self.events);
        let node = self.node.as_str().to_owned();
        let event = EventReport {
            id: id.clone(),
            node: node.clone(),
            module: NAME.to_owned(),
            at: now,
            severity,
            reason: reason.to_owned(),
            message,
            regarding: ("Node".to_owned(), String::new(), node.clone(), node.clone()),
        };
        effects.push(Effect::Report {
            subject: subject::event(NAME, reason),
            headers: envelope::headers(&node, NAME, reason, &id, now),
            payload: schemas::encode(&event),
        });
    }

    // --- down ------------------------------------------------------------------------------------------------------

    fn contact(&mut self, now: Timestamp, effects: &mut Effects) {
        let step = self.down.connect(self.pull_pace.step_bytes());
        self.steps(vec![step], now, effects);
    }

    fn steps(&mut self, steps: Vec<down::Step>, now: Timestamp, effects: &mut Effects) {
        for step in steps {
            match step {
                down::Step::List(request) => self.ask(LIST, "desired.list", &request, effects),
                down::Step::Get(request) => self.ask(GET, "desired.get", &request, effects),
                down::Step::Pull => {
                    self.pull_round += 1;
                    effects.push(Effect::Act(Act::Pull {
                        round: self.pull_round,
                        max_bytes: self.pull_pace.step_bytes(),
                    }));
                }
                down::Step::Write(key, local) => self.write(0, key, &local, effects),
                down::Step::Drop(key) => effects.push(Effect::Remove {
                    bucket: subject::BUCKET_LOCAL.to_owned(),
                    key: key.local_key(),
                    value: Vec::new(),
                    expect: Expect::Any,
                    token: 0,
                }),
                down::Step::Orphans(count) => {
                    let text = format!(
                        "the hub's history is not the one that {count} of this node's objects came from (was it restored or emptied?); they run on until an object of the same UID says otherwise"
                    );
                    self.tell(Severity::Warning, "DesiredDiverged", text, now, effects);
                }
                down::Step::Repairing(count) => {
                    let text =
                        format!("{count} objects were missing in the node's store and are fetched again");
                    self.tell(Severity::Warning, "StoreRepaired", text, now, effects);
                }
            }
        }
    }

    fn ask<T: serde::Serialize>(&mut self, token: u64, verb: &str, request: &T, effects: &mut Effects) {
        self.asking = true;
        effects.push(Effect::Request {
            subject: subject::request(&self.node, verb),
            payload: schemas::encode(request),
            timeout_ms: ASK_TIMEOUT_MS,
            token,
        });
    }

    fn write(&mut self, batch: u64, key: DesiredKey, local: &Local, effects: &mut Effects) {
        self.next_write += 1;
        effects.push(Effect::put(
            subject::BUCKET_LOCAL,
            key.local_key(),
            schemas::encode(local),
            Expect::Any,
            self.next_write,
        ));
        self.writes.insert(self.next_write, (key, batch));
    }

    fn pulled(
        &mut self,
        round: u64,
        outcome: Result<Vec<Pulled>, LinkError>,
        took_ms: u64,
        now: Timestamp,
        effects: &mut Effects,
    ) {
        if round != self.pull_round || !self.down.is_following() {
            return;
        }
        let pulled = match outcome {
            Ok(pulled) => pulled,
            Err(_) => {
                self.pull_pace.lost();
                self.retry_down_at = Some(now.plus_ms(RETRY_MS));
                return;
            }
        };
        if pulled.is_empty() {
            match self.down.drained(self.pull_pace.step_bytes()) {
                Some(steps) => self.steps(steps, now, effects),
                None => self.steps(vec![down::Step::Pull], now, effects),
            }
            return;
        }
        self.pull_pace.measured(pulled.iter().map(|entry| entry.payload.len()).sum(), took_ms);
        let mut batch = Batch::default();
        let mut unplaced = false;
        for Pulled { key, revision, payload, ack } in pulled {
            let read = DesiredKey::parse_desired(&key).filter(|(node, _)| *node == self.node);
            let desired = schemas::decode::<Desired>(&payload);
            let (Some((_, desired_key)), Ok(desired)) = (read, desired) else {
                effects.push(Effect::Dead {
                    subject: subject::kv(subject::BUCKET_DESIRED, &key),
                    payload,
                    reason: "not an entry of this node".to_owned(),
                });
                batch.acks.push(ack);
                continue;
            };
            match self.down.offer(&desired_key, revision, desired) {
                Verdict::Write(local) => {
                    batch.writing += 1;
                    batch.acks.push(ack);
                    self.write(round, desired_key, &local, effects);
                }
                Verdict::Stale => batch.acks.push(ack),
                Verdict::Unplaced => unplaced = true,
            }
        }
        self.batches.insert(round, batch);
        self.settle(round, effects);
        if unplaced {
            self.contact(now, effects);
        } else if self.down.is_following() && !self.batches.contains_key(&round) {
            self.steps(vec![down::Step::Pull], now, effects);
        }
    }

    /// A batch is acknowledged when all of it is on disk.
    fn settle(&mut self, round: u64, effects: &mut Effects) {
        let Some(batch) = self.batches.get(&round) else { return };
        if batch.writing > 0 {
            return;
        }
        if let Some(batch) = self.batches.remove(&round) {
            if !batch.failed && !batch.acks.is_empty() {
                effects.push(Effect::Act(Act::Acknowledge(batch.acks)));
            }
        }
    }

    fn wrote(&mut self, token: u64, failed: bool, now: Timestamp, effects: &mut Effects) {
        let Some((key, round)) = self.writes.remove(&token) else { return };
        if failed {
            self.down.not_written(&key);
        }
        let Some(batch) = self.batches.get_mut(&round) else { return };
        batch.writing = batch.writing.saturating_sub(1);
        batch.failed |= failed;
        self.settle(round, effects);
        if round == self.pull_round && !self.batches.contains_key(&round) && self.down.is_following() {
            self.steps(vec![down::Step::Pull], now, effects);
        }
    }

    fn answered(
        &mut self,
        token: u64,
        answer: Result<Vec<u8>, String>,
        now: Timestamp,
        effects: &mut Effects,
    ) {
        self.asking = false;
        if !self.link.up {
            return;
        }
        let Ok(bytes) = answer else {
            self.retry_down_at = Some(now.plus_ms(RETRY_MS));
            return;
        };
        let max_bytes = self.pull_pace.step_bytes();
        if token == LIST {
            match schemas::decode::<Reply<ListPage>>(&bytes) {
                Ok(Ok(page)) => {
                    let steps = self.down.page(page, max_bytes);
                    self.steps(steps, now, effects);
                }
                _ => self.retry_down_at = Some(now.plus_ms(RETRY_MS)),
            }
            return;
        }
        match schemas::decode::<Reply<GetPage>>(&bytes) {
            Ok(Ok(page)) => {
                let mut unplaced = false;
                for (key, verdict) in self.down.got(page) {
                    match verdict {
                        Verdict::Write(local) => self.write(0, key, &local, effects),
                        Verdict::Stale => {}
                        Verdict::Unplaced => unplaced = true,
                    }
                }
                if unplaced {
                    self.contact(now, effects);
                } else {
                    self.steps(vec![down::Step::Pull], now, effects);
                }
            }
            _ => self.retry_down_at = Some(now.plus_ms(RETRY_MS)),
        }
    }

    // --- up --------------------------------------------------------------------------------------------------------

    fn lane(
        &mut self,
        lane: Lane,
        now: Timestamp,
        effects: &mut Effects,
        step: impl FnOnce(&mut Up) -> Vec<up::Step>,
    ) {
        let Some(of) = self.lanes.get_mut(&lane) else { return };
        let max_bytes = of.pace.step_bytes();
        let mut told = Vec::new();
        for step in step(&mut of.up) {
            if matches!(step, up::Step::FindCursor(_) | up::Step::Read(..) | up::Step::Commit { .. }) {
                of.round += 1;
            }
            let round = of.round;
            effects.push(match step {
                up::Step::FindCursor(lane) => Effect::Act(Act::FindCursor { lane, round }),
                up::Step::Read(lane, from) => Effect::Act(Act::Read { lane, round, from, max_bytes }),
                up::Step::Commit { lane, messages, cursor, expect_revision } => {
                    Effect::Act(Act::Commit { lane, round, messages, cursor, expect_revision })
                }
                up::Step::Trim(lane, sequence) => Effect::Act(Act::Trim { lane, sequence }),
                up::Step::Save(lane, confirmed) => Effect::Save {
                    key: format!("lane.{}", lane.as_str()),
                    value: schemas::encode(&confirmed),
                },
                up::Step::Dead(message, reason) => {
                    told.push((
                        "DeadLetter",
                        format!(
                            "the hub refuses {} (sequence {}): {reason}",
                            message.subject, message.sequence
                        ),
                    ));
                    Effect::Dead { subject: message.subject, payload: message.payload.to_vec(), reason }
                }
                up::Step::Tell(reason, text) => {
                    told.push((reason, text));
                    continue;
                }
                up::Step::Pause(_) => {
                    of.retry_at = Some(now.plus_ms(RETRY_MS));
                    continue;
                }
            });
        }
        for (reason, text) in told {
            self.tell(Severity::Warning, reason, text, now, effects);
        }
    }

    fn done(&mut self, done: Done, now: Timestamp, effects: &mut Effects) {
        let retry = |this: &mut Self, lane: Lane| {
            if let Some(of) = this.lanes.get_mut(&lane) {
                of.pace.lost();
                of.retry_at = Some(now.plus_ms(RETRY_MS));
            }
        };
        if let Done::Found { lane, round, .. }
        | Done::Have { lane, round, .. }
        | Done::Committed { lane, round, .. } = &done
        {
            // A batch may be answered long after the lane gave it up: that says nothing of what the lane does now.
            if self.lanes.get(lane).is_none_or(|of| of.round != *round) {
                return;
            }
        }
        match done {
            Done::Pulled { round, outcome, took_ms } => self.pulled(round, outcome, took_ms, now, effects),
            Done::Found { lane, outcome: Ok((cursor, state)), .. } => {
                self.lane(lane, now, effects, |up| up.found(cursor, &state));
            }
            Done::Have { lane, outcome: Ok(messages), .. } => {
                self.lane(lane, now, effects, |up| up.have(messages));
            }
            Done::Found { lane, outcome: Err(_), .. } | Done::Have { lane, outcome: Err(_), .. } => {
                retry(self, lane);
            }
            Done::Committed { lane, outcome, bytes, took_ms, .. } => {
                if let Some(of) = self.lanes.get_mut(&lane) {
                    match &outcome {
                        Ok(_) => of.pace.measured(bytes, took_ms),
                        Err(_) => of.pace.lost(),
                    }
                }
                self.lane(lane, now, effects, |up| up.committed(outcome));
            }
            Done::Inspected(mut report) => {
                let before = self.report.take();
                let sequence = before.as_ref().map_or(0, |report| report.sequence);
                report.sequence = sequence;
                if before.is_some_and(|before| before != *report) {
                    self.link.hub_knows = false;
                }
                self.report = Some(*report);
                self.announce(now, effects);
            }
        }
    }

    fn tick(&mut self, now: Timestamp, effects: &mut Effects) {
        for (reason, message) in std::mem::take(&mut self.notices) {
            self.tell(Severity::Warning, &reason, message, now, effects);
        }
        self.beat(now, effects);
        self.watch_link(now, effects);
        if self.inspected_at.is_none_or(|at| now.since_ms(at) >= INSPECT_INTERVAL_MS) {
            self.inspected_at = Some(now);
            effects.push(Effect::Act(Act::Inspect));
        }
        if !self.link.up {
            return;
        }
        if self.retry_down_at.is_some_and(|at| at <= now) && !self.asking && self.local_current {
            self.retry_down_at = None;
            self.contact(now, effects);
        }
        for lane in Lane::ALL {
            let Some(of) = self.lanes.get_mut(&lane) else { continue };
            if of.retry_at.is_some_and(|at| at <= now) {
                of.retry_at = None;
                self.lane(lane, now, effects, |up| vec![up.connect()]);
            }
        }
    }
}

impl Module for Sync {
    type Act = Act;
    type Done = Done;

    fn restore(&mut self, saved: Vec<(String, Vec<u8>)>, _now: Timestamp) -> Effects {
        for (key, value) in saved {
            if key == "sequence" {
                self.report_sequence = schemas::decode(&value).unwrap_or(0);
            }
            for (lane, of) in &mut self.lanes {
                if key.strip_prefix("lane.") == Some(lane.as_str()) {
                    if let Ok(confirmed) = schemas::decode::<Confirmed>(&value) {
                        of.up.restore(confirmed);
                    }
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
                if self.link.up {
                    self.contact(now, &mut effects);
                }
            }
            Input::Answered { token: HEARTBEAT, outcome } => self.beaten(outcome, now, &mut effects),
            Input::Answered { token, outcome } => self.answered(token, outcome, now, &mut effects),
            Input::Wrote { token, outcome } => self.wrote(token, outcome.is_err(), now, &mut effects),
            Input::Tick => self.tick(now, &mut effects),
            Input::Done(done) => self.done(done, now, &mut effects),
            // Nothing is subscribed or consumed by the runner: arrivals only wake the rim.
            Input::Message(_) | Input::Delivery(_) => {}
        }
        effects
    }
}

/// The account a lane lives in.
pub fn account(lane: Lane) -> Account {
    match lane {
        Lane::State | Lane::Events => Account::Control,
        Lane::Workload => Account::Work,
    }
}
