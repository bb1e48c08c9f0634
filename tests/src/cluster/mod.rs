//! A whole Edgewire on this machine, for tests and the demo: a real hub, real nodes each in a network namespace of its
//! own, and links between them that can be cut, reset and slowed down.
//!
//! ```no_run
//! # async fn test() -> anyhow::Result<()> {
//! use tests::cluster::{Cluster, eventually};
//! let cluster = Cluster::new("my-test").await?;      // temp dir, bridge, nft table: all named by an id of its own
//! cluster.up(&["edge-a"]).await?;                    // hub and node run, node is Ready
//! cluster.apply("{apiVersion: v1, kind: Pod, ...}").await?;
//! let edge = cluster.edge("edge-a")?;
//! eventually("the pod runs", 20, async || Ok(edge.running()?.len() == 1)).await?;
//! edge.cut()?;                                       // packets dropped in silence
//! edge.reboot().await?;                                  // as after a power cut: only the disk is left
//! edge.start().await?;
//! edge.heal()?;
//! cluster.done().await                               // without it, the end of the logs is printed
//! # }
//! ```
//!
//! * [`site`] names, addresses and directories; [`ledger`] what was made, so that all of it can be removed later, also
//!   by another process; [`process`] finding and killing exactly what belongs to a site; [`network`] bridge and cuts
//! * [`hub`], [`edge`] the parts; [`proxy`] the slow link; [`gateway`] a site's HTTP proxy; [`disk`] the power cut; [`pods`], [`readings`] what runs
//! * [`judge`] outside views: `kubectl`, `ctr`, raw streams; [`operator`] who has a node: its own server
//!
//! Everything is removed on drop. What a killed test left is removed by the next [`Cluster::new`].

pub mod disk;
pub mod edge;
pub mod eventually;
pub mod gateway;
pub mod hub;
pub mod judge;
pub mod ledger;
pub mod network;
pub mod operator;
pub mod paho;
pub mod pods;
pub mod process;
pub mod programs;
pub mod proxy;
pub mod readings;
pub mod site;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;

pub use edge::{Edge, inside};
pub use eventually::eventually;
pub use gateway::Gateway;
pub use hub::Hub;
pub use judge::{Output, Running, Stored};
pub use operator::Operator;
use site::Site;

/// Of each log, so much is printed when a test fails.
const LOG_TAIL_LINES: usize = 60;
/// Set to anything: what failed stays up for a look, until the next test begins.
const KEEP_ENV: &str = "EDGEWIRE_KEEP";
/// A node is Ready after at most so long.
const READY_SECONDS: u64 = 60;

/// Where a cluster stands; [`Options::default`] is right for tests.
#[derive(Debug, Default)]
pub struct Options {
    /// Ledger, kubeconfig, and unless its path is too long data and logs go here [default: `/tmp/ew-<id>`].
    pub home: Option<PathBuf>,
}

/// A hub and its nodes. See the module's example.
pub struct Cluster {
    site: Arc<Site>,
    hub: Hub,
    edges: Mutex<BTreeMap<String, Arc<Edge>>>,
    passed: bool,
}

impl Cluster {
    /// A cluster of its own for the test `name` (it only stands in messages and the ledger). Nothing runs yet.
    pub async fn new(name: &str) -> anyhow::Result<Self> {
        Self::with(name, Options::default()).await
    }

    /// The same at a given place.
    pub async fn with(name: &str, options: Options) -> anyhow::Result<Self> {
        ledger::sweep_temporary();
        programs::check()?;
        let site = Arc::new(Site::allocate(name, options)?);
        // From here on, drop removes what was made.
        let hub = Hub::new(site.clone());
        let this = Self { site, hub, edges: Mutex::default(), passed: false };
        network::make(&this.site)?;
        Ok(this)
    }

    /// Names, addresses, directories.
    pub fn site(&self) -> &Arc<Site> {
        &self.site
    }

    /// The hub.
    pub fn hub(&self) -> &Hub {
        &self.hub
    }

    /// The node `name`; its network namespace is made at the first call.
    pub fn edge(&self, name: &str) -> anyhow::Result<Arc<Edge>> {
        self.edge_with(name, &[])
    }

    /// The node `name`, run with further flags of `edge-runtime` (those of the first call count).
    pub fn edge_with(&self, name: &str, flags: &[&str]) -> anyhow::Result<Arc<Edge>> {
        let mut edges = self.edges.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(edge) = edges.get(name) {
            return Ok(edge.clone());
        }
        let edge = Arc::new(Edge::new(self.site.clone(), name, edges.len(), flags)?);
        edges.insert(name.to_owned(), edge.clone());
        Ok(edge)
    }

    /// Starts the hub, then joins and starts the nodes, and waits until all are Ready.
    pub async fn up(&self, edges: &[&str]) -> anyhow::Result<()> {
        self.hub.start().await?;
        for name in edges {
            let edge = self.edge(name)?;
            edge.join(&self.hub).await?;
            edge.start().await?;
        }
        for name in edges {
            self.ready(name, "True").await?;
        }
        Ok(())
    }

    /// Waits until the hub says of the node's Ready condition: `True`, `False` or `Unknown`.
    pub async fn ready(&self, node: &str, status: &str) -> anyhow::Result<()> {
        eventually(&format!("node {node} is Ready={status}"), READY_SECONDS, async || {
            Ok(self.node_ready(node).await? == status)
        })
        .await
    }

    /// The status of the node's Ready condition; empty when there is none.
    pub async fn node_ready(&self, node: &str) -> anyhow::Result<String> {
        let path = r#"jsonpath={.status.conditions[?(@.type=="Ready")].status}"#;
        self.kubectl_ok(&["get", "node", node, "-o", path]).await
    }

    /// The test passed: everything is removed, and an error in doing so is told.
    pub async fn done(mut self) -> anyhow::Result<()> {
        self.passed = true;
        let site = self.site.clone();
        drop(self);
        anyhow::ensure!(!site.ledger().exists(), "the cluster's ledger is still there");
        Ok(())
    }

    /// Removes everything now; [`Drop`] does the same.
    fn remove(&self) {
        if !self.passed {
            self.print_logs();
            if std::env::var_os(KEEP_ENV).is_some() {
                eprintln!("kept for a look: {}", self.site.dir.display());
                return;
            }
        }
        if let Err(error) = ledger::Ledger::read(&self.site.ledger()).and_then(|ledger| ledger.clean()) {
            eprintln!("cluster {}: cannot remove everything: {error:#}", self.site.id);
        }
    }

    /// Prints the end of every log.
    pub fn print_logs(&self) {
        for (path, tail) in self.logs(LOG_TAIL_LINES) {
            eprintln!("──── {} ────\n{tail}", path.display());
        }
    }

    /// The last lines of every log.
    pub fn logs(&self, lines: usize) -> Vec<(PathBuf, String)> {
        let mut paths = vec![self.site.dir.join("hub.log"), self.site.dir.join("hub/nats/nats-server.log")];
        for edge in self.edges.lock().unwrap_or_else(PoisonError::into_inner).values() {
            paths.push(edge.log());
            paths.push(edge.data_dir().join("nats/nats-server.log"));
            paths.push(edge.data_dir().join("containerd/containerd.log"));
        }
        let tail = |path: PathBuf| {
            let text = String::from_utf8_lossy(&std::fs::read(&path).ok()?).into_owned();
            let all: Vec<&str> = text.lines().collect();
            let from = all.len().saturating_sub(lines);
            Some((path, all.get(from..)?.join("\n")))
        };
        paths.into_iter().filter_map(tail).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Runs a program to its end; its words are the error.
pub fn command(program: &str, args: &[&str]) -> anyhow::Result<String> {
    let output = std::process::Command::new(program)
        .args(args)
        .env("PATH", programs::path())
        .stdin(std::process::Stdio::null())
        .output()
        .with_context(|| format!("the program `{program}` cannot be run; see `make setup`"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "`{program} {}` failed: {}", args.join(" "), said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
