//! Images that are in containerd: what a container needs to know of one, and its layers as snapshots.
//!
//! Everything stored is labelled the way containerd's own client labels it (`containerd.io/gc.ref.*`), so its garbage
//! collector keeps it. How images come in: [`super::import`]. Source: OCI image-spec 1.0.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
};
use containerd_client::services::v1::{
    ApplyRequest, CreateRequest as CreateLease, DeleteImageRequest, DeleteRequest as DeleteLease,
    GetImageRequest, Info, InfoRequest, ListImagesRequest, ReadContentRequest, UpdateRequest,
};
use containerd_client::types::{Descriptor, Mount};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tonic::Code;

use super::{Runtime, RuntimeError, refused, tolerate};

/// The largest manifest or image config that is read.
pub(super) const DOCUMENT_MAX_BYTES: u64 = 4 * 1024 * 1024;
/// How deep indexes may point to indexes.
pub(super) const INDEX_DEPTH_MAX: usize = 4;
/// An import that dies leaves its lease so long.
const LEASE_HOURS: i64 = 1;

const INDEX_OCI: &str = "application/vnd.oci.image.index.v1+json";
const INDEX_DOCKER: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// What an image says about how to run it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// `Entrypoint`.
    pub entrypoint: Vec<String>,
    /// `Cmd`.
    pub cmd: Vec<String>,
    /// `Env`, as `NAME=value`.
    pub env: Vec<String>,
    /// `WorkingDir`.
    pub working_dir: String,
    /// `User`: `uid`, `uid:gid` or names.
    pub user: String,
}

/// An image that is on the node.
#[derive(Debug, Clone)]
pub struct Image {
    /// In full: `docker.io/library/busybox:latest`.
    pub name: String,
    /// Digest of its config: Kubernetes' `imageID`.
    pub id: String,
    /// How to run it.
    pub config: ImageConfig,
    config_digest: String,
    layers: Vec<Descriptor>,
    diff_ids: Vec<String>,
}

#[derive(Deserialize)]
pub(super) struct OciDescriptor {
    #[serde(rename = "mediaType", default)]
    pub(super) media_type: String,
    pub(super) digest: String,
    pub(super) size: i64,
    #[serde(default)]
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) platform: Option<Platform>,
}

#[derive(Deserialize)]
pub(super) struct Platform {
    pub(super) architecture: String,
    pub(super) os: String,
}

#[derive(Deserialize)]
pub(super) struct Index {
    #[serde(default)]
    pub(super) manifests: Vec<OciDescriptor>,
}

#[derive(Deserialize)]
pub(super) struct Manifest {
    pub(super) config: OciDescriptor,
    pub(super) layers: Vec<OciDescriptor>,
}

#[derive(Deserialize)]
struct ConfigDocument {
    #[serde(default)]
    config: Option<ConfigSection>,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct ConfigSection {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
}

/// A reference in full, as containerd stores it: `busybox` is `docker.io/library/busybox:latest`.
pub fn full_name(reference: &str) -> String {
    let (first, has_slash) = match reference.split_once('/') {
        Some((first, _)) => (first, true),
        None => (reference, false),
    };
    let is_host = has_slash && (first.contains(['.', ':']) || first == "localhost");
    let mut name = match (is_host, has_slash) {
        (true, _) => reference.to_owned(),
        (false, true) => format!("docker.io/{reference}"),
        (false, false) => format!("docker.io/library/{reference}"),
    };
    let last = name.rsplit('/').next().unwrap_or("");
    if !last.contains([':', '@']) {
        name.push_str(":latest");
    }
    name
}

/// The name of the snapshot that a stack of layers makes (OCI image-spec, "Layer ChainID").
fn chain_ids(diff_ids: &[String]) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for diff_id in diff_ids {
        let chain = match out.last() {
            None => diff_id.clone(),
            Some(parent) => sha256_of(format!("{parent} {diff_id}").as_bytes()),
        };
        out.push(chain);
    }
    out
}

pub(super) fn sha256_of(bytes: &[u8]) -> String {
    format!("sha256:{}", data_hex(&Sha256::digest(bytes)))
}

pub(crate) fn data_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

impl Runtime {
    pub(super) async fn lease(&self, what: &str) -> Result<String, RuntimeError> {
        let id = format!("edgewire-import-{}", data_hex(Sha256::digest(what).get(..8).unwrap_or_default()));
        let expires = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(LEASE_HOURS);
        let labels = HashMap::from([("containerd.io/gc.expire".to_owned(), expires.to_string())]);
        let made = self.client.leases().create(self.call(CreateLease { id: id.clone(), labels })).await;
        tolerate(made, Code::AlreadyExists, "take a lease")?;
        Ok(id)
    }

    pub(super) fn leased<T>(&self, body: T, lease: &str) -> tonic::Request<T> {
        let mut request = self.copy_call(body);
        if let Ok(value) = lease.parse() {
            request.metadata_mut().insert("containerd-lease", value);
        }
        request
    }

    /// The image of that name, unpacked and ready to make containers of.
    pub async fn image(&self, reference: &str, pull_policy: &str) -> Result<Image, RuntimeError> {
        let image = self.read_image(reference).await.map_err(|error| match error {
            _ if !error.is_not_found() => error,
            _ if pull_policy == "Never" => RuntimeError::ImageNeverPull { image: full_name(reference) },
            _ => RuntimeError::ImageAbsent { image: full_name(reference) },
        })?;
        self.unpack(&image).await?;
        Ok(image)
    }

    /// Names of all images on the node.
    pub async fn images(&self) -> Result<Vec<String>, RuntimeError> {
        let list = self.client.images().list(self.call(ListImagesRequest { filters: Vec::new() })).await;
        Ok(list.map_err(refused("list images"))?.into_inner().images.into_iter().map(|i| i.name).collect())
    }

    /// Forgets an image; its layers go with containerd's next garbage collection.
    pub async fn remove_image(&self, name: &str) -> Result<(), RuntimeError> {
        let request = DeleteImageRequest { name: full_name(name), sync: true, target: None };
        let gone = self.client.images().delete(self.call(request)).await;
        tolerate(gone, Code::NotFound, format!("remove image {name}")).map(drop)
    }

    pub(super) async fn read_image(&self, reference: &str) -> Result<Image, RuntimeError> {
        let name = full_name(reference);
        let invalid =
            |message: &str| RuntimeError::ImageInvalid { image: name.clone(), message: message.to_owned() };
        let found = self.client.images().get(self.call(GetImageRequest { name: name.clone() })).await;
        let found = found.map_err(refused(format!("find image {name}")))?.into_inner().image;
        let target = found.and_then(|image| image.target).ok_or_else(|| invalid("it points to nothing"))?;
        let bytes = self.manifest_of(&name, target).await?;
        let manifest: Manifest = parse(&name, "its manifest", &bytes)?;
        let config: ConfigDocument =
            parse(&name, "its config", &self.content(&name, &manifest.config.digest).await?)?;
        if config.rootfs.diff_ids.len() != manifest.layers.len() {
            return Err(invalid("its config and its manifest disagree about its layers"));
        }
        let section = config.config.unwrap_or_default();
        let layer = |l: OciDescriptor| Descriptor {
            media_type: l.media_type,
            digest: l.digest,
            size: l.size,
            annotations: HashMap::new(),
        };
        Ok(Image {
            id: manifest.config.digest.clone(),
            config: ImageConfig {
                entrypoint: section.entrypoint.unwrap_or_default(),
                cmd: section.cmd.unwrap_or_default(),
                env: section.env.unwrap_or_default(),
                working_dir: section.working_dir.unwrap_or_default(),
                user: section.user.unwrap_or_default(),
            },
            config_digest: manifest.config.digest,
            layers: manifest.layers.into_iter().map(layer).collect(),
            diff_ids: config.rootfs.diff_ids,
            name,
        })
    }

    /// Follows indexes down to this machine's manifest.
    async fn manifest_of(&self, name: &str, target: Descriptor) -> Result<Vec<u8>, RuntimeError> {
        let (mut media_type, mut digest) = (target.media_type, target.digest);
        for _ in 0..INDEX_DEPTH_MAX {
            let bytes = self.content(name, &digest).await?;
            if media_type != INDEX_OCI && media_type != INDEX_DOCKER {
                return Ok(bytes);
            }
            let index: Index = parse(name, "its index", &bytes)?;
            let next = for_this_machine(&index).ok_or_else(|| RuntimeError::ImageInvalid {
                image: name.to_owned(),
                message: format!("it has nothing for linux/{}", architecture()),
            })?;
            (media_type, digest) = (next.media_type.clone(), next.digest.clone());
        }
        Err(RuntimeError::ImageInvalid {
            image: name.to_owned(),
            message: "its indexes are nested too deep".into(),
        })
    }

    async fn content(&self, image: &str, digest: &str) -> Result<Vec<u8>, RuntimeError> {
        let what = || format!("read {digest} of image {image}");
        let request = ReadContentRequest { digest: digest.to_owned(), offset: 0, size: 0 };
        let mut stream =
            self.client.content().read(self.call(request)).await.map_err(refused(what()))?.into_inner();
        let mut out = Vec::new();
        while let Some(part) = stream.message().await.map_err(refused(what()))? {
            out.extend_from_slice(&part.data);
            if out.len() as u64 > DOCUMENT_MAX_BYTES {
                let message = format!("{digest} is over {DOCUMENT_MAX_BYTES} bytes");
                return Err(RuntimeError::ImageInvalid { image: image.to_owned(), message });
            }
        }
        Ok(out)
    }

    /// The snapshot on which containers of the image stand.
    pub(crate) fn top_snapshot(image: &Image) -> String {
        chain_ids(&image.diff_ids).pop().unwrap_or_default()
    }

    /// Layers into snapshots, bottom up, those that are missing.
    pub(super) async fn unpack(&self, image: &Image) -> Result<(), RuntimeError> {
        let chain = chain_ids(&image.diff_ids);
        let Some(top) = chain.last() else { return Ok(()) };
        if self.has_snapshot(top).await? {
            return Ok(());
        }
        // Two pods that start together unpack once.
        let _one_at_a_time = self.unpacking.lock().await;
        let lease = self.lease(&image.name).await?;
        let mut parent = String::new();
        for (id, layer) in chain.iter().zip(&image.layers) {
            if !self.has_snapshot(id).await? {
                self.unpack_layer(image, id, layer, &parent, &lease).await?;
            }
            parent.clone_from(id);
        }
        // From here on the image's config holds the snapshots, as containerd's own client has it.
        let label = format!("containerd.io/gc.ref.snapshot.{}", self.snapshotter);
        let what = || format!("keep the snapshots of {}", image.name);
        let request = InfoRequest { digest: image.config_digest.clone() };
        let info =
            self.client.content().info(self.call(request)).await.map_err(refused(what()))?.into_inner().info;
        let mut info =
            info.unwrap_or_else(|| Info { digest: image.config_digest.clone(), ..Info::default() });
        info.labels.insert(label, top.clone());
        let update = UpdateRequest { info: Some(info), update_mask: None };
        self.client.content().update(self.call(update)).await.map_err(refused(what()))?;
        let dropped = self.client.leases().delete(self.call(DeleteLease { id: lease, sync: false })).await;
        tolerate(dropped, Code::NotFound, "drop a lease").map(drop)
    }

    async fn unpack_layer(
        &self,
        image: &Image,
        id: &str,
        layer: &Descriptor,
        parent: &str,
        lease: &str,
    ) -> Result<(), RuntimeError> {
        let what = || format!("unpack layer {} of {}", layer.digest, image.name);
        let snapshotter = self.snapshotter.clone();
        let key = format!("edgewire-unpack-{}-{id}", std::process::id());
        let remove = RemoveSnapshotRequest { snapshotter: snapshotter.clone(), key: key.clone() };
        // A half unpacked one of an earlier run of ours with the same process ID.
        let stale = self.client.snapshots().remove(self.call(remove.clone())).await;
        tolerate(stale, Code::NotFound, what())?;
        let prepare = PrepareSnapshotRequest {
            snapshotter: snapshotter.clone(),
            key: key.clone(),
            parent: parent.to_owned(),
            labels: HashMap::new(),
        };
        let prepared =
            self.client.snapshots().prepare(self.leased(prepare, lease)).await.map_err(refused(what()))?;
        let mounts = prepared.into_inner().mounts;
        let files = written_to(&mounts);
        // containerd 2 would sync when asked to; 1.6 does not know the question.
        let apply =
            ApplyRequest { diff: Some(layer.clone()), mounts, payloads: HashMap::new(), sync_fs: true };
        let applied = async {
            self.client.diff().apply(self.leased(apply, lease)).await?;
            // The commit is on disk at once. Without the files a power cut leaves a layer of empty ones for good.
            blocking(move || sync(&files)).await?;
            let commit =
                CommitSnapshotRequest { snapshotter, name: id.to_owned(), key, labels: HashMap::new() };
            self.client.snapshots().commit(self.leased(commit, lease)).await
        }
        .await;
        if applied.is_err() {
            let removed = self.client.snapshots().remove(self.call(remove)).await;
            tolerate(removed, Code::NotFound, what())?;
        }
        // Somebody else may have unpacked the same layer meanwhile.
        tolerate(applied, Code::AlreadyExists, what()).map(drop)
    }

    async fn has_snapshot(&self, key: &str) -> Result<bool, RuntimeError> {
        let request = StatSnapshotRequest { snapshotter: self.snapshotter.clone(), key: key.to_owned() };
        let found = self.client.snapshots().stat(self.call(request)).await;
        Ok(tolerate(found, Code::NotFound, format!("look for snapshot {key}"))?.is_some())
    }
}

/// The directory into which mounts of a snapshot write: an overlay's upper one, or the source of a bind.
fn written_to(mounts: &[Mount]) -> PathBuf {
    let Some(mount) = mounts.first() else { return PathBuf::new() };
    let upper = mount.options.iter().find_map(|option| option.strip_prefix("upperdir="));
    PathBuf::from(upper.unwrap_or(&mount.source))
}

/// Brings the file system of `dir` to disk; all of the machine's when containerd's is not ours to see.
fn sync(dir: &Path) -> std::io::Result<()> {
    match std::fs::File::open(dir) {
        Ok(dir) => Ok(nix::unistd::syncfs(dir)?),
        Err(_) => {
            nix::unistd::sync();
            Ok(())
        }
    }
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(std::io::Error::other)?
}

pub(super) fn parse<'a, T: Deserialize<'a>>(
    image: &str,
    part: &str,
    bytes: &'a [u8],
) -> Result<T, RuntimeError> {
    serde_json::from_slice(bytes).map_err(|error| RuntimeError::ImageInvalid {
        image: image.to_owned(),
        message: format!("{part} is not what it should be: {error}"),
    })
}

pub(super) fn for_this_machine(index: &Index) -> Option<&OciDescriptor> {
    let fits = |d: &&OciDescriptor| {
        d.platform.as_ref().is_none_or(|p| p.os == "linux" && p.architecture == architecture())
    };
    index.manifests.iter().find(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_snapshot_writes_to_is_known() {
        let mount = |kind: &str, source: &str, options: &[&str]| Mount {
            r#type: kind.to_owned(),
            source: source.to_owned(),
            target: String::new(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
        };
        let overlay =
            mount("overlay", "overlay", &["workdir=/s/2/work", "upperdir=/s/2/fs", "lowerdir=/s/1/fs"]);
        assert_eq!(written_to(&[overlay]), Path::new("/s/2/fs"));
        assert_eq!(written_to(&[mount("bind", "/s/1/fs", &["rw", "rbind"])]), Path::new("/s/1/fs"));
        sync(Path::new("/")).unwrap();
        sync(Path::new("/no/such/place")).unwrap();
    }

    #[test]
    fn names_are_completed_as_docker_does() {
        for (short, full) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("demo/sensor:1", "docker.io/demo/sensor:1"),
            ("localhost/x", "localhost/x:latest"),
            ("reg.example:5000/a/b:2", "reg.example:5000/a/b:2"),
            ("a@sha256:00", "docker.io/library/a@sha256:00"),
        ] {
            assert_eq!(full_name(short), full);
            assert_eq!(full_name(full), full);
        }
    }

    #[test]
    fn a_chain_depends_on_every_layer_below() {
        let ids: Vec<String> = ["sha256:a", "sha256:b"].map(str::to_owned).to_vec();
        let chain = chain_ids(&ids);
        assert_eq!(chain[0], "sha256:a");
        assert_eq!(chain[1], sha256_of(b"sha256:a sha256:b"));
    }
}
