//! `--fields payload.c,subject`: chosen parts of each message, in columns that line up.
//!
//! A flow has no end to wait for, so a column is as wide as its widest cell so far.

use serde_json::{Map, Value};

use super::flow::Item;
use super::format::{Format, as_json};
use crate::decode::safe;
use crate::table::{Paint, paint};

/// What a field may begin with, and where it is found in the message as JSON.
const ROOTS: [(&str, &str); 12] = [
    ("time", "time"),
    ("subject", "subject"),
    ("payload", "payload"),
    ("headers", "headers"),
    ("type", "ce-type"),
    ("source", "ce-source"),
    ("size", "size_bytes"),
    ("account", "account"),
    ("node", "node"),
    ("stream", "stream"),
    ("sequence", "sequence"),
    ("format", "format"),
];
/// Fields at once.
const FIELDS_MAX: usize = 16;
/// Characters of one cell that is not the last; more are cut.
const CELL_MAX_CHARS: usize = 48;
/// Characters of the last cell.
const LAST_MAX_CHARS: usize = 4_096;
/// Spaces between columns.
const GAP: usize = 3;

/// One field: `payload.who.x`, `payload.list.0`, `headers.ce-id`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    name: String,
    root: &'static str,
    path: Vec<String>,
}

/// Reads the list of fields.
pub fn parse(text: &str) -> Result<Vec<Field>, String> {
    let fields: Vec<Field> = text.split(',').map(|name| field(name.trim())).collect::<Result<_, _>>()?;
    if fields.len() > FIELDS_MAX {
        return Err(format!("at most {FIELDS_MAX} fields"));
    }
    Ok(fields)
}

fn field(name: &str) -> Result<Field, String> {
    let mut parts = name.split('.');
    let first = parts.next().unwrap_or_default();
    let path: Vec<String> = parts.map(str::to_owned).collect();
    let Some((_, root)) = ROOTS.iter().find(|(word, _)| *word == first) else {
        let known: Vec<&str> = ROOTS.iter().map(|(word, _)| *word).collect();
        return Err(format!("there is no field {first:?}; there are {}, as in payload.c", known.join(", ")));
    };
    if path.iter().any(String::is_empty) || (!path.is_empty() && !["payload", "headers"].contains(&first)) {
        return Err(format!("{name:?} is no field; only payload and headers have parts, as in payload.c"));
    }
    Ok(Field { name: name.to_owned(), root, path })
}

impl Field {
    /// Its value; `None` when the message has none.
    fn of(&self, json: &Value) -> Option<Value> {
        if self.root.starts_with("ce-") {
            return header(json, self.root);
        }
        let mut found = match (self.root, json.get(self.root)) {
            ("payload", None) => json.get("payload_hex")?,
            (_, found) => found?,
        };
        if self.root == "headers" {
            // A header's name has no dots, but may have any case.
            return match self.path.is_empty() {
                true => Some(found.clone()),
                false => header(json, &self.path.join(".")),
            };
        }
        for part in &self.path {
            found = match found {
                Value::Array(items) => items.get(part.parse::<usize>().ok()?)?,
                other => other.get(part)?,
            };
        }
        Some(found.clone())
    }
}

fn header(json: &Value, name: &str) -> Option<Value> {
    let headers = json.get("headers")?.as_object()?;
    headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.clone())
}

/// The columns, and how wide they have become.
pub struct Columns {
    fields: Vec<Field>,
    widths: Vec<usize>,
    headed: bool,
}

impl Columns {
    /// Columns of these fields.
    pub fn new(fields: Vec<Field>) -> Self {
        // What a time needs is known before the first one comes, and a subject is seldom short.
        let usual = |root: &str| match root {
            "time" => 12,
            "subject" => 16,
            _ => 0,
        };
        let widths = fields.iter().map(|field| field.name.chars().count().max(usual(field.root))).collect();
        Self { fields, widths, headed: false }
    }

    /// Adds the line of one message; before the first one the columns' names.
    pub fn line(&mut self, out: &mut Vec<u8>, item: &Item, format: &Format) {
        if !self.headed {
            self.headed = true;
            let names = self.fields.iter().map(|field| (field.name.to_uppercase(), Paint::Plain)).collect();
            self.push(out, names, format.colour);
        }
        let json = as_json(item, &format.place);
        let cells = self.fields.iter().map(|field| match (field.of(&json), field.root) {
            (None, _) => ("-".to_owned(), Paint::Dim),
            (Some(_), "time") => (format.time(item.at), Paint::Dim),
            (Some(Value::String(text)), "subject") => (safe(&text), Paint::Name),
            (Some(Value::String(text)), _) => (safe(&text), Paint::Plain),
            (Some(other), _) => (safe(&other.to_string()), Paint::Plain),
        });
        let cells = cells.collect();
        self.push(out, cells, format.colour);
    }

    fn push(&mut self, out: &mut Vec<u8>, cells: Vec<(String, Paint)>, colour: bool) {
        let last = cells.len().saturating_sub(1);
        let mut line = String::new();
        for ((at, (text, of)), width) in cells.into_iter().enumerate().zip(&mut self.widths) {
            let text = cut(text, if at == last { LAST_MAX_CHARS } else { CELL_MAX_CHARS });
            let chars = text.chars().count();
            line.push_str(&paint(&text, of, colour));
            if at < last {
                *width = (*width).max(chars);
                line.push_str(&" ".repeat(*width - chars + GAP));
            }
        }
        out.extend_from_slice(line.trim_end().as_bytes());
        out.push(b'\n');
    }

    /// The fields alone, for a program.
    pub fn json(&self, item: &Item, place: &str) -> Value {
        let json = as_json(item, place);
        let chosen =
            self.fields.iter().map(|field| (field.name.clone(), field.of(&json).unwrap_or_default()));
        Value::Object(chosen.collect::<Map<_, _>>())
    }
}

fn cut(text: String, chars: usize) -> String {
    match text.char_indices().nth(chars) {
        None => text,
        Some((at, _)) => format!("{}…", text.get(..at).unwrap_or_default().trim_end_matches('…')),
    }
}

#[cfg(test)]
mod tests {
    use super::super::format::Form;
    use super::super::format::tests::item;
    use super::*;
    use jiff::tz::TimeZone;
    use serde_json::json;

    fn format() -> Format {
        Format {
            form: Form::Line,
            terminal: false,
            colour: false,
            zone: TimeZone::UTC,
            today: jiff::civil::date(2026, 5, 4),
            place: "edge-a".into(),
        }
    }

    #[test]
    fn chosen_parts_line_up_as_they_come() {
        let mut columns =
            Columns::new(parse("time, payload.c,subject,payload.tags.1,headers.K,size").unwrap());
        let mut out = Vec::new();
        for (headers, payload) in [
            (vec![], r#"{"c":21.4}"#),
            (vec![("k", "v")], r#"{"c":"a longer one","tags":["x","y"]}"#),
            (vec![], "no json"),
        ] {
            columns.line(&mut out, &item(&headers, payload.as_bytes()), &format());
        }
        let want = "\
TIME           PAYLOAD.C   SUBJECT            PAYLOAD.TAGS.1   HEADERS.K   SIZE
10:03:22.118   21.4        app.demo.temp      -                -           10
10:03:22.118   a longer one   app.demo.temp      y                v           37
10:03:22.118   -              app.demo.temp      -                -           7
";
        assert_eq!(String::from_utf8(out).unwrap(), want);
    }

    #[test]
    fn a_program_gets_them_as_they_are() {
        let columns = Columns::new(parse("payload.c,node,type").unwrap());
        let json = columns.json(&item(&[("ce-type", "t")], br#"{"c":{"x":1}}"#), "edge-a");
        assert_eq!(json, json!({"payload.c": {"x": 1}, "node": "edge-a", "type": "t"}));
    }

    #[test]
    fn long_cells_are_cut_and_nothing_is_raw() {
        let mut columns = Columns::new(parse("payload.t,subject").unwrap());
        let mut out = Vec::new();
        let long = json!({"t": format!("\u{1b}[2J{}", "x".repeat(100))}).to_string();
        columns.line(&mut out, &item(&[], long.as_bytes()), &format());
        let text = String::from_utf8(out).unwrap();
        let line = text.lines().nth(1).unwrap();
        assert!(line.starts_with("\\u{1b}[2Jxx") && line.contains("x…   app.demo.temp"), "{line}");
    }

    #[test]
    fn fields_are_checked_at_the_prompt() {
        for bad in ["", "payloda.c", "subject.x", "payload..c", &["size"; 17].join(",")] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn whatever_is_typed_as_fields_is_read() {
        crate::fuzz::try_bytes("fields", &[b"payload.c.0,headers.ce-id,subject".to_vec()], |bytes| {
            if let Ok(fields) = parse(&String::from_utf8_lossy(bytes)) {
                let mut columns = Columns::new(fields);
                columns.line(&mut Vec::new(), &item(&[("k", "v")], br#"{"c":[1]}"#), &format());
            }
        });
    }
}
