//! One server process: the record by which a later life of ours knows it again, signals, and the end of its log.
//!
//! A process is known by pid, start time and boot: a pid alone is used again.

use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::identity::write_private;

/// How much of the log's end is looked at.
const LOG_TAIL_MAX_BYTES: u64 = 64 * 1024;
const POLL: Duration = Duration::from_millis(50);

/// The files of one server: `<name>.conf`, `.log`, `.pid`, `.json`.
#[derive(Debug, Clone)]
pub struct Files {
    /// Where they lie.
    pub dir: PathBuf,
    /// Name of the program.
    pub name: &'static str,
}

impl Files {
    /// Its configuration.
    pub fn config(&self) -> PathBuf {
        self.dir.join(format!("{}.conf", self.name))
    }
    /// What it says.
    pub fn log(&self) -> PathBuf {
        self.dir.join(format!("{}.log", self.name))
    }
    /// Its own pid file.
    pub fn pid(&self) -> PathBuf {
        self.dir.join(format!("{}.pid", self.name))
    }
    /// Our [`Record`] of it.
    pub fn record(&self) -> PathBuf {
        self.dir.join(format!("{}.json", self.name))
    }
    /// Where `nats-server` stores streams.
    pub fn store(&self) -> PathBuf {
        self.dir.join("jetstream")
    }

    /// What the log says from byte `from` on, at most the last [`LOG_TAIL_MAX_BYTES`].
    pub fn log_since(&self, from: u64) -> String {
        let Ok(mut file) = std::fs::File::open(self.log()) else { return String::new() };
        let length = self.log_length();
        // A shorter file was rotated: all of it is new.
        let from = if from > length { 0 } else { from };
        let start = from.max(length.saturating_sub(LOG_TAIL_MAX_BYTES));
        let mut bytes = Vec::new();
        let read = file
            .seek(SeekFrom::Start(start))
            .and_then(|_| file.take(LOG_TAIL_MAX_BYTES).read_to_end(&mut bytes));
        if read.is_err() {
            return String::new();
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Its length now.
    pub fn log_length(&self) -> u64 {
        self.log().metadata().map_or(0, |meta| meta.len())
    }
}

/// A process of ours, as it stands on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its pid.
    pub pid: i32,
    /// When it was started, in the kernel's ticks.
    pub start_time: u64,
    /// In which life of the machine.
    pub boot_id: String,
    /// Of what it was started with, users left out.
    pub digest: String,
}

impl Record {
    /// Of the live process `pid`; `None` when there is none (or only its corpse).
    pub fn of(pid: i32, digest: &str) -> Option<Self> {
        let start_time = start_time(pid)?;
        Some(Self { pid, start_time, boot_id: boot_id(), digest: digest.to_owned() })
    }

    /// The process that a former life of ours left running: by its record or, when that was never written, by its own
    /// pid file and our configuration on its command line (then with an empty digest).
    pub fn find(files: &Files) -> Option<Self> {
        let recorded = std::fs::read(files.record()).ok();
        let recorded: Option<Record> = recorded.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        if let Some(record) = recorded.filter(Record::is_alive) {
            return Some(record);
        }
        let pid: i32 = std::fs::read_to_string(files.pid()).ok()?.trim().parse().ok()?;
        let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let config = files.config();
        let config = config.as_os_str().as_encoded_bytes();
        arguments.split(|b| *b == 0).any(|argument| argument == config).then(|| Self::of(pid, ""))?
    }

    /// Is it still that process?
    pub fn is_alive(&self) -> bool {
        self.boot_id == boot_id() && start_time(self.pid) == Some(self.start_time)
    }

    /// Keeps it for a later life of ours.
    pub fn save(&self, files: &Files) -> std::io::Result<()> {
        write_private(&files.record(), &serde_json::to_vec(self).unwrap_or_default())
    }

    /// Sends `signal` if it is still the same process.
    pub fn signal(&self, signal: Signal) {
        if self.is_alive() {
            // It may end in between: then there is nothing to signal.
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }

    /// Waits until it is gone.
    pub async fn gone(&self) {
        while self.is_alive() {
            tokio::time::sleep(POLL).await;
        }
    }

    /// SIGTERM, and SIGKILL when it does not go within `grace`.
    pub async fn stop(&self, grace: Duration) {
        self.signal(Signal::SIGTERM);
        if tokio::time::timeout(grace, self.gone()).await.is_err() {
            self.signal(Signal::SIGKILL);
            self.gone().await;
        }
    }
}

fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// Field 22 of `/proc/<pid>/stat` (proc(5)); `None` when there is no such process or it is a zombie.
fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
    // The second field, in parentheses, may hold spaces; what follows it starts at field 3.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// The lines of a server's log that say what went wrong, the last ones, in one line.
pub fn complaints(log: &str) -> String {
    let bad = |line: &&str| ["[FTL]", "[ERR]", "nats-server:"].iter().any(|mark| line.contains(mark));
    let mut lines: Vec<&str> = log.lines().rev().filter(bad).take(3).collect();
    lines.reverse();
    let text: Vec<String> = lines
        .iter()
        .map(|line| line.split_once("] ").map_or(*line, |(_, rest)| rest).trim().chars().take(300).collect())
        .collect();
    if text.is_empty() { "it says nothing of the cause".to_owned() } else { text.join("; ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_start_and_its_boot() {
        let me = Record::of(i32::try_from(std::process::id()).unwrap(), "d").unwrap();
        assert!(me.is_alive());
        assert!(!Record { start_time: me.start_time + 1, ..me.clone() }.is_alive());
        assert!(!Record { boot_id: "other".into(), ..me }.is_alive());
        assert!(Record::of(i32::MAX, "d").is_none());
    }

    #[test]
    fn complaints_are_short() {
        let log = "[1] 2026/01/01 00:00:00.0 [INF] Starting\n[1] 2026/01/01 00:00:01.0 [FTL] Can't start JetStream: x\n";
        assert_eq!(complaints(log), "2026/01/01 00:00:01.0 [FTL] Can't start JetStream: x");
    }
}
