//! How the hub's accounts stand to each other.
//!
//! nats-server looks at what somebody publishes to, not at the reply subject that they name: it would put an
//! acknowledgement, or what is read of a stream, to any subject of the asker's account (measured with 2.15.1). So nodes are
//! in accounts of their own, CONTROL and WORK, in which the hub has nothing. Its streams and its modules are in HUB. What a
//! node may ask of them is imported, subject by subject, as a *service*: then the answer goes to a reply subject that the
//! server makes up in HUB, and from there to the asker's in the node's account, where it is handed to no other import.
//!
//! Source: nats-io/jwt v2 (imports and exports of an account), and `tests/server.rs` for what the server makes of them.

use schemas::subject::{self, BUCKET_DESIRED, Lane};
use serde_json::{Value, json};

/// What an account is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// The server's own.
    Server,
    /// The hub's streams and modules.
    Hub,
    /// Where nodes' CONTROL ends.
    Control,
    /// Where nodes' WORK ends; also who at the hub says or hears `app.`.
    Work,
}

impl Role {
    /// Has it streams?
    pub fn has_streams(self) -> bool {
        self == Role::Hub
    }

    /// What it lets other accounts use.
    pub fn exports(self) -> Vec<Value> {
        if self != Role::Hub {
            return Vec::new();
        }
        let services = [Role::Control, Role::Work].map(services).concat();
        let services = services.into_iter().map(|subject| {
            // A pull, and a read of a stream, is answered by many messages.
            let many = subject.contains(".MSG.NEXT.") || subject == READS;
            let response = if many { "Stream" } else { "Singleton" };
            json!({"name": subject, "subject": subject, "type": "service", "response_type": response})
        });
        let commands = json!({"name": COMMANDS, "subject": COMMANDS, "type": "stream"});
        services.chain([commands]).collect()
    }

    /// What it uses of the hub's, whose public key that is.
    pub fn imports(self, hub: &str) -> Vec<Value> {
        let import = |subject: &str, kind: &str| json!({"name": subject, "subject": subject, "account": hub, "type": kind});
        let commands = (self == Role::Control).then(|| import(COMMANDS, "stream"));
        services(self).iter().map(|subject| import(subject, "service")).chain(commands).collect()
    }
}

/// Reads of streams with the subjects in their bodies: each node may read its own alone.
const READS: &str = "$JS.API.DIRECT.GET.*";

/// What the hub says to nodes.
const COMMANDS: &str = "ew.cmd.>";

/// What nodes ask in that account, by the same subjects as in HUB. Which of them are a single node's own is a matter of its
/// permission.
fn services(role: Role) -> Vec<String> {
    let read = |lane: Lane| format!("$JS.API.DIRECT.GET.{}.>", lane.hub_stream());
    match role {
        Role::Server | Role::Hub => Vec::new(),
        Role::Control => {
            let desired = subject::bucket_stream(BUCKET_DESIRED);
            [
                "ew.in.>",
                "ew.req.>",
                "ew.hb.*",
                "ew.str.>",
                "ew.mod.>",
                &format!("$JS.API.CONSUMER.MSG.NEXT.{desired}.*"),
                // Both forms of an acknowledgement; the longer one names the stream's domain and account hash.
                &format!("$JS.ACK.{desired}.>"),
                &format!("$JS.ACK.{}.*.{desired}.>", subject::DOMAIN_HUB),
                &read(Lane::State),
            ]
            .map(str::to_owned)
            .to_vec()
        }
        Role::Work => {
            ["from.>", "from-bulk.>", "_cursor.>", &read(Lane::Workload), READS].map(str::to_owned).to_vec()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::node_permissions;
    use schemas::name::NodeName;

    fn subject_of(import: &Value) -> &str {
        import.get("subject").and_then(Value::as_str).unwrap()
    }

    #[test]
    fn what_a_node_may_is_imported_and_nothing_that_it_may_not() {
        let (control, work) = node_permissions(&NodeName::new("n1").unwrap());
        for (role, permissions) in [(Role::Control, control), (Role::Work, work)] {
            let imports = role.imports("A");
            for subject in &permissions.publish_allow {
                // The server takes the domain's name out before it looks for an import.
                let plain = subject.replace("$JS.hub.API.", "$JS.API.");
                let imported = imports.iter().any(|import| subject::matches(subject_of(import), &plain));
                assert!(imported || plain == "app.>", "{subject}");
            }
            for import in &imports {
                let own = permissions.publish_allow.iter().chain(&permissions.subscribe_allow);
                let mut own = own.map(|subject| subject.replace("$JS.hub.API.", "$JS.API."));
                assert!(own.any(|subject| subject::matches(subject_of(import), &subject)), "{import}");
            }
        }
    }

    #[test]
    fn all_that_is_imported_is_exported() {
        let exports = Role::Hub.exports();
        for import in [Role::Control, Role::Work].iter().flat_map(|role| role.imports("A")) {
            let (subject, kind) = (&import["subject"], &import["type"]);
            assert!(exports.iter().any(|of| of["subject"] == *subject && of["type"] == *kind), "{import}");
        }
        assert!(Role::Hub.imports("A").is_empty() && Role::Work.exports().is_empty());
    }
}
