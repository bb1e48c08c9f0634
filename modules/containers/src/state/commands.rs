//! What people ask for: logs and programs. The container is found here, the bytes flow in the rim's task.

use bus::module::{Effect, Message};
use schemas::command::{OpenExec, OpenLogs, Refusal, Reply};

use super::{Containers, Effects};
use crate::effects::{Act, ExecSession, LogsSession};
use crate::pod::PodState;
use crate::record::Phase;
use crate::runtime::container::container_id;

/// So many attempts back the one that ran last is looked for: those between were cut short at their start.
const CUT_SHORT_MAX: usize = 64;

impl Containers {
    /// The pod of that name, the one that stays before one that goes, and the container in it.
    pub(super) fn target(
        &self,
        namespace: &str,
        name: &str,
        container: &str,
    ) -> Result<(&PodState, String), Refusal> {
        let named =
            |pod: &&PodState| pod.record.object.namespace() == namespace && pod.record.object.name() == name;
        let pod = self.pods.values().filter(named).min_by_key(|pod| pod.record.removal).ok_or_else(|| {
            let message = format!(
                "pod {namespace}/{name} is not on node {}; see `kubectl get pods -o wide`",
                self.node
            );
            Refusal::new(404, "EW-POD-NOT-FOUND", message)
        })?;
        let mut all = pod.init_containers().chain(pod.containers());
        let found =
            if container.is_empty() { pod.containers().next() } else { all.find(|c| c.name == container) };
        let found = found.ok_or_else(|| {
            let message = format!("container {container} is not valid for pod {name}");
            Refusal::new(400, "EW-CONTAINER-NOT-FOUND", message)
        })?;
        Ok((pod, found.name.clone()))
    }

    pub(super) fn open_logs(&self, open: OpenLogs, message: &Message, out: &mut Effects) {
        match self.logs_of(&open) {
            Ok((uid, container, attempt, running)) => {
                out.push(Effect::Act(Act::Logs(Box::new(LogsSession {
                    open,
                    uid,
                    container,
                    attempt,
                    running,
                }))));
            }
            Err(refusal) => out.extend(Effect::reply(message, &Reply::<()>::Err(refusal))),
        }
    }

    pub(super) fn logs_of(&self, open: &OpenLogs) -> Result<(String, String, u32, bool), Refusal> {
        let (pod, container) = self.target(&open.namespace, &open.pod, &open.container)?;
        let record = pod.record_of(&container).cloned().unwrap_or_default();
        let uid = pod.record.uid().to_owned();
        let running = matches!(record.phase, Phase::Running { .. });
        // A restart that waits has nothing to say yet: the last words of the attempt before are what is wanted.
        let waits = record.phase == Phase::Waiting;
        let ran_last = |attempt: &u32| {
            record.last.as_ref().is_some_and(|last| last.id == container_id(&uid, &container, *attempt))
        };
        let before = (0..record.attempt).rev().take(CUT_SHORT_MAX).find(ran_last);
        match (open.previous, waits, before) {
            (true, _, Some(before)) | (false, true, Some(before)) => Ok((uid, container, before, false)),
            (true, _, None) => {
                let message =
                    format!("previous terminated container {container} in pod {} not found", open.pod);
                Err(Refusal::new(400, "EW-NO-PREVIOUS-LOG", message))
            }
            (false, true, None) => Err(waiting(&container, &open.pod)),
            (false, false, _) => Ok((uid, container, record.attempt, running)),
        }
    }

    pub(super) fn open_exec(&self, open: OpenExec, message: &Message, out: &mut Effects) {
        match self.exec_of(&open) {
            Ok(id) => out.push(Effect::Act(Act::Exec(Box::new(ExecSession { open, id })))),
            Err(refusal) => out.extend(Effect::reply(message, &Reply::<()>::Err(refusal))),
        }
    }

    pub(super) fn exec_of(&self, open: &OpenExec) -> Result<String, Refusal> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if open.session.is_empty() || open.session.len() > 64 || !open.session.chars().all(plain) {
            return Err(Refusal::new(
                400,
                "EW-BAD-SESSION",
                "a session name is 1 to 64 letters, digits and '-'",
            ));
        }
        let (pod, container) = self.target(&open.namespace, &open.pod, &open.container)?;
        match pod.record_of(&container).map(|record| (&record.phase, &record.id)) {
            Some((Phase::Running { .. }, id)) => Ok(id.clone()),
            Some((Phase::Ended(_), _)) => {
                let message = format!("container {container} in pod {} has ended", open.pod);
                Err(Refusal::new(400, "EW-CONTAINER-NOT-RUNNING", message))
            }
            _ => Err(waiting(&container, &open.pod)),
        }
    }
}

fn waiting(container: &str, pod: &str) -> Refusal {
    let message =
        format!("container {container} in pod {pod} is waiting to start; see `kubectl describe pod {pod}`");
    Refusal::new(400, "EW-CONTAINER-WAITING", message)
}
