//! What a request means: its path and method, read once. [`ROUTES`] is all there is; the description in
//! [`crate::openapi`] is held against it by a test.

use std::time::Duration;

use hyper::Method;
use percent_encoding::percent_decode_str;
use schemas::command::Refusal;
use schemas::subject;

/// How long a question waits when it does not say.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);
/// How long a question may wait.
pub const TIMEOUT_MAX: Duration = Duration::from_secs(60);
/// The longest subject.
pub const SUBJECT_MAX_BYTES: usize = 512;

/// One thing that can be asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// Is the door open?
    Health,
    /// What can be asked for.
    Description,
    /// Say this.
    Publish {
        /// Where.
        subject: String,
    },
    /// Ask this.
    Request {
        /// Where.
        subject: String,
        /// How long to wait.
        timeout: Duration,
    },
    /// Tell what is said.
    Subscribe {
        /// Where; may hold wildcards.
        filter: String,
    },
}

/// Path (a `{subject}` stands for the rest), method.
pub const ROUTES: [(&str, &str); 5] = [
    ("/healthz", "GET"),
    ("/v1/openapi.json", "GET"),
    ("/v1/pub/{subject}", "POST"),
    ("/v1/req/{subject}", "POST"),
    ("/v1/sub/{subject}", "GET"),
];

/// Reads method, path (as it came, percent-encoded) and query.
pub fn route(method: &Method, path: &str, query: Option<&str>) -> Result<Asked, Refusal> {
    let (template, rest, wanted) = ROUTES
        .iter()
        .find_map(|(template, wanted)| match template.strip_suffix("{subject}") {
            Some(start) => path.strip_prefix(start).map(|rest| (*template, rest, *wanted)),
            None => (path == *template).then_some((*template, "", *wanted)),
        })
        .ok_or_else(|| {
            let all = ROUTES.map(|(template, method)| format!("{method} {template}")).join(", ");
            Refusal::new(404, "EW-HTTP-PATH", format!("{} is not served; there are {all}", shown(path)))
        })?;
    if *method != *wanted {
        let message = format!("{method} is not possible on {template}; use {wanted}");
        return Err(Refusal::new(405, "EW-HTTP-METHOD", message));
    }
    Ok(match template {
        "/healthz" => Asked::Health,
        "/v1/openapi.json" => Asked::Description,
        "/v1/pub/{subject}" => Asked::Publish { subject: to_publish(rest)? },
        "/v1/req/{subject}" => Asked::Request { subject: to_publish(rest)?, timeout: timeout(query)? },
        _ => Asked::Subscribe { filter: to_hear(rest)? },
    })
}

/// Text of somebody else's in an answer: short, and without what a terminal obeys.
fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(80).collect()
}

fn decoded(rest: &str) -> Result<String, Refusal> {
    let bad = |why: &str| {
        let message = format!("{} is no subject: {why}; a subject is words joined by dots", shown(rest));
        Refusal::new(400, "EW-HTTP-SUBJECT", message)
    };
    let subject = percent_decode_str(rest).decode_utf8().map_err(|_| bad("it is not UTF-8"))?;
    if subject.len() > SUBJECT_MAX_BYTES {
        return Err(bad(&format!("it is longer than {SUBJECT_MAX_BYTES} bytes")));
    }
    // The server's word that it refuses a subject quotes it. Of these it comes back as it went, so a refusal is known.
    if let Some(other) = subject.chars().find(|c| !c.is_ascii_graphic() || "\"\\'".contains(*c)) {
        return Err(bad(&format!(
            "{other:?} cannot stand in it, only visible ASCII without quotes and backslash"
        )));
    }
    if subject.split('.').any(str::is_empty) {
        return Err(bad("a word is empty"));
    }
    Ok(subject.into_owned())
}

fn to_publish(rest: &str) -> Result<String, Refusal> {
    let subject = decoded(rest)?;
    if !subject::is_publishable(&subject) {
        let message =
            format!("{subject}: nothing can be sent to a subject with a wildcard; name one subject");
        return Err(Refusal::new(400, "EW-HTTP-SUBJECT", message));
    }
    Ok(subject)
}

fn to_hear(rest: &str) -> Result<String, Refusal> {
    let filter = decoded(rest)?;
    let last = filter.split('.').count() - 1;
    if filter.split('.').enumerate().any(|(at, token)| token == ">" && at != last) {
        let message = format!("{filter}: `>` stands for all that follows, so it can only be the last word");
        return Err(Refusal::new(400, "EW-HTTP-SUBJECT", message));
    }
    Ok(filter)
}

/// `timeout=5s`: a number with `ms`, `s` or `m`; seconds without.
fn timeout(query: Option<&str>) -> Result<Duration, Refusal> {
    let mut found = TIMEOUT_DEFAULT;
    for (name, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        if name != "timeout" {
            let message = format!("{} is no parameter of a request; there is timeout", shown(&name));
            return Err(Refusal::new(400, "EW-HTTP-TIMEOUT", message));
        }
        found =
            duration(&value).filter(|found| !found.is_zero() && *found <= TIMEOUT_MAX).ok_or_else(|| {
                let message = format!(
                    "timeout={} is not possible; write it as 500ms, 5s or 1m, at most {} s",
                    shown(&value),
                    TIMEOUT_MAX.as_secs()
                );
                Refusal::new(400, "EW-HTTP-TIMEOUT", message)
            })?;
    }
    Ok(found)
}

fn duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let ms = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        _ => return None,
    };
    number.checked_mul(ms).map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(method: &str, path: &str) -> Result<Asked, (u16, String)> {
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
        let method = method.parse().unwrap();
        route(&method, path, query).map_err(|refusal| (refusal.status, refusal.message))
    }

    #[test]
    fn paths_are_subjects() {
        let publish = |subject: &str| Ok(Asked::Publish { subject: subject.into() });
        let hear = |filter: &str| Ok(Asked::Subscribe { filter: filter.into() });
        let ask =
            |ms| Ok(Asked::Request { subject: "app.demo.t".into(), timeout: Duration::from_millis(ms) });
        for (method, path, want) in [
            ("GET", "/healthz", Ok(Asked::Health)),
            ("GET", "/v1/openapi.json", Ok(Asked::Description)),
            ("POST", "/v1/pub/app.demo.temp", publish("app.demo.temp")),
            ("POST", "/v1/pub/app%2Edemo%2etemp", publish("app.demo.temp")),
            ("POST", "/v1/pub/app.demo.a/b", publish("app.demo.a/b")),
            ("POST", "/v1/pub/app.demo.a%2Fb", publish("app.demo.a/b")),
            ("POST", "/v1/pub/app.demo.a+b", publish("app.demo.a+b")),
            ("POST", "/v1/pub/app.demo.50%25", publish("app.demo.50%")),
            ("POST", "/v1/pub/app.demo.*x", publish("app.demo.*x")),
            ("GET", "/v1/sub/app.demo.>", hear("app.demo.>")),
            ("GET", "/v1/sub/app.demo.%3E", hear("app.demo.>")),
            ("GET", "/v1/sub/app.*.temp", hear("app.*.temp")),
            ("POST", "/v1/req/app.demo.t", ask(5_000)),
            ("POST", "/v1/req/app.demo.t?timeout=5s", ask(5_000)),
            ("POST", "/v1/req/app.demo.t?timeout=2", ask(2_000)),
            ("POST", "/v1/req/app.demo.t?timeout=250ms", ask(250)),
            ("POST", "/v1/req/app.demo.t?timeout=1m", ask(60_000)),
        ] {
            assert_eq!(read(method, path), want, "{method} {path}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let long = format!("/v1/pub/app.demo.{}", "x".repeat(SUBJECT_MAX_BYTES));
        for (method, path, status, word) in [
            ("GET", "/", 404, "is not served"),
            ("GET", "/v1/cache/a", 404, "is not served"),
            ("GET", "/v1/sub", 404, "is not served"),
            ("GET", "/v1/pub/app.demo.t", 405, "use POST"),
            ("DELETE", "/v1/sub/app.demo.t", 405, "use GET"),
            ("POST", "/v1/pub/", 400, "a word is empty"),
            ("POST", "/v1/pub/app..t", 400, "a word is empty"),
            ("POST", "/v1/pub/app.demo.", 400, "a word is empty"),
            ("POST", "/v1/pub/app.demo.*", 400, "wildcard"),
            ("POST", "/v1/pub/app.demo.%3E", 400, "wildcard"),
            ("POST", "/v1/pub/app.demo.a%20b", 400, "' ' cannot stand in it"),
            ("POST", "/v1/pub/app.demo.a%0D%0APUB%20x", 400, "cannot stand in it"),
            ("POST", "/v1/pub/app.demo.%00", 400, "cannot stand in it"),
            ("POST", "/v1/pub/app.demo.%22", 400, "cannot stand in it"),
            ("POST", "/v1/pub/app.demo.%C3%A4", 400, "cannot stand in it"),
            ("POST", "/v1/pub/app.demo.%FF", 400, "not UTF-8"),
            ("POST", &long, 400, "longer than"),
            ("GET", "/v1/sub/app.>.t", 400, "last word"),
            ("POST", "/v1/req/app.demo.*", 400, "wildcard"),
            ("POST", "/v1/req/app.demo.t?timeout=61s", 400, "at most 60 s"),
            ("POST", "/v1/req/app.demo.t?timeout=0s", 400, "at most 60 s"),
            ("POST", "/v1/req/app.demo.t?timeout=soon", 400, "500ms"),
            ("POST", "/v1/req/app.demo.t?timeout=99999999999999999999s", 400, "500ms"),
            ("POST", "/v1/req/app.demo.t?wait=1s", 400, "there is timeout"),
        ] {
            let (found, message) = read(method, path).expect_err(path);
            assert_eq!(found, status, "{path}: {message}");
            assert!(message.contains(word), "{path}: {message}");
        }
    }
}
