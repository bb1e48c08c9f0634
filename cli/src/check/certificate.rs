//! The certificates that a server showed, and whether a node would trust them.
//!
//! The handshake itself takes whatever is shown and records it, so that a wrong certificate can be named instead of only
//! refused. Nothing secret is ever sent over such a connection. The judgement is made afterwards, by the rules by which
//! a node joins: one authority, known by its fingerprint, and the name.

use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use sha2::{Digest, Sha256};

/// How a hub's own authority calls itself.
const HUB_AUTHORITY: &str = "edgewire authority";

/// What a server showed, its own certificate first.
pub type Chain = Vec<CertificateDer<'static>>;

/// Would a node trust it?
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// Signed by the authority that was asked for.
    Pinned,
    /// Signed by what calls itself a hub's authority; nobody said which one to expect. Its fingerprint.
    NotCompared(String),
    /// By another authority: who signed, and its fingerprint.
    Other(String, String),
    /// By the right authority, but for other names.
    WrongName,
    /// The right authority, at the wrong time: when it is good, as words.
    WrongTime(String),
    /// Broken, in the library's words.
    Broken(String),
}

/// Judges `chain`, shown by `host`. `pin`: the fingerprint to expect. `authority`: a certificate that was found to be the
/// right authority elsewhere, for a server that does not send it along.
pub fn judge(
    chain: &Chain,
    host: &str,
    pin: Option<&str>,
    authority: Option<&CertificateDer<'static>>,
    now: UnixTime,
) -> Trust {
    let Some((own, others)) = chain.split_first() else {
        return Trust::Broken("it shows no certificate".to_owned());
    };
    let wanted = match (authority, pin) {
        (Some(authority), _) => Some(authority),
        (None, Some(pin)) => others.iter().find(|der| fingerprint(der) == pin),
        (None, None) => others.last(),
    };
    let other = || {
        let top = chain.last().unwrap_or(own);
        Trust::Other(issuer(own).unwrap_or_else(|| "nobody named".to_owned()), fingerprint(top))
    };
    // A self-signed one or somebody else's: nothing that a hub shows.
    let Some(root) = wanted else { return other() };
    match verify(root, own, others, host, now) {
        Ok(()) if pin.is_none() && issuer(own).as_deref() != Some(HUB_AUTHORITY) => other(),
        Ok(()) if pin.is_none() => Trust::NotCompared(fingerprint(root)),
        Ok(()) => Trust::Pinned,
        Err(Error::InvalidCertificate(error)) => match error {
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                Trust::WrongName
            }
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => Trust::WrongTime(error.to_string()),
            // Not of that authority. By name it may even be: what matters is the signature.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => other(),
            error => Trust::Broken(error.to_string()),
        },
        Err(error) => Trust::Broken(error.to_string()),
    }
}

/// Who signed what was shown, if that is nobody who calls itself a hub's authority: for a server whose authority is not
/// known.
pub fn stranger(chain: &Chain) -> Option<Trust> {
    let by = issuer(chain.first()?).unwrap_or_else(|| "nobody named".to_owned());
    (by != HUB_AUTHORITY).then(|| Trust::Other(by, chain.last().map(fingerprint).unwrap_or_default()))
}

/// The certificate in `chain` by which others of the same hub can be judged.
pub fn authority(chain: &Chain, pin: Option<&str>) -> Option<CertificateDer<'static>> {
    let others = chain.get(1..)?;
    match pin {
        Some(pin) => others.iter().find(|der| fingerprint(der) == pin).cloned(),
        None => others.last().cloned(),
    }
}

fn verify(
    root: &CertificateDer<'static>,
    own: &CertificateDer<'static>,
    others: &[CertificateDer<'static>],
    host: &str,
    now: UnixTime,
) -> Result<(), Error> {
    let mut roots = RootCertStore::empty();
    roots.add(root.clone())?;
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| Error::InvalidCertificate(CertificateError::NotValidForName))?;
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .map_err(|error| Error::General(error.to_string()))?
        .verify_server_cert(own, others, &name, &[], now)
        .map(drop)
}

/// SHA-256 in lower case hex, as a join token has it.
fn fingerprint(der: &CertificateDer<'static>) -> String {
    Sha256::digest(der.as_ref()).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Who signed a certificate: the common name of its issuer, else its organisation. Read by hand, as far as needed: a
/// certificate begins version, serial number, algorithm, issuer (RFC 5280, 4.1).
fn issuer(der: &CertificateDer<'_>) -> Option<String> {
    const SEQUENCE: u8 = 0x30;
    const SET: u8 = 0x31;
    const VERSION: u8 = 0xa0;
    const OBJECT_ID: u8 = 0x06;
    const COMMON_NAME: &[u8] = &[0x55, 4, 3];
    const ORGANISATION: &[u8] = &[0x55, 4, 10];

    let inside = |bytes, wanted| element(bytes).filter(|(tag, ..)| *tag == wanted).map(|(_, body, _)| body);
    let mut rest = inside(inside(der.as_ref(), SEQUENCE)?, SEQUENCE)?;
    if let (VERSION, _, after) = element(rest)? {
        rest = after;
    }
    let (_, _, rest) = element(rest)?; // serial number
    let (_, _, rest) = element(rest)?; // algorithm
    let mut names = inside(rest, SEQUENCE)?;
    let (mut common, mut organisation) = (None, None);
    while let Some((SET, part, after)) = element(names) {
        names = after;
        let Some((OBJECT_ID, id, value)) = inside(part, SEQUENCE).and_then(element) else { continue };
        let text = element(value).map(|(_, text, _)| String::from_utf8_lossy(text).into_owned());
        match id {
            COMMON_NAME => common = text,
            ORGANISATION => organisation = text,
            _ => {}
        }
    }
    common.or(organisation)
}

/// The first DER element of `bytes`: its tag, what is in it, and what follows it.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, rest) = bytes.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(*first), rest),
        0x81..=0x83 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first - 0x80))?;
            (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
        }
        _ => return None,
    };
    let (body, rest) = rest.split_at_checked(length)?;
    Some((*tag, body, rest))
}

/// Takes every certificate and keeps it to be judged; that the server holds its key is still checked.
#[derive(Debug)]
pub struct Recorder {
    provider: Arc<CryptoProvider>,
    shown: Mutex<Chain>,
}

impl Recorder {
    /// A client's settings that record, and where they record to.
    pub fn client() -> Result<(rustls::ClientConfig, Arc<Self>), Error> {
        let provider = provider();
        let recorder = Arc::new(Self { provider: provider.clone(), shown: Mutex::default() });
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(recorder.clone())
            .with_no_client_auth();
        Ok((config, recorder))
    }

    /// What was shown.
    pub fn chain(&self) -> Chain {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ServerCertVerifier for Recorder {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain = std::iter::once(end_entity).chain(intermediates).map(|der| der.clone().into_owned());
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = chain.collect();
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::pem::PemObject;

    /// A hub's own certificates, made by the code that makes them for a hub; and the fingerprint for its tokens.
    fn hub() -> (Chain, String) {
        let dir = tempfile::tempdir().unwrap();
        let tls = bus::identity::Tls::load_or_create(dir.path(), &["hub.example".to_owned()]).unwrap();
        let pem = tls.server_pem.clone() + &tls.ca_pem;
        let chain = CertificateDer::pem_slice_iter(pem.as_bytes()).map(Result::unwrap).collect();
        (chain, tls.fingerprint)
    }

    fn foreign(issuer_name: &str) -> Chain {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "Middle Ltd");
        params.distinguished_name.push(rcgen::DnType::CommonName, issuer_name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca = params.self_signed(&key).unwrap();
        let issuer = rcgen::Issuer::new(params, key);
        let own = rcgen::CertificateParams::new(vec!["hub.example".to_owned()]).unwrap();
        let own = own.signed_by(&rcgen::KeyPair::generate().unwrap(), &issuer).unwrap();
        vec![own.der().clone(), ca.der().clone()]
    }

    #[test]
    fn only_the_hubs_own_authority_is_trusted() {
        let (chain, print) = hub();
        let now = UnixTime::now();
        let pin = Some(print.as_str());
        assert_eq!(judge(&chain, "hub.example", pin, None, now), Trust::Pinned);
        assert_eq!(judge(&chain, "hub.example", None, None, now), Trust::NotCompared(print.clone()));
        assert_eq!(judge(&chain, "127.0.0.1", pin, None, now), Trust::Pinned, "hubs always have that name");
        assert_eq!(judge(&chain, "other.example", pin, None, now), Trust::WrongName);
        assert_eq!(judge(&chain, "192.0.2.9", None, None, now), Trust::WrongName);
        let alone = vec![chain[0].clone()];
        let ca = authority(&chain, pin).unwrap();
        assert_eq!(judge(&alone, "hub.example", pin, Some(&ca), now), Trust::Pinned);
        assert!(
            matches!(judge(&alone, "hub.example", pin, None, now), Trust::Other(by, _) if by == HUB_AUTHORITY)
        );
        assert!(matches!(judge(&vec![], "hub.example", pin, None, now), Trust::Broken(_)));
    }

    #[test]
    fn whoever_signs_in_between_is_named() {
        let (_, pin) = hub();
        let now = UnixTime::now();
        for pin in [Some(pin.as_str()), None] {
            let Trust::Other(by, print) = judge(&foreign("Middlebox"), "hub.example", pin, None, now) else {
                panic!("trusted with {pin:?}")
            };
            assert_eq!((by.as_str(), print.len()), ("Middlebox", 64));
        }
        assert!(matches!(stranger(&foreign("Middlebox")), Some(Trust::Other(by, _)) if by == "Middlebox"));
        assert_eq!((stranger(&hub().0), stranger(&vec![])), (None, None));
        // One that only calls itself so does not have the fingerprint.
        let posing = judge(&foreign(HUB_AUTHORITY), "hub.example", Some(&pin), None, now);
        assert!(matches!(posing, Trust::Other(by, _) if by == HUB_AUTHORITY));
        // The leaf's certificate signed by another than the API's.
        let (hub, _) = self::hub();
        let ca = authority(&hub, None).unwrap();
        assert!(matches!(
            judge(&foreign("Middlebox"), "hub.example", None, Some(&ca), now),
            Trust::Other(by, _) if by == "Middlebox"
        ));
    }

    #[test]
    fn a_clock_before_the_certificate_is_told_apart() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, HUB_AUTHORITY);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca = params.self_signed(&key).unwrap();
        let issuer = rcgen::Issuer::new(params, key);
        let mut own = rcgen::CertificateParams::new(vec!["hub.example".to_owned()]).unwrap();
        own.not_before = rcgen::date_time_ymd(2026, 1, 1);
        let own = own.signed_by(&rcgen::KeyPair::generate().unwrap(), &issuer).unwrap();
        let chain = vec![own.der().clone(), ca.der().clone()];
        let then = UnixTime::since_unix_epoch(std::time::Duration::from_secs(3600));
        assert!(matches!(judge(&chain, "hub.example", None, None, then), Trust::WrongTime(_)));
    }

    #[test]
    fn what_is_no_certificate_has_no_issuer() {
        let (chain, _) = hub();
        assert_eq!(issuer(&chain[0]).as_deref(), Some(HUB_AUTHORITY));
        let whole = chain[0].as_ref();
        for cut in 0..whole.len().min(200) {
            issuer(&CertificateDer::from(&whole[..cut])); // must not panic
        }
        assert_eq!(issuer(&CertificateDer::from(&b"\x30\x84\xff\xff\xff\xff"[..])), None);
    }

    #[test]
    fn whatever_is_sent_as_a_certificate_is_read() {
        let (chain, _) = hub();
        let samples: Vec<Vec<u8>> = chain.iter().map(|der| der.to_vec()).collect();
        crate::fuzz::try_bytes("a certificate", &samples, |bytes| {
            let _ = issuer(&CertificateDer::from(bytes.to_vec()));
        });
    }
}
