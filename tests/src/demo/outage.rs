//! The outage: a sensor on one node, a display on the other; then the link is cut, the agent killed, the node rebooted
//! with no hub in reach, and healed. Every figure comes from outside: `ctr`, `kubectl`, the sensor's own list on disk,
//! the display's own output, and the hub's stream as it stands.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bus::module::Account;
use futures::StreamExt;
use schemas::Timestamp;
use schemas::envelope::header;
use schemas::subject;
use serde_json::Value;

use super::screen::{Figures, progress};
use super::tally::{acked, tally};
use crate::cluster::{Cluster, Edge, Running, eventually, programs};

/// The nodes.
pub const NODES: [&str; 2] = ["edge-a", "edge-b"];
/// The link is away at least so long.
const OUTAGE: Duration = Duration::from_secs(45);
/// Of what must happen, each thing may take so long, in seconds.
const STEP_SECONDS: u64 = 60;
/// Events of the outage have all come when none came for so long.
const EVENTS_QUIET: Duration = Duration::from_secs(2);
/// Where the example's manifest keeps the sensor's list; the demo keeps it in its own directory.
const SENSOR_HOST_PATH: &str = "/var/lib/edgewire-demo/sensor";
/// What the hub holds of the sensor.
const FROM_SENSOR: &str = "from.edge-a.demo.temp";

/// Performs it all.
pub async fn perform(cluster: &Cluster) -> anyhow::Result<Figures> {
    let mut figures = Figures::default();
    let edge = cluster.edge("edge-a")?;
    start(cluster).await?;
    let list = deploy(cluster, &edge, &mut figures).await?;
    live(cluster, &mut figures).await?;

    let since = Instant::now();
    cut(cluster, &edge, &mut figures).await?;
    kill(&edge, &mut figures).await?;
    reboot(&edge, &list, &mut figures).await?;
    let left = OUTAGE.saturating_sub(since.elapsed());
    progress("outage", &format!("the sensor goes on without a hub for {} s more", left.as_secs()));
    tokio::time::sleep(left).await; // the outage is this long: nothing is waited for
    figures.outage_s = since.elapsed().as_secs();
    heal(cluster, &edge, &list, &mut figures).await?;
    count(cluster, &list, &mut figures).await?;
    Ok(figures)
}

async fn start(cluster: &Cluster) -> anyhow::Result<()> {
    let begun = Instant::now();
    cluster.hub().start().await?;
    // For the user's own kubectl: the workloads' namespace is the default one.
    cluster.kubectl_ok(&["config", "set-context", "--current", "--namespace", "demo"]).await?;
    progress(
        "hub",
        &format!("serves on {} after {} ms", cluster.site().hub_address(), begun.elapsed().as_millis()),
    );
    for name in NODES {
        let begun = Instant::now();
        let edge = cluster.edge(name)?;
        edge.join(cluster.hub()).await?;
        edge.start().await?;
        cluster.ready(name, "True").await?;
        progress(name, &format!("joined and Ready after {} ms", begun.elapsed().as_millis()));
    }
    Ok(())
}

/// Applies the examples' manifests; gives the sensor's list.
async fn deploy(cluster: &Cluster, edge: &Edge, figures: &mut Figures) -> anyhow::Result<PathBuf> {
    let dir = edge.host_dir("sensor");
    for name in ["sensor.yaml", "display.yaml"] {
        let path = programs::root().join("examples/manifests").join(name);
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        ensure!(
            name != "sensor.yaml" || text.contains(SENSOR_HOST_PATH),
            "{} has another hostPath",
            path.display()
        );
        cluster.apply(&text.replace(SENSOR_HOST_PATH, &dir.to_string_lossy())).await?;
    }
    figures.display_id = running(cluster, "display").await?;
    figures.sensor_id = running(cluster, "sensor").await?;
    progress("pods", "sensor and display are Running");
    Ok(dir.join("acked.log"))
}

/// Waits until the hub says that the pod runs; gives its container's ID.
async fn running(cluster: &Cluster, pod: &str) -> anyhow::Result<String> {
    let what = format!("pod {pod} is Running");
    eventually(&what, STEP_SECONDS, async || {
        let object = cluster.kubectl_json(&["get", "pod", "-n", "demo", pod]).await?;
        let status =
            |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let id = status("/status/containerStatuses/0/containerID");
        let runs = status("/status/phase") == "Running"
            && object.pointer("/status/containerStatuses/0/ready") == Some(&Value::Bool(true));
        ensure!(runs, "it is {:?}: {}", status("/status/phase"), waiting(&object));
        Ok(id.strip_prefix("containerd://").map(str::to_owned))
    })
    .await
}

fn waiting(pod: &Value) -> String {
    let at = |field: &str| {
        let pointer = format!("/status/containerStatuses/0/state/waiting/{field}");
        pod.pointer(&pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    format!("{} {}", at("reason"), at("message"))
}

/// Waits until the display shows what the sensor says.
async fn live(cluster: &Cluster, figures: &mut Figures) -> anyhow::Result<()> {
    let reading = "the display on edge-b shows a reading of the sensor on edge-a";
    figures.live = eventually(reading, STEP_SECONDS, async || {
        let lines = cluster.kubectl_ok(&["logs", "-n", "demo", "display", "--tail=5"]).await?;
        Ok(lines.lines().rev().find_map(|line| line.strip_prefix("live ").map(str::to_owned)))
    })
    .await?;
    progress("live", &figures.live);
    Ok(())
}

async fn cut(cluster: &Cluster, edge: &Edge, figures: &mut Figures) -> anyhow::Result<()> {
    let begun = Instant::now();
    edge.cut()?;
    cluster.ready("edge-a", "Unknown").await?;
    figures.cut_node = cluster.node_ready("edge-a").await?;
    figures.cut_id = sensor(edge)?.map(|running| running.id).unwrap_or_default();
    progress(
        "cut",
        &format!("packets of edge-a are dropped; the hub noticed after {} s", begun.elapsed().as_secs()),
    );
    Ok(())
}

fn sensor(edge: &Edge) -> anyhow::Result<Option<Running>> {
    edge.container_of("demo", "sensor")
}

async fn kill(edge: &Edge, figures: &mut Figures) -> anyhow::Result<()> {
    let before = sensor(edge)?.context("the sensor does not run")?;
    edge.kill9_agent().await?;
    let meanwhile = sensor(edge)?.context("the sensor ended with the agent")?;
    start_again(edge).await?;
    let after = sensor(edge)?.context("the sensor ended when the agent came back")?;
    figures.kill_same_process = before == meanwhile && before == after;
    figures.kill_id = after.id;
    progress("kill", "the agent was killed and is back");
    Ok(())
}

/// Starts the agent and waits until it has its server and its modules.
async fn start_again(edge: &Edge) -> anyhow::Result<()> {
    let told = edge.operator_file();
    std::fs::remove_file(&told).with_context(|| format!("cannot remove {}", told.display()))?;
    edge.start().await?;
    eventually("the agent is back", STEP_SECONDS, async || Ok(told.exists())).await
}

async fn reboot(edge: &Edge, list: &Path, figures: &mut Figures) -> anyhow::Result<()> {
    edge.reboot().await?;
    let acked_before = read(list)?.len();
    let begun = Instant::now();
    edge.start().await?;
    eventually("the sensor is back, with no hub", STEP_SECONDS, async || Ok(sensor(edge)?.is_some())).await?;
    figures.reboot_ms = begun.elapsed().as_millis();
    eventually("the sensor's readings are acknowledged again", STEP_SECONDS, async || {
        Ok(read(list)?.len() > acked_before)
    })
    .await?;
    let serving = begun.elapsed().as_millis();
    let text = format!(
        "everything of edge-a was killed; the sensor runs after {} ms, reports after {serving} ms",
        figures.reboot_ms
    );
    progress("reboot", &text);
    Ok(())
}

fn read(list: &Path) -> anyhow::Result<Vec<u64>> {
    let text = std::fs::read_to_string(list).with_context(|| format!("cannot read {}", list.display()))?;
    Ok(acked(&text))
}

async fn heal(cluster: &Cluster, edge: &Edge, list: &Path, figures: &mut Figures) -> anyhow::Result<()> {
    let before = received(cluster).await?.last().map_or(0, |(n, _)| *n);
    let events = listen(cluster).await?;
    let owed = *read(list)?.last().context("the sensor's list is empty")?;
    let begun_ms = Timestamp::now().0;
    edge.heal()?;
    let js = cluster.hub_js(Account::Control).await?;
    let stream = js.get_stream(subject::STREAM_FROM).await?;
    eventually("the hub has the readings of the outage", 2 * STEP_SECONDS, async || {
        let last = stream.get_last_raw_message_by_subject(FROM_SENSOR).await?;
        Ok(reading(&last.payload).is_some_and(|n| n >= owed))
    })
    .await?;
    cluster.ready("edge-a", "True").await?;
    eventually("the events of the outage have come", STEP_SECONDS, async || {
        let quiet = events.lock().unwrap_or_else(PoisonError::into_inner).last.elapsed() >= EVENTS_QUIET;
        Ok(quiet)
    })
    .await?;
    let came = received(cluster).await?;
    let of_outage = came.iter().filter(|(n, _)| *n > before && *n <= owed);
    let last_message_ms = of_outage.clone().map(|(_, at_ms)| *at_ms).max().unwrap_or(begun_ms);
    let events = events.lock().unwrap_or_else(PoisonError::into_inner);
    let of_outage_events = events.came.iter().filter(|event| event.said_ms <= begun_ms);
    let last_event_ms = of_outage_events.clone().map(|event| event.came_ms).max().unwrap_or(begun_ms);
    figures.messages = of_outage.count() as u64;
    figures.events = of_outage_events.map(|event| &event.id).collect::<BTreeSet<_>>().len();
    figures.heal_ms = last_message_ms.max(last_event_ms) - begun_ms;
    progress("heal", "edge-a has its link back and has caught up");
    Ok(())
}

/// An event as the hub saw it come in.
struct Event {
    id: String,
    said_ms: i64,
    came_ms: i64,
}

struct Events {
    came: Vec<Event>,
    last: Instant,
}

/// Listens to edge-a's events at the hub. The same event may be heard twice (a batch that was refused); its ID tells.
async fn listen(cluster: &Cluster) -> anyhow::Result<Arc<Mutex<Events>>> {
    let bus = cluster.hub_bus(Account::Control).await?;
    let mut heard = bus.listen("ew.in.edge-a.events.>").await?;
    bus.round_trip().await?;
    let events = Arc::new(Mutex::new(Events { came: Vec::new(), last: Instant::now() }));
    let out = events.clone();
    tokio::spawn(async move {
        let _connected = bus;
        while let Some(message) = heard.next().await {
            let header = |name: &str| message.headers.get(name).cloned().unwrap_or_default();
            let said_ms = Timestamp::parse(&header(header::TIME)).map_or(0, |at| at.0);
            let event = Event { id: header(header::ID), said_ms, came_ms: Timestamp::now().0 };
            let mut out = out.lock().unwrap_or_else(PoisonError::into_inner);
            out.came.push(event);
            out.last = Instant::now();
        }
    });
    Ok(events)
}

fn reading(payload: &[u8]) -> Option<u64> {
    serde_json::from_slice::<Value>(payload).ok()?.get("n")?.as_u64()
}

/// The sensor's readings as the hub holds them, each with when it was stored.
async fn received(cluster: &Cluster) -> anyhow::Result<Vec<(u64, i64)>> {
    let stored = cluster.stored(Account::Control, subject::STREAM_FROM, FROM_SENSOR).await?;
    Ok(stored.iter().filter_map(|message| Some((reading(&message.payload)?, message.at_ms))).collect())
}

async fn count(cluster: &Cluster, list: &Path, figures: &mut Figures) -> anyhow::Result<()> {
    let listed = read(list)?;
    let last = listed.last().copied().unwrap_or_default();
    let came = eventually("the hub has all that was acknowledged", STEP_SECONDS, async || {
        let came = received(cluster).await?;
        Ok(came.iter().any(|(n, _)| *n >= last).then_some(came))
    })
    .await?;
    let came: Vec<u64> = came.into_iter().map(|(n, _)| n).collect();
    figures.tally = tally(&listed, &came);
    let restarts = async |pod: &str| -> anyhow::Result<i64> {
        let path = "jsonpath={.status.containerStatuses[0].restartCount}";
        Ok(cluster.kubectl_ok(&["get", "pod", "-n", "demo", pod, "-o", path]).await?.parse()?)
    };
    figures.display_id_end = running(cluster, "display").await?;
    running(cluster, "sensor").await?;
    figures.sensor_restarts = restarts("sensor").await?;
    figures.display_restarts = restarts("display").await?;
    Ok(())
}
