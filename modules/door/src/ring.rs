//! The last messages of one subscription, so that a reader who comes back within their time misses nothing. Pure.
//!
//! Every message has a number; with the ring's own random name that is its ID (`3f9c…-17`). A reader has no buffer of its
//! own: it holds a number and reads on from there. One whose number has left the ring is too slow, or came back too late.

use std::collections::VecDeque;

use bytes::Bytes;
use schemas::Timestamp;

/// A ring holds so much.
pub const RING_MAX_BYTES: usize = 1024 * 1024;
/// What is older is let go, and a subscription that nobody reads is kept for so long.
pub const RING_MAX_AGE_MS: u64 = 60_000;
/// Of memory, besides its bytes, each takes about so much.
const ENTRY_BYTES: usize = 96;
/// So much is handed to a reader at once.
const READ_MAX_BYTES: usize = 64 * 1024;

struct Entry {
    at: Timestamp,
    frame: Bytes,
}

/// The ring.
pub struct Ring {
    name: String,
    /// Number of the oldest.
    first: u64,
    entries: VecDeque<Entry>,
    size_bytes: usize,
}

/// What there is for a reader.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// These frames; then read on from that number.
    Frames(Vec<Bytes>, u64),
    /// Nothing yet.
    Nothing,
    /// What comes next has left the ring.
    Behind,
}

/// Where a reader begins.
#[derive(Debug, PartialEq, Eq)]
pub enum Start {
    /// At that number; nothing is missing before it.
    At(u64),
    /// At that number; what was before it is not known here any more.
    AfterGap(u64),
}

impl Ring {
    /// An empty one. Its name has to be another each time.
    pub fn new(name: String) -> Self {
        Self { name, first: 1, entries: VecDeque::new(), size_bytes: 0 }
    }

    /// The number of the next.
    pub fn next(&self) -> u64 {
        self.first + u64::try_from(self.entries.len()).unwrap_or(u64::MAX)
    }

    /// The ID of a number.
    pub fn id(&self, number: u64) -> String {
        format!("{}-{number}", self.name)
    }

    /// Adds what `frame` makes of the next ID.
    pub fn push(&mut self, now: Timestamp, frame: impl FnOnce(&str) -> Bytes) {
        let frame = frame(&self.id(self.next()));
        self.size_bytes += frame.len() + ENTRY_BYTES;
        self.entries.push_back(Entry { at: now, frame });
        // The newest stays: it is bounded by itself.
        while self.size_bytes > RING_MAX_BYTES && self.entries.len() > 1 {
            self.let_go();
        }
        self.age(now);
    }

    /// Lets go what is too old.
    pub fn age(&mut self, now: Timestamp) {
        while self.entries.front().is_some_and(|entry| now.since_ms(entry.at) > RING_MAX_AGE_MS) {
            self.let_go();
        }
    }

    fn let_go(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.first += 1;
            self.size_bytes -= entry.frame.len() + ENTRY_BYTES;
        }
    }

    /// What comes from `number` on.
    pub fn read(&self, number: u64) -> Next {
        if number < self.first {
            return Next::Behind;
        }
        let skipped = usize::try_from(number - self.first).unwrap_or(usize::MAX);
        let (mut frames, mut size_bytes) = (Vec::new(), 0);
        for entry in self.entries.iter().skip(skipped) {
            if size_bytes > 0 && size_bytes + entry.frame.len() > READ_MAX_BYTES {
                break;
            }
            size_bytes += entry.frame.len();
            frames.push(entry.frame.clone());
        }
        let read = u64::try_from(frames.len()).unwrap_or(0);
        if frames.is_empty() { Next::Nothing } else { Next::Frames(frames, number + read) }
    }

    /// Where somebody begins who comes with that `Last-Event-ID`, or with none.
    pub fn start(&self, last: Option<&str>) -> Start {
        let Some(last) = last else { return Start::At(self.next()) };
        let number = last.rsplit_once('-').filter(|(name, _)| *name == self.name);
        match number
            .and_then(|(_, number)| number.parse::<u64>().ok())
            .and_then(|number| number.checked_add(1))
        {
            Some(next) if (self.first..=self.next()).contains(&next) => Start::At(next),
            // All that is here is later than what another ring told, or was told and let go.
            _ => Start::AfterGap(self.first),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: Timestamp = Timestamp(1_700_000_000_000);

    fn ring(count: u64) -> Ring {
        let mut ring = Ring::new("a1".into());
        for n in 0..count {
            ring.push(T0.plus_ms(n), |id| id.to_owned().into());
        }
        ring
    }

    fn texts(next: Next) -> (Vec<String>, u64) {
        match next {
            Next::Frames(frames, number) => {
                (frames.iter().map(|frame| String::from_utf8_lossy(frame).into_owned()).collect(), number)
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_reader_goes_on_where_it_was() {
        let ring = ring(5);
        for (last, want) in [
            (None, Start::At(6)),
            (Some("a1-5"), Start::At(6)),
            (Some("a1-2"), Start::At(3)),
            (Some("a1-0"), Start::At(1)),
            (Some("a1-6"), Start::AfterGap(1)),
            (Some("b2-2"), Start::AfterGap(1)),
            (Some("a1-"), Start::AfterGap(1)),
            (Some("a1-18446744073709551615"), Start::AfterGap(1)),
            (Some("17"), Start::AfterGap(1)),
            (Some(""), Start::AfterGap(1)),
        ] {
            assert_eq!(ring.start(last), want, "{last:?}");
        }
        assert_eq!(texts(ring.read(3)), (vec!["a1-3".into(), "a1-4".into(), "a1-5".into()], 6));
        assert_eq!(ring.read(6), Next::Nothing);
    }

    #[test]
    fn what_has_left_the_ring_is_known_to_be_missing() {
        let mut ring = ring(3);
        ring.age(T0.plus_ms(RING_MAX_AGE_MS + 2));
        assert_eq!((ring.read(2), texts(ring.read(3)).0), (Next::Behind, vec!["a1-3".into()]));
        assert_eq!((ring.start(Some("a1-1")), ring.start(Some("a1-2"))), (Start::AfterGap(3), Start::At(3)));
        // Also when all is gone: it was told nothing since.
        ring.age(T0.plus_ms(2 * RING_MAX_AGE_MS));
        assert_eq!(
            (ring.next(), ring.start(Some("a1-3")), ring.start(Some("a1-2"))),
            (4, Start::At(4), Start::AfterGap(4))
        );
    }

    #[test]
    fn it_holds_no_more_than_its_bound() {
        let mut ring = ring(0);
        for n in 0..300 {
            ring.push(T0.plus_ms(n), |_| Bytes::from(vec![b'x'; 10_000]));
            assert!(ring.size_bytes <= RING_MAX_BYTES);
        }
        assert_eq!(ring.next(), 301);
        assert!(ring.first > 190 && ring.entries.len() > 100, "{} {}", ring.first, ring.entries.len());
        // A reader gets it in pieces.
        let (mut number, mut read) = (ring.first, 0);
        while let Next::Frames(frames, next) = ring.read(number) {
            assert!(frames.iter().map(Bytes::len).sum::<usize>() <= READ_MAX_BYTES);
            (number, read) = (next, read + frames.len());
        }
        assert_eq!(read, ring.entries.len());
        ring.push(T0.plus_ms(301), |_| Bytes::from(vec![b'x'; 2 * RING_MAX_BYTES]));
        assert_eq!((ring.entries.len(), texts(ring.read(301)).0.len()), (1, 1));
    }

    /// Clocks are set back; nothing is let go for that, and nothing is kept for ever by bytes.
    #[test]
    fn a_clock_that_was_set_back_lets_nothing_go() {
        let mut ring = ring(3);
        ring.age(Timestamp(0));
        assert_eq!(texts(ring.read(1)).0.len(), 3);
    }
}
