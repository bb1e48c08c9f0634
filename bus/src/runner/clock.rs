//! Notices that the machine's clock was set back. Modules measure time by it (their `now`), so what they wait for would come
//! only when the clock is where it was again, perhaps in years: they begin anew instead, as after a fall, and wait for nothing
//! that they remember. A clock that was set forward makes what is waited for come early, which mends itself.

use std::time::Instant;

use schemas::Timestamp;

/// A step of less than this is waited out.
const STEP_MIN_MS: u64 = 2_000;

/// The clock as it was looked at last.
#[derive(Debug)]
pub(super) struct Clock {
    wall: Timestamp,
    at: Instant,
}

impl Clock {
    /// As it is now.
    pub fn now() -> Self {
        Self { wall: Timestamp::now(), at: Instant::now() }
    }

    /// By how many milliseconds it was set back since the last look, if it was.
    pub fn look(&mut self) -> Option<u64> {
        let before = std::mem::replace(self, Self::now());
        let passed = u64::try_from(self.at.duration_since(before.at).as_millis()).unwrap_or(u64::MAX);
        set_back(before.wall, self.wall, passed)
    }
}

fn set_back(before: Timestamp, now: Timestamp, passed_ms: u64) -> Option<u64> {
    let by = before.plus_ms(passed_ms).since_ms(now);
    (by >= STEP_MIN_MS).then_some(by)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_step_back_counts() {
        const YEARS_MS: u64 = 5 * 365 * 86_400_000;
        for (name, now, passed, want) in [
            ("as time goes", 10_500, 500, None),
            ("slewed", 10_400, 500, None),
            ("a second back", 9_500, 500, None),
            ("an hour back", 10_500 - 3_600_000, 500, Some(3_600_000)),
            ("back behind 1970", 10_500 - YEARS_MS as i64, 500, Some(YEARS_MS)),
            ("forward", 10_500 + YEARS_MS as i64, 500, None),
            ("asleep: the wall clock went on alone", 10_000 + YEARS_MS as i64, 500, None),
        ] {
            assert_eq!(set_back(Timestamp(10_000), Timestamp(now), passed), want, "{name}");
        }
    }
}
