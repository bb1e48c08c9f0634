//! Is it the time that this machine thinks it is? Certificates and logins are good between two times, and events and logs
//! are ordered by it.

use std::path::Path;

use schemas::Timestamp;

use super::finding::{Check, Finding};
use crate::table::age;

const CLOCK: Check = Check("EW-CHECK-CLOCK", "clock");

/// Off by more than this is told.
const SKEW_WARN_MS: u64 = 5_000;
/// Off by more than this is taken for wrong: logins and certificates may not be good yet, or any more.
const SKEW_FAIL_MS: u64 = 300_000;
/// Nothing of ours was written before: a clock that says so was never set. The start of 2020.
const PLAUSIBLE_FROM: Timestamp = Timestamp(1_577_836_800_000);
const CURE: &str = "run a time service, such as `apt install chrony`, and check with `date -u`";

/// What is known of time.
#[derive(Debug, Clone, Copy)]
pub struct ClockFacts {
    /// This machine's clock.
    pub now: Timestamp,
    /// The hub's clock, and ours at the same moment.
    pub hub: Option<(Timestamp, Timestamp)>,
    /// Does a chip keep the time while the machine is off?
    pub keeps_time: bool,
}

/// Is there a chip that keeps the time?
pub fn keeps_time() -> bool {
    std::fs::read_dir("/sys/class/rtc").is_ok_and(|mut found| found.next().is_some())
        || Path::new("/dev/rtc0").exists()
}

/// Judges it.
pub fn judge(facts: ClockFacts) -> Finding {
    let ClockFacts { now, hub, keeps_time } = facts;
    if now < PLAUSIBLE_FROM {
        return CLOCK.fail(format!("the clock says {}: it was never set", now.rfc3339()), CURE);
    }
    let compared =
        hub.map(|(theirs, ours)| (theirs.since_ms(ours).max(ours.since_ms(theirs)), theirs > ours));
    let bound = format!("bound: {}", age(SKEW_WARN_MS));
    if let Some((skew, behind)) = compared.filter(|(skew, _)| *skew > SKEW_WARN_MS) {
        let way = if behind { "behind" } else { "ahead of" };
        let found = format!("{} {way} the hub's clock ({bound}); here it is {}", age(skew), now.rfc3339());
        return match skew > SKEW_FAIL_MS {
            true => CLOCK.fail(found, CURE),
            false => CLOCK.warn(found, CURE),
        };
    }
    let said = match compared {
        Some((skew, _)) if skew < 1_500 => format!("the hub's, within a second ({bound})"),
        Some((skew, _)) => format!("{} off the hub's ({bound})", age(skew)),
        None => format!("{}; not compared with a hub's", now.rfc3339()),
    };
    if keeps_time {
        return CLOCK.ok(said);
    }
    CLOCK.warn(
        format!("{said}; no clock chip (RTC): after a power cut the time is wrong until it is set"),
        format!("{CURE}; `apt install fake-hwclock` bridges a start without network"),
    )
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    #[test]
    fn a_clock_is_good_near_the_hubs() {
        let now = Timestamp::parse("2026-05-04T10:00:00Z").unwrap();
        let off = |ms: i64| Some((Timestamp(now.0 + ms), now));
        for (now, hub, keeps_time, level, words) in [
            (now, off(400), true, Level::Ok, "within a second (bound: 5s)"),
            (now, off(-3_000), true, Level::Ok, "3s off the hub's"),
            (now, off(6_000), true, Level::Warn, "6s behind the hub's"),
            (now, off(-60_000), true, Level::Warn, "60s ahead of the hub's"),
            (now, off(400_000), true, Level::Fail, "6m40s behind"),
            (now, off(-86_400_000), false, Level::Fail, "24h ahead of"),
            (now, None, true, Level::Ok, "2026-05-04T10:00:00Z; not compared"),
            (now, None, false, Level::Warn, "no clock chip"),
            (now, off(0), false, Level::Warn, "no clock chip"),
            (Timestamp(3_600_000), None, true, Level::Fail, "1970-01-01T01:00:00Z: it was never set"),
            (
                Timestamp(3_600_000),
                Some((Timestamp(3_600_000), Timestamp(3_600_000))),
                true,
                Level::Fail,
                "never set",
            ),
        ] {
            let finding = judge(ClockFacts { now, hub, keeps_time });
            assert_eq!(finding.level, level, "{finding:?}");
            assert!(finding.found.contains(words), "{finding:?}");
            assert_eq!(finding.cure.is_empty(), level == Level::Ok);
        }
    }
}
