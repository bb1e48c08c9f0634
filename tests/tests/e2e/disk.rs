//! A node's disk fills up: telemetry gives way first, then producers are told, pods and commands never do; and all of it
//! comes back by itself.

use std::path::PathBuf;

use anyhow::Context;
use bus::module::Account;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statvfs::statvfs;
use schemas::subject::{STREAM_BULK, STREAM_UPLINK};
use tests::cluster::{Cluster, Edge, eventually};

use crate::support::{IDLE, edgewire, gone, inside, loss_of, pod, publish, runs, the_same, told};

const MIB: u64 = 1024 * 1024;

/// A file of somebody else's on the node's disk.
struct Filler(PathBuf);

impl Filler {
    fn new(edge: &Edge) -> Self {
        Self(edge.data_dir().join("somebody-elses"))
    }

    /// Grows until so much is free; 0: until nothing is, not even what is kept for root.
    fn leave(&self, free_bytes: u64) -> anyhow::Result<()> {
        let file = std::fs::File::options().create(true).append(true).open(&self.0)?;
        let mut length = file.metadata()?.len();
        if free_bytes > 0 {
            let stat = statvfs(&self.0)?;
            let available = stat.blocks_available() * stat.fragment_size();
            let more = available.checked_sub(free_bytes).context("less is free already")?;
            return Ok(fallocate(&file, FallocateFlags::empty(), length.cast_signed(), more.cast_signed())?);
        }
        let mut step = 512 * MIB;
        while step >= 4096 {
            match fallocate(&file, FallocateFlags::empty(), length.cast_signed(), step.cast_signed()) {
                Ok(()) => length += step,
                Err(_) => step /= 2,
            }
        }
        Ok(())
    }
}

/// (messages, bound in bytes) of a stream of the node's own.
async fn stream(edge: &Edge, name: &'static str) -> anyhow::Result<(u64, u64)> {
    let operator = edge.operator()?;
    inside(edge, async move || {
        let mut stream = operator.js(Account::Work).await?.get_stream(name).await?;
        let info = stream.info().await?;
        Ok((info.state.messages, info.config.max_bytes.cast_unsigned()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_takes_telemetry_first_and_pods_never() -> anyhow::Result<()> {
    let cluster = Cluster::new("disk").await?;
    cluster.edge("edge-a")?.on_disk()?;
    cluster.up(&["edge-a"]).await?;
    let edge = cluster.edge("edge-a")?;
    cluster.apply(&pod("steady", "edge-a", IDLE).to_string()).await?;
    let steady = runs(&cluster, &edge, "default", "steady").await?;
    let send = async |subject: &'static str, count| {
        let operator = edge.operator()?;
        inside(&edge, async move || publish(&operator.js(Account::Work).await?, subject, count).await).await
    };
    eventually("the reserve is there", 30, async || Ok(edge.data_dir().join("reserve").exists())).await?;

    // Nobody carries anything away.
    edge.cut()?;
    send("bulk.default.t", 50).await?;
    send("up.default.t", 20).await?;
    let filler = Filler::new(&edge);
    filler.leave(300 * MIB)?;
    eventually("telemetry has gone, and has a corner only", 30, async || {
        let (messages, bound) = stream(&edge, STREAM_BULK).await?;
        Ok(messages == 0 && bound <= MIB)
    })
    .await?;
    send("bulk.default.t", 2_000).await.context("telemetry is taken, the oldest goes")?;
    send("up.default.t", 20).await.context("what is durable is taken as ever")?;

    filler.leave(120 * MIB)?;
    let refused =
        eventually("producers are refused", 30, async || Ok(send("up.default.t", 1).await.err())).await?;
    assert!(format!("{refused:?}").contains("maximum bytes exceeded"), "{refused:?}");
    let (waiting, _) = stream(&edge, STREAM_UPLINK).await?;
    assert!(waiting >= 40, "nothing that was taken goes");

    // What the hub wants is done, and what the node has to say gets through.
    edge.heal()?;
    cluster.apply(&pod("late", "edge-a", IDLE).to_string()).await?;
    runs(&cluster, &edge, "default", "late").await?;
    told(&cluster, &["DiskNearlyFull"], "edge-a").await?;
    told(&cluster, &["DiskFull"], "edge-a").await?;

    // To the very end: not a block is left, but the reserve.
    filler.leave(0)?;
    eventually("the reserve is let go", 30, async || Ok(!edge.data_dir().join("reserve").exists())).await?;
    cluster.kubectl_ok(&["delete", "pod", "late", "--wait=false"]).await?;
    gone(&edge, "default", "late").await?;
    cluster.apply(&pod("last", "edge-a", IDLE).to_string()).await?;
    runs(&cluster, &edge, "default", "last").await?;
    the_same(&edge, &[&steady], "with a full disk")?;

    // Room again: all of it is as it was.
    std::fs::remove_file(&filler.0)?;
    told(&cluster, &["DiskFreed"], "edge-a").await?;
    eventually("producers are taken again", 60, async || Ok(send("up.default.t", 1).await.is_ok())).await?;
    eventually("streams and reserve are as they were", 60, async || {
        let bounds = (stream(&edge, STREAM_BULK).await?.1, stream(&edge, STREAM_UPLINK).await?.1);
        Ok(bounds == (128 * MIB, 256 * MIB) && edge.data_dir().join("reserve").exists())
    })
    .await?;
    send("bulk.default.t", 3).await?;
    let dropped = eventually("what went is counted", 60, async || {
        let row = loss_of(&cluster, "edge-a", STREAM_BULK).await?.context("the row")?;
        let dropped = &row["dropped"];
        Ok((dropped["disk-full"].as_u64() > Some(0) && dropped["overflow"].as_u64() > Some(500))
            .then_some(()))
    });
    dropped.await?;
    eventually("what was acknowledged is whole", 60, async || {
        Ok(edgewire(&cluster, &["loss", "--check"]).await?.success)
    })
    .await?;
    the_same(&edge, &[&steady], "after a full disk")?;
    cluster.done().await
}
