//! A node: its runtime's process with `sync` and `containers`, its leaf server, its link, and a containerd that is
//! nothing but a table. Containers survive the agent and containerd; a reboot ends them all.

use std::collections::{BTreeMap, BTreeSet};

use bus::flow::Flow;
use bus::module::Input;
use containers::Containers;
use containers::effects::{Act, Done, Listing, StartError, Started};
use containers::runtime::container::{ContainerState, Exit, FoundContainer, container_id};
use schemas::name::NodeName;
use schemas::report::NodeReport;
use sync::edge::Sync;

use super::jetstream::Server;
use super::link::WaitingRead;
use super::planted::{self, Notes};
use super::runner::{self, Hosted, Runner};
use super::server;
use super::world::{Link, MS, S, World};

/// Address of every pod.
const POD_IP: &str = "10.1.0.2";

/// A node.
pub struct Edge {
    /// Its name.
    pub name: NodeName,
    /// Is its runtime's process running?
    pub up: bool,
    boot: String,
    /// Its link to the hub.
    pub link: Link,
    /// Reads of its streams that wait.
    pub reads: Vec<WaitingRead>,
    /// Its containerd.
    pub containerd: Containerd,
    /// What a planted bug remembers.
    pub notes: Notes,
    sync: Runner<Sync>,
    containers: Runner<Containers>,
}

/// A node's containerd.
#[derive(Default)]
pub struct Containerd {
    /// Does it answer?
    pub up: bool,
    /// How often it ended: what it was asked for before gets no answer.
    deaths: u32,
    /// What it has, by ID.
    pub containers: BTreeMap<String, FoundContainer>,
    sandboxes: BTreeSet<String>,
}

impl Edge {
    /// A node that was never started.
    pub fn new(name: NodeName) -> Self {
        Self {
            name,
            up: false,
            boot: String::new(),
            link: Link::default(),
            reads: Vec::new(),
            containerd: Containerd { up: true, ..Containerd::default() },
            notes: Notes::default(),
            sync: Runner::default(),
            containers: Runner::default(),
        }
    }

    /// Does it follow the hub, with nothing missing and nothing waiting?
    pub fn is_settled(&self) -> bool {
        self.sync.module.as_ref().is_some_and(Sync::is_settled)
            && self.sync.is_idle()
            && self.containers.module.is_some()
            && self.containers.is_idle()
    }

    /// UIDs of the pods that run.
    pub fn running(&self) -> BTreeSet<String> {
        let running = self.containerd.containers.values().filter(|c| c.state == ContainerState::Running);
        running.map(|container| container.pod_uid.clone()).collect()
    }

    /// What `sync`'s rim reads from the machine.
    pub fn inspect(&self) -> NodeReport {
        let resources: BTreeMap<String, String> =
            [("cpu", "4"), ("memory", "4Gi"), ("pods", "20")].map(|(k, v)| (k.into(), v.into())).into();
        NodeReport {
            node: self.name.to_string(),
            boot_id: self.boot.clone(),
            sequence: 0,
            node_info: serde_json::json!({"kernelVersion": "sim"}),
            capacity: resources.clone(),
            allocatable: resources,
            addresses: Vec::new(),
            labels: BTreeMap::new(),
            conditions: BTreeMap::new(),
        }
    }
}

/// Starts the process.
pub fn start(w: &mut World, edge: usize) {
    if w.edges[edge].up {
        return;
    }
    w.edges[edge].up = true;
    w.edges[edge].boot = w.random.uid();
    runner::start::<Sync>(w, edge);
    runner::start::<Containers>(w, edge);
}

/// Kills the process.
pub fn stop(w: &mut World, edge: usize) {
    w.edges[edge].up = false;
    runner::stop::<Sync>(w, edge);
    runner::stop::<Containers>(w, edge);
}

/// The whole machine goes down: processes, server, containers.
pub fn power_off(w: &mut World, edge: usize) {
    w.tell(|| format!("node {edge} loses power"));
    stop(w, edge);
    server::lose_power(w, edge + 1);
    for container in w.edges[edge].containerd.containers.values_mut() {
        container.state = ContainerState::Lost;
    }
    w.checks.rebooted(edge);
}

/// Everything that the node has on disk is gone, but for containerd's.
pub fn lose_disk(w: &mut World, edge: usize, pause: u64) {
    w.tell(|| format!("node {edge} loses its disk"));
    stop(w, edge);
    server::stop(w, edge + 1);
    w.servers[edge + 1].server = Server::default();
    w.edges[edge].sync = Runner::default();
    w.edges[edge].containers = Runner::default();
    w.checks.lost_disk(edge);
    super::checks::lost_local(w, edge);
    w.after(pause, move |w| power_on(w, edge));
}

/// The machine is back.
pub fn power_on(w: &mut World, edge: usize) {
    server::start(w, edge + 1);
    start(w, edge);
}

/// containerd ends or comes; containers run on.
pub fn containerd(w: &mut World, edge: usize, up: bool) {
    w.edges[edge].containerd.up = up;
    w.edges[edge].containerd.deaths += u32::from(!up);
    let incarnation = w.edges[edge].containers.incarnation;
    let told = if up { Done::RuntimeBack } else { Done::RuntimeAway("killed".to_owned()) };
    w.after(50 * MS, move |w| runner::done::<Containers>(w, edge, incarnation, told));
}

/// A container ends by itself.
pub fn crash_container(w: &mut World, edge: usize) {
    let ids: Vec<String> = w.edges[edge]
        .containerd
        .containers
        .values()
        .filter(|container| container.state == ContainerState::Running)
        .map(|container| container.id.clone())
        .collect();
    let Some(id) = w.random.pick(&ids).cloned() else { return };
    w.tell(|| format!("container {id:.8} on node {edge} ends by itself"));
    let exit = exit(w, edge, 1);
    end(w, edge, &id, exit);
    let incarnation = w.edges[edge].containers.incarnation;
    if w.edges[edge].containerd.up {
        let delay = w.near_us();
        w.after(delay, move |w| runner::done::<Containers>(w, edge, incarnation, Done::Exited { id }));
    }
}

/// One module fails and is started again by its host.
pub fn restart_module(w: &mut World, edge: usize, sync: bool) {
    if !w.edges[edge].up {
        return;
    }
    if sync {
        runner::restart::<Sync>(w, edge);
    } else {
        runner::restart::<Containers>(w, edge);
    }
}

fn exit(w: &World, edge: usize, code: i32) -> Exit {
    Exit { code, oom_killed: false, finished_at: w.now(edge + 1) }
}

fn end(w: &mut World, edge: usize, id: &str, exit: Exit) {
    let Some(container) = w.edges[edge].containerd.containers.get_mut(id) else { return };
    container.state = ContainerState::Exited(exit);
    let (uid, name) = (container.pod_uid.clone(), container.container.clone());
    w.checks.ended(edge, &uid, &name);
}

impl Hosted for Sync {
    const NAME: &'static str = "sync";
    fn runner(w: &mut World, edge: usize) -> &mut Runner<Self> {
        &mut w.edges[edge].sync
    }
    fn server(edge: usize) -> usize {
        edge + 1
    }
    fn flows(w: &World, edge: usize) -> Vec<Flow> {
        sync::edge::flows(&w.edges[edge].name)
    }
    fn build(w: &mut World, edge: usize) -> Self {
        Sync::new(w.edges[edge].name.clone(), w.edges[edge].boot.clone(), Vec::new())
    }
    fn is_hosted(w: &World, edge: usize) -> bool {
        w.edges[edge].up
    }
    fn act(w: &mut World, edge: usize, incarnation: u64, act: sync::edge::Act) {
        super::link::act(w, edge, incarnation, act);
    }
    fn planted(w: &mut World, edge: usize, input: Input<sync::edge::Done>) -> Vec<Input<sync::edge::Done>> {
        vec![planted::of_sync(w, edge, input)]
    }
}

impl Hosted for Containers {
    const NAME: &'static str = "containers";
    fn runner(w: &mut World, edge: usize) -> &mut Runner<Self> {
        &mut w.edges[edge].containers
    }
    fn server(edge: usize) -> usize {
        edge + 1
    }
    fn flows(w: &World, edge: usize) -> Vec<Flow> {
        containers::flows(&w.edges[edge].name)
    }
    fn build(w: &mut World, edge: usize) -> Self {
        if w.edges[edge].containerd.up {
            w.after(5 * MS, move |w| {
                let incarnation = w.edges[edge].containers.incarnation;
                runner::done::<Self>(w, edge, incarnation, Done::RuntimeBack);
            });
        }
        let store = format!("store-{}", w.unique());
        Containers::new(w.edges[edge].name.clone(), store)
    }
    fn is_hosted(w: &World, edge: usize) -> bool {
        w.edges[edge].up
    }
    fn act(w: &mut World, edge: usize, incarnation: u64, act: Act) {
        let delay = match &act {
            Act::Start(_) => w.random.between(20 * MS, 800 * MS),
            Act::Stop(_) | Act::Replace { .. } => w.random.between(20 * MS, 3 * S),
            _ => w.near_us() * 4,
        };
        let finished = w.random.per_mille(500);
        let deaths = w.edges[edge].containerd.deaths;
        w.after(delay, move |w| {
            let died = w.edges[edge].containerd.deaths != deaths;
            // An agent that died meanwhile may have got so far, or not.
            let alive = w.edges[edge].containers.incarnation == incarnation;
            if !alive && !finished {
                return;
            }
            let done = match act {
                Act::Start(start) if died => Some(cut_short(w, edge, &start)),
                act => carry_out(w, edge, act),
            };
            if let Some(done) = done {
                let delay = w.near_us();
                w.after(delay, move |w| runner::done::<Self>(w, edge, incarnation, done));
            }
        });
    }
    fn planted(w: &mut World, edge: usize, input: Input<Done>) -> Vec<Input<Done>> {
        planted::of_containers(w, edge, input)
    }
}

fn carry_out(w: &mut World, edge: usize, act: Act) -> Option<Done> {
    let up = w.edges[edge].containerd.up;
    let away = || "containerd is away".to_owned();
    match act {
        Act::List(asked) => {
            let containerd = &w.edges[edge].containerd;
            let listing = Listing {
                containers: containerd.containers.values().cloned().collect(),
                sandboxes: containerd.sandboxes.iter().cloned().collect(),
                host_ip: "10.0.0.1".to_owned(),
            };
            Some(Done::Listed { asked, result: if up { Ok(listing) } else { Err(away()) } })
        }
        Act::Start(start) => {
            let uid = start.pod.metadata.uid.clone().unwrap_or_default();
            let container = start.container.clone();
            let result = if up {
                Ok(start_container(w, edge, &uid, &start))
            } else {
                Err(StartError { reason: "Away".to_owned(), message: away(), away: true })
            };
            Some(Done::Started { uid, container, result })
        }
        Act::Reap { uid, id } => {
            let found = w.edges[edge].containerd.containers.get(&id).map(|container| container.state);
            let exit = match found {
                Some(ContainerState::Exited(exit)) => Some(exit),
                _ => None,
            };
            Some(Done::Reaped { uid, id, result: if up { Ok(exit) } else { Err(away()) } })
        }
        Act::Replace { uid, id, .. } => {
            if !up {
                return Some(Done::Reaped { uid, id, result: Err(away()) });
            }
            w.checks.replaced(edge, &uid);
            let exit = stop_container(w, edge, &id);
            Some(Done::Reaped { uid, id, result: Ok(exit) })
        }
        Act::Stop(stop) => {
            let uid = stop.uid;
            if !up {
                return Some(Done::Stopped { uid, result: Err(away()) });
            }
            w.tell(|| format!("pod {uid:.8} on node {edge} is stopped"));
            super::checks::stopped(w, edge, &uid);
            let containerd = &w.edges[edge].containerd;
            let ours = containerd.containers.values().filter(|container| container.pod_uid == uid);
            let ids: Vec<String> = ours.map(|container| container.id.clone()).collect();
            let mut exits = BTreeMap::new();
            for id in ids {
                exits.extend(stop_container(w, edge, &id).map(|exit| (id.clone(), exit)));
                w.edges[edge].containerd.containers.remove(&id);
            }
            w.edges[edge].containerd.sandboxes.remove(&uid);
            Some(Done::Stopped { uid, result: Ok(exits) })
        }
        Act::Volumes { pod, referenced } => {
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            w.checks.files(edge, &uid, referenced.config_maps);
            Some(Done::VolumesWritten { uid, result: Ok(()) })
        }
        Act::Logs(_) | Act::Exec(_) => None,
    }
}

fn stop_container(w: &mut World, edge: usize, id: &str) -> Option<Exit> {
    let state = w.edges[edge].containerd.containers.get(id)?.state;
    match state {
        ContainerState::Running => {
            let exit = exit(w, edge, 143);
            end(w, edge, id, exit);
            Some(exit)
        }
        ContainerState::Exited(exit) => Some(exit),
        _ => None,
    }
}

/// containerd ended while it started a container: it did so all the same, or its record alone is left, or nothing.
fn cut_short(w: &mut World, edge: usize, start: &containers::effects::Start) -> Done {
    let uid = start.pod.metadata.uid.clone().unwrap_or_default();
    let container = start.container.clone();
    let id = container_id(&uid, &container, start.attempt);
    if w.random.per_mille(666) && !w.edges[edge].containerd.containers.contains_key(&id) {
        start_container(w, edge, &uid, start);
        if w.random.per_mille(500) {
            w.checks.ended(edge, &uid, &container);
            w.edges[edge]
                .containerd
                .containers
                .entry(id)
                .and_modify(|left| left.state = ContainerState::Lost);
        }
    }
    let error = StartError { reason: "Away".to_owned(), message: "transport error".to_owned(), away: true };
    Done::Started { uid, container, result: Err(error) }
}

fn start_container(w: &mut World, edge: usize, uid: &str, start: &containers::effects::Start) -> Started {
    let id = container_id(uid, &start.container, start.attempt);
    let now = w.now(edge + 1);
    let started =
        |since| Started { ip: POD_IP.to_owned(), image: "sim".into(), image_id: "sha".into(), since };
    // As the runtime does: what has run already under that ID, perhaps for an incarnation that fell, is left as it is.
    if let Some(there) = w.edges[edge].containerd.containers.get(&id)
        && matches!(there.state, ContainerState::Running | ContainerState::Exited(_))
    {
        return started(there.started_at);
    }
    w.tell(|| {
        format!("pod {uid:.8} on node {edge}: attempt {} of {} starts", start.attempt, start.container)
    });
    w.checks.started(edge, uid, &start.container, start.attempt);
    w.checks.files(edge, uid, start.referenced.config_maps.clone());
    let containerd = &mut w.edges[edge].containerd;
    if let Some(before) = start.attempt.checked_sub(1) {
        containerd.containers.remove(&container_id(uid, &start.container, before));
    }
    containerd.sandboxes.insert(uid.to_owned());
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    containerd.containers.insert(
        id.clone(),
        FoundContainer {
            id,
            pod_uid: uid.to_owned(),
            pod_ip: POD_IP.to_owned(),
            namespace: text(&start.pod.metadata.namespace),
            pod: text(&start.pod.metadata.name),
            container: start.container.clone(),
            attempt: start.attempt,
            spec_hash: start.spec_hash.clone(),
            image: "sim".to_owned(),
            image_id: "sha".to_owned(),
            log_path: std::path::PathBuf::new(),
            started_at: now,
            state: ContainerState::Running,
        },
    );
    started(now)
}
