//! A disk whose power can fail: a data directory on ext4 on a loop device, and of it only what had reached the device.
//!
//! The loop device writes to its image directly (`--direct-io=on`), so the image holds what a disk would. The cut is one
//! moment: the file system is told to shut down without writing its log (`EXT4_IOC_SHUTDOWN`), after which nothing more
//! reaches the device. Then the image is copied, the old file system is let go, and the copy is mounted in its place: its
//! journal is replayed, as after a power cut. What was written and not synced is gone.
//!
//! What it can't show: a drive that loses what it said it had written.
//!
//! The device is detached as soon as it is mounted, so it ends with the mount; [`detach`] finds what a kill between the
//! two left.
#![allow(unsafe_code)] // one ioctl, which no crate offers safely

use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use anyhow::Context;
use nix::mount::{MntFlags, umount2};

use super::command;

/// The size of the image; it is sparse.
const SIZE_BYTES: u64 = 4 << 30;
/// Shut down at once, the journal as it stands (`EXT4_GOING_FLAGS_NOLOGFLUSH` of the kernel's `ext4.h`).
const NO_LOG_FLUSH: u32 = 2;

mod ioctl {
    nix::ioctl_read!(shutdown, b'X', 125, u32);
}

/// A mounted disk.
#[derive(Debug)]
pub struct Disk {
    image: PathBuf,
    point: PathBuf,
}

impl Disk {
    /// Makes the image and mounts it at `point`.
    pub fn make(image: &Path, point: &Path) -> anyhow::Result<Self> {
        let file =
            std::fs::File::create(image).with_context(|| format!("cannot make {}", image.display()))?;
        file.set_len(SIZE_BYTES)?;
        command("mkfs.ext4", &["-q", "-F", &image.to_string_lossy()])?;
        std::fs::create_dir_all(point).with_context(|| format!("cannot make {}", point.display()))?;
        let this = Self { image: image.to_owned(), point: point.to_owned() };
        this.mount()?;
        Ok(this)
    }

    fn mount(&self) -> anyhow::Result<()> {
        let image = self.image.to_string_lossy();
        let device = command("losetup", &["--direct-io=on", "--find", "--show", &image])?;
        let mounted = command("mount", &["-t", "ext4", device.trim(), &self.point.to_string_lossy()]);
        command("losetup", &["--detach", device.trim()])?; // when the mount ends
        mounted.map(drop)
    }

    /// From now on nothing reaches the device. Who writes is told of an error.
    pub fn cut(&self) -> anyhow::Result<()> {
        let dir = std::fs::File::open(&self.point)?;
        let mut flags = NO_LOG_FLUSH;
        // SAFETY: the descriptor is open, and the kernel reads one u32 from a place that is ours.
        unsafe { ioctl::shutdown(dir.as_raw_fd(), &raw mut flags) }
            .with_context(|| format!("cannot cut the power of {}", self.point.display()))?;
        Ok(())
    }

    /// Mounts a copy of what the device holds in place of the file system that was [`cut`](Self::cut). Nobody may use it
    /// any more.
    pub fn reopen(&mut self) -> anyhow::Result<()> {
        let left = self.image.with_extension("left");
        command("cp", &["--sparse=always", &self.image.to_string_lossy(), &left.to_string_lossy()])?;
        // Namespaces of processes that are just gone may hold it a moment longer; it is dead.
        umount2(&self.point, MntFlags::MNT_DETACH)
            .with_context(|| format!("cannot unmount {}", self.point.display()))?;
        // The old device keeps the file that has no name any more.
        std::fs::rename(&left, &self.image)?;
        self.mount()
    }
}

/// Frees the loop devices of images under `dir` that are not mounted.
pub fn detach(dir: &Path) -> anyhow::Result<()> {
    let listed = command("losetup", &["--list", "--noheadings", "--raw", "--output", "NAME,BACK-FILE"])?;
    let ours = |line: &&str| line.split_once(' ').is_some_and(|(_, image)| Path::new(image).starts_with(dir));
    for line in listed.lines().filter(ours) {
        let device = line.split(' ').next().unwrap_or_default();
        let _ = command("losetup", &["--detach", device]); // one that goes with its mount may be gone
    }
    Ok(())
}
