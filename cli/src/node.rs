//! `edgewire node`: which machines have joined, and shutting one out.

use clap::{Args, Subcommand};
use hyper::Method;
use schemas::Timestamp;
use schemas::name::NodeName;
use serde_json::{Value, json};

use crate::api::encode;
use crate::decode::safe;
use crate::failure::Outcome;
use crate::place::{HubArgs, ListArgs};
use crate::screen::Screen;
use crate::table::{Cell, Paint, age, table};

const NODES: &str = "/edgewire/v1/nodes";

/// What to do with the machines that have joined.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// List the machines that have joined, and those that were shut out
    Ls(ListArgs),
    /// Have a machine make new keys; its old ones are shut out
    ///
    /// What runs on it runs on; its link is made anew with the new keys, and nothing is lost. Machines do this by
    /// themselves when their keys are 30 days old.
    Rotate(NodeArgs),
    /// Shut a machine out: its link ends now and its keys are worth nothing any more
    ///
    /// What runs on it goes on running there: the hub has lost its hand on it, not the other way round. The name is free for
    /// another machine, which then gets the pods that wait under it. The same machine comes back only with new keys and a
    /// new token: edgewire join TOKEN --new-keys
    Revoke(NodeArgs),
}

/// Arguments of what is done to one machine.
#[derive(Debug, Args)]
pub struct NodeArgs {
    /// The node
    node: NodeName,
    #[command(flatten)]
    hub: HubArgs,
}

/// Runs it.
pub async fn run(command: NodeCommand, screen: &mut Screen) -> Outcome<()> {
    match command {
        NodeCommand::Ls(args) => list(args, screen).await,
        NodeCommand::Rotate(args) => {
            let path = format!("{NODES}/{}/rotate", encode(args.node.as_str()));
            args.hub.api()?.send(Method::POST, &path, Some(&json!({}))).await?;
            screen.print(&format!("node {} has new keys\n", safe(args.node.as_str()))).await
        }
        NodeCommand::Revoke(args) => {
            let path = format!("{NODES}/{}/revoke", encode(args.node.as_str()));
            args.hub.api()?.send(Method::POST, &path, Some(&json!({}))).await?;
            let node = safe(args.node.as_str());
            screen
                .print(&format!(
                    "node {node} is shut out; what runs on it runs on\n\
                     to let that machine in again: edgewire token create --node {node}, then on it: edgewire join TOKEN --new-keys\n"
                ))
                .await
        }
    }
}

async fn list(args: ListArgs, screen: &mut Screen) -> Outcome<()> {
    let answer = args.hub.api()?.get(NODES).await?;
    let nodes = answer.get("nodes").cloned().unwrap_or_else(|| json!([]));
    if args.json {
        return screen.json(&nodes).await;
    }
    let rows = rows(&nodes, Timestamp::now());
    if rows.is_empty() {
        eprintln!("edgewire: no machine has joined yet; make a token for one with `edgewire token create`");
        return Ok(());
    }
    screen.print(&table(&["NODE", "STATE", "JOINED", "REVOKED"], &rows, screen.colour)).await
}

fn rows(nodes: &Value, now: Timestamp) -> Vec<Vec<Cell>> {
    let ago = |node: &Value, name: &str| {
        let at = node.get(name).and_then(Value::as_str).and_then(Timestamp::parse);
        at.map(|at| format!("{} ago", age(now.since_ms(at))))
    };
    let row = |node: &Value| {
        let revoked = ago(node, "revoked");
        let state = match &revoked {
            Some(_) => Cell::new("shut out", Paint::Bad),
            None => Cell::new("joined", Paint::Good),
        };
        vec![
            node.get("node").and_then(Value::as_str).unwrap_or_default().to_owned().into(),
            state,
            ago(node, "enrolled").unwrap_or_else(|| "-".to_owned()).into(),
            revoked.unwrap_or_else(|| "-".to_owned()).into(),
        ]
    };
    nodes.as_array().into_iter().flatten().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_are_rows() {
        let now = Timestamp::parse("2026-05-04T10:00:00Z").unwrap();
        let nodes = json!([
            {"node": "edge-a", "enrolled": "2026-05-04T09:00:00Z", "revoked": null},
            {"node": "edge-b", "enrolled": "2026-05-03T10:00:00Z", "revoked": "2026-05-04T09:58:00Z"},
        ]);
        let want = "\
NODE     STATE      JOINED    REVOKED
edge-a   joined     60m ago   -
edge-b   shut out   24h ago   2m ago
";
        assert_eq!(table(&["NODE", "STATE", "JOINED", "REVOKED"], &rows(&nodes, now), false), want);
    }
}
