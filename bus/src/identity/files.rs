//! Files with secrets: readable by their owner alone, replaced whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use super::IdentityError;

/// Writes `bytes` to `path` with mode 0600: to a file beside it, synced, then renamed over it, so that a reader or a power
/// cut sees the old or the new. Makes the directory (0700) when it is missing.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    make_private_dir(dir)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let beside = dir.join(name);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    File::open(dir)?.sync_all()
}

/// Makes `dir` and what is missing above it, for its owner alone.
pub(crate) fn make_private_dir(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// The text in `path`; `None` when there is no such file.
pub(super) fn read_text(path: &Path) -> Result<Option<String>, IdentityError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(IdentityError::io(path, error)),
    }
}

/// As [`write_private`], with the error of this room.
pub(super) fn write_text(path: &Path, text: &str) -> Result<(), IdentityError> {
    write_private(path, text.as_bytes()).map_err(|error| IdentityError::io(path, error))
}
