//! Control groups: which version, and whether the controllers are there by which a pod's memory, CPU and processes are
//! bounded.

use super::finding::{Check, Finding};

const CGROUP: Check = Check("EW-CHECK-CGROUP", "cgroup");

/// Without these a container does not start, or its limits are not kept.
const NEEDED: [&str; 3] = ["memory", "cpu", "pids"];
const ROOT: &str = "/sys/fs/cgroup";

/// What the kernel says.
#[derive(Debug, Clone, Default)]
pub struct CgroupFacts {
    /// `/proc/self/mountinfo`.
    pub mounts: String,
    /// `/sys/fs/cgroup/cgroup.controllers`; empty without version 2 there.
    pub controllers: String,
}

impl CgroupFacts {
    /// Reads them.
    pub fn read() -> Self {
        let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        Self { mounts: text("/proc/self/mountinfo"), controllers: text("/sys/fs/cgroup/cgroup.controllers") }
    }
}

/// One line of mountinfo (proc(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount<'a> {
    /// Where.
    pub point: &'a str,
    /// Options of this mount, then of the file system.
    pub options: [&'a str; 2],
    /// Its type.
    pub kind: &'a str,
}

impl Mount<'_> {
    /// Is it read-only?
    pub fn read_only(&self) -> bool {
        self.options.iter().any(|options| options.split(',').any(|option| option == "ro"))
    }
}

/// All lines of mountinfo.
pub fn mounts(text: &str) -> impl Iterator<Item = Mount<'_>> {
    text.lines().filter_map(|line| {
        let (own, system) = line.split_once(" - ")?;
        let (mut own, mut system) = (own.split(' ').skip(4), system.split(' '));
        let (point, options) = (own.next()?, own.next()?);
        let (kind, system_options) = (system.next()?, system.nth(1)?);
        Some(Mount { point, options: [options, system_options], kind })
    })
}

/// Judges them.
pub fn judge(facts: &CgroupFacts) -> Finding {
    let all: Vec<Mount<'_>> = mounts(&facts.mounts).collect();
    let cure_lack = |lacking: &[&str]| {
        if lacking.contains(&"memory") {
            "add `cgroup_enable=memory` to the kernel's command line (Raspberry Pi: /boot/firmware/cmdline.txt) \
             and reboot"
                .to_owned()
        } else {
            format!("boot a kernel with the cgroup controllers {}", lacking.join(", "))
        }
    };
    let writable_cure =
        "in a container: run it with `--privileged --cgroupns=host`; else `mount -o remount,rw`";
    let lacking =
        |has: &dyn Fn(&str) -> bool| -> Vec<&str> { NEEDED.into_iter().filter(|name| !has(name)).collect() };
    if let Some(unified) = all.iter().rev().find(|mount| mount.point == ROOT && mount.kind == "cgroup2") {
        let lacking = lacking(&|name| facts.controllers.split_whitespace().any(|there| there == name));
        return match (unified.read_only(), lacking.is_empty()) {
            (true, _) => CGROUP.fail("version 2, mounted read-only", writable_cure),
            (_, false) => {
                CGROUP.fail(format!("version 2 without {}", lacking.join(", ")), cure_lack(&lacking))
            }
            _ => CGROUP.ok(format!("version 2 with {}", NEEDED.join(", "))),
        };
    }
    let v1: Vec<&Mount<'_>> = all.iter().filter(|mount| mount.kind == "cgroup").collect();
    if v1.is_empty() {
        return CGROUP.fail(
            format!("no cgroup is mounted at {ROOT}"),
            format!("`mount -t cgroup2 none {ROOT}`, which systemd does at boot"),
        );
    }
    let of = |name: &str| {
        v1.iter().find(|mount| mount.options.iter().any(|all| all.split(',').any(|option| option == name)))
    };
    let lacking = lacking(&|name| of(name).is_some());
    let closed: Vec<&str> =
        NEEDED.into_iter().filter(|name| of(name).is_some_and(|mount| mount.read_only())).collect();
    match (lacking.is_empty(), closed.is_empty()) {
        (false, _) => CGROUP.fail(format!("version 1 without {}", lacking.join(", ")), cure_lack(&lacking)),
        (_, false) => CGROUP.fail(format!("version 1, read-only: {}", closed.join(", ")), writable_cure),
        _ => CGROUP.ok(format!("version 1 with {}; version 2 is served as well", NEEDED.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    #[test]
    fn both_versions_are_known_and_what_they_lack() {
        let v2 = |options: &str| {
            format!("30 23 0:26 / {ROOT} {options} shared:4 - cgroup2 cgroup2 rw,nsdelegate\n")
        };
        let v1 = |name: &str| format!("31 30 0:27 / {ROOT}/{name} rw,nosuid - cgroup cgroup rw,{name}\n");
        let tmpfs = format!("30 23 0:26 / {ROOT} ro - tmpfs tmpfs ro,mode=755\n");
        let hybrid = format!("39 30 0:30 / {ROOT}/unified rw - cgroup2 cgroup2 rw\n");
        let three = [v1("memory"), v1("cpu,cpuacct"), v1("pids")].concat();
        let unchanged = three.clone();
        for (mounts, controllers, level, words) in [
            (v2("rw,nosuid"), "cpuset cpu io memory pids", Level::Ok, "version 2 with memory, cpu, pids"),
            (v2("rw"), "cpuset cpu io pids", Level::Fail, "version 2 without memory"),
            (v2("ro"), "cpuset cpu io memory pids", Level::Fail, "read-only"),
            (tmpfs.clone() + &three + &hybrid, "", Level::Ok, "version 1 with"),
            (tmpfs.clone() + &v1("cpu") + &v1("memory"), "", Level::Fail, "version 1 without pids"),
            (unchanged.replace("pids rw,", "pids ro,"), "", Level::Fail, "version 1, read-only: pids"),
            (tmpfs, "", Level::Fail, "no cgroup is mounted"),
            (String::new(), "", Level::Fail, "no cgroup is mounted"),
        ] {
            let finding = judge(&CgroupFacts { mounts, controllers: controllers.into() });
            assert_eq!(finding.level, level, "{finding:?}");
            assert!(finding.found.contains(words), "{finding:?}");
        }
        let pi = judge(&CgroupFacts { mounts: v2("rw"), controllers: "cpu pids".into() });
        assert!(pi.cure.contains("cgroup_enable=memory"), "{pi:?}");
    }

    #[test]
    fn what_is_no_mount_is_passed_over() {
        assert_eq!(mounts("\n1 2 3\n - \n1 2 3:4 / /x rw - ext4\n").count(), 0);
    }
}
