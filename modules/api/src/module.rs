//! The API as a module of the hub: its flows, and the bus behind [`EdgeStreams`] and [`Identity`].
//!
//! It decides nothing on inputs: all it does is serve, so `apply` is empty and the server runs as the rim's watch. A server
//! that falls is started again like any other module.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bus::connection::{Bus, Handles};
use bus::flow::Flow;
use bus::module::{Effect, Input, Module, Never, Rim};
use bus::store::ObjectStore;
use bus::stream;
use schemas::Timestamp;
use schemas::command::{Frame, OpenExec, OpenLogs, Refusal, Reply};
use schemas::envelope::Headers;
use schemas::name::NodeName;
use schemas::subject;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::edge::{ByteStream, EdgeStreams, FRAMES_WAITING_MAX, Identity};
use crate::{Config, Parts};

/// Name of the module.
pub const NAME: &str = "api";
/// How long the identity module may take.
const IDENTITY_TIMEOUT: Duration = Duration::from_secs(10);

/// All that the module reads and writes.
pub fn flows() -> Vec<Flow> {
    vec![
        Flow::watch(subject::BUCKET_OBJECTS, ">", "Object"),
        Flow::write(subject::BUCKET_OBJECTS, ">", "Object"),
        Flow::request("ew.cmd.*.containers.*", "OpenLogs, OpenExec -> Reply<()>"),
        Flow::stream("Frame"),
        Flow::request(subject::local("identity", "*"), "JSON -> Reply<JSON>"),
        Flow::request(subject::local("identity", "token.*"), "JSON -> Reply<JSON>"),
    ]
}

/// The module.
pub struct Api;

impl Module for Api {
    type Act = Never;
    type Done = Never;

    fn apply(&mut self, _input: Input<Never>, _now: Timestamp) -> Vec<Effect<Never>> {
        Vec::new()
    }
}

/// The rim: the server.
pub struct ApiRim(pub Config);

impl Rim<Api> for ApiRim {
    async fn act(&self, _bus: &Handles, act: Never) -> Option<Never> {
        match act {}
    }

    async fn watch(&self, bus: &Handles, tell: mpsc::Sender<Never>) -> Result<(), String> {
        let parts = Parts {
            store: Arc::new(ObjectStore::new(&bus.control)),
            streams: Arc::new(Streams(bus.control.clone())),
            identity: Arc::new(OverBus(bus.control.clone())),
        };
        let stop = CancellationToken::new();
        let _stop_when_dropped = stop.clone().drop_guard();
        let serving = crate::run(self.0.clone(), parts, stop.clone());
        tokio::select! {
            ended = serving => match ended {
                Ok(()) => Err("the server ended".to_owned()),
                Err(error) => Err(error.to_string()),
            },
            () = tell.closed() => Ok(()),
        }
    }
}

struct Streams(Bus);

impl Streams {
    async fn open<T: serde::Serialize + Sync>(
        &self,
        node: &NodeName,
        verb: &str,
        session: &str,
        open: &T,
    ) -> Result<ByteStream, Refusal> {
        let opened = stream::ByteStream::open(&self.0, node, "containers", verb, session, open).await?;
        let (tell, incoming) = mpsc::channel(FRAMES_WAITING_MAX);
        let (outgoing, said) = mpsc::channel(FRAMES_WAITING_MAX);
        tokio::spawn(carry(opened, tell, said)); // ends when either side does: the receiver owns it
        Ok(ByteStream { incoming, outgoing })
    }
}

/// Carries frames between a byte stream of the bus and the request that asked for it, until either side ends.
async fn carry(mut stream: stream::ByteStream, tell: mpsc::Sender<Frame>, mut said: mpsc::Receiver<Frame>) {
    let mut waiting: Option<(u8, bytes::Bytes)> = None;
    loop {
        if let Some((channel, bytes)) = waiting.take_if(|_| stream.can_send()) {
            match stream.send(channel, &bytes).await {
                Ok(sent) if sent < bytes.len() => waiting = Some((channel, bytes.slice(sent..))),
                Ok(_) => {}
                Err(_) => return,
            }
            continue;
        }
        tokio::select! {
            frame = stream.next() => match frame {
                Ok(Some(frame)) => {
                    let ended = matches!(frame, Frame::End { .. });
                    if tell.send(frame).await.is_err() || ended {
                        break;
                    }
                }
                Ok(None) => {}
                Err(refusal) => {
                    let _ = tell.send(Frame::End { exit_code: None, error: Some(refusal) }).await;
                    return;
                }
            },
            frame = said.recv(), if waiting.is_none() => match frame {
                Some(Frame::Data { channel, bytes, .. }) => waiting = Some((channel, bytes)),
                Some(_) => {}
                None => break,
            },
        }
    }
    // The node frees what it opened; if it does not hear it, silence tells it.
    let _ = stream.end(None, None).await;
}

#[async_trait]
impl EdgeStreams for Streams {
    async fn open_logs(&self, node: &NodeName, mut open: OpenLogs) -> Result<ByteStream, Refusal> {
        open.session = stream::new_session();
        self.open(node, "logs", &open.session.clone(), &open).await
    }
    async fn open_exec(&self, node: &NodeName, mut open: OpenExec) -> Result<ByteStream, Refusal> {
        open.session = stream::new_session();
        self.open(node, "exec", &open.session.clone(), &open).await
    }
}

struct OverBus(Bus);

#[async_trait]
impl Identity for OverBus {
    async fn call(&self, verb: &str, body: Value) -> Reply<Value> {
        let to = subject::local("identity", verb);
        let none = Headers::new();
        let asked = self.0.ask(&to, &none, schemas::encode(&body).into(), IDENTITY_TIMEOUT);
        let answer = asked.await.map_err(|cause| {
            Refusal::new(503, "EW-NOT-READY", format!("the identity module does not answer: {cause}"))
        })?;
        schemas::decode::<Reply<Value>>(&answer.payload)
            .map_err(|error| Refusal::new(500, "EW-BAD-ANSWER", format!("identity: {error}")))?
    }
}
