//! API keys, for the operator.

use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use protocol::api::{ApiKey, CreateKey, CreatedKey, Page, Problem, RotateKey, Tier};
use protocol::{KeyId, TenantId, UnixMs};
use serde_json::Value;

use super::audit::Whose;
use super::fields::Fields;
use super::overlap;
use super::pages::{of_tenant, page};
use super::tenants::NAME_CHARS_MAX;
use super::{JsonBody, OptionalJsonBody, PathId, json};
use crate::auth::{FreshKey, Scope};
use crate::clock;
use crate::config::RATE_MAX;
use crate::error::{ApiError, Code};
use crate::idempotency::{self, Post, Reply};
use crate::network::Network;
use crate::rate::Rate;
use crate::server::AppState;
use crate::store::keys::{self, NewKey, Tiers};

/// Longest that a replaced key may still work, in seconds: 30 days.
const OVERLAP_S_MAX: u32 = 30 * 86_400;
/// Networks that one key may be used from: offices and clusters have few.
const NETWORKS_MAX: usize = 50;

/// Make an API key
#[utoipa::path(post, path = "/v1/admin/keys", tag = "operator", request_body = CreateKey,
    security(("admin_token" = [])),
    responses(
        (status = 201, description = "Made.", body = CreatedKey),
        (status = 401, description = "Not the operator's token.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Fields are wrong.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn create(
    State(app): State<AppState>,
    headers: HeaderMap,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let now = app.clock.now();
    let post = Post::new("operator".to_owned(), "POST /v1/admin/keys", &headers, &body)?;
    let checked = checked(body, &app.config.limits.tiers(), now);
    let whose = checked.as_ref().ok().map(|(new, _)| new.key.tenant.clone());
    let mut response = idempotency::post(&app, post, checked, |tx, (new, secret)| {
        if !crate::store::admin::tenant_exists(tx, &new.key.tenant)? {
            return Err(ApiError::invalid(vec![protocol::api::FieldError {
                pointer: "/tenant".to_owned(),
                code: "not_found".to_owned(),
                detail: "There is no such tenant.".to_owned(),
            }]));
        }
        keys::insert(tx, &new.key.tenant, &new)?;
        Ok(Reply::new(StatusCode::CREATED, &new.key)?.with_once("secret", secret))
    })
    .await?;
    if let Some(tenant) = whose {
        response.extensions_mut().insert(Whose(tenant));
    }
    Ok(response)
}

/// The key as it is to be made, and its secret.
fn checked(body: Value, tiers: &Tiers, now: UnixMs) -> Result<(NewKey, String), ApiError> {
    let mut fields = Fields::new(body)?;
    let tenant: Option<TenantId> = fields.required_parsed("tenant", "invalid_id");
    let name = fields.required_line("name", 1..=NAME_CHARS_MAX);
    let test = fields.boolean("test").unwrap_or(false);
    let expires_at = fields.time("expires_at");
    if expires_at.is_some_and(|at| at <= now) {
        fields.wrong("expires_at", "in_the_past", "It is not in the future.");
    }
    let scopes = scopes(&mut fields);
    let allow = networks(&mut fields);
    let (named, tier, rate) = tier(&mut fields, tiers);
    let (Some(tenant), Some(name)) = (tenant, name) else { return Err(fields.refuse()) };
    fields.finish()?;

    let fresh = FreshKey::new(test);
    let key = ApiKey {
        id: KeyId::new(now.0, clock::random()),
        tenant,
        name,
        prefix: fresh.prefix,
        test,
        scopes,
        allow: allow.iter().map(ToString::to_string).collect(),
        tier,
        per_second: rate.per_second,
        burst: rate.burst,
        created_at: now,
        expires_at,
        rotated_to: None,
        revoked_at: None,
        last_used_at: None,
    };
    Ok((NewKey { key, hash: fresh.hash, tier: named }, fresh.secret))
}

fn networks(fields: &mut Fields) -> Vec<Network> {
    fields
        .list("allow", NETWORKS_MAX, |fields, index, item| {
            let network = item.as_str().and_then(|text| text.parse().ok());
            if network.is_none() {
                let detail = "It must be a network such as 192.0.2.0/24 or 2001:db8::1.";
                fields.wrong(index, "invalid_network", detail);
            }
            network
        })
        .unwrap_or_default()
}

/// The tier that is named, if one is, the one that counts, and what it means.
fn tier(fields: &mut Fields, tiers: &Tiers) -> (Option<Tier>, Tier, Rate) {
    let named = fields.one_of("tier", "unknown_tier", Tier::ALL);
    let per_second = fields.number("per_second", 1..=RATE_MAX);
    let burst = fields.number("burst", 1..=RATE_MAX);
    let tier = named.unwrap_or(tiers.default);
    let rate = match tier {
        Tier::Starter => tiers.starter,
        Tier::Growth => tiers.growth,
        Tier::Custom => {
            for (name, value) in [("per_second", per_second), ("burst", burst)] {
                if value.is_none() {
                    fields.wrong(name, "required", "A custom tier needs it.");
                }
            }
            Rate { per_second: per_second.unwrap_or(1), burst: burst.unwrap_or(1) }
        }
    };
    if tier != Tier::Custom {
        for (name, value) in [("per_second", per_second), ("burst", burst)] {
            if value.is_some() {
                fields.wrong(name, "conflict", "Only a custom tier has a rate of its own.");
            }
        }
    }
    (named, tier, rate)
}

fn scopes(fields: &mut Fields) -> Vec<String> {
    let all: Vec<&str> = Scope::ALL.iter().map(|scope| scope.as_str()).collect();
    fields
        .words("scopes", &all, ("unknown_scope", "There is no such scope."))
        .unwrap_or_else(|| all.iter().map(ToString::to_string).collect())
}

/// List API keys, newest first
#[utoipa::path(get, path = "/v1/admin/keys", tag = "operator", security(("admin_token" = [])),
    params(
        ("limit" = Option<u32>, Query, description = "Rows, 1 to 100; 50 when left out."),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before."),
        ("tenant" = Option<String>, Query, description = "Only this tenant's.")),
    responses(
        (status = 200, description = "A page.", body = Page<ApiKey>),
        (status = 401, description = "Not the operator's token.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn list(
    State(app): State<AppState>,
    RawQuery(raw): RawQuery,
) -> Result<Response, ApiError> {
    let (tenant, asked) = of_tenant(raw.as_deref())?;
    let (after, limit) = (asked.after_id::<KeyId>()?, asked.limit);
    let tiers = app.config.limits.tiers();
    let rows = app
        .store
        .read(move |tx| keys::list(tx, tenant.as_ref(), &tiers, after.as_deref(), limit))
        .await?;
    Ok(json(StatusCode::OK, &page(rows, limit, |key| key.id.to_string())))
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
    let work = AppState::clone(&app);
    let found = to_its_end(&app, async move {
        let found = work.store.write(move |tx| match keys::owner(tx, &id)? {
            Some(tenant) => keys::revoke(tx, &tenant, &id, now),
            None => Ok(false),
        });
        let found = found.await;
        work.auth.forget();
        found.map_err(ApiError::from)
    })
    .await?;
    if !found {
        return Err(ApiError::not_found());
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Put a new API key into the place of another
///
/// The new one may do what the old one may, and ends when that would have ended. The old one works for as long as is
/// asked for, so that the new one can be rolled out; `0` ends it at once.
#[utoipa::path(post, path = "/v1/admin/keys/{id}/rotate", tag = "operator", request_body = Option<RotateKey>,
    security(("admin_token" = [])),
    params(("id" = String, Path, description = "The key's id.")),
    responses(
        (status = 201, description = "Made. The secret is shown this once, and not again by an idempotency key.", body = CreatedKey),
        (status = 401, description = "Not the operator's token.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such key.", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "It has ended or been replaced already.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Fields are wrong.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn rotate(
    State(app): State<AppState>,
    headers: HeaderMap,
    PathId(id): PathId<KeyId>,
    OptionalJsonBody(body): OptionalJsonBody,
) -> Result<Response, ApiError> {
    let now = app.clock.now();
    let route = format!("POST /v1/admin/keys/{id}/rotate");
    let post = Post::new("operator".to_owned(), route, &headers, &body)?;
    let tiers = app.config.limits.tiers();
    let work = AppState::clone(&app);
    to_its_end(&app, async move {
        let overlap = overlap::asked(body, OVERLAP_S_MAX);
        let made = idempotency::post(&work, post, overlap, move |tx, overlap_s| {
            let tenant = keys::owner(tx, &id)?.ok_or_else(ApiError::not_found)?;
            let found = keys::get(tx, &tenant, &id, &tiers)?;
            let (old, named) = found.ok_or_else(ApiError::not_found)?;
            let ended = old.revoked_at.is_some() || old.expires_at.is_some_and(|at| at <= now);
            if ended || old.rotated_to.is_some() {
                return Err(ApiError::new(Code::KeyEnded));
            }
            let fresh = FreshKey::new(old.test);
            let key = ApiKey {
                id: KeyId::new(now.0, clock::random()),
                prefix: fresh.prefix,
                created_at: now,
                last_used_at: None,
                ..old
            };
            let new = NewKey { key, hash: fresh.hash, tier: named };
            keys::insert(tx, &tenant, &new)?;
            let until = now.plus_ms(i64::from(overlap_s) * 1_000);
            keys::replaced(tx, &tenant, (&id, &new.key.id), until)?;
            Ok(Reply::new(StatusCode::CREATED, &new.key)?.with_once("secret", fresh.secret))
        });
        let made = made.await;
        work.auth.forget();
        made
    })
    .await
}

/// Does work that must not stop half-way when its caller hangs up: what is on disk must be forgotten in memory, too.
async fn to_its_end<T: Send + 'static>(
    app: &AppState,
    work: impl Future<Output = Result<T, ApiError>> + Send + 'static,
) -> Result<T, ApiError> {
    let done = app.tasks.spawn(work).await;
    done.map_err(|error| ApiError::new(Code::Internal).caused_by(error))?
}
