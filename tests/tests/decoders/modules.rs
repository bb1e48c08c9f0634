//! What comes to a module, damaged: entries, live and stored messages, and what it saved. Each module decodes for itself, so
//! each is tried whole, on the subjects that it declares.

use bus::flow::{Flow, Kind};
use bus::module::{Delivery, Entry, EntryValue, Input, Message, Module};
use schemas::Timestamp;
use schemas::name::NodeName;
use schemas::object::Object;
use schemas::subject::{self, Lane};

use crate::{golden, tries};

const NOW: Timestamp = Timestamp(1_700_000_000_000);

fn node() -> NodeName {
    "n1".parse().unwrap()
}

/// Subjects that a filter stands for: the names that the samples bear.
fn subjects(filter: &str) -> Vec<String> {
    let pod = subject::report("containers", "pod", &["demo", "web", "u-1"]);
    let raised = |lane, original: &str| subject::raised(&node(), lane, original).unwrap();
    let plain: Vec<String> = [
        "=.pods.demo.a",
        "=.nodes.=.n1",
        "=.configmaps.demo.c",
        "=.secrets.demo.s",
        "=.events.demo.e",
        "n1.pods.demo.web.u-1",
        "pods.demo.web.u-1",
        "configmaps.demo.c.c",
        "_lineage",
        "token.t",
        "node.n1",
    ]
    .map(str::to_owned)
    .into_iter()
    .chain([
        raised(Lane::State, &pod),
        raised(Lane::State, &subject::report("sync", "node", &["n1"])),
        raised(Lane::Events, &subject::event("containers", "Started")),
    ])
    .collect();
    let mut found: Vec<String> = plain.into_iter().filter(|one| subject::matches(filter, one)).collect();
    found.push(
        filter
            .split('.')
            .map(|t| {
                if t == "*" {
                    "n1"
                } else if t == ">" {
                    "x"
                } else {
                    t
                }
            })
            .collect::<Vec<_>>()
            .join("."),
    );
    found
}

fn inputs<D>(flows: &[Flow], bytes: &[u8]) -> Vec<Input<D>> {
    let mut inputs = Vec::new();
    for flow in flows {
        for subject in subjects(&flow.subject) {
            let payload = bytes.to_vec();
            let headers = schemas::envelope::Headers::new();
            inputs.push(match flow.kind {
                Kind::Watch { bucket } => Input::Entry(Entry {
                    bucket: bucket.to_owned(),
                    key: subject,
                    revision: 9,
                    value: EntryValue::Put(payload),
                }),
                Kind::Consume { stream, .. } => Input::Delivery(Delivery {
                    stream: stream.to_owned(),
                    sequence: 9,
                    subject,
                    headers,
                    payload,
                    attempt: 1,
                }),
                Kind::Subscribe { .. } => Input::Message(Message {
                    account: flow.account,
                    subject,
                    headers,
                    payload,
                    reply: Some("_INBOX.n1.x".to_owned()),
                }),
                _ => continue,
            });
        }
        if let Kind::Watch { bucket } = flow.kind {
            inputs.push(Input::Current { bucket: bucket.to_owned(), filter: flow.subject.clone() });
        }
    }
    // From 2^40 on: the node's looks at what the hub has for its workloads.
    for token in (0..4).chain((1 << 40)..(1 << 40) + 4) {
        inputs.push(Input::Answered { token, outcome: Ok(bytes.to_vec()) });
    }
    inputs.push(Input::Tick);
    inputs
}

fn samples() -> Vec<Vec<u8>> {
    let pod = br#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","namespace":"demo","uid":"u-1"},"spec":{"nodeName":"n1","containers":[{"name":"c","image":"i","resources":{"requests":{"cpu":"1"}}}],"volumes":[{"name":"v","configMap":{"name":"c"}}],"affinity":{"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":{"nodeSelectorTerms":[{"matchExpressions":[{"key":"a","operator":"Gt","values":["1"]}]}]}}},"tolerations":[{"operator":"Exists"}]}}"#;
    let machine = br#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"n1","uid":"u-2"},"spec":{"taints":[{"key":"a","effect":"NoSchedule"}]},"status":{"allocatable":{"cpu":"4","memory":"1Gi","pods":"9"},"conditions":[{"type":"Ready","status":"True"}]}}"#;
    let mut samples = golden("");
    for object in [&pod[..], machine] {
        let stored = serde_json::from_slice::<Object>(object).unwrap().to_bytes();
        assert!(Object::from_bytes(&stored, 1).is_ok());
        samples.push(stored);
    }
    samples
}

/// Each input on its own, and all of them in a row: a valid one first, as a module that has work to do meets it.
fn module<M: Module>(name: &str, flows: &[Flow], make: impl Fn() -> M) {
    let samples = samples();
    tries(name, &samples, |bytes| {
        let mut module = make();
        let saved = ["pod.u-1", "data.configmaps.demo.c", "sequence", "rewound", "said", "downlink", "x"]
            .map(|key| (key.to_owned(), bytes.to_vec()));
        module.restore(saved.into(), NOW);
        for input in inputs(flows, bytes) {
            module.apply(input, NOW);
        }
    });
}

#[test]
fn the_hubs_modules() {
    module("nodes", &nodes::flows(), || nodes::Nodes::new("b", "s"));
    module("scheduler", &scheduler::flows(), || scheduler::Scheduler::new("s"));
    module("placement", &placement::flows(), placement::state::Placement::new);
    module("events", &events::flows(), || events::Events::new("s"));
    module("ledger", &ledger::flows(), || ledger::Ledger::new("b", ledger::Streams::new()));
    module("router at the hub", &router::hub::flows(), router::hub::Router::default);
    module("links", &sync::hub::flows(), sync::hub::Links::default);
    module("downlink", &sync::downlink::hub::flows(), sync::downlink::hub::Downlinks::default);
    module("identity at the hub", &identity::flows(), identity::decide::Identity::default);
}

#[test]
fn the_nodes_modules() {
    let of = node();
    module("sync", &sync::edge::flows(&of), || sync::edge::Sync::new(node(), "b".into(), Vec::new()));
    module("containers", &containers::flows(&of), || containers::Containers::new(node(), "s".to_owned()));
    module("router on a node", &router::edge::flows(&of), || router::edge::Router::new(node()));
    module("credentials", &credentials::flows(&node()), || credentials::Credentials::new(node()));
    module("topicmap", &topicmap::flows(), || topicmap::TopicMaps::new(node()));
    module("identity on a node", &identity::edge::flows(&of), || identity::edge::Membership::new(node()));
}
