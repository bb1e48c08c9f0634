//! The login that a node's agent leaves for its operator (`operator.json`): who has the machine may do all on the node's own
//! server, and across its link what the node may.

use std::path::PathBuf;

use anyhow::Context;
use async_nats::jetstream;
use bus::connection::{Bus, Login, dial};
use bus::module::Account;
use schemas::subject;
use serde::Deserialize;

use super::Edge;

/// A node's operator.
#[derive(Debug, Clone, Deserialize)]
pub struct Operator {
    url: String,
    node: String,
    user: String,
    control_password: String,
    work_user: String,
    work_password: String,
}

impl Edge {
    /// Where the agent leaves its operator's login, at each of its starts.
    pub fn operator_file(&self) -> PathBuf {
        self.data_dir().join("operator.json")
    }

    /// Its operator, as the agent's last start left the login.
    pub fn operator(&self) -> anyhow::Result<Operator> {
        let file = self.operator_file();
        let text = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is not understood", file.display()))
    }
}

impl Operator {
    /// Connects to the node's own server; from within the node's namespace (see [`super::inside`]).
    pub async fn dial(&self, account: Account) -> anyhow::Result<Bus> {
        let (user, password) = match account {
            Account::Control => (&self.user, &self.control_password),
            Account::Work => (&self.work_user, &self.work_password),
        };
        let login = Login::Password { user: user.clone(), password: password.clone() };
        // The node's own inbox: no other is answered across the link.
        let inbox = subject::module_inbox(&self.node, "judge");
        Ok(dial(&self.url, None, login, "judge", inbox, account, "").await?)
    }

    /// The node's streams of an account, raw.
    pub async fn js(&self, account: Account) -> anyhow::Result<jetstream::Context> {
        Ok(jetstream::new(self.dial(account).await?.client().clone()))
    }
}
