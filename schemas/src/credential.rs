//! Credentials: of pods on their node, of nodes and tools at the hub.

use serde::{Deserialize, Serialize};

use crate::Timestamp;
use crate::name::{DeviceName, Namespace, NodeName};

/// Asks for a pod's credential. Request `ew.local.credentials.issue`; answered with `Reply<Issued>`, the same each time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issue {
    /// UID of the pod.
    pub uid: String,
    /// Its namespace: whose subjects it opens.
    pub namespace: Namespace,
}

/// A pod's credential, and where it opens a door. Whatever door a node has for its pods is told here and nowhere else.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issued {
    /// `nats://user:password@address:port`: becomes `NATS_URL`.
    pub url: String,
    /// The only inbox prefix that the pod may listen on: becomes `NATS_INBOX_PREFIX`.
    pub inbox: String,
    /// `http://user:password@address:port`: becomes `BUS_HTTP_URL`. Absent where the node has no door for HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_url: Option<String>,
    /// The user in `url`, for clients that want it apart: becomes `NATS_USER`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// The password in `url`: becomes `NATS_PASSWORD`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub password: String,
    /// `mqtt://user:password@address:port`: becomes `MQTT_URL`; `None` where MQTT is not served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mqtt_url: Option<String>,
}

impl Issued {
    /// The variables that a container gets of it. Absent doors have none.
    pub fn env(self) -> Vec<(&'static str, String)> {
        let doors = [
            ("NATS_URL", Some(self.url)),
            ("NATS_INBOX_PREFIX", Some(self.inbox)),
            ("NATS_USER", Some(self.user)),
            ("NATS_PASSWORD", Some(self.password)),
            ("BUS_HTTP_URL", self.http_url),
            ("MQTT_URL", self.mqtt_url),
        ];
        let there = |(name, value): (&'static str, Option<String>)| {
            value.filter(|value| !value.is_empty()).map(|value| (name, value))
        };
        doors.into_iter().filter_map(there).collect()
    }
}

/// No log says a password.
impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issued").field("user", &self.user).finish_non_exhaustive()
    }
}

/// Annotation of a pod that wants nothing of the bus, with the value [`BUS_NONE`]: no login is made for it.
pub const ANNOTATION_BUS: &str = "edgewire.io/bus";
/// See [`ANNOTATION_BUS`].
pub const BUS_NONE: &str = "none";

/// Most topic trees of one device.
pub const DEVICE_TOPICS_MAX: usize = 64;

/// Who may connect to a node's server from outside pods. Verb `create` of module `credentials` on a node; answered with
/// `Reply<DeviceLogin>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewDevice {
    /// Unique on the node.
    pub name: DeviceName,
    /// Whose subjects it opens.
    pub namespace: Namespace,
    /// MQTT topic filters of its own, which need no namespace in them; at most [`DEVICE_TOPICS_MAX`].
    #[serde(default)]
    pub topics: Vec<String>,
    /// It may connect by MQTT alone.
    #[serde(default)]
    pub mqtt_only: bool,
}

/// The login of a device: told once, when it is made. Its `inbox` is empty when it may not speak NATS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceLogin {
    /// As it was asked for.
    pub device: NewDevice,
    /// Its doors.
    pub issued: Issued,
}

/// Takes a device's login back; its connections end. Verb `revoke` of module `credentials`; answered with `Reply<()>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokeDevice {
    /// Its name.
    pub name: DeviceName,
}

/// All devices of a node. Answer to verb `list` of module `credentials`, as `Reply<Devices>`; no passwords.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Devices {
    /// In the order of their names.
    pub devices: Vec<NewDevice>,
}

/// Takes a pod's credential back. Request `ew.local.credentials.revoke`; answered with `Reply<()>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Withdraw {
    /// UID of the pod.
    pub uid: String,
}

/// A join token as the hub keeps it (bucket `identity`, key `token.<id>`). The secret itself is not kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Public part.
    pub id: String,
    /// SHA-256 of the secret, hex.
    pub secret_sha256: String,
    /// Only this node may use it.
    pub node: Option<NodeName>,
    /// Uses left.
    pub uses: u32,
    /// Not after.
    pub expires: Timestamp,
}

/// An enrolled node as the hub keeps it (bucket `identity`, key `node.<name>`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its name.
    pub node: NodeName,
    /// Public key of its user in CONTROL.
    pub control_key: String,
    /// Public key of its user in WORK.
    pub work_key: String,
    /// When it joined first.
    pub enrolled: Timestamp,
    /// When its keys were revoked. Its name may be taken by new keys, never by these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<Timestamp>,
    /// Keys that were signed to take the place of its own, and do so when it says that it holds them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<NodeKeys>,
    /// The keys before its own: revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retired: Option<NodeKeys>,
    /// Fingerprints of the authorities that its server trusts, as it said last; empty before it did.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trusts: Vec<String>,
}

/// The public keys of a node's two users. Question `ew.req.<node>.identity.renew` (answered with [`Enrolled`]: the keys are
/// signed beside the present ones).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeKeys {
    /// Its user in CONTROL.
    pub control_key: String,
    /// Its user in WORK.
    pub work_key: String,
}

/// What a node connects with next, and whom it trusts. Question `ew.req.<node>.identity.holding`, answered with [`Heard`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holding {
    /// Its keys.
    #[serde(flatten)]
    pub keys: NodeKeys,
    /// Fingerprints of the authorities that its server trusts now; absent from nodes that do not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trusts: Option<Vec<String>>,
}

/// The answer to [`Holding`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heard {
    /// The hub's authorities (PEM), when they are others than those that the node trusts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_pem: Option<String>,
}

impl NodeRecord {
    /// Its keys.
    pub fn keys(&self) -> NodeKeys {
        NodeKeys { control_key: self.control_key.clone(), work_key: self.work_key.clone() }
    }

    /// Does it stand for one of these keys?
    pub fn has_key(&self, enroll: &Enroll) -> bool {
        self.control_key == enroll.control_key || self.work_key == enroll.work_key
    }
}

/// Body of `POST /edgewire/v1/tokens` (JSON).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewToken {
    /// Seconds that it is good for.
    #[serde(default = "hour")]
    pub ttl_s: u64,
    /// Only this node may use it.
    #[serde(default)]
    pub node: Option<NodeName>,
    /// How often it may be used.
    #[serde(default = "once")]
    pub uses: u32,
}

fn hour() -> u64 {
    3600
}

fn once() -> u32 {
    1
}

/// What a token string holds: `ew1.` and this as base64url of JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    /// The hub's API addresses, `https://host:port`.
    pub hubs: Vec<String>,
    /// SHA-256 of the certificate (DER) of one of the hub's authorities, hex: what the joining node trusts.
    pub ca_sha256: String,
    /// Public part.
    pub id: String,
    /// Secret part.
    pub secret: String,
    /// Where its leaf will connect: `tls://host:port` or `wss://host:port`. So that the ways can be tried before joining;
    /// a token of before this was told has none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub leafs: Vec<String>,
}

/// Body of `POST /edgewire/v1/enroll` (JSON). The keys were made on the node; only their public halves travel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enroll {
    /// From the token.
    pub id: String,
    /// From the token.
    pub secret: String,
    /// The name that the node wants.
    pub node: NodeName,
    /// Public user nkey for CONTROL.
    pub control_key: String,
    /// Public user nkey for WORK.
    pub work_key: String,
}

/// Answer to [`Enroll`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolled {
    /// The node's token in CONTROL.
    pub control_jwt: String,
    /// The node's token in WORK.
    pub work_jwt: String,
    /// Where its leaf connects: `tls://host:port` of each hub.
    pub leaf_urls: Vec<String>,
    /// Where it connects when none of those can be reached: `wss://host:port`. Apart from them, because a node of before
    /// there were any would hand both to its server, which takes no mixture.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wss_urls: Vec<String>,
    /// The hub's authorities (PEM).
    pub ca_pem: String,
}
