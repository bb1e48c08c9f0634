//! The hub's settings: a TOML file, then the environment, then flags, in rising order of strength.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, bail};
use bus::proxy::{authority, with_port};
use clap::{Parser, Subcommand};
use identity::authority::RENEW_AFTER_DAYS;
use serde::Deserialize;

/// Where the API listens unless told.
pub const API_PORT: u16 = 6443;
/// Where tools reach the bus unless told.
pub const BUS_PORT: u16 = 4222;
/// Where the rules' REST entry listens unless told.
pub const REST_PORT: u16 = 9443;
/// Where nodes connect unless told.
pub const LEAF_PORT: u16 = 7422;

/// The longest age at which a certificate is made anew.
const RENEW_DAYS_MAX: u64 = 3650;

/// Runs an Edgewire hub, or backs one up and restores it.
#[derive(Debug, Parser)]
#[command(name = "cloud-hub", version, about = ABOUT, long_about = LONG_ABOUT, args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub run: Args,
}

/// What it does besides running a hub.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write everything the hub has (keys, objects, streams) to one file, while it runs
    ///
    /// Run it on the hub's machine, as the hub's own user. The hub is held still for some milliseconds; nodes and their
    /// containers do not notice. The file holds the hub's keys: who has it can be the hub.
    Backup(BackupArgs),
    /// Make a hub from a backup, in an empty data directory
    ///
    /// The file is checked first, all of it. Nothing at the edge stops when the hub comes back older than its nodes:
    /// `edgewire diverged` then shows what they have and the hub does not.
    Restore(RestoreArgs),
    /// Lets a server go on that a backup held still
    #[command(hide = true)]
    Guard,
}

/// Arguments of `backup`.
#[derive(Debug, clap::Args)]
pub struct BackupArgs {
    /// The file to write, such as /var/backups/hub.tar.gz
    pub file: PathBuf,
    /// Directory of the hub [default: /var/lib/edgewire-hub]
    #[arg(long, env = "EDGEWIRE_HUB_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Settings file of the hub (TOML), for the directory that it names
    #[arg(long, env = "EDGEWIRE_HUB_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Replace the file if it is there
    #[arg(long)]
    pub force: bool,
    /// Print the table of contents as JSON
    #[arg(long)]
    pub json: bool,
    /// The nats-server with which the copy is opened and checked [default: beside this program, then PATH]
    #[arg(long, env = "EDGEWIRE_NATS_SERVER", value_name = "FILE")]
    pub nats_server: Option<PathBuf>,
}

/// Arguments of `restore`.
#[derive(Debug, clap::Args)]
pub struct RestoreArgs {
    /// The backup
    pub file: PathBuf,
    /// Directory for the hub; it must be empty or not there [default: /var/lib/edgewire-hub]
    #[arg(long, env = "EDGEWIRE_HUB_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Settings file of the hub (TOML), for the directory that it names
    #[arg(long, env = "EDGEWIRE_HUB_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Check the file and show what is in it; change nothing
    #[arg(long)]
    pub check: bool,
    /// Move what is in the directory aside first; it is not deleted
    #[arg(long, conflicts_with = "check")]
    pub force: bool,
    /// Print the table of contents as JSON
    #[arg(long)]
    pub json: bool,
    /// The nats-server with which the store is opened and checked [default: beside this program, then PATH]
    #[arg(long, env = "EDGEWIRE_NATS_SERVER", value_name = "FILE")]
    pub nats_server: Option<PathBuf>,
}

const ABOUT: &str = "Runs an Edgewire hub: the Kubernetes API, the bus, and the modules that steer the nodes";
const LONG_ABOUT: &str = "\
Runs an Edgewire hub: the Kubernetes API, the bus, and the modules that steer the nodes.

The first start makes keys, certificates and a kubeconfig in the data directory. Then, on any machine with the kubeconfig:
`kubectl get nodes`. To add a node: `edgewire token create`, and on the node `edgewire join TOKEN`.";

/// Settings on the command line and in the environment.
#[derive(Debug, Default, clap::Args)]
pub struct Args {
    /// Settings file (TOML); environment and flags override it
    #[arg(long, env = "EDGEWIRE_HUB_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Directory for keys, objects and streams [default: /var/lib/edgewire-hub]
    #[arg(long, env = "EDGEWIRE_HUB_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Address and port of the Kubernetes API [default: 0.0.0.0:6443]
    #[arg(long, env = "EDGEWIRE_HUB_API_LISTEN", value_name = "ADDR")]
    pub api_listen: Option<SocketAddr>,
    /// Address and port where tools reach the bus [default: 0.0.0.0:4222]
    #[arg(long, env = "EDGEWIRE_HUB_BUS_LISTEN", value_name = "ADDR")]
    pub bus_listen: Option<SocketAddr>,
    /// Address and port of the rules' REST entry, `off` for none [default: 0.0.0.0:9443]
    #[arg(long, env = "EDGEWIRE_HUB_REST_LISTEN", value_name = "ADDR")]
    pub rest_listen: Option<String>,
    /// Address and port where nodes connect [default: 0.0.0.0:7422]
    #[arg(long, env = "EDGEWIRE_HUB_LEAF_LISTEN", value_name = "ADDR")]
    pub leaf_listen: Option<SocketAddr>,
    /// Address and port where nodes connect that get out by HTTPS alone, or through a proxy, such as 0.0.0.0:443 [default:
    /// nowhere]
    #[arg(long, env = "EDGEWIRE_HUB_LEAF_WSS", value_name = "ADDR")]
    pub leaf_wss: Option<SocketAddr>,
    /// Where nodes reach this hub, if that is not each --advertise with the ports above (behind a load balancer):
    /// https://HOST:PORT to join, tls://HOST:PORT and wss://HOST:PORT to connect; may be given several times
    #[arg(long = "url", env = "EDGEWIRE_HUB_URLS", value_name = "URL", value_delimiter = ',')]
    pub urls: Vec<String>,
    /// Name or address by which nodes and tools reach this hub; may be given several times, the first is preferred
    #[arg(long, env = "EDGEWIRE_HUB_ADVERTISE", value_name = "HOST", value_delimiter = ',')]
    pub advertise: Vec<String>,
    /// Make the servers a new key and certificate after so many days [default: 90]
    #[arg(long, env = "EDGEWIRE_HUB_CERTIFICATE_RENEW_DAYS", value_name = "DAYS")]
    pub certificate_renew_days: Option<u64>,
    /// Where to write the kubeconfig [default: DATA_DIR/kubeconfig]
    #[arg(long, env = "EDGEWIRE_HUB_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
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
    data_dir: Option<PathBuf>,
    api_listen: Option<SocketAddr>,
    bus_listen: Option<SocketAddr>,
    rest_listen: Option<String>,
    leaf_listen: Option<SocketAddr>,
    leaf_wss: Option<SocketAddr>,
    urls: Vec<String>,
    advertise: Vec<String>,
    certificate_renew_days: Option<u64>,
    kubeconfig: Option<PathBuf>,
    nats_server: Option<PathBuf>,
    log_format: Option<String>,
}

/// All settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// Keys, objects, streams.
    pub data_dir: PathBuf,
    /// The Kubernetes API.
    pub api_listen: SocketAddr,
    /// Tools.
    pub bus_listen: SocketAddr,
    /// The rules' REST entry; nowhere when there is none.
    pub rest_listen: Option<SocketAddr>,
    /// Nodes.
    pub leaf_listen: SocketAddr,
    /// Nodes that get out by HTTPS alone.
    pub leaf_wss: Option<SocketAddr>,
    /// `https://`, where nodes join.
    pub api_urls: Vec<String>,
    /// `tls://` and `wss://`, where nodes connect.
    pub leaf_urls: Vec<String>,
    /// All names and addresses that the certificate has to be for.
    pub names: Vec<String>,
    /// By which others reach this hub; never empty.
    pub advertise: Vec<String>,
    /// After so many days the servers get another certificate.
    pub certificate_renew_days: u64,
    /// Where to write it.
    pub kubeconfig: PathBuf,
    /// The server to run.
    pub nats_server: Option<PathBuf>,
    /// JSON logs?
    pub log_json: bool,
}

impl Config {
    /// Brings file, environment and flags together.
    pub fn load(args: Args) -> anyhow::Result<Self> {
        let file: File = match &args.config {
            None => File::default(),
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("EW-CONFIG: cannot read {}", path.display()))?;
                toml::from_str(&text)
                    .with_context(|| format!("EW-CONFIG: {} is not valid", path.display()))?
            }
        };
        let any = |port| SocketAddr::new(IpAddr::from([0, 0, 0, 0]), port);
        let data_dir = absolute(
            args.data_dir.or(file.data_dir).unwrap_or_else(|| PathBuf::from("/var/lib/edgewire-hub")),
        )?;
        let api_listen = args.api_listen.or(file.api_listen).unwrap_or_else(|| any(API_PORT));
        let mut advertise = if args.advertise.is_empty() { file.advertise } else { args.advertise };
        if advertise.is_empty() {
            advertise = guess_addresses(api_listen.ip());
        }
        let rest_listen = match args.rest_listen.or(file.rest_listen).as_deref() {
            None => Some(any(REST_PORT)),
            Some("off") => None,
            Some(text) => Some(text.parse().with_context(|| {
                format!("EW-CONFIG: rest_listen {text:?} is neither ADDRESS:PORT nor \"off\"")
            })?),
        };
        let leaf_listen = args.leaf_listen.or(file.leaf_listen).unwrap_or_else(|| any(LEAF_PORT));
        let leaf_wss = args.leaf_wss.or(file.leaf_wss);
        let urls = if args.urls.is_empty() { file.urls } else { args.urls };
        let mut names = advertise.clone();
        for url in &urls {
            names.push(host_of(url)?.to_owned());
        }
        names.dedup();
        let reached_at = |scheme: &str, listen: Option<SocketAddr>| -> Vec<String> {
            let given = urls.iter().filter(|url| url.starts_with(&format!("{scheme}://")));
            let given: Vec<String> = given.map(|url| url.trim_end_matches('/').to_owned()).collect();
            if !given.is_empty() {
                return given;
            }
            let all =
                listen.into_iter().flat_map(|listen| advertise.iter().map(move |host| (host, listen.port())));
            all.map(|(host, port)| format!("{scheme}://{}", with_port(host, port))).collect()
        };
        let leaf_urls = [reached_at("tls", Some(leaf_listen)), reached_at("wss", leaf_wss)].concat();
        let log_json = match args.log_format.or(file.log_format).as_deref() {
            None | Some("human") => false,
            Some("json") => true,
            Some(other) => bail!("EW-CONFIG: log format {other:?} is neither \"human\" nor \"json\""),
        };
        let days = args.certificate_renew_days.or(file.certificate_renew_days).unwrap_or(RENEW_AFTER_DAYS);
        if !(1..=RENEW_DAYS_MAX).contains(&days) {
            bail!("EW-CONFIG: certificate_renew_days {days} is not 1 to {RENEW_DAYS_MAX}");
        }
        Ok(Self {
            certificate_renew_days: days,
            kubeconfig: args.kubeconfig.or(file.kubeconfig).unwrap_or_else(|| data_dir.join("kubeconfig")),
            data_dir,
            api_listen,
            bus_listen: args.bus_listen.or(file.bus_listen).unwrap_or_else(|| any(BUS_PORT)),
            rest_listen,
            leaf_listen,
            leaf_wss,
            api_urls: reached_at("https", Some(api_listen)),
            leaf_urls,
            names,
            advertise,
            nats_server: args.nats_server.or(file.nats_server).map(absolute).transpose()?,
            log_json,
        })
    }
}

/// The host of a URL where nodes reach this hub. One that names no port would be read with another scheme's.
fn host_of(url: &str) -> anyhow::Result<&str> {
    let place = ["https://", "tls://", "wss://"].iter().find_map(|scheme| url.strip_prefix(scheme));
    match place.and_then(|place| authority(place.trim_end_matches('/'))) {
        Some((host, Some(_))) => Ok(host),
        _ => bail!("EW-CONFIG: url {url:?} is none of https://HOST:PORT, tls://HOST:PORT, wss://HOST:PORT"),
    }
}

/// The listening address itself; if that is every address, this machine's name and loopback.
fn guess_addresses(listen: IpAddr) -> Vec<String> {
    if !listen.is_unspecified() {
        return vec![listen.to_string()];
    }
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim().to_owned();
    if name.is_empty() || name == "(none)" {
        vec!["127.0.0.1".into()]
    } else {
        vec![name, "127.0.0.1".into()]
    }
}

/// Programs are started in directories of their own.
pub fn absolute(path: PathBuf) -> anyhow::Result<PathBuf> {
    std::path::absolute(&path).with_context(|| format!("EW-CONFIG: {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_stronger_than_the_file() {
        let dir = std::env::temp_dir().join(format!("ew-hub-config-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("hub.toml");
        std::fs::write(&path, "data_dir = \"/a\"\nadvertise = [\"hub.example\"]\nlog_format = \"json\"\n")
            .unwrap();
        let args = Cli::parse_from(["cloud-hub", "--config", path.to_str().unwrap(), "--data-dir", "/b"]);
        let config = Config::load(args.run).unwrap();
        assert_eq!(config.data_dir, PathBuf::from("/b"));
        assert_eq!(config.advertise, ["hub.example"]);
        assert!(config.log_json);
        assert_eq!(config.leaf_urls, ["tls://hub.example:7422"]);
        assert_eq!(config.rest_listen, Some("0.0.0.0:9443".parse().unwrap()));
        for (text, want) in [("off", Ok(None)), ("127.0.0.1:1", Ok(Some(1))), ("on", Err(()))] {
            let args = Cli::parse_from(["cloud-hub", "--rest-listen", text]);
            let found = Config::load(args.run).map(|config| config.rest_listen.map(|at| at.port()));
            assert_eq!(found.map_err(|error| assert!(error.to_string().contains("rest_listen"))), want);
        }
        std::fs::write(&path, "data_dirr = \"/a\"\n").unwrap();
        let args = Cli::parse_from(["cloud-hub", "--config", path.to_str().unwrap()]);
        assert!(
            format!("{:#}", Config::load(args.run).unwrap_err()).contains("data_dirr"),
            "the typo is named"
        );
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn where_nodes_connect_is_each_name_with_each_port_or_what_was_given() {
        let load = |args: &[&str]| {
            let args = Cli::parse_from([&["cloud-hub", "--data-dir", "/d"], args].concat());
            Config::load(args.run)
        };
        let wss = ["--advertise", "a,2001:db8::1", "--leaf-wss", "0.0.0.0:443"];
        assert_eq!(
            load(&wss).unwrap().leaf_urls,
            ["tls://a:7422", "tls://[2001:db8::1]:7422", "wss://a:443", "wss://[2001:db8::1]:443"]
        );
        let given = load(&["--advertise", "a", "--url", "wss://lb.example:443,tls://b:9/"]).unwrap();
        assert_eq!(given.leaf_urls, ["tls://b:9", "wss://lb.example:443"]);
        assert_eq!(given.api_urls, ["https://a:6443"], "of this scheme none was given");
        assert_eq!(given.names, ["a", "lb.example", "b"], "the certificate is for all");
        for bad in ["https://a", "a:1", "nats://a:1", "wss://a/x"] {
            let error = load(&["--url", bad]).unwrap_err().to_string();
            assert!(error.starts_with("EW-CONFIG") && error.contains(bad), "{error}");
        }
    }
}
