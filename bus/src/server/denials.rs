//! What a server refused its clients. It says so in its log alone (measured with 2.15.1), so the log is followed.
//!
//! A line ends with what the server itself wrote; a client's own name stands before it, quoted, so it can neither end the
//! line nor speak for another.

use std::time::Duration;

use schemas::Timestamp;
use schemas::audit::{self, AuditRecord};
use schemas::object::new_uid;

use super::child::Files;

/// The log is looked at so often.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// Lines taken of one look; more are counted as the last.
const LINES_MAX: usize = 200;

/// One refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// Who, as the server names them: a user's name or public key; empty when it does not. Of an MQTT client the server says
    /// nothing but the ID that it gave itself: `mqtt client "id"`.
    pub user: String,
    /// `publish`, `subscribe` or `connect`.
    pub verb: &'static str,
    /// The subject; empty for a connection.
    pub subject: String,
    /// How many in a row were the same.
    pub count: u64,
}

impl Denial {
    /// As a record of `node`.
    pub fn record(&self, node: &str, now: Timestamp) -> AuditRecord {
        AuditRecord {
            id: new_uid(),
            at: now,
            node: node.to_owned(),
            user: audit::text(&self.user),
            verb: self.verb.to_owned(),
            object: audit::text(&self.subject),
            code: if self.verb == "connect" { 401 } else { 403 },
            count: self.count,
            detail: "refused by the bus".to_owned(),
        }
    }
}

/// A server's refusals, from when it was asked for them on.
#[derive(Debug)]
pub struct Denials {
    files: Files,
    read_to: u64,
}

impl Denials {
    pub(super) fn new(files: Files) -> Self {
        Self { read_to: files.log_length(), files }
    }

    /// Waits for the next.
    pub async fn next(&mut self) -> Vec<Denial> {
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            let length = self.files.log_length();
            let fresh = self.files.log_since(self.read_to);
            // A line that is not whole yet is read when it is.
            let whole = fresh.rfind('\n').map_or(0, |end| end + 1);
            self.read_to = length - u64::try_from(fresh.len() - whole).unwrap_or(0).min(length);
            let denials = denials(fresh.get(..whole).unwrap_or_default());
            if !denials.is_empty() {
                return denials;
            }
        }
    }
}

fn denials(log: &str) -> Vec<Denial> {
    let mut found: Vec<Denial> = Vec::new();
    for denial in log.lines().filter_map(denial) {
        let full = found.len() >= LINES_MAX;
        let same = found.iter().position(|other| (&other.user, other.verb) == (&denial.user, denial.verb));
        match same.or(full.then_some(LINES_MAX - 1)).and_then(|at| found.get_mut(at)) {
            Some(same) => same.count += 1,
            None => found.push(denial),
        }
    }
    found
}

/// `… - "A/user:pod-x" - Publish Violation - Subject "b.c"`, `… - authentication error - User "pod-x"`.
fn denial(line: &str) -> Option<Denial> {
    let (_, line) = line.split_once("[ERR] ")?;
    if let Some((_, rest)) = line.rsplit_once(" - authentication error") {
        let user = rest.split_once("User \"").map_or("", |(_, user)| user.trim_end_matches('"'));
        return Some(Denial { user: user.to_owned(), verb: "connect", subject: String::new(), count: 1 });
    }
    let (verb, before, after) = [
        ("publish", " - Publish Violation - Subject \""),
        ("subscribe", " - Subscription Violation - Subject \""),
    ]
    .into_iter()
    .find_map(|(verb, mark)| line.rsplit_once(mark).map(|(before, after)| (verb, before, after)))?;
    let subject = after.split('"').next().unwrap_or("");
    let quoted = before.trim_end_matches('"').rsplit('"').next().unwrap_or("");
    let user = if before.split(" - ").nth(1).is_some_and(|connection| connection.starts_with("mid:")) {
        // Chosen by the client: it must not look like a user.
        format!("mqtt client {quoted:?}")
    } else {
        quoted.rsplit_once(':').map_or(quoted, |(_, name)| name).to_owned()
    };
    Some(Denial { user, verb, subject: subject.to_owned(), count: 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_says_who_was_refused_what() {
        let log = r#"
[1] 2026/11/22 13:23:20.7 [INF] 127.0.0.1:32824 - cid:6 - Client connection created
[1] 2026/11/22 13:23:20.7 [ERR] 127.0.0.1:32824 - cid:6 - "v2:py:evil \" name\nx" - "A/user:pod-x" - Publish Violation - Subject "b.c"
[1] 2026/11/22 13:23:20.7 [ERR] 127.0.0.1:32824 - cid:6 - "v2:py:x" - "A/user:pod-x" - Publish Violation - Subject "$JS.API.STREAM.CREATE.X"
[1] 2026/11/22 13:23:20.7 [ERR] 127.0.0.1:32824 - cid:6 - "v2:py:x" - "A/user:pod-x" - Subscription Violation - Subject "b.>", SID 1
[1] 2026/11/22 13:23:21.1 [ERR] 127.0.0.1:32830 - cid:7 - authentication error - User "nobody"
[1] 2026/11/22 13:23:21.1 [ERR] 127.0.0.1:32830 - lid:7 - authentication error
"#;
        let found: Vec<_> = denials(log).into_iter().map(|d| (d.user, d.verb, d.subject, d.count)).collect();
        let want = [
            ("pod-x", "publish", "b.c", 2),
            ("pod-x", "subscribe", "b.>", 1),
            ("nobody", "connect", "", 1),
            ("", "connect", "", 1),
        ];
        assert_eq!(
            found,
            want.map(|(user, verb, subject, count)| (user.to_owned(), verb, subject.to_owned(), count))
        );
    }

    #[test]
    fn a_clients_name_speaks_for_nobody_else() {
        let line = r#"[1] x [ERR] 127.0.0.1:1 - cid:6 - "v2:py: - \"A/user:admin\" - Publish Violation - Subject \"stolen\"" - "A/user:pod-x" - Publish Violation - Subject "b.c""#;
        let denial = denial(line).unwrap();
        assert_eq!((denial.user.as_str(), denial.subject.as_str()), ("pod-x", "b.c"));
    }

    #[test]
    fn an_mqtt_clients_id_is_no_user() {
        let line = r#"[1] 2026/11/27 20:07:22.3 [ERR] 127.0.0.1:43831 - mid:194 - "CONTROL/user:mod-x" - Publish Violation - Subject "app.a.z""#;
        let denial = denial(line).unwrap();
        assert_eq!((denial.user.as_str(), denial.verb), (r#"mqtt client "CONTROL/user:mod-x""#, "publish"));
    }

    #[test]
    fn whatever_a_server_logs_is_read() {
        let line = r#"[1] 2026/11/22 13:23:20.7 [ERR] 127.0.0.1:1 - cid:6 - "v2:py:x" - "A/user:pod-x" - Publish Violation - Subject "b.c""#;
        let other =
            r#"[1] 2026/11/22 13:23:21.1 [ERR] 127.0.0.1:1 - cid:7 - authentication error - User "nobody""#;
        let samples = [line.as_bytes().to_vec(), other.as_bytes().to_vec()];
        crate::fuzz::try_bytes("a server's log", &samples, |bytes| {
            let found = denials(&String::from_utf8_lossy(bytes));
            assert!(found.len() <= LINES_MAX);
            found.iter().for_each(|denial| drop(denial.record("n1", Timestamp(0))));
        });
    }
}
