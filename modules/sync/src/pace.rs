//! Pace: how many bytes one step across the link may carry. Pure.
//!
//! At most [`WINDOW_MS`] of the throughput measured lately, from [`STEP_MIN_BYTES`] up: on a slow link a step that is too
//! large queues behind itself until the ping goes unanswered and the link is dropped.

/// A step should take no longer.
pub const WINDOW_MS: u64 = 2_000;
/// A step is never smaller.
pub const STEP_MIN_BYTES: usize = 16 * 1024;
/// A step is never larger.
pub const STEP_MAX_BYTES: usize = 1024 * 1024;

/// The pace of one direction.
#[derive(Debug, Default, Clone)]
pub struct Pace {
    bytes_per_s: Option<f64>,
}

impl Pace {
    /// A step of `bytes` took `took_ms` (0: not known).
    pub fn measured(&mut self, bytes: usize, took_ms: u64) {
        if bytes < STEP_MIN_BYTES / 8 || took_ms == 0 {
            return; // says more of the round trip than of the throughput, or nothing
        }
        #[allow(clippy::cast_precision_loss)] // far below 2^52
        let now = bytes as f64 * 1000.0 / took_ms.max(1) as f64;
        self.bytes_per_s = Some(match self.bytes_per_s {
            // Down at once, up by halves: a link that became slow must not be flooded.
            Some(before) if now > before => f64::midpoint(before, now),
            _ => now,
        });
    }

    /// A step was lost: begin small again.
    pub fn lost(&mut self) {
        self.bytes_per_s = None;
    }

    /// How many bytes the next step may carry.
    pub fn step_bytes(&self) -> usize {
        let Some(rate) = self.bytes_per_s else { return STEP_MIN_BYTES };
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let step = (rate * WINDOW_MS as f64 / 1000.0) as usize;
        step.clamp(STEP_MIN_BYTES, STEP_MAX_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_follow_the_link() {
        let mut pace = Pace::default();
        assert_eq!(pace.step_bytes(), STEP_MIN_BYTES);
        pace.measured(16 * 1024, 2);
        assert_eq!(pace.step_bytes(), STEP_MAX_BYTES, "a fast link");
        pace.measured(16 * 1024, 2_048); // 64 kbit/s
        assert_eq!(pace.step_bytes(), STEP_MIN_BYTES, "down at once");
        pace.measured(100, 1);
        assert_eq!(pace.step_bytes(), STEP_MIN_BYTES, "small steps say nothing");
        pace.measured(100_000, 1_000);
        assert!(pace.step_bytes() > 100_000 && pace.step_bytes() < 200_000, "up by halves");
        pace.lost();
        assert_eq!(pace.step_bytes(), STEP_MIN_BYTES);
    }
}
