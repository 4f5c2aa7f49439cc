//! For machines that watch the router.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::json as answer;
use crate::error::{ApiError, Code};
use crate::params;
use crate::server::AppState;

/// The process runs
#[utoipa::path(get, path = "/healthz", tag = "health",
    responses((status = 200, description = "It runs.")))]
pub(super) async fn healthz() -> Response {
    answer(StatusCode::OK, &json!({"status": "ok"}))
}

/// It can take work: the store commits, and no shutdown has begun
#[utoipa::path(get, path = "/readyz", tag = "health", responses(
    (status = 200, description = "It can take work."),
    (status = 503, description = "It cannot.", body = protocol::api::Problem, content_type = "application/problem+json")))]
pub(super) async fn readyz(State(app): State<AppState>) -> Result<Response, ApiError> {
    if app.stop.is_cancelled() {
        return Err(ApiError::new(Code::Unavailable).detail("It is shutting down."));
    }
    // A commit, because a store that only reads accepts no messages.
    app.store.write(crate::store::admin::prove_writable).await?;
    app.store.read(|tx| tx.query_row("SELECT 1", params![], |row| row.int(0))).await?;
    Ok(answer(StatusCode::OK, &json!({"status": "ready"})))
}

/// Numbers in Prometheus' text format
#[utoipa::path(get, path = "/metrics", tag = "health",
    responses((status = 200, description = "The numbers.", content_type = "text/plain")))]
pub(super) async fn metrics(State(app): State<AppState>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], app.metrics.render()).into_response()
}
