//! The credential that every container gets for the node's NATS server, asked for at the module `credentials`.

use std::time::Duration;

use bus::connection::Handles;
use schemas::command::Reply;
use schemas::credential::{Issue, Issued, Withdraw};
use schemas::name::Namespace;
use schemas::subject;

use crate::effects::StartError;

/// How long the module `credentials` may take to be there (both start with the node).
const PATIENCE: Duration = Duration::from_secs(5);
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// Asks, and asks again while nobody is there to answer.
pub(crate) async fn issue(bus: &Handles, uid: &str, namespace: &str) -> Result<Issued, StartError> {
    let failed = |message: String| StartError {
        reason: "CreateContainerConfigError".to_owned(),
        message: format!("no credential for the node's bus: {message}"),
        away: false,
    };
    let namespace = Namespace::new(namespace).map_err(|error| failed(error.to_string()))?;
    let request = schemas::encode(&Issue { uid: uid.to_owned(), namespace });
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let subject = subject::local("credentials", "issue");
        let answer = bus.control.client().request(subject, request.clone().into()).await;
        match answer {
            Ok(answer) => {
                let reply: Reply<Issued> =
                    schemas::decode(&answer.payload).map_err(|error| failed(error.to_string()))?;
                return reply.map_err(|refusal| failed(refusal.to_string()));
            }
            Err(error) if tokio::time::Instant::now() >= deadline => return Err(failed(error.to_string())),
            Err(_) => tokio::time::sleep(RETRY_PAUSE).await,
        }
    }
}

/// The pod is gone. One that stays is worth nothing beyond this node, and nobody holds it any more.
pub(crate) async fn withdraw(bus: &Handles, uid: &str) {
    let request = schemas::encode(&Withdraw { uid: uid.to_owned() });
    if let Err(error) =
        bus.control.client().request(subject::local("credentials", "revoke"), request.into()).await
    {
        tracing::debug!(%error, uid, "the credential was not taken back");
    }
}
