//! The three kinds of PATCH body, applied to a document: JSON Patch (RFC 6902), JSON Merge Patch (RFC 7396), and
//! Kubernetes' strategic merge patch (its own file). Pure: what is stored and whether it is valid is decided elsewhere.

use serde_json::Value;

use crate::status::ApiError;
use crate::strategic;

/// As in Kubernetes: the most operations in one JSON Patch.
const JSON_PATCH_OPERATIONS_MAX: usize = 10_000;

/// A PATCH body, read by its `Content-Type`.
#[derive(Debug, Clone)]
pub enum Patch {
    /// `application/json-patch+json`.
    Json(json_patch::Patch),
    /// `application/merge-patch+json`.
    Merge(Value),
    /// `application/strategic-merge-patch+json`.
    Strategic(Value),
}

impl Patch {
    /// Reads a body.
    pub fn parse(content_type: &str, body: &[u8]) -> Result<Self, ApiError> {
        let media = content_type.split(';').next().unwrap_or("").trim();
        let bad =
            |error: serde_json::Error| ApiError::bad_request(format!("the patch is not valid: {error}"));
        match media {
            "application/json-patch+json" => {
                let patch: json_patch::Patch = serde_json::from_slice(body).map_err(bad)?;
                if patch.0.len() > JSON_PATCH_OPERATIONS_MAX {
                    return Err(ApiError::new(
                        413,
                        "RequestEntityTooLarge",
                        format!("the JSON patch has over {JSON_PATCH_OPERATIONS_MAX} operations"),
                    ));
                }
                Ok(Self::Json(patch))
            }
            "application/merge-patch+json" => {
                Ok(Self::Merge(object(serde_json::from_slice(body).map_err(bad)?)?))
            }
            "application/strategic-merge-patch+json" => {
                Ok(Self::Strategic(object(serde_json::from_slice(body).map_err(bad)?)?))
            }
            "application/apply-patch+yaml" | "application/apply-patch+cbor" => Err(ApiError::media_type(
                "server-side apply is not served yet: use 'kubectl apply' without --server-side",
            )),
            other => Err(ApiError::media_type(format!(
                "the patch type {other:?} is not supported: use application/json-patch+json, \
                 application/merge-patch+json or application/strategic-merge-patch+json"
            ))),
        }
    }

    /// Applies it to a copy of `document`.
    pub fn apply(&self, document: &Value) -> Result<Value, ApiError> {
        let mut next = document.clone();
        match self {
            Self::Json(patch) => {
                json_patch::patch(&mut next, patch).map_err(|error| {
                    ApiError::new(422, "Invalid", format!("the JSON patch does not apply: {error}"))
                })?;
            }
            Self::Merge(patch) => json_patch::merge(&mut next, patch),
            Self::Strategic(patch) => {
                next = strategic::apply(document, patch).map_err(|why| {
                    ApiError::bad_request(format!("the strategic merge patch is not valid: {why}"))
                })?;
            }
        }
        Ok(next)
    }
}

fn object(value: Value) -> Result<Value, ApiError> {
    if value.is_object() { Ok(value) } else { Err(ApiError::bad_request("the patch is not a JSON object")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_kind_applies_by_its_own_rules() {
        let document = json!({"a": {"b": 1, "c": [1, 2]}});
        for (media, patch, want) in [
            (
                "application/json-patch+json",
                json!([{"op": "add", "path": "/a/c/-", "value": 3}]),
                json!({"a": {"b": 1, "c": [1, 2, 3]}}),
            ),
            ("application/merge-patch+json", json!({"a": {"b": null, "c": [9]}}), json!({"a": {"c": [9]}})),
            (
                "application/strategic-merge-patch+json; charset=utf-8",
                json!({"a": {"b": 2}}),
                json!({"a": {"b": 2, "c": [1, 2]}}),
            ),
        ] {
            let patch = Patch::parse(media, patch.to_string().as_bytes()).unwrap();
            assert_eq!(patch.apply(&document).unwrap(), want, "{media}");
        }
        for (media, body, code) in [
            ("application/apply-patch+yaml", "{}", 415),
            ("text/plain", "{}", 415),
            ("application/merge-patch+json", "[]", 400),
            ("application/merge-patch+json", "{", 400),
            ("application/json-patch+json", "{}", 400),
        ] {
            assert_eq!(Patch::parse(media, body.as_bytes()).unwrap_err().code, code, "{media} {body}");
        }
        let test = Patch::parse("application/json-patch+json", br#"[{"op":"test","path":"/a/b","value":2}]"#)
            .unwrap();
        assert_eq!(test.apply(&document).unwrap_err().code, 422);
    }
}
