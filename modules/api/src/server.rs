//! The listening side: TCP, TLS (rustls with ring), HTTP/1.1 and HTTP/2, and their bounds and deadlines.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_util::sync::CancellationToken;

use crate::handlers::Api;
use crate::{Config, Parts, namespaces};

/// Connections at once; more wait to be accepted.
const CONNECTIONS_MAX: usize = 4096;
/// A TLS handshake has to be done within so long.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// The head of a request has to arrive within so long (also: an idle HTTP/1 connection is closed after it).
const HEAD_TIMEOUT: Duration = Duration::from_secs(90);
/// The largest head of a request.
const HEAD_MAX_BYTES: usize = 64 * 1024;
/// Requests at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 250;
/// An HTTP/2 client that does not answer pings is gone.
const PING_INTERVAL: Duration = Duration::from_secs(20);
/// How long running requests have to end after `stop`.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);
/// Pause after an accept failed (out of file descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why the API cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address is taken, or not ours.
    #[error("cannot listen on {address}: {source}; choose another address or end what holds it")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's words.
        source: std::io::Error,
    },
    /// The certificate or key cannot be used.
    #[error("the certificate or its key cannot be used: {0}")]
    Certificate(String),
}

/// A server that listens and does not answer yet.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    tls: TlsAcceptor,
    config: Config,
    parts: Parts,
}

impl Server {
    /// Reads the certificate and takes the port.
    pub async fn bind(config: Config, parts: Parts) -> Result<Self, ServeError> {
        let tls = acceptor(&config)?;
        let fail = |source| ServeError::Listen { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(fail)?;
        let address = listener.local_addr().map_err(fail)?;
        Ok(Self { listener, address, tls, config, parts })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop`.
    pub async fn run(self, stop: CancellationToken) -> Result<(), ServeError> {
        let api = Arc::new(Api::new(self.parts, self.config.tokens, stop.clone()));
        let mut background = JoinSet::new();
        for (_, cache) in &api.caches {
            let (cache, store, stop) = (cache.clone(), api.parts.store.clone(), stop.clone());
            background.spawn(async move {
                tokio::select! {
                    () = cache.follow(store.as_ref()) => {}
                    () = stop.cancelled() => {}
                }
            });
        }
        let shared = api.clone();
        background.spawn(async move { namespaces::run(&shared).await });
        tracing::info!(address = %self.address, "serving the API");

        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                Some(_) = connections.join_next() => continue,
                // A background task ends only at the stop; if one panicked, end too: the runner starts all again.
                Some(Err(error)) = background.join_next() => {
                    if error.is_panic() {
                        std::panic::resume_unwind(error.into_panic());
                    }
                    continue;
                }
                accepted = accept(&self.listener, &room) => accepted,
            };
            let Some((socket, permit)) = accepted else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let (api, tls, stop) = (api.clone(), self.tls.clone(), stop.clone());
            connections.spawn(async move {
                serve(socket, tls, api, stop).await;
                drop(permit);
            });
        }
        let drained = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN_TIMEOUT, drained).await.is_err() {
            tracing::info!("requests that did not end in time are broken off");
        }
        Ok(())
    }
}

async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = room.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((socket, _)) => Some((socket, permit)),
        Err(error) => {
            tracing::warn!(%error, "a connection could not be accepted");
            None
        }
    }
}

async fn serve(socket: TcpStream, tls: TlsAcceptor, api: Arc<Api>, stop: CancellationToken) {
    // Watch events are small and should leave at once.
    let _ = socket.set_nodelay(true);
    let socket = match tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(socket)).await {
        Ok(Ok(socket)) => socket,
        Ok(Err(error)) => {
            tracing::debug!(%error, "TLS handshake failed");
            return;
        }
        Err(_) => return,
    };
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let api = api.clone();
        async move { Ok::<_, Infallible>(api.handle(request.map(Body::new)).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(HEAD_MAX_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(u32::try_from(HEAD_MAX_BYTES).unwrap_or(u32::MAX));
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(socket), service);
    tokio::pin!(connection);
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "connection ended");
    }
}

fn acceptor(config: &Config) -> Result<TlsAcceptor, ServeError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| ServeError::Certificate(error.to_string()))?
        .with_no_client_auth()
        .with_cert_resolver(config.certificate.resolver());
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(tls)))
}
