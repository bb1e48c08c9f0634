//! Messages from the hub to this node, written down once and in order. Pure.
//!
//! The hub keeps them in a stream of the node's own. The node asks what waits there behind the last that it took ([`Look`]),
//! reads, and writes what it read into DOWN in one atomic batch that ends with its cursor, over the cursor before. So whatever
//! dies when, the cursor in DOWN says what stands there, and nothing rests on a window of time. Only then it tells the hub, by
//! the next look, which lets go of what is older.
//!
//! A sequence alone does not name a message: a hub that was restored gives it again. The cursor says when the hub stored the
//! message, too, and the hub keeps the last that was taken; so each look shows whether it is still the same stream. If it is
//! not, what was stored after that time is what the node has not got.
//!
//! * [`hub`] the module at the other end; `edge::messages` drives this one

pub mod hub;

use std::collections::BTreeSet;

use bus::downlink::{From, Sent};
use bus::link::{LinkError, Raise};
use schemas::downlink::{Holds, Look, Taken, Waiting};
use schemas::envelope::header;
use schemas::loss::Origin;
use schemas::name::{Namespace, NodeName};
use schemas::subject;
use serde::{Deserialize, Serialize};

/// Namespaces that have a reader at most. What comes for others is heard live, and stands in DOWN for nobody.
pub const READERS_MAX: usize = 200;

/// What shall be done.
#[derive(Debug, PartialEq)]
pub enum Step {
    /// Read the cursor in DOWN.
    Find,
    /// Ask the hub what waits.
    Look(Look),
    /// Read the node's stream at the hub.
    Read(From),
    /// Write into DOWN, all or nothing.
    Commit(Batch),
    /// Keep on disk.
    Save(Saved),
    /// This one has no place on the node.
    Dead {
        /// Its subject at the hub.
        subject: String,
        /// Its body.
        payload: Vec<u8>,
        /// Why.
        reason: String,
    },
    /// Tell people.
    Tell(&'static str, String),
    /// DOWN is full: let go what can go.
    MakeRoom,
    /// Nothing waits: look again when the hub says so, or time has passed.
    Rest,
    /// Begin again after a pause.
    Pause,
}

/// What the node remembers beside DOWN, on disk: by it a store that lost its end, or all, is told from one that did not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// The last message that was written.
    pub taken: Taken,
    /// The cursor's revision in DOWN.
    pub revision: u64,
}

/// What is written into DOWN at once.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// The messages.
    pub messages: Vec<Raise>,
    /// The new cursor: the last of them at the hub.
    pub taken: Taken,
    /// At which revision the old one is; 0: there is none.
    pub expect_revision: u64,
    /// Namespaces whose reader is made before.
    pub readers: BTreeSet<Namespace>,
}

impl Batch {
    /// The cursor as a message.
    pub fn cursor(&self) -> Raise {
        let [written, _] = subject::TAKEN;
        let payload = schemas::encode(&self.taken).into();
        Raise { subject: written.to_owned(), headers: Default::default(), payload }
    }
}

#[derive(Debug, Default, PartialEq)]
enum Phase {
    #[default]
    Away,
    Finding,
    Looking,
    Reading,
    Committing(Writing),
    Resting,
}

/// The batch that is on its way to DOWN.
#[derive(Debug, PartialEq)]
struct Writing {
    taken: Taken,
    readers: BTreeSet<Namespace>,
    count: usize,
    first: Option<(String, Vec<u8>)>,
}

/// The way down of a node's messages.
#[derive(Debug)]
pub struct Downlink {
    node: NodeName,
    phase: Phase,
    /// As it was saved last.
    saved: Option<Saved>,
    /// As it stands in DOWN.
    taken: Option<Taken>,
    revision: u64,
    readers: BTreeSet<Namespace>,
    crowded: bool,
    limit: usize,
    /// A word of the hub came while something was under way.
    again: bool,
    /// That the stream is another one than that of this message was told.
    told: Option<Taken>,
}

impl Downlink {
    /// Without contact.
    pub fn new(node: NodeName) -> Self {
        Self {
            node,
            phase: Phase::Away,
            saved: None,
            taken: None,
            revision: 0,
            readers: BTreeSet::new(),
            crowded: false,
            limit: usize::MAX,
            again: false,
            told: None,
        }
    }

    /// What was saved.
    pub fn restore(&mut self, saved: Saved) {
        self.saved = Some(saved);
    }

    /// Does nothing wait that is known of?
    pub fn is_resting(&self) -> bool {
        self.phase == Phase::Resting
    }

    /// Contact, or after a doubt.
    pub fn connect(&mut self) -> Vec<Step> {
        self.phase = Phase::Finding;
        vec![Step::Find]
    }

    /// No contact: what is under way ends by itself.
    pub fn disconnect(&mut self) {
        self.phase = Phase::Away;
    }

    /// The hub says that something came, or it is time to ask.
    pub fn called(&mut self) -> Vec<Step> {
        if self.phase != Phase::Resting {
            self.again = self.phase != Phase::Away;
            return Vec::new();
        }
        self.look()
    }

    fn look(&mut self) -> Vec<Step> {
        self.again = false;
        self.phase = Phase::Looking;
        vec![Step::Look(Look { taken: self.taken })]
    }

    fn rest(&mut self) -> Vec<Step> {
        if self.again {
            return self.look();
        }
        self.phase = Phase::Resting;
        vec![Step::Rest]
    }

    fn pause(&mut self) -> Vec<Step> {
        self.phase = Phase::Away;
        vec![Step::Pause]
    }

    /// The cursor in DOWN: its revision and value.
    pub fn found(&mut self, outcome: Result<Option<(u64, Vec<u8>)>, LinkError>) -> Vec<Step> {
        if self.phase != Phase::Finding {
            return Vec::new();
        }
        let Ok(found) = outcome else { return self.pause() };
        let mut steps = Vec::new();
        // Whatever was lost with the store, the readers may be among it.
        self.readers.clear();
        self.revision = found.as_ref().map_or(0, |(revision, _)| *revision);
        let cursor = match found.map(|(_, bytes)| schemas::decode::<Taken>(&bytes)) {
            Some(Ok(taken)) => Some(taken),
            Some(Err(error)) => {
                steps.push(Step::Tell(
                    "CursorUnreadable",
                    format!("the cursor of messages from the hub: {error}"),
                ));
                None
            }
            None => None,
        };
        self.taken = cursor;
        if let Some(saved) = self.saved.filter(|saved| saved.revision > self.revision) {
            let what = cursor.map_or_else(
                || "all of it".to_owned(),
                |taken| format!("what came after {}", taken.sequence),
            );
            let text = format!(
                "the node's store of messages from the hub has lost {what}, up to {}: what nobody had read of that is gone, but for what the hub still has",
                saved.taken.sequence
            );
            steps.push(Step::Tell("MessagesLost", text));
            // What was in a store that is gone is not taken again. Of one that lost its end, what the hub still has is.
            self.taken = Some(cursor.unwrap_or(saved.taken));
            // Told once.
            let saved = Saved { taken: cursor.unwrap_or(saved.taken), revision: self.revision };
            self.saved = Some(saved);
            steps.push(Step::Save(saved));
        } else if cursor.is_none() {
            self.taken = self.saved.map(|saved| saved.taken);
        }
        steps.extend(self.look());
        steps
    }

    /// What the hub has for this node.
    pub fn looked(&mut self, outcome: Result<Waiting, String>) -> Vec<Step> {
        if self.phase != Phase::Looking {
            return Vec::new();
        }
        let Ok(Waiting { last, holds }) = outcome else { return self.pause() };
        let Some(taken) = self.taken else {
            return if last == 0 { self.rest() } else { self.read(From::Sequence(1)) };
        };
        match holds {
            Some(Holds::Same | Holds::Gone) if last > taken.sequence => {
                self.read(From::Sequence(taken.sequence + 1))
            }
            Some(Holds::Same | Holds::Gone) => self.rest(),
            // None: a question of before was answered.
            Some(Holds::Other) | None => {
                let mut steps = Vec::new();
                if self.told != Some(taken) {
                    self.told = Some(taken);
                    let text = format!(
                        "the hub's stream of messages for this node is not the one that message {} came from (was the hub restored or emptied?): what was sent after that one is taken",
                        taken.sequence
                    );
                    steps.push(Step::Tell("DownlinkReplaced", text));
                }
                steps.extend(if last == 0 {
                    self.rest()
                } else {
                    self.read(From::Since(taken.at_ns.saturating_add(1)))
                });
                steps
            }
        }
    }

    fn read(&mut self, from: From) -> Vec<Step> {
        self.phase = Phase::Reading;
        vec![Step::Read(from)]
    }

    /// What was read at the hub. The link may have become slower since: a batch is what was read, whatever it is.
    pub fn have(&mut self, outcome: Result<Vec<Sent>, LinkError>) -> Vec<Step> {
        if self.phase != Phase::Reading {
            return Vec::new();
        }
        let Ok(mut sent) = outcome else { return self.pause() };
        sent.truncate(self.limit);
        let Some(last) = sent.last() else { return self.rest() };
        let taken = Taken { sequence: last.message.sequence, at_ns: last.at_ns };
        let first = sent.first().map(|sent| (sent.message.subject.clone(), sent.message.payload.to_vec()));
        let mut steps = Vec::new();
        let (mut messages, mut readers) = (Vec::new(), BTreeSet::new());
        for Sent { message, at_ns } in sent {
            let Some((namespace, subject)) = subject::arriving(&self.node, &message.subject) else {
                let (subject, payload) = (message.subject, message.payload.to_vec());
                let reason = "not to.<node>.<namespace>.<topic>: nobody could hear it".to_owned();
                steps.push(Step::Dead { subject, payload, reason });
                continue;
            };
            if !self.readers.contains(&namespace) {
                readers.insert(namespace);
            }
            let mut headers = message.headers;
            let origin = Origin { generation: at_ns.unsigned_abs().to_string(), sequence: message.sequence };
            headers.insert(header::ORIGIN.to_owned(), origin.to_string());
            messages.push(Raise { subject, headers, payload: message.payload });
        }
        while self.readers.len() + readers.len() > READERS_MAX && readers.pop_last().is_some() {
            if !std::mem::replace(&mut self.crowded, true) {
                let text = format!(
                    "messages came for more than {READERS_MAX} namespaces: those of the others are heard live alone"
                );
                steps.push(Step::Tell("TooManyReaders", text));
            }
        }
        let count = messages.len();
        steps.push(self.commit(messages, taken, readers, count, first));
        steps
    }

    fn commit(
        &mut self,
        messages: Vec<Raise>,
        taken: Taken,
        readers: BTreeSet<Namespace>,
        count: usize,
        first: Option<(String, Vec<u8>)>,
    ) -> Step {
        self.phase = Phase::Committing(Writing { taken, readers: readers.clone(), count, first });
        Step::Commit(Batch { messages, taken, expect_revision: self.revision, readers })
    }

    /// What became of the batch.
    pub fn committed(&mut self, outcome: Result<u64, LinkError>) -> Vec<Step> {
        if !matches!(self.phase, Phase::Committing(_)) {
            return Vec::new();
        }
        let Phase::Committing(writing) = std::mem::take(&mut self.phase) else { return Vec::new() };
        match outcome {
            Ok(revision) => {
                self.revision = revision;
                let saved = Saved { taken: writing.taken, revision };
                (self.taken, self.saved) = (Some(writing.taken), Some(saved));
                self.readers.extend(writing.readers);
                self.limit = usize::MAX;
                // The next look tells the hub: by now it is on the disk, twice.
                let mut steps = vec![Step::Save(saved)];
                steps.extend(self.look());
                steps
            }
            // Another life of ours was faster.
            Err(LinkError::CursorMoved) => self.connect(),
            Err(LinkError::Refused { .. }) if outcome_is_passing(&outcome) => {
                let mut steps = vec![Step::MakeRoom];
                steps.extend(self.pause());
                steps
            }
            Err(LinkError::Lost(_)) => self.pause(),
            Err(LinkError::Refused { .. }) if writing.count > 1 => {
                self.limit = writing.count / 2;
                self.look()
            }
            Err(LinkError::Refused { cause, .. }) => match writing.first.filter(|_| writing.count == 1) {
                // Alone it is refused: step over it, by a batch of the cursor only.
                Some((subject, payload)) => {
                    self.limit = usize::MAX;
                    let mut steps = vec![Step::Dead { subject, payload, reason: cause }];
                    steps.push(self.commit(Vec::new(), writing.taken, BTreeSet::new(), 0, None));
                    steps
                }
                None => {
                    let mut steps =
                        vec![Step::Tell("CursorRefused", format!("messages from the hub: {cause}"))];
                    steps.extend(self.pause());
                    steps
                }
            },
        }
    }
}

fn outcome_is_passing(outcome: &Result<u64, LinkError>) -> bool {
    outcome.as_ref().is_err_and(LinkError::is_passing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bus::link::Stored;

    fn at(sequence: u64) -> Taken {
        Taken { sequence, at_ns: i64::try_from(sequence).unwrap() * 1_000 }
    }

    fn sent(sequence: u64, subject: &str) -> Sent {
        let message = Stored {
            sequence,
            subject: subject.into(),
            headers: [("mine".to_owned(), "1".to_owned())].into(),
            payload: sequence.to_string().into(),
        };
        Sent { message, at_ns: at(sequence).at_ns }
    }

    fn cursor(taken: Taken, revision: u64) -> Result<Option<(u64, Vec<u8>)>, LinkError> {
        Ok(Some((revision, schemas::encode(&taken))))
    }

    fn waits(last: u64, holds: Option<Holds>) -> Result<Waiting, String> {
        Ok(Waiting { last, holds })
    }

    fn lost() -> LinkError {
        LinkError::Lost("cut".into())
    }

    /// A node that has taken messages up to the 5th, and has asked the hub.
    fn looking() -> Downlink {
        let mut downlink = Downlink::new(NodeName::new("n1").unwrap());
        downlink.restore(Saved { taken: at(5), revision: 50 });
        assert_eq!(downlink.connect(), [Step::Find]);
        assert_eq!(downlink.found(cursor(at(5), 50)), [Step::Look(Look { taken: Some(at(5)) })]);
        downlink
    }

    fn reading(last: u64) -> Downlink {
        let mut downlink = looking();
        assert_eq!(downlink.looked(waits(last, Some(Holds::Same))), [Step::Read(From::Sequence(6))]);
        downlink
    }

    fn batch(steps: &[Step]) -> &Batch {
        match steps.last() {
            Some(Step::Commit(batch)) => batch,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_waits_is_read_written_with_the_cursor_kept_and_only_then_told() {
        let mut downlink = reading(7);
        let steps = downlink.have(Ok(vec![sent(6, "to.n1.demo.a"), sent(7, "to.n1.other.b.c")]));
        let written = batch(&steps);
        let subjects: Vec<&str> = written.messages.iter().map(|raise| raise.subject.as_str()).collect();
        assert_eq!(subjects, ["_down.demo.a", "_down.other.b.c"]);
        assert_eq!(written.messages[0].headers.get(header::ORIGIN).unwrap(), "6000.6");
        assert_eq!(written.messages[0].headers.get("mine").unwrap(), "1");
        assert_eq!((written.taken, written.expect_revision), (at(7), 50));
        let readers: Vec<String> = written.readers.iter().map(ToString::to_string).collect();
        assert_eq!(readers, ["demo", "other"]);
        assert_eq!(written.cursor().subject, subject::TAKEN[0]);
        assert_eq!(schemas::decode::<Taken>(&written.cursor().payload).unwrap(), at(7));
        let saved = Saved { taken: at(7), revision: 53 };
        assert_eq!(downlink.committed(Ok(53)), [Step::Save(saved), Step::Look(Look { taken: Some(at(7)) })]);
        assert_eq!(downlink.looked(waits(7, Some(Holds::Same))), [Step::Rest]);
        // A word of the hub, and the next: a reader that is there is not made again.
        assert_eq!(downlink.called(), [Step::Look(Look { taken: Some(at(7)) })]);
        assert_eq!(downlink.called(), [], "one look at a time");
        downlink.looked(waits(8, Some(Holds::Same)));
        let steps = downlink.have(Ok(vec![sent(8, "to.n1.demo.a")]));
        assert_eq!((batch(&steps).readers.len(), batch(&steps).expect_revision), (0, 53));
        downlink.committed(Ok(55));
        assert_eq!(downlink.looked(waits(8, Some(Holds::Same))), [Step::Rest]);
    }

    #[test]
    fn a_word_that_came_meanwhile_is_not_forgotten() {
        let mut downlink = looking();
        assert_eq!(downlink.called(), []);
        assert_eq!(downlink.looked(waits(5, Some(Holds::Same))), [Step::Look(Look { taken: Some(at(5)) })]);
        assert_eq!(downlink.looked(waits(5, Some(Holds::Same))), [Step::Rest]);
    }

    #[test]
    fn where_it_goes_on_is_told_by_what_the_hub_holds() {
        for (last, holds, want) in [
            (5, Some(Holds::Same), Step::Rest),
            (9, Some(Holds::Same), Step::Read(From::Sequence(6))),
            // Somebody purged the stream.
            (5, Some(Holds::Gone), Step::Rest),
            (9, Some(Holds::Gone), Step::Read(From::Sequence(6))),
            // Restored from before, or another stream; whether or not it has come as far again.
            (3, Some(Holds::Other), Step::Read(From::Since(5_001))),
            (9, Some(Holds::Other), Step::Read(From::Since(5_001))),
            (0, Some(Holds::Other), Step::Rest),
        ] {
            let steps = looking().looked(waits(last, holds));
            assert_eq!(steps.last(), Some(&want), "{last} {holds:?}");
            assert_eq!(steps.len() > 1, holds == Some(Holds::Other), "told: {steps:?}");
        }
        let mut told = looking();
        assert_eq!(told.looked(waits(3, Some(Holds::Other))).len(), 2);
        assert_eq!(told.have(Ok(Vec::new())), [Step::Rest]);
        told.called();
        assert_eq!(told.looked(waits(3, Some(Holds::Other))).len(), 1, "told once");
        let mut fresh = Downlink::new(NodeName::new("n1").unwrap());
        fresh.connect();
        assert_eq!(fresh.found(Ok(None)), [Step::Look(Look { taken: None })]);
        assert_eq!(fresh.looked(waits(4, None)), [Step::Read(From::Sequence(1))]);
    }

    #[test]
    fn after_any_doubt_the_cursor_in_down_is_read_again() {
        let found = |error: LinkError| {
            let mut downlink = reading(6);
            downlink.have(Ok(vec![sent(6, "to.n1.demo.a")]));
            downlink.committed(Err(error))
        };
        assert_eq!(found(LinkError::CursorMoved), [Step::Find], "another life was faster");
        assert_eq!(found(lost()), [Step::Pause]);
        let full = LinkError::Refused { code: 10_077, cause: "maximum bytes exceeded".into() };
        assert_eq!(found(full), [Step::MakeRoom, Step::Pause]);
        assert_eq!(reading(6).have(Err(lost())), [Step::Pause]);
        assert_eq!(looking().looked(Err("no responders".into())), [Step::Pause]);
        // What comes late from before the doubt says nothing.
        let mut downlink = reading(6);
        downlink.connect();
        assert_eq!(downlink.have(Ok(vec![sent(6, "to.n1.demo.a")])), []);
        assert_eq!(downlink.committed(Ok(9)), []);
        downlink.disconnect();
        assert_eq!(downlink.found(cursor(at(5), 50)), []);
    }

    #[test]
    fn what_has_no_place_here_is_put_aside_and_stepped_over() {
        let mut downlink = reading(7);
        let steps = downlink.have(Ok(vec![sent(6, "to.n1._cursor"), sent(7, "to.n1.Bad.x")]));
        let dead = steps.iter().filter(|step| matches!(step, Step::Dead { .. })).count();
        assert_eq!((dead, steps.len()), (2, 3), "{steps:?}");
        assert_eq!((batch(&steps).messages.len(), batch(&steps).taken), (0, at(7)));
    }

    #[test]
    fn one_that_down_never_takes_is_found_by_halves() {
        let never = || Err(LinkError::Refused { code: 10_054, cause: "too large".into() });
        let mut downlink = reading(7);
        let both = || vec![sent(6, "to.n1.demo.a"), sent(7, "to.n1.demo.b")];
        downlink.have(Ok(both()));
        assert!(matches!(downlink.committed(never()).as_slice(), [Step::Look(_)]));
        downlink.looked(waits(7, Some(Holds::Same)));
        assert_eq!(batch(&downlink.have(Ok(both()))).taken, at(6));
        let steps = downlink.committed(never());
        assert!(matches!(steps.as_slice(), [Step::Dead { .. }, Step::Commit(_)]), "{steps:?}");
        assert_eq!((batch(&steps).messages.len(), batch(&steps).taken), (0, at(6)));
        downlink.committed(Ok(51));
        downlink.looked(waits(7, Some(Holds::Same)));
        assert_eq!(batch(&downlink.have(Ok(vec![sent(7, "to.n1.demo.b")]))).taken, at(7));
        assert!(matches!(
            {
                downlink.committed(never());
                downlink.committed(never())
            }
            .as_slice(),
            [Step::Tell("CursorRefused", _), Step::Pause]
        ));
    }

    #[test]
    fn a_store_that_lost_its_end_or_all_of_it_is_told_and_nothing_is_guessed() {
        // (the cursor in DOWN, from where it goes on)
        for (found, from) in [(cursor(at(3), 30), at(3)), (Ok(None), at(5))] {
            let mut downlink = Downlink::new(NodeName::new("n1").unwrap());
            downlink.restore(Saved { taken: at(5), revision: 50 });
            downlink.connect();
            let steps = downlink.found(found.clone());
            assert!(
                matches!(steps.as_slice(), [Step::Tell("MessagesLost", _), Step::Save(_), Step::Look(_)]),
                "{steps:?}"
            );
            assert_eq!(steps.last(), Some(&Step::Look(Look { taken: Some(from) })));
            downlink.connect();
            assert_eq!(downlink.found(found), [Step::Look(Look { taken: Some(from) })], "told once");
        }
        // We fell after the write and before it was saved.
        let mut downlink = Downlink::new(NodeName::new("n1").unwrap());
        downlink.restore(Saved { taken: at(5), revision: 50 });
        downlink.connect();
        assert_eq!(downlink.found(cursor(at(8), 60)), [Step::Look(Look { taken: Some(at(8)) })]);
    }

    #[test]
    fn so_many_namespaces_have_a_reader_and_no_more() {
        let mut downlink = reading(1_000);
        let many = (6..6 + READERS_MAX as u64 + 10).map(|n| sent(n, &format!("to.n1.ns-{n}.a"))).collect();
        let steps = downlink.have(Ok(many));
        assert_eq!(batch(&steps).readers.len(), READERS_MAX);
        assert_eq!(batch(&steps).messages.len(), READERS_MAX + 10);
        assert!(matches!(steps.as_slice(), [Step::Tell("TooManyReaders", _), Step::Commit(_)]));
    }
}
