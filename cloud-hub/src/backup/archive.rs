//! The file of a backup: a gzipped tar, the manifest first, then every file in the manifest's order. Reading checks all of
//! it: form, order, names, sizes, hashes, and that nothing is missing at the end.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, ErrorKind, Read, Write};
use std::path::{Component, Path};

use anyhow::{Context, bail, ensure};
use data_encoding::HEXLOWER;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use schemas::backup::{FORMAT, Item, Manifest};
use sha2::{Digest, Sha256};

use super::copy::named;

/// Name of the first file.
const MANIFEST: &str = "manifest.json";
/// A manifest has about 200 bytes for each file, and a hub some files for each stream and consumer.
const MANIFEST_MAX_BYTES: u64 = 64 * 1024 * 1024;
const BUFFER_BYTES: usize = 256 * 1024;
/// How a gzip file begins.
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// The files under `dir` that are to go into a backup, with their hashes, in order.
pub fn items(dir: &Path, parts: &[&str]) -> anyhow::Result<Vec<Item>> {
    let mut items = Vec::new();
    for part in parts {
        collect(dir, Path::new(part), &mut items)?;
    }
    Ok(items)
}

fn collect(dir: &Path, path: &Path, items: &mut Vec<Item>) -> anyhow::Result<()> {
    let full = dir.join(path);
    if full.is_dir() {
        let mut names: Vec<_> = std::fs::read_dir(&full)
            .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.file_name())).collect())
            .map_err(|error| named(&full, error))?;
        names.sort();
        return names.into_iter().try_for_each(|name| collect(dir, &path.join(name), items));
    }
    if !full.is_file() {
        return Ok(());
    }
    let file = File::open(&full).map_err(|error| named(&full, error))?;
    let (size_bytes, sha256) = hash(file, &mut io::sink()).map_err(|error| named(&full, error))?;
    let path =
        path.to_str().with_context(|| format!("the name of {} is not text", full.display()))?.to_owned();
    items.push(Item { path, size_bytes, sha256 });
    Ok(())
}

/// Size and hash of what is read, which also goes to `copy`.
fn hash(mut from: impl Read, copy: &mut dyn Write) -> io::Result<(u64, String)> {
    let (mut hash, mut size) = (Sha256::new(), 0u64);
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let read = match from.read(&mut buffer) {
            Ok(0) => return Ok((size, HEXLOWER.encode(&hash.finalize()))),
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let bytes = buffer.get(..read).unwrap_or_default();
        hash.update(bytes);
        copy.write_all(bytes)?;
        size += read as u64;
    }
}

/// Writes the archive; `progress` is told of each file's bytes and may end it.
pub fn write(
    manifest: &Manifest,
    dir: &Path,
    to: File,
    mut progress: impl FnMut(u64) -> io::Result<()>,
) -> io::Result<File> {
    let gzip = GzEncoder::new(BufWriter::with_capacity(BUFFER_BYTES, to), Compression::fast());
    let mut tar = tar::Builder::new(gzip);
    let header = |size: u64| {
        let mut header = tar::Header::new_gnu();
        header.set_size(size);
        header.set_mode(0o600);
        header.set_mtime(u64::try_from(manifest.at.0 / 1000).unwrap_or(0));
        header
    };
    let text = serde_json::to_vec_pretty(manifest)?;
    tar.append_data(&mut header(text.len() as u64), MANIFEST, text.as_slice())?;
    for item in &manifest.files {
        let file = File::open(dir.join(&item.path)).map_err(|error| named(&dir.join(&item.path), error))?;
        tar.append_data(&mut header(item.size_bytes), &item.path, file.take(item.size_bytes))?;
        progress(item.size_bytes)?;
    }
    let buffered = tar.into_inner()?.finish()?;
    buffered.into_inner().map_err(|error| error.into_error())
}

/// Reads the archive and checks everything. `open` is told of each file before its content and says where that goes; the
/// content is checked when it has gone there.
pub fn read(
    path: &Path,
    mut open: impl FnMut(&Item) -> io::Result<Box<dyn Write>>,
) -> anyhow::Result<Manifest> {
    let shown = path.display();
    let mut file = File::open(path).with_context(|| format!("EW-BACKUP-IO: cannot read {shown}"))?;
    let mut magic = [0; 2];
    let begun = file.read_exact(&mut magic);
    ensure!(begun.is_ok() && magic == GZIP, foreign(path));
    io::Seek::rewind(&mut file).with_context(|| format!("EW-BACKUP-IO: cannot read {shown}"))?;

    let bad = |error: io::Error| broken(path, &error);
    let mut tar = tar::Archive::new(GzDecoder::new(BufReader::with_capacity(BUFFER_BYTES, file)));
    let manifest = {
        let mut entries = tar.entries().map_err(bad)?;
        let Some(first) = entries.next() else { bail!(foreign(path)) };
        let mut first = first.map_err(bad)?;
        let is_manifest = first.path().is_ok_and(|name| name == Path::new(MANIFEST));
        ensure!(is_manifest && first.size() <= MANIFEST_MAX_BYTES, foreign(path));
        let mut text = Vec::new();
        first.read_to_end(&mut text).map_err(bad)?;
        let manifest = understand(path, &text)?;
        for item in &manifest.files {
            let Some(entry) = entries.next() else { bail!(truncated(path, "files are missing at its end")) };
            let mut entry = entry.map_err(bad)?;
            let name = entry.path().map_err(bad)?.into_owned();
            ensure!(
                name == Path::new(&item.path) && entry.size() == item.size_bytes && is_inside(&name),
                "EW-BACKUP-CORRUPT: {shown} holds {} where its manifest says {}; take another backup",
                name.display(),
                item.path
            );
            let mut target = open(item).context("EW-BACKUP-IO: cannot unpack")?;
            let (size, sha256) = hash(&mut entry, &mut target).map_err(bad)?;
            ensure!(size == item.size_bytes, truncated(path, &item.path));
            ensure!(
                sha256 == item.sha256,
                "EW-BACKUP-CORRUPT: {} in {shown} is not what was written (its hash differs); take another backup",
                item.path
            );
            target.flush().context("EW-BACKUP-IO: cannot unpack")?;
        }
        if let Some(more) = entries.next() {
            let more = more.map_err(bad)?;
            bail!(
                "EW-BACKUP-CORRUPT: {shown} holds more than its manifest says ({}); take another backup",
                String::from_utf8_lossy(&more.path_bytes())
            );
        }
        manifest
    };
    // The sum over all of it stands at the very end.
    io::copy(&mut tar.into_inner(), &mut io::sink()).map_err(|error| broken(path, &error))?;
    Ok(manifest)
}

fn understand(path: &Path, text: &[u8]) -> anyhow::Result<Manifest> {
    let value: serde_json::Value = serde_json::from_slice(text).map_err(|_| foreign(path))?;
    match value.get("format").and_then(serde_json::Value::as_u64) {
        Some(format) if format > u64::from(FORMAT) => {
            let by = value.get("edgewire").and_then(serde_json::Value::as_str).unwrap_or("a newer version");
            bail!(
                "EW-BACKUP-NEWER: {} was made by Edgewire {by} in form {format}, this one reads up to {FORMAT}; restore it with that version",
                path.display()
            )
        }
        Some(1..) => serde_json::from_value(value).map_err(|_| foreign(path)),
        _ => Err(foreign(path)),
    }
}

/// Only plain names below the directory that it is unpacked to.
fn is_inside(path: &Path) -> bool {
    path.components().all(|part| matches!(part, Component::Normal(_)))
}

fn foreign(path: &Path) -> anyhow::Error {
    anyhow::anyhow!(
        "EW-BACKUP-FOREIGN: {} is no backup of a hub; `edgewire hub backup FILE` makes one",
        path.display()
    )
}

fn truncated(path: &Path, what: &str) -> anyhow::Error {
    anyhow::anyhow!(
        "EW-BACKUP-TRUNCATED: {} ends too early ({what}); was it copied whole? take another backup",
        path.display()
    )
}

fn broken(path: &Path, error: &io::Error) -> anyhow::Error {
    let text = error.to_string();
    if error.kind() == ErrorKind::UnexpectedEof || text.contains("entire block") || text.contains("EOF") {
        return truncated(path, &text);
    }
    anyhow::anyhow!("EW-BACKUP-CORRUPT: {} cannot be read ({text}); take another backup", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::Timestamp;

    fn manifest(files: Vec<Item>) -> Manifest {
        Manifest {
            format: FORMAT,
            edgewire: "0.1.0".into(),
            nats_server: "2.15.1".into(),
            at: Timestamp(1_000_000),
            at_text: String::new(),
            host: "h".into(),
            authority_sha256: "00".into(),
            held_ms: 1,
            streams: Vec::new(),
            files,
        }
    }

    fn make(dir: &Path, change: impl FnOnce(&mut Manifest)) -> Vec<u8> {
        std::fs::create_dir_all(dir.join("keys/deep")).unwrap();
        // Not the same byte all over: then a wrong distance would give the same text.
        let text: String =
            (0..200).map(|n: u64| (n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20).to_string()).collect();
        std::fs::write(dir.join("keys/a"), text).unwrap();
        std::fs::write(dir.join("keys/deep/b"), "").unwrap();
        std::fs::write(dir.join("token"), "token").unwrap();
        let mut manifest = manifest(items(dir, &["keys", "token", "none"]).unwrap());
        change(&mut manifest);
        let file = File::create(dir.join("out")).unwrap();
        write(&manifest, dir, file, |_| Ok(())).unwrap();
        std::fs::read(dir.join("out")).unwrap()
    }

    fn complaint(dir: &Path, bytes: &[u8]) -> String {
        std::fs::write(dir.join("in"), bytes).unwrap();
        match read(&dir.join("in"), |_| Ok(Box::new(io::sink()))) {
            Ok(_) => String::new(),
            Err(error) => format!("{error:#}"),
        }
    }

    #[test]
    fn what_was_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = make(dir.path(), |_| ());
        assert_eq!(complaint(dir.path(), &bytes), "");
        let mut names = Vec::new();
        let manifest = read(&dir.path().join("in"), |item| {
            names.push(item.path.clone());
            Ok(Box::new(io::sink()))
        })
        .unwrap();
        assert_eq!(names, ["keys/a", "keys/deep/b", "token"]);
        assert_eq!(manifest.files.len(), 3);
    }

    #[test]
    fn every_cut_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = make(dir.path(), |_| ());
        for cut in 2..bytes.len() {
            let text = complaint(dir.path(), &bytes[..cut]);
            assert!(text.starts_with("EW-BACKUP-TRUNCATED"), "cut at {cut} of {}: {text}", bytes.len());
        }
        assert!(complaint(dir.path(), &bytes[..1]).starts_with("EW-BACKUP-FOREIGN"));
    }

    #[test]
    fn every_flipped_byte_is_noticed_or_says_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = make(dir.path(), |_| ());
        std::fs::write(dir.path().join("in"), &bytes).unwrap();
        let whole = read(&dir.path().join("in"), |_| Ok(Box::new(io::sink()))).unwrap();
        let mut unnoticed = 0;
        // The gzip header's time, flags and system say nothing of the content.
        for at in 10..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 0x10;
            std::fs::write(dir.path().join("in"), &bad).unwrap();
            // A length of a code that nothing uses changes nothing.
            if let Ok(manifest) = read(&dir.path().join("in"), |_| Ok(Box::new(io::sink()))) {
                assert_eq!(manifest, whole, "byte {at}");
                unnoticed += 1;
            }
        }
        assert!(unnoticed < bytes.len() / 20, "{unnoticed} of {}", bytes.len());
    }

    #[test]
    fn what_is_no_backup_says_so() {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes, code) in [
            ("empty", Vec::new(), "EW-BACKUP-FOREIGN"),
            ("text", b"hello, this is no archive".to_vec(), "EW-BACKUP-FOREIGN"),
            ("newer", make(dir.path(), |manifest| manifest.format = 2), "EW-BACKUP-NEWER"),
            ("no format", make(dir.path(), |manifest| manifest.format = 0), "EW-BACKUP-FOREIGN"),
            ("wrong hash", make(dir.path(), |m| m.files[0].sha256 = "00".into()), "EW-BACKUP-CORRUPT"),
        ] {
            let text = complaint(dir.path(), &bytes);
            assert!(text.starts_with(code), "{name}: {text}");
        }
        let mut other = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        let mut header = tar::Header::new_gnu();
        header.set_size(2);
        other.append_data(&mut header, "x", &b"hi"[..]).unwrap();
        let bytes = other.into_inner().unwrap().finish().unwrap();
        assert!(complaint(dir.path(), &bytes).starts_with("EW-BACKUP-FOREIGN"));
    }

    #[test]
    fn nothing_is_unpacked_outside() {
        for (path, inside) in [("keys/a", true), ("../a", false), ("/etc/a", false), ("keys/../../a", false)]
        {
            assert_eq!(is_inside(Path::new(path)), inside, "{path}");
        }
    }

    /// Nothing is written outside, nothing panics, and no file grows beyond what its manifest says.
    #[test]
    fn an_archive_is_read_whatever_it_is() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("nats")).unwrap();
        std::fs::write(dir.path().join("nats/a"), b"some content").unwrap();
        let (size_bytes, sha256) = hash(&mut &b"some content"[..], &mut io::sink()).unwrap();
        let files = vec![Item { path: "nats/a".into(), size_bytes, sha256 }];
        let path = dir.path().join("backup");
        write(&manifest(files), dir.path(), File::create(&path).unwrap(), |_| Ok(())).unwrap();
        let packed = std::fs::read(&path).unwrap();
        let mut plain = Vec::new();
        GzDecoder::new(packed.as_slice()).read_to_end(&mut plain).unwrap();
        assert!(read(&path, |_| Ok(Box::new(io::sink()))).is_ok());
        let attempt = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            let _ = read(&path, |item| {
                assert!(is_inside(Path::new(&item.path)), "{}", item.path);
                Ok(Box::new(io::sink()))
            });
        };
        crate::fuzz::try_bytes("a backup", &[packed], attempt);
        // Behind the sum of gzip: what a forger would change.
        crate::fuzz::try_bytes("the tar in a backup", &[plain], |bytes| {
            let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
            gzip.write_all(bytes).unwrap();
            attempt(&gzip.finish().unwrap());
        });
    }
}
