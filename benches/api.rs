//! The hub's API, as a program uses it.

use std::time::Duration;

use anyhow::Context;
use base64::Engine;
use serde_json::Value;
use tests::cluster::Cluster;

/// Nothing here takes longer.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A client with the operator's login.
pub struct Api {
    http: reqwest::Client,
    server: String,
    token: String,
}

impl Api {
    /// By the kubeconfig that the hub wrote.
    pub async fn of(cluster: &Cluster) -> anyhow::Result<Self> {
        let config: Value = serde_json::from_slice(&std::fs::read(&cluster.site().kubeconfig)?)?;
        let text = |path: &str| {
            config.pointer(path).and_then(Value::as_str).map(str::to_owned).with_context(|| path.to_owned())
        };
        let ca = text("/clusters/0/cluster/certificate-authority-data")?;
        let ca = base64::engine::general_purpose::STANDARD.decode(ca)?;
        // A second call finds the provider installed: that is fine.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http =
            reqwest::Client::builder().add_root_certificate(reqwest::Certificate::from_pem(&ca)?).build()?;
        Ok(Self { http, server: text("/clusters/0/cluster/server")?, token: text("/users/0/user/token")? })
    }

    /// A request with the login.
    pub fn request(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, format!("{}{path}", self.server)).bearer_auth(&self.token)
    }

    /// Sends an object; what is not a success is an error.
    pub async fn send(&self, method: reqwest::Method, path: &str, body: &Value) -> anyhow::Result<()> {
        let answer = self.request(method, path).json(body).send().await?;
        let status = answer.status();
        let said = answer.text().await?;
        anyhow::ensure!(status.is_success(), "{path}: {status}: {said}");
        Ok(())
    }
}
