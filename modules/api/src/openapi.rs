//! The OpenAPI documents: only as much as kubectl asks of them.
//!
//! kubectl reads `/openapi/v3` to learn whether the server checks fields itself (the `fieldValidation` parameter of
//! PATCH on the kind); then it leaves the checking to us. Schemas stay open objects: the typed structs are the check.
//! No `requestBody` stands on PATCH, so that `kubectl apply` merges by its built-in structs.

use serde_json::{Map, Value, json};

use crate::resource::{KINDS, Kind};

/// `/openapi/v3`: where the documents of each group are.
pub fn v3_index() -> Value {
    let mut paths = Map::new();
    for kind in KINDS {
        let path = group_path(kind);
        let url = format!("/openapi/v3/{path}?hash={}", env!("CARGO_PKG_VERSION"));
        paths.insert(path, json!({"serverRelativeURL": url}));
    }
    json!({"paths": paths})
}

fn group_path(kind: &Kind) -> String {
    if kind.group.is_empty() {
        format!("api/{}", kind.version)
    } else {
        format!("apis/{}/{}", kind.group, kind.version)
    }
}

fn gvk(kind: &Kind) -> Value {
    json!({"group": kind.group, "version": kind.version, "kind": kind.kind})
}

fn schema_name(kind: &Kind) -> String {
    let group = if kind.group.is_empty() { "core" } else { kind.group };
    format!("io.k8s.api.{group}.{}.{}", kind.version, kind.kind)
}

/// The paths of a kind: of its collection and of one object.
fn paths_of(kind: &Kind) -> (String, String) {
    let base = format!("/{}", group_path(kind));
    let scope = if kind.namespaced { "/namespaces/{namespace}" } else { "" };
    let collection = format!("{base}{scope}/{}", kind.plural);
    let object = format!("{collection}/{{name}}");
    (collection, object)
}

/// `/openapi/v3/<path>`; `None` when nothing is served there.
pub fn v3(path: &str) -> Option<Value> {
    let mut paths = Map::new();
    let mut schemas = Map::new();
    for kind in KINDS.iter().filter(|k| group_path(k) == path) {
        let parameter = |name: &str| json!({"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": true}});
        let operation = |action: &str| {
            json!({
                "operationId": format!("{action}{}", kind.kind),
                "parameters": [parameter("dryRun"), parameter("fieldManager"), parameter("fieldValidation")],
                "responses": {"200": {"description": "OK"}},
                "x-kubernetes-action": action, "x-kubernetes-group-version-kind": gvk(kind),
            })
        };
        let (collection, object) = paths_of(kind);
        paths.insert(collection, json!({"post": operation("post")}));
        paths.insert(object, json!({"put": operation("put"), "patch": operation("patch")}));
        schemas.insert(
            schema_name(kind),
            json!({
                "type": "object",
                "description": kind.about,
                "properties": {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"}},
                "x-kubernetes-group-version-kind": [gvk(kind)],
                "x-kubernetes-preserve-unknown-fields": true,
            }),
        );
    }
    (!paths.is_empty()).then(|| {
        json!({
            "openapi": "3.0.0", "info": {"title": "Edgewire", "version": env!("CARGO_PKG_VERSION")},
            "paths": paths, "components": {"schemas": schemas},
        })
    })
}

/// The media type of `/openapi/v2` in protobuf.
pub const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// `/openapi/v2` for programs that read JSON.
pub fn v2() -> Value {
    let mut paths = Map::new();
    let mut definitions = Map::new();
    for kind in KINDS {
        let parameter =
            |name: &str| json!({"name": name, "in": "query", "type": "string", "uniqueItems": true});
        let operation = |action: &str| {
            json!({
                "operationId": format!("{action}{}", kind.kind), "parameters": [parameter("fieldValidation")],
                "responses": {"200": {"description": "OK"}},
                "x-kubernetes-action": action, "x-kubernetes-group-version-kind": gvk(kind),
            })
        };
        let (collection, object) = paths_of(kind);
        paths.insert(collection, json!({"post": operation("post")}));
        paths.insert(object, json!({"put": operation("put"), "patch": operation("patch")}));
        definitions.insert(
            schema_name(kind),
            json!({"type": "object", "x-kubernetes-group-version-kind": [gvk(kind)]}),
        );
    }
    json!({
        "swagger": "2.0", "info": {"title": "Edgewire", "version": env!("CARGO_PKG_VERSION")},
        "paths": paths, "definitions": definitions,
    })
}
