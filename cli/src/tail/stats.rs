//! `--stats`: what comes, counted by subject, told once a second instead of line by line.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::table::{Cell, Paint, table};

/// Subjects that are told apart; further ones count together.
const SUBJECTS_MAX: usize = 2_000;
/// Of those shown, the busiest.
const ROWS_MAX: usize = 20;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Count {
    messages: u64,
    size_bytes: u64,
    /// Since it was told last.
    new: u64,
    new_bytes: u64,
}

impl Count {
    fn add(&mut self, size: usize) {
        let size = u64::try_from(size).unwrap_or(u64::MAX);
        (self.messages, self.size_bytes) = (self.messages + 1, self.size_bytes.saturating_add(size));
        (self.new, self.new_bytes) = (self.new + 1, self.new_bytes.saturating_add(size));
    }
}

/// What came, by subject.
#[derive(Debug, Default)]
pub struct Stats {
    subjects: BTreeMap<String, Count>,
    others: Count,
    all: Count,
}

/// A number of bytes for people.
pub fn bytes(count: u64) -> String {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match units.iter().find(|(_, shift)| count >> shift > 0) {
        Some((unit, shift)) => {
            let tenths = (u128::from(count) * 10) >> shift;
            format!("{}.{} {unit}", tenths / 10, tenths % 10)
        }
        None => format!("{count} B"),
    }
}

impl Stats {
    /// One more message.
    pub fn add(&mut self, subject: &str, size: usize) {
        self.all.add(size);
        let room = self.subjects.len() < SUBJECTS_MAX;
        match self.subjects.get_mut(subject) {
            Some(count) => count.add(size),
            None if room => {
                self.subjects.entry(subject.to_owned()).or_default().add(size);
            }
            None => self.others.add(size),
        }
    }

    /// Begins the next second.
    pub fn turn(&mut self) {
        for count in self.subjects.values_mut().chain([&mut self.others, &mut self.all]) {
            (count.new, count.new_bytes) = (0, 0);
        }
    }

    /// The busiest, then the rest as one, then all.
    fn rows(&self) -> (Vec<(&str, Count)>, usize) {
        let mut rows: Vec<(&str, Count)> =
            self.subjects.iter().map(|(subject, count)| (subject.as_str(), *count)).collect();
        rows.sort_by(|a, b| (b.1.new, b.1.messages).cmp(&(a.1.new, a.1.messages)).then(a.0.cmp(b.0)));
        let more = rows.len().saturating_sub(ROWS_MAX);
        rows.truncate(ROWS_MAX);
        (rows, more)
    }

    /// For people.
    pub fn render(&self, time: &str, over: Duration, colour: bool) -> String {
        let rate = |count: u64| per_second(count, over);
        let cells = |subject: Cell, count: Count| {
            vec![
                subject,
                Cell::from(count.messages.to_string()),
                Cell::from(format!("{}/s", rate(count.new))),
                Cell::from(bytes(count.size_bytes)),
                Cell::from(format!("{}/s", bytes(rate(count.new_bytes)))),
            ]
        };
        let (rows, more) = self.rows();
        let mut table_rows: Vec<Vec<Cell>> =
            rows.iter().map(|(subject, count)| cells(Cell::new(subject, Paint::Name), *count)).collect();
        if more > 0 || self.others.messages > 0 {
            let shown = rows.iter().fold(Count::default(), |sum, (_, count)| sum.plus(*count));
            let at_least = if self.others.messages > 0 { " or more" } else { "" };
            let words = format!("{more}{at_least} other subjects");
            table_rows.push(cells(Cell::new(words, Paint::Dim), self.all.minus(shown)));
        }
        table_rows.push(cells(Cell::new("all", Paint::Dim), self.all));
        let columns = [time, "MESSAGES", "RATE", "BYTES", "BYTE RATE"];
        format!("{}\n", table(&columns, &table_rows, colour))
    }

    /// For a program.
    pub fn json(&self, time: &str, over: Duration) -> Value {
        let row = |count: Count| {
            json!({
                "messages": count.messages, "size_bytes": count.size_bytes,
                "messages_per_s": per_second(count.new, over),
                "bytes_per_s": per_second(count.new_bytes, over),
            })
        };
        let subjects: serde_json::Map<String, Value> =
            self.subjects.iter().map(|(subject, count)| (subject.clone(), row(*count))).collect();
        json!({"time": time, "all": row(self.all), "subjects": subjects, "others": row(self.others)})
    }
}

impl Count {
    fn plus(self, other: Self) -> Self {
        Self {
            messages: self.messages + other.messages,
            size_bytes: self.size_bytes.saturating_add(other.size_bytes),
            new: self.new + other.new,
            new_bytes: self.new_bytes.saturating_add(other.new_bytes),
        }
    }

    fn minus(self, other: Self) -> Self {
        Self {
            messages: self.messages.saturating_sub(other.messages),
            size_bytes: self.size_bytes.saturating_sub(other.size_bytes),
            new: self.new.saturating_sub(other.new),
            new_bytes: self.new_bytes.saturating_sub(other.new_bytes),
        }
    }
}

fn per_second(count: u64, over: Duration) -> u64 {
    let ms = u64::try_from(over.as_millis()).unwrap_or(u64::MAX).max(1);
    count.saturating_mul(1_000) / ms
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn each_subject_is_counted_and_its_rate_is_of_the_last_second() {
        let mut stats = Stats::default();
        for _ in 0..3 {
            stats.add("app.b", 1_000);
        }
        stats.add("app.a", 10);
        stats.turn();
        stats.add("app.a", 10);
        stats.add("app.a", 2_000);
        let want = "\
10:03:22   MESSAGES   RATE   BYTES     BYTE RATE
app.a      3          1/s    1.9 KiB   1005 B/s
app.b      3          0/s    2.9 KiB   0 B/s
all        6          1/s    4.9 KiB   1005 B/s

";
        assert_eq!(stats.render("10:03:22", 2 * SECOND, false), want);
        let json = stats.json("t", SECOND);
        assert_eq!(
            (&json["subjects"]["app.a"]["messages"], &json["all"]["messages_per_s"]),
            (&json!(3), &json!(2))
        );
    }

    #[test]
    fn ten_thousand_subjects_are_as_many_rows_as_a_screen_has() {
        let mut stats = Stats::default();
        for n in 0..10_000 {
            stats.add(&format!("app.{n}"), 1);
        }
        let shown = stats.render("t", SECOND, false);
        assert_eq!(shown.lines().count(), 1 + ROWS_MAX + 2 + 1, "{shown}");
        assert!(shown.contains("1980 or more other subjects   9980"), "{shown}");
        assert!(stats.subjects.len() <= SUBJECTS_MAX);
    }

    #[test]
    fn bytes_are_for_people() {
        for (count, want) in
            [(0, "0 B"), (1_023, "1023 B"), (1_536, "1.5 KiB"), (5 << 20, "5.0 MiB"), (3 << 30, "3.0 GiB")]
        {
            assert_eq!(bytes(count), want);
        }
    }
}
