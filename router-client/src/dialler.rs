//! One attempt to keep a session: connect, upgrade, run, end. When to try again is decided elsewhere.
//!
//! The WebSocket runs over our own stream, so that the same code runs over a pipe in memory that a test cuts at any byte.

use std::{collections::VecDeque, sync::Arc};

use data_encoding::BASE64URL_NOPAD;
use futures_util::{SinkExt, StreamExt, stream::SplitSink};
use protocol::{
    WireError, limits,
    link::{Authorization, HELLO_WITHIN_MS, HostFrame, PATH},
};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::{Notify, mpsc},
    time::{Duration, Instant, sleep, sleep_until, timeout},
};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{
        self, Message,
        client::IntoClientRequest,
        http::{HeaderValue, Uri, header},
        protocol::{CloseFrame, WebSocketConfig, frame::coding::CloseCode},
    },
};
use tokio_util::sync::CancellationToken;
use url::{Host, Url};

use crate::{
    clock::Clock,
    key::HostKey,
    link::{LinkConfig, LinkConfigError, LinkInput, LinkOutput, LinkStats},
    proxy::{Proxy, ProxyFailure},
    session::{Ended, Input, Now, OUTBOX_MAX, Output, Phones, Session},
    tls,
};

/// From the first packet to the answered upgrade.
const CONNECT_WITHIN: Duration = Duration::from_millis(HELLO_WITHIN_MS);
/// One address of the router; the next is tried when this one is deaf, as IPv6 is in some networks.
const ADDRESS_WITHIN: Duration = Duration::from_secs(3);
/// One frame on its way out. The kernel alone would notice a half-open connection only after minutes.
const WRITE_WITHIN: Duration = Duration::from_millis(HELLO_WITHIN_MS);
/// `bye` and close when this side stops.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);
/// The library's write buffer at most: one frame and control frames. Its own default has no bound.
const WRITE_BUFFER_BYTES_MAX: usize = 4 * limits::FRAME_BYTES_MAX;
/// The session is woken so often at least. Timers stand still while a Mac sleeps; the continuous clock does not, and
/// this is how soon after waking the session looks at it.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Bytes of the nonce of an upgrade request.
const NONCE_BYTES: usize = 16;
/// Of a stranger's words, so many are shown.
const SHOWN_CHARS_MAX: usize = 200;
/// Close code that stands for "none was given", RFC 6455 section 7.4.1.
const NO_CLOSE_CODE: u16 = 1005;

/// Any 64 bits.
pub(crate) fn random_u64() -> u64 {
    let mut bytes = [0; 8];
    fill(&mut bytes);
    u64::from_le_bytes(bytes)
}

fn fill(bytes: &mut [u8]) {
    aws_lc_rs::rand::fill(bytes).expect("the system's random source works");
}

/// Something that carries a WebSocket.
trait Carrier: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Carrier for T {}

/// Everything a session needs of the world around it.
pub(crate) struct Desk<'a> {
    pub(crate) inputs: &'a mut mpsc::Receiver<LinkInput>,
    pub(crate) outputs: &'a mpsc::Sender<LinkOutput>,
    pub(crate) stats: &'a LinkStats,
    pub(crate) clock: &'a Clock,
    pub(crate) shutdown: &'a CancellationToken,
    pub(crate) redial: &'a Notify,
}

impl Desk<'_> {
    fn now(&self) -> Now {
        Now { continuous: self.clock.continuous(), wall: self.clock.wall() }
    }

    /// Waits between two attempts: hands over `word`, learns what the supervisor says. False when the link is to stop.
    pub(crate) async fn rest(
        &mut self,
        word: LinkOutput,
        delay: Duration,
        phones: &mut Phones,
    ) -> bool {
        let mut word = Some(word);
        let until = Instant::now() + delay;
        loop {
            tokio::select! {
                () = self.shutdown.cancelled() => return false,
                () = self.redial.notified(), if word.is_none() => return true,
                permit = self.outputs.reserve(), if word.is_some() => match permit {
                    Ok(permit) => if let Some(word) = word.take() { permit.send(word) },
                    Err(_) => return false,
                },
                input = self.inputs.recv() => match input {
                    Some(input) => phones.learn(input),
                    None => return false,
                },
                () = sleep_until(until), if word.is_none() => return true,
            }
        }
    }
}

/// Dials the router.
pub(crate) struct Dialler {
    config: LinkConfig,
    uri: Uri,
    host: String,
    port: u16,
    proxy: Option<Proxy>,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl std::fmt::Debug for Dialler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dialler").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Dialler {
    pub(crate) fn new(config: LinkConfig) -> Result<Self, LinkConfigError> {
        let url = config.router.clone();
        let bad = |detail| LinkConfigError::Router { url: url.to_string(), detail };
        let secure = match url.scheme() {
            "https" | "wss" => true,
            "http" | "ws" => false,
            _ => return Err(bad("the scheme must be https, wss, http or ws")),
        };
        let host = match url.host() {
            Some(Host::Domain(domain)) => domain.to_owned(),
            Some(Host::Ipv4(ip)) => ip.to_string(),
            Some(Host::Ipv6(ip)) => ip.to_string(),
            None => return Err(bad("there is no host in it")),
        };
        let port = url.port().unwrap_or(if secure { 443 } else { 80 });
        let uri = upgrade_uri(&url, secure).ok_or_else(|| bad("it cannot be dialled"))?;
        let proxy = config
            .proxies
            .toward(&host, port, secure, |name| std::env::var(name).ok())
            .map_err(|(variable, source)| LinkConfigError::Proxy { variable, source })?;
        if let Some(proxy) = &proxy {
            tracing::info!(%proxy, "the router is dialled through a proxy");
        }
        let tls = if secure {
            let Ok(name) = ServerName::try_from(host.clone()) else {
                return Err(bad("its host is not a name that a certificate can carry"));
            };
            let settings = tls::client_config(&config.roots)?;
            Some((TlsConnector::from(Arc::new(settings)), name))
        } else {
            None
        };
        Ok(Self { config, uri, host, port, proxy, tls })
    }

    /// One attempt: why it ended, and how long the session was welcome.
    pub(crate) async fn attempt(&self, desk: &mut Desk<'_>, phones: &mut Phones) -> (Ended, u64) {
        let socket = {
            let opening = timeout(CONNECT_WITHIN, self.open(desk.clock));
            let mut opening = std::pin::pin!(opening);
            loop {
                tokio::select! {
                    () = desk.shutdown.cancelled() => return (Ended::Shutdown, 0),
                    () = desk.redial.notified() => return (Ended::Redial, 0),
                    input = desk.inputs.recv() => match input {
                        Some(input) => phones.learn(input),
                        None => return (Ended::Shutdown, 0),
                    },
                    opened = &mut opening => match opened {
                        Ok(Ok(socket)) => break socket,
                        Ok(Err(why)) => return (why, 0),
                        Err(_) => {
                            let ms = CONNECT_WITHIN.as_millis();
                            return (Ended::Connect(format!("not done within {ms} ms")), 0);
                        }
                    },
                }
            }
        };
        let (boot, version) = (self.config.boot.clone(), self.config.version.clone());
        let session = Session::new(boot, version, std::mem::take(phones), random_u64());
        run(socket, session, desk, phones).await
    }

    async fn open(&self, clock: &Clock) -> Result<WebSocketStream<Box<dyn Carrier>>, Ended> {
        let mut stream = match &self.proxy {
            None => connect(&self.host, self.port).await.map_err(Ended::Connect)?,
            Some(proxy) => connect(proxy.host(), proxy.port())
                .await
                .map_err(|why| through(proxy, ProxyFailure::Unreachable(why)))?,
        };
        // Small frames must not wait for each other.
        stream.set_nodelay(true).map_err(|error| Ended::Connect(error.to_string()))?;
        if let Some(proxy) = &self.proxy {
            let tunnel = proxy.tunnel(&mut stream, &self.host, self.port).await;
            tunnel.map_err(|why| through(proxy, why))?;
        }
        let carrier: Box<dyn Carrier> = match &self.tls {
            None => Box::new(stream),
            Some((connector, name)) => {
                let tls = connector.connect(name.clone(), stream).await;
                Box::new(tls.map_err(|error| Ended::Tls(tls::explain(&error)))?)
            }
        };
        let mut nonce = [0; NONCE_BYTES];
        fill(&mut nonce);
        let authorization = authorization(&self.config, clock.wall().0.div_euclid(1_000), nonce);
        upgrade(carrier, &self.uri, &authorization).await
    }
}

fn upgrade_uri(url: &Url, secure: bool) -> Option<Uri> {
    let scheme = if secure { "wss" } else { "ws" };
    let host = url.host_str()?;
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    let base = url.path().trim_end_matches('/');
    format!("{scheme}://{host}{port}{base}{PATH}").parse().ok()
}

fn authorization(config: &LinkConfig, ts: i64, nonce: [u8; NONCE_BYTES]) -> String {
    let nonce = BASE64URL_NOPAD.encode(&nonce);
    sign(&config.key, &config.host, ts, nonce).to_string()
}

fn sign(key: &HostKey, host: &protocol::HostId, ts: i64, nonce: String) -> Authorization {
    // The path that the router serves, whatever a proxy in front of it adds.
    let sig = key.sign(Authorization::signed("GET", PATH, host, ts, &nonce).as_bytes());
    Authorization { host: host.clone(), ts, nonce, sig }
}

fn through(proxy: &Proxy, why: ProxyFailure) -> Ended {
    Ended::Proxy { proxy: proxy.to_string(), why }
}

async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    let addresses =
        tokio::net::lookup_host((host, port)).await.map_err(|error| format!("{host}: {error}"))?;
    let mut last = format!("{host} has no address");
    for address in addresses {
        match timeout(ADDRESS_WITHIN, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = format!("{address}: {error}"),
            Err(_) => last = format!("{address}: no answer"),
        }
    }
    Err(last)
}

async fn upgrade<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    uri: &Uri,
    authorization: &str,
) -> Result<WebSocketStream<S>, Ended> {
    let broken = |error: tungstenite::Error| Ended::Handshake(error.to_string());
    let mut request = uri.into_client_request().map_err(broken)?;
    let mut value = HeaderValue::from_str(authorization)
        .map_err(|error| Ended::Handshake(error.to_string()))?;
    value.set_sensitive(true);
    request.headers_mut().insert(header::AUTHORIZATION, value);
    match client_async_with_config(request, stream, Some(web_socket_config())).await {
        Ok((socket, _response)) => Ok(socket),
        Err(tungstenite::Error::Http(response)) => {
            let status = response.status();
            if status.is_success() || status.is_redirection() {
                return Err(Ended::Intercepted {
                    status: status.as_u16(),
                    location: response.headers().get(header::LOCATION).and_then(shown),
                });
            }
            Err(Ended::Upgrade { status: status.as_u16() })
        }
        Err(error) => Err(broken(error)),
    }
}

/// What a stranger says, for a log: short and without what could make lines or colours of its own.
fn shown(value: &HeaderValue) -> Option<String> {
    let text = value.to_str().ok()?;
    Some(text.chars().filter(|char| !char.is_control()).take(SHOWN_CHARS_MAX).collect())
}

fn web_socket_config() -> WebSocketConfig {
    WebSocketConfig::default()
        .max_message_size(Some(limits::FRAME_BYTES_MAX))
        .max_frame_size(Some(limits::FRAME_BYTES_MAX))
        .max_write_buffer_size(WRITE_BUFFER_BYTES_MAX)
}

/// Runs a session over an open WebSocket until it ends; `phones` gets back what the session learnt.
async fn run<S: AsyncRead + AsyncWrite + Unpin>(
    socket: WebSocketStream<S>,
    mut session: Session,
    desk: &mut Desk<'_>,
    phones: &mut Phones,
) -> (Ended, u64) {
    let (sink, mut stream) = socket.split();
    let (frames, frames_out) = mpsc::channel(2 * OUTBOX_MAX);
    let (written, mut written_in) = mpsc::channel(2 * OUTBOX_MAX);
    let mut writer = std::pin::pin!(write(sink, frames_out, written));
    let mut deliveries = VecDeque::new();
    let mut input = Input::Opened;
    let why = loop {
        let now = desk.now();
        match perform(session.step(input, now), &frames, &mut deliveries, desk.stats) {
            Performed::Goes { unsendable: 0 } => {}
            Performed::Goes { unsendable } => {
                for _ in 0..unsendable {
                    // A frame that is never sent has no place in the outbox either.
                    let late = session.step(Input::Written, now);
                    debug_assert!(late.is_empty(), "nothing follows from a frame that has left");
                }
            }
            Performed::Over(why) => break why,
        }
        desk.stats.add(&session.take_counts());
        let due = session.deadline().map_or(LOOK_EVERY, |deadline| {
            Duration::from_millis(deadline.saturating_sub(now.continuous)).min(LOOK_EVERY)
        });
        input = tokio::select! {
            () = desk.shutdown.cancelled() => Input::Stop,
            () = desk.redial.notified() => Input::Gone(Ended::Redial),
            why = &mut writer => Input::Gone(why),
            Some(()) = written_in.recv() => Input::Written,
            permit = desk.outputs.reserve(), if !deliveries.is_empty() => match permit {
                Ok(permit) => {
                    if let Some(delivery) = deliveries.pop_front() {
                        permit.send(delivery);
                    }
                    Input::Tick
                }
                Err(_) => Input::Stop,
            },
            // What the supervisor does not take keeps the router waiting, in its socket.
            message = stream.next(), if deliveries.is_empty() => read(message),
            local = desk.inputs.recv(), if session.takes_input() => {
                local.map_or(Input::Stop, Input::Local)
            }
            () = sleep(due) => Input::Tick,
        };
    };
    desk.stats.add(&session.take_counts());
    if session.was_live() {
        desk.stats.set_connected(false);
    }
    if why == Ended::Shutdown {
        drop(frames);
        if timeout(CLOSE_WITHIN, writer).await.is_err() {
            tracing::debug!("the router did not take the close in time");
        }
    }
    let lived_ms = session.lived_ms(desk.clock.continuous());
    *phones = session.into_phones();
    (why, lived_ms)
}

enum Performed {
    Goes { unsendable: usize },
    Over(Ended),
}

fn perform(
    outputs: Vec<Output>,
    frames: &mpsc::Sender<String>,
    deliveries: &mut VecDeque<LinkOutput>,
    stats: &LinkStats,
) -> Performed {
    let mut unsendable = 0;
    for output in outputs {
        match output {
            Output::Deliver(delivery) => {
                if let LinkOutput::Connected { session } = &delivery {
                    tracing::debug!(session, "link up");
                    stats.set_connected(true);
                }
                deliveries.push_back(delivery);
            }
            Output::Send(frame) => match encode(&frame) {
                Ok(text) => {
                    if frames.try_send(text).is_err() {
                        return Performed::Over(Ended::OutboxFull(frames.max_capacity()));
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "frame cannot be sent");
                    unsendable += 1;
                }
            },
            Output::End(why) => return Performed::Over(why),
        }
    }
    Performed::Goes { unsendable }
}

fn encode(frame: &HostFrame) -> Result<String, WireError> {
    let text =
        serde_json::to_string(frame).map_err(|error| WireError::Malformed(error.to_string()))?;
    if text.len() > limits::FRAME_BYTES_MAX {
        return Err(WireError::TooLong { bytes: text.len(), max: limits::FRAME_BYTES_MAX });
    }
    Ok(text)
}

fn read(message: Option<Result<Message, tungstenite::Error>>) -> Input {
    match message {
        Some(Ok(Message::Text(text))) => match protocol::link::parse_router(&text) {
            Ok(frame) => Input::Frame(frame),
            Err(error) => Input::Refused(error),
        },
        Some(Ok(Message::Binary(_))) => {
            Input::Refused(WireError::Malformed("a binary frame".to_owned()))
        }
        // The library answers these; they say nothing about the router's own loop.
        Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => Input::Tick,
        Some(Ok(Message::Close(frame))) => {
            let (code, reason) = frame.map_or((NO_CLOSE_CODE, String::new()), |frame| {
                (u16::from(frame.code), frame.reason.to_string())
            });
            Input::Gone(Ended::Closed { code, reason })
        }
        Some(Err(error)) => Input::Gone(Ended::Lost(error.to_string())),
        None => Input::Gone(Ended::Lost("end of the stream".to_owned())),
    }
}

/// Writes frames one by one, each within its deadline; closes when there will be no more.
async fn write<S: AsyncRead + AsyncWrite + Unpin>(
    mut sink: SplitSink<WebSocketStream<S>, Message>,
    mut frames: mpsc::Receiver<String>,
    written: mpsc::Sender<()>,
) -> Ended {
    let late = || Ended::WriteLate(HELLO_WITHIN_MS);
    while let Some(text) = frames.recv().await {
        match timeout(WRITE_WITHIN, sink.send(Message::text(text))).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Ended::Lost(error.to_string()),
            Err(_) => return late(),
        }
        if written.send(()).await.is_err() {
            break;
        }
    }
    let close = CloseFrame { code: CloseCode::Normal, reason: "bye".into() };
    match timeout(WRITE_WITHIN, sink.send(Message::Close(Some(close)))).await {
        Ok(Ok(())) => Ended::Shutdown,
        Ok(Err(error)) => Ended::Lost(error.to_string()),
        Err(_) => late(),
    }
}

#[cfg(test)]
#[path = "dialler_tests.rs"]
mod tests;
