//! Whether the node's clock and the hub's agree, and what is told when they do not. Pure.
//!
//! Nothing depends on it: credentials and certificates do not expire, what runs does not end by a time. But logs, events and
//! workloads carry wrong times, so a person should know. Each answer to a heartbeat brings the hub's time.

use schemas::Timestamp;

/// A difference up to this is none: an answer may have been on its way for seconds.
const TOLERANCE_MS: u64 = 30_000;

/// What was told of the clocks last.
#[derive(Debug, Default)]
pub struct Clocks {
    /// By how much the hub's was ahead.
    told_ms: Option<i64>,
}

/// What there is to tell.
#[derive(Debug, PartialEq, Eq)]
pub enum News {
    /// They differ, in these words.
    Differ(String),
    /// They agree again.
    Agree(String),
}

impl Clocks {
    /// The hub's clock and the node's said this at the same moment. Told is a difference that is new, or another one.
    pub fn seen(&mut self, hub: Timestamp, node: Timestamp) -> Option<News> {
        let ahead_ms = hub.0.saturating_sub(node.0);
        if ahead_ms.unsigned_abs() <= TOLERANCE_MS {
            let text = "the node's clock and the hub's agree again".to_owned();
            return self.told_ms.take().map(|_| News::Agree(text));
        }
        if self.told_ms.is_some_and(|told| told.saturating_sub(ahead_ms).unsigned_abs() <= TOLERANCE_MS) {
            return None;
        }
        self.told_ms = Some(ahead_ms);
        Some(News::Differ(format!(
            "EW-CLOCK-DIFFERS: this node's clock says {} and the hub's {}, {} apart; what runs here runs on, but times in logs \
             and events are not to be relied on: set the clock, or have NTP keep it",
            node.rfc3339(),
            hub.rfc3339(),
            words(ahead_ms.unsigned_abs())
        )))
    }
}

fn words(ms: u64) -> String {
    let s = ms / 1000;
    let (number, unit) = match s {
        0..120 => (s, "s"),
        120..7_200 => (s / 60, "min"),
        7_200..172_800 => (s / 3_600, "h"),
        _ => (s / 86_400, "days"),
    };
    format!("{number} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_told_once_and_its_end_too() {
        let hub = Timestamp::parse("2026-11-22T12:00:00Z").unwrap();
        let at = |text: &str| Timestamp::parse(text).unwrap();
        let mut clocks = Clocks::default();
        for (node, want) in [
            ("2026-11-22T12:00:20Z", None),
            ("1970-01-01T00:01:00Z", Some("20779 days apart")),
            ("1970-01-01T00:01:10Z", None),
            ("2031-11-21T12:00:00Z", Some("1825 days apart")),
            ("2026-11-22T12:00:00Z", Some("agree again")),
            ("2026-11-22T12:00:00Z", None),
            ("2026-11-22T11:59:00Z", Some("60 s apart")),
        ] {
            let told = clocks.seen(hub, at(node)).map(|(News::Differ(text) | News::Agree(text))| text);
            match (&told, want) {
                (None, None) => {}
                (Some(text), Some(want)) => assert!(text.contains(want), "{node}: {text}"),
                _ => panic!("{node}: {told:?}"),
            }
        }
        let far = Clocks::default().seen(Timestamp(i64::MAX), Timestamp(i64::MIN));
        assert!(matches!(far, Some(News::Differ(_))), "whatever a peer says");
    }
}
