//! Which requests leave a record, and what it says. Pure but for [`Audit`], through which records are kept and read.
//!
//! Recorded is what was done: writes, `exec`, joins, tokens, revocations, logins for the bus; and what was refused for who
//! asked (401, 403). Reads leave none, nor do writes that failed for what they said. A write is answered when its record is
//! on disk; one that cannot be kept within two seconds is told in the log instead.

use async_trait::async_trait;
use axum::http::Method;
use axum::http::request::Parts as Head;
use schemas::Timestamp;
use schemas::audit::{AuditRecord, text};
use schemas::command::Refusal;
use schemas::subject::DOMAIN_HUB;

use crate::route::Target;

/// Keeps records, and gives them back.
#[async_trait]
pub trait Audit: Send + Sync + 'static {
    /// Keeps one.
    async fn write(&self, record: AuditRecord);
    /// The latest `limit` since then that are wanted, in order of time.
    async fn read(&self, wanted: Wanted) -> Result<Vec<AuditRecord>, Refusal>;
}

/// Which records; an absent field wants all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Not before.
    pub since: Timestamp,
    /// At most so many, the latest.
    pub limit: usize,
    /// Of this node, or `hub`.
    pub node: Option<String>,
    /// Of this verb.
    pub verb: Option<String>,
    /// Of this user.
    pub user: Option<String>,
    /// Only what was refused.
    pub refused: bool,
}

impl Wanted {
    /// Is this one of them?
    pub fn wants(&self, record: &AuditRecord) -> bool {
        let is = |want: &Option<String>, have: &str| want.as_deref().is_none_or(|want| want == have);
        is(&self.node, &record.node)
            && is(&self.verb, &record.verb)
            && is(&self.user, &record.user)
            && (!self.refused || record.refused())
    }
}

/// What an answer's extension says of the object, when the request's path did not: a generated or posted name.
#[derive(Debug, Clone)]
pub(crate) struct Named(pub String);

/// A request, as its record will name it.
pub(crate) struct Asked {
    verb: &'static str,
    object: String,
    writes: bool,
    user: String,
    agent: String,
}

impl Asked {
    /// Of a request by `user` (empty when nobody showed who they are).
    pub fn of(head: &Head, user: &str) -> Self {
        let path = head.uri.path();
        let (verb, object, writes) =
            edgewire(&head.method, path).unwrap_or_else(|| resource(&head.method, path));
        let dry = head.uri.query().is_some_and(|query| query.contains("dryRun="));
        let agent = head.headers.get("user-agent").and_then(|value| value.to_str().ok()).unwrap_or("");
        Self { verb, object, writes: writes && !dry, user: user.to_owned(), agent: agent.to_owned() }
    }

    /// Its record, if it leaves one. `why`: the words of a refusal.
    pub fn record(
        self,
        id: fn() -> String,
        code: u16,
        named: Option<&Named>,
        why: &str,
        now: Timestamp,
    ) -> Option<AuditRecord> {
        let done = self.writes && code < 400;
        let refused = matches!(code, 401 | 403) || (self.verb == "join" && code >= 400);
        let object = match named {
            Some(Named(name)) => format!("{}/{name}", self.object),
            None => self.object,
        };
        (done || refused).then(|| AuditRecord {
            id: id(),
            at: now,
            node: DOMAIN_HUB.to_owned(),
            user: text(&self.user),
            verb: self.verb.to_owned(),
            object: text(&object),
            code,
            count: 1,
            detail: text(if refused { why } else { &self.agent }),
        })
    }
}

fn edgewire(method: &Method, path: &str) -> Option<(&'static str, String, bool)> {
    let parts: Vec<&str> = path.strip_prefix("/edgewire/v1/")?.trim_end_matches('/').split('/').collect();
    Some(match (method, parts.as_slice()) {
        (&Method::POST, ["enroll"]) => ("join", "nodes".to_owned(), true),
        (&Method::POST, ["tokens"]) => ("token.create", "tokens".to_owned(), true),
        (&Method::DELETE, ["tokens", id]) => ("token.delete", format!("tokens/{id}"), true),
        (&Method::POST, ["nodes", name, "revoke"]) => ("node.revoke", format!("nodes/{name}"), true),
        (&Method::POST, ["nodes", name, "rotate"]) => ("node.rotate", format!("nodes/{name}"), true),
        (&Method::POST, ["ca", "roll"]) => ("ca.roll", "ca".to_owned(), true),
        (&Method::POST, ["ca", "finish"]) => ("ca.finish", "ca".to_owned(), true),
        (&Method::POST, ["certificate", "renew"]) => ("certificate.renew", "certificate".to_owned(), true),
        (&Method::GET, ["bus"]) => ("bus", String::new(), true),
        _ => ("get", parts.join("/"), false),
    })
}

fn resource(method: &Method, path: &str) -> (&'static str, String, bool) {
    let Ok(target) = Target::parse(path) else { return ("get", path.to_owned(), false) };
    let parts = [Some(target.kind.plural.to_owned()), target.namespace, target.name];
    let mut object = parts.into_iter().flatten().collect::<Vec<_>>().join("/");
    let exec = target.subresource == "exec";
    if !target.subresource.is_empty() && !exec {
        object = format!("{object}/{}", target.subresource);
    }
    let verb = match *method {
        _ if exec => "exec",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    };
    (verb, object, verb != "get")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(method: Method, path: &str, code: u16) -> Option<(String, String)> {
        let request = axum::http::Request::builder().method(method).uri(path).body(()).unwrap();
        let asked = Asked::of(&request.into_parts().0, "admin");
        let record = asked.record(|| "i".into(), code, None, "no", Timestamp(0))?;
        Some((record.verb, record.object))
    }

    #[test]
    fn what_leaves_a_record() {
        let pods = "/api/v1/namespaces/demo/pods";
        let sensor = "/api/v1/namespaces/demo/pods/sensor";
        for (method, path, code, want) in [
            (Method::POST, pods, 201, Some(("create", "pods/demo"))),
            (Method::POST, "/api/v1/namespaces/demo/pods?dryRun=All", 201, None),
            (Method::POST, pods, 422, None),
            (Method::PATCH, sensor, 200, Some(("patch", "pods/demo/sensor"))),
            (
                Method::PUT,
                "/api/v1/namespaces/demo/pods/sensor/status",
                200,
                Some(("update", "pods/demo/sensor/status")),
            ),
            (Method::DELETE, "/api/v1/nodes/edge-a", 200, Some(("delete", "nodes/edge-a"))),
            (
                Method::GET,
                "/api/v1/namespaces/demo/pods/sensor/exec?command=sh",
                101,
                Some(("exec", "pods/demo/sensor")),
            ),
            (Method::GET, sensor, 200, None),
            (Method::GET, sensor, 401, Some(("get", "pods/demo/sensor"))),
            (Method::GET, "/nonsense", 401, Some(("get", "/nonsense"))),
            (Method::POST, "/edgewire/v1/enroll", 200, Some(("join", "nodes"))),
            (Method::POST, "/edgewire/v1/enroll", 409, Some(("join", "nodes"))),
            (Method::POST, "/edgewire/v1/tokens", 200, Some(("token.create", "tokens"))),
            (Method::GET, "/edgewire/v1/tokens", 200, None),
            (Method::DELETE, "/edgewire/v1/tokens/x", 200, Some(("token.delete", "tokens/x"))),
            (Method::POST, "/edgewire/v1/nodes/n1/revoke", 200, Some(("node.revoke", "nodes/n1"))),
            (Method::POST, "/edgewire/v1/ca/roll", 200, Some(("ca.roll", "ca"))),
            (Method::POST, "/edgewire/v1/ca/finish", 200, Some(("ca.finish", "ca"))),
            (Method::POST, "/edgewire/v1/ca/finish", 409, None),
            (Method::GET, "/edgewire/v1/ca", 200, None),
            (Method::POST, "/edgewire/v1/certificate/renew", 200, Some(("certificate.renew", "certificate"))),
            (Method::GET, "/edgewire/v1/bus", 200, Some(("bus", ""))),
        ] {
            let want = want.map(|(verb, object)| (verb.to_owned(), object.to_owned()));
            assert_eq!(record(method.clone(), path, code), want, "{method} {path} {code}");
        }
    }
}
