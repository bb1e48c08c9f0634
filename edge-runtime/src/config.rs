//! The node's settings: a TOML file, then the environment, then flags, in rising order of strength.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, anyhow, bail};
use bus::proxy::Proxy;
use clap::Parser;
use schemas::name::NodeName;
use serde::Deserialize;
use sync::turns::{Cap, Caps};
use sync::ways::RETURN_AFTER_MS;

/// Where pods reach the bus by HTTP, unless told otherwise.
const HTTP_PORT: u16 = 9480;
/// Where the service bus listens unless told: KubeEdge's own.
const SERVICE_BUS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9060);

/// Runs an Edgewire node: its own bus, containerd, and the modules that run pods, on and off line.
///
/// A node has to join a hub once: `edgewire join TOKEN`. What it was told then runs for good, also after a reboot with no
/// hub in reach. A proxy on the way to the hub, if it is not the one that the node joined through: EDGEWIRE_PROXY, or `proxy`
/// in the settings file.
#[derive(Debug, Parser)]
#[command(name = "edge-runtime", version, args_conflicts_with_subcommands = true)]
pub struct Args {
    /// What to do instead of running the node
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub run: RunArgs,
}

/// What else the program does.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Enrol this machine as a node of a hub
    Join(JoinArgs),
    /// Writes a container's output to its log (containerd calls it)
    #[command(hide = true)]
    LogPump {
        /// As the shim passes it on
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
}

/// Enrol this machine as a node of a hub.
#[derive(Debug, Parser)]
pub struct JoinArgs {
    /// What `edgewire token create` printed at the hub
    pub token: String,
    /// Name of the node [default: this machine's host name]
    #[arg(long = "name", env = "EDGEWIRE_NODE")]
    pub node: Option<String>,
    /// Directory for the node's data
    #[arg(long, env = "EDGEWIRE_DATA_DIR", value_name = "DIR", default_value = "/var/lib/edgewire")]
    pub data_dir: PathBuf,
    /// Join as another machine: make new keys, after the old ones were revoked
    #[arg(long)]
    pub new_keys: bool,
    /// HTTP proxy on the way to the hub, http://[USER:PASSWORD@]HOST:PORT, kept for the node; `none` for none. A command line
    /// is seen by everybody on the machine: with a password, better set the variable [default: HTTPS_PROXY, as NO_PROXY
    /// allows]
    #[arg(long, env = "EDGEWIRE_PROXY", value_name = "URL", hide_env_values = true)]
    pub proxy: Option<String>,
}

/// How to run the node.
#[derive(Debug, Parser)]
pub struct RunArgs {
    /// Settings file (TOML); environment and flags override it
    #[arg(long, env = "EDGEWIRE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Name of the node [default: the one it joined with]
    #[arg(long = "name", env = "EDGEWIRE_NODE")]
    pub node: Option<String>,
    /// Directory for the node's data [default: /var/lib/edgewire]
    #[arg(long, env = "EDGEWIRE_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Port of the node's own bus, on the pods' gateway address [default: 4222]
    #[arg(long, env = "EDGEWIRE_BUS_PORT", value_name = "PORT")]
    pub bus_port: Option<u16>,
    /// Port of MQTT, on the same address; 0: it is not served. A port that is taken is left out, and said [default: 1883]
    #[arg(long, env = "EDGEWIRE_MQTT_PORT", value_name = "PORT")]
    pub mqtt_port: Option<u16>,
    /// Port of the bus by HTTP, on the same address; 0 for none [default: 9480]
    #[arg(long, env = "EDGEWIRE_HTTP_PORT", value_name = "PORT")]
    pub http_port: Option<u16>,
    /// Where programs on this node call rules' targets at the hub (KubeEdge's service bus): a loopback address and port, `off`
    /// for nowhere [default: 127.0.0.1:9060]
    #[arg(long, env = "EDGEWIRE_SERVICE_BUS", value_name = "ADDR")]
    pub service_bus: Option<String>,
    /// Addresses of the pods [default: 10.85.0.0/24]
    #[arg(long, env = "EDGEWIRE_POD_CIDR", value_name = "CIDR")]
    pub pod_cidr: Option<String>,
    /// Bridge that pods are joined to; made when absent [default: edgewire0]
    #[arg(long, env = "EDGEWIRE_BRIDGE", value_name = "NAME")]
    pub bridge: Option<String>,
    /// An address of this node for its Node object [default: none]
    #[arg(long, env = "EDGEWIRE_ADDRESS", value_name = "IP")]
    pub address: Option<String>,
    /// Socket of a running containerd [default: a private containerd is started]
    #[arg(long, env = "EDGEWIRE_CONTAINERD", value_name = "SOCKET")]
    pub containerd: Option<PathBuf>,
    /// containerd's namespace for our containers [default: edgewire]
    #[arg(long, env = "EDGEWIRE_CONTAINERD_NAMESPACE", value_name = "NAME")]
    pub containerd_namespace: Option<String>,
    /// Directory of image archives (docker or OCI tar) to import; may be given several times
    #[arg(long, env = "EDGEWIRE_IMAGES", value_name = "DIR", value_delimiter = ',')]
    pub images: Vec<PathBuf>,
    /// A label that the node starts with (key=value); may be given several times
    #[arg(long = "label", env = "EDGEWIRE_LABELS", value_name = "KEY=VALUE", value_delimiter = ',')]
    pub labels: Vec<String>,
    /// How fast a lane of the uplink may be, in bits each second, before compression; may be given several times. Lanes:
    /// state, events, workload (`up.`), bulk (`bulk.`) [default: none]
    #[arg(long = "uplink-cap", env = "EDGEWIRE_UPLINK_CAP", value_name = "LANE=RATE", value_delimiter = ',')]
    pub uplink_caps: Vec<Cap>,
    /// How long a link that had to go over wss:// stays there before tls:// is tried again; longer or shorter by up to a
    /// quarter, differently on each node [default: 300]
    #[arg(long, env = "EDGEWIRE_LINK_RETURN_S", value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub link_return_s: Option<u64>,
    /// The nats-server to run [default: beside this program, then PATH]
    #[arg(long, env = "EDGEWIRE_NATS_SERVER", value_name = "FILE")]
    pub nats_server: Option<PathBuf>,
    /// Form of the log: human or json [default: human]
    #[arg(long, env = "EDGEWIRE_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<String>,
}

/// The settings file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    name: Option<String>,
    data_dir: Option<PathBuf>,
    bus_port: Option<u16>,
    mqtt_port: Option<u16>,
    http_port: Option<u16>,
    service_bus: Option<String>,
    pod_cidr: Option<String>,
    bridge: Option<String>,
    address: Option<String>,
    containerd: Option<PathBuf>,
    containerd_namespace: Option<String>,
    images: Vec<PathBuf>,
    labels: BTreeMap<String, String>,
    link_return_s: Option<u64>,
    uplink_caps: BTreeMap<String, String>,
    proxy: Option<String>,
    nats_server: Option<PathBuf>,
    log_format: Option<String>,
}

/// All settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// Name, if it was set here.
    pub node: Option<NodeName>,
    /// The node's data.
    pub data_dir: PathBuf,
    /// Port of the node's bus.
    pub bus_port: u16,
    /// Port of MQTT; `None`: it is not served.
    pub mqtt_port: Option<u16>,
    /// Port of the bus by HTTP, if there is one.
    pub http_port: Option<u16>,
    /// Where the service bus listens, if it does.
    pub service_bus: Option<SocketAddr>,
    /// Addresses of the pods.
    pub pod_cidr: Cidr,
    /// Bridge of the pods.
    pub bridge: String,
    /// For the Node object.
    pub address: Option<String>,
    /// A running containerd; `None` for a private one.
    pub containerd: Option<PathBuf>,
    /// containerd's namespace.
    pub containerd_namespace: String,
    /// Where image archives lie.
    pub images: Vec<PathBuf>,
    /// Lanes of the uplink that may not be faster.
    pub uplink_caps: Caps,
    /// How long a link stays on the worse way before the better one is tried.
    pub link_return_ms: u64,
    /// The proxy on the way to the hub, or none; `None`: as it joined.
    pub proxy: Option<Option<Proxy>>,
    /// Labels that the node starts with.
    pub labels: BTreeMap<String, String>,
    /// The server to run.
    pub nats_server: Option<PathBuf>,
    /// JSON logs?
    pub log_json: bool,
}

/// An IPv4 network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    /// Its first address.
    pub network: Ipv4Addr,
    /// Bits of the prefix.
    pub prefix: u8,
}

impl Cidr {
    /// Reads `a.b.c.d/n`, n from 8 to 29.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/')?;
        let (address, prefix): (Ipv4Addr, u8) = (address.parse().ok()?, prefix.parse().ok()?);
        if !(8..=29).contains(&prefix) {
            return None;
        }
        let mask = u32::MAX << (32 - prefix);
        Some(Self { network: Ipv4Addr::from(u32::from(address) & mask), prefix })
    }

    /// The gateway: the first address after the network's own. The node's bus listens there.
    pub fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.network) + 1)
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

impl Config {
    /// Brings file, environment and flags together.
    pub fn load(args: RunArgs) -> anyhow::Result<Self> {
        let file: File = match &args.config {
            None => File::default(),
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("EW-CONFIG: cannot read {}", path.display()))?;
                toml::from_str(&text)
                    .with_context(|| format!("EW-CONFIG: {} is not valid", path.display()))?
            }
        };
        let node = match args.node.or(file.name) {
            Some(name) => Some(NodeName::new(name).context("EW-CONFIG: name")?),
            None => None,
        };
        let cidr = args.pod_cidr.or(file.pod_cidr).unwrap_or_else(|| "10.85.0.0/24".to_owned());
        let Some(pod_cidr) = Cidr::parse(&cidr) else {
            bail!(
                "EW-CONFIG: pod_cidr {cidr:?} is not an IPv4 network such as 10.85.0.0/24 (prefix 8 to 29)"
            );
        };
        let service_bus = match args.service_bus.or(file.service_bus).as_deref() {
            None => Some(SERVICE_BUS),
            Some("off") => None,
            // It asks nobody who they are: whoever is on the machine may use it, and nobody else.
            Some(text) => match text.parse::<SocketAddr>() {
                Ok(address) if address.ip().is_loopback() => Some(address),
                _ => bail!("EW-CONFIG: service_bus {text:?} is neither a loopback ADDRESS:PORT nor \"off\""),
            },
        };
        let bridge = args.bridge.or(file.bridge).unwrap_or_else(|| "edgewire0".to_owned());
        if bridge.is_empty() || bridge.len() > 15 || bridge.contains(['/', ' ']) {
            bail!("EW-CONFIG: bridge {bridge:?} is not an interface name of at most 15 characters");
        }
        let mut labels = file.labels;
        for label in &args.labels {
            let Some((key, value)) = label.split_once('=') else {
                bail!("EW-CONFIG: label {label:?} is not KEY=VALUE");
            };
            labels.insert(key.to_owned(), value.to_owned());
        }
        let mut uplink_caps = Caps::new();
        let of_file = file.uplink_caps.iter().map(|(lane, rate)| Cap::of(lane, rate));
        for cap in of_file.chain(args.uplink_caps.into_iter().map(Ok)) {
            let cap = cap.map_err(|why| anyhow!("EW-CONFIG: uplink_caps: {why}"))?;
            uplink_caps.insert(cap.lane, cap.bytes_per_s);
        }
        let bus_port = args.bus_port.or(file.bus_port).unwrap_or(4222);
        let mqtt_port = Some(args.mqtt_port.or(file.mqtt_port).unwrap_or(1883)).filter(|port| *port != 0);
        if mqtt_port == Some(bus_port) {
            bail!("EW-CONFIG: bus_port and mqtt_port are both {bus_port}; give one of them another port");
        }
        let log_json = match args.log_format.or(file.log_format).as_deref() {
            None | Some("human") => false,
            Some("json") => true,
            Some(other) => bail!("EW-CONFIG: log format {other:?} is neither \"human\" nor \"json\""),
        };
        // No flag: who runs `ps` would see the password for good.
        let proxy = std::env::var("EDGEWIRE_PROXY").ok().filter(|text| !text.is_empty()).or(file.proxy);
        let proxy = proxy.map(|text| Proxy::setting(&text)).transpose()?;
        Ok(Self {
            node,
            link_return_ms: args
                .link_return_s
                .or(file.link_return_s)
                .map_or(RETURN_AFTER_MS, |seconds| seconds.saturating_mul(1000)),
            uplink_caps,
            proxy,
            data_dir: absolute(
                args.data_dir.or(file.data_dir).unwrap_or_else(|| PathBuf::from("/var/lib/edgewire")),
            )?,
            bus_port,
            mqtt_port,
            http_port: Some(args.http_port.or(file.http_port).unwrap_or(HTTP_PORT)).filter(|port| *port != 0),
            service_bus,
            pod_cidr,
            bridge,
            address: args.address.or(file.address),
            containerd: args.containerd.or(file.containerd),
            containerd_namespace: args
                .containerd_namespace
                .or(file.containerd_namespace)
                .unwrap_or_else(|| "edgewire".to_owned()),
            images: if args.images.is_empty() { file.images } else { args.images },
            labels,
            nats_server: args.nats_server.or(file.nats_server).map(absolute).transpose()?,
            log_json,
        })
    }
}

/// Programs are started in directories of their own.
fn absolute(path: PathBuf) -> anyhow::Result<PathBuf> {
    std::path::absolute(&path).with_context(|| format!("EW-CONFIG: {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::subject::Lane;

    #[test]
    fn networks_are_read_and_bounded() {
        let cidr = Cidr::parse("10.85.3.7/24").unwrap();
        assert_eq!(
            (cidr.to_string(), cidr.gateway().to_string()),
            ("10.85.3.0/24".into(), "10.85.3.1".into())
        );
        for bad in ["", "10.0.0.0", "10.0.0.0/33", "10.0.0.0/30", "x/24"] {
            assert!(Cidr::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_flag_is_stronger_than_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.toml");
        std::fs::write(&path, "[uplink_caps]\nbulk = '8k'\nworkload = '80k'").unwrap();
        let path = path.to_str().unwrap();
        let args = Args::parse_from(["edge-runtime", "--config", path, "--uplink-cap", "bulk=16k,state=8k"]);
        let caps = Config::load(args.run).unwrap().uplink_caps;
        assert_eq!(caps, [(Lane::Bulk, 2_000), (Lane::Workload, 10_000), (Lane::State, 1_000)].into());
        assert!(Args::try_parse_from(["edge-runtime", "--uplink-cap", "bulk"]).is_err());
    }

    #[test]
    fn mqtt_is_served_unless_told_otherwise() {
        for (flags, want) in [(vec![], Some(1883)), (vec!["--mqtt-port", "0"], None)] {
            let args = Args::parse_from([vec!["edge-runtime"], flags].concat());
            assert_eq!(Config::load(args.run).unwrap().mqtt_port, want);
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let [fast, all] = ["bulk = 'fast'", "all = '2M'"].map(|cap| {
            let path = dir.path().join(cap);
            std::fs::write(&path, format!("[uplink_caps]\n{cap}")).unwrap();
            path.into_os_string().into_string().unwrap()
        });
        for (args, word) in [
            (vec!["--pod-cidr", "10.0.0.0"], "pod_cidr"),
            (vec!["--name", "Not_A_Name"], "node name"),
            (vec!["--label", "novalue"], "novalue"),
            (vec!["--service-bus", "0.0.0.0:9060"], "service_bus"),
            (vec!["--log-format", "xml"], "xml"),
            (vec!["--mqtt-port", "4222"], "mqtt_port"),
            (vec!["--config", &fast], "\"fast\""),
            (vec!["--config", &all], "there are state, events"),
            (vec!["--config", "/does/not/exist"], "/does/not/exist"),
        ] {
            let args = Args::parse_from([vec!["edge-runtime"], args].concat());
            let error = format!("{:#}", Config::load(args.run).unwrap_err());
            assert!(error.contains(word) && error.starts_with("EW-CONFIG"), "{error}");
        }
    }
}
