//! Who asks, and how often: API keys of tenants, the operator's token, a rate limit per key.
//!
//! A key is `sb_live_` or `sb_test_` and 32 random bytes in base32. Its first characters find the row; the rest is
//! compared by SHA-256 in constant time. What does not exist, has ended or was revoked is the same 401; a good key from
//! an address that it is not to be used from is a 403.
//!
//! A key is read from the store once in [`REMEMBERED_MS`] and otherwise found in memory. Whoever changes a key calls
//! [`Auth::forget`] before it answers, so that a revoked key opens nothing once that has been said.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest;
use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::serve::IncomingStream;
use data_encoding::BASE32_DNSSEC;
use protocol::{KeyId, TenantId, UnixMs};
use secrecy::ExposeSecret as _;

use crate::clock;
use crate::error::{ApiError, Code};
use crate::listener::Bounded;
use crate::network;
use crate::rate::{Limiter, Taken};
use crate::server::AppState;
use crate::store::keys::{self, Credential};

/// What live keys begin with.
pub const LIVE: &str = "sb_live_";
/// What keys for the sandbox begin with.
pub const TEST: &str = "sb_test_";

/// Characters of a key that find its row, counted behind `sb_live_`: 40 bits, so that two keys never share them.
const PREFIX_CHARS: usize = 8;
/// Keys remembered between requests; beyond that all are forgotten and read again.
const REMEMBERED_MAX: usize = 10_000;
/// How long a key is remembered. Revoking forgets it at once; this is for changes made beside the API.
const REMEMBERED_MS: i64 = 30_000;
/// How often a key's last use is written down.
const USED_EVERY_MS: i64 = 60_000;

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
// The three headers of the drafts up to -06, which is all that many clients know.
const RATE_LIMIT_LIMIT: HeaderName = HeaderName::from_static("ratelimit-limit");
const RATE_LIMIT_REMAINING: HeaderName = HeaderName::from_static("ratelimit-remaining");
const RATE_LIMIT_RESET: HeaderName = HeaderName::from_static("ratelimit-reset");

/// What a key may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Read messages and their stories.
    MessagesRead,
    /// Send and cancel messages.
    MessagesWrite,
    /// Everything about webhook endpoints.
    Webhooks,
    /// Read opt-outs.
    OptOutsRead,
    /// Opt recipients out, and lift an opt-out with the evidence of a new consent.
    OptOutsWrite,
    /// Everything about contacts.
    Contacts,
}

impl Scope {
    /// Every scope.
    pub const ALL: &'static [Self] = &[
        Self::MessagesRead,
        Self::MessagesWrite,
        Self::Webhooks,
        Self::OptOutsRead,
        Self::OptOutsWrite,
        Self::Contacts,
    ];

    /// The stable word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::MessagesRead => "messages:read",
            Self::MessagesWrite => "messages:write",
            Self::Webhooks => "webhooks",
            Self::OptOutsRead => "opt_outs:read",
            Self::OptOutsWrite => "opt_outs:write",
            Self::Contacts => "contacts",
        }
    }
}

/// The tenant behind a request; a handler that takes it cannot be reached without a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Whose key.
    pub tenant: TenantId,
    /// Which key.
    pub key: KeyId,
    /// For the sandbox only.
    pub test: bool,
    credential: Arc<Credential>,
}

impl Caller {
    /// Whose idempotency keys these are. A test key's answers are not a live key's: nothing was sent for them.
    pub(crate) fn idempotency_scope(&self) -> String {
        let mode = if self.test { "/test" } else { "" };
        format!("{}{mode}", self.tenant)
    }

    /// Refuses where the key has not this scope.
    pub fn needs(&self, scope: Scope) -> Result<(), ApiError> {
        if self.credential.scopes.iter().any(|had| had == scope.as_str()) {
            return Ok(());
        }
        Err(ApiError::new(Code::Forbidden)
            .detail(format!("It lacks the scope {}.", scope.as_str())))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        parts.extensions.get::<Self>().cloned().ok_or_else(|| ApiError::new(Code::Unauthenticated))
    }
}

/// A key that has just been made. No `Debug`: it holds the secret.
pub(crate) struct FreshKey {
    /// What its owner keeps.
    pub(crate) secret: String,
    /// What finds its row.
    pub(crate) prefix: String,
    /// What the row holds of it.
    pub(crate) hash: [u8; 32],
}

impl FreshKey {
    pub(crate) fn new(test: bool) -> Self {
        let kind = if test { TEST } else { LIVE };
        let secret = format!("{kind}{}", BASE32_DNSSEC.encode(&clock::secret::<32>()));
        let prefix = prefix_of(&secret).unwrap_or(kind).to_owned();
        let hash = sha256(secret.as_bytes());
        Self { secret, prefix, hash }
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

fn prefix_of(secret: &str) -> Option<&str> {
    let known = secret.starts_with(LIVE) || secret.starts_with(TEST);
    known.then(|| secret.get(..LIVE.len() + PREFIX_CHARS)).flatten()
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// What is remembered of keys between requests.
#[derive(Debug, Default)]
pub struct Auth {
    remembered: Mutex<Memory>,
    limiter: Limiter,
}

#[derive(Debug, Default)]
struct Memory {
    by_prefix: HashMap<String, Remembered>,
    /// How often all was forgotten. What was read from the store before that must not be remembered after it.
    forgotten: u64,
}

#[derive(Debug)]
struct Remembered {
    credential: Arc<Credential>,
    read_at: UnixMs,
    used_at: Option<UnixMs>,
}

/// What the memory says of a request.
#[derive(Debug)]
pub enum Known {
    /// The key is there, and this is it.
    Good(Arc<Credential>),
    /// The key is there, and this is not it, or it has ended.
    Bad,
    /// The key is not remembered; what [`Auth::remember`] wants to know.
    Unknown(u64),
}

impl Auth {
    /// Forgets every key: one of them has changed.
    pub fn forget(&self) {
        let mut memory = lock(&self.remembered);
        memory.by_prefix.clear();
        memory.forgotten = memory.forgotten.wrapping_add(1);
    }

    /// What is known of a secret, without asking the store.
    pub fn recall(&self, secret: &str, now: UnixMs) -> Known {
        let Some(prefix) = prefix_of(secret) else { return Known::Bad };
        let credential = {
            let memory = lock(&self.remembered);
            let fresh = memory.by_prefix.get(prefix).filter(|entry| {
                // A clock that was set back makes no memory last longer.
                (0..REMEMBERED_MS).contains(&now.since(entry.read_at))
            });
            match fresh {
                Some(entry) => Arc::clone(&entry.credential),
                None => return Known::Unknown(memory.forgotten),
            }
        };
        if opens(secret, &credential, now) { Known::Good(credential) } else { Known::Bad }
    }

    /// Remembers what the store says of a key, unless all was forgotten since [`Auth::recall`] was asked.
    pub fn remember(&self, prefix: &str, credential: Arc<Credential>, forgotten: u64, now: UnixMs) {
        let mut memory = lock(&self.remembered);
        if memory.forgotten != forgotten {
            return;
        }
        if memory.by_prefix.len() >= REMEMBERED_MAX {
            memory.by_prefix.clear();
        }
        let used_at = memory.by_prefix.get(prefix).and_then(|entry| entry.used_at);
        let entry = Remembered { credential, read_at: now, used_at };
        memory.by_prefix.insert(prefix.to_owned(), entry);
    }

    /// Takes a request of this key from what it may.
    pub fn take(&self, credential: &Credential, now: UnixMs) -> Taken {
        self.limiter.take(&credential.id, credential.rate, now)
    }

    /// True where the use is to be written down.
    fn note_use(&self, prefix: &str, now: UnixMs) -> bool {
        let mut memory = lock(&self.remembered);
        let Some(entry) = memory.by_prefix.get_mut(prefix) else { return false };
        let due = entry.used_at.is_none_or(|at| now.since(at) >= USED_EVERY_MS);
        if due {
            entry.used_at = Some(now);
        }
        due
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The secret is this key's, and the key has not ended.
fn opens(secret: &str, credential: &Credential, now: UnixMs) -> bool {
    verify_slices_are_equal(&sha256(secret.as_bytes()), &credential.hash).is_ok()
        && credential.revoked_at.is_none()
        && credential.expires_at.is_none_or(|at| at > now)
}

/// The other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer(pub IpAddr);

impl Connected<IncomingStream<'_, Bounded>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Bounded>) -> Self {
        Self(stream.remote_addr().ip())
    }
}

/// Who asks, by address; `None` where nobody can tell.
pub(crate) fn address_of(app: &AppState, request: &Request) -> Option<IpAddr> {
    let ConnectInfo(Peer(peer)) = request.extensions().get::<ConnectInfo<Peer>>()?;
    network::caller(*peer, request.headers(), &app.config.trusted_proxies)
}

/// Around every tenant's route: finds the key, spends from its bucket, and says in headers what is left.
pub async fn tenant(State(app): State<AppState>, mut request: Request, next: Next) -> Response {
    let now = app.clock.now();
    let credential = match authenticate(&app, request.headers(), now).await {
        Ok(credential) => credential,
        Err(error) => return error.into_response(),
    };
    if !credential.allow.is_empty() {
        let address = address_of(&app, &request);
        let inside = |address: IpAddr| credential.allow.iter().any(|net| net.holds(address));
        if !address.is_some_and(inside) {
            return ApiError::new(Code::AddressNotAllowed).into_response();
        }
    }
    let taken = app.auth.take(&credential, now);
    let rate = credential.rate;
    let mut response = if taken.allowed {
        request.extensions_mut().insert(Caller {
            tenant: credential.tenant.clone(),
            key: credential.id.clone(),
            test: credential.test,
            credential,
        });
        next.run(request).await
    } else {
        ApiError::new(Code::RateLimited).retry_after(taken.seconds).into_response()
    };
    let policy = format!("\"key\";q={};w={}", rate.burst, rate.window_s());
    let left = format!("\"key\";r={};t={}", taken.remaining, taken.seconds);
    let headers = response.headers_mut();
    for (name, value) in [(RATE_LIMIT_POLICY, policy), (RATE_LIMIT, left)] {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    }
    headers.insert(RATE_LIMIT_LIMIT, HeaderValue::from(rate.burst));
    headers.insert(RATE_LIMIT_REMAINING, HeaderValue::from(taken.remaining));
    headers.insert(RATE_LIMIT_RESET, HeaderValue::from(taken.seconds));
    response
}

async fn authenticate(
    app: &AppState,
    headers: &HeaderMap,
    now: UnixMs,
) -> Result<Arc<Credential>, ApiError> {
    let refused = || ApiError::new(Code::Unauthenticated);
    let secret = bearer(headers).ok_or_else(refused)?;
    let prefix = prefix_of(secret).ok_or_else(refused)?;
    let credential = match app.auth.recall(secret, now) {
        Known::Good(credential) => credential,
        Known::Bad => return Err(refused()),
        Known::Unknown(forgotten) => {
            let wanted = prefix.to_owned();
            let tiers = app.config.limits.tiers();
            let found = app.store.read(move |tx| keys::by_prefix(tx, &wanted, &tiers)).await?;
            let credential = Arc::new(found.ok_or_else(refused)?);
            app.auth.remember(prefix, Arc::clone(&credential), forgotten, now);
            if !opens(secret, &credential, now) {
                return Err(refused());
            }
            credential
        }
    };
    if app.auth.note_use(prefix, now) {
        write_use(app, credential.tenant.clone(), credential.id.clone(), now);
    }
    Ok(credential)
}

/// Writes a key's use down beside the request: the request does not wait for it and does not fail with it.
fn write_use(app: &AppState, tenant: TenantId, key: KeyId, now: UnixMs) {
    let store = app.store.clone();
    app.tasks.spawn(async move {
        if let Err(error) = store.write(move |tx| keys::used(tx, &tenant, &key, now)).await {
            tracing::warn!(%error, "a key's last use was not written down");
        }
    });
}

/// Around every operator's route.
pub async fn operator(State(app): State<AppState>, request: Request, next: Next) -> Response {
    let allowed = match (&app.config.admin_token, bearer(request.headers())) {
        (Some(token), Some(given)) => verify_slices_are_equal(
            &sha256(given.as_bytes()),
            &sha256(token.expose_secret().as_bytes()),
        )
        .is_ok(),
        (None, _) | (_, None) => false,
    };
    if allowed {
        return next.run(request).await;
    }
    ApiError::new(Code::Unauthenticated).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rate::Rate;

    #[test]
    fn a_fresh_key_is_found_by_its_prefix_and_checked_by_its_hash() {
        for (test, kind) in [(false, LIVE), (true, TEST)] {
            let key = FreshKey::new(test);
            assert!(key.secret.starts_with(kind));
            assert_eq!(prefix_of(&key.secret), Some(key.prefix.as_str()));
            assert_eq!(key.prefix.len(), kind.len() + PREFIX_CHARS);
            assert_eq!(sha256(key.secret.as_bytes()), key.hash);
        }
        assert_eq!(prefix_of("sb_live_abc"), None);
        assert_eq!(prefix_of("sk_live_0123456789abcdef"), None);
        assert_eq!(prefix_of("sb_live_xééééé"), None);
    }

    fn credential(key: &FreshKey) -> Credential {
        Credential {
            id: KeyId::new(1, [1; 10]),
            tenant: TenantId::new(1, [1; 10]),
            hash: key.hash,
            scopes: Vec::new(),
            test: false,
            allow: Vec::new(),
            rate: Rate { per_second: 10, burst: 3 },
            expires_at: None,
            revoked_at: None,
        }
    }

    fn unknown(auth: &Auth, secret: &str, now: UnixMs) -> u64 {
        match auth.recall(secret, now) {
            Known::Unknown(forgotten) => forgotten,
            known @ (Known::Good(_) | Known::Bad) => panic!("{known:?}"),
        }
    }

    #[test]
    fn what_was_read_before_a_revocation_is_not_remembered_after_it() {
        let (auth, now, key) = (Auth::default(), UnixMs(1_000_000), FreshKey::new(false));
        let credential = Arc::new(credential(&key));
        let before = unknown(&auth, &key.secret, now);
        // While the row is on its way from the store, its key is revoked.
        auth.forget();
        auth.remember(&key.prefix, Arc::clone(&credential), before, now);
        let after = unknown(&auth, &key.secret, now);
        auth.remember(&key.prefix, Arc::clone(&credential), after, now);
        assert!(matches!(auth.recall(&key.secret, now), Known::Good(found) if found == credential));
        unknown(&auth, &key.secret, now.plus_ms(-1));
        unknown(&auth, &key.secret, now.plus_ms(REMEMBERED_MS));
    }

    #[test]
    fn a_remembered_key_opens_only_with_its_own_secret_and_only_while_it_is_good() {
        let (now, key) = (UnixMs(1_000_000), FreshKey::new(false));
        let whole = credential(&key);
        let ended = Credential { expires_at: Some(now), ..whole.clone() };
        let revoked = Credential { revoked_at: Some(now), ..whole.clone() };
        let ends_later = Credential { expires_at: Some(now.plus_ms(1)), ..whole.clone() };
        let similar = format!("{}x", key.secret);
        for (credential, secret, good) in [
            (whole.clone(), &key.secret, true),
            (whole, &similar, false),
            (ended, &key.secret, false),
            (revoked, &key.secret, false),
            (ends_later, &key.secret, true),
        ] {
            let auth = Auth::default();
            auth.remember(&key.prefix, Arc::new(credential.clone()), 0, now);
            let known = auth.recall(secret, now);
            assert_eq!(matches!(known, Known::Good(_)), good, "{credential:?}: {known:?}");
        }
        assert!(matches!(Auth::default().recall("sk_live_abc", now), Known::Bad));
    }

    #[test]
    fn only_a_bearer_header_counts() {
        let mut headers = HeaderMap::new();
        assert_eq!(bearer(&headers), None);
        headers.insert(header::AUTHORIZATION, HeaderValue::from_static("Basic abc"));
        assert_eq!(bearer(&headers), None);
        headers.insert(header::AUTHORIZATION, HeaderValue::from_static("bearer  abc"));
        assert_eq!(bearer(&headers), Some("abc"));
    }
}
