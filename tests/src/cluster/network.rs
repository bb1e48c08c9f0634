//! The cluster's network: a bridge that carries the hub's address, a namespace and a veth pair for each node, and one
//! nft table whose sets say which node's packets are dropped (`cut`; `cut_up` and `cut_down` one way) or answered with a
//! TCP reset (`broken`).
//!
//! Namespaces are pinned to files in the cluster's own directory, not under `/run/netns`: `ip netns` would leave a mount
//! there for good. The filter stands on addresses and comes before all others, so it works whatever the machine's rules.

use std::path::Path;

use anyhow::Context;

use super::command;
use super::site::Site;

/// Makes the bridge and the table. What is made stands in the ledger already.
pub fn make(site: &Site) -> anyhow::Result<()> {
    let bridge = site.bridge();
    command("ip", &["link", "add", "name", &bridge, "type", "bridge"])?;
    command("ip", &["address", "add", &format!("{}/24", site.hub_address()), "dev", &bridge])?;
    command("ip", &["link", "set", "dev", &bridge, "up"])?;
    let rules = format!(
        "table inet {} {{
  set cut {{ type ipv4_addr
  }}
  set cut_up {{ type ipv4_addr
  }}
  set cut_down {{ type ipv4_addr
  }}
  set broken {{ type ipv4_addr
  }}
  chain arriving {{
    type filter hook input priority -310
    ip saddr @cut drop
    ip saddr @cut_up drop
    ip saddr @broken meta l4proto tcp reject with tcp reset
  }}
  chain leaving {{
    type filter hook output priority -310
    ip daddr @cut drop
    ip daddr @cut_down drop
    ip daddr @broken meta l4proto tcp reject with tcp reset
  }}
}}",
        site.table()
    );
    let file = site.dir.join("cut.nft");
    std::fs::write(&file, rules).with_context(|| format!("cannot write {}", file.display()))?;
    command("nft", &["-f", &file.to_string_lossy()]).map(drop)
}

/// Makes the namespace of the `n`th node, pinned at `namespace`, with its link up.
pub fn make_edge(site: &Site, n: usize, namespace: &Path) -> anyhow::Result<()> {
    std::fs::File::create(namespace).with_context(|| format!("cannot make {}", namespace.display()))?;
    let pin = namespace.to_string_lossy();
    command("unshare", &[&format!("--net={pin}"), "true"])?;
    let (veth, bridge) = (site.veth(n), site.bridge());
    command("ip", &["link", "add", "name", &veth, "type", "veth", "peer", "name", "uplink", "netns", &pin])?;
    command("ip", &["link", "set", "dev", &veth, "master", &bridge])?;
    command("ip", &["link", "set", "dev", &veth, "up"])?;
    inside(namespace, &["ip", "link", "set", "dev", "lo", "up"])?;
    inside(namespace, &["ip", "address", "add", &format!("{}/24", site.edge_address(n)), "dev", "uplink"])?;
    inside(namespace, &["ip", "link", "set", "dev", "uplink", "up"]).map(drop)
}

/// Runs a program in a namespace.
pub fn inside(namespace: &Path, args: &[&str]) -> anyhow::Result<String> {
    let net = format!("--net={}", namespace.display());
    command("nsenter", &[&[net.as_str(), "--"], args].concat())
}

/// Puts a node's address into one of the table's sets, or takes it out. Either is fine when it is so already.
pub fn set(table: &str, set: &str, address: &str, member: bool) -> anyhow::Result<()> {
    let element = format!("{{ {address} }}");
    if member {
        return command("nft", &["add", "element", "inet", table, set, &element]).map(drop);
    }
    let listed = command("nft", &["list", "set", "inet", table, set])?;
    if listed.split(|c: char| !c.is_ascii_digit() && c != '.').any(|word| word == address) {
        command("nft", &["delete", "element", "inet", table, set, &element])?;
    }
    Ok(())
}

/// Brings the namespace to what a boot would find: the link, and nothing else.
pub fn reset_edge(namespace: &Path) -> anyhow::Result<()> {
    let links = inside(namespace, &["ip", "-o", "link", "show"])?;
    for name in links.lines().filter_map(|line| line.split(": ").nth(1)) {
        let name = name.split('@').next().unwrap_or(name);
        if !["lo", "uplink"].contains(&name) {
            // A veth goes with its other end, perhaps just now.
            let _ = inside(namespace, &["ip", "link", "delete", "dev", name]);
        }
    }
    Ok(())
}

/// Drops what goes to these ports of the hub's, in silence; of a namespace that has such a rule, the rule goes first.
pub fn shut(site: &Site, namespace: &Path, ports: &[u16]) -> anyhow::Result<()> {
    if inside(namespace, &["nft", "list", "tables"])?.contains("firewall") {
        inside(namespace, &["nft", "delete", "table", "ip", "firewall"])?;
    }
    if ports.is_empty() {
        return Ok(());
    }
    let ports = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
    let rules = format!(
        "table ip firewall {{
  chain leaving {{
    type filter hook output priority -50
    ip daddr {} tcp dport {{ {ports} }} drop
  }}
}}",
        site.hub_address()
    );
    let file = site.dir.join("firewall.nft");
    std::fs::write(&file, rules).with_context(|| format!("cannot write {}", file.display()))?;
    inside(namespace, &["nft", "-f", &file.to_string_lossy()]).map(drop)
}

/// Sends what goes to `port` of the hub to the proxy's port instead, or no longer.
pub fn divert(site: &Site, namespace: &Path, to: Option<u16>) -> anyhow::Result<()> {
    let listed = inside(namespace, &["nft", "list", "tables"])?;
    if listed.contains("slow_link") {
        inside(namespace, &["nft", "delete", "table", "ip", "slow_link"])?;
    }
    let Some(port) = to else { return Ok(()) };
    let (hub, leaf) = (site.hub_address(), site.ports.leaf);
    let rules = format!(
        "table ip slow_link {{
  chain leaving {{
    type nat hook output priority -100
    ip daddr {hub} tcp dport {leaf} dnat to {hub}:{port}
  }}
}}"
    );
    let file = site.dir.join("divert.nft");
    std::fs::write(&file, rules).with_context(|| format!("cannot write {}", file.display()))?;
    inside(namespace, &["nft", "-f", &file.to_string_lossy()]).map(drop)
}
