//! What we look at in cgroups ourselves, v1 and v2 alike; the rest is runc's.

use std::path::Path;

use super::Runtime;

impl Runtime {
    /// Removes the cgroup that all ours stand in, when nothing is left in it.
    pub fn remove_cgroup_parent(&self) {
        let parent = self.config.cgroup_parent.trim_start_matches('/');
        let root = Path::new("/sys/fs/cgroup");
        let controllers = std::fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
        for dir in controllers.chain([root.to_owned()]) {
            // Not there, or still in use: both are fine.
            let _ = std::fs::remove_dir(dir.join(parent));
        }
    }
}

/// Did the kernel kill something in this cgroup for want of memory? Knows cgroup v1 and v2.
pub(super) fn was_oom_killed(cgroup: &str) -> bool {
    let path = cgroup.trim_start_matches('/');
    let files = [
        Path::new("/sys/fs/cgroup/memory").join(path).join("memory.oom_control"),
        Path::new("/sys/fs/cgroup").join(path).join("memory.events"),
    ];
    let count = |text: String| {
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill ").map(str::to_owned));
        line.and_then(|n| n.trim().parse::<u64>().ok()).unwrap_or(0)
    };
    files.iter().any(|file| std::fs::read_to_string(file).map(count).unwrap_or(0) > 0)
}
