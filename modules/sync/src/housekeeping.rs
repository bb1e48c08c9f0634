//! Does what the disk's level asks for: bounds of the node's streams, and the reserve. See [`crate::disk`].

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use bus::connection::Handles;
use bus::link::{self, LinkError};
use bus::provision::{self, Bound, Place};
use bus::server::LeafServer;
use schemas::subject::{STREAM_BULK, STREAM_UPLINK};

use crate::disk::{DiskFacts, House};

/// What telemetry may take of a disk that is nearly full.
const BULK_CORNER_BYTES: u64 = 1024 * 1024;
/// The file that is let go at the very end.
pub const RESERVE: &str = "reserve";

/// Keeps house in one data directory.
pub struct Housekeeping {
    data_dir: PathBuf,
    /// Up to where the server's log was read.
    read: AtomicU64,
}

impl Housekeeping {
    /// In that directory.
    pub fn new(data_dir: PathBuf) -> Self {
        Self { data_dir, read: AtomicU64::new(u64::MAX) }
    }

    /// Looks at the disk, and whether the server met its end. `None` when the disk does not tell.
    pub async fn look(&self, server: &LeafServer) -> Option<DiskFacts> {
        let (size_bytes, free_bytes) = space(&self.data_dir)?;
        let from = self.read.load(Ordering::Relaxed);
        let (write_failed, read) = server.write_failed(from).await;
        self.read.store(read, Ordering::Relaxed);
        Some(DiskFacts { size_bytes, free_bytes, write_failed })
    }

    /// Keeps the streams and the reserve so. Gives the sequence up to which telemetry was cleared away.
    pub async fn keep(&self, bus: &Handles, house: House) -> Option<u64> {
        if let Err(error) = self.reserve(house.reserve_bytes) {
            tracing::debug!(%error, "the reserve is seen to again");
        }
        let streams = async {
            let Some(work) = &bus.work else { return Ok(None) };
            let failed = |error: provision::ProvisionError| LinkError::Lost(error.to_string());
            let uplink = if house.refuse { Bound::Present } else { Bound::Usual };
            provision::bound(work, Place::Edge, STREAM_UPLINK, uplink).await.map_err(failed)?;
            let bulk = if house.shed { Bound::Bytes(BULK_CORNER_BYTES) } else { Bound::Usual };
            let changed = provision::bound(work, Place::Edge, STREAM_BULK, bulk).await.map_err(failed)?;
            if !(house.shed && changed) {
                return Ok(None);
            }
            let last = link::state(work, STREAM_BULK).await?.last_sequence;
            link::trim(work, STREAM_BULK, None, last).await.map(|_| Some(last))
        };
        let cleared: Result<_, LinkError> = streams.await;
        // Their usual bounds come back with the next provisioning.
        if let (true, Some(work)) = (house.refuse, &bus.work)
            && let Err(error) = provision::bound_mqtt(work, Bound::Present).await
        {
            tracing::debug!(%error, "the bounds of MQTT's streams are seen to again");
        }
        cleared.unwrap_or_else(|error| {
            tracing::debug!(%error, "the streams' bounds are seen to again");
            None
        })
    }

    /// `None`: let it go. Otherwise it is made, if it is not there and has a size.
    fn reserve(&self, bytes: Option<u64>) -> std::io::Result<()> {
        let path = self.data_dir.join(RESERVE);
        match bytes {
            None if path.exists() => std::fs::remove_file(&path),
            Some(bytes) if bytes > 0 && !path.exists() => {
                let file = std::fs::File::create(&path)?;
                let length = i64::try_from(bytes).unwrap_or(i64::MAX);
                // Blocks, not a hole: they are there when nothing else is.
                let made = nix::fcntl::posix_fallocate(&file, 0, length).map_err(std::io::Error::from);
                if made.is_err() {
                    std::fs::remove_file(&path)?;
                }
                made
            }
            _ => Ok(()),
        }
    }
}

/// Size and free bytes of the file system that holds `path`.
pub fn space(path: &Path) -> Option<(u64, u64)> {
    let stat = nix::sys::statvfs::statvfs(path).ok()?;
    Some((stat.blocks() * stat.fragment_size(), stat.blocks_available() * stat.fragment_size()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_is_blocks_that_come_free() {
        let dir = tempfile::tempdir().unwrap();
        let house = Housekeeping::new(dir.path().to_owned());
        let path = dir.path().join(RESERVE);
        house.reserve(Some(0)).unwrap();
        assert!(!path.exists());
        house.reserve(Some(1024 * 1024)).unwrap();
        use std::os::unix::fs::MetadataExt;
        assert!(path.metadata().unwrap().blocks() * 512 >= 1024 * 1024);
        house.reserve(Some(0)).unwrap();
        assert!(path.exists(), "kept while the disk is only nearly full");
        house.reserve(None).unwrap();
        house.reserve(None).unwrap();
        assert!(!path.exists());
    }
}
