//! The hub's own certificate authority and its server's certificate. A node trusts this authority and no other; it learns
//! it when it joins, and checks it by its [`fingerprint`], which stands in the join token.
//!
//! Certificates are valid from 1975 to 4096: an edge machine without a clock must still reach its hub. A lost key is
//! answered with a new authority, not by waiting.

use std::path::{Path, PathBuf};

use data_encoding::{BASE64, HEXLOWER};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use sha2::{Digest, Sha256};

use super::IdentityError;
use super::files::{read_text, write_text};

/// Names that every server certificate carries, for programs on the same machine.
const SANS_ALWAYS: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// The files of the authority and of the server's certificate.
#[derive(Debug, Clone)]
pub struct Tls {
    /// The authority's certificate (PEM): what clients trust.
    pub ca_file: PathBuf,
    /// The server's certificate (PEM).
    pub cert_file: PathBuf,
    /// The server's secret key (PEM).
    pub key_file: PathBuf,
    /// The text of `ca_file`.
    pub ca_pem: String,
    /// [`fingerprint`] of the authority.
    pub fingerprint: String,
}

impl Tls {
    /// Reads the files in `dir`, making what is missing. `sans`: host names and addresses by which clients call the
    /// server; when they change, the server's certificate is made anew and the authority stays.
    pub fn load_or_create(dir: &Path, sans: &[String]) -> Result<Self, IdentityError> {
        let mut sans: Vec<String> = sans.to_vec();
        sans.extend(SANS_ALWAYS.map(str::to_owned));
        sans.sort();
        sans.dedup();
        let (ca_file, ca_key_file) = (dir.join("ca.crt"), dir.join("ca.key"));
        let (cert_file, key_file, made_for) =
            (dir.join("server.crt"), dir.join("server.key"), dir.join("server.json"));

        let ca_key = match read_text(&ca_key_file)? {
            Some(pem) => KeyPair::from_pem(&pem)
                .map_err(|error| IdentityError::tls(ca_key_file.display().to_string(), error))?,
            // A new key beside an old authority would sign what no node trusts.
            None if ca_file.exists() => {
                return Err(IdentityError::tls(
                    ca_key_file.display().to_string(),
                    "the authority's key is missing",
                ));
            }
            None => {
                let key =
                    KeyPair::generate().map_err(|e| IdentityError::tls("making the authority's key", e))?;
                write_text(&ca_key_file, &key.serialize_pem())?;
                key
            }
        };
        let ca_pem = match read_text(&ca_file)? {
            Some(pem) => pem,
            None => {
                let ca = ca_params().self_signed(&ca_key);
                let pem = ca.map_err(|e| IdentityError::tls("making the authority", e))?.pem();
                write_text(&ca_file, &pem)?;
                pem
            }
        };
        let fingerprint = fingerprint(&ca_pem)?;

        // What the certificate was made for; written last, so that half-made files are made again.
        let wanted = serde_json::json!({"authority": fingerprint, "sans": sans}).to_string();
        let complete = cert_file.exists() && key_file.exists();
        if !complete || read_text(&made_for)?.as_deref() != Some(&wanted) {
            let making = |error: rcgen::Error| IdentityError::tls(format!("certificate for {sans:?}"), error);
            let mut params = CertificateParams::new(sans.clone()).map_err(making)?;
            params.distinguished_name.push(DnType::CommonName, "edgewire hub");
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            params.use_authority_key_identifier_extension = true;
            let key = KeyPair::generate().map_err(making)?;
            let cert = params.signed_by(&key, &Issuer::new(ca_params(), ca_key)).map_err(making)?;
            write_text(&key_file, &key.serialize_pem())?;
            write_text(&cert_file, &cert.pem())?;
            write_text(&made_for, &wanted)?;
        }
        Ok(Self { ca_file, cert_file, key_file, ca_pem, fingerprint })
    }
}

/// The authority's fields: always the same, so that an issuer can be rebuilt from its key alone.
fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "edgewire authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// SHA-256 of a certificate (the first in `pem`), in lower case hex.
pub fn fingerprint(pem: &str) -> Result<String, IdentityError> {
    let body: String = pem
        .lines()
        .skip_while(|line| !line.starts_with("-----BEGIN CERTIFICATE"))
        .skip(1)
        .take_while(|line| !line.starts_with("-----END"))
        .map(str::trim)
        .collect();
    match BASE64.decode(body.as_bytes()) {
        Ok(der) if !der.is_empty() => Ok(HEXLOWER.encode(&Sha256::digest(der))),
        _ => Err(IdentityError::tls("reading a certificate", "it is not PEM")),
    }
}
