//! The pods' bridge. It is made before the node's bus starts, because the bus listens on its address.

use anyhow::{Context, bail};

use crate::config::Cidr;

/// Makes the bridge with the gateway's address, if it is not there.
pub async fn ensure_bridge(name: &str, cidr: Cidr) -> anyhow::Result<()> {
    let address = format!("{}/{}", cidr.gateway(), cidr.prefix);
    ip(&["link", "add", "name", name, "type", "bridge"]).await?;
    ip(&["address", "add", &address, "dev", name]).await?;
    ip(&["link", "set", "dev", name, "up"]).await?;
    ip(&["link", "set", "dev", "lo", "up"]).await
}

/// Runs `ip`; what is there already is fine.
async fn ip(args: &[&str]) -> anyhow::Result<()> {
    let output = tokio::process::Command::new("ip")
        .args(args)
        .output()
        .await
        .context("EW-NET-IP: the program `ip` is missing; install iproute2")?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() && !said.contains("File exists") && !said.contains("already assigned") {
        bail!("EW-NET-BRIDGE: `ip {}` failed: {}; are we root?", args.join(" "), said.trim());
    }
    Ok(())
}
