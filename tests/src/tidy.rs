//! What the house asks of every file and every crate, as checks: which way dependencies run, how long a file may be,
//! how it opens, what it may not hold.
//!
//! Each check is a pure function from what was read to a list of complaints, one line each, that say where and what to
//! do. `tests/tidy.rs` feeds them the real workspace and, to show that they bite, planted faults.

use std::path::Path;

/// Lines of a source file before its tests. A longer one holds two concepts.
pub const FILE_LINES_MAX: usize = 500;

/// The client that only `bus` knows.
const NATS_CLIENT: &str = "async-nats";
/// What `schemas` does without: it describes what crosses a wire, and moves nothing.
const NOT_IN_SCHEMAS: [&str; 2] = ["tokio", NATS_CLIENT];
/// Marks of unfinished work. Spelt in two halves, because this file is checked as well.
const UNFINISHED: [&str; 6] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("X", "XX:"),
    concat!("to", "do!("),
    concat!("unimple", "mented!("),
    concat!("#[ig", "nore"),
];
/// Places on the machine of whoever wrote it.
const PRIVATE_PLACES: [&str; 3] = [concat!("/ho", "me/"), concat!("/Us", "ers/"), concat!("/wo", "rk/")];
/// Names that say nothing: two modules that need the same code have found a concept, which has a name.
const EMPTY_NAMES: [&str; 4] = ["utils", "util", "common", "helpers"];
/// Lints that every crate lives under, as the workspace's manifest has them.
const LINTS: [&str; 10] = [
    "unsafe_code",
    "unused_must_use",
    "unwrap_used",
    "expect_used",
    "panic",
    "indexing_slicing",
    "disallowed_methods",
    "dbg_macro",
    "todo",
    "unimplemented",
];

/// A crate of the workspace.
#[derive(Debug, Clone)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Its directory, from the workspace's root.
    pub dir: String,
    /// Its manifest, as text.
    pub manifest: String,
    /// Names of all it depends on, for whatever purpose (normal, build, tests).
    pub dependencies: Vec<String>,
}

/// Where a crate stands: it may depend only on what stands lower. Modules share a floor, so none knows another.
fn floor(dir: &str) -> Option<u8> {
    match dir {
        "schemas" => Some(0),
        "bus" => Some(1),
        "edge-runtime" | "cloud-hub" | "cli" => Some(3),
        "tests" => Some(4),
        _ if dir.starts_with("modules/") => Some(2),
        _ => None,
    }
}

/// `schemas <- bus <- modules <- {edge-runtime, cloud-hub, cli} <- tests`; examples stand alone.
pub fn direction(members: &[Member]) -> Vec<String> {
    let mut complaints = Vec::new();
    for member in members {
        let example = member.dir.starts_with("examples/");
        let own = floor(&member.dir);
        if own.is_none() && !example {
            complaints.push(format!(
                "{}: the house has no such room; see the layout in ARCHITECTURE.md",
                member.dir
            ));
        }
        for dependency in &member.dependencies {
            let name = &member.name;
            if let Some(other) = members.iter().find(|m| m.name == *dependency) {
                if example {
                    complaints.push(format!(
                        "{name} depends on {dependency}: an example stands alone, as a user's would"
                    ));
                } else if own <= floor(&other.dir) {
                    complaints.push(format!(
                        "{name} depends on {dependency}: dependencies run schemas <- bus <- modules <- programs <- tests, \
                         and no module knows another; meet on the bus, or name the concept in schemas or bus"
                    ));
                }
            // The tests look at streams with the raw client: an outside judge must not see through our eyes.
            } else if dependency == NATS_CLIENT
                && !["bus", "tests"].contains(&member.dir.as_str())
                && !example
            {
                complaints
                    .push(format!("{name} depends on {NATS_CLIENT}: only bus does; use what bus gives"));
            } else if member.dir == "schemas" && NOT_IN_SCHEMAS.contains(&dependency.as_str()) {
                complaints.push(format!("{name} depends on {dependency}: schemas moves nothing"));
            }
        }
    }
    complaints
}

/// Every crate has the workspace's lints, and these are in force.
pub fn lints(members: &[Member], workspace_manifest: &str, clippy: &str) -> Vec<String> {
    let mut complaints: Vec<String> = members
        .iter()
        .filter(|m| !has_line_after(&m.manifest, "[lints]", "workspace = true"))
        .map(|m| format!("{}/Cargo.toml: without the workspace's lints; add [lints] workspace = true", m.dir))
        .collect();
    for lint in LINTS {
        if !workspace_manifest.lines().any(|line| line.trim() == format!("{lint} = \"deny\"")) {
            complaints.push(format!("Cargo.toml: the lint {lint} is not denied"));
        }
    }
    if !clippy.contains("disallowed-methods") || !clippy.contains("async_nats::connect") {
        complaints.push("clippy.toml: raw NATS calls are not disallowed".to_owned());
    }
    complaints
}

fn has_line_after(text: &str, heading: &str, line: &str) -> bool {
    let mut lines = text.lines().map(str::trim).skip_while(|l| *l != heading).skip(1);
    lines.find(|l| !l.is_empty() && !l.starts_with('#')) == Some(line)
}

/// One file, by its path from the workspace's root: opening, length, name, and what stands in it.
pub fn file(path: &Path, text: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    let shown = path.display();
    for (number, line) in (1..).zip(text.lines()) {
        for mark in UNFINISHED {
            if line.contains(mark) {
                complaints.push(format!(
                    "{shown}:{number}: {mark} marks unfinished work; finish it or take it out"
                ));
            }
        }
        for place in PRIVATE_PLACES {
            if names_place(line, place) {
                complaints.push(format!(
                    "{shown}:{number}: {place} is a place on one machine; say it from the project's root"
                ));
            }
        }
    }
    if path.extension().is_some_and(|e| e == "rs") {
        complaints.extend(source(path, text));
    }
    complaints
}

/// Does a path that begins with `place` stand in the line? `$dir/work/x` does not begin so.
fn names_place(line: &str, place: &str) -> bool {
    line.match_indices(place).any(|(at, _)| {
        let before = line.get(..at).and_then(|l| l.chars().next_back());
        before.is_none_or(|c| !(c.is_alphanumeric() || "_-.}*$/".contains(c)))
    })
}

fn source(path: &Path, text: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    let shown = path.display();
    // A file may begin with what concerns all of it, such as an attribute with its reason.
    if !text.lines().find(|l| !l.starts_with("#![")).is_some_and(|l| l.starts_with("//!")) {
        complaints
            .push(format!("{shown}: opens without //!; give a newcomer two to ten lines to start from"));
    }
    let in_tests_directory = path.iter().rev().skip(1).any(|part| part == "tests" || part == "benches")
        && !path.iter().any(|part| part == "src");
    let lines = text.lines().take_while(|l| l.trim() != "#[cfg(test)]").count();
    if !in_tests_directory && lines > FILE_LINES_MAX {
        complaints.push(format!(
            "{shown}: {lines} lines before its tests; over {FILE_LINES_MAX} it holds two concepts: split it"
        ));
    }
    let name = |part: &str| EMPTY_NAMES.contains(&part.trim_end_matches(".rs"));
    if let Some(part) = path.iter().filter_map(|p| p.to_str()).find(|p| name(p)) {
        complaints.push(format!("{shown}: {part} says nothing; name the concept it holds"));
    }
    complaints
}
