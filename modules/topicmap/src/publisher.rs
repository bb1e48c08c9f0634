//! An MQTT client of the node's own server. What has to reach MQTT sessions that are away, or to be retained, is said as a client
//! says it: the server keeps for sessions nothing that came by NATS (measured with 2.15.1).

use std::sync::Arc;
use std::time::Duration;

use bus::module::Account;
use bus::server::LeafServer;
use bytes::Bytes;
use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};
use schemas::object::new_uid;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// How long the server may take to connect, and to acknowledge.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// A connection that was not used for so long is made anew: nobody answered the server's pings meanwhile.
const IDLE_MAX: Duration = Duration::from_secs(10);
/// Requests that wait for the connection: one is on its way at a time.
const REQUESTS_MAX: usize = 1;

/// Publishes one message after another.
#[derive(Clone)]
pub(crate) struct Publisher {
    server: Arc<LeafServer>,
    user: String,
    connection: Arc<Mutex<Option<Connection>>>,
}

struct Connection {
    client: AsyncClient,
    events: rumqttc::EventLoop,
    used: Instant,
}

impl Publisher {
    /// As that user of the node's server.
    pub fn new(server: Arc<LeafServer>, user: String) -> Self {
        Self { server, user, connection: Arc::default() }
    }

    /// Returns when the server has acknowledged it.
    pub async fn publish(&self, topic: &str, qos: u8, retain: bool, payload: Bytes) -> Result<(), String> {
        let mut held = self.connection.lock().await;
        let published = tokio::time::timeout(ANSWER_TIMEOUT, async {
            if held.as_ref().is_none_or(|connection| connection.used.elapsed() > IDLE_MAX) {
                *held = Some(self.connect().await?);
            }
            let Some(connection) = held.as_mut() else { return Err("no connection".to_owned()) };
            connection.publish(topic, qos, retain, payload).await
        });
        let outcome = published.await.unwrap_or_else(|_| Err("the node's MQTT does not answer".to_owned()));
        if outcome.is_err() {
            // Whether it was taken is unknown: it is said again, on a new connection.
            *held = None;
        }
        outcome
    }

    async fn connect(&self) -> Result<Connection, String> {
        let address = self.server.mqtt().await.ok_or("the node serves no MQTT")?;
        let user = self.server.user(&self.user).await.ok_or("the module has no login")?;
        debug_assert_eq!(user.account, Account::Work);
        // Nobody can guess it, and so take it over.
        let id = format!("edgewire-{}", new_uid());
        let mut options = MqttOptions::new(id, address.ip().to_string(), address.port());
        options.set_credentials(user.name, user.password).set_keep_alive(KEEP_ALIVE).set_inflight(1);
        options.set_max_packet_size(schemas::MESSAGE_MAX_BYTES, schemas::MESSAGE_MAX_BYTES);
        let (client, mut events) = AsyncClient::new(options, REQUESTS_MAX);
        loop {
            match events.poll().await.map_err(|error| error.to_string())? {
                Event::Incoming(Packet::ConnAck(_)) => {
                    return Ok(Connection { client, events, used: Instant::now() });
                }
                _ => continue,
            }
        }
    }
}

impl Connection {
    async fn publish(&mut self, topic: &str, qos: u8, retain: bool, payload: Bytes) -> Result<(), String> {
        self.used = Instant::now();
        let asked = if qos == 0 { QoS::AtMostOnce } else { QoS::AtLeastOnce };
        let sent = self.client.publish_bytes(topic, asked, retain, payload).await;
        sent.map_err(|error| error.to_string())?;
        loop {
            match self.events.poll().await.map_err(|error| error.to_string())? {
                Event::Incoming(Packet::PubAck(_)) if qos > 0 => return Ok(()),
                Event::Outgoing(rumqttc::Outgoing::Publish(_)) if qos == 0 => return Ok(()),
                _ => {}
            }
        }
    }
}
