//! What a cluster made on this machine, in a file that is synced before any of it is made: so `clean` finds it all, also
//! when the process that made it was killed.
//!
//! Everything is named by the cluster's id, so the ledger holds the id, the directories, and who made it (pid, start
//! time, boot): the rest follows. Removing goes from what is alive to what lies about: processes, mounts, shims' sockets,
//! cgroups, interfaces, nft table, disks, files. What is gone already is fine, and removing twice is.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use bus::server::child::Record;
use nix::mount::{MntFlags, umount2};
use serde::{Deserialize, Serialize};

use super::command;
use super::disk;
use super::process::Which;
use super::site::Site;

/// Under this each controller has its hierarchy (cgroup v1); the first is cgroup v2's only one.
const CGROUP_ROOT: &str = "/sys/fs/cgroup";
/// Parent of all containers' cgroups, as `edge-runtime` has it.
const CGROUP_PARENT: &str = "edgewire";

/// The file.
#[derive(Debug, Serialize, Deserialize)]
pub struct Ledger {
    /// Who made it.
    pub owner: Record,
    /// The cluster's id.
    pub id: String,
    /// What for.
    pub name: String,
    /// Data and logs.
    pub dir: PathBuf,
    /// The directory that claims the id.
    pub claim: PathBuf,
    /// A demo's directory; a test has none.
    pub home: Option<PathBuf>,
    /// The bridge; its nodes' links are `<bridge>-<n>`.
    pub bridge: String,
    /// The nft table.
    pub table: String,
}

impl Ledger {
    /// Writes the ledger of a new cluster, in its directory and, for [`sweep_temporary`], where its id is claimed.
    pub fn begin(site: &Site) -> anyhow::Result<()> {
        let pid = i32::try_from(std::process::id()).unwrap_or_default();
        let ledger = Self {
            owner: Record::of(pid, "").context("our own process is not in /proc")?,
            id: site.id.clone(),
            name: site.name.clone(),
            dir: site.dir.clone(),
            claim: site.claim.clone(),
            home: site.home.clone(),
            bridge: site.bridge(),
            table: site.table(),
        };
        let text = serde_json::to_vec_pretty(&ledger)?;
        for dir in ledger.dirs() {
            let path = dir.join("ledger");
            let mut file =
                std::fs::File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
            file.write_all(&text)?;
            file.sync_all()?;
            std::fs::File::open(dir)?.sync_all()?;
        }
        Ok(())
    }

    /// Every directory of the cluster; each holds the ledger.
    fn dirs(&self) -> BTreeSet<&PathBuf> {
        [&self.dir, &self.claim].into_iter().chain(&self.home).collect()
    }

    /// Reads it.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is not a ledger", path.display()))
    }

    /// Does the process that made it still run?
    pub fn owner_lives(&self) -> bool {
        self.owner.is_alive()
    }

    /// Removes all of it. Every step is tried; the first failure is told.
    pub fn clean(&self) -> anyhow::Result<()> {
        let traces = Traces::of(&self.dir);
        let mark = format!("{}/", self.id);
        let mut outcome = Which { mark: &mark, dir: &self.dir }.kill9();
        let mut note = |step: anyhow::Result<()>| {
            if outcome.is_ok() {
                outcome = step;
            }
        };
        note(unmount(&self.dir));
        note(disk::detach(&self.dir));
        traces.remove();
        for link in links(&self.bridge) {
            let _ = command("ip", &["link", "delete", "dev", &link]); // a veth goes with its namespace, perhaps just now
        }
        if command("nft", &["list", "tables"])?
            .lines()
            .any(|line| line.ends_with(&format!(" {}", self.table)))
        {
            note(command("nft", &["delete", "table", "inet", &self.table]).map(drop));
        }
        for dir in self.dirs() {
            if dir.exists() {
                note(
                    std::fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display())),
                );
            }
        }
        outcome
    }
}

/// Removes what killed tests left: ledgers under `/tmp/ew-*` whose maker is gone. Demos are left to `demo clean`.
pub fn sweep_temporary() {
    let entries = std::fs::read_dir("/tmp").into_iter().flatten().flatten();
    let claims = entries.map(|entry| entry.path());
    for claim in
        claims.filter(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("ew-")))
    {
        let Ok(ledger) = Ledger::read(&claim.join("ledger")) else { continue };
        if ledger.home.is_some() || ledger.owner_lives() {
            continue;
        }
        if let Err(error) = ledger.clean() {
            eprintln!("cannot remove what {} ({}) left: {error:#}", ledger.name, ledger.id);
        }
    }
}

/// Unmounts everything under `dir`, the newest first.
pub fn unmount(dir: &Path) -> anyhow::Result<()> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    let points = text.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    let mut ours: Vec<PathBuf> = points.filter(|point| point.starts_with(dir) && point != dir).collect();
    ours.reverse();
    for point in ours {
        umount2(&point, MntFlags::MNT_DETACH)
            .with_context(|| format!("cannot unmount {}", point.display()))?;
    }
    Ok(())
}

/// Spaces and the like stand as `\040` in mountinfo.
fn unescape(text: &str) -> PathBuf {
    PathBuf::from(
        text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\"),
    )
}

/// What containers leave outside the node's directory when their shims are killed: the shims' sockets, and cgroups.
#[derive(Debug, Default)]
pub struct Traces {
    ids: BTreeSet<String>,
    sockets: BTreeSet<PathBuf>,
}

impl Traces {
    /// Those of the containers of every node under `dir` (or of the node whose data directory it is).
    pub fn of(dir: &Path) -> Self {
        let mut this = Self::default();
        let nodes = children(dir).into_iter().chain([dir.to_owned()]);
        for node in nodes {
            for namespace in children(&node.join("containerd/state/io.containerd.runtime.v2.task")) {
                for bundle in children(&namespace) {
                    this.ids.extend(bundle.file_name().map(|name| name.to_string_lossy().into_owned()));
                    let address = std::fs::read_to_string(bundle.join("address")).unwrap_or_default();
                    this.sockets.extend(address.trim().strip_prefix("unix://").map(PathBuf::from));
                }
            }
        }
        this
    }

    /// Removes them; to be called when the processes are gone.
    pub fn remove(&self) {
        for socket in &self.sockets {
            let _ = std::fs::remove_file(socket); // the shim may have
        }
        let root = Path::new(CGROUP_ROOT);
        for hierarchy in children(root).into_iter().chain([root.to_owned()]) {
            let parent = hierarchy.join(CGROUP_PARENT);
            for id in &self.ids {
                remove_cgroup(&parent.join(id));
            }
            let _ = std::fs::remove_dir(&parent); // stays while another cluster's containers are in it
        }
    }
}

fn remove_cgroup(dir: &Path) {
    for child in children(dir) {
        remove_cgroup(&child);
    }
    let _ = std::fs::remove_dir(dir); // not there in every hierarchy
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn links(bridge: &str) -> Vec<String> {
    let listed = command("ip", &["-o", "link", "show"]).unwrap_or_default();
    let names = listed.lines().filter_map(|line| line.split(": ").nth(1)?.split('@').next());
    let ours =
        |name: &&str| *name == bridge || name.strip_prefix(bridge).is_some_and(|rest| rest.starts_with('-'));
    names.filter(ours).map(str::to_owned).collect()
}
