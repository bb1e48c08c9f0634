//! What a program may send to the node's door for HTTP.

use door::{frame, headers, login, ring, route};
use reqwest::Method;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use schemas::envelope::Headers;

use crate::{tries, tries_text};

#[test]
fn what_comes_to_the_door_is_read_whatever_it_is() {
    let paths = [
        "/v1/pub/app.demo.temp",
        "/v1/req/app.demo.t%2Fx?timeout=250ms",
        "/v1/sub/app.*.%3E",
        "/v1/openapi.json",
    ];
    tries_text("a path", &paths, |text| {
        let (path, query) = text.split_once('?').map_or((text, None), |(path, query)| (path, Some(query)));
        for method in [Method::GET, Method::POST] {
            let _ = route::route(&method, path, query);
        }
    });
    let logins = ["Basic cG9kLTE6cGFzc3dvcmQ=", "Bearer cG9kLTE6cGFzc3dvcmQ="];
    tries_text("a login and other headers", &logins, |text| {
        let mut map = HeaderMap::new();
        if let Ok(value) = HeaderValue::from_bytes(text.as_bytes()) {
            for name in ["authorization", "nats-msg-id", "ce-x"] {
                map.insert(HeaderName::from_static(name), value.clone());
            }
        }
        let _ = (login::login(&map), headers::inward(&map));
        let nats = Headers::from([(text.to_owned(), "x".to_owned()), ("ce-x".to_owned(), text.to_owned())]);
        headers::outward(&nats).for_each(drop);
    });
    let ring = ring::Ring::new("a1".to_owned());
    tries_text("where a reader was", &["a1-0", "a1-18446744073709551615"], |text| {
        let _ = ring.start(Some(text));
    });
    tries(
        "a message that is told",
        &[b"{\"c\": [1, \"x\\n\"]}".to_vec(), b"text\n\nid: 1".to_vec()],
        |bytes| {
            let subject = String::from_utf8_lossy(bytes);
            let told = frame::message("a1-1", &subject, &Headers::new(), bytes);
            let text = std::str::from_utf8(&told).unwrap();
            // One block: nothing that is said begins another.
            assert!(text.ends_with("\n\n") && text.trim_end().lines().count() == 3, "{text}");
        },
    );
}
