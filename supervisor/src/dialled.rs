//! The link where the router dials: who may open one, and how its socket comes to the link.
//!
//! The dispatch API's listener is what cloudflared leads to. A request for a link is let in by the router's signature,
//! always, and by Cloudflare Access where that is configured; it is answered with a proof by this host's own key, so that
//! neither side talks with somebody in the other's place. Whoever is refused learns the status alone.

use axum::extract::ws::{self, WebSocket, WebSocketUpgrade};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use futures_util::{SinkExt as _, StreamExt as _, future};
use protocol::HostId;
use protocol::limits::FRAME_BYTES_MAX;
use protocol::link::{Authorization, PROOF_HEADER};
use router_client::auth::{self, Asker, Nonces};
use router_client::clock::{continuous_now, wall_now};
use router_client::key::HostKey;
use router_client::link::{CloseFrame, Message, Socket};
use tokio::sync::mpsc;

use crate::access::{self, Access};

/// What a socket may hold back from the network before a write fails: a few frames of the largest size.
const WRITE_BUFFER_BYTES_MAX: usize = 4 * FRAME_BYTES_MAX;

/// Lets routers in.
#[derive(Debug)]
pub(crate) struct Door {
    host: HostId,
    key: HostKey,
    router_key: Vec<u8>,
    access: Option<Access>,
    nonces: Nonces,
    sockets: mpsc::Sender<Socket>,
}

/// Why somebody is not let in.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Signature(#[from] auth::Refused),
    #[error("it is meant for another host")]
    Elsewhere,
    #[error(transparent)]
    Access(#[from] access::Refused),
}

impl Refused {
    fn status(&self) -> StatusCode {
        match self {
            Self::Signature(_) | Self::Elsewhere => StatusCode::UNAUTHORIZED,
            Self::Access(why) if why.may_pass() => StatusCode::SERVICE_UNAVAILABLE,
            Self::Access(_) => StatusCode::FORBIDDEN,
        }
    }
}

impl Door {
    pub(crate) fn new(
        (host, key): (HostId, HostKey),
        router_key: Vec<u8>,
        access: Option<Access>,
        sockets: mpsc::Sender<Socket>,
    ) -> Self {
        Self { host, key, router_key, access, nonces: Nonces::default(), sockets }
    }

    /// Answers a request for a link; the status of a refusal otherwise.
    pub(crate) async fn open(
        &self,
        headers: &HeaderMap,
        upgrade: WebSocketUpgrade,
    ) -> Result<Response, StatusCode> {
        let authorization = self.examine(headers).await.map_err(|why| {
            metrics::counter!("switchboard_link_refused_total").increment(1);
            tracing::warn!(%why, "a router that dialled was turned away");
            why.status()
        })?;
        let sockets = self.sockets.clone();
        let mut response = upgrade
            .max_message_size(FRAME_BYTES_MAX)
            .max_frame_size(FRAME_BYTES_MAX)
            .write_buffer_size(0)
            .max_write_buffer_size(WRITE_BUFFER_BYTES_MAX)
            .on_upgrade(async move |socket| {
                if sockets.send(carried(socket)).await.is_err() {
                    tracing::debug!("the router dialled while the link ended");
                }
            });
        let proof = auth::prove(&self.key, &self.host, &authorization.nonce);
        if let Ok(proof) = HeaderValue::from_str(&proof) {
            response.headers_mut().insert(PROOF_HEADER, proof);
        }
        Ok(response)
    }

    /// The router's signature first: strangers must not have keys of Access asked for, nor nonces remembered.
    async fn examine(&self, headers: &HeaderMap) -> Result<Authorization, Refused> {
        let now_s = wall_now().0.div_euclid(1_000);
        let authorization = auth::parse(text(headers, header::AUTHORIZATION.as_str()), now_s)?;
        if authorization.host != self.host {
            return Err(Refused::Elsewhere);
        }
        auth::verify(Asker::Router, &authorization, &self.router_key)?;
        self.nonces.take(&authorization, now_s)?;
        if let Some(access) = &self.access {
            access.check(text(headers, access::HEADER), now_s, continuous_now).await?;
        }
        Ok(authorization)
    }
}

/// A header that stands there once.
fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut all = headers.get_all(name).iter();
    let only = all.next()?.to_str().ok()?;
    all.next().is_none().then_some(only)
}

/// The server's WebSocket as the link takes it.
fn carried(socket: WebSocket) -> Socket {
    let outward = |message| future::ready(outward(message));
    let socket = socket.sink_map_err(|error| error.to_string()).with(outward);
    Box::new(socket.map(|message| message.map(inward).map_err(|error| error.to_string())))
}

fn inward(message: ws::Message) -> Message {
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

fn outward(message: Message) -> Result<ws::Message, String> {
    match message {
        Message::Text(text) => Ok(ws::Message::text(text.as_str())),
        Message::Binary(bytes) => Ok(ws::Message::Binary(bytes)),
        Message::Ping(bytes) => Ok(ws::Message::Ping(bytes)),
        Message::Pong(bytes) => Ok(ws::Message::Pong(bytes)),
        Message::Close(frame) => Ok(ws::Message::Close(frame.map(|frame| ws::CloseFrame {
            code: frame.code.into(),
            reason: frame.reason.as_str().into(),
        }))),
        Message::Frame(_) => Err("a raw frame is never written".to_owned()),
    }
}
