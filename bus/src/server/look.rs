//! How a node's way to its hub looks from outside: what stands, whether bytes move, whether the hub could be reached, and
//! whether it refuses us. Facts alone; what to do about them is decided by the node's `sync`.

use std::net::SocketAddr;

use super::tcp;
use super::{LeafServer, Way};
use crate::module::Account;

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
    /// The way that the link goes, or is to go.
    pub way: Option<Way>,
    /// All ways that there are, the better first.
    pub ways: Vec<Way>,
    /// Those on which the hub answers. Only tried when asked for: the hub sees it.
    pub open: Option<Vec<Way>>,
    /// One end refuses the other: what the server's log says of the last attempt.
    pub refusal: Option<Refusal>,
}

/// Who refuses whom, and in whose words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The hub does not take the node's credentials.
    ByHub(String),
    /// The node does not trust the certificate that it is shown.
    OfHub(String),
}

impl LeafServer {
    /// Looks; with `reach`, the hub is called on all ways. `None` when there is nothing to look at: the server is down (its
    /// supervisor's matter), or the node has not joined.
    pub async fn look(&self, reach: bool) -> Option<LinkFacts> {
        let (hub, _, log) = self.way().await?;
        // Called first: what is said of the link is then as new as can be.
        let open = if reach { Some(hub.open().await) } else { None };
        let (_, way, _) = self.way().await?;
        let links = self.links().await.ok()?;
        let facts = LinkFacts { way: Some(way), ways: hub.ways(), open, ..LinkFacts::default() };
        let linked = [Account::Control, Account::Work]
            .iter()
            .all(|account| links.iter().any(|link| link.account == account.as_str()));
        if !linked {
            let refusal = refusal(&log.log_since(log.log_length().saturating_sub(LOG_TAIL_BYTES)));
            return Some(LinkFacts { refusal, ..facts });
        }
        let peers: Vec<SocketAddr> =
            links.iter().filter_map(|link| Some(SocketAddr::new(link.ip.parse().ok()?, link.port))).collect();
        let pid = self.status().borrow().pid;
        let connections = tcp::connections(&peers, pid).unwrap_or_default();
        let moved = connections.iter().map(|of| of.received_bytes + of.taken_bytes).sum();
        Some(LinkFacts {
            linked,
            moved_bytes: (!connections.is_empty()).then_some(moved),
            quiet_ms: connections.iter().map(|of| of.quiet_ms).min().unwrap_or(0),
            ..facts
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

/// What the last complaint about a link says, if it is that one end does not take what the other shows. Measured with 2.15.1:
/// `[ERR] 10.0.0.1:7422 - lid:8 - Leafnode Error 'Authorization Violation'`, the same for a revoked and an unknown user; and
/// `[ERR] 10.0.0.1:7422 - lid:8 - TLS leafnode handshake error: tls: failed to verify certificate: x509: certificate signed by
/// unknown authority`.
fn refusal(log: &str) -> Option<Refusal> {
    let about_link = |line: &&str| {
        line.contains("[ERR]")
            && ["eafnode Error '", "leafnode handshake error", "connect as leafnode"]
                .iter()
                .any(|mark| line.contains(mark))
    };
    let last = log.lines().rev().find(about_link)?;
    let short = |words: &str| words.chars().take(200).collect::<String>();
    if let Some((_, words)) = last.split_once("x509: ") {
        return Some(Refusal::OfHub(short(words)));
    }
    let (_, words) = last.split_once("eafnode Error '")?;
    let words = words.trim_end_matches('\'');
    let refused = ["Authorization", "Authentication", "Revoked", "Expired", "Permissions"]
        .iter()
        .any(|mark| words.contains(mark));
    refused.then(|| Refusal::ByHub(short(words)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_from_a_link_that_cannot_be_made() {
        let refused = "[1] 2026/11/22 12:48:38.2 [ERR] 10.0.0.1:7422 - lid:8 - Leafnode Error 'Authorization Violation'\n\
                       [1] 2026/11/22 12:48:38.2 [INF] 10.0.0.1:7422 - lid:8 - Leafnode connection closed: Client Closed\n";
        assert_eq!(refusal(refused), Some(Refusal::ByHub("Authorization Violation".into())));
        let unknown = format!(
            "{refused}[1] x [ERR] 10.0.0.1:7422 - lid:9 - TLS leafnode handshake error: tls: failed to verify certificate: x509: certificate signed by unknown authority\n"
        );
        let words = "certificate signed by unknown authority".to_owned();
        assert_eq!(refusal(&unknown), Some(Refusal::OfHub(words)));
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
