//! A display on an edge node: prints what other workloads of its namespace say, as they say it.
//!
//! It listens to `app.<namespace>.>`, the live class: messages reach it from any node that is linked now, at most once.
//! One line a value: `live app.demo.temp {"n":118,"c":21.4}`. Where a value carries a counter `n`, the display also
//! counts for each subject how many came, how many are missing in between, and how many came late or twice; live
//! values may be missing after a cut, and that is what it shows. The totals are printed now and then and at the end.
//!
//! | variable | default | |
//! |---|---|---|
//! | `NATS_URL` | set by Edgewire | `nats://user:password@address:port` |
//! | `NATS_INBOX_PREFIX` | set by Edgewire | where this container may receive replies |
//! | `EDGEWIRE_NAMESPACE` | `default` | the pod's namespace |

mod link;
mod tally;

use std::{io::Write, process::ExitCode};

use futures::StreamExt;
use tokio::signal::unix::{SignalKind, signal};

use crate::tally::Tallies;

/// The totals are printed after so many values.
const VALUES_PER_TOTAL: u64 = 100;
/// Of a value, so much is shown.
const SHOWN_CHARS_MAX: usize = 512;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("display: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), String> {
    let namespace = variable("EDGEWIRE_NAMESPACE").unwrap_or_else(|| "default".to_owned());
    let mut terminate =
        signal(SignalKind::terminate()).map_err(|e| format!("cannot listen for SIGTERM: {e}"))?;
    let mut interrupt =
        signal(SignalKind::interrupt()).map_err(|e| format!("cannot listen for SIGINT: {e}"))?;
    let url = variable("NATS_URL").ok_or(
        "NATS_URL is not set; Edgewire sets it in every container, and by hand it is nats://user:password@address:port",
    )?;
    let client = link::connect("display", &url, variable("NATS_INBOX_PREFIX").as_deref()).await?;
    let subject = format!("app.{namespace}.>");
    let mut values = client.subscribe(subject.clone()).await.map_err(|e| {
        format!("cannot subscribe to {subject}: {e}; EDGEWIRE_NAMESPACE must name a namespace")
    })?;
    println!("listening to {subject}");

    let mut tallies = Tallies::default();
    loop {
        let value = tokio::select! {
            value = values.next() => value.ok_or("the subscription ended; the container is started again")?,
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        };
        let text = String::from_utf8_lossy(&value.payload);
        let shown: String = text.chars().take(SHOWN_CHARS_MAX).collect();
        println!("live {} {shown}", value.subject);
        tallies.count(&value.subject, counter(&value.payload));
        if tallies.received() % VALUES_PER_TOTAL == 0 {
            print!("{tallies}");
        }
    }
    print!("{tallies}");
    std::io::stdout().flush().map_err(|e| e.to_string())
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The counter in a JSON value, when it has one.
fn counter(payload: &[u8]) -> Option<u64> {
    serde_json::from_slice::<serde_json::Value>(payload).ok()?.get("n")?.as_u64()
}
