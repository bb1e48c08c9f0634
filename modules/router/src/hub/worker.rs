//! One rule's way from the hub's stream FROM to its target: a consumer and a task of its own, one message after the other.
//!
//! A target that is slow or away holds up its own rule alone. What may go better later is tried again, with longer and
//! longer pauses; what does not, or never can, becomes a dead letter, and the rule goes on.

use std::sync::Arc;
use std::time::Duration;

use bus::connection::Handles;
use bus::pause::jittered;
use bus::queue::{Begin, Queue, Taken};
use bytes::Bytes;
use schemas::envelope::Headers;
use schemas::routing::header;
use schemas::subject::{self, STREAM_FROM};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Done;
use crate::NAME;
use crate::caller::{Caller, Failed, judge};
use crate::table::{From, Route, To};
use crate::work::Made;

/// Tries of one message.
const ATTEMPTS_MAX: u32 = 8;
/// The pause after the first; each next one is twice as long, up to [`PAUSE_MAX`]. All together about a minute.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Pause before the consumer is opened again.
const REOPEN_PAUSE: Duration = Duration::from_secs(1);

/// One rule being followed.
pub(super) struct Worker {
    pub route: Arc<Route>,
    pub bus: Handles,
    pub caller: Caller,
    pub tell: mpsc::Sender<Done>,
    /// The last message that was dealt with.
    pub last: Option<String>,
}

/// What a rule takes from FROM, if it takes anything there.
pub(super) fn takes(route: &Route) -> Option<(String, Begin)> {
    match &route.from {
        From::Node(..) => {
            Some((subject::raised_ruled(&route.namespace, &route.name, &route.uid), Begin::Oldest))
        }
        From::Hub(filter) => Some((filter.clone(), Begin::New)),
        From::Rest(_) | From::Service(..) => None,
    }
}

impl Worker {
    /// Follows the rule until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let Some((filter, begin)) = takes(&self.route) else { return };
        let durable = subject::rule_consumer(&self.route.uid);
        while !stop.is_cancelled() {
            let mut queue = match Queue::open(&self.bus.control, STREAM_FROM, &durable, &filter, begin).await
            {
                Ok(queue) => queue,
                Err(error) => {
                    tracing::debug!(rule = self.route.display(), %error, "its consumer is opened again");
                    tokio::time::sleep(jittered(REOPEN_PAUSE)).await;
                    continue;
                }
            };
            loop {
                let taken = tokio::select! {
                    taken = queue.next() => taken,
                    () = stop.cancelled() => return,
                };
                let Ok(taken) = taken else { break };
                if !self.deal(taken, &stop).await {
                    return;
                }
            }
            tokio::time::sleep(jittered(REOPEN_PAUSE)).await;
        }
    }

    /// Deals with one message; `false` when it is over.
    async fn deal(&mut self, taken: Taken, stop: &CancellationToken) -> bool {
        let message = taken.headers.get(header::MESSAGE).cloned();
        // Carried again by a node that fell between storing and acknowledging: it is the one before it.
        if message.is_some() && message == self.last {
            let _ = taken.done().await;
            return true;
        }
        let outcome = tokio::select! {
            outcome = taken.during(self.deliver(&taken, message.as_deref())) => outcome,
            () = stop.cancelled() => {
                taken.again().await;
                return false;
            }
        };
        let counted = match outcome {
            Ok(false) => None,
            Ok(true) => Some(Ok(())),
            Err(why) => {
                let on = taken.headers.get(header::SUBJECT).unwrap_or(&taken.subject);
                let reason = format!("rule {}: {why}", self.route.display());
                let payload = taken.payload.clone();
                let kept = bus::dead::write(&self.bus.control, NAME, on, payload, &reason).await;
                if let Err(error) = kept {
                    tracing::warn!(rule = self.route.display(), %error, "a message is tried again");
                    taken.again().await;
                    return true;
                }
                Some(Err(why))
            }
        };
        if let Some(outcome) = counted {
            let uid = self.route.uid.clone();
            if self.tell.send(Done::Counted { uid, message: message.clone(), outcome }).await.is_err() {
                return false;
            }
        }
        self.last = message;
        if let Err(error) = taken.done().await {
            tracing::debug!(rule = self.route.display(), %error, "a message may come again");
        }
        true
    }

    /// Says whether it was delivered, or not wanted.
    async fn deliver(&self, taken: &Taken, message: Option<&str>) -> Result<bool, String> {
        if let Some(failure) = taken.headers.get(header::FAILURE) {
            return Err(failure.clone());
        }
        let body = match self.route.from {
            From::Hub(_) => match self.route.make(&taken.payload, &taken.subject, &taken.headers)? {
                Made::Message(body) => body,
                Made::Unwanted => return Ok(false),
            },
            _ => taken.payload.clone(),
        };
        match &self.route.to {
            To::Url(url) => self.call(url, &self.headers(taken, message, &body), body).await,
            To::Subject(to) => {
                let work = self.bus.work.as_ref().ok_or("no connection in WORK")?;
                work.say(to, &Headers::new(), body, None).await.map_err(|error| error.to_string())?;
                work.round_trip().await.map_err(|error| error.to_string())
            }
            To::Topic(_) | To::Service { .. } => Err("the rule's target is on a node".to_owned()),
        }?;
        Ok(true)
    }

    async fn call(&self, url: &str, headers: &[(String, String)], body: Bytes) -> Result<(), String> {
        let mut pause = PAUSE_MIN;
        for attempt in 1.. {
            let called = self.caller.call("POST", url, headers, body.clone()).await;
            match called.and_then(|answer| judge(url, &answer)) {
                Ok(()) => return Ok(()),
                Err(Failed { why, is_passing, .. }) if !is_passing || attempt >= ATTEMPTS_MAX => {
                    return Err(format!("{why} (tried {attempt} times)"));
                }
                Err(failed) => {
                    tracing::debug!(rule = self.route.display(), %failed, attempt, "called again");
                    tokio::time::sleep(jittered(pause)).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
        Ok(())
    }

    fn headers(&self, taken: &Taken, message: Option<&str>, body: &Bytes) -> Vec<(String, String)> {
        let is_json = serde_json::from_slice::<serde::de::IgnoredAny>(body).is_ok();
        let kind = if is_json { "application/json" } else { "application/octet-stream" };
        let node = taken.subject.split('.').nth(1).unwrap_or("");
        let id = message.map_or_else(|| taken.sequence.to_string(), str::to_owned);
        [
            ("content-type", kind.to_owned()),
            (header::HTTP_MESSAGE, format!("{}-{node}-{id}", self.route.uid)),
            (header::HTTP_NODE, node.to_owned()),
            (header::HTTP_SUBJECT, taken.headers.get(header::SUBJECT).unwrap_or(&taken.subject).clone()),
            (header::HTTP_RULE, self.route.display()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }
}
