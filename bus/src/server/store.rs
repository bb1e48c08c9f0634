//! What a server says of its JetStream store when it starts. It speaks in its log alone.
//!
//! Measured with 2.15.1: it starts without a stream whose description is damaged, with a warning; it cuts off a damaged
//! block of messages without a word (and gives the lost sequence numbers out again); it ends when the store as a whole
//! cannot be opened.

use std::path::Path;

/// How a store that was moved aside is called, before the time.
pub(super) const MOVED_PREFIX: &str = "jetstream.corrupt-";
const WARNINGS_MAX: usize = 16;

/// What a server that started says against parts of its store.
pub(super) fn warnings(log: &str) -> Vec<String> {
    let about_store = |line: &&str| {
        ["metafile", "Error recreating stream", "Error recovering", "Error adding", "Error reading"]
            .iter()
            .any(|mark| line.contains(mark))
    };
    let text = |line: &str| {
        let text = ["[WRN] ", "[ERR] "].iter().find_map(|level| line.split_once(level))?.1;
        Some(text.trim().chars().take(300).collect())
    };
    log.lines().filter(about_store).filter_map(text).take(WARNINGS_MAX).collect()
}

/// The line by which a server that does not start blames its store.
pub(super) fn complaint(log: &str) -> Option<String> {
    let line = log.lines().rev().find(|line| line.contains("[FTL]") && line.contains("JetStream"))?;
    Some(line.split_once("[FTL] ").map_or(line, |(_, rest)| rest).chars().take(300).collect())
}

/// One store moved aside is kept for a look; older ones would fill the disk.
pub(super) fn remove_moved(store: &Path) {
    let Some(dir) = store.parent() else { return };
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(MOVED_PREFIX) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_tells_a_damaged_part_from_a_store_that_cannot_be_opened() {
        let part = "[1] 2026/11/22 09:49:58.1 [WRN]   Stream metafile \"/x/OUTBOX/meta.inf\": checksums do not match\n\
                    [1] 2026/11/22 09:49:58.1 [WRN] Plaintext passwords detected, use nkeys or bcrypt\n";
        assert_eq!(warnings(part), ["Stream metafile \"/x/OUTBOX/meta.inf\": checksums do not match"]);
        assert_eq!(complaint(part), None);
        let whole =
            "[1] 2026/11/22 09:49:58.1 [FTL] Can't start JetStream: storage directory is not a directory\n";
        assert!(warnings(whole).is_empty());
        assert_eq!(complaint(whole).unwrap(), "Can't start JetStream: storage directory is not a directory");
        assert_eq!(complaint("[1] 2026/11/22 09:49:58.1 [FTL] Address already in use\n"), None);
    }
}
