//! What can be asked for, as OpenAPI 3.1 says it (`GET /v1/openapi.json`). A test holds it against [`crate::route::ROUTES`].

use serde_json::{Map, Value, json};

use crate::route::{TIMEOUT_DEFAULT, TIMEOUT_MAX};

/// What each status stands for; an operation names those that it has.
const STATUSES: [(u16, &str); 11] = [
    (200, "done"),
    (202, "the node's server has taken it; whoever listens now hears it"),
    (400, "the subject, a header, a parameter or the body is not possible; the message says what is"),
    (401, "no login, or one that the node's server refuses"),
    (403, "the node's server refuses the subject to this login"),
    (408, "the body did not arrive in time"),
    (413, "the message is too large"),
    (429, "too much at once by this login, or in all: wait, then try again"),
    (503, "nobody answers, or the node's server is away, or its stream refused: try again"),
    (504, "no answer in time; of a stored message: unknown, send it again with the same Nats-Msg-Id"),
    (507, "the store is full and drops nothing: keep the message and try again"),
];

fn responses(of: &[u16], good: Value) -> Value {
    let refusal = json!({"$ref": "#/components/schemas/Refusal"});
    let mut all = Map::new();
    for (status, meaning) in STATUSES.iter().filter(|(status, _)| of.contains(status)) {
        let response = match status {
            200 => json!({"description": meaning, "content": good}),
            202 => json!({"description": meaning}),
            _ => json!({"description": meaning, "content": {"application/json": {"schema": refusal}}}),
        };
        all.insert(status.to_string(), response);
    }
    all.into()
}

fn subject(what: &str) -> Value {
    json!({"name": "subject", "in": "path", "required": true, "description": what, "schema": {"type": "string"}})
}

fn header(name: &str, what: &str) -> Value {
    json!({"name": name, "in": "header", "required": false, "description": what, "schema": {"type": "string"}})
}

/// The document.
pub fn document() -> Value {
    let any = json!({"*/*": {"schema": {}}});
    let message_id = header("Nats-Msg-Id", "a stored message of this ID counts once within two minutes");
    let content = json!({"required": false, "description": "the payload, at most 8 MiB", "content": any});
    let timeout = json!({
        "name": "timeout", "in": "query", "required": false, "schema": {"type": "string"},
        "description": format!(
            "how long to wait, as 500ms, 5s or 1m; {} s unless said, {} s at most",
            TIMEOUT_DEFAULT.as_secs(), TIMEOUT_MAX.as_secs()
        ),
    });
    let stored = json!({"application/json": {"schema": {"$ref": "#/components/schemas/Stored"}}});
    let events = json!({"text/event-stream": {"schema": {"type": "string"}}});
    let publish = json!({
        "summary": "Say one thing",
        "description": "On `up.`, `bulk.` and every subject that a stream holds: 200 when it is stored. On others: 202. \
            `Content-Type`, `Nats-Msg-Id` and `ce-*` headers go with it.",
        "parameters": [subject("where; dots join its words, no wildcards"), message_id],
        "requestBody": content,
        "responses": responses(&[200, 202, 400, 401, 403, 408, 413, 429, 503, 504, 507], stored),
    });
    let request = json!({
        "summary": "Ask, and get the first answer",
        "description": "`Content-Type`, `ce-*` and `Nats-Service-Error*` headers of the answer come back.",
        "parameters": [subject("where; no wildcards"), timeout],
        "requestBody": content,
        "responses": responses(&[200, 400, 401, 403, 408, 413, 429, 503, 504], any),
    });
    let subscribe = json!({
        "summary": "Hear what is said, as server-sent events",
        "description": "Events: `message` with {subject, headers, data or data_base64}; `large` {subject, size_bytes} for \
            one that is too long; `gap` {reason} where something is missing; `slow` {reason} and the end for who reads too \
            slowly; `refused` {code, message} and the end when the right is gone.",
        "parameters": [
            subject("where; `*` stands for one word, `>` at the end for all that follow"),
            header("Last-Event-ID", "go on after that event"),
        ],
        "responses": responses(&[200, 400, 401, 403, 429, 503], events),
    });
    let object = json!({"application/json": {"schema": {"type": "object"}}});
    let open =
        |what: &str| json!({"summary": what, "security": [], "responses": responses(&[200], object.clone())});
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Edgewire's workload bus by HTTP",
            "version": env!("CARGO_PKG_VERSION"),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"basic": []}, {"bearer": []}],
        "paths": {
            "/healthz": {"get": open("Is the door open?")},
            "/v1/openapi.json": {"get": open("This document")},
            "/v1/pub/{subject}": {"post": publish},
            "/v1/req/{subject}": {"post": request},
            "/v1/sub/{subject}": {"get": subscribe},
        },
        "components": {
            "securitySchemes": {
                "basic": {"type": "http", "scheme": "basic", "description": "user and password of BUS_HTTP_URL"},
                "bearer": {"type": "http", "scheme": "bearer", "description": "base64 of USER:PASSWORD"},
            },
            "schemas": {
                "Refusal": {
                    "type": "object", "required": ["code", "message"],
                    "properties": {"code": {"type": "string"}, "message": {"type": "string"}},
                },
                "Stored": {
                    "type": "object", "required": ["stream", "seq", "duplicate"],
                    "properties": {
                        "stream": {"type": "string"}, "seq": {"type": "integer"}, "duplicate": {"type": "boolean"},
                    },
                },
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::ROUTES;

    #[test]
    fn it_names_every_route_and_no_other() {
        let document = document();
        let mut described = Vec::new();
        for (path, methods) in document["paths"].as_object().unwrap() {
            for (method, operation) in methods.as_object().unwrap() {
                described.push((path.clone(), method.to_ascii_uppercase()));
                assert!(!operation["responses"].as_object().unwrap().is_empty(), "{path}");
                let named = operation["parameters"].as_array().into_iter().flatten();
                let in_path = named.filter(|parameter| parameter["in"] == "path").count();
                assert_eq!(in_path, path.matches('{').count(), "{path}");
            }
        }
        described.sort();
        let mut routes = ROUTES.map(|(path, method)| (path.to_owned(), method.to_owned())).to_vec();
        routes.sort();
        assert_eq!(described, routes);
    }

    #[test]
    fn what_it_refers_to_is_there() {
        let document = document();
        let text = document.to_string();
        for name in text.split("\"#/").skip(1).filter_map(|rest| rest.split('"').next()) {
            assert!(document.pointer(&format!("/{name}")).is_some(), "{name}");
        }
    }
}
