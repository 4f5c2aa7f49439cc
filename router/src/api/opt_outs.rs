//! Who must not be written to.

use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::Response;
use protocol::Recipient;
use protocol::api::{OptOut, Page, Problem};

use super::json;
use super::pages::{page, window};
use crate::auth::{Caller, Scope};
use crate::error::ApiError;
use crate::server::AppState;
use crate::store::opt_outs;

/// List opt-outs, by recipient
#[utoipa::path(get, path = "/v1/opt_outs", tag = "opt-outs", security(("api_key" = [])),
    params(
        ("limit" = Option<u32>, Query, description = "Rows, 1 to 100; 50 when left out."),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before.")),
    responses(
        (status = 200, description = "A page.", body = Page<OptOut>),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn list(
    State(app): State<AppState>,
    caller: Caller,
    RawQuery(raw): RawQuery,
) -> Result<Response, ApiError> {
    caller.needs(Scope::OptOutsRead)?;
    let asked = window(raw.as_deref())?;
    let (after, limit) = (asked.after_id::<Recipient>()?, asked.limit);
    let rows = app
        .store
        .read(move |tx| opt_outs::list(tx, &caller.tenant, after.as_deref().unwrap_or(""), limit))
        .await?;
    Ok(json(StatusCode::OK, &page(rows, limit, |row| row.recipient.to_string())))
}
