//! Finding and killing exactly the processes of a cluster, never by a name.
//!
//! A process belongs to it when its environment carries our mark (it is inherited: servers, containerd, shims), when it
//! descends from such a one, when its root file system lies in our directory (containers), or when it is a log pump or a
//! shim whose arguments name a file in our directory. A shell of a user's that only looks in there does not.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::site::{MARK_ENV, prefix};

/// Processes that got SIGKILL are gone after at most so long.
const GONE_TIMEOUT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(10);

/// Which processes.
#[derive(Debug, Clone)]
pub struct Which<'a> {
    /// The mark in their environment: `<id>/<member>`, or `<id>/` for all members.
    pub mark: &'a str,
    /// The directory of the member, or of the cluster.
    pub dir: &'a Path,
}

struct Seen {
    pid: i32,
    parent: i32,
    ours: bool,
}

impl Which<'_> {
    /// Their pids now.
    pub fn find(&self) -> BTreeSet<i32> {
        let me = i32::try_from(std::process::id()).unwrap_or_default();
        let all: Vec<Seen> =
            pids().into_iter().filter(|pid| *pid != me).filter_map(|pid| self.look(pid)).collect();
        let mut found: BTreeSet<i32> = all.iter().filter(|seen| seen.ours).map(|seen| seen.pid).collect();
        loop {
            let before = found.len();
            let children = all.iter().filter(|seen| found.contains(&seen.parent)).map(|seen| seen.pid);
            let children: Vec<i32> = children.collect();
            found.extend(children);
            if found.len() == before {
                return found;
            }
        }
    }

    /// Kills all of them at once (SIGKILL), and what they started meanwhile.
    pub fn kill9(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + GONE_TIMEOUT;
        loop {
            let found = self.find();
            if found.is_empty() {
                return Ok(());
            }
            anyhow::ensure!(Instant::now() < deadline, "processes do not go: {found:?}");
            for pid in found {
                signal(pid, Signal::SIGKILL);
            }
            std::thread::sleep(POLL);
        }
    }

    /// Stops all of them in their tracks (SIGSTOP).
    pub fn stop(&self) {
        for pid in self.find() {
            signal(pid, Signal::SIGSTOP);
        }
    }

    fn look(&self, pid: i32) -> Option<Seen> {
        let proc = Path::new("/proc").join(pid.to_string());
        let stat = std::fs::read_to_string(proc.join("stat")).ok()?;
        let (_, rest) = stat.rsplit_once(')')?;
        let mut fields = rest.split_whitespace();
        if matches!(fields.next()?, "Z" | "X") {
            return None;
        }
        let parent = fields.next()?.parse().ok()?;
        let read = |name: &str| std::fs::read(proc.join(name)).unwrap_or_default();
        let ours =
            self.marked(&read("environ")) || self.named(&read("cmdline")) || self.rooted(&read("mountinfo"));
        Some(Seen { pid, parent, ours })
    }

    fn marked(&self, environ: &[u8]) -> bool {
        let wanted = format!("{MARK_ENV}={}", self.mark);
        environ.split(|b| *b == 0).any(|entry| match wanted.ends_with('/') {
            true => entry.starts_with(wanted.as_bytes()),
            false => entry == wanted.as_bytes(),
        })
    }

    fn named(&self, cmdline: &[u8]) -> bool {
        let prefix = prefix(self.dir);
        let holds = |text: &[u8]| text.windows(prefix.len()).any(|part| part == prefix);
        let mut arguments = cmdline.split(|b| *b == 0);
        let program = arguments.next().unwrap_or_default();
        let is = |name: &[u8]| program.ends_with(name);
        let rest: Vec<&[u8]> = arguments.collect();
        (is(b"containerd-shim-runc-v2") || rest.first() == Some(&b"log-pump".as_slice()))
            && rest.iter().any(|argument| holds(argument))
    }

    fn rooted(&self, mountinfo: &[u8]) -> bool {
        let text = String::from_utf8_lossy(mountinfo);
        let root = text.lines().find(|line| line.split(' ').nth(4) == Some("/"));
        let prefix = String::from_utf8_lossy(&prefix(self.dir)).into_owned();
        root.is_some_and(|line| {
            ["=", ":", " "].iter().any(|before| line.contains(&format!("{before}{prefix}")))
        })
    }
}

fn pids() -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Sends a signal; a process that has gone is fine.
pub fn signal(pid: i32, signal: Signal) {
    let _ = kill(Pid::from_raw(pid), signal);
}
