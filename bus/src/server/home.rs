//! Where the hub's streams stand on disk: its server keeps each account's in a directory of that account.
//!
//! Hubs before HUB was had them in CONTROL and WORK. HUB is shown those where they are, by links: so nothing is copied, and who
//! goes back to such a hub finds all as it stands. New streams are in HUB's own directory. A backup holds no links; the next
//! start makes them.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::ServerError;
use crate::identity::make_private_dir;

/// The server's name for the directory in an account's that has its streams.
const STREAMS: &str = "streams";

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_of_before_are_shown_where_they_are_and_its_own_are_left() {
        let dir = tempfile::tempdir().unwrap();
        let (store, before) = (dir.path(), ["CONTROL".to_owned(), "WORK".to_owned()]);
        share(store, &before, "HUB").unwrap();
        assert!(!store.join("HUB").exists(), "a new hub has nothing from before");
        for (stream, text) in
            [("CONTROL/streams/UP", "up"), ("WORK/streams/FROM", "from"), ("HUB/streams/UP", "own")]
        {
            std::fs::create_dir_all(store.join(stream)).unwrap();
            std::fs::write(store.join(stream).join("meta.inf"), text).unwrap();
        }
        for _ in 0..2 {
            share(store, &before, "HUB").unwrap();
        }
        let text = |stream: &str| std::fs::read_to_string(store.join(stream).join("meta.inf")).unwrap();
        assert_eq!((text("HUB/streams/UP"), text("HUB/streams/FROM")), ("own".into(), "from".into()));
        std::fs::write(store.join("HUB/streams/FROM/meta.inf"), "more").unwrap();
        assert_eq!(text("WORK/streams/FROM"), "more", "one who goes back finds all as it stands");
    }
}
