//! Label and field selectors: `a=b,c!=d,e in (f,g),!h` and `metadata.name=x,status.phase!=Running`.
//!
//! Source: Kubernetes, "Labels and Selectors" and "Field Selectors". A field selector may only name the fields that the
//! kind's row lists; any other is refused, so that nobody believes a filter was applied that was not.

use schemas::object::Object;
use serde_json::Value;

use crate::resource::Kind;
use crate::status::ApiError;

/// Longest selector text that is read.
const SELECTOR_MAX_BYTES: usize = 16 * 1024;

/// What a list or watch is limited to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Selector {
    labels: Vec<LabelTerm>,
    fields: Vec<FieldTerm>,
}

#[derive(Debug, Clone, PartialEq)]
enum LabelTerm {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Missing(String),
}

#[derive(Debug, Clone, PartialEq)]
struct FieldTerm {
    field: String,
    value: String,
    equal: bool,
}

impl Selector {
    /// Reads both selectors of a request for `kind`.
    pub fn parse(kind: &Kind, labels: &str, fields: &str) -> Result<Self, ApiError> {
        for text in [labels, fields] {
            if text.len() > SELECTOR_MAX_BYTES {
                return Err(ApiError::bad_request(format!("a selector is over {SELECTOR_MAX_BYTES} bytes")));
            }
        }
        let labels = parse_labels(labels).map_err(|why| {
            ApiError::bad_request(format!("unable to parse label selector {labels:?}: {why}"))
        })?;
        let fields = parse_fields(fields).map_err(|why| {
            ApiError::bad_request(format!("unable to parse field selector {fields:?}: {why}"))
        })?;
        for term in &fields {
            let known = term.field == "metadata.name"
                || (term.field == "metadata.namespace" && kind.namespaced)
                || kind.fields.contains(&term.field.as_str());
            if !known {
                return Err(ApiError::bad_request(format!("field label not supported: {}", term.field)));
            }
        }
        Ok(Self { labels, fields })
    }

    /// Narrows it to the object of that name.
    pub fn only(&mut self, name: &str) {
        self.fields.push(FieldTerm { field: "metadata.name".into(), value: name.to_owned(), equal: true });
    }

    /// Is it one of them?
    pub fn matches(&self, object: &Object) -> bool {
        self.labels.iter().all(|term| match term {
            LabelTerm::In(key, values) => object.label(key).is_some_and(|v| values.iter().any(|w| w == v)),
            LabelTerm::NotIn(key, values) => object.label(key).is_none_or(|v| !values.iter().any(|w| w == v)),
            LabelTerm::Exists(key) => object.label(key).is_some(),
            LabelTerm::Missing(key) => object.label(key).is_none(),
        }) && self.fields.iter().all(|term| (field_text(object, &term.field) == term.value) == term.equal)
    }
}

/// A field as the text that selectors compare; what is missing is the empty text (a missing boolean is `false`).
fn field_text(object: &Object, field: &str) -> String {
    let path: Vec<&str> = match field {
        "source" => vec!["source", "component"],
        _ => field.split('.').collect(),
    };
    match object.get(&path) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Bool(flag)) => flag.to_string(),
        Some(Value::Number(number)) => number.to_string(),
        _ if matches!(field, "spec.unschedulable" | "spec.hostNetwork") => "false".to_owned(),
        _ => String::new(),
    }
}

fn parse_labels(text: &str) -> Result<Vec<LabelTerm>, String> {
    split_outside_parentheses(text)?.into_iter().map(parse_label_term).collect()
}

/// Splits at commas, but not at those inside `(a,b)`.
fn split_outside_parentheses(text: &str) -> Result<Vec<&str>, String> {
    let mut terms = Vec::new();
    let (mut start, mut depth) = (0, 0i32);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                terms.push(text.get(start..at).unwrap_or(""));
                start = at + 1;
            }
            _ => {}
        }
        if !(0..=1).contains(&depth) {
            return Err("parentheses do not match".into());
        }
    }
    if depth != 0 {
        return Err("parentheses do not match".into());
    }
    terms.push(text.get(start..).unwrap_or(""));
    Ok(terms.into_iter().map(str::trim).filter(|t| !t.is_empty()).collect())
}

fn parse_label_term(term: &str) -> Result<LabelTerm, String> {
    if let Some(key) = term.strip_prefix('!') {
        return Ok(LabelTerm::Missing(label_key(key)?));
    }
    if let Some((head, list)) = term.split_once('(') {
        let values = list.strip_suffix(')').ok_or("a ')' is missing at the end")?;
        let values = values.split(',').map(|v| label_value(v.trim())).collect::<Result<Vec<_>, _>>()?;
        let mut words = head.split_whitespace();
        return match (words.next(), words.next(), words.next()) {
            (Some(key), Some("in"), None) => Ok(LabelTerm::In(label_key(key)?, values)),
            (Some(key), Some("notin"), None) => Ok(LabelTerm::NotIn(label_key(key)?, values)),
            _ => Err(format!("{term:?} has neither 'in' nor 'notin'")),
        };
    }
    if let Some((key, value)) = term.split_once("!=") {
        return Ok(LabelTerm::NotIn(label_key(key)?, vec![label_value(value.trim())?]));
    }
    if let Some((key, value)) = term.split_once('=') {
        let value = value.strip_prefix('=').unwrap_or(value).trim();
        return Ok(LabelTerm::In(label_key(key)?, vec![label_value(value)?]));
    }
    Ok(LabelTerm::Exists(label_key(term)?))
}

fn label_key(text: &str) -> Result<String, String> {
    let text = text.trim();
    crate::validate::check_qualified_name(text).map(|()| text.to_owned())
}

fn label_value(text: &str) -> Result<String, String> {
    crate::validate::check_label_value(text).map(|()| text.to_owned())
}

fn parse_fields(text: &str) -> Result<Vec<FieldTerm>, String> {
    let mut terms = Vec::new();
    for term in split_unescaped(text) {
        if term.is_empty() {
            continue;
        }
        let (field, value, equal) = if let Some((field, value)) = term.split_once("!=") {
            (field, value, false)
        } else if let Some((field, value)) = term.split_once("==") {
            (field, value, true)
        } else if let Some((field, value)) = term.split_once('=') {
            (field, value, true)
        } else {
            return Err(format!("{term:?} has no '=' or '!='"));
        };
        terms.push(FieldTerm { field: field.trim().to_owned(), value: unescape(value)?, equal });
    }
    Ok(terms)
}

/// Splits at commas that no backslash precedes.
fn split_unescaped(text: &str) -> Vec<String> {
    let mut terms = vec![String::new()];
    let mut escaped = false;
    for c in text.chars() {
        if c == ',' && !escaped {
            terms.push(String::new());
        } else if let Some(last) = terms.last_mut() {
            last.push(c);
        }
        escaped = c == '\\' && !escaped;
    }
    terms
}

fn unescape(text: &str) -> Result<String, String> {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                _ => {
                    return Err(format!(
                        "{text:?} has a backslash before something other than '\\', ',' or '='"
                    ));
                }
            },
            c => out.push(c),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod() -> Object {
        Object::try_from(json!({
            "metadata": {"name": "a", "namespace": "default", "labels": {"app": "web", "tier": "x"}},
            "spec": {"nodeName": "n1"}, "status": {"phase": "Running"},
        }))
        .unwrap()
    }

    #[test]
    fn selectors_choose() {
        let kind = crate::resource::find("", "v1", "pods").unwrap();
        for (labels, fields, want) in [
            ("", "", true),
            ("app=web", "", true),
            ("app==web, tier in (x,y)", "", true),
            ("app!=web", "", false),
            ("other!=web", "", true),
            ("app in (a,b)", "", false),
            ("app notin (a,b),tier", "", true),
            ("!app", "", false),
            ("!other", "", true),
            ("", "metadata.name=a,spec.nodeName=n1", true),
            ("", "status.phase!=Running", false),
            ("", "status.phase==Running", true),
            ("", "spec.nodeName!=", true),
            ("", "spec.hostNetwork=false", true),
        ] {
            let selector = Selector::parse(kind, labels, fields).unwrap();
            assert_eq!(selector.matches(&pod()), want, "{labels:?} {fields:?}");
        }
        for (labels, fields) in [
            ("a in b", ""),
            ("a in (b", ""),
            ("a b", ""),
            ("a=b c", ""),
            ("", "spec.x=1"),
            ("", "metadata.name"),
        ] {
            assert_eq!(Selector::parse(kind, labels, fields).unwrap_err().code, 400, "{labels:?} {fields:?}");
        }
    }
}
