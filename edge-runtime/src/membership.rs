//! What enrolment leaves on disk, under `<data>/hub`: the node's name, where the hub is, its authority, two credentials.

use std::path::{Path, PathBuf};

use anyhow::Context;
use bus::identity::write_private;
use bus::server::HubLink;
use schemas::credential::Enrolled;
use schemas::name::NodeName;
use serde::{Deserialize, Serialize};

/// The node's keys and place in a hub.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Membership {
    /// Name of the node.
    pub node: NodeName,
    /// `tls://host:port` of each hub.
    pub leaf_urls: Vec<String>,
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

impl Keys {
    /// Reads them, or makes them. With `new`: others than those that the node has. They are on disk before they are used, so
    /// that asking again after a lost answer is asking with the same keys.
    pub fn load_or_create(data_dir: &Path, new: bool) -> anyhow::Result<Self> {
        let dir = dir(data_dir);
        std::fs::create_dir_all(&dir)
            .with_context(|| format!("EW-DATA-DIR: cannot make {}", dir.display()))?;
        let key = |name: &str| -> anyhow::Result<nkeys::KeyPair> {
            let path = dir.join(format!("{name}.seed{}", if new { NEXT } else { "" }));
            if let Ok(seed) = std::fs::read_to_string(&path) {
                return nkeys::KeyPair::from_seed(seed.trim())
                    .map_err(|error| anyhow::anyhow!("{} is not an nkey seed: {error}", path.display()));
            }
            let key = nkeys::KeyPair::new_user();
            let seed = key.seed().map_err(|error| anyhow::anyhow!("no seed: {error}"))?;
            write_private(&path, seed.as_bytes())
                .with_context(|| format!("cannot write {}", path.display()))?;
            Ok(key)
        };
        Ok(Self { control: key("control")?, work: key("work")?, next: new })
    }

    /// The hub has taken them.
    fn taken(&self, data_dir: &Path) -> anyhow::Result<()> {
        for name in ["control", "work"].into_iter().filter(|_| self.next) {
            let path = dir(data_dir).join(format!("{name}.seed"));
            let next = dir(data_dir).join(format!("{name}.seed{NEXT}"));
            std::fs::rename(&next, &path).with_context(|| format!("cannot rename {}", next.display()))?;
        }
        Ok(())
    }
}

/// Keeps what the hub answered. The membership itself is written last: with it, all is there.
pub fn save(data_dir: &Path, node: NodeName, keys: &Keys, enrolled: Enrolled) -> anyhow::Result<()> {
    let dir = dir(data_dir);
    let write = |name: &str, text: &str| {
        let path = dir.join(name);
        write_private(&path, text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
    };
    let creds = |jwt: &str, key: &nkeys::KeyPair| -> anyhow::Result<String> {
        let seed = key.seed().map_err(|error| anyhow::anyhow!("no seed: {error}"))?;
        Ok(bus::identity::jwt::creds(jwt, &seed))
    };
    write("ca.crt", &enrolled.ca_pem)?;
    write("control.creds", &creds(&enrolled.control_jwt, &keys.control)?)?;
    write("work.creds", &creds(&enrolled.work_jwt, &keys.work)?)?;
    let membership = Membership { node, leaf_urls: enrolled.leaf_urls };
    write("membership.json", &serde_json::to_string_pretty(&membership)?)?;
    keys.taken(data_dir)
}

/// The membership, if the node has joined.
pub fn load(data_dir: &Path) -> anyhow::Result<Option<(Membership, HubLink)>> {
    let dir = dir(data_dir);
    let path = dir.join("membership.json");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let membership: Membership = serde_json::from_str(&text)
        .with_context(|| format!("EW-MEMBERSHIP: {} is not valid; join again", path.display()))?;
    let link = HubLink {
        urls: membership.leaf_urls.clone(),
        ca_file: dir.join("ca.crt"),
        control_creds: dir.join("control.creds"),
        work_creds: dir.join("work.creds"),
    };
    Ok(Some((membership, link)))
}
