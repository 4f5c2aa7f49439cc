//! Who asks, and how often: API keys of tenants, the operator's token, a rate limit per key.
//!
//! A key is `sb_live_` or `sb_test_` and 32 random bytes in base32. Its first characters find the row; the rest is
//! compared by SHA-256 in constant time. What does not exist, has ended or was revoked is the same 401.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest;
use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use data_encoding::BASE32_DNSSEC;
use protocol::{KeyId, TenantId, UnixMs};
use secrecy::ExposeSecret as _;

use crate::clock;
use crate::error::{ApiError, Code};
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
    scopes: Vec<String>,
}

impl Caller {
    /// Whose idempotency keys these are. A test key's answers are not a live key's: nothing was sent for them.
    pub(crate) fn idempotency_scope(&self) -> String {
        let mode = if self.test { "/test" } else { "" };
        format!("{}{mode}", self.tenant)
    }

    /// Refuses where the key has not this scope.
    pub fn needs(&self, scope: Scope) -> Result<(), ApiError> {
        if self.scopes.iter().any(|had| had == scope.as_str()) {
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
        let secret = format!("{kind}{}", BASE32_DNSSEC.encode(&clock::random::<32>()));
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
pub(crate) struct Auth {
    remembered: Mutex<Memory>,
    buckets: Mutex<HashMap<KeyId, Bucket>>,
}

#[derive(Debug, Default)]
struct Memory {
    by_prefix: HashMap<String, Remembered>,
    /// How often all was forgotten. What was read from the store before that must not be remembered after it.
    forgotten: u64,
}

#[derive(Debug)]
struct Remembered {
    credential: Credential,
    read_at: UnixMs,
    used_at: Option<UnixMs>,
}

impl Auth {
    /// Forgets every key: one of them has changed.
    pub(crate) fn forget(&self) {
        let mut memory = lock(&self.remembered);
        memory.by_prefix.clear();
        memory.forgotten = memory.forgotten.wrapping_add(1);
    }

    /// The key if it is remembered, else what [`Auth::remember`] wants to know.
    fn recall(&self, prefix: &str, now: UnixMs) -> Result<Credential, u64> {
        let memory = lock(&self.remembered);
        let fresh = memory.by_prefix.get(prefix).filter(|entry| {
            // A clock that was set back makes no memory last longer.
            (0..REMEMBERED_MS).contains(&now.since(entry.read_at))
        });
        fresh.map(|entry| entry.credential.clone()).ok_or(memory.forgotten)
    }

    fn remember(&self, prefix: &str, credential: Credential, forgotten: u64, now: UnixMs) {
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

    fn take(&self, key: &KeyId, rate: Rate, now: UnixMs) -> Taken {
        let mut buckets = lock(&self.buckets);
        if buckets.len() >= REMEMBERED_MAX {
            buckets.retain(|_, bucket| !bucket.is_full(rate, now));
        }
        buckets.entry(key.clone()).or_insert_with(|| Bucket::full(rate, now)).take(rate, now)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How often a key may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    /// In the long run.
    pub(crate) per_second: u32,
    /// At once after a pause.
    pub(crate) burst: u32,
}

/// A token bucket, in thousandths of a request: a rate per second is the same number per millisecond.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    milli: u64,
    at: UnixMs,
}

/// One request taken from a bucket, or refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Taken {
    allowed: bool,
    remaining: u64,
    /// Seconds until a request is allowed again (refused), or until the bucket is full.
    seconds: u64,
}

const MILLI: u64 = 1_000;

impl Bucket {
    fn full(rate: Rate, now: UnixMs) -> Self {
        Self { milli: u64::from(rate.burst) * MILLI, at: now }
    }

    fn refilled(self, rate: Rate, now: UnixMs) -> u64 {
        // A clock that was set back refills nothing.
        let elapsed_ms = u64::try_from(now.since(self.at)).unwrap_or(0);
        let gained = elapsed_ms.saturating_mul(u64::from(rate.per_second));
        self.milli.saturating_add(gained).min(u64::from(rate.burst) * MILLI)
    }

    fn is_full(self, rate: Rate, now: UnixMs) -> bool {
        self.refilled(rate, now) >= u64::from(rate.burst) * MILLI
    }

    fn take(&mut self, rate: Rate, now: UnixMs) -> Taken {
        self.milli = self.refilled(rate, now);
        self.at = now;
        let per_second = u64::from(rate.per_second) * MILLI;
        if let Some(rest) = self.milli.checked_sub(MILLI) {
            self.milli = rest;
            let missing = (u64::from(rate.burst) * MILLI).saturating_sub(rest);
            let seconds = missing.div_ceil(per_second);
            return Taken { allowed: true, remaining: rest / MILLI, seconds };
        }
        let seconds = MILLI.saturating_sub(self.milli).div_ceil(per_second).max(1);
        Taken { allowed: false, remaining: 0, seconds }
    }
}

/// Around every tenant's route: finds the key, spends from its bucket, and says in headers what is left.
pub async fn tenant(State(app): State<AppState>, mut request: Request, next: Next) -> Response {
    let caller = match authenticate(&app, request.headers()).await {
        Ok(caller) => caller,
        Err(error) => return error.into_response(),
    };
    let limits = app.config.limits;
    let rate = Rate { per_second: limits.requests_per_second, burst: limits.burst };
    let taken = app.auth.take(&caller.key, rate, app.clock.now());
    let mut response = if taken.allowed {
        request.extensions_mut().insert(caller);
        next.run(request).await
    } else {
        ApiError::new(Code::RateLimited).retry_after(taken.seconds).into_response()
    };
    let window = u64::from(rate.burst).div_ceil(u64::from(rate.per_second)).max(1);
    let policy = format!("\"key\";q={};w={window}", rate.burst);
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

async fn authenticate(app: &AppState, headers: &HeaderMap) -> Result<Caller, ApiError> {
    let refused = || ApiError::new(Code::Unauthenticated);
    let secret = bearer(headers).ok_or_else(refused)?;
    let prefix = prefix_of(secret).ok_or_else(refused)?;
    let now = app.clock.now();
    let credential = match app.auth.recall(prefix, now) {
        Ok(credential) => credential,
        Err(forgotten) => {
            let wanted = prefix.to_owned();
            let found = app.store.read(move |tx| keys::by_prefix(tx, &wanted)).await?;
            let credential = found.ok_or_else(refused)?;
            app.auth.remember(prefix, credential.clone(), forgotten, now);
            credential
        }
    };
    if verify_slices_are_equal(&sha256(secret.as_bytes()), &credential.hash).is_err()
        || credential.revoked_at.is_some()
        || credential.expires_at.is_some_and(|at| at <= now)
    {
        return Err(refused());
    }
    if app.auth.note_use(prefix, now) {
        write_use(app, credential.tenant.clone(), credential.id.clone(), now);
    }
    Ok(Caller {
        tenant: credential.tenant,
        key: credential.id,
        test: credential.test,
        scopes: credential.scopes,
    })
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

    const RATE: Rate = Rate { per_second: 10, burst: 3 };

    #[test]
    fn a_bucket_gives_its_burst_then_its_rate() {
        let start = UnixMs(1_000_000);
        let mut bucket = Bucket::full(RATE, start);
        for left in [2, 1, 0] {
            let taken = bucket.take(RATE, start);
            assert!(taken.allowed);
            assert_eq!(taken.remaining, left);
        }
        assert_eq!(bucket.take(RATE, start), Taken { allowed: false, remaining: 0, seconds: 1 });
        assert!(!bucket.take(RATE, start.plus_ms(99)).allowed);
        assert!(bucket.take(RATE, start.plus_ms(100)).allowed);
        assert!(!bucket.take(RATE, start.plus_ms(150)).allowed);
    }

    #[test]
    fn a_bucket_never_holds_more_than_its_burst_and_survives_a_clock_set_back() {
        let start = UnixMs(1_000_000);
        let mut bucket = Bucket::full(RATE, start);
        assert_eq!(bucket.take(RATE, start.plus_ms(3_600_000)).remaining, 2);
        assert_eq!(bucket.take(RATE, start).remaining, 1);
    }

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

    #[test]
    fn what_was_read_before_a_revocation_is_not_remembered_after_it() {
        let (auth, now) = (Auth::default(), UnixMs(1_000_000));
        let credential = Credential {
            id: KeyId::new(1, [1; 10]),
            tenant: TenantId::new(1, [1; 10]),
            hash: [0; 32],
            scopes: Vec::new(),
            test: false,
            expires_at: None,
            revoked_at: None,
        };
        let before = auth.recall("sb_live_a", now).unwrap_err();
        // While the row is on its way from the store, its key is revoked.
        auth.forget();
        auth.remember("sb_live_a", credential.clone(), before, now);
        let after = auth.recall("sb_live_a", now).unwrap_err();
        auth.remember("sb_live_a", credential.clone(), after, now);
        assert_eq!(auth.recall("sb_live_a", now), Ok(credential));
        auth.recall("sb_live_a", now.plus_ms(-1)).unwrap_err();
        auth.recall("sb_live_a", now.plus_ms(REMEMBERED_MS)).unwrap_err();
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
