//! One finding: what was looked at, how it is, and for whatever is not well the cure. And how findings are shown.
//!
//! A check has one stable code, whatever its result; docs/checking.md has a paragraph for each. What a remote side said
//! may stand in a finding: the table makes it safe for a terminal.

use serde_json::{Value, json};

use crate::table::{Cell, Paint, table};

/// The width that lines are wrapped to: what a terminal has at least, and a mail or ticket bears.
const LINE_MAX_CHARS: usize = 80;
/// Columns before the text, without the names of the checks: `RESULT` and two gaps.
const BESIDE_CHARS: usize = 12;

/// How it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// As it has to be.
    Ok,
    /// A node works, or may work; somebody should look.
    Warn,
    /// A node does not work so.
    Fail,
}

impl Level {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }

    fn paint(self) -> Paint {
        match self {
            Self::Ok => Paint::Good,
            Self::Warn => Paint::Warn,
            Self::Fail => Paint::Bad,
        }
    }
}

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Stable, `EW-CHECK-…`.
    pub code: &'static str,
    /// What was looked at, in a word or two.
    pub check: &'static str,
    /// How it is.
    pub level: Level,
    /// What was found.
    pub found: String,
    /// What to do; empty when all is well.
    pub cure: String,
}

/// A check: its code and its name.
#[derive(Debug, Clone, Copy)]
pub struct Check(pub &'static str, pub &'static str);

impl Check {
    /// All is well.
    pub fn ok(self, found: impl Into<String>) -> Finding {
        self.finding(Level::Ok, found.into(), String::new())
    }

    /// Somebody should look.
    pub fn warn(self, found: impl Into<String>, cure: impl Into<String>) -> Finding {
        self.finding(Level::Warn, found.into(), cure.into())
    }

    /// A node does not work so.
    pub fn fail(self, found: impl Into<String>, cure: impl Into<String>) -> Finding {
        self.finding(Level::Fail, found.into(), cure.into())
    }

    fn finding(self, level: Level, found: String, cure: String) -> Finding {
        Finding { code: self.0, check: self.1, level, found, cure }
    }
}

/// How many of `findings` are so.
pub fn count(findings: &[Finding], level: Level) -> usize {
    findings.iter().filter(|finding| finding.level == level).count()
}

/// For programs.
pub fn as_json(findings: &[Finding]) -> Value {
    let one = |finding: &Finding| {
        let cure = (!finding.cure.is_empty()).then_some(&finding.cure);
        json!({
            "code": finding.code, "check": finding.check, "result": finding.level.word(),
            "found": finding.found, "cure": cure,
        })
    };
    findings.iter().map(one).collect()
}

/// For people: a row for each, its cure below it, no line longer than 80 characters if words allow it.
pub fn render(findings: &[Finding], colour: bool) -> String {
    let widest = findings.iter().map(|finding| finding.check.chars().count()).max().unwrap_or_default();
    let width = LINE_MAX_CHARS.saturating_sub(widest.max("CHECK".len()) + BESIDE_CHARS).max(20);
    let mut rows = Vec::new();
    for finding in findings {
        let mut lines = wrap(&finding.found, width, "").into_iter();
        let level = finding.level;
        let first = Cell::from(lines.next().unwrap_or_default());
        rows.push(vec![finding.check.into(), Cell::new(level.word(), level.paint()), first]);
        rows.extend(lines.map(|line| vec!["".into(), "".into(), line.into()]));
        if !finding.cure.is_empty() {
            let cure = format!("cure: {} ({})", finding.cure, finding.code);
            let lines = wrap(&cure, width, "  ").into_iter();
            rows.extend(lines.map(|line| vec!["".into(), "".into(), Cell::new(line, Paint::Name)]));
        }
    }
    table(&["CHECK", "RESULT", "FOUND"], &rows, colour)
}

/// `text` in lines of at most `width` characters, broken at spaces; lines after the first begin with `indent`.
fn wrap(text: &str, width: usize, indent: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        let begun = !line.trim().is_empty();
        if begun && line.chars().count() + 1 + word.chars().count() > width {
            lines.push(std::mem::replace(&mut line, indent.to_owned()));
        } else if begun {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines.push(line);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_a_row_with_its_cure_below() {
        let clock = Check("EW-CHECK-CLOCK", "clock");
        let findings = [
            Check("EW-CHECK-CGROUP", "cgroup").ok("version 2"),
            clock.fail(
                "the clock is 4 h behind the hub's, and this is a text that has to be broken into two",
                "set it",
            ),
        ];
        let want = "\
CHECK    RESULT   FOUND
cgroup   ok       version 2
clock    fail     the clock is 4 h behind the hub's, and this is a text that has
                  to be broken into two
                  cure: set it (EW-CHECK-CLOCK)
";
        assert_eq!(render(&findings, false), want);
        assert_eq!((count(&findings, Level::Fail), count(&findings, Level::Warn)), (1, 0));
        assert_eq!(
            as_json(&findings).to_string(),
            r#"[{"code":"EW-CHECK-CGROUP","check":"cgroup","result":"ok","found":"version 2","cure":null},{"code":"EW-CHECK-CLOCK","check":"clock","result":"fail","found":"the clock is 4 h behind the hub's, and this is a text that has to be broken into two","cure":"set it"}]"#
        );
    }

    #[test]
    fn lines_break_at_spaces_only() {
        assert_eq!(wrap("aa bb cc", 5, "  "), ["aa bb", "  cc"]);
        assert_eq!(wrap("aaaaaaaaaa b", 5, ""), ["aaaaaaaaaa", "b"]);
        assert_eq!(wrap("", 5, ""), [""]);
        let long = wrap(&"word ".repeat(200), 40, "  ");
        assert!(long.iter().all(|line| line.chars().count() <= 40), "{long:?}");
    }
}
