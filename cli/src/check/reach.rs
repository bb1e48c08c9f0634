//! What the knocking at a hub's doors means: the API, the leaf's port, whose certificates they show, and proxies.

use std::net::IpAddr;

use rustls::pki_types::UnixTime;

use super::certificate::{self, Chain, Trust};
use super::door::{Answer, Door, HubFacts, Reached};
use super::finding::{Check, Finding, Level};
use super::target::authority;

const NAME: Check = Check("EW-CHECK-NAME", "name");
const API: Check = Check("EW-CHECK-API", "api");
const API_TLS: Check = Check("EW-CHECK-TLS", "api tls");
const LEAF: Check = Check("EW-CHECK-LEAF", "leaf");
const LEAF_TLS: Check = Check("EW-CHECK-TLS", "leaf tls");
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

/// One hub.
pub fn hub(facts: &HubFacts, pin: Option<&str>, now: UnixTime) -> Vec<Finding> {
    let host = &facts.hub.host;
    if let Err(cause) = &facts.addresses {
        let cure = "correct the name, or mend this machine's DNS (/etc/resolv.conf, /etc/hosts)";
        return vec![NAME.fail(format!("{host} has no address here: {cause}"), cure)];
    }
    let (api_at, leaf_at) = (authority(host, facts.hub.port), authority(host, facts.leaf_port));
    let mut findings = vec![api(&api_at, &facts.api)];
    let shown = |chain: &Option<Result<Chain, String>>| chain.clone().and_then(Result::ok);
    // The leaf's port does not send its authority along: the API's is taken for it, if it is the right one.
    let mut trusted = None;
    if let Some(chain) = shown(&facts.api.shown) {
        let trust = certificate::judge(&chain, host, pin, None, now);
        if matches!(trust, Trust::Pinned | Trust::NotCompared(_)) {
            trusted = certificate::authority(&chain, pin);
        }
        findings.push(tls(API_TLS, &api_at, host, &trust));
    }
    findings.push(leaf(&leaf_at, &facts.leaf));
    if let Some(chain) = shown(&facts.leaf.shown) {
        let trust = match &trusted {
            // Whose authority this is was said above.
            Some(authority) => match certificate::judge(&chain, host, pin, Some(authority), now) {
                Trust::NotCompared(_) => Some(Trust::Pinned),
                trust => Some(trust),
            },
            None => certificate::stranger(&chain),
        };
        findings.extend(trust.map(|trust| tls(LEAF_TLS, &leaf_at, host, &trust)));
    }
    findings
}

/// A token may name several hubs, some by names that only the hub's own machine knows; a node needs one of them.
pub fn one_is_enough(hubs: Vec<Vec<Finding>>) -> Vec<Finding> {
    let is_well = |findings: &Vec<Finding>| findings.iter().all(|finding| finding.level < Level::Fail);
    let one_is_well = hubs.iter().any(is_well);
    let mut findings: Vec<Finding> = hubs.into_iter().flatten().collect();
    for finding in findings.iter_mut().filter(|finding| one_is_well && finding.level == Level::Fail) {
        finding.level = Level::Warn;
        finding.cure = format!("none needed: another hub of the token is well; else {}", finding.cure);
    }
    findings
}

fn reached(at: &str, host_is: IpAddr, took_ms: u128) -> String {
    let address = host_is.to_string();
    let address = if at.contains(&address) { String::new() } else { format!(" ({address})") };
    format!("{at}{address} in {took_ms} ms")
}

fn closed(check: Check, at: &str, cause: &str, what: &str) -> Finding {
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

fn leaf(at: &str, door: &Door<String>) -> Finding {
    let what = "the hub's port for nodes (7422; --leaf-port if it was told another)";
    match (&door.reached, &door.answer, &door.shown) {
        (Err(cause), ..) => closed(LEAF, at, cause, what),
        (Ok(_), Some(Err(cause)), _) => dumb(LEAF, at, cause, false, what),
        (Ok(_), _, Some(Err(cause))) => dumb(LEAF, at, &format!("no TLS, {cause}"), true, what),
        (Ok(Reached { address, took_ms, .. }), answer, _) => {
            let version = match answer {
                Some(Ok(version)) => format!(", nats-server {version}"),
                _ => String::new(),
            };
            LEAF.ok(format!("{}, outbound{version}", reached(at, *address, *took_ms)))
        }
    }
}

fn tls(check: Check, at: &str, host: &str, trust: &Trust) -> Finding {
    let short = |print: &str| print.chars().take(FINGERPRINT_CHARS).collect::<String>() + "…";
    match trust {
        Trust::Pinned if check.1 == LEAF_TLS.1 => check.ok("by the same authority as the API"),
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

/// `set`: the variables that are set. `direct`: were both doors of a hub reached? `None` when no hub was named.
pub fn proxy(set: &[(String, String)], direct: Option<bool>) -> Finding {
    let names: Vec<&(String, String)> = set
        .iter()
        .filter(|(name, value)| !value.is_empty() && !name.eq_ignore_ascii_case("NO_PROXY"))
        .collect();
    let Some((name, value)) = names.first() else {
        return PROXY.ok("no variable names one; a node connects directly");
    };
    let is_set = format!("{name}={} is set, which a node does not use", without_login(value));
    match direct {
        Some(true) => PROXY.ok(format!("{is_set}: it connects directly, and gets there")),
        Some(false) => PROXY.fail(
            format!("{is_set}, and directly it does not get there"),
            "let this machine out to the hub's two ports directly, past the proxy",
        ),
        None => PROXY.warn(
            format!("{is_set}: it connects directly"),
            "run this again with the hub's address, which shows whether that works",
        ),
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

    fn facts(api: Door<Answer>, leaf: Door<String>) -> HubFacts {
        let hub = Hub { host: "hub.example".into(), port: 6443 };
        HubFacts { hub, leaf_port: 7422, addresses: Ok(vec![]), api, leaf }
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
                Door { reached: there(), answer: Some(Ok("2.15.1".into())), shown: Some(Err(silent())) },
                "no TLS, it says nothing",
            ),
        ] {
            let finding = leaf("hub.example:7422", &door);
            assert!(finding.level == Level::Fail && finding.found.contains(found), "{finding:?}");
        }
    }

    #[test]
    fn a_hub_without_a_name_is_one_finding() {
        let gone = || Door { reached: Err(String::new()), answer: None, shown: None };
        let mut facts = facts(gone(), Door { reached: Err(String::new()), answer: None, shown: None });
        facts.addresses = Err("name or service not known".into());
        let findings = hub(&facts, None, UnixTime::now());
        assert_eq!(findings.len(), 1);
        assert_eq!((findings[0].code, findings[0].level), ("EW-CHECK-NAME", Level::Fail));
    }

    #[test]
    fn a_hub_that_is_there_is_well() {
        let answer = Answer { date: None, now: Timestamp(0) };
        let api = Door { reached: there(), answer: Some(Ok(answer)), shown: Some(Ok(vec![])) };
        let leaf = Door { reached: there(), answer: Some(Ok("2.15.1".into())), shown: Some(Ok(vec![])) };
        let findings = hub(&facts(api, leaf), None, UnixTime::now());
        let shown: Vec<(&str, Level)> =
            findings.iter().map(|finding| (finding.check, finding.level)).collect();
        // The certificate that is missing here is judged in its own file.
        assert_eq!(shown, [("api", Level::Ok), ("api tls", Level::Fail), ("leaf", Level::Ok)]);
        assert_eq!(
            findings[0].found,
            "hub.example:6443 (192.0.2.7) in 12 ms, outbound; no inbound port is needed"
        );
        assert_eq!(findings[2].found, "hub.example:7422 (192.0.2.7) in 12 ms, outbound, nats-server 2.15.1");
    }

    #[test]
    fn one_hub_of_several_is_enough() {
        let (good, bad) = (vec![API.ok("")], vec![API.fail("gone", "mend it"), LEAF.ok("")]);
        let levels = |hubs| one_is_enough(hubs).iter().map(|finding| finding.level).collect::<Vec<_>>();
        assert_eq!(levels(vec![good.clone(), bad.clone()]), [Level::Ok, Level::Warn, Level::Ok]);
        assert_eq!(levels(vec![bad.clone(), bad.clone()])[0], Level::Fail);
        assert_eq!(levels(vec![]), []);
        assert!(one_is_enough(vec![bad, good])[0].cure.starts_with("none needed: another hub"));
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
            let finding = proxy(&set, direct);
            assert_eq!(finding.level, level, "{finding:?}");
            assert!(finding.found.contains(found) && !finding.found.contains("hush"), "{finding:?}");
        }
    }
}
