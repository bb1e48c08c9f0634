//! The API's view of the bucket `objects`: Kubernetes objects by key, where the revision is `resourceVersion`.

use schemas::object::Object;
use schemas::subject::{self, ObjectKey, Resource};

use super::{From, Seen, Store, StoreError};
use crate::connection::Bus;
use crate::module::{Entry, EntryValue, Expect, WriteError};

/// Kubernetes objects by key.
#[derive(Clone)]
pub struct ObjectStore {
    store: Store,
}

/// What happened to an object.
#[derive(Debug, Clone, PartialEq)]
pub struct ObjectEvent {
    /// Its key.
    pub key: ObjectKey,
    /// The revision of the change.
    pub revision: u64,
    /// Was it removed? Then `object` is its last state.
    pub removed: bool,
    /// The object, with `resourceVersion` set.
    pub object: Object,
}

impl ObjectStore {
    /// The objects of the hub that `bus` is connected to.
    pub fn new(bus: &Bus) -> Self {
        Self { store: Store::new(bus, subject::BUCKET_OBJECTS) }
    }

    fn read(&self, entry: &Entry) -> Result<ObjectEvent, StoreError> {
        let (bytes, removed) = match &entry.value {
            EntryValue::Put(bytes) => (bytes, false),
            EntryValue::Removed(bytes) => (bytes, true),
        };
        let key = ObjectKey::parse(&entry.key)
            .ok_or_else(|| self.store.fail(format!("key {:?} is not an object's", entry.key)))?;
        let object = Object::from_bytes(bytes, entry.revision)
            .map_err(|error| self.store.fail(format!("object {}: {error}", entry.key)))?;
        Ok(ObjectEvent { key, revision: entry.revision, removed, object })
    }

    /// The revision of the last write, of whatever key.
    pub async fn revision(&self) -> Result<u64, StoreError> {
        self.store.last_revision().await
    }

    /// One object.
    pub async fn get(&self, key: &ObjectKey) -> Result<Option<Object>, StoreError> {
        match self.store.get(&key.key()).await? {
            Some(entry) if matches!(entry.value, EntryValue::Put(_)) => Ok(Some(self.read(&entry)?.object)),
            _ => Ok(None),
        }
    }

    /// All objects of a resource, in one namespace or in all, and the revision of the list.
    pub async fn list(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
    ) -> Result<(Vec<Object>, u64), StoreError> {
        let (entries, revision) = self.store.list(&subject::objects_filter(resource, namespace)).await?;
        let mut objects = Vec::with_capacity(entries.len());
        for entry in &entries {
            match self.read(entry) {
                Ok(event) => objects.push(event.object),
                // One unreadable object must not hide the others.
                Err(error) => tracing::error!(%error, "left out of the list"),
            }
        }
        objects.sort_by(|a, b| (a.namespace(), a.name()).cmp(&(b.namespace(), b.name())));
        Ok((objects, revision))
    }

    async fn written(
        &self,
        key: &ObjectKey,
        object: &Object,
        outcome: Result<u64, WriteError>,
        conflict: fn(String) -> StoreError,
    ) -> Result<Object, StoreError> {
        let revision = outcome.map_err(|error| match error {
            WriteError::Conflict => conflict(key.display()),
            WriteError::Failed(cause) => self.store.fail(cause),
        })?;
        let mut object = object.clone();
        object.set(&["metadata", "resourceVersion"], revision.to_string());
        Ok(object)
    }

    /// Writes a new object. If nobody said whether it was written, its UID tells, also when somebody has changed it since.
    pub async fn create(&self, key: &ObjectKey, object: &Object) -> Result<Object, StoreError> {
        let outcome = self.store.put(&key.key(), object.to_bytes(), Expect::Absent).await;
        if matches!(outcome, Err(WriteError::Failed(_)))
            && let Ok(Some(there)) = self.get(key).await
            && there.uid() == object.uid()
        {
            return Ok(there);
        }
        self.written(key, object, outcome, StoreError::Exists).await
    }

    /// Writes an object that is at `expect_revision`.
    pub async fn update(
        &self,
        key: &ObjectKey,
        object: &Object,
        expect_revision: u64,
    ) -> Result<Object, StoreError> {
        let outcome = self.store.put(&key.key(), object.to_bytes(), Expect::Revision(expect_revision)).await;
        self.written(key, object, outcome, StoreError::Conflict).await
    }

    /// Removes an object that is at `expect_revision`; `last` is what watchers are told. Gives the revision of the removal.
    pub async fn delete(
        &self,
        key: &ObjectKey,
        expect_revision: u64,
        last: &Object,
    ) -> Result<u64, StoreError> {
        let outcome = self.store.remove(&key.key(), last.to_bytes(), Expect::Revision(expect_revision)).await;
        Ok(self.written(key, last, outcome, StoreError::Conflict).await?.revision())
    }

    /// Tells the changes of a resource (in all namespaces) from `from` on, for ever; `None` once, when all that was there
    /// has been told.
    pub async fn watch(
        &self,
        resource: &Resource,
        from: From,
        tell: tokio::sync::mpsc::Sender<Option<ObjectEvent>>,
    ) -> Result<(), StoreError> {
        let (raw, mut seen) = tokio::sync::mpsc::channel(64);
        let filter = subject::objects_filter(resource, None);
        let watching = self.store.watch(&filter, from, raw);
        let forwarding = async {
            while let Some(seen) = seen.recv().await {
                let told = match seen {
                    Seen::Current => None,
                    Seen::Entry(entry) => match self.read(&entry) {
                        Ok(event) => Some(event),
                        // An expired tombstone's marker has no value: whoever is current saw the tombstone itself.
                        Err(error) => {
                            tracing::debug!(%error, "entry passed over");
                            continue;
                        }
                    },
                };
                if tell.send(told).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            ended = watching => ended,
            () = forwarding => Ok(()),
        }
    }
}
