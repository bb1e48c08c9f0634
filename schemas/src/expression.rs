//! Expressions in CEL (cel.dev) on a message: is it wanted, and what becomes of it.
//!
//! They are written by whoever may write a rule and evaluated for each message, so their cost is bounded before they run: a
//! macro that goes through a list has no other inside and goes through nothing that is put together; a message that is
//! larger than [`PAYLOAD_MAX_BYTES`] is not given to one, nor one with more than [`MACRO_VALUES_MAX`] values or
//! [`MACRO_PAYLOAD_MAX_BYTES`] bytes if it has a macro, whose cost is the square of what it goes through. What an expression
//! makes has a bound too.

use std::collections::HashMap;
use std::sync::Arc;

use cel::common::ast::{EntryExpr, Expr, IdedEntryExpr};
use cel::objects::{Key, Map};
use cel::{Context, IdedExpr, Program, Value};

use crate::envelope::Headers;

/// The largest message that is given to an expression.
pub const PAYLOAD_MAX_BYTES: usize = 1024 * 1024;
/// The largest message that is given to an expression with a macro.
pub const MACRO_PAYLOAD_MAX_BYTES: usize = 64 * 1024;
/// The most values in a message that is given to an expression with a macro.
pub const MACRO_VALUES_MAX: usize = 4096;
/// The longest expression.
pub const TEXT_MAX_BYTES: usize = 4096;
/// Brackets, conditions and signs that stand within each other at most. The parser calls itself some twelve times for each, and
/// its own bound does not keep it within a thread's stack (measured without optimisation: 32 brackets take some six mebibytes).
pub const NESTED_MAX: usize = 24;
/// Terms that hang on each other at most, as in `a + b + c` or `a.b.c`.
const TREE_DEPTH_MAX: usize = 64;
/// The stack that [`roomy`] gives, of which what is not used costs nothing.
const STACK_BYTES: usize = 32 * 1024 * 1024;
/// The most values in what an expression makes.
const VALUES_MAX: usize = 100_000;
/// The deepest that what it makes is nested.
const DEPTH_MAX: usize = 64;
/// The longest that the texts in it are together.
const TEXTS_MAX_BYTES: usize = 4 * 1024 * 1024;
/// What an expression may name, besides what its macros name.
pub const NAMES: [&str; 3] = ["payload", "subject", "headers"];

/// An expression that can be evaluated.
#[derive(Clone)]
pub struct Expression {
    text: String,
    program: Arc<Program>,
    has_macro: bool,
}

impl std::fmt::Debug for Expression {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Expression({:?})", self.text)
    }
}

impl PartialEq for Expression {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

/// What an expression is evaluated on.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// `payload`: what its JSON says; its text when it is none; its bytes when it is no text either.
    pub payload: &'a [u8],
    /// `subject`: the subject that it came on, or a call's path.
    pub subject: &'a str,
    /// `headers`: by their names in small letters.
    pub headers: &'a Headers,
}

impl Expression {
    /// Reads one. The error says where it is wrong.
    pub fn read(text: &str) -> Result<Self, String> {
        if text.len() > TEXT_MAX_BYTES {
            return Err(format!("must have at most {TEXT_MAX_BYTES} bytes"));
        }
        if nested(text) > NESTED_MAX {
            return Err(format!(
                "has more than {NESTED_MAX} brackets, conditions or signs within each other"
            ));
        }
        let program = roomy(|| compile(text))?;
        let has_macro = goes_through(program.expression());
        Ok(Self { text: text.to_owned(), program: Arc::new(program), has_macro })
    }

    /// Does it hold? An error when it cannot be told, or is neither true nor false.
    pub fn holds(&self, facts: &Facts<'_>) -> Result<bool, String> {
        match self.evaluate(facts)? {
            Value::Bool(holds) => Ok(holds),
            other => Err(format!("{:?} gives {}, not true or false", self.text, other.type_of())),
        }
    }

    /// What it makes of the message: text and bytes as they are, all else as JSON.
    pub fn make(&self, facts: &Facts<'_>) -> Result<Vec<u8>, String> {
        match self.evaluate(facts)? {
            Value::String(text) => Ok(text.as_bytes().to_vec()),
            Value::Bytes(bytes) => Ok(bytes.to_vec()),
            other => {
                let mut room = Room { values: VALUES_MAX, bytes: TEXTS_MAX_BYTES };
                let json = room.json(&other, 0).map_err(|why| format!("{:?} {why}", self.text))?;
                Ok(json.to_string().into_bytes())
            }
        }
    }

    fn evaluate(&self, facts: &Facts<'_>) -> Result<Value, String> {
        if facts.payload.len() > PAYLOAD_MAX_BYTES {
            let bytes = facts.payload.len();
            return Err(format!(
                "a message of {bytes} bytes is not given to an expression: at most {PAYLOAD_MAX_BYTES}"
            ));
        }
        let too_much = |what: String| {
            format!(
                "a message of {what} is not given to an expression with a macro: at most {MACRO_PAYLOAD_MAX_BYTES} bytes \
                 and {MACRO_VALUES_MAX} values"
            )
        };
        if self.has_macro && facts.payload.len() > MACRO_PAYLOAD_MAX_BYTES {
            return Err(too_much(format!("{} bytes", facts.payload.len())));
        }
        let payload = payload(facts.payload);
        if self.has_macro && values(&payload) > MACRO_VALUES_MAX {
            return Err(too_much(format!("{} values", values(&payload))));
        }
        let mut context = Context::default();
        context.add_variable_from_value("payload", payload);
        context.add_variable_from_value("subject", facts.subject);
        let headers = facts.headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.as_str()));
        context.add_variable_from_value("headers", headers.collect::<HashMap<String, &str>>());
        roomy(|| self.program.execute(&context).map_err(|error| error.to_string())).map_err(|error| {
            let why: String = error.chars().take(200).collect();
            format!("{:?} failed: {why}", self.text)
        })
    }
}

/// Runs what calls itself deeply: a parser or an evaluation of this crate, for which a thread's usual stack is too small
/// (measured without optimisation). A panic in it, which is the crate's own fault, is an error.
pub fn roomy<T>(run: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    let run = std::panic::AssertUnwindSafe(|| stacker::grow(STACK_BYTES, run));
    std::panic::catch_unwind(run).unwrap_or_else(|_| Err("is no expression".to_owned()))
}

fn payload(bytes: &[u8]) -> Value {
    if let Ok(json) = serde_json::from_slice::<serde_json::Value>(bytes) {
        return value(json);
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => Value::from(text),
        Err(_) => Value::from(bytes.to_vec()),
    }
}

/// How many values are in it, itself and the names of fields included.
fn values(value: &Value) -> usize {
    1 + match value {
        Value::List(items) => items.iter().map(values).sum(),
        Value::Map(map) => map.map.values().map(|field| 1 + values(field)).sum(),
        _ => 0,
    }
}

/// Numbers without a fraction are `int`, as they are in an expression.
pub fn value(json: serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::Null,
        serde_json::Value::Bool(truth) => Value::Bool(truth),
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(int), _) => Value::Int(int),
            (None, Some(uint)) => Value::UInt(uint),
            (None, None) => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(text) => Value::from(text),
        serde_json::Value::Array(items) => Value::List(Arc::new(items.into_iter().map(value).collect())),
        serde_json::Value::Object(fields) => {
            let map = fields.into_iter().map(|(name, field)| (Key::from(name), value(field))).collect();
            Value::Map(Map { map: Arc::new(map) })
        }
    }
}

/// How much more may be made.
struct Room {
    values: usize,
    bytes: usize,
}

impl Room {
    fn take(&mut self, bytes: usize) -> Result<(), String> {
        let left = self.values.checked_sub(1).zip(self.bytes.checked_sub(bytes));
        (self.values, self.bytes) = left.ok_or("makes more than a message may hold")?;
        Ok(())
    }

    fn text(&mut self, text: &str) -> Result<serde_json::Value, String> {
        self.take(text.len())?;
        Ok(text.into())
    }

    fn json(&mut self, value: &Value, depth: usize) -> Result<serde_json::Value, String> {
        if depth > DEPTH_MAX {
            return Err("makes what is nested too deeply".to_owned());
        }
        self.take(0)?;
        Ok(match value {
            Value::List(items) => {
                let items = items.iter().map(|item| self.json(item, depth + 1));
                serde_json::Value::Array(items.collect::<Result<_, _>>()?)
            }
            Value::Map(map) => {
                let mut fields = Vec::new();
                for (key, field) in map.map.iter() {
                    let name = key.to_string();
                    self.take(name.len())?;
                    fields.push((name, self.json(field, depth + 1)?));
                }
                // A map of CEL has no order: the same message always makes the same bytes.
                fields.sort_by(|a, b| a.0.cmp(&b.0));
                serde_json::Value::Object(fields.into_iter().collect())
            }
            Value::Int(number) => (*number).into(),
            Value::UInt(number) => (*number).into(),
            Value::Float(number) => (*number).into(),
            Value::Bool(truth) => (*truth).into(),
            Value::Null => serde_json::Value::Null,
            Value::String(text) => self.text(text)?,
            other => return Err(format!("makes {}, which JSON does not have", other.type_of())),
        })
    }
}

fn compile(text: &str) -> Result<Program, String> {
    let program = Program::compile(text).map_err(|errors| {
        let first = errors.errors.first();
        first.map_or_else(
            || "is no expression".to_owned(),
            |error| format!("line {}, column {}: {}", error.pos.0, error.pos.1, error.msg),
        )
    })?;
    if depth(program.expression()) > TREE_DEPTH_MAX {
        return Err(format!("has more than {TREE_DEPTH_MAX} terms that hang on each other"));
    }
    check(program.expression(), &NAMES)?;
    Ok(program)
}

/// How deep the tree is. Whoever evaluates or drops it calls itself as often, on a stack of the usual size.
fn depth(expression: &IdedExpr) -> usize {
    let of = |parts: &[&IdedExpr]| parts.iter().map(|part| depth(part)).max().unwrap_or_default();
    1 + match &expression.expr {
        Expr::Unspecified | Expr::Literal(_) | Expr::Ident(_) => 0,
        Expr::Select(select) => depth(&select.operand),
        Expr::Call(call) => {
            call.target.iter().map(|target| &**target).chain(&call.args).map(depth).max().unwrap_or_default()
        }
        Expr::List(list) => list.elements.iter().map(depth).max().unwrap_or_default(),
        Expr::Map(map) => map.entries.iter().map(entry_depth).max().unwrap_or_default(),
        Expr::Struct(made) => made.entries.iter().map(entry_depth).max().unwrap_or_default(),
        Expr::Comprehension(of_list) => of(&[
            &of_list.iter_range,
            &of_list.accu_init,
            &of_list.loop_cond,
            &of_list.loop_step,
            &of_list.result,
        ]),
    }
}

fn entry_depth(entry: &IdedEntryExpr) -> usize {
    match &entry.expr {
        EntryExpr::MapEntry(entry) => depth(&entry.key).max(depth(&entry.value)),
        EntryExpr::StructField(field) => depth(&field.value),
    }
}

/// How deep brackets, conditions and signs stand within each other; more than it is, if texts have some too.
pub fn nested(text: &str) -> usize {
    let (mut open, mut deepest, mut conditions, mut signs, mut most_signs) = (0_usize, 0, 0, 0, 0);
    for c in text.chars().filter(|c| !c.is_whitespace()) {
        match c {
            '(' | '[' | '{' => open += 1,
            ')' | ']' | '}' => open = open.saturating_sub(1),
            '?' => conditions += 1,
            _ => {}
        }
        signs = if matches!(c, '!' | '-') { signs + 1 } else { 0 };
        deepest = deepest.max(open);
        most_signs = most_signs.max(signs);
    }
    deepest + conditions + most_signs
}

/// Are all names known, and no macro inside another?
fn check(expression: &IdedExpr, names: &[&str]) -> Result<(), String> {
    match &expression.expr {
        Expr::Unspecified | Expr::Literal(_) => Ok(()),
        Expr::Ident(name) if names.contains(&name.as_str()) => Ok(()),
        Expr::Ident(name) => Err(format!("there is no {name:?}: there are {}", NAMES.join(", "))),
        Expr::Select(select) => check(&select.operand, names),
        Expr::Call(call) => call
            .target
            .iter()
            .map(|target| &**target)
            .chain(&call.args)
            .try_for_each(|part| check(part, names)),
        Expr::List(list) => list.elements.iter().try_for_each(|part| check(part, names)),
        Expr::Map(map) => map.entries.iter().try_for_each(|entry| match &entry.expr {
            EntryExpr::MapEntry(entry) => check(&entry.key, names).and_then(|()| check(&entry.value, names)),
            EntryExpr::StructField(field) => check(&field.value, names),
        }),
        Expr::Struct(_) => Err("there are no types to make values of".to_owned()),
        Expr::Comprehension(macro_) => {
            check(&macro_.iter_range, names)?;
            if joins(&macro_.iter_range) {
                return Err(
                    "a macro such as all, exists, map or filter may not go through what + makes".to_owned()
                );
            }
            let mut inside = names.to_vec();
            inside.extend([macro_.iter_var.as_str(), macro_.accu_var.as_str()]);
            inside.extend(macro_.iter_var2.as_deref());
            let parts = [&macro_.accu_init, &macro_.loop_cond, &macro_.loop_step, &macro_.result];
            parts.into_iter().try_for_each(|part| {
                if goes_through(part) {
                    return Err(
                        "a macro such as all, exists, map or filter may have no other inside".to_owned()
                    );
                }
                check(part, &inside)
            })?;
            if goes_through(&macro_.iter_range) {
                return Err("a macro such as all, exists, map or filter may not follow another".to_owned());
            }
            Ok(())
        }
    }
}

/// Is anything put together in it?
fn joins(expression: &IdedExpr) -> bool {
    match &expression.expr {
        Expr::Call(call) => {
            call.func_name == "_+_" || call.target.iter().map(|target| &**target).chain(&call.args).any(joins)
        }
        Expr::Select(select) => joins(&select.operand),
        Expr::List(list) => list.elements.iter().any(joins),
        _ => false,
    }
}

/// Is there a macro that goes through a list?
fn goes_through(expression: &IdedExpr) -> bool {
    match &expression.expr {
        Expr::Comprehension(_) => true,
        Expr::Select(select) => goes_through(&select.operand),
        Expr::Call(call) => call.target.iter().map(|target| &**target).chain(&call.args).any(goes_through),
        Expr::List(list) => list.elements.iter().any(goes_through),
        Expr::Map(map) => map.entries.iter().any(|entry| match &entry.expr {
            EntryExpr::MapEntry(entry) => goes_through(&entry.key) || goes_through(&entry.value),
            EntryExpr::StructField(field) => goes_through(&field.value),
        }),
        Expr::Unspecified | Expr::Literal(_) | Expr::Ident(_) | Expr::Struct(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts<'a>(payload: &'a [u8], headers: &'a Headers) -> Facts<'a> {
        Facts { payload, subject: "default.temp", headers }
    }

    #[test]
    fn a_message_is_wanted_or_not() {
        let headers: Headers = [("Kind".to_owned(), "hot".to_owned())].into();
        for (text, payload, want) in [
            ("payload.c > 21", &br#"{"c": 21.5}"#[..], Some(true)),
            ("payload.c > 21", br#"{"c": 21}"#, Some(false)),
            ("payload.c > 21", br#"{"d": 1}"#, None),
            ("has(payload.c) && payload.c > 21", br#"{"d": 1}"#, Some(false)),
            ("payload == 'on'", b"on", Some(true)),
            ("payload == 7", b"7", Some(true)),
            ("size(payload) == 2", b"\xff\xfe", Some(true)),
            ("subject.startsWith('default.')", b"", Some(true)),
            ("subject.matches('^default[.]t')", b"", Some(true)),
            ("headers.kind == 'hot'", b"", Some(true)),
            ("payload.all(x, x > 1)", b"[2,3]", Some(true)),
            ("payload.c", br#"{"c": 1}"#, None),
        ] {
            let held = Expression::read(text).unwrap().holds(&facts(payload, &headers));
            assert_eq!(held.clone().ok(), want, "{text}: {held:?}");
        }
    }

    #[test]
    fn a_message_becomes_what_is_made_of_it() {
        let headers = Headers::new();
        for (text, payload, want) in [
            (
                r#"{"t": payload.c, "on": subject}"#,
                &br#"{"c": 1.5}"#[..],
                Some(r#"{"on":"default.temp","t":1.5}"#),
            ),
            ("payload.name", br#"{"name": "a"}"#, Some("a")),
            ("payload.map(x, x * 2)", b"[1,2]", Some("[2,4]")),
            ("payload.c + 1", br#"{"c": 1}"#, Some("2")),
            ("null", b"", Some("null")),
            ("payload.c", b"[]", None),
            ("9223372036854775807 + payload", b"1", None),
            ("1 / payload", b"0", None),
        ] {
            let made = Expression::read(text).unwrap().make(&facts(payload, &headers));
            let made = made.map(|bytes| String::from_utf8(bytes).unwrap());
            assert_eq!(made.clone().ok().as_deref(), want, "{text}: {made:?}");
        }
    }

    #[test]
    fn a_wrong_expression_is_refused_with_its_place() {
        for (text, word) in [
            ("payload.c >", "line 1, column "),
            ("", "line 1"),
            ("payload.c > 1 &&\n  * 2", "line 2, column 3"),
            ("paylod.c > 1", "there is no \"paylod\""),
            ("payload.all(x, payload.exists(y, y == x))", "no other inside"),
            ("payload.map(x, x).map(y, y).size() > 0", "may not follow another"),
            ("(payload + payload).map(y, y)", "what + makes"),
            ("Foo{a: 1}", "no types"),
            (&"(".repeat(4000), "within each other"),
            (&"!".repeat(4000), "within each other"),
            (&"(".repeat(24), "line 1"),
            (&"true ? false : ".repeat(100), "within each other"),
            (&format!("{}payload", "[".repeat(300)), "within each other"),
            (&" ".repeat(5000), "4096 bytes"),
        ] {
            let error = Expression::read(text).unwrap_err();
            assert!(error.contains(word), "{text:.60}: {error}");
        }
    }

    /// Many terms beside each other are no depth to the parser, and a thread's usual stack has to do for the rest.
    #[test]
    fn many_terms_are_evaluated_or_refused_and_overflow_nothing() {
        for many in
            ["1 + ".repeat(1_000) + "1 > 0", "true && ".repeat(500) + "true", "a.".repeat(2_000) + "a"]
        {
            let headers = Headers::new();
            if let Ok(expression) = Expression::read(&many) {
                let _ = expression.holds(&facts(b"1", &headers));
            }
        }
    }

    #[test]
    fn what_is_made_and_what_it_is_made_of_are_bounded() {
        let headers = Headers::new();
        let made = |text: &str, items: usize| {
            let many = format!("[{}1]", "1,".repeat(items));
            Expression::read(text).unwrap().make(&facts(many.as_bytes(), &headers))
        };
        assert!(made("payload.map(x, payload)", 1_000).unwrap_err().contains("more than a message may hold"));
        assert!(made("payload.map(x, x)", MACRO_VALUES_MAX - 2).is_ok());
        assert!(made("payload.map(x, x)", MACRO_VALUES_MAX).unwrap_err().contains("4096 values"));
        assert!(made("payload", MACRO_VALUES_MAX).is_ok());
        let large = vec![b' '; PAYLOAD_MAX_BYTES + 1];
        assert!(Expression::read("true").unwrap().holds(&facts(&large, &headers)).is_err());
    }
}
