//! The log pump: a container's stdout and stderr into CRI-format log files, in a process of its own.
//!
//! A container must survive a kill -9 of our agent and of containerd without losing a line or blocking on a full pipe.
//! So neither of them holds its pipes: the task is made with containerd's `binary://` logging, by which the **shim**
//! starts our own program as `PROGRAM log-pump SPEC` with the read ends of the pipes as files 3 and 4. The pump ends when
//! the container does and the pipes are empty. When the disk is full it goes on reading and drops what it cannot
//! write: a workload never blocks on its log. If the pump itself is killed, the container gets EPIPE on its next write.
//!
//! Format: `<RFC 3339 with nanoseconds> stdout|stderr F|P <text>`, `P` for a part of a line that goes on.
//! Sources: containerd `runtime/v2/README.md` ("Logging"), Kubernetes CRI logging design. Reading: [`super::log_reader`].

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

/// First argument of the program that becomes a pump.
pub const LOG_PUMP_COMMAND: &str = "log-pump";
/// Longest text in one line of a log file; longer lines are written in parts.
pub const LINE_MAX_BYTES: usize = 16 * 1024;
/// Read from a pipe at a time.
const READ_BYTES: usize = 32 * 1024;

/// What a pump is told: `<max bytes of a file>:<files kept>:<path>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PumpSpec {
    /// A file is rotated before it grows over this.
    pub file_max_bytes: u64,
    /// Files kept, the live one included.
    pub files_max: u32,
    /// The live file; rotated ones are `<path>.1` (newest) and so on.
    pub path: PathBuf,
}

impl PumpSpec {
    /// The text form.
    pub fn to_text(&self) -> String {
        format!("{}:{}:{}", self.file_max_bytes, self.files_max, self.path.display())
    }

    /// Reads the text form.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, ':');
        Some(Self {
            file_max_bytes: parts.next()?.parse().ok()?,
            files_max: parts.next()?.parse().ok()?,
            path: parts.next().filter(|path| !path.is_empty())?.into(),
        })
    }

    /// containerd's URI for a task's stdout and stderr that makes its shim start `program` as this pump.
    pub fn uri(&self, program: &Path) -> String {
        let program = percent_encode(&program.to_string_lossy(), "/");
        format!("binary://{program}?{LOG_PUMP_COMMAND}={}", percent_encode(&self.to_text(), "/:"))
    }
}

fn percent_encode(text: &str, keep: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        let plain = byte.is_ascii_alphanumeric() || b"-_.".contains(&byte) || keep.as_bytes().contains(&byte);
        if plain { out.push(char::from(byte)) } else { out.push_str(&format!("%{byte:02X}")) }
    }
    out
}

/// The `n`th rotated file of a log; 0 is the live one.
pub fn rotated(path: &Path, n: u32) -> PathBuf {
    if n == 0 {
        return path.to_owned();
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{n}"));
    name.into()
}

/// `main` of the pump. The program that embeds it calls this first thing when its first argument is
/// [`LOG_PUMP_COMMAND`], before it starts any thread or runtime.
pub fn log_pump_main() -> ExitCode {
    let mut args = std::env::args().skip(1).skip_while(|arg| arg == LOG_PUMP_COMMAND);
    let Some(spec) = args.next().as_deref().and_then(PumpSpec::parse) else {
        eprintln!(
            "log-pump is started by containerd's shim: give BYTES:FILES:PATH and pipes as files 3, 4 and 5"
        );
        return ExitCode::from(2);
    };
    match pump(spec) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("log-pump cannot start: {error}");
            ExitCode::FAILURE
        }
    }
}

fn pump(spec: PumpSpec) -> std::io::Result<()> {
    // The shim sends SIGTERM as soon as the container has exited; what is still in the pipes must be written first.
    let mut quiet = nix::sys::signal::SigSet::empty();
    for signal in [nix::sys::signal::SIGTERM, nix::sys::signal::SIGINT, nix::sys::signal::SIGHUP] {
        quiet.add(signal);
    }
    quiet.thread_block()?;
    let stdout = File::open("/proc/self/fd/3")?;
    let stderr = File::open("/proc/self/fd/4")?;
    let log = Arc::new(Mutex::new(LogFile::open(spec)?));
    // Closing file 5 tells the shim that we are ready: only then does the container start.
    nix::unistd::close(5)?;
    let other = Arc::clone(&log);
    let second =
        std::thread::Builder::new().stack_size(128 * 1024).spawn(move || drain(stderr, "stderr", &other))?;
    drain(stdout, "stdout", &log);
    second.join().map_err(|_| std::io::Error::other("the stderr thread ended badly"))
}

/// Reads a pipe to its end.
fn drain(mut pipe: impl Read, stream: &str, log: &Mutex<LogFile>) {
    let mut chunk = vec![0; READ_BYTES];
    let mut lines = Lines::new(stream);
    loop {
        let part = match pipe.read(&mut chunk) {
            Ok(n) => chunk.get(..n).unwrap_or_default(),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) => &[],
        };
        let now = jiff::Timestamp::now();
        let out = if part.is_empty() { lines.finish(now) } else { lines.push(part, now) };
        if !out.is_empty() {
            log.lock().unwrap_or_else(PoisonError::into_inner).write(&out);
        }
        if part.is_empty() {
            return;
        }
    }
}

/// Cuts one stream into CRI lines. Pure.
struct Lines {
    stream: String,
    partial: Vec<u8>,
}

impl Lines {
    fn new(stream: &str) -> Self {
        Self { stream: stream.to_owned(), partial: Vec::new() }
    }

    fn push(&mut self, bytes: &[u8], now: jiff::Timestamp) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len() + 64);
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, whole) = match piece.split_last() {
                Some((b'\n', text)) => (text, true),
                _ => (piece, false),
            };
            self.partial.extend_from_slice(text);
            while self.partial.len() > LINE_MAX_BYTES {
                let rest = self.partial.split_off(LINE_MAX_BYTES);
                self.line(&mut out, 'P', now);
                self.partial = rest;
            }
            if whole {
                self.line(&mut out, 'F', now);
            }
        }
        out
    }

    /// The pipe has ended: what has no newline is a part that is never finished.
    fn finish(&mut self, now: jiff::Timestamp) -> Vec<u8> {
        let mut out = Vec::new();
        if !self.partial.is_empty() {
            self.line(&mut out, 'P', now);
        }
        out
    }

    fn line(&mut self, out: &mut Vec<u8>, tag: char, now: jiff::Timestamp) {
        let time = now.strftime("%Y-%m-%dT%H:%M:%S.%9fZ");
        out.extend_from_slice(format!("{time} {} {tag} ", self.stream).as_bytes());
        out.append(&mut self.partial);
        out.push(b'\n');
    }
}

/// The live log file, with rotation.
struct LogFile {
    spec: PumpSpec,
    file: Option<File>,
    size_bytes: u64,
}

impl LogFile {
    fn open(spec: PumpSpec) -> std::io::Result<Self> {
        if let Some(parent) = spec.path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let (file, size_bytes) = open_append(&spec.path)?;
        Ok(Self { spec, file: Some(file), size_bytes })
    }

    /// Never fails: what cannot be written is lost, so that the container goes on.
    fn write(&mut self, bytes: &[u8]) {
        let more = bytes.len() as u64;
        if self.size_bytes > 0 && self.size_bytes.saturating_add(more) > self.spec.file_max_bytes {
            self.rotate();
        }
        if self.file.is_none()
            && let Ok((file, size_bytes)) = open_append(&self.spec.path)
        {
            (self.file, self.size_bytes) = (Some(file), size_bytes);
        }
        if let Some(file) = &mut self.file
            && file.write_all(bytes).is_ok()
        {
            self.size_bytes = self.size_bytes.saturating_add(more);
        }
    }

    fn rotate(&mut self) {
        let last = self.spec.files_max.saturating_sub(1);
        let path = &self.spec.path;
        // A rename that fails (nothing there yet) leaves nothing to keep.
        let _ = std::fs::remove_file(rotated(path, last));
        for n in (0..last).rev() {
            let _ = std::fs::rename(rotated(path, n), rotated(path, n + 1));
        }
        self.file = None;
        self.size_bytes = 0;
    }
}

fn open_append(path: &Path) -> std::io::Result<(File, u64)> {
    let file = OpenOptions::new().create(true).append(true).mode(0o640).open(path)?;
    let size_bytes = file.metadata()?.len();
    Ok((file, size_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spec_survives_the_uri() {
        let spec = PumpSpec { file_max_bytes: 10, files_max: 3, path: "/a b/c:d&e.log".into() };
        assert_eq!(PumpSpec::parse(&spec.to_text()), Some(spec.clone()));
        assert_eq!(spec.uri(Path::new("/x y")), "binary:///x%20y?log-pump=10:3:/a%20b/c:d%26e.log");
        assert_eq!(PumpSpec::parse("1:2:"), None);
    }

    #[test]
    fn lines_are_cut_at_newlines_and_at_the_bound() {
        let now = jiff::Timestamp::from_millisecond(5).unwrap();
        let mut lines = Lines::new("stdout");
        assert_eq!(lines.push(b"ab\ncd", now), b"1970-01-01T00:00:00.005000000Z stdout F ab\n".to_vec());
        let out = String::from_utf8(lines.push(&[b'x'; LINE_MAX_BYTES], now)).unwrap();
        assert!(out.starts_with("1970-01-01T00:00:00.005000000Z stdout P cdx"), "{out:.60}");
        let out = String::from_utf8(lines.finish(now)).unwrap();
        assert_eq!(out, "1970-01-01T00:00:00.005000000Z stdout P xx\n");
    }

    #[test]
    fn files_rotate_and_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log =
            LogFile::open(PumpSpec { file_max_bytes: 10, files_max: 3, path: path.clone() }).unwrap();
        for n in 0..9 {
            log.write(format!("line {n}\n").as_bytes());
        }
        let text = |n| std::fs::read_to_string(rotated(&path, n)).unwrap();
        assert_eq!((text(0), text(1), text(2)), ("line 8\n".into(), "line 7\n".into(), "line 6\n".into()));
        assert!(!rotated(&path, 3).exists());
    }
}
