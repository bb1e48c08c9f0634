//! The ledger, told what came in the order that a hub would.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // a test fails by panicking

use std::collections::BTreeMap;

use bus::module::{Delivery, Effect, Input, Message, Module};
use ledger::{Act, Done, Ledger, Streams};
use proptest::prelude::*;
use schemas::Timestamp;
use schemas::command::Reply;
use schemas::envelope::{Headers, header};
use schemas::loss::{Account, Dropped, Drops, LossQuery, LossReport, LossRow, Origin, Reason, SEQUENCE_MAX};
use schemas::name::NodeName;
use schemas::subject::{self, Lane, STREAM_FROM, STREAM_UP};

const NOW: Timestamp = Timestamp(1_000_000);

fn streams(last: u64) -> Streams {
    [STREAM_UP, STREAM_FROM].map(|name| (name.to_owned(), ("g".to_owned(), last))).into()
}

/// A hub: its streams' sequences, and the ledger with what it saved.
struct Hub {
    ledger: Ledger,
    saved: BTreeMap<String, Vec<u8>>,
    sequences: BTreeMap<&'static str, u64>,
}

impl Hub {
    fn new(last: u64) -> Self {
        let sequences = [(STREAM_UP, last), (STREAM_FROM, last)].into();
        let mut hub = Self { ledger: Ledger::new("b0", streams(last)), saved: BTreeMap::new(), sequences };
        hub.restart("b0", last);
        hub
    }

    /// The module (or, with another boot, the hub) starts anew.
    fn restart(&mut self, boot: &str, last: u64) {
        self.ledger = Ledger::new(boot, streams(last));
        let effects = self.ledger.restore(self.saved.clone().into_iter().collect(), NOW);
        self.keep(effects);
    }

    fn keep(&mut self, effects: Vec<Effect<Act>>) {
        for effect in effects {
            match effect {
                Effect::Save { key, value } => drop(self.saved.insert(key, value)),
                Effect::Forget { key } => drop(self.saved.remove(&key)),
                _ => {}
            }
        }
    }

    fn next(&mut self, lane: Lane) -> u64 {
        let sequence = self.sequences.get_mut(lane.hub_stream()).unwrap();
        *sequence += 1;
        *sequence
    }

    fn deliver(&mut self, sequence: u64, lane: Lane, subject: String, headers: Headers) {
        let delivery = Delivery {
            stream: lane.hub_stream().into(),
            sequence,
            subject,
            headers,
            payload: Vec::new(),
            attempt: 1,
        };
        let effects = self.ledger.apply(Input::Delivery(delivery), NOW);
        self.keep(effects);
    }

    /// A batch, as `sync` commits it: messages and the lane's cursor.
    fn batch(&mut self, lane: Lane, generation: &str, came: &[u64], taken: u64, account: Account) {
        let origin = |sequence| Origin { generation: generation.into(), sequence }.to_string();
        for sequence in came {
            let at = self.next(lane);
            let headers = Headers::from([(header::ORIGIN.to_owned(), origin(*sequence))]);
            self.deliver(
                at,
                lane,
                subject::raised(&node(), lane, &lane.filter().replace('>', "x.y")).unwrap(),
                headers,
            );
        }
        let at = self.next(lane);
        let headers = Headers::from([
            (header::ORIGIN.to_owned(), origin(taken)),
            (header::ACCOUNT.to_owned(), serde_json::to_string(&account).unwrap()),
        ]);
        self.deliver(at, lane, subject::cursor(&node(), lane), headers);
    }

    fn report(&mut self, query: &LossQuery) -> LossReport {
        let message = Message {
            account: bus::module::Account::Control,
            subject: ledger::question(),
            headers: Headers::new(),
            payload: schemas::encode(query),
            reply: Some("_INBOX.x".into()),
        };
        let effects = self.ledger.apply(Input::Message(message), NOW);
        let [Effect::Reply { payload, .. }] = effects.as_slice() else { panic!("{effects:?}") };
        schemas::decode::<Reply<LossReport>>(payload).unwrap().unwrap()
    }

    fn row(&mut self, stream: &str) -> LossRow {
        let report = self.report(&LossQuery::default());
        report.rows.into_iter().find(|row| row.stream == stream).unwrap()
    }
}

fn node() -> NodeName {
    NodeName::new("n1").unwrap()
}

fn began(began: u64) -> Account {
    Account { began, drops: Drops::default() }
}

#[test]
fn what_is_missing_is_a_gap_once_its_lanes_are_beyond_it() {
    let mut hub = Hub::new(0);
    hub.batch(Lane::Workload, "s", &[1, 2, 5], 5, began(1));
    let row = hub.row("UPLINK");
    assert_eq!((row.first, row.last, row.gaps, row.gap_ranges), (1, 5, 2, vec![(3, 4)]));
    assert_eq!(row.received, [(Lane::Workload, 3)].into());

    // Two lanes share a stream: what one has not reached may be the other's, and still to come.
    hub.batch(Lane::State, "o", &[1, 3], 3, began(1));
    assert_eq!(hub.row("OUTBOX").gaps, 0, "2 may be an event");
    hub.batch(Lane::Events, "o", &[], 1, began(1));
    assert_eq!(hub.row("OUTBOX").gaps, 0);
    hub.batch(Lane::Events, "o", &[4], 4, began(1));
    assert_eq!(hub.row("OUTBOX").gap_ranges, [(2, 2)]);
}

#[test]
fn what_a_fresh_node_never_sent_first_is_missing_too() {
    let mut hub = Hub::new(0);
    hub.batch(Lane::Workload, "s", &[3], 3, began(1));
    assert_eq!(hub.row("UPLINK").gap_ranges, [(1, 2)]);
    // A ledger that was not there from the first begins with what it sees.
    let mut late = Hub::new(70);
    late.batch(Lane::Workload, "s", &[3], 3, began(1));
    assert_eq!((late.row("UPLINK").gaps, late.row("UPLINK").first), (0, 3));
    // And a node that came from another hub began here where it says.
    let mut hub = Hub::new(0);
    hub.batch(Lane::Workload, "s", &[30], 30, began(30));
    assert_eq!(hub.row("UPLINK").gaps, 0);
}

#[test]
fn what_comes_again_is_a_duplicate_and_what_is_delivered_again_is_not() {
    let mut hub = Hub::new(0);
    hub.batch(Lane::Workload, "s", &[1, 2], 2, began(1));
    hub.batch(Lane::Workload, "s", &[2], 2, began(1));
    let row = hub.row("UPLINK");
    assert_eq!((row.duplicates, row.duplicate_sequences, row.gaps), (1, vec![2], 0));
    // The hub's own consumer tells what was not acknowledged again, in any order, also to the next incarnation.
    hub.restart("b0", 0);
    let headers = Headers::from([(header::ORIGIN.to_owned(), "s.1".to_owned())]);
    hub.deliver(1, Lane::Workload, "from.n1.x.y".into(), headers);
    assert_eq!(hub.row("UPLINK").duplicates, 1);
    assert_eq!(hub.row("UPLINK").received, [(Lane::Workload, 2)].into());
}

#[test]
fn what_was_given_up_is_told_with_its_reason_and_is_no_gap() {
    let mut hub = Hub::new(0);
    let mut account = began(1);
    account.drops.add(1, 40, Reason::Overflow);
    hub.batch(Lane::Bulk, "b", &[41, 42], 42, account.clone());
    let row = hub.row("BULK");
    assert_eq!((row.gaps, row.dropped.clone()), (0, [(Reason::Overflow, 40)].into()));
    // More ranges than a cursor names: the number is whole.
    for sequence in (43..143).step_by(2) {
        account.drops.add(sequence, sequence, Reason::DeadLetter);
        hub.batch(Lane::Bulk, "b", &[sequence + 1], sequence + 1, account.clone());
    }
    let row = hub.row("BULK");
    assert_eq!((row.gaps, row.dropped[&Reason::DeadLetter]), (0, 50));
    hub.batch(Lane::Bulk, "b", &[146], 146, account);
    assert_eq!(hub.row("BULK").gaps, 3, "beside them, what was not given up");
}

#[test]
fn a_stream_that_was_made_anew_counts_anew_and_keeps_what_was_missing() {
    let mut hub = Hub::new(70);
    hub.batch(Lane::Workload, "s", &[7, 9], 9, began(1));
    hub.batch(Lane::Workload, "t", &[2], 2, began(1));
    let row = hub.row("UPLINK");
    assert_eq!(
        (row.replaced, row.gaps, row.gap_ranges),
        (1, 2, vec![(1, 1)]),
        "8 of the first, 1 of the second"
    );
    // The server's start makes telemetry's numbers count anew; its stream is the same.
    hub.batch(Lane::Bulk, "b-1", &[4], 4, began(4));
    hub.batch(Lane::Bulk, "b-2", &[5], 5, began(5));
    assert_eq!((hub.row("BULK").replaced, hub.row("BULK").gaps), (0, 0));
}

#[test]
fn it_survives_a_restart_and_forgets_what_another_store_held() {
    let mut hub = Hub::new(0);
    hub.batch(Lane::Workload, "s", &[1, 3], 3, began(1));
    let before = hub.row("UPLINK");
    hub.restart("b1", 4);
    assert_eq!(hub.row("UPLINK"), before);
    // A store that is behind what was counted is an older one.
    hub.restart("b2", 1);
    assert!(hub.report(&LossQuery::default()).rows.is_empty());
    hub.sequences.insert(STREAM_FROM, 1);
    hub.batch(Lane::Workload, "s", &[4], 4, began(1));
    assert_eq!((hub.row("UPLINK").first, hub.row("UPLINK").gaps), (4, 0));
}

#[test]
fn a_node_of_an_older_version_is_counted_without_numbers() {
    let mut hub = Hub::new(0);
    hub.deliver(1, Lane::Workload, "from.n1.x".into(), Headers::new());
    hub.deliver(2, Lane::Workload, "_cursor.n1.workload".into(), Headers::new());
    hub.deliver(3, Lane::Workload, "something.else".into(), Headers::new());
    let row = hub.row("UPLINK");
    assert_eq!((row.unnumbered, row.gaps, row.last), (1, 0, 0));
}

#[test]
fn rubbish_is_counted_as_unnumbered_and_hurts_nobody() {
    let mut hub = Hub::new(0);
    for (at, text) in (1..).zip(["", ".", "g.", ".5", "g.99999999999999999999", "a b.1", "g.-1"]) {
        let headers = [(header::ORIGIN, text), (header::ACCOUNT, "{")];
        let headers = headers.map(|(name, text)| (name.to_owned(), text.to_owned())).into();
        hub.deliver(at, Lane::Workload, "from.n1.x".into(), headers);
    }
    hub.deliver(
        8,
        Lane::Workload,
        "from.n1.x".into(),
        [(header::ORIGIN.into(), format!("g.{}", u64::MAX))].into(),
    );
    hub.deliver(
        9,
        Lane::Workload,
        "_cursor.n1.workload".into(),
        [(header::ORIGIN.into(), format!("g.{}", u64::MAX))].into(),
    );
    assert_eq!(hub.row("UPLINK").unnumbered, 8);
    // A node that lies harms its own row alone.
    let mut account = began(u64::MAX);
    account.drops.total = [(Reason::Overflow, u64::MAX), (Reason::Other, u64::MAX)].into();
    account.drops.recent = vec![
        Dropped { first: 9, last: 2, reason: Reason::Overflow },
        Dropped { first: 0, last: u64::MAX, reason: Reason::Overflow },
    ];
    hub.sequences.insert(STREAM_FROM, 20);
    hub.batch(Lane::Bulk, "b", &[SEQUENCE_MAX, 3], SEQUENCE_MAX, account);
    assert_eq!(hub.row("BULK").gaps, 0);
}

#[test]
fn older_cursors_go_and_the_newest_stays() {
    let mut hub = Hub::new(0);
    hub.batch(Lane::State, "o", &[1], 1, began(1));
    let later = Timestamp(NOW.0 + 60_000);
    let trims = |effects: Vec<Effect<Act>>| {
        effects.into_iter().filter(|effect| matches!(effect, Effect::Act(Act::TrimCursors { .. }))).count()
    };
    assert_eq!(trims(hub.ledger.apply(Input::Tick, later)), 1, "it is not known what was there before");
    hub.batch(Lane::State, "o", &[2], 2, began(1));
    let later = Timestamp(later.0 + 60_000);
    let effects = hub.ledger.apply(Input::Tick, later);
    assert!(
        effects.iter().any(|effect| matches!(effect, Effect::Act(Act::TrimCursors { newest: 4, .. }))),
        "{effects:?}"
    );
    let later = Timestamp(later.0 + 60_000);
    assert_eq!(trims(hub.ledger.apply(Input::Tick, later)), 0);
    hub.ledger.apply(Input::Done(Done::Shed([(Lane::Bulk, 7)].into())), NOW);
    assert_eq!(hub.report(&LossQuery::default()).shed, [(Lane::Bulk, 7)].into());
}

#[test]
fn a_long_report_comes_in_pages_and_one_node_alone() {
    let mut hub = Hub::new(0);
    for n in 0..ledger::BOOKS_MAX.min(2_500) as u64 {
        hub.deliver(n + 1, Lane::Workload, format!("from.n{n}.x"), Headers::new());
    }
    let first = hub.report(&LossQuery::default());
    assert!(first.more && first.rows.len() == schemas::loss::ROWS_MAX);
    let last = first.rows.last().unwrap();
    let after = Some((last.node.clone(), last.stream.clone()));
    let second = hub.report(&LossQuery { node: None, after });
    assert_eq!((second.more, first.rows.len() + second.rows.len()), (false, 2_500));
    let one = hub.report(&LossQuery { node: Some("n77".into()), after: None });
    assert_eq!(one.rows.len(), 1);
}

proptest! {
    /// Whatever is lost or comes twice of a lane, and however it is cut into batches: the ledger says just that.
    #[test]
    fn it_counts_just_what_is_missing(fates in prop::collection::vec(0..20u8, 1..200), size in 1..30usize) {
        let mut hub = Hub::new(0);
        let (mut missing, mut twice) = (0, 0);
        let sequences: Vec<(u64, u8)> = (1..).zip(fates).collect();
        for batch in sequences.chunks(size) {
            let mut came = Vec::new();
            for (sequence, fate) in batch {
                match fate {
                    0 => missing += 1,
                    1 => { twice += 1; came.extend([*sequence, *sequence]); }
                    _ => came.push(*sequence),
                }
            }
            hub.batch(Lane::Workload, "s", &came, batch.last().unwrap().0, began(1));
        }
        let row = hub.row("UPLINK");
        prop_assert_eq!((row.gaps, row.duplicates), (missing, twice));
    }
}
