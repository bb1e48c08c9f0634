//! The connection to the node's server: with this container's own credential, and never given up.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use async_nats::{Client, ConnectOptions, Event, ServerAddr};

/// Between two tries to connect.
pub const RETRY: Duration = Duration::from_millis(200);
/// Of what is wrong, so many different things are told until the connection stands again.
const TOLD_MAX: usize = 8;
/// A server that answers no ping for two of these is taken for dead.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// Connects in the background: the node's server may be away, now and later, for any time.
pub async fn connect(name: &str, url: &str, inbox_prefix: Option<&str>) -> Result<Client, String> {
    let wrong = |e: std::io::Error| {
        format!("NATS_URL is not usable: {e}; it has the form nats://user:password@address:port")
    };
    let address: ServerAddr = url.parse().map_err(wrong)?;
    let told = Mutex::new(Vec::new());
    let mut options = ConnectOptions::new()
        .name(name)
        .retry_on_initial_connect()
        .max_reconnects(None)
        .reconnect_delay_callback(|_| RETRY)
        .ping_interval(PING_INTERVAL)
        .event_callback(move |event| {
            tell_once(&told, &event);
            std::future::ready(())
        });
    // The client leaves the user in the URL alone: it has to be told.
    if let (Some(user), Some(password)) = (address.username(), address.password()) {
        options = options.user_and_password(user.to_owned(), password.to_owned());
    }
    if let Some(prefix) = inbox_prefix {
        options = options.custom_inbox_prefix(prefix);
    }
    options.connect(address).await.map_err(|e| format!("cannot set up the connection: {e}"))
}

/// Tells what happens to the connection, each thing once: an hour without a server is a line, not thousands.
fn tell_once(told: &Mutex<Vec<String>>, event: &Event) {
    let text = event.to_string();
    let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
    if *event == Event::Connected {
        told.clear();
    }
    if told.len() < TOLD_MAX && !told.contains(&text) {
        eprintln!("bus: {text}");
        told.push(text);
    }
}
