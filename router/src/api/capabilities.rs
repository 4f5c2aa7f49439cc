//! Over which channels recipients can be reached.

use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use protocol::Recipient;
use protocol::api::{AskCapabilities, Capabilities, Page, Problem};

use super::fields::Fields;
use super::pages::{page, window};
use super::{JsonBody, PathId, json};
use crate::auth::{Caller, Scope};
use crate::dispatch;
use crate::error::ApiError;
use crate::idempotency::{self, Post, Reply};
use crate::server::AppState;
use crate::store::capabilities as store;

/// List what is known of recipients' channels
///
/// Learnt from what became of your messages, from what came in, and from the answers to your questions. Recipients in
/// order.
#[utoipa::path(get, path = "/v1/capabilities", tag = "capabilities", security(("api_key" = [])),
    params(
        ("limit" = Option<u32>, Query, description = "Rows, 1 to 100; 50 when left out."),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before.")),
    responses(
        (status = 200, description = "A page.", body = Page<Capabilities>),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn list(
    State(app): State<AppState>,
    caller: Caller,
    RawQuery(raw): RawQuery,
) -> Result<Response, ApiError> {
    caller.needs(Scope::MessagesRead)?;
    let asked = window(raw.as_deref())?;
    let (after, limit) = (asked.after_id::<Recipient>()?, asked.limit);
    let since = dispatch::fresh_since(&app);
    let rows = app
        .store
        .read(move |tx| {
            let place = (after.as_deref().unwrap_or(""), limit);
            store::list(tx, (&caller.tenant, caller.test), place, since)
        })
        .await?;
    Ok(json(StatusCode::OK, &page(rows, limit, |row| row.recipient.to_string())))
}

/// What is known of one recipient's channels
#[utoipa::path(get, path = "/v1/capabilities/{recipient}", tag = "capabilities", security(("api_key" = [])),
    params(("recipient" = String, Path, description = "The number or address.")),
    responses(
        (status = 200, description = "What is known.", body = Capabilities),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "Nothing is known of it, and nobody was asked.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn get(
    State(app): State<AppState>,
    caller: Caller,
    PathId(recipient): PathId<Recipient>,
) -> Result<Response, ApiError> {
    caller.needs(Scope::MessagesRead)?;
    let since = dispatch::fresh_since(&app);
    let known = app
        .store
        .read(move |tx| store::get(tx, (&caller.tenant, caller.test), &recipient, since))
        .await?;
    if known.channels.is_empty() && known.asked_at.is_none() {
        return Err(ApiError::not_found());
    }
    Ok(json(StatusCode::OK, &known))
}

/// Have a phone asked over which channels a recipient can be reached
///
/// The phone that would send to the recipient looks through its Messages history, sends nothing, and nobody notices.
/// What it knows is written down a moment later; ask for it with `GET`. The answer is what is known already.
/// `asked_at` is missing where no phone can be asked now.
#[utoipa::path(post, path = "/v1/capabilities", tag = "capabilities", request_body = AskCapabilities,
    security(("api_key" = [])),
    responses(
        (status = 202, description = "What is known so far.", body = Capabilities),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "The key may not send.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Fields are wrong.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn ask(
    State(app): State<AppState>,
    caller: Caller,
    headers: HeaderMap,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    caller.needs(Scope::MessagesWrite)?;
    let now = app.clock.now();
    let post = Post::new(caller.idempotency_scope(), "POST /v1/capabilities", &headers, &body)?;
    let mut fields = Fields::new(body)?;
    let to = super::messages::recipient(&mut fields);
    if let Some(Recipient::Group(_)) = &to {
        fields.wrong("to", "group_recipient", "A group has one service, which Messages knows.");
    }
    let Some(to) = to else { return Err(fields.refuse()) };
    fields.finish()?;
    let (shared, since) = (AppState::clone(&app), dispatch::fresh_since(&app));
    let work = move |tx: &mut crate::store::Tx<'_>, to: Recipient| {
        let who = (&caller.tenant, caller.test);
        if let Some(question) = dispatch::whom_to_ask(tx, &shared, who, &to, now)? {
            store::asked(tx, who, (&question.phone, &to), now)?;
            // Should the question get lost on its way, it can be asked again.
            dispatch::ask(&shared, question, to.clone());
        }
        Reply::new(StatusCode::ACCEPTED, &store::get(tx, who, &to, since)?)
    };
    idempotency::post(&app, post, Ok(to), work).await
}
