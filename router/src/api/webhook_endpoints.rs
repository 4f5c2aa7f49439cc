//! Where a tenant's events are posted.

use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use data_encoding::BASE64;
use protocol::api::{
    CreateWebhookEndpoint, CreatedWebhookEndpoint, Page, Problem, WEBHOOK_TYPES, WebhookDelivery,
    WebhookEndpoint,
};
use protocol::{DeliveryId, EndpointId, UnixMs};
use serde_json::Value;
use url::Url;

use super::fields::Fields;
use super::pages::{page, window};
use super::{JsonBody, PathId, json};
use crate::auth::{Caller, Scope};
use crate::clock;
use crate::error::{ApiError, Code};
use crate::idempotency::{self, Post, Reply};
use crate::server::AppState;
use crate::store::webhook_endpoints;

/// Longest URL of an endpoint, in characters: what every server on the way takes.
const URL_CHARS_MAX: usize = 2_000;

/// Make a webhook endpoint
#[utoipa::path(post, path = "/v1/webhook_endpoints", tag = "webhooks", request_body = CreateWebhookEndpoint,
    security(("api_key" = [])),
    responses(
        (status = 201, description = "Made. The secret is shown this once, and not again by an idempotency key.", body = CreatedWebhookEndpoint),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "There are as many as allowed.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Fields are wrong.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn create(
    State(app): State<AppState>,
    caller: Caller,
    headers: HeaderMap,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    caller.needs(Scope::Webhooks)?;
    let settings = app.config.webhooks;
    let route = "POST /v1/webhook_endpoints";
    let post = Post::new(caller.idempotency_scope(), route, &headers, &body)?;
    let endpoint = checked(body, settings.allow_private, app.clock.now());
    // 24 bytes, the shortest that Standard Webhooks recommends.
    let secret = format!("whsec_{}", BASE64.encode(&clock::random::<24>()));
    let tenant = caller.tenant;
    idempotency::post(&app, post, endpoint, move |tx, endpoint| {
        if webhook_endpoints::count(tx, &tenant)? >= settings.endpoints_per_tenant {
            return Err(ApiError::new(Code::LimitReached).detail(format!(
                "A tenant has at most {} endpoints.",
                settings.endpoints_per_tenant
            )));
        }
        webhook_endpoints::insert(tx, &tenant, &endpoint, &secret)?;
        Ok(Reply::new(StatusCode::CREATED, &endpoint)?.with_once("secret", secret))
    })
    .await
}

fn checked(body: Value, allow_private: bool, now: UnixMs) -> Result<WebhookEndpoint, ApiError> {
    let mut fields = Fields::new(body)?;
    let url = url(&mut fields, allow_private);
    let events = events(&mut fields);
    let Some(url) = url else { return Err(fields.refuse()) };
    fields.finish()?;
    Ok(WebhookEndpoint {
        id: EndpointId::new(now.0, clock::random()),
        url,
        events,
        disabled_at: None,
        disabled_reason: None,
        created_at: now,
    })
}

/// An absolute URL that we may post to. Where it leads is checked again each time a connection is made.
fn url(fields: &mut Fields, allow_private: bool) -> Option<String> {
    let text = fields.required_line("url", 1..=URL_CHARS_MAX)?;
    let Ok(url) = Url::parse(&text) else {
        fields.wrong("url", "invalid_url", "It is not an absolute URL.");
        return None;
    };
    let scheme_is_good = url.scheme() == "https" || (allow_private && url.scheme() == "http");
    if !scheme_is_good || !url.has_host() {
        fields.wrong("url", "invalid_url", "It must begin with https://.");
    } else if !url.username().is_empty() || url.password().is_some() {
        fields.wrong("url", "invalid_url", "It must not carry a user name or password.");
    } else if url.fragment().is_some() {
        fields.wrong("url", "invalid_url", "It must not carry a fragment.");
    }
    Some(url.to_string())
}

fn events(fields: &mut Fields) -> Vec<String> {
    fields
        .list("events", WEBHOOK_TYPES.len(), |fields, index, item| match item {
            Value::String(text) if WEBHOOK_TYPES.contains(&text.as_str()) => Some(text),
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::Array(_)
            | Value::Object(_) => {
                fields.wrong(index, "unknown_type", "There is no such type of event.");
                None
            }
        })
        .unwrap_or_default()
}

/// List webhook endpoints, newest first
#[utoipa::path(get, path = "/v1/webhook_endpoints", tag = "webhooks", security(("api_key" = [])),
    params(
        ("limit" = Option<u32>, Query, description = "Rows, 1 to 100; 50 when left out."),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before.")),
    responses(
        (status = 200, description = "A page.", body = Page<WebhookEndpoint>),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn list(
    State(app): State<AppState>,
    caller: Caller,
    RawQuery(raw): RawQuery,
) -> Result<Response, ApiError> {
    caller.needs(Scope::Webhooks)?;
    let asked = window(raw.as_deref())?;
    let (after, limit) = (asked.after_id::<EndpointId>()?, asked.limit);
    let rows = app
        .store
        .read(move |tx| webhook_endpoints::list(tx, &caller.tenant, after.as_deref(), limit))
        .await?;
    Ok(json(StatusCode::OK, &page(rows, limit, |endpoint| endpoint.id.to_string())))
}

/// One webhook endpoint
#[utoipa::path(get, path = "/v1/webhook_endpoints/{id}", tag = "webhooks", security(("api_key" = [])),
    params(("id" = String, Path, description = "The endpoint's id.")),
    responses(
        (status = 200, description = "The endpoint.", body = WebhookEndpoint),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such endpoint.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn get(
    State(app): State<AppState>,
    caller: Caller,
    PathId(id): PathId<EndpointId>,
) -> Result<Response, ApiError> {
    caller.needs(Scope::Webhooks)?;
    let found = app.store.read(move |tx| webhook_endpoints::get(tx, &caller.tenant, &id)).await?;
    Ok(json(StatusCode::OK, &found.ok_or_else(ApiError::not_found)?))
}

/// Delete a webhook endpoint and what is still to be delivered to it
#[utoipa::path(delete, path = "/v1/webhook_endpoints/{id}", tag = "webhooks", security(("api_key" = [])),
    params(("id" = String, Path, description = "The endpoint's id.")),
    responses(
        (status = 204, description = "Deleted."),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such endpoint.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn delete(
    State(app): State<AppState>,
    caller: Caller,
    PathId(id): PathId<EndpointId>,
) -> Result<Response, ApiError> {
    caller.needs(Scope::Webhooks)?;
    let found =
        app.store.write(move |tx| webhook_endpoints::delete(tx, &caller.tenant, &id)).await?;
    if !found {
        return Err(ApiError::not_found());
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// List what was or is to be delivered to an endpoint, newest first
#[utoipa::path(get, path = "/v1/webhook_endpoints/{id}/deliveries", tag = "webhooks", security(("api_key" = [])),
    params(
        ("id" = String, Path, description = "The endpoint's id."),
        ("limit" = Option<u32>, Query, description = "Rows, 1 to 100; 50 when left out."),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before.")),
    responses(
        (status = 200, description = "A page.", body = Page<WebhookDelivery>),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such endpoint.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn deliveries(
    State(app): State<AppState>,
    caller: Caller,
    PathId(id): PathId<EndpointId>,
    RawQuery(raw): RawQuery,
) -> Result<Response, ApiError> {
    caller.needs(Scope::Webhooks)?;
    let asked = window(raw.as_deref())?;
    let (after, limit) = (asked.after_id::<DeliveryId>()?, asked.limit);
    let rows = app
        .store
        .read(move |tx| {
            if webhook_endpoints::get(tx, &caller.tenant, &id)?.is_none() {
                return Ok(None);
            }
            let before = after.as_deref();
            webhook_endpoints::deliveries(tx, &caller.tenant, &id, before, limit).map(Some)
        })
        .await?
        .ok_or_else(ApiError::not_found)?;
    Ok(json(StatusCode::OK, &page(rows, limit, |delivery| delivery.id.to_string())))
}
