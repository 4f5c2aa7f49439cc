//! `Idempotency-Key` on every POST: the same key and body gets the answer that was given, and the work is done once.
//!
//! The answer is stored in the transaction of the work, so either both are on disk or neither. Refusals are not kept:
//! they changed nothing, and the same body is refused the same way again. Keys are kept for [`KEPT_MS`].

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use protocol::{UnixMs, limits};
use serde::Serialize;
use serde_json::Value;

use crate::auth::sha256;
use crate::error::{ApiError, Code};
use crate::server::AppState;
use crate::store::idempotency::{self, Kept, Slot};
use crate::store::{StoreError, Tx};

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

    /// Held by one at a time; `None` where another holds it.
    pub(crate) fn alone(&self, what: &str) -> Option<impl Drop + use<>> {
        let none = String::new();
        self.hold(&Slot { scope: none.clone(), route: what.to_owned(), key: none }).ok()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.in_flight.slots.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.slot);
    }
}

/// What a POST answers. No `Debug`: it may hold a secret.
pub(crate) struct Reply {
    status: StatusCode,
    /// A JSON object, or empty where there is nothing to say.
    body: String,
    /// A secret that is shown in the first answer and neither kept nor shown again.
    once: Option<(&'static str, String)>,
}

impl Reply {
    pub(crate) fn new(status: StatusCode, body: &impl Serialize) -> Result<Self, ApiError> {
        let body = serde_json::to_string(body)
            .map_err(|error| ApiError::new(Code::Internal).caused_by(error))?;
        Ok(Self { status, body, once: None })
    }

    /// It is done, and there is nothing to say of it.
    pub(crate) fn done() -> Self {
        Self { status: StatusCode::NO_CONTENT, body: String::new(), once: None }
    }

    pub(crate) fn with_once(mut self, field: &'static str, secret: String) -> Self {
        self.once = Some((field, secret));
        self
    }
}

/// Which POST this is.
#[derive(Debug)]
pub(crate) struct Post {
    keyed: Option<Keyed>,
}

#[derive(Debug)]
struct Keyed {
    slot: Slot,
    fingerprint: [u8; 32],
}

impl Post {
    /// `scope` is whose key it is (see [`Slot`]), `route` method and path. The body is taken as parsed: two spellings of
    /// the same JSON are the same request.
    pub(crate) fn new(
        scope: String,
        route: impl Into<String>,
        headers: &HeaderMap,
        body: &Value,
    ) -> Result<Self, ApiError> {
        let keyed = key_of(headers)?.map(|key| Keyed {
            slot: Slot { scope, route: route.into(), key },
            fingerprint: sha256(body.to_string().as_bytes()),
        });
        Ok(Self { keyed })
    }
}

/// Does the work of a POST in one transaction with its answer, or gives the answer that it had.
///
/// What `checked` refuses may have been accepted before: a time that was ahead of the first request lies behind its
/// repetition. So the kept answer is looked for before the refusal is given.
pub(crate) async fn post<T, F>(
    app: &AppState,
    post: Post,
    checked: Result<T, ApiError>,
    work: F,
) -> Result<Response, ApiError>
where
    T: Send + 'static,
    F: FnOnce(&mut Tx<'_>, T) -> Result<Reply, ApiError> + Send + 'static,
{
    let (running, checked) = match begin(app, post, checked).await? {
        Begun::Answered(response) => return Ok(response),
        Begun::Run(running, checked) => (running, checked),
    };
    let once = app.store.transact(move |tx| running.once(tx, |tx| work(tx, checked))).await?;
    Ok(once.answer())
}

/// [`post`] for what happens to every message: see [`crate::store::Store::transact_often`].
pub(crate) async fn post_often<T, F>(
    app: &AppState,
    post: Post,
    checked: Result<T, ApiError>,
    mut work: F,
) -> Result<Response, ApiError>
where
    T: Send + 'static,
    F: FnMut(&mut Tx<'_>, &T) -> Result<Reply, ApiError> + Send + 'static,
{
    let (running, checked) = match begin(app, post, checked).await? {
        Begun::Answered(response) => return Ok(response),
        Begun::Run(running, checked) => (running, checked),
    };
    let once =
        app.store.transact_often(move |tx| running.once(tx, |tx| work(tx, &checked))).await?;
    Ok(once.answer())
}

/// How a POST begins.
enum Begun<T> {
    /// What would be refused now was answered before.
    Answered(Response),
    /// There is work to do, or an answer to be found in its place.
    Run(Running, T),
}

/// A POST at work.
struct Running {
    /// The slot is held until the answer is on its way: a second request meanwhile is told so instead of waiting behind
    /// this one.
    keyed: Option<(Keyed, Held)>,
    now: UnixMs,
}

/// What came of the work of a key, done now or before.
enum Once {
    Done(Reply),
    Before(StatusCode, String),
}

async fn begin<T>(
    app: &AppState,
    post: Post,
    checked: Result<T, ApiError>,
) -> Result<Begun<T>, ApiError> {
    let now = app.clock.now();
    let Some(keyed) = post.keyed else {
        return Ok(Begun::Run(Running { keyed: None, now }, checked?));
    };
    match checked {
        Ok(checked) => {
            let held = app.in_flight.hold(&keyed.slot)?;
            Ok(Begun::Run(Running { keyed: Some((keyed, held)), now }, checked))
        }
        Err(refusal) => {
            let Keyed { slot, fingerprint } = keyed;
            let since = now.plus_ms(-KEPT_MS);
            let kept = app.store.read(move |tx| idempotency::get(tx, &slot, since)).await?;
            let Some(kept) = kept else { return Err(refusal) };
            Given(kept).answer(fingerprint).map(Begun::Answered)
        }
    }
}

impl Running {
    /// Does the work, and keeps its answer where it has a key that has none yet.
    fn once(
        &self,
        tx: &mut Tx<'_>,
        work: impl FnOnce(&mut Tx<'_>) -> Result<Reply, ApiError>,
    ) -> Result<Once, ApiError> {
        let Some((Keyed { slot, fingerprint }, _held)) = &self.keyed else {
            return work(tx).map(Once::Done);
        };
        if let Some(kept) = idempotency::get(tx, slot, self.now.plus_ms(-KEPT_MS))? {
            return replay(kept, *fingerprint);
        }
        let reply = work(tx)?;
        let kept =
            Kept { fingerprint: *fingerprint, status: reply.status.as_u16(), body: reply.body };
        idempotency::keep(tx, slot, &kept, self.now)?;
        Ok(Once::Done(Reply { body: kept.body, ..reply }))
    }
}

impl Once {
    fn answer(self) -> Response {
        match self {
            Self::Done(reply) => respond(reply),
            Self::Before(status, body) => whole(status, body, true),
        }
    }
}

/// A POST whose body is read as it comes: which one it is, is known at its end.
#[derive(Debug)]
pub(crate) struct Streamed {
    keyed: Option<(Slot, Held)>,
}

/// An answer that was given, for a body that has still to be compared.
#[derive(Debug)]
pub(crate) struct Given(Kept);

impl Given {
    /// The answer, where the body was the same.
    pub(crate) fn answer(self, fingerprint: [u8; 32]) -> Result<Response, ApiError> {
        replay(self.0, fingerprint).map(Once::answer)
    }
}

impl Streamed {
    /// As [`Post::new`]. The slot is held until this is dropped. Also for work that cannot be in the transaction of its answer.
    pub(crate) fn new(
        app: &AppState,
        scope: String,
        route: String,
        headers: &HeaderMap,
    ) -> Result<Self, ApiError> {
        let Some(key) = key_of(headers)? else { return Ok(Self { keyed: None }) };
        let slot = Slot { scope, route, key };
        let held = app.in_flight.hold(&slot)?;
        Ok(Self { keyed: Some((slot, held)) })
    }

    /// The answer that was given under this key.
    pub(crate) async fn kept(&self, app: &AppState) -> Result<Option<Given>, ApiError> {
        let Some((slot, _held)) = &self.keyed else { return Ok(None) };
        let (slot, since) = (slot.clone(), app.clock.now().plus_ms(-KEPT_MS));
        let kept = app.store.read(move |tx| idempotency::get(tx, &slot, since)).await?;
        Ok(kept.map(Given))
    }

    /// [`Streamed::kept`] in the transaction of the work. A request that was answered, or given up by its caller, between
    /// then and now may have been the same one.
    pub(crate) fn kept_by_now(
        &self,
        tx: &mut Tx<'_>,
        now: UnixMs,
    ) -> Result<Option<Given>, StoreError> {
        let Some((slot, _held)) = &self.keyed else { return Ok(None) };
        Ok(idempotency::get(tx, slot, now.plus_ms(-KEPT_MS))?.map(Given))
    }

    /// Keeps the answer, in the transaction of the work.
    pub(crate) fn keep(
        &self,
        tx: &mut Tx<'_>,
        reply: &Reply,
        fingerprint: [u8; 32],
        now: UnixMs,
    ) -> Result<(), StoreError> {
        let Some((slot, _held)) = &self.keyed else { return Ok(()) };
        let kept = Kept { fingerprint, status: reply.status.as_u16(), body: reply.body.clone() };
        idempotency::keep(tx, slot, &kept, now)
    }
}

/// The first answer.
pub(crate) fn respond(reply: Reply) -> Response {
    whole(reply.status, first_body(reply.body, reply.once), false)
}

/// The answer was kept from an earlier request; nothing was done for this one.
pub(crate) fn is_replay(response: &Response) -> bool {
    response.headers().contains_key(REPLAYED)
}

/// The answer that was given; refused where the key was used for another body.
fn replay(kept: Kept, fingerprint: [u8; 32]) -> Result<Once, ApiError> {
    if kept.fingerprint != fingerprint {
        return Err(ApiError::new(Code::IdempotencyKeyReused));
    }
    let status = StatusCode::from_u16(kept.status)
        .map_err(|error| ApiError::new(Code::Internal).caused_by(error))?;
    Ok(Once::Before(status, kept.body))
}

/// The body with what is shown once as its last field.
fn first_body(body: String, once: Option<(&'static str, String)>) -> String {
    let Some((field, secret)) = once else { return body };
    let Some(open) = body.strip_suffix('}') else { return body };
    let comma = if open.ends_with('{') { "" } else { "," };
    format!("{open}{comma}{}:{}}}", Value::from(field), Value::from(secret))
}

fn whole(status: StatusCode, body: String, replayed: bool) -> Response {
    let is_empty = body.is_empty();
    let mut response = (status, Body::from(body)).into_response();
    let headers = response.headers_mut();
    if !is_empty {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    if replayed {
        headers.insert(REPLAYED, HeaderValue::from_static("true"));
    }
    response
}

/// The caller's key: a structured-field string (RFC 9651, section 3.3.3), or the bare text that most clients send.
fn key_of(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let refused = |detail: &'static str| ApiError::new(Code::InvalidIdempotencyKey).detail(detail);
    let mut values = headers.get_all(KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(refused("Give it once."));
    }
    let text = value.to_str().map_err(|_error| refused("Use visible ASCII characters."))?;
    let text = text.trim_matches([' ', '\t']);
    if text.contains('\t') {
        return Err(refused("Use visible ASCII characters."));
    }
    let key = if text.starts_with('"') {
        quoted(text).ok_or_else(|| refused("It begins with a quote and is no quoted string."))?
    } else if text.contains('"') {
        return Err(refused("A quote is allowed only around it, or escaped inside quotes."));
    } else {
        text.to_owned()
    };
    if key.is_empty() || key.len() > limits::IDEMPOTENCY_KEY_BYTES_MAX {
        return Err(refused("It must have 1 to 255 characters."));
    }
    Ok(Some(key))
}

/// What stands between the quotes, its escapes undone. Nothing may follow the closing quote.
fn quoted(text: &str) -> Option<String> {
    let inner = text.strip_prefix('"')?.strip_suffix('"')?;
    let mut out = String::with_capacity(inner.len());
    let mut rest = inner.chars();
    while let Some(character) = rest.next() {
        match character {
            '"' => return None,
            '\\' => out.push(rest.next().filter(|escaped| matches!(escaped, '"' | '\\'))?),
            other => out.push(other),
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(value: &str) -> Result<Option<String>, Code> {
        let mut headers = HeaderMap::new();
        headers.insert(KEY, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        key_of(&headers).map_err(|error| error.code())
    }

    #[test]
    fn a_key_may_be_quoted_or_bare() {
        assert_eq!(key("abc"), Ok(Some("abc".to_owned())));
        assert_eq!(key("\"abc\""), Ok(Some("abc".to_owned())));
        assert_eq!(key(" abc\t"), Ok(Some("abc".to_owned())));
        assert_eq!(key("order 17, part 2"), Ok(Some("order 17, part 2".to_owned())));
        assert_eq!(key(r#""a\"b\\c""#), Ok(Some(r#"a"b\c"#.to_owned())));
        assert_eq!(key(&format!("\"{}\"", "x".repeat(255))), Ok(Some("x".repeat(255))));
        assert_eq!(key_of(&HeaderMap::new()).unwrap(), None);
    }

    #[test]
    fn a_key_that_cannot_be_kept_is_refused() {
        let long = "x".repeat(256);
        for bad in [
            "",
            "\"\"",
            "é",
            &long,
            "\"",
            "\"abc",
            "abc\"",
            "a\"b",
            "\"a\"b\"",
            "\"a\";x=1",
            "\"a\\n\"",
            "\"a\\\"",
            "a\tb",
        ] {
            assert_eq!(key(bad), Err(Code::InvalidIdempotencyKey), "{bad:?}");
        }
        let mut headers = HeaderMap::new();
        headers.append(KEY, HeaderValue::from_static("a"));
        headers.append(KEY, HeaderValue::from_static("b"));
        assert_eq!(key_of(&headers).unwrap_err().code(), Code::InvalidIdempotencyKey);
    }

    #[test]
    fn a_secret_is_the_last_field_of_the_first_answer_alone() {
        let once = Some(("secret", "a\"b".to_owned()));
        assert_eq!(first_body("{}".to_owned(), once.clone()), r#"{"secret":"a\"b"}"#);
        assert_eq!(first_body(r#"{"id":1}"#.to_owned(), once), r#"{"id":1,"secret":"a\"b"}"#);
        assert_eq!(first_body(r#"{"id":1}"#.to_owned(), None), r#"{"id":1}"#);
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
