//! The hub of a cluster: the real `cloud-hub`, run as a child on the cluster's own address.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anyhow::Context;
use bus::server::child::{Files, Record};
use nix::sys::signal::Signal;
use tokio::process::Command;
use tokio::sync::Mutex;

use super::disk::Disk;
use super::eventually::eventually;
use super::judge;
use super::process::{Which, signal};
use super::programs::{self, Version};
use super::site::{MARK_ENV, Site};

/// The hub serves after at most so long.
const START_SECONDS: u64 = 60;
/// A hub that was told to stop may take so long.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

/// The hub.
pub struct Hub {
    site: Arc<Site>,
    child: Mutex<Option<Child>>,
    disk: Mutex<Option<Disk>>,
    version: std::sync::Mutex<Version>,
    flags: std::sync::Mutex<Vec<String>>,
}

/// A child of ours, known by its pid until it was waited for.
pub(super) type Child = tokio::process::Child;

impl Hub {
    pub(super) fn new(site: Arc<Site>) -> Self {
        Self {
            site,
            child: Mutex::default(),
            disk: Mutex::default(),
            version: Default::default(),
            flags: std::sync::Mutex::default(),
        }
    }

    /// Which version it is of, at the latest from its next start on.
    pub fn version(&self) -> Version {
        *self.version.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next start is of that version.
    pub fn set_version(&self, version: Version) {
        *self.version.lock().unwrap_or_else(PoisonError::into_inner) = version;
    }

    /// Its data directory: keys, objects and streams.
    pub fn data_dir(&self) -> PathBuf {
        self.site.member_dir("hub")
    }

    /// Further flags of `cloud-hub`, from its next start on.
    pub fn set_flags(&self, flags: &[&str]) {
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        *self.flags.lock().unwrap_or_else(PoisonError::into_inner) = flags;
    }

    /// Starts it and waits until its API answers.
    pub async fn start(&self) -> anyhow::Result<()> {
        {
            let mut child = self.child.lock().await;
            anyhow::ensure!(child.is_none(), "the hub runs already");
            *child = Some(self.spawn()?);
        }
        eventually("the hub's API answers", START_SECONDS, async || {
            self.still_runs().await?;
            judge::kubectl(&self.site, &["get", "namespaces"]).await?.ok().map(|_| true)
        })
        .await
    }

    fn spawn(&self) -> anyhow::Result<Child> {
        let (address, ports) = (self.site.hub_address(), self.site.ports);
        let version = self.version();
        let mut command = Command::new(version.program("cloud-hub"));
        command.arg("--data-dir").arg(self.data_dir());
        command.arg("--kubeconfig").arg(&self.site.kubeconfig);
        for (flag, port) in
            [("--api-listen", ports.api), ("--bus-listen", ports.bus), ("--leaf-listen", ports.leaf)]
        {
            command.arg(flag).arg(format!("{address}:{port}"));
        }
        // By the environment, which a version that does not know it passes over.
        command.env("EDGEWIRE_HUB_REST_LISTEN", format!("{address}:{}", ports.rest));
        command.arg("--advertise").arg(address.to_string());
        command.args(self.flags.lock().unwrap_or_else(PoisonError::into_inner).iter());
        spawn(command, &self.site, "hub")
    }

    async fn still_runs(&self) -> anyhow::Result<()> {
        let mut child = self.child.lock().await;
        let ended = child.as_mut().and_then(|child| child.try_wait().ok().flatten());
        anyhow::ensure!(ended.is_none(), "the hub ended; see {}", self.site.dir.join("hub.log").display());
        Ok(())
    }

    /// Kills the hub and its server at once, as a power cut would.
    pub async fn kill9(&self) -> anyhow::Result<()> {
        let child = self.child.lock().await.take();
        Which { mark: &self.site.mark("hub"), dir: &self.data_dir() }.kill9()?;
        reap(child).await
    }

    /// Gives the hub a disk of its own, of which [`power_cut`](Self::power_cut) keeps what was synced. Before its first
    /// start.
    pub async fn on_disk(&self) -> anyhow::Result<()> {
        *self.disk.lock().await = Some(Disk::make(&self.site.disk_image("hub"), &self.data_dir())?);
        Ok(())
    }

    /// The power fails: every process of the hub gone, and of its data directory only what had reached the disk is left.
    /// Needs [`on_disk`](Self::on_disk).
    pub async fn power_cut(&self) -> anyhow::Result<()> {
        let mut disk = self.disk.lock().await;
        let disk = disk.as_mut().context("the hub has no disk of its own")?;
        // The server first: what it acknowledges it has acknowledged before the power fails.
        self.server()?.signal(Signal::SIGSTOP);
        Which { mark: &self.site.mark("hub"), dir: &self.data_dir() }.stop();
        disk.cut()?;
        self.kill9().await?;
        disk.reopen()
    }

    /// Its `nats-server`, which must run.
    pub fn server(&self) -> anyhow::Result<Record> {
        let files = Files { dir: self.data_dir().join("nats"), name: "nats-server" };
        Record::find(&files).context("the hub has no nats-server that runs")
    }

    /// Kills its `nats-server` alone; the hub's process, if it runs, starts it again.
    pub async fn kill9_server(&self) -> anyhow::Result<()> {
        let record = self.server()?;
        record.signal(Signal::SIGKILL);
        record.gone().await;
        Ok(())
    }

    /// The pid of the hub's process, while it is started.
    pub async fn pid(&self) -> Option<u32> {
        self.child.lock().await.as_ref().and_then(Child::id)
    }

    /// Kills only the process of the hub; its server runs on, and is adopted at the next start.
    pub async fn kill9_process(&self) -> anyhow::Result<()> {
        kill_child(self.child.lock().await.take()).await
    }

    /// Asks it to stop, and waits until it and its server have.
    pub async fn stop(&self) -> anyhow::Result<()> {
        let Some(child) = self.child.lock().await.take() else { return Ok(()) };
        stop_child(child, STOP_TIMEOUT).await.context("the hub")
    }

    /// [`stop`](Self::stop), then [`start`](Self::start).
    pub async fn restart(&self) -> anyhow::Result<()> {
        self.stop().await?;
        self.start().await
    }

    /// Loses everything that the hub stored, as a hub restored without a backup; keys and certificates are kept. The hub
    /// must be stopped.
    pub async fn wipe_store(&self) -> anyhow::Result<()> {
        anyhow::ensure!(self.child.lock().await.is_none(), "stop the hub first");
        let store = self.data_dir().join("nats/jetstream");
        std::fs::remove_dir_all(&store).with_context(|| format!("cannot remove {}", store.display()))
    }

    /// Loses all that the hub has, keys too: what `edgewire hub restore` is for. The hub must be stopped or killed.
    pub async fn destroy(&self) -> anyhow::Result<()> {
        anyhow::ensure!(self.child.lock().await.is_none(), "stop the hub first");
        let dir = self.data_dir();
        std::fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))
    }

    /// `edgewire hub` with these arguments, on this hub's directory: `backup` and `restore`.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(programs::ours("edgewire"));
        command.arg("hub").args(args).arg("--data-dir").arg(self.data_dir());
        // Not the hub itself: it lives on when that is killed.
        surroundings(&mut command, &self.site, "tool");
        command.kill_on_drop(true);
        command
    }

    /// A join token that may be used `uses` times, for `ttl_s` seconds.
    pub async fn token(&self, uses: u32, ttl_s: u64) -> anyhow::Result<String> {
        let body = serde_json::json!({"uses": uses, "ttl_s": ttl_s}).to_string();
        let args = ["create", "--raw", "/edgewire/v1/tokens", "-f", "-"];
        let answer = judge::kubectl_with(&self.site, &args, &body).await?.ok()?;
        let answer: serde_json::Value =
            serde_json::from_str(&answer).context("the hub's answer is not JSON")?;
        answer.get("token").and_then(|t| t.as_str()).map(str::to_owned).context("the answer holds no token")
    }
}

/// Starts a program of a member in the background, its words appended to `<member>.log`. It leads a process group of its
/// own, so that Ctrl-C at our terminal is not its end.
pub(super) fn spawn(mut command: Command, site: &Site, member: &str) -> anyhow::Result<Child> {
    let path = site.dir.join(format!("{member}.log"));
    let log = std::fs::OpenOptions::new().create(true).append(true).open(&path);
    let log = log.with_context(|| format!("cannot write {}", path.display()))?;
    let program = command.as_std().get_program().to_owned();
    surroundings(&mut command, site, member);
    command.stdin(std::process::Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
    command.spawn().with_context(|| format!("cannot run {}", program.to_string_lossy()))
}

/// The environment of a member's programs: the mark, the pinned nats-server, nothing of the caller's Edgewire settings, nor
/// of a proxy that the caller may have.
pub(super) fn surroundings(command: &mut Command, site: &Site, member: &str) {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if (text.starts_with("EDGEWIRE_") || text.to_ascii_uppercase().ends_with("_PROXY"))
            && name != "EDGEWIRE_LOG"
        {
            command.env_remove(name);
        }
    }
    command.env(MARK_ENV, site.mark(member));
    command.env("EDGEWIRE_NATS_SERVER", programs::nats_server());
    command.env("PATH", programs::path());
}

pub(super) async fn reap(child: Option<Child>) -> anyhow::Result<()> {
    if let Some(mut child) = child {
        child.wait().await?;
    }
    Ok(())
}

pub(super) async fn kill_child(child: Option<Child>) -> anyhow::Result<()> {
    if let Some(mut child) = child {
        child.kill().await?;
    }
    Ok(())
}

pub(super) async fn stop_child(mut child: Child, timeout: Duration) -> anyhow::Result<()> {
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        signal(pid, Signal::SIGTERM);
    }
    match tokio::time::timeout(timeout, child.wait()).await {
        Ok(status) => {
            let status = status?;
            anyhow::ensure!(status.success(), "ended with {status} when told to stop");
            Ok(())
        }
        Err(_) => {
            child.kill().await?;
            anyhow::bail!("did not stop within {} s", timeout.as_secs())
        }
    }
}
