//! Which server to talk to, and with what login: the hub through its kubeconfig, or this node's own, also offline.
//!
//! At the hub the kubeconfig proves who we are to the API, which then gives a login for the bus. On a node the runtime
//! leaves the operator's login in its data directory (`operator.json`, for root only), so nothing but the node is needed.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bus::connection::{Bus, ConnectError, Login, dial};
use bus::module::Account;
use clap::Args;
use schemas::name::NodeName;
use schemas::subject;
use serde::Deserialize;

use crate::api::Api;
use crate::failure::{Failure, Outcome, chain};
use crate::kubeconfig;

/// Our name on the bus.
const OWNER: &str = "edgewire";
/// Where a node's data directory is told once and for all.
const EDGE_DIR_ENV: &str = "EDGEWIRE_EDGE_DIR";

/// Which hub.
#[derive(Debug, Clone, Default, Args)]
pub struct HubArgs {
    /// Kubeconfig of the hub [default: $KUBECONFIG, then ~/.kube/config]
    #[arg(long, value_name = "FILE", help_heading = "Where")]
    pub kubeconfig: Option<PathBuf>,
    /// Context in the kubeconfig [default: its current one]
    #[arg(long, value_name = "NAME", help_heading = "Where")]
    pub context: Option<String>,
}

/// Arguments of what lists things of the hub and can be asked nothing else.
#[derive(Debug, Clone, Default, Args)]
pub struct ListArgs {
    /// A JSON array
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub hub: HubArgs,
}

/// Which hub, or which node.
#[derive(Debug, Clone, Default, Args)]
pub struct PlaceArgs {
    #[command(flatten)]
    pub hub: HubArgs,
    /// Talk to this edge node's own server, also offline: its data directory [default: $EDGEWIRE_EDGE_DIR]
    #[arg(long, value_name = "DIR", conflicts_with_all = ["kubeconfig", "context"], help_heading = "Where")]
    pub edge: Option<PathBuf>,
}

impl HubArgs {
    /// The hub's API.
    pub fn api(&self) -> Outcome<Api> {
        Api::new(kubeconfig::load(self.kubeconfig.as_deref(), self.context.as_deref())?)
    }
}

/// `operator.json` in a node's data directory.
#[derive(Debug, Clone, Deserialize)]
struct OperatorFile {
    url: String,
    node: NodeName,
    user: String,
    control_password: String,
    work_user: String,
    work_password: String,
}

/// Answer of `GET /edgewire/v1/bus`.
#[derive(Debug, Clone, Deserialize)]
struct BusAnswer {
    url: String,
    ca_pem: String,
    control: HubLogin,
    work: HubLogin,
    inbox: String,
}

#[derive(Debug, Clone, Deserialize)]
struct HubLogin {
    jwt: String,
    seed: String,
}

/// One account's login, and the only inbox prefix that it may listen on.
struct Door {
    login: Login,
    inbox: String,
}

/// A server that we can log in to.
pub struct Place {
    /// `hub`, or the node's name.
    pub node: String,
    /// The hub's API, when the place is the hub.
    pub api: Option<Api>,
    url: String,
    domain: String,
    ca: Option<CaFile>,
    control: Door,
    work: Door,
}

impl Place {
    /// Finds out where we are. At the hub this asks the API for a login.
    pub async fn find(args: &PlaceArgs) -> Outcome<Self> {
        let told = std::env::var_os(EDGE_DIR_ENV).filter(|dir| !dir.is_empty()).map(PathBuf::from);
        // A hub named on the command line is meant, whatever the environment says.
        let hub_meant = args.hub.kubeconfig.is_some() || args.hub.context.is_some();
        match args.edge.clone().or(told.filter(|_| !hub_meant)) {
            Some(dir) => Self::edge(&dir),
            None => Self::hub(args.hub.api()?).await,
        }
    }

    fn edge(dir: &Path) -> Outcome<Self> {
        let path = dir.join("operator.json");
        let text = std::fs::read(&path).map_err(|error| {
            let (code, next) = match error.kind() {
                std::io::ErrorKind::PermissionDenied => {
                    ("EW-EDGE-FORBIDDEN", "run as the node's own user, such as root")
                }
                _ => (
                    "EW-EDGE-NOT-FOUND",
                    "pass the node's --data-dir; has `edgewire edge` been started in it?",
                ),
            };
            Failure::new(code, format!("cannot read {}: {error}", path.display()), next)
        })?;
        let file: OperatorFile = serde_json::from_slice(&text).map_err(|error| {
            let next = "restart `edgewire edge`: it writes the file anew";
            Failure::new(
                "EW-EDGE-INVALID",
                format!("{} is not an operator's login: {error}", path.display()),
                next,
            )
        })?;
        let door = |user: &str, password: &str| Door {
            login: Login::Password { user: user.to_owned(), password: password.to_owned() },
            inbox: subject::module_inbox(file.node.as_str(), OWNER),
        };
        Ok(Self {
            control: door(&file.user, &file.control_password),
            work: door(&file.work_user, &file.work_password),
            domain: subject::domain_edge(&file.node),
            node: file.node.to_string(),
            api: None,
            url: file.url,
            ca: None,
        })
    }

    async fn hub(api: Api) -> Outcome<Self> {
        let answer = api.get("/edgewire/v1/bus").await?;
        let answer: BusAnswer = serde_json::from_value(answer).map_err(|error| {
            let next = "are the hub and this tool of the same version? see `edgewire version`";
            Failure::new(
                "EW-HUB-FAILED",
                format!("the hub's login for the bus cannot be read: {error}"),
                next,
            )
        })?;
        let door = |login: HubLogin| Door {
            login: Login::Jwt { jwt: login.jwt, seed: login.seed },
            inbox: answer.inbox.clone(),
        };
        Ok(Self {
            node: "hub".to_owned(),
            api: Some(api),
            domain: subject::DOMAIN_HUB.to_owned(),
            ca: Some(CaFile::write(&answer.ca_pem)?),
            control: door(answer.control),
            work: door(answer.work),
            url: answer.url,
        })
    }

    /// The server, for people.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Connects in an account.
    pub async fn connect(&self, account: Account) -> Outcome<Bus> {
        let door = match account {
            Account::Control => &self.control,
            Account::Work => &self.work,
        };
        let ca = self.ca.as_ref().map(|file| file.0.clone());
        let (login, inbox) = (door.login.clone(), door.inbox.clone());
        dial(&self.url, ca, login, OWNER, inbox, account, &self.domain).await.map_err(|error| {
            let cause = chain(&error);
            if matches!(error, ConnectError::Login { .. }) || cause.to_lowercase().contains("authorization") {
                let next = match self.api {
                    Some(_) => "take the hub's current kubeconfig and try again",
                    None => "restart `edgewire edge`: it writes operator.json anew",
                };
                return Failure::new("EW-BUS-UNAUTHORIZED", cause, next);
            }
            let next = match self.api {
                Some(_) => "is the port open from here? see `edgewire modules --node hub`",
                None => "start the node with `edgewire edge`, and look at its log",
            };
            Failure::new("EW-BUS-UNREACHABLE", cause, next)
        })
    }
}

/// The account that holds `subject`; both for a leading wildcard.
pub fn accounts(subject: &str) -> Vec<Account> {
    match subject::account_of(subject) {
        Some(subject::ACCOUNT_CONTROL) => vec![Account::Control],
        Some(_) => vec![Account::Work],
        None => vec![Account::Control, Account::Work],
    }
}

/// The bus client reads its CA from a file, at each connect: this one lives as long as we do.
struct CaFile(PathBuf);

impl CaFile {
    fn write(pem: &str) -> Outcome<Self> {
        let name = format!("edgewire-ca-{}-{}.pem", std::process::id(), schemas::object::new_uid());
        let path = std::env::temp_dir().join(name);
        let mut options = std::fs::OpenOptions::new();
        let made = options.write(true).create_new(true).mode(0o600).open(&path);
        let written = made.and_then(|mut file| file.write_all(pem.as_bytes()));
        let this = Self(path);
        written.map_err(|error| {
            let cause = format!("cannot write {}: {error}", this.0.display());
            Failure::new("EW-TEMP-FAILED", cause, "is TMPDIR writable and not full?")
        })?;
        Ok(this)
    }
}

impl Drop for CaFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0); // gone already is as good
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_says_which_account_it_is_in() {
        assert_eq!(accounts("app.>"), [Account::Work]);
        assert_eq!(accounts("ew.mod.*.*"), [Account::Control]);
        assert_eq!(accounts(">"), [Account::Control, Account::Work]);
    }

    #[test]
    fn what_is_wrong_with_a_nodes_directory_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let line = |dir: &Path| Place::edge(dir).err().unwrap().line(false).unwrap();
        assert!(line(dir.path()).starts_with("EW-EDGE-NOT-FOUND: cannot read "));
        std::fs::write(dir.path().join("operator.json"), "{}").unwrap();
        assert!(line(dir.path()).starts_with("EW-EDGE-INVALID: "));
    }

    #[test]
    fn the_ca_file_goes_with_its_owner() {
        let file = CaFile::write("pem").unwrap();
        let path = file.0.clone();
        assert_eq!(std::fs::read(&path).unwrap(), b"pem");
        drop(file);
        assert!(!path.exists());
    }
}
