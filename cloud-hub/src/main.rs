//! The hub's process. It only wires: keys and server first, then streams, then the epoch of `desired`, then the modules.
//!
//! * [`config`] settings; [`access`] the operator's token and kubeconfig; [`wiring`] which modules run here
//! * [`backup`] all of it in one file, and back

mod access;
mod backup;
mod config;
mod wiring;

use std::process::ExitCode;

use bus::program;
use clap::Parser;
use tokio_util::sync::CancellationToken;

fn main() -> ExitCode {
    let cli = config::Cli::parse();
    let outcome = match cli.command {
        Some(config::Command::Guard) => bus::server::hold::guard(std::io::stdin()).map_err(Into::into),
        Some(config::Command::Backup(args)) => tool(async |stop| backup::run(args, stop).await),
        Some(config::Command::Restore(args)) => tool(async |stop| backup::restore::run(args, stop).await),
        None => config::Config::load(cli.run).and_then(|config| {
            program::logging(config.log_json);
            run(async |stop| wiring::run(config, stop).await)
        }),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

/// Runs something that is stopped by a signal.
fn run(what: impl AsyncFnOnce(CancellationToken) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let stop = CancellationToken::new();
        tokio::spawn(program::stop_on_signal(stop.clone()));
        what(stop).await
    })
}

/// The same for a command: what the server says while a copy is opened is told only when it fails.
fn tool(what: impl AsyncFnOnce(CancellationToken) -> anyhow::Result<()>) -> anyhow::Result<()> {
    program::quiet();
    run(what)
}

fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("cloud-hub: {error:#}");
    ExitCode::FAILURE
}

/// What decoders are tried with: the file needs nothing but std, and stands with the tests of all crates.
#[cfg(test)]
#[path = "../../tests/src/fuzz.rs"]
mod fuzz;
