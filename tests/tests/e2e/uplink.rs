//! The uplink serves the urgent first, and a lane keeps to its cap.

use bus::module::Account;
use schemas::subject::STREAM_FROM;
use tests::cluster::{Cluster, Edge, eventually};

use crate::support::{agent_serves, inside, padding};

const MESSAGES: usize = 100;
const MESSAGE_BYTES: usize = 1_000;
const SLOW_KBIT_S: u64 = 128;
/// The cap, in bytes each second.
const CAP_BYTES_PER_S: usize = 5_000;
/// A capped lane that rested may send so many seconds' worth at once, and is not counted from before its first batch.
const CAP_WINDOW_S: usize = 2 * 2;

/// Has the node's server take so many messages on each of these subjects.
async fn queue(edge: &Edge, subjects: &'static [&'static str]) -> anyhow::Result<()> {
    let operator = edge.operator()?;
    inside(edge, async move || {
        let js = operator.js(Account::Work).await?;
        for n in 0..MESSAGES {
            for subject in subjects {
                js.publish(*subject, padding(n as u64, MESSAGE_BYTES).into()).await?.await?;
            }
        }
        Ok(())
    })
    .await
}

/// When the hub stored what came on the subject.
async fn arrived(cluster: &Cluster, subject: &str) -> anyhow::Result<Vec<i64>> {
    let stored = cluster.stored(Account::Control, STREAM_FROM, subject).await?;
    Ok(stored.iter().map(|stored| stored.at_ms).collect())
}

async fn all(cluster: &Cluster, subject: &str) -> anyhow::Result<Vec<i64>> {
    eventually(&format!("all of {subject} are at the hub"), 90, async || {
        Ok(Some(arrived(cluster, subject).await?).filter(|at| at.len() == MESSAGES))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_pass_telemetry_and_a_cap_is_kept() -> anyhow::Result<()> {
    let cluster = Cluster::new("uplink").await?;
    cluster.up(&["edge-a"]).await?;
    let edge = cluster.edge("edge-a")?;

    edge.throttle(SLOW_KBIT_S).await?;
    edge.cut()?;
    queue(&edge, &["bulk.default.t", "up.default.t"]).await?;
    edge.heal()?;
    let messages = all(&cluster, "from.edge-a.default.t").await?;
    let telemetry = all(&cluster, "from-bulk.edge-a.default.t").await?;
    // Side by side the two would end together.
    let last = messages.iter().max().copied().unwrap_or_default();
    let passed = telemetry.iter().filter(|at| **at <= last).count();
    anyhow::ensure!(passed <= MESSAGES / 2, "{passed} of {MESSAGES} came before the last message");

    edge.throttle(0).await?;
    edge.stop_agent().await?;
    edge.set_env("EDGEWIRE_UPLINK_CAP", &format!("workload={}", CAP_BYTES_PER_S * 8));
    edge.start().await?;
    agent_serves(&edge).await?;
    queue(&edge, &["up.default.capped"]).await?;
    let at = all(&cluster, "from.edge-a.default.capped").await?;
    let took_ms = at.iter().max().zip(at.iter().min()).map_or(0, |(last, first)| last - first);
    let least_s = MESSAGES * MESSAGE_BYTES / CAP_BYTES_PER_S - CAP_WINDOW_S;
    anyhow::ensure!(took_ms >= least_s as i64 * 1000, "all in {took_ms} ms, in no less than {least_s} s");
    cluster.done().await
}
