//! Every decoder of bytes from outside, tried with damaged samples and rubbish: it comes back, never panics, and takes no
//! more memory than its input explains. [`list`] is the one place that names them all, and asks for those that it misses.
//! `FUZZ_SECONDS=60 cargo test --workspace --test decoders` tries each for a minute.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // a panic is how a test fails

mod api;
mod door;
mod list;
mod memory;
mod modules;

use std::path::Path;

use schemas::audit::AuditRecord;
use schemas::command::{Frame, OpenExec, OpenLogs, Reply};
use schemas::credential::{
    DeviceLogin, Devices, Enroll, Enrolled, Issue, Issued, JoinToken, NewDevice, NewToken, NodeRecord,
    RevokeDevice, TokenRecord, Withdraw,
};
use schemas::desired::{
    Desired, Diverged, GetPage, GetRequest, Lineage, ListPage, ListRequest, Local, Release,
};
use schemas::downlink::{Look, Taken, Waiting};
use schemas::envelope::Headers;
use schemas::expression::{Expression, Facts};
use schemas::object::Object;
use schemas::report::{EventReport, Heartbeat, HeartbeatAck, ModuleReport, NodeReport, PodReport};
use schemas::routing::{Call, Deliver, Delivered};
use schemas::subject::{self, DesiredKey, ObjectKey};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tests::fuzz::try_bytes;

/// A decoder may hold this much whatever it reads: serde reserves up to 1 MiB for a list by the length that is claimed ...
const MEMORY_BASE_BYTES: usize = 3 * 1024 * 1024;
/// ... and so much for each byte of it: a JSON or MessagePack value of one byte takes some 72 in memory, and a list of
/// them grows by doubling.
const MEMORY_FACTOR: usize = 512;

/// As [`try_bytes`], and holds the target to its memory.
pub fn tries(name: &str, samples: &[Vec<u8>], target: impl Fn(&[u8])) {
    try_bytes(name, samples, |bytes| {
        let ((), peak) = memory::peak(|| target(bytes));
        let bound = MEMORY_BASE_BYTES + MEMORY_FACTOR * bytes.len();
        assert!(peak <= bound, "{name} took {peak} bytes for {}", bytes.len());
    });
}

/// A target that reads text.
pub fn tries_text(name: &str, samples: &[&str], target: impl Fn(&str)) {
    let samples: Vec<Vec<u8>> = samples.iter().map(|sample| sample.as_bytes().to_vec()).collect();
    tries(name, &samples, |bytes| target(&String::from_utf8_lossy(bytes)));
}

/// The committed samples whose names begin so.
pub fn golden(name: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../schemas/tests/golden");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.file_stem().is_some_and(|stem| stem.to_string_lossy().starts_with(name)) {
            found.push(std::fs::read(path).unwrap());
        }
    }
    assert!(!found.is_empty(), "no sample of {name}");
    found
}

/// What is read is written and read again as the same; its sample is not the only thing that can be read.
fn codec<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(name: &str) {
    let samples = golden(name);
    assert!(
        samples.iter().any(|sample| schemas::decode::<T>(sample).is_ok()),
        "{name}: no sample can be read"
    );
    tries(name, &samples, |bytes| {
        if let Ok(value) = schemas::decode::<T>(bytes) {
            let again = schemas::encode(&value);
            assert_eq!(schemas::decode::<T>(&again).unwrap(), value);
        }
    });
}

#[test]
fn expressions_and_what_they_are_given() {
    let texts = [
        "payload.c > 21",
        "{'t': payload.map(x, x * 2), 's': subject}",
        "has(payload.a) ? payload.a.b[0] : 'x'",
    ];
    let samples: Vec<Vec<u8>> = texts.iter().map(|text| text.as_bytes().to_vec()).collect();
    try_bytes("an expression", &samples, |bytes| {
        let _ = Expression::read(&String::from_utf8_lossy(bytes)).map(|read| {
            let headers = Headers::new();
            read.make(&Facts { payload: br#"{"c":1,"a":[2]}"#, subject: "s", headers: &headers })
        });
    });
    let read = texts.map(|text| Expression::read(text).unwrap());
    let given =
        [r#"{"c": 22, "a": {"b": ["y"]}}"#, "[1, 2.5, null]", "text"].map(|text| text.as_bytes().to_vec());
    try_bytes("what an expression is given", &given, |payload| {
        let headers = Headers::new();
        for expression in &read {
            let facts = Facts { payload, subject: "s", headers: &headers };
            let _ = (expression.holds(&facts), expression.make(&facts));
        }
    });
}

#[test]
fn messages_of_desired_state() {
    codec::<Desired>("Desired");
    codec::<Local>("Local");
    codec::<Lineage>("Lineage");
    codec::<ListRequest>("ListRequest");
    codec::<Reply<ListPage>>("List");
    codec::<GetRequest>("GetRequest");
    codec::<GetPage>("GetPage");
    codec::<Diverged>("Diverged");
    codec::<Release>("Release");
}

#[test]
fn messages_of_nodes() {
    codec::<Heartbeat>("Heartbeat");
    codec::<HeartbeatAck>("HeartbeatAck");
    codec::<NodeReport>("NodeReport");
    codec::<PodReport>("PodReport");
    codec::<EventReport>("EventReport");
    codec::<ModuleReport>("ModuleReport");
    codec::<AuditRecord>("AuditRecord");
}

#[test]
fn what_waits_for_a_node() {
    codec::<Look>("Look");
    codec::<Waiting>("Waiting");
    codec::<Taken>("Taken");
    let found = |bytes: &[u8]| {
        let mut downlink = sync::downlink::Downlink::new("n1".parse().unwrap());
        downlink.connect();
        downlink.found(Ok(Some((1, bytes.to_vec()))))
    };
    tries("the cursor of messages from the hub", &golden("Taken"), |bytes| {
        assert!(found(bytes).iter().any(|step| matches!(step, sync::downlink::Step::Look(_))));
    });
}

#[test]
fn messages_of_sessions_and_commands() {
    codec::<Frame>("Frame");
    codec::<OpenLogs>("OpenLogs");
    codec::<OpenExec>("OpenExec");
    codec::<Reply<()>>("Opened");
}

#[test]
fn messages_of_rules() {
    codec::<Deliver>("Deliver");
    codec::<Deliver>("DeliverCall");
    codec::<Reply<Delivered>>("Delivered");
    codec::<Call>("Call");
}

#[test]
fn credentials_and_tokens() {
    codec::<Enroll>("Enroll");
    codec::<Enrolled>("Enrolled");
    codec::<Issue>("Issue");
    codec::<Issued>("Issued");
    codec::<Issued>("IssuedDoors");
    codec::<Withdraw>("Withdraw");
    codec::<NewDevice>("NewDevice");
    codec::<DeviceLogin>("DeviceLogin");
    codec::<Devices>("Devices");
    codec::<RevokeDevice>("RevokeDevice");
    codec::<NewToken>("NewToken");
    codec::<JoinToken>("JoinToken");
    codec::<TokenRecord>("TokenRecord");
    codec::<NodeRecord>("NodeRecord");
    tries_text("claims of a token", &["e30.eyJzdWIiOiJVQSIsIm5hbWUiOiJuMSJ9.c2ln"], |text| {
        bus::identity::jwt::claims(text);
    });
}

#[test]
fn manifests_of_backups() {
    let samples = golden("Manifest");
    tries("Manifest", &samples, |bytes| {
        if let Ok(manifest) = serde_json::from_slice::<schemas::backup::Manifest>(bytes) {
            let again = serde_json::to_vec(&manifest).unwrap();
            assert_eq!(serde_json::from_slice::<schemas::backup::Manifest>(&again).unwrap(), manifest);
        }
    });
}

#[test]
fn what_the_ledger_reads() {
    use schemas::loss::{Account, Drops, LossQuery, LossReport, Origin, Reason};
    tries_text("Origin", &["1763800000000000000-NABCDEFGH.42", "g.1"], |text| {
        if let Some(origin) = Origin::parse(text) {
            assert_eq!(Origin::parse(&origin.to_string()), Some(origin));
        }
    });
    let mut account = Account { began: 3, drops: Drops::default() };
    account.drops.add(4, 9, Reason::Overflow);
    tries("Account", &[serde_json::to_vec(&account).unwrap()], |bytes| {
        if let Ok(account) = serde_json::from_slice::<Account>(bytes) {
            let drops = account.drops.believed(1_000);
            assert!(drops.recent.iter().all(|range| range.first <= range.last && range.last <= 1_000));
            let _ = drops.count();
        }
    });
    let query = LossQuery { node: Some("n1".into()), after: Some(("n0".into(), "UP".into())) };
    tries("LossQuery", &[schemas::encode(&query)], |bytes| {
        if let Ok(query) = schemas::decode::<LossQuery>(bytes) {
            assert_eq!(schemas::decode::<LossQuery>(&schemas::encode(&query)).unwrap(), query);
        }
    });
    let report =
        LossReport { since: schemas::Timestamp(1), rows: Vec::new(), more: false, shed: Default::default() };
    tries("LossReport", &[schemas::encode(&report)], |bytes| {
        let _ = schemas::decode::<LossReport>(bytes);
    });
}

#[test]
fn addresses_of_hubs_and_proxies() {
    tries_text("way", &["tls://hub.example:7422", "wss://[::1]:443/", "tls://h"], |text| {
        if let Some((_, host, _)) = bus::server::way::parse(text) {
            assert!(!host.is_empty());
        }
    });
    tries_text("proxy", &["http://user:p%40ss@proxy:3128", "proxy.example:8080", "http://[::1]:1"], |text| {
        let _ = bus::proxy::Proxy::parse(text);
    });
}

#[test]
fn what_sync_keeps_and_sends() {
    let cursor = sync::up::Cursor { outbox_generation: "g".into(), sequence: 7, account: Default::default() };
    let owed =
        bus::durable::Owed { subject: "ew.rep.a.b".into(), headers: Default::default(), payload: vec![1] };
    tries("Cursor", &[schemas::encode(&cursor)], |bytes| {
        if let Ok(cursor) = schemas::decode::<sync::up::Cursor>(bytes) {
            assert_eq!(schemas::decode::<sync::up::Cursor>(&schemas::encode(&cursor)).unwrap(), cursor);
        }
    });
    tries("Owed", &[schemas::encode(&owed)], |bytes| {
        if let Ok(owed) = schemas::decode::<bus::durable::Owed>(bytes) {
            assert_eq!(schemas::decode::<bus::durable::Owed>(&schemas::encode(&owed)).unwrap(), owed);
        }
    });
}

#[test]
fn objects() {
    let pod = br#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","uid":"u","annotations":{"x":"1"}},"spec":{"a":[1]}}"#;
    let stored = serde_json::from_slice::<Object>(pod).unwrap().to_bytes();
    tries("Object", &[stored], |bytes| {
        let Ok(object) = Object::from_bytes(bytes, 7) else { return };
        assert_eq!(Object::from_bytes(&object.to_bytes(), 7).unwrap(), object);
        let _ = (object.is_deleting(), object.condition("Ready"), object.label("a"), object.revision());
    });
}

#[test]
fn names_in_subjects() {
    let samples = [
        "pods.demo.web%2ea.u-1",
        "n1.pods.demo.a.u",
        "=.pods.demo.a",
        "apps=x.pods.=.a",
        "ew.in.n1.state.ew.rep.a.b",
    ];
    tries_text("names in subjects", &samples, |text| {
        let token = subject::token(text);
        assert_eq!(subject::untoken(&token).as_deref(), Some(text).filter(|_| !token.is_empty()));
        subject::untoken(text);
        if let Some(key) = DesiredKey::parse_local(text) {
            assert_eq!(DesiredKey::parse_local(&key.local_key()), Some(key));
        }
        if let Some((node, key)) = DesiredKey::parse_desired(text) {
            assert_eq!(DesiredKey::parse_desired(&key.desired_key(&node)), Some((node, key)));
        }
        if let Some(key) = ObjectKey::parse(text) {
            assert_eq!(ObjectKey::parse(&key.key()), Some(key));
        }
        if let Some((node, lane, original)) = subject::lowered(text)
            && let Some(raised) = subject::raised(&node, lane, original)
        {
            assert_eq!(subject::lowered(&raised), Some((node, lane, original)));
        }
        subject::matches(text, "a.b.c");
        subject::matches("a.*.>", text);
        let _ = (subject::is_publishable(text), subject::account_of(text));
        let _ = text.parse::<schemas::name::NodeName>();
        let _ = text.parse::<schemas::name::Namespace>();
        schemas::audit::text(text);
    });
}

#[test]
fn quantities_and_times() {
    tries_text(
        "quantities",
        &["100m", "1.5Gi", "12e6", "1E-3", "0.000000001", "18446744073709551615Ei"],
        |text| {
            schemas::quantity::milli(text);
            schemas::quantity::units(text);
        },
    );
    tries_text(
        "times",
        &["2026-01-01T00:00:00Z", "2026-01-01T00:00:00.123456789+02:00", "-009999-01-01T00:00:00Z"],
        |text| {
            if let Some(at) = schemas::Timestamp::parse(text) {
                at.rfc3339();
            }
        },
    );
    tries("times far away", &[], |bytes| {
        let mut at = [0; 8];
        at.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        let at = schemas::Timestamp(i64::from_le_bytes(at));
        let _ = (at.rfc3339(), at.plus_ms(u64::MAX), at.since_ms(schemas::Timestamp(i64::MIN)));
    });
}
