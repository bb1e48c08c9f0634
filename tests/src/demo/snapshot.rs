//! What stands on this machine, to compare before and after: interfaces, namespaces, mounts, firewall tables, cgroups,
//! shims' sockets, namespaces of the host's own containerd, and processes of the demo.

use std::collections::BTreeSet;
use std::path::Path;

use crate::cluster::command;
use crate::cluster::process::Which;

/// The socket of a containerd of the machine's own.
const HOST_CONTAINERD: &str = "/run/containerd/containerd.sock";

/// One look.
#[derive(Debug)]
pub struct Snapshot(BTreeSet<String>);

impl Snapshot {
    /// Looks.
    pub fn take() -> anyhow::Result<Self> {
        let mut all = BTreeSet::new();
        let mut add = |kind: &str, text: &str| {
            all.extend(text.lines().map(|line| format!("{kind} {}", line.trim())));
        };
        let links = command("ip", &["-o", "link", "show"])?;
        let names = links.lines().filter_map(|line| line.split(": ").nth(1)?.split('@').next());
        add("interface", &names.collect::<Vec<_>>().join("\n"));
        add(
            "address",
            &command("ip", &["-o", "address", "show"])?
                .split_whitespace()
                .filter(|w| w.contains('/'))
                .collect::<Vec<_>>()
                .join("\n"),
        );
        add("netns", &command("ip", &["netns", "list"])?);
        add("mount", &command("findmnt", &["--raw", "--noheadings", "--output", "TARGET"])?);
        add("nft", &command("nft", &["list", "tables"])?);
        for hierarchy in ["", "memory", "cpu", "pids", "devices", "freezer", "systemd"] {
            add("cgroup", &listing(&Path::new("/sys/fs/cgroup").join(hierarchy).join("edgewire")));
        }
        add("shim", &listing(Path::new("/run/containerd/s")));
        if Path::new(HOST_CONTAINERD).exists() {
            add("ctr", &command("ctr", &["-a", HOST_CONTAINERD, "namespaces", "ls", "-q"])?);
        }
        Ok(Self(all))
    }

    /// What stands here and did not stand in `before`, but for what belongs to other clusters; and the processes of
    /// cluster `id` that still run.
    pub fn beyond(&self, before: &Self, id: &str) -> Vec<String> {
        let mut left: Vec<String> =
            self.0.difference(&before.0).filter(|line| !is_anothers(line, id)).cloned().collect();
        let mark = format!("{id}/");
        let dir = super::home();
        left.extend(Which { mark: &mark, dir: &dir }.find().iter().map(|pid| format!("process {pid}")));
        left
    }
}

fn listing(dir: &Path) -> String {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path().display().to_string()).collect::<Vec<_>>().join("\n")
}

/// Tests run beside demos: what carries another cluster's id is not ours. Cgroups and shims' sockets carry none; they
/// are ours to judge only when nothing else runs.
fn is_anothers(line: &str, id: &str) -> bool {
    let hex = |text: &str| text.len() >= 3 && text.chars().take(3).all(|c| c.is_ascii_hexdigit());
    let marked = ["ew-", "ew_", "ew"].iter().any(|mark| {
        line.match_indices(mark)
            .filter_map(|(at, _)| line.get(at + mark.len()..))
            .any(|rest| hex(rest) && !rest.starts_with(id))
    });
    marked
        || (!line.starts_with("process")
            && others_stand(id)
            && ["cgroup", "shim", "address"].iter().any(|kind| line.starts_with(kind)))
}

fn others_stand(id: &str) -> bool {
    let entries = std::fs::read_dir("/tmp").into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter_map(|name| name.strip_prefix("ew-").map(str::to_owned)).any(|other| other != id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ours_is_not_taken_for_anothers() {
        let of = |lines: &[&str]| Snapshot(lines.iter().map(|line| (*line).to_owned()).collect());
        let before = of(&["interface lo", "mount /"]);
        let after =
            of(&["interface lo", "interface ew0af-1", "interface ew0b0", "mount /tmp/ew-0af/x", "mount /x"]);
        let left = after.beyond(&before, "0af");
        assert_eq!(left, ["interface ew0af-1", "mount /tmp/ew-0af/x", "mount /x"]);
    }
}
