//! The users of a leaf: modules, pods and devices of one node. They stand on the node's disk, so that after a reboot without
//! a hub every pod's credential still holds.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use data_encoding::BASE32_NOPAD;
use schemas::credential::NewDevice;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::ServerError;
use crate::identity::{Permissions, write_private};
use crate::module::Account;

/// How many users a leaf may have.
pub const USERS_MAX: usize = 4096;
const FILE: &str = "users.json";

/// Somebody who may connect to the leaf. Its password is worth nothing at the hub or at another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Unique on the node.
    pub name: String,
    /// Made by [`User::new`].
    pub password: String,
    /// Account it works in.
    pub account: Account,
    /// What it may do there.
    pub permissions: Permissions,
    /// It may connect by MQTT alone.
    pub mqtt_only: bool,
    /// What it was made for, if for something outside the node's own programs: kept with it, for people.
    pub device: Option<NewDevice>,
}

impl User {
    /// A user with a fresh random password.
    pub fn new(name: impl Into<String>, account: Account, permissions: Permissions) -> Self {
        Self { name: name.into(), password: secret(), account, permissions, mqtt_only: false, device: None }
    }

    /// A user for a device.
    pub fn for_device(name: impl Into<String>, device: NewDevice, permissions: Permissions) -> Self {
        let mqtt_only = device.mqtt_only;
        Self { mqtt_only, device: Some(device), ..Self::new(name, Account::Work, permissions) }
    }
}

/// 160 random bits as text.
pub(super) fn secret() -> String {
    let mut bytes = [0u8; 20];
    // The kernel's generator fails only where there is none; the nkeys of this crate need it too.
    while getrandom::fill(&mut bytes).is_err() {
        std::thread::yield_now();
    }
    BASE32_NOPAD.encode(&bytes)
}

/// What stands on disk.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Users {
    /// Password of the supervisor's own user in the server's own account.
    pub sys_password: String,
    users: BTreeMap<String, Stored>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Stored {
    password: String,
    account: String,
    permissions: Permissions,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    mqtt_only: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    device: Option<NewDevice>,
}

impl Users {
    /// Reads them from the server's directory. An unreadable file is moved aside: modules and pods make their users anew.
    pub fn load(dir: &Path) -> Result<Self, ServerError> {
        let file = path(dir);
        let fresh = || Self { sys_password: secret(), users: BTreeMap::new() };
        let users = match std::fs::read(&file) {
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(users) => return Ok(users),
                Err(error) => {
                    let aside = file.with_extension("json.corrupt");
                    tracing::error!(file = %file.display(), aside = %aside.display(), %error,
                        "users of the leaf are unreadable: moved aside, credentials are made anew");
                    std::fs::rename(&file, &aside).map_err(|source| ServerError::io(&file, source))?;
                    fresh()
                }
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => fresh(),
            Err(source) => return Err(ServerError::io(&file, source)),
        };
        users.save(dir)?;
        Ok(users)
    }

    /// Writes them, synced: a credential that was given to a pod must survive.
    pub fn save(&self, dir: &Path) -> Result<(), ServerError> {
        let file = path(dir);
        let bytes = serde_json::to_vec_pretty(self).unwrap_or_default();
        write_private(&file, &bytes).map_err(|source| ServerError::io(&file, source))
    }

    pub fn put(&mut self, user: User) -> Result<(), ServerError> {
        let plain = |text: &str| !text.is_empty() && text.len() <= 300 && !text.chars().any(char::is_control);
        // A password that starts so would be read as a hash.
        if !plain(&user.name) || !plain(&user.password) || user.password.starts_with("$2") {
            return Err(ServerError::Config(format!(
                "user {:?} has a name or password that cannot be used",
                user.name
            )));
        }
        if user.name == super::leaf::SYS_USER {
            return Err(ServerError::Config(format!("user name {:?} is reserved", user.name)));
        }
        if self.users.len() >= USERS_MAX && !self.users.contains_key(&user.name) {
            return Err(ServerError::Config(format!("there are {USERS_MAX} users already")));
        }
        let account = user.account.as_str().to_owned();
        let stored = Stored {
            password: user.password,
            account,
            permissions: user.permissions,
            mqtt_only: user.mqtt_only,
            device: user.device,
        };
        self.users.insert(user.name, stored);
        Ok(())
    }

    pub fn remove(&mut self, name: &str) {
        self.users.remove(name);
    }

    pub fn get(&self, name: &str) -> Option<User> {
        self.users.get(name).map(|stored| stored.user(name))
    }

    pub fn all(&self) -> Vec<User> {
        self.users.iter().map(|(name, stored)| stored.user(name)).collect()
    }

    /// The `users` list of an account in the server's configuration.
    pub fn config(&self, account: Account) -> Value {
        let users = self.users.iter().filter(|(_, stored)| stored.account == account.as_str());
        let entry = |(name, user): (&String, &Stored)| {
            let mut entry = json!({"user": name, "password": user.password, "permissions": user.permissions.config(account)});
            if let (true, Value::Object(fields)) = (user.mqtt_only, &mut entry) {
                fields.insert("allowed_connection_types".to_owned(), json!(["MQTT"]));
            }
            entry
        };
        users.map(entry).collect()
    }
}

impl Stored {
    fn user(&self, name: &str) -> User {
        let account =
            if self.account == Account::Control.as_str() { Account::Control } else { Account::Work };
        User {
            name: name.to_owned(),
            password: self.password.clone(),
            account,
            permissions: self.permissions.clone(),
            mqtt_only: self.mqtt_only,
            device: self.device.clone(),
        }
    }
}

fn path(dir: &Path) -> PathBuf {
    dir.join(FILE)
}
