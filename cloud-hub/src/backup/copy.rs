//! Copying what the hub keeps while its server runs: once at leisure, then once more what changed, while it stands still.
//! So the copy is of one moment, and the server stands still for as long as a few blocks take.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// All that makes a hub this hub. Of the rest, the modules' store holds nothing that is not rebuilt, and the server's
/// configuration and the kubeconfig are written at each start.
pub const PARTS: [&str; 4] = ["keys", "tls", "admin.token", "nats/jetstream"];

/// A file that changed so shortly before it was copied may have changed again within the same tick of the clock.
const RACY: Duration = Duration::from_secs(2);

/// Which version of a file it is.
#[derive(Debug, Clone, PartialEq)]
struct Stamp {
    size: u64,
    inode: u64,
    changed: (i64, i64, i64, i64),
}

impl Stamp {
    fn of(meta: &Metadata) -> Self {
        let changed = (meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec());
        Self { size: meta.len(), inode: meta.ino(), changed }
    }

    fn is_racy(&self, copied: SystemTime) -> bool {
        let seconds = copied.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let changed = Duration::from_secs(u64::try_from(self.changed.0.max(self.changed.2)).unwrap_or(0));
        seconds.saturating_sub(changed) < RACY
    }
}

/// Copies the [`PARTS`] of one directory into another, and knows what it has copied.
#[derive(Debug)]
pub struct Copier<'a> {
    from: &'a Path,
    to: &'a Path,
    copied: BTreeMap<PathBuf, (Stamp, bool)>,
}

impl<'a> Copier<'a> {
    /// `to` is to be empty.
    pub fn new(from: &'a Path, to: &'a Path) -> Self {
        Self { from, to, copied: BTreeMap::new() }
    }

    /// Copies what is new or changed since the last pass and removes what is gone. `go_on` is asked before each file:
    /// its error ends the pass. Gives the bytes that were copied.
    pub fn pass(&mut self, mut go_on: impl FnMut() -> io::Result<()>) -> io::Result<u64> {
        let mut files = BTreeSet::new();
        for part in PARTS {
            self.walk(Path::new(part), &mut files)?;
        }
        let gone: Vec<PathBuf> = self.copied.keys().filter(|path| !files.contains(*path)).cloned().collect();
        for path in gone {
            fs::remove_file(self.to.join(&path)).map_err(|error| named(&self.to.join(&path), error))?;
            self.copied.remove(&path);
        }
        let mut bytes = 0;
        for path in files {
            go_on()?;
            bytes += self.file(path)?;
        }
        Ok(bytes)
    }

    fn walk(&self, path: &Path, files: &mut BTreeSet<PathBuf>) -> io::Result<()> {
        let full = self.from.join(path);
        let meta = match fs::symlink_metadata(&full) {
            Ok(meta) => meta,
            // Gone since it was listed, or never there.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(named(&full, error)),
        };
        if meta.is_file() {
            files.insert(path.to_owned());
        } else if meta.is_dir() {
            make_dir(&self.to.join(path))?;
            let entries = match fs::read_dir(&full) {
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
                entries => entries.map_err(|error| named(&full, error))?,
            };
            for entry in entries {
                let name = entry.map_err(|error| named(&full, error))?.file_name();
                self.walk(&path.join(name), files)?;
            }
        }
        Ok(())
    }

    fn file(&mut self, path: PathBuf) -> io::Result<u64> {
        let (from, to) = (self.from.join(&path), self.to.join(&path));
        let opened = fs::File::open(&from).and_then(|file| file.metadata().map(|meta| (file, meta)));
        let (mut source, meta) = match opened {
            Ok(opened) => opened,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                if self.copied.remove(&path).is_some() {
                    fs::remove_file(&to).map_err(|error| named(&to, error))?;
                }
                return Ok(0);
            }
            Err(error) => return Err(named(&from, error)),
        };
        let stamp = Stamp::of(&meta);
        if self.copied.get(&path).is_some_and(|(before, racy)| *before == stamp && !racy) {
            return Ok(0);
        }
        let racy = stamp.is_racy(SystemTime::now());
        let mut options = fs::OpenOptions::new();
        let mut target = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&to)
            .map_err(|error| named(&to, error))?;
        let bytes = io::copy(&mut source, &mut target).map_err(|error| named(&to, error))?;
        self.copied.insert(path, (stamp, racy));
        Ok(bytes)
    }
}

/// Makes a directory, and what is missing above it, for its owner alone.
pub fn make_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| named(path, error))
}

/// The error with the file's name.
pub fn named(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_pass_makes_the_copy_equal() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let write = |name: &str, text: &str| {
            fs::create_dir_all(from.join(name).parent().unwrap()).unwrap();
            fs::write(from.join(name), text).unwrap();
        };
        for name in ["keys/a", "tls/b", "nats/jetstream/s/1", "nats/jetstream/s/2", "nats/log", "state/x"] {
            write(name, name);
        }
        let mut copier = Copier::new(&from, &to);
        make_dir(&to).unwrap();
        copier.pass(|| Ok(())).unwrap();
        // The same size within the same tick of the clock, one gone, one new; a part that came late.
        write("nats/jetstream/s/1", "nats/jetstream/s/X");
        fs::remove_file(from.join("nats/jetstream/s/2")).unwrap();
        write("nats/jetstream/s/3", "3");
        write("admin.token", "t");
        copier.pass(|| Ok(())).unwrap();
        let text = |name: &str| fs::read_to_string(to.join(name)).ok();
        assert_eq!(text("nats/jetstream/s/1").as_deref(), Some("nats/jetstream/s/X"));
        assert_eq!(text("nats/jetstream/s/2"), None);
        assert_eq!(text("nats/jetstream/s/3").as_deref(), Some("3"));
        assert_eq!((text("keys/a").as_deref(), text("admin.token").as_deref()), (Some("keys/a"), Some("t")));
        assert_eq!((text("nats/log"), text("state/x")), (None, None), "not a part of the hub");
        assert!(copier.pass(|| Err(io::Error::other("stop"))).is_err());
    }

    #[test]
    fn what_has_not_changed_is_not_copied_again() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        make_dir(&from.join("keys")).unwrap();
        fs::write(from.join("keys/a"), "old").unwrap();
        let old = SystemTime::now() - Duration::from_secs(60);
        fs::File::options().write(true).open(from.join("keys/a")).unwrap().set_modified(old).unwrap();
        let stamp = Stamp::of(&fs::metadata(from.join("keys/a")).unwrap());
        assert!(stamp.is_racy(SystemTime::now()), "its ctime is of now");
        assert!(!stamp.is_racy(SystemTime::now() + Duration::from_secs(10)));
        make_dir(&to).unwrap();
        let mut copier = Copier::new(&from, &to);
        copier.copied.insert("keys/a".into(), (stamp, false));
        assert_eq!(copier.pass(|| Ok(())).unwrap(), 0);
    }
}
