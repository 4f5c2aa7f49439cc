//! Which certificates the router may show.

use std::{path::PathBuf, str::FromStr, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, pem::PemObject},
};
use rustls_platform_verifier::BuilderVerifierExt;

/// Where trust comes from. `"platform"` in the configuration, or the path of a PEM file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum TlsRoots {
    /// What the operating system trusts.
    #[default]
    Platform,
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
    let path = match roots {
        TlsRoots::Platform => return Ok(builder.with_platform_verifier()?.with_no_client_auth()),
        TlsRoots::File(path) => path,
    };
    let wrong = |detail: String| TlsError::Roots { path: path.clone(), detail };
    let mut store = RootCertStore::empty();
    for certificate in
        CertificateDer::pem_file_iter(path).map_err(|error| wrong(error.to_string()))?
    {
        let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
        store.add(certificate).map_err(|error| wrong(error.to_string()))?;
    }
    if store.is_empty() {
        return Err(wrong("there is no certificate in it".to_owned()));
    }
    Ok(builder.with_root_certificates(store).with_no_client_auth())
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
        let error = client_config(&TlsRoots::File(file.path().to_owned())).unwrap_err();
        assert!(error.to_string().contains(&file.path().display().to_string()), "{error}");
    }

    #[test]
    fn the_word_platform_is_the_system_and_anything_else_a_path() {
        assert_eq!("platform".parse(), Ok(TlsRoots::Platform));
        assert_eq!("/etc/ca.pem".parse(), Ok(TlsRoots::File("/etc/ca.pem".into())));
    }
}
