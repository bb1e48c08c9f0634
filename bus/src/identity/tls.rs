//! The certificate that the hub's servers show, and what their clients trust. A node trusts its hub's authorities and no
//! other; it learns them when it joins, checks one by its [`fingerprint`](super::fingerprint), which stands in the join token,
//! and is told over the bus when they change.
//!
//! `server.pem` holds the key, the certificate and what leads from it to an older authority, in one file: it is replaced by
//! one rename, so that whoever reads it, also after a fall, has a pair that fits. Its first line says what it was made for.

use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair};
use schemas::Timestamp;
use serde::{Deserialize, Serialize};

use super::IdentityError;
use super::authority::{Authorities, Authority, BUNDLE, certificates, fingerprint, key_in};
use super::files::{read_text, write_text};

/// Names that every server certificate carries, for programs on the same machine.
const SANS_ALWAYS: [&str; 3] = ["localhost", "127.0.0.1", "::1"];
const SERVER: &str = "server.pem";
/// As hubs kept it before: the key and the certificate could be of two.
const SERVER_BEFORE: [&str; 3] = ["server.crt", "server.key", "server.json"];

/// The hub's certificate and its authorities. It holds a key: not to be printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Tls {
    /// The authorities' certificates (PEM): what clients on this machine trust.
    pub ca_file: PathBuf,
    /// The server's key, its certificate and what leads to an older authority (PEM).
    pub server_file: PathBuf,
    /// The text of `ca_file`, the present authority first.
    pub ca_pem: String,
    /// The text of `server_file`.
    pub server_pem: String,
    /// Fingerprint of the authority that signed the server's certificate: what a token made now holds. It stays good when a
    /// roll is finished.
    pub fingerprint: String,
    /// The present authority.
    pub present: AuthorityFacts,
    /// The one that takes its place, while a roll is under way.
    pub next: Option<AuthorityFacts>,
    /// The server's certificate.
    pub certificate: CertificateFacts,
}

/// An authority, without its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorityFacts {
    /// SHA-256 of its certificate.
    pub fingerprint: String,
    /// When it was made, by the hub's clock; `None` for one from before this was noted.
    pub made: Option<Timestamp>,
}

/// The server's certificate, without its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFacts {
    /// SHA-256 of it.
    pub fingerprint: String,
    /// Host names and addresses that it is for.
    pub sans: Vec<String>,
    /// When it was made, by the hub's clock.
    pub made: Timestamp,
}

/// What a certificate was made for: its file's first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct MadeFor {
    authority: String,
    trusted: Vec<String>,
    sans: Vec<String>,
    made: Timestamp,
}

impl Tls {
    /// Reads the files in `dir`, making what is missing. `sans`: host names and addresses by which clients call the server;
    /// when they change, or an authority does, the server's certificate is made anew.
    pub fn load_or_create(dir: &Path, sans: &[String]) -> Result<Self, IdentityError> {
        Self::settle(dir, &Authorities::read_or_make(dir)?, sans, false)
    }

    /// Makes the server a new key and certificate.
    pub fn renew(dir: &Path, sans: &[String]) -> Result<Self, IdentityError> {
        Self::settle(dir, &Authorities::read_or_make(dir)?, sans, true)
    }

    /// Makes another authority, which is trusted beside the present one. While one is there it stays as it is.
    pub fn roll(dir: &Path, sans: &[String]) -> Result<Self, IdentityError> {
        let mut authorities = Authorities::read_or_make(dir)?;
        authorities.roll(dir)?;
        Self::settle(dir, &authorities, sans, false)
    }

    /// The other authority takes the present one's place, which nobody trusts any more.
    pub fn finish(dir: &Path, sans: &[String]) -> Result<Self, IdentityError> {
        let mut authorities = Authorities::read_or_make(dir)?;
        authorities.finish(dir)?;
        Self::settle(dir, &authorities, sans, false)
    }

    /// What is in `dir` as it lies there (a copy of a hub's), but for what a hub of an older form is read as.
    pub fn read(dir: &Path) -> Result<Self, IdentityError> {
        let authorities = Authorities::read(dir)?;
        let authorities =
            authorities.ok_or_else(|| IdentityError::tls(shown(dir), "there is no authority"))?;
        let sans = made_for(dir)?.map_or_else(Vec::new, |made_for| made_for.sans);
        Self::settle(dir, &authorities, &sans, false)
    }

    /// Brings the derived files to what the authorities and the names say.
    fn settle(
        dir: &Path,
        authorities: &Authorities,
        sans: &[String],
        renew: bool,
    ) -> Result<Self, IdentityError> {
        let mut sans: Vec<String> = sans.to_vec();
        sans.extend(SANS_ALWAYS.map(str::to_owned));
        sans.sort();
        sans.dedup();
        let signer = authorities.signer();
        let facts = |of: &Authority| AuthorityFacts { fingerprint: of.fingerprint.clone(), made: of.made };
        let (present, next) = (facts(&authorities.present), authorities.next.as_ref().map(facts));
        let trusted = [Some(&present), next.as_ref()].into_iter().flatten();
        let wanted = MadeFor {
            authority: signer.fingerprint.clone(),
            trusted: trusted.map(|of| of.fingerprint.clone()).collect(),
            sans: sans.clone(),
            made: Timestamp::now(),
        };
        let server_file = dir.join(SERVER);
        let stands = made_for(dir)?.filter(|have| MadeFor { made: wanted.made, ..have.clone() } == wanted);
        let made = match stands.filter(|_| !renew) {
            Some(have) => have.made,
            None => {
                write_text(&server_file, &issue(signer, &wanted)?)?;
                wanted.made
            }
        };
        let server_pem = read_text(&server_file)?.unwrap_or_default();
        let (ca_file, ca_pem) = (dir.join(BUNDLE), authorities.bundle());
        if read_text(&ca_file)?.as_deref() != Some(&ca_pem) {
            write_text(&ca_file, &ca_pem)?;
        }
        for name in SERVER_BEFORE {
            let _ = std::fs::remove_file(dir.join(name)); // usually not there
        }
        let certificate = CertificateFacts { fingerprint: fingerprint(&server_pem)?, sans, made };
        let fingerprint = signer.fingerprint.clone();
        Ok(Self { ca_file, server_file, ca_pem, server_pem, fingerprint, present, next, certificate })
    }
}

/// What the certificate in `dir` was made for; `None` when there is none that is whole.
fn made_for(dir: &Path) -> Result<Option<MadeFor>, IdentityError> {
    let Some(text) = read_text(&dir.join(SERVER))? else { return Ok(None) };
    let whole = key_in(&text).is_some() && !certificates(&text).is_empty();
    let head = text.lines().next().and_then(|line| serde_json::from_str(line).ok());
    Ok(head.filter(|_| whole))
}

fn issue(signer: &Authority, wanted: &MadeFor) -> Result<String, IdentityError> {
    let making = |error| IdentityError::tls(format!("certificate for {:?}", wanted.sans), error);
    let mut params = CertificateParams::new(wanted.sans.clone()).map_err(making)?;
    params.not_before = rcgen::date_time_ymd(1970, 1, 1);
    params.distinguished_name.push(DnType::CommonName, "edgewire hub");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate().map_err(making)?;
    let certificate = signer.sign(params, &key).map_err(making)?;
    let head = serde_json::to_string(wanted).unwrap_or_default();
    let crossed = signer.crossed.as_deref().unwrap_or_default();
    Ok(format!("{head}\n{}{certificate}{crossed}", key.serialize_pem()))
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use data_encoding::BASE64;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn der(pem: &str) -> Vec<u8> {
        let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
        BASE64.decode(body.as_bytes()).unwrap()
    }

    #[test]
    fn no_clock_finds_a_certificate_too_new_or_too_old() {
        let dir = tempfile::tempdir().unwrap();
        let tls = Tls::roll(dir.path(), &names(&["hub.test"])).unwrap();
        let all = [certificates(&tls.server_pem), certificates(&tls.ca_pem)].concat();
        assert_eq!(
            all.len(),
            4,
            "the server's, the next one as the present one vouches for it, and both authorities"
        );
        for pem in all {
            let der = der(&pem);
            let has = |time: &[u8]| der.windows(time.len()).any(|part| part == time);
            assert!(has(b"700101000000Z") && has(b"40960101000000Z"), "1970 to 4096");
        }
    }

    #[test]
    fn wherever_it_falls_a_start_finds_a_pair_that_fits_and_ends_what_was_begun() {
        let dir = tempfile::tempdir().unwrap();
        let (path, sans) = (dir.path(), names(&["hub.test"]));
        let first = Tls::load_or_create(path, &sans).unwrap();
        assert!(first == Tls::load_or_create(path, &sans).unwrap(), "nothing is made anew for nothing");
        let named = Tls::load_or_create(path, &names(&["hub.test", "other.test"])).unwrap();
        assert_eq!(named.present, first.present);
        assert_ne!(named.certificate.fingerprint, first.certificate.fingerprint);

        // The next authority is there, and nothing that follows from it.
        Authorities::read_or_make(path).unwrap().roll(path).unwrap();
        let rolled = Tls::load_or_create(path, &sans).unwrap();
        assert_eq!(rolled.fingerprint, rolled.next.clone().unwrap().fingerprint);
        assert!(rolled == Tls::roll(path, &sans).unwrap(), "begun once");
        // A reader of a half-written file: it is never there under its name, but a disk may lose what it had.
        std::fs::write(path.join(SERVER), rolled.server_pem.get(..400).unwrap()).unwrap();
        let mended = Tls::load_or_create(path, &sans).unwrap();
        assert_eq!((mended.fingerprint, certificates(&mended.server_pem).len()), (rolled.fingerprint, 2));
        std::fs::remove_file(path.join(BUNDLE)).unwrap();
        assert_eq!(Tls::load_or_create(path, &sans).unwrap().ca_pem, rolled.ca_pem);

        // The old authority is gone, and nothing that follows from that.
        Authorities::read_or_make(path).unwrap().finish(path).unwrap();
        let finished = Tls::load_or_create(path, &sans).unwrap();
        assert_eq!((Some(finished.present), finished.next), (rolled.next, None));
        assert_eq!(certificates(&finished.server_pem).len(), 1);
        assert_eq!(certificates(&std::fs::read_to_string(path.join(BUNDLE)).unwrap()).len(), 1);

        // The authority is lost: never made anew beside what nodes trust.
        std::fs::remove_file(path.join("ca.pem")).unwrap();
        let lost = Tls::load_or_create(path, &sans).map(drop).unwrap_err().to_string();
        assert!(lost.contains("EW-IDENTITY-TLS") && lost.contains("ca.pem"), "{lost}");
    }
}
