//! Are the documents true? What can be generated from the code is (`docs/flows.md`), and the rest is held against it:
//! error codes, links, places in the source, `make` targets, commands, flags and variables.
//!
//! `UPDATE_DOCS=1 cargo test -p tests --test docs` writes `docs/flows.md` anew.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // a test fails by panicking

mod events;
mod flows;
mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use tests::cluster::programs::{ours, root};
use text::{Snippet, codes, files, headings, links, reasons, snippets, without_comments, without_tests};

fn expect_none(complaints: &[String]) {
    assert!(complaints.is_empty(), "{} complaints\n{}", complaints.len(), complaints.join("\n"));
}

/// Every document, by its path from the root.
fn documents() -> Vec<(String, String)> {
    let all = files(&root(), &|path| path.extension().is_some_and(|e| e == "md"));
    assert!(all.iter().any(|(path, _)| path == "README.md"), "no README.md among {} documents", all.len());
    all
}

/// What runs: sources without their tests, and scripts.
fn sources() -> Vec<(String, String)> {
    let is_source = |path: &Path| {
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("");
        let text = path.to_string_lossy();
        match extension {
            "rs" => text.contains("/src/") && !text.ends_with("_tests.rs") && !text.ends_with("/tests.rs"),
            "sh" | "py" => text.contains("scripts/"),
            "" => text.contains("scripts/"),
            _ => false,
        }
    };
    files(&root(), &is_source)
}

/// A generated document is what the code says now; `UPDATE_DOCS` writes it anew.
fn is_generated(document: &str, want: &str) {
    let path = root().join(document);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, want).unwrap();
    }
    let have = fs::read_to_string(&path).unwrap_or_default();
    let differs = want.lines().zip(have.lines().chain(std::iter::repeat(""))).find(|(a, b)| a != b);
    assert!(
        have == want,
        "{document} is behind the code, first at\n  code: {}\n  file: {}\n\
         run `UPDATE_DOCS=1 cargo test -p tests --test docs` and look at the difference",
        differs.map_or("(its end)", |d| d.0),
        differs.map_or("(more lines)", |d| d.1),
    );
}

#[test]
fn flows_are_what_the_modules_declare() {
    is_generated("docs/flows.md", &flows::document());
}

#[test]
fn the_catalogue_of_events_is_what_the_modules_tell() {
    expect_none(&events::complaints(&sources()));
    is_generated("docs/events.md", &events::document());
}

/// A type that nobody tells, and one that is told and stands nowhere, are both found.
#[test]
fn an_event_without_a_row_and_a_row_without_an_event_are_found() {
    let mut planted = sources();
    for (path, text) in &mut planted {
        if path.starts_with("modules/sync/") {
            *text = text.replace("\"ServerRestarted\"", "\"ServerBegunAnew\"");
        }
    }
    planted.push(("modules/api/src/new.rs".to_owned(), "let e = EventReport { id };".to_owned()));
    let complaints = events::complaints(&planted);
    for want in [
        "ServerBegunAnew is not in",
        "nothing tells io.edgewire.sync.ServerRestarted",
        "modules/api/src/new.rs tells",
    ] {
        assert!(complaints.iter().any(|complaint| complaint.contains(want)), "{want}: {complaints:?}");
    }
    assert_eq!(complaints.len(), 3, "{complaints:?}");
}

/// What a class means stands once, in the code; `edgewire explain` says the same as the document.
#[test]
fn the_classes_of_the_workload_bus_are_those_of_the_code() {
    let page = fs::read_to_string(root().join("docs/workloads.md")).unwrap();
    let rows: Vec<&str> = page
        .lines()
        .skip_while(|line| *line != "| subject | may | what happens to it |")
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .collect();
    let want: Vec<String> = schemas::class::CLASSES.iter().map(|class| class.row()).collect();
    assert_eq!(rows, want, "docs/workloads.md and schemas/src/class.rs differ");
}

#[test]
fn every_error_code_is_listed_with_cause_and_cure() {
    let mut used: BTreeMap<String, String> = BTreeMap::new();
    for (path, text) in sources() {
        let text = if path.ends_with(".rs") {
            without_comments(&without_tests(&text), "//")
        } else {
            without_comments(&text, "#")
        };
        for code in codes(&text) {
            used.entry(code).or_insert_with(|| path.clone());
        }
    }
    assert!(used.len() > 50, "only {} codes were found in the sources", used.len());
    let errors = fs::read_to_string(root().join("docs/errors.md")).unwrap();
    let mut listed = BTreeSet::new();
    let mut complaints = Vec::new();
    for (number, line) in (1..).zip(errors.lines()) {
        let Some(row) = line.strip_prefix("| `EW-") else { continue };
        let cells: Vec<&str> = row.trim_end_matches(" |").split(" | ").collect();
        let code = format!("EW-{}", cells[0].trim_end_matches('`'));
        if cells.len() != 3 || cells.iter().any(|cell| cell.trim().is_empty()) {
            complaints.push(format!("docs/errors.md:{number}: a row is code, cause, cure"));
        }
        if !used.contains_key(&code) {
            complaints.push(format!("docs/errors.md:{number}: nothing says {code} any more"));
        }
        if !listed.insert(code.clone()) {
            complaints.push(format!("docs/errors.md:{number}: {code} is listed twice"));
        }
    }
    for (code, path) in &used {
        if !listed.contains(code) {
            complaints.push(format!("{path}: {code} is not in docs/errors.md"));
        }
    }
    for (path, text) in documents() {
        for code in codes(&text).into_iter().filter(|code| !used.contains_key(code)) {
            complaints.push(format!("{path}: nothing says {code}"));
        }
    }
    expect_none(&complaints);
}

#[test]
fn every_event_that_a_node_tells_is_listed() {
    let page = fs::read_to_string(root().join("docs/troubleshooting.md")).unwrap();
    let (_, table) = page.split_once("## What nodes tell as events").unwrap();
    let table = table.split("\n## ").next().unwrap();
    let mut seen = BTreeSet::new();
    let mut complaints = Vec::new();
    for (path, text) in sources() {
        let tells = [
            "modules/sync/",
            "modules/containers/",
            "modules/identity/src/edge",
            "modules/door/",
            "modules/topicmap/",
            "edge-runtime/",
        ];
        if !tells.iter().any(|start| path.starts_with(start)) {
            continue;
        }
        for reason in reasons(&without_comments(&without_tests(&text), "//")) {
            if !table.contains(&format!("`{reason}`")) {
                complaints.push(format!("{path}: {reason} is not in the table of docs/troubleshooting.md"));
            }
            seen.insert(reason);
        }
    }
    assert!(seen.len() > 20, "only {seen:?} were found in the sources");
    expect_none(&complaints);
}

#[test]
fn links_lead_somewhere() {
    let mut complaints = Vec::new();
    let documents = documents();
    for (path, text) in &documents {
        for link in links(text) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = if file.is_empty() {
                path.clone()
            } else {
                let joined = Path::new(path).parent().unwrap().join(file);
                text::normal(&joined)
            };
            if !root().join(&target).exists() {
                complaints.push(format!("{path}: {link} leads nowhere"));
            } else if !anchor.is_empty() {
                let there = documents.iter().find(|(p, _)| *p == target);
                if !there.is_some_and(|(_, text)| headings(text).iter().any(|h| h == anchor)) {
                    complaints.push(format!("{path}: {link}: {target} has no such heading"));
                }
            }
        }
    }
    expect_none(&complaints);
}

/// `modules/sync/src/down.rs` in a document is there.
#[test]
fn places_in_the_source_are_there() {
    let mut complaints = Vec::new();
    for (path, text) in documents().into_iter().filter(|(path, _)| path != "CHANGELOG.md") {
        for snippet in snippets(&text) {
            let is_place = snippet.inline
                && snippet.text.contains('/')
                && !snippet.text.contains([' ', '<', '*', '{', '$'])
                && [".rs", ".sh", ".md", ".yaml", ".toml"].iter().any(|end| snippet.text.ends_with(end))
                && !snippet.text.starts_with(['/', '~', '.']);
            if is_place && !root().join(&snippet.text).exists() {
                complaints.push(format!("{path}: {} is not there", snippet.text));
            }
        }
    }
    expect_none(&complaints);
}

/// Documents whose promises name the tests that show them.
const PROMISES: [&str; 2] = ["docs/security.md", "docs/reliability.md"];

#[test]
fn every_promise_names_a_test_that_is_there() {
    let sources = files(&root(), &|path| path.extension().is_some_and(|e| e == "rs"));
    let is_test = |name: &str| sources.iter().any(|(_, text)| text.contains(&format!("fn {name}(")));
    let mut complaints = Vec::new();
    let mut promises = 0;
    for (path, text) in documents().into_iter().filter(|(path, _)| PROMISES.contains(&path.as_str())) {
        let mut in_table = false;
        for line in text.lines() {
            in_table = line.starts_with("| promise |") || (in_table && line.starts_with('|'));
            let name = |text: &&str| {
                text.matches('_').count() >= 3
                    && text.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9' | '_'))
            };
            let named: Vec<&str> = line.split('`').skip(1).step_by(2).filter(name).collect();
            for name in named.iter().filter(|name| !is_test(name)) {
                complaints.push(format!("{path}: there is no test {name}"));
            }
            if in_table && !line.starts_with("| promise |") && !line.starts_with("|---") {
                promises += 1;
                if named.is_empty() && !line.contains("](#") {
                    complaints.push(format!("{path}: no test for {line}"));
                }
            }
        }
    }
    assert!(promises > 10, "only {promises} promises were found");
    expect_none(&complaints);
}

#[test]
fn make_targets_exist() {
    let makefile = fs::read_to_string(root().join("Makefile")).unwrap();
    let targets: BTreeSet<&str> = makefile
        .lines()
        .filter(|line| !line.starts_with(['\t', ' ', '#', '.']))
        .filter_map(|line| line.split_once(':'))
        .filter(|(_, rest)| !rest.starts_with('='))
        .flat_map(|(names, _)| names.split_whitespace())
        .collect();
    let mut complaints = Vec::new();
    let mut seen = 0;
    for (path, text) in documents() {
        for Snippet { text, .. } in snippets(&text) {
            let Some(words) = text.trim_start_matches("$ ").strip_prefix("make ") else { continue };
            let words =
                words.split_whitespace().take_while(|word| !word.starts_with(['#', '&', '|', '(', ';']));
            for target in words.filter(|word| !word.contains('=') && !word.starts_with('-')) {
                seen += 1;
                if !targets.contains(target) {
                    complaints.push(format!("{path}: make {target}: the Makefile has no such target"));
                }
            }
        }
    }
    assert!(seen > 5, "only {seen} targets were found in the documents");
    expect_none(&complaints);
}

/// The `--help` of one of our programs, or of one of its commands.
struct Helps {
    told: BTreeMap<Vec<String>, Option<String>>,
}

impl Helps {
    fn of(&mut self, program: &str, command: &[&str]) -> Option<&str> {
        let key: Vec<String> =
            std::iter::once(program).chain(command.iter().copied()).map(str::to_owned).collect();
        let told = self.told.entry(key).or_insert_with(|| {
            let path = ours(program);
            let out = Command::new(&path).args(command).arg("--help").env("EDGEWIRE_LOG", "off").output();
            let out = out.unwrap_or_else(|error| panic!("{}: {error}; run `make build`", path.display()));
            out.status.success().then(|| String::from_utf8_lossy(&out.stdout).into_owned())
        });
        told.as_deref()
    }
}

fn has_flag(help: &str, flag: &str) -> bool {
    help.match_indices(flag).any(|(at, _)| {
        help.get(at + flag.len()..)
            .and_then(|rest| rest.chars().next())
            .is_none_or(|c| !(c.is_alphanumeric() || c == '-'))
    })
}

#[test]
fn commands_and_flags_are_known_to_the_programs() {
    let mut helps = Helps { told: BTreeMap::new() };
    let mut complaints = Vec::new();
    let mut seen = 0;
    for (path, text) in documents() {
        for snippet in snippets(&text) {
            for line in snippet.text.split(" | ") {
                let words: Vec<&str> = line.trim_start_matches("$ ").split_whitespace().collect();
                let Some((program, rest)) = words.split_first() else { continue };
                let program = program.rsplit('/').next().unwrap_or(program);
                if !["edgewire", "cloud-hub", "edge-runtime"].contains(&program) {
                    continue;
                }
                let rest: Vec<&str> =
                    rest.iter().copied().take_while(|word| !word.starts_with(['#', '&', '>'])).collect();
                let command: Vec<&str> =
                    rest.iter().copied().take_while(|word| is_command(word)).take(2).collect();
                let nested = command.first().is_some_and(|first| {
                    ["token", "hub", "node", "ca", "certificate", "creds", "bench", "dead"].contains(first)
                        && program == "edgewire"
                });
                let command = &command[..command.len().min(if nested { 2 } else { 1 })];
                let Some(help) = helps.of(program, command) else {
                    complaints.push(format!("{path}: `{line}`: {program} refuses {}", command.join(" ")));
                    continue;
                };
                seen += 1;
                for flag in rest.iter().filter(|word| word.starts_with("--") && word.len() > 2) {
                    let flag = flag.split('=').next().unwrap_or(flag).trim_end_matches([',', ']', '\'']);
                    if !has_flag(help, flag) {
                        complaints.push(format!("{path}: `{line}`: {program} knows no {flag} there"));
                    }
                }
            }
        }
    }
    assert!(seen > 10, "only {seen} commands were found in the documents");
    expect_none(&complaints);
}

fn is_command(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase())
}

/// Every setting of a program is in its document: flags, variables and their TOML keys stand in one table row.
#[test]
fn every_setting_is_documented() {
    let mut helps = Helps { told: BTreeMap::new() };
    let mut complaints = Vec::new();
    for (program, document) in [("cloud-hub", "docs/hub.md"), ("edge-runtime", "docs/node.md")] {
        let help = helps.of(program, &[]).unwrap().to_owned();
        let text = fs::read_to_string(root().join(document)).unwrap();
        let words = help.split(|c: char| !(c.is_ascii_alphanumeric() || "-_".contains(c)));
        let mut seen = 0;
        for word in words.collect::<BTreeSet<_>>() {
            let setting = word.starts_with("--") && word.len() > 2 || word.starts_with("EDGEWIRE_");
            if !setting || word == "--help" || word == "--version" {
                continue;
            }
            seen += 1;
            if !text.contains(&format!("`{word}")) {
                complaints.push(format!("{document}: {program} knows {word}, the document does not"));
            }
        }
        assert!(seen > 10, "{program} --help told of {seen} settings");
    }
    expect_none(&complaints);
}

#[test]
fn variables_are_read_by_something() {
    let mut known = BTreeSet::new();
    for (_, text) in sources().into_iter().chain(files(&root(), &|path| path.ends_with("Makefile"))) {
        known.extend(text::variables(&text));
    }
    let mut complaints = Vec::new();
    for (path, text) in documents() {
        for name in text::variables(&text).into_iter().filter(|name| !known.contains(name)) {
            complaints.push(format!("{path}: nothing reads {name}"));
        }
    }
    expect_none(&complaints);
}
