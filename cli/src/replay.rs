//! `edgewire replay STREAM|PATTERN --to PREFIX`: says stored messages again under other subjects, for whoever wants to
//! see them as if they came now.
//!
//! Read is what is there at the beginning, no more: a replay ends. A message `up.demo.temp` is said as
//! `PREFIX.up.demo.temp`. Its headers go with it but for NATS' own, which would make a stream refuse or replace things.

use std::time::Duration;

use bus::connection::Bus;
use bus::module::Account;
use bus::tool::stored::{Capture, Start};
use bus::tool::{Message, ToolError};
use clap::Args;
use jiff::Timestamp;
use schemas::class::is_reserved;
use schemas::envelope::Headers;
use schemas::pattern::overlap;
use tokio::time::MissedTickBehavior;

use crate::acked::Acked;
use crate::decode::safe;
use crate::failure::{Failure, Outcome};
use crate::notices::Notices;
use crate::place::{Place, PlaceArgs, accounts};
use crate::screen::Screen;
use crate::tail::{Flow, Part, Said, filter, not_read, parts};
use crate::when;

/// How long a stream may take to acknowledge.
const ACK_TIMEOUT: Duration = Duration::from_secs(5);
/// Headers that are NATS' own begin so.
const NATS_HEADERS: &str = "nats-";

/// Arguments of `edgewire replay`.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// A stream (FROM, DEAD, UPLINK, …), or a subject that streams hold (up.demo.>)
    #[arg(value_name = "STREAM|SUBJECT", value_parser = filter)]
    what: String,
    /// From then on: how long ago (2h), or a time (2026-05-04T10:00:00Z, 2026-05-04 10:00)
    #[arg(long, value_name = "WHEN", value_parser = when::parse, required_unless_present = "from", conflicts_with = "from")]
    since: Option<Timestamp>,
    /// From this sequence on, of one stream
    #[arg(long, value_name = "SEQUENCE")]
    from: Option<u64>,
    /// Up to then [default: what is stored now]
    #[arg(long, value_name = "WHEN", value_parser = when::parse)]
    until: Option<Timestamp>,
    /// Say each as PREFIX.SUBJECT
    #[arg(long, value_name = "PREFIX", value_parser = crate::publish::publishable)]
    to: String,
    /// At most so many a second
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: Option<u32>,
    /// Say nothing, only how many it would be
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    place: PlaceArgs,
}

/// Runs it.
pub async fn run(args: ReplayArgs, screen: &mut Screen, notices: &Notices) -> Outcome<()> {
    if is_reserved(&args.to) {
        let cause = format!("{} is Edgewire's own", args.to);
        return Err(Failure::new(
            "EW-SUBJECT-RESERVED",
            cause,
            "say them under app.<namespace>. or local.<namespace>.",
        ));
    }
    let place = Place::find(&args.place).await?;
    let (account, found) = find(&place, &args).await?;
    let to_account = accounts(&args.to).first().copied().unwrap_or(Account::Work);
    let to = place.connect(to_account).await?;
    let stored = not_captured_again(&args, account.account(), &found, &to).await?;
    let start = match (args.from, args.since) {
        (Some(sequence), _) => Start::Sequence(sequence),
        (None, since) => Start::Time(schemas::Timestamp(since.unwrap_or_default().as_millisecond())),
    };
    let now = Timestamp::now();
    let mut flow = Flow::new(&args.what).until(Some(args.until.map_or(now, |until| until.min(now))));
    for part in found {
        flow.read(&account, part, start);
    }
    let mut pace = args.rate.map(|rate| {
        let mut pace = tokio::time::interval(Duration::from_secs(1) / rate);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        pace
    });
    let mut done = Done::default();
    let outcome = tokio::select! {
        outcome = say_all(&args, &mut flow, &to, stored, &mut pace, &mut done) => outcome,
        failure = notices.refusal() => Err(failure),
    };
    screen.print(&done.line(&args)).await?;
    outcome?;
    if args.dry_run { Ok(()) } else { notices.settle(&to).await }
}

/// What was said.
#[derive(Default)]
struct Done {
    count: u64,
    size_bytes: u64,
    acked: Acked,
}

impl Done {
    fn line(&self, args: &ReplayArgs) -> String {
        let would = if args.dry_run { "would be said" } else { "said" };
        let messages = if self.count == 1 { "message" } else { "messages" };
        let stored = if self.acked.stored > 0 {
            format!(", {} of them stored", self.acked.stored)
        } else {
            String::new()
        };
        format!(
            "{} {messages} ({}) {would} again under {}.{stored}\n",
            self.count,
            crate::tail::bytes(self.size_bytes),
            safe(&args.to)
        )
    }
}

async fn say_all(
    args: &ReplayArgs,
    flow: &mut Flow,
    to: &Bus,
    stored: bool,
    pace: &mut Option<tokio::time::Interval>,
    done: &mut Done,
) -> Outcome<()> {
    let failed = |error: ToolError| {
        Failure::new("EW-BUS-FAILED", error, "see the cause; --from goes on where it stopped")
    };
    while let Some(said) = flow.next().await {
        let item = match said {
            Said::Item(item) => item,
            Said::Note(words) => {
                eprintln!("edgewire: {}", safe(&words));
                continue;
            }
        };
        if !args.dry_run {
            if let Some(pace) = pace {
                pace.tick().await;
            }
            let subject = format!("{}.{}", args.to, item.message.subject);
            let mut headers = headers(&item.message);
            if stored {
                if let Some((stream, sequence)) = &item.stored {
                    headers.insert("Nats-Msg-Id".to_owned(), format!("replay-{stream}-{sequence}"));
                }
                let answer = to.ask(&subject, &headers, item.message.payload.clone(), ACK_TIMEOUT).await;
                let answer = answer.map_err(failed)?;
                done.acked.add(&answer.payload, &subject).map_err(|cause| {
                    Failure::new("EW-NOT-STORED", cause, "make room, and go on with --from")
                })?;
            } else {
                to.say(&subject, &headers, item.message.payload.clone(), None).await.map_err(failed)?;
            }
        }
        done.count += 1;
        done.size_bytes += u64::try_from(item.message.payload.len()).unwrap_or(u64::MAX);
    }
    Ok(())
}

fn headers(message: &Message) -> Headers {
    let own = |name: &str| name.to_ascii_lowercase().starts_with(NATS_HEADERS);
    message.headers.iter().filter(|(name, _)| !own(name)).map(|(n, v)| (n.clone(), v.clone())).collect()
}

/// The connection and the parts of streams that are meant: by a stream's name, else by subject.
async fn find(place: &Place, args: &ReplayArgs) -> Outcome<(Bus, Vec<Part>)> {
    let unknown = || {
        let cause = format!("{} is no stream at {}, and none holds such a subject", args.what, place.node);
        Failure::new("EW-STREAM-UNKNOWN", cause, "docs/flows.md lists the streams; on a node say --edge DIR")
    };
    let mut held: Vec<(Bus, Vec<Part>)> = Vec::new();
    for account in [Account::Control, Account::Work] {
        let bus = place.connect(account).await?;
        let captures = bus.captures().await.map_err(not_read)?;
        if let Some(capture) = captures.iter().find(|capture| capture.stream == args.what && !capture.queue) {
            let part = Part { filters: capture.subjects.clone(), capture: capture.clone() };
            return Ok((bus, vec![part]));
        }
        let of_account = accounts(&args.what).contains(&account);
        let parts = if of_account { parts(&args.what, captures) } else { Vec::new() };
        if !parts.is_empty() {
            held.push((bus, parts));
        }
    }
    match held.len() {
        0 => Err(unknown()),
        1 => held.pop().ok_or_else(unknown),
        _ => {
            let cause = format!("{} is held by streams of both accounts", args.what);
            Err(Failure::new("EW-TAIL-STREAM", cause, "name one stream, or a subject of one account"))
        }
    }
    .and_then(|(bus, parts)| match (args.from, parts.as_slice()) {
        (Some(_), [_, _, ..]) => {
            let names: Vec<&str> = parts.iter().map(|part| part.capture.stream.as_str()).collect();
            let cause = format!("{} is held by several streams: {}", args.what, names.join(", "));
            Err(Failure::new(
                "EW-TAIL-STREAM",
                cause,
                "a sequence counts in one stream: name it, or say --since",
            ))
        }
        _ => Ok((bus, parts)),
    })
}

/// Would what is said be stored? Not by a stream that it is read from: that would never end.
async fn not_captured_again(args: &ReplayArgs, from: Account, found: &[Part], to: &Bus) -> Outcome<bool> {
    let captures: Vec<Capture> = to.captures().await.map_err(not_read)?;
    // All that could be said: the prefix, and then what the filters let through.
    let said: Vec<String> = found
        .iter()
        .flat_map(|part| part.filters.iter().map(|filter| format!("{}.{filter}", args.to)))
        .collect();
    let takes = |capture: &&Capture| {
        let mut subjects = capture.subjects.iter();
        subjects.any(|subject| said.iter().any(|filter| overlap(subject, filter).is_some()))
    };
    let taking: Vec<&Capture> = captures.iter().filter(takes).collect();
    let same = taking.iter().find(|capture| {
        to.account() == from && found.iter().any(|part| part.capture.stream == capture.stream)
    });
    if let Some(capture) = same {
        let cause = format!("{} would take what is said under {} again", capture.stream, args.to);
        return Err(Failure::new("EW-REPLAY-LOOP", cause, "choose another --to: app.<namespace>.replay"));
    }
    Ok(!taking.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nats_own_headers_do_not_go_with_it() {
        let message = Message {
            subject: "up.x".into(),
            headers: [("Nats-Msg-Id", "1"), ("nats-rollup", "all"), ("ce-id", "7"), ("k", "v")]
                .map(|(n, v)| (n.to_owned(), v.to_owned()))
                .into(),
            payload: Default::default(),
            reply: None,
            no_responders: false,
        };
        assert_eq!(headers(&message).into_keys().collect::<Vec<_>>(), ["ce-id", "k"]);
        assert!(schemas::subject::is_publishable(&format!("{}.{}", "app.demo.replay", message.subject)));
    }
}
