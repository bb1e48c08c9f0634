//! `edgewire explain SUBJECT --from NODE`: what becomes of a message on that subject, and why.
//!
//! Asks nobody. It speaks from what the servers are run with: the table of classes, the table of streams, a pod's
//! permission, and the allow-list of a node's credentials at the hub.

use bus::identity::node_permissions;
use bus::module::Account;
use bus::provision::{Full, Place, Row, TABLE};
use clap::Args;
use schemas::class::Class;
use schemas::name::{Namespace, NodeName};
use schemas::subject::{self, Lane};
use serde_json::{Value, json};

use crate::ask::HUB;
use crate::decode::safe;
use crate::failure::Outcome;
use crate::screen::Screen;
use crate::table::{Paint, paint};

/// Arguments of `edgewire explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// Subject: app.demo.temp, up.demo.temp, ew.evt.sync.LinkUp
    #[arg(value_parser = crate::publish::publishable)]
    subject: String,
    /// Where it is published: a node's name, or `hub`
    #[arg(long, value_name = "NODE", value_parser = origin)]
    from: Origin,
    /// Also whether this pod may: NAMESPACE/POD (only its namespace matters)
    #[arg(long, value_name = "NAMESPACE/POD", value_parser = pod)]
    pod: Option<Pod>,
    /// A JSON object
    #[arg(long)]
    json: bool,
}

/// Where a message is published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// At the hub.
    Hub,
    /// On a node.
    Node(NodeName),
}

/// A pod, as far as its rights go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    namespace: Namespace,
    name: String,
}

fn origin(text: &str) -> Result<Origin, String> {
    if text == HUB {
        return Ok(Origin::Hub);
    }
    NodeName::new(text).map(Origin::Node).map_err(|error| error.to_string())
}

fn pod(text: &str) -> Result<Pod, String> {
    let (namespace, name) = text.split_once('/').ok_or("write it as NAMESPACE/POD")?;
    let namespace = Namespace::new(namespace).map_err(|error| error.to_string())?;
    Ok(Pod { namespace, name: name.to_owned() })
}

impl Origin {
    fn name(&self) -> &str {
        match self {
            Self::Hub => HUB,
            Self::Node(node) => node.as_str(),
        }
    }
}

/// What becomes of a message; each a line, ready to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// Its delivery class, or whose it is.
    pub class: String,
    /// The account.
    pub account: &'static str,
    /// Who may publish it there.
    pub publish: String,
    /// Who may hear it there.
    pub subscribe: String,
    /// Which stream keeps it there, and what happens when that is full; or why none does.
    pub stored: String,
    /// Whether it gets elsewhere, and as what; or why not.
    pub crosses: String,
}

/// Explains `subject`, published at `origin`, as the asked-for pod sees it.
pub fn explain(subject: &str, origin: &Origin, pod: Option<&Pod>) -> Explanation {
    let account = match subject::account_of(subject) {
        Some(subject::ACCOUNT_CONTROL) => Account::Control,
        _ => Account::Work,
    };
    let class = Class::of(subject).filter(|_| account == Account::Work);
    let (publish, subscribe) = rights(subject, account, class, origin, pod);
    Explanation {
        class: match class {
            Some(class) => format!("{}: {}", class.word, class.plain()),
            None if raised(subject).is_some_and(Lane::is_alone) => {
                "none: what came up from a node, at the hub".to_owned()
            }
            None if subject::sent_to(subject).is_some() => {
                "none: what the hub sends to a node, where it is in the class down".to_owned()
            }
            None if account == Account::Control => {
                "none: Edgewire's own (docs/flows.md has its meaning)".to_owned()
            }
            None => format!(
                "none: {} is no class; live, to whoever listens on that server",
                subject.split('.').next().unwrap_or_default()
            ),
        },
        account: account.as_str(),
        publish,
        subscribe,
        stored: stored(subject, account, origin),
        crosses: crosses(subject, account, class, origin),
    }
}

/// The lane whose hub's name this is.
fn raised(subject: &str) -> Option<Lane> {
    subject::carried(subject).map(|(_, lane, _)| lane)
}

fn rights(
    subject: &str,
    account: Account,
    class: Option<&Class>,
    origin: &Origin,
    pod: Option<&Pod>,
) -> (String, String) {
    let namespace = subject.split('.').nth(1).filter(|_| subject.split('.').count() > 2);
    let who = |may: bool, verb: &str| match (class, namespace) {
        _ if *origin == Origin::Hub => match account {
            Account::Control => "the hub's modules, each as docs/flows.md says; an operator".to_owned(),
            Account::Work => "no pod: pods are on nodes; an operator".to_owned(),
        },
        (Some(_), Some(namespace)) if may => {
            format!("the pods of namespace {namespace} on {}; an operator", origin.name())
        }
        (Some(class), None) => {
            format!("no pod: a subject is {}.<namespace>.<topic>; an operator", class.word)
        }
        (Some(class), Some(_)) => format!("no pod: {} is not for pods to {verb}; an operator", class.word),
        (None, _) if account == Account::Control => {
            "no pod: it is Edgewire's own; its modules, each as docs/flows.md says; an operator".to_owned()
        }
        (None, _) => "no pod: a pod has the classes of its namespace only; an operator".to_owned(),
    };
    let mut publish = who(class.is_some_and(|class| class.publish), "publish");
    let mut subscribe = who(class.is_some_and(|class| class.subscribe), "hear");
    if let (Some(pod), Origin::Node(_)) = (pod, origin) {
        // The very list that the pod's login is made with.
        let allowed = credentials::permissions(&pod.namespace, "_INBOX.pod");
        let may = |list: &[String]| {
            account == Account::Work && list.iter().any(|filter| subject::matches(filter, subject))
        };
        let why = match namespace {
            Some(namespace) if class.is_some() && namespace != pod.namespace.as_str() => {
                format!(": its namespace is {}, not {namespace}", pod.namespace)
            }
            _ => String::new(),
        };
        for (text, may) in
            [(&mut publish, may(&allowed.publish_allow)), (&mut subscribe, may(&allowed.subscribe_allow))]
        {
            let verdict = if may { "may".to_owned() } else { format!("may not{why}") };
            *text = format!("{text}. {}/{} {verdict}", pod.namespace, pod.name);
        }
    }
    (publish, subscribe)
}

/// The stream that keeps `subject` at a place.
fn row(subject: &str, account: Account, place: Place) -> Option<&'static Row> {
    TABLE.iter().find(|row| {
        let captures = |filter: &str| subject::matches(filter, subject);
        row.place == place
            && row.account == account
            && match row.bucket {
                true => captures(&subject::kv(row.name, ">")),
                false => row.subjects.iter().any(|filter| captures(filter)),
            }
    })
}

fn bound(row: &Row) -> String {
    named(&row.stream(), row)
}

/// A stream of that name, with the bounds of `row`.
fn named(stream: &str, row: &Row) -> String {
    let full = match row.full {
        Full::Refuse => "when it is full the publisher is refused and told",
        Full::DropOldest => "when it is full the oldest goes",
    };
    let kept = if row.bucket { "the last entry of each key, " } else { "" };
    format!("{stream} ({kept}{} MiB; {full})", row.size_mib_max)
}

fn stored(subject: &str, account: Account, origin: &Origin) -> String {
    let place = if *origin == Origin::Hub { Place::Hub } else { Place::Edge };
    if let (Origin::Node(node), Some(rest)) = (origin, subject.strip_prefix("down.")) {
        let there = row(subject::ARRIVING, account, place).map(bound).unwrap_or_default();
        return format!("what came from the hub as to.{node}.{rest}: in {there}; what is said here: in none");
    }
    match row(subject, account, place) {
        Some(row) if row.for_each_node => match subject::sent_to(subject) {
            Some(node) => {
                let stream = named(&subject::to_stream(&node), row);
                format!("at {} in {stream}, if there is such a node", origin.name())
            }
            None => format!("no: {subject} names no node"),
        },
        Some(row) => format!("at {} in {}", origin.name(), bound(row)),
        None => format!("no: no stream at {} takes it", origin.name()),
    }
}

fn crosses(subject: &str, account: Account, class: Option<&Class>, origin: &Origin) -> String {
    let allows = |list: &[String]| list.iter().any(|filter| subject::matches(filter, subject));
    let node = match origin {
        Origin::Hub => return from_hub(subject, account, class),
        Origin::Node(node) => node,
    };
    let lane = Lane::ALL.into_iter().find(|lane| {
        let of = if lane.is_alone() { Account::Work } else { Account::Control };
        of == account && subject::matches(lane.filter(), subject)
    });
    if let Some((lane, raised)) = lane.and_then(|lane| Some((lane, subject::raised(node, lane, subject)?))) {
        let there = row(&raised, Account::Control, Place::Hub).map(bound).unwrap_or_default();
        return format!("to the hub as {raised}, in the lane {}; there in {there}", lane.as_str());
    }
    let (control, work) = node_permissions(node);
    let permissions = if account == Account::Control { control } else { work };
    match class {
        Some(class) if class.word == "app" => {
            "live, as it is: to the hub and to every node that is linked now".to_owned()
        }
        Some(class) if class.word == "local" => "no: local. stays on its node".to_owned(),
        Some(class) if class.word == "down" => "no: nothing is carried up from down.".to_owned(),
        _ if allows(&permissions.publish_allow) => {
            format!("live, as it is, to the hub: {node} may say it there")
        }
        _ if allows(&permissions.subscribe_allow) => {
            format!("no: {node} hears it from the hub, and may not say it there")
        }
        _ => format!("no: the hub takes nothing of that name from {node}"),
    }
}

fn from_hub(subject: &str, account: Account, class: Option<&Class>) -> String {
    if let Some(node) = subject::sent_to(subject) {
        let topic = subject.splitn(3, '.').nth(2).unwrap_or_default();
        let there = row(subject::ARRIVING, Account::Work, Place::Edge).map(bound).unwrap_or_default();
        return format!("to {node} as down.{topic}, exactly once and in order; there in {there}, and heard");
    }
    if let Some(class) = class {
        return match class.word {
            "app" => "live, as it is: to every node that is linked now".to_owned(),
            "up" | "bulk" => format!("no: {}. goes up, and there is nothing above the hub", class.word),
            _ => format!("no: {}. is a node's own", class.word),
        };
    }
    // The node that the subject names, if any, may hear it.
    let named = subject.split('.').filter_map(|token| NodeName::new(token).ok()).find(|node| {
        let (control, work) = node_permissions(node);
        let list = if account == Account::Control { control } else { work }.subscribe_allow;
        node.as_str() != HUB && list.iter().any(|filter| subject::matches(filter, subject))
    });
    match named {
        Some(node) => format!("live, as it is, to {node} while it is linked"),
        None => "no: no node may hear it from the hub".to_owned(),
    }
}

/// Runs it.
pub async fn run(args: ExplainArgs, screen: &mut Screen) -> Outcome<()> {
    let explained = explain(&args.subject, &args.from, args.pod.as_ref());
    if args.json {
        return screen.json(&as_json(&args.subject, &args.from, &explained)).await;
    }
    screen.print(&render(&args.subject, &args.from, &explained, screen.colour)).await
}

fn lines(explained: &Explanation) -> [(&'static str, &str); 6] {
    [
        ("class", &explained.class),
        ("account", explained.account),
        ("publish", &explained.publish),
        ("subscribe", &explained.subscribe),
        ("stored", &explained.stored),
        ("crosses", &explained.crosses),
    ]
}

fn as_json(subject: &str, origin: &Origin, explained: &Explanation) -> Value {
    let mut json = json!({"subject": subject, "from": origin.name()});
    if let Value::Object(map) = &mut json {
        map.extend(lines(explained).map(|(name, text)| (name.to_owned(), text.into())));
    }
    json
}

fn render(subject: &str, origin: &Origin, explained: &Explanation, colour: bool) -> String {
    let mut out = format!("{} from {}\n", paint(&safe(subject), Paint::Name, colour), origin.name());
    for (name, text) in lines(explained) {
        out.push_str(&format!("  {}{}\n", paint(&format!("{name:<12}"), Paint::Dim, colour), safe(text)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(subject: &str, from: &str, asked: Option<&str>) -> Explanation {
        explain(subject, &origin(from).unwrap(), asked.map(|text| pod(text).unwrap()).as_ref())
    }

    #[test]
    fn what_becomes_of_a_message_is_said() {
        // (subject, from, stored begins with, crosses begins with)
        for (subject, from, stored, crosses) in [
            (
                "up.demo.temp",
                "edge-a",
                "at edge-a in UPLINK (256 MiB; when it is full the publisher is refused",
                "to the hub as from.edge-a.demo.temp, in the lane workload; there in FROM (1024 MiB",
            ),
            (
                "bulk.demo.temp",
                "edge-a",
                "at edge-a in BULK (128 MiB; when it is full the oldest goes)",
                "to the hub as from-bulk.edge-a.demo.temp, in the lane bulk",
            ),
            (
                "app.demo.temp",
                "edge-a",
                "no: no stream at edge-a takes it",
                "live, as it is: to the hub and to every",
            ),
            ("app.demo.temp", "hub", "no: no stream at hub", "live, as it is: to every node"),
            ("local.demo.temp", "edge-a", "no", "no: local. stays on its node"),
            (
                "down.demo.temp",
                "edge-a",
                "what came from the hub as to.edge-a.demo.temp: in DOWN (64 MiB; ",
                "no: nothing is carried up",
            ),
            (
                "to.edge-a.demo.temp",
                "hub",
                "at hub in TO_edge-a (16 MiB; when it is full the publisher is refused and told), if there",
                "to edge-a as down.demo.temp, exactly once and in order; there in DOWN (64 MiB",
            ),
            (
                "to.edge-a.demo.temp",
                "edge-a",
                "no: no stream at edge-a",
                "no: the hub takes nothing of that name",
            ),
            ("up.demo.temp", "hub", "no: no stream at hub takes it", "no: up. goes up"),
            ("factory.temp", "edge-a", "no", "no: the hub takes nothing of that name from edge-a"),
            (
                "ew.evt.sync.LinkUp",
                "edge-a",
                "at edge-a in OUTBOX (64 MiB",
                "to the hub as ew.in.edge-a.events.ew.evt.sync.LinkUp, in the lane events; there in UP (1024 MiB",
            ),
            ("ew.dead.sync", "edge-a", "at edge-a in DEAD (16 MiB", "no: the hub takes nothing"),
            ("ew.dead.events", "hub", "at hub in DEAD (64 MiB", "no: no node may hear it"),
            ("ew.hb.edge-a", "edge-a", "no", "live, as it is, to the hub: edge-a may say it there"),
            ("ew.hb.edge-b", "edge-a", "no", "no: the hub takes nothing of that name from edge-a"),
            ("ew.cmd.edge-a.host.modules", "hub", "no", "live, as it is, to edge-a while it is linked"),
            ("ew.cmd.edge-a.host.modules", "edge-a", "no", "no: edge-a hears it from the hub"),
            ("from.edge-a.demo.temp", "hub", "at hub in FROM (1024 MiB", "no: no node may hear it"),
            (
                "$KV.local.pods.demo.x.u",
                "edge-a",
                "at edge-a in KV_local (the last entry of each key, 256 MiB",
                "no: the hub takes nothing",
            ),
        ] {
            let have = of(subject, from, None);
            assert!(have.stored.starts_with(stored), "{subject} from {from}: {have:#?}");
            assert!(have.crosses.starts_with(crosses), "{subject} from {from}: {have:#?}");
        }
    }

    #[test]
    fn who_may_is_what_the_pods_login_says() {
        for (subject, asked, publish, subscribe) in [
            (
                "up.demo.temp",
                "demo/sensor",
                "namespace demo on edge-a; an operator. demo/sensor may",
                "demo/sensor may not",
            ),
            ("app.demo.temp", "demo/sensor", "demo/sensor may", "demo/sensor may"),
            (
                "app.demo.temp",
                "other/x",
                "other/x may not: its namespace is other, not demo",
                "other/x may not: its namespace is other, not demo",
            ),
            (
                "down.demo.temp",
                "demo/sensor",
                "no pod: down is not for pods to publish; an operator. demo/sensor may not",
                "demo/sensor may",
            ),
            ("ew.hb.edge-a", "demo/sensor", "demo/sensor may not", "demo/sensor may not"),
            ("factory.temp", "demo/sensor", "demo/sensor may not", "demo/sensor may not"),
            (
                "app.temp",
                "demo/sensor",
                "a subject is app.<namespace>.<topic>; an operator. demo/sensor may not",
                "demo/sensor may not",
            ),
        ] {
            let have = of(subject, "edge-a", Some(asked));
            assert!(have.publish.ends_with(publish), "{subject}: {have:#?}");
            assert!(have.subscribe.ends_with(subscribe), "{subject}: {have:#?}");
        }
    }

    #[test]
    fn every_class_is_explained() {
        for class in schemas::class::CLASSES {
            let have = of(&format!("{}.demo.x", class.word), "edge-a", None);
            assert!(have.class.starts_with(&format!("{}: ", class.word)) && !have.class.contains('*'));
            assert_eq!(have.publish.starts_with("the pods of namespace demo"), class.publish, "{have:#?}");
            assert_eq!(have.stored.starts_with("at edge-a in "), class.acknowledged, "{have:#?}");
        }
        let want = "\
local.demo.x from edge-a
  class       local: stays on the node; at most once
  account     WORK
  publish     the pods of namespace demo on edge-a; an operator
  subscribe   the pods of namespace demo on edge-a; an operator
  stored      no: no stream at edge-a takes it
  crosses     no: local. stays on its node
";
        let edge = origin("edge-a").unwrap();
        assert_eq!(render("local.demo.x", &edge, &of("local.demo.x", "edge-a", None), false), want);
    }
}
