//! How one message is shown: a line for people, a JSON object for programs, or its payload alone.

use bus::module::Account;
use bus::tool::Message;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use schemas::envelope::header;
use schemas::subject;
use serde_json::{Value, json};

use super::flow::Item;
use crate::decode::{Decoded, find, hex, safe};
use crate::table::{Paint, paint};

/// What is shown of one payload on a human line; `--json` and `--raw` show all.
const SHOWN_MAX_BYTES: usize = 4_096;
/// What a KV removal says in its header, and the word for it.
const KV_OPERATION: &str = "KV-Operation";

/// The form of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// For people.
    Line,
    /// For people, with node, account, stream and sequence.
    Wide,
    /// `--json`
    Json,
    /// `--raw`
    Raw,
}

/// How messages are shown.
pub struct Format {
    /// The form of a line.
    pub form: Form,
    /// A person looks.
    pub terminal: bool,
    /// Paint.
    pub colour: bool,
    /// Where the reader's clock stands.
    pub zone: TimeZone,
    /// The day that needs no date.
    pub today: Date,
    /// The place that is looked at: `hub`, or a node.
    pub place: String,
}

impl Format {
    /// As this machine and its terminal are.
    pub fn new(form: Form, terminal: bool, colour: bool, place: &str) -> Self {
        let now = Zoned::now();
        Self {
            form,
            terminal,
            colour,
            zone: now.time_zone().clone(),
            today: now.date(),
            place: place.to_owned(),
        }
    }

    /// Adds the line of one message.
    pub fn line(&self, out: &mut Vec<u8>, item: &Item) {
        let payload = &item.message.payload;
        match self.form {
            Form::Raw if !self.terminal => out.extend_from_slice(payload),
            Form::Raw => {
                let text = match std::str::from_utf8(payload) {
                    Ok(text) => safe(text),
                    Err(_) => format!("0x{}", hex(payload)),
                };
                out.extend_from_slice(text.as_bytes());
            }
            Form::Json => {
                let json = crate::decode::safe_json(&as_json(item, &self.place).to_string());
                out.extend_from_slice(json.as_bytes());
            }
            Form::Line | Form::Wide => out.extend_from_slice(self.human(item).as_bytes()),
        }
        out.push(b'\n');
    }

    /// The payload alone, decoded, in whole: an answer that was asked for.
    pub fn payload(message: &Message) -> Vec<u8> {
        let mut line = Decoded::read(&message.headers, &message.payload).line();
        line.push('\n');
        line.into_bytes()
    }

    /// The time of day, with the date on another day than today.
    pub fn time(&self, at: Timestamp) -> String {
        let at = at.to_zoned(self.zone.clone());
        let form = if at.date() == self.today { "%H:%M:%S%.3f" } else { "%Y-%m-%d %H:%M:%S%.3f" };
        at.strftime(form).to_string()
    }

    fn human(&self, item: &Item) -> String {
        let message = &item.message;
        let mut line = paint(&self.time(item.at), Paint::Dim, self.colour);
        let mut add = |text: &str, colour: Paint| {
            line.push_str("  ");
            line.push_str(&paint(text, colour, self.colour));
        };
        if self.form == Form::Wide {
            add(&safe(&node_of(item, &self.place)), Paint::Plain);
            add(item.account.as_str(), Paint::Dim);
            let stored = item.stored.as_ref().map(|(stream, sequence)| format!("{stream}:{sequence}"));
            add(&safe(stored.as_deref().unwrap_or("live")), Paint::Dim);
        }
        add(&safe(&message.subject), Paint::Name);
        let about: Vec<&str> = [header::TYPE, header::SOURCE]
            .iter()
            .filter_map(|name| find(&message.headers, name))
            .filter(|value| !value.is_empty())
            .collect();
        if !about.is_empty() {
            add(&format!("[{}]", safe(&about.join(" "))), Paint::Dim);
        }
        if let Some(reason) = find(&message.headers, header::DEAD_REASON) {
            add(&format!("({})", safe(reason)), Paint::Warn);
        }
        match find(&message.headers, KV_OPERATION) {
            Some("DEL") => add("(removed)", Paint::Warn),
            Some("PURGE") => add("(removed, with its history)", Paint::Warn),
            _ => {}
        }
        if message.no_responders {
            add("(nobody answers)", Paint::Plain);
            return line;
        }
        line.push_str("  ");
        let shown = Decoded::read(&message.headers, &message.payload).line();
        match shown.char_indices().find(|(at, _)| *at >= SHOWN_MAX_BYTES).and_then(|(at, _)| shown.get(..at))
        {
            Some(part) => {
                line.push_str(part);
                line.push_str(&format!("… ({} bytes; --json or --raw shows all)", message.payload.len()));
            }
            None => line.push_str(&shown),
        }
        line.trim_end().to_owned()
    }
}

/// Whose message is it: the node that its subject names, or its source; else the place itself.
pub fn node_of(item: &Item, place: &str) -> String {
    if let Some((node, _, _)) = subject::carried(&item.message.subject) {
        return node.to_string();
    }
    let source =
        find(&item.message.headers, header::SOURCE).and_then(|source| source.strip_prefix("/nodes/"));
    match source.and_then(|rest| rest.split('/').next()).filter(|node| !node.is_empty()) {
        Some(node) => node.to_owned(),
        None => place.to_owned(),
    }
}

/// RFC 3339 in UTC with milliseconds.
pub fn rfc3339(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

/// One message for a program.
pub fn as_json(item: &Item, place: &str) -> Value {
    let message = &item.message;
    let decoded = Decoded::read(&message.headers, &message.payload);
    let mut json = json!({
        "time": rfc3339(item.at),
        "account": item.account.as_str(),
        "node": node_of(item, place),
        "subject": message.subject,
        "headers": message.headers,
        "format": decoded.format(),
        "size_bytes": message.payload.len(),
    });
    if let Value::Object(map) = &mut json {
        if let Some((stream, sequence)) = &item.stored {
            map.insert("stream".to_owned(), stream.as_str().into());
            map.insert("sequence".to_owned(), (*sequence).into());
        }
        if let Some(reply) = &message.reply {
            map.insert("reply".to_owned(), reply.as_str().into());
        }
        match decoded {
            Decoded::Json(value) | Decoded::MessagePack(value) => map.insert("payload".to_owned(), value),
            Decoded::Text(text) => map.insert("payload".to_owned(), text.into()),
            Decoded::Binary(bytes) => map.insert("payload_hex".to_owned(), hex(&bytes).into()),
        };
    }
    json
}

/// A message that was just heard, as an item.
pub fn now(account: Account, message: Message) -> Item {
    Item { account, at: Timestamp::now(), stored: None, message }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use bytes::Bytes;
    use schemas::envelope::Headers;

    /// A message of a test.
    pub fn item(headers: &[(&str, &str)], payload: &[u8]) -> Item {
        let message = Message {
            subject: "app.demo.temp".into(),
            headers: headers.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<Headers>(),
            payload: Bytes::copy_from_slice(payload),
            reply: None,
            no_responders: false,
        };
        let at = "2026-05-04T10:03:22.118Z".parse().unwrap();
        Item { account: Account::Work, at, stored: None, message }
    }

    fn format(form: Form) -> Format {
        Format {
            form,
            terminal: false,
            colour: false,
            zone: TimeZone::UTC,
            today: jiff::civil::date(2026, 5, 4),
            place: "hub".into(),
        }
    }

    fn shown(format: &Format, item: &Item) -> String {
        let mut out = Vec::new();
        format.line(&mut out, item);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_line_says_when_where_and_what() {
        let plain = item(&[], br#"{"n":118,"c":21.4}"#);
        let line = format(Form::Line);
        assert_eq!(shown(&line, &plain), "10:03:22.118  app.demo.temp  {\"n\":118,\"c\":21.4}\n");
        let event = item(
            &[("ce-type", "io.edgewire.sync.LinkUp"), ("ce-source", "/nodes/n/modules/sync"), ("ce-id", "1")],
            b"x",
        );
        let want = "10:03:22.118  app.demo.temp  [io.edgewire.sync.LinkUp /nodes/n/modules/sync]  x\n";
        assert_eq!(shown(&line, &event), want);
        let colour = shown(&Format { colour: true, ..format(Form::Line) }, &plain);
        assert!(colour.contains("\x1b[36mapp.demo.temp\x1b[0m"), "{colour:?}");
        let tomorrow = Format { today: jiff::civil::date(2026, 5, 5), ..format(Form::Line) };
        assert!(shown(&tomorrow, &plain).starts_with("2026-05-04 10:03:22.118  app.demo.temp"));
    }

    #[test]
    fn a_wide_line_says_whose_it_is_and_where_it_stands() {
        let mut item = item(&[], b"x");
        let wide = format(Form::Wide);
        assert_eq!(shown(&wide, &item), "10:03:22.118  hub  WORK  live  app.demo.temp  x\n");
        item.stored = Some(("FROM".into(), 12));
        item.message.subject = "from.edge-a.demo.temp".into();
        assert_eq!(shown(&wide, &item), "10:03:22.118  edge-a  WORK  FROM:12  from.edge-a.demo.temp  x\n");
        let json: Value = serde_json::from_str(&shown(&format(Form::Json), &item)).unwrap();
        assert_eq!(
            (&json["node"], &json["stream"], &json["sequence"]),
            (&json!("edge-a"), &json!("FROM"), &json!(12))
        );
    }

    #[test]
    fn removals_and_dead_letters_say_so() {
        let line = |headers: &[(&str, &str)]| shown(&format(Form::Line), &item(headers, b""));
        assert_eq!(line(&[("KV-Operation", "DEL")]), "10:03:22.118  app.demo.temp  (removed)\n");
        let purged = line(&[("KV-Operation", "PURGE")]);
        assert_eq!(purged, "10:03:22.118  app.demo.temp  (removed, with its history)\n");
        assert_eq!(line(&[("ew-dead-reason", "no\x1b[2J")]), "10:03:22.118  app.demo.temp  (no\\u{1b}[2J)\n");
    }

    #[test]
    fn long_payloads_are_cut_for_people_only() {
        let long = item(&[], &vec![b'x'; 10_000]);
        assert!(shown(&format(Form::Line), &long).ends_with("x… (10000 bytes; --json or --raw shows all)\n"));
        let json: Value = serde_json::from_str(&shown(&format(Form::Json), &long)).unwrap();
        assert_eq!(json["payload"].as_str().unwrap().len(), 10_000);
        assert_eq!(json["time"], "2026-05-04T10:03:22.118Z");
    }

    #[test]
    fn raw_is_raw_only_into_a_pipe() {
        let nasty = item(&[], b"\x1b[2Jx");
        assert_eq!(shown(&format(Form::Raw), &nasty), "\x1b[2Jx\n");
        let terminal = Format { terminal: true, ..format(Form::Raw) };
        assert_eq!(shown(&terminal, &nasty), "\\u{1b}[2Jx\n");
        assert_eq!(shown(&terminal, &item(&[], &[0xff, 0x1b])), "0xff1b\n");
    }

    #[test]
    fn whatever_is_said_can_be_shown() {
        let samples = [
            br#"{"c":21.4}"#.to_vec(),
            schemas::encode(&serde_json::json!({"a": [1, -1, 2.5, null, "x"]})),
            b"\xc7\x01\x05z\xca\x7f\x80\x00\x00\x82\x01\x02\x80\x03".to_vec(),
            "\u{1b}[31mred\u{202e}".as_bytes().to_vec(),
        ];
        crate::fuzz::try_bytes("a message", &samples, |bytes| {
            let declared = item(&[("Content-Type", schemas::envelope::CONTENT_TYPE)], bytes);
            for item in [item(&[], bytes), declared] {
                for (form, terminal) in [
                    (Form::Line, true),
                    (Form::Wide, true),
                    (Form::Json, false),
                    (Form::Raw, true),
                    (Form::Raw, false),
                ] {
                    let format = Format { terminal, colour: terminal, ..format(form) };
                    let mut out = Vec::new();
                    format.line(&mut out, &item);
                    assert!(
                        !terminal || !out.windows(4).any(|seen| seen == b"\x1b[31"),
                        "its colours are not ours"
                    );
                }
                Format::payload(&item.message);
            }
        });
    }
}
