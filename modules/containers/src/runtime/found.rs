//! What containerd says of a container: its labels and its task, read as one. Pure.

use std::path::PathBuf;

use containerd_client::services::v1::Container as Stored;
use containerd_client::types::v1::{Process, Status as TaskStatus};
use schemas::Timestamp;
use sha2::{Digest, Sha256};

use super::image::data_hex;

/// Labels on our containers. The first four are kubelet's own.
pub mod label {
    /// UID of the pod.
    pub const POD_UID: &str = "io.kubernetes.pod.uid";
    /// Namespace of the pod.
    pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
    /// Name of the pod.
    pub const POD_NAME: &str = "io.kubernetes.pod.name";
    /// Name of the container in the pod.
    pub const CONTAINER: &str = "io.kubernetes.container.name";
    /// Which start of it this is, from 0.
    pub const ATTEMPT: &str = "io.edgewire/attempt";
    /// Hash of what it was made from: tells an unchanged container.
    pub const SPEC_HASH: &str = "io.edgewire/spec-hash";
    /// Its live log file.
    pub const LOG_PATH: &str = "io.edgewire/log-path";
    /// Digest of the image's config.
    pub const IMAGE_ID: &str = "io.edgewire/image-id";
    /// Its cgroup.
    pub const CGROUP: &str = "io.edgewire/cgroup";
    /// When it was started, in ms since 1970.
    pub const STARTED_AT_MS: &str = "io.edgewire/started-at-ms";
    /// When it ended.
    pub const FINISHED_AT_MS: &str = "io.edgewire/finished-at-ms";
    /// How it ended.
    pub const EXIT_CODE: &str = "io.edgewire/exit-code";
    /// The kernel killed it for want of memory.
    pub const OOM_KILLED: &str = "io.edgewire/oom-killed";
}

/// How a container ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Exit {
    /// Exit code; 128 + signal when a signal ended it.
    pub code: i32,
    /// The kernel killed it because its memory limit was reached.
    pub oom_killed: bool,
    /// When.
    pub finished_at: Timestamp,
}

/// What containerd says of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerState {
    /// Made, not started: a start that was cut short.
    Created,
    /// Runs (or is paused).
    Running,
    /// Has ended; its task waits to be [reaped](Runtime::reap), or has been.
    Exited(Exit),
    /// It has no task, and how it ended is not noted: a reboot or the end of its shim took it, or its start never came so far.
    Lost,
}

/// One of our containers, as containerd knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundContainer {
    /// ID in containerd.
    pub id: String,
    /// UID of the pod.
    pub pod_uid: String,
    /// Address of the pod, as its sandbox stands; empty with `hostNetwork`.
    pub pod_ip: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Name of the container in the pod.
    pub container: String,
    /// Which start of it this is.
    pub attempt: u32,
    /// Hash of what it was made from.
    pub spec_hash: String,
    /// Image in full.
    pub image: String,
    /// Digest of the image's config.
    pub image_id: String,
    /// Its live log file.
    pub log_path: PathBuf,
    /// When it was started.
    pub started_at: Timestamp,
    /// What it does.
    pub state: ContainerState,
}

/// The ID of one attempt of a container: 64 hex digits.
pub fn container_id(pod_uid: &str, container: &str, attempt: u32) -> String {
    data_hex(&Sha256::digest(format!("{pod_uid}/{container}/{attempt}")))
}

fn timestamp(at: Option<prost_types::Timestamp>) -> Timestamp {
    at.map_or(Timestamp(0), |at| Timestamp(at.seconds * 1000 + i64::from(at.nanos) / 1_000_000))
}

/// A container from its record and its task. Of its pod's address containerd knows nothing.
pub(super) fn found(stored: Stored, task: Option<Process>) -> FoundContainer {
    let text = |name: &str| stored.labels.get(name).cloned().unwrap_or_default();
    let time = |name: &str| Timestamp(text(name).parse().unwrap_or(0));
    let noted = text(label::EXIT_CODE).parse().ok().map(|code| Exit {
        code,
        oom_killed: text(label::OOM_KILLED) == "true",
        finished_at: time(label::FINISHED_AT_MS),
    });
    let state = match (&task, noted) {
        (_, Some(exit)) => ContainerState::Exited(exit),
        (None, None) => ContainerState::Lost,
        (Some(task), None) => match task.status() {
            TaskStatus::Stopped => ContainerState::Exited(Exit {
                code: i32::try_from(task.exit_status).unwrap_or(255),
                oom_killed: false,
                finished_at: timestamp(task.exited_at),
            }),
            TaskStatus::Created => ContainerState::Created,
            _ => ContainerState::Running,
        },
    };
    FoundContainer {
        pod_uid: text(label::POD_UID),
        pod_ip: String::new(),
        namespace: text(label::POD_NAMESPACE),
        pod: text(label::POD_NAME),
        container: text(label::CONTAINER),
        attempt: text(label::ATTEMPT).parse().unwrap_or(0),
        spec_hash: text(label::SPEC_HASH),
        image_id: text(label::IMAGE_ID),
        log_path: text(label::LOG_PATH).into(),
        started_at: time(label::STARTED_AT_MS),
        image: stored.image,
        id: stored.id,
        state,
    }
}
