//! `demo`: a hub and two nodes on this machine, and the outage. See `tests::demo`; `make demo` runs it.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tests::{demo, stop};

/// A hub and two edge nodes on this machine, and an outage performed before your eyes.
#[derive(Parser)]
#[command(name = "demo", args_conflicts_with_subcommands = true)]
struct Args {
    /// Check what is shown and end, instead of staying up
    #[arg(long)]
    once: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Drop the packets of a node's link, in a running demo
    Cut {
        /// Name of the node, such as edge-a
        node: String,
    },
    /// Give a node its link back
    Heal {
        /// Name of the node, such as edge-a
        node: String,
    },
    /// End a running demo and remove everything, also what a killed one left
    Clean,
    /// Remove what killed end-to-end tests left; those that run, and demos, are left alone
    Sweep,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let outcome = match args.command {
        None => perform(args.once),
        Some(Command::Cut { node }) => demo::link(&node, true),
        Some(Command::Heal { node }) => demo::link(&node, false),
        Some(Command::Clean) => demo::clean(),
        Some(Command::Sweep) => {
            tests::cluster::ledger::sweep_temporary();
            Ok(())
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// The error and its causes in one line.
fn chain(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn perform(once: bool) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let asked = stop::asked()?;
        demo::run(once, asked).await
    })
}
