//! A hub is backed up while it runs, destroyed, and restored under nodes that are ahead of it: nothing at the edge stops,
//! the difference is shown, no message is lost or repeated in silence.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use async_nats::jetstream::stream;
use bus::module::Account;
use serde_json::{Value, json};
use tests::cluster::{Cluster, eventually};

use crate::support::{
    IDLE, acked, acked_more, all_arrived, edgewire, events, field, field_is, finish, gone, pod, runs, sensor,
    the_same, told,
};

const TIMEOUT_S: u64 = 60;
/// A backup that has begun is killed after so long: in each of its phases, whichever the machine is in by then.
const KILLED_AFTER_MS: [u64; 5] = [0, 20, 60, 150, 400];

/// The readings that the hub has, in its stream's order.
async fn readings(cluster: &Cluster) -> anyhow::Result<Vec<u64>> {
    let stored = cluster.stored(Account::Control, "FROM", "from.edge-a.demo.temp").await?;
    let number = |payload: &[u8]| serde_json::from_slice::<Value>(payload).ok()?["n"].as_u64();
    stored.iter().map(|stored| number(&stored.payload).context("a reading has its number")).collect()
}

/// The Event of the node about a lane whose cursor went back.
async fn cursor_told(cluster: &Cluster, lane: &str) -> anyhow::Result<String> {
    let begins = format!("lane {lane}:");
    eventually(&format!("CursorBehind of lane {lane} is told"), TIMEOUT_S, async || {
        let told = events(cluster, "CursorBehind", "edge-a").await?;
        Ok(told.into_iter().find(|text| text.starts_with(&begins)))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_restored_behind_its_nodes_stops_nothing_and_says_so() -> anyhow::Result<()> {
    let cluster = Cluster::new("backup").await?;
    cluster.up(&["edge-a"]).await?;
    let (hub, edge) = (cluster.hub(), cluster.edge("edge-a")?);
    cluster.apply(&sensor(&edge, 50).to_string()).await?;
    let flag = edge.host_dir("flag");
    std::fs::create_dir_all(&flag)?;
    let mut quitter = pod("quitter", "edge-a", "while [ ! -f /flag/go ]; do sleep 0.1; done; exit 3");
    quitter["spec"]["restartPolicy"] = json!("Never");
    quitter["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "flag", "mountPath": "/flag"}]);
    quitter["spec"]["volumes"] = json!([{"name": "flag", "hostPath": {"path": flag}}]);
    for pod in [quitter, pod("steady", "edge-a", IDLE), pod("doomed", "edge-a", IDLE)] {
        cluster.apply(&pod.to_string()).await?;
    }
    let sensing = runs(&cluster, &edge, "demo", "sensor").await?;
    let steady = runs(&cluster, &edge, "default", "steady").await?;
    for name in ["quitter", "doomed"] {
        runs(&cluster, &edge, "default", name).await?;
    }
    acked_more(&edge, 50).await?;

    // A backup, while readings flow and pods come and go.
    let file = cluster.site().dir.join("hub.tar.gz");
    let name = file.to_str().context("a path is text")?;
    let churn = async {
        for n in 0..3 {
            cluster.apply(&pod(&format!("brief-{n}"), "edge-a", "true").to_string()).await?;
            cluster.kubectl_ok(&["delete", "pod", &format!("brief-{n}"), "--wait=false"]).await?;
        }
        anyhow::Ok(())
    };
    let (made, churned) = tokio::join!(finish(hub.command(&["backup", name, "--json"]), TIMEOUT_S), churn);
    churned?;
    let manifest: Value = serde_json::from_str(&made?.ok()?)?;
    println!("held still for {} ms", manifest["held_ms"]);
    anyhow::ensure!(manifest["held_ms"].as_u64().is_some_and(|ms| ms < 3_000), "{manifest}");
    anyhow::ensure!(std::fs::metadata(&file)?.permissions().mode() & 0o777 == 0o600);
    let again = finish(hub.command(&["backup", name]), TIMEOUT_S).await?;
    anyhow::ensure!(!again.success && again.stderr.contains("EW-BACKUP-EXISTS"), "{}", again.stderr);
    let running = finish(hub.command(&["restore", name, "--force"]), TIMEOUT_S).await?;
    anyhow::ensure!(!running.success && running.stderr.contains("EW-RESTORE-RUNNING"), "{}", running.stderr);

    // The nodes get ahead of it: a pod comes, one goes, one changes for the last time, readings are taken.
    cluster.apply(&pod("late", "edge-a", IDLE).to_string()).await?;
    let late = runs(&cluster, &edge, "default", "late").await?;
    cluster.kubectl_ok(&["delete", "pod", "doomed"]).await?;
    gone(&edge, "default", "doomed").await?;
    std::fs::write(flag.join("go"), "")?;
    field_is(&cluster, "quitter", ".status.phase", "Failed").await?;
    for n in 0..3 {
        gone(&edge, "default", &format!("brief-{n}")).await?;
    }
    acked_more(&edge, 50).await?;
    let taken = all_arrived(&cluster, &edge, 30).await?.len() as u64;

    // Everything is lost, and comes back as it was then.
    hub.kill9().await?;
    hub.destroy().await?;
    println!("{}", finish(hub.command(&["restore", name]), TIMEOUT_S).await?.ok()?);
    let second = finish(hub.command(&["restore", name]), TIMEOUT_S).await?;
    anyhow::ensure!(!second.success && second.stderr.contains("EW-RESTORE-NOT-EMPTY"), "{}", second.stderr);
    hub.start().await?;
    cluster.ready("edge-a", "True").await?;
    println!("{}", told(&cluster, &["DesiredDiverged"], "edge-a").await?);
    the_same(&edge, &[&sensing, &steady, &late], "under a hub that was restored from before")?;

    // The difference is shown.
    let what = "the pod that the hub does not have is listed";
    let listed = eventually(what, TIMEOUT_S, async || {
        let hosts: Value = serde_json::from_str(&edgewire(&cluster, &["diverged", "--json"]).await?.ok()?)?;
        let objects = hosts[0]["objects"].as_array().cloned().unwrap_or_default();
        Ok((hosts[0]["settled"] == true && !objects.is_empty()).then_some(objects))
    })
    .await?;
    let pods: Vec<_> = listed.iter().filter(|object| object["resource"] == "pods").collect();
    anyhow::ensure!(
        pods.len() == 1 && pods[0]["uid"] == late.uid && pods[0]["hubHas"] == "none",
        "{listed:?}"
    );
    // What had changed for the last time is right again, though nothing changes any more.
    field_is(&cluster, "quitter", ".status.phase", "Failed").await?;
    field_is(&cluster, "quitter", ".status.containerStatuses[0].state.terminated.exitCode", "3").await?;
    // What was deleted is back at the hub, does not come back at the edge, and goes when it is deleted.
    field_is(&cluster, "doomed", ".status.reason", "DeletedBefore").await?;
    anyhow::ensure!(field(&cluster, "doomed", ".status.phase").await? == "Failed");
    anyhow::ensure!(edge.container_of("default", "doomed")?.is_none(), "it was started again");
    cluster.kubectl_ok(&["delete", "pod", "doomed", "--timeout=30s"]).await?;
    // Under its name a new one runs.
    cluster.apply(&pod("doomed", "edge-a", IDLE).to_string()).await?;
    runs(&cluster, &edge, "default", "doomed").await?;

    messages(&cluster, taken).await?;
    the_same(&edge, &[&sensing, &steady, &late], "at the end")?;

    // A person decides: what the hub has is not released, what it does not have is.
    let known = edgewire(&cluster, &["release", &steady.uid]).await?;
    anyhow::ensure!(!known.success && known.stderr.contains("EW-RELEASE-"), "{}", known.stderr);
    println!("{}", edgewire(&cluster, &["release", &late.uid]).await?.ok()?);
    gone(&edge, "default", "late").await?;
    eventually("hub and node agree", TIMEOUT_S, async || {
        Ok(edgewire(&cluster, &["diverged"]).await?.stderr.contains("agree"))
    })
    .await?;
    the_same(&edge, &[&sensing, &steady], "after the release")?;
    cluster.done().await
}

/// Readings go on; those that the old hub had taken after the backup are gone with it, and exactly those are named.
async fn messages(cluster: &Cluster, taken: u64) -> anyhow::Result<()> {
    let edge = cluster.edge("edge-a")?;
    let text = cursor_told(cluster, "workload").await?;
    println!("{text}");
    acked_more(&edge, 50).await?;
    let last = *acked(&edge).last().context("the sensor has a list")?;
    eventually("new readings arrive", TIMEOUT_S, async || {
        Ok(readings(cluster).await?.last().is_some_and(|newest| *newest >= last))
    })
    .await?;
    let have = readings(cluster).await?;
    anyhow::ensure!(have.windows(2).all(|pair| pair[0] < pair[1]), "repeated or out of order: {have:?}");
    let missing: Vec<u64> = (1..=last).filter(|n| !have.contains(n)).collect();
    // The node's stream holds the sensor's readings and nothing else: its sequences are their numbers.
    let numbers: Vec<u64> = text
        .split_once("of the lane's own, ")
        .context("the text names them")?
        .1
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|word| word.parse().ok())
        .collect();
    let lost: Vec<u64> = match text.contains("lost") {
        true => (numbers[0]..=numbers[1]).collect(),
        false => Vec::new(),
    };
    anyhow::ensure!(missing == lost, "missing {missing:?}, told {lost:?}: {text}");
    anyhow::ensure!(lost.contains(&taken), "{taken} was taken by the old hub only; told {lost:?}");
    let told = events(cluster, "CursorBehind", "edge-a").await?;
    anyhow::ensure!(told.iter().filter(|text| text.starts_with("lane workload")).count() == 1, "{told:?}");
    Ok(())
}

const KEYS: u64 = 400;
const BODY_BYTES: usize = 40 * 1024;
const WRITERS: u64 = 4;

/// A body that says its number and does not compress.
fn body(number: u64) -> bytes::Bytes {
    let mut body = format!("{number} ").into_bytes();
    let mut state = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    while body.len() < BODY_BYTES {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        body.extend(state.to_le_bytes());
    }
    body.into()
}

fn number(body: &[u8]) -> u64 {
    String::from_utf8_lossy(body).split(' ').next().and_then(|text| text.parse().ok()).unwrap_or_default()
}

/// 16 MB of keys are overwritten all the time, and of each version a second stream is told after the first has it. What is
/// restored must be of one moment: every key, none older than it was when the backup began, and the two streams agree.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_under_writes_is_of_one_moment() -> anyhow::Result<()> {
    let cluster = Cluster::new("moment").await?;
    cluster.hub().start().await?;
    let stop = Arc::new(AtomicBool::new(false));
    let acked: Arc<Vec<AtomicU64>> = Arc::new((0..KEYS).map(|_| AtomicU64::new(0)).collect());
    let writers = write(&cluster, &stop, &acked).await?;
    eventually("every key was written", TIMEOUT_S, async || {
        Ok(acked.iter().all(|version| version.load(Ordering::SeqCst) > 0))
    })
    .await?;
    let file = cluster.site().dir.join("moment.tar.gz");
    let name = file.to_str().context("a path is text")?.to_owned();
    let mut backups = Vec::new();
    for round in 0..3 {
        let before: Vec<u64> = acked.iter().map(|version| version.load(Ordering::SeqCst)).collect();
        let name = format!("{name}.{round}");
        let made = finish(cluster.hub().command(&["backup", &name, "--json"]), TIMEOUT_S).await?;
        let manifest: Value = serde_json::from_str(&made.ok()?)?;
        println!(
            "round {round}: held for {} ms, {} bytes",
            manifest["held_ms"],
            std::fs::metadata(&name)?.len()
        );
        backups.push((name, before));
    }
    stop.store(true, Ordering::SeqCst);
    for writer in writers {
        writer.await??;
    }
    for (name, before) in backups {
        cluster.hub().stop().await?;
        cluster.hub().destroy().await?;
        finish(cluster.hub().command(&["restore", &name]), TIMEOUT_S).await?.ok()?;
        cluster.hub().start().await?;
        let versions = |stored: Vec<tests::cluster::Stored>| -> BTreeMap<String, u64> {
            let key = |subject: &str| subject.rsplit('.').next().unwrap_or_default().to_owned();
            stored.iter().map(|stored| (key(&stored.subject), number(&stored.payload))).collect()
        };
        let big = versions(cluster.stored(Account::Control, "BIG", "big.>").await?);
        let told = versions(cluster.stored(Account::Control, "AFTER", "told.>").await?);
        for (n, before) in before.iter().enumerate() {
            let at = |of: &BTreeMap<String, u64>| of.get(&format!("k{n}")).copied();
            let (big, told) =
                (at(&big).with_context(|| format!("key {n} is missing"))?, at(&told).unwrap_or(0));
            anyhow::ensure!(big >= *before, "key {n} is older ({big}) than before the backup ({before})");
            anyhow::ensure!(big == told || big == told + 1, "key {n}: {big}, but {told} was told after it");
        }
        // A writer's keys come in turn, so their versions' sum is how often it wrote. The files are copied in the order of
        // their names: without one moment for all, BIG is ahead of AFTER by what was written while it was copied.
        for writer in 0..WRITERS {
            let wrote = |of: &BTreeMap<String, u64>| -> u64 {
                let keys = (writer..KEYS).step_by(usize::try_from(WRITERS).unwrap_or(1));
                keys.filter_map(|n| of.get(&format!("k{n}"))).sum()
            };
            let (big, told) = (wrote(&big), wrote(&told));
            let one = big == told || big == told + 1;
            anyhow::ensure!(one, "writer {writer} wrote {big} times, and told of {told} afterwards");
        }
    }
    cluster.done().await
}

async fn write(
    cluster: &Cluster,
    stop: &Arc<AtomicBool>,
    acked: &Arc<Vec<AtomicU64>>,
) -> anyhow::Result<Vec<tokio::task::JoinHandle<anyhow::Result<()>>>> {
    let js = cluster.hub_js(Account::Control).await?;
    for (name, subjects) in [("BIG", "big.>"), ("AFTER", "told.>")] {
        let config = stream::Config {
            name: name.to_owned(),
            subjects: vec![subjects.to_owned()],
            max_messages_per_subject: 1,
            max_bytes: 256 * 1024 * 1024,
            ..stream::Config::default()
        };
        js.create_stream(config).await?;
    }
    let writer = |writer: u64| {
        let (js, stop, acked) = (js.clone(), stop.clone(), acked.clone());
        tokio::spawn(async move {
            for version in 1.. {
                for n in (writer..KEYS).step_by(usize::try_from(WRITERS)?) {
                    js.publish(format!("big.k{n}"), body(version)).await?.await?;
                    js.publish(format!("told.k{n}"), format!("{version} ").into()).await?.await?;
                    acked[usize::try_from(n)?].store(version, Ordering::SeqCst);
                    if stop.load(Ordering::SeqCst) {
                        return Ok(());
                    }
                }
            }
            Ok(())
        })
    };
    Ok((0..WRITERS).map(writer).collect())
}

fn left(dir: &Path, name: &str) -> anyhow::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir)?.collect::<Result<Vec<_>, _>>()?;
    let of = entries.into_iter().filter(|entry| entry.file_name().to_string_lossy().starts_with(name));
    Ok(of.map(|entry| entry.path()).collect())
}

/// Killed in the middle, the hub or the backup itself: a whole backup or none, and the hub serves on.
#[tokio::test(flavor = "multi_thread")]
async fn a_disturbed_backup_is_whole_or_none() -> anyhow::Result<()> {
    let cluster = Cluster::new("disturbed").await?;
    let hub = cluster.hub();
    hub.start().await?;
    let dir = cluster.site().dir.clone();
    let begun = |name: &'static str| {
        let dir = dir.clone();
        async move {
            eventually("the backup has begun", 20, async || Ok(dir.join(format!("{name}.copy")).exists()))
                .await
        }
    };
    let path = |name: &str| dir.join(name).to_string_lossy().into_owned();

    // The hub and its server die.
    let (made, killed) = tokio::join!(finish(hub.command(&["backup", &path("one")]), TIMEOUT_S), async {
        begun("one").await?;
        hub.kill9().await
    });
    killed?;
    let made = made?;
    println!("the hub was killed meanwhile: success {}, {}", made.success, made.stderr);
    let wanted = if made.success { vec![dir.join("one")] } else { Vec::new() };
    anyhow::ensure!(left(&dir, "one")? == wanted, "left: {:?}", left(&dir, "one")?);
    hub.start().await?;

    // The backup dies, in each of its phases; the next one clears up after it.
    for after in KILLED_AFTER_MS.map(Duration::from_millis) {
        let mut child = hub.command(&["backup", &path("two")]).spawn()?;
        begun("two").await?;
        tokio::time::sleep(after).await;
        let ended = child.try_wait()?.is_some();
        child.kill().await?;
        anyhow::ensure!(ended || !dir.join("two").exists(), "half a backup under its name");
        cluster.kubectl_ok(&["get", "namespaces", "--request-timeout=5s"]).await?;
        let _ = std::fs::remove_file(dir.join("two"));
    }
    finish(hub.command(&["backup", &path("two")]), TIMEOUT_S).await?.ok()?;
    anyhow::ensure!(left(&dir, "two")? == [dir.join("two")], "left: {:?}", left(&dir, "two")?);

    // Two at once: one waits for nobody and says so, or both are whole.
    let (three, four) = (path("three"), path("four"));
    let (one, other) = tokio::join!(
        finish(hub.command(&["backup", &three]), TIMEOUT_S),
        finish(hub.command(&["backup", &four]), TIMEOUT_S)
    );
    for made in [one?, other?] {
        anyhow::ensure!(made.success || made.stderr.contains("EW-BACKUP-BUSY"), "{}", made.stderr);
    }

    // What is no whole backup is refused, and the directory stays as it was.
    let whole = std::fs::read(dir.join("two"))?;
    std::fs::write(dir.join("cut"), &whole[..whole.len() / 2])?;
    std::fs::write(dir.join("foreign"), "hello")?;
    hub.stop().await?;
    finish(hub.command(&["backup", &path("stopped")]), TIMEOUT_S).await?.ok()?;
    finish(hub.command(&["restore", "--check", &path("stopped")]), TIMEOUT_S).await?.ok()?;
    hub.destroy().await?;
    for (name, code) in [("cut", "EW-BACKUP-TRUNCATED"), ("foreign", "EW-BACKUP-FOREIGN")] {
        let refused = finish(hub.command(&["restore", &path(name)]), TIMEOUT_S).await?;
        anyhow::ensure!(!refused.success && refused.stderr.contains(code), "{name}: {}", refused.stderr);
        anyhow::ensure!(!hub.data_dir().exists(), "{name} left something");
    }
    // An interrupted restore is no hub.
    std::fs::create_dir_all(hub.data_dir().join("restoring"))?;
    anyhow::ensure!(hub.start().await.is_err(), "a hub started beside half a restore");
    hub.kill9().await?;
    finish(hub.command(&["restore", &path("two"), "--force"]), TIMEOUT_S).await?.ok()?;
    hub.start().await?;
    cluster.done().await
}
