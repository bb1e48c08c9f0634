//! Flows: what a module reads and writes. One declaration is its documentation (`docs/flows.md`, `edgewire modules`), the
//! list of what the [runner](crate::runner) opens for it, and the NATS permission that it runs with: what is not declared
//! is refused by the server.

use crate::module::Account;
use crate::provision;
use schemas::subject;

/// The class of a report that no stream would keep: a mistake in a module's flows.
pub const NOT_CAPTURED: &str = "captured by no stream";

/// One thing that a module reads or writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// Account it runs in.
    pub account: Account,
    /// What is done.
    pub kind: Kind,
    /// Subject or key filter.
    pub subject: String,
    /// The type of the payload, as named in `schemas`.
    pub payload: &'static str,
}

/// What is done with the subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Hear live messages; may answer them when `respond`.
    Subscribe {
        /// Answers requests.
        respond: bool,
    },
    /// Say live messages.
    Publish,
    /// Ask and get one answer.
    Request,
    /// Follow a bucket's entries; the subject is a key filter.
    Watch {
        /// The bucket.
        bucket: &'static str,
    },
    /// Write a bucket's entries; the subject is a key filter.
    Write {
        /// The bucket.
        bucket: &'static str,
    },
    /// Take stored messages, exactly as they were stored; the subject is the filter.
    Consume {
        /// The stream.
        stream: &'static str,
        /// Name of the durable consumer.
        durable: &'static str,
        /// Without the bodies.
        headers_only: bool,
        /// The next one comes when this one is acknowledged: one that has to be tried again holds the others up, so that none
        /// overtakes it.
        one_by_one: bool,
    },
    /// Say durably, into the stream that captures the subject.
    Report,
    /// Read a stream of this server where one likes, and nothing else.
    Read {
        /// The stream.
        stream: &'static str,
    },
    /// Take stored messages by consumers that the rim makes and lets go as they are needed. See [`crate::queue`].
    Take {
        /// The stream.
        stream: &'static str,
    },
    /// Manage a stream of this server (purge, consumers): the hub's side of sync, the API's direct reads.
    Manage {
        /// The stream.
        stream: &'static str,
    },
    /// Change how much room a stream of this server has.
    Bound {
        /// The stream.
        stream: &'static str,
    },
    /// Look at which streams the account has, what they capture, and read them; change nothing.
    Streams,
    /// Make the streams of this server of which each node has one, look at them and trim them; the subject is what they
    /// capture. A permission knows no beginning of a name: so it is for every stream of the account.
    NodeStreams,
    /// Across the link, on the hub's domain: what only the edge's sync does. See [`crate::link`].
    Link,
    /// Be woken by what is stored on this server; the stream is read where it was left.
    Arrivals,
    /// Hear what an object names, by the module's rim.
    Named,
    /// Byte streams, in either direction. See [`crate::stream`].
    Stream,
}

impl Flow {
    fn control(kind: Kind, subject: impl Into<String>, payload: &'static str) -> Self {
        Self { account: Account::Control, kind, subject: subject.into(), payload }
    }
    /// Hear live messages in CONTROL.
    pub fn subscribe(subject: impl Into<String>, payload: &'static str) -> Self {
        Self::control(Kind::Subscribe { respond: false }, subject, payload)
    }
    /// Answer requests in CONTROL.
    pub fn respond(subject: impl Into<String>, payload: &'static str) -> Self {
        Self::control(Kind::Subscribe { respond: true }, subject, payload)
    }
    /// Say live messages in CONTROL.
    pub fn publish(subject: impl Into<String>, payload: &'static str) -> Self {
        Self::control(Kind::Publish, subject, payload)
    }
    /// Ask in CONTROL.
    pub fn request(subject: impl Into<String>, payload: &'static str) -> Self {
        Self::control(Kind::Request, subject, payload)
    }
    /// Follow a bucket.
    pub fn watch(bucket: &'static str, filter: impl Into<String>, payload: &'static str) -> Self {
        Self::control(Kind::Watch { bucket }, filter, payload)
    }
    /// Write a bucket.
    pub fn write(bucket: &'static str, filter: impl Into<String>, payload: &'static str) -> Self {
        Self::control(Kind::Write { bucket }, filter, payload)
    }
    /// Take stored messages.
    pub fn consume(
        stream: &'static str,
        durable: &'static str,
        filter: impl Into<String>,
        payload: &'static str,
    ) -> Self {
        Self::control(
            Kind::Consume { stream, durable, headers_only: false, one_by_one: false },
            filter,
            payload,
        )
    }
    /// Say durably.
    pub fn report(subject: impl Into<String>, payload: &'static str) -> Self {
        Self::control(Kind::Report, subject, payload)
    }
    /// Read a stream.
    pub fn read(stream: &'static str, payload: &'static str) -> Self {
        Self::control(Kind::Read { stream }, stream, payload)
    }
    /// Take stored messages by consumers of the rim's own.
    pub fn take(stream: &'static str, filter: impl Into<String>, payload: &'static str) -> Self {
        Self::control(Kind::Take { stream }, filter, payload)
    }
    /// Say what a stream captures.
    pub fn capture(stream: &'static str) -> Self {
        Self::control(Kind::Bound { stream }, stream, "what it captures")
    }
    /// Manage a stream.
    pub fn manage(stream: &'static str, payload: &'static str) -> Self {
        Self::control(Kind::Manage { stream }, stream, payload)
    }
    /// Bound a stream.
    pub fn bound(stream: &'static str) -> Self {
        Self::control(Kind::Bound { stream }, stream, "its bound")
    }
    /// Make and trim the streams of nodes.
    pub fn node_streams(filter: impl Into<String>, payload: &'static str) -> Self {
        Self::control(Kind::NodeStreams, filter, payload)
    }
    /// Look at which streams the account has, and read them.
    pub fn streams() -> Self {
        Self::control(Kind::Streams, "*", "what streams capture and hold")
    }
    /// Across the link.
    pub fn link(subject: impl Into<String>, payload: &'static str) -> Self {
        Self::control(Kind::Link, subject, payload)
    }
    /// Be woken.
    pub fn arrivals(filter: impl Into<String>) -> Self {
        Self::control(Kind::Arrivals, filter, "wake-up only")
    }
    /// Hear what an object names: opened by the module's rim, not by the runner.
    pub fn named(filter: impl Into<String>, payload: &'static str) -> Self {
        Self::control(Kind::Named, filter, payload)
    }
    /// Byte streams.
    pub fn stream(payload: &'static str) -> Self {
        Self::control(Kind::Stream, "ew.str.*.*", payload)
    }
    /// The same without the messages' bodies.
    pub fn headers_only(mut self) -> Self {
        if let Kind::Consume { headers_only, .. } = &mut self.kind {
            *headers_only = true;
        }
        self
    }
    /// The same, one message after the other.
    pub fn one_by_one(mut self) -> Self {
        if let Kind::Consume { one_by_one, .. } = &mut self.kind {
            *one_by_one = true;
        }
        self
    }
    /// The same in WORK.
    pub fn in_work(mut self) -> Self {
        self.account = Account::Work;
        self
    }

    /// `in` or `out`, for the table.
    pub fn direction(&self) -> &'static str {
        match self.kind {
            Kind::Subscribe { .. }
            | Kind::Watch { .. }
            | Kind::Consume { .. }
            | Kind::Take { .. }
            | Kind::Read { .. }
            | Kind::Streams
            | Kind::Arrivals
            | Kind::Named => "in",
            Kind::Publish | Kind::Request | Kind::Write { .. } | Kind::Report | Kind::Bound { .. } => "out",
            Kind::Manage { .. } | Kind::NodeStreams | Kind::Link | Kind::Stream => "both",
        }
    }

    /// The delivery class, for the table.
    pub fn class(&self) -> String {
        match &self.kind {
            Kind::Subscribe { respond: true } | Kind::Request => "request/reply".into(),
            Kind::Subscribe { .. } | Kind::Publish => "live".into(),
            Kind::Watch { bucket } => format!("bucket {bucket}, level-triggered"),
            Kind::Write { bucket } => format!("bucket {bucket}, compare-and-set"),
            Kind::Consume { stream, .. } | Kind::Take { stream } => {
                format!("stream {stream}, in order, acknowledged last")
            }
            Kind::Report => match provision::capturing(self.account, &self.subject) {
                Some(row) => format!("stream {}, durable", row.name),
                None => NOT_CAPTURED.into(),
            },
            Kind::Read { stream } => format!("stream {stream}, read"),
            Kind::Manage { stream } => format!("stream {stream}, managed"),
            Kind::Bound { stream } => format!("stream {stream}, bounded"),
            Kind::NodeStreams => "streams, one for each node, made and trimmed".into(),
            Kind::Streams => "streams of the account, listed and read".into(),
            Kind::Link => "across the link".into(),
            Kind::Arrivals => "live, wake-up".into(),
            Kind::Named => "live, as an object names it".into(),
            Kind::Stream => "byte stream, credit-bounded".into(),
        }
    }

    /// One line, as `edgewire modules` shows it.
    pub fn line(&self) -> String {
        format!(
            "{} {} {} [{}] {}",
            self.account.as_str(),
            self.direction(),
            self.subject,
            self.class(),
            self.payload
        )
    }
}

/// The allow-lists that the flows of module `owner` on `node` (or `hub`) give it in `account`, on a server whose
/// JetStream domain is `domain`.
pub fn permissions(
    node: &str,
    owner: &str,
    flows: &[Flow],
    account: Account,
    domain: &str,
) -> crate::identity::Permissions {
    let mut publish = vec![subject::dead(owner)];
    let mut subscribe = vec![format!("{}.>", subject::module_inbox(node, owner))];
    // Both spellings of the API prefix: clients that name the domain and those that are in it.
    let api = |publish: &mut Vec<String>, verb: String| {
        publish.push(format!("$JS.{domain}.API.{verb}"));
        publish.push(format!("$JS.API.{verb}"));
    };
    let read = |publish: &mut Vec<String>, stream: &str| {
        for verb in [
            format!("STREAM.INFO.{stream}"),
            format!("CONSUMER.CREATE.{stream}.>"),
            format!("CONSUMER.CREATE.{stream}"),
            format!("CONSUMER.INFO.{stream}.>"),
            format!("CONSUMER.DELETE.{stream}.>"),
            format!("CONSUMER.MSG.NEXT.{stream}.>"),
            format!("DIRECT.GET.{stream}"),
            format!("DIRECT.GET.{stream}.>"),
            format!("STREAM.MSG.GET.{stream}"),
        ] {
            api(publish, verb);
        }
        publish.push(format!("$JS.ACK.{stream}.>"));
        publish.push(format!("$JS.FC.{stream}.>"));
        publish.push("$JS.FC.>".to_owned());
    };
    api(&mut publish, "INFO".to_owned());
    for flow in flows.iter().filter(|flow| flow.account == account) {
        match &flow.kind {
            Kind::Subscribe { respond } => {
                subscribe.push(flow.subject.clone());
                if *respond {
                    publish.push("_INBOX.>".to_owned());
                }
            }
            Kind::Publish | Kind::Request | Kind::Report => publish.push(flow.subject.clone()),
            Kind::Watch { bucket } => read(&mut publish, &subject::bucket_stream(bucket)),
            Kind::Write { bucket } => {
                publish.push(subject::kv(bucket, &flow.subject));
                api(&mut publish, format!("STREAM.INFO.{}", subject::bucket_stream(bucket)));
                api(&mut publish, format!("DIRECT.GET.{}.>", subject::bucket_stream(bucket)));
            }
            Kind::Consume { stream, .. } => read(&mut publish, stream),
            Kind::Take { stream } => {
                read(&mut publish, stream);
                api(&mut publish, format!("CONSUMER.NAMES.{stream}"));
            }
            Kind::Read { stream } => api(&mut publish, format!("DIRECT.GET.{stream}")),
            Kind::Manage { stream } => {
                read(&mut publish, stream);
                api(&mut publish, format!("STREAM.PURGE.{stream}"));
                api(&mut publish, format!("CONSUMER.DURABLE.CREATE.{stream}.>"));
                api(&mut publish, format!("CONSUMER.LIST.{stream}"));
            }
            Kind::Bound { stream } => {
                api(&mut publish, format!("STREAM.INFO.{stream}"));
                api(&mut publish, format!("STREAM.UPDATE.{stream}"));
            }
            Kind::NodeStreams => {
                let verbs = [
                    "STREAM.NAMES",
                    "STREAM.INFO.*",
                    "STREAM.CREATE.*",
                    "STREAM.UPDATE.*",
                    "STREAM.PURGE.*",
                    "DIRECT.GET.*",
                ];
                verbs.into_iter().for_each(|verb| api(&mut publish, verb.to_owned()));
            }
            Kind::Streams => ["STREAM.LIST", "STREAM.INFO.*", "DIRECT.GET.*"]
                .into_iter()
                .for_each(|verb| api(&mut publish, verb.to_owned())),
            Kind::Link => publish.push(flow.subject.clone()),
            Kind::Arrivals | Kind::Named => subscribe.push(flow.subject.clone()),
            Kind::Stream => {
                publish.push("ew.str.*.*".to_owned());
                subscribe.push("ew.str.*.*".to_owned());
                publish.push("ew.cmd.*._stream.*".to_owned());
                subscribe.push("ew.cmd.*._stream.*".to_owned());
            }
        }
    }
    publish.sort();
    publish.dedup();
    subscribe.sort();
    subscribe.dedup();
    crate::identity::Permissions { publish_allow: publish, subscribe_allow: subscribe }
}
