//! What a tenant knows of the people it writes to.

use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use protocol::api::{Contact, FieldError, Page, Problem, PutContact};
use protocol::{MessageId, Recipient, TenantId, UnixMs};
use serde_json::Value;

use super::fields::Fields;
use super::pages::{page, window};
use super::{JsonBody, PathId, json};
use crate::auth::{Caller, Scope};
use crate::compliance::{OptOut, place};
use crate::error::ApiError;
use crate::server::AppState;
use crate::store::contacts::{self, OTHERS_MAX, Said};
use crate::store::{StoreError, Tx, inbound, rules};

/// Longest word for a person, in characters.
const PERSON_CHARS_MAX: usize = 100;

/// List contacts, by recipient
#[utoipa::path(get, path = "/v1/contacts", tag = "contacts", security(("api_key" = [])),
    params(
        ("limit" = Option<u32>, Query, description = "Rows, 1 to 100; 50 when left out."),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before.")),
    responses(
        (status = 200, description = "A page.", body = Page<Contact>),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn list(
    State(app): State<AppState>,
    caller: Caller,
    RawQuery(raw): RawQuery,
) -> Result<Response, ApiError> {
    caller.needs(Scope::Contacts)?;
    let asked = window(raw.as_deref())?;
    let (after, limit) = (asked.after_id::<Recipient>()?, asked.limit);
    let rows = app
        .store
        .read(move |tx| {
            contacts::list(tx, (&caller.tenant, caller.test), after.as_deref().unwrap_or(""), limit)
        })
        .await?;
    Ok(json(StatusCode::OK, &page(rows, limit, |row| row.recipient.to_string())))
}

/// One contact
#[utoipa::path(get, path = "/v1/contacts/{recipient}", tag = "contacts", security(("api_key" = [])),
    params(("recipient" = String, Path, description = "The number or address.")),
    responses(
        (status = 200, description = "The contact.", body = Contact),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "Nothing is known of it.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn get(
    State(app): State<AppState>,
    caller: Caller,
    PathId(recipient): PathId<Recipient>,
) -> Result<Response, ApiError> {
    caller.needs(Scope::Contacts)?;
    let found = app
        .store
        .read(move |tx| contacts::get(tx, (&caller.tenant, caller.test), &recipient))
        .await?;
    Ok(json(StatusCode::OK, &found.ok_or_else(ApiError::not_found)?))
}

/// Say what you know of somebody
///
/// A time zone here counts before the one that the number suggests. It replaces what was said before. Numbers and addresses
/// with the same `person` are one person's: who opts out, or has opted out, on one of them is not written to on any. What a
/// test key says holds for the sandbox alone.
#[utoipa::path(put, path = "/v1/contacts/{recipient}", tag = "contacts", request_body = PutContact,
    security(("api_key" = [])),
    params(("recipient" = String, Path, description = "The number or address.")),
    responses(
        (status = 200, description = "The contact.", body = Contact),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Fields are wrong.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn put(
    State(app): State<AppState>,
    caller: Caller,
    PathId(recipient): PathId<Recipient>,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    caller.needs(Scope::Contacts)?;
    let said = checked(body)?;
    let now = app.clock.now();
    let (written, recalled) = app
        .store
        .transact(move |tx| {
            let who = (&caller.tenant, caller.test);
            if let Some(person) = &said.person
                && contacts::besides(tx, who, (&recipient, person))? > OTHERS_MAX
            {
                return Err(ApiError::invalid(vec![FieldError {
                    pointer: "/person".to_owned(),
                    code: "too_many".to_owned(),
                    detail: format!(
                        "A number or address has at most {OTHERS_MAX} others of the same person."
                    ),
                }]));
            }
            contacts::put(tx, who, &recipient, &said, now)?;
            let with_phones = match said.person {
                Some(_) => stop_where_opted_out(tx, who, &recipient, now)?,
                None => Vec::new(),
            };
            let written = contacts::get(tx, who, &recipient)?.ok_or_else(ApiError::not_found)?;
            Ok::<_, ApiError>((written, with_phones))
        })
        .await?;
    // It is written down that they are wanted back; dispatch asks again for as long as a phone has not answered.
    for message in &recalled {
        crate::dispatch::recall(&app, message).await;
    }
    app.bells.dispatch.notify_one();
    app.bells.webhooks.notify_one();
    Ok(json(StatusCode::OK, &written))
}

/// Whoever turns out to be a person who has opted out is sent nothing of what is on its way to any number or address of
/// theirs; answers what of it phones have.
fn stop_where_opted_out(
    tx: &mut Tx<'_>,
    who: (&TenantId, bool),
    recipient: &Recipient,
    now: UnixMs,
) -> Result<Vec<MessageId>, StoreError> {
    match rules::known(tx, who, recipient)?.opt_out {
        OptOut::OptedOut | OptOut::OptedOutElsewhere => {
            inbound::block_waiting(tx, who, recipient, now)
                .map(|(_stopped, with_phones)| with_phones)
        }
        // What cannot be read is decided when a message is due.
        OptOut::Clear | OptOut::Unreadable => Ok(Vec::new()),
    }
}

fn checked(body: Value) -> Result<Said, ApiError> {
    let mut fields = Fields::new(body)?;
    let time_zone = fields.time_zone("time_zone");
    let state = fields.line("state", 2..=2);
    if state.as_deref().is_some_and(|state| !place::is_state(state)) {
        fields.wrong("state", "unknown_state", "No state of the United States has these letters.");
    }
    let person = fields.line("person", 1..=PERSON_CHARS_MAX);
    fields.finish()?;
    Ok(Said { time_zone, state, person })
}

/// Forget what you know of somebody
///
/// An opt-out is not forgotten with it.
#[utoipa::path(delete, path = "/v1/contacts/{recipient}", tag = "contacts", security(("api_key" = [])),
    params(("recipient" = String, Path, description = "The number or address.")),
    responses(
        (status = 204, description = "Forgotten."),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "Nothing is known of it.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn delete(
    State(app): State<AppState>,
    caller: Caller,
    PathId(recipient): PathId<Recipient>,
) -> Result<Response, ApiError> {
    caller.needs(Scope::Contacts)?;
    if app
        .store
        .write(move |tx| contacts::delete(tx, (&caller.tenant, caller.test), &recipient))
        .await?
    {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    Err(ApiError::not_found())
}
