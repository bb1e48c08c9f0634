//! Hearing at once that a link to the hub broke, from the node's own server. Whoever waits for an answer across the link
//! then knows that it will not come, also when the link is back before anybody missed it: a hub whose server fell and
//! was started again has forgotten who waited.
//!
//! One task listens for as long as the server is looked after, and counts; who waits watches the count.
//!
//! Source: the server's event `$SYS.ACCOUNT.<account>.DISCONNECT`, which it also sends for a link of its own (measured with
//! 2.15.1; there is none for a link that is made).

use std::time::Duration;

use futures::StreamExt;
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::probe::Probe;
use super::{LeafServer, Phase, ServerStatus};
use crate::module::Account;

/// What the server calls a link.
const KIND_LINK: &str = "Leafnode";
/// A server that did not let us listen is asked again after so long.
const LISTEN_AGAIN: Duration = Duration::from_millis(100);

/// How many links broke in each account since the server is looked after. The listening ends with it.
#[derive(Debug)]
pub(super) struct Breaks {
    control: watch::Receiver<u64>,
    work: watch::Receiver<u64>,
    _listening: AbortOnDropHandle<()>,
}

impl Breaks {
    /// Listens whenever the server of `status`, which `probe` connects to, is ready.
    pub fn count(probe: Probe, status: watch::Receiver<ServerStatus>) -> Self {
        let (control_to, control) = watch::channel(0);
        let (work_to, work) = watch::channel(0);
        let listening = tokio::spawn(listen(probe, status, control_to, work_to));
        Self { control, work, _listening: AbortOnDropHandle::new(listening) }
    }
}

impl LeafServer {
    /// How many links broke since the server is looked after: in CONTROL, in WORK.
    pub fn links_lost(&self) -> [u64; 2] {
        [*self.breaks.control.borrow(), *self.breaks.work.borrow()]
    }

    /// Ends when a link of `account` breaks from now on. When the server itself is away it does not end: its clients notice
    /// that themselves.
    pub fn link_lost(&self, account: Account) -> impl Future<Output = ()> + Send + use<> {
        let breaks = match account {
            Account::Control => &self.breaks.control,
            Account::Work => &self.breaks.work,
        };
        let mut breaks = breaks.clone();
        breaks.mark_unchanged();
        async move {
            if breaks.changed().await.is_err() {
                // Nobody looks after the server any more, so nobody can tell.
                std::future::pending().await
            }
        }
    }
}

/// Until the server is no longer looked after. Its connection ends with the server's process: then another.
async fn listen(
    probe: Probe,
    mut status: watch::Receiver<ServerStatus>,
    control: watch::Sender<u64>,
    work: watch::Sender<u64>,
) {
    loop {
        match status.wait_for(|s| matches!(s.phase, Phase::Ready | Phase::Stopped)).await {
            Ok(status) if status.phase == Phase::Ready => {}
            _ => return,
        }
        match probe.connect().await {
            Ok(client) => {
                tokio::join!(
                    count(&client, Account::Control, &control),
                    count(&client, Account::Work, &work),
                );
            }
            Err(error) => tracing::debug!(%error, "not told of broken links yet"),
        }
        tokio::time::sleep(LISTEN_AGAIN).await;
    }
}

/// Until the connection ends.
async fn count(client: &async_nats::Client, account: Account, broken: &watch::Sender<u64>) {
    let subject = format!("$SYS.ACCOUNT.{}.DISCONNECT", account.as_str());
    // The only reason for an error is that the connection has ended.
    let Ok(mut told) = client.subscribe(subject).await else { return };
    while let Some(event) = told.next().await {
        if is_of_link(&event.payload) {
            broken.send_modify(|count| *count += 1);
        }
    }
}

fn is_of_link(event: &[u8]) -> bool {
    let event: Option<Value> = serde_json::from_slice(event).ok();
    event.as_ref().and_then(|event| event.pointer("/client/kind")?.as_str()) == Some(KIND_LINK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_link_counts() {
        assert!(is_of_link(br#"{"type":"x","client":{"id":8,"kind":"Leafnode"},"reason":"Client Closed"}"#));
        assert!(!is_of_link(br#"{"type":"x","client":{"id":9,"kind":"Client"}}"#));
        crate::fuzz::try_bytes(
            "a server's event",
            &[br#"{"client":{"kind":"Leafnode"}}"#.to_vec()],
            |bytes| {
                let _ = is_of_link(bytes);
            },
        );
    }
}
