//! The table of results in docs/reliability.md, between its two markers: a run replaces the rows of its own pairs.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context;

use super::{Outcome, Pair};
use crate::cluster::programs;

const BEGIN: &str = "<!-- faults: begin, written by `make faults` -->";
const END: &str = "<!-- faults: end -->";
const HEAD: &str =
    "| fault | part | result | right again after | messages | date |\n|---|---|---|---:|---:|---|\n";

/// What is kept of each pair: result, recovery, messages, date.
pub type Rows = BTreeMap<String, [String; 4]>;

/// The document.
pub fn path() -> PathBuf {
    programs::root().join("docs/reliability.md")
}

/// Puts one pair's result into the document.
pub fn note(pair: Pair, outcome: &anyhow::Result<Outcome>, date: &str) -> anyhow::Result<()> {
    let path = path();
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut rows = read(&text)?;
    let [result, recovery, messages] = match outcome {
        Ok(outcome) => [
            "passed".to_owned(),
            format!("{:.1} s", outcome.recovery.as_secs_f64()),
            outcome.messages.to_string(),
        ],
        Err(_) => ["**failed**".to_owned(), "-".to_owned(), "-".to_owned()],
    };
    rows.insert(pair.to_string(), [result, recovery, messages, date.to_owned()]);
    std::fs::write(&path, write(&text, &rows)?).with_context(|| format!("cannot write {}", path.display()))
}

/// Before the table, the table, and behind it.
fn parts(text: &str) -> anyhow::Result<[&str; 3]> {
    let (before, rest) = text.split_once(BEGIN).with_context(|| format!("no line {BEGIN}"))?;
    let (table, behind) = rest.split_once(END).with_context(|| format!("no line {END}"))?;
    Ok([before, table, behind])
}

fn read(text: &str) -> anyhow::Result<Rows> {
    let [_, table, _] = parts(text)?;
    let rows = table.lines().filter_map(|line| {
        let cells: Vec<&str> = line.trim().trim_matches('|').split('|').map(str::trim).collect();
        let [fault, part, rest @ ..] = cells.as_slice() else { return None };
        let rest: [&str; 4] = rest.try_into().ok()?;
        let pair = format!("{fault}/{part}").parse::<Pair>().ok()?;
        Some((pair.to_string(), rest.map(str::to_owned)))
    });
    Ok(rows.collect())
}

fn write(text: &str, rows: &Rows) -> anyhow::Result<String> {
    let [before, _, behind] = parts(text)?;
    let mut table = HEAD.to_owned();
    for pair in Pair::all() {
        let not_run = || ["not run".to_owned(), "-".to_owned(), "-".to_owned(), "-".to_owned()];
        let [result, recovery, messages, date] = rows.get(&pair.to_string()).cloned().unwrap_or_else(not_run);
        let (fault, part) = (pair.fault.name(), pair.victim.name());
        table.push_str(&format!("| {fault} | {part} | {result} | {recovery} | {messages} | {date} |\n"));
    }
    Ok(format!("{before}{BEGIN}\n{table}{END}{behind}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_replaced_and_the_others_stay() {
        let empty = format!("# Title\n\n{BEGIN}\n{END}\nMore.\n");
        let row = |result: &str| [result, "1.0 s", "7", "2026-01-02"].map(str::to_owned);
        let mut rows = Rows::from([
            ("cut/link".to_owned(), row("passed")),
            ("kill/containerd".to_owned(), row("passed")),
        ]);
        let text = write(&empty, &rows).unwrap();
        assert!(text.starts_with("# Title\n") && text.ends_with("More.\n"));
        assert!(text.contains("| cut | link | passed | 1.0 s | 7 | 2026-01-02 |\n"));
        let read_again = read(&text).unwrap();
        assert_eq!(read_again.get("cut/link"), rows.get("cut/link"));
        assert_eq!(read_again.get("flap/link").unwrap()[0], "not run");
        rows = read_again;
        rows.insert("cut/link".to_owned(), row("**failed**"));
        let text = write(&text, &rows).unwrap();
        assert!(
            text.contains("| cut | link | **failed** |") && text.contains("| kill | containerd | passed |")
        );
    }
}
