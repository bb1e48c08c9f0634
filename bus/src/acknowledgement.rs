//! What a stream answers to who says something to it: stored, and as what, or why not.
//!
//! The server puts the answer to whatever reply subject the message named, and looks at nobody's permission for it. So one
//! workload can have it put where another speaks, and what stands in a stream need not be of whoever may write there.
//!
//! Source: JetStream's publish acknowledgement (NATS ADR-1, `io.nats.jetstream.api.v1.pub_ack_response`).

use schemas::envelope::Headers;
use serde::Deserialize;

use crate::module::Account;
use crate::provision::{Place, Row, TABLE};

/// No answer is longer: names and numbers, and a short text.
const ANSWER_MAX_BYTES: usize = 1_024;

/// A stream's acknowledgement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The stream.
    pub stream: String,
    /// The message's sequence in it.
    pub sequence: u64,
    /// It was there already, under the same `Nats-Msg-Id`.
    pub duplicate: bool,
}

/// A stream's refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// NATS' `err_code`; 0 when it gave none.
    pub code: u64,
    /// In its words.
    pub description: String,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    stream: String,
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    duplicate: bool,
    error: Option<Error>,
}

#[derive(Deserialize)]
struct Error {
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

/// A stream's acknowledgement or refusal; `None` when it is neither.
pub fn read(payload: &[u8]) -> Option<Result<Stored, Refused>> {
    let answer: Answer = serde_json::from_slice(payload).ok()?;
    if let Some(Error { err_code, description }) = answer.error {
        return Some(Err(Refused { code: err_code, description }));
    }
    let Answer { stream, seq, duplicate, .. } = answer;
    (!stream.is_empty() && seq > 0).then_some(Ok(Stored { stream, sequence: seq, duplicate }))
}

/// An answer with the fields that there are, and no other.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "which fields there are is what is asked")]
struct Exact {
    #[serde(default)]
    error: Option<ExactError>,
    stream: String,
    #[serde(default)]
    domain: Option<String>,
    seq: u64,
    #[serde(default)]
    duplicate: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "as above")]
struct ExactError {
    code: u16,
    err_code: u64,
    description: String,
}

/// Does a stored message read, to the letter, as what one of a node's streams answered a workload? Then the server said it, and
/// whoever asked had it put there: nobody knows who. A workload's own word of the same text, without headers, is taken for one,
/// too.
pub fn is_one(headers: &Headers, payload: &[u8]) -> bool {
    if !headers.is_empty() || payload.len() > ANSWER_MAX_BYTES || !payload.starts_with(b"{") {
        return false;
    }
    let Ok(answer) = serde_json::from_slice::<Exact>(payload) else { return false };
    let of_workloads = |row: &&Row| row.place == Place::Edge && row.account == Account::Work;
    TABLE.iter().filter(of_workloads).any(|row| row.stream() == answer.stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: &str = r#"{"error":{"code":503,"err_code":10077,"description":"maximum bytes exceeded"},"stream":"UPLINK","seq":0}"#;

    #[test]
    fn an_answer_is_read() {
        let stored = |sequence, duplicate| Some(Ok(Stored { stream: "UPLINK".into(), sequence, duplicate }));
        let full = Refused { code: 10077, description: "maximum bytes exceeded".into() };
        for (text, want) in [
            (r#"{"stream":"UPLINK","seq":7,"domain":"edge-a"}"#, stored(7, false)),
            (r#"{"stream":"UPLINK","seq":7,"duplicate":true}"#, stored(7, true)),
            (FULL, Some(Err(full))),
            (r#"{"stream":"","seq":1}"#, None),
            (r#"{"temperature":21}"#, None),
            ("21", None),
            ("", None),
        ] {
            assert_eq!(read(text.as_bytes()), want, "{text}");
        }
    }

    #[test]
    fn only_the_servers_own_words_are_taken_for_its_words() {
        let plain = r#"{"stream":"UPLINK","domain":"edge-a","seq":7}"#;
        for (text, want) in [
            (plain, true),
            (r#"{"stream":"BULK","domain":"edge-a","seq":7,"duplicate": true}"#, true),
            (r#"{"stream":"RULES","seq":7}"#, true),
            (FULL, true),
            (r#"{"stream":"OUTBOX","domain":"edge-a","seq":7}"#, false),
            (r#"{"stream":"UPLINK","seq":7,"temperature":21}"#, false),
            (r#"{"stream":"UPLINK"}"#, false),
            (r#"{"seq":7}"#, false),
            (r#"[{"stream":"UPLINK","seq":7}]"#, false),
            ("", false),
        ] {
            assert_eq!(is_one(&Headers::new(), text.as_bytes()), want, "{text}");
        }
        let headers: Headers = [("ce-id".to_owned(), "7".to_owned())].into();
        assert!(!is_one(&headers, plain.as_bytes()), "the server's has none");
        let long = format!(r#"{{"stream":"UPLINK","seq":7,"domain":"{}"}}"#, "x".repeat(ANSWER_MAX_BYTES));
        assert!(!is_one(&Headers::new(), long.as_bytes()));
    }

    #[test]
    fn whatever_answers_is_read() {
        let samples = [br#"{"stream":"UPLINK","seq":7,"duplicate":true,"error":{"err_code":1}}"#.to_vec()];
        crate::fuzz::try_bytes("an acknowledgement", &samples, |bytes| {
            drop(read(bytes));
            is_one(&Headers::new(), bytes);
        });
    }
}
