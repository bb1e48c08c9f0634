//! `edgewire tail`: what is said on the bus, live, decoded, one line a message.

use bus::module::Account;
use bus::tool::{Message, Subscription};
use clap::Args;
use futures::stream::SelectAll;
use futures::{FutureExt, Stream, StreamExt};
use schemas::envelope::header;
use serde_json::{Value, json};

use crate::decode::{Decoded, find, hex, safe};
use crate::failure::{Failure, Outcome};
use crate::notices::Notices;
use crate::place::{Place, PlaceArgs, accounts};
use crate::screen::Screen;
use crate::table::{Paint, paint};

/// What is shown of one payload on a human line; `--json` and `--raw` show all.
const SHOWN_MAX_BYTES: usize = 4_096;
/// Lines gathered into one write while messages keep coming.
const WRITE_MAX_BYTES: usize = 256 * 1024;

/// Arguments of `edgewire tail`.
#[derive(Debug, Args)]
pub struct TailArgs {
    /// Subject to listen on: `app.demo.temp`, `app.*.temp`, `app.>`, or `>` for everything
    #[arg(value_parser = filter)]
    subject: String,
    /// One JSON object a line
    #[arg(long, conflicts_with = "raw")]
    json: bool,
    /// Payloads only, as they are (on a terminal control characters are still escaped)
    #[arg(long)]
    raw: bool,
    /// Stop after so many messages
    #[arg(short = 'n', long, value_name = "N")]
    count: Option<u64>,
    /// With a leading wildcard: also the plumbing, which is inboxes and JetStream's own (`_INBOX.`, `$JS.`)
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    place: PlaceArgs,
}

/// Is it how things are said, rather than something that is said? Hidden where everything is asked for, since it is
/// most of it; whoever names it sees it.
fn plumbing(filter: &str, subject: &str) -> bool {
    let first = filter.split('.').next().unwrap_or_default();
    (first == ">" || first == "*") && (subject.starts_with("_INBOX.") || subject.starts_with("$JS."))
}

/// A subject that can be listened on.
fn filter(text: &str) -> Result<String, String> {
    let tokens: Vec<&str> = text.split('.').collect();
    let last = tokens.len() - 1;
    let good = tokens.iter().enumerate().all(|(at, token)| {
        !token.is_empty()
            && !token.chars().any(|c| c.is_whitespace() || c.is_control())
            && (*token != ">" || at == last)
    });
    if good {
        return Ok(text.to_owned());
    }
    Err("a subject is words joined by dots, `*` for one word, `>` at the end for the rest".to_owned())
}

type Heard = SelectAll<std::pin::Pin<Box<dyn Stream<Item = (Account, Message)> + Send>>>;

/// Runs it, until the count is reached or the caller stops it.
pub async fn run(args: TailArgs, screen: &mut Screen, notices: &Notices) -> Outcome<()> {
    let place = Place::find(&args.place).await?;
    let mut buses = Vec::new(); // a subscription lives as long as its connection
    let mut heard = Heard::new();
    let accounts = accounts(&args.subject);
    for account in &accounts {
        let bus = place.connect(*account).await?;
        let listening = listen(&bus, &args.subject).await?;
        notices.settle(&bus).await?;
        let account = *account;
        let hidden = (!args.all).then(|| args.subject.clone());
        let shown = move |message: &Message| {
            let hide = hidden.as_deref().is_some_and(|filter| plumbing(filter, &message.subject));
            std::future::ready(!hide)
        };
        heard.push(listening.filter(shown).map(move |message| (account, message)).boxed());
        buses.push(bus);
    }
    let names: Vec<&str> = accounts.iter().map(|account| account.as_str()).collect();
    eprintln!(
        "edgewire: listening on {} in {} at {} ({}); Ctrl-C ends",
        safe(&args.subject),
        names.join(" and "),
        safe(&place.node),
        safe(place.url())
    );

    let format = Format { json: args.json, raw: args.raw, terminal: screen.terminal, colour: screen.colour };
    let mut left = args.count;
    while left != Some(0) {
        let first = tokio::select! {
            message = heard.next() => message,
            failure = notices.refusal() => return Err(failure),
        };
        let Some(first) = first else {
            return Err(Failure::new("EW-BUS-UNREACHABLE", "the connection was closed", "try again"));
        };
        let mut lines = Vec::new();
        let mut next = Some(first);
        while let Some((account, message)) = next {
            format.line(&mut lines, account, &message, &jiff::Zoned::now());
            left = left.map(|left| left - 1);
            if left == Some(0) || lines.len() > WRITE_MAX_BYTES {
                break;
            }
            next = heard.next().now_or_never().flatten();
        }
        screen.write(&lines).await?;
    }
    Ok(())
}

async fn listen(bus: &bus::connection::Bus, subject: &str) -> Outcome<Subscription> {
    bus.listen(subject).await.map_err(|error| Failure::new("EW-BUS-UNREACHABLE", error, "try again"))
}

/// How messages are shown.
pub struct Format {
    /// `--json`
    pub json: bool,
    /// `--raw`
    pub raw: bool,
    /// A person looks.
    pub terminal: bool,
    /// Paint.
    pub colour: bool,
}

impl Format {
    /// Adds the line of one message.
    pub fn line(&self, out: &mut Vec<u8>, account: Account, message: &Message, at: &jiff::Zoned) {
        if self.raw && !self.terminal {
            out.extend_from_slice(&message.payload);
        } else if self.raw {
            let text = match std::str::from_utf8(&message.payload) {
                Ok(text) => safe(text),
                Err(_) => format!("0x{}", hex(&message.payload)),
            };
            out.extend_from_slice(text.as_bytes());
        } else if self.json {
            let json = crate::decode::safe_json(&as_json(account, message, at).to_string());
            out.extend_from_slice(json.as_bytes());
        } else {
            out.extend_from_slice(self.human(message, at).as_bytes());
        }
        out.push(b'\n');
    }

    /// The payload alone, decoded, in whole: an answer that was asked for.
    pub fn payload(message: &Message) -> Vec<u8> {
        let mut line = Decoded::read(&message.headers, &message.payload).line();
        line.push('\n');
        line.into_bytes()
    }

    fn human(&self, message: &Message, at: &jiff::Zoned) -> String {
        let time = at.strftime("%H:%M:%S%.3f").to_string();
        let mut line = paint(&time, Paint::Dim, self.colour);
        line.push_str("  ");
        line.push_str(&paint(&safe(&message.subject), Paint::Name, self.colour));
        line.push_str("  ");
        let about: Vec<&str> = [header::TYPE, header::SOURCE]
            .iter()
            .filter_map(|name| find(&message.headers, name))
            .filter(|value| !value.is_empty())
            .collect();
        if !about.is_empty() {
            line.push_str(&paint(&format!("[{}]", safe(&about.join(" "))), Paint::Dim, self.colour));
            line.push_str("  ");
        }
        if message.no_responders {
            line.push_str("(nobody answers)");
            return line;
        }
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

/// One message for a program.
pub fn as_json(account: Account, message: &Message, at: &jiff::Zoned) -> Value {
    let decoded = Decoded::read(&message.headers, &message.payload);
    let mut json = json!({
        "time": at.timestamp().strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string(),
        "account": account.as_str(),
        "subject": message.subject,
        "headers": message.headers,
        "format": decoded.format(),
        "size_bytes": message.payload.len(),
    });
    if let Value::Object(map) = &mut json {
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

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use schemas::envelope::Headers;

    fn message(headers: &[(&str, &str)], payload: &[u8]) -> Message {
        Message {
            subject: "app.demo.temp".into(),
            headers: headers.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<Headers>(),
            payload: Bytes::copy_from_slice(payload),
            reply: None,
            no_responders: false,
        }
    }

    fn shown(format: &Format, message: &Message) -> String {
        let at: jiff::Zoned = "2026-05-04T10:03:22.118+00:00[UTC]".parse().unwrap();
        let mut out = Vec::new();
        format.line(&mut out, Account::Work, message, &at);
        String::from_utf8(out).unwrap()
    }

    const PLAIN: Format = Format { json: false, raw: false, terminal: false, colour: false };

    #[test]
    fn a_line_says_when_where_and_what() {
        let plain = message(&[], br#"{"n":118,"c":21.4}"#);
        assert_eq!(shown(&PLAIN, &plain), "10:03:22.118  app.demo.temp  {\"n\":118,\"c\":21.4}\n");
        let event = message(
            &[("ce-type", "io.edgewire.sync.LinkUp"), ("ce-source", "/nodes/n/modules/sync"), ("ce-id", "1")],
            b"x",
        );
        let want = "10:03:22.118  app.demo.temp  [io.edgewire.sync.LinkUp /nodes/n/modules/sync]  x\n";
        assert_eq!(shown(&PLAIN, &event), want);
        let colour = shown(&Format { colour: true, ..PLAIN }, &plain);
        assert!(colour.contains("\x1b[36mapp.demo.temp\x1b[0m"), "{colour:?}");
    }

    #[test]
    fn long_payloads_are_cut_for_people_only() {
        let long = message(&[], &vec![b'x'; 10_000]);
        assert!(shown(&PLAIN, &long).ends_with("x… (10000 bytes; --json or --raw shows all)\n"));
        let json: Value = serde_json::from_str(&shown(&Format { json: true, ..PLAIN }, &long)).unwrap();
        assert_eq!(json["payload"].as_str().unwrap().len(), 10_000);
        assert_eq!(json["time"], "2026-05-04T10:03:22.118Z");
    }

    #[test]
    fn raw_is_raw_only_into_a_pipe() {
        let nasty = message(&[], b"\x1b[2Jx");
        assert_eq!(shown(&Format { raw: true, ..PLAIN }, &nasty), "\x1b[2Jx\n");
        assert_eq!(shown(&Format { raw: true, terminal: true, ..PLAIN }, &nasty), "\\u{1b}[2Jx\n");
        let binary = message(&[], &[0xff, 0x1b]);
        assert_eq!(shown(&Format { raw: true, terminal: true, ..PLAIN }, &binary), "0xff1b\n");
    }

    #[test]
    fn plumbing_is_hidden_only_where_everything_is_asked_for() {
        for (filter, subject, hidden) in [
            (">", "_INBOX.hub.x", true),
            ("*.hub.>", "_INBOX.hub.x", true),
            (">", "$JS.API.INFO", true),
            (">", "$KV.objects.x", false),
            (">", "app.x", false),
            ("_INBOX.>", "_INBOX.hub.x", false),
            ("$JS.>", "$JS.API.INFO", false),
        ] {
            assert_eq!(plumbing(filter, subject), hidden, "{filter} {subject}");
        }
    }

    #[test]
    fn filters_are_checked_before_anything_is_asked() {
        for good in ["app.>", ">", "*", "a.*.c"] {
            assert!(filter(good).is_ok(), "{good}");
        }
        for bad in ["", "a..b", "a.>.b", "a b", ".a"] {
            assert!(filter(bad).is_err(), "{bad:?}");
        }
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
            let declared = message(&[("Content-Type", schemas::envelope::CONTENT_TYPE)], bytes);
            for message in [message(&[], bytes), declared] {
                for (json, raw, terminal) in
                    [(false, false, true), (true, false, false), (false, true, true), (false, true, false)]
                {
                    let format = Format { json, raw, terminal, colour: terminal };
                    let at: jiff::Zoned = "2026-05-04T10:03:22+00:00[UTC]".parse().unwrap();
                    let mut out = Vec::new();
                    format.line(&mut out, Account::Work, &message, &at);
                    assert!(
                        !terminal || !out.windows(4).any(|seen| seen == b"\x1b[31"),
                        "its colours are not ours"
                    );
                }
                Format::payload(&message);
            }
        });
    }
}
