//! The table of served kinds: one row each, and everything else in this crate reads it.
//!
//! To serve another kind, add a row: its names, scope, verbs, subresources, selectable fields, columns, and the
//! functions that default and validate it. Rules that only one kind has stand in `validate_pod.rs` and its like.

use schemas::Timestamp;
use schemas::object::Object;
use schemas::subject::{self, Resource};
use serde_json::Value;

use crate::status::Cause;
use crate::table::{self, Column};
use crate::{defaults, validate, validate_channel, validate_pod};
use k8s_openapi::api::core::v1;
use schemas::rule::{RuleEndpointView, RuleView};
use schemas::topic::TopicView;
use schemas::topic_map::TopicMapView;

/// A part of an object with a path of its own, such as `pods/log`.
#[derive(Debug)]
pub struct Subresource {
    /// Last part of the path.
    pub name: &'static str,
    /// Kind of what is sent or given there.
    pub kind: &'static str,
    /// What may be done.
    pub verbs: &'static [&'static str],
}

/// One served kind.
pub struct Kind {
    /// API group; empty for core.
    pub group: &'static str,
    /// Version in the group.
    pub version: &'static str,
    /// `kind`.
    pub kind: &'static str,
    /// Plural, as in paths.
    pub plural: &'static str,
    /// Singular, as kubectl accepts it.
    pub singular: &'static str,
    /// kubectl's short names.
    pub short: &'static [&'static str],
    /// kubectl's categories, such as `all`.
    pub categories: &'static [&'static str],
    /// Does it live in a namespace?
    pub namespaced: bool,
    /// What may be done.
    pub verbs: &'static [&'static str],
    /// Its subresources.
    pub subresources: &'static [Subresource],
    /// `metadata.generation` counts the changes of `spec`.
    pub generation: bool,
    /// Fields that a field selector may name, besides `metadata.name` and `metadata.namespace`.
    pub fields: &'static [&'static str],
    /// Columns of its Table.
    pub columns: &'static [Column],
    /// Its row in a Table.
    pub cells: fn(&Object, Timestamp) -> Vec<Value>,
    /// Reads the document with its typed struct and writes it again: what is missing then was unknown.
    pub view: fn(&Value) -> Result<Value, String>,
    /// Fills in what Kubernetes fills in.
    pub defaults: fn(&mut Object),
    /// What is wrong with an object of this kind.
    pub validate: fn(&Object) -> Vec<Cause>,
    /// What is wrong with changing the first into the second.
    pub validate_update: fn(&Object, &Object) -> Vec<Cause>,
    /// What `kubectl explain` says of it.
    pub about: &'static str,
}

/// Of Kubernetes' own kinds.
const KUBERNETES: &str = "Its fields are described at https://kubernetes.io/docs/reference/kubernetes-api/";

impl std::fmt::Debug for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Kind({} {})", self.api_version(), self.kind)
    }
}

impl PartialEq for Kind {
    fn eq(&self, other: &Self) -> bool {
        (self.group, self.version, self.kind) == (other.group, other.version, other.kind)
    }
}

impl Kind {
    /// `v1`, or `group/version`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }
    /// Its name in the object store.
    pub fn resource(&self) -> Resource {
        Resource { group: self.group.to_owned(), plural: self.plural.to_owned() }
    }
    /// May `verb` be done?
    pub fn allows(&self, verb: &str) -> bool {
        self.verbs.contains(&verb)
    }
    /// Does the main path leave `status` alone because `/status` is there for it?
    pub fn has_status(&self) -> bool {
        self.subresources.iter().any(|s| s.name == "status")
    }
    /// `https://.../pods` in words: `pods`, or `deployments.apps`.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }
}

/// The row of a kind by its path.
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|k| (k.group, k.version, k.plural) == (group, version, plural))
}

const ALL: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
const STATUS: &[&str] = &["get", "patch", "update"];

fn nothing(_: &mut Object) {}
fn valid(_: &Object) -> Vec<Cause> {
    Vec::new()
}
fn any_change(_: &Object, _: &Object) -> Vec<Cause> {
    Vec::new()
}

/// The served kinds.
pub static KINDS: &[Kind] = &[
    Kind {
        group: "",
        version: "v1",
        kind: "ConfigMap",
        plural: "configmaps",
        singular: "configmap",
        short: &["cm"],
        categories: &[],
        namespaced: true,
        verbs: ALL,
        subresources: &[],
        generation: false,
        fields: &[],
        columns: table::CONFIG_MAP,
        cells: table::config_map,
        view: validate::round_trip::<v1::ConfigMap>,
        defaults: nothing,
        validate: validate::config_map,
        validate_update: validate::config_map_update,
        about: KUBERNETES,
    },
    Kind {
        group: "",
        version: "v1",
        kind: "Event",
        plural: "events",
        singular: "event",
        short: &["ev"],
        categories: &[],
        namespaced: true,
        verbs: ALL,
        subresources: &[],
        generation: false,
        fields: &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
        columns: table::EVENT,
        cells: table::event,
        view: validate::round_trip::<v1::Event>,
        defaults: nothing,
        validate: valid,
        validate_update: any_change,
        about: KUBERNETES,
    },
    Kind {
        group: "",
        version: "v1",
        kind: "Namespace",
        plural: "namespaces",
        singular: "namespace",
        short: &["ns"],
        categories: &[],
        namespaced: false,
        // As in Kubernetes: no deletecollection, a slip would end everything.
        verbs: &["create", "delete", "get", "list", "patch", "update", "watch"],
        subresources: &[
            Subresource { name: "finalize", kind: "Namespace", verbs: &["update"] },
            Subresource { name: "status", kind: "Namespace", verbs: STATUS },
        ],
        generation: false,
        fields: &["status.phase"],
        columns: table::NAMESPACE,
        cells: table::namespace,
        view: validate::round_trip::<v1::Namespace>,
        defaults: defaults::namespace,
        validate: validate::namespace,
        validate_update: any_change,
        about: KUBERNETES,
    },
    Kind {
        group: "",
        version: "v1",
        kind: "Node",
        plural: "nodes",
        singular: "node",
        short: &["no"],
        categories: &[],
        namespaced: false,
        verbs: ALL,
        subresources: &[Subresource { name: "status", kind: "Node", verbs: STATUS }],
        generation: false,
        fields: &["spec.unschedulable"],
        columns: table::NODE,
        cells: table::node,
        view: validate::round_trip::<v1::Node>,
        defaults: nothing,
        validate: validate::node,
        validate_update: any_change,
        about: KUBERNETES,
    },
    Kind {
        group: "",
        version: "v1",
        kind: "Pod",
        plural: "pods",
        singular: "pod",
        short: &["po"],
        categories: &["all"],
        namespaced: true,
        verbs: ALL,
        subresources: &[
            Subresource { name: "binding", kind: "Binding", verbs: &["create"] },
            Subresource { name: "exec", kind: "PodExecOptions", verbs: &["create", "get"] },
            Subresource { name: "log", kind: "Pod", verbs: &["get"] },
            Subresource { name: "status", kind: "Pod", verbs: STATUS },
        ],
        generation: true,
        fields: &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ],
        columns: table::POD,
        cells: table::pod,
        view: validate::round_trip::<v1::Pod>,
        defaults: defaults::pod,
        validate: validate_pod::pod,
        validate_update: validate_pod::pod_update,
        about: KUBERNETES,
    },
    Kind {
        group: "",
        version: "v1",
        kind: "Secret",
        plural: "secrets",
        singular: "secret",
        short: &[],
        categories: &[],
        namespaced: true,
        verbs: ALL,
        subresources: &[],
        generation: false,
        fields: &["type"],
        columns: table::SECRET,
        cells: table::secret,
        view: validate::round_trip::<v1::Secret>,
        defaults: defaults::secret,
        validate: validate::secret,
        validate_update: validate::secret_update,
        about: KUBERNETES,
    },
    // Read-only, so always empty: `kubectl cluster-info` refuses to work without it. Creating says "not served yet".
    Kind {
        group: "",
        version: "v1",
        kind: "Service",
        plural: "services",
        singular: "service",
        short: &["svc"],
        categories: &["all"],
        namespaced: true,
        verbs: &["get", "list"],
        subresources: &[],
        generation: false,
        fields: &[],
        columns: table::NAME_AND_AGE,
        cells: table::name_and_age,
        view: validate::round_trip::<v1::Service>,
        defaults: nothing,
        validate: valid,
        validate_update: any_change,
        about: KUBERNETES,
    },
    Kind {
        group: subject::GROUP_EDGEWIRE,
        version: "v1alpha1",
        kind: "Topic",
        plural: "topics",
        singular: "topic",
        short: &[],
        categories: &[],
        namespaced: true,
        verbs: ALL,
        subresources: &[],
        generation: true,
        fields: &[],
        columns: table::TOPIC,
        cells: table::topic,
        view: validate::round_trip::<TopicView>,
        defaults: validate_channel::topic_defaults,
        validate: validate_channel::topic,
        validate_update: validate_channel::topic_update,
        about: "A stream on the nodes, declared for its namespace: spec.subjects [1..16] (app.<ns>., local.<ns>. or <ns>.), \
                class (durable, bulk), sizeMax (64Mi), ageMax, consumers [0..16] {name, filter, deliver: all or new}, \
                nodeSelector.",
    },
    Kind {
        group: subject::GROUP_EDGEWIRE,
        version: "v1alpha1",
        kind: "TopicMap",
        plural: "topicmaps",
        singular: "topicmap",
        short: &[],
        categories: &[],
        namespaced: true,
        verbs: ALL,
        subresources: &[],
        generation: true,
        fields: &[],
        columns: table::TOPIC_MAP,
        cells: table::topic_map,
        view: validate::round_trip::<TopicMapView>,
        defaults: nothing,
        validate: validate_channel::topic_map,
        validate_update: any_change,
        about: "Which MQTT topics become subjects and which subjects MQTT topics: spec.maps [1..64] {from, to, qos: 0 or 1, \
                retain}, where from and to are {mqtt: ...} or {subject: ...} and to may name {1} to {9}; nodeSelector.",
    },
    Kind {
        group: subject::GROUP_RULES,
        version: "v1",
        kind: "Rule",
        plural: "rules",
        singular: "rule",
        short: &[],
        categories: &[],
        namespaced: true,
        verbs: ALL,
        subresources: &[Subresource { name: "status", kind: "Rule", verbs: STATUS }],
        generation: true,
        fields: &[],
        columns: table::RULE,
        cells: table::rule,
        view: validate::round_trip::<RuleView>,
        defaults: nothing,
        validate: validate_channel::rule,
        validate_update: any_change,
        about: "KubeEdge's: messages from one RuleEndpoint to another. spec.source, sourceResource, target, targetResource; \
                status.successMessages, failMessages, errors.",
    },
    Kind {
        group: subject::GROUP_RULES,
        version: "v1",
        kind: "RuleEndpoint",
        plural: "ruleendpoints",
        singular: "ruleendpoint",
        short: &[],
        categories: &[],
        namespaced: true,
        verbs: ALL,
        subresources: &[],
        generation: true,
        fields: &[],
        columns: table::RULE_ENDPOINT,
        cells: table::rule_endpoint,
        view: validate::round_trip::<RuleEndpointView>,
        defaults: nothing,
        validate: validate_channel::rule_endpoint,
        validate_update: any_change,
        about: "KubeEdge's: where messages come from or go to. spec.ruleEndpointType (rest, eventbus, servicebus, nats), \
                properties.",
    },
];
