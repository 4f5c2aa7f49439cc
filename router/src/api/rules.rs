//! The rules that a tenant's messages are held to: the operator sets them, the tenant reads them.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use protocol::TenantId;
use protocol::api::{HoursPreset, Problem, TenantRules, UnknownZone};
use serde_json::Value;

use super::fields::Fields;
use super::{JsonBody, PathId, json};
use crate::auth::{Caller, Scope};
use crate::compliance::hours;
use crate::error::ApiError;
use crate::server::AppState;
use crate::store::rules;

/// Words and phrases of one list.
const WORDS_MAX: usize = 500;
/// Longest word or phrase, in characters.
const WORD_CHARS_MAX: usize = 60;
/// Longest answer to HELP, in characters: with the brand and the way out it is still two SMS.
const HELP_CHARS_MAX: usize = 200;
/// Most segments that a limit can allow.
const SEGMENTS_MAX: u32 = 150;

/// The rules that hold for your messages
#[utoipa::path(get, path = "/v1/rules", tag = "rules", security(("api_key" = [])),
    responses(
        (status = 200, description = "The rules.", body = TenantRules),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn own(State(app): State<AppState>, caller: Caller) -> Result<Response, ApiError> {
    caller.needs(Scope::MessagesRead)?;
    show(&app, caller.tenant).await
}

/// A tenant's rules
#[utoipa::path(get, path = "/v1/admin/tenants/{id}/rules", tag = "operator", security(("admin_token" = [])),
    params(("id" = String, Path, description = "The tenant's id.")),
    responses(
        (status = 200, description = "The rules.", body = TenantRules),
        (status = 401, description = "Not the operator's token.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such tenant.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn get(
    State(app): State<AppState>,
    PathId(tenant): PathId<TenantId>,
) -> Result<Response, ApiError> {
    show(&app, tenant).await
}

async fn show(app: &AppState, tenant: TenantId) -> Result<Response, ApiError> {
    let found = app.store.read(move |tx| rules::of_tenant(tx, &tenant)).await?;
    Ok(json(StatusCode::OK, &found.ok_or_else(ApiError::not_found)?))
}

/// Replace a tenant's rules
///
/// What is left out goes back to its default. Messages that wait for their hour are looked at again at once.
#[utoipa::path(put, path = "/v1/admin/tenants/{id}/rules", tag = "operator", request_body = TenantRules,
    security(("admin_token" = [])),
    params(("id" = String, Path, description = "The tenant's id.")),
    responses(
        (status = 200, description = "The new rules.", body = TenantRules),
        (status = 401, description = "Not the operator's token.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such tenant.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Fields are wrong.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn put(
    State(app): State<AppState>,
    PathId(tenant): PathId<TenantId>,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let new = checked(body)?;
    let (whose, written) = (tenant.clone(), new.clone());
    if !app.store.write(move |tx| rules::set(tx, &whose, &written)).await? {
        return Err(ApiError::not_found());
    }
    crate::dispatch::rules_changed(&app, &tenant).await?;
    Ok(json(StatusCode::OK, &new))
}

fn checked(body: Value) -> Result<TenantRules, ApiError> {
    let defaults = TenantRules::default();
    let mut fields = Fields::new(body)?;
    let hours = fields.one_of("hours", "unknown_hours", HoursPreset::ALL);
    let hours_window = fields.line("hours_window", 11..=11);
    if hours_window.as_deref().is_some_and(|window| hours::Window::parse(window).is_none()) {
        fields.wrong(
            "hours_window",
            "invalid_window",
            "It must be two times of one day, such as 09:00-18:00.",
        );
    }
    let time_zone = fields.time_zone("time_zone");
    let unknown_zone = fields
        .one_of("unknown_zone", "unknown_word", UnknownZone::ALL)
        .unwrap_or(defaults.unknown_zone);
    if unknown_zone == UnknownZone::Tenant && time_zone.is_none() {
        fields.wrong("unknown_zone", "needs_time_zone", "`tenant` needs a time_zone.");
    }
    let rules = TenantRules {
        hours,
        hours_window,
        transactional_hours: fields
            .boolean("transactional_hours")
            .unwrap_or(defaults.transactional_hours),
        time_zone,
        unknown_zone,
        stop_words: words(&mut fields, "stop_words"),
        start_words: words(&mut fields, "start_words"),
        confirm_opt_out: fields.boolean("confirm_opt_out").unwrap_or(defaults.confirm_opt_out),
        help_text: fields.line("help_text", 1..=HELP_CHARS_MAX),
        blocked_words: words(&mut fields, "blocked_words"),
        first_message_links: fields
            .boolean("first_message_links")
            .unwrap_or(defaults.first_message_links),
        segments_max: fields.number("segments_max", 1..=SEGMENTS_MAX),
    };
    fields.finish()?;
    Ok(rules)
}

/// A list of words, each with something in it that can be matched.
fn words(fields: &mut Fields, name: &str) -> Vec<String> {
    let words = fields.list(name, WORDS_MAX, |fields, index, value| match value {
        Value::String(word)
            if word.contains(char::is_alphanumeric)
                && word.chars().count() <= WORD_CHARS_MAX
                && !word.contains(char::is_control) =>
        {
            Some(word)
        }
        Value::String(_)
        | Value::Null
        | Value::Bool(_)
        | Value::Number(_)
        | Value::Array(_)
        | Value::Object(_) => {
            fields.wrong(
                index,
                "invalid_word",
                format!("It must be a word or phrase of at most {WORD_CHARS_MAX} characters."),
            );
            None
        }
    });
    words.unwrap_or_default()
}
