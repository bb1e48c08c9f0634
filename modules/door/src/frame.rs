//! What a reader of server-sent events gets, in the form of the HTML standard ("Server-sent events"): blocks of `id:`,
//! `event:` and `data:` lines, each block ended by an empty line.
//!
//! A message is one JSON object: `{"subject": …, "headers": {…}, "data": …}`. `data` is the payload itself where it is
//! JSON (digit for digit as it was sent), a string where it is other text; where it is neither, `data_base64` stands instead.
//! So `JSON.parse(event.data).data` is what a page wants, whatever the sender wrote.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use schemas::envelope::Headers;
use serde::de::IgnoredAny;
use serde_json::json;

/// The longest frame; a message that would make a longer one is told by [`large`].
pub const FRAME_MAX_BYTES: usize = 512 * 1024;
/// After a break a reader comes back so soon.
const RETRY_MS: u32 = 1_000;

/// The first frame: how soon to come back, and from which place.
pub fn opening(id: &str) -> Bytes {
    format!("retry: {RETRY_MS}\nid: {id}\n\n").into()
}

/// Keeps the connection alive; no reader sees it.
pub fn heartbeat() -> Bytes {
    Bytes::from_static(b": alive\n\n")
}

/// A message; [`large`] instead, when it is too long.
pub fn message(id: &str, subject: &str, headers: &Headers, payload: &[u8]) -> Bytes {
    let mut out = String::with_capacity(payload.len() + 160);
    out.push_str(&format!("id: {id}\nevent: message\ndata: {{\"subject\":{}", json!(subject)));
    out.push_str(&format!(",\"headers\":{}", json!(headers)));
    match std::str::from_utf8(payload) {
        Ok(text) if serde_json::from_str::<IgnoredAny>(text).is_ok() => {
            out.push_str(",\"data\":");
            // Between tokens a line's end is only space, and within a string JSON has none: so it stays the same value.
            out.extend(text.trim().chars().map(|c| if c == '\n' || c == '\r' { ' ' } else { c }));
        }
        Ok(text) => out.push_str(&format!(",\"data\":{}", json!(text))),
        Err(_) => out.push_str(&format!(",\"data_base64\":\"{}\"", STANDARD.encode(payload))),
    }
    out.push_str("}\n\n");
    if out.len() > FRAME_MAX_BYTES {
        return large(id, subject, payload.len());
    }
    out.into()
}

/// A message that is too long to be told: what it was.
fn large(id: &str, subject: &str, size_bytes: usize) -> Bytes {
    event(id, "large", &json!({"subject": subject, "size_bytes": size_bytes}))
}

/// Something is missing before this.
pub fn gap(id: &str, reason: &str) -> Bytes {
    event(id, "gap", &json!({"reason": reason}))
}

/// The reader is cut off, because it reads more slowly than is told.
pub fn slow() -> Bytes {
    let reason =
        "read more slowly than messages come; come back with Last-Event-ID, and read faster or fewer";
    event("", "slow", &json!({"reason": reason}))
}

/// It ends, and coming back with the same login will not help. (Not `error`: so a page's own connection errors are called.)
pub fn refused(code: &str, message: &str) -> Bytes {
    event("", "refused", &json!({"code": code, "message": message}))
}

/// `serde_json` writes one line, so no text can end a block or begin a field.
fn event(id: &str, name: &str, data: &serde_json::Value) -> Bytes {
    let id = if id.is_empty() { String::new() } else { format!("id: {id}\n") };
    format!("{id}event: {name}\ndata: {data}\n\n").into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    /// As the HTML standard has a reader do it.
    fn read(frame: &Bytes) -> Vec<(String, String, String)> {
        let text = std::str::from_utf8(frame).unwrap();
        let mut events = Vec::new();
        let (mut id, mut name, mut data) = (String::new(), String::new(), Vec::new());
        for line in text.split(['\n', '\r']) {
            match line.split_once(": ") {
                Some(("id", value)) => id = value.to_owned(),
                Some(("event", value)) => name = value.to_owned(),
                Some(("data", value)) => data.push(value.to_owned()),
                _ if line.is_empty() && !data.is_empty() => {
                    events.push((id.clone(), std::mem::take(&mut name), data.join("\n")));
                    data.clear();
                }
                _ => {}
            }
        }
        events
    }

    fn told(payload: &[u8]) -> Value {
        let headers = Headers::from([("ce-type".to_owned(), "a\nb".to_owned())]);
        let events = read(&message("e-1", "app.demo.t", &headers, payload));
        let [(id, name, data)] = events.as_slice() else { panic!("{events:?}") };
        assert_eq!((id.as_str(), name.as_str()), ("e-1", "message"));
        let value: Value = serde_json::from_str(data).unwrap();
        assert_eq!((&value["subject"], &value["headers"]["ce-type"]), (&json!("app.demo.t"), &json!("a\nb")));
        value
    }

    #[test]
    fn a_payload_is_json_text_or_base64() {
        for (payload, want) in [
            (&b"{\"c\": 21.4}"[..], json!({"c": 21.4})),
            (b"{\n  \"c\":\r\n  [1,\n2]\n}\n", json!({"c": [1, 2]})),
            (b"\"a\\nb\"", json!("a\nb")),
            (b"21", json!(21)),
            (b"null", json!(null)),
            (b"plain", json!("plain")),
            (b"two\nlines\r\n\r\nid: forged\n\n", json!("two\nlines\r\n\r\nid: forged\n\n")),
            (b"", json!("")),
            (b"{\"c\": 1} x", json!("{\"c\": 1} x")),
            (b"{\"c\": \"a\nb\"}", json!("{\"c\": \"a\nb\"}")),
        ] {
            assert_eq!(told(payload)["data"], want, "{payload:?}");
        }
        let bytes = told(b"\xFF\x00");
        assert_eq!((bytes.get("data"), &bytes["data_base64"]), (None, &json!("/wA=")));
    }

    #[test]
    fn a_number_keeps_its_digits() {
        let frame = message("e-1", "app.demo.t", &Headers::new(), b"123456789012345678901234567890.10");
        assert!(String::from_utf8_lossy(&frame).contains("\"data\":123456789012345678901234567890.10}"));
    }

    #[test]
    fn what_is_too_long_is_named() {
        for payload in
            [vec![b'x'; FRAME_MAX_BYTES], vec![1; FRAME_MAX_BYTES / 4], vec![0xFF; FRAME_MAX_BYTES]]
        {
            let events = read(&message("e-1", "app.demo.t", &Headers::new(), &payload));
            let [(_, name, data)] = events.as_slice() else { panic!("{} events", events.len()) };
            assert_eq!(name, "large");
            let want = json!({"subject": "app.demo.t", "size_bytes": payload.len()});
            assert_eq!(serde_json::from_str::<Value>(data).unwrap(), want);
        }
    }
}
