//! Live and stored messages as one flow, with no gap and no double where they meet.
//!
//! Each subject has one source. What a stream captures comes from that stream alone, read from the point in time on and
//! then followed by sequence, and its live copy is left out; what no stream captures is heard live. So there is no seam
//! inside a subject at all. Across sources the order is this: what was stored before the flow began comes first, of all
//! streams together, oldest first by the time it was stored; then what was heard live meanwhile; then everything as it
//! comes, each stream in its own order.

use std::collections::VecDeque;
use std::task::{Context, Poll};

use bus::connection::Bus;
use bus::module::Account;
use bus::tool::stored::{Capture, Following, Start, Told};
use bus::tool::{Message, Subscription, ToolError};
use futures::{FutureExt, StreamExt};
use jiff::Timestamp;
use schemas::pattern::overlap;
use schemas::subject;

/// What is heard live while streams are still being read waits in so many bytes; beyond it is dropped, and told.
const LIVE_WAITING_MAX_BYTES: usize = 32 * 1024 * 1024;
/// What one waiting message costs besides its payload.
const LIVE_OVERHEAD_BYTES: usize = 256;

/// One message, and where it comes from.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// Its account.
    pub account: Account,
    /// When it was stored, or heard.
    pub at: Timestamp,
    /// Its stream and its sequence there, if it is read from one.
    pub stored: Option<(String, u64)>,
    /// What it says.
    pub message: Message,
}

/// What the flow gives.
#[derive(Debug, PartialEq)]
pub enum Said {
    /// The next message.
    Item(Box<Item>),
    /// Something about the flow itself, for people.
    Note(String),
}

/// A stream that is part of a flow: which one, and what is asked of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The stream.
    pub capture: Capture,
    /// Filters, none of which overlaps another.
    pub filters: Vec<String>,
}

/// The streams that hold what `pattern` matches. Those whose subjects begin with `$` (buckets, MQTT's) only when the
/// pattern does too: who asks for everything does not mean the whole object store. A queue is not read: what stands in it
/// is another's to take, and its subjects are heard live.
pub fn parts(pattern: &str, captures: Vec<Capture>) -> Vec<Part> {
    let named = pattern.starts_with('$');
    let part = |capture: Capture| {
        let filters: Vec<String> = capture
            .subjects
            .iter()
            .filter(|subject| named || !subject.starts_with('$'))
            .filter_map(|subject| overlap(pattern, subject))
            .collect();
        (!filters.is_empty()).then_some(Part { capture, filters })
    };
    captures.into_iter().filter(|capture| !capture.queue).filter_map(part).collect()
}

/// What is told of a stream besides its messages, in words; `None` for what is none of people's business.
fn words(capture: &Capture, told: &Told) -> Option<String> {
    let stream = &capture.stream;
    let only = if capture.last_only { "; it keeps the last entry of each key only" } else { "" };
    Some(match told {
        Told::Gone(1) => format!("{stream}: 1 message is gone already{only}"),
        Told::Gone(count) => format!("{stream}: {count} messages are gone already{only}"),
        Told::GoneBefore(oldest, count) => format!(
            "{stream}: what was stored before {} is gone already ({count} messages since the stream began){only}",
            oldest.rfc3339()
        ),
        Told::Replaced => {
            format!(
                "{stream}: its server lost messages that were shown already; going on with what came after them"
            )
        }
        Told::Failed(cause) => format!("{stream}: not read any further: {cause}"),
        Told::Message(_) | Told::Reached => return None,
    })
}

struct Source {
    bus: Bus,
    part: Part,
    following: Following,
    /// The next message, taken to be compared with the other streams'.
    head: Option<Box<Item>>,
    /// Where to go on if it is begun anew.
    next: Start,
    /// What was noted last.
    noted: Option<String>,
    /// All that was there at the beginning was taken.
    reached: bool,
    /// Nothing more comes, or is wanted.
    ended: bool,
}

impl Source {
    /// Takes in what was told; gives the words about it, if any.
    fn take(&mut self, told: Option<Told>, until: Option<Timestamp>) -> Option<String> {
        match told {
            None => self.end(),
            Some(Told::Reached) => {
                self.reached = true;
                // Nothing that comes from now on is from before.
                if until.is_some() {
                    self.ended = true;
                }
            }
            Some(Told::Message(stored)) => {
                let at = Timestamp::from_millisecond(stored.at.0).unwrap_or_default();
                if until.is_some_and(|until| at > until) {
                    self.end();
                    return None;
                }
                self.next = Start::Sequence(stored.sequence + 1);
                self.head = Some(Box::new(Item {
                    account: self.part.capture.account,
                    at,
                    stored: Some((stored.stream, stored.sequence)),
                    message: stored.message,
                }));
            }
            Some(told) => {
                if matches!(told, Told::Failed(_)) {
                    self.end();
                }
                let words = words(&self.part.capture, &told);
                // Begun anew before anything came, it tells the same again.
                let again = words.is_some() && words == self.noted;
                self.noted = words.clone().or(self.noted.take());
                return words.filter(|_| !again);
            }
        }
        None
    }

    fn end(&mut self) {
        (self.reached, self.ended) = (true, true);
    }
}

struct Live {
    account: Account,
    heard: Subscription,
    ended: bool,
}

/// The flow.
pub struct Flow {
    pattern: String,
    sources: Vec<Source>,
    live: Vec<Live>,
    /// Filters of what streams are read for, by account: their live copies are left out.
    captured: Vec<(Account, String)>,
    waiting: VecDeque<Box<Item>>,
    waiting_bytes: usize,
    dropped: u64,
    joined: bool,
    until: Option<Timestamp>,
    turn: usize,
    _buses: Vec<Bus>, // a subscription lives as long as its connection
}

impl Flow {
    /// A flow of nothing yet.
    pub fn new(pattern: &str) -> Self {
        Self {
            pattern: pattern.to_owned(),
            sources: Vec::new(),
            live: Vec::new(),
            captured: Vec::new(),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            dropped: 0,
            joined: false,
            until: None,
            turn: 0,
            _buses: Vec::new(),
        }
    }

    /// Hears live what is said in the account of `bus`. Streams are added after it is in force: then nothing falls between.
    pub async fn hear(&mut self, bus: &Bus) -> Result<(), ToolError> {
        let heard = bus.listen(&self.pattern).await?;
        self.live.push(Live { account: bus.account(), heard, ended: false });
        self._buses.push(bus.clone());
        Ok(())
    }

    /// Reads a stream in the account of `bus`, from `start` on.
    pub fn read(&mut self, bus: &Bus, part: Part, start: Start) {
        let account = bus.account();
        self.captured.extend(part.filters.iter().map(|filter| (account, filter.clone())));
        let following = bus.follow(&part.capture.stream, part.filters.clone(), start);
        let bus = bus.clone();
        self.sources.push(Source {
            bus,
            part,
            following,
            head: None,
            next: start,
            noted: None,
            reached: false,
            ended: false,
        });
    }

    /// Ends with what was stored up to then (a time that has come): no more is heard, and streams are read up to it.
    pub fn end_at(&mut self, until: Timestamp) {
        self.until = Some(until);
        for live in &mut self.live {
            while let Some(Some(message)) = live.heard.next().now_or_never() {
                keep(
                    &mut self.waiting,
                    &mut self.waiting_bytes,
                    &mut self.dropped,
                    &self.captured,
                    live.account,
                    message,
                );
            }
            live.ended = true;
        }
        for source in self.sources.iter_mut().filter(|source| !source.ended) {
            // Followed anew from where it is, it says when it has told what is there now.
            let stream = &source.part.capture.stream;
            source.following = source.bus.follow(stream, source.part.filters.clone(), source.next);
        }
    }

    /// The flow is over with what was stored up to then, a time in the past.
    pub fn until(mut self, until: Option<Timestamp>) -> Self {
        self.until = until;
        self
    }

    /// The next thing; `None` at the end. May be dropped and called again without loss.
    pub async fn next(&mut self) -> Option<Said> {
        std::future::poll_fn(|context| self.poll(context)).await
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Said>> {
        if !self.joined {
            if let Poll::Ready(said) = self.poll_stored(context) {
                return Poll::Ready(Some(said));
            }
            if !self.joined {
                return Poll::Pending;
            }
        }
        if self.dropped > 0 {
            let dropped = std::mem::take(&mut self.dropped);
            let words = format!("{dropped} live messages were dropped while what is stored was read");
            return Poll::Ready(Some(Said::Note(words)));
        }
        if let Some(item) = self.waiting.pop_front() {
            self.waiting_bytes = self.waiting_bytes.saturating_sub(cost(&item.message));
            return Poll::Ready(Some(Said::Item(item)));
        }
        self.poll_all(context)
    }

    /// What was there at the beginning, of all streams in the order of time. Pending with `joined` when all of it was given.
    fn poll_stored(&mut self, context: &mut Context<'_>) -> Poll<Said> {
        for live in self.live.iter_mut().filter(|live| !live.ended) {
            while let Poll::Ready(message) = live.heard.poll_next_unpin(context) {
                let Some(message) = message else {
                    live.ended = true;
                    break;
                };
                keep(
                    &mut self.waiting,
                    &mut self.waiting_bytes,
                    &mut self.dropped,
                    &self.captured,
                    live.account,
                    message,
                );
            }
        }
        let mut pending = false;
        for source in &mut self.sources {
            while source.head.is_none() && !source.reached {
                let Poll::Ready(told) = source.following.poll_next(context) else {
                    pending = true;
                    break;
                };
                if let Some(words) = source.take(told, self.until) {
                    return Poll::Ready(Said::Note(words));
                }
            }
        }
        if pending {
            return Poll::Pending;
        }
        let heads = self.sources.iter_mut().filter(|source| source.head.is_some());
        let oldest = heads.min_by_key(|source| source.head.as_ref().map(|item| item.at));
        match oldest.and_then(|source| source.head.take()) {
            Some(item) => Poll::Ready(Said::Item(item)),
            None => {
                self.joined = true;
                Poll::Pending
            }
        }
    }

    /// Whatever comes next, of all sources in turn.
    fn poll_all(&mut self, context: &mut Context<'_>) -> Poll<Option<Said>> {
        let (sources, all) = (self.sources.len(), self.sources.len() + self.live.len());
        let mut open = false;
        for step in 0..all {
            let at = (self.turn + step) % all;
            if let Some(source) = self.sources.get_mut(at) {
                while !source.ended {
                    let Poll::Ready(told) = source.following.poll_next(context) else {
                        open = true;
                        break;
                    };
                    let words = source.take(told, self.until);
                    if let Some(item) = source.head.take() {
                        self.turn = at + 1;
                        return Poll::Ready(Some(Said::Item(item)));
                    }
                    if let Some(words) = words {
                        return Poll::Ready(Some(Said::Note(words)));
                    }
                }
            } else if let Some(live) = self.live.get_mut(at - sources) {
                while !live.ended {
                    let Poll::Ready(message) = live.heard.poll_next_unpin(context) else {
                        open = true;
                        break;
                    };
                    let Some(message) = message else {
                        live.ended = true;
                        break;
                    };
                    if !is_captured(&self.captured, live.account, &message.subject) {
                        self.turn = at + 1;
                        return Poll::Ready(Some(Said::Item(heard(live.account, message))));
                    }
                }
            }
        }
        if open { Poll::Pending } else { Poll::Ready(None) }
    }
}

fn is_captured(captured: &[(Account, String)], account: Account, subject: &str) -> bool {
    captured.iter().any(|(of, filter)| *of == account && subject::matches(filter, subject))
}

fn heard(account: Account, message: Message) -> Box<Item> {
    Box::new(Item { account, at: Timestamp::now(), stored: None, message })
}

fn cost(message: &Message) -> usize {
    message.payload.len() + LIVE_OVERHEAD_BYTES
}

/// Keeps what was heard live until the stored messages have been given.
fn keep(
    waiting: &mut VecDeque<Box<Item>>,
    bytes: &mut usize,
    dropped: &mut u64,
    captured: &[(Account, String)],
    account: Account,
    message: Message,
) {
    if is_captured(captured, account, &message.subject) {
        return;
    }
    let size = cost(&message);
    if *bytes + size > LIVE_WAITING_MAX_BYTES {
        *dropped += 1;
        return;
    }
    *bytes += size;
    waiting.push_back(heard(account, message));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capture(stream: &str, subjects: &[&str]) -> Capture {
        Capture {
            account: Account::Control,
            stream: stream.into(),
            subjects: subjects.iter().map(|s| (*s).to_owned()).collect(),
            first_sequence: 1,
            last_sequence: 9,
            messages: 9,
            size_bytes: 900,
            size_bytes_max: 1_000,
            last_only: stream.starts_with("KV_"),
            queue: stream == "RULES",
            consumers: 0,
        }
    }

    #[test]
    fn a_pattern_names_the_streams_that_hold_it() {
        let all = || {
            vec![
                capture("DEAD", &["ew.dead.>"]),
                capture("KV_local", &["$KV.local.>"]),
                capture("OUTBOX", &["ew.rep.>", "ew.evt.>"]),
                capture("RULES", &["factory.>"]),
            ]
        };
        for (pattern, want) in [
            (">", vec!["DEAD ew.dead.>", "OUTBOX ew.rep.> ew.evt.>"]),
            ("*.evt.>", vec!["OUTBOX ew.evt.>"]),
            ("ew.*.sync.>", vec!["DEAD ew.dead.sync.>", "OUTBOX ew.rep.sync.> ew.evt.sync.>"]),
            ("$KV.local.pods.>", vec!["KV_local $KV.local.pods.>"]),
            ("$KV.>", vec!["KV_local $KV.local.>"]),
            ("ew.hb.*", vec![]),
            ("factory.>", vec![]),
        ] {
            let line = |part: Part| format!("{} {}", part.capture.stream, part.filters.join(" "));
            let have: Vec<String> = parts(pattern, all()).into_iter().map(line).collect();
            assert_eq!(have, want, "{pattern}");
        }
    }

    #[test]
    fn what_is_missing_is_said() {
        let dead = capture("DEAD", &["ew.dead.>"]);
        let bucket = capture("KV_local", &["$KV.local.>"]);
        let oldest = schemas::Timestamp::parse("2026-05-04T10:00:00Z").unwrap();
        for (capture, told, want) in [
            (&dead, Told::Gone(1), "DEAD: 1 message is gone already"),
            (&dead, Told::Gone(12), "DEAD: 12 messages are gone already"),
            (
                &bucket,
                Told::Gone(2),
                "KV_local: 2 messages are gone already; it keeps the last entry of each key only",
            ),
            (
                &dead,
                Told::GoneBefore(oldest, 7),
                "DEAD: what was stored before 2026-05-04T10:00:00Z is gone already (7 messages since the stream began)",
            ),
            (&dead, Told::Failed("x".into()), "DEAD: not read any further: x"),
        ] {
            assert_eq!(words(capture, &told).as_deref(), Some(want));
        }
        assert_eq!(words(&dead, &Told::Reached), None);
    }

    #[test]
    fn what_is_captured_is_not_heard_and_what_waits_is_bounded() {
        let captured = [(Account::Work, "up.>".to_owned())];
        let message = |subject: &str, size| Message {
            subject: subject.into(),
            headers: Default::default(),
            payload: vec![0; size].into(),
            reply: None,
            no_responders: false,
        };
        let (mut waiting, mut bytes, mut dropped) = (VecDeque::new(), 0, 0);
        let mut put = |account, message| {
            keep(&mut waiting, &mut bytes, &mut dropped, &captured, account, message);
            (waiting.len(), dropped)
        };
        assert_eq!(put(Account::Work, message("up.a", 1)), (0, 0), "its stream tells it");
        assert_eq!(put(Account::Control, message("up.a", 1)), (1, 0), "another account's");
        assert_eq!(put(Account::Work, message("app.a", 30 * 1024 * 1024)), (2, 0));
        assert_eq!(put(Account::Work, message("app.a", 8 * 1024 * 1024)), (2, 1));
        assert_eq!(put(Account::Work, message("app.a", 1)), (3, 1));
    }
}
