//! Image archives into containerd's content store.
//!
//! Two forms are read, told apart by what is in them: OCI image layouts (`index.json`) and docker archives
//! (`manifest.json`, as `docker save` writes). Layers are streamed from the file, never held. What is stored is labelled
//! as containerd's own client does it, and `ctr images` shows it.
//!
//! Sources: OCI image-spec 1.0; docker image spec 1.2; containerd `images/archive/importer.go`.

use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use containerd_client::services::v1::{
    CreateImageRequest, DeleteRequest as DeleteLease, Image as StoredImage, UpdateImageRequest, WriteAction,
    WriteContentRequest,
};
use containerd_client::types::Descriptor;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tonic::Code;

use super::image::{
    DOCUMENT_MAX_BYTES, INDEX_DEPTH_MAX, Index, Manifest, OciDescriptor, architecture, blocking, data_hex,
    for_this_machine, full_name, parse, sha256_of,
};
use super::{Runtime, RuntimeError, refused, tolerate};

/// Bytes of a layer in flight at a time.
const CHUNK_BYTES: usize = 256 * 1024;
const MANIFEST_OCI: &str = "application/vnd.oci.image.manifest.v1+json";
const MANIFEST_DOCKER: &str = "application/vnd.docker.distribution.manifest.v2+json";
const CONFIG_OCI: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TAR: &str = "application/vnd.oci.image.layer.v1.tar";

#[derive(Deserialize)]
struct DockerManifest {
    #[serde(rename = "Config")]
    config: String,
    #[serde(rename = "RepoTags", default)]
    repo_tags: Option<Vec<String>>,
    #[serde(rename = "Layers")]
    layers: Vec<String>,
}

/// Where each file of a tar stands, so that it can be read in any order without unpacking.
struct TarMap {
    path: PathBuf,
    files: HashMap<String, (u64, u64)>,
}

impl TarMap {
    fn open(path: &Path) -> std::io::Result<Self> {
        let mut archive = tar::Archive::new(std::fs::File::open(path)?);
        let mut files = HashMap::new();
        let mut links = Vec::new();
        for entry in archive.entries_with_seek()? {
            let entry = entry?;
            let name = entry.path()?.to_string_lossy().trim_start_matches("./").to_owned();
            match entry.header().entry_type() {
                tar::EntryType::Regular | tar::EntryType::Continuous => {
                    files.insert(name, (entry.raw_file_position(), entry.size()));
                }
                // docker save links layers that images share.
                tar::EntryType::Symlink | tar::EntryType::Link => {
                    if let Some(target) = entry.link_name()? {
                        links.push((name, target.to_string_lossy().trim_start_matches("../").to_owned()));
                    }
                }
                _ => {}
            }
        }
        for (name, target) in links {
            if let Some(place) = files.get(&target).copied() {
                files.insert(name, place);
            }
        }
        Ok(Self { path: path.to_owned(), files })
    }

    fn reader(&self, name: &str) -> std::io::Result<std::io::Take<std::fs::File>> {
        let missing =
            || std::io::Error::new(std::io::ErrorKind::NotFound, format!("no {name} in the archive"));
        let (offset, size) = self.files.get(name).copied().ok_or_else(missing)?;
        let mut file = std::fs::File::open(&self.path)?;
        file.seek(SeekFrom::Start(offset))?;
        Ok(file.take(size))
    }

    fn size(&self, name: &str) -> u64 {
        self.files.get(name).map_or(0, |(_, size)| *size)
    }

    fn document(&self, name: &str) -> std::io::Result<Vec<u8>> {
        if self.size(name) > DOCUMENT_MAX_BYTES {
            return Err(std::io::Error::other(format!("{name} is over {DOCUMENT_MAX_BYTES} bytes")));
        }
        let mut out = Vec::new();
        self.reader(name)?.read_to_end(&mut out)?;
        Ok(out)
    }
}

/// Where bytes for the content store come from.
enum Source {
    Bytes(Vec<u8>),
    Entry(std::io::Take<std::fs::File>),
}

fn blob_name(digest: &str) -> String {
    format!("blobs/{}", digest.replacen(':', "/", 1))
}

impl Runtime {
    /// Imports an OCI layout or docker archive (a plain or gzipped tar file) and unpacks it. Gives the images' names.
    pub async fn import_archive(&self, path: &Path) -> Result<Vec<String>, RuntimeError> {
        let what = path.display().to_string();
        let plain = self.plain_tar(path).await?;
        let source = plain.as_ref().map_or(path, |temp| temp.0.as_path()).to_owned();
        let map = blocking(move || TarMap::open(&source)).await.map_err(|e| RuntimeError::ImageInvalid {
            image: what.clone(),
            message: format!("not a tar file: {e}"),
        })?;
        // The lease keeps containerd's garbage collector off what nothing refers to yet.
        let lease = self.lease(&what).await?;
        let result = if map.files.contains_key("index.json") {
            self.import_oci(&map, &what, &lease).await
        } else if map.files.contains_key("manifest.json") {
            self.import_docker(&map, &what, &lease).await
        } else {
            Err(RuntimeError::ImageInvalid {
                image: what.clone(),
                message:
                    "it holds neither index.json nor manifest.json: give an OCI layout or docker archive"
                        .into(),
            })
        };
        let dropped = self.client.leases().delete(self.call(DeleteLease { id: lease, sync: false })).await;
        if let Err(status) = dropped {
            tracing::debug!(%status, "lease of the import stays until it expires");
        }
        let names = result?;
        if names.is_empty() {
            let message = "no image in it has a name: save it with a tag".into();
            return Err(RuntimeError::ImageInvalid { image: what, message });
        }
        for name in &names {
            let image = self.read_image(name).await?;
            self.unpack(&image).await?;
        }
        Ok(names)
    }

    /// A gzipped archive as a temporary plain one, for reading in any order; `None` when it is plain already.
    async fn plain_tar(&self, path: &Path) -> Result<Option<TempFile>, RuntimeError> {
        let path = path.to_owned();
        let to = self
            .config
            .data_dir
            .join("import")
            .join(format!("{}.tar", sha256_of(path.as_os_str().as_encoded_bytes())));
        let named = path.display().to_string();
        blocking(move || {
            let mut file = std::fs::File::open(&path)?;
            let mut magic = [0; 2];
            let gzipped = file.read_exact(&mut magic).is_ok() && magic == [0x1f, 0x8b];
            if !gzipped {
                return Ok(None);
            }
            file.seek(SeekFrom::Start(0))?;
            if let Some(parent) = to.parent() {
                std::fs::create_dir_all(parent)?;
            }
            let temp = TempFile(to);
            std::io::copy(&mut flate2::read::GzDecoder::new(file), &mut std::fs::File::create(&temp.0)?)?;
            Ok(Some(temp))
        })
        .await
        .map_err(RuntimeError::io(format!("read the image archive {named}")))
    }

    async fn import_oci(&self, map: &TarMap, what: &str, lease: &str) -> Result<Vec<String>, RuntimeError> {
        let index: Index = parse(what, "index.json", &document(map, what, "index.json")?)?;
        let mut names = Vec::new();
        for top in &index.manifests {
            let note = |key: &str| top.annotations.get(key).cloned();
            let name = note("io.containerd.image.name").or_else(|| note("org.opencontainers.image.ref.name"));
            let Some(name) = name else { continue };
            let (bytes, digest, media_type) = pick_manifest(map, what, top)?;
            let manifest: Manifest = parse(what, &digest, &bytes)?;
            let blobs = manifest.layers.iter().chain([&manifest.config]);
            for blob in blobs {
                let entry = reader(map, what, &blob_name(&blob.digest))?;
                let size = u64::try_from(blob.size).unwrap_or(0);
                self.put(Source::Entry(entry), &blob.digest, size, HashMap::new(), lease).await?;
            }
            let layers: Vec<String> = manifest.layers.into_iter().map(|l| l.digest).collect();
            let name = full_name(&name);
            self.put_manifest(&name, bytes, &digest, &media_type, (&manifest.config.digest, &layers), lease)
                .await?;
            names.push(name);
        }
        Ok(names)
    }

    async fn import_docker(
        &self,
        map: &TarMap,
        what: &str,
        lease: &str,
    ) -> Result<Vec<String>, RuntimeError> {
        let images: Vec<DockerManifest> =
            parse(what, "manifest.json", &document(map, what, "manifest.json")?)?;
        let mut names = Vec::new();
        for image in images {
            let config = document(map, what, &image.config)?;
            let (config_digest, config_size) = (sha256_of(&config), config.len());
            self.put(Source::Bytes(config), &config_digest, config_size as u64, HashMap::new(), lease)
                .await?;
            let (mut layers, mut digests) = (Vec::new(), Vec::new());
            for layer in &image.layers {
                let (entry, size) = (reader(map, what, layer)?, map.size(layer));
                let (digest, gzipped) = blocking(move || digest_of(entry))
                    .await
                    .map_err(RuntimeError::io(format!("read layer {layer} of {what}")))?;
                let source = Source::Entry(reader(map, what, layer)?);
                self.put(source, &digest, size, HashMap::new(), lease).await?;
                let media_type = if gzipped { format!("{LAYER_TAR}+gzip") } else { LAYER_TAR.to_owned() };
                layers.push(json!({"mediaType": media_type, "digest": digest, "size": size}));
                digests.push(digest);
            }
            let manifest = json!({
                "schemaVersion": 2,
                "mediaType": MANIFEST_OCI,
                "config": {"mediaType": CONFIG_OCI, "digest": config_digest, "size": config_size},
                "layers": layers,
            });
            let bytes = manifest.to_string().into_bytes();
            let digest = sha256_of(&bytes);
            for tag in image.repo_tags.unwrap_or_default() {
                let name = full_name(&tag);
                self.put_manifest(
                    &name,
                    bytes.clone(),
                    &digest,
                    MANIFEST_OCI,
                    (&config_digest, &digests),
                    lease,
                )
                .await?;
                names.push(name);
            }
        }
        Ok(names)
    }

    async fn put_manifest(
        &self,
        name: &str,
        bytes: Vec<u8>,
        digest: &str,
        media_type: &str,
        (config, layers): (&str, &[String]),
        lease: &str,
    ) -> Result<(), RuntimeError> {
        let mut labels =
            HashMap::from([("containerd.io/gc.ref.content.config".to_owned(), config.to_owned())]);
        for (n, layer) in layers.iter().enumerate() {
            labels.insert(format!("containerd.io/gc.ref.content.l.{n}"), layer.clone());
        }
        let size = bytes.len();
        self.put(Source::Bytes(bytes), digest, size as u64, labels, lease).await?;
        let image = StoredImage {
            name: name.to_owned(),
            target: Some(Descriptor {
                media_type: media_type.to_owned(),
                digest: digest.to_owned(),
                size: i64::try_from(size).unwrap_or(0),
                annotations: HashMap::new(),
            }),
            ..StoredImage::default()
        };
        let request = CreateImageRequest { image: Some(image.clone()), source_date_epoch: None };
        let created = self.client.images().create(self.leased(request, lease)).await;
        if tolerate(created, Code::AlreadyExists, format!("store image {name}"))?.is_none() {
            let request =
                UpdateImageRequest { image: Some(image), update_mask: None, source_date_epoch: None };
            let updated = self.client.images().update(self.leased(request, lease)).await;
            updated.map_err(refused(format!("replace image {name}")))?;
        }
        Ok(())
    }

    /// Streams bytes into the content store, which checks the digest. Ok when they are there already.
    async fn put(
        &self,
        source: Source,
        digest: &str,
        size: u64,
        labels: HashMap<String, String>,
        lease: &str,
    ) -> Result<(), RuntimeError> {
        let total = i64::try_from(size).unwrap_or(0);
        let (sender, receiver) = tokio::sync::mpsc::channel(2);
        let base = WriteContentRequest {
            action: WriteAction::Write.into(),
            r#ref: format!("edgewire-{digest}"),
            total,
            expected: digest.to_owned(),
            offset: 0,
            data: Vec::new(),
            labels,
        };
        let reading = tokio::task::spawn_blocking(move || send_chunks(source, &base, &sender));
        let requests =
            futures::stream::unfold(receiver, |mut receiver: tokio::sync::mpsc::Receiver<_>| async {
                receiver.recv().await.map(|item| (item, receiver))
            });
        let written = async {
            let mut replies = self.client.content().write(self.leased(requests, lease)).await?.into_inner();
            while replies.message().await?.is_some() {}
            Ok(())
        }
        .await;
        let what = format!("store content {digest}");
        tolerate(written, Code::AlreadyExists, what)?;
        match reading.await {
            Ok(result) => result.map_err(RuntimeError::io(format!("read content {digest}"))),
            Err(error) => {
                Err(RuntimeError::io(format!("read content {digest}"))(std::io::Error::other(error)))
            }
        }
    }
}

/// Removed when it goes out of scope.
struct TempFile(PathBuf);

impl Drop for TempFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::debug!(%error, file = %self.0.display(), "temporary file stays");
        }
    }
}

fn reader(map: &TarMap, what: &str, name: &str) -> Result<std::io::Take<std::fs::File>, RuntimeError> {
    map.reader(name)
        .map_err(|e| RuntimeError::ImageInvalid { image: what.to_owned(), message: e.to_string() })
}

fn document(map: &TarMap, what: &str, name: &str) -> Result<Vec<u8>, RuntimeError> {
    map.document(name)
        .map_err(|e| RuntimeError::ImageInvalid { image: what.to_owned(), message: e.to_string() })
}

/// The manifest behind an entry of `index.json`: its bytes, digest and media type.
fn pick_manifest(
    map: &TarMap,
    what: &str,
    top: &OciDescriptor,
) -> Result<(Vec<u8>, String, String), RuntimeError> {
    let (mut media_type, mut digest) = (top.media_type.clone(), top.digest.clone());
    for _ in 0..INDEX_DEPTH_MAX {
        let bytes = document(map, what, &blob_name(&digest))?;
        let shape: Value = parse(what, &digest, &bytes)?;
        if shape.get("manifests").is_none() {
            if media_type.is_empty() {
                media_type = MANIFEST_OCI.to_owned();
            }
            let known = media_type == MANIFEST_OCI || media_type == MANIFEST_DOCKER;
            return if known {
                Ok((bytes, digest, media_type))
            } else {
                let message = format!("{digest} has media type {media_type}, which is no image manifest");
                Err(RuntimeError::ImageInvalid { image: what.to_owned(), message })
            };
        }
        let index: Index = parse(what, &digest, &bytes)?;
        let next = for_this_machine(&index).ok_or_else(|| RuntimeError::ImageInvalid {
            image: what.to_owned(),
            message: format!("it has nothing for linux/{}", architecture()),
        })?;
        (media_type, digest) = (next.media_type.clone(), next.digest.clone());
    }
    Err(RuntimeError::ImageInvalid {
        image: what.to_owned(),
        message: "its indexes are nested too deep".into(),
    })
}

/// Digest of a layer as it stands, and whether it is gzipped.
fn digest_of(mut entry: impl Read) -> std::io::Result<(String, bool)> {
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut gzipped = None;
    loop {
        let n = entry.read(&mut chunk)?;
        let part = chunk.get(..n).unwrap_or_default();
        if part.is_empty() {
            return Ok((format!("sha256:{}", data_hex(&hash.finalize())), gzipped.unwrap_or(false)));
        }
        gzipped.get_or_insert(part.starts_with(&[0x1f, 0x8b]));
        hash.update(part);
    }
}

fn send_chunks(
    source: Source,
    base: &WriteContentRequest,
    sender: &tokio::sync::mpsc::Sender<WriteContentRequest>,
) -> std::io::Result<()> {
    let mut reader: Box<dyn Read> = match source {
        Source::Bytes(bytes) => Box::new(std::io::Cursor::new(bytes)),
        Source::Entry(entry) => Box::new(entry),
    };
    let mut offset = 0i64;
    loop {
        let mut data = vec![0; CHUNK_BYTES];
        let n = reader.read(&mut data)?;
        data.truncate(n);
        let (action, labels) = match n {
            0 => (WriteAction::Commit, base.labels.clone()),
            _ => (WriteAction::Write, HashMap::new()),
        };
        let request = WriteContentRequest { action: action.into(), offset, data, labels, ..base.clone() };
        // Refused means that containerd has answered already: its answer says why.
        if sender.blocking_send(request).is_err() || n == 0 {
            return Ok(());
        }
        offset += i64::try_from(n).unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_read_whatever_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image.tar");
        let index = br#"{"manifests":[{"digest":"sha256:aa","size":2,"mediaType":"x"}]}"#;
        let docker = br#"[{"Config":"c.json","RepoTags":["a:b"],"Layers":["l/layer.tar"]}]"#;
        let mut tar = tar::Builder::new(Vec::new());
        for (name, content) in
            [("index.json", &index[..]), ("manifest.json", docker), ("blobs/sha256/aa", b"{}")]
        {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            tar.append_data(&mut header, name, content).unwrap();
        }
        let mut link = tar::Header::new_gnu();
        link.set_entry_type(tar::EntryType::Symlink);
        link.set_size(0);
        tar.append_link(&mut link, "l/layer.tar", "../blobs/sha256/aa").unwrap();
        let sample = tar.into_inner().unwrap();
        crate::fuzz::try_bytes("an image archive", &[sample], |bytes| {
            std::fs::write(&path, bytes).unwrap();
            let Ok(map) = TarMap::open(&path) else { return };
            for name in map.files.keys() {
                // A header may claim any size: what is read is what is there.
                if let Ok(document) = map.document(name) {
                    assert!(document.len() <= bytes.len());
                    let _ = parse::<Index>("x", name, &document);
                    let _ = parse::<Manifest>("x", name, &document);
                    let _ = parse::<Vec<DockerManifest>>("x", name, &document);
                    blob_name(&String::from_utf8_lossy(&document));
                }
            }
        });
    }
}
