//! The rim: everything this module does to the machine. Pods on containerd through its gRPC API, networks through CNI.
//!
//! * [`archive`] image archives that lie on the node, imported when they are wanted
//! * `import` archives into containerd's content store; [`image`] what is there, layers into snapshots
//! * [`sandbox`] what a pod's containers share: network, UTS and IPC namespaces, pinned as files (no pause process)
//! * [`spec`] pure: pod + image -> OCI runtime spec
//! * [`container`] create, start, stop, list, adopt
//! * [`logs`] the log pump, which outlives us; [`log_reader`] reads what it wrote
//! * [`exec`] programs in running containers
//!
//! containerd is asked, never assumed: nothing is cached here, so a restart of anything leaves nothing to repair.

pub mod archive;
mod cgroup;
pub mod container;
pub mod exec;
mod found;
pub mod image;
mod import;
pub mod log_reader;
pub mod logs;
pub mod sandbox;
pub mod spec;
mod user;

use std::path::PathBuf;
use std::time::Duration;

use containerd_client::Client;
use containerd_client::services::v1::PluginsRequest;
use serde::{Deserialize, Serialize};
use tonic::metadata::{Ascii, MetadataValue};

/// How long one call to containerd may take before it counts as failed.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// The same for one that writes or copies an image's files, on whatever disk.
const COPY_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// Where containerd is and what of the machine is ours. Several edges may share a machine: data directory, containerd
/// namespace, bridge and pod subnet must then differ.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct RuntimeConfig {
    /// containerd's socket.
    pub socket: PathBuf,
    /// containerd's namespace that holds our containers and images.
    pub namespace: String,
    /// Pod directories, logs, pinned namespaces and address leases live here. Must be seen by containerd under the
    /// same path.
    pub data_dir: PathBuf,
    /// Where CNI plug-ins are looked up, in order.
    pub cni_dirs: Vec<PathBuf>,
    /// Name of the bridge that pods are joined to; made when absent.
    pub bridge: String,
    /// Pods get their addresses from here.
    pub pod_cidr: String,
    /// Masquerade what leaves the pod subnet.
    pub ip_masq: bool,
    /// `overlayfs`; `native` is taken when containerd cannot do the one asked for.
    pub snapshotter: String,
    /// Parent of all our cgroups, absolute.
    pub cgroup_parent: String,
    /// The program that becomes the log pump when called as `PROGRAM log-pump SPEC` (see [`logs`]).
    pub log_pump: PathBuf,
    /// A log file is rotated at this size.
    pub log_file_max_bytes: u64,
    /// So many files are kept per container, the live one included.
    pub log_files_max: u32,
    /// Directories of image archives (docker or OCI tar): looked through when an image is wanted that is not there.
    pub image_dirs: Vec<PathBuf>,
    /// Copied into pods (`dnsPolicy` `Default`, and all others until there is a cluster DNS).
    pub resolv_conf: PathBuf,
}

impl Default for RuntimeConfig {
    fn default() -> Self {
        Self {
            socket: "/run/containerd/containerd.sock".into(),
            namespace: "edgewire".into(),
            data_dir: "/var/lib/edgewire/containers".into(),
            cni_dirs: vec!["/usr/lib/cni".into(), "/opt/cni/bin".into()],
            bridge: "edgewire0".into(),
            pod_cidr: "10.85.0.0/16".into(),
            ip_masq: false,
            snapshotter: "overlayfs".into(),
            cgroup_parent: "/edgewire".into(),
            log_pump: log_pump(),
            log_file_max_bytes: 10 * 1024 * 1024,
            log_files_max: 5,
            image_dirs: Vec::new(),
            resolv_conf: "/etc/resolv.conf".into(),
        }
    }
}

/// The small program beside ours if it is there (measured: 0.25 MB of private memory a container, against 1.8 MB for the
/// whole runtime in that role), else ours.
fn log_pump() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_else(|_| "/usr/local/bin/edge-runtime".into());
    let small = own.with_file_name("edgewire-log-pump");
    if small.is_file() { small } else { own }
}

/// What can go wrong at the rim. [`RuntimeError::reason`] is Kubernetes' word for it.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// No answer from the socket.
    #[error("containerd does not answer at {socket}: {message}; check that it runs")]
    Unreachable {
        /// The socket.
        socket: String,
        /// The transport's words.
        message: String,
    },
    /// containerd answered with an error.
    #[error("containerd could not {what}: {message}")]
    Containerd {
        /// What it was asked to do.
        what: String,
        /// gRPC's code.
        code: tonic::Code,
        /// containerd's words.
        message: String,
    },
    /// `imagePullPolicy: Never` and the image is absent.
    #[error("image {image} is not on this node and its pull policy is Never; import it first")]
    ImageNeverPull {
        /// The image, in full.
        image: String,
    },
    /// The image is absent and there is nowhere to pull it from.
    #[error(
        "image {image} is not on this node and pulling from a registry is not served yet; import it first"
    )]
    ImageAbsent {
        /// The image, in full.
        image: String,
    },
    /// An archive or a stored image is not what it should be.
    #[error("image {image} cannot be used: {message}")]
    ImageInvalid {
        /// File or image.
        image: String,
        /// What is wrong.
        message: String,
    },
    /// The pod asks for something that is missing or cannot be.
    #[error("{message}")]
    Config {
        /// What, and what to do.
        message: String,
    },
    /// A CNI plug-in failed or is missing.
    #[error("network plug-in {plugin} failed: {message}")]
    Network {
        /// Name of the plug-in.
        plugin: String,
        /// Its words.
        message: String,
    },
    /// Files, mounts, processes.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried, with the file's name.
        what: String,
        /// The system's words.
        source: std::io::Error,
    },
}

impl RuntimeError {
    /// The reason that Kubernetes gives for it in a container's `waiting` state.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::ImageNeverPull { .. } => "ErrImageNeverPull",
            Self::ImageAbsent { .. } => "ErrImagePull",
            Self::ImageInvalid { .. } => "InvalidImageName",
            Self::Config { .. } => "CreateContainerConfigError",
            Self::Network { .. } => "NetworkError",
            Self::Unreachable { .. } | Self::Containerd { .. } | Self::Io { .. } => "CreateContainerError",
        }
    }

    /// Is it that containerd says the thing does not exist?
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Containerd { code: tonic::Code::NotFound, .. })
    }

    /// Is containerd away (rather than unwilling, or slow)? Then nothing can be said about any container.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Containerd { code: tonic::Code::Unavailable, .. })
    }

    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// A gRPC status as our error. `what` completes "containerd could not ...".
pub(crate) fn refused(what: impl Into<String>) -> impl FnOnce(tonic::Status) -> RuntimeError {
    let what = what.into();
    move |status| {
        // A status that was made on our side has a cause, and one that containerd sent has none: the connection broke, or
        // our patience ended.
        let code = match std::error::Error::source(&status) {
            Some(cause) if cause.is::<tonic::TimeoutExpired>() => tonic::Code::DeadlineExceeded,
            Some(_) => tonic::Code::Unavailable,
            None => status.code(),
        };
        RuntimeError::Containerd { what, code, message: status.message().to_owned() }
    }
}

/// `Ok` also when the thing was there already (or was gone already).
pub(crate) fn tolerate<T>(
    result: Result<T, tonic::Status>,
    code: tonic::Code,
    what: impl Into<String>,
) -> Result<Option<T>, RuntimeError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(status) if status.code() == code => Ok(None),
        Err(status) => Err(refused(what)(status)),
    }
}

/// The handle on containerd, CNI and our part of the disk.
pub struct Runtime {
    pub(crate) config: RuntimeConfig,
    pub(crate) client: Client,
    pub(crate) snapshotter: String,
    archives: archive::Archives,
    unpacking: tokio::sync::Mutex<()>,
    namespace: MetadataValue<Ascii>,
}

impl Runtime {
    /// Connects to containerd. Later losses of the connection heal by themselves at the next call.
    pub async fn connect(config: RuntimeConfig) -> Result<Self, RuntimeError> {
        let namespace = config.namespace.parse().map_err(|_| RuntimeError::Config {
            message: format!(
                "containerd namespace {:?} is not valid: use letters, digits and '-'",
                config.namespace
            ),
        })?;
        let unreachable = |message: String| RuntimeError::Unreachable {
            socket: config.socket.display().to_string(),
            message,
        };
        let client = Client::from_path(&config.socket).await.map_err(|e| unreachable(root_cause(&e)))?;
        let snapshotter = pick_snapshotter(&client, &config.snapshotter).await?;
        Ok(Self {
            config,
            client,
            snapshotter,
            namespace,
            archives: archive::Archives::default(),
            unpacking: tokio::sync::Mutex::new(()),
        })
    }

    /// The configuration it was made with.
    pub fn config(&self) -> &RuntimeConfig {
        &self.config
    }

    /// A bounded call in our containerd namespace.
    pub(crate) fn call<T>(&self, body: T) -> tonic::Request<T> {
        let mut request = self.endless_call(body);
        request.set_timeout(CALL_TIMEOUT);
        request
    }

    /// A call that takes as long as its bytes do.
    pub(crate) fn copy_call<T>(&self, body: T) -> tonic::Request<T> {
        let mut request = self.endless_call(body);
        request.set_timeout(COPY_TIMEOUT);
        request
    }

    /// A call that lasts as long as what it watches.
    pub(crate) fn endless_call<T>(&self, body: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(body);
        request.metadata_mut().insert("containerd-namespace", self.namespace.clone());
        request
    }

    /// Where everything of one pod lives that is not a log.
    pub fn pod_dir(&self, pod_uid: &str) -> PathBuf {
        self.config.data_dir.join("pods").join(pod_uid)
    }
}

async fn pick_snapshotter(client: &Client, wanted: &str) -> Result<String, RuntimeError> {
    let filters = vec!["type==io.containerd.snapshotter.v1".to_owned()];
    let plugins = client
        .introspection()
        .plugins(PluginsRequest { filters })
        .await
        .map_err(refused("list its plug-ins"))?
        .into_inner()
        .plugins;
    let works = |name: &str| plugins.iter().any(|p| p.id == name && p.init_err.is_none());
    if works(wanted) {
        return Ok(wanted.to_owned());
    }
    if works("native") {
        tracing::warn!(wanted, "containerd has no such snapshotter, taking native");
        return Ok("native".to_owned());
    }
    Err(RuntimeError::Config {
        message: format!("containerd has neither the snapshotter {wanted} nor native"),
    })
}

/// tonic's "transport error" says nothing; what lies under it does.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
