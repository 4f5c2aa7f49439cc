//! The link over real sockets, as the supervisor runs it.

#![expect(clippy::unwrap_used, clippy::panic, reason = "in a test, a panic is how it fails")]

use std::{sync::Arc, time::Duration};

use futures_util::{SinkExt, StreamExt};
use protocol::{
    HostId, PhoneId, UnixMs,
    link::{
        self, Authorization, HostFrame, PhoneReport, PhoneState, RouterFrame, Welcome, WelcomePhone,
    },
};
use router_client::{
    key::HostKey,
    link::{Ended, INPUT_QUEUE, Link, LinkConfig, LinkInput, LinkOutput, OUTPUT_QUEUE},
    proxy::{Proxies, ProxyFailure},
    tls::{self, TlsRoots},
};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::{
    WebSocketStream, accept_hdr_async,
    tungstenite::{
        Message,
        handshake::server::{ErrorResponse, Request, Response},
        protocol::CloseFrame,
    },
};
use tokio_util::sync::CancellationToken;

/// Everything here happens in milliseconds; this is for a machine that is busy with something else.
const DEADLINE: Duration = Duration::from_secs(20);

fn data(name: &str) -> String {
    format!("{}/tests/data/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn phone() -> PhoneId {
    PhoneId::new(1, [1; 10])
}

struct Supervisor {
    link: Link,
    input: mpsc::Sender<LinkInput>,
    output: mpsc::Receiver<LinkOutput>,
}

fn supervisor(router: &str, roots: TlsRoots) -> Supervisor {
    supervisor_through(router, roots, Proxies::Direct)
}

fn supervisor_through(router: &str, roots: TlsRoots, proxies: Proxies) -> Supervisor {
    let (input, inputs) = mpsc::channel(INPUT_QUEUE);
    let (outputs, output) = mpsc::channel(OUTPUT_QUEUE);
    let config = LinkConfig {
        redial_max: router_client::link::REDIAL_MAX,
        silence: router_client::link::SILENCE,
        proxies,
        router: router.parse().unwrap(),
        host: HostId::new(1, [1; 10]),
        key: HostKey::generate().unwrap(),
        roots,
        boot: "boot".to_owned(),
        version: "1.0.0".to_owned(),
    };
    let link = Link::new(config, inputs, outputs).unwrap();
    Supervisor { link, input, output }
}

fn phone_starts() -> LinkInput {
    let report = PhoneReport {
        phone: phone(),
        journal: Some("j".to_owned()),
        last_seq: 0,
        acked_seq: 0,
        epoch: None,
        state: PhoneState::Ready,
        reasons: Vec::new(),
    };
    LinkInput::Phone { report, started: true }
}

#[expect(
    clippy::result_large_err,
    clippy::unnecessary_wraps,
    reason = "the library's own signature"
)]
fn signed(request: &Request, response: Response) -> Result<Response, ErrorResponse> {
    let header = request.headers().get("authorization").unwrap().to_str().unwrap();
    let authorization: Authorization = header.parse().unwrap();
    assert_eq!(authorization.host, HostId::new(1, [1; 10]));
    assert_eq!(request.uri().path(), link::PATH);
    Ok(response)
}

/// Welcomes a host; its hello has one phone.
async fn welcome<S: AsyncRead + AsyncWrite + Unpin>(stream: S) -> WebSocketStream<S> {
    let mut socket = accept_hdr_async(stream, signed).await.unwrap();
    let Some(Ok(Message::Text(text))) = socket.next().await else { panic!("no hello") };
    let HostFrame::Hello(hello) = link::parse_host(&text).unwrap() else { panic!("{text}") };
    assert_eq!(hello.phones.len(), 1);
    let frame = RouterFrame::Welcome(Welcome {
        session: "s".to_owned(),
        clock: UnixMs(0),
        phones: vec![WelcomePhone {
            phone: phone(),
            epoch: Some(3),
            ttl_ms: link::LEASE_TTL_MS,
            acked_seq: 0,
        }],
        canaries: false,
    });
    let text = serde_json::to_string(&frame).unwrap();
    socket.send(Message::text(text)).await.unwrap();
    socket
}

async fn next(output: &mut mpsc::Receiver<LinkOutput>) -> LinkOutput {
    timeout(DEADLINE, output.recv()).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_lost_session_is_redialled_at_once_and_a_stop_ends_the_link() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let Supervisor { link, input, mut output } =
        supervisor(&format!("http://{address}"), TlsRoots::Platform);
    let stats = link.stats();
    let shutdown = CancellationToken::new();
    input.send(phone_starts()).await.unwrap();
    let router = async {
        let (stream, _) = listener.accept().await.unwrap();
        let socket = welcome(stream).await;
        drop(socket);
        let (stream, _) = listener.accept().await.unwrap();
        let mut socket = welcome(stream).await;
        let mut last = None;
        while let Some(Ok(message)) = socket.next().await {
            if let Message::Text(text) = message {
                last = Some(link::parse_host(&text).unwrap());
            }
        }
        assert!(matches!(last, Some(HostFrame::Bye { .. })), "{last:?}");
    };
    let supervisor = async {
        assert!(matches!(next(&mut output).await, LinkOutput::Connected { .. }));
        assert!(matches!(next(&mut output).await, LinkOutput::Ack { seq: 0, replay: true, .. }));
        let leased = next(&mut output).await;
        assert!(matches!(leased, LinkOutput::Lease { epoch: 3, .. }), "{leased:?}");
        let lost = next(&mut output).await;
        let LinkOutput::Disconnected { why, redial_in } = lost else { panic!("{lost:?}") };
        assert!(matches!(why, Ended::Lost(_) | Ended::Closed { .. }), "{why}");
        assert_eq!(redial_in, Duration::ZERO);
        assert!(matches!(next(&mut output).await, LinkOutput::Connected { .. }));
        assert!(stats.is_connected());
        shutdown.cancel();
        drop(input);
    };
    let all = async { tokio::join!(link.run(shutdown.clone()), router, supervisor) };
    Box::pin(timeout(DEADLINE, all)).await.unwrap();
    assert_eq!(stats.sessions(), 2);
    assert!(!stats.is_connected());
}

#[tokio::test]
async fn a_link_that_is_told_to_dials_anew_at_once_whatever_it_waits_for() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let Supervisor { link, input, mut output } =
        supervisor(&format!("http://{address}"), TlsRoots::Platform);
    let (redial, shutdown) = (link.redial(), CancellationToken::new());
    input.send(phone_starts()).await.unwrap();
    let router = async {
        let (stream, _) = listener.accept().await.unwrap();
        let _living = welcome(stream).await;
        redial.notify_one();
        // The first session lives, and the second one is refused: the next would be dialled after minutes.
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        let until = async {
            while !matches!(
                next(&mut output).await,
                LinkOutput::Disconnected { why: Ended::Upgrade { status: 401 }, .. }
            ) {}
        };
        timeout(DEADLINE, until).await.unwrap();
        redial.notify_one();
        let (stream, _) = timeout(DEADLINE, listener.accept()).await.unwrap().unwrap();
        let _socket = welcome(stream).await;
        shutdown.cancel();
    };
    timeout(DEADLINE, async { tokio::join!(link.run(shutdown.clone()), router) }).await.unwrap();
}

#[tokio::test]
async fn a_router_that_refuses_the_host_is_asked_again_after_minutes() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let Supervisor { link, input, mut output } =
        supervisor(&format!("ws://{address}"), TlsRoots::Platform);
    let shutdown = CancellationToken::new();
    let router = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let answer = b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        stream
    };
    let supervisor = async {
        let refused = next(&mut output).await;
        let LinkOutput::Disconnected { why, redial_in } = refused else { panic!("{refused:?}") };
        assert_eq!(why, Ended::Upgrade { status: 401 });
        assert!(redial_in >= Duration::from_mins(5), "{redial_in:?}");
        // The supervisor's end of the channel is the other way to stop the link.
        drop(input);
    };
    let all = async { tokio::join!(link.run(shutdown), router, supervisor) };
    Box::pin(timeout(DEADLINE, all)).await.unwrap();
}

fn acceptor() -> TlsAcceptor {
    acceptor_with("server.pem")
}

fn acceptor_with(certificate: &str) -> TlsAcceptor {
    let chain = CertificateDer::pem_file_iter(data(certificate)).unwrap();
    let key = PrivateKeyDer::from_pem_file(data("server.key")).unwrap();
    let config = ServerConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain.map(Result::unwrap).collect(), key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

async fn accept_tls(
    stream: TcpStream,
) -> std::io::Result<tokio_rustls::server::TlsStream<TcpStream>> {
    acceptor().accept(stream).await
}

#[tokio::test]
async fn the_link_speaks_tls_with_a_router_it_trusts() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    for name in ["localhost", "127.0.0.1"] {
        let Supervisor { link, input, mut output } =
            supervisor(&format!("https://{name}:{port}"), TlsRoots::File(data("ca.pem").into()));
        let shutdown = CancellationToken::new();
        input.send(phone_starts()).await.unwrap();
        let router = async {
            let (stream, _) = listener.accept().await.unwrap();
            let mut socket = welcome(accept_tls(stream).await.unwrap()).await;
            while socket.next().await.is_some_and(|message| message.is_ok()) {}
        };
        let supervisor = async {
            let first = next(&mut output).await;
            assert!(matches!(first, LinkOutput::Connected { .. }), "{first:?}");
            shutdown.cancel();
        };
        let all = async { tokio::join!(link.run(shutdown.clone()), router, supervisor) };
        Box::pin(timeout(DEADLINE, all)).await.unwrap();
    }
}

#[tokio::test]
async fn a_certificate_that_is_not_trusted_or_of_another_name_ends_the_attempt() {
    let other = TlsRoots::File(data("server.pem").into());
    let ours = TlsRoots::File(data("ca.pem").into());
    let table = [("localhost", other, "nobody who is trusted"), ("0.0.0.0", ours, "another name")];
    for (address, roots, said) in table {
        // Every address of 127.0.0.0/8 is this machine; the certificate names one of them. A listener for each round: the
        // link of the one before may have dialled it again before it was stopped.
        let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let Supervisor { link, input, mut output } =
            supervisor(&format!("wss://{address}:{port}"), roots);
        let shutdown = CancellationToken::new();
        let router = async {
            let (stream, _) = listener.accept().await.unwrap();
            assert!(accept_tls(stream).await.is_err());
        };
        let supervisor = async {
            let ended = next(&mut output).await;
            let LinkOutput::Disconnected { why, .. } = ended else { panic!("{ended:?}") };
            assert!(matches!(why, Ended::Tls(_)), "{why}");
            assert!(why.to_string().contains(said), "{why}");
            drop(input);
        };
        let all = async { tokio::join!(link.run(shutdown.clone()), router, supervisor) };
        Box::pin(timeout(DEADLINE, all)).await.unwrap();
    }
}

/// What a link tells when its first attempt fails against `router`, which gets the listener.
async fn first_end<F: Future<Output = ()>>(
    url: &str,
    roots: TlsRoots,
    proxies: Proxies,
    router: F,
) -> (Ended, Duration) {
    let Supervisor { link, input, mut output } = supervisor_through(url, roots, proxies);
    let stats = link.stats();
    let supervisor = async {
        let ended = next(&mut output).await;
        let LinkOutput::Disconnected { why, redial_in } = ended else { panic!("{ended:?}") };
        assert_eq!(stats.down(), Some(why.to_string()));
        drop(input);
        (why, redial_in)
    };
    let all = async { tokio::join!(link.run(CancellationToken::new()), router, supervisor).2 };
    Box::pin(timeout(DEADLINE, all)).await.unwrap()
}

async fn listening() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// Reads a request up to its end, byte by byte: what follows is left.
async fn request(stream: &mut TcpStream) -> String {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(request).unwrap()
}

#[tokio::test]
async fn a_certificate_that_is_over_is_told_with_the_clock() {
    let (listener, port) = listening().await;
    let router = async {
        let (stream, _) = listener.accept().await.unwrap();
        assert!(acceptor_with("expired.pem").accept(stream).await.is_err());
    };
    let roots = TlsRoots::File(data("expired-ca.pem").into());
    let url = format!("https://localhost:{port}");
    let (why, redial_in) = first_end(&url, roots, Proxies::Direct, router).await;
    let said = why.to_string();
    assert!(matches!(why, Ended::Tls(_)) && said.contains("clock is ahead"), "{said}");
    assert_eq!(redial_in, Duration::ZERO, "the next may be good");
}

#[tokio::test]
async fn a_further_authority_is_trusted_besides_the_systems() {
    let (listener, port) = listening().await;
    let url = format!("https://localhost:{port}");
    let more = TlsRoots::PlatformAnd(data("ca.pem").into());
    let Supervisor { link, input, mut output } = supervisor(&url, more);
    let shutdown = CancellationToken::new();
    input.send(phone_starts()).await.unwrap();
    let router = async {
        let (stream, _) = listener.accept().await.unwrap();
        let mut socket = welcome(accept_tls(stream).await.unwrap()).await;
        while socket.next().await.is_some_and(|message| message.is_ok()) {}
    };
    let supervisor = async {
        let first = next(&mut output).await;
        assert!(matches!(first, LinkOutput::Connected { .. }), "{first:?}");
        shutdown.cancel();
    };
    let all = async { tokio::join!(link.run(shutdown.clone()), router, supervisor) };
    Box::pin(timeout(DEADLINE, all)).await.unwrap();
    // Without it, or with another one, the same certificate is a stranger's.
    let other = TlsRoots::PlatformAnd(data("expired-ca.pem").into());
    let router = async {
        let (stream, _) = listener.accept().await.unwrap();
        assert!(accept_tls(stream).await.is_err());
    };
    let (why, _) = first_end(&url, other, Proxies::Direct, router).await;
    assert!(why.to_string().contains("`extra_ca`"), "{why}");
}

#[tokio::test]
async fn the_link_goes_through_a_proxy_with_its_credentials_and_tls_inside() {
    let (proxy, proxy_port) = listening().await;
    let roots = TlsRoots::File(data("ca.pem").into());
    let through = format!("http://desk:ge%20heim@127.0.0.1:{proxy_port}");
    // Nobody resolves this name here: only the proxy is asked for it.
    let Supervisor { link, input, mut output } =
        supervisor_through("https://localhost:4433", roots, through.parse().unwrap());
    let shutdown = CancellationToken::new();
    input.send(phone_starts()).await.unwrap();
    let proxy = async {
        let (mut stream, _) = proxy.accept().await.unwrap();
        let asked = request(&mut stream).await;
        assert!(asked.starts_with("CONNECT localhost:4433 HTTP/1.1\r\n"), "{asked}");
        // `desk:ge heim` in base64.
        assert!(asked.contains("Proxy-Authorization: Basic ZGVzazpnZSBoZWlt\r\n"), "{asked}");
        stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.unwrap();
        let mut socket = welcome(accept_tls(stream).await.unwrap()).await;
        while socket.next().await.is_some_and(|message| message.is_ok()) {}
    };
    let supervisor = async {
        let first = next(&mut output).await;
        assert!(matches!(first, LinkOutput::Connected { .. }), "{first:?}");
        shutdown.cancel();
    };
    let all = async { tokio::join!(link.run(shutdown.clone()), proxy, supervisor) };
    Box::pin(timeout(DEADLINE, all)).await.unwrap();
}

#[tokio::test]
async fn a_proxy_that_refuses_or_is_not_there_is_named_with_a_remedy() {
    let (listener, port) = listening().await;
    let through: Proxies = format!("http://desk:geheim@127.0.0.1:{port}").parse().unwrap();
    let url = "https://router.example";
    let roots = || TlsRoots::File(data("ca.pem").into());
    let refusing = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        request(&mut stream).await;
        let answer = b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n";
        stream.write_all(answer).await.unwrap();
    };
    let (why, redial_in) = first_end(url, roots(), through.clone(), refusing).await;
    let said = why.to_string();
    assert!(said.contains(&format!("127.0.0.1:{port} answered HTTP 407")), "{said}");
    assert!(said.contains("USER:PASSWORD") && !said.contains("geheim"), "{said}");
    assert!(redial_in >= Duration::from_mins(5), "an account must not be locked: {redial_in:?}");
    drop(listener);
    let (why, redial_in) = first_end(url, roots(), through, async {}).await;
    assert!(
        matches!(&why, Ended::Proxy { why: ProxyFailure::Unreachable(_), .. }),
        "the proxy is what is missing: {why}"
    );
    assert_eq!(redial_in, Duration::ZERO);
}

#[tokio::test]
async fn a_page_in_the_place_of_the_router_is_told_as_one_and_dialled_again() {
    for (answer, shown) in [
        ("200 OK\r\ncontent-type: text/html\r\ncontent-length: 5\r\n\r\nlogin", "HTTP 200"),
        (
            "302 Found\r\nlocation: http://portal.example/login\r\n\r\n",
            "http://portal.example/login",
        ),
        ("511 Network Authentication Required\r\n\r\n", "log in at this network's page"),
    ] {
        // A listener of its own: the link of the round before may have dialled the old one again before it was stopped.
        let (listener, port) = listening().await;
        let url = format!("http://127.0.0.1:{port}");
        let portal = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            request(&mut stream).await;
            stream.write_all(format!("HTTP/1.1 {answer}").as_bytes()).await.unwrap();
        };
        let (why, redial_in) = first_end(&url, TlsRoots::Platform, Proxies::Direct, portal).await;
        assert!(why.to_string().contains(shown), "{why}");
        // Somebody logs in at any moment: it is no refusal of the router's.
        assert_eq!(redial_in, Duration::ZERO);
    }
}

#[tokio::test]
async fn a_draining_router_is_dialled_at_once_and_one_that_replaced_the_session_after_a_minute() {
    let (listener, port) = listening().await;
    let url = format!("http://127.0.0.1:{port}");
    let Supervisor { link, input, mut output } = supervisor(&url, TlsRoots::Platform);
    let shutdown = CancellationToken::new();
    input.send(phone_starts()).await.unwrap();
    let router = async {
        for code in [4503, 4409] {
            let (stream, _) = listener.accept().await.unwrap();
            let mut socket = welcome(stream).await;
            let frame = CloseFrame { code: code.into(), reason: "".into() };
            socket.close(Some(frame)).await.unwrap();
            while socket.next().await.is_some_and(|message| message.is_ok()) {}
        }
    };
    let supervisor = async {
        for (expected, least) in [(4503, Duration::ZERO), (4409, Duration::from_mins(1))] {
            loop {
                if let LinkOutput::Disconnected { why, redial_in } = next(&mut output).await {
                    assert!(matches!(why, Ended::Closed { code, .. } if code == expected), "{why}");
                    assert!(redial_in >= least, "{why}: {redial_in:?}");
                    assert!(least > Duration::ZERO || redial_in.is_zero(), "{redial_in:?}");
                    break;
                }
            }
        }
        shutdown.cancel();
    };
    let all = async { tokio::join!(link.run(shutdown.clone()), router, supervisor) };
    Box::pin(timeout(DEADLINE, all)).await.unwrap();
}

/// A router that has dialled: its end of a WebSocket in memory, and what the link gets of it.
async fn dialled() -> (WebSocketStream<tokio::io::DuplexStream>, router_client::link::Socket) {
    use tokio_tungstenite::tungstenite::protocol::Role;
    let (near, far) = tokio::io::duplex(64 * 1024);
    let near = WebSocketStream::from_raw_socket(near, Role::Server, None).await;
    let far = WebSocketStream::from_raw_socket(far, Role::Client, None).await;
    let text = |error: tokio_tungstenite::tungstenite::Error| error.to_string();
    let socket = near.sink_map_err(text).map(move |message| message.map_err(text));
    (far, Box::new(socket))
}

/// Reads the hello and answers it.
async fn greets(socket: &mut WebSocketStream<tokio::io::DuplexStream>) {
    let Some(Ok(Message::Text(text))) = socket.next().await else { panic!("no hello") };
    let HostFrame::Hello(hello) = link::parse_host(&text).unwrap() else { panic!("{text}") };
    assert_eq!(hello.phones.len(), 1, "what the supervisor told before is not forgotten");
    let (session, clock) = ("s".to_owned(), hello.clock);
    let welcome =
        RouterFrame::Welcome(Welcome { session, clock, phones: Vec::new(), canaries: false });
    socket.send(Message::text(serde_json::to_string(&welcome).unwrap())).await.unwrap();
}

#[tokio::test]
async fn a_router_that_dials_anew_ends_its_session_before() {
    let (input, inputs) = mpsc::channel(INPUT_QUEUE);
    let (outputs, mut output) = mpsc::channel(OUTPUT_QUEUE);
    let (sockets, came) = mpsc::channel(router_client::link::SOCKET_QUEUE);
    let link = Link::accepting(
        "boot".to_owned(),
        "1.0.0".to_owned(),
        (came, router_client::link::SILENCE),
        inputs,
        outputs,
    );
    let (stats, redial, shutdown) = (link.stats(), link.redial(), CancellationToken::new());
    // There is nothing that this side could dial: the wish is forgotten, and ends no session that comes later.
    redial.notify_one();
    input.send(phone_starts()).await.unwrap();
    let story = async {
        let (mut first, socket) = dialled().await;
        assert!(sockets.send(socket).await.is_ok());
        greets(&mut first).await;
        assert!(matches!(next(&mut output).await, LinkOutput::Connected { .. }));
        let (mut second, socket) = dialled().await;
        assert!(sockets.send(socket).await.is_ok());
        let ended = next(&mut output).await;
        assert_eq!(
            ended,
            LinkOutput::Disconnected { why: Ended::Replaced, redial_in: Duration::ZERO }
        );
        greets(&mut second).await;
        assert!(matches!(next(&mut output).await, LinkOutput::Connected { .. }));
        // The one before is over, whether it could still be heard or not.
        while first.next().await.is_some_and(|message| message.is_ok()) {}
        assert!(stats.is_connected());
        shutdown.cancel();
        let mut last = None;
        while let Some(Ok(message)) = second.next().await {
            if let Message::Text(text) = message {
                last = Some(link::parse_host(&text).unwrap());
            }
        }
        assert!(matches!(last, Some(HostFrame::Bye { .. })), "{last:?}");
    };
    let all = async { tokio::join!(link.run(shutdown.clone()), story) };
    Box::pin(timeout(DEADLINE, all)).await.unwrap();
    assert_eq!(stats.sessions(), 2);
}
