//! A pod's volumes as directories of the node, and the pod's own /etc files.
//!
//! `emptyDir`, `hostPath`, `configMap` and `secret` are served. The last two are written as kubelet does it: the files
//! stand in a directory of their own, `..data` is a symlink to it and is replaced by one rename, so a running pod sees
//! the old set or the new set and never a mixture. The directory is named by its content: writing the same again
//! changes nothing. All of it lies under a directory that only root may enter.
//!
//! Source: Kubernetes `pkg/volume/util/atomic_writer.go` (the layout, not the code).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, HostPathVolumeSource, KeyToPath, Pod, Volume};
use sha2::{Digest, Sha256};

use crate::referenced::{Data, Referenced};
use crate::runtime::RuntimeError;
use crate::runtime::spec::BindMount;

/// Mode of files that say nothing else.
const DEFAULT_MODE: u32 = 0o644;
/// The name that containers' paths go through.
const DATA_LINK: &str = "..data";

fn config(message: impl Into<String>) -> RuntimeError {
    RuntimeError::Config { message: message.into() }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> RuntimeError {
    RuntimeError::io(format!("write {}", path.display()))
}

fn volume_dir(pod_dir: &Path, volume: &str) -> PathBuf {
    pod_dir.join("volumes").join(volume)
}

/// Makes all volumes of a pod, or brings the content of ConfigMaps and Secrets up to date. Blocking.
pub fn prepare(pod: &Pod, pod_dir: &Path, referenced: &Referenced) -> Result<(), RuntimeError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(pod_dir).map_err(at(pod_dir))?;
    for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        prepare_volume(volume, pod_dir, referenced)?;
    }
    Ok(())
}

fn prepare_volume(volume: &Volume, pod_dir: &Path, referenced: &Referenced) -> Result<(), RuntimeError> {
    let name = &volume.name;
    let dir = volume_dir(pod_dir, name);
    if let Some(source) = &volume.config_map {
        let found = referenced.config_maps.get(&source.name);
        let optional = source.optional.unwrap_or(false);
        let files = files_of(
            "configmap",
            &source.name,
            found,
            optional,
            source.items.as_deref(),
            source.default_mode,
        )?;
        return write_atomically(&dir, &files).map_err(at(&dir));
    }
    if let Some(source) = &volume.secret {
        let secret = source.secret_name.clone().unwrap_or_default();
        let found = referenced.secrets.get(&secret);
        let optional = source.optional.unwrap_or(false);
        let files =
            files_of("secret", &secret, found, optional, source.items.as_deref(), source.default_mode)?;
        return write_atomically(&dir, &files).map_err(at(&dir));
    }
    if let Some(source) = &volume.host_path {
        return prepare_host_path(name, source);
    }
    if let Some(source) = &volume.empty_dir {
        fs::create_dir_all(&dir).map_err(at(&dir))?;
        let size = source.size_limit.as_ref().and_then(|q| schemas::quantity::units(&q.0));
        if source.medium.as_deref() == Some("Memory") && !is_tmpfs_mount(&dir) {
            let size = size.map(|bytes| format!("size={bytes}"));
            nix::mount::mount(
                Some("tmpfs"),
                &dir,
                Some("tmpfs"),
                nix::mount::MsFlags::empty(),
                size.as_deref(),
            )
            .map_err(|e| at(&dir)(e.into()))?;
        }
        return fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).map_err(at(&dir));
    }
    Err(config(format!(
        "volume \"{name}\": use emptyDir, hostPath, configMap or secret; others are not served yet"
    )))
}

fn is_tmpfs(path: &Path) -> bool {
    nix::sys::statfs::statfs(path).is_ok_and(|fs| fs.filesystem_type() == nix::sys::statfs::TMPFS_MAGIC)
}

fn prepare_host_path(name: &str, source: &HostPathVolumeSource) -> Result<(), RuntimeError> {
    let path = Path::new(&source.path);
    let wrong = |what: &str| config(format!("volume \"{name}\": hostPath {} {what}", source.path));
    match source.type_.as_deref().unwrap_or("") {
        "" => Ok(()),
        "DirectoryOrCreate" => fs::create_dir_all(path).map_err(at(path)),
        "FileOrCreate" if !path.exists() => fs::File::create(path).map(drop).map_err(at(path)),
        "FileOrCreate" | "File" if path.is_file() => Ok(()),
        "Directory" if path.is_dir() => Ok(()),
        "File" | "FileOrCreate" => Err(wrong("is not a file")),
        "Directory" => Err(wrong("is not a directory")),
        "Socket" | "CharDevice" | "BlockDevice" if path.exists() => Ok(()),
        _ => Err(wrong("does not exist")),
    }
}

/// Path below the volume -> content and mode.
type Files = BTreeMap<String, (bytes::Bytes, u32)>;

fn files_of(
    kind: &str,
    name: &str,
    data: Option<&Data>,
    optional: bool,
    items: Option<&[KeyToPath]>,
    default_mode: Option<i32>,
) -> Result<Files, RuntimeError> {
    let mode = default_mode.and_then(|m| u32::try_from(m).ok()).unwrap_or(DEFAULT_MODE);
    let mut out = Files::new();
    let Some(data) = data else {
        return if optional { Ok(out) } else { Err(config(format!("{kind} \"{name}\" not found"))) };
    };
    let Some(items) = items else {
        out.extend(data.iter().map(|(key, value)| (key.clone(), (value.clone(), mode))));
        return Ok(out);
    };
    for item in items {
        if !is_below(&item.path) {
            return Err(config(format!("{kind} \"{name}\": item path {:?} leaves the volume", item.path)));
        }
        let mode = item.mode.and_then(|m| u32::try_from(m).ok()).unwrap_or(mode);
        match data.get(&item.key) {
            Some(value) => drop(out.insert(item.path.clone(), (value.clone(), mode))),
            None if optional => {}
            None => {
                return Err(config(format!("{kind} \"{name}\" references non-existent key: {}", item.key)));
            }
        }
    }
    Ok(out)
}

/// A relative path that does not climb and does not take the names that are ours.
fn is_below(path: &str) -> bool {
    !path.is_empty()
        && !path.starts_with("..")
        && Path::new(path).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

fn content_name(files: &Files) -> String {
    let mut hash = Sha256::new();
    for (path, (bytes, mode)) in files {
        for part in [path.as_bytes(), &mode.to_le_bytes(), bytes] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
    }
    let hash = crate::runtime::image::data_hex(&hash.finalize());
    format!("..{}", hash.get(..16).unwrap_or(&hash))
}

fn write_atomically(dir: &Path, files: &Files) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let name = content_name(files);
    let link = dir.join(DATA_LINK);
    let old = fs::read_link(&link).ok();
    if old.as_deref() == Some(Path::new(&name)) {
        return Ok(());
    }
    let new = dir.join(&name);
    if new.exists() {
        fs::remove_dir_all(&new)?;
    }
    fs::create_dir(&new)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755))?;
    for (path, (bytes, mode)) in files {
        let file = new.join(path);
        if let Some(parent) = file.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&file, bytes)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(*mode))?;
    }
    let next = dir.join("..data_next");
    if fs::symlink_metadata(&next).is_ok() {
        fs::remove_file(&next)?;
    }
    symlink(&name, &next)?;
    // The one step that readers see.
    fs::rename(&next, &link)?;
    link_names(dir, files)?;
    match old {
        Some(old) => fs::remove_dir_all(dir.join(old)).or_else(|e| match e.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(e),
        }),
        None => Ok(()),
    }
}

/// `name -> ..data/name` for every name at the top, and none for those that are gone.
fn link_names(dir: &Path, files: &Files) -> io::Result<()> {
    let top = |path: &str| path.split('/').next().unwrap_or("").to_owned();
    let names: std::collections::BTreeSet<String> = files.keys().map(|path| top(path)).collect();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("..") && !names.contains(&name) {
            fs::remove_file(entry.path())?;
        }
    }
    for name in names {
        let path = dir.join(&name);
        if fs::symlink_metadata(&path).is_err() {
            symlink(Path::new(DATA_LINK).join(&name), &path)?;
        }
    }
    Ok(())
}

/// What a container sees of the pod's volumes.
pub fn mounts(pod: &Pod, container: &Container, pod_dir: &Path) -> Result<Vec<BindMount>, RuntimeError> {
    let volumes = || pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let mut out = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        let volume = volumes().find(|volume| volume.name == mount.name).ok_or_else(|| {
            config(format!(
                "container \"{}\" mounts volume \"{}\", which the pod does not have",
                container.name, mount.name
            ))
        })?;
        let mut source = match &volume.host_path {
            Some(host) => PathBuf::from(&host.path),
            None => volume_dir(pod_dir, &volume.name),
        };
        if let Some(sub) = mount.sub_path.as_deref().filter(|sub| !sub.is_empty()) {
            if !is_below(sub) {
                return Err(config(format!(
                    "subPath {sub:?} of volume \"{}\" leaves the volume",
                    mount.name
                )));
            }
            source = source.join(sub);
            if !source.exists() && (volume.empty_dir.is_some() || volume.host_path.is_some()) {
                fs::create_dir_all(&source).map_err(at(&source))?;
            }
        }
        let of_api = volume.config_map.is_some() || volume.secret.is_some();
        out.push(BindMount {
            source,
            destination: mount.mount_path.clone(),
            read_only: of_api || mount.read_only.unwrap_or(false),
        });
    }
    Ok(out)
}

/// The pod's /etc/hosts, /etc/hostname and /etc/resolv.conf. Blocking.
pub fn etc_files(
    pod: &Pod,
    pod_dir: &Path,
    hostname: &str,
    pod_ip: &str,
    node_resolv_conf: &Path,
) -> Result<Vec<BindMount>, RuntimeError> {
    let dir = pod_dir.join("etc");
    fs::create_dir_all(&dir).map_err(at(&dir))?;
    let spec = pod.spec.as_ref();
    let host_network = spec.and_then(|s| s.host_network).unwrap_or(false);
    let mut hosts = if host_network {
        fs::read_to_string("/etc/hosts").unwrap_or_default()
    } else {
        format!(
            "# made by Edgewire\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{pod_ip}\t{hostname}\n"
        )
    };
    for alias in spec.iter().flat_map(|s| s.host_aliases.iter().flatten()) {
        let names = alias.hostnames.clone().unwrap_or_default().join("\t");
        hosts.push_str(&format!("{}\t{names}\n", alias.ip));
    }
    let mut files = vec![("hosts", hosts), ("resolv.conf", resolv_conf(pod, node_resolv_conf))];
    if !host_network {
        files.push(("hostname", format!("{hostname}\n")));
    }
    let mut out = Vec::new();
    for (name, text) in files {
        let source = dir.join(name);
        // In place: the file may be mounted in containers of the pod that run already.
        if fs::read_to_string(&source).ok().as_ref() != Some(&text) {
            fs::write(&source, text).map_err(at(&source))?;
        }
        out.push(BindMount { source, destination: format!("/etc/{name}"), read_only: false });
    }
    Ok(out)
}

/// `dnsConfig` over the node's own.
fn resolv_conf(pod: &Pod, node: &Path) -> String {
    let spec = pod.spec.as_ref();
    let own = spec.and_then(|s| s.dns_config.as_ref());
    let none = spec.and_then(|s| s.dns_policy.as_deref()) == Some("None");
    let mut out = if none { String::new() } else { fs::read_to_string(node).unwrap_or_default() };
    if !out.is_empty() && !out.ends_with('\n') {
        out.push('\n');
    }
    let Some(own) = own else { return out };
    for server in own.nameservers.iter().flatten() {
        out.push_str(&format!("nameserver {server}\n"));
    }
    if let Some(searches) = own.searches.as_ref().filter(|s| !s.is_empty()) {
        out.push_str(&format!("search {}\n", searches.join(" ")));
    }
    for option in own.options.iter().flatten() {
        let name = option.name.clone().unwrap_or_default();
        let value = option.value.as_ref().map(|v| format!(":{v}")).unwrap_or_default();
        out.push_str(&format!("options {name}{value}\n"));
    }
    out
}

/// Removes a pod's directory with all its volumes; what `hostPath` points to stays. Blocking.
pub fn remove(pod_dir: &Path) -> Result<(), RuntimeError> {
    let failed = |e: io::Error| RuntimeError::io(format!("remove {}", pod_dir.display()))(e);
    for entry in fs::read_dir(pod_dir.join("volumes")).into_iter().flatten().flatten() {
        let path = entry.path();
        // Never walk into a file system that something else is mounted from: unmount first.
        while is_tmpfs_mount(&path) {
            nix::mount::umount2(&path, nix::mount::MntFlags::MNT_DETACH).map_err(|e| failed(e.into()))?;
        }
    }
    match fs::remove_dir_all(pod_dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
        _ => Ok(()),
    }
}

/// Is `path` the root of a tmpfs of its own (not just on one)?
fn is_tmpfs_mount(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| fs::metadata(path).map(|m| m.dev()).ok();
    is_tmpfs(path) && path.parent().is_some_and(|parent| device(parent) != device(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(volumes: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"spec": {"volumes": volumes, "containers": []}})).unwrap()
    }

    fn with_config_map(data: serde_json::Value) -> Referenced {
        let mut referenced = Referenced::default();
        let object = json!({"data": data}).try_into().unwrap();
        referenced.config_maps.insert("cm".into(), crate::referenced::data_of("configmaps", &object));
        referenced
    }

    #[test]
    fn an_edit_reaches_the_files_at_once_and_together() {
        let dir = tempfile::tempdir().unwrap();
        let pod = pod(json!([{"name": "v", "configMap": {"name": "cm"}}]));
        prepare(&pod, dir.path(), &with_config_map(json!({"a": "1", "b": "1"}))).unwrap();
        let volume = dir.path().join("volumes/v");
        let read = |name: &str| fs::read_to_string(volume.join(name)).ok();
        assert_eq!((read("a"), read("b")), (Some("1".into()), Some("1".into())));
        let before = fs::read_link(volume.join("..data")).unwrap();
        prepare(&pod, dir.path(), &with_config_map(json!({"a": "1", "b": "1"}))).unwrap();
        assert_eq!(fs::read_link(volume.join("..data")).unwrap(), before, "nothing changed, nothing written");
        prepare(&pod, dir.path(), &with_config_map(json!({"a": "2", "c": "2"}))).unwrap();
        assert_eq!((read("a"), read("b"), read("c")), (Some("2".into()), None, Some("2".into())));
        assert_eq!(fs::read_dir(&volume).unwrap().count(), 4, "a, c, ..data and one directory");
    }

    #[test]
    fn items_modes_and_optional_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let items = pod(json!([
            {"name": "v", "configMap": {"name": "cm", "defaultMode": 0o400, "items": [{"key": "a", "path": "d/x"}]}},
            {"name": "none", "secret": {"secretName": "no", "optional": true}},
            {"name": "e", "emptyDir": {}}
        ]));
        prepare(&items, dir.path(), &with_config_map(json!({"a": "1", "b": "1"}))).unwrap();
        let file = dir.path().join("volumes/v/d/x");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o400);
        assert!(!dir.path().join("volumes/v/b").exists());
        let error =
            |volume| prepare(&pod(json!([volume])), dir.path(), &with_config_map(json!({}))).unwrap_err();
        let missing = error(json!({"name": "v", "secret": {"secretName": "no"}}));
        assert_eq!(missing.to_string(), "secret \"no\" not found");
        assert_eq!(missing.reason(), "CreateContainerConfigError");
        assert!(
            error(json!({"name": "v", "configMap": {"name": "cm", "items": [{"key": "a", "path": "../x"}]}}))
                .to_string()
                .contains("leaves the volume")
        );
        remove(dir.path()).unwrap();
    }
}
