//! One running map: takes what its filter lets through, and says it under its new name.
//!
//! What MQTT clients said at QoS 1 or 2 is taken in order from where the server keeps it, and is done with when it is where it
//! has to go: a killed server or agent loses none of it. Into `up.` and `bulk.` it goes once (by its ID), elsewhere perhaps
//! twice after a fall. What nobody was promised (QoS 0, plain NATS) is heard live, and dropped when its goal does not take it.

use std::time::Duration;

use bus::connection::Bus;
use bus::relay::{Entrusted, Relay};
use bytes::Bytes;
use futures::StreamExt;
use schemas::envelope::Headers;
use schemas::mqtt;
use schemas::topic_map::{End, subject_of};
use tokio::sync::mpsc;

use crate::Done;
use crate::plan::Route;
use crate::publisher::Publisher;

/// Before a goal that refused is tried again, and between two words that a message still waits.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// What a route does things with.
#[derive(Clone)]
pub(crate) struct Tools {
    pub bus: Bus,
    pub publisher: Publisher,
    pub tell: mpsc::Sender<Done>,
}

/// Runs it until it is dropped.
pub(crate) async fn run(route: Route, tools: Tools) {
    tokio::join!(entrusted(&route, &tools), live(&route, &tools));
}

/// What was acknowledged to MQTT clients.
async fn entrusted(route: &Route, tools: &Tools) {
    let relay = Relay::new(&tools.bus);
    loop {
        match relay.entrusted(&route.name, &route.rule.from.filters()).await {
            Ok(mut inbox) => loop {
                let message = match inbox.next().await {
                    Ok(message) => message,
                    Err(error) => {
                        tracing::debug!(%error, route = route.name, "taken anew");
                        break;
                    }
                };
                if let Err(error) = pass_on(route, tools, &relay, message).await {
                    tracing::debug!(%error, route = route.name, "comes again");
                    break;
                }
            },
            // Where MQTT is not served there is nothing to take.
            Err(error) => tracing::debug!(%error, route = route.name, "tried again"),
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

/// Until it is where it has to go, however long that takes.
async fn pass_on(
    route: &Route,
    tools: &Tools,
    relay: &Relay,
    message: Entrusted,
) -> Result<(), bus::relay::RelayError> {
    match name(route, &message.subject) {
        None => {}
        Some(Err(reason)) => {
            let (subject, payload) = (message.subject.clone(), message.payload.to_vec());
            // The module is ending when nobody takes it: it comes again.
            let dead = Done::Dead { subject, payload, reason };
            if tools.tell.send(dead).await.is_err() {
                return Ok(());
            }
        }
        Some(Ok(to)) => {
            let id = format!("{}-{}", route.name, message.id);
            while let Err(why) = say(route, tools, relay, &to, Some(&id), message.payload.clone()).await {
                tools.waits(route, why).await;
                message.hold().await?;
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
    }
    message.done().await
}

/// What is heard now.
async fn live(route: &Route, tools: &Tools) {
    let relay = Relay::new(&tools.bus);
    let mut ears = futures::stream::SelectAll::new();
    for filter in route.rule.from.filters() {
        match tools.bus.listen(&filter).await {
            Ok(heard) => ears.push(heard),
            Err(error) => tracing::warn!(%error, route = route.name, "not heard live"),
        }
    }
    while let Some(message) = ears.next().await {
        if bus::relay::is_entrusted(&message.headers) {
            continue;
        }
        match name(route, &message.subject) {
            None => {}
            Some(Err(reason)) => {
                let payload = message.payload.to_vec();
                let _ = tools.tell.send(Done::Dead { subject: message.subject, payload, reason }).await; // ending
            }
            Some(Ok(to)) => {
                if let Err(why) = say(route, tools, &relay, &to, None, message.payload).await {
                    tools.waits(route, format!("dropped, as nobody was promised it: {why}")).await;
                }
            }
        }
    }
}

/// The new name of what was said on `subject`, as the template is written; `None`: it is not taken.
fn name(route: &Route, subject: &str) -> Option<Result<String, String>> {
    let made = match &route.rule.from {
        End::Mqtt(_) => route.rule.apply(&mqtt::topic(subject)),
        End::Subject(_) => route.rule.apply(subject),
    };
    made.map(|made| made.map_err(|error| format!("{}: {error}", route.object)))
}

async fn say(
    route: &Route,
    tools: &Tools,
    relay: &Relay,
    to: &str,
    id: Option<&str>,
    payload: Bytes,
) -> Result<(), String> {
    let rule = &route.rule;
    match &rule.to {
        End::Mqtt(_) if rule.qos > 0 || rule.retain => {
            tools.publisher.publish(to, rule.qos, rule.retain, payload).await
        }
        End::Mqtt(_) => live_word(tools, &subject_of(to), payload).await,
        End::Subject(_) if is_stored(to) => {
            relay.store(to, id, payload).await.map_err(|error| error.to_string())
        }
        End::Subject(_) => live_word(tools, to, payload).await,
    }
}

async fn live_word(tools: &Tools, to: &str, payload: Bytes) -> Result<(), String> {
    let said = tools.bus.say(to, &Headers::new(), payload, None).await;
    said.map_err(|error| error.to_string())
}

/// Is the subject of a class that is stored?
fn is_stored(subject: &str) -> bool {
    matches!(subject.split('.').next(), Some("up" | "bulk"))
}

impl Tools {
    async fn waits(&self, route: &Route, why: String) {
        let waits = Done::Waits { route: route.name.clone(), object: route.object.clone(), why };
        let _ = self.tell.send(waits).await; // the module is ending
    }
}
