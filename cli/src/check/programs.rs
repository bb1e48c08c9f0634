//! The programs that a node runs: are they here, and of a version that is known to work? And may we be a node at all?
//!
//! Their version is asked of themselves, with a bound on the wait; nothing else is run.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use bus::server::ServerError;
use bus::server::binary::{self, Binary};
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::finding::{Check, Finding};
use crate::launch;

const USER: Check = Check("EW-CHECK-USER", "user");
const NATS: Check = Check("EW-CHECK-NATS", "nats-server");
const CONTAINERD: Check = Check("EW-CHECK-CONTAINERD", "containerd");
const RUNC: Check = Check("EW-CHECK-RUNC", "runc");
const CNI: Check = Check("EW-CHECK-CNI", "cni");
const TOOLS: Check = Check("EW-CHECK-TOOLS", "tools");

/// A program says its version in so long.
const VERSION_TIMEOUT: Duration = Duration::from_secs(3);
/// How much of what a program says is shown.
const SHOWN_MAX_CHARS: usize = 40;
/// Where a node looks for CNI plug-ins, and which it calls.
const CNI_DIRS: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];
const CNI_PLUGINS: [&str; 3] = ["bridge", "host-local", "loopback"];
const CNI_VERSION: &str = "1.0.0";
/// Oldest that a node was tried with.
const CONTAINERD_MIN: (u32, u32) = (1, 6);
const RUNC_MIN: (u32, u32) = (1, 1);
/// Other programs that a node calls, each with Debian's package.
const OTHERS: [(&str, &str); 4] = [
    ("containerd-shim-runc-v2", "containerd"),
    ("ip", "iproute2"),
    ("unshare", "util-linux"),
    (launch::EDGE, ""),
];
/// What root has, and a process in a container may lack: bits of `CapEff` (capabilities(7)).
const CAPABILITIES: [(u32, &str); 2] = [(12, "CAP_NET_ADMIN"), (21, "CAP_SYS_ADMIN")];

/// Whether we may make namespaces, mounts and bridges. `status`: `/proc/self/status`.
pub fn user(status: &str) -> Finding {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let effective = field("Uid:").and_then(|ids| ids.split_whitespace().nth(1)?.parse::<u32>().ok());
    let bits = field("CapEff:").and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or_default();
    let lacking: Vec<&str> =
        CAPABILITIES.iter().filter(|(bit, _)| bits >> bit & 1 == 0).map(|(_, name)| *name).collect();
    match effective {
        Some(0) if lacking.is_empty() => USER.ok("root"),
        Some(0) => USER.fail(
            format!("root without {}", lacking.join(", ")),
            "in a container: run it with `--privileged`; else give the service these capabilities",
        ),
        Some(id) => USER.fail(
            format!("user {id}: a node needs root, and this check sees less without it"),
            "run this, and then the node, with sudo",
        ),
        None => USER.warn("/proc/self/status does not say who we are", "mount /proc"),
    }
}

/// All programs at once.
pub async fn all() -> Vec<Finding> {
    let (nats, containerd, runc, cni) = tokio::join!(
        Binary::find(None),
        version("containerd", "--version"),
        version("runc", "--version"),
        futures::future::join_all(CNI_PLUGINS.map(plugin)),
    );
    let nats = match nats {
        Ok(binary) => NATS.ok(format!("{} ({})", binary.version, binary.path.display())),
        Err(error) => no_server(&error),
    };
    let missing: Vec<(&str, &str)> = OTHERS.into_iter().filter(|(name, _)| which(name).is_none()).collect();
    vec![
        nats,
        runs_containers(CONTAINERD, "containerd", &containerd, CONTAINERD_MIN),
        runs_containers(RUNC, "runc", &runc, RUNC_MIN),
        plugins(&cni),
        tools(&missing),
    ]
}

fn no_server(error: &ServerError) -> Finding {
    let cure =
        format!("install nats-server 2.15.x beside edge-runtime or in PATH, or name it in {}", binary::ENV);
    match error {
        ServerError::NotFound { looked } => match looked.as_slice() {
            [named] => NATS.fail(format!("there is none at {}", named.display()), cure),
            _ => NATS.fail("neither beside edgewire, nor in /usr/lib/edgewire, nor in PATH", cure),
        },
        ServerError::Version { path, found } => {
            NATS.fail(format!("{} is {:?}; hub and nodes need 2.15.x", path.display(), cut(found)), cure)
        }
        other => NATS.fail(other.to_string(), cure),
    }
}

/// `said`: what the program answers; an error is why it was not asked, or did not answer.
fn runs_containers(check: Check, name: &str, said: &Result<String, String>, min: (u32, u32)) -> Finding {
    let cure = match name {
        "containerd" => {
            "`apt install containerd`; or run the node with a containerd that is there: --containerd SOCKET"
        }
        _ => "`apt install runc`",
    };
    let said = match said {
        Ok(said) => said,
        Err(cause) => return check.fail(cause, cure),
    };
    let (major, minor) = min;
    let Some((found, text)) = version_in(said) else {
        return check.warn(format!("its version cannot be read: {:?}", cut(said)), cure);
    };
    if found < min {
        return check.warn(format!("{text}, older than {major}.{minor}, which is the oldest tried"), cure);
    }
    check.ok(format!("{text} (needed: {major}.{minor} or newer)"))
}

/// The first word that looks like `1.6.20…`: its first two numbers, and the word.
fn version_in(said: &str) -> Option<((u32, u32), &str)> {
    said.split_whitespace().find_map(|word| {
        let text = word.trim_start_matches('v');
        let mut numbers = text.split('.');
        let major = numbers.next()?.parse().ok()?;
        let minor = numbers.next()?;
        let digits = minor.find(|c: char| !c.is_ascii_digit()).unwrap_or(minor.len());
        Some(((major, minor.get(..digits)?.parse().ok()?), text))
    })
}

/// What one plug-in says; an error says why not.
type Plugin = (&'static str, Result<String, String>);

fn plugins(all: &[Plugin]) -> Finding {
    let cure = "`apt install containernetworking-plugins`";
    let list = |wanted: &[&str]| wanted.join(", ");
    let absent: Vec<&str> = all.iter().filter(|(_, said)| said.is_err()).map(|(name, _)| *name).collect();
    if !absent.is_empty() {
        let cause = all.iter().find_map(|(_, said)| said.clone().err()).unwrap_or_default();
        return CNI.fail(format!("without {}: {cause}", list(&absent)), cure);
    }
    let speaks = |said: &str| {
        let said: Value = serde_json::from_str(said).unwrap_or_default();
        let versions = said.get("supportedVersions").and_then(Value::as_array).cloned().unwrap_or_default();
        versions.iter().any(|version| version == CNI_VERSION)
    };
    let old: Vec<&str> =
        all.iter().filter(|(_, said)| !said.as_deref().is_ok_and(speaks)).map(|(name, _)| *name).collect();
    if !old.is_empty() {
        return CNI.fail(format!("{} do not speak CNI {CNI_VERSION}", list(&old)), cure);
    }
    CNI.ok(format!("{} speak {CNI_VERSION}", list(&CNI_PLUGINS)))
}

fn tools(missing: &[(&str, &str)]) -> Finding {
    if missing.is_empty() {
        let all: Vec<&str> = OTHERS.iter().map(|(name, _)| *name).collect();
        return TOOLS.ok(all.join(", "));
    }
    let names: Vec<&str> = missing.iter().map(|(name, _)| *name).collect();
    let packages: Vec<&str> = missing.iter().map(|(_, package)| *package).filter(|p| !p.is_empty()).collect();
    let mut cure = Vec::new();
    if !packages.is_empty() {
        cure.push(format!("`apt install {}`", packages.join(" ")));
    }
    if names.contains(&launch::EDGE) {
        cure.push(format!("install {} beside edgewire or in PATH", launch::EDGE));
    }
    TOOLS.fail(format!("missing: {}", names.join(", ")), cure.join("; "))
}

fn which(name: &str) -> Option<PathBuf> {
    launch::find(name, std::env::current_exe().ok().as_deref(), std::env::var_os("PATH").as_deref())
}

async fn version(name: &'static str, flag: &str) -> Result<String, String> {
    let path = which(name).ok_or_else(|| format!("there is no {name} in PATH"))?;
    ask(Command::new(path).arg(flag), b"").await
}

async fn plugin(name: &'static str) -> Plugin {
    let found = CNI_DIRS.iter().map(|dir| Path::new(dir).join(name)).find(|path| path.exists());
    let said = match found {
        Some(path) => {
            let question = format!("{{\"cniVersion\":\"{CNI_VERSION}\"}}");
            ask(Command::new(path).env("CNI_COMMAND", "VERSION"), question.as_bytes()).await
        }
        None => Err(format!("not in {}", CNI_DIRS.join(" nor "))),
    };
    (name, said)
}

async fn ask(command: &mut Command, question: &[u8]) -> Result<String, String> {
    let command =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| format!("it cannot be run: {error}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(question).await; // one that does not listen may still answer
    }
    match tokio::time::timeout(VERSION_TIMEOUT, child.wait_with_output()).await {
        Ok(Ok(output)) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(Ok(output)) => Err(format!("it does not say its version ({})", output.status)),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("it does not say its version in {} s", VERSION_TIMEOUT.as_secs())),
    }
}

fn cut(text: &str) -> String {
    text.trim().chars().take(SHOWN_MAX_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    #[test]
    fn a_node_needs_root_with_its_powers() {
        let status = |uid: u32, caps: &str| format!("Name:\tx\nUid:\t1000\t{uid}\t0\t0\nCapEff:\t{caps}\n");
        for (status, level, words) in [
            (status(0, "000001ffffffffff"), Level::Ok, "root"),
            (status(0, "00000000a80425fb"), Level::Fail, "root without CAP_NET_ADMIN, CAP_SYS_ADMIN"),
            (status(1000, "0000000000000000"), Level::Fail, "user 1000"),
            (String::new(), Level::Warn, "does not say"),
        ] {
            let finding = user(&status);
            assert!(finding.level == level && finding.found.contains(words), "{finding:?}");
        }
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        for (said, level, words) in [
            (
                Ok("containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3"),
                Level::Ok,
                "1.6.20~ds1 (needed: 1.6",
            ),
            (Ok("containerd github.com/containerd/containerd/v2 v2.1.4 75cb2b7"), Level::Ok, "2.1.4"),
            (Ok("containerd github.com/containerd/containerd v1.10.0 x"), Level::Ok, "1.10.0"),
            (
                Ok("containerd github.com/containerd/containerd v1.4.13 x"),
                Level::Warn,
                "1.4.13, older than 1.6",
            ),
            (Ok("what?"), Level::Warn, "cannot be read: \"what?\""),
            (Err("there is no containerd in PATH"), Level::Fail, "there is no containerd"),
        ] {
            let said = said.map(str::to_owned).map_err(str::to_owned);
            let finding = runs_containers(CONTAINERD, "containerd", &said, CONTAINERD_MIN);
            assert!(finding.level == level && finding.found.contains(words), "{finding:?}");
        }
        let runc = runs_containers(RUNC, "runc", &Ok("runc version 1.1.5+ds1\nspec: 1.0.2".into()), RUNC_MIN);
        assert_eq!((runc.level, runc.found.as_str()), (Level::Ok, "1.1.5+ds1 (needed: 1.1 or newer)"));
    }

    #[test]
    fn plug_ins_are_there_and_new_enough() {
        let said =
            |versions: &str| Ok(format!("{{\"cniVersion\":\"1.0.0\",\"supportedVersions\":[{versions}]}}"));
        let all = |host_local| [("bridge", said("\"0.4.0\",\"1.0.0\"")), ("host-local", host_local)];
        assert_eq!(plugins(&all(said("\"1.0.0\""))).level, Level::Ok);
        let old = plugins(&all(said("\"0.4.0\"")));
        assert!(old.level == Level::Fail && old.found == "host-local do not speak CNI 1.0.0", "{old:?}");
        let gone = plugins(&all(Err("not in /x".into())));
        assert!(
            gone.found == "without host-local: not in /x" && gone.cure.contains("containernetworking"),
            "{gone:?}"
        );
        assert_eq!(plugins(&all(Ok("nonsense".into()))).level, Level::Fail);
    }

    #[test]
    fn what_is_missing_is_named_with_its_package() {
        assert_eq!(tools(&[]).level, Level::Ok);
        let finding = tools(&[("ip", "iproute2"), ("unshare", "util-linux"), (launch::EDGE, "")]);
        assert_eq!(finding.found, "missing: ip, unshare, edge-runtime");
        assert!(
            finding.cure.starts_with("`apt install iproute2 util-linux`; install edge-runtime"),
            "{finding:?}"
        );
        for (looked, words) in
            [(vec!["/a".into()], "none at /a"), (vec!["/a".into(), "/b".into()], "nor in PATH")]
        {
            let finding = no_server(&ServerError::NotFound { looked });
            assert!(finding.level == Level::Fail && finding.found.contains(words), "{finding:?}");
        }
        let old = ServerError::Version { path: "/a".into(), found: "nats-server: v2.9.0".into() };
        assert!(no_server(&old).found.contains("/a is \"nats-server: v2.9.0\"; hub and nodes need 2.15.x"));
    }

    #[tokio::test]
    async fn a_program_that_hangs_is_not_waited_for() {
        let begun = std::time::Instant::now();
        let said = ask(Command::new("sleep").arg("60"), b"").await;
        assert!(said.unwrap_err().contains("in 3 s") && begun.elapsed() < Duration::from_secs(10));
        assert!(ask(&mut Command::new("false"), b"").await.unwrap_err().contains("exit status: 1"));
        assert_eq!(ask(&mut Command::new("cat"), b"x").await.unwrap(), "x");
    }
}
