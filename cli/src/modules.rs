//! `edgewire modules`: every module of the hub and of every node: its state, its restarts, its last error, its flows.
//!
//! Each process's host answers for its modules. Who does not answer is shown as such: that is what one looks for.

use std::time::Duration;

use bus::connection::Bus;
use bus::module::Account;
use bus::tool::ToolError;
use clap::Args;
use futures::StreamExt;
use schemas::Timestamp;
use schemas::envelope::Headers;
use schemas::name::NodeName;
use schemas::report::{ModuleReport, ModuleState};
use schemas::subject;
use serde_json::{Value, json};

use crate::ask::{HUB, ask};
use crate::failure::{Failure, Outcome};
use crate::nodes;
use crate::notices::Notices;
use crate::place::{Place, PlaceArgs};
use crate::screen::Screen;
use crate::table::{Cell, Paint, age, paint, table};

/// How long a host may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// Hosts asked at the same time.
const ASKED_MAX: usize = 64;

/// Arguments of `edgewire modules`.
#[derive(Debug, Args)]
pub struct ModulesArgs {
    /// Only this node, or `hub`
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// What each module reads and writes
    #[arg(long)]
    flows: bool,
    /// A JSON array
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: PlaceArgs,
}

/// One host and its answer; or why there is none.
struct Host {
    node: String,
    answer: Result<Vec<ModuleReport>, String>,
}

/// Runs it.
pub async fn run(args: ModulesArgs, screen: &mut Screen, notices: &Notices) -> Outcome<()> {
    let place = Place::find(&args.place).await?;
    let wanted = match (&args.node, &place.api) {
        (Some(node), _) => vec![node.clone()],
        (None, Some(api)) => {
            let mut all = vec![HUB.to_owned()];
            all.extend(nodes::names(api).await?);
            all
        }
        (None, None) => vec![place.node.clone()],
    };
    let bus = place.connect(Account::Control).await?;
    let asking = futures::stream::iter(wanted)
        .map(|node| {
            let bus = &bus;
            async move { Host { answer: modules_of(bus, &node).await, node } }
        })
        .buffered(ASKED_MAX)
        .collect::<Vec<Host>>();
    let hosts = tokio::select! {
        hosts = asking => hosts,
        failure = notices.refusal() => return Err(failure),
    };

    if args.json {
        return screen.json(&hosts.iter().map(as_json).collect()).await;
    }
    if let (Some(node), [Host { answer: Err(cause), .. }]) = (&args.node, hosts.as_slice()) {
        return Err(Failure::new(
            "EW-NODE-UNREACHABLE",
            format!("node {node} does not answer: {cause}"),
            "`edgewire nodes` shows the nodes and whether their links are up",
        ));
    }
    let text = match args.flows {
        true => render_flows(&hosts, screen.colour),
        false => render(&hosts, Timestamp::now(), screen.colour),
    };
    screen.print(&text).await
}

async fn modules_of(bus: &Bus, node: &str) -> Result<Vec<ModuleReport>, String> {
    // The hub's host is asked as a node's is.
    let name = NodeName::new(node).map_err(|error| error.to_string())?;
    let command = subject::command(&name, "host", "modules");
    match ask(bus, &command, &Headers::new(), bytes::Bytes::new(), ANSWER_TIMEOUT).await {
        Ok(answer) => {
            schemas::decode(&answer.payload).map_err(|error| format!("its answer cannot be read: {error}"))
        }
        Err(ToolError::NoResponders { .. }) => Err("offline".to_owned()),
        Err(ToolError::Timeout { .. }) => Err(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs())),
        Err(error) => Err(error.to_string()),
    }
}

fn state(report: &ModuleReport) -> (&'static str, Paint) {
    match report.state {
        ModuleState::Starting => ("Starting", Paint::Warn),
        ModuleState::Running => ("Running", Paint::Good),
        ModuleState::BackOff => ("BackOff", Paint::Bad),
        ModuleState::Stopped => ("Stopped", Paint::Dim),
    }
}

fn as_json(host: &Host) -> Value {
    match &host.answer {
        Err(cause) => json!({"node": host.node, "answers": false, "error": cause, "modules": []}),
        Ok(reports) => {
            let modules: Vec<Value> = reports
                .iter()
                .map(|report| {
                    json!({
                        "module": report.module, "state": state(report).0, "restarts": report.restarts,
                        "since": report.since.rfc3339(), "last_error": report.last_error, "flows": report.flows,
                    })
                })
                .collect();
            json!({"node": host.node, "answers": true, "modules": modules})
        }
    }
}

fn render(hosts: &[Host], now: Timestamp, colour: bool) -> String {
    let mut rows: Vec<Vec<Cell>> = Vec::new();
    for host in hosts {
        match &host.answer {
            Err(cause) => rows.push(vec![
                host.node.as_str().into(),
                "-".into(),
                Cell::new("NoAnswer", Paint::Bad),
                "-".into(),
                "-".into(),
                cause.as_str().into(),
            ]),
            Ok(reports) => rows.extend(reports.iter().map(|report| {
                let (word, paint) = state(report);
                vec![
                    host.node.as_str().into(),
                    report.module.as_str().into(),
                    Cell::new(word, paint),
                    report.restarts.to_string().into(),
                    age(now.since_ms(report.since)).into(),
                    report.last_error.as_str().into(),
                ]
            })),
        }
    }
    table(&["NODE", "MODULE", "STATE", "RESTARTS", "SINCE", "LAST ERROR"], &rows, colour)
}

fn render_flows(hosts: &[Host], colour: bool) -> String {
    use crate::decode::safe;
    let mut out = String::new();
    for host in hosts {
        match &host.answer {
            Err(cause) => {
                out.push_str(&format!("{}  {}\n", safe(&host.node), paint(&safe(cause), Paint::Bad, colour)))
            }
            Ok(reports) => {
                for report in reports {
                    let name = format!("{}/{}", safe(&host.node), safe(&report.module));
                    let (word, tint) = state(report);
                    out.push_str(&format!(
                        "{}  {}\n",
                        paint(&name, Paint::Name, colour),
                        paint(word, tint, colour)
                    ));
                    for flow in &report.flows {
                        out.push_str(&format!("  {}\n", safe(flow)));
                    }
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts() -> Vec<Host> {
        let report = |module: &str, state, restarts, error: &str| ModuleReport {
            node: "hub".into(),
            module: module.into(),
            state,
            restarts,
            since: Timestamp(0),
            last_error: error.into(),
            flows: vec!["in  CONTROL ew.hb.*".into()],
        };
        let reports = vec![
            report("api", ModuleState::Running, 0, ""),
            report("nodes", ModuleState::BackOff, 3, "x\ny"),
        ];
        vec![
            Host { node: "hub".into(), answer: Ok(reports) },
            Host { node: "edge-a".into(), answer: Err("no answer within 3 s".into()) },
        ]
    }

    #[test]
    fn who_does_not_answer_is_shown() {
        let want = "\
NODE     MODULE   STATE      RESTARTS   SINCE   LAST ERROR
hub      api      Running    0          65s
hub      nodes    BackOff    3          65s     x\\ny
edge-a   -        NoAnswer   -          -       no answer within 3 s
";
        assert_eq!(render(&hosts(), Timestamp(65_000), false), want);
    }

    #[test]
    fn flows_stand_under_their_module() {
        let want = "\
hub/api  Running
  in  CONTROL ew.hb.*
hub/nodes  BackOff
  in  CONTROL ew.hb.*
edge-a  no answer within 3 s
";
        assert_eq!(render_flows(&hosts(), false), want);
    }
}
