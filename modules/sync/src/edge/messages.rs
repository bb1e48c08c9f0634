//! Messages from the hub, as the edge's module drives them: the steps of [`crate::downlink`] become effects. Pure.
//!
//! They give way: nothing is read across the link while the node learns of a change of its desired state, nor while its disk
//! is full. They don't give way for ever.

use bus::downlink::{From, Sent};
use bus::link::LinkError;
use bus::module::Effect;
use schemas::Timestamp;
use schemas::command::Reply;
use schemas::downlink::Waiting;
use schemas::name::NodeName;
use schemas::report::Severity;
use schemas::subject;

use super::{Act, Effects, LOOK, RETRY_MS, Sync};
use crate::downlink::hub;
use crate::downlink::{Batch, Downlink, Step};
use crate::pace::Pace;

/// A look waits so long for its answer.
const LOOK_TIMEOUT_MS: u64 = 10_000;
/// What nobody said is looked for so often: the hub's word was lost, or its process is away.
const POLL_INTERVAL_MS: u64 = 15_000;
/// After a failure the pause doubles, up to this: a hub of an older version never answers.
const RETRY_MAX_MS: u64 = 60_000;
/// A read that may not go yet goes after so long all the same, if there is room.
const WAIT_MAX_MS: u64 = 10_000;
/// How often what was acknowledged on the node is let go.
const TIDY_INTERVAL_MS: u64 = 30_000;

/// Their way down, with its pace.
#[derive(Debug)]
pub(super) struct Messages {
    pub(super) core: Downlink,
    pace: Pace,
    /// Counts what was wanted done: one thing at a time, and only its outcome counts.
    round: u64,
    /// A read that waits for its turn, since when.
    held: Option<(From, Timestamp)>,
    retry_at: Option<Timestamp>,
    retry_ms: u64,
    looked_at: Option<Timestamp>,
    tidied_at: Option<Timestamp>,
    /// The desired state is known to be behind: a pull brought something, and what is behind that was not asked for yet.
    pub(super) desired_comes: bool,
}

impl Messages {
    pub(super) fn new(node: NodeName) -> Self {
        Self {
            core: Downlink::new(node),
            pace: Pace::default(),
            round: 0,
            held: None,
            retry_at: None,
            retry_ms: RETRY_MS,
            looked_at: None,
            tidied_at: None,
            desired_comes: true,
        }
    }
}

/// What only the rim can do for them.
#[derive(Debug, Clone, PartialEq)]
pub enum Wanted {
    /// Read the cursor in DOWN.
    Find,
    /// Read the node's stream at the hub, at most so many bytes.
    Read(From, usize),
    /// Write into DOWN.
    Commit(Batch),
    /// Let go of what DOWN need not keep.
    Tidy,
}

/// What the rim tells of them.
#[derive(Debug, Clone, PartialEq)]
pub enum Came {
    /// The cursor in DOWN.
    Found(Result<Option<(u64, Vec<u8>)>, LinkError>),
    /// What stands at the hub, and how long it took.
    Have(Result<Vec<Sent>, LinkError>, u64),
    /// What became of a batch.
    Committed(Result<u64, LinkError>),
    /// So many went that nobody had acknowledged.
    Tidied(u64),
}

impl Sync {
    pub(super) fn messages(&mut self, now: Timestamp, effects: &mut Effects, steps: Vec<Step>) {
        let mut told = Vec::new();
        for step in steps {
            let of = &mut self.messages;
            if !matches!(step, Step::Save(_) | Step::Dead { .. } | Step::Tell(..) | Step::MakeRoom) {
                of.round += 1;
                (of.held, of.retry_at) = (None, None);
            }
            let round = of.round;
            let wants = |wanted| Effect::Act(Act::Messages { round, wanted });
            match step {
                Step::Find => effects.push(wants(Wanted::Find)),
                Step::Look(look) => {
                    of.looked_at = Some(now);
                    effects.push(Effect::Request {
                        subject: subject::request(&self.node, hub::LOOK),
                        payload: schemas::encode(&look),
                        timeout_ms: LOOK_TIMEOUT_MS,
                        token: LOOK + round,
                    });
                }
                Step::Read(from) => of.held = Some((from, now)),
                Step::Commit(batch) => effects.push(wants(Wanted::Commit(batch))),
                Step::MakeRoom => effects.push(wants(Wanted::Tidy)),
                Step::Save(saved) => {
                    effects.push(Effect::Save { key: SAVED.to_owned(), value: schemas::encode(&saved) });
                }
                Step::Dead { subject, payload, reason } => {
                    told.push((
                        "DeadLetter",
                        format!("{subject}, from the hub, has no place here: {reason}"),
                    ));
                    effects.push(Effect::Dead { subject, payload, reason });
                }
                Step::Tell(reason, text) => told.push((reason, text)),
                Step::Rest => of.retry_ms = RETRY_MS,
                Step::Pause => {
                    of.retry_at = Some(now.plus_ms(of.retry_ms));
                    of.retry_ms = (of.retry_ms * 2).min(RETRY_MAX_MS);
                }
            }
        }
        for (reason, text) in told {
            self.tell(Severity::Warning, reason, text, now, effects);
        }
        self.read_messages(now, effects);
    }

    /// Sends a read that may go now.
    pub(super) fn read_messages(&mut self, now: Timestamp, effects: &mut Effects) {
        let of = &mut self.messages;
        let Some((from, since)) = of.held else { return };
        let behind = of.desired_comes || !self.down.is_settled();
        if self.disk.refuses() || (behind && now.since_ms(since) < WAIT_MAX_MS) {
            return;
        }
        of.held = None;
        let wanted = Wanted::Read(from, of.pace.step_bytes());
        effects.push(Effect::Act(Act::Messages { round: of.round, wanted }));
    }

    /// The link is there: what is on disk is looked at, then what waits.
    pub(super) fn messages_connect(&mut self, now: Timestamp, effects: &mut Effects) {
        self.messages.retry_ms = RETRY_MS;
        let steps = self.messages.core.connect();
        self.messages(now, effects, steps);
    }

    pub(super) fn messages_disconnect(&mut self) {
        let of = &mut self.messages;
        of.core.disconnect();
        of.pace.lost();
        of.round += 1;
        (of.held, of.retry_at) = (None, None);
        of.desired_comes = true;
    }

    /// The hub says that something came.
    pub(super) fn messages_called(&mut self, now: Timestamp, effects: &mut Effects) {
        let steps = self.messages.core.called();
        self.messages(now, effects, steps);
    }

    pub(super) fn messages_tick(&mut self, now: Timestamp, effects: &mut Effects) {
        let of = &mut self.messages;
        if of.tidied_at.is_none_or(|at| now.since_ms(at) >= TIDY_INTERVAL_MS) {
            of.tidied_at = Some(now);
            effects.push(Effect::Act(Act::Messages { round: of.round, wanted: Wanted::Tidy }));
        }
        if !self.link.up {
            return;
        }
        let of = &mut self.messages;
        if of.retry_at.is_some_and(|at| at <= now) {
            let steps = of.core.connect();
            self.messages(now, effects, steps);
        } else if of.core.is_resting() && of.looked_at.is_none_or(|at| now.since_ms(at) >= POLL_INTERVAL_MS) {
            self.messages_called(now, effects);
        }
        self.read_messages(now, effects);
    }

    /// The hub's answer to a look.
    pub(super) fn looked_down(
        &mut self,
        token: u64,
        answer: Result<Vec<u8>, String>,
        now: Timestamp,
        effects: &mut Effects,
    ) {
        if token != LOOK + self.messages.round {
            return;
        }
        let waiting = answer.and_then(|bytes| {
            let reply: Reply<Waiting> = schemas::decode(&bytes).map_err(|error| error.to_string())?;
            reply.map_err(|refusal| refusal.message)
        });
        let steps = self.messages.core.looked(waiting);
        self.messages(now, effects, steps);
    }

    /// What the rim tells of them.
    pub(super) fn messages_came(&mut self, round: u64, came: Came, now: Timestamp, effects: &mut Effects) {
        if let Came::Tidied(count) = came {
            if count > 0 {
                let text = format!(
                    "the node's store of messages from the hub was full: its oldest {count} went, and nobody had acknowledged them"
                );
                self.tell(Severity::Warning, "MessagesDropped", text, now, effects);
            }
            return;
        }
        let of = &mut self.messages;
        if round != of.round {
            return;
        }
        let steps = match came {
            Came::Found(outcome) => of.core.found(outcome),
            Came::Have(outcome, took_ms) => {
                match &outcome {
                    Ok(sent) => {
                        of.pace.measured(sent.iter().map(|sent| sent.message.payload.len()).sum(), took_ms);
                    }
                    Err(_) => of.pace.lost(),
                }
                of.core.have(outcome)
            }
            Came::Committed(outcome) => of.core.committed(outcome),
            Came::Tidied(_) => Vec::new(),
        };
        self.messages(now, effects, steps);
    }
}

/// What is kept of them on disk.
pub(super) const SAVED: &str = "downlink";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::DiskFacts;
    use crate::edge::{Done, HEARTBEAT};
    use bus::link::Stored;
    use bus::module::{Account, Input, Message, Module};
    use schemas::downlink::{Holds, Taken};
    use schemas::report::HeartbeatAck;

    const NOW: Timestamp = Timestamp(1_000_000);

    fn wanted(effects: &Effects) -> Vec<(u64, Wanted)> {
        let of = |effect: &Effect<Act>| match effect {
            Effect::Act(Act::Messages { round, wanted }) if *wanted != Wanted::Tidy => {
                Some((*round, wanted.clone()))
            }
            _ => None,
        };
        effects.iter().filter_map(of).collect()
    }

    fn look(effects: &Effects) -> Option<u64> {
        effects.iter().find_map(|effect| match effect {
            Effect::Request { subject, token, .. } if subject == "ew.req.n1.downlink.look" => Some(*token),
            _ => None,
        })
    }

    fn came(sync: &mut Sync, round: u64, came: Came, now: Timestamp) -> Effects {
        sync.apply(Input::Done(Done::Messages { round, came }), now)
    }

    /// The hub answers a heartbeat: the link is there.
    fn beats(sync: &mut Sync, now: Timestamp) -> Effects {
        let ack = HeartbeatAck { sequence: 1, at: now, known: true, hub_boot_id: "h".into() };
        sync.apply(Input::Answered { token: HEARTBEAT, outcome: Ok(schemas::encode(&ack)) }, now)
    }

    /// A node that has taken 5 messages, and whose link just came up; the token of its look.
    fn linked() -> (Sync, u64) {
        let mut sync = Sync::new(NodeName::new("n1").unwrap(), "b".into(), Vec::new());
        sync.apply(Input::Tick, NOW);
        let effects = beats(&mut sync, NOW);
        let [(round, Wanted::Find)] = wanted(&effects)[..] else { panic!("{effects:?}") };
        let cursor = schemas::encode(&Taken { sequence: 5, at_ns: 5 });
        let effects = came(&mut sync, round, Came::Found(Ok(Some((9, cursor)))), NOW);
        let token = look(&effects).unwrap();
        (sync, token)
    }

    fn waits(sync: &mut Sync, token: u64, last: u64, now: Timestamp) -> Effects {
        let reply: Reply<Waiting> = Ok(Waiting { last, holds: Some(Holds::Same) });
        sync.apply(Input::Answered { token, outcome: Ok(schemas::encode(&reply)) }, now)
    }

    #[test]
    fn desired_state_goes_first_but_not_for_ever() {
        let (mut sync, token) = linked();
        assert_eq!(wanted(&waits(&mut sync, token, 9, NOW)), [], "desired state was not listed yet");
        assert_eq!(wanted(&sync.apply(Input::Tick, NOW.plus_ms(WAIT_MAX_MS - 1))), []);
        let effects = sync.apply(Input::Tick, NOW.plus_ms(WAIT_MAX_MS));
        let [(round, Wanted::Read(From::Sequence(6), max_bytes))] = wanted(&effects)[..] else {
            panic!("{effects:?}")
        };
        assert_eq!(max_bytes, crate::pace::STEP_MIN_BYTES);
        // What an older question brings counts nothing.
        let message = Stored {
            sequence: 6,
            subject: "to.n1.demo.a".into(),
            headers: Default::default(),
            payload: "x".into(),
        };
        let sent = vec![Sent { message, at_ns: 6 }];
        assert_eq!(wanted(&came(&mut sync, round - 1, Came::Have(Ok(sent.clone()), 1), NOW)), []);
        let effects = came(&mut sync, round, Came::Have(Ok(sent), 1), NOW);
        let [(round, Wanted::Commit(_))] = wanted(&effects)[..] else { panic!("{effects:?}") };
        // Kept on disk before the hub is told.
        let effects = came(&mut sync, round, Came::Committed(Ok(11)), NOW);
        let saved =
            effects.iter().position(|e| matches!(e, Effect::Save { key, .. } if key == SAVED)).unwrap();
        let told = effects.iter().position(|e| matches!(e, Effect::Request { .. })).unwrap();
        assert!(saved < told);
    }

    #[test]
    fn a_full_disk_takes_nothing_until_there_is_room() {
        let (mut sync, token) = linked();
        let disk =
            |free_bytes| Done::Disk(DiskFacts { size_bytes: 100 << 30, free_bytes, write_failed: false });
        sync.apply(Input::Done(disk(1 << 30)), NOW);
        waits(&mut sync, token, 9, NOW);
        let late = NOW.plus_ms(9 * WAIT_MAX_MS);
        beats(&mut sync, late);
        assert_eq!(wanted(&sync.apply(Input::Tick, late)), []);
        sync.apply(Input::Done(disk(90 << 30)), late);
        assert_eq!(wanted(&sync.apply(Input::Tick, late)).len(), 1);
    }

    #[test]
    fn it_looks_when_it_is_called_now_and_then_and_less_often_where_nobody_answers() {
        let (mut sync, token) = linked();
        assert_eq!(wanted(&waits(&mut sync, token, 5, NOW)), []);
        let call = || {
            Input::Message(Message {
                account: Account::Control,
                subject: "ew.cmd.n1.sync.arrived".into(),
                headers: Default::default(),
                payload: Vec::new(),
                reply: None,
            })
        };
        let token = look(&sync.apply(call(), NOW)).unwrap();
        assert_eq!(look(&sync.apply(call(), NOW)), None, "one look at a time");
        let effects = waits(&mut sync, token, 5, NOW);
        let token = look(&effects).unwrap();
        waits(&mut sync, token, 5, NOW);
        beats(&mut sync, NOW.plus_ms(POLL_INTERVAL_MS / 2));
        assert_eq!(look(&sync.apply(Input::Tick, NOW.plus_ms(POLL_INTERVAL_MS - 1))), None);
        let mut token = look(&sync.apply(Input::Tick, NOW.plus_ms(POLL_INTERVAL_MS))).unwrap();
        // A hub of an older version.
        let (mut now, mut pauses) = (NOW.plus_ms(POLL_INTERVAL_MS), Vec::new());
        for _ in 0..9 {
            sync.apply(Input::Answered { token, outcome: Err("no responders".into()) }, now);
            let since = now;
            let round = loop {
                now = now.plus_ms(250);
                beats(&mut sync, now);
                if let [(round, Wanted::Find)] = wanted(&sync.apply(Input::Tick, now))[..] {
                    break round;
                }
            };
            pauses.push(now.since_ms(since) / 1_000);
            token = look(&came(&mut sync, round, Came::Found(Ok(None)), now)).unwrap();
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
    }
}
