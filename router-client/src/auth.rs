//! Who asks for a link: an Ed25519 signature by a known key, at about this time, for the first time. Either side asks
//! and either side is asked; this is what both check, and how the one that dials and the one that answers sign.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Mutex, PoisonError};

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use data_encoding::BASE64URL_NOPAD;
use protocol::HostId;
use protocol::link::{Authorization, CLOCK_SKEW_MAX_S, PATH};

use crate::key::HostKey;

/// Who dials: each signs under a word of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asker {
    /// A host dials the router.
    Host,
    /// The router dials a host.
    Router,
}

impl Asker {
    fn signed(self, host: &HostId, ts: i64, nonce: &str) -> String {
        // The path that is served, whatever a proxy in front of it adds.
        match self {
            Self::Host => Authorization::signed("GET", PATH, host, ts, nonce),
            Self::Router => Authorization::signed_by_router("GET", PATH, host, ts, nonce),
        }
    }

    /// Signs a request.
    pub fn sign(self, key: &HostKey, host: &HostId, ts: i64, nonce: String) -> Authorization {
        let sig = key.sign(self.signed(host, ts, &nonce).as_bytes());
        Authorization { host: host.clone(), ts, nonce, sig }
    }
}

/// A dialled host's proof that it is the one that was meant.
pub fn prove(key: &HostKey, host: &HostId, nonce: &str) -> String {
    key.sign(Authorization::answered(host, nonce).as_bytes())
}

/// Whether `proof` is that of the holder of `public_key`, for this nonce.
pub fn is_proven(proof: &str, host: &HostId, nonce: &str, public_key: &[u8]) -> bool {
    let Ok(proof) = BASE64URL_NOPAD.decode(proof.as_bytes()) else { return false };
    let signed = Authorization::answered(host, nonce);
    UnparsedPublicKey::new(&ED25519, public_key).verify(signed.as_bytes(), &proof).is_ok()
}

/// Nonces of one host kept at once. A host that dials twice a second for two minutes stays below; one that is beyond
/// is turned away until its oldest are forgotten, so that memory stays bounded.
const NONCES_PER_HOST_MAX: usize = 256;

/// Why a link was refused. Who dials is told nothing but 401, and whether it is for its clock; the rest is for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The header is missing or not of our form.
    #[error("no authorisation of our form")]
    Malformed,
    /// Its clock and ours differ too much, or the request is old.
    #[error("the time is too far from ours")]
    Skew,
    /// No such host.
    #[error("the host is not enrolled")]
    UnknownHost,
    /// Signed by another key, or something else was signed.
    #[error("the signature is wrong")]
    BadSignature,
    /// Seen before.
    #[error("the nonce was used before")]
    Replayed,
    /// Too many requests by this host.
    #[error("too many requests")]
    TooMany,
}

/// What is checked before the key is looked up.
pub fn parse(header: Option<&str>, now_s: i64) -> Result<Authorization, Refused> {
    let authorization: Authorization =
        header.ok_or(Refused::Malformed)?.parse().map_err(|_form| Refused::Malformed)?;
    if now_s.abs_diff(authorization.ts) > CLOCK_SKEW_MAX_S.unsigned_abs() {
        return Err(Refused::Skew);
    }
    Ok(authorization)
}

/// Whether `authorization` was made by `asker`, for our path, by the holder of `public_key`.
pub fn verify(
    asker: Asker,
    authorization: &Authorization,
    public_key: &[u8],
) -> Result<(), Refused> {
    let Authorization { host, ts, nonce, sig } = authorization;
    let sig =
        BASE64URL_NOPAD.decode(sig.as_bytes()).map_err(|_not_base64| Refused::BadSignature)?;
    let signed = asker.signed(host, *ts, nonce);
    UnparsedPublicKey::new(&ED25519, public_key)
        .verify(signed.as_bytes(), &sig)
        .map_err(|_wrong| Refused::BadSignature)
}

/// The nonces of the last two minutes. Only verified ones come in, so that strangers cannot fill it.
#[derive(Debug, Default)]
pub struct Nonces {
    hosts: Mutex<HashMap<HostId, Seen>>,
}

#[derive(Debug, Default)]
struct Seen {
    nonces: HashSet<String>,
    /// In order of arrival, with the second at which each can be forgotten.
    order: VecDeque<(i64, String)>,
}

impl Nonces {
    /// Takes a nonce once.
    pub fn take(&self, authorization: &Authorization, now_s: i64) -> Result<(), Refused> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = hosts.entry(authorization.host.clone()).or_default();
        while seen.order.front().is_some_and(|(until, _)| *until < now_s) {
            if let Some((_, nonce)) = seen.order.pop_front() {
                seen.nonces.remove(&nonce);
            }
        }
        if seen.nonces.contains(&authorization.nonce) {
            return Err(Refused::Replayed);
        }
        if seen.order.len() >= NONCES_PER_HOST_MAX {
            return Err(Refused::TooMany);
        }
        // A request is good until its time is too old, and it may come from a clock that is ahead of ours. Counting
        // from the later of the two keeps the queue in order.
        let until = now_s.saturating_add(CLOCK_SKEW_MAX_S.saturating_mul(2));
        seen.nonces.insert(authorization.nonce.clone());
        seen.order.push_back((until, authorization.nonce.clone()));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};

    use super::*;

    fn signed(key: &Ed25519KeyPair, ts: i64, nonce: &str) -> String {
        let host = HostId::new(1, [1; 10]);
        let sig = key.sign(Authorization::signed("GET", PATH, &host, ts, nonce).as_bytes());
        let sig = BASE64URL_NOPAD.encode(sig.as_ref());
        Authorization { host, ts, nonce: nonce.to_owned(), sig }.to_string()
    }

    fn key(n: u8) -> Ed25519KeyPair {
        Ed25519KeyPair::from_seed_unchecked(&[n; 32]).unwrap()
    }

    const NONCE: &str = "nonce-nonce-nonce-1";

    #[test]
    fn the_enrolled_key_opens() {
        let key = key(1);
        let parsed = parse(Some(&signed(&key, 1_000, NONCE)), 1_000).unwrap();
        assert_eq!(verify(Asker::Host, &parsed, key.public_key().as_ref()), Ok(()));
    }

    #[test]
    fn another_key_or_another_content_does_not() {
        let (mine, other) = (key(1), key(2));
        let parsed = parse(Some(&signed(&mine, 1_000, NONCE)), 1_000).unwrap();
        assert_eq!(
            verify(Asker::Host, &parsed, other.public_key().as_ref()),
            Err(Refused::BadSignature)
        );
        assert_eq!(verify(Asker::Host, &parsed, &[]), Err(Refused::BadSignature));
        for changed in [
            Authorization { ts: 1_001, ..parsed.clone() },
            Authorization { nonce: "nonce-nonce-nonce-2".to_owned(), ..parsed.clone() },
            Authorization { host: HostId::new(1, [2; 10]), ..parsed.clone() },
            Authorization { sig: "A".repeat(86), ..parsed },
        ] {
            assert_eq!(
                verify(Asker::Host, &changed, mine.public_key().as_ref()),
                Err(Refused::BadSignature)
            );
        }
    }

    #[test]
    fn what_one_side_signed_opens_nothing_for_the_other_nor_elsewhere() {
        let key = HostKey::generate().unwrap();
        let public = BASE64URL_NOPAD.decode(key.public_base64url().as_bytes()).unwrap();
        let (here, there) = (HostId::new(1, [1; 10]), HostId::new(1, [2; 10]));
        let (host, router) = (Asker::Host, Asker::Router);
        for (signer, other) in [(host, router), (router, host)] {
            let signed = signer.sign(&key, &here, 1_000, NONCE.to_owned());
            assert_eq!(verify(signer, &signed, &public), Ok(()));
            assert_eq!(verify(other, &signed, &public), Err(Refused::BadSignature));
            let elsewhere = Authorization { host: there.clone(), ..signed };
            assert_eq!(verify(signer, &elsewhere, &public), Err(Refused::BadSignature));
        }
        let proof = prove(&key, &here, NONCE);
        assert!(is_proven(&proof, &here, NONCE, &public));
        assert!(!is_proven(&proof, &there, NONCE, &public));
        assert!(!is_proven(&proof, &here, "nonce-nonce-nonce-2", &public));
        assert!(!is_proven("", &here, NONCE, &public));
        let other = HostKey::generate().unwrap().public_base64url();
        let other = BASE64URL_NOPAD.decode(other.as_bytes()).unwrap();
        assert!(!is_proven(&proof, &here, NONCE, &other));
    }

    #[test]
    fn a_time_too_far_from_ours_is_refused() {
        let header = signed(&key(1), 1_000, NONCE);
        assert!(parse(Some(&header), 1_060).is_ok());
        assert!(parse(Some(&header), 940).is_ok());
        assert_eq!(parse(Some(&header), 1_061), Err(Refused::Skew));
        assert_eq!(parse(Some(&header), 939), Err(Refused::Skew));
        let extreme = signed(&key(1), i64::MIN, NONCE);
        assert_eq!(parse(Some(&extreme), i64::MAX), Err(Refused::Skew));
    }

    #[test]
    fn a_missing_or_foreign_header_is_refused() {
        assert_eq!(parse(None, 0), Err(Refused::Malformed));
        assert_eq!(parse(Some("Bearer sb_live_x"), 0), Err(Refused::Malformed));
    }

    #[test]
    fn a_nonce_is_good_once_and_forgotten_when_its_time_is_over() {
        let nonces = Nonces::default();
        let parsed = parse(Some(&signed(&key(1), 1_000, NONCE)), 1_000).unwrap();
        assert_eq!(nonces.take(&parsed, 1_000), Ok(()));
        assert_eq!(nonces.take(&parsed, 1_000), Err(Refused::Replayed));
        // While the request could still pass the check of its time, it is remembered.
        assert_eq!(nonces.take(&parsed, 1_060), Err(Refused::Replayed));
        assert_eq!(nonces.take(&parsed, 1_121), Ok(()));
    }

    #[test]
    fn a_host_cannot_fill_the_memory() {
        let nonces = Nonces::default();
        let parsed = parse(Some(&signed(&key(1), 1_000, NONCE)), 1_000).unwrap();
        for n in 0..NONCES_PER_HOST_MAX {
            let one = Authorization { nonce: format!("nonce-{n:016}"), ..parsed.clone() };
            assert_eq!(nonces.take(&one, 1_000), Ok(()));
        }
        assert_eq!(nonces.take(&parsed, 1_000), Err(Refused::TooMany));
        let other = Authorization { host: HostId::new(1, [9; 10]), ..parsed };
        assert_eq!(nonces.take(&other, 1_000), Ok(()));
    }
}
