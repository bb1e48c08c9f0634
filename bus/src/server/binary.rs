//! Which `nats-server` to run. Hub and nodes need one line (2.15.x): a 2.9 leaf does not even attach to a 2.15 hub.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::ServerError;

/// Environment variable that names the binary.
pub const ENV: &str = "EDGEWIRE_NATS_SERVER";
/// The program.
pub const NAME: &str = "nats-server";
const INSTALLED: &str = "/usr/lib/edgewire/nats-server";
const LINE: &str = "2.15.";
const VERSION_TIMEOUT: Duration = Duration::from_secs(10);

/// A `nats-server` of the right line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binary {
    /// Where it is.
    pub path: PathBuf,
    /// Its version, such as `2.15.1`.
    pub version: String,
}

impl Binary {
    /// Finds it: `explicit`, then [`ENV`], then beside our own program, then as installed, then on the path. A place that
    /// was named must hold it; the search does not go on behind the user's back.
    pub async fn find(explicit: Option<&Path>) -> Result<Self, ServerError> {
        let named = explicit.map(Path::to_owned).or_else(|| std::env::var_os(ENV).map(PathBuf::from));
        let looked = match named {
            Some(path) => vec![path],
            None => usual_places(),
        };
        match looked.iter().find(|path| is_program(path)) {
            Some(path) => Self::check(path).await,
            None => Err(ServerError::NotFound { looked }),
        }
    }

    async fn check(path: &Path) -> Result<Self, ServerError> {
        let run = tokio::process::Command::new(path).arg("--version").kill_on_drop(true).output();
        let output = match tokio::time::timeout(VERSION_TIMEOUT, run).await {
            Ok(Ok(output)) => output,
            Ok(Err(source)) => return Err(ServerError::io(path, source)),
            Err(_) => return Err(ServerError::Version { path: path.to_owned(), found: "no answer".into() }),
        };
        let said: String = String::from_utf8_lossy(&output.stdout).trim().chars().take(100).collect();
        let version = said.rsplit(['v', ' ']).next().unwrap_or("").to_owned();
        if said.starts_with(NAME) && version.starts_with(LINE) {
            return Ok(Self { path: path.to_owned(), version });
        }
        Err(ServerError::Version { path: path.to_owned(), found: said })
    }
}

fn usual_places() -> Vec<PathBuf> {
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join(NAME)));
    let path = std::env::var_os("PATH").unwrap_or_default();
    beside
        .into_iter()
        .chain([PathBuf::from(INSTALLED)])
        .chain(std::env::split_paths(&path).map(|dir| dir.join(NAME)))
        .collect()
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}
