//! Logins for what is no pod: devices, and programs on the machine. Made by the operator, on the node, offline too.
//!
//! A device has its namespace's subjects as a pod of it would, and may have MQTT topic trees of its own, so that it works with
//! the topics it already uses. Such a tree stays on the node: nothing of it crosses unless a TopicMap says so.

use bus::identity::Permissions;
use bus::server::User;
use schemas::command::{Refusal, Reply};
use schemas::credential::{DEVICE_TOPICS_MAX, DeviceLogin, Devices, NewDevice, RevokeDevice};
use schemas::name::DeviceName;
use schemas::{mqtt, subject};

use crate::CredentialsRim;

/// Verb: make a login.
pub const CREATE: &str = "create";
/// Verb: tell all of them.
pub const LIST: &str = "list";
/// Verb: take one back.
pub const REVOKE: &str = "revoke";

fn user_name(name: &DeviceName) -> String {
    format!("dev-{name}")
}

fn inbox(device: &NewDevice) -> String {
    subject::inbox(&user_name(&device.name))
}

/// What the device may do on its node.
pub fn permissions(device: &NewDevice) -> Result<Permissions, Refusal> {
    let refused = |message: String| Refusal::new(400, "EW-CREDS-TOPIC", message);
    if device.topics.len() > DEVICE_TOPICS_MAX {
        return Err(refused(format!("a device has at most {DEVICE_TOPICS_MAX} topic trees; use wider ones")));
    }
    let mut permissions = crate::permissions(&device.namespace, &inbox(device));
    for filter in &device.topics {
        let subjects = mqtt::device_subjects(filter).map_err(|error| refused(error.to_string()))?;
        permissions.publish_allow.extend(subjects.clone());
        permissions.subscribe_allow.extend(subjects);
    }
    Ok(permissions)
}

impl CredentialsRim {
    pub(crate) async fn create(&self, device: NewDevice, permissions: Permissions) -> Reply<DeviceLogin> {
        let name = user_name(&device.name);
        if self.server.user(&name).await.is_some() {
            let message = format!("{} has a login on this node; revoke it first", device.name);
            return Err(Refusal::new(409, "EW-CREDS-EXISTS", message));
        }
        let user = User::for_device(&name, device.clone(), permissions);
        self.server.put_users(vec![user.clone()]).await.map_err(|error| {
            Refusal::new(500, "EW-CREDENTIAL", format!("no login for {}: {error}", device.name))
        })?;
        let mut issued = self.doors(user, inbox(&device)).await;
        if device.mqtt_only {
            (issued.url, issued.inbox, issued.http_url) = (String::new(), String::new(), None);
        }
        Ok(DeviceLogin { device, issued })
    }

    pub(crate) async fn list(&self) -> Reply<Devices> {
        Ok(Devices {
            devices: self.server.users().await.into_iter().filter_map(|user| user.device).collect(),
        })
    }

    pub(crate) async fn revoke(&self, revoke: &RevokeDevice) -> Reply<()> {
        let name = user_name(&revoke.name);
        if self.server.user(&name).await.is_none() {
            let message = format!("{} has no login on this node; see `edgewire creds ls`", revoke.name);
            return Err(Refusal::new(404, "EW-CREDS-NOT-FOUND", message));
        }
        self.remove(name).await.map_err(|error| {
            Refusal::new(500, "EW-CREDENTIAL", format!("the login of {} stays: {error}", revoke.name))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(topics: &[&str]) -> NewDevice {
        NewDevice {
            name: "press-1".parse().unwrap(),
            namespace: "demo".parse().unwrap(),
            topics: topics.iter().map(|topic| (*topic).to_owned()).collect(),
            mqtt_only: false,
        }
    }

    #[test]
    fn a_device_reaches_its_own_trees_and_its_namespace() {
        let allowed = permissions(&device(&["factory/#", "/plc//+"])).unwrap();
        for (subject, may) in [
            ("factory", true),
            ("factory.line1.temp", true),
            ("/.plc./.x", true),
            ("app.demo.x", true),
            ("app.other.x", false),
            ("factories.x", false),
            ("_INBOX.dev-press-1.x", true),
            ("_INBOX.pod-1.x", false),
            ("$JS.API.INFO", false),
            ("$MQTT.sub.x", false),
        ] {
            for list in [&allowed.publish_allow, &allowed.subscribe_allow] {
                assert_eq!(list.iter().any(|filter| subject::matches(filter, subject)), may, "{subject}");
            }
        }
    }

    #[test]
    fn what_is_everybodys_is_nobodys_tree() {
        for topic in ["#", "+/x", "app/other/#", "ew/#", "$SYS/#", "$MQTT/#", "a b", ""] {
            let refusal = permissions(&device(&[topic])).unwrap_err();
            assert_eq!((refusal.code.as_str(), refusal.status), ("EW-CREDS-TOPIC", 400), "{topic:?}");
        }
        let many = vec!["a"; DEVICE_TOPICS_MAX + 1];
        assert!(permissions(&device(&many)).is_err());
    }
}
