//! CloudEvents 1.0 attributes as NATS headers, around a MessagePack body.
//!
//! Source: CloudEvents 1.0.2 and its NATS protocol binding (`ce-` headers, binary mode). Every durable message of
//! Edgewire carries them, so any CloudEvents tool can read who said what and when.

use std::collections::BTreeMap;

use crate::Timestamp;

/// `datacontenttype` of all bodies that Edgewire itself writes.
pub const CONTENT_TYPE: &str = "application/msgpack";
/// `specversion`.
pub const SPEC_VERSION: &str = "1.0";
/// Version of the payload shapes; readers accept their own and older.
pub const PAYLOAD_VERSION: u32 = 1;

/// Header names.
pub mod header {
    /// CloudEvents `id`: unique within its source.
    pub const ID: &str = "ce-id";
    /// CloudEvents `source`: `/nodes/<node>/modules/<module>`.
    pub const SOURCE: &str = "ce-source";
    /// CloudEvents `type`: `io.edgewire.<module>.<Type>`.
    pub const TYPE: &str = "ce-type";
    /// CloudEvents `time`, RFC 3339.
    pub const TIME: &str = "ce-time";
    /// CloudEvents `specversion`.
    pub const SPEC_VERSION: &str = "ce-specversion";
    /// CloudEvents `datacontenttype`.
    pub const CONTENT_TYPE: &str = "content-type";
    /// Extension: version of the payload's shape.
    pub const PAYLOAD_VERSION: &str = "ce-ewversion";
    /// Why a message stands in the dead-letter stream.
    pub const DEAD_REASON: &str = "ew-dead-reason";
    /// Where a message stood in its node's stream: `<generation>.<sequence>` (see [`crate::loss::Origin`]). A cursor says
    /// up to where its lane was taken.
    pub const ORIGIN: &str = "ew-origin";
    /// Where a lane began and what it could not carry (see [`crate::loss::Account`]), on its cursor, as JSON.
    pub const ACCOUNT: &str = "ew-account";
    /// The subject that a dead letter came on.
    pub const DEAD_SUBJECT: &str = "ew-dead-subject";
}

/// Headers of one message. One value a name is all we use.
pub type Headers = BTreeMap<String, String>;

/// The CloudEvents headers of a message of ours. `id` must be the same when the same thing is said again.
pub fn headers(node: &str, module: &str, kind: &str, id: &str, at: Timestamp) -> Headers {
    [
        (header::SPEC_VERSION, SPEC_VERSION.to_owned()),
        (header::ID, id.to_owned()),
        (header::SOURCE, format!("/nodes/{node}/modules/{module}")),
        (header::TYPE, format!("io.edgewire.{module}.{kind}")),
        (header::TIME, at.rfc3339()),
        (header::CONTENT_TYPE, CONTENT_TYPE.to_owned()),
        (header::PAYLOAD_VERSION, PAYLOAD_VERSION.to_string()),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}
