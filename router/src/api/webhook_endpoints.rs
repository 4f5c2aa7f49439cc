//! Where a tenant's events are posted.

use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use data_encoding::BASE64;
use protocol::api::{
    CreateWebhookEndpoint, CreatedWebhookEndpoint, Page, Problem, ReplayWebhooks, ReplayedWebhooks,
    RotateSecret, UpdateWebhookEndpoint, WEBHOOK_TYPES, WebhookDelivery, WebhookEndpoint,
};
use protocol::{DeliveryId, EndpointId, TenantId, UnixMs};
use serde_json::Value;

use super::fields::{Fields, web_url};
use super::overlap;
use super::pages::{page, window};
use super::{JsonBody, OptionalJsonBody, PathId, json};
use crate::auth::{Caller, Scope};
use crate::clock;
use crate::error::{ApiError, Code};
use crate::idempotency::{self, Post, Reply};
use crate::server::AppState;
use crate::store::webhook_endpoints::{self, Range};
use crate::store::{Tx, webhook_jobs};

/// Longest URL of an endpoint, in characters: what every server on the way takes.
const URL_CHARS_MAX: usize = 2_000;
/// Longest description of an endpoint, in characters: a line or two.
const DESCRIPTION_CHARS_MAX: usize = 200;
/// Longest that an old secret may sign, in seconds: a week.
const OVERLAP_S_MAX: u32 = 7 * 86_400;
/// Deliveries made again by one request: as many as one transaction takes without holding up the others.
const REPLAY_ROWS: usize = 5_000;

/// Make a webhook endpoint
///
/// One that is made with a test key is told what happens in the sandbox, and the others are told everything else. A test key
/// sees and changes those of the sandbox alone.
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
    let (private, most) =
        (app.config.webhooks.allow_private, app.config.webhooks.endpoints_per_tenant);
    let route = "POST /v1/webhook_endpoints";
    let post = Post::new(caller.idempotency_scope(), route, &headers, &body)?;
    let endpoint = checked(body, private, caller.test, app.clock.now());
    let secret = fresh_secret();
    let tenant = caller.tenant;
    idempotency::post(&app, post, endpoint, move |tx, endpoint| {
        if webhook_endpoints::count(tx, &tenant)? >= most {
            let detail = format!("A tenant has at most {most} endpoints.");
            return Err(ApiError::new(Code::LimitReached).detail(detail));
        }
        webhook_endpoints::insert(tx, &tenant, &endpoint, &secret)?;
        Ok(Reply::new(StatusCode::CREATED, &endpoint)?.with_once("secret", secret))
    })
    .await
}

/// 24 bytes, the shortest that Standard Webhooks recommends.
fn fresh_secret() -> String {
    format!("whsec_{}", BASE64.encode(&clock::secret::<24>()))
}

fn checked(
    body: Value,
    allow_private: bool,
    test: bool,
    now: UnixMs,
) -> Result<WebhookEndpoint, ApiError> {
    let mut fields = Fields::new(body)?;
    fields.require("url");
    let url = url(&mut fields, allow_private);
    let events = events(&mut fields).unwrap_or_default();
    let description = fields.line("description", 1..=DESCRIPTION_CHARS_MAX);
    let Some(url) = url else { return Err(fields.refuse()) };
    fields.finish()?;
    Ok(WebhookEndpoint {
        id: EndpointId::new(now.0, clock::random()),
        url,
        events,
        disabled_at: None,
        disabled_reason: None,
        description,
        test,
        failing_since: None,
        failures: 0,
        paused_until: None,
        old_secret_until: None,
        created_at: now,
    })
}

/// An absolute URL that we may post to. Where it leads is checked again each time a connection is made.
fn url(fields: &mut Fields, allow_private: bool) -> Option<String> {
    let text = fields.line("url", 1..=URL_CHARS_MAX)?;
    let url = match web_url(&text, allow_private) {
        Ok(url) if url.fragment().is_some() => Err("It must not carry a fragment."),
        other => other,
    };
    url.map_err(|why| fields.wrong("url", "invalid_url", why)).ok().map(String::from)
}

fn events(fields: &mut Fields) -> Option<Vec<String>> {
    fields.words("events", WEBHOOK_TYPES, ("unknown_type", "There is no such type of event."))
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
        .read(move |tx| {
            let who = (&caller.tenant, caller.test);
            webhook_endpoints::list(tx, who, after.as_deref(), limit)
        })
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
    let found = app
        .store
        .read(move |tx| webhook_endpoints::get(tx, (&caller.tenant, caller.test), &id))
        .await?;
    Ok(json(StatusCode::OK, &found.ok_or_else(ApiError::not_found)?))
}

/// Change a webhook endpoint, or switch it off or on
///
/// What is left out stays as it is. What waits for an endpoint that is switched off fails, and can be replayed when it
/// is on again.
#[utoipa::path(patch, path = "/v1/webhook_endpoints/{id}", tag = "webhooks", request_body = UpdateWebhookEndpoint,
    security(("api_key" = [])),
    params(("id" = String, Path, description = "The endpoint's id.")),
    responses(
        (status = 200, description = "As it is now.", body = WebhookEndpoint),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such endpoint.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Fields are wrong.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn update(
    State(app): State<AppState>,
    caller: Caller,
    PathId(id): PathId<EndpointId>,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    caller.needs(Scope::Webhooks)?;
    let change = changes(body, app.config.webhooks.allow_private)?;
    let (tenant, test, now) = (caller.tenant, caller.test, app.clock.now());
    let changed = app
        .store
        .write(move |tx| {
            let Some(before) = webhook_endpoints::get(tx, (&tenant, test), &id)? else {
                return Ok(None);
            };
            let after = changed(before, change, now);
            webhook_endpoints::update(tx, &tenant, &after)?;
            Ok(Some(after))
        })
        .await?
        .ok_or_else(ApiError::not_found)?;
    app.bells.webhooks.notify_one();
    Ok(json(StatusCode::OK, &changed))
}

fn changes(body: Value, allow_private: bool) -> Result<UpdateWebhookEndpoint, ApiError> {
    let mut fields = Fields::new(body)?;
    let change = UpdateWebhookEndpoint {
        url: url(&mut fields, allow_private),
        events: events(&mut fields),
        description: fields.line("description", 0..=DESCRIPTION_CHARS_MAX),
        disabled: fields.boolean("disabled"),
    };
    fields.finish()?;
    Ok(change)
}

fn changed(before: WebhookEndpoint, change: UpdateWebhookEndpoint, now: UnixMs) -> WebhookEndpoint {
    let moved = change.url.as_ref().is_some_and(|url| *url != before.url);
    let mut after = WebhookEndpoint {
        url: change.url.unwrap_or(before.url),
        events: change.events.unwrap_or(before.events),
        description: change
            .description
            .map_or(before.description, |text| (!text.is_empty()).then_some(text)),
        ..before
    };
    match change.disabled {
        Some(true) if after.disabled_at.is_none() => {
            after.disabled_at = Some(now);
            after.disabled_reason = Some("by_tenant".to_owned());
        }
        Some(false) => (after.disabled_at, after.disabled_reason) = (None, None),
        Some(true) | None => {}
    }
    // Elsewhere, or on again: what failed before says nothing of it.
    if moved || change.disabled == Some(false) {
        (after.failing_since, after.failures, after.paused_until) = (None, 0, None);
    }
    after
}

/// Give a webhook endpoint a new secret
///
/// Until the overlap is over, what is posted carries a signature with each, so that a receiver that knows either believes it.
/// Where it is done again meanwhile, every secret signs until its own overlap is over, up to four beside the newest.
/// Without an overlap all older ones end at once.
#[utoipa::path(post, path = "/v1/webhook_endpoints/{id}/rotate_secret", tag = "webhooks",
    request_body = Option<RotateSecret>, security(("api_key" = [])),
    params(("id" = String, Path, description = "The endpoint's id.")),
    responses(
        (status = 200, description = "Done. The secret is shown this once, and not again by an idempotency key.", body = CreatedWebhookEndpoint),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such endpoint.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Fields are wrong.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn rotate_secret(
    State(app): State<AppState>,
    caller: Caller,
    headers: HeaderMap,
    PathId(id): PathId<EndpointId>,
    OptionalJsonBody(body): OptionalJsonBody,
) -> Result<Response, ApiError> {
    caller.needs(Scope::Webhooks)?;
    let route = format!("POST /v1/webhook_endpoints/{id}/rotate_secret");
    let post = Post::new(caller.idempotency_scope(), route, &headers, &body)?;
    let (tenant, test) = (caller.tenant, caller.test);
    let (now, secret) = (app.clock.now(), fresh_secret());
    idempotency::post(&app, post, overlap::asked(body, OVERLAP_S_MAX), move |tx, overlap_s| {
        let old_until = now.plus_ms(i64::from(overlap_s) * 1_000);
        if webhook_endpoints::get(tx, (&tenant, test), &id)?.is_none() {
            return Err(ApiError::not_found());
        }
        webhook_endpoints::rotate(tx, &tenant, (&id, &secret), (old_until, now))?;
        let found = webhook_endpoints::get(tx, (&tenant, test), &id)?;
        let endpoint = found.ok_or_else(ApiError::not_found)?;
        Ok(Reply::new(StatusCode::OK, &endpoint)?.with_once("secret", secret))
    })
    .await
}

/// The endpoint, where the tenant has it and it is on.
fn enabled(
    tx: &mut Tx<'_>,
    who: (&TenantId, bool),
    id: &EndpointId,
) -> Result<WebhookEndpoint, ApiError> {
    let endpoint = webhook_endpoints::get(tx, who, id)?.ok_or_else(ApiError::not_found)?;
    if endpoint.disabled_at.is_some() {
        return Err(ApiError::new(Code::EndpointDisabled).detail("Switch it on first."));
    }
    Ok(endpoint)
}

/// Post a test event to a webhook endpoint
///
/// Of the type `webhook_endpoint.test`, whatever types it wants; signed, tried and written down like any other.
#[utoipa::path(post, path = "/v1/webhook_endpoints/{id}/test", tag = "webhooks", security(("api_key" = [])),
    params(("id" = String, Path, description = "The endpoint's id.")),
    responses(
        (status = 202, description = "On its way; its attempts are found under its id.", body = WebhookDelivery),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such endpoint.", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "It is switched off.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn test(
    State(app): State<AppState>,
    caller: Caller,
    headers: HeaderMap,
    PathId(id): PathId<EndpointId>,
) -> Result<Response, ApiError> {
    caller.needs(Scope::Webhooks)?;
    let route = format!("POST /v1/webhook_endpoints/{id}/test");
    let post = Post::new(caller.idempotency_scope(), route, &headers, &Value::Null)?;
    let (tenant, test, now) = (caller.tenant, caller.test, app.clock.now());
    let response = idempotency::post(&app, post, Ok(id), move |tx, id| {
        enabled(tx, (&tenant, test), &id)?;
        let delivery = webhook_jobs::enqueue_test(tx, &tenant, &id, now)?;
        let made = webhook_endpoints::delivery(tx, (&tenant, test), &delivery)?;
        Reply::new(StatusCode::ACCEPTED, &made.ok_or_else(ApiError::not_found)?)
    })
    .await?;
    app.bells.webhooks.notify_one();
    Ok(response)
}

/// Deliver again what an endpoint has missed
///
/// Up to 5,000 deliveries at once, oldest first, each from the beginning of its schedule and under the event's own id.
/// Where there are more, `next` says how to go on.
#[utoipa::path(post, path = "/v1/webhook_endpoints/{id}/replay", tag = "webhooks", request_body = ReplayWebhooks,
    security(("api_key" = [])),
    params(("id" = String, Path, description = "The endpoint's id.")),
    responses(
        (status = 202, description = "On their way.", body = ReplayedWebhooks),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such endpoint.", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "It is switched off.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Fields are wrong.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn replay(
    State(app): State<AppState>,
    caller: Caller,
    headers: HeaderMap,
    PathId(id): PathId<EndpointId>,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    caller.needs(Scope::Webhooks)?;
    let route = format!("POST /v1/webhook_endpoints/{id}/replay");
    let post = Post::new(caller.idempotency_scope(), route, &headers, &body)?;
    let (tenant, test, now) = (caller.tenant, caller.test, app.clock.now());
    let response = idempotency::post(&app, post, range(body, now), move |tx, range| {
        enabled(tx, (&tenant, test), &id)?;
        let (replayed, next) =
            webhook_endpoints::replay_range(tx, &tenant, &id, &range, (now, REPLAY_ROWS))?;
        let replayed = u64::try_from(replayed).unwrap_or(u64::MAX);
        Reply::new(StatusCode::ACCEPTED, &ReplayedWebhooks { replayed, next })
    })
    .await?;
    app.bells.webhooks.notify_one();
    Ok(response)
}

fn range(body: Value, now: UnixMs) -> Result<Range, ApiError> {
    let mut fields = Fields::new(body)?;
    fields.require("since");
    let since = fields.time("since");
    // What happens in this very millisecond counts as well.
    let until = fields.time("until").unwrap_or_else(|| now.plus_ms(1));
    let delivered = fields.boolean("delivered").unwrap_or(false);
    let after = fields.parsed("after", "invalid_id");
    let Some(since) = since else { return Err(fields.refuse()) };
    if until <= since {
        fields.wrong("until", "before_since", "It is not later than since.");
    }
    fields.finish()?;
    Ok(Range { since, until, delivered, after })
}

/// One delivery with every attempt
#[utoipa::path(get, path = "/v1/webhook_deliveries/{id}", tag = "webhooks",
    security(("api_key" = [])),
    params(("id" = String, Path, description = "The delivery's id.")),
    responses(
        (status = 200, description = "The delivery.", body = WebhookDelivery),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such delivery.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn delivery(
    State(app): State<AppState>,
    caller: Caller,
    PathId(id): PathId<DeliveryId>,
) -> Result<Response, ApiError> {
    caller.needs(Scope::Webhooks)?;
    let found = app
        .store
        .read(move |tx| webhook_endpoints::delivery(tx, (&caller.tenant, caller.test), &id))
        .await?;
    Ok(json(StatusCode::OK, &found.ok_or_else(ApiError::not_found)?))
}

/// Deliver one event again
///
/// From the beginning of its schedule, under the event's own id, whatever came of it before.
#[utoipa::path(post, path = "/v1/webhook_deliveries/{id}/replay", tag = "webhooks", security(("api_key" = [])),
    params(("id" = String, Path, description = "The delivery's id.")),
    responses(
        (status = 202, description = "On its way.", body = WebhookDelivery),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such delivery.", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "The endpoint is switched off.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn replay_delivery(
    State(app): State<AppState>,
    caller: Caller,
    headers: HeaderMap,
    PathId(id): PathId<DeliveryId>,
) -> Result<Response, ApiError> {
    caller.needs(Scope::Webhooks)?;
    let route = format!("POST /v1/webhook_deliveries/{id}/replay");
    let post = Post::new(caller.idempotency_scope(), route, &headers, &Value::Null)?;
    let (tenant, test, now) = (caller.tenant, caller.test, app.clock.now());
    let response = idempotency::post(&app, post, Ok(id), move |tx, id| {
        let found = webhook_endpoints::delivery(tx, (&tenant, test), &id)?;
        let delivery = found.ok_or_else(ApiError::not_found)?;
        enabled(tx, (&tenant, test), &delivery.endpoint)?;
        webhook_endpoints::replay(tx, &tenant, &id, now)?;
        let again = webhook_endpoints::delivery(tx, (&tenant, test), &id)?;
        Reply::new(StatusCode::ACCEPTED, &again.ok_or_else(ApiError::not_found)?)
    })
    .await?;
    app.bells.webhooks.notify_one();
    Ok(response)
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
    let now = app.clock.now();
    let found = app
        .store
        .write(move |tx| webhook_endpoints::delete(tx, (&caller.tenant, caller.test), &id, now))
        .await?;
    if !found {
        return Err(ApiError::not_found());
    }
    app.bells.swept_endpoints.notify_one();
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
            if webhook_endpoints::get(tx, (&caller.tenant, caller.test), &id)?.is_none() {
                return Ok(None);
            }
            let before = after.as_deref();
            webhook_endpoints::deliveries(tx, &caller.tenant, &id, before, limit).map(Some)
        })
        .await?
        .ok_or_else(ApiError::not_found)?;
    Ok(json(StatusCode::OK, &page(rows, limit, |delivery| delivery.id.to_string())))
}
