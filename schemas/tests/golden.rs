//! Golden samples: what each serialised type looks like on a wire or a disk, byte for byte. A change that breaks one breaks
//! nodes that are not updated yet. `UPDATE_GOLDEN=1 cargo test -p schemas --test golden` writes new ones; look at the diff.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::Path;

use schemas::Timestamp;
use schemas::backup::{FORMAT, Item, Manifest, StreamSummary};
use schemas::command::{Frame, OpenExec, OpenLogs, Refusal, Reply};
use schemas::credential::{
    DeviceLogin, Devices, Enroll, Enrolled, Heard, Holding, Issue, Issued, JoinToken, NewDevice, NewToken,
    NodeKeys, NodeRecord, RevokeDevice, TokenRecord, Withdraw,
};
use schemas::desired::{
    Content, Desired, Diverged, DivergedObject, Epoch, GetPage, GetRequest, Lineage, ListEntry, ListPage,
    ListRequest, Local, Position, Release,
};
use schemas::downlink::{Holds, Look, Taken, Waiting};
use schemas::object::Object;
use schemas::report::{
    EventReport, Heartbeat, HeartbeatAck, ModuleReport, ModuleState, NodeReport, PodReport, Severity,
};
use schemas::routing::{Call, Deliver, Delivered, Destination};
use schemas::subject::{DesiredKey, Lane};
use schemas::{rule, topic, topic_map};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

fn sample<T: Serialize + DeserializeOwned + PartialEq + Debug>(name: &str, value: &T) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.msgpack"));
    let bytes = schemas::encode(value);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &bytes).unwrap();
    }
    let golden = std::fs::read(&path).unwrap_or_else(|_| panic!("{name} has no golden sample"));
    assert_eq!(bytes, golden, "{name} is written in another form than before");
    assert_eq!(&schemas::decode::<T>(&golden).unwrap(), value, "{name} is read otherwise than before");
}

fn key() -> DesiredKey {
    DesiredKey { plural: "pods".into(), namespace: "demo".into(), name: "a.b".into(), uid: "u-1".into() }
}

fn desired() -> Desired {
    let mut pod = Object::new("v1", "Pod", "demo", "a.b");
    pod.set(&["metadata", "uid"], "u-1");
    pod.set(&["spec"], json!({"containers": [{"name": "c", "image": "i"}], "vendorField": [1, 2.5, null]}));
    Desired { generation: "g".into(), epoch: "e".into(), resource_version: 7, content: Content::Object(pod) }
}

fn position() -> Position {
    Position { generation: "g".into(), epoch: "e".into(), revision: 9 }
}

fn lineage() -> Lineage {
    Lineage { generation: "g".into(), epochs: vec![Epoch { id: "e".into(), start: 1 }] }
}

#[test]
fn desired_state_keeps_its_form() {
    sample("Desired", &desired());
    sample("DesiredTombstone", &Desired { content: Content::Tombstone, ..desired() });
    sample("Local", &Local { revision: 9, desired: desired() });
    sample("Lineage", &lineage());
    sample(
        "ListRequest",
        &ListRequest { position: Some(position()), after: Some(key()), max_bytes: 16_384, at_revision: 9 },
    );
    let entries = vec![ListEntry { key: key(), revision: 9 }];
    sample("ListPage", &Reply::Ok(ListPage { lineage: lineage(), at_revision: 9, entries, more: true }));
    sample("ListRefused", &Reply::<ListPage>::Err(Refusal::new(409, "EW-LIST-CHANGED", "start over")));
    sample("GetRequest", &GetRequest { keys: vec![key()], max_bytes: 16_384 });
    let objects = vec![DivergedObject { key: key(), hub_has_older: true }];
    sample("Diverged", &Diverged { settled: true, objects, more: 1 });
    sample("Release", &Release { node: "n1".parse().unwrap(), key: key() });
    sample("GetPage", &GetPage { entries: vec![(key(), 9, Some(desired())), (key(), 0, None)] });
}

#[test]
fn messages_of_rules_keep_their_form() {
    let headers = vec![("content-type".to_owned(), "text/plain".to_owned())];
    let to = Destination::Publish { subject: "test.b".into() };
    sample("Deliver", &Deliver { to, headers: vec![], body: "x".into() });
    let to = Destination::Call { port: 6666, method: "PUT".into(), path: "/target?y=1".into() };
    sample("DeliverCall", &Deliver { to, headers: headers.clone(), body: "x".into() });
    sample("Delivered", &Reply::Ok(Delivered { status: 418, headers, body: "y".into() }));
    sample("Call", &Call { uid: "u-1".into(), body: "{}".into() });
}

#[test]
fn messages_to_a_node_keep_their_form() {
    let taken = Taken { sequence: 7, at_ns: 1_795_810_354_891_319_894 };
    sample("Taken", &taken);
    sample("Look", &Look { taken: Some(taken) });
    sample("Waiting", &Waiting { last: 9, holds: Some(Holds::Same) });
}

#[test]
fn objects_of_the_channel_keep_their_form() {
    let object = |api_version: &str, kind: &str, spec: serde_json::Value| {
        let mut object = Object::new(api_version, kind, "demo", "a");
        object.set(&["metadata", "uid"], "u-1");
        object.set(&["spec"], spec);
        object
    };
    let topic = object(
        topic::API_VERSION,
        "Topic",
        json!({"subjects": ["app.demo.x.>", "demo.y"], "class": "bulk", "sizeMax": "1Mi", "ageMax": "1h",
            "consumers": [{"name": "c", "filter": "app.demo.x.1", "deliver": "new"}], "nodeSelector": {"site": "a"}}),
    );
    sample("TopicView", &topic.view::<topic::TopicView>().unwrap());
    sample("Topic", &topic::Topic::read(&topic).unwrap());
    let map = object(
        topic::API_VERSION,
        "TopicMap",
        json!({"maps": [{"from": {"mqtt": "f/+/t"}, "to": {"subject": "up.demo.{1}"}, "qos": 0, "retain": true},
            {"from": {"subject": "app.demo.*"}, "to": {"mqtt": "f/{1}"}}]}),
    );
    sample("TopicMapView", &map.view::<topic_map::TopicMapView>().unwrap());
    sample("TopicMap", &topic_map::TopicMap::read(&map).unwrap());
    let mut rule = object(
        rule::API_VERSION,
        "Rule",
        json!({"source": "a", "sourceResource": {"topic": "t", "node_name": "n"}, "target": "b",
            "targetResource": {"resource": "http://x"}, "filter": "true", "map": "x"}),
    );
    rule.set(&["status"], json!({"successMessages": 1, "failMessages": 2, "errors": ["e"]}));
    sample("RuleView", &rule.view::<rule::RuleView>().unwrap());
    let endpoint = object(
        rule::API_VERSION,
        "RuleEndpoint",
        json!({"ruleEndpointType": "servicebus", "properties": {"service_port": "1"}}),
    );
    sample("RuleEndpointView", &endpoint.view::<rule::RuleEndpointView>().unwrap());
}

#[test]
fn reports_keep_their_form() {
    let text = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    };
    sample(
        "Heartbeat",
        &Heartbeat {
            boot_id: "b".into(),
            sequence: 3,
            at: Timestamp(1_000),
            desired: Some(position()),
            waiting: BTreeMap::from([(Lane::State, 1), (Lane::Events, 0), (Lane::Workload, 5)]),
            waiting_bytes: BTreeMap::from([(Lane::Workload, 700)]),
        },
    );
    let ack = HeartbeatAck { sequence: 3, at: Timestamp(1_001), known: true, hub_boot_id: "h".into() };
    sample("HeartbeatAck", &ack);
    sample(
        "NodeReport",
        &NodeReport {
            node: "n".into(),
            boot_id: "b".into(),
            sequence: 2,
            node_info: json!({"architecture": "amd64"}),
            capacity: text(&[("cpu", "2")]),
            allocatable: text(&[("cpu", "2")]),
            addresses: vec![("InternalIP".into(), "10.0.0.2".into())],
            labels: text(&[("kubernetes.io/os", "linux")]),
            conditions: BTreeMap::from([("DiskPressure".into(), ("False".into(), "R".into(), "m".into()))]),
        },
    );
    sample(
        "PodReport",
        &PodReport {
            node: "n".into(),
            namespace: "demo".into(),
            name: "a.b".into(),
            uid: "u-1".into(),
            sequence: 4,
            status: json!({"phase": "Running"}),
            stopped: false,
            store: "s".into(),
        },
    );
    sample(
        "EventReport",
        &EventReport {
            id: "i".into(),
            node: "n".into(),
            module: "sync".into(),
            at: Timestamp(1_000),
            severity: Severity::Warning,
            reason: "LinkDown".into(),
            message: "m".into(),
            regarding: ("Node".into(), String::new(), "n".into(), "n".into()),
        },
    );
    sample(
        "ModuleReport",
        &ModuleReport {
            node: "n".into(),
            module: "sync".into(),
            state: ModuleState::Running,
            restarts: 1,
            since: Timestamp(1_000),
            last_error: "e".into(),
            flows: vec!["f".into()],
        },
    );
}

#[test]
fn commands_keep_their_form() {
    sample(
        "OpenLogs",
        &OpenLogs {
            session: "s".into(),
            namespace: "demo".into(),
            pod: "a.b".into(),
            container: "c".into(),
            follow: true,
            tail_lines: Some(5),
            since_seconds: None,
            timestamps: false,
            previous: false,
            limit_bytes: None,
        },
    );
    sample(
        "OpenExec",
        &OpenExec {
            session: "s".into(),
            namespace: "demo".into(),
            pod: "a.b".into(),
            container: "c".into(),
            command: vec!["ls".into(), "/".into()],
            stdin: false,
            stdout: true,
            stderr: true,
            tty: false,
        },
    );
    sample("FrameData", &Frame::Data { sequence: 0, channel: 1, bytes: bytes::Bytes::from_static(b"hi") });
    sample("FrameCredit", &Frame::Credit { bytes: 100 });
    sample("FrameAlive", &Frame::Alive);
    sample("FrameEnd", &Frame::End { exit_code: Some(3), error: None });
    sample("Opened", &Reply::Ok(()));
}

#[test]
fn credentials_keep_their_form() {
    sample("Issue", &Issue { uid: "u-1".into(), namespace: "demo".parse().unwrap() });
    let before_mqtt = Issued {
        url: "nats://u:p@10.0.0.1:4222".into(),
        inbox: "_INBOX.pod-1".into(),
        user: String::new(),
        password: String::new(),
        mqtt_url: None,
        http_url: None,
    };
    sample("Issued", &before_mqtt);
    let issued = Issued {
        user: "u".into(),
        password: "p".into(),
        mqtt_url: Some("mqtt://u:p@10.0.0.1:1883".into()),
        ..before_mqtt
    };
    sample("IssuedDoors", &issued);
    let device = NewDevice {
        name: "press-1".parse().unwrap(),
        namespace: "demo".parse().unwrap(),
        topics: vec!["factory/#".into()],
        mqtt_only: true,
    };
    sample("NewDevice", &device);
    sample("DeviceLogin", &DeviceLogin { device: device.clone(), issued });
    sample("Devices", &Devices { devices: vec![device.clone()] });
    sample("RevokeDevice", &RevokeDevice { name: device.name });
    sample("Withdraw", &Withdraw { uid: "u-1".into() });
    let (id, node) = ("t".to_owned(), "n1".parse().unwrap());
    sample(
        "TokenRecord",
        &TokenRecord {
            id: id.clone(),
            secret_sha256: "00".into(),
            node: Some(node),
            uses: 1,
            expires: Timestamp(1_000),
        },
    );
    let node: schemas::name::NodeName = "n1".parse().unwrap();
    sample(
        "NodeRecord",
        &NodeRecord {
            node: node.clone(),
            control_key: "UC".into(),
            work_key: "UW".into(),
            enrolled: Timestamp(1_000),
            revoked: None,
            next: None,
            retired: None,
            trusts: vec![],
        },
    );
    let keys = NodeKeys { control_key: "UC".into(), work_key: "UW".into() };
    sample("NodeKeys", &keys);
    sample("Holding", &Holding { keys, trusts: Some(vec!["00".into()]) });
    sample("Heard", &Heard { ca_pem: Some("p".into()) });
    sample(
        "AuditRecord",
        &schemas::audit::AuditRecord {
            id: "a1".into(),
            at: Timestamp(1_000),
            node: "hub".into(),
            user: "edgewire-admin".into(),
            verb: "create".into(),
            object: "pods/demo/sensor".into(),
            code: 201,
            count: 1,
            detail: "kubectl".into(),
        },
    );
    sample("NewToken", &NewToken { ttl_s: 60, node: Some(node.clone()), uses: 2 });
    let hubs = vec!["https://hub:6443".to_owned()];
    let mut token =
        JoinToken { hubs, ca_sha256: "00".into(), id: id.clone(), secret: "s".into(), leafs: vec![] };
    sample("JoinToken", &token);
    token.leafs = vec!["tls://hub:7422".into(), "wss://hub:443".into()];
    sample("JoinTokenLeafs", &token);
    sample(
        "Enroll",
        &Enroll { id, secret: "s".into(), node, control_key: "UC".into(), work_key: "UW".into() },
    );
    let mut enrolled = Enrolled {
        control_jwt: "c".into(),
        work_jwt: "w".into(),
        leaf_urls: vec!["tls://hub:7422".into()],
        wss_urls: vec![],
        ca_pem: "p".into(),
    };
    sample("Enrolled", &enrolled);
    enrolled.wss_urls = vec!["wss://hub:443".into()];
    sample("EnrolledWss", &enrolled);
}

#[test]
fn a_backup_keeps_its_form() {
    let manifest = Manifest {
        format: FORMAT,
        edgewire: "0.1.0".into(),
        nats_server: "2.15.1".into(),
        at: Timestamp(1_000),
        at_text: Timestamp(1_000).rfc3339(),
        host: "hub".into(),
        authority_sha256: "00".into(),
        held_ms: 12,
        streams: vec![StreamSummary {
            account: "WORK".into(),
            stream: "FROM".into(),
            first_sequence: 3,
            last_sequence: 9,
            messages: 5,
            size_bytes: 1_000,
            consumers: 1,
        }],
        files: vec![Item { path: "keys/operator.nk".into(), size_bytes: 58, sha256: "00".into() }],
    };
    // As JSON: people read it.
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/Manifest.json");
    let text = serde_json::to_string_pretty(&manifest).unwrap();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text, golden);
    assert_eq!(serde_json::from_str::<Manifest>(&golden).unwrap(), manifest);
}

#[test]
fn what_a_newer_version_added_is_passed_over() {
    #[derive(Serialize)]
    struct Newer {
        revision: u64,
        desired: Desired,
        added_later: &'static str,
    }
    let bytes = schemas::encode(&Newer { revision: 9, desired: desired(), added_later: "x" });
    assert_eq!(schemas::decode::<Local>(&bytes).unwrap(), Local { revision: 9, desired: desired() });
}

#[test]
fn a_pod_report_of_before_stores_were_named_is_read() {
    #[derive(Serialize)]
    struct Older {
        node: &'static str,
        namespace: &'static str,
        name: &'static str,
        uid: &'static str,
        sequence: u64,
        status: serde_json::Value,
        stopped: bool,
    }
    let (node, namespace, name, uid, status) = ("n", "demo", "a", "u", json!({}));
    let older = Older { node, namespace, name, uid, sequence: 4, status, stopped: true };
    let read: PodReport = schemas::decode(&schemas::encode(&older)).unwrap();
    assert_eq!((read.sequence, read.store.as_str()), (4, ""));
}

#[test]
fn rubbish_is_refused_by_every_decoder() {
    for bytes in [&b""[..], b"\xc1", b"\xff\xff\xff", b"{}", &[0x91; 4096], &[0xdd, 0xff, 0xff, 0xff, 0xff]] {
        assert!(schemas::decode::<Local>(bytes).is_err());
        assert!(schemas::decode::<Heartbeat>(bytes).is_err());
        assert!(schemas::decode::<Reply<ListPage>>(bytes).is_err());
        assert!(schemas::decode::<PodReport>(bytes).is_err());
        assert!(Object::from_bytes(bytes, 1).is_err());
    }
    let large = vec![0u8; schemas::MESSAGE_MAX_BYTES + 1];
    assert!(matches!(schemas::decode::<Frame>(&large), Err(schemas::DecodeError::TooLarge { .. })));
}
