//! Does the power cut lose what was not synced, and nothing else? A bare `nats-server` tells: one that syncs before it
//! acknowledges keeps every message, one that syncs every two minutes loses what it had acknowledged.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use async_nats::jetstream::{self, stream};
use tests::cluster::disk::Disk;
use tests::cluster::site::MARK_ENV;
use tests::cluster::{Cluster, eventually, programs};

const MESSAGES: u64 = 500;

/// A server of the test's own, with its store on the disk.
struct Server {
    child: Child,
    url: String,
}

impl Server {
    /// Carries the cluster's mark, so it ends with the cluster whatever becomes of the test.
    async fn start(cluster: &Cluster, dir: &Path, sync_interval: &str) -> anyhow::Result<Self> {
        let (address, config) = (cluster.site().hub_address(), cluster.site().dir.join("bare.conf"));
        let text = format!(
            "listen: \"{address}:4222\"\njetstream {{ store_dir: \"{}\", sync_interval: {sync_interval} }}\n",
            dir.display()
        );
        std::fs::write(&config, text)?;
        let mut command = Command::new(programs::nats_server());
        command.arg("-c").arg(&config).env(MARK_ENV, cluster.site().mark("bare"));
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let this = Self { child, url: format!("nats://{address}:4222") };
        eventually("the bare server has JetStream", 20, async || {
            Ok(this.jetstream().await?.query_account().await.is_ok())
        })
        .await?;
        Ok(this)
    }

    #[allow(clippy::disallowed_methods)] // a bare server, of which bus knows nothing
    async fn jetstream(&self) -> anyhow::Result<jetstream::Context> {
        Ok(jetstream::new(async_nats::connect(&self.url).await?))
    }
}

/// Messages that are left of those that were acknowledged when the power failed.
async fn left_after_a_cut(sync_interval: &str) -> anyhow::Result<u64> {
    let cluster = Cluster::new("power-cut").await?;
    let point = cluster.site().dir.join("bare");
    let mut disk = Disk::make(&cluster.site().disk_image("bare"), &point)?;
    let store = point.join("store");
    let mut server = Server::start(&cluster, &store, sync_interval).await?;
    let js = server.jetstream().await?;
    let config = stream::Config { name: "S".into(), subjects: vec!["s".into()], ..stream::Config::default() };
    js.create_stream(config).await?;
    // The stream itself is there for sure; what is asked for is its messages.
    nix::unistd::sync();
    for n in 0..MESSAGES {
        js.publish("s", n.to_string().into()).await?.await?;
    }
    disk.cut()?;
    server.child.kill()?;
    server.child.wait()?;
    disk.reopen()?;
    let mut server = Server::start(&cluster, &store, sync_interval).await?;
    let left = server.jetstream().await?.get_stream("S").await?.cached_info().state.messages;
    server.child.kill()?;
    server.child.wait()?;
    cluster.done().await?;
    Ok(left)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_loses_what_was_not_synced_and_nothing_else() -> anyhow::Result<()> {
    let always = left_after_a_cut("always").await?;
    anyhow::ensure!(
        always == MESSAGES,
        "synced before each acknowledgement, and {always} of {MESSAGES} are left"
    );
    let rarely = left_after_a_cut("\"2m\"").await?;
    println!("left of {MESSAGES} acknowledged: {always} with sync_interval always, {rarely} with 2m");
    anyhow::ensure!(
        rarely < MESSAGES,
        "synced every two minutes, and nothing is lost: the cut proves nothing"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn power_may_fail_as_soon_as_they_serve() -> anyhow::Result<()> {
    let cluster = Cluster::new("power-early").await?;
    let (hub, edge) = (cluster.hub(), cluster.edge("edge-a")?);
    hub.on_disk().await?;
    edge.on_disk()?;
    hub.start().await?;
    let token = hub.token(1, 600).await?;
    hub.power_cut().await?;
    // The same keys, so the same kubeconfig; and the token is known.
    hub.start().await?;
    edge.join_with(&token).await?.ok()?;
    edge.start().await?;
    cluster.ready("edge-a", "True").await?;
    edge.power_cut().await?;
    // The token is used up: without its keys the node would be lost.
    edge.start().await?;
    cluster.heartbeats("edge-a", 2).await?;
    cluster.ready("edge-a", "True").await?;
    cluster.done().await
}
