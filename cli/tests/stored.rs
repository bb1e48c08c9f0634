//! What is stored, as an operator sees it: `tail --since`, `--from`, `--where`, `--fields`, `--stats`, `dead`, `replay`,
//! `topics`, `explain` and `bench` against a real server with a node's streams.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // a test fails by panicking

mod support;

use std::process::Command;
use std::time::Duration;

use bus::connection::Bus;
use bus::module::Account;
use bus::provision::{self, Place};
use schemas::envelope::{Headers, header};
use serde_json::{Value, json};
use support::{SOON, Server, Tail, bad, finish, good, stderr};

/// A server with the streams of a node, and a connection in each account.
async fn node() -> (Server, Bus, Bus) {
    let server = Server::start().await;
    let (control, work) = (server.bus(Account::Control).await, server.bus(Account::Work).await);
    for bus in [&control, &work] {
        provision::provision(bus, Place::Edge).await.unwrap();
    }
    (server, control, work)
}

/// Stores a message, however often it takes; a server that knows its ID already says so.
async fn store(bus: &Bus, subject: &str, id: &str, payload: &Value) {
    let headers: Headers = [("Nats-Msg-Id".to_owned(), id.to_owned())].into();
    let until = std::time::Instant::now() + SOON;
    loop {
        let asked = bus.ask(subject, &headers, payload.to_string().into(), Duration::from_secs(2)).await;
        let answer = asked.ok().and_then(|answer| serde_json::from_slice::<Value>(&answer.payload).ok());
        if answer.is_some_and(|answer| answer.get("seq").is_some()) {
            return;
        }
        assert!(std::time::Instant::now() < until, "{id} is not stored in time");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The numbers that a tail shows, as JSON lines.
fn numbers(tail: &Tail, count: usize) -> Vec<u64> {
    (0..count)
        .map(|_| serde_json::from_str::<Value>(&tail.line()).unwrap()["payload"]["n"].as_u64().unwrap())
        .collect()
}

async fn run(server: &Server, args: &[&str]) -> String {
    good(&finish(server.tool(args)).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn stored_and_live_are_one_flow_while_somebody_speaks_and_across_the_servers_death() {
    let (mut server, _, work) = node().await;
    const BEFORE: u64 = 300;
    const ALL: u64 = 900;
    for n in 0..BEFORE {
        store(&work, "up.demo.n", &n.to_string(), &json!({"n": n})).await;
    }
    let speaker = work.clone();
    let speaking = tokio::spawn(async move {
        for n in BEFORE..ALL {
            store(&speaker, "up.demo.n", &n.to_string(), &json!({"n": n})).await;
        }
    });
    // It begins in the middle of them; the count it ends with would be reached early by a double.
    let args = ["tail", "up.>", "--since", "1h", "--json", "--count", &ALL.to_string()];
    let tail = Tail::start(&server, &args);
    let mut seen = numbers(&tail, 450);
    server.kill_and_restart().await;
    seen.extend(numbers(&tail, usize::try_from(ALL).unwrap() - 450));
    assert_eq!(seen, (0..ALL).collect::<Vec<_>>(), "each once and in order");
    speaking.await.unwrap();
    assert_eq!(tail.ended(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_subject_and_several_streams_are_one_flow_in_order_of_time() {
    let (server, _, work) = node().await;
    for n in 0..20 {
        let subject = if n % 3 == 0 { "bulk.demo.n" } else { "up.demo.n" };
        store(&work, subject, &n.to_string(), &json!({"n": n})).await;
        // Times are told apart by the millisecond.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let tail = Tail::start(&server, &["tail", "*.demo.n", "--since", "1h", "--json"]);
    assert_eq!(numbers(&tail, 20), (0..20).collect::<Vec<_>>());
    for n in 20..30 {
        let subject = ["up.demo.n", "bulk.demo.n"][n % 2];
        store(&work, subject, &n.to_string(), &json!({"n": n})).await;
        let live = json!({"n": n + 100}).to_string();
        work.say("app.demo.n", &Headers::new(), live.into(), None).await.unwrap();
    }
    // What no stream has is heard live, once; what one has comes from it, once.
    let mut rest = numbers(&tail, 20);
    rest.sort_unstable();
    assert_eq!(rest, (20..30).chain(120..130).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_was_lost_and_counts_anew_is_said_and_read_on() {
    let (mut server, _, work) = node().await;
    for n in 0..5 {
        store(&work, "up.demo.n", &n.to_string(), &json!({"n": n})).await;
    }
    let tail = Tail::start(&server, &["tail", "up.>", "--since", "1h", "--json"]);
    assert_eq!(numbers(&tail, 5), [0, 1, 2, 3, 4]);
    server.stop();
    std::fs::remove_dir_all(server.dir().join("js")).unwrap();
    server.kill_and_restart().await;
    let again = server.bus(Account::Work).await;
    provision::provision(&again, Place::Edge).await.unwrap();
    // They have the sequences of those that were shown, and are others.
    for n in 5..12 {
        store(&again, "up.demo.n", &n.to_string(), &json!({"n": n})).await;
    }
    assert_eq!(numbers(&tail, 7), [5, 6, 7, 8, 9, 10, 11]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_stream_renames_is_read_under_its_new_name_and_once() {
    let (server, _, work) = node().await;
    store(&work, "_down.demo.n", "0", &json!({"n": 0})).await;
    // Its stream hears it as `_down.`, keeps it as `down.`, and says it as that.
    let tail = Tail::start(&server, &["tail", "down.>", "--since", "1h", "--json"]);
    assert_eq!(numbers(&tail, 1), [0]);
    for n in 1..20 {
        store(&work, "_down.demo.n", &n.to_string(), &json!({"n": n})).await;
    }
    assert_eq!(numbers(&tail, 19), (1..20).collect::<Vec<_>>());
    let wide = run(&server, &["tail", "down.>", "--from", "1", "-n", "1", "-o", "wide"]).await;
    assert!(wide.contains("  WORK  DOWN:1  down.demo.n  {"), "{wide}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tail_of_the_past_ends_and_says_what_is_gone() {
    let (server, _, work) = node().await;
    for n in 0..10 {
        store(&work, "up.demo.n", &n.to_string(), &json!({"n": n})).await;
    }
    for sequence in 1..=4 {
        assert!(work.remove_stored("UPLINK", sequence).await.unwrap());
    }
    let past = finish(server.tool(&["tail", "up.>", "--from", "2", "--until", "1ms", "--json"])).await;
    let shown = good(&past);
    let sequences: Vec<u64> = shown
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["sequence"].as_u64().unwrap())
        .collect();
    assert_eq!(sequences, [5, 6, 7, 8, 9, 10]);
    assert!(stderr(&past).contains("UPLINK: 3 messages are gone already"), "{}", stderr(&past));
    let since = finish(server.tool(&["tail", "up.>", "--since", "1h", "--until", "1ms", "-n", "1"])).await;
    assert!(
        stderr(&since).contains("is gone already (4 messages since the stream began)"),
        "{}",
        stderr(&since)
    );

    // A time to come ends it too, with all that was stored up to then.
    let ahead = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(4);
    let tail =
        Tail::start(&server, &["tail", "up.>", "--from", "10", "--until", &ahead.to_string(), "--json"]);
    assert_eq!(numbers(&tail, 1), [9]);
    store(&work, "up.demo.n", "10", &json!({"n": 10})).await;
    assert_eq!(numbers(&tail, 1), [10]);
    assert_eq!(tail.ended(), Some(0));

    bad(&finish(server.tool(&["tail", "up.>", "--until", "1h"])).await, "EW-TAIL-RANGE");
    bad(&finish(server.tool(&["tail", "*.demo.>", "--from", "1"])).await, "EW-TAIL-STREAM");
    let none = bad(&finish(server.tool(&["tail", "app.>", "--from", "1"])).await, "EW-TAIL-STREAM");
    assert!(none.contains("no stream at edge-a holds app.>"), "{none}");
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_are_chosen_cut_and_counted() {
    let (server, _, work) = node().await;
    for n in 0..10 {
        let payload = if n == 3 { json!("no map") } else { json!({"n": n, "c": f64::from(n) * 1.5}) };
        store(&work, "up.demo.n", &n.to_string(), &payload).await;
    }
    let past = ["tail", "up.>", "--since", "1h", "--until", "1ms"];
    let with = |more: &[&'static str]| [&past[..], more].concat();
    let args = with(&[
        "--where",
        "payload.c > 9 && subject.startsWith('up.demo')",
        "--fields",
        "payload.c,sequence,subject",
    ]);
    let chosen = finish(server.tool(&args)).await;
    let want = "\
PAYLOAD.C   SEQUENCE   SUBJECT
10.5        8          up.demo.n
12.0        9          up.demo.n
13.5        10         up.demo.n
";
    assert_eq!(good(&chosen), want);
    assert!(
        stderr(&chosen).contains("--where failed on 1 message, which were skipped"),
        "{}",
        stderr(&chosen)
    );

    let wide = run(&server, &with(&["-o", "wide", "-n", "1"])).await;
    assert!(wide.contains("  edge-a  WORK  UPLINK:1  up.demo.n  {\"n\":0,"), "{wide}");
    let few = finish(server.tool(&with(&["--rate", "2"]))).await;
    assert_eq!(good(&few).lines().count(), 2);
    assert!(stderr(&few).contains("8 messages were left out in all (--rate)"), "{}", stderr(&few));
    let stats: Value = serde_json::from_str(&run(&server, &with(&["--stats", "--json"])).await).unwrap();
    assert_eq!(stats["subjects"]["up.demo.n"]["messages"], json!(10));

    for wrong in [
        &["--where", "payload.c >"][..],
        &["--where", "payloda.c > 1"],
        &["--fields", "nothing"],
        &["--since", "soon"],
    ] {
        let refused = finish(support::tool(&[&["tail", "up.>"], wrong].concat())).await;
        assert_eq!(refused.status.code(), Some(2), "{wrong:?}");
    }
    let refused = finish(support::tool(&["tail", "up.>", "--where", "payload.c > 1 && foo"])).await;
    assert!(stderr(&refused).contains("at 1:18: there is no foo"), "{}", stderr(&refused));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_buckets_removal_says_so() {
    let (server, control, _) = node().await;
    let key = "$KV.local.pods.demo.a.u";
    store(&control, key, "1", &json!({"n": 1})).await;
    let removal: Headers = [("KV-Operation".to_owned(), "DEL".to_owned())].into();
    control.ask(key, &removal, Default::default(), SOON).await.unwrap();
    let shown = finish(server.tool(&["tail", "$KV.local.>", "--from", "1", "--until", "1ms"])).await;
    assert!(good(&shown).ends_with("  $KV.local.pods.demo.a.u  (removed)\n"), "{shown:?}");
    assert!(
        stderr(&shown).contains("1 message is gone already; it keeps the last entry of each key only"),
        "{shown:?}"
    );
    // Not where everything is asked for.
    assert_eq!(run(&server, &["tail", ">", "--since", "1h", "--until", "1ms"]).await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_is_read_said_again_and_removed() {
    let (server, control, work) = node().await;
    let dead = |subject: &str, id: &str| -> Headers {
        [(header::DEAD_REASON, "too large"), (header::DEAD_SUBJECT, subject), ("Nats-Msg-Id", id)]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into()
    };
    for (subject, id, payload) in [("up.demo.x", "1", r#"{"n":7}"#), ("pods.demo.a.u", "2", "x")] {
        control.ask("ew.dead.sync", &dead(subject, id), payload.into(), SOON).await.unwrap();
    }
    let list = run(&server, &["dead"]).await;
    assert!(list.starts_with("SEQUENCE   TIME"), "{list}");
    assert!(list.contains("sync     up.demo.x       too large   {\"n\":7}\n"), "{list}");
    let json: Value =
        serde_json::from_str(&run(&server, &["dead", "ls", "--module", "sync", "--json"]).await).unwrap();
    assert_eq!((json.as_array().unwrap().len(), &json[0]["payload"]), (2, &json!({"n": 7})));
    let one = run(&server, &["dead", "show", "1"]).await;
    assert!(one.contains("reason    too large\n") && one.ends_with("payload   {\"n\":7}\n"), "{one}");

    assert_eq!(run(&server, &["dead", "replay", "1"]).await, "stored in UPLINK as 1\n");
    assert_eq!(&work.stored("UPLINK", 1).await.unwrap().unwrap().message.payload[..], br#"{"n":7}"#);
    bad(&finish(server.tool(&["dead", "replay", "2"])).await, "EW-DEAD-NOT-REPLAYED");
    assert_eq!(run(&server, &["dead", "rm", "1"]).await, "dead letter 1 at edge-a is removed\n");
    for gone in [["dead", "rm", "1"], ["dead", "show", "1"], ["dead", "replay", "1"]] {
        bad(&finish(server.tool(&gone)).await, "EW-DEAD-UNKNOWN");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stored_messages_are_said_again_elsewhere_and_never_in_a_circle() {
    let (server, _, work) = node().await;
    for n in 0..5 {
        store(&work, "up.demo.n", &n.to_string(), &json!({"n": n})).await;
    }
    let dry =
        run(&server, &["replay", "UPLINK", "--since", "1h", "--to", "app.demo.again", "--dry-run"]).await;
    assert_eq!(dry, "5 messages (35 B) would be said again under app.demo.again.\n");
    let tail = Tail::start(&server, &["tail", "app.>", "--json", "-n", "5"]);
    let said =
        run(&server, &["replay", "up.demo.>", "--from", "1", "--to", "app.demo.again", "--rate", "1000"])
            .await;
    assert_eq!(said, "5 messages (35 B) said again under app.demo.again.\n");
    let first: Value = serde_json::from_str(&tail.line()).unwrap();
    assert_eq!(first["subject"], "app.demo.again.up.demo.n");
    assert_eq!(numbers(&tail, 4), [1, 2, 3, 4]);

    // Into another stream, stored; into its own, refused; and nothing of Edgewire's own.
    let stored = run(&server, &["replay", "UPLINK", "--since", "1h", "--to", "bulk.demo"]).await;
    assert_eq!(stored, "5 messages (35 B) said again under bulk.demo., 5 of them stored\n");
    let line = bad(
        &finish(server.tool(&["replay", "UPLINK", "--since", "1h", "--to", "up.demo"])).await,
        "EW-REPLAY-LOOP",
    );
    assert!(line.contains("UPLINK would take"), "{line}");
    bad(
        &finish(server.tool(&["replay", "UPLINK", "--since", "1h", "--to", "ew.rep"])).await,
        "EW-SUBJECT-RESERVED",
    );
    bad(
        &finish(server.tool(&["replay", "app.>", "--since", "1h", "--to", "app.x"])).await,
        "EW-STREAM-UNKNOWN",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_to_a_durable_class_is_answered_for() {
    let (server, ..) = node().await;
    assert_eq!(run(&server, &["pub", "up.demo.x", "1"]).await, "stored in UPLINK as 1\n");
    assert_eq!(
        run(&server, &["pub", "bulk.demo.x", "1", "--count", "3"]).await,
        "stored 3 in BULK, from 1 to 3\n"
    );
    let lines = server.dir().join("lines");
    std::fs::write(&lines, "a\nb\n\nlast").unwrap();
    let mut piped: Command = server.tool(&["pub", "up.demo.x", "--stdin"]);
    piped.stdin(std::fs::File::open(&lines).unwrap());
    assert_eq!(good(&finish(piped).await), "stored 4 in UPLINK, from 2 to 5\n");
    let file =
        run(&server, &["pub", "up.demo.x", "--file", lines.to_str().unwrap(), "-H", "Nats-Msg-Id:7"]).await;
    assert_eq!(file, "stored in UPLINK as 6\n");
    let again = run(&server, &["pub", "up.demo.x", "-H", "Nats-Msg-Id:7"]).await;
    assert_eq!(again, "stored in UPLINK as 6 (it was there already)\n");
    bad(&finish(server.tool(&["pub", "up.demo.x", "--file", "/nonexistent"])).await, "EW-INPUT-FAILED");
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_are_what_flows_and_who_hears_it() {
    let (server, _, work) = node().await;
    let _heard = work.listen("app.demo.>").await.unwrap();
    let topics = server.tool(&["topics", "--for", "3s", "--rows", "5", "--json"]);
    let topics = tokio::spawn(finish(topics));
    let mut said = 0;
    while !topics.is_finished() {
        for n in 0..40 {
            let subject = format!("app.demo.sensor.{n}");
            work.say(&subject, &Headers::new(), "x".into(), None).await.unwrap();
        }
        store(&work, "up.demo.x", &said.to_string(), &json!(1)).await;
        said += 1;
    }
    let json: Value = serde_json::from_str(&good(&topics.await.unwrap())).unwrap();
    let row = |subject: &str| {
        let rows = json.as_array().unwrap();
        rows.iter().find(|row| row["subject"] == subject).unwrap_or_else(|| panic!("{json}")).clone()
    };
    let sensors = row("app.demo.sensor.>");
    assert_eq!(
        (&sensors["subjects"], &sensors["subscribers"], &sensors["publishers"]),
        (&json!(40), &json!(1), &Value::Null)
    );
    assert_eq!(
        (&row("up.demo.x")["stream"], &row("up.demo.x")["subscribers"]),
        (&json!("UPLINK"), &json!(0))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bus_is_measured_but_for_our_own_subjects() {
    let (server, _, work) = node().await;
    let live = run(&server, &["bench", "pub", "app.demo.b", "--count", "2000", "--clients", "3"]).await;
    assert!(live.starts_with("published 2000 messages (250.0 KiB)"), "{live}");
    let durable: Value =
        serde_json::from_str(&run(&server, &["bench", "pub", "up.demo.b", "--count", "20", "--json"]).await)
            .unwrap();
    assert!(durable["latency_us"]["p99"].as_u64().unwrap() > 0, "{durable}");
    assert_eq!(work.captures().await.unwrap().iter().find(|of| of.stream == "UPLINK").unwrap().messages, 20);

    let mut asked = work.listen("app.demo.ask").await.unwrap();
    work.round_trip().await.unwrap();
    let answering = tokio::spawn(async move {
        while let Some(request) = futures::StreamExt::next(&mut asked).await {
            work.say(&request.reply.unwrap(), &Headers::new(), "x".into(), None).await.unwrap();
        }
    });
    let answered = run(&server, &["bench", "req", "app.demo.ask", "--count", "50", "--rate", "5000"]).await;
    assert!(answered.contains("answered after, ms: p50 ") && answered.contains(" ms  "), "{answered}");
    answering.abort();
    bad(&finish(server.tool(&["bench", "req", "app.demo.nobody", "--count", "1"])).await, "EW-NO-RESPONDERS");
    bad(&finish(server.tool(&["bench", "pub", "ew.hb.x"])).await, "EW-SUBJECT-RESERVED");

    let mut hearing = server.tool(&["bench", "sub", "app.demo.c", "--count", "100"]);
    hearing.stderr(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut hearing = hearing.spawn().unwrap();
    let mut said = std::io::BufReader::new(hearing.stderr.take().unwrap());
    std::io::BufRead::read_line(&mut said, &mut String::new()).unwrap();
    run(&server, &["bench", "pub", "app.demo.c", "--count", "100"]).await;
    let heard = hearing.wait_with_output().unwrap();
    assert!(
        support::stdout(&heard).contains("made until heard, by the clocks of both ends, ms: p50"),
        "{heard:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_pipe_and_ctrl_c_end_it_quietly() {
    let (server, _, work) = node().await;
    for n in 0..50 {
        store(&work, "up.demo.n", &n.to_string(), &json!({"n": n})).await;
    }
    let tail = Tail::start(&server, &["tail", "up.>", "--since", "1h", "--json"]);
    assert_eq!(numbers(&tail, 50).len(), 50);
    tail.signal(nix::sys::signal::Signal::SIGINT);
    assert_eq!(tail.ended(), Some(0));
    let edge = server.dir().display().to_string();
    let line = format!("{} tail 'up.>' --since 1h --edge {edge} | head -n 3", env!("CARGO_BIN_EXE_edgewire"));
    let mut shell = Command::new("bash");
    shell.args(["-o", "pipefail", "-c", &line]);
    let shown = finish(shell).await;
    assert_eq!(good(&shown).lines().count(), 3);
    assert_eq!(stderr(&shown).lines().count(), 1, "{}", stderr(&shown));
}
