//! The hub's keys: one operator, one key for each account, kept as files that only their owner reads.
//!
//! The accounts' tokens are kept too and signed anew only when they change, so that an unchanged hub starts with an
//! unchanged configuration (and its running server can be adopted). How the accounts stand to each other: `accounts.rs`.
//! Hubs before that had their streams in CONTROL and WORK and know nothing of HUB; their tokens (`CONTROL.jwt`) are left as
//! they are, so that one can go back to them.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use nkeys::{KeyPair, KeyPairType};
use schemas::Timestamp;
use schemas::subject::{ACCOUNT_CONTROL, ACCOUNT_HUB, ACCOUNT_SYS, ACCOUNT_WORK};

use super::accounts::Role;
use super::files::{read_text, write_text};
use super::{IdentityError, Permissions, jwt};
use crate::module::Account;

/// How many identities of one account may be revoked: the account's token carries them all.
pub const REVOCATIONS_MAX: usize = 20_000;
const OPERATOR: &str = "edgewire";
const CLAIMS_TIMEOUT: Duration = Duration::from_secs(5);

/// The keys that make identities at the hub.
#[derive(Debug)]
pub struct HubKeys {
    operator: KeyPair,
    operator_token: String,
    sys: AccountKey,
    hub: AccountKey,
    control: AccountKey,
    work: AccountKey,
}

#[derive(Debug)]
struct AccountKey {
    name: &'static str,
    terms: jwt::Terms,
    key: KeyPair,
    dir: PathBuf,
    state: Mutex<AccountState>,
}

#[derive(Debug, Default)]
struct AccountState {
    token: String,
    revocations: jwt::Revocations,
}

impl HubKeys {
    /// Reads the keys in `dir`, making what is missing.
    pub fn load_or_create(dir: &Path) -> Result<Self, IdentityError> {
        let operator = key(dir, "operator", KeyPairType::Operator)?;
        let hub_key = key(dir, ACCOUNT_HUB, KeyPairType::Account)?.public_key();
        let load = |name, role| AccountKey::load(dir, name, role, &hub_key, &operator);
        let sys = load(ACCOUNT_SYS, Role::Server)?;
        let hub = load(ACCOUNT_HUB, Role::Hub)?;
        let control = load(ACCOUNT_CONTROL, Role::Control)?;
        let work = load(ACCOUNT_WORK, Role::Work)?;
        let file = dir.join("operator.jwt");
        let operator_token = match read_text(&file)? {
            Some(token) if is_of(&token, &operator, &operator.public_key()) => token,
            _ => {
                let token = jwt::operator(&operator, OPERATOR, &sys.key.public_key(), Timestamp::now())?;
                write_text(&file, &token)?;
                token
            }
        };
        Ok(Self { operator, operator_token, sys, hub, control, work })
    }

    /// The operator's token, for the server's configuration.
    pub fn operator_token(&self) -> &str {
        &self.operator_token
    }

    /// Public key of the account of the server itself.
    pub fn system_account(&self) -> String {
        self.sys.key.public_key()
    }

    /// Public key and token of every account, for the server's configuration.
    pub fn accounts(&self) -> Vec<(String, String)> {
        let all = [&self.sys, &self.hub, &self.control, &self.work];
        all.map(|a| (a.key.public_key(), a.lock().token.clone())).to_vec()
    }

    /// Public keys of the accounts in which hubs had their streams before HUB was, and HUB's own.
    pub(crate) fn homes(&self) -> ([String; 2], String) {
        ([&self.control, &self.work].map(|a| a.key.public_key()), self.hub.key.public_key())
    }

    /// Signs a user whose key pair is elsewhere, of the account in which the nodes' `account` ends: the enrolment of a node.
    pub fn user(
        &self,
        account: Account,
        public_key: &str,
        name: &str,
        permissions: &Permissions,
        expires: Option<Timestamp>,
    ) -> Result<String, IdentityError> {
        check_user_key(public_key)?;
        let signer = &self.linked(account).key;
        jwt::user(signer, public_key, name, permissions, false, expires, Timestamp::now())
    }

    /// Makes a user at the hub, with a key of its own: its token and the seed of its key. What the hub's modules and tools
    /// call CONTROL is HUB.
    pub fn mint(
        &self,
        account: Account,
        name: &str,
        permissions: &Permissions,
    ) -> Result<(String, String), IdentityError> {
        self.own(account).mint(name, permissions)
    }

    /// As [`HubKeys::mint`], as the text of a credentials file.
    pub fn creds(
        &self,
        account: Account,
        name: &str,
        permissions: &Permissions,
    ) -> Result<String, IdentityError> {
        self.own(account).creds(name, permissions)
    }

    /// Credentials in the server's own account, for supervising it. They open everything: keep them in memory.
    pub fn sys_creds(&self, name: &str) -> Result<String, IdentityError> {
        self.sys.creds(name, &Permissions::full())
    }

    /// Revokes every token made so far for this user's key: kept on disk; the server learns it by [`HubKeys::push`].
    pub fn revoke(&self, account: Account, public_key: &str) -> Result<(), IdentityError> {
        check_user_key(public_key)?;
        self.linked(account).revoke(&self.operator, public_key)
    }

    /// Was this key revoked, ever?
    pub fn is_revoked(&self, account: Account, public_key: &str) -> bool {
        self.linked(account).lock().revocations.contains_key(public_key)
    }

    /// Gives the running server the present token of the account in which that of a node ends. `sys` is a client in the
    /// server's own account. Connections of revoked users end within milliseconds.
    pub async fn push(&self, sys: &async_nats::Client, account: Account) -> Result<(), IdentityError> {
        self.linked(account).push(sys).await
    }

    /// The account in which that of a node ends.
    fn linked(&self, account: Account) -> &AccountKey {
        match account {
            Account::Control => &self.control,
            Account::Work => &self.work,
        }
    }

    /// The account that is so called at the hub.
    fn own(&self, account: Account) -> &AccountKey {
        match account {
            Account::Control => &self.hub,
            Account::Work => &self.work,
        }
    }
}

impl AccountKey {
    async fn push(&self, sys: &async_nats::Client) -> Result<(), IdentityError> {
        let token = self.lock().token.clone();
        let claims = |reason: &dyn ToString| IdentityError::Claims(reason.to_string());
        let request = sys.request("$SYS.REQ.CLAIMS.UPDATE", token.into());
        let answer = tokio::time::timeout(CLAIMS_TIMEOUT, request)
            .await
            .map_err(|_| claims(&"no answer in time"))?
            .map_err(|error| claims(&error))?;
        let body: serde_json::Value =
            serde_json::from_slice(&answer.payload).map_err(|error| claims(&error))?;
        match body.pointer("/data/code").and_then(serde_json::Value::as_u64) {
            Some(200) => Ok(()),
            _ => Err(claims(&body)),
        }
    }

    fn load(
        dir: &Path,
        name: &'static str,
        role: Role,
        hub_key: &str,
        operator: &KeyPair,
    ) -> Result<Self, IdentityError> {
        let terms = jwt::Terms {
            streams: role.has_streams(),
            exports: role.exports(),
            imports: role.imports(hub_key),
        };
        let key = key(dir, name, KeyPairType::Account)?;
        let mut state = AccountState::default();
        let file = dir.join(format!("{name}.revoked.json"));
        if let Some(text) = read_text(&file)? {
            state.revocations = serde_json::from_str(&text)
                .map_err(|error| IdentityError::key(file.display().to_string(), error))?;
        }
        let this = Self { name, terms, key, dir: dir.to_owned(), state: Mutex::new(AccountState::default()) };
        state.token = match read_text(&this.token_file())? {
            Some(token)
                if is_of(&token, operator, &this.key.public_key())
                    && revokes(&token, &state)
                    && this.terms.are_of(&token) =>
            {
                token
            }
            _ => this.sign(operator, &state.revocations)?,
        };
        *this.lock() = state;
        Ok(this)
    }

    fn token_file(&self) -> PathBuf {
        self.dir.join(format!("{}.account.jwt", self.name))
    }

    fn sign(&self, operator: &KeyPair, revocations: &jwt::Revocations) -> Result<String, IdentityError> {
        let (key, now) = (self.key.public_key(), Timestamp::now());
        let token = jwt::account(operator, &key, self.name, &self.terms, revocations, now)?;
        write_text(&self.token_file(), &token)?;
        Ok(token)
    }

    fn mint(&self, name: &str, permissions: &Permissions) -> Result<(String, String), IdentityError> {
        let user = KeyPair::new_user();
        let (key, now) = (user.public_key(), Timestamp::now());
        let token = jwt::user(&self.key, &key, name, permissions, true, None, now)?;
        Ok((token, user.seed().map_err(|error| IdentityError::key(name, error))?))
    }

    fn creds(&self, name: &str, permissions: &Permissions) -> Result<String, IdentityError> {
        let (token, seed) = self.mint(name, permissions)?;
        Ok(jwt::creds(&token, &seed))
    }

    fn revoke(&self, operator: &KeyPair, public_key: &str) -> Result<(), IdentityError> {
        let mut state = self.lock();
        let mut revocations = state.revocations.clone();
        revocations.insert(public_key.to_owned(), Timestamp::now().0 / 1000);
        if revocations.len() > REVOCATIONS_MAX {
            return Err(IdentityError::Full);
        }
        // The list first: a token that is missing or older is signed again from it at the next start.
        let text = serde_json::to_string(&revocations).unwrap_or_default();
        write_text(&self.dir.join(format!("{}.revoked.json", self.name)), &text)?;
        state.token = self.sign(operator, &revocations)?;
        state.revocations = revocations;
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, AccountState> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn key(dir: &Path, name: &str, kind: KeyPairType) -> Result<KeyPair, IdentityError> {
    let file = dir.join(format!("{name}.nk"));
    let shown = || file.display().to_string();
    if let Some(seed) = read_text(&file)? {
        let key = KeyPair::from_seed(seed.trim()).map_err(|error| IdentityError::key(shown(), error))?;
        let wanted = KeyPair::new(kind).public_key();
        if key.public_key().chars().next() != wanted.chars().next() {
            return Err(IdentityError::key(shown(), "it is a key of another kind"));
        }
        return Ok(key);
    }
    if ["jwt", "account.jwt"].iter().any(|end| dir.join(format!("{name}.{end}")).exists()) {
        // A new key would silently turn every identity made so far into a stranger.
        return Err(IdentityError::key(shown(), "it is missing, though it was used before"));
    }
    let key = KeyPair::new(kind);
    write_text(&file, &key.seed().map_err(|error| IdentityError::key(shown(), error))?)?;
    Ok(key)
}

fn check_user_key(public_key: &str) -> Result<(), IdentityError> {
    let shown: String = public_key.chars().take(60).collect();
    if !public_key.starts_with('U') {
        return Err(IdentityError::key(shown, "a user's public key starts with U"));
    }
    KeyPair::from_public_key(public_key).map(|_| ()).map_err(|error| IdentityError::key(shown, error))
}

/// Was `token` made by this operator for this key?
fn is_of(token: &str, operator: &KeyPair, public_key: &str) -> bool {
    jwt::claims(token).is_some_and(|c| {
        c.get("iss").and_then(|v| v.as_str()) == Some(&operator.public_key())
            && c.get("sub").and_then(|v| v.as_str()) == Some(public_key)
    })
}

fn revokes(token: &str, state: &AccountState) -> bool {
    let listed = jwt::claims(token).and_then(|c| c.pointer("/nats/revocations").cloned());
    listed.and_then(|l| serde_json::from_value::<jwt::Revocations>(l).ok()).unwrap_or_default()
        == state.revocations
}
