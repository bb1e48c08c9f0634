//! What is served, as clients ask for it: `/api`, `/apis`, `/api/v1`, aggregated discovery, `/version`.
//!
//! Source: Kubernetes "API discovery" (`apidiscovery.k8s.io/v2`). All of it is read off the table of kinds.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::resource::{KINDS, Kind};

/// The Kubernetes version whose conventions are followed: kubectl compares its own with it.
pub const KUBERNETES_MINOR: &str = "32";

/// The content type of aggregated discovery.
pub const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// `/version`.
pub fn version() -> Value {
    json!({
        "major": "1", "minor": KUBERNETES_MINOR,
        "gitVersion": format!("v1.{KUBERNETES_MINOR}.0+edgewire-{}", env!("CARGO_PKG_VERSION")),
        "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none", "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, arch()),
    })
}

/// The architecture in Go's words.
fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The groups other than core that have kinds, with their versions.
fn groups() -> BTreeSet<(&'static str, &'static str)> {
    KINDS.iter().filter(|k| !k.group.is_empty()).map(|k| (k.group, k.version)).collect()
}

/// `/api`.
pub fn core_versions() -> Value {
    json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})
}

/// `/apis`.
pub fn group_list() -> Value {
    let list: Vec<Value> = groups()
        .into_iter()
        .map(|(group, version)| {
            let gv = json!({"groupVersion": format!("{group}/{version}"), "version": version});
            json!({"name": group, "versions": [gv], "preferredVersion": gv})
        })
        .collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": list})
}

/// `/api/v1`, `/apis/<group>/<version>`; `None` when nothing of it is served.
pub fn resource_list(group: &str, version: &str) -> Option<Value> {
    let mut list = Vec::new();
    for kind in KINDS.iter().filter(|k| (k.group, k.version) == (group, version)) {
        list.push(json!({
            "name": kind.plural, "singularName": kind.singular, "namespaced": kind.namespaced,
            "kind": kind.kind, "verbs": kind.verbs, "shortNames": kind.short, "categories": kind.categories,
        }));
        for sub in kind.subresources {
            list.push(json!({
                "name": format!("{}/{}", kind.plural, sub.name), "singularName": "",
                "namespaced": kind.namespaced, "kind": sub.kind, "verbs": sub.verbs,
            }));
        }
    }
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    (!list.is_empty()).then(|| {
        json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": list})
    })
}

/// `/api` (core) or `/apis` (the rest) in the aggregated form.
pub fn aggregated(core: bool) -> Value {
    let groups = if core { BTreeSet::from([("", "v1")]) } else { groups() };
    let items: Vec<Value> = groups
        .into_iter()
        .map(|(group, version)| {
            let kinds = KINDS.iter().filter(|k| (k.group, k.version) == (group, version));
            let resources: Vec<Value> = kinds.map(aggregated_kind).collect();
            json!({
                "metadata": if group.is_empty() { json!({}) } else { json!({"name": group}) },
                "versions": [{"version": version, "freshness": "Current", "resources": resources}],
            })
        })
        .collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items})
}

fn aggregated_kind(kind: &Kind) -> Value {
    let response = |name: &str| json!({"group": "", "version": "", "kind": name});
    let subresources: Vec<Value> = kind
        .subresources
        .iter()
        .map(|sub| json!({"subresource": sub.name, "responseKind": response(sub.kind), "verbs": sub.verbs}))
        .collect();
    json!({
        "resource": kind.plural, "singularResource": kind.singular, "responseKind": response(kind.kind),
        "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
        "verbs": kind.verbs, "shortNames": kind.short, "categories": kind.categories, "subresources": subresources,
    })
}
