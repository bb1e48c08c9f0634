//! Keys that wait on a node's disk for the link's next beginning: which keys the link uses until then.
//!
//! nats-server reads a leaf's credentials when it connects and never again, so a link stands on the keys that it was made
//! with. A file beside the credentials names those keys and the server's process. They are no longer in use when that process
//! is gone, or when both links broke since; what happened while nobody listened is not known, so then they count as used on:
//! the next break ends that.

use std::path::{Path, PathBuf};

use schemas::credential::NodeKeys;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use super::IdentityError;
use super::files::{read_text, write_text};
use crate::server::LeafServer;
use crate::server::child::Record;

/// The file's name, under `<data>/hub`.
const FILE: &str = "in-use.json";

/// What the file says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct InUse {
    #[serde(flatten)]
    keys: NodeKeys,
    /// The server whose link it is.
    server: Record,
}

/// See the file's words.
#[derive(Debug)]
pub struct Deferral {
    path: PathBuf,
    /// And how many links had broken when we began to count.
    state: Mutex<Option<(InUse, [u64; 2])>>,
}

impl Deferral {
    /// What an earlier life left, for a node whose membership lies in `data_dir`. A file that cannot be read is none: the hub is
    /// then told of the keys on disk, and the link made anew.
    pub fn new(data_dir: &Path, server: &LeafServer) -> Self {
        let path = data_dir.join("hub").join(FILE);
        let read = read_text(&path).ok().flatten().and_then(|text| serde_json::from_str::<InUse>(&text).ok());
        Self { state: Mutex::new(read.map(|in_use| (in_use, server.links_lost()))), path }
    }

    /// From now on the link uses `keys` and others lie on disk. Called before those are written: a fall in between leaves one
    /// set of keys, whose use ends with the link. Without a server that runs, nothing is deferred: it reads what is on disk.
    pub async fn begin(&self, keys: NodeKeys, server: &LeafServer) -> Result<(), IdentityError> {
        let mut state = self.state.lock().await;
        let Some(process) = server.process().await else { return Ok(()) };
        let in_use = InUse { keys, server: process };
        write_text(&self.path, &serde_json::to_string(&in_use).unwrap_or_default())?;
        *state = Some((in_use, server.links_lost()));
        Ok(())
    }

    /// What is on disk is used from now on.
    pub async fn end(&self) -> Result<(), IdentityError> {
        self.forget(&mut *self.state.lock().await)
    }

    /// The keys that the link was made with, when others lie on disk.
    pub async fn in_use(&self, server: &LeafServer) -> Option<NodeKeys> {
        let mut state = self.state.lock().await;
        let (in_use, [control, work]) = state.as_ref()?;
        let [control_now, work_now] = server.links_lost();
        let stands = in_use.server.is_alive() && (control_now == *control || work_now == *work);
        if stands {
            return Some(in_use.keys.clone());
        }
        if let Err(error) = self.forget(&mut state) {
            tracing::warn!(%error, "a file of keys that are no longer in use stays; it is tried again");
        }
        None
    }

    fn forget(&self, state: &mut Option<(InUse, [u64; 2])>) -> Result<(), IdentityError> {
        match std::fs::remove_file(&self.path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(IdentityError::io(&self.path, source))
            }
            _ => {
                *state = None;
                Ok(())
            }
        }
    }
}
