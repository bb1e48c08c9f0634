//! In which form an answer is wanted: plain, as a Table, or metadata only (`Accept`, content negotiation).

use axum::http::HeaderMap;
use schemas::Timestamp;
use schemas::object::Object;
use serde_json::{Value, json};

use crate::resource::Kind;
use crate::route::Query;
use crate::status::ApiError;
use crate::table::{self, Include};

/// The form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// The objects themselves.
    Plain,
    /// `meta.k8s.io/v1` Table.
    Table,
    /// `PartialObjectMetadata`.
    Partial,
}

impl Form {
    /// Takes the first form that the client accepts and we have; 406 when there is none.
    pub fn parse(headers: &HeaderMap) -> Result<Self, ApiError> {
        let accept: Vec<&str> = headers.get_all("accept").iter().filter_map(|v| v.to_str().ok()).collect();
        if accept.is_empty() {
            return Ok(Self::Plain);
        }
        for range in accept.iter().flat_map(|line| line.split(',')) {
            let mut parts = range.split(';').map(str::trim);
            let media = parts.next().unwrap_or("");
            if !matches!(media, "application/json" | "application/*" | "*/*" | "") {
                continue;
            }
            let mut form = Some(Self::Plain);
            for parameter in parts {
                match parameter.split_once('=') {
                    Some(("as", "Table")) => form = Some(Self::Table),
                    Some(("as", "PartialObjectMetadata" | "PartialObjectMetadataList")) => {
                        form = Some(Self::Partial)
                    }
                    Some(("g", group)) if group != "meta.k8s.io" => form = None,
                    Some(("v", version)) if version != "v1" => form = None,
                    Some(("as", _)) => form = None,
                    _ => {}
                }
                if form.is_none() {
                    break;
                }
            }
            if let Some(form) = form {
                return Ok(form);
            }
        }
        Err(ApiError::new(
            406,
            "NotAcceptable",
            "only the following media types are accepted: application/json",
        ))
    }
}

/// `includeObject` of the query.
pub fn include(query: &Query) -> Result<Include, ApiError> {
    match query.get("includeObject") {
        "" | "Metadata" => Ok(Include::Metadata),
        "None" => Ok(Include::None),
        "Object" => Ok(Include::Object),
        other => {
            Err(ApiError::bad_request(format!("includeObject={other:?} is none of None, Metadata, Object")))
        }
    }
}

/// One object in that form.
pub fn one(kind: &Kind, object: &Object, form: Form, include: Include) -> Value {
    match form {
        Form::Plain => object.clone().into(),
        Form::Partial => table::partial(object),
        Form::Table => {
            let revision = object.text(&["metadata", "resourceVersion"]);
            table::table(
                kind,
                &[object],
                json!({"resourceVersion": revision}),
                include,
                true,
                Timestamp::now(),
            )
        }
    }
}

/// A list in that form.
pub fn list(kind: &Kind, objects: &[&Object], metadata: Value, form: Form, include: Include) -> Value {
    match form {
        Form::Table => table::table(kind, objects, metadata, include, true, Timestamp::now()),
        Form::Plain => json!({
            "kind": format!("{}List", kind.kind), "apiVersion": kind.api_version(), "metadata": metadata,
            "items": objects.iter().map(|o| Value::from((*o).clone())).collect::<Vec<_>>(),
        }),
        Form::Partial => json!({
            "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
            "items": objects.iter().map(|o| table::partial(o)).collect::<Vec<_>>(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_form_that_we_have_is_taken() {
        for (accept, want) in [
            ("application/json", Some(Form::Plain)),
            ("*/*", Some(Form::Plain)),
            (
                "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
                Some(Form::Table),
            ),
            ("application/json;as=Table;v=v1beta1;g=meta.k8s.io, application/json", Some(Form::Plain)),
            ("application/vnd.kubernetes.protobuf, application/json", Some(Form::Plain)),
            ("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1", Some(Form::Partial)),
            ("application/vnd.kubernetes.protobuf", None),
            ("application/yaml", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("accept", accept.parse().unwrap());
            assert_eq!(Form::parse(&headers).ok(), want, "{accept}");
        }
    }
}
