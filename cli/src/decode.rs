//! Bytes of a message as something to read: MessagePack and JSON as JSON, text as text, the rest as hex.
//!
//! A content type says what a payload is. Without one it is tried: JSON, then UTF-8 text, then a MessagePack map or array
//! that takes up every byte (a lone number or text would make MessagePack of almost anything), else hex. Whatever comes
//! out is safe on a terminal: no control character, and none of those that turn the writing direction.

use std::fmt::Write;

use schemas::DEPTH_MAX;
use schemas::envelope::{CONTENT_TYPE, Headers, header};
use serde_json::{Map, Number, Value};

/// Hex digits shown of binary data on a human line, in bytes of data.
const HEX_SHOWN_MAX_BYTES: usize = 64;

/// What a payload turned out to be.
#[derive(Debug, Clone, PartialEq)]
pub enum Decoded {
    /// JSON.
    Json(Value),
    /// MessagePack, as the JSON that comes nearest to it.
    MessagePack(Value),
    /// UTF-8 text.
    Text(String),
    /// Anything else.
    Binary(Vec<u8>),
}

impl Decoded {
    /// Reads a payload.
    pub fn read(headers: &Headers, payload: &[u8]) -> Self {
        let kind = find(headers, header::CONTENT_TYPE).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        if kind == CONTENT_TYPE
            && let Some(value) = message_pack(payload)
        {
            return Self::MessagePack(value);
        }
        if let Ok(value) = serde_json::from_slice(payload) {
            return Self::Json(value);
        }
        if let Ok(text) = std::str::from_utf8(payload) {
            return Self::Text(text.to_owned());
        }
        match message_pack(payload) {
            Some(value @ (Value::Object(_) | Value::Array(_))) => Self::MessagePack(value),
            _ => Self::Binary(payload.to_vec()),
        }
    }

    /// The word for it in `--json`.
    pub fn format(&self) -> &'static str {
        match self {
            Self::Json(_) => "json",
            Self::MessagePack(_) => "msgpack",
            Self::Text(_) => "text",
            Self::Binary(_) => "binary",
        }
    }

    /// One line for people.
    pub fn line(&self) -> String {
        match self {
            Self::Json(value) | Self::MessagePack(value) => safe_json(&value.to_string()),
            Self::Text(text) => safe(text),
            Self::Binary(bytes) => {
                let shown = bytes.get(..HEX_SHOWN_MAX_BYTES).unwrap_or(bytes);
                let more = if shown.len() < bytes.len() { "…" } else { "" };
                format!("0x{}{more} ({} bytes)", hex(shown), bytes.len())
            }
        }
    }
}

/// A header by its name, whatever its case.
pub fn find<'a>(headers: &'a Headers, name: &str) -> Option<&'a str> {
    headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

fn message_pack(mut bytes: &[u8]) -> Option<Value> {
    if bytes.is_empty() {
        return None;
    }
    let value = rmpv::decode::read_value_with_max_depth(&mut bytes, DEPTH_MAX).ok()?;
    bytes.is_empty().then(|| to_json(value))
}

fn to_json(value: rmpv::Value) -> Value {
    match value {
        rmpv::Value::Nil => Value::Null,
        rmpv::Value::Boolean(yes) => Value::Bool(yes),
        rmpv::Value::Integer(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => number.into(),
            (_, Some(number)) => number.into(),
            _ => Value::Null,
        },
        // Through its own shortest text: 21.4 stays 21.4 and does not become 21.399999618530273.
        rmpv::Value::F32(number) => float(number.to_string().parse().unwrap_or(f64::from(number))),
        rmpv::Value::F64(number) => float(number),
        rmpv::Value::String(text) => match text.as_str() {
            Some(text) => text.into(),
            None => format!("0x{}", hex(text.as_bytes())).into(),
        },
        rmpv::Value::Binary(bytes) => match String::from_utf8(bytes) {
            Ok(text) => text.into(),
            Err(error) => format!("0x{}", hex(error.as_bytes())).into(),
        },
        rmpv::Value::Array(items) => items.into_iter().map(to_json).collect(),
        rmpv::Value::Map(pairs) => {
            let mut map = Map::new();
            for (key, value) in pairs {
                let key = match to_json(key) {
                    Value::String(text) => text,
                    other => other.to_string(),
                };
                map.insert(key, to_json(value));
            }
            Value::Object(map)
        }
        rmpv::Value::Ext(kind, bytes) => format!("ext {kind} 0x{}", hex(&bytes)).into(),
    }
}

fn float(number: f64) -> Value {
    // JSON has no word for NaN and the infinities.
    Number::from_f64(number).map_or_else(|| Value::String(number.to_string()), Value::Number)
}

/// Lower case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // writing to a String cannot fail
        text
    })
}

/// Could this character do something to a terminal other than showing itself?
fn acts(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}')
}

/// Text from elsewhere, for one line of a terminal.
pub fn safe(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if acts(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

/// JSON for one line of a terminal: still the same JSON.
pub fn safe_json(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if acts(c) {
            let _ = write!(out, "\\u{:04x}", u32::from(c)); // every such character is below U+10000
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn headers(kind: &str) -> Headers {
        Headers::from([("Content-Type".to_owned(), kind.to_owned())])
    }

    #[test]
    fn what_is_not_declared_is_tried() {
        let msgpack = |value: &Value| rmp_serde::to_vec_named(value).unwrap();
        let none = Headers::new();
        let table: Vec<(&str, Headers, Vec<u8>, Decoded)> = vec![
            ("json", none.clone(), br#"{"c":21.4}"#.to_vec(), Decoded::Json(json!({"c": 21.4}))),
            ("json number", none.clone(), b"42".to_vec(), Decoded::Json(json!(42))),
            ("text", none.clone(), b"hello".to_vec(), Decoded::Text("hello".into())),
            ("empty", none.clone(), vec![], Decoded::Text(String::new())),
            ("umlaut", none.clone(), "grün".into(), Decoded::Text("grün".into())),
            ("map", none.clone(), msgpack(&json!({"n": 1})), Decoded::MessagePack(json!({"n": 1}))),
            ("array", none.clone(), msgpack(&json!([1, "x"])), Decoded::MessagePack(json!([1, "x"]))),
            ("map and more", none.clone(), [msgpack(&json!({"n": 1})), vec![0xff]].concat(), {
                Decoded::Binary(vec![0x81, 0xa1, b'n', 1, 0xff])
            }),
            ("lone number is not taken for MessagePack", none.clone(), vec![0xcc, 0xff], {
                Decoded::Binary(vec![0xcc, 0xff])
            }),
            ("declared lone number", headers("application/msgpack"), vec![0xcc, 0xff], {
                Decoded::MessagePack(json!(255))
            }),
            ("declared with a parameter", headers("Application/MsgPack; v=1"), vec![0xc0], {
                Decoded::MessagePack(Value::Null)
            }),
            (
                "declared but wrong",
                headers("application/msgpack"),
                b"no".to_vec(),
                Decoded::Text("no".into()),
            ),
            (
                "declared text is still text",
                headers("text/plain"),
                b"hi".to_vec(),
                Decoded::Text("hi".into()),
            ),
            ("random", none, vec![0xff, 0xfe, 0], Decoded::Binary(vec![0xff, 0xfe, 0])),
        ];
        for (name, headers, payload, want) in table {
            assert_eq!(Decoded::read(&headers, &payload), want, "{name}");
        }
    }

    #[test]
    fn what_json_lacks_has_a_readable_stand_in() {
        let value = rmpv::Value::Map(vec![
            (rmpv::Value::from(7), rmpv::Value::F32(21.4)),
            ("nan".into(), rmpv::Value::F64(f64::NAN)),
            ("log".into(), rmpv::Value::Binary(b"line\n".to_vec())),
            ("bin".into(), rmpv::Value::Binary(vec![0xff, 1])),
            ("ext".into(), rmpv::Value::Ext(5, vec![1, 2])),
            ("big".into(), rmpv::Value::from(u64::MAX)),
        ]);
        let want = json!({"7": 21.4, "nan": "NaN", "log": "line\n", "bin": "0xff01", "ext": "ext 5 0x0102", "big": u64::MAX});
        assert_eq!(to_json(value), want);
    }

    #[test]
    fn hostile_bytes_are_bounded_and_shown_as_hex() {
        let deep = vec![0x91; 100_000];
        assert!(matches!(Decoded::read(&Headers::new(), &deep), Decoded::Binary(_)));
        let huge_count = [0xdf, 0xff, 0xff, 0xff, 0xff];
        assert!(matches!(Decoded::read(&Headers::new(), &huge_count), Decoded::Binary(_)));
        let line = Decoded::Binary(vec![0xff; 100]).line();
        assert!(line.ends_with("ff… (100 bytes)"), "{line}");
    }

    #[test]
    fn nothing_reaches_a_terminal_raw() {
        for payload in
            ["\x1b]0;owned\x07", "a\nb", "\u{9b}31m", "\u{202e}txt", "{\"k\":\"\u{9b}1m\u{202e}\"}"]
        {
            let line = Decoded::read(&Headers::new(), payload.as_bytes()).line();
            assert!(!line.chars().any(acts), "{line:?}");
        }
        let json = Decoded::read(&Headers::new(), "{\"k\":\"\u{9b}1m\"}".as_bytes()).line();
        assert_eq!(serde_json::from_str::<Value>(&json).unwrap(), json!({"k": "\u{9b}1m"}));
    }
}
