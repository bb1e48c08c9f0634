//! The examples of `examples/http`, as they stand, through a kill of the node's server.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::support::{House, Pod, eventually};

struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn example(pod: &Pod<'_>, program: &str, name: &str, subject: &str) -> Ends {
    let file: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/http").join(name);
    let mut command = Command::new(program);
    command.arg(file).arg(subject).env("BUS_HTTP_URL", pod.url());
    Ends(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_examples_do_what_they_say() {
    let house = House::open("examples").await;
    let pod = house.pod("pod-1", "demo").await;
    let mut listening = example(&pod, "python3", "listen.py", "app.demo.>");
    let lines = BufReader::new(listening.0.stdout.take().unwrap()).lines();
    let mut publishing = example(&pod, "sh", "publish.sh", "up.demo.n");
    let mut input = publishing.0.stdin.take().unwrap();
    for n in 0..10 {
        writeln!(input, "line {n}").unwrap();
    }
    house.kill_server().await;
    for n in 10..20 {
        writeln!(input, "line {n}").unwrap();
    }
    drop(input);
    eventually("all lines are stored", async || {
        publishing.0.try_wait().unwrap().is_some_and(|status| status.success())
    })
    .await;
    let info = house.judge.client().request("$JS.API.STREAM.INFO.UPLINK", "".into()).await.unwrap();
    let info: Value = serde_json::from_slice(&info.payload).unwrap();
    assert_eq!(info["state"]["messages"], json!(20));

    // Said until it is heard: when it listens is its own affair.
    let said = tokio::task::spawn_blocking(move || {
        lines.map_while(Result::ok).find(|line| line.contains("subject")).unwrap_or_default()
    });
    eventually("it is heard", async || {
        pod.says("app.demo.hello", "{\"n\":1}").await;
        said.is_finished()
    })
    .await;
    let told: Value = serde_json::from_str(&said.await.unwrap()).unwrap();
    assert_eq!((&told["subject"], &told["data"]["n"]), (&json!("app.demo.hello"), &json!(1)));

    let mut refused = example(&pod, "sh", "publish.sh", "up.other.n");
    writeln!(refused.0.stdin.take().unwrap(), "x").unwrap();
    eventually("what is refused is not tried for ever", async || {
        refused.0.try_wait().unwrap().is_some_and(|status| !status.success())
    })
    .await;
}
