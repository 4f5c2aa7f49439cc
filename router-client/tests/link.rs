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
    tls::{self, TlsRoots},
};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
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
    let (input, inputs) = mpsc::channel(INPUT_QUEUE);
    let (outputs, output) = mpsc::channel(OUTPUT_QUEUE);
    let config = LinkConfig {
        redial_max: router_client::link::REDIAL_MAX,
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
    let chain = CertificateDer::pem_file_iter(data("server.pem")).unwrap();
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
    // Every address of 127.0.0.0/8 is this machine; the certificate names one of them.
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let other = TlsRoots::File(data("server.pem").into());
    let ours = TlsRoots::File(data("ca.pem").into());
    for (address, roots) in [("localhost", other), ("0.0.0.0", ours)] {
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
            drop(input);
        };
        let all = async { tokio::join!(link.run(shutdown.clone()), router, supervisor) };
        Box::pin(timeout(DEADLINE, all)).await.unwrap();
    }
}
