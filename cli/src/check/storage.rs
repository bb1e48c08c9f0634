//! The disk under the data directory, and memory: is there enough, and is it of a kind that keeps what is written?

use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;

use super::cgroup::{Mount, mounts};
use super::finding::{Check, Finding};

const DISK: Check = Check("EW-CHECK-DISK", "disk");
const MEMORY: Check = Check("EW-CHECK-MEMORY", "memory");

const MIB: u64 = 1024 * 1024;
const GIB: u64 = 1024 * MIB;
/// A node's streams alone may grow to 2 GiB; images and logs come on top.
const DISK_FREE_WARN_BYTES: u64 = 4 * GIB;
/// Not even an image and a little of what waits.
const DISK_FREE_FAIL_BYTES: u64 = GIB;
/// An unpacked image has thousands of files.
const INODES_FREE_WARN: u64 = 50_000;
const INODES_FREE_FAIL: u64 = 5_000;
/// Runtime, server and containerd of a node take about 100 MiB; a pod or two come on top.
const MEMORY_FREE_WARN_BYTES: u64 = 256 * MIB;
const MEMORY_TOTAL_FAIL_BYTES: u64 = 192 * MIB;
/// File systems that forget at a reboot.
const FORGETFUL: [&str; 2] = ["tmpfs", "ramfs"];
/// On these containers' layers cannot be mounted, or a write that was acknowledged may not be there.
const UNFIT: [&str; 12] = [
    "overlay", "nfs", "nfs4", "cifs", "smb3", "9p", "vfat", "exfat", "ntfs3", "squashfs", "iso9660",
    "fuseblk",
];

/// The disk.
#[derive(Debug, Clone)]
pub struct DiskFacts {
    /// The data directory.
    pub dir: PathBuf,
    /// It, or what it would be made in.
    pub looked_at: PathBuf,
    /// Free bytes for us, free and all inodes.
    pub free: Result<(u64, u64, u64), String>,
    /// Type of the file system.
    pub kind: String,
    /// Can it not be written to?
    pub read_only: bool,
}

impl DiskFacts {
    /// Reads them; makes nothing. A network file system that is gone may hold it up for ever.
    pub fn read(dir: &Path) -> Self {
        let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
        let there = dir.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
        let looked_at = there.canonicalize().unwrap_or_else(|_| there.to_owned());
        let free = statvfs(&looked_at)
            .map(|disk| {
                (disk.blocks_available() * disk.fragment_size(), disk.files_available(), disk.files())
            })
            .map_err(|error| error.desc().to_lowercase());
        let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mount = under(&text, &looked_at);
        Self {
            free,
            kind: mount.as_ref().map_or_else(String::new, |mount| mount.kind.to_owned()),
            read_only: mount.is_some_and(|mount| mount.read_only()),
            dir,
            looked_at,
        }
    }
}

/// The mount that holds `path`: the longest, and of equals the last.
fn under<'a>(text: &'a str, path: &Path) -> Option<Mount<'a>> {
    let holds = |mount: &Mount<'_>| path.starts_with(mount.point.replace("\\040", " "));
    mounts(text).filter(holds).max_by_key(|mount| mount.point.len())
}

/// Judges the disk.
pub fn disk(facts: &DiskFacts) -> Finding {
    let dir = facts.dir.display();
    let at = match facts.looked_at == facts.dir {
        true => format!("{dir} ({})", facts.kind),
        false => format!("{dir} (to be made in {}, {})", facts.looked_at.display(), facts.kind),
    };
    let (bytes, inodes, all_inodes) = match &facts.free {
        Ok(free) => *free,
        Err(cause) => return DISK.fail(format!("{at}: {cause}"), "give another place with --data-dir"),
    };
    let other = "give a directory on a local ext4, xfs or btrfs with --data-dir";
    if facts.read_only {
        return DISK.fail(
            format!("{at} is read-only"),
            "mount it writable (after an error: `fsck`), or give another place with --data-dir",
        );
    }
    if UNFIT.contains(&facts.kind.as_str()) {
        return DISK.fail(format!("{at}: containers' layers cannot lie on {}", facts.kind), other);
    }
    let free = format!("{at} has {} free", size(bytes));
    // Some file systems make inodes as they need them, and say 0.
    let few = |bound: u64| all_inodes > 0 && inodes < bound;
    let cure = "free some, or give a larger disk with --data-dir; the node's streams may take 2 GiB, and images come on top";
    if bytes < DISK_FREE_FAIL_BYTES {
        return DISK.fail(format!("{free}, less than {}", size(DISK_FREE_FAIL_BYTES)), cure);
    }
    if few(INODES_FREE_FAIL) {
        return DISK.fail(
            format!("{free}, but only {inodes} inodes"),
            "remove small files, or make the file system with more inodes",
        );
    }
    if FORGETFUL.contains(&facts.kind.as_str()) {
        return DISK
            .warn(format!("{free}, and forgets all at a reboot: the node would have to join again"), other);
    }
    if bytes < DISK_FREE_WARN_BYTES {
        return DISK.warn(format!("{free}, less than {}", size(DISK_FREE_WARN_BYTES)), cure);
    }
    if few(INODES_FREE_WARN) {
        return DISK.warn(
            format!("{free}, but only {inodes} inodes"),
            "remove small files, or make the file system with more inodes",
        );
    }
    DISK.ok(if all_inodes > 0 { format!("{free}, {inodes} inodes") } else { free })
}

/// All and available bytes, from `/proc/meminfo`.
pub fn memory(meminfo: &str) -> Finding {
    let field = |name: &str| {
        let rest = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        rest.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
    };
    let Some((total, free)) = field("MemTotal").zip(field("MemAvailable")) else {
        return MEMORY.warn("/proc/meminfo does not say how much there is", "mount /proc");
    };
    let found = format!("{} of {} free", size(free), size(total));
    if total < MEMORY_TOTAL_FAIL_BYTES {
        return MEMORY.fail(
            found,
            "a node takes about 100 MiB before the first pod: use a machine with 512 MiB or more",
        );
    }
    if free < MEMORY_FREE_WARN_BYTES {
        return MEMORY.warn(
            found,
            "stop what is not needed, or add memory or swap: a node takes about 100 MiB before the first pod",
        );
    }
    MEMORY.ok(found)
}

/// In the unit that reads best.
fn size(bytes: u64) -> String {
    match bytes {
        0..GIB => format!("{} MiB", bytes / MIB),
        _ => format!("{}.{} GiB", bytes / GIB, bytes % GIB * 10 / GIB),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    #[test]
    fn a_disk_is_large_enough_and_of_a_fit_kind() {
        let many = 1_000_000;
        for (bytes, inodes, all, kind, read_only, level, words) in [
            (20 * GIB + GIB / 2, many, many, "ext4", false, Level::Ok, "20.5 GiB free, 1000000 inodes"),
            (20 * GIB, 0, 0, "btrfs", false, Level::Ok, "20.0 GiB free"),
            (3 * GIB, many, many, "ext4", false, Level::Warn, "less than 4.0 GiB"),
            (100 * MIB, many, many, "ext4", false, Level::Fail, "100 MiB free, less than 1.0 GiB"),
            (20 * GIB, 40_000, many, "ext4", false, Level::Warn, "only 40000 inodes"),
            (20 * GIB, 0, many, "ext4", false, Level::Fail, "only 0 inodes"),
            (20 * GIB, many, many, "tmpfs", false, Level::Warn, "forgets all"),
            (20 * GIB, many, many, "overlay", false, Level::Fail, "cannot lie on overlay"),
            (20 * GIB, many, many, "nfs4", false, Level::Fail, "cannot lie on nfs4"),
            (20 * GIB, many, many, "ext4", true, Level::Fail, "is read-only"),
        ] {
            let facts = DiskFacts {
                dir: "/var/lib/edgewire".into(),
                looked_at: "/var/lib".into(),
                free: Ok((bytes, inodes, all)),
                kind: kind.into(),
                read_only,
            };
            let finding = disk(&facts);
            assert_eq!(finding.level, level, "{finding:?}");
            assert!(finding.found.contains(words), "{finding:?}");
            assert!(finding.found.contains("to be made in /var/lib, "), "{finding:?}");
        }
    }

    #[test]
    fn the_longest_mount_holds_a_path() {
        let text = "1 0 8:1 / / rw - ext4 /dev/sda rw\n2 1 8:2 / /var/lib rw - xfs /dev/sdb rw\n\
                    3 1 8:3 / /var/lib ro - btrfs /dev/sdc rw\n4 1 8:4 / /var/li rw - tmpfs x rw\n";
        let kind = |path: &str| under(text, Path::new(path)).map(|mount| (mount.kind, mount.read_only()));
        assert_eq!(kind("/var/lib/edgewire"), Some(("btrfs", true)));
        assert_eq!(kind("/var/log"), Some(("ext4", false)));
        assert_eq!(kind("relative"), None);
    }

    #[test]
    fn a_directory_that_is_not_there_is_not_made() {
        let dir = tempfile::tempdir().unwrap();
        let facts = DiskFacts::read(&dir.path().join("a/b"));
        assert_eq!(facts.looked_at, dir.path().canonicalize().unwrap());
        assert!(facts.free.unwrap().0 > 0 && !facts.kind.is_empty());
        assert!(!dir.path().join("a").exists());
    }

    #[test]
    fn memory_is_what_is_available() {
        let info = |total: u64, free: u64| {
            format!("MemTotal: {total} kB\nMemFree: 1 kB\nMemAvailable:   {free} kB\n")
        };
        for (info, level, words) in [
            (info(2_097_152, 1_048_576), Level::Ok, "1.0 GiB of 2.0 GiB free"),
            (info(2_097_152, 102_400), Level::Warn, "100 MiB of 2.0 GiB"),
            (info(131_072, 65_536), Level::Fail, "64 MiB of 128 MiB"),
            (String::new(), Level::Warn, "does not say"),
        ] {
            let finding = memory(&info);
            assert!(finding.level == level && finding.found.contains(words), "{finding:?}");
        }
    }
}
