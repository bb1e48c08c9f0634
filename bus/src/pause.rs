//! Pauses that differ, so that what failed together is not tried again together.

use std::time::Duration;

/// `pause`, a quarter more or less.
pub fn jittered(pause: Duration) -> Duration {
    let mut byte = [0u8; 1];
    // Without randomness there is no jitter, which only costs politeness.
    let _ = getrandom::fill(&mut byte);
    let [byte] = byte;
    pause.mul_f64(0.75 + f64::from(byte) / 510.0)
}
