//! Who is connected to this server in this account, and what each listens to.
//!
//! Source: nats-server's `CONNZ` for one's own account, which every account may ask (`$SYS.REQ.ACCOUNT.PING.CONNZ`,
//! measured with 2.15.1). It tells clients only: who listens behind a leaf link is not in it.

use std::time::Duration;

use schemas::envelope::Headers;
use serde::Deserialize;
use serde_json::json;

use super::ToolError;
use crate::connection::Bus;

/// The question.
const CONNECTIONS: &str = "$SYS.REQ.ACCOUNT.PING.CONNZ";
/// The server answers at once or not at all.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Connections of one answer.
const CONNECTIONS_MAX: usize = 4_096;

/// A client of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// What it calls itself; may be empty.
    pub name: String,
    /// What it listens to.
    pub subscriptions: Vec<String>,
}

#[derive(Deserialize)]
struct Answer {
    data: Data,
}

#[derive(Deserialize)]
struct Data {
    #[serde(default)]
    connections: Vec<Connection>,
}

#[derive(Deserialize)]
struct Connection {
    #[serde(default)]
    name: String,
    #[serde(default)]
    subscriptions_list: Vec<String>,
}

impl Bus {
    /// The clients of this server in this account. `None` when the server does not say.
    pub async fn clients(&self) -> Option<Vec<Client>> {
        let question = json!({"subscriptions": true, "limit": CONNECTIONS_MAX}).to_string();
        let answer: Result<_, ToolError> =
            self.ask(CONNECTIONS, &Headers::new(), question.into(), TIMEOUT).await;
        read(&answer.ok()?.payload)
    }
}

fn read(payload: &[u8]) -> Option<Vec<Client>> {
    let answer: Answer = serde_json::from_slice(payload).ok()?;
    let client = |of: Connection| Client { name: of.name, subscriptions: of.subscriptions_list };
    Some(answer.data.connections.into_iter().map(client).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str = r#"{"server":{"name":"N"},"data":{"server_id":"N","num_connections":2,"connections":[
        {"cid":6,"kind":"Client","name":"me","subscriptions":2,"subscriptions_list":["_INBOX.x.*","app.demo.>"]},
        {"cid":7,"kind":"Client"}]}}"#;

    #[test]
    fn who_listens_to_what_is_read() {
        let clients = read(ANSWER.as_bytes()).unwrap();
        assert_eq!(clients[0].subscriptions, ["_INBOX.x.*", "app.demo.>"]);
        assert_eq!((clients[0].name.as_str(), clients.len()), ("me", 2));
        assert_eq!(read(br#"{"error":{"code":403}}"#), None);
    }

    #[test]
    fn whatever_the_server_says_is_read() {
        crate::fuzz::try_bytes("a list of connections", &[ANSWER.as_bytes().to_vec()], |bytes| {
            drop(read(bytes))
        });
    }
}
