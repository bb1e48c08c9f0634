//! The API as a module of the bus: its flows, and the rim that serves HTTPS for as long as the module runs.
//!
//! The API decides nothing by inputs: requests come over HTTPS, and what they need of the bus (objects, byte streams to
//! nodes, the identity module) is reached through the handles that the flows gave.

use std::time::Duration;

use async_trait::async_trait;
use bus::connection::{Bus, Handles};
use bus::flow::Flow;
use bus::module::{Effect, Input, Module, Never, Rim};
use bus::tool::ToolError;
use schemas::Timestamp;
use schemas::audit::{AuditRecord, Thinned};
use schemas::command::{Frame, OpenExec, OpenLogs, Refusal, Reply};
use schemas::envelope::Headers;
use schemas::name::NodeName;
use schemas::subject;
use serde_json::Value;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::audit::{Audit, Wanted};
use crate::edge::{ByteStream, EdgeStreams, FRAMES_WAITING_MAX, Identity};
use crate::{Config, Parts};

/// Name of the module.
pub const NAME: &str = "api";
/// The module on nodes that has the containers.
const CONTAINERS: &str = "containers";
/// The module that has keys and tokens.
const IDENTITY: &str = "identity";
/// How long the identity module has for an answer.
const IDENTITY_TIMEOUT: Duration = Duration::from_secs(10);

/// All that the module reads and writes.
pub fn flows() -> Vec<Flow> {
    vec![
        Flow::watch(subject::BUCKET_OBJECTS, "*.*.*.*", "Object"),
        Flow::write(subject::BUCKET_OBJECTS, "*.*.*.*", "Object"),
        Flow::request("ew.cmd.*.containers.logs", "OpenLogs -> Reply<()>"),
        Flow::request("ew.cmd.*.containers.exec", "OpenExec -> Reply<()>"),
        Flow::stream("Frame"),
        Flow::request(subject::local(IDENTITY, ">"), "JSON -> Reply<JSON>"),
        Flow::report(subject::audit_filter(false), "AuditRecord"),
        Flow::report(subject::audit_filter(true), "AuditRecord"),
        Flow::read(subject::STREAM_AUDIT, "AuditRecord"),
        Flow::read(subject::STREAM_REFUSED, "AuditRecord"),
    ]
}

/// The module: it has no state, and nothing on the bus concerns it by itself.
#[derive(Debug, Default)]
pub struct ApiModule;

impl Module for ApiModule {
    type Act = Never;
    type Done = Never;

    fn apply(&mut self, _: Input<Never>, _: Timestamp) -> Vec<Effect<Never>> {
        Vec::new()
    }
}

/// Between two signs of life to a node whose bytes wait for the user.
const ALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// The rim: the HTTPS server.
pub struct ApiRim {
    /// How to serve.
    pub config: Config,
}

impl Rim<ApiModule> for ApiRim {
    async fn act(&self, _: &Handles, act: Never) -> Option<Never> {
        match act {}
    }

    async fn watch(&self, bus: &Handles, _tell: mpsc::Sender<Never>) -> Result<(), String> {
        let stop = CancellationToken::new();
        // Dropped with the module: connections and streams to nodes then end too.
        let _ends = stop.clone().drop_guard();
        let reach =
            Arc::new(BusReach { bus: bus.control.clone(), stop: stop.clone(), tasks: TaskTracker::new() });
        let store = Arc::new(bus::store::ObjectStore::new(&bus.control));
        let audit = Arc::new(BusAudit { bus: bus.control.clone(), thinned: Mutex::default() });
        let parts = Parts { store, streams: reach.clone(), identity: reach, audit };
        crate::run(self.config.clone(), parts, stop).await.map_err(|error| format!("EW-API-LISTEN: {error}"))
    }
}

/// Nodes and the identity module, over the bus.
struct BusReach {
    bus: Bus,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl BusReach {
    async fn open<T: serde::Serialize>(
        &self,
        node: &NodeName,
        verb: &str,
        session: &str,
        request: &T,
    ) -> Result<ByteStream, Refusal> {
        let stream =
            bus::stream::ByteStream::open(&self.bus, node, CONTAINERS, verb, session, request).await?;
        let (say, incoming) = mpsc::channel(FRAMES_WAITING_MAX);
        let (outgoing, hear) = mpsc::channel(FRAMES_WAITING_MAX);
        self.tasks.spawn(carry(stream, say, hear, self.stop.clone()));
        Ok(ByteStream { incoming, outgoing })
    }
}

/// Gives the user a frame; says to the node meanwhile that we are still here, however long the user takes.
async fn deliver(stream: &bus::stream::ByteStream, say: &mpsc::Sender<Frame>, frame: Frame) -> bool {
    let saying = say.send(frame);
    tokio::pin!(saying);
    loop {
        match tokio::time::timeout(ALIVE_INTERVAL, &mut saying).await {
            Ok(said) => return said.is_ok(),
            Err(_) if stream.alive().await.is_err() => return false,
            Err(_) => {}
        }
    }
}

/// Carries frames between a stream and its user until either ends. The user's channel is only read when what it said
/// before has found credit, so a program that does not read its input stops the one who types.
async fn carry(
    mut stream: bus::stream::ByteStream,
    say: mpsc::Sender<Frame>,
    mut hear: mpsc::Receiver<Frame>,
    stop: CancellationToken,
) {
    let mut waiting: Option<(u8, bytes::Bytes)> = None;
    let mut hearing = true;
    let lost = loop {
        if let Some((channel, bytes)) = waiting.take() {
            match stream.send(channel, &bytes).await {
                Ok(taken) if taken < bytes.len() => waiting = Some((channel, bytes.slice(taken..))),
                Ok(_) => {}
                Err(refusal) => break refusal,
            }
        }
        tokio::select! {
            frame = stream.next() => match frame {
                Ok(None) => {}
                Ok(Some(frame)) => {
                    let last = matches!(frame, Frame::End { .. });
                    if !deliver(&stream, &say, frame).await {
                        let _ = stream.end(None, None).await;
                        return;
                    }
                    if last {
                        return;
                    }
                }
                Err(refusal) => break refusal,
            },
            frame = hear.recv(), if hearing && (waiting.is_none()) => match frame {
                Some(Frame::Data { channel, bytes, .. }) => waiting = Some((channel, bytes)),
                Some(_) => {}
                None => hearing = false,
            },
            // The user is gone: the node should know at once, not by silence.
            () = say.closed() => {
                let _ = stream.end(None, None).await;
                return;
            }
            () = stop.cancelled() => {
                let _ = stream.end(None, None).await;
                return;
            }
        }
    };
    // When nobody listens any more there is nobody to tell.
    let _ = say.send(Frame::End { exit_code: None, error: Some(lost) }).await;
}

#[async_trait]
impl EdgeStreams for BusReach {
    async fn open_logs(&self, node: &NodeName, open: OpenLogs) -> Result<ByteStream, Refusal> {
        self.open(node, "logs", &open.session, &open).await
    }
    async fn open_exec(&self, node: &NodeName, open: OpenExec) -> Result<ByteStream, Refusal> {
        self.open(node, "exec", &open.session, &open).await
    }
}

#[async_trait]
impl Identity for BusReach {
    async fn call(&self, verb: &str, body: Value) -> Reply<Value> {
        let to = subject::local(IDENTITY, verb);
        let body = schemas::encode(&body);
        let answer = self.bus.ask(&to, &Headers::new(), body.into(), IDENTITY_TIMEOUT).await;
        let answer = answer.map_err(|error| match error {
            ToolError::NoResponders { .. } => Refusal::new(
                503,
                "EW-NOT-READY",
                "the identity module does not run; see 'edgewire modules' and try again",
            ),
            error => Refusal::new(503, "EW-NOT-READY", format!("{error}; try again")),
        })?;
        schemas::decode::<Reply<Value>>(&answer.payload).map_err(|error| {
            Refusal::new(500, "EW-INTERNAL", format!("the identity module's answer: {error}"))
        })?
    }
}

/// The hub's audit streams.
struct BusAudit {
    bus: Bus,
    thinned: Mutex<Thinned>,
}

impl BusAudit {
    /// What of it is to be kept now: all that was done, and refusals thinned out.
    fn thin(&self, record: AuditRecord) -> Vec<AuditRecord> {
        if !record.refused() {
            return vec![record];
        }
        let mut thinned = self.thinned.lock().unwrap_or_else(PoisonError::into_inner);
        let kind = format!("{} {} {}", record.user, record.verb, record.code);
        let now = record.at;
        let mut keep = thinned.due(now);
        keep.extend(thinned.add(&kind, record, now));
        keep
    }
}

#[async_trait]
impl Audit for BusAudit {
    async fn write(&self, record: AuditRecord) {
        for record in self.thin(record) {
            if let Err(error) = bus::audit::write(&self.bus, &record, NAME).await {
                tracing::error!(%error, user = record.user, verb = record.verb, object = record.object, "not in the audit stream");
            }
        }
    }

    async fn read(&self, wanted: Wanted) -> Result<Vec<AuditRecord>, Refusal> {
        let read =
            bus::audit::read(&self.bus, wanted.since, wanted.limit, |record| wanted.wants(record)).await;
        read.map_err(|error| {
            Refusal::new(503, "EW-NOT-READY", format!("the audit streams: {error}; try again"))
        })
    }
}
