//! What enrolment leaves on the host: a key and an `enrolment.json`, both private, in the supervisor's state folder.

use std::path::{Path, PathBuf};

use protocol::link::Enrolment;

use crate::{
    key::{HostKey, HostKeyError},
    private_file::{self, PrivateFileError},
};

/// Name of the key's file in the state folder.
pub const KEY_FILE: &str = "host.key";
/// Name of the enrolment's file in the state folder.
pub const ENROLMENT_FILE: &str = "enrolment.json";

/// Why there is no enrolment.
#[derive(Debug, thiserror::Error)]
pub enum EnrolmentError {
    /// The host has not been enrolled.
    #[error("{path} is missing: run `switchboard host enroll --config FILE` first")]
    Missing {
        /// The file that was looked for.
        path: PathBuf,
    },
    /// A file could not be read or written.
    #[error("enrolment file")]
    File(#[from] PrivateFileError),
    /// The file holds something else.
    #[error("{path} is not an enrolment ({detail}): run `switchboard host enroll` again")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// The key is missing or wrong.
    #[error("key of the enrolled host")]
    Key(#[from] HostKeyError),
}

/// Reads both files of the state folder.
pub fn load(state_dir: &Path) -> Result<(Enrolment, HostKey), EnrolmentError> {
    let path = state_dir.join(ENROLMENT_FILE);
    let enrolment = read(&path)?;
    let key_path = state_dir.join(KEY_FILE);
    let key = HostKey::load(&key_path).map_err(|error| match error {
        HostKeyError::File(file) if file.is_missing() => EnrolmentError::Missing { path: key_path },
        HostKeyError::File(_) | HostKeyError::NotAKey { .. } | HostKeyError::Generate => {
            error.into()
        }
    })?;
    Ok((enrolment, key))
}

/// Writes the enrolment into the state folder.
pub fn store(state_dir: &Path, enrolment: &Enrolment) -> Result<(), EnrolmentError> {
    private_file::create_dir(state_dir)?;
    let path = state_dir.join(ENROLMENT_FILE);
    let mut text = serde_json::to_string_pretty(enrolment).map_err(|error| {
        EnrolmentError::Malformed { path: path.clone(), detail: error.to_string() }
    })?;
    text.push('\n');
    Ok(private_file::write(&path, &text)?)
}

fn read(path: &Path) -> Result<Enrolment, EnrolmentError> {
    let text = private_file::read(path).map_err(|error| {
        if error.is_missing() {
            EnrolmentError::Missing { path: path.to_owned() }
        } else {
            error.into()
        }
    })?;
    serde_json::from_str(&text).map_err(|error| EnrolmentError::Malformed {
        path: path.to_owned(),
        detail: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_was_never_enrolled_is_told_the_command() {
        let dir = tempfile::tempdir().unwrap();
        let error = load(dir.path()).unwrap_err();
        assert!(matches!(error, EnrolmentError::Missing { .. }));
        assert!(error.to_string().contains("switchboard host enroll"));
    }

    #[test]
    fn what_is_stored_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let state_dir = dir.path().join("state");
        let (key, _) = HostKey::load_or_generate(&state_dir.join(KEY_FILE)).unwrap();
        let enrolment = Enrolment {
            router: "https://router.example".to_owned(),
            host: protocol::HostId::new(1, [1; 10]),
            phones: Vec::new(),
            router_key: None,
        };
        store(&state_dir, &enrolment).unwrap();
        let (loaded, loaded_key) = load(&state_dir).unwrap();
        assert_eq!(loaded, enrolment);
        assert_eq!(loaded_key.public_base64url(), key.public_base64url());
    }

    #[test]
    fn a_damaged_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        private_file::write(&dir.path().join(ENROLMENT_FILE), "{}").unwrap();
        assert!(load(dir.path()).unwrap_err().to_string().contains(ENROLMENT_FILE));
    }
}
