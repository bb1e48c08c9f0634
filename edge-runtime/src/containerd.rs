//! A private containerd, for a node where none is given: its own root, state and socket under the node's data.
//!
//! Like the node's bus it runs in a session of its own and outlives us; the next life adopts it. Containers do not depend
//! on it while they run: each has its shim.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use bus::server::child::{Files, Record};
use bus::server::session;
use tokio_util::sync::CancellationToken;

/// First pause before a fallen one is started again; doubles up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// A private containerd.
pub struct Containerd {
    files: Files,
}

/// The socket of the private containerd of that data directory.
pub fn socket(data_dir: &Path) -> PathBuf {
    data_dir.join("containerd").join("containerd.sock")
}

impl Containerd {
    /// Starts it, or finds the one that a former life left.
    pub async fn start(data_dir: &Path) -> anyhow::Result<Self> {
        let files = Files { dir: data_dir.join("containerd"), name: "containerd" };
        std::fs::create_dir_all(&files.dir)
            .with_context(|| format!("EW-DATA-DIR: cannot make {}", files.dir.display()))?;
        let this = Self { files };
        if Record::find(&this.files).is_none() {
            this.spawn().await?;
        }
        Ok(this)
    }

    /// Starts it again whenever it falls, until `stop`; it is then left running: its containers go on, and so it does.
    pub async fn keep(&self, stop: CancellationToken) {
        let mut pause = BACKOFF_MIN;
        loop {
            match Record::find(&self.files) {
                Some(record) => {
                    tokio::select! {
                        () = record.gone() => tracing::warn!("containerd ended and is started again"),
                        () = stop.cancelled() => return,
                    }
                    pause = BACKOFF_MIN;
                }
                None => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(BACKOFF_MAX);
                }
            }
            if let Err(error) = self.spawn().await {
                tracing::error!("{error:#}");
            }
            if stop.is_cancelled() {
                return;
            }
        }
    }

    async fn spawn(&self) -> anyhow::Result<()> {
        let dir = &self.files.dir;
        let config = format!(
            "version = 2\nroot = \"{0}/root\"\nstate = \"{0}/state\"\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\n[grpc]\n  address = \"{0}/containerd.sock\"\n\n[debug]\n  level = \"warn\"\n",
            dir.display()
        );
        std::fs::write(self.files.config(), config)
            .with_context(|| format!("cannot write {}", self.files.config().display()))?;
        let log = std::fs::File::create(self.files.log())
            .with_context(|| format!("cannot write {}", self.files.log().display()))?;
        let mut command = tokio::process::Command::new("containerd");
        command.arg("--config").arg(self.files.config()).current_dir(dir);
        command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null()).stderr(log);
        session::detach(&mut command);
        let mut child = command.spawn().context(
            "EW-CONTAINERD-MISSING: the program `containerd` is not in PATH; install it, or give a running one with --containerd SOCKET",
        )?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).unwrap_or_default();
        // Reaped here when it falls while we live; `Record` tells its end.
        tokio::spawn(async move { child.wait().await });
        let record =
            Record::of(pid, "").context("EW-CONTAINERD-DIED: containerd ended at once; see its log")?;
        record.save(&self.files).with_context(|| format!("cannot write {}", self.files.record().display()))
    }
}
