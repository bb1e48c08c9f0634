//! Programs that cannot start say which thing is wrong and what to do, and end: no panic, no endless retrying.

use std::path::Path;
use std::process::Stdio;

use tests::cluster::site::MARK_ENV;
use tests::cluster::{Cluster, Edge, eventually, programs};
use tokio::process::Command;

use crate::support::{IDLE, finish, pod, runs, told};

/// Fails unless the program failed, with each of these words among its own.
fn says(output: &tests::cluster::Output, words: &[&str]) -> anyhow::Result<()> {
    let said = format!("{}{}", output.stdout, output.stderr);
    anyhow::ensure!(!output.success, "{} succeeded: {said}", output.call);
    for word in words {
        anyhow::ensure!(said.contains(word), "{}: no {word:?} in: {said}", output.call);
    }
    anyhow::ensure!(!said.contains("panicked"), "{said}");
    Ok(())
}

/// `edge-runtime` of a node, in its network namespace, as the cluster would run it.
fn agent(cluster: &Cluster, edge: &Edge, before: &[&str]) -> Command {
    let mut command = Command::new("/usr/bin/nsenter");
    command.arg(format!("--net={}", edge.namespace().display())).arg("--").args(before);
    command.arg(programs::ours("edge-runtime")).arg("--data-dir").arg(edge.data_dir());
    command.arg("--images").arg(programs::images());
    command.env(MARK_ENV, cluster.site().mark(edge.name()));
    command.env("PATH", programs::path()).env("EDGEWIRE_NATS_SERVER", programs::nats_server());
    command
}

fn hub(cluster: &Cluster, data_dir: &Path, port: u16) -> Command {
    let (address, ports) = (cluster.site().hub_address(), cluster.site().ports);
    let mut command = Command::new(programs::ours("cloud-hub"));
    command.arg("--data-dir").arg(data_dir).arg("--advertise").arg(address.to_string());
    command.arg("--kubeconfig").arg(data_dir.join("kubeconfig"));
    for (flag, default, other) in [
        ("--api-listen", ports.api, 16443),
        ("--bus-listen", ports.bus, 14222),
        ("--leaf-listen", ports.leaf, 17422),
    ] {
        command.arg(flag).arg(format!("{address}:{}", if default == port { default } else { other }));
    }
    command.env(MARK_ENV, cluster.site().mark("second-hub"));
    command.env("PATH", programs::path()).env("EDGEWIRE_NATS_SERVER", programs::nats_server());
    command
}

/// A directory with links to these programs and no others, as a `PATH`.
fn bare_path(dir: &Path, names: &[&str]) -> anyhow::Result<String> {
    std::fs::create_dir_all(dir)?;
    for name in names {
        let found =
            programs::path().split(':').map(|dir| Path::new(dir).join(name)).find(|path| path.is_file());
        let _ =
            std::os::unix::fs::symlink(found.ok_or_else(|| anyhow::anyhow!("no {name}"))?, dir.join(name));
    }
    Ok(dir.to_string_lossy().into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_or_taken_is_named() -> anyhow::Result<()> {
    let cluster = Cluster::new("programs").await?;
    cluster.hub().start().await?;
    let dir = cluster.site().dir.clone();

    // A second hub on each port of the first.
    for (port, name) in [
        (cluster.site().ports.bus, "bus"),
        (cluster.site().ports.leaf, "leaf"),
        (cluster.site().ports.api, "api"),
    ] {
        let output = finish(hub(&cluster, &dir.join(format!("second-{name}")), port), 30).await?;
        says(&output, &["EW-PORT-IN-USE", &format!(":{port}"), "ss -ltnp"])?;
    }
    let mut command = hub(&cluster, &dir.join("third"), 0);
    command.env("EDGEWIRE_NATS_SERVER", "/does/not/exist");
    says(&finish(command, 30).await?, &["EW-NATS-NOT-FOUND", "/does/not/exist", "scripts/setup.sh"])?;
    let mut command = hub(&cluster, &dir.join("fourth"), 0);
    command.env("EDGEWIRE_NATS_SERVER", "/bin/true");
    says(&finish(command, 30).await?, &["EW-NATS-VERSION", "/bin/true"])?;

    // A node.
    let edge = cluster.edge("edge-a")?;
    says(&finish(agent(&cluster, &edge, &[]), 30).await?, &["EW-NOT-JOINED", "edgewire join TOKEN"])?;
    edge.join(cluster.hub()).await?;
    let mut command = agent(&cluster, &edge, &[]);
    command.env("EDGEWIRE_NATS_SERVER", "/does/not/exist");
    says(&finish(command, 30).await?, &["EW-NATS-NOT-FOUND", "/does/not/exist"])?;
    // The private containerd was started before; here it shall be missing.
    if let Some(running) = edge.kill9_containerd().await.err() {
        println!("no containerd yet: {running}");
    }
    let mut command = agent(&cluster, &edge, &[]);
    command.env("PATH", bare_path(&dir.join("no-containerd"), &["ip"])?);
    says(&finish(command, 30).await?, &["EW-CONTAINERD-MISSING", "--containerd"])?;
    let mut command = agent(&cluster, &edge, &[]);
    command.env("PATH", bare_path(&dir.join("no-ip"), &["containerd"])?);
    says(&finish(command, 30).await?, &["EW-NET-IP", "iproute2"])?;

    let mut taker = Command::new("/usr/bin/nsenter");
    taker
        .arg(format!("--net={}", edge.namespace().display()))
        .args(["--", "busybox", "nc", "-l", "-p", "4222"]);
    let mut taker =
        taker.env(MARK_ENV, cluster.site().mark("edge-a")).stdin(Stdio::null()).kill_on_drop(true).spawn()?;
    eventually("somebody else listens", 10, async || Ok(edge.exec(&["ss", "-ltn"])?.contains(":4222")))
        .await?;
    says(&finish(agent(&cluster, &edge, &[]), 30).await?, &["EW-PORT-IN-USE", ":4222"])?;
    taker.kill().await?;

    // Without the CNI plug-ins the node runs, and its pods say what they lack; with them back, they start.
    let empty = dir.join("empty");
    std::fs::create_dir_all(&empty)?;
    let hide = format!(
        "for d in /usr/lib/cni /opt/cni/bin; do [ ! -d $d ] || mount --bind {} $d; done; exec \"$@\"",
        empty.display()
    );
    let before = ["unshare", "--mount", "sh", "-c", &hide, "sh"];
    let mut running = agent(&cluster, &edge, &before).stdin(Stdio::null()).kill_on_drop(true).spawn()?;
    cluster.ready("edge-a", "True").await?;
    cluster.apply(&pod("netless", "edge-a", IDLE).to_string()).await?;
    let said = told(&cluster, &["FailedCreatePodSandBox", "Failed"], "netless").await?;
    for word in ["network plug-in", "install the CNI plug-ins (containernetworking-plugins)"] {
        anyhow::ensure!(said.contains(word), "no {word:?} in {said:?}");
    }
    anyhow::ensure!(running.try_wait()?.is_none(), "the agent ended");
    running.kill().await?;
    edge.reboot().await?;
    edge.start().await?;
    runs(&cluster, &edge, "default", "netless").await?;
    cluster.done().await
}
