//! `--where`: a CEL expression over one message. A wrong one is refused at the prompt, with its place; one that fails on
//! a message is counted, and how often is said at the end.
//!
//! Source: the Common Expression Language, <https://cel.dev>. Unlike there, an operator may compare any two numbers.

use std::collections::HashMap;
use std::sync::Arc;

use cel::objects::Key;
use cel::{Context, Env, Program, Value};
use schemas::expression::{NESTED_MAX, nested, roomy, value};

use crate::decode::safe;

/// What an expression may name.
pub const NAMES: [&str; 9] =
    ["subject", "payload", "headers", "type", "source", "time", "size", "account", "node"];
/// Longest expression.
const EXPRESSION_MAX_BYTES: usize = 1_024;

/// An expression that can be asked.
pub struct Where {
    program: Program,
    env: Arc<Env>,
    failed: u64,
    first: String,
}

/// Why `text` cannot be asked; for the prompt.
pub fn check(text: &str) -> Result<String, String> {
    roomy(|| compile(text).map(|_| text.to_owned()))
}

fn compile(text: &str) -> Result<(Arc<Env>, Program), String> {
    if text.len() > EXPRESSION_MAX_BYTES {
        return Err(format!("an expression has at most {EXPRESSION_MAX_BYTES} bytes"));
    }
    if nested(text) > NESTED_MAX {
        return Err(format!(
            "an expression has at most {NESTED_MAX} brackets, conditions or signs within each other"
        ));
    }
    let env = Arc::new(Env::stdlib());
    let program = env.compile(text).map_err(|errors| match errors.errors.first() {
        Some(error) => at(text, error.pos.0, error.pos.1, &error.msg),
        None => errors.to_string(),
    })?;
    // Names that a macro binds (`x` in `list.all(x, …)`) are told as variables too; the words of the text decide.
    let references = program.references();
    let unknown = references.variables().into_iter().find(|name| {
        !name.starts_with(['@', '_']) && !NAMES.contains(name) && !bound(text, name) && !TYPES.contains(name)
    });
    if let Some(name) = unknown {
        let (line, column) = place(text, name);
        let known = NAMES.join(", ");
        return Err(at(text, line, column, &format!("there is no {name}; there are {known}")));
    }
    Ok((env, program))
}

/// CEL's own names for its types.
const TYPES: [&str; 9] = ["int", "uint", "double", "bool", "string", "bytes", "list", "map", "null_type"];

/// Is `name` bound by a macro, as in `payload.list.exists(name, …)`?
fn bound(text: &str, name: &str) -> bool {
    ["all", "exists", "exists_one", "map", "filter"].iter().any(|word| {
        text.match_indices(&format!("{word}(")).any(|(start, found)| {
            let rest = text.get(start + found.len()..).unwrap_or_default();
            rest.trim_start().strip_prefix(name).is_some_and(|after| after.trim_start().starts_with(','))
        })
    })
}

/// Line and column (from 1) of the word `name` in `text`.
fn place(text: &str, name: &str) -> (isize, isize) {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    for (number, line) in (1..).zip(text.lines()) {
        for (start, _) in line.match_indices(name) {
            let before = line.get(..start).and_then(|part| part.chars().next_back());
            let after = line.get(start + name.len()..).and_then(|part| part.chars().next());
            if !before.is_some_and(|c| word(c) || c == '.') && !after.is_some_and(word) {
                let column = line.get(..start).unwrap_or_default().chars().count() + 1;
                return (number, isize::try_from(column).unwrap_or(isize::MAX));
            }
        }
    }
    (1, 1)
}

/// The words with the place in front, and the place shown under its line.
fn at(text: &str, line: isize, column: isize, words: &str) -> String {
    let shown =
        usize::try_from(line - 1).ok().and_then(|number| text.lines().nth(number)).unwrap_or_default();
    let indent = " ".repeat(usize::try_from(column - 1).unwrap_or(0).min(shown.chars().count()));
    format!("at {line}:{column}: {}\n    {}\n    {indent}^", safe(words), safe(shown))
}

/// What an expression sees of one message.
pub struct Facts<'a> {
    /// Its subject.
    pub subject: &'a str,
    /// Its payload, decoded.
    pub payload: &'a serde_json::Value,
    /// Its headers.
    pub headers: &'a schemas::envelope::Headers,
    /// CloudEvents `type`, or empty.
    pub kind: &'a str,
    /// CloudEvents `source`, or empty.
    pub source: &'a str,
    /// RFC 3339, UTC, with milliseconds: texts of it compare as times do.
    pub time: &'a str,
    /// Bytes of the payload.
    pub size: usize,
    /// `CONTROL` or `WORK`.
    pub account: &'a str,
    /// Whose it is.
    pub node: &'a str,
}

impl Where {
    /// Makes it out of a text that [`check`] lets through.
    pub fn new(text: &str) -> Result<Self, String> {
        let (env, program) = roomy(|| compile(text))?;
        Ok(Self { program, env, failed: 0, first: String::new() })
    }

    /// Does the message match? When the expression fails on it: no, and it is counted.
    pub fn matches(&mut self, facts: &Facts<'_>) -> bool {
        let mut context = Context::with_env(self.env.clone());
        let headers = facts.headers.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        for (name, value) in [
            ("subject", Value::from(facts.subject)),
            ("payload", value(facts.payload.clone())),
            ("headers", texts(headers)),
            ("type", Value::from(facts.kind)),
            ("source", Value::from(facts.source)),
            ("time", Value::from(facts.time)),
            ("size", Value::Int(i64::try_from(facts.size).unwrap_or(i64::MAX))),
            ("account", Value::from(facts.account)),
            ("node", Value::from(facts.node)),
        ] {
            context.add_variable_from_value(name, value);
        }
        let why = match roomy(|| self.program.execute(&context).map_err(|error| error.to_string())) {
            Ok(Value::Bool(matches)) => return matches,
            Ok(_) => "it is neither true nor false".to_owned(),
            Err(error) => error,
        };
        if self.failed == 0 {
            self.first = format!("{}: {why}", facts.subject);
        }
        self.failed += 1;
        false
    }

    /// On how many messages it failed, for people; `None` when on none.
    pub fn told(&self) -> Option<String> {
        let messages = if self.failed == 1 { "message" } else { "messages" };
        let told = format!(
            "--where failed on {} {messages}, which were skipped; the first: {}",
            self.failed, self.first
        );
        (self.failed > 0).then(|| safe(&told))
    }
}

fn texts(map: HashMap<String, String>) -> Value {
    let map: HashMap<Key, Value> =
        map.into_iter().map(|(name, text)| (Key::from(name), Value::from(text))).collect();
    Value::Map(map.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn facts(payload: &serde_json::Value) -> Facts<'_> {
        static HEADERS: std::sync::OnceLock<schemas::envelope::Headers> = std::sync::OnceLock::new();
        Facts {
            subject: "app.demo.temp",
            payload,
            headers: HEADERS.get_or_init(|| [("ce-type".to_owned(), "t".to_owned())].into()),
            kind: "t",
            source: "/nodes/edge-a/modules/sync",
            time: "2026-05-04T10:03:22.118Z",
            size: 12,
            account: "WORK",
            node: "edge-a",
        }
    }

    fn ask(text: &str, payload: serde_json::Value) -> (bool, Option<String>) {
        let mut asked = Where::new(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        (asked.matches(&facts(&payload)), asked.told())
    }

    #[test]
    fn a_message_is_judged_by_what_it_says() {
        let payload =
            json!({"c": 21.4, "n": 7, "ok": true, "tags": ["a", "b"], "big": u64::MAX, "who": {"x": "y"}});
        for (text, want) in [
            ("payload.c > 21.0", true),
            ("payload.c > 21", true),
            ("payload.c > 22", false),
            ("payload.n + 1 == 8", true),
            ("payload.n < 7.5 && payload.ok", true),
            ("payload.big > 5", true),
            ("'a' in payload.tags", true),
            ("payload.tags.exists(t, t == 'b')", true),
            ("has(payload.missing) && payload.missing > 1", false),
            ("has(payload.who.x)", true),
            ("subject.startsWith('app.demo.')", true),
            ("subject.matches('^app\\\\..*temp$')", true),
            ("headers['ce-type'] == 't' && type == 't'", true),
            ("source.contains('sync') && node == 'edge-a' && account == 'WORK'", true),
            ("time >= '2026-05-04T10:03' && time < '2026-05-04T10:04'", true),
            ("size > 11 && size(payload.tags) == 2", true),
        ] {
            assert_eq!(ask(text, payload.clone()), (want, None), "{text}");
        }
    }

    #[test]
    fn a_wrong_expression_is_refused_with_its_place() {
        for (text, want) in [
            ("payload.c >", "at 1:"),
            ("payload.c > 3 &&\n  payloda.c < 5", "at 2:3: there is no payloda"),
            ("foo == 1", "at 1:1: there is no foo; there are subject, payload,"),
            ("", "at 1:"),
            (&"(".repeat(5_000), "at most 1024 bytes"),
        ] {
            let error = check(text).err().unwrap_or_else(|| panic!("{text} is taken"));
            assert!(error.contains(want), "{text}: {error}");
        }
        let nested = |depth| format!("{}1{} == 1", "(".repeat(depth), ")".repeat(depth));
        assert!(check(&nested(NESTED_MAX)).is_ok());
        assert!(check(&nested(400)).is_err_and(|error| error.contains("within each other")));
        assert!(check(&format!("{}1", "true?1:".repeat(100))).is_err());
    }

    #[test]
    fn long_and_flat_is_not_deep() {
        for text in [
            format!("{}1 == 1", "1+".repeat(500)),
            format!("{}true", "payload.n == 1 || ".repeat(50)),
            format!("{}true", "!".repeat(1_000)),
            format!("payload{} == 1", ".a".repeat(500)),
            format!("{}1 == 1", "-".repeat(1_000)),
            format!("[{}1] == []", "1,".repeat(500)),
        ] {
            assert!(text.len() <= EXPRESSION_MAX_BYTES);
            if let Ok(mut asked) = Where::new(&text) {
                asked.matches(&facts(&json!({"n": 1})));
            }
        }
    }

    #[test]
    fn one_that_fails_on_a_message_is_counted_and_skips_it() {
        for (text, why) in [
            ("payload.c > 3", "No such key: c"),
            ("payload.n", "it is neither true nor false"),
            ("payload.n / 0 == 1", "zero"),
            ("payload.n > 'x'", ""),
        ] {
            let (matched, told) = ask(text, json!({"n": 1}));
            let told = told.unwrap_or_else(|| panic!("{text} is not told"));
            assert!(!matched && told.contains("failed on 1 message") && told.contains(why), "{text}: {told}");
        }
    }

    #[test]
    fn whatever_is_typed_is_an_answer() {
        let samples = [
            b"payload.c > 3 && subject.startsWith('app.')".to_vec(),
            b"[1,2].map(x, x*2)[0] == {'a': 1u}['a']".to_vec(),
        ];
        crate::fuzz::try_bytes("an expression", &samples, |bytes| {
            if let Ok(mut asked) = Where::new(&String::from_utf8_lossy(bytes)) {
                asked.matches(&facts(&json!({"c": 1})));
            }
        });
    }
}
