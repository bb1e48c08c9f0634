//! What a pod gets of Kubernetes, through unmodified kubectl, on a real node.

use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};
use tests::cluster::{Cluster, Edge, eventually};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use crate::support::{BUSYBOX, IDLE, field, field_is, pod, runs, shell};

#[tokio::test(flavor = "multi_thread")]
async fn logs_exec_and_restarts() -> anyhow::Result<()> {
    let cluster = Cluster::new("kubectl").await?;
    cluster.up(&["edge-a"]).await?;
    let edge = cluster.edge("edge-a")?;
    run_and_logs(&cluster).await?;
    long_log(&cluster, &edge).await?;
    exec(&cluster, &edge).await?;
    restarts(&cluster).await?;
    cluster.done().await
}

async fn run_and_logs(cluster: &Cluster) -> anyhow::Result<()> {
    let image = format!("--image={BUSYBOX}");
    let line = "i=0; while [ $i -lt 20 ]; do echo line $i; i=$((i+1)); done; trap 'exit 0' TERM; while true; do echo tick; sleep 0.2 & wait $!; done";
    cluster
        .kubectl_ok(&[
            "run",
            "talk",
            &image,
            "--image-pull-policy=Never",
            "--command",
            "--",
            "/bin/sh",
            "-c",
            line,
        ])
        .await?;
    cluster.kubectl_ok(&["wait", "pod/talk", "--for=condition=Ready", "--timeout=60s"]).await?;
    eventually("the log has its lines", 20, async || {
        let all = cluster.kubectl_ok(&["logs", "talk"]).await?;
        // Two ticks: the next question is for the last two lines.
        let ticks = all.lines().filter(|line| *line == "tick").count();
        Ok(all.lines().take(20).eq((0..20).map(|n| format!("line {n}"))) && ticks >= 2)
    })
    .await?;
    let tail = cluster.kubectl_ok(&["logs", "talk", "--tail=2"]).await?;
    anyhow::ensure!(tail == "tick\ntick\n", "--tail=2 is {tail:?}");
    eventually("the first lines are older than a second", 20, async || {
        let recent = cluster.kubectl_ok(&["logs", "talk", "--since=1s"]).await?;
        Ok(recent.contains("tick") && !recent.contains("line"))
    })
    .await?;
    let stamped = cluster.kubectl_ok(&["logs", "talk", "--tail=1", "--timestamps"]).await?;
    anyhow::ensure!(stamped.starts_with("20") && stamped.trim_end().ends_with("Z tick"), "{stamped:?}");
    let other = cluster.kubectl(&["logs", "talk", "-c", "nobody"]).await?;
    anyhow::ensure!(!other.success && other.stderr.contains("nobody"), "{}", other.stderr);

    let mut following = cluster.kubectl_command(&["logs", "-f", "talk", "-c", "talk", "--tail=1"]);
    let mut following = following.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
    let mut lines = BufReader::new(following.stdout.take().context("its output")?).lines();
    for _ in 0..5 {
        let line = tokio::time::timeout(Duration::from_secs(10), lines.next_line()).await??;
        anyhow::ensure!(line.as_deref() == Some("tick"), "{line:?}");
    }
    // The end of the container is the end of its log.
    cluster.kubectl_ok(&["delete", "pod", "talk"]).await?;
    tokio::time::timeout(Duration::from_secs(15), async {
        while lines.next_line().await?.is_some() {}
        anyhow::Ok(())
    })
    .await
    .context("`logs -f` ends with the container")??;
    following.wait().await?;
    Ok(())
}

/// More than one log file holds: it is rotated, so that no pod fills the disk, and read across the files.
async fn long_log(cluster: &Cluster, edge: &Edge) -> anyhow::Result<()> {
    const LINES: usize = 24_000;
    let line = format!("yes $(head -c 999 /dev/zero | tr '\\0' x) | head -n {LINES}; echo the end; {IDLE}");
    cluster.apply(&pod("long", "edge-a", &line).to_string()).await?;
    runs(cluster, edge, "default", "long").await?;
    eventually("the log has its last line", 60, async || {
        Ok(cluster.kubectl_ok(&["logs", "long", "--tail=1"]).await? == "the end\n")
    })
    .await?;
    let all = cluster.kubectl_ok(&["logs", "long"]).await?;
    anyhow::ensure!(
        all.lines().count() == LINES + 1,
        "{} lines instead of {}",
        all.lines().count(),
        LINES + 1
    );
    anyhow::ensure!(all.lines().take(LINES).all(|line| line.len() == 999), "a line was torn");
    let find = [
        "find",
        &*edge.data_dir().to_string_lossy(),
        "-path",
        "*long*",
        "-name",
        "*.log*",
        "-size",
        "+4000k",
    ]
    .map(str::to_owned);
    let files = edge.exec(&find.each_ref().map(String::as_str))?;
    anyhow::ensure!(files.lines().count() >= 2, "the log was not rotated: {files}");
    cluster.kubectl_ok(&["delete", "pod", "long"]).await?;
    Ok(())
}

async fn exec(cluster: &Cluster, edge: &Edge) -> anyhow::Result<()> {
    let mut two = pod("two", "edge-a", IDLE);
    two["spec"]["containers"] = json!([shell("first", IDLE), shell("second", IDLE)]);
    cluster.apply(&two.to_string()).await?;
    cluster.kubectl_ok(&["wait", "pod/two", "--for=condition=Ready", "--timeout=60s"]).await?;
    let said = cluster
        .kubectl(&["exec", "two", "-c", "second", "--", "sh", "-c", "echo out; echo err >&2; exit 7"])
        .await?;
    anyhow::ensure!(said.stdout == "out\n" && said.stderr.contains("err"), "{said:?}");
    let mut command = cluster.kubectl_command(&["exec", "two", "-c", "second", "--", "sh", "-c", "exit 7"]);
    let status = command.stdin(Stdio::null()).stderr(Stdio::null()).status().await?;
    anyhow::ensure!(status.code() == Some(7), "the exit code is {status}");

    // Standard input goes in whole, and its end too.
    let mut command = cluster.kubectl_command(&["exec", "-i", "two", "-c", "first", "--", "wc", "-c"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
    child.stdin.take().context("its input")?.write_all(&vec![b'x'; 200_000]).await?;
    let output = tokio::time::timeout(Duration::from_secs(30), child.wait_with_output()).await??;
    anyhow::ensure!(String::from_utf8_lossy(&output.stdout).trim() == "200000", "{output:?}");
    let missing = cluster.kubectl(&["exec", "two", "-c", "first", "--", "no-such-program"]).await?;
    anyhow::ensure!(!missing.success && missing.stderr.contains("no-such-program"), "{}", missing.stderr);

    // Both containers have one network.
    cluster
        .kubectl_ok(&[
            "exec",
            "two",
            "-c",
            "first",
            "--",
            "sh",
            "-c",
            "(echo over lo | nc -l -p 7000 >/dev/null 2>&1) &",
        ])
        .await?;
    eventually("the other container reaches it by 127.0.0.1", 15, async || {
        let heard = ["exec", "two", "-c", "second", "--", "sh", "-c", "nc -w 2 127.0.0.1 7000 </dev/null"];
        Ok(cluster.kubectl_ok(&heard).await?.trim() == "over lo")
    })
    .await?;
    let address = field(cluster, "two", ".status.podIP").await?;
    let inside =
        cluster.kubectl_ok(&["exec", "two", "-c", "first", "--", "ip", "-4", "-o", "address"]).await?;
    anyhow::ensure!(inside.contains(&format!("{address}/")), "{address} is not in {inside}");
    anyhow::ensure!(edge.running()?.iter().filter(|running| running.pod == "two").count() == 2);
    cluster.kubectl_ok(&["delete", "pod", "two"]).await?;
    Ok(())
}

async fn restarts(cluster: &Cluster) -> anyhow::Result<()> {
    let state = |path: &str| format!(".status.containerStatuses[0].{path}");
    cluster.apply(&pod("crash", "edge-a", "echo going down; exit 5").to_string()).await?;
    let mut done = pod("done", "edge-a", "exit 0");
    done["spec"]["restartPolicy"] = json!("OnFailure");
    let mut failed = pod("failed", "edge-a", "exit 9");
    failed["spec"]["restartPolicy"] = json!("Never");
    for pod in [done, failed] {
        cluster.apply(&pod.to_string()).await?;
    }
    field_is(cluster, "done", ".status.phase", "Succeeded").await?;
    field_is(cluster, "done", &state("restartCount"), "0").await?;
    field_is(cluster, "failed", ".status.phase", "Failed").await?;
    field_is(cluster, "failed", &state("state.terminated.exitCode"), "9").await?;
    field_is(cluster, "crash", &state("state.waiting.reason"), "CrashLoopBackOff").await?;
    field_is(cluster, "crash", &state("lastState.terminated.exitCode"), "5").await?;
    let table = cluster.kubectl_ok(&["get", "pods"]).await?;
    let row = |name: &str| table.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
    anyhow::ensure!(row("crash").contains("CrashLoopBackOff"), "{table}");
    anyhow::ensure!(row("done").contains("Completed") && row("failed").contains("Error"), "{table}");
    let previous = cluster.kubectl_ok(&["logs", "crash", "--previous"]).await?;
    anyhow::ensure!(previous == "going down\n", "{previous:?}");
    // Events come up behind reports.
    for word in ["CrashLoopBackOff", "Exit Code:    5", "Back-off restarting failed container", "Started"] {
        eventually(&format!("kubectl describe says {word:?}"), 15, async || {
            Ok(cluster.kubectl_ok(&["describe", "pod", "crash"]).await?.contains(word))
        })
        .await?;
    }
    cluster.kubectl_ok(&["delete", "pod", "crash", "done", "failed"]).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn environment_volumes_and_limits() -> anyhow::Result<()> {
    let cluster = Cluster::new("volumes").await?;
    cluster.up(&["edge-a"]).await?;
    let edge = cluster.edge("edge-a")?;
    let config = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "cm"},
        "data": {"colour": "blue", "shape": "round"}});
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "sec"}, "stringData": {"key": "hush"}});
    cluster.apply(&config.to_string()).await?;
    cluster.apply(&secret.to_string()).await?;
    let on_host = edge.host_dir("shared");
    std::fs::create_dir_all(&on_host)?;
    std::fs::write(on_host.join("from-host"), "hello")?;
    let everything = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "all", "namespace": "default"},
        "spec": {"nodeName": "edge-a", "terminationGracePeriodSeconds": 2,
            "initContainers": [{"name": "first", "image": BUSYBOX, "imagePullPolicy": "Never",
                "command": ["/bin/sh", "-c", "echo prepared > /scratch/init"],
                "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}]}],
            "containers": [
                {"name": "main", "image": BUSYBOX, "imagePullPolicy": "Never", "command": ["/bin/sh"], "args": ["-c", IDLE],
                 "workingDir": "/tmp",
                 "env": [{"name": "PLAIN", "value": "yes"}, {"name": "JOINED", "value": "$(PLAIN)-$(COLOUR)"},
                         {"name": "COLOUR", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "colour"}}},
                         {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "sec", "key": "key"}}}],
                 "envFrom": [{"configMapRef": {"name": "cm"}, "prefix": "CM_"}],
                 "resources": {"limits": {"cpu": "250m", "memory": "64Mi"}, "requests": {"cpu": "100m"}},
                 "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}, {"name": "cm", "mountPath": "/cm"},
                    {"name": "sec", "mountPath": "/sec", "readOnly": true}, {"name": "host", "mountPath": "/host"}]},
                {"name": "second", "image": BUSYBOX, "imagePullPolicy": "Never", "command": ["/bin/sh", "-c", IDLE],
                 "volumeMounts": [{"name": "scratch", "mountPath": "/elsewhere"}]}],
            "volumes": [{"name": "scratch", "emptyDir": {}}, {"name": "cm", "configMap": {"name": "cm"}},
                {"name": "sec", "secret": {"secretName": "sec"}}, {"name": "host", "hostPath": {"path": on_host}}]}});
    cluster.apply(&everything.to_string()).await?;
    cluster.kubectl_ok(&["wait", "pod/all", "--for=condition=Ready", "--timeout=60s"]).await?;
    let say = async |container: &str, line: &str| {
        let said = cluster.kubectl_ok(&["exec", "all", "-c", container, "--", "sh", "-c", line]).await?;
        anyhow::Ok(said.trim().to_owned())
    };
    for (container, line, want) in [
        ("main", "echo $PLAIN $COLOUR $KEY $CM_shape", "yes blue hush round"),
        ("main", "cat /cm/colour /sec/key /host/from-host /scratch/init", "bluehushhelloprepared"),
        ("main", "echo hi > /scratch/said; echo back > /host/from-pod; pwd", "/tmp"),
        ("second", "cat /elsewhere/said", "hi"),
        ("main", "touch /sec/x 2>/dev/null || echo refused", "refused"),
        ("main", "hostname", "all"),
    ] {
        let said = say(container, line).await?;
        anyhow::ensure!(said == want, "{container}: {line}: {said:?}, not {want:?}");
    }
    anyhow::ensure!(std::fs::read_to_string(on_host.join("from-pod"))? == "back\n");
    let resolv = say("main", "cat /etc/resolv.conf").await?;
    anyhow::ensure!(
        resolv == std::fs::read_to_string("/etc/resolv.conf")?.trim(),
        "resolv.conf is {resolv:?}"
    );
    let main =
        edge.running()?.into_iter().find(|running| running.container == "main").context("main runs")?;
    let limit = cgroup(main.pid, "memory", "memory.limit_in_bytes", "memory.max")?;
    anyhow::ensure!(limit == (64 * 1024 * 1024).to_string(), "memory limit {limit}");
    let quota = cgroup(main.pid, "cpu", "cpu.cfs_quota_us", "cpu.max")?;
    anyhow::ensure!(quota == "25000" || quota == "25000 100000", "cpu limit {quota}");

    oom(&cluster).await?;
    host_network(&cluster, &edge).await?;
    let mut missing = pod("missing", "edge-a", "true");
    missing["spec"]["containers"][0]["envFrom"] = json!([{"configMapRef": {"name": "later"}}]);
    cluster.apply(&missing.to_string()).await?;
    eventually("the pod waits for its ConfigMap, and names it", 30, async || {
        let pod = cluster.kubectl_json(&["get", "pod", "missing"]).await?;
        let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
        Ok(waiting["reason"] == "CreateContainerConfigError"
            && waiting["message"].to_string().contains("later"))
    })
    .await?;
    cluster.kubectl_ok(&["create", "configmap", "later", "--from-literal=a=b"]).await?;
    field_is(&cluster, "missing", ".status.containerStatuses[0].lastState.terminated.exitCode", "0").await?;
    cluster.done().await
}

/// A limit of the process's cgroup, version 1 or 2.
fn cgroup(pid: i32, controller: &str, v1: &str, v2: &str) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    for line in text.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let file = match controllers {
            "" => format!("/sys/fs/cgroup{path}/{v2}"),
            _ if controllers.split(',').any(|name| name == controller) => {
                format!("/sys/fs/cgroup/{controllers}{path}/{v1}")
            }
            _ => continue,
        };
        if let Ok(text) = std::fs::read_to_string(&file) {
            return Ok(text.trim().to_owned());
        }
    }
    anyhow::bail!("no {controller} in {text}")
}

async fn oom(cluster: &Cluster) -> anyhow::Result<()> {
    let mut greedy = pod("greedy", "edge-a", "x=a; while true; do x=$x$x; done");
    greedy["spec"]["restartPolicy"] = json!("Never");
    greedy["spec"]["containers"][0]["resources"] = json!({"limits": {"memory": "16Mi"}});
    cluster.apply(&greedy.to_string()).await?;
    field_is(cluster, "greedy", ".status.containerStatuses[0].state.terminated.reason", "OOMKilled").await?;
    field_is(cluster, "greedy", ".status.containerStatuses[0].state.terminated.exitCode", "137").await
}

async fn host_network(cluster: &Cluster, edge: &Edge) -> anyhow::Result<()> {
    let mut host = pod("hostly", "edge-a", IDLE);
    host["spec"]["hostNetwork"] = json!(true);
    cluster.apply(&host.to_string()).await?;
    let running = runs(cluster, edge, "default", "hostly").await?;
    let same = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net"));
    let agent = edge.agent_pid().await.context("the agent runs")?.to_string();
    anyhow::ensure!(same(&running.pid.to_string())? == same(&agent)?, "it has the node's own network");
    let address = field(cluster, "hostly", ".status.podIP").await?;
    let node: Value = cluster.kubectl_json(&["get", "node", "edge-a"]).await?;
    anyhow::ensure!(node["status"]["addresses"].to_string().contains(&format!("{address:?}")), "{address}");
    Ok(())
}
