//! Namespaces: those that always are, and the end of those that were deleted.
//!
//! Deleting a namespace only marks it. Here its content is deleted (pods with their grace), again and again until none
//! is left; then the namespace itself goes. Level-triggered: several replicas may do it at once, compare-and-set sorts
//! them out.

use std::time::Duration;

use schemas::Timestamp;
use schemas::object::{Object, new_uid};
use schemas::subject::ObjectKey;
use serde_json::json;

use crate::handlers::delete::{NAMESPACES_KEPT, Options};
use crate::handlers::{Api, prepare};
use crate::resource::{KINDS, Kind, find};
use crate::status::ApiError;
use crate::store::StoreError;

/// How often the content of a namespace that is going is looked at.
const INTERVAL: Duration = Duration::from_millis(300);

/// Makes the namespaces that always are, then ends deleted ones, until the server stops.
pub async fn run(api: &Api) {
    while !api.stop.is_cancelled() {
        match ensure(api).await {
            Ok(()) => break,
            Err(error) => tracing::warn!(%error, "the first namespaces cannot be made yet"),
        }
        pause(api).await;
    }
    let Some(kind) = find("", "v1", "namespaces") else { return };
    let Ok(cache) = api.cache(kind) else { return };
    let mut changed = cache.subscribe();
    while !api.stop.is_cancelled() {
        changed.mark_unchanged();
        let going = cache.objects().into_iter().filter(Object::is_deleting).collect::<Vec<_>>();
        for namespace in &going {
            if let Err(error) = end(api, kind, namespace).await {
                tracing::debug!(namespace = namespace.name(), %error, "namespace is not empty yet");
            }
        }
        if going.is_empty() {
            tokio::select! {
                _ = changed.changed() => {}
                () = api.stop.cancelled() => {}
            }
        } else {
            pause(api).await;
        }
    }
}

async fn pause(api: &Api) {
    tokio::select! {
        () = tokio::time::sleep(INTERVAL) => {}
        () = api.stop.cancelled() => {}
    }
}

async fn ensure(api: &Api) -> Result<(), ApiError> {
    let Some(kind) = find("", "v1", "namespaces") else { return Ok(()) };
    for name in NAMESPACES_KEPT {
        let key = ObjectKey::core("namespaces", "", name);
        if api.parts.store.get(&key).await?.is_some() {
            continue;
        }
        let object = Object::new("v1", "Namespace", "", name);
        let object = prepare::create(kind, object, &new_uid(), "", Timestamp::now())?;
        match api.parts.store.create(&key, &object).await {
            Ok(_) | Err(StoreError::AlreadyExists) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Deletes what is in a namespace; when nothing is, the namespace.
async fn end(api: &Api, kind: &Kind, namespace: &Object) -> Result<(), ApiError> {
    let mut left = 0;
    for content in KINDS.iter().filter(|k| k.namespaced && k.allows("delete")) {
        let (objects, _) = api.parts.store.list(&content.resource(), Some(namespace.name())).await?;
        for object in objects {
            left += 1;
            if !object.is_deleting() {
                let key = object.key(&content.resource());
                match api.delete_one(content, &key, &Options::default()).await {
                    Err(error) if error.code != 404 => return Err(error),
                    _ => {}
                }
            }
        }
    }
    if left > 0 {
        return Ok(());
    }
    let key = ObjectKey::core("namespaces", "", namespace.name());
    let Some(mut object) = api.parts.store.get(&key).await? else { return Ok(()) };
    if object.uid() != namespace.uid() || !object.is_deleting() {
        return Ok(());
    }
    object.set(&["spec", "finalizers"], json!([]));
    if prepare::finalizers(&object).is_empty() {
        api.parts.store.delete(&key, object.revision(), &object).await?;
        tracing::info!(namespace = object.name(), kind = kind.kind, "removed");
    }
    Ok(())
}
