//! Where the node's module touches the world: what the server captures, services on loopback, and the service bus.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};

use bus::connection::{Bus, Handles};
use bus::module::Rim;
use bus::provision;
use bytes::Bytes;
use schemas::command::{Refusal, Reply};
use schemas::envelope::Headers;
use schemas::name::NodeName;
use schemas::routing::{Deliver, Delivered, Destination};
use schemas::subject::{RULES_ENTRUSTED, STREAM_RULES};
use tokio::sync::{mpsc, watch};

use super::service_bus::ServiceBus;
use super::{Act, Done, Router, entrusted};
use crate::caller::Caller;
use crate::listener;
use crate::table::Table;

/// The node's rim.
pub struct RouterRim {
    node: NodeName,
    listen: Option<SocketAddr>,
    caller: Result<Caller, String>,
    table: Arc<RwLock<Arc<Table>>>,
    /// What rules name, once it is known.
    sources: watch::Sender<Option<Vec<String>>>,
}

impl RouterRim {
    /// `listen` is where the service bus is served, if it is.
    pub fn new(node: NodeName, listen: Option<SocketAddr>) -> Self {
        Self { node, listen, caller: Caller::new(), table: Arc::default(), sources: watch::Sender::new(None) }
    }

    async fn deliver(&self, bus: &Handles, deliver: Deliver) -> Reply<Delivered> {
        match deliver.to {
            Destination::Publish { subject } => {
                let work = bus.work.as_ref().ok_or_else(|| internal("no connection in WORK"))?;
                publish(work, &subject, deliver.body).await?;
                Ok(Delivered { status: 200, headers: Vec::new(), body: Bytes::new() })
            }
            Destination::Call { port, method, path } => {
                let caller = self.caller.as_ref().map_err(internal)?;
                let url = format!("http://127.0.0.1:{port}{path}");
                let called = caller.call(&method, &url, &deliver.headers, deliver.body).await;
                called.map_err(|failed| {
                    let text = format!("the service on node {}: {failed}; does it run?", self.node);
                    Refusal::new(failed.status, "EW-SERVICE-FAILED", text)
                })
            }
        }
    }
}

/// The server has it when this returns.
async fn publish(work: &Bus, subject: &str, body: Bytes) -> Result<(), Refusal> {
    let failed =
        |error: bus::tool::ToolError| Refusal::new(503, "EW-NOT-READY", format!("{error}; try again"));
    work.say(subject, &Headers::new(), body, None).await.map_err(failed)?;
    work.round_trip().await.map_err(failed)
}

fn internal(error: impl std::fmt::Display) -> Refusal {
    Refusal::new(500, "EW-INTERNAL", error.to_string())
}

impl Rim<Router> for RouterRim {
    async fn act(&self, bus: &Handles, act: Act) -> Option<Done> {
        match act {
            Act::Follow(table) => {
                *self.table.write().unwrap_or_else(PoisonError::into_inner) = table;
                None
            }
            Act::Capture(mut subjects) => {
                let work = bus.work.as_ref()?;
                let sources = Some(subjects.clone());
                self.sources.send_if_modified(|known| {
                    *known != sources && {
                        *known = sources;
                        true
                    }
                });
                subjects.push(RULES_ENTRUSTED.to_owned());
                let captured = provision::capture(work, STREAM_RULES, &subjects).await;
                Some(Done::Captured(captured.map(drop).map_err(|error| error.to_string())))
            }
            Act::Deliver(message, deliver) => {
                let answer = self.deliver(bus, deliver).await;
                Some(Done::Answer(message, schemas::encode(&answer)))
            }
        }
    }

    async fn watch(&self, bus: &Handles, tell: mpsc::Sender<Done>) -> Result<(), String> {
        let work = bus.work.as_ref().ok_or("no connection in WORK")?;
        let service = ServiceBus::new(self.node.clone(), bus.control.clone(), self.table.clone());
        let serving = async {
            let Some(listen) = self.listen else { return std::future::pending().await };
            listener::serve(listen, None, Arc::new(service), "EW-SERVICE-BUS-LISTEN", "--service-bus").await
        };
        tokio::select! {
            () = serving => Err("the service bus ended".to_owned()),
            () = entrusted::relay(work, self.sources.subscribe()) => Err("the relay of MQTT ended".to_owned()),
            () = tell.closed() => Ok(()),
        }
    }
}
