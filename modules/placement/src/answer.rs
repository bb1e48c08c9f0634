//! A node's questions: the list of its entries, and entries by key.
//!
//! The node is the subject's token (its credential lets it ask under its own name only), so it sees its own entries and
//! no others. Pages are bounded in bytes. A list is of one revision: when one of the node's entries changed since the
//! first page, the next page is refused and the node starts over.

use schemas::command::{Refusal, Reply};
use schemas::desired::{GetPage, GetRequest, ListEntry, ListPage, ListRequest};
use schemas::name::NodeName;
use schemas::subject::DesiredKey;

use crate::entries::Entries;

/// The largest page of a list, whatever is asked for.
pub const LIST_MAX_BYTES: usize = 256 * 1024;
/// The largest page of entries, unless a single entry is larger.
pub const GET_MAX_BYTES: usize = 2 * 1024 * 1024;
/// The most keys in one question.
pub const KEYS_MAX: usize = 4_096;

/// Not all that is needed for an answer has been read yet: ask again in a moment.
pub fn not_ready() -> Refusal {
    Refusal::new(503, "EW-NOT-READY", "the hub still reads its store: ask again in a moment")
}

/// The question cannot be read.
pub fn bad_request(why: impl std::fmt::Display) -> Refusal {
    Refusal::new(400, "EW-BAD-REQUEST", format!("the request cannot be read: {why}"))
}

/// What is to be released is one of the hub's own.
pub fn not_an_orphan(key: &DesiredKey) -> Refusal {
    let text = format!(
        "the hub has {} {}/{} of that UID: delete it with kubectl",
        key.plural, key.namespace, key.name
    );
    Refusal::new(409, "EW-RELEASE-KNOWN", text)
}

/// One page of the list of a node's entries, tombstones too.
pub fn list(entries: &Entries, node: &NodeName, request: &ListRequest) -> Reply<ListPage> {
    let Some(lineage) = entries.lineage() else { return Err(not_ready()) };
    let at_revision = match (request.at_revision, &request.after) {
        (0, None) => entries.highest(),
        (0, Some(_)) => return Err(bad_request("a page after the first names at_revision")),
        (revision, _) if entries.is_unchanged_since(node, revision) => revision,
        (revision, _) => {
            return Err(Refusal::new(
                409,
                "EW-LIST-CHANGED",
                format!("the list is no longer that of revision {revision}: start again with the first page"),
            ));
        }
    };
    let mut page = ListPage { lineage: lineage.clone(), at_revision, entries: Vec::new(), more: false };
    let room = usize::try_from(request.max_bytes).unwrap_or(usize::MAX).min(LIST_MAX_BYTES);
    let mut size_bytes = schemas::encode(&page).len();
    for (key, held) in entries.of(node) {
        if held.desired.is_none() || request.after.as_ref().is_some_and(|after| key <= after) {
            continue;
        }
        let entry = ListEntry { key: key.clone(), revision: held.revision };
        size_bytes += schemas::encode(&entry).len();
        if size_bytes > room && !page.entries.is_empty() {
            page.more = true;
            break;
        }
        page.entries.push(entry);
    }
    Ok(page)
}

/// The first of the entries asked for that fit; at least one.
pub fn get(entries: &Entries, node: &NodeName, request: &GetRequest) -> Reply<GetPage> {
    if request.keys.len() > KEYS_MAX {
        return Err(bad_request(format!("{} keys are over the bound of {KEYS_MAX}", request.keys.len())));
    }
    let room = usize::try_from(request.max_bytes).unwrap_or(usize::MAX).min(GET_MAX_BYTES);
    let mut page = GetPage { entries: Vec::new() };
    let mut size_bytes = 16;
    for key in &request.keys {
        let held = entries.get(node, key);
        let revision = held.map_or(0, |held| held.revision);
        let entry = (key.clone(), revision, held.and_then(|held| held.desired.clone()));
        size_bytes += schemas::encode(&entry).len();
        if size_bytes > room && !page.entries.is_empty() {
            break;
        }
        page.entries.push(entry);
    }
    Ok(page)
}
