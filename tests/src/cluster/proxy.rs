//! A slow link: a TCP proxy between a node and the hub that lets so many bits a second through, each way, and delivers
//! them a while later.
//!
//! It stands in for `tc netem`, which needs a kernel module that many machines lack. Like a modem it holds little: what
//! does not fit waits at the sender, so the sender's own pings queue behind its data, as they do in the field.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Mutex, mpsc};
use tokio::time::Instant;

/// Passed on at a time: about a packet.
const CHUNK_BYTES: usize = 1_400;
/// Buffers of the sockets: what the link holds.
const BUFFER_BYTES: u32 = 16 * 1024;
/// On their way in one direction of a connection, at most.
const FLIGHT_CHUNKS_MAX: usize = 64;

/// The proxy; it ends when dropped.
pub struct Proxy {
    port: u16,
    pace: Arc<AtomicU64>,
    delay: Arc<AtomicU64>,
    connections: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

/// One direction of the link, shared by all its connections.
struct Lane {
    pace_kbit_s: Arc<AtomicU64>,
    delay_ms: Arc<AtomicU64>,
    free_at: Mutex<Instant>,
}

impl Lane {
    /// Waits until `bytes` have passed.
    async fn pass(&self, bytes: usize) {
        let pace = self.pace_kbit_s.load(Ordering::Relaxed);
        if pace == 0 {
            return;
        }
        let bits = u64::try_from(bytes).unwrap_or(u64::MAX).saturating_mul(8);
        let until = {
            let mut free_at = self.free_at.lock().await;
            *free_at =
                (*free_at).max(Instant::now()) + Duration::from_micros(bits.saturating_mul(1_000) / pace);
            *free_at
        };
        tokio::time::sleep_until(until).await;
    }
}

impl Proxy {
    /// Listens on the hub's address, on a free port.
    pub async fn start(hub: SocketAddr, kbit_s: u64) -> anyhow::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(BUFFER_BYTES)?;
        socket.set_send_buffer_size(BUFFER_BYTES)?;
        socket.bind(SocketAddr::new(hub.ip(), 0)).context("the slow link cannot listen")?;
        let listener = socket.listen(64)?;
        let port = listener.local_addr()?.port();
        let (pace, delay) = (Arc::new(AtomicU64::new(kbit_s)), Arc::<AtomicU64>::default());
        let connections = Arc::<AtomicU64>::default();
        let lane = || {
            let free_at = Mutex::new(Instant::now());
            Arc::new(Lane { pace_kbit_s: pace.clone(), delay_ms: delay.clone(), free_at })
        };
        let task = tokio::spawn(accept(listener, hub, [lane(), lane()], connections.clone()));
        Ok(Self { port, pace, delay, connections, task })
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Changes the pace; 0 is no bound.
    pub fn pace(&self, kbit_s: u64) {
        self.pace.store(kbit_s, Ordering::Relaxed);
    }

    /// Changes how long what was let through is on its way; zero at first.
    pub fn delay(&self, delay: Duration) {
        self.delay.store(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Connections taken so far.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, hub: SocketAddr, lanes: [Arc<Lane>; 2], connections: Arc<AtomicU64>) {
    let [up, down] = lanes;
    let mut passing = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((edge, _)) = accepted else { continue };
                connections.fetch_add(1, Ordering::Relaxed);
                passing.spawn(connect(edge, hub, up.clone(), down.clone()));
            }
            Some(_) = passing.join_next() => {}
        }
    }
}

async fn connect(edge: TcpStream, hub: SocketAddr, up: Arc<Lane>, down: Arc<Lane>) -> std::io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(BUFFER_BYTES)?;
    socket.set_send_buffer_size(BUFFER_BYTES)?;
    let hub = socket.connect(hub).await?;
    edge.set_nodelay(true)?;
    hub.set_nodelay(true)?;
    let ((edge_in, edge_out), (hub_in, hub_out)) = (edge.into_split(), hub.into_split());
    // Either end's close is the close of both.
    tokio::select! {
        ended = carry(edge_in, hub_out, up) => ended,
        ended = carry(hub_in, edge_out, down) => ended,
    }
}

async fn carry(
    from: tokio::net::tcp::OwnedReadHalf,
    to: tokio::net::tcp::OwnedWriteHalf,
    lane: Arc<Lane>,
) -> std::io::Result<()> {
    let (air, landing) = mpsc::channel(FLIGHT_CHUNKS_MAX);
    tokio::try_join!(take_off(from, air, lane), land(to, landing)).map(drop)
}

/// What is on its way, with the time when it is there.
type Flight = (Instant, Vec<u8>);

async fn take_off(
    mut from: tokio::net::tcp::OwnedReadHalf,
    air: mpsc::Sender<Flight>,
    lane: Arc<Lane>,
) -> std::io::Result<()> {
    let mut chunk = vec![0u8; CHUNK_BYTES];
    loop {
        let read = from.read(&mut chunk).await?;
        let Some(bytes) = chunk.get(..read).filter(|bytes| !bytes.is_empty()) else { return Ok(()) };
        lane.pass(read).await;
        let delay = Duration::from_millis(lane.delay_ms.load(Ordering::Relaxed));
        if air.send((Instant::now() + delay, bytes.to_vec())).await.is_err() {
            return Ok(()); // the other side has closed
        }
    }
}

async fn land(
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut landing: mpsc::Receiver<Flight>,
) -> std::io::Result<()> {
    while let Some((at, bytes)) = landing.recv().await {
        tokio::time::sleep_until(at).await;
        to.write_all(&bytes).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_take_their_time_and_arrive_whole() {
        let sink = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Proxy::start(sink.local_addr().unwrap(), 800).await.unwrap();
        let start = Instant::now();
        let mut sender = TcpStream::connect(("127.0.0.1", proxy.port())).await.unwrap();
        let sent: Vec<u8> = (0..50_000u32).map(|n| n as u8).collect();
        let (mut receiver, _) = sink.accept().await.unwrap();
        let receiving = tokio::spawn(async move {
            let mut got = Vec::new();
            receiver.read_to_end(&mut got).await.unwrap();
            got
        });
        sender.write_all(&sent).await.unwrap();
        sender.shutdown().await.unwrap();
        assert_eq!(receiving.await.unwrap(), sent);
        let taken = start.elapsed();
        // 50,000 bytes at 800 kbit/s are half a second.
        assert!((Duration::from_millis(480)..Duration::from_secs(3)).contains(&taken), "{taken:?}");
        assert_eq!(proxy.connections(), 1);
    }

    #[tokio::test]
    async fn bytes_are_on_their_way_for_a_while() {
        let sink = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Proxy::start(sink.local_addr().unwrap(), 0).await.unwrap();
        proxy.delay(Duration::from_millis(300));
        let mut sender = TcpStream::connect(("127.0.0.1", proxy.port())).await.unwrap();
        let (mut receiver, _) = sink.accept().await.unwrap();
        let start = Instant::now();
        sender.write_all(b"there").await.unwrap();
        let mut there = [0; 5];
        receiver.read_exact(&mut there).await.unwrap();
        receiver.write_all(b"back").await.unwrap();
        sender.read_exact(&mut there[..4]).await.unwrap();
        let taken = start.elapsed();
        assert!((Duration::from_millis(600)..Duration::from_secs(3)).contains(&taken), "{taken:?}");
    }
}
