//! The proxy of a site that lets nothing else out: HTTP `CONNECT`, with a login, to the ports that it allows.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// The longest head of a request.
const HEAD_MAX_BYTES: usize = 8 * 1024;
/// A name that only the proxy finds the hub by.
pub const HIDDEN_NAME: &str = "hub.nowhere.test";

/// The proxy; it ends, with all its connections, when dropped.
pub struct Gateway {
    address: SocketAddr,
    served: Arc<Mutex<Served>>,
    task: tokio::task::JoinHandle<()>,
}

/// What was asked of it.
#[derive(Debug, Default, Clone)]
pub struct Served {
    /// To where it connected, each time.
    pub tunnels: Vec<String>,
    /// To where it did not.
    pub refused: Vec<String>,
}

struct Rules {
    login: String,
    ports: BTreeSet<u16>,
    hub: std::net::IpAddr,
}

impl Gateway {
    /// Listens beside the hub and lets whoever says `user:password` through to these ports.
    pub async fn start(hub: std::net::IpAddr, login: &str, ports: &[u16]) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((hub, 0)).await.context("the proxy cannot listen")?;
        let address = listener.local_addr()?;
        let served = Arc::<Mutex<Served>>::default();
        let login = format!("proxy-authorization: basic {}", BASE64_STANDARD.encode(login));
        let rules = Arc::new(Rules { login, ports: ports.iter().copied().collect(), hub });
        let task = tokio::spawn(accept(listener, rules, served.clone()));
        Ok(Self { address, served, task })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What was asked of it so far.
    pub fn served(&self) -> Served {
        self.served.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, rules: Arc<Rules>, served: Arc<Mutex<Served>>) {
    let mut serving = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((tcp, _)) = accepted else { continue };
                serving.spawn(serve(tcp, rules.clone(), served.clone()));
            }
            Some(_) = serving.join_next() => {}
        }
    }
}

async fn serve(mut near: TcpStream, rules: Arc<Rules>, served: Arc<Mutex<Served>>) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < HEAD_MAX_BYTES {
        head.push(near.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let (host, port) = target.rsplit_once(':').unwrap_or((&target, ""));
    let port = port.parse::<u16>().unwrap_or(0);
    // Headers' names have no case; a login has.
    let knows = head.lines().any(|line| {
        let cut = rules.login.len() - rules.login.rsplit(' ').next().unwrap_or_default().len();
        line.get(..cut)
            .is_some_and(|name| name.eq_ignore_ascii_case(rules.login.get(..cut).unwrap_or_default()))
            && line.get(cut..) == rules.login.get(cut..)
    });
    let answer = match (knows, head.starts_with("CONNECT ") && rules.ports.contains(&port)) {
        (false, _) => "407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"site\"",
        (true, false) => "403 Forbidden",
        (true, true) => "200 Connection established",
    };
    let far = if answer.starts_with("200") {
        let host = if host == HIDDEN_NAME { rules.hub.to_string() } else { host.to_owned() };
        TcpStream::connect((host.as_str(), port)).await.ok()
    } else {
        None
    };
    {
        let mut served = served.lock().unwrap_or_else(PoisonError::into_inner);
        if far.is_some() { served.tunnels.push(target.clone()) } else { served.refused.push(target.clone()) }
    }
    let Some(mut far) = far else {
        let answer = if answer.starts_with("200") { "502 Bad Gateway" } else { answer };
        return near.write_all(format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n").as_bytes()).await;
    };
    near.write_all(format!("HTTP/1.1 {answer}\r\n\r\n").as_bytes()).await?;
    tokio::io::copy_bidirectional(&mut near, &mut far).await.map(drop)
}
