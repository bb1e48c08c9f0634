//! Ctrl-C and `kill`, so that what a program started is ended on these ways out too.

use tokio::signal::unix::{SignalKind, signal};

/// Listens from the call on; the future ends with SIGTERM or SIGINT.
pub fn asked() -> std::io::Result<impl Future<Output = ()>> {
    let (mut term, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Does `work`; gives it up, with all that it holds, when the program is asked to stop.
pub async fn unless_asked<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let asked = asked()?;
    tokio::select! {
        outcome = work => outcome,
        () = asked => anyhow::bail!("stopped"),
    }
}
