//! All modules of one process: each in a supervised task, started again with back-off and jitter when it falls, its
//! life-cycle told on the bus.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use schemas::Timestamp;
use schemas::report::{ModuleReport, ModuleState};
use schemas::subject;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::connection::Connector;
use crate::durable::{Durable, DurableError};
use crate::flow::Flow;
use crate::module::{Account, Module, Rim};
use crate::pause::jittered;
use crate::runner::{self, RunError, Spec};

/// First pause before a fallen module is started again; doubles up to [`BACKOFF_MAX`], with jitter.
const BACKOFF_MIN: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// A module that ran for so long begins its back-off anew.
const STABLE: Duration = Duration::from_secs(60);

type Table = Arc<Mutex<BTreeMap<&'static str, ModuleReport>>>;

/// The modules of one process.
pub struct Host {
    connector: Connector,
    durable: Durable,
    stop: CancellationToken,
    tasks: JoinSet<()>,
    table: Table,
    changed: Arc<Notify>,
    broken: Broken,
}

/// Why the store is of no use any more.
type Broken = Arc<Mutex<Option<DurableError>>>;

impl Host {
    /// A host whose modules connect through `connector`, keep their state in `durable`, and stop on `stop`.
    pub fn new(connector: Connector, durable: Durable, stop: &CancellationToken) -> Self {
        Self {
            connector,
            durable,
            stop: stop.child_token(),
            broken: Broken::default(),
            tasks: JoinSet::new(),
            table: Table::default(),
            changed: Arc::new(Notify::new()),
        }
    }

    /// Starts a module. `make` builds a fresh one for every start.
    pub fn module<M: Module, R: Rim<M>>(
        &mut self,
        spec: Spec,
        make: impl Fn() -> (M, R) + Send + Sync + 'static,
    ) {
        let supervised = Supervised {
            connector: self.connector.clone(),
            durable: self.durable.clone(),
            stop: self.stop.clone(),
            table: self.table.clone(),
            changed: self.changed.clone(),
            broken: self.broken.clone(),
        };
        self.tasks.spawn(async move { supervised.keep(spec, make).await });
    }

    /// Runs until the stop signal, and until every module has drained. A store that failed (sled does not get over a failed
    /// write) ends it for all of them: it has to be opened anew.
    pub async fn run(mut self) -> Result<(), DurableError> {
        let announcer = tokio::spawn(announce(
            self.connector.clone(),
            self.table.clone(),
            self.changed.clone(),
            self.stop.clone(),
        ));
        while self.tasks.join_next().await.is_some() {}
        announcer.abort();
        match self.broken.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

struct Supervised {
    connector: Connector,
    durable: Durable,
    stop: CancellationToken,
    table: Table,
    changed: Arc<Notify>,
    broken: Broken,
}

impl Supervised {
    fn say(&self, spec: &Spec, state: ModuleState, error: Option<&str>) {
        tell(&self.table, &self.changed, &self.connector.node, spec, state, error);
    }

    async fn keep<M: Module, R: Rim<M>>(
        &self,
        spec: Spec,
        make: impl Fn() -> (M, R) + Send + Sync + 'static,
    ) {
        let make = Arc::new(make);
        let mut pause = BACKOFF_MIN;
        while !self.stop.is_cancelled() {
            self.say(&spec, ModuleState::Starting, None);
            let since = tokio::time::Instant::now();
            let mut incarnation = JoinSet::new();
            {
                let (make, spec, stop) = (make.clone(), spec.clone(), self.stop.clone());
                let (connector, durable) = (self.connector.clone(), self.durable.clone());
                let (table, changed) = (self.table.clone(), self.changed.clone());
                incarnation.spawn(async move {
                    let handles = connector.handles(spec.name, &spec.flows).await?;
                    let (module, rim) = make();
                    let node = connector.node.clone();
                    let told = spec.clone();
                    let running = move || tell(&table, &changed, &node, &told, ModuleState::Running, None);
                    runner::run(&spec, module, rim, handles, &durable, stop, running).await
                });
            }
            let cause = match incarnation.join_next().await {
                Some(Ok(Ok(()))) | None => break,
                Some(Ok(Err(RunError::Durable(error)))) => {
                    tracing::error!(module = spec.name, %error, "every module stops");
                    self.broken.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                    self.stop.cancel();
                    break;
                }
                Some(Ok(Err(error))) => error.to_string(),
                Some(Err(error)) if error.is_panic() => format!("panicked: {}", panic_text(error)),
                Some(Err(error)) => error.to_string(),
            };
            tracing::warn!(module = spec.name, cause, "module fell and is started again");
            self.say(&spec, ModuleState::BackOff, Some(&cause));
            if since.elapsed() > STABLE {
                pause = BACKOFF_MIN;
            }
            tokio::select! {
                () = tokio::time::sleep(jittered(pause)) => {}
                () = self.stop.cancelled() => {}
            }
            pause = (pause * 2).min(BACKOFF_MAX);
        }
        self.say(&spec, ModuleState::Stopped, None);
    }
}

fn tell(table: &Table, changed: &Notify, node: &str, spec: &Spec, state: ModuleState, error: Option<&str>) {
    tracing::debug!(module = spec.name, ?state, "module");
    let mut table = table.lock().unwrap_or_else(PoisonError::into_inner);
    let report = table.entry(spec.name).or_insert_with(|| ModuleReport {
        node: node.to_owned(),
        module: spec.name.to_owned(),
        state,
        restarts: 0,
        since: Timestamp::now(),
        last_error: String::new(),
        flows: spec.flows.iter().map(Flow::line).collect(),
    });
    report.state = state;
    report.since = Timestamp::now();
    if let Some(error) = error {
        report.restarts += 1;
        report.last_error = error.to_owned();
    }
    drop(table);
    changed.notify_one();
}

/// The flows of the host itself.
pub fn flows(node: &str) -> Vec<Flow> {
    vec![
        Flow::publish(format!("ew.mod.{node}.>"), "ModuleReport"),
        Flow::respond(format!("ew.cmd.{node}.host.modules"), "() -> [ModuleReport]"),
    ]
}

/// Publishes every change, and answers who asks for all.
async fn announce(connector: Connector, table: Table, changed: Arc<Notify>, stop: CancellationToken) {
    let node = connector.node.clone();
    let mut told: BTreeMap<String, ModuleReport> = BTreeMap::new();
    while !stop.is_cancelled() {
        let Ok(bus) = connector.connect("host", &flows(&node), Account::Control).await else {
            tokio::time::sleep(BACKOFF_MIN).await; // the server is on its way up
            continue;
        };
        let Ok(mut asked) = bus.client.subscribe(format!("ew.cmd.{node}.host.modules")).await else {
            continue;
        };
        loop {
            let all: Vec<ModuleReport> =
                table.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
            for report in &all {
                if told.get(&report.module) != Some(report) {
                    let subject = subject::module_state(&node, &report.module);
                    if bus.client.publish(subject, schemas::encode(report).into()).await.is_err() {
                        break;
                    }
                    told.insert(report.module.clone(), report.clone());
                }
            }
            tokio::select! {
                () = changed.notified() => {}
                request = asked.next() => {
                    let Some(request) = request else { break };
                    if let Some(reply) = request.reply {
                        let sent = bus.client.publish(reply, schemas::encode(&all).into()).await;
                        if let Err(error) = sent {
                            tracing::debug!(%error, "module list not sent");
                        }
                    }
                }
            }
        }
    }
}

fn panic_text(error: tokio::task::JoinError) -> String {
    let panic = error.into_panic();
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "without a message".to_owned())
}
