//! `edgewire tail`: what is said on the bus, and what was, decoded, one line a message.

mod fields;
mod flow;
pub mod format;
mod pace;
mod stats;

use std::time::{Duration, Instant};

use bus::connection::Bus;
use bus::tool::ToolError;
use bus::tool::stored::{Capture, Start};
use clap::{Args, ValueEnum};
use futures::FutureExt;
use jiff::Timestamp;
use schemas::envelope::header;
use tokio::time::MissedTickBehavior;

use crate::decode::{Decoded, find, hex, safe};
use crate::expression::{self, Facts, Where};
use crate::failure::{Failure, Outcome};
use crate::notices::Notices;
use crate::place::{Place, PlaceArgs, accounts};
use crate::screen::Screen;
use crate::when;
use fields::{Columns, Field};
pub use flow::{Flow, Item, Part, Said, parts};
use format::{Form, Format};
use pace::Pace;
use stats::Stats;
pub use stats::bytes;

/// Lines gathered into one write while messages keep coming.
const WRITE_MAX_BYTES: usize = 256 * 1024;
/// How often `--stats` is told, and `--rate` what it left out.
const SUMMARY_INTERVAL: Duration = Duration::from_secs(1);

/// `-o`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// With node, account, stream and sequence
    Wide,
    /// As --json
    Json,
}

/// Arguments of `edgewire tail`.
#[derive(Debug, Args)]
pub struct TailArgs {
    /// Subject to listen on: `app.demo.temp`, `app.*.temp`, `app.>`, or `>` for everything
    #[arg(value_parser = filter)]
    subject: String,
    /// First what is stored, from then on: how long ago (2h), or a time (2026-05-04T10:00:00Z, 2026-05-04 10:00)
    #[arg(long, value_name = "WHEN", value_parser = when::parse, conflicts_with = "from", help_heading = "Which messages")]
    since: Option<Timestamp>,
    /// First what is stored, from this sequence on; the subject has to name one stream
    #[arg(long, value_name = "SEQUENCE", help_heading = "Which messages")]
    from: Option<u64>,
    /// End with what was said up to then; of the past only with --since or --from
    #[arg(long, value_name = "WHEN", value_parser = when::parse, help_heading = "Which messages")]
    until: Option<Timestamp>,
    /// Only messages of which this is true: a CEL expression over subject, payload, headers, type, source, time, size,
    /// account, node, such as 'payload.c > 21 && subject.endsWith(".temp")'
    #[arg(long = "where", value_name = "CEL", value_parser = expression::check, help_heading = "Which messages")]
    filter: Option<String>,
    /// Stop after so many messages
    #[arg(short = 'n', long, value_name = "N", help_heading = "Which messages")]
    count: Option<u64>,
    /// With a leading wildcard: also the plumbing, which is inboxes and JetStream's own (`_INBOX.`, `$JS.`)
    #[arg(long, help_heading = "Which messages")]
    all: bool,
    /// One JSON object a line
    #[arg(long, conflicts_with_all = ["raw", "output"])]
    json: bool,
    /// Payloads only, as they are (on a terminal control characters are still escaped)
    #[arg(long)]
    raw: bool,
    /// Another form of line
    #[arg(short, long, value_name = "FORM", conflicts_with = "raw")]
    output: Option<Output>,
    /// Only these parts, in columns: payload.c,subject. Also time, headers.NAME, type, source, size, account, node, stream,
    /// sequence, format
    #[arg(long, value_name = "LIST", value_parser = one_list, conflicts_with = "raw")]
    fields: Option<String>,
    /// At most so many lines a second; what is left out is counted
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), conflicts_with = "stats")]
    rate: Option<u64>,
    /// Instead of lines, once a second how many messages and bytes came on each subject
    #[arg(long, conflicts_with_all = ["raw", "fields"])]
    stats: bool,
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
pub fn filter(text: &str) -> Result<String, String> {
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

fn one_list(text: &str) -> Result<String, String> {
    fields::parse(text).map(|_| text.to_owned())
}

/// A stream could not be asked.
pub fn not_read(error: ToolError) -> Failure {
    Failure::new("EW-BUS-UNREACHABLE", error, "is the server running and the link up? try again")
}

/// Which stored messages are meant, if any.
fn start(args: &TailArgs) -> Outcome<Option<Start>> {
    let start = args
        .from
        .map(Start::Sequence)
        .or(args.since.map(|at| Start::Time(schemas::Timestamp(at.as_millisecond()))));
    let bad = |cause: &str, next: &str| Err(Failure::new("EW-TAIL-RANGE", cause, next));
    if let Some(until) = args.until {
        if until <= Timestamp::now() && start.is_none() {
            return bad("--until is a time in the past", "say from where on: --since 2h, or --from SEQUENCE");
        }
        if args.since.is_some_and(|since| since > until) {
            return bad("--until is before --since", "exchange them");
        }
    }
    if args.since.is_some_and(|since| since > Timestamp::now()) {
        return bad("--since is a time to come", "without it the tail begins now");
    }
    Ok(start)
}

/// Runs it, until the count or the time is reached or the caller stops it.
pub async fn run(args: TailArgs, screen: &mut Screen, notices: &Notices) -> Outcome<()> {
    let start = start(&args)?;
    let past = args.until.filter(|until| *until <= Timestamp::now());
    let place = Place::find(&args.place).await?;
    let mut flow = Flow::new(&args.subject).until(past);
    let mut buses = Vec::new();
    let accounts = accounts(&args.subject);
    for account in &accounts {
        let bus = place.connect(*account).await?;
        if past.is_none() {
            flow.hear(&bus).await.map_err(not_read)?;
        }
        // After this the subscription is in force: what is stored later is heard, what was before is in the streams.
        notices.settle(&bus).await?;
        buses.push(bus);
    }
    let read = match start {
        Some(start) => begin(&mut flow, &args, &buses, start, &place.node).await?,
        None => String::new(),
    };
    let names: Vec<&str> = accounts.iter().map(|account| account.as_str()).collect();
    let doing = if past.is_some() { "reading" } else { "listening on" };
    eprintln!(
        "edgewire: {doing} {} in {} at {} ({}){read}; Ctrl-C ends",
        safe(&args.subject),
        names.join(" and "),
        safe(&place.node),
        safe(place.url())
    );
    let end = args.until.filter(|_| past.is_none());
    show(Shower::new(&args, screen, &place.node)?, flow, end, screen, notices).await
}

/// Adds the streams that the subject names. Says which, for the first line.
async fn begin(
    flow: &mut Flow,
    args: &TailArgs,
    buses: &[Bus],
    start: Start,
    place: &str,
) -> Outcome<String> {
    let mut found: Vec<(&Bus, Part)> = Vec::new();
    for bus in buses {
        let captures: Vec<Capture> = bus.captures().await.map_err(not_read)?;
        found.extend(parts(&args.subject, captures).into_iter().map(|part| (bus, part)));
    }
    let names: Vec<String> = found.iter().map(|(_, part)| part.capture.stream.clone()).collect();
    if matches!(start, Start::Sequence(_)) && names.len() != 1 {
        let cause = match names.as_slice() {
            [] => format!("no stream at {place} holds {}", args.subject),
            several => format!("{} is held by several streams: {}", args.subject, several.join(", ")),
        };
        let next = "a sequence counts in one stream: give a subject that only one holds, or --since";
        return Err(Failure::new("EW-TAIL-STREAM", cause, next));
    }
    if names.is_empty() {
        eprintln!(
            "edgewire: no stream at {} holds {}: there is only what is said from now on",
            safe(place),
            safe(&args.subject)
        );
        return Ok(String::new());
    }
    for (bus, part) in found {
        flow.read(bus, part, start);
    }
    Ok(format!(" and in {}", safe(&names.join(", "))))
}

/// Shows what the flow gives, until it ends.
async fn show(
    mut shower: Shower,
    mut flow: Flow,
    end: Option<Timestamp>,
    screen: &mut Screen,
    notices: &Notices,
) -> Outcome<()> {
    let wait = |until: Timestamp| until.duration_since(Timestamp::now()).unsigned_abs();
    let mut ending = std::pin::pin!(async move {
        match end {
            Some(end) => tokio::time::sleep(wait(end)).await,
            None => std::future::pending().await,
        }
    });
    let mut over = false;
    let mut summary = tokio::time::interval(SUMMARY_INTERVAL);
    summary.set_missed_tick_behavior(MissedTickBehavior::Delay);
    summary.tick().await;
    while shower.left != Some(0) {
        let first = tokio::select! {
            said = flow.next() => said,
            failure = notices.refusal() => return Err(failure),
            _ = summary.tick() => {
                let lines = shower.summary();
                if !lines.is_empty() {
                    screen.write(&lines).await?;
                }
                continue;
            }
            () = &mut ending, if !over => {
                over = true;
                flow.end_at(end.unwrap_or_default());
                continue;
            }
        };
        let mut lines = Vec::new();
        let Some(mut next) = first else {
            let lines = shower.summary();
            screen.write(&lines).await?;
            return match over || shower.ends {
                true => Ok(()),
                false => Err(Failure::new("EW-BUS-UNREACHABLE", "the connection was closed", "try again")),
            };
        };
        loop {
            match next {
                Said::Item(item) => shower.item(&mut lines, &item),
                Said::Note(words) => {
                    // In its place among the lines.
                    screen.write(&std::mem::take(&mut lines)).await?;
                    eprintln!("edgewire: {}", safe(&words));
                }
            }
            if shower.left == Some(0) || lines.len() > WRITE_MAX_BYTES {
                break;
            }
            match flow.next().now_or_never().flatten() {
                Some(said) => next = said,
                None => break,
            }
        }
        if !lines.is_empty() {
            screen.write(&lines).await?;
        }
    }
    Ok(())
}

/// What becomes of each message.
struct Shower {
    format: Format,
    hidden: Option<String>,
    judge: Option<Where>,
    columns: Option<Columns>,
    pace: Option<Pace>,
    stats: Option<Stats>,
    left: Option<u64>,
    /// The flow has an end of its own.
    ends: bool,
    begun: Instant,
    turned: Instant,
}

impl Shower {
    fn new(args: &TailArgs, screen: &Screen, place: &str) -> Outcome<Self> {
        let form = match args.output {
            _ if args.raw => Form::Raw,
            _ if args.json => Form::Json,
            Some(Output::Json) => Form::Json,
            Some(Output::Wide) => Form::Wide,
            None => Form::Line,
        };
        // Both were read at the prompt already.
        let wrong = |error: String| Failure::new("EW-TAIL-RANGE", error, "see `edgewire tail --help`");
        let judge = args.filter.as_deref().map(Where::new).transpose().map_err(wrong)?;
        let chosen: Option<Vec<Field>> =
            args.fields.as_deref().map(fields::parse).transpose().map_err(wrong)?;
        Ok(Self {
            format: Format::new(form, screen.terminal, screen.colour, place),
            hidden: (!args.all).then(|| args.subject.clone()),
            judge,
            columns: chosen.map(Columns::new),
            pace: args.rate.map(Pace::new),
            stats: args.stats.then(Stats::default),
            left: args.count,
            ends: args.until.is_some(),
            begun: Instant::now(),
            turned: Instant::now(),
        })
    }

    /// Adds the line of one message, if it is to have one.
    fn item(&mut self, lines: &mut Vec<u8>, item: &Item) {
        if self.hidden.as_deref().is_some_and(|filter| plumbing(filter, &item.message.subject)) {
            return;
        }
        if let Some(judge) = &mut self.judge
            && !judged(judge, item, &self.format.place)
        {
            return;
        }
        if let Some(stats) = &mut self.stats {
            self.left = self.left.map(|left| left.saturating_sub(1));
            stats.add(&item.message.subject, item.message.payload.len());
            return;
        }
        if let Some(pace) = &mut self.pace {
            let (shown, left_out) = pace.admit(self.begun.elapsed());
            left_out.into_iter().for_each(say_left_out);
            if !shown {
                return;
            }
        }
        self.left = self.left.map(|left| left.saturating_sub(1));
        match &mut self.columns {
            Some(columns) if self.format.form == Form::Json => {
                let json = columns.json(item, &self.format.place).to_string();
                lines.extend_from_slice(crate::decode::safe_json(&json).as_bytes());
                lines.push(b'\n');
            }
            Some(columns) => columns.line(lines, item, &self.format),
            None => self.format.line(lines, item),
        }
    }

    /// What is said once a second.
    fn summary(&mut self) -> Vec<u8> {
        if let Some(pace) = &mut self.pace {
            pace.turn(self.begun.elapsed()).into_iter().for_each(say_left_out);
        }
        let Some(stats) = &mut self.stats else { return Vec::new() };
        let over = self.turned.elapsed();
        self.turned = Instant::now();
        let now = Timestamp::now();
        let text = match self.format.form {
            Form::Json => format!(
                "{}\n",
                crate::decode::safe_json(&stats.json(&format::rfc3339(now), over).to_string())
            ),
            _ => {
                let time = now.to_zoned(self.format.zone.clone()).strftime("%H:%M:%S").to_string();
                stats.render(&time, over, self.format.colour)
            }
        };
        stats.turn();
        text.into_bytes()
    }
}

/// However it ends, what was not shown is said.
impl Drop for Shower {
    fn drop(&mut self) {
        if let Some(told) = self.judge.as_ref().and_then(Where::told) {
            eprintln!("edgewire: {told}");
        }
        if let Some(total) = self.pace.as_ref().map(Pace::total).filter(|total| *total > 0) {
            eprintln!("edgewire: {total} messages were left out in all (--rate)");
        }
    }
}

fn say_left_out(count: u64) {
    eprintln!("edgewire: {count} left out (--rate)");
}

fn judged(judge: &mut Where, item: &Item, place: &str) -> bool {
    let message = &item.message;
    let payload = match Decoded::read(&message.headers, &message.payload) {
        Decoded::Json(value) | Decoded::MessagePack(value) => value,
        Decoded::Text(text) => text.into(),
        Decoded::Binary(bytes) => hex(&bytes).into(),
    };
    judge.matches(&Facts {
        subject: &message.subject,
        payload: &payload,
        headers: &message.headers,
        kind: find(&message.headers, header::TYPE).unwrap_or_default(),
        source: find(&message.headers, header::SOURCE).unwrap_or_default(),
        time: &format::rfc3339(item.at),
        size: message.payload.len(),
        account: item.account.as_str(),
        node: &format::node_of(item, place),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
