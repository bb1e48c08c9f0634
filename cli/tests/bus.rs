//! `tail`, `pub`, `req` and `modules` against a real server, as one uses them on a node without a hub.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // a test fails by panicking

mod support;

use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;
use std::sync::mpsc;

use bus::module::Account;
use bytes::Bytes;
use futures::StreamExt;
use schemas::Timestamp;
use schemas::envelope::{self, Headers};
use schemas::report::{ModuleReport, ModuleState};
use serde_json::{Value, json};
use support::{SOON, Server, Tail, bad, finish, good, stderr, stdout};

async fn say(bus: &bus::connection::Bus, subject: &str, headers: &Headers, payload: &[u8]) {
    bus.say(subject, headers, Bytes::copy_from_slice(payload), None).await.unwrap();
    bus.round_trip().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn tail_decodes_what_is_said() {
    let server = Server::start().await;
    let work = server.bus(Account::Work).await;
    let tail = Tail::start(&server, &["tail", "app.>", "--count", "5"]);
    say(&work, "app.demo.temp", &Headers::new(), br#"{"n":118,"c":21.4}"#).await;
    let event = envelope::headers("edge-a", "sync", "LinkUp", "1", Timestamp(0));
    say(&work, "app.event", &event, &schemas::encode(&json!({"waited_ms": 45}))).await;
    say(&work, "app.guess", &Headers::new(), &schemas::encode(&json!(["x", 1]))).await;
    say(&work, "app.text", &Headers::new(), b"hi \x1b[2J there").await;
    say(&work, "app.bytes", &Headers::new(), &[0xff, 0, 1]).await;
    say(&work, "other.subject", &Headers::new(), b"not ours").await;
    for want in [
        r#"  app.demo.temp  {"n":118,"c":21.4}"#,
        r#"  app.event  [io.edgewire.sync.LinkUp /nodes/edge-a/modules/sync]  {"waited_ms":45}"#,
        r#"  app.guess  ["x",1]"#,
        r"  app.text  hi \u{1b}[2J there",
        "  app.bytes  0xff0001 (3 bytes)",
    ] {
        let line = tail.line();
        let (time, rest) = line.split_at(12);
        assert_eq!(rest, want);
        assert!(time.bytes().all(|byte| byte.is_ascii_digit() || b":.".contains(&byte)), "{time}");
    }
    assert_eq!(tail.ended(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn tail_of_everything_hears_both_accounts_as_json() {
    let server = Server::start().await;
    let tail = Tail::start(&server, &["tail", ">", "--json"]);
    say(&server.bus(Account::Work).await, "app.a", &Headers::new(), &schemas::encode(&json!({"w": 1}))).await;
    say(&server.bus(Account::Control).await, "ew.mod.edge-a.sync", &Headers::new(), b"\xff\xfe").await;
    let mut heard = Vec::new();
    for _ in 0..2 {
        let line: Value = serde_json::from_str(&tail.line()).unwrap();
        assert!(line["time"].as_str().unwrap().ends_with('Z'));
        heard.push((line["account"].clone(), line["subject"].clone(), line["format"].clone(), line));
    }
    heard.sort_by_key(|(account, ..)| account.to_string());
    assert_eq!(heard[0].2, "binary");
    assert_eq!(heard[0].3["payload_hex"], "fffe");
    assert_eq!((&heard[0].0, &heard[0].1), (&json!("CONTROL"), &json!("ew.mod.edge-a.sync")));
    assert_eq!((&heard[1].0, &heard[1].1), (&json!("WORK"), &json!("app.a")));
    assert_eq!(heard[1].3["payload"], json!({"w": 1}));
}

#[tokio::test(flavor = "multi_thread")]
async fn tail_ends_cleanly() {
    let server = Server::start().await;
    for signal in [nix::sys::signal::Signal::SIGINT, nix::sys::signal::Signal::SIGTERM] {
        let tail = Tail::start(&server, &["tail", "app.>"]);
        tail.signal(signal);
        assert_eq!(tail.ended(), Some(0), "{signal}");
    }
    // Nobody reads any more, and nothing is said either.
    let mut child =
        server.tool(&["tail", "app.>"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap());
    said.read_line(&mut String::new()).unwrap();
    drop(child.stdout.take());
    let (tell, lines) = mpsc::channel();
    drop(tell);
    assert_eq!(Tail { child, lines }.ended(), Some(0));
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_arrives_with_its_headers() {
    let server = Server::start().await;
    let tail = Tail::start(&server, &["tail", "app.>", "--json", "-n", "2"]);
    let sent = server.tool(&["pub", "app.x", r#"{"a":1}"#, "-H", "ce-type:t", "-H", "k: v:w"]);
    assert_eq!(good(&finish(sent).await), "");
    let heard: Value = serde_json::from_str(&tail.line()).unwrap();
    assert_eq!(
        (&heard["payload"], &heard["headers"]),
        (&json!({"a": 1}), &json!({"ce-type": "t", "k": "v:w"}))
    );

    let mut piped = server.tool(&["pub", "app.y", "-"]);
    let mut input = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut input, b"from stdin").unwrap();
    std::io::Seek::rewind(&mut input).unwrap();
    piped.stdin(input);
    good(&finish(piped).await);
    let heard: Value = serde_json::from_str(&tail.line()).unwrap();
    assert_eq!((&heard["subject"], &heard["payload"]), (&json!("app.y"), &json!("from stdin")));
    assert_eq!(tail.ended(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn wait_ack_tells_what_is_stored_and_what_is_not() {
    let server = Server::start().await;
    let work = server.bus(Account::Work).await;
    let stream = json!({"name": "UPLINK", "subjects": ["up.>"], "storage": "memory"}).to_string();
    let subject = "$JS.API.STREAM.CREATE.UPLINK";
    let made = work.ask(subject, &Headers::new(), stream.into(), SOON).await.unwrap();
    assert!(!String::from_utf8_lossy(&made.payload).contains("error"), "{made:?}");
    for n in [1, 2] {
        let sent = server.tool(&["pub", "up.demo.temp", "x", "--wait-ack"]);
        assert_eq!(good(&finish(sent).await), format!("stored in UPLINK as {n}\n"));
    }
    let lost = finish(server.tool(&["pub", "app.demo.temp", "x", "--wait-ack"])).await;
    bad(&lost, "EW-NOT-STORED");
}

#[tokio::test(flavor = "multi_thread")]
async fn req_shows_the_answer_or_says_why_there_is_none() {
    let server = Server::start().await;
    let work = server.bus(Account::Work).await;
    let mut asked = work.listen("app.ask").await.unwrap();
    let _silent = work.listen("app.silent").await.unwrap();
    work.round_trip().await.unwrap();
    let answering = tokio::spawn(async move {
        while let Some(request) = asked.next().await {
            let answer = json!({"you": String::from_utf8_lossy(&request.payload)});
            let reply = request.reply.unwrap();
            work.say(&reply, &Headers::new(), schemas::encode(&answer).into(), None).await.unwrap();
        }
    });
    let answer = finish(server.tool(&["req", "app.ask", "hello"])).await;
    assert_eq!(good(&answer), "{\"you\":\"hello\"}\n");
    let answer = finish(server.tool(&["req", "app.ask", "--json"])).await;
    let json: Value = serde_json::from_str(&good(&answer)).unwrap();
    assert_eq!((&json["format"], &json["payload"]), (&json!("msgpack"), &json!({"you": ""})));
    answering.abort();

    bad(&finish(server.tool(&["req", "app.nobody"])).await, "EW-NO-RESPONDERS");
    bad(&finish(server.tool(&["req", "app.silent", "--timeout", "100ms"])).await, "EW-NO-ANSWER");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_subject_is_said_at_once() {
    let server = Server::start().await;
    server.operator("little", "l");
    let line = bad(&finish(server.tool(&["tail", "app.secret.>"])).await, "EW-BUS-FORBIDDEN");
    assert!(line.contains("app.secret.>"), "{line}");
    bad(&finish(server.tool(&["pub", "app.secret.x", "x"])).await, "EW-BUS-FORBIDDEN");
    bad(&finish(server.tool(&["req", "app.secret.x", "--timeout", "60s"])).await, "EW-BUS-FORBIDDEN");
    good(&finish(server.tool(&["pub", "app.ok.x", "x"])).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_server_and_no_login_are_told_apart() {
    let mut server = Server::start().await;
    server.operator("work-op", "wrong");
    bad(&finish(server.tool(&["tail", "app.>"])).await, "EW-BUS-UNAUTHORIZED");
    server.operator("work-op", "w");
    server.stop();
    let line = bad(&finish(server.tool(&["pub", "app.x"])).await, "EW-BUS-UNREACHABLE");
    assert!(line.contains(&server.url), "{line}");
    let nowhere = finish(support::tool(&["tail", "app.>", "--edge", "/nonexistent"])).await;
    bad(&nowhere, "EW-EDGE-NOT-FOUND");
}

#[tokio::test(flavor = "multi_thread")]
async fn modules_are_asked_of_the_node_itself() {
    let server = Server::start().await;
    let silent = finish(server.tool(&["modules"])).await;
    let want = "NODE     MODULE   STATE      RESTARTS   SINCE   LAST ERROR\n\
                edge-a   -        NoAnswer   -          -       offline\n";
    assert_eq!(good(&silent), want);
    bad(&finish(server.tool(&["modules", "--node", "edge-a"])).await, "EW-NODE-UNREACHABLE");

    let control = server.bus(Account::Control).await;
    let mut asked = control.listen("ew.cmd.edge-a.host.modules").await.unwrap();
    control.round_trip().await.unwrap();
    let answering = tokio::spawn(async move {
        while let Some(request) = asked.next().await {
            let report = ModuleReport {
                node: "edge-a".into(),
                module: "sync".into(),
                state: ModuleState::Running,
                restarts: 2,
                since: Timestamp::now(),
                last_error: "link lost".into(),
                flows: vec!["out CONTROL ew.hb.edge-a".into()],
            };
            let reply = request.reply.unwrap();
            assert!(reply.starts_with("ew.str.edge-a."), "{reply}");
            control.say(&reply, &Headers::new(), schemas::encode(&vec![report]).into(), None).await.unwrap();
        }
    });
    let shown = good(&finish(server.tool(&["modules"])).await);
    assert!(shown.contains("edge-a   sync     Running   2          0s      link lost\n"), "{shown}");
    let flows = good(&finish(server.tool(&["modules", "--flows"])).await);
    assert_eq!(flows, "edge-a/sync  Running\n  out CONTROL ew.hb.edge-a\n");
    let json: Value =
        serde_json::from_str(&good(&finish(server.tool(&["modules", "--json"])).await)).unwrap();
    assert_eq!((&json[0]["node"], &json[0]["modules"][0]["restarts"]), (&json!("edge-a"), &json!(2)));
    answering.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_usage_and_missing_parts_have_their_own_codes() {
    for wrong in [
        &["tail", "a..b"][..],
        &["pub", "app.*"],
        &["pub", "app.x", "-H", "nonsense"],
        &["req", "app.x", "--timeout", "5"],
        &["token", "create", "--node", "Not_A_Name"],
        &["frobnicate"],
        &[],
    ] {
        assert_eq!(finish(support::tool(wrong)).await.status.code(), Some(2), "{wrong:?}");
    }
    assert!(good(&finish(support::tool(&["--help"])).await).contains("First steps:"));
    assert!(good(&finish(support::tool(&["version"])).await).starts_with("edgewire 0."));
    for shell in ["bash", "zsh", "fish"] {
        assert!(good(&finish(support::tool(&["completion", shell])).await).contains("edgewire"), "{shell}");
    }
    bad(&finish(support::tool(&["nodes"])).await, "EW-CONFIG-NOT-FOUND");

    // Alone in its directory, with an empty PATH, it finds no hub to run; beside one, it becomes it.
    let dir = tempfile::tempdir().unwrap();
    let alone = dir.path().join("edgewire");
    std::fs::copy(env!("CARGO_BIN_EXE_edgewire"), &alone).unwrap();
    let mut hub = std::process::Command::new(&alone);
    hub.args(["hub", "--listen", "x"]).env("PATH", "");
    let line = bad(&finish(hub).await, "EW-PROGRAM-NOT-FOUND");
    assert!(line.contains("cloud-hub"), "{line}");
    let script = dir.path().join("edge-runtime");
    std::fs::write(&script, "#!/bin/sh\necho \"$@\"; exit 7\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&script, mode).unwrap();
    let mut join = std::process::Command::new(&alone);
    join.args(["join", "ew1.abc", "--data-dir", "/d", "--name", "edge-a"]);
    let joined = finish(join).await;
    assert_eq!(stdout(&joined), "join ew1.abc --data-dir /d --name edge-a\n", "{}", stderr(&joined));
    assert_eq!(joined.status.code(), Some(7));
}
