//! Reading documents and sources as text: code in Markdown, links, headings, error codes. Pure but for [`files`].

use std::fs;
use std::path::{Component, Path, PathBuf};

/// Made by machines, or not ours to write.
const NOT_OURS: [&str; 4] = [".git", ".tools", ".demo", "target"];

/// All text files that `wanted` wants, by their paths from `root`, in order.
pub fn files(root: &Path, wanted: &dyn Fn(&Path) -> bool) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut open = vec![PathBuf::new()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(root.join(&dir)).unwrap() {
            let entry = entry.unwrap();
            let path = dir.join(entry.file_name());
            if NOT_OURS.iter().any(|name| entry.file_name() == *name) {
                continue;
            }
            if entry.file_type().unwrap().is_dir() {
                open.push(path);
            } else if wanted(&path)
                && let Ok(text) = fs::read_to_string(root.join(&path))
            {
                found.push((path.to_string_lossy().into_owned(), text));
            }
        }
    }
    found.sort();
    found
}

/// A path without `.` and `..`.
pub fn normal(path: &Path) -> String {
    let mut parts: Vec<String> = Vec::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(parts.pop()),
            Component::Normal(name) => parts.push(name.to_string_lossy().into_owned()),
            _ => {}
        }
    }
    parts.join("/")
}

/// Reasons of events in a source: words in quotes where an event is told.
pub fn reasons(source: &str) -> Vec<String> {
    let one_line = source.split_whitespace().collect::<Vec<_>>().join(" ");
    let parts: Vec<&str> = one_line.split('"').collect();
    let told = |before: &str| {
        let leads = ["Severity::Warning,", "Severity::Normal,", "Tell(", "push((", "(true,", "(false,"];
        leads.iter().any(|lead| before.trim_end().ends_with(lead))
    };
    let is_word = |word: &str| {
        word.starts_with(|c: char| c.is_ascii_uppercase())
            && word.contains(|c: char| c.is_ascii_lowercase())
            && word.chars().all(|c| c.is_ascii_alphabetic())
    };
    let pairs = parts.windows(2).filter(|pair| told(pair[0]) && is_word(pair[1]));
    pairs.map(|pair| pair[1].to_owned()).collect()
}

/// What stands in code: a line of a fenced block, or a span between back-ticks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snippet {
    /// The text.
    pub text: String,
    /// Between back-ticks?
    pub inline: bool,
}

/// All code of a document.
pub fn snippets(markdown: &str) -> Vec<Snippet> {
    let mut found = Vec::new();
    let mut fenced = false;
    for line in markdown.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if fenced || line.starts_with("    ") {
            found.push(Snippet { text: line.trim().to_owned(), inline: false });
        } else {
            let spans = line.split('`').skip(1).step_by(2);
            found.extend(spans.map(|text| Snippet { text: text.to_owned(), inline: true }));
        }
    }
    found
}

/// Lines outside fenced blocks.
fn prose(markdown: &str) -> impl Iterator<Item = &str> {
    let mut fenced = false;
    markdown.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    })
}

/// Targets of all links.
pub fn links(markdown: &str) -> Vec<String> {
    let targets = |line: &str| {
        let parts = line.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
        parts.map(|(target, _)| target.to_owned()).collect::<Vec<_>>()
    };
    prose(markdown).flat_map(targets).collect()
}

/// Headings as link anchors, as GitHub makes them.
pub fn headings(markdown: &str) -> Vec<String> {
    let anchor = |line: &str| {
        let text = line.trim_start_matches('#').trim().to_lowercase();
        let kept = text.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    prose(markdown).filter(|line| line.starts_with('#')).map(anchor).collect()
}

/// The names that begin with `prefix`, of upper case letters and `joint`.
fn names(text: &str, prefix: &str, joint: char) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices(prefix) {
        let before = text[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == joint || c == '_') {
            continue;
        }
        let rest = &text[at + prefix.len()..];
        let end = rest.find(|c: char| !(c.is_ascii_uppercase() || c == joint)).unwrap_or(rest.len());
        let name = rest[..end].trim_end_matches(joint);
        if !name.is_empty() {
            found.push(format!("{prefix}{name}"));
        }
    }
    found.sort();
    found.dedup();
    found
}

/// Error codes.
pub fn codes(text: &str) -> Vec<String> {
    names(text, "EW-", '-')
}

/// Environment variables of ours.
pub fn variables(text: &str) -> Vec<String> {
    names(text, "EDGEWIRE_", '_')
}

/// A source without the tests at its end.
pub fn without_tests(source: &str) -> String {
    let lines = source.lines().take_while(|line| line.trim() != "#[cfg(test)]");
    lines.flat_map(|line| [line, "\n"]).collect()
}

/// A source without the lines that are comments.
pub fn without_comments(source: &str, mark: &str) -> String {
    let lines = source.lines().filter(|line| !line.trim_start().starts_with(mark));
    lines.flat_map(|line| [line, "\n"]).collect()
}
