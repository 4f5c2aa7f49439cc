//! What Cloudflare Access says of a request: a token in `Cf-Access-Jwt-Assertion`, verified by Access's own keys.
//!
//! The header alone proves nothing; whoever reaches the listener can send one. So its signature (RS256) is checked
//! against the keys that the team's domain lists, its audience, its issuer and its times (facts: 6.4). Keys are asked for
//! when there are none, when those known are an hour old, and, at most once a minute, when a token names one that is not
//! known: they change every six weeks, and the old ones stay listed for a week. What cannot be checked is refused.

use std::collections::BTreeMap;
use std::time::Duration;

use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents};
use data_encoding::BASE64URL_NOPAD;
use protocol::link::CLOCK_SKEW_MAX_S;
use router_client::clock::ContinuousMs;
use router_client::tls::{self, TlsRoots};
use serde::Deserialize;
use tokio::sync::Mutex;
use url::Url;

use crate::pool::{chain, ms};

/// The header that Access adds to what it has let through.
pub(crate) const HEADER: &str = "cf-access-jwt-assertion";
/// Where a team's domain lists its keys.
const CERTS: &str = "/cdn-cgi/access/certs";
/// Keys are believed for so long.
const FRESH: Duration = Duration::from_hours(1);
/// A token that names an unknown key has them asked for at most so often: anybody can name one.
const UNKNOWN_EVERY: Duration = Duration::from_mins(1);
/// After a question without an answer.
const FAILED_EVERY: Duration = Duration::from_secs(5);
/// Headers of requests are some kilobytes in all; real tokens have about one.
const TOKEN_BYTES_MAX: usize = 8 * 1024;
/// A list of two keys, with their certificates, has about 8 KiB.
const LIST_BYTES_MAX: usize = 128 * 1024;
/// Keys of one list. Access has two.
const KEYS_MAX: usize = 32;
const ASK_WITHIN: Duration = Duration::from_secs(5);

/// Whose tokens are believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    /// The team's domain: `https://TEAM.cloudflareaccess.com`.
    pub(crate) issuer: Url,
    /// The audience tag of the Access application before this host.
    pub(crate) audience: String,
}

impl Settings {
    fn issuer(&self) -> &str {
        self.issuer.as_str().trim_end_matches('/')
    }
}

/// Why a request is not believed. The caller is told 403, or 503 for what may pass; this is for the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    /// There is no token.
    #[error("it did not come through Cloudflare Access")]
    Missing,
    /// Not a token of the form that Access has.
    #[error("its Access token is malformed")]
    Malformed,
    /// Signed in another way.
    #[error("its Access token is not signed by RS256")]
    Algorithm,
    /// Nobody knows the key that it names.
    #[error("its Access token names a key that {0} does not list")]
    UnknownKey(String),
    /// The signature is not the key's.
    #[error("the signature of its Access token is wrong")]
    Signature,
    /// Of another team.
    #[error("its Access token is of another team")]
    Issuer,
    /// For another application.
    #[error("its Access token is for another application; is `audience` of [router.access] right?")]
    Audience,
    /// Over.
    #[error("its Access token has expired, or this machine's clock is ahead")]
    Expired,
    /// Not yet.
    #[error("its Access token is not valid yet, or this machine's clock is behind")]
    NotYet,
    /// The keys could not be had.
    #[error("the keys of Cloudflare Access cannot be had: {0}")]
    NoKeys(String),
}

impl Refused {
    /// True for what the next try may not meet.
    pub(crate) fn may_pass(&self) -> bool {
        matches!(self, Self::NoKeys(_))
    }
}

/// A public key of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Key {
    n: Vec<u8>,
    e: Vec<u8>,
}

/// Keys by their ids.
type Keys = BTreeMap<String, Key>;

/// Reads a list of keys (RFC 7517). What is not an RSA key for signatures is left out.
fn keys(list: &[u8]) -> Option<Keys> {
    #[derive(Deserialize)]
    struct List {
        keys: Vec<Listed>,
    }
    #[derive(Deserialize)]
    struct Listed {
        kid: Option<String>,
        kty: Option<String>,
        n: Option<String>,
        e: Option<String>,
    }
    let list: List = serde_json::from_slice(list).ok()?;
    let decode = |text: Option<String>| BASE64URL_NOPAD.decode(text?.as_bytes()).ok();
    let keys = list.keys.into_iter().take(KEYS_MAX).filter_map(|listed| {
        let key = Key { n: decode(listed.n)?, e: decode(listed.e)? };
        (listed.kty.as_deref() == Some("RSA")).then_some((listed.kid?, key))
    });
    Some(keys.collect())
}

/// A token, taken apart and not believed yet.
struct Token<'a> {
    kid: String,
    signed: &'a str,
    signature: Vec<u8>,
    payload: Vec<u8>,
}

fn token(text: &str) -> Result<Token<'_>, Refused> {
    #[derive(Deserialize)]
    struct Header {
        alg: String,
        kid: Option<String>,
    }
    if text.len() > TOKEN_BYTES_MAX {
        return Err(Refused::Malformed);
    }
    let decode =
        |part: &str| BASE64URL_NOPAD.decode(part.as_bytes()).map_err(|_form| Refused::Malformed);
    let (signed, signature) = text.rsplit_once('.').ok_or(Refused::Malformed)?;
    let (header, payload) = signed.split_once('.').ok_or(Refused::Malformed)?;
    let header: Header =
        serde_json::from_slice(&decode(header)?).map_err(|_form| Refused::Malformed)?;
    // Nothing else is ever tried: a token must not choose how it is checked.
    if header.alg != "RS256" {
        return Err(Refused::Algorithm);
    }
    let kid = header.kid.ok_or(Refused::Malformed)?;
    Ok(Token { kid, signed, signature: decode(signature)?, payload: decode(payload)? })
}

/// Whether a token is good at this time, by these keys.
fn verify(token: &Token<'_>, keys: &Keys, settings: &Settings, now_s: i64) -> Result<(), Refused> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Audience {
        One(String),
        Several(Vec<String>),
    }
    #[derive(Deserialize)]
    struct Claims {
        iss: String,
        aud: Audience,
        exp: i64,
        nbf: Option<i64>,
    }
    let key =
        keys.get(&token.kid).ok_or_else(|| Refused::UnknownKey(settings.issuer().to_owned()))?;
    RsaPublicKeyComponents { n: &key.n, e: &key.e }
        .verify(&RSA_PKCS1_2048_8192_SHA256, token.signed.as_bytes(), &token.signature)
        .map_err(|_wrong| Refused::Signature)?;
    let claims: Claims =
        serde_json::from_slice(&token.payload).map_err(|_form| Refused::Malformed)?;
    if claims.iss != settings.issuer() {
        return Err(Refused::Issuer);
    }
    let ours = match &claims.aud {
        Audience::One(one) => *one == settings.audience,
        Audience::Several(several) => several.contains(&settings.audience),
    };
    if !ours {
        return Err(Refused::Audience);
    }
    if now_s >= claims.exp.saturating_add(CLOCK_SKEW_MAX_S) {
        return Err(Refused::Expired);
    }
    if claims.nbf.is_some_and(|from| now_s < from.saturating_sub(CLOCK_SKEW_MAX_S)) {
        return Err(Refused::NotYet);
    }
    Ok(())
}

/// The keys that are known, and when they were asked for.
#[derive(Debug, Default)]
struct Ring {
    keys: Keys,
    /// When they came.
    since: Option<ContinuousMs>,
    /// When they were asked for last, and whether that was answered.
    asked: Option<(ContinuousMs, bool)>,
}

impl Ring {
    fn is_fresh(&self, now: ContinuousMs) -> bool {
        self.since.is_some_and(|since| now.saturating_sub(since) < ms(FRESH))
    }

    /// Whether to ask for keys, for a token that names this one.
    fn wants(&self, kid: &str, now: ContinuousMs) -> bool {
        let unknown = !self.keys.contains_key(kid);
        let wait = match self.asked {
            None => return true,
            Some((_, false)) => FAILED_EVERY,
            Some((_, true)) if self.is_fresh(now) => UNKNOWN_EVERY,
            Some((_, true)) => Duration::ZERO,
        };
        let rested = self.asked.is_none_or(|(at, _)| now.saturating_sub(at) >= ms(wait));
        (unknown || !self.is_fresh(now)) && rested
    }
}

/// Checks requests.
#[derive(Debug)]
pub(crate) struct Access {
    settings: Settings,
    client: reqwest::Client,
    ring: Mutex<Ring>,
}

/// Why tokens cannot be checked at all.
#[derive(Debug, thiserror::Error)]
#[error("asking for the keys of Cloudflare Access: {0}")]
pub(crate) struct NoClient(String);

impl Access {
    pub(crate) fn new(settings: Settings) -> Result<Self, NoClient> {
        let roots = if settings.issuer.scheme() == "https" {
            tls::client_config(&TlsRoots::Platform)
        } else {
            tls::no_roots()
        };
        let client = roots.map_err(|error| NoClient(chain(&error))).and_then(|roots| {
            reqwest::Client::builder()
                .tls_backend_preconfigured(roots)
                .redirect(reqwest::redirect::Policy::none())
                .timeout(ASK_WITHIN)
                .user_agent(concat!("switchboard/", env!("CARGO_PKG_VERSION")))
                .build()
                .map_err(|error| NoClient(chain(&error)))
        })?;
        Ok(Self { settings, client, ring: Mutex::default() })
    }

    /// Whether a request that carries this token has come through Access.
    pub(crate) async fn check(
        &self,
        given: Option<&str>,
        now_s: i64,
        now: impl Fn() -> ContinuousMs,
    ) -> Result<(), Refused> {
        let token = token(given.ok_or(Refused::Missing)?)?;
        // One asks, all others wait for what it gets.
        let mut ring = self.ring.lock().await;
        if ring.wants(&token.kid, now()) {
            let answer = self.ask().await;
            ring.asked = Some((now(), answer.is_ok()));
            match answer {
                Ok(keys) => {
                    tracing::debug!(keys = keys.len(), "the keys of Cloudflare Access were read");
                    (ring.keys, ring.since) = (keys, Some(now()));
                }
                Err(why) if !ring.is_fresh(now()) => return Err(Refused::NoKeys(why)),
                // What is known is good for a while yet.
                Err(why) => {
                    tracing::warn!(why, "the keys of Cloudflare Access were not read again");
                }
            }
        }
        if !ring.is_fresh(now()) {
            return Err(Refused::NoKeys("they could not be read a moment ago".to_owned()));
        }
        verify(&token, &ring.keys, &self.settings, now_s)
    }

    async fn ask(&self) -> Result<Keys, String> {
        let address = format!("{}{CERTS}", self.settings.issuer());
        let asked = async {
            let mut response = self.client.get(&address).send().await?.error_for_status()?;
            let mut list = Vec::new();
            while list.len() <= LIST_BYTES_MAX {
                let Some(chunk) = response.chunk().await? else { break };
                list.extend_from_slice(&chunk);
            }
            Ok::<_, reqwest::Error>(list)
        };
        let list = asked.await.map_err(|error| chain(&error))?;
        if list.len() > LIST_BYTES_MAX {
            return Err(format!("{address} answers with more than {LIST_BYTES_MAX} bytes"));
        }
        let keys = keys(&list).ok_or_else(|| format!("{address} answers with no list of keys"))?;
        if keys.is_empty() { Err(format!("{address} lists no key")) } else { Ok(keys) }
    }
}

#[cfg(test)]
#[path = "access_tests.rs"]
mod tests;
