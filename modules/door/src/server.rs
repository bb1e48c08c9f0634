//! The listening side: TCP in the clear, HTTP/1.1 and HTTP/2, with their bounds and deadlines. In the clear, because it
//! stands on the pods' bridge, as the node's server itself does: docs/security.md says who can reach it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::answer::{Door, Line};
use crate::tally::Tally;

/// Connections at once ...
pub const CONNECTIONS_MAX: usize = 1_024;
/// ... and from one address: a pod has one.
pub const CONNECTIONS_PER_ADDRESS_MAX: usize = 128;
/// The head of a request has to arrive within so long, and the next one on an idle connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest head of a request; also what a connection holds of an answer that is not read.
const HEAD_MAX_BYTES: usize = 32 * 1024;
/// The most headers of a request.
const HEADERS_MAX: usize = 64;
/// Requests at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 64;
/// An HTTP/2 client that does not answer pings is gone.
const PING_INTERVAL: Duration = Duration::from_secs(20);
/// How long running requests have to end after the stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause after an accept failed (out of file descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Users that are idle are looked for so often.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Serves on that listener until the door closes.
pub async fn serve(listener: TcpListener, door: Arc<Door>) {
    let room = Tally::new(CONNECTIONS_MAX, CONNECTIONS_PER_ADDRESS_MAX);
    let mut connections = JoinSet::new();
    let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
    loop {
        let accepted = tokio::select! {
            () = door.stop.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            _ = sweep.tick() => {
                door.guests.sweep();
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, from)) => match room.take(&from.ip().to_string(), 1) {
                Some(place) => {
                    let door = door.clone();
                    connections.spawn(async move {
                        connection(socket, from, door).await;
                        drop(place);
                    });
                }
                // Not even told so: who holds that many connections reads none of them.
                None => tracing::debug!(%from, "one connection too many: closed"),
            },
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN_TIMEOUT, drained).await.is_err() {
        tracing::debug!("requests that did not end in time are broken off");
    }
}

async fn connection(socket: TcpStream, from: SocketAddr, door: Arc<Door>) {
    // Events are small and should leave at once.
    let _ = socket.set_nodelay(true);
    let line = Line { from: from.ip(), cut: door.stop.child_token() };
    let (cut, stop) = (line.cut.clone(), door.stop.clone());
    let service = service_fn(move |request| {
        let (door, line) = (door.clone(), line.clone());
        async move { Ok::<_, Infallible>(door.answer(request, line).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_MAX_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(u32::try_from(HEAD_MAX_BYTES).unwrap_or(u32::MAX));
    let connection = builder.serve_connection(TokioIo::new(socket), service);
    tokio::pin!(connection);
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        // Stopping comes by this too, but lets what is under way end.
        () = cut.cancelled() => {
            if !stop.is_cancelled() {
                tracing::debug!(%from, "a reader that takes nothing is cut off");
                return;
            }
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, %from, "connection ended");
    }
}
