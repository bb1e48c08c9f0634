//! The world: virtual time, the event queue, the hub, the nodes, and the links between them.
//!
//! An event is a function on the world, ordered by time and then by when it was planned, so a seed decides everything.
//! Whatever belongs to a process checks the incarnation it was planned in: what a crash cuts off never happens.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::rc::Rc;

use schemas::Timestamp;
use schemas::name::NodeName;

use super::checks::Checks;
use super::hub::Hub;
use super::node::Edge;
use super::planted::Planted;
use super::random::Random;
use super::server::Place;
use super::users::Users;

/// One millisecond in the simulator's time.
pub const MS: u64 = 1_000;
/// One second in the simulator's time.
pub const S: u64 = 1_000_000;
/// Where virtual time begins, in Unix milliseconds.
pub const EPOCH_MS: i64 = 1_700_000_000_000;
/// Lines of the trace that a failure shows.
const TRACE_LINES_MAX: usize = 5_000;

/// Something that will happen.
pub type Event = Box<dyn FnOnce(&mut World)>;

struct Planned {
    at: Reverse<(u64, u64)>,
    event: Event,
}

impl PartialEq for Planned {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}
impl Eq for Planned {}
impl PartialOrd for Planned {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Planned {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.at.cmp(&other.at)
    }
}

/// Everything.
pub struct World {
    /// Microseconds since the beginning.
    pub at_us: u64,
    planned: u64,
    queue: BinaryHeap<Planned>,
    /// Chance.
    pub random: Random,
    /// The bug that is planted, if any.
    pub planted: Option<Planted>,
    /// The servers: the hub's, then each node's.
    pub servers: Vec<Place>,
    /// The hub's process.
    pub hub: Hub,
    /// The nodes.
    pub edges: Vec<Edge>,
    /// Questions of nodes that the hub has not answered.
    pub asked: BTreeMap<String, Asker<Vec<u8>>>,
    /// Those who use the API.
    pub users: Users,
    /// What must hold.
    pub checks: Checks,
    /// What happened lately.
    pub trace: VecDeque<String>,
    made: u64,
}

/// The link of a node.
#[derive(Debug, Clone, Default)]
pub struct Link {
    /// Nothing crosses.
    pub cut: bool,
    /// Messages lost, in a thousand.
    pub loss: u64,
    /// Messages that come twice, in a thousand.
    pub twice: u64,
    /// Messages that come seconds later, in a thousand.
    pub late: u64,
}

impl World {
    /// A world of `nodes` nodes, before anything was started.
    pub fn new(seed: u64, nodes: usize, planted: Option<Planted>) -> Self {
        let names = (0..nodes).filter_map(|n| NodeName::new(format!("n{n}")).ok());
        Self {
            at_us: 0,
            planned: 0,
            queue: BinaryHeap::new(),
            random: Random::new(seed),
            planted,
            servers: (0..=nodes).map(|_| Place::default()).collect(),
            hub: Hub::default(),
            edges: names.map(Edge::new).collect(),
            asked: BTreeMap::new(),
            users: Users::default(),
            checks: Checks::default(),
            trace: VecDeque::new(),
            made: 0,
        }
    }

    /// What the clock of a server's machine shows, right or wrong: all that modules know of time.
    pub fn now(&self, at: usize) -> Timestamp {
        let right = EPOCH_MS + i64::try_from(self.at_us / MS).unwrap_or(i64::MAX);
        Timestamp(right + self.servers[at].clock_off_ms)
    }

    /// The same in milliseconds: by it a server forgets the messages' IDs.
    pub fn clock_ms(&self, at: usize) -> u64 {
        u64::try_from(self.now(at).0).unwrap_or(0)
    }

    /// The milliseconds that have really passed.
    pub fn now_ms(&self) -> u64 {
        self.at_us / MS
    }

    /// Plans an event.
    pub fn after(&mut self, delay_us: u64, event: impl FnOnce(&mut World) + 'static) {
        self.planned += 1;
        let at = Reverse((self.at_us + delay_us, self.planned));
        self.queue.push(Planned { at, event: Box::new(event) });
    }

    /// Lets things happen until a time, or until something that must hold does not.
    pub fn run_until(&mut self, until_us: u64) -> bool {
        while self.checks.failure.is_none() {
            match self.queue.peek() {
                Some(next) if next.at.0.0 <= until_us => {}
                _ => break,
            }
            let Some(next) = self.queue.pop() else { break };
            self.at_us = next.at.0.0;
            (next.event)(self);
        }
        self.at_us = self.at_us.max(until_us);
        self.checks.failure.is_none()
    }

    /// A number that was not given before.
    pub fn unique(&mut self) -> u64 {
        self.made += 1;
        self.made
    }

    /// Writes down what happened.
    pub fn tell(&mut self, line: impl FnOnce() -> String) {
        if self.trace.len() >= TRACE_LINES_MAX {
            self.trace.pop_front();
        }
        let line = format!("{:>10.3} {}", self.at_us as f64 / S as f64, line());
        self.trace.push_back(line);
    }

    /// How long a message takes between a process and its own server.
    pub fn near_us(&mut self) -> u64 {
        if self.random.per_mille(20) {
            self.random.between(1_000, 40_000)
        } else {
            self.random.between(80, 400)
        }
    }

    /// Sends something across a node's link: it arrives never, once or twice, and in any order.
    pub fn cross(&mut self, edge: usize, arrive: impl Fn(&mut World) + 'static) {
        let Some(link) = self.edges.get(edge).map(|edge| edge.link.clone()) else { return };
        if link.cut || self.random.per_mille(link.loss) {
            return;
        }
        let arrive = Rc::new(arrive);
        let times = if self.random.per_mille(link.twice) { 2 } else { 1 };
        for _ in 0..times {
            let late = self.random.per_mille(link.late);
            let delay = if late { self.random.between(S, 25 * S) } else { self.random.between(300, 15 * MS) };
            let arrive = arrive.clone();
            self.after(delay, move |w| {
                let through = !w.edges[edge].link.cut && w.servers[0].up && w.servers[edge + 1].up;
                if through {
                    arrive(w);
                }
            });
        }
    }
}

type Then<R> = Box<dyn FnOnce(&mut World, Option<R>)>;

/// Whoever waits for an answer from across the link. The first answer counts, or the end of the wait.
pub struct Asker<R> {
    /// Which node asks.
    pub edge: usize,
    then: Rc<RefCell<Option<Then<R>>>>,
}

impl<R> Clone for Asker<R> {
    fn clone(&self) -> Self {
        Self { edge: self.edge, then: self.then.clone() }
    }
}

impl<R: Clone + 'static> Asker<R> {
    /// Asks: `at_hub` happens there as often as the question arrives; `then` once, with no answer after `wait_us`.
    pub fn ask(
        w: &mut World,
        edge: usize,
        wait_us: u64,
        at_hub: impl Fn(&mut World, &Asker<R>) + 'static,
        then: impl FnOnce(&mut World, Option<R>) + 'static,
    ) {
        let this = Self { edge, then: Rc::new(RefCell::new(Some(Box::new(then)))) };
        let late = this.clone();
        w.after(wait_us, move |w| late.end(w, None));
        if w.servers[edge + 1].up {
            w.cross(edge, move |w| at_hub(w, &this));
        }
    }

    /// Answers, across the link.
    pub fn answer(&self, w: &mut World, answer: R) {
        let this = self.clone();
        w.cross(self.edge, move |w| this.end(w, Some(answer.clone())));
    }

    fn end(&self, w: &mut World, answer: Option<R>) {
        let then = self.then.borrow_mut().take();
        if let Some(then) = then {
            then(w, answer);
        }
    }

    /// Does nobody wait any more?
    pub fn is_over(&self) -> bool {
        self.then.borrow().is_none()
    }
}
