//! Which programs a cluster runs: ours from the build, the others from the set-up.

use std::path::{Path, PathBuf};

/// Our own programs are looked for here, before the build's directory.
const BIN_DIR_ENV: &str = "EDGEWIRE_BIN_DIR";

/// The project's directory.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// One of our own programs.
pub fn ours(name: &str) -> PathBuf {
    if let Some(dir) = std::env::var_os(BIN_DIR_ENV) {
        return PathBuf::from(dir).join(name);
    }
    // A test lies in target/debug/deps, the demo in target/debug.
    let exe = std::env::current_exe().unwrap_or_default();
    let beside = exe.ancestors().skip(1).take(2).map(|dir| dir.join(name)).find(|path| path.is_file());
    beside.unwrap_or_else(|| root().join("target/debug").join(name))
}

/// Which of our programs a member runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Version {
    /// Those of this state.
    #[default]
    Present,
    /// Those of the state before, as `scripts/previous.sh` built them.
    Previous,
}

impl Version {
    /// One of our own programs.
    pub fn program(self, name: &str) -> PathBuf {
        match self {
            Version::Present => ours(name),
            Version::Previous => previous().join(name),
        }
    }
}

fn previous() -> PathBuf {
    root().join("target/previous/bin")
}

/// Are the programs of the state before there? Without the project's history they are not.
pub fn has_previous() -> anyhow::Result<bool> {
    let commit = std::fs::read_to_string(previous().join("commit"));
    let commit = commit.map_err(|error| anyhow::anyhow!("run scripts/previous.sh: {error}"))?;
    Ok(commit.trim() != "none")
}

/// The pinned nats-server.
pub fn nats_server() -> PathBuf {
    match std::env::var_os("EDGEWIRE_NATS_SERVER") {
        Some(path) => path.into(),
        None => root().join(".tools/bin/nats-server"),
    }
}

/// Where the images of the examples lie.
pub fn images() -> PathBuf {
    root().join("target/images")
}

/// `PATH` with the project's tools first and the system's directories last.
pub fn path() -> String {
    let given = std::env::var("PATH").unwrap_or_default();
    format!("{}:{given}:/usr/local/sbin:/usr/sbin:/sbin", root().join(".tools/bin").display())
}

/// Is everything there?
pub fn check() -> anyhow::Result<()> {
    for name in ["cloud-hub", "edge-runtime"] {
        let path = ours(name);
        anyhow::ensure!(path.is_file(), "EW-DEMO-BUILD: {} is missing; run `make build`", path.display());
    }
    let path = nats_server();
    anyhow::ensure!(path.is_file(), "EW-DEMO-SETUP: {} is missing; run `make setup`", path.display());
    anyhow::ensure!(
        images().is_dir(),
        "EW-DEMO-IMAGES: {} is missing; run `make images`",
        images().display()
    );
    anyhow::ensure!(nix::unistd::geteuid().is_root(), "EW-DEMO-ROOT: this needs root; run it with sudo");
    Ok(())
}
