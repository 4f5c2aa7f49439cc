//! The host's Ed25519 key: made once at enrolment, kept in one private file, signs every upgrade request.

use std::path::Path;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use data_encoding::{BASE64, BASE64URL_NOPAD};

use crate::private_file::{self, PrivateFileError};

const PEM_BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
const PEM_END: &str = "-----END PRIVATE KEY-----";
/// Line length of PEM, RFC 7468.
const PEM_LINE_CHARS: usize = 64;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum HostKeyError {
    /// The file could not be read or written.
    #[error("host key file")]
    File(#[from] PrivateFileError),
    /// The file holds something else.
    #[error(
        "{path} is not an Ed25519 private key in PKCS#8 PEM: restore it, or delete it and run \
         `switchboard host enroll` again"
    )]
    NotAKey {
        /// The file.
        path: std::path::PathBuf,
    },
    /// The system's random source or the cryptographic library failed.
    #[error("no key could be made")]
    Generate,
}

/// The private key of a host. Its `Debug` shows the public half alone.
pub struct HostKey {
    pair: Ed25519KeyPair,
}

impl HostKey {
    /// Makes a new key.
    pub fn generate() -> Result<Self, HostKeyError> {
        match Ed25519KeyPair::generate() {
            Ok(pair) => Ok(Self { pair }),
            // `Unspecified` says nothing by design, so there is no cause to keep.
            Err(aws_lc_rs::error::Unspecified) => Err(HostKeyError::Generate),
        }
    }

    /// Reads the key from its file, which must be readable by its owner alone.
    pub fn load(path: &Path) -> Result<Self, HostKeyError> {
        let text = private_file::read(path)?;
        Self::from_pem(&text).ok_or_else(|| HostKeyError::NotAKey { path: path.to_owned() })
    }

    /// Writes the key to its file, mode 0600, in a directory of mode 0700.
    pub fn store(&self, path: &Path) -> Result<(), HostKeyError> {
        if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            private_file::create_dir(dir)?;
        }
        Ok(private_file::write(path, &self.to_pem()?)?)
    }

    /// Loads the key, or makes and stores one where there is none. True in the second case.
    pub fn load_or_generate(path: &Path) -> Result<(Self, bool), HostKeyError> {
        Self::load_or(path, |key| key.store(path))
    }

    /// The same in a folder that is there and belongs to others, too: its mode is left as it is.
    pub fn load_or_generate_beside(path: &Path) -> Result<(Self, bool), HostKeyError> {
        Self::load_or(path, |key| Ok(private_file::write(path, &key.to_pem()?)?))
    }

    fn load_or(
        path: &Path,
        store: impl FnOnce(&Self) -> Result<(), HostKeyError>,
    ) -> Result<(Self, bool), HostKeyError> {
        match Self::load(path) {
            Ok(key) => Ok((key, false)),
            Err(HostKeyError::File(error)) if error.is_missing() => {
                let key = Self::generate()?;
                store(&key)?;
                Ok((key, true))
            }
            Err(error) => Err(error),
        }
    }

    /// The public half as the router wants it: 32 bytes in base64url without padding.
    pub fn public_base64url(&self) -> String {
        BASE64URL_NOPAD.encode(self.pair.public_key().as_ref())
    }

    /// Signs the bytes; base64url without padding.
    pub fn sign(&self, bytes: &[u8]) -> String {
        BASE64URL_NOPAD.encode(self.pair.sign(bytes).as_ref())
    }

    fn to_pem(&self) -> Result<String, HostKeyError> {
        let Ok(document) = self.pair.to_pkcs8v1() else { return Err(HostKeyError::Generate) };
        let body = BASE64.encode(document.as_ref());
        let mut pem = format!("{PEM_BEGIN}\n");
        let mut rest = body.as_str();
        while !rest.is_empty() {
            let (line, after) = rest.split_at_checked(PEM_LINE_CHARS).unwrap_or((rest, ""));
            pem.push_str(line);
            pem.push('\n');
            rest = after;
        }
        pem.push_str(PEM_END);
        pem.push('\n');
        Ok(pem)
    }

    fn from_pem(text: &str) -> Option<Self> {
        let body = text.trim().strip_prefix(PEM_BEGIN)?.strip_suffix(PEM_END)?;
        let base64: String = body.split_whitespace().collect();
        let der = BASE64.decode(base64.as_bytes()).ok()?;
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der).ok()?;
        Some(Self { pair })
    }
}

impl std::fmt::Debug for HostKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostKey").field("public", &self.public_base64url()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};

    use super::*;

    #[test]
    fn a_stored_key_is_the_same_key_when_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state/host.key");
        let (made, new) = HostKey::load_or_generate(&path).unwrap();
        let (loaded, again) = HostKey::load_or_generate(&path).unwrap();
        assert!(new && !again);
        assert_eq!(made.public_base64url(), loaded.public_base64url());
        let signature = BASE64URL_NOPAD.decode(loaded.sign(b"text").as_bytes()).unwrap();
        UnparsedPublicKey::new(&ED25519, made.pair.public_key().as_ref())
            .verify(b"text", &signature)
            .unwrap();
    }

    #[test]
    fn a_key_in_a_folder_of_others_is_private_and_leaves_the_folder_as_it_is() {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let dir = tempfile::tempdir().unwrap();
        let shared = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(dir.path(), shared).unwrap();
        let path = dir.path().join("router.key");
        let (made, new) = HostKey::load_or_generate_beside(&path).unwrap();
        let (loaded, again) = HostKey::load_or_generate_beside(&path).unwrap();
        assert!(new && !again);
        assert_eq!(made.public_base64url(), loaded.public_base64url());
        assert_eq!((mode(dir.path()), mode(&path)), (0o755, 0o600));
    }

    #[test]
    fn what_is_not_a_key_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("host.key");
        for text in ["", PEM_BEGIN, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----"]
        {
            private_file::write(&path, text).unwrap();
            assert!(matches!(HostKey::load(&path).unwrap_err(), HostKeyError::NotAKey { .. }));
        }
    }

    #[test]
    fn debug_shows_the_public_half_alone() {
        let key = HostKey::generate().unwrap();
        let shown = format!("{key:?}");
        let secret = key.to_pem().unwrap();
        let body = secret.lines().nth(1).unwrap();
        assert!(shown.contains(&key.public_base64url()));
        assert!(!shown.contains(body));
    }
}
