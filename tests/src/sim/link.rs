//! What the edge's `sync` wants done, as `sync::rim` and `bus::link` do it, on the model.

use bus::link::{BATCH_MESSAGES_MAX, Have, LinkError, PULL_MESSAGES_MAX, Pulled, Stored, StreamState};
use schemas::subject::{self, DesiredKey, Lane};
use sync::edge::{Act, Done, Sync};

use super::jetstream::{MSG_ID, New, Refused};
use super::planted::{self, Planted};
use super::runner;
use super::server::{self, HUB};
use super::world::{Asker, MS, S, World};

const PULL_WAIT: u64 = 10 * S;
const READ_WAIT: u64 = 5 * S;
const REQUEST_WAIT: u64 = 5 * S;
const COMMIT_WAIT: u64 = 30 * S;
/// Entries of one pull that come in another order, or not at all: so many pulls in a thousand.
const PULL_MIXED: u64 = 30;

/// A pull that waits at the hub.
pub struct WaitingPull {
    asker: Asker<Option<Vec<Pulled>>>,
    max_bytes: usize,
}

/// A read that waits on a node.
pub struct WaitingRead {
    id: u64,
    incarnation: u64,
    lane: Lane,
    round: u64,
    from: u64,
    max_bytes: usize,
}

fn lost() -> LinkError {
    LinkError::Lost("no answer".to_owned())
}

/// Carries out one act of a node's sync.
pub fn act(w: &mut World, edge: usize, incarnation: u64, act: Act) {
    match act {
        Act::Pull { round, max_bytes, wait } => pull(w, edge, incarnation, (round, max_bytes, wait)),
        Act::Acknowledge(acks) => {
            for ack in acks {
                w.cross(edge, move |w| acknowledge(w, &ack));
            }
        }
        Act::FindCursor { lane, round } => find_cursor(w, edge, incarnation, lane, round),
        Act::Read { lane, round, from, max_bytes } => {
            let id = w.unique();
            w.edges[edge].reads.push(WaitingRead { id, incarnation, lane, round, from, max_bytes });
            let delay = w.near_us();
            w.after(delay, move |w| wake_reads(w, edge));
            w.after(READ_WAIT, move |w| {
                let reads = &mut w.edges[edge].reads;
                let count = reads.len();
                reads.retain(|read| read.id != id);
                if reads.len() < count {
                    let outcome =
                        if w.servers[edge + 1].up { Ok(nothing(w, edge, lane)) } else { Err(lost()) };
                    runner::done::<Sync>(w, edge, incarnation, Done::Have { lane, round, outcome });
                }
            });
        }
        Act::Commit { lane, round, messages, cursor, expect_revision } => {
            let stream = lane.hub_stream();
            if w.planted == Some(Planted::TrimBeforeCommit)
                && let Some(stream) = w.servers[edge + 1].server.stream_mut(lane.edge_stream())
            {
                stream.purge(lane.filter(), cursor.sequence);
            }
            let sent_us = w.at_us;
            let bytes = messages.iter().map(|message| message.payload.len() + 200).sum();
            let mut batch: Vec<New> = messages
                .into_iter()
                .map(|raise| New { subject: raise.subject, headers: raise.headers, payload: raise.payload })
                .collect();
            let cursor = cursor.raise(&w.edges[edge].name, lane);
            batch.push(New { subject: cursor.subject, headers: cursor.headers, payload: cursor.payload });
            let at_hub = move |w: &mut World, asker: &Asker<Result<u64, LinkError>>| {
                let outcome = match server::commit(w, stream, batch.clone(), expect_revision) {
                    Ok(revision) => Ok(revision),
                    Err(Refused::WrongLastSequence) => Err(LinkError::CursorMoved),
                    Err(other) => Err(LinkError::Refused { code: 10_077, cause: format!("{other:?}") }),
                };
                asker.answer(w, outcome);
            };
            Asker::ask(w, edge, COMMIT_WAIT, at_hub, move |w, outcome| {
                let took_ms = (w.at_us - sent_us) / MS;
                let outcome = outcome.unwrap_or_else(|| Err(lost()));
                w.tell(|| format!("node {edge}, lane {}: batch {outcome:?}", lane.as_str()));
                let done = Done::Committed { lane, round, outcome, bytes, took_ms };
                runner::done::<Sync>(w, edge, incarnation, done);
            });
        }
        Act::Trim { lane, sequence } => {
            let delay = w.near_us();
            w.after(delay, move |w| {
                if w.servers[edge + 1].up
                    && let Some(stream) = w.servers[edge + 1].server.stream_mut(lane.edge_stream())
                {
                    stream.purge(lane.filter(), sequence);
                }
            });
        }
        Act::Messages { round, wanted } => super::downlink::act(w, edge, incarnation, round, wanted),
        Act::LookAtStore => {
            let delay = w.near_us();
            w.after(delay, move |w| {
                if w.servers[edge + 1].up {
                    let keys = planted::local_of(w, edge).keys().map(DesiredKey::local_key).collect();
                    runner::done::<Sync>(w, edge, incarnation, Done::StoreHas(keys));
                }
            });
        }
        // The simulated link is never up and silent, and its servers never give up: the watchdog has a table of its own.
        Act::LookAtDisk
        | Act::Count { .. }
        | Act::KeepHouse(_)
        | Act::LookAtLink { .. }
        | Act::MoveLink(_)
        | Act::RebuildLink
        | Act::RestartServer
        | Act::Warn(_) => {}
        Act::Inspect => {
            let report = w.edges[edge].inspect();
            let delay = w.near_us();
            w.after(delay, move |w| {
                runner::done::<Sync>(w, edge, incarnation, Done::Inspected(Box::new(report)));
            });
        }
    }
}

fn pull(w: &mut World, edge: usize, incarnation: u64, (round, max_bytes, wait): (u64, usize, bool)) {
    let asked_us = w.at_us;
    let at_hub = move |w: &mut World, asker: &Asker<Option<Vec<Pulled>>>| {
        let name = subject::desired_consumer(&w.edges[asker.edge].name);
        let stream = w.servers[HUB].server.stream(&subject::bucket_stream(subject::BUCKET_DESIRED));
        if !stream.is_some_and(|stream| stream.has_consumer(&name)) {
            asker.answer(w, None);
            return;
        }
        let waiting = WaitingPull { asker: asker.clone(), max_bytes };
        if serve(w, &waiting) {
            return;
        }
        if !wait {
            asker.answer(w, Some(Vec::new()));
        } else {
            w.servers[HUB].pulls.push(waiting);
            let asker = asker.clone();
            w.after(PULL_WAIT, move |w| {
                if w.servers[HUB].up && !asker.is_over() {
                    asker.answer(w, Some(Vec::new()));
                }
            });
        }
    };
    Asker::ask(w, edge, PULL_WAIT + 5 * S, at_hub, move |w, answer| {
        let took_ms = ((w.at_us - asked_us) / MS).min(40);
        let outcome = answer.flatten().ok_or_else(lost);
        runner::done::<Sync>(w, edge, incarnation, Done::Pulled { round, outcome, took_ms });
    });
}

/// Answers a pull if there is anything.
fn serve(w: &mut World, waiting: &WaitingPull) -> bool {
    let node = w.edges[waiting.asker.edge].name.clone();
    let consumer = subject::desired_consumer(&node);
    let (now_ms, prefix) = (w.now_ms(), format!("$KV.{}.", subject::BUCKET_DESIRED));
    let Some(stream) = w.servers[HUB].server.stream_mut(&subject::bucket_stream(subject::BUCKET_DESIRED))
    else {
        return false;
    };
    let delivered = stream.pull(&consumer, PULL_MESSAGES_MAX, waiting.max_bytes, now_ms);
    let mut pulled: Vec<Pulled> = delivered
        .into_iter()
        .filter_map(|(sequence, _)| stream.at(sequence))
        .filter_map(|stored| {
            Some(Pulled {
                key: stored.subject.strip_prefix(&prefix)?.to_owned(),
                revision: stored.sequence,
                payload: stored.payload.to_vec(),
                ack: format!("{consumer} {} {}", stream.generation, stored.sequence),
            })
        })
        .collect();
    if pulled.is_empty() {
        return false;
    }
    if w.random.per_mille(PULL_MIXED) {
        pulled.reverse();
        pulled.truncate(usize::try_from(w.random.between(1, 10)).unwrap_or(1));
    }
    waiting.asker.answer(w, Some(pulled));
    true
}

fn acknowledge(w: &mut World, ack: &str) {
    let mut parts = ack.split(' ');
    let (Some(consumer), Some(generation), Some(sequence)) = (parts.next(), parts.next(), parts.next())
    else {
        return;
    };
    let Ok(sequence) = sequence.parse() else { return };
    let stream = w.servers[HUB].server.stream_mut(&subject::bucket_stream(subject::BUCKET_DESIRED));
    if let Some(stream) = stream.filter(|stream| stream.generation.to_string() == generation) {
        stream.ack(consumer, sequence);
    }
}

/// Something was stored at the hub: pulls that wait are tried again.
pub fn wake_pulls(w: &mut World) {
    if w.servers[HUB].pulls.is_empty() || std::mem::replace(&mut w.servers[HUB].waking, true) {
        return;
    }
    let delay = w.near_us();
    w.after(delay, |w| {
        w.servers[HUB].waking = false;
        if !w.servers[HUB].up {
            return;
        }
        for waiting in std::mem::take(&mut w.servers[HUB].pulls) {
            if !waiting.asker.is_over() && !serve(w, &waiting) {
                w.servers[HUB].pulls.push(waiting);
            }
        }
    });
}

/// Something was stored on a node: reads that wait are tried again.
pub fn wake_reads(w: &mut World, edge: usize) {
    if w.edges[edge].reads.is_empty() || std::mem::replace(&mut w.servers[edge + 1].waking, true) {
        return;
    }
    let delay = w.near_us();
    w.after(delay, move |w| {
        w.servers[edge + 1].waking = false;
        if !w.servers[edge + 1].up {
            return;
        }
        for read in std::mem::take(&mut w.edges[edge].reads) {
            let stored = read_now(w, edge, &read);
            if stored.is_empty() {
                w.edges[edge].reads.push(read);
            } else {
                let have = Done::Have {
                    lane: read.lane,
                    round: read.round,
                    outcome: Ok(Have { messages: stored, through: 0 }),
                };
                runner::done::<Sync>(w, edge, read.incarnation, have);
            }
        }
    });
}

/// A read that waited in vain: what the stream holds, it holds for other lanes.
fn nothing(w: &World, edge: usize, lane: Lane) -> Have {
    let stream = w.servers[edge + 1].server.stream(lane.edge_stream()).filter(|_| !lane.is_alone());
    Have { messages: Vec::new(), through: stream.map_or(0, |stream| stream.last_sequence()) }
}

fn read_now(w: &World, edge: usize, read: &WaitingRead) -> Vec<Stored> {
    let Some(stream) = w.servers[edge + 1].server.stream(read.lane.edge_stream()) else { return Vec::new() };
    let mut bytes = 0;
    let mut stored = Vec::new();
    for message in stream.read(read.lane.filter(), read.from).take(BATCH_MESSAGES_MAX) {
        bytes += message.payload.len() + 100;
        if bytes > read.max_bytes && !stored.is_empty() {
            break;
        }
        let mut headers = message.headers.clone();
        headers.remove(MSG_ID); // as bus::link does with all of NATS' own
        stored.push(Stored {
            sequence: message.sequence,
            subject: message.subject.clone(),
            headers,
            payload: message.payload.clone(),
        });
    }
    stored
}

type Found = Option<(u64, Vec<u8>)>;

fn find_cursor(w: &mut World, edge: usize, incarnation: u64, lane: Lane, round: u64) {
    let (local, remote) = (lane.edge_stream(), lane.hub_stream());
    let delay = w.near_us();
    w.after(delay, move |w| {
        let Some(stream) = w.servers[edge + 1].server.stream(local).filter(|_| w.servers[edge + 1].up) else {
            w.after(REQUEST_WAIT, move |w| {
                let done = Done::Found { lane, round, outcome: Err(lost()) };
                runner::done::<Sync>(w, edge, incarnation, done);
            });
            return;
        };
        let state = StreamState {
            generation: stream.generation.to_string(),
            first_sequence: stream.first_sequence(),
            last_sequence: stream.last_sequence(),
            messages: stream.len(),
            bytes: 0,
            bytes_max: u64::MAX,
        };
        let cursor = subject::cursor(&w.edges[edge].name, lane);
        let at_hub = move |w: &mut World, asker: &Asker<Found>| {
            let stream = w.servers[HUB].server.stream(remote);
            let found = stream.and_then(|stream| stream.get(&cursor));
            let found = found.map(|stored| (stored.sequence, stored.payload.to_vec()));
            asker.answer(w, found);
        };
        Asker::ask(w, edge, REQUEST_WAIT, at_hub, move |w, found: Option<Found>| {
            let outcome = found.ok_or_else(lost).map(|cursor| (cursor, state));
            w.tell(|| format!("node {edge}, lane {}: found {outcome:?}", lane.as_str()));
            runner::done::<Sync>(w, edge, incarnation, Done::Found { lane, round, outcome });
        });
    });
}
