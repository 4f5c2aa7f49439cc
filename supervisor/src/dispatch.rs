//! The local dispatch API: what a program or a person on this Mac may see and ask.
//!
//! It listens on the loopback interface only. Everything under `/v1` wants the bearer token from a private file; the
//! probes and the metrics do not, because they tell nothing about anybody's messages.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::handler::Handler;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use axum::{Json, Router};
use data_encoding::HEXLOWER;
use futures_util::stream::{self, Stream};
use metrics_exporter_prometheus::PrometheusHandle;
use protocol::api::{FieldError, Problem};
use protocol::link::{HostMessagesApp, HostNetwork, HostPower, PATH, PhoneState};
use protocol::pipe::{Attempt, Command};
use protocol::{E164, PhoneId};
use router_client::clock::{continuous_now, wall_now};
use router_client::doctor;
use router_client::link::LinkStats;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, watch};
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;

use crate::access;
use crate::canary;
use crate::cloudflared;
use crate::dialled::Door;
use crate::doctor::Tools;
use crate::gauges;
use crate::identity::random;
use crate::logs::LogLine;
use crate::phone::{Order, Report};
use crate::pool::{Ask, Handle, NotTaken, Pool, chain};
use crate::reload::{ReloadError, Reloaded, Reloader};
use crate::stream::{Item, Missed};
use crate::switchboard::{LinkState, Machine};

mod document;
mod message;

/// Largest request body: a text of the largest size, escaped, with room to spare.
const BODY_BYTES_MAX: usize = 1024 * 1024;
/// How long a request to send waits for the bridge's first word.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Listeners to events at one time: each costs a connection and a place in a queue.
const LISTENERS_MAX: usize = 64;
/// A comment keeps idle streams open, and shows a dead listener.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// What the handlers work with.
#[derive(Debug, Clone)]
pub(crate) struct Dispatch {
    /// The phones.
    pub(crate) pool: Pool,
    /// Takes a changed configuration.
    pub(crate) reloader: Reloader,
    /// How the link stands.
    pub(crate) link: watch::Receiver<LinkState>,
    /// Counts of the link.
    pub(crate) stats: Option<Arc<LinkStats>>,
    /// What is known of the machine.
    pub(crate) machine: Machine,
    /// The token that `/v1` wants.
    pub(crate) token: Arc<SecretString>,
    /// Renders the metrics.
    pub(crate) metrics: PrometheusHandle,
    /// Cancelled when streams must end.
    pub(crate) closing: CancellationToken,
    /// Where a router comes in that dials this host.
    door: Option<Arc<Door>>,
    listeners: Arc<Semaphore>,
    /// One doctor at a time: each may put a question on the screen.
    examining: Arc<tokio::sync::Mutex<()>>,
}

impl Dispatch {
    /// Everything but the places for listeners, which are made here.
    pub(crate) fn new(
        (pool, reloader): (Pool, Reloader),
        link: (watch::Receiver<LinkState>, Option<Arc<LinkStats>>, Option<Arc<Door>>),
        machine: Machine,
        token: SecretString,
        metrics: PrometheusHandle,
        closing: CancellationToken,
    ) -> Self {
        let (link, stats, door) = link;
        Self {
            pool,
            reloader,
            link,
            stats,
            machine,
            token: Arc::new(token),
            metrics,
            closing,
            door,
            listeners: Arc::new(Semaphore::new(LISTENERS_MAX)),
            examining: Arc::default(),
        }
    }
}

/// A method, a path, and who answers there.
type Route = (&'static str, &'static str, MethodRouter<Dispatch>);

fn ask<H: Handler<T, Dispatch>, T: 'static>(path: &'static str, handler: H) -> Route {
    ("get", path, get(handler))
}

fn tell<H: Handler<T, Dispatch>, T: 'static>(path: &'static str, handler: H) -> Route {
    ("post", path, post(handler))
}

fn with(router: Router<Dispatch>, routes: impl IntoIterator<Item = Route>) -> Router<Dispatch> {
    routes.into_iter().fold(router, |router, (_, path, route)| router.route(path, route))
}

/// What wants the token, below `/v1`.
fn guarded() -> [Route; 14] {
    [
        ask("/phones", phones),
        ask("/phones/{id}", phone),
        tell("/phones/{id}/messages", send),
        ask("/phones/{id}/events", events),
        ask("/phones/{id}/log", log),
        tell("/phones/{id}/start", start),
        tell("/phones/{id}/stop", stop),
        tell("/phones/{id}/restart", restart),
        tell("/phones/{id}/drain", drain),
        tell("/phones/{id}/block", block),
        tell("/phones/{id}/unblock", unblock),
        tell("/reload", reload),
        ask("/host", host),
        ask("/doctor", examine),
    ]
}

/// What does not, or asks for it itself.
fn open() -> [Route; 5] {
    [
        ask("/healthz", healthz),
        ask("/readyz", readyz),
        ask("/metrics", metrics),
        ask("/openapi.json", document::serve),
        // Before the token is asked for: a router that dials has a signature instead.
        ask(PATH, link),
    ]
}

/// All routes.
pub(crate) fn routes(dispatch: Dispatch) -> Router {
    let v1 = with(Router::new(), guarded())
        .fallback(not_found)
        .layer(middleware::from_fn_with_state(dispatch.clone(), authorise));
    with(Router::new(), open())
        .nest("/v1", v1)
        .fallback(not_found)
        .method_not_allowed_fallback(not_allowed)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn(only_public))
        .layer(middleware::from_fn(finish))
        .with_state(dispatch)
}

/// An error on its way out; the outermost layer gives it its request id and its body.
#[derive(Debug, Clone)]
struct Failure(Box<Problem>);

impl Failure {
    fn new(status: StatusCode, code: &str, detail: impl Into<String>) -> Self {
        Self(Box::new(Problem {
            // The form of the router's problems, so that one reader understands both.
            kind: format!("urn:switchboard:problem:{code}"),
            title: status.canonical_reason().unwrap_or("Error").to_owned(),
            status: status.as_u16(),
            detail: Some(detail.into()),
            code: code.to_owned(),
            request_id: None,
            errors: Vec::new(),
            resets_at: None,
        }))
    }

    fn fields(errors: Vec<FieldError>) -> Self {
        let mut failure = Self::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "invalid",
            "fields of the body are wrong; see errors",
        );
        failure.0.errors = errors;
        failure
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<NotTaken> for Failure {
    fn from(not_taken: NotTaken) -> Self {
        let code = match not_taken {
            NotTaken::Busy => "busy",
            NotTaken::Gone => "stopping",
        };
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, not_taken.to_string())
    }
}

/// Gives every response a request id, and every failure its body.
async fn finish(request: Request, next: Next) -> Response {
    // Without randomness the id is the same for all requests, which is no reason to refuse them.
    let id = random::<8>().map(|bytes| HEXLOWER.encode(&bytes)).unwrap_or_default();
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let mut response = next.run(request).await;
    if let Some(Failure(mut problem)) = response.extensions_mut().remove::<Failure>() {
        tracing::debug!(%method, path, status = problem.status, code = problem.code, request_id = id, "refused");
        problem.request_id = Some(id.clone());
        let retry = problem.status == StatusCode::SERVICE_UNAVAILABLE.as_u16();
        let status = response.status();
        let mut headers = std::mem::take(response.headers_mut());
        response = (status, Json(problem)).into_response();
        headers.remove(header::CONTENT_LENGTH);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if retry {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
        }
        response.headers_mut().extend(headers);
    }
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert("x-request-id", id);
    }
    response
}

fn panicked(_: Box<dyn std::any::Any + Send>) -> Response {
    Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the request could not be handled")
        .into_response()
}

async fn not_found() -> Failure {
    Failure::new(StatusCode::NOT_FOUND, "not_found", "there is nothing at this path")
}

async fn not_allowed() -> Failure {
    Failure::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        "this path does not take this method",
    )
}

/// Lets a request pass that carries the token.
async fn authorise(State(dispatch): State<Dispatch>, request: Request, next: Next) -> Response {
    match authorised(&dispatch, request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refused) => refused,
    }
}

/// What Cloudflare adds to every request that comes through it (facts: 6.4).
const THROUGH_CLOUDFLARE: [&str; 3] = ["cf-ray", "cf-connecting-ip", access::HEADER];

/// A tunnel leads the whole internet here. What is not meant for it is not there, whatever rules the tunnel has.
async fn only_public(request: Request, next: Next) -> Response {
    let came = THROUGH_CLOUDFLARE.iter().any(|name| request.headers().contains_key(*name));
    let public = match request.uri().path() {
        "/healthz" => true,
        PATH => request.headers().contains_key(header::UPGRADE),
        _ => false,
    };
    if came && !public { not_found().await.into_response() } else { next.run(request).await }
}

#[expect(clippy::result_large_err, reason = "it is the answer, made once a request")]
fn authorised(dispatch: &Dispatch, headers: &HeaderMap) -> Result<(), Response> {
    let given = headers
        .get(header::AUTHORIZATION)
        .map(HeaderValue::as_bytes)
        .and_then(|value| value.split_at_checked(b"Bearer ".len()))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"Bearer "))
        .map(|(_, token)| token)
        .unwrap_or_default();
    if verify_slices_are_equal(given, dispatch.token.expose_secret().as_bytes()).is_ok() {
        return Ok(());
    }
    let mut response = Failure::new(
        StatusCode::UNAUTHORIZED,
        "unauthorised",
        "needs `Authorization: Bearer TOKEN` with the token of the dispatch token file",
    )
    .into_response();
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    Err(response)
}

#[derive(Debug, Serialize)]
struct Health {
    status: &'static str,
}

async fn healthz() -> Json<Health> {
    Json(Health { status: "ok" })
}

#[derive(Debug, Serialize)]
struct Readiness {
    ready: bool,
    link: LinkState,
    phones: Vec<PhoneReadiness>,
}

#[derive(Debug, Serialize)]
struct PhoneReadiness {
    id: PhoneId,
    state: PhoneState,
}

/// Ready: every phone can send, and the router (if there is one) is there.
async fn readyz(State(dispatch): State<Dispatch>) -> Response {
    let link = *dispatch.link.borrow();
    let phones: Vec<PhoneReadiness> = dispatch
        .pool
        .iter()
        .map(|phone| PhoneReadiness { id: phone.id.clone(), state: phone.report().state })
        .collect();
    let ready = link != LinkState::Disconnected
        && phones.iter().all(|phone| phone.state == PhoneState::Ready);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Readiness { ready, link, phones })).into_response()
}

async fn metrics(State(dispatch): State<Dispatch>) -> Response {
    if let Some(stats) = &dispatch.stats {
        metrics::gauge!("switchboard_link_up").set(if stats.is_connected() { 1.0 } else { 0.0 });
        metrics::counter!("switchboard_link_sessions_total").absolute(stats.sessions());
        metrics::counter!("switchboard_link_events_forwarded_total").absolute(stats.forwarded());
        metrics::counter!("switchboard_link_events_dropped_total").absolute(stats.dropped());
        metrics::counter!("switchboard_link_frames_refused_total").absolute(stats.refused());
        if let Some(ms) = stats.rtt_ms() {
            metrics::gauge!("switchboard_link_rtt_seconds")
                .set(Duration::from_millis(ms).as_secs_f64());
        }
    }
    for phone in dispatch.pool.iter() {
        let report = phone.report();
        gauges::set(phone.id.as_str(), report.heartbeat.as_ref(), wall_now());
        gauges::set_standing(phone.id.as_str(), report.state, phone.lease(), continuous_now());
    }
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (kind, dispatch.metrics.render()).into_response()
}

/// A phone, as the API shows it.
#[derive(Debug, Serialize)]
struct PhoneView {
    id: PhoneId,
    number: E164,
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<String>,
    #[serde(flatten)]
    report: Report,
    /// The epoch of the lease that it holds now.
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<u64>,
    /// How long ago the last message came in; null where that is not known.
    last_inbound_age_s: Option<u64>,
}

fn view(handle: &Handle) -> PhoneView {
    let report = handle.report();
    let last_inbound = report.heartbeat.as_ref().and_then(|beat| beat.last_inbound);
    PhoneView {
        id: handle.id.clone(),
        number: handle.config.number.clone(),
        label: handle.config.label.clone(),
        report,
        epoch: handle.lease().map(|lease| lease.epoch),
        last_inbound_age_s: gauges::age_s(last_inbound, wall_now()),
    }
}

#[derive(Debug, Serialize)]
struct List<T> {
    data: Vec<T>,
}

fn find(dispatch: &Dispatch, id: &str) -> Result<Handle, Failure> {
    id.parse::<PhoneId>().ok().and_then(|id| dispatch.pool.get(&id)).ok_or_else(|| {
        Failure::new(StatusCode::NOT_FOUND, "phone_not_found", "this host has no such phone")
    })
}

async fn phones(State(dispatch): State<Dispatch>) -> Json<List<PhoneView>> {
    Json(List { data: dispatch.pool.iter().map(|handle| view(&handle)).collect() })
}

async fn phone(
    State(dispatch): State<Dispatch>,
    Path(id): Path<String>,
) -> Result<Json<PhoneView>, Failure> {
    Ok(Json(view(&find(&dispatch, &id)?)))
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct LogQuery {
    /// Only lines with a higher number.
    #[serde(default)]
    after: u64,
}

async fn log(
    State(dispatch): State<Dispatch>,
    Path(id): Path<String>,
    query: Result<Query<LogQuery>, QueryRejection>,
) -> Result<Json<List<LogLine>>, Failure> {
    let Query(LogQuery { after }) = query.map_err(|rejected| {
        Failure::new(StatusCode::BAD_REQUEST, "bad_query", rejected.body_text())
    })?;
    Ok(Json(List { data: find(&dispatch, &id)?.logs(after) }))
}

/// Takes the configuration file anew. Answers when bridges that had to stop have ended.
async fn reload(State(dispatch): State<Dispatch>) -> Result<Json<Reloaded>, Failure> {
    dispatch.reloader.reload().await.map(Json).map_err(|error| {
        let (status, code) = match &error {
            ReloadError::Config(_) => (StatusCode::UNPROCESSABLE_ENTITY, "invalid_configuration"),
            ReloadError::Identity(_) => (StatusCode::CONFLICT, "phones_unknown"),
            ReloadError::Stopping => (StatusCode::SERVICE_UNAVAILABLE, "stopping"),
        };
        Failure::new(status, code, chain(&error))
    })
}

#[derive(Debug, Serialize)]
struct LinkView {
    state: LinkState,
    /// Why it is down, for people; null while it is up, and before it was first tried.
    why: Option<String>,
}

/// How the link stands, for whoever has the token; or the link itself, for a router that dials.
async fn link(
    State(dispatch): State<Dispatch>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    if let (Some(door), Ok(upgrade)) = (&dispatch.door, upgrade) {
        return match door.open(&headers, upgrade).await {
            Ok(response) => response,
            Err(status) => {
                let code = match status {
                    StatusCode::UNAUTHORIZED => "unauthorised",
                    StatusCode::FORBIDDEN => "forbidden",
                    _ => "unavailable",
                };
                Failure::new(status, code, "this host does not take the link").into_response()
            }
        };
    }
    if let Err(refused) = authorised(&dispatch, &headers) {
        return refused;
    }
    let why = dispatch.stats.as_ref().and_then(|stats| stats.down());
    Json(LinkView { state: *dispatch.link.borrow(), why }).into_response()
}

#[derive(Debug, Serialize)]
struct HostView {
    version: &'static str,
    restarts: u64,
    /// What it runs on; null where that is not watched.
    power: Option<HostPower>,
    /// Its ways to the internet; null where they are not watched.
    network: Option<HostNetwork>,
    /// How its Messages is; null where nobody keeps it.
    messages_app: Option<HostMessagesApp>,
    /// How its tunnel to Cloudflare is; null where none is run.
    cloudflared: Option<cloudflared::Standing>,
    /// Pairs of phones that write to each other to see that both work.
    canaries: Vec<canary::Standing>,
}

async fn host(State(dispatch): State<Dispatch>) -> Json<HostView> {
    let canaries = dispatch.machine.canaries.borrow().clone();
    Json(HostView {
        version: env!("CARGO_PKG_VERSION"),
        restarts: dispatch.pool.restarts(),
        power: dispatch.machine.power.borrow().clone(),
        network: dispatch.machine.network.borrow().clone(),
        messages_app: dispatch.machine.messages_app.borrow().clone(),
        cloudflared: dispatch.machine.cloudflared.borrow().clone(),
        canaries: canaries.iter().map(|pair| pair.borrow().clone()).collect(),
    })
}

/// Looks at everything from here, with the permissions of the supervisor that launchd runs.
async fn examine(State(dispatch): State<Dispatch>) -> Json<doctor::Report> {
    let _alone = dispatch.examining.lock().await;
    let config = dispatch.reloader.running().await;
    Json(crate::doctor::examine(&config, &Tools::System).await)
}

type Ordered = Result<(StatusCode, Json<PhoneView>), Failure>;

fn order(dispatch: &Dispatch, id: &str, order: Order) -> Ordered {
    let handle = find(dispatch, id)?;
    tracing::info!(phone = %handle.id, ?order, "ordered through the dispatch API");
    handle.ask(Ask::Order(order))?;
    Ok((StatusCode::ACCEPTED, Json(view(&handle))))
}

async fn start(State(dispatch): State<Dispatch>, Path(id): Path<String>) -> Ordered {
    order(&dispatch, &id, Order::Start)
}

async fn stop(State(dispatch): State<Dispatch>, Path(id): Path<String>) -> Ordered {
    order(&dispatch, &id, Order::Stop)
}

async fn restart(State(dispatch): State<Dispatch>, Path(id): Path<String>) -> Ordered {
    order(&dispatch, &id, Order::Restart)
}

async fn drain(State(dispatch): State<Dispatch>, Path(id): Path<String>) -> Ordered {
    order(&dispatch, &id, Order::Drain)
}

/// Has the bridge keep that the account is blocked, or no longer. Only a bridge that runs can keep it.
fn say_blocked(dispatch: &Dispatch, id: &str, blocked: bool) -> Ordered {
    let handle = find(dispatch, id)?;
    let report = handle.report();
    if !report.takes_commands() {
        return Err(Failure::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "bridge_not_running",
            format!("the phone's bridge is {}, and only it can keep that", report.state.as_str()),
        ));
    }
    tracing::warn!(phone = %handle.id, blocked, "said through the dispatch API");
    handle.ask(Ask::Command(Command::Block { blocked }))?;
    Ok((StatusCode::ACCEPTED, Json(view(&handle))))
}

async fn block(State(dispatch): State<Dispatch>, Path(id): Path<String>) -> Ordered {
    say_blocked(&dispatch, &id, true)
}

async fn unblock(State(dispatch): State<Dispatch>, Path(id): Path<String>) -> Ordered {
    say_blocked(&dispatch, &id, false)
}

/// The bridge's first word about an attempt.
#[derive(Debug, Serialize)]
struct FirstWord {
    phone: PhoneId,
    #[serde(flatten)]
    attempt: Attempt,
    /// The type of the first event, or `pending` when there was none in time.
    answer: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<Box<RawValue>>,
}

async fn send(
    State(dispatch): State<Dispatch>,
    Path(id): Path<String>,
    body: Result<Bytes, BytesRejection>,
) -> Result<(StatusCode, Json<FirstWord>), Failure> {
    let handle = find(&dispatch, &id)?;
    let body = body.map_err(|rejection| {
        let status = rejection.status();
        let code = if status == StatusCode::PAYLOAD_TOO_LARGE { "too_large" } else { "unreadable" };
        Failure::new(status, code, rejection.body_text())
    })?;
    let object = message::object(&body)
        .map_err(|detail| Failure::new(StatusCode::BAD_REQUEST, "malformed", detail))?;
    let epochs = message::Epochs {
        held: handle.lease().map(|lease| lease.epoch),
        newest: handle.newest_epoch(),
    };
    let chance = random::<10>().map_err(|error| {
        Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", error.to_string())
    })?;
    let send =
        message::check(object, epochs, wall_now(), chance).map_err(|refused| match refused {
            message::Refused::Fields(errors) => Failure::fields(errors),
            message::Refused::NoLease => Failure::new(
                StatusCode::CONFLICT,
                "no_lease",
                "this host holds no lease for the phone, so there is no epoch to send under",
            ),
        })?;
    let report = handle.report();
    if report.power_low() {
        return Err(Failure::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "power_low",
            "this host's battery is nearly empty; it takes new work again on mains",
        ));
    }
    if !report.takes_commands() {
        return Err(Failure::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "bridge_not_running",
            format!("the phone's bridge is {}", report.state.as_str()),
        ));
    }
    let attempt = Attempt { message: send.message.clone(), attempt: send.attempt };
    // Listening starts before asking, so that the answer cannot be missed.
    let listener = handle.stream.listen();
    handle.ask(Ask::Command(Command::Send(send)))?;
    let item = tokio::time::timeout(ANSWER_WITHIN, answer_to(&attempt, listener)).await;
    let (answer, event) = match item {
        Ok(Some(item)) => (item.kind, RawValue::from_string(item.json.clone()).ok()),
        Ok(None) | Err(_) => ("pending", None),
    };
    Ok((StatusCode::ACCEPTED, Json(FirstWord { phone: handle.id.clone(), attempt, answer, event })))
}

/// The first event about an attempt.
async fn answer_to(
    attempt: &Attempt,
    mut listener: broadcast::Receiver<Arc<Item>>,
) -> Option<Arc<Item>> {
    loop {
        match listener.recv().await {
            Ok(item) if item.attempt.as_ref() == Some(attempt) => return Some(item),
            Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => return None,
        }
    }
}

/// Where one listener stands.
struct Listening {
    /// What it has missed, before what is new.
    first: VecDeque<Event>,
    items: broadcast::Receiver<Arc<Item>>,
    closing: CancellationToken,
    _place: OwnedSemaphorePermit,
}

/// What a listener is told when it has missed events.
#[derive(Debug, Serialize)]
struct Lagged {
    /// How many, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    missed: Option<u64>,
}

fn lagged(missed: Option<u64>) -> Event {
    let data = serde_json::to_string(&Lagged { missed }).unwrap_or_default();
    Event::default().event("lagged").data(data)
}

fn event(item: &Item) -> Event {
    // JSON has no raw newlines, so this is always one line.
    Event::default().id(item.id()).event(item.kind).data(&item.json)
}

async fn events(
    State(dispatch): State<Dispatch>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Failure> {
    let handle = find(&dispatch, &id)?;
    let place = Arc::clone(&dispatch.listeners).try_acquire_owned().map_err(|error| {
        tracing::debug!(%error, "no place for a listener");
        Failure::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "too_many_listeners",
            format!("{LISTENERS_MAX} listeners are served at one time"),
        )
    })?;
    let last = headers.get("last-event-id").and_then(|value| value.to_str().ok());
    let (first, items) = match last {
        None => (VecDeque::new(), handle.stream.listen()),
        Some(last) => {
            let (missed, items) = handle.stream.listen_after(last);
            let first = match missed {
                Missed::All(items) => items.iter().map(|item| event(item)).collect(),
                Missed::Some(items) => std::iter::once(lagged(None))
                    .chain(items.iter().map(|item| event(item)))
                    .collect(),
            };
            (first, items)
        }
    };
    let listening = Listening { first, items, closing: dispatch.closing.clone(), _place: place };
    let events = stream::unfold(listening, |mut listening| async move {
        if let Some(event) = listening.first.pop_front() {
            return Some((Ok(event), listening));
        }
        loop {
            let item = tokio::select! {
                () = listening.closing.cancelled() => return None,
                item = listening.items.recv() => item,
            };
            match item {
                // A listener has seen what is repeated; the repetition is for the router.
                Ok(item) if item.repeat => {}
                Ok(item) => return Some((Ok(event(&item)), listening)),
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    return Some((Ok(lagged(Some(missed))), listening));
                }
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}
