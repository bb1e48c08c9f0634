//! One module running: its flows opened, its inputs fed to `apply`, its effects carried out.
//!
//! The one order that loses nothing: take what is there (a bounded slice of inputs), apply each, **persist** all that is
//! saved and owed in one flushed transaction, send writes and messages in order, wait for their outcomes, and
//! acknowledge a delivery only when all of its own effects succeeded. Whatever fails here fails the incarnation; the
//! [host](crate::host) starts another.

pub mod clock;
mod sources;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::AckKind;
use bytes::Bytes;
use futures::future::BoxFuture;
use schemas::Timestamp;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use clock::Clock;

use crate::command;
use crate::connection::{Bus, Handles, to_nats};
use crate::dead;
use crate::durable::{Changes, Durable, DurableError, Owed, Part};
use crate::flow::Flow;
use crate::module::{Effect, Expect, Input, Module, Rim, WriteError};
use crate::store::Store;
use sources::{Fed, live, open};

/// Inputs that wait for a module; sources wait beyond it.
const INPUTS_MAX: usize = 256;
/// Inputs that are applied before their effects are carried out.
const SLICE_MAX: usize = 64;
/// Acts of one module that run beside each other.
const ACTS_MAX: usize = 128;
/// A delivery that failed comes again after so long times its attempt, at most [`RETRY_MAX`].
const RETRY_STEP: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// What the runner has to know of a module.
#[derive(Clone)]
pub struct Spec {
    /// Its name: one subject token.
    pub name: &'static str,
    /// All that it reads and writes.
    pub flows: Vec<Flow>,
    /// How often it gets a [`Input::Tick`].
    pub tick: Duration,
}

/// Why an incarnation of a module ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Its store failed.
    #[error(transparent)]
    Durable(#[from] DurableError),
    /// It could not be connected.
    #[error(transparent)]
    Connect(#[from] crate::connection::ConnectError),
    /// One of its sources ended for good.
    #[error("flow {flow} ended: {cause}")]
    Source {
        /// Which.
        flow: String,
        /// Why.
        cause: String,
    },
    /// The machine's clock was set back: see [`clock`].
    #[error("EW-CLOCK-BACK: the machine's clock was set back by {} s; the module begins anew with it", .back_ms / 1000)]
    ClockSetBack {
        /// By how much.
        back_ms: u64,
    },
}

/// How long acts may go on after the stop signal.
const DRAIN_MAX: Duration = Duration::from_secs(2);

/// Runs one incarnation until `stop`, or until something fails. `running` is told when all flows are open.
pub async fn run<M: Module, R: Rim<M>>(
    spec: &Spec,
    mut module: M,
    rim: R,
    bus: Handles,
    durable: &Durable,
    stop: CancellationToken,
    running: impl FnOnce() + Send,
) -> Result<(), RunError> {
    let (feed, mut fed) = mpsc::channel::<Fed<M::Done>>(INPUTS_MAX);
    let mut sources = JoinSet::new();
    for flow in &spec.flows {
        open(flow, &bus, &feed, &mut sources).await?;
    }
    let rim = Arc::new(rim);
    {
        let (rim, bus, feed) = (rim.clone(), bus.clone(), feed.clone());
        let (tell, mut told) = mpsc::channel(INPUTS_MAX);
        sources.spawn(async move {
            let forward = async {
                while let Some(done) = told.recv().await {
                    if feed.send(live(Input::Done(done))).await.is_err() {
                        return;
                    }
                }
            };
            tokio::select! {
                ended = rim.watch(&bus, tell) => ended.map_err(|cause| ("rim".to_owned(), cause)),
                () = forward => Ok(()),
            }
        });
    }
    let mut part = durable.part(spec.name)?;
    let owes = Arc::new(Notify::new());
    let paying = pay(part.twin(), bus.control.clone(), owes.clone());
    tokio::pin!(paying);

    let mut work =
        Work { spec, bus: &bus, rim, feed: feed.clone(), acts: JoinSet::new(), waiting: VecDeque::new() };
    let saved = part.saved()?;
    let began = Timestamp::now();
    let mut clock = Clock::new(began);
    let effects = module.restore(saved, began);
    let mut slice = vec![(effects, None)];
    let mut tick = tokio::time::interval(spec.tick);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut inputs = Vec::with_capacity(SLICE_MAX);
    running();
    loop {
        let written = work.carry_out(std::mem::take(&mut slice), &mut part, &owes).await?;
        let now = Timestamp::now();
        if let Some(back_ms) = clock.shows(now) {
            return Err(RunError::ClockSetBack { back_ms });
        }
        for input in written {
            slice.push((module.apply(input, now), None));
        }
        if !slice.is_empty() {
            continue;
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            ended = sources.join_next() => {
                let (flow, cause) = match ended {
                    Some(Ok(Ok(()))) | None => ("unknown".to_owned(), "it ended".to_owned()),
                    Some(Ok(Err(failed))) => failed,
                    Some(Err(error)) => ("unknown".to_owned(), error.to_string()),
                };
                return Err(RunError::Source { flow, cause });
            }
            Some(done) = work.acts.join_next() => {
                let done = done.map_err(|error| RunError::Source {
                    flow: "act".to_owned(),
                    cause: error.to_string(),
                })?;
                work.refill();
                if let Some(input) = done {
                    slice.push((module.apply(input, Timestamp::now()), None));
                }
            }
            failed = &mut paying => return Err(failed.into()),
            _ = tick.tick() => {
                slice.push((module.apply(Input::Tick, Timestamp::now()), None));
            }
            count = fed.recv_many(&mut inputs, SLICE_MAX) => {
                if count == 0 {
                    break;
                }
                for Fed { input, ack } in inputs.drain(..) {
                    slice.push((module.apply(input, Timestamp::now()), ack));
                }
            }
        }
    }
    sources.shutdown().await;
    // Acts under way get a stated time to end; what they tell is found again at the next start.
    let drain = async { while work.acts.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN_MAX, drain).await.is_err() {
        tracing::warn!(module = spec.name, "acts were cut off at shutdown");
    }
    durable.flush().await?;
    Ok(())
}

/// Pays the owed reports in order; ends only when the store fails.
async fn pay(part: Part, bus: Bus, owes: Arc<Notify>) -> DurableError {
    let mut pause = RETRY_STEP;
    loop {
        let (number, owed) = match part.first_owed() {
            Ok(Some(first)) => first,
            Ok(None) => {
                owes.notified().await;
                continue;
            }
            Err(error) => return error,
        };
        let mut headers = to_nats(&owed.headers);
        if let Some(id) = owed.headers.get(schemas::envelope::header::ID) {
            headers.insert("Nats-Msg-Id", id.as_str());
        }
        let sent = bus.jetstream.publish_with_headers(owed.subject, headers, owed.payload.into()).await;
        let acked = match sent {
            Ok(ack) => ack.await.map(drop),
            Err(error) => Err(error),
        };
        match acked {
            Ok(()) => {
                pause = RETRY_STEP;
                if let Err(error) = part.paid(number) {
                    return error;
                }
            }
            Err(error) => {
                // Kept on disk: the server is down or its stream is full.
                tracing::debug!(%error, "an owed report waits");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(2));
            }
        }
    }
}

struct Work<'a, M: Module, R: Rim<M>> {
    spec: &'a Spec,
    bus: &'a Handles,
    rim: Arc<R>,
    feed: mpsc::Sender<Fed<M::Done>>,
    acts: JoinSet<Option<Input<M::Done>>>,
    waiting: VecDeque<BoxFuture<'static, Option<Input<M::Done>>>>,
}

type Pending = BoxFuture<'static, Result<u64, WriteError>>;
type Slice<A> = Vec<(Vec<Effect<A>>, Option<async_nats::jetstream::Message>)>;

impl<M: Module, R: Rim<M>> Work<'_, M, R> {
    /// Carries out the effects of a slice of inputs and gives back what the module must be told of its writes.
    async fn carry_out(
        &mut self,
        slice: Slice<M::Act>,
        part: &mut Part,
        owes: &Notify,
    ) -> Result<Vec<Input<M::Done>>, DurableError> {
        let mut changes = Changes::default();
        let mut rest = Vec::with_capacity(slice.len());
        for (effects, ack) in slice {
            let mut others = Vec::new();
            for effect in effects {
                match effect {
                    Effect::Save { key, value } => {
                        changes.forget.retain(|other| *other != key);
                        changes.save.push((key, value));
                    }
                    Effect::Forget { key } => {
                        changes.save.retain(|(other, _)| *other != key);
                        changes.forget.push(key);
                    }
                    Effect::Report { subject, headers, payload } => {
                        changes.owe.push(Owed { subject, headers, payload });
                    }
                    other => others.push(other),
                }
            }
            rest.push((others, ack));
        }
        let owing = !changes.owe.is_empty();
        part.commit(changes).await?;
        if owing {
            owes.notify_one();
        }

        let mut outcomes = Vec::new();
        for (effects, ack) in rest {
            let mut pending = Vec::new();
            for effect in effects {
                if let Some(outcome) = self.send(effect).await {
                    pending.push(outcome);
                }
            }
            outcomes.push((pending, ack));
        }
        let mut told = Vec::new();
        for (pending, ack) in outcomes {
            let mut failed = false;
            for (token, outcome) in pending {
                let outcome = outcome.await;
                failed |= outcome.is_err();
                if let Some(token) = token {
                    told.push(Input::Wrote { token, outcome });
                }
            }
            if let Some(message) = ack {
                settle(&message, failed).await;
            }
        }
        Ok(told)
    }

    /// Begins one effect. Gives the pending outcome of those that have one, with their token.
    async fn send(&mut self, effect: Effect<M::Act>) -> Option<(Option<u64>, Pending)> {
        let failed =
            |error: String| -> Pending { Box::pin(std::future::ready(Err(WriteError::Failed(error)))) };
        match effect {
            Effect::Put { bucket, key, value, expect, token } => {
                Some((Some(token), write(&self.bus.control, &bucket, &key, value, expect, false).await))
            }
            Effect::Remove { bucket, key, value, expect, token } => {
                Some((Some(token), write(&self.bus.control, &bucket, &key, value, expect, true).await))
            }
            Effect::Publish { account, subject, headers, payload } => {
                let Some(bus) = self.bus.bus(account) else {
                    return Some((None, failed(format!("{subject}: no flow in {}", account.as_str()))));
                };
                let headers = to_nats(&headers);
                let sent = if command::is_one(&subject) {
                    let nobody = bus.client.new_inbox();
                    bus.client.publish_with_reply_and_headers(subject, nobody, headers, payload.into()).await
                } else {
                    bus.client.publish_with_headers(subject, headers, payload.into()).await
                };
                sent.err().map(|error| (None, failed(error.to_string())))
            }
            Effect::Reply { account, to, payload } => {
                let bus = self.bus.bus(account)?;
                // A reply subject is the asker's word: it must not make us publish anywhere else.
                if !["_INBOX.", "ew.str.", "_R_."].iter().any(|start| to.starts_with(start)) {
                    tracing::warn!(module = self.spec.name, to, "not an inbox: not answered");
                    return None;
                }
                let sent = bus.client.publish(to, payload.into()).await;
                sent.err().map(|error| (None, failed(error.to_string())))
            }
            Effect::Store { account, subject, headers, payload } => {
                let Some(bus) = self.bus.bus(account) else {
                    return Some((None, failed(format!("{subject}: no flow in {}", account.as_str()))));
                };
                Some((None, stored(bus, subject, to_nats(&headers), payload).await))
            }
            Effect::Dead { subject, payload, reason } => {
                tracing::warn!(module = self.spec.name, subject, reason, "dead letter");
                let (to, headers) = dead::addressed(self.spec.name, &subject, &reason);
                Some((None, stored(&self.bus.control, to, headers, payload).await))
            }
            Effect::Request { subject, payload, timeout_ms, token } => {
                let client = self.bus.control.client.clone();
                self.begin(Box::pin(async move {
                    let request = async_nats::Request::new()
                        .payload(payload.into())
                        .timeout(Some(Duration::from_millis(timeout_ms)));
                    let outcome = match client.send_request(subject, request).await {
                        Ok(answer) => Ok(answer.payload.to_vec()),
                        Err(error) => Err(error.to_string()),
                    };
                    Some(Input::Answered { token, outcome })
                }));
                None
            }
            Effect::Act(act) => {
                let (rim, bus) = (self.rim.clone(), self.bus.clone());
                self.begin(Box::pin(async move { rim.act(&bus, act).await.map(Input::Done) }));
                None
            }
            Effect::Later => Some((None, failed("not yet".to_owned()))),
            // Taken out before.
            Effect::Save { .. } | Effect::Forget { .. } | Effect::Report { .. } => None,
        }
    }

    fn begin(&mut self, act: BoxFuture<'static, Option<Input<M::Done>>>) {
        self.waiting.push_back(act);
        self.refill();
    }

    fn refill(&mut self) {
        while self.acts.len() < ACTS_MAX {
            let Some(act) = self.waiting.pop_front() else { return };
            self.acts.spawn(act);
        }
        let _ = &self.feed; // kept open: a module without sources still gets its ticks
    }
}

async fn write(bus: &Bus, bucket: &str, key: &str, value: Vec<u8>, expect: Expect, removed: bool) -> Pending {
    let store = Store::new(bus, bucket);
    if expect == Expect::Absent {
        // May have to look at a tombstone first; rare enough to wait for here, so that writes keep their order.
        let outcome = if removed {
            store.remove(key, value, expect).await
        } else {
            store.put(key, value, expect).await
        };
        return Box::pin(std::future::ready(outcome));
    }
    match store.send(key, Bytes::from(value), expect, removed).await {
        Ok(outcome) => Box::pin(outcome),
        Err(error) => Box::pin(std::future::ready(Err(error))),
    }
}

async fn stored(bus: &Bus, to: String, headers: async_nats::HeaderMap, payload: Vec<u8>) -> Pending {
    match bus.jetstream.publish_with_headers(to, headers, payload.into()).await {
        Ok(ack) => Box::pin(async move {
            let stored = ack.await.map_err(|error| WriteError::Failed(error.to_string()))?;
            Ok(stored.sequence)
        }),
        Err(error) => {
            let failed = WriteError::Failed(error.to_string());
            Box::pin(std::future::ready(Err(failed)))
        }
    }
}

async fn settle(message: &async_nats::jetstream::Message, failed: bool) {
    let kind = if failed {
        let attempt = message.info().map(|info| info.delivered).unwrap_or(1);
        let pause = RETRY_STEP * u32::try_from(attempt.clamp(1, 200)).unwrap_or(1);
        AckKind::Nak(Some(pause.min(RETRY_MAX)))
    } else {
        AckKind::Ack
    };
    if let Err(error) = message.ack_with(kind).await {
        // It comes again after ACK_WAIT.
        tracing::debug!(%error, "acknowledgement not sent");
    }
}
