//! Holding a running server still (SIGSTOP) while its files are copied, so that all of them are of one moment.
//!
//! What lies on the disk then is what a kill would leave, and the server comes up from that (see the tests that kill it).
//! A server that is held answers nobody, and one that stays held is worse than none. So a guard is started first: a
//! process in a group of its own that waits for the end of its input and then lets the server go on. Its input is a pipe
//! that ends with us, however we end.

use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::child::Record;

/// A process has this long to stand still: a thread in a system call stops at its end.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(1);
/// A record has some hundred bytes.
const RECORD_MAX_BYTES: u64 = 4096;

/// A server that is held; it goes on when this is dropped.
#[derive(Debug)]
pub struct Held<'a> {
    record: &'a Record,
    guard: Child,
    since: Instant,
}

impl<'a> Held<'a> {
    /// Holds it, and returns when all of it stands still. `guard` is a program that calls [`guard`].
    pub fn begin(record: &'a Record, mut guard: Command) -> io::Result<Self> {
        guard.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        let mut guard = guard.spawn()?;
        let text = serde_json::to_vec(record).unwrap_or_default();
        let told =
            guard.stdin.as_mut().map_or(Ok(()), |input| input.write_all(&text).and_then(|()| input.flush()));
        // From here on dropping it undoes all.
        let this = Self { record, guard, since: Instant::now() };
        told?;
        record.signal(Signal::SIGSTOP);
        while !stands_still(record.pid) {
            if !record.is_alive() || this.since.elapsed() > STOP_TIMEOUT {
                return Err(io::Error::other("the server cannot be held still; does it still run?"));
            }
            std::thread::sleep(POLL);
        }
        Ok(this)
    }

    /// For how long by now.
    pub fn elapsed(&self) -> Duration {
        self.since.elapsed()
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.record.signal(Signal::SIGCONT);
        drop(self.guard.stdin.take()); // the guard says it once more, and ends
        let _ = self.guard.wait(); // it is ours to reap, whatever became of it
    }
}

/// The guard's whole life: reads whom to let go on, waits for the end of its input, and does it.
pub fn guard(mut input: impl Read) -> io::Result<()> {
    let mut text = String::new();
    // An input that breaks has ended too.
    let _ = input.by_ref().take(RECORD_MAX_BYTES).read_to_string(&mut text);
    let record: Record = serde_json::from_str(&text).map_err(io::Error::other)?;
    record.signal(Signal::SIGCONT);
    Ok(())
}

/// Are all threads of the process stopped? (Field 3 of `stat`, proc(5).)
fn stands_still(pid: i32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    threads.flatten().all(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('T'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper() -> (Child, Record) {
        let child = Command::new("sleep").arg("60").spawn().unwrap();
        let record = Record::of(i32::try_from(child.id()).unwrap(), "").unwrap();
        (child, record)
    }

    fn goes_on(pid: i32) {
        let until = Instant::now() + Duration::from_secs(10);
        while stands_still(pid) {
            assert!(Instant::now() < until, "it is still held");
            std::thread::sleep(POLL);
        }
    }

    #[test]
    fn a_held_process_stands_still_and_goes_on_after() {
        let (mut child, record) = sleeper();
        let held = Held::begin(&record, Command::new("cat")).unwrap();
        assert!(stands_still(record.pid));
        drop(held);
        goes_on(record.pid);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(Held::begin(&record, Command::new("cat")).is_err(), "it is gone");
    }

    #[test]
    fn the_guard_lets_it_go_on_when_its_input_ends() {
        let (mut child, record) = sleeper();
        record.signal(Signal::SIGSTOP);
        guard(serde_json::to_vec(&record).unwrap().as_slice()).unwrap();
        goes_on(record.pid);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(guard(&b"rubbish"[..]).is_err());
    }
}
