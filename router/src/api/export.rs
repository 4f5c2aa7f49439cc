//! What has come of every recipient of a batch, as one file that is written while it is read.

use axum::body::{Body, Bytes};
use axum::extract::{RawQuery, State};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream::try_unfold;
use protocol::api::{BatchRecipient, Problem};
use protocol::{BatchId, Status, TenantId};

use super::PathId;
use super::batches::visible;
use super::pages::Query;
use crate::auth::{Caller, Scope};
use crate::batches::PAGE_ROWS;
use crate::error::{ApiError, Code};
use crate::server::AppState;
use crate::store::batches;

/// How an export is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Csv,
    Lines,
}

/// What has come of every recipient of a batch, as a file
///
/// In the order in which they were added: number, recipient, message, status, reason, and when that was.
#[utoipa::path(get, path = "/v1/batches/{id}/export", tag = "batches", security(("api_key" = [])),
    params(
        ("id" = String, Path, description = "The batch's id."),
        ("format" = Option<String>, Query, description = "`csv`, as when left out, or `ndjson`."),
        ("status" = Option<Status>, Query, description = "Only those whose message has this status.")),
    responses(
        (status = 200, description = "The file, as long as it is.", content(
            (String = "text/csv"), (String = "application/x-ndjson"))),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such batch.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Parameters are wrong.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn export(
    State(app): State<AppState>,
    caller: Caller,
    PathId(id): PathId<BatchId>,
    RawQuery(raw): RawQuery,
) -> Result<Response, ApiError> {
    caller.needs(Scope::MessagesRead)?;
    let mut query = Query::new(raw.as_deref());
    let format = match query.one_of("format", "unknown_format", &["csv", "ndjson"]) {
        Some("ndjson") => Format::Lines,
        Some(_) | None => Format::Csv,
    };
    let status = query.one_of("status", "unknown_status", Status::ALL);
    query.finish()?;
    let (asked, tenant) = (id.clone(), caller.tenant.clone());
    app.store
        .read(move |tx| visible(tx, &caller, &asked))
        .await?
        .ok_or_else(ApiError::not_found)?;
    let (kind, ending) = match format {
        Format::Csv => ("text/csv; charset=utf-8", "csv"),
        Format::Lines => ("application/x-ndjson", "ndjson"),
    };
    let name = format!("attachment; filename=\"{id}.{ending}\"");
    let name = HeaderValue::from_str(&name)
        .map_err(|error| ApiError::new(Code::Internal).caused_by(error))?;
    let body = Body::from_stream(try_unfold(Some(0), move |after| {
        let (app, tenant, id) = (AppState::clone(&app), tenant.clone(), id.clone());
        async move {
            let Some(after) = after else { return Ok::<_, std::io::Error>(None) };
            let rows = page(&app, tenant, id, after).await?;
            let next = rows.last().map(|row| row.number);
            let rows: Vec<BatchRecipient> =
                rows.into_iter().filter(|row| status.is_none() || row.status == status).collect();
            let bytes = written(format, after == 0, &rows)?;
            Ok(Some((bytes, next)))
        }
    }));
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        (header::CONTENT_DISPOSITION, name),
    ];
    Ok((headers, body).into_response())
}

async fn page(
    app: &AppState,
    tenant: TenantId,
    id: BatchId,
    after: u64,
) -> Result<Vec<BatchRecipient>, std::io::Error> {
    let read = app.store.read(move |tx| batches::recipients(tx, &tenant, &id, after, PAGE_ROWS));
    read.await.map_err(|error| {
        // The answer has begun; that it is cut off is all that can still be said.
        tracing::warn!(error = %error, "an export was cut off");
        std::io::Error::other(error)
    })
}

fn written(format: Format, first: bool, rows: &[BatchRecipient]) -> std::io::Result<Bytes> {
    let mut out = Vec::new();
    match format {
        Format::Lines => {
            for row in rows {
                serde_json::to_writer(&mut out, row)?;
                out.push(b'\n');
            }
        }
        Format::Csv => {
            let mut csv = csv::Writer::from_writer(&mut out);
            if first {
                csv.write_record(["number", "to", "message", "status", "reason", "updated_at"])?;
            }
            for row in rows {
                csv.write_record([
                    row.number.to_string(),
                    row.to.to_string(),
                    row.message.as_ref().map(ToString::to_string).unwrap_or_default(),
                    row.status.map(|status| status.to_string()).unwrap_or_default(),
                    row.reason.map(|reason| reason.to_string()).unwrap_or_default(),
                    row.updated_at.map(|at| at.to_string()).unwrap_or_default(),
                ])?;
            }
            csv.flush()?;
            drop(csv);
        }
    }
    Ok(Bytes::from(out))
}
