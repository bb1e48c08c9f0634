//! `faults`: every pair of the fault suite, or those that are named, and their results in docs/reliability.md. See
//! `tests::faults`; `make faults` runs it.

use std::process::ExitCode;

use clap::Parser;
use schemas::Timestamp;
use tests::faults::{self, Pair, table};
use tests::stop;

/// Every fault on every part of a real hub and node, under load; what must hold after each; the results into
/// docs/reliability.md.
#[derive(Parser)]
#[command(name = "faults")]
struct Args {
    /// Name the pairs and end
    #[arg(long)]
    list: bool,
    /// Leave docs/reliability.md as it is
    #[arg(long)]
    dry: bool,
    /// Which, such as kill/leaf-server [default: all]
    pairs: Vec<Pair>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let pairs = if args.pairs.is_empty() { Pair::all() } else { args.pairs };
    if args.list {
        pairs.iter().for_each(|pair| println!("{pair}"));
        return ExitCode::SUCCESS;
    }
    match perform(&pairs, args.dry) {
        Ok(failed) if failed.is_empty() => ExitCode::SUCCESS,
        Ok(failed) => {
            eprintln!("faults: {} of {} failed: {}", failed.len(), pairs.len(), failed.join(" "));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("faults: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// One after the other; the names of those that failed.
fn perform(pairs: &[Pair], dry: bool) -> anyhow::Result<Vec<String>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let asked = stop::asked()?;
        tokio::pin!(asked);
        let mut failed = Vec::new();
        for pair in pairs {
            let outcome = tokio::select! {
                outcome = faults::run(*pair) => outcome,
                () = &mut asked => anyhow::bail!("stopped"),
            };
            if let Err(error) = &outcome {
                eprintln!("{error:#}");
                failed.push(pair.to_string());
            }
            if !dry {
                table::note(*pair, &outcome, &today())?;
            }
        }
        Ok(failed)
    })
}

fn today() -> String {
    Timestamp::now().rfc3339().chars().take_while(|letter| *letter != 'T').collect()
}
