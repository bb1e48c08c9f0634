//! `edgewire check`: would this machine be a node of that hub? Run before joining; each finding comes with its cure.
//!
//! Facts are gathered first, all at once and with a bound on every wait; then pure functions judge them. Nothing on the
//! machine is changed: files are read, the hub is knocked at, and programs are asked for their version. One file for each
//! group of checks; `finding.rs` has what a finding is, and docs/checking.md what each means.

mod certificate;
mod cgroup;
mod clock;
mod door;
mod finding;
mod kernel;
mod network;
mod ports;
mod programs;
mod reach;
mod storage;
mod target;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use bus::proxy::Proxy;
use clap::Args;
use futures::future::join_all;
use rustls::pki_types::UnixTime;
use schemas::Timestamp;

use crate::failure::{Failure, Outcome};
use crate::screen::Screen;
use cgroup::CgroupFacts;
use clock::ClockFacts;
use door::{HubFacts, LeafFacts};
use finding::{Check, Finding, Level};
use kernel::KernelFacts;
use network::{Net, NetworkFacts};
use storage::DiskFacts;
use target::Target;

/// The setting of a proxy.
pub const PROXY_VARIABLE: &str = "EDGEWIRE_PROXY";
/// What is read of this machine is there after so long, or held up by a file system that is gone.
const MACHINE_TIMEOUT: Duration = Duration::from_secs(5);

/// Arguments of `edgewire check`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  edgewire check                                  this machine only
  edgewire check https://hub.example:6443         and the way to that hub
  edgewire check ew1.…                            and whether it is the hub that made the token
  edgewire check ew1.… --proxy http://proxy:3128  through a proxy, as joining would go

Nothing is changed, and nothing secret is sent but a proxy's login to the proxy. Exit code: 0 nothing fails, 1 something does.")]
pub struct CheckArgs {
    /// The hub: https://HOST:PORT, HOST:PORT or HOST, or a join token [default: look at this machine only]
    #[arg(value_name = "HUB", value_parser = target::parse)]
    hub: Option<Target>,
    /// The hub's port for nodes [default: as the token tells, else 7422]
    #[arg(long, value_name = "PORT")]
    leaf_port: Option<u16>,
    /// HTTP proxy on the way to the hub, as `edgewire join` takes it; `none` for none [default: HTTPS_PROXY, as NO_PROXY
    /// allows]
    #[arg(long, env = PROXY_VARIABLE, value_name = "URL", hide_env_values = true)]
    proxy: Option<String>,
    /// A JSON array
    #[arg(long)]
    json: bool,
    /// Where the node would keep what it has
    #[arg(
        long,
        env = "EDGEWIRE_DATA_DIR",
        value_name = "DIR",
        default_value = "/var/lib/edgewire",
        help_heading = "The node"
    )]
    data_dir: PathBuf,
    /// Port that the node's own bus would have
    #[arg(
        long,
        env = "EDGEWIRE_BUS_PORT",
        value_name = "PORT",
        default_value_t = 4222,
        help_heading = "The node"
    )]
    bus_port: u16,
    /// Addresses that its pods would have
    #[arg(long, env = "EDGEWIRE_POD_CIDR", value_name = "CIDR", default_value = "10.85.0.0/24", value_parser = Net::parse, help_heading = "The node")]
    pod_cidr: Net,
    /// Bridge that its pods would be joined to
    #[arg(
        long,
        env = "EDGEWIRE_BRIDGE",
        value_name = "NAME",
        default_value = "edgewire0",
        help_heading = "The node"
    )]
    bridge: String,
}

/// Everything that is read of this machine.
struct Machine {
    kernel: KernelFacts,
    cgroup: CgroupFacts,
    disk: DiskFacts,
    meminfo: String,
    status: String,
    network: NetworkFacts,
    listeners: Vec<ports::Listener>,
    own_server: Option<u32>,
    keeps_time: bool,
}

impl Machine {
    fn read(data_dir: PathBuf, bus_port: u16) -> Self {
        let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        Self {
            kernel: KernelFacts::read(),
            cgroup: CgroupFacts::read(),
            disk: DiskFacts::read(&data_dir),
            meminfo: text("/proc/meminfo"),
            status: text("/proc/self/status"),
            network: NetworkFacts::read(),
            listeners: ports::listeners(bus_port),
            own_server: ports::own_server(&data_dir),
            keeps_time: clock::keeps_time(),
        }
    }
}

/// Runs it.
pub async fn run(args: CheckArgs, screen: &mut Screen) -> Outcome<()> {
    let (data_dir, bus_port) = (args.data_dir.clone(), args.bus_port);
    let reading = tokio::task::spawn_blocking(move || Machine::read(data_dir, bus_port));
    let target = args.hub.as_ref();
    let proxy = proxy(args.proxy.as_deref(), target)?;
    let through = proxy.as_ref().map(|(proxy, _)| proxy);
    let knocking = join_all(
        target.into_iter().flat_map(|target| &target.hubs).map(|hub| door::knock(hub.clone(), through)),
    );
    let leafs = target.map(|target| target.leafs(args.leaf_port)).unwrap_or_default();
    let knocking_leafs = join_all(leafs.into_iter().map(|leaf| door::knock_leaf(leaf, through)));
    // On a thread of its own: starting programs takes a while, and would be measured as the hub's distance.
    let here = tokio::runtime::Handle::current();
    let asking = tokio::task::spawn_blocking(move || here.block_on(programs::all()));
    let (machine, hubs, leafs, programs) =
        tokio::join!(tokio::time::timeout(MACHINE_TIMEOUT, reading), knocking, knocking_leafs, asking);

    let mut findings = of_hubs(target, &hubs, &leafs, proxy.as_ref());
    match machine {
        Ok(Ok(machine)) => findings.extend(of_machine(&args, &machine, &hubs, &leafs)),
        _ => findings.push(Check("EW-CHECK-DISK", "disk").fail(
            format!("{} does not answer in {} s", args.data_dir.display(), MACHINE_TIMEOUT.as_secs()),
            "a file system that is gone holds it up (`cat /proc/mounts`): unmount it, or give another --data-dir",
        )),
    }
    findings.extend(programs.unwrap_or_default());

    if args.json {
        screen.json(&finding::as_json(&findings)).await?;
    } else {
        screen.print(&finding::render(&findings, screen.colour)).await?;
    }
    match finding::count(&findings, Level::Fail) {
        0 => {
            if target.is_some_and(|target| target.pin.is_some()) {
                eprintln!("edgewire: nothing fails; next: `edgewire join` with this token");
            }
            Ok(())
        }
        failed => Err(Failure::new(
            "EW-CHECK-FAILED",
            format!("{failed} of {} checks failed", findings.len()),
            "follow the cure of each, and check again before joining",
        )),
    }
}

/// The proxy that joining would take, and who names it.
fn proxy(given: Option<&str>, target: Option<&Target>) -> Outcome<Option<(Proxy, &'static str)>> {
    let apis = target.into_iter().flat_map(|target| &target.hubs).map(|hub| &hub.host);
    let leafs = target.into_iter().flat_map(|target| &target.leafs).map(|leaf| &leaf.host);
    let hosts: Vec<String> = apis.chain(leafs).cloned().collect();
    let found = match given.filter(|text| !text.is_empty()) {
        Some(text) => Proxy::setting(text).map(|proxy| Some((proxy?, "as given"))),
        None => Proxy::of_environment(&hosts, |name| std::env::var(name).ok()),
    };
    found.map_err(|error| {
        let text = error.to_string();
        let (cause, cure) = text.split_once("; ").unwrap_or((&text, ""));
        Failure::new("EW-PROXY", cause.trim_start_matches("EW-PROXY: "), cure)
    })
}

fn of_hubs(
    target: Option<&Target>,
    hubs: &[HubFacts],
    leafs: &[LeafFacts],
    proxy: Option<&(Proxy, &str)>,
) -> Vec<Finding> {
    let pin = target.and_then(|target| target.pin.as_deref());
    let now = UnixTime::now();
    let (apis, trusted) = reach::apis(hubs, pin, now);
    let mut findings = reach::one_is_enough(apis);
    let ports = leafs.iter().map(|facts| reach::leaf(facts, trusted.as_ref(), pin, now)).collect();
    findings.extend(reach::one_is_enough(ports));
    let set = reach::PROXY_VARIABLES
        .iter()
        .filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?)));
    let reached = hubs.iter().any(|facts| facts.api.reached.is_ok())
        && leafs.iter().any(|facts| facts.door.reached.is_ok());
    let used = proxy.map(|(proxy, by)| (proxy, *by));
    findings.push(reach::proxy(used, &set.collect::<Vec<_>>(), (!hubs.is_empty()).then_some(reached)));
    findings
}

fn of_machine(args: &CheckArgs, machine: &Machine, hubs: &[HubFacts], leafs: &[LeafFacts]) -> Vec<Finding> {
    let Machine { kernel, cgroup, disk, meminfo, status, network, listeners, own_server, keeps_time } =
        machine;
    let answers = hubs.iter().filter_map(|facts| facts.api.answer.as_ref()?.as_ref().ok());
    let compared = answers.filter_map(|answer| Some((answer.date?, answer.now))).next();
    let named = hubs.iter().map(|facts| &facts.addresses).chain(leafs.iter().map(|facts| &facts.addresses));
    let ways =
        hubs.iter().map(|facts| &facts.api.reached).chain(leafs.iter().map(|facts| &facts.door.reached));
    let reached = ways.clone().find_map(|reached| reached.as_ref().ok());
    // A proxy has to stay reachable too.
    let met = ways.filter_map(|reached| Some(reached.as_ref().ok()?.address));
    let addresses: Vec<IpAddr> =
        named.filter_map(|found| found.as_ref().ok()).flatten().copied().chain(met).collect();

    let mut findings: Vec<Finding> = network::mtu(network, reached).into_iter().collect();
    findings.push(clock::judge(ClockFacts { now: Timestamp::now(), hub: compared, keeps_time: *keeps_time }));
    findings.push(programs::user(status));
    findings.extend(kernel::features(kernel));
    findings.push(cgroup::judge(cgroup));
    findings.push(kernel::forwarding(kernel));
    findings.push(storage::disk(disk));
    findings.push(storage::memory(meminfo));
    findings.extend(ports::judge(listeners, args.bus_port, args.pod_cidr.gateway(), *own_server));
    findings.extend(network::bridge(network, &args.bridge, args.pod_cidr));
    findings.push(network::pod_network(network, &args.bridge, args.pod_cidr, &addresses));
    findings
}
