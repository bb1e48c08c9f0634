//! A listener that a server can do without. One whose port is taken would keep `nats-server` from starting at all; it is left
//! out instead, and said, so that everything else runs. It comes back with a start of the server that finds the port free.

use std::net::{SocketAddr, TcpListener};

use serde_json::Value;

use super::process::Plan;

/// One section of a configuration that listens somewhere, and may be missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Extra {
    /// The section.
    pub section: &'static str,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Extra {
    /// Can it be listened on?
    pub fn is_free(&self) -> bool {
        TcpListener::bind(self.address).is_ok()
    }
}

impl Plan {
    /// Must the next start do without its extra listener?
    pub fn is_short(&self) -> bool {
        self.extra.as_ref().is_some_and(|extra| !extra.is_free())
    }

    /// The configuration, with its extra listener or without.
    pub fn config(&self, short: bool) -> Value {
        let mut config = self.config.clone();
        if let (true, Some(extra), Value::Object(fields)) = (short, &self.extra, &mut config) {
            fields.remove(extra.section);
        }
        config
    }

    /// Another name for the same server without its extra listener: adding a listener is a start, not a reload.
    pub fn digest(&self, short: bool) -> String {
        match (&self.extra, short) {
            (Some(extra), true) => format!("{} without {}", self.digest, extra.section),
            _ => self.digest.clone(),
        }
    }
}
