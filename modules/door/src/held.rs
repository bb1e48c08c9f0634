//! What a stream holds of a filter. Its readers are told from the stream itself, so IDs are the stream's sequences, and who
//! comes back misses nothing that the stream still has, whatever died meanwhile.

use bus::connection::Bus;
use bus::link::{self, LinkError};
use bytes::Bytes;

use crate::frame;
use crate::ring::Start;

/// So much is read at once.
const READ_MAX_BYTES: usize = 64 * 1024;
const EVICTED: &str = "the stream has let go of messages before this: it is full, or they were too old";

/// One stream, read by one filter.
pub struct Held {
    bus: Bus,
    stream: String,
    filter: String,
    /// Of this stream and no later one of its name.
    generation: String,
}

impl Held {
    /// The stream, if it is there.
    pub async fn find(bus: Bus, stream: String, filter: &str) -> Option<Self> {
        let generation = link::state(&bus, &stream).await.ok()?.generation;
        Some(Self { bus, stream, filter: filter.to_owned(), generation })
    }

    /// The ID of a sequence. The generation in it is told apart from other streams', and from a ring's name.
    pub fn id(&self, sequence: u64) -> String {
        format!("{}@{}-{sequence}", self.stream, self.generation)
    }

    /// Where somebody begins who comes with that `Last-Event-ID`; with none, at what is said from now on.
    pub async fn start(&self, last: Option<&str>) -> Result<Start, LinkError> {
        let state = link::state(&self.bus, &self.stream).await?;
        if state.generation != self.generation {
            return Err(LinkError::Lost(format!("stream {} is another one now", self.stream)));
        }
        Ok(place(last, &self.id(0), state.first_sequence, state.last_sequence))
    }

    /// What there is from `number` on, as frames, and the number after it; `None` when there is nothing yet.
    pub async fn read(&self, number: u64) -> Result<Option<(Vec<Bytes>, u64)>, LinkError> {
        let messages = link::read(&self.bus, &self.stream, &self.filter, number, READ_MAX_BYTES).await?;
        let (Some(first), Some(last)) = (messages.first(), messages.last()) else {
            let state = link::state(&self.bus, &self.stream).await?;
            if state.generation != self.generation {
                return Err(LinkError::Lost(format!("stream {} is another one now", self.stream)));
            }
            return Ok(None);
        };
        let next = last.sequence + 1;
        let mut frames = Vec::with_capacity(messages.len());
        // Others' messages stand between, or some were let go.
        if first.sequence > number {
            let state = link::state(&self.bus, &self.stream).await?;
            if state.first_sequence > number {
                frames.push(frame::gap(&self.id(first.sequence - 1), EVICTED));
            }
        }
        frames.extend(messages.iter().map(|message| {
            frame::message(&self.id(message.sequence), &message.subject, &message.headers, &message.payload)
        }));
        Ok(Some((frames, next)))
    }
}

/// `any` is some ID of the stream; it has sequences from `first` to `last`.
fn place(told: Option<&str>, any: &str, first: u64, last: u64) -> Start {
    let Some(told) = told else { return Start::At(last + 1) };
    let split = |id: &'_ str| id.rsplit_once('-').map(|(name, number)| (name.to_owned(), number.to_owned()));
    let same = split(told).zip(split(any)).filter(|((mine, _), (its, _))| mine == its);
    match same
        .and_then(|((_, number), _)| number.parse::<u64>().ok())
        .and_then(|number| number.checked_add(1))
    {
        Some(next) if (first..=last + 1).contains(&next) => Start::At(next),
        _ => Start::AfterGap(first.max(1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_goes_on_where_the_stream_has_it() {
        for (told, want) in [
            (None, Start::At(10)),
            (Some("T_demo_t@2026-11-27-9"), Start::At(10)),
            (Some("T_demo_t@2026-11-27-5"), Start::At(6)),
            (Some("T_demo_t@2026-11-27-3"), Start::At(4)),
            (Some("T_demo_t@2026-11-27-2"), Start::AfterGap(4)),
            (Some("T_demo_t@2026-11-27-10"), Start::AfterGap(4)),
            (Some("T_demo_t@2026-11-28-5"), Start::AfterGap(4)),
            (Some("a1-5"), Start::AfterGap(4)),
            (Some("5"), Start::AfterGap(4)),
        ] {
            assert_eq!(place(told, "T_demo_t@2026-11-27-0", 4, 9), want, "{told:?}");
        }
        assert_eq!(place(Some("s-0"), "s-0", 0, 0), Start::At(1));
    }
}
