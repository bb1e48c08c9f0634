//! The files of the hub's authorities and certificate, and everything that has to hear of a change: the hub's server, and
//! what its owner adds (the API, the kubeconfig).
//!
//! Files are changed first, each by one rename; then what runs is told. A hub that falls in between, or whose server is down,
//! shows what the files say when it is up again.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use bus::identity::{IdentityError, Tls};
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
    /// Certificate and authorities that what runs was told of last.
    in_force: Mutex<(String, String)>,
}

impl Keeper {
    /// Of the files in `dir`, which are `tls`, made for these names, and in force already.
    pub fn new(dir: PathBuf, sans: Vec<String>, tls: Tls, server: Arc<HubServer>, told: Told) -> Self {
        let in_force = Mutex::new((tls.certificate.fingerprint.clone(), tls.ca_pem.clone()));
        Self { dir, sans, tls: Mutex::new(tls), server, told, in_force }
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
        let failed = |error: IdentityError| Refusal::new(500, "EW-CA-FILES", error.to_string());
        let tls = files(&self.dir, &self.sans).map_err(failed)?;
        *self.tls.lock().unwrap_or_else(PoisonError::into_inner) = tls;
        self.put_in_force().await
    }

    /// Tells what runs, if it has not been told of what the files say: also what a life of the module that was cut off began.
    pub async fn put_in_force(&self) -> Result<(), Refusal> {
        let tls = self.tls();
        let wanted = (tls.certificate.fingerprint.clone(), tls.ca_pem.clone());
        if *self.in_force.lock().unwrap_or_else(PoisonError::into_inner) == wanted {
            return Ok(());
        }
        let told = (self.told)(&tls);
        let reloaded = self.server.reload().await.map_err(|error| error.to_string());
        told.and(reloaded).map_err(|error| {
            let text =
                format!("{error}; the files are changed, and are in force when the hub is started again");
            Refusal::new(500, "EW-CA-IN-FORCE", text)
        })?;
        *self.in_force.lock().unwrap_or_else(PoisonError::into_inner) = wanted;
        Ok(())
    }
}
