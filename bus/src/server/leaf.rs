//! A node's server: its own users in accounts CONTROL and WORK, and two remotes to the hub, one for each account.
//!
//! A node that has not joined yet has no remotes and works all the same. Users change by a reload that drops nobody (a
//! removed user's own connections aside), and so does the [`Way`] to the hub; another hub is a restart of the server.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use schemas::name::NodeName;
use schemas::subject::{ACCOUNT_CONTROL, ACCOUNT_SYS, ACCOUNT_WORK, domain_edge};
use serde_json::{Value, json};
use tokio::sync::{Mutex, watch};

use super::binary::{self, Binary};
use super::child::{Files, Record};
use super::extra::Extra;
use super::hub::{common, digest, reachable};
use super::probe::{Login, Probe};
use super::process::{Plan, Supervisor};
use super::unlinked::Breaks;
use super::users::{User, Users};
use super::way::{self, HubLink, Way};
use super::{Denials, ServerError, ServerStatus};
use crate::identity::Permissions;
use crate::module::Account;

/// The supervisor's own user, in the server's own account.
pub(super) const SYS_USER: &str = "_supervisor";
/// What a leaf's Go runtime is told: it collects twice as often as usual, which keeps it small, and from the limit on all the
/// time. The limit is above what a server under load needs: with 20 MiB it collected more than it served (measured).
const GO: [(&str, &str); 2] = [("GOGC", "50"), ("GOMEMLIMIT", "48MiB")];
/// The section of MQTT in a server's configuration.
const MQTT: &str = "mqtt";
const CHANGE_TIMEOUT: Duration = Duration::from_secs(30);

/// How a node's server is to run.
#[derive(Debug, Clone)]
pub struct LeafConfig {
    /// The node.
    pub node: NodeName,
    /// Its directory: configuration, users, log, store. For itself alone.
    pub data_dir: PathBuf,
    /// Where modules and pods connect: loopback or the pod bridge's gateway.
    pub listen: SocketAddr,
    /// Where it serves MQTT 3.1.1; `None`: nowhere. A taken port is left out, see [`ServerStatus::left_out`].
    pub mqtt: Option<SocketAddr>,
    /// The `nats-server` to run; searched for when `None`, see [`Binary::find`].
    pub binary: Option<PathBuf>,
    /// Bound of all streams on disk.
    pub store_max_bytes: u64,
    /// The way to the hub; `None` before the node has joined.
    pub hub: Option<HubLink>,
}

/// A link that stands.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
pub struct Link {
    /// The server's number for this connection.
    pub id: u64,
    /// `CONTROL` or `WORK`.
    pub account: String,
    /// The hub's address.
    #[serde(default)]
    pub ip: String,
    /// The hub's port.
    #[serde(default)]
    pub port: u16,
}

/// A node's server, supervised.
#[derive(Debug)]
pub struct LeafServer {
    supervisor: Supervisor,
    url: String,
    state: Mutex<State>,
    /// How many links broke.
    pub(super) breaks: Breaks,
}

#[derive(Debug)]
struct State {
    config: LeafConfig,
    binary: Binary,
    users: Users,
    /// Which way the link goes.
    way: Way,
    /// What stood in the file of the hub's authorities when the server was last told to read it.
    authorities: String,
}

impl LeafServer {
    /// Starts it, or adopts it when it runs already, with the users that stand on disk. See [`LeafServer::ready`].
    pub async fn start(config: LeafConfig) -> Result<Self, ServerError> {
        let binary = Binary::find(config.binary.as_deref()).await?;
        let users = Users::load(&config.data_dir)?;
        let url = format!("nats://{}", reachable(config.listen));
        let way = config.hub.as_ref().map_or(Way::Tls, |hub| hub.last(&config.data_dir));
        let mut state = State { config, binary, users, way, authorities: String::new() };
        // Before the server reads it: it knows this or a later one. An adopted server reads it again too.
        state.authorities = state.authorities_on_disk();
        let supervisor = Supervisor::start(state.plan()?).await?;
        let breaks = Breaks::count(state.probe(), supervisor.status());
        Ok(Self { supervisor, url, state: Mutex::new(state), breaks })
    }

    /// Waits until it takes connections.
    pub async fn ready(&self, timeout: Duration) -> Result<(), ServerError> {
        self.supervisor.ready(timeout).await
    }

    /// Where it stands.
    pub fn status(&self) -> watch::Receiver<ServerStatus> {
        self.supervisor.status()
    }

    /// Where programs on this node connect.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Where MQTT clients on this node connect; `None` while it is not served.
    pub async fn mqtt(&self) -> Option<SocketAddr> {
        let wanted = self.state.lock().await.config.mqtt?;
        self.supervisor.status().borrow().left_out.is_none().then(|| reachable(wanted))
    }

    /// Adds or replaces users: on disk and in force when this returns. Calls that come together are one reload. A client
    /// whose handshake meets a reload is refused once, whoever it is (measured): connect again.
    pub async fn put_users(&self, users: Vec<User>) -> Result<(), ServerError> {
        self.change(|all| users.into_iter().try_for_each(|user| all.put(user))).await
    }

    /// The users of these names, accounts and permissions: those that stand already keep their passwords, the others are
    /// made; one reload for all, none when nothing is new. What an agent calls at its start for its modules.
    pub async fn ensure_users(
        &self,
        wanted: Vec<(String, Account, Permissions)>,
    ) -> Result<Vec<User>, ServerError> {
        let (mut users, mut fresh) = (Vec::new(), Vec::new());
        for (name, account, permissions) in wanted {
            let stands =
                self.user(&name).await.filter(|u| u.account == account && u.permissions == permissions);
            let user = stands.unwrap_or_else(|| {
                let user = User::new(name, account, permissions);
                fresh.push(user.clone());
                user
            });
            users.push(user);
        }
        if !fresh.is_empty() {
            self.put_users(fresh).await?;
        }
        Ok(users)
    }

    /// Removes users; their connections end. Names that do not exist are gone already.
    pub async fn remove_users(&self, names: &[String]) -> Result<(), ServerError> {
        self.change(|all| {
            names.iter().for_each(|name| all.remove(name));
            Ok(())
        })
        .await
    }

    /// One user, if it exists: after a restart a pod keeps the credential it was given.
    pub async fn user(&self, name: &str) -> Option<User> {
        self.state.lock().await.users.get(name)
    }

    /// All users.
    pub async fn users(&self) -> Vec<User> {
        self.state.lock().await.users.all()
    }

    /// Sets the way to the hub (after joining, or to another hub): the server is started anew when it differs.
    pub async fn set_hub(&self, hub: Option<HubLink>) -> Result<(), ServerError> {
        let mut state = self.state.lock().await;
        if state.config.hub == hub {
            return Ok(());
        }
        let before = (state.config.hub.clone(), state.way);
        state.way = hub.as_ref().map_or(Way::Tls, |hub| hub.last(&state.config.data_dir));
        state.config.hub = hub;
        match state.plan() {
            Ok(plan) => self.within(self.supervisor.replace(plan)).await,
            Err(error) => {
                (state.config.hub, state.way) = before;
                Err(error)
            }
        }
    }

    /// Has the link go another way: no client notices, the link is made anew. On disk first, so that the next life of the
    /// server goes the same.
    pub async fn set_way(&self, way: Way) -> Result<(), ServerError> {
        let before = self.state.lock().await.way;
        let moved = self.go(way).await;
        if let Err(ServerError::Config(_)) = &moved {
            // What the server does not take must not stand in the way of the next change of users.
            self.go(before).await?;
        }
        moved
    }

    async fn go(&self, way: Way) -> Result<(), ServerError> {
        let in_force = {
            let mut state = self.state.lock().await;
            let is_one = state.config.hub.as_ref().is_some_and(|hub| hub.ways().contains(&way));
            if !is_one || state.way == way {
                return Ok(());
            }
            way::remember(&state.config.data_dir, way)?;
            state.way = way;
            self.supervisor.enqueue_reload(state.server_config()).await?
        };
        self.within(async { in_force.await.unwrap_or(Err(ServerError::Stopped)) }).await
    }

    /// A client in the server's own account.
    pub async fn sys_client(&self) -> Result<async_nats::Client, ServerError> {
        let (probe, log) = {
            let state = self.state.lock().await;
            (state.probe(), state.files().log())
        };
        probe.connect().await.map_err(|reason| ServerError::NotReady { reason, log })
    }

    /// The links to the hub that stand now, as the server sees them; one for each account when all is well.
    pub async fn links(&self) -> Result<Vec<Link>, ServerError> {
        let answer = self.ask_server("LEAFZ", json!({})).await?;
        let leafs = answer.pointer("/data/leafs").cloned().unwrap_or_else(|| json!([]));
        serde_json::from_value(leafs)
            .map_err(|error| ServerError::Config(format!("links of the server: {error}")))
    }

    /// Drops every link to the hub; the server makes them anew. For a link that is silent though the server thinks it
    /// stands: never for one whose bytes advance (see [`LeafServer::look`]).
    pub async fn rebuild_links(&self) -> Result<(), ServerError> {
        for link in self.links().await? {
            self.ask_server("KICK", json!({"cid": link.id})).await?;
        }
        Ok(())
    }

    /// The hub's authorities (PEM) that the server trusts. When the file says others than it did, the server reads it again,
    /// for its next connection to the hub; those that stand go on (measured). Empty before the node has joined.
    pub async fn authorities(&self) -> Result<String, ServerError> {
        let (now, known) = {
            let state = self.state.lock().await;
            (state.authorities_on_disk(), state.authorities.clone())
        };
        if now != known {
            self.change(|_| Ok(())).await?;
            self.state.lock().await.authorities.clone_from(&now);
        }
        Ok(now)
    }

    /// Starts the server anew, with the same configuration. For one that has given its links up (see the node's watchdog);
    /// its clients lose their connections for a moment.
    pub async fn restart(&self) -> Result<(), ServerError> {
        let plan = self.state.lock().await.plan()?;
        self.within(self.supervisor.replace(plan)).await
    }

    /// The server's process, when one runs.
    pub async fn process(&self) -> Option<Record> {
        Record::find(&self.files().await)
    }

    /// What the server refuses from now on.
    pub async fn denials(&self) -> Denials {
        Denials::new(self.state.lock().await.files())
    }

    /// The ways to the hub, the one that the link goes, and the server's log; `None` before the node has joined.
    pub(super) async fn way(&self) -> Option<(HubLink, Way, Files)> {
        let state = self.state.lock().await;
        Some((state.config.hub.clone()?, state.way, state.files()))
    }

    /// Where its process and its log stand.
    pub(super) async fn files(&self) -> Files {
        self.state.lock().await.files()
    }

    /// A server that is down does not keep its callers: what they changed stands, and is in force once it is up.
    async fn within(&self, change: impl Future<Output = Result<(), ServerError>>) -> Result<(), ServerError> {
        match tokio::time::timeout(CHANGE_TIMEOUT, change).await {
            Ok(result) => result,
            Err(_) => self.supervisor.ready(Duration::ZERO).await,
        }
    }

    async fn ask_server(&self, verb: &str, body: Value) -> Result<Value, ServerError> {
        let log = self.state.lock().await.files().log();
        let failed =
            |reason: &dyn ToString| ServerError::NotReady { reason: reason.to_string(), log: log.clone() };
        let client = self.sys_client().await?;
        let subject = format!("$SYS.REQ.SERVER.{}.{verb}", client.server_info().server_id);
        let answer =
            client.request(subject, body.to_string().into()).await.map_err(|error| failed(&error))?;
        serde_json::from_slice(&answer.payload).map_err(|error| failed(&error))
    }

    /// Stops it and the supervising.
    pub async fn stop(&self) -> Result<(), ServerError> {
        self.supervisor.stop(false).await
    }

    /// Ends the supervising and leaves it running, for the next life to adopt.
    pub async fn leave_running(&self) -> Result<(), ServerError> {
        self.supervisor.stop(true).await
    }

    async fn change(
        &self,
        change: impl FnOnce(&mut Users) -> Result<(), ServerError>,
    ) -> Result<(), ServerError> {
        let in_force = {
            let mut state = self.state.lock().await;
            let mut users = state.users.clone();
            change(&mut users)?;
            users.save(&state.config.data_dir)?;
            state.users = users;
            // Queued under the lock, so that the last configuration in the queue has everybody's change; waited for
            // outside it, so that changes gather while a reload runs.
            self.supervisor.enqueue_reload(state.server_config()).await?
        };
        self.within(async { in_force.await.unwrap_or(Err(ServerError::Stopped)) }).await
    }
}

impl State {
    fn authorities_on_disk(&self) -> String {
        let file =
            self.config.hub.as_ref().map(|hub| std::fs::read_to_string(&hub.ca_file).unwrap_or_default());
        file.unwrap_or_default()
    }

    fn files(&self) -> Files {
        Files { dir: self.config.data_dir.clone(), name: binary::NAME }
    }

    fn probe(&self) -> Probe {
        let login = Login::Password(SYS_USER.to_owned(), self.users.sys_password.clone());
        Probe { url: format!("nats://{}", reachable(self.config.listen)), ca_file: None, login }
    }

    fn plan(&self) -> Result<Plan, ServerError> {
        if let Some(hub) = &self.config.hub {
            hub.check()?;
        }
        let config = self.server_config();
        let mut fixed = config.clone();
        if let Value::Object(fields) = &mut fixed {
            fields.remove("accounts");
            // Whichever way the link goes just now, it is the same server.
            if let Some(hub) = &self.config.hub {
                let ways = Way::ALL.map(|way| hub.config(&self.config.node, way));
                fields.insert("leafnodes".to_owned(), json!(ways));
            }
        }
        Ok(Plan {
            name: format!("leaf of {}", self.config.node),
            digest: digest(&[&self.binary.version, &format!("{GO:?}"), &fixed.to_string()]),
            binary: self.binary.clone(),
            files: self.files(),
            config,
            env: GO.map(|(name, value)| (name, value.to_owned())).into(),
            listen: vec![self.config.listen],
            extra: self.config.mqtt.map(|address| Extra { section: MQTT, address }),
            probe: self.probe(),
        })
    }

    fn server_config(&self) -> Value {
        let config = &self.config;
        let mut text = common(&self.files(), &domain_edge(&config.node), config.store_max_bytes);
        let account = |account: Account| json!({"jetstream": true, "users": self.users.config(account)});
        if let Value::Object(fields) = &mut text {
            fields.extend([
                ("server_name".to_owned(), json!(config.node)),
                ("listen".to_owned(), json!(config.listen.to_string())),
                (
                    "accounts".to_owned(),
                    json!({
                        ACCOUNT_SYS: {"users": [{"user": SYS_USER, "password": self.users.sys_password}]},
                        ACCOUNT_CONTROL: account(Account::Control),
                        ACCOUNT_WORK: account(Account::Work),
                    }),
                ),
                ("system_account".to_owned(), json!(ACCOUNT_SYS)),
            ]);
            if let Some(address) = config.mqtt {
                fields.insert(MQTT.to_owned(), json!({"listen": address.to_string()}));
            }
            if let Some(hub) = &config.hub {
                fields.insert("leafnodes".to_owned(), hub.config(&config.node, self.way));
            }
        }
        text
    }
}
