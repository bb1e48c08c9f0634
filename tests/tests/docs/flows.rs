//! `docs/flows.md`, from what the modules declare and from the table of streams.

use bus::flow::{Flow, Kind, NOT_CAPTURED};
use bus::provision::{Full, Place, TABLE};
use schemas::name::NodeName;
use schemas::subject;

/// Stands for a node's name while flows are asked for, and becomes `<node>` in the document.
const ANY_NODE: &str = "a-node-of-any-name";

const OPENING: &str = "\
# Flows

Generated from the code by `make docs-check`'s test; do not edit. To write it anew:
`UPDATE_DOCS=1 cargo test -p tests --test docs`.

A module reads and writes what stands here and nothing else: the same declarations are its permissions on the server
(`bus/src/flow.rs`), so what is missing here is refused there. `edgewire modules --flows` shows the flows of what runs.

`<node>` is the node's name. In keys, `=` is the empty token (the core group; no namespace). Payloads are MessagePack
with field names, of the types in `schemas`; Kubernetes objects are JSON. `A -> B` is a request and its answer.
Classes:

* **live**: whoever listens now hears it; at most once
* **request/reply**: live, and answered
* **stream, durable**: stored before it is acknowledged; **in order, acknowledged last**: taken until it was acted upon
* **bucket, level-triggered**: the entry as it is now, not every change on the way; **compare-and-set**: written only over
  the revision that the decision was made on
* **across the link**: the node's `sync` at the hub, by the node's own credential (`bus/src/identity/allow.rs`)
* **byte stream**: frames with credit; a slow reader stops the writer
* **live, wake-up**: says that something was stored; the stream itself is read where it was left

Besides its flows every module may publish to `ew.dead.<module>` (what it could not read or apply, with the reason) and
hears its own inbox, `_INBOX.<node>.<module>.>` (`_INBOX.hub.<module>.>` at the hub).
";

/// The whole document.
pub fn document() -> String {
    let node = NodeName::new(ANY_NODE).unwrap();
    let mut out = OPENING.to_owned();
    out.push_str("\n# At the hub\n");
    for (name, crate_dir, flows) in [
        (api::NAME, "modules/api", api::flows()),
        ("events", "modules/events", events::flows()),
        (identity::NAME, "modules/identity", identity::flows()),
        (ledger::NAME, "modules/ledger", ledger::flows()),
        (sync::hub::NAME, "modules/sync", sync::hub::flows()),
        (sync::downlink::hub::NAME, "modules/sync", sync::downlink::hub::flows()),
        ("nodes", "modules/nodes", nodes::flows()),
        ("placement", "modules/placement", placement::flows()),
        (router::NAME, "modules/router", router::hub::flows()),
        ("scheduler", "modules/scheduler", scheduler::flows()),
        ("host", "bus", bus::host::flows(subject::DOMAIN_HUB)),
    ] {
        module(&mut out, name, crate_dir, &flows);
    }
    out.push_str("\n# On a node\n");
    for (name, crate_dir, flows) in [
        (containers::MODULE, "modules/containers", containers::flows(&node)),
        (credentials::NAME, "modules/credentials", credentials::flows(&node)),
        (door::NAME, "modules/door", door::flows()),
        (identity::edge::NAME, "modules/identity", identity::edge::flows(&node)),
        (router::NAME, "modules/router", router::edge::flows(&node)),
        (sync::edge::NAME, "modules/sync", sync::edge::flows(&node)),
        (topicmap::NAME, "modules/topicmap", topicmap::flows()),
        ("host", "bus", bus::host::flows(ANY_NODE)),
    ] {
        module(&mut out, name, crate_dir, &flows);
    }
    streams(&mut out);
    out.replace(ANY_NODE, "<node>")
}

fn module(out: &mut String, name: &str, crate_dir: &str, flows: &[Flow]) {
    out.push_str(&format!("\n## {name}\n\nCrate `{crate_dir}`.\n\n"));
    out.push_str("| account | direction | subject or key | class | payload |\n|---|---|---|---|---|\n");
    let mut rows: Vec<String> = flows
        .iter()
        .map(|flow| {
            let (account, subject) = (flow.account.as_str(), &flow.subject);
            assert_ne!(flow.class(), NOT_CAPTURED, "{name} says {subject} durably");
            let reader = match &flow.kind {
                Kind::Consume { durable, .. } => format!(" (consumer `{durable}`)"),
                _ => String::new(),
            };
            let payload = flow.payload.replace("schemas::", "");
            format!(
                "| {account} | {} | `{subject}` | {}{reader} | {payload} |\n",
                flow.direction(),
                flow.class()
            )
        })
        .collect();
    rows.sort();
    rows.dedup();
    out.extend(rows);
}

fn streams(out: &mut String) {
    out.push_str("\n# Streams and buckets\n\n");
    out.push_str("From the table in `bus/src/provision.rs`. A message has at most ");
    out.push_str(&format!("{} MiB. ", schemas::MESSAGE_MAX_BYTES / (1024 * 1024)));
    out.push_str("A bucket `x` is the stream `KV_x` with one entry a key.\n\n");
    out.push_str("| where | account | name | subjects | bound | at the bound | what for |\n|---|---|---|---|---|---|---|\n");
    for row in TABLE {
        let place = match row.place {
            Place::Hub => "hub",
            Place::Edge => "node",
        };
        let (kind, subjects) = if row.bucket {
            ("bucket", subject::kv(row.name, ">"))
        } else {
            ("stream", row.subjects.join("` `"))
        };
        let full = match row.full {
            Full::Refuse => "the publisher is refused and told",
            Full::DropOldest => "the oldest goes",
        };
        let (name, subjects) = match row.for_each_node {
            true => (format!("{}_<node>", row.name), subjects.replace(".>", ".<node>.>")),
            false => (row.name.to_owned(), subjects),
        };
        let batches = if row.message_bytes_max < schemas::MESSAGE_MAX_BYTES {
            format!("; a message has at most {} MiB", row.message_bytes_max / (1024 * 1024))
        } else {
            String::new()
        } + if row.atomic { "; takes atomic batches" } else { "" };
        out.push_str(&format!(
            "| {place} | {} | {kind} `{}` | `{subjects}` | {} MiB | {full} | {}{batches} |\n",
            row.account.as_str(),
            name,
            row.size_mib_max,
            row.purpose
        ));
    }
}
