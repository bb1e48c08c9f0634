//! Where a module's inputs come from: one owned task for each flow that is read, all into the module's one bounded queue.

use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, pull};
use futures::StreamExt;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::{INPUTS_MAX, RunError, SLICE_MAX};
use crate::command;
use crate::connection::{Bus, Handles, from_nats};
use crate::flow::{Flow, Kind};
use crate::module::{Account, Delivery, Input, Message};
use crate::store::{From, Seen, Store};

/// An unacknowledged delivery comes again after so long. What was on its way to a process that fell or stood still waits
/// for it; a slice of inputs takes far less.
const ACK_WAIT: Duration = Duration::from_secs(10);

/// An input, with what acknowledges it.
pub(super) struct Fed<D> {
    pub(super) input: Input<D>,
    pub(super) ack: Option<async_nats::jetstream::Message>,
}

/// An input that nobody waits for.
pub(super) fn live<D>(input: Input<D>) -> Fed<D> {
    Fed { input, ack: None }
}

/// A source that ended: its flow and why.
pub(super) type Ended = Result<(), (String, String)>;

/// Opens one flow.
pub(super) async fn open<D: Send + 'static>(
    flow: &Flow,
    handles: &Handles,
    feed: &mpsc::Sender<Fed<D>>,
    sources: &mut JoinSet<Ended>,
) -> Result<(), RunError> {
    let fail = |cause: String| RunError::Source { flow: flow.line(), cause };
    let Some(bus) = handles.bus(flow.account).cloned() else {
        return Err(fail("no connection in its account".to_owned()));
    };
    let (feed, line, subject) = (feed.clone(), flow.line(), flow.subject.clone());
    match flow.kind.clone() {
        Kind::Subscribe { .. } => {
            let mut messages =
                bus.client.subscribe(subject).await.map_err(|error| fail(error.to_string()))?;
            let account = flow.account;
            sources.spawn(async move {
                while let Some(message) = messages.next().await {
                    if command::is_one(&message.subject) && !command::is_genuine(message.reply.as_deref()) {
                        tracing::warn!(subject = %message.subject, "a command that is not the hub's: not followed");
                        continue;
                    }
                    if feed.send(live(Input::Message(message_of(account, message)))).await.is_err() {
                        return Ok(());
                    }
                }
                Err((line, "the subscription ended".to_owned()))
            });
        }
        Kind::Watch { bucket } => {
            let (tell, mut seen) = mpsc::channel(INPUTS_MAX);
            sources.spawn(async move {
                let store = Store::new(&bus, bucket);
                let forward = async {
                    while let Some(seen) = seen.recv().await {
                        let input = match seen {
                            Seen::Entry(entry) => Input::Entry(entry),
                            Seen::Current => {
                                Input::Current { bucket: bucket.to_owned(), filter: subject.clone() }
                            }
                        };
                        if feed.send(live(input)).await.is_err() {
                            return;
                        }
                    }
                };
                tokio::select! {
                    ended = store.watch(&subject, From::All, tell) => {
                        ended.map_err(|error| (line, error.to_string()))
                    }
                    () = forward => Ok(()),
                }
            });
        }
        Kind::Consume { stream, durable, headers_only, one_by_one } => {
            let pending = if one_by_one { 1 } else { i64::try_from(INPUTS_MAX).unwrap_or(256) };
            sources.spawn(async move {
                let config = pull::Config {
                    durable_name: Some(durable.to_owned()),
                    filter_subject: subject,
                    headers_only,
                    ack_policy: AckPolicy::Explicit,
                    ack_wait: ACK_WAIT,
                    max_ack_pending: pending,
                    ..pull::Config::default()
                };
                consume(bus, stream, config, feed).await.map_err(|e| (line, e))
            });
        }
        Kind::Publish
        | Kind::Request
        | Kind::Write { .. }
        | Kind::Report
        | Kind::Streams
        | Kind::Take { .. }
        | Kind::Read { .. }
        | Kind::Manage { .. }
        | Kind::Bound { .. }
        | Kind::NodeStreams
        | Kind::Link
        | Kind::Arrivals
        | Kind::Named
        | Kind::Stream => {}
    }
    Ok(())
}

fn message_of(account: Account, message: async_nats::Message) -> Message {
    Message {
        account,
        subject: message.subject.to_string(),
        headers: from_nats(message.headers.as_ref()),
        payload: message.payload.to_vec(),
        reply: message.reply.map(|reply| reply.to_string()),
    }
}

/// Feeds stored messages for ever; a consumer that was lost is made again (it goes on where it was acknowledged, or,
/// made anew, from the start: deliveries are idempotent).
async fn consume<D>(
    bus: Bus,
    stream: &str,
    config: pull::Config,
    feed: mpsc::Sender<Fed<D>>,
) -> Result<(), String> {
    let source = bus.jetstream.get_stream(stream).await.map_err(|error| error.to_string())?;
    loop {
        let consumer = source.create_consumer(config.clone()).await.map_err(|error| error.to_string())?;
        let mut messages = consumer
            .stream()
            .max_messages_per_batch(SLICE_MAX)
            .heartbeat(Duration::from_secs(2))
            .messages()
            .await
            .map_err(|error| error.to_string())?;
        loop {
            let next = tokio::select! {
                next = messages.next() => next,
                () = feed.closed() => return Ok(()),
            };
            let message = match next {
                Some(Ok(message)) => message,
                Some(Err(error)) => {
                    tracing::debug!(stream, %error, "consumer is taken up again");
                    break;
                }
                None => break,
            };
            let Ok(info) = message.info() else { continue };
            let input = Input::Delivery(Delivery {
                stream: stream.to_owned(),
                sequence: info.stream_sequence,
                subject: message.subject.to_string(),
                headers: from_nats(message.headers.as_ref()),
                payload: message.payload.to_vec(),
                attempt: u64::try_from(info.delivered).unwrap_or(1),
            });
            if feed.send(Fed { input, ack: Some(message) }).await.is_err() {
                return Ok(());
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await; // paces a failing server, nothing else
    }
}
