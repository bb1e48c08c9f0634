//! What the API needs of the object store, as one small trait, so that its tests can run on a store in memory.
//!
//! The real one is JetStream KV (crate `bus`). A revision is the sequence of the stream behind the bucket: it is
//! global, it only grows, and it is the `resourceVersion` that clients see.

use async_trait::async_trait;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use schemas::object::Object;
use schemas::subject::{ObjectKey, Resource};

/// Why the store did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// There is a living object at the key.
    #[error("an object stands at the key already")]
    AlreadyExists,
    /// The object is not at the expected revision (or not there at all).
    #[error("the object is not at the expected revision")]
    Conflict,
    /// A watch begins before what the store still knows.
    #[error("the history begins at revision {floor}")]
    Compacted {
        /// The oldest revision known.
        floor: u64,
    },
    /// No answer.
    #[error("{0}")]
    Unavailable(String),
}

/// One change of one key.
#[derive(Debug, Clone, PartialEq)]
pub struct StoreEvent {
    /// Which object.
    pub key: ObjectKey,
    /// Revision of the change.
    pub revision: u64,
    /// `true`: `object` is the last state of what is gone now.
    pub deleted: bool,
    /// The object; its `resourceVersion` is `revision`.
    pub object: Object,
}

/// The changes of a resource. An error item is not the end of interest: the reader watches again.
pub type StoreWatch = BoxStream<'static, Result<StoreEvent, StoreError>>;

/// The object store.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The object at a key.
    async fn get(&self, key: &ObjectKey) -> Result<Option<Object>, StoreError>;
    /// All objects of a resource, in one namespace or in all, in the order of their keys, and the revision they were read at.
    async fn list(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
    ) -> Result<(Vec<Object>, u64), StoreError>;
    /// Writes a new object; [`StoreError::AlreadyExists`] when the key holds one.
    async fn create(&self, key: &ObjectKey, object: &Object) -> Result<Object, StoreError>;
    /// Replaces the object at `expect`; [`StoreError::Conflict`] otherwise.
    async fn update(&self, key: &ObjectKey, object: &Object, expect: u64) -> Result<Object, StoreError>;
    /// Removes the object at `expect`, leaving a tombstone with its final state. Gives the revision of the removal.
    async fn delete(&self, key: &ObjectKey, expect: u64, last: &Object) -> Result<u64, StoreError>;
    /// The revision of the last write, of whatever key.
    async fn revision(&self) -> Result<u64, StoreError>;
    /// Changes of a resource after `from`.
    async fn watch(&self, resource: &Resource, from: u64) -> Result<StoreWatch, StoreError>;
}

#[async_trait]
impl Store for bus::store::ObjectStore {
    async fn get(&self, key: &ObjectKey) -> Result<Option<Object>, StoreError> {
        Ok(Self::get(self, key).await?)
    }
    async fn list(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
    ) -> Result<(Vec<Object>, u64), StoreError> {
        Ok(Self::list(self, resource, namespace).await?)
    }
    async fn create(&self, key: &ObjectKey, object: &Object) -> Result<Object, StoreError> {
        Ok(Self::create(self, key, object).await?)
    }
    async fn update(&self, key: &ObjectKey, object: &Object, expect: u64) -> Result<Object, StoreError> {
        Ok(Self::update(self, key, object, expect).await?)
    }
    async fn delete(&self, key: &ObjectKey, expect: u64, last: &Object) -> Result<u64, StoreError> {
        Ok(Self::delete(self, key, expect, last).await?)
    }
    async fn revision(&self) -> Result<u64, StoreError> {
        Ok(Self::revision(self).await?)
    }
    async fn watch(&self, resource: &Resource, from: u64) -> Result<StoreWatch, StoreError> {
        /// Events that may wait for the reader.
        const WAITING_MAX: usize = 64;
        let (tell, told) = tokio::sync::mpsc::channel(WAITING_MAX);
        let (store, resource) = (self.clone(), resource.clone());
        let watching: BoxFuture<'static, Result<(), bus::store::StoreError>> =
            Box::pin(
                async move { Self::watch(&store, &resource, bus::store::From::After(from), tell).await },
            );
        // The watch runs while its stream is read: nothing to own, nothing to stop.
        let stream = futures::stream::unfold(Some((watching, told)), |state| async move {
            let (mut watching, mut told) = state?;
            loop {
                tokio::select! {
                    biased;
                    next = told.recv() => match next {
                        Some(Some(event)) => {
                            let event = StoreEvent {
                                key: event.key, revision: event.revision, deleted: event.removed, object: event.object,
                            };
                            return Some((Ok(event), Some((watching, told))));
                        }
                        Some(None) => {}
                        None => return None,
                    },
                    ended = &mut watching => {
                        let error = ended.err().map_or_else(|| StoreError::Unavailable("the watch ended".into()), Into::into);
                        return Some((Err(error), None));
                    }
                }
            }
        });
        Ok(Box::pin(stream))
    }
}

impl From<bus::store::StoreError> for StoreError {
    fn from(error: bus::store::StoreError) -> Self {
        match error {
            bus::store::StoreError::Exists(_) => Self::AlreadyExists,
            bus::store::StoreError::Conflict(_) => Self::Conflict,
            bus::store::StoreError::Compacted { from, .. } => Self::Compacted { floor: from },
            error @ bus::store::StoreError::Server { .. } => Self::Unavailable(error.to_string()),
        }
    }
}
