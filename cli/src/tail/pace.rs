//! `--rate N`: at most N lines in each second; what is left out is counted and said.

use std::time::Duration;

/// Lines are counted in windows of this.
const WINDOW: Duration = Duration::from_secs(1);

/// Lets so many through in each second.
#[derive(Debug)]
pub struct Pace {
    per_second: u64,
    begun: Duration,
    shown: u64,
    left_out: u64,
    total: u64,
}

impl Pace {
    /// So many lines a second.
    pub fn new(per_second: u64) -> Self {
        Self { per_second, begun: Duration::ZERO, shown: 0, left_out: 0, total: 0 }
    }

    /// May a line be shown, so long after the start? When a second is over in which lines were left out, their number.
    pub fn admit(&mut self, since: Duration) -> (bool, Option<u64>) {
        let told = self.turn(since);
        if self.shown < self.per_second {
            self.shown += 1;
            return (true, told);
        }
        self.left_out += 1;
        self.total += 1;
        (false, told)
    }

    /// Time passes, and perhaps nothing comes: the number left out in a second that is over.
    pub fn turn(&mut self, since: Duration) -> Option<u64> {
        if since.saturating_sub(self.begun) < WINDOW {
            return None;
        }
        self.begun = since;
        self.shown = 0;
        let left_out = std::mem::take(&mut self.left_out);
        (left_out > 0).then_some(left_out)
    }

    /// How many were left out in all.
    pub fn total(&self) -> u64 {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_a_second_and_the_rest_is_counted() {
        let mut pace = Pace::new(2);
        let ms = Duration::from_millis;
        for (at, want) in [
            (0, (true, None)),
            (10, (true, None)),
            (20, (false, None)),
            (900, (false, None)),
            (1_000, (true, Some(2))),
            (1_100, (true, None)),
            (1_200, (false, None)),
            (9_000, (true, Some(1))),
        ] {
            assert_eq!(pace.admit(ms(at)), want, "at {at} ms");
        }
        assert_eq!((pace.turn(ms(9_500)), pace.turn(ms(10_000)), pace.total()), (None, None, 3));
    }
}
