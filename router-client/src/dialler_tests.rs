use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use protocol::{
    HostId, MessageId, PhoneId, UnixMs,
    link::{HostHello, LEASE_TTL_MS, PhoneReport, PhoneState, RouterFrame, Welcome, WelcomePhone},
    pipe::{Attempt, Command, Event, EventLine},
};
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex,
};
use tokio_tungstenite::{WebSocketStream, accept_async, tungstenite::http::Uri};

use super::*;
use crate::{key::HostKey, road::upgrade_uri, tls};

/// The upgrade with this authorisation.
async fn upgrade<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    uri: &Uri,
    authorization: &str,
) -> Result<WebSocketStream<S>, Ended> {
    let value = road::secret(authorization)?;
    let headers = HeaderMap::from_iter([(header::AUTHORIZATION, value)]);
    road::upgrade(stream, uri, headers).await.map(|(socket, _)| socket)
}

const WALL: UnixMs = UnixMs(1_795_348_800_000);
const EVENTS: u64 = 3;

fn phone() -> PhoneId {
    PhoneId::new(1, [1; 10])
}

fn phones() -> Phones {
    let mut phones = Phones::default();
    let report = PhoneReport {
        phone: phone(),
        journal: Some("j".to_owned()),
        last_seq: EVENTS,
        acked_seq: 0,
        epoch: None,
        state: PhoneState::Ready,
        reasons: Vec::new(),
    };
    phones.learn(LinkInput::Phone { report, started: true });
    phones
}

fn event(seq: u64) -> LinkInput {
    let attempt = Attempt { message: MessageId::new(1, [1; 10]), attempt: 1 };
    let line = EventLine { seq, at: WALL, epoch: Some(1), event: Event::Accepted(attempt) };
    LinkInput::Event { phone: phone(), journal: "j".to_owned(), line }
}

fn cancel() -> Command {
    Command::Cancel { message: MessageId::new(2, [2; 10]), attempt: 1 }
}

fn uri() -> Uri {
    "ws://router.example/v1/link".parse().unwrap()
}

/// What happens to a stream after so many bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Both directions end.
    Ends,
    /// This direction is silent for ever: a half-open connection.
    Stalls,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    In,
    Out,
}

/// A stream that is cut after so many bytes of one direction.
struct Cut {
    inner: DuplexStream,
    direction: Direction,
    fate: Fate,
    left: usize,
    over: bool,
    seen: [usize; 2],
}

impl Cut {
    fn new(inner: DuplexStream, direction: Direction, fate: Fate, after: usize) -> Self {
        Self { inner, direction, fate, left: after, over: after == 0, seen: [0; 2] }
    }

    fn fate(&self, direction: Direction) -> Option<Fate> {
        let touched = self.fate == Fate::Ends || self.direction == direction;
        (self.over && touched).then_some(self.fate)
    }

    fn count(&mut self, direction: Direction, bytes: usize) {
        match direction {
            Direction::In => self.seen[0] += bytes,
            Direction::Out => self.seen[1] += bytes,
        }
        if direction == self.direction {
            self.left -= bytes;
            self.over = self.left == 0;
        }
    }
}

impl AsyncRead for Cut {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.fate(Direction::In) {
            Some(Fate::Ends) => return Poll::Ready(Ok(())),
            Some(Fate::Stalls) => return Poll::Pending,
            None => {}
        }
        let room = match self.direction {
            Direction::In => self.left.min(buf.remaining()),
            Direction::Out => buf.remaining(),
        };
        let mut limited = buf.take(room);
        let polled = Pin::new(&mut self.inner).poll_read(cx, &mut limited);
        let read = limited.filled().len();
        buf.advance(read);
        self.count(Direction::In, read);
        polled
    }
}

impl AsyncWrite for Cut {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.fate(Direction::Out) {
            Some(Fate::Ends) => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            Some(Fate::Stalls) => return Poll::Pending,
            None => {}
        }
        let room = match self.direction {
            Direction::Out => self.left.min(bytes.len()),
            Direction::In => bytes.len(),
        };
        let polled = Pin::new(&mut self.inner).poll_write(cx, &bytes[..room]);
        if let Poll::Ready(Ok(written)) = polled {
            self.count(Direction::Out, written);
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// A router that takes events and gives one command per session.
#[derive(Debug, Default)]
struct Router {
    taken: Vec<u64>,
    said_bye: bool,
}

impl Router {
    fn acked(&self) -> u64 {
        u64::try_from(self.taken.len()).unwrap()
    }

    fn answer(&mut self, frame: HostFrame) -> Vec<RouterFrame> {
        let ack = |seq| RouterFrame::Ack { phone: phone(), journal: "j".to_owned(), seq };
        match frame {
            HostFrame::Hello(HostHello { .. }) => vec![
                RouterFrame::Welcome(Welcome {
                    session: "s".to_owned(),
                    clock: WALL,
                    phones: vec![WelcomePhone {
                        phone: phone(),
                        epoch: Some(1),
                        ttl_ms: LEASE_TTL_MS,
                        acked_seq: self.acked(),
                    }],
                    canaries: false,
                }),
                RouterFrame::Command { phone: phone(), epoch: 1, command: cancel() },
            ],
            HostFrame::Event(event) => {
                if event.seq == self.acked() + 1 {
                    self.taken.push(event.seq);
                }
                vec![ack(self.acked())]
            }
            HostFrame::Renew { renewal, .. } => {
                vec![RouterFrame::Lease { phone: phone(), epoch: 1, ttl_ms: LEASE_TTL_MS, renewal }]
            }
            HostFrame::Phone(_) => vec![ack(self.acked())],
            HostFrame::Ping { at } => vec![RouterFrame::Pong { at }],
            HostFrame::Pong { .. } | HostFrame::Released { .. } | HostFrame::Canary(_) => {
                Vec::new()
            }
            HostFrame::Bye { .. } => {
                self.said_bye = true;
                Vec::new()
            }
        }
    }

    async fn serve(&mut self, stream: impl AsyncRead + AsyncWrite + Unpin) {
        let Ok(mut socket) = accept_async(stream).await else { return };
        while let Some(Ok(message)) = socket.next().await {
            let Message::Text(text) = message else { continue };
            let frame = protocol::link::parse_host(&text).unwrap();
            for answer in self.answer(frame) {
                let text = serde_json::to_string(&answer).unwrap();
                if socket.send(Message::text(text)).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// The bridge behind the supervisor: says again what is not acknowledged, when it is asked to.
#[derive(Debug, Default)]
struct Bridge {
    acked: u64,
    commands: usize,
}

impl Bridge {
    async fn serve(
        &mut self,
        inputs: mpsc::Sender<LinkInput>,
        mut outputs: mpsc::Receiver<LinkOutput>,
        shutdown: CancellationToken,
    ) {
        while let Some(output) = outputs.recv().await {
            match output {
                LinkOutput::Ack { seq, replay, .. } => {
                    assert!(seq <= EVENTS);
                    self.acked = self.acked.max(seq);
                    if replay {
                        for seq in self.acked + 1..=EVENTS {
                            inputs.send(event(seq)).await.unwrap();
                        }
                    }
                }
                LinkOutput::Command { command, .. } => {
                    assert_eq!(command, cancel());
                    self.commands += 1;
                }
                LinkOutput::Connected { .. }
                | LinkOutput::Disconnected { .. }
                | LinkOutput::Lease { .. }
                | LinkOutput::Revoke { .. }
                | LinkOutput::Canary(_)
                | LinkOutput::Release { .. } => {}
            }
            if self.acked == EVENTS && self.commands > 0 {
                shutdown.cancel();
            }
        }
    }
}

/// One attempt over a stream in memory.
async fn attempt(
    near: &mut Cut,
    far: DuplexStream,
    router: &mut Router,
    bridge: &mut Bridge,
) -> Ended {
    let (input, mut inputs) = mpsc::channel(4);
    let (outputs, output) = mpsc::channel(4);
    let shutdown = CancellationToken::new();
    let clock = Clock::of_tokio(1_000_000, WALL);
    let stats = LinkStats::default();
    let client = async {
        let Ok(opened) = timeout(OPEN_WITHIN, upgrade(near, &uri(), "Switchboard x")).await else {
            return Ended::Connect("late".to_owned());
        };
        let mut desk = Desk {
            inputs: &mut inputs,
            outputs: &outputs,
            stats: &stats,
            clock: &clock,
            shutdown: &shutdown,
            redial: &Notify::new(),
            silence_ms: protocol::link::HOST_SILENCE_MS,
            sockets: None,
            successor: &mut None,
        };
        let session = Session::new("b".to_owned(), "1".to_owned(), phones(), 0);
        match opened {
            Ok(socket) => run(socket, session, &mut desk, &mut Phones::default()).await.0,
            Err(why) => why,
        }
    };
    tokio::select! {
        why = client => why,
        () = async {
            tokio::join!(router.serve(far), bridge.serve(input, output, shutdown.clone()));
            std::future::pending::<()>().await;
        } => unreachable!("the client ends first"),
    }
}

/// Bytes that a whole exchange takes in each direction.
async fn whole_exchange() -> [usize; 2] {
    let (near, far) = duplex(64 * 1024);
    let mut near = Cut::new(near, Direction::In, Fate::Ends, usize::MAX);
    let (mut router, mut bridge) = (Router::default(), Bridge::default());
    let why = attempt(&mut near, far, &mut router, &mut bridge).await;
    assert_eq!(why, Ended::Shutdown);
    assert_eq!(router.taken, [1, 2, 3]);
    near.seen
}

async fn cut_everywhere(fate: Fate, every: usize) {
    let [bytes_in, bytes_out] = whole_exchange().await;
    assert!(bytes_in > 500 && bytes_out > 500, "{bytes_in} in, {bytes_out} out");
    for (direction, bytes) in [(Direction::In, bytes_in), (Direction::Out, bytes_out)] {
        for after in (0..bytes).step_by(every) {
            let place = format!("{direction:?} {fate:?} after {after}");
            let (mut router, mut bridge) = (Router::default(), Bridge::default());
            let (near, far) = duplex(64 * 1024);
            let mut near = Cut::new(near, direction, fate, after);
            let begun = Instant::now();
            let why = attempt(&mut near, far, &mut router, &mut bridge).await;
            assert!(begun.elapsed() <= Duration::from_secs(80), "{place}: {why}");

            let (near, far) = duplex(64 * 1024);
            let mut near = Cut::new(near, Direction::In, Fate::Ends, usize::MAX);
            let why = attempt(&mut near, far, &mut router, &mut bridge).await;
            assert_eq!(why, Ended::Shutdown, "{place}");
            assert_eq!(router.taken, [1, 2, 3], "{place}");
            assert_eq!(bridge.acked, EVENTS, "{place}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_ends_at_any_byte_loses_and_doubles_nothing() {
    cut_everywhere(Fate::Ends, 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_stalls_at_any_byte_is_left_in_time() {
    cut_everywhere(Fate::Stalls, 5).await;
}

/// A running session with both of its ends in the test's hands.
struct Ends {
    input: mpsc::Sender<LinkInput>,
    output: mpsc::Receiver<LinkOutput>,
    shutdown: CancellationToken,
    stats: Arc<LinkStats>,
}

/// Runs a session against `router`, a future that gets the far end of the stream.
async fn against<F: Future<Output = ()>>(
    buffer: usize,
    router: impl FnOnce(DuplexStream) -> F,
    supervisor: impl AsyncFnOnce(Ends),
) -> Ended {
    let (near, far) = duplex(buffer);
    let (input, mut inputs) = mpsc::channel(4);
    let (outputs, output) = mpsc::channel(1);
    let shutdown = CancellationToken::new();
    let clock = Clock::of_tokio(1_000_000, WALL);
    let stats = Arc::new(LinkStats::default());
    let ends = Ends { input, output, shutdown: shutdown.clone(), stats: Arc::clone(&stats) };
    let client = async {
        let socket = match upgrade(near, &uri(), "Switchboard x").await {
            Ok(socket) => socket,
            Err(why) => return why,
        };
        let mut desk = Desk {
            inputs: &mut inputs,
            outputs: &outputs,
            stats: &stats,
            clock: &clock,
            shutdown: &shutdown,
            redial: &Notify::new(),
            silence_ms: protocol::link::HOST_SILENCE_MS,
            sockets: None,
            successor: &mut None,
        };
        let session = Session::new("b".to_owned(), "1".to_owned(), phones(), 0);
        run(socket, session, &mut desk, &mut Phones::default()).await.0
    };
    tokio::select! {
        why = client => why,
        () = async {
            tokio::join!(router(far), supervisor(ends));
            std::future::pending::<()>().await;
        } => unreachable!("the client ends first"),
    }
}

/// A supervisor that listens and says nothing.
async fn listens(mut ends: Ends) {
    while ends.output.recv().await.is_some() {}
    drop(ends.input);
}

async fn next_frame(socket: &mut WebSocketStream<DuplexStream>) -> HostFrame {
    loop {
        match socket.next().await {
            Some(Ok(Message::Text(text))) => return protocol::link::parse_host(&text).unwrap(),
            Some(Ok(_)) => {}
            ended => panic!("{ended:?}"),
        }
    }
}

async fn say(socket: &mut WebSocketStream<DuplexStream>, frames: Vec<RouterFrame>) {
    for frame in frames {
        let text = serde_json::to_string(&frame).unwrap();
        socket.send(Message::text(text)).await.unwrap();
    }
}

async fn welcomed(far: DuplexStream) -> WebSocketStream<DuplexStream> {
    let mut socket = accept_async(far).await.unwrap();
    let hello = next_frame(&mut socket).await;
    say(&mut socket, Router::default().answer(hello)).await;
    socket
}

#[tokio::test(start_paused = true)]
async fn a_router_that_does_not_welcome_is_left_after_ten_seconds() {
    let begun = Instant::now();
    let router = async |far| {
        let _socket = accept_async(far).await.unwrap();
        std::future::pending::<()>().await;
    };
    assert_eq!(against(4_096, router, listens).await, Ended::NoWelcome);
    assert_eq!(begun.elapsed().as_secs(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_wire_that_goes_dead_without_a_word_is_left_within_four_seconds() {
    let begun = Instant::now();
    let router = async |far| {
        let mut socket = welcomed(far).await;
        while socket.next().await.is_some() {}
    };
    let why = against(4_096, router, listens).await;
    assert!(matches!(why, Ended::Silent(_)), "{why}");
    assert_eq!(begun.elapsed().as_secs(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_write_that_does_not_finish_ends_the_session() {
    let router = async |far| {
        let mut socket = welcomed(far).await;
        // It goes on talking, but reads no more.
        loop {
            say(&mut socket, vec![RouterFrame::Pong { at: WALL }]).await;
            sleep(Duration::from_secs(1)).await;
        }
    };
    let supervisor = async |mut ends: Ends| {
        // Before the welcome every event would be dropped, the first one too.
        while !matches!(ends.output.recv().await, Some(LinkOutput::Ack { .. })) {}
        let mut seq = 0;
        loop {
            tokio::select! {
                Some(_) = ends.output.recv() => {}
                Ok(()) = ends.input.send(event(seq + 1)) => seq += 1,
            }
        }
    };
    assert_eq!(against(1_024, router, supervisor).await, Ended::WriteLate(HELLO_WITHIN_MS));
}

#[tokio::test(start_paused = true)]
async fn stopping_says_goodbye_and_closes() {
    let router = async |far| {
        let mut socket = welcomed(far).await;
        loop {
            if let HostFrame::Bye { .. } = next_frame(&mut socket).await {
                break;
            }
        }
        assert!(matches!(socket.next().await, Some(Ok(Message::Close(Some(_))))));
    };
    let supervisor = async |mut ends: Ends| {
        let first = ends.output.recv().await;
        assert!(matches!(first, Some(LinkOutput::Connected { .. })), "{first:?}");
        assert!(ends.stats.is_connected());
        ends.shutdown.cancel();
        listens(ends).await;
    };
    assert_eq!(against(4_096, router, supervisor).await, Ended::Shutdown);
}

#[tokio::test(start_paused = true)]
async fn a_supervisor_that_does_not_listen_can_still_speak() {
    let router = async |far| {
        let mut socket = welcomed(far).await;
        let command = RouterFrame::Command { phone: phone(), epoch: 1, command: cancel() };
        say(&mut socket, vec![command; 8]).await;
        let mut next = 1;
        while next <= 100 {
            if let HostFrame::Event(event) = next_frame(&mut socket).await {
                assert_eq!(event.seq, next);
                next += 1;
            }
        }
        let close = CloseFrame { code: CloseCode::from(4409), reason: "newer".into() };
        socket.close(Some(close)).await.unwrap();
        while socket.next().await.is_some() {}
    };
    let supervisor = async |mut ends: Ends| {
        ends.output.recv().await.unwrap();
        // From here on the queue of outputs, which holds one, is full.
        for seq in 1..=100 {
            ends.input.send(event(seq)).await.unwrap();
        }
        assert_eq!(ends.output.len(), 1);
        listens(ends).await;
    };
    let why = against(4_096, router, supervisor).await;
    assert_eq!(why, Ended::Closed { code: 4409, reason: "newer".to_owned() });
}

#[tokio::test(start_paused = true)]
async fn frames_that_are_not_understood_do_not_end_the_session() {
    let router = async |far| {
        let mut socket = welcomed(far).await;
        socket.send(Message::text(r#"{"type":"dance"}"#)).await.unwrap();
        socket.send(Message::text("not json")).await.unwrap();
        socket.send(Message::binary(vec![0_u8, 1])).await.unwrap();
        say(&mut socket, vec![RouterFrame::Ping { at: UnixMs(42) }]).await;
        loop {
            if next_frame(&mut socket).await == (HostFrame::Pong { at: UnixMs(42) }) {
                break;
            }
        }
        socket.close(None).await.unwrap();
        while socket.next().await.is_some() {}
    };
    let counted = std::cell::OnceCell::new();
    let supervisor = async |ends: Ends| {
        counted.set(Arc::clone(&ends.stats)).unwrap();
        listens(ends).await;
    };
    let why = against(4_096, router, supervisor).await;
    assert_eq!(why, Ended::Closed { code: NO_CLOSE_CODE, reason: String::new() });
    assert_eq!(counted.get().unwrap().refused(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_frame_beyond_the_limit_ends_the_session() {
    let router = async |far| {
        let mut socket = welcomed(far).await;
        let large = "x".repeat(limits::FRAME_BYTES_MAX + 1);
        drop(socket.send(Message::text(large)).await);
    };
    let why = against(4_096, router, listens).await;
    assert!(matches!(why, Ended::Lost(_)), "{why}");
}

#[tokio::test(start_paused = true)]
async fn a_refused_upgrade_says_its_status() {
    for (status, line) in [(401, "401 Unauthorized"), (503, "503 Service Unavailable")] {
        let router = async move |mut far: DuplexStream| {
            let answer = format!("HTTP/1.1 {line}\r\ncontent-length: 0\r\n\r\n");
            far.write_all(answer.as_bytes()).await.unwrap();
            std::future::pending::<()>().await;
        };
        assert_eq!(against(4_096, router, listens).await, Ended::Upgrade { status });
    }
}

fn config(router: &str, key: HostKey) -> LinkConfig {
    LinkConfig {
        redial_max: crate::link::REDIAL_MAX,
        silence: crate::link::SILENCE,
        proxies: crate::proxy::Proxies::Direct,
        router: router.parse().unwrap(),
        host: HostId::new(1, [1; 10]),
        key,
        roots: tls::TlsRoots::Platform,
        boot: "b".to_owned(),
        version: "1".to_owned(),
    }
}

#[tokio::test(start_paused = true)]
async fn the_upgrade_request_is_signed() {
    let config = config("http://router.example/base/", HostKey::generate().unwrap());
    let signed = Asker::Host.sign(&config.key, &config.host, 1_700_000_000, nonce());
    let header = signed.to_string();
    let uri = upgrade_uri(&config.router, false).unwrap();
    let (near, mut far) = duplex(4_096);
    let request = async {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(far.read_u8().await.unwrap());
        }
        drop(far);
        String::from_utf8(request).unwrap()
    };
    let (request, _) = tokio::join!(request, upgrade(near, &uri, &header));
    assert!(request.starts_with("GET /base/v1/link HTTP/1.1\r\n"), "{request}");
    let value = request
        .lines()
        .find_map(|line| {
            line.strip_prefix("authorization: ").or(line.strip_prefix("Authorization: "))
        })
        .unwrap();
    let parsed: Authorization = value.parse().unwrap();
    assert_eq!((parsed.host.clone(), parsed.ts), (config.host.clone(), 1_700_000_000));
    let signed = Authorization::signed("GET", "/v1/link", &parsed.host, parsed.ts, &parsed.nonce);
    assert_eq!(config.key.sign(signed.as_bytes()), parsed.sig);
}
