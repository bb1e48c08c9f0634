//! Running a `nats-server` as a child that outlives us.
//!
//! [`HubServer`] and [`LeafServer`] write the server's configuration, start it in a session of its own, adopt it when a
//! former life of ours left it running, start it again when it dies, and say so in a [`ServerStatus`]. They differ in the
//! configuration alone; the supervising is one [`process::Supervisor`].
//!
//! * [`hub`] operator mode, TLS for clients and leafs; [`leaf`] local users, two remotes; [`way`] the ways to the hub;
//!   [`look`] how the link looks, with the kernel's counters of [`tcp`]; [`unlinked`] that it broke;
//!   [`denials`] what a server refused
//! * [`hold`] holding one still while its files are copied
//! * [`users`] the leaf's users on disk
//! * [`binary`] which `nats-server`; [`process`] the supervisor, [`probe`] its connection; [`extra`] what it can do without; [`child`] one process:
//!   record, signals, log;
//!   [`store`] what it says of its store

pub mod binary;
pub mod child;
mod denials;
mod extra;
pub mod hold;
mod home;
pub mod hub;
pub mod leaf;
mod look;
mod probe;
mod process;
pub mod session;
mod store;
mod tcp;
mod unlinked;
pub mod users;
pub mod way;

pub use denials::{Denial, Denials};
pub use hub::{HubConfig, HubServer};
pub use leaf::{LeafConfig, LeafServer, Link};
pub use look::{LinkFacts, Refusal};
pub use users::{USERS_MAX, User};
pub use way::{HubLink, Way};

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::identity::IdentityError;

/// Where a server stands. Each field is a fact that stays readable until it changes, so a slow reader misses nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerStatus {
    /// What it is doing.
    pub phase: Phase,
    /// Its process, while there is one.
    pub pid: Option<u32>,
    /// Was the process found running rather than started by us?
    pub adopted: bool,
    /// How often it was started again after it died.
    pub restarts: u32,
    /// Why it last went down, with the end of its log.
    pub last_error: Option<String>,
    /// What the server said against single streams or consumers of its store at its last start. It runs without them;
    /// making such a stream again, as it was declared, brings its messages back (measured). A damaged block of messages
    /// it drops *without a word*: that shows in the stream's sequence alone.
    pub store_warnings: Vec<String>,
    /// Its JetStream store kept the server from starting and was moved aside: why, and where to. What was in it is gone
    /// from the server; to be told, and repaired from the hub.
    pub store_moved: Option<StoreMoved>,
    /// The listener that it runs without, because its port is taken (a node's MQTT).
    pub left_out: Option<SocketAddr>,
}

/// See [`ServerStatus::store_moved`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreMoved {
    /// What the server said of it.
    pub reason: String,
    /// Where it lies now.
    pub to: PathBuf,
}

/// See [`ServerStatus`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Phase {
    /// Its process runs, or is about to; it does not take connections yet.
    #[default]
    Starting,
    /// It took a real connection.
    Ready,
    /// It died and is started again after a pause.
    Down,
    /// We no longer look after it.
    Stopped,
}

/// Why a server cannot be run. Each kind has a stable code at the start of its text.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// No `nats-server` anywhere.
    #[error("EW-NATS-NOT-FOUND: no nats-server in {}; install 2.15.x (scripts/setup.sh does) or set EDGEWIRE_NATS_SERVER to its path", paths(.looked))]
    NotFound {
        /// Where it was looked for.
        looked: Vec<PathBuf>,
    },
    /// A `nats-server` of a line that does not talk to the others.
    #[error(
        "EW-NATS-VERSION: {path} is {found:?}, but hub and nodes need 2.15.x; install it (scripts/setup.sh does) or set EDGEWIRE_NATS_SERVER"
    )]
    Version {
        /// The binary.
        path: PathBuf,
        /// What it said of itself.
        found: String,
    },
    /// Somebody else listens there.
    #[error(
        "EW-PORT-IN-USE: {address} is taken by another program; stop it (`ss -ltnp` names it) or configure another port"
    )]
    PortInUse {
        /// The address.
        address: SocketAddr,
    },
    /// The address is not one of this machine.
    #[error(
        "EW-ADDRESS: cannot listen on {address}: {source}; make the interface that carries it or configure another address (a port below 1024 needs root)"
    )]
    Address {
        /// The address.
        address: SocketAddr,
        /// The cause.
        source: std::io::Error,
    },
    /// A file or the process could not be handled.
    #[error("EW-NATS-IO: {path}: {source}; check owner, mode and free space")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The configuration was refused, by us or by the server.
    #[error("EW-NATS-CONFIG: {0}; correct the configuration")]
    Config(String),
    /// It did not take connections in time.
    #[error("EW-NATS-NOT-READY: nats-server does not take connections ({reason}); see {log}")]
    NotReady {
        /// What is known of the cause.
        reason: String,
        /// Its log.
        log: PathBuf,
    },
    /// The supervisor has stopped.
    #[error("EW-NATS-STOPPED: the server is no longer supervised; start it again")]
    Stopped,
    /// Keys or certificates.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

impl ServerError {
    /// The stable code, such as `EW-PORT-IN-USE`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "EW-NATS-NOT-FOUND",
            Self::Version { .. } => "EW-NATS-VERSION",
            Self::PortInUse { .. } => "EW-PORT-IN-USE",
            Self::Address { .. } => "EW-ADDRESS",
            Self::Io { .. } => "EW-NATS-IO",
            Self::Config(_) => "EW-NATS-CONFIG",
            Self::NotReady { .. } => "EW-NATS-NOT-READY",
            Self::Stopped => "EW-NATS-STOPPED",
            Self::Identity(_) => "EW-IDENTITY",
        }
    }

    fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }
}

fn paths(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}
