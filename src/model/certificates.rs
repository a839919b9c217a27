//! Certificates in PEM format.

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};

/// Returns the certificates of a text in PEM format (RFC 7468), at least one. Each is parsed, so that
/// a damaged one is found before a handshake needs it. Blocks of other kinds are skipped.
pub fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut found = Vec::new();
    for block in CertificateDer::pem_slice_iter(pem) {
        let number = found.len() + 1;
        let certificate =
            block.map_err(|error| format!("invalid PEM in certificate {number}: {error}"))?;
        RootCertStore::empty().add(certificate.clone()).map_err(|error| {
            let bytes = certificate.len();
            format!(
                "certificate {number} ({bytes} bytes) cannot be parsed: {error}; expected X.509 in \
                 DER, encoded as PEM"
            )
        })?;
        found.push(certificate);
    }
    if found.is_empty() {
        return Err("contains no certificate in PEM format: expected \
                    -----BEGIN CERTIFICATE-----"
            .into());
    }
    Ok(found)
}
