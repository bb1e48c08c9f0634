//! `edgewire topics`: what flows now, declared or not: subjects with their rate and size, who hears them, where they are
//! stored, and what waits there.
//!
//! It listens for a while and counts. What NATS does not tell is shown as `?`, not guessed: who publishes is known only
//! where messages name their source (CloudEvents), who listens only for clients of this server.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bus::connection::Bus;
use bus::tool::clients::Client;
use bus::tool::stored::Capture;
use clap::Args;
use futures::StreamExt;
use schemas::envelope::header;
use serde_json::{Value, json};

use crate::decode::{find, safe};
use crate::duration;
use crate::failure::Outcome;
use crate::notices::Notices;
use crate::place::{Place, PlaceArgs, accounts};
use crate::screen::Screen;
use crate::table::{Cell, Paint, table};
use crate::tail::{bytes, filter, not_read};

/// Subjects that are told apart while listening; of further ones the first two words are.
const SUBJECTS_MAX: usize = 20_000;
/// Sources that are told apart for one subject.
const SOURCES_MAX: usize = 100;
/// Longest sample.
const SAMPLE_MAX: Duration = Duration::from_secs(3_600);
/// What this tool calls itself on the bus: it is not one that listens.
const OWN_NAME: &str = "edgewire";

/// Arguments of `edgewire topics`.
#[derive(Debug, Args)]
pub struct TopicsArgs {
    /// Only what matches this subject [default: all of the workloads]
    #[arg(value_parser = filter, default_value = ">", hide_default_value = true)]
    subject: String,
    /// How long to listen
    #[arg(long = "for", value_name = "DURATION", default_value = "3s", value_parser = sample)]
    sample: Duration,
    /// At most so many rows: beyond it subjects are taken together by how they begin
    #[arg(long, value_name = "N", default_value_t = 40, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    rows: u16,
    /// Also Edgewire's own traffic
    #[arg(long)]
    all: bool,
    /// A JSON array
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: PlaceArgs,
}

fn sample(text: &str) -> Result<Duration, String> {
    let sample = duration::parse(text)?;
    if sample > SAMPLE_MAX { Err("at most an hour".to_owned()) } else { Ok(sample) }
}

/// What came on one subject, or on all that begin alike.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Count {
    subjects: u64,
    messages: u64,
    size_bytes: u64,
    sources: BTreeSet<String>,
    /// Messages that do not name their source.
    unnamed: u64,
}

impl Count {
    fn merge(&mut self, other: Count) {
        self.subjects += other.subjects;
        self.messages += other.messages;
        self.size_bytes += other.size_bytes;
        self.unnamed += other.unnamed;
        let room = SOURCES_MAX.saturating_sub(self.sources.len());
        self.sources.extend(other.sources.into_iter().take(room));
    }
}

/// What came, by subject.
#[derive(Debug, Default)]
struct Topics(BTreeMap<String, Count>);

impl Topics {
    fn add(&mut self, subject: &str, size: usize, source: Option<&str>) {
        let known = self.0.len() < SUBJECTS_MAX || self.0.contains_key(subject);
        let name = if known { subject.to_owned() } else { prefix(subject, 2) };
        let count = self.0.entry(name).or_default();
        count.subjects = count.subjects.max(1);
        count.messages += 1;
        count.size_bytes += u64::try_from(size).unwrap_or(0);
        match source {
            Some(source) if count.sources.len() < SOURCES_MAX => {
                count.sources.insert(source.to_owned());
            }
            Some(_) => {}
            None => count.unnamed += 1,
        }
    }

    /// At most so many rows: the longest subjects are taken together first, by one word less at a time, and only where
    /// several become one. What still does not fit after the first word is one last row.
    fn rows(self, most: usize) -> Vec<(String, Count)> {
        let mut rows = self.0;
        let longest = rows.keys().map(|subject| words(subject)).max().unwrap_or(0);
        for keep in (1..longest).rev() {
            if rows.len() <= most {
                break;
            }
            let mut members: BTreeMap<String, usize> = BTreeMap::new();
            let long = |subject: &str| words(subject) > keep;
            for subject in rows.keys().filter(|subject| long(subject)) {
                *members.entry(prefix(subject, keep)).or_default() += 1;
            }
            let mut fewer: BTreeMap<String, Count> = BTreeMap::new();
            for (subject, count) in rows {
                let name = prefix(&subject, keep);
                let several = long(&subject) && members.get(&name).is_some_and(|members| *members > 1);
                fewer.entry(if several { name } else { subject }).or_default().merge(count);
            }
            rows = fewer;
        }
        let mut rows: Vec<(String, Count)> = rows.into_iter().collect();
        rows.sort_by(|a, b| b.1.messages.cmp(&a.1.messages).then(a.0.cmp(&b.0)));
        if rows.len() > most {
            let mut others = Count::default();
            rows.drain(most.saturating_sub(1)..).for_each(|(_, count)| others.merge(count));
            rows.push((">".to_owned(), others));
        }
        rows
    }
}

fn words(subject: &str) -> usize {
    subject.split('.').count()
}

/// The first `keep` words, and `>` for the rest, if there is any.
fn prefix(subject: &str, keep: usize) -> String {
    match subject.match_indices('.').nth(keep.saturating_sub(1)) {
        Some((at, _)) => format!("{}.>", subject.get(..at).unwrap_or_default()),
        None => subject.to_owned(),
    }
}

/// How many clients listen to `name` (a subject, or one with `>`).
fn listeners(clients: &[Client], name: &str) -> usize {
    let hears = |client: &&Client| {
        client.name != OWN_NAME
            && client.subscriptions.iter().any(|filter| schemas::pattern::overlaps(filter, name))
    };
    clients.iter().filter(hears).count()
}

/// What is known about a server besides what was heard.
struct Known {
    clients: Option<Vec<Client>>,
    captures: Vec<(Capture, Option<u64>)>,
}

impl Known {
    async fn ask(bus: &Bus) -> Outcome<Self> {
        let mut captures = Vec::new();
        for capture in bus.captures().await.map_err(not_read)? {
            let lag = bus.lag(&capture.stream).await.map_err(not_read)?;
            captures.push((capture, lag));
        }
        Ok(Self { clients: bus.clients().await, captures })
    }

    fn capture(&self, name: &str) -> Option<&(Capture, Option<u64>)> {
        self.captures.iter().find(|(capture, _)| {
            capture.subjects.iter().any(|filter| schemas::pattern::overlaps(filter, name))
        })
    }
}

/// One row.
struct Topic {
    account: &'static str,
    subject: String,
    count: Count,
    listeners: Option<usize>,
    /// Stream, messages in it, how far its slowest consumer is behind.
    stored: Option<(String, u64, Option<u64>)>,
}

/// Runs it.
pub async fn run(args: TopicsArgs, screen: &mut Screen, notices: &Notices) -> Outcome<()> {
    let place = Place::find(&args.place).await?;
    let mut topics = Vec::new();
    let everything = args.subject.starts_with(['>', '*']);
    for account in accounts(&args.subject) {
        if everything && !args.all && account == bus::module::Account::Control {
            continue;
        }
        let bus = place.connect(account).await?;
        let heard = bus.listen(&args.subject).await.map_err(not_read)?;
        notices.settle(&bus).await?;
        topics.push((bus, heard, Topics::default()));
    }
    eprintln!("edgewire: listening at {} for {:?}", safe(&place.node), args.sample);
    let listening = topics.iter_mut().map(|(_, heard, topics)| async move {
        while let Some(message) = heard.next().await {
            let plumbing = ["_INBOX.", "$JS.", "$SYS.", "$MQTT."];
            if !everything || !plumbing.iter().any(|start| message.subject.starts_with(start)) {
                topics.add(&message.subject, message.payload.len(), find(&message.headers, header::SOURCE));
            }
        }
    });
    // Over when the time is; a connection that closes earlier has nothing more to say.
    let _ = tokio::time::timeout(args.sample, futures::future::join_all(listening)).await;
    let mut rows = Vec::new();
    for (bus, _, topics) in topics {
        let known = Known::ask(&bus).await?;
        for (subject, count) in topics.rows(usize::from(args.rows)) {
            let stored = known
                .capture(&subject)
                .map(|(capture, lag)| (capture.stream.clone(), capture.messages, *lag));
            let listeners = known.clients.as_ref().map(|clients| listeners(clients, &subject));
            rows.push(Topic { account: bus.account().as_str(), subject, count, listeners, stored });
        }
    }
    if args.json {
        let all: Vec<Value> = rows.iter().map(|topic| as_json(topic, args.sample)).collect();
        return screen.json(&Value::Array(all)).await;
    }
    if rows.is_empty() {
        eprintln!("edgewire: nothing was said; try a longer --for");
        return Ok(());
    }
    screen.print(&render(&rows, args.sample, screen.colour)).await
}

fn per_second(count: u64, over: Duration) -> f64 {
    count as f64 / over.as_secs_f64().max(1e-3)
}

fn as_json(topic: &Topic, over: Duration) -> Value {
    let count = &topic.count;
    json!({
        "subject": topic.subject, "account": topic.account, "subjects": count.subjects,
        "messages": count.messages, "messages_per_s": per_second(count.messages, over),
        "size_bytes": count.size_bytes,
        "publishers": (count.unnamed == 0).then_some(&count.sources), "subscribers": topic.listeners,
        "stream": topic.stored.as_ref().map(|stored| &stored.0),
        "stored": topic.stored.as_ref().map(|stored| stored.1),
        "lag": topic.stored.as_ref().and_then(|stored| stored.2),
    })
}

fn render(rows: &[Topic], over: Duration, colour: bool) -> String {
    let unknown = || Cell::new("?", Paint::Dim);
    let row = |topic: &Topic| {
        let count = &topic.count;
        let rate = per_second(count.messages, over);
        let name = match count.subjects {
            0 | 1 => topic.subject.clone(),
            several => format!("{} ({several} subjects)", topic.subject),
        };
        let (stream, lag) = match &topic.stored {
            None => (Cell::new("-", Paint::Dim), Cell::new("-", Paint::Dim)),
            Some((stream, messages, None)) => (Cell::from(stream), Cell::from(format!("{messages} stored"))),
            Some((stream, _, Some(0))) => (Cell::from(stream), Cell::new("0", Paint::Good)),
            Some((stream, _, Some(lag))) => (Cell::from(stream), Cell::new(lag.to_string(), Paint::Warn)),
        };
        vec![
            Cell::new(name, Paint::Name),
            Cell::from(if rate < 10.0 { format!("{rate:.1}/s") } else { format!("{rate:.0}/s") }),
            Cell::from(bytes(count.size_bytes / count.messages.max(1))),
            if count.unnamed == 0 { Cell::from(count.sources.len().to_string()) } else { unknown() },
            topic.listeners.map_or_else(unknown, |listeners| Cell::from(listeners.to_string())),
            stream,
            lag,
        ]
    };
    let rows: Vec<Vec<Cell>> = rows.iter().map(row).collect();
    table(&["SUBJECT", "RATE", "SIZE", "PUBLISHERS", "SUBSCRIBERS", "STREAM", "LAG"], &rows, colour)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topics(subjects: impl IntoIterator<Item = String>) -> Topics {
        let mut topics = Topics::default();
        subjects.into_iter().for_each(|subject| topics.add(&subject, 10, None));
        topics
    }

    #[test]
    fn subjects_are_taken_together_where_there_are_too_many() {
        let few = ["app.demo.a", "app.demo.b", "up.demo.x"].map(str::to_owned);
        let names = |rows: Vec<(String, Count)>| -> Vec<String> {
            rows.into_iter()
                .map(|(name, count)| format!("{name} {}/{}", count.subjects, count.messages))
                .collect()
        };
        assert_eq!(names(topics(few.clone()).rows(3)), ["app.demo.a 1/1", "app.demo.b 1/1", "up.demo.x 1/1"]);
        assert_eq!(names(topics(few.clone()).rows(2)), ["app.demo.> 2/2", "up.demo.x 1/1"]);
        assert_eq!(names(topics(few).rows(1)), ["> 3/3"]);
        // Only where several become one.
        let sensors =
            (0..10_000).map(|n| format!("app.demo.sensor.{n}.temp")).chain(["app.demo.a.b.c.d".to_owned()]);
        assert_eq!(
            names(topics(sensors).rows(10)),
            ["app.demo.sensor.> 10000/10000", "app.demo.a.b.c.d 1/1"]
        );
    }

    #[test]
    fn however_many_subjects_there_are_the_rows_and_the_memory_are_bounded() {
        let many = topics((0..50_000).map(|n| format!("a{}.b{}.c{n}", n % 300, n % 900)));
        assert!(many.0.len() <= SUBJECTS_MAX + 900);
        let rows = many.rows(40);
        assert_eq!(rows.len(), 40);
        assert_eq!(rows.iter().map(|(_, count)| count.messages).sum::<u64>(), 50_000);
    }

    #[test]
    fn what_is_not_known_is_not_guessed() {
        let mut count = Count { subjects: 1, messages: 30, size_bytes: 3_000, ..Count::default() };
        count.sources.insert("s".to_owned());
        let topic = |count: Count, listeners, stored| Topic {
            account: "WORK",
            subject: "up.demo.temp".to_owned(),
            count,
            listeners,
            stored,
        };
        let rows = [
            topic(count.clone(), Some(2), Some(("UPLINK".to_owned(), 7, None))),
            topic(Count { unnamed: 1, ..count.clone() }, None, None),
            topic(count, Some(0), Some(("FROM".to_owned(), 7, Some(3)))),
        ];
        let want = "\
SUBJECT        RATE   SIZE    PUBLISHERS   SUBSCRIBERS   STREAM   LAG
up.demo.temp   15/s   100 B   1            2             UPLINK   7 stored
up.demo.temp   15/s   100 B   ?            ?             -        -
up.demo.temp   15/s   100 B   1            0             FROM     3
";
        assert_eq!(render(&rows, Duration::from_secs(2), false), want);
    }

    #[test]
    fn who_listens_is_counted_but_for_ourselves() {
        let client =
            |name: &str, filter: &str| Client { name: name.into(), subscriptions: vec![filter.into()] };
        let clients = [
            client("pod", "app.demo.>"),
            client("", "app.*.temp"),
            client(OWN_NAME, ">"),
            client("x", "up.>"),
        ];
        assert_eq!((listeners(&clients, "app.demo.temp"), listeners(&clients, "app.other.>")), (2, 1));
    }
}
