//! Where the module touches the world: its acts on containerd, CNI and the node's files, and what containerd tells by
//! itself. The simulator has another rim that does none of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bus::connection::Handles;
use bus::module::Rim;
use containerd_client::events::TaskExit;
use containerd_client::services::v1::SubscribeRequest;
use k8s_openapi::api::core::v1::Pod;
use schemas::Timestamp;
use schemas::command::{OpenExec, OpenLogs};
use schemas::credential::Issued;
use schemas::name::NodeName;
use tokio::sync::{OnceCell, mpsc};

use crate::referenced::Referenced;
use crate::runtime::container::{Exit, FoundContainer, StartContainer};
use crate::runtime::image::blocking;
use crate::runtime::sandbox::SandboxRequest;
use crate::runtime::{Runtime, RuntimeConfig, RuntimeError};
use crate::state::Containers;
use crate::{credential, env, session, volumes};

/// How long a subscription may take to reach containerd.
const SUBSCRIBE_PAUSE: Duration = Duration::from_millis(100);
/// Pause before containerd is looked for again.
const RECONNECT_PAUSE: Duration = Duration::from_millis(200);

/// What only this module can do.
#[derive(Debug)]
pub enum Act {
    /// Ask containerd for all our containers. The number comes back.
    List(u64),
    /// Start a container, and whatever of its pod is needed for that.
    Start(Box<Start>),
    /// Stop a container whose spec changed.
    Replace {
        /// UID of its pod.
        uid: String,
        /// Its ID.
        id: String,
        /// How long it may take to end.
        grace_ms: u64,
    },
    /// Stop a pod and remove all that it has on the node.
    Stop(Box<Stop>),
    /// Take in how a container ended.
    Reap {
        /// UID of its pod.
        uid: String,
        /// Its ID.
        id: String,
    },
    /// Bring the files of ConfigMaps and Secrets up to date.
    Volumes {
        /// The pod.
        pod: Box<Pod>,
        /// What they hold.
        referenced: Referenced,
    },
    /// Send a log through a byte stream.
    Logs(Box<LogsSession>),
    /// Run a program, its streams through a byte stream.
    Exec(Box<ExecSession>),
}

/// A start.
#[derive(Debug)]
pub struct Start {
    /// The pod.
    pub pod: Pod,
    /// Name of the container.
    pub container: String,
    /// Which start of it this is.
    pub attempt: u32,
    /// Hash of what it is made from.
    pub spec_hash: String,
    /// The ConfigMaps and Secrets that the pod refers to.
    pub referenced: Referenced,
}

/// The end of a pod.
#[derive(Debug)]
pub struct Stop {
    /// UID of the pod.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// How long its containers may take to end.
    pub grace_ms: u64,
}

/// Somebody reads a log.
#[derive(Debug)]
pub struct LogsSession {
    /// As asked.
    pub open: OpenLogs,
    /// UID of the pod.
    pub uid: String,
    /// Name of the container.
    pub container: String,
    /// Which of its starts.
    pub attempt: u32,
    /// Does that one run?
    pub running: bool,
}

/// Somebody runs a program.
#[derive(Debug)]
pub struct ExecSession {
    /// As asked.
    pub open: OpenExec,
    /// ID of the container.
    pub id: String,
}

/// What the rim tells.
#[derive(Debug)]
pub enum Done {
    /// What containerd has.
    Listed {
        /// The act's own.
        asked: u64,
        /// What is there; `Err` when containerd did not say.
        result: Result<Listing, String>,
    },
    /// What became of a start.
    Started {
        /// UID of the pod.
        uid: String,
        /// Name of the container.
        container: String,
        /// It runs, or why not.
        result: Result<Started, StartError>,
    },
    /// How a container ended; `None`: it did not, or containerd does not know it.
    Reaped {
        /// UID of the pod.
        uid: String,
        /// ID of the container.
        id: String,
        /// How.
        result: Result<Option<Exit>, String>,
    },
    /// The pod is gone from the node, or why not. The exits of those containers that were stopped.
    Stopped {
        /// UID of the pod.
        uid: String,
        /// Exits by ID.
        result: Result<BTreeMap<String, Exit>, String>,
    },
    /// The files are written, or why not.
    VolumesWritten {
        /// UID of the pod.
        uid: String,
        /// How it went.
        result: Result<(), String>,
    },
    /// containerd says that this container ended.
    Exited {
        /// Its ID.
        id: String,
    },
    /// containerd is (again) there, and its events are followed from now on.
    RuntimeBack,
    /// containerd is away.
    RuntimeAway(String),
}

/// All that is ours in containerd, and the sandboxes.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    /// Containers.
    pub containers: Vec<FoundContainer>,
    /// UIDs of pods that have a sandbox.
    pub sandboxes: Vec<String>,
    /// The node's address.
    pub host_ip: String,
}

/// A container that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    /// The pod's address; empty with `hostNetwork`.
    pub ip: String,
    /// Image in full.
    pub image: String,
    /// Digest of its config.
    pub image_id: String,
    /// Since when.
    pub since: Timestamp,
}

/// Why a container could not be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartError {
    /// Kubernetes' word.
    pub reason: String,
    /// For people.
    pub message: String,
    /// It is only that containerd is away: nobody's fault.
    pub away: bool,
}

impl From<RuntimeError> for StartError {
    fn from(error: RuntimeError) -> Self {
        Self { reason: error.reason().to_owned(), away: error.is_unreachable(), message: error.to_string() }
    }
}

/// The real rim.
#[derive(Clone)]
pub struct ContainersRim {
    node: NodeName,
    host_ip: String,
    config: RuntimeConfig,
    runtime: Arc<OnceCell<Runtime>>,
}

impl ContainersRim {
    /// A rim on the containerd that `config` names. It need not be there yet. `host_ip` empty: the address that the node
    /// reaches others from.
    pub fn new(node: NodeName, host_ip: String, config: RuntimeConfig) -> Self {
        Self { node, host_ip, config, runtime: Arc::new(OnceCell::new()) }
    }

    /// The connection, once there was one; it heals by itself.
    pub(crate) async fn runtime(&self) -> Result<&Runtime, RuntimeError> {
        self.runtime.get_or_try_init(|| Runtime::connect(self.config.clone())).await
    }

    pub(crate) fn node(&self) -> &NodeName {
        &self.node
    }

    fn host_ip(&self) -> String {
        if !self.host_ip.is_empty() {
            return self.host_ip.clone();
        }
        // Nothing is sent: connecting a UDP socket only chooses a route.
        let route = std::net::UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
            socket.connect("192.0.2.1:9")?;
            socket.local_addr()
        });
        route.map_or_else(|_| String::new(), |address| address.ip().to_string())
    }

    async fn list(&self) -> Result<Listing, RuntimeError> {
        let runtime = self.runtime().await?;
        Ok(Listing {
            containers: runtime.containers().await?,
            sandboxes: runtime.sandboxes(),
            host_ip: self.host_ip(),
        })
    }

    async fn start(&self, bus: &Handles, start: Start) -> Result<Started, StartError> {
        let runtime = self.runtime().await?;
        let Start { pod, container, attempt, spec_hash, referenced } = start;
        let config = |message: &str| RuntimeError::Config { message: message.to_owned() };
        let spec = pod.spec.as_ref().ok_or_else(|| config("the pod has no spec"))?;
        let container = spec
            .init_containers
            .iter()
            .flatten()
            .chain(&spec.containers)
            .find(|c| c.name == container)
            .ok_or_else(|| config("the pod has no such container"))?;
        let meta = &pod.metadata;
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let (uid, name) = (text(&meta.uid), text(&meta.name));
        let host_network = spec.host_network.unwrap_or(false);
        let sandbox = SandboxRequest { host_network, host_ipc: spec.host_ipc.unwrap_or(false) };
        let namespace = text(&meta.namespace);
        let policy = container.image_pull_policy.as_deref().unwrap_or("");
        let (image, sandbox, credential) = tokio::try_join!(
            async {
                Ok::<_, StartError>(
                    runtime.find_image(container.image.as_deref().unwrap_or(""), policy).await?,
                )
            },
            async { Ok(runtime.ensure_sandbox(&uid, sandbox).await?) },
            async {
                match credential::wanted(meta) {
                    true => credential::issue(bus, &uid, &namespace).await.map(Some),
                    false => Ok(None),
                }
            },
        )?;
        let identity =
            [("POD_NAME", name.clone()), ("POD_NAMESPACE", namespace), ("NODE_NAME", self.node.to_string())];
        let hostname = match spec.hostname.as_deref() {
            _ if host_network => {
                std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
            }
            Some(own) if !own.is_empty() => own.to_owned(),
            _ => name,
        };
        let mounts = {
            let (pod, container, hostname) = (pod.clone(), container.clone(), hostname.clone());
            let (dir, ip, resolv) =
                (runtime.pod_dir(&uid), self.pod_ip(&sandbox.ip), runtime.config().resolv_conf.clone());
            let referenced = referenced.clone();
            let made = blocking(move || {
                Ok((|| {
                    volumes::prepare(&pod, &dir, &referenced)?;
                    let mut mounts = volumes::mounts(&pod, &container, &dir)?;
                    let own: Vec<_> = volumes::etc_files(&pod, &dir, &hostname, &ip, &resolv)?;
                    mounts.extend(own.into_iter().filter(|file| {
                        !container.volume_mounts.iter().flatten().any(|m| m.mount_path == file.destination)
                    }));
                    Ok::<_, RuntimeError>(mounts)
                })())
            });
            made.await.map_err(RuntimeError::io("write the pod's files"))??
        };
        let facts = env::Facts {
            node_name: self.node.to_string(),
            host_ip: self.host_ip(),
            pod_ip: self.pod_ip(&sandbox.ip),
        };
        let mut env = env::resolve(&pod, container, &referenced, &facts)
            .map_err(|message| RuntimeError::Config { message })?;
        credential::add(&mut env, identity.into_iter().chain(credential.into_iter().flat_map(Issued::env)));
        let started = StartContainer {
            pod: &pod,
            container,
            attempt,
            spec_hash: &spec_hash,
            image: &image,
            env: &env,
            mounts: &mounts,
            sandbox: &sandbox,
            hostname: &hostname,
        };
        runtime.start_container(&started).await?;
        // Their ends are in our record by now; what stays costs a little room until the pod goes.
        if let Err(error) = runtime.remove_older(&uid, &container.name, attempt).await {
            tracing::debug!(%error, "an attempt before stays in containerd");
        }
        Ok(Started { ip: sandbox.ip, image: image.name, image_id: image.id, since: Timestamp::now() })
    }

    fn pod_ip(&self, own: &str) -> String {
        if own.is_empty() { self.host_ip() } else { own.to_owned() }
    }

    async fn stop(&self, bus: &Handles, stop: Stop) -> Result<BTreeMap<String, Exit>, RuntimeError> {
        let runtime = self.runtime().await?;
        let found = runtime.containers().await?;
        let ours: Vec<_> = found.into_iter().filter(|container| container.pod_uid == stop.uid).collect();
        let grace = Duration::from_millis(stop.grace_ms);
        let stopping = ours.iter().map(|container| async {
            let exit = runtime.stop_container(&container.id, grace).await?;
            Ok::<_, RuntimeError>((container.id.clone(), exit))
        });
        let exits = futures::future::try_join_all(stopping).await?;
        for container in &ours {
            runtime.remove_container(&container.id).await?;
        }
        runtime.remove_sandbox(&stop.uid).await?;
        let (dir, logs) =
            (runtime.pod_dir(&stop.uid), runtime.logs_dir(&stop.namespace, &stop.name, &stop.uid));
        blocking(move || Ok(volumes::remove(&dir).and_then(|()| volumes::remove(&logs))))
            .await
            .map_err(RuntimeError::io("remove the pod's files"))??;
        credential::withdraw(bus, &stop.uid).await;
        Ok(exits.into_iter().filter_map(|(id, exit)| Some((id, exit?))).collect())
    }

    async fn write_volumes(&self, pod: Pod, referenced: Referenced) -> Result<(), RuntimeError> {
        let runtime = self.runtime().await?;
        let dir = runtime.pod_dir(pod.metadata.uid.as_deref().unwrap_or(""));
        blocking(move || Ok(volumes::prepare(&pod, &dir, &referenced)))
            .await
            .map_err(RuntimeError::io("write the pod's files"))?
    }

    /// Follows containerd's events until they end.
    async fn follow(&self, tell: &mpsc::Sender<Done>) -> Result<(), RuntimeError> {
        let runtime = self.runtime().await?;
        let filters = vec![format!("topic==\"/tasks/exit\",namespace==\"{}\"", self.config.namespace)];
        let mut client = runtime.client.events();
        let subscribing = client.subscribe(runtime.endless_call(SubscribeRequest { filters }));
        tokio::pin!(subscribing);
        // Measured with containerd 1.6: it answers a subscription only with the first event. The request is out after a
        // moment; a list after that misses nothing, and the regular list covers the rest.
        let early = tokio::time::timeout(SUBSCRIBE_PAUSE, &mut subscribing).await;
        let _ = tell.send(Done::RuntimeBack).await;
        let events = match early {
            Ok(events) => events,
            Err(_) => subscribing.await,
        };
        let mut events = events.map_err(crate::runtime::refused("tell its events"))?.into_inner();
        let lost = || crate::runtime::refused("go on telling its events");
        while let Some(envelope) = events.message().await.map_err(lost())? {
            let Some(mut event) = envelope.event else { continue };
            // containerd leaves the slash out that the protobuf library wants.
            event.type_url = format!("/{}", event.type_url.trim_start_matches('/'));
            let Ok(exit) = event.to_msg::<TaskExit>() else { continue };
            // A program that was run in a container has another ID than the container.
            if exit.id == exit.container_id {
                let _ = tell.send(Done::Exited { id: exit.id }).await;
            }
        }
        Ok(())
    }
}

impl Rim<Containers> for ContainersRim {
    async fn act(&self, bus: &Handles, act: Act) -> Option<Done> {
        match act {
            Act::List(asked) => {
                Some(Done::Listed { asked, result: self.list().await.map_err(|e| e.to_string()) })
            }
            Act::Start(start) => {
                let uid = start.pod.metadata.uid.clone().unwrap_or_default();
                let container = start.container.clone();
                let result = Box::pin(self.start(bus, *start)).await;
                Some(Done::Started { uid, container, result })
            }
            Act::Reap { uid, id } => {
                let reaped = async { self.runtime().await?.reap(&id).await }.await;
                Some(Done::Reaped { uid, id, result: reaped.map_err(|e| e.to_string()) })
            }
            Act::Replace { uid, id, grace_ms } => {
                let grace = Duration::from_millis(grace_ms);
                let stopped = async { self.runtime().await?.stop_container(&id, grace).await }.await;
                Some(Done::Reaped { uid, id, result: stopped.map_err(|e| e.to_string()) })
            }
            Act::Stop(stop) => {
                let uid = stop.uid.clone();
                let result = Box::pin(self.stop(bus, *stop)).await.map_err(|e| e.to_string());
                Some(Done::Stopped { uid, result })
            }
            Act::Volumes { pod, referenced } => {
                let uid = pod.metadata.uid.clone().unwrap_or_default();
                let result = self.write_volumes(*pod, referenced).await.map_err(|e| e.to_string());
                Some(Done::VolumesWritten { uid, result })
            }
            Act::Logs(logs) => {
                session::logs(self, bus, *logs).await;
                None
            }
            Act::Exec(exec) => {
                Box::pin(session::exec(self, bus, *exec)).await;
                None
            }
        }
    }

    async fn watch(&self, _bus: &Handles, tell: mpsc::Sender<Done>) -> Result<(), String> {
        loop {
            let ended = tokio::select! {
                ended = self.follow(&tell) => ended,
                () = tell.closed() => return Ok(()),
            };
            let cause =
                ended.err().map_or_else(|| "it closed its events".to_owned(), |error| error.to_string());
            if tell.send(Done::RuntimeAway(cause)).await.is_err() {
                return Ok(());
            }
            tokio::time::sleep(RECONNECT_PAUSE).await;
        }
    }
}
