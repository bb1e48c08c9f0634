//! `edgewire diverged`: what nodes have and the hub does not, after the hub came back older than they are.
//!
//! `edgewire release UID` has the node drop one of them. Each node answers for itself. Who does not answer is shown as such: it may have more.

use std::time::Duration;

use bus::connection::Bus;
use bus::module::Account;
use bus::tool::ToolError;
use clap::Args;
use futures::StreamExt;
use schemas::desired::{Diverged, DivergedObject, Release};
use schemas::envelope::Headers;
use schemas::name::NodeName;
use schemas::subject;
use serde_json::{Value, json};

use crate::ask::{ask, ask_hub};
use crate::failure::{Failure, Outcome};
use crate::nodes;
use crate::notices::Notices;
use crate::place::{HubArgs, Place, PlaceArgs};
use crate::screen::Screen;
use crate::table::{Cell, Paint, table};

/// How long a node may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// What to try when nothing can be released.
const SEE_DIVERGED: &str = "`edgewire diverged` shows what can be released";
/// Nodes asked at the same time.
const ASKED_MAX: usize = 64;

/// Arguments of `edgewire diverged`.
#[derive(Debug, Args)]
pub struct DivergedArgs {
    /// Only this node
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// A JSON array
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: PlaceArgs,
}

/// Arguments of `edgewire release`.
#[derive(Debug, Args)]
pub struct ReleaseArgs {
    /// UID of the object, as `edgewire diverged` shows it
    uid: String,
    #[command(flatten)]
    hub: HubArgs,
}

/// One node and its answer; or why there is none.
struct Host {
    node: String,
    answer: Result<Diverged, String>,
}

/// Runs it.
pub async fn run(args: DivergedArgs, screen: &mut Screen, notices: &Notices) -> Outcome<()> {
    let place = Place::find(&args.place).await?;
    let wanted = match (&args.node, &place.api) {
        (Some(node), _) => vec![node.clone()],
        (None, Some(api)) => nodes::names(api).await?,
        (None, None) => vec![place.node.clone()],
    };
    let bus = place.connect(Account::Control).await?;
    let asking = futures::stream::iter(wanted)
        .map(|node| {
            let bus = &bus;
            async move { Host { answer: diverged_of(bus, &node).await, node } }
        })
        .buffered(ASKED_MAX)
        .collect::<Vec<Host>>();
    let hosts = tokio::select! {
        hosts = asking => hosts,
        failure = notices.refusal() => return Err(failure),
    };
    if args.json {
        return screen.json(&hosts.iter().map(as_json).collect()).await;
    }
    if hosts
        .iter()
        .all(|host| host.answer.as_ref().is_ok_and(|answer| answer.settled && answer.objects.is_empty()))
    {
        eprintln!("edgewire: hub and nodes agree");
        return Ok(());
    }
    screen.print(&render(&hosts, screen.colour)).await
}

/// Has the node that holds it drop an object that the hub does not have. A pod is stopped.
pub async fn release(args: ReleaseArgs, screen: &mut Screen) -> Outcome<()> {
    let place = Place::find(&PlaceArgs { edge: None, hub: args.hub }).await?;
    let bus = place.connect(Account::Control).await?;
    let names = match &place.api {
        Some(api) => nodes::names(api).await?,
        None => Vec::new(),
    };
    let mut silent = Vec::new();
    for node in names {
        let Ok(name) = NodeName::new(&node) else { continue };
        let Ok(answer) = diverged_of(&bus, &node).await else {
            silent.push(node);
            continue;
        };
        let Some(object) = answer.objects.into_iter().find(|object| object.key.uid == args.uid) else {
            continue;
        };
        let shown = format!("{} {}/{} on {node}", object.key.plural, object.key.namespace, object.key.name);
        let release = Release { node: name, key: object.key };
        let to = subject::local("placement", "release");
        let () = ask_hub(&bus, &to, &release, ANSWER_TIMEOUT, SEE_DIVERGED).await?;
        return screen.print(&format!("released {shown}; the node drops it\n")).await;
    }
    let mut cause = format!("no node says that it has an object of UID {} that the hub lacks", args.uid);
    if !silent.is_empty() {
        cause += &format!("; {} did not answer", silent.join(", "));
    }
    Err(Failure::new("EW-RELEASE-UNKNOWN", cause, SEE_DIVERGED))
}

async fn diverged_of(bus: &Bus, node: &str) -> Result<Diverged, String> {
    let name = NodeName::new(node).map_err(|error| error.to_string())?;
    let command = subject::command(&name, "sync", "diverged");
    match ask(bus, &command, &Headers::new(), bytes::Bytes::new(), ANSWER_TIMEOUT).await {
        Ok(answer) => {
            schemas::decode(&answer.payload).map_err(|error| format!("its answer cannot be read: {error}"))
        }
        Err(ToolError::NoResponders { .. }) => Err("offline".to_owned()),
        Err(ToolError::Timeout { .. }) => Err(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs())),
        Err(error) => Err(error.to_string()),
    }
}

fn difference(object: &DivergedObject) -> (&'static str, Paint) {
    match object.hub_has_older {
        true => ("the hub has an older version", Paint::Warn),
        false => ("the hub does not have it", Paint::Bad),
    }
}

fn as_json(host: &Host) -> Value {
    match &host.answer {
        Err(cause) => json!({"node": host.node, "answers": false, "error": cause, "objects": []}),
        Ok(answer) => {
            let object = |object: &DivergedObject| {
                json!({
                    "resource": object.key.plural, "namespace": object.key.namespace, "name": object.key.name,
                    "uid": object.key.uid, "hubHas": if object.hub_has_older { "older" } else { "none" },
                })
            };
            let objects: Vec<Value> = answer.objects.iter().map(object).collect();
            json!({"node": host.node, "answers": true, "settled": answer.settled, "objects": objects,
                "more": answer.more})
        }
    }
}

fn render(hosts: &[Host], colour: bool) -> String {
    let mut rows: Vec<Vec<Cell>> = Vec::new();
    let nothing = |node: &str, text: &str, paint| {
        vec![node.into(), "-".into(), "-".into(), "-".into(), "-".into(), Cell::new(text, paint)]
    };
    for host in hosts {
        match &host.answer {
            Err(cause) => rows.push(nothing(&host.node, &format!("no answer: {cause}"), Paint::Bad)),
            Ok(answer) => {
                if !answer.settled {
                    rows.push(nothing(&host.node, "still reads the hub's list: ask again", Paint::Dim));
                }
                rows.extend(answer.objects.iter().map(|object| {
                    let (text, paint) = difference(object);
                    let key = &object.key;
                    vec![
                        host.node.as_str().into(),
                        key.plural.as_str().into(),
                        key.namespace.as_str().into(),
                        key.name.as_str().into(),
                        key.uid.as_str().into(),
                        Cell::new(text, paint),
                    ]
                }));
                if answer.more > 0 {
                    rows.push(nothing(&host.node, &format!("and {} more", answer.more), Paint::Dim));
                }
            }
        }
    }
    table(&["NODE", "RESOURCE", "NAMESPACE", "NAME", "UID", "DIFFERENCE"], &rows, colour)
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::subject::DesiredKey;

    #[test]
    fn each_difference_has_a_line() {
        let object = |name: &str, hub_has_older| DivergedObject {
            key: DesiredKey {
                plural: "pods".into(),
                namespace: "demo".into(),
                name: name.into(),
                uid: "u-1".into(),
            },
            hub_has_older,
        };
        let objects = vec![object("late", false), object("edited", true)];
        let hosts = vec![
            Host { node: "edge-a".into(), answer: Ok(Diverged { settled: true, objects, more: 3 }) },
            Host { node: "edge-b".into(), answer: Err("offline".into()) },
        ];
        let want = "\
NODE     RESOURCE   NAMESPACE   NAME     UID   DIFFERENCE
edge-a   pods       demo        late     u-1   the hub does not have it
edge-a   pods       demo        edited   u-1   the hub has an older version
edge-a   -          -           -        -     and 3 more
edge-b   -          -           -        -     no answer: offline
";
        assert_eq!(render(&hosts, false), want);
    }
}
