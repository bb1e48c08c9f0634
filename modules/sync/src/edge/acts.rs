//! What the edge's module reads and writes, and what passes between it and its rim.

use bus::flow::Flow;
use bus::link::{Have, LinkError, Pulled, Raise, StreamState};
use bus::module::Account;
use bus::server::{LinkFacts, Way};
use schemas::name::NodeName;
use schemas::report::NodeReport;
use schemas::subject::{self, Lane};

use super::{Came, DIVERGED, NAME, Wanted};
use crate::disk::{DiskFacts, House};
use crate::downlink::hub;
use crate::up::Cursor;

/// What only the rim can do.
#[derive(Debug, Clone, PartialEq)]
pub enum Act {
    /// Pull from the node's consumer. The round comes back, so that an old pull is told from the present one.
    Pull {
        /// Which round.
        round: u64,
        /// At most so many bytes.
        max_bytes: usize,
        /// Wait for something to come, if nothing is there.
        wait: bool,
    },
    /// Acknowledge what was pulled.
    Acknowledge(Vec<String>),
    /// Read the lane's cursor at the hub and the state of its stream here. The round comes back with what a lane wants
    /// done, so that the outcome of something older is not taken for the present one's.
    FindCursor {
        /// The lane.
        lane: Lane,
        /// Which round.
        round: u64,
    },
    /// Count what waits in the lane's stream.
    Count {
        /// The lane.
        lane: Lane,
    },
    /// Read the lane's stream, waiting a while for something to come.
    Read {
        /// The lane.
        lane: Lane,
        /// Which round.
        round: u64,
        /// From this sequence on.
        from: u64,
        /// At most so many bytes.
        max_bytes: usize,
    },
    /// Commit a batch.
    Commit {
        /// The lane.
        lane: Lane,
        /// Which round.
        round: u64,
        /// The messages.
        messages: Vec<Raise>,
        /// The new cursor.
        cursor: Cursor,
        /// At which revision the old one is.
        expect_revision: u64,
    },
    /// Drop what the hub has.
    Trim {
        /// The lane.
        lane: Lane,
        /// Up to and with this sequence.
        sequence: u64,
    },
    /// For messages from the hub. The round comes back.
    Messages {
        /// Which round.
        round: u64,
        /// What.
        wanted: Wanted,
    },
    /// Look at the machine.
    Inspect,
    /// Look at what really stands in the local bucket.
    LookAtStore,
    /// Look at the disk.
    LookAtDisk,
    /// Keep the node's streams and its reserve so.
    KeepHouse(House),
    /// Look at the link from outside.
    LookAtLink {
        /// Call the hub, on all ways.
        reach: bool,
    },
    /// Have the link go another way.
    MoveLink(Way),
    /// Drop the links, so that they are made anew.
    RebuildLink,
    /// Start the node's server anew.
    RestartServer,
    /// Into the log, for whoever stands before the machine.
    Warn(String),
}

/// The cursor's revision and value at the hub, if it has one, and the state of the stream here.
pub type Found = (Option<(u64, Vec<u8>)>, StreamState);

/// What the rim tells.
#[derive(Debug, Clone, PartialEq)]
pub enum Done {
    /// What a pull brought.
    Pulled {
        /// Which round.
        round: u64,
        /// The entries.
        outcome: Result<Vec<Pulled>, LinkError>,
        /// How long the bytes took.
        took_ms: u64,
    },
    /// The cursor's revision and value at the hub, and the stream here.
    Found {
        /// The lane.
        lane: Lane,
        /// Which round.
        round: u64,
        /// What was found.
        outcome: Result<Found, LinkError>,
    },
    /// The stream as it is.
    Counted {
        /// The lane.
        lane: Lane,
        /// It.
        state: StreamState,
    },
    /// What stands in the stream.
    Have {
        /// The lane.
        lane: Lane,
        /// Which round.
        round: u64,
        /// The messages.
        outcome: Result<Have, LinkError>,
    },
    /// What became of a batch.
    Committed {
        /// The lane.
        lane: Lane,
        /// Which round.
        round: u64,
        /// The cursor's new revision.
        outcome: Result<u64, LinkError>,
        /// Size of the batch.
        bytes: usize,
        /// How long it took.
        took_ms: u64,
    },
    /// Of messages from the hub.
    Messages {
        /// Which round.
        round: u64,
        /// What.
        came: Came,
    },
    /// What the machine is.
    Inspected(Box<NodeReport>),
    /// The keys that stand in the local bucket.
    StoreHas(Vec<String>),
    /// How the disk looks.
    Disk(DiskFacts),
    /// Telemetry was cleared away up to this sequence.
    Cleared(u64),
    /// How the link looks.
    Link(LinkFacts),
}

/// All that the module reads and writes.
pub fn flows(node: &NodeName) -> Vec<Flow> {
    let hub = subject::DOMAIN_HUB;
    let desired = subject::bucket_stream(subject::BUCKET_DESIRED);
    let consumer = subject::desired_consumer(node);
    let link_work = |subject: String, payload| Flow::link(subject, payload).in_work();
    vec![
        Flow::watch(subject::BUCKET_LOCAL, ">", "Local"),
        Flow::write(subject::BUCKET_LOCAL, ">", "Local"),
        Flow::request(subject::heartbeat(node), "Heartbeat -> HeartbeatAck"),
        Flow::request(subject::request(node, "desired.list"), "ListRequest -> ListPage"),
        Flow::request(subject::request(node, "desired.get"), "GetRequest -> GetPage"),
        Flow::respond(subject::command(node, NAME, DIVERGED), "() -> Diverged"),
        Flow::report(subject::report(NAME, "node", &[node.as_str()]), "NodeReport"),
        Flow::report("ew.evt.sync.*", "EventReport"),
        Flow::link(format!("$JS.{hub}.API.CONSUMER.MSG.NEXT.{desired}.{consumer}"), "pull of Desired"),
        Flow::link(format!("$JS.ACK.{desired}.{consumer}.>"), "acknowledgement"),
        Flow::link(format!("$JS.ACK.*.*.{desired}.{consumer}.>"), "acknowledgement"),
        Flow::link(format!("ew.in.{node}.>"), "reports, events and cursors"),
        Flow::link(
            format!("$JS.{hub}.API.DIRECT.GET.{}.ew.in.{node}._cursor.*", subject::STREAM_UP),
            "read of the node's cursor",
        ),
        link_work(format!("from.{node}.>"), "workload messages"),
        link_work(format!("from-bulk.{node}.>"), "telemetry of workloads"),
        link_work(subject::cursor(node, Lane::Workload), "cursor"),
        link_work(subject::cursor(node, Lane::Bulk), "cursor"),
        link_work(
            format!("$JS.{hub}.API.DIRECT.GET.{}._cursor.{node}.*", subject::STREAM_FROM),
            "read of the node's cursor",
        ),
        Flow::request(subject::request(node, hub::LOOK), "Look -> Waiting"),
        Flow::subscribe(subject::command(node, NAME, hub::ARRIVED), "()"),
        link_work(
            format!("$JS.{hub}.API.DIRECT.GET.{}", subject::to_stream(node)),
            "read of the node's messages",
        ),
        Flow::report(subject::ARRIVING, "any, and the cursor").in_work(),
        Flow::manage(subject::STREAM_DOWN, "cursor, readers and trim").in_work(),
        Flow::manage(subject::STREAM_OUTBOX, "read and trim"),
        Flow::manage(subject::STREAM_UPLINK, "read and trim").in_work(),
        Flow::manage(subject::STREAM_BULK, "read and trim").in_work(),
        Flow::bound(subject::STREAM_UPLINK).in_work(),
        Flow::bound(subject::STREAM_BULK).in_work(),
        Flow::bound(subject::STREAM_MQTT_MESSAGES).in_work(),
        Flow::bound(subject::STREAM_MQTT_RETAINED).in_work(),
        Flow::bound(subject::STREAM_MQTT_SESSIONS).in_work(),
        Flow::bound(subject::STREAM_MQTT_INCOMING).in_work(),
        Flow::bound(subject::STREAM_MQTT_RELEASES).in_work(),
        Flow::arrivals(Lane::State.filter()),
        Flow::arrivals(Lane::Events.filter()),
        Flow::arrivals(Lane::Workload.filter()).in_work(),
        Flow::arrivals(Lane::Bulk.filter()).in_work(),
    ]
}

/// What each message carries besides its body: subject and headers, at a guess.
const HEADERS_BYTES: usize = 200;

impl Act {
    /// What it carries over the uplink; 0 for what is no batch.
    pub fn bytes(&self) -> usize {
        match self {
            Act::Commit { messages, .. } => bytes(messages),
            _ => 0,
        }
    }
}

/// What a batch carries.
pub fn bytes(messages: &[Raise]) -> usize {
    messages.iter().map(|message| message.payload.len() + HEADERS_BYTES).sum()
}

/// The account a lane lives in.
pub fn account(lane: Lane) -> Account {
    if lane.is_alone() { Account::Work } else { Account::Control }
}
