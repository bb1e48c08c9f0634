//! `edgewire hub backup`: everything the hub has, in one file, while it runs.
//!
//! 1. [`copy`] the data directory beside the target at leisure, then again what changed, with the hub's server held still
//!    ([`bus::server::hold`]): keys, objects and all streams are of one moment. No order among streams could do that:
//!    JetStream's own snapshot of a stream that is written meanwhile loses keys (measured).
//! 2. [`store`] opens the copy with a server of its own and reads what is there.
//! 3. [`archive`] writes manifest and files, synced, and only then under the target's name.
//!
//! [`restore`] is the way back.

pub mod archive;
pub mod copy;
pub mod restore;
pub mod store;

use std::fs::{self, File};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bus::server::binary::Binary;
use bus::server::child::Record;
use bus::server::hold::Held;
use schemas::Timestamp;
use schemas::backup::{FORMAT, Manifest};
use tokio_util::sync::CancellationToken;

use crate::config::{Args, BackupArgs, Config, absolute};
use copy::{Copier, PARTS, make_dir};

/// The server is held still at most so long: links to nodes are given up after 10 s of silence.
const HELD_MAX: Duration = Duration::from_secs(3);
/// When that was too short, what was copied is left out the next time.
const TRIES_MAX: u32 = 5;

/// The hub's directory, from the same places as when it runs.
fn data_dir(config: Option<PathBuf>, data_dir: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    Ok(Config::load(Args { config, data_dir, ..Args::default() })?.data_dir)
}

/// Runs the command.
pub async fn run(args: BackupArgs, stop: CancellationToken) -> anyhow::Result<()> {
    let data_dir = data_dir(args.config, args.data_dir)?;
    let file = absolute(args.file)?;
    ensure!(
        data_dir.join("keys/operator.nk").exists(),
        "EW-BACKUP-NO-HUB: there is no hub in {}; name its directory: --data-dir DIR",
        data_dir.display()
    );
    ensure!(
        args.force || !file.exists(),
        "EW-BACKUP-EXISTS: {} is there already; choose another name, or replace it: --force",
        file.display()
    );
    // Two at once would let the server go on under each other. The lock ends with us.
    let locked = File::open(data_dir.join("keys/operator.nk"))
        .and_then(|key| key.try_lock().map(|()| key).map_err(Into::into));
    let _lock = locked.with_context(|| {
        format!(
            "EW-BACKUP-BUSY: another backup of {} is being made, or its keys cannot be read",
            data_dir.display()
        )
    })?;
    let cannot_write = || format!("EW-BACKUP-IO: cannot write {}", file.display());
    let spool = beside(&file, ".copy");
    store::remove(&spool).await.with_context(cannot_write)?;
    make_dir(&spool).with_context(cannot_write)?;
    let partial = beside(&file, ".partial");
    let made = make(&data_dir, &spool, &partial, args.nats_server, &stop).await;
    let removed = store::remove(&spool).await;
    let manifest = match made {
        Ok(manifest) => manifest,
        Err(error) => {
            let _ = fs::remove_file(&partial); // it may not have come so far
            ensure!(!stop.is_cancelled(), "EW-BACKUP-STOPPED: interrupted; nothing was written");
            return Err(error);
        }
    };
    removed.with_context(cannot_write)?;
    fs::rename(&partial, &file).with_context(cannot_write)?;
    let parent = file.parent().unwrap_or(Path::new("/"));
    File::open(parent).and_then(|dir| dir.sync_all()).with_context(cannot_write)?;
    let size = fs::metadata(&file).with_context(cannot_write)?.len();
    say(&manifest, args.json, &format!("Wrote {} ({}).", file.display(), mib(size)))?;
    if !args.json {
        println!("It holds the hub's keys: keep it where nobody else reads it.");
    }
    Ok(())
}

async fn make(
    data_dir: &Path,
    spool: &Path,
    partial: &Path,
    binary: Option<PathBuf>,
    stop: &CancellationToken,
) -> anyhow::Result<Manifest> {
    let progress = Progress { stop, terminal: io::stderr().is_terminal() };
    let (at, held) = copy_all(data_dir, spool, &progress)?;
    progress.step("opening the copy")?;
    let streams = store::open(spool, binary.clone()).await?;
    progress.step("hashing")?;
    let files = archive::items(spool, &PARTS).context("EW-BACKUP-IO: cannot read the copy")?;
    let manifest = Manifest {
        format: FORMAT,
        edgewire: env!("CARGO_PKG_VERSION").to_owned(),
        nats_server: Binary::find(binary.as_deref()).await?.version,
        at,
        at_text: at.rfc3339(),
        host: fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned(),
        authority_sha256: store::authority(spool)?,
        held_ms: u64::try_from(held.as_millis()).unwrap_or(u64::MAX),
        streams,
        files,
    };
    let failed = || format!("EW-BACKUP-IO: cannot write {}", partial.display());
    let _ = fs::remove_file(partial); // of a backup that was killed
    let target =
        File::options().write(true).create_new(true).mode(0o600).open(partial).with_context(failed)?;
    let (mut done, all) = (0, manifest.files.iter().map(|item| item.size_bytes).sum::<u64>());
    let written = archive::write(&manifest, spool, target, |bytes| {
        done += bytes;
        progress.step(&format!("writing {} of {}", mib(done), mib(all)))
    });
    written.and_then(|file| file.sync_all()).with_context(failed)?;
    progress.clear();
    Ok(manifest)
}

/// Copies it all to one moment; tells which, and for how long the server was held still.
fn copy_all(data_dir: &Path, spool: &Path, progress: &Progress) -> anyhow::Result<(Timestamp, Duration)> {
    let failed = "EW-BACKUP-IO: cannot copy what the hub has; check owner, mode and free space";
    let mut copier = Copier::new(data_dir, spool);
    for attempt in 1..=TRIES_MAX {
        progress.step(&format!("copying {}", data_dir.display()))?;
        copier.pass(|| progress.go_on()).context(failed)?;
        let server = store::running(data_dir);
        let held = server.as_ref().map(|server| Held::begin(server, guard())).transpose();
        let held = held.context("EW-BACKUP-BUSY: the hub's server cannot be held still; try again")?;
        let at = Timestamp::now();
        let copied = copier.pass(|| {
            progress.go_on()?;
            match &held {
                Some(held) if held.elapsed() > HELD_MAX => Err(io::ErrorKind::TimedOut.into()),
                _ => Ok(()),
            }
        });
        let took = held.as_ref().map_or(Duration::ZERO, Held::elapsed);
        drop(held);
        let same = store::running(data_dir).map(|now| (now.pid, now.start_time))
            == server.map(|before: Record| (before.pid, before.start_time));
        match copied {
            Ok(_) if same => return Ok((at, took)),
            Ok(_) => tracing::debug!(attempt, "the hub was started, stopped or restarted meanwhile"),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {}
            Err(error) => return Err(error).context(failed),
        }
    }
    bail!(
        "EW-BACKUP-BUSY: more changes than can be copied in {} s, or the hub is being restarted; try again when it is quieter, or to a faster disk",
        HELD_MAX.as_secs()
    )
}

/// This very program, as the guard of a server that is held.
fn guard() -> std::process::Command {
    let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/proc/self/exe"));
    let mut command = std::process::Command::new(program);
    command.arg("guard");
    command
}

fn beside(file: &Path, ending: &str) -> PathBuf {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(ending);
    file.with_file_name(name)
}

/// Says where it is, on a terminal, and ends the work when it was told to.
struct Progress<'a> {
    stop: &'a CancellationToken,
    terminal: bool,
}

impl Progress<'_> {
    fn go_on(&self) -> io::Result<()> {
        match self.stop.is_cancelled() {
            true => Err(io::Error::new(io::ErrorKind::Interrupted, "interrupted")),
            false => Ok(()),
        }
    }

    fn step(&self, what: &str) -> io::Result<()> {
        if self.terminal {
            let _ = write!(io::stderr(), "\r\x1b[K{what} ...").and_then(|()| io::stderr().flush());
        }
        self.go_on()
    }

    fn clear(&self) {
        if self.terminal {
            let _ = write!(io::stderr(), "\r\x1b[K"); // nowhere left to say that it failed
        }
    }
}

/// Prints what is in a backup, and a last line.
fn say(manifest: &Manifest, json: bool, last: &str) -> anyhow::Result<()> {
    let text = if json { serde_json::to_string_pretty(manifest)? } else { describe(manifest) + last };
    writeln!(io::stdout(), "{text}").context("EW-OUTPUT-FAILED: cannot write the answer")
}

fn describe(manifest: &Manifest) -> String {
    let size: u64 = manifest.files.iter().map(|item| item.size_bytes).sum();
    let mut text = format!(
        "Hub on {} (authority {}), as of {}; made by Edgewire {}\n{} files, {}; the server was held still for {} ms\n\n",
        manifest.host,
        manifest.authority_sha256.get(..12).unwrap_or_default(),
        manifest.at_text,
        manifest.edgewire,
        manifest.files.len(),
        mib(size),
        manifest.held_ms
    );
    text += &format!(
        "{:<8}  {:<14}  {:>10}  {:>10}  {:>10}  {:>10}\n",
        "ACCOUNT", "STREAM", "MESSAGES", "FIRST", "LAST", "SIZE"
    );
    for stream in &manifest.streams {
        text += &format!(
            "{:<8}  {:<14}  {:>10}  {:>10}  {:>10}  {:>10}\n",
            stream.account,
            stream.stream,
            stream.messages,
            stream.first_sequence,
            stream.last_sequence,
            mib(stream.size_bytes)
        );
    }
    text + "\n"
}

#[allow(clippy::cast_precision_loss)] // for people
fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / (1024.0 * 1024.0))
}
