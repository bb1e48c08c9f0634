//! The buckets: get, list, watch from a revision, compare-and-set, tombstones that keep the last value.
//!
//! [`Store`] works on raw entries, for the runner and for what is not an object; [`ObjectStore`] is the API's view:
//! Kubernetes objects by key, where the revision is `resourceVersion`. The stream's last sequence is the revision of a
//! list. Nothing here decides anything.

mod objects;

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::consumer::{Consumer, DeliverPolicy, pull};
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::DirectGetErrorKind;
use bytes::Bytes;
use futures::StreamExt;
use schemas::subject;
use tokio::time::Instant;

use crate::connection::{Bus, REQUEST_TIMEOUT};
use crate::module::{Entry, EntryValue, Expect, WriteError};

pub use objects::{ObjectEvent, ObjectStore};

/// Tombstones of objects go after so long: a watcher that was away for longer starts over.
pub const TOMBSTONE_TTL: Duration = Duration::from_secs(24 * 3600);

/// A watch whose server was away is taken up again within this, or its caller starts over.
const TAKE_UP_TIMEOUT: Duration = Duration::from_secs(10);
const TAKE_UP_PAUSE: Duration = Duration::from_millis(100);
/// The header by which a write is known again.
const WRITE_ID: &str = "Nats-Msg-Id";
/// So long after the server is back a write from before may still be answered.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(300);

/// Why a read or write failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// It is there already.
    #[error("{0} exists already")]
    Exists(String),
    /// Somebody else wrote first.
    #[error("{0} was changed by another writer")]
    Conflict(String),
    /// The revision to watch from is gone (compacted, or the bucket is another one).
    #[error("bucket {bucket} has no history from revision {from}")]
    Compacted {
        /// The bucket.
        bucket: String,
        /// The revision asked for.
        from: u64,
    },
    /// The server did not do it.
    #[error("bucket {bucket}: {cause}")]
    Server {
        /// The bucket.
        bucket: String,
        /// The server's or client's words.
        cause: String,
    },
}

/// Nobody said whether a write was carried out.
struct Lost;

/// One bucket.
#[derive(Clone)]
pub struct Store {
    bus: Bus,
    bucket: String,
}

/// Where a watch begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// With all that is there, then what comes.
    All,
    /// With what was written after this revision.
    After(u64),
}

/// What a watch tells.
#[derive(Debug, Clone, PartialEq)]
pub enum Seen {
    /// An entry.
    Entry(Entry),
    /// All that was there at the start has been told.
    Current,
}

impl Store {
    /// The bucket of that name on the server of `bus`.
    pub fn new(bus: &Bus, bucket: &str) -> Self {
        Self { bus: bus.clone(), bucket: bucket.to_owned() }
    }

    fn fail(&self, cause: impl std::fmt::Display) -> StoreError {
        StoreError::Server { bucket: self.bucket.clone(), cause: cause.to_string() }
    }

    /// Sends a write; the second await is its outcome. Sending in order keeps the order of writes, so one whose answer was
    /// lost is not sent again: what stands there tells whether it was carried out.
    pub(crate) async fn send(
        &self,
        key: &str,
        value: Bytes,
        expect: Expect,
        removed: bool,
    ) -> Result<impl Future<Output = Result<u64, WriteError>> + Send + use<>, WriteError> {
        let (store, id, key) = (self.clone(), schemas::object::new_uid(), key.to_owned());
        let outcome = self.send_as(&id, &key, value, expect, removed).await?;
        Ok(async move {
            match outcome.await {
                Ok(outcome) => outcome,
                Err(Lost) => store.written_as(&id, &key).await,
            }
        })
    }

    /// The same under an ID, by which it is known again.
    async fn send_as(
        &self,
        id: &str,
        key: &str,
        value: Bytes,
        expect: Expect,
        removed: bool,
    ) -> Result<impl Future<Output = Result<Result<u64, WriteError>, Lost>> + Send + use<>, WriteError> {
        let mut headers = HeaderMap::new();
        headers.insert(WRITE_ID, id);
        match expect {
            Expect::Any => {}
            Expect::Absent => headers.insert("Nats-Expected-Last-Subject-Sequence", "0"),
            Expect::Revision(revision) => {
                headers.insert("Nats-Expected-Last-Subject-Sequence", revision.to_string().as_str());
            }
        }
        if removed {
            headers.insert("KV-Operation", "DEL");
            headers.insert("Nats-TTL", format!("{}s", TOMBSTONE_TTL.as_secs()).as_str());
        }
        let renewed = self.bus.renewed();
        let ack = self
            .bus
            .jetstream
            .publish_with_headers(subject::kv(&self.bucket, key), headers, value)
            .await
            .map_err(|error| WriteError::Failed(error.to_string()))?;
        Ok(async move {
            let away = async {
                renewed.await;
                // What was sent while the server was away is sent now, and still answered.
                tokio::time::sleep(ANSWER_TIMEOUT).await;
            };
            let ack = tokio::select! {
                ack = ack.into_future() => ack,
                () = away => return Err(Lost),
            };
            match ack {
                Ok(ack) => Ok(Ok(ack.sequence)),
                Err(error) => match error.kind() {
                    PublishErrorKind::WrongLastSequence => Ok(Err(WriteError::Conflict)),
                    // A server that was just started again may not have its streams yet.
                    PublishErrorKind::StreamNotFound | PublishErrorKind::TimedOut => Err(Lost),
                    _ => Ok(Err(WriteError::Failed(error.to_string()))),
                },
            }
        })
    }

    /// Writes an entry.
    pub async fn put(&self, key: &str, value: Vec<u8>, expect: Expect) -> Result<u64, WriteError> {
        self.write(key, Bytes::from(value), expect, false).await
    }

    /// Removes an entry, leaving a tombstone with `last`.
    pub async fn remove(&self, key: &str, last: Vec<u8>, expect: Expect) -> Result<u64, WriteError> {
        self.write(key, Bytes::from(last), expect, true).await
    }

    async fn write(&self, key: &str, value: Bytes, expect: Expect, removed: bool) -> Result<u64, WriteError> {
        let outcome = self.write_once(key, value.clone(), expect, removed).await;
        if expect != Expect::Absent || outcome != Err(WriteError::Conflict) {
            return outcome;
        }
        // Absent means no entry or a tombstone; the server only knows the first: name the tombstone's revision.
        match self.get(key).await {
            Ok(Some(Entry { revision, value: EntryValue::Removed(_), .. })) => {
                self.write_once(key, value, Expect::Revision(revision), removed).await
            }
            Ok(_) => Err(WriteError::Conflict),
            Err(error) => Err(WriteError::Failed(error.to_string())),
        }
    }

    /// Asks again for a write whose answer was lost with its server, for as long as any answer is waited for: it is carried
    /// out once.
    async fn write_once(
        &self,
        key: &str,
        value: Bytes,
        expect: Expect,
        removed: bool,
    ) -> Result<u64, WriteError> {
        let (id, until) = (schemas::object::new_uid(), Instant::now() + REQUEST_TIMEOUT);
        let mut lost = false;
        loop {
            match self.send_as(&id, key, value.clone(), expect, removed).await?.await {
                // The server looks at the revision before the ID (measured): it may be our own write that it names.
                Ok(Err(WriteError::Conflict)) if lost => return self.written_as(&id, key).await,
                Ok(outcome) => return outcome,
                Err(Lost) if Instant::now() >= until => return self.written_as(&id, key).await,
                Err(Lost) => tokio::time::sleep(TAKE_UP_PAUSE).await,
            }
            lost = true;
        }
    }

    /// The revision of the entry if that write made it. If another one did, ours may have been there before: a bucket keeps
    /// one entry of a key.
    async fn written_as(&self, id: &str, key: &str) -> Result<u64, WriteError> {
        let last = self.last(key).await.map_err(|error| WriteError::Failed(error.to_string()))?;
        let ours = last.filter(|last| last.headers.get(WRITE_ID).is_some_and(|of| of.as_str() == id));
        ours.map(|last| last.sequence).ok_or_else(|| {
            WriteError::Failed("the server was away, and may have written it or not; look".to_owned())
        })
    }

    /// One entry, tombstones too.
    pub async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let last = self.last(key).await?;
        Ok(last.map(|last| self.entry(key.to_owned(), last.sequence, &last.headers, &last.payload)))
    }

    /// Asks once more when the answer was lost with the server, for as long as any answer is waited for.
    async fn last(&self, key: &str) -> Result<Option<StreamMessage>, StoreError> {
        let (subject, until) = (subject::kv(&self.bucket, key), Instant::now() + REQUEST_TIMEOUT);
        let mut lost = false;
        loop {
            let renewed = self.bus.renewed();
            let away = async {
                renewed.await;
                tokio::time::sleep(ANSWER_TIMEOUT).await;
            };
            let stream = self.stream().await?;
            tokio::select! {
                answer = stream.direct_get_last_for_subject(subject.as_str()) => match answer {
                    Ok(message) => return Ok(Some(message)),
                    Err(error) if error.kind() == DirectGetErrorKind::NotFound => return Ok(None),
                    // A server that was just started again may not have its streams yet.
                    Err(_) if lost && Instant::now() < until => tokio::time::sleep(TAKE_UP_PAUSE).await,
                    Err(error) => return Err(self.fail(error)),
                },
                () = away => lost = true,
            }
        }
    }

    async fn stream(&self) -> Result<async_nats::jetstream::stream::Stream<()>, StoreError> {
        self.bus
            .jetstream
            .get_stream_no_info(subject::bucket_stream(&self.bucket))
            .await
            .map_err(|error| self.fail(error))
    }

    fn entry(&self, key: String, revision: u64, headers: &HeaderMap, payload: &Bytes) -> Entry {
        let operation = headers.get("KV-Operation").map(|value| value.as_str());
        let marker = headers.get("Nats-Marker-Reason").is_some();
        let value = match operation {
            Some("DEL" | "PURGE") => EntryValue::Removed(payload.to_vec()),
            _ if marker => EntryValue::Removed(Vec::new()),
            _ => EntryValue::Put(payload.to_vec()),
        };
        Entry { bucket: self.bucket.clone(), key, revision, value }
    }

    /// The last revision of the bucket, whatever its key.
    pub async fn last_revision(&self) -> Result<u64, StoreError> {
        let mut stream = self
            .bus
            .jetstream
            .get_stream(subject::bucket_stream(&self.bucket))
            .await
            .map_err(|error| self.fail(error))?;
        Ok(stream.info().await.map_err(|error| self.fail(error))?.state.last_sequence)
    }

    /// All entries (no tombstones) whose keys match, and the revision as of which that is so.
    pub async fn list(&self, filter: &str) -> Result<(Vec<Entry>, u64), StoreError> {
        let revision = self.last_revision().await?;
        let (tell, mut seen) = tokio::sync::mpsc::channel(256);
        let mut all = Vec::new();
        let watching = self.watch(filter, From::All, tell);
        tokio::pin!(watching);
        let mut highest = revision;
        loop {
            tokio::select! {
                ended = &mut watching => return Err(ended.err().unwrap_or_else(|| self.fail("watch ended"))),
                next = seen.recv() => match next {
                    Some(Seen::Entry(entry)) => {
                        highest = highest.max(entry.revision);
                        if matches!(entry.value, EntryValue::Put(_)) {
                            all.push(entry);
                        }
                    }
                    Some(Seen::Current) | None => return Ok((all, highest)),
                },
            }
        }
    }

    /// Tells the entries whose keys match, from `from` on, in revision order, and goes on for ever: a lost connection is
    /// taken up where it ended. Returns an error when that is not possible; the caller starts over.
    pub async fn watch(
        &self,
        filter: &str,
        from: From,
        tell: tokio::sync::mpsc::Sender<Seen>,
    ) -> Result<(), StoreError> {
        let mut after = match from {
            From::All => None,
            From::After(revision) => Some(revision),
        };
        let mut current = false;
        let mut connections = self.bus.connections.clone();
        let mut lost_at: Option<Instant> = None;
        loop {
            connections.borrow_and_update();
            let consumer = match self.read_after(filter, after).await {
                Ok(consumer) => consumer,
                // A server that was just started again may not have its streams yet.
                Err(StoreError::Server { cause, .. })
                    if lost_at.is_some_and(|at| at.elapsed() < TAKE_UP_TIMEOUT) =>
                {
                    tracing::debug!(bucket = self.bucket, %cause, "watch is not taken up yet");
                    tokio::time::sleep(TAKE_UP_PAUSE).await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            if !current && consumer.cached_info().num_pending == 0 {
                current = true;
                if tell.send(Seen::Current).await.is_err() {
                    return Ok(());
                }
            }
            let mut messages = consumer.messages().await.map_err(|error| self.fail(error))?;
            loop {
                let next = tokio::select! {
                    next = messages.next() => next,
                    // The consumer was the server's own and went with it; the client would only learn of that when it
                    // misses heartbeats, 15 s later (measured).
                    Ok(()) = connections.changed() => break,
                    () = tell.closed() => return Ok(()),
                };
                let message = match next {
                    Some(Ok(message)) => message,
                    Some(Err(error)) => {
                        tracing::debug!(bucket = self.bucket, %error, "watch is taken up again");
                        break;
                    }
                    None => break,
                };
                let Ok(info) = message.info() else { continue };
                let (revision, pending) = (info.stream_sequence, info.pending);
                let prefix = format!("$KV.{}.", self.bucket);
                let Some(key) = message.subject.strip_prefix(&prefix) else { continue };
                let headers = message.headers.clone().unwrap_or_default();
                let entry = self.entry(key.to_owned(), revision, &headers, &message.payload);
                after = Some(revision);
                if tell.send(Seen::Entry(entry)).await.is_err() {
                    return Ok(());
                }
                if !current && pending == 0 {
                    current = true;
                    if tell.send(Seen::Current).await.is_err() {
                        return Ok(());
                    }
                }
            }
            // The consumer ended (server restart, lost heartbeats). A pause keeps a failing server from being hammered.
            lost_at = Some(Instant::now());
            tokio::time::sleep(TAKE_UP_PAUSE).await;
        }
    }

    /// Opens a reader of the entries whose keys match, written after that revision; of all when there is none.
    async fn read_after(
        &self,
        filter: &str,
        after: Option<u64>,
    ) -> Result<Consumer<pull::OrderedConfig>, StoreError> {
        let stream = self
            .bus
            .jetstream
            .get_stream(subject::bucket_stream(&self.bucket))
            .await
            .map_err(|error| self.fail(error))?;
        let state = &stream.cached_info().state;
        if let Some(revision) = after.filter(|revision| *revision > state.last_sequence) {
            return Err(StoreError::Compacted { bucket: self.bucket.clone(), from: revision });
        }
        let config = pull::OrderedConfig {
            filter_subject: subject::kv(&self.bucket, filter),
            deliver_policy: match after {
                None => DeliverPolicy::LastPerSubject,
                Some(revision) => DeliverPolicy::ByStartSequence { start_sequence: revision + 1 },
            },
            ..pull::OrderedConfig::default()
        };
        stream.create_consumer(config).await.map_err(|error| self.fail(error))
    }
}
