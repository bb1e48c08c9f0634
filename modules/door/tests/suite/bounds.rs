//! Bounds, and the description that has to be true.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use door::answer::{READERS_PER_USER_MAX, REQUESTS_PER_USER_MAX};
use futures::StreamExt;
use futures::future::join_all;
use serde_json::Value;

use crate::support::{House, SOON, refusal};

#[tokio::test(flavor = "multi_thread")]
async fn too_much_is_refused_with_its_reason() {
    let house = House::open("bounds").await;
    let pod = house.pod("pod-1", "demo").await;
    let mut mute = house.judge.listen("app.demo.mute").await.unwrap();
    house.judge.round_trip().await.unwrap();

    let large = vec![b'x'; schemas::MESSAGE_MAX_BYTES + 1];
    let answer = pod.publish("app.demo.t").body(large.clone()).send().await.unwrap();
    assert_eq!(refusal(answer).await, (413, "EW-PAYLOAD-TOO-LARGE".into()));
    // Of unknown length: noticed on the way.
    let pieces =
        futures::stream::iter(large.chunks(1 << 20).map(|piece| Ok::<_, std::io::Error>(piece.to_vec())))
            .collect::<Vec<_>>()
            .await;
    let body = reqwest::Body::wrap_stream(futures::stream::iter(pieces));
    if let Ok(answer) = pod.publish("app.demo.t").body(body).send().await {
        assert_eq!(answer.status(), 413);
    }
    let largest = vec![b'x'; schemas::MESSAGE_MAX_BYTES];
    assert_eq!(pod.publish("local.demo.t").body(largest).send().await.unwrap().status(), 202);

    let long = pod.publish("app.demo.t").header("ce-x", "x".repeat(40_000)).send().await.unwrap();
    assert_eq!(long.status(), 431);
    let mut many = pod.publish("app.demo.t");
    for n in 0..100 {
        many = many.header(format!("ce-x{n}"), "x");
    }
    assert_eq!(many.send().await.unwrap().status(), 431);

    // As many questions as may be under way, and one more.
    let waiting = (0..REQUESTS_PER_USER_MAX).map(|_| {
        let asked = pod.post("/v1/req/app.demo.mute?timeout=30s").send();
        tokio::spawn(asked)
    });
    let waiting: Vec<_> = waiting.collect();
    for _ in 0..REQUESTS_PER_USER_MAX {
        tokio::time::timeout(SOON, mute.next()).await.expect("each is asked").unwrap();
    }
    let answer = pod.publish("app.demo.t").send().await.unwrap();
    assert!(answer.headers().contains_key("retry-after"));
    assert_eq!(refusal(answer).await, (429, "EW-HTTP-BUSY".into()));
    let other = house.pod("pod-2", "demo").await;
    assert_eq!(other.says("app.demo.t", "x").await, 202, "another user is not held up by it");
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
    join_all(waiting).await;

    let mut readers = Vec::new();
    for _ in 0..READERS_PER_USER_MAX {
        readers.push(pod.hears("app.demo.>", None).await);
    }
    assert_eq!(refusal(pod.subscribe("app.demo.>", None).await).await, (429, "EW-HTTP-BUSY".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_speaks_too_slowly_is_cut_off() {
    let house = House::open("loris").await;
    let at = house.at;
    let ended = tokio::task::spawn_blocking(move || {
        let began = Instant::now();
        let mut socket = TcpStream::connect(at).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        socket.write_all(b"POST /v1/pub/app.demo.t HTTP/1.1\r\nhost: x\r\n").unwrap();
        let mut rest = Vec::new();
        let _ = socket.read_to_end(&mut rest);
        began.elapsed()
    });
    assert!(ended.await.unwrap() < SOON - Duration::from_secs(2), "half a head is not waited for");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_described_is_served() {
    let house = House::open("described").await;
    let health = house.http.get(format!("{}/healthz", house.url)).send().await.unwrap();
    assert_eq!(health.status(), 200);
    let document: Value =
        house.http.get(format!("{}/v1/openapi.json", house.url)).send().await.unwrap().json().await.unwrap();
    assert_eq!(document["openapi"], "3.1.0");
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let url = format!("{}{}", house.url, path.replace("{subject}", "app.demo.t"));
            let method = method.to_ascii_uppercase().parse().unwrap();
            let status = house.http.request(method, &url).send().await.unwrap().status().as_u16();
            let open = operation["security"].as_array().is_some_and(Vec::is_empty);
            assert_eq!(status, if open { 200 } else { 401 }, "{path}");
            assert!(operation["responses"].get(status.to_string()).is_some(), "{path} {status}");
        }
    }
    for path in ["/", "/v1/cache/a", "/v1/pubx/a"] {
        let answer = house.http.get(format!("{}{path}", house.url)).send().await.unwrap();
        assert_eq!(refusal(answer).await, (404, "EW-HTTP-PATH".into()), "{path}");
    }
    let wrong = house.http.delete(format!("{}/v1/pub/app.demo.t", house.url)).send().await.unwrap();
    assert_eq!(wrong.headers()["allow"], "POST");
    assert_eq!(refusal(wrong).await, (405, "EW-HTTP-METHOD".into()));
}
