//! What was used: by the tenant that asks, or by everybody for the operator.

use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::Response;
use protocol::api::{Page, Problem, UsagePeriod, UsageRow};
use protocol::{TenantId, UnixMs};

use super::json;
use super::pages::{Query, cursor, page};
use crate::auth::{Caller, Scope};
use crate::billing::{Day, Month};
use crate::error::ApiError;
use crate::server::AppState;
use crate::store::usage::{self, Asked, Cursor};

/// Your usage, newest first
///
/// By month or day (UTC), class and channel. Messages of test keys are not counted, nor confirmations of opt-outs.
#[utoipa::path(get, path = "/v1/usage", tag = "billing", security(("api_key" = [])),
    params(
        ("limit" = Option<u32>, Query, description = "Rows, 1 to 100; 50 when left out."),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before."),
        ("period" = Option<UsagePeriod>, Query, description = "What a row sums up; `month` when left out."),
        ("from" = Option<String>, Query, description = "The first day, such as 2026-11-01; the first of this month when left out."),
        ("to" = Option<String>, Query, description = "The last day, such as 2026-11-30; today when left out.")),
    responses(
        (status = 200, description = "A page.", body = Page<UsageRow>),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Parameters are wrong.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn own(
    State(app): State<AppState>,
    caller: Caller,
    RawQuery(raw): RawQuery,
) -> Result<Response, ApiError> {
    caller.needs(Scope::MessagesRead)?;
    let query = Query::new(raw.as_deref());
    list(&app, Some(caller.tenant), query).await
}

/// Everybody's usage, or one tenant's
///
/// A page looks at 500 tenants without any at most: it may have fewer rows than asked for, or none, and `has_more` all the same.
#[utoipa::path(get, path = "/v1/admin/usage", tag = "operator", security(("admin_token" = [])),
    params(
        ("limit" = Option<u32>, Query, description = "Rows, 1 to 100; 50 when left out."),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before."),
        ("tenant" = Option<String>, Query, description = "Only of this tenant."),
        ("period" = Option<UsagePeriod>, Query, description = "What a row sums up; `month` when left out."),
        ("from" = Option<String>, Query, description = "The first day, such as 2026-11-01; the first of this month when left out."),
        ("to" = Option<String>, Query, description = "The last day, such as 2026-11-30; today when left out.")),
    responses(
        (status = 200, description = "A page, by tenant and then newest first.", body = Page<UsageRow>),
        (status = 401, description = "Not the operator's token.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Parameters are wrong.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn all(
    State(app): State<AppState>,
    RawQuery(raw): RawQuery,
) -> Result<Response, ApiError> {
    let mut query = Query::new(raw.as_deref());
    let tenant = query.parsed("tenant", "invalid_id");
    list(&app, tenant, query).await
}

async fn list(
    app: &AppState,
    tenant: Option<TenantId>,
    query: Query,
) -> Result<Response, ApiError> {
    let asked = asked(query, app.clock.now())?;
    let limit = asked.limit;
    let (rows, last) = app
        .store
        .read(move |tx| match &tenant {
            Some(tenant) => Ok((usage::of_tenant(tx, tenant, &asked)?, None)),
            None => usage::of_all(tx, &asked),
        })
        .await?;
    let mut page = page(rows, limit, Cursor::of);
    if let Some(last) = last {
        page.next_cursor = Some(cursor(&Cursor::behind(&last)));
        page.has_more = true;
    }
    Ok(json(StatusCode::OK, &page))
}

fn asked(mut query: Query, now: UnixMs) -> Result<Asked, ApiError> {
    let period = query.one_of("period", "unknown_period", UsagePeriod::ALL);
    let from = query.parsed::<Day>("from", "invalid_day");
    let to = query.parsed::<Day>("to", "invalid_day");
    let window = query.finish()?;
    Ok(Asked {
        period: period.unwrap_or(UsagePeriod::Month),
        days: (from.unwrap_or_else(|| Month::of(now).first()), to.unwrap_or_else(|| Day::of(now))),
        after: window.after_parsed()?,
        limit: window.limit,
    })
}
