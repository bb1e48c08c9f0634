//! KubeEdge's `Rule` and `RuleEndpoint` (`rules.kubeedge.io/v1`): messages from one kind of endpoint to another.
//!
//! The shapes are KubeEdge's (1.23, `rules.kubeedge.io_v1`), so that its manifests apply unchanged. Which pairs of endpoints go
//! together is known only when both exist: that is the router's to say. Beyond KubeEdge are the endpoint type `nats` and
//! the expressions `filter` and `map`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::expression::{Expression, TEXT_MAX_BYTES};
use crate::fault::Fault;
use crate::name::{NodeName, check_object_name};
use crate::object::Object;
use crate::view::View;

/// The kinds' `apiVersion`.
pub const API_VERSION: &str = "rules.kubeedge.io/v1";
/// The types of endpoints.
pub const ENDPOINT_TYPES: [&str; 4] = ["rest", "eventbus", "servicebus", "nats"];
/// The most entries of `sourceResource`, `targetResource` and `properties`.
pub const RESOURCE_MAX: usize = 16;
/// The longest value in them.
pub const VALUE_MAX_BYTES: usize = 2048;
/// In `sourceResource` and `targetResource`: the node that the rule is for.
pub const NODE_NAME: &str = "node_name";

/// `spec` of a Rule.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleSpec {
    /// Name of the RuleEndpoint that messages come from.
    #[serde(default)]
    pub source: String,
    /// `path` (rest); `topic`, `node_name` (eventbus); `target_url`, `node_name` (servicebus).
    #[serde(default)]
    pub source_resource: BTreeMap<String, String>,
    /// Name of the RuleEndpoint that they go to.
    #[serde(default)]
    pub target: String,
    /// `resource` (rest); `topic` (eventbus); `path` (servicebus).
    #[serde(default)]
    pub target_resource: BTreeMap<String, String>,
    /// Only messages for which this expression holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// The message becomes what this expression makes of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub map: Option<String>,
}

/// `status` of a Rule.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleStatus {
    /// Messages that were delivered.
    #[serde(default)]
    pub success_messages: i64,
    /// Messages that were not.
    #[serde(default)]
    pub fail_messages: i64,
    /// Why not: the last reasons.
    #[serde(default)]
    pub errors: Vec<String>,
}

/// `spec` of a RuleEndpoint.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleEndpointSpec {
    /// One of [`ENDPOINT_TYPES`].
    #[serde(default)]
    pub rule_endpoint_type: String,
    /// `service_port` (servicebus).
    #[serde(default)]
    pub properties: BTreeMap<String, String>,
}

/// A Rule as people write it.
pub type RuleView = View<RuleSpec, RuleStatus>;
/// A RuleEndpoint as people write it.
pub type RuleEndpointView = View<RuleEndpointSpec>;

/// Checks a Rule; gives every fault that it has.
pub fn read_rule(object: &Object) -> Result<RuleSpec, Vec<Fault>> {
    let view: RuleView =
        object.view().map_err(|error| vec![Fault::invalid("spec", "", error.to_string())])?;
    let spec = view.spec;
    let mut faults = Vec::new();
    for (field, name) in [("spec.source", &spec.source), ("spec.target", &spec.target)] {
        if name.is_empty() {
            faults.push(Fault::required(field, "name a RuleEndpoint of this namespace"));
        } else if let Err(error) = check_object_name(name) {
            faults.push(Fault::invalid(field, name, error.to_string()));
        }
    }
    for (field, map) in
        [("spec.sourceResource", &spec.source_resource), ("spec.targetResource", &spec.target_resource)]
    {
        bounded(field, map, &mut faults);
        if let Some(Err(error)) = map.get(NODE_NAME).map(|name| NodeName::new(name.as_str())) {
            faults.push(Fault::invalid(format!("{field}.{NODE_NAME}"), "", error.to_string()));
        }
    }
    for (field, text) in [("spec.filter", &spec.filter), ("spec.map", &spec.map)] {
        if let Some(text) = text.as_deref()
            && let Err(why) = Expression::read(text)
        {
            let shown = if text.len() > TEXT_MAX_BYTES { "" } else { text };
            faults.push(Fault::invalid(field, shown, why));
        }
    }
    if faults.is_empty() { Ok(spec) } else { Err(faults) }
}

/// Checks a RuleEndpoint; gives every fault that it has.
pub fn read_endpoint(object: &Object) -> Result<RuleEndpointSpec, Vec<Fault>> {
    let view: RuleEndpointView =
        object.view().map_err(|error| vec![Fault::invalid("spec", "", error.to_string())])?;
    let spec = view.spec;
    let mut faults = Vec::new();
    let field = "spec.ruleEndpointType";
    if spec.rule_endpoint_type.is_empty() {
        faults.push(Fault::required(field, "one of rest, eventbus, servicebus, nats"));
    } else if !ENDPOINT_TYPES.contains(&spec.rule_endpoint_type.as_str()) {
        faults.push(Fault::unsupported(field, &spec.rule_endpoint_type, &ENDPOINT_TYPES));
    }
    bounded("spec.properties", &spec.properties, &mut faults);
    if let Some(port) = spec.properties.get("service_port")
        && !port.parse::<u16>().is_ok_and(|port| port > 0)
    {
        let field = "spec.properties.service_port";
        faults.push(Fault::invalid(field, port, "must be a port: 1 to 65535"));
    }
    if faults.is_empty() { Ok(spec) } else { Err(faults) }
}

fn bounded(field: &str, map: &BTreeMap<String, String>, faults: &mut Vec<Fault>) {
    if map.len() > RESOURCE_MAX {
        faults.push(Fault::too_many(field, map.len(), RESOURCE_MAX));
    }
    for (key, value) in map.iter().filter(|(key, value)| key.len() + value.len() > VALUE_MAX_BYTES) {
        let key: String = key.chars().take(63).collect();
        let why = format!("{} bytes: must have at most {VALUE_MAX_BYTES}", value.len());
        faults.push(Fault::invalid(format!("{field}.{key}"), "", why));
    }
}

impl RuleSpec {
    /// The nodes that the rule names; empty when it is for every node.
    pub fn nodes(&self) -> Vec<&str> {
        let named = [&self.source_resource, &self.target_resource];
        named.into_iter().filter_map(|map| map.get(NODE_NAME)).map(String::as_str).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn object(kind: &str, spec: Value) -> Object {
        let mut object = Object::new(API_VERSION, kind, "default", "my-rule");
        object.set(&["spec"], spec);
        object
    }

    #[test]
    fn the_rules_of_kubeedges_documentation_are_rules() {
        let spec = json!({"source": "my-rest", "sourceResource": {"path": "/a"}, "target": "my-eventbus",
            "targetResource": {"topic": "test"}});
        assert_eq!(read_rule(&object("Rule", spec)).unwrap().nodes(), Vec::<&str>::new());
        let spec = json!({"source": "my-eventbus", "sourceResource": {"topic": "test", "node_name": "edge-1"},
            "target": "my-rest", "targetResource": {"resource": "http://a/b"}});
        assert_eq!(read_rule(&object("Rule", spec)).unwrap().nodes(), ["edge-1"]);
        for spec in [
            json!({"ruleEndpointType": "rest", "properties": {}}),
            json!({"ruleEndpointType": "eventbus"}),
            json!({"ruleEndpointType": "servicebus", "properties": {"service_port": "6666"}}),
            json!({"ruleEndpointType": "nats"}),
        ] {
            assert!(read_endpoint(&object("RuleEndpoint", spec.clone())).is_ok(), "{spec}");
        }
    }

    #[test]
    fn every_fault_is_named_with_its_path() {
        let ok = |field: &str, value: Value| {
            let mut spec = json!({"source": "a", "target": "b"});
            spec[field] = value;
            spec
        };
        let many: BTreeMap<String, String> = (0..17).map(|n| (n.to_string(), String::new())).collect();
        for (spec, want) in [
            (json!({}), vec!["spec.source", "spec.target"]),
            (json!({"source": "A b", "target": "b"}), vec!["spec.source"]),
            (ok("sourceResource", json!({"node_name": "No!"})), vec!["spec.sourceResource.node_name"]),
            (ok("targetResource", json!({"x": "y".repeat(3000)})), vec!["spec.targetResource.x"]),
            (ok("sourceResource", json!(many)), vec!["spec.sourceResource"]),
            (ok("filter", json!("x".repeat(5000))), vec!["spec.filter"]),
            (ok("filter", json!("payload.c >")), vec!["spec.filter"]),
            (ok("map", json!("paylod.c")), vec!["spec.map"]),
            (ok("sourceResource", json!([])), vec!["spec"]),
        ] {
            let faults = read_rule(&object("Rule", spec.clone())).err().unwrap_or_default();
            assert_eq!(faults.iter().map(|f| f.field.as_str()).collect::<Vec<_>>(), want, "{spec}");
        }
        for (spec, want) in [
            (json!({}), "spec.ruleEndpointType"),
            (json!({"ruleEndpointType": "kafka"}), "spec.ruleEndpointType"),
            (
                json!({"ruleEndpointType": "servicebus", "properties": {"service_port": "0"}}),
                "spec.properties.service_port",
            ),
        ] {
            let faults = read_endpoint(&object("RuleEndpoint", spec.clone())).unwrap_err();
            assert_eq!(faults[0].field, want, "{spec}");
        }
    }
}
