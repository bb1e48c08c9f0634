//! What a client sends to the API: bodies in JSON and protobuf, patches, paths, queries, selectors, headers.

use api::handlers::{accept, prepare};
use api::patch::Patch;
use api::resource::KINDS;
use api::route::{Query, Target};
use api::selector::Selector;
use api::table::{Include, table};
use api::validate::{FieldValidation, shape};
use api::{protobuf, strategic};
use schemas::Timestamp;
use schemas::object::Object;
use serde_json::Value;

use crate::{tries, tries_text};

const NOW: Timestamp = Timestamp(1_700_000_000_000);
const POD: &str = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","namespace":"demo","labels":{"a":"b"},"generateName":"a-"},"spec":{"restartPolicy":"Always","containers":[{"name":"c","image":"i:1","ports":[{"containerPort":80}],"env":[{"name":"A","value":"$(B)"}],"resources":{"limits":{"cpu":"100m","memory":"1Gi"}},"volumeMounts":[{"name":"v","mountPath":"/v"}],"livenessProbe":{"exec":{"command":["x"]}}}],"volumes":[{"name":"v","configMap":{"name":"c"}}],"tolerations":[{"key":"a","operator":"Exists"}]},"status":{"conditions":[{"type":"Ready","status":"True"}],"containerStatuses":[{"name":"c","restartCount":3,"state":{"running":{"startedAt":"2026-01-01T00:00:00Z"}}}]}}"#;
const MAP: &str = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"c","namespace":"demo"},"data":{"a":"b"},"binaryData":{"x":"AAA="}}"#;
const NODE: &str = r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"n"},"spec":{"taints":[{"key":"a","value":"b","effect":"NoSchedule"}]}}"#;

#[test]
fn bodies_in_json() {
    tries_text("a body in JSON", &[POD, MAP, NODE], |text| {
        let Ok(document) = serde_json::from_str::<Value>(text) else { return };
        for kind in KINDS {
            let _ = shape(kind, &document, FieldValidation::Strict);
            let Ok(mut object) = prepare::typed(kind, document.clone()) else { continue };
            let _ = prepare::place(kind, &mut object, Some("demo"));
            let stored = prepare::create(kind, object.clone(), "u", "abcde", NOW).unwrap_or(object.clone());
            let _ = prepare::update(kind, &stored, object.clone(), "");
            let _ = prepare::update(kind, &stored, object, "status");
            let _ = table(kind, &[&stored], Value::Null, Include::Object, true, NOW);
        }
    });
}

#[test]
fn bodies_in_protobuf() {
    // Unknown{typeMeta{v1, Namespace}, raw: Namespace{metadata{name: a, labels{a: b}}}}
    let field =
        |number: u8, bytes: &[u8]| [&[number << 3 | 2, u8::try_from(bytes.len()).unwrap()], bytes].concat();
    let sample = |kind: &str| {
        let label = field(11, &[field(1, b"a"), field(2, b"b")].concat());
        let metadata = field(1, &[field(1, b"a"), label].concat());
        let data = field(2, &[field(1, b"k"), field(2, b"v")].concat());
        let about = field(1, &[field(1, b"v1"), field(2, kind.as_bytes())].concat());
        [b"k8s\0".to_vec(), about, field(2, &[metadata, data].concat())].concat()
    };
    let samples = ["Namespace", "ConfigMap", "Secret", "DeleteOptions"].map(sample);
    assert!(samples.iter().any(|sample| protobuf::to_json(sample).is_ok()), "no sample can be read");
    tries("a body in protobuf", &samples, |bytes| drop(protobuf::to_json(bytes)));
}

#[test]
fn patches() {
    let document: Value = serde_json::from_str(POD).unwrap();
    let samples = [
        r#"[{"op":"replace","path":"/spec/containers/0/image","value":"i:2"},{"op":"move","from":"/metadata/labels","path":"/metadata/annotations"},{"op":"copy","from":"/spec","path":"/status/x"},{"op":"test","path":"/kind","value":"Pod"}]"#,
        r#"{"metadata":{"labels":{"a":null,"x":"y"}},"spec":{"containers":[{"name":"c","image":"j","$patch":"replace"}],"$setElementOrder/containers":[{"name":"c"}],"$retainKeys":["containers"]}}"#,
        r#"{"spec":{"$patch":"delete","tolerations":[{"$patch":"delete","key":"a"}],"$deleteFromPrimitiveList/finalizers":["x"]}}"#,
    ];
    tries_text("a patch", &samples, |text| {
        for form in ["json", "merge", "strategic-merge"] {
            if let Ok(patch) = Patch::parse(&format!("application/{form}-patch+json"), text.as_bytes()) {
                let _ = patch.apply(&document);
            }
        }
        if let Ok(value) = serde_json::from_str::<Value>(text) {
            let _ = strategic::apply(&document, &value);
            let _ = strategic::apply(&value, &document);
        }
    });
}

#[test]
fn paths_queries_and_selectors() {
    let pod = Object::try_from(serde_json::from_str::<Value>(POD).unwrap()).unwrap();
    let paths =
        ["/api/v1/namespaces/demo/pods/a%2eb/log", "/apis/apps/v1/deployments", "/api/v1/nodes/n/status"];
    tries_text("a path", &paths, |text| {
        let _ = Target::parse(text);
    });
    let queries = [
        "watch=true&resourceVersion=7&timeoutSeconds=60&allowWatchBookmarks=1",
        "command=sh&command=-c&tty=%74rue",
    ];
    tries_text("a query", &queries, |text| {
        let query = Query::parse(text);
        let _ = (query.get("watch"), query.all("command"), query.flag("tty"), query.number("timeoutSeconds"));
        let _ = (query.dry_run(), accept::include(&query), FieldValidation::parse(text));
    });
    let selectors =
        ["a=b,!c,d in (e,f),g notin (h),i!=j,k", "metadata.name=a,status.phase!=Running,spec.nodeName=n"];
    tries_text("a selector", &selectors, |text| {
        for kind in KINDS {
            for (labels, fields) in [(text, ""), ("", text)] {
                if let Ok(selector) = Selector::parse(kind, labels, fields) {
                    selector.matches(&pod);
                }
            }
        }
    });
}

#[test]
fn headers() {
    let samples = [
        "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;q=0.5",
        "application/vnd.kubernetes.protobuf",
    ];
    tries_text("an accept header", &samples, |text| {
        let mut headers = reqwest::header::HeaderMap::new();
        if let Ok(value) = reqwest::header::HeaderValue::from_str(text) {
            headers.insert("accept", value);
            let _ = accept::Form::parse(&headers);
        }
    });
}
