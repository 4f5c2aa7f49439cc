//! Which id each configured phone has: from the enrolment where there is a router, else from a file of our own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use protocol::{E164, PhoneId, UnixMs};
use router_client::enrolment::{self, EnrolmentError};
use router_client::key::HostKey;

use crate::config::{Config, PhoneConfig};
use crate::files::{self, FileError};

/// Ids of the phones of a host that stands alone, by number.
const PHONES_FILE: &str = "phones.json";

/// Why it is not known who the phones are.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdentityError {
    /// The host is not enrolled, or its files are damaged.
    #[error("this host's enrolment with the router")]
    Enrolment(#[source] EnrolmentError),
    /// A configured phone is not part of the enrolment.
    #[error(
        "{number} is not enrolled with the router: run `switchboard host enroll --config {}`",
        config.display()
    )]
    NotEnrolled {
        /// The phone.
        number: E164,
        /// The configuration file.
        config: PathBuf,
    },
    /// The file of ids is damaged.
    #[error("{} is damaged ({detail}): restore it, or delete it to give every phone a new id and journal", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The system has no randomness.
    #[error("the system's random source failed")]
    NoChance,
}

/// The phones by id, and the host's own identity where there is a router.
#[derive(Debug)]
pub(crate) struct Identity {
    /// Every configured phone.
    pub(crate) phones: BTreeMap<PhoneId, PhoneConfig>,
    /// Who this host is to the router.
    pub(crate) host: Option<(protocol::HostId, HostKey)>,
    /// The router's public key, as enrolment gave it.
    pub(crate) router_key: Option<String>,
}

/// Finds out who the phones are.
pub(crate) fn identify(config: &Config, now: UnixMs) -> Result<Identity, IdentityError> {
    match &config.router {
        None => {
            let phones = standalone(&config.state_dir, &config.phones, now)?;
            Ok(Identity { phones, host: None, router_key: None })
        }
        Some(router) => {
            let (enrolment, key) =
                enrolment::load(&config.state_dir).map_err(IdentityError::Enrolment)?;
            if !same_router(&enrolment.router, router.url.as_str()) {
                // The same router may have moved, or stand behind a relay: it decides by the key whether it knows us.
                tracing::warn!(enrolled = enrolment.router, configured = %router.url,
                    "this host was enrolled under another address of the router");
            }
            let mut phones = BTreeMap::new();
            for phone in &config.phones {
                let enrolled = enrolment
                    .phones
                    .iter()
                    .find(|enrolled| enrolled.number == phone.number)
                    .ok_or_else(|| IdentityError::NotEnrolled {
                        number: phone.number.clone(),
                        config: config.file.clone(),
                    })?;
                phones.insert(enrolled.phone.clone(), phone.clone());
            }
            Ok(Identity {
                phones,
                host: Some((enrolment.host, key)),
                router_key: enrolment.router_key,
            })
        }
    }
}

/// One router may be written with `http` or `ws`, with or without a last slash.
fn same_router(a: &str, b: &str) -> bool {
    let plain = |url: &str| {
        url.trim_end_matches('/').replacen("wss://", "https://", 1).replacen("ws://", "http://", 1)
    };
    plain(a) == plain(b)
}

fn standalone(
    state_dir: &Path,
    configured: &[PhoneConfig],
    now: UnixMs,
) -> Result<BTreeMap<PhoneId, PhoneConfig>, IdentityError> {
    let path = state_dir.join(PHONES_FILE);
    let damaged = |error: serde_json::Error| IdentityError::Damaged {
        path: path.clone(),
        detail: error.to_string(),
    };
    let mut ids: BTreeMap<String, PhoneId> = match files::read(&path) {
        Ok(text) => serde_json::from_str(&text).map_err(damaged)?,
        Err(error) if error.is_missing() => BTreeMap::new(),
        Err(error) => return Err(error.into()),
    };
    let before = ids.len();
    let mut phones = BTreeMap::new();
    for phone in configured {
        let number = phone.number.as_str().to_owned();
        let id = match ids.get(&number) {
            Some(id) => id.clone(),
            None => PhoneId::new(now.0, random()?),
        };
        ids.insert(number, id.clone());
        phones.insert(id, phone.clone());
    }
    if ids.len() != before {
        files::write_private(&path, &serde_json::to_string_pretty(&ids).map_err(damaged)?)?;
    }
    Ok(phones)
}

/// Random bytes.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], IdentityError> {
    let mut bytes = [0; N];
    match SystemRandom::new().fill(&mut bytes) {
        Ok(()) => Ok(bytes),
        Err(aws_lc_rs::error::Unspecified) => Err(IdentityError::NoChance),
    }
}

#[cfg(test)]
mod tests {
    use protocol::HostId;
    use protocol::link::{EnrolledPhone, Enrolment};

    use super::*;

    fn config(dir: &Path, more: &str) -> Config {
        let text = format!(
            "state_dir = {:?}\n[[phones]]\nnumber = \"+15550100001\"\nchat_db = \"/a\"\n\
             [[phones]]\nnumber = \"+15550100002\"\nchat_db = \"/b\"\n{more}",
            dir.display().to_string()
        );
        Config::parse(&dir.join("supervisor.toml"), &text).unwrap()
    }

    #[test]
    fn a_host_that_stands_alone_keeps_its_phones_ids() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), "");
        let first = identify(&config, UnixMs(1)).unwrap();
        let second = identify(&config, UnixMs(2)).unwrap();
        assert_eq!(first.phones.len(), 2);
        assert_eq!(
            first.phones.keys().collect::<Vec<_>>(),
            second.phones.keys().collect::<Vec<_>>()
        );
        std::fs::write(dir.path().join(PHONES_FILE), "{\"+1").unwrap();
        assert!(matches!(identify(&config, UnixMs(3)), Err(IdentityError::Damaged { .. })));
    }

    #[test]
    fn a_host_with_a_router_must_be_enrolled_with_all_its_phones() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), "[router]\nurl = \"http://127.0.0.1:7070\"\n");
        let error = identify(&config, UnixMs(1)).unwrap_err();
        assert!(crate::pool::chain(&error).contains("switchboard host enroll"), "{error}");

        HostKey::load_or_generate(&dir.path().join(enrolment::KEY_FILE)).unwrap();
        let enrolled = |numbers: &[&str], router: &str| Enrolment {
            router: router.to_owned(),
            host: HostId::new(1, [1; 10]),
            router_key: None,
            phones: numbers
                .iter()
                .zip(1..)
                .map(|(number, n)| EnrolledPhone {
                    phone: PhoneId::new(n, [2; 10]),
                    number: number.parse().unwrap(),
                })
                .collect(),
        };
        enrolment::store(dir.path(), &enrolled(&["+15550100001"], "http://127.0.0.1:7070"))
            .unwrap();
        assert!(matches!(identify(&config, UnixMs(1)), Err(IdentityError::NotEnrolled { .. })));

        let both = ["+15550100001", "+15550100002"];
        enrolment::store(dir.path(), &enrolled(&both, "http://127.0.0.1:7070/")).unwrap();
        let identity = identify(&config, UnixMs(1)).unwrap();
        assert!(identity.host.is_some());
        assert_eq!(identity.phones.len(), 2);
    }
}
