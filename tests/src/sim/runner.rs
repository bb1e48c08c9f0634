//! A module running in the world: the same order as `bus::runner`, in virtual time.
//!
//! Apply a slice of inputs; persist what is saved and owed in one transaction; send the rest in order; wait for the
//! outcomes of writes; acknowledge deliveries whose effects all succeeded; only then the next slice. Acts and requests run
//! beside that. A crash at any point loses what is in memory: the transaction under way is on disk or it is not.

mod sending;

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use bus::durable::Owed;
use bus::flow::{Flow, Kind};
use bus::module::{Effect, Input, Module, WriteError};
use bus::runner::clock::Clock;

use super::planted::Planted;
use super::server::{self, Fail, Source, Tell};
use super::world::{MS, World};
use sending::{pay, send};

/// An incarnation that failed is followed by another after so long.
const BACK_OFF: u64 = 200 * MS;
/// A delivery whose effects failed comes again after so long times its attempt.
const RETRY_STEP_MS: u64 = 50;
/// With the planted bug: what is to be kept is written so much later.
const LATE_FLUSH: u64 = 2_000 * MS;
/// Inputs applied at once.
const SLICE_MAX: u64 = 8;

/// A module that the world can run.
pub trait Hosted: Module + Sized + 'static {
    /// Its name.
    const NAME: &'static str;
    /// How often it gets a tick.
    const TICK: u64 = 500 * MS;

    /// Its runner; `index` tells the nodes' ones apart.
    fn runner(w: &mut World, index: usize) -> &mut Runner<Self>;
    /// The server it is connected to.
    fn server(index: usize) -> usize;
    /// What it reads and writes: the module's own declaration.
    fn flows(w: &World, index: usize) -> Vec<Flow>;
    /// A new incarnation.
    fn build(w: &mut World, index: usize) -> Self;
    /// Is its process running?
    fn is_hosted(w: &World, index: usize) -> bool;
    /// Its rim: carries out an act; what it tells is fed with [`done`].
    fn act(w: &mut World, index: usize, incarnation: u64, act: Self::Act);
    /// Where a bug is planted: what the module is told instead.
    fn planted(w: &mut World, index: usize, input: Input<Self::Done>) -> Vec<Input<Self::Done>> {
        let _ = (w, index);
        vec![input]
    }
}

/// A module's incarnation and what it has on disk.
pub struct Runner<M: Module> {
    /// The module; `None` while it is not running.
    pub module: Option<M>,
    /// Changes with every start and stop.
    pub incarnation: u64,
    saved: BTreeMap<String, Vec<u8>>,
    owed: BTreeMap<u64, Owed>,
    owed_next: u64,
    /// Paid, but the removal was not flushed yet.
    paid: BTreeMap<u64, Owed>,
    paying: bool,
    queue: VecDeque<(Input<M::Done>, Option<Ack>)>,
    busy: bool,
    flushing: Option<Changes>,
    sent_us: u64,
    clock: Option<Clock>,
    tell: Option<Tell>,
}

impl<M: Module> Default for Runner<M> {
    fn default() -> Self {
        Self {
            module: None,
            incarnation: 0,
            saved: BTreeMap::new(),
            owed: BTreeMap::new(),
            owed_next: 1,
            paid: BTreeMap::new(),
            paying: false,
            queue: VecDeque::new(),
            busy: false,
            flushing: None,
            sent_us: 0,
            clock: None,
            tell: None,
        }
    }
}

impl<M: Module> Runner<M> {
    /// Nothing is owed and nothing waits.
    pub fn is_idle(&self) -> bool {
        self.owed.is_empty() && self.queue.is_empty()
    }
}

#[derive(Debug, Clone)]
struct Ack {
    stream: String,
    durable: String,
    sequence: u64,
    attempt: u64,
}

#[derive(Debug, Clone, Default)]
struct Changes {
    save: Vec<(String, Vec<u8>)>,
    forget: Vec<String>,
    owe: Vec<Owed>,
}

type Rest<A> = Vec<(Vec<Effect<A>>, Option<Ack>)>;

/// Starts a module if its process runs; tries again while its server is down.
pub fn start<M: Hosted>(w: &mut World, index: usize) {
    if !M::is_hosted(w, index) || M::runner(w, index).module.is_some() {
        return;
    }
    let at = M::server(index);
    if !w.servers[at].up {
        w.after(BACK_OFF, move |w| start::<M>(w, index));
        return;
    }
    let incarnation = w.unique();
    w.tell(|| format!("{}@{at} starts", M::NAME));
    let module = M::build(w, index);
    let runner = M::runner(w, index);
    *runner = Runner {
        saved: std::mem::take(&mut runner.saved),
        owed: std::mem::take(&mut runner.owed),
        owed_next: runner.owed_next,
        incarnation,
        module: Some(module),
        ..Runner::default()
    };
    let tell: Tell = Rc::new(move |w, source| hear::<M>(w, index, incarnation, source));
    M::runner(w, index).tell = Some(tell.clone());
    open::<M>(w, index, incarnation, &tell);
    let now = w.now(at);
    let mut saved: Vec<_> = M::runner(w, index).saved.clone().into_iter().collect();
    if w.planted == Some(Planted::NotRestored) {
        saved.clear();
    }
    let effects = match &mut M::runner(w, index).module {
        Some(module) => module.restore(saved, now),
        None => return,
    };
    carry_out::<M>(w, index, incarnation, vec![(effects, None)]);
    let first = w.random.below(M::TICK);
    w.after(first, move |w| tick::<M>(w, index, incarnation));
    pay::<M>(w, index, incarnation);
}

fn open<M: Hosted>(w: &mut World, index: usize, incarnation: u64, tell: &Tell) {
    let at = M::server(index);
    let fail: Fail = Rc::new(move |w| {
        if M::runner(w, index).incarnation == incarnation {
            restart::<M>(w, index);
        }
    });
    for flow in M::flows(w, index) {
        let (tell, fail) = (tell.clone(), fail.clone());
        match flow.kind {
            Kind::Watch { bucket } => server::watch(w, at, bucket, &flow.subject, tell, fail),
            Kind::Subscribe { .. } => server::subscribe(w, at, &flow.subject, tell, fail),
            Kind::Consume { stream, durable, .. } => {
                server::consume(w, at, stream, durable, &flow.subject, tell, fail);
            }
            _ => {}
        }
    }
}

/// Kills a module: what is in memory is gone.
pub fn stop<M: Hosted>(w: &mut World, index: usize) {
    let flushed = w.random.per_mille(500);
    let unpaid = w.random.per_mille(300);
    let at = M::server(index);
    let incarnation = w.unique();
    let runner = M::runner(w, index);
    if runner.module.take().is_none() {
        return;
    }
    let tell = runner.tell.take();
    runner.incarnation = incarnation;
    runner.queue.clear();
    if let Some(changes) = runner.flushing.take().filter(|_| flushed) {
        commit::<M>(w, index, changes);
    }
    let runner = M::runner(w, index);
    let paid = std::mem::take(&mut runner.paid);
    if unpaid {
        runner.owed.extend(paid);
    }
    if let Some(tell) = tell {
        server::unfollow(w, at, &tell);
    }
    w.tell(|| format!("{}@{at} is killed", M::NAME));
}

/// Kills a module; its host starts it again.
pub fn restart<M: Hosted>(w: &mut World, index: usize) {
    stop::<M>(w, index);
    w.after(BACK_OFF, move |w| start::<M>(w, index));
}

fn is_current<M: Hosted>(w: &mut World, index: usize, incarnation: u64) -> bool {
    let runner = M::runner(w, index);
    runner.incarnation == incarnation && runner.module.is_some()
}

fn hear<M: Hosted>(w: &mut World, index: usize, incarnation: u64, source: Source) -> bool {
    if !is_current::<M>(w, index, incarnation) {
        return false;
    }
    let (input, ack) = match source {
        Source::Entry(entry) => (Input::Entry(entry), None),
        Source::Current(bucket, filter) => (Input::Current { bucket, filter }, None),
        Source::Message(message) => (Input::Message(message), None),
        Source::Delivery(delivery, durable) => {
            let ack = Ack {
                stream: delivery.stream.clone(),
                durable,
                sequence: delivery.sequence,
                attempt: delivery.attempt,
            };
            (Input::Delivery(delivery), Some(ack))
        }
    };
    feed::<M>(w, index, input, ack);
    true
}

fn feed<M: Hosted>(w: &mut World, index: usize, input: Input<M::Done>, ack: Option<Ack>) {
    let mut inputs = if w.planted.is_some() { M::planted(w, index, input) } else { vec![input] };
    let last = inputs.pop();
    let runner = M::runner(w, index);
    runner.queue.extend(inputs.into_iter().map(|input| (input, None)));
    runner.queue.extend(last.map(|input| (input, ack)));
    let incarnation = runner.incarnation;
    w.after(0, move |w| next::<M>(w, index, incarnation));
}

/// Feeds what a rim tells, if the incarnation that asked is still there.
pub fn done<M: Hosted>(w: &mut World, index: usize, incarnation: u64, done: M::Done) {
    if is_current::<M>(w, index, incarnation) {
        feed::<M>(w, index, Input::Done(done), None);
    }
}

fn tick<M: Hosted>(w: &mut World, index: usize, incarnation: u64) {
    if is_current::<M>(w, index, incarnation) {
        feed::<M>(w, index, Input::Tick, None);
        w.after(M::TICK, move |w| tick::<M>(w, index, incarnation));
    }
}

fn next<M: Hosted>(w: &mut World, index: usize, incarnation: u64) {
    if !is_current::<M>(w, index, incarnation) || M::runner(w, index).busy {
        return;
    }
    let now = w.now(M::server(index));
    if M::runner(w, index).clock.get_or_insert_with(|| Clock::new(now)).shows(now).is_some()
        && w.planted != Some(Planted::ClockTrusted)
    {
        restart::<M>(w, index);
        return;
    }
    let count = w.random.between(1, SLICE_MAX + 1);
    let mut inputs = Vec::new();
    while (inputs.len() as u64) < count {
        let Some(input) = M::runner(w, index).queue.pop_front() else { break };
        inputs.push(input);
    }
    if inputs.is_empty() {
        return;
    }
    let slice = apply::<M>(w, index, inputs);
    carry_out::<M>(w, index, incarnation, slice);
}

fn apply<M: Hosted>(w: &mut World, index: usize, inputs: Vec<(Input<M::Done>, Option<Ack>)>) -> Rest<M::Act> {
    let now = w.now(M::server(index));
    let mut slice = Vec::new();
    for (input, ack) in inputs {
        if let Some(module) = &mut M::runner(w, index).module {
            slice.push((module.apply(input, now), ack));
        }
    }
    slice
}

fn carry_out<M: Hosted>(w: &mut World, index: usize, incarnation: u64, slice: Rest<M::Act>) {
    let mut changes = Changes::default();
    let mut rest = Vec::new();
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
                Effect::Report { subject, headers, mut payload } => {
                    if w.planted == Some(Planted::ClockAsSequence) {
                        let now = w.now(M::server(index));
                        payload = super::planted::numbered_by_clock(&payload, now).unwrap_or(payload);
                    }
                    changes.owe.push(Owed { subject, headers, payload });
                }
                other => others.push(other),
            }
        }
        rest.push((others, ack));
    }
    if w.planted == Some(Planted::AckBeforeEffects) {
        for ack in rest.iter_mut().filter_map(|(_, ack)| ack.take()) {
            settle::<M>(w, index, &ack, false);
        }
    }
    let flush = changes.save.len() + changes.forget.len() + changes.owe.len() > 0;
    let delay = if flush { w.random.between(100, 4 * MS) } else { 0 };
    let late = flush && w.planted == Some(Planted::ActBeforeFlush);
    if late {
        let changes = changes.clone();
        w.after(LATE_FLUSH, move |w| {
            if is_current::<M>(w, index, incarnation) {
                commit::<M>(w, index, changes);
                pay::<M>(w, index, incarnation);
            }
        });
    }
    let runner = M::runner(w, index);
    runner.busy = true;
    runner.flushing = (flush && !late).then_some(changes);
    w.after(delay, move |w| {
        if is_current::<M>(w, index, incarnation) {
            if let Some(changes) = M::runner(w, index).flushing.take() {
                commit::<M>(w, index, changes);
                pay::<M>(w, index, incarnation);
            }
            send_all::<M>(w, index, incarnation, rest);
        }
    });
}

fn commit<M: Hosted>(w: &mut World, index: usize, changes: Changes) {
    for owed in &changes.owe {
        super::checks::owed(w, M::server(index), owed);
    }
    let runner = M::runner(w, index);
    runner.saved.extend(changes.save);
    for key in changes.forget {
        runner.saved.remove(&key);
    }
    for owed in changes.owe {
        runner.owed.insert(runner.owed_next, owed);
        runner.owed_next += 1;
    }
    runner.paid.clear();
}

/// What is still to come of a slice.
struct Waiting {
    outcomes: Vec<Option<Result<u64, WriteError>>>,
    of: Vec<(Option<u64>, usize)>,
    acks: Vec<Option<Ack>>,
    open: usize,
}

fn send_all<M: Hosted>(w: &mut World, index: usize, incarnation: u64, rest: Rest<M::Act>) {
    let waiting = Rc::new(std::cell::RefCell::new(Waiting {
        outcomes: Vec::new(),
        of: Vec::new(),
        acks: Vec::new(),
        open: 1,
    }));
    for (position, (effects, ack)) in rest.into_iter().enumerate() {
        waiting.borrow_mut().acks.push(ack);
        for effect in effects {
            let expecting = |token: Option<u64>| {
                let mut waiting = waiting.borrow_mut();
                waiting.of.push((token, position));
                waiting.outcomes.push(None);
                waiting.open += 1;
                waiting.outcomes.len() - 1
            };
            let slot = match &effect {
                Effect::Put { token, .. } | Effect::Remove { token, .. } => Some(expecting(Some(*token))),
                Effect::Dead { .. } | Effect::Later => Some(expecting(None)),
                _ => None,
            };
            let waiting = waiting.clone();
            send::<M>(w, index, incarnation, effect, move |w, outcome| {
                let Some(slot) = slot else { return };
                {
                    let mut waiting = waiting.borrow_mut();
                    waiting.outcomes[slot] = Some(outcome);
                    waiting.open -= 1;
                }
                all_sent::<M>(w, index, incarnation, &waiting);
            });
        }
    }
    waiting.borrow_mut().open -= 1;
    all_sent::<M>(w, index, incarnation, &waiting);
}

fn all_sent<M: Hosted>(
    w: &mut World,
    index: usize,
    incarnation: u64,
    waiting: &Rc<std::cell::RefCell<Waiting>>,
) {
    if waiting.borrow().open > 0 || !is_current::<M>(w, index, incarnation) {
        return;
    }
    let (mut told, mut failed) = (Vec::new(), vec![false; waiting.borrow().acks.len()]);
    {
        let waiting = &mut *waiting.borrow_mut();
        for ((token, position), outcome) in waiting.of.iter().zip(waiting.outcomes.iter_mut()) {
            let Some(outcome) = outcome.take() else { continue };
            failed[*position] |= outcome.is_err();
            if let Some(token) = token {
                told.push((Input::Wrote { token: *token, outcome }, None));
            }
        }
    }
    let acks = std::mem::take(&mut waiting.borrow_mut().acks);
    for (ack, failed) in acks.into_iter().zip(failed) {
        if let Some(ack) = ack {
            settle::<M>(w, index, &ack, failed);
        }
    }
    if told.is_empty() {
        M::runner(w, index).busy = false;
        next::<M>(w, index, incarnation);
    } else {
        let slice = apply::<M>(w, index, told);
        carry_out::<M>(w, index, incarnation, slice);
    }
}

fn settle<M: Hosted>(w: &mut World, index: usize, ack: &Ack, failed: bool) {
    let at = M::server(index);
    let ack = ack.clone();
    let delay = w.near_us();
    w.after(delay, move |w| {
        let now_ms = w.now_ms();
        if !w.servers[at].up {
            return; // it comes again
        }
        let Some(stream) = w.servers[at].server.stream_mut(&ack.stream) else { return };
        if failed && w.planted != Some(Planted::AckOfFailed) {
            stream.nak(&ack.durable, ack.sequence, RETRY_STEP_MS * ack.attempt.clamp(1, 200), now_ms);
        } else {
            stream.ack(&ack.durable, ack.sequence);
        }
    });
}
