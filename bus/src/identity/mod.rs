//! Who may do what on the bus: keys, signed identities, allow-lists and the certificates of the link.
//!
//! The hub runs in NATS' operator mode: [`HubKeys`] holds the operator's and the accounts' keys and signs users, so enrolling
//! a node changes nothing at the hub and revoking one takes effect at once. The node's own server knows its modules and
//! pods by name and password ([`crate::server::User`]); those are worth nothing beyond the node.
//!
//! * [`jwt`] the tokens themselves: pure
//! * [`HubKeys`] the hub's keys on disk, users, revocation; `accounts` how its accounts stand to each other
//! * [`Permissions`], [`node_permissions`] allow-lists
//! * [`membership`] what enrolment leaves on a node's disk; [`deferral`] which of it its link does not use yet
//! * [`Tls`] the hub's certificate authorities and server certificate

mod accounts;
mod allow;
mod authority;
pub mod deferral;
mod files;
pub mod jwt;
mod keys;
pub mod membership;
mod tls;

pub use allow::{Permissions, RESPONSES_MAX, RESPONSES_TTL, node_permissions};
pub use authority::{fingerprint, fingerprints};
pub(crate) use files::make_private_dir;
pub use files::write_private;
pub use keys::{HubKeys, REVOCATIONS_MAX};
pub use tls::{AuthorityFacts, CertificateFacts, Tls};

use std::path::{Path, PathBuf};

/// Why keys, tokens or certificates could not be had.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file could not be read or written.
    #[error("EW-IDENTITY-IO: {path}: {source}; check the directory's owner, mode and free space")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A key file does not hold a key, or a public key is none.
    #[error("EW-IDENTITY-KEY: {what} is not a valid key: {reason}; restore it from a backup")]
    Key {
        /// Which key.
        what: String,
        /// The cause.
        reason: String,
    },
    /// The certificate authority or the server's certificate could not be made or read.
    #[error("EW-IDENTITY-TLS: {what}: {reason}; check the names in the configuration or restore the file")]
    Tls {
        /// What was being done.
        what: String,
        /// The cause.
        reason: String,
    },
    /// The server did not take an account's new token.
    #[error(
        "EW-IDENTITY-CLAIMS: the hub's server did not take the account update: {0}; it is kept and pushed again at its next start"
    )]
    Claims(String),
    /// What a node keeps of its enrolment is damaged.
    #[error("EW-MEMBERSHIP: {0} is not valid ({1}); join again")]
    Membership(String, String),
    /// [`REVOCATIONS_MAX`] is reached.
    #[error("EW-IDENTITY-FULL: {REVOCATIONS_MAX} identities are revoked already; make a new account key")]
    Full,
}

impl IdentityError {
    fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    fn key(what: impl Into<String>, reason: impl ToString) -> Self {
        Self::Key { what: what.into(), reason: reason.to_string() }
    }

    fn tls(what: impl Into<String>, reason: impl ToString) -> Self {
        Self::Tls { what: what.into(), reason: reason.to_string() }
    }
}
