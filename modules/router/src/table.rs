//! The routing table: rules and endpoints read once, and what goes where. Pure; hub and node hold the same.
//!
//! A rule says which node or namespace it is for, and what it may read and write follows from its namespace: a rule's
//! author is not who runs the node. What does not fit is a *broken* rule, with the reason that its status shows.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemas::expression::Expression;
use schemas::name::NodeName;
use schemas::object::Object;
use schemas::rule::{self, RuleEndpointSpec, RuleSpec};
use schemas::topic::RESERVED;
use schemas::topic_map::{End, subject_of};
use schemas::{fault, pattern, subject};

/// The most rules of a table; more are broken.
pub const RULES_MAX: usize = 2_000;
/// The most segments of a path.
pub const SEGMENTS_MAX: usize = 64;

/// Namespace and name.
pub type Name = (String, String);

/// One rule, ready to be followed.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Where its messages come from.
    pub from: From,
    /// Where they go.
    pub to: To,
    /// Only those for which it holds.
    pub filter: Option<Expression>,
    /// What becomes of one.
    pub map: Option<Expression>,
}

/// Where messages come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum From {
    /// The hub's REST entry, from this path on; `None` stands for any one segment.
    Rest(Vec<Option<String>>),
    /// Subjects of a node's WORK, MQTT topics among them; any of these filters.
    Node(NodeName, Vec<String>),
    /// A node's service bus, with this target URL.
    Service(NodeName, String),
    /// What came up from nodes, as the hub's stream FROM has it.
    Hub(String),
}

/// Where they go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum To {
    /// A URL, which the hub calls.
    Url(String),
    /// An MQTT topic of the node that is meant.
    Topic(String),
    /// A service on the loopback of the node that is meant.
    Service {
        /// Its port.
        port: u16,
        /// Where its path begins, with the slash.
        path: String,
    },
    /// A subject in WORK: of the node that is meant, or of the hub.
    Subject(String),
}

/// All rules.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Table {
    /// Those that can be followed, by UID.
    pub routes: BTreeMap<String, Arc<Route>>,
    /// Those that cannot, and why.
    pub broken: BTreeMap<Name, String>,
}

impl Table {
    /// Reads them all.
    pub fn compile<'a>(
        rules: impl Iterator<Item = &'a Object>,
        endpoints: &BTreeMap<Name, RuleEndpointSpec>,
    ) -> Self {
        let mut table = Self::default();
        for object in rules.filter(|object| !object.is_deleting()) {
            let read = if table.routes.len() < RULES_MAX {
                route(object, endpoints)
            } else {
                Err(format!("there are more than {RULES_MAX} rules: this one is not followed"))
            };
            match read {
                Ok(route) => drop(table.routes.insert(route.uid.clone(), Arc::new(route))),
                Err(why) => {
                    let name = (object.namespace().to_owned(), object.name().to_owned());
                    table.broken.insert(name, why);
                }
            }
        }
        table
    }

    /// The rule that a call of the REST entry means, and what of the path is beyond the rule's own: the longest path,
    /// literal before wildcard.
    pub fn rest(&self, namespace: &str, path: &str) -> Option<(&Arc<Route>, String)> {
        let asked: Vec<&str> = segments(path).collect();
        let of = self.routes.values().filter(|route| route.namespace == namespace);
        let found = of.filter_map(|route| match &route.from {
            From::Rest(own) if begins(&asked, own) => {
                let literal = own.iter().flatten().count();
                Some(((own.len(), literal, std::cmp::Reverse(&route.name)), route, own.len()))
            }
            _ => None,
        });
        let (_, route, taken) = found.max_by_key(|(rank, ..)| *rank)?;
        Some((route, asked.get(taken..).unwrap_or_default().join("/")))
    }

    /// The rules that take what comes on `subject` of `node`.
    pub fn on_node(&self, node: &NodeName, subject: &str) -> Vec<&Arc<Route>> {
        let takes = |route: &&Arc<Route>| match &route.from {
            From::Node(of, filters) => of == node && filters.iter().any(|f| subject::matches(f, subject)),
            _ => false,
        };
        self.routes.values().filter(takes).collect()
    }

    /// The rule for a call of `node`'s service bus.
    pub fn service(&self, node: &NodeName, url: &str) -> Option<&Arc<Route>> {
        self.routes
            .values()
            .find(|route| matches!(&route.from, From::Service(of, own) if of == node && own == url))
    }

    /// What a node has to keep for its rules: filters that do not meet, and let through all that any rule takes.
    pub fn sources(&self, node: &NodeName) -> Vec<String> {
        let filters = self.routes.values().filter_map(|route| match &route.from {
            From::Node(of, filters) if of == node => Some(filters.clone()),
            _ => None,
        });
        union(filters.flatten().collect())
    }
}

fn segments(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|segment| !segment.is_empty())
}

fn begins(asked: &[&str], own: &[Option<String>]) -> bool {
    let fits = |(asked, own): (&&str, &Option<String>)| own.as_deref().is_none_or(|own| own == *asked);
    asked.len() >= own.len() && asked.iter().zip(own).all(fits)
}

/// The fewest filters that let through what any of these does, and of which no two meet: a stream takes no others. Two that
/// meet become one for all that begins as both do.
pub fn union(mut filters: Vec<String>) -> Vec<String> {
    filters.sort();
    filters.dedup();
    'again: loop {
        for at in 0..filters.len() {
            for other in at + 1..filters.len() {
                let (Some(a), Some(b)) = (filters.get(at), filters.get(other)) else { continue };
                if !pattern::overlaps(a, b) {
                    continue;
                }
                let both = if pattern::covers(a, b) {
                    a.clone()
                } else if pattern::covers(b, a) {
                    b.clone()
                } else {
                    let common = a.split('.').zip(b.split('.')).take_while(|(a, b)| a == b && *a != ">");
                    common.map(|(token, _)| token).chain([">"]).collect::<Vec<_>>().join(".")
                };
                filters.remove(other);
                filters.remove(at);
                filters.push(both);
                continue 'again;
            }
        }
        filters.sort();
        return filters;
    }
}

fn route(object: &Object, endpoints: &BTreeMap<Name, RuleEndpointSpec>) -> Result<Route, String> {
    let spec = rule::read_rule(object).map_err(|faults| fault::line(&faults))?;
    let namespace = object.namespace();
    let endpoint = |name: &str| {
        endpoints
            .get(&(namespace.to_owned(), name.to_owned()))
            .ok_or_else(|| format!("there is no RuleEndpoint {name:?} in namespace {namespace:?}"))
    };
    let (source, target) = (endpoint(&spec.source)?, endpoint(&spec.target)?);
    let from = from(source, &spec, namespace)?;
    let to = to(target, &spec, namespace, &from)?;
    let expression = |field: &str, text: &Option<String>| {
        let read = text.as_deref().map(Expression::read).transpose();
        read.map_err(|error| format!("spec.{field}: {error}"))
    };
    Ok(Route {
        namespace: namespace.to_owned(),
        name: object.name().to_owned(),
        uid: object.uid().to_owned(),
        from,
        to,
        filter: expression("filter", &spec.filter)?,
        map: expression("map", &spec.map)?,
    })
}

fn needed<'a>(map: &'a BTreeMap<String, String>, side: &str, key: &str) -> Result<&'a str, String> {
    match map.get(key).map(String::as_str).filter(|value| !value.is_empty()) {
        Some(value) => Ok(value),
        None => Err(format!("spec.{side}.{key} is missing")),
    }
}

fn from(endpoint: &RuleEndpointSpec, spec: &RuleSpec, namespace: &str) -> Result<From, String> {
    let resource = &spec.source_resource;
    let node = || {
        let name = needed(resource, "sourceResource", rule::NODE_NAME)?;
        NodeName::new(name).map_err(|error| format!("spec.sourceResource.node_name: {error}"))
    };
    match endpoint.rule_endpoint_type.as_str() {
        "rest" => {
            let path = needed(resource, "sourceResource", "path")?;
            let wild = |segment: &str| segment.starts_with('{') && segment.ends_with('}');
            let own: Vec<_> = segments(path).map(|s| (!wild(s)).then(|| s.to_owned())).collect();
            if own.is_empty() || own.len() > SEGMENTS_MAX {
                return Err(format!("spec.sourceResource.path must have from 1 to {SEGMENTS_MAX} segments"));
            }
            Ok(From::Rest(own))
        }
        "eventbus" => {
            let topic = needed(resource, "sourceResource", "topic")?;
            let filters = End::Mqtt(format!("{namespace}/{}", topic.trim_start_matches('/'))).filters();
            let bad = filters.iter().find_map(|filter| takable(filter, namespace).err());
            match bad {
                Some(why) => Err(format!("spec.sourceResource.topic: {why}")),
                None => Ok(From::Node(node()?, filters)),
            }
        }
        "servicebus" => {
            Ok(From::Service(node()?, needed(resource, "sourceResource", "target_url")?.to_owned()))
        }
        "nats" => {
            let filter = needed(resource, "sourceResource", "subject")?;
            let named = |error| format!("spec.sourceResource.subject: {error}");
            pattern::check(filter).map_err(named)?;
            if resource.contains_key(rule::NODE_NAME) {
                takable(filter, namespace).map_err(named)?;
                return Ok(From::Node(node()?, vec![filter.to_owned()]));
            }
            let mut tokens = filter.split('.');
            match (tokens.next(), tokens.next(), tokens.next(), tokens.next()) {
                (Some("from" | "from-bulk"), Some(of), Some(third), Some(_))
                    if third == namespace && of != ">" =>
                {
                    Ok(From::Hub(filter.to_owned()))
                }
                _ => Err(named(format!("use from.<node or *>.{namespace}.…, or name a node in node_name"))),
            }
        }
        other => Err(format!("RuleEndpoint {:?} is of type {other:?}, which is none", spec.source)),
    }
}

/// May a rule of that namespace take what comes on `filter` at a node? `up.` and `bulk.` go to the hub by themselves.
fn takable(filter: &str, namespace: &str) -> Result<(), String> {
    pattern::check(filter)?;
    let mut tokens = filter.split('.');
    let (first, second) = (tokens.next().unwrap_or(""), tokens.next());
    match first {
        "app" | "local" if second == Some(namespace) && tokens.next().is_some() => Ok(()),
        _ if RESERVED.contains(&first) || first.starts_with(['$', '_']) => {
            Err(format!("{first:?} is reserved; what is taken has to begin with {namespace:?}"))
        }
        _ if first == namespace && second.is_some() => Ok(()),
        _ => Err(format!("is not within namespace {namespace:?}")),
    }
}

/// May a rule of that namespace say something on `subject` of a node or the hub?
pub fn givable(subject: &str, namespace: &str) -> Result<(), String> {
    if !subject::is_publishable(subject) || subject.contains(['*', '>']) {
        return Err(format!("{subject:?} is not a subject that can be published to"));
    }
    let mut tokens = subject.split('.');
    let first = tokens.next().unwrap_or("");
    let own = tokens.next() == Some(namespace);
    match first {
        "app" | "local" if own && tokens.next().is_some() => Ok(()),
        "$hw" if subject.starts_with(&format!("$hw.events.device.{namespace}.")) => Ok(()),
        _ if RESERVED.contains(&first) || first.starts_with(['$', '_']) => Err(format!(
            "{first:?} is reserved or another namespace's: a rule of {namespace:?} may not publish there"
        )),
        _ => Ok(()),
    }
}

fn to(endpoint: &RuleEndpointSpec, spec: &RuleSpec, namespace: &str, from: &From) -> Result<To, String> {
    let resource = &spec.target_resource;
    let (kind, is_rest) = (endpoint.rule_endpoint_type.as_str(), matches!(from, From::Rest(_)));
    match (kind, is_rest) {
        ("rest", false) => {
            let url = needed(resource, "targetResource", "resource")?;
            let read =
                reqwest::Url::parse(url).map_err(|error| format!("spec.targetResource.resource: {error}"))?;
            if !["http", "https"].contains(&read.scheme()) || !read.has_host() {
                return Err("spec.targetResource.resource must be an http:// or https:// URL".to_owned());
            }
            Ok(To::Url(url.to_owned()))
        }
        ("eventbus", true) => {
            let topic = needed(resource, "targetResource", "topic")?;
            if topic.contains(['+', '#']) {
                return Err("spec.targetResource.topic must have no wildcard".to_owned());
            }
            givable(&subject_of(topic), namespace)
                .map_err(|why| format!("spec.targetResource.topic: {why}"))?;
            Ok(To::Topic(topic.to_owned()))
        }
        ("servicebus", true) => {
            let port = needed(&endpoint.properties, "properties (of the RuleEndpoint)", "service_port")?;
            let port = port.parse().map_err(|_| format!("service_port {port:?} is not a port"))?;
            let path = needed(resource, "targetResource", "path")?;
            Ok(To::Service { port, path: format!("/{}", path.trim_matches('/')) })
        }
        ("nats", _) if !matches!(from, From::Service(..)) => {
            let subject = needed(resource, "targetResource", "subject")?;
            let named = |why| format!("spec.targetResource.subject: {why}");
            givable(subject, namespace).map_err(named)?;
            if !is_rest && !subject.starts_with(&format!("app.{namespace}.")) {
                return Err(named(format!("use app.{namespace}.… at the hub")));
            }
            Ok(To::Subject(subject.to_owned()))
        }
        _ => Err(format!(
            "no rule goes to a RuleEndpoint of type {kind:?} from there; there are rest to eventbus, servicebus and nats; \
             eventbus and nats to rest and nats; servicebus to rest"
        )),
    }
}
