//! Who did what, and who tried: the records of `edgewire audit`, and the pace at which refusals are recorded.
//!
//! Source of the words: Kubernetes' audit events (user, verb, object, code). What was done and what was refused stand in
//! two streams, so that whoever only knocks cannot push what was done out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Timestamp;

/// The same refusal is recorded once in so long; what comes meanwhile is counted.
pub const REFUSAL_INTERVAL_MS: u64 = 600_000;
/// Different refusals that are told apart at once; further ones count as one, `others`.
pub const REFUSALS_MAX: usize = 256;
/// Longest text in a record.
pub const TEXT_MAX_BYTES: usize = 512;

/// One thing that was done, or refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRecord {
    /// Unique.
    pub id: String,
    /// When, by the clock of `node`.
    pub at: Timestamp,
    /// `hub`, or the node where it happened.
    pub node: String,
    /// Who; empty when nobody said so.
    pub user: String,
    /// What, as Kubernetes calls it (`create`, `update`, `patch`, `delete`, `exec`), or `join`, `token.create`,
    /// `token.delete`, `node.revoke`, `node.rotate`, `ca.roll`, `ca.finish`, `certificate.renew`, `bus` (a login for the bus),
    /// `publish`, `subscribe`, `connect`.
    pub verb: String,
    /// To what: `pods/demo/sensor`, `nodes/edge-a`, a subject.
    pub object: String,
    /// HTTP status, or what fits.
    pub code: u16,
    /// How often, since it was recorded last.
    pub count: u64,
    /// More, for people.
    pub detail: String,
}

impl AuditRecord {
    /// Was it refused?
    pub fn refused(&self) -> bool {
        self.code >= 400
    }
}

/// `text` without what does not belong in a record: bounded, and in one line.
pub fn text(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars().map(|c| if c.is_control() { ' ' } else { c }) {
        if out.len() + c.len_utf8() > TEXT_MAX_BYTES {
            break;
        }
        out.push(c);
    }
    out
}

/// Thins refusals out: the first of a kind at once, then one in [`REFUSAL_INTERVAL_MS`] with how many there were.
#[derive(Debug, Default)]
pub struct Thinned {
    kinds: BTreeMap<String, Kind>,
}

#[derive(Debug)]
struct Kind {
    told_at: Timestamp,
    untold: u64,
    last: AuditRecord,
}

impl Thinned {
    /// One more refusal of this kind: what is to be recorded now, if anything.
    pub fn add(&mut self, kind: &str, record: AuditRecord, now: Timestamp) -> Option<AuditRecord> {
        let full = self.kinds.len() >= REFUSALS_MAX && !self.kinds.contains_key(kind);
        let kind = if full { "others" } else { kind };
        match self.kinds.get_mut(kind) {
            Some(known) => {
                known.untold += record.count;
                known.last = record;
                None
            }
            None => {
                let known = Kind { told_at: now, untold: 0, last: record.clone() };
                self.kinds.insert(kind.to_owned(), known);
                Some(record)
            }
        }
    }

    /// What has been counted for long enough. Kinds that are quiet are forgotten.
    pub fn due(&mut self, now: Timestamp) -> Vec<AuditRecord> {
        let mut due = Vec::new();
        self.kinds.retain(|_, kind| {
            if now.since_ms(kind.told_at) < REFUSAL_INTERVAL_MS {
                return true;
            }
            if kind.untold == 0 {
                return false;
            }
            due.push(AuditRecord { count: kind.untold, ..kind.last.clone() });
            kind.told_at = now;
            kind.untold = 0;
            true
        });
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(object: &str) -> AuditRecord {
        AuditRecord {
            id: "i".into(),
            at: Timestamp(0),
            node: "hub".into(),
            user: "u".into(),
            verb: "publish".into(),
            object: object.into(),
            code: 403,
            count: 1,
            detail: String::new(),
        }
    }

    #[test]
    fn a_flood_is_one_record_now_and_one_with_its_number_later() {
        let mut thinned = Thinned::default();
        assert!(thinned.add("u", record("a"), Timestamp(0)).is_some());
        for n in 0..5_000 {
            assert_eq!(thinned.add("u", record("b"), Timestamp(n)), None);
        }
        assert_eq!(thinned.due(Timestamp(REFUSAL_INTERVAL_MS as i64 - 1)), []);
        let due = thinned.due(Timestamp(REFUSAL_INTERVAL_MS as i64));
        assert_eq!(due.iter().map(|r| (r.count, r.object.as_str())).collect::<Vec<_>>(), [(5_000, "b")]);
        assert_eq!(thinned.due(Timestamp(3 * REFUSAL_INTERVAL_MS as i64)), []);
        assert!(thinned.add("u", record("c"), Timestamp(0)).is_some(), "a quiet kind is told at once again");
    }

    #[test]
    fn however_many_kinds_there_are_memory_is_bounded_and_all_are_counted() {
        let mut thinned = Thinned::default();
        let told = (0..10_000).filter_map(|n| thinned.add(&n.to_string(), record("x"), Timestamp(0))).count();
        assert_eq!(told, REFUSALS_MAX + 1);
        let due = thinned.due(Timestamp(REFUSAL_INTERVAL_MS as i64));
        assert_eq!(due.iter().map(|r| r.count).sum::<u64>() as usize + told, 10_000);
    }

    #[test]
    fn a_text_is_one_bounded_line() {
        assert_eq!(text("a\nb\u{1b}[0m"), "a b [0m");
        assert!(text(&"ü".repeat(10_000)).len() <= TEXT_MAX_BYTES);
    }
}
