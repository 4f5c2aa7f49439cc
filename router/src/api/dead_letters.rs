//! Dead letters: what could not be sent, to be looked at, tried again or discarded; a tenant's, and the operator's of all.

use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use protocol::api::{DeadLetter, Message, Page, Problem};
use protocol::{MessageId, TenantId};
use serde_json::Value;

use super::messages::Whose;
use super::pages::window;
use super::{PathId, json, pages};
use crate::auth::{Caller, Scope};
use crate::clock;
use crate::error::{ApiError, Code};
use crate::idempotency::{self, Post, Reply};
use crate::server::AppState;
use crate::store::dead_letters::{self as rows, Retried};
use crate::store::messages::Window;
use crate::store::{StoreError, Tx};

/// List dead letters, newest message first
///
/// Messages whose attempts are used up, or that ended the router again and again. Kept for 30 days.
#[utoipa::path(get, path = "/v1/dead-letters", tag = "messages",
    security(("api_key" = [])),
    params(
        ("limit" = Option<u32>, Query, description = "Rows, 1 to 100; 50 when left out."),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before.")),
    responses(
        (status = 200, description = "A page.", body = Page<DeadLetter>),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn list(
    State(app): State<AppState>,
    caller: Caller,
    RawQuery(raw): RawQuery,
) -> Result<Response, ApiError> {
    caller.needs(Scope::MessagesRead)?;
    page(&app, Whose::of(caller), raw.as_deref()).await
}

/// One dead letter, by its message's id
#[utoipa::path(get, path = "/v1/dead-letters/{id}", tag = "messages",
    security(("api_key" = [])),
    params(("id" = String, Path, description = "The message's id.")),
    responses(
        (status = 200, description = "The dead letter.", body = DeadLetter),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such dead letter.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn get(
    State(app): State<AppState>,
    caller: Caller,
    PathId(id): PathId<MessageId>,
) -> Result<Response, ApiError> {
    caller.needs(Scope::MessagesRead)?;
    show(&app, Whose::of(caller), id).await
}

/// Try a dead letter again
///
/// As a new message with a new id and as long a life as the old one had. Only where provably nothing was sent.
#[utoipa::path(post, path = "/v1/dead-letters/{id}/retry", tag = "messages",
    security(("api_key" = [])),
    params(("id" = String, Path, description = "The message's id.")),
    responses(
        (status = 202, description = "The new message.", body = Message),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such dead letter.", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "It may have been sent.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn retry(
    State(app): State<AppState>,
    caller: Caller,
    headers: HeaderMap,
    PathId(id): PathId<MessageId>,
) -> Result<Response, ApiError> {
    caller.needs(Scope::MessagesWrite)?;
    let route = format!("POST /v1/dead-letters/{id}/retry");
    let post = Post::new(caller.idempotency_scope(), route, &headers, &Value::Null)?;
    again(&app, Whose::of(caller), id, post).await
}

/// Discard a dead letter; the message and its story stay
#[utoipa::path(delete, path = "/v1/dead-letters/{id}", tag = "messages",
    security(("api_key" = [])),
    params(("id" = String, Path, description = "The message's id.")),
    responses(
        (status = 204, description = "Discarded."),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such dead letter.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn discard(
    State(app): State<AppState>,
    caller: Caller,
    PathId(id): PathId<MessageId>,
) -> Result<Response, ApiError> {
    caller.needs(Scope::MessagesWrite)?;
    drop_letter(&app, Whose::of(caller), id).await
}

/// List the dead letters of all tenants, newest message first
#[utoipa::path(get, path = "/v1/admin/dead-letters", tag = "operator",
    security(("admin_token" = [])),
    params(
        ("limit" = Option<u32>, Query, description = "Rows, 1 to 100; 50 when left out."),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before.")),
    responses(
        (status = 200, description = "A page.", body = Page<DeadLetter>),
        (status = 401, description = "Not the operator's token.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn admin_list(
    State(app): State<AppState>,
    RawQuery(raw): RawQuery,
) -> Result<Response, ApiError> {
    page(&app, Whose::Anybody, raw.as_deref()).await
}

/// One dead letter of any tenant
#[utoipa::path(get, path = "/v1/admin/dead-letters/{id}", tag = "operator",
    security(("admin_token" = [])),
    params(("id" = String, Path, description = "The message's id.")),
    responses(
        (status = 200, description = "The dead letter.", body = DeadLetter),
        (status = 401, description = "Not the operator's token.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such dead letter.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn admin_get(
    State(app): State<AppState>,
    PathId(id): PathId<MessageId>,
) -> Result<Response, ApiError> {
    show(&app, Whose::Anybody, id).await
}

/// Try any tenant's dead letter again, as a new message of that tenant
#[utoipa::path(post, path = "/v1/admin/dead-letters/{id}/retry", tag = "operator",
    security(("admin_token" = [])),
    params(("id" = String, Path, description = "The message's id.")),
    responses(
        (status = 202, description = "The new message.", body = Message),
        (status = 401, description = "Not the operator's token.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such dead letter.", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "It may have been sent.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn admin_retry(
    State(app): State<AppState>,
    headers: HeaderMap,
    PathId(id): PathId<MessageId>,
) -> Result<Response, ApiError> {
    let route = format!("POST /v1/admin/dead-letters/{id}/retry");
    let post = Post::new("operator".to_owned(), route, &headers, &Value::Null)?;
    again(&app, Whose::Anybody, id, post).await
}

/// Discard any tenant's dead letter; the message and its story stay
#[utoipa::path(delete, path = "/v1/admin/dead-letters/{id}", tag = "operator",
    security(("admin_token" = [])),
    params(("id" = String, Path, description = "The message's id.")),
    responses(
        (status = 204, description = "Discarded."),
        (status = 401, description = "Not the operator's token.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such dead letter.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn admin_discard(
    State(app): State<AppState>,
    PathId(id): PathId<MessageId>,
) -> Result<Response, ApiError> {
    drop_letter(&app, Whose::Anybody, id).await
}

async fn page(app: &AppState, whose: Whose, raw: Option<&str>) -> Result<Response, ApiError> {
    let asked = window(raw)?;
    let window = Window { before: asked.after_id::<MessageId>()?, limit: asked.limit };
    let letters = app
        .store
        .read(move |tx| match &whose {
            Whose::Tenant(tenant) => rows::list(tx, Some(tenant), false, &window),
            Whose::Sandbox(tenant) => rows::list(tx, Some(tenant), true, &window),
            Whose::Anybody => rows::list(tx, None, false, &window),
        })
        .await?;
    let page = pages::page(letters, asked.limit, |letter| letter.message.id.to_string());
    Ok(json(StatusCode::OK, &page))
}

/// Under whose name the letter is read: the caller's, or for the operator its owner's.
fn owner(tx: &mut Tx<'_>, whose: &Whose, id: &MessageId) -> Result<Option<TenantId>, StoreError> {
    match whose {
        Whose::Tenant(_) | Whose::Sandbox(_) => whose.owner(tx, id),
        Whose::Anybody => rows::owner(tx, id),
    }
}

async fn show(app: &AppState, whose: Whose, id: MessageId) -> Result<Response, ApiError> {
    let found = app
        .store
        .read(move |tx| match owner(tx, &whose, &id)? {
            Some(tenant) => rows::get(tx, &tenant, &id),
            None => Ok(None),
        })
        .await?;
    Ok(json(StatusCode::OK, &found.ok_or_else(ApiError::not_found)?))
}

async fn again(
    app: &AppState,
    whose: Whose,
    id: MessageId,
    post: Post,
) -> Result<Response, ApiError> {
    let now = app.clock.now();
    let new = MessageId::new(now.0, clock::random());
    let response = idempotency::post(app, post, Ok(id), move |tx, id| {
        let tenant = owner(tx, &whose, &id)?.ok_or_else(ApiError::not_found)?;
        match rows::retry(tx, &tenant, &id, (new, now))? {
            None => Err(ApiError::not_found()),
            Some(Retried::As(message)) => Reply::new(StatusCode::ACCEPTED, message.as_ref()),
            Some(Retried::MayHaveBeenSent) => Err(ApiError::new(Code::NotRetryable)),
            Some(Retried::Refused(refusal)) => Err(ApiError::refused(refusal, now)),
        }
    })
    .await?;
    app.bells.dispatch.notify_one();
    app.bells.webhooks.notify_one();
    Ok(response)
}

async fn drop_letter(app: &AppState, whose: Whose, id: MessageId) -> Result<Response, ApiError> {
    let now = app.clock.now();
    let found = app
        .store
        .write(move |tx| match owner(tx, &whose, &id)? {
            Some(tenant) => rows::discard(tx, &tenant, &id, now),
            None => Ok(false),
        })
        .await?;
    if !found {
        return Err(ApiError::not_found());
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}
