//! Reading a container's log: tail, since, follow across rotation, timestamps, a byte limit. One chunk at a time, so a
//! slow reader costs no memory. What is written: [`super::logs`].

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use schemas::Timestamp;
use tokio::sync::watch;

use super::RuntimeError;
use super::logs::{LINE_MAX_BYTES, rotated};

/// Read from a file at a time.
const READ_BYTES: usize = 16 * 1024;
/// How often a followed log is looked at.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(100);
/// A line without an end is given up at this size: nothing of ours writes such.
const BROKEN_LINE_BYTES: usize = 4 * LINE_MAX_BYTES;
/// Rotated files that are looked for.
const FILES_MAX: u32 = 100;

/// What to read of a log.
#[derive(Debug, Clone, Default)]
pub struct LogOptions {
    /// Go on with what is written later, until the container has ended.
    pub follow: bool,
    /// Only the last so many lines.
    pub tail_lines: Option<u64>,
    /// Only lines of this time or later.
    pub since: Option<Timestamp>,
    /// Begin each line with its time.
    pub timestamps: bool,
    /// Stop after so many bytes.
    pub limit_bytes: Option<u64>,
}

/// An open log. Dropping it stops the reading.
pub struct LogReader {
    path: PathBuf,
    options: LogOptions,
    /// Does the container run? A followed log ends when it does not.
    running: watch::Receiver<bool>,
    file: Option<(File, u64)>,
    pending: Vec<u8>,
    skip_lines: u64,
    left_bytes: u64,
    at_line_start: bool,
    last_pass: bool,
}

impl LogReader {
    /// Opens the log at `path` (the live file of it).
    pub fn open(
        path: &Path,
        options: LogOptions,
        running: watch::Receiver<bool>,
    ) -> Result<Self, RuntimeError> {
        let failed = |error| RuntimeError::io(format!("read the log {}", path.display()))(error);
        let files = files_of(path);
        let (start, skip_lines) = match options.tail_lines {
            Some(lines) => tail_start(&files, lines).map_err(failed)?,
            None => (0, 0),
        };
        let file = files.into_iter().nth(start).map(|(file, inode, _)| (file, inode));
        let left_bytes = options.limit_bytes.unwrap_or(u64::MAX);
        Ok(Self {
            path: path.to_owned(),
            options,
            running,
            file,
            pending: Vec::new(),
            skip_lines,
            left_bytes,
            at_line_start: true,
            last_pass: false,
        })
    }

    /// The next bytes; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, RuntimeError> {
        loop {
            if self.left_bytes == 0 {
                return Ok(None);
            }
            let n = self
                .fill()
                .map_err(|e| RuntimeError::io(format!("read the log {}", self.path.display()))(e))?;
            let mut out = self.take_lines();
            if !out.is_empty() {
                let limit = usize::try_from(self.left_bytes).unwrap_or(usize::MAX);
                out.truncate(limit);
                self.left_bytes = self.left_bytes.saturating_sub(out.len() as u64);
                return Ok(Some(out.into()));
            }
            if n > 0 || self.turn_page() {
                continue;
            }
            if !self.options.follow || self.last_pass {
                return Ok(None);
            }
            // The pump may write a little longer than the container runs: one more look after it has ended.
            if *self.running.borrow() {
                let changed = tokio::time::timeout(FOLLOW_INTERVAL, self.running.changed()).await;
                // Nobody left to say that it runs.
                self.last_pass = matches!(changed, Ok(Err(_)));
            } else {
                tokio::time::sleep(FOLLOW_INTERVAL).await;
                self.last_pass = true;
            }
        }
    }

    /// The reader as a stream of bytes.
    pub fn into_stream(self) -> impl futures::Stream<Item = Result<Bytes, RuntimeError>> + Send {
        futures::stream::unfold(Some(self), |reader| async {
            let mut reader = reader?;
            match reader.next().await {
                Ok(Some(bytes)) => Some((Ok(bytes), Some(reader))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        })
    }

    /// Small reads of local files, mostly from the page cache: not worth a thread each.
    fn fill(&mut self) -> std::io::Result<usize> {
        let Some((file, _)) = &mut self.file else { return Ok(0) };
        let old = self.pending.len();
        let n = file.take(READ_BYTES as u64).read_to_end(&mut self.pending)?;
        if old + n > BROKEN_LINE_BYTES && !self.pending.contains(&b'\n') {
            self.pending.clear();
        }
        Ok(n)
    }

    /// Goes to the next newer file. Only called at the end of one, but what was written between that and the rotation
    /// must still be read: the page is turned when a second look finds the end too.
    fn turn_page(&mut self) -> bool {
        let files = files_of(&self.path);
        let Some((_, inode)) = &self.file else {
            self.file = files.into_iter().next().map(|(file, inode, _)| (file, inode));
            return self.file.is_some();
        };
        let at = files.iter().position(|(_, have, _)| have == inode);
        let next = match at {
            Some(at) => files.into_iter().nth(at + 1),
            None => files.into_iter().next(),
        };
        let Some((file, inode, _)) = next else { return false };
        match self.fill() {
            Ok(0) => {
                self.file = Some((file, inode));
                self.pending.clear();
                true
            }
            _ => true,
        }
    }

    fn take_lines(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        let pending = std::mem::take(&mut self.pending);
        let mut rest = pending.as_slice();
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (line, tail) = rest.split_at(end);
            rest = tail.get(1..).unwrap_or_default();
            self.line(line, &mut out);
        }
        self.pending = rest.to_vec();
        out
    }

    fn line(&mut self, line: &[u8], out: &mut Vec<u8>) {
        // time, stream, tag, text
        let mut parts = line.splitn(4, |byte| *byte == b' ');
        let (Some(time), Some(_), Some(tag), Some(text)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return;
        };
        let whole = tag == b"F";
        if self.skip_lines > 0 {
            self.skip_lines -= u64::from(whole);
            return;
        }
        if let Some(since) = self.options.since {
            let at = std::str::from_utf8(time).ok().and_then(Timestamp::parse);
            if at.is_some_and(|at| at < since) {
                return;
            }
        }
        if self.options.timestamps && self.at_line_start {
            out.extend_from_slice(time);
            out.push(b' ');
        }
        out.extend_from_slice(text);
        if whole {
            out.push(b'\n');
        }
        self.at_line_start = whole;
    }
}

/// The files of a log that exist, oldest first: handle, inode, path.
fn files_of(path: &Path) -> Vec<(File, u64, PathBuf)> {
    let mut out = Vec::new();
    for n in 0..FILES_MAX {
        let path = rotated(path, n);
        let Ok(file) = File::open(&path) else {
            // In the midst of a rotation the live file is away for a moment.
            if n == 0 { continue } else { break }
        };
        if let Ok(inode) = file.metadata().map(|m| m.ino()) {
            out.push((file, inode, path));
        }
    }
    out.reverse();
    out
}

/// In which file the last `lines` lines begin, and how many of its lines come before them.
fn tail_start(files: &[(File, u64, PathBuf)], lines: u64) -> std::io::Result<(usize, u64)> {
    let mut wanted = lines;
    for (at, (_, _, path)) in files.iter().enumerate().rev() {
        let have = count_lines(path)?;
        if have >= wanted {
            return Ok((at, have - wanted));
        }
        wanted -= have;
    }
    Ok((0, 0))
}

/// Whole lines (tag `F`) in a file. The tag stands after the second space.
fn count_lines(path: &Path) -> std::io::Result<u64> {
    let mut file = File::open(path)?;
    let mut chunk = vec![0; READ_BYTES];
    let (mut lines, mut spaces) = (0, 0u8);
    loop {
        let n = file.read(&mut chunk)?;
        if n == 0 {
            return Ok(lines);
        }
        for byte in chunk.get(..n).unwrap_or_default() {
            match byte {
                b'\n' => spaces = 0,
                b' ' if spaces < 3 => spaces += 1,
                b'F' if spaces == 2 => lines += 1,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, lines: &[&str]) {
        let text: String = lines
            .iter()
            .enumerate()
            .map(|(n, text)| format!("2026-01-01T00:00:0{n}.000000000Z stdout F {text}\n"))
            .collect();
        std::fs::write(path, text).unwrap();
    }

    async fn read(path: &Path, options: LogOptions) -> String {
        let (_sender, running) = watch::channel(false);
        let mut reader = LogReader::open(path, options, running).unwrap();
        let mut out = Vec::new();
        while let Some(bytes) = reader.next().await.unwrap() {
            out.extend_from_slice(&bytes);
        }
        String::from_utf8(out).unwrap()
    }

    #[tokio::test]
    async fn options_cut_what_they_say() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        write(&rotated(&path, 1), &["a", "b F x"]);
        write(&path, &["c", "d"]);
        let with = |change: fn(&mut LogOptions)| {
            let mut options = LogOptions::default();
            change(&mut options);
            options
        };
        assert_eq!(read(&path, LogOptions::default()).await, "a\nb F x\nc\nd\n");
        assert_eq!(read(&path, with(|o| o.tail_lines = Some(3))).await, "b F x\nc\nd\n");
        assert_eq!(read(&path, with(|o| o.tail_lines = Some(0))).await, "");
        assert_eq!(read(&path, with(|o| o.tail_lines = Some(99))).await, "a\nb F x\nc\nd\n");
        assert_eq!(read(&path, with(|o| o.limit_bytes = Some(3))).await, "a\nb");
        assert_eq!(
            read(&path, with(|o| o.since = Timestamp::parse("2026-01-01T00:00:01Z"))).await,
            "b F x\nd\n"
        );
        let stamped = read(&path, with(|o| (o.tail_lines, o.timestamps) = (Some(1), true))).await;
        assert_eq!(stamped, "2026-01-01T00:00:01.000000000Z d\n");
    }

    #[tokio::test]
    async fn following_crosses_a_rotation_and_ends_with_the_container() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        write(&path, &["a"]);
        let (sender, running) = watch::channel(true);
        let options = LogOptions { follow: true, ..LogOptions::default() };
        let mut reader = LogReader::open(&path, options, running).unwrap();
        assert_eq!(reader.next().await.unwrap().unwrap(), "a\n");
        write(&path, &["a", "b"]);
        std::fs::rename(&path, rotated(&path, 1)).unwrap();
        write(&path, &["c"]);
        assert_eq!(reader.next().await.unwrap().unwrap(), "b\n");
        assert_eq!(reader.next().await.unwrap().unwrap(), "c\n");
        sender.send(false).unwrap();
        assert_eq!(reader.next().await.unwrap(), None);
    }

    #[test]
    fn a_log_is_read_whatever_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let sample = b"2026-01-01T00:00:00.0Z stdout F a\n2026-01-01T00:00:01.0Z stderr P b\n\xff\n".to_vec();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let options = LogOptions {
            since: Timestamp::parse("2026-01-01T00:00:01Z"),
            timestamps: true,
            tail_lines: Some(2),
            limit_bytes: Some(100),
            ..LogOptions::default()
        };
        crate::fuzz::try_bytes("a log", &[sample], |bytes| {
            std::fs::write(&path, bytes).unwrap();
            for options in [LogOptions::default(), options.clone()] {
                let (_sender, running) = watch::channel(false);
                let mut reader = LogReader::open(&path, options, running).unwrap();
                let mut size_bytes = 0;
                runtime.block_on(async {
                    while let Some(read) = reader.next().await.unwrap() {
                        size_bytes += read.len();
                    }
                });
                assert!(size_bytes <= bytes.len() + 1);
            }
            let _ = crate::runtime::logs::PumpSpec::parse(&String::from_utf8_lossy(bytes));
        });
    }
}
