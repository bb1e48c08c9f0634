//! A server that has given its links up for good is started anew.
//!
//! Measured with nats-server 2.15.1: a link that is reset in the middle of its TLS handshake can end the server's own
//! attempts for ever; nothing is left that could be kicked. So: no link in an account for [`GIVEN_UP_AFTER`] though the
//! hub's port can be reached, and the server is started anew, at most once in [`RESTART_INTERVAL`]. While the hub is out
//! of reach nothing is done: the server's own attempts are the better ones, and the workloads' connections stay.

use std::sync::Arc;
use std::time::Duration;

use bus::module::Account;
use bus::server::LeafServer;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How often the links are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// A server without a link for so long has given up.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(20);
/// The server is not started anew more often.
const RESTART_INTERVAL: Duration = Duration::from_secs(60);
/// The hub's port answers within this, or is out of reach.
const REACH_TIMEOUT: Duration = Duration::from_secs(3);

/// Looks after the links to the hubs at `urls` until `stop`.
pub async fn keep_links(leaf: Arc<LeafServer>, urls: Vec<String>, stop: CancellationToken) {
    let mut missing_since: Option<Instant> = None;
    let mut restarted_at: Option<Instant> = None;
    while !urls.is_empty() && !stop.is_cancelled() {
        tokio::time::sleep(LOOK_INTERVAL).await;
        // A server that is down is its supervisor's matter.
        let Ok(links) = leaf.links().await else { continue };
        let linked = |account: Account| links.iter().any(|link| link.account == account.as_str());
        if linked(Account::Control) && linked(Account::Work) {
            missing_since = None;
            continue;
        }
        let since = *missing_since.get_or_insert_with(Instant::now);
        let lately = restarted_at.is_some_and(|at| at.elapsed() < RESTART_INTERVAL);
        if since.elapsed() < GIVEN_UP_AFTER || lately || !reachable(&urls).await {
            continue;
        }
        tracing::warn!("the hub can be reached but the node's server no longer tries: it is started anew");
        restarted_at = Some(Instant::now());
        missing_since = None;
        if let Err(error) = leaf.restart().await {
            tracing::warn!(%error, "the node's server is not ready yet");
        }
    }
}

/// Does any hub's port take a connection?
async fn reachable(urls: &[String]) -> bool {
    for url in urls {
        let Some((_, authority)) = url.split_once("://") else { continue };
        let attempt = tokio::net::TcpStream::connect(authority.trim_end_matches('/'));
        if matches!(tokio::time::timeout(REACH_TIMEOUT, attempt).await, Ok(Ok(_))) {
            return true;
        }
    }
    false
}
