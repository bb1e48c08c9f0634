//! Bytes to try a decoder with: valid samples, the same ones damaged, and rubbish. Seeded, so that a failure comes again.
//!
//! [`try_bytes`] calls a target with some thousand inputs (`FUZZ_SECONDS=60`: for so long instead). The target must come
//! back, whatever it is given; a panic names the input. Crates whose decoders are their own include this file in their
//! tests: it needs nothing but std.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// Inputs of a plain run.
const CASES: u64 = 2_000;
/// The longest input that chance makes; samples may be longer.
const RUBBISH_MAX_BYTES: u64 = 512;
/// How often a piece is repeated at most.
const REPEATS_MAX: u64 = 64;
/// How deep the towers of brackets are: far beyond what any decoder may follow.
const TOWER: usize = 50_000;

/// Splitmix64 (Steele, Lea, Flood 2014).
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % (end.max(1) as u64)).unwrap_or(0)
    }

    fn bytes(&mut self) -> Vec<u8> {
        let length = self.below(usize::try_from(RUBBISH_MAX_BYTES).unwrap_or(0));
        // Half of it plain text and marks: what a reader of text gets through to its inner parts.
        let plain = self.below(2) == 0;
        let marks = b"{}[]\":,. \n\t/:=%-+0123456789eEabcxyz_*>$~^()!\\";
        (0..length)
            .map(|_| {
                if plain {
                    marks.get(self.below(marks.len())).copied().unwrap_or(0)
                } else {
                    u8::try_from(self.below(256)).unwrap_or(0)
                }
            })
            .collect()
    }

    /// A range of that many bytes.
    fn range(&mut self, length: usize) -> (usize, usize) {
        let from = self.below(length + 1);
        (from, from + self.below(length - from + 1))
    }
}

/// Damages a sample: flips, cuts, repeats, or puts a piece of another one in.
fn damage(chance: &mut Chance, mut bytes: Vec<u8>, samples: &[Vec<u8>]) -> Vec<u8> {
    for _ in 0..=chance.below(4) {
        let (from, to) = chance.range(bytes.len());
        match chance.below(6) {
            0 => {
                if let Some(byte) = bytes.get_mut(from) {
                    *byte ^= 1 << chance.below(8);
                }
            }
            1 => {
                // Lengths, signs and markers stand at the ends of what a byte can be.
                let edge = [0x00, 0x7f, 0x80, 0xc1, 0xdf, 0xff];
                if let Some(byte) = bytes.get_mut(from) {
                    *byte = edge.get(chance.below(edge.len())).copied().unwrap_or(0);
                }
            }
            2 => bytes.truncate(from),
            3 => drop(bytes.drain(from..to)),
            4 => {
                let piece = bytes.get(from..to).unwrap_or_default().to_vec();
                let times = chance.below(usize::try_from(REPEATS_MAX).unwrap_or(0));
                bytes.splice(to..to, piece.repeat(if piece.len() > 1_000 { 1 } else { times }));
            }
            _ => {
                let other = samples.get(chance.below(samples.len())).cloned().unwrap_or_default();
                let (from_other, to_other) = chance.range(other.len());
                let piece = other.get(from_other..to_other).unwrap_or_default().to_vec();
                bytes.splice(from..to, piece);
            }
        }
    }
    bytes
}

/// Calls `target` with the samples as they are, with towers of brackets, and then with what chance makes.
///
/// # Panics
/// If the target does, with the input that made it.
#[allow(clippy::panic)] // that is how a test fails
pub fn try_bytes(name: &str, samples: &[Vec<u8>], target: impl Fn(&[u8])) {
    let call = |bytes: &[u8]| {
        if catch_unwind(AssertUnwindSafe(|| target(bytes))).is_err() {
            let shown: String =
                bytes.iter().take(2_000).flat_map(|byte| byte.escape_ascii().map(char::from)).collect();
            panic!("{name} panicked on {} bytes: b\"{shown}\"", bytes.len());
        }
    };
    samples.iter().for_each(|sample| call(sample));
    // Nested JSON, YAML and text; nested arrays, maps and a claimed length of 4 GiB in MessagePack; groups in protobuf.
    for tower in [&b"["[..], b"{\"a\":", b"- ", b"(", b"\x91", b"\x81\xa1a", b"\x0a\x7f", b"\x0b"] {
        call(&tower.repeat(TOWER));
    }
    for claim in [
        &b"\xdd\xff\xff\xff\xff"[..],
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
    ] {
        call(claim);
        for sample in samples {
            let half = sample.get(..sample.len() / 2).unwrap_or_default();
            call(&[half, claim].concat());
        }
    }
    let seconds = std::env::var("FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    let until = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let mut chance =
        Chance(name.bytes().fold(0xcbf2_9ce4, |seed, byte| (seed * 31 + u64::from(byte)) & 0xffff_ffff));
    let mut cases = 0u64;
    while until.map_or(cases < CASES, |until| Instant::now() < until) {
        cases += 1;
        let start = samples.get(chance.below(samples.len())).filter(|_| chance.below(4) > 0).cloned();
        let input = match start {
            Some(sample) => damage(&mut chance, sample, samples),
            None => chance.bytes(),
        };
        call(&input);
    }
}
