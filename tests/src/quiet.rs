//! Is this machine quiet enough to measure on? A figure that was taken beside somebody else's servers or compiler says nothing.

use std::path::Path;

use anyhow::ensure;

/// Programs that would take the processor from what is measured: servers of an interrupted run, a compiler.
const STRANGERS: [&str; 4] = ["nats-server", "edge-runtime", "cloud-hub", "rustc"];
/// Says that it is meant.
const ANYWAY_ENV: &str = "BENCH_ANYWAY";

/// Refuses to measure beside others; `BENCH_ANYWAY=1` measures all the same.
pub fn or_refuse() -> anyhow::Result<()> {
    if std::env::var_os(ANYWAY_ENV).is_some() {
        eprintln!("measured beside others ({ANYWAY_ENV}): not for docs/benchmarks.md");
        return Ok(());
    }
    let others: Vec<String> = strangers(Path::new("/proc")).collect();
    ensure!(
        others.is_empty(),
        "EW-BENCH-BUSY: {} other programs run here that a figure would suffer from ({}); end them, or set {ANYWAY_ENV}=1",
        others.len(),
        others.iter().take(8).cloned().collect::<Vec<_>>().join(", ")
    );
    Ok(())
}

fn strangers(proc: &Path) -> impl Iterator<Item = String> {
    let processes = std::fs::read_dir(proc).into_iter().flatten().flatten();
    processes.filter_map(|process| {
        let pid = process.file_name().into_string().ok().filter(|name| name.parse::<u32>().is_ok())?;
        let name = std::fs::read_to_string(process.path().join("comm")).ok()?;
        STRANGERS.contains(&name.trim()).then(|| format!("{} {pid}", name.trim()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_somebody_left_is_a_stranger_and_a_shell_is_none() {
        let proc = tempfile::tempdir().unwrap();
        for (pid, name) in [("7", "bash\n"), ("12", "nats-server\n"), ("self", "nats-server\n")] {
            std::fs::create_dir(proc.path().join(pid)).unwrap();
            std::fs::write(proc.path().join(pid).join("comm"), name).unwrap();
        }
        assert_eq!(strangers(proc.path()).collect::<Vec<_>>(), ["nats-server 12"]);
    }
}
