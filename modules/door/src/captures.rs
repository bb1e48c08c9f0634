//! Which subjects are stored on this node: a word on one of them is answered when its stream has it, and who listens to what
//! one stream holds is told by that stream ([`crate::held`]). What Edgewire's own streams capture is known for good; what
//! others do is looked up at the server, and known for a moment.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bus::connection::Bus;
use bus::module::Account;
use bus::provision::{self, Place};
use schemas::subject;
use tokio::time::Instant;

/// What the server said is believed for so long. A stream that is younger is not waited for.
pub const KNOWN_FOR: Duration = Duration::from_secs(2);
/// How long the server may take to say it; until then what it said before counts.
const LOOK_TIMEOUT: Duration = Duration::from_secs(1);

/// What is stored.
pub struct Captures {
    bus: Option<Bus>,
    known: Mutex<Known>,
    looking: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Known {
    at: Option<Instant>,
    /// Name, and what it captures.
    streams: Vec<(String, Vec<String>)>,
}

impl Captures {
    /// As the server of that connection (in WORK) says; without one, Edgewire's own streams alone.
    pub fn new(bus: Option<Bus>) -> Self {
        Self { bus, known: Mutex::default(), looking: tokio::sync::Mutex::default() }
    }

    /// Is what is said on `subject` stored?
    pub async fn is_stored(&self, subject: &str) -> bool {
        let own = provision::capturing(Account::Work, subject).is_some_and(|row| row.place == Place::Edge);
        if own {
            return true;
        }
        self.look().await;
        let known = self.known();
        known
            .streams
            .iter()
            .any(|(_, filters)| filters.iter().any(|filter| subject::matches(filter, subject)))
    }

    /// The stream that captures all that `wanted` lets through, if there is one, and the connection to read it on.
    pub async fn holding(&self, wanted: &str) -> Option<(Bus, String)> {
        self.look().await;
        let known = self.known();
        let mut streams = known.streams.iter();
        let (stream, _) = streams.find(|(_, filters)| filters.iter().any(|filter| covers(filter, wanted)))?;
        Some((self.bus.clone()?, stream.clone()))
    }

    async fn look(&self) {
        let Some(bus) = &self.bus else { return };
        let is_fresh = |known: &Known| known.at.is_some_and(|at| at.elapsed() < KNOWN_FOR);
        if is_fresh(&self.known()) {
            return;
        }
        let _looking = self.looking.lock().await;
        if is_fresh(&self.known()) {
            return;
        }
        let found = tokio::time::timeout(LOOK_TIMEOUT, provision::captures(bus)).await;
        let mut known = self.known();
        // Asked once in a while, also when the answer stays away.
        known.at = Some(Instant::now());
        match found {
            Ok(Ok(streams)) => known.streams = streams,
            Ok(Err(error)) => tracing::debug!(%error, "the streams are as they were told last"),
            Err(_) => tracing::debug!("the streams are as they were told last: no answer"),
        }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Does the filter `outer` let through all that `inner` does?
fn covers(outer: &str, inner: &str) -> bool {
    let (mut outer, mut inner) = (outer.split('.'), inner.split('.'));
    loop {
        match (outer.next(), inner.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some("*"), Some(token)) if token != ">" => {}
            (Some(want), Some(have)) if want == have => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_holds_a_filter_wholly_or_not() {
        for (outer, inner, want) in [
            ("app.demo.>", "app.demo.t", true),
            ("app.demo.>", "app.demo.>", true),
            ("app.demo.>", "app.demo.*.x", true),
            ("app.*.t", "app.demo.t", true),
            ("app.*.t", "app.*.t", true),
            ("app.demo.t", "app.demo.t", true),
            ("app.demo.t", "app.demo.*", false),
            ("app.demo.*", "app.demo.>", false),
            ("app.demo.*", "app.demo", false),
            ("app.demo.>", "app.demo", false),
            ("app.demo.t", "app.demo.t.x", false),
            ("app.demo.>", "app.>", false),
        ] {
            assert_eq!(covers(outer, inner), want, "{outer} {inner}");
        }
    }
}
