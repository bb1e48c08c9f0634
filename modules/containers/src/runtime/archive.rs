//! Image archives that lie on the node: the way to an image with no registry in reach.
//!
//! The directories are looked through when an image is wanted that is not there; each archive is imported once, and again
//! when it changed. What cannot be imported is named in the log and passed over.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use tokio::sync::Mutex;

use super::image::Image;
use super::{Runtime, RuntimeError};

/// Archives that are looked at in one directory.
const ARCHIVES_MAX: usize = 1_000;

/// Which archives were imported, by path, size and time of change.
#[derive(Debug, Default)]
pub struct Archives(Mutex<BTreeSet<(PathBuf, u64, SystemTime)>>);

fn archives(dir: &Path) -> Vec<(PathBuf, u64, SystemTime)> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut found: Vec<_> = entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let meta = path.metadata().ok()?;
            (meta.is_file() && path.extension()? == "tar").then_some((
                path,
                meta.len(),
                meta.modified().ok()?,
            ))
        })
        .take(ARCHIVES_MAX)
        .collect();
    found.sort();
    found
}

impl Archives {
    /// Imports every archive of the configured directories that is new.
    pub async fn import_new(&self, runtime: &Runtime) {
        let mut known = self.0.lock().await; // held: two pods that start together import once
        for archive in runtime.config.image_dirs.iter().flat_map(|dir| archives(dir)) {
            if known.contains(&archive) {
                continue;
            }
            match runtime.import_archive(&archive.0).await {
                Ok(names) => tracing::info!(archive = %archive.0.display(), ?names, "images imported"),
                Err(error) if error.is_unreachable() => return,
                Err(error) => tracing::warn!(archive = %archive.0.display(), %error, "archive passed over"),
            }
            known.insert(archive);
        }
    }
}

impl Runtime {
    /// The image of that name; if it is not there, the node's archives are looked through first.
    pub async fn find_image(&self, reference: &str, pull_policy: &str) -> Result<Image, RuntimeError> {
        let absent = |error: &RuntimeError| {
            matches!(error, RuntimeError::ImageNeverPull { .. } | RuntimeError::ImageAbsent { .. })
        };
        match self.image(reference, pull_policy).await {
            Err(error) if absent(&error) => {
                // Looked for again in any case: another pod's start may just have imported it.
                self.archives.import_new(self).await;
                self.image(reference, pull_policy).await
            }
            found => found,
        }
    }
}
