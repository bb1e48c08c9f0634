//! What a tool at a prompt needs of the bus, in plain words: listen, publish, ask.
//!
//! Modules never use this: they have flows and effects, and the runner does the rest. A tool has a subject that a person
//! typed, and wants to be told when the server refused it, because the server itself says so only in passing.

pub mod clients;
pub mod stored;

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use async_nats::client::Request;
use async_nats::{RequestErrorKind, StatusCode};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use schemas::envelope::Headers;

use crate::connection::{Bus, REQUEST_TIMEOUT, from_nats, to_nats};

/// Why a tool's word did not get through.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// Nobody listens on that subject, and nothing stores it.
    #[error("nobody answers on {subject}")]
    NoResponders {
        /// The subject asked on.
        subject: String,
    },
    /// Somebody may listen, but no answer came.
    #[error("no answer on {subject} within {timeout_ms} ms")]
    Timeout {
        /// The subject asked on.
        subject: String,
        /// How long was waited.
        timeout_ms: u128,
    },
    /// The client or the server refused.
    #[error("{subject} was not sent: {cause}")]
    Failed {
        /// The subject.
        subject: String,
        /// The client's words.
        cause: String,
    },
}

/// One message, as a tool shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// The subject it came on.
    pub subject: String,
    /// Its headers; the first value of each.
    pub headers: Headers,
    /// Its body.
    pub payload: Bytes,
    /// Where an answer is wanted.
    pub reply: Option<String>,
    /// It is the server's word that nobody listens, sent instead of an answer.
    pub no_responders: bool,
}

impl From<async_nats::Message> for Message {
    fn from(message: async_nats::Message) -> Self {
        Self {
            subject: message.subject.to_string(),
            headers: from_nats(message.headers.as_ref()),
            no_responders: message.status == Some(StatusCode::NO_RESPONDERS),
            reply: message.reply.map(|reply| reply.to_string()),
            payload: message.payload,
        }
    }
}

/// The messages on a subject, as they come; the connection's own bound limits how many wait.
pub struct Subscription(async_nats::Subscriber);

impl From<async_nats::Subscriber> for Subscription {
    fn from(subscriber: async_nats::Subscriber) -> Self {
        Self(subscriber)
    }
}

impl Stream for Subscription {
    type Item = Message;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Message>> {
        self.0.poll_next_unpin(context).map(|message| message.map(Message::from))
    }
}

fn failed(subject: &str, cause: impl std::fmt::Display) -> ToolError {
    ToolError::Failed { subject: subject.to_owned(), cause: cause.to_string() }
}

impl Bus {
    /// Listens on `subject` (wildcards allowed). A refusal comes as a connection event, before
    /// [`round_trip`](Self::round_trip) returns.
    pub async fn listen(&self, subject: &str) -> Result<Subscription, ToolError> {
        let heard = self.client.subscribe(subject.to_owned()).await;
        heard.map(Subscription).map_err(|error| failed(subject, error))
    }

    /// Publishes once, live; `reply` says where an answer shall go.
    pub async fn say(
        &self,
        subject: &str,
        headers: &Headers,
        payload: Bytes,
        reply: Option<String>,
    ) -> Result<(), ToolError> {
        let (to, headers) = (subject.to_owned(), to_nats(headers));
        let sent = match reply {
            Some(reply) => self.client.publish_with_reply_and_headers(to, reply, headers, payload).await,
            None if headers.is_empty() => self.client.publish(to, payload).await,
            None => self.client.publish_with_headers(to, headers, payload).await,
        };
        sent.map_err(|error| failed(subject, error))
    }

    /// Asks, and waits for the first answer.
    pub async fn ask(
        &self,
        subject: &str,
        headers: &Headers,
        payload: Bytes,
        timeout: Duration,
    ) -> Result<Message, ToolError> {
        let mut request = Request::new().payload(payload).timeout(Some(timeout));
        if !headers.is_empty() {
            request = request.headers(to_nats(headers));
        }
        let answer = self.client.send_request(subject.to_owned(), request).await;
        answer.map(Message::from).map_err(|error| match error.kind() {
            RequestErrorKind::NoResponders => ToolError::NoResponders { subject: subject.to_owned() },
            RequestErrorKind::TimedOut => {
                ToolError::Timeout { subject: subject.to_owned(), timeout_ms: timeout.as_millis() }
            }
            _ => failed(subject, error),
        })
    }

    /// Returns when the server has dealt with everything sent before on this connection. The client's own flush only says
    /// that bytes were written; a message to ourselves comes back after any refusal of what went before it.
    pub async fn round_trip(&self) -> Result<(), ToolError> {
        let inbox = self.client.new_inbox();
        let mut echo = self.listen(&inbox).await?;
        self.say(&inbox, &Headers::new(), Bytes::new(), None).await?;
        match tokio::time::timeout(REQUEST_TIMEOUT, echo.next()).await {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err(failed(&inbox, "the connection was closed")),
            Err(_) => Err(ToolError::Timeout { subject: inbox, timeout_ms: REQUEST_TIMEOUT.as_millis() }),
        }
    }

    /// A subject of this connection's own, for answers.
    pub fn inbox(&self) -> String {
        self.client.new_inbox()
    }
}
