//! Which certificates the router may show.

use std::{
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use rustls::{
    CertificateError, ClientConfig, RootCertStore,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, pem::PemObject},
};
use rustls_platform_verifier::{BuilderVerifierExt, Verifier};

/// Where trust comes from. `"platform"` in the configuration, or the path of a PEM file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum TlsRoots {
    /// What the operating system trusts.
    #[default]
    Platform,
    /// What the operating system trusts, and the certificates in this PEM file: for a network whose proxy reads along
    /// with an authority of its own, which launchd's agents need not know.
    PlatformAnd(PathBuf),
    /// The certificates in this PEM file and no others: for a router with a certificate of its own making, and for
    /// machines whose own trust store is broken (macOS 15.0 refused every certificate for some, cc-switch#3968).
    File(PathBuf),
}

impl FromStr for TlsRoots {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(if text == "platform" { Self::Platform } else { Self::File(PathBuf::from(text)) })
    }
}

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The PEM file could not be read, or has no certificate that can be used.
    #[error("certificates in {path}: {detail}")]
    Roots {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// The library refused its own settings, or the system's trust store could not be opened.
    #[error("TLS settings")]
    Settings(#[from] rustls::Error),
}

/// The cryptographic provider of the whole program, aws-lc-rs, named so that no default has to be installed first.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// The client side of TLS with these roots.
pub fn client_config(roots: &TlsRoots) -> Result<ClientConfig, TlsError> {
    let builder =
        ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    match roots {
        TlsRoots::Platform => Ok(builder.with_platform_verifier()?.with_no_client_auth()),
        TlsRoots::PlatformAnd(path) => {
            let (certificates, _) = certificates(path)?;
            let verifier = Verifier::new_with_extra_roots(certificates, provider())?;
            // It is the platform's verifier after all; the library calls any that is handed over dangerous.
            let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
            Ok(builder.with_no_client_auth())
        }
        TlsRoots::File(path) => {
            let (_, store) = certificates(path)?;
            Ok(builder.with_root_certificates(store).with_no_client_auth())
        }
    }
}

/// The certificates of a PEM file, at least one, each of which can be a root.
fn certificates(path: &Path) -> Result<(Vec<CertificateDer<'static>>, RootCertStore), TlsError> {
    let wrong = |detail: String| TlsError::Roots { path: path.to_owned(), detail };
    let mut certificates = Vec::new();
    let mut store = RootCertStore::empty();
    for certificate in
        CertificateDer::pem_file_iter(path).map_err(|error| wrong(error.to_string()))?
    {
        let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
        store.add(certificate.clone()).map_err(|error| wrong(error.to_string()))?;
        certificates.push(certificate);
    }
    if certificates.is_empty() {
        return Err(wrong("there is no certificate in it".to_owned()));
    }
    Ok((certificates, store))
}

/// Why a handshake failed, in words that say what to do.
pub(crate) fn explain(error: &std::io::Error) -> String {
    let cause = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let Some(rustls::Error::InvalidCertificate(why)) = cause else { return error.to_string() };
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the library's enum, which grows; there is no word for the rest"
    )]
    let remedy = match why {
        CertificateError::UnknownIssuer => {
            "nobody who is trusted here has signed it. A router with a certificate of its own making needs `roots`, a \
             proxy that reads along needs `extra_ca`; or a portal answers in the router's place"
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "it belongs to another name. Look at `url`; or a portal answers in the router's place"
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "it has expired, or this machine's clock is ahead"
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "it is not valid yet, or this machine's clock is behind"
        }
        _ => "it cannot be used",
    };
    format!("{error}: {remedy}")
}

/// TLS that trusts nobody, for connections that have none: their library wants settings all the same.
pub fn no_roots() -> Result<ClientConfig, TlsError> {
    let builder =
        ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    Ok(builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_certificates_is_refused_by_its_path() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for roots in [TlsRoots::File, TlsRoots::PlatformAnd] {
            let error = client_config(&roots(file.path().to_owned())).unwrap_err();
            assert!(error.to_string().contains(&file.path().display().to_string()), "{error}");
        }
    }

    #[test]
    fn the_word_platform_is_the_system_and_anything_else_a_path() {
        assert_eq!("platform".parse(), Ok(TlsRoots::Platform));
        assert_eq!("/etc/ca.pem".parse(), Ok(TlsRoots::File("/etc/ca.pem".into())));
    }
}
