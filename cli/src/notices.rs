//! What the connection says in passing: that a subject was refused, that it was lost, that messages were dropped.
//!
//! The client tells such things only as events, which `bus` logs. This layer turns them into words on stderr, and keeps
//! a refusal for whoever published or subscribed: otherwise a tool would wait for ever on a subject it may not read.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use bus::connection::Bus;

use crate::decode::safe;
use crate::failure::{Failure, Outcome};

/// Where `bus` logs its connections' events.
const CONNECTION_TARGET: &str = "bus::connection";
/// A refusal was read from the wire before the round trip ended; its event reaches us within this.
const REFUSAL_GRACE: Duration = Duration::from_millis(20);

#[derive(Default)]
struct Heard {
    refused: Option<String>,
    lost: bool,
}

/// The connections' events of this process.
#[derive(Clone, Default)]
pub struct Notices {
    heard: Arc<Mutex<Heard>>,
    changed: Arc<Notify>,
}

/// What one event means to the person at the prompt.
#[derive(Debug, PartialEq, Eq)]
enum Meaning {
    Refused(String),
    Dropped,
    Lost,
    Back,
    Nothing,
}

fn meaning(event: &str, was_lost: bool) -> Meaning {
    let lower = event.to_ascii_lowercase();
    if lower.contains("permissions violation") {
        let words = event.trim_start_matches("server error: ").trim_start_matches("nats: ");
        return Meaning::Refused(words.to_owned());
    }
    match lower.as_str() {
        text if text.contains("slow consumer") => Meaning::Dropped,
        "disconnected" if !was_lost => Meaning::Lost,
        "connected" if was_lost => Meaning::Back,
        _ => Meaning::Nothing,
    }
}

impl Notices {
    /// Listens to this process's log from now on.
    pub fn install() -> Self {
        let this = Self::default();
        // Fails only when there is one already: then there is nothing to listen to.
        let _ = tracing_subscriber::registry().with(this.clone()).try_init();
        this
    }

    fn hear(&self, event: &str) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        match meaning(event, heard.lost) {
            Meaning::Refused(words) => {
                heard.refused = Some(words);
                self.changed.notify_one();
            }
            Meaning::Dropped => tell("messages were dropped: they come faster than they can be shown"),
            Meaning::Lost => {
                heard.lost = true;
                tell("connection lost, what is said live meanwhile is missed; trying again");
            }
            Meaning::Back => {
                heard.lost = false;
                tell("connected again");
            }
            Meaning::Nothing => {}
        }
    }

    /// Waits until the server has dealt with all that was sent on `bus`, and says if it refused any of it.
    pub async fn settle(&self, bus: &Bus) -> Outcome<()> {
        bus.round_trip().await.map_err(|error| {
            Failure::new("EW-BUS-UNREACHABLE", error, "is the server running and the link up? try again")
        })?;
        let _ = tokio::time::timeout(REFUSAL_GRACE, self.changed.notified()).await;
        match self.heard.lock().unwrap_or_else(PoisonError::into_inner).refused.take() {
            Some(words) => Err(refused(&words)),
            None => Ok(()),
        }
    }

    /// Gives a refusal that comes later, such as after a reconnect. For ever if none comes.
    pub async fn refusal(&self) -> Failure {
        loop {
            self.changed.notified().await;
            if let Some(words) = self.heard.lock().unwrap_or_else(PoisonError::into_inner).refused.take() {
                return refused(&words);
            }
        }
    }
}

fn refused(words: &str) -> Failure {
    Failure::new(
        "EW-BUS-FORBIDDEN",
        format!("the server refused: {words}"),
        "the subject is outside what this login may touch; see docs/flows.md for whose it is",
    )
}

fn tell(text: &str) {
    eprintln!("edgewire: {}", safe(text));
}

struct Words(Option<String>);

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "event" {
            self.0 = Some(format!("{value:?}"));
        }
    }
}

impl<S: Subscriber> Layer<S> for Notices {
    fn enabled(&self, metadata: &tracing::Metadata<'_>, _: Context<'_, S>) -> bool {
        metadata.target() == CONNECTION_TARGET
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut words = Words(None);
        event.record(&mut words);
        if let Some(words) = words.0 {
            self.hear(&words);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_mean_something_to_people() {
        let refusal = "Permissions Violation for Subscription to \"x\"";
        for (event, lost, want) in [
            (format!("server error: nats: {refusal}").as_str(), false, Meaning::Refused(refusal.into())),
            ("slow consumers for subscription 3", false, Meaning::Dropped),
            ("connected", false, Meaning::Nothing),
            ("disconnected", false, Meaning::Lost),
            ("disconnected", true, Meaning::Nothing),
            ("connected", true, Meaning::Back),
            ("lame duck mode detected", false, Meaning::Nothing),
        ] {
            assert_eq!(meaning(event, lost), want, "{event}");
        }
    }
}
