//! The operator's hand in tenants' data: written down before anything is read or changed, and shown.

use axum::extract::{MatchedPath, RawQuery, Request, State};
use axum::http::{StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use protocol::api::{AuditEntry, Page, Problem};
use protocol::{EventId, KeyId, MessageId, PhoneId, TenantId};

use super::json;
use super::pages::{of_tenant, page};
use crate::auth::address_of;
use crate::clock;
use crate::error::{ApiError, RequestId};
use crate::server::AppState;
use crate::store::inbound::exclusive_tenant;
use crate::store::{StoreError, Tx, audit, keys, messages};

/// Longest path and query that is written down, in bytes; what is longer names nothing of ours.
const TARGET_BYTES_MAX: usize = 1_000;

/// Whose data an answer was about, where the path does not say.
#[derive(Clone, Debug)]
pub(super) struct Whose(pub(super) TenantId);

/// Around the operator's routes to what belongs to tenants, and to which phones and hosts send it. What cannot be written down is not done.
pub(super) async fn written_down(
    State(app): State<AppState>,
    request: Request,
    next: Next,
) -> Response {
    let now = app.clock.now();
    let id = EventId::new(now.0, clock::random());
    let extensions = request.extensions();
    let route = extensions.get::<MatchedPath>().map_or("unmatched", MatchedPath::as_str);
    let target = request.uri().path_and_query().map_or("", |target| target.as_str());
    let entry = AuditEntry {
        id: id.clone(),
        at: now,
        tenant: None,
        action: format!("{} {route}", request.method()),
        target: target.chars().take(TARGET_BYTES_MAX).collect(),
        address: address_of(&app, &request).map(|address| address.to_string()),
        request_id: extensions.get::<RequestId>().map_or_else(String::new, |id| id.0.clone()),
        status: None,
    };
    let uri = request.uri().clone();
    let begun = app
        .store
        .write(move |tx| {
            let tenant = whose(tx, &uri)?;
            audit::begin(tx, tenant.as_ref(), &entry)
        })
        .await;
    if let Err(error) = begun {
        return ApiError::from(error).into_response();
    }
    let response = next.run(request).await;
    let status = response.status().as_u16();
    let whose = response.extensions().get::<Whose>().map(|whose| whose.0.clone());
    let ended = app.store.write(move |tx| audit::end(tx, whose.as_ref(), &id, status)).await;
    if let Err(error) = ended {
        // That it was asked for is on disk.
        tracing::error!(%error, "the end of an operator's request was not written down");
    }
    response
}

/// Whose data a path or its query names, by an id of a tenant, a message or a key, or of a phone that is one tenant's alone.
fn whose(tx: &mut Tx<'_>, uri: &Uri) -> Result<Option<TenantId>, StoreError> {
    for (name, value) in url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()) {
        if name == "tenant"
            && let Ok(tenant) = value.parse()
        {
            return Ok(Some(tenant));
        }
    }
    for segment in uri.path().split('/') {
        if let Ok(tenant) = segment.parse::<TenantId>() {
            return Ok(Some(tenant));
        }
        if let Ok(message) = segment.parse::<MessageId>() {
            return messages::owner(tx, &message);
        }
        if let Ok(key) = segment.parse::<KeyId>() {
            return keys::owner(tx, &key);
        }
        if let Ok(phone) = segment.parse::<PhoneId>() {
            return exclusive_tenant(tx, &phone);
        }
    }
    Ok(None)
}

/// List what the operator has read or changed of tenants' data, newest first
#[utoipa::path(get, path = "/v1/admin/audit_log", tag = "operator",
    security(("admin_token" = [])),
    params(
        ("limit" = Option<u32>, Query, description = "Rows, 1 to 100; 50 when left out."),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before."),
        ("tenant" = Option<String>, Query, description = "Only of this tenant's data.")),
    responses(
        (status = 200, description = "A page.", body = Page<AuditEntry>),
        (status = 401, description = "Not the operator's token.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn list(
    State(app): State<AppState>,
    RawQuery(raw): RawQuery,
) -> Result<Response, ApiError> {
    let (tenant, asked) = of_tenant(raw.as_deref())?;
    let (after, limit) = (asked.after_id::<EventId>()?, asked.limit);
    let rows =
        app.store.read(move |tx| audit::list(tx, tenant.as_ref(), after.as_deref(), limit)).await?;
    Ok(json(StatusCode::OK, &page(rows, limit, |entry| entry.id.to_string())))
}
