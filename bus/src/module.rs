//! What a module is: a state, and one pure function from what happened to what shall be done.
//!
//! `apply` has no clock, no await and no I/O, so the same code runs on the real bus (see [`crate::runner`]) and in the
//! seeded simulator. The runner carries out the effects of one input in this order, whatever their order in the list:
//! 1. every [`Effect::Save`], [`Effect::Forget`] and [`Effect::Report`] together in one flushed transaction;
//! 2. everything else, in order;
//! 3. only then a [`Input::Delivery`] is acknowledged. If an effect failed it is not, and comes again.

use schemas::Timestamp;
use schemas::envelope::{self, Headers};
use schemas::report::EventReport;
use schemas::subject;

use crate::connection::Handles;

/// A component of Edgewire.
pub trait Module: Send + 'static {
    /// What only this module can do to the world, carried out by its [`Rim`].
    type Act: Send + 'static;
    /// What its rim tells it: results of acts, and what the world did by itself.
    type Done: Send + 'static;

    /// Called once before any input, with everything that was [saved](Effect::Save), in key order.
    fn restore(&mut self, saved: Vec<(String, Vec<u8>)>, now: Timestamp) -> Vec<Effect<Self::Act>> {
        let _ = (saved, now);
        Vec::new()
    }

    /// Decides. Pure: the same state, input and time give the same effects.
    fn apply(&mut self, input: Input<Self::Done>, now: Timestamp) -> Vec<Effect<Self::Act>>;
}

/// Where a module touches the world. Modules that only know the bus use [`NoRim`].
pub trait Rim<M: Module>: Send + Sync + 'static {
    /// Carries out one act, as an owned task of its own: acts run beside each other. A module that needs an order
    /// among acts waits for the first one's `Done`.
    fn act(&self, bus: &Handles, act: M::Act) -> impl Future<Output = Option<M::Done>> + Send;

    /// Runs for as long as the module does and tells what happens by itself (a container's exit). Returning an error
    /// restarts the module.
    fn watch(
        &self,
        bus: &Handles,
        tell: tokio::sync::mpsc::Sender<M::Done>,
    ) -> impl Future<Output = Result<(), String>> + Send {
        let _ = bus;
        async move {
            tell.closed().await;
            Ok(())
        }
    }
}

/// The rim of a module that only knows the bus.
pub struct NoRim;

impl<M: Module<Act = Never, Done = Never>> Rim<M> for NoRim {
    async fn act(&self, _bus: &Handles, act: Never) -> Option<Never> {
        match act {}
    }
}

/// No value: the acts of a module that has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Never {}

/// Everything that can happen to a module.
#[derive(Debug, Clone, PartialEq)]
pub enum Input<D> {
    /// A watched bucket has this entry (at the start: had it already).
    Entry(Entry),
    /// The watch of this bucket and filter has told all that was there at the start.
    Current {
        /// The bucket.
        bucket: String,
        /// The filter, as the flow declares it.
        filter: String,
    },
    /// A live message on a subscribed subject.
    Message(Message),
    /// A stored message of a consumed stream. Acknowledged when all effects are done.
    Delivery(Delivery),
    /// What became of an [`Effect::Put`] or [`Effect::Remove`].
    Wrote {
        /// The effect's own.
        token: u64,
        /// The new revision, or why not.
        outcome: Result<u64, WriteError>,
    },
    /// What became of an [`Effect::Request`].
    Answered {
        /// The effect's own.
        token: u64,
        /// The answer's payload; `Err` says why there is none.
        outcome: Result<Vec<u8>, String>,
    },
    /// Time passed (see [`crate::runner::Spec::tick`]).
    Tick,
    /// From the module's own rim.
    Done(D),
}

/// An entry of a bucket.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The bucket.
    pub bucket: String,
    /// The key.
    pub key: String,
    /// Its revision: the stream's sequence.
    pub revision: u64,
    /// What it says.
    pub value: EntryValue,
}

/// What an entry says.
#[derive(Debug, Clone, PartialEq)]
pub enum EntryValue {
    /// It exists.
    Put(Vec<u8>),
    /// It was removed; the bytes are its last value (empty when nobody gave one).
    Removed(Vec<u8>),
}

/// A live message.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// Account it came in.
    pub account: Account,
    /// Its subject.
    pub subject: String,
    /// Its headers.
    pub headers: Headers,
    /// Its body.
    pub payload: Vec<u8>,
    /// Where an answer is wanted.
    pub reply: Option<String>,
}

/// A stored message.
#[derive(Debug, Clone, PartialEq)]
pub struct Delivery {
    /// The stream.
    pub stream: String,
    /// Its sequence in the stream.
    pub sequence: u64,
    /// Its subject.
    pub subject: String,
    /// Its headers.
    pub headers: Headers,
    /// Its body.
    pub payload: Vec<u8>,
    /// The how-manyth time it comes, from 1.
    pub attempt: u64,
}

/// Everything that a module can want done.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect<A> {
    /// Keep this on disk, before any other effect of the same input.
    Save {
        /// Key among the module's own.
        key: String,
        /// Value.
        value: Vec<u8>,
    },
    /// No longer keep it.
    Forget {
        /// Key among the module's own.
        key: String,
    },
    /// Say this durably: it reaches the server's stream even if we die now. In order per module.
    Report {
        /// Subject in the OUTBOX.
        subject: String,
        /// CloudEvents headers; `ce-id` makes it unique.
        headers: Headers,
        /// Body.
        payload: Vec<u8>,
    },
    /// Write an entry; the outcome comes back as [`Input::Wrote`].
    Put {
        /// The bucket.
        bucket: String,
        /// The key.
        key: String,
        /// The value.
        value: Vec<u8>,
        /// Compare-and-set.
        expect: Expect,
        /// Comes back with the outcome.
        token: u64,
    },
    /// Remove an entry, leaving a tombstone with its last value.
    Remove {
        /// The bucket.
        bucket: String,
        /// The key.
        key: String,
        /// The last value.
        value: Vec<u8>,
        /// Compare-and-set.
        expect: Expect,
        /// Comes back with the outcome.
        token: u64,
    },
    /// Say this live: whoever listens now hears it.
    Publish {
        /// Account.
        account: Account,
        /// Subject.
        subject: String,
        /// Headers.
        headers: Headers,
        /// Body.
        payload: Vec<u8>,
    },
    /// Say this into a stream of this server: done when it is stored there. The subject has to be one that a stream captures.
    Store {
        /// Account.
        account: Account,
        /// Subject.
        subject: String,
        /// Headers.
        headers: Headers,
        /// Body.
        payload: Vec<u8>,
    },
    /// Answer a [`Message`].
    Reply {
        /// Its account.
        account: Account,
        /// Its `reply`.
        to: String,
        /// Body.
        payload: Vec<u8>,
    },
    /// Ask; the answer comes back as [`Input::Answered`].
    Request {
        /// Subject, in CONTROL.
        subject: String,
        /// Body.
        payload: Vec<u8>,
        /// How long to wait.
        timeout_ms: u64,
        /// Comes back with the answer.
        token: u64,
    },
    /// This could not be decoded or applied: keep it with its reason, for people.
    Dead {
        /// The subject it came on.
        subject: String,
        /// Its body.
        payload: Vec<u8>,
        /// Why.
        reason: String,
    },
    /// A stored message cannot be dealt with yet: it comes again.
    Later,
    /// Only this module can do it.
    Act(A),
}

/// What a write expects to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Anything.
    Any,
    /// No entry, or a removed one.
    Absent,
    /// The entry at this revision.
    Revision(u64),
}

/// Why a write was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// Somebody else wrote first: look again and decide again.
    #[error("another writer was first")]
    Conflict,
    /// The server refused or did not answer in time; whether it was written is unknown.
    #[error("write failed: {0}")]
    Failed(String),
}

/// A NATS account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Account {
    /// Edgewire's own traffic.
    Control,
    /// Workloads and devices.
    Work,
}

impl Account {
    /// Its name on the server.
    pub fn as_str(self) -> &'static str {
        match self {
            Account::Control => schemas::subject::ACCOUNT_CONTROL,
            Account::Work => schemas::subject::ACCOUNT_WORK,
        }
    }
}

impl<A> Effect<A> {
    /// Writes an object of schemas into a bucket, unconditionally ordered by `expect`.
    pub fn put(bucket: &str, key: String, value: Vec<u8>, expect: Expect, token: u64) -> Self {
        Effect::Put { bucket: bucket.to_owned(), key, value, expect, token }
    }

    /// Tells a node's event durably; subject and headers follow from it.
    pub fn event(event: &EventReport) -> Self {
        let EventReport { id, node, module, reason, at, .. } = event;
        Effect::Report {
            subject: subject::event(module, reason),
            headers: envelope::headers(node, module, reason, id, *at),
            payload: schemas::encode(event),
        }
    }

    /// Answers `message` with a MessagePack body; nothing when no answer is wanted.
    pub fn reply<T: serde::Serialize>(message: &Message, body: &T) -> Option<Self> {
        Some(Effect::Reply {
            account: message.account,
            to: message.reply.clone()?,
            payload: schemas::encode(body),
        })
    }
}
