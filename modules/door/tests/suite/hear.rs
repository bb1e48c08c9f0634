//! Server-sent events: nothing is missed without a word.

use std::collections::BTreeSet;

use door::listening::FILTERS_PER_USER_MAX;
use serde_json::json;

use crate::support::{House, Pod, eventually, refusal};

#[tokio::test(flavor = "multi_thread")]
async fn messages_are_told_in_one_envelope() {
    let house = House::open("told").await;
    let pod = house.pod("pod-1", "demo").await;
    let mut events = pod.hears("app.demo.>", None).await;
    let said = pod.publish("app.demo.a").header("ce-type", "temp").body("{\"c\":\n21.40}");
    assert_eq!(said.send().await.unwrap().status(), 202);
    assert_eq!(pod.says("app.demo.b", "two\nlines").await, 202);
    let bytes = pod.publish("app.demo.c").body(vec![0xFF, 0]).send().await.unwrap();
    assert_eq!(bytes.status(), 202);
    let want = [
        json!({"subject": "app.demo.a", "headers": {"ce-type": "temp"}, "data": {"c": 21.4}}),
        json!({"subject": "app.demo.b", "headers": {}, "data": "two\nlines"}),
        json!({"subject": "app.demo.c", "headers": {}, "data_base64": "/wA="}),
    ];
    for want in want {
        let told = events.next().await.unwrap();
        assert_eq!((told.name.as_str(), &told.data), ("message", &want));
    }
    for (filter, status, code) in [
        ("app.other.>", 403, "EW-HTTP-FORBIDDEN"),
        (">", 403, "EW-HTTP-FORBIDDEN"),
        ("up.demo.>", 403, "EW-HTTP-FORBIDDEN"),
        ("_INBOX.>", 403, "EW-HTTP-FORBIDDEN"),
        ("app..t", 400, "EW-HTTP-SUBJECT"),
    ] {
        assert_eq!(refusal(pod.subscribe(filter, None).await).await, (status, code.into()), "{filter}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_back_misses_nothing_and_gets_nothing_twice() {
    let house = House::open("back").await;
    let pod = house.pod("pod-1", "demo").await;
    let say = async |from: u32, to: u32| {
        for n in from..to {
            assert_eq!(pod.says("app.demo.n", n.to_string() + "!").await, 202);
        }
    };
    let numbers = |from: u32, to: u32| (from..to).map(|n| format!("{n}!")).collect::<Vec<_>>();
    let mut events = pod.hears("app.demo.>", None).await;
    // Before anything was told there is a place to come back to.
    let nothing = events.last.clone();
    say(0, 5).await;
    assert_eq!(events.texts(3).await, numbers(0, 3));
    let third = events.last.clone();
    drop(events);
    say(5, 9).await;
    assert_eq!(pod.hears("app.demo.>", Some(&third)).await.texts(6).await, numbers(3, 9));
    assert_eq!(pod.hears("app.demo.>", Some(&nothing)).await.texts(9).await, numbers(0, 9));

    // A second reader shares it; one without an ID begins now.
    let (mut one, mut two) =
        (pod.hears("app.demo.>", Some(&third)).await, pod.hears("app.demo.>", None).await);
    say(9, 11).await;
    assert_eq!((one.texts(8).await, two.texts(2).await), (numbers(3, 11), numbers(9, 11)));

    // What cannot be served is said.
    for unknown in ["a-7", "17", "x"] {
        let mut events = pod.hears("app.demo.>", Some(unknown)).await;
        let told = events.next().await.unwrap();
        assert_eq!(told.name, "gap", "{told:?}");
        assert_eq!(events.texts(11).await, numbers(0, 11));
    }
    // Another user has places of his own.
    let other = house.pod("pod-2", "demo").await;
    assert_eq!(other.hears("app.demo.>", Some(&third)).await.next().await.unwrap().name, "gap");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_servers_death_is_a_gap_and_not_the_end() {
    let house = House::open("gap").await;
    let pod = house.pod("pod-1", "demo").await;
    let mut events = pod.hears("app.demo.>", None).await;
    assert_eq!(pod.says("app.demo.t", "before").await, 202);
    assert_eq!(events.texts(1).await, ["before"]);
    let before = events.last.clone();
    house.kill_server().await;
    assert_eq!(events.next().await.unwrap().name, "gap");
    eventually("something is said again", async || pod.says("app.demo.t", "after").await == 202).await;
    assert_eq!(events.texts(1).await, ["after"]);
    // The gap is told to who comes back, too.
    let mut again = pod.hears("app.demo.>", Some(&before)).await;
    assert_eq!(again.next().await.unwrap().name, "gap");
    assert_eq!(again.texts(1).await, ["after"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_stream_holds_is_told_without_a_gap_whatever_died() {
    let mut house = House::open("held").await;
    let make = json!({"name": "T_demo_n", "subjects": ["app.demo.n.>"], "allow_direct": true}).to_string();
    house.judge.client().request("$JS.API.STREAM.CREATE.T_demo_n", make.into()).await.unwrap();
    let pod = house.pod("pod-1", "demo").await;
    let numbers = |from: u32, to: u32| (from..to).map(|n| format!("{n}!")).collect::<Vec<_>>();
    let mut events = pod.hears("app.demo.n.>", None).await;
    let beginning = events.last.clone();
    let say = async |pod: &Pod<'_>, from: u32, to: u32| {
        for n in from..to {
            eventually("it is stored", async || {
                let said = pod.publish("app.demo.n.x").header("Nats-Msg-Id", format!("n-{n}"));
                said.body(format!("{n}!")).send().await.unwrap().status() == 200
            })
            .await;
        }
    };
    say(&pod, 0, 5).await;
    assert_eq!(events.texts(3).await, numbers(0, 3));
    let third = events.last.clone();
    assert!(third.ends_with("-3"), "the stream's sequence: {third}");
    assert_eq!(events.texts(2).await, numbers(3, 5));
    // The server dies, and whoever comes back has missed nothing.
    let fifth = events.last.clone();
    drop(events);
    house.kill_server().await;
    say(&pod, 5, 9).await;
    assert_eq!(pod.hears("app.demo.n.>", Some(&fifth)).await.texts(4).await, numbers(5, 9));
    // And so does the door.
    let user = pod.user.clone();
    house.renew_door().await;
    let pod = house.known(user);
    assert_eq!(pod.hears("app.demo.n.>", Some(&third)).await.texts(6).await, numbers(3, 9));
    // A part of it is held too; what is more than it holds is live.
    assert_eq!(pod.hears("app.demo.n.x", Some(&beginning)).await.texts(9).await, numbers(0, 9));
    assert_eq!(pod.hears("app.demo.>", Some(&third)).await.next().await.unwrap().name, "gap");
    // Who may not hear it may not read it.
    let other = house.pod("pod-2", "other").await;
    let refused = other.subscribe("app.demo.n.>", Some(&third)).await;
    assert_eq!(refusal(refused).await, (403, "EW-HTTP-FORBIDDEN".into()));
    // What the stream has let go of is missing, and that is said.
    let purge = json!({"seq": 7}).to_string();
    house.judge.client().request("$JS.API.STREAM.PURGE.T_demo_n", purge.into()).await.unwrap();
    let mut events = pod.hears("app.demo.n.>", Some(&third)).await;
    assert_eq!(events.next().await.unwrap().name, "gap");
    assert_eq!(events.texts(3).await, numbers(6, 9));
    // A stream of the same name is another one.
    let last = events.last.clone();
    house.judge.client().request("$JS.API.STREAM.DELETE.T_demo_n", "".into()).await.unwrap();
    let make = json!({"name": "T_demo_n", "subjects": ["app.demo.n.>"], "allow_direct": true}).to_string();
    house.judge.client().request("$JS.API.STREAM.CREATE.T_demo_n", make.into()).await.unwrap();
    eventually("the old place is known to be another's", async || {
        say(&pod, 9, 10).await;
        let answer = pod.subscribe("app.demo.n.>", Some(&last)).await;
        answer.status() == 200
            && pod
                .hears("app.demo.n.>", Some(&last))
                .await
                .next()
                .await
                .is_some_and(|told| told.name == "gap")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_too_slowly_is_told_and_holds_nobody_up() {
    let house = House::open("slow").await;
    let pod = house.pod("pod-1", "demo").await;
    let mut slow = pod.hears("local.demo.>", None).await;
    let mut quick = pod.hears("local.demo.>", None).await;
    // More than a socket and a ring hold together.
    let body = "x".repeat(100_000);
    let mut numbers = BTreeSet::new();
    for _ in 0..400 {
        assert_eq!(pod.says("local.demo.t", body.clone()).await, 202);
        let told = quick.next().await.unwrap();
        assert_eq!(told.name, "message");
        numbers.insert(told.id);
    }
    assert_eq!(numbers.len(), 400);
    let mut read = 0;
    let last = loop {
        let told = slow.next().await.expect("a word before the end");
        if told.name != "message" {
            break told;
        }
        read += 1;
    };
    assert_eq!(last.name, "slow");
    assert!(read < 400 && slow.next().await.is_none(), "{read}");
    // It may come back to what is still there.
    let mut again = pod.hears("local.demo.>", Some(&slow.last)).await;
    assert_eq!(again.next().await.unwrap().name, "gap");
    assert_eq!(again.next().await.unwrap().name, "message");
}

#[tokio::test(flavor = "multi_thread")]
async fn subscriptions_are_counted_and_the_forgotten_make_room() {
    let house = House::open("filters").await;
    let pod = house.pod("pod-1", "demo").await;
    let mut read = Vec::new();
    for n in 0..FILTERS_PER_USER_MAX {
        read.push(pod.hears(&format!("app.demo.{n}.>"), None).await);
    }
    assert_eq!(refusal(pod.subscribe("app.demo.more", None).await).await, (429, "EW-HTTP-BUSY".into()));
    // Another user is not held up by it.
    let other = house.pod("pod-2", "demo").await;
    drop(other.hears("app.demo.more", None).await);
    // One that nobody reads goes for it.
    drop(read.pop());
    eventually("there is room", async || pod.subscribe("app.demo.more", None).await.status() == 200).await;
}
