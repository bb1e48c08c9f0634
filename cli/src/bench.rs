//! `edgewire bench pub|sub|req`: how fast this bus is, from here: messages and bytes a second, and a histogram of what
//! each message took.
//!
//! Not to be run beside work that matters: it says as much as it can. It keeps off Edgewire's own subjects. The tool has
//! one thread, so its figures are a lower bound of what the server does; `--clients` are connections of that thread.

use std::time::{Duration, Instant};

use bus::connection::Bus;
use bus::tool::ToolError;
use bytes::Bytes;
use clap::{Args, Subcommand};
use futures::StreamExt;
use hdrhistogram::Histogram;
use schemas::class::{Class, is_reserved};
use schemas::envelope::Headers;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::acked::Acked;
use crate::duration;
use crate::failure::{Failure, Outcome};
use crate::notices::Notices;
use crate::place::{Place, PlaceArgs, accounts};
use crate::publish::{not_sent, publishable};
use crate::screen::Screen;
use crate::tail::{bytes, filter};

/// Connections at once.
const CLIENTS_MAX: u16 = 64;
/// Messages of one run.
const COUNT_MAX: u64 = 1_000_000_000;
/// What a message of `bench pub` begins with, then the time that it was said, so that `bench sub` knows its age.
const MARK: &[u8] = b"ewbench1 ";
/// Digits of the time: nanoseconds since the epoch.
const TIME_DIGITS: usize = 20;
/// Latencies are told apart from a microsecond on.
const LATENCY_MIN_NS: u64 = 1_000;
/// Up to a minute; what takes longer counts as that.
const LATENCY_MAX_NS: u64 = 60_000_000_000;
/// To three digits.
const LATENCY_DIGITS: u8 = 3;

/// `edgewire bench …`
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Publish; on up. and bulk. each message waits for the stream's word, and that is what is timed
    Pub(LoadArgs),
    /// Hear so many messages; those of `bench pub` are timed from end to end, by the clocks of both
    Sub(HearArgs),
    /// Ask, one question after the other, and time the answers
    Req(LoadArgs),
}

#[derive(Debug, Args)]
pub struct LoadArgs {
    /// Subject
    #[arg(value_parser = publishable)]
    subject: String,
    /// Bytes of a payload
    #[arg(long, value_name = "BYTES", default_value_t = 128)]
    size: u32,
    /// Messages in all
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=COUNT_MAX))]
    count: u64,
    /// Connections; each says or asks one thing after the other
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=i64::from(CLIENTS_MAX)))]
    clients: u16,
    /// At most so many a second, all clients together [default: as fast as it goes]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    rate: Option<u32>,
    /// How long one answer may take
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration::parse)]
    timeout: Duration,
    /// A JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: PlaceArgs,
}

#[derive(Debug, Args)]
pub struct HearArgs {
    /// Subject; wildcards allowed
    #[arg(value_parser = filter)]
    subject: String,
    /// Messages in all; then it ends
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=COUNT_MAX))]
    count: u64,
    /// Connections; each hears every message
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=i64::from(CLIENTS_MAX)))]
    clients: u16,
    /// A JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: PlaceArgs,
}

/// What one client, or all of them, did.
struct Figures {
    messages: u64,
    size_bytes: u64,
    took: Duration,
    latency: Histogram<u64>,
}

impl Figures {
    fn new() -> Outcome<Self> {
        let latency = Histogram::new_with_bounds(LATENCY_MIN_NS, LATENCY_MAX_NS, LATENCY_DIGITS)
            .map_err(|error| Failure::new("EW-START-FAILED", error, "is the machine out of memory?"))?;
        Ok(Self { messages: 0, size_bytes: 0, took: Duration::ZERO, latency })
    }

    fn add(&mut self, size: usize, took: Option<Duration>) {
        self.messages += 1;
        self.size_bytes += u64::try_from(size).unwrap_or(0);
        if let Some(took) = took {
            self.latency.saturating_record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
        }
    }

    fn merge(&mut self, other: &Self) {
        self.messages += other.messages;
        self.size_bytes += other.size_bytes;
        self.took = self.took.max(other.took);
        // Both have the same bounds.
        let _ = self.latency.add(&other.latency);
    }

    fn per_second(&self, count: u64) -> f64 {
        count as f64 / self.took.as_secs_f64().max(1e-9)
    }

    fn render(&self, done: &str, timed: &str) -> String {
        let mut out = format!(
            "{done} {} messages ({}) in {:.3} s\n  {:.0} messages/s   {:.2} MB/s\n",
            self.messages,
            bytes(self.size_bytes),
            self.took.as_secs_f64(),
            self.per_second(self.messages),
            self.per_second(self.size_bytes) / 1e6,
        );
        if self.latency.is_empty() {
            out.push_str(&format!("  {timed}\n"));
            return out;
        }
        let ms = |ns: u64| format!("{:.3}", ns as f64 / 1e6);
        let at = |quantile: f64| ms(self.latency.value_at_quantile(quantile));
        out.push_str(&format!(
            "  {timed}, ms: p50 {}   p90 {}   p99 {}   max {}\n",
            at(0.5),
            at(0.9),
            at(0.99),
            ms(self.latency.max())
        ));
        out.push_str(&self.histogram());
        out
    }

    /// The share of each doubling of time, as bars.
    fn histogram(&self) -> String {
        let rows: Vec<(u64, u64)> = self
            .latency
            .iter_log(LATENCY_MIN_NS * 10, 2.0)
            .map(|step| (step.value_iterated_to(), step.count_since_last_iteration()))
            .filter(|(_, count)| *count > 0)
            .collect();
        let all = self.latency.len().max(1);
        let bar = |count: u64| {
            let width = usize::try_from(count.saturating_mul(40).div_ceil(all)).unwrap_or(0);
            "#".repeat(width)
        };
        rows.iter()
            .map(|(upto, count)| {
                let share = *count as f64 * 100.0 / all as f64;
                format!("  up to {:>10.3} ms  {share:>5.1} %  {}\n", *upto as f64 / 1e6, bar(*count))
            })
            .collect()
    }

    fn json(&self) -> Value {
        let at = |quantile: f64| self.latency.value_at_quantile(quantile) / 1_000;
        let latency = (!self.latency.is_empty()).then(
            || json!({"p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "max": self.latency.max() / 1_000}),
        );
        json!({
            "messages": self.messages, "size_bytes": self.size_bytes, "took_ms": self.took.as_millis() as u64,
            "messages_per_s": self.per_second(self.messages).round(),
            "bytes_per_s": self.per_second(self.size_bytes).round(),
            "latency_us": latency,
        })
    }
}

/// Runs it.
pub async fn run(command: BenchCommand, screen: &mut Screen, notices: &Notices) -> Outcome<()> {
    match command {
        BenchCommand::Pub(args) => load(args, false, screen, notices).await,
        BenchCommand::Req(args) => load(args, true, screen, notices).await,
        BenchCommand::Sub(args) => hear(args, screen, notices).await,
    }
}

fn not_ours(subject: &str) -> Outcome<()> {
    // A leading wildcard is everybody's, so Edgewire's too.
    let first = subject.split('.').next().unwrap_or_default();
    if !is_reserved(subject) && first != ">" && first != "*" {
        return Ok(());
    }
    let cause = format!("{subject} is, or holds, what Edgewire itself speaks on");
    Err(Failure::new("EW-SUBJECT-RESERVED", cause, "take a subject such as app.<namespace>.bench"))
}

async fn connections(args: &PlaceArgs, subject: &str, clients: u16) -> Outcome<Vec<Bus>> {
    let place = Place::find(args).await?;
    let account = accounts(subject).first().copied().unwrap_or(bus::module::Account::Work);
    let mut buses = Vec::new();
    for _ in 0..clients {
        buses.push(place.connect(account).await?);
    }
    Ok(buses)
}

/// What one client sends in all, and how.
#[derive(Clone)]
struct Load {
    subject: String,
    size: usize,
    pause: Option<Duration>,
    timeout: Duration,
    ask: bool,
    acknowledged: bool,
}

async fn load(args: LoadArgs, ask: bool, screen: &mut Screen, notices: &Notices) -> Outcome<()> {
    not_ours(&args.subject)?;
    let size = usize::try_from(args.size).unwrap_or(usize::MAX);
    if size > schemas::MESSAGE_MAX_BYTES {
        let cause = format!("a message of {size} bytes is over the bound of {}", schemas::MESSAGE_MAX_BYTES);
        return Err(Failure::new("EW-PAYLOAD-TOO-LARGE", cause, "choose a smaller --size"));
    }
    let acknowledged = !ask && Class::of(&args.subject).is_some_and(|class| class.acknowledged);
    let load = Load {
        subject: args.subject.clone(),
        size,
        pause: args.rate.map(|rate| Duration::from_secs(1) * u32::from(args.clients) / rate),
        timeout: args.timeout,
        ask,
        acknowledged,
    };
    let clients = u64::from(args.clients);
    let mut tasks = JoinSet::new();
    let begun = Instant::now();
    for (at, bus) in (0..).zip(connections(&args.place, &args.subject, args.clients).await?) {
        let count = args.count / clients + u64::from(at < args.count % clients);
        tasks.spawn(client(bus, load.clone(), count));
    }
    let connected = begun.elapsed();
    let mut all = gather(tasks, notices).await?;
    all.took = begun.elapsed().saturating_sub(connected);
    let (done, timed) = match (ask, acknowledged) {
        (true, _) => ("asked", "answered after"),
        (false, true) => ("published", "stored after"),
        (false, false) => {
            ("published", "nothing answers a live message: `edgewire bench sub` elsewhere times what arrives")
        }
    };
    finish(screen, &all, args.json, done, timed).await
}

async fn gather(mut tasks: JoinSet<Outcome<Figures>>, notices: &Notices) -> Outcome<Figures> {
    let mut all = Figures::new()?;
    loop {
        let next = tokio::select! {
            next = tasks.join_next() => next,
            failure = notices.refusal() => return Err(failure),
        };
        match next {
            None => return Ok(all),
            Some(Ok(figures)) => all.merge(&figures?),
            Some(Err(error)) => {
                return Err(Failure::new("EW-BUS-FAILED", format!("a client ended: {error}"), "try again"));
            }
        }
    }
}

async fn finish(screen: &mut Screen, all: &Figures, as_json: bool, done: &str, timed: &str) -> Outcome<()> {
    if as_json { screen.json(&all.json()).await } else { screen.print(&all.render(done, timed)).await }
}

async fn client(bus: Bus, load: Load, count: u64) -> Outcome<Figures> {
    let mut figures = Figures::new()?;
    let mut pace = load.pause.map(|pause| {
        let mut pace = tokio::time::interval(pause.max(Duration::from_nanos(1)));
        pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
        pace
    });
    let none = Headers::new();
    let failed = |error: ToolError| match error {
        ToolError::NoResponders { subject } if load.acknowledged => {
            let cause = format!("no stream there stores {subject}");
            Failure::new("EW-NOT-STORED", cause, "up. and bulk. are stored on a node: --edge DIR")
        }
        error => not_sent(&error),
    };
    for _ in 0..count {
        if let Some(pace) = &mut pace {
            pace.tick().await;
        }
        let payload = stamped(load.size);
        if !load.ask && !load.acknowledged {
            bus.say(&load.subject, &none, payload, None).await.map_err(failed)?;
            figures.add(load.size, None);
            continue;
        }
        let begun = Instant::now();
        let answer = bus.ask(&load.subject, &none, payload, load.timeout).await.map_err(failed)?;
        figures.add(load.size, Some(begun.elapsed()));
        if load.acknowledged {
            let refused =
                |cause| Failure::new("EW-NOT-STORED", cause, "make room, or wait until it is carried up");
            Acked::default().add(&answer.payload, &load.subject).map_err(refused)?;
        }
    }
    // Published is what the server has, not what waits here.
    bus.round_trip().await.map_err(failed)?;
    Ok(figures)
}

fn nanos() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// A payload that says when it was made, if it is large enough to.
fn stamped(size: usize) -> Bytes {
    let mut payload = MARK.to_vec();
    payload.extend_from_slice(format!("{:0TIME_DIGITS$} ", nanos()).as_bytes());
    payload.resize(size, b'x');
    payload.into()
}

/// When it was made.
fn stamp(payload: &[u8]) -> Option<u64> {
    let digits = payload.strip_prefix(MARK)?.get(..TIME_DIGITS)?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

async fn hear(args: HearArgs, screen: &mut Screen, notices: &Notices) -> Outcome<()> {
    not_ours(&args.subject)?;
    let mut tasks = JoinSet::new();
    for bus in connections(&args.place, &args.subject, args.clients).await? {
        let heard = bus.listen(&args.subject).await.map_err(|error| not_sent(&error))?;
        notices.settle(&bus).await?;
        tasks.spawn(hearer(bus, heard, args.count));
    }
    eprintln!(
        "edgewire: listening on {}; it ends after {} messages",
        crate::decode::safe(&args.subject),
        args.count
    );
    let all = gather(tasks, notices).await?;
    let timed = if all.latency.is_empty() {
        "none of them says when it was made, as those of `edgewire bench pub` do"
    } else {
        "made until heard, by the clocks of both ends"
    };
    finish(screen, &all, args.json, "heard", timed).await
}

async fn hearer(_bus: Bus, mut heard: bus::tool::Subscription, count: u64) -> Outcome<Figures> {
    let mut figures = Figures::new()?;
    let mut begun = Instant::now();
    while figures.messages < count {
        let Some(message) = heard.next().await else {
            return Err(Failure::new("EW-BUS-UNREACHABLE", "the connection was closed", "try again"));
        };
        if figures.messages == 0 {
            begun = Instant::now();
        }
        let age = stamp(&message.payload).map(|made| Duration::from_nanos(nanos().saturating_sub(made)));
        figures.add(message.payload.len(), age);
    }
    figures.took = begun.elapsed();
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_said_with_their_quantiles() {
        let mut all = Figures::new().unwrap();
        for ms in 1..=100 {
            let mut one = Figures::new().unwrap();
            one.add(1_000, Some(Duration::from_millis(ms)));
            all.merge(&one);
        }
        all.took = Duration::from_secs(2);
        let shown = all.render("asked", "answered after");
        let head = "asked 100 messages (97.6 KiB) in 2.000 s\n  50 messages/s   0.05 MB/s\n  answered after, ms: p50 50.0";
        assert!(
            shown.starts_with(head) && shown.contains("   p99 99.0") && shown.contains("   max 100."),
            "{shown}"
        );
        assert!(shown.lines().last().unwrap().ends_with('#'), "{shown}");
        let json = all.json();
        assert_eq!((&json["messages"], &json["messages_per_s"]), (&json!(100), &json!(50.0)));
    }

    #[test]
    fn a_message_says_when_it_was_made_if_it_has_room() {
        assert_eq!(stamped(128).len(), 128);
        let made = stamp(&stamped(128)).unwrap();
        assert!(nanos().abs_diff(made) < 60_000_000_000);
        assert_eq!(stamped(4).len(), 4);
        for other in [&b""[..], b"ewbench1 12", b"ewbench1 xxxxxxxxxxxxxxxxxxxx ", &[0xff; 40]] {
            assert_eq!(stamp(other), None);
        }
    }

    #[test]
    fn our_own_subjects_are_left_alone() {
        for subject in ["ew.hb.n", "$JS.API.INFO", "_INBOX.x", ">", "*.demo", "from.n.x"] {
            assert!(not_ours(subject).is_err(), "{subject}");
        }
        assert!(not_ours("app.demo.bench").is_ok());
    }

    #[test]
    fn whatever_is_heard_has_a_time_or_none() {
        crate::fuzz::try_bytes("a payload", &[stamped(64).to_vec()], |bytes| {
            stamp(bytes);
        });
    }
}
