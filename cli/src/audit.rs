//! `edgewire audit`: who did what at the hub, and who was refused what, at the hub and on the nodes.

use std::time::Duration;

use clap::Args;
use schemas::Timestamp;
use schemas::audit::AuditRecord;

use crate::api::encode;
use crate::duration;
use crate::failure::{Failure, Outcome};
use crate::place::HubArgs;
use crate::screen::Screen;
use crate::table::{Cell, Paint, table};

/// Arguments of `edgewire audit`.
#[derive(Debug, Args)]
pub struct AuditArgs {
    /// How far back
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = duration::parse)]
    since: Duration,
    /// Only what happened on this node, or at the hub (`hub`)
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Only this: create, update, patch, delete, exec, join, token.create, token.delete, node.revoke, bus, publish,
    /// subscribe, connect
    #[arg(long, value_name = "VERB")]
    verb: Option<String>,
    /// Only what this user did or tried
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Only what was refused
    #[arg(long)]
    refused: bool,
    /// At most so many, the latest
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=5_000))]
    limit: u32,
    /// A JSON array, with all that is known of each
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    hub: HubArgs,
}

/// Runs it.
pub async fn run(args: AuditArgs, screen: &mut Screen) -> Outcome<()> {
    let since = Timestamp::now().0 - i64::try_from(args.since.as_millis()).unwrap_or(i64::MAX);
    let mut path = format!("/edgewire/v1/audit?since={}&limit={}", since.max(0), args.limit);
    for (name, value) in [("node", &args.node), ("verb", &args.verb), ("user", &args.user)] {
        if let Some(value) = value {
            path.push_str(&format!("&{name}={}", encode(value)));
        }
    }
    if args.refused {
        path.push_str("&refused=true");
    }
    let answer = args.hub.api()?.get(&path).await?;
    let items = answer.get("items").cloned().unwrap_or_default();
    if args.json {
        return screen.json(&items).await;
    }
    let records: Vec<AuditRecord> = serde_json::from_value(items).map_err(|error| {
        let cause = format!("the hub's answer is not understood: {error}");
        Failure::new("EW-HUB-FAILED", cause, "are this tool and the hub of the same version?")
    })?;
    if records.is_empty() {
        eprintln!("edgewire: nothing recorded; try a longer --since");
        return Ok(());
    }
    screen.print(&render(&records, screen.colour)).await
}

fn render(records: &[AuditRecord], colour: bool) -> String {
    let row = |record: &AuditRecord| {
        let times = if record.count > 1 { format!(" x{}", record.count) } else { String::new() };
        let outcome = if record.refused() {
            Cell::new(format!("{} refused{times}", record.code), Paint::Bad)
        } else {
            Cell::new(format!("{} done", record.code), Paint::Good)
        };
        let shown = |text: &str| Cell::from(if text.is_empty() { "-" } else { text });
        vec![
            Cell::new(record.at.rfc3339(), Paint::Dim),
            shown(&record.node),
            shown(&record.user),
            shown(&record.verb),
            shown(&record.object),
            outcome,
        ]
    };
    let rows: Vec<Vec<Cell>> = records.iter().map(row).collect();
    table(&["TIME", "NODE", "USER", "VERB", "OBJECT", "OUTCOME"], &rows, colour)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_rows() {
        let record = |verb: &str, object: &str, code, count| AuditRecord {
            id: "i".into(),
            at: Timestamp::parse("2026-05-04T10:00:00Z").unwrap(),
            node: "hub".into(),
            user: if code == 401 { String::new() } else { "admin".into() },
            verb: verb.into(),
            object: object.into(),
            code,
            count,
            detail: String::new(),
        };
        let records = [record("create", "pods/demo/sensor", 201, 1), record("get", "pods\u{1b}[2J", 401, 12)];
        let want = "\
TIME                   NODE   USER    VERB     OBJECT             OUTCOME
2026-05-04T10:00:00Z   hub    admin   create   pods/demo/sensor   201 done
2026-05-04T10:00:00Z   hub    -       get      pods\\u{1b}[2J      401 refused x12
";
        assert_eq!(render(&records, false), want);
    }
}
