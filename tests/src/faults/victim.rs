//! The parts that a fault is done to: stopped, killed, started again.

use anyhow::Context;
use nix::sys::signal::Signal;

use crate::cluster::process::signal;
use crate::cluster::{Cluster, Edge};

/// A part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Victim {
    /// No process: the fault is the link's alone.
    Nobody,
    /// The hub's `nats-server`.
    HubServer,
    /// `cloud-hub`.
    HubProcess,
    /// The node's `nats-server`.
    LeafServer,
    /// `edge-runtime`.
    EdgeProcess,
    /// The node's containerd.
    Containerd,
}

/// A process that runs.
pub struct Process(i32);

impl Process {
    /// SIGSTOP.
    pub fn stop(&self) {
        signal(self.0, Signal::SIGSTOP);
    }

    /// SIGCONT.
    pub fn go_on(&self) {
        signal(self.0, Signal::SIGCONT);
    }
}

impl Victim {
    /// All of them, in the order of the table.
    pub const ALL: [Self; 6] = [
        Self::Nobody,
        Self::HubServer,
        Self::HubProcess,
        Self::LeafServer,
        Self::EdgeProcess,
        Self::Containerd,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nobody => "link",
            Self::HubServer => "hub-server",
            Self::HubProcess => "hub-process",
            Self::LeafServer => "leaf-server",
            Self::EdgeProcess => "edge-process",
            Self::Containerd => "containerd",
        }
    }

    /// Does it stand on the hub's machine?
    pub fn is_of_the_hub(self) -> bool {
        matches!(self, Self::HubServer | Self::HubProcess)
    }

    /// Has it a supervisor of ours? The two processes have the machine's (systemd), whose place the test takes.
    pub fn comes_back_by_itself(self) -> bool {
        !matches!(self, Self::HubProcess | Self::EdgeProcess)
    }

    /// Its process, which must run.
    pub async fn process(self, cluster: &Cluster, edge: &Edge) -> anyhow::Result<Process> {
        let pid = match self {
            Self::Nobody => None,
            Self::HubServer => Some(cluster.hub().server()?.pid),
            Self::LeafServer => Some(edge.leaf()?.pid),
            Self::Containerd => Some(edge.containerd()?.pid),
            Self::HubProcess => cluster.hub().pid().await.and_then(|pid| i32::try_from(pid).ok()),
            Self::EdgeProcess => edge.agent_pid().await.and_then(|pid| i32::try_from(pid).ok()),
        };
        Ok(Process(pid.with_context(|| format!("no process of {} runs", self.name()))?))
    }

    /// kill -9; gone on return.
    pub async fn kill(self, cluster: &Cluster, edge: &Edge) -> anyhow::Result<()> {
        match self {
            Self::Nobody => Ok(()),
            Self::HubServer => cluster.hub().kill9_server().await,
            Self::HubProcess => cluster.hub().kill9_process().await,
            Self::LeafServer => edge.kill9_leaf().await,
            Self::EdgeProcess => edge.kill9_agent().await,
            Self::Containerd => edge.kill9_containerd().await,
        }
    }

    /// Starts it again, unless it comes back by itself.
    pub async fn start(self, cluster: &Cluster, edge: &Edge) -> anyhow::Result<()> {
        match self {
            Self::HubProcess => cluster.hub().start().await,
            Self::EdgeProcess => edge.start().await,
            _ => Ok(()),
        }
    }
}
