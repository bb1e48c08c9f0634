//! Who listens already on the ports that a node has, or will have.
//!
//! Nothing is bound to find out: `/proc/net/tcp` lists every listener of this network namespace, and `/proc/<pid>/fd` says
//! whose it is.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use super::finding::{Check, Finding};

const PORTS: Check = Check("EW-CHECK-PORT", "ports");
const BUS: Check = Check("EW-CHECK-PORT", "bus port");
/// A socket that listens, in `/proc/net/tcp`.
const LISTENS: &str = "0A";
/// The node's own program, by its name in `/proc`.
const AGENT: &str = "edge-runtime";
/// Ports that are kept for what a node serves or is going to, each with what that is.
const KEPT: [(u16, &str); 4] = [
    (1883, "devices that speak MQTT"),
    (9060, "programs on the node that call by rules"),
    (9480, "pods that use the bus by HTTP"),
    (10550, "programs on the node that ask the Kubernetes API"),
];

/// One listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Where.
    pub at: SocketAddr,
    /// Number of its socket.
    inode: u64,
    /// Process ID and name, if we may see them.
    pub holder: Option<(u32, String)>,
}

/// Every listener on `bus_port`, or on one that is [`KEPT`].
pub fn listeners(bus_port: u16) -> Vec<Listener> {
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let mut found = parse(&(text("/proc/net/tcp") + &text("/proc/net/tcp6")));
    found.retain(|one| one.at.port() == bus_port || KEPT.iter().any(|(port, _)| *port == one.at.port()));
    if !found.is_empty() {
        name_holders(&mut found);
    }
    found
}

/// The process ID that the server of a node with that data directory left.
pub fn own_server(data_dir: &Path) -> Option<u32> {
    std::fs::read_to_string(data_dir.join("nats/nats-server.pid")).ok()?.trim().parse().ok()
}

fn parse(table: &str) -> Vec<Listener> {
    let line = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let at = address(fields.next()?)?;
        let listens = fields.nth(1)? == LISTENS;
        let inode = fields.nth(5)?.parse().ok()?;
        listens.then_some(Listener { at, inode, holder: None })
    };
    table.lines().filter_map(line).collect()
}

/// `0100007F:1F90`: the address in 32 bit words of the machine's own order, the port as it is read.
fn address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let words: Option<Vec<[u8; 4]>> = (0..address.len())
        .step_by(8)
        .map(|at| u32::from_str_radix(address.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes))
        .collect();
    let address = match words?.concat().as_slice() {
        bytes @ [_, _, _, _] => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        bytes => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)).to_canonical(),
    };
    Some(SocketAddr::new(address, port))
}

fn name_holders(listeners: &mut [Listener]) {
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        for file in std::fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten() {
            let Ok(target) = std::fs::read_link(file.path()) else { continue };
            let socket = target.to_str().and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']'));
            let Some(inode) = socket.and_then(|text| text.parse::<u64>().ok()) else { continue };
            for listener in listeners.iter_mut().filter(|l| l.inode == inode && l.holder.is_none()) {
                let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                listener.holder = Some((pid, name.trim().to_owned()));
            }
        }
    }
}

/// Judges them. The bus listens on the pods' `gateway` only; `own_server` may hold its port, and then a node runs here.
pub fn judge(
    listeners: &[Listener],
    bus_port: u16,
    gateway: Ipv4Addr,
    own_server: Option<u32>,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut free = Vec::new();
    let in_the_way = |one: &&Listener| {
        one.at.port() == bus_port && (one.at.ip().is_unspecified() || one.at.ip() == gateway)
    };
    match listeners.iter().find(in_the_way) {
        None => free.push(bus_port),
        Some(one) if own_server.is_some() && one.holder.as_ref().map(|(pid, _)| *pid) == own_server => {
            findings.push(BUS.ok(format!("{} is this node's own nats-server: a node runs here", one.at)));
        }
        Some(one) => findings.push(BUS.fail(
            format!("{} is taken by {}: the node's bus wants {gateway}:{bus_port}", one.at, holder(one)),
            "stop that, or give the node another port with --bus-port",
        )),
    }
    for (port, what) in KEPT {
        let held: Vec<&Listener> = listeners.iter().filter(|one| one.at.port() == port).collect();
        let Some(one) = held.first() else {
            free.push(port);
            continue;
        };
        if own_server.is_some() && one.holder.as_ref().is_some_and(|(_, name)| name == AGENT) {
            findings.push(PORTS.ok(format!("{} is this node's own, for {what}", one.at)));
            continue;
        }
        findings.push(PORTS.warn(
            format!("{} is taken by {}; {port} is kept for {what}", one.at, holder(one)),
            format!("{}, before the node is to serve {what}; pods do not need it", cure(one)),
        ));
    }
    if !free.is_empty() {
        free.sort_unstable();
        let list: Vec<String> = free.iter().map(u16::to_string).collect();
        findings.insert(
            0,
            PORTS.ok(format!("{} {} free", list.join(", "), if list.len() == 1 { "is" } else { "are" })),
        );
    }
    findings
}

fn holder(listener: &Listener) -> String {
    match &listener.holder {
        Some((pid, name)) => format!("{name} (pid {pid})"),
        None => "a process that only root may see".to_owned(),
    }
}

fn cure(listener: &Listener) -> String {
    let name = listener.holder.as_ref().map(|(_, name)| name.as_str()).unwrap_or_default();
    match name {
        "mosquitto" => "`systemctl disable --now mosquitto`".to_owned(),
        "edgecore" => {
            "`systemctl disable --now edgecore`: KubeEdge and a node of ours fight for one machine".to_owned()
        }
        "" => format!("run this as root to see whose it is (`ss -ltnp 'sport = {}'`)", listener.at.port()),
        name => format!("stop {name} or let it listen elsewhere"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 85, 0, 1);

    #[test]
    fn listeners_are_read_as_the_kernel_writes_them() {
        let table = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0
   1: 0200000A:1F91 0100000A:9999 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0 100 0 0 10 0
   2: 00000000000000000000000000000000:075B 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000  0  0 4713 1 0
   3: 0000000000000000FFFF00000100007F:075C 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000  0  0 4714 1 0
   4: XX:YY 0 0A
";
        let found: Vec<(String, u64)> = parse(table).iter().map(|l| (l.at.to_string(), l.inode)).collect();
        let want = [("127.0.0.1:8080", 4711), ("[::]:1883", 4713), ("127.0.0.1:1884", 4714)];
        assert_eq!(found, want.map(|(at, inode)| (at.to_owned(), inode)));
    }

    #[test]
    fn our_own_listener_is_found_with_its_holder() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let found = listeners(port);
        let ours = found.iter().find(|one| one.at.port() == port).unwrap();
        assert_eq!(ours.holder.as_ref().unwrap().0, std::process::id());
    }

    #[test]
    fn a_taken_port_names_its_holder() {
        let at = |address: &str, pid: u32, name: &str| Listener {
            at: address.parse().unwrap(),
            inode: 1,
            holder: (pid > 0).then(|| (pid, name.to_owned())),
        };
        let summary = |listeners: &[Listener], own| -> Vec<(Level, String)> {
            let found = judge(listeners, 4222, GATEWAY, own);
            found
                .into_iter()
                .map(|f| (f.level, f.found + if f.cure.is_empty() { "" } else { " | " } + &f.cure))
                .collect()
        };
        assert_eq!(summary(&[], None), [(Level::Ok, "1883, 4222, 9060, 9480, 10550 are free".to_owned())]);
        // Elsewhere is not in the way of the bus.
        assert_eq!(summary(&[at("127.0.0.1:4222", 7, "x"), at("10.85.9.1:4222", 7, "x")], None).len(), 1);
        for (listener, own, level, words) in [
            (
                at("0.0.0.0:4222", 7, "nats-server"),
                None,
                Level::Fail,
                "nats-server (pid 7): the node's bus wants 10.85.0.1:4222",
            ),
            (at("[::]:4222", 0, ""), Some(7), Level::Fail, "only root may see"),
            (at("10.85.0.1:4222", 7, "nats-server"), Some(8), Level::Fail, "--bus-port"),
            (at("10.85.0.1:4222", 7, "nats-server"), Some(7), Level::Ok, "a node runs here"),
            (at("127.0.0.1:1883", 9, "mosquitto"), None, Level::Warn, "systemctl disable --now mosquitto"),
            (at("127.0.0.1:10550", 9, "edgecore"), None, Level::Warn, "KubeEdge"),
            (at("[::]:9060", 0, ""), None, Level::Warn, "ss -ltnp 'sport = 9060'"),
            (at("[::]:9060", 3, "python3"), None, Level::Warn, "stop python3"),
            (at("10.85.0.1:9480", 3, "python3"), None, Level::Warn, "pods that use the bus by HTTP"),
            (at("10.85.0.1:9480", 3, "edge-runtime"), Some(9), Level::Ok, "this node's own"),
            (at("10.85.0.1:9480", 3, "edge-runtime"), None, Level::Warn, "stop edge-runtime"),
        ] {
            let found = summary(&[listener], own);
            assert_eq!((found.len(), found[1].0), (2, level), "{found:?}");
            assert!(found[1].1.contains(words), "{found:?}");
        }
    }

    #[test]
    fn the_kernels_table_is_read_whatever_it_holds() {
        let table = "  0: 0100007F:075B 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 77 1\n";
        crate::fuzz::try_bytes("the kernel's table", &[table.as_bytes().to_vec()], |bytes| {
            parse(&String::from_utf8_lossy(bytes));
        });
    }
}
