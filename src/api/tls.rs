//! TLS of the API from PEM files, read again when they change.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use thiserror::Error;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy, sink},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, RootCertStore, ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
        server::WebPkiClientVerifier,
    },
};
use x509_cert::{
    Certificate,
    der::{Decode, Tag, Tagged, asn1::ObjectIdentifier},
};

use super::settings::TlsSettings;
use crate::model;

/// `id-at-commonName` (RFC 5280 appendix A.1).
const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");

/// Limits of what is read from a client behind a handshake that failed.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_OCTETS: u64 = 64 * 1024;

/// Reason for which the PEM files cannot be used.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{}: {source}", .path.display())]
    File {
        /// Path of the file.
        path: PathBuf,
        /// Error of the operating system.
        source: io::Error,
    },
    /// A file does not hold the expected PEM item.
    #[error("{}: {what}", .path.display())]
    Content {
        /// Path of the file.
        path: PathBuf,
        /// Missing or malformed item of the file.
        what: String,
    },
    /// The TLS library refuses the files, such as a key of another certificate.
    #[error("TLS: {0}")]
    Config(#[from] rustls::Error),
}

/// Builds the acceptor from the present content of the files.
#[derive(Debug)]
pub(super) struct Reloading {
    settings: TlsSettings,
    state: Mutex<State>,
}

struct State {
    acceptor: TlsAcceptor,
    modified: Vec<Option<SystemTime>>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("modified", &self.modified).finish_non_exhaustive()
    }
}

impl Reloading {
    pub(super) fn new(settings: TlsSettings) -> Result<Self, TlsError> {
        let modified = modified(&settings);
        let state = Mutex::new(State { acceptor: acceptor(&settings)?, modified });
        Ok(Self { settings, state })
    }

    /// Changed files that cannot be used leave the earlier ones in force.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let modified = modified(&self.settings);
        if modified != state.modified {
            state.modified = modified;
            match acceptor(&self.settings) {
                Ok(acceptor) => {
                    state.acceptor = acceptor;
                    tracing::info!("TLS files reloaded");
                }
                Err(error) => {
                    tracing::error!(%error, "failed to reload TLS files, keeping previous ones");
                }
            }
        }
        state.acceptor.clone()
    }
}

fn modified(settings: &TlsSettings) -> Vec<Option<SystemTime>> {
    let files = [Some(&settings.certificate), Some(&settings.key), settings.client_ca.as_ref()];
    files.iter().flatten().map(|path| fs::metadata(path).and_then(|m| m.modified()).ok()).collect()
}

fn acceptor(settings: &TlsSettings) -> Result<TlsAcceptor, TlsError> {
    let chain = certificates(&settings.certificate)?;
    let octets = read(&settings.key)?;
    let key = PrivateKeyDer::from_pem_slice(&octets).map_err(|error| TlsError::Content {
        path: settings.key.clone(),
        what: format!("no private key in PEM form: {error}"),
    })?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?;
    let builder = match &settings.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate)?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider)
                .build()
                .map_err(|error| TlsError::Content {
                    path: path.clone(),
                    what: error.to_string(),
                })?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config).into())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let octets = read(path)?;
    let content = |what: String| TlsError::Content { path: path.to_owned(), what };
    model::certificates(&octets).map_err(content)
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|source| TlsError::File { path: path.to_owned(), source })
}

/// Reads what the client has sent already. A socket that is closed with octets unread is reset, and
/// a reset takes the alert from the client's side before it is read.
pub(super) async fn linger(mut stream: TcpStream) {
    if stream.shutdown().await.is_ok() {
        let mut rest = stream.take(LINGER_OCTETS);
        let _ = timeout(LINGER, copy(&mut rest, &mut sink())).await;
    }
}

/// Returns the common name of a certificate's subject (RFC 5280 §4.1.2.6).
pub(super) fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let parsed = Certificate::from_der(certificate).ok()?;
    let names = parsed.tbs_certificate.subject.0;
    let name = names.iter().flat_map(|set| set.0.iter()).find(|name| name.oid == COMMON_NAME)?;
    // The other string types of a DirectoryString are neither ASCII nor UTF-8.
    let is_text = matches!(
        name.value.tag(),
        Tag::Utf8String | Tag::PrintableString | Tag::Ia5String | Tag::TeletexString
    );
    is_text.then(|| str::from_utf8(name.value.value()).ok().map(str::to_owned))?
}
