//! Containers: create, start, stop, list, adopt, forget.
//!
//! A container's ID is made from the pod's UID, the container's name and the attempt, so asking for the same start twice
//! (after a crash between doing and noting it) finds the one that is there. All that we must know later stands in
//! labels on the container in containerd: adoption is reading them back.
//!
//! An exited container stays in containerd as a record without task and snapshot, its exit in labels, until the next
//! attempt or the end of the pod. A record without task and without exit is [`ContainerState::Lost`]: killed by a reboot.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_client::services::v1::container::Runtime as RuntimeName;
use containerd_client::services::v1::snapshots::{
    MountsRequest, PrepareSnapshotRequest, RemoveSnapshotRequest,
};
use containerd_client::services::v1::{
    Container as Stored, CreateContainerRequest, CreateTaskRequest, DeleteContainerRequest,
    DeleteTaskRequest, GetContainerRequest, GetRequest, KillRequest, ListContainersRequest, ListTasksRequest,
    StartRequest, UpdateContainerRequest, WaitRequest,
};
use containerd_client::types::Mount;
use containerd_client::types::v1::{Process, Status as TaskStatus};
use k8s_openapi::api::core::v1::{Container, Pod};
use prost_types::{Any, FieldMask};
use schemas::Timestamp;
use tonic::Code;

use super::cgroup::was_oom_killed;
pub use super::found::{ContainerState, Exit, FoundContainer, container_id};
use super::found::{found, label};
use super::image::Image;
use super::logs::PumpSpec;
use super::sandbox::Sandbox;
use super::spec::{BindMount, SpecInput, User, oci_spec};
use super::{Runtime, RuntimeError, refused, tolerate, user};

const RUNC: &str = "io.containerd.runc.v2";
const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
const SIGTERM: u32 = 15;
const SIGKILL: u32 = 9;
/// After SIGKILL, how long until the kernel must have ended it.
const KILL_TIMEOUT: Duration = Duration::from_secs(30);

/// Everything that a start needs.
pub struct StartContainer<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// The container of it.
    pub container: &'a Container,
    /// Which start this is, from 0.
    pub attempt: u32,
    /// Kept in a label.
    pub spec_hash: &'a str,
    /// Its image, unpacked.
    pub image: &'a Image,
    /// Its environment, resolved.
    pub env: &'a [(String, String)],
    /// Its volumes and the pod's own files.
    pub mounts: &'a [BindMount],
    /// The pod's sandbox.
    pub sandbox: &'a Sandbox,
    /// Host name of the pod.
    pub hostname: &'a str,
}

impl Runtime {
    /// Where a pod's logs stand, laid out as kubelet does it.
    pub fn logs_dir(&self, namespace: &str, pod: &str, pod_uid: &str) -> PathBuf {
        self.config.data_dir.join("logs").join(format!("{namespace}_{pod}_{pod_uid}"))
    }

    /// The log file of one attempt of a container.
    pub fn log_path(&self, pod: &Pod, container: &str, attempt: u32) -> PathBuf {
        let meta = &pod.metadata;
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        self.logs_dir(&text(&meta.namespace), &text(&meta.name), &text(&meta.uid))
            .join(container)
            .join(format!("{attempt}.log"))
    }

    /// Makes and starts a container; gives its ID. One that runs already under that ID is left as it is.
    pub async fn start_container(&self, start: &StartContainer<'_>) -> Result<String, RuntimeError> {
        let uid = start.pod.metadata.uid.clone().unwrap_or_default();
        let id = container_id(&uid, &start.container.name, start.attempt);
        match self.find(&id).await?.map(|found| found.state) {
            Some(ContainerState::Running | ContainerState::Exited(_)) => return Ok(id),
            Some(ContainerState::Created | ContainerState::Lost) => self.remove_container(&id).await?,
            None => {}
        }
        let result = self.create_and_start(&id, start).await;
        if let Err(error) = &result {
            tracing::info!(%error, id, container = start.container.name, "a container could not be started");
            // Half a container helps nobody; the error that counts is the first.
            if let Err(error) = self.remove_container(&id).await {
                tracing::debug!(%error, id, "what was made of the container stays until the next try");
            }
        }
        result.map(|()| id)
    }

    async fn create_and_start(&self, id: &str, start: &StartContainer<'_>) -> Result<(), RuntimeError> {
        let name = &start.container.name;
        let cgroups_path = format!("{}/{id}", self.config.cgroup_parent);
        let log_path = self.log_path(start.pod, name, start.attempt);
        self.drop_old_logs(&log_path, start.attempt);
        let known = user::known(start.pod, start.container, &start.image.config.user);
        let spec = spec_of(start, &cgroups_path, known.as_ref().unwrap_or(&user::UNKNOWN))?;
        let mut stored = Stored {
            id: id.to_owned(),
            labels: labels(start, &log_path, &cgroups_path),
            image: start.image.name.clone(),
            runtime: Some(RuntimeName { name: RUNC.to_owned(), options: None }),
            spec: Some(spec),
            snapshotter: self.snapshotter.clone(),
            snapshot_key: id.to_owned(),
            ..Stored::default()
        };
        // The record before the snapshot: containerd's garbage collector takes a snapshot that nothing refers to.
        let request = CreateContainerRequest { container: Some(stored.clone()) };
        let created = self.client.containers().create(self.call(request)).await;
        created.map_err(refused(format!("create container \"{name}\"")))?;
        let mounts = self.prepare_rootfs(id, start.image).await?;
        if known.is_none() {
            let at = self.config.data_dir.join("import").join(format!("root-{id}"));
            let found =
                user::look_up(start.pod, start.container, &start.image.config.user, &mounts, at).await?;
            stored.spec = Some(spec_of(start, &cgroups_path, &found)?);
            let update_mask = Some(FieldMask { paths: vec!["spec".to_owned()] });
            let request = UpdateContainerRequest { container: Some(stored), update_mask };
            let updated = self.client.containers().update(self.call(request)).await;
            updated.map_err(refused(format!("set the user of container \"{name}\"")))?;
        }
        self.make_task(id, start, mounts, log_path).await?;
        let request = StartRequest { container_id: id.to_owned(), exec_id: String::new() };
        let started = self.client.tasks().start(self.call(request)).await;
        started.map_err(refused(format!("start container \"{name}\""))).map(drop)
    }

    async fn make_task(
        &self,
        id: &str,
        start: &StartContainer<'_>,
        rootfs: Vec<Mount>,
        log_path: PathBuf,
    ) -> Result<(), RuntimeError> {
        let pump = PumpSpec {
            file_max_bytes: self.config.log_file_max_bytes,
            files_max: self.config.log_files_max,
            path: log_path,
        };
        let uri = pump.uri(&self.config.log_pump);
        let terminal = start.container.tty.unwrap_or(false);
        let task = CreateTaskRequest {
            container_id: id.to_owned(),
            rootfs,
            stdout: uri.clone(),
            stderr: if terminal { String::new() } else { uri },
            terminal,
            ..CreateTaskRequest::default()
        };
        let mut created = self.client.tasks().create(self.call(task.clone())).await;
        if created.as_ref().is_err_and(|status| status.message().contains("already exists")) {
            // A shim that was killed while it made the task left runc's state of it behind.
            self.forget_in_runc(id).await;
            created = self.client.tasks().create(self.call(task)).await;
        }
        created.map_err(refused(format!("make the task of container \"{}\"", start.container.name))).map(drop)
    }

    /// Removes what runc remembers of a container that containerd has no task for.
    async fn forget_in_runc(&self, id: &str) {
        let root = Path::new("/run/containerd/runc").join(&self.config.namespace);
        let deleted = tokio::process::Command::new("runc")
            .arg("--root")
            .arg(root)
            .args(["delete", "--force", id])
            .stdin(std::process::Stdio::null())
            .output()
            .await;
        tracing::info!(id, ok = deleted.is_ok_and(|out| out.status.success()), "runc had it from before");
    }

    async fn prepare_rootfs(&self, id: &str, image: &Image) -> Result<Vec<Mount>, RuntimeError> {
        let what = || format!("prepare the root file system of {}", image.name);
        let request = PrepareSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: id.to_owned(),
            parent: Self::top_snapshot(image),
            labels: HashMap::new(),
        };
        let prepared = self.client.snapshots().prepare(self.copy_call(request)).await;
        if let Some(reply) = tolerate(prepared, Code::AlreadyExists, what())? {
            return Ok(reply.into_inner().mounts);
        }
        let request = MountsRequest { snapshotter: self.snapshotter.clone(), key: id.to_owned() };
        let reply = self.client.snapshots().mounts(self.call(request)).await.map_err(refused(what()))?;
        Ok(reply.into_inner().mounts)
    }

    /// Logs of this attempt are kept, and of the last one before it that said anything.
    fn drop_old_logs(&self, log_path: &Path, attempt: u32) {
        let Some(dir) = log_path.parent() else { return };
        let mut older = Vec::new();
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let of = name.split('.').next().and_then(|n| n.parse::<u32>().ok());
            if let Some(of) = of.filter(|of| *of < attempt) {
                older.push((of, entry.metadata().is_ok_and(|file| file.len() > 0), entry.path()));
            }
        }
        let last = older.iter().filter(|(_, spoke, _)| *spoke).map(|(of, ..)| *of).max();
        for (_, _, path) in older.into_iter().filter(|(of, ..)| Some(*of) != last) {
            // A file that stays costs bounded space and is tried again at the next start.
            let _ = std::fs::remove_file(path);
        }
    }

    /// Removes the attempts before this one: the last that ran, and those after it whose start was cut short.
    pub async fn remove_older(
        &self,
        pod_uid: &str,
        container: &str,
        attempt: u32,
    ) -> Result<(), RuntimeError> {
        for before in (0..attempt).rev() {
            let id = container_id(pod_uid, container, before);
            if self.find(&id).await?.is_none() {
                break;
            }
            self.remove_container(&id).await?;
        }
        Ok(())
    }

    /// All our containers, as containerd knows them now.
    pub async fn containers(&self) -> Result<Vec<FoundContainer>, RuntimeError> {
        let filters = vec![format!("labels.\"{}\"", label::POD_UID)];
        let stored = self.client.containers().list(self.call(ListContainersRequest { filters })).await;
        let stored = stored.map_err(refused("list containers"))?.into_inner().containers;
        let tasks = self.client.tasks().list(self.call(ListTasksRequest { filter: String::new() })).await;
        let tasks = tasks.map_err(refused("list tasks"))?.into_inner().tasks;
        // In a list containerd leaves `container_id` empty and gives the container's ID as `id`.
        let mut tasks: HashMap<String, Process> =
            tasks.into_iter().map(|task| (task.id.clone(), task)).collect();
        Ok(stored
            .into_iter()
            .map(|c| {
                let task = tasks.remove(&c.id);
                let container = found(c, task);
                FoundContainer { pod_ip: self.address(&container.pod_uid), ..container }
            })
            .collect())
    }

    /// One container; `None` when containerd has none of that ID.
    pub async fn find(&self, id: &str) -> Result<Option<FoundContainer>, RuntimeError> {
        let request = GetContainerRequest { id: id.to_owned() };
        let stored = self.client.containers().get(self.call(request)).await;
        let stored = tolerate(stored, Code::NotFound, format!("find container {id}"))?;
        let Some(stored) = stored.and_then(|reply| reply.into_inner().container) else { return Ok(None) };
        let request = GetRequest { container_id: id.to_owned(), exec_id: String::new() };
        let task = self.client.tasks().get(self.call(request)).await;
        let task = tolerate(task, Code::NotFound, format!("find the task of {id}"))?;
        Ok(Some(found(stored, task.and_then(|reply| reply.into_inner().process))))
    }

    /// Waits until a container has ended. An error says that containerd went away or has no such task: ask again.
    pub async fn wait(&self, id: &str) -> Result<(), RuntimeError> {
        let request = WaitRequest { container_id: id.to_owned(), exec_id: String::new() };
        let waited = self.client.tasks().wait(self.endless_call(request)).await;
        waited.map_err(refused(format!("wait for container {id}"))).map(drop)
    }

    /// Takes in how a container ended: its exit goes into its labels, then task and snapshot are dropped.
    /// `None`: it still runs, or containerd does not know it.
    pub async fn reap(&self, id: &str) -> Result<Option<Exit>, RuntimeError> {
        let request = GetContainerRequest { id: id.to_owned() };
        let stored = self.client.containers().get(self.call(request)).await;
        let stored = tolerate(stored, Code::NotFound, format!("find container {id}"))?;
        let Some(stored) = stored.and_then(|reply| reply.into_inner().container) else { return Ok(None) };
        let request = GetRequest { container_id: id.to_owned(), exec_id: String::new() };
        let task = self.client.tasks().get(self.call(request)).await;
        let task = tolerate(task, Code::NotFound, format!("find the task of {id}"))?;
        let cgroup = stored.labels.get(label::CGROUP).cloned().unwrap_or_default();
        let labels = stored.labels.clone();
        let ContainerState::Exited(mut exit) = found(stored, task.and_then(|t| t.into_inner().process)).state
        else {
            return Ok(None);
        };
        if labels.contains_key(label::EXIT_CODE) {
            self.drop_task(id).await?;
            return Ok(Some(exit));
        }
        // The cgroup goes with the task: look now.
        exit.oom_killed = was_oom_killed(&cgroup);
        self.note_exit(id, labels, exit).await?;
        self.drop_task(id).await?;
        Ok(Some(exit))
    }

    async fn note_exit(
        &self,
        id: &str,
        mut labels: HashMap<String, String>,
        exit: Exit,
    ) -> Result<(), RuntimeError> {
        labels.insert(label::EXIT_CODE.to_owned(), exit.code.to_string());
        labels.insert(label::FINISHED_AT_MS.to_owned(), exit.finished_at.0.to_string());
        labels.insert(label::OOM_KILLED.to_owned(), exit.oom_killed.to_string());
        let container = Stored { id: id.to_owned(), labels, ..Stored::default() };
        let update_mask = Some(FieldMask { paths: vec!["labels".to_owned()] });
        let request = UpdateContainerRequest { container: Some(container), update_mask };
        let noted = self.client.containers().update(self.call(request)).await;
        noted.map_err(refused(format!("note the exit of container {id}"))).map(drop)
    }

    async fn drop_task(&self, id: &str) -> Result<(), RuntimeError> {
        let gone =
            self.client.tasks().delete(self.call(DeleteTaskRequest { container_id: id.to_owned() })).await;
        tolerate(gone, Code::NotFound, format!("drop the task of {id}"))?;
        let request = RemoveSnapshotRequest { snapshotter: self.snapshotter.clone(), key: id.to_owned() };
        let gone = self.client.snapshots().remove(self.call(request)).await;
        tolerate(gone, Code::NotFound, format!("drop the snapshot of {id}")).map(drop)
    }

    /// Asks a container to end, waits for `grace`, then makes it. Gives how it ended; `None` when there was none.
    pub async fn stop_container(&self, id: &str, grace: Duration) -> Result<Option<Exit>, RuntimeError> {
        if !grace.is_zero() && self.kill(id, SIGTERM).await? {
            // Ended, or containerd lost it: either way the next step finds out.
            let _ = tokio::time::timeout(grace, self.wait(id)).await;
        }
        if self.kill(id, SIGKILL).await? {
            let waited = tokio::time::timeout(KILL_TIMEOUT, self.wait(id)).await;
            waited.unwrap_or(Ok(())).or_else(|e| if e.is_not_found() { Ok(()) } else { Err(e) })?;
        }
        self.reap(id).await
    }

    /// Sends a signal; false when nothing runs there (any more).
    async fn kill(&self, id: &str, signal: u32) -> Result<bool, RuntimeError> {
        let request = GetRequest { container_id: id.to_owned(), exec_id: String::new() };
        let task = self.client.tasks().get(self.call(request)).await;
        let task = tolerate(task, Code::NotFound, format!("find the task of {id}"))?;
        let process = task.and_then(|reply| reply.into_inner().process);
        if process.is_none_or(|process| process.status() == TaskStatus::Stopped) {
            return Ok(false);
        }
        let request = KillRequest {
            container_id: id.to_owned(),
            exec_id: String::new(),
            signal,
            all: signal == SIGKILL,
        };
        let killed = self.client.tasks().kill(self.call(request)).await;
        Ok(tolerate(killed, Code::NotFound, format!("signal container {id}"))?.is_some())
    }

    /// Removes every trace of a container from containerd; what runs is killed. Its logs stay.
    pub async fn remove_container(&self, id: &str) -> Result<(), RuntimeError> {
        if self.kill(id, SIGKILL).await? {
            let waited = tokio::time::timeout(KILL_TIMEOUT, self.wait(id)).await;
            waited.unwrap_or(Ok(())).or_else(|e| if e.is_not_found() { Ok(()) } else { Err(e) })?;
        }
        self.drop_task(id).await?;
        let gone =
            self.client.containers().delete(self.call(DeleteContainerRequest { id: id.to_owned() })).await;
        tolerate(gone, Code::NotFound, format!("remove container {id}")).map(drop)
    }
}

fn spec_of(start: &StartContainer<'_>, cgroups_path: &str, user: &User) -> Result<Any, RuntimeError> {
    let expanded = |list: &Option<Vec<String>>| -> Vec<String> {
        list.iter().flatten().map(|text| crate::env::expand(text, start.env)).collect()
    };
    let spec = oci_spec(&SpecInput {
        pod: start.pod,
        container: start.container,
        image: &start.image.config,
        env: start.env,
        command: &expanded(&start.container.command),
        args: &expanded(&start.container.args),
        mounts: start.mounts,
        namespaces: &start.sandbox.namespaces,
        hostname: start.hostname,
        user,
        cgroups_path,
        capability_bound: capability_bound(),
    });
    let spec = spec.map_err(|message| RuntimeError::Config {
        message: format!("container \"{}\": {message}", start.container.name),
    })?;
    Ok(Any { type_url: SPEC_TYPE.to_owned(), value: spec.to_string().into_bytes() })
}

fn labels(start: &StartContainer<'_>, log_path: &Path, cgroup: &str) -> HashMap<String, String> {
    let meta = &start.pod.metadata;
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    [
        (label::POD_UID, text(&meta.uid)),
        (label::POD_NAMESPACE, text(&meta.namespace)),
        (label::POD_NAME, text(&meta.name)),
        (label::CONTAINER, start.container.name.clone()),
        (label::ATTEMPT, start.attempt.to_string()),
        (label::SPEC_HASH, start.spec_hash.to_owned()),
        (label::LOG_PATH, log_path.display().to_string()),
        (label::IMAGE_ID, start.image.id.clone()),
        (label::CGROUP, cgroup.to_owned()),
        (label::STARTED_AT_MS, Timestamp::now().0.to_string()),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}

/// What this process could pass on at most.
fn capability_bound() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bound = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    bound.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(u64::MAX)
}
