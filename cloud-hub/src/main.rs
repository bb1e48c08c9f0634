//! The hub's process. It only wires: keys and server first, then streams, then the epoch of `desired`, then the modules.
//!
//! * [`config`] settings; [`access`] the operator's token and kubeconfig; [`wiring`] which modules run here

mod access;
mod config;
mod wiring;

use std::process::ExitCode;

use bus::program;
use clap::Parser;
use tokio_util::sync::CancellationToken;

fn main() -> ExitCode {
    let config = match config::Config::load(config::Args::parse()) {
        Ok(config) => config,
        Err(error) => return fail(&error),
    };
    program::logging(config.log_json);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(async {
            let stop = CancellationToken::new();
            tokio::spawn(program::stop_on_signal(stop.clone()));
            wiring::run(config, stop).await
        }),
        Err(error) => Err(error.into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("cloud-hub: {error:#}");
    ExitCode::FAILURE
}
