//! Who a container runs as: the pod's securityContext over the image's `User`. Names are looked up in the image's own
//! /etc/passwd and /etc/group, for which its root file system is mounted for a moment.

use std::path::{Path, PathBuf};

use containerd_client::types::Mount;
use k8s_openapi::api::core::v1::{Container, Pod};
use nix::mount::MsFlags;

use super::RuntimeError;
use super::image::blocking;
use super::spec::User;

/// The largest passwd or group file that is read.
const FILE_MAX_BYTES: u64 = 1024 * 1024;

/// Stands in until the image has been asked.
pub(super) const UNKNOWN: User = User { uid: 65534, gid: 65534, additional_gids: Vec::new() };

/// Who it runs as, when that can be said without looking into the image.
pub(super) fn known(pod: &Pod, container: &Container, image_user: &str) -> Option<User> {
    let of_pod = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    let own = container.security_context.as_ref().and_then(|c| c.run_as_user);
    let user = match own.or(of_pod.and_then(|c| c.run_as_user)) {
        Some(uid) => User { uid: u32::try_from(uid).ok()?, ..User::default() },
        None => {
            let (name, group) = image_user.split_once(':').unwrap_or((image_user, ""));
            User { uid: number(name)?, gid: number(group)?, additional_gids: Vec::new() }
        }
    };
    Some(with_groups(user, pod, container))
}

fn number(text: &str) -> Option<u32> {
    if text.is_empty() || text == "root" { Some(0) } else { text.parse().ok() }
}

fn with_groups(mut user: User, pod: &Pod, container: &Container) -> User {
    let of_pod = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    let own = container.security_context.as_ref().and_then(|c| c.run_as_group);
    let id = |n: i64| u32::try_from(n).ok();
    if let Some(gid) = own.or(of_pod.and_then(|c| c.run_as_group)).and_then(id) {
        user.gid = gid;
    }
    let more = of_pod.and_then(|c| c.supplemental_groups.clone()).unwrap_or_default();
    user.additional_gids.extend(more.into_iter().chain(of_pod.and_then(|c| c.fs_group)).filter_map(id));
    user
}

/// Who it runs as by the image's own files; its root file system is mounted at `at` for that.
pub(super) async fn look_up(
    pod: &Pod,
    container: &Container,
    image_user: &str,
    rootfs: &[Mount],
    at: PathBuf,
) -> Result<User, RuntimeError> {
    let (wanted, mounts) = (image_user.to_owned(), rootfs.to_vec());
    let found = blocking(move || {
        let (passwd, group) = read_files(&mounts, &at)?;
        Ok(parse(&wanted, &passwd, &group))
    })
    .await
    .map_err(RuntimeError::io(format!("look up user {image_user} in the image")))?;
    let user = found.ok_or_else(|| RuntimeError::Config {
        message: format!("the image's user {image_user} is not in its /etc/passwd: set runAsUser"),
    })?;
    Ok(with_groups(user, pod, container))
}

fn read_files(mounts: &[Mount], at: &Path) -> std::io::Result<(String, String)> {
    use std::io::Read;
    std::fs::create_dir_all(at)?;
    let mut mounted = 0;
    let result = (|| {
        for mount in mounts {
            let bind = mount.options.iter().any(|o| o == "bind" || o == "rbind");
            let data: Vec<&str> = mount
                .options
                .iter()
                .map(String::as_str)
                .filter(|o| !["bind", "rbind", "rw", "ro"].contains(o))
                .collect();
            let flags = if bind { MsFlags::MS_BIND } else { MsFlags::MS_RDONLY };
            let data = data.join(",");
            nix::mount::mount(
                Some(mount.source.as_str()),
                at,
                Some(mount.r#type.as_str()),
                flags,
                Some(data.as_str()),
            )?;
            mounted += 1;
        }
        let read = |name: &str| -> String {
            // A link would be followed on the node, not in the image: only plain files are read.
            let path = at.join("etc").join(name);
            let plain = std::fs::symlink_metadata(&path).is_ok_and(|m| m.is_file())
                && std::fs::symlink_metadata(at.join("etc")).is_ok_and(|m| m.is_dir());
            let mut text = String::new();
            if plain {
                let file = std::fs::File::open(&path);
                let _ = file.and_then(|f| f.take(FILE_MAX_BYTES).read_to_string(&mut text));
            }
            text
        };
        Ok((read("passwd"), read("group")))
    })();
    for _ in 0..mounted {
        nix::mount::umount2(at, nix::mount::MntFlags::MNT_DETACH)?;
    }
    std::fs::remove_dir(at)?;
    result
}

fn parse(wanted: &str, passwd: &str, group: &str) -> Option<User> {
    let (name, group_name) = wanted.split_once(':').unwrap_or((wanted, ""));
    let line = |text: &str, name: &str| -> Option<Vec<String>> {
        let fields = text.lines().map(|line| line.split(':').map(str::to_owned).collect::<Vec<_>>());
        fields.into_iter().find(|fields| fields.first().is_some_and(|first| first == name))
    };
    let id = |fields: &[String], at: usize| fields.get(at).and_then(|n| n.parse::<u32>().ok());
    let mut user = match name.parse::<u32>() {
        Ok(uid) => User { uid, ..User::default() },
        Err(_) => {
            let fields = line(passwd, name)?;
            User { uid: id(&fields, 2)?, gid: id(&fields, 3)?, additional_gids: Vec::new() }
        }
    };
    if !group_name.is_empty() {
        user.gid = match group_name.parse() {
            Ok(gid) => gid,
            Err(_) => id(&line(group, group_name)?, 2)?,
        };
    }
    Some(user)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_looked_up_in_the_images_files() {
        let passwd = "root:x:0:0::/:/bin/sh\nweb:x:101:102::/:/bin/sh\n";
        let group = "adm:x:7:\n";
        let user = |uid, gid| Some(User { uid, gid, additional_gids: Vec::new() });
        assert_eq!(parse("web", passwd, group), user(101, 102));
        assert_eq!(parse("web:adm", passwd, group), user(101, 7));
        assert_eq!(parse("5:adm", passwd, group), user(5, 7));
        assert_eq!(parse("nobody", passwd, group), None);
    }

    #[test]
    fn users_are_read_whatever_the_image_holds() {
        let samples = [b"web:adm|web:x:101:102::/:/bin/sh\n|adm:x:7:\n".to_vec(), b"5:6||".to_vec()];
        crate::fuzz::try_bytes("an image's users", &samples, |bytes| {
            let text = String::from_utf8_lossy(bytes);
            let mut parts = text.splitn(3, '|').map(str::to_owned);
            let mut part = || parts.next().unwrap_or_default();
            parse(&part(), &part(), &part());
        });
    }
}
