//! All tenants' messages, for the operator.

use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::Response;
use protocol::api::{Direction, Message, Page, Problem};
use protocol::{MessageId, Status, TenantId};
use serde::Serialize;

use super::json;
use super::pages::{Query, page};
use crate::error::ApiError;
use crate::server::AppState;
use crate::store::messages::{self, Window};

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
