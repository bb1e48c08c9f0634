//! What the API reaches over the bus: byte streams of containers, and the identity module.
//!
//! Two small traits, so that the API's tests need no node. The hub gives the real ones.

use async_trait::async_trait;
use schemas::command::{Frame, OpenExec, OpenLogs, Refusal, Reply};
use schemas::name::NodeName;
use serde_json::Value;
use tokio::sync::mpsc;

/// Frames that may wait in each direction of a [`ByteStream`].
pub const FRAMES_WAITING_MAX: usize = 8;

/// A byte stream with a container. Whoever drops it ends it.
#[derive(Debug)]
pub struct ByteStream {
    /// What the node says. The end of the channel without [`Frame::End`] is a lost stream.
    pub incoming: mpsc::Receiver<Frame>,
    /// What is said to the node.
    pub outgoing: mpsc::Sender<Frame>,
}

/// Opens byte streams on nodes.
#[async_trait]
pub trait EdgeStreams: Send + Sync + 'static {
    /// A container's log.
    async fn open_logs(&self, node: &NodeName, open: OpenLogs) -> Result<ByteStream, Refusal>;
    /// A program in a container.
    async fn open_exec(&self, node: &NodeName, open: OpenExec) -> Result<ByteStream, Refusal>;
}

/// Asks the identity module: `schemas::subject::local("identity", verb)`.
#[async_trait]
pub trait Identity: Send + Sync + 'static {
    /// JSON in, JSON out.
    async fn call(&self, verb: &str, body: Value) -> Reply<Value>;
}
