//! The sensor's readings: durable messages with the sender's own synced list, and what of them stands at the hub.
//!
//! The list (`acked.log`) is written by nobody but the sensor, into a directory of the machine that no fault touches. So
//! it judges Edgewire from outside: what stands in it was acknowledged, and must be in the hub's stream FROM.

use anyhow::Context;
use serde_json::{Value, json};

use super::{Cluster, Edge, eventually};

/// The sensor in namespace `demo`, its list of acknowledged readings outside of Edgewire's keeping.
pub fn sensor(edge: &Edge, interval_ms: u64) -> Value {
    json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "demo"}},
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "sensor", "namespace": "demo"},
         "spec": {"nodeName": edge.name(), "terminationGracePeriodSeconds": 5,
            "containers": [{"name": "sensor", "image": "edgewire.local/sensor:demo", "imagePullPolicy": "Never",
                "env": [{"name": "EDGEWIRE_NAMESPACE", "value": "demo"},
                        {"name": "SENSOR_INTERVAL_MS", "value": interval_ms.to_string()}],
                "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
            "volumes": [{"name": "data",
                "hostPath": {"path": edge.host_dir("sensor"), "type": "DirectoryOrCreate"}}]}}]})
}

/// The sensor's own list: the readings that were acknowledged to it, in its order. An unfinished last line is none.
pub fn acked(edge: &Edge) -> Vec<u64> {
    let text = std::fs::read_to_string(edge.host_dir("sensor").join("acked.log")).unwrap_or_default();
    let whole = text.rfind('\n').and_then(|end| text.get(..end)).unwrap_or_default();
    // A line that is no number is one that no reading matches.
    whole.lines().map(|line| line.parse().unwrap_or(u64::MAX)).collect()
}

/// Waits until the list has grown by `more` readings.
pub async fn acked_more(edge: &Edge, more: usize) -> anyhow::Result<()> {
    let before = acked(edge).len();
    let what = format!("the sensor on {} has {more} more readings acknowledged, after {before}", edge.name());
    eventually(&what, 60, async || Ok(acked(edge).len() >= before + more)).await
}

/// Waits until the hub's stream has what the sensor's list holds now, and compares both: each reading once, in order,
/// nothing missing.
pub async fn all_arrived(cluster: &Cluster, edge: &Edge, timeout_seconds: u64) -> anyhow::Result<Vec<u64>> {
    let acked = acked(edge);
    let last = *acked.last().context("the sensor has an empty list")?;
    let subject = format!("from.{}.demo.temp", edge.name());
    let stream = cluster.hub_js(cluster.from_account()).await?.get_stream("FROM").await?;
    eventually(&format!("reading {last} is at the hub"), timeout_seconds, async || {
        let message = stream.get_last_raw_message_by_subject(&subject).await?;
        Ok(reading(&message.payload)? >= last)
    })
    .await?;
    let stored = cluster.stored(cluster.from_account(), "FROM", &subject).await?;
    let received =
        stored.iter().map(|stored| reading(&stored.payload)).collect::<anyhow::Result<Vec<u64>>>()?;
    compare(&acked, &received)?;
    Ok(received)
}

/// Each reading received once and in order from the first, and every acknowledged one among them.
fn compare(acked: &[u64], received: &[u64]) -> anyhow::Result<()> {
    let wrong = (1..).zip(received).find(|(want, have)| want != *have);
    anyhow::ensure!(
        wrong.is_none(),
        "of {} readings at the hub, the first wrong (want, have): {wrong:?}",
        received.len()
    );
    let last = received.last().copied().unwrap_or_default();
    let missing: Vec<_> = acked.iter().filter(|n| **n > last).collect();
    anyhow::ensure!(missing.is_empty(), "acknowledged to the sensor, but not at the hub: {missing:?}");
    Ok(())
}

fn reading(payload: &[u8]) -> anyhow::Result<u64> {
    let value: Value = serde_json::from_slice(payload).context("a reading is JSON")?;
    value.get("n").and_then(Value::as_u64).context("a reading has its number")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_a_doubled_and_a_reordered_reading_are_found() {
        assert!(compare(&[1, 2, 3], &[1, 2, 3]).is_ok());
        // Stored, but its acknowledgement did not come to the sensor.
        assert!(compare(&[1, 2], &[1, 2, 3]).is_ok());
        for received in [&[1, 3][..], &[1, 2, 2, 3], &[1, 3, 2], &[1, 2], &[2, 3], &[]] {
            assert!(compare(&[1, 2, 3], received).is_err(), "{received:?}");
        }
    }
}
