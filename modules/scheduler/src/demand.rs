//! What a pod asks for: amounts by resource name (`cpu`, `memory`, ...), in thousandths.
//!
//! Source: Kubernetes, "Resource Management for Pods and Containers" and "Sidecar Containers": the containers run
//! together, init containers one after the other before them; an init container with `restartPolicy: Always` stays.

use std::collections::BTreeMap;

use schemas::object::Object;
use schemas::quantity;
use serde_json::Value;

/// Amounts by resource name, in thousandths of a unit.
pub type Amounts = BTreeMap<String, u128>;

/// Reads a quantity that stands as text or as a number.
pub fn amount(value: &Value) -> Option<u128> {
    match value {
        Value::String(text) => quantity::milli(text),
        Value::Number(number) => quantity::milli(&number.to_string()),
        _ => None,
    }
}

/// Reads a map of quantities. What cannot be read is left out.
pub fn amounts(value: Option<&Value>) -> Amounts {
    let map = value.and_then(Value::as_object);
    map.into_iter().flatten().filter_map(|(name, value)| Some((name.clone(), amount(value)?))).collect()
}

/// What the pod asks for altogether.
pub fn of_pod(pod: &Object) -> Amounts {
    let list = |name: &str| pod.get(&["spec", name]).and_then(Value::as_array).into_iter().flatten();
    let mut running = Amounts::new();
    for container in list("containers") {
        add(&mut running, &of_container(container));
    }
    let mut staying = Amounts::new();
    let mut starting = Amounts::new();
    for container in list("initContainers") {
        let mut own = of_container(container);
        if container.get("restartPolicy").and_then(Value::as_str) == Some("Always") {
            add(&mut staying, &own);
            own = staying.clone();
        } else {
            add(&mut own, &staying);
        }
        largest(&mut starting, &own);
    }
    add(&mut running, &staying);
    largest(&mut running, &starting);
    running
}

/// A container's requests; where only a limit is given, that.
fn of_container(container: &Value) -> Amounts {
    let mut amounts_of = amounts(container.pointer("/resources/limits"));
    amounts_of.extend(amounts(container.pointer("/resources/requests")));
    amounts_of
}

/// Adds amounts.
pub fn add(to: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let have = to.entry(name.clone()).or_default();
        *have = have.saturating_add(*amount);
    }
}

fn largest(to: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        let have = to.entry(name.clone()).or_default();
        *have = (*have).max(*amount);
    }
}
