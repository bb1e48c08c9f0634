//! What is wrong with a field of an object: its path, Kubernetes' word for why, and a sentence for people.

/// Kubernetes' words for why a field is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// It has to be given.
    Required,
    /// Its value is wrong.
    Invalid,
    /// Its value is none of the known ones.
    Unsupported,
    /// It says again what another says.
    Duplicate,
    /// There are too many.
    TooMany,
}

/// One field that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Why.
    pub kind: FaultKind,
    /// Path of the field, such as `spec.subjects[0]`.
    pub field: String,
    /// What it says; empty where that does not help.
    pub value: String,
    /// In words.
    pub why: String,
}

impl Fault {
    /// The field has to be given.
    pub fn required(field: impl Into<String>, why: impl Into<String>) -> Self {
        Self { kind: FaultKind::Required, field: field.into(), value: String::new(), why: why.into() }
    }

    /// The field's value is wrong.
    pub fn invalid(field: impl Into<String>, value: &str, why: impl Into<String>) -> Self {
        Self { kind: FaultKind::Invalid, field: field.into(), value: value.to_owned(), why: why.into() }
    }

    /// The field's value is none of `known`.
    pub fn unsupported(field: impl Into<String>, value: &str, known: &[&str]) -> Self {
        let known = known.iter().map(|k| format!("{k:?}")).collect::<Vec<_>>().join(", ");
        let why = format!("supported values: {known}");
        Self { kind: FaultKind::Unsupported, field: field.into(), value: value.to_owned(), why }
    }

    /// The value stands there twice.
    pub fn duplicate(field: impl Into<String>, value: &str) -> Self {
        Self { kind: FaultKind::Duplicate, field: field.into(), value: value.to_owned(), why: String::new() }
    }

    /// There are `count`, and at most `max` are allowed.
    pub fn too_many(field: impl Into<String>, count: usize, max: usize) -> Self {
        let why = format!("must have at most {max} items");
        Self { kind: FaultKind::TooMany, field: field.into(), value: count.to_string(), why }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { kind, field, value, why } = self;
        match kind {
            FaultKind::Required => write!(f, "{field}: required: {why}"),
            FaultKind::Duplicate => write!(f, "{field}: stands there twice: {value:?}"),
            _ => write!(f, "{field}: {value:?}: {why}"),
        }
    }
}

/// All of them in one line.
pub fn line(faults: &[Fault]) -> String {
    faults.iter().map(Fault::to_string).collect::<Vec<_>>().join("; ")
}
