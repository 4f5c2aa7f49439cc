//! Who must not be written to: for a tenant, and, by the operator's word, for everybody.

use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use protocol::api::{
    CreateOptOuts, CreatedOptOuts, FieldError, LiftOptOut, OptOut, OptOutEvent, Page, Problem,
};
use protocol::{EventId, MessageId, Recipient, TenantId, UnixMs};
use serde_json::Value;

use super::fields::Fields;
use super::pages::{Query, page, window};
use super::{JsonBody, PathId, json};
use crate::auth::{Caller, Scope};
use crate::clock;
use crate::error::ApiError;
use crate::facts;
use crate::idempotency::{self, Post, Reply};
use crate::server::AppState;
use crate::store::inbound::{acquainted, block_waiting, nobody, tell_opt_out};
use crate::store::opt_outs::{self, Method, Steps, Turned, Wish};
use crate::store::{StoreError, Tx, admin};

/// Recipients of one request.
const RECIPIENTS_MAX: usize = 1_000;
/// Longest word on where something is known from, in characters.
const SOURCE_CHARS_MAX: usize = 200;
/// Longest text that was consented to, in characters.
const CONSENT_CHARS_MAX: usize = 2_000;

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
    list_of(&app, (caller.tenant, caller.test), raw.as_deref()).await
}

/// List a tenant's opt-outs, by recipient
#[utoipa::path(get, path = "/v1/admin/tenants/{id}/opt_outs", tag = "operator", security(("admin_token" = [])),
    params(
        ("id" = String, Path, description = "The tenant's id, or `everybody`."),
        ("limit" = Option<u32>, Query, description = "Rows, 1 to 100; 50 when left out."),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before.")),
    responses(
        (status = 200, description = "A page.", body = Page<OptOut>),
        (status = 401, description = "Not the operator's token.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such tenant.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn list_as_operator(
    State(app): State<AppState>,
    PathId(whose): PathId<Whose>,
    RawQuery(raw): RawQuery,
) -> Result<Response, ApiError> {
    let tenant = whose.tenant(&app).await?;
    list_of(&app, (tenant, false), raw.as_deref()).await
}

async fn list_of(
    app: &AppState,
    (tenant, test): (TenantId, bool),
    raw: Option<&str>,
) -> Result<Response, ApiError> {
    let asked = window(raw)?;
    let (after, limit) = (asked.after_id::<Recipient>()?, asked.limit);
    let rows = app
        .store
        .read(move |tx| opt_outs::list(tx, (&tenant, test), after.as_deref().unwrap_or(""), limit))
        .await?;
    Ok(json(StatusCode::OK, &page(rows, limit, |row| row.recipient.to_string())))
}

/// Whose opt-outs the operator means.
#[derive(Debug, Clone)]
pub(super) enum Whose {
    Tenant(TenantId),
    /// Nobody may write to these recipients.
    Everybody,
}

impl std::str::FromStr for Whose {
    type Err = <TenantId as std::str::FromStr>::Err;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "everybody" { Ok(Self::Everybody) } else { text.parse().map(Self::Tenant) }
    }
}

impl Whose {
    async fn tenant(self, app: &AppState) -> Result<TenantId, ApiError> {
        match self {
            Self::Everybody => Ok(nobody()),
            Self::Tenant(tenant) => {
                let asked = tenant.clone();
                let known = app.store.read(move |tx| admin::tenant_exists(tx, &asked)).await?;
                if known { Ok(tenant) } else { Err(ApiError::not_found()) }
            }
        }
    }
}

/// Opt recipients out
///
/// By their word on another way (a call, a mail, a letter), or from a list that was kept elsewhere. What waits to go to
/// them is blocked in the same step. A test key sees and changes the sandbox's opt-outs alone.
#[utoipa::path(post, path = "/v1/opt_outs", tag = "opt-outs", request_body = CreateOptOuts,
    security(("api_key" = [])),
    responses(
        (status = 200, description = "They are opted out.", body = CreatedOptOuts),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "The key may not change opt-outs.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Fields are wrong; nothing was done.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn create(
    State(app): State<AppState>,
    caller: Caller,
    headers: HeaderMap,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    caller.needs(Scope::OptOutsWrite)?;
    let post = Post::new(caller.idempotency_scope(), "POST /v1/opt_outs", &headers, &body)?;
    add(&app, (caller.tenant, caller.test), Method::Api, post, body).await
}

/// Opt recipients out of a tenant's messages, or of everybody's
#[utoipa::path(post, path = "/v1/admin/tenants/{id}/opt_outs", tag = "operator", request_body = CreateOptOuts,
    security(("admin_token" = [])),
    params(("id" = String, Path, description = "The tenant's id, or `everybody`.")),
    responses(
        (status = 200, description = "They are opted out.", body = CreatedOptOuts),
        (status = 401, description = "Not the operator's token.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such tenant.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Fields are wrong; nothing was done.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn create_as_operator(
    State(app): State<AppState>,
    PathId(whose): PathId<Whose>,
    headers: HeaderMap,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let tenant = whose.tenant(&app).await?;
    let route = format!("POST /v1/admin/tenants/{tenant}/opt_outs");
    let post = Post::new("operator".to_owned(), route, &headers, &body)?;
    add(&app, (tenant, false), Method::Operator, post, body).await
}

/// Who is to be opted out, and where that is known from.
struct New {
    recipients: Vec<Recipient>,
    source: Option<String>,
}

async fn add(
    app: &AppState,
    (tenant, test): (TenantId, bool),
    method: Method,
    post: Post,
    body: Value,
) -> Result<Response, ApiError> {
    let now = app.clock.now();
    let recalled = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let asked_back = std::sync::Arc::clone(&recalled);
    let response = idempotency::post(app, post, checked(body), move |tx, new: New| {
        let mut done = CreatedOptOuts { added: 0, already: 0, stopped: 0 };
        for recipient in &new.recipients {
            let about = ((&tenant, test), recipient);
            let Some((waiting, with_phones)) =
                opt_out(tx, about, method, new.source.as_deref(), now)?
            else {
                done.already += 1;
                continue;
            };
            done.added += 1;
            done.stopped += waiting;
            asked_back
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .extend(with_phones);
        }
        Reply::new(StatusCode::OK, &done)
    })
    .await?;
    let recalled =
        std::mem::take(&mut *recalled.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    // It is written down that they are wanted back; dispatch asks again for as long as a phone has not answered.
    for message in &recalled {
        crate::dispatch::recall(app, message).await;
    }
    app.bells.webhooks.notify_one();
    Ok(response)
}

/// Opts one recipient out; how many messages that stops and which of them a phone has. `None` when they were out already.
fn opt_out(
    tx: &mut Tx<'_>,
    (who, recipient): opt_outs::About<'_>,
    method: Method,
    source: Option<&str>,
    now: UnixMs,
) -> Result<Option<(u32, Vec<MessageId>)>, StoreError> {
    let wish = Wish {
        action: "opted_out",
        method,
        message: None,
        text: None,
        evidence: source.map(|source| serde_json::json!({ "source": source })),
        rules: facts::versions().0,
        at: now,
        late: false,
    };
    let event = EventId::new(now.0, clock::random());
    if opt_outs::turn(tx, (who, recipient), &wish, &event)? == Turned::Nothing {
        return Ok(None);
    }
    if *who.0 == nobody() {
        return block_for_all(tx, recipient, now).map(Some);
    }
    let (waiting, with_phones) = block_waiting(tx, who, recipient, now)?;
    tell_opt_out(tx, who, "contact.opted_out", recipient, now)?;
    Ok(Some((waiting, with_phones)))
}

/// Stops what is on its way to a recipient whom nobody may write to: that of the tenants that have written to them, or know
/// them by another number or address. Of all others the rule is asked when a message is due.
fn block_for_all(
    tx: &mut Tx<'_>,
    recipient: &Recipient,
    now: UnixMs,
) -> Result<(u32, Vec<MessageId>), StoreError> {
    let (mut waiting, mut with_phones) = (0_u32, Vec::new());
    for tenant in acquainted(tx, recipient)? {
        for test in [false, true] {
            let (stopped, mut asked_back) = block_waiting(tx, (&tenant, test), recipient, now)?;
            waiting = waiting.saturating_add(stopped);
            with_phones.append(&mut asked_back);
        }
    }
    Ok((waiting, with_phones))
}

fn checked(body: Value) -> Result<New, ApiError> {
    let mut fields = Fields::new(body)?;
    fields.require("recipients");
    let recipients = fields.list("recipients", RECIPIENTS_MAX, |fields, index, value| {
        let parsed = value.as_str().and_then(|text| text.parse::<Recipient>().ok());
        if parsed.is_none() {
            fields.wrong(
                index,
                "invalid_recipient",
                "It must be a number in E.164 form or an e-mail address.",
            );
        }
        parsed
    });
    let source = fields.line("source", 1..=SOURCE_CHARS_MAX);
    let Some(recipients) = recipients else { return Err(fields.refuse()) };
    fields.finish()?;
    Ok(New { recipients, source })
}

/// Lift an opt-out
///
/// Only with the evidence of a consent that is newer than the opt-out, which is kept for ever.
#[utoipa::path(post, path = "/v1/opt_outs/{recipient}/lift", tag = "opt-outs", request_body = LiftOptOut,
    security(("api_key" = [])),
    params(("recipient" = String, Path, description = "The number or address.")),
    responses(
        (status = 204, description = "It is lifted."),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "The key may not change opt-outs.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "They have not opted out.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "The evidence is not complete, or the consent is older than the opt-out (`consent_is_older`).", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn lift(
    State(app): State<AppState>,
    caller: Caller,
    headers: HeaderMap,
    PathId(recipient): PathId<Recipient>,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    caller.needs(Scope::OptOutsWrite)?;
    let route = format!("POST /v1/opt_outs/{recipient}/lift");
    let post = Post::new(caller.idempotency_scope(), route, &headers, &body)?;
    lifted(&app, (caller.tenant, caller.test), Method::Api, recipient, (post, body)).await
}

/// Lift an opt-out of a tenant's messages, or of everybody's
#[utoipa::path(post, path = "/v1/admin/tenants/{id}/opt_outs/{recipient}/lift", tag = "operator",
    request_body = LiftOptOut, security(("admin_token" = [])),
    params(
        ("id" = String, Path, description = "The tenant's id, or `everybody`."),
        ("recipient" = String, Path, description = "The number or address.")),
    responses(
        (status = 204, description = "It is lifted."),
        (status = 401, description = "Not the operator's token.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such tenant, or they have not opted out.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "The evidence is not complete, or the consent is older than the opt-out (`consent_is_older`).", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn lift_as_operator(
    State(app): State<AppState>,
    axum::extract::Path((whose, recipient)): axum::extract::Path<(String, String)>,
    headers: HeaderMap,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let whose: Whose = whose.parse().map_err(|_no_id| ApiError::not_found())?;
    let recipient: Recipient = recipient.parse().map_err(|_nobody| ApiError::not_found())?;
    let tenant = whose.tenant(&app).await?;
    let route = format!("POST /v1/admin/tenants/{tenant}/opt_outs/{recipient}/lift");
    let post = Post::new("operator".to_owned(), route, &headers, &body)?;
    lifted(&app, (tenant, false), Method::Operator, recipient, (post, body)).await
}

async fn lifted(
    app: &AppState,
    (tenant, test): (TenantId, bool),
    method: Method,
    recipient: Recipient,
    (post, body): (Post, Value),
) -> Result<Response, ApiError> {
    let now = app.clock.now();
    let response = idempotency::post(app, post, consent(body, now), move |tx, consent| {
        let about = ((&tenant, test), &recipient);
        let since = opt_outs::out_since(tx, about)?
            .ok_or_else(|| ApiError::not_found().detail("They have not opted out."))?;
        // What they have said since is newer than what they agreed to before.
        if consent.at < since {
            return Err(ApiError::invalid(vec![FieldError {
                pointer: "/at".to_owned(),
                code: "consent_is_older".to_owned(),
                detail: format!("They have opted out at {since}, after this consent."),
            }]));
        }
        let Consent { source, text, at } = consent;
        let wish = Wish {
            action: "opted_in",
            method,
            message: None,
            text: None,
            evidence: Some(serde_json::json!({ "source": source, "at": at, "text": text })),
            rules: facts::versions().0,
            at: now,
            late: false,
        };
        let event = EventId::new(now.0, clock::random());
        opt_outs::turn(tx, about, &wish, &event)?;
        if tenant != nobody() {
            tell_opt_out(tx, (&tenant, test), "contact.opted_in", &recipient, now)?;
        }
        Ok(Reply::done())
    })
    .await?;
    app.bells.webhooks.notify_one();
    Ok(response)
}

/// The evidence of a consent.
struct Consent {
    source: String,
    text: String,
    at: UnixMs,
}

fn consent(body: Value, now: UnixMs) -> Result<Consent, ApiError> {
    let mut fields = Fields::new(body)?;
    let source = fields.required_line("source", 1..=SOURCE_CHARS_MAX);
    let text = fields.required_text("text", 1..=CONSENT_CHARS_MAX);
    fields.require("at");
    let at = fields.time("at");
    if at.is_some_and(|at| at > now) {
        fields.wrong("at", "in_the_future", "A consent cannot be given in the future.");
    }
    let (Some(source), Some(text), Some(at)) = (source, text, at) else {
        return Err(fields.refuse());
    };
    fields.finish()?;
    Ok(Consent { source, text, at })
}

/// The history of opt-outs, newest first
///
/// Every change with its evidence, and every message that may have meant one.
#[utoipa::path(get, path = "/v1/opt_outs/history", tag = "opt-outs", security(("api_key" = [])),
    params(
        ("limit" = Option<u32>, Query, description = "Rows, 1 to 100; 50 when left out."),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before."),
        ("recipient" = Option<String>, Query, description = "Only this recipient's."),
        ("review" = Option<String>, Query, description = "`open`: only what a person has still to look at.")),
    responses(
        (status = 200, description = "A page.", body = Page<OptOutEvent>),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Parameters are wrong.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn history(
    State(app): State<AppState>,
    caller: Caller,
    RawQuery(raw): RawQuery,
) -> Result<Response, ApiError> {
    caller.needs(Scope::OptOutsRead)?;
    let mut query = Query::new(raw.as_deref());
    let steps = Steps {
        recipient: query.parsed("recipient", "invalid_recipient"),
        to_review: query.one_of("review", "unknown_word", &["open"]).is_some(),
    };
    let asked = query.finish()?;
    let (before, limit) = (asked.after_id::<EventId>()?, asked.limit);
    let rows = app
        .store
        .read(move |tx| {
            let who = (&caller.tenant, caller.test);
            opt_outs::history(tx, who, &steps, before.as_deref(), limit)
        })
        .await?;
    Ok(json(StatusCode::OK, &page(rows, limit, |row| row.id.to_string())))
}

/// Note that a person has looked at it
#[utoipa::path(post, path = "/v1/opt_outs/history/{id}/review", tag = "opt-outs", security(("api_key" = [])),
    params(("id" = String, Path, description = "The step's id.")),
    responses(
        (status = 204, description = "Noted."),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such step.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn review(
    State(app): State<AppState>,
    caller: Caller,
    headers: HeaderMap,
    PathId(id): PathId<EventId>,
) -> Result<Response, ApiError> {
    caller.needs(Scope::OptOutsWrite)?;
    let route = format!("POST /v1/opt_outs/history/{id}/review");
    let post = Post::new(caller.idempotency_scope(), route, &headers, &Value::Null)?;
    let now = app.clock.now();
    idempotency::post(&app, post, Ok(id), move |tx, id| {
        if opt_outs::review(tx, (&caller.tenant, caller.test), &id, now)? {
            Ok(Reply::done())
        } else {
            Err(ApiError::not_found())
        }
    })
    .await
}
