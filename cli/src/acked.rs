//! A stream's word for what was said to it: stored, and as what, or why not.

use bus::acknowledgement::{self, Refused, Stored};

use crate::decode::safe;

/// What streams said of what was sent.
#[derive(Debug, Default)]
pub struct Acked {
    /// So many messages are stored.
    pub stored: u64,
    there_already: u64,
    first: Option<(String, u64)>,
    last: u64,
}

impl Acked {
    /// Reads a stream's acknowledgement; `Err` says why it stored nothing.
    pub fn add(&mut self, answer: &[u8], subject: &str) -> Result<(), String> {
        match acknowledgement::read(answer) {
            Some(Ok(Stored { stream, sequence, duplicate })) => {
                self.first.get_or_insert((stream, sequence));
                self.last = sequence;
                self.stored += 1;
                self.there_already += u64::from(duplicate);
                Ok(())
            }
            Some(Err(Refused { description, .. })) => Err(format!("the stream refused: {description}")),
            None => Err(format!("somebody answered on {subject}, but no stream")),
        }
    }

    /// For people; `None` when nothing was stored.
    pub fn line(&self) -> Option<String> {
        let (stream, first) = self.first.as_ref()?;
        let which = if self.stored == 1 {
            format!("stored in {} as {first}", safe(stream))
        } else {
            format!("stored {} in {}, from {first} to {}", self.stored, safe(stream), self.last)
        };
        Some(match (self.there_already, self.stored) {
            (0, _) => format!("{which}\n"),
            (1, 1) => format!("{which} (it was there already)\n"),
            (already, _) => format!("{which} ({already} were there already)\n"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_streams_word_is_shown() {
        let ack = |n: u64, more: &str| format!(r#"{{"stream":"UPLINK","seq":{n}{more}}}"#);
        for (answers, want) in [
            (vec![ack(7, "")], "stored in UPLINK as 7\n"),
            (vec![ack(7, r#","duplicate":true"#)], "stored in UPLINK as 7 (it was there already)\n"),
            (vec![ack(7, ""), ack(9, "")], "stored 2 in UPLINK, from 7 to 9\n"),
        ] {
            let mut acked = Acked::default();
            answers.iter().for_each(|answer| acked.add(answer.as_bytes(), "up.x.y").unwrap());
            assert_eq!(acked.line().as_deref(), Some(want));
        }
        let mut acked = Acked::default();
        for (answer, want) in [
            // As nats-server says it: it names the stream, and a sequence.
            (
                r#"{"error":{"code":503,"err_code":10077,"description":"maximum bytes exceeded"},"stream":"UPLINK","seq":0}"#,
                "the stream refused: maximum bytes exceeded",
            ),
            ("hello", "somebody answered on up.x.y, but no stream"),
        ] {
            assert_eq!(acked.add(answer.as_bytes(), "up.x.y"), Err(want.to_owned()));
        }
        assert_eq!(acked.line(), None);
    }

    #[test]
    fn whatever_answers_is_a_streams_word_or_not() {
        let samples = [
            br#"{"stream":"UPLINK","seq":7,"duplicate":true}"#.to_vec(),
            br#"{"error":{"code":503,"description":"no"}}"#.to_vec(),
        ];
        crate::fuzz::try_bytes("an acknowledgement", &samples, |bytes| {
            let mut acked = Acked::default();
            let _ = acked.add(bytes, "up.x.y");
            acked.line();
        });
    }
}
