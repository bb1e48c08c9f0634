//! Up: one lane of the node's stored messages, carried to the hub exactly once and in order. Pure.
//!
//! A lane reads its stream from where its cursor stands, raises what it read in an atomic batch that ends with the new
//! cursor under compare-and-set, and trims what the hub has. What comes after a batch is read while it is on its way.
//! Whatever dies when, the cursor at the hub says what was taken. After any doubt it is read again; a message that the hub
//! will never take is found by halving the batch, and dead-lettered.

use bus::acknowledgement;
use bus::link::{Have, LinkError, Raise, Stored, StreamState};
use schemas::envelope::header;
use schemas::loss::{Account, Drops, Origin, Reason};
use schemas::name::NodeName;
use schemas::subject::{self, Lane};
use serde::{Deserialize, Serialize};

/// The value of a cursor: up to where the hub has taken the node's stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Which stream: another one starts over.
    pub outbox_generation: String,
    /// The last sequence taken.
    pub sequence: u64,
    /// Where the lane began in that stream, and what it gave up of it.
    #[serde(default)]
    pub account: Account,
}

impl Cursor {
    /// The cursor as a message. Its headers say the same to the hub's ledger, which does not look into bodies.
    pub fn raise(&self, node: &NodeName, lane: Lane) -> Raise {
        let origin = Origin { generation: self.outbox_generation.clone(), sequence: self.sequence };
        let account = serde_json::to_string(&self.account).unwrap_or_default();
        let headers = [(header::ORIGIN, origin.to_string()), (header::ACCOUNT, account)];
        let headers = headers.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        Raise { subject: subject::cursor(node, lane), headers, payload: schemas::encode(self).into() }
    }
}

/// Reads that find nothing, one after the other, until an idle lane's cursor follows the stream that it shares: without that
/// nobody could tell whether what is missing at the hub is the idle lane's and still to come. A read waits some seconds.
pub const QUIET_READS_MAX: u32 = 12;

/// What the hub has may stand in the node's stream up to so many messages or bytes while more waits behind it: a trim is work
/// for the server, which serves no read meanwhile (measured: as long as a batch is on its way).
const UNTRIMMED_MAX: usize = 20_000;
const UNTRIMMED_MAX_BYTES: usize = 4 * 1024 * 1024;

/// What the node itself remembers of a lane, on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirmed {
    /// The cursor as it was confirmed last.
    pub cursor: Cursor,
}

/// One lane.
#[derive(Debug)]
pub struct Up {
    lane: Lane,
    node: NodeName,
    phase: Phase,
    confirmed: Option<Confirmed>,
    next: u64,
    generation: String,
    revision: u64,
    limit: usize,
    /// What was read of what comes after the batch that is on its way.
    ahead: Option<Have>,
    /// What the hub has and the node's stream still holds: messages, bytes.
    untrimmed: (usize, usize),
    waiting: u64,
    waiting_bytes: u64,
    account: Account,
    /// What is missing up to here was given up for the disk's sake.
    cleared: u64,
    quiet: u32,
}

#[derive(Debug, PartialEq)]
enum Phase {
    Away,
    FindingCursor,
    Reading,
    /// `first` of `count` messages: who it is that the hub refuses, when it is alone. `passed` were read and are not in it.
    /// What comes after `last` is being read.
    Committing {
        last: u64,
        first: Option<Stored>,
        count: usize,
        bytes: usize,
        passed: usize,
        /// The lane's, when the batch is through.
        account: Account,
    },
}

/// What shall be done.
#[derive(Debug, PartialEq)]
pub enum Step {
    /// Read the lane's cursor at the hub and the state of its stream here.
    FindCursor(Lane),
    /// Read the stream from this sequence on, waiting for something to come.
    Read(Lane, u64),
    /// Commit in one batch.
    Commit {
        /// The lane.
        lane: Lane,
        /// The messages.
        messages: Vec<Raise>,
        /// The new cursor.
        cursor: Cursor,
        /// The cursor's revision at the hub, as last seen.
        expect_revision: u64,
    },
    /// The hub has all up to here.
    Trim(Lane, u64),
    /// Keep on disk.
    Save(Lane, Confirmed),
    /// The hub will never take this one.
    Dead(Stored, String),
    /// Tell people.
    Tell(&'static str, String),
    /// The hub has less than it had confirmed: it is an older one.
    Rewound(Lane),
    /// Begin again after a pause.
    Pause(Lane),
}

impl Up {
    /// A lane without contact.
    pub fn new(node: NodeName, lane: Lane) -> Self {
        Self {
            lane,
            node,
            phase: Phase::Away,
            confirmed: None,
            next: 1,
            generation: String::new(),
            revision: 0,
            limit: usize::MAX,
            ahead: None,
            untrimmed: (0, 0),
            waiting: 0,
            waiting_bytes: 0,
            account: Account::default(),
            cleared: 0,
            quiet: 0,
        }
    }

    /// What was saved.
    pub fn restore(&mut self, confirmed: Confirmed) {
        self.account = confirmed.cursor.account.clone();
        self.confirmed = Some(confirmed);
    }

    /// Messages that waited when the stream was last looked at.
    pub fn waiting(&self) -> u64 {
        self.waiting
    }

    /// Their bytes.
    pub fn waiting_bytes(&self) -> u64 {
        self.waiting_bytes
    }

    /// What the lane gave up of the present stream.
    pub fn drops(&self) -> &Drops {
        &self.account.drops
    }

    /// What stood in the lane's stream up to here was given up for the disk's sake.
    pub fn cleared(&mut self, sequence: u64) {
        self.cleared = self.cleared.max(sequence);
    }

    /// The stream as it is.
    pub fn counted(&mut self, state: &StreamState) {
        self.waiting = state.messages;
        self.waiting_bytes = state.bytes;
    }

    fn waits_at_most(&mut self, messages: u64) {
        if messages < self.waiting {
            self.waiting_bytes = self.waiting_bytes / self.waiting * messages;
            self.waiting = messages;
        }
    }

    /// Contact, or after a doubt.
    pub fn connect(&mut self) -> Step {
        self.phase = Phase::FindingCursor;
        Step::FindCursor(self.lane)
    }

    /// No contact: what is under way ends by itself. Gives up to where the stream is to be trimmed, if it is: what is left is
    /// what waits.
    pub fn disconnect(&mut self) -> Option<u64> {
        self.phase = Phase::Away;
        let (untrimmed, _) = std::mem::take(&mut self.untrimmed);
        // Not up to what comes next: a dead letter is stepped over before the hub has it in its account.
        self.confirmed.as_ref().filter(|_| untrimmed > 0).map(|confirmed| confirmed.cursor.sequence)
    }

    fn trim(&mut self, sequence: u64) -> Step {
        self.untrimmed = (0, 0);
        Step::Trim(self.lane, sequence)
    }

    /// The cursor at the hub (revision and value) and the state of the stream here.
    pub fn found(&mut self, cursor: Option<(u64, Vec<u8>)>, state: &StreamState) -> Vec<Step> {
        if self.phase != Phase::FindingCursor {
            return Vec::new();
        }
        let mut steps = Vec::new();
        let remote = match cursor {
            Some((revision, bytes)) => match schemas::decode::<Cursor>(&bytes) {
                Ok(cursor) => Some((revision, cursor)),
                Err(error) => {
                    self.phase = Phase::Away;
                    steps.push(Step::Tell(
                        "CursorUnreadable",
                        format!("lane {}: {error}", self.lane.as_str()),
                    ));
                    steps.push(Step::Pause(self.lane));
                    return steps;
                }
            },
            None => None,
        };
        self.generation = state.generation.clone();
        self.counted(state);
        self.quiet = 0;
        let same = |cursor: &&Cursor| {
            cursor.outbox_generation == state.generation && cursor.sequence <= state.last_sequence
        };
        let before_first = state.first_sequence.saturating_sub(1);
        let known = self.confirmed.as_ref().map(|confirmed| &confirmed.cursor);
        let mut lost = None;
        let taken = match &remote {
            Some((revision, cursor)) => {
                self.revision = *revision;
                // A cursor of a stream that was before this one counts nothing of it.
                let taken = if same(&cursor) { cursor.sequence } else { 0 };
                if let Some(known) = known.filter(|known| same(known) && known.sequence > taken) {
                    steps.push(Step::Rewound(self.lane));
                    steps.push(Step::Tell("CursorBehind", behind_text(self.lane, taken, known, state)));
                    lost = Some((taken + 1, known.sequence.min(before_first)));
                    // From now on that is what the hub has: told once.
                    let cursor = Cursor { sequence: taken, ..cursor_of(state, known.account.clone()) };
                    steps.push(Step::Save(self.lane, Confirmed { cursor }));
                } else if !same(&cursor) && self.lane != Lane::Bulk {
                    steps.push(Step::Tell(
                        "OutboxReplaced",
                        format!(
                            "lane {}: the node's stream is another one; it starts over",
                            self.lane.as_str()
                        ),
                    ));
                }
                Some(cursor).filter(same)
            }
            None => {
                self.revision = 0;
                if let Some(known) = known {
                    // A missing cursor is never zero: what the node itself knows to be taken is not sent again.
                    steps.push(Step::Rewound(self.lane));
                    steps.push(Step::Tell(
                        "CursorMissing",
                        format!(
                            "lane {}: the hub has lost this node's cursor (was it restored?); going on after {}, which it had confirmed",
                            self.lane.as_str(),
                            known.sequence
                        ),
                    ));
                }
                known.filter(same)
            }
        };
        self.account = taken.map(|cursor| cursor.account.clone()).unwrap_or_default();
        if taken.is_none() {
            self.account.began = before_first + 1;
        }
        if let Some((first, last)) = lost {
            self.account.drops.add(first, last, Reason::HubRestored);
        }
        self.next = match taken {
            // What is no longer there is found missing, and counted, when the stream is read.
            Some(cursor) if self.lane == Lane::Bulk => cursor.sequence + 1,
            Some(cursor) => cursor.sequence.max(before_first) + 1,
            None => before_first + 1,
        };
        let trim = taken.is_some() && self.next > state.first_sequence;
        // What the hub has may still stand there.
        self.waits_at_most((state.last_sequence + 1).saturating_sub(self.next));
        if let Some(Step::Save(_, confirmed)) = steps.last() {
            self.confirmed = Some(confirmed.clone());
        }
        if trim {
            steps.push(self.trim(self.next - 1));
        }
        steps.push(self.read());
        steps
    }

    fn read(&mut self) -> Step {
        self.phase = Phase::Reading;
        Step::Read(self.lane, self.next)
    }

    /// What stands in the stream from the asked sequence on. A batch of it has at most `max_bytes`, but one message at least:
    /// the link may have become slower since it was asked for.
    pub fn have(&mut self, have: Have, max_bytes: usize) -> Vec<Step> {
        match self.phase {
            Phase::Reading => {}
            Phase::Committing { .. } => {
                self.ahead = Some(have);
                return Vec::new();
            }
            Phase::Away | Phase::FindingCursor => return Vec::new(),
        }
        let mut messages: Vec<Stored> =
            have.messages.into_iter().filter(|message| message.sequence >= self.next).collect();
        messages.truncate(self.limit);
        let mut bytes = 0;
        let fits = messages.iter().take_while(|message| {
            bytes += message.payload.len();
            bytes <= max_bytes
        });
        let fits = fits.count();
        messages.truncate(fits.max(1));
        let (Some(first), Some(last)) = (messages.first().cloned(), messages.last().map(|m| m.sequence))
        else {
            return self.found_nothing(have.through);
        };
        self.quiet = 0;
        if self.lane == Lane::Bulk && first.sequence > self.next {
            let (missing, cleared) = (first.sequence - 1, self.cleared.min(first.sequence - 1));
            self.account.drops.add(self.next, cleared, Reason::DiskFull);
            self.account.drops.add(self.next.max(cleared + 1), missing, Reason::Overflow);
            self.next = first.sequence; // counted, whatever becomes of the batch
        }
        self.waiting = self.waiting.max(messages.len() as u64);
        // A workload can have the server's answer put where another speaks: what it says is nobody's word.
        let (answers, messages): (Vec<Stored>, Vec<Stored>) = match self.lane.is_alone() {
            true => messages.into_iter().partition(|m| acknowledgement::is_one(&m.headers, &m.payload)),
            false => (Vec::new(), messages),
        };
        self.commit(messages, &answers, last)
    }

    fn raise(&self, message: Stored) -> Option<Raise> {
        let subject = subject::raised(&self.node, self.lane, &message.subject)?;
        let origin = Origin { generation: self.generation.clone(), sequence: message.sequence };
        let mut headers = message.headers;
        headers.insert(header::ORIGIN.to_owned(), origin.to_string());
        Some(Raise { subject, headers, payload: message.payload })
    }

    /// The stream could not be read.
    pub fn unread(&mut self) -> Vec<Step> {
        match self.phase {
            Phase::Reading => vec![Step::Pause(self.lane)],
            Phase::Committing { .. } => {
                // Read again when the batch is through.
                self.ahead = Some(Have::default());
                Vec::new()
            }
            Phase::Away | Phase::FindingCursor => Vec::new(),
        }
    }

    /// The lane has nothing up to `through`, the stream's last sequence (0: not known).
    fn found_nothing(&mut self, through: u64) -> Vec<Step> {
        self.quiet += 1;
        if self.quiet < QUIET_READS_MAX || through < self.next || self.lane.is_alone() {
            return vec![self.read()];
        }
        self.quiet = 0;
        self.commit(Vec::new(), &[], through)
    }

    /// `answers` stand between the messages, or after them, and are given up with the batch: then they are counted once, however
    /// often it is tried.
    fn commit(&mut self, messages: Vec<Stored>, answers: &[Stored], last: u64) -> Vec<Step> {
        let bytes = messages.iter().map(|message| message.payload.len()).sum();
        let mut account = self.account.clone();
        for answer in answers {
            account.drops.add(answer.sequence, answer.sequence, Reason::Answer);
        }
        let cursor = Cursor { account: account.clone(), ..self.cursor(last) };
        let first = messages.first().cloned();
        let messages: Vec<Raise> = messages.into_iter().filter_map(|message| self.raise(message)).collect();
        let (count, passed) = (messages.len(), answers.len());
        self.phase = Phase::Committing { last, first, count, bytes, passed, account };
        self.ahead = None;
        let commit = Step::Commit { lane: self.lane, messages, cursor, expect_revision: self.revision };
        vec![commit, Step::Read(self.lane, last + 1)]
    }

    fn cursor(&self, sequence: u64) -> Cursor {
        Cursor { outbox_generation: self.generation.clone(), sequence, account: self.account.clone() }
    }

    /// What became of the batch. `max_bytes` as for [`have`](Self::have).
    pub fn committed(&mut self, outcome: Result<u64, LinkError>, max_bytes: usize) -> Vec<Step> {
        if !matches!(self.phase, Phase::Committing { .. }) {
            return Vec::new();
        }
        let Phase::Committing { last, first, count, bytes, passed, account } =
            std::mem::replace(&mut self.phase, Phase::Away)
        else {
            return Vec::new();
        };
        match outcome {
            Ok(revision) => {
                self.revision = revision;
                self.account = account;
                self.next = last + 1;
                self.limit = usize::MAX;
                self.waiting = self.waiting.saturating_sub((count + passed) as u64);
                if self.waiting == 0 {
                    self.waiting_bytes = 0;
                }
                let confirmed = Confirmed { cursor: self.cursor(last) };
                self.confirmed = Some(confirmed.clone());
                let mut steps = vec![Step::Save(self.lane, confirmed)];
                let ahead = self.ahead.take();
                let (messages, waits) = (
                    self.untrimmed.0 + count + passed,
                    ahead.as_ref().is_some_and(|a| !a.messages.is_empty()),
                );
                self.untrimmed = (messages, self.untrimmed.1 + bytes);
                if !waits || messages >= UNTRIMMED_MAX || self.untrimmed.1 >= UNTRIMMED_MAX_BYTES {
                    steps.push(self.trim(last));
                }
                self.phase = Phase::Reading;
                if let Some(ahead) = ahead {
                    steps.extend(self.have(ahead, max_bytes));
                }
                steps
            }
            Err(error) if error.is_passing() => {
                if error == LinkError::CursorMoved {
                    vec![self.connect()]
                } else {
                    vec![Step::Pause(self.lane)]
                }
            }
            Err(_) if count > 1 => {
                self.limit = count / 2;
                vec![self.read()]
            }
            Err(error) => match first.filter(|_| count == 1) {
                // Alone it is refused: step over it, by a batch of the cursor only.
                Some(first) => {
                    self.limit = usize::MAX;
                    self.account = account;
                    self.account.drops.add(first.sequence, first.sequence, Reason::DeadLetter);
                    self.next = last + 1; // counted, whatever becomes of the batch
                    let mut steps = vec![Step::Dead(first, error.to_string())];
                    steps.extend(self.commit(Vec::new(), &[], last));
                    steps
                }
                None => vec![
                    Step::Tell("CursorRefused", format!("lane {}: {error}", self.lane.as_str())),
                    Step::Pause(self.lane),
                ],
            },
        }
    }
}

/// A cursor of the stream as it is, at its beginning.
fn cursor_of(state: &StreamState, account: Account) -> Cursor {
    Cursor { outbox_generation: state.generation.clone(), sequence: 0, account }
}

/// What became of the messages between the hub's cursor and what it had confirmed. Told, because nothing may be skipped or
/// sent twice in silence.
fn behind_text(lane: Lane, taken: u64, known: &Cursor, state: &StreamState) -> String {
    let (from, to) = (taken + 1, known.sequence);
    let first = state.first_sequence;
    let fate = if first > to {
        format!("{from} to {to} were trimmed here and are lost with the hub's newer store")
    } else if first > from {
        let last_lost = first - 1;
        format!("{from} to {last_lost} were trimmed here and are lost, {first} to {to} are sent again")
    } else {
        format!("{from} to {to} are sent again")
    };
    format!(
        "lane {}: the hub has this node's messages up to {}, and had confirmed up to {} (was it restored?); of the lane's own, {fate}",
        lane.as_str(),
        taken,
        known.sequence
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = 1 << 20;

    fn up() -> Up {
        Up::new(NodeName::new("n1").unwrap(), Lane::Events)
    }

    fn state(generation: &str, first: u64, last: u64) -> StreamState {
        StreamState {
            generation: generation.into(),
            first_sequence: first,
            last_sequence: last,
            messages: last + 1 - first,
            bytes: 0,
            bytes_max: u64::MAX,
        }
    }

    fn have(messages: Vec<Stored>) -> Have {
        Have { messages, through: 0 }
    }

    fn stored(sequence: u64) -> Stored {
        Stored {
            sequence,
            subject: "ew.evt.m.Type".into(),
            headers: Default::default(),
            payload: bytes::Bytes::new(),
        }
    }

    fn cursor(generation: &str, sequence: u64) -> Vec<u8> {
        schemas::encode(&Cursor {
            outbox_generation: generation.into(),
            sequence,
            account: Account::default(),
        })
    }

    /// From which sequence does it read after finding that?
    fn reads_from(up: &mut Up, remote: Option<(u64, Vec<u8>)>, state: StreamState) -> u64 {
        up.connect();
        match up.found(remote, &state).last() {
            Some(Step::Read(_, from)) => *from,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn it_begins_where_the_hub_ended() {
        let confirmed = Confirmed {
            cursor: Cursor { outbox_generation: "g".into(), sequence: 7, account: Account::default() },
        };
        for (name, confirmed, remote, state, from) in [
            ("first contact", None, None, state("g", 1, 9), 1),
            ("after a cut", None, Some((3, cursor("g", 5))), state("g", 6, 9), 6),
            (
                "the hub took more than was confirmed",
                Some(confirmed.clone()),
                Some((3, cursor("g", 9))),
                state("g", 8, 9),
                10,
            ),
            (
                "the node's stream was wiped",
                Some(confirmed.clone()),
                Some((3, cursor("g", 9))),
                state("h", 1, 2),
                1,
            ),
            ("the hub lost the cursor", Some(confirmed.clone()), None, state("g", 3, 9), 8),
            ("both lost theirs", Some(confirmed), None, state("h", 1, 2), 1),
            ("a stream that went back", None, Some((3, cursor("g", 9))), state("g", 1, 4), 1),
        ] {
            let mut up = up();
            if let Some(confirmed) = confirmed {
                up.restore(confirmed);
            }
            assert_eq!(reads_from(&mut up, remote, state), from, "{name}");
        }
    }

    #[test]
    fn a_hub_that_has_less_than_it_confirmed_is_told_once() {
        for (first, says) in [
            (1, "6 to 8 are sent again"),
            (7, "6 to 6 were trimmed here and are lost, 7 to 8 are sent again"),
            (9, "6 to 8 were trimmed here and are lost with"),
        ] {
            let mut up = up();
            up.restore(Confirmed {
                cursor: Cursor { outbox_generation: "g".into(), sequence: 8, account: Account::default() },
            });
            up.connect();
            let mut steps = up.found(Some((3, cursor("g", 5))), &state("g", first, 9));
            steps.retain(|step| !matches!(step, Step::Trim(_, 5)));
            let [
                Step::Rewound(_),
                Step::Tell("CursorBehind", text),
                Step::Save(_, saved),
                Step::Read(_, next),
            ] = steps.as_slice()
            else {
                panic!("{steps:?}")
            };
            assert!(text.contains(says), "{text}");
            assert_eq!((saved.cursor.sequence, *next), (5, first.max(6)));
            up.connect();
            let again = up.found(Some((3, cursor("g", 5))), &state("g", first, 9));
            assert!(
                matches!(again.as_slice(), [Step::Read(..)] | [Step::Trim(_, 5), Step::Read(..)]),
                "{again:?}"
            );
        }
        let mut up = up();
        up.restore(Confirmed {
            cursor: Cursor { outbox_generation: "g".into(), sequence: 8, account: Account::default() },
        });
        up.connect();
        let older = up.found(Some((3, cursor("f", 9))), &state("g", 1, 9));
        assert!(
            matches!(
                older.as_slice(),
                [Step::Rewound(_), Step::Tell("CursorBehind", _), Step::Save(..), Step::Read(_, 1)]
            ),
            "it knows only the stream before: {older:?}"
        );
        up.restore(Confirmed {
            cursor: Cursor { outbox_generation: "g".into(), sequence: 8, account: Account::default() },
        });
        up.connect();
        let ahead = up.found(Some((3, cursor("g", 9))), &state("g", 9, 9));
        assert!(
            matches!(ahead.as_slice(), [Step::Trim(_, 9), Step::Read(_, 10)]),
            "an answer was lost: {ahead:?}"
        );
    }

    #[test]
    fn a_batch_moves_the_cursor_under_compare_and_set() {
        let mut up = up();
        reads_from(&mut up, Some((3, cursor("g", 5))), state("g", 6, 8));
        let steps = up.have(have(vec![stored(6), stored(8)]), MAX);
        let [Step::Commit { messages, cursor, expect_revision, .. }, Step::Read(_, 9)] = steps.as_slice()
        else {
            panic!("{steps:?}")
        };
        assert_eq!((messages.len(), cursor.sequence, *expect_revision), (2, 8, 3));
        let steps = up.committed(Ok(40), MAX);
        assert!(
            matches!(steps.as_slice(), [Step::Save(..), Step::Trim(_, 8)]),
            "it is being read: {steps:?}"
        );
        assert_eq!(up.revision, 40);
        let (origins, cursor) = commit_of(&up.have(have(vec![stored(9)]), MAX));
        assert_eq!((origins, cursor.sequence), (vec!["g.9".to_owned()], 9));
    }

    #[test]
    fn what_was_read_ahead_goes_when_the_batch_before_it_is_through() {
        let mut up = up();
        reads_from(&mut up, None, state("g", 1, 9));
        up.have(have(vec![stored(1), stored(2)]), MAX);
        assert_eq!(up.have(have(vec![stored(3), stored(4)]), MAX), [], "the batch before is on its way");
        let steps = up.committed(Ok(7), MAX);
        assert_eq!(commit_of(&steps).0, ["g.3", "g.4"]);
        assert!(
            matches!(steps.as_slice(), [Step::Save(..), _, Step::Read(_, 5)]),
            "no trim meanwhile: {steps:?}"
        );

        // The batch before it is refused: it counts for nothing.
        up.have(have(vec![stored(5)]), MAX);
        let refused = LinkError::Refused { code: 1, cause: "no".into() };
        assert_eq!(up.committed(Err(refused), MAX), [Step::Read(Lane::Events, 3)]);
        assert_eq!(commit_of(&up.have(have(vec![stored(3), stored(4)]), MAX)).0, ["g.3"], "half of it");

        // It could not be read: read again, later.
        assert_eq!(up.unread(), []);
        let steps = up.committed(Ok(8), MAX);
        assert!(
            matches!(steps.as_slice(), [Step::Save(..), Step::Trim(_, 3), Step::Read(_, 4)]),
            "{steps:?}"
        );
        assert_eq!(up.unread(), [Step::Pause(Lane::Events)]);
    }

    #[test]
    fn what_the_hub_has_is_trimmed_when_nothing_waits_or_it_is_much() {
        let mut up = up();
        reads_from(&mut up, None, state("g", 1, 99_999));
        let body = Stored { payload: vec![0; UNTRIMMED_MAX_BYTES / 2].into(), ..stored(2) };
        // Each batch with what is read behind it, and up to where the stream is trimmed then.
        for (batch, ahead, expected) in [
            ((1..=1).map(stored).collect(), vec![body.clone()], None),
            (vec![], vec![Stored { sequence: 3, ..body }], None),
            (vec![], (4..25_000).map(stored).collect(), Some(3)),
            (vec![], vec![stored(25_000)], Some(24_999)),
            (vec![], vec![], Some(25_000)),
        ] {
            up.have(have(batch), MAX);
            up.have(have(ahead), MAX);
            let steps = up.committed(Ok(7), MAX);
            let trims = steps.iter().find_map(|step| match step {
                Step::Trim(_, to) => Some(*to),
                _ => None,
            });
            assert_eq!(trims, expected);
        }
        assert_eq!(up.disconnect(), None, "it is trimmed");

        reads_from(&mut up, Some((7, cursor("g", 25_000))), state("g", 25_001, 99_999));
        up.have(have(vec![stored(25_001)]), MAX);
        up.have(have(vec![stored(25_002)]), MAX);
        up.committed(Ok(8), MAX);
        assert_eq!(up.disconnect(), Some(25_001), "what is left is what waits");
        // A dead letter that is in no cursor yet: it is not among what the hub has.
        reads_from(&mut up, Some((7, cursor("g", 25_002))), state("g", 25_003, 99_999));
        up.have(have(vec![stored(25_003)]), MAX);
        up.have(have(vec![stored(25_004)]), MAX);
        up.committed(Ok(8), MAX);
        let refused = LinkError::Refused { code: 1, cause: "never".into() };
        assert!(matches!(up.committed(Err(refused), MAX).first(), Some(Step::Dead(..))));
        assert_eq!(up.disconnect(), Some(25_003));
        let mut up = self::up();
        // An end of ours in between: it is found at the next contact.
        up.connect();
        let steps = up.found(Some((8, cursor("g", 25_001))), &state("g", 25_001, 99_999));
        assert!(matches!(steps.as_slice(), [Step::Trim(_, 25_001), Step::Read(_, 25_002)]), "{steps:?}");
    }

    #[test]
    fn what_the_hub_has_and_is_not_trimmed_does_not_wait() {
        let mut up = up();
        let stream = StreamState { messages: 99, bytes: 9_900, ..state("g", 1, 99) };
        up.connect();
        up.found(Some((7, cursor("g", 90))), &stream);
        assert_eq!((up.waiting(), up.waiting_bytes()), (9, 900));
    }

    #[test]
    fn a_link_that_became_slow_gets_less_than_was_read() {
        let mut up = up();
        reads_from(&mut up, None, state("g", 1, 9));
        let of = |sequence| Stored { payload: vec![0; 400].into(), ..stored(sequence) };
        for (max_bytes, expected) in [(1_000, 2), (100, 1)] {
            let steps =
                up.have(have((1..=9).map(of).filter(|of| of.sequence >= up.next).collect()), max_bytes);
            assert_eq!(commit_of(&steps).0.len(), expected, "of {max_bytes} B");
            up.committed(Ok(7), max_bytes);
        }
    }

    #[test]
    fn any_doubt_reads_the_cursor_again() {
        let mut up = up();
        reads_from(&mut up, None, state("g", 1, 3));
        up.have(have(vec![stored(1)]), MAX);
        assert_eq!(up.committed(Err(LinkError::CursorMoved), MAX), [Step::FindCursor(Lane::Events)]);
        reads_from(&mut up, None, state("g", 1, 3));
        up.have(have(vec![stored(1)]), MAX);
        assert_eq!(up.committed(Err(LinkError::Lost("cut".into())), MAX), [Step::Pause(Lane::Events)]);
        assert_eq!(up.connect(), Step::FindCursor(Lane::Events));
    }

    #[test]
    fn poison_is_found_by_halving_and_stepped_over() {
        let poison = 6;
        let mut up = up();
        reads_from(&mut up, None, state("g", 1, 8));
        let (mut taken, mut dead, mut revision) = (Vec::new(), Vec::new(), 0);
        let mut steps = up.have(have((1..=8).map(stored).collect()), MAX);
        for _ in 0..50 {
            let mut next = Vec::new();
            // What is read ahead is there before the batch is through.
            steps.sort_by_key(|step| !matches!(step, Step::Read(..)));
            for step in steps {
                match step {
                    Step::Commit { messages, cursor, .. } => {
                        let last = cursor.sequence;
                        let batch: Vec<u64> = (last + 1 - messages.len() as u64..=last).collect();
                        let outcome = if !messages.is_empty() && batch.contains(&poison) {
                            Err(LinkError::Refused { code: 10_054, cause: "too large".into() })
                        } else {
                            revision += 1;
                            taken.extend(batch);
                            Ok(revision)
                        };
                        next.extend(up.committed(outcome, MAX));
                    }
                    Step::Read(_, from) if from <= 8 => {
                        next.extend(up.have(have((from..=8).map(stored).collect()), MAX))
                    }
                    Step::Dead(message, _) => dead.push(message.sequence),
                    _ => {}
                }
            }
            steps = next;
        }
        assert_eq!(taken, [1, 2, 3, 4, 5, 7, 8]);
        assert_eq!(dead, [poison]);
    }

    #[test]
    fn a_full_hub_is_waited_for_not_skipped() {
        let mut up = up();
        reads_from(&mut up, None, state("g", 1, 1));
        up.have(have(vec![stored(1)]), MAX);
        let full = LinkError::Refused { code: 10_077, cause: "maximum bytes exceeded".into() };
        assert_eq!(up.committed(Err(full), MAX), [Step::Pause(Lane::Events)]);
    }

    /// The one commit among the steps: subjects with their origins, and the cursor.
    fn commit_of(steps: &[Step]) -> (Vec<String>, Cursor) {
        let commit = steps.iter().find_map(|step| match step {
            Step::Commit { messages, cursor, .. } => Some((messages, cursor.clone())),
            _ => None,
        });
        let (messages, cursor) = commit.unwrap_or_else(|| panic!("{steps:?}"));
        (messages.iter().map(|message| message.headers[header::ORIGIN].clone()).collect(), cursor)
    }

    fn bulk() -> Up {
        Up::new(NodeName::new("n1").unwrap(), Lane::Bulk)
    }

    fn bulk_stored(sequence: u64) -> Stored {
        Stored { subject: "bulk.demo.t".into(), ..stored(sequence) }
    }

    #[test]
    fn every_message_says_where_it_stood() {
        let mut up = up();
        reads_from(&mut up, None, state("g", 1, 3));
        let (origins, cursor) = commit_of(&up.have(have(vec![stored(1), stored(3)]), MAX));
        assert_eq!(origins, ["g.1", "g.3"]);
        let raised = cursor.raise(&NodeName::new("n1").unwrap(), Lane::Events);
        assert_eq!(raised.headers[header::ORIGIN], "g.3");
        assert_eq!(raised.headers[header::ACCOUNT], r#"{"began":1}"#);
    }

    #[test]
    fn what_telemetry_overflowed_is_counted_once_in_the_cursor() {
        let mut up = bulk();
        assert_eq!(
            reads_from(&mut up, Some((3, cursor("g", 5))), state("g", 9, 20)),
            6,
            "nothing is skipped unseen"
        );
        let (_, commit) = commit_of(&up.have(have(vec![bulk_stored(9), bulk_stored(10)]), MAX));
        assert_eq!((commit.sequence, commit.account.drops.count()), (10, 3), "6, 7 and 8");
        assert_eq!(commit.account.drops.recent[0].reason, Reason::Overflow);
        // A batch that is halved does not count it again, and one that was lost is counted from where the hub stands.
        up.committed(Err(LinkError::Refused { code: 1, cause: "no".into() }), MAX);
        let (_, commit) = commit_of(&up.have(have(vec![bulk_stored(9), bulk_stored(10)]), MAX));
        assert_eq!((commit.sequence, commit.account.drops.count()), (9, 3));
        up.committed(Err(LinkError::Lost("cut".into())), MAX);
        assert_eq!(reads_from(&mut up, Some((3, cursor("g", 5))), state("g", 12, 20)), 6);
        up.cleared(9);
        let (_, commit) = commit_of(&up.have(have(vec![bulk_stored(12)]), MAX));
        assert_eq!(commit.account.drops.total, [(Reason::DiskFull, 4), (Reason::Overflow, 2)].into());
        up.committed(Ok(4), MAX);
        // The hub's cursor carries it on.
        let kept = schemas::encode(&commit);
        assert_eq!(reads_from(&mut up, Some((4, kept)), state("g", 12, 20)), 13);
        assert_eq!(up.drops().count(), 6);
        assert_eq!(reads_from(&mut up, Some((4, cursor("g", 12))), state("h", 4, 20)), 4, "another stream");
        assert!(up.drops().is_empty());
    }

    #[test]
    fn a_dead_letter_and_what_a_restored_hub_lost_are_counted() {
        let mut up = up();
        reads_from(&mut up, None, state("g", 1, 3));
        up.have(have(vec![stored(1)]), MAX);
        let steps = up.committed(Err(LinkError::Refused { code: 1, cause: "never".into() }), MAX);
        let (messages, commit) = commit_of(&steps);
        assert!(messages.is_empty() && matches!(steps[0], Step::Dead(..)));
        assert_eq!(commit.account.drops.total, [(Reason::DeadLetter, 1)].into());

        let mut up = self::up();
        up.restore(Confirmed {
            cursor: Cursor { outbox_generation: "g".into(), sequence: 8, account: Account::default() },
        });
        assert_eq!(reads_from(&mut up, Some((3, cursor("g", 5))), state("g", 8, 9)), 8);
        let (_, commit) = commit_of(&up.have(have(vec![stored(8)]), MAX));
        assert_eq!(commit.account.drops.total, [(Reason::HubRestored, 2)].into(), "6 and 7");
    }

    #[test]
    fn the_servers_own_answers_are_not_carried_and_counted_once() {
        let answer = br#"{"stream":"UPLINK","domain":"edge-n1","seq":7}"#;
        let said = |sequence, payload: &'static [u8]| Stored {
            subject: "up.demo.t".into(),
            payload: bytes::Bytes::from_static(payload),
            ..stored(sequence)
        };
        let mut up = Up::new(NodeName::new("n1").unwrap(), Lane::Workload);
        reads_from(&mut up, None, state("g", 1, 5));
        let all = || vec![said(1, answer), said(2, b"a"), said(3, answer), said(4, answer), said(5, b"b")];
        // However often the batch is tried.
        for _ in 0..3 {
            let (messages, commit) = commit_of(&up.have(have(all()), MAX));
            assert_eq!(messages, ["g.2", "g.5"]);
            assert_eq!((commit.sequence, &commit.account.drops.total), (5, &[(Reason::Answer, 3)].into()));
            up.committed(Err(LinkError::Refused { code: 1, cause: "halved".into() }), MAX);
            up.limit = usize::MAX;
            assert!(up.drops().is_empty());
        }
        up.have(have(all()), MAX);
        up.committed(Ok(1), MAX);
        assert_eq!((up.drops().count(), up.waiting()), (3, 0));
        // Alone, they are stepped over; one message beside them that the hub refuses is that one.
        let (messages, commit) = commit_of(&up.have(have(vec![said(6, answer)]), MAX));
        assert!(messages.is_empty() && commit.sequence == 6);
        up.committed(Ok(2), MAX);
        up.have(have(vec![said(7, answer), said(8, b"c")]), MAX);
        let steps = up.committed(Err(LinkError::Refused { code: 1, cause: "never".into() }), MAX);
        assert!(matches!(&steps[0], Step::Dead(message, _) if message.sequence == 8), "{steps:?}");
        assert_eq!(up.drops().total, [(Reason::Answer, 5), (Reason::DeadLetter, 1)].into());

        // Edgewire's own streams are nobody else's to write to.
        let mut up = self::up();
        reads_from(&mut up, None, state("g", 1, 1));
        let own = Stored { payload: bytes::Bytes::from_static(answer), ..stored(1) };
        assert_eq!(commit_of(&up.have(have(vec![own]), MAX)).0.len(), 1);
    }

    #[test]
    fn an_idle_lanes_cursor_follows_the_stream_that_it_shares_now_and_then() {
        let nothing = |through| Have { messages: Vec::new(), through };
        let mut up = up();
        reads_from(&mut up, Some((3, cursor("g", 5))), state("g", 6, 90));
        for _ in 1..QUIET_READS_MAX {
            assert!(matches!(up.have(nothing(90), MAX).as_slice(), [Step::Read(_, 6)]));
        }
        let (messages, commit) = commit_of(&up.have(nothing(90), MAX));
        assert_eq!((messages.len(), commit.sequence), (0, 90));
        let steps = up.committed(Ok(4), MAX);
        assert!(matches!(steps.as_slice(), [Step::Save(..), Step::Trim(_, 90)]), "{steps:?}");
        for _ in 0..3 * QUIET_READS_MAX {
            assert!(
                matches!(up.have(nothing(90), MAX).as_slice(), [Step::Read(_, 91)]),
                "it is there already"
            );
        }
        let mut alone = bulk();
        reads_from(&mut alone, None, state("g", 1, 0));
        for _ in 0..3 * QUIET_READS_MAX {
            assert!(matches!(alone.have(nothing(90), MAX).as_slice(), [Step::Read(..)]));
        }
    }
}
