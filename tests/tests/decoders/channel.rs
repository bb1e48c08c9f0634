//! What a user writes in the kinds of the message channel, as the API and the nodes read it.

use schemas::object::Object;
use schemas::topic::Topic;
use schemas::topic_map::TopicMap;
use schemas::{pattern, rule};

use crate::{tries, tries_text};

fn object(kind: &str, spec: &str) -> Vec<u8> {
    let text = format!(
        r#"{{"apiVersion":"v1","kind":"{kind}","metadata":{{"name":"a","namespace":"demo","uid":"u"}},"spec":{spec}}}"#
    );
    serde_json::from_str::<Object>(&text).unwrap().to_bytes()
}

#[test]
fn objects_of_the_channel() {
    let samples = [
        object(
            "Topic",
            r#"{"subjects":["app.demo.>"],"class":"bulk","sizeMax":"1Mi","ageMax":"1h30m","consumers":[{"name":"c","filter":"app.demo.x","deliver":"new"}]}"#,
        ),
        object(
            "TopicMap",
            r#"{"maps":[{"from":{"mqtt":"f/+/\u0023"},"to":{"subject":"up.demo.{1}.{2}"},"qos":1,"retain":true}]}"#,
        ),
        object(
            "Rule",
            r#"{"source":"a","sourceResource":{"topic":"t","node_name":"n"},"target":"b","targetResource":{"path":"p"}}"#,
        ),
        object("RuleEndpoint", r#"{"ruleEndpointType":"servicebus","properties":{"service_port":"1"}}"#),
    ];
    for sample in &samples {
        let object = Object::from_bytes(sample, 1).unwrap();
        let read = match object.kind() {
            "Topic" => Topic::read(&object).is_ok(),
            "TopicMap" => TopicMap::read(&object).is_ok(),
            "Rule" => rule::read_rule(&object).is_ok(),
            _ => rule::read_endpoint(&object).is_ok(),
        };
        assert!(read, "{object:?}");
    }
    tries("objects of the channel", &samples, |bytes| {
        let Ok(object) = Object::from_bytes(bytes, 1) else { return };
        if let Ok(topic) = Topic::read(&object) {
            assert!(topic.subjects.iter().all(|subject| pattern::check(subject).is_ok()));
            let _ = topic.stream();
        }
        if let Ok(map) = TopicMap::read(&object) {
            for rule in map.maps {
                let _ = (rule.from.filters(), rule.apply("f/1/2"), rule.apply("app.demo.x"));
            }
        }
        let _ = (rule::read_rule(&object), rule::read_endpoint(&object));
    });
}

#[test]
fn names_that_maps_are_given() {
    let object = Object::from_bytes(
        &object(
            "TopicMap",
            r#"{"maps":[{"from":{"mqtt":"f/+/\u0023"},"to":{"subject":"up.demo.{2}.{1}"}},{"from":{"subject":"app.demo.*.>"},"to":{"mqtt":"g/{1}/{2}"}}]}"#,
        ),
        1,
    );
    let map = TopicMap::read(&object.unwrap()).unwrap();
    tries_text("names that maps are given", &["f/a.b/c//d", "f/1", "app.demo.x.y/.z//"], |text| {
        for made in map.maps.iter().filter_map(|rule| rule.apply(text)).flatten() {
            assert!(made.starts_with("up.demo.") || made.starts_with("g/"), "{made}");
        }
        let _ = (pattern::check(text), pattern::overlaps(text, "a.*.>"), pattern::covers(text, "a.>"));
    });
}
