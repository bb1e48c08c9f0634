//! Which headers pass between HTTP and NATS: `Content-Type`, `Nats-Msg-Id`, and CloudEvents' attributes (`ce-…`, the same
//! words in both of its bindings). Back to who asked also what a NATS micro service says of an error. All others stay where
//! they are: they concern one hop, or would let a client speak to a stream past its rights.

use hyper::HeaderMap;
use hyper::header::{HeaderName, HeaderValue};
use schemas::command::Refusal;
use schemas::envelope::Headers;

/// What CloudEvents' attributes begin with.
const CLOUD_EVENTS: &str = "ce-";
/// As NATS spells them: there a header's name has a case.
const PASS: [&str; 2] = ["Content-Type", "Nats-Msg-Id"];
/// Back to who asked.
const PASS_BACK: [&str; 3] = ["Content-Type", "Nats-Service-Error", "Nats-Service-Error-Code"];

/// Those of a request that go with the message.
pub fn inward(http: &HeaderMap) -> Result<Headers, Refusal> {
    let mut headers = Headers::new();
    for (name, value) in http {
        // hyper has made them lower case.
        let known = PASS.iter().find(|known| known.eq_ignore_ascii_case(name.as_str()));
        let name = match known {
            Some(known) => *known,
            None if name.as_str().starts_with(CLOUD_EVENTS) => name.as_str(),
            None => continue,
        };
        let value = value.to_str().map_err(|_| {
            let message =
                format!("the header {name} is not visible ASCII; percent-encode it, as CloudEvents does");
            Refusal::new(400, "EW-HTTP-HEADER", message)
        })?;
        headers.insert(name.to_owned(), value.to_owned());
    }
    Ok(headers)
}

/// Those of an answer that go back; one that HTTP cannot carry stays away.
pub fn outward(nats: &Headers) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
    nats.iter().filter_map(|(name, value)| {
        let lower = name.to_ascii_lowercase();
        let passes =
            PASS_BACK.iter().any(|known| known.eq_ignore_ascii_case(name)) || lower.starts_with(CLOUD_EVENTS);
        passes.then(|| Some((lower.parse().ok()?, HeaderValue::from_str(value).ok()?)))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_passes_and_nothing_else() {
        let mut http = HeaderMap::new();
        for (name, value) in [
            ("content-type", "application/json"),
            ("nats-msg-id", "sensor-1"),
            ("ce-type", "temp"),
            ("nats-rollup", "all"),
            ("nats-expected-stream", "OTHER"),
            ("authorization", "Basic x"),
            ("x-mine", "1"),
        ] {
            http.insert(name, HeaderValue::from_static(value));
        }
        let headers = inward(&http).unwrap();
        let want = [("Content-Type", "application/json"), ("Nats-Msg-Id", "sensor-1"), ("ce-type", "temp")];
        assert_eq!(headers, want.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
        http.insert("ce-subject", HeaderValue::from_bytes(b"\xC3\xA4").unwrap());
        assert_eq!(inward(&http).unwrap_err().status, 400);
    }

    #[test]
    fn an_answers_headers_come_back_where_http_can_carry_them() {
        let nats: Headers = [
            ("Content-Type", "text/plain"),
            ("ce-id", "7"),
            ("Nats-Service-Error-Code", "404"),
            ("ce-bad", "a\nb"),
            ("ce-\u{e4}", "x"),
            ("Set-Cookie", "x"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        let mut back: Vec<String> = outward(&nats).map(|(name, _)| name.to_string()).collect();
        back.sort();
        assert_eq!(back, ["ce-id", "content-type", "nats-service-error-code"]);
    }
}
