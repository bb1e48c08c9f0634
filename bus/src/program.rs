//! What the programs around a [`Host`](crate::host::Host) have in common: their log and their stop signal.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// The variable that chooses what is logged, in `tracing-subscriber`'s words.
const FILTER_ENV: &str = "EDGEWIRE_LOG";

/// Logs to standard error: for people (coloured on a terminal), or as one JSON object a line.
pub fn logging(json: bool) {
    install(json, "info,async_nats=warn");
}

/// The same for a command that a person types: nothing, unless [`FILTER_ENV`] asks for it.
pub fn quiet() {
    install(false, "off");
}

fn install(json: bool, unless_told: &str) {
    use std::io::IsTerminal;
    let filter = EnvFilter::try_from_env(FILTER_ENV).unwrap_or_else(|_| EnvFilter::new(unless_told));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if json {
        builder.json().init();
    } else {
        builder.with_ansi(std::io::stderr().is_terminal()).init();
    }
}

/// Cancels `stop` on the first SIGTERM or SIGINT.
pub async fn stop_on_signal(stop: CancellationToken) {
    let (Ok(mut term), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::error!("signals cannot be heard; only SIGKILL ends this program");
        return;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping");
    stop.cancel();
}
