//! Down, as the edge's module drives it: list, pull, write, and acknowledge what is on disk. Pure.

use bus::link::{LinkError, Pulled};
use bus::module::{Effect, Expect, Message};
use schemas::Timestamp;
use schemas::command::Reply;
use schemas::desired::{Desired, Diverged, GetPage, ListPage, Local};
use schemas::report::Severity;
use schemas::subject::{self, DesiredKey};

use super::{Act, DIVERGED, Effects, GET, LIST, NAME, RETRY_MS, Sync};
use crate::down::{self, Verdict};

/// The first question after a contact waits so long: it may come to a hub whose server is back and whose modules are not, and of
/// that nobody is told across accounts (measured).
pub(super) const ASK_FIRST_MS: u64 = 1_000;
/// Each that was not answered has the next one wait twice as long, up to this: an answer takes its time on a slow link. After
/// the next break of the link half of what was learned is kept.
const ASK_MOST_MS: u64 = 16_000;

/// The hub's server gives an entry to a pull that came over a link that is gone, if it is not two seconds old yet, and then again
/// only after the acknowledgement's deadline (measured with 2.15.1: across accounts it does not notice that nobody hears it).
/// What went so right after a contact is found missing by a list that is asked for later than that.
pub(super) const LIST_AGAIN_MS: u64 = 3_000;

/// So many objects are named to who asks; about 200 bytes each.
const DIVERGED_MAX: usize = 2_000;

/// A pulled batch on its way to disk.
#[derive(Debug, Default)]
pub(super) struct Batch {
    acks: Vec<String>,
    writing: usize,
    failed: bool,
}

impl Sync {
    /// Lists and repairs, as soon as the node's own entries are read and the hub knows the node.
    pub(super) fn contact(&mut self, now: Timestamp, effects: &mut Effects) {
        if !self.local_current || !self.link.up || !self.link.known {
            return;
        }
        self.list_again_at = Some(now.plus_ms(LIST_AGAIN_MS));
        self.list(now, effects);
    }

    /// Once more, a while after each contact: see [`LIST_AGAIN_MS`].
    pub(super) fn list_again(&mut self, now: Timestamp, effects: &mut Effects) {
        if self.list_again_at.is_some_and(|at| at <= now) && self.down.is_following() && !self.asking {
            self.list_again_at = None;
            self.list(now, effects);
        }
    }

    fn list(&mut self, now: Timestamp, effects: &mut Effects) {
        self.messages.desired_comes = true;
        let step = self.down.connect(self.pull_pace.step_bytes());
        self.steps(vec![step], now, effects);
    }

    /// What the server lost in a crash of its own is no longer held, so the list finds it missing.
    pub(super) fn store_has(&mut self, keys: &[String], now: Timestamp, effects: &mut Effects) {
        let there = keys.iter().filter_map(|key| DesiredKey::parse_local(key)).collect();
        if self.down.store_has(&there) > 0 {
            self.contact(now, effects);
        }
    }

    /// Somebody asks what the node has and the hub does not.
    pub(super) fn asked(&self, message: &Message) -> Option<Effect<Act>> {
        (message.subject == subject::command(&self.node, NAME, DIVERGED)).then_some(())?;
        let (mut pods, all) = (Vec::new(), self.down.diverged());
        let more = all.len().saturating_sub(DIVERGED_MAX);
        pods.extend(all.into_iter().take(DIVERGED_MAX));
        Effect::reply(message, &Diverged { settled: self.is_settled(), objects: pods, more: more as u64 })
    }

    pub(super) fn steps(&mut self, steps: Vec<down::Step>, now: Timestamp, effects: &mut Effects) {
        for step in steps {
            match step {
                down::Step::List(request) => self.ask(LIST, "desired.list", &request, now, effects),
                down::Step::Get(request) => self.ask(GET, "desired.get", &request, now, effects),
                down::Step::Pull => {
                    self.pull_round += 1;
                    effects.push(Effect::Act(Act::Pull {
                        round: self.pull_round,
                        max_bytes: self.pull_pace.step_bytes(),
                        // What the consumer does not have at once has to be asked for by name; and that it has nothing more
                        // is what messages from the hub wait for.
                        wait: !self.down.is_missing_any() && !self.messages.desired_comes,
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
                        "the hub's history is not the one that {count} of this node's objects came from (was it restored or emptied?); they run on until an object of the same UID says otherwise; `edgewire diverged` names them"
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

    pub(super) fn ask<T: serde::Serialize>(
        &mut self,
        token: u64,
        verb: &str,
        request: &T,
        now: Timestamp,
        effects: &mut Effects,
    ) {
        self.asking = true;
        self.asked_down_at = now;
        effects.push(Effect::Request {
            subject: subject::request(&self.node, verb),
            payload: schemas::encode(request),
            timeout_ms: self.ask_patience_ms,
            token,
        });
    }

    pub(super) fn write(&mut self, batch: u64, key: DesiredKey, local: &Local, effects: &mut Effects) {
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

    pub(super) fn pulled(
        &mut self,
        round: u64,
        outcome: Result<Vec<Pulled>, LinkError>,
        took_ms: u64,
        now: Timestamp,
        effects: &mut Effects,
    ) {
        let present = round == self.pull_round && self.down.is_following();
        // Entries of an older round are taken too: the consumer holds them delivered, and would give them again only after
        // its deadline. Only what comes next is the present round's matter.
        let pulled = match outcome {
            Ok(pulled) => pulled,
            Err(_) if present => {
                self.pull_pace.lost();
                self.retry_down_at = Some(now.plus_ms(RETRY_MS));
                return;
            }
            Err(_) => return,
        };
        if pulled.is_empty() {
            if !present {
                return;
            }
            self.messages.desired_comes = false;
            self.read_messages(now, effects);
            match self.down.drained(self.pull_pace.step_bytes()) {
                Some(steps) => self.steps(steps, now, effects),
                None => self.steps(vec![down::Step::Pull], now, effects),
            }
            return;
        }
        self.messages.desired_comes = true;
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
        if unplaced && !self.down.is_listing() {
            self.contact(now, effects);
        } else if !unplaced && present && !self.batches.contains_key(&round) {
            self.steps(vec![down::Step::Pull], now, effects);
        }
    }

    /// A batch is acknowledged when all of it is on disk.
    pub(super) fn settle(&mut self, round: u64, effects: &mut Effects) {
        let Some(batch) = self.batches.get(&round) else { return };
        if batch.writing > 0 {
            return;
        }
        let batch = self.batches.remove(&round).filter(|batch| !batch.failed && !batch.acks.is_empty());
        effects.extend(batch.map(|batch| Effect::Act(Act::Acknowledge(batch.acks))));
    }

    pub(super) fn wrote(&mut self, token: u64, failed: bool, now: Timestamp, effects: &mut Effects) {
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

    /// The link broke, or the hub is another life.
    pub(super) fn less_patience(&mut self) {
        self.ask_patience_ms = (self.ask_patience_ms / 2).max(ASK_FIRST_MS);
    }

    pub(super) fn answered(
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
            let is_patience_over = now.since_ms(self.asked_down_at) >= self.ask_patience_ms;
            if is_patience_over {
                self.ask_patience_ms = (self.ask_patience_ms * 2).min(ASK_MOST_MS);
            }
            self.retry_down_at = Some(if is_patience_over { now } else { now.plus_ms(RETRY_MS) });
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
                    // Paced: an entry whose epoch no list ever names must not make this turn round and round.
                    self.retry_down_at = Some(now.plus_ms(RETRY_MS));
                } else {
                    self.steps(vec![down::Step::Pull], now, effects);
                }
            }
            _ => self.retry_down_at = Some(now.plus_ms(RETRY_MS)),
        }
    }
}
