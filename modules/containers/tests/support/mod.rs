//! A private containerd and a busybox image made by hand, for tests. Everything is undone on drop, also after a failure.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a panic is how a test fails, in its helpers too"
)]
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use containers::runtime::{Runtime, RuntimeConfig};
use sha2::{Digest, Sha256};

/// Polls until `check` gives something; panics with `what` after 20 s.
pub async fn eventually<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(value) = check().await {
            return value;
        }
        assert!(Instant::now() < deadline, "not within 20 s: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// containerd with its own root, state and socket.
pub struct Containerd {
    pub dir: tempfile::TempDir,
    child: Option<Child>,
    bridge: String,
    namespace: String,
}

impl Containerd {
    pub fn start(bridge: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("ew-ctr-").tempdir_in("/tmp").unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let config = format!(
            "version = 2\nroot = \"{}\"\nstate = \"{}\"\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = \"{}\"\n",
            at("root"),
            at("state"),
            at("c.sock")
        );
        std::fs::write(dir.path().join("config.toml"), config).unwrap();
        let namespace = format!("{bridge}-{}", std::process::id());
        let mut this = Self { dir, child: None, bridge: bridge.to_owned(), namespace };
        this.restart();
        this
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn kill_9(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub fn restart(&mut self) {
        self.kill_9();
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.path().join("containerd.log"))
            .unwrap();
        let child = Command::new("containerd")
            .args(["--config", &self.path().join("config.toml").display().to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    pub fn config(&self, pod_cidr: &str) -> RuntimeConfig {
        RuntimeConfig {
            socket: self.path().join("c.sock"),
            namespace: self.namespace.clone(),
            data_dir: self.path().join("data"),
            bridge: self.bridge.clone(),
            pod_cidr: pod_cidr.into(),
            cgroup_parent: format!("/{}", self.bridge),
            log_pump: env!("CARGO_BIN_EXE_edgewire-log-pump").into(),
            ..RuntimeConfig::default()
        }
    }

    pub async fn connect(&self, pod_cidr: &str) -> Runtime {
        let config = self.config(pod_cidr);
        eventually("containerd answers", async || Runtime::connect(config.clone()).await.ok()).await
    }

    /// `ctr`, the outside judge.
    pub fn ctr(&self, args: &[&str]) -> String {
        let out = Command::new("ctr")
            .arg("--address")
            .arg(self.path().join("c.sock"))
            .args(["--namespace", &self.namespace])
            .args(args)
            .output()
            .unwrap();
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// Command lines of processes that name our directory, besides containerd's.
    pub fn processes(&self) -> Vec<String> {
        self.pids().into_iter().map(|(_, line)| line).collect()
    }

    fn pids(&self) -> Vec<(i32, String)> {
        let own = self.child.as_ref().map(|c| c.id().to_string());
        let wanted = self.path().display().to_string();
        let mut out = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Ok(pid) = name.parse::<i32>() else { continue };
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains(&wanted) && own.as_deref() != Some(name.as_str()) {
                out.push((pid, line));
            }
        }
        out
    }

    /// Mounts below our directory.
    pub fn mounts(&self) -> Vec<String> {
        let wanted = self.path().display().to_string();
        let all = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let points = all.lines().filter_map(|line| line.split(' ').nth(4).map(str::to_owned));
        points.filter(|point| point.starts_with(&wanted)).collect()
    }
}

impl Containerd {
    /// containerd, its shims, its containers (children of the shims) and the log pumps: all killed, as a reboot would.
    pub fn kill_workloads(&mut self) {
        self.kill_9();
        for (pid, line) in self.pids() {
            if line.contains("nats-server") {
                continue;
            }
            let children =
                std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            let all = children.split_whitespace().filter_map(|p| p.parse().ok()).chain([pid]);
            for pid in all {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
            }
        }
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // What a failed test left.
        for (pid, _) in self.pids() {
            let children =
                std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            let all = children.split_whitespace().filter_map(|p| p.parse().ok()).chain([pid]);
            for pid in all {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
            }
        }
        if let Some(mut child) = self.child.take() {
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(child.id() as i32),
                nix::sys::signal::SIGTERM,
            );
            let _ = child.wait();
        }
        for point in self.mounts().into_iter().rev() {
            let _ = nix::mount::umount2(point.as_str(), nix::mount::MntFlags::MNT_DETACH);
        }
        // runc's state of containers that were killed with their shims.
        let _ = std::fs::remove_dir_all(Path::new("/run/containerd/runc").join(&self.namespace));
        if Path::new("/sys/class/net").join(&self.bridge).exists() {
            let _ = Command::new("ip").args(["link", "delete", &self.bridge]).status();
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

fn add(tar: &mut tar::Builder<impl std::io::Write>, name: &str, mode: u32, bytes: &[u8]) {
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes.len() as u64);
    header.set_mode(mode);
    tar.append_data(&mut header, name, bytes).unwrap();
}

fn layer() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    add(&mut tar, "bin/busybox", 0o755, &std::fs::read("/bin/busybox").unwrap());
    add(&mut tar, "etc/passwd", 0o644, b"root:x:0:0::/:/bin/sh\nweb:x:101:102::/:/bin/sh\n");
    for name in ["sh", "cat", "echo", "sleep", "id", "hostname", "ip", "ls", "stty"] {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        header.set_mode(0o777);
        tar.append_link(&mut header, format!("bin/{name}"), "busybox").unwrap();
    }
    tar.into_inner().unwrap()
}

fn image_config(layer: &[u8], user: &str) -> Vec<u8> {
    serde_json::json!({
        "architecture": "amd64", "os": "linux",
        "config": {"Cmd": ["/bin/sh"], "Env": ["FROM_IMAGE=yes"], "User": user},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", hex(layer))]},
    })
    .to_string()
    .into_bytes()
}

/// As `docker save` writes it.
pub fn docker_archive(dir: &Path, tag: &str) -> PathBuf {
    let layer = layer();
    let config = image_config(&layer, "");
    let config_name = format!("{}.json", hex(&config));
    let manifest =
        serde_json::json!([{"Config": config_name, "RepoTags": [tag], "Layers": ["l1/layer.tar"]}]);
    let path = dir.join("docker.tar");
    let mut tar = tar::Builder::new(std::fs::File::create(&path).unwrap());
    add(&mut tar, "manifest.json", 0o644, manifest.to_string().as_bytes());
    add(&mut tar, &config_name, 0o644, &config);
    add(&mut tar, "l1/layer.tar", 0o644, &layer);
    tar.into_inner().unwrap();
    path
}

/// An OCI layout with a gzipped layer, the whole gzipped again.
pub fn oci_layout(dir: &Path, name: &str, user: &str) -> PathBuf {
    use std::io::Write;
    let layer = layer();
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(&layer).unwrap();
    let packed = gz.finish().unwrap();
    let config = image_config(&layer, user);
    let descriptor = |kind: &str, bytes: &[u8]| {
        serde_json::json!({"mediaType": format!("application/vnd.oci.image.{kind}"),
            "digest": format!("sha256:{}", hex(bytes)), "size": bytes.len()})
    };
    let manifest = serde_json::json!({"schemaVersion": 2,
        "config": descriptor("config.v1+json", &config), "layers": [descriptor("layer.v1.tar+gzip", &packed)]})
    .to_string()
    .into_bytes();
    let mut top = descriptor("manifest.v1+json", &manifest);
    top["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": name});
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [top]}).to_string();
    let path = dir.join("oci.tar.gz");
    let file = std::fs::File::create(&path).unwrap();
    let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(file, flate2::Compression::fast()));
    add(&mut tar, "oci-layout", 0o644, b"{\"imageLayoutVersion\":\"1.0.0\"}");
    add(&mut tar, "index.json", 0o644, index.as_bytes());
    for blob in [&manifest, &config, &packed] {
        add(&mut tar, &format!("blobs/sha256/{}", hex(blob)), 0o644, blob);
    }
    tar.into_inner().unwrap().finish().unwrap();
    path
}

/// A bare `nats-server` with JetStream and the edge's streams, in the same directory.
pub struct Nats {
    child: Option<Child>,
    pub url: String,
    dir: PathBuf,
}

impl Nats {
    pub async fn start(dir: &Path) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut this = Self { child: None, url: format!("nats://127.0.0.1:{port}"), dir: dir.join("nats") };
        std::fs::create_dir_all(&this.dir).unwrap();
        let config = format!(
            "listen: \"127.0.0.1:{port}\"\nmax_payload: 8MB\njetstream {{ domain: \"edge-n1\", store_dir: {:?}, sync_interval: always }}\n",
            this.dir.join("js")
        );
        std::fs::write(this.dir.join("nats.conf"), config).unwrap();
        this.restart();
        this
    }

    pub fn restart(&mut self) {
        self.kill_9();
        let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools/bin/nats-server");
        let program = std::env::var_os("EDGEWIRE_NATS_SERVER").map(PathBuf::from);
        let log = std::fs::File::create(self.dir.join("log")).unwrap();
        let child = Command::new(program.unwrap_or(fetched))
            .arg("-c")
            .arg(self.dir.join("nats.conf"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    pub fn kill_9(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.kill_9();
    }
}
