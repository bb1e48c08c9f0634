//! The kinds of the message channel: what is wrong with a Topic, a TopicMap, a Rule or a RuleEndpoint, and what is filled in.
//!
//! Their rules stand in `schemas`, because the nodes read the same objects; here they get Kubernetes' words. Pure.

use schemas::fault::{Fault, FaultKind};
use schemas::object::Object;
use schemas::rule;
use schemas::topic::{self, Topic};
use schemas::topic_map::TopicMap;
use serde_json::Value;

use crate::status::Cause;
use crate::validate::{check_label_value, check_qualified_name};

fn cause(fault: Fault) -> Cause {
    let Fault { kind, field, value, why } = fault;
    match kind {
        FaultKind::Required => Cause::required(field, &why),
        FaultKind::Duplicate => Cause::duplicate(field, &value),
        FaultKind::Invalid => Cause::invalid(field, &value.into(), why),
        FaultKind::Unsupported => Cause {
            reason: "FieldValueNotSupported",
            field,
            message: format!("Unsupported value: {value:?}: {why}"),
        },
        FaultKind::TooMany => {
            Cause { reason: "FieldValueTooMany", field, message: format!("Too many: {value}: {why}") }
        }
    }
}

fn causes<T>(read: Result<T, Vec<Fault>>) -> Vec<Cause> {
    read.err().unwrap_or_default().into_iter().map(cause).collect()
}

/// `spec.nodeSelector` is made of labels.
fn selector(object: &Object) -> Vec<Cause> {
    let mut causes = Vec::new();
    for (key, value) in object.get(&["spec", "nodeSelector"]).and_then(Value::as_object).into_iter().flatten()
    {
        if let Err(why) = check_qualified_name(key) {
            causes.push(Cause::invalid("spec.nodeSelector", &key.as_str().into(), why));
        }
        if let Err(why) = check_label_value(value.as_str().unwrap_or("")) {
            causes.push(Cause::invalid(format!("spec.nodeSelector[{key}]"), value, why));
        }
    }
    causes
}

/// Topic.
pub fn topic(object: &Object) -> Vec<Cause> {
    causes(Topic::read(object)).into_iter().chain(selector(object)).collect()
}

/// TopicMap.
pub fn topic_map(object: &Object) -> Vec<Cause> {
    causes(TopicMap::read(object)).into_iter().chain(selector(object)).collect()
}

/// Rule.
pub fn rule(object: &Object) -> Vec<Cause> {
    causes(rule::read_rule(object))
}

/// RuleEndpoint.
pub fn rule_endpoint(object: &Object) -> Vec<Cause> {
    causes(rule::read_endpoint(object))
}

fn default(object: &mut Object, path: &[&str], value: impl Into<Value>) {
    if object.get(path).is_none_or(Value::is_null) && object.get(&["spec"]).is_some_and(Value::is_object) {
        object.set(path, value);
    }
}

/// Topic: class and bound.
pub fn topic_defaults(object: &mut Object) {
    default(object, &["spec", "class"], "durable");
    default(object, &["spec", "sizeMax"], topic::SIZE_DEFAULT);
}

/// A change that a node could not follow without losing what the stream holds.
pub fn topic_update(old: &Object, new: &Object) -> Vec<Cause> {
    let class = |object: &Object| object.text(&["spec", "class"]).to_owned();
    if class(old) == class(new) {
        return Vec::new();
    }
    // The server keeps a stream's persistence as it was made.
    vec![Cause::invalid("spec.class", &class(new).into(), "field is immutable: make another Topic")]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(spec: Value) -> Object {
        let mut object = Object::new(topic::API_VERSION, "Topic", "demo", "t");
        object.set(&["spec"], spec);
        object
    }

    #[test]
    fn faults_are_told_in_kubernetes_words() {
        let found = topic(&object(json!({"subjects": ["app.other.x"], "class": "fast", "consumers": [{}],
            "nodeSelector": {"a b": "c"}})));
        let told: Vec<_> = found.iter().map(|cause| (cause.reason, cause.field.as_str())).collect();
        assert_eq!(
            told,
            [
                ("FieldValueInvalid", "spec.subjects[0]"),
                ("FieldValueNotSupported", "spec.class"),
                ("FieldValueRequired", "spec.consumers[0].name"),
                ("FieldValueInvalid", "spec.nodeSelector")
            ]
        );
        assert!(found[1].message.contains("supported values: \"durable\", \"bulk\""), "{}", found[1].message);
    }

    #[test]
    fn what_is_filled_in_is_valid_and_the_class_stays() {
        let mut made = object(json!({"subjects": ["app.demo.x"]}));
        topic_defaults(&mut made);
        assert!(topic(&made).is_empty());
        assert_eq!(made.text(&["spec", "sizeMax"]), "64Mi");
        let before = made.clone();
        made.set(&["spec", "class"], "bulk");
        assert_eq!(topic_update(&before, &made).len(), 1);
        assert!(topic_update(&before, &before).is_empty());
    }
}
