//! The demo: a hub and two nodes on this machine, an outage performed before your eyes, and the figures measured.
//!
//! * [`outage`] what is performed; [`tally`] counting what arrived against the sender's own list; [`screen`] what is
//!   shown at the end; [`snapshot`] is the machine as it was?
//!
//! All of it stands in one directory (`.demo`), whose ledger lets `demo clean` remove everything, also after a kill -9.

pub mod outage;
pub mod screen;
pub mod snapshot;
pub mod tally;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::Signal;

use crate::cluster::ledger::Ledger;
use crate::cluster::process::signal;
use crate::cluster::{Cluster, Options, network, programs};
use snapshot::Snapshot;

/// Another place for the demo's directory.
pub const DIR_ENV: &str = "EDGEWIRE_DEMO_DIR";
/// A running demo that is told to stop may take so long.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
/// Between two looks whether it has.
const POLL: Duration = Duration::from_millis(50);

/// The demo's directory.
pub fn home() -> PathBuf {
    std::env::var_os(DIR_ENV).map_or_else(|| programs::root().join(".demo"), PathBuf::from)
}

/// Performs the demo. With `once` it ends when the screen is as promised and nothing is left on the machine; else the
/// cluster stays up until `stop`.
pub async fn run(once: bool, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
    let home = home();
    if let Ok(ledger) = Ledger::read(&home.join("ledger")) {
        if ledger.owner_lives() {
            bail!(
                "EW-DEMO-RUNNING: a demo runs already (process {}); end it with Ctrl-C there, or with `make clean-demo`",
                ledger.owner.pid
            );
        }
        screen::progress("clean", "a former demo was killed; removing what it left");
        ledger.clean().context("EW-DEMO-CLEAN: what a former demo left cannot be removed")?;
    }
    let before = Snapshot::take()?;
    let cluster = Cluster::with("demo", Options { home: Some(home.clone()) }).await?;
    let id = cluster.site().id.clone();
    tokio::pin!(stop);
    let outcome = tokio::select! {
        outcome = perform(&cluster) => Some(outcome),
        () = &mut stop => None,
    };
    let stopped = outcome.is_none();
    let passed = match outcome {
        Some(Ok(figures)) => {
            println!("{}", figures.show());
            figures.check()
        }
        Some(Err(error)) => Err(error),
        None if once => Err(anyhow::anyhow!("EW-DEMO-STOPPED: the demo was stopped before it was done")),
        None => Ok(()),
    };
    if passed.is_ok() && !once && !stopped {
        println!("{}", screen::invitation(&home));
        stop.await;
    }
    screen::progress("end", "removing everything");
    match &passed {
        Err(_) if !stopped => drop(cluster), // prints the logs
        _ => cluster.done().await?,
    }
    passed?;
    let left = Snapshot::take()?.beyond(&before, &id);
    anyhow::ensure!(
        left.is_empty(),
        "EW-DEMO-LEFT: the demo left this on the machine:\n  {}",
        left.join("\n  ")
    );
    screen::progress("end", "the machine is as it was before");
    Ok(())
}

async fn perform(cluster: &Cluster) -> anyhow::Result<screen::Figures> {
    let nodes = outage::NODES.iter().map(|name| Ok((*name, cluster.edge(name)?.address())));
    let nodes: BTreeMap<&str, String> = nodes.collect::<anyhow::Result<_>>()?;
    let file = home().join("nodes.json");
    std::fs::write(&file, serde_json::to_vec(&nodes)?)
        .with_context(|| format!("cannot write {}", file.display()))?;
    outage::perform(cluster).await
}

/// Cuts a node of a running demo off, or heals it.
pub fn link(node: &str, cut: bool) -> anyhow::Result<()> {
    let home = home();
    let ledger = Ledger::read(&home.join("ledger")).ok().filter(Ledger::owner_lives);
    let ledger = ledger.context("EW-DEMO-NONE: no demo runs; start one with `make demo`")?;
    let nodes = std::fs::read(home.join("nodes.json"))
        .context("EW-DEMO-EARLY: the demo has no nodes yet; wait a little")?;
    let nodes: BTreeMap<String, String> = serde_json::from_slice(&nodes)?;
    let names = || nodes.keys().cloned().collect::<Vec<_>>().join(", ");
    let address =
        nodes.get(node).with_context(|| format!("EW-DEMO-NODE: no node {node:?}; there are {}", names()))?;
    network::set(&ledger.table, "cut", address, cut)?;
    match cut {
        true => {
            println!("{node} is cut off; see `kubectl get nodes -w`, and heal it: make demo-heal NODE={node}")
        }
        false => println!("{node} has its link back"),
    }
    Ok(())
}

/// Ends a running demo, and removes what any demo left.
pub fn clean() -> anyhow::Result<()> {
    let home = home();
    let path = home.join("ledger");
    let Ok(ledger) = Ledger::read(&path) else {
        return match home.exists() {
            // Made, but nothing beyond it: the ledger comes first.
            true => {
                std::fs::remove_dir_all(&home).with_context(|| format!("cannot remove {}", home.display()))
            }
            false => {
                println!("no demo is here");
                Ok(())
            }
        };
    };
    if ledger.owner_lives() {
        end(&ledger);
    }
    if Path::new(&path).exists() {
        ledger.clean().context("EW-DEMO-CLEAN: not everything could be removed; try again")?;
    }
    println!("the demo is removed");
    Ok(())
}

/// Asks the demo's process to end, and kills it when it does not.
fn end(ledger: &Ledger) {
    signal(ledger.owner.pid, Signal::SIGTERM);
    let deadline = Instant::now() + STOP_TIMEOUT;
    while ledger.owner_lives() && Instant::now() < deadline {
        std::thread::sleep(POLL);
    }
    ledger.owner.signal(Signal::SIGKILL);
}
