//! Tenants, for the operator.

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use protocol::api::{CreateTenant, Page, Problem, Tenant};
use protocol::{TenantId, UnixMs};
use serde_json::Value;

use super::fields::Fields;
use super::pages::{page, window};
use super::{JsonBody, json};
use crate::clock;
use crate::error::{ApiError, Code};
use crate::idempotency::{self, Post, Reply};
use crate::server::AppState;
use crate::store::{StoreError, accounts, admin};

/// Longest name of anything, in characters: what a table can show.
pub(super) const NAME_CHARS_MAX: usize = 100;

/// Make a tenant
#[utoipa::path(post, path = "/v1/admin/tenants", tag = "operator", request_body = CreateTenant,
    security(("admin_token" = [])),
    responses(
        (status = 201, description = "Made.", body = Tenant),
        (status = 401, description = "Not the operator's token.", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "The name is taken.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Fields are wrong.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn create(
    State(app): State<AppState>,
    headers: HeaderMap,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let now = app.clock.now();
    let post = Post::new("operator".to_owned(), "POST /v1/admin/tenants", &headers, &body)?;
    let plans = Arc::clone(&app.config.plans);
    idempotency::post(&app, post, checked(body, now), move |tx, tenant| match admin::insert_tenant(
        tx, &tenant,
    ) {
        Ok(()) => {
            accounts::open_new(tx, &tenant.id, &plans, now)?;
            Reply::new(StatusCode::CREATED, &tenant)
        }
        Err(StoreError::Constraint(_)) => {
            Err(ApiError::new(Code::AlreadyExists).detail("A tenant of this name exists."))
        }
        Err(error) => Err(error.into()),
    })
    .await
}

fn checked(body: Value, now: UnixMs) -> Result<Tenant, ApiError> {
    let mut fields = Fields::new(body)?;
    let name = fields.required_line("name", 1..=NAME_CHARS_MAX);
    let brand = fields.line("brand", 1..=NAME_CHARS_MAX);
    let Some(name) = name else { return Err(fields.refuse()) };
    fields.finish()?;
    let brand = brand.unwrap_or_else(|| name.clone());
    let id = TenantId::new(now.0, clock::random());
    Ok(Tenant { id, name, brand, created_at: now })
}

/// List tenants, newest first
#[utoipa::path(get, path = "/v1/admin/tenants", tag = "operator", security(("admin_token" = [])),
    params(
        ("limit" = Option<u32>, Query, description = "Rows, 1 to 100; 50 when left out."),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before.")),
    responses(
        (status = 200, description = "A page.", body = Page<Tenant>),
        (status = 401, description = "Not the operator's token.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn list(
    State(app): State<AppState>,
    RawQuery(raw): RawQuery,
) -> Result<Response, ApiError> {
    let asked = window(raw.as_deref())?;
    let (after, limit) = (asked.after_id::<TenantId>()?, asked.limit);
    let rows = app.store.read(move |tx| admin::list_tenants(tx, after.as_deref(), limit)).await?;
    Ok(json(StatusCode::OK, &page(rows, limit, |tenant| tenant.id.to_string())))
}
