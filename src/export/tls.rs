//! TLS configuration of exporters.

use std::sync::Arc;

use tokio_rustls::rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject},
};

/// Returns a client configuration that trusts only these CA certificates (PEM).
pub(super) fn client_config(ca_certificates: &str) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_certificates.as_bytes()) {
        let certificate = certificate.map_err(|error| format!("ca_certificates: {error}"))?;
        roots.add(certificate).map_err(|error| format!("ca_certificates: {error}"))?;
    }
    Ok(ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth())
}
