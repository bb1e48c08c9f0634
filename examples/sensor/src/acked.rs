//! The list of acknowledged readings on disk, and the name of the series they belong to.
//!
//! `acked.log` holds one number a line. A line counts when it is complete and synced; a line that a power cut tore is
//! taken off at the start, and its reading is sent again, which is harmless: the server knows its `Nats-Msg-Id`.
//! `series` makes that id unique: a sensor whose volume was wiped starts at reading 1 of another series.
//! The list grows by some seven bytes a reading; it is an example's, and nobody trims it.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

/// More than enough for the last complete line and a torn one.
const TAIL_BYTES_MAX: u64 = 256;

/// The open list.
pub struct Acked {
    file: File,
    path: PathBuf,
    series: String,
    last: u64,
}

impl Acked {
    /// Opens or makes the files in `dir`.
    pub fn open(dir: &Path) -> Result<Self, String> {
        let problem = |path: &Path, error: &dyn std::fmt::Display| {
            format!("cannot use {}: {error}; mount a writable volume at {}", path.display(), dir.display())
        };
        std::fs::create_dir_all(dir).map_err(|e| problem(dir, &e))?;

        let path = dir.join("acked.log");
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|e| problem(&path, &e))?;
        let last = take_up(&mut file).map_err(|e| problem(&path, &e))?;

        let series_path = dir.join("series");
        let series = match std::fs::read_to_string(&series_path) {
            Ok(series) if !series.is_empty() => series,
            _ => {
                let series = new_series().map_err(|e| problem(&series_path, &e))?;
                write_synced(&series_path, &series).map_err(|e| problem(&series_path, &e))?;
                series
            }
        };
        // The names of new files are not on disk before their directory is.
        File::open(dir).and_then(|d| d.sync_all()).map_err(|e| problem(dir, &e))?;
        Ok(Self { file, path, series, last })
    }

    /// The last acknowledged reading; 0 before the first.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// The name of the series.
    pub fn series(&self) -> &str {
        &self.series
    }

    /// Adds the next reading; on return it is on disk.
    pub fn push(&mut self, n: u64) -> Result<(), String> {
        self.file
            .write_all(format!("{n}\n").as_bytes())
            .and_then(|()| self.file.sync_data())
            .map_err(|e| format!("cannot write {}: {e}; is the volume full?", self.path.display()))?;
        self.last = n;
        Ok(())
    }
}

/// Finds the last complete line, takes off what stands behind it, and leaves the file there to be written on.
fn take_up(file: &mut File) -> std::io::Result<u64> {
    let length = file.metadata()?.len();
    let start = length.saturating_sub(TAIL_BYTES_MAX);
    file.seek(SeekFrom::Start(start))?;
    let mut tail = Vec::new();
    file.take(TAIL_BYTES_MAX).read_to_end(&mut tail)?;
    let complete = tail.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    let end = start + complete as u64;
    if end < length {
        file.set_len(end)?;
        file.sync_all()?;
    }
    file.seek(SeekFrom::Start(end))?;
    if end == 0 {
        return Ok(0);
    }
    let lines = String::from_utf8_lossy(tail.get(..complete).unwrap_or_default()).into_owned();
    lines.lines().next_back().and_then(|line| line.parse().ok()).ok_or_else(|| {
        std::io::Error::new(
            std::io::ErrorKind::InvalidData,
            "its last line is not a number; move the file away",
        )
    })
}

/// A name that no other sensor has; the kernel makes it.
fn new_series() -> std::io::Result<String> {
    let uuid = std::fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    Ok(uuid.trim().chars().take(8).collect())
}

fn write_synced(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_continues_where_it_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let mut acked = Acked::open(dir.path()).unwrap();
        assert_eq!(acked.last(), 0);
        let series = acked.series().to_owned();
        for n in 1..=300 {
            acked.push(n).unwrap();
        }
        drop(acked);
        let mut acked = Acked::open(dir.path()).unwrap();
        assert_eq!((acked.last(), acked.series()), (300, series.as_str()));
        acked.push(301).unwrap();
        let lines: Vec<u64> = std::fs::read_to_string(dir.path().join("acked.log"))
            .unwrap()
            .lines()
            .map(|l| l.parse().unwrap())
            .collect();
        assert_eq!(lines, (1..=301).collect::<Vec<_>>());
    }

    #[test]
    fn a_torn_line_is_taken_off() {
        for (before, last, after) in
            [("1\n2\n3", 2, "1\n2\n"), ("1", 0, ""), ("", 0, ""), ("9\n10\n", 10, "9\n10\n")]
        {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("acked.log"), before).unwrap();
            assert_eq!(Acked::open(dir.path()).unwrap().last(), last, "{before:?}");
            assert_eq!(std::fs::read_to_string(dir.path().join("acked.log")).unwrap(), after);
        }
    }

    #[test]
    fn what_is_no_list_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("acked.log"), "hello\n").unwrap();
        assert!(Acked::open(dir.path()).err().unwrap().contains("move the file away"));
        assert_eq!(std::fs::read_to_string(dir.path().join("acked.log")).unwrap(), "hello\n");
    }
}
