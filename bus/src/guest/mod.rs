//! Guests: who has a login of the node's server and comes through another door than the server's own (HTTP).
//!
//! A guest is a connection **as that user**, so the server itself decides what it may say and hear, and nothing of that is
//! decided here. What the server refuses it says in passing, some time after the word it refused; [`connection`] knows for
//! each word whether it was taken, and how that is sound. [`pool`] keeps the connections: few, shared by all requests of one
//! user, ended when nobody uses them, and without wearing the server out with wrong passwords.

pub mod connection;
pub mod pool;

pub use connection::{Ear, Guest, GuestError, Heard};
pub use pool::{EnterError, Guests};

/// A name and a password, as they were given at the door.
#[derive(Clone, PartialEq, Eq)]
pub struct Pass {
    /// Name of the user.
    pub user: String,
    /// Its password.
    pub password: String,
}

impl std::fmt::Debug for Pass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pass").field("user", &self.user).finish_non_exhaustive()
    }
}
