//! Where output goes: stdout, with colour only on a terminal, and a quiet end when nobody reads it any more.

use std::io::IsTerminal;
use std::os::fd::AsFd;

use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::unix::pipe;

use crate::failure::{Failure, Outcome};

/// Standard output.
pub struct Screen {
    out: tokio::io::Stdout,
    /// A person looks at it.
    pub terminal: bool,
    /// Paint.
    pub colour: bool,
}

/// May `terminal` be painted? `NO_COLOR` (no-color.org) and `TERM=dumb` say no.
pub fn may_colour(terminal: bool) -> bool {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    terminal && set("NO_COLOR").is_none() && set("TERM").is_none_or(|term| term != "dumb")
}

impl Screen {
    /// Our stdout as it is.
    pub fn new() -> Self {
        let terminal = std::io::stdout().is_terminal();
        Self { out: tokio::io::stdout(), terminal, colour: may_colour(terminal) }
    }

    /// Writes, and waits until it is written.
    pub async fn write(&mut self, bytes: &[u8]) -> Outcome<()> {
        self.out.write_all(bytes).await.map_err(|error| Failure::output(&error))?;
        self.out.flush().await.map_err(|error| Failure::output(&error))
    }

    /// Writes text.
    pub async fn print(&mut self, text: &str) -> Outcome<()> {
        self.write(text.as_bytes()).await
    }

    /// Writes a JSON value for a program to read.
    pub async fn json(&mut self, value: &serde_json::Value) -> Outcome<()> {
        self.print(&format!("{}\n", crate::decode::safe_json(&value.to_string()))).await
    }
}

/// Waits until whoever reads our stdout is gone; so that a quiet `tail … | head` ends without a next message. For ever if
/// stdout is not a pipe.
pub async fn reader_gone() {
    // Watched only: nothing is written through it, so stdout stays in the mode that whoever started us left it in.
    let watched =
        std::io::stdout().as_fd().try_clone_to_owned().and_then(pipe::Sender::from_owned_fd_unchecked);
    let Ok(stdout) = watched else { return std::future::pending().await }; // a file cannot be watched, and needs not
    if stdout.ready(Interest::ERROR).await.is_err() {
        std::future::pending::<()>().await;
    }
}
