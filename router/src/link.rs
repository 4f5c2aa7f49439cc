//! The router's end of the link: one WebSocket per host, one owner task per session.
//!
//! ```text
//! socket ──frames──▶ session (owner) ──▶ store ──▶ answers ──┐
//!                        dispatch ──────▶ commands ──────────┴▶ writer ──▶ socket
//! ```
//!
//! A request is let in by its signature ([`auth`]). Hosts that cannot be reached otherwise are dialled ([`dial`]), with the
//! same session after it. The owner reads frames in the order they come, takes runs of events
//! to the store in one go, and answers only after the commit. A writer of its own gives every write ten seconds. The
//! registry [`Links`] knows the one live session of each host: a newer one ends the older.

mod dial;
mod session;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::State;
use axum::extract::ws::WebSocketUpgrade;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use protocol::api::{PROBLEM_JSON, Problem};
use protocol::limits::FRAME_BYTES_MAX;
use protocol::link::{
    CLOCK_SKEW, CanaryAsk, HostTunnel, PATH, PROBLEM_HEADER, PhoneReport, RouterFrame,
};
use protocol::{HostId, MessageId, PhoneId};
use router_client::auth;
use tokio::sync::{Notify, mpsc, watch};

use crate::server::AppState;

/// Frames waiting to be written to one host. A host's phones have at most some dozens of attempts each; what does not
/// fit is offered again later.
const OUTBOX_FRAMES: usize = 1_024;

/// What a socket may hold back from the network before a write fails: a few frames of the largest size.
const WRITE_BUFFER_BYTES_MAX: usize = 4 * FRAME_BYTES_MAX;

/// Canaries that a host may be waiting for at one time: one for each pair of phones, and a host has some dozens of phones.
const CANARIES_MAX: usize = 64;

/// Why a session ends from our side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It goes on.
    Live,
    /// A newer session of the same host has come.
    Replaced,
}

/// A frame that could not be given to a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotSent {
    /// The host has no session.
    #[error("the host has no session")]
    Offline,
    /// The session's outbox is full: the host reads too slowly.
    #[error("the host reads too slowly")]
    Full,
}

/// The registry of live sessions; clones share it.
#[derive(Debug, Clone)]
pub struct Links {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    nonces: auth::Nonces,
    sessions: Mutex<HashMap<HostId, Handle>>,
    /// Hosts that have come or gone since it was last asked.
    changed: Mutex<HashSet<HostId>>,
}

#[derive(Debug)]
struct Handle {
    session: String,
    outbox: mpsc::Sender<RouterFrame>,
    ending: watch::Sender<Ending>,
    free: Arc<Notify>,
    /// How the host's tunnel is, as it last said. It says so with every renewal, and nothing is decided by it: a router
    /// that starts anew knows it again within seconds.
    tunnel: Option<HostTunnel>,
    /// The journal of each phone and its newest event, as the host last said.
    heads: HashMap<PhoneId, (String, u64)>,
    /// The canaries that it has asked about and not heard of yet; the oldest goes when there are too many.
    canaries: VecDeque<CanaryAsk>,
}

/// What a session gets at its registration.
#[derive(Debug)]
pub(crate) struct Registered {
    pub(crate) outbox: mpsc::Receiver<RouterFrame>,
    pub(crate) ending: watch::Receiver<Ending>,
    /// Notified when a phone that this host waits for may be free.
    pub(crate) free: Arc<Notify>,
}

impl Default for Links {
    fn default() -> Self {
        Self::new()
    }
}

impl Links {
    /// An empty registry.
    pub fn new() -> Self {
        Self {
            inner: Arc::new(Inner {
                nonces: auth::Nonces::default(),
                sessions: Mutex::default(),
                changed: Mutex::default(),
            }),
        }
    }

    /// Whether a host has a session here.
    pub fn is_online(&self, host: &HostId) -> bool {
        self.sessions().contains_key(host)
    }

    /// How many hosts have a session here.
    pub fn count(&self) -> usize {
        self.sessions().len()
    }

    /// Gives a frame to a host's session. It may still be lost with the session.
    pub fn send(&self, host: &HostId, frame: RouterFrame) -> Result<(), NotSent> {
        let sessions = self.sessions();
        let handle = sessions.get(host).ok_or(NotSent::Offline)?;
        handle.outbox.try_send(frame).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => NotSent::Full,
            mpsc::error::TrySendError::Closed(_) => NotSent::Offline,
        })
    }

    /// Lets a host's session ask again for the phones that it waits for: one of them may be free.
    pub(crate) fn may_be_free(&self, host: &HostId) {
        if let Some(handle) = self.sessions().get(host) {
            handle.free.notify_one();
        }
    }

    /// Keeps how a host's tunnel is, unless a newer session has taken this one's place.
    pub(crate) fn tunnel_is(&self, host: &HostId, session: &str, tunnel: Option<HostTunnel>) {
        if let Some(handle) = self.sessions().get_mut(host)
            && handle.session == session
        {
            handle.tunnel = tunnel;
        }
    }

    /// How the tunnel of a host with a session here is; none where it has said nothing of one.
    pub fn tunnel(&self, host: &HostId) -> Option<HostTunnel> {
        self.sessions().get(host)?.tunnel.clone()
    }

    /// Keeps how far a phone's journal is, unless a newer session has taken this one's place.
    pub(crate) fn head_is(&self, host: &HostId, session: &str, report: &PhoneReport) {
        if let Some(handle) = self.sessions().get_mut(host)
            && handle.session == session
        {
            match &report.journal {
                Some(journal) => {
                    let head = (journal.clone(), report.last_seq);
                    handle.heads.insert(report.phone.clone(), head);
                }
                None => drop(handle.heads.remove(&report.phone)),
            }
        }
    }

    /// The journal of a phone on a host with a session here, and the newest event in it, as the host last said.
    pub(crate) fn head(&self, host: &HostId, phone: &PhoneId) -> Option<(String, u64)> {
        self.sessions().get(host)?.heads.get(phone).cloned()
    }

    /// Notes that a host waits for a canary.
    pub(crate) fn expect_canary(&self, host: &HostId, ask: &CanaryAsk) {
        if let Some(handle) = self.sessions().get_mut(host)
            && !handle.canaries.contains(ask)
        {
            if handle.canaries.len() >= CANARIES_MAX {
                handle.canaries.pop_front();
            }
            handle.canaries.push_back(ask.clone());
        }
    }

    /// A host waits for this canary no more.
    pub(crate) fn forget_canary(&self, host: &HostId, canary: &MessageId) {
        if let Some(handle) = self.sessions().get_mut(host) {
            handle.canaries.retain(|ask| ask.message != *canary);
        }
    }

    /// Who waits for this canary.
    pub(crate) fn expecting(&self, canary: &MessageId) -> Vec<(HostId, CanaryAsk)> {
        let sessions = self.sessions();
        let asks = sessions.iter().flat_map(|(host, handle)| {
            handle.canaries.iter().map(move |ask| (host.clone(), ask.clone()))
        });
        asks.filter(|(_, ask)| ask.message == *canary).collect()
    }

    /// Makes this session the host's; an older one is told to end.
    pub(crate) fn register(&self, host: &HostId, session: &str) -> Registered {
        let (outbox, frames) = mpsc::channel(OUTBOX_FRAMES);
        let (ending, ends) = watch::channel(Ending::Live);
        let free = Arc::new(Notify::new());
        let handle = Handle {
            session: session.to_owned(),
            outbox,
            ending,
            free: Arc::clone(&free),
            tunnel: None,
            heads: HashMap::new(),
            canaries: VecDeque::new(),
        };
        let older = self.sessions().insert(host.clone(), handle);
        self.changed().insert(host.clone());
        if let Some(older) = older {
            older.ending.send_replace(Ending::Replaced);
        }
        Registered { outbox: frames, ending: ends, free }
    }

    /// Takes a session out, unless a newer one has its place; true when the host is offline now.
    pub(crate) fn unregister(&self, host: &HostId, session: &str) -> bool {
        let mut sessions = self.sessions();
        let mine = sessions.get(host).is_some_and(|handle| handle.session == session);
        if mine {
            sessions.remove(host);
            self.changed().insert(host.clone());
        }
        mine
    }

    /// The hosts whose sessions have begun or ended since this was last asked. Whether one is [`Self::is_online`] is to be
    /// asked after this: a host that changes meanwhile is told the next time.
    pub(crate) fn changed_hosts(&self) -> HashSet<HostId> {
        std::mem::take(&mut *self.changed())
    }

    fn changed(&self) -> std::sync::MutexGuard<'_, HashSet<HostId>> {
        self.inner.changed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sessions(&self) -> std::sync::MutexGuard<'_, HashMap<HostId, Handle>> {
        self.inner.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) use dial::start;

/// The route of the link.
pub fn routes() -> axum::Router<AppState> {
    axum::Router::new().route(PATH, get(upgrade))
}

async fn upgrade(
    State(app): State<AppState>,
    headers: HeaderMap,
    upgrade: WebSocketUpgrade,
) -> Response {
    if app.stop.is_cancelled() {
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "draining", "the router is stopping");
    }
    let host = match authenticate(&app, &headers).await {
        Ok(Ok(host)) => host,
        Ok(Err(why)) => {
            metrics::counter!("switchboard_link_unauthorised_total").increment(1);
            tracing::warn!(why = %why, "link: a host was turned away");
            return match why {
                // Judged before the signature, so it says nothing of who is known here.
                auth::Refused::Skew => refuse(
                    StatusCode::UNAUTHORIZED,
                    CLOCK_SKEW,
                    "the time of the request differs by more than a minute from the router's, which is in `date`",
                ),
                auth::Refused::Malformed
                | auth::Refused::UnknownHost
                | auth::Refused::BadSignature
                | auth::Refused::Replayed
                | auth::Refused::TooMany => refuse(
                    StatusCode::UNAUTHORIZED,
                    "unauthorized",
                    "the link's signature or host is not accepted",
                ),
            };
        }
        Err(error) => {
            tracing::warn!(error = %error, "link: the store does not answer");
            return refuse(StatusCode::SERVICE_UNAVAILABLE, "unavailable", "try again");
        }
    };
    upgrade
        .max_message_size(FRAME_BYTES_MAX)
        .max_frame_size(FRAME_BYTES_MAX)
        .write_buffer_size(0)
        .max_write_buffer_size(WRITE_BUFFER_BYTES_MAX)
        .on_upgrade(move |socket| {
            // The server's task for this connection ends with the session; the tracker is what shutdown waits for.
            let tasks = app.tasks.clone();
            tasks.track_future(async move {
                session::run(app, host, socket).await;
            })
        })
}

async fn authenticate(
    app: &AppState,
    headers: &HeaderMap,
) -> Result<Result<HostId, auth::Refused>, crate::store::StoreError> {
    let now_s = app.clock.now().0.div_euclid(1_000);
    let header = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let authorization = match auth::parse(header, now_s) {
        Ok(authorization) => authorization,
        Err(why) => return Ok(Err(why)),
    };
    let host = authorization.host.clone();
    let key = app.store.read(move |tx| crate::store::lease::public_key(tx, &host)).await?;
    let Some(key) = key else { return Ok(Err(auth::Refused::UnknownHost)) };
    let verdict = auth::verify(auth::Asker::Host, &authorization, &key)
        .and_then(|()| app.links.inner.nonces.take(&authorization, now_s));
    Ok(verdict.map(|()| authorization.host))
}

fn refuse(status: StatusCode, code: &'static str, detail: &str) -> Response {
    let problem = Problem {
        kind: format!("urn:switchboard:problem:{code}"),
        title: status.canonical_reason().unwrap_or_default().to_owned(),
        status: status.as_u16(),
        detail: Some(detail.to_owned()),
        code: code.to_owned(),
        request_id: None,
        errors: Vec::new(),
        resets_at: None,
    };
    let body = serde_json::to_string(&problem).unwrap_or_default();
    let code = (HeaderName::from_static(PROBLEM_HEADER), code);
    let kind = (header::CONTENT_TYPE, PROBLEM_JSON);
    (status, [kind, code], body).into_response()
}
