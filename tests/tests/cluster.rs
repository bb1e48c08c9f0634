//! The cluster itself: a node joins, runs a pod, is hurt in every way, and nothing is left behind.

use tests::cluster::{Cluster, eventually};

const POD: &str = r#"{"apiVersion": "v1", "kind": "Pod",
  "metadata": {"name": "one", "namespace": "default"},
  "spec": {"nodeName": "edge-a", "terminationGracePeriodSeconds": 1, "containers": [{"name": "main",
    "image": "docker.io/library/busybox:demo", "imagePullPolicy": "Never",
    "command": ["/bin/sh", "-c", "trap 'exit 0' TERM; while true; do date; sleep 1 & wait $!; done"]}]}}"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_survives_what_is_done_to_its_node() {
    let cluster = Cluster::new("cluster").await.unwrap();
    let dir = cluster.site().dir.clone();
    cluster.up(&["edge-a"]).await.unwrap();
    let edge = cluster.edge("edge-a").unwrap();
    cluster.apply(POD).await.unwrap();
    let one = async || edge.container_of("default", "one");
    let first = eventually("the pod runs", 30, one).await.unwrap();

    edge.cut().unwrap();
    cluster.ready("edge-a", "Unknown").await.unwrap();
    edge.kill9_all().await.unwrap();
    edge.start().await.unwrap();
    let again = eventually("containerd is back", 30, one).await.unwrap();
    assert_eq!((&first.id, first.pid), (&again.id, again.pid), "the same container, never restarted");

    edge.reboot().await.unwrap();
    edge.start().await.unwrap();
    let booted = eventually("the pod is back with no hub", 30, one).await.unwrap();
    assert_ne!(booted.pid, first.pid);
    edge.heal().unwrap();
    cluster.ready("edge-a", "True").await.unwrap();
    cluster.done().await.unwrap();
    assert!(!dir.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_can_be_slow_and_can_be_reset() {
    let cluster = Cluster::new("link").await.unwrap();
    cluster.up(&["edge-a"]).await.unwrap();
    let edge = cluster.edge("edge-a").unwrap();
    edge.throttle(64).await.unwrap();
    eventually("both accounts of the leaf come through the proxy", 30, async || Ok(edge.connections() >= 2))
        .await
        .unwrap();
    // In the middle of the handshake, after which the server may never try again by itself: the node's watchdog does.
    edge.polite_cut().unwrap();
    cluster.ready("edge-a", "Unknown").await.unwrap();
    edge.heal().unwrap();
    cluster.ready("edge-a", "True").await.unwrap();

    let dir = cluster.site().dir.clone();
    let agent = edge.agent_pid().await.unwrap();
    edge.stop_agent().await.unwrap();
    assert!(!std::path::Path::new(&format!("/proc/{agent}")).exists());
    drop(edge);
    cluster.done().await.unwrap();
    assert!(!dir.exists());
}
