//! How a Mac joins, and what the operator sees of Macs and phones.

use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use data_encoding::{BASE32_DNSSEC, BASE64URL_NOPAD};
use protocol::api::{EnrolmentToken, FieldError, Host, Page, Phone, Problem};
use protocol::link::{EnrolPhone, EnrolRequest, EnrolResponse};
use protocol::{E164, HostId, PhoneId, limits};
use serde_json::Value;

use super::fields::Fields;
use super::pages::{page, window};
use super::tenants::NAME_CHARS_MAX;
use super::{JsonBody, OptionalJsonBody, json};
use crate::auth::sha256;
use crate::clock;
use crate::error::{ApiError, Code};
use crate::idempotency::{self, Post, Reply};
use crate::server::AppState;
use crate::store::admin;

/// What enrolment tokens begin with.
const TOKEN_PREFIX: &str = "sbe_";
/// Life of an enrolment token, in seconds, when the operator does not say: long enough to walk to the Mac.
const TOKEN_LIFE_S: u32 = 3_600;
/// Longest life of an enrolment token, in seconds: a week.
const TOKEN_LIFE_S_MAX: u32 = 7 * 86_400;

/// `POST /v1/admin/enrolment_tokens`; the body may be left out.
#[derive(Debug, utoipa::ToSchema)]
#[expect(
    dead_code,
    reason = "describes the body in the API's document; fields are checked one by one"
)]
pub(super) struct CreateEnrolmentToken {
    /// How long it can be used, 1 second to a week; an hour when left out.
    #[schema(minimum = 1, maximum = 604_800)]
    ttl_seconds: Option<u32>,
}

/// Make a one-time token with which a host is enrolled
#[utoipa::path(post, path = "/v1/admin/enrolment_tokens", tag = "operator", request_body = Option<CreateEnrolmentToken>,
    security(("admin_token" = [])),
    responses(
        (status = 201, description = "Made.", body = EnrolmentToken),
        (status = 401, description = "Not the operator's token.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn create_token(
    State(app): State<AppState>,
    headers: HeaderMap,
    OptionalJsonBody(body): OptionalJsonBody,
) -> Result<Response, ApiError> {
    let post =
        Post::new("operator".to_owned(), "POST /v1/admin/enrolment_tokens", &headers, &body)?;
    let life_s = life_of(body);
    let now = app.clock.now();
    let token = format!("{TOKEN_PREFIX}{}", BASE32_DNSSEC.encode(&clock::secret::<32>()));
    let hash = sha256(token.as_bytes());
    idempotency::post(&app, post, life_s, move |tx, life_s| {
        let expires_at = now.plus_ms(i64::from(life_s) * 1_000);
        admin::insert_enrolment_token(tx, &hash, expires_at, now)?;
        let shown = serde_json::json!({ "expires_at": expires_at });
        Ok(Reply::new(StatusCode::CREATED, &shown)?.with_once("token", token))
    })
    .await
}

fn life_of(body: Value) -> Result<u32, ApiError> {
    let mut fields = Fields::new(body)?;
    let life_s = fields.number("ttl_seconds", 1..=TOKEN_LIFE_S_MAX).unwrap_or(TOKEN_LIFE_S);
    fields.finish()?;
    Ok(life_s)
}

/// Enrol a host with a one-time token
///
/// A host that comes again with the same public key keeps its id and gets the phones that are new.
#[utoipa::path(post, path = "/v1/hosts/enroll", tag = "hosts", request_body = EnrolRequest,
    responses(
        (status = 200, description = "Enrolled; the token is used up.", body = EnrolResponse),
        (status = 401, description = "The token cannot be used.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Fields are wrong; the token can still be used.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn enrol(
    State(app): State<AppState>,
    headers: HeaderMap,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    // The token is part of the body, so a kept answer is given to nobody who has not shown it.
    let post = Post::new("enrolment".to_owned(), "POST /v1/hosts/enroll", &headers, &body)?;
    let now = app.clock.now();
    let own = app.key.public_base64url();
    idempotency::post(&app, post, enrolment(body), move |tx, (request, key)| {
        let hash = sha256(request.token.as_bytes());
        let otherwise = admin::enrolled_otherwise(tx, &request.phones)?;
        let mut enrolled = admin::enrol(tx, &hash, &request, &key, now)?
            .ok_or_else(|| ApiError::new(Code::InvalidEnrolmentToken))?;
        // Only who has shown a good token is told what a phone is; the refusal takes the enrolment back.
        if !otherwise.is_empty() {
            return Err(ApiError::invalid(otherwise.into_iter().map(other_kind).collect()));
        }
        enrolled.router_key = Some(own.clone());
        tracing::info!(host = %enrolled.host, phones = enrolled.phones.len(), "enrolling a host");
        Reply::new(StatusCode::OK, &enrolled)
    })
    .await
}

fn enrolment(body: Value) -> Result<(EnrolRequest, [u8; 32]), ApiError> {
    let mut fields = Fields::new(body)?;
    let token = fields.required_line("token", 1..=200);
    let name = fields.required_line("name", 1..=NAME_CHARS_MAX);
    let public_key = public_key(&mut fields);
    let phones = phones_of(&mut fields);
    let (Some(token), Some(name), Some((public_key, key)), Some(phones)) =
        (token, name, public_key, phones)
    else {
        return Err(fields.refuse());
    };
    fields.finish()?;
    Ok((EnrolRequest { token, name, public_key, phones }, key))
}

fn other_kind(index: usize) -> FieldError {
    FieldError {
        pointer: format!("/phones/{index}/sandbox"),
        code: "other_kind".to_owned(),
        detail: "The phone was enrolled as the other kind, of the sandbox or not, and stays that."
            .to_owned(),
    }
}

/// The key as text and as bytes. Only its form is checked here: a key that is no point on the curve verifies nothing.
fn public_key(fields: &mut Fields) -> Option<(String, [u8; 32])> {
    let text = fields.required_text("public_key", 1..=100)?;
    let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).ok();
    let Some(key) = bytes.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok()) else {
        fields.wrong("public_key", "invalid_key", "It is not 32 bytes in unpadded base64url.");
        return None;
    };
    Some((text, key))
}

fn phones_of(fields: &mut Fields) -> Option<Vec<EnrolPhone>> {
    fields.require("phones");
    let mut given = 0;
    let phones = fields.objects("phones", limits::PHONES_PER_HOST_MAX, |phone| {
        given += 1;
        let number: Option<E164> = phone.required_parsed("number", "invalid_number");
        let label = phone.line("label", 1..=NAME_CHARS_MAX);
        let channels = phone.channels("channels", "There is no such channel.");
        let standby = phone.boolean("standby").unwrap_or(false);
        let sandbox = phone.boolean("sandbox").unwrap_or(false);
        Some(EnrolPhone { number: number?, label, channels, standby, sandbox })
    })?;
    if given == 0 {
        fields.wrong("phones", "too_few", "A host serves at least one phone.");
    }
    let mut numbers: Vec<&E164> = phones.iter().map(|phone| &phone.number).collect();
    numbers.sort_unstable();
    if numbers.windows(2).any(|pair| pair.first() == pair.last()) {
        fields.wrong("phones", "repeated", "A number is given twice.");
    }
    Some(phones)
}

/// List hosts, newest first
#[utoipa::path(get, path = "/v1/admin/hosts", tag = "operator", security(("admin_token" = [])),
    params(
        ("limit" = Option<u32>, Query, description = "Rows, 1 to 100; 50 when left out."),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before.")),
    responses(
        (status = 200, description = "A page.", body = Page<Host>),
        (status = 401, description = "Not the operator's token.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn list(
    State(app): State<AppState>,
    RawQuery(raw): RawQuery,
) -> Result<Response, ApiError> {
    let asked = window(raw.as_deref())?;
    let (after, limit) = (asked.after_id::<HostId>()?, asked.limit);
    let mut rows = app.store.read(move |tx| admin::list_hosts(tx, after.as_deref(), limit)).await?;
    for host in &mut rows {
        host.tunnel = app.links.tunnel(&host.id);
    }
    Ok(json(StatusCode::OK, &page(rows, limit, |host| host.id.to_string())))
}

/// List phones, newest first
#[utoipa::path(get, path = "/v1/admin/phones", tag = "operator", security(("admin_token" = [])),
    params(
        ("limit" = Option<u32>, Query, description = "Rows, 1 to 100; 50 when left out."),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before.")),
    responses(
        (status = 200, description = "A page.", body = Page<Phone>),
        (status = 401, description = "Not the operator's token.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn phones(
    State(app): State<AppState>,
    RawQuery(raw): RawQuery,
) -> Result<Response, ApiError> {
    let asked = window(raw.as_deref())?;
    let (after, limit) = (asked.after_id::<PhoneId>()?, asked.limit);
    let now = app.clock.now();
    let rows =
        app.store.read(move |tx| admin::list_phones(tx, after.as_deref(), limit, now)).await?;
    Ok(json(StatusCode::OK, &page(rows, limit, |phone| phone.id.to_string())))
}
