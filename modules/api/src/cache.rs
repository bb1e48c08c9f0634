//! The watch cache of one resource: its objects now, and its last changes in a ring.
//!
//! One task follows the store; any number of watches read the ring, each at its own pace. Nothing is buffered per
//! watch: one that falls behind the ring is told 410 and starts over, and so is one that asks for what the ring no
//! longer has. A change keeps the state before it, because a selector needs both to say ADDED, MODIFIED or DELETED.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures::StreamExt;
use schemas::object::Object;
use schemas::subject::Resource;
use tokio::sync::watch;

use crate::selector::Selector;
use crate::store::{Store, StoreError, StoreEvent};

/// Most changes kept for watches that come back.
const RING_MAX: usize = 4096;
/// Most bytes of objects kept in the ring (about; counted as JSON).
const RING_MAX_BYTES: usize = 4 * 1024 * 1024;
/// Pause before the store is asked again.
const RETRY_MS: u64 = 200;

/// One change.
#[derive(Debug)]
pub struct Change {
    /// Its revision.
    pub revision: u64,
    /// The object is gone; `object` is its last state.
    pub deleted: bool,
    /// The object after the change.
    pub object: Object,
    /// The object before it.
    pub previous: Option<Arc<Change>>,
    size_bytes: usize,
}

/// `type` of a watch event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventType {
    /// Came into sight.
    Added,
    /// Changed.
    Modified,
    /// Went out of sight.
    Deleted,
}

impl EventType {
    /// As Kubernetes writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

/// What a watch with `namespace` and `selector` tells of a change: none, one or (when one key changed its UID) two events.
pub fn seen(change: &Change, namespace: Option<&str>, selector: &Selector) -> Vec<(EventType, Object)> {
    let in_sight =
        |object: &Object| namespace.is_none_or(|ns| object.namespace() == ns) && selector.matches(object);
    let gone = |object: &Object| {
        // As in Kubernetes, the last state seen, at the revision at which it went.
        let mut object = object.clone();
        object.set(&["metadata", "resourceVersion"], change.revision.to_string());
        (EventType::Deleted, object)
    };
    let before = change.previous.as_deref().map(|p| &p.object).filter(|object| in_sight(object));
    if change.deleted {
        return match before {
            Some(before) if before.uid() != change.object.uid() => vec![gone(before)],
            Some(_) => vec![gone(&change.object)],
            None => Vec::new(),
        };
    }
    let after = in_sight(&change.object).then(|| change.object.clone());
    match (before, after) {
        (Some(before), Some(after)) if before.uid() != after.uid() => {
            vec![gone(before), (EventType::Added, after)]
        }
        (Some(_), Some(after)) => vec![(EventType::Modified, after)],
        (None, Some(after)) => vec![(EventType::Added, after)],
        (Some(before), None) => vec![gone(before)],
        (None, None) => Vec::new(),
    }
}

#[derive(Debug, Default)]
struct State {
    /// The last change of each living object, by namespace and name.
    objects: BTreeMap<(String, String), Arc<Change>>,
    ring: VecDeque<Arc<Change>>,
    ring_bytes: usize,
    /// Changes up to here are no longer in the ring.
    floor: u64,
    /// The last revision known.
    revision: u64,
    started: bool,
    /// How often the cache was filled anew: a watch of an earlier filling cannot go on.
    filling: u64,
}

impl State {
    fn reset(&mut self, objects: Vec<Object>, revision: u64) {
        let filling = self.filling + 1;
        *self = Self { floor: revision, revision, started: true, filling, ..Self::default() };
        for object in objects {
            let change =
                Change { revision: object.revision(), deleted: false, previous: None, size_bytes: 0, object };
            self.objects.insert(
                (change.object.namespace().to_owned(), change.object.name().to_owned()),
                Arc::new(change),
            );
        }
    }

    fn apply(&mut self, event: StoreEvent) {
        if event.revision <= self.revision {
            return; // told again after a reconnect
        }
        let key = (event.key.namespace, event.key.name);
        let previous = self.objects.get(&key).map(|p| {
            // The chain is one link long: what came before the previous state is of no use to anyone.
            Arc::new(Change {
                revision: p.revision,
                deleted: false,
                object: p.object.clone(),
                previous: None,
                size_bytes: 0,
            })
        });
        let size_bytes = size_of(&event.object) + previous.as_deref().map_or(0, |p| size_of(&p.object));
        let change = Arc::new(Change {
            revision: event.revision,
            deleted: event.deleted,
            object: event.object,
            previous,
            size_bytes,
        });
        if change.deleted {
            self.objects.remove(&key);
        } else {
            self.objects.insert(key, change.clone());
        }
        self.revision = change.revision;
        self.ring_bytes += change.size_bytes;
        self.ring.push_back(change);
        while self.ring.len() > RING_MAX || (self.ring_bytes > RING_MAX_BYTES && self.ring.len() > 1) {
            if let Some(oldest) = self.ring.pop_front() {
                self.ring_bytes -= oldest.size_bytes;
                self.floor = oldest.revision;
            }
        }
    }
}

fn size_of(object: &Object) -> usize {
    fn value(v: &serde_json::Value) -> usize {
        match v {
            serde_json::Value::String(text) => 24 + text.len(),
            serde_json::Value::Array(list) => 24 + list.iter().map(value).sum::<usize>(),
            serde_json::Value::Object(map) => map.iter().map(|(k, v)| 48 + k.len() + value(v)).sum(),
            _ => 16,
        }
    }
    object.as_map().iter().map(|(k, v)| 48 + k.len() + value(v)).sum()
}

/// The watch cache of one resource.
#[derive(Debug)]
pub struct Cache {
    resource: Resource,
    state: RwLock<State>,
    changed: watch::Sender<u64>,
}

impl Cache {
    /// An empty cache; [`Cache::follow`] fills it.
    pub fn new(resource: Resource) -> Self {
        Self { resource, state: RwLock::default(), changed: watch::Sender::new(0) }
    }

    /// Follows the store for ever. Run as one task.
    pub async fn follow(&self, store: &dyn Store) {
        loop {
            if let Err(error) = self.follow_once(store).await {
                tracing::debug!(resource = self.resource.plural, %error, "watch cache starts again");
            }
            tokio::time::sleep(Duration::from_millis(RETRY_MS)).await;
        }
    }

    async fn follow_once(&self, store: &dyn Store) -> Result<(), StoreError> {
        let known = {
            let state = self.read();
            state.started.then_some(state.revision)
        };
        let from = match known {
            Some(revision) => revision,
            None => {
                let (objects, revision) = store.list(&self.resource, None).await?;
                self.write(|state| state.reset(objects, revision));
                revision
            }
        };
        let mut changes = store.watch(&self.resource, from).await?;
        while let Some(event) = changes.next().await {
            match event {
                Ok(event) => self.write(|state| state.apply(event)),
                // What we know cannot be continued: start over, and so do all watches.
                Err(error @ StoreError::Compacted { .. }) => {
                    self.write(|state| state.started = false);
                    return Err(error);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, State> {
        // The state is whole between any two statements, so a panic elsewhere does not spoil it.
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, change: impl FnOnce(&mut State)) {
        let revision = {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            change(&mut state);
            state.revision
        };
        self.changed.send_replace(revision);
    }

    /// Is it filled?
    pub fn is_started(&self) -> bool {
        self.read().started
    }

    /// Waits until it is filled, and says which filling it is.
    pub async fn filled(&self) -> u64 {
        let mut changed = self.subscribe();
        loop {
            {
                let state = self.read();
                if state.started {
                    return state.filling;
                }
            }
            if changed.changed().await.is_err() {
                return 0; // cannot be: the sender is ours
            }
        }
    }

    /// Tells when something changed.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The last revision known.
    pub fn revision(&self) -> u64 {
        self.read().revision
    }

    /// The objects as they are now.
    pub fn objects(&self) -> Vec<Object> {
        self.read().objects.values().map(|change| change.object.clone()).collect()
    }

    /// At most `max` changes after `revision`, of that filling; the floor of the ring when that is not possible.
    pub fn after(&self, filling: u64, revision: u64, max: usize) -> Result<Vec<Arc<Change>>, u64> {
        let state = self.read();
        if !state.started || state.filling != filling || revision < state.floor {
            return Err(state.floor);
        }
        let start = state.ring.partition_point(|change| change.revision <= revision);
        Ok(state.ring.iter().skip(start).take(max).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::subject::ObjectKey;
    use serde_json::json;

    fn event(name: &str, uid: &str, label: &str, revision: u64, deleted: bool) -> StoreEvent {
        let mut object = Object::new("v1", "ConfigMap", "default", name);
        object.set(&["metadata", "uid"], uid);
        object.set(&["metadata", "labels"], json!({"l": label}));
        object.set(&["metadata", "resourceVersion"], revision.to_string());
        StoreEvent { key: ObjectKey::core("configmaps", "default", name), revision, deleted, object }
    }

    fn told(cache: &Cache, from: u64, labels: &str) -> Vec<String> {
        let kind = crate::resource::find("", "v1", "configmaps").unwrap();
        let selector = Selector::parse(kind, labels, "").unwrap();
        let changes = cache.after(1, from, usize::MAX).unwrap();
        let events = changes.iter().flat_map(|change| seen(change, Some("default"), &selector));
        events.map(|(t, o)| format!("{} {} {} {}", t.as_str(), o.name(), o.uid(), o.revision())).collect()
    }

    #[test]
    fn a_selector_turns_changes_into_coming_and_going() {
        let cache = Cache::new(Resource::core("configmaps"));
        cache.write(|s| s.reset(Vec::new(), 1));
        for e in [
            event("a", "1", "x", 2, false),
            event("a", "1", "y", 3, false),
            event("a", "1", "x", 4, false),
            event("a", "1", "x", 5, false),
            event("a", "1", "x", 6, true),
            event("b", "2", "x", 7, false),
            event("b", "3", "x", 8, false), // re-created, the tombstone was compacted away
        ] {
            cache.write(|s| s.apply(e));
        }
        assert_eq!(
            told(&cache, 1, "l=x"),
            [
                "ADDED a 1 2",
                "DELETED a 1 3",
                "ADDED a 1 4",
                "MODIFIED a 1 5",
                "DELETED a 1 6",
                "ADDED b 2 7",
                "DELETED b 2 8",
                "ADDED b 3 8"
            ]
        );
        assert_eq!(told(&cache, 6, ""), ["ADDED b 2 7", "DELETED b 2 8", "ADDED b 3 8"]);
        cache.write(|s| s.apply(event("a", "1", "x", 4, false)));
        assert_eq!(cache.revision(), 8, "what was told before is passed over");
    }

    #[test]
    fn the_ring_is_bounded_and_says_where_it_begins() {
        let cache = Cache::new(Resource::core("configmaps"));
        cache.write(|s| s.reset(Vec::new(), 10));
        assert_eq!(cache.after(1, 9, 10).unwrap_err(), 10);
        for revision in 11..(11 + RING_MAX as u64 + 5) {
            cache.write(|s| s.apply(event("a", "1", "x", revision, false)));
        }
        assert!(cache.after(2, u64::MAX, 10).is_err(), "another filling");
        let floor = cache.after(1, 12, 10).unwrap_err();
        assert!(floor >= 15, "at most {RING_MAX} are kept, or fewer by their bytes: {floor}");
        assert_eq!(cache.after(1, floor - 1, 10).unwrap_err(), floor);
        assert_eq!(cache.after(1, floor, 10).unwrap()[0].revision, floor + 1);
    }
}
