//! How phones change hands by the operator's wish: to another host, or to another number.

use std::sync::{Arc, Mutex, PoisonError};

use axum::Extension;
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use protocol::api::{AuditEntry, FailOver, FailedOver, Problem, ReplacePhone, ReplacedPhone};
use protocol::link::RouterFrame;
use protocol::{EventId, HostId, PhoneId, UnixMs};
use serde_json::Value;

use super::fields::Fields;
use super::{JsonBody, OptionalJsonBody, PathId};
use crate::auth::Peer;
use crate::error::{ApiError, Code, RequestId};
use crate::idempotency::{self, Post, Reply};
use crate::lease::Policy;
use crate::server::{App, AppState};
use crate::store::standby::{self, Begun, CannotReplace};
use crate::store::{Tx, audit};
use crate::{clock, network};

/// Hand a phone over to another host
///
/// The host that serves it gives back what it has not started, and the other one sends as soon as no script runs any
/// more: well under a second. A host that is gone is waited for until its lease is over for the grace.
/// A phone whose account counts as blocked stays where it is, unless `despite_block` says otherwise.
#[utoipa::path(post, path = "/v1/admin/phones/{id}/failover", tag = "operator",
    request_body = Option<FailOver>, security(("admin_token" = [])),
    params(("id" = String, Path, description = "The phone's id.")),
    responses(
        (status = 202, description = "Begun; `GET /v1/admin/phones` shows when it is done.", body = FailedOver),
        (status = 401, description = "Not the operator's token.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such phone.", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "No host can take it over.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn phone(
    State(app): State<AppState>,
    headers: HeaderMap,
    PathId(id): PathId<PhoneId>,
    Extension(RequestId(request_id)): Extension<RequestId>,
    peer: Option<Extension<ConnectInfo<Peer>>>,
    OptionalJsonBody(body): OptionalJsonBody,
) -> Result<Response, ApiError> {
    const ROUTE: &str = "POST /v1/admin/phones/{id}/failover";
    let route = format!("POST /v1/admin/phones/{id}/failover");
    let post = Post::new("operator".to_owned(), route, &headers, &body)?;
    let now = app.clock.now();
    let address = peer.and_then(|Extension(ConnectInfo(Peer(peer)))| {
        network::caller(peer, &headers, &app.config.trusted_proxies)
    });
    let entry = AuditEntry {
        id: EventId::new(now.0, clock::random()),
        at: now,
        tenant: None,
        action: format!("{ROUTE} despite_block"),
        target: format!("/v1/admin/phones/{id}/failover"),
        address: address.map(|address| address.to_string()),
        request_id,
        status: None,
    };
    begin(&app, post, asked(body, Of::Phone), move |tx, policy, ask| {
        let begun =
            standby::hand_over(tx, policy, &id, &ask, now)?.ok_or_else(ApiError::not_found)?;
        if let Some(why) = begun.told.refused {
            return Err(ApiError::new(Code::CannotFailOver).detail(why.meaning().to_owned()));
        }
        if begun.blocked {
            tracing::warn!(phone = %id, "the operator hands a phone over whose account counts as blocked");
            audit::begin(tx, None, &entry)?;
            audit::end(tx, None, &entry.id, StatusCode::ACCEPTED.as_u16())?;
        }
        Ok(vec![begun])
    })
    .await
}

/// Hand every phone of a host over to another one
#[utoipa::path(post, path = "/v1/admin/hosts/{id}/failover", tag = "operator",
    request_body = Option<FailOver>, security(("admin_token" = [])),
    params(("id" = String, Path, description = "The host's id.")),
    responses(
        (status = 202, description = "Begun for each phone that another host can take.", body = FailedOver),
        (status = 401, description = "Not the operator's token.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such host.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn host(
    State(app): State<AppState>,
    headers: HeaderMap,
    PathId(id): PathId<HostId>,
    OptionalJsonBody(body): OptionalJsonBody,
) -> Result<Response, ApiError> {
    let route = format!("POST /v1/admin/hosts/{id}/failover");
    let post = Post::new("operator".to_owned(), route, &headers, &body)?;
    let now = app.clock.now();
    begin(&app, post, asked(body, Of::Host), move |tx, policy, ask| {
        if !standby::host_exists(tx, &id)? {
            return Err(ApiError::not_found());
        }
        all_of(tx, policy, (&id, &ask), now)
    })
    .await
}

/// Drain a host
///
/// It finishes what is started and is given nothing new; each of its phones that another host can serve is handed over,
/// also later, when such a host comes. `POST /v1/admin/hosts/{id}/undrain` ends it.
#[utoipa::path(post, path = "/v1/admin/hosts/{id}/drain", tag = "operator",
    security(("admin_token" = [])),
    params(("id" = String, Path, description = "The host's id.")),
    responses(
        (status = 202, description = "Begun.", body = FailedOver),
        (status = 401, description = "Not the operator's token.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such host.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn drain(
    State(app): State<AppState>,
    headers: HeaderMap,
    PathId(id): PathId<HostId>,
) -> Result<Response, ApiError> {
    let route = format!("POST /v1/admin/hosts/{id}/drain");
    let post = Post::new("operator".to_owned(), route, &headers, &Value::Null)?;
    let now = app.clock.now();
    let ask = FailOver { to: None, force: false, despite_block: false };
    begin(&app, post, Ok(ask), move |tx, policy, ask| {
        if !standby::drain(tx, &id, true, now)? {
            return Err(ApiError::not_found());
        }
        all_of(tx, policy, (&id, &ask), now)
    })
    .await
}

/// Give a drained host work again
///
/// Phones that were handed over stay where they are.
#[utoipa::path(post, path = "/v1/admin/hosts/{id}/undrain", tag = "operator",
    security(("admin_token" = [])),
    params(("id" = String, Path, description = "The host's id.")),
    responses(
        (status = 202, description = "Done; no phone was moved.", body = FailedOver),
        (status = 401, description = "Not the operator's token.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such host.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn undrain(
    State(app): State<AppState>,
    headers: HeaderMap,
    PathId(id): PathId<HostId>,
) -> Result<Response, ApiError> {
    let route = format!("POST /v1/admin/hosts/{id}/undrain");
    let post = Post::new("operator".to_owned(), route, &headers, &Value::Null)?;
    let now = app.clock.now();
    let response = idempotency::post(&app, post, Ok(()), move |tx, ()| {
        if !standby::drain(tx, &id, false, now)? {
            return Err(ApiError::not_found());
        }
        Reply::new(StatusCode::ACCEPTED, &told(&[]))
    })
    .await?;
    crate::dispatch::phone_became_able(&app).await?;
    Ok(response)
}

/// Put another phone into a phone's place
///
/// For a number that is gone. What is reserved for a tenant, conversations and waiting messages go on on the other
/// phone, also where they asked for the old number; the phone itself gets nothing any more. Its own id in `by` undoes
/// that; conversations then stay on both.
#[utoipa::path(post, path = "/v1/admin/phones/{id}/replace", tag = "operator",
    request_body = ReplacePhone, security(("admin_token" = [])),
    params(("id" = String, Path, description = "The phone's id.")),
    responses(
        (status = 200, description = "Done.", body = ReplacedPhone),
        (status = 401, description = "Not the operator's token.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such phone.", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "The other phone cannot take its place.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Fields are wrong.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn replace(
    State(app): State<AppState>,
    headers: HeaderMap,
    PathId(id): PathId<PhoneId>,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let route = format!("POST /v1/admin/phones/{id}/replace");
    let post = Post::new("operator".to_owned(), route, &headers, &body)?;
    let now = app.clock.now();
    let response = idempotency::post(&app, post, successor(body), move |tx, by| {
        let refused = |code: Code, detail: &str| Err(ApiError::new(code).detail(detail.to_owned()));
        match standby::replace(tx, &id, &by, now)? {
            Ok(moved) => {
                tracing::warn!(phone = %id, by = %by, conversations = moved.conversations, "a phone is replaced by another one");
                Reply::new(StatusCode::OK, &moved)
            }
            Err(CannotReplace::NoPhone) => Err(ApiError::not_found()),
            Err(CannotReplace::NoSuccessor) => {
                refused(Code::CannotFailOver, "There is no phone of the id in `by`.")
            }
            Err(CannotReplace::SuccessorReplaced) => refused(
                Code::CannotFailOver,
                "The phone in `by` is itself replaced by another one.",
            ),
            Err(CannotReplace::OtherKind) => refused(
                Code::CannotFailOver,
                "One of the two phones is of the sandbox and the other is not.",
            ),
            Err(CannotReplace::OtherTenant) => refused(
                Code::CannotFailOver,
                "The phone in `by` is reserved for another tenant.",
            ),
        }
    })
    .await?;
    crate::dispatch::phone_became_able(&app).await?;
    Ok(response)
}

/// What is asked to be handed over.
#[derive(Clone, Copy)]
enum Of {
    Phone,
    Host,
}

fn asked(body: Value, of: Of) -> Result<FailOver, ApiError> {
    let mut fields = Fields::new(body)?;
    let to: Option<HostId> = fields.parsed("to", "invalid_id");
    let force = fields.boolean("force").unwrap_or(false);
    // A blocked account is moved on purpose or not at all: one phone at a time.
    let despite_block = match of {
        Of::Phone => fields.boolean("despite_block").unwrap_or(false),
        Of::Host => false,
    };
    fields.finish()?;
    Ok(FailOver { to, force, despite_block })
}

fn successor(body: Value) -> Result<PhoneId, ApiError> {
    let mut fields = Fields::new(body)?;
    let by: Option<PhoneId> = fields.required_parsed("by", "invalid_id");
    let Some(by) = by else { return Err(fields.refuse()) };
    fields.finish()?;
    Ok(by)
}

/// Begins hand-overs in one transaction with their answer, and lets them happen once that is on disk.
async fn begin(
    app: &AppState,
    post: Post,
    checked: Result<FailOver, ApiError>,
    work: impl FnOnce(&mut Tx<'_>, Policy, FailOver) -> Result<Vec<Begun>, ApiError> + Send + 'static,
) -> Result<Response, ApiError> {
    let policy = app.lease_policy();
    let begins = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&begins);
    let response = idempotency::post(app, post, checked, move |tx, ask| {
        let begun = work(tx, policy, ask)?;
        let reply = Reply::new(StatusCode::ACCEPTED, &told(&begun))?;
        *kept.lock().unwrap_or_else(PoisonError::into_inner) = begun;
        Ok(reply)
    })
    .await?;
    let begun = std::mem::take(&mut *begins.lock().unwrap_or_else(PoisonError::into_inner));
    carry_out(app, begun);
    Ok(response)
}

fn all_of(
    tx: &mut Tx<'_>,
    policy: Policy,
    (host, ask): (&HostId, &FailOver),
    now: UnixMs,
) -> Result<Vec<Begun>, ApiError> {
    let mut begun = Vec::new();
    for phone in standby::served_by(tx, host)? {
        begun.extend(standby::hand_over(tx, policy, &phone, ask, now)?);
    }
    Ok(begun)
}

fn told(begun: &[Begun]) -> FailedOver {
    FailedOver { phones: begun.iter().map(|one| one.told.clone()).collect() }
}

/// After the commit: the serving hosts are asked to release, and the heirs to ask. What gets lost here is made up for by
/// the next renewal of either.
fn carry_out(app: &App, begun: Vec<Begun>) {
    for one in begun {
        let Some(heir) = one.told.to else { continue };
        tracing::warn!(phone = %one.told.phone, from = ?one.told.from, to = %heir, "the operator hands a phone over");
        if let (Some(from), Some(epoch)) = (one.told.from, one.epoch) {
            let frame = RouterFrame::Release { phone: one.told.phone, epoch };
            if let Err(why) = app.links.send(&from, frame) {
                tracing::info!(host = %from, why = %why, "the host is not asked to release: its lease is waited for");
            }
        }
        app.links.may_be_free(&heir);
    }
}
