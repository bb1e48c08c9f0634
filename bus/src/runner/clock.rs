//! A clock that is set back under a running module.
//!
//! What a module waits for it holds as times of the wall clock: when to try again, when somebody was heard last. Set back
//! by an hour, or from a wrong year to the right one, the clock would keep it waiting for as long. So its incarnation ends,
//! and the next one begins with what is on disk and nothing that was reckoned by the old clock. A clock that leaps ahead
//! only makes things due early.

use schemas::Timestamp;

/// Steps of so little are what keeps a clock right.
pub const SET_BACK_MAX_MS: u64 = 1_000;

/// The wall clock, as one incarnation has seen it.
#[derive(Debug)]
pub struct Clock {
    last: Timestamp,
}

impl Clock {
    /// The clock shows `now`.
    pub fn new(now: Timestamp) -> Self {
        Self { last: now }
    }

    /// The clock shows `now`. Gives by how many milliseconds it was set back, if that is too much to go on.
    pub fn shows(&mut self, now: Timestamp) -> Option<u64> {
        let back_ms = self.last.since_ms(now);
        self.last = now;
        (back_ms > SET_BACK_MAX_MS).then_some(back_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clock_that_is_set_back_is_told() {
        let mut clock = Clock::new(Timestamp(10_000));
        assert_eq!(clock.shows(Timestamp(10_001)), None);
        assert_eq!(clock.shows(Timestamp(9_001)), None, "a small step");
        assert_eq!(clock.shows(Timestamp(5_000_000)), None, "ahead");
        assert_eq!(clock.shows(Timestamp(1_000)), Some(4_999_000));
        assert_eq!(clock.shows(Timestamp(1_001)), None, "told once");
    }
}
