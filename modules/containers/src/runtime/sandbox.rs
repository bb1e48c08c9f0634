//! What a pod's containers share: network, host name and IPC namespaces, without a pause process.
//!
//! A namespace lives as long as a process is in it **or a file is bound to it**. `unshare --net=FILE` (util-linux) makes
//! both the namespace and the bind mount; containers then join it by path. It outlives our agent, containerd and every
//! container of the pod, and goes with a reboot, after which it is made anew (the pod then gets a new address).
//!
//! The network inside comes from CNI plug-ins, called as the CNI spec 1.0 says: `loopback`, then `bridge` with
//! `host-local` addresses. The bridge stands in the network namespace that our own process runs in. Address leases and
//! the record of what was set up are files under our own data directory.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use super::image::blocking;
use super::spec::Namespaces;
use super::{Runtime, RuntimeError};

/// A plug-in that takes longer is killed.
const PLUGIN_TIMEOUT: Duration = Duration::from_secs(30);
/// Name of the network in CNI's terms: also the directory of its address leases.
const NETWORK_NAME: &str = "edgewire";
/// Name of the pod's interface.
const INTERFACE: &str = "eth0";

/// Which namespaces a pod does not share with the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SandboxRequest {
    /// `hostNetwork`: the node's network, and with it the node's host name.
    pub host_network: bool,
    /// `hostIPC`.
    pub host_ipc: bool,
}

/// A pod's sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sandbox {
    /// For the containers' specs.
    pub namespaces: Namespaces,
    /// The pod's address; empty with `hostNetwork`.
    pub ip: String,
}

/// What was set up, kept beside the pinned namespaces.
#[derive(Serialize, Deserialize)]
struct Record {
    ip: String,
}

/// Its file in the sandbox's directory.
const RECORD: &str = "record.json";

impl Record {
    fn read(dir: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(dir.join(RECORD)).ok()?).ok()
    }
}

impl Runtime {
    fn sandbox_dir(&self, pod_uid: &str) -> PathBuf {
        self.config.data_dir.join("sandboxes").join(pod_uid)
    }

    /// The pod's sandbox as it stands; made when it is not there (first start, reboot).
    pub async fn ensure_sandbox(
        &self,
        pod_uid: &str,
        request: SandboxRequest,
    ) -> Result<Sandbox, RuntimeError> {
        let dir = self.sandbox_dir(pod_uid);
        let namespaces = wanted(&dir, request);
        let whole = paths(&namespaces).all(is_pinned);
        if let Some(record) = Record::read(&dir).filter(|_| whole) {
            return Ok(Sandbox { namespaces, ip: record.ip });
        }
        // Nothing, or what a crash or a reboot left of it.
        self.remove_sandbox(pod_uid).await?;
        self.make_sandbox(pod_uid, &dir, namespaces).await
    }

    /// The pod's sandbox if it is there and whole.
    pub fn sandbox(&self, pod_uid: &str, request: SandboxRequest) -> Option<Sandbox> {
        let dir = self.sandbox_dir(pod_uid);
        let namespaces = wanted(&dir, request);
        let record = Record::read(&dir)?;
        let whole = paths(&namespaces).all(is_pinned);
        whole.then_some(Sandbox { namespaces, ip: record.ip })
    }

    /// The address that a pod was given; empty when it has none of its own.
    pub fn address(&self, pod_uid: &str) -> String {
        Record::read(&self.sandbox_dir(pod_uid)).map_or_else(String::new, |record| record.ip)
    }

    async fn make_sandbox(
        &self,
        pod_uid: &str,
        dir: &Path,
        namespaces: Namespaces,
    ) -> Result<Sandbox, RuntimeError> {
        let failed =
            || RuntimeError::io(format!("make the namespaces of pod {pod_uid} under {}", dir.display()));
        std::fs::create_dir_all(dir).map_err(failed())?;
        let mut unshare = tokio::process::Command::new("unshare");
        for (flag, path) in
            [("--net", &namespaces.net), ("--uts", &namespaces.uts), ("--ipc", &namespaces.ipc)]
        {
            let Some(path) = path else { continue };
            std::fs::File::create(path).map_err(failed())?;
            unshare.arg(format!("{flag}={}", path.display()));
        }
        if paths(&namespaces).next().is_some() {
            let out = unshare.arg("true").stdin(Stdio::null()).output().await.map_err(failed())?;
            if !out.status.success() {
                let message = String::from_utf8_lossy(&out.stderr).trim().to_owned();
                return Err(failed()(std::io::Error::other(message)));
            }
        }
        let ip = match &namespaces.net {
            Some(net) => self.join_network(pod_uid, net).await?,
            None => String::new(),
        };
        let record = serde_json::to_vec(&Record { ip: ip.clone() }).unwrap_or_default();
        let file = dir.join(RECORD);
        blocking(move || std::fs::write(file, record)).await.map_err(failed())?;
        Ok(Sandbox { namespaces, ip })
    }

    /// Gives the pod its `lo` and `eth0`, and its address.
    async fn join_network(&self, pod_uid: &str, net: &Path) -> Result<String, RuntimeError> {
        let loopback = json!({"cniVersion": "1.0.0", "name": "loopback", "type": "loopback"});
        self.plugin("loopback", "ADD", pod_uid, net, "lo", &loopback).await?;
        let result = self.plugin("bridge", "ADD", pod_uid, net, INTERFACE, &self.bridge_config()).await?;
        let address = result.get("ips").and_then(|ips| ips.get(0)).and_then(|ip| ip.get("address"));
        let address = address.and_then(Value::as_str).and_then(|cidr| cidr.split('/').next());
        address.map(str::to_owned).ok_or_else(|| RuntimeError::Network {
            plugin: "bridge".into(),
            message: format!("it gave pod {pod_uid} no address: {result}"),
        })
    }

    fn bridge_config(&self) -> Value {
        json!({
            "cniVersion": "1.0.0",
            "name": NETWORK_NAME,
            "type": "bridge",
            "bridge": self.config.bridge,
            "isGateway": true,
            "ipMasq": self.config.ip_masq,
            "hairpinMode": true,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": self.config.pod_cidr}]],
                "routes": [{"dst": "0.0.0.0/0"}],
                "dataDir": self.config.data_dir.join("cni"),
            },
        })
    }

    /// Undoes a sandbox, whatever of it there is. Nothing there is success.
    pub async fn remove_sandbox(&self, pod_uid: &str) -> Result<(), RuntimeError> {
        let dir = self.sandbox_dir(pod_uid);
        if !dir.exists() {
            return Ok(());
        }
        let net = dir.join("net");
        if net.exists() {
            // Also when the namespace is gone: DEL frees the address. After a reboot the file is a plain one, which the
            // plug-in refuses; CNI has an empty name for a namespace that is no more.
            let held = if is_pinned(&net) { net.as_path() } else { Path::new("") };
            self.plugin("bridge", "DEL", pod_uid, held, INTERFACE, &self.bridge_config()).await?;
        }
        for name in ["net", "uts", "ipc"] {
            let path = dir.join(name);
            while is_pinned(&path) {
                nix::mount::umount2(&path, nix::mount::MntFlags::MNT_DETACH)
                    .map_err(|e| RuntimeError::io(format!("unmount {}", path.display()))(e.into()))?;
            }
        }
        std::fs::remove_dir_all(&dir).map_err(RuntimeError::io(format!("remove {}", dir.display())))
    }

    /// UIDs of pods that have a sandbox, whole or not.
    pub fn sandboxes(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.config.data_dir.join("sandboxes")) else {
            return Vec::new();
        };
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    /// Removes the bridge. For those who take the whole edge away: pods that still run lose their network.
    pub async fn remove_network(&self) -> Result<(), RuntimeError> {
        if !Path::new("/sys/class/net").join(&self.config.bridge).exists() {
            return Ok(());
        }
        let out = tokio::process::Command::new("ip")
            .args(["link", "delete", &self.config.bridge])
            .stdin(Stdio::null())
            .output()
            .await
            .map_err(RuntimeError::io("run ip (install iproute2)"))?;
        if out.status.success() {
            return Ok(());
        }
        let message = String::from_utf8_lossy(&out.stderr).trim().to_owned();
        Err(RuntimeError::Network { plugin: "ip link delete".into(), message })
    }

    /// Calls one plug-in, as CNI 1.0 has it: parameters in the environment, configuration on stdin, result on stdout.
    async fn plugin(
        &self,
        name: &str,
        command: &str,
        pod_uid: &str,
        net: &Path,
        interface: &str,
        config: &Value,
    ) -> Result<Value, RuntimeError> {
        let failed = |message: String| RuntimeError::Network { plugin: name.to_owned(), message };
        let dirs = || self.config.cni_dirs.iter();
        let program = dirs().map(|dir| dir.join(name)).find(|path| path.exists()).ok_or_else(|| {
            let places: Vec<_> = dirs().map(|dir| dir.display().to_string()).collect();
            failed(format!(
                "it is not in {}; install the CNI plug-ins (containernetworking-plugins)",
                places.join(" or ")
            ))
        })?;
        let search: Vec<_> = dirs().map(|dir| dir.as_os_str()).collect();
        let mut child = tokio::process::Command::new(program)
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", pod_uid)
            .env("CNI_NETNS", net)
            .env("CNI_IFNAME", interface)
            .env("CNI_PATH", search.join(std::ffi::OsStr::new(":")))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| failed(error.to_string()))?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin
                .write_all(config.to_string().as_bytes())
                .await
                .map_err(|error| failed(error.to_string()))?;
        }
        let out = tokio::time::timeout(PLUGIN_TIMEOUT, child.wait_with_output())
            .await
            .map_err(|_| failed(format!("no answer within {} s", PLUGIN_TIMEOUT.as_secs())))?
            .map_err(|error| failed(error.to_string()))?;
        let answer: Value = serde_json::from_slice(&out.stdout).unwrap_or(Value::Null);
        if out.status.success() {
            return Ok(answer);
        }
        let text = |name: &str| answer.get(name).and_then(Value::as_str).unwrap_or("").to_owned();
        let mut message = [text("msg"), text("details")].join(" ").trim().to_owned();
        if message.is_empty() {
            message = String::from_utf8_lossy(&out.stderr).trim().to_owned();
        }
        Err(failed(message))
    }
}

fn wanted(dir: &Path, request: SandboxRequest) -> Namespaces {
    let own = |name: &str, host: bool| (!host).then(|| dir.join(name));
    Namespaces {
        net: own("net", request.host_network),
        uts: own("uts", request.host_network),
        ipc: own("ipc", request.host_ipc),
    }
}

fn paths(namespaces: &Namespaces) -> impl Iterator<Item = &Path> {
    [&namespaces.net, &namespaces.uts, &namespaces.ipc].into_iter().flatten().map(PathBuf::as_path)
}

/// Is a namespace bound to this file?
fn is_pinned(path: &Path) -> bool {
    nix::sys::statfs::statfs(path).is_ok_and(|fs| fs.filesystem_type() == nix::sys::statfs::NSFS_MAGIC)
}
