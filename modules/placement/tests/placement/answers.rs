//! A node's questions.

use schemas::desired::{Content, GetPage, GetRequest, ListPage, ListRequest, Release};
use schemas::subject::DesiredKey;
use serde_json::json;

use crate::world::{World, key, pod};

fn filled() -> World {
    let mut world = World::new();
    for n in 0..50 {
        world.put("pods", &pod(&format!("p{n:02}"), &n.to_string(), "n1", json!({"pad": "x".repeat(500)})));
    }
    world.put("pods", &pod("foreign", "f", "n2", json!({})));
    world.remove("pods", "p49");
    world
}

fn request(after: Option<DesiredKey>, at_revision: u64, max_bytes: u32) -> ListRequest {
    ListRequest { position: None, after, max_bytes, at_revision }
}

#[test]
fn a_list_comes_in_pages_of_one_revision() {
    let mut world = filled();
    let (mut keys, mut after, mut at, mut pages) = (Vec::new(), None, 0, 0);
    loop {
        let page: ListPage = world.ask("n1", "desired.list", &request(after, at, 1_000)).unwrap();
        assert!(schemas::encode(&page).len() <= 1_000 + 16, "{}", schemas::encode(&page).len());
        assert_eq!(page.at_revision, world.desired.sequence);
        assert_eq!(page.lineage.generation, "g");
        for entry in &page.entries {
            let node = schemas::name::NodeName::new("n1").unwrap();
            assert_eq!(world.desired.entries[&entry.key.desired_key(&node)].0, entry.revision);
        }
        keys.extend(page.entries.into_iter().map(|entry| entry.key));
        (after, at, pages) = (keys.last().cloned(), page.at_revision, pages + 1);
        if !page.more {
            break;
        }
    }
    assert!(pages > 3);
    assert_eq!(keys.len(), 50, "the tombstone is listed too");
    assert!(keys.is_sorted() && keys.iter().all(|key| key.name != "foreign"));
}

#[test]
fn a_page_of_a_list_that_changed_is_refused() {
    let mut world = filled();
    let page: ListPage = world.ask("n1", "desired.list", &request(None, 0, 1_000)).unwrap();
    let after = page.entries.last().map(|entry| entry.key.clone());
    let next = request(after, page.at_revision, 1_000);
    world.put("pods", &pod("other", "o", "n2", json!({})));
    let same: ListPage = world.ask("n1", "desired.list", &next).unwrap();
    assert_eq!(same.at_revision, page.at_revision, "another node's entries do not matter");
    world.put("pods", &pod("new", "n", "n1", json!({})));
    let refused = world.ask::<ListPage>("n1", "desired.list", &next).unwrap_err();
    assert_eq!((refused.code.as_str(), refused.status), ("EW-LIST-CHANGED", 409));
    let future = request(None, u64::MAX, 1_000);
    assert_eq!(world.ask::<ListPage>("n1", "desired.list", &future).unwrap_err().code, "EW-LIST-CHANGED");
}

#[test]
fn entries_come_by_key_within_the_bound_and_only_ones_own() {
    let mut world = filled();
    let keys = vec![key("pods", "p00", "0"), key("pods", "p01", "1"), key("pods", "p02", "2")];
    let get = |max_bytes| GetRequest { keys: keys.clone(), max_bytes };
    let page: GetPage = world.ask("n1", "desired.get", &get(1_000_000)).unwrap();
    assert_eq!(page.entries.len(), 3);
    assert_eq!(page.entries[1].2, world.held("n1", "pods", "p01", "1"));
    let page: GetPage = world.ask("n1", "desired.get", &get(0)).unwrap();
    assert_eq!(page.entries.len(), 1, "at least one, however large");
    let page: GetPage = world.ask("n1", "desired.get", &get(1_500)).unwrap();
    assert_eq!(page.entries.len(), 2);
    let foreign = GetRequest { keys: vec![key("pods", "foreign", "f")], max_bytes: 1_000 };
    let page: GetPage = world.ask("n1", "desired.get", &foreign).unwrap();
    assert_eq!(page.entries, [(key("pods", "foreign", "f"), 0, None)]);
}

#[test]
fn questions_are_refused_before_everything_was_read_and_when_they_cannot_be_read() {
    let mut world = World::stopped();
    world.settle();
    let refused = world.ask::<ListPage>("n1", "desired.list", &request(None, 0, 100)).unwrap_err();
    assert_eq!((refused.code.as_str(), refused.status), ("EW-NOT-READY", 503));
    world.start();
    let refused = world.ask_bytes::<GetPage>("n1", "desired.get", b"\xc1".to_vec()).unwrap_err();
    assert_eq!((refused.code.as_str(), refused.status), ("EW-BAD-REQUEST", 400));
    let many = GetRequest { keys: vec![key("pods", "a", "1"); 5_000], max_bytes: 100 };
    assert_eq!(world.ask::<GetPage>("n1", "desired.get", &many).unwrap_err().code, "EW-BAD-REQUEST");
    assert!(world.ask::<ListPage>("n1", "desired.list", &request(None, 0, 100)).unwrap().entries.is_empty());
}

#[test]
fn the_flows_are_those_of_the_table() {
    let mut subjects: Vec<String> = placement::flows().into_iter().map(|flow| flow.subject).collect();
    subjects.sort();
    subjects.dedup();
    assert_eq!(
        subjects,
        [
            "*.*.*.*.*",
            "=.configmaps.*.*",
            "=.nodes.=.*",
            "=.pods.*.*",
            "=.secrets.*.*",
            "_lineage",
            "edgewire=2Eio.topicmaps.*.*",
            "edgewire=2Eio.topics.*.*",
            "ew.in.*.state.ew.rep.containers.pod.>",
            "ew.local.placement.release",
            "ew.req.*.desired.get",
            "ew.req.*.desired.list",
            "rules=2Ekubeedge=2Eio.ruleendpoints.*.*",
            "rules=2Ekubeedge=2Eio.rules.*.*"
        ]
    );
}

#[test]
fn only_what_the_hub_does_not_have_is_released() {
    let mut world = filled();
    let release = |world: &mut World, name: &str, uid: &str| {
        let release = Release { node: "n1".parse().unwrap(), key: key("pods", name, uid) };
        world.ask_at::<()>("ew.local.placement.release".into(), schemas::encode(&release))
    };
    let known = release(&mut world, "p01", "1").unwrap_err();
    assert_eq!((known.code.as_str(), known.status), ("EW-RELEASE-KNOWN", 409));
    // Of another UID under a name that the hub has; and of a name that it does not have.
    for (name, uid) in [("p01", "old"), ("late", "u")] {
        release(&mut world, name, uid).unwrap();
        world.settle();
        assert_eq!(world.held("n1", "pods", name, uid).unwrap().content, Content::Tombstone);
        let writes = world.writes;
        release(&mut world, name, uid).unwrap();
        assert_eq!(world.writes, writes, "said once");
    }
}
