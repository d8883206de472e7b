//! TLS of HTTPS checks: whom to trust, and what a failed handshake means.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use super::failure::Failure;
use crate::config::TlsCheck;

/// Which certificates are accepted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Trust {
    /// Any: a check asks whether the server works, not who it is.
    Anyone,
    /// Those with a chain to one of the system's authorities, for the right name, in their time.
    System,
    /// The same with the authorities of a PEM file.
    File(PathBuf),
}

impl From<Option<&TlsCheck>> for Trust {
    fn from(check: Option<&TlsCheck>) -> Self {
        match check {
            Some(tls) if tls.tls_verify && tls.tls_ca_file.as_os_str().is_empty() => Self::System,
            Some(tls) if tls.tls_verify => Self::File(tls.tls_ca_file.clone()),
            _ => Self::Anyone,
        }
    }
}

impl Trust {
    /// A client configuration for HTTP/1.1. Sessions are not resumed: every check sees the certificate of now.
    pub(super) fn client_config(&self) -> Result<ClientConfig, String> {
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("TLS cannot be set up: {error}"))?;
        let builder = match self {
            Self::Anyone => {
                builder.dangerous().with_custom_certificate_verifier(Arc::new(AcceptAnyone(provider)))
            }
            Self::System | Self::File(_) => builder.with_root_certificates(self.authorities()?),
        };
        let mut config = builder.with_no_client_auth();
        config.resumption = Resumption::disabled();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }

    fn authorities(&self) -> Result<RootCertStore, String> {
        let certificates = match self {
            Self::File(path) => CertificateDer::pem_file_iter(path)
                .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                .map_err(|error| format!("tls_ca_file {}: {error}", path.display()))?,
            _ => rustls_native_certs::load_native_certs().certs,
        };
        let mut store = RootCertStore::empty();
        let (added, _) = store.add_parsable_certificates(certificates);
        match self {
            Self::File(path) if added == 0 => {
                Err(format!("tls_ca_file {}: no certificate in it, expected PEM", path.display()))
            }
            _ => Ok(store),
        }
    }
}

/// Accepts every certificate and every signature; even keys and algorithms that no browser would take any more,
/// since old appliances have them.
#[derive(Debug)]
struct AcceptAnyone(Arc<CryptoProvider>);

impl ServerCertVerifier for AcceptAnyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// What a failed handshake says about the server.
pub(super) fn failure(error: &Error) -> Failure {
    match error {
        Error::InvalidCertificate(reason) => {
            Failure::Certificate { code: certificate_code(reason), msg: error.to_string() }
        }
        // Not a TLS record at all.
        Error::InvalidMessage(_) => Failure::WrongProtocol,
        other => Failure::Protocol(other.to_string()),
    }
}

/// The names of OpenSSL and Node.js, which people search for.
fn certificate_code(reason: &CertificateError) -> &'static str {
    use CertificateError as E;
    match reason {
        E::Expired | E::ExpiredContext { .. } => "CERT_HAS_EXPIRED",
        E::NotValidYet | E::NotValidYetContext { .. } => "CERT_NOT_YET_VALID",
        E::NotValidForName | E::NotValidForNameContext { .. } => "ERR_TLS_CERT_ALTNAME_INVALID",
        E::UnknownIssuer => "UNABLE_TO_GET_ISSUER_CERT",
        E::Revoked => "CERT_REVOKED",
        E::BadSignature => "CERT_SIGNATURE_FAILURE",
        E::InvalidPurpose | E::InvalidPurposeContext { .. } => "CERT_INVALID_PURPOSE",
        _ => "CERT_REJECTED",
    }
}
