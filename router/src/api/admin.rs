//! All tenants' messages, and what belongs to nobody, for the operator.

use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use protocol::api::{
    Direction, Message, MessageEvent, Page, Problem, RuleDecision, SettleMessage, Settled,
};
use protocol::{MessageId, Status, TenantId};
use serde::Serialize;
use serde_json::Value;

use super::fields::Fields;
use super::messages::Whose;
use super::pages::{Query, page, window};
use super::{JsonBody, PathId, json};
use crate::error::{ApiError, Code};
use crate::idempotency::{self, Post, Reply};
use crate::server::AppState;
use crate::store::change;
use crate::store::messages::{self, Window};
use crate::store::unplaced::{self, Place, UnplacedEvent};

/// A message with its tenant.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct TenantMessage {
    /// Whose.
    tenant: TenantId,
    /// The message.
    #[serde(flatten)]
    message: Message,
}

/// List messages of all tenants, newest first
#[utoipa::path(get, path = "/v1/admin/messages", tag = "operator", security(("admin_token" = [])),
    params(
        ("limit" = Option<u32>, Query, description = "Rows, 1 to 100; 50 when left out."),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before."),
        ("tenant" = Option<String>, Query, description = "Only this tenant's."),
        ("status" = Option<Status>, Query, description = "Only with this status."),
        ("direction" = Option<Direction>, Query, description = "Only this way."),
        ("to" = Option<String>, Query, description = "Only with this other side.")),
    responses(
        (status = 200, description = "A page.", body = Page<TenantMessage>),
        (status = 401, description = "Not the operator's token.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn messages(
    State(app): State<AppState>,
    RawQuery(raw): RawQuery,
) -> Result<Response, ApiError> {
    let mut query = Query::new(raw.as_deref());
    let tenant: Option<TenantId> = query.parsed("tenant", "invalid_id");
    let filter = super::messages::filter(&mut query);
    let asked = query.finish()?;
    let window = Window { before: asked.after_id::<MessageId>()?, limit: asked.limit };
    let rows = app
        .store
        .read(move |tx| messages::list_all(tx, tenant.as_ref(), &filter, &window))
        .await?
        .into_iter()
        .map(|(tenant, message)| TenantMessage { tenant, message })
        .collect();
    Ok(json(
        StatusCode::OK,
        &page(rows, asked.limit, |row: &TenantMessage| row.message.id.to_string()),
    ))
}

/// One message of any tenant, or of none
#[utoipa::path(get, path = "/v1/admin/messages/{id}", tag = "operator",
    security(("admin_token" = [])),
    params(("id" = String, Path, description = "The message's id.")),
    responses(
        (status = 200, description = "The message.", body = Message),
        (status = 401, description = "Not the operator's token.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such message.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn message(
    State(app): State<AppState>,
    PathId(id): PathId<MessageId>,
) -> Result<Response, ApiError> {
    super::messages::show(&app, Whose::Anybody, id).await
}

/// The story of any message, oldest step first
#[utoipa::path(get, path = "/v1/admin/messages/{id}/events", tag = "operator",
    security(("admin_token" = [])),
    params(
        ("id" = String, Path, description = "The message's id."),
        ("limit" = Option<u32>, Query, description = "Rows, 1 to 100; 50 when left out."),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before.")),
    responses(
        (status = 200, description = "A page.", body = Page<MessageEvent>),
        (status = 401, description = "Not the operator's token.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such message.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn events(
    State(app): State<AppState>,
    PathId(id): PathId<MessageId>,
    RawQuery(raw): RawQuery,
) -> Result<Response, ApiError> {
    super::messages::story(&app, Whose::Anybody, id, raw.as_deref()).await
}

/// What the rules have decided about any message, oldest decision first
#[utoipa::path(get, path = "/v1/admin/messages/{id}/decisions", tag = "operator",
    security(("admin_token" = [])),
    params(
        ("id" = String, Path, description = "The message's id."),
        ("limit" = Option<u32>, Query, description = "Rows, 1 to 100; 50 when left out."),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before.")),
    responses(
        (status = 200, description = "A page.", body = Page<RuleDecision>),
        (status = 401, description = "Not the operator's token.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such message.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn decisions(
    State(app): State<AppState>,
    PathId(id): PathId<MessageId>,
    RawQuery(raw): RawQuery,
) -> Result<Response, ApiError> {
    super::messages::ledger(&app, Whose::Anybody, id, raw.as_deref()).await
}

/// Say what became of a message of which nobody knew
///
/// For one that is `unknown`, when somebody has looked at the phone. `failed` gives back what it has cost and lets the tenant send
/// it anew; what chat.db shows later still counts. The tenant is told.
#[utoipa::path(post, path = "/v1/admin/messages/{id}/settle", tag = "operator", request_body = SettleMessage,
    security(("admin_token" = [])),
    params(("id" = String, Path, description = "The message's id.")),
    responses(
        (status = 200, description = "Settled.", body = Message),
        (status = 401, description = "Not the operator's token.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such message.", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "It is not unknown.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Fields are wrong.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn settle(
    State(app): State<AppState>,
    headers: HeaderMap,
    PathId(id): PathId<MessageId>,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let route = format!("POST /v1/admin/messages/{id}/settle");
    let post = Post::new("operator".to_owned(), route, &headers, &body)?;
    let mut fields = Fields::new(body)?;
    fields.require("outcome");
    let outcome = fields.one_of("outcome", "unknown_outcome", Settled::ALL);
    let Some(outcome) = outcome else { return Err(fields.refuse()) };
    fields.finish()?;
    let now = app.clock.now();
    let response = idempotency::post(&app, post, Ok(id), move |tx, id| {
        let tenant = Whose::Anybody.owner(tx, &id)?.ok_or_else(ApiError::not_found)?;
        let before = messages::get(tx, &tenant, &id)?.ok_or_else(ApiError::not_found)?;
        if before.status != Status::Unknown {
            let detail = format!("Its status is {}.", before.status);
            return Err(ApiError::new(Code::NotUnknown).detail(detail));
        }
        change::settle_unknown(tx, (&tenant, &id), outcome, before.reason, now)?;
        let after = messages::get(tx, &tenant, &id)?.ok_or_else(ApiError::not_found)?;
        Reply::new(StatusCode::OK, &after)
    })
    .await?;
    app.bells.webhooks.notify_one();
    Ok(response)
}

/// Withdraw any tenant's message
///
/// `200`: it is canceled. `202`: a phone has it and is asked; the outcome comes as the message's next event. The tenant
/// is told as if it had canceled it itself.
#[utoipa::path(post, path = "/v1/admin/messages/{id}/cancel", tag = "operator",
    security(("admin_token" = [])),
    params(("id" = String, Path, description = "The message's id.")),
    responses(
        (status = 200, description = "Canceled.", body = Message),
        (status = 202, description = "The phone is asked.", body = Message),
        (status = 401, description = "Not the operator's token.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such message.", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "It has ended already.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn cancel(
    State(app): State<AppState>,
    headers: HeaderMap,
    PathId(id): PathId<MessageId>,
) -> Result<Response, ApiError> {
    let route = format!("POST /v1/admin/messages/{id}/cancel");
    let post = Post::new("operator".to_owned(), route, &headers, &Value::Null)?;
    super::messages::withdraw(&app, Whose::Anybody, id, post).await
}

/// List what phones told and nothing here knows, newest first
///
/// Such an event is kept for 30 days as the phone told it; the body of a received message has its text.
#[utoipa::path(get, path = "/v1/admin/unplaced_events", tag = "operator", security(("admin_token" = [])),
    params(
        ("limit" = Option<u32>, Query, description = "Rows, 1 to 100; 50 when left out."),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before.")),
    responses(
        (status = 200, description = "A page.", body = Page<UnplacedEvent>),
        (status = 401, description = "Not the operator's token.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Parameters are wrong.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn unplaced_events(
    State(app): State<AppState>,
    RawQuery(raw): RawQuery,
) -> Result<Response, ApiError> {
    let asked = window(raw.as_deref())?;
    let before = asked.after_parsed::<Place>()?;
    let limit = asked.limit;
    let rows = app.store.read(move |tx| unplaced::list(tx, before.as_ref(), limit)).await?;
    Ok(json(StatusCode::OK, &page(rows, limit, |event| Place::of(event).to_string())))
}
