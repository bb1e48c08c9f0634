//! `edgewire ca` and `edgewire certificate`: the hub's authority, how another takes its place, and what its servers show.

use clap::{Args, Subcommand};
use hyper::Method;
use schemas::Timestamp;
use serde_json::{Value, json};

use crate::failure::Outcome;
use crate::place::{HubArgs, ListArgs};
use crate::screen::Screen;
use crate::table::{Cell, Paint, age, table};

const CA: &str = "/edgewire/v1/ca";
const CERTIFICATE: &str = "/edgewire/v1/certificate";
/// Digits of a fingerprint in a table, as `edgewire check` shows them.
const DIGITS: usize = 16;
/// Names of nodes in a row.
const NAMES_MAX: usize = 8;

/// What to do with the hub's authority.
#[derive(Debug, Subcommand)]
pub enum CaCommand {
    /// List the authorities that are trusted, and the nodes that do not know them yet
    Ls(ListArgs),
    /// Make another authority, trusted beside the present one
    ///
    /// No connection ends. The hub shows a certificate by the new authority that the old one vouches for, so whoever trusts
    /// only the old one still gets in: nodes that are away, kubeconfigs that were copied, tokens that were made before. Nodes
    /// are told when they connect. See who knows it with `edgewire ca ls`; then end it with `edgewire ca finish`.
    Roll(HubArgs),
    /// Trust the new authority alone: the old one is worth nothing any more
    ///
    /// Refused, naming them, while a node that joined has not confirmed the new one. After it: back the hub up (a backup from
    /// before the roll holds an authority that nobody trusts any more), and hand out the hub's new kubeconfig. Tokens from
    /// before the roll open nothing any more.
    Finish(FinishArgs),
}

/// What to do with the certificate of the hub's servers.
#[derive(Debug, Subcommand)]
pub enum CertificateCommand {
    /// List what the hub's servers show: for which names, how old, by which authority
    Ls(ListArgs),
    /// Make the servers a new key and certificate now; no connection ends
    ///
    /// The hub does this by itself when it is 90 days old (`edgewire hub --certificate-renew-days`), and at its start when its
    /// names (`--advertise`) are others.
    Renew(HubArgs),
}

/// Arguments of `edgewire ca finish`.
#[derive(Debug, Args)]
pub struct FinishArgs {
    /// Do so though nodes have not confirmed the new authority: they have to join again with a new token
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    hub: HubArgs,
}

/// Runs `edgewire ca`.
pub async fn ca(command: CaCommand, screen: &mut Screen) -> Outcome<()> {
    let now = Timestamp::now();
    match command {
        CaCommand::Ls(args) => {
            let answer = args.hub.api()?.get(CA).await?;
            let list = answer.get("authorities").cloned().unwrap_or_else(|| json!([]));
            if args.json {
                return screen.json(&list).await;
            }
            screen.print(&authorities(&list, now, screen.colour)).await
        }
        CaCommand::Roll(hub) => {
            let answer = hub.api()?.send(Method::POST, &format!("{CA}/roll"), Some(&json!({}))).await?;
            let list = answer.get("authorities").cloned().unwrap_or_default();
            let shown = authorities(&list, now, screen.colour);
            screen
                .print(&format!(
                    "{shown}nodes are told when they connect; when all know it: edgewire ca finish\n"
                ))
                .await
        }
        CaCommand::Finish(args) => {
            let body = json!({"force": args.force});
            args.hub.api()?.send(Method::POST, &format!("{CA}/finish"), Some(&body)).await?;
            screen
                .print(
                    "the new authority alone is trusted\n\
                     next: edgewire hub backup FILE, and hand out the hub's new kubeconfig\n",
                )
                .await
        }
    }
}

/// Runs `edgewire certificate`.
pub async fn certificate(command: CertificateCommand, screen: &mut Screen) -> Outcome<()> {
    let (answer, json) = match command {
        CertificateCommand::Ls(args) => (args.hub.api()?.get(CERTIFICATE).await?, args.json),
        CertificateCommand::Renew(hub) => {
            let api = hub.api()?;
            (api.send(Method::POST, &format!("{CERTIFICATE}/renew"), Some(&json!({}))).await?, false)
        }
    };
    let list = answer.get("certificates").cloned().unwrap_or_else(|| json!([]));
    if json {
        return screen.json(&list).await;
    }
    screen.print(&certificates(&list, Timestamp::now(), screen.colour)).await
}

fn short(row: &Value, field: &str) -> String {
    let whole = row.get(field).and_then(Value::as_str).unwrap_or_default();
    let start: String = whole.chars().take(DIGITS).collect();
    format!("{start}…")
}

fn time(row: &Value, field: &str) -> Option<Timestamp> {
    row.get(field).and_then(Value::as_str).and_then(Timestamp::parse)
}

fn words(row: &Value, field: &str) -> Vec<String> {
    let all = row.get(field).and_then(Value::as_array).into_iter().flatten();
    all.filter_map(Value::as_str).map(str::to_owned).collect()
}

fn authorities(list: &Value, now: Timestamp, colour: bool) -> String {
    let rolling = list.as_array().is_some_and(|all| all.len() > 1);
    let row = |of: &Value| {
        let role = of.get("authority").and_then(Value::as_str).unwrap_or_default();
        let (without, all) = (words(of, "unknown_to"), of.get("nodes").and_then(Value::as_u64).unwrap_or(0));
        let known = all.saturating_sub(without.len() as u64);
        let paint = if without.is_empty() { Paint::Good } else { Paint::Bad };
        let mut names: Vec<String> = without.iter().take(NAMES_MAX).cloned().collect();
        if without.len() > names.len() {
            names.push(format!("and {} more", without.len() - names.len()));
        }
        vec![
            role.into(),
            time(of, "made").map_or_else(|| "-".to_owned(), |made| age(now.since_ms(made))).into(),
            short(of, "sha256").into(),
            Cell::new(format!("{known} of {all}"), paint),
            // Of the present one a node that joined just now has not spoken yet: of interest while another is to follow.
            if rolling && !names.is_empty() { names.join(", ") } else { "-".to_owned() }.into(),
        ]
    };
    let rows: Vec<Vec<Cell>> = list.as_array().into_iter().flatten().map(row).collect();
    table(&["AUTHORITY", "AGE", "SHA256", "KNOWN TO", "NOT YET TO"], &rows, colour)
}

fn certificates(list: &Value, now: Timestamp, colour: bool) -> String {
    let row = |of: &Value| -> Vec<Cell> {
        let left = time(of, "renewed_after").map_or(0, |at| at.since_ms(now));
        vec![
            words(of, "ports").join(", ").into(),
            time(of, "made").map_or_else(|| "-".to_owned(), |made| age(now.since_ms(made))).into(),
            age(left).into(),
            short(of, "sha256").into(),
            short(of, "authority").into(),
            words(of, "names").join(", ").into(),
        ]
    };
    let rows: Vec<Vec<Cell>> = list.as_array().into_iter().flatten().map(row).collect();
    table(&["SHOWN AT", "AGE", "RENEWED IN", "SHA256", "AUTHORITY", "NAMES"], &rows, colour)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_and_certificates_are_rows() {
        let now = Timestamp::parse("2026-05-04T10:00:00Z").unwrap();
        let list = json!([
            {"authority": "present", "sha256": "ab".repeat(32), "made": null, "nodes": 2, "unknown_to": []},
            {"authority": "next", "sha256": "cd".repeat(32), "made": "2026-05-04T09:55:00Z", "nodes": 2,
             "unknown_to": ["edge-b"]},
        ]);
        let want = "\
AUTHORITY   AGE   SHA256              KNOWN TO   NOT YET TO
present     -     abababababababab…   2 of 2     -
next        5m    cdcdcdcdcdcdcdcd…   1 of 2     edge-b
";
        assert_eq!(authorities(&list, now, false), want);
        let list = json!([{"ports": ["api", "bus"], "names": ["hub.example", "::1"], "sha256": "ab".repeat(32),
            "made": "2026-05-03T10:00:00Z", "renewed_after": "2026-08-01T10:00:00Z", "authority": "cd".repeat(32)}]);
        let want = "\
SHOWN AT   AGE   RENEWED IN   SHA256              AUTHORITY           NAMES
api, bus   24h   89d          abababababababab…   cdcdcdcdcdcdcdcd…   hub.example, ::1
";
        assert_eq!(certificates(&list, now, false), want);
    }
}
