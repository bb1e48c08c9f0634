//! What containers need of the kernel: overlay mounts, namespaces, veth pairs and bridges; and what holds their packets up.
//!
//! Nothing is tried out, because that would load modules. The kernel's own words are read instead: what is loaded, its
//! configuration, its list of modules, and, where all of these are absent, its symbols.

use std::io::Read;
use std::path::Path;

use super::finding::{Check, Finding};

const KERNEL: Check = Check("EW-CHECK-KERNEL", "kernel");
const FORWARDING: Check = Check("EW-CHECK-FORWARDING", "forwarding");

/// Files of the kernel are read up to here.
const FILE_MAX_BYTES: u64 = 64 * 1024 * 1024;
/// Namespaces that a pod has.
const NAMESPACES: [&str; 5] = ["mnt", "net", "pid", "uts", "ipc"];

/// Something that the kernel may have: as a module, in its configuration, and as a symbol.
struct Feature {
    module: &'static str,
    config: &'static str,
    symbol: &'static str,
    required: bool,
}

const FEATURES: [Feature; 4] = [
    Feature { module: "overlay", config: "CONFIG_OVERLAY_FS", symbol: "ovl_fill_super", required: true },
    Feature { module: "veth", config: "CONFIG_VETH", symbol: "veth_setup", required: true },
    Feature { module: "bridge", config: "CONFIG_BRIDGE", symbol: "br_add_bridge", required: true },
    // For rules of the machine's owner and later of ours; a pod runs without.
    Feature {
        module: "nf_tables",
        config: "CONFIG_NF_TABLES",
        symbol: "nf_tables_newtable",
        required: false,
    },
];

/// What the kernel says of itself. A file that is not there is empty.
#[derive(Debug, Clone, Default)]
pub struct KernelFacts {
    /// `uname -r`.
    pub release: String,
    /// Modules that are loaded, or built in and have a directory: names.
    pub loaded: Vec<String>,
    /// `/boot/config-*` or `/proc/config.gz`.
    pub config: String,
    /// `modules.builtin` and `modules.dep`.
    pub modules: String,
    /// `/proc/kallsyms`; read only if the two above are empty.
    pub symbols: String,
    /// Namespaces that are there.
    pub namespaces: Vec<String>,
    /// `net.ipv4.ip_forward`.
    pub ip_forward: Option<bool>,
    /// `net.bridge.bridge-nf-call-iptables`; there when `br_netfilter` is loaded.
    pub bridge_calls_iptables: Option<bool>,
    /// Docker's bridge is there.
    pub docker: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Support {
    Here,
    Missing,
    Unknown,
}

impl KernelFacts {
    /// Reads them.
    pub fn read() -> Self {
        let release = line("/proc/sys/kernel/osrelease").unwrap_or_default();
        let names = |dir: &str| -> Vec<String> {
            let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
        };
        let mut config = text(&format!("/boot/config-{release}"));
        if config.is_empty()
            && let Ok(file) = std::fs::File::open("/proc/config.gz")
        {
            let mut bytes = Vec::new();
            let read = flate2::read::GzDecoder::new(file).take(FILE_MAX_BYTES).read_to_end(&mut bytes);
            config = read.map(|_| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        }
        let dir = format!("/lib/modules/{release}");
        let modules = text(&format!("{dir}/modules.builtin")) + &text(&format!("{dir}/modules.dep"));
        let silent = config.is_empty() && modules.is_empty();
        let switch = |path: &str| line(path).map(|text| text != "0");
        Self {
            loaded: names("/sys/module"),
            symbols: if silent { text("/proc/kallsyms") } else { String::new() },
            namespaces: names("/proc/self/ns"),
            ip_forward: switch("/proc/sys/net/ipv4/ip_forward"),
            bridge_calls_iptables: switch("/proc/sys/net/bridge/bridge-nf-call-iptables"),
            docker: Path::new("/sys/class/net/docker0").exists(),
            release,
            config,
            modules,
        }
    }

    fn support(&self, feature: &Feature) -> Support {
        if self.loaded.iter().any(|name| name == feature.module) {
            return Support::Here;
        }
        let file = format!("/{}.ko", feature.module);
        let in_modules = self.modules.contains(&file);
        let set = |value: &str| self.config.lines().any(|line| line == format!("{}={value}", feature.config));
        let symbol = || {
            let mut names = self.symbols.lines().filter_map(|line| line.split(' ').nth(2));
            names.any(|name| name.trim_end().split('\t').next() == Some(feature.symbol))
        };
        match (self.config.is_empty(), self.modules.is_empty()) {
            _ if in_modules || set("y") => Support::Here,
            // Configured as a module, and no such file: an update removed this kernel's modules.
            (_, false) | (false, true) => Support::Missing,
            (true, true) if self.symbols.is_empty() => Support::Unknown,
            (true, true) if symbol() => Support::Here,
            (true, true) => Support::Missing,
        }
    }
}

fn line(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn text(path: &str) -> String {
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(FILE_MAX_BYTES).read_to_end(&mut bytes));
    read.map(|_| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// Can it run containers?
pub fn features(facts: &KernelFacts) -> Vec<Finding> {
    let names = |wanted: Support, required: bool| -> Vec<&str> {
        let found = FEATURES.iter().filter(|f| f.required == required && facts.support(f) == wanted);
        found.map(|feature| feature.module).collect()
    };
    let release = &facts.release;
    let mut findings = Vec::new();
    let lacking: Vec<&str> =
        NAMESPACES.into_iter().filter(|name| !facts.namespaces.iter().any(|there| there == name)).collect();
    if !lacking.is_empty() {
        findings.push(KERNEL.fail(
            format!("kernel {release} has no namespaces: {}", lacking.join(", ")),
            "boot a kernel of your distribution, such as Debian's linux-image-amd64",
        ));
    }
    let missing = names(Support::Missing, true);
    if !missing.is_empty() {
        findings.push(KERNEL.fail(
            format!("kernel {release} lacks {}", missing.join(", ")),
            format!(
                "`modprobe {}`; after an update of the kernel reboot first; else boot a kernel of your \
                 distribution, such as Debian's linux-image-amd64",
                missing.join(" ")
            ),
        ));
    }
    let missing = names(Support::Missing, false);
    if !missing.is_empty() {
        findings.push(KERNEL.warn(
            format!("kernel {release} lacks {}: packet filters will not work", missing.join(", ")),
            format!("`modprobe {}`, or boot a kernel that has it", missing.join(" ")),
        ));
    }
    let unknown = [names(Support::Unknown, true), names(Support::Unknown, false)].concat();
    if !unknown.is_empty() {
        findings.push(KERNEL.warn(
            format!("kernel {release} does not say whether it has {}", unknown.join(", ")),
            "run this as root; or see whether `modprobe` of each succeeds",
        ));
    }
    if findings.is_empty() {
        let there: Vec<&str> = FEATURES.iter().map(|feature| feature.module).collect();
        findings.push(KERNEL.ok(format!("{release} has {}, namespaces", there.join(", "))));
    }
    findings
}

/// Do packets get from pod to pod, and out?
pub fn forwarding(facts: &KernelFacts) -> Finding {
    if facts.docker && facts.bridge_calls_iptables == Some(true) {
        return FORWARDING.warn(
            "Docker drops what it does not know, and br_netfilter hands it what pods say to each other",
            "`iptables -I DOCKER-USER -i edgewire0 -j ACCEPT`, at each start of Docker; or \
             `sysctl net.bridge.bridge-nf-call-iptables=0`",
        );
    }
    let filter = match facts.bridge_calls_iptables {
        Some(true) => "br_netfilter on",
        Some(false) => "br_netfilter off",
        None => "br_netfilter not loaded, and not needed",
    };
    match facts.ip_forward {
        Some(true) => FORWARDING.ok(format!("ip_forward on; {filter}")),
        Some(false) => FORWARDING.ok(format!("ip_forward off: the first pod turns it on; {filter}")),
        None => FORWARDING.fail(
            "the kernel has no IPv4 forwarding (net.ipv4.ip_forward)",
            "mount /proc; boot a kernel with IPv4",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    fn bare() -> KernelFacts {
        KernelFacts {
            release: "6.1".into(),
            namespaces: NAMESPACES.map(str::to_owned).to_vec(),
            ..KernelFacts::default()
        }
    }

    #[test]
    fn every_witness_is_believed_in_its_turn() {
        let configured = "CONFIG_OVERLAY_FS=y\nCONFIG_VETH=y\nCONFIG_BRIDGE=y\nCONFIG_NF_TABLES=y\n";
        let modules = "kernel/fs/overlayfs/overlay.ko:\nkernel/drivers/net/veth.ko.xz:\n\
                       kernel/net/bridge/bridge.ko: kernel/net/llc/llc.ko\nkernel/net/netfilter/nf_tables.ko\n";
        let symbols =
            "00 t ovl_fill_super\n00 t veth_setup\t[veth]\n00 T br_add_bridge\n00 t nf_tables_newtable\n";
        let all = ["overlay", "veth", "bridge", "nf_tables"].map(str::to_owned).to_vec();
        for (name, facts, level, words) in [
            ("loaded", KernelFacts { loaded: all.clone(), ..bare() }, Level::Ok, "6.1 has overlay, veth"),
            ("configured", KernelFacts { config: configured.into(), ..bare() }, Level::Ok, "namespaces"),
            ("listed", KernelFacts { modules: modules.into(), ..bare() }, Level::Ok, "bridge"),
            ("symbols", KernelFacts { symbols: symbols.into(), ..bare() }, Level::Ok, "nf_tables"),
            ("nothing", bare(), Level::Warn, "does not say whether it has overlay, veth, bridge, nf_tables"),
            (
                "modules gone",
                KernelFacts { config: configured.replace("VETH=y", "VETH=m"), ..bare() },
                Level::Fail,
                "lacks veth",
            ),
            (
                "no filter",
                KernelFacts { modules: modules.replace("nf_tables", "other"), ..bare() },
                Level::Warn,
                "lacks nf_tables",
            ),
            (
                "one is loaded, another is not there",
                KernelFacts { loaded: all[1..].to_vec(), symbols: "00 t x\n".into(), ..bare() },
                Level::Fail,
                "lacks overlay",
            ),
            (
                "no namespaces",
                KernelFacts { loaded: all, namespaces: vec!["mnt".into()], ..bare() },
                Level::Fail,
                "no namespaces: net, pid, uts, ipc",
            ),
        ] {
            let findings = features(&facts);
            assert_eq!(findings.len(), 1, "{name}: {findings:?}");
            assert_eq!(findings[0].level, level, "{name}: {findings:?}");
            assert!(findings[0].found.contains(words), "{name}: {findings:?}");
        }
    }

    #[test]
    fn docker_with_a_bridge_filter_is_told() {
        for (ip_forward, bridge_calls_iptables, docker, level) in [
            (Some(true), None, true, Level::Ok),
            (Some(false), Some(true), false, Level::Ok),
            (Some(true), Some(false), true, Level::Ok),
            (Some(true), Some(true), true, Level::Warn),
            (None, None, false, Level::Fail),
        ] {
            let facts = KernelFacts { ip_forward, bridge_calls_iptables, docker, ..bare() };
            assert_eq!(forwarding(&facts).level, level, "{facts:?}");
        }
    }
}
