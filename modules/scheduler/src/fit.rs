//! Which node a pod gets: first every node that cannot have it is put aside with its reason, then the rest is scored.
//!
//! The reasons are Kubernetes' own words, so that people and tools find what they know. The order is deterministic: the
//! same pods and nodes give the same placement.

use std::collections::BTreeMap;

use schemas::object::Object;
use serde_json::Value;

use crate::affinity;
use crate::demand::{self, Amounts};

/// Pods that a node takes when it does not say how many.
pub const PODS_DEFAULT: u128 = 110;
/// What a pod that asks for nothing is taken to use when nodes are compared (Kubernetes' figures): 100m and 200Mi.
const SCORED_DEFAULTS: [(&str, u128); 2] = [("cpu", 100), ("memory", 200 * 1024 * 1024 * 1000)];

/// What matters of a Node object.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// `metadata.resourceVersion`.
    pub revision: u64,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// The condition `Ready` is `True`, and the object is not being deleted.
    pub ready: bool,
    /// `spec.unschedulable`.
    pub unschedulable: bool,
    /// `spec.taints`.
    pub taints: Vec<Taint>,
    /// `status.allocatable`.
    pub allocatable: Amounts,
}

/// One of `spec.taints`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Taint {
    /// `key`.
    pub key: String,
    /// `value`.
    pub value: String,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub effect: String,
}

/// What the pods on a node ask for together.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Used {
    amounts: Amounts,
    scored: Amounts,
    pods: u128,
}

impl Used {
    /// One more pod.
    pub fn add(&mut self, demand: &Amounts) {
        demand::add(&mut self.amounts, demand);
        demand::add(&mut self.scored, &scored(demand));
        self.pods += 1;
    }
}

fn scored(demand: &Amounts) -> Amounts {
    SCORED_DEFAULTS
        .iter()
        .map(|(name, default)| ((*name).to_owned(), demand.get(*name).copied().unwrap_or(*default)))
        .collect()
}

impl Node {
    /// Reads what matters. What cannot be read is taken as not there.
    pub fn read(object: &Object) -> Self {
        let text =
            |value: &Value, name: &str| value.get(name).and_then(Value::as_str).unwrap_or("").to_owned();
        let labels = object.get(&["metadata", "labels"]).and_then(Value::as_object);
        let taints = object.get(&["spec", "taints"]).and_then(Value::as_array);
        Self {
            revision: object.revision(),
            name: object.name().to_owned(),
            labels: labels
                .into_iter()
                .flatten()
                .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
                .collect(),
            ready: object.condition("Ready") == Some("True") && !object.is_deleting(),
            unschedulable: object.get(&["spec", "unschedulable"]).and_then(Value::as_bool).unwrap_or(false),
            taints: taints
                .into_iter()
                .flatten()
                .map(|t| Taint { key: text(t, "key"), value: text(t, "value"), effect: text(t, "effect") })
                .collect(),
            allocatable: demand::amounts(object.get(&["status", "allocatable"])),
        }
    }

    /// Why the pod cannot be here; empty when it can.
    fn refusals(&self, pod: &Object, demand: &Amounts, used: &Used) -> Vec<String> {
        let cordon = Taint { key: "node.kubernetes.io/unschedulable".into(), ..Taint::no_schedule() };
        if self.unschedulable && !affinity::tolerates(pod, &cordon) {
            return vec!["node(s) were unschedulable".into()];
        }
        let hard = |taint: &&Taint| taint.effect == "NoSchedule" || taint.effect == "NoExecute";
        if let Some(taint) = self.taints.iter().filter(hard).find(|taint| !affinity::tolerates(pod, taint)) {
            return vec![format!("node(s) had untolerated taint {{{}: {}}}", taint.key, taint.value)];
        }
        if !self.ready {
            return vec!["node(s) were not ready".into()];
        }
        if !affinity::wants(pod, &self.name, &self.labels) {
            return vec!["node(s) didn't match Pod's node affinity/selector".into()];
        }
        let mut refusals = Vec::new();
        let pods_max = self.allocatable.get("pods").map_or(PODS_DEFAULT, |pods| pods / 1000);
        if used.pods >= pods_max {
            refusals.push("Too many pods".to_owned());
        }
        for (name, asked) in demand.iter().filter(|(_, asked)| **asked > 0) {
            let have = match self.allocatable.get(name) {
                Some(have) => *have,
                // A node that does not measure its disk is not full.
                None if name == "ephemeral-storage" => continue,
                None => 0,
            };
            let taken = used.amounts.get(name).copied().unwrap_or(0);
            if taken.saturating_add(*asked) > have {
                refusals.push(format!("Insufficient {name}"));
            }
        }
        refusals
    }

    /// Higher is better: room left, preferences met, soft taints not borne.
    fn score(&self, pod: &Object, demand: &Amounts, used: &Used) -> i64 {
        let asked = scored(demand);
        let free: u128 = SCORED_DEFAULTS
            .iter()
            .map(|(name, _)| {
                let have = self.allocatable.get(*name).copied().unwrap_or(0);
                let taken =
                    [&used.scored, &asked].iter().filter_map(|amounts| amounts.get(*name)).sum::<u128>();
                have.saturating_sub(taken).saturating_mul(100).checked_div(have).unwrap_or(0)
            })
            .sum();
        let soft = |taint: &&Taint| taint.effect == "PreferNoSchedule" && !affinity::tolerates(pod, taint);
        let disliked = i64::try_from(self.taints.iter().filter(soft).count()).unwrap_or(i64::MAX / 1000);
        i64::try_from(free / 2).unwrap_or(0) + 2 * affinity::preference(pod, &self.name, &self.labels)
            - 300 * disliked
    }
}

impl Taint {
    fn no_schedule() -> Self {
        Self { effect: "NoSchedule".into(), ..Self::default() }
    }
}

/// The node for the pod, or why there is none.
pub fn place(
    pod: &Object,
    demand: &Amounts,
    nodes: &BTreeMap<String, Node>,
    used: &BTreeMap<String, Used>,
) -> Result<String, String> {
    if nodes.is_empty() {
        return Err("no nodes available to schedule pods".to_owned());
    }
    let nothing = Used::default();
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let mut best: Option<(i64, u128, &str)> = None;
    for node in nodes.values() {
        let used = used.get(&node.name).unwrap_or(&nothing);
        let refusals = node.refusals(pod, demand, used);
        if refusals.is_empty() {
            let score = node.score(pod, demand, used);
            // Equal scores: fewer pods, then the first name.
            if best.is_none_or(|(top, pods, _)| score > top || (score == top && used.pods < pods)) {
                best = Some((score, used.pods, &node.name));
            }
        }
        for reason in refusals {
            *reasons.entry(reason).or_default() += 1;
        }
    }
    best.map(|(_, _, name)| name.to_owned()).ok_or_else(|| {
        let mut reasons: Vec<String> =
            reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        reasons.sort();
        format!("0/{} nodes are available: {}.", nodes.len(), reasons.join(", "))
    })
}
