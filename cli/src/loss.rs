//! `edgewire loss`: of all that nodes acknowledged, what the hub has, what is missing, what came twice, what was dropped.
//!
//! The hub's module `ledger` counts; this asks it and shows. With `--check` a script learns it from the exit code.

use std::time::Duration;

use bus::connection::Bus;
use bus::module::Account;
use clap::Args;
use schemas::loss::{LossQuery, LossReport, LossRow};
use schemas::subject::{self, Lane};
use serde_json::{Value, json};

use crate::ask::{SAME_VERSION, ask_hub};
use crate::failure::{Failure, Outcome};
use crate::place::{HubArgs, Place, PlaceArgs};
use crate::screen::Screen;
use crate::table::{Cell, Paint, table};

/// How long the hub may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Arguments of `edgewire loss`.
#[derive(Debug, Args)]
pub struct LossArgs {
    /// Only this node
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Exit with 1 if anything is missing or came twice
    #[arg(long)]
    check: bool,
    /// A JSON object, with the sequences that are missing, came twice or were dropped
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    hub: HubArgs,
}

/// Runs it.
pub async fn run(args: LossArgs, screen: &mut Screen) -> Outcome<()> {
    let place = Place::find(&PlaceArgs { edge: None, hub: args.hub }).await?;
    let bus = place.connect(Account::Control).await?;
    let report = whole(&bus, args.node).await?;
    if args.json {
        screen.json(&as_json(&report)).await?;
    } else if report.rows.is_empty() {
        eprintln!("edgewire: no node has sent anything since {}", report.since.rfc3339());
    } else {
        screen.print(&render(&report, screen.colour)).await?;
    }
    let sum = |of: fn(&LossRow) -> u64| report.rows.iter().map(of).sum::<u64>();
    let (gaps, duplicates) = (sum(|row| row.gaps), sum(|row| row.duplicates));
    if args.check && gaps + duplicates > 0 {
        let cause = format!("{gaps} messages are missing and {duplicates} came twice");
        return Err(Failure::new("EW-LOSS-FOUND", cause, "`edgewire loss --json` names their sequences"));
    }
    Ok(())
}

/// All pages of the report.
async fn whole(bus: &Bus, node: Option<String>) -> Outcome<LossReport> {
    let mut query = LossQuery { node, after: None };
    let mut report = page(bus, &query).await?;
    while report.more {
        query.after = report.rows.last().map(|row| (row.node.clone(), row.stream.clone()));
        let next = page(bus, &query).await?;
        report.rows.extend(next.rows);
        report.more = next.more;
    }
    Ok(report)
}

async fn page(bus: &Bus, query: &LossQuery) -> Outcome<LossReport> {
    let to = subject::local("ledger", "loss");
    ask_hub(bus, &to, query, ANSWER_TIMEOUT, SAME_VERSION).await
}

fn as_json(report: &LossReport) -> Value {
    let row = |row: &LossRow| {
        let range = |first: u64, last: u64| json!({"first": first, "last": last});
        let dropped: Vec<Value> = row
            .dropped_ranges
            .iter()
            .map(|of| json!({"first": of.first, "last": of.last, "reason": of.reason.as_str()}))
            .collect();
        json!({
            "node": row.node, "stream": row.stream, "first": row.first, "last": row.last,
            "received": row.received, "gaps": row.gaps,
            "gapRanges": row.gap_ranges.iter().map(|(first, last)| range(*first, *last)).collect::<Vec<_>>(),
            "duplicates": row.duplicates, "duplicateSequences": row.duplicate_sequences,
            "dropped": row.dropped, "droppedRanges": dropped,
            "unnumbered": row.unnumbered, "replaced": row.replaced, "at": row.at.rfc3339(),
        })
    };
    json!({
        "since": report.since.rfc3339(),
        "streams": report.rows.iter().map(row).collect::<Vec<_>>(),
        "shedAtHub": report.shed,
    })
}

fn render(report: &LossReport, colour: bool) -> String {
    let wrong = |count: u64| match count {
        0 => Cell::new("0", Paint::Good),
        _ => Cell::new(count.to_string(), Paint::Bad),
    };
    let row = |row: &LossRow| {
        let lanes: Vec<String> =
            row.received.iter().map(|(lane, count)| format!("{} {count}", lane.as_str())).collect();
        let dropped: Vec<String> =
            row.dropped.iter().map(|(reason, count)| format!("{count} {}", reason.as_str())).collect();
        let dropped = match dropped.is_empty() {
            true => Cell::from("0"),
            false => Cell::new(dropped.join(", "), Paint::Warn),
        };
        vec![
            Cell::new(&row.node, Paint::Name),
            Cell::from(&row.stream),
            Cell::from(if lanes.is_empty() { "-".to_owned() } else { lanes.join(", ") }),
            Cell::from(row.first.to_string()),
            Cell::from(row.last.to_string()),
            wrong(row.gaps),
            wrong(row.duplicates),
            dropped,
            Cell::new(note(row), Paint::Dim),
        ]
    };
    let rows: Vec<Vec<Cell>> = report.rows.iter().map(row).collect();
    let columns = ["NODE", "STREAM", "RECEIVED", "FIRST", "LAST", "GAPS", "DUPLICATES", "DROPPED", "NOTE"];
    let mut out = table(&columns, &rows, colour);
    out.push_str(&format!("counted since {}\n", report.since.rfc3339()));
    for (lane, count) in &report.shed {
        let lane = match lane {
            Lane::Bulk => "of telemetry",
            _ => "workload messages",
        };
        out.push_str(&format!(
            "the hub let go of {count} {lane} that it had, the oldest, to keep FROM in its bound\n"
        ));
    }
    out
}

fn note(row: &LossRow) -> String {
    let mut notes = Vec::new();
    if row.replaced > 0 {
        notes.push(format!("stream made anew: {}", row.replaced));
    }
    if row.unnumbered > 0 {
        notes.push(format!("{} without a number: an older node", row.unnumbered));
    }
    notes.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::Timestamp;
    use schemas::loss::Reason;

    #[test]
    fn each_stream_has_a_line() {
        let at = Timestamp::parse("2026-05-04T10:00:00Z").unwrap();
        let whole = LossRow {
            node: "edge-a".into(),
            stream: "OUTBOX".into(),
            first: 1,
            last: 43,
            received: [(Lane::State, 30), (Lane::Events, 13)].into(),
            gaps: 0,
            gap_ranges: Vec::new(),
            duplicates: 0,
            duplicate_sequences: Vec::new(),
            dropped: Default::default(),
            dropped_ranges: Vec::new(),
            unnumbered: 0,
            replaced: 0,
            at,
        };
        let holed = LossRow {
            stream: "BULK".into(),
            received: [(Lane::Bulk, 40)].into(),
            gaps: 2,
            gap_ranges: vec![(7, 8)],
            duplicates: 1,
            dropped: [(Reason::Overflow, 5)].into(),
            replaced: 1,
            ..whole.clone()
        };
        let shed = [(Lane::Bulk, 9)].into();
        let report = LossReport { since: at, rows: vec![holed, whole], more: false, shed };
        let want = "\
NODE     STREAM   RECEIVED              FIRST   LAST   GAPS   DUPLICATES   DROPPED      NOTE
edge-a   BULK     bulk 40               1       43     2      1            5 overflow   stream made anew: 1
edge-a   OUTBOX   state 30, events 13   1       43     0      0            0
counted since 2026-05-04T10:00:00Z
the hub let go of 9 of telemetry that it had, the oldest, to keep FROM in its bound
";
        assert_eq!(render(&report, false), want);
    }
}
