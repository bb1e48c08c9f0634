//! A node of a cluster: the real `edge-runtime` in a network namespace of its own, with every way of hurting it.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anyhow::Context;
use bus::server::child::{Files, Record};
use nix::sys::signal::Signal;
use tokio::process::Command;
use tokio::sync::Mutex;

use super::disk::Disk;
use super::eventually;
use super::hub::{self, Child, Hub};
use super::judge::{self, Running};
use super::ledger::{Traces, unmount};
use super::network;
use super::process::{Which, signal};
use super::programs::{self, Version};
use super::proxy::Proxy;
use super::site::Site;

/// Joining may take so long.
const JOIN_TIMEOUT: Duration = Duration::from_secs(60);
/// An agent that was told to stop may take so long.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// Connections that shall be made anew meet a reset within so long: a link says something every 5 s.
const RESET_SECONDS: u64 = 30;
/// What Linux calls an established connection in `/proc/<pid>/net/tcp`.
const ESTABLISHED: &str = "01";

/// A node.
pub struct Edge {
    site: Arc<Site>,
    name: String,
    n: usize,
    flags: Vec<String>,
    env: std::sync::Mutex<Vec<(String, String)>>,
    child: Mutex<Option<Child>>,
    disk: std::sync::Mutex<Option<Disk>>,
    proxy: std::sync::Mutex<Option<Proxy>>,
    version: std::sync::Mutex<Version>,
}

impl Edge {
    /// Makes the node's namespace and link.
    pub(super) fn new(site: Arc<Site>, name: &str, n: usize, flags: &[&str]) -> anyhow::Result<Self> {
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let this = Self {
            site,
            name: name.to_owned(),
            n,
            flags,
            env: std::sync::Mutex::default(),
            child: Mutex::default(),
            disk: std::sync::Mutex::default(),
            proxy: std::sync::Mutex::default(),
            version: std::sync::Mutex::default(),
        };
        let dir = this.data_dir();
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        network::make_edge(&this.site, n, &this.namespace())?;
        Ok(this)
    }

    /// The next start is of that version, and so is joining.
    pub fn set_version(&self, version: Version) {
        *self.version.lock().unwrap_or_else(PoisonError::into_inner) = version;
    }

    fn runtime(&self) -> PathBuf {
        self.version.lock().unwrap_or_else(PoisonError::into_inner).program("edge-runtime")
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address on the link.
    pub fn address(&self) -> String {
        self.site.edge_address(self.n).to_string()
    }

    /// Its data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.site.member_dir(&self.name)
    }

    /// The file that pins its network namespace.
    pub fn namespace(&self) -> PathBuf {
        self.site.dir.join(format!("{}.net", self.name))
    }

    /// What its agent says.
    pub fn log(&self) -> PathBuf {
        self.site.dir.join(format!("{}.log", self.name))
    }

    /// A directory of the machine for hostPath volumes of this node's pods; removed with the cluster.
    pub fn host_dir(&self, name: &str) -> PathBuf {
        self.site.dir.join(format!("{}.host", self.name)).join(name)
    }

    /// Enrols it at the hub with a fresh token.
    pub async fn join(&self, hub: &Hub) -> anyhow::Result<()> {
        let token = hub.token(1, 600).await?;
        let output = self.join_with(&token).await?;
        output.ok().map(drop)
    }

    /// Enrols it with that token; gives what `edge-runtime join` says.
    pub async fn join_with(&self, token: &str) -> anyhow::Result<judge::Output> {
        self.join_as(token, &["--name", &self.name]).await
    }

    /// Enrols it with that token and these flags.
    pub async fn join_as(&self, token: &str, flags: &[&str]) -> anyhow::Result<judge::Output> {
        let mut command = self.inside();
        command.arg(self.runtime()).args(["join", token]).args(flags);
        command.arg("--data-dir").arg(self.data_dir());
        hub::surroundings(&mut command, &self.site, &self.name);
        judge::run(command, "", JOIN_TIMEOUT).await
    }

    /// Starts the agent. It is on its way when this returns: wait for what you need, such as [`Edge::running`].
    pub async fn start(&self) -> anyhow::Result<()> {
        let mut child = self.child.lock().await;
        anyhow::ensure!(child.is_none(), "{} runs already", self.name);
        let mut command = self.inside();
        command.arg(self.runtime()).arg("--data-dir").arg(self.data_dir());
        command.args(["--pod-cidr", &format!("10.85.{}.0/24", self.n + 1)]);
        command.args(["--address", &self.site.edge_address(self.n).to_string()]);
        command.arg("--images").arg(programs::images()).args(&self.flags);
        *child = Some(hub::spawn(command, &self.site, &self.name)?);
        Ok(())
    }

    fn inside(&self) -> Command {
        // `nsenter`, because `ip netns exec` hides /sys/fs/cgroup. It becomes the program: the child's pid is the agent's.
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.namespace().display())).arg("--");
        command.envs(self.env.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned());
        command
    }

    /// A variable in the environment of the node's programs that are started from now on.
    pub fn set_env(&self, name: &str, value: &str) {
        let entry = (name.to_owned(), value.to_owned());
        self.env.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
    }

    /// Did the agent end by itself?
    pub async fn has_ended(&self) -> bool {
        self.child.lock().await.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(Some(_))))
    }

    /// The agent's pid, while it is started.
    pub async fn agent_pid(&self) -> Option<u32> {
        self.child.lock().await.as_ref().and_then(Child::id)
    }

    /// Asks the agent to stop, and waits until it has. Its server, containerd and the pods run on.
    pub async fn stop_agent(&self) -> anyhow::Result<()> {
        let Some(child) = self.child.lock().await.take() else { return Ok(()) };
        hub::stop_child(child, STOP_TIMEOUT).await.with_context(|| self.name.clone())
    }

    /// Kills the agent alone.
    pub async fn kill9_agent(&self) -> anyhow::Result<()> {
        hub::kill_child(self.child.lock().await.take()).await
    }

    /// The node's `nats-server`, which must run.
    pub fn leaf(&self) -> anyhow::Result<Record> {
        self.recorded("nats", "nats-server")
    }

    /// The node's containerd, which must run.
    pub fn containerd(&self) -> anyhow::Result<Record> {
        self.recorded("containerd", "containerd")
    }

    fn recorded(&self, dir: &str, name: &'static str) -> anyhow::Result<Record> {
        let files = Files { dir: self.data_dir().join(dir), name };
        Record::find(&files).with_context(|| format!("{}: no {name} runs", self.name))
    }

    /// Kills the node's `nats-server` alone; the agent, if it runs, starts it again.
    pub async fn kill9_leaf(&self) -> anyhow::Result<()> {
        let record = self.leaf()?;
        record.signal(Signal::SIGKILL);
        record.gone().await;
        Ok(())
    }

    /// The process of the node's `nats-server`.
    pub fn server_pid(&self) -> anyhow::Result<i32> {
        let files = Files { dir: self.data_dir().join("nats"), name: "nats-server" };
        Ok(Record::find(&files).with_context(|| format!("{}: no nats-server runs", self.name))?.pid)
    }

    /// Kills the node's containerd alone; the agent, if it runs, starts it again.
    pub async fn kill9_containerd(&self) -> anyhow::Result<()> {
        let record = self.containerd()?;
        record.signal(Signal::SIGKILL);
        record.gone().await;
        Ok(())
    }

    /// Kills agent, server and containerd at once; shims and containers run on.
    pub async fn kill9_all(&self) -> anyhow::Result<()> {
        let child = self.child.lock().await.take();
        for (dir, name) in [("nats", "nats-server"), ("containerd", "containerd")] {
            if let Some(record) = Record::find(&Files { dir: self.data_dir().join(dir), name }) {
                record.signal(Signal::SIGKILL);
            }
        }
        hub::kill_child(child).await?;
        for (dir, name) in [("nats", "nats-server"), ("containerd", "containerd")] {
            if let Some(record) = Record::find(&Files { dir: self.data_dir().join(dir), name }) {
                record.signal(Signal::SIGKILL);
                record.gone().await;
            }
        }
        Ok(())
    }

    /// Gives the node a disk of its own, of which [`power_cut`](Self::power_cut) keeps what was synced. Before it joins.
    pub fn on_disk(&self) -> anyhow::Result<()> {
        let disk = Disk::make(&self.site.disk_image(&self.name), &self.data_dir())?;
        *self.disk.lock().unwrap_or_else(PoisonError::into_inner) = Some(disk);
        Ok(())
    }

    /// The power fails: as [`reboot`](Self::reboot), but of the data directory only what had reached the disk is left.
    /// Needs [`on_disk`](Self::on_disk).
    pub async fn power_cut(&self) -> anyhow::Result<()> {
        let traces = Traces::of(&self.data_dir());
        // The server first: what it acknowledges it has acknowledged before the power fails.
        self.leaf()?.signal(Signal::SIGSTOP);
        Which { mark: &self.site.mark(&self.name), dir: &self.data_dir() }.stop();
        let disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut disk = disk.with_context(|| format!("{} has no disk of its own", self.name))?;
        disk.cut()?;
        self.lose_processes(traces).await?;
        disk.reopen()?;
        *self.disk.lock().unwrap_or_else(PoisonError::into_inner) = Some(disk);
        Ok(())
    }

    /// Every process of the node is gone at once, containers too, with their mounts, interfaces, cgroups and sockets. The
    /// disk is kept, with what was not yet synced. Then [`Edge::start`] is the boot.
    pub async fn reboot(&self) -> anyhow::Result<()> {
        self.lose_processes(Traces::of(&self.data_dir())).await
    }

    async fn lose_processes(&self, traces: Traces) -> anyhow::Result<()> {
        let child = self.child.lock().await.take();
        Which { mark: &self.site.mark(&self.name), dir: &self.data_dir() }.kill9()?;
        hub::reap(child).await?;
        unmount(&self.data_dir())?;
        traces.remove();
        network::reset_edge(&self.namespace())
    }

    /// Drops every packet between the node and the hub, in silence.
    pub fn cut(&self) -> anyhow::Result<()> {
        self.set("cut", true)
    }

    /// Drops every packet from the node to the hub, in silence; the other way is open.
    pub fn cut_up(&self) -> anyhow::Result<()> {
        self.set("cut_up", true)
    }

    /// Drops every packet from the hub to the node, in silence; the other way is open.
    pub fn cut_down(&self) -> anyhow::Result<()> {
        self.set("cut_down", true)
    }

    /// Ends [`cut`](Self::cut), the one-way cuts and [`polite_cut`](Self::polite_cut).
    pub fn heal(&self) -> anyhow::Result<()> {
        ["cut", "cut_up", "cut_down", "broken"].iter().try_for_each(|set| self.set(set, false))
    }

    /// Answers everything between the node and the hub with a TCP reset, so that both sides know at once.
    pub fn polite_cut(&self) -> anyhow::Result<()> {
        self.set("broken", true)
    }

    /// Drops what goes to these ports of the hub, in silence, as a firewall does; the others are open. None: all are.
    pub fn shut(&self, ports: &[u16]) -> anyhow::Result<()> {
        network::shut(&self.site, &self.namespace(), ports)
    }

    fn set(&self, set: &str, member: bool) -> anyhow::Result<()> {
        network::set(&self.site.table(), set, &self.site.edge_address(self.n).to_string(), member)
    }

    /// Lets the node's link carry so many kbit/s each way, by a proxy of ours; 0 is no bound. Connections are made anew
    /// when the proxy comes into their way at the first call; later calls change the pace alone.
    pub async fn throttle(&self, kbit_s: u64) -> anyhow::Result<()> {
        self.slow(kbit_s, Duration::ZERO).await
    }

    /// As [`throttle`](Self::throttle), and every byte is on its way for `delay`, each way.
    pub async fn slow(&self, kbit_s: u64, delay: Duration) -> anyhow::Result<()> {
        if let Some(proxy) = self.proxy.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            proxy.pace(kbit_s);
            proxy.delay(delay);
            return Ok(());
        }
        let hub = (self.site.hub_address(), self.site.ports.leaf).into();
        let proxy = Proxy::start(hub, kbit_s).await?;
        proxy.delay(delay);
        network::divert(&self.site, &self.namespace(), Some(proxy.port()))?;
        *self.proxy.lock().unwrap_or_else(PoisonError::into_inner) = Some(proxy);
        self.polite_cut()?;
        let reset = eventually("the links past the proxy are reset", RESET_SECONDS, async || {
            Ok(!self.is_connected_to(self.site.ports.leaf))
        });
        let reset = reset.await;
        self.heal()?;
        reset
    }

    /// Does the node hold a connection to this port, whoever's? Not when no server runs there.
    fn is_connected_to(&self, port: u16) -> bool {
        let port = format!(":{port:04X}");
        let table =
            self.server_pid().and_then(|pid| Ok(std::fs::read_to_string(format!("/proc/{pid}/net/tcp"))?));
        table.unwrap_or_default().lines().any(|line| {
            let mut fields = line.split_whitespace().skip(2);
            let (remote, state) = (fields.next().unwrap_or_default(), fields.next());
            remote.ends_with(&port) && state == Some(ESTABLISHED)
        })
    }

    /// How many connections of the node the proxy has taken since [`throttle`](Self::throttle); two is one link (one for
    /// each account).
    pub fn connections(&self) -> u64 {
        self.proxy.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map_or(0, Proxy::connections)
    }

    /// The containers that run on the node, as `ctr` tells. No agent is asked.
    pub fn running(&self) -> anyhow::Result<Vec<Running>> {
        judge::running(&self.data_dir().join("containerd/containerd.sock"))
    }

    /// The running container of a pod, if there is exactly one.
    pub fn container_of(&self, namespace: &str, pod: &str) -> anyhow::Result<Option<Running>> {
        let all = self.running()?.into_iter();
        let mut of_pod = all.filter(|running| running.namespace == namespace && running.pod == pod);
        let first = of_pod.next();
        Ok(first.filter(|_| of_pod.next().is_none()))
    }

    /// `ctr` on the node's containerd.
    pub fn ctr(&self, args: &[&str]) -> anyhow::Result<String> {
        judge::ctr(&self.data_dir().join("containerd/containerd.sock"), args)
    }

    /// Runs a program in the node's network namespace and gives what it says.
    pub fn exec(&self, args: &[&str]) -> anyhow::Result<String> {
        network::inside(&self.namespace(), args)
    }

    /// Sends a signal to a process of the node, such as a container's.
    pub fn signal(&self, pid: i32, kind: Signal) -> anyhow::Result<()> {
        let ours = Which { mark: &self.site.mark(&self.name), dir: &self.data_dir() }.find();
        anyhow::ensure!(ours.contains(&pid), "process {pid} is not of {}", self.name);
        signal(pid, kind);
        Ok(())
    }
}

/// Does that work in the node's network namespace, on a thread of its own.
pub async fn inside<T: Send + 'static>(
    edge: &Edge,
    work: impl AsyncFnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let (namespace, (done, result)) = (edge.namespace(), tokio::sync::oneshot::channel());
    std::thread::spawn(move || {
        let run = || {
            nix::sched::setns(std::fs::File::open(&namespace)?, nix::sched::CloneFlags::CLONE_NEWNET)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(work())
        };
        let _ = done.send(run()); // nobody waits when the test was given up
    });
    result.await.context("the thread in the node's namespace ended")?
}
