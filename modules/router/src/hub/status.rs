//! A rule's status: what was counted since it was written last, and the last reasons why a message was not delivered. Pure.

use schemas::Timestamp;
use schemas::object::Object;

/// Reasons that are kept.
pub const ERRORS_MAX: usize = 10;
/// The longest reason.
pub const ERROR_CHARS_MAX: usize = 300;

/// Of one rule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Count {
    delivered: u64,
    failed: u64,
    errors: Vec<String>,
    /// Why the rule is not followed: stands first.
    broken: Option<String>,
    changed: bool,
    written_at: Timestamp,
    /// The write under way, and what it tells.
    writing: Option<(u64, u64, u64)>,
}

impl Count {
    /// As the object's status has it.
    pub fn of(object: &Object) -> Self {
        let errors = object.get(&["status", "errors"]).and_then(|errors| errors.as_array());
        let errors = errors.into_iter().flatten().filter_map(|error| error.as_str());
        // What an earlier life said of a broken rule is said anew, if it is.
        let (broken, errors): (Vec<&str>, Vec<&str>) = errors.partition(|error| error.starts_with(BROKEN));
        let errors = errors.into_iter().map(str::to_owned).collect();
        Self { errors, changed: !broken.is_empty(), ..Self::default() }
    }

    /// The rule is not followed, or is again.
    pub fn set_broken(&mut self, why: Option<&String>) {
        if self.broken.as_ref() != why {
            self.broken = why.cloned();
            self.changed = true;
        }
    }

    /// A message was delivered, or not.
    pub fn add(&mut self, outcome: Result<(), String>, now: Timestamp) {
        self.changed = true;
        match outcome {
            Ok(()) => self.delivered += 1,
            Err(why) => {
                self.failed += 1;
                self.errors.push(format!("{} {}", now.rfc3339(), clip(&why)));
                let over = self.errors.len().saturating_sub(ERRORS_MAX);
                self.errors.drain(..over);
            }
        }
    }

    /// Is there something to write, and is it time?
    pub fn is_due(&self, now: Timestamp, interval_ms: u64) -> bool {
        self.changed && self.writing.is_none() && now.since_ms(self.written_at) >= interval_ms
    }

    /// The object with what was counted in its status.
    pub fn write(&mut self, object: &Object, token: u64, now: Timestamp) -> Object {
        let before = |name: &str| object.get(&["status", name]).and_then(|value| value.as_u64()).unwrap_or(0);
        let mut next = object.clone();
        next.set(&["status", "successMessages"], before("successMessages").saturating_add(self.delivered));
        next.set(&["status", "failMessages"], before("failMessages").saturating_add(self.failed));
        let broken = self.broken.iter().map(|why| format!("{BROKEN}{}", clip(why)));
        let errors: Vec<String> = broken.chain(self.errors.iter().cloned()).take(ERRORS_MAX).collect();
        next.set(&["status", "errors"], errors);
        self.writing = Some((token, self.delivered, self.failed));
        self.changed = false;
        self.written_at = now;
        next
    }

    /// What became of a write.
    pub fn wrote(&mut self, token: u64, stands: bool) {
        let Some((_, delivered, failed)) = self.writing.take_if(|writing| writing.0 == token) else { return };
        if stands {
            self.delivered = self.delivered.saturating_sub(delivered);
            self.failed = self.failed.saturating_sub(failed);
        } else {
            self.changed = true;
        }
    }
}

/// How the reason begins why a rule is not followed.
const BROKEN: &str = "EW-RULE-INVALID: ";

fn clip(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(ERROR_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rule() -> Object {
        let mut rule = Object::new("rules.kubeedge.io/v1", "Rule", "default", "r");
        rule.set(&["status"], json!({"successMessages": 5, "failMessages": 1, "errors": ["old"]}));
        rule
    }

    #[test]
    fn what_was_counted_is_written_once() {
        let (mut rule, mut count) = (rule(), Count::of(&rule()));
        assert!(!count.is_due(Timestamp(9_000), 3_000), "nothing was counted");
        count.add(Ok(()), Timestamp(9_000));
        count.add(Err("x\ny".into()), Timestamp(9_000));
        assert!(count.is_due(Timestamp(9_000), 3_000));
        rule = count.write(&rule, 1, Timestamp(9_000));
        let status = rule.get(&["status"]).unwrap();
        assert_eq!(status["successMessages"], 6);
        assert_eq!(status["failMessages"], 2);
        assert_eq!(status["errors"], json!(["old", "1970-01-01T00:00:09Z x y"]));
        count.add(Ok(()), Timestamp(9_100));
        assert!(!count.is_due(Timestamp(99_000), 3_000), "one write at a time");
        count.wrote(1, true);
        assert!(!count.is_due(Timestamp(10_000), 3_000), "not so soon");
        rule = count.write(&rule, 2, Timestamp(12_000));
        assert_eq!(rule.get(&["status"]).unwrap()["successMessages"], 7);
        count.wrote(2, false);
        assert!(count.is_due(Timestamp(15_000), 3_000), "what another was faster than is written again");
    }

    #[test]
    fn reasons_are_bounded_and_a_broken_rule_says_so_first() {
        let mut count = Count::default();
        for n in 0..30 {
            count.add(Err(format!("{n}{}", "x".repeat(1_000))), Timestamp(0));
        }
        count.set_broken(Some(&"no endpoint".to_owned()));
        let written = count.write(&rule(), 1, Timestamp(0));
        let errors = written.get(&["status", "errors"]).unwrap().as_array().unwrap().clone();
        assert_eq!(errors.len(), ERRORS_MAX);
        assert_eq!(errors[0], "EW-RULE-INVALID: no endpoint");
        assert!(errors.iter().all(|error| error.as_str().unwrap().len() < 400));
        count.wrote(1, true);
        count.set_broken(None);
        let written = count.write(&written, 2, Timestamp(9_000));
        assert!(!written.get(&["status", "errors"]).unwrap().to_string().contains("INVALID"));
    }
}
