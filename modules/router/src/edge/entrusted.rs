//! What MQTT clients say at QoS 1 or 2, on its way to RULES: the server acknowledges it when it stands in a stream of its own, and
//! RULES, which hears its plain subject, may have it later, or never. So it is taken from there, and stands in RULES once more, under
//! a name that nobody else says ([`subject::entrusted`]); of the two the module takes this one.

use std::time::Duration;

use bus::connection::Bus;
use bus::relay::{Relay, RelayError};
use schemas::subject;
use tokio::sync::watch;

/// Our consumer in the server's stream. It stays while we are away: that is what has the server keep the messages.
const CONSUMER: &str = "rules";
/// Before what failed is tried again. Where MQTT is not served it fails all the time.
const RETRY_PAUSE: Duration = Duration::from_secs(2);

/// Relays what matches the sources, until they are dropped. `None`: not known yet, all stays as it is.
pub(super) async fn relay(work: &Bus, mut sources: watch::Receiver<Option<Vec<String>>>) {
    let relay = Relay::new(work);
    loop {
        let wanted = sources.borrow_and_update().clone();
        let relaying = async {
            let outcome = match &wanted {
                None => std::future::pending().await,
                Some(none) if none.is_empty() => relay.forget(|name| name != CONSUMER).await,
                Some(some) => take(&relay, some).await,
            };
            match outcome {
                Ok(()) => std::future::pending().await,
                Err(error) => tracing::debug!(%error, "what MQTT clients say is taken anew"),
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        };
        tokio::select! {
            () = relaying => {}
            changed = sources.changed() => if changed.is_err() { return },
        }
    }
}

/// Given up half-way it begins with the same message again, which RULES takes once.
async fn take(relay: &Relay, sources: &[String]) -> Result<(), RelayError> {
    let mut inbox = relay.entrusted(CONSUMER, sources).await?;
    loop {
        let message = inbox.next().await?;
        let (to, id) = (subject::entrusted(&message.subject), format!("mqtt-{}", message.id));
        while let Err(error) = relay.store(&to, Some(&id), message.payload.clone()).await {
            tracing::debug!(%error, "a message of MQTT waits");
            message.hold().await?;
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        message.done().await?;
    }
}
