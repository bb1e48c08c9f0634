//! What enrolment leaves on disk, under `<data>/hub`: the node's name, where the hub is, its authority, two credentials.

use std::path::{Path, PathBuf};

use schemas::Timestamp;
use schemas::credential::Enrolled;
use schemas::name::NodeName;
use serde::{Deserialize, Serialize};

use super::allow::{Permissions, node_permissions};
use super::files::{make_private_dir, read_text, write_text};
use super::{IdentityError, fingerprints, jwt};
use crate::proxy::Proxy;
use crate::server::HubLink;

/// The node's keys and place in a hub.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Membership {
    /// Name of the node.
    pub node: NodeName,
    /// `tls://host:port` of each hub.
    pub leaf_urls: Vec<String>,
    /// `wss://host:port`, for where those cannot be reached.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wss_urls: Vec<String>,
    /// The proxy that it joined through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<Proxy>,
}

fn dir(data_dir: &Path) -> PathBuf {
    data_dir.join("hub")
}

/// The user seeds of a node that joins, made here and kept: joining again with the same keys is the same node.
pub struct Keys {
    /// For CONTROL.
    pub control: nkeys::KeyPair,
    /// For WORK.
    pub work: nkeys::KeyPair,
    /// New ones, beside those that the node has: they take their place when the hub has taken them.
    next: bool,
}

/// What the seed files of keys are called that the hub has not taken yet.
const NEXT: &str = ".next";
/// The hub's authorities.
const CA: &str = "ca.crt";
/// So many authorities are trusted at most: the present one and the next, with room.
const AUTHORITIES_MAX: usize = 8;
const CONTROL: &str = "control";
const WORK: &str = "work";

impl Keys {
    /// Reads them, or makes them. With `new`: others than those that the node has. They are on disk before they are used, so
    /// that asking again after a lost answer is asking with the same keys.
    pub fn load_or_create(data_dir: &Path, new: bool) -> Result<Self, IdentityError> {
        let dir = dir(data_dir);
        make_private_dir(&dir).map_err(|source| IdentityError::io(&dir, source))?;
        if new && !seed_file(data_dir, CONTROL, NEXT).exists() {
            // Control's is made first and taken first: one of work's alone was taken too when the machine fell. Asked for again
            // beside a new one it would be retired as an old key, while it is in use.
            take(data_dir, WORK)?;
        }
        let key = |name: &str| -> Result<nkeys::KeyPair, IdentityError> {
            let path = seed_file(data_dir, name, if new { NEXT } else { "" });
            let shown = || path.display().to_string();
            if let Some(seed) = read_text(&path)? {
                let key = nkeys::KeyPair::from_seed(seed.trim());
                return key.map_err(|error| IdentityError::key(shown(), error));
            }
            let key = nkeys::KeyPair::new_user();
            write_text(&path, &key.seed().map_err(|error| IdentityError::key(shown(), error))?)?;
            Ok(key)
        };
        Ok(Self { control: key(CONTROL)?, work: key(WORK)?, next: new })
    }

    /// The hub has taken them.
    fn taken(&self, data_dir: &Path) -> Result<(), IdentityError> {
        for name in [CONTROL, WORK].into_iter().filter(|_| self.next) {
            take(data_dir, name)?;
        }
        Ok(())
    }
}

fn seed_file(data_dir: &Path, name: &str, end: &str) -> PathBuf {
    dir(data_dir).join(format!("{name}.seed{end}"))
}

/// The next seed, if there is one, is the seed from now on.
fn take(data_dir: &Path, name: &str) -> Result<(), IdentityError> {
    let next = seed_file(data_dir, name, NEXT);
    match std::fs::rename(&next, seed_file(data_dir, name, "")) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(IdentityError::io(&next, error)),
        _ => Ok(()),
    }
}

/// Keeps what the hub answered. The membership itself is written last: with it, all is there.
pub fn save(
    data_dir: &Path,
    node: NodeName,
    keys: &Keys,
    enrolled: Enrolled,
    proxy: Option<Proxy>,
) -> Result<(), IdentityError> {
    let dir = dir(data_dir);
    let creds = |token: &str, key: &nkeys::KeyPair| -> Result<String, IdentityError> {
        let seed = key.seed().map_err(|error| IdentityError::key("the node's key", error))?;
        Ok(jwt::creds(token, &seed))
    };
    trust(data_dir, &enrolled.ca_pem)?;
    write_text(&dir.join("control.creds"), &creds(&enrolled.control_jwt, &keys.control)?)?;
    write_text(&dir.join("work.creds"), &creds(&enrolled.work_jwt, &keys.work)?)?;
    let (leaf_urls, wss_urls) = (enrolled.leaf_urls, enrolled.wss_urls);
    let membership = Membership { node, leaf_urls, wss_urls, proxy };
    let text = serde_json::to_string_pretty(&membership).unwrap_or_default();
    write_text(&dir.join("membership.json"), &text)?;
    keys.taken(data_dir)
}

/// Replaces the hub's authorities (PEM). What holds none, or too many, is refused: nothing could be reached with it.
pub fn trust(data_dir: &Path, ca_pem: &str) -> Result<(), IdentityError> {
    let trusted = fingerprints(ca_pem)?;
    if trusted.is_empty() || trusted.len() > AUTHORITIES_MAX {
        let text = format!("{} authorities, not 1 to {AUTHORITIES_MAX}", trusted.len());
        return Err(IdentityError::tls("the hub's authorities", text));
    }
    write_text(&dir(data_dir).join(CA), ca_pem)
}

/// The keys that the credentials on disk stand for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Public key of the user in CONTROL.
    pub control: String,
    /// Public key of the user in WORK.
    pub work: String,
    /// When the hub signed it, by its clock.
    pub issued: Timestamp,
    /// It may not do all that a node of this version does: it was signed by a hub of an older one.
    pub is_outdated: bool,
}

/// What the node's server connects with next; `None` before the node has joined.
pub fn holding(data_dir: &Path) -> Result<Option<Held>, IdentityError> {
    let claims = |name: &str| -> Result<Option<serde_json::Value>, IdentityError> {
        let text = read_text(&dir(data_dir).join(format!("{name}.creds")))?;
        Ok(text.and_then(|text| jwt::claims(text.lines().find(|line| line.starts_with("ey"))?)))
    };
    let (Some(control), Some(work)) = (claims("control")?, claims("work")?) else { return Ok(None) };
    let key = |claims: &serde_json::Value| claims.get("sub")?.as_str().map(str::to_owned);
    let issued = control.get("iat").and_then(serde_json::Value::as_i64).unwrap_or_default();
    let keys = key(&control).zip(key(&work));
    let issued = Timestamp(issued.saturating_mul(1000));
    let may = |claims: &serde_json::Value, needs: &Permissions| {
        let allowed = |way: &str| -> Option<Vec<String>> {
            serde_json::from_value(claims.get("nats")?.get(way)?.get("allow")?.clone()).ok()
        };
        let all = |way: &str, needs: &[String]| {
            allowed(way).is_some_and(|allowed| needs.iter().all(|subject| allowed.contains(subject)))
        };
        all("pub", &needs.publish_allow) && all("sub", &needs.subscribe_allow)
    };
    let name = control.get("name").and_then(|name| NodeName::new(name.as_str()?).ok());
    let is_outdated = name.is_some_and(|node| {
        let (for_control, for_work) = node_permissions(&node);
        !may(&control, &for_control) || !may(&work, &for_work)
    });
    Ok(keys.map(|(control, work)| Held { control, work, issued, is_outdated }))
}

/// The membership, if the node has joined.
pub fn load(data_dir: &Path) -> Result<Option<(Membership, HubLink)>, IdentityError> {
    let dir = dir(data_dir);
    let path = dir.join("membership.json");
    let Some(text) = read_text(&path)? else { return Ok(None) };
    let membership: Membership = serde_json::from_str(&text)
        .map_err(|error| IdentityError::Membership(path.display().to_string(), error.to_string()))?;
    let link = HubLink {
        urls: [membership.leaf_urls.as_slice(), &membership.wss_urls].concat(),
        ca_file: dir.join(CA),
        control_creds: dir.join("control.creds"),
        work_creds: dir.join("work.creds"),
        proxy: membership.proxy.clone(),
    };
    Ok(Some((membership, link)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fall_between_the_two_seeds_leaves_no_key_that_is_used_among_the_next() {
        let data = tempfile::tempdir().unwrap();
        let keys = |new| Keys::load_or_create(data.path(), new).unwrap();
        let public = |keys: &Keys| (keys.control.public_key(), keys.work.public_key());
        let first = public(&keys(false));
        let next = keys(true);
        assert_eq!(public(&keys(true)), public(&next), "asked again with the same");
        take(data.path(), CONTROL).unwrap(); // and the machine falls
        let (control, work) = public(&keys(true));
        assert_eq!(public(&keys(false)), public(&next), "the next are the present ones");
        assert!(
            ![first.0, public(&next).0].contains(&control) && ![first.1, public(&next).1].contains(&work)
        );
    }
}
