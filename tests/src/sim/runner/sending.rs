//! What a module in the world sends: writes to its own server, requests across the link, and the reports it owes.

use std::rc::Rc;

use bus::module::{Account, Effect, Expect, Input, Message, WriteError};
use bytes::Bytes;
use schemas::envelope::{Headers, header};

use super::super::jetstream::{MSG_ID, New, Refused};
use super::super::planted::Planted;
use super::super::server;
use super::super::world::{Asker, MS, S, World};
use super::{Hosted, feed, is_current};

/// A write that is not answered for so long has failed.
const WRITE_WAIT: u64 = 5 * S;

type Outcome = Result<u64, WriteError>;

pub(super) fn send<M: Hosted>(
    w: &mut World,
    index: usize,
    incarnation: u64,
    effect: Effect<M::Act>,
    then: impl FnOnce(&mut World, Outcome) + 'static,
) {
    match effect {
        Effect::Put { bucket, key, value, mut expect, .. } => {
            if w.planted == Some(Planted::WriteWithoutCas) {
                expect = Expect::Any;
            }
            let write = move |w: &mut World, at: usize| {
                let outcome = server::write(w, at, &bucket, &key, &value, expect, false);
                match (w.planted, outcome) {
                    (Some(Planted::ConflictTakenForWritten), Err(WriteError::Conflict)) => Ok(w.unique()),
                    (_, outcome) => outcome,
                }
            };
            to_server::<M>(w, index, incarnation, write, then);
        }
        Effect::Remove { bucket, key, value, expect, .. } => {
            let write = move |w: &mut World, at| server::write(w, at, &bucket, &key, &value, expect, true);
            to_server::<M>(w, index, incarnation, write, then);
        }
        Effect::Dead { subject, payload, reason } => {
            w.tell(|| format!("{}@{index}: dead letter {subject}: {reason}", M::NAME));
            w.checks.dead += 1;
            let subject = schemas::subject::dead(M::NAME);
            let new = New { subject, headers: Headers::new(), payload: Bytes::from(payload) };
            to_server::<M>(w, index, incarnation, move |w, at| stored(server::store(w, at, new, None)), then);
        }
        Effect::Later => then(w, Err(WriteError::Failed("not yet".to_owned()))),
        Effect::Request { subject, payload, timeout_ms, token } => {
            request::<M>(w, index, incarnation, subject, payload, timeout_ms, token);
        }
        Effect::Reply { to, payload, .. } => {
            if let Some(asker) = w.asked.remove(&to) {
                asker.answer(w, payload);
            }
        }
        Effect::Act(act) => M::act(w, index, incarnation, act),
        Effect::Publish { account, subject, headers, payload } if M::server(index) == server::HUB => {
            let node = subject.split('.').nth(2).unwrap_or_default();
            if let Some(edge) = w.edges.iter().position(|edge| edge.name.as_str() == node) {
                let message = Message { account, subject, headers, payload, reply: None };
                w.cross(edge, move |w| {
                    server::publish_live(w, edge + 1, &message);
                });
            }
        }
        // Other live messages are heard by nobody here; the rest was taken out before.
        Effect::Publish { .. }
        | Effect::Store { .. }
        | Effect::Save { .. }
        | Effect::Forget { .. }
        | Effect::Report { .. } => {}
    }
}

fn stored(outcome: Result<u64, Refused>) -> Outcome {
    outcome.map_err(|refused| WriteError::Failed(format!("{refused:?}")))
}

/// Sends a write to the module's own server: in order, and lost or held while the server is down.
fn to_server<M: Hosted>(
    w: &mut World,
    index: usize,
    incarnation: u64,
    write: impl FnOnce(&mut World, usize) -> Outcome + 'static,
    then: impl FnOnce(&mut World, Outcome) + 'static,
) {
    let at = M::server(index);
    let then = Rc::new(std::cell::RefCell::new(Some(then)));
    let tell = move |w: &mut World, outcome: Outcome| {
        let then = then.borrow_mut().take();
        if let Some(then) = then {
            then(w, outcome);
        }
    };
    let late = tell.clone();
    w.after(WRITE_WAIT, move |w| late(w, Err(WriteError::Failed("timed out".to_owned()))));
    let arrive_us = (w.at_us + w.near_us()).max(M::runner(w, index).sent_us + 1);
    M::runner(w, index).sent_us = arrive_us;
    let delay = arrive_us - w.at_us;
    w.after(delay, move |w| arrive::<M>(w, index, incarnation, at, Box::new(write), Box::new(tell)));
}

type Write = Box<dyn FnOnce(&mut World, usize) -> Outcome>;
type Told = Box<dyn FnOnce(&mut World, Outcome)>;

fn arrive<M: Hosted>(w: &mut World, index: usize, incarnation: u64, at: usize, write: Write, tell: Told) {
    if !w.servers[at].up {
        // The client holds it until it is connected again, unless it was already on the wire.
        if w.random.per_mille(500) {
            let delay = w.random.between(100 * MS, S);
            w.after(delay, move |w| {
                if is_current::<M>(w, index, incarnation) {
                    arrive::<M>(w, index, incarnation, at, write, tell);
                }
            });
        }
        return;
    }
    let server = w.servers[at].incarnation;
    let outcome = write(w, at);
    let delay = w.near_us();
    w.after(delay, move |w| {
        if w.servers[at].up && w.servers[at].incarnation == server {
            tell(w, outcome);
        }
    });
}

fn request<M: Hosted>(
    w: &mut World,
    index: usize,
    incarnation: u64,
    subject: String,
    payload: Vec<u8>,
    timeout_ms: u64,
    token: u64,
) {
    let reply = format!("_INBOX.sim.{}", w.unique());
    let over = reply.clone();
    let at_hub = move |w: &mut World, asker: &Asker<Vec<u8>>| {
        let message = Message {
            account: Account::Control,
            subject: subject.clone(),
            headers: Headers::new(),
            payload: payload.clone(),
            reply: Some(reply.clone()),
        };
        if !asker.is_over() {
            w.asked.insert(reply.clone(), asker.clone());
            server::publish_live(w, server::HUB, &message);
        }
    };
    Asker::ask(w, index, timeout_ms * MS, at_hub, move |w, answer: Option<Vec<u8>>| {
        w.asked.remove(&over);
        if is_current::<M>(w, index, incarnation) {
            let outcome = answer.ok_or_else(|| "no answer".to_owned());
            feed::<M>(w, index, Input::Answered { token, outcome }, None);
        }
    });
}

/// Pays the oldest owed report, and so on.
pub(super) fn pay<M: Hosted>(w: &mut World, index: usize, incarnation: u64) {
    let runner = M::runner(w, index);
    if runner.paying {
        return;
    }
    let Some((number, owed)) = runner.owed.iter().next().map(|(number, owed)| (*number, owed.clone())) else {
        return;
    };
    runner.paying = true;
    let mut headers = owed.headers.clone();
    if let Some(id) = owed.headers.get(header::ID) {
        headers.insert(MSG_ID.to_owned(), id.clone());
    }
    let new = New { subject: owed.subject.clone(), headers, payload: Bytes::from(owed.payload.clone()) };
    let write = move |w: &mut World, at| stored(server::store(w, at, new, None));
    let paid = w.planted == Some(Planted::PaidWithoutAck);
    to_server::<M>(w, index, incarnation, write, move |w, outcome| {
        if !is_current::<M>(w, index, incarnation) {
            return;
        }
        let runner = M::runner(w, index);
        runner.paying = false;
        if outcome.is_ok() || paid {
            runner.owed.remove(&number);
            runner.paid.insert(number, owed);
            pay::<M>(w, index, incarnation);
        } else {
            w.after(500 * MS, move |w| {
                if is_current::<M>(w, index, incarnation) {
                    pay::<M>(w, index, incarnation);
                }
            });
        }
    });
}
