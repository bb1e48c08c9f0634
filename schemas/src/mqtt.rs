//! MQTT topics as NATS subjects, by the rules of `nats-server` 2.15 (measured, and held to it by a test on a real one).
//!
//! Each level of a topic is a token: an empty level is `/`, a `.` inside a level is `//`, `+` is `*`, `#` is `>`. So `a/b` is
//! `a.b`, `/a//b` is `/.a./.b`, `a.b/c` is `a//b.c`. A filter that ends in `#` means the topic above it too. The server ends the
//! connection of who names a topic with a space or a tab.

use crate::topic::RESERVED;

/// Longest topic or filter: what MQTT 3.1.1 can say (section 1.5.3), and a subject of ours may have.
pub const TOPIC_MAX_BYTES: usize = 2048;
/// Why a topic or a filter cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("MQTT topic {topic:?} {why}")]
pub struct TopicError {
    topic: String,
    why: &'static str,
}

fn error(topic: &str, why: &'static str) -> TopicError {
    TopicError { topic: topic.chars().take(80).collect(), why }
}

/// The subject under which the server publishes what a client says on `topic`.
pub fn subject(topic: &str) -> Result<String, TopicError> {
    if topic.contains(['+', '#']) {
        return Err(error(topic, "has a wildcard: nobody can publish to that"));
    }
    Ok(convert(topic)?.join("."))
}

/// The subjects that a client hears which subscribes to `filter`: one, or two for a filter that ends in `#`.
pub fn subjects(filter: &str) -> Result<Vec<String>, TopicError> {
    let tokens = convert(filter)?;
    let whole = tokens.join(".");
    match tokens.split_last() {
        Some((last, above)) if last == ">" && !above.is_empty() => Ok(vec![above.join("."), whole]),
        _ => Ok(vec![whole]),
    }
}

/// The subjects of a tree of topics that belongs to devices: a filter that cannot reach anything of Edgewire's own.
pub fn device_subjects(filter: &str) -> Result<Vec<String>, TopicError> {
    let first = filter.split('/').next().unwrap_or("");
    if first.contains(['+', '#']) {
        return Err(error(filter, "begins with a wildcard, which means everybody's: name its first level"));
    }
    if first.starts_with(['$', '_']) || RESERVED.contains(&first) {
        return Err(error(
            filter,
            "begins with a word that is Edgewire's or the server's own: name another tree",
        ));
    }
    subjects(filter)
}

/// The topic that a client hears for `subject`: what [`subject`] made, back.
pub fn topic(subject: &str) -> String {
    let level = |token: &str| if token == "/" { String::new() } else { token.replace("//", ".") };
    subject.split('.').map(level).collect::<Vec<_>>().join("/")
}

fn convert(topic: &str) -> Result<Vec<String>, TopicError> {
    if topic.is_empty() || topic.len() > TOPIC_MAX_BYTES {
        return Err(error(topic, "is empty or longer than 2048 bytes"));
    }
    if topic.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(error(
            topic,
            "has a space or a control character, which the bus cannot carry: rename it",
        ));
    }
    let levels: Vec<&str> = topic.split('/').collect();
    let last = levels.len().saturating_sub(1);
    let token = |(at, level): (usize, &&str)| match *level {
        "" => Ok("/".to_owned()),
        "+" => Ok("*".to_owned()),
        "#" if at == last => Ok(">".to_owned()),
        "*" | ">" => Err(error(topic, "has a level `*` or `>`, which is a wildcard of the bus: rename it")),
        level if level.contains(['+', '#']) => {
            Err(error(topic, "has a wildcard that is not a level of its own, or a `#` that is not the last"))
        }
        level => Ok(level.replace('.', "//")),
    };
    levels.iter().enumerate().map(token).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn topics_are_subjects_as_the_server_has_it() {
        for (topic, want) in [
            ("a/b", "a.b"),
            ("/a/b", "/.a.b"),
            ("a//b", "a./.b"),
            ("a.b/c", "a//b.c"),
            ("a/b/", "a.b./"),
            ("/", "/./"),
            ("//", "/././"),
            ("a/..", "a.////"),
            ("$hw/events/device/d1", "$hw.events.device.d1"),
            ("a*b/c", "a*b.c"),
        ] {
            assert_eq!(subject(topic).as_deref(), Ok(want), "{topic}");
        }
        for bad in ["", "a b", "a\tb", "a\u{1}", "a/+", "#", "a/*/b", "a/>"] {
            assert!(subject(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_filter_hears_the_topic_above_too() {
        for (filter, want) in [
            ("a/+/c", vec!["a.*.c"]),
            ("a/#", vec!["a", "a.>"]),
            ("/a/#", vec!["/.a", "/.a.>"]),
            ("#", vec![">"]),
            ("+", vec!["*"]),
        ] {
            assert_eq!(subjects(filter).unwrap(), want, "{filter}");
        }
        for bad in ["a/#/b", "a+/b", "a#", "a/b#"] {
            assert!(subjects(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_devices_tree_reaches_nothing_of_ours() {
        for good in ["factory/#", "/app/x", "zigbee2mqtt/+/set", "homeassistant/#", "apps/x"] {
            assert!(device_subjects(good).is_ok(), "{good}");
        }
        for bad in ["#", "+/x", "app/#", "up/x", "ew/#", "$SYS/#", "$MQTT/#", "_INBOX/#", "from-bulk/#", "to"]
        {
            assert!(device_subjects(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_subject_leads_back_to_its_topic(topic in "[a-z/.$*-]{1,20}") {
            if let Ok(subject) = subject(&topic) {
                prop_assert!(crate::subject::is_publishable(&subject), "{subject}");
                // Levels of dots alone are written as several separators: the one thing that does not come back.
                if !topic.contains("..") {
                    prop_assert_eq!(super::topic(&subject), topic);
                }
            }
        }
    }
}
