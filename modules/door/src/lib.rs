//! The node's module `door`: the workload bus by HTTP, for programs that have no NATS client. It runs on every node, offline
//! too, beside the node's server on the pods' gateway address.
//!
//! A request runs through here in this order: [`server`] (TCP, HTTP, bounds) -> [`route`] (what is meant) -> [`login`] (who
//! asks) -> [`answer`] (room, body) -> `bus::guest` (the connection **as that user**: the server itself decides what it may).
//! Then [`captures`] says whether a word is stored or live; [`listening`] and its [`ring`] keep what readers of [`events`] may
//! have missed, unless a stream has it ([`held`]); [`mod@frame`] is its form. Bounds are [`tally`]'s; what is refused is said by [`refusal`].
//!
//! In: HTTP; which streams WORK has, and what they hold. Out: what users say, in their own name; `ew.evt.door.<Type>` when the port is taken.

pub mod answer;
pub mod captures;
pub mod events;
pub mod frame;
pub mod headers;
pub mod held;
pub mod listening;
pub mod login;
pub mod openapi;
pub mod refusal;
pub mod ring;
pub mod route;
pub mod server;
pub mod tally;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bus::connection::Handles;
use bus::flow::Flow;
use bus::guest::Guests;
use bus::module::{Effect, Input, Module, Never, Rim};
use schemas::Timestamp;
use schemas::name::NodeName;
use schemas::report::{EventReport, Severity};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::answer::Door;
use crate::captures::Captures;

/// Name of the module.
pub const NAME: &str = "door";
/// A port that is taken is tried again so often.
const BIND_INTERVAL: Duration = Duration::from_secs(2);

/// All that the module reads and writes. What users say is said with their own logins, not with these.
pub fn flows() -> Vec<Flow> {
    vec![Flow::streams().in_work(), Flow::report(format!("ew.evt.{NAME}.*"), "EventReport")]
}

/// What the rim tells.
#[derive(Debug, Clone, PartialEq)]
pub enum Done {
    /// It cannot listen there.
    Shut {
        /// Where.
        listen: SocketAddr,
        /// The system's words.
        cause: String,
    },
    /// It listens there.
    Open {
        /// Where.
        listen: SocketAddr,
    },
}

/// The module: it knows whether it told that the door is shut.
pub struct DoorModule {
    node: NodeName,
    told_shut: bool,
    events: u64,
}

impl DoorModule {
    /// The module of `node`.
    pub fn new(node: NodeName) -> Self {
        Self { node, told_shut: false, events: 0 }
    }

    fn tell(&mut self, severity: Severity, reason: &str, message: String, now: Timestamp) -> Effect<Never> {
        self.events += 1;
        let id = format!("{}-{}", now.0, self.events);
        Effect::event(&EventReport::of_node(&id, &self.node, NAME, now, severity, reason, message))
    }
}

impl Module for DoorModule {
    type Act = Never;
    type Done = Done;

    fn apply(&mut self, input: Input<Done>, now: Timestamp) -> Vec<Effect<Never>> {
        match input {
            Input::Done(Done::Shut { listen, cause }) if !self.told_shut => {
                self.told_shut = true;
                let message = format!(
                    "EW-HTTP-PORT: pods have no bus by HTTP: cannot listen on {listen}: {cause}; end what holds it \
                     (`ss -ltnp` names it) or give another --http-port; it is tried again, and all else runs"
                );
                vec![self.tell(Severity::Warning, "HttpDoorShut", message, now)]
            }
            Input::Done(Done::Open { listen }) if self.told_shut => {
                self.told_shut = false;
                let message = format!("pods have the bus by HTTP again, on {listen}");
                vec![self.tell(Severity::Normal, "HttpDoorOpen", message, now)]
            }
            _ => Vec::new(),
        }
    }
}

/// The rim: the HTTP server.
pub struct DoorRim {
    /// Where to listen.
    pub listen: SocketAddr,
    /// The node's server, `nats://address:port`.
    pub bus_url: String,
}

impl Rim<DoorModule> for DoorRim {
    async fn act(&self, _: &Handles, act: Never) -> Option<Done> {
        match act {}
    }

    async fn watch(&self, bus: &Handles, tell: mpsc::Sender<Done>) -> Result<(), String> {
        let stop = CancellationToken::new();
        // Dropped with the module: connections and readers then end too.
        let _ends = stop.clone().drop_guard();
        let listen = self.listen;
        let listener = loop {
            match TcpListener::bind(listen).await {
                Ok(listener) => break listener,
                Err(error) => {
                    tracing::warn!(%listen, %error, "EW-HTTP-PORT: no bus by HTTP yet; tried again");
                    let _ = tell.send(Done::Shut { listen, cause: error.to_string() }).await;
                }
            }
            tokio::time::sleep(BIND_INTERVAL).await;
        };
        let _ = tell.send(Done::Open { listen }).await;
        tracing::info!(%listen, "the bus by HTTP");
        let door = Door::new(Arc::new(Guests::new(&self.bus_url)), Captures::new(bus.work.clone()), stop);
        server::serve(listener, door).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shut_door_is_told_once_and_so_is_that_it_opened() {
        let listen: SocketAddr = "10.85.0.1:9480".parse().unwrap();
        let mut module = DoorModule::new(NodeName::new("n1").unwrap());
        let shut = Done::Shut { listen, cause: "Address already in use".into() };
        let told: Vec<usize> =
            [Done::Open { listen }, shut.clone(), shut.clone(), Done::Open { listen }, shut]
                .into_iter()
                .map(|done| module.apply(Input::Done(done), Timestamp(0)).len())
                .collect();
        assert_eq!(told, [0, 1, 0, 1, 1]);
    }
}
