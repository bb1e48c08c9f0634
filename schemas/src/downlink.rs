//! Messages from the hub to one node: what the node says it has, and what the hub says that waits.

use serde::{Deserialize, Serialize};

/// The message of its stream at the hub that a node took last. A sequence alone does not name it: a hub that was restored
/// gives it again, at another time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// Its sequence in the node's stream at the hub.
    pub sequence: u64,
    /// When the hub stored it, in nanoseconds since the Unix epoch, by the hub's clock.
    pub at_ns: i64,
}

/// A node asks what waits for it. What it says that it has taken need not be kept any longer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Look {
    /// The last that it has on its disk.
    pub taken: Option<Taken>,
}

/// What the hub has for the node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// The last sequence that was given in the node's stream; 0 before the first.
    pub last: u64,
    /// What stands there where the node took its last message; `None` when it has taken none.
    pub holds: Option<Holds>,
}

/// What stands in a node's stream at the hub where the node took its last message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Holds {
    /// That very message: what comes behind it has not been taken.
    Same,
    /// Another one, or the stream does not come so far: it is an older stream, or another one.
    Other,
    /// Nothing, though the stream came so far: somebody took it away.
    Gone,
}

impl Holds {
    /// Of a stream that has come to `last` and in which `next` is that message or the first that is there behind it. What stands
    /// behind is younger, or it is another stream: one from a backup, which was let go further than this one by then.
    pub fn judge(taken: Taken, next: Option<Taken>, last: u64) -> Self {
        match next {
            Some(next) if next == taken => Self::Same,
            Some(next) if next.sequence > taken.sequence && next.at_ns > taken.at_ns => Self::Gone,
            None if last >= taken.sequence => Self::Gone,
            _ => Self::Other,
        }
    }
}

/// Nanoseconds since the Unix epoch of a time as NATS writes it (RFC 3339). `None` when it is none, or before 1677 or
/// after 2262.
pub fn at_ns(text: &str) -> Option<i64> {
    i64::try_from(text.parse::<jiff::Timestamp>().ok()?.as_nanosecond()).ok()
}

/// The same as text.
pub fn at_text(at_ns: i64) -> String {
    jiff::Timestamp::from_nanosecond(i128::from(at_ns)).unwrap_or_default().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_time_survives_its_text(ns in any::<i64>()) {
            prop_assert_eq!(at_ns(&at_text(ns)), Some(ns));
        }
    }

    #[test]
    fn which_stream_it_is_follows_from_what_stands_there() {
        let at = |sequence, at_ns| Taken { sequence, at_ns };
        for (next, last, want) in [
            (Some(at(5, 50)), 9, Holds::Same),
            (Some(at(5, 51)), 9, Holds::Other),
            (Some(at(7, 70)), 9, Holds::Gone),
            // An older stream, trimmed beyond the number that the node has of the one after it.
            (Some(at(7, 20)), 9, Holds::Other),
            (None, 9, Holds::Gone),
            (None, 5, Holds::Gone),
            (None, 4, Holds::Other),
        ] {
            assert_eq!(Holds::judge(at(5, 50), next, last), want, "{next:?} {last}");
        }
    }

    #[test]
    fn times_are_read_as_the_server_writes_them() {
        assert_eq!(at_ns("1970-01-01T00:00:01.5Z"), Some(1_500_000_000));
        assert_eq!(at_ns("2026-11-27T20:12:34.891319894Z"), Some(1_795_810_354_891_319_894));
        for bad in ["", "yesterday", "2026-11-27", "9999-01-01T00:00:00Z"] {
            assert_eq!(at_ns(bad), None, "{bad}");
        }
    }
}
