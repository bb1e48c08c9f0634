//! What the knocking at a hub's doors means: the API, the leaf's ports, whose certificates they show, and proxies.

use std::net::IpAddr;

use bus::proxy::{Proxy, with_port};
use bus::server::way::Way;
use rustls::pki_types::{CertificateDer, UnixTime};

use super::certificate::{self, Chain, Trust};
use super::door::{Answer, Door, HubFacts, LeafFacts, Reached};
use super::finding::{Check, Finding, Level};
use super::target::Leaf;

const NAME: Check = Check("EW-CHECK-NAME", "name");
const API: Check = Check("EW-CHECK-API", "api");
const API_TLS: Check = Check("EW-CHECK-TLS", "api tls");
const LEAF: Check = Check("EW-CHECK-LEAF", "leaf");
const LEAF_TLS: Check = Check("EW-CHECK-TLS", "leaf tls");
const LEAF_WSS: Check = Check("EW-CHECK-LEAF", "leaf wss");
const LEAF_WSS_TLS: Check = Check("EW-CHECK-TLS", "leaf wss tls");
const PROXY: Check = Check("EW-CHECK-PROXY", "proxy");

/// Digits of a fingerprint that are shown.
const FINGERPRINT_CHARS: usize = 16;
/// Variables that tell programs of a proxy.
pub const PROXY_VARIABLES: [&str; 8] = [
    "HTTPS_PROXY",
    "https_proxy",
    "HTTP_PROXY",
    "http_proxy",
    "ALL_PROXY",
    "all_proxy",
    "NO_PROXY",
    "no_proxy",
];

/// The hubs' APIs, each with its findings, and the authority by which the hub's other doors are judged.
pub fn apis(
    all: &[HubFacts],
    pin: Option<&str>,
    now: UnixTime,
) -> (Vec<Vec<Finding>>, Option<CertificateDer<'static>>) {
    let mut trusted = None;
    let mut one = |facts: &HubFacts| {
        let host = &facts.hub.host;
        if let Err(cause) = &facts.addresses {
            return vec![nameless(host, cause)];
        }
        let at = with_port(host, facts.hub.port);
        let mut findings = vec![api(&at, &facts.api)];
        if let Some(chain) = shown(&facts.api) {
            let trust = certificate::judge(&chain, host, pin, None, now);
            if trusted.is_none() && matches!(trust, Trust::Pinned | Trust::NotCompared(_)) {
                trusted = certificate::authority(&chain, pin);
            }
            findings.push(tls(API_TLS, &at, host, &trust));
        }
        findings
    };
    (all.iter().map(&mut one).collect(), trusted)
}

/// One address where nodes connect. `trusted`: see [`apis`]; this port does not send its authority along.
pub fn leaf(
    facts: &LeafFacts,
    trusted: Option<&CertificateDer<'static>>,
    pin: Option<&str>,
    now: UnixTime,
) -> Vec<Finding> {
    let Leaf { way, host, port } = &facts.leaf;
    if let Err(cause) = &facts.addresses {
        return vec![nameless(host, cause)];
    }
    let at = with_port(host, *port);
    let (check, check_tls) = match way {
        Way::Tls => (LEAF, LEAF_TLS),
        Way::Wss => (LEAF_WSS, LEAF_WSS_TLS),
    };
    let mut findings = vec![leaf_port(check, &at, &facts.door)];
    if let Some(chain) = shown(&facts.door) {
        let trust = match trusted {
            // Whose authority this is was said above.
            Some(authority) => match certificate::judge(&chain, host, pin, Some(authority), now) {
                Trust::NotCompared(_) => Some(Trust::Pinned),
                trust => Some(trust),
            },
            None => certificate::stranger(&chain),
        };
        findings.extend(trust.map(|trust| tls(check_tls, &at, host, &trust)));
    }
    findings
}

fn shown<T>(door: &Door<T>) -> Option<Chain> {
    door.shown.clone().and_then(Result::ok)
}

fn nameless(host: &str, cause: &str) -> Finding {
    NAME.fail(
        format!("{host} has no address here: {cause}"),
        "correct the name, or mend this machine's DNS (/etc/resolv.conf, /etc/hosts); a node needs it also behind a proxy",
    )
}

/// Of several addresses, some of which only the hub's own machine may know, a node needs one.
pub fn one_is_enough(groups: Vec<Vec<Finding>>) -> Vec<Finding> {
    let is_well = |findings: &Vec<Finding>| findings.iter().all(|finding| finding.level < Level::Fail);
    let one_is_well = groups.iter().any(is_well);
    let mut findings: Vec<Finding> = groups.into_iter().flatten().collect();
    for finding in findings.iter_mut().filter(|finding| one_is_well && finding.level == Level::Fail) {
        finding.level = Level::Warn;
        finding.cure = format!("none needed: another address of the hub is well; else {}", finding.cure);
    }
    findings
}

fn reached(at: &str, host_is: IpAddr, took_ms: u128) -> String {
    let address = host_is.to_string();
    let address = if at.contains(&address) { String::new() } else { format!(" ({address})") };
    format!("{at}{address} in {took_ms} ms")
}

fn closed(check: Check, at: &str, cause: &str, what: &str) -> Finding {
    // A proxy's refusal comes with its own cure.
    if let Some((cause, cure)) =
        cause.strip_prefix("EW-PROXY").and_then(|text| text.split_once(": ")?.1.split_once("; "))
    {
        return check.fail(cause, cure);
    }
    let found = format!("cannot connect to {at}: {cause}");
    let cure = if cause.contains("refused") {
        format!("is the hub running, and is this {what}? a firewall may also refuse: allow tcp out to {at}")
    } else if cause.contains("unreachable") {
        "give this machine a route there: an address, a gateway (`ip route`)".to_owned()
    } else {
        format!("let this machine out to tcp {at} in the firewalls between; no inbound port is needed")
    };
    check.fail(found, cure)
}

/// TCP is through, and then nothing, or not what it should be. `large`: it came to packets of full size.
fn dumb(check: Check, at: &str, cause: &str, large: bool, what: &str) -> Finding {
    let cure = match (cause.contains("nothing in"), large) {
        (true, true) => format!(
            "is this {what}? if it is, large packets get lost on the way: lower the MTU of this machine's \
             interface, or look for a firewall that holds TLS up"
        ),
        (true, false) => format!("is this {what}? if it is, a firewall or proxy in between holds it up"),
        (false, _) => format!("is this {what}? if it is, something in between answers in the hub's place"),
    };
    check.fail(format!("{at} takes connections and is no hub: {cause}"), cure)
}

fn api(at: &str, door: &Door<Answer>) -> Finding {
    let what = "the port of the hub's API (6443 unless it was told another)";
    match (&door.reached, &door.shown, &door.answer) {
        (Err(cause), ..) => closed(API, at, cause, what),
        (Ok(_), Some(Err(cause)), _) => dumb(API, at, &format!("no TLS, {cause}"), true, what),
        (Ok(_), _, Some(Err(cause))) => dumb(API, at, cause, true, what),
        (Ok(Reached { address, took_ms, .. }), ..) => {
            API.ok(format!("{}, outbound; no inbound port is needed", reached(at, *address, *took_ms)))
        }
    }
}

fn leaf_port(check: Check, at: &str, door: &Door<Option<String>>) -> Finding {
    let what = if check.1 == LEAF_WSS.1 {
        "the port that the hub was told with `--leaf-wss`"
    } else {
        "the hub's port for nodes (7422; --leaf-port if it was told another)"
    };
    match (&door.reached, &door.answer, &door.shown) {
        (Err(cause), ..) => closed(check, at, cause, what),
        (Ok(_), Some(Err(cause)), _) => dumb(check, at, cause, false, what),
        (Ok(_), _, Some(Err(cause))) => dumb(check, at, &format!("no TLS, {cause}"), true, what),
        (Ok(Reached { address, took_ms, .. }), answer, _) => {
            let version = match answer {
                Some(Ok(Some(version))) => format!(", nats-server {version}"),
                _ => String::new(),
            };
            check.ok(format!("{}, outbound{version}", reached(at, *address, *took_ms)))
        }
    }
}

fn tls(check: Check, at: &str, host: &str, trust: &Trust) -> Finding {
    let short = |print: &str| print.chars().take(FINGERPRINT_CHARS).collect::<String>() + "…";
    match trust {
        Trust::Pinned if check.1 != API_TLS.1 => check.ok("by the same authority as the API"),
        Trust::Pinned => check.ok("by the authority that the token names"),
        Trust::NotCompared(print) => check.ok(format!(
            "by a hub's authority, sha256 {}; give the join token instead of the address to compare it",
            short(print)
        )),
        Trust::Other(by, print) => check.fail(
            format!(
                "{at} shows a certificate by {by:?} (sha256 {}), not by the hub's authority",
                short(print)
            ),
            format!(
                "something in between re-signs TLS, or this is another hub: exempt {at} from TLS inspection; \
                 after a hub was set up anew, make a new token"
            ),
        ),
        Trust::WrongName => check.fail(
            format!("the hub's certificate is not for {host}"),
            format!("start the hub with `--advertise {host}`, or use a name that it advertises"),
        ),
        Trust::WrongTime(words) => check.fail(
            format!("the certificate is not good at this machine's time: {words}"),
            "set this machine's clock (see the check `clock`); else renew the hub's certificate",
        ),
        Trust::Broken(words) => check.fail(
            format!("{at} shows a certificate that cannot be used: {words}"),
            "see the hub's log, or what stands in between",
        ),
    }
}

/// `used`: the proxy that joining would take, and who names it. `set`: the variables that are set. `reached`: did it get to
/// the hub that way? `None` when no hub was named.
pub fn proxy(used: Option<(&Proxy, &str)>, set: &[(String, String)], reached: Option<bool>) -> Finding {
    let again = "run this again with the hub's address, which shows whether that works";
    if let Some((proxy, by)) = used {
        let through = format!("through {proxy} ({by}), as joining would go and then the node");
        return match reached {
            Some(true) => PROXY.ok(through),
            Some(false) => PROXY.fail(
                format!("{through}: it does not get there"),
                "see the other cures; past the proxy: `--proxy none`, here and for `edgewire join`",
            ),
            None => PROXY.warn(through, again),
        };
    }
    let names: Vec<&(String, String)> = set
        .iter()
        .filter(|(name, value)| !value.is_empty() && !name.eq_ignore_ascii_case("NO_PROXY"))
        .collect();
    let Some((name, value)) = names.first() else {
        return PROXY.ok("no variable names one; a node connects directly");
    };
    let is_set = format!("{name}={} is set, which a node does not use here", without_login(value));
    match reached {
        Some(true) => PROXY.ok(format!("{is_set}: it connects directly, and gets there")),
        Some(false) => PROXY.fail(
            format!("{is_set}, and directly it does not get there"),
            "if the way leads through a proxy: `--proxy http://HOST:PORT`, here and for `edgewire join`; else let this \
             machine out to the hub's ports",
        ),
        None => PROXY.warn(format!("{is_set}: it connects directly"), again),
    }
}

/// A proxy's URL may hold a password.
fn without_login(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").map_or(("", url), |(scheme, rest)| (scheme, rest));
    let rest = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    if scheme.is_empty() { rest.to_owned() } else { format!("{scheme}://{rest}") }
}

#[cfg(test)]
mod tests {
    use super::super::target::Hub;
    use super::*;
    use schemas::Timestamp;

    fn there() -> Result<Reached, String> {
        let address = "192.0.2.7".parse().unwrap();
        Ok(Reached { address, own: address, took_ms: 12, path_mtu: Some(1500) })
    }

    fn hub(api: Door<Answer>) -> HubFacts {
        HubFacts { hub: Hub { host: "hub.example".into(), port: 6443 }, addresses: Ok(vec![]), api }
    }

    fn leaf_at(way: Way, port: u16, door: Door<Option<String>>) -> LeafFacts {
        LeafFacts { leaf: Leaf { way, host: "hub.example".into(), port }, addresses: Ok(vec![]), door }
    }

    #[test]
    fn each_way_of_not_being_there_has_its_cure() {
        let closed = |cause: &str| Door { reached: Err(cause.to_owned()), answer: None, shown: None };
        let silent = || "it says nothing in 3 s".to_owned();
        for (door, found, cure) in [
            (closed("connection refused"), "cannot connect to hub.example:6443", "is the hub running"),
            (closed("no answer in 3 s"), "no answer in 3 s", "no inbound port is needed"),
            (closed("network is unreachable"), "unreachable", "`ip route`"),
            (
                Door { reached: there(), answer: None, shown: Some(Err(silent())) },
                "no TLS, it says nothing",
                "MTU",
            ),
            (
                Door { reached: there(), answer: None, shown: Some(Err("received corrupt message".into())) },
                "is no hub: no TLS, received corrupt",
                "is this the port",
            ),
            (
                Door { reached: there(), answer: Some(Err("status 404".into())), shown: Some(Ok(vec![])) },
                "is no hub: status 404",
                "in the hub's place",
            ),
        ] {
            let finding = api("hub.example:6443", &door);
            assert_eq!(finding.level, Level::Fail);
            assert!(finding.found.contains(found) && finding.cure.contains(cure), "{finding:?}");
        }
        for (door, found) in [
            (Door { reached: Err("connection refused".into()), answer: None, shown: None }, "cannot connect"),
            (
                Door { reached: there(), answer: Some(Err("it says \"SSH\"".into())), shown: None },
                "says \"SSH\"",
            ),
            (
                Door { reached: there(), answer: Some(Ok(None)), shown: Some(Err(silent())) },
                "no TLS, it says nothing",
            ),
        ] {
            let finding = leaf_port(LEAF, "hub.example:7422", &door);
            assert!(finding.level == Level::Fail && finding.found.contains(found), "{finding:?}");
        }
    }

    #[test]
    fn a_hub_without_a_name_is_one_finding() {
        let mut nameless = hub(Door { reached: Err(String::new()), answer: None, shown: None });
        nameless.addresses = Err("name or service not known".into());
        let door = Door { reached: Err(String::new()), answer: None, shown: None };
        let mut leaf_too = leaf_at(Way::Tls, 7422, door);
        leaf_too.addresses = nameless.addresses.clone();
        let (apis, _) = apis(&[nameless], None, UnixTime::now());
        for findings in [&apis[0], &leaf(&leaf_too, None, None, UnixTime::now())] {
            assert_eq!(findings.len(), 1);
            assert_eq!((findings[0].code, findings[0].level), ("EW-CHECK-NAME", Level::Fail));
        }
    }

    #[test]
    fn a_hub_that_is_there_is_well() {
        let answer = Answer { date: None, now: Timestamp(0) };
        let api = Door { reached: there(), answer: Some(Ok(answer)), shown: Some(Ok(vec![])) };
        let version = || Some("2.15.1".to_owned());
        let door = |said| Door { reached: there(), answer: Some(Ok(said)), shown: Some(Ok(vec![])) };
        let now = UnixTime::now();
        let (apis, _) = apis(&[hub(api)], None, now);
        let ports = [leaf_at(Way::Tls, 7422, door(version())), leaf_at(Way::Wss, 443, door(None))];
        let ports = ports.iter().flat_map(|facts| leaf(facts, None, None, now));
        let findings: Vec<Finding> = apis.into_iter().flatten().chain(ports).collect();
        let shown: Vec<(&str, Level)> =
            findings.iter().map(|finding| (finding.check, finding.level)).collect();
        // The certificate that is missing here is judged in its own file.
        let well = |name| (name, Level::Ok);
        assert_eq!(shown, [well("api"), ("api tls", Level::Fail), well("leaf"), well("leaf wss")]);
        assert_eq!(
            findings[0].found,
            "hub.example:6443 (192.0.2.7) in 12 ms, outbound; no inbound port is needed"
        );
        assert_eq!(findings[2].found, "hub.example:7422 (192.0.2.7) in 12 ms, outbound, nats-server 2.15.1");
    }

    #[test]
    fn one_address_of_several_is_enough() {
        let (good, bad) = (vec![API.ok("")], vec![API.fail("gone", "mend it"), LEAF.ok("")]);
        let levels = |hubs| one_is_enough(hubs).iter().map(|finding| finding.level).collect::<Vec<_>>();
        assert_eq!(levels(vec![good.clone(), bad.clone()]), [Level::Ok, Level::Warn, Level::Ok]);
        assert_eq!(levels(vec![bad.clone(), bad.clone()])[0], Level::Fail);
        assert_eq!(levels(vec![]), []);
        assert!(one_is_enough(vec![bad, good])[0].cure.starts_with("none needed: another address"));
    }

    #[test]
    fn trust_is_told_with_its_cure() {
        let other = Trust::Other("Middlebox".into(), "ab".repeat(32));
        for (trust, level, found, cure) in [
            (Trust::Pinned, Level::Ok, "the authority that the token names", ""),
            (Trust::NotCompared("cd".repeat(32)), Level::Ok, "sha256 cdcdcdcdcdcdcdcd…", ""),
            (other, Level::Fail, "by \"Middlebox\" (sha256 abababababababab…)", "TLS inspection"),
            (Trust::WrongName, Level::Fail, "not for hub", "--advertise hub"),
            (Trust::WrongTime("expired".into()), Level::Fail, "expired", "clock"),
            (Trust::Broken("x".into()), Level::Fail, "cannot be used: x", "log"),
        ] {
            let finding = tls(API_TLS, "hub:6443", "hub", &trust);
            assert_eq!(finding.level, level);
            assert!(finding.found.contains(found) && finding.cure.contains(cure), "{finding:?}");
        }
    }

    #[test]
    fn a_proxy_matters_when_the_direct_way_is_shut() {
        let set = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
        for (set, direct, level, found) in [
            (vec![], Some(false), Level::Ok, "no variable names one"),
            (set("HTTPS_PROXY", ""), None, Level::Ok, "no variable"),
            (set("NO_PROXY", "*"), None, Level::Ok, "no variable"),
            (
                set("HTTPS_PROXY", "http://me:hush@proxy:3128"),
                Some(true),
                Level::Ok,
                "=http://proxy:3128 is set",
            ),
            (set("https_proxy", "me:hush@proxy"), Some(false), Level::Fail, "https_proxy=proxy is set"),
            (set("ALL_PROXY", "socks5://p"), None, Level::Warn, "ALL_PROXY=socks5://p"),
        ] {
            let finding = proxy(None, &set, direct);
            assert_eq!(finding.level, level, "{finding:?}");
            assert!(finding.found.contains(found) && !finding.found.contains("hush"), "{finding:?}");
        }
        let used = Proxy::parse("http://me:hush@proxy:3128").unwrap();
        for (reached, level) in [(Some(true), Level::Ok), (Some(false), Level::Fail), (None, Level::Warn)] {
            let finding = proxy(Some((&used, "HTTPS_PROXY")), &[], reached);
            assert!(finding.found.starts_with("through http://proxy:3128 (HTTPS_PROXY)"), "{finding:?}");
            assert_eq!(finding.level, level);
        }
    }

    #[test]
    fn what_a_proxy_says_is_told_with_its_own_cure() {
        let cause = "EW-PROXY-REFUSED: the proxy http://p:1 makes no connection to hub:7422: HTTP/1.1 403 Forbidden; have it \
                     allow CONNECT";
        let door = Door { reached: Err(cause.to_owned()), answer: None, shown: None };
        let finding = leaf_port(LEAF, "hub:7422", &door);
        assert!(
            finding.found.ends_with("403 Forbidden") && finding.found.starts_with("the proxy"),
            "{finding:?}"
        );
        assert_eq!(finding.cure, "have it allow CONNECT");
    }
}
