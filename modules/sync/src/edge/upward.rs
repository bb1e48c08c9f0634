//! Up, as the edge's module drives it: each lane's steps become effects, and what the rim tells goes back to its lane. Pure.

use bus::module::Effect;
use schemas::Timestamp;
use schemas::report::Severity;
use schemas::subject::Lane;

use super::{Act, Done, Effects, LaneUp, RETRY_MS, REWOUND, Sync};
use crate::disk::DiskFacts;
use crate::up::{self, Up};

/// A cursor that was not found is looked for again: the account's link may come later than the one that carries the heartbeat,
/// and while there is none that is known at once.
const FIND_RETRY_MS: u64 = 250;
/// What lanes dropped is told so often at most.
const DROPS_INTERVAL_MS: u64 = 10_000;

impl Sync {
    pub(super) fn lane(
        &mut self,
        lane: Lane,
        now: Timestamp,
        effects: &mut Effects,
        step: impl FnOnce(&mut Up, usize) -> Vec<up::Step>,
    ) {
        let Some(of) = self.lanes.get_mut(&lane) else { return };
        let max_bytes = self.turns.step_bytes(lane, of.pace.step_bytes());
        let mut told = Vec::new();
        let mut rewound = false;
        for step in step(&mut of.up, max_bytes) {
            effects.push(match step {
                up::Step::FindCursor(lane) => {
                    // Whatever was on its way is in doubt, and nobody waits for it any more.
                    self.turns.ended(lane);
                    of.round += 1;
                    of.held = None;
                    Effect::Act(Act::FindCursor { lane, round: of.round })
                }
                up::Step::Read(lane, from) => {
                    of.read_round += 1;
                    Effect::Act(Act::Read { lane, round: of.read_round, from, max_bytes })
                }
                up::Step::Commit { lane, messages, cursor, expect_revision } => {
                    of.round += 1;
                    of.held = Some(Act::Commit { lane, round: of.round, messages, cursor, expect_revision });
                    continue;
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
                up::Step::Rewound(lane) => {
                    rewound |= lane == Lane::State;
                    continue;
                }
                up::Step::Pause(_) => {
                    of.retry_at = Some(now.plus_ms(RETRY_MS));
                    continue;
                }
            });
        }
        self.take_turns(now, effects);
        if rewound {
            self.rewound = true;
            effects.push(Effect::Save { key: REWOUND.to_owned(), value: schemas::encode(&true) });
            // The lane may find it before a heartbeat does: what was listed is the history of the hub before.
            self.down.disconnect();
            self.contact(now, effects);
            // What the node is has to be said anew, too.
            self.link.hub_knows = false;
            self.announce(now, effects);
        }
        for (reason, text) in told {
            self.tell(Severity::Warning, reason, text, now, effects);
        }
    }

    /// Sends what may go now.
    pub(super) fn take_turns(&mut self, now: Timestamp, effects: &mut Effects) {
        for (lane, of) in &mut self.lanes {
            let Some(act) = of.held.take_if(|act| self.turns.may_go(*lane, act.bytes(), now)) else {
                continue;
            };
            effects.push(Effect::Act(act));
        }
    }

    /// What lanes gave up since it was told last: told now and then, not each time.
    pub(super) fn tell_drops(&mut self, now: Timestamp, effects: &mut Effects) {
        let mut texts = Vec::new();
        for (lane, of) in &mut self.lanes {
            let (count, (told, at)) = (of.up.drops().count(), of.told_drops);
            if count == told || now.since_ms(at) < DROPS_INTERVAL_MS {
                continue;
            }
            of.told_drops = (count, now);
            // Less than was told: the stream is another one, and this is what it dropped.
            let new = count.checked_sub(told).unwrap_or(count);
            let Some(last) = of.up.drops().recent.last() else { continue };
            let (reason, lane) = (last.reason.as_str(), lane.as_str());
            texts.push(format!(
                "lane {lane}: {new} messages were dropped, the last of them sequence {}: {reason}",
                last.last
            ));
        }
        for text in texts {
            self.tell(Severity::Warning, "MessagesDropped", text, now, effects);
        }
    }

    fn judge_disk(&mut self, facts: &DiskFacts, now: Timestamp, effects: &mut Effects) {
        let verdict = self.disk.judge(facts, now);
        effects.push(Effect::Act(Act::KeepHouse(verdict.house)));
        if verdict.restart {
            effects.push(Effect::Act(Act::RestartServer));
        }
        if let Some((is_bad, reason, text)) = verdict.tell {
            let severity = if is_bad { Severity::Warning } else { Severity::Normal };
            self.tell(severity, reason, text, now, effects);
        }
    }

    pub(super) fn done(&mut self, done: Done, now: Timestamp, effects: &mut Effects) {
        // A batch may be answered long after the lane gave it up: that says nothing of what the lane does now.
        let of_now = |lane: &Lane, is_now: &dyn Fn(&LaneUp) -> bool| self.lanes.get(lane).is_some_and(is_now);
        let counts = match &done {
            Done::Found { lane, round, .. } | Done::Committed { lane, round, .. } => {
                of_now(lane, &|of| of.round == *round)
            }
            Done::Have { lane, round, .. } => of_now(lane, &|of| of.read_round == *round),
            _ => true,
        };
        if !counts {
            return;
        }
        match done {
            Done::Pulled { round, outcome, took_ms } => self.pulled(round, outcome, took_ms, now, effects),
            Done::Found { lane, outcome: Ok((cursor, state)), .. } => {
                self.lane(lane, now, effects, |up, _| up.found(cursor, &state));
                self.looked(Some(lane), now, effects);
            }
            Done::Have { lane, outcome: Ok(have), .. } => {
                self.lane(lane, now, effects, |up, max_bytes| up.have(have, max_bytes));
            }
            Done::Have { lane, outcome: Err(_), .. } => self.lane(lane, now, effects, |up, _| up.unread()),
            Done::Found { lane, outcome: Err(_), .. } => {
                if let Some(of) = self.lanes.get_mut(&lane) {
                    of.pace.lost();
                    of.retry_at = Some(now.plus_ms(FIND_RETRY_MS));
                }
            }
            Done::Committed { lane, outcome, bytes, took_ms, .. } => {
                if let Some(of) = self.lanes.get_mut(&lane) {
                    match &outcome {
                        Ok(_) => of.pace.measured(bytes, took_ms),
                        Err(_) => of.pace.lost(),
                    }
                }
                self.turns.ended(lane);
                self.lane(lane, now, effects, |up, max_bytes| up.committed(outcome, max_bytes));
            }
            Done::Messages { round, came } => self.messages_came(round, came, now, effects),
            Done::StoreHas(keys) => self.store_has(&keys, now, effects),
            Done::Counted { lane, state } => {
                if let Some(of) = self.lanes.get_mut(&lane) {
                    of.up.counted(&state);
                }
            }
            Done::Disk(facts) => self.judge_disk(&facts, now, effects),
            Done::Cleared(sequence) => {
                if let Some(of) = self.lanes.get_mut(&Lane::Bulk) {
                    of.up.cleared(sequence);
                }
            }
            Done::Link(facts) => self.judge_link(&facts, now, effects),
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
}
