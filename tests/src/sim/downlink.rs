//! Messages from the hub to one node, on the model: what `sync::downlink` wants done at both ends, and what must hold of it.

use std::collections::{BTreeMap, BTreeSet};

use bus::downlink::{From, Sent};
use bus::link::{LinkError, PULL_MESSAGES_MAX, Stored};
use bus::module::{Account, Message};
use bytes::Bytes;
use schemas::downlink::{Holds, Taken, Waiting};
use schemas::envelope::Headers;
use schemas::name::NodeName;
use schemas::subject::{self, STREAM_DOWN};
use sync::downlink::hub::{Act, Done, Downlinks};
use sync::edge::{Came, Sync, Wanted};

use super::checks::Invariant;
use super::jetstream::{self, Config, New, Refused};
use super::planted::Planted;
use super::runner;
use super::server::{self, HUB};
use super::world::{Asker, EPOCH_MS, MS, S, World};

const READ_WAIT: u64 = 5 * S;
const WRITE_WAIT: u64 = 10 * S;
/// When the hub stored a message, in nanoseconds by its clock.
const AT: &str = "sim-at";

/// What is known of the messages that were sent to nodes.
#[derive(Default)]
pub struct Downs {
    /// Stored at the hub and not yet on its node: by node and number.
    waiting: BTreeSet<(usize, u64)>,
    sent: u64,
    /// What came last, by node.
    last: BTreeMap<usize, u64>,
    /// The hub's clock leapt: after a restore it says nothing of what was sent when.
    hub_clock_leapt: bool,
}

impl Downs {
    /// Messages that were sent so far.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// The hub's clock was set.
    pub fn hub_clock_set(&mut self) {
        self.hub_clock_leapt = true;
    }

    /// The node lost what it had, and what it knew.
    pub fn lost_disk(&mut self, edge: usize) {
        self.last.remove(&edge);
    }
}

fn lost() -> LinkError {
    LinkError::Lost("no answer".to_owned())
}

fn number(payload: &[u8]) -> u64 {
    std::str::from_utf8(payload).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Somebody at the hub sends a node something.
pub fn send(w: &mut World, edge: usize) {
    if !w.servers[HUB].up {
        return;
    }
    let node = w.edges[edge].name.clone();
    let number = w.unique();
    let at_ns = (EPOCH_MS + w.servers[HUB].clock_off_ms) * 1_000_000
        + i64::try_from(w.at_us * 1_000 + number % 1_000).unwrap_or(0);
    let headers = Headers::from([(AT.to_owned(), at_ns.to_string())]);
    let subject = format!("to.{node}.default.x");
    let payload = Bytes::from(number.to_string());
    let new = New { subject: subject.clone(), headers: headers.clone(), payload: payload.clone() };
    // Without a stream it is refused, and its sender knows.
    if server::store(w, HUB, new, None).is_ok() {
        w.checks.downs.waiting.insert((edge, number));
        w.checks.downs.sent += 1;
    }
    let message =
        Message { account: Account::Control, subject, headers, payload: payload.to_vec(), reply: None };
    server::publish_live(w, HUB, &message);
}

/// The hub's store is another: of what waited, what it does not have is lost with it.
pub fn replaced_store(w: &mut World) {
    let mut there = BTreeSet::new();
    for (edge, node) in w.edges.iter().map(|edge| edge.name.clone()).enumerate() {
        if let Some(stream) = w.servers[HUB].server.stream(&subject::to_stream(&node)) {
            there.extend(stream.read(">", 0).map(|stored| (edge, number(&stored.payload))));
        }
    }
    w.checks.downs.waiting.retain(|waiting| there.contains(waiting));
}

/// Does the hub's clock say anything of its store's history?
fn counts(w: &World) -> bool {
    !(w.checks.diverged && w.checks.downs.hub_clock_leapt)
}

/// A message was written on a node.
fn came(w: &mut World, edge: usize, stored: &jetstream::Stored) {
    let [cursor, _] = subject::TAKEN;
    if stored.subject == cursor {
        return;
    }
    let number = number(&stored.payload);
    w.checks.downs.waiting.remove(&(edge, number));
    let last = w.checks.downs.last.insert(edge, number).unwrap_or(0);
    if number <= last && counts(w) {
        let what = if number == last { "twice" } else { "twice or out of order" };
        w.checks.fail(
            Invariant::ComesDownOnceInOrder,
            format!("message {number} comes to node {edge} {what}, after {last}"),
        );
    }
}

/// What was sent and never came.
pub fn at_rest(w: &World, wrong: &mut Vec<(Invariant, String)>) {
    let waiting = &w.checks.downs.waiting;
    if let Some(first) = waiting.first().filter(|_| counts(w)) {
        wrong.push((
            Invariant::NothingLostDown,
            format!("{} messages never came to their nodes, such as {first:?}", waiting.len()),
        ));
    }
}

/// Carries out one act of a node's sync.
pub fn act(w: &mut World, edge: usize, incarnation: u64, round: u64, wanted: Wanted) {
    let tell = move |w: &mut World, came: Came| {
        runner::done::<Sync>(w, edge, incarnation, sync::edge::Done::Messages { round, came });
    };
    match wanted {
        Wanted::Find => {
            let delay = w.near_us();
            w.after(delay, move |w| {
                let up = w.servers[edge + 1].up;
                let Some(stream) = w.servers[edge + 1].server.stream(STREAM_DOWN).filter(|_| up) else {
                    w.after(READ_WAIT, move |w| tell(w, Came::Found(Err(lost()))));
                    return;
                };
                let [cursor, _] = subject::TAKEN;
                let found = stream.get(cursor).map(|stored| (stored.sequence, stored.payload.to_vec()));
                tell(w, Came::Found(Ok(found)));
            });
        }
        Wanted::Read(from, max_bytes) => {
            let asked_us = w.at_us;
            let at_hub = move |w: &mut World, asker: &Asker<Vec<Sent>>| {
                let sent = read(w, asker.edge, from, max_bytes);
                asker.answer(w, sent);
            };
            Asker::ask(w, edge, READ_WAIT, at_hub, move |w, sent: Option<Vec<Sent>>| {
                let took_ms = ((w.at_us - asked_us) / MS).min(40);
                tell(w, Came::Have(sent.ok_or_else(lost), took_ms));
            });
        }
        Wanted::Commit(batch) => {
            if w.planted == Some(Planted::TakenBeforeWritten) {
                let name = subject::to_stream(&w.edges[edge].name);
                if let Some(stream) = w.servers[HUB].server.stream_mut(&name) {
                    stream.purge(">", batch.taken.sequence);
                }
            }
            let new = |raise: bus::link::Raise| New {
                subject: raise.subject,
                headers: raise.headers,
                payload: raise.payload,
            };
            let (cursor, expect) = (batch.cursor(), batch.expect_revision);
            let all: Vec<New> = batch.messages.into_iter().chain([cursor]).map(new).collect();
            // It is on the disk before it is acknowledged: that takes a while.
            let delay = w.random.between(MS, 60 * MS);
            w.after(delay, move |w| {
                if !w.servers[edge + 1].up {
                    w.after(WRITE_WAIT, move |w| tell(w, Came::Committed(Err(lost()))));
                    return;
                }
                let outcome = write(w, edge, all, expect);
                let server = w.servers[edge + 1].incarnation;
                let delay = w.near_us();
                w.after(delay, move |w| {
                    let fell = !w.servers[edge + 1].up || w.servers[edge + 1].incarnation != server;
                    tell(w, Came::Committed(if fell { Err(lost()) } else { outcome }));
                });
            });
        }
        Wanted::Tidy => {}
    }
}

fn write(w: &mut World, edge: usize, batch: Vec<New>, expect: u64) -> Result<u64, LinkError> {
    let clock_ms = w.clock_ms(edge + 1);
    let expect = (w.planted != Some(Planted::DownWithoutCas)).then_some(expect);
    let Some(stream) = w.servers[edge + 1].server.stream_mut(STREAM_DOWN) else { return Err(lost()) };
    let first = stream.last_sequence() + 1;
    let outcome = match stream.commit(batch, expect, clock_ms) {
        Ok(revision) => Ok(revision),
        Err(Refused::WrongLastSequence) => Err(LinkError::CursorMoved),
        Err(other) => Err(LinkError::Refused { code: 10_077, cause: format!("{other:?}") }),
    };
    if let Ok(last) = outcome {
        let stored: Vec<_> = (first..=last).filter_map(|sequence| stream.at(sequence)).cloned().collect();
        stored.iter().for_each(|stored| came(w, edge, stored));
    }
    outcome
}

fn at(stored: &jetstream::Stored) -> i64 {
    stored.headers.get(AT).and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn read(w: &World, edge: usize, from: From, max_bytes: usize) -> Vec<Sent> {
    let node = &w.edges[edge].name;
    let Some(stream) = w.servers[HUB].server.stream(&subject::to_stream(node)) else { return Vec::new() };
    let from = match from {
        From::Sequence(sequence) => sequence,
        // As the server does it: the first that was stored then or later, and all that come behind it.
        From::Since(at_ns) => match stream.read(">", 0).find(|stored| at(stored) >= at_ns) {
            Some(stored) => stored.sequence,
            None => return Vec::new(),
        },
    };
    let mut bytes = 0;
    let mut sent = Vec::new();
    for stored in stream.read(">", from).take(PULL_MESSAGES_MAX) {
        bytes += stored.payload.len() + 100;
        if bytes > max_bytes && !sent.is_empty() {
            break;
        }
        let message = Stored {
            sequence: stored.sequence,
            subject: stored.subject.clone(),
            headers: stored.headers.clone(),
            payload: stored.payload.clone(),
        };
        sent.push(Sent { message, at_ns: at(stored) });
    }
    sent
}

fn waiting(w: &mut World, node: &NodeName, taken: Option<Taken>) -> Option<Waiting> {
    let by_number = w.planted == Some(Planted::TakenByNumberAlone);
    let stream = w.servers[HUB].server.stream_mut(&subject::to_stream(node))?;
    let last = stream.last_sequence();
    let Some(taken) = taken else { return Some(Waiting { last, holds: None }) };
    let next = stream.read(">", taken.sequence).next();
    let next = next.map(|stored| Taken { sequence: stored.sequence, at_ns: at(stored) });
    let holds = match by_number && next.is_some_and(|next| next.sequence == taken.sequence) {
        true => Holds::Same,
        false => Holds::judge(taken, next, last),
    };
    if holds == Holds::Same {
        stream.purge(">", taken.sequence - 1);
    }
    Some(Waiting { last, holds: Some(holds) })
}

/// Carries out one act of the hub's module.
pub fn act_at_hub(w: &mut World, incarnation: u64, act: Act) {
    let delay = w.near_us();
    w.after(delay, move |w| match act {
        _ if !w.servers[HUB].up => {}
        Act::Ensure(nodes, _) => {
            for node in nodes {
                let config = Config {
                    subjects: vec![subject::to_filter(&node)],
                    size_bytes_max: u64::MAX / 4,
                    bucket: false,
                };
                let generation = w.unique();
                w.servers[HUB].server.ensure(&subject::to_stream(&node), config, generation);
            }
        }
        Act::Look(message, node, look) => {
            if let Some(waiting) = waiting(w, &node, look.taken) {
                runner::done::<Downlinks>(w, 0, incarnation, Done::Looked(message, Ok(waiting)));
            }
        }
    });
}
