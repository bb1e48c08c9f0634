//! The certificate that the API shows. It can be replaced while the API is served: connections that stand go on, and who
//! connects next is shown the new one.

use std::sync::{Arc, PoisonError, RwLock};

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::ServeError;

/// A handle; its copies are one.
#[derive(Debug, Clone)]
pub struct Certificate(Arc<Shown>);

#[derive(Debug)]
struct Shown(RwLock<Arc<CertifiedKey>>);

impl Certificate {
    /// Of a chain, the server's own first, and its key (PEM). Other blocks in them are passed over.
    pub fn new(chain_pem: &str, key_pem: &str) -> Result<Self, ServeError> {
        let shown = read(chain_pem, key_pem)?;
        Ok(Self(Arc::new(Shown(RwLock::new(Arc::new(shown))))))
    }

    /// Shows another from now on; on an error the present one stays.
    pub fn replace(&self, chain_pem: &str, key_pem: &str) -> Result<(), ServeError> {
        let next = Arc::new(read(chain_pem, key_pem)?);
        *self.0.0.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(())
    }

    /// What a TLS server shows with it.
    pub fn resolver(&self) -> Arc<dyn ResolvesServerCert> {
        self.0.clone()
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

fn read(chain_pem: &str, key_pem: &str) -> Result<CertifiedKey, ServeError> {
    let bad = |error: &dyn std::fmt::Display| ServeError::Certificate(error.to_string());
    let chain: Vec<CertificateDer<'static>> = rustls_pemfile::certs(&mut chain_pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| bad(&error))?;
    if chain.is_empty() {
        return Err(bad(&"there is no CERTIFICATE block in the PEM"));
    }
    let key: PrivateKeyDer<'static> = rustls_pemfile::private_key(&mut key_pem.as_bytes())
        .map_err(|error| bad(&error))?
        .ok_or_else(|| bad(&"there is no private key block in the PEM"))?;
    let provider = rustls::crypto::ring::default_provider();
    CertifiedKey::from_der(chain, key, &provider).map_err(|error| bad(&error))
}
