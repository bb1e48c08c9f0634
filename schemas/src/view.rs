//! Typed views of our own kinds: for reading, and to find fields that nobody knows. What is stored is the document as it was
//! sent ([`crate::object`]); a view never takes its place. What was sent has to come back when it is written again, an empty map
//! too: what does not was unknown.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};

/// An object of a kind whose `spec` is `S` and whose `status` is `T`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct View<S, T = serde_json::Value> {
    /// `group/version`.
    #[serde(default)]
    pub api_version: String,
    /// The kind.
    #[serde(default)]
    pub kind: String,
    /// Kubernetes' own.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What is wished.
    pub spec: S,
    /// What is.
    #[serde(default = "Option::default", skip_serializing_if = "Option::is_none")]
    pub status: Option<T>,
}
