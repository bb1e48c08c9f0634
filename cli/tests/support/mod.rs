//! A real `nats-server` with the accounts of a node, an `operator.json` beside it, and the tool itself as a process.
#![allow(dead_code)] // each test binary uses its part

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bus::connection::{Bus, Login, dial};
use bus::module::Account;

/// How long a fact may take to become true on a busy machine.
pub const SOON: Duration = Duration::from_secs(20);

/// Calls `check` until it gives something.
pub async fn eventually<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let until = Instant::now() + SOON;
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(Instant::now() < until, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn nats_server() -> PathBuf {
    if let Some(path) = std::env::var_os("EDGEWIRE_NATS_SERVER") {
        return path.into();
    }
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/bin/nats-server");
    if fetched.exists() { fetched } else { "/usr/lib/edgewire/nats-server".into() }
}

fn spawn(config: &Path) -> Child {
    Command::new(nats_server())
        .arg("-c")
        .arg(config)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("nats-server: `make setup` fetches it")
}

/// A server with accounts CONTROL and WORK and a node's operator in each; and one who may do little.
pub struct Server {
    child: Child,
    dir: tempfile::TempDir,
    pub url: String,
}

impl Server {
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("nats.conf");
        let path = dir.path().display();
        let text = format!(
            r#"
            listen: "127.0.0.1:-1"
            ports_file_dir: "{path}"
            jetstream {{ store_dir: "{path}/js", domain: edge-edge-a, sync_interval: always }}
            accounts {{
              SYS {{ users: [{{user: sys, password: s}}] }}
              CONTROL {{ jetstream: enabled, users: [{{user: control-op, password: c}}] }}
              WORK {{
                jetstream: enabled
                users: [
                  {{user: work-op, password: w}}
                  {{user: little, password: l, permissions: {{
                    publish: ["app.ok.>", "_INBOX.>"], subscribe: ["app.ok.>", "_INBOX.>"] }}}}
                ]
              }}
            }}
            system_account: SYS"#
        );
        std::fs::write(&config, text).unwrap();
        let child = spawn(&config);
        let mut this = Self { child, dir, url: String::new() };
        let ports = this.dir.path().join(format!("nats-server_{}.ports", this.child.id()));
        this.url = eventually("the server's ports", async || {
            let ports: serde_json::Value = serde_json::from_slice(&std::fs::read(&ports).ok()?).ok()?;
            ports["nats"][0].as_str().map(str::to_owned)
        })
        .await;
        this.operator("work-op", "w");
        this
    }

    /// Writes `operator.json`, with that user in WORK.
    pub fn operator(&self, work_user: &str, work_password: &str) {
        let json = serde_json::json!({
            "url": self.url, "node": "edge-a", "user": "control-op", "control_password": "c",
            "work_user": work_user, "work_password": work_password,
        });
        std::fs::write(self.dir().join("operator.json"), json.to_string()).unwrap();
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Kills it with -9 and starts it again, in the same place and on the same port.
    pub async fn kill_and_restart(&mut self) {
        self.stop();
        let _ = std::fs::remove_file(self.dir().join(format!("nats-server_{}.ports", self.child.id())));
        let config = self.dir().join("nats.conf");
        let text = std::fs::read_to_string(&config).unwrap();
        let address = self.url.trim_start_matches("nats://");
        std::fs::write(&config, text.replace("127.0.0.1:-1", address)).unwrap();
        self.child = spawn(&config);
        let ports = self.dir().join(format!("nats-server_{}.ports", self.child.id()));
        eventually("the server again", async || ports.exists().then_some(())).await;
    }

    pub fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// A connection of the test's own, who speaks and answers.
    pub async fn bus(&self, account: Account) -> Bus {
        let (user, password) = match account {
            Account::Control => ("control-op", "c"),
            Account::Work => ("work-op", "w"),
        };
        let login = Login::Password { user: user.into(), password: password.into() };
        dial(&self.url, None, login, "test", "_INBOX.test".into(), account, "edge-edge-a").await.unwrap()
    }

    /// The tool, told of this node.
    pub fn tool(&self, args: &[&str]) -> Command {
        let mut command = tool(args);
        command.arg("--edge").arg(self.dir());
        command
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The tool, with nothing of whoever runs the test around it.
pub fn tool(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_edgewire"));
    command.args(args).stdin(Stdio::null()).env_remove("KUBECONFIG").env_remove("EDGEWIRE_EDGE_DIR");
    command.env("HOME", "/nonexistent");
    command
}

/// Runs it to its end, without holding up the test's own tasks.
pub async fn finish(mut command: Command) -> Output {
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The output of a run that must succeed.
pub fn good(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}{}", stdout(output), stderr(output));
    stdout(output)
}

/// The error line of a run that must fail, which begins with `code`.
pub fn bad(output: &Output, code: &str) -> String {
    let line = stderr(output);
    assert_eq!(output.status.code(), Some(1), "{}{line}", stdout(output));
    assert!(line.lines().any(|line| line.starts_with(&format!("{code}: ")) && line.contains("; ")), "{line}");
    line
}

/// A running tail whose subscription is in force.
pub struct Tail {
    pub child: Child,
    pub lines: mpsc::Receiver<String>,
}

impl Tail {
    pub fn start(server: &Server, args: &[&str]) -> Self {
        let mut child = server.tool(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap());
        let mut first = String::new();
        said.read_line(&mut first).unwrap();
        assert!(first.starts_with("edgewire: listening on "), "{first}");
        // Read on, or the pipe would fill.
        std::thread::spawn(move || said.read_to_string(&mut String::new()));
        let (tell, lines) = mpsc::channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || out.lines().map_while(Result::ok).for_each(|line| drop(tell.send(line))));
        Self { child, lines }
    }

    pub fn line(&self) -> String {
        self.lines.recv_timeout(SOON).expect("a line")
    }

    pub fn ended(mut self) -> Option<i32> {
        let until = std::time::Instant::now() + SOON;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(std::time::Instant::now() < until, "tail goes on");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
