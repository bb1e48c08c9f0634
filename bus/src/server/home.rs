//! Where the hub's streams stand on disk: its server keeps each account's in a directory of that account.
//!
//! Hubs before HUB was had them in CONTROL and WORK. HUB is shown those where they are, by links: so nothing is copied, and who
//! goes back to such a hub finds all as it stands. New streams are in HUB's own directory. A backup holds no links; the next
//! start makes them.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::ServerError;
use crate::identity::make_private_dir;

/// Shows the account `home` the streams that stand with the accounts `before` in `store`. What `home` has itself is left.
pub(super) fn share(store: &Path, before: &[String], home: &str) -> Result<(), ServerError> {
    let failed = |path: &Path, source| ServerError::Io { path: path.to_owned(), source };
    for account in before {
        let streams = store.join(account).join(STREAMS);
        let entries = match std::fs::read_dir(&streams) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            entries => entries.map_err(|error| failed(&streams, error))?,
        };
        for entry in entries {
            let name = entry.map_err(|error| failed(&streams, error))?.file_name();
            let shown = store.join(home).join(STREAMS);
            make_private_dir(&shown).map_err(|source| failed(&shown, source))?;
            let link = shown.join(&name);
            let to = PathBuf::from("../..").join(account).join(STREAMS).join(&name);
            match std::os::unix::fs::symlink(to, &link) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(failed(&link, error)),
                _ => {}
            }
        }
    }
    Ok(())
}

/// The server's name for it.
const STREAMS: &str = "streams";
