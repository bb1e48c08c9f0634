//! A thousand seeds of the simulator, and the planted bugs that it must catch.
//!
//! A failure prints its seed; `EDGEWIRE_SIM_SEED=<seed> cargo test --workspace --test sim one_seed -- --nocapture` runs it again,
//! with what happened before. `EDGEWIRE_SIM_SEEDS=<count>` runs more.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // a panic is how a test fails

use std::sync::atomic::{AtomicU64, Ordering};

use tests::sim::checks::Invariant::{self, *};
use tests::sim::planted::Planted;
use tests::sim::{Outcome, run, run_one, server};

/// Seeds of a plain run.
const SEEDS: u64 = 1_000;
/// Within so many seeds a planted bug must be found.
const PLANTED_SEEDS: u64 = 1_000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn describe(seed: u64, outcome: &Outcome) -> String {
    format!(
        "seed {seed}: {:?}\nrun it again: EDGEWIRE_SIM_SEED={seed} cargo test --workspace --test sim one_seed -- --nocapture",
        outcome.failure
    )
}

#[test]
fn every_seed_holds() {
    let count = number("EDGEWIRE_SIM_SEEDS").unwrap_or(SEEDS);
    let next = AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let failures: Vec<String> = std::thread::scope(|scope| {
        let work = || {
            let mut failures = Vec::new();
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= count {
                    return failures;
                }
                let outcome = run(seed, None);
                assert!(outcome.messages > 0, "seed {seed}: nothing was said");
                if outcome.failure.is_some() {
                    failures.push(describe(seed, &outcome));
                }
            }
        };
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        running.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert!(failures.is_empty(), "{} of {count} seeds:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn one_seed() {
    let Some(seed) = number("EDGEWIRE_SIM_SEED") else { return };
    let outcome = run(seed, None);
    for line in &outcome.trace {
        println!("{line}");
    }
    println!("{} messages, at rest after {} s", outcome.messages, outcome.rest_s);
    assert!(outcome.failure.is_none(), "{}", describe(seed, &outcome));
}

#[test]
fn a_seed_is_a_whole_run() {
    for seed in 0..3 {
        let (one, other) = (run(seed, None), run(seed, None));
        assert_eq!(one.trace, other.trace, "seed {seed}");
    }
}

/// The leaf loses part of the node's bucket in a crash while the runtime runs on: it is repaired, and nothing stops.
#[test]
fn a_leaf_that_loses_entries_is_repaired() {
    for seed in 0..6 {
        let outcome = run_one(seed, |w| {
            server::stop(w, 1);
            let local = schemas::subject::bucket_stream(schemas::subject::BUCKET_LOCAL);
            if let Some(stream) = w.servers[1].server.stream_mut(&local) {
                let until = stream.last_sequence() / 2;
                stream.purge(">", until);
            }
            server::start(w, 1);
        });
        assert!(outcome.failure.is_none(), "{}", describe(seed, &outcome));
    }
}

/// Some seed finds it, by what it breaks, and finds nothing wrong without it.
fn is_caught(planted: Planted, breaks: &[Invariant]) {
    let mut others = Vec::new();
    for seed in 0..PLANTED_SEEDS {
        let Some((broken, how)) = run(seed, Some(planted)).failure else { continue };
        if breaks.contains(&broken) && run(seed, None).failure.is_none() {
            println!("{planted:?} is found by seed {seed}, {broken:?}: {how}");
            return;
        }
        others.push(format!("seed {seed}, {broken:?}: {how}"));
    }
    panic!("{planted:?} was not found within {PLANTED_SEEDS} seeds:\n{}", others.join("\n"));
}

#[test]
fn ack_before_flush_is_caught() {
    is_caught(Planted::AckBeforeFlush, &[NothingLost, ArrivesOnceInOrder]);
}

#[test]
fn ack_before_effects_is_caught() {
    is_caught(Planted::AckBeforeEffects, &[StatusArrives, DeletionIsDone]);
}

#[test]
fn cursor_without_compare_and_set_is_caught() {
    is_caught(Planted::CursorWithoutCas, &[ArrivesOnceInOrder, CursorGoesUp]);
}

#[test]
fn missing_uid_check_is_caught() {
    is_caught(Planted::MissingUidCheck, &[StatusIsTheNodes]);
}

#[test]
fn stale_revision_is_caught() {
    is_caught(Planted::StaleRevision, &[VersionsGoUp]);
}

#[test]
fn lost_tombstone_is_caught() {
    is_caught(Planted::LostTombstone, &[DeletionIsDone]);
}

#[test]
fn missed_generation_is_caught() {
    is_caught(Planted::MissedGeneration, &[NothingStoppedUnasked]);
}

#[test]
fn absence_as_deletion_is_caught() {
    is_caught(Planted::AbsenceAsDeletion, &[NothingStoppedUnasked]);
}

#[test]
fn act_before_flush_is_caught() {
    is_caught(Planted::ActBeforeFlush, &[StoppedForGood, RunsOnce, AttemptsGoUp]);
}

#[test]
fn ack_of_failed_is_caught() {
    is_caught(Planted::AckOfFailed, &[StatusArrives, DeletionIsDone]);
}

#[test]
fn paid_without_ack_is_caught() {
    is_caught(Planted::PaidWithoutAck, &[NothingLost]);
}

#[test]
fn not_restored_is_caught() {
    is_caught(Planted::NotRestored, &[NothingLost, AttemptsGoUp]);
}

#[test]
fn clock_trusted_is_caught() {
    is_caught(Planted::ClockTrusted, &[NothingLost, DesiredIsActual]);
}

#[test]
fn clock_as_sequence_is_caught() {
    is_caught(Planted::ClockAsSequence, &[StatusArrives, DeletionIsDone]);
}

#[test]
fn store_ignored_is_caught() {
    is_caught(Planted::StoreIgnored, &[StatusArrives, DeletionIsDone]);
}

#[test]
fn conflict_taken_for_written_is_caught() {
    is_caught(Planted::ConflictTakenForWritten, &[StatusArrives, DeletionIsDone, DesiredIsActual]);
}

#[test]
fn write_without_cas_is_caught() {
    is_caught(Planted::WriteWithoutCas, &[EditsStay, DeletionIsDone]);
}

#[test]
fn watch_gap_is_caught() {
    is_caught(Planted::WatchGap, &[ComesToRest, DesiredIsActual, StatusArrives]);
}

#[test]
fn cursor_read_as_zero_is_caught() {
    is_caught(Planted::CursorReadAsZero, &[ArrivesOnceInOrder]);
}

#[test]
fn cursor_of_another_stream_is_caught() {
    is_caught(Planted::CursorOfAnotherStream, &[NothingLost]);
}

#[test]
fn trim_before_commit_is_caught() {
    is_caught(Planted::TrimBeforeCommit, &[NothingLost]);
}

#[test]
fn tombstone_without_uid_is_caught() {
    is_caught(Planted::TombstoneWithoutUid, &[NothingStoppedUnasked]);
}

#[test]
fn taken_before_written_is_caught() {
    is_caught(Planted::TakenBeforeWritten, &[NothingLostDown]);
}

#[test]
fn down_without_compare_and_set_is_caught() {
    is_caught(Planted::DownWithoutCas, &[ComesDownOnceInOrder]);
}

#[test]
fn taken_by_number_alone_is_caught() {
    is_caught(Planted::TakenByNumberAlone, &[NothingLostDown]);
}
