//! Durable messages of a workload: queued in the node's UPLINK, found at the hub; and the peer that they are measured
//! against, bare atomic batches by a raw client on the same leaf link.

use std::time::{Duration, Instant};

use anyhow::Context;
use async_nats::HeaderMap;
use async_nats::jetstream;
use bus::module::Account;
use futures::{StreamExt, TryStreamExt};
use serde_json::Value;
use tests::cluster::{Cluster, Edge, inside};

use crate::until;

/// Messages that wait.
pub const MESSAGES: u64 = 10_000;
/// Body of each.
pub const MESSAGE_BYTES: usize = 256;
/// Acknowledgements that are waited for beside each other.
const IN_FLIGHT: usize = 512;
/// How often the hub is asked for the last message: seldom enough to take nothing from what is measured.
const LOOK: Duration = Duration::from_millis(100);

fn body(n: u64) -> Vec<u8> {
    format!("{n:0width$}", width = MESSAGE_BYTES).into_bytes()
}

fn number(payload: &[u8]) -> Option<u64> {
    std::str::from_utf8(payload).ok()?.parse().ok()
}

/// Puts all messages of `run` into the node's UPLINK, each acknowledged. Gives how long it took.
pub async fn queue(edge: &Edge, run: &str) -> anyhow::Result<Duration> {
    let (operator, subject) = (edge.operator()?, format!("up.bench.{run}"));
    inside(edge, async move || {
        let begun = Instant::now();
        let js = operator.js(Account::Work).await?;
        futures::stream::iter((1..=MESSAGES).map(Ok))
            .try_for_each_concurrent(IN_FLIGHT, |n| {
                let (js, subject) = (js.clone(), subject.clone());
                async move {
                    js.publish(subject, body(n).into()).await?.await?;
                    anyhow::Ok(())
                }
            })
            .await?;
        Ok(begun.elapsed())
    })
    .await
}

/// What the hub has of a run.
pub struct Arrivals {
    stream: jetstream::stream::Stream,
    subject: String,
}

impl Arrivals {
    /// Of `subject` in the hub's FROM.
    pub async fn of(cluster: &Cluster, subject: String) -> anyhow::Result<Self> {
        Ok(Self { stream: cluster.hub_js(Account::Control).await?.get_stream("FROM").await?, subject })
    }

    /// Waits until all are there.
    pub async fn all(&self) -> anyhow::Result<()> {
        until(&format!("{MESSAGES} messages on {}", self.subject), LOOK, async || {
            Ok(self.count().await? == MESSAGES)
        })
        .await
    }

    async fn count(&self) -> anyhow::Result<u64> {
        let mut info = self.stream.info_with_subjects(&self.subject).await?;
        let mut count = 0;
        while let Some((_, of)) = info.try_next().await? {
            count += of as u64;
        }
        Ok(count)
    }

    /// Messages each second from the first stored one to the last, by the hub server's clock, and whether each came once.
    /// The first batch is left out of the count, as its beginning is not seen.
    pub async fn rate(&self, cluster: &Cluster) -> anyhow::Result<f64> {
        let stored = cluster.stored(Account::Control, "FROM", &self.subject).await?;
        let mut numbers: Vec<u64> = stored.iter().filter_map(|of| number(&of.payload)).collect();
        numbers.sort_unstable();
        numbers.dedup();
        anyhow::ensure!(numbers.len() as u64 == MESSAGES, "{} different numbers", numbers.len());
        anyhow::ensure!(stored.len() as u64 == MESSAGES, "{} messages", stored.len());
        let (first, last) = (stored.first().context("empty")?.at_ms, stored.last().context("empty")?.at_ms);
        let later = stored.iter().filter(|of| of.at_ms > first).count();
        #[allow(clippy::cast_precision_loss)] // small numbers
        Ok(later as f64 * 1000.0 / (last - first).max(1) as f64)
    }
}

/// The same number of messages of the same size, with the header that ours carry, in atomic batches of `size`, one batch at a
/// time: nothing is read, remembered or trimmed.
pub async fn bare(edge: &Edge, run: &str, size: u64) -> anyhow::Result<()> {
    let (operator, node) = (edge.operator()?, edge.name().to_owned());
    let (subject, run) = (format!("from.{node}.bench.{run}"), run.to_owned());
    inside(edge, async move || {
        let bus = operator.dial(Account::Work).await?;
        let client = bus.client();
        let inbox = client.new_inbox();
        let mut acks = client.subscribe(inbox.clone()).await?;
        for batch in 0..MESSAGES.div_ceil(size) {
            let first = batch * size + 1;
            let last = (first + size - 1).min(MESSAGES);
            for n in first..=last {
                let mut headers = HeaderMap::new();
                headers.insert("ew-origin", format!("1763830000000000000 {n}").as_str());
                headers.insert("Nats-Batch-Id", format!("{run}-{batch}").as_str());
                headers.insert("Nats-Batch-Sequence", (n - first + 1).to_string().as_str());
                if n < last {
                    client.publish_with_headers(subject.clone(), headers, body(n).into()).await?;
                } else {
                    headers.insert("Nats-Batch-Commit", "1");
                    let reply = inbox.clone();
                    client
                        .publish_with_reply_and_headers(subject.clone(), reply, headers, body(n).into())
                        .await?;
                }
            }
            let ack =
                tokio::time::timeout(Duration::from_secs(10), acks.next()).await?.context("no answer")?;
            let ack: Value = serde_json::from_slice(&ack.payload)?;
            anyhow::ensure!(ack.get("error").is_none(), "{ack}");
        }
        Ok(())
    })
    .await
}
