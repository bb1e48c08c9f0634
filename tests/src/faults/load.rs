//! The load: pods that come and go, and a ConfigMap that is edited, while a fault lasts. What the API acknowledged is
//! kept, because it must hold; what it did not answer may have happened or not.
//!
//! (The durable messages are the sensor's: [`crate::cluster::readings`].)

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;

use super::NODE;
use crate::cluster::Cluster;
use crate::cluster::pods::{IDLE, pod};

/// The ConfigMap that is edited.
pub const CONFIG: &str = "edited";
/// Between two steps.
const STEP: Duration = Duration::from_millis(500);
/// So many pods are there at a time.
const PODS: u64 = 4;
/// A call waits so long for a hub that does not answer.
const PATIENCE: &str = "--request-timeout=4s";

/// What must be, of a pod that came and perhaps went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Its creation was acknowledged.
    There,
    /// Its deletion was acknowledged.
    Gone,
    /// A call about it had no answer.
    Open,
}

/// What was done so far.
#[derive(Debug, Default)]
pub struct Load {
    done: Mutex<Done>,
}

#[derive(Debug, Default)]
struct Done {
    steps: u64,
    pods: BTreeMap<String, Fate>,
    /// The last edit that was tried, and the last that was acknowledged.
    edit: (u64, u64),
}

impl Load {
    fn done(&self) -> MutexGuard<'_, Done> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Steps whose three calls were all acknowledged.
    pub fn steps(&self) -> u64 {
        self.done().steps
    }

    /// The pods that it made.
    pub fn pods(&self) -> BTreeMap<String, Fate> {
        self.done().pods.clone()
    }

    /// The last edit that was tried, and the last that was acknowledged.
    pub fn edits(&self) -> (u64, u64) {
        self.done().edit
    }

    /// Step after step until told to stop.
    pub async fn run(&self, cluster: &Cluster, mut stopped: watch::Receiver<bool>) {
        for n in 1.. {
            let created = self.create(cluster, n).await;
            let edited = self.edit(cluster, n).await;
            let deleted = match n.checked_sub(PODS).filter(|n| *n > 0) {
                Some(n) => self.delete(cluster, n).await,
                None => true,
            };
            if created && edited && deleted {
                self.done().steps += 1;
            }
            let told = tokio::time::timeout(STEP, stopped.wait_for(|stopped| *stopped)).await;
            if told.is_ok() {
                return;
            }
        }
    }

    async fn create(&self, cluster: &Cluster, n: u64) -> bool {
        let name = pod_name(n);
        self.done().pods.insert(name.clone(), Fate::Open);
        let mut manifest = pod(&name, NODE, IDLE);
        if let Some(grace) = manifest.pointer_mut("/spec/terminationGracePeriodSeconds") {
            *grace = json!(1);
        }
        let created = called(cluster, &["create", PATIENCE, "-f", "-"], &manifest.to_string()).await;
        if created {
            self.done().pods.insert(name, Fate::There);
        }
        created
    }

    async fn delete(&self, cluster: &Cluster, n: u64) -> bool {
        let name = pod_name(n);
        let before = self.done().pods.insert(name.clone(), Fate::Open);
        // One whose creation had no answer may not be there yet, and come later.
        let ignoring = format!("--ignore-not-found={}", before != Some(Fate::There));
        let deleted =
            called(cluster, &["delete", "pod", &name, PATIENCE, "--wait=false", &ignoring], "").await;
        if deleted && before == Some(Fate::There) {
            self.done().pods.insert(name, Fate::Gone);
        }
        deleted
    }

    async fn edit(&self, cluster: &Cluster, n: u64) -> bool {
        self.done().edit.0 = n;
        let patch = json!({"data": {"n": n.to_string()}}).to_string();
        let args = ["patch", "configmap", CONFIG, PATIENCE, "--type=merge", "-p", &patch];
        let edited = called(cluster, &args, "").await;
        if edited {
            self.done().edit.1 = n;
        }
        edited
    }

    /// Fails unless the hub has what it acknowledged, and nothing that it acknowledged to have deleted.
    pub fn is_kept(&self, pods: &[Value], edit: u64) -> anyhow::Result<()> {
        let names: Vec<&str> =
            pods.iter().filter_map(|pod| pod.pointer("/metadata/name")?.as_str()).collect();
        for (name, fate) in self.pods() {
            let there = names.contains(&name.as_str());
            anyhow::ensure!(fate != Fate::There || there, "{name} was created, and the hub has forgotten it");
            anyhow::ensure!(fate != Fate::Gone || !there, "{name} was deleted, and the hub has it again");
        }
        let (tried, acknowledged) = self.edits();
        anyhow::ensure!(
            (acknowledged..=tried).contains(&edit),
            "the ConfigMap has edit {edit}; {acknowledged} was acknowledged, {tried} tried"
        );
        Ok(())
    }
}

fn pod_name(n: u64) -> String {
    format!("brief-{n}")
}

/// Did the hub acknowledge it?
async fn called(cluster: &Cluster, args: &[&str], input: &str) -> bool {
    cluster.kubectl_with(args, input).await.is_ok_and(|output| output.success)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_acknowledged_must_hold() {
        let load = Load::default();
        load.done().pods =
            [("a", Fate::There), ("b", Fate::Gone), ("c", Fate::Open)].map(|(n, f)| (n.to_owned(), f)).into();
        load.done().edit = (7, 5);
        let pods = |names: &[&str]| -> Vec<Value> {
            names.iter().map(|name| json!({"metadata": {"name": name}})).collect()
        };
        for (names, edit) in [(&["a"][..], 5), (&["a", "c"], 6), (&["a", "other"], 7)] {
            load.is_kept(&pods(names), edit).unwrap();
        }
        for (names, edit, word) in [
            (&["c"][..], 5, "forgotten"),
            (&["a", "b"], 5, "again"),
            (&["a"], 4, "edit 4"),
            (&["a"], 8, "edit 8"),
        ] {
            assert!(
                load.is_kept(&pods(names), edit).unwrap_err().to_string().contains(word),
                "{names:?} {edit}"
            );
        }
    }
}
