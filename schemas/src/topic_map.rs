//! `TopicMap` (`edgewire.io/v1alpha1`): which MQTT topics become subjects of a namespace, and which subjects MQTT topics.
//!
//! On a node's server both are one space: the MQTT topic `a/b` is the subject `a.b` ([`subject_of`]). What a device sends
//! stays there under that name; a map gives it a second one, in a delivery class. A namespace's map may read and write what is
//! the namespace's, and MQTT topics that are no class's. [`Rule::apply`] is the whole of it: a name in, a name out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::fault::Fault;
use crate::name::Namespace;
use crate::object::Object;
use crate::topic::{RESERVED, selector};
use crate::view::View;
use crate::{pattern, subject};

/// The most maps of a TopicMap.
pub const MAPS_MAX: usize = 64;
/// The longest name that [`Rule::apply`] makes.
pub const NAME_MAX_BYTES: usize = 1024;

/// `spec` of a TopicMap.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TopicMapSpec {
    /// Labels of the nodes that have it. None: every node.
    #[serde(default)]
    pub node_selector: BTreeMap<String, String>,
    /// From where to where.
    #[serde(default)]
    pub maps: Vec<MapSpec>,
}

/// One of `spec.maps`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MapSpec {
    /// A filter: what is taken.
    #[serde(default)]
    pub from: EndSpec,
    /// A name, with `{1}` to `{9}` for what the filter's wildcards stood for.
    #[serde(default)]
    pub to: EndSpec,
    /// MQTT's quality of service, towards MQTT: 0 or 1 (the default).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qos: Option<i64>,
    /// Towards MQTT: kept for those who come later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retain: Option<bool>,
}

/// Where a map begins or ends: one of the two.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndSpec {
    /// An MQTT topic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mqtt: Option<String>,
    /// A subject.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
}

/// A TopicMap as people write it.
pub type TopicMapView = View<TopicMapSpec>;

/// A checked TopicMap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicMap {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Its maps.
    pub maps: Vec<Rule>,
}

/// One checked map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// What is taken.
    pub from: End,
    /// What it becomes.
    pub to: End,
    /// Towards MQTT: 0 or 1.
    pub qos: u8,
    /// Towards MQTT: kept for those who come later.
    pub retain: bool,
}

/// A filter or a template, by whose rules it is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum End {
    /// Levels between slashes; `+` is one, `#` the rest.
    Mqtt(String),
    /// Tokens between dots; `*` is one, `>` the rest.
    Subject(String),
}

/// Why a name cannot be mapped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// The result would be no legal name there.
    #[error("{0:?} cannot be a name there")]
    Illegal(String),
    /// The result would have over [`NAME_MAX_BYTES`].
    #[error("the name would be longer than {NAME_MAX_BYTES} bytes")]
    TooLong,
}

impl End {
    /// The separator of its parts.
    fn separator(&self) -> char {
        match self {
            End::Mqtt(_) => '/',
            End::Subject(_) => '.',
        }
    }

    /// As it was written.
    pub fn text(&self) -> &str {
        match self {
            End::Mqtt(text) | End::Subject(text) => text,
        }
    }

    /// The filter as NATS has it: what to subscribe to. An MQTT `a/#` is also `a` itself: two filters.
    pub fn filters(&self) -> Vec<String> {
        match self {
            End::Subject(filter) => vec![filter.clone()],
            End::Mqtt(filter) => {
                let parent = filter.strip_suffix("/#").filter(|parent| !parent.is_empty());
                std::iter::once(filter.as_str()).chain(parent).map(filter_of).collect()
            }
        }
    }

    fn one(&self) -> &'static str {
        if matches!(self, End::Mqtt(_)) { "+" } else { "*" }
    }

    fn rest(&self) -> &'static str {
        if matches!(self, End::Mqtt(_)) { "#" } else { ">" }
    }

    fn wildcards(&self) -> usize {
        self.text().split(self.separator()).filter(|part| *part == self.one() || *part == self.rest()).count()
    }

    /// What the wildcards stand for in `name`, each as its parts; `None` when the filter does not match.
    fn capture<'a>(&self, name: &'a str) -> Option<Vec<Vec<&'a str>>> {
        let mut parts = name.split(self.separator());
        let mut captured = Vec::new();
        for want in self.text().split(self.separator()) {
            if want == self.rest() {
                let rest: Vec<&str> = parts.collect();
                // `a/#` matches `a` as well; `a.>` does not match `a`.
                if rest.is_empty() && matches!(self, End::Subject(_)) {
                    return None;
                }
                captured.push(rest);
                return Some(captured);
            }
            let part = parts.next()?;
            if want == self.one() {
                captured.push(vec![part]);
            } else if want != part {
                return None;
            }
        }
        parts.next().is_none().then_some(captured)
    }
}

impl Rule {
    /// What `name` (an MQTT topic or a subject, as `from` is written) becomes; `None` when it is not taken.
    pub fn apply(&self, name: &str) -> Option<Result<String, MapError>> {
        Some(self.fill(&self.from.capture(name)?))
    }

    fn fill(&self, captured: &[Vec<&str>]) -> Result<String, MapError> {
        let separator = self.to.separator();
        let mut parts: Vec<String> = Vec::new();
        for part in self.to.text().split(separator) {
            match placeholder(part).and_then(|number| captured.get(number - 1)) {
                // It stands alone: what `#` or `>` stood for keeps its parts, also none.
                Some(values) => parts.extend(values.iter().map(|value| self.part(value))),
                None => {
                    let mut text = part.to_owned();
                    for (index, values) in captured.iter().enumerate().take(9) {
                        let joined = values.iter().map(|value| self.part(value)).collect::<Vec<_>>();
                        text =
                            text.replace(&format!("{{{}}}", index + 1), &joined.join(&separator.to_string()));
                    }
                    parts.push(text);
                }
            }
        }
        let name = parts.join(&separator.to_string());
        if name.len() > NAME_MAX_BYTES {
            return Err(MapError::TooLong);
        }
        let legal = match self.to {
            End::Subject(_) => subject::is_publishable(&name),
            End::Mqtt(_) => is_topic(&name),
        };
        if legal { Ok(name) } else { Err(MapError::Illegal(name)) }
    }

    /// A part of the one side as a part of the other, as the server writes it.
    fn part(&self, value: &str) -> String {
        match (&self.from, &self.to) {
            (End::Mqtt(_), End::Subject(_)) if value.is_empty() => "/".to_owned(),
            (End::Mqtt(_), End::Subject(_)) => value.replace('.', "//"),
            (End::Subject(_), End::Mqtt(_)) => {
                if value == "/" {
                    String::new()
                } else {
                    value.replace("//", ".")
                }
            }
            _ => value.to_owned(),
        }
    }
}

/// The number of a part that is `{1}` to `{9}` and nothing else.
fn placeholder(part: &str) -> Option<usize> {
    let number: usize = part.strip_prefix('{')?.strip_suffix('}')?.parse().ok()?;
    (1..=9).contains(&number).then_some(number)
}

/// A topic that MQTT and the node's server take: no wildcard, no space, no control character.
fn is_topic(topic: &str) -> bool {
    let bad = |c: char| matches!(c, '+' | '#' | '*' | '>') || c.is_whitespace() || c.is_control();
    !topic.is_empty() && !topic.contains(bad)
}

/// The subject of an MQTT topic on the node's server (measured with nats-server 2.15.1): an empty level is `/`, at the start
/// and between; a dot is `//`.
pub fn subject_of(topic: &str) -> String {
    let levels: Vec<String> =
        topic.split('/').map(|l| if l.is_empty() { "/".into() } else { l.replace('.', "//") }).collect();
    levels.join(".")
}

fn filter_of(filter: &str) -> String {
    let subject = subject_of(filter);
    let tokens = subject.split('.').map(|token| match token {
        "+" => "*",
        "#" => ">",
        other => other,
    });
    tokens.collect::<Vec<_>>().join(".")
}

impl TopicMap {
    /// Checks an object; gives every fault that it has.
    pub fn read(object: &Object) -> Result<Self, Vec<Fault>> {
        let view: TopicMapView =
            object.view().map_err(|error| vec![Fault::invalid("spec", "", error.to_string())])?;
        let mut faults = Vec::new();
        let spec = view.spec;
        selector(&spec.node_selector, &mut faults);
        if spec.maps.is_empty() {
            faults.push(Fault::required("spec.maps", "name at least one map"));
        }
        if spec.maps.len() > MAPS_MAX {
            faults.push(Fault::too_many("spec.maps", spec.maps.len(), MAPS_MAX));
            return Err(faults);
        }
        let namespace = object.namespace();
        let maps = spec.maps.iter().enumerate();
        let maps: Vec<Rule> = maps
            .filter_map(|(index, map)| rule(map, &format!("spec.maps[{index}]"), namespace, &mut faults))
            .collect();
        let namespace = Namespace::new(namespace)
            .map_err(|error| faults.push(Fault::invalid("metadata.namespace", "", error.to_string())));
        match namespace {
            Ok(namespace) if faults.is_empty() => {
                Ok(Self { namespace, name: object.name().to_owned(), uid: object.uid().to_owned(), maps })
            }
            _ => Err(faults),
        }
    }
}

fn rule(map: &MapSpec, path: &str, namespace: &str, faults: &mut Vec<Fault>) -> Option<Rule> {
    let from = end(&map.from, &format!("{path}.from"), faults);
    let to = end(&map.to, &format!("{path}.to"), faults);
    let qos = map.qos.unwrap_or(1);
    if !(0..=1).contains(&qos) {
        faults.push(Fault::unsupported(format!("{path}.qos"), &qos.to_string(), &["0", "1"]));
    }
    let (from, to) = (from?, to?);
    let field = |side: &str, end: &End| {
        format!("{path}.{side}.{}", if matches!(end, End::Mqtt(_)) { "mqtt" } else { "subject" })
    };
    let before = faults.len();
    if let Err(why) = takable(&from, namespace) {
        faults.push(Fault::invalid(field("from", &from), from.text(), why));
    }
    if let Err(why) = givable(&to, from.wildcards(), namespace) {
        faults.push(Fault::invalid(field("to", &to), to.text(), why));
    }
    if faults.len() > before {
        return None;
    }
    let rule = Rule { from, to, qos: u8::try_from(qos).unwrap_or(1), retain: map.retain.unwrap_or(false) };
    if rule.feeds_itself() {
        let why = format!("is taken by {:?} again: the map would feed itself", rule.from.text());
        faults.push(Fault::invalid(field("to", &rule.to), rule.to.text(), why));
        return None;
    }
    Some(rule)
}

fn end(spec: &EndSpec, path: &str, faults: &mut Vec<Fault>) -> Option<End> {
    match (&spec.mqtt, &spec.subject) {
        (Some(topic), None) => Some(End::Mqtt(topic.clone())),
        (None, Some(subject)) => Some(End::Subject(subject.clone())),
        (None, None) => {
            faults.push(Fault::required(path, "name one of mqtt and subject"));
            None
        }
        (Some(_), Some(_)) => {
            faults.push(Fault::invalid(path, "mqtt and subject", "name only one of them"));
            None
        }
    }
}

/// May a map of that namespace read what the filter lets through?
fn takable(from: &End, namespace: &str) -> Result<(), String> {
    match from {
        End::Subject(filter) => {
            pattern::check(filter)?;
            within(filter, &["local", "app", "down"], namespace)
        }
        End::Mqtt(filter) => {
            let mut levels = filter.split('/').peekable();
            while let Some(level) = levels.next() {
                if level.len() > 1 && level.contains(['+', '#']) {
                    return Err(format!("level {level:?}: '+' and '#' stand for whole levels"));
                }
                if level == "#" && levels.peek().is_some() {
                    return Err("'#' stands for all the rest: it must be the last level".to_owned());
                }
            }
            let plain: String = filter.chars().filter(|c| !matches!(c, '+' | '#')).collect();
            if filter.is_empty()
                || plain.contains(|c: char| c.is_whitespace() || c.is_control() || matches!(c, '*' | '>'))
            {
                return Err("must have no space, no control character, no '*' and no '>'".to_owned());
            }
            pattern::check(&filter_of(filter))?;
            free(filter)
        }
    }
}

/// May a map of that namespace write what the template makes?
fn givable(to: &End, wildcards: usize, namespace: &str) -> Result<(), String> {
    let text = to.text();
    let mut rest = text;
    while let Some((_, after)) = rest.split_once('{') {
        let number = after.split_once('}').map(|(inside, _)| inside);
        match number.and_then(|inside| placeholder(&format!("{{{inside}}}"))) {
            Some(number) if number <= wildcards => {}
            Some(number) => {
                return Err(format!("{{{number}}}: the filter has {wildcards} wildcards"));
            }
            None => return Err("'{' begins one of {1} to {9}".to_owned()),
        }
        rest = after;
    }
    match to {
        End::Subject(_) => {
            if !subject::is_publishable(text) || text.contains(['*', '>']) {
                return Err("must be a subject without wildcards: {1} stands for what one took".to_owned());
            }
            pattern::check(text)?;
            within(text, &["local", "app", "up", "bulk"], namespace)
        }
        End::Mqtt(_) => {
            if !is_topic(text) {
                return Err(
                    "must be a topic without wildcards and spaces: {1} stands for what one took".to_owned()
                );
            }
            pattern::check(&subject_of(text))?;
            free(text)
        }
    }
}

/// The first two tokens are a class and the namespace, and something follows.
fn within(subject: &str, classes: &[&str], namespace: &str) -> Result<(), String> {
    let mut tokens = subject.split('.');
    let class = tokens.next().is_some_and(|class| classes.contains(&class));
    if class && tokens.next() == Some(namespace) && tokens.next().is_some() {
        return Ok(());
    }
    let forms = classes.iter().map(|class| format!("{class}.{namespace}.…")).collect::<Vec<_>>();
    Err(format!("must be one of {}", forms.join(", ")))
}

/// The first level of an MQTT topic is a word, and none that means something to Edgewire: a wildcard there would take what
/// other namespaces say.
fn free(topic: &str) -> Result<(), String> {
    let first = topic.trim_start_matches('/').split('/').next().unwrap_or("");
    if matches!(first, "" | "+" | "#") || first.contains('{') {
        return Err("the first level must be a word: every namespace's messages are topics here".to_owned());
    }
    if RESERVED.contains(&first) || first.starts_with(['$', '_']) {
        return Err(format!("the first level {first:?} is reserved"));
    }
    Ok(())
}

impl Rule {
    /// Could what it makes be taken by itself?
    fn feeds_itself(&self) -> bool {
        let made = match &self.to {
            End::Mqtt(topic) => subject_of(topic),
            End::Subject(subject) => subject.clone(),
        };
        let tokens: Vec<&str> = made.split('.').collect();
        let any = |token: &&str| if token.contains('{') { "*".to_owned() } else { (*token).to_owned() };
        let one: Vec<String> = tokens.iter().map(any).collect();
        let mut open = vec![one.join(".")];
        // A placeholder may also stand for several: from there on anything.
        if let Some(at) = tokens.iter().position(|token| token.contains('{')) {
            open.push(one.iter().take(at).cloned().chain([">".to_owned()]).collect::<Vec<_>>().join("."));
        }
        self.from.filters().iter().any(|from| open.iter().any(|to| pattern::overlaps(from, to)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn mqtt(text: &str) -> End {
        End::Mqtt(text.into())
    }

    fn subject(text: &str) -> End {
        End::Subject(text.into())
    }

    #[test]
    fn names_are_mapped() {
        let cases = [
            (mqtt("factory/+/temp"), subject("up.demo.{1}.temp"), "factory/7/temp", Some("up.demo.7.temp")),
            (mqtt("factory/+/temp"), subject("up.demo.x"), "factory/7/hum", None),
            (mqtt("factory/+/temp"), subject("up.demo.x"), "factory/7/8/temp", None),
            (mqtt("factory/+/temp"), subject("up.demo.x"), "factory/temp", None),
            (mqtt("f/#"), subject("up.demo.{1}"), "f/a/b", Some("up.demo.a.b")),
            (mqtt("f/#"), subject("up.demo.f.{1}"), "f", Some("up.demo.f")),
            (mqtt("f/+/#"), subject("app.demo.{2}.{1}"), "f/1/a/b", Some("app.demo.a.b.1")),
            (mqtt("f/+"), subject("up.demo.n-{1}-{1}"), "f/1", Some("up.demo.n-1-1")),
            (mqtt("f/+"), subject("up.demo.{1}"), "f/a.b", Some("up.demo.a//b")),
            (mqtt("f/+"), subject("up.demo.{1}"), "f/", Some("up.demo./")),
            (subject("app.demo.cmd.*"), mqtt("plc/{1}/set"), "app.demo.cmd.3", Some("plc/3/set")),
            (subject("app.demo.>"), mqtt("plc/{1}"), "app.demo.a.b", Some("plc/a/b")),
            (subject("app.demo.>"), mqtt("plc/{1}"), "app.demo", None),
            (subject("app.demo.*"), mqtt("plc/{1}"), "app.demo.a//b", Some("plc/a.b")),
            (subject("app.demo.*"), subject("up.demo.{1}"), "app.demo.x", Some("up.demo.x")),
            (mqtt("a/+"), mqtt("b/{1}"), "a/x.y", Some("b/x.y")),
        ];
        for (from, to, name, want) in cases {
            let rule = Rule { from, to, qos: 1, retain: false };
            let made = rule.apply(name).map(|made| made.unwrap());
            assert_eq!(made.as_deref(), want, "{rule:?} {name}");
        }
    }

    #[test]
    fn what_cannot_be_a_name_is_an_error() {
        let rule = Rule { from: mqtt("f/#"), to: subject("up.demo.{1}"), qos: 1, retain: false };
        assert!(matches!(rule.apply("f/a b"), Some(Err(MapError::Illegal(_)))));
        assert!(matches!(rule.apply("f/>"), Some(Err(MapError::Illegal(_)))));
        assert_eq!(rule.apply(&format!("f/{}", "x".repeat(2000))), Some(Err(MapError::TooLong)));
        let rule = Rule { from: subject("app.demo.*"), to: mqtt("p/{1}"), qos: 1, retain: false };
        assert!(matches!(rule.apply("app.demo.a+b"), Some(Err(MapError::Illegal(_)))));
    }

    #[test]
    fn a_filter_is_subscribed_to_as_the_server_names_topics() {
        for (filter, want) in [
            ("a/b", vec!["a.b"]),
            ("/a/b", vec!["/.a.b"]),
            ("a//b", vec!["a./.b"]),
            ("a.b/c", vec!["a//b.c"]),
            ("a/+/c", vec!["a.*.c"]),
            ("a/#", vec!["a.>", "a"]),
        ] {
            assert_eq!(mqtt(filter).filters(), want, "{filter}");
        }
        assert_eq!(subject("a.>").filters(), ["a.>"]);
    }

    fn fields(maps: Value) -> Vec<String> {
        let mut object = Object::new("edgewire.io/v1alpha1", "TopicMap", "demo", "m");
        object.set(&["spec", "maps"], maps);
        let faults = TopicMap::read(&object).err().unwrap_or_default();
        faults.into_iter().map(|fault| fault.field).collect()
    }

    #[test]
    fn a_namespace_maps_its_own_and_free_topics() {
        let map = |from: Value, to: Value| json!([{"from": from, "to": to}]);
        let (up, plc) = (json!({"subject": "up.demo.x"}), json!({"mqtt": "plc/x"}));
        for (from, to, want) in [
            (json!({"mqtt": "factory/+/temp"}), up.clone(), ""),
            (json!({"mqtt": "/factory/#"}), up.clone(), ""),
            (json!({"subject": "app.demo.>"}), plc.clone(), ""),
            (json!({"subject": "down.demo.cfg"}), plc.clone(), ""),
            (json!({"mqtt": "a/+"}), json!({"subject": "bulk.demo.{1}"}), ""),
            (json!({"mqtt": "#"}), up.clone(), "spec.maps[0].from.mqtt"),
            (json!({"mqtt": "+/x"}), up.clone(), "spec.maps[0].from.mqtt"),
            (json!({"mqtt": "app/other/x"}), up.clone(), "spec.maps[0].from.mqtt"),
            (json!({"mqtt": "$SYS/x"}), up.clone(), "spec.maps[0].from.mqtt"),
            (json!({"mqtt": "_INBOX/x"}), up.clone(), "spec.maps[0].from.mqtt"),
            (json!({"mqtt": "a/#/b"}), up.clone(), "spec.maps[0].from.mqtt"),
            (json!({"mqtt": "a/b+"}), up.clone(), "spec.maps[0].from.mqtt"),
            (json!({"mqtt": "a b"}), up.clone(), "spec.maps[0].from.mqtt"),
            (json!({"mqtt": ""}), up.clone(), "spec.maps[0].from.mqtt"),
            (json!({"subject": "app.other.>"}), plc.clone(), "spec.maps[0].from.subject"),
            (json!({"subject": "app.>"}), plc.clone(), "spec.maps[0].from.subject"),
            (json!({"subject": "up.demo.x"}), plc.clone(), "spec.maps[0].from.subject"),
            (json!({"mqtt": "a/x"}), json!({"subject": "up.other.x"}), "spec.maps[0].to.subject"),
            (json!({"mqtt": "a/x"}), json!({"subject": "down.demo.x"}), "spec.maps[0].to.subject"),
            (json!({"mqtt": "a/+"}), json!({"subject": "up.{1}.x"}), "spec.maps[0].to.subject"),
            (json!({"mqtt": "a/+"}), json!({"subject": "up.demo.{2}"}), "spec.maps[0].to.subject"),
            (json!({"mqtt": "a/+"}), json!({"subject": "up.demo.{x}"}), "spec.maps[0].to.subject"),
            (json!({"mqtt": "a/+"}), json!({"subject": "up.demo.*"}), "spec.maps[0].to.subject"),
            (json!({"subject": "app.demo.*"}), json!({"mqtt": "{1}/x"}), "spec.maps[0].to.mqtt"),
            (json!({"subject": "app.demo.*"}), json!({"mqtt": "ew/{1}"}), "spec.maps[0].to.mqtt"),
            (json!({"subject": "app.demo.*"}), json!({"subject": "app.demo.{1}"}), "spec.maps[0].to.subject"),
            (json!({"mqtt": "a/#"}), json!({"mqtt": "a/b/{1}"}), "spec.maps[0].to.mqtt"),
            (json!({}), up.clone(), "spec.maps[0].from"),
            (json!({"mqtt": "a", "subject": "b"}), up.clone(), "spec.maps[0].from"),
        ] {
            let want: Vec<&str> = if want.is_empty() { Vec::new() } else { vec![want] };
            assert_eq!(fields(map(from.clone(), to.clone())), want, "{from} {to}");
        }
        let one = json!({"from": {"mqtt": "a"}, "to": up, "qos": 2});
        assert_eq!(fields(json!([one])), ["spec.maps[0].qos"]);
        assert_eq!(fields(json!([])), ["spec.maps"]);
        assert_eq!(fields(json!(vec![one; 65])), ["spec.maps"]);
    }
}
