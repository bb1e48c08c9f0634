//! `edgewire hub restore`: a hub from a backup.
//!
//! The archive is checked, all of it, before anything is written; then it is unpacked into [`STAGING`] inside the data
//! directory, opened by a server of its own and compared with the manifest, and only then put in place. While [`STAGING`]
//! is there no hub starts in that directory.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use schemas::Timestamp;
use schemas::backup::{Manifest, StreamSummary};
use tokio_util::sync::CancellationToken;

use super::copy::{PARTS, make_dir, named};
use super::{archive, data_dir, say, store};
use crate::config::{RestoreArgs, absolute};

/// Where a restore works, in the data directory.
pub const STAGING: &str = "restoring";

/// Runs the command.
pub async fn run(args: RestoreArgs, stop: CancellationToken) -> anyhow::Result<()> {
    let file = absolute(args.file)?;
    let interrupted = || match stop.is_cancelled() {
        true => Err(io::Error::new(io::ErrorKind::Interrupted, "interrupted")),
        false => Ok(()),
    };
    let manifest =
        archive::read(&file, |_| interrupted().map(|()| Box::new(io::sink()) as Box<dyn io::Write>))?;
    if args.check {
        return say(&manifest, args.json, &format!("{} is whole.", file.display()));
    }
    let dir = data_dir(args.config, args.data_dir)?;
    let aside = make_room(&dir, args.force).await?;
    let staging = dir.join(STAGING);
    let failed =
        || format!("EW-BACKUP-IO: cannot write below {}; check owner, mode and free space", dir.display());
    make_dir(&staging).with_context(failed)?;
    let unpacked = unpack(&file, &staging, interrupted, args.nats_server).await;
    if let Err(error) = unpacked {
        // Nothing is in place yet: the directory is left as empty as it was found.
        store::remove(&staging).await.with_context(failed)?;
        ensure!(!stop.is_cancelled(), "EW-BACKUP-STOPPED: interrupted; nothing was restored");
        return Err(error);
    }
    put_in_place(&staging, &dir).with_context(failed)?;
    let moved = aside.map(|to| format!("What was there lies in {}.\n", to.display())).unwrap_or_default();
    let next = format!(
        "{moved}Restored into {dir}. Next:\n\
         \x20 1. Be sure that the hub this is a copy of does not run any more: two would share one identity.\n\
         \x20 2. Start it where nodes reach it, with the flags that it had: edgewire hub --data-dir {dir} --advertise HOST\n\
         \x20 3. See what the nodes have and it does not: edgewire diverged\n\
         Nothing at the edge stops. Tokens used and nodes revoked after {at} are as they were then.",
        dir = dir.display(),
        at = manifest.at_text
    );
    say(&manifest, args.json, &next)
}

/// The directory is there and empty afterwards. What was in it is moved aside, if that was asked for.
async fn make_room(dir: &Path, force: bool) -> anyhow::Result<Option<PathBuf>> {
    let shown = dir.display();
    ensure!(
        store::running(dir).is_none(),
        "EW-RESTORE-RUNNING: the server of a hub runs in {shown}; stop that hub first"
    );
    let is_empty = match fs::read_dir(dir) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => true,
        Err(error) => bail!("EW-BACKUP-IO: cannot read {shown}: {error}"),
    };
    ensure!(
        is_empty || force,
        "EW-RESTORE-NOT-EMPTY: {shown} holds something; name an empty directory, or move that aside: --force"
    );
    let mut aside = None;
    if !is_empty {
        store::remove(&dir.join(STAGING))
            .await
            .context("EW-BACKUP-IO: cannot remove an unfinished restore")?;
        let mut to = dir.as_os_str().to_owned();
        to.push(format!(".before-restore-{}", Timestamp::now().0 / 1000));
        let to = PathBuf::from(to);
        ensure!(!to.exists(), "EW-BACKUP-IO: {} is there already; try again", to.display());
        fs::rename(dir, &to).with_context(|| {
            format!(
                "EW-BACKUP-IO: cannot move {shown} aside (is it a mount point?); move its content by hand"
            )
        })?;
        aside = Some(to);
    }
    make_dir(dir).with_context(|| format!("EW-BACKUP-IO: cannot make {shown}"))?;
    Ok(aside)
}

async fn unpack(
    file: &Path,
    staging: &Path,
    go_on: impl Fn() -> io::Result<()>,
    binary: Option<PathBuf>,
) -> anyhow::Result<()> {
    let manifest: Manifest = archive::read(file, |item| {
        go_on()?;
        let path = staging.join(&item.path);
        make_dir(path.parent().unwrap_or(staging))?;
        let file = File::options().write(true).create_new(true).mode(0o600).open(&path);
        Ok(Box::new(file.map_err(|error| named(&path, error))?))
    })?;
    let streams = store::open(staging, binary).await?;
    let odd = difference(&manifest.streams, &streams);
    ensure!(
        odd.is_empty(),
        "EW-BACKUP-STORE: the streams are not those of the manifest: {}; take another backup",
        odd.join("; ")
    );
    Ok(())
}

/// Streams that are not as the manifest says. Messages may have grown too old meanwhile; none may have come.
fn difference(wanted: &[StreamSummary], have: &[StreamSummary]) -> Vec<String> {
    let same = |a: &StreamSummary, b: &StreamSummary| (&a.account, &a.stream) == (&b.account, &b.stream);
    let as_said = |wanted: &StreamSummary| {
        let found = have.iter().find(|other| same(other, wanted));
        found.is_some_and(|have| {
            have.last_sequence == wanted.last_sequence
                && have.messages <= wanted.messages
                && have.first_sequence >= wanted.first_sequence
                && have.consumers <= wanted.consumers
        })
    };
    let odd = wanted.iter().filter(|wanted| !as_said(wanted)).map(|stream| {
        let other = have.iter().find(|other| same(other, stream));
        format!("{stream:?} is {other:?}")
    });
    let more = have.iter().filter(|have| !wanted.iter().any(|wanted| same(wanted, have)));
    odd.chain(more.map(|stream| format!("{stream:?} is not in it"))).collect()
}

/// Everything is synced before it is moved, and the keys come last: without them a hub in the directory is none yet.
fn put_in_place(staging: &Path, dir: &Path) -> io::Result<()> {
    sync(staging)?;
    for part in PARTS.iter().rev() {
        let (from, to) = (staging.join(part), dir.join(part));
        if from.exists() {
            make_dir(to.parent().unwrap_or(dir))?;
            fs::rename(&from, &to).map_err(|error| named(&to, error))?;
        }
    }
    File::open(dir)?.sync_all()?;
    fs::remove_dir_all(staging)?;
    File::open(dir)?.sync_all()
}

fn sync(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            sync(&entry?.path())?;
        }
    }
    File::open(path)?.sync_all().map_err(|error| named(path, error))
}
