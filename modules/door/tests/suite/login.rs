//! Who gets in.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bus::guest::pool::KNOCKS_MAX;

use crate::support::{House, eventually, refusal};

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_login_is_refused_and_does_not_wear_the_server_out() {
    let house = House::open("login").await;
    let pod = house.pod("pod-1", "demo").await;
    let url = format!("{}/v1/pub/app.demo.t", house.url);
    let none = house.http.post(&url).send().await.unwrap();
    let challenge = none.headers()["www-authenticate"].to_str().unwrap().to_owned();
    assert!(challenge.starts_with("Basic "), "{challenge}");
    assert_eq!(refusal(none).await, (401, "EW-HTTP-LOGIN".into()));

    let bearer = STANDARD.encode(format!("{}:{}", pod.user.name, pod.user.password));
    assert_eq!(house.http.post(&url).bearer_auth(bearer).send().await.unwrap().status(), 202);

    // Always the same wrong one is put to the server now and then; ever other ones until it is enough.
    for n in 0..30 {
        let wrong = house.http.post(&url).basic_auth("pod-1", Some("wrong")).send().await.unwrap();
        assert_eq!(wrong.status(), 401, "{n}");
    }
    let mut statuses = Vec::new();
    for n in 0..30 {
        let wrong =
            house.http.post(&url).basic_auth("pod-1", Some(format!("wrong-{n}"))).send().await.unwrap();
        statuses.push(wrong.status().as_u16());
    }
    assert!(statuses.starts_with(&[401]) && statuses.ends_with(&[429]), "{statuses:?}");
    let knocks = house.log().matches("authentication error").count();
    assert!(knocks <= 2 * usize::try_from(KNOCKS_MAX).unwrap(), "the server was asked {knocks} times");
    // Who is known is not kept out by it.
    assert_eq!(pod.says("app.demo.t", "x").await, 202);
    // Names that would be wildcards in a subject reach nothing.
    let odd = house.http.post(&url).basic_auth(">", Some("x")).send().await.unwrap();
    assert_eq!(odd.status(), 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_removed_is_out_at_once_and_whose_password_changes_needs_the_new_one() {
    let house = House::open("removed").await;
    let (pod, other) = (house.pod("pod-1", "demo").await, house.pod("pod-2", "demo").await);
    let mut events = pod.hears("app.demo.>", None).await;
    assert_eq!(other.says("app.demo.t", "\"x\"").await, 202);
    assert_eq!(events.texts(1).await, ["x"]);
    house.server.remove_users(&["pod-1".to_owned()]).await.unwrap();
    // Its own connection may be noticed to be gone in the middle of a request.
    eventually("it is refused", async || pod.says("app.demo.t", "x").await == 401).await;
    let told = loop {
        let told = events.next().await.expect("a word before the end");
        if told.name != "message" {
            break told;
        }
    };
    assert_eq!((told.name.as_str(), told.data["code"].as_str()), ("refused", Some("EW-HTTP-LOGIN")));
    assert!(events.next().await.is_none());
    let again = house.pod("pod-1", "demo").await;
    eventually("the new password opens", async || again.says("app.demo.t", "x").await == 202).await;
    assert_eq!(pod.says("app.demo.t", "x").await, 401);
}
