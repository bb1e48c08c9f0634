//! Names that were checked once, at the boundary, so that nothing inside has to check them again.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Longest name that Kubernetes allows for objects (RFC 1123 subdomain).
pub const NAME_MAX_BYTES: usize = 253;
/// Longest label (namespaces, node names here) in an RFC 1123 name.
pub const LABEL_MAX_BYTES: usize = 63;

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{kind} {value:?} is not valid: use at most {max} lower case letters, digits and '-'{dots}, starting and ending with a letter or digit"
)]
pub struct InvalidName {
    kind: &'static str,
    value: String,
    max: usize,
    dots: &'static str,
}

fn is_label(text: &str, max: usize, dots: bool) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    text.len() <= max
        && text.split('.').all(|part| edge(part.chars().next()) && edge(part.chars().next_back()))
        && (dots || !text.contains('.'))
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.')
}

/// An RFC 1123 subdomain: what most Kubernetes object names must be.
pub fn check_object_name(text: &str) -> Result<(), InvalidName> {
    if is_label(text, NAME_MAX_BYTES, true) {
        return Ok(());
    }
    Err(InvalidName { kind: "name", value: clip(text), max: NAME_MAX_BYTES, dots: " and '.'" })
}

fn clip(text: &str) -> String {
    text.chars().take(80).collect()
}

macro_rules! label_type {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks `text` and keeps it.
            pub fn new(text: impl Into<String>) -> Result<Self, InvalidName> {
                let text = text.into();
                if is_label(&text, LABEL_MAX_BYTES, false) {
                    return Ok(Self(text));
                }
                Err(InvalidName { kind: $kind, value: clip(&text), max: LABEL_MAX_BYTES, dots: "" })
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(text: String) -> Result<Self, InvalidName> {
                Self::new(text)
            }
        }

        impl std::str::FromStr for $name {
            type Err = InvalidName;
            fn from_str(text: &str) -> Result<Self, InvalidName> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }
    };
}

label_type!(
    /// The name of an edge node: one RFC 1123 label, so that it is one subject token as it stands.
    NodeName,
    "node name"
);
label_type!(
    /// A Kubernetes namespace: one RFC 1123 label.
    Namespace,
    "namespace"
);
label_type!(
    /// The name of a login for a device or a process outside pods: one RFC 1123 label, unique on its node.
    DeviceName,
    "device name"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_checked_once_at_the_boundary() {
        for good in ["a", "edge-a", "0", "a1-b2", &"x".repeat(63)] {
            assert!(NodeName::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a b", "a>", "*", "ä", &"x".repeat(64)] {
            assert!(NodeName::new(bad).is_err(), "{bad}");
        }
        assert!(check_object_name("a.b-c").is_ok());
        assert!(check_object_name("a..b").is_err());
        assert!(check_object_name(&"x".repeat(254)).is_err());
    }
}
