//! Paths and query parameters, read once: `/api/v1/namespaces/<ns>/<plural>/<name>/<subresource>` and the like.
//!
//! Source: Kubernetes "API concepts: Resource URIs". Pure.

use crate::resource::{self, Kind};
use crate::status::ApiError;

/// What a path of `/api` or `/apis` names.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    /// The kind's row.
    pub kind: &'static Kind,
    /// Namespace; `None`: all of them (or the kind has none).
    pub namespace: Option<String>,
    /// Name; `None`: the collection.
    pub name: Option<String>,
    /// Subresource; empty: the object itself.
    pub subresource: String,
}

impl Target {
    /// Reads a path below `/api/` or `/apis/`, which has a version and at least one part after it.
    pub fn parse(path: &str) -> Result<Self, ApiError> {
        let parts = path
            .trim_matches('/')
            .split('/')
            .map(decode)
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| ApiError::bad_request("the path has a broken %-escape"))?;
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let (group, version, rest) = match parts.as_slice() {
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return Err(ApiError::not_served(&format!("path {path:?}"))),
        };
        let find = |plural: &str| {
            let name =
                if group.is_empty() { plural.to_owned() } else { format!("{plural}.{group}/{version}") };
            resource::find(group, version, plural)
                .ok_or_else(|| ApiError::not_served(&format!("resource {name:?}")))
        };
        let owned = |text: &str| Some(text.to_owned()).filter(|t| !t.is_empty());
        let (namespace, plural, rest) = match rest {
            ["namespaces"] => (None, "namespaces", &[][..]),
            // A namespace's own subresources look like collections in it.
            ["namespaces", name, "status" | "finalize"] => {
                return Ok(Self {
                    kind: find("namespaces")?,
                    namespace: None,
                    name: owned(name),
                    subresource: rest.last().copied().unwrap_or("").to_owned(),
                });
            }
            ["namespaces", name] => {
                return Ok(Self {
                    kind: find("namespaces")?,
                    namespace: None,
                    name: owned(name),
                    subresource: String::new(),
                });
            }
            ["namespaces", namespace, plural, rest @ ..] => (owned(namespace), *plural, rest),
            [plural, rest @ ..] => (None, *plural, rest),
            [] => return Err(ApiError::not_served(&format!("path {path:?}"))),
        };
        let kind = find(plural)?;
        if namespace.is_some() != kind.namespaced && (namespace.is_some() || !rest.is_empty()) {
            let scope = if kind.namespaced { "lives in a namespace" } else { "has no namespace" };
            return Err(ApiError::new(
                404,
                "NotFound",
                format!("{plural} {scope}: path {path:?} names nothing"),
            ));
        }
        let (name, subresource) = match rest {
            [] => (None, ""),
            [name] => (owned(name), ""),
            [name, subresource] => (owned(name), *subresource),
            _ => return Err(ApiError::not_served(&format!("path {path:?}"))),
        };
        if !subresource.is_empty() && !kind.subresources.iter().any(|s| s.name == subresource) {
            return Err(ApiError::not_served(&format!("subresource {plural}/{subresource}")));
        }
        Ok(Self { kind, namespace, name, subresource: subresource.to_owned() })
    }
}

fn decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let hex = [bytes.next()?, bytes.next()?];
        out.push(u8::from_str_radix(std::str::from_utf8(&hex).ok()?, 16).ok()?);
    }
    String::from_utf8(out).ok()
}

/// Query parameters, in order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Reads the part after `?`.
    pub fn parse(text: &str) -> Self {
        Self(form_urlencoded::parse(text.as_bytes()).into_owned().collect())
    }
    /// The parameter's value; empty when it is not given.
    pub fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value.as_str())
    }
    /// All values of a parameter.
    pub fn all(&self, name: &str) -> Vec<String> {
        self.0.iter().filter(|(key, _)| key == name).map(|(_, value)| value.clone()).collect()
    }
    /// Is it set (`true`, `1`)?
    pub fn flag(&self, name: &str) -> bool {
        matches!(self.get(name), "true" | "1" | "True" | "t" | "T")
    }
    /// A number; `None` when not given; 400 when it is none.
    pub fn number(&self, name: &str) -> Result<Option<u64>, ApiError> {
        match self.get(name) {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| {
                ApiError::bad_request(format!("query parameter {name}={text:?} is not a number of 0 or more"))
            }),
        }
    }
    /// `dryRun=All`?
    pub fn dry_run(&self) -> Result<bool, ApiError> {
        match self.get("dryRun") {
            "" => Ok(false),
            "All" => Ok(true),
            other => Err(ApiError::new(
                422,
                "Invalid",
                format!("dryRun: Unsupported value: {other:?}: supported values: \"All\""),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_targets() {
        let read = |path: &str| {
            Target::parse(path)
                .map(|t| (t.kind.plural, t.namespace, t.name, t.subresource))
                .map_err(|e| e.code)
        };
        let some = |t: &str| Some(t.to_owned());
        for (path, want) in [
            ("/api/v1/pods", Ok(("pods", None, None, ""))),
            ("/api/v1/namespaces/a/pods", Ok(("pods", some("a"), None, ""))),
            ("/api/v1/namespaces/a/pods/b", Ok(("pods", some("a"), some("b"), ""))),
            ("/api/v1/namespaces/a/pods/b%2Ec/log", Ok(("pods", some("a"), some("b.c"), "log"))),
            ("/api/v1/namespaces", Ok(("namespaces", None, None, ""))),
            ("/api/v1/namespaces/a", Ok(("namespaces", None, some("a"), ""))),
            ("/api/v1/namespaces/a/status", Ok(("namespaces", None, some("a"), "status"))),
            ("/api/v1/nodes/n/status", Ok(("nodes", None, some("n"), "status"))),
            ("/api/v1/namespaces/a/nodes", Err(404)),
            ("/api/v1/pods/b", Err(404)),
            ("/api/v1/widgets", Err(404)),
            ("/apis/apps/v1/deployments", Err(404)),
            ("/api/v1/namespaces/a/pods/b/eviction", Err(404)),
            ("/api/v1/namespaces/a/pods/b%2", Err(400)),
        ] {
            let want = want.map(|(p, ns, n, s): (&str, _, _, &str)| (p, ns, n, s.to_owned()));
            assert_eq!(read(path), want, "{path}");
        }
        let message = Target::parse("/apis/apps/v1/namespaces/a/deployments").unwrap_err().message;
        assert!(message.contains("not served yet"), "{message}");
    }

    #[test]
    fn queries_are_decoded() {
        let query = Query::parse("a=1&b=x%20y&b=z+w&dryRun=All&bad=-1");
        assert_eq!(query.number("a").unwrap(), Some(1));
        assert_eq!(query.all("b"), ["x y", "z w"]);
        assert!(query.dry_run().unwrap());
        assert_eq!(query.number("bad").unwrap_err().code, 400);
    }
}
