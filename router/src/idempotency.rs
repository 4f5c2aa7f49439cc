//! `Idempotency-Key` on every POST: the same key and body gets the answer that was given, and the work is done once.
//!
//! The answer is stored in the transaction of the work, so either both are on disk or neither. Refusals are not kept:
//! they changed nothing, and the same body is refused the same way again. Keys are kept for [`KEPT_MS`].

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use protocol::limits;
use serde::Serialize;
use serde_json::Value;

use crate::auth::sha256;
use crate::error::{ApiError, Code};
use crate::server::AppState;
use crate::store::Tx;
use crate::store::idempotency::{self, Kept, Slot};

/// How long an answer is kept: two days, twice what callers may rely on.
pub const KEPT_MS: i64 = 2 * 86_400_000;

const KEY: HeaderName = HeaderName::from_static("idempotency-key");
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// The slots that a running request holds.
#[derive(Clone, Debug, Default)]
pub(crate) struct InFlight {
    slots: Arc<Mutex<HashSet<Slot>>>,
}

/// A slot, held until dropped.
#[derive(Debug)]
struct Held {
    in_flight: InFlight,
    slot: Slot,
}

impl InFlight {
    fn hold(&self, slot: &Slot) -> Result<Held, ApiError> {
        let fresh = self.slots.lock().unwrap_or_else(PoisonError::into_inner).insert(slot.clone());
        if fresh {
            return Ok(Held { in_flight: self.clone(), slot: slot.clone() });
        }
        Err(ApiError::new(Code::IdempotencyKeyInUse).retry_after(1))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.in_flight.slots.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.slot);
    }
}

/// What a POST answers.
#[derive(Debug)]
pub(crate) struct Reply {
    status: StatusCode,
    body: Value,
    /// A secret that is shown in the first answer and neither kept nor shown again.
    once: Option<(&'static str, String)>,
}

impl Reply {
    pub(crate) fn new(status: StatusCode, body: &impl Serialize) -> Result<Self, ApiError> {
        let body = serde_json::to_value(body)
            .map_err(|error| ApiError::new(Code::Internal).caused_by(error))?;
        Ok(Self { status, body, once: None })
    }

    pub(crate) fn with_once(mut self, field: &'static str, secret: String) -> Self {
        self.once = Some((field, secret));
        self
    }
}

/// Which POST this is.
#[derive(Debug)]
pub(crate) struct Post<'a> {
    /// The tenant's id, or `operator`.
    pub(crate) scope: &'a str,
    /// Method and path.
    pub(crate) route: &'a str,
    pub(crate) headers: &'a HeaderMap,
    /// The parsed body: two spellings of the same JSON are the same request.
    pub(crate) body: &'a Value,
}

/// Does the work of a POST in one transaction with its answer, or gives the answer that it had.
pub(crate) async fn post<F>(app: &AppState, post: Post<'_>, work: F) -> Result<Response, ApiError>
where
    F: FnOnce(&mut Tx<'_>) -> Result<Reply, ApiError> + Send + 'static,
{
    let Some(key) = key_of(post.headers)? else {
        let reply = app.store.transact(work).await?;
        return Ok(respond(reply.status, &first_body(reply.body, reply.once), false));
    };
    let slot =
        Slot { scope: post.scope.to_owned(), route: post.route.to_owned(), key: key.to_owned() };
    let fingerprint = sha256(post.body.to_string().as_bytes());
    // Held until the answer is on its way: a second request meanwhile is told so instead of waiting behind this one.
    let held = app.in_flight.hold(&slot)?;
    let now = app.clock.now();
    let answer = app
        .store
        .transact(move |tx| {
            let _held = &held;
            if let Some(kept) = idempotency::get(tx, &slot, now.plus_ms(-KEPT_MS))? {
                return replay(kept, fingerprint);
            }
            let reply = work(tx)?;
            let status = reply.status.as_u16();
            let kept = Kept { fingerprint, status, body: reply.body.to_string() };
            idempotency::keep(tx, &slot, &kept, now)?;
            Ok((reply.status, first_body(reply.body, reply.once), false))
        })
        .await?;
    let (status, body, replayed) = answer;
    Ok(respond(status, &body, replayed))
}

fn replay(kept: Kept, fingerprint: [u8; 32]) -> Result<(StatusCode, String, bool), ApiError> {
    if kept.fingerprint != fingerprint {
        return Err(ApiError::new(Code::IdempotencyKeyReused));
    }
    let status = StatusCode::from_u16(kept.status)
        .map_err(|error| ApiError::new(Code::Internal).caused_by(error))?;
    Ok((status, kept.body, true))
}

fn first_body(mut body: Value, once: Option<(&'static str, String)>) -> String {
    if let (Some((field, secret)), Some(object)) = (once, body.as_object_mut()) {
        object.insert(field.to_owned(), Value::String(secret));
    }
    body.to_string()
}

fn respond(status: StatusCode, body: &str, replayed: bool) -> Response {
    let mut response = (status, Body::from(body.to_owned())).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if replayed {
        headers.insert(REPLAYED, HeaderValue::from_static("true"));
    }
    response
}

/// The caller's key: a structured-field string in quotes, or the bare text that most clients send.
fn key_of(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    let refused = |detail: &'static str| ApiError::new(Code::InvalidIdempotencyKey).detail(detail);
    let mut values = headers.get_all(KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(refused("Give it once."));
    }
    let text = value.to_str().map_err(|_error| refused("Use visible ASCII characters."))?.trim();
    let bare = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    if bare.is_empty() || bare.len() > limits::IDEMPOTENCY_KEY_BYTES_MAX {
        return Err(refused("It must have 1 to 255 characters."));
    }
    Ok(Some(bare))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(value: &str) -> Result<Option<String>, Code> {
        let mut headers = HeaderMap::new();
        headers.insert(KEY, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        key_of(&headers).map(|key| key.map(ToOwned::to_owned)).map_err(|error| error.code())
    }

    #[test]
    fn a_key_may_be_quoted_or_bare() {
        assert_eq!(key("abc"), Ok(Some("abc".to_owned())));
        assert_eq!(key("\"abc\""), Ok(Some("abc".to_owned())));
        assert_eq!(key_of(&HeaderMap::new()).unwrap(), None);
    }

    #[test]
    fn a_key_that_cannot_be_kept_is_refused() {
        for bad in ["", "\"\"", "é", &"x".repeat(256)] {
            assert_eq!(key(bad), Err(Code::InvalidIdempotencyKey), "{bad:?}");
        }
        let mut headers = HeaderMap::new();
        headers.append(KEY, HeaderValue::from_static("a"));
        headers.append(KEY, HeaderValue::from_static("b"));
        assert_eq!(key_of(&headers).unwrap_err().code(), Code::InvalidIdempotencyKey);
    }

    #[test]
    fn a_slot_is_free_again_once_its_request_is_gone() {
        let in_flight = InFlight::default();
        let slot = Slot { scope: "a".to_owned(), route: "b".to_owned(), key: "c".to_owned() };
        let held = in_flight.hold(&slot).unwrap();
        assert_eq!(in_flight.hold(&slot).unwrap_err().code(), Code::IdempotencyKeyInUse);
        drop(held);
        in_flight.hold(&slot).unwrap();
    }
}
