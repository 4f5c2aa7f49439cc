//! Batches: one text to many recipients. What comes in as recipients is [`super::recipients`].

use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use protocol::api::{Batch, BatchRecipient, BatchState, CreateBatch, FieldError, Page, Problem};
use protocol::{BatchId, ChannelChoice, Class, E164, Status, UnixMs, limits};
use serde_json::Value;

use super::fields::Fields;
use super::messages::text;
use super::pages::{Query, cursor, page, window};
use super::templates::{self, Asked};
use super::{JsonBody, PathId, json};
use crate::auth::{Caller, Scope};
use crate::clock;
use crate::compliance::class::fits_batch;
use crate::config;
use crate::error::{ApiError, Code};
use crate::idempotency::{self, Post, Reply};
use crate::server::AppState;
use crate::store::batches::{self, Turned, Wish};
use crate::store::{Tx, messages};

/// Longest name, in characters.
const NAME_CHARS_MAX: usize = 100;
/// Batches of one tenant that have not ended: each is looked at again and again.
const OPEN_MAX: u32 = 100;

/// Make a batch
///
/// A draft: add recipients, then start it. Rules apply to each of its messages when it is due, as to any other.
#[utoipa::path(post, path = "/v1/batches", tag = "batches", request_body = CreateBatch, security(("api_key" = [])),
    responses(
        (status = 201, description = "Made, as a draft.", body = Batch),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "The key may not send.", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "There are too many that have not ended.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Fields are wrong.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn create(
    State(app): State<AppState>,
    caller: Caller,
    headers: HeaderMap,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    caller.needs(Scope::MessagesWrite)?;
    let now = app.clock.now();
    let post = Post::new(caller.idempotency_scope(), "POST /v1/batches", &headers, &body)?;
    let (tenant, test) = (caller.tenant, caller.test);
    let checked = checked(body, &app.config.messages, now);
    idempotency::post(&app, post, checked, move |tx, (mut batch, asked): (Batch, Option<Asked>)| {
        if batches::open(tx, &tenant)? >= OPEN_MAX {
            let detail = format!(
                "A tenant has at most {OPEN_MAX} batches that have not ended; cancel some."
            );
            return Err(ApiError::new(Code::LimitReached).detail(detail));
        }
        if let Some(from) = &batch.from
            && messages::may_send_from(tx, &tenant, (from, test))?.is_none()
            && (!test || messages::has_sandbox(tx, &tenant)?)
        {
            return Err(ApiError::invalid(vec![FieldError {
                pointer: "/from".to_owned(),
                code: "phone_not_allowed".to_owned(),
                detail: "It is not a number that you can send from.".to_owned(),
            }]));
        }
        if let Some(asked) = asked {
            pin(tx, &tenant, &mut batch, asked)?;
        }
        batches::insert(tx, &tenant, &batch, test)?;
        Reply::new(StatusCode::CREATED, &batch)
    })
    .await
}

/// Pins the version of the template, and looks whether it has the variables that are given for everybody.
fn pin(
    tx: &mut Tx<'_>,
    tenant: &protocol::TenantId,
    batch: &mut Batch,
    asked: Asked,
) -> Result<(), ApiError> {
    let pinned = templates::pinned(tx, tenant, (&asked.id, asked.version), "/template")?;
    let version = pinned.map_err(|wrong| ApiError::invalid(vec![wrong]))?;
    let unknown = asked.variables.keys().filter(|name| !version.variables.contains(*name));
    let wrong: Vec<FieldError> = unknown
        .map(|name| {
            let lack = crate::template::Lack::Unknown(name.clone());
            templates::told(&lack, &version.variables, "/template")
        })
        .collect();
    if !wrong.is_empty() {
        return Err(ApiError::invalid(wrong));
    }
    batch.template = Some(protocol::api::UsedTemplate { id: asked.id, version: version.version });
    batch.variables = asked.variables;
    Ok(())
}

fn checked(
    body: Value,
    lives: &config::Messages,
    now: UnixMs,
) -> Result<(Batch, Option<Asked>), ApiError> {
    let mut fields = Fields::new(body)?;
    let name = fields.required_line("name", 1..=NAME_CHARS_MAX);
    let (text, template) = text(&mut fields);
    let channel = fields.one_of("channel", "unknown_channel", ChannelChoice::ALL);
    let class = fields.one_of("class", "unknown_class", Class::ALL);
    if class.is_some_and(|class| !fits_batch(class)) {
        let detail = "A one-time code is one person's: send it as a message of its own.";
        fields.wrong("class", "not_for_batches", detail);
    }
    let from: Option<E164> = fields.parsed("from", "invalid_number");
    let metadata = fields.text_map("metadata", limits::METADATA_BYTES_MAX);
    let send_at = fields.time("send_at");
    let latest = now.plus_ms(i64::from(lives.ahead_s_max) * 1_000);
    if let Some(at) = send_at {
        if at <= now {
            fields.wrong("send_at", "in_the_past", "It is not in the future.");
        } else if at > latest {
            let detail = format!("It is later than {latest}, the latest allowed.");
            fields.wrong("send_at", "too_far", detail);
        }
    }
    let ttl_seconds = fields.number("ttl_seconds", 1..=lives.ahead_s_max);
    let Some(name) = name else { return Err(fields.refuse()) };
    fields.finish()?;
    let batch = Batch {
        id: BatchId::new(now.0, clock::random()),
        name,
        state: BatchState::Draft,
        reason: None,
        text,
        template: None,
        variables: std::collections::BTreeMap::new(),
        channel: channel.unwrap_or(ChannelChoice::Auto),
        class: class.unwrap_or(Class::Marketing),
        from,
        send_at,
        ttl_seconds,
        metadata,
        recipients: 0,
        duplicates: 0,
        invalid: 0,
        expanded: 0,
        outcomes: None,
        created_at: now,
        updated_at: now,
        started_at: None,
        ended_at: None,
        forgotten_at: None,
    };
    Ok((batch, template))
}

/// List batches, newest first
#[utoipa::path(get, path = "/v1/batches", tag = "batches", security(("api_key" = [])),
    params(
        ("limit" = Option<u32>, Query, description = "Rows, 1 to 100; 50 when left out."),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before.")),
    responses(
        (status = 200, description = "A page.", body = Page<Batch>),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn list(
    State(app): State<AppState>,
    caller: Caller,
    RawQuery(raw): RawQuery,
) -> Result<Response, ApiError> {
    caller.needs(Scope::MessagesRead)?;
    let asked = window(raw.as_deref())?;
    let (before, limit) = (asked.after_id::<BatchId>()?, asked.limit);
    let rows = app
        .store
        .read(move |tx| batches::list(tx, &caller.tenant, caller.test, before.as_deref(), limit))
        .await?;
    Ok(json(StatusCode::OK, &page(rows, limit, |batch| batch.id.to_string())))
}

/// A batch that the caller may see.
pub(super) fn visible(
    tx: &mut Tx<'_>,
    caller: &Caller,
    id: &BatchId,
) -> Result<Option<Batch>, crate::store::StoreError> {
    let found = batches::get(tx, &caller.tenant, id)?;
    // A test key sees what test keys have made.
    Ok(found.filter(|(_, test)| *test || !caller.test).map(|(batch, _test)| batch))
}

/// One batch, with how many of its messages stand where
///
/// Those of more than ten thousand are counted once in a while: of a million every ten seconds.
#[utoipa::path(get, path = "/v1/batches/{id}", tag = "batches", security(("api_key" = [])),
    params(("id" = String, Path, description = "The batch's id.")),
    responses(
        (status = 200, description = "The batch.", body = Batch),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such batch.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn get(
    State(app): State<AppState>,
    caller: Caller,
    PathId(id): PathId<BatchId>,
) -> Result<Response, ApiError> {
    caller.needs(Scope::MessagesRead)?;
    let (tenant, now) = (caller.tenant.clone(), app.clock.now());
    let found = app.store.read(move |tx| visible(tx, &caller, &id)).await?;
    let mut batch = found.ok_or_else(ApiError::not_found)?;
    let (which, stands) = ((&tenant, &batch.id), (batch.state, batch.expanded));
    batch.outcomes = Some(app.outcomes.of(&app.store, which, stands, now).await?);
    Ok(json(StatusCode::OK, &batch))
}

/// Start a batch
///
/// Its recipients become messages from now on, or from its `send_at` on. Nobody can be added any more.
#[utoipa::path(post, path = "/v1/batches/{id}/start", tag = "batches", security(("api_key" = [])),
    params(("id" = String, Path, description = "The batch's id.")),
    responses(
        (status = 200, description = "As it is now.", body = Batch),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "The key may not send.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such batch.", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "It has no recipients, or stands where it cannot be started.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn start(
    State(app): State<AppState>,
    caller: Caller,
    headers: HeaderMap,
    PathId(id): PathId<BatchId>,
) -> Result<Response, ApiError> {
    turn(&app, caller, &headers, id, Wish::Start).await
}

/// Pause a batch
///
/// No more of its recipients become messages. Those that are messages already go on.
#[utoipa::path(post, path = "/v1/batches/{id}/pause", tag = "batches", security(("api_key" = [])),
    params(("id" = String, Path, description = "The batch's id.")),
    responses(
        (status = 200, description = "As it is now.", body = Batch),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "The key may not send.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such batch.", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "It is not under way.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn pause(
    State(app): State<AppState>,
    caller: Caller,
    headers: HeaderMap,
    PathId(id): PathId<BatchId>,
) -> Result<Response, ApiError> {
    turn(&app, caller, &headers, id, Wish::Pause).await
}

/// Go on with a batch that is paused
#[utoipa::path(post, path = "/v1/batches/{id}/resume", tag = "batches", security(("api_key" = [])),
    params(("id" = String, Path, description = "The batch's id.")),
    responses(
        (status = 200, description = "As it is now.", body = Batch),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "The key may not send.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such batch.", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "It is not paused.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn resume(
    State(app): State<AppState>,
    caller: Caller,
    headers: HeaderMap,
    PathId(id): PathId<BatchId>,
) -> Result<Response, ApiError> {
    turn(&app, caller, &headers, id, Wish::Resume).await
}

/// Withdraw a batch
///
/// No more of its recipients become messages, and those that wait are canceled; phones that have one are asked. What was
/// sent was sent.
#[utoipa::path(post, path = "/v1/batches/{id}/cancel", tag = "batches", security(("api_key" = [])),
    params(("id" = String, Path, description = "The batch's id.")),
    responses(
        (status = 200, description = "As it is now; `canceled` once nothing of it waits any more.", body = Batch),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "The key may not send.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such batch.", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "It is completed.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn cancel(
    State(app): State<AppState>,
    caller: Caller,
    headers: HeaderMap,
    PathId(id): PathId<BatchId>,
) -> Result<Response, ApiError> {
    turn(&app, caller, &headers, id, Wish::Cancel).await
}

async fn turn(
    app: &AppState,
    caller: Caller,
    headers: &HeaderMap,
    id: BatchId,
    wish: Wish,
) -> Result<Response, ApiError> {
    caller.needs(Scope::MessagesWrite)?;
    let word = match wish {
        Wish::Start => "start",
        Wish::Pause => "pause",
        Wish::Resume => "resume",
        Wish::Cancel => "cancel",
    };
    let route = format!("POST /v1/batches/{id}/{word}");
    let post = Post::new(caller.idempotency_scope(), route, headers, &Value::Null)?;
    let (now, tenant, batch) = (app.clock.now(), caller.tenant.clone(), id.clone());
    let response = idempotency::post(app, post, Ok(id), move |tx, id| {
        if visible(tx, &caller, &id)?.is_none() {
            return Err(ApiError::not_found());
        }
        match batches::turn(tx, &caller.tenant, &id, wish, now)? {
            None => Err(ApiError::not_found()),
            Some(Turned::Now(batch)) => Reply::new(StatusCode::OK, batch.as_ref()),
            Some(Turned::NotFrom(state)) => Err(ApiError::new(Code::BatchState)
                .detail(format!("Its state is {state}; `{word}` is not possible from there."))),
            Some(Turned::Empty) => Err(ApiError::new(Code::BatchState)
                .detail("It has no recipients: add some before it is started.")),
        }
    })
    .await?;
    if matches!(wish, Wish::Start | Wish::Cancel) {
        // It is no draft any more, so that no upload counts which is still under way.
        super::recipients::sweep(app, &tenant, &batch).await?;
    }
    app.bells.batches.notify_one();
    Ok(response)
}

/// The recipients of a batch and what has come of each, in their order
///
/// With `status` only those whose message stands there. A page looks at 5,000 recipients at most: it may have fewer rows than
/// asked for, or none, and `has_more` all the same.
#[utoipa::path(get, path = "/v1/batches/{id}/recipients", tag = "batches", security(("api_key" = [])),
    params(
        ("id" = String, Path, description = "The batch's id."),
        ("limit" = Option<u32>, Query, description = "Rows, 1 to 100; 50 when left out."),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before."),
        ("status" = Option<Status>, Query, description = "Only those whose message has this status.")),
    responses(
        (status = 200, description = "A page.", body = Page<BatchRecipient>),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such batch.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Parameters are wrong.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn recipients(
    State(app): State<AppState>,
    caller: Caller,
    PathId(id): PathId<BatchId>,
    RawQuery(raw): RawQuery,
) -> Result<Response, ApiError> {
    caller.needs(Scope::MessagesRead)?;
    let mut query = Query::new(raw.as_deref());
    let status = query.one_of("status", "unknown_status", Status::ALL);
    let asked = query.finish()?;
    let after = asked.after_parsed::<u64>()?.unwrap_or(0);
    let limit = asked.limit;
    let looked_at = status.map_or(limit.saturating_add(1), |_| batches::LOOKED_AT_ROWS);
    let rows = app
        .store
        .read(move |tx| {
            if visible(tx, &caller, &id)?.is_none() {
                return Ok(None);
            }
            batches::recipients(tx, &caller.tenant, &id, after, looked_at).map(Some)
        })
        .await?
        .ok_or_else(ApiError::not_found)?;
    let place = |row: &BatchRecipient| row.number.to_string();
    let page = match status {
        Some(status) => of_status(rows, status, (limit, looked_at)),
        None => page(rows, limit, place),
    };
    Ok(json(StatusCode::OK, &page))
}

/// Those of `rows` that stand there, up to `limit`; the next page begins behind what was looked at.
fn of_status(
    rows: Vec<BatchRecipient>,
    status: Status,
    (limit, looked_at): (u32, u32),
) -> Page<BatchRecipient> {
    let full = u32::try_from(rows.len()).unwrap_or(u32::MAX) >= looked_at;
    let last = rows.last().map(|row| row.number.to_string());
    let wanted = rows.into_iter().filter(|row| row.status == Some(status)).collect();
    let mut page = page(wanted, limit, |row: &BatchRecipient| row.number.to_string());
    if !page.has_more && full {
        page.next_cursor = last.map(|last| cursor(&last));
        page.has_more = true;
    }
    page
}
