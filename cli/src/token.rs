//! `edgewire token`: the tokens with which new nodes join.

use std::time::Duration;

use clap::{Args, Subcommand};
use hyper::Method;
use schemas::Timestamp;
use schemas::credential::NewToken;
use schemas::name::NodeName;
use serde_json::Value;

use crate::api::encode;
use crate::decode::safe;
use crate::duration;
use crate::failure::{Failure, Outcome};
use crate::place::{HubArgs, ListArgs};
use crate::screen::Screen;
use crate::table::{Cell, age, table};

const TOKENS: &str = "/edgewire/v1/tokens";

/// What to do with join tokens.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token, and show what to run on the new node
    Create(CreateArgs),
    /// List the tokens that are still good (never their secrets)
    Ls(ListArgs),
    /// Take a token back; nodes that joined with it stay
    Revoke(RevokeArgs),
}

/// Arguments of `edgewire token create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// How long it is good for
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = duration::parse)]
    ttl: Duration,
    /// Only a node of this name may use it
    #[arg(long, value_name = "NAME")]
    node: Option<NodeName>,
    /// How many nodes may join with it
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    uses: u32,
    /// One JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    hub: HubArgs,
}

/// Arguments of `edgewire token revoke`.
#[derive(Debug, Args)]
pub struct RevokeArgs {
    /// The token's ID, as `edgewire token ls` shows it
    id: String,
    #[command(flatten)]
    hub: HubArgs,
}

/// Runs it.
pub async fn run(command: TokenCommand, screen: &mut Screen) -> Outcome<()> {
    match command {
        TokenCommand::Create(args) => create(args, screen).await,
        TokenCommand::Ls(args) => list(args, screen).await,
        TokenCommand::Revoke(args) => {
            let api = args.hub.api()?;
            api.send(Method::DELETE, &format!("{TOKENS}/{}", encode(&args.id)), None).await?;
            screen.print(&format!("token {} is revoked\n", safe(&args.id))).await
        }
    }
}

async fn create(args: CreateArgs, screen: &mut Screen) -> Outcome<()> {
    let api = args.hub.api()?;
    // The hub counts whole seconds; less than one would be none.
    let ttl_s = args.ttl.as_secs().max(1);
    let wanted = NewToken { ttl_s, node: args.node.clone(), uses: args.uses };
    let wanted = serde_json::to_value(wanted).unwrap_or_default();
    let made = api.send(Method::POST, TOKENS, Some(&wanted)).await?;
    if args.json {
        return screen.json(&made).await;
    }
    let Some(token) = made.get("token").and_then(Value::as_str) else {
        return Err(Failure::new("EW-HUB-FAILED", "the hub's answer holds no token", "see the hub's log"));
    };
    let name = args.node.map(|node| format!(" --name {node}")).unwrap_or_default();
    let uses = if args.uses == 1 { "once".to_owned() } else { format!("{} times", args.uses) };
    let until = time(made.get("expires")).map(|at| format!(", until {}", at.rfc3339())).unwrap_or_default();
    screen
        .print(&format!(
            "{token}\n\nGood {uses}{until}. On the new node run:\n  edgewire join {token}{name}\n",
            token = safe(token)
        ))
        .await
}

async fn list(args: ListArgs, screen: &mut Screen) -> Outcome<()> {
    let answer = args.hub.api()?.get(TOKENS).await?;
    let tokens = answer.get("items").or_else(|| answer.get("tokens")).cloned().unwrap_or(answer);
    if args.json {
        return screen.json(&tokens).await;
    }
    let rows = rows(&tokens, Timestamp::now());
    if rows.is_empty() {
        eprintln!("edgewire: no tokens; make one with `edgewire token create`");
        return Ok(());
    }
    screen.print(&table(&["ID", "NODE", "USES LEFT", "EXPIRES IN"], &rows, screen.colour)).await
}

/// A time of the hub's: milliseconds, or RFC 3339.
fn time(value: Option<&Value>) -> Option<Timestamp> {
    let value = value?;
    value.as_i64().map(Timestamp).or_else(|| value.as_str().and_then(Timestamp::parse))
}

fn rows(tokens: &Value, now: Timestamp) -> Vec<Vec<Cell>> {
    let row = |token: &Value| {
        let text = |name: &str| token.get(name).and_then(Value::as_str).map(str::to_owned);
        let expires = match time(token.get("expires")) {
            Some(at) if at <= now => "expired".to_owned(),
            Some(at) => age(at.since_ms(now)),
            None => "-".to_owned(),
        };
        vec![
            text("id").unwrap_or_default().into(),
            text("node").unwrap_or_else(|| "any".to_owned()).into(),
            token
                .get("uses")
                .and_then(Value::as_u64)
                .map_or_else(|| "-".to_owned(), |n| n.to_string())
                .into(),
            Cell::from(expires),
        ]
    };
    tokens.as_array().into_iter().flatten().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn tokens_are_rows() {
        let now = Timestamp::parse("2026-05-04T10:00:00Z").unwrap();
        let tokens = json!([
            {"id": "k3", "node": null, "uses": 2, "expires": now.plus_ms(3_600_000).0},
            {"id": "x", "node": "edge-a", "uses": 1, "expires": "2026-05-04T09:00:00Z"},
        ]);
        let want = "\
ID   NODE     USES LEFT   EXPIRES IN
k3   any      2           60m
x    edge-a   1           expired
";
        assert_eq!(table(&["ID", "NODE", "USES LEFT", "EXPIRES IN"], &rows(&tokens, now), false), want);
    }
}
