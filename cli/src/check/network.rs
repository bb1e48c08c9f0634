//! Interfaces, routes and bridges: is there room for the pods' network, and do large packets get to the hub?

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use nix::ifaddrs::getifaddrs;

use super::door::Reached;
use super::finding::{Check, Finding};

const MTU: Check = Check("EW-CHECK-MTU", "mtu");
const BRIDGE: Check = Check("EW-CHECK-BRIDGE", "bridge");
const POD_NET: Check = Check("EW-CHECK-PODNET", "pod network");

/// What IPv6 demands of every link; below it tunnels and TLS begin to fail.
const MTU_MIN: u32 = 1280;
/// Where another platform's pods are joined.
const OTHER_CNI: [&str; 6] = ["cni0", "cbr0", "kube-bridge", "flannel.1", "nerdctl0", "podman0"];

/// An IPv4 network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Net {
    /// Its first address.
    pub first: Ipv4Addr,
    /// Bits of the prefix.
    pub prefix: u8,
}

impl Net {
    /// The network of `prefix` bits that holds `address`.
    pub fn of(address: Ipv4Addr, prefix: u8) -> Self {
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
        Self { first: Ipv4Addr::from(u32::from(address) & mask), prefix: prefix.min(32) }
    }

    /// Reads `a.b.c.d/n`, n from 8 to 29, as a node's --pod-cidr is read.
    pub fn parse(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('/').and_then(|(address, prefix)| {
            Some((address.parse::<Ipv4Addr>().ok()?, prefix.parse::<u8>().ok()?))
        });
        match parsed {
            Some((address, prefix)) if (8..=29).contains(&prefix) => Ok(Self::of(address, prefix)),
            _ => Err("not an IPv4 network such as 10.85.0.0/24 (prefix 8 to 29)".to_owned()),
        }
    }

    /// The address after the first: the pods' gateway.
    pub fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.first).wrapping_add(1))
    }

    fn overlaps(self, other: Self) -> bool {
        let prefix = self.prefix.min(other.prefix);
        Self::of(self.first, prefix) == Self::of(other.first, prefix)
    }
}

impl std::fmt::Display for Net {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix)
    }
}

/// One interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its addresses, IPv4 with their prefix.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Is it a bridge?
    pub bridge: bool,
    /// Its largest packet.
    pub mtu: Option<u32>,
}

/// One route: through which interface, to where.
pub type Route = (String, Net);

/// What there is.
#[derive(Debug, Clone, Default)]
pub struct NetworkFacts {
    /// All interfaces.
    pub interfaces: Vec<Interface>,
    /// The main table.
    pub routes: Vec<Route>,
}

impl NetworkFacts {
    /// Reads them.
    pub fn read() -> Self {
        let mut interfaces: Vec<Interface> = Vec::new();
        for found in getifaddrs().into_iter().flatten() {
            let at = interfaces.iter().position(|one| one.name == found.interface_name);
            if at.is_none() {
                let dir = Path::new("/sys/class/net").join(&found.interface_name);
                let mtu = std::fs::read_to_string(dir.join("mtu")).ok();
                interfaces.push(Interface {
                    // One that this view of /sys does not show is taken for what it is named after.
                    bridge: !dir.exists() || dir.join("bridge").exists(),
                    mtu: mtu.and_then(|text| text.trim().parse().ok()),
                    name: found.interface_name.clone(),
                    addresses: Vec::new(),
                });
            }
            let Some(one) = interfaces.iter_mut().find(|one| one.name == found.interface_name) else {
                continue;
            };
            let address = found.address.as_ref();
            let mask = found.netmask.as_ref().and_then(|mask| mask.as_sockaddr_in()).map(|mask| mask.ip());
            let prefix = mask.map_or(32, |mask| u8::try_from(u32::from(mask).count_ones()).unwrap_or(32));
            if let Some(v4) = address.and_then(|address| address.as_sockaddr_in()) {
                one.addresses.push((IpAddr::V4(v4.ip()), prefix));
            } else if let Some(v6) = address.and_then(|address| address.as_sockaddr_in6()) {
                one.addresses.push((IpAddr::V6(v6.ip()), 128));
            }
        }
        let routes = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
        Self { interfaces, routes: parse_routes(&routes) }
    }
}

fn parse_routes(table: &str) -> Vec<Route> {
    let word = |text: &str| u32::from_str_radix(text, 16).ok().map(|word| Ipv4Addr::from(word.to_ne_bytes()));
    let line = |line: &str| {
        let mut fields = line.split_whitespace();
        let (name, first) = (fields.next()?, word(fields.next()?)?);
        let mask = word(fields.nth(5)?)?;
        let prefix = u8::try_from(u32::from(mask).count_ones()).ok()?;
        Some((name.to_owned(), Net::of(first, prefix)))
    };
    table.lines().skip(1).filter_map(line).collect()
}

/// Do large packets get to the hub? Without a hub: out of the interface that most goes out of.
pub fn mtu(facts: &NetworkFacts, reached: Option<&Reached>) -> Option<Finding> {
    let default = || facts.routes.iter().find(|(_, net)| net.prefix == 0).map(|(name, _)| name.as_str());
    let of = |own: IpAddr| facts.interfaces.iter().find(|one| one.addresses.iter().any(|(ip, _)| *ip == own));
    let interface = match reached {
        Some(reached) => of(reached.own),
        None => facts.interfaces.iter().find(|one| Some(one.name.as_str()) == default()),
    };
    let Some(interface) = interface else {
        return reached.is_none().then(|| {
            MTU.warn(
                "there is no default route: this machine reaches its own networks only",
                "give it a gateway (`ip route add default via …`), unless the hub is on one of these",
            )
        });
    };
    let Interface { name, mtu, .. } = interface;
    let path = reached.and_then(|reached| reached.path_mtu);
    let smallest = path.into_iter().chain(*mtu).min()?;
    let found = match (mtu, path) {
        (Some(mtu), Some(path)) if path < *mtu => format!("{name} has {mtu}, the way to the hub {path}"),
        (Some(mtu), _) => format!("{name} has {mtu}"),
        (None, _) => format!("{smallest} through {name}"),
    };
    Some(if smallest < MTU_MIN {
        MTU.warn(
            format!("{found}: less than {MTU_MIN}"),
            format!(
                "raise it on {name} (`ip link set {name} mtu 1500`), or on the tunnel or VPN it goes through"
            ),
        )
    } else {
        MTU.ok(found)
    })
}

/// Is the pods' bridge free, or the node's own? And what else joins containers here?
pub fn bridge(facts: &NetworkFacts, name: &str, pods: Net) -> Vec<Finding> {
    let gateway = IpAddr::V4(pods.gateway());
    let rename = "give the node another with --bridge";
    let ours = facts.interfaces.iter().find(|one| one.name == name);
    let mut findings = vec![match ours {
        None => BRIDGE.ok(format!("{name} is free")),
        Some(one) if !one.bridge => BRIDGE
            .fail(format!("{name} is an interface of another kind"), format!("{rename}, or rename that")),
        Some(one) => match one.addresses.iter().find(|(ip, _)| ip.is_ipv4()) {
            Some((ip, prefix)) if *ip == gateway && *prefix == pods.prefix => {
                BRIDGE.ok(format!("{name} is there with {gateway}: a node runs here, or did"))
            }
            None => BRIDGE.ok(format!("{name} is there without an address: the node gives it one")),
            Some((ip, prefix)) => BRIDGE.fail(
                format!("{name} is there with {ip}/{prefix}, not {gateway}/{}", pods.prefix),
                format!("if nothing uses it any more: `ip link del {name}`; else {rename}"),
            ),
        },
    }];
    let others: Vec<String> = facts
        .interfaces
        .iter()
        .filter(|one| OTHER_CNI.contains(&one.name.as_str()))
        .map(|one| match one.addresses.first() {
            Some((ip, prefix)) => format!("{} ({ip}/{prefix})", one.name),
            None => one.name.clone(),
        })
        .collect();
    if !others.is_empty() {
        findings.push(BRIDGE.warn(
            format!("another container platform has {}", others.join(", ")),
            "stop that platform's agent if it is no longer wanted, and `ip link del` what it left; both can run \
             if their networks, ports and memory do not meet",
        ));
    }
    findings
}

/// Does anything else use the pods' addresses? `hubs`: which must stay reachable.
pub fn pod_network(facts: &NetworkFacts, name: &str, pods: Net, hubs: &[IpAddr]) -> Finding {
    let taken = taken(facts, name);
    let host = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => Some(Net::of(*ip, 32)),
        IpAddr::V6(_) => None,
    };
    let hubs: Vec<Net> = hubs.iter().filter_map(host).collect();
    let is_free = |net: Net| {
        !taken.iter().any(|(_, other)| net.overlaps(*other)) && !hubs.iter().any(|hub| net.overlaps(*hub))
    };
    let cure = || {
        let mut other = (85..=254).map(|n| Net::of(Ipv4Addr::new(10, n, 0, 0), 24));
        match other.find(|net| is_free(*net)) {
            Some(net) => format!("run the node with --pod-cidr {net}, which is free here"),
            None => "run the node with a --pod-cidr that nothing here uses".to_owned(),
        }
    };
    if let Some(hub) = hubs.iter().find(|hub| pods.overlaps(**hub)) {
        return POD_NET.fail(format!("the hub's address {} is within the pods' {pods}", hub.first), cure());
    }
    match taken.iter().find(|(_, other)| pods.overlaps(*other)) {
        Some((by, other)) => POD_NET.fail(format!("{pods} overlaps {other} of {by}"), cure()),
        None => POD_NET.ok(format!("{pods} is free")),
    }
}

/// Networks of others: their routes, and addresses of interfaces that are down.
fn taken(facts: &NetworkFacts, ours: &str) -> Vec<Route> {
    let routes = facts.routes.iter().filter(|(by, net)| by != ours && net.prefix > 0).cloned();
    let addresses = facts.interfaces.iter().filter(|one| one.name != ours).flat_map(|one| {
        let nets = one.addresses.iter().filter_map(|(ip, prefix)| match ip {
            IpAddr::V4(ip) => Some(Net::of(*ip, *prefix)),
            IpAddr::V6(_) => None,
        });
        nets.map(|net| (one.name.clone(), net))
    });
    routes.chain(addresses).collect()
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    fn net(text: &str) -> Net {
        Net::parse(text).unwrap()
    }

    fn interface(name: &str, address: &str, bridge: bool, mtu: u32) -> Interface {
        let addresses =
            address.split_once('/').map(|(ip, prefix)| (ip.parse().unwrap(), prefix.parse().unwrap()));
        Interface { name: name.into(), addresses: addresses.into_iter().collect(), bridge, mtu: Some(mtu) }
    }

    fn machine(more: &[Interface]) -> NetworkFacts {
        let routes = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
                      eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                      eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        let mut interfaces = vec![interface("eth0", "192.0.2.2/24", false, 1500)];
        interfaces.extend_from_slice(more);
        NetworkFacts { interfaces, routes: parse_routes(routes) }
    }

    #[test]
    fn routes_and_networks_are_read() {
        assert_eq!(
            machine(&[]).routes,
            [
                ("eth0".to_owned(), Net::of(Ipv4Addr::UNSPECIFIED, 0)),
                ("eth0".to_owned(), net("192.0.2.0/24"))
            ]
        );
        assert_eq!(
            (net("10.85.3.7/24").to_string(), net("10.85.3.7/24").gateway().to_string()),
            ("10.85.3.0/24".into(), "10.85.3.1".into())
        );
        for bad in ["", "10.0.0.0", "10.0.0.0/33", "10.0.0.0/30", "x/24"] {
            assert!(Net::parse(bad).is_err(), "{bad}");
        }
        assert!(
            net("10.0.0.0/8").overlaps(net("10.85.0.0/24"))
                && !net("10.85.1.0/24").overlaps(net("10.85.0.0/24"))
        );
    }

    #[test]
    fn this_machine_has_a_loopback() {
        let facts = NetworkFacts::read();
        let lo = facts.interfaces.iter().find(|one| one.name == "lo").unwrap();
        assert!(lo.addresses.contains(&(IpAddr::V4(Ipv4Addr::LOCALHOST), 8)), "{lo:?}");
    }

    #[test]
    fn small_packets_are_told() {
        let reached = |own: &str, path_mtu| Reached {
            address: "192.0.2.7".parse().unwrap(),
            own: own.parse().unwrap(),
            took_ms: 1,
            path_mtu,
        };
        let vpn = machine(&[interface("wg0", "10.9.0.2/24", false, 1200)]);
        for (reached, want) in [
            (Some(reached("192.0.2.2", Some(1500))), Some((Level::Ok, "eth0 has 1500"))),
            (Some(reached("192.0.2.2", None)), Some((Level::Ok, "eth0 has 1500"))),
            (
                Some(reached("192.0.2.2", Some(1000))),
                Some((Level::Warn, "the way to the hub 1000: less than 1280")),
            ),
            (Some(reached("10.9.0.2", Some(1200))), Some((Level::Warn, "wg0 has 1200"))),
            (Some(reached("198.51.100.1", Some(1500))), None),
            (None, Some((Level::Ok, "eth0 has 1500"))),
        ] {
            let finding = mtu(&vpn, reached.as_ref());
            assert_eq!(finding.as_ref().map(|f| f.level), want.map(|(level, _)| level), "{finding:?}");
            assert!(finding.is_none_or(|f| f.found.contains(want.unwrap().1)));
        }
        let alone = mtu(&NetworkFacts::default(), None).unwrap();
        assert!(alone.level == Level::Warn && alone.found.contains("no default route"));
    }

    #[test]
    fn a_bridge_is_free_or_the_nodes_own() {
        let pods = net("10.85.0.0/24");
        for (interfaces, levels, words) in [
            (vec![], vec![Level::Ok], "edgewire0 is free"),
            (vec![interface("edgewire0", "10.85.0.1/24", true, 1500)], vec![Level::Ok], "a node runs here"),
            (vec![interface("edgewire0", "", true, 1500)], vec![Level::Ok], "without an address"),
            (vec![interface("edgewire0", "10.9.0.1/24", true, 1500)], vec![Level::Fail], "not 10.85.0.1/24"),
            (vec![interface("edgewire0", "10.85.0.1/24", false, 1500)], vec![Level::Fail], "of another kind"),
            (vec![interface("docker0", "172.17.0.1/16", true, 1500)], vec![Level::Ok], "edgewire0 is free"),
            (
                vec![interface("cni0", "10.244.0.1/24", true, 1500)],
                vec![Level::Ok, Level::Warn],
                "cni0 (10.244.0.1/24)",
            ),
        ] {
            let findings = bridge(&machine(&interfaces), "edgewire0", pods);
            assert_eq!(findings.iter().map(|f| f.level).collect::<Vec<_>>(), levels, "{findings:?}");
            assert!(findings.last().unwrap().found.contains(words), "{findings:?}");
        }
    }

    #[test]
    fn pods_get_addresses_that_nobody_has() {
        let pods = net("10.85.0.0/24");
        let hub = |ip: &str| vec![ip.parse().unwrap()];
        for (interfaces, hubs, level, words) in [
            (vec![], vec![], Level::Ok, "10.85.0.0/24 is free"),
            (vec![], hub("2001:db8::1"), Level::Ok, "is free"),
            (vec![interface("edgewire0", "10.85.0.1/24", true, 1500)], vec![], Level::Ok, "is free"),
            (
                vec![interface("cni0", "10.85.0.1/16", true, 1500)],
                vec![],
                Level::Fail,
                "overlaps 10.85.0.0/16 of cni0",
            ),
            (vec![], hub("10.85.0.9"), Level::Fail, "hub's address 10.85.0.9 is within"),
        ] {
            let finding = pod_network(&machine(&interfaces), "edgewire0", pods, &hubs);
            assert!(finding.level == level && finding.found.contains(words), "{finding:?}");
            assert_eq!(level == Level::Fail, finding.cure.contains("--pod-cidr 10.86.0.0/24"), "{finding:?}");
        }
    }
}
