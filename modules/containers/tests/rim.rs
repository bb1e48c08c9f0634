//! The rim on a real, private containerd: images, a pod's life, logs, exec, kill -9 of containerd, and nothing left.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a panic is how a test fails, in its helpers too"
)]

mod support;

use std::time::{Duration, Instant};

use containers::referenced::Referenced;
use containers::runtime::Runtime;
use containers::runtime::container::{ContainerState, StartContainer};
use containers::runtime::exec::ExecRequest;
use containers::runtime::log_reader::{LogOptions, LogReader};
use containers::runtime::sandbox::SandboxRequest;
use containers::{env, volumes};
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;
use support::{Containerd, docker_archive, eventually, oci_layout};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const IMAGE: &str = "ew/busybox:1";

fn pod(uid: &str, container: serde_json::Value, rest: serde_json::Value) -> Pod {
    let mut spec = json!({"containers": [container]});
    for (key, value) in rest.as_object().unwrap() {
        spec[key] = value.clone();
    }
    serde_json::from_value(json!({
        "metadata": {"name": format!("p-{uid}"), "namespace": "default", "uid": uid}, "spec": spec
    }))
    .unwrap()
}

/// What the module will do, in one go.
async fn run(runtime: &Runtime, pod: &Pod, referenced: &Referenced, attempt: u32) -> (String, String) {
    let uid = pod.metadata.uid.clone().unwrap();
    let spec = pod.spec.as_ref().unwrap();
    let container = &spec.containers[0];
    let image = runtime.image(container.image.as_deref().unwrap(), "IfNotPresent").await.unwrap();
    let request = SandboxRequest { host_network: spec.host_network.unwrap_or(false), host_ipc: false };
    let sandbox = runtime.ensure_sandbox(&uid, request).await.unwrap();
    let dir = runtime.pod_dir(&uid);
    volumes::prepare(pod, &dir, referenced).unwrap();
    let mut mounts = volumes::mounts(pod, container, &dir).unwrap();
    mounts.extend(volumes::etc_files(pod, &dir, "web", &sandbox.ip, &runtime.config().resolv_conf).unwrap());
    let facts = env::Facts { pod_ip: sandbox.ip.clone(), ..Default::default() };
    let env = env::resolve(pod, container, referenced, &facts).unwrap();
    let id = runtime
        .start_container(&StartContainer {
            pod,
            container,
            attempt,
            spec_hash: "h1",
            image: &image,
            env: &env,
            mounts: &mounts,
            sandbox: &sandbox,
            hostname: "web",
        })
        .await
        .unwrap();
    (id, sandbox.ip)
}

async fn log(runtime: &Runtime, id: &str, options: LogOptions) -> String {
    let path = runtime.find(id).await.unwrap().unwrap().log_path;
    let (_sender, running) = tokio::sync::watch::channel(false);
    let mut reader = LogReader::open(&path, options, running).unwrap();
    let mut out = Vec::new();
    while let Some(bytes) = reader.next().await.unwrap() {
        out.extend_from_slice(&bytes);
    }
    String::from_utf8_lossy(&out).into_owned()
}

async fn exec(
    runtime: &Runtime,
    id: &str,
    command: &[&str],
    input: Option<&str>,
    tty: bool,
) -> (String, String, i32) {
    let request = ExecRequest {
        id: format!("x{}", rand()),
        command: command.iter().map(|s| (*s).to_owned()).collect(),
        stdin: input.is_some(),
        tty,
    };
    let mut exec = runtime.exec(id, &request).await.unwrap();
    if let Some(input) = input {
        let mut stdin = exec.stdin.take().unwrap();
        stdin.write_all(input.as_bytes()).await.unwrap();
        drop(stdin);
        runtime.exec_close_stdin(id, &exec.id).await.unwrap();
    }
    let (mut out, mut err) = (String::new(), String::new());
    let read = async {
        exec.stdout.read_to_string(&mut out).await.unwrap();
        if let Some(stderr) = &mut exec.stderr {
            stderr.read_to_string(&mut err).await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(10), read).await.expect("exec's output ends");
    let code = runtime.exec_wait(id, &exec.id).await.unwrap();
    runtime.exec_finish(exec).await.unwrap();
    (out, err, code)
}

fn rand() -> u128 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos()
}

async fn ended(runtime: &Runtime, id: &str) -> containers::runtime::container::Exit {
    tokio::time::timeout(Duration::from_secs(15), runtime.wait(id)).await.expect("it ends").unwrap();
    runtime.reap(id).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_lives_survives_and_leaves_nothing() {
    let mut containerd = Containerd::start("ewt-rim");
    let runtime = containerd.connect("10.211.7.0/24").await;

    // Absent images are named.
    let absent = runtime.image("nowhere:1", "Never").await.unwrap_err();
    assert_eq!(absent.reason(), "ErrImageNeverPull");
    assert!(absent.to_string().contains("docker.io/library/nowhere:1"), "{absent}");
    assert_eq!(runtime.image("nowhere:1", "IfNotPresent").await.unwrap_err().reason(), "ErrImagePull");
    let rubbish = containerd.path().join("rubbish.tar");
    std::fs::write(&rubbish, [7; 5000]).unwrap();
    assert!(runtime.import_archive(&rubbish).await.unwrap_err().to_string().contains("rubbish.tar"));

    // Both forms of archive.
    let names = runtime.import_archive(&docker_archive(containerd.path(), IMAGE)).await.unwrap();
    assert_eq!(names, ["docker.io/ew/busybox:1"]);
    let names = runtime.import_archive(&oci_layout(containerd.path(), "ew/as-web:1", "web")).await.unwrap();
    assert_eq!(names, ["docker.io/ew/as-web:1"]);
    runtime.import_archive(&docker_archive(containerd.path(), IMAGE)).await.unwrap();
    assert!(
        containerd.ctr(&["images", "check"]).contains("complete"),
        "{}",
        containerd.ctr(&["images", "check"])
    );

    // A pod with environment, a ConfigMap volume and limits.
    let mut referenced = Referenced::default();
    referenced.config_maps.insert("cm".into(), [("key".into(), "one".into())].into());
    let script = "echo out-$GREETING; echo err >&2; trap 'echo bye; exit 3' TERM; n=0; \
                  while true; do n=$((n+1)); echo tick $n; sleep 0.1; done";
    let web = pod(
        "web",
        json!({"name": "main", "image": IMAGE, "command": ["/bin/sh", "-c", script],
            "env": [{"name": "GREETING", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "key"}}},
                    {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
            "resources": {"limits": {"cpu": "500m", "memory": "64Mi"}},
            "volumeMounts": [{"name": "v", "mountPath": "/cfg"}]}),
        json!({"volumes": [{"name": "v", "configMap": {"name": "cm"}}]}),
    );
    let begun = Instant::now();
    let (id, ip) = run(&runtime, &web, &referenced, 0).await;
    println!("pod started in {:?}", begun.elapsed());
    assert!(ip.starts_with("10.211.7."), "{ip}");
    assert_eq!(
        run(&runtime, &web, &referenced, 0).await,
        (id.clone(), ip.clone()),
        "asking again changes nothing"
    );
    assert!(containerd.ctr(&["tasks", "ls"]).contains("RUNNING"));

    eventually("the first lines", async || {
        let text = log(&runtime, &id, LogOptions::default()).await;
        (text.contains("out-one") && text.contains("err\n") && text.contains("tick 2")).then_some(())
    })
    .await;
    let tail =
        log(&runtime, &id, LogOptions { tail_lines: Some(1), timestamps: true, ..Default::default() }).await;
    assert!(tail.contains("Z tick ") && tail.lines().count() == 1, "{tail}");

    // Inside: exec with input, exit code, both streams; host name, address, files, limit.
    let (out, err, code) =
        exec(&runtime, &id, &["sh", "-c", "cat; echo bad >&2; exit 7"], Some("hello"), false).await;
    assert_eq!((out.as_str(), err.as_str(), code), ("hello", "bad\n", 7));
    let look = "hostname; cat /cfg/key; echo; cat /etc/hosts; ip -4 addr show eth0; echo $IP; ls /proc/1/ns >/dev/null";
    let (out, _, code) = exec(&runtime, &id, &["sh", "-c", look], None, false).await;
    assert_eq!(code, 0, "{out}");
    for want in ["web\none\n", &format!("{ip}\tweb"), &format!("inet {ip}/24")] {
        assert!(out.contains(want), "{want:?} in {out}");
    }
    let (out, _, code) =
        exec(&runtime, &id, &["sh", "-c", "test -t 0 && echo terminal; exit 4"], None, true).await;
    assert_eq!((out.trim(), code), ("terminal", 4));
    let bad = ExecRequest { id: "bad".into(), command: vec!["/no/such".into()], ..Default::default() };
    assert!(runtime.exec(&id, &bad).await.err().unwrap().to_string().contains("/no/such"));

    // An edit reaches the mounted file.
    referenced.config_maps.insert("cm".into(), [("key".into(), "two".into())].into());
    volumes::prepare(&web, &runtime.pod_dir("web"), &referenced).unwrap();
    let (out, _, _) = exec(&runtime, &id, &["cat", "/cfg/key"], None, false).await;
    assert_eq!(out, "two");

    // kill -9 of containerd, and our own handle forgotten: the same container, not one line lost.
    containerd.kill_9();
    assert!(runtime.containers().await.unwrap_err().is_unreachable());
    containerd.restart();
    let runtime = containerd.connect("10.211.7.0/24").await;
    let found = runtime.containers().await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].id.as_str(), found[0].state), (id.as_str(), ContainerState::Running));
    assert_eq!((found[0].pod_uid.as_str(), found[0].spec_hash.as_str(), found[0].attempt), ("web", "h1", 0));
    assert_eq!(run(&runtime, &web, &referenced, 0).await, (id.clone(), ip.clone()), "adopted");
    let ticks = async || {
        let text = log(&runtime, &id, LogOptions::default()).await;
        text.lines()
            .filter_map(|l| l.strip_prefix("tick ").and_then(|n| n.parse::<u32>().ok()))
            .collect::<Vec<_>>()
    };
    let now = ticks().await.len();
    eventually("it goes on", async || (ticks().await.len() > now + 3).then_some(())).await;
    let all = ticks().await;
    assert!(all.iter().enumerate().all(|(n, tick)| *tick as usize == n + 1), "no line lost or doubled");
    let (out, _, _) = exec(&runtime, &id, &["echo", "again"], None, false).await;
    assert_eq!(out, "again\n");

    // SIGTERM within grace; its last words are in the log; the record keeps the exit.
    let exit = runtime.stop_container(&id, Duration::from_secs(5)).await.unwrap().unwrap();
    assert_eq!((exit.code, exit.oom_killed), (3, false));
    assert!(log(&runtime, &id, LogOptions::default()).await.ends_with("bye\n"));
    let kept = runtime.find(&id).await.unwrap().unwrap();
    assert_eq!(kept.state, ContainerState::Exited(exit));

    // Deaf to SIGTERM: killed after its grace. As the image's user, by name. On the node's network.
    let deaf = pod(
        "deaf",
        json!({"name": "main", "image": "ew/as-web:1", "command": ["sh", "-c", "trap '' TERM; id -u; echo $FROM_IMAGE; while :; do sleep 1; done"]}),
        json!({"hostNetwork": true}),
    );
    let (deaf_id, ip) = run(&runtime, &deaf, &referenced, 0).await;
    assert_eq!(ip, "");
    eventually("its user", async || {
        (log(&runtime, &deaf_id, LogOptions::default()).await == "101\nyes\n").then_some(())
    })
    .await;
    let exit = runtime.stop_container(&deaf_id, Duration::from_millis(300)).await.unwrap().unwrap();
    assert_eq!(exit.code, 137);

    // Out of memory is told from other deaths.
    let hungry = pod(
        "hungry",
        json!({"name": "main", "image": IMAGE, "command": ["sh", "-c", "x=a; while :; do x=$x$x; done"],
            "resources": {"limits": {"memory": "16Mi"}}}),
        json!({}),
    );
    let (hungry_id, _) = run(&runtime, &hungry, &referenced, 0).await;
    let exit = ended(&runtime, &hungry_id).await;
    println!("hungry: {exit:?}");
    assert!(exit.oom_killed && exit.code != 0, "{exit:?}");

    // What a killed shim left in runc does not stand in the way.
    let stale = containers::runtime::container::container_id("flood", "main", 0);
    let left = std::path::Path::new("/run/containerd/runc").join(&runtime.config().namespace).join(stale);
    std::fs::create_dir_all(left).unwrap();

    // A short-lived one loses nothing of what it wrote last, however much; logs rotate.
    let lines = 20_000;
    let flood = pod(
        "flood",
        json!({"name": "main", "image": IMAGE, "command": ["sh", "-c", format!("i=0; while [ $i -lt {lines} ]; do i=$((i+1)); echo line $i; done")]}),
        json!({}),
    );
    let (flood_id, _) = run(&runtime, &flood, &referenced, 0).await;
    assert_eq!(ended(&runtime, &flood_id).await.code, 0);
    let text = log(&runtime, &flood_id, LogOptions::default()).await;
    // The start that found what was left told so in the log.
    assert_eq!(text.lines().filter(|line| line.starts_with("line ")).count(), lines);
    assert!(text.ends_with(&format!("line {lines}\n")));

    // A container that dies while containerd is away: its end is found later.
    let brief = pod(
        "brief",
        json!({"name": "main", "image": IMAGE, "command": ["sh", "-c", "sleep 0.5; exit 9"]}),
        json!({}),
    );
    let (brief_id, _) = run(&runtime, &brief, &referenced, 0).await;
    containerd.kill_9();
    tokio::time::sleep(Duration::from_millis(800)).await;
    containerd.restart();
    let runtime = containerd.connect("10.211.7.0/24").await;
    assert_eq!(runtime.reap(&brief_id).await.unwrap().unwrap().code, 9);

    // A reboot takes the pinned namespaces and leaves their files: made anew, the old address given back.
    let pins = containerd.path().join("data/sandboxes/brief");
    for name in ["net", "uts", "ipc"] {
        nix::mount::umount2(&pins.join(name), nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
    let (again_id, _) = run(&runtime, &brief, &referenced, 1).await;
    assert_eq!(ended(&runtime, &again_id).await.code, 9);

    // A container with a terminal is logged too.
    let script = "test -t 1 && echo terminal; echo $TERM";
    let tty = json!({"name": "main", "image": IMAGE, "tty": true, "command": ["sh", "-c", script]});
    let tty = pod("tty", tty, json!({"restartPolicy": "Never"}));
    let (tty_id, _) = run(&runtime, &tty, &referenced, 0).await;
    assert_eq!(ended(&runtime, &tty_id).await.code, 0);
    assert_eq!(log(&runtime, &tty_id, LogOptions::default()).await, "terminal\r\nxterm\r\n");

    // Cleanup leaves nothing.
    for container in runtime.containers().await.unwrap() {
        runtime.remove_container(&container.id).await.unwrap();
    }
    for uid in runtime.sandboxes() {
        runtime.remove_sandbox(&uid).await.unwrap();
        volumes::remove(&runtime.pod_dir(&uid)).unwrap();
    }
    runtime.remove_network().await.unwrap();
    runtime.remove_cgroup_parent();
    eventually("no process is left", async || containerd.processes().is_empty().then_some(())).await;
    assert_eq!(containerd.mounts(), Vec::<String>::new());
    assert!(!std::path::Path::new("/sys/class/net/ewt-rim").exists());
    assert!(!std::path::Path::new("/sys/fs/cgroup/memory/ewt-rim").exists());
    let leases = containerd.path().join("data/cni/edgewire");
    let left = std::fs::read_dir(leases)
        .unwrap()
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().starts_with("10."))
        .count();
    assert_eq!(left, 0, "addresses are given back");
    assert_eq!(containerd.ctr(&["containers", "ls", "-q"]), "");
}
