//! Credentials at rest: AES-256-GCM, under a key that is not in the store.
//!
//! What is sealed is bound to its place (the provider and the kind of row), so that a row that is copied over another one
//! does not open. Beside it stands which key it was sealed with, so that keys can be changed: the first of the keys seals,
//! all of them open, and what an older one has sealed is sealed anew when it is read.

use std::path::Path;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::{BASE64, HEXLOWER};
use secrecy::{ExposeSecret as _, SecretString};

/// The environment variable that gives the keys; it wins over the file.
pub const KEY_ENV: &str = "SWITCHBOARD_PROVIDERS_KEY";

/// Bytes of a key.
const KEY_BYTES: usize = 32;
/// Bytes of a key's name: enough that no two are alike, and nothing is learnt of the key.
const KEY_ID_BYTES: usize = 8;
/// Longest file of keys that is read.
const FILE_BYTES_MAX: u64 = 4_096;
/// Keys at once: the one in use and those it has replaced.
const KEYS_MAX: usize = 8;

/// Why keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read.
    #[error("{path} cannot be read: {source}")]
    Read {
        /// Which file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Others than its owner may read it.
    #[error("{0} can be read by others: chmod 600 it")]
    Open(String),
    /// Not keys.
    #[error(
        "{0}: each line must be 32 random bytes in base64, 1 to 8 lines; `openssl rand -base64 32` makes one"
    )]
    Malformed(String),
}

/// Why something sealed does not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The key that it was sealed with is not among those that are given.
    #[error(
        "it was sealed with a key that is not given any more: add that key behind the first one"
    )]
    KeyMissing,
    /// It was changed, or belongs elsewhere.
    #[error("it does not open: it was changed, or copied from another row")]
    Broken,
}

/// The keys.
pub struct Seal {
    keys: Vec<(String, RandomizedNonceKey)>,
}

impl std::fmt::Debug for Seal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = self.keys.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("Seal").field("keys", &names).finish()
    }
}

/// Something sealed, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// Which key.
    pub key_id: String,
    /// Nonce, ciphertext, tag.
    pub bytes: Vec<u8>,
}

impl Seal {
    /// Reads the keys of a file that only its owner may read.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        use std::io::Read as _;
        use std::os::unix::fs::PermissionsExt as _;
        let name = path.display().to_string();
        let read = |source| KeyError::Read { path: name.clone(), source };
        let file = std::fs::File::open(path).map_err(read)?;
        // Of the file that is open: the name may stand for another one by now.
        if file.metadata().map_err(read)?.permissions().mode() & 0o077 != 0 {
            return Err(KeyError::Open(name));
        }
        let mut text = String::new();
        file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(read)?;
        Self::parse(&SecretString::from(text), &name)
    }

    /// Takes keys from text: one a line, or separated by commas. `origin` is where they come from, for errors.
    pub fn parse(text: &SecretString, origin: &str) -> Result<Self, KeyError> {
        let malformed = || KeyError::Malformed(origin.to_owned());
        let lines = text.expose_secret().split(['\n', ',']).map(str::trim);
        let keys = lines
            .filter(|line| !line.is_empty())
            .map(|line| {
                let bytes = BASE64.decode(line.as_bytes()).map_err(|_not_base64| malformed())?;
                if bytes.len() != KEY_BYTES {
                    return Err(malformed());
                }
                let id = digest(&SHA256, &bytes);
                let id = id.as_ref().get(..KEY_ID_BYTES).ok_or_else(malformed)?;
                let key = RandomizedNonceKey::new(&AES_256_GCM, &bytes)
                    .map_err(|_unspecified| malformed())?;
                Ok((HEXLOWER.encode(id), key))
            })
            .collect::<Result<Vec<_>, KeyError>>()?;
        if keys.is_empty() || keys.len() > KEYS_MAX {
            return Err(malformed());
        }
        Ok(Self { keys })
    }

    /// The key that seals.
    pub fn key_id(&self) -> &str {
        self.keys.first().map_or("", |(name, _)| name)
    }

    /// Seals `secret` for this place.
    pub fn seal(&self, place: &str, secret: &SecretString) -> Result<Sealed, SealError> {
        let (name, key) = self.keys.first().ok_or(SealError::KeyMissing)?;
        let mut sealed = secret.expose_secret().as_bytes().to_vec();
        let nonce = key
            .seal_in_place_append_tag(Aad::from(bound(place, name)), &mut sealed)
            .map_err(|_unspecified| SealError::Broken)?;
        let mut bytes = nonce.as_ref().to_vec();
        bytes.append(&mut sealed);
        Ok(Sealed { key_id: name.clone(), bytes })
    }

    /// Opens what was sealed for this place.
    pub fn open(&self, place: &str, sealed: &Sealed) -> Result<SecretString, SealError> {
        let (name, key) = self
            .keys
            .iter()
            .find(|(name, _)| *name == sealed.key_id)
            .ok_or(SealError::KeyMissing)?;
        let broken = |_| SealError::Broken;
        let (nonce, text) = sealed.bytes.split_at_checked(NONCE_LEN).ok_or(SealError::Broken)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(broken)?;
        let mut text = text.to_vec();
        let opened =
            key.open_in_place(nonce, Aad::from(bound(place, name)), &mut text).map_err(broken)?;
        let opened = std::str::from_utf8(opened).map_err(|_not_utf8| SealError::Broken)?;
        Ok(SecretString::from(opened))
    }
}

/// What the ciphertext is bound to. Neither part has a line break in it.
fn bound(place: &str, key_id: &str) -> Vec<u8> {
    format!("switchboard provider credentials 1\n{place}\n{key_id}").into_bytes()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn key(n: u8) -> String {
        BASE64.encode(&[n; KEY_BYTES])
    }

    fn seal(text: &str) -> Seal {
        Seal::parse(&SecretString::from(text), "test").unwrap()
    }

    fn secret(text: &str) -> SecretString {
        SecretString::from(text)
    }

    #[test]
    fn what_is_sealed_opens_at_its_place_alone() {
        let keys = seal(&key(1));
        let sealed = keys.seal("twilio:main", &secret("geheim")).unwrap();
        assert_eq!(keys.open("twilio:main", &sealed).unwrap().expose_secret(), "geheim");
        assert!(!sealed.bytes.windows(6).any(|window| window == b"geheim"));
        assert_eq!(keys.open("twilio:other", &sealed).unwrap_err(), SealError::Broken);
        assert_eq!(keys.open("telnyx:main", &sealed).unwrap_err(), SealError::Broken);
        for place in 0..sealed.bytes.len() {
            let mut changed = sealed.clone();
            changed.bytes[place] ^= 1;
            assert_eq!(keys.open("twilio:main", &changed).unwrap_err(), SealError::Broken);
        }
        for length in [0, 1, NONCE_LEN, NONCE_LEN + 1] {
            let cut = Sealed { bytes: sealed.bytes[..length].to_vec(), ..sealed.clone() };
            assert_eq!(keys.open("twilio:main", &cut).unwrap_err(), SealError::Broken);
        }
    }

    #[test]
    fn the_same_secret_is_never_sealed_alike() {
        let keys = seal(&key(1));
        let one = keys.seal("twilio:main", &secret("geheim")).unwrap();
        assert_ne!(one, keys.seal("twilio:main", &secret("geheim")).unwrap());
    }

    #[test]
    fn keys_change_by_putting_a_new_one_first() {
        let old = seal(&key(1));
        let sealed = old.seal("twilio:main", &secret("geheim")).unwrap();
        let both = seal(&format!("{}\n{}\n", key(2), key(1)));
        assert_eq!(both.open("twilio:main", &sealed).unwrap().expose_secret(), "geheim");
        let anew = both.seal("twilio:main", &secret("geheim")).unwrap();
        assert_ne!(anew.key_id, sealed.key_id);
        assert_eq!(anew.key_id, both.key_id());
        let new = seal(&key(2));
        assert_eq!(new.open("twilio:main", &sealed).unwrap_err(), SealError::KeyMissing);
        assert_eq!(new.open("twilio:main", &anew).unwrap().expose_secret(), "geheim");
        // The name of another key does not help.
        let renamed = Sealed { key_id: anew.key_id.clone(), ..sealed };
        assert_eq!(new.open("twilio:main", &renamed).unwrap_err(), SealError::Broken);
    }

    #[test]
    fn what_is_no_key_is_refused_and_never_shown() {
        let many = vec![key(1); 9].join("\n");
        for text in ["", "\n", "short", "!!!!", &BASE64.encode(&[1; 31]), &many] {
            let error = Seal::parse(&SecretString::from(text), "the.file").unwrap_err();
            assert!(matches!(error, KeyError::Malformed(_)), "{error}");
            assert!(text.len() < 5 || !error.to_string().contains(text), "{error}");
        }
        let shown = format!("{:?}", seal(&key(1)));
        assert!(!shown.contains(&key(1)), "{shown}");
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("providers.key");
        assert!(matches!(Seal::load(&path).unwrap_err(), KeyError::Read { .. }));
        std::fs::write(&path, key(1)).unwrap();
        let mode = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode));
        mode(0o640).unwrap();
        assert!(matches!(Seal::load(&path).unwrap_err(), KeyError::Open(_)));
        mode(0o600).unwrap();
        assert_eq!(Seal::load(&path).unwrap().key_id(), seal(&key(1)).key_id());
    }
}
