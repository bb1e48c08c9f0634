//! What the machine is: read from `/proc`, `/etc` and the file system, for the Node object.

use std::collections::BTreeMap;
use std::path::Path;

use schemas::report::NodeReport;

use crate::disk::DiskFacts;
use crate::housekeeping::space;
use serde_json::json;

/// Pods a node takes unless configured.
const PODS_MAX: &str = "110";
/// Below so much available memory the node reports MemoryPressure.
const MEMORY_FREE_MIN_RATIO: f64 = 0.05;

/// What the operator configured about the node itself.
#[derive(Debug, Clone, Default)]
pub struct NodeConfig {
    /// Labels that the node starts with.
    pub labels: BTreeMap<String, String>,
    /// Its address, if it shall not be guessed.
    pub address: Option<String>,
    /// Version of the runtime.
    pub version: String,
    /// Where the node keeps its data: whose file system is watched.
    pub data_dir: std::path::PathBuf,
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
}

fn memory_kib(field: &str) -> u64 {
    read("/proc/meminfo")
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':')?.trim().split(' ').next()?.parse().ok())
        .unwrap_or(0)
}

fn os_image() -> String {
    read("/etc/os-release")
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME=").map(|text| text.trim_matches('"').to_owned()))
        .unwrap_or_else(|| "Linux".to_owned())
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn pressure(is_there: bool, what: &str) -> (String, String, String) {
    let (status, reason) = if is_there { ("True", "Has") } else { ("False", "HasNo") };
    // No figures: a text that changes would be a write to the object store.
    let text = format!(
        "the node's {} is {}",
        what.to_lowercase(),
        if is_there { "nearly used up" } else { "enough" }
    );
    (status.to_owned(), format!("{reason}{what}Pressure"), text)
}

/// Is the disk so full that telemetry goes?
fn disk_is_full(path: &Path) -> bool {
    space(path).is_some_and(|(size_bytes, free_bytes)| {
        DiskFacts { size_bytes, free_bytes, write_failed: false }.is_pressed()
    })
}

/// The node's report; `sequence` is left 0.
pub fn inspect(node: &str, boot_id: &str, config: &NodeConfig) -> NodeReport {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = memory_kib("MemTotal");
    #[allow(clippy::cast_precision_loss)] // a ratio
    let memory_free = memory_kib("MemAvailable") as f64 / memory.max(1) as f64;
    let resources: BTreeMap<String, String> =
        [("cpu", cpus.to_string()), ("memory", format!("{memory}Ki")), ("pods", PODS_MAX.to_owned())]
            .map(|(name, value)| (name.to_owned(), value))
            .into();
    let mut labels = config.labels.clone();
    for (name, value) in [
        ("kubernetes.io/hostname", node),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", architecture()),
        ("node-role.kubernetes.io/edge", ""),
    ] {
        labels.entry(name.to_owned()).or_insert_with(|| value.to_owned());
    }
    let mut addresses = vec![("Hostname".to_owned(), node.to_owned())];
    if let Some(address) = &config.address {
        addresses.insert(0, ("InternalIP".to_owned(), address.clone()));
    }
    NodeReport {
        node: node.to_owned(),
        boot_id: boot_id.to_owned(),
        sequence: 0,
        node_info: json!({
            "machineID": read("/etc/machine-id"),
            "systemUUID": "",
            "bootID": read("/proc/sys/kernel/random/boot_id"),
            "kernelVersion": read("/proc/sys/kernel/osrelease"),
            "osImage": os_image(),
            "containerRuntimeVersion": "containerd://",
            "kubeletVersion": config.version,
            "kubeProxyVersion": "",
            "operatingSystem": "linux",
            "architecture": architecture(),
        }),
        capacity: resources.clone(),
        allocatable: resources,
        addresses,
        labels,
        conditions: BTreeMap::from([
            ("MemoryPressure".to_owned(), pressure(memory_free < MEMORY_FREE_MIN_RATIO, "Memory")),
            ("DiskPressure".to_owned(), pressure(disk_is_full(&config.data_dir), "Disk")),
        ]),
    }
}
