//! One attempt to keep a session: connect, upgrade, run, end. When to try again is decided elsewhere.
//!
//! The WebSocket runs over our own stream, so that the same code runs over a pipe in memory that a test cuts at any byte.

use std::collections::VecDeque;

use data_encoding::BASE64URL_NOPAD;
use futures_util::{Sink, SinkExt, Stream, StreamExt, stream::SplitSink};
use protocol::{
    WireError, limits,
    link::{Authorization, HELLO_WITHIN_MS, HostFrame},
};
use tokio::{
    sync::{Notify, mpsc},
    time::{Duration, Instant, sleep, sleep_until, timeout},
};
use tokio_tungstenite::tungstenite::{
    Message,
    http::{HeaderMap, header},
    protocol::{CloseFrame, frame::coding::CloseCode},
};
use tokio_util::sync::CancellationToken;

use crate::{
    auth::Asker,
    clock::Clock,
    link::{LinkConfig, LinkConfigError, LinkInput, LinkOutput, LinkStats, Socket},
    road::{self, OPEN_WITHIN, Opened, Road},
    session::{Ended, Input, Now, OUTBOX_MAX, Output, Phones, Session},
};

/// One frame on its way out. The kernel alone would notice a half-open connection only after minutes.
const WRITE_WITHIN: Duration = Duration::from_millis(HELLO_WITHIN_MS);
/// `bye` and close when this side stops.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);
/// The session is woken so often at least. Timers stand still while a Mac sleeps; the continuous clock does not, and
/// this is how soon after waking the session looks at it.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Bytes of the nonce of an upgrade request.
const NONCE_BYTES: usize = 16;
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

/// Everything a session needs of the world around it.
pub(crate) struct Desk<'a> {
    pub(crate) inputs: &'a mut mpsc::Receiver<LinkInput>,
    pub(crate) outputs: &'a mpsc::Sender<LinkOutput>,
    pub(crate) stats: &'a LinkStats,
    pub(crate) clock: &'a Clock,
    pub(crate) shutdown: &'a CancellationToken,
    pub(crate) redial: &'a Notify,
    /// How long a session may hear nothing.
    pub(crate) silence_ms: u64,
    /// Where routers that dial come in; none where this side dials.
    pub(crate) sockets: Option<&'a mut mpsc::Receiver<Socket>>,
    /// The socket that ended the session before it.
    pub(crate) successor: &'a mut Option<Socket>,
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
#[derive(Debug)]
pub(crate) struct Dialler {
    config: LinkConfig,
    road: Road,
}

impl Dialler {
    pub(crate) fn new(config: LinkConfig) -> Result<Self, LinkConfigError> {
        let road = Road::new(&config.router, &config.roots, &config.proxies)?;
        Ok(Self { config, road })
    }

    /// One attempt: why it ended, and how long the session was welcome.
    pub(crate) async fn attempt(&self, desk: &mut Desk<'_>, phones: &mut Phones) -> (Ended, u64) {
        let socket = {
            let opening = timeout(OPEN_WITHIN, self.open(desk.clock));
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
                            let ms = OPEN_WITHIN.as_millis();
                            return (Ended::Connect(format!("not done within {ms} ms")), 0);
                        }
                    },
                }
            }
        };
        let (boot, version) = (self.config.boot.clone(), self.config.version.clone());
        let session = Session::new(boot, version, std::mem::take(phones), random_u64())
            .with_silence(desk.silence_ms);
        run(socket, session, desk, phones).await
    }

    async fn open(&self, clock: &Clock) -> Result<Opened, Ended> {
        let ts = clock.wall().0.div_euclid(1_000);
        let authorization = Asker::Host.sign(&self.config.key, &self.config.host, ts, nonce());
        self.road.open(headers(&authorization)?).await.map(|(socket, _answer)| socket)
    }
}

/// What an upgrade request carries.
fn headers(authorization: &Authorization) -> Result<HeaderMap, Ended> {
    let value = road::secret(&authorization.to_string())?;
    Ok(HeaderMap::from_iter([(header::AUTHORIZATION, value)]))
}

/// A new nonce for a request.
fn nonce() -> String {
    let mut bytes = [0; NONCE_BYTES];
    fill(&mut bytes);
    BASE64URL_NOPAD.encode(&bytes)
}

/// Waits until a router has dialled, then runs a session with it until that ends.
pub(crate) async fn accept(
    boot: &str,
    version: &str,
    desk: &mut Desk<'_>,
    phones: &mut Phones,
) -> (Ended, u64) {
    let socket = loop {
        if let Some(socket) = desk.successor.take() {
            break socket;
        }
        tokio::select! {
            () = desk.shutdown.cancelled() => return (Ended::Shutdown, 0),
            // There is nothing to dial; the router does that.
            () = desk.redial.notified() => {}
            input = desk.inputs.recv() => match input {
                Some(input) => phones.learn(input),
                None => return (Ended::Shutdown, 0),
            },
            socket = next(&mut desk.sockets) => match socket {
                Some(socket) => break socket,
                None => return (Ended::Shutdown, 0),
            },
        }
    };
    let (boot, version) = (boot.to_owned(), version.to_owned());
    let session = Session::new(boot, version, std::mem::take(phones), random_u64())
        .with_silence(desk.silence_ms);
    run(socket, session, desk, phones).await
}

/// The next router that has dialled; never, where this side dials.
async fn next(sockets: &mut Option<&mut mpsc::Receiver<Socket>>) -> Option<Socket> {
    match sockets {
        Some(sockets) => sockets.recv().await,
        None => std::future::pending().await,
    }
}

/// Runs a session over an open WebSocket until it ends; `phones` gets back what the session learnt.
async fn run<S, E>(
    socket: S,
    mut session: Session,
    desk: &mut Desk<'_>,
    phones: &mut Phones,
) -> (Ended, u64)
where
    S: Stream<Item = Result<Message, E>> + Sink<Message, Error = E> + Unpin,
    E: std::fmt::Display,
{
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
        if !deliveries.is_empty() {
            session.does_not_listen(now.continuous);
        }
        let due = session.deadline().map_or(LOOK_EVERY, |deadline| {
            Duration::from_millis(deadline.saturating_sub(now.continuous)).min(LOOK_EVERY)
        });
        input = tokio::select! {
            () = desk.shutdown.cancelled() => Input::Stop,
            () = desk.redial.notified() => Input::Gone(Ended::Redial),
            // Only the router's newest connection counts: the one before may be dead without a word.
            Some(socket) = next(&mut desk.sockets) => {
                *desk.successor = Some(socket);
                Input::Gone(Ended::Replaced)
            }
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
                if let LinkOutput::Connected { session, .. } = &delivery {
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

fn read<E: std::fmt::Display>(message: Option<Result<Message, E>>) -> Input {
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
async fn write<S, E>(
    mut sink: SplitSink<S, Message>,
    mut frames: mpsc::Receiver<String>,
    written: mpsc::Sender<()>,
) -> Ended
where
    S: Sink<Message, Error = E>,
    E: std::fmt::Display,
{
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
