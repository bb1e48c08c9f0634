//! The credential that every container gets for the node's NATS server, asked for at the module `credentials`.

use std::time::Duration;

use bus::connection::Handles;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use schemas::command::Reply;
use schemas::credential::{ANNOTATION_BUS, BUS_NONE, Issue, Issued, Withdraw};
use schemas::name::Namespace;
use schemas::subject;

use crate::effects::StartError;

/// How long the module `credentials` may take to be there (both start with the node).
const PATIENCE: Duration = Duration::from_secs(5);
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// Does the pod want a login? One whose annotation says `none` gets none.
pub(crate) fn wanted(meta: &ObjectMeta) -> bool {
    let annotation = meta.annotations.as_ref().and_then(|all| all.get(ANNOTATION_BUS));
    annotation.is_none_or(|value| value != BUS_NONE)
}

/// What every container is told; a variable that it has already stays as it is.
pub(crate) fn add(env: &mut Vec<(String, String)>, ours: impl Iterator<Item = (&'static str, String)>) {
    for (name, value) in ours {
        if !env.iter().any(|(have, _)| have == name) {
            env.push((name.to_owned(), value));
        }
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_may_do_without() {
        for (value, want) in [(None, true), (Some("none"), false), (Some("all"), true)] {
            let annotations = value.map(|value| [(ANNOTATION_BUS.to_owned(), value.to_owned())].into());
            assert_eq!(wanted(&ObjectMeta { annotations, ..ObjectMeta::default() }), want, "{value:?}");
        }
    }

    #[test]
    fn what_the_user_set_stays() {
        let issued = Issued {
            url: "nats://u:p@h:1".into(),
            inbox: "_INBOX.u".into(),
            user: "u".into(),
            password: "p".into(),
            mqtt_url: None,
            http_url: None,
        };
        assert!(!format!("{issued:?}").contains("\"p\""), "{issued:?}");
        let mut env = vec![("NATS_URL".to_owned(), "mine".to_owned())];
        add(&mut env, [("POD_NAME", "p".to_owned())].into_iter().chain(issued.env()));
        let text: Vec<String> = env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let want =
            ["NATS_URL=mine", "POD_NAME=p", "NATS_INBOX_PREFIX=_INBOX.u", "NATS_USER=u", "NATS_PASSWORD=p"];
        assert_eq!(text, want);
    }
}
