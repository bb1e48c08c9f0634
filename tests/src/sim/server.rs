//! A server in the world: the model of JetStream with those who are connected to it.
//!
//! A write takes effect in one step, some time after it was sent and before it is acknowledged; a crash in between loses
//! it, or it. What follows a bucket or a stream is pumped: each pump brings what stands there after what was brought.

use std::rc::Rc;

use bus::module::{Delivery, Entry, EntryValue, Expect, Message, WriteError};
use bytes::Bytes;
use schemas::envelope::Headers;
use schemas::subject::{self, matches};

use super::jetstream::{Config, ConsumerConfig, New, OPERATION, Refused, Server, Stored};
use super::planted::Planted;
use super::world::{MS, S, World};

/// The hub's server.
pub const HUB: usize = 0;
/// Marks each message stored on a node: which stream and sequence it had there.
pub const ORIGIN: &str = "sim-origin";
/// An unacknowledged delivery to a module comes again after so long.
const ACK_WAIT_MS: u64 = 10_000;
/// Deliveries that a module holds at once.
const PENDING_MAX: usize = 256;
/// How often a server flushes what no acknowledgement waits for.
const FLUSH_EVERY: u64 = 700 * MS;
/// With the planted bug: how often a server really writes to its disk.
const SLOW_SYNC: u64 = 700 * MS;

/// What comes to a module from a server.
#[derive(Debug, Clone)]
pub enum Source {
    /// An entry of a bucket.
    Entry(Entry),
    /// All that was there has been told.
    Current(String, String),
    /// A live message.
    Message(Message),
    /// A stored message, to be acknowledged on that consumer.
    Delivery(Delivery, String),
}

/// Brings something to a module; `false` when that incarnation is over.
pub type Tell = Rc<dyn Fn(&mut World, Source) -> bool>;
/// Ends that incarnation: its source failed.
pub type Fail = Rc<dyn Fn(&mut World)>;

/// One who follows.
pub struct Follower {
    id: u64,
    what: What,
    tell: Tell,
    fail: Fail,
    armed: bool,
}

#[derive(Clone)]
enum What {
    Watch { bucket: String, filter: String, after: u64, current: bool },
    Consume { stream: String, durable: String },
    Subscribe { filter: String },
}

/// A server and its connections.
#[derive(Default)]
pub struct Place {
    /// Is it running?
    pub up: bool,
    /// Changes with every start.
    pub incarnation: u64,
    /// How wrong its machine's clock is.
    pub clock_off_ms: i64,
    /// Its streams.
    pub server: Server,
    followers: Vec<Follower>,
    /// With the planted bug: what is really on disk.
    synced: Option<Server>,
    /// Pulls that wait (the hub's server).
    pub pulls: Vec<super::link::WaitingPull>,
    /// Those who wait are woken soon.
    pub waking: bool,
}

fn bucket_config(bucket: &str) -> (String, Config) {
    let subjects = vec![subject::kv(bucket, ">")];
    (subject::bucket_stream(bucket), Config { subjects, size_bytes_max: u64::MAX / 4, bucket: true })
}

fn stream_config(name: &str, subjects: &[&str]) -> (String, Config) {
    let subjects = subjects.iter().map(|s| (*s).to_owned()).collect();
    (name.to_owned(), Config { subjects, size_bytes_max: u64::MAX / 4, bucket: false })
}

/// Starts a server: its streams are made if they are not there.
pub fn start(w: &mut World, at: usize) {
    if w.servers[at].up {
        return;
    }
    let configs = if at == HUB {
        vec![
            bucket_config(subject::BUCKET_OBJECTS),
            bucket_config(subject::BUCKET_DESIRED),
            stream_config(subject::STREAM_UP, &["ew.in.>"]),
            stream_config(subject::STREAM_FROM, &["from.>", "from-bulk.>", "_cursor.>"]),
            stream_config(subject::STREAM_DEAD, &["ew.dead.>"]),
        ]
    } else {
        vec![
            bucket_config(subject::BUCKET_LOCAL),
            stream_config(subject::STREAM_OUTBOX, &["ew.rep.>", "ew.evt.>"]),
            stream_config(subject::STREAM_UPLINK, &["up.>"]),
            stream_config(subject::STREAM_BULK, &["bulk.>"]),
            stream_config(subject::STREAM_DOWN, &[subject::ARRIVING]),
            stream_config(subject::STREAM_DEAD, &["ew.dead.>"]),
        ]
    };
    for (name, config) in configs {
        let generation = w.unique();
        w.servers[at].server.ensure(&name, config, generation);
    }
    let incarnation = w.unique();
    let place = &mut w.servers[at];
    place.server.recover();
    place.server.flush();
    place.up = true;
    place.incarnation = incarnation;
    w.tell(|| format!("server {at} starts"));
    // Followers take up where they were; one that was further than the bucket now is begins again.
    let mut lost = Vec::new();
    for follower in &w.servers[at].followers {
        if let What::Watch { bucket, after, .. } = &follower.what {
            let last =
                w.servers[at].server.stream(&subject::bucket_stream(bucket)).map_or(0, |s| s.last_sequence());
            if *after > last {
                lost.push(follower.fail.clone());
            }
        }
    }
    for fail in lost {
        fail(w);
    }
    if w.planted == Some(Planted::WatchGap) {
        for follower in &mut w.servers[at].followers {
            follower.armed |= matches!(follower.what, What::Watch { .. });
        }
        w.after(S, move |w| skip_what_came_meanwhile(w, at));
    }
    arm(w, at, |_| true);
    flush(w, at, incarnation);
    if w.planted == Some(Planted::AckBeforeFlush) {
        w.servers[at].synced = Some(w.servers[at].server.clone());
        sync(w, at, incarnation);
    }
}

/// The planted bug: watches are taken up again a second after the server, with what comes from then on.
fn skip_what_came_meanwhile(w: &mut World, at: usize) {
    let place = &mut w.servers[at];
    for follower in &mut place.followers {
        if let What::Watch { bucket, after, .. } = &mut follower.what {
            *after = place.server.stream(&subject::bucket_stream(bucket)).map_or(0, |s| s.last_sequence());
            follower.armed = false;
        }
    }
    arm(w, at, |_| true);
}

/// What a server writes to its disk by and by, unlike messages: where its consumers stand, and what was trimmed.
fn flush(w: &mut World, at: usize, incarnation: u64) {
    w.after(FLUSH_EVERY, move |w| {
        if w.servers[at].incarnation == incarnation && w.servers[at].up {
            w.servers[at].server.flush();
            flush(w, at, incarnation);
        }
    });
}

/// The machine loses power: what its server had not flushed is lost, in part or all of it.
pub fn lose_power(w: &mut World, at: usize) {
    stop(w, at);
    let kept_per_mille = w.random.below(1_001);
    w.servers[at].server.lose_unflushed(kept_per_mille);
}

fn sync(w: &mut World, at: usize, incarnation: u64) {
    w.after(SLOW_SYNC, move |w| {
        if w.servers[at].incarnation == incarnation && w.servers[at].up {
            w.servers[at].synced = Some(w.servers[at].server.clone());
            sync(w, at, incarnation);
        }
    });
}

/// Kills a server. What it acknowledged is on disk.
pub fn stop(w: &mut World, at: usize) {
    if !w.servers[at].up {
        return;
    }
    w.tell(|| format!("server {at} is killed"));
    let place = &mut w.servers[at];
    place.up = false;
    place.pulls.clear();
    place.waking = false;
    if let Some(synced) = place.synced.take() {
        place.server = synced;
    }
    for follower in &mut place.followers {
        follower.armed = false;
    }
}

fn arm(w: &mut World, at: usize, which: impl Fn(&What) -> bool) {
    let ids: Vec<u64> = w.servers[at]
        .followers
        .iter_mut()
        .filter(|follower| !follower.armed && which(&follower.what))
        .map(|follower| {
            follower.armed = true;
            follower.id
        })
        .collect();
    for id in ids {
        let delay = w.near_us();
        w.after(delay, move |w| pump(w, at, id));
    }
}

fn follow(w: &mut World, at: usize, what: What, tell: Tell, fail: Fail) {
    let id = w.unique();
    if matches!(what, What::Consume { .. }) {
        w.after(S, move |w| look_again(w, at, id));
    }
    w.servers[at].followers.push(Follower { id, what, tell, fail, armed: true });
    let delay = w.near_us();
    w.after(delay, move |w| pump(w, at, id));
}

/// What was not acknowledged falls due by itself.
fn look_again(w: &mut World, at: usize, id: u64) {
    let Some(follower) = w.servers[at].followers.iter_mut().find(|follower| follower.id == id) else {
        return;
    };
    if !std::mem::replace(&mut follower.armed, true) {
        pump(w, at, id);
    }
    w.after(S, move |w| look_again(w, at, id));
}

/// Follows a bucket.
pub fn watch(w: &mut World, at: usize, bucket: &str, filter: &str, tell: Tell, fail: Fail) {
    let what = What::Watch { bucket: bucket.to_owned(), filter: filter.to_owned(), after: 0, current: false };
    follow(w, at, what, tell, fail);
}

/// Takes stored messages.
pub fn consume(w: &mut World, at: usize, stream: &str, durable: &str, filter: &str, tell: Tell, fail: Fail) {
    let config = ConsumerConfig {
        filter: filter.to_owned(),
        last_per_subject: false,
        ack_wait_ms: ACK_WAIT_MS,
        pending_max: PENDING_MAX,
    };
    if let Some(stream) = w.servers[at].server.stream_mut(stream) {
        stream.ensure_consumer(durable, config);
    }
    follow(w, at, What::Consume { stream: stream.to_owned(), durable: durable.to_owned() }, tell, fail);
}

/// Hears live messages.
pub fn subscribe(w: &mut World, at: usize, filter: &str, tell: Tell, fail: Fail) {
    follow(w, at, What::Subscribe { filter: filter.to_owned() }, tell, fail);
}

/// Brings a live message to those who hear it now; `false` when nobody does.
pub fn publish_live(w: &mut World, at: usize, message: &Message) -> bool {
    let hearing: Vec<Tell> = w.servers[at]
        .followers
        .iter()
        .filter(|f| matches!(&f.what, What::Subscribe { filter } if matches(filter, &message.subject)))
        .map(|f| f.tell.clone())
        .collect();
    let mut heard = false;
    for tell in hearing {
        heard |= tell(w, Source::Message(message.clone()));
    }
    heard
}

/// An entry of a bucket, as a watch tells it.
pub fn entry(bucket: &str, stored: &Stored) -> Option<Entry> {
    let key = stored.subject.strip_prefix(&format!("$KV.{bucket}."))?.to_owned();
    let payload = stored.payload.to_vec();
    let value = if stored.is_tombstone() { EntryValue::Removed(payload) } else { EntryValue::Put(payload) };
    Some(Entry { bucket: bucket.to_owned(), key, revision: stored.sequence, value })
}

fn pump(w: &mut World, at: usize, id: u64) {
    let now_ms = w.now_ms();
    let count = usize::try_from(w.random.between(1, 24)).unwrap_or(1);
    let place = &mut w.servers[at];
    let Some(follower) = place.followers.iter_mut().find(|follower| follower.id == id) else { return };
    follower.armed = false;
    if !place.up {
        return;
    }
    let tell = follower.tell.clone();
    let mut again = false;
    let mut sources = Vec::new();
    match &mut follower.what {
        What::Watch { bucket, filter, after, current } => {
            let Some(stream) = place.server.stream(&subject::bucket_stream(bucket)) else { return };
            let filter_subject = subject::kv(bucket, filter);
            for stored in stream.read(&filter_subject, *after + 1) {
                if sources.len() >= count {
                    again = true;
                    break;
                }
                *after = stored.sequence;
                sources.extend(entry(bucket, stored).map(Source::Entry));
            }
            if !again && !*current {
                *current = true;
                sources.push(Source::Current(bucket.clone(), filter.clone()));
            }
        }
        What::Consume { stream: name, durable } => {
            let Some(stream) = place.server.stream_mut(name) else { return };
            let pulled = stream.pull(durable, count, usize::MAX, now_ms);
            again = pulled.len() >= count;
            for (sequence, attempt) in pulled {
                let Some(stored) = stream.at(sequence) else { continue };
                let delivery = Delivery {
                    stream: name.clone(),
                    sequence,
                    subject: stored.subject.clone(),
                    headers: stored.headers.clone(),
                    payload: stored.payload.to_vec(),
                    attempt,
                };
                sources.push(Source::Delivery(delivery, durable.clone()));
            }
        }
        What::Subscribe { .. } => {}
    }
    if again {
        let delay = w.near_us();
        if let Some(follower) = w.servers[at].followers.iter_mut().find(|follower| follower.id == id) {
            follower.armed = true;
        }
        w.after(delay, move |w| pump(w, at, id));
    }
    for source in sources {
        if !tell(w, source) {
            w.servers[at].followers.retain(|follower| follower.id != id);
            return;
        }
    }
}

/// Takes followers away whose incarnation is over.
pub fn unfollow(w: &mut World, at: usize, tell: &Tell) {
    w.servers[at].followers.retain(|follower| !Rc::ptr_eq(&follower.tell, tell));
}

/// A message arrives at a server and is stored, or not. `Err(None)`: nothing has that subject.
pub fn store(w: &mut World, at: usize, mut new: New, expect: Option<u64>) -> Result<u64, Refused> {
    let clock_ms = w.clock_ms(at);
    let unique = w.unique();
    let lost_tombstone = w.planted == Some(Planted::LostTombstone) && super::planted::is_tombstone(&new);
    let Some((name, stream)) = w.servers[at].server.capturing(&new.subject) else {
        return Err(Refused::NoStream);
    };
    let name = name.to_owned();
    if at != HUB {
        let origin = format!("{name} {} {} {unique}", stream.generation, stream.last_sequence() + 1);
        new.headers.insert(ORIGIN.to_owned(), origin);
    }
    if lost_tombstone {
        return Ok(stream.last_sequence() + 1);
    }
    let before = stream.get(&new.subject).cloned();
    let last = stream.last_sequence();
    let sequence = stream.publish(new, expect, clock_ms)?;
    if sequence > last {
        let stored = stream.at(sequence).cloned();
        if let Some(stored) = stored {
            stored_one(w, at, &name, before.as_ref(), &stored);
        }
    }
    Ok(sequence)
}

/// An atomic batch arrives at the hub.
pub fn commit(w: &mut World, name: &str, batch: Vec<New>, expect: u64) -> Result<u64, Refused> {
    let clock_ms = w.clock_ms(HUB);
    let expect = (w.planted != Some(Planted::CursorWithoutCas)).then_some(expect);
    let stream = w.servers[HUB].server.stream_mut(name).ok_or(Refused::NoStream)?;
    let first = stream.last_sequence() + 1;
    let before = batch.last().and_then(|cursor| stream.get(&cursor.subject)).cloned();
    let last = stream.commit(batch, expect, clock_ms)?;
    let stored: Vec<Stored> = (first..=last).filter_map(|sequence| stream.at(sequence)).cloned().collect();
    for stored in &stored {
        let before = before.as_ref().filter(|before| before.subject == stored.subject);
        stored_one(w, HUB, name, before, stored);
    }
    Ok(last)
}

fn stored_one(w: &mut World, at: usize, name: &str, before: Option<&Stored>, stored: &Stored) {
    super::checks::stored(w, at, name, before, stored);
    let name = name.to_owned();
    arm(w, at, |what| match what {
        What::Watch { bucket, .. } => subject::bucket_stream(bucket) == name,
        What::Consume { stream, .. } => *stream == name,
        What::Subscribe { .. } => false,
    });
    if at == HUB {
        super::link::wake_pulls(w);
    } else {
        super::link::wake_reads(w, at - 1);
    }
}

/// A write of an entry arrives.
pub fn write(
    w: &mut World,
    at: usize,
    bucket: &str,
    key: &str,
    value: &[u8],
    expect: Expect,
    removed: bool,
) -> Result<u64, WriteError> {
    let subject = subject::kv(bucket, key);
    let expect = match expect {
        Expect::Any => None,
        Expect::Revision(revision) => Some(revision),
        Expect::Absent => {
            let stream = w.servers[at].server.stream(&subject::bucket_stream(bucket));
            let last = stream.and_then(|stream| stream.get(&subject));
            Some(last.filter(|last| last.is_tombstone()).map_or(0, |last| last.sequence))
        }
    };
    let mut headers = Headers::new();
    if removed {
        headers.insert(OPERATION.to_owned(), "DEL".to_owned());
    }
    let new = New { subject, headers, payload: Bytes::copy_from_slice(value) };
    store(w, at, new, expect).map_err(|refused| match refused {
        Refused::WrongLastSequence => WriteError::Conflict,
        other => WriteError::Failed(format!("{other:?}")),
    })
}
