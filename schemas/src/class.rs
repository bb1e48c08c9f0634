//! The delivery classes of workload subjects: the first word of a subject says what the message survives.
//!
//! One table, which `docs/workloads.md` repeats (a test compares) and `edgewire explain` speaks from.

use crate::subject::Lane;

/// One delivery class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Class {
    /// The first word of its subjects.
    pub word: &'static str,
    /// A pod may publish on the subjects of its namespace.
    pub publish: bool,
    /// A pod may subscribe to the subjects of its namespace.
    pub subscribe: bool,
    /// Who publishes may wait for an acknowledgement: a stream takes it.
    pub acknowledged: bool,
    /// The lane that carries it up.
    pub lane: Option<Lane>,
    /// What happens to a message.
    pub meaning: &'static str,
}

/// All of them, in the order of the document.
pub const CLASSES: [Class; 5] = [
    Class {
        word: "local",
        publish: true,
        subscribe: true,
        acknowledged: false,
        lane: None,
        meaning: "stays on the node; at most once",
    },
    Class {
        word: "app",
        publish: true,
        subscribe: true,
        acknowledged: false,
        lane: None,
        meaning: "live, to whoever listens now, on this node, on others, at the hub; at most once. What nobody hears is gone",
    },
    Class {
        word: "up",
        publish: true,
        subscribe: false,
        acknowledged: true,
        lane: Some(Lane::Workload),
        meaning: "stored on the node, then carried to the hub **exactly once and in order**, however often the link or a \
                  process dies. At the hub: stream `FROM`, subject `from.<node>.<namespace>.<topic…>`",
    },
    Class {
        word: "bulk",
        publish: true,
        subscribe: false,
        acknowledged: true,
        lane: Some(Lane::Bulk),
        meaning: "telemetry: stored on the node without waiting for the disk, then carried to the hub in order. At the \
                  hub: stream `FROM`, subject `from-bulk.<node>.<namespace>.<topic…>`. Much faster, and with a window: \
                  see below",
    },
    Class {
        word: "down",
        publish: false,
        subscribe: true,
        acknowledged: false,
        lane: None,
        meaning: "what the hub sent to this node as `to.<node>.<namespace>.<topic…>`: stored there, carried down **exactly once \
                  and in order**, stored on the node, and then heard. Who was away takes it from `stored.<namespace>`: see below",
    },
];

impl Class {
    /// The class of `subject`, by its first word.
    pub fn of(subject: &str) -> Option<&'static Class> {
        let word = subject.split('.').next()?;
        CLASSES.iter().find(|class| class.word == word)
    }

    /// What a pod may do, in words.
    pub fn rights(&self) -> &'static str {
        match (self.publish, self.subscribe) {
            (true, true) => "publish, subscribe",
            (true, false) => "publish",
            (false, true) => "subscribe",
            (false, false) => "neither",
        }
    }

    /// Its row in `docs/workloads.md`.
    pub fn row(&self) -> String {
        format!("| `{}.<namespace>.<topic…>` | {} | {} |", self.word, self.rights(), self.meaning)
    }

    /// [`meaning`](Self::meaning) without its mark-up, for a terminal.
    pub fn plain(&self) -> String {
        self.meaning.replace("**", "").replace('`', "").replace(": see below", "")
    }
}

/// Is `subject` one that Edgewire itself speaks on, or stores what it carries under? A tool that plays with subjects keeps
/// off them.
pub fn is_reserved(subject: &str) -> bool {
    let word = subject.split('.').next().unwrap_or_default();
    word.starts_with('$') || ["ew", "_INBOX", "_cursor", "_rules", "from", "from-bulk"].contains(&word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_up_is_acknowledged_and_its_lane_takes_it() {
        for class in CLASSES {
            let subject = format!("{}.demo.temp", class.word);
            assert_eq!(Class::of(&subject), Some(&class));
            if let Some(lane) = class.lane {
                assert!(class.acknowledged && crate::subject::matches(lane.filter(), &subject), "{subject}");
            }
        }
        assert_eq!(Class::of("uplink.demo.x"), None);
    }

    #[test]
    fn what_is_ours_is_reserved() {
        for subject in
            ["ew.hb.n", "$JS.API.INFO", "_INBOX.x", "_cursor.n.bulk", "from.n.demo.x", "from-bulk.n.demo.x"]
        {
            assert!(is_reserved(subject), "{subject}");
        }
        for subject in ["app.demo.x", "up.demo.x", "fromage.x", "factory.temp"] {
            assert!(!is_reserved(subject), "{subject}");
        }
    }
}
