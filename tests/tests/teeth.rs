//! Is every patch in `tests/teeth` still one that breaks something? Each applies to the code as it is, says which promise
//! it breaks, and names a test that exists. That the test then fails is shown by `make teeth`, which takes much longer.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // a test fails by panicking

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// So many lines a patch may change: it breaks one thing.
const CHANGED_LINES_MAX: usize = 15;
/// So many promises have one.
const TEETH_MIN: usize = 20;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn teeth() -> Vec<PathBuf> {
    let found = fs::read_dir(root().join("tests/teeth")).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<PathBuf> =
        found.filter(|path| path.extension().is_some_and(|e| e == "patch")).collect();
    found.sort();
    found
}

/// Every Rust file below `dir`, by its path from the project's root.
fn sources(dir: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && !name.starts_with('.') && name != "target" {
            sources(&path, found);
        } else if name.ends_with(".rs") {
            let shown = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
            found.push((shown, fs::read_to_string(&path).unwrap()));
        }
    }
}

/// `git apply --check`, which works outside of a repository too. The tree may lie in one that is not its own.
fn applies(patch: &Path) -> Result<(), String> {
    let mut git = Command::new("git");
    git.args(["apply", "--check"]).arg(patch).current_dir(root());
    let answer = git.env("GIT_CEILING_DIRECTORIES", root().parent().unwrap()).output().unwrap();
    if answer.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&answer.stderr).into_owned()) }
}

/// What is wrong with a patch's header or its size.
fn complaints(patch: &str, sources: &[(String, String)]) -> Vec<String> {
    let (header, diff) = patch.split_once("\ndiff --git ").unwrap_or((patch, ""));
    let field = |name: &str| header.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("").trim();
    let mut complaints = Vec::new();
    if field("promise:").is_empty() {
        complaints.push("it does not say which promise it breaks (promise: ...)".to_owned());
    }
    let edits =
        |line: &&str| line.starts_with(['+', '-']) && !line.starts_with("+++") && !line.starts_with("---");
    let changed = diff.lines().filter(edits).count();
    if !(1..=CHANGED_LINES_MAX).contains(&changed) {
        complaints.push(format!("it changes {changed} lines, of at most {CHANGED_LINES_MAX}"));
    }
    for line in diff.lines().filter_map(|line| line.strip_prefix("+++ b/")) {
        if line.contains("tests/") || line.starts_with("tests") {
            complaints
                .push(format!("it changes {line}: a promise is broken in the product, not in its test"));
        }
    }
    // NAME=VALUE ... <what cargo builds> <the test>
    let words: Vec<&str> = field("test:").split_whitespace().skip_while(|word| word.contains('=')).collect();
    let place = |path: &str| match words.as_slice() {
        ["--workspace", "--lib", _] => path.contains("src/"),
        ["-p", package, "--lib", _] => path.contains(&format!("{package}/src/")),
        ["--workspace", "--test", suite, _] => {
            path.contains(&format!("tests/{suite}.rs")) || path.contains(&format!("tests/{suite}/"))
        }
        _ => false,
    };
    let name = words.last().copied().unwrap_or_default();
    let function = format!("fn {name}(");
    if !sources.iter().any(|(path, text)| place(path) && text.contains(&function)) {
        complaints.push(format!("its test is not there: {:?}", words.join(" ")));
    }
    complaints
}

#[test]
fn every_patch_applies_and_names_its_test() {
    let mut found = Vec::new();
    sources(&root(), &mut found);
    let teeth = teeth();
    assert!(teeth.len() >= TEETH_MIN, "{} patches in tests/teeth", teeth.len());
    let mut wrong = Vec::new();
    for patch in &teeth {
        let shown = patch.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let text = fs::read_to_string(patch).unwrap();
        wrong.extend(complaints(&text, &found).into_iter().map(|complaint| format!("{shown}: {complaint}")));
        if let Err(error) = applies(patch) {
            wrong.push(format!("{shown}: it no longer applies; make it anew: {error}"));
        }
    }
    assert!(wrong.is_empty(), "{} complaints\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn a_rotten_patch_is_found() {
    let sources = [("bus/tests/server.rs".to_owned(), "async fn it_holds() {".to_owned())];
    let sound = "promise: p\ntest: --workspace --test server it_holds\n\ndiff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n";
    assert_eq!(complaints(sound, &sources), Vec::<String>::new());
    for (from, to, word) in [
        ("promise: p", "promise:", "which promise"),
        ("it_holds", "it_held", "not there"),
        ("--test server", "--test runner", "not there"),
        ("--workspace --test server", "-p bus --lib", "not there"),
        ("-a\n+b\n", "", "changes 0 lines"),
        ("+++ b/x", "+++ b/tests/src/x.rs", "not in its test"),
    ] {
        let wrong = complaints(&sound.replace(from, to), &sources);
        assert!(wrong.len() == 1 && wrong[0].contains(word), "{to}: {wrong:?}");
    }
    let dir = tempfile::tempdir().unwrap();
    let patch = dir.path().join("rotten.patch");
    let tooth = fs::read_to_string(&teeth()[0]).unwrap();
    let line = tooth.lines().find(|line| line.starts_with('-') && !line.starts_with("---")).unwrap();
    fs::write(&patch, tooth.replace(line, "-this was changed meanwhile")).unwrap();
    assert!(applies(&patch).is_err());
}
