//! A small model of what we use of JetStream: streams, buckets, atomic batches, and durable pull consumers.
//!
//! Deterministic and without a clock: time comes in as milliseconds. What it does is held against the real server by
//! `tests/jetstream_model.rs`, which runs the same random programs on both. Facts it copies from nats-server 2.15: a
//! bucket is a stream with one message a subject, so a write replaces and leaves a gap; a purge never gives sequences
//! back; a consumer skips what is gone by the time it would be delivered (again).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use schemas::envelope::Headers;
use schemas::subject::matches;

/// Messages with the same `Nats-Msg-Id` are one within so long.
pub const DUPLICATE_WINDOW_MS: u64 = 120_000;
/// Header by which the server tells duplicates.
pub const MSG_ID: &str = "Nats-Msg-Id";
/// Length of a batch's name, as `bus::link` makes it.
const BATCH_ID_BYTES: usize = 22;
/// Header of a bucket's tombstone.
pub const OPERATION: &str = "KV-Operation";

/// A stored message.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// Its sequence.
    pub sequence: u64,
    /// Its subject.
    pub subject: String,
    /// Its headers.
    pub headers: Headers,
    /// Its body.
    pub payload: Bytes,
}

impl Stored {
    /// Is it a bucket's tombstone?
    pub fn is_tombstone(&self) -> bool {
        self.headers.contains_key(OPERATION)
    }

    /// What the file store counts for it.
    fn size_bytes(&self) -> u64 {
        size_bytes(&self.subject, &self.headers, &self.payload)
    }
}

fn size_bytes(subject: &str, headers: &Headers, payload: &Bytes) -> u64 {
    let block: usize = headers.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
    let headers = if headers.is_empty() { 0 } else { 4 + block + "NATS/1.0\r\n\r\n".len() };
    (22 + subject.len() + headers + payload.len() + 8) as u64
}

/// Why the server did not take a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The subject is not at the expected sequence.
    WrongLastSequence,
    /// The stream is full.
    Full,
    /// No stream has that subject.
    NoStream,
}

/// How a stream is made.
#[derive(Debug, Clone)]
pub struct Config {
    /// What it captures.
    pub subjects: Vec<String>,
    /// Bound; at it, new messages are refused.
    pub size_bytes_max: u64,
    /// Keep one message a subject (a bucket).
    pub bucket: bool,
}

/// A stream.
#[derive(Debug, Clone)]
pub struct Stream {
    /// Another stream of the same name has another one.
    pub generation: u64,
    config: Config,
    messages: BTreeMap<u64, Stored>,
    by_subject: BTreeMap<String, BTreeSet<u64>>,
    last_sequence: u64,
    size_bytes: u64,
    ids: BTreeMap<String, (u64, u64)>,
    consumers: BTreeMap<String, Consumer>,
    /// The consumers as they are on disk.
    flushed: BTreeMap<String, Consumer>,
    /// Trimmed, but not yet on disk.
    trimmed: Vec<Stored>,
}

/// A message to store.
#[derive(Debug, Clone)]
pub struct New {
    /// Its subject.
    pub subject: String,
    /// Its headers.
    pub headers: Headers,
    /// Its body.
    pub payload: Bytes,
}

impl Stream {
    /// An empty stream.
    pub fn new(config: Config, generation: u64) -> Self {
        Self {
            generation,
            config,
            messages: BTreeMap::new(),
            by_subject: BTreeMap::new(),
            last_sequence: 0,
            size_bytes: 0,
            ids: BTreeMap::new(),
            consumers: BTreeMap::new(),
            flushed: BTreeMap::new(),
            trimmed: Vec::new(),
        }
    }

    /// Does it capture that subject?
    pub fn captures(&self, subject: &str) -> bool {
        self.config.subjects.iter().any(|filter| matches(filter, subject))
    }

    /// The last sequence given.
    pub fn last_sequence(&self) -> u64 {
        self.last_sequence
    }

    /// The first sequence that is there; one past the last when there is none, and 0 before anything was stored.
    pub fn first_sequence(&self) -> u64 {
        let none = if self.last_sequence == 0 { 0 } else { self.last_sequence + 1 };
        self.messages.keys().next().copied().unwrap_or(none)
    }

    /// What its messages take on disk.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Messages in it.
    pub fn len(&self) -> u64 {
        self.messages.len() as u64
    }

    /// Is nothing in it?
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// The last message of a subject.
    pub fn get(&self, subject: &str) -> Option<&Stored> {
        self.messages.get(self.by_subject.get(subject)?.last()?)
    }

    /// Stores one message, if the subject's last sequence is as expected (0: none).
    pub fn publish(&mut self, new: New, expect: Option<u64>, now_ms: u64) -> Result<u64, Refused> {
        if let Some((sequence, at)) = new.headers.get(MSG_ID).and_then(|id| self.ids.get(id))
            && now_ms < at + DUPLICATE_WINDOW_MS
        {
            return Ok(*sequence);
        }
        self.check(&new.subject, expect)?;
        let replaced = self.replaced(&new.subject).map_or(0, Stored::size_bytes);
        let size = size_bytes(&new.subject, &new.headers, &new.payload);
        if self.size_bytes - replaced + size > self.config.size_bytes_max {
            return Err(Refused::Full);
        }
        Ok(self.store(new, now_ms))
    }

    /// Stores all of them or none; the last one under compare-and-set. Gives the last one's sequence.
    pub fn commit(&mut self, mut batch: Vec<New>, expect: Option<u64>, now_ms: u64) -> Result<u64, Refused> {
        if let Some(last) = batch.last() {
            self.check(&last.subject, expect)?;
        }
        // The server keeps the batch's own headers: they take room.
        for (number, new) in (1u64..).zip(&mut batch) {
            new.headers.insert("Nats-Batch-Id".to_owned(), "0".repeat(BATCH_ID_BYTES));
            new.headers.insert("Nats-Batch-Sequence".to_owned(), number.to_string());
        }
        if let Some(last) = batch.last_mut() {
            last.headers.insert("Nats-Batch-Commit".to_owned(), "1".to_owned());
            let expect = expect.unwrap_or(0).to_string();
            last.headers.insert("Nats-Expected-Last-Subject-Sequence".to_owned(), expect);
        }
        let size: u64 = batch.iter().map(|new| size_bytes(&new.subject, &new.headers, &new.payload)).sum();
        if self.size_bytes + size > self.config.size_bytes_max {
            return Err(Refused::Full);
        }
        let mut last = self.last_sequence;
        for new in batch {
            last = self.store(new, now_ms);
        }
        Ok(last)
    }

    fn check(&self, subject: &str, expect: Option<u64>) -> Result<(), Refused> {
        let last = self.by_subject.get(subject).and_then(|all| all.last().copied()).unwrap_or(0);
        match expect {
            Some(expect) if expect != last => Err(Refused::WrongLastSequence),
            _ => Ok(()),
        }
    }

    fn replaced(&self, subject: &str) -> Option<&Stored> {
        if self.config.bucket { self.get(subject) } else { None }
    }

    fn store(&mut self, new: New, now_ms: u64) -> u64 {
        if let Some(old) = self.replaced(&new.subject).map(|old| old.sequence) {
            self.drop_message(old);
        }
        self.last_sequence += 1;
        let sequence = self.last_sequence;
        if let Some(id) = new.headers.get(MSG_ID) {
            self.ids.insert(id.clone(), (sequence, now_ms));
        }
        let New { subject, headers, payload } = new;
        self.by_subject.entry(subject.clone()).or_default().insert(sequence);
        let stored = Stored { sequence, subject, headers, payload };
        self.size_bytes += stored.size_bytes();
        self.messages.insert(sequence, stored);
        sequence
    }

    fn drop_message(&mut self, sequence: u64) {
        let Some(gone) = self.messages.remove(&sequence) else { return };
        self.size_bytes -= gone.size_bytes();
        if let Some(all) = self.by_subject.get_mut(&gone.subject) {
            all.remove(&sequence);
            if all.is_empty() {
                self.by_subject.remove(&gone.subject);
            }
        }
    }

    /// Drops what matches, up to and with `sequence`.
    pub fn purge(&mut self, filter: &str, sequence: u64) {
        let gone: Vec<u64> = self
            .messages
            .range(..=sequence)
            .filter(|(_, stored)| matches(filter, &stored.subject))
            .map(|(sequence, _)| *sequence)
            .collect();
        for sequence in gone {
            self.trimmed.extend(self.messages.get(&sequence).cloned());
            self.drop_message(sequence);
        }
    }

    /// All is on disk.
    fn flush(&mut self) {
        self.flushed.clone_from(&self.consumers);
        self.trimmed.clear();
    }

    /// The power fails. Messages are on disk, each before its acknowledgement; where consumers stand and what was
    /// trimmed is written later, so consumers fall back, and what was trimmed last is there again.
    fn lose_unflushed(&mut self, kept_per_mille: u64) {
        let kept = self.trimmed.len() as u64 * kept_per_mille / 1_000;
        for stored in self.trimmed.split_off(usize::try_from(kept).unwrap_or(0)) {
            self.size_bytes += stored.size_bytes();
            self.by_subject.entry(stored.subject.clone()).or_default().insert(stored.sequence);
            self.messages.insert(stored.sequence, stored);
        }
        for (name, consumer) in &mut self.consumers {
            if let Some(flushed) = self.flushed.get(name).filter(|_| kept_per_mille < 1_000) {
                consumer.clone_from(flushed);
            }
        }
        self.flush();
    }

    /// What matches, from a sequence on, in order.
    pub fn read<'a>(&'a self, filter: &'a str, from: u64) -> impl Iterator<Item = &'a Stored> {
        self.messages.range(from..).map(|(_, stored)| stored).filter(move |s| matches(filter, &s.subject))
    }

    /// The last message of each subject that matches, in order: how a watch begins.
    pub fn last_per_subject(&self, filter: &str) -> BTreeSet<u64> {
        let matching = self.by_subject.iter().filter(|(subject, _)| matches(filter, subject));
        matching.filter_map(|(_, all)| all.last().copied()).collect()
    }

    /// One message.
    pub fn at(&self, sequence: u64) -> Option<&Stored> {
        self.messages.get(&sequence)
    }

    /// The server starts again: ids of messages that are no longer there are forgotten.
    pub fn recover(&mut self) {
        let messages = &self.messages;
        self.ids.retain(|_, (sequence, _)| messages.contains_key(sequence));
    }

    /// Makes a durable consumer; one that is there stays as it is.
    pub fn ensure_consumer(&mut self, name: &str, config: ConsumerConfig) {
        if self.consumers.contains_key(name) {
            return;
        }
        let mut consumer = Consumer { config, ..Consumer::default() };
        if consumer.config.last_per_subject {
            consumer.first = self.last_per_subject(&consumer.config.filter);
            consumer.first_until = self.last_sequence;
        }
        self.consumers.insert(name.to_owned(), consumer);
    }

    /// Removes a consumer.
    pub fn remove_consumer(&mut self, name: &str) {
        self.consumers.remove(name);
    }

    /// Is it there?
    pub fn has_consumer(&self, name: &str) -> bool {
        self.consumers.contains_key(name)
    }

    /// Delivers at most so many messages and bytes (at least one message if there is any): (sequence, attempt).
    pub fn pull(
        &mut self,
        name: &str,
        max_messages: usize,
        max_bytes: usize,
        now_ms: u64,
    ) -> Vec<(u64, u64)> {
        let Some(mut consumer) = self.consumers.remove(name) else { return Vec::new() };
        let mut delivered = Vec::new();
        let mut bytes = 0;
        while delivered.len() < max_messages {
            let Some(sequence) = consumer.peek(self, now_ms) else { break };
            let size =
                self.messages.get(&sequence).map_or(0, |stored| stored.payload.len() + stored.subject.len());
            if !delivered.is_empty() && bytes + size > max_bytes {
                break;
            }
            bytes += size;
            delivered.push((sequence, consumer.take(sequence, now_ms)));
        }
        self.consumers.insert(name.to_owned(), consumer);
        delivered
    }

    /// Acknowledges a message.
    pub fn ack(&mut self, name: &str, sequence: u64) {
        if let Some(consumer) = self.consumers.get_mut(name) {
            consumer.pending.remove(&sequence);
            consumer.again.retain(|other| *other != sequence);
        }
    }

    /// Gives a message back, to come again after `pause_ms`.
    pub fn nak(&mut self, name: &str, sequence: u64, pause_ms: u64, now_ms: u64) {
        if let Some(pending) = self.consumers.get_mut(name).and_then(|c| c.pending.get_mut(&sequence)) {
            pending.due_ms = now_ms + pause_ms;
        }
    }

    /// Up to which sequence a consumer has acknowledged everything.
    pub fn ack_floor(&self, name: &str) -> u64 {
        let Some(consumer) = self.consumers.get(name) else { return 0 };
        consumer.pending.keys().next().map_or(consumer.after, |first| first - 1)
    }
}

/// How a consumer is made.
#[derive(Debug, Clone, Default)]
pub struct ConsumerConfig {
    /// What it takes.
    pub filter: String,
    /// Begin with the last message of each subject.
    pub last_per_subject: bool,
    /// What is not acknowledged comes again after so long.
    pub ack_wait_ms: u64,
    /// Unacknowledged messages at once.
    pub pending_max: usize,
}

#[derive(Debug, Clone, Default)]
struct Consumer {
    config: ConsumerConfig,
    first: BTreeSet<u64>,
    first_until: u64,
    after: u64,
    pending: BTreeMap<u64, Pending>,
    again: VecDeque<u64>,
}

#[derive(Debug, Clone, Copy)]
struct Pending {
    due_ms: u64,
    attempts: u64,
}

impl Consumer {
    /// The next message to deliver: what is due again before what is new.
    fn peek(&mut self, stream: &Stream, now_ms: u64) -> Option<u64> {
        self.pending.retain(|sequence, _| stream.messages.contains_key(sequence));
        self.again.retain(|sequence| self.pending.contains_key(sequence));
        let due = self.pending.iter().filter(|(_, pending)| pending.due_ms <= now_ms);
        for sequence in due.map(|(sequence, _)| *sequence) {
            if !self.again.contains(&sequence) {
                self.again.push_back(sequence);
            }
        }
        if let Some(sequence) = self.again.front() {
            return Some(*sequence);
        }
        if self.pending.len() >= self.config.pending_max {
            return None;
        }
        let wanted = |stored: &&Stored| {
            stored.sequence > self.first_until
                || !self.config.last_per_subject
                || self.first.contains(&stored.sequence)
        };
        stream.read(&self.config.filter, self.after + 1).find(wanted).map(|stored| stored.sequence)
    }

    /// Delivers it; gives the how-manyth time.
    fn take(&mut self, sequence: u64, now_ms: u64) -> u64 {
        self.again.retain(|other| *other != sequence);
        self.after = self.after.max(sequence);
        let pending = self.pending.entry(sequence).or_insert(Pending { due_ms: 0, attempts: 0 });
        pending.attempts += 1;
        pending.due_ms = now_ms + self.config.ack_wait_ms;
        pending.attempts
    }
}

/// The streams of one server.
#[derive(Debug, Clone, Default)]
pub struct Server {
    streams: BTreeMap<String, Stream>,
}

impl Server {
    /// Makes a stream that is not there.
    pub fn ensure(&mut self, name: &str, config: Config, generation: u64) {
        self.streams.entry(name.to_owned()).or_insert_with(|| Stream::new(config, generation));
    }

    /// Loses a stream.
    pub fn remove(&mut self, name: &str) {
        self.streams.remove(name);
    }

    /// One stream.
    pub fn stream(&self, name: &str) -> Option<&Stream> {
        self.streams.get(name)
    }

    /// One stream, to change.
    pub fn stream_mut(&mut self, name: &str) -> Option<&mut Stream> {
        self.streams.get_mut(name)
    }

    /// The stream that captures a subject.
    pub fn capturing(&mut self, subject: &str) -> Option<(&str, &mut Stream)> {
        self.streams
            .iter_mut()
            .find(|(_, stream)| stream.captures(subject))
            .map(|(name, stream)| (name.as_str(), stream))
    }

    /// All is on disk.
    pub fn flush(&mut self) {
        self.streams.values_mut().for_each(Stream::flush);
    }

    /// The power fails: so much of what was not flushed is kept.
    pub fn lose_unflushed(&mut self, kept_per_mille: u64) {
        self.streams.values_mut().for_each(|stream| stream.lose_unflushed(kept_per_mille));
    }

    /// The server starts again.
    pub fn recover(&mut self) {
        self.streams.values_mut().for_each(Stream::recover);
    }
}
