//! The hub's process: its modules, the epoch it begins with, and the backups that it may be restored from.

use bus::flow::Flow;
use bus::module::{Input, Never};
use events::Events;
use nodes::Nodes;
use placement::Placement;
use scheduler::Scheduler;
use schemas::desired::Lineage;
use schemas::subject;
use sync::downlink::hub::Downlinks;
use sync::hub::{Act, Links};

use super::checks::Ledger;
use super::jetstream::{ConsumerConfig, Server};
use super::planted::Planted;
use super::runner::{self, Hosted, Runner};
use super::server::{self, HUB};
use super::world::{MS, World};

/// Modules of the hub.
pub const MODULES: u64 = 6;

/// The hub's process.
#[derive(Default)]
pub struct Hub {
    /// Is it running?
    pub up: bool,
    boot: String,
    nodes: Runner<Nodes>,
    scheduler: Runner<Scheduler>,
    placement: Runner<Placement>,
    links: Runner<Links>,
    downlinks: Runner<Downlinks>,
    events: Runner<Events>,
    /// What may be restored.
    pub backup: Option<(Server, Ledger)>,
}

impl Hub {
    /// Do all of its modules run, with nothing waiting?
    pub fn is_idle(&self) -> bool {
        self.up && self.nodes.is_idle() && self.scheduler.is_idle() && self.placement.is_idle()
    }
}

/// Starts the process: an epoch is begun before any module writes.
pub fn start(w: &mut World) {
    if w.hub.up {
        return;
    }
    if !w.servers[HUB].up {
        w.after(300 * MS, start);
        return;
    }
    w.hub.up = true;
    w.hub.boot = w.random.uid();
    begin_epoch(w);
    w.tell(|| "hub starts".to_owned());
    for module in 0..MODULES {
        start_module(w, module);
    }
}

/// As `sync::hub::begin_epoch` does it on the real store.
fn begin_epoch(w: &mut World) {
    let (epoch, generation) = (w.random.uid(), w.random.uid());
    let Some(stream) = w.servers[HUB].server.stream(&subject::bucket_stream(subject::BUCKET_DESIRED)) else {
        return;
    };
    let lineage = stream.get(&subject::kv(subject::BUCKET_DESIRED, subject::KEY_LINEAGE));
    let lineage = lineage.and_then(|stored| schemas::decode::<Lineage>(&stored.payload).ok());
    let mut lineage = lineage.unwrap_or_else(|| Lineage::new(generation));
    lineage.begin(epoch, stream.last_sequence());
    let value = schemas::encode(&lineage);
    let expect = bus::module::Expect::Any;
    let _ = server::write(w, HUB, subject::BUCKET_DESIRED, subject::KEY_LINEAGE, &value, expect, false);
}

/// Kills the process.
pub fn stop(w: &mut World) {
    if !w.hub.up {
        return;
    }
    w.hub.up = false;
    runner::stop::<Nodes>(w, 0);
    runner::stop::<Scheduler>(w, 0);
    runner::stop::<Placement>(w, 0);
    runner::stop::<Links>(w, 0);
    runner::stop::<Downlinks>(w, 0);
    runner::stop::<Events>(w, 0);
}

fn start_module(w: &mut World, module: u64) {
    match module {
        0 => runner::start::<Nodes>(w, 0),
        1 => runner::start::<Scheduler>(w, 0),
        2 => runner::start::<Placement>(w, 0),
        3 => runner::start::<Events>(w, 0),
        4 => runner::start::<Downlinks>(w, 0),
        _ => runner::start::<Links>(w, 0),
    }
}

/// One module fails and is started again.
pub fn restart_module(w: &mut World, module: u64) {
    if !w.hub.up {
        return;
    }
    match module {
        0 => runner::restart::<Nodes>(w, 0),
        1 => runner::restart::<Scheduler>(w, 0),
        2 => runner::restart::<Placement>(w, 0),
        3 => runner::restart::<Events>(w, 0),
        4 => runner::restart::<Downlinks>(w, 0),
        _ => runner::restart::<Links>(w, 0),
    }
}

/// Takes a backup of the hub's store.
pub fn back_up(w: &mut World) {
    w.hub.backup = Some((w.servers[HUB].server.clone(), w.checks.ledger.clone()));
    w.tell(|| "backup taken".to_owned());
}

/// The hub's store is replaced by its backup, or by nothing. The hub must be down.
pub fn replace_store(w: &mut World, by_backup: bool) {
    let backup = w.hub.backup.clone().filter(|_| by_backup);
    w.tell(|| {
        format!("hub's store is {}", if backup.is_some() { "restored from a backup" } else { "emptied" })
    });
    let (server, ledger) = backup.unwrap_or_default();
    w.servers[HUB].server = server;
    if w.random.per_mille(500) {
        lose_consumers(w);
    }
    w.checks.replaced_store(ledger);
    super::downlink::replaced_store(w);
    super::users::look_again(w);
}

/// The consumers through which nodes pull are gone: `links` makes them again, and they begin with all that is there.
pub fn lose_consumers(w: &mut World) {
    let names: Vec<String> = w.edges.iter().map(|edge| subject::desired_consumer(&edge.name)).collect();
    if let Some(stream) = w.servers[HUB].server.stream_mut(&subject::bucket_stream(subject::BUCKET_DESIRED)) {
        names.iter().for_each(|name| stream.remove_consumer(name));
    }
    w.tell(|| "the nodes' consumers are lost".to_owned());
}

impl Hosted for Nodes {
    const NAME: &'static str = "nodes";
    fn runner(w: &mut World, _: usize) -> &mut Runner<Self> {
        &mut w.hub.nodes
    }
    fn server(_: usize) -> usize {
        HUB
    }
    fn flows(_: &World, _: usize) -> Vec<Flow> {
        nodes::flows()
    }
    fn build(w: &mut World, _: usize) -> Self {
        let seed = w.random.uid();
        Nodes::new(w.hub.boot.clone(), seed)
    }
    fn is_hosted(w: &World, _: usize) -> bool {
        w.hub.up
    }
    fn act(_: &mut World, _: usize, _: u64, act: Never) {
        match act {}
    }
}

impl Hosted for Scheduler {
    const NAME: &'static str = "scheduler";
    fn runner(w: &mut World, _: usize) -> &mut Runner<Self> {
        &mut w.hub.scheduler
    }
    fn server(_: usize) -> usize {
        HUB
    }
    fn flows(_: &World, _: usize) -> Vec<Flow> {
        scheduler::flows()
    }
    fn build(w: &mut World, _: usize) -> Self {
        Scheduler::new(w.random.uid())
    }
    fn is_hosted(w: &World, _: usize) -> bool {
        w.hub.up
    }
    fn act(_: &mut World, _: usize, _: u64, act: Never) {
        match act {}
    }
}

impl Hosted for Placement {
    const NAME: &'static str = "placement";
    fn runner(w: &mut World, _: usize) -> &mut Runner<Self> {
        &mut w.hub.placement
    }
    fn server(_: usize) -> usize {
        HUB
    }
    fn flows(_: &World, _: usize) -> Vec<Flow> {
        placement::flows()
    }
    fn build(_: &mut World, _: usize) -> Self {
        Placement::new()
    }
    fn is_hosted(w: &World, _: usize) -> bool {
        w.hub.up
    }
    fn act(_: &mut World, _: usize, _: u64, act: Never) {
        match act {}
    }
    fn planted(w: &mut World, _: usize, input: Input<Never>) -> Vec<Input<Never>> {
        match (w.planted, input) {
            (Some(Planted::MissingUidCheck), Input::Delivery(delivery)) => {
                vec![Input::Delivery(super::planted::of_the_present_uid(w, delivery))]
            }
            (Some(Planted::StoreIgnored), Input::Delivery(delivery)) => {
                vec![Input::Delivery(super::planted::of_any_store(delivery))]
            }
            (_, input) => vec![input],
        }
    }
}

impl Hosted for Events {
    const NAME: &'static str = "events";
    fn runner(w: &mut World, _: usize) -> &mut Runner<Self> {
        &mut w.hub.events
    }
    fn server(_: usize) -> usize {
        HUB
    }
    fn flows(_: &World, _: usize) -> Vec<Flow> {
        events::flows()
    }
    fn build(w: &mut World, _: usize) -> Self {
        Events::new(w.random.uid())
    }
    fn is_hosted(w: &World, _: usize) -> bool {
        w.hub.up
    }
    fn act(_: &mut World, _: usize, _: u64, act: Never) {
        match act {}
    }
}

impl Hosted for Downlinks {
    const NAME: &'static str = "downlink";
    fn runner(w: &mut World, _: usize) -> &mut Runner<Self> {
        &mut w.hub.downlinks
    }
    fn server(_: usize) -> usize {
        HUB
    }
    fn flows(_: &World, _: usize) -> Vec<Flow> {
        sync::downlink::hub::flows()
    }
    fn build(_: &mut World, _: usize) -> Self {
        Downlinks::default()
    }
    fn is_hosted(w: &World, _: usize) -> bool {
        w.hub.up
    }
    fn act(w: &mut World, _: usize, incarnation: u64, act: sync::downlink::hub::Act) {
        super::downlink::act_at_hub(w, incarnation, act);
    }
}

impl Hosted for Links {
    const NAME: &'static str = "links";
    fn runner(w: &mut World, _: usize) -> &mut Runner<Self> {
        &mut w.hub.links
    }
    fn server(_: usize) -> usize {
        HUB
    }
    fn flows(_: &World, _: usize) -> Vec<Flow> {
        sync::hub::flows()
    }
    fn build(_: &mut World, _: usize) -> Self {
        Links::default()
    }
    fn is_hosted(w: &World, _: usize) -> bool {
        w.hub.up
    }
    fn act(w: &mut World, _: usize, _: u64, act: Act) {
        let delay = w.near_us();
        w.after(delay, move |w| match act {
            _ if !w.servers[HUB].up => {}
            Act::Ensure(node) => {
                let config = ConsumerConfig {
                    filter: subject::kv(subject::BUCKET_DESIRED, &subject::desired_filter(&node)),
                    last_per_subject: true,
                    ack_wait_ms: 30_000,
                    pending_max: 1_000,
                };
                let stream = subject::bucket_stream(subject::BUCKET_DESIRED);
                if let Some(stream) = w.servers[HUB].server.stream_mut(&stream) {
                    stream.ensure_consumer(&subject::desired_consumer(&node), config);
                }
            }
            Act::Trim => {
                let readers = [
                    ("nodes", subject::raised_reports("sync", "node")),
                    ("placement", subject::raised_reports("containers", "pod")),
                    ("events", subject::raised_events()),
                ];
                if let Some(stream) = w.servers[HUB].server.stream_mut(subject::STREAM_UP) {
                    for (durable, filter) in readers {
                        let taken = stream.ack_floor(durable);
                        stream.purge(&filter, taken);
                    }
                }
            }
        });
    }
}
