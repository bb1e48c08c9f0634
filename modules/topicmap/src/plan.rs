//! Which maps run on the node: all of them, but those that feed each other in a circle. Pure.
//!
//! A map that feeds itself is refused when it is applied. Two of them may still make a circle, each fine by itself and of other
//! namespaces even; whether they would is decided by what their filters *could* let through, so that no message ever runs round.

use std::collections::BTreeMap;

use schemas::topic_map::{End, Rule, TopicMap, subject_of};
use schemas::{pattern, subject};

/// Most routes of a node: each is a task with a consumer of its own.
pub const ROUTES_MAX: usize = 256;

/// One map of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Its consumer: unique, the same in every life.
    pub name: String,
    /// `namespace/name` of the object, for people.
    pub object: String,
    /// What it does.
    pub rule: Rule,
}

/// What runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// The maps that run.
    pub routes: Vec<Route>,
}

/// Why a map does not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    /// Its object's key.
    pub key: String,
    /// Reason of the event.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// The prefix of the names of an object's routes.
pub fn prefix(uid: &str) -> String {
    format!("map-{}-", subject::token(uid))
}

/// Decides for all objects, by their keys.
pub fn plan(maps: &BTreeMap<String, TopicMap>) -> (Plan, Vec<Left>) {
    let mut all: Vec<(&str, Route)> = Vec::new();
    for (key, map) in maps {
        let object = format!("{}/{}", map.namespace, map.name);
        for (index, rule) in map.maps.iter().enumerate() {
            let name = format!("{}{index}", prefix(&map.uid));
            all.push((key, Route { name, object: object.clone(), rule: rule.clone() }));
        }
    }
    let mut left = Vec::new();
    for (key, route) in all.split_off(all.len().min(ROUTES_MAX)) {
        let message = format!("{}: the node runs {ROUTES_MAX} maps already; remove some", route.object);
        left.push(Left { key: key.to_owned(), reason: "TopicMapTooMany", message });
    }
    let rules: Vec<&Rule> = all.iter().map(|(_, route)| &route.rule).collect();
    let circles = circles(&rules);
    let mut routes = Vec::new();
    for (index, (key, route)) in all.iter().enumerate() {
        if circles.contains(&index) {
            let (from, to) = (route.rule.from.text(), route.rule.to.text());
            let message = format!(
                "{}: {from:?} to {to:?} is not run: what it says could come back to it through another map",
                route.object
            );
            left.push(Left { key: (*key).to_owned(), reason: "TopicMapLoop", message });
        } else {
            routes.push(route.clone());
        }
    }
    (Plan { routes }, left)
}

/// The rules that lead back to themselves.
fn circles(rules: &[&Rule]) -> Vec<usize> {
    let feeds: Vec<Vec<usize>> = rules
        .iter()
        .map(|rule| {
            (0..rules.len()).filter(|at| rules.get(*at).is_some_and(|other| feeds(rule, other))).collect()
        })
        .collect();
    let leads_back = |start: &usize| {
        let (mut seen, mut next) = (vec![false; rules.len()], feeds.get(*start).cloned().unwrap_or_default());
        while let Some(at) = next.pop() {
            if at == *start {
                return true;
            }
            let Some(seen) = seen.get_mut(at).filter(|seen| !**seen) else { continue };
            *seen = true;
            next.extend(feeds.get(at).into_iter().flatten());
        }
        false
    };
    (0..rules.len()).filter(leads_back).collect()
}

/// Could what `one` says be taken by `other`?
fn feeds(one: &Rule, other: &Rule) -> bool {
    let said = said(&one.to);
    other.from.filters().iter().any(|from| said.iter().any(|said| pattern::overlaps(from, said)))
}

/// Filters for all that a template can make: a `{1}` may stand for one token or for several.
fn said(to: &End) -> Vec<String> {
    let made = match to {
        End::Mqtt(topic) => subject_of(topic),
        End::Subject(subject) => subject.clone(),
    };
    let open = |token: &str| if token.contains('{') { "*".to_owned() } else { token.to_owned() };
    let whole: Vec<String> = made.split('.').map(open).collect();
    let mut all = vec![whole.join(".")];
    if let Some(at) = whole.iter().position(|token| token == "*") {
        all.push(whole.iter().take(at).cloned().chain([">".to_owned()]).collect::<Vec<_>>().join("."));
        // None at all: what a `#` stood for may be empty.
        all.push(whole.iter().filter(|token| *token != "*").cloned().collect::<Vec<_>>().join("."));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn maps(rules: &[(&str, &str)]) -> BTreeMap<String, TopicMap> {
        let end = |text: &str| match text.split_once(':') {
            Some(("mqtt", topic)) => End::Mqtt(topic.into()),
            _ => End::Subject(text.into()),
        };
        let map = |(index, (from, to)): (usize, &(&str, &str))| {
            let rule = Rule { from: end(from), to: end(to), qos: 1, retain: false };
            let map = TopicMap {
                namespace: "demo".parse().unwrap(),
                name: format!("m{index}"),
                uid: format!("u-{index}"),
                maps: vec![rule],
            };
            (format!("key{index}"), map)
        };
        rules.iter().enumerate().map(map).collect()
    }

    #[test]
    fn what_would_run_round_does_not_run() {
        for (rules, left) in [
            (vec![("mqtt:f/+", "up.demo.{1}")], vec![]),
            (vec![("mqtt:f/+", "app.demo.{1}"), ("app.demo.cmd", "mqtt:g/cmd")], vec![]),
            (vec![("mqtt:f/+", "app.demo.{1}"), ("app.demo.*", "mqtt:f/{1}")], vec!["key0", "key1"]),
            (vec![("mqtt:f/#", "app.demo.{1}"), ("app.demo.a.b", "mqtt:f/x")], vec!["key0", "key1"]),
            (
                vec![("mqtt:a/x", "mqtt:b/x"), ("mqtt:b/+", "mqtt:c/{1}"), ("mqtt:c/#", "mqtt:a/{1}")],
                vec!["key0", "key1", "key2"],
            ),
            (
                vec![("mqtt:a/x", "mqtt:b/x"), ("mqtt:b/x", "mqtt:a/x"), ("mqtt:b/x", "up.demo.x")],
                vec!["key0", "key1"],
            ),
        ] {
            let (plan, told) = plan(&maps(&rules));
            let keys: Vec<&str> = told.iter().map(|left| left.key.as_str()).collect();
            assert_eq!(keys, left, "{rules:?}");
            assert_eq!(plan.routes.len() + left.len(), rules.len());
        }
    }

    #[test]
    fn there_is_a_bound() {
        let many = vec![("mqtt:f/x", "up.demo.x"); ROUTES_MAX + 2];
        let (plan, left) = plan(&maps(&many));
        assert_eq!((plan.routes.len(), left.len()), (ROUTES_MAX, 2));
        assert_eq!(left[0].reason, "TopicMapTooMany");
    }
}
