//! The bus by HTTP: publishes a second over connections that are kept alive, against nginx that answers 204 to the same
//! client on the same machine. `make bench WHAT=door`; nginx has to be installed (Debian's `nginx-light` will do).
//!
//! Rounds of both alternate, so that a slower minute of the machine is both's; the ratio is of the medians.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use base64::Engine;
use bus::guest::Guests;
use bus::identity::Permissions;
use bus::module::Account;
use bus::server::{LeafConfig, LeafServer, User};
use door::answer::Door;
use door::captures::Captures;
use schemas::name::NodeName;
use tests::cluster::programs;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

/// Connections of the client, each with one request under way.
const CONNECTIONS: usize = 32;
const ROUND: Duration = Duration::from_secs(5);
const ROUNDS: usize = 5;
const BODY_BYTES: usize = 256;
const READY: Duration = Duration::from_secs(20);

struct Nginx(Child);

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

fn nginx(dir: &Path, at: SocketAddr) -> anyhow::Result<Nginx> {
    let config = dir.join("nginx.conf");
    let text = format!(
        "daemon off; master_process off; pid {0}/nginx.pid; error_log {0}/nginx.log;\nevents {{}}\nhttp {{ access_log off; \
         keepalive_requests 1000000000; client_body_temp_path {0}/body; server {{ listen {at}; location / {{ return 204; }} }} }}\n",
        dir.display()
    );
    std::fs::write(&config, text)?;
    let mut command = Command::new("nginx");
    command.arg("-c").arg(&config).arg("-p").arg(dir).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(Nginx(command.spawn().context("nginx is not there; `apt-get install nginx-light`")?))
}

/// Reads one answer without a body of its own (202, 204) or with one of a told length.
async fn answer(socket: &mut TcpStream, buffer: &mut Vec<u8>) -> anyhow::Result<u16> {
    buffer.clear();
    loop {
        anyhow::ensure!(socket.read_buf(buffer).await? > 0, "the connection was closed");
        let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let head = std::str::from_utf8(buffer.get(..end).unwrap_or_default())?.to_ascii_lowercase();
        let told = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = told.map_or(Ok(0), str::parse)?;
        if buffer.len() >= end + 4 + length {
            let status = head.split(' ').nth(1).context("a status")?;
            return Ok(status.parse()?);
        }
    }
}

/// Requests a second, and how long the slowest hundredth of them took.
async fn round(at: SocketAddr, request: &[u8], want: u16) -> anyhow::Result<(f64, Duration)> {
    let mut clients = tokio::task::JoinSet::new();
    let begun = Instant::now();
    for _ in 0..CONNECTIONS {
        let request = request.to_vec();
        clients.spawn(async move {
            let mut socket = TcpStream::connect(at).await?;
            socket.set_nodelay(true)?;
            let (mut took, mut buffer) = (Vec::new(), Vec::with_capacity(4096));
            while begun.elapsed() < ROUND {
                let asked = Instant::now();
                socket.write_all(&request).await?;
                let status = answer(&mut socket, &mut buffer).await?;
                anyhow::ensure!(status == want, "answered with {status}, not {want}");
                took.push(asked.elapsed());
            }
            anyhow::Ok(took)
        });
    }
    let mut took = Vec::new();
    while let Some(client) = clients.join_next().await {
        took.extend(client??);
    }
    let per_second = took.len() as f64 / begun.elapsed().as_secs_f64();
    took.sort_unstable();
    let slow = took.get(took.len() * 99 / 100).copied().unwrap_or_default();
    Ok((per_second, slow))
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or_default()
}

fn server_binary() -> PathBuf {
    programs::root().join(".tools/bin/nats-server")
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let beside = free()?;
    let nginx = nginx(dir.path(), beside).map_err(|error| println!("{error:#}: the door is measured alone"));
    let leaf = LeafServer::start(LeafConfig {
        node: NodeName::new("bench")?,
        data_dir: dir.path().join("nats"),
        listen: free()?,
        mqtt: None,
        binary: Some(server_binary()),
        store_max_bytes: 1 << 30,
        hub: None,
    })
    .await?;
    leaf.ready(READY).await?;
    let user = User::new("pod-bench", Account::Work, Permissions::full());
    leaf.put_users(vec![user.clone()]).await?;
    let stop = CancellationToken::new();
    let door = Door::new(Arc::new(Guests::new(leaf.url())), Captures::new(None), stop.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let at = listener.local_addr()?;
    let serving = tokio::spawn(door::server::serve(listener, door));

    let login = base64::engine::general_purpose::STANDARD.encode(format!("{}:{}", user.name, user.password));
    let head = |path: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Basic {login}\r\ncontent-length: {BODY_BYTES}\r\n\r\n"
        )
    };
    let request = |path: &str| [head(path).into_bytes(), vec![b'x'; BODY_BYTES]].concat();
    let (live, other) = (request("/v1/pub/app.demo.t"), request("/"));
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for n in 1..=ROUNDS {
        let (bare, bare_slow) = match &nginx {
            Ok(_) => round(beside, &other, 204).await?,
            Err(()) => (0.0, Duration::ZERO),
        };
        let (door, door_slow) = round(at, &live, 202).await?;
        println!("round {n}: nginx {bare:.0}/s (p99 {bare_slow:?}), door {door:.0}/s (p99 {door_slow:?})");
        theirs.push(bare);
        ours.push(door);
    }
    let (ours, theirs) = (median(ours), median(theirs));
    println!("\n| what | measured | aim |\n|---|---|---|");
    println!(
        "| HTTP publish, {CONNECTIONS} connections kept alive, {BODY_BYTES} B, each known to be taken; nginx 204 beside it | \
         {ours:.0}/s and {theirs:.0}/s: {:.2}x | >= 0.5x |",
        ours / theirs
    );
    stop.cancel();
    serving.await?;
    leaf.stop().await?;
    Ok(())
}
