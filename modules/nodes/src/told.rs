//! What the hub tells of a node's link: that it fell silent, and that it is heard again. The node tells its own side.

use schemas::Timestamp;
use schemas::object::Object;
use schemas::report::{EventReport, Heartbeat, Severity};
use schemas::subject::{DOMAIN_HUB, Lane};

/// Who tells it.
const MODULE: &str = "nodes";

/// How a node's readiness went from one to the other, if its link has to do with it. `id` is the event's own.
pub fn told(
    before: &Object,
    after: &Object,
    beat: Option<&Heard>,
    id: String,
    now: Timestamp,
) -> Option<EventReport> {
    let (severity, reason, message) = match (before.condition("Ready")?, after.condition("Ready")?) {
        ("True", "Unknown") => {
            let text = "no heartbeat comes from the node any more; what runs there runs on".to_owned();
            (Severity::Warning, "LinkDown", text)
        }
        ("Unknown", "True") => {
            let away = since(before).map(|since| format!(" after {} s", now.since_ms(since) / 1000));
            let away = away.unwrap_or_default();
            let waiting = beat.map(|beat| format!("; {}", beat.text())).unwrap_or_default();
            (Severity::Normal, "LinkUp", format!("the node is heard again{away}{waiting}"))
        }
        _ => return None,
    };
    Some(EventReport {
        id,
        node: DOMAIN_HUB.to_owned(),
        module: MODULE.to_owned(),
        at: now,
        severity,
        reason: reason.to_owned(),
        message,
        regarding: ("Node".to_owned(), String::new(), after.name().to_owned(), after.uid().to_owned()),
    })
}

/// When the node's readiness changed last.
fn since(node: &Object) -> Option<Timestamp> {
    let conditions = node.get(&["status", "conditions"])?.as_array()?;
    let ready =
        conditions.iter().find(|condition| condition.get("type").is_some_and(|kind| kind == "Ready"))?;
    Timestamp::parse(ready.get("lastTransitionTime")?.as_str()?)
}

/// What a heartbeat said waits on the node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Heard {
    reports: (u64, u64),
    workload: (u64, u64),
    telemetry: (u64, u64),
}

impl Heard {
    /// Out of a heartbeat.
    pub fn of(heartbeat: &Heartbeat) -> Self {
        let of = |lane| {
            let get = |map: &std::collections::BTreeMap<Lane, u64>| map.get(&lane).copied().unwrap_or(0);
            (get(&heartbeat.waiting), get(&heartbeat.waiting_bytes))
        };
        // State and events stand in one stream, which each of them counts.
        Self { reports: of(Lane::State), workload: of(Lane::Workload), telemetry: of(Lane::Bulk) }
    }

    fn text(&self) -> String {
        let of = |(count, bytes): (u64, u64), what: &str| format!("{count} {what} ({bytes} bytes)");
        format!(
            "{}, {} and {} waited there",
            of(self.reports, "reports and events"),
            of(self.workload, "workload messages"),
            of(self.telemetry, "of telemetry")
        )
    }
}
