//! GET of one object, and of a collection in pages.
//!
//! The store keeps no old states, so a later page shows the present. All pages carry the first page's
//! `resourceVersion`: a watch from it repeats what changed meanwhile, so nothing is missed.

use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use schemas::object::Object;
use serde_json::{Value, json};

use super::accept::{self, Form};
use super::{Api, Asked};
use crate::selector::Selector;
use crate::status::{ApiError, json_response};

/// Where the next page begins.
#[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
struct Continue {
    /// `resourceVersion` of the first page.
    rv: u64,
    /// Namespace and name of the last object told.
    after: (String, String),
}

impl Continue {
    fn write(&self) -> String {
        URL_SAFE_NO_PAD.encode(json!(self).to_string())
    }
    fn read(text: &str) -> Result<Self, ApiError> {
        let bad = || ApiError::bad_request("continue key is not valid: start the list again without it");
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| bad())?;
        serde_json::from_slice(&bytes).map_err(|_| bad())
    }
}

impl Api {
    pub(crate) async fn get(&self, asked: Asked) -> Result<Response, ApiError> {
        let form = Form::parse(&asked.head.headers)?;
        let include = accept::include(&asked.query)?;
        let object = self.find(&asked).await?;
        Ok(json_response(200, &accept::one(asked.target.kind, &object, form, include)))
    }

    /// The object that a request names; 404.
    pub(crate) async fn find(&self, asked: &Asked) -> Result<Object, ApiError> {
        let key = asked.key()?;
        let kind = asked.target.kind;
        let found = self.parts.store.get(&key).await?;
        found.ok_or_else(|| ApiError::not_found(kind.plural, kind.group, &key.name))
    }

    pub(crate) async fn list(&self, asked: Asked) -> Result<Response, ApiError> {
        let kind = asked.target.kind;
        let form = Form::parse(&asked.head.headers)?;
        let include = accept::include(&asked.query)?;
        let selector =
            Selector::parse(kind, asked.query.get("labelSelector"), asked.query.get("fieldSelector"))?;
        let limit = asked.query.number("limit")?.unwrap_or(0);
        let from = match asked.query.get("continue") {
            "" => None,
            text => Some(Continue::read(text)?),
        };
        let (mut objects, revision) = self.chosen(&asked, &selector).await?;
        let revision = from.as_ref().map_or(revision, |from| from.rv);
        if let Some(from) = &from {
            let (namespace, name) = &from.after;
            objects.retain(|o| (o.namespace(), o.name()) > (namespace.as_str(), name.as_str()));
        }
        let mut metadata = json!({"resourceVersion": revision.to_string()});
        let page = usize::try_from(limit).unwrap_or(usize::MAX);
        if limit > 0 && objects.len() > page {
            let remaining = objects.len() - page;
            objects.truncate(page);
            if let (Some(last), Some(map)) = (objects.last(), metadata.as_object_mut()) {
                let next = Continue { rv: revision, after: (last.namespace().into(), last.name().into()) };
                map.insert("continue".into(), Value::from(next.write()));
                map.insert("remainingItemCount".into(), remaining.into());
            }
        }
        let objects: Vec<&Object> = objects.iter().collect();
        Ok(json_response(200, &accept::list(kind, &objects, metadata, form, include)))
    }

    /// All objects of a collection that the selector takes, in order, and the revision they were read at.
    pub(crate) async fn chosen(
        &self,
        asked: &Asked,
        selector: &Selector,
    ) -> Result<(Vec<Object>, u64), ApiError> {
        let kind = asked.target.kind;
        let namespace = asked.target.namespace.as_deref();
        let (mut objects, revision) = self.parts.store.list(&kind.resource(), namespace).await?;
        objects.retain(|object| {
            selector.matches(object) && asked.target.name.as_deref().is_none_or(|name| object.name() == name)
        });
        Ok((objects, revision))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn continue_keys_survive() {
        let key = Continue { rv: 7, after: ("ns".into(), "a/b".into()) };
        assert_eq!(Continue::read(&key.write()).unwrap(), key);
        assert_eq!(Continue::read("x").unwrap_err().code, 400);
    }

    #[test]
    fn a_continue_token_is_read_whatever_it_is() {
        let key = Continue { rv: 7, after: ("ns".into(), "a".into()) }.write();
        crate::fuzz::try_bytes("a continue key", &[key.into_bytes()], |bytes| {
            let text = String::from_utf8_lossy(bytes);
            let inside = URL_SAFE_NO_PAD.encode(bytes);
            for text in [&*text, &inside] {
                if let Ok(key) = Continue::read(text) {
                    assert_eq!(Continue::read(&key.write()).unwrap(), key);
                }
            }
        });
    }
}
