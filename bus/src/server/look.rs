//! How a node's way to its hub looks from outside: what stands, whether bytes move, whether the hub could be reached, and
//! whether it refuses us. Facts alone; what to do about them is decided by the node's `sync`.

use std::net::SocketAddr;
use std::time::Duration;

use super::LeafServer;
use super::tcp;
use crate::module::Account;

/// The hub's port answers within this, or is out of reach.
const REACH_TIMEOUT: Duration = Duration::from_secs(3);
/// So much of the end of the server's log is looked at.
const LOG_TAIL_BYTES: u64 = 16 * 1024;

/// See the file's words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkFacts {
    /// A link stands in each account, as the node's server sees it.
    pub linked: bool,
    /// Bytes that came over the links' connections and that the hub's kernel took, as the node's kernel counts them; `None`
    /// when it does not tell.
    pub moved_bytes: Option<u64>,
    /// How long ago the last byte came.
    pub quiet_ms: u64,
    /// A hub's port takes connections. Only tried when asked for, while a link is missing: the hub sees it.
    pub reachable: bool,
    /// The hub refuses the node's credentials: what the server's log says of the last attempt.
    pub refusal: Option<String>,
}

impl LeafServer {
    /// Looks; with `reach`, a missing link's hub is called. `None` when there is nothing to look at: the server is down (its supervisor's matter), or the node has not
    /// joined.
    pub async fn look(&self, reach: bool) -> Option<LinkFacts> {
        let (urls, log) = self.way().await?;
        let links = self.links().await.ok()?;
        let linked = [Account::Control, Account::Work]
            .iter()
            .all(|account| links.iter().any(|link| link.account == account.as_str()));
        if !linked {
            let refusal = refusal(&log.log_since(log.log_length().saturating_sub(LOG_TAIL_BYTES)));
            let reachable = reach && reachable(&urls).await;
            return Some(LinkFacts { reachable, refusal, ..LinkFacts::default() });
        }
        let peers: Vec<SocketAddr> =
            links.iter().filter_map(|link| Some(SocketAddr::new(link.ip.parse().ok()?, link.port))).collect();
        let connections = tcp::connections(&peers).unwrap_or_default();
        let moved = connections.iter().map(|of| of.received_bytes + of.taken_bytes).sum();
        Some(LinkFacts {
            linked,
            moved_bytes: (!connections.is_empty()).then_some(moved),
            quiet_ms: connections.iter().map(|of| of.quiet_ms).min().unwrap_or(0),
            reachable: true,
            refusal: None,
        })
    }
}

/// The server's words for a stream that it could not write (measured with 2.15.1: the stream then takes nothing any more, also
/// when there is room again, until the server is started anew).
const WRITE_FAILED: [&str; 2] = ["critical write error", "no space left on device"];

impl LeafServer {
    /// Has the server said, in its log from `position` on, that it could not write? And how long the log is. `u64::MAX`:
    /// from now on.
    pub async fn write_failed(&self, position: u64) -> (bool, u64) {
        let log = self.files().await;
        let length = log.log_length();
        if position == u64::MAX || position == length {
            return (false, length);
        }
        let said = log.log_since(position).to_lowercase();
        (WRITE_FAILED.iter().any(|mark| said.contains(mark)), length)
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

/// What the last complaint about a link says, if it is that the hub does not take our credentials. Measured with 2.15.1:
/// `[ERR] 10.0.0.1:7422 - lid:8 - Leafnode Error 'Authorization Violation'`; the same for a revoked and an unknown user.
fn refusal(log: &str) -> Option<String> {
    let about_link = |line: &&str| {
        line.contains("[ERR]")
            && ["eafnode Error '", "leafnode handshake error", "connect as leafnode"]
                .iter()
                .any(|mark| line.contains(mark))
    };
    let last = log.lines().rev().find(about_link)?;
    let (_, words) = last.split_once("eafnode Error '")?;
    let words = words.trim_end_matches('\'');
    let refused = ["Authorization", "Authentication", "Revoked", "Expired", "Permissions"]
        .iter()
        .any(|mark| words.contains(mark));
    refused.then(|| words.chars().take(200).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_from_a_link_that_cannot_be_made() {
        let refused = "[1] 2026/11/22 12:48:38.2 [ERR] 10.0.0.1:7422 - lid:8 - Leafnode Error 'Authorization Violation'\n\
                       [1] 2026/11/22 12:48:38.2 [INF] 10.0.0.1:7422 - lid:8 - Leafnode connection closed: Client Closed\n";
        assert_eq!(refusal(refused).as_deref(), Some("Authorization Violation"));
        let reset =
            format!("{refused}[1] x [ERR] 10.0.0.1:7422 - lid:9 - TLS leafnode handshake error: EOF\n");
        assert_eq!(refusal(&reset), None, "the last attempt counts");
        let away =
            format!("{refused}[1] x [ERR] Error trying to connect as leafnode to remote server: refused\n");
        assert_eq!(refusal(&away), None);
        assert_eq!(
            refusal("[1] x [ERR] 10.0.0.1:7422 - lid:9 - Leafnode Error 'Maximum connections'\n"),
            None
        );
        assert_eq!(refusal(""), None);
    }
}
