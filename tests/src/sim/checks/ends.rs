//! What was stopped for good, and who may have it started again.
//!
//! A node remembers an end in its bucket, as a tombstone or an object with a `deletionTimestamp`. When the bucket loses that, a
//! hub that was restored from before the deletion may tell the pod anew. Nothing else brings it back.

use std::collections::BTreeMap;

use schemas::desired::Content;
use schemas::object::Object;

use super::super::planted::local_of;
use super::super::world::World;
use super::Invariant;

/// What a node knows of a pod that it stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// That it is gone: it never comes back.
    Known,
    /// Nothing any more: it comes back when it is told anew.
    Forgotten,
}

/// The pods that were stopped for good, by node and UID.
#[derive(Default)]
pub struct Ends(BTreeMap<(usize, String), End>);

impl Ends {
    /// Was it stopped, and never told anew where that may be?
    pub fn has(&self, edge: usize, uid: &str) -> bool {
        self.0.contains_key(&(edge, uid.to_owned()))
    }

    /// A pod is written into the node's bucket.
    pub fn told_anew(&mut self, edge: usize, pod: &Object) {
        let of = (edge, pod.uid().to_owned());
        if !pod.is_deleting() && self.0.get(&of) == Some(&End::Forgotten) {
            self.0.remove(&of);
        }
    }
}

/// A pod is stopped for good.
pub fn stopped(w: &mut World, edge: usize, uid: &str) {
    if !w.checks.doomed.contains(uid) {
        w.checks.fail(
            Invariant::NothingStoppedUnasked,
            format!("pod {uid} is stopped on node {edge}, and nobody deleted it"),
        );
    }
    // Nothing of it is left: where it may come back, it begins anew.
    w.checks.attempts.retain(|(at, of, _), _| (*at, of.as_str()) != (edge, uid));
    let end = match goes(w, edge, uid) {
        Some(true) => End::Known,
        None => End::Forgotten,
        // Told anew before it was stopped.
        Some(false) => return,
    };
    w.checks.ends.0.insert((edge, uid.to_owned()), end);
}

/// The node's bucket lost something, some ends perhaps.
pub fn lost_local(w: &mut World, edge: usize) {
    let mut ends = std::mem::take(&mut w.checks.ends);
    for ((_, uid), end) in ends.0.iter_mut().filter(|((at, _), _)| *at == edge) {
        if goes(w, edge, uid) != Some(true) {
            *end = End::Forgotten;
        }
    }
    w.checks.ends = ends;
}

/// Shall the pod go, or is it gone, as the node's bucket says? `None`: it says nothing of it.
fn goes(w: &World, edge: usize, uid: &str) -> Option<bool> {
    let local = local_of(w, edge);
    let (_, entry) = local.iter().find(|(key, _)| key.plural == "pods" && key.uid == uid)?;
    Some(match &entry.desired.content {
        Content::Tombstone => true,
        Content::Object(object) => object.is_deleting(),
    })
}
