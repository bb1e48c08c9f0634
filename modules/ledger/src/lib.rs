//! Ledger: counts what nodes sent, apart from the modules that carry it, so that a loss is seen.
//!
//! Each message that came up names where it stood in its node's stream, and each cursor what its lane gave up
//! (`schemas::loss`). The ledger follows the hub's two streams by their headers alone and keeps one [`book`] for each
//! stream of each node: what came, what came twice, what is missing. `edgewire loss` asks it.
//!
//! It keeps the two streams' houses, too, because it knows what it lets go: older cursors, which only take room, and the
//! oldest of FROM when that is nearly full (nobody tells the hub when a workload's message was read, and a full stream
//! would stop every node's uplink).
//!
//! | in / out | what |
//! |---|---|
//! | UP `ew.in.>`, FROM `>` | headers of what came |
//! | `ew.local.ledger.loss` | a [`LossQuery`], answered with a [`LossReport`] |
//!
//! * [`book`] one stream of one node; [`rim`] what it lets go

pub mod book;
pub mod rim;

use std::collections::BTreeMap;
use std::ops::Bound;

use bus::flow::Flow;
use bus::module::{Delivery, Effect, Input, Message, Module};
use rangemap::RangeInclusiveSet;
use schemas::Timestamp;
use schemas::command::{Refusal, Reply};
use schemas::envelope::header;
use schemas::loss::{Account, LossQuery, LossReport, LossRow, Origin, ROWS_MAX};
use schemas::subject::{self, Lane, STREAM_FROM, STREAM_UP};

use crate::book::Book;
pub use crate::rim::{Act, Done, LedgerRim};

/// Name of the module.
pub const NAME: &str = "ledger";
/// Its consumer on UP, which nothing is trimmed before.
pub const READER: &str = "ledger";
/// Books that are kept at most: that of the node that was heard last longest ago goes first.
pub const BOOKS_MAX: usize = 30_000;
/// Ranges of a stream that are told apart at most.
const RANGES_KEPT_MAX: usize = 1_000;
/// A lane's older cursors are let go so often.
const CURSORS_INTERVAL_MS: u64 = 30_000;
/// Lanes whose older cursors are let go in one turn.
const CURSORS_MAX: usize = 100;
/// FROM is looked at so often.
const SHED_INTERVAL_MS: u64 = 5_000;

/// All that the module reads and writes.
pub fn flows() -> Vec<Flow> {
    vec![
        Flow::consume(STREAM_UP, READER, "ew.in.>", "any, and cursors").headers_only(),
        Flow::consume(STREAM_FROM, READER, ">", "any, and cursors").headers_only(),
        Flow::manage(STREAM_UP, "trim of cursors"),
        Flow::manage(STREAM_FROM, "trim"),
        Flow::respond(question(), "LossQuery -> LossReport"),
    ]
}

/// Where the report is asked for.
pub fn question() -> String {
    subject::local(NAME, "loss")
}

/// How far the hub's two streams had come when the process started, by their names: (generation, last sequence).
pub type Streams = BTreeMap<String, (String, u64)>;

/// The module's state.
pub struct Ledger {
    boot_id: String,
    streams: Streams,
    since: Timestamp,
    /// It has counted since before the hub's first message.
    whole: bool,
    books: BTreeMap<(String, String), Book>,
    /// Sequences of the hub's streams that are counted: a message that is delivered again counts once.
    counted: BTreeMap<String, RangeInclusiveSet<u64>>,
    shed: BTreeMap<Lane, u64>,
    /// Cursors that a newer one took the place of: the newest, by stream and subject.
    cursors: BTreeMap<(String, String), Cursors>,
    trimmed_at: Timestamp,
    shed_at: Timestamp,
    shedding: bool,
}

#[derive(Default)]
struct Cursors {
    newest: u64,
    older: bool,
}

type Effects = Vec<Effect<Act>>;

impl Ledger {
    /// `boot_id` changes with every start of the hub's process; `streams` is how it found its streams then.
    pub fn new(boot_id: impl Into<String>, streams: Streams) -> Self {
        Self {
            boot_id: boot_id.into(),
            streams,
            since: Timestamp::default(),
            whole: false,
            books: BTreeMap::new(),
            counted: BTreeMap::new(),
            shed: BTreeMap::new(),
            cursors: BTreeMap::new(),
            trimmed_at: Timestamp::default(),
            shed_at: Timestamp::default(),
            shedding: false,
        }
    }

    /// What was counted is of another store than the one that is there now: a stream is new, or went back.
    fn is_of_another_store(&self, saved: &Streams) -> bool {
        self.streams.iter().any(|(name, (generation, last))| {
            let counted = self.counted.get(name).and_then(|set| set.last()).map_or(0, |range| *range.end());
            saved.get(name).is_some_and(|(before, _)| before != generation) || counted > *last
        })
    }

    fn delivered(&mut self, delivery: &Delivery, now: Timestamp) -> Effects {
        let sequence = delivery.sequence;
        let counted = self.counted.entry(delivery.stream.clone()).or_default();
        if counted.contains(&sequence) {
            return Vec::new();
        }
        counted.insert(sequence..=sequence);
        bound(counted);
        let mut effects = vec![Effect::Save {
            key: format!("counted.{}", delivery.stream),
            value: schemas::encode(counted),
        }];
        let Some((node, lane, is_cursor)) = subject::carried(&delivery.subject) else { return effects };
        if node.as_str() == subject::DOMAIN_HUB {
            return effects; // the hub's own events came from nowhere
        }
        if is_cursor {
            let of = (delivery.stream.clone(), delivery.subject.clone());
            let cursors = self.cursors.entry(of).or_default();
            cursors.older |= sequence != cursors.newest;
            cursors.newest = cursors.newest.max(sequence);
        }
        let key = (node.to_string(), lane.edge_stream().to_owned());
        let whole = self.whole;
        let book = self.books.entry(key.clone()).or_insert_with(|| Book::new(whole));
        let origin = delivery.headers.get(header::ORIGIN).and_then(|text| Origin::parse(text));
        match (origin, is_cursor) {
            (Some(origin), false) => book.message(lane, &origin, now),
            (Some(origin), true) => {
                let account = delivery.headers.get(header::ACCOUNT);
                let account = account.and_then(|text| serde_json::from_str::<Account>(text).ok());
                book.cursor(lane, &origin, account.unwrap_or_default(), now);
            }
            (None, false) => book.unnumbered(lane, now),
            (None, true) => return effects,
        }
        bound(&mut book.came);
        effects.push(Effect::Save { key: book_key(&key), value: schemas::encode(book) });
        if self.books.len() > BOOKS_MAX
            && let Some(oldest) =
                self.books.iter().min_by_key(|(_, book)| book.at).map(|(key, _)| key.clone())
        {
            self.books.remove(&oldest);
            effects.push(Effect::Forget { key: book_key(&oldest) });
        }
        effects
    }

    fn tick(&mut self, now: Timestamp) -> Effects {
        let mut effects = Vec::new();
        if now.since_ms(self.trimmed_at) >= CURSORS_INTERVAL_MS {
            self.trimmed_at = now;
            let older = self.cursors.iter_mut().filter(|(_, cursors)| cursors.older).take(CURSORS_MAX);
            for ((stream, subject), cursors) in older {
                cursors.older = false;
                effects.push(Effect::Act(Act::TrimCursors {
                    stream: stream.clone(),
                    subject: subject.clone(),
                    newest: cursors.newest,
                }));
            }
        }
        if !self.shedding && now.since_ms(self.shed_at) >= SHED_INTERVAL_MS {
            self.shed_at = now;
            self.shedding = true;
            effects.push(Effect::Act(Act::Shed));
        }
        effects
    }

    fn shed(&mut self, went: &BTreeMap<Lane, u64>) -> Effects {
        self.shedding = false;
        if went.is_empty() {
            return Vec::new();
        }
        for (lane, count) in went {
            *self.shed.entry(*lane).or_default() += count;
        }
        vec![Effect::Save { key: SHED.to_owned(), value: schemas::encode(&self.shed) }]
    }

    fn asked(&self, message: &Message) -> Option<Effect<Act>> {
        Effect::reply(message, &self.report(&message.payload))
    }

    fn report(&self, question: &[u8]) -> Reply<LossReport> {
        let query: LossQuery = schemas::decode(question).map_err(|error| Refusal {
            code: "EW-BAD-REQUEST".to_owned(),
            message: error.to_string(),
            status: 400,
        })?;
        let after = query.after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut found = self
            .books
            .range((after, Bound::Unbounded))
            .filter(|((node, _), _)| query.node.as_ref().is_none_or(|only| only == node));
        let rows: Vec<LossRow> =
            found.by_ref().take(ROWS_MAX).map(|((node, stream), book)| book.row(node, stream)).collect();
        let more = found.next().is_some();
        Ok(LossReport { since: self.since, rows, more, shed: self.shed.clone() })
    }

    fn kept(&self) -> Effects {
        let save = |key: &str, value| Effect::Save { key: key.to_owned(), value };
        vec![
            save(SINCE, schemas::encode(&self.since)),
            save(STREAMS, schemas::encode(&self.streams)),
            save(BOOT, schemas::encode(&self.boot_id)),
            save(WHOLE, schemas::encode(&self.whole)),
        ]
    }
}

const SINCE: &str = "since";
const STREAMS: &str = "streams";
const BOOT: &str = "boot";
const SHED: &str = "shed";
const WHOLE: &str = "whole";

/// As it is read back.
#[derive(serde::Deserialize)]
struct Counted(#[serde(deserialize_with = "book::ranges")] RangeInclusiveSet<u64>);

fn book_key((node, stream): &(String, String)) -> String {
    format!("book.{stream}.{node}")
}

/// The oldest ranges grow together when there are too many: what lies between them is no longer told apart.
fn bound(set: &mut RangeInclusiveSet<u64>) {
    while set.len() > RANGES_KEPT_MAX {
        let mut ranges = set.iter();
        let (Some(first), Some(second)) = (ranges.next(), ranges.next()) else { return };
        let range = *first.start()..=*second.end();
        set.insert(range);
    }
}

impl Module for Ledger {
    type Act = Act;
    type Done = Done;

    fn restore(&mut self, saved: Vec<(String, Vec<u8>)>, now: Timestamp) -> Effects {
        let (mut streams, mut boot, mut since) = (Streams::new(), String::new(), None);
        for (key, value) in &saved {
            match key.as_str() {
                SINCE => since = schemas::decode(value).ok(),
                STREAMS => streams = schemas::decode(value).unwrap_or_default(),
                BOOT => boot = schemas::decode(value).unwrap_or_default(),
                WHOLE => self.whole = schemas::decode(value).unwrap_or(false),
                SHED => self.shed = schemas::decode(value).unwrap_or_default(),
                _ => {}
            }
            if let (Some(stream), Ok(Counted(set))) = (key.strip_prefix("counted."), schemas::decode(value)) {
                self.counted.insert(stream.to_owned(), set);
            }
            if let Some((stream, node)) = key.strip_prefix("book.").and_then(|rest| rest.split_once('.'))
                && let Ok(book) = schemas::decode(value)
            {
                self.books.insert((node.to_owned(), stream.to_owned()), book);
            }
        }
        self.since = since.unwrap_or(now);
        if boot == self.boot_id {
            return Vec::new();
        }
        let empty = !self.streams.is_empty() && self.streams.values().all(|(_, last)| *last == 0);
        self.whole |= since.is_none() && empty;
        if !boot.is_empty() && self.is_of_another_store(&streams) {
            tracing::warn!("the hub's store is another one than before: loss is counted anew");
            let forget = |(key, _): &(String, Vec<u8>)| Effect::Forget { key: key.clone() };
            let mut effects: Effects = saved.iter().map(forget).collect();
            self.books.clear();
            self.counted.clear();
            self.shed.clear();
            self.since = now;
            self.whole = empty;
            effects.extend(self.kept());
            return effects;
        }
        self.kept()
    }

    fn apply(&mut self, input: Input<Done>, now: Timestamp) -> Effects {
        match input {
            Input::Delivery(delivery) => self.delivered(&delivery, now),
            Input::Tick => self.tick(now),
            Input::Message(message) if message.subject == question() => {
                self.asked(&message).into_iter().collect()
            }
            Input::Done(Done::Shed(went)) => self.shed(&went),
            _ => Vec::new(),
        }
    }
}
