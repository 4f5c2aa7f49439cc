//! Hosts that the router dials: one loop per host that the configuration names.
//!
//! For a host whose own network lets nothing out, or whose tunnel is its only door. The request carries the router's
//! signature, and the service token that Cloudflare Access wants; the answer must carry the host's own signature, so that
//! nothing is said to whoever else stands behind that name. Then it is a session like any other.

use std::time::Duration;

use axum::extract::ws;
use data_encoding::BASE64URL_NOPAD;
use futures_util::{SinkExt as _, StreamExt as _, future};
use protocol::link::{PROOF_HEADER, close};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName};
use router_client::auth::{self, Asker};
use router_client::backoff::{Backoff, Cause};
use router_client::link::{CloseFrame, Ended, Message};
use router_client::proxy::Proxies;
use router_client::road::{self, OPEN_WITHIN, Opened, Road};
use router_client::tls::TlsRoots;
use secrecy::ExposeSecret as _;

use super::session::{self, End, Socket};
use crate::clock;
use crate::config::Dial;
use crate::server::AppState;
use crate::store::lease::public_key;

/// Bytes of the nonce of a request.
const NONCE_BYTES: usize = 16;

/// What Cloudflare Access takes from a program instead of a login (facts: 6.4).
const CLIENT_ID: HeaderName = HeaderName::from_static("cf-access-client-id");
const CLIENT_SECRET: HeaderName = HeaderName::from_static("cf-access-client-secret");

/// Dials every host that is configured, until the router stops.
pub(crate) fn start(app: &AppState) {
    for dial in &app.config.dial {
        match Road::new(&dial.url, &TlsRoots::Platform, &Proxies::Environment) {
            Ok(road) => {
                app.tasks.spawn(keep(AppState::clone(app), dial.clone(), road));
            }
            Err(error) => {
                tracing::error!(host = %dial.host, %error, "link: this host cannot be dialled");
            }
        }
    }
}

async fn keep(app: AppState, dial: Dial, road: Road) {
    let mut backoff = Backoff::new(dial.redial_max);
    while !app.stop.is_cancelled() {
        let (cause, lived) = attempt(&app, &dial, &road).await;
        let lived_ms = u64::try_from(lived.as_millis()).unwrap_or(u64::MAX);
        let chance = u64::from_le_bytes(clock::random());
        let wait = Duration::from_millis(backoff.next(cause, lived_ms, chance));
        tokio::select! {
            () = app.stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// One session, or why there is none.
async fn attempt(app: &AppState, dial: &Dial, road: &Road) -> (Cause, Duration) {
    let opened = tokio::select! {
        () = app.stop.cancelled() => return (Cause::Asked, Duration::ZERO),
        opened = tokio::time::timeout(OPEN_WITHIN, open(app, dial, road)) => opened,
    };
    let failed = match opened {
        Ok(Ok(socket)) => {
            metrics::counter!("switchboard_dials_total", "outcome" => "opened").increment(1);
            let (end, lived) =
                session::run(AppState::clone(app), dial.host.clone(), carried(socket)).await;
            let cause = match end {
                // Another connection of the same host is newer; it may be one that the host has dialled.
                End::Close(close::REPLACED, _) => Cause::Replaced,
                End::Close(close::PROTOCOL_TOO_OLD, _) => Cause::Refused,
                End::Gone | End::Close(_, _) => Cause::Lost,
            };
            return (cause, lived);
        }
        Ok(Err(failed)) => failed,
        Err(_late) => {
            Failed::Way(Ended::Connect(format!("not done within {} ms", OPEN_WITHIN.as_millis())))
        }
    };
    metrics::counter!("switchboard_dials_total", "outcome" => failed.word()).increment(1);
    tracing::warn!(host = %dial.host, url = %dial.url, why = %failed, "link: a host was dialled in vain");
    (failed.redial_cause(), Duration::ZERO)
}

/// Why a host that was dialled has no session.
#[derive(Debug, thiserror::Error)]
enum Failed {
    /// It is not in the store.
    #[error("no host with this id is enrolled")]
    Unknown,
    #[error("{}", told(.0))]
    Way(Ended),
    /// Somebody else has answered.
    #[error("the answer is not signed by this host: something else answers under its name")]
    Unproven,
    #[error("the store does not answer")]
    Store(#[from] crate::store::StoreError),
}

impl Failed {
    fn redial_cause(&self) -> Cause {
        match self {
            Self::Unknown | Self::Unproven => Cause::Refused,
            Self::Way(ended) => ended.redial_cause(),
            Self::Store(_) => Cause::Lost,
        }
    }

    fn word(&self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Unproven => "unproven",
            Self::Way(Ended::Upgrade { status: 401 | 403 } | Ended::ClockSkew { .. }) => "refused",
            Self::Way(_) => "failed",
            Self::Store(_) => "store",
        }
    }
}

/// The same words as a host has for the router would mislead here.
#[expect(clippy::wildcard_enum_match_arm, reason = "the rest says the same on both sides")]
fn told(ended: &Ended) -> String {
    match ended {
        Ended::Connect(why) => format!("cannot connect: {why}"),
        Ended::Tls(why) => format!("TLS failed: {why}"),
        Ended::Upgrade { status: 401 } => {
            "it does not take this router's signature (401): enrol it again".to_owned()
        }
        Ended::Upgrade { status: 403 } => {
            "Cloudflare Access or the host's check of it refuses (403): look at the service \
            token, its policy, and `audience` of [router.access] on the host"
                .to_owned()
        }
        Ended::Upgrade { status: 404 } => {
            "there is no link (404): is `dial` of the host's [router] set to \"in\"?".to_owned()
        }
        Ended::Upgrade { status: status @ (502 | 530) } => {
            format!("its tunnel leads nowhere (HTTP {status}): is cloudflared up on the host?")
        }
        Ended::Upgrade { status } => format!("it answers HTTP {status}"),
        Ended::Intercepted { status, .. } => format!(
            "HTTP {status} instead of a WebSocket: Cloudflare Access wants a login, so the service token is missing, wrong \
             or expired, or its policy is not `Service Auth`"
        ),
        _ => ended.to_string(),
    }
}

async fn open(app: &AppState, dial: &Dial, road: &Road) -> Result<Opened, Failed> {
    let host = dial.host.clone();
    let key = app.store.read(move |tx| public_key(tx, &host)).await?.ok_or(Failed::Unknown)?;
    let nonce = BASE64URL_NOPAD.encode(&clock::secret::<NONCE_BYTES>());
    let now_s = app.clock.now().0.div_euclid(1_000);
    let signed = Asker::Router.sign(&app.key, &dial.host, now_s, nonce.clone());
    let secret = |value: &str| road::secret(value).map_err(Failed::Way);
    let mut headers = HeaderMap::new();
    headers.insert(AUTHORIZATION, secret(&signed.to_string())?);
    if let Some(access) = &dial.access {
        headers.insert(CLIENT_ID, secret(&access.client_id)?);
        headers.insert(CLIENT_SECRET, secret(access.client_secret.expose_secret())?);
    }
    let (socket, answer) = road.open(headers).await.map_err(Failed::Way)?;
    let proof = answer.get(PROOF_HEADER).and_then(|proof| proof.to_str().ok());
    if proof.is_some_and(|proof| auth::is_proven(proof, &dial.host, &nonce, &key)) {
        Ok(socket)
    } else {
        Err(Failed::Unproven)
    }
}

/// The dialled WebSocket as a session takes it.
fn carried(socket: Opened) -> impl Socket<String> {
    let socket = socket.sink_map_err(|error| error.to_string());
    let socket = socket.with(|message| future::ready(Ok::<_, String>(outward(message))));
    socket.map(|message| message.map_err(|error| error.to_string()).and_then(inward))
}

fn outward(message: ws::Message) -> Message {
    match message {
        ws::Message::Text(text) => Message::text(text.as_str()),
        ws::Message::Binary(bytes) => Message::Binary(bytes),
        ws::Message::Ping(bytes) => Message::Ping(bytes),
        ws::Message::Pong(bytes) => Message::Pong(bytes),
        ws::Message::Close(frame) => Message::Close(frame.map(|frame| CloseFrame {
            code: frame.code.into(),
            reason: frame.reason.as_str().into(),
        })),
    }
}

fn inward(message: Message) -> Result<ws::Message, String> {
    match message {
        Message::Text(text) => Ok(ws::Message::text(text.as_str())),
        Message::Binary(bytes) => Ok(ws::Message::Binary(bytes)),
        Message::Ping(bytes) => Ok(ws::Message::Ping(bytes)),
        Message::Pong(bytes) => Ok(ws::Message::Pong(bytes)),
        Message::Close(frame) => Ok(ws::Message::Close(frame.map(|frame| ws::CloseFrame {
            code: frame.code.into(),
            reason: frame.reason.as_str().into(),
        }))),
        Message::Frame(_) => Err("a raw frame is never read".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_a_person_can_change_is_tried_again_after_minutes() {
        let way = |status| Failed::Way(Ended::Upgrade { status });
        for (failed, cause, words) in [
            (way(401), Cause::Refused, "enrol it again"),
            (way(403), Cause::Refused, "service token"),
            (way(404), Cause::Lost, "`dial`"),
            (way(530), Cause::Lost, "cloudflared"),
            (way(503), Cause::Lost, "503"),
            (Failed::Way(Ended::Intercepted { status: 302, location: None }), Cause::Lost, "login"),
            (Failed::Unproven, Cause::Refused, "not signed"),
            (Failed::Unknown, Cause::Refused, "enrolled"),
        ] {
            assert_eq!(failed.redial_cause(), cause, "{failed}");
            assert!(failed.to_string().contains(words), "{failed}");
        }
    }
}
