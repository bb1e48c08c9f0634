//! Connecting to a server of ours: who connects, with what permission, and what a module then holds.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream;
use tokio::sync::watch;

use crate::flow::{self, Flow};
use crate::identity::Permissions;
use crate::module::Account;

/// How long any request of ours waits for its answer, unless it says otherwise.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Tries of the first connection.
const CONNECT_ATTEMPTS_MAX: u64 = 4;
/// Messages that wait in a subscription before the server is told to drop: a bound on memory.
const SUBSCRIPTION_MESSAGES_MAX: usize = 4_096;
/// Commands that wait for the connection to be written.
const CLIENT_COMMANDS_MAX: usize = 2_048;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No credential could be made.
    #[error("no credential for {owner} in {account}: {cause}")]
    Login {
        /// Who.
        owner: String,
        /// Where.
        account: &'static str,
        /// Why.
        cause: String,
    },
    /// The server did not answer or refused.
    #[error("cannot connect {owner} to {url}: {source}; is the server running?")]
    Connect {
        /// Who.
        owner: String,
        /// Where.
        url: String,
        /// The client's words.
        #[source]
        source: async_nats::ConnectError,
    },
}

/// What proves who connects.
#[derive(Clone)]
pub enum Login {
    /// Nothing: only a test's bare server takes it.
    Open,
    /// A user of the node's own server.
    Password {
        /// Name.
        user: String,
        /// Password.
        password: String,
    },
    /// A user of the hub.
    Jwt {
        /// The user's token.
        jwt: String,
        /// The seed of its key.
        seed: String,
    },
}

/// Makes credentials: the hub signs them, the edge writes them into its server's config.
pub type Mint = Arc<
    dyn Fn(Account, String, Permissions) -> Pin<Box<dyn Future<Output = Result<Login, String>> + Send>>
        + Send
        + Sync,
>;

/// Connects modules to one server.
#[derive(Clone)]
pub struct Connector {
    /// `hub`, or the node's name.
    pub node: String,
    /// JetStream domain of the server.
    pub domain: String,
    /// `nats://` or `tls://` address.
    pub url: String,
    /// The CA to trust, for `tls://`.
    pub ca: Option<PathBuf>,
    /// Makes the credentials.
    pub mint: Mint,
}

impl Connector {
    /// A connector to a bare server without accounts or permissions, for tests.
    pub fn open(node: &str, domain: &str, url: &str) -> Self {
        let mint: Mint = Arc::new(|_, _, _| Box::pin(std::future::ready(Ok(Login::Open))));
        Self { node: node.to_owned(), domain: domain.to_owned(), url: url.to_owned(), ca: None, mint }
    }

    /// Connects `owner` with the permission that its flows give it in `account`.
    pub async fn connect(&self, owner: &str, flows: &[Flow], account: Account) -> Result<Bus, ConnectError> {
        let permissions = flow::permissions(&self.node, owner, flows, account, &self.domain);
        self.connect_with(owner, permissions, account).await
    }

    /// Connects `owner` with a stated permission.
    pub async fn connect_with(
        &self,
        owner: &str,
        permissions: Permissions,
        account: Account,
    ) -> Result<Bus, ConnectError> {
        let login = (self.mint)(account, owner.to_owned(), permissions).await.map_err(|cause| {
            ConnectError::Login { owner: owner.to_owned(), account: account.as_str(), cause }
        })?;
        let inbox = schemas::subject::module_inbox(&self.node, owner);
        dial(&self.url, self.ca.clone(), login, owner, inbox, account, &self.domain).await
    }

    /// Connects a module to every account that its flows name.
    pub async fn handles(&self, owner: &str, flows: &[Flow]) -> Result<Handles, ConnectError> {
        let control = self.connect(owner, flows, Account::Control).await?;
        let work = if flows.iter().any(|flow| flow.account == Account::Work) {
            Some(self.connect(owner, flows, Account::Work).await?)
        } else {
            None
        };
        Ok(Handles { node: self.node.clone(), control, work })
    }
}

/// Connects to a server; for tools and tests that hold their own credential.
pub async fn dial(
    url: &str,
    ca: Option<PathBuf>,
    login: Login,
    owner: &str,
    inbox: String,
    account: Account,
    domain: &str,
) -> Result<Bus, ConnectError> {
    let (connected, connections) = watch::channel(0_u64);
    let mut options = async_nats::ConnectOptions::new()
        .name(owner)
        .custom_inbox_prefix(inbox)
        .request_timeout(Some(REQUEST_TIMEOUT))
        .connection_timeout(Duration::from_secs(5))
        .ping_interval(Duration::from_secs(5))
        .subscription_capacity(SUBSCRIPTION_MESSAGES_MAX)
        .client_capacity(CLIENT_COMMANDS_MAX)
        .ignore_discovered_servers()
        .reconnect_delay_callback(|attempt| Duration::from_millis((50u64 << attempt.min(5)).min(1_000)))
        .event_callback(move |event| {
            tracing::debug!(%event, "connection");
            if event == async_nats::Event::Connected {
                connected.send_modify(|count| *count += 1);
            }
            std::future::ready(())
        });
    if let Some(ca) = ca {
        options = options.add_root_certificates(ca).require_tls(true);
    }
    options = match login {
        Login::Open => options,
        Login::Password { user, password } => options.user_and_password(user, password),
        Login::Jwt { jwt, seed } => {
            let key = nkeys::KeyPair::from_seed(&seed).map_err(|error| ConnectError::Login {
                owner: owner.to_owned(),
                account: account.as_str(),
                cause: format!("the seed is not an nkey: {error}"),
            })?;
            let key = Arc::new(key);
            options.jwt(jwt, move |nonce| {
                let key = key.clone();
                async move { key.sign(&nonce).map_err(async_nats::AuthError::new) }
            })
        }
    };
    // Measured: a handshake that meets a reload of the server's users fails once, also for a valid user.
    let mut attempt = 1;
    loop {
        #[allow(clippy::disallowed_methods)] // the one place that is meant by the rule
        match async_nats::connect_with_options(url, options.clone()).await {
            Ok(client) => return Ok(Bus::new(client, connections, account, domain)),
            Err(source) if attempt >= CONNECT_ATTEMPTS_MAX => {
                return Err(ConnectError::Connect { owner: owner.to_owned(), url: url.to_owned(), source });
            }
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(50 * attempt)).await;
                attempt += 1;
            }
        }
    }
}

/// One connection in one account.
#[derive(Clone)]
pub struct Bus {
    pub(crate) client: async_nats::Client,
    pub(crate) jetstream: jetstream::Context,
    /// How often it has connected; changes when the server was away and is back.
    pub(crate) connections: watch::Receiver<u64>,
    pub(crate) account: Account,
    pub(crate) domain: String,
}

impl Bus {
    fn new(
        client: async_nats::Client,
        connections: watch::Receiver<u64>,
        account: Account,
        domain: &str,
    ) -> Self {
        let mut jetstream = jetstream::with_domain(client.clone(), domain);
        jetstream.set_timeout(REQUEST_TIMEOUT);
        Self { client, jetstream, connections, account, domain: domain.to_owned() }
    }

    /// The client, for what has no word of ours yet. Only binaries' tools and tests outside this crate.
    pub fn client(&self) -> &async_nats::Client {
        &self.client
    }

    /// Ends when the server was away and is back: what was asked before is not answered any more.
    pub(crate) fn renewed(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut connections = self.connections.clone();
        connections.borrow_and_update();
        async move {
            if connections.changed().await.is_err() {
                std::future::pending().await
            }
        }
    }

    /// Can there be streams here? At the hub they are all in what is called CONTROL there.
    pub(crate) fn has_streams(&self) -> bool {
        self.account == Account::Control || self.domain != schemas::subject::DOMAIN_HUB
    }

    /// The account it is in.
    pub fn account(&self) -> Account {
        self.account
    }
}

/// What a module holds: a connection for each account that its flows name.
#[derive(Clone)]
pub struct Handles {
    /// `hub`, or the node's name.
    pub node: String,
    /// CONTROL.
    pub control: Bus,
    /// WORK, if any flow is in it.
    pub work: Option<Bus>,
}

impl Handles {
    /// The connection in `account`; the flows must name it.
    pub fn bus(&self, account: Account) -> Option<&Bus> {
        match account {
            Account::Control => Some(&self.control),
            Account::Work => self.work.as_ref(),
        }
    }
}

/// Headers of ours as NATS'.
pub(crate) fn to_nats(headers: &schemas::envelope::Headers) -> async_nats::HeaderMap {
    let mut map = async_nats::HeaderMap::new();
    for (name, value) in headers {
        map.insert(name.as_str(), value.as_str());
    }
    map
}

/// NATS' headers as ours; the first value of each.
pub(crate) fn from_nats(headers: Option<&async_nats::HeaderMap>) -> schemas::envelope::Headers {
    let mut map = schemas::envelope::Headers::new();
    for (name, values) in headers.into_iter().flat_map(async_nats::HeaderMap::iter) {
        if let Some(value) = values.first() {
            map.insert(name.to_string(), value.to_string());
        }
    }
    map
}
