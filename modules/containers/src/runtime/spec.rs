//! Pure: one container of a pod, its image and what was resolved for it -> the OCI runtime spec that runc gets.
//!
//! Defaults are those of containerd and Kubernetes: the same capabilities, masked paths and namespaces that the same
//! pod would get from kubelet. Source: OCI runtime-spec 1.0.2; containerd `oci/spec.go`; Kubernetes `cm` for CPU shares.

use std::path::PathBuf;

use k8s_openapi::api::core::v1::{Container, Pod};
use serde_json::{Value, json};

use super::image::ImageConfig;

/// What a container may do when nothing else is asked for (containerd's `defaultUnixCaps`).
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];
/// All that `privileged` or `add: ["ALL"]` gives, at the kernel's numbers.
const ALL_CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];
const MASKED_PATHS: [&str; 9] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
];
const READONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
/// One CFS period, in microseconds.
const CPU_PERIOD_US: u64 = 100_000;
/// The smallest quota that the kernel takes, in microseconds.
const CPU_QUOTA_MIN_US: u128 = 1_000;
/// `cpu.shares` of a container that asks for no CPU.
const CPU_SHARES_MIN: u128 = 2;
/// `cpu.shares` that the kernel takes at most.
const CPU_SHARES_MAX: u128 = 262_144;

/// A directory or file of the node, seen in the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindMount {
    /// On the node.
    pub source: PathBuf,
    /// In the container.
    pub destination: String,
    /// Not writable.
    pub read_only: bool,
}

/// Files that pin the pod's namespaces. `None`: the node's own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Namespaces {
    /// Network.
    pub net: Option<PathBuf>,
    /// Host name.
    pub uts: Option<PathBuf>,
    /// Shared memory and queues.
    pub ipc: Option<PathBuf>,
}

/// Who a container runs as.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    /// User ID.
    pub uid: u32,
    /// Group ID.
    pub gid: u32,
    /// Supplementary groups.
    pub additional_gids: Vec<u32>,
}

/// Everything that goes into one spec.
pub struct SpecInput<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// The container of it.
    pub container: &'a Container,
    /// What its image says.
    pub image: &'a ImageConfig,
    /// Its environment, resolved, the image's not yet included.
    pub env: &'a [(String, String)],
    /// `command`, expanded.
    pub command: &'a [String],
    /// `args`, expanded.
    pub args: &'a [String],
    /// Its volumes and the pod's own files (hosts, hostname, resolv.conf).
    pub mounts: &'a [BindMount],
    /// The pod's namespaces.
    pub namespaces: &'a Namespaces,
    /// Host name of the pod; empty for the node's.
    pub hostname: &'a str,
    /// Who it runs as, resolved.
    pub user: &'a User,
    /// Where its cgroup stands, absolute.
    pub cgroups_path: &'a str,
    /// What the machine can give at all (`CapBnd` of the node's own process): runc refuses to give more.
    pub capability_bound: u64,
}

/// The spec. Fails, naming what is wrong, when the container cannot run as asked.
pub fn oci_spec(input: &SpecInput<'_>) -> Result<Value, String> {
    let context = input.container.security_context.as_ref();
    let privileged = context.and_then(|c| c.privileged).unwrap_or(false);
    if input.user.uid == 0 && run_as_non_root(input.pod, input.container) {
        return Err("container has runAsNonRoot and its image runs as root: set runAsUser".to_owned());
    }
    let mut linux = json!({
        "cgroupsPath": input.cgroups_path,
        "namespaces": namespaces(input),
        "resources": resources(input.container, privileged)?,
    });
    if !privileged {
        set(&mut linux, "maskedPaths", json!(MASKED_PATHS));
        set(&mut linux, "readonlyPaths", json!(READONLY_PATHS));
    }
    let mut spec = json!({
        "ociVersion": "1.0.2",
        "process": process(input, privileged)?,
        "root": {
            "path": "rootfs",
            "readonly": context.and_then(|c| c.read_only_root_filesystem).unwrap_or(false),
        },
        "mounts": mounts(input, privileged),
        "linux": linux,
    });
    // Only a pod that has a UTS namespace of its own may name itself.
    if input.namespaces.uts.is_some() && !input.hostname.is_empty() {
        set(&mut spec, "hostname", json!(input.hostname));
    }
    Ok(spec)
}

fn set(value: &mut Value, name: &str, to: Value) {
    if let Some(map) = value.as_object_mut() {
        map.insert(name.to_owned(), to);
    }
}

fn run_as_non_root(pod: &Pod, container: &Container) -> bool {
    let of_pod = pod.spec.as_ref().and_then(|s| s.security_context.as_ref()).and_then(|c| c.run_as_non_root);
    container.security_context.as_ref().and_then(|c| c.run_as_non_root).or(of_pod).unwrap_or(false)
}

/// What runs: Kubernetes' table of command and args against the image's entrypoint and cmd.
pub fn argv(command: &[String], args: &[String], image: &ImageConfig) -> Vec<String> {
    let (head, tail): (&[String], &[String]) = match (command.is_empty(), args.is_empty()) {
        (true, true) => (&image.entrypoint, &image.cmd),
        (true, false) => (&image.entrypoint, args),
        (false, _) => (command, args),
    };
    head.iter().chain(tail).cloned().collect()
}

fn process(input: &SpecInput<'_>, privileged: bool) -> Result<Value, String> {
    let argv = argv(input.command, input.args, input.image);
    if argv.is_empty() {
        return Err("neither the container nor its image says what to run: set command".to_owned());
    }
    let context = input.container.security_context.as_ref();
    let cwd = input.container.working_dir.clone().filter(|dir| !dir.is_empty());
    let cwd = cwd.or_else(|| Some(input.image.working_dir.clone()).filter(|dir| !dir.is_empty()));
    let capabilities = capabilities(input.container, privileged, input.capability_bound);
    Ok(json!({
        "terminal": input.container.tty.unwrap_or(false),
        "user": {
            "uid": input.user.uid,
            "gid": input.user.gid,
            "additionalGids": input.user.additional_gids,
        },
        "args": argv,
        "env": environment(input),
        "cwd": cwd.unwrap_or_else(|| "/".to_owned()),
        "capabilities": {
            "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
        },
        "noNewPrivileges": context.and_then(|c| c.allow_privilege_escalation).is_some_and(|allowed| !allowed),
    }))
}

/// The image's environment under the container's; PATH and HOSTNAME as kubelet gives them.
fn environment(input: &SpecInput<'_>) -> Vec<String> {
    let mut out: Vec<(String, String)> = Vec::new();
    let mut put = |name: &str, value: &str| match out.iter_mut().find(|(have, _)| have == name) {
        Some((_, old)) => *old = value.to_owned(),
        None => out.push((name.to_owned(), value.to_owned())),
    };
    put("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    if !input.hostname.is_empty() {
        put("HOSTNAME", input.hostname);
    }
    for entry in &input.image.env {
        if let Some((name, value)) = entry.split_once('=') {
            put(name, value);
        }
    }
    for (name, value) in input.env {
        put(name, value);
    }
    if input.container.tty.unwrap_or(false) && !out.iter().any(|(name, _)| name == "TERM") {
        out.push(("TERM".to_owned(), "xterm".to_owned()));
    }
    out.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

fn capabilities(container: &Container, privileged: bool, bound: u64) -> Vec<String> {
    let possible = |name: &String| match ALL_CAPABILITIES.iter().position(|have| have == name) {
        Some(bit) => bound & (1 << bit) != 0,
        None => false,
    };
    let mut out = wanted_capabilities(container, privileged);
    out.retain(possible);
    out
}

fn wanted_capabilities(container: &Container, privileged: bool) -> Vec<String> {
    if privileged {
        return ALL_CAPABILITIES.map(str::to_owned).to_vec();
    }
    let changes = container.security_context.as_ref().and_then(|c| c.capabilities.as_ref());
    let named = |list: Option<&Vec<String>>| -> Vec<String> {
        let full = |name: &String| {
            let upper = name.to_uppercase();
            if upper == "ALL" || upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") }
        };
        list.map(|l| l.iter().map(full).collect()).unwrap_or_default()
    };
    let add = named(changes.and_then(|c| c.add.as_ref()));
    let drop = named(changes.and_then(|c| c.drop.as_ref()));
    let all = |list: &[String]| list.iter().any(|name| name == "ALL");
    let mut out: Vec<String> = if all(&drop) {
        Vec::new()
    } else if all(&add) {
        ALL_CAPABILITIES.map(str::to_owned).to_vec()
    } else {
        DEFAULT_CAPABILITIES.map(str::to_owned).to_vec()
    };
    out.retain(|name| !drop.contains(name));
    for name in add.into_iter().filter(|name| name != "ALL") {
        if !out.contains(&name) {
            out.push(name);
        }
    }
    out
}

fn namespaces(input: &SpecInput<'_>) -> Value {
    let mut out = vec![json!({"type": "mount"})];
    let host_pid = input.pod.spec.as_ref().and_then(|s| s.host_pid).unwrap_or(false);
    if !host_pid {
        out.push(json!({"type": "pid"}));
    }
    let shared = input.namespaces;
    for (kind, path) in [("network", &shared.net), ("uts", &shared.uts), ("ipc", &shared.ipc)] {
        if let Some(path) = path {
            out.push(json!({"type": kind, "path": path}));
        }
    }
    Value::Array(out)
}

fn mounts(input: &SpecInput<'_>, privileged: bool) -> Value {
    let sys = if privileged { "rw" } else { "ro" };
    let mut out = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}),
        json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]}),
        json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
            "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]}),
        json!({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
            "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs",
            "options": ["nosuid", "noexec", "nodev", sys]}),
        json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
            "options": ["nosuid", "noexec", "nodev", "relatime", sys]}),
    ];
    for mount in input.mounts {
        out.retain(|have| {
            have.get("destination").and_then(Value::as_str) != Some(mount.destination.as_str())
        });
        let access = if mount.read_only { "ro" } else { "rw" };
        out.push(json!({
            "destination": mount.destination, "type": "bind", "source": mount.source,
            "options": ["rbind", "rprivate", access],
        }));
    }
    Value::Array(out)
}

fn resources(container: &Container, privileged: bool) -> Result<Value, String> {
    let lists = container.resources.as_ref();
    let asked =
        |list: Option<&std::collections::BTreeMap<String, _>>, name: &str| -> Result<Option<u128>, String> {
            let quantity: Option<&k8s_openapi::apimachinery::pkg::api::resource::Quantity> =
                list.and_then(|l| l.get(name));
            let Some(quantity) = quantity else { return Ok(None) };
            schemas::quantity::milli(&quantity.0)
                .map(Some)
                .ok_or_else(|| format!("{name} {:?} is not a quantity: write it as 100m or 64Mi", quantity.0))
        };
    let limits = lists.and_then(|l| l.limits.as_ref());
    let requests = lists.and_then(|l| l.requests.as_ref());
    let cpu_limit = asked(limits, "cpu")?;
    let cpu_request = asked(requests, "cpu")?.or(cpu_limit);
    let memory = asked(limits, "memory")?.map(|milli| milli.div_ceil(1000));

    let shares = cpu_request.map_or(CPU_SHARES_MIN, |milli| milli.saturating_mul(1024) / 1000);
    let mut cpu = json!({"shares": u64::try_from(shares.clamp(CPU_SHARES_MIN, CPU_SHARES_MAX)).unwrap_or(2)});
    if let Some(milli) = cpu_limit.filter(|milli| *milli > 0) {
        let quota = (milli.saturating_mul(u128::from(CPU_PERIOD_US)) / 1000).max(CPU_QUOTA_MIN_US);
        set(&mut cpu, "quota", json!(i64::try_from(quota).unwrap_or(i64::MAX)));
        set(&mut cpu, "period", json!(CPU_PERIOD_US));
    }
    let mut out = json!({"cpu": cpu, "devices": devices(privileged)});
    if let Some(bytes) = memory.filter(|bytes| *bytes > 0) {
        set(&mut out, "memory", json!({"limit": i64::try_from(bytes).unwrap_or(i64::MAX)}));
    }
    Ok(out)
}

/// The device rules of containerd: nothing but the usual harmless nodes.
fn devices(privileged: bool) -> Value {
    if privileged {
        return json!([{"allow": true, "access": "rwm"}]);
    }
    let mut out = vec![json!({"allow": false, "access": "rwm"})];
    // null, zero, full, random, urandom, tty, console, ptmx; pts.
    for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)] {
        out.push(json!({"allow": true, "type": "c", "major": major, "minor": minor, "access": "rwm"}));
    }
    out.push(json!({"allow": true, "type": "c", "major": 136, "access": "rwm"}));
    Value::Array(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec_of(container: Value) -> Value {
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [container.clone()]}})).unwrap();
        let container: Container = serde_json::from_value(container).unwrap();
        let image = ImageConfig {
            entrypoint: vec!["/entry".into()],
            cmd: vec!["cmd".into()],
            env: vec!["A=image".into(), "PATH=/img".into()],
            working_dir: "/work".into(),
            ..ImageConfig::default()
        };
        let namespaces = Namespaces { net: Some("/ns/net".into()), uts: Some("/ns/uts".into()), ipc: None };
        oci_spec(&SpecInput {
            pod: &pod,
            container: &container,
            image: &image,
            env: &[("A".into(), "pod".into())],
            command: &container.command.clone().unwrap_or_default(),
            args: &container.args.clone().unwrap_or_default(),
            mounts: &[BindMount { source: "/x".into(), destination: "/etc/hosts".into(), read_only: false }],
            namespaces: &namespaces,
            hostname: "web",
            user: &User::default(),
            cgroups_path: "/ew/c1",
            capability_bound: u64::MAX,
        })
        .unwrap()
    }

    #[test]
    fn command_and_args_follow_kubernetes_table() {
        let image = ImageConfig { entrypoint: vec!["e".into()], cmd: vec!["c".into()], ..Default::default() };
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        for (command, args, want) in [("", "", "e c"), ("x", "", "x"), ("", "y", "e y"), ("x", "y", "x y")] {
            assert_eq!(argv(&words(command), &words(args), &image), words(want), "{command:?} {args:?}");
        }
    }

    #[test]
    fn limits_become_shares_quota_and_bytes() {
        let spec = spec_of(json!({"name": "a", "resources": {
            "limits": {"cpu": "500m", "memory": "64Mi"}, "requests": {"cpu": "250m"}}}));
        let resources = &spec["linux"]["resources"];
        assert_eq!(resources["cpu"], json!({"shares": 256, "quota": 50_000, "period": 100_000}));
        assert_eq!(resources["memory"]["limit"], 67_108_864);
        assert_eq!(spec_of(json!({"name": "a"}))["linux"]["resources"]["cpu"], json!({"shares": 2}));
    }

    #[test]
    fn the_pod_wins_over_the_image_and_namespaces_are_shared_by_path() {
        let spec = spec_of(json!({"name": "a"}));
        assert_eq!(spec["process"]["env"], json!(["PATH=/img", "HOSTNAME=web", "A=pod"]));
        assert_eq!(spec["process"]["cwd"], "/work");
        assert_eq!(spec["hostname"], "web");
        let kinds = spec["linux"]["namespaces"].as_array().unwrap();
        assert!(kinds.contains(&json!({"type": "network", "path": "/ns/net"})));
        assert!(kinds.contains(&json!({"type": "pid"})));
        assert!(!kinds.iter().any(|k| k["type"] == "ipc"), "no path: the node's own");
        assert!(spec["process"].get("oomScoreAdj").is_none(), "machines without CAP_SYS_RESOURCE refuse it");
    }

    #[test]
    fn privileges_are_asked_for_and_dropped() {
        let caps =
            |container| spec_of(container)["process"]["capabilities"]["bounding"].as_array().unwrap().len();
        assert_eq!(caps(json!({"name": "a"})), DEFAULT_CAPABILITIES.len());
        assert_eq!(
            caps(
                json!({"name": "a", "securityContext": {"capabilities": {"drop": ["ALL"], "add": ["NET_RAW"]}}})
            ),
            1
        );
        assert_eq!(caps(json!({"name": "a", "securityContext": {"capabilities": {"drop": ["KILL"]}}})), 13);
        let privileged = spec_of(json!({"name": "a", "securityContext": {"privileged": true}}));
        assert!(privileged["linux"].get("maskedPaths").is_none());
    }
}
