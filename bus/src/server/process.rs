//! The supervisor: one owned task for each server. It starts or adopts the process, waits for a real connection, starts it
//! again when it dies, and carries out [`Command`]s. Dropping the [`Supervisor`] leaves the server running: its next life
//! adopts it.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::binary::Binary;
use super::child::{Files, Record, complaints};
use super::extra::Extra;
use super::probe::{PROBE_EVERY, Probe};
use super::{Phase, ServerError, ServerStatus, StoreMoved, session, store};
use crate::identity::write_private;

const COMMANDS_MAX: usize = 256;
const STOP_GRACE: Duration = Duration::from_secs(10);
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// A server that lived this long starts again without a pause.
const STEADY: Duration = Duration::from_secs(30);
const RELOAD_TIMEOUT: Duration = Duration::from_secs(10);

/// What to run. Everything in it but users and accounts' tokens is in `digest`: another digest is another server.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub name: String,
    pub binary: Binary,
    pub files: Files,
    pub config: Value,
    pub digest: String,
    pub env: Vec<(&'static str, String)>,
    pub listen: Vec<SocketAddr>,
    /// A listener that it can do without.
    pub extra: Option<Extra>,
    pub probe: Probe,
}

type Done = oneshot::Sender<Result<(), ServerError>>;

enum Command {
    Reload { config: Box<Value>, done: Done },
    Replace { plan: Box<Plan>, done: Done },
    Stop { leave_running: bool, done: Done },
}

/// The handle of a supervised server.
#[derive(Debug)]
pub(super) struct Supervisor {
    status: watch::Receiver<ServerStatus>,
    commands: mpsc::Sender<Command>,
    log: PathBuf,
}

impl Supervisor {
    /// Adopts the server that `plan` describes if it runs; else starts it. Returns once a process is due: see
    /// [`Supervisor::ready`].
    pub async fn start(plan: Plan) -> Result<Self, ServerError> {
        let (found, short) = claim(&plan).await?;
        let (status_to, status) = watch::channel(ServerStatus::default());
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
        let log = plan.files.log();
        let task = Task { plan, short, status: status_to, inbox, pending: Vec::new(), pause: BACKOFF_FIRST };
        tokio::spawn(task.run(found));
        Ok(Self { status, commands, log })
    }

    pub fn status(&self) -> watch::Receiver<ServerStatus> {
        self.status.clone()
    }

    /// Waits until the server takes connections.
    pub async fn ready(&self, timeout: Duration) -> Result<(), ServerError> {
        let mut status = self.status.clone();
        let ready = status.wait_for(|s| matches!(s.phase, Phase::Ready | Phase::Stopped));
        match tokio::time::timeout(timeout, ready).await {
            Ok(Ok(status)) if status.phase == Phase::Ready => Ok(()),
            Ok(_) => Err(ServerError::Stopped),
            Err(_) => {
                let reason = self.status.borrow().last_error.clone();
                let reason = reason.unwrap_or_else(|| format!("still starting after {timeout:?}"));
                Err(ServerError::NotReady { reason, log: self.log.clone() })
            }
        }
    }

    /// Puts `config` in force without dropping connections: queued when this returns, in force when the receiver
    /// yields. What is queued together becomes one reload.
    pub async fn enqueue_reload(
        &self,
        config: Value,
    ) -> Result<oneshot::Receiver<Result<(), ServerError>>, ServerError> {
        let (done, wait) = oneshot::channel();
        let command = Command::Reload { config: Box::new(config), done };
        self.commands.send(command).await.map_err(|_| ServerError::Stopped)?;
        Ok(wait)
    }

    /// Stops the server and starts another in its place.
    pub async fn replace(&self, plan: Plan) -> Result<(), ServerError> {
        let (done, wait) = oneshot::channel();
        self.send(Command::Replace { plan: Box::new(plan), done }, wait).await
    }

    /// Ends the supervising; the server too, unless it is left running.
    pub async fn stop(&self, leave_running: bool) -> Result<(), ServerError> {
        let (done, wait) = oneshot::channel();
        self.send(Command::Stop { leave_running, done }, wait).await
    }

    async fn send(
        &self,
        command: Command,
        wait: oneshot::Receiver<Result<(), ServerError>>,
    ) -> Result<(), ServerError> {
        self.commands.send(command).await.map_err(|_| ServerError::Stopped)?;
        wait.await.unwrap_or(Err(ServerError::Stopped))
    }
}

/// What is left of a former life: the same server (to adopt, and whether it runs without its extra listener), or nothing any
/// more and the addresses free.
async fn claim(plan: &Plan) -> Result<(Option<Record>, bool), ServerError> {
    let dir = &plan.files.dir;
    crate::identity::make_private_dir(dir).map_err(|source| ServerError::io(dir, source))?;
    match Record::find(&plan.files) {
        Some(record) if record.digest == plan.digest(false) => return Ok((Some(record), false)),
        Some(record) if record.digest == plan.digest(true) && plan.is_short() => {
            return Ok((Some(record), true));
        }
        Some(record) => {
            tracing::info!(server = %plan.name, pid = record.pid, "replacing a server with another configuration");
            record.stop(STOP_GRACE).await;
        }
        None => {}
    }
    for address in &plan.listen {
        TcpListener::bind(address).map_err(|source| match source.kind() {
            ErrorKind::AddrInUse => ServerError::PortInUse { address: *address },
            _ => ServerError::Address { address: *address, source },
        })?;
    }
    Ok((None, false))
}

struct Running {
    record: Record,
    /// Ours to reap, unless adopted.
    child: Option<tokio::process::Child>,
    log_from: u64,
}

impl Running {
    async fn exited(&mut self) {
        if let Some(child) = &mut self.child {
            // An error would mean that it was reaped already: gone all the same.
            let _ = child.wait().await;
        } else {
            self.record.gone().await;
        }
    }

    async fn stop(&mut self) {
        let record = self.record.clone();
        tokio::join!(record.stop(STOP_GRACE), self.exited());
    }
}

/// How the serving of one process ended.
enum End {
    Died { was_ready: bool },
    Replace(Box<Plan>, Done),
    Stop { leave_running: bool, done: Done },
}

struct Task {
    plan: Plan,
    /// Its process runs without the extra listener.
    short: bool,
    status: watch::Sender<ServerStatus>,
    inbox: mpsc::Receiver<Command>,
    /// Reloads to put in force when the server is ready.
    pending: Vec<Done>,
    pause: Duration,
}

impl Task {
    async fn run(mut self, mut found: Option<Record>) {
        loop {
            let adopted = found.is_some();
            let running = match found.take() {
                Some(record) => self.adopt(record),
                None => self.spawn(),
            };
            let started = Instant::now();
            let (end, reason) = match running {
                Ok(mut running) => {
                    let pid = u32::try_from(running.record.pid).ok();
                    self.say(|s| (s.phase, s.pid, s.adopted) = (Phase::Starting, pid, adopted));
                    let end = self.serve(&mut running).await;
                    if let End::Replace(..) | End::Stop { leave_running: false, .. } = &end {
                        running.stop().await;
                    }
                    let log = self.plan.files.log_since(running.log_from);
                    if let End::Died { was_ready: false } = &end {
                        self.rescue_store(&log);
                    }
                    (end, complaints(&log))
                }
                Err(error) => (End::Died { was_ready: false }, error.to_string()),
            };
            match end {
                End::Died { was_ready } => {
                    if was_ready && started.elapsed() > STEADY {
                        self.pause = BACKOFF_FIRST;
                    }
                    tracing::warn!(server = %self.plan.name, %reason, "nats-server died; starting it again");
                    self.say(|s| {
                        (s.phase, s.pid, s.adopted) = (Phase::Down, None, false);
                        s.restarts = s.restarts.saturating_add(1);
                        s.last_error = Some(reason);
                    });
                    if self.wait_pause().await.is_break() {
                        return;
                    }
                }
                End::Replace(plan, done) => {
                    self.plan = *plan;
                    self.pending.push(done);
                }
                End::Stop { leave_running: _, done } => return self.finish(Some(done)),
            }
        }
    }

    /// Looks after one process until it dies or a command ends its service.
    async fn serve(&mut self, running: &mut Running) -> End {
        let mut was_ready = false;
        let probe = self.plan.probe.clone();
        let mut up = std::pin::pin!(async move {
            while probe.connect().await.is_err() {
                tokio::time::sleep(PROBE_EVERY).await;
            }
        });
        loop {
            tokio::select! {
                () = running.exited() => return End::Died { was_ready },
                () = &mut up, if !was_ready => {
                    was_ready = true;
                }
                command = self.inbox.recv() => match command {
                    Some(Command::Reload { config, done }) => {
                        self.plan.config = *config;
                        self.pending.push(done);
                    }
                    Some(Command::Replace { plan, done }) => return End::Replace(plan, done),
                    Some(Command::Stop { leave_running, done }) => return End::Stop { leave_running, done },
                    // Our owner is gone: leave the server to its next life.
                    None => return End::Stop { leave_running: true, done: oneshot::channel().0 },
                },
            }
            if !was_ready {
                continue;
            }
            if !self.pending.is_empty() {
                if let Some(end) = self.drain() {
                    return end;
                }
                let result = self.put_in_force(&running.record).await;
                for done in self.pending.drain(..) {
                    let copy = match &result {
                        Ok(()) => Ok(()),
                        Err(reason) => Err(ServerError::Config(reason.clone())),
                    };
                    // A caller that no longer waits does not need the answer.
                    let _ = done.send(copy);
                }
            }
            if self.status.borrow().phase != Phase::Ready {
                self.note_store_warnings(&self.plan.files.log_since(running.log_from));
            }
            // Only now: an adopted server has our users by now.
            self.status.send_if_modified(|s| std::mem::replace(&mut s.phase, Phase::Ready) != Phase::Ready);
        }
    }

    /// Takes what else is queued, so that many reloads become one.
    fn drain(&mut self) -> Option<End> {
        while let Ok(command) = self.inbox.try_recv() {
            match command {
                Command::Reload { config, done } => {
                    self.plan.config = *config;
                    self.pending.push(done);
                }
                Command::Replace { plan, done } => return Some(End::Replace(plan, done)),
                Command::Stop { leave_running, done } => return Some(End::Stop { leave_running, done }),
            }
        }
        None
    }

    fn adopt(&mut self, record: Record) -> Result<Running, ServerError> {
        tracing::info!(server = %self.plan.name, pid = record.pid, "adopting the running nats-server");
        // Should a backup and its guard both have died while they held it.
        record.signal(nix::sys::signal::Signal::SIGCONT);
        self.say_short();
        // Its users may have changed since: put ours in force when it answers.
        self.pending.push(oneshot::channel().0);
        Ok(Running { record, child: None, log_from: self.plan.files.log_length() })
    }

    /// Says whether the extra listener is there.
    fn say_short(&self) {
        let left_out = self.plan.extra.as_ref().filter(|_| self.short);
        if let Some(extra) = left_out {
            let error = ServerError::PortInUse { address: extra.address };
            tracing::error!(server = %self.plan.name, "{error}; the server runs without {}", extra.section);
        }
        let left_out = left_out.map(|extra| extra.address);
        self.say(|s| s.left_out = left_out);
    }

    fn spawn(&mut self) -> Result<Running, ServerError> {
        self.short = self.plan.is_short();
        self.say_short();
        let files = &self.plan.files;
        self.write_config()?;
        let log_file = files.log();
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&log_file);
        let log = log.map_err(|source| ServerError::io(&log_file, source))?;
        let log_from = files.log_length();
        let mut command = tokio::process::Command::new(&self.plan.binary.path);
        command.arg("-c").arg(files.config()).current_dir(&files.dir);
        command.envs(self.plan.env.iter().map(|(name, value)| (*name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        session::detach(&mut command);
        let child = command.spawn().map_err(|source| ServerError::io(&self.plan.binary.path, source))?;
        let gone = || ServerError::io(&self.plan.binary.path, std::io::Error::from(ErrorKind::NotFound));
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).ok_or_else(gone)?;
        // A child that died at once has no start time any more; then its log tells why.
        let record = Record::of(pid, &self.plan.digest(self.short)).ok_or_else(|| ServerError::NotReady {
            reason: complaints(&files.log_since(log_from)),
            log: log_file,
        })?;
        record.save(files).map_err(|source| ServerError::io(&files.record(), source))?;
        Ok(Running { record, child: Some(child), log_from })
    }

    fn write_config(&self) -> Result<(), ServerError> {
        let file = self.plan.files.config();
        let text = config_text(&self.plan.config(self.short))?;
        write_private(&file, text.as_bytes()).map_err(|source| ServerError::io(&file, source))
    }

    /// Writes the configuration and has the running server read it. Asked over the server's own account, because that
    /// answers with what is wrong; by signal when there is no answer.
    async fn put_in_force(&self, record: &Record) -> Result<(), String> {
        self.write_config().map_err(|error| error.to_string())?;
        let asked = tokio::time::timeout(RELOAD_TIMEOUT, async {
            let client = self.plan.probe.connect().await.ok()?;
            let subject = format!("$SYS.REQ.SERVER.{}.RELOAD", client.server_info().server_id);
            let answer = client.request(subject, "".into()).await.ok()?;
            serde_json::from_slice::<Value>(&answer.payload).ok()
        });
        match asked.await {
            Ok(Some(answer)) => match answer.get("error") {
                None => Ok(()),
                Some(error) => Err(format!("nats-server refused it: {error}")),
            },
            Ok(None) | Err(_) => {
                record.signal(nix::sys::signal::Signal::SIGHUP);
                Ok(())
            }
        }
    }

    fn note_store_warnings(&self, log: &str) {
        let warnings = store::warnings(log);
        for warning in &warnings {
            tracing::error!(server = %self.plan.name, %warning, "part of the JetStream store is unreadable");
        }
        self.say(|s| s.store_warnings = warnings);
    }

    /// A store that stops the server from starting is moved aside, once for each start, loudly.
    fn rescue_store(&self, log: &str) {
        let Some(reason) = store::complaint(log) else { return };
        let dir = self.plan.files.store();
        let at = schemas::Timestamp::now().0;
        let to = dir.with_file_name(format!("{}{at}", store::MOVED_PREFIX));
        store::remove_moved(&dir);
        match std::fs::rename(&dir, &to) {
            Ok(()) => {
                tracing::error!(server = %self.plan.name, %reason, to = %to.display(),
                    "JetStream store is unreadable: moved aside, starting with an empty one");
                self.say(|s| s.store_moved = Some(StoreMoved { reason, to }));
            }
            Err(error) => tracing::error!(server = %self.plan.name, %reason, %error,
                "JetStream store is unreadable and cannot be moved aside"),
        }
    }

    /// Waits before the next start, with jitter; obeys commands meanwhile.
    async fn wait_pause(&mut self) -> std::ops::ControlFlow<()> {
        let until = Instant::now() + crate::pause::jittered(self.pause);
        self.pause = (self.pause * 2).min(BACKOFF_MAX);
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => return std::ops::ControlFlow::Continue(()),
                command = self.inbox.recv() => match command {
                    Some(Command::Reload { config, done }) => {
                        self.plan.config = *config;
                        self.pending.push(done);
                    }
                    Some(Command::Replace { plan, done }) => {
                        self.plan = *plan;
                        self.pending.push(done);
                        return std::ops::ControlFlow::Continue(());
                    }
                    Some(Command::Stop { done, .. }) => {
                        self.finish(Some(done));
                        return std::ops::ControlFlow::Break(());
                    }
                    None => {
                        self.finish(None);
                        return std::ops::ControlFlow::Break(());
                    }
                },
            }
        }
    }

    fn finish(&self, done: Option<Done>) {
        self.say(|s| (s.phase, s.pid) = (Phase::Stopped, None));
        if let Some(done) = done {
            // Nobody may be waiting for it.
            let _ = done.send(Ok(()));
        }
    }

    fn say(&self, change: impl FnOnce(&mut ServerStatus)) {
        self.status.send_modify(change);
    }
}

/// A configuration as the server reads it: JSON is a subset of its language, but for escapes of control characters.
fn config_text(config: &Value) -> Result<String, ServerError> {
    let text = serde_json::to_string_pretty(config).unwrap_or_default();
    if text.contains("\\u") || text.contains("\\b") || text.contains("\\f") {
        return Err(ServerError::Config("a value holds a control character".to_owned()));
    }
    Ok(text)
}
