//! `edgewire pub` and `edgewire req`: say one thing on the bus, or ask and show the answer.

use std::io::Read;
use std::time::Duration;

use bus::connection::Bus;
use bus::tool::ToolError;
use bytes::Bytes;
use clap::Args;
use schemas::envelope::Headers;
use schemas::{MESSAGE_MAX_BYTES, subject};
use serde_json::Value;

use crate::ask::ask;
use crate::decode::safe;
use crate::duration;
use crate::failure::{Failure, Outcome};
use crate::notices::Notices;
use crate::place::{Place, PlaceArgs, accounts};
use crate::screen::Screen;
use crate::tail::{Format, as_json};

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
    /// Wait until a stream has stored it; fail when none does
    #[arg(long)]
    wait_ack: bool,
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

fn publishable(text: &str) -> Result<String, String> {
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
        let bytes = match self.payload.as_deref() {
            Some("-") => {
                let reading = tokio::task::spawn_blocking(|| {
                    let mut bytes = Vec::new();
                    let bound = MESSAGE_MAX_BYTES as u64 + 1;
                    std::io::stdin().lock().take(bound).read_to_end(&mut bytes).map(|_| bytes)
                });
                let read = reading.await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
                let next = "pass the payload as an argument";
                read.map_err(|error| {
                    Failure::new("EW-INPUT-FAILED", format!("cannot read standard input: {error}"), next)
                })?
            }
            Some(text) => text.as_bytes().to_vec(),
            None => Vec::new(),
        };
        if bytes.len() > MESSAGE_MAX_BYTES {
            let cause = format!("the payload is over the bound of {MESSAGE_MAX_BYTES} bytes");
            return Err(Failure::new("EW-PAYLOAD-TOO-LARGE", cause, "send it in parts"));
        }
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

fn not_sent(error: &ToolError) -> Failure {
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
    let payload = letter.payload().await?;
    let (place, bus) = letter.bus().await?;
    if !args.wait_ack {
        bus.say(&letter.subject, &letter.headers(), payload, None).await.map_err(|error| not_sent(&error))?;
        return notices.settle(&bus).await;
    }
    let no_stream = |cause: String| {
        Failure::new(
            "EW-NOT-STORED",
            cause,
            "stored are up.<namespace>.<topic> on a node (--edge DIR) and to.<node>.<namespace>.<topic> at the hub",
        )
    };
    let ack = match ask_or_refused(&letter, &bus, payload, ACK_TIMEOUT, notices).await? {
        Ok(ack) => ack,
        Err(ToolError::NoResponders { subject }) => {
            return Err(no_stream(format!("no stream at {} stores {subject}", place.node)));
        }
        Err(error) => return Err(not_sent(&error)),
    };
    let body: Value = serde_json::from_slice(&ack.payload).unwrap_or_default();
    match (body.get("stream").and_then(Value::as_str), body.get("seq").and_then(Value::as_u64)) {
        (Some(stream), Some(sequence)) => {
            let double = body.get("duplicate").and_then(Value::as_bool).unwrap_or(false);
            let word = if double { " (it was there already)" } else { "" };
            screen.print(&format!("stored in {} as {sequence}{word}\n", safe(stream))).await
        }
        _ => match body.pointer("/error/description").and_then(Value::as_str) {
            Some(cause) => Err(no_stream(format!("the stream refused: {cause}"))),
            None => Err(no_stream(format!("somebody answered on {}, but no stream", letter.subject))),
        },
    }
}

/// Runs `edgewire req`.
pub async fn request(args: ReqArgs, screen: &mut Screen, notices: &Notices) -> Outcome<()> {
    let letter = args.letter;
    let payload = letter.payload().await?;
    let (_place, bus) = letter.bus().await?;
    let answer = ask_or_refused(&letter, &bus, payload, args.timeout, notices)
        .await?
        .map_err(|error| not_sent(&error))?;
    let now = jiff::Zoned::now();
    if args.json {
        return screen.json(&as_json(bus.account(), &answer, &now)).await;
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
