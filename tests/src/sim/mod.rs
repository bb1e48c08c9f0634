//! The seeded simulator: the modules' own `apply`, for a hub and a few nodes, in one process and in virtual time.
//!
//! A seed decides everything: what users do, what goes wrong and when, how long each message takes and whether it comes.
//! [`run`] lets that go on for a while, heals everything, waits for the world to come to rest, and holds it to
//! [`checks`]. The modules are `sync`, `placement`, `nodes`, `scheduler` and `containers` as they stand; what is modelled
//! is what they stand on:
//! * [`jetstream`] the server (held against the real one by `tests/jetstream_model.rs`), [`server`] with its connections
//! * [`runner`] the module runner; [`link`] and [`downlink`] what `sync` does across the link; [`node`] containerd
//! * [`world`] time and the network; [`faults`] what goes wrong; [`users`] what people want; [`planted`] bugs to find
#![allow(clippy::indexing_slicing)] // nodes and servers are numbered by the simulator itself; a wrong number is its bug

pub mod checks;
pub mod downlink;
pub mod faults;
pub mod hub;
pub mod jetstream;
pub mod link;
pub mod node;
pub mod planted;
pub mod random;
pub mod runner;
pub mod server;
pub mod users;
pub mod world;

use checks::Invariant;
use planted::Planted;
use world::{MS, S, World};

/// How long the world may take to come to rest, once healed.
const REST_WITHIN: u64 = 240 * S;

/// How many nodes, seed by seed: few have more to endure each, many have more to do with each other.
const NODES: [usize; 6] = [5, 2, 5, 3, 5, 4];

/// What became of a run.
#[derive(Debug)]
pub struct Outcome {
    /// The first thing that did not hold.
    pub failure: Option<(Invariant, String)>,
    /// The last that happened before.
    pub trace: Vec<String>,
    /// Virtual seconds from the healing to rest.
    pub rest_s: u64,
    /// Messages that nodes stored for the hub, or those sent to nodes if they are fewer.
    pub messages: u64,
}

/// Runs one seed, with or without a planted bug.
pub fn run(seed: u64, planted: Option<Planted>) -> Outcome {
    let nodes = NODES[usize::try_from(seed / 2).unwrap_or(0) % NODES.len()];
    let mut w = World::new(seed, nodes, planted);
    // Every other seed never loses what the hub has: then more can be held against it.
    let hub_may_be_replaced = seed % 2 == 1;
    faults::heal(&mut w);
    users_go_on(&mut w);
    workloads_go_on(&mut w);
    let calm = w.random.between(S, 8 * S);
    let trouble = w.random.between(20 * S, 90 * S);
    let until = calm + trouble;
    w.run_until(calm);
    if hub_may_be_replaced {
        let pause = w.random.below(15 * S);
        w.after(pause, hub::back_up);
    }
    trouble_goes_on(&mut w, until, hub_may_be_replaced);
    w.run_until(until);
    faults::heal(&mut w);
    let healed = w.at_us;
    // Pauses of faults that end later than this heal what is healed already.
    let busy = healed + 25 * S;
    w.run_until(busy);
    w.users.done = true;
    come_to_rest(&mut w);
    outcome(w, healed)
}

/// A world without trouble but for one thing, done when it has come to rest.
pub fn run_one(seed: u64, trouble: impl FnOnce(&mut World)) -> Outcome {
    let mut w = World::new(seed, 2, None);
    faults::heal(&mut w);
    users_go_on(&mut w);
    workloads_go_on(&mut w);
    w.run_until(20 * S);
    w.users.done = true;
    come_to_rest(&mut w);
    trouble(&mut w);
    let struck = w.at_us;
    w.run_until(struck + 30 * S);
    come_to_rest(&mut w);
    outcome(w, struck)
}

/// Waits until all holds that must hold at rest.
fn come_to_rest(w: &mut World) {
    let until = w.at_us + REST_WITHIN;
    let mut wrong = vec![(Invariant::ComesToRest, "not looked at".to_owned())];
    while w.checks.failure.is_none() && w.at_us < until && !wrong.is_empty() {
        let next = w.at_us + 2 * S;
        w.run_until(next);
        wrong = checks::at_rest(w);
    }
    if let Some(first) = wrong.first().filter(|_| w.checks.failure.is_none()) {
        for (broken, line) in &wrong {
            w.tell(|| format!("{broken:?}: {line}"));
        }
        w.checks.fail(first.0, format!("at rest: {} ({} in all)", first.1, wrong.len()));
    }
}

fn outcome(mut w: World, since_us: u64) -> Outcome {
    Outcome {
        failure: w.checks.failure.take(),
        rest_s: (w.at_us - since_us) / S,
        messages: w.checks.stored().min(w.checks.downs.sent()),
        trace: w.trace.into(),
    }
}

fn users_go_on(w: &mut World) {
    let pause = w.random.between(50 * MS, 2 * S);
    w.after(pause, |w| {
        if !w.users.done {
            users::act(w);
            users_go_on(w);
        }
    });
}

fn workloads_go_on(w: &mut World) {
    let pause = w.random.between(100 * MS, S);
    w.after(pause, |w| {
        if !w.users.done {
            faults::say(w);
            faults::send(w);
            workloads_go_on(w);
        }
    });
}

fn trouble_goes_on(w: &mut World, until: u64, hub_may_be_replaced: bool) {
    let pause = w.random.between(200 * MS, 6 * S);
    w.after(pause, move |w| {
        if w.at_us < until {
            faults::strike(w, hub_may_be_replaced);
            trouble_goes_on(w, until, hub_may_be_replaced);
        }
    });
}
