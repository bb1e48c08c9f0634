//! `edgewire hub`, `edgewire edge`, `edgewire join`: hand over to the program that does it, found beside our own or in
//! PATH. We are replaced by it, so signals, output and exit code are its own.

use std::ffi::{OsStr, OsString};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

use crate::failure::{Failure, Outcome};

/// The hub's program.
pub const HUB: &str = "cloud-hub";
/// The edge's program.
pub const EDGE: &str = "edge-runtime";

fn executable(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// A program beside our own, else in PATH.
pub fn find(name: &str, own: Option<&Path>, path: Option<&OsStr>) -> Option<PathBuf> {
    let beside = own.and_then(Path::parent).map(Path::to_owned);
    let listed: Vec<PathBuf> = path.map(|list| std::env::split_paths(list).collect()).unwrap_or_default();
    beside.into_iter().chain(listed).map(|dir| dir.join(name)).find(|path| executable(path))
}

/// Becomes the program `name`; returns only when that fails. What is secret goes by `environment`: arguments are seen by
/// everybody on the machine.
pub fn become_program(name: &str, args: &[OsString], environment: &[(&str, String)]) -> Outcome<()> {
    let own = std::env::current_exe().ok();
    let Some(path) = find(name, own.as_deref(), std::env::var_os("PATH").as_deref()) else {
        let place =
            own.as_deref().and_then(Path::parent).map(|dir| dir.display().to_string()).unwrap_or_default();
        return Err(Failure::new(
            "EW-PROGRAM-NOT-FOUND",
            format!("there is no {name} in {place} nor in PATH"),
            format!("install it beside edgewire; from the source: cargo build --release -p {name}"),
        ));
    };
    let environment = environment.iter().map(|(name, value)| (*name, value));
    let error = std::process::Command::new(&path).args(args).envs(environment).exec();
    let cause = format!("cannot run {}: {error}", path.display());
    Err(Failure::new("EW-PROGRAM-FAILED", cause, "is it built for this machine?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beside_us_comes_before_path() {
        let dir = tempfile::tempdir().unwrap();
        let place = |sub: &str, mode: u32| {
            std::fs::create_dir_all(dir.path().join(sub)).unwrap();
            let file = dir.path().join(sub).join("x");
            std::fs::write(&file, "").unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            file
        };
        let (beside, listed) = (place("beside", 0o755), place("listed", 0o755));
        place("plain", 0o644);
        let own = dir.path().join("beside/edgewire");
        let path = std::env::join_paths([dir.path().join("plain"), dir.path().join("listed")]).unwrap();
        assert_eq!(find("x", Some(&own), Some(&path)), Some(beside));
        assert_eq!(find("x", None, Some(&path)), Some(listed));
        assert_eq!(find("y", Some(&own), Some(&path)), None);
    }
}
