//! `edgewire creds`: logins on a node for devices, and for programs outside pods.
//!
//! The node makes and keeps them, so with `--edge` no hub is needed; from the hub the node is asked over the link.

use std::time::Duration;

use bus::module::Account;
use clap::{Args, Subcommand};
use schemas::credential::{DeviceLogin, Devices, NewDevice, RevokeDevice};
use schemas::envelope::Headers;
use schemas::name::{DeviceName, Namespace, NodeName};
use schemas::subject;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::ask::{SAME_VERSION, ask};
use crate::decode::safe;
use crate::failure::{Failure, Outcome};
use crate::place::{Place, PlaceArgs};
use crate::screen::Screen;
use crate::table::{Cell, table};

/// A reload of the node's server may take a while under load.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// What to do with the logins of a node.
#[derive(Debug, Subcommand)]
pub enum CredsCommand {
    /// Make a login, and show it: once, and never again
    Create(CreateArgs),
    /// List the logins of a node (never their passwords)
    Ls(ListArgs),
    /// Take a login back; its connections end
    Revoke(RevokeArgs),
}

/// Which node.
#[derive(Debug, Args)]
pub struct NodeArgs {
    /// The node, when it is asked from the hub
    #[arg(long, value_name = "NODE")]
    node: Option<NodeName>,
    #[command(flatten)]
    place: PlaceArgs,
}

/// Arguments of `edgewire creds create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Name of the device or program, unique on the node
    name: DeviceName,
    /// Whose subjects it may use
    #[arg(long, short, value_name = "NS", default_value = "default")]
    namespace: Namespace,
    /// MQTT topics of its own, as filters such as 'factory/#': they work unrenamed, and stay on the node
    #[arg(long, value_name = "FILTERS", value_delimiter = ',')]
    topics: Vec<String>,
    /// It may connect by MQTT alone
    #[arg(long)]
    mqtt_only: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    at: NodeArgs,
}

/// Arguments of `edgewire creds ls`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// A JSON array
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    at: NodeArgs,
}

/// Arguments of `edgewire creds revoke`.
#[derive(Debug, Args)]
pub struct RevokeArgs {
    /// Its name, as `edgewire creds ls` shows it
    name: DeviceName,
    #[command(flatten)]
    at: NodeArgs,
}

/// Runs it.
pub async fn run(command: CredsCommand, screen: &mut Screen) -> Outcome<()> {
    match command {
        CredsCommand::Create(args) => create(args, screen).await,
        CredsCommand::Ls(args) => list(args, screen).await,
        CredsCommand::Revoke(args) => {
            let name = args.name.clone();
            args.at.ask::<()>("revoke", &RevokeDevice { name: args.name }).await?;
            screen.print(&format!("the login of {name} is revoked\n")).await
        }
    }
}

impl NodeArgs {
    /// What the node's module answers.
    async fn ask<T: DeserializeOwned>(&self, verb: &str, question: &impl Serialize) -> Outcome<T> {
        let place = Place::find(&self.place).await?;
        let node = match (&self.node, &place.api) {
            (Some(node), _) => node.clone(),
            (None, None) => NodeName::new(&place.node)
                .map_err(|error| Failure::new("EW-EDGE-INVALID", error, "restart `edgewire edge`"))?,
            (None, Some(_)) => {
                return Err(Failure::new(
                    "EW-CREDS-NODE",
                    "a login is made on a node, and none is named",
                    "add --node NODE, or on the node itself --edge DIR",
                ));
            }
        };
        let bus = place.connect(Account::Control).await?;
        let subject = subject::command(&node, "credentials", verb);
        let body = schemas::encode(question).into();
        let answer = ask(&bus, &subject, &Headers::new(), body, ANSWER_TIMEOUT).await.map_err(|error| {
            Failure::new("EW-NO-ANSWER", error, "does the node run, and its link stand? see `edgewire nodes`")
        })?;
        match schemas::decode::<schemas::command::Reply<T>>(&answer.payload) {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(refusal)) => {
                Err(Failure::new(&refusal.code, refusal.message, "see `edgewire creds --help`"))
            }
            Err(error) => Err(Failure::new("EW-HUB-FAILED", error, SAME_VERSION)),
        }
    }
}

async fn create(args: CreateArgs, screen: &mut Screen) -> Outcome<()> {
    let wanted = NewDevice {
        name: args.name,
        namespace: args.namespace,
        topics: args.topics,
        mqtt_only: args.mqtt_only,
    };
    let login: DeviceLogin = args.at.ask("create", &wanted).await?;
    let name = login.device.name.to_string();
    let env = login.issued.env();
    if args.json {
        let env: serde_json::Map<String, serde_json::Value> =
            env.into_iter().map(|(name, value)| (name.to_owned(), json!(value))).collect();
        return screen.json(&json!({"name": name, "env": env})).await;
    }
    let has_mqtt = env.iter().any(|(name, _)| *name == "MQTT_URL");
    let lines: String = env.iter().map(|(name, value)| format!("{name}={}\n", safe(value))).collect();
    screen.print(&lines).await?;
    eprintln!("edgewire: the password is shown this once; `edgewire creds revoke {name}` takes it back");
    if !has_mqtt {
        eprintln!("edgewire: the node serves no MQTT now (edge-runtime --mqtt-port)");
    }
    Ok(())
}

async fn list(args: ListArgs, screen: &mut Screen) -> Outcome<()> {
    let all: Devices = args.at.ask("list", &()).await?;
    if args.json {
        return screen.json(&json!(all.devices)).await;
    }
    if all.devices.is_empty() {
        eprintln!("edgewire: no logins; make one with `edgewire creds create`");
        return Ok(());
    }
    screen.print(&table(&["NAME", "NAMESPACE", "BY", "TOPICS"], &rows(&all), screen.colour)).await
}

fn rows(all: &Devices) -> Vec<Vec<Cell>> {
    let row = |device: &NewDevice| {
        let topics = if device.topics.is_empty() { "-".to_owned() } else { device.topics.join(",") };
        vec![
            device.name.as_str().into(),
            device.namespace.as_str().into(),
            if device.mqtt_only { "MQTT" } else { "NATS, MQTT" }.into(),
            topics.into(),
        ]
    };
    all.devices.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_are_rows() {
        let device = |name: &str, topics: &[&str], mqtt_only| NewDevice {
            name: name.parse().unwrap(),
            namespace: "demo".parse().unwrap(),
            topics: topics.iter().map(|topic| (*topic).to_owned()).collect(),
            mqtt_only,
        };
        let all = Devices {
            devices: vec![device("press-1", &["factory/#", "plc/+"], true), device("tool", &[], false)],
        };
        let want = "\
NAME      NAMESPACE   BY           TOPICS
press-1   demo        MQTT         factory/#,plc/+
tool      demo        NATS, MQTT   -
";
        assert_eq!(table(&["NAME", "NAMESPACE", "BY", "TOPICS"], &rows(&all), false), want);
    }
}
