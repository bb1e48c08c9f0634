//! Is the house in order? The checks of `tests::tidy` on the real workspace, and on planted faults, to show that they bite.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // a test fails by panicking

use std::{
    fs,
    path::{Path, PathBuf},
};

use tests::tidy::{self, Member};

/// Made by machines, or not ours to write.
const NOT_OURS: [&str; 6] = [".git", ".tools", ".demo", "target", "Cargo.lock", "LICENSE"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn members() -> Vec<Member> {
    let metadata = cargo_metadata::MetadataCommand::new().current_dir(root()).no_deps().exec().unwrap();
    metadata
        .packages
        .iter()
        .map(|package| Member {
            name: package.name.to_string(),
            dir: package.manifest_path.parent().unwrap().strip_prefix(root()).unwrap().to_string(),
            manifest: fs::read_to_string(&package.manifest_path).unwrap(),
            dependencies: package.dependencies.iter().map(|d| d.name.clone()).collect(),
        })
        .collect()
}

/// All text files of the project, by their paths from its root.
fn files(dir: &Path, found: &mut Vec<(PathBuf, String)>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if NOT_OURS.iter().any(|name| path.file_name().is_some_and(|n| n == *name)) {
            continue;
        }
        if path.is_dir() {
            files(&path, found);
        } else if let Ok(text) = fs::read_to_string(&path) {
            found.push((path.strip_prefix(root()).unwrap().to_path_buf(), text));
        }
    }
}

fn expect_none(complaints: &[String]) {
    assert!(complaints.is_empty(), "{} complaints\n{}", complaints.len(), complaints.join("\n"));
}

#[test]
fn dependencies_run_one_way() {
    let members = members();
    assert!(members.len() >= 16, "cargo metadata told of {} crates", members.len());
    expect_none(&tidy::direction(&members));
}

#[test]
fn lints_are_in_force() {
    let read = |name: &str| fs::read_to_string(root().join(name)).unwrap();
    expect_none(&tidy::lints(&members(), &read("Cargo.toml"), &read("clippy.toml")));
}

#[test]
fn files_are_tidy() {
    let mut found = Vec::new();
    files(&root(), &mut found);
    assert!(found.len() > 40, "found {} files under {}", found.len(), root().display());
    let complaints: Vec<String> = found.iter().flat_map(|(path, text)| tidy::file(path, text)).collect();
    expect_none(&complaints);
}

fn member(dir: &str, dependencies: &[&str]) -> Member {
    Member {
        name: dir.rsplit('/').next().unwrap().to_owned(),
        dir: dir.to_owned(),
        manifest: "[lints]\nworkspace = true\n".to_owned(),
        dependencies: dependencies.iter().map(|d| (*d).to_owned()).collect(),
    }
}

#[test]
fn a_wrong_dependency_is_found() {
    let sound = [
        member("schemas", &["serde"]),
        member("bus", &["schemas", "async-nats", "tokio"]),
        member("modules/api", &["schemas", "bus", "axum"]),
        member("modules/sync", &["bus"]),
        member("cloud-hub", &["api", "bus"]),
        member("tests", &["cloud-hub", "api"]),
        member("examples/sensor", &["async-nats"]),
    ];
    expect_none(&tidy::direction(&sound));

    for (dir, dependency, word) in [
        ("modules/api", "sync", "no module knows another"),
        ("modules/api", "cloud-hub", "dependencies run"),
        ("modules/api", "async-nats", "only bus does"),
        ("bus", "api", "dependencies run"),
        ("schemas", "bus", "dependencies run"),
        ("schemas", "tokio", "moves nothing"),
        ("cloud-hub", "tests", "dependencies run"),
        ("examples/sensor", "bus", "stands alone"),
        ("helpers", "serde", "no such room"),
    ] {
        let mut planted: Vec<Member> = sound.iter().filter(|m| m.dir != dir).cloned().collect();
        planted.push(member(dir, &[dependency]));
        let complaints = tidy::direction(&planted);
        assert!(
            complaints.len() == 1 && complaints[0].contains(word),
            "{dir} on {dependency}: {complaints:?}"
        );
    }
}

#[test]
fn a_missing_lint_is_found() {
    let workspace = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let clippy = fs::read_to_string(root().join("clippy.toml")).unwrap();
    let mut free = member("modules/api", &[]);
    free.manifest = "[package]\nname = \"api\"\n\n[dependencies]\n".to_owned();
    assert!(tidy::lints(&[free], &workspace, &clippy)[0].starts_with("modules/api/Cargo.toml"));
    let weak = workspace.replace("unwrap_used = \"deny\"", "unwrap_used = \"warn\"");
    assert_eq!(tidy::lints(&[], &weak, &clippy), ["Cargo.toml: the lint unwrap_used is not denied"]);
    assert_eq!(tidy::lints(&[], &workspace, "").len(), 1);
}

#[test]
fn an_untidy_file_is_found() {
    let opening = "//! What it is for.\n";
    let long = "fn f() {}\n".repeat(tidy::FILE_LINES_MAX);
    for (path, text, word) in [
        ("bus/src/a.rs", "use std::fs;\n".to_owned(), "opens without //!"),
        ("bus/src/a.rs", format!("{opening}{long}"), "501 lines before its tests"),
        ("bus/src/utils.rs", opening.to_owned(), "says nothing"),
        ("tests/tests/common/mod.rs", opening.to_owned(), "says nothing"),
        ("bus/src/a.rs", format!("{opening}// {}: later\n", concat!("TO", "DO")), "a.rs:2"),
        ("bus/src/a.rs", format!("{opening}{}\n", concat!("#[ig", "nore = \"flaky\"]")), "unfinished"),
        ("README.md", format!("see {}me/x\n", "/ho"), "one machine"),
        ("README.md", format!("`{}rk/x`\n", "/wo"), "one machine"),
    ] {
        let complaints = tidy::file(Path::new(path), &text);
        assert!(complaints.len() == 1 && complaints[0].contains(word), "{path}: {complaints:?}");
    }
    for (path, text) in [
        (
            "bus/src/a.rs",
            format!("{opening}{}#[cfg(test)]\nmod tests {{\n{long}}}\n", "fn f() {}\n".repeat(400)),
        ),
        ("bus/tests/long.rs", format!("{opening}{long}")),
        ("bus/src/a.rs", format!("#![allow(unsafe_code)]\n{opening}")),
        ("scripts/a.sh", format!("mkdir $dir{}rk/x\n", "/wo")),
    ] {
        expect_none(&tidy::file(Path::new(path), &text));
    }
}
