//! Bugs that are planted to show that the checks find them. None stands in a module: the server or the runner misbehaves,
//! or a module is told something else, so that a guard of its has nothing to see.

use std::collections::{BTreeMap, BTreeSet};

use bus::link::Pulled;
use bus::module::{Delivery, Entry, EntryValue, Input};
use containers::effects::Done as ContainersDone;
use schemas::Timestamp;
use schemas::command::Reply;
use schemas::desired::{Content, Desired, Epoch, GetPage, Lineage, ListPage, Local};
use schemas::report::PodReport;
use schemas::subject::{self, BUCKET_DESIRED, BUCKET_LOCAL, DesiredKey, ObjectKey};
use sync::edge::Done;
use sync::up::Cursor;

use super::jetstream::New;
use super::world::World;

/// A planted bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Planted {
    /// Servers acknowledge first and write to their disks later.
    AckBeforeFlush,
    /// The runner acknowledges a delivery before its effects are done.
    AckBeforeEffects,
    /// The hub takes a batch whatever its cursor says.
    CursorWithoutCas,
    /// A report counts for whatever pod has the name now.
    MissingUidCheck,
    /// An entry is always taken for newer than what the node has.
    StaleRevision,
    /// Tombstones of `desired` are acknowledged and not stored.
    LostTombstone,
    /// Every history looks like the one the node knows.
    MissedGeneration,
    /// What the local bucket no longer has is taken for deleted.
    AbsenceAsDeletion,
    /// The runner acts first and writes what is to be kept later.
    ActBeforeFlush,
    /// The runner acknowledges a delivery whose effects failed.
    AckOfFailed,
    /// A report whose acknowledgement did not come is taken for stored.
    PaidWithoutAck,
    /// A module begins without what it kept.
    NotRestored,
    /// Times of a clock that was set back are waited for.
    ClockTrusted,
    /// Reports are numbered by the clock alone.
    ClockAsSequence,
    /// Reports of a node whose store was lost are compared with those out of the old one.
    StoreIgnored,
    /// A write that somebody else was faster than is taken for done.
    ConflictTakenForWritten,
    /// Modules write over whatever is there.
    WriteWithoutCas,
    /// A watch that was cut off goes on with what comes next.
    WatchGap,
    /// A cursor that is there is read as one that took nothing.
    CursorReadAsZero,
    /// A cursor of a stream that is gone counts for the one that came after it.
    CursorOfAnotherStream,
    /// What is on its way to the hub is trimmed on the node.
    TrimBeforeCommit,
    /// A tombstone is for whatever has the name now.
    TombstoneWithoutUid,
    /// The hub lets messages for a node go before the node has written them.
    TakenBeforeWritten,
    /// A node writes what came from the hub whatever its cursor says.
    DownWithoutCas,
    /// A message of the hub's is known by its number alone.
    TakenByNumberAlone,
}

/// What a planted bug remembers on a node.
#[derive(Default)]
pub struct Notes {
    epochs: Vec<String>,
    lineage: Option<Lineage>,
    seen: BTreeMap<String, Local>,
    now: (u64, BTreeSet<String>),
}

/// Is it a tombstone of `desired`?
pub fn is_tombstone(new: &New) -> bool {
    new.subject.starts_with("$KV.desired.")
        && schemas::decode::<Desired>(&new.payload).is_ok_and(|desired| desired.content == Content::Tombstone)
}

/// A pod's report as one of the UID that has the name now.
pub fn of_the_present_uid(w: &World, mut delivery: Delivery) -> Delivery {
    let Ok(mut report) = schemas::decode::<PodReport>(&delivery.payload) else { return delivery };
    let key = ObjectKey::core("pods", &report.namespace, &report.name);
    let Some(pod) = super::users::get(w, &key) else { return delivery };
    delivery.subject = delivery.subject.replace(&report.uid, pod.uid());
    report.uid = pod.uid().to_owned();
    delivery.payload = schemas::encode(&report);
    delivery
}

/// A report as one that does not say out of which store it is.
pub fn of_any_store(mut delivery: Delivery) -> Delivery {
    if let Ok(report) = schemas::decode::<PodReport>(&delivery.payload) {
        delivery.payload = schemas::encode(&PodReport { store: String::new(), ..report });
    }
    delivery
}

/// What a node's sync is told instead.
pub fn of_sync(w: &mut World, edge: usize, input: Input<Done>) -> Input<Done> {
    match (w.planted, input) {
        (
            Some(Planted::StaleRevision | Planted::MissedGeneration),
            Input::Answered { token, outcome: Ok(bytes) },
        ) => {
            let bytes = answer(w, edge, bytes);
            Input::Answered { token, outcome: Ok(bytes) }
        }
        (
            Some(Planted::StaleRevision | Planted::MissedGeneration),
            Input::Done(Done::Pulled { round, outcome: Ok(mut pulled), took_ms }),
        ) => {
            for Pulled { key, revision, payload, .. } in &mut pulled {
                let read = DesiredKey::parse_desired(key);
                if let (Some((_, key)), Ok(mut desired)) = (read, schemas::decode::<Desired>(payload)) {
                    entry(w, edge, &key, revision, &mut desired);
                    *payload = schemas::encode(&desired);
                }
            }
            Input::Done(Done::Pulled { round, outcome: Ok(pulled), took_ms })
        }
        (
            Some(bug @ (Planted::CursorReadAsZero | Planted::CursorOfAnotherStream)),
            Input::Done(Done::Found { lane, round, outcome: Ok((Some((revision, bytes)), state)) }),
        ) => {
            let bytes = match schemas::decode::<Cursor>(&bytes) {
                Ok(mut cursor) => {
                    match bug {
                        Planted::CursorReadAsZero => cursor.sequence = 0,
                        _ => cursor.outbox_generation.clone_from(&state.generation),
                    }
                    schemas::encode(&cursor)
                }
                Err(_) => bytes,
            };
            Input::Done(Done::Found { lane, round, outcome: Ok((Some((revision, bytes)), state)) })
        }
        (_, input) => input,
    }
}

/// A report numbered by its node's clock.
pub fn numbered_by_clock(payload: &[u8], now: Timestamp) -> Option<Vec<u8>> {
    let mut report = schemas::decode::<PodReport>(payload).ok()?;
    report.sequence = u64::try_from(now.0).unwrap_or(0);
    Some(schemas::encode(&report))
}

/// A tombstone as one of the pod that has the name now.
fn of_the_name(w: &World, edge: usize, entry: Entry) -> Entry {
    let Some(mut key) = DesiredKey::parse_local(&entry.key) else { return entry };
    let EntryValue::Put(bytes) = &entry.value else { return entry };
    let tombstone =
        schemas::decode::<Local>(bytes).is_ok_and(|local| local.desired.content == Content::Tombstone);
    let same = |other: &&DesiredKey| {
        (&other.plural, &other.name) == (&key.plural, &key.name) && other.uid != key.uid
    };
    let local = local_of(w, edge);
    let alive =
        local.iter().filter(|(_, local)| local.desired.content != Content::Tombstone).map(|(key, _)| key);
    match alive.filter(|_| tombstone).find(same).cloned() {
        Some(other) => {
            key = other;
            Entry { key: key.local_key(), ..entry }
        }
        None => entry,
    }
}

fn answer(w: &mut World, edge: usize, bytes: Vec<u8>) -> Vec<u8> {
    if let Ok(Ok(mut page)) = schemas::decode::<Reply<ListPage>>(&bytes) {
        w.edges[edge].notes.lineage = Some(page.lineage.clone());
        if w.planted == Some(Planted::MissedGeneration) {
            let notes = &mut w.edges[edge].notes;
            for epoch in &page.lineage.epochs {
                if !notes.epochs.contains(&epoch.id) {
                    notes.epochs.push(epoch.id.clone());
                }
            }
            let epochs = notes.epochs.iter().map(|id| Epoch { id: id.clone(), start: u64::MAX });
            page.lineage = Lineage { generation: "any".to_owned(), epochs: epochs.collect() };
        }
        return schemas::encode(&Reply::<ListPage>::Ok(page));
    }
    if let Ok(Ok(mut page)) = schemas::decode::<Reply<GetPage>>(&bytes) {
        for (key, revision, desired) in &mut page.entries {
            if let Some(desired) = desired {
                entry(w, edge, key, revision, desired);
            }
        }
        return schemas::encode(&Reply::<GetPage>::Ok(page));
    }
    bytes
}

fn entry(w: &World, edge: usize, key: &DesiredKey, revision: &mut u64, desired: &mut Desired) {
    if w.planted == Some(Planted::MissedGeneration) {
        "any".clone_into(&mut desired.generation);
        return;
    }
    if let Some(lineage) = &w.edges[edge].notes.lineage {
        desired.generation.clone_from(&lineage.generation);
        desired.epoch = lineage.current().map(|epoch| epoch.id.clone()).unwrap_or_default();
    }
    let local = w.servers[edge + 1].server.stream(&subject::bucket_stream(BUCKET_LOCAL));
    let held = local.and_then(|stream| stream.get(&subject::kv(BUCKET_LOCAL, &key.local_key())));
    if let Some(held) = held.and_then(|held| schemas::decode::<Local>(&held.payload).ok()) {
        *revision = (*revision).max(held.revision + 1);
        desired.resource_version = desired.resource_version.max(held.desired.resource_version);
    }
}

/// What a node's containers is told instead.
pub fn of_containers(w: &mut World, edge: usize, input: Input<ContainersDone>) -> Vec<Input<ContainersDone>> {
    let input = match (w.planted, input) {
        (Some(Planted::TombstoneWithoutUid), Input::Entry(entry)) => {
            Input::Entry(of_the_name(w, edge, entry))
        }
        (_, input) => input,
    };
    if w.planted != Some(Planted::AbsenceAsDeletion) {
        return vec![input];
    }
    let incarnation = <containers::Containers as super::runner::Hosted>::runner(w, edge).incarnation;
    let notes = &mut w.edges[edge].notes;
    if notes.now.0 != incarnation {
        notes.now = (incarnation, BTreeSet::new());
    }
    match &input {
        Input::Entry(Entry { key, value: EntryValue::Put(bytes), .. }) => {
            if let Ok(local) = schemas::decode::<Local>(bytes) {
                notes.seen.insert(key.clone(), local);
                notes.now.1.insert(key.clone());
            }
            vec![input]
        }
        Input::Current { .. } => {
            let mut inputs = Vec::new();
            for (key, local) in notes.seen.iter().filter(|(key, _)| !notes.now.1.contains(*key)) {
                let mut gone = local.clone();
                gone.desired.content = Content::Tombstone;
                inputs.push(Input::Entry(Entry {
                    bucket: BUCKET_LOCAL.to_owned(),
                    key: key.clone(),
                    revision: 1,
                    value: EntryValue::Put(schemas::encode(&gone)),
                }));
            }
            inputs.push(input);
            inputs
        }
        _ => vec![input],
    }
}

/// The entries of a node in `desired`, as the hub's store has them.
pub fn desired_of(w: &World, edge: usize) -> BTreeMap<DesiredKey, (u64, Desired)> {
    let filter = subject::kv(BUCKET_DESIRED, &subject::desired_filter(&w.edges[edge].name));
    let Some(stream) = w.servers[0].server.stream(&subject::bucket_stream(BUCKET_DESIRED)) else {
        return BTreeMap::new();
    };
    let prefix = format!("$KV.{BUCKET_DESIRED}.");
    stream
        .read(&filter, 0)
        .filter_map(|stored| {
            let (_, key) = DesiredKey::parse_desired(stored.subject.strip_prefix(&prefix)?)?;
            Some((key, (stored.sequence, schemas::decode(&stored.payload).ok()?)))
        })
        .collect()
}

/// The entries of a node's bucket `local`.
pub fn local_of(w: &World, edge: usize) -> BTreeMap<DesiredKey, Local> {
    let Some(stream) = w.servers[edge + 1].server.stream(&subject::bucket_stream(BUCKET_LOCAL)) else {
        return BTreeMap::new();
    };
    let prefix = format!("$KV.{BUCKET_LOCAL}.");
    stream
        .read(&subject::kv(BUCKET_LOCAL, ">"), 0)
        .filter(|stored| !stored.is_tombstone())
        .filter_map(|stored| {
            let key = DesiredKey::parse_local(stored.subject.strip_prefix(&prefix)?)?;
            Some((key, schemas::decode(&stored.payload).ok()?))
        })
        .collect()
}
