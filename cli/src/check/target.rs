//! Which hub is meant: `https://host:port`, `host:port`, `host`, or a join token, which also says whom to trust and where
//! the link will go.

use std::net::Ipv6Addr;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use bus::server::way::{self, Way};
use schemas::credential::JoinToken;

/// Where a hub's API listens unless told.
pub const API_PORT: u16 = 6443;
/// Where nodes connect to a hub unless told.
pub const LEAF_PORT: u16 = 7422;
/// The port of a URL that names none.
const HTTPS_PORT: u16 = 443;
/// Hubs of one token that are tried.
const HUBS_MAX: usize = 8;

/// What is to be tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// At least one.
    pub hubs: Vec<Hub>,
    /// Where the link goes; empty when nobody told.
    pub leafs: Vec<Leaf>,
    /// SHA-256 of the authority that the token trusts, in lower case hex.
    pub pin: Option<String>,
}

/// One hub's API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hub {
    /// Name or address, without brackets.
    pub host: String,
    /// Port of the API.
    pub port: u16,
}

/// One address where nodes connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// By which protocol.
    pub way: Way,
    /// Name or address, without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
}

impl Target {
    /// Where the link goes. `port`: of each hub, if it was given; else as the token tells, else the usual one.
    pub fn leafs(&self, port: Option<u16>) -> Vec<Leaf> {
        if port.is_none() && !self.leafs.is_empty() {
            return self.leafs.clone();
        }
        let port = port.unwrap_or(LEAF_PORT);
        self.hubs.iter().map(|hub| Leaf { way: Way::Tls, host: hub.host.clone(), port }).collect()
    }
}

/// Reads the argument; what is wrong with it never repeats it, because a token is a secret.
pub fn parse(text: &str) -> Result<Target, String> {
    let text = text.trim();
    if text.starts_with("ew1.") {
        return token(text);
    }
    Ok(Target { hubs: vec![hub(text)?], leafs: Vec::new(), pin: None })
}

fn token(text: &str) -> Result<Target, String> {
    let bad = "this is not a whole join token; copy all of what `edgewire token create` printed";
    let json = text.strip_prefix("ew1.").and_then(|body| BASE64_URL_SAFE_NO_PAD.decode(body).ok());
    let token: JoinToken = json.and_then(|json| serde_json::from_slice(&json).ok()).ok_or(bad)?;
    if token.hubs.is_empty() {
        return Err("the token names no hub; make a new one with `edgewire token create`".to_owned());
    }
    let hubs = token.hubs.iter().take(HUBS_MAX).map(|url| hub(url)).collect::<Result<_, _>>()?;
    let leaf = |url: &String| {
        let (way, host, port) = way::parse(url)?;
        Some(Leaf { way, host: host.to_owned(), port })
    };
    // One that is not understood is a newer hub's.
    let leafs = token.leafs.iter().filter_map(leaf).take(2 * HUBS_MAX).collect();
    Ok(Target { hubs, leafs, pin: Some(token.ca_sha256.to_lowercase()) })
}

fn hub(text: &str) -> Result<Hub, String> {
    let bad = || "a hub is given as https://HOST:PORT, HOST:PORT or HOST, or as a join token".to_owned();
    if text.starts_with("http://") {
        return Err("a hub's API is https only: https://HOST:PORT".to_owned());
    }
    let (rest, default) = match text.strip_prefix("https://") {
        Some(rest) => (rest.strip_suffix('/').unwrap_or(rest), HTTPS_PORT),
        None => (text, API_PORT),
    };
    let is_v6 = |host: &str| host.parse::<Ipv6Addr>().is_ok();
    if is_v6(rest) {
        return Ok(Hub { host: rest.to_owned(), port: default });
    }
    let (host, port) = match rest.strip_prefix('[').map(|rest| rest.split_once(']')) {
        Some(Some((host, port))) if is_v6(host) => (host, port),
        Some(_) => return Err(bad()),
        None => rest.split_at(rest.find(':').unwrap_or(rest.len())),
    };
    let is_name =
        |host: &str| !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || ".-_".contains(c));
    if !is_v6(host) && !is_name(host) {
        return Err(bad());
    }
    let port = match port.strip_prefix(':') {
        Some(port) => port.parse().ok().filter(|port| *port > 0).ok_or_else(bad)?,
        None if port.is_empty() => default,
        None => return Err(bad()),
    };
    Ok(Hub { host: host.to_owned(), port })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hub_is_named_in_several_ways() {
        for (text, host, port) in [
            ("https://hub.example:6443", "hub.example", 6443),
            ("https://hub.example:6443/", "hub.example", 6443),
            ("https://hub.example", "hub.example", 443),
            ("hub.example", "hub.example", API_PORT),
            ("hub.example:7000", "hub.example", 7000),
            ("192.0.2.1:7000", "192.0.2.1", 7000),
            ("https://[2001:db8::1]:7000", "2001:db8::1", 7000),
            ("[2001:db8::1]:7000", "2001:db8::1", 7000),
            ("[2001:db8::1]", "2001:db8::1", API_PORT),
            ("2001:db8::1", "2001:db8::1", API_PORT),
        ] {
            let target = parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            let hubs = vec![Hub { host: host.into(), port }];
            assert_eq!(target, Target { hubs, leafs: vec![], pin: None }, "{text}");
        }
        for bad in [
            "", " ", ":6443", "a:", "a:x", "a:0", "a:99999", "http://a", "a/b", "a b", "u@a:1", "ftp://a",
            "[::1", "[x]:1", "[::1]x", "a:1:2",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_token_brings_its_hubs_and_whom_to_trust() {
        let with = |hubs: &[&str], leafs: &[&str]| {
            let token = JoinToken {
                hubs: hubs.iter().map(|hub| (*hub).to_owned()).collect(),
                ca_sha256: "AB12".into(),
                id: "i".into(),
                secret: "hush".into(),
                leafs: leafs.iter().map(|leaf| (*leaf).to_owned()).collect(),
            };
            format!("ew1.{}", BASE64_URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).unwrap()))
        };
        let token = |hubs: &[&str]| with(hubs, &[]);
        let target = parse(&token(&["https://a:1", "https://b:2"])).unwrap();
        let shown = |target: &Target, port| {
            let leafs = target.leafs(port).into_iter();
            leafs.map(|Leaf { way, host, port }| format!("{way} {host} {port}")).collect::<Vec<_>>()
        };
        assert_eq!(shown(&target, None), ["tls a 7422", "tls b 7422"], "an older hub's token does not tell");
        assert_eq!(shown(&target, Some(9)), ["tls a 9", "tls b 9"]);
        let told = with(&["https://a:1"], &["tls://c:5", "wss://[::1]:443", "quic://new:1"]);
        assert_eq!(shown(&parse(&told).unwrap(), None), ["tls c 5", "wss ::1 443"]);
        assert_eq!(shown(&parse(&told).unwrap(), Some(9)), ["tls a 9"]);
        assert_eq!((target.hubs.len(), target.pin.as_deref()), (2, Some("ab12")));
        assert_eq!(parse(&token(&["https://a:1"; 20])).unwrap().hubs.len(), HUBS_MAX);
        assert!(parse(&token(&[])).unwrap_err().contains("names no hub"));
        for bad in ["ew1.", "ew1.!!", "ew1.e30"] {
            assert!(parse(bad).unwrap_err().contains("not a whole join token"), "{bad}");
        }
    }

    #[test]
    fn whatever_is_typed_is_read() {
        let token = BASE64_URL_SAFE_NO_PAD
            .encode(r#"{"hubs":["https://h:1"],"ca_sha256":"00","id":"i","secret":"s"}"#);
        let samples =
            ["https://[2001:db8::1]:6443/", "hub.example:1", "10.0.0.0/8", "1h30m", &format!("ew1.{token}")];
        let samples: Vec<Vec<u8>> = samples.iter().map(|sample| sample.as_bytes().to_vec()).collect();
        crate::fuzz::try_bytes("what is typed", &samples, |bytes| {
            let text = String::from_utf8_lossy(bytes);
            let _ = parse(&text);
            let _ = crate::duration::parse(&text);
            let _ = crate::check::network::Net::parse(&text).map(|net| net.gateway());
        });
    }
}
