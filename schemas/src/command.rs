//! What the hub asks a node to do, and the frames of a byte stream between them.
//!
//! A command is a request on `subject::command`; its answer is [`Reply`]. Logs and exec open a **byte stream**: the
//! request carries a session name, frames then flow on `subject::stream_up` and `subject::stream_down`. Each side may
//! have at most the credit in flight that the other granted, so a slow reader stops the writer and nobody's memory grows.

use serde::{Deserialize, Serialize};

/// The credit that each side of a byte stream grants at its start, in bytes.
pub const STREAM_CREDIT_BYTES: u32 = 256 * 1024;
/// The largest [`Frame::Data`].
pub const FRAME_MAX_BYTES: usize = 32 * 1024;
/// A stream whose other side says nothing for so long is closed (both sides send [`Frame::Alive`] when idle).
pub const STREAM_SILENCE_MAX_MS: u64 = 15_000;

/// Answer to a command.
pub type Reply<T> = Result<T, Refusal>;

/// Why something was refused: a stable code, the cause, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Refusal {
    /// Stable, such as `EW-POD-NOT-FOUND`. Listed in docs/errors.md.
    pub code: String,
    /// For people: the cause and what to do.
    pub message: String,
    /// The HTTP status that fits.
    pub status: u16,
}

impl Refusal {
    /// A refusal.
    pub fn new(status: u16, code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into(), status }
    }
}

/// Opens a stream of a container's log. Verb `logs` of module `containers`; answered with `Reply<()>`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OpenLogs {
    /// Names the stream; random, made by the asker.
    pub session: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Name of the container; empty for the pod's only one.
    pub container: String,
    /// Go on with what is written later.
    pub follow: bool,
    /// Only the last so many lines.
    pub tail_lines: Option<u64>,
    /// Only lines of the last so many seconds.
    pub since_seconds: Option<u64>,
    /// Begin each line with its time (RFC 3339).
    pub timestamps: bool,
    /// The log of the instance before the last restart.
    pub previous: bool,
    /// Stop after so many bytes.
    pub limit_bytes: Option<u64>,
}

/// Runs a program in a container. Verb `exec` of module `containers`; answered with `Reply<()>`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OpenExec {
    /// Names the stream; random, made by the asker.
    pub session: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Name of the container; empty for the pod's only one.
    pub container: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// The asker sends standard input.
    pub stdin: bool,
    /// The asker wants standard output.
    pub stdout: bool,
    /// The asker wants standard error (never with `tty`).
    pub stderr: bool,
    /// Give it a terminal.
    pub tty: bool,
}

/// Channels of a byte stream, numbered as Kubernetes' remote command protocol has them.
pub mod channel {
    /// Standard input.
    pub const STDIN: u8 = 0;
    /// Standard output; log bytes.
    pub const STDOUT: u8 = 1;
    /// Standard error.
    pub const STDERR: u8 = 2;
    /// Terminal size, as the JSON that kubectl sends: `{"Width":80,"Height":24}`.
    pub const RESIZE: u8 = 4;
}

/// One message of a byte stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Frame {
    /// Bytes on a channel. `sequence` counts from 0 in each direction: a gap ends the stream with an error.
    Data {
        /// Position of the frame in its direction.
        sequence: u64,
        /// One of [`channel`].
        channel: u8,
        /// At most [`FRAME_MAX_BYTES`]. Empty closes the channel.
        bytes: bytes::Bytes,
    },
    /// The reader took so many more bytes: the writer may send as many again.
    Credit {
        /// Bytes.
        bytes: u32,
    },
    /// Nothing to say, but here.
    Alive,
    /// The end. `None`: all went well; for exec, `exit_code` says how the program ended.
    End {
        /// Exit code of the program, for exec.
        exit_code: Option<i32>,
        /// What went wrong.
        error: Option<Refusal>,
    },
}
