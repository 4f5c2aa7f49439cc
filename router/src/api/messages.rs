//! Messages: send, list, follow, withdraw.

use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use protocol::api::{
    CreateMessage, CreateMessages, CreatedMessages, CreatedOne, Direction, Media, Message,
    MessageEvent, Page, Problem, RuleDecision,
};
use protocol::{
    Channel, ChannelChoice, Class, E164, MessageId, Recipient, Status, TenantId, UnixMs, limits,
};
use serde_json::Value;

use super::fields::{Fields, web_url};
use super::pages::{Query, page};
use super::templates::{self, Asked};
use super::{JsonBody, PathId, json};
use crate::auth::{Caller, Scope};
use crate::clock;
use crate::compliance::class::fits_batch;
use crate::config;
use crate::error::{ApiError, Code};
use crate::idempotency::{self, Post, Reply};
use crate::server::AppState;
use crate::store::messages::{self, Canceled, Filter, NewMessage, Window};
use crate::store::{StoreError, Tx};

/// Send a message
///
/// `202` is answered after the message is on disk. It is sent when its rules allow, by a phone that can.
#[utoipa::path(post, path = "/v1/messages", tag = "messages", request_body = CreateMessage,
    security(("api_key" = [])),
    responses(
        (status = 202, description = "Accepted.", body = Message),
        (status = 400, description = "Not JSON, or a bad idempotency key.", body = Problem, content_type = "application/problem+json"),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json"),
        (status = 402, description = "The credit does not pay for it.", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "The key may not send.", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "The same idempotency key is still running.", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The body is too long.", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "Not announced as JSON.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Fields are wrong, or the idempotency key was used for another body.", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "Too many requests, or the plan's messages are used up: `quota_exceeded`, with `resets_at`.", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Not now; nothing was done.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn create(
    State(app): State<AppState>,
    caller: Caller,
    headers: HeaderMap,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    caller.needs(Scope::MessagesWrite)?;
    let now = app.clock.now();
    let post = Post::new(caller.idempotency_scope(), "POST /v1/messages", &headers, &body)?;
    let new = checked(body, caller.test, &app.config.messages, now);
    let tenant = caller.tenant;
    let accept = move |tx: &mut Tx<'_>, draft: &Draft| {
        let message = if draft.template.is_none() {
            accept(tx, &tenant, &draft.new)?
        } else {
            let new = draft.clone().written(tx, &tenant)?;
            accept(tx, &tenant, &new)?
        };
        Reply::new(StatusCode::ACCEPTED, &message)
    };
    let response = idempotency::post_often(&app, post, new, accept).await?;
    if !idempotency::is_replay(&response) {
        metrics::counter!("switchboard_messages_accepted_total").increment(1);
        app.bells.dispatch.notify_one();
        app.bells.webhooks.notify_one();
    }
    Ok(response)
}

/// Messages of one request.
const MESSAGES_MAX: usize = 1_000;

/// Send several messages
///
/// Up to 1,000, in a body of up to 4 MiB. Each is accepted or refused by itself, as if it had come alone; all that are
/// accepted are on disk when this is answered.
#[utoipa::path(post, path = "/v1/messages/batch", tag = "messages", request_body = CreateMessages,
    security(("api_key" = [])),
    responses(
        (status = 200, description = "What has come of each, in their order.", body = CreatedMessages),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "The key may not send.", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The body is too long.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "There is no list of 1 to 1,000 messages; nothing was accepted.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn create_many(
    State(app): State<AppState>,
    caller: Caller,
    headers: HeaderMap,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    caller.needs(Scope::MessagesWrite)?;
    let now = app.clock.now();
    let post = Post::new(caller.idempotency_scope(), "POST /v1/messages/batch", &headers, &body)?;
    let drafts = each(body, caller.test, &app.config.messages, now);
    let tenant = caller.tenant;
    let response = idempotency::post(&app, post, drafts, move |tx, drafts| {
        let mut made = CreatedMessages { accepted: 0, refused: 0, results: Vec::new() };
        for (index, draft) in drafts.into_iter().enumerate() {
            let message = draft.and_then(|draft| {
                let new = draft.written(tx, &tenant)?;
                accept(tx, &tenant, &new)
            });
            made.results.push(match message {
                Ok(message) => {
                    made.accepted += 1;
                    let message = Some(Box::new(message));
                    let status = StatusCode::ACCEPTED.as_u16();
                    CreatedOne { status, message, code: None, errors: Vec::new() }
                }
                // Not about this one: none is accepted.
                Err(error) if error.code().parts().0.is_server_error() => return Err(error),
                Err(error) => {
                    made.refused += 1;
                    let (status, code, _title) = error.code().parts();
                    CreatedOne {
                        status: status.as_u16(),
                        message: None,
                        code: Some(code.to_owned()),
                        errors: error.into_errors(&format!("/messages/{index}")),
                    }
                }
            });
        }
        Reply::new(StatusCode::OK, &made)
    })
    .await?;
    app.bells.dispatch.notify_one();
    app.bells.webhooks.notify_one();
    Ok(response)
}

/// Each of several messages, or what is wrong with it.
fn each(
    body: Value,
    test: bool,
    lives: &config::Messages,
    now: UnixMs,
) -> Result<Vec<Result<Draft, ApiError>>, ApiError> {
    let mut fields = Fields::new(body)?;
    fields.require("messages");
    let all = fields.list("messages", MESSAGES_MAX, |_fields, _index, one| Some(one));
    if all.as_ref().is_some_and(Vec::is_empty) {
        fields.wrong("messages", "too_few", "It has no entry; 1 to 1000 are allowed.");
    }
    let Some(all) = all else { return Err(fields.refuse()) };
    fields.finish()?;
    let mut drafts: Vec<_> = all.into_iter().map(|one| checked(one, test, lives, now)).collect();
    // Nobody asks for several at once, and what is said to be a code is exempt from the hours.
    let is_code = |draft: &Result<Draft, ApiError>| {
        draft.as_ref().is_ok_and(|draft| !fits_batch(draft.new.class))
    };
    if drafts.iter().filter(|draft| is_code(draft)).count() > 1 {
        for draft in drafts.iter_mut().filter(|draft| is_code(draft)) {
            *draft = Err(ApiError::invalid(vec![protocol::api::FieldError {
                pointer: "/class".to_owned(),
                code: "not_for_batches".to_owned(),
                detail: "A one-time code is one person's: send each by itself.".to_owned(),
            }]));
        }
    }
    Ok(drafts)
}

fn accept(tx: &mut Tx<'_>, tenant: &TenantId, new: &NewMessage) -> Result<Message, ApiError> {
    if let Some(from) = &new.from
        && messages::may_send_from(tx, tenant, (from, new.test))?.is_none()
        // Where there is no sandbox, a story is played, for which any number will do.
        && (!new.test || messages::has_sandbox(tx, tenant)?)
    {
        return Err(ApiError::invalid(vec![protocol::api::FieldError {
            pointer: "/from".to_owned(),
            code: "phone_not_allowed".to_owned(),
            detail: "It is not a number that you can send from.".to_owned(),
        }]));
    }
    let reservation = messages::reserve(tx, tenant, new)?
        .map_err(|refusal| ApiError::refused(refusal, new.now))?;
    Ok(messages::accept(tx, tenant, new, &reservation)?)
}

/// A message as it was asked for. Where its text is to be made from a template, it has none yet.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    new: NewMessage,
    template: Option<Asked>,
}

impl Draft {
    /// The message with its text.
    pub(super) fn written(
        self,
        tx: &mut Tx<'_>,
        tenant: &TenantId,
    ) -> Result<NewMessage, ApiError> {
        let Self { mut new, template } = self;
        if let Some(asked) = template {
            let (text, used) =
                templates::written(tx, tenant, &asked, "/template")?.map_err(ApiError::invalid)?;
            (new.text, new.template) = (text, Some(used));
        }
        Ok(new)
    }
}

/// Everything that is wrong with the body, or the message.
pub(super) fn checked(
    body: Value,
    test: bool,
    lives: &config::Messages,
    now: UnixMs,
) -> Result<Draft, ApiError> {
    let mut fields = Fields::new(body)?;
    let recipient = recipient(&mut fields);
    let media = media(&mut fields);
    let has_media = media.as_ref().is_some_and(|media| !media.is_empty());
    let (text, template) = if has_media && !fields.has("text") && !fields.has("template") {
        (Some(String::new()), None)
    } else {
        text(&mut fields)
    };
    let channel = fields
        .one_of("channel", "unknown_channel", ChannelChoice::ALL)
        .unwrap_or(ChannelChoice::Auto);
    let fallback = fields.channels("fallback", "It must be imessage, rcs or sms.");
    let class = fields.one_of("class", "unknown_class", Class::ALL).unwrap_or(Class::Marketing);
    let from: Option<E164> = fields.parsed("from", "invalid_number");
    let metadata = fields.text_map("metadata", limits::METADATA_BYTES_MAX);
    if let Some((code, detail)) = recipient.as_ref().and_then(|to| misfit(to, channel)) {
        fields.wrong("channel", code, detail);
    }
    if let (Some(Recipient::Email(_)), Some(fallback)) = (&recipient, &fallback)
        && fallback.iter().any(|channel| *channel != Channel::Imessage)
    {
        fields.wrong("fallback", "channel_needs_number", "E-mail addresses have iMessage only.");
    }
    let (send_at, expires_at) = life(&mut fields, class, lives, now);
    let Some(recipient) = recipient else { return Err(fields.refuse()) };
    fields.finish()?;
    let new = NewMessage {
        id: MessageId::new(now.0, clock::random()),
        test,
        recipient,
        from,
        channel,
        fallback,
        class,
        text: text.unwrap_or_default(),
        template: None,
        media: media.unwrap_or_default(),
        batch: None,
        metadata,
        send_at,
        expires_at,
        now,
    };
    Ok(Draft { new, template })
}

/// The text, or what it is to be made from: one of them, or a problem is noted.
pub(super) fn text(fields: &mut Fields) -> (Option<String>, Option<Asked>) {
    if !fields.has("template") {
        return (fields.required_text("text", 1..=limits::TEXT_CHARS_MAX), None);
    }
    if fields.has("text") {
        fields.wrong("template", "conflict", "Give either text or template.");
    }
    (fields.text("text", 1..=limits::TEXT_CHARS_MAX), Asked::of(fields))
}

/// The files. What a phone would refuse without looking is refused here; whether a file is there, only its bridge finds
/// out.
fn media(fields: &mut Fields) -> Option<Vec<Media>> {
    fields.objects("media", limits::ATTACHMENTS_MAX, |fields| {
        let url = fields.required_line("url", 1..=limits::MEDIA_URL_CHARS_MAX);
        if let Some(url) = &url
            && let Err(why) = web_url(url, false)
        {
            fields.wrong("url", "invalid_url", why);
        }
        let name = fields.line("name", 1..=limits::MEDIA_NAME_BYTES_MAX);
        if name
            .as_ref()
            .is_some_and(|name| name.contains('/') || name.len() > limits::MEDIA_NAME_BYTES_MAX)
        {
            fields.wrong("name", "invalid_name", "It is at most 200 bytes, without a slash.");
        }
        let sha256 = fields.line("sha256", 64..=64);
        if sha256.as_ref().is_some_and(|sum| !sum.bytes().all(|byte| byte.is_ascii_hexdigit())) {
            fields.wrong("sha256", "invalid_sha256", "It is 64 hexadecimal digits.");
        }
        let sha256 = sha256.map(|sum| sum.to_ascii_lowercase());
        Some(Media { url: url?, name, sha256 })
    })
}

pub(super) fn recipient(fields: &mut Fields) -> Option<Recipient> {
    let recipient: Recipient = fields.required_parsed("to", "invalid_recipient")?;
    if let Some((code, detail)) = nobody(&recipient) {
        fields.wrong("to", code, detail);
        return None;
    }
    Some(recipient)
}

/// Why nobody can be written to under this address: code and detail.
fn nobody(recipient: &Recipient) -> Option<(&'static str, &'static str)> {
    if recipient.number().is_some_and(|number| !is_possible(number)) {
        return Some(("impossible_number", "No numbering plan has a number of this length."));
    }
    let service = matches!(recipient, Recipient::Service(_));
    service.then_some(("service_recipient", "Messages come from services; none is sent to them."))
}

/// Why this channel does not lead there: code and detail.
fn misfit(recipient: &Recipient, channel: ChannelChoice) -> Option<(&'static str, &'static str)> {
    let email = matches!(recipient, Recipient::Email(_));
    let by_number = matches!(channel.only(), Some(Channel::Rcs | Channel::Sms));
    (email && by_number).then_some(("channel_needs_number", "E-mail addresses have iMessage only."))
}

/// Why nothing that is sent by this channel can reach this recipient: code and detail.
pub(super) fn unreachable(
    recipient: &Recipient,
    channel: ChannelChoice,
) -> Option<(&'static str, &'static str)> {
    nobody(recipient).or_else(|| misfit(recipient, channel))
}

/// A number of this country code can have this many digits. Whether it is assigned is not asked: plans move faster
/// than any table, and a number that leads nowhere fails by itself.
fn is_possible(number: &E164) -> bool {
    if is_north_american(number.as_str()) {
        return true;
    }
    let util = &rlibphonenumber::PHONE_NUMBER_UTIL;
    util.parse(number.as_str(), None).is_ok_and(|number| util.is_possible_number(&number))
}

/// Ten digits as the North American plan has them. Most messages of many tenants go there, and the tables of all plans take as
/// long as all the other checks of a request.
fn is_north_american(number: &str) -> bool {
    let digits = number.strip_prefix("+1").unwrap_or_default().as_bytes();
    digits.len() == 10
        && digits.first().is_some_and(|first| (b'2'..=b'9').contains(first))
        && digits.iter().all(u8::is_ascii_digit)
}

/// From when until when it may be sent.
fn life(
    fields: &mut Fields,
    class: Class,
    lives: &config::Messages,
    now: UnixMs,
) -> (Option<UnixMs>, UnixMs) {
    let ahead_ms = i64::from(lives.ahead_s_max) * 1_000;
    let latest = now.plus_ms(ahead_ms);
    let too_far = format!("It is later than {latest}, the latest allowed.");
    let send_at = fields.time("send_at");
    if let Some(at) = send_at {
        if at <= now {
            fields.wrong("send_at", "in_the_past", "It is not in the future.");
        } else if at > latest {
            fields.wrong("send_at", "too_far", too_far.clone());
        }
    }
    let starts = send_at.unwrap_or(now);
    if fields.has("expires_at") && fields.has("ttl_seconds") {
        fields.wrong("ttl_seconds", "conflict", "Give either expires_at or ttl_seconds.");
    }
    let explicit = fields.time("expires_at");
    let ttl_s = fields.number("ttl_seconds", 1..=lives.ahead_s_max);
    if let Some(at) = explicit {
        if at <= now {
            fields.wrong("expires_at", "in_the_past", "It is not in the future.");
        } else if at <= starts {
            fields.wrong("expires_at", "before_send_at", "It is not later than send_at.");
        } else if at > starts.plus_ms(ahead_ms) {
            fields.wrong("expires_at", "too_far", too_far);
        }
    }
    let life_ms = i64::from(ttl_s.unwrap_or_else(|| lives.life_s_of(class))) * 1_000;
    (send_at, explicit.unwrap_or_else(|| starts.plus_ms(life_ms)))
}

/// The parameters that both lists of messages share.
pub(super) fn filter(query: &mut Query) -> Filter {
    Filter {
        status: query.one_of("status", "unknown_status", Status::ALL),
        direction: query
            .one_of("direction", "unknown_direction", &[Way::OUT, Way::IN])
            .map(|way| way.0),
        recipient: query.parsed::<Recipient>("to", "invalid_recipient"),
        test: false,
    }
}

/// A direction that can be shown as its word.
#[derive(Clone, Copy)]
struct Way(Direction);

impl Way {
    const OUT: Self = Self(Direction::Outbound);
    const IN: Self = Self(Direction::Inbound);
}

impl std::fmt::Display for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.as_str())
    }
}

/// List messages, newest first
#[utoipa::path(get, path = "/v1/messages", tag = "messages", security(("api_key" = [])),
    params(
        ("limit" = Option<u32>, Query, description = "Rows, 1 to 100; 50 when left out."),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before."),
        ("status" = Option<Status>, Query, description = "Only with this status."),
        ("direction" = Option<Direction>, Query, description = "Only this way."),
        ("to" = Option<String>, Query, description = "Only with this other side.")),
    responses(
        (status = 200, description = "A page.", body = Page<Message>),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Parameters are wrong.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn list(
    State(app): State<AppState>,
    caller: Caller,
    RawQuery(raw): RawQuery,
) -> Result<Response, ApiError> {
    caller.needs(Scope::MessagesRead)?;
    let mut query = Query::new(raw.as_deref());
    let filter = Filter { test: caller.test, ..filter(&mut query) };
    let asked = query.finish()?;
    let window = Window { before: asked.after_id::<MessageId>()?, limit: asked.limit };
    let rows =
        app.store.read(move |tx| messages::list(tx, &caller.tenant, &filter, &window)).await?;
    Ok(json(StatusCode::OK, &page(rows, asked.limit, |message| message.id.to_string())))
}

/// One message
#[utoipa::path(get, path = "/v1/messages/{id}", tag = "messages", security(("api_key" = [])),
    params(("id" = String, Path, description = "The message's id.")),
    responses(
        (status = 200, description = "The message.", body = Message),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such message.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn get(
    State(app): State<AppState>,
    caller: Caller,
    PathId(id): PathId<MessageId>,
) -> Result<Response, ApiError> {
    caller.needs(Scope::MessagesRead)?;
    show(&app, Whose::of(caller), id).await
}

/// Whose messages a caller may see.
#[derive(Clone, Debug)]
pub(super) enum Whose {
    /// One tenant's.
    Tenant(TenantId),
    /// One tenant's of the sandbox: a test key asks.
    Sandbox(TenantId),
    /// Everybody's, and those that belong to nobody: the operator asks.
    Anybody,
}

impl Whose {
    pub(super) fn of(caller: Caller) -> Self {
        if caller.test { Self::Sandbox(caller.tenant) } else { Self::Tenant(caller.tenant) }
    }

    /// The owner of a message that the caller may see, under whose name it is then read; `None` where there is none.
    pub(super) fn owner(
        &self,
        tx: &mut Tx<'_>,
        id: &MessageId,
    ) -> Result<Option<TenantId>, StoreError> {
        match self {
            Self::Tenant(tenant) => Ok(Some(tenant.clone())),
            Self::Sandbox(tenant) => {
                let test = messages::is_test(tx, tenant, id)?;
                Ok(test.filter(|test| *test).map(|_test| tenant.clone()))
            }
            Self::Anybody => messages::owner(tx, id),
        }
    }
}

/// One message, for the tenant's route and the operator's.
pub(super) async fn show(
    app: &AppState,
    whose: Whose,
    id: MessageId,
) -> Result<Response, ApiError> {
    let found = app
        .store
        .read(move |tx| match whose.owner(tx, &id)? {
            Some(tenant) => messages::get(tx, &tenant, &id),
            None => Ok(None),
        })
        .await?;
    Ok(json(StatusCode::OK, &found.ok_or_else(ApiError::not_found)?))
}

/// A message's story, oldest step first
#[utoipa::path(get, path = "/v1/messages/{id}/events", tag = "messages", security(("api_key" = [])),
    params(
        ("id" = String, Path, description = "The message's id."),
        ("limit" = Option<u32>, Query, description = "Rows, 1 to 100; 50 when left out."),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before.")),
    responses(
        (status = 200, description = "A page.", body = Page<MessageEvent>),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such message.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn events(
    State(app): State<AppState>,
    caller: Caller,
    PathId(id): PathId<MessageId>,
    RawQuery(raw): RawQuery,
) -> Result<Response, ApiError> {
    caller.needs(Scope::MessagesRead)?;
    story(&app, Whose::of(caller), id, raw.as_deref()).await
}

/// A page of a message's story, for the tenant's route and the operator's.
pub(super) async fn story(
    app: &AppState,
    whose: Whose,
    id: MessageId,
    raw: Option<&str>,
) -> Result<Response, ApiError> {
    let list = crate::store::events::list;
    of_message(app, (whose, id), raw, list, |event| event.sequence).await
}

/// Reads rows of a message that stand behind a number, at most so many.
type List<T> = fn(&mut Tx<'_>, &TenantId, &MessageId, u64, u32) -> Result<Vec<T>, StoreError>;

/// A page of rows that belong to a message and are numbered, in their order.
async fn of_message<T: serde::Serialize + Send + 'static>(
    app: &AppState,
    (whose, id): (Whose, MessageId),
    raw: Option<&str>,
    list: List<T>,
    number: fn(&T) -> u64,
) -> Result<Response, ApiError> {
    let asked = super::pages::window(raw)?;
    let after = asked.after_parsed::<u64>()?.unwrap_or(0);
    let limit = asked.limit;
    let rows = app
        .store
        .read(move |tx| {
            let Some(tenant) = whose.owner(tx, &id)? else { return Ok(None) };
            if messages::get(tx, &tenant, &id)?.is_none() {
                return Ok(None);
            }
            list(tx, &tenant, &id, after, limit.saturating_add(1)).map(Some)
        })
        .await?
        .ok_or_else(ApiError::not_found)?;
    Ok(json(StatusCode::OK, &page(rows, limit, |row| number(row).to_string())))
}

/// What the rules have decided about a message, oldest decision first
///
/// Each with the versions of the rules and of the time zone data and the hash of the text: proof of why it was sent, or not. What
/// was decided the same way again is one decision.
#[utoipa::path(get, path = "/v1/messages/{id}/decisions", tag = "messages", security(("api_key" = [])),
    params(
        ("id" = String, Path, description = "The message's id."),
        ("limit" = Option<u32>, Query, description = "Rows, 1 to 100; 50 when left out."),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before.")),
    responses(
        (status = 200, description = "A page.", body = Page<RuleDecision>),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such message.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn decisions(
    State(app): State<AppState>,
    caller: Caller,
    PathId(id): PathId<MessageId>,
    RawQuery(raw): RawQuery,
) -> Result<Response, ApiError> {
    caller.needs(Scope::MessagesRead)?;
    ledger(&app, Whose::of(caller), id, raw.as_deref()).await
}

/// A page of a message's decisions, for the tenant's route and the operator's.
pub(super) async fn ledger(
    app: &AppState,
    whose: Whose,
    id: MessageId,
    raw: Option<&str>,
) -> Result<Response, ApiError> {
    let list = crate::store::rules::decisions;
    of_message(app, (whose, id), raw, list, |decision| decision.number).await
}

/// Withdraw a message
///
/// `200`: it is canceled. `202`: a phone has it and is asked; the outcome comes as the message's next event.
#[utoipa::path(post, path = "/v1/messages/{id}/cancel", tag = "messages", security(("api_key" = [])),
    params(("id" = String, Path, description = "The message's id.")),
    responses(
        (status = 200, description = "Canceled.", body = Message),
        (status = 202, description = "The phone is asked.", body = Message),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such message.", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "It has ended already.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn cancel(
    State(app): State<AppState>,
    caller: Caller,
    headers: HeaderMap,
    PathId(id): PathId<MessageId>,
) -> Result<Response, ApiError> {
    caller.needs(Scope::MessagesWrite)?;
    let route = format!("POST /v1/messages/{id}/cancel");
    let post = Post::new(caller.idempotency_scope(), route, &headers, &Value::Null)?;
    withdraw(&app, Whose::of(caller), id, post).await
}

/// Withdraws a message, for the tenant's route and the operator's.
pub(super) async fn withdraw(
    app: &AppState,
    whose: Whose,
    id: MessageId,
    post: Post,
) -> Result<Response, ApiError> {
    let now = app.clock.now();
    let message = id.clone();
    let response = idempotency::post(app, post, Ok(id), move |tx, id| {
        let tenant = whose.owner(tx, &id)?.ok_or_else(ApiError::not_found)?;
        match messages::cancel(tx, &tenant, &id, now)? {
            None => Err(ApiError::not_found()),
            Some(Canceled::Now(message)) => Reply::new(StatusCode::OK, message.as_ref()),
            Some(Canceled::Asked(message)) => Reply::new(StatusCode::ACCEPTED, message.as_ref()),
            Some(Canceled::TooLate(status)) => {
                Err(ApiError::new(Code::NotCancelable).detail(format!("Its status is {status}.")))
            }
        }
    })
    .await?;
    if response.status() == StatusCode::ACCEPTED {
        // The request to cancel is on disk; dispatch asks again for as long as the phone has not answered.
        crate::dispatch::recall(app, &message).await;
    }
    app.bells.webhooks.notify_one();
    Ok(response)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_taken_for_north_american_is_possible_by_the_tables_too(digits in "1?[0-9]{9,11}") {
            let number = format!("+1{digits}");
            if is_north_american(&number) {
                let util = &rlibphonenumber::PHONE_NUMBER_UTIL;
                let parsed = util.parse(&number, None).unwrap();
                prop_assert!(util.is_possible_number(&parsed));
                prop_assert_eq!(digits.len(), 10);
            }
        }
    }

    #[test]
    fn ten_digits_of_that_plan_need_no_tables() {
        for (number, north_american) in [
            ("+12125550123", true),
            ("+19995550123", true),
            ("+1212555012", false),
            ("+121255501234", false),
            ("+11125550123", false),
            ("+02125550123", false),
            ("+442125550123", false),
        ] {
            assert_eq!(is_north_american(number), north_american, "{number}");
        }
    }
}
