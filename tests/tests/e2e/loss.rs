//! The proof of no loss can find one: a gap, a duplicate and a drop that are planted are each reported, and nothing else.

use anyhow::Context;
use async_nats::HeaderMap;
use async_nats::jetstream::{self, stream};
use bus::module::Account;
use schemas::envelope::header;
use schemas::subject::{STREAM_BULK, STREAM_FROM, STREAM_UPLINK};
use serde_json::Value;
use tests::cluster::{Cluster, eventually};

use crate::support::{IDLE, as_node, edgewire, inside, loss_of, pod, publish, runs, told};

/// The report's row of a stream of the node.
async fn row(cluster: &Cluster, stream: &str) -> anyhow::Result<Option<Value>> {
    loss_of(cluster, "edge-a", stream).await
}

async fn row_with(cluster: &Cluster, stream: &str, lane: &str, received: u64) -> anyhow::Result<Value> {
    let last = std::cell::RefCell::new(None);
    let what = format!("{received} of {lane} are counted");
    let found = eventually(&what, 60, async || {
        let now = row(cluster, stream).await?;
        last.replace(now.clone());
        Ok(now.filter(|row| row["received"][lane] == received))
    });
    found.await.with_context(|| format!("{:?}", last.borrow()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gap_a_duplicate_and_a_drop_are_each_reported() -> anyhow::Result<()> {
    let cluster = Cluster::new("loss").await?;
    cluster.up(&["edge-a"]).await?;
    let edge = cluster.edge("edge-a")?;
    cluster.apply(&pod("other", "edge-a", IDLE).to_string()).await?;
    runs(&cluster, &edge, "default", "other").await?;

    let operator = edge.operator()?;
    let again = operator.clone();
    let first = inside(&edge, async move || {
        let js = operator.js(Account::Work).await?;
        publish(&js, "bulk.default.t", 10).await?;
        publish(&js, "up.default.t", 20).await
    });
    assert_eq!(first.await?, (1..=20).collect::<Vec<_>>());
    let whole = row_with(&cluster, STREAM_UPLINK, "workload", 20).await?;
    assert_eq!((&whole["gaps"], &whole["duplicates"]), (&0.into(), &0.into()), "{whole}");
    row_with(&cluster, STREAM_BULK, "bulk", 10).await?;
    edgewire(&cluster, &["loss", "--check"]).await?.ok().context("nothing is missing")?;

    // The link is cut. Of five messages that were acknowledged one is taken away behind everybody's back, and of telemetry
    // more is sent than its stream holds. The agent is away meanwhile: it has read nothing ahead.
    edge.cut()?;
    edge.stop_agent().await?;
    inside(&edge, async move || {
        let js = again.js(Account::Work).await?;
        let sequences = publish(&js, "up.default.t", 5).await?;
        anyhow::ensure!(sequences == [21, 22, 23, 24, 25], "{sequences:?}");
        js.get_stream(STREAM_UPLINK).await?.delete_message(23).await?;
        let bulk = js.get_stream(STREAM_BULK).await?.cached_info().config.clone();
        anyhow::ensure!(bulk.persist_mode == Some(stream::PersistenceMode::Async), "{bulk:?}");
        js.update_stream(stream::Config { max_bytes: 64 * 1024, ..bulk }).await?;
        publish(&js, "bulk.default.t", 200).await.map(drop)
    })
    .await?;
    edge.start().await?;
    edge.heal()?;
    let holed = row_with(&cluster, STREAM_UPLINK, "workload", 24).await?;
    assert_eq!(holed["gaps"], 1, "{holed}");
    assert_eq!(holed["gapRanges"], serde_json::json!([{"first": 23, "last": 23}]));
    // How many had left before the stream was full is the link's affair; each of the others is counted.
    let number = |of: &Value| of.as_u64().unwrap_or(0);
    let all = async || {
        let row = row(&cluster, STREAM_BULK).await?.context("the row")?;
        let (came, dropped) = (number(&row["received"]["bulk"]), number(&row["dropped"]["overflow"]));
        Ok((came + dropped == 210).then_some((row, dropped)))
    };
    let (dropped, overflow) =
        eventually("all of the telemetry came or is counted as dropped", 60, all).await?;
    assert!(overflow > 50, "{dropped}");
    assert_eq!((&dropped["gaps"], &dropped["duplicates"]), (&0.into(), &0.into()), "{dropped}");
    let event = told(&cluster, &["MessagesDropped"], "edge-a").await?;
    assert!(event.contains(&format!("{overflow} messages were dropped")), "{event}");

    // A message that was taken comes once more, with the node's own credentials.
    let work = as_node(&cluster, &edge, Account::Work).await?;
    let generation = cluster.stored(Account::Control, STREAM_FROM, "from.edge-a.>").await?;
    let origin = generation.last().context("messages")?.headers[header::ORIGIN].clone();
    let again =
        origin.rsplit_once('.').map(|(generation, _)| format!("{generation}.7")).context("an origin")?;
    let mut headers = HeaderMap::new();
    headers.insert(header::ORIGIN, again.as_str());
    jetstream::new(work)
        .publish_with_headers("from.edge-a.default.t", headers, "again".into())
        .await?
        .await?;
    eventually("the duplicate is counted", 30, async || {
        let row = row(&cluster, STREAM_UPLINK).await?.context("the row")?;
        Ok(row["duplicates"] == 1 && row["duplicateSequences"] == serde_json::json!([7]) && row["gaps"] == 1)
    })
    .await?;
    let check = edgewire(&cluster, &["loss", "--check"]).await?;
    assert!(!check.success && check.stderr.contains("EW-LOSS-FOUND"), "{check:?}");

    // What modules said is whole, too: reports and events, of two lanes in one stream.
    let outbox = eventually("an idle lane's cursor does not hide the other", 120, async || {
        let row = row(&cluster, "OUTBOX").await?.context("the row")?;
        Ok((row["received"]["state"].as_u64() > Some(0) && row["received"]["events"].as_u64() > Some(0))
            .then_some(row))
    });
    let outbox = outbox.await?;
    assert_eq!(
        (&outbox["gaps"], &outbox["duplicates"], &outbox["first"]),
        (&0.into(), &0.into(), &1.into()),
        "{outbox}"
    );

    // It is the ledger's own: the hub's process may fall and it goes on where it was.
    cluster.hub().kill9_process().await?;
    cluster.hub().start().await?;
    eventually("the report survives", 60, async || {
        let row = row(&cluster, STREAM_UPLINK).await?;
        Ok(row.is_some_and(|row| {
            row["gaps"] == 1 && row["duplicates"] == 1 && row["received"]["workload"] == 25 - 1
        }))
    })
    .await?;
    cluster.done().await
}
