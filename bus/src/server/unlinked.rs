//! Hearing at once that a link to the hub broke, from the node's own server. Whoever waits for an answer across the link
//! then knows that it will not come, also when the link is back before anybody missed it: a hub whose server fell and
//! was started again has forgotten who waited.
//!
//! Source: the server's event `$SYS.ACCOUNT.<account>.DISCONNECT`, which it also sends for a link of its own (measured with
//! 2.15.1; there is none for a link that is made).

use futures::StreamExt;
use serde_json::Value;

use super::{LeafServer, ServerError};
use crate::module::Account;

/// What the server calls a link.
const KIND_LINK: &str = "Leafnode";

impl LeafServer {
    /// Ends when the link of `account` breaks from now on. When the server itself is away it never ends: its clients notice
    /// that themselves.
    pub async fn link_lost(
        &self,
        account: Account,
    ) -> Result<impl Future<Output = ()> + Send + use<>, ServerError> {
        let client = self.ears().await?;
        let subject = format!("$SYS.ACCOUNT.{}.DISCONNECT", account.as_str());
        let told = client
            .subscribe(subject)
            .await
            .map_err(|error| ServerError::Config(format!("the server's events: {error}")))?;
        Ok(async move {
            // The client is kept: the subscription ends with it.
            let (_client, mut told) = (client, told);
            while let Some(event) = told.next().await {
                if is_of_link(&event.payload) {
                    return;
                }
            }
            std::future::pending().await
        })
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
