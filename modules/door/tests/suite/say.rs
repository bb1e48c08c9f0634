//! Publishing and asking.

use std::time::{Duration, Instant};

use bus::provision::{self, Bound, Place};
use bytes::Bytes;
use futures::StreamExt;
use futures::future::join_all;
use schemas::envelope::Headers;
use serde_json::{Value, json};

use crate::support::{House, SOON, eventually, refusal};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_is_heard_with_its_headers() {
    let house = House::open("said").await;
    let pod = house.pod("pod-1", "demo").await;
    let mut heard = house.judge.listen(">").await.unwrap();
    house.judge.round_trip().await.unwrap();
    let said =
        pod.publish("app.demo.temp").header("ce-type", "temp").header("x-mine", "1").body("{\"c\":21}");
    let answer = said.send().await.unwrap();
    assert_eq!(answer.status(), 202, "{}", answer.text().await.unwrap());
    let message = loop {
        let message = tokio::time::timeout(SOON, heard.next()).await.unwrap().unwrap();
        if message.subject.starts_with("app.") {
            break message;
        }
    };
    assert_eq!((message.subject.as_str(), &message.payload[..]), ("app.demo.temp", &b"{\"c\":21}"[..]));
    assert_eq!(message.headers, Headers::from([("ce-type".into(), "temp".into())]));
    assert_eq!(message.reply, None, "nobody is asked for an answer");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_decides_and_each_word_has_its_own_answer() {
    let house = House::open("decides").await;
    let pod = house.pod("pod-1", "demo").await;
    for (subject, status) in [
        ("app.demo.t", 202),
        ("local.demo.t", 202),
        ("app.other.t", 403),
        ("up.other.t", 403),
        ("down.demo.t", 403),
        ("from.n1.demo.t", 403),
        ("ew.rep.containers.pod.t", 403),
        ("$JS.API.STREAM.NAMES", 403),
        ("$SYS.REQ.SERVER.PING", 403),
        ("_INBOX.operator.x", 202),
    ] {
        assert_eq!(pod.says(subject, "x").await, status, "{subject}");
    }
    // Many at once: no refusal is lost, none is taken for another's.
    let mut heard = house.judge.listen("app.demo.>").await.unwrap();
    house.judge.round_trip().await.unwrap();
    for turn in 0..20 {
        let all = (0..48).map(|n| {
            let subject = format!("app.{}.{turn}.{}", if n % 3 == 0 { "other" } else { "demo" }, n / 2);
            let pod = &pod;
            async move { (n, pod.says(&subject, "x").await) }
        });
        for (n, status) in join_all(all).await {
            assert_eq!(status, if n % 3 == 0 { 403 } else { 202 }, "{turn} {n}");
        }
    }
    for _ in 0..20 * 32 {
        tokio::time::timeout(SOON, heard.next()).await.expect("each that was taken is heard").unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stored_word_is_acknowledged_once() {
    let house = House::open("stored").await;
    let pod = house.pod("pod-1", "demo").await;
    let store = async |subject: &str, id: &str| -> (u16, Value) {
        let answer = pod.publish(subject).header("Nats-Msg-Id", id).body("x").send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    };
    let stored = |stream: &str, seq: u64, duplicate: bool| {
        (200, json!({"stream": stream, "seq": seq, "duplicate": duplicate}))
    };
    assert_eq!(store("up.demo.t", "a-1").await, stored("UPLINK", 1, false));
    assert_eq!(store("up.demo.t", "a-2").await, stored("UPLINK", 2, false));
    assert_eq!(store("up.demo.t", "a-1").await, stored("UPLINK", 1, true));
    assert_eq!(store("bulk.demo.t", "b-1").await, stored("BULK", 1, false));
    let (status, body) = store("up.other.t", "c-1").await;
    assert_eq!((status, &body["code"]), (403, &json!("EW-HTTP-FORBIDDEN")));

    // Any other stream: known within a moment.
    assert_eq!(pod.says("app.demo.held.t", "x").await, 202);
    let held = json!({"name": "HELD", "subjects": ["app.demo.held.>"], "storage": "memory"}).to_string();
    house.judge.client().request("$JS.API.STREAM.CREATE.HELD", held.into()).await.unwrap();
    eventually("a word into a new stream is acknowledged", async || {
        pod.says("app.demo.held.t", "x").await == 200
    })
    .await;

    // A store that is full says so, and nothing that it took is gone.
    provision::bound(&house.judge, Place::Edge, "UPLINK", Bound::Bytes(600)).await.unwrap();
    let answer = pod.publish("up.demo.t").body("x".repeat(2_000)).send().await.unwrap();
    assert_eq!(refusal(answer).await, (507, "EW-STORE-FULL".into()));
    assert_eq!(store("up.demo.t", "a-2").await, stored("UPLINK", 2, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stored_word_survives_the_servers_death_and_counts_once() {
    let house = House::open("death").await;
    let pod = house.pod("pod-1", "demo").await;
    let mut tries = 0;
    for n in 1..=40_u64 {
        if n == 20 {
            house.strike_server();
        }
        eventually("it is acknowledged", async || {
            tries += 1;
            let said = pod.publish("up.demo.t").header("Nats-Msg-Id", format!("s-{n}")).body(n.to_string());
            let answer = said.send().await.unwrap();
            let status = answer.status().as_u16();
            assert!([200, 503, 504].contains(&status), "{status}: {}", answer.text().await.unwrap());
            status == 200
        })
        .await;
    }
    assert!(tries > 40, "the server's death was noticed");
    let info = house.judge.client().request("$JS.API.STREAM.INFO.UPLINK", "".into()).await.unwrap();
    let info: Value = serde_json::from_slice(&info.payload).unwrap();
    assert_eq!((&info["state"]["messages"], &info["state"]["last_seq"]), (&json!(40), &json!(40)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_has_an_answer_or_a_reason() {
    let house = House::open("asked").await;
    let pod = house.pod("pod-1", "demo").await;
    let ask = async |subject: &str, body: &str| {
        pod.post(&format!("/v1/req/{subject}")).body(body.to_owned()).send().await.unwrap()
    };
    assert_eq!(refusal(ask("app.demo.echo", "x").await).await, (503, "EW-NO-RESPONDERS".into()));
    let began = Instant::now();
    assert_eq!(
        refusal(ask("app.other.echo?timeout=30s", "x").await).await,
        (403, "EW-HTTP-FORBIDDEN".into())
    );
    assert!(began.elapsed() < Duration::from_secs(10), "a refusal is told at once");

    let mut asked = house.judge.listen("app.demo.echo").await.unwrap();
    let mut mute = house.judge.listen("app.demo.mute").await.unwrap();
    house.judge.round_trip().await.unwrap();
    let judge = house.judge.clone();
    let answering = tokio::spawn(async move {
        while let Some(message) = asked.next().await {
            let headers = Headers::from([
                ("Content-Type".into(), "text/x-echo".into()),
                ("X-Other".into(), "1".into()),
            ]);
            let body = Bytes::from([b"re: ", &message.payload[..]].concat());
            judge.say(&message.reply.unwrap(), &headers, body, None).await.unwrap();
        }
    });
    let all = (0..40).map(async |n: u32| {
        let answer = ask("app.demo.echo", &n.to_string()).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["content-type"], "text/x-echo");
        assert!(!answer.headers().contains_key("x-other"));
        assert_eq!(answer.text().await.unwrap(), format!("re: {n}"));
    });
    join_all(all).await;
    let began = Instant::now();
    assert_eq!(refusal(ask("app.demo.mute?timeout=300ms", "x").await).await, (504, "EW-NO-ANSWER".into()));
    assert!(began.elapsed() >= Duration::from_millis(300));
    assert!(mute.next().await.is_some());
    answering.abort();
}
