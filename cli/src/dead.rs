//! `edgewire dead`: what could not be decoded or applied, at the hub or on a node, with its reason; say it again, or
//! remove it.
//!
//! Source: stream DEAD, one on each server. A dead letter keeps the subject that it came on, its payload and the reason;
//! the headers that it had are gone.

use std::time::Duration;

use bus::connection::Bus;
use bus::module::Account;
use bus::tool::ToolError;
use bus::tool::stored::{Start, Stored, Told};
use clap::{Args, Subcommand};
use schemas::envelope::{Headers, header};
use schemas::subject;
use serde_json::{Value, json};

use crate::acked::Acked;
use crate::decode::{Decoded, find, hex, safe};
use crate::failure::{Failure, Outcome};
use crate::place::{Place, PlaceArgs, accounts};
use crate::screen::Screen;
use crate::table::{Cell, Paint, table};
use crate::tail::not_read;

/// How long a stream may take to acknowledge.
const ACK_TIMEOUT: Duration = Duration::from_secs(5);
/// Of a payload in the list.
const PAYLOAD_SHOWN_MAX_CHARS: usize = 60;
/// Letters of one list, the latest; the stream may hold many small ones.
const LIST_MAX: usize = 10_000;

/// `edgewire dead …`
#[derive(Debug, Args)]
pub struct DeadArgs {
    #[command(subcommand)]
    command: Option<DeadCommand>,
    #[command(flatten)]
    list: LsArgs,
}

#[derive(Debug, Subcommand)]
enum DeadCommand {
    /// List them: sequence, module, subject and reason
    Ls(LsArgs),
    /// Show one in whole
    Show(OneArgs),
    /// Say one again on the subject that it came on, after what was wrong is mended
    Replay(OneArgs),
    /// Remove one
    Rm(OneArgs),
}

#[derive(Debug, Args)]
struct LsArgs {
    /// Only what this module put aside
    #[arg(long, value_name = "NAME")]
    module: Option<String>,
    /// At most so many, the latest
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    /// A JSON array
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: PlaceArgs,
}

#[derive(Debug, Args)]
struct OneArgs {
    /// Its sequence, as the list shows it
    #[arg(value_name = "SEQUENCE")]
    sequence: u64,
    /// A JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: PlaceArgs,
}

/// Runs it.
pub async fn run(args: DeadArgs, screen: &mut Screen) -> Outcome<()> {
    match args.command {
        None => list(args.list, screen).await,
        Some(DeadCommand::Ls(args)) => list(args, screen).await,
        Some(DeadCommand::Show(args)) => show(args, screen).await,
        Some(DeadCommand::Replay(args)) => replay(args, screen).await,
        Some(DeadCommand::Rm(args)) => remove(args, screen).await,
    }
}

/// The subject that it came on.
fn came_on(stored: &Stored) -> Option<&str> {
    find(&stored.message.headers, header::DEAD_SUBJECT)
}

fn reason(stored: &Stored) -> &str {
    find(&stored.message.headers, header::DEAD_REASON).unwrap_or("-")
}

fn module(stored: &Stored) -> &str {
    stored.message.subject.strip_prefix(&subject::dead("")).unwrap_or(&stored.message.subject)
}

async fn list(args: LsArgs, screen: &mut Screen) -> Outcome<()> {
    let place = Place::find(&args.place).await?;
    let bus = place.connect(Account::Control).await?;
    let filter = subject::dead(args.module.as_deref().unwrap_or("*"));
    let mut letters = read(&bus, filter).await?;
    let limit = usize::try_from(args.limit).unwrap_or(LIST_MAX);
    let older = letters.len().saturating_sub(limit);
    letters.drain(..older);
    if args.json {
        let all: Vec<Value> = letters.iter().map(as_json).collect();
        return screen.json(&Value::Array(all)).await;
    }
    if letters.is_empty() {
        eprintln!("edgewire: no dead letters at {}", safe(&place.node));
        return Ok(());
    }
    if older > 0 {
        eprintln!("edgewire: {older} older ones are not shown; see --limit");
    }
    screen.print(&render(&letters, screen.colour)).await
}

/// All that the stream holds of `filter`, oldest first; the latest [`LIST_MAX`].
async fn read(bus: &Bus, filter: String) -> Outcome<Vec<Stored>> {
    let mut following = bus.follow(subject::STREAM_DEAD, vec![filter], Start::Sequence(1));
    let mut letters = std::collections::VecDeque::new();
    while let Some(told) = following.next().await {
        match told {
            Told::Message(stored) => {
                if letters.len() >= LIST_MAX {
                    letters.pop_front();
                }
                letters.push_back(*stored);
            }
            Told::Reached => break,
            Told::Failed(cause) => {
                let next = "is the server running? see `edgewire modules`";
                return Err(Failure::new(
                    "EW-BUS-FAILED",
                    format!("the dead letters cannot be read: {cause}"),
                    next,
                ));
            }
            // That older ones are gone is no news here.
            Told::Gone(_) | Told::GoneBefore(..) | Told::Replaced => {}
        }
    }
    Ok(letters.into())
}

async fn one(args: &OneArgs) -> Outcome<(Place, Bus, Stored)> {
    let place = Place::find(&args.place).await?;
    let bus = place.connect(Account::Control).await?;
    match bus.stored(subject::STREAM_DEAD, args.sequence).await.map_err(not_read)? {
        Some(stored) => Ok((place, bus, stored)),
        None => Err(unknown(args.sequence, &place)),
    }
}

fn unknown(sequence: u64, place: &Place) -> Failure {
    let cause = format!("there is no dead letter {sequence} at {}", place.node);
    Failure::new("EW-DEAD-UNKNOWN", cause, "`edgewire dead` lists them")
}

async fn show(args: OneArgs, screen: &mut Screen) -> Outcome<()> {
    let (_, _, stored) = one(&args).await?;
    if args.json {
        return screen.json(&as_json(&stored)).await;
    }
    let line = |name: &str, text: &str| format!("{name:<10}{}\n", safe(text));
    let mut out = line("sequence", &stored.sequence.to_string());
    out.push_str(&line("module", module(&stored)));
    out.push_str(&line("subject", came_on(&stored).unwrap_or("-")));
    out.push_str(&line("reason", reason(&stored)));
    out.push_str(&line("time", &stored.at.rfc3339()));
    out.push_str(&line("size", &format!("{} bytes", stored.message.payload.len())));
    // In whole, also where a line elsewhere would be cut.
    let payload = match Decoded::read(&stored.message.headers, &stored.message.payload) {
        Decoded::Binary(bytes) => format!("0x{}", hex(&bytes)),
        other => other.line(),
    };
    out.push_str(&format!("{:<10}{payload}\n", "payload"));
    screen.print(&out).await
}

async fn replay(args: OneArgs, screen: &mut Screen) -> Outcome<()> {
    let (place, _, stored) = one(&args).await?;
    let no = |cause: String| {
        Failure::new(
            "EW-DEAD-NOT-REPLAYED",
            cause,
            "`edgewire dead show` has its payload; it stays where it is",
        )
    };
    let to = came_on(&stored).filter(|to| subject::is_publishable(to)).ok_or_else(|| {
        no(format!("dead letter {} names no subject that can be said again", args.sequence))
    })?;
    let account = accounts(to).first().copied().unwrap_or(Account::Work);
    let bus = place.connect(account).await?;
    // Only what a stream takes: a word said live is for whoever listened then.
    let captured = bus.captures().await.map_err(not_read)?.into_iter().any(|capture| {
        capture.subjects.iter().any(|filter| !filter.starts_with('$') && subject::matches(filter, to))
    });
    if !captured {
        return Err(no(format!("no stream at {} takes {to}", place.node)));
    }
    let id = format!("dead-{}-{}-{}", place.node, args.sequence, stored.at.0);
    let headers: Headers = [("Nats-Msg-Id".to_owned(), id)].into();
    let answer = bus.ask(to, &headers, stored.message.payload.clone(), ACK_TIMEOUT).await;
    let answer = answer.map_err(|error: ToolError| no(error.to_string()))?;
    let mut acked = Acked::default();
    acked.add(&answer.payload, to).map_err(|cause| no(format!("{to}: {cause}")))?;
    screen.print(&acked.line().unwrap_or_default()).await?;
    eprintln!("edgewire: if it is taken now, remove it: edgewire dead rm {}", args.sequence);
    Ok(())
}

async fn remove(args: OneArgs, screen: &mut Screen) -> Outcome<()> {
    let place = Place::find(&args.place).await?;
    let bus = place.connect(Account::Control).await?;
    if !bus.remove_stored(subject::STREAM_DEAD, args.sequence).await.map_err(not_read)? {
        return Err(unknown(args.sequence, &place));
    }
    screen.print(&format!("dead letter {} at {} is removed\n", args.sequence, safe(&place.node))).await
}

fn as_json(stored: &Stored) -> Value {
    let mut json = json!({
        "sequence": stored.sequence,
        "time": stored.at.rfc3339(),
        "module": module(stored),
        "subject": came_on(stored),
        "reason": reason(stored),
        "size_bytes": stored.message.payload.len(),
    });
    if let Value::Object(map) = &mut json {
        match Decoded::read(&stored.message.headers, &stored.message.payload) {
            Decoded::Json(value) | Decoded::MessagePack(value) => map.insert("payload".to_owned(), value),
            Decoded::Text(text) => map.insert("payload".to_owned(), text.into()),
            Decoded::Binary(bytes) => map.insert("payload_hex".to_owned(), hex(&bytes).into()),
        };
    }
    json
}

fn render(letters: &[Stored], colour: bool) -> String {
    let row = |stored: &Stored| {
        let payload = Decoded::read(&stored.message.headers, &stored.message.payload).line();
        let shown = match payload.char_indices().nth(PAYLOAD_SHOWN_MAX_CHARS) {
            Some((at, _)) => format!("{}…", payload.get(..at).unwrap_or_default()),
            None => payload,
        };
        vec![
            Cell::from(stored.sequence.to_string()),
            Cell::new(stored.at.rfc3339(), Paint::Dim),
            Cell::from(module(stored)),
            Cell::new(came_on(stored).unwrap_or("-"), Paint::Name),
            Cell::new(reason(stored), Paint::Warn),
            Cell::new(shown, Paint::Dim),
        ]
    };
    let rows: Vec<Vec<Cell>> = letters.iter().map(row).collect();
    table(&["SEQUENCE", "TIME", "MODULE", "SUBJECT", "REASON", "PAYLOAD"], &rows, colour)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bus::tool::Message;
    use schemas::Timestamp;

    fn letter(payload: &[u8]) -> Stored {
        let headers = [
            ("ew-dead-reason".to_owned(), "not a report: \u{1b}[2J".to_owned()),
            ("ew-dead-subject".to_owned(), "up.demo.temp".to_owned()),
        ];
        Stored {
            stream: "DEAD".into(),
            sequence: 7,
            at: Timestamp::parse("2026-05-04T10:00:00Z").unwrap(),
            message: Message {
                subject: "ew.dead.sync".into(),
                headers: headers.into(),
                payload: payload.to_vec().into(),
                reply: None,
                no_responders: false,
            },
        }
    }

    #[test]
    fn letters_are_rows_and_nothing_is_raw() {
        let want = "\
SEQUENCE   TIME                   MODULE   SUBJECT        REASON                    PAYLOAD
7          2026-05-04T10:00:00Z   sync     up.demo.temp   not a report: \\u{1b}[2J   {\"n\":1}
";
        assert_eq!(render(&[letter(br#"{"n":1}"#)], false), want);
        let json = as_json(&letter(&[0xff, 0]));
        assert_eq!((&json["module"], &json["payload_hex"]), (&json!("sync"), &json!("ff00")));
    }
}
