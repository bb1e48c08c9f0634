//! Where a pod wants to be (`nodeSelector`, `nodeAffinity`) and which taints it bears (`tolerations`).
//!
//! Source: Kubernetes, "Assigning Pods to Nodes" and "Taints and Tolerations". What cannot be read matches nothing, so
//! a mistake leaves the pod unscheduled, with a reason, rather than on the wrong node.

use std::collections::BTreeMap;

use schemas::object::Object;
use serde_json::Value;

use crate::fit::Taint;

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or("")
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// May the pod be on a node with this name and these labels?
pub fn wants(pod: &Object, name: &str, labels: &BTreeMap<String, String>) -> bool {
    let selector = pod.get(&["spec", "nodeSelector"]).and_then(Value::as_object);
    let selected = selector
        .into_iter()
        .flatten()
        .all(|(key, value)| value.as_str().is_some_and(|value| labels.get(key).is_some_and(|l| l == value)));
    let required =
        pod.get(&["spec", "affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution"]);
    let required = required.filter(|required| !required.is_null());
    selected
        && required.is_none_or(|required| {
            list(required, "nodeSelectorTerms").iter().any(|term| term_matches(term, name, labels))
        })
}

/// The sum of the weights of the preferred terms that match.
pub fn preference(pod: &Object, name: &str, labels: &BTreeMap<String, String>) -> i64 {
    pod.get(&["spec", "affinity", "nodeAffinity", "preferredDuringSchedulingIgnoredDuringExecution"])
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter(|item| item.get("preference").is_some_and(|term| term_matches(term, name, labels)))
        .map(|item| item.get("weight").and_then(Value::as_i64).unwrap_or(0).clamp(0, 100))
        .sum()
}

/// All expressions of a term must match; a term without any matches nothing.
fn term_matches(term: &Value, name: &str, labels: &BTreeMap<String, String>) -> bool {
    let expressions = list(term, "matchExpressions");
    let fields = list(term, "matchFields");
    !(expressions.is_empty() && fields.is_empty())
        && expressions.iter().all(|e| expression_matches(e, labels.get(text(e, "key")).map(String::as_str)))
        && fields.iter().all(|e| text(e, "key") == "metadata.name" && expression_matches(e, Some(name)))
}

fn expression_matches(expression: &Value, have: Option<&str>) -> bool {
    let values = list(expression, "values");
    let among = |have: &str| values.iter().any(|value| value.as_str() == Some(have));
    let bound = || values.first().and_then(Value::as_str).and_then(|text| text.parse::<i64>().ok());
    let number = have.and_then(|have| have.parse::<i64>().ok());
    match text(expression, "operator") {
        "In" => have.is_some_and(among),
        "NotIn" => !have.is_some_and(among),
        "Exists" => have.is_some(),
        "DoesNotExist" => have.is_none(),
        "Gt" => number.zip(bound()).is_some_and(|(have, bound)| have > bound),
        "Lt" => number.zip(bound()).is_some_and(|(have, bound)| have < bound),
        _ => false,
    }
}

/// Does the pod bear the taint?
pub fn tolerates(pod: &Object, taint: &Taint) -> bool {
    let tolerations = pod.get(&["spec", "tolerations"]).and_then(Value::as_array);
    tolerations.into_iter().flatten().any(|toleration| {
        let key = text(toleration, "key");
        let effect = text(toleration, "effect");
        let value = match text(toleration, "operator") {
            "" | "Equal" => !key.is_empty() && text(toleration, "value") == taint.value,
            "Exists" => true,
            _ => false,
        };
        value && (key.is_empty() || key == taint.key) && (effect.is_empty() || effect == taint.effect)
    })
}
