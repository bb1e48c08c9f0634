//! The node's process. It only wires: its own server and containerd first, then streams, then the modules.
//!
//! * [`config`] settings; [`join`] enrolment
//! * [`containerd`] a private containerd; [`network`] the pods' bridge; [`wiring`] which modules run here

mod config;
mod containerd;
mod join;
mod network;
mod wiring;

use std::process::ExitCode;
use std::time::Duration;

use bus::durable::DurableError;
use bus::program;
use clap::Parser;
use tokio_util::sync::CancellationToken;

use config::{Args, Command, Config};

/// Before a store that met a full disk is opened anew.
const REOPEN_PAUSE: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let args = Args::parse();
    let outcome = match args.command {
        Some(Command::LogPump { .. }) => return containers::runtime::logs::log_pump_main(),
        Some(Command::Join(join)) => block_on(join::join(join)),
        None => Config::load(args.run).and_then(|config| {
            program::logging(config.log_json);
            block_on(async {
                let stop = CancellationToken::new();
                tokio::spawn(program::stop_on_signal(stop.clone()));
                // A store that met a full disk is opened anew, as at a start. Servers and pods run on meanwhile.
                while let Err(error) = wiring::run(&config, &stop).await {
                    let passes = error.downcast_ref::<DurableError>().is_some_and(DurableError::is_full);
                    if stop.is_cancelled() || !passes {
                        return Err(error);
                    }
                    tracing::error!("{error:#}; begun anew");
                    tokio::time::sleep(REOPEN_PAUSE).await;
                }
                Ok(())
            })
        }),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("edge-runtime: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn block_on(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    // One worker beside the main thread: an idle node should be small.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .max_blocking_threads(8)
        .thread_stack_size(1024 * 1024)
        .enable_all()
        .build()?;
    runtime.block_on(work)
}

/// What decoders are tried with: the file needs nothing but std, and stands with the tests of all crates.
#[cfg(test)]
#[path = "../../tests/src/fuzz.rs"]
mod fuzz;
