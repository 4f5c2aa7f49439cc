//! One phone, and what the operator decides of it; and which ones tenants may use.

use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::Response;
use protocol::api::{Page, Phone, Problem, UpdatePhone, UsablePhone};
use protocol::{PhoneId, TenantId, UnixMs};
use serde_json::Value;

use super::audit;
use super::fields::Fields;
use super::pages::{page, window};
use super::{JsonBody, PathId, json};
use crate::auth::{Caller, Scope};
use crate::dispatch;
use crate::error::ApiError;
use crate::server::AppState;
use crate::store::admin;

/// Longest label, in characters: it stands in a table.
const LABEL_CHARS_MAX: usize = 100;

/// Highest cap and priority: more than any phone can send in a day.
const NUMBER_MAX: u32 = 1_000_000;

/// What `exclusive_to` says of a phone that is to be pooled.
const EVERYBODY: &str = "everybody";

/// List the phones that you may use, newest first
///
/// Those that are yours alone and those that all tenants share; with a test key those of the sandbox. A number of them may
/// stand in `from`.
#[utoipa::path(get, path = "/v1/phones", tag = "messages", security(("api_key" = [])),
    params(
        ("limit" = Option<u32>, Query, description = "Rows, 1 to 100; 50 when left out."),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before.")),
    responses(
        (status = 200, description = "A page.", body = Page<UsablePhone>),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "The key may not read messages.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Parameters are wrong.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn usable(
    State(app): State<AppState>,
    caller: Caller,
    RawQuery(raw): RawQuery,
) -> Result<Response, ApiError> {
    caller.needs(Scope::MessagesRead)?;
    let asked = window(raw.as_deref())?;
    let (before, limit) = (asked.after_id::<PhoneId>()?, asked.limit);
    let rows = app
        .store
        .read(move |tx| {
            admin::usable_phones(tx, (&caller.tenant, caller.test), before.as_deref(), limit)
        })
        .await?;
    Ok(json(StatusCode::OK, &page(rows, limit, |phone| phone.id.to_string())))
}

/// One phone
#[utoipa::path(get, path = "/v1/admin/phones/{id}", tag = "operator", security(("admin_token" = [])),
    params(("id" = String, Path, description = "The phone's id.")),
    responses(
        (status = 200, description = "The phone.", body = Phone),
        (status = 401, description = "Not the operator's token.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such phone.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn get(
    State(app): State<AppState>,
    PathId(id): PathId<PhoneId>,
) -> Result<Response, ApiError> {
    let now = app.clock.now();
    let found = app.store.read(move |tx| admin::phone(tx, &id, now)).await?;
    Ok(json(StatusCode::OK, &found.ok_or_else(ApiError::not_found)?))
}

/// Change what you decide of a phone: whom it is for, its cap, its age
///
/// What is left out stays as it is. It counts from the next message on; what a phone was given already it sends.
#[utoipa::path(patch, path = "/v1/admin/phones/{id}", tag = "operator", request_body = UpdatePhone,
    security(("admin_token" = [])),
    params(("id" = String, Path, description = "The phone's id.")),
    responses(
        (status = 200, description = "As it is now.", body = Phone),
        (status = 401, description = "Not the operator's token.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such phone.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Fields are wrong.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn update(
    State(app): State<AppState>,
    PathId(id): PathId<PhoneId>,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let now = app.clock.now();
    let change = checked(body, now)?;
    let phone = app
        .store
        .transact(move |tx| {
            let before = admin::phone(tx, &id, now)?.ok_or_else(ApiError::not_found)?;
            if let Some(Whose::Tenant(tenant)) = &change.whose
                && !admin::tenant_exists(tx, tenant)?
            {
                return Err(unknown_tenant());
            }
            let after = changed(before, change);
            admin::set_phone(tx, &after, now)?;
            Ok(after)
        })
        .await?;
    // What waits for a phone may have one now.
    dispatch::phone_became_able(&app).await?;
    let mut response = json(StatusCode::OK, &phone);
    if let Some(tenant) = phone.exclusive_to {
        response.extensions_mut().insert(audit::Whose(tenant));
    }
    Ok(response)
}

enum Whose {
    Everybody,
    Tenant(TenantId),
}

struct Change {
    label: Option<String>,
    whose: Option<Whose>,
    daily_cap: Option<u32>,
    warming_priority: Option<u32>,
    in_service_at: Option<UnixMs>,
}

fn checked(body: Value, now: UnixMs) -> Result<Change, ApiError> {
    let mut fields = Fields::new(body)?;
    let label = fields.line("label", 0..=LABEL_CHARS_MAX);
    let whose = fields.line("exclusive_to", 1..=LABEL_CHARS_MAX).and_then(|text| {
        if text == EVERYBODY {
            return Some(Whose::Everybody);
        }
        let tenant = text.parse().ok().map(Whose::Tenant);
        if tenant.is_none() {
            fields.wrong("exclusive_to", "invalid_id", "It is a tenant's id, or everybody.");
        }
        tenant
    });
    let daily_cap = fields.number("daily_cap", 0..=NUMBER_MAX);
    let warming_priority = fields.number("warming_priority", 0..=NUMBER_MAX);
    let in_service_at = fields.time("in_service_at");
    if in_service_at.is_some_and(|at| at > now) {
        // A phone that is older than it is would be trusted with more strangers than it may meet.
        fields.wrong("in_service_at", "in_the_future", "It is later than now.");
    }
    fields.finish()?;
    Ok(Change { label, whose, daily_cap, warming_priority, in_service_at })
}

fn changed(before: Phone, change: Change) -> Phone {
    Phone {
        label: change.label.map_or(before.label, |label| (!label.is_empty()).then_some(label)),
        exclusive_to: match change.whose {
            None => before.exclusive_to,
            Some(Whose::Everybody) => None,
            Some(Whose::Tenant(tenant)) => Some(tenant),
        },
        daily_cap: change.daily_cap.map_or(before.daily_cap, |cap| (cap > 0).then_some(cap)),
        warming_priority: change.warming_priority.unwrap_or(before.warming_priority),
        in_service_at: change.in_service_at.or(before.in_service_at),
        ..before
    }
}

fn unknown_tenant() -> ApiError {
    ApiError::invalid(vec![protocol::api::FieldError {
        pointer: "/exclusive_to".to_owned(),
        code: "unknown_tenant".to_owned(),
        detail: "There is no such tenant.".to_owned(),
    }])
}
