//! The hub module `api`: Kubernetes' REST conventions over the object store, for kubectl and client libraries.
//!
//! Stateless: any replica answers any request. A request runs through here in this order:
//! [`server`] (TLS, HTTP, bounds) -> [`auth`] -> [`route`] (what is meant) -> [`handlers`] (read, write, delete, watch,
//! logs and exec) -> [`store`] -> [`mod@audit`]. What is served stands in one table, [`resource`]; [`defaults`] and [`validate`] are
//! applied here once and nowhere else. [`cache`] feeds watches; [`namespaces`] ends what was in a deleted namespace.
//!
//! In: HTTPS. Out: KV `objects` (read, watch, write), `ew.cmd.<node>.containers.{logs,exec}`, `ew.local.identity.<verb>`.

pub mod audit;
pub mod auth;
pub mod cache;
pub mod certificate;
pub mod defaults;
pub mod discovery;
pub mod edge;
pub mod handlers;
pub mod namespaces;
pub mod openapi;
pub mod patch;
pub mod protobuf;
pub mod resource;
pub mod rim;
pub mod route;
pub mod selector;
pub mod server;
pub mod status;
pub mod store;
pub mod strategic;
pub mod table;
pub mod validate;
pub mod validate_channel;
pub mod validate_pod;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

pub use auth::Token;
pub use certificate::Certificate;
pub use edge::{ByteStream, EdgeStreams, Identity};
pub use rim::{ApiModule, ApiRim, NAME, flows};
pub use server::{ServeError, Server};

/// How to serve.
#[derive(Debug, Clone)]
pub struct Config {
    /// Address and port; port 0 takes a free one.
    pub listen: SocketAddr,
    /// What it shows.
    pub certificate: Certificate,
    /// Who may ask.
    pub tokens: Vec<Token>,
}

/// What the API stands on.
#[derive(Clone)]
pub struct Parts {
    /// The object store.
    pub store: Arc<dyn store::Store>,
    /// Byte streams to nodes.
    pub streams: Arc<dyn EdgeStreams>,
    /// The identity module.
    pub identity: Arc<dyn Identity>,
    /// Who did what.
    pub audit: Arc<dyn audit::Audit>,
}

/// Serves until `stop`, then lets running requests end.
pub async fn run(config: Config, parts: Parts, stop: CancellationToken) -> Result<(), ServeError> {
    Server::bind(config, parts).await?.run(stop).await
}

/// What decoders are tried with: the file needs nothing but std, and stands with the tests of all crates.
#[cfg(test)]
#[path = "../../../tests/src/fuzz.rs"]
mod fuzz;
