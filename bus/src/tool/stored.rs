//! What is stored, for a tool: which streams there are, and one of them followed from a sequence or a time on.
//!
//! A stream is followed by a consumer without acknowledgements that lives in the server's memory. What is lost on the way
//! (a connection that broke, a server that fell) shows as a step in the consumer's own count, or as a new connection; then
//! another consumer goes on after the last message that was told. So each message is told once and in order, whatever
//! dies. A message that the server acknowledged and lost again (telemetry, see [`Class`](crate::provision::Class)) gives
//! its sequence to another one: so the last message told is looked at again, and if it is another one now, reading goes
//! on by its time.

use std::time::Duration;

use async_nats::datetime::DateTime;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::jetstream::stream;
use futures::{StreamExt, TryStreamExt};
use schemas::Timestamp;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::{Message, ToolError, failed};
use crate::connection::{Bus, from_nats};
use crate::module::Account;

/// Messages told and not taken yet, of one stream.
const TOLD_MAX: usize = 32;
/// Messages of one pull.
const PULL_MESSAGES_MAX: usize = 256;
/// Bytes of one pull; more than one message may have.
const PULL_MAX_BYTES: usize = 2 * schemas::MESSAGE_MAX_BYTES;
/// A pull is made anew so often.
const PULL_EXPIRES: Duration = Duration::from_secs(30);
/// The server says so often that nothing came.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// The server forgets a consumer that nobody asks so soon.
const INACTIVE: Duration = Duration::from_secs(30);
/// Pause before a stream is asked again.
const AGAIN_PAUSE: Duration = Duration::from_millis(250);
/// Tries to begin, before it is told as a failure; later ones never end but for a stream that is gone.
const BEGIN_ATTEMPTS_MAX: u32 = 8;
/// A stream that is not there so often in a row was removed: a server that starts may not know it yet.
const GONE_ATTEMPTS_MAX: u32 = 40;
/// Looked so often whether what was still to come was removed meanwhile.
const REMOVED_LOOK: Duration = Duration::from_millis(500);

/// A stream, as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capture {
    /// Its account.
    pub account: Account,
    /// Its name.
    pub stream: String,
    /// The subjects of what it holds: those that it captures, or what it calls them then.
    pub subjects: Vec<String>,
    /// Sequence of the oldest message that is still there.
    pub first_sequence: u64,
    /// Sequence of the newest that ever was.
    pub last_sequence: u64,
    /// How many are there.
    pub messages: u64,
    /// How many bytes.
    pub size_bytes: u64,
    /// Its bound in bytes; negative for none.
    pub size_bytes_max: i64,
    /// Only the last message of each subject is kept: a bucket.
    pub last_only: bool,
    /// Each message is for one taker, and gone when it was taken: nobody else may follow it.
    pub queue: bool,
    /// Consumers that read it.
    pub consumers: u64,
}

/// A stored message.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// Its stream.
    pub stream: String,
    /// Its sequence there.
    pub sequence: u64,
    /// When it was stored, by the server's clock.
    pub at: Timestamp,
    /// What it says.
    pub message: Message,
}

/// Where to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// With this sequence, or the first one after it that is there.
    Sequence(u64),
    /// With what was stored then or later.
    Time(Timestamp),
}

/// What following a stream tells.
#[derive(Debug, Clone, PartialEq)]
pub enum Told {
    /// The next message.
    Message(Box<Stored>),
    /// All that the stream held when it was first asked has been told (or removed meanwhile).
    Reached,
    /// So many sequences from where reading should have begun, or gone on, are not there any more.
    Gone(u64),
    /// The stream's oldest message is of this time, which is later than asked for; it had so many before it.
    GoneBefore(Timestamp, u64),
    /// The server lost messages that were told already and gave their sequences to others: reading goes on by time.
    Replaced,
    /// It cannot be followed: nothing more is told.
    Failed(String),
}

/// A stream that is being followed. Ends with its owner.
pub struct Following {
    told: mpsc::Receiver<Told>,
    task: JoinHandle<()>,
}

impl Following {
    /// The next that is told; `None` after [`Told::Failed`]. May be dropped and called again.
    pub async fn next(&mut self) -> Option<Told> {
        self.told.recv().await
    }

    /// As [`next`](Self::next), for who waits for several.
    pub fn poll_next(&mut self, context: &mut std::task::Context<'_>) -> std::task::Poll<Option<Told>> {
        self.told.poll_recv(context)
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Bus {
    /// All streams in this account, by name.
    pub async fn captures(&self) -> Result<Vec<Capture>, ToolError> {
        let mut captures = Vec::new();
        if !self.has_streams() {
            return Ok(captures);
        }
        let mut streams = self.jetstream.streams();
        let list = |error| failed("the list of streams", error);
        while let Some(info) = streams.try_next().await.map_err(list)? {
            captures.push(capture(self.account, info));
        }
        captures.sort_by(|a, b| a.stream.cmp(&b.stream));
        Ok(captures)
    }

    /// Follows a stream: what matches `filters` (which must not overlap each other), from `start` on, without end.
    pub fn follow(&self, stream: &str, filters: Vec<String>, start: Start) -> Following {
        let (tell, told) = mpsc::channel(TOLD_MAX);
        let follower = Follower {
            bus: self.clone(),
            stream: stream.to_owned(),
            filters,
            begin: match start {
                Start::Sequence(sequence) => Begin::Sequence(sequence.max(1)),
                Start::Time(at) => Begin::Nanos(i128::from(at.0) * 1_000_000),
            },
            last: None,
            mark: None,
            reached: false,
            tell,
        };
        Following { told, task: tokio::spawn(follower.run()) }
    }

    /// One stored message; `None` when the stream has none of that sequence.
    pub async fn stored(&self, stream: &str, sequence: u64) -> Result<Option<Stored>, ToolError> {
        let found = self.stream(stream).await?.get_raw_message(sequence).await;
        let raw = match found {
            Ok(raw) => raw,
            Err(error) if error.to_string().contains("no message found") => return Ok(None),
            Err(error) => return Err(failed(stream, error)),
        };
        Ok(Some(Stored {
            stream: stream.to_owned(),
            sequence,
            at: timestamp(raw.time),
            message: Message {
                subject: raw.subject.to_string(),
                headers: from_nats(Some(&raw.headers)),
                payload: raw.payload,
                reply: None,
                no_responders: false,
            },
        }))
    }

    /// Removes one stored message. False when it was not there.
    pub async fn remove_stored(&self, stream: &str, sequence: u64) -> Result<bool, ToolError> {
        match self.stream(stream).await?.delete_message(sequence).await {
            Ok(removed) => Ok(removed),
            Err(error) if error.to_string().contains("no message found") => Ok(false),
            Err(error) => Err(failed(stream, error)),
        }
    }

    /// How far the slowest consumer of a stream is behind; `None` when nobody consumes it.
    pub async fn lag(&self, stream: &str) -> Result<Option<u64>, ToolError> {
        let stream = self.stream(stream).await?;
        let mut consumers = stream.consumers();
        let mut lag = None;
        while let Some(info) = consumers.try_next().await.map_err(|error| failed("the consumers", error))? {
            lag = lag.max(Some(info.num_pending));
        }
        Ok(lag)
    }

    async fn stream(&self, name: &str) -> Result<stream::Stream, ToolError> {
        self.jetstream.get_stream(name).await.map_err(|error| failed(name, error))
    }
}

/// What a transform calls a subject, as a filter: a place that takes over a word is any word.
fn renamed(destination: &str) -> String {
    let token = |token: &str| if token.starts_with(['{', '$']) { "*".to_owned() } else { token.to_owned() };
    destination.split('.').map(token).collect::<Vec<_>>().join(".")
}

fn capture(account: Account, info: stream::Info) -> Capture {
    let subjects = match info.config.subject_transform {
        Some(transform) => vec![renamed(&transform.destination)],
        None => info.config.subjects,
    };
    Capture {
        account,
        stream: info.config.name,
        subjects,
        queue: info.config.retention == stream::RetentionPolicy::WorkQueue,
        first_sequence: info.state.first_sequence,
        last_sequence: info.state.last_sequence,
        messages: info.state.messages,
        size_bytes: info.state.bytes,
        size_bytes_max: info.config.max_bytes,
        last_only: info.config.max_messages_per_subject == 1,
        consumers: u64::try_from(info.state.consumer_count).unwrap_or(u64::MAX),
    }
}

fn nanos(at: DateTime) -> i128 {
    at.unix_timestamp_nanos()
}

fn timestamp(at: DateTime) -> Timestamp {
    Timestamp(i64::try_from(nanos(at) / 1_000_000).unwrap_or(i64::MAX))
}

/// As a date that the client can send; what is out of its bounds becomes the epoch.
fn date(nanos: i128) -> DateTime {
    DateTime::from_unix_timestamp_nanos(nanos).unwrap_or(DateTime::UNIX_EPOCH)
}

/// Why a consumer ended.
enum Ended {
    /// Nobody listens any more.
    Unheard,
    /// Another one is needed.
    Lost,
}

/// Why there is no consumer.
enum Refused {
    /// There is no such stream.
    NoStream,
    /// Anything else.
    Failed(String),
    /// Nobody listens any more.
    Unheard,
}

/// Where to begin while nothing has been told.
#[derive(Clone, Copy)]
enum Begin {
    Sequence(u64),
    /// Since the epoch: the server's times are that fine.
    Nanos(i128),
}

struct Follower {
    bus: Bus,
    stream: String,
    filters: Vec<String>,
    begin: Begin,
    /// The last message that was told: its sequence and its time.
    last: Option<(u64, i128)>,
    /// The stream's last sequence when it was first asked.
    mark: Option<u64>,
    reached: bool,
    tell: mpsc::Sender<Told>,
}

impl Follower {
    async fn run(mut self) {
        let (mut attempts, mut missing) = (0, 0);
        loop {
            // Before anything is asked: a connection made anew meanwhile is seen below.
            let renewed = self.bus.renewed();
            match self.open().await {
                Ok(consumer) => {
                    (attempts, missing) = (0, 0);
                    if matches!(self.read(consumer, renewed).await, Ended::Unheard) {
                        return;
                    }
                }
                Err(Refused::Unheard) => return,
                Err(Refused::NoStream) => {
                    missing += 1;
                    if missing >= GONE_ATTEMPTS_MAX || self.mark.is_none() {
                        let _ = self.tell.send(Told::Failed("there is no such stream".to_owned())).await;
                        return;
                    }
                }
                Err(Refused::Failed(cause)) => {
                    attempts += 1;
                    if self.mark.is_none() && attempts >= BEGIN_ATTEMPTS_MAX {
                        let _ = self.tell.send(Told::Failed(cause)).await;
                        return;
                    }
                    tracing::debug!(stream = self.stream, cause, "a stream is asked again");
                }
            }
            tokio::time::sleep(AGAIN_PAUSE).await;
        }
    }

    async fn say(&self, told: Told) -> Result<(), Refused> {
        self.tell.send(told).await.map_err(|_| Refused::Unheard)
    }

    /// Makes the consumer that goes on where we are.
    async fn open(&mut self) -> Result<PullConsumer, Refused> {
        let fail = |error: &dyn std::fmt::Display| Refused::Failed(error.to_string());
        let stream =
            self.bus.jetstream.get_stream(&self.stream).await.map_err(|error| match error.kind() {
                GetStreamErrorKind::JetStream(cause) if cause.code() == 404 => Refused::NoStream,
                _ => fail(&error),
            })?;
        let state = stream.cached_info().state.clone();
        let deliver_policy = match (self.last, self.begin) {
            (Some((sequence, at)), _) => {
                let same = match stream.get_raw_message(sequence).await {
                    Ok(message) => nanos(message.time) == at,
                    // Gone by its age or for room, or its sequence was never given by this history of the stream.
                    Err(_) => sequence <= state.last_sequence,
                };
                if same {
                    if state.first_sequence > sequence + 1 {
                        self.say(Told::Gone(state.first_sequence - sequence - 1)).await?;
                    }
                    DeliverPolicy::ByStartSequence { start_sequence: sequence + 1 }
                } else {
                    self.say(Told::Replaced).await?;
                    self.last = None;
                    self.begin = Begin::Nanos(at + 1);
                    DeliverPolicy::ByStartTime { start_time: date(at + 1) }
                }
            }
            (None, Begin::Sequence(sequence)) => {
                if self.mark.is_none() && state.first_sequence > sequence {
                    self.say(Told::Gone(state.first_sequence - sequence)).await?;
                }
                DeliverPolicy::ByStartSequence { start_sequence: sequence }
            }
            (None, Begin::Nanos(at)) => {
                let missing = state.first_sequence.saturating_sub(1);
                if self.mark.is_none() && missing > 0 && nanos(state.first_timestamp) > at {
                    self.say(Told::GoneBefore(timestamp(state.first_timestamp), missing)).await?;
                }
                DeliverPolicy::ByStartTime { start_time: date(at) }
            }
        };
        let config = pull::Config {
            deliver_policy,
            ack_policy: AckPolicy::None,
            filter_subjects: self.filters.clone(),
            inactive_threshold: INACTIVE,
            memory_storage: true,
            num_replicas: 1,
            ..pull::Config::default()
        };
        let consumer = stream.create_consumer(config).await.map_err(|error| fail(&error))?;
        self.mark.get_or_insert(state.last_sequence);
        Ok(consumer)
    }

    /// Tells what comes, until the consumer is lost.
    async fn read(&mut self, mut consumer: PullConsumer, renewed: impl Future<Output = ()>) -> Ended {
        let begun = consumer
            .stream()
            .max_messages_per_batch(PULL_MESSAGES_MAX)
            .max_bytes_per_batch(PULL_MAX_BYTES)
            .expires(PULL_EXPIRES)
            .heartbeat(HEARTBEAT)
            .messages()
            .await;
        let Ok(mut messages) = begun else { return Ended::Lost };
        let mut renewed = std::pin::pin!(renewed);
        let mut look = tokio::time::interval(REMOVED_LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut expected = 1;
        if !self.reached && consumer.cached_info().num_pending == 0 && self.reach().await.is_err() {
            return Ended::Unheard;
        }
        loop {
            let message = tokio::select! {
                message = messages.next() => message,
                () = &mut renewed => return Ended::Lost,
                () = self.tell.closed() => return Ended::Unheard,
                _ = look.tick(), if !self.reached => {
                    // Messages that were still to come may have been removed: then nothing comes for them.
                    if let Ok(info) = consumer.info().await
                        && info.num_pending == 0
                        && info.delivered.consumer_sequence < expected
                        && self.reach().await.is_err()
                    {
                        return Ended::Unheard;
                    }
                    continue;
                }
            };
            let Some(Ok(message)) = message else { return Ended::Lost };
            let Ok(info) = message.info() else { return Ended::Lost };
            if info.consumer_sequence != expected {
                return Ended::Lost;
            }
            expected += 1;
            let (sequence, published, pending) = (info.stream_sequence, info.published, info.pending);
            let (inner, _) = message.split();
            let stored = Stored {
                stream: self.stream.clone(),
                sequence,
                at: timestamp(published),
                // Its reply subject is the consumer's, and nobody's to answer.
                message: Message { reply: None, ..Message::from(inner) },
            };
            if self.tell.send(Told::Message(Box::new(stored))).await.is_err() {
                return Ended::Unheard;
            }
            self.last = Some((sequence, nanos(published)));
            let there = pending == 0 || self.mark.is_some_and(|mark| sequence >= mark);
            if !self.reached && there && self.reach().await.is_err() {
                return Ended::Unheard;
            }
        }
    }

    async fn reach(&mut self) -> Result<(), Refused> {
        self.reached = true;
        self.say(Told::Reached).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_stream_calls_its_messages_is_a_filter() {
        for (destination, want) in [
            ("down.>", "down.>"),
            ("down.{{wildcard(1)}}.>", "down.*.>"),
            ("a.$1.b.{{partition(3,1)}}", "a.*.b.*"),
        ] {
            assert_eq!(renamed(destination), want);
        }
    }
}
