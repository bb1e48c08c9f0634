//! `Topic` (`edgewire.io/v1alpha1`): a stream on the nodes, declared for one namespace, with who may consume it.
//!
//! [`TopicSpec`] is the object as people write it; [`Topic::read`] checks it once and gives what the rest of the code works
//! with. What it may capture is its own namespace's: `app.<ns>.`, `local.<ns>.`, or `<ns>.` itself, which stays on the node.
//! `up.` and `bulk.` have streams of their own already, and no subject is captured twice.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::fault::Fault;
use crate::name::Namespace;
use crate::object::Object;
use crate::view::View;
use crate::{pattern, quantity, subject};

/// The kind's `apiVersion`.
pub const API_VERSION: &str = "edgewire.io/v1alpha1";
/// The most subjects of a Topic.
pub const SUBJECTS_MAX: usize = 16;
/// The most consumers of a Topic.
pub const CONSUMERS_MAX: usize = 16;
/// `sizeMax` when it is not given.
pub const SIZE_DEFAULT: &str = "64Mi";
/// The smallest `sizeMax`.
pub const SIZE_MIN_BYTES: u64 = 64 * 1024;
/// The largest `sizeMax`.
pub const SIZE_MAX_BYTES: u64 = 512 * 1024 * 1024;
/// The shortest `ageMax`.
pub const AGE_MIN_MS: u64 = 1_000;
/// The longest `ageMax`: ten years.
pub const AGE_MAX_MS: u64 = 10 * 365 * 24 * 3_600_000;
/// The longest name of a Topic: it is part of a stream's name, and that of a file's.
pub const NAME_MAX_BYTES: usize = 63;
/// Topics of one namespace on a node. Every login of the namespace has a handful of rights for each.
pub const NAMESPACE_TOPICS_MAX: usize = 32;
/// First tokens that mean something else than a namespace.
pub const RESERVED: [&str; 10] =
    ["app", "local", "up", "bulk", "down", "stored", "from", "from-bulk", "to", "ew"];

/// `spec` of a Topic.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TopicSpec {
    /// What the stream captures: NATS filters.
    #[serde(default)]
    pub subjects: Vec<String>,
    /// `durable` (the default) or `bulk`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// A quantity of bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_max: Option<String>,
    /// How long a message is kept: `90s`, `12h`, `1h30m`. Not given: until the stream is full.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_max: Option<String>,
    /// Who may consume it.
    #[serde(default)]
    pub consumers: Vec<ConsumerSpec>,
    /// Labels of the nodes that have it. None: every node.
    #[serde(default)]
    pub node_selector: BTreeMap<String, String>,
}

/// One of `spec.consumers`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConsumerSpec {
    /// Its name in the stream.
    #[serde(default)]
    pub name: String,
    /// Only these subjects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// `all` (the default) or `new`: from the time when it is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deliver: Option<String>,
}

/// A Topic as people write it.
pub type TopicView = View<TopicSpec>;

/// What an acknowledgement of the stream means, and what happens when it is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// It is on the disk; a full stream refuses.
    Durable,
    /// The node's server has it; from a full stream the oldest goes.
    Bulk,
}

impl Class {
    const ALL: [&str; 2] = ["durable", "bulk"];

    fn parse(text: &str) -> Option<Self> {
        match text {
            "durable" => Some(Self::Durable),
            "bulk" => Some(Self::Bulk),
            _ => None,
        }
    }
}

/// A durable pull consumer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Consumer {
    /// Its name.
    pub name: String,
    /// Only these subjects.
    pub filter: Option<String>,
    /// Only what comes after it was made.
    pub only_new: bool,
}

/// A checked Topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topic {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// What it captures.
    pub subjects: Vec<String>,
    /// What an acknowledgement means.
    pub class: Class,
    /// Bound in bytes.
    pub size_max_bytes: u64,
    /// How long a message is kept.
    pub age_max_ms: Option<u64>,
    /// Its consumers.
    pub consumers: Vec<Consumer>,
}

impl Topic {
    /// Checks an object; gives every fault that it has.
    pub fn read(object: &Object) -> Result<Self, Vec<Fault>> {
        let view: TopicView =
            object.view().map_err(|error| vec![Fault::invalid("spec", "", error.to_string())])?;
        let mut faults = Vec::new();
        let (namespace, name) = (object.namespace(), object.name());
        if name.len() > NAME_MAX_BYTES {
            let why = format!("must have at most {NAME_MAX_BYTES} bytes: it is part of a stream's name");
            faults.push(Fault::invalid("metadata.name", name, why));
        }
        let spec = view.spec;
        subjects(&spec.subjects, namespace, &mut faults);
        let class = spec.class.as_deref().unwrap_or("durable");
        let known = Class::parse(class);
        if known.is_none() {
            faults.push(Fault::unsupported("spec.class", class, &Class::ALL));
        }
        let size = spec.size_max.as_deref().unwrap_or(SIZE_DEFAULT);
        let size_max_bytes = size_max(size).map_err(|fault| faults.push(fault)).unwrap_or_default();
        let age_max_ms = match spec.age_max.as_deref().map(age_max) {
            Some(Ok(ms)) => Some(ms),
            Some(Err(fault)) => {
                faults.push(fault);
                None
            }
            None => None,
        };
        let consumers = consumers(&spec, &mut faults);
        selector(&spec.node_selector, &mut faults);
        let namespace = Namespace::new(namespace)
            .map_err(|error| faults.push(Fault::invalid("metadata.namespace", "", error.to_string())));
        match (namespace, known) {
            (Ok(namespace), Some(class)) if faults.is_empty() => Ok(Self {
                namespace,
                name: name.to_owned(),
                uid: object.uid().to_owned(),
                subjects: spec.subjects,
                class,
                size_max_bytes,
                age_max_ms,
                consumers,
            }),
            _ => Err(faults),
        }
    }

    /// The name of its stream, in WORK.
    pub fn stream(&self) -> String {
        subject::topic_stream(self.namespace.as_str(), &self.name)
    }
}

fn subjects(list: &[String], namespace: &str, faults: &mut Vec<Fault>) {
    if list.is_empty() {
        faults.push(Fault::required("spec.subjects", "name at least one subject"));
    }
    if list.len() > SUBJECTS_MAX {
        faults.push(Fault::too_many("spec.subjects", list.len(), SUBJECTS_MAX));
        return;
    }
    for (index, text) in list.iter().enumerate() {
        let field = format!("spec.subjects[{index}]");
        if let Err(why) = pattern::check(text).and_then(|()| capturable(text, namespace)) {
            faults.push(Fault::invalid(field, text, why));
        } else if let Some(other) = list.iter().take(index).find(|other| pattern::overlaps(other, text)) {
            faults.push(Fault::invalid(
                field,
                text,
                format!("meets {other:?}: no subject is captured twice"),
            ));
        }
    }
}

/// May a Topic of that namespace capture `filter`?
fn capturable(filter: &str, namespace: &str) -> Result<(), String> {
    let mut tokens = filter.split('.');
    let (first, second) = (tokens.next().unwrap_or(""), tokens.next());
    let forms = || format!("use app.{namespace}.…, local.{namespace}.… or {namespace}.…");
    match first {
        "app" | "local" if second == Some(namespace) && tokens.next().is_some() => Ok(()),
        "app" | "local" => Err(format!("is not within namespace {namespace:?}: {}", forms())),
        "up" | "bulk" => Err(format!("{first}. is kept in a stream of its own already: {}", forms())),
        _ if RESERVED.contains(&first) || first.starts_with(['$', '_']) => {
            Err(format!("{first:?} is reserved: {}", forms()))
        }
        _ if first == namespace && second.is_some() => Ok(()),
        _ => Err(format!("is not within namespace {namespace:?}: {}", forms())),
    }
}

fn size_max(text: &str) -> Result<u64, Fault> {
    let field = "spec.sizeMax";
    let bytes = quantity::units(text)
        .ok_or_else(|| Fault::invalid(field, text, "must be a quantity of bytes such as 64Mi"))?;
    if !(SIZE_MIN_BYTES..=SIZE_MAX_BYTES).contains(&bytes) {
        let why = format!("must be from {SIZE_MIN_BYTES} to {SIZE_MAX_BYTES} bytes (64Ki to 512Mi)");
        return Err(Fault::invalid(field, text, why));
    }
    Ok(bytes)
}

fn age_max(text: &str) -> Result<u64, Fault> {
    let wrong = |why: &str| Fault::invalid("spec.ageMax", text, why);
    let read = text.parse::<jiff::SignedDuration>();
    let ms = read.map_err(|_| wrong("must be a duration such as 90s, 30m or 12h"))?.as_millis();
    let ms = u64::try_from(ms).map_err(|_| wrong("must not be negative"))?;
    if !(AGE_MIN_MS..=AGE_MAX_MS).contains(&ms) {
        return Err(wrong("must be from 1s to ten years (87600h)"));
    }
    Ok(ms)
}

fn consumers(spec: &TopicSpec, faults: &mut Vec<Fault>) -> Vec<Consumer> {
    if spec.consumers.len() > CONSUMERS_MAX {
        faults.push(Fault::too_many("spec.consumers", spec.consumers.len(), CONSUMERS_MAX));
        return Vec::new();
    }
    let mut read: Vec<Consumer> = Vec::new();
    for (index, consumer) in spec.consumers.iter().enumerate() {
        let field = |name: &str| format!("spec.consumers[{index}].{name}");
        if consumer.name.is_empty() {
            faults.push(Fault::required(field("name"), "a consumer is pulled from by its name"));
        } else if let Err(error) = Namespace::new(consumer.name.as_str()) {
            // The same form as a namespace's: one label, one token.
            let why = error.to_string().replacen("namespace ", "", 1);
            faults.push(Fault::invalid(field("name"), &consumer.name, why));
        } else if read.iter().any(|other| other.name == consumer.name) {
            faults.push(Fault::duplicate(field("name"), &consumer.name));
        }
        if let Some(filter) = &consumer.filter {
            if let Err(why) = pattern::check(filter) {
                faults.push(Fault::invalid(field("filter"), filter, why));
            } else if !spec.subjects.iter().any(|outer| pattern::covers(outer, filter)) {
                let why = "is not within one of spec.subjects";
                faults.push(Fault::invalid(field("filter"), filter, why));
            }
        }
        let deliver = consumer.deliver.as_deref().unwrap_or("all");
        if !["all", "new"].contains(&deliver) {
            faults.push(Fault::unsupported(field("deliver"), deliver, &["all", "new"]));
        }
        read.push(Consumer {
            name: consumer.name.clone(),
            filter: consumer.filter.clone(),
            only_new: deliver == "new",
        });
    }
    read
}

/// The most labels of a `nodeSelector`.
pub const SELECTOR_MAX: usize = 16;

/// What is wrong with a `nodeSelector`. Its labels' own form is the API's to check, as of every label.
pub(crate) fn selector(labels: &BTreeMap<String, String>, faults: &mut Vec<Fault>) {
    if labels.len() > SELECTOR_MAX {
        faults.push(Fault::too_many("spec.nodeSelector", labels.len(), SELECTOR_MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn object(spec: Value) -> Object {
        let mut object = Object::new(API_VERSION, "Topic", "demo", "readings");
        object.set(&["metadata", "uid"], "u-1");
        object.set(&["spec"], spec);
        object
    }

    fn fields(spec: Value) -> Vec<String> {
        let faults = Topic::read(&object(spec)).err().unwrap_or_default();
        faults.into_iter().map(|fault| fault.field).collect()
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let topic = Topic::read(&object(json!({"subjects": ["app.demo.temp.>", "demo.x"], "consumers": [
            {"name": "all"}, {"name": "hot", "filter": "app.demo.temp.hot", "deliver": "new"}], "vendor": 1})))
        .unwrap();
        assert_eq!((topic.class, topic.size_max_bytes), (Class::Durable, 64 << 20));
        assert_eq!((topic.age_max_ms, topic.stream().as_str()), (None, "T_demo_readings"));
        assert_eq!(topic.consumers.iter().map(|c| c.only_new).collect::<Vec<_>>(), [false, true]);
        let spec =
            json!({"subjects": ["local.demo.*"], "class": "bulk", "sizeMax": "1Mi", "ageMax": "1h30m"});
        let topic = Topic::read(&object(spec)).unwrap();
        assert_eq!((topic.class, topic.size_max_bytes), (Class::Bulk, 1 << 20));
        assert_eq!(topic.age_max_ms, Some(5_400_000));
    }

    #[test]
    fn a_topic_captures_its_namespace_and_nothing_else() {
        for (subject, good) in [
            ("app.demo.x", true),
            ("app.demo.>", true),
            ("local.demo.*.y", true),
            ("demo.x", true),
            ("demo.>", true),
            ("app.demo", false),
            ("demo", false),
            ("app.other.x", false),
            ("app.*.x", false),
            ("app.>", false),
            ("*.demo.x", false),
            (">", false),
            ("up.demo.x", false),
            ("bulk.demo.x", false),
            ("down.demo.x", false),
            ("from.n1.demo", false),
            ("ew.cmd.x", false),
            ("$JS.API.>", false),
            ("_INBOX.>", false),
            ("other.x", false),
            ("app.demo.x*", false),
            ("app.demo..x", false),
            ("app.demo.>.x", false),
            ("", false),
        ] {
            let want: &[&str] = if good { &[] } else { &["spec.subjects[0]"] };
            assert_eq!(fields(json!({"subjects": [subject]})), want, "{subject}");
        }
        // A namespace may be called as a class is: then it has that class's form only.
        let mut named = object(json!({"subjects": ["up.x"]}));
        named.set(&["metadata", "namespace"], "up");
        assert!(Topic::read(&named).is_err());
    }

    #[test]
    fn every_fault_is_named_with_its_path() {
        let good = "app.demo.x";
        for (spec, want) in [
            (json!({}), vec!["spec.subjects"]),
            (json!({"subjects": vec!["demo.x"; 17]}), vec!["spec.subjects"]),
            (json!({"subjects": ["demo.>", "demo.a"]}), vec!["spec.subjects[1]"]),
            (json!({"subjects": [good], "class": "fast"}), vec!["spec.class"]),
            (json!({"subjects": [good], "sizeMax": "1"}), vec!["spec.sizeMax"]),
            (json!({"subjects": [good], "sizeMax": "2Gi"}), vec!["spec.sizeMax"]),
            (json!({"subjects": [good], "sizeMax": "much"}), vec!["spec.sizeMax"]),
            (json!({"subjects": [good], "ageMax": "-1s"}), vec!["spec.ageMax"]),
            (json!({"subjects": [good], "ageMax": "0s"}), vec!["spec.ageMax"]),
            (json!({"subjects": [good], "ageMax": "soon"}), vec!["spec.ageMax"]),
            (json!({"subjects": [good], "consumers": [{}]}), vec!["spec.consumers[0].name"]),
            (json!({"subjects": [good], "consumers": [{"name": "a.b"}]}), vec!["spec.consumers[0].name"]),
            (
                json!({"subjects": [good], "consumers": [{"name": "a"}, {"name": "a"}]}),
                vec!["spec.consumers[1].name"],
            ),
            (
                json!({"subjects": [good], "consumers": [{"name": "a", "filter": "app.demo.>", "deliver": "old"}]}),
                vec!["spec.consumers[0].filter", "spec.consumers[0].deliver"],
            ),
            (
                json!({"subjects": [good], "consumers": vec![json!({"name": "a"}); 17]}),
                vec!["spec.consumers"],
            ),
            (json!({"subjects": 7}), vec!["spec"]),
        ] {
            assert_eq!(fields(spec.clone()), want, "{spec}");
        }
        let mut long = object(json!({"subjects": [good]}));
        long.set(&["metadata", "name"], "x".repeat(64));
        assert_eq!(Topic::read(&long).unwrap_err()[0].field, "metadata.name");
    }
}
