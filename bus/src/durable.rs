//! What the modules of a process keep on disk: their saved state and the reports they still owe, in one sled.
//!
//! State and owed reports of one decision are one flushed transaction, so after a crash either both are there or neither
//! (invariant 6). Values begin with a version byte. A store that cannot be read is moved aside and a new one begun; the
//! caller tells it as an event, and nothing stops because of it (invariant 7).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use schemas::envelope::Headers;
use serde::{Deserialize, Serialize};
use sled::Transactional;
use sled::transaction::ConflictableTransactionError;

/// sled's page cache. Small: our state is, and the node's memory is too.
const CACHE_BYTES: u64 = 1024 * 1024;
/// The key that says that the store was begun.
const SEAL: &[u8] = b"seal";
/// sled's own lock is waited for so long.
const LET_GO_TIMEOUT: Duration = Duration::from_secs(5);
/// And tried again so often.
const LET_GO_PAUSE: Duration = Duration::from_millis(20);
/// With less room than this a write might fail. ext4 keeps 16 MiB that it counts as free and gives to nobody.
const ROOM_MIN_BYTES: u64 = 32 * 1024 * 1024;
/// Version of the values.
const VERSION: u8 = 1;
/// Reports that a module may owe; beyond it the oldest that a newer one of the same subject replaces goes first, then
/// the oldest event. Never a last report of a subject.
pub const OWED_MAX: usize = 20_000;

/// Why the store failed.
#[derive(Debug, thiserror::Error)]
pub enum DurableError {
    /// Another process has it.
    #[error("EW-DATA-DIR-BUSY: another process uses the store at {path}; is this program running already?")]
    Busy {
        /// Where it is.
        path: PathBuf,
    },
    /// sled's words, with the file.
    #[error("the store at {path} failed: {source}; is the disk full or failing?")]
    Store {
        /// Where it is.
        path: PathBuf,
        /// The cause.
        #[source]
        source: sled::Error,
    },
}

impl DurableError {
    /// The disk was full: the store is good again once it is opened anew, with room.
    pub fn is_full(&self) -> bool {
        matches!(self, DurableError::Store { source: sled::Error::Io(io), .. }
            if io.kind() == std::io::ErrorKind::StorageFull)
    }
}

/// The store of one process.
#[derive(Clone)]
pub struct Durable {
    db: sled::Db,
    path: Arc<PathBuf>,
    flushing: Flushing,
    reserve: Reserve,
    /// Held for as long as the store is open.
    _lock: Option<Arc<std::fs::File>>,
}

/// A file that is let go when the disk is so full that a write of the store might fail: it would not get over that.
#[derive(Debug, Clone, Default)]
struct Reserve(Option<Arc<PathBuf>>);

impl Reserve {
    fn make_room(&self) {
        let Some(path) = &self.0 else { return };
        let Ok(stat) = nix::sys::statvfs::statvfs(path.parent().unwrap_or(path)) else { return };
        if stat.blocks_free() * stat.fragment_size() >= ROOM_MIN_BYTES {
            return;
        }
        match std::fs::remove_file(path.as_path()) {
            Ok(()) => tracing::warn!(path = %path.display(), "the disk is full: the reserve is let go"),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => tracing::error!(path = %path.display(), %error, "the reserve cannot be let go"),
        }
    }
}

/// One flush of a store at a time, and few of a process. Measured with sled 0.34.7: flushes that run beside each other take
/// all of its threads, of which a process has eight for all of its stores, each waiting for a write that then none of them
/// does, for ever.
type Flushing = Arc<tokio::sync::Mutex<()>>;
static FLUSHES: tokio::sync::Semaphore = tokio::sync::Semaphore::const_new(2);

async fn flush(db: &sled::Db, flushing: &Flushing) -> Result<(), sled::Error> {
    let _alone = flushing.lock().await;
    // Never closed, so never refused.
    let _few = FLUSHES.acquire().await;
    db.flush_async().await.map(drop)
}

/// Does sled's own lock keep the store shut? A flush that is under way holds it for a moment after the store was dropped
/// (measured: an open right after it was refused, and the whole store taken for broken). sled 0.34 says so in words alone.
fn is_held(error: &DurableError) -> bool {
    matches!(error, DurableError::Store { source: sled::Error::Io(io), .. } if io.to_string().contains("could not acquire lock"))
}

/// A report that is owed to the server's stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Owed {
    /// Subject in the OUTBOX.
    pub subject: String,
    /// CloudEvents headers.
    pub headers: Headers,
    /// Body.
    #[serde(with = "serde_bytes")]
    pub payload: Vec<u8>,
}

/// What one decision changes on disk.
#[derive(Debug, Default)]
pub struct Changes {
    /// Keys to set.
    pub save: Vec<(String, Vec<u8>)>,
    /// Keys to remove. Applied in the order given with `save`: a key is in only one of them.
    pub forget: Vec<String>,
    /// Reports to owe.
    pub owe: Vec<Owed>,
}

impl Changes {
    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        self.save.is_empty() && self.forget.is_empty() && self.owe.is_empty()
    }
}

impl Durable {
    /// Opens the store, or moves a broken one aside and begins anew: then the second value says where the old one is and
    /// why.
    pub fn open(path: &Path) -> Result<(Self, Option<String>), DurableError> {
        Self::open_with(path, Reserve::default())
    }

    /// As [`open`](Self::open); the file at `reserve` is let go before a write could fail for want of room.
    pub fn open_with_reserve(path: &Path, reserve: PathBuf) -> Result<(Self, Option<String>), DurableError> {
        Self::open_with(path, Reserve(Some(Arc::new(reserve))))
    }

    fn open_with(path: &Path, reserve: Reserve) -> Result<(Self, Option<String>), DurableError> {
        reserve.make_room();
        let lock = Arc::new(Self::lock(path)?);
        let deadline = Instant::now() + LET_GO_TIMEOUT;
        let opened = loop {
            match Self::try_open(path, lock.clone()) {
                Err(error) if is_held(&error) && Instant::now() < deadline => {
                    std::thread::sleep(LET_GO_PAUSE);
                }
                opened => break opened,
            }
        };
        match opened {
            Ok(this) => Ok((Self { reserve, ..this }, None)),
            // A full disk breaks nothing that is on it.
            Err(error) if error.is_full() => Err(error),
            // In use is not broken: it must not be moved from under whoever uses it.
            Err(error) if is_held(&error) => Err(DurableError::Busy { path: path.to_owned() }),
            Err(error) => {
                let fail = |io| DurableError::Store { path: path.to_owned(), source: sled::Error::Io(io) };
                let aside = path.with_extension(format!("corrupt-{}", schemas::Timestamp::now().0));
                std::fs::rename(path, &aside).map_err(fail)?;
                match std::fs::remove_file(path.with_extension("seal")) {
                    Err(io) if io.kind() != std::io::ErrorKind::NotFound => return Err(fail(io)),
                    _ => {}
                }
                let told = format!("{error}; moved to {}", aside.display());
                Ok((Self { reserve, ..Self::try_open(path, lock)? }, Some(told)))
            }
        }
    }

    /// The store is one process' alone. sled has a lock of its own too, which it lets go a little later (see [`is_held`]).
    fn lock(path: &Path) -> Result<std::fs::File, DurableError> {
        let fail = |io| DurableError::Store { path: path.to_owned(), source: sled::Error::Io(io) };
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(fail)?;
        }
        let file = std::fs::File::create(path.with_extension("lock")).map_err(fail)?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(std::fs::TryLockError::WouldBlock) => Err(DurableError::Busy { path: path.to_owned() }),
            Err(std::fs::TryLockError::Error(io)) => Err(fail(io)),
        }
    }

    fn try_open(path: &Path, lock: Arc<std::fs::File>) -> Result<Self, DurableError> {
        let fail = |source| DurableError::Store { path: path.to_owned(), source };
        // sled 0.34 may panic on a torn file: that is one more way of being broken.
        let opened = std::panic::catch_unwind(|| {
            let db = sled::Config::new()
                .path(path)
                .cache_capacity(CACHE_BYTES)
                .flush_every_ms(None)
                .mode(sled::Mode::LowSpace)
                .open()?;
            for tree in db.tree_names() {
                for item in db.open_tree(tree)?.iter() {
                    item?;
                }
            }
            Ok(db)
        });
        let broken = || sled::Error::Corruption { at: None, bt: () };
        let db = opened.unwrap_or_else(|_| Err(broken())).map_err(fail)?;
        // Measured: sled 0.34 opens a file whose content was overwritten as an empty store, without a word. The seal is in
        // the store and beside it: beside it only, the store has lost what it had.
        let seal = path.with_extension("seal");
        let sealed = db.contains_key(SEAL).map_err(fail)?;
        if seal.exists() && !sealed {
            return Err(fail(broken()));
        }
        if !sealed {
            db.insert(SEAL, &[VERSION]).and_then(|_| db.flush()).map_err(fail)?;
            std::fs::write(&seal, b"the store beside this file was begun\n")
                .map_err(|error| fail(sled::Error::Io(error)))?;
        }
        Ok(Self {
            db,
            path: Arc::new(path.to_owned()),
            flushing: Flushing::default(),
            reserve: Reserve::default(),
            _lock: Some(lock),
        })
    }

    /// A store in memory, for tests and for modules that owe nothing.
    pub fn temporary() -> Result<Self, DurableError> {
        let path = PathBuf::from("(temporary)");
        let db = sled::Config::new()
            .temporary(true)
            .cache_capacity(CACHE_BYTES)
            .open()
            .map_err(|source| DurableError::Store { path: path.clone(), source })?;
        Ok(Self {
            db,
            path: Arc::new(path),
            flushing: Flushing::default(),
            reserve: Reserve::default(),
            _lock: None,
        })
    }

    /// The part of one module.
    pub fn part(&self, module: &str) -> Result<Part, DurableError> {
        let fail = |source| DurableError::Store { path: self.path.as_ref().clone(), source };
        let state = self.db.open_tree(format!("{module}.state")).map_err(fail)?;
        let owed = self.db.open_tree(format!("{module}.owed")).map_err(fail)?;
        let next = match owed.last().map_err(fail)? {
            Some((key, _)) => number(&key) + 1,
            None => 1,
        };
        let (db, path, flushing) = (self.db.clone(), self.path.clone(), self.flushing.clone());
        Ok(Part { db, path, flushing, reserve: self.reserve.clone(), state, owed, next })
    }

    /// Waits until everything is on disk.
    pub async fn flush(&self) -> Result<(), DurableError> {
        let fail = |source| DurableError::Store { path: self.path.as_ref().clone(), source };
        flush(&self.db, &self.flushing).await.map_err(fail)
    }
}

fn number(key: &[u8]) -> u64 {
    <[u8; 8]>::try_from(key).map(u64::from_be_bytes).unwrap_or(0)
}

/// One module's part of the store.
pub struct Part {
    db: sled::Db,
    path: Arc<PathBuf>,
    flushing: Flushing,
    reserve: Reserve,
    state: sled::Tree,
    owed: sled::Tree,
    next: u64,
}

impl Part {
    fn fail(&self, source: sled::Error) -> DurableError {
        DurableError::Store { path: self.path.as_ref().clone(), source }
    }

    /// Everything saved, in key order. Values of another version are left out (and logged): their writer was newer.
    pub fn saved(&self) -> Result<Vec<(String, Vec<u8>)>, DurableError> {
        let mut all = Vec::new();
        for item in self.state.iter() {
            let (key, value) = item.map_err(|error| self.fail(error))?;
            match value.split_first() {
                Some((&VERSION, value)) => {
                    all.push((String::from_utf8_lossy(&key).into_owned(), value.to_vec()));
                }
                _ => {
                    tracing::warn!(key = %String::from_utf8_lossy(&key), "saved by another version: left out")
                }
            }
        }
        Ok(all)
    }

    /// Makes the changes and returns when they are on disk.
    pub async fn commit(&mut self, changes: Changes) -> Result<(), DurableError> {
        if changes.is_empty() {
            return Ok(());
        }
        self.reserve.make_room();
        let first = self.next;
        let owe: Vec<(u64, Vec<u8>)> =
            (first..).zip(changes.owe.iter().map(|owed| versioned(&schemas::encode(owed)))).collect();
        (&self.state, &self.owed)
            .transaction(|(state, owed)| {
                for (key, value) in &changes.save {
                    state.insert(key.as_bytes(), versioned(value))?;
                }
                for key in &changes.forget {
                    state.remove(key.as_bytes())?;
                }
                for (number, value) in &owe {
                    owed.insert(&number.to_be_bytes(), value.as_slice())?;
                }
                Ok::<_, ConflictableTransactionError<()>>(())
            })
            .map_err(|error| match error {
                sled::transaction::TransactionError::Storage(error) => self.fail(error),
                sled::transaction::TransactionError::Abort(()) => {
                    self.fail(sled::Error::Unsupported("transaction aborted".to_owned()))
                }
            })?;
        self.next = first + owe.len() as u64;
        if self.owed.len() > OWED_MAX {
            self.shed()?;
        }
        flush(&self.db, &self.flushing).await.map_err(|error| self.fail(error))
    }

    /// The oldest owed report.
    pub fn first_owed(&self) -> Result<Option<(u64, Owed)>, DurableError> {
        loop {
            let Some((key, value)) = self.owed.first().map_err(|error| self.fail(error))? else {
                return Ok(None);
            };
            let owed = value.split_first().and_then(|(_, bytes)| schemas::decode::<Owed>(bytes).ok());
            match owed {
                Some(owed) => return Ok(Some((number(&key), owed))),
                None => {
                    tracing::error!(number = number(&key), "an owed report cannot be read and is left out");
                    self.owed.remove(key).map_err(|error| self.fail(error))?;
                }
            }
        }
    }

    /// That one has reached the server's stream. Not flushed: said twice is the same.
    pub fn paid(&self, number: u64) -> Result<(), DurableError> {
        self.owed.remove(number.to_be_bytes()).map(drop).map_err(|error| self.fail(error))
    }

    /// A second handle on the same part, for the task that pays.
    pub(crate) fn twin(&self) -> Part {
        Part {
            db: self.db.clone(),
            path: self.path.clone(),
            flushing: self.flushing.clone(),
            reserve: self.reserve.clone(),
            state: self.state.clone(),
            owed: self.owed.clone(),
            next: self.next,
        }
    }

    fn shed(&self) -> Result<(), DurableError> {
        let mut last = std::collections::HashMap::new();
        let mut all = Vec::new();
        for item in self.owed.iter() {
            let (key, value) = item.map_err(|error| self.fail(error))?;
            let subject = value
                .split_first()
                .and_then(|(_, bytes)| schemas::decode::<Owed>(bytes).ok())
                .map(|owed| owed.subject)
                .unwrap_or_default();
            last.insert(subject.clone(), number(&key));
            all.push((number(&key), subject));
        }
        let replaced: Vec<u64> = all
            .iter()
            .filter(|(number, subject)| last.get(subject) != Some(number) || subject.is_empty())
            .map(|(number, _)| *number)
            .take(OWED_MAX / 10)
            .collect();
        tracing::warn!(dropped = replaced.len(), "too many reports are owed: replaced ones are dropped");
        for number in replaced {
            self.paid(number)?;
        }
        Ok(())
    }
}

fn versioned(value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len() + 1);
    out.push(VERSION);
    out.extend_from_slice(value);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owed(subject: &str, n: u8) -> Owed {
        Owed { subject: subject.into(), headers: Headers::new(), payload: vec![n] }
    }

    #[tokio::test]
    async fn state_and_owed_reports_survive_together() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        {
            let (store, aside) = Durable::open(&path).unwrap();
            assert_eq!(aside, None);
            let mut part = store.part("m").unwrap();
            part.commit(Changes {
                save: vec![("a".into(), vec![1]), ("b".into(), vec![2])],
                forget: vec![],
                owe: vec![owed("x", 1), owed("y", 2)],
            })
            .await
            .unwrap();
            part.commit(Changes { forget: vec!["a".into()], ..Changes::default() }).await.unwrap();
        }
        let (store, _) = Durable::open(&path).unwrap();
        let mut part = store.part("m").unwrap();
        assert_eq!(part.saved().unwrap(), vec![("b".to_owned(), vec![2])]);
        let (number, first) = part.first_owed().unwrap().unwrap();
        assert_eq!(first, owed("x", 1));
        part.paid(number).unwrap();
        part.commit(Changes { owe: vec![owed("z", 3)], ..Changes::default() }).await.unwrap();
        assert_eq!(part.first_owed().unwrap().unwrap().1, owed("y", 2), "in order");
    }

    #[tokio::test]
    async fn a_store_that_is_let_go_late_is_waited_for_and_never_moved_from_under_its_user() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let changes = || Changes { save: vec![("a".into(), vec![1])], ..Changes::default() };
        Durable::open(&path).unwrap().0.part("m").unwrap().commit(changes()).await.unwrap();
        // As a flush that is under way does: the files are held, our own lock is not.
        let held = loop {
            match sled::open(&path) {
                Ok(db) => break db,
                Err(_) => std::thread::sleep(LET_GO_PAUSE),
            }
        };
        let letting_go = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            drop(held);
        });
        let (store, aside) = Durable::open(&path).unwrap();
        assert_eq!(
            (aside, store.part("m").unwrap().saved().unwrap()),
            (None, vec![("a".to_owned(), vec![1])])
        );
        letting_go.join().unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn modules_that_commit_at_once_do_not_stop_each_other() {
        let one = Durable::temporary().unwrap();
        let others: Vec<_> = (0..20).map(|_| Durable::temporary().unwrap()).collect();
        let mut tasks = tokio::task::JoinSet::new();
        for (n, store) in std::iter::repeat_n(&one, 7).chain(&others).enumerate() {
            let mut part = store.part(&n.to_string()).unwrap();
            tasks.spawn(async move {
                for m in 0..100u16 {
                    let save = vec![(m.to_string(), vec![7; 100])];
                    part.commit(Changes { save, ..Changes::default() }).await.unwrap();
                }
            });
        }
        let all = async { while tasks.join_next().await.is_some() {} };
        assert!(tokio::time::timeout(Duration::from_secs(60), all).await.is_ok(), "it hangs");
    }

    #[tokio::test]
    async fn a_broken_store_is_moved_aside_and_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        {
            let (store, _) = Durable::open(&path).unwrap();
            let mut part = store.part("m").unwrap();
            for n in 0..100u8 {
                part.commit(Changes { save: vec![(n.to_string(), vec![n; 500])], ..Changes::default() })
                    .await
                    .unwrap();
            }
        }
        let size = std::fs::metadata(path.join("db")).unwrap().len();
        std::fs::write(path.join("db"), vec![0x5a; usize::try_from(size).unwrap()]).unwrap();
        let (store, aside) = Durable::open(&path).unwrap();
        assert!(aside.unwrap().contains("corrupt-"), "it says where the old one is");
        assert!(matches!(Durable::open(&path), Err(DurableError::Busy { .. })), "it is one process' alone");
        assert_eq!(store.part("m").unwrap().saved().unwrap(), vec![]);
    }
}
