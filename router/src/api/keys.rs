//! API keys, for the operator.

use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use protocol::api::{ApiKey, Page, Problem};
use protocol::{KeyId, TenantId, UnixMs};
use serde::Serialize;
use serde_json::Value;

use super::fields::Fields;
use super::pages::{Query, page};
use super::tenants::NAME_CHARS_MAX;
use super::{JsonBody, PathId, json};
use crate::auth::{FreshKey, Scope};
use crate::clock;
use crate::error::ApiError;
use crate::idempotency::{self, Post, Reply};
use crate::server::AppState;
use crate::store::keys::{self, NewKey};

/// An API key with what it may do, without its secret.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct ScopedKey {
    /// The key.
    #[serde(flatten)]
    key: ApiKey,
    /// What it may do: `messages:read`, `messages:write`, `webhooks`, `opt_outs:read`, `opt_outs:write`,
    /// `contacts`.
    scopes: Vec<String>,
}

/// A new API key.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct CreatedScopedKey {
    /// The key.
    #[serde(flatten)]
    key: ScopedKey,
    /// What goes behind `Authorization: Bearer`; shown this once, and not again by an idempotency key.
    secret: String,
}

/// `POST /v1/admin/keys`.
#[derive(Debug, utoipa::ToSchema)]
#[expect(
    dead_code,
    reason = "describes the body in the API's document; fields are checked one by one"
)]
pub(super) struct CreateScopedKey {
    /// For which tenant.
    tenant: TenantId,
    /// A name for people, 1 to 100 characters.
    name: String,
    /// For the sandbox only.
    test: Option<bool>,
    /// When it ends; never when left out.
    expires_at: Option<UnixMs>,
    /// What it may do; everything when left out.
    scopes: Option<Vec<String>>,
}

/// Make an API key
#[utoipa::path(post, path = "/v1/admin/keys", tag = "operator", request_body = CreateScopedKey,
    security(("admin_token" = [])),
    responses(
        (status = 201, description = "Made.", body = CreatedScopedKey),
        (status = 401, description = "Not the operator's token.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Fields are wrong.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn create(
    State(app): State<AppState>,
    headers: HeaderMap,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let now = app.clock.now();
    let post = Post::new("operator".to_owned(), "POST /v1/admin/keys", &headers, &body)?;
    let response = idempotency::post(&app, post, checked(body, now), |tx, (new, secret)| {
        if !crate::store::admin::tenant_exists(tx, &new.key.tenant)? {
            return Err(ApiError::invalid(vec![protocol::api::FieldError {
                pointer: "/tenant".to_owned(),
                code: "not_found".to_owned(),
                detail: "There is no such tenant.".to_owned(),
            }]));
        }
        keys::insert(tx, &new.key.tenant, &new)?;
        let shown = ScopedKey { key: new.key, scopes: new.scopes };
        Ok(Reply::new(StatusCode::CREATED, &shown)?.with_once("secret", secret))
    })
    .await?;
    app.auth.forget();
    Ok(response)
}

/// The key as it is to be made, and its secret.
fn checked(body: Value, now: UnixMs) -> Result<(NewKey, String), ApiError> {
    let mut fields = Fields::new(body)?;
    let tenant: Option<TenantId> = fields.required_parsed("tenant", "invalid_id");
    let name = fields.required_line("name", 1..=NAME_CHARS_MAX);
    let test = fields.boolean("test").unwrap_or(false);
    let expires_at = fields.time("expires_at");
    if expires_at.is_some_and(|at| at <= now) {
        fields.wrong("expires_at", "in_the_past", "It is not in the future.");
    }
    let scopes = scopes(&mut fields);
    let (Some(tenant), Some(name)) = (tenant, name) else { return Err(fields.refuse()) };
    fields.finish()?;

    let fresh = FreshKey::new(test);
    let key = ApiKey {
        id: KeyId::new(now.0, clock::random()),
        tenant,
        name,
        prefix: fresh.prefix,
        test,
        created_at: now,
        expires_at,
        revoked_at: None,
        last_used_at: None,
    };
    Ok((NewKey { key, hash: fresh.hash, scopes }, fresh.secret))
}

fn scopes(fields: &mut Fields) -> Vec<String> {
    let all = || Scope::ALL.iter().map(|scope| scope.as_str().to_owned()).collect();
    let known = |text: &str| Scope::ALL.iter().any(|scope| scope.as_str() == text);
    fields
        .list("scopes", Scope::ALL.len(), |fields, index, item| match item {
            Value::String(text) if known(&text) => Some(text),
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::Array(_)
            | Value::Object(_) => {
                fields.wrong(index, "unknown_scope", "There is no such scope.");
                None
            }
        })
        .unwrap_or_else(all)
}

/// List API keys, newest first
#[utoipa::path(get, path = "/v1/admin/keys", tag = "operator", security(("admin_token" = [])),
    params(
        ("limit" = Option<u32>, Query, description = "Rows, 1 to 100; 50 when left out."),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before."),
        ("tenant" = Option<String>, Query, description = "Only this tenant's.")),
    responses(
        (status = 200, description = "A page.", body = Page<ScopedKey>),
        (status = 401, description = "Not the operator's token.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn list(
    State(app): State<AppState>,
    RawQuery(raw): RawQuery,
) -> Result<Response, ApiError> {
    let mut query = Query::new(raw.as_deref());
    let tenant: Option<TenantId> = query.parsed("tenant", "invalid_id");
    let asked = query.finish()?;
    let (after, limit) = (asked.after_id::<KeyId>()?, asked.limit);
    let rows = app
        .store
        .read(move |tx| keys::list(tx, tenant.as_ref(), after.as_deref(), limit))
        .await?
        .into_iter()
        .map(|(key, scopes)| ScopedKey { key, scopes })
        .collect();
    Ok(json(StatusCode::OK, &page(rows, limit, |row: &ScopedKey| row.key.id.to_string())))
}

/// Revoke an API key
#[utoipa::path(delete, path = "/v1/admin/keys/{id}", tag = "operator", security(("admin_token" = [])),
    params(("id" = String, Path, description = "The key's id.")),
    responses(
        (status = 204, description = "Revoked; requests with it are refused from now on."),
        (status = 401, description = "Not the operator's token.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such key.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn revoke(
    State(app): State<AppState>,
    PathId(id): PathId<KeyId>,
) -> Result<Response, ApiError> {
    let now = app.clock.now();
    let found = app.store.write(move |tx| keys::revoke(tx, &id, now)).await?;
    app.auth.forget();
    if !found {
        return Err(ApiError::not_found());
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}
