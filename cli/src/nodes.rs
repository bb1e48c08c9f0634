//! `edgewire nodes`: every node, what the hub knows of it, and how many of its pods run.

use std::collections::BTreeMap;

use schemas::Timestamp;
use serde_json::{Value, json};

use crate::failure::Outcome;
use crate::place::ListArgs;
use crate::screen::Screen;
use crate::table::{Cell, Paint, age, table};

/// One node, as shown.
#[derive(Debug, Default, PartialEq, Eq)]
struct Row {
    name: String,
    status: String,
    running: usize,
    pods: usize,
    version: String,
    created: Option<Timestamp>,
}

/// Runs it.
pub async fn run(args: ListArgs, screen: &mut Screen) -> Outcome<()> {
    let api = args.hub.api()?;
    let nodes = api.list("/api/v1/nodes").await?;
    let pods = api.list("/api/v1/pods").await?;
    let rows = rows(&nodes, &pods);
    if args.json {
        return screen.json(&rows.iter().map(as_json).collect()).await;
    }
    if rows.is_empty() {
        eprintln!("edgewire: no nodes yet; make a token for one with `edgewire token create`");
        return Ok(());
    }
    screen.print(&render(&rows, Timestamp::now(), screen.colour)).await
}

/// The names of all nodes.
pub async fn names(api: &crate::api::Api) -> Outcome<Vec<String>> {
    let nodes = api.list("/api/v1/nodes").await?;
    Ok(nodes.iter().map(|node| text(node, "/metadata/name")).filter(|name| !name.is_empty()).collect())
}

fn text(value: &Value, path: &str) -> String {
    value.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn rows(nodes: &[Value], pods: &[Value]) -> Vec<Row> {
    let mut counts: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for pod in pods {
        let phase = text(pod, "/status/phase");
        if phase == "Succeeded" || phase == "Failed" {
            continue;
        }
        let (running, all) = counts.entry(text(pod, "/spec/nodeName")).or_default();
        *all += 1;
        *running += usize::from(phase == "Running");
    }
    let row = |node: &Value| {
        let name = text(node, "/metadata/name");
        let (running, pods) = counts.get(&name).copied().unwrap_or_default();
        Row {
            status: status(node),
            running,
            pods,
            version: text(node, "/status/nodeInfo/kubeletVersion"),
            created: Timestamp::parse(&text(node, "/metadata/creationTimestamp")),
            name,
        }
    };
    nodes.iter().map(row).collect()
}

fn status(node: &Value) -> String {
    let conditions = node.pointer("/status/conditions").and_then(Value::as_array);
    let ready = conditions.into_iter().flatten().find(|condition| text(condition, "/type") == "Ready");
    let mut status = match ready.map(|condition| text(condition, "/status")).as_deref() {
        Some("True") => "Ready".to_owned(),
        Some("False") => "NotReady".to_owned(),
        _ => "Unknown".to_owned(),
    };
    if node.pointer("/spec/unschedulable").and_then(Value::as_bool) == Some(true) {
        status.push_str(",SchedulingDisabled");
    }
    status
}

fn as_json(row: &Row) -> Value {
    json!({
        "name": row.name, "status": row.status, "pods_running": row.running, "pods": row.pods,
        "version": row.version, "created": row.created.map(Timestamp::rfc3339),
    })
}

fn render(rows: &[Row], now: Timestamp, colour: bool) -> String {
    let cells: Vec<Vec<Cell>> = rows
        .iter()
        .map(|row| {
            let paint = match row.status.as_str() {
                "Ready" => Paint::Good,
                status if status.starts_with("NotReady") => Paint::Bad,
                _ => Paint::Warn,
            };
            let old = row.created.map_or_else(|| "<unknown>".to_owned(), |at| age(now.since_ms(at)));
            vec![
                row.name.as_str().into(),
                Cell::new(&row.status, paint),
                format!("{}/{}", row.running, row.pods).into(),
                row.version.as_str().into(),
                old.into(),
            ]
        })
        .collect();
    table(&["NAME", "STATUS", "PODS", "VERSION", "AGE"], &cells, colour)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_one_row() {
        let node = |name: &str, ready: &str, off: bool| {
            json!({
                "metadata": {"name": name, "creationTimestamp": "2026-05-04T10:00:00Z"},
                "spec": {"unschedulable": off},
                "status": {
                    "nodeInfo": {"kubeletVersion": "v1.32.0-edgewire"},
                    "conditions": [{"type": "Other", "status": "False"}, {"type": "Ready", "status": ready}],
                },
            })
        };
        let pod = |node: &str, phase: &str| json!({"spec": {"nodeName": node}, "status": {"phase": phase}});
        let nodes = [
            node("edge-a", "True", false),
            node("edge-bb", "Unknown", false),
            node("c", "False", true),
            json!({"metadata": {"name": "new"}}),
        ];
        let pods = [
            pod("edge-a", "Running"),
            pod("edge-a", "Pending"),
            pod("edge-a", "Succeeded"),
            json!({"spec": {}, "status": {"phase": "Pending"}}),
        ];
        let now = Timestamp::parse("2026-05-04T10:05:30Z").unwrap();
        let want = "\
NAME      STATUS                        PODS   VERSION            AGE
edge-a    Ready                         1/2    v1.32.0-edgewire   5m30s
edge-bb   Unknown                       0/0    v1.32.0-edgewire   5m30s
c         NotReady,SchedulingDisabled   0/0    v1.32.0-edgewire   5m30s
new       Unknown                       0/0                       <unknown>
";
        assert_eq!(render(&rows(&nodes, &pods), now, false), want);
    }
}
