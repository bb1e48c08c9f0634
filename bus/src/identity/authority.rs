//! The hub's certificate authority on disk, and how another takes its place.
//!
//! `ca.pem` is the authority: its key and its certificate in one file, so that one rename is all that a change takes. A roll
//! puts another beside it, `next.pem`, whose certificate the present one has signed too (*cross-signed*): a server whose
//! certificate is the next one's shows that signature along, and so is trusted by who knows only the present authority, by
//! who knows only the next, and by who knows both. To finish, `next.pem` is renamed over `ca.pem`.
//!
//! Certificates are valid from 1970 to 4096: an edge machine without a clock must still reach its hub, and it cannot be told
//! from one whose clock was set back. What is lost or old is answered with a new key, not by waiting.

use std::path::Path;

use data_encoding::{BASE64, HEXLOWER};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use schemas::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::IdentityError;
use super::files::{read_text, write_text};

const PRESENT: &str = "ca.pem";
const NEXT: &str = "next.pem";
/// As hubs kept it before authorities could be rolled; the first is also what clients on this machine trust.
pub(super) const BUNDLE: &str = "ca.crt";
const KEY_BEFORE: &str = "ca.key";

/// An authority: what signs, and what is trusted.
#[derive(Debug)]
pub(super) struct Authority {
    key: KeyPair,
    /// Its own certificate (PEM).
    pub pem: String,
    /// The same key, signed by the authority before it (PEM): while it takes that one's place.
    pub crossed: Option<String>,
    /// [`fingerprint`] of its certificate.
    pub fingerprint: String,
    /// When it was made, by the hub's clock; `None` for one from before this was noted.
    pub made: Option<Timestamp>,
}

/// The present authority, and the one that takes its place while a roll is under way.
#[derive(Debug)]
pub(super) struct Authorities {
    pub present: Authority,
    pub next: Option<Authority>,
}

/// The first line of an authority's file.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    made: Option<Timestamp>,
}

impl Authorities {
    /// Reads what is in `dir`; `None` when there is nothing.
    pub fn read(dir: &Path) -> Result<Option<Self>, IdentityError> {
        let Some(present) =
            Authority::read(&dir.join(PRESENT))?.map_or_else(|| before(dir), |a| Ok(Some(a)))?
        else {
            return Ok(None);
        };
        let next = Authority::read(&dir.join(NEXT))?;
        // What the one before it said for it is still in its file, and counts no more.
        Ok(Some(Self { present: Authority { crossed: None, ..present }, next }))
    }

    /// The same, making the first.
    pub fn read_or_make(dir: &Path) -> Result<Self, IdentityError> {
        if let Some(found) = Self::read(dir)? {
            if !dir.join(PRESENT).exists() {
                // The older form stays until the first roll: a hub of before can take this directory up again.
                found.present.write(&dir.join(PRESENT))?;
            }
            return Ok(found);
        }
        let present = Authority::make(None)?;
        present.write(&dir.join(PRESENT))?;
        Ok(Self { present, next: None })
    }

    /// Makes the next authority. Asked again it stays as it is.
    pub fn roll(&mut self, dir: &Path) -> Result<(), IdentityError> {
        let _ = std::fs::remove_file(dir.join(KEY_BEFORE)); // from here on it could only mislead; usually not there
        if self.next.is_none() {
            let next = Authority::make(Some(&self.present))?;
            next.write(&dir.join(NEXT))?;
            self.next = Some(next);
        }
        Ok(())
    }

    /// The next one is the present one from now on; the one before is gone, its key too.
    pub fn finish(&mut self, dir: &Path) -> Result<(), IdentityError> {
        if let Some(next) = self.next.take() {
            let from = dir.join(NEXT);
            let renamed = std::fs::rename(&from, dir.join(PRESENT));
            renamed
                .and_then(|()| std::fs::File::open(dir)?.sync_all())
                .map_err(|error| IdentityError::io(&from, error))?;
            self.present = Authority { crossed: None, ..next };
        }
        Ok(())
    }

    /// The one that signs the server's certificate: the next one, if whoever trusts only the present one can follow.
    pub fn signer(&self) -> &Authority {
        self.next.as_ref().filter(|next| next.crossed.is_some()).unwrap_or(&self.present)
    }

    /// What clients trust (PEM), the present one first.
    pub fn bundle(&self) -> String {
        let next = self.next.as_ref().map_or("", |next| next.pem.as_str());
        format!("{}{next}", self.present.pem)
    }
}

impl Authority {
    fn make(before: Option<&Authority>) -> Result<Self, IdentityError> {
        let making = |error: rcgen::Error| IdentityError::tls("making an authority", error);
        let key = KeyPair::generate().map_err(making)?;
        let pem = params().self_signed(&key).map_err(making)?.pem();
        let crossed = match before {
            Some(before) if before.may_vouch() => Some(before.sign(params(), &key).map_err(making)?),
            _ => None,
        };
        let fingerprint = fingerprint(&pem)?;
        Ok(Self { key, pem, crossed, fingerprint, made: Some(Timestamp::now()) })
    }

    fn read(path: &Path) -> Result<Option<Self>, IdentityError> {
        let Some(text) = read_text(path)? else { return Ok(None) };
        let broken =
            |reason: &dyn ToString| IdentityError::tls(path.display().to_string(), reason.to_string());
        let head: Option<Head> = text.lines().next().and_then(|line| serde_json::from_str(line).ok());
        let key = key_in(&text).ok_or_else(|| broken(&"its key is missing"))?;
        let key = KeyPair::from_pem(&key).map_err(|error| broken(&error))?;
        let mut certificates = certificates(&text).into_iter();
        let pem = certificates.next().ok_or_else(|| broken(&"its certificate is missing"))?;
        let fingerprint = fingerprint(&pem)?;
        let made = head.and_then(|head| head.made);
        Ok(Some(Self { key, pem, crossed: certificates.next(), fingerprint, made }))
    }

    fn write(&self, path: &Path) -> Result<(), IdentityError> {
        let head = serde_json::to_string(&Head { made: self.made }).unwrap_or_default();
        let crossed = self.crossed.as_deref().unwrap_or_default();
        write_text(path, &format!("{head}\n{}{}{crossed}", self.key.serialize_pem(), self.pem))
    }

    /// Signs a certificate for `key`; PEM.
    pub fn sign(&self, mut what: CertificateParams, key: &KeyPair) -> Result<String, rcgen::Error> {
        what.use_authority_key_identifier_extension = true;
        // The issuer's fields are always the same: its key alone tells authorities apart.
        let issuer = Issuer::new(params(), &self.key);
        Ok(what.signed_by(key, &issuer)?.pem())
    }

    /// May its certificate stand above another authority's? Those from before rolls were made with a path length of 0, which
    /// Go's verifier enforces at a root too (measured): then servers show the old chain until the roll is finished.
    fn may_vouch(&self) -> bool {
        // basicConstraints, critical: SEQUENCE { cA TRUE, pathLenConstraint 0 } (RFC 5280, 4.2.1.9)
        const LENGTH_0: &[u8] = &[0x55, 0x1d, 0x13, 1, 1, 0xff, 4, 8, 0x30, 6, 1, 1, 0xff, 2, 1, 0];
        der(&self.pem).is_some_and(|der| !der.windows(LENGTH_0.len()).any(|part| part == LENGTH_0))
    }
}

/// The authority of a hub from before rolls: `ca.key` and `ca.crt`.
fn before(dir: &Path) -> Result<Option<Authority>, IdentityError> {
    let (key_file, file) = (dir.join(KEY_BEFORE), dir.join(BUNDLE));
    match (read_text(&key_file)?, read_text(&file)?) {
        // A key that never signed anything is no authority.
        (_, None) => Ok(None),
        // A new key beside an old authority would sign what no node trusts.
        (None, Some(_)) => Err(IdentityError::tls(
            dir.join(PRESENT).display().to_string(),
            "the authority's key is missing, though it was used before",
        )),
        (Some(key), Some(pem)) => {
            let key = KeyPair::from_pem(&key)
                .map_err(|error| IdentityError::tls(key_file.display().to_string(), error))?;
            let fingerprint = fingerprint(&pem)?;
            Ok(Some(Authority { key, pem, crossed: None, fingerprint, made: None }))
        }
    }
}

/// The fields of every authority. The path length leaves room for one that follows it.
fn params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = rcgen::date_time_ymd(1970, 1, 1);
    params.distinguished_name.push(DnType::CommonName, "edgewire authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// SHA-256 of a certificate (the first in `pem`), in lower case hex.
pub fn fingerprint(pem: &str) -> Result<String, IdentityError> {
    let broken = || IdentityError::tls("reading a certificate", "it is not PEM");
    der(pem).map(|der| HEXLOWER.encode(&Sha256::digest(der))).ok_or_else(broken)
}

/// [`fingerprint`] of each certificate in `pem`, in order.
pub fn fingerprints(pem: &str) -> Result<Vec<String>, IdentityError> {
    certificates(pem).iter().map(|pem| fingerprint(pem)).collect()
}

fn der(pem: &str) -> Option<Vec<u8>> {
    let pem = certificates(pem).into_iter().next()?;
    let body: String = pem.lines().filter(|line| !line.starts_with("-----")).map(str::trim).collect();
    BASE64.decode(body.as_bytes()).ok().filter(|der| !der.is_empty())
}

/// Every certificate in `pem`, as PEM of its own.
pub(super) fn certificates(pem: &str) -> Vec<String> {
    blocks(pem, "CERTIFICATE-----")
}

/// The secret key in `pem`, as PEM of its own.
pub(super) fn key_in(pem: &str) -> Option<String> {
    blocks(pem, "PRIVATE KEY-----").into_iter().next()
}

fn blocks(pem: &str, end: &str) -> Vec<String> {
    let (mut found, mut block) = (Vec::new(), None::<String>);
    for line in pem.lines().map(str::trim) {
        if line.starts_with("-----BEGIN") {
            block = line.ends_with(end).then(String::new);
        }
        if let Some(text) = &mut block {
            text.push_str(line);
            text.push('\n');
        }
        if line.starts_with("-----END") {
            found.extend(block.take());
        }
    }
    found
}
