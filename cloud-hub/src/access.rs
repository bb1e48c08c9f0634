//! The operator's way in: a bearer token, made once, and the kubeconfig that holds it.

use std::path::Path;

use anyhow::Context;
use bus::identity::{Tls, write_private};
use serde_json::json;

use crate::config::Config;

/// Reads the token in the data directory, or makes it.
pub fn token(dir: &Path) -> anyhow::Result<String> {
    let path = dir.join("admin.token");
    if let Ok(text) = std::fs::read_to_string(&path) {
        let text = text.trim().to_owned();
        if text.len() >= 32 {
            return Ok(text);
        }
    }
    let token = format!("{}{}", schemas::object::new_uid(), schemas::object::new_uid()).replace('-', "");
    write_private(&path, token.as_bytes()).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(token)
}

/// Writes the kubeconfig, readable by its owner only. JSON is YAML, and `kubectl` reads it.
pub fn write_kubeconfig(config: &Config, tls: &Tls, token: &str, port: u16) -> anyhow::Result<()> {
    use base64::Engine;
    let host = config.advertise.first().map_or("127.0.0.1", String::as_str);
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let ca = base64::engine::general_purpose::STANDARD.encode(&tls.ca_pem);
    let kubeconfig = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "edgewire", "cluster": {
            "server": format!("https://{host}:{port}"), "certificate-authority-data": ca}}],
        "users": [{"name": "edgewire-admin", "user": {"token": token}}],
        "contexts": [{"name": "edgewire", "context": {"cluster": "edgewire", "user": "edgewire-admin"}}],
        "current-context": "edgewire",
    });
    let text = serde_json::to_string_pretty(&kubeconfig)? + "\n";
    write_private(&config.kubeconfig, text.as_bytes())
        .with_context(|| format!("cannot write {}", config.kubeconfig.display()))
}
