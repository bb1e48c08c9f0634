//! What a workload gets of the bus: a credential of its own, for its namespace's subjects, on its node, for its life.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Context;
use async_nats::Message;
use bus::connection::{Bus, Login, dial};
use bus::module::Account;
use futures::{Stream, StreamExt};
use schemas::subject::{STREAM_FROM, STREAM_UPLINK};
use serde_json::json;
use tests::cluster::{Cluster, Operator, eventually};

use crate::support::{IDLE, gone, inside, loss_of, pod, runs, sensor, the_same};

/// A credential, as a container finds it in its environment.
#[derive(Debug, Clone)]
pub struct Credential {
    url: String,
    login: (String, String),
    inbox: String,
}

impl Credential {
    /// From `nats://user:password@address`.
    fn parse(url: &str, inbox: &str) -> anyhow::Result<Self> {
        let (user, address) =
            url.trim().trim_start_matches("nats://").split_once('@').context("a login in the URL")?;
        let (user, password) = user.split_once(':').context("a password in the URL")?;
        let login = (user.to_owned(), password.to_owned());
        Ok(Self { url: format!("nats://{address}"), login, inbox: inbox.trim().to_owned() })
    }

    /// Of a running pod, asked in its own shell.
    pub async fn of(cluster: &Cluster, namespace: &str, pod: &str) -> anyhow::Result<Self> {
        let env = ["exec", "-n", namespace, pod, "--", "sh", "-c", "echo $NATS_URL; echo $NATS_INBOX_PREFIX"];
        let said = cluster.kubectl_ok(&env).await?;
        let (url, inbox) =
            said.trim().split_once('\n').with_context(|| format!("two lines, not {said:?}"))?;
        Self::parse(url, inbox)
    }

    /// Connects with it, from within the node's namespace.
    pub async fn dial(&self) -> anyhow::Result<Bus> {
        let login = Login::Password { user: self.login.0.clone(), password: self.login.1.clone() };
        Ok(dial(&self.url, None, login, "e2e", self.inbox.clone(), Account::Work, "").await?)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_reaches_its_namespaces_subjects_and_no_others() -> anyhow::Result<()> {
    let cluster = Cluster::new("workload").await?;
    cluster.up(&["edge-a"]).await?;
    let edge = cluster.edge("edge-a")?;
    cluster.kubectl_ok(&["create", "namespace", "demo"]).await?;
    let mut talker = pod("talker", "edge-a", IDLE);
    talker["metadata"]["namespace"] = json!("demo");
    cluster.apply(&talker.to_string()).await?;
    cluster.apply(&pod("other", "edge-a", IDLE).to_string()).await?;
    runs(&cluster, &edge, "demo", "talker").await?;
    runs(&cluster, &edge, "default", "other").await?;
    let (own, operator) = (Credential::of(&cluster, "demo", "talker").await?, edge.operator()?);
    let other = Credential::of(&cluster, "default", "other").await?;
    anyhow::ensure!(own.login != other.login, "each pod has a login of its own");
    let theirs = own.clone();
    inside(&edge, async move || says(&theirs, &operator).await).await?;
    let (mine, theirs, operator) = (own.clone(), other.clone(), edge.operator()?);
    inside(&edge, async move || hears(&mine, &theirs, &operator).await).await?;
    let mine = own.clone();
    inside(&edge, async move || no_raw_jetstream(&mine).await).await?;
    let (mine, theirs) = (own.clone(), other.clone());
    inside(&edge, async move || has_answers_put_elsewhere(&mine, &theirs).await).await?;
    let row = eventually("what the server answered is counted", 60, async || {
        let row = loss_of(&cluster, "edge-a", STREAM_UPLINK).await?;
        Ok(row.filter(|row| row["dropped"]["answer"] == ANSWERS))
    });
    let row = row.await?;
    anyhow::ensure!(row["gaps"] == 0, "{row}");
    let came = cluster.stored(Account::Control, STREAM_FROM, "from.edge-a.default.>").await?;
    let came: Vec<&str> = came.iter().map(|stored| stored.subject.as_str()).collect();
    let said = ["from.edge-a.default.e2e", "from.edge-a.default.last"]; // by the operator and by their own pod
    anyhow::ensure!(came == said, "as pods of default: {came:?}");

    // Withdrawn when the pod is gone: the open connection too.
    let (mine, (opened, open), (gone_now, is_gone)) =
        (own.clone(), tokio::sync::oneshot::channel(), tokio::sync::oneshot::channel::<()>());
    let watching = tokio::spawn({
        let edge = edge.clone();
        async move {
            inside(&edge, async move || {
                let bus = mine.dial().await?;
                let _ = opened.send(());
                is_gone.await?;
                eventually("the open connection is ended", 15, async || {
                    Ok(bus.client().connection_state() != async_nats::connection::State::Connected)
                })
                .await?;
                anyhow::ensure!(mine.dial().await.is_err(), "the credential still opens the door");
                Ok(())
            })
            .await
        }
    });
    open.await?;
    cluster.kubectl_ok(&["delete", "pod", "talker", "-n", "demo"]).await?;
    gone(&edge, "demo", "talker").await?;
    let _ = gone_now.send(());
    watching.await??;
    inside(&edge, async move || other.dial().await.map(drop))
        .await
        .context("the other pod's credential still works")?;
    cluster.done().await
}

/// The subjects heard before `last`.
async fn until(ears: &mut (impl Stream<Item = Message> + Unpin), last: &str) -> anyhow::Result<Vec<String>> {
    let mut heard = Vec::new();
    let listening = async {
        loop {
            let subject = ears.next().await.context("the connection was closed")?.subject.to_string();
            if subject == last {
                return anyhow::Ok(());
            }
            heard.push(subject);
        }
    };
    let listened = tokio::time::timeout(Duration::from_secs(15), listening).await;
    listened.map_err(|_| anyhow::anyhow!("{last} is not heard, only {heard:?}"))??;
    Ok(heard)
}

/// What a pod may say, by what the operator hears.
async fn says(own: &Credential, operator: &Operator) -> anyhow::Result<()> {
    let (bus, judge) = (own.dial().await?, operator.dial(Account::Work).await?);
    let mut heard = judge.client().subscribe(">").await?;
    // A word of its own tells that the server has taken the subscription.
    judge.client().publish("local.ready", "".into()).await?;
    until(&mut heard, "local.ready").await?;
    // Who answers may write to inboxes: nobody hears another's, and their names are made by chance.
    let allowed = ["app.demo.e2e", "up.demo.e2e", "local.demo.e2e", "_INBOX.e2e"];
    let refused = [
        "app.default.e2e",
        "up.default.e2e",
        "local.default.e2e",
        "app.e2e",
        "anything.e2e",
        "from.edge-a.demo.e2e",
        "down.demo.e2e",
        "_down.demo.e2e",
        "stored.demo.e2e",
        "$JS.ACK.DOWN.default.1.2.3.4.e2e",
        "to.edge-a.demo.e2e",
        "ew.rep.containers.pod.e2e",
        "$KV.local.e2e",
        "$SYS.e2e",
    ];
    for subject in refused.iter().chain(&allowed).chain(&["app.demo.e2e.end"]) {
        bus.client().publish((*subject).to_owned(), "x".into()).await?;
    }
    bus.client().flush().await?;
    let said = until(&mut heard, "app.demo.e2e.end").await?;
    let subjects: BTreeSet<String> = said.into_iter().filter(|subject| subject.contains("e2e")).collect();
    let expected: BTreeSet<String> = allowed.iter().map(|subject| (*subject).to_owned()).collect();
    anyhow::ensure!(subjects == expected, "a pod of demo could say {subjects:?}");
    Ok(())
}

/// What a pod may hear, by what others say.
async fn hears(own: &Credential, other: &Credential, operator: &Operator) -> anyhow::Result<()> {
    let (bus, judge) = (own.dial().await?, operator.dial(Account::Work).await?);
    let mut ears = futures::stream::SelectAll::new();
    for filter in [
        ">",
        "app.>",
        "app.default.>",
        "up.>",
        "local.default.>",
        "down.default.>",
        "stored.default",
        "_INBOX.>",
        "app.demo.>",
        "local.demo.>",
    ] {
        ears.push(bus.client().subscribe(filter).await?);
    }
    ears.push(bus.client().subscribe(format!("{}.>", other.inbox)).await?);
    bus.client().publish("local.demo.ready", "".into()).await?;
    until(&mut ears, "local.demo.ready").await?;
    let others = [
        "app.default.e2e",
        "local.default.e2e",
        "down.default.e2e",
        "stored.default",
        "up.demo.e2e",
        "up.default.e2e",
        "_INBOX.e2e",
    ];
    for subject in others {
        judge.client().publish(subject, "x".into()).await?;
    }
    judge.client().publish(format!("{}.e2e", other.inbox), "x".into()).await?;
    judge.client().publish("local.demo.e2e", "x".into()).await?;
    judge.client().publish("app.demo.e2e.end", "x".into()).await?;
    judge.client().flush().await?;
    let heard = until(&mut ears, "app.demo.e2e.end").await?;
    anyhow::ensure!(heard == ["local.demo.e2e"], "a pod of demo heard {heard:?}");
    Ok(())
}

async fn no_raw_jetstream(own: &Credential) -> anyhow::Result<()> {
    let bus = own.dial().await?;
    for subject in [
        "$JS.API.INFO",
        "$JS.API.STREAM.NAMES",
        "$JS.API.STREAM.INFO.UPLINK",
        "$JS.edge-edge-a.API.INFO",
        "$JS.API.CONSUMER.MSG.NEXT.DOWN.demo",
        "$JS.API.CONSUMER.INFO.DOWN.demo",
    ] {
        let answer =
            tokio::time::timeout(Duration::from_secs(1), bus.client().request(subject, "".into())).await;
        anyhow::ensure!(!matches!(answer, Ok(Ok(_))), "{subject} answered a pod: {answer:?}");
    }
    // What it may say durably is acknowledged to it.
    let stored =
        bus.client().request("up.demo.e2e", "x".into()).await.context("a durable word is acknowledged")?;
    anyhow::ensure!(String::from_utf8_lossy(&stored.payload).contains("UPLINK"), "{:?}", stored.payload);
    Ok(())
}

/// How often a pod has the server's answer put where another namespace speaks.
const ANSWERS: u64 = 3;

async fn has_answers_put_elsewhere(own: &Credential, other: &Credential) -> anyhow::Result<()> {
    let (bus, theirs) = (own.dial().await?, other.dial().await?);
    for _ in 0..ANSWERS {
        bus.client().publish_with_reply("up.demo.e2e", "up.default.forged", "x".into()).await?;
    }
    bus.client().request("up.demo.e2e", "x".into()).await?;
    theirs.client().request("up.default.last", "x".into()).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn live_words_cross_between_two_edges_and_come_back_after_a_cut() -> anyhow::Result<()> {
    let cluster = Cluster::new("cross").await?;
    cluster.up(&["edge-a", "edge-b"]).await?;
    let (a, b) = (cluster.edge("edge-a")?, cluster.edge("edge-b")?);
    cluster.apply(&sensor(&a, 100).to_string()).await?;
    let mut display = pod("display", "edge-b", "");
    display["metadata"]["namespace"] = json!("demo");
    display["spec"]["containers"] = json!([{"name": "display", "image": "edgewire.local/display:demo",
        "imagePullPolicy": "Never", "env": [{"name": "EDGEWIRE_NAMESPACE", "value": "demo"}]}]);
    cluster.apply(&display.to_string()).await?;
    let sensing = runs(&cluster, &a, "demo", "sensor").await?;
    let showing = runs(&cluster, &b, "demo", "display").await?;
    let lines = async || {
        let text = cluster.kubectl_ok(&["logs", "-n", "demo", "display"]).await?;
        Ok::<_, anyhow::Error>(
            text.lines().filter(|line| line.starts_with("live app.demo.temp {\"n\":")).count(),
        )
    };
    eventually("the display on edge-b shows what the sensor on edge-a says", 30, async || {
        Ok(lines().await? > 10)
    })
    .await?;

    a.cut()?;
    cluster.ready("edge-a", "Unknown").await?;
    let before = lines().await?;
    a.heal()?;
    eventually("live words cross again", 60, async || Ok(lines().await? > before + 10)).await?;
    the_same(&a, &[&sensing], "on edge-a")?;
    the_same(&b, &[&showing], "on edge-b")?;
    cluster.done().await
}
