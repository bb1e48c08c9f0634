//! The files of the hub's authorities and certificate, and everything that has to hear of a change: the hub's server, and
//! what its owner adds (the API, the kubeconfig).
//!
//! Files are changed first, each by one rename; then what runs is told. A hub that falls in between, or whose server is down,
//! shows what the files say when it is up again.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use bus::identity::Tls;
use bus::server::HubServer;
use schemas::command::Refusal;

use crate::authority::{Change, Facts};

/// Told of each change, before the hub's server is.
pub type Told = Box<dyn Fn(&Tls) -> Result<(), String> + Send + Sync>;

/// Keeps them. One for each hub, whatever becomes of the module.
pub struct Keeper {
    dir: PathBuf,
    sans: Vec<String>,
    tls: Mutex<Tls>,
    server: Arc<HubServer>,
    told: Told,
}

impl Keeper {
    /// Of the files in `dir`, which are `tls`, made for these names.
    pub fn new(dir: PathBuf, sans: Vec<String>, tls: Tls, server: Arc<HubServer>, told: Told) -> Self {
        Self { dir, sans, tls: Mutex::new(tls), server, told }
    }

    /// As they stand.
    pub fn tls(&self) -> Tls {
        self.tls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The same, without the key.
    pub fn facts(&self) -> Facts {
        Facts::of(&self.tls())
    }

    /// Changes the files, then what runs.
    pub async fn change(&self, change: Change) -> Result<(), Refusal> {
        let files = match change {
            Change::Renew => Tls::renew,
            Change::Roll => Tls::roll,
            Change::Finish => Tls::finish,
        };
        let internal = |code: &str, text: String| Refusal::new(500, code, text);
        let tls = files(&self.dir, &self.sans).map_err(|error| internal("EW-CA-FILES", error.to_string()))?;
        *self.tls.lock().unwrap_or_else(PoisonError::into_inner) = tls.clone();
        let told = (self.told)(&tls);
        let reloaded = self.server.reload().await.map_err(|error| error.to_string());
        told.and(reloaded).map_err(|error| {
            let text =
                format!("{error}; the files are changed, and are in force when the hub is started again");
            internal("EW-CA-IN-FORCE", text)
        })
    }
}
