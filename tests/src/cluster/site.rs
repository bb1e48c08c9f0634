//! Names, addresses and directories of one cluster, all from one id, so that many can stand side by side.
//!
//! The id is three hex digits; the directory `/tmp/ew-<id>` is its claim (making a directory is atomic). A cluster has a
//! /24 of 10.208.0.0/14 that no route of the machine uses: the hub is .1, nodes are .11 and on. Pods have 10.85.<n>.0/24,
//! inside their node's network namespace.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::ledger::Ledger;
use super::{Options, command};

/// How many clusters may stand at once.
const IDS_MAX: u16 = 1024;
/// Paths of Unix sockets end at 108 bytes; the longest of ours adds about 40 to the directory.
const DIR_MAX_BYTES: usize = 62;
/// Environment variable by which every process of a cluster is known.
pub const MARK_ENV: &str = "EDGEWIRE_CLUSTER";

/// One cluster's names.
#[derive(Debug)]
pub struct Site {
    /// Three hex digits.
    pub id: String,
    /// What it is for.
    pub name: String,
    /// Data, logs, ledger.
    pub dir: PathBuf,
    /// Directory that claims the id.
    pub claim: PathBuf,
    /// Where people look for it (a demo's `.demo`), which is `dir` too unless its path is too long.
    pub home: Option<PathBuf>,
    /// Where the hub writes its kubeconfig.
    pub kubeconfig: PathBuf,
    /// Port of the API, where tools reach the bus, and where nodes connect.
    pub ports: Ports,
    number: u16,
}

/// The hub's ports.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    /// The Kubernetes API.
    pub api: u16,
    /// Tools.
    pub bus: u16,
    /// Nodes.
    pub leaf: u16,
    /// The rules' REST entry.
    pub rest: u16,
}

impl Site {
    /// Claims an id, and begins the ledger before anything else is made.
    pub fn allocate(name: &str, options: Options) -> anyhow::Result<Self> {
        let used = command("ip", &["-4", "route", "show", "table", "all"])?;
        // Different starting points, so that tests that start together do not try the same ids.
        let first = u16::try_from(std::process::id() % u32::from(IDS_MAX)).unwrap_or_default();
        for number in (0..IDS_MAX).map(|n| (first + n * 7) % IDS_MAX) {
            let id = format!("{number:03x}");
            let prefix = format!(" {}", subnet(number, 0).to_string().trim_end_matches(".0"));
            let taken = used.lines().any(|line| format!(" {line}").contains(&format!("{prefix}.")));
            let claim = PathBuf::from(format!("/tmp/ew-{id}"));
            if taken || std::fs::create_dir(&claim).is_err() {
                continue;
            }
            let home = match options.home {
                Some(home) => {
                    std::fs::create_dir_all(&home)
                        .with_context(|| format!("cannot make {}", home.display()))?;
                    Some(std::fs::canonicalize(&home)?)
                }
                None => None,
            };
            let fits = |home: &&PathBuf| home.as_os_str().len() <= DIR_MAX_BYTES;
            let dir = home.as_ref().filter(fits).unwrap_or(&claim).clone();
            let kubeconfig = home.as_ref().unwrap_or(&dir).join("kubeconfig");
            let ports = Ports { api: 6443, bus: 4222, leaf: 7422, rest: 9443 };
            let site = Self { id, name: name.to_owned(), dir, claim, home, kubeconfig, ports, number };
            Ledger::begin(&site)?;
            return Ok(site);
        }
        bail!("EW-DEMO-IDS: all {IDS_MAX} ids are taken; see /tmp/ew-* and `make clean-demo`")
    }

    /// The hub's address: a bridge's, in the machine's own network namespace.
    pub fn hub_address(&self) -> Ipv4Addr {
        subnet(self.number, 1)
    }

    /// The address of the `n`th node.
    pub fn edge_address(&self, n: usize) -> Ipv4Addr {
        subnet(self.number, 11 + u8::try_from(n).unwrap_or_default())
    }

    /// The bridge.
    pub fn bridge(&self) -> String {
        format!("ew{}", self.id)
    }

    /// The bridge's end of the `n`th node's link.
    pub fn veth(&self, n: usize) -> String {
        format!("ew{}-{n}", self.id)
    }

    /// The nft table of the cuts.
    pub fn table(&self) -> String {
        format!("ew_{}", self.id)
    }

    /// What [`MARK_ENV`] says in the processes of `member` (`hub` or a node's name).
    pub fn mark(&self, member: &str) -> String {
        format!("{}/{member}", self.id)
    }

    /// Its ledger.
    pub fn ledger(&self) -> PathBuf {
        self.home.as_ref().unwrap_or(&self.dir).join("ledger")
    }

    /// The image of a member's own disk, where it has one.
    pub fn disk_image(&self, member: &str) -> PathBuf {
        self.dir.join(format!("{member}.disk"))
    }

    /// The data directory of a member.
    pub fn member_dir(&self, member: &str) -> PathBuf {
        self.dir.join(member)
    }
}

fn subnet(number: u16, host: u8) -> Ipv4Addr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(10, 208 + high, low, host)
}

/// The paths that a program of the cluster may name: those in `dir`, with the slash.
pub fn prefix(dir: &Path) -> Vec<u8> {
    let mut bytes = dir.as_os_str().as_encoded_bytes().to_vec();
    bytes.push(b'/');
    bytes
}
