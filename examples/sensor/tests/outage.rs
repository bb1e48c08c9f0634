//! The sensor's own list is what an outage is judged by, so it is judged here first: on a real `nats-server` that is
//! killed under it, and with the sensor itself killed, every number in the list is in the stream once and in order.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // a test fails by panicking

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const STREAM: &str =
    r#"{"name":"UPLINK","subjects":["up.>"],"storage":"file","duplicate_window":120000000000}"#;
const DEADLINE: Duration = Duration::from_secs(30);

/// A child that does not outlive its test.
struct Process(Child);

impl Process {
    fn start(program: &Path, set: impl FnOnce(&mut Command) -> &mut Command) -> Self {
        let mut command = Command::new(program);
        set(&mut command).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().unwrap_or_else(|e| panic!("cannot start {}: {e}", program.display())))
    }

    fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn nats_server() -> PathBuf {
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools/bin/nats-server");
    if ours.exists() { ours } else { PathBuf::from("nats-server") }
}

fn start_server(dir: &Path, port: u16) -> Process {
    let config = dir.join("nats.conf");
    let store = dir.join("store");
    let text = format!(
        "listen: \"127.0.0.1:{port}\"\njetstream {{ store_dir: \"{}\", sync_interval: always }}\n",
        store.display()
    );
    fs::write(&config, text).unwrap();
    Process::start(&nats_server(), |c| c.arg("-c").arg(&config))
}

fn start_sensor(dir: &Path, port: u16) -> Process {
    Process::start(Path::new(env!("CARGO_BIN_EXE_sensor")), |c| {
        c.env("NATS_URL", format!("nats://127.0.0.1:{port}"))
            .env("EDGEWIRE_NAMESPACE", "demo")
            .env("SENSOR_DATA", dir.join("data"))
            .env("SENSOR_INTERVAL_MS", "2")
    })
}

fn list(dir: &Path) -> Vec<u64> {
    let text = fs::read_to_string(dir.join("data/acked.log")).unwrap_or_default();
    text.split_inclusive('\n').filter_map(|l| l.strip_suffix('\n')).map(|l| l.parse().unwrap()).collect()
}

async fn until_listed(dir: &Path, count: usize) {
    let end = Instant::now() + DEADLINE;
    while list(dir).len() < count {
        assert!(Instant::now() < end, "{} of {count} readings acknowledged in {DEADLINE:?}", list(dir).len());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn api(client: &async_nats::Client, verb: &str, body: String) -> serde_json::Value {
    let subject = format!("$JS.API.{verb}");
    let reply = client.request(subject, body.into()).await.unwrap();
    serde_json::from_slice(&reply.payload).unwrap()
}

/// The server answers as soon as JetStream is up, and not before.
async fn until_stream(port: u16) -> async_nats::Client {
    let options = async_nats::ConnectOptions::new().retry_on_initial_connect();
    let client = options.connect(format!("127.0.0.1:{port}")).await.unwrap();
    let end = Instant::now() + DEADLINE;
    while client.request("$JS.API.STREAM.CREATE.UPLINK", STREAM.into()).await.is_err() {
        assert!(Instant::now() < end, "no JetStream on port {port} in {DEADLINE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    client
}

async fn stored(client: &async_nats::Client) -> Vec<u64> {
    let info = api(client, "STREAM.INFO.UPLINK", String::new()).await;
    let last = info["state"]["last_seq"].as_u64().unwrap();
    let mut numbers = Vec::new();
    for seq in 1..=last {
        let message = api(client, "STREAM.MSG.GET.UPLINK", format!(r#"{{"seq":{seq}}}"#)).await;
        assert_eq!(message["message"]["subject"], "up.demo.temp");
        let data = message["message"]["data"].as_str().unwrap();
        numbers.push(counter(data));
    }
    numbers
}

/// The counter of a payload that the API gives as base64.
fn counter(base64: &str) -> u64 {
    let value = |b: u8| match b {
        b'A'..=b'Z' => u32::from(b - b'A'),
        b'a'..=b'z' => u32::from(b - b'a') + 26,
        b'0'..=b'9' => u32::from(b - b'0') + 52,
        b'+' => 62,
        b'/' => 63,
        _ => 0,
    };
    let mut bytes = Vec::new();
    for group in base64.as_bytes().chunks(4) {
        let word = group.iter().fold(0u32, |word, b| word << 6 | value(*b));
        bytes.extend_from_slice(&word.to_be_bytes()[1..]);
    }
    let json = String::from_utf8(bytes).unwrap();
    serde_json::from_str::<serde_json::Value>(json.trim_end_matches('\0')).unwrap()["n"].as_u64().unwrap()
}

#[tokio::test]
async fn what_is_listed_is_stored_once_and_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();

    // The sensor is there first: it waits for its server, and for its stream.
    let mut sensor = start_sensor(dir, port);
    let mut server = start_server(dir, port);
    until_stream(port).await;
    until_listed(dir, 50).await;

    server.kill();
    let before = list(dir).len();
    let mut server = start_server(dir, port);
    until_listed(dir, before + 50).await;

    sensor.kill();
    let mut sensor = start_sensor(dir, port);
    until_listed(dir, before + 100).await;

    // SIGTERM is how a container is asked to stop.
    let asked = Command::new("kill").arg(sensor.0.id().to_string()).status().unwrap();
    assert!(asked.success());
    assert!(sensor.0.wait().unwrap().success());

    let client = until_stream(port).await;
    let (listed, stored) = (list(dir), stored(&client).await);
    assert_eq!(
        listed,
        (1..=listed.len() as u64).collect::<Vec<_>>(),
        "the list has each number once, in order"
    );
    // One may be stored whose acknowledgement the sensor did not live to see.
    assert!((listed.len()..=listed.len() + 1).contains(&stored.len()), "{} {}", listed.len(), stored.len());
    assert_eq!(stored, (1..=stored.len() as u64).collect::<Vec<_>>(), "each is stored once, in order");
    server.kill();
}
