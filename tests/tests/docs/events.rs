//! `docs/events.md`, from the table of event types; and that table against what the modules tell.

use std::collections::BTreeSet;

use schemas::audit::AuditRecord;
use schemas::event::{Data, EVENTS, EventType, Teller};
use schemas::report::EventReport;
use schemas::subject;
use serde_json::Value;

use super::text::{reasons, without_comments, without_tests};

const OPENING: &str = "\
# Events

Generated from the table in `schemas/src/event.rs`; do not edit. To write it anew:
`UPDATE_DOCS=1 cargo test --workspace --test docs`. A test holds the table against what the modules tell, both ways.

An event is a [CloudEvent](https://cloudevents.io) in a NATS message: its attributes are headers, its data is MessagePack.

| header | what |
|---|---|
| `ce-id` | unique; the same happening told twice has the same |
| `ce-type` | `io.edgewire.<module>.<reason>`, as below |
| `ce-source` | `/nodes/<node>/modules/<module>`; the hub's is `/nodes/hub/…` |
| `ce-time` | when, by the clock of who tells it |
| `ce-specversion` | `1.0` |
| `content-type` | `application/msgpack` |
| `ce-ewversion` | version of the data's shape; readers take theirs and older |

A node's event is stored on the node as `ew.evt.<module>.<reason>` (stream `OUTBOX`), offline too, and carried to the hub
exactly once and in order, where it is `ew.in.<node>.events.ew.evt.<module>.<reason>` (stream `UP`). The hub's own begins there, with
`hub` for the node. The hub makes Kubernetes Events of them (`kubectl get events -A`). To see them:

```
$ edgewire tail 'ew.in.*.events.>' --since 1h
$ edgewire tail 'ew.evt.>' --since 1h --edge /var/lib/edgewire
$ edgewire tail 'ew.in.*.events.>' --where 'payload.severity == \"Warning\"' --fields time,node,payload.reason,payload.message
```
`UP` is trimmed when the hub's modules have taken a message, and `OUTBOX` when the hub has it: what is gone says so.
What to do about each: [troubleshooting](troubleshooting.md#what-nodes-tell-as-events).
";

/// The whole document.
pub fn document() -> String {
    let mut out = OPENING.to_owned();
    for (teller, heading) in [(Teller::Node, "On a node"), (Teller::Hub, "At the hub")] {
        out.push_str(&format!(
            "\n## {heading}\n\n| type | severity | what happened | data |\n|---|---|---|---|\n"
        ));
        out.extend(EVENTS.iter().filter(|event| event.teller == teller).map(row));
    }
    out.push_str("\n## Data\n");
    out.push_str(&shape::<EventReport>(
        "EventReport",
        "`regarding` is what it is about: kind, namespace, name, UID. `at` is in milliseconds since 1970, UTC.",
    ));
    out.push_str(&shape::<AuditRecord>(
        "AuditRecord",
        "`code` is an HTTP status, 400 and more for what was refused; `count` how often since it was recorded last. \
         Records of the hub itself are not in `UP`: they are stored as `ew.audit.done.<node>.<verb>` and \
         `ew.audit.refused.<node>.<verb>` (streams `AUDIT` and `REFUSED`), with the same headers, and type \
         `io.edgewire.<module>.Audit`.",
    ));
    out
}

fn row(event: &EventType) -> String {
    let severity: Vec<&str> = event.severity.iter().map(|severity| severity.as_str()).collect();
    let data = match event.data {
        Data::Report => "EventReport",
        Data::Audit => "AuditRecord",
    };
    format!(
        "| `{}` | {} | {} | [{data}](#{}) |\n",
        event.kind(),
        severity.join(", "),
        event.meaning,
        data.to_lowercase()
    )
}

/// The golden sample of a type, as JSON: its fields, their types, and what they look like.
fn shape<T: serde::Serialize + serde::de::DeserializeOwned>(name: &str, words: &str) -> String {
    let path = tests::cluster::programs::root().join(format!("schemas/tests/golden/{name}.msgpack"));
    let sample: T = schemas::decode(&std::fs::read(path).unwrap()).unwrap();
    let Value::Object(fields) = serde_json::to_value(&sample).unwrap() else { panic!("{name} is no map") };
    let kind = |value: &Value| match value {
        Value::String(_) => "string".to_owned(),
        Value::Number(_) => "integer".to_owned(),
        Value::Bool(_) => "boolean".to_owned(),
        Value::Array(items) => format!("array of {} strings", items.len()),
        other => panic!("{name}: {other} has no word yet"),
    };
    let rows: String = fields
        .iter()
        .map(|(field, value)| format!("| `{field}` | {} | `{value}` |\n", kind(value)))
        .collect();
    format!("\n### {name}\n\n{words}\n\n| field | type | such as |\n|---|---|---|\n{rows}")
}

/// Where modules tell events: the beginning of a source's path, the module's name, and whose it is.
const TELLERS: [(&str, &str, Teller); 9] = [
    ("modules/containers/", "containers", Teller::Node),
    ("modules/credentials/", "credentials", Teller::Node),
    ("modules/door/", "door", Teller::Node),
    ("modules/identity/src/edge", "identity", Teller::Node),
    ("modules/nodes/", "nodes", Teller::Hub),
    ("modules/router/src/edge", "router", Teller::Node),
    ("modules/sync/", "sync", Teller::Node),
    ("modules/topicmap/", "topicmap", Teller::Node),
    // What it finds at its start it hands to sync.
    ("edge-runtime/", "sync", Teller::Node),
];

/// What is told and is not in the table, and what is in the table and told by nobody.
pub fn complaints(sources: &[(String, String)]) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut told = BTreeSet::new();
    let mut quoted: BTreeSet<(&str, Teller, String)> = BTreeSet::new();
    for (path, text) in sources.iter().filter(|(path, _)| path.ends_with(".rs")) {
        let code = without_comments(&without_tests(text), "//");
        let teller = TELLERS.iter().find(|(start, ..)| path.starts_with(start));
        // Whoever makes an event at all has a place above.
        let makes =
            code.contains("EventReport {") && !path.starts_with("schemas/") && !path.starts_with("bus/");
        if makes && teller.is_none() {
            complaints.push(format!("{path} tells events, and has no row in tests/tests/docs/events.rs"));
        }
        let Some((_, module, teller)) = teller else { continue };
        for reason in reasons(&code) {
            let is_row = |event: &&EventType| {
                event.module == *module && event.teller == *teller && event.reason == reason
            };
            if !EVENTS.iter().any(|event| is_row(&event)) {
                complaints.push(format!("{path}: {reason} is not in schemas/src/event.rs as {module}'s"));
            }
            told.insert(reason);
        }
        quoted.extend(
            EVENTS
                .iter()
                .filter(|event| code.contains(&format!("\"{}\"", event.reason)))
                .map(|event| (*module, *teller, event.reason.to_owned())),
        );
        if code.contains("EVENT_AUDIT") {
            quoted.insert((*module, *teller, subject::EVENT_AUDIT.to_owned()));
        }
    }
    assert!(told.len() > 20, "only {told:?} were found in the sources");
    let untold = EVENTS
        .iter()
        .filter(|event| !quoted.contains(&(event.module, event.teller, event.reason.to_owned())));
    complaints.extend(untold.map(|event| format!("schemas/src/event.rs: nothing tells {}", event.kind())));
    complaints
}
