//! The fault suite: every fault on every part, under load, on real servers; and what must hold after each.
//!
//! A [`Pair`] is a [`Fault`] and a [`Victim`]. [`run`] builds a cluster of its own, puts it under [`load`] (durable messages,
//! pods that come and go, ConfigMap edits), does the fault, ends it, and [`check`]s: every acknowledged message at the hub
//! once and in order, desired equals actual, unchanged pods untouched, every module running. [`table`] keeps the results
//! in docs/reliability.md.
//!
//! Which pairs there are and what a link's fault has to do with a victim: [`pair`]. `make faults` runs all of them.

pub mod check;
pub mod fault;
pub mod load;
pub mod pair;
pub mod table;
pub mod victim;

use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::sync::watch;

use crate::cluster::readings::acked_more;
use crate::cluster::{Cluster, Edge, eventually};
use check::{Standing, settled};
pub use fault::Fault;
use load::Load;
pub use pair::Pair;
pub use victim::Victim;

/// The node that everything happens to.
const NODE: &str = "edge-a";
/// After a fault, everything is right again within this.
const RECOVERY_SECONDS: u64 = 60;
/// Readings before the fault.
const WARM_READINGS: usize = 60;
/// Steps of the load before the fault.
const WARM_STEPS: u64 = 3;

/// What a pair showed.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// From the end of the fault until everything was right again.
    pub recovery: Duration,
    /// Messages at the hub, each once and in order.
    pub messages: usize,
}

/// Does one pair from the first start to the last look.
pub async fn run(pair: Pair) -> anyhow::Result<Outcome> {
    let cluster = Cluster::new(&pair.to_string()).await?;
    let outcome = Box::pin(perform(&cluster, pair)).await.with_context(|| format!("{pair}"));
    if outcome.is_err() {
        tell(&cluster).await;
    }
    let outcome = outcome?;
    cluster.done().await?;
    println!(
        "{pair}: right again after {:.1} s, {} messages each once and in order",
        outcome.recovery.as_secs_f64(),
        outcome.messages
    );
    Ok(outcome)
}

/// What hub and node say of themselves after a failure.
async fn tell(cluster: &Cluster) {
    for args in [&["get", "pods", "-A", "-o", "wide"][..], &["get", "events", "-A"]] {
        let said = cluster.kubectl_ok(args).await.unwrap_or_else(|error| format!("{error:#}"));
        eprintln!("──── kubectl {} ────\n{said}", args.join(" "));
    }
    match cluster.edge(NODE).and_then(|edge| edge.running()) {
        Ok(running) => eprintln!("──── ctr ────\n{running:#?}"),
        Err(error) => eprintln!("──── ctr ────\n{error:#}"),
    }
}

async fn perform(cluster: &Cluster, pair: Pair) -> anyhow::Result<Outcome> {
    let edge = cluster.edge(NODE)?;
    if pair.fault == Fault::PowerLoss {
        match pair.victim.is_of_the_hub() {
            true => cluster.hub().on_disk().await?,
            false => edge.on_disk()?,
        }
    }
    cluster.up(&[NODE]).await?;
    let standing = Standing::begin(cluster, &edge).await?;
    let load = Load::default();
    let (stop, stopped) = watch::channel(false);
    let fault = async {
        let end = Box::pin(fault(cluster, &edge, pair, &load)).await;
        let _ = stop.send(true); // the load may have ended
        end
    };
    let (end, ()) = tokio::join!(fault, load.run(cluster, stopped));
    let end = end?;
    settled(cluster, &edge, &load).await?;
    let recovery = end.elapsed();
    standing.still(&edge, pair.loses_the_nodes_power())?;
    let messages = check::messages(cluster, &edge).await?;
    check::life_goes_on(cluster, &edge).await?;
    standing.still(&edge, pair.loses_the_nodes_power())?;
    Ok(Outcome { recovery, messages })
}

/// The fault, in the midst of the load, until messages and edits go both ways again. Gives when it ended.
async fn fault(cluster: &Cluster, edge: &Edge, pair: Pair, load: &Load) -> anyhow::Result<Instant> {
    acked_more(edge, WARM_READINGS).await?;
    eventually("the load is under way", RECOVERY_SECONDS, async || Ok(load.steps() >= WARM_STEPS)).await?;
    pair.inflict(cluster, edge).await?;
    let end = Instant::now();
    pair.end(cluster, edge).await?;
    println!("{pair}\n  the fault is over after {:.1} s", end.elapsed().as_secs_f64());
    check::both_ways(cluster, edge, load).await?;
    Ok(end)
}
