//! Plain HTTPS against the API: what kubectl does not show, or would not do.

use std::time::Duration;

use futures::StreamExt;
use reqwest::{Client, Method, Response, StatusCode};
use serde_json::{Value, json};

use crate::support::{Hub, TOKEN};

const PODS: &str = "/api/v1/namespaces/default/pods";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

struct Http<'a> {
    hub: &'a Hub,
    client: Client,
    runtime: tokio::runtime::Runtime,
}

impl<'a> Http<'a> {
    fn new(hub: &'a Hub) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let ca = reqwest::Certificate::from_pem(hub.ca_pem.as_bytes()).unwrap();
        let client = Client::builder().use_rustls_tls().add_root_certificate(ca).build().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { hub, client, runtime }
    }

    fn send(&self, method: Method, path: &str, headers: &[(&str, &str)], body: &str) -> Response {
        let mut request =
            self.client.request(method, format!("{}{path}", self.hub.url)).body(body.to_owned());
        if !headers.iter().any(|(name, _)| *name == "authorization") {
            request = request.bearer_auth(TOKEN);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.runtime.block_on(request.send()).unwrap()
    }

    fn json(&self, response: Response) -> Value {
        self.runtime.block_on(response.json()).unwrap()
    }

    fn get(&self, path: &str) -> Value {
        let response = self.send(Method::GET, path, &[], "");
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        self.json(response)
    }

    fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let response =
            self.send(Method::POST, path, &[("content-type", "application/json")], &body.to_string());
        (response.status().as_u16(), self.json(response))
    }

    fn map(&self, name: &str) -> Value {
        let (code, map) = self.post(MAPS, &json!({"metadata": {"name": name}, "data": {"k": "v"}}));
        assert_eq!(code, 201, "{map}");
        map
    }

    /// The lines of a watch until it ends, or until `count` of them came.
    fn lines(&self, path: &str, accept: &str, count: usize) -> Vec<Value> {
        let response = self.send(Method::GET, path, &[("accept", accept)], "");
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        let mut body = response.bytes_stream();
        let mut text = String::new();
        self.runtime.block_on(async {
            let read = async {
                while text.matches('\n').count() < count {
                    match body.next().await {
                        Some(bytes) => text.push_str(std::str::from_utf8(&bytes.unwrap()).unwrap()),
                        None => break,
                    }
                }
            };
            tokio::time::timeout(Duration::from_secs(20), read).await.expect("the watch tells in time");
        });
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

#[test]
fn refusals_are_statuses_with_words() {
    let hub = Hub::start();
    let http = Http::new(&hub);
    let json = ("content-type", "application/json");
    let huge = format!("{{\"a\": \"{}\"}}", "x".repeat(3 * 1024 * 1024));
    for (method, path, headers, body, code, word) in [
        (Method::GET, "/api/v1/pods", vec![("authorization", "Bearer wrong")], "", 401, "bearer token"),
        (Method::GET, "/api", vec![("authorization", "Basic x")], "", 401, "bearer token"),
        (Method::GET, "/nothing", vec![], "", 404, "is not served"),
        (Method::GET, "/api/v1/widgets", vec![], "", 404, "not served yet"),
        (Method::GET, PODS, vec![("accept", "application/yaml")], "", 406, "application/json"),
        (Method::PUT, PODS, vec![], "{}", 405, "PUT is not possible on pods"),
        (Method::DELETE, "/api/v1/namespaces", vec![], "", 405, "DELETE"),
        (Method::POST, "/api/v1/namespaces/default/services", vec![json], "{}", 405, "not served yet"),
        (Method::POST, MAPS, vec![("content-type", "application/yaml")], "a: b", 415, "application/json"),
        (Method::POST, MAPS, vec![json], "{", 400, "not valid JSON"),
        (Method::POST, MAPS, vec![json], "[]", 400, "not a JSON object"),
        (Method::POST, MAPS, vec![json], "{\"kind\": \"Pod\"}", 400, "does not match the expected kind"),
        (Method::POST, MAPS, vec![json], "{\"metadata\": 1}", 422, "metadata.name"),
        (Method::POST, MAPS, vec![json], huge.as_str(), 413, "3145728"),
        (
            Method::POST,
            "/api/v1/configmaps",
            vec![json],
            "{\"metadata\":{\"name\":\"a\"}}",
            400,
            "live in a namespace",
        ),
        (Method::GET, "/api/v1/pods?limit=x", vec![], "", 400, "limit"),
        (Method::GET, "/api/v1/pods?continue=x", vec![], "", 400, "continue"),
        (Method::GET, "/api/v1/pods?watch=1&sendInitialEvents=true", vec![], "", 422, "WatchList"),
        (
            Method::GET,
            "/api/v1/pods?watch=1&resourceVersion=999999",
            vec![],
            "",
            410,
            "too large resource version",
        ),
        (
            Method::PATCH,
            "/api/v1/namespaces/default",
            vec![("content-type", "text/plain")],
            "{}",
            415,
            "patch type",
        ),
    ] {
        let response = http.send(method.clone(), path, &headers, body);
        assert_eq!(response.status().as_u16(), code, "{method} {path}");
        let status = http.json(response);
        assert_eq!((&status["kind"], &status["code"]), (&json!("Status"), &json!(code)), "{method} {path}");
        let message = status["message"].as_str().unwrap();
        assert!(message.contains(word), "{method} {path}: {message}");
    }
}

#[test]
fn lists_come_in_pages_and_a_watch_continues_them() {
    let hub = Hub::start();
    let http = Http::new(&hub);
    for name in ["a", "b", "c", "d", "e"] {
        http.map(name);
    }
    let mut names = Vec::new();
    let mut path = format!("{MAPS}?limit=2");
    let first = loop {
        let list = http.get(&path);
        names.extend(list["items"].as_array().unwrap().iter().map(|o| o["metadata"]["name"].clone()));
        match list["metadata"]["continue"].as_str() {
            Some(next) => path = format!("{MAPS}?limit=2&continue={next}"),
            None => break list["metadata"]["resourceVersion"].as_str().unwrap().to_owned(),
        }
        http.map(&format!("later-{}", names.len()));
    };
    assert_eq!(&names[..5], ["a", "b", "c", "d", "e"]);
    // All pages carry the first one's version, so what came between pages is told.
    let events = http.lines(&format!("{MAPS}?watch=1&resourceVersion={first}"), "application/json", 2);
    let told: Vec<_> =
        events.iter().map(|e| (e["type"].clone(), e["object"]["metadata"]["name"].clone())).collect();
    assert_eq!(told, [(json!("ADDED"), json!("later-2")), (json!("ADDED"), json!("later-4"))]);

    let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
    let rows = http.lines(&format!("{MAPS}?watch=true&fieldSelector=metadata.name%3Db"), table, 1);
    assert_eq!(rows[0]["object"]["rows"][0]["cells"][0], "b");
    assert_eq!(rows[0]["object"]["columnDefinitions"][0]["name"], "Name");
    // A watch ends in time, with a bookmark when that was asked for.
    let path = format!(
        "{MAPS}?watch=1&resourceVersion={first}&timeoutSeconds=1&allowWatchBookmarks=true&labelSelector=no"
    );
    let events = http.lines(&path, "application/json", 9);
    assert_eq!(events.last().unwrap()["type"], "BOOKMARK");
    let told: u64 =
        events.last().unwrap()["object"]["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
    assert!(told >= first.parse().unwrap());
}

#[test]
fn a_watch_that_is_too_far_back_is_told() {
    let hub = Hub::start();
    let http = Http::new(&hub);
    let map = http.map("a");
    let first = map["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    // Fill the ring by its bytes: a few large objects do it.
    let large = "x".repeat(900 * 1024);
    for turn in 0..5 {
        let body = json!({"data": {"k": format!("{turn}{large}")}}).to_string();
        let path = format!("{MAPS}/a");
        let response =
            http.send(Method::PATCH, &path, &[("content-type", "application/merge-patch+json")], &body);
        assert_eq!(response.status(), StatusCode::OK);
    }
    let response = http.send(Method::GET, &format!("{MAPS}?watch=1&resourceVersion={first}"), &[], "");
    assert_eq!(response.status(), StatusCode::GONE);
    assert_eq!(http.json(response)["reason"], "Expired");
}

#[test]
fn writers_do_not_lose_each_others_changes() {
    let hub = Hub::start();
    let http = Http::new(&hub);
    let map = http.map("a");
    let stale = map["metadata"]["resourceVersion"].clone();
    let patch = |body: Value| {
        let media = [("content-type", "application/merge-patch+json")];
        http.send(Method::PATCH, &format!("{MAPS}/a"), &media, &body.to_string())
    };
    let path = format!("{}{MAPS}/a", hub.url);
    let codes = http.runtime.block_on(async {
        let writes = (0..12).map(|n| {
            let body = json!({"data": {format!("k{n}"): "v"}}).to_string();
            let request = http.client.patch(&path).bearer_auth(TOKEN);
            request.header("content-type", "application/merge-patch+json").body(body).send()
        });
        let answers = futures::future::join_all(writes).await;
        answers.into_iter().map(|a| a.unwrap().status().as_u16()).collect::<Vec<_>>()
    });
    assert!(codes.iter().all(|code| *code == 200), "{codes:?}");
    assert_eq!(http.get(&format!("{MAPS}/a"))["data"].as_object().unwrap().len(), 13);
    let response = patch(json!({"metadata": {"resourceVersion": stale}, "data": {"x": "y"}}));
    assert_eq!(response.status(), StatusCode::CONFLICT);
    assert_eq!(http.json(response)["reason"], "Conflict");
    // Nothing changed, nothing written.
    let before = http.get(&format!("{MAPS}/a"))["metadata"]["resourceVersion"].clone();
    assert_eq!(http.json(patch(json!({"data": {"k1": "v"}})))["metadata"]["resourceVersion"], before);

    let uid = json!({"preconditions": {"uid": "another"}}).to_string();
    let response =
        http.send(Method::DELETE, &format!("{MAPS}/a"), &[("content-type", "application/json")], &uid);
    assert_eq!(response.status(), StatusCode::CONFLICT);
    let (_, generated) =
        http.post(MAPS, &json!({"metadata": {"generateName": "gen-", "labels": {"g": "1"}}}));
    let name = generated["metadata"]["name"].as_str().unwrap();
    assert!(name.starts_with("gen-") && name.len() == 9, "{name}");
    http.send(Method::DELETE, &format!("{MAPS}?labelSelector=g%3D1"), &[], "");
    let left = http.get(MAPS);
    assert_eq!(left["items"].as_array().unwrap().len(), 1);
}

#[test]
fn unknown_fields_are_warned_of() {
    let hub = Hub::start();
    let http = Http::new(&hub);
    let pod = json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c", "image": "x", "imag": 1}], "vendor": {"a": 1}}});
    let json = [("content-type", "application/json")];
    let response = http.send(Method::POST, PODS, &json, &pod.to_string());
    assert_eq!(response.status(), StatusCode::CREATED);
    let warnings: Vec<_> =
        response.headers().get_all("warning").iter().map(|v| v.to_str().unwrap().to_owned()).collect();
    assert_eq!(
        warnings,
        [
            "299 - \"unknown field \\\"spec.containers[0].imag\\\"\"",
            "299 - \"unknown field \\\"spec.vendor\\\"\""
        ]
    );
    assert_eq!(http.get(&format!("{PODS}/a"))["spec"]["vendor"]["a"], 1);
    let (code, status) = http.post(&format!("{PODS}?fieldValidation=Strict"), &pod);
    assert_eq!((code, status["reason"].as_str().unwrap()), (400, "BadRequest"));
}

#[test]
fn edgewires_own_paths_pass_through() {
    let hub = Hub::start();
    let http = Http::new(&hub);
    let none = ("authorization", "none");
    let response = http.send(Method::POST, "/edgewire/v1/enroll", &[none], "{\"node\":\"n1\"}");
    assert_eq!(http.json(response), json!({"verb": "enroll", "body": {"node": "n1"}}));
    let response = http.send(Method::POST, "/edgewire/v1/enroll", &[none], "{\"token\":\"expired\"}");
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    assert!(http.json(response)["message"].as_str().unwrap().starts_with("EW-TOKEN-EXPIRED: "));
    for (method, path, verb) in [
        (Method::POST, "/edgewire/v1/tokens", "token.create"),
        (Method::GET, "/edgewire/v1/tokens", "token.list"),
        (Method::DELETE, "/edgewire/v1/tokens/abc", "token.delete"),
        (Method::GET, "/edgewire/v1/bus", "bus"),
    ] {
        assert_eq!(http.send(method.clone(), path, &[none], "").status(), StatusCode::UNAUTHORIZED, "{path}");
        let response = http.send(method, path, &[], "");
        assert_eq!(http.json(response)["verb"], verb);
    }
    assert_eq!(
        http.send(Method::DELETE, "/edgewire/v1/bus", &[], "").status(),
        StatusCode::METHOD_NOT_ALLOWED
    );
}
