//! Templates: texts with variables, in versions.

use std::collections::BTreeMap;

use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use protocol::api::{
    CreateTemplate, FieldError, Page, PreviewTemplate, Problem, Template, TemplatePreview,
    TemplateVersion, UpdateTemplate, UsedTemplate,
};
use protocol::{TemplateId, TenantId, UnixMs, limits};
use serde_json::Value;

use super::fields::{Fields, escaped};
use super::pages::{page, window};
use super::{JsonBody, OptionalJsonBody, PathId, json};
use crate::auth::{Caller, Scope};
use crate::clock;
use crate::compliance::content;
use crate::error::{ApiError, Code};
use crate::idempotency::{self, Post, Reply};
use crate::server::AppState;
use crate::store::{StoreError, Tx, rules, templates};
use crate::template::{self, Lack};

/// Longest name, in characters.
const NAME_CHARS_MAX: usize = 100;
/// Templates of one tenant: what a list can still be read by people for.
const TEMPLATES_MAX: u32 = 1_000;
/// Versions of one template. They are kept for ever.
const VERSIONS_MAX: u32 = 10_000;

/// Make a template
#[utoipa::path(post, path = "/v1/templates", tag = "templates", request_body = CreateTemplate,
    security(("api_key" = [])),
    responses(
        (status = 201, description = "Made, in version 1.", body = Template),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "The key may not send.", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "The name is taken, or there are too many.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Fields are wrong.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn create(
    State(app): State<AppState>,
    caller: Caller,
    headers: HeaderMap,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    caller.needs(Scope::MessagesWrite)?;
    let now = app.clock.now();
    let post = Post::new(caller.idempotency_scope(), "POST /v1/templates", &headers, &body)?;
    let (tenant, test) = (caller.tenant, caller.test);
    idempotency::post(&app, post, checked(body, now), move |tx, new| {
        if templates::count(tx, &tenant)? >= TEMPLATES_MAX {
            let detail = format!("A tenant has at most {TEMPLATES_MAX} templates; delete some.");
            return Err(ApiError::new(Code::LimitReached).detail(detail));
        }
        not_taken(tx, &tenant, &new)?;
        templates::insert(tx, (&tenant, test), &new)?;
        Reply::new(StatusCode::CREATED, &new)
    })
    .await
}

fn not_taken(tx: &mut Tx<'_>, tenant: &TenantId, template: &Template) -> Result<(), ApiError> {
    if templates::is_taken(tx, tenant, &template.name, &template.id)? {
        return Err(ApiError::new(Code::AlreadyExists).detail("A template of this name exists."));
    }
    Ok(())
}

fn checked(body: Value, now: UnixMs) -> Result<Template, ApiError> {
    let mut fields = Fields::new(body)?;
    let name = fields.required_line("name", 1..=NAME_CHARS_MAX);
    let text = fields.required_text("text", 1..=limits::TEXT_CHARS_MAX);
    let text = text.and_then(|text| Some((variables(&mut fields, &text)?, text)));
    let defaults = values(&mut fields, "defaults").unwrap_or_default();
    if let Some((variables, _)) = &text {
        known(&mut fields, variables, &defaults);
    }
    let (Some(name), Some((variables, text))) = (name, text) else { return Err(fields.refuse()) };
    fields.finish()?;
    Ok(Template {
        id: TemplateId::new(now.0, clock::random()),
        name,
        version: 1,
        text,
        variables,
        defaults,
        created_at: now,
        updated_at: now,
    })
}

/// The variables of a text, where it is a template.
fn variables(fields: &mut Fields, text: &str) -> Option<Vec<String>> {
    match template::Template::parse(text) {
        Ok(read) => Some(read.names().to_vec()),
        Err(fault) => {
            fields.wrong("text", fault.code(), format!("In the text, {fault}."));
            None
        }
    }
}

/// What stands for variables, each short enough and readable.
pub(super) fn values(fields: &mut Fields, field: &str) -> Option<BTreeMap<String, String>> {
    fields.texts(field, limits::TEMPLATE_VARIABLES_MAX, 0..=limits::VARIABLE_CHARS_MAX)
}

/// Refuses defaults of variables that the text does not have: a typing mistake would pass in silence.
fn known(fields: &mut Fields, variables: &[String], defaults: &BTreeMap<String, String>) {
    for name in defaults.keys().filter(|name| !variables.contains(*name)) {
        let detail =
            format!("The text has no variable of this name; it has {}.", listed(variables));
        fields.wrong_below("defaults", name, "unknown_variable", detail);
    }
}

fn listed(variables: &[String]) -> String {
    if variables.is_empty() { "none".to_owned() } else { variables.join(", ") }
}

/// List templates, newest first
#[utoipa::path(get, path = "/v1/templates", tag = "templates", security(("api_key" = [])),
    params(
        ("limit" = Option<u32>, Query, description = "Rows, 1 to 100; 50 when left out."),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before.")),
    responses(
        (status = 200, description = "A page.", body = Page<Template>),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn list(
    State(app): State<AppState>,
    caller: Caller,
    RawQuery(raw): RawQuery,
) -> Result<Response, ApiError> {
    caller.needs(Scope::MessagesRead)?;
    let asked = window(raw.as_deref())?;
    let (before, limit) = (asked.after_id::<TemplateId>()?, asked.limit);
    let rows = app
        .store
        .read(move |tx| templates::list(tx, &caller.tenant, before.as_deref(), limit))
        .await?;
    Ok(json(StatusCode::OK, &page(rows, limit, |template| template.id.to_string())))
}

/// One template, in its newest version
#[utoipa::path(get, path = "/v1/templates/{id}", tag = "templates", security(("api_key" = [])),
    params(("id" = String, Path, description = "The template's id.")),
    responses(
        (status = 200, description = "The template.", body = Template),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such template.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn get(
    State(app): State<AppState>,
    caller: Caller,
    PathId(id): PathId<TemplateId>,
) -> Result<Response, ApiError> {
    caller.needs(Scope::MessagesRead)?;
    let found = app.store.read(move |tx| templates::get(tx, &caller.tenant, &id)).await?;
    Ok(json(StatusCode::OK, &found.ok_or_else(ApiError::not_found)?))
}

/// The versions of a template, newest first
#[utoipa::path(get, path = "/v1/templates/{id}/versions", tag = "templates", security(("api_key" = [])),
    params(
        ("id" = String, Path, description = "The template's id."),
        ("limit" = Option<u32>, Query, description = "Rows, 1 to 100; 50 when left out."),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before.")),
    responses(
        (status = 200, description = "A page.", body = Page<TemplateVersion>),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such template.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn versions(
    State(app): State<AppState>,
    caller: Caller,
    PathId(id): PathId<TemplateId>,
    RawQuery(raw): RawQuery,
) -> Result<Response, ApiError> {
    caller.needs(Scope::MessagesRead)?;
    let asked = window(raw.as_deref())?;
    let before = asked.after_parsed::<u32>()?.unwrap_or(u32::MAX);
    let limit = asked.limit;
    let rows = app
        .store
        .read(move |tx| {
            if templates::get(tx, &caller.tenant, &id)?.is_none() {
                return Ok(None);
            }
            templates::versions(tx, &caller.tenant, &id, before, limit).map(Some)
        })
        .await?
        .ok_or_else(ApiError::not_found)?;
    Ok(json(StatusCode::OK, &page(rows, limit, |version| version.version.to_string())))
}

/// Change a template
///
/// What is left out stays as it is. Another text, or other defaults, are a new version; what was made from an older one
/// stays as it was.
#[utoipa::path(patch, path = "/v1/templates/{id}", tag = "templates", request_body = UpdateTemplate,
    security(("api_key" = [])),
    params(("id" = String, Path, description = "The template's id.")),
    responses(
        (status = 200, description = "As it is now.", body = Template),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "The key may not send.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such template.", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "The name is taken, or there are too many versions.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Fields are wrong.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn update(
    State(app): State<AppState>,
    caller: Caller,
    PathId(id): PathId<TemplateId>,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    caller.needs(Scope::MessagesWrite)?;
    let (tenant, test, now) = (caller.tenant, caller.test, app.clock.now());
    let changed = app
        .store
        .transact(move |tx| {
            may_change(tx, (&tenant, test), &id)?;
            let before = templates::get(tx, &tenant, &id)?.ok_or_else(ApiError::not_found)?;
            let after = changed(&before, body, now)?;
            let is_new = after.version != before.version;
            if after == before {
                return Ok(after);
            }
            if after.version > VERSIONS_MAX {
                let detail =
                    format!("A template has at most {VERSIONS_MAX} versions; make another.");
                return Err(ApiError::new(Code::LimitReached).detail(detail));
            }
            not_taken(tx, &tenant, &after)?;
            templates::update(tx, &tenant, &after, is_new)?;
            Ok(after)
        })
        .await?;
    Ok(json(StatusCode::OK, &changed))
}

/// A test key changes nothing that live messages are made from.
fn may_change(
    tx: &mut Tx<'_>,
    (tenant, test): (&TenantId, bool),
    id: &TemplateId,
) -> Result<(), ApiError> {
    if test && templates::is_test(tx, tenant, id)? == Some(false) {
        return Err(ApiError::new(Code::Forbidden)
            .detail("It was made with a live key; a test key may use it and not change it."));
    }
    Ok(())
}

fn changed(before: &Template, body: Value, now: UnixMs) -> Result<Template, ApiError> {
    let mut fields = Fields::new(body)?;
    let name = fields.line("name", 1..=NAME_CHARS_MAX).unwrap_or_else(|| before.name.clone());
    let text = fields.text("text", 1..=limits::TEXT_CHARS_MAX);
    let defaults = values(&mut fields, "defaults");
    let variables = match &text {
        Some(text) => variables(&mut fields, text).unwrap_or_default(),
        None => before.variables.clone(),
    };
    let defaults = defaults.unwrap_or_else(|| before.defaults.clone());
    known(&mut fields, &variables, &defaults);
    fields.finish()?;
    let text = text.unwrap_or_else(|| before.text.clone());
    let mut after = Template { name, text, variables, defaults, ..before.clone() };
    if after.text != before.text || after.defaults != before.defaults {
        after.version = before.version.saturating_add(1);
    }
    if after != *before {
        after.updated_at = now;
    }
    Ok(after)
}

/// Delete a template
///
/// Nothing new is made from it. What was made from it stays, and a batch that is under way goes on.
#[utoipa::path(delete, path = "/v1/templates/{id}", tag = "templates", security(("api_key" = [])),
    params(("id" = String, Path, description = "The template's id.")),
    responses(
        (status = 204, description = "Deleted."),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "The key may not send.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such template.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn delete(
    State(app): State<AppState>,
    caller: Caller,
    PathId(id): PathId<TemplateId>,
) -> Result<Response, ApiError> {
    caller.needs(Scope::MessagesWrite)?;
    let (tenant, test, now) = (caller.tenant, caller.test, app.clock.now());
    let found = app
        .store
        .transact(move |tx| {
            may_change(tx, (&tenant, test), &id)?;
            templates::delete(tx, &tenant, &id, now).map_err(ApiError::from)
        })
        .await?;
    if !found {
        return Err(ApiError::not_found());
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Write a template out without sending it
///
/// With the number of SMS segments, and what the rules about content say.
#[utoipa::path(post, path = "/v1/templates/{id}/preview", tag = "templates",
    request_body = Option<PreviewTemplate>, security(("api_key" = [])),
    params(("id" = String, Path, description = "The template's id.")),
    responses(
        (status = 200, description = "What it would send.", body = TemplatePreview),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such template.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Fields are wrong: a variable is missing or unknown, or there is no such version.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn preview(
    State(app): State<AppState>,
    caller: Caller,
    PathId(id): PathId<TemplateId>,
    OptionalJsonBody(body): OptionalJsonBody,
) -> Result<Response, ApiError> {
    caller.needs(Scope::MessagesRead)?;
    let tenant = caller.tenant;
    let (text, used, own) = app
        .store
        .read(move |tx| {
            if templates::get(tx, &tenant, &id)?.is_none() {
                return Ok(Err(ApiError::not_found()));
            }
            let asked = match asked(id, body) {
                Ok(asked) => asked,
                Err(refusal) => return Ok(Err(refusal)),
            };
            let own = rules::of_tenant(tx, &tenant)?.unwrap_or_default();
            Ok(match written(tx, &tenant, &asked, "")? {
                Ok((text, used)) => Ok((text, used, own)),
                Err(errors) => Err(ApiError::invalid(errors)),
            })
        })
        .await??;
    let rules = content::Rules {
        blocked: &own.blocked_words,
        blocked_for_all: &app.config.compliance.blocked_words,
        first_message_links: own.first_message_links,
        segments_max: own.segments_max,
    };
    let objection = content::objection(&text, &rules, true);
    let answer = TemplatePreview {
        version: used.version,
        content: content::report(&text),
        allowed: objection.is_none(),
        detail: objection.map(|objection| objection.detail().to_owned()),
        explanation: objection.map(|objection| content::explain(objection, &text, &rules)),
        text,
    };
    Ok(json(StatusCode::OK, &answer))
}

fn asked(id: TemplateId, body: Value) -> Result<Asked, ApiError> {
    let mut fields = Fields::new(body)?;
    let version = fields.number("version", 1..=u32::MAX);
    let variables = values(&mut fields, "variables").unwrap_or_default();
    fields.finish()?;
    Ok(Asked { id, version, variables })
}

/// Which template a text is to be made from, and with what.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) id: TemplateId,
    pub(super) version: Option<u32>,
    pub(super) variables: BTreeMap<String, String>,
}

impl Asked {
    /// A body's field `template`.
    pub(super) fn of(fields: &mut Fields) -> Option<Self> {
        fields.object("template", |inner| {
            let id = inner.required_parsed("id", "invalid_id");
            let version = inner.number("version", 1..=u32::MAX);
            let variables = values(inner, "variables").unwrap_or_default();
            Some(Self { id: id?, version, variables })
        })
    }
}

/// A template in the version that is asked for, or what is wrong with that; `above` is the pointer to where it is asked.
pub(super) fn pinned(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    (id, version): (&TemplateId, Option<u32>),
    above: &str,
) -> Result<Result<TemplateVersion, FieldError>, StoreError> {
    let wrong = |field: &str, code: &str, detail: String| FieldError {
        pointer: format!("{above}/{field}"),
        code: code.to_owned(),
        detail,
    };
    let Some(newest) = templates::get(tx, tenant, id)? else {
        let detail = "There is no such template.".to_owned();
        return Ok(Err(wrong("id", "unknown_template", detail)));
    };
    let version = version.unwrap_or(newest.version);
    Ok(templates::pinned(tx, tenant, id, version)?.ok_or_else(|| {
        let detail = format!("The template has the versions 1 to {}.", newest.version);
        wrong("version", "unknown_version", detail)
    }))
}

/// The text that is asked for, and what it was made from; or everything that is wrong.
pub(super) fn written(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    asked: &Asked,
    above: &str,
) -> Result<Result<(String, UsedTemplate), Vec<FieldError>>, StoreError> {
    let version = match pinned(tx, tenant, (&asked.id, asked.version), above)? {
        Ok(version) => version,
        Err(wrong) => return Ok(Err(vec![wrong])),
    };
    let read = template::Template::parse(&version.text)
        .map_err(|fault| StoreError::corrupt("template_versions.text", fault.code()))?;
    let used = UsedTemplate { id: asked.id.clone(), version: version.version };
    Ok(read
        .render(&version.defaults, &asked.variables)
        .map(|text| (text, used))
        .map_err(|lacks| lacks.iter().map(|lack| told(lack, read.names(), above)).collect()))
}

/// What is said of a lack; `above` is the pointer to where the variables are.
pub(super) fn told(lack: &Lack, names: &[String], above: &str) -> FieldError {
    let (pointer, detail) = match lack {
        Lack::Unknown(name) => (
            format!("{above}/variables/{}", escaped(name)),
            format!("The template has no variable of this name; it has {}.", listed(names)),
        ),
        Lack::Missing(name) => (
            format!("{above}/variables/{}", escaped(name)),
            format!("The variable `{name}` is neither given nor has it a default."),
        ),
        Lack::TooLong(chars) => (
            format!("{above}/variables"),
            format!(
                "The whole text would have {chars} characters or more; {} are allowed.",
                limits::TEXT_CHARS_MAX
            ),
        ),
        Lack::Blank => (
            format!("{above}/variables"),
            "The whole text would be nothing but white space.".to_owned(),
        ),
    };
    FieldError { pointer, code: lack.code().to_owned(), detail }
}
