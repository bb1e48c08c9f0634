//! An HTTP proxy between a node and its hub: how it is given, and the tunnel (`CONNECT`) through it.
//!
//! Given as `http://user:password@host:port`, or by the variables that other programs read (HTTPS_PROXY, NO_PROXY). The
//! password is a secret: it stands in files of mode 0600, and nothing here shows it.

use std::fmt;
use std::net::IpAddr;

use data_encoding::BASE64;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What stands for "no proxy" where one is asked for.
pub const NONE: &str = "none";
/// The port of a proxy that names none, as of any `http://`.
const PORT: u16 = 80;
/// The longest head of an answer that is read.
const HEAD_MAX_BYTES: usize = 8 * 1024;

/// A proxy.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proxy {
    /// Name or address, without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Who we are there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login: Option<ProxyLogin>,
}

/// A login at a proxy.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyLogin {
    /// Name.
    pub user: String,
    /// Password.
    pub password: String,
}

/// Why there is no way through a proxy.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// What was given is none.
    #[error("EW-PROXY: {0}; give it as http://HOST:PORT or http://USER:PASSWORD@HOST:PORT, or none")]
    Form(&'static str),
    /// It cannot be reached.
    #[error(
        "EW-PROXY-UNREACHABLE: the proxy {proxy} cannot be reached: {source}; is that its address and port?"
    )]
    Unreachable {
        /// Which.
        proxy: String,
        /// The cause.
        source: std::io::Error,
    },
    /// It wants a login, or another one.
    #[error(
        "EW-PROXY-LOGIN: the proxy {proxy} does not take this login ({status}); give it as http://USER:PASSWORD@HOST:PORT"
    )]
    Login {
        /// Which.
        proxy: String,
        /// What it said.
        status: String,
    },
    /// It lets nobody through to there, or does not get there itself.
    #[error(
        "EW-PROXY-REFUSED: the proxy {proxy} makes no connection to {to}: {status}; have it allow CONNECT to that port, or \
         have the hub listen on one that it allows (`--leaf-wss 0.0.0.0:443`)"
    )]
    Refused {
        /// Which.
        proxy: String,
        /// To where.
        to: String,
        /// What it said.
        status: String,
    },
}

impl Proxy {
    /// Reads one; what is wrong with it never repeats it, because it may hold a password.
    pub fn parse(text: &str) -> Result<Self, ProxyError> {
        let text = text.trim();
        let rest = match text.split_once("://") {
            Some(("http", rest)) => rest,
            Some(_) => return Err(ProxyError::Form("only http:// proxies are known")),
            None => text,
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (login, place) = match rest.rsplit_once('@') {
            Some((login, place)) => (Some(login), place),
            None => (None, rest),
        };
        let (host, port) = authority(place).ok_or(ProxyError::Form("its host or port cannot be read"))?;
        let login = login.map(|login| {
            let (user, password) = login.split_once(':').unwrap_or((login, ""));
            Some(ProxyLogin { user: decoded(user)?, password: decoded(password)? })
        });
        let login = match login {
            Some(None) => {
                return Err(ProxyError::Form("its login cannot be read (%XX stands for special characters)"));
            }
            Some(login) => login,
            None => None,
        };
        Ok(Self { host: host.to_owned(), port: port.unwrap_or(PORT), login })
    }

    /// A setting: a proxy, or [`NONE`].
    pub fn setting(text: &str) -> Result<Option<Self>, ProxyError> {
        if text.trim() == NONE { Ok(None) } else { Self::parse(text).map(Some) }
    }

    /// The one that the variables name for `hosts`, and which variable it was. A proxy serves a node as a whole: it is used
    /// unless NO_PROXY exempts every host. `variable` reads one, such as `std::env::var(name).ok()`.
    pub fn of_environment(
        hosts: &[String],
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<(Self, &'static str)>, ProxyError> {
        let set = |name| variable(name).filter(|value| !value.trim().is_empty());
        let Some((name, value)) =
            ["HTTPS_PROXY", "https_proxy"].into_iter().find_map(|name| Some((name, set(name)?)))
        else {
            return Ok(None);
        };
        let exempt = set("NO_PROXY").or_else(|| set("no_proxy")).unwrap_or_default();
        if !hosts.is_empty() && hosts.iter().all(|host| is_exempt(host, &exempt)) {
            return Ok(None);
        }
        Ok(Some((Self::parse(&value)?, name)))
    }

    /// A connection to `host:port` through it. The name is looked up by the proxy. The caller bounds how long it takes.
    pub async fn connect(&self, host: &str, port: u16) -> Result<TcpStream, ProxyError> {
        let unreachable = |source| ProxyError::Unreachable { proxy: self.to_string(), source };
        let mut tcp = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(unreachable)?;
        let to = with_port(host, port);
        let login = self.login.as_ref().map(|ProxyLogin { user, password }| {
            format!(
                "Proxy-Authorization: Basic {}\r\n",
                BASE64.encode(format!("{user}:{password}").as_bytes())
            )
        });
        let head = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n{}\r\n", login.unwrap_or_default());
        tcp.write_all(head.as_bytes()).await.map_err(unreachable)?;
        let status = answer(&mut tcp).await.map_err(unreachable)?;
        let refused = |status| ProxyError::Refused { proxy: self.to_string(), to, status };
        match status.split(' ').nth(1).and_then(|code| code.parse::<u16>().ok()) {
            Some(200..=299) => Ok(tcp),
            Some(401 | 407) => Err(ProxyError::Login { proxy: self.to_string(), status: shown(&status) }),
            Some(_) => Err(refused(shown(&status))),
            None => Err(refused("it does not speak HTTP".to_owned())),
        }
    }
}

/// Connects, through the proxy if there is one.
pub async fn connect(proxy: Option<&Proxy>, host: &str, port: u16) -> Result<TcpStream, DialError> {
    match proxy {
        Some(proxy) => Ok(proxy.connect(host, port).await?),
        None => Ok(TcpStream::connect((host, port)).await?),
    }
}

/// See [`connect`].
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// By the proxy.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    /// Without one.
    #[error(transparent)]
    Direct(#[from] std::io::Error),
}

/// Without the login.
impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", with_port(&self.host, self.port))
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({self}{})", if self.login.is_some() { ", with a login" } else { "" })
    }
}

impl fmt::Debug for ProxyLogin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProxyLogin")
    }
}

/// `host:port`, with brackets where an address needs them.
pub fn with_port(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Host and port of `host`, `host:port`, `[v6]` and `[v6]:port`.
pub fn authority(text: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => rest.split_once(']').filter(|(host, _)| host.parse::<IpAddr>().is_ok())?,
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let is_name = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
    let is_host = host.parse::<IpAddr>().is_ok() || (!host.is_empty() && host.chars().all(is_name));
    let port = match port.strip_prefix(':') {
        Some(port) => Some(port.parse().ok().filter(|port| *port > 0)?),
        None if port.is_empty() => None,
        None => return None,
    };
    is_host.then_some((host, port))
}

/// The host of a URL.
pub fn host(url: &str) -> Option<&str> {
    authority(url.split_once("://")?.1.trim_end_matches('/')).map(|(host, _)| host)
}

/// As curl and Go read NO_PROXY: `*`, a host, a domain with all in it, an address, a network. This machine itself always is.
fn is_exempt(host: &str, exempt: &str) -> bool {
    let address = host.parse::<IpAddr>().ok();
    if host.eq_ignore_ascii_case("localhost") || address.is_some_and(|address| address.is_loopback()) {
        return true;
    }
    let host = host.to_ascii_lowercase();
    exempt.split([',', ' ']).map(str::trim).filter(|entry| !entry.is_empty()).any(|entry| {
        let entry = entry.to_ascii_lowercase();
        if entry == "*" {
            return true;
        }
        if let (Some(address), Some((net, prefix))) = (address, entry.split_once('/')) {
            return within(address, net, prefix);
        }
        let name = authority(&entry).map_or(entry.as_str(), |(name, _)| name);
        let domain = name.trim_start_matches('.');
        host == domain
            || (address.is_none() && host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.')))
    })
}

fn within(address: IpAddr, net: &str, prefix: &str) -> bool {
    let bits = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => (u128::from(u32::from(ip)) << 96, 32),
        IpAddr::V6(ip) => (u128::from(ip), 128),
    };
    let (Ok(net), Ok(prefix)) = (net.parse::<IpAddr>(), prefix.parse::<u32>()) else { return false };
    let ((one, width), (other, _)) = (bits(address), bits(net));
    let mask = u128::MAX.checked_shl(128 - prefix.min(128)).unwrap_or(0);
    address.is_ipv4() == net.is_ipv4() && prefix <= width && one & mask == other & mask
}

/// `%XX` as the byte it stands for. What a server's configuration cannot hold is refused: control characters, backslashes.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next()?, rest.next()?];
            bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    let text = String::from_utf8(bytes).ok()?;
    (!text.chars().any(|c| c.is_control() || c == '\\')).then_some(text)
}

/// The first line of the answer, once its head has been read to the end and nothing of what follows.
async fn answer(tcp: &mut TcpStream) -> std::io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= HEAD_MAX_BYTES {
            return Err(std::io::Error::other("its answer does not end"));
        }
        head.push(tcp.read_u8().await?);
    }
    let text = String::from_utf8_lossy(&head);
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// What a stranger says, without what would move a cursor.
fn shown(status: &str) -> String {
    status.chars().filter(|c| !c.is_control()).take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[test]
    fn a_proxy_is_read_and_never_shows_its_password() {
        for (text, shown, login) in [
            ("http://proxy:3128", "http://proxy:3128", None),
            ("http://proxy:3128/", "http://proxy:3128", None),
            ("proxy:3128", "http://proxy:3128", None),
            ("http://proxy", "http://proxy:80", None),
            ("http://[2001:db8::1]:3128", "http://[2001:db8::1]:3128", None),
            ("http://me:hu%40sh:x@10.0.0.1:8080", "http://10.0.0.1:8080", Some(("me", "hu@sh:x"))),
            ("http://me@proxy:1", "http://proxy:1", Some(("me", ""))),
        ] {
            let proxy = Proxy::parse(text).unwrap();
            assert_eq!(proxy.to_string(), shown);
            let found = proxy.login.as_ref().map(|login| (login.user.as_str(), login.password.as_str()));
            assert_eq!(found, login, "{text}");
            assert!(!format!("{proxy:?}{proxy}{:?}", proxy.login).contains("hu"), "{proxy:?}");
        }
        for bad in [
            "",
            "http://",
            "https://proxy:1",
            "socks5://hush",
            "http://a b",
            "http://a:0",
            "http://a:x",
            "http://a/b",
            "http://hush%4@a:1",
            "http://hush%zz:x@a:1",
            "http://me:hush%0a@a:1",
            "http://me:hush\\@a:1",
            "a:1:2",
        ] {
            let error = Proxy::parse(bad).unwrap_err().to_string();
            assert!(error.starts_with("EW-PROXY") && !error.contains("hush"), "{bad}: {error}");
        }
    }

    #[test]
    fn the_environments_proxy_is_used_unless_every_host_is_exempt() {
        let asked = |no_proxy: &str, hosts: &[&str]| {
            let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
            let variable = |name: &str| match name {
                "https_proxy" => Some("http://proxy:3128".to_owned()),
                "NO_PROXY" => Some(no_proxy.to_owned()),
                _ => None,
            };
            Proxy::of_environment(&hosts, variable).unwrap().map(|(_, name)| name)
        };
        let used = Some("https_proxy");
        assert_eq!(asked("", &["hub.example"]), used);
        assert_eq!(asked("", &["127.0.0.1", "localhost", "::1"]), None, "this machine itself");
        assert_eq!(asked("", &["127.0.0.1", "hub.example"]), used);
        for exempt in ["*", "hub.example", "example", ".example", "a, hub.example:6443", "HUB.Example"] {
            assert_eq!(asked(exempt, &["hub.example"]), None, "{exempt}");
        }
        for exempt in ["b.example", "ample", "10.0.0.0/8", "hub.example.org"] {
            assert_eq!(asked(exempt, &["hub.example"]), used, "{exempt}");
        }
        for (exempt, host, want) in [
            ("10.0.0.0/8", "10.9.9.9", None),
            ("10.9.9.9", "10.9.9.9", None),
            ("0.0.0.0/0", "10.9.9.9", None),
            ("11.0.0.0/8", "10.9.9.9", used),
            ("9.9", "10.9.9.9", used),
            ("2001:db8::/32", "2001:db8::7", None),
            ("2001:db8::/32", "2001:db9::7", used),
        ] {
            assert_eq!(asked(exempt, &[host]), want, "{exempt} {host}");
        }
        assert_eq!(Proxy::of_environment(&["a".to_owned()], |_| None).unwrap(), None);
    }

    /// A proxy that says `answer`, and what it was told.
    async fn proxy(answer: &'static str) -> (Proxy, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let told = tokio::spawn(async move {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(tcp.read_u8().await.unwrap());
            }
            tcp.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8(head).unwrap()
        });
        (Proxy::parse(&format!("http://me:hush@127.0.0.1:{port}")).unwrap(), told)
    }

    #[tokio::test]
    async fn what_follows_the_answer_belongs_to_the_hub() {
        let (through, told) = proxy("HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\nINFO").await;
        let mut tcp = through.connect("hub.example", 7422).await.unwrap();
        let mut first = [0; 4];
        tcp.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"INFO");
        let told = told.await.unwrap();
        assert!(
            told.starts_with("CONNECT hub.example:7422 HTTP/1.1\r\nHost: hub.example:7422\r\n"),
            "{told}"
        );
        assert!(told.contains("\r\nProxy-Authorization: Basic bWU6aHVzaA==\r\n"), "{told}");
    }

    #[tokio::test]
    async fn what_keeps_a_proxy_shut_is_told() {
        for (answer, code) in [
            ("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "EW-PROXY-LOGIN"),
            ("HTTP/1.0 403 Forbidden\r\n\r\n", "EW-PROXY-REFUSED"),
            ("SSH-2.0-x\r\n\r\n", "EW-PROXY-REFUSED"),
            ("HTTP/1.1 200 O", "EW-PROXY-UNREACHABLE"),
        ] {
            let (through, _told) = proxy(answer).await;
            let error = through.connect("hub", 7422).await.unwrap_err().to_string();
            assert!(error.starts_with(code) && !error.contains("hush"), "{error}");
        }
    }
}
