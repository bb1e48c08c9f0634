//! What is to be done: which streams are made, changed or removed, and which Topics have to stay unmade. Pure.
//!
//! Streams that are there keep their room, whatever else is wished for: a Topic that came later, or grew, gets what is left. So
//! the bounds hold for the node as it is, also where a stream stays whose Topic nobody knows (any more).

use std::collections::{BTreeMap, BTreeSet};

use bus::declared::Declared;
use schemas::pattern;
use schemas::topic::{NAMESPACE_TOPICS_MAX, Topic};

/// Bytes of all Topics of one namespace on a node.
pub const NAMESPACE_MAX_BYTES: u64 = 512 * 1024 * 1024;
/// Bytes of all Topics of a node: the server's store has twice that, and Edgewire's own streams need the other half.
pub const NODE_MAX_BYTES: u64 = 1024 * 1024 * 1024;
/// Topics of a node.
pub const NODE_TOPICS_MAX: usize = 256;

/// A Topic that the node shall have.
#[derive(Debug, Clone, PartialEq)]
pub struct Wish {
    /// It.
    pub topic: Topic,
    /// Revision of its entry at the hub.
    pub revision: u64,
    /// Its `creationTimestamp`: who came first has the room.
    pub made: String,
}

/// A stream that has to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    /// The stream.
    pub stream: String,
    /// The UID of the Topic that made it, and is gone.
    pub uid: String,
}

/// What is to be done, in this order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// Streams whose Topic is proven to be gone.
    pub remove: Vec<Removal>,
    /// Topics whose stream is not there, or otherwise than they say.
    pub declare: Vec<Topic>,
}

impl Plan {
    /// Is everything as it should be?
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.declare.is_empty()
    }
}

/// What was decided.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Decided {
    /// To do.
    pub plan: Plan,
    /// Topics that stay unmade, or as they were, and why.
    pub unmade: Vec<(Topic, String)>,
}

/// What is there or will be: bytes and number, of the node and of its namespaces.
#[derive(Default)]
struct Room {
    bytes: u64,
    topics: usize,
    of: BTreeMap<String, (u64, usize)>,
}

impl Room {
    /// Takes the room, if it is there; `held` is what the Topic has already.
    fn take(&mut self, topic: &Topic, held: Option<u64>) -> Result<(), String> {
        let namespace = topic.namespace.as_str();
        let (of_bytes, of_topics) = self.of.get(namespace).copied().unwrap_or_default();
        let (more, one) = (topic.size_max_bytes, usize::from(held.is_none()));
        let held = held.unwrap_or(0);
        let full = |of: &str, bytes: u64, max: u64| {
            format!(
                "{more} bytes do not fit: the topics of {of} may have {max} bytes together on a node, and have {bytes}"
            )
        };
        let grows = more > held;
        if grows && of_bytes - held + more > NAMESPACE_MAX_BYTES {
            return Err(full(&format!("namespace {namespace}"), of_bytes, NAMESPACE_MAX_BYTES));
        }
        if grows && self.bytes - held + more > NODE_MAX_BYTES {
            return Err(full("all namespaces", self.bytes, NODE_MAX_BYTES));
        }
        if of_topics + one > NAMESPACE_TOPICS_MAX {
            return Err(format!(
                "namespace {namespace} has {of_topics} topics on this node: no more are made"
            ));
        }
        if self.topics + one > NODE_TOPICS_MAX {
            return Err(format!("this node has {} topics: no more are made", self.topics));
        }
        self.bytes = self.bytes - held + more;
        self.topics += one;
        self.of.insert(namespace.to_owned(), (of_bytes - held + more, of_topics + one));
        Ok(())
    }
}

/// Decides. `found` are the streams that Topics made, whichever they were.
pub fn decide<'a>(
    wishes: impl Iterator<Item = &'a Wish>,
    gone: &BTreeSet<String>,
    found: &[Declared],
) -> Decided {
    let mut decided = Decided::default();
    let mut there: BTreeMap<&str, &Declared> = BTreeMap::new();
    for declared in found {
        if gone.contains(&declared.owner) {
            let (stream, uid) = (declared.stream.clone(), declared.owner.clone());
            decided.plan.remove.push(Removal { stream, uid });
        } else {
            there.insert(&declared.stream, declared);
        }
    }
    // Two UIDs of one name: a hub that lost its store and was given the Topic anew. The newer one goes on with the stream.
    let mut newest: BTreeMap<String, &Wish> = BTreeMap::new();
    for wish in wishes {
        let kept = newest.entry(wish.topic.stream()).or_insert(wish);
        if wish.revision > kept.revision {
            *kept = wish;
        }
    }
    let mut room = Room::default();
    for (stream, declared) in &there {
        let namespace = namespace_of(stream);
        let (bytes, topics) = room.of.get(&namespace).copied().unwrap_or_default();
        room.of.insert(namespace, (bytes + declared.size_max_bytes, topics + 1));
        room.bytes += declared.size_max_bytes;
        room.topics += 1;
    }
    let mut ordered: Vec<(&String, &&Wish)> = newest.iter().collect();
    ordered.sort_by_key(|(stream, wish)| {
        (!there.contains_key(stream.as_str()), wish.made.as_str(), wish.topic.uid.as_str())
    });
    let mut taken: Vec<&Topic> = Vec::new();
    for (stream, wish) in ordered {
        let topic = &wish.topic;
        let has = there.get(stream.as_str());
        let meets = |other: &&&Topic| {
            let subjects = |one: &String| other.subjects.iter().any(|other| pattern::overlaps(one, other));
            topic.subjects.iter().any(subjects)
        };
        let why = match taken.iter().find(meets) {
            Some(other) => Err(format!(
                "its subjects meet those of topic {}/{}: no subject is captured twice",
                other.namespace, other.name
            )),
            None => room.take(topic, has.map(|declared| declared.size_max_bytes)),
        };
        match why {
            Ok(()) => {
                taken.push(topic);
                if has.is_none_or(|declared| !declared.is(topic)) {
                    decided.plan.declare.push(topic.clone());
                }
            }
            Err(why) => {
                let stays = if has.is_some() { "; its stream stays as it is" } else { "" };
                decided.unmade.push((topic.clone(), format!("{why}{stays}")));
            }
        }
    }
    decided
}

/// The namespace in a stream's name.
fn namespace_of(stream: &str) -> String {
    let rest = stream.strip_prefix(schemas::subject::TOPIC_STREAM).unwrap_or(stream);
    rest.split('_').next().unwrap_or("").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::topic::{Class, Consumer};

    const MIB: u64 = 1024 * 1024;

    fn wish(namespace: &str, name: &str, mib: u64, made: &str) -> Wish {
        let topic = Topic {
            namespace: namespace.parse().unwrap(),
            name: name.into(),
            uid: format!("u-{namespace}-{name}"),
            subjects: vec![format!("app.{namespace}.{name}.>")],
            class: Class::Durable,
            size_max_bytes: mib * MIB,
            age_max_ms: None,
            consumers: Vec::new(),
        };
        Wish { topic, revision: 1, made: made.into() }
    }

    fn there(wish: &Wish) -> Declared {
        Declared {
            stream: wish.topic.stream(),
            owner: wish.topic.uid.clone(),
            size_max_bytes: wish.topic.size_max_bytes,
            form: bus::declared::form(&wish.topic),
            consumers: wish.topic.consumers.len(),
        }
    }

    fn names(topics: &[Topic]) -> Vec<&str> {
        topics.iter().map(|topic| topic.name.as_str()).collect()
    }

    fn run(wishes: &[Wish], gone: &[&str], found: &[Declared]) -> Decided {
        decide(wishes.iter(), &gone.iter().map(|uid| (*uid).to_owned()).collect(), found)
    }

    #[test]
    fn what_is_as_it_should_be_is_left_alone() {
        let a = wish("demo", "a", 1, "1");
        assert_eq!(run(&[a.clone()], &[], &[there(&a)]), Decided::default());
        let mut changed = a.clone();
        changed.topic.consumers.push(Consumer { name: "c".into(), filter: None, only_new: false });
        assert_eq!(names(&run(&[changed], &[], &[there(&a)]).plan.declare), ["a"]);
        let lost_consumer = Declared { consumers: 1, ..there(&a) };
        assert_eq!(names(&run(&[a], &[], &[lost_consumer]).plan.declare), ["a"]);
    }

    #[test]
    fn only_a_proof_removes_a_stream() {
        let a = wish("demo", "a", 1, "1");
        assert_eq!(run(&[], &[], &[there(&a)]), Decided::default(), "absence is no proof");
        let removed = run(&[], &["u-demo-a"], &[there(&a)]).plan.remove;
        assert_eq!(removed, [Removal { stream: "T_demo_a".into(), uid: "u-demo-a".into() }]);
        // Deleted and made again: the old stream goes first.
        let mut again = a.clone();
        again.topic.uid = "u-2".into();
        let decided = run(&[again.clone()], &["u-demo-a"], &[there(&a)]);
        assert_eq!((decided.plan.remove.len(), names(&decided.plan.declare)), (1, vec!["a"]));
        // Given anew by a hub that lost it: it goes on with what is there.
        let decided = run(&[again.clone()], &[], &[there(&a)]);
        assert_eq!((decided.plan.remove.len(), names(&decided.plan.declare)), (0, vec!["a"]));
        let newer = Wish { revision: 2, ..again };
        let decided = run(&[a.clone(), newer.clone()], &[], &[there(&newer)]);
        assert_eq!(decided, Decided::default(), "of two UIDs the newer");
    }

    #[test]
    fn who_came_first_has_the_room_and_who_is_there_keeps_it() {
        let (a, b, c) =
            (wish("demo", "a", 300, "1"), wish("demo", "b", 300, "2"), wish("other", "c", 300, "3"));
        let decided = run(&[b.clone(), a.clone(), c.clone()], &[], &[]);
        assert_eq!(names(&decided.plan.declare), ["a", "c"]);
        assert!(decided.unmade[0].1.contains("namespace demo may have"), "{}", decided.unmade[0].1);
        let decided = run(&[a.clone(), b.clone()], &[], &[there(&b)]);
        assert_eq!((names(&decided.plan.declare), decided.unmade.len()), (vec![], 1), "b is there");
        // It may grow only into what is left, and shrink always.
        let mut grown = a.clone();
        grown.topic.size_max_bytes = 513 * MIB;
        let decided = run(&[grown], &[], &[there(&a)]);
        assert!(decided.unmade[0].1.ends_with("its stream stays as it is"), "{}", decided.unmade[0].1);
        let mut smaller = a.clone();
        smaller.topic.size_max_bytes = MIB;
        assert_eq!(names(&run(&[smaller, b.clone()], &[], &[there(&a)]).plan.declare), ["a", "b"]);
        // A stream that nobody knows has its room too; one that goes does not.
        assert_eq!(run(&[b.clone()], &[], &[there(&a)]).unmade.len(), 1);
        assert_eq!(run(&[b], &["u-demo-a"], &[there(&a)]).unmade.len(), 0);
        let many: Vec<Wish> = (0..40).map(|n| wish("demo", &format!("t{n:02}"), 1, "1")).collect();
        assert_eq!(run(&many, &[], &[]).plan.declare.len(), NAMESPACE_TOPICS_MAX);
        let three: Vec<Wish> = ["x", "y", "z"].iter().map(|ns| wish(ns, "t", 500, "1")).collect();
        let decided = run(&three, &[], &[]);
        assert!(decided.unmade[0].1.contains("all namespaces"), "{}", decided.unmade[0].1);
    }

    #[test]
    fn no_subject_is_captured_twice() {
        let (a, mut b) = (wish("demo", "a", 1, "1"), wish("demo", "b", 1, "2"));
        b.topic.subjects = vec!["app.demo.*.x".into()];
        let decided = run(&[a, b], &[], &[]);
        assert_eq!(names(&decided.plan.declare), ["a"]);
        assert!(decided.unmade[0].1.contains("topic demo/a"), "{}", decided.unmade[0].1);
    }
}
