//! Where the hub's module touches the world: the REST entry, a task for each rule that takes from FROM, and calls.

use std::collections::BTreeMap;
use std::sync::Arc;

use bus::connection::Handles;
use bus::module::Rim;
use bus::{pause, queue};
use schemas::command::{Refusal, Reply};
use schemas::envelope::Headers;
use schemas::name::NodeName;
use schemas::routing::{Call, Delivered};
use schemas::subject::{self, RULE_CONSUMERS, STREAM_FROM};
use tokio::sync::{mpsc, watch};
use tokio::task::{Id, JoinSet};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::presence::Presence;
use super::rest::RestEntry;
use super::worker::{Worker, takes};
use super::{Act, Done, Router};
use crate::caller::Caller;
use crate::listener;
use crate::table::{From, Route, Table, To};
use crate::work::Made;

pub use super::rest::Rest;

/// A task that fell is started again after about so long.
const RESTART_PAUSE: std::time::Duration = std::time::Duration::from_secs(1);

/// The table that is followed.
#[derive(Debug, Clone, Default)]
pub(super) struct Following {
    pub table: Arc<Table>,
    /// The last message of each rule that was dealt with, by UID.
    pub last: BTreeMap<String, String>,
    /// All rules are in it.
    pub whole: bool,
}

/// The hub's rim.
pub struct RouterRim {
    rest: Rest,
    caller: Result<Caller, String>,
    presence: Arc<Presence>,
    following: watch::Sender<Following>,
}

/// A task that follows a rule; dropped, it ends.
struct Running {
    id: Id,
    route: Arc<Route>,
    _stop: DropGuard,
}

impl RouterRim {
    /// A rim that serves the REST entry so.
    pub fn new(rest: Rest) -> Self {
        let (following, _) = watch::channel(Following::default());
        Self { rest, caller: Caller::new(), presence: Arc::default(), following }
    }

    async fn call(
        &self,
        node: &NodeName,
        call: Call,
    ) -> (Reply<Delivered>, Option<(String, Result<(), String>)>) {
        let table = self.following.borrow().table.clone();
        let route = table.routes.get(&call.uid);
        let route = route.filter(|route| matches!(&route.from, From::Service(of, _) if of == node));
        let Some(route) = route else {
            let text = "the hub has no such rule for this node; did it change just now? try again";
            return (Err(Refusal::new(404, "EW-RULE-NOT-FOUND", text)), None);
        };
        let answer = self.call_target(route, call).await;
        let outcome = answer.as_ref().map(drop).map_err(ToString::to_string);
        (answer, Some((route.uid.clone(), outcome)))
    }

    async fn call_target(&self, route: &Route, call: Call) -> Reply<Delivered> {
        let caller =
            self.caller.as_ref().map_err(|error| Refusal::new(500, "EW-INTERNAL", error.as_str()))?;
        let (To::Url(url), From::Service(node, source)) = (&route.to, &route.from) else {
            return Err(Refusal::new(500, "EW-INTERNAL", "the rule's target is no URL"));
        };
        let failed =
            |why: String| Refusal::new(422, "EW-RULE-EXPRESSION", format!("rule {}: {why}", route.display()));
        let body = match route.make(&call.body, source, &Headers::new()).map_err(failed)? {
            Made::Message(body) => body,
            Made::Unwanted => {
                return Ok(Delivered { status: 200, headers: Vec::new(), body: bytes::Bytes::new() });
            }
        };
        let headers = [
            ("content-type", "application/json".to_owned()),
            (schemas::routing::header::HTTP_NODE, node.to_string()),
            (schemas::routing::header::HTTP_RULE, route.display()),
        ]
        .map(|(name, value)| (name.to_owned(), value));
        let called = caller.call("POST", url, &headers, body).await;
        called.map_err(|failed| Refusal::new(failed.status, "EW-TARGET-FAILED", failed.why))
    }

    /// Keeps a task for each rule that takes from FROM, and lets the consumers of rules go that are gone.
    async fn keep_workers(&self, bus: &Handles, tell: &mpsc::Sender<Done>) -> String {
        let caller = match &self.caller {
            Ok(caller) => caller,
            Err(error) => return format!("no rule's target can be called: {error}"),
        };
        let mut following = self.following.subscribe();
        let (mut tasks, mut running) = (JoinSet::new(), BTreeMap::<String, Running>::new());
        let mut swept = false;
        loop {
            let now = following.borrow_and_update().clone();
            let wanted = |uid: &str| now.table.routes.get(uid).filter(|route| takes(route).is_some());
            if now.whole {
                let before: Vec<String> = running.keys().cloned().collect();
                for uid in before {
                    let route = running.get(&uid).map(|task| task.route.clone());
                    if wanted(&uid) == route.as_ref() {
                        continue;
                    }
                    running.remove(&uid);
                    if wanted(&uid).and_then(|route| takes(route)) != route.and_then(|route| takes(&route)) {
                        let_go(bus, &subject::rule_consumer(&uid)).await;
                    }
                }
                if !swept {
                    swept = sweep(bus, &now.table).await;
                }
                for (uid, route) in &now.table.routes {
                    if takes(route).is_none() || running.contains_key(uid) {
                        continue;
                    }
                    let stop = CancellationToken::new();
                    let worker = Worker {
                        route: route.clone(),
                        bus: bus.clone(),
                        caller: caller.clone(),
                        tell: tell.clone(),
                        last: now.last.get(uid).cloned(),
                    };
                    let id = tasks.spawn(worker.run(stop.clone())).id();
                    let task = Running { id, route: route.clone(), _stop: stop.drop_guard() };
                    running.insert(uid.clone(), task);
                }
            }
            tokio::select! {
                changed = following.changed() => {
                    if changed.is_err() {
                        return "the table ended".to_owned();
                    }
                }
                Some(ended) = tasks.join_next_with_id(), if !tasks.is_empty() => {
                    let id = match ended {
                        Ok((id, ())) => id,
                        Err(error) => {
                            tracing::error!(%error, "the task of a rule fell and is started again");
                            tokio::time::sleep(pause::jittered(RESTART_PAUSE)).await;
                            error.id()
                        }
                    };
                    running.retain(|_, task| task.id != id);
                }
            }
        }
    }
}

async fn let_go(bus: &Handles, durable: &str) {
    if let Err(error) = queue::remove(&bus.control, STREAM_FROM, durable).await {
        tracing::debug!(durable, %error, "a consumer of no rule stays until the next start");
    }
}

/// Lets the consumers go of rules that went while nobody looked.
async fn sweep(bus: &Handles, table: &Table) -> bool {
    match queue::names(&bus.control, STREAM_FROM, RULE_CONSUMERS).await {
        Ok(names) => {
            let of_a_rule =
                |name: &String| table.routes.keys().any(|uid| subject::rule_consumer(uid) == *name);
            for name in names.iter().filter(|name| !of_a_rule(name)) {
                let_go(bus, name).await;
            }
            true
        }
        Err(error) => {
            tracing::debug!(%error, "consumers of rules are looked at again");
            false
        }
    }
}

impl Rim<Router> for RouterRim {
    async fn act(&self, _: &Handles, act: Act) -> Option<Done> {
        match act {
            Act::Follow(table, last) => {
                self.following.send_replace(Following { table, last, whole: true });
                None
            }
            Act::Heard(node) => {
                self.presence.heard(node);
                None
            }
            Act::Call(message, node, call) => {
                let (answer, counted) = self.call(&node, call).await;
                Some(Done::Answer(message, schemas::encode(&answer), counted))
            }
        }
    }

    async fn watch(&self, bus: &Handles, tell: mpsc::Sender<Done>) -> Result<(), String> {
        let entry = Arc::new(RestEntry {
            authorize: self.rest.authorize.clone(),
            bus: bus.control.clone(),
            presence: self.presence.clone(),
            following: self.following.subscribe(),
            tell: tell.clone(),
        });
        let rest = async {
            match self.rest.listen {
                None => std::future::pending().await,
                Some(listen) => {
                    let tls = listener::acceptor(self.rest.certificate.clone())?;
                    listener::serve(listen, Some(tls), entry, "EW-REST-LISTEN", "--rest-listen").await;
                    Err("the REST entry ended".to_owned())
                }
            }
        };
        tokio::select! {
            ended = rest => ended,
            why = self.keep_workers(bus, &tell) => Err(why),
            () = tell.closed() => Ok(()),
        }
    }
}
