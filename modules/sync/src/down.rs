//! Down: the node's copy of what it must have. Pure.
//!
//! Two ways, one result. The **pull** brings changes as they are written; the **list**, asked for on every contact,
//! brings what the pull cannot: entries that a wiped or corrupt local store lost, and the absence of entries. An entry
//! is held back, never guessed at, when its place in the hub's history is not known:
//!
//! * an incoming entry whose write the last listed lineage does not contain: list again first (the hub was restarted);
//! * a held entry that the list lacks: dropped only when the lineage contains the very write that made it. A hub that came
//!   back empty or from an older backup does not, so nothing stops (invariant 7).

use std::collections::{BTreeMap, BTreeSet};

use schemas::desired::{
    Content, Desired, DivergedObject, GetPage, GetRequest, Lineage, ListPage, ListRequest, Local, Position,
};
use schemas::subject::DesiredKey;

/// Keys asked for in one [`GetRequest`].
pub const GET_KEYS_MAX: usize = 64;

/// What the node has and where it stands.
#[derive(Debug, Default)]
pub struct Down {
    held: BTreeMap<DesiredKey, Local>,
    /// The newest write that it ever held, also when it was lost since.
    had: Option<Position>,
    writing: BTreeMap<DesiredKey, Local>,
    lineage: Option<Lineage>,
    phase: Phase,
    missing: BTreeSet<DesiredKey>,
    /// Of the missing, what the node must have had once: newer writes than these were here.
    lost: BTreeSet<DesiredKey>,
    /// Came in, and could not be taken then: asked for by name after the next list, whatever that list says.
    unplaced: BTreeSet<DesiredKey>,
    orphans: BTreeSet<DesiredKey>,
    /// Held, and not in the store when it was looked at last.
    doubtful: BTreeSet<DesiredKey>,
}

/// What it is doing.
#[derive(Debug, Default, PartialEq)]
enum Phase {
    /// No contact.
    #[default]
    Away,
    /// Reading the list.
    Listing { at_revision: u64, listed: BTreeMap<DesiredKey, u64> },
    /// Pulling.
    Following,
}

/// What shall be done.
#[derive(Debug, PartialEq)]
pub enum Step {
    /// Ask the hub for a page.
    List(ListRequest),
    /// Ask the hub for entries.
    Get(GetRequest),
    /// Pull.
    Pull,
    /// Keep this entry; [`Down::wrote`] when it is on disk.
    Write(DesiredKey, Local),
    /// The tombstone of this key has done its work on both sides.
    Drop(DesiredKey),
    /// Tell people: the hub's history is not the one that these entries came from; they run on.
    Orphans(usize),
    /// Tell people: this many entries were lost here and are fetched again.
    Repairing(usize),
}

/// What became of an entry that came in.
#[derive(Debug, PartialEq)]
pub enum Verdict {
    /// It is to be written.
    Write(Box<Local>),
    /// The node has that or newer: acknowledge.
    Stale,
    /// Its place in history is not known: list again, and do not acknowledge.
    Unplaced,
}

impl Down {
    /// An entry of the local bucket, told by its watch.
    pub fn local(&mut self, key: DesiredKey, entry: Option<Local>) {
        match entry {
            Some(local) => {
                if self.writing.get(&key).is_some_and(|writing| writing.revision <= local.revision) {
                    self.writing.remove(&key);
                }
                let at = local.position();
                // What came from a history that the hub no longer has says nothing of the present one.
                let outlived = |had: &Position| {
                    self.lineage.as_ref().is_some_and(|of| of.contains(&at) && !of.contains(had))
                };
                if self.had.as_ref().is_none_or(|had| had.revision < at.revision || outlived(had)) {
                    self.had = Some(at);
                }
                self.held.insert(key, local);
            }
            None => {
                self.held.remove(&key);
            }
        }
    }

    /// What really stands in the local bucket. Gives how many held entries do not: they are no longer held. Only what was
    /// absent in two looks counts, because an entry may have been written since the store was looked at.
    pub fn store_has(&mut self, there: &BTreeSet<DesiredKey>) -> usize {
        let absent: BTreeSet<DesiredKey> =
            self.held.keys().filter(|key| !there.contains(key)).cloned().collect();
        let lost: Vec<DesiredKey> = absent.intersection(&self.doubtful).cloned().collect();
        for key in &lost {
            self.held.remove(key);
        }
        self.doubtful = absent;
        lost.len()
    }

    /// The newest write that the node has on disk.
    pub fn position(&self) -> Option<Position> {
        let mine =
            |local: &&Local| self.lineage.as_ref().is_none_or(|lineage| lineage.contains(&local.position()));
        self.held.values().filter(mine).max_by_key(|local| local.revision).map(Local::position)
    }

    /// Contact: for the first time, again, or with a hub that was restarted.
    pub fn connect(&mut self, max_bytes: usize) -> Step {
        self.phase = Phase::Listing { at_revision: 0, listed: BTreeMap::new() };
        self.unplaced.append(&mut self.missing);
        self.list(None, 0, max_bytes)
    }

    /// No contact.
    pub fn disconnect(&mut self) {
        self.phase = Phase::Away;
    }

    /// Is it listing? (Then an answer is outstanding or has to be asked for again.)
    pub fn is_listing(&self) -> bool {
        matches!(self.phase, Phase::Listing { .. })
    }

    fn list(&self, after: Option<DesiredKey>, at_revision: u64, max_bytes: usize) -> Step {
        Step::List(ListRequest {
            position: self.position(),
            after,
            max_bytes: u32::try_from(max_bytes).unwrap_or(u32::MAX),
            at_revision,
        })
    }

    /// A page of the list.
    pub fn page(&mut self, page: ListPage, max_bytes: usize) -> Vec<Step> {
        let Phase::Listing { at_revision, listed } = &mut self.phase else { return Vec::new() };
        if *at_revision != 0 && *at_revision != page.at_revision {
            // The bucket moved on between pages: a list is of one moment or it is none.
            return vec![self.connect(max_bytes)];
        }
        *at_revision = page.at_revision;
        let last = page.entries.last().map(|entry| entry.key.clone());
        listed.extend(page.entries.into_iter().map(|entry| (entry.key, entry.revision)));
        if let (true, Some(last)) = (page.more, last) {
            return vec![self.list(Some(last), page.at_revision, max_bytes)];
        }
        let listed = std::mem::take(listed);
        self.phase = Phase::Following;
        self.repair(page.lineage, &listed, page.at_revision)
    }

    /// The whole list is here: both ways.
    fn repair(
        &mut self,
        lineage: Lineage,
        listed: &BTreeMap<DesiredKey, u64>,
        at_revision: u64,
    ) -> Vec<Step> {
        let mut steps = Vec::new();
        self.missing = listed
            .iter()
            .filter(|(key, revision)| match self.newest(key) {
                None => true,
                Some(local) => lineage.contains(&local.position()) && local.revision < **revision,
            })
            .map(|(key, _)| key.clone())
            .collect();
        // What changed while nobody was listening was not lost. Of what was here before our own start nobody knows: what
        // the pull does not bring then has been here.
        let first = self.lineage.is_none();
        let had = self.had.as_ref().filter(|had| lineage.contains(had)).map_or(0, |had| had.revision);
        let is_older = |key: &&DesiredKey| first || listed.get(*key).is_some_and(|revision| *revision <= had);
        self.lost = self.missing.iter().filter(is_older).cloned().collect();
        self.missing.append(&mut self.unplaced);
        let mut orphans = BTreeSet::new();
        let absent = self.held.iter().filter(|(key, _)| !listed.contains_key(key));
        for (key, local) in absent {
            // What was pulled after the list's moment is not absent from it.
            let since = local.revision > at_revision && lineage.contains(&local.position());
            if since || self.writing.contains_key(key) {
                continue;
            }
            let known = lineage.contains(&local.position());
            match (&local.desired.content, known) {
                (Content::Tombstone, true) => steps.push(Step::Drop(key.clone())),
                // A hub that came back empty may yet be restored, with the pod in it: it stays gone.
                (Content::Tombstone, false) => {}
                (Content::Object(_), true) => {
                    let mut gone = local.clone();
                    gone.desired.content = Content::Tombstone;
                    steps.push(Step::Write(key.clone(), gone));
                }
                (Content::Object(_), false) => {
                    orphans.insert(key.clone());
                }
            }
        }
        for step in &steps {
            if let Step::Write(key, local) = step {
                self.writing.insert(key.clone(), local.clone());
            }
        }
        self.lineage = Some(lineage);
        if !orphans.is_empty() && orphans != self.orphans {
            steps.push(Step::Orphans(orphans.len()));
        }
        self.orphans = orphans;
        steps.push(Step::Pull);
        steps
    }

    fn newest(&self, key: &DesiredKey) -> Option<&Local> {
        self.writing.get(key).or_else(|| self.held.get(key))
    }

    /// An entry came in, pulled or asked for.
    pub fn offer(&mut self, key: &DesiredKey, revision: u64, desired: Desired) -> Verdict {
        let incoming = Local { revision, desired };
        let Some(lineage) = self.lineage.as_ref().filter(|lineage| lineage.contains(&incoming.position()))
        else {
            self.unplaced.insert(key.clone());
            return Verdict::Unplaced;
        };
        self.missing.remove(key);
        if let Some(held) = self.newest(key) {
            let gone = held.desired.content == Content::Tombstone;
            let newer = if lineage.contains(&held.position()) {
                incoming.revision > held.revision
                    && incoming.desired.resource_version >= held.desired.resource_version
            } else if held.desired.generation == incoming.desired.generation {
                // A fork of the same bucket: what was written before it is older than what the node has.
                written_after_fork(lineage, &held.position(), &incoming.position())
            } else {
                incoming.desired.resource_version >= held.desired.resource_version
            };
            // A pod that is gone does not come back; a ConfigMap does, when a pod needs it again.
            if !newer || gone && key.plural == "pods" && incoming.desired.content != Content::Tombstone {
                return Verdict::Stale;
            }
        }
        self.writing.insert(key.clone(), incoming.clone());
        Verdict::Write(Box::new(incoming))
    }

    /// A write failed: it is not held, and will be offered again.
    pub fn not_written(&mut self, key: &DesiredKey) {
        self.writing.remove(key);
        self.missing.insert(key.clone());
    }

    /// A pull came back empty: everything that the consumer has was taken. What the list named and is still missing has to
    /// be asked for by name.
    pub fn drained(&mut self, max_bytes: usize) -> Option<Vec<Step>> {
        if self.missing.is_empty() || self.phase != Phase::Following {
            return None;
        }
        let keys: Vec<DesiredKey> = self.missing.iter().take(GET_KEYS_MAX).cloned().collect();
        let max_bytes = u32::try_from(max_bytes).unwrap_or(u32::MAX);
        let lost = std::mem::take(&mut self.lost).intersection(&self.missing).count();
        let told = (lost > 0).then_some(Step::Repairing(lost));
        Some(told.into_iter().chain([Step::Get(GetRequest { keys, max_bytes })]).collect())
    }

    /// The entries asked for by name. Gives what is to be written.
    pub fn got(&mut self, page: GetPage) -> Vec<(DesiredKey, Verdict)> {
        let mut verdicts = Vec::new();
        for (key, revision, desired) in page.entries {
            self.missing.remove(&key);
            if let Some(desired) = desired {
                let verdict = self.offer(&key, revision, desired);
                verdicts.push((key, verdict));
            }
        }
        verdicts
    }

    /// Did the list name what is still not here?
    pub fn is_missing_any(&self) -> bool {
        !self.missing.is_empty()
    }

    /// Is it following the hub, with nothing missing?
    pub fn is_settled(&self) -> bool {
        self.phase == Phase::Following && self.missing.is_empty() && self.writing.is_empty()
    }

    /// The hub's history, if it was listed since the last contact.
    pub fn lineage(&self) -> Option<&Lineage> {
        self.lineage.as_ref().filter(|_| self.is_following())
    }

    /// What the node has and the hub does not, in the order of the keys: objects that the hub's list lacks, and objects in
    /// a version that is not of the hub's history.
    pub fn diverged(&self) -> Vec<DivergedObject> {
        let Some(lineage) = self.lineage() else { return Vec::new() };
        let objects =
            self.held.iter().filter(|(_, local)| matches!(local.desired.content, Content::Object(_)));
        objects
            .filter(|(_, local)| !lineage.contains(&local.position()))
            .map(|(key, _)| DivergedObject { key: key.clone(), hub_has_older: !self.orphans.contains(key) })
            .collect()
    }

    /// Is it past the list?
    pub fn is_following(&self) -> bool {
        self.phase == Phase::Following
    }
}

/// Was `incoming` written in an epoch that began after the lineage left the one `held` was written in?
fn written_after_fork(lineage: &Lineage, held: &Position, incoming: &Position) -> bool {
    let at = |id: &str| lineage.epochs.iter().position(|epoch| epoch.id == id);
    match (at(&held.epoch), at(&incoming.epoch)) {
        (Some(held), Some(incoming)) => incoming > held,
        // The held write's epoch is not in this history at all: the epoch that now runs is after the fork.
        (None, Some(incoming)) => incoming + 1 == lineage.epochs.len(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::desired::ListEntry;
    use schemas::object::Object;

    fn key(name: &str) -> DesiredKey {
        DesiredKey {
            plural: "pods".into(),
            namespace: "d".into(),
            name: name.into(),
            uid: format!("u-{name}"),
        }
    }

    fn desired(epoch: &str, resource_version: u64) -> Desired {
        Desired {
            generation: "g".into(),
            epoch: epoch.into(),
            resource_version,
            content: Content::Object(Object::new("v1", "Pod", "d", "p")),
        }
    }

    fn lineage(epochs: &[(&str, u64)]) -> Lineage {
        let mut lineage = Lineage::new("g".into());
        for (id, last) in epochs {
            lineage.begin((*id).into(), *last);
        }
        lineage
    }

    fn list(lineage: Lineage, at_revision: u64, entries: &[(&str, u64)]) -> ListPage {
        let entries = entries
            .iter()
            .map(|(name, revision)| ListEntry { key: key(name), revision: *revision })
            .collect();
        ListPage { lineage, at_revision, entries, more: false }
    }

    /// A node that holds `a` at revision 5 (epoch e1) and `b` at revision 8 (epoch e1), told by a hub with one epoch.
    fn following() -> Down {
        let mut down = Down::default();
        down.local(key("a"), Some(Local { revision: 5, desired: desired("e1", 3) }));
        down.local(key("b"), Some(Local { revision: 8, desired: desired("e1", 6) }));
        down.connect(1000);
        assert_eq!(down.page(list(lineage(&[("e1", 0)]), 8, &[("a", 5), ("b", 8)]), 1000), [Step::Pull]);
        assert!(down.is_settled());
        down
    }

    #[test]
    fn absence_in_the_same_history_is_a_deletion() {
        let mut down = following();
        down.connect(1000);
        let steps = down.page(list(lineage(&[("e1", 0), ("e2", 9)]), 9, &[("a", 5)]), 1000);
        let [Step::Write(gone, local), Step::Pull] = steps.as_slice() else { panic!("{steps:?}") };
        assert_eq!((gone, &local.desired.content), (&key("b"), &Content::Tombstone));
    }

    #[test]
    fn absence_in_another_history_drops_nothing() {
        for (name, other) in [
            ("empty hub", Lineage { generation: "h".into(), ..lineage(&[("x", 0)]) }),
            ("restored from before", lineage(&[("e1", 0), ("e2", 4)])),
            ("restored from before the first contact", lineage(&[("e0", 0), ("e2", 1)])),
        ] {
            let mut down = following();
            down.connect(1000);
            let steps = down.page(list(other.clone(), 4, &[]), 1000);
            assert_eq!(steps, [Step::Orphans(2), Step::Pull], "{name}");
            down.connect(1000);
            assert_eq!(down.page(list(other, 4, &[]), 1000), [Step::Pull], "{name}: told once");
        }
    }

    #[test]
    fn a_partly_older_backup_drops_only_what_it_knew() {
        let mut down = following();
        down.connect(1000);
        // Backup taken at revision 6: it had written `a` (5), not `b` (8).
        let steps = down.page(list(lineage(&[("e1", 0), ("e2", 6)]), 7, &[]), 1000);
        assert!(
            matches!(steps.as_slice(), [Step::Write(gone, _), Step::Orphans(1), Step::Pull] if *gone == key("a"))
        );
    }

    #[test]
    fn older_is_ignored_and_the_unplaced_waits_for_a_list() {
        let mut down = following();
        assert_eq!(down.offer(&key("a"), 5, desired("e1", 3)), Verdict::Stale);
        assert_eq!(down.offer(&key("a"), 4, desired("e1", 9)), Verdict::Stale);
        assert_eq!(down.offer(&key("a"), 9, desired("e1", 2)), Verdict::Stale);
        assert_eq!(down.offer(&key("a"), 9, desired("e7", 9)), Verdict::Unplaced);
        assert!(matches!(down.offer(&key("a"), 9, desired("e1", 9)), Verdict::Write(_)));
        assert_eq!(down.offer(&key("a"), 9, desired("e1", 9)), Verdict::Stale, "while it is being written");
    }

    #[test]
    fn after_a_fork_only_what_is_written_in_it_replaces() {
        let mut down = following();
        down.connect(1000);
        down.page(list(lineage(&[("e1", 0), ("e2", 6)]), 7, &[("a", 5), ("b", 4)]), 1000);
        assert_eq!(down.offer(&key("b"), 4, desired("e1", 2)), Verdict::Stale, "from before the fork");
        assert!(matches!(down.offer(&key("b"), 8, desired("e2", 4)), Verdict::Write(_)));
    }

    #[test]
    fn a_pod_that_is_gone_does_not_come_back() {
        let mut down = following();
        let gone = Desired { content: Content::Tombstone, ..desired("e1", 9) };
        assert!(matches!(down.offer(&key("a"), 9, gone), Verdict::Write(_)));
        assert_eq!(down.offer(&key("a"), 10, desired("e1", 10)), Verdict::Stale);
        let config = DesiredKey { plural: "configmaps".into(), ..key("c") };
        let gone = Desired { content: Content::Tombstone, ..desired("e1", 9) };
        assert!(matches!(down.offer(&config, 11, gone), Verdict::Write(_)));
        assert!(matches!(down.offer(&config, 12, desired("e1", 9)), Verdict::Write(_)), "needed again");
    }

    #[test]
    fn what_came_after_the_lists_moment_is_not_absent() {
        let mut down = following();
        down.connect(1000);
        assert_eq!(down.page(list(lineage(&[("e1", 0)]), 6, &[("a", 5)]), 1000), [Step::Pull]);
    }

    #[test]
    fn what_the_local_store_lost_is_asked_for_by_name() {
        let mut down = following();
        down.local(key("a"), None);
        down.connect(1000);
        assert_eq!(down.page(list(lineage(&[("e1", 0)]), 8, &[("a", 5), ("b", 8)]), 1000), [Step::Pull]);
        assert!(!down.is_settled());
        let steps = down.drained(1000).unwrap();
        assert!(matches!(steps.as_slice(), [Step::Repairing(1), Step::Get(get)] if get.keys == [key("a")]));
        let verdicts = down.got(GetPage { entries: vec![(key("a"), 5, Some(desired("e1", 3)))] });
        assert!(matches!(verdicts.as_slice(), [(_, Verdict::Write(_))]));
        down.local(key("a"), Some(Local { revision: 5, desired: desired("e1", 3) }));
        assert!(down.is_settled());
    }

    #[test]
    fn what_changed_while_nobody_listened_was_not_lost() {
        let mut down = following();
        down.connect(1000);
        let listed = list(lineage(&[("e1", 0)]), 12, &[("a", 11), ("b", 8), ("c", 12)]);
        assert_eq!(down.page(listed, 1000), [Step::Pull]);
        let steps = down.drained(1000).unwrap();
        assert!(
            matches!(steps.as_slice(), [Step::Get(get)] if get.keys == [key("a"), key("c")]),
            "{steps:?}"
        );

        let mut anew = Down::default();
        anew.local(key("a"), Some(Local { revision: 5, desired: desired("e1", 3) }));
        anew.connect(1000);
        anew.page(list(lineage(&[("e1", 0)]), 8, &[("a", 5), ("b", 8)]), 1000);
        let steps = anew.drained(1000).unwrap();
        assert!(matches!(steps.as_slice(), [Step::Repairing(1), Step::Get(_)]), "{steps:?}");
    }

    #[test]
    fn what_the_store_lost_unseen_is_noticed_at_the_second_look() {
        let mut down = following();
        let there = BTreeSet::from([key("a")]);
        assert_eq!(down.store_has(&there), 0, "it may have been written since");
        assert_eq!(down.store_has(&there), 1);
        down.connect(1000);
        down.page(list(lineage(&[("e1", 0)]), 8, &[("a", 5), ("b", 8)]), 1000);
        assert!(matches!(down.drained(1000).as_deref(), Some([_, Step::Get(get)]) if get.keys == [key("b")]));
    }

    #[test]
    fn a_tombstone_is_dropped_only_in_the_history_it_is_of() {
        for (generation, dropped) in [("g", true), ("h", false)] {
            let mut down = following();
            let gone = Desired { content: Content::Tombstone, ..desired("e1", 9) };
            down.local(key("b"), Some(Local { revision: 9, desired: gone }));
            down.connect(1000);
            let lineage = Lineage { generation: generation.into(), ..lineage(&[("e1", 0)]) };
            let steps = down.page(list(lineage, 9, &[("a", 5)]), 1000);
            assert_eq!(steps.contains(&Step::Drop(key("b"))), dropped, "{generation}");
        }
    }

    #[test]
    fn a_list_is_of_one_moment() {
        let mut down = following();
        down.connect(1000);
        let first = ListPage { more: true, ..list(lineage(&[("e1", 0)]), 8, &[("a", 5)]) };
        assert!(
            matches!(down.page(first, 1000).as_slice(), [Step::List(next)] if next.after == Some(key("a")))
        );
        let moved = list(lineage(&[("e1", 0)]), 9, &[]);
        assert!(matches!(down.page(moved, 1000).as_slice(), [Step::List(next)] if next.after.is_none()));
        assert!(down.is_listing());
    }
}
