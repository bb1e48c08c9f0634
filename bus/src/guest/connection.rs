//! One user's connection, on which each word is known to be taken or refused.
//!
//! NATS answers a publish with nothing, and a refusal comes later, as an error that names the subject. So after each word the
//! guest says one more, to an inbox of its own: the **tide**. The server deals with what a connection says in order, so what
//! it refused before the tide it has said before the tide comes back. The client hands errors and messages to different
//! tasks, though, and that would lose the order again. Therefore nobody reads the tide: its subscription is full from the
//! start, so that each further message of it becomes an *event* (`SlowConsumer`), in the one queue in which refusals are
//! events too. When the tide's event is there, every refusal of what was said before it is there. One tide serves all words
//! that were said before it, so many requests at once cost few of them.
//!
//! The connection is never made again by itself: what was subscribed or asked on a lost one is over, and its users are told.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::client::{PublishErrorKind, Request};
use async_nats::{Event, RequestErrorKind, ServerError};
use bytes::Bytes;
use futures::StreamExt;
use schemas::envelope::Headers;
use schemas::subject;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::Pass;
use crate::acknowledgement::{self, Refused, Stored};
use crate::connection::{REQUEST_TIMEOUT, to_nats};
use crate::tool::{Message, Subscription};

/// Words of one guest that wait to be taken, at once. Each may become a refusal, and all of those have to find room in the
/// client's queue of events, which has 128 places: one that found none would be lost.
pub const WORDS_MAX: usize = 64;
/// Messages that wait in a subscription of the speaking side: answers come one by one, and the tide is to be full.
const SPOKEN_WAITING_MAX: usize = 32;
/// Messages that wait in a subscription of the hearing side until they are read. What comes beyond is dropped, and told.
const HEARD_WAITING_MAX: usize = 8_192;
/// Refusals that are remembered, for those who wait: more than can come at once.
const REFUSALS_MAX: usize = 4 * WORDS_MAX;
/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A silent server is asked so often whether it is there.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// How the connections are called at the server.
const CLIENT_NAME: &str = "door";

/// Why a word was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GuestError {
    /// The server refuses it.
    #[error("the server refuses {0} to this login")]
    Forbidden(String),
    /// Nobody listens, and nothing stores it.
    #[error("nobody answers on {0}")]
    NoResponders(String),
    /// It was said; no answer came in time.
    #[error("no answer on {subject} within {timeout_ms} ms")]
    Timeout {
        /// The subject.
        subject: String,
        /// How long was waited.
        timeout_ms: u128,
    },
    /// With its headers it is larger than the server takes.
    #[error("the message is larger than the server takes: {0}")]
    TooLarge(String),
    /// [`WORDS_MAX`] are under way.
    #[error("{WORDS_MAX} requests of this login are under way")]
    Busy,
    /// The connection was lost on the way: whether it was taken is unknown.
    #[error("the connection to the node's server was lost on the way")]
    Lost,
    /// A stream refused it.
    #[error("the stream did not store it: {description} ({code})")]
    NotStored {
        /// The server's number for the reason.
        code: u64,
        /// The server's words.
        description: String,
    },
    /// Something answered that is no acknowledgement.
    #[error("what answered on {0} is no acknowledgement of a stream")]
    NoAcknowledgement(String),
}

/// Why there is no connection.
pub(super) enum DialError {
    /// Unknown user or wrong password.
    Refused,
    /// The login may not use its own inbox.
    Unfit,
    /// The server does not answer.
    Away(String),
}

/// What the connection said in passing.
struct Told {
    /// The subscription whose overflow is the tide; 0 before it is known.
    tide_sid: AtomicU64,
    /// How often the tide came.
    tides: watch::Sender<u64>,
    /// How many messages the hearing side had no room for.
    dropped: watch::Sender<u64>,
    refusals: Mutex<Refusals>,
    over: CancellationToken,
}

#[derive(Default)]
struct Refusals {
    /// Number of the next.
    next: u64,
    last: VecDeque<(u64, String)>,
}

impl Told {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            tide_sid: AtomicU64::new(0),
            tides: watch::Sender::new(0),
            dropped: watch::Sender::new(0),
            refusals: Mutex::default(),
            over: CancellationToken::new(),
        })
    }

    /// From the one task that takes events, in their order.
    fn hear(&self, event: &Event, speaking: bool) {
        match event {
            Event::Disconnected | Event::Closed => self.over.cancel(),
            Event::SlowConsumer(_) if !speaking => self.dropped.send_modify(|count| *count += 1),
            Event::SlowConsumer(sid) => {
                // The first is the tide's: there is no other subscription then.
                let known = self.tide_sid.compare_exchange(0, *sid, Ordering::SeqCst, Ordering::SeqCst);
                if known.is_ok() || known == Err(*sid) {
                    self.tides.send_modify(|count| *count += 1);
                }
            }
            Event::ServerError(ServerError::Other(words)) if words.starts_with("Permissions Violation") => {
                // Rights that were taken away from what is heard already.
                if !speaking {
                    self.over.cancel();
                }
                self.refusals().add(words.clone());
            }
            _ => {}
        }
    }

    fn refusals(&self) -> std::sync::MutexGuard<'_, Refusals> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Refusals {
    fn add(&mut self, words: String) {
        self.last.push_back((self.next, words));
        self.next += 1;
        if self.last.len() > REFUSALS_MAX {
            self.last.pop_front();
        }
    }

    fn since(&self, mark: u64, words: &str) -> bool {
        self.last.iter().any(|(number, refused)| *number >= mark && refused.starts_with(words))
    }
}

/// A connection as one user. Dropped, it ends.
pub struct Guest {
    pass: Pass,
    url: String,
    client: async_nats::Client,
    told: Arc<Told>,
    /// Full, and read by nobody.
    _tide: async_nats::Subscriber,
    tide_subject: String,
    /// Words said so far.
    said: AtomicU64,
    tide: tokio::sync::Mutex<Tide>,
    room: Arc<Semaphore>,
    hearing: tokio::sync::Mutex<Option<Hearing>>,
}

struct Tide {
    /// How many were sent.
    sent: u64,
    /// The words that the last one covers.
    covers: u64,
}

/// The second connection, for what is listened to: a flood there must not be in the way of the tide.
#[derive(Clone)]
struct Hearing {
    client: async_nats::Client,
    told: Arc<Told>,
}

async fn connect(
    url: &str,
    pass: &Pass,
    waiting_max: usize,
    speaking: bool,
) -> Result<(async_nats::Client, Arc<Told>), DialError> {
    let told = Told::new();
    let hears = told.clone();
    let options =
        async_nats::ConnectOptions::with_user_and_password(pass.user.clone(), pass.password.clone())
            .name(CLIENT_NAME)
            .custom_inbox_prefix(subject::inbox(&pass.user))
            .connection_timeout(CONNECT_TIMEOUT)
            .ping_interval(PING_INTERVAL)
            .subscription_capacity(waiting_max)
            .ignore_discovered_servers()
            // One try, at once, and it is over. Whatever comes of it, nobody uses it: the loss has been told.
            .max_reconnects(1)
            .event_callback(move |event| {
                hears.hear(&event, speaking);
                std::future::ready(())
            });
    #[allow(clippy::disallowed_methods)] // in `bus`, as the rule wants
    match async_nats::connect_with_options(url, options).await {
        Ok(client) => Ok((client, told)),
        Err(error) if error.kind() == async_nats::ConnectErrorKind::AuthorizationViolation => {
            Err(DialError::Refused)
        }
        Err(error) => Err(DialError::Away(error.to_string())),
    }
}

impl Guest {
    /// Connects.
    pub(super) async fn dial(url: &str, pass: &Pass) -> Result<Self, DialError> {
        let (client, told) = connect(url, pass, SPOKEN_WAITING_MAX, true).await?;
        let away = |error: &dyn ToString| DialError::Away(error.to_string());
        let tide_subject = client.new_inbox();
        let tide = client.subscribe(tide_subject.clone()).await.map_err(|error| away(&error))?;
        for _ in 0..=SPOKEN_WAITING_MAX {
            client.publish(tide_subject.clone(), Bytes::new()).await.map_err(|error| away(&error))?;
        }
        let mut tides = told.tides.subscribe();
        tokio::select! {
            came = tokio::time::timeout(CONNECT_TIMEOUT, tides.wait_for(|count| *count >= 1)) => {
                if !matches!(came, Ok(Ok(_))) {
                    let refused = told.refusals().since(0, "Permissions Violation");
                    return Err(if refused { DialError::Unfit } else { DialError::Away("no answer".into()) });
                }
            }
            () = told.over.cancelled() => return Err(DialError::Away("the connection was lost".into())),
        }
        Ok(Self {
            pass: pass.clone(),
            url: url.to_owned(),
            client,
            told,
            _tide: tide,
            tide_subject,
            said: AtomicU64::new(0),
            tide: tokio::sync::Mutex::new(Tide { sent: 1, covers: 0 }),
            room: Arc::new(Semaphore::new(WORDS_MAX)),
            hearing: tokio::sync::Mutex::default(),
        })
    }

    /// Whose it is.
    pub fn pass(&self) -> &Pass {
        &self.pass
    }

    /// Is the connection lost?
    pub fn is_over(&self) -> bool {
        self.told.over.is_cancelled()
    }

    /// Says one thing, live. When this returns the server has taken it.
    pub async fn publish(&self, to: &str, headers: &Headers, payload: Bytes) -> Result<(), GuestError> {
        let _room = self.room.try_acquire().map_err(|_| GuestError::Busy)?;
        let mark = self.told.refusals().next;
        let sent = if headers.is_empty() {
            self.client.publish(to.to_owned(), payload).await
        } else {
            self.client.publish_with_headers(to.to_owned(), to_nats(headers), payload).await
        };
        sent.map_err(|error| match error.kind() {
            PublishErrorKind::MaxPayloadExceeded => GuestError::TooLarge(error.to_string()),
            _ => GuestError::Lost,
        })?;
        self.settle(mark, "Publish", to).await
    }

    /// Asks, and waits for the first answer. A refusal is told at once, not when the time is over.
    pub async fn ask(
        &self,
        to: &str,
        headers: &Headers,
        payload: Bytes,
        timeout: Duration,
    ) -> Result<Message, GuestError> {
        let mark = self.told.refusals().next;
        let mut request = Request::new().payload(payload).timeout(Some(timeout));
        // An inbox of its own: the client keeps what it knows of a question through the common one for ever, when no
        // answer comes.
        request = request.inbox(self.client.new_inbox());
        if !headers.is_empty() {
            request = request.headers(to_nats(headers));
        }
        let answer = self.client.send_request(to.to_owned(), request);
        tokio::pin!(answer);
        let mut settled = false;
        let settling = async {
            let _room = self.room.try_acquire().map_err(|_| GuestError::Busy)?;
            self.settle(mark, "Publish", to).await
        };
        tokio::pin!(settling);
        loop {
            tokio::select! {
                // The question first: its first poll sends it, and what is sent after it settles it.
                biased;
                answer = &mut answer => return answer.map(Message::from).map_err(|error| match error.kind() {
                    RequestErrorKind::NoResponders => GuestError::NoResponders(to.to_owned()),
                    RequestErrorKind::TimedOut => {
                        GuestError::Timeout { subject: to.to_owned(), timeout_ms: timeout.as_millis() }
                    }
                    RequestErrorKind::MaxPayloadExceeded => GuestError::TooLarge(error.to_string()),
                    _ => GuestError::Lost,
                }),
                taken = &mut settling, if !settled => {
                    taken?;
                    settled = true;
                }
                () = self.told.over.cancelled() => return Err(GuestError::Lost),
            }
        }
    }

    /// Says one thing into a stream, and waits until it is acknowledged.
    pub async fn store(
        &self,
        to: &str,
        headers: &Headers,
        payload: Bytes,
        timeout: Duration,
    ) -> Result<Stored, GuestError> {
        let answer = self.ask(to, headers, payload, timeout).await?;
        match acknowledgement::read(&answer.payload) {
            Some(Ok(stored)) => Ok(stored),
            Some(Err(Refused { code, description })) => Err(GuestError::NotStored { code, description }),
            None => Err(GuestError::NoAcknowledgement(to.to_owned())),
        }
    }

    /// Listens on a subject (wildcards allowed); the server has taken it when this returns.
    pub async fn listen(self: &Arc<Self>, to: &str) -> Result<Ear, GuestError> {
        {
            let _room = self.room.try_acquire().map_err(|_| GuestError::Busy)?;
            let mark = self.told.refusals().next;
            // Whether it may is asked where the answer is sure; one message at most comes of it.
            let mut asked = self.client.subscribe(to.to_owned()).await.map_err(|_| GuestError::Lost)?;
            asked.unsubscribe_after(1).await.map_err(|_| GuestError::Lost)?;
            self.settle(mark, "Subscription", to).await?;
        }
        let hearing = self.hearing().await?;
        let dropped = hearing.told.dropped.subscribe();
        let heard = hearing.client.subscribe(to.to_owned()).await.map_err(|_| GuestError::Lost)?;
        // Back when the server has dealt with the subscription.
        let inbox = hearing.client.new_inbox();
        let mut echo = hearing.client.subscribe(inbox.clone()).await.map_err(|_| GuestError::Lost)?;
        hearing.client.publish(inbox, Bytes::new()).await.map_err(|_| GuestError::Lost)?;
        let back = tokio::time::timeout(REQUEST_TIMEOUT, echo.next()).await;
        if !matches!(back, Ok(Some(_))) {
            return Err(GuestError::Lost);
        }
        let over = hearing.told.over.clone();
        Ok(Ear { heard: Subscription::from(heard), dropped, over, _guest: self.clone(), _hearing: hearing })
    }

    async fn hearing(&self) -> Result<Hearing, GuestError> {
        let mut hearing = self.hearing.lock().await;
        if let Some(standing) = hearing.as_ref().filter(|hearing| !hearing.told.over.is_cancelled()) {
            return Ok(standing.clone());
        }
        let dialled = connect(&self.url, &self.pass, HEARD_WAITING_MAX, false).await;
        let (client, told) = dialled.map_err(|_| GuestError::Lost)?;
        let fresh = Hearing { client, told };
        *hearing = Some(fresh.clone());
        Ok(fresh)
    }

    /// Waits for the tide; then says whether the server refused what was said to `to` since `mark`.
    async fn settle(&self, mark: u64, what: &str, to: &str) -> Result<(), GuestError> {
        let word = self.said.fetch_add(1, Ordering::SeqCst) + 1;
        tokio::select! {
            came = tokio::time::timeout(REQUEST_TIMEOUT, self.await_tide(word)) => {
                if !matches!(came, Ok(Ok(()))) {
                    // It answers nothing any more: the next request gets a connection that does.
                    self.told.over.cancel();
                    return Err(GuestError::Lost);
                }
            }
            () = self.told.over.cancelled() => return Err(GuestError::Lost),
        }
        // `Permissions Violation for Publish to "app.demo.x"`
        let words = format!("Permissions Violation for {what} to \"{to}\"");
        if self.told.refusals().since(mark, &words) {
            return Err(GuestError::Forbidden(to.to_owned()));
        }
        Ok(())
    }

    /// Given up half-way this leaves all as it was: a tide that was sent is counted, and waited for by the next.
    async fn await_tide(&self, word: u64) -> Result<(), GuestError> {
        let mut tide = self.tide.lock().await;
        if tide.covers >= word {
            return Ok(());
        }
        let covers = self.said.load(Ordering::SeqCst);
        let sent = self.client.publish(self.tide_subject.clone(), Bytes::new()).await;
        sent.map_err(|_| GuestError::Lost)?;
        tide.sent += 1;
        let until = tide.sent;
        let mut tides = self.told.tides.subscribe();
        tides.wait_for(|count| *count >= until).await.map_err(|_| GuestError::Lost)?;
        tide.covers = covers;
        Ok(())
    }
}

/// What was heard.
#[derive(Debug, Clone, PartialEq)]
pub enum Heard {
    /// A message.
    Message(Message),
    /// Messages came faster than they were read, and some are lost.
    Dropped,
}

/// What a guest listens to. Keeps the guest.
pub struct Ear {
    heard: Subscription,
    dropped: watch::Receiver<u64>,
    over: CancellationToken,
    _guest: Arc<Guest>,
    _hearing: Hearing,
}

impl Ear {
    /// The next; `None` when the connection is lost.
    pub async fn next(&mut self) -> Option<Heard> {
        tokio::select! {
            // What was heard before the loss is heard.
            biased;
            message = self.heard.next() => message.map(Heard::Message),
            changed = self.dropped.changed() => changed.ok().map(|()| Heard::Dropped),
            () = self.over.cancelled() => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_concerns_who_said_it_since() {
        let words = |to: &str| format!("Permissions Violation for Publish to \"{to}\"");
        let mut refusals = Refusals::default();
        refusals.add(words("a.b"));
        assert!(refusals.since(0, &words("a.b")) && !refusals.since(1, &words("a.b")));
        assert!(!refusals.since(0, &words("a")) && !refusals.since(0, &words("a.b.c")));
        for _ in 0..2 * REFUSALS_MAX {
            refusals.add(words("c.d"));
        }
        assert!(!refusals.since(0, &words("a.b")) && refusals.last.len() == REFUSALS_MAX);
    }
}
