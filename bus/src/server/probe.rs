//! How a supervisor connects to its server's own account: a server is ready when it takes a real connection.

use std::path::PathBuf;
use std::time::Duration;

const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_TRIES: u32 = 3;
pub(super) const PROBE_EVERY: Duration = Duration::from_millis(20);

/// How to connect to the server's own account: readiness is a connection, not a process.
#[derive(Debug, Clone)]
pub(super) struct Probe {
    pub url: String,
    pub ca_file: Option<PathBuf>,
    pub login: Login,
}

#[derive(Debug, Clone)]
pub(super) enum Login {
    Creds(String),
    Password(String, String),
}

impl Probe {
    /// Connects; a few times, because a handshake that meets a reload is refused once, whoever it is (measured).
    pub async fn connect(&self) -> Result<async_nats::Client, String> {
        let mut tried = 1;
        loop {
            match self.connect_once().await {
                Err(_) if tried < CONNECT_TRIES => tried += 1,
                result => return result,
            }
            tokio::time::sleep(PROBE_EVERY).await;
        }
    }

    async fn connect_once(&self) -> Result<async_nats::Client, String> {
        let options = async_nats::ConnectOptions::new().name("edgewire-supervisor").max_reconnects(1);
        let options = match &self.login {
            Login::Creds(text) => options.credentials(text).map_err(|error| error.to_string())?,
            Login::Password(user, password) => options.user_and_password(user.clone(), password.clone()),
        };
        let options = match &self.ca_file {
            Some(file) => options.add_root_certificates(file.clone()).require_tls(true),
            None => options,
        };
        match tokio::time::timeout(PROBE_TIMEOUT, options.connect(&self.url)).await {
            Ok(Ok(client)) => Ok(client),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("no answer in time".to_owned()),
        }
    }
}
