//! Pure: the ConfigMaps and Secrets of a pod's namespace as plain keys and bytes, for its environment and its volumes.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine;
use k8s_openapi::api::core::v1::Pod;
use schemas::object::Object;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Plural name of ConfigMaps.
pub const CONFIG_MAPS: &str = "configmaps";
/// Plural name of Secrets.
pub const SECRETS: &str = "secrets";

/// Keys and values of one ConfigMap or Secret.
pub type Data = BTreeMap<String, bytes::Bytes>;

/// What a pod may refer to, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Referenced {
    /// ConfigMaps of the pod's namespace.
    pub config_maps: BTreeMap<String, Data>,
    /// Secrets of the pod's namespace.
    pub secrets: BTreeMap<String, Data>,
}

/// Names of the ConfigMaps and Secrets that a pod refers to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    /// Of ConfigMaps.
    pub config_maps: BTreeSet<String>,
    /// Of Secrets.
    pub secrets: BTreeSet<String>,
}

impl Names {
    /// In its volumes and in its containers' environment.
    pub fn of(pod: &Pod) -> Self {
        let mut out = Self::default();
        let Some(spec) = &pod.spec else { return out };
        for volume in spec.volumes.iter().flatten() {
            out.config_maps.extend(volume.config_map.iter().map(|source| source.name.clone()));
            out.secrets.extend(volume.secret.iter().filter_map(|source| source.secret_name.clone()));
        }
        for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
            for from in container.env_from.iter().flatten() {
                out.config_maps.extend(from.config_map_ref.iter().map(|source| source.name.clone()));
                out.secrets.extend(from.secret_ref.iter().map(|source| source.name.clone()));
            }
            for from in container.env.iter().flatten().filter_map(|var| var.value_from.as_ref()) {
                out.config_maps.extend(from.config_map_key_ref.iter().map(|source| source.name.clone()));
                out.secrets.extend(from.secret_key_ref.iter().map(|source| source.name.clone()));
            }
        }
        out
    }

    /// Is this one among them?
    pub fn has(&self, plural: &str, name: &str) -> bool {
        match plural {
            CONFIG_MAPS => self.config_maps.contains(name),
            SECRETS => self.secrets.contains(name),
            _ => false,
        }
    }
}

/// Keys and values of a ConfigMap (`data` is text, `binaryData` base64) or Secret (`data` is base64). What is not base64
/// is left out: the API refuses it, so here it is a key that does not exist.
pub fn data_of(plural: &str, object: &Object) -> Data {
    let section = |name: &str| object.get(&[name]).and_then(Value::as_object);
    let mut out = Data::new();
    let mut decode = |map: Option<&Map<String, Value>>| {
        for (key, value) in map.into_iter().flatten() {
            let text = value.as_str().unwrap_or("");
            if let Ok(bytes) = base64::engine::general_purpose::STANDARD.decode(text) {
                out.insert(key.clone(), bytes.into());
            }
        }
    };
    if plural == SECRETS {
        decode(section("data"));
    } else {
        decode(section("binaryData"));
        for (key, value) in section("data").into_iter().flatten() {
            out.insert(key.clone(), value.as_str().unwrap_or("").to_owned().into());
        }
    }
    out
}
