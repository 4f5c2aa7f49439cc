//! Providers of SMS: set up by the operator, called by themselves.

use axum::body::Bytes;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use protocol::api::{
    Problem, ProviderChoices, ProviderKind, ProviderList, ProviderStanding, ProviderTest,
    SetProvider, SetProviderChoices,
};
use protocol::{MessageId, PhoneId};
use serde_json::Value;

use super::fields::Fields;
use super::pages::Query;
use super::{JsonBody, PathId, json};
use crate::auth::sha256;
use crate::clock;
use crate::error::{ApiError, Code};
use crate::idempotency::{self, Post, Reply, Streamed, respond};
use crate::providers::desk::{self, Secrets, Settings};
use crate::providers::{Call, Disbelieved, Name, News, record, telnyx, worker};
use crate::server::{App, AppState};
use crate::store::providers::{
    self as rows, CannotSet, Chosen, NewProvider, PROVIDERS_MAX, ProviderRow,
};

/// Longest credential, in characters: far longer than any that either of them gives out.
const SECRET_CHARS_MAX: usize = 500;
/// Longest SID or id of theirs, in characters.
const SID_CHARS_MAX: usize = 64;
/// The priority of a provider for which none is given, and the largest.
const PRIORITY: u32 = 100;
const PRIORITY_MAX: u32 = 10_000;
/// Largest monthly recurring revenue, in whole US dollars.
const MRR_MAX: u32 = 1_000_000_000;

/// List the providers of SMS
///
/// How each stands, and why it would not be asked. Credentials are never shown.
#[utoipa::path(get, path = "/v1/admin/providers", tag = "operator", security(("admin_token" = [])),
    responses(
        (status = 200, description = "All of them.", body = ProviderList),
        (status = 401, description = "Not the operator's token.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn list(State(app): State<AppState>) -> Response {
    let now = app.clock.now();
    let list = ProviderList { data: app.providers.show(now), choices: choices(&app) };
    json(StatusCode::OK, &list)
}

/// Set up a provider of SMS
///
/// Adds one, which is not enabled by that, or changes one. Its credentials are sealed at once and never shown again; all
/// of them are given each time.
#[utoipa::path(put, path = "/v1/admin/providers/{name}", tag = "operator", request_body = SetProvider,
    security(("admin_token" = [])),
    params(("name" = String, Path, description = "Its name: 1 to 32 of a-z, 0-9 and -, beginning with a letter.")),
    responses(
        (status = 200, description = "Set.", body = ProviderStanding),
        (status = 401, description = "Not the operator's token.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such name can be.", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "It cannot be set so.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Fields are wrong.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn set(
    State(app): State<AppState>,
    PathId(Name(name)): PathId<Name>,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let (new, secrets) = checked(body)?;
    let refused = |detail: &'static str| ApiError::new(Code::ProviderNotReady).detail(detail);
    let Some(seal) = &app.config.providers.seal else {
        return Err(refused(
            "There is no key to seal credentials with: give one by `key_file` of [providers] or by SWITCHBOARD_PROVIDERS_KEY.",
        ));
    };
    let failed = |error| ApiError::new(Code::Internal).caused_by(error);
    let sealed = seal
        .seal(&desk::place(new.kind, &name), &secrets.text().map_err(internal)?)
        .map_err(failed)?;
    let now = app.clock.now();
    let row = NewProvider {
        name: name.clone(),
        kind: new.kind,
        phone: PhoneId::new(now.0, clock::random()),
        number: new.number,
        settings: serde_json::to_string(&new.settings).map_err(internal)?,
        sealed,
        priority: i64::from(new.priority),
    };
    let set = app.store.write(move |tx| rows::set(tx, &row, now)).await?;
    set.map_err(|cannot| match cannot {
        CannotSet::NumberTaken => ApiError::new(Code::AlreadyExists)
            .detail("The number is that of a phone or of another provider."),
        CannotSet::OtherKind => ApiError::new(Code::AlreadyExists)
            .detail("There is a provider of this name and another kind: choose another name."),
        CannotSet::TooMany => ApiError::new(Code::LimitReached)
            .detail(format!("There can be {PROVIDERS_MAX} providers.")),
    })?;
    changed(&app).await?;
    tracing::warn!(provider = %name, kind = %new.kind, "the operator has set up a provider of SMS");
    standing(&app, &name)
}

fn internal(error: serde_json::Error) -> ApiError {
    ApiError::new(Code::Internal).caused_by(error)
}

struct Checked {
    kind: ProviderKind,
    number: protocol::E164,
    priority: u32,
    settings: Settings,
}

fn checked(body: Value) -> Result<(Checked, Secrets), ApiError> {
    let mut fields = Fields::new(body)?;
    fields.require("kind");
    let kind = fields.one_of("kind", "unknown_kind", ProviderKind::ALL);
    let number = fields.required_parsed("number", "invalid_number");
    let priority = fields.number("priority", 0..=PRIORITY_MAX).unwrap_or(PRIORITY);
    let sids = 1..=SID_CHARS_MAX;
    let long = 1..=SECRET_CHARS_MAX;
    let mut settings =
        Settings { service: fields.line("service", sids.clone()), ..Settings::default() };
    let mut secrets = Secrets::default();
    match kind {
        Some(ProviderKind::Twilio) => {
            settings.account = fields.required_line("account", sids.clone());
            secrets.auth_token = fields.required_line("auth_token", long.clone());
            settings.api_key_sid = fields.line("api_key_sid", sids);
            secrets.api_key_secret = fields.line("api_key_secret", long);
            if settings.api_key_sid.is_some() != secrets.api_key_secret.is_some() {
                let detail = "An API key is its SID and its secret: give both or neither.";
                fields.wrong("api_key_secret", "incomplete", detail);
            }
            if settings.service.as_deref().is_some_and(|sid| !sid.starts_with("MG")) {
                let detail = "It must be a messaging service, `MG…`.";
                fields.wrong("service", "invalid_id", detail);
            }
        }
        Some(ProviderKind::Telnyx) => {
            secrets.api_key = fields.required_line("api_key", long);
            settings.public_key = fields.required_line("public_key", sids);
            if let Some(Err(error)) = settings.public_key.as_deref().map(telnyx::public_key) {
                fields.wrong("public_key", "invalid_key", error.to_string());
            }
        }
        None => {}
    }
    let (Some(kind), Some(number)) = (kind, number) else { return Err(fields.refuse()) };
    fields.finish()?;
    Ok((Checked { kind, number, priority, settings }, secrets))
}

fn standing(app: &App, name: &str) -> Result<Response, ApiError> {
    let all = app.providers.show(app.clock.now());
    let one = all.into_iter().find(|one| one.name == name).ok_or_else(ApiError::not_found)?;
    Ok(json(StatusCode::OK, &one))
}

/// Enable a provider of SMS
///
/// From now on it may be asked for what no phone can send. Needs `public_url`, so that it can report.
#[utoipa::path(post, path = "/v1/admin/providers/{name}/enable", tag = "operator", security(("admin_token" = [])),
    params(("name" = String, Path, description = "Its name.")),
    responses(
        (status = 200, description = "Enabled.", body = ProviderStanding),
        (status = 401, description = "Not the operator's token.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such provider.", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "It cannot be used.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn enable(
    State(app): State<AppState>,
    headers: HeaderMap,
    PathId(Name(name)): PathId<Name>,
) -> Result<Response, ApiError> {
    let found = app.providers.show(app.clock.now()).into_iter().find(|one| one.name == name);
    let found = found.ok_or_else(ApiError::not_found)?;
    let refused = |detail: String| Err(ApiError::new(Code::ProviderNotReady).detail(detail));
    if let Some(problem) = found.problem {
        return refused(format!("It cannot be used: {problem}."));
    }
    if found.webhook_url.is_none() {
        return refused("It could not report: set `public_url` of [providers].".to_owned());
    }
    turn(&app, &headers, name, true).await
}

/// Disable a provider of SMS
///
/// It is asked for nothing more. What waits for it is given back; what it has taken is still followed to its end.
#[utoipa::path(post, path = "/v1/admin/providers/{name}/disable", tag = "operator", security(("admin_token" = [])),
    params(("name" = String, Path, description = "Its name.")),
    responses(
        (status = 200, description = "Disabled.", body = ProviderStanding),
        (status = 401, description = "Not the operator's token.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such provider.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn disable(
    State(app): State<AppState>,
    headers: HeaderMap,
    PathId(Name(name)): PathId<Name>,
) -> Result<Response, ApiError> {
    turn(&app, &headers, name, false).await
}

async fn turn(
    app: &AppState,
    headers: &HeaderMap,
    name: String,
    on: bool,
) -> Result<Response, ApiError> {
    let word = if on { "enable" } else { "disable" };
    let route = format!("POST /v1/admin/providers/{name}/{word}");
    let post = Post::new("operator".to_owned(), route, headers, &Value::Null)?;
    let now = app.clock.now();
    let shown = app.providers.show(now).into_iter().find(|one| one.name == name);
    let wanted = name.clone();
    let response = idempotency::post(app, post, Ok(()), move |tx, ()| {
        let (true, Some(shown)) = (rows::enable(tx, &wanted, on, now)?, shown) else {
            return Err(ApiError::not_found());
        };
        Reply::new(StatusCode::OK, &ProviderStanding { enabled: on, updated_at: now, ..shown })
    })
    .await?;
    if !idempotency::is_replay(&response) {
        tracing::warn!(provider = %name, "the operator has said of a provider of SMS: {word}");
    }
    changed(app).await?;
    Ok(response)
}

/// Attempts of a provider that are given up in one transaction.
const GIVEN_UP_ROWS: usize = 256;

/// Delete a provider of SMS
///
/// With its credentials. It has to be disabled, and to have nothing under way: what waited for it is given back when it is
/// disabled, and what it has taken ends by its reports. With `force=true` that is not waited for: nobody will hear of it any
/// more, it is `unknown` (`provider_silent`), and never sent again by itself. Its number stays known to conversations and
/// stories; who sets up a provider with it goes on with them.
#[utoipa::path(delete, path = "/v1/admin/providers/{name}", tag = "operator", security(("admin_token" = [])),
    params(
        ("name" = String, Path, description = "Its name."),
        ("force" = Option<bool>, Query, description = "Whatever it has under way.")),
    responses(
        (status = 204, description = "Deleted."),
        (status = 401, description = "Not the operator's token.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such provider.", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "It is enabled, or has messages under way.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Parameters are wrong.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn delete(
    State(app): State<AppState>,
    PathId(Name(name)): PathId<Name>,
    RawQuery(raw): RawQuery,
) -> Result<Response, ApiError> {
    let mut query = Query::new(raw.as_deref());
    let force = query.one_of("force", "unknown_word", &[true, false]).unwrap_or(false);
    query.finish()?;
    let rules = worker::rules(&app);
    loop {
        let (wanted, now) = (name.clone(), app.clock.now());
        let (left, effects) = app
            .store
            .transact(move |tx| {
                let found = rows::get(tx, &wanted)?.ok_or_else(ApiError::not_found)?;
                let refused = |detail: &'static str| ApiError::new(Code::ProviderNotReady).detail(detail);
                if found.enabled {
                    return Err(refused("It is enabled: disable it first."));
                }
                if !force && !rows::under_way(tx, &found.phone, 1)?.is_empty() {
                    return Err(refused(
                        "It has messages under way, of which it has still to report: wait, or delete it with `force=true`; they are `unknown` then.",
                    ));
                }
                let (left, effects) =
                    record::given_up(tx, rules, &found.phone, GIVEN_UP_ROWS, now)?;
                if left < GIVEN_UP_ROWS {
                    rows::delete(tx, &wanted)?;
                }
                Ok((left, effects))
            })
            .await?;
        worker::follow(&app, &effects).await;
        if left < GIVEN_UP_ROWS {
            break;
        }
    }
    tracing::warn!(provider = %name, force, "the operator has deleted a provider of SMS");
    app.providers.load(&app.store).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// What is set has changed: it is read anew, and what waits for a phone is looked at again.
async fn changed(app: &AppState) -> Result<(), ApiError> {
    app.providers.load(&app.store).await?;
    if !app.providers.are_off() {
        crate::dispatch::phone_became_able(app).await?;
    }
    Ok(())
}

/// Test a provider's credentials
///
/// Asks it something that sends nothing and costs nothing.
#[utoipa::path(post, path = "/v1/admin/providers/{name}/test", tag = "operator", security(("admin_token" = [])),
    params(("name" = String, Path, description = "Its name.")),
    responses(
        (status = 200, description = "What it has answered.", body = ProviderTest),
        (status = 401, description = "Not the operator's token.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such provider.", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "It cannot be used.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn test(
    State(app): State<AppState>,
    PathId(Name(name)): PathId<Name>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let route = format!("POST /v1/admin/providers/{name}/test");
    let once = Streamed::new(&app, "operator".to_owned(), route, &headers)?;
    // It has no body.
    let fingerprint = sha256(b"null");
    if let Some(kept) = once.kept(&app).await? {
        return kept.answer(fingerprint);
    }
    let found = ProviderKind::ALL.iter().find_map(|kind| app.providers.find(*kind, &name));
    let Some(provider) = found.ok_or_else(ApiError::not_found)?.provider else {
        let detail = "Its credentials do not open: see `problem` in the list of providers.";
        return Err(ApiError::new(Code::ProviderNotReady).detail(detail));
    };
    let (works, detail) = match provider.test().await {
        Ok(detail) => (true, detail),
        Err(detail) => (false, detail),
    };
    let reply = Reply::new(StatusCode::OK, &ProviderTest { works, detail })?;
    let now = app.clock.now();
    let reply = app
        .store
        .transact(move |tx| {
            once.keep(tx, &reply, fingerprint, now)?;
            Ok::<_, ApiError>(reply)
        })
        .await?;
    Ok(respond(reply))
}

fn choices(app: &App) -> ProviderChoices {
    let (chosen, sms_a_day) = app.providers.chosen();
    ProviderChoices {
        switched_to: chosen.switched_to,
        mrr_usd: chosen.mrr.map(|(cents, _)| u32::try_from(cents / 100).unwrap_or(u32::MAX)),
        mrr_as_of: chosen.mrr.map(|(_, as_of)| as_of),
        twilio_allowed: chosen.twilio_allowed,
        sms_a_day,
    }
}

/// Set what holds for all providers of SMS
///
/// Which one is asked first, and what decides whether Twilio may be asked: its three conditions are more than 5,000 SMS a
/// day, counted by the router, a monthly recurring revenue of more than 15,000 USD, and the flag. What is left out stays as
/// it is.
#[utoipa::path(patch, path = "/v1/admin/provider_choices", tag = "operator", request_body = SetProviderChoices,
    security(("admin_token" = [])),
    responses(
        (status = 200, description = "What is set now.", body = ProviderChoices),
        (status = 401, description = "Not the operator's token.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Fields are wrong.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn choose(
    State(app): State<AppState>,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let now = app.clock.now();
    let mut fields = Fields::new(body)?;
    let switch: Option<Name> = fields.parsed("switch_to", "invalid_name");
    let back = fields.boolean("switch_back").unwrap_or(false);
    if back && switch.is_some() {
        fields.wrong("switch_back", "contradiction", "Switch to one, or back.");
    }
    let known = app.providers.show(now);
    if let Some(Name(name)) = &switch
        && !known.iter().any(|one| one.name == *name)
    {
        fields.wrong("switch_to", "not_found", "There is no such provider.");
    }
    let mrr = fields.number("mrr_usd", 0..=MRR_MAX);
    let as_of = fields.time("mrr_as_of");
    if as_of.is_some_and(|at| at > now) {
        fields.wrong("mrr_as_of", "in_the_future", "It must not be in the future.");
    }
    if mrr.is_some() != as_of.is_some() {
        let field = if mrr.is_some() { "mrr_as_of" } else { "mrr_usd" };
        fields.wrong(field, "incomplete", "A figure is given with its date.");
    }
    let allowed = fields.boolean("twilio_allowed");
    fields.finish()?;
    app.store
        .write(move |tx| {
            let before = rows::chosen(tx)?;
            let mrr = mrr.map(|usd| u64::from(usd).saturating_mul(100)).zip(as_of);
            let after = Chosen {
                mrr: mrr.or(before.mrr),
                twilio_allowed: allowed.unwrap_or(before.twilio_allowed),
                switched_to: match switch {
                    Some(Name(name)) => Some(name),
                    None if back => None,
                    None => before.switched_to,
                },
            };
            rows::choose(tx, &after)
        })
        .await?;
    changed(&app).await?;
    let now_set = choices(&app);
    tracing::warn!(switched_to = ?now_set.switched_to, mrr_usd = ?now_set.mrr_usd, twilio_allowed = now_set.twilio_allowed, "the operator has set what holds for providers of SMS");
    Ok(json(StatusCode::OK, &now_set))
}

/// Reports and messages from Twilio
///
/// Called by Twilio alone, signed with `X-Twilio-Signature`. The address is what is set as the number's webhook for
/// incoming messages; for reports the router gives it itself.
#[utoipa::path(post, path = "/v1/providers/twilio/{name}", tag = "providers",
    request_body(content = String, content_type = "application/x-www-form-urlencoded"),
    params(("name" = String, Path, description = "The provider's name.")),
    responses(
        (status = 200, description = "Taken: no answer to whoever wrote.", body = String, content_type = "text/xml"),
        (status = 403, description = "Not signed by Twilio.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such provider.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Signed, and not understood.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn twilio(
    State(app): State<AppState>,
    Path(name): Path<String>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, ApiError> {
    called(&app, (ProviderKind::Twilio, &name), &uri, &headers, &body).await?;
    let xml = [(header::CONTENT_TYPE, "text/xml; charset=utf-8")];
    Ok((xml, "<Response></Response>").into_response())
}

/// Reports and messages from Telnyx
///
/// Called by Telnyx alone, signed with `telnyx-signature-ed25519` over `telnyx-timestamp` and the body, at most 300 s ago.
/// The address is what is set as the messaging profile's webhook; for reports the router gives it itself.
#[utoipa::path(post, path = "/v1/providers/telnyx/{name}", tag = "providers",
    request_body(content = String, content_type = "application/json"),
    params(("name" = String, Path, description = "The provider's name.")),
    responses(
        (status = 200, description = "Taken."),
        (status = 403, description = "Not signed by Telnyx, or too long ago.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such provider.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Signed, and not understood.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn telnyx(
    State(app): State<AppState>,
    Path(name): Path<String>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, ApiError> {
    called(&app, (ProviderKind::Telnyx, &name), &uri, &headers, &body).await?;
    Ok(StatusCode::OK.into_response())
}

fn count(kind: ProviderKind, outcome: &'static str) {
    metrics::counter!("switchboard_provider_calls_total", "kind" => kind.as_str(), "outcome" => outcome)
        .increment(1);
}

/// Takes what a provider says: in one transaction, before it is told so. What cannot be taken in now is said again by it.
async fn called(
    app: &AppState,
    (kind, name): (ProviderKind, &str),
    uri: &Uri,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<(), ApiError> {
    let found = app.providers.find(kind, name).ok_or_else(ApiError::not_found)?;
    let now = app.clock.now();
    let refused = |why: Disbelieved| {
        count(kind, "disbelieved");
        tracing::warn!(provider = name, why = %why, "providers: a call is not believed");
        match why {
            Disbelieved::Signature | Disbelieved::Time => {
                ApiError::new(Code::NotSigned).detail(why.to_string())
            }
            Disbelieved::Body => ApiError::new(Code::InvalidRequest).detail(why.to_string()),
        }
    };
    let address = app.config.providers.webhook_url(kind, name);
    let (Some(provider), Some(mut address)) = (found.provider, address) else {
        return Err(refused(Disbelieved::Signature));
    };
    address.set_query(uri.query());
    let call = Call { url: &address, headers, body, now };
    let news = provider.read(&call).map_err(refused)?;
    let (rules, phone) = (worker::rules(app), found.phone);
    let effects = match news {
        News::Nothing => {
            count(kind, "nothing");
            return Ok(());
        }
        News::Report(report) => {
            let hint = hint(&address);
            let taken = app
                .store
                .write(move |tx| {
                    let hint = hint.as_ref().map(|(message, attempt)| (message, *attempt));
                    record::report(tx, rules, &phone, hint, &report, now)
                })
                .await?;
            count(kind, if taken.is_some() { "report" } else { "strange" });
            let Some(effects) = taken else {
                // Of another router's time, or sent by hand: the provider need not say it again.
                tracing::info!(
                    provider = name,
                    "providers: a report about a message that is not ours"
                );
                return Ok(());
            };
            effects
        }
        News::Incoming(incoming) if !is_for(&found.row, &incoming.to) => {
            count(kind, "strange");
            tracing::warn!(
                provider = name,
                to = incoming.to,
                "providers: a message to a number that is not the provider's"
            );
            return Ok(());
        }
        News::Incoming(incoming) => {
            if incoming.files > 0 {
                tracing::warn!(
                    provider = name,
                    files = incoming.files,
                    "providers: files that came with a message are not fetched"
                );
            }
            count(kind, "message");
            app.store.write(move |tx| record::incoming(tx, &phone, &incoming, now)).await?
        }
    };
    worker::follow(app, &effects).await;
    Ok(())
}

/// Whether a number is the provider's: a messaging service or profile has several.
fn is_for(row: &ProviderRow, number: &str) -> bool {
    let settings: Settings = serde_json::from_str(&row.settings).unwrap_or_default();
    settings.service.is_some() || row.number.as_str() == number
}

/// What was put into the address that a provider reports to. It is signed with all of it.
fn hint(address: &url::Url) -> Option<(MessageId, u32)> {
    let field = |name: &str| {
        address.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
    };
    Some((field("message")?.parse().ok()?, field("attempt")?.parse().ok()?))
}
