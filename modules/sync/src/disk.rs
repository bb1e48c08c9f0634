//! The disk of a node that fills up: what gives way first, and what never does. Pure.
//!
//! Telemetry goes first, then `up.` is refused, so that producers know; commands, pods' state, reports and events go on. For
//! the very end a reserve is kept, which is let go when nothing else is left. All of it comes back by itself when there is
//! room again. A server that met a full disk leaves the stream it was writing to broken until it is started anew
//! (measured: nats-server 2.15.1, "critical write error"), so it is, as soon as there is room.

use schemas::Timestamp;

/// The disk is looked at so often.
pub const LOOK_INTERVAL_MS: u64 = 2_000;
/// A server is not started anew more often for a failed write.
const RESTART_INTERVAL_MS: u64 = 30_000;
/// So much room is enough to start a server anew.
const ROOM_MIN_BYTES: u64 = 16 * MIB;
/// The reserve, at most and as a part of the disk.
const RESERVE_MAX_BYTES: u64 = 64 * MIB;
const RESERVE_PERCENT: u64 = 2;
/// What a level asks for becomes half as much again before it is left.
const LEAVE_PERCENT: u64 = 150;
const MIB: u64 = 1024 * 1024;
const GIB: u64 = 1024 * MIB;

/// How full it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// There is room.
    #[default]
    Enough,
    /// Telemetry goes.
    Shed,
    /// Producers are refused.
    Refuse,
    /// The reserve is let go.
    Last,
}

impl Level {
    const FULL: [Level; 3] = [Level::Shed, Level::Refuse, Level::Last];

    /// Below so much free space: a part of the disk, but of a large one no more than that.
    fn threshold_bytes(self, size_bytes: u64) -> u64 {
        let (percent, most) = match self {
            Level::Enough => return 0,
            Level::Shed => (10, 10 * GIB),
            Level::Refuse => (5, 5 * GIB),
            Level::Last => (2, 2 * GIB),
        };
        (size_bytes / 100 * percent).min(most)
    }

    /// The level of a disk that was at `self`: entered at its threshold, left with room to spare.
    fn next(self, facts: &DiskFacts) -> Level {
        let holds = |level: &Level| {
            let threshold = level.threshold_bytes(facts.size_bytes);
            let threshold = if *level <= self { threshold / 100 * LEAVE_PERCENT } else { threshold };
            facts.free_bytes < threshold
        };
        Level::FULL.into_iter().rev().find(holds).unwrap_or(Level::Enough)
    }
}

/// What is seen of the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskFacts {
    /// Size of the file system that holds the node's data.
    pub size_bytes: u64,
    /// What is free for everybody.
    pub free_bytes: u64,
    /// The node's server said, since it was looked at last, that it could not write.
    pub write_failed: bool,
}

impl DiskFacts {
    /// Is it so full that the node should get no more pods?
    pub fn is_pressed(&self) -> bool {
        Level::Enough.next(self) > Level::Enough
    }

    /// How large the reserve is on such a disk.
    pub fn reserve_bytes(&self) -> u64 {
        RESERVE_MAX_BYTES.min(self.size_bytes / 100 * RESERVE_PERCENT)
    }
}

/// How the node's streams and its reserve are to be kept, until it is said otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct House {
    /// Telemetry that is there goes, and what comes has a corner only.
    pub shed: bool,
    /// `up.` gets no more room than it has.
    pub refuse: bool,
    /// The reserve's size; `None`: it is let go. `Some(0)`: as it is.
    pub reserve_bytes: Option<u64>,
}

/// What comes of a look.
#[derive(Debug, PartialEq)]
pub struct Verdict {
    /// Keep it so.
    pub house: House,
    /// Start the server anew.
    pub restart: bool,
    /// Tell it: is it bad, reason, text.
    pub tell: Option<(bool, &'static str, String)>,
}

/// What is known of the disk.
#[derive(Debug, Default)]
pub struct Disk {
    level: Level,
    looked_at: Option<Timestamp>,
    failed: bool,
    restarted_at: Option<Timestamp>,
}

impl Disk {
    /// Is it so full that producers are refused?
    pub fn refuses(&self) -> bool {
        self.level >= Level::Refuse
    }

    /// Is it time for a look?
    pub fn due(&mut self, now: Timestamp) -> bool {
        let due = self.looked_at.is_none_or(|at| now.since_ms(at) >= LOOK_INTERVAL_MS);
        if due {
            self.looked_at = Some(now);
        }
        due
    }

    /// What a look asks for.
    pub fn judge(&mut self, facts: &DiskFacts, now: Timestamp) -> Verdict {
        let before = self.level;
        self.level = before.next(facts);
        self.failed |= facts.write_failed;
        let rested = self.restarted_at.is_none_or(|at| now.since_ms(at) >= RESTART_INTERVAL_MS);
        let restart = self.failed && rested && facts.free_bytes >= ROOM_MIN_BYTES;
        if restart {
            self.failed = false;
            self.restarted_at = Some(now);
        }
        let house = House {
            shed: self.level >= Level::Shed,
            refuse: self.level >= Level::Refuse,
            reserve_bytes: match self.level {
                Level::Enough => Some(facts.reserve_bytes()),
                Level::Shed | Level::Refuse => Some(0),
                Level::Last => None,
            },
        };
        let tell = (before != self.level).then(|| told(self.level, facts));
        Verdict { house, restart, tell }
    }
}

fn told(level: Level, facts: &DiskFacts) -> (bool, &'static str, String) {
    let room = format!("{} of {} MiB are free", facts.free_bytes / MIB, facts.size_bytes / MIB);
    match level {
        Level::Enough => {
            (false, "DiskFreed", format!("the disk has room again: {room}; everything is taken"))
        }
        Level::Shed => (true, "DiskNearlyFull", format!("{room}: telemetry (bulk.) is dropped, counted")),
        Level::Refuse => {
            (true, "DiskFull", format!("{room}: telemetry is dropped, and up. is refused; free some space"))
        }
        Level::Last => (
            true,
            "DiskFull",
            format!("{room}: the last reserve is used; pods and commands go on; free some space now"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(size_mib: u64, free_mib: u64) -> DiskFacts {
        DiskFacts { size_bytes: size_mib * MIB, free_bytes: free_mib * MIB, write_failed: false }
    }

    #[test]
    fn levels_are_entered_at_their_threshold_and_left_with_room_to_spare() {
        for (before, size, free, want) in [
            (Level::Enough, 1_000, 101, Level::Enough),
            (Level::Enough, 1_000, 99, Level::Shed),
            (Level::Enough, 1_000, 49, Level::Refuse),
            (Level::Enough, 1_000, 0, Level::Last),
            (Level::Shed, 1_000, 120, Level::Shed),
            (Level::Shed, 1_000, 151, Level::Enough),
            (Level::Refuse, 1_000, 60, Level::Refuse),
            (Level::Refuse, 1_000, 80, Level::Shed),
            (Level::Last, 1_000, 25, Level::Last),
            (Level::Last, 1_000, 35, Level::Refuse),
            (Level::Last, 1_000, 500, Level::Enough),
            // Ten of a hundred would be much of a large disk.
            (Level::Enough, 1_000_000, 11_000, Level::Enough),
            (Level::Enough, 1_000_000, 10_000, Level::Shed),
            (Level::Enough, 0, 0, Level::Enough),
        ] {
            assert_eq!(before.next(&facts(size, free)), want, "{before:?}, {free} of {size} MiB");
        }
    }

    #[test]
    fn telemetry_gives_way_first_and_the_reserve_last() {
        let mut disk = Disk::default();
        let full = facts(1_000, 500).reserve_bytes();
        let now = Timestamp(0);
        for (free, shed, refuse, reserve_bytes, reason) in [
            (500, false, false, Some(full), None),
            (80, true, false, Some(0), Some("DiskNearlyFull")),
            (79, true, false, Some(0), None),
            (40, true, true, Some(0), Some("DiskFull")),
            (5, true, true, None, Some("DiskFull")),
            (500, false, false, Some(full), Some("DiskFreed")),
        ] {
            let verdict = disk.judge(&facts(1_000, free), now);
            assert_eq!(verdict.tell.map(|tell| tell.1), reason, "{free} MiB free");
            assert_eq!(verdict.house, House { shed, refuse, reserve_bytes }, "{free} MiB free");
        }
        assert_eq!(facts(1_000_000, 1).reserve_bytes(), RESERVE_MAX_BYTES);
    }

    #[test]
    fn a_server_that_could_not_write_is_started_anew_once_there_is_room() {
        let mut disk = Disk::default();
        let failed = DiskFacts { write_failed: true, ..facts(1_000, 0) };
        assert!(!disk.judge(&failed, Timestamp(0)).restart, "no room yet");
        assert!(disk.judge(&facts(1_000, 20), Timestamp(2_000)).restart);
        assert!(!disk.judge(&facts(1_000, 20), Timestamp(4_000)).restart, "once");
        let again = DiskFacts { write_failed: true, ..facts(1_000, 20) };
        assert!(!disk.judge(&again, Timestamp(6_000)).restart, "not at once again");
        assert!(disk.judge(&facts(1_000, 20), Timestamp(40_000)).restart);
    }

    #[test]
    fn a_look_is_due_now_and_then() {
        let mut disk = Disk::default();
        let due = [0, 1, LOOK_INTERVAL_MS, LOOK_INTERVAL_MS + 1]
            .map(|at| disk.due(Timestamp(i64::try_from(at).unwrap())));
        assert_eq!(due, [true, false, true, false]);
    }
}
