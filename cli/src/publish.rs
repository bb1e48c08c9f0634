//! `edgewire pub` and `edgewire req`: say something on the bus, or ask and show the answer.
//!
//! On a subject whose class is acknowledged (`up.`, `bulk.`, and `to.` at the hub) `pub` waits for the stream's word and shows it.

use std::io::{BufRead, Read};
use std::path::PathBuf;
use std::time::Duration;

use bus::connection::Bus;
use bus::tool::ToolError;
use bytes::Bytes;
use clap::Args;
use schemas::class::Class;
use schemas::envelope::Headers;
use schemas::{MESSAGE_MAX_BYTES, subject};

use crate::acked::Acked;
use crate::ask::ask;
use crate::duration;
use crate::failure::{Failure, Outcome};
use crate::notices::Notices;
use crate::place::{Place, PlaceArgs, accounts};
use crate::screen::Screen;
use crate::tail::format::{Format, as_json, now};

/// How long a stream may take to acknowledge.
const ACK_TIMEOUT: Duration = Duration::from_secs(5);

/// What is sent, and where.
#[derive(Debug, Args)]
struct Letter {
    /// Subject to send on (no wildcards): `app.<namespace>.<topic>` live, `up.<namespace>.<topic>` stored on a node
    #[arg(value_parser = publishable)]
    subject: String,
    /// Payload as text; `-` reads standard input [default: empty]
    payload: Option<String>,
    /// Payload out of a file
    #[arg(long, value_name = "FILE", conflicts_with = "payload")]
    file: Option<PathBuf>,
    /// A header; may be given several times
    #[arg(short = 'H', long = "header", value_name = "NAME:VALUE", value_parser = header)]
    headers: Vec<(String, String)>,
    #[command(flatten)]
    place: PlaceArgs,
}

/// Arguments of `edgewire pub`.
#[derive(Debug, Args)]
pub struct PubArgs {
    #[command(flatten)]
    letter: Letter,
    /// Wait until a stream has stored it; fail when none does. Always so on up. and bulk.
    #[arg(long)]
    wait_ack: bool,
    /// One message for each line of standard input
    #[arg(long, conflicts_with_all = ["payload", "file", "count"])]
    stdin: bool,
    /// So many times the same
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    count: u64,
}

/// Arguments of `edgewire req`.
#[derive(Debug, Args)]
pub struct ReqArgs {
    #[command(flatten)]
    letter: Letter,
    /// How long to wait for the answer
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration::parse)]
    timeout: Duration,
    /// The answer as one JSON object with its headers
    #[arg(long)]
    json: bool,
}

/// A subject that can be sent on.
pub fn publishable(text: &str) -> Result<String, String> {
    if subject::is_publishable(text) {
        return Ok(text.to_owned());
    }
    Err("a subject to send on is words joined by dots, without wildcards or spaces".to_owned())
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("write it as NAME:VALUE")?;
    let name = name.trim();
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("a header's name is ASCII without spaces".to_owned());
    }
    if value.chars().any(char::is_control) {
        return Err("a header's value is one line".to_owned());
    }
    Ok((name.to_owned(), value.trim().to_owned()))
}

impl Letter {
    /// The payload; read before anything is connected, so that a mistake costs nothing.
    async fn payload(&self) -> Outcome<Bytes> {
        let bytes = match (self.payload.as_deref(), self.file.clone()) {
            (Some("-"), _) => read("standard input", || Ok(Box::new(std::io::stdin()))).await?,
            (Some(text), _) => text.as_bytes().to_vec(),
            (None, Some(path)) => {
                let name = path.display().to_string();
                read(&name, move || Ok(Box::new(std::fs::File::open(path)?))).await?
            }
            (None, None) => Vec::new(),
        };
        fits(bytes.len())?;
        Ok(bytes.into())
    }

    fn headers(&self) -> Headers {
        self.headers.iter().cloned().collect()
    }

    async fn bus(&self) -> Outcome<(Place, Bus)> {
        let place = Place::find(&self.place).await?;
        // A subject that can be sent on has one account.
        let account = accounts(&self.subject).first().copied().unwrap_or(bus::module::Account::Work);
        let bus = place.connect(account).await?;
        Ok((place, bus))
    }
}

/// All bytes of `source`, or one more than a message may have.
async fn read<F>(name: &str, source: F) -> Outcome<Vec<u8>>
where
    F: FnOnce() -> std::io::Result<Box<dyn Read>> + Send + 'static,
{
    let reading = tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        source()?.take(MESSAGE_MAX_BYTES as u64 + 1).read_to_end(&mut bytes).map(|_| bytes)
    });
    let read = reading.await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    read.map_err(|error| {
        let cause = format!("cannot read {name}: {error}");
        Failure::new("EW-INPUT-FAILED", cause, "pass the payload as an argument")
    })
}

fn fits(bytes: usize) -> Outcome<()> {
    if bytes <= MESSAGE_MAX_BYTES {
        return Ok(());
    }
    let cause = format!("the payload is over the bound of {MESSAGE_MAX_BYTES} bytes");
    Err(Failure::new("EW-PAYLOAD-TOO-LARGE", cause, "send it in parts"))
}

/// What is sent one after the other: the same some times, or the lines of standard input.
enum Payloads {
    Same(Bytes, u64),
    Lines(tokio::sync::mpsc::Receiver<std::io::Result<Vec<u8>>>),
}

/// Lines of standard input that wait to be sent.
const LINES_WAITING_MAX: usize = 64;

impl Payloads {
    /// The lines of standard input, without their ends. A thread reads them and ends with the input or with us.
    fn lines() -> Self {
        let (tell, lines) = tokio::sync::mpsc::channel(LINES_WAITING_MAX);
        std::thread::spawn(move || {
            let mut input = std::io::stdin().lock();
            loop {
                let mut line = Vec::new();
                let bounded = (&mut input).take(MESSAGE_MAX_BYTES as u64 + 2).read_until(b'\n', &mut line);
                let told = match bounded {
                    Ok(0) => return,
                    Ok(_) => {
                        if line.last() == Some(&b'\n') {
                            line.pop();
                        }
                        Ok(line)
                    }
                    Err(error) => Err(error),
                };
                let failed = told.is_err();
                if tell.blocking_send(told).is_err() || failed {
                    return;
                }
            }
        });
        Self::Lines(lines)
    }

    async fn next(&mut self) -> Outcome<Option<Bytes>> {
        match self {
            Self::Same(_, 0) => Ok(None),
            Self::Same(payload, left) => {
                *left -= 1;
                Ok(Some(payload.clone()))
            }
            Self::Lines(lines) => match lines.recv().await {
                None => Ok(None),
                Some(Ok(line)) => {
                    fits(line.len())?;
                    Ok(Some(line.into()))
                }
                Some(Err(error)) => {
                    let cause = format!("cannot read standard input: {error}");
                    Err(Failure::new("EW-INPUT-FAILED", cause, "pass the payload as an argument"))
                }
            },
        }
    }
}

/// A word did not get through.
pub fn not_sent(error: &ToolError) -> Failure {
    let (code, next) = match error {
        ToolError::NoResponders { .. } => (
            "EW-NO-RESPONDERS",
            "is the other side running? `edgewire modules` and `edgewire nodes` show who is there",
        ),
        ToolError::Timeout { .. } => {
            ("EW-NO-ANSWER", "try a longer --timeout; `edgewire nodes` shows who is there")
        }
        ToolError::Failed { .. } => ("EW-BUS-FAILED", "see the cause, and try again"),
    };
    Failure::new(code, error, next)
}

/// Asks, unless the server refuses the subject: that comes at once, and is a better word than a timeout.
async fn ask_or_refused(
    letter: &Letter,
    bus: &Bus,
    payload: Bytes,
    timeout: Duration,
    notices: &Notices,
) -> Outcome<Asked> {
    let headers = letter.headers();
    tokio::select! {
        answer = ask(bus, &letter.subject, &headers, payload, timeout) => Ok(answer),
        failure = notices.refusal() => Err(failure),
    }
}

type Asked = Result<bus::tool::Message, ToolError>;

/// Runs `edgewire pub`.
pub async fn publish(args: PubArgs, screen: &mut Screen, notices: &Notices) -> Outcome<()> {
    let letter = args.letter;
    let mut payloads = match args.stdin {
        true => Payloads::lines(),
        false => Payloads::Same(letter.payload().await?, args.count),
    };
    let (place, bus) = letter.bus().await?;
    let is_stored = Class::of(&letter.subject).is_some_and(|class| class.acknowledged)
        || subject::sent_to(&letter.subject).is_some();
    if !args.wait_ack && !is_stored {
        let headers = letter.headers();
        while let Some(payload) = payloads.next().await? {
            bus.say(&letter.subject, &headers, payload, None).await.map_err(|error| not_sent(&error))?;
        }
        return notices.settle(&bus).await;
    }
    let mut acked = Acked::default();
    let outcome = stored(&letter, &mut payloads, &bus, &place.node, &mut acked, notices).await;
    // What was stored before it went wrong is stored.
    if let Some(line) = acked.line() {
        screen.print(&line).await?;
    }
    outcome
}

async fn stored(
    letter: &Letter,
    payloads: &mut Payloads,
    bus: &Bus,
    place: &str,
    acked: &mut Acked,
    notices: &Notices,
) -> Outcome<()> {
    let no_stream = |cause: String| {
        let next = "stored are up.<namespace>.<topic> and bulk.<namespace>.<topic>, on a node (--edge DIR); see \
                    `edgewire explain`";
        Failure::new("EW-NOT-STORED", cause, next)
    };
    while let Some(payload) = payloads.next().await? {
        let answer = match ask_or_refused(letter, bus, payload, ACK_TIMEOUT, notices).await? {
            Ok(answer) => answer,
            Err(ToolError::NoResponders { subject }) => {
                return Err(no_stream(format!("no stream at {place} stores {subject}")));
            }
            Err(error) => return Err(not_sent(&error)),
        };
        acked.add(&answer.payload, &letter.subject).map_err(no_stream)?;
    }
    Ok(())
}

/// Runs `edgewire req`.
pub async fn request(args: ReqArgs, screen: &mut Screen, notices: &Notices) -> Outcome<()> {
    let letter = args.letter;
    let payload = letter.payload().await?;
    let (place, bus) = letter.bus().await?;
    let answer = ask_or_refused(&letter, &bus, payload, args.timeout, notices)
        .await?
        .map_err(|error| not_sent(&error))?;
    if args.json {
        return screen.json(&as_json(&now(bus.account(), answer), &place.node)).await;
    }
    screen.write(&Format::payload(&answer)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_checked_at_the_prompt() {
        assert_eq!(header("a: b:c "), Ok(("a".into(), "b:c".into())));
        assert_eq!(header("ce-type:x"), Ok(("ce-type".into(), "x".into())));
        for bad in ["novalue", ":x", "a b:c", "ä:c", "a:b\r\nc:d"] {
            assert!(header(bad).is_err(), "{bad:?}");
        }
    }
}
