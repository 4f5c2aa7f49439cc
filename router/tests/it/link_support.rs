//! What the tests of link, dispatch and webhooks share: a router on a real socket with a store in a temporary folder,
//! a host that does what its script says, and a tenant's endpoint that answers as told.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "a script that meets something else than it expects has failed, and says where"
)]

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use data_encoding::BASE64URL_NOPAD;
use futures_util::{SinkExt as _, StreamExt as _};
use protocol::api::{MessageEvent, Tenant, WebhookEndpoint};
use protocol::link::{
    Authorization, EnrolPhone, EnrolRequest, EventFrame, HostFrame, HostHello, PATH, PhoneReport,
    PhoneState, RouterFrame, Welcome,
};
use protocol::pipe::{
    Attempt, AttemptReason, Command, Conversation, ConversationKind, Event, Received, Send,
};
use protocol::{
    Channel, ChannelChoice, Class, EndpointId, HostId, MessageId, PhoneId, Reason, Recipient,
    Status, TenantId, UnixMs,
};
use router::clock::{Clock, random};
use router::config::Config;
use router::params;
use router::server::{self, App, AppState};
use router::store::messages::{self, NewMessage};
use router::store::{admin, events, webhook_endpoints};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message as Ws};
use tokio_tungstenite::tungstenite::{self, client::IntoClientRequest as _};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

/// Nothing here takes longer; a wait that does is a failure.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);

/// A router with its store in a temporary folder.
pub(crate) struct Router {
    pub(crate) app: AppState,
    pub(crate) address: SocketAddr,
    folder: Option<tempfile::TempDir>,
}

impl Drop for Router {
    fn drop(&mut self) {
        self.app.stop.cancel();
    }
}

/// A router as it is served, with `settings` on top of what suits tests.
pub(crate) async fn router(settings: &str) -> Router {
    let folder = tempfile::tempdir().unwrap();
    router_in(folder, settings).await
}

/// A router with a tenant, and a host with these phones whose bridge has come.
pub(crate) async fn shelf(settings: &str, numbers: &[&str]) -> (Router, TenantId, Host, Bridge) {
    let router = router(settings).await;
    let tenant = tenant(&router.app, "Acme").await;
    let host = host(&router.app, numbers).await;
    let bridge = Bridge::connect(&router, &host).await;
    (router, tenant, host, bridge)
}

/// The same on the store of an earlier one.
pub(crate) async fn router_in(folder: tempfile::TempDir, settings: &str) -> Router {
    let app = open(folder.path(), settings).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = AppState::clone(&app);
    app.tasks.spawn(async move { server::serve(&serving, listener).await.unwrap() });
    Router { app, address, folder: Some(folder) }
}

impl Router {
    /// Stops it and gives its folder to the next.
    pub(crate) async fn stop(mut self) -> tempfile::TempDir {
        self.app.stop.cancel();
        self.app.tasks.close();
        tokio::time::timeout(DEADLINE, self.app.tasks.wait()).await.expect("the router stops");
        self.folder.take().unwrap()
    }
}

/// The parts without any worker or socket, for tests that turn the crank themselves.
pub(crate) async fn open(folder: &Path, settings: &str) -> AppState {
    // Tests run at any hour; those about the hours choose their own.
    let hours =
        if settings.contains("[compliance]") { "" } else { "[compliance]\nhours = \"off\"\n" };
    // A wire of these tests says only what its test says, and answers no pings.
    let link = if settings.contains("[link]") { "" } else { "[link]\nsilence_ms = 600000\n" };
    let text = format!(
        "database = \"switchboard.db\"\ndatabase_log_mib = 0\ndrain_ms = 2000\n{settings}\n{link}{hours}"
    );
    let config = Config::parse(
        &text,
        &folder.join("router.toml"),
        Some("an-admin-token-for-tests".to_owned()),
    )
    .unwrap();
    // The router before this one lets go of its files when its threads have ended.
    let opened = tokio::time::timeout(DEADLINE, async {
        loop {
            match App::open(config.clone(), Clock::system()).await {
                Ok(app) => return app,
                Err(_locked) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    });
    opened.await.expect("the store opens")
}

pub(crate) async fn tenant(app: &App, name: &str) -> TenantId {
    let now = app.clock.now();
    let tenant = Tenant {
        id: TenantId::new(now.0, random()),
        name: name.to_owned(),
        brand: name.to_owned(),
        created_at: now,
    };
    let id = tenant.id.clone();
    app.store.write(move |tx| admin::insert_tenant(tx, &tenant)).await.unwrap();
    id
}

pub(crate) async fn endpoint(app: &App, tenant: &TenantId, url: &str, secret: &str) -> EndpointId {
    let now = app.clock.now();
    let endpoint = WebhookEndpoint {
        id: EndpointId::new(now.0, random()),
        url: url.to_owned(),
        events: Vec::new(),
        disabled_at: None,
        disabled_reason: None,
        description: None,
        test: false,
        failing_since: None,
        failures: 0,
        paused_until: None,
        old_secret_until: None,
        created_at: now,
    };
    let id = endpoint.id.clone();
    let (tenant, secret) = (tenant.clone(), secret.to_owned());
    app.store
        .write(move |tx| webhook_endpoints::insert(tx, &tenant, &endpoint, &secret))
        .await
        .unwrap();
    id
}

/// An enrolled host with its key and phones.
pub(crate) struct Host {
    pub(crate) id: HostId,
    pub(crate) key: Ed25519KeyPair,
    pub(crate) phones: Vec<PhoneId>,
}

pub(crate) async fn host(app: &App, numbers: &[&str]) -> Host {
    let key = Ed25519KeyPair::from_seed_unchecked(&random::<32>()).unwrap();
    enrol(app, key, numbers).await
}

pub(crate) async fn enrol(app: &App, key: Ed25519KeyPair, numbers: &[&str]) -> Host {
    enrol_as(app, key, numbers, (false, false)).await
}

/// A host that stands by for phones that others serve.
pub(crate) async fn enrol_standby(app: &App, key: Ed25519KeyPair, numbers: &[&str]) -> Host {
    enrol_as(app, key, numbers, (true, false)).await
}

/// A host whose phones are of the sandbox.
pub(crate) async fn sandbox_host(app: &App, numbers: &[&str]) -> Host {
    let key = Ed25519KeyPair::from_seed_unchecked(&random::<32>()).unwrap();
    enrol_as(app, key, numbers, (false, true)).await
}

async fn enrol_as(
    app: &App,
    key: Ed25519KeyPair,
    numbers: &[&str],
    (standby, sandbox): (bool, bool),
) -> Host {
    let token = random::<32>();
    let public: [u8; 32] = key.public_key().as_ref().try_into().unwrap();
    let request = EnrolRequest {
        token: String::new(),
        name: "a shelf".to_owned(),
        public_key: String::new(),
        phones: numbers
            .iter()
            .map(|number| EnrolPhone {
                number: number.parse().unwrap(),
                label: None,
                channels: None,
                standby,
                sandbox,
            })
            .collect(),
    };
    let now = app.clock.now();
    let answer = app
        .store
        .write(move |tx| {
            admin::insert_enrolment_token(tx, &token, now.plus_ms(60_000), now)?;
            admin::enrol(tx, &token, &request, &public, now)
        })
        .await
        .unwrap()
        .unwrap();
    Host {
        id: answer.host,
        key,
        phones: answer.phones.into_iter().map(|phone| phone.phone).collect(),
    }
}

/// The header that opens the link.
pub(crate) fn authorization(host: &Host, ts: i64, nonce: &str) -> String {
    let sig = host.key.sign(Authorization::signed("GET", PATH, &host.id, ts, nonce).as_bytes());
    Authorization {
        host: host.id.clone(),
        ts,
        nonce: nonce.to_owned(),
        sig: BASE64URL_NOPAD.encode(sig.as_ref()),
    }
    .to_string()
}

pub(crate) fn nonce() -> String {
    BASE64URL_NOPAD.encode(&random::<16>())
}

/// The host's end of a link.
pub(crate) struct Wire {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

pub(crate) async fn dial(
    address: SocketAddr,
    header: Option<&str>,
) -> Result<Wire, tungstenite::Error> {
    let mut request = format!("ws://{address}{PATH}").into_client_request()?;
    if let Some(header) = header {
        request.headers_mut().insert("authorization", header.parse().unwrap());
    }
    let tcp = TcpStream::connect(address).await.unwrap();
    let (socket, _answer) =
        tokio_tungstenite::client_async(request, MaybeTlsStream::Plain(tcp)).await?;
    Ok(Wire { socket })
}

pub(crate) fn report(phone: &PhoneId, state: PhoneState) -> PhoneReport {
    PhoneReport {
        phone: phone.clone(),
        journal: Some("journal-1".to_owned()),
        last_seq: 0,
        acked_seq: 0,
        epoch: None,
        state,
        reasons: Vec::new(),
    }
}

pub(crate) fn hello(phones: Vec<PhoneReport>) -> HostFrame {
    HostFrame::Hello(HostHello {
        protocol: protocol::PROTOCOL,
        version: "0.1.0".to_owned(),
        boot: "boot-1".to_owned(),
        clock: UnixMs(0),
        phones,
    })
}

/// What came, or how it ended.
#[derive(Debug)]
pub(crate) enum Came {
    Frame(Box<RouterFrame>),
    Closed(Option<u16>),
}

impl Wire {
    pub(crate) async fn say(&mut self, frame: &HostFrame) {
        self.say_text(serde_json::to_string(frame).unwrap()).await;
    }

    pub(crate) async fn say_text(&mut self, text: String) {
        self.socket.send(Ws::Text(text.into())).await.unwrap();
    }

    pub(crate) async fn say_raw(&mut self, message: Ws) -> Result<(), tungstenite::Error> {
        self.socket.send(message).await
    }

    pub(crate) async fn next(&mut self) -> Came {
        loop {
            let message = tokio::time::timeout(DEADLINE, self.socket.next())
                .await
                .expect("the router says something");
            match message {
                Some(Ok(Ws::Text(text))) => {
                    return Came::Frame(Box::new(
                        protocol::link::parse_router(text.as_str()).unwrap(),
                    ));
                }
                Some(Ok(Ws::Close(frame))) => {
                    return Came::Closed(frame.map(|CloseFrame { code, .. }| code.into()));
                }
                Some(Ok(_)) => {}
                None | Some(Err(_)) => return Came::Closed(None),
            }
        }
    }

    /// The next frame that `want` takes; others (leases, pings) are passed over.
    pub(crate) async fn until<T>(&mut self, mut want: impl FnMut(&RouterFrame) -> Option<T>) -> T {
        loop {
            match self.next().await {
                Came::Frame(frame) => {
                    if let Some(wanted) = want(&frame) {
                        return wanted;
                    }
                }
                Came::Closed(code) => panic!("the router closed the link: {code:?}"),
            }
        }
    }

    pub(crate) async fn closed(&mut self) -> Option<u16> {
        loop {
            if let Came::Closed(code) = self.next().await {
                return code;
            }
        }
    }

    /// Waits, without a deadline of its own, until the router closes; the code.
    pub(crate) async fn hung_up(&mut self) -> Option<u16> {
        while let Some(Ok(message)) = self.socket.next().await {
            if let Ws::Close(frame) = message {
                return frame.map(|CloseFrame { code, .. }| code.into());
            }
        }
        None
    }

    pub(crate) async fn welcome(&mut self) -> Welcome {
        self.until(|frame| match frame {
            RouterFrame::Welcome(welcome) => Some(welcome.clone()),
            _ => None,
        })
        .await
    }

    pub(crate) async fn send_command(&mut self) -> Send {
        self.until(|frame| match frame {
            RouterFrame::Command { command: Command::Send(send), .. } => Some(send.clone()),
            _ => None,
        })
        .await
    }

    pub(crate) async fn cancel_command(&mut self) -> (MessageId, u32) {
        self.until(|frame| match frame {
            RouterFrame::Command { command: Command::Cancel { message, attempt }, .. } => {
                Some((message.clone(), *attempt))
            }
            _ => None,
        })
        .await
    }

    pub(crate) async fn ack(&mut self, seq: u64) {
        self.until(|frame| match frame {
            RouterFrame::Ack { seq: acked, .. } if *acked >= seq => Some(()),
            _ => None,
        })
        .await;
    }
}

/// A host whose one bridge journals, says, and is acknowledged.
pub(crate) struct Bridge {
    pub(crate) wire: Wire,
    pub(crate) phone: PhoneId,
    pub(crate) seq: u64,
    pub(crate) epoch: u64,
}

impl Bridge {
    /// Dials, says hello with its first phone ready, and is welcomed.
    pub(crate) async fn connect(router: &Router, host: &Host) -> Self {
        Self::connect_at(router, host, 0).await
    }

    pub(crate) async fn connect_at(router: &Router, host: &Host, seq: u64) -> Self {
        let now_s = router.app.clock.now().0 / 1_000;
        let header = authorization(host, now_s, &nonce());
        let mut wire = dial(router.address, Some(&header)).await.unwrap();
        let phone = host.phones[0].clone();
        wire.say(&hello(vec![report(&phone, PhoneState::Ready)])).await;
        let welcome = wire.welcome().await;
        assert_eq!(welcome.phones.len(), 1, "{welcome:?}");
        assert_eq!(welcome.phones[0].acked_seq, seq);
        Self { wire, phone, seq, epoch: welcome.phones[0].epoch.expect("the lease is granted") }
    }

    pub(crate) fn frame(&self, seq: u64, event: Event) -> HostFrame {
        HostFrame::Event(EventFrame {
            phone: self.phone.clone(),
            journal: "journal-1".to_owned(),
            seq,
            epoch: Some(self.epoch),
            at: Clock::system().now(),
            event,
        })
    }

    /// Says an event and waits until it is acknowledged.
    pub(crate) async fn event(&mut self, event: Event) {
        self.seq += 1;
        let frame = self.frame(self.seq, event);
        self.wire.say(&frame).await;
        self.wire.ack(self.seq).await;
    }

    /// What a phone says of a message that goes well.
    pub(crate) async fn sends(&mut self, send: &Send) {
        let attempt = Attempt { message: send.message.clone(), attempt: send.attempt };
        let channel = send.route[0];
        self.event(Event::Accepted(attempt.clone())).await;
        self.event(Event::Started { attempt: attempt.clone(), channel }).await;
        self.event(Event::Sent { attempt, channel, guid: format!("guid-{}", send.message) }).await;
    }
}

pub(crate) fn about(send: &Send, reason: Reason, retryable: bool) -> AttemptReason {
    AttemptReason {
        attempt: Attempt { message: send.message.clone(), attempt: send.attempt },
        reason,
        detail: String::new(),
        retryable,
        channel: None,
    }
}

pub(crate) fn received(from: &str, guid: &str, text: &str, at: UnixMs) -> Event {
    let from: Recipient = from.parse().unwrap();
    Event::Received(Received {
        guid: guid.to_owned(),
        conversation: Conversation { kind: ConversationKind::Direct, id: from.to_string() },
        from,
        text: text.to_owned(),
        attachments: Vec::new(),
        service: Channel::Imessage,
        at,
        late: false,
        details: Box::default(),
    })
}

/// A message as the API accepts it.
pub(crate) async fn accept(
    app: &App,
    tenant: &TenantId,
    to: &str,
    change: impl FnOnce(&mut NewMessage),
) -> MessageId {
    let now = app.clock.now();
    let mut new = NewMessage {
        id: MessageId::new(now.0, random()),
        test: false,
        recipient: to.parse().unwrap(),
        from: None,
        channel: ChannelChoice::Auto,
        fallback: None,
        media: Vec::new(),
        class: Class::Marketing,
        text: "Hello".to_owned(),
        template: None,
        batch: None,
        metadata: None,
        send_at: None,
        expires_at: now.plus_ms(3_600_000),
        now,
    };
    change(&mut new);
    let id = new.id.clone();
    let tenant = tenant.clone();
    app.store
        .write(move |tx| {
            let reservation = messages::reserve(tx, &tenant, &new)?.expect("it can be paid");
            messages::accept(tx, &tenant, &new, &reservation).map(drop)
        })
        .await
        .unwrap();
    app.bells.dispatch.notify_one();
    id
}

pub(crate) async fn message(
    app: &App,
    tenant: &TenantId,
    id: &MessageId,
) -> protocol::api::Message {
    let (tenant, id) = (tenant.clone(), id.clone());
    app.store.read(move |tx| messages::get(tx, &tenant, &id)).await.unwrap().unwrap()
}

pub(crate) async fn story(app: &App, tenant: &TenantId, id: &MessageId) -> Vec<MessageEvent> {
    let (tenant, id) = (tenant.clone(), id.clone());
    app.store.read(move |tx| events::list(tx, &tenant, &id, 0, 100)).await.unwrap()
}

pub(crate) async fn kinds(app: &App, tenant: &TenantId, id: &MessageId) -> Vec<String> {
    story(app, tenant, id).await.into_iter().map(|event| event.kind).collect()
}

/// An opt-out withdraws what is marked as being on its way: whatever became of a message, its mark says where it is.
async fn all_are_in_their_places(app: &App) {
    let wrong = "SELECT COUNT(*) FROM messages
         WHERE on_the_way <> (direction = 'outbound' AND status IN ('queued', 'scheduled', 'dispatching'))";
    assert_eq!(count(app, wrong).await, 0);
}

/// Waits for a status; the message as it then stands.
pub(crate) async fn reaches(
    app: &App,
    tenant: &TenantId,
    id: &MessageId,
    status: Status,
) -> protocol::api::Message {
    let mut last = None;
    let waited = tokio::time::timeout(DEADLINE, async {
        loop {
            let now = message(app, tenant, id).await;
            if now.status == status {
                all_are_in_their_places(app).await;
                return now;
            }
            last = Some(now.status);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    waited.unwrap_or_else(|_late| panic!("{id} stays {last:?} and never reaches {status}"))
}

/// One number, asked of the store.
pub(crate) async fn count(app: &App, sql: &'static str) -> i64 {
    app.store.read(move |tx| tx.query_row(sql, params![], |row| row.int(0))).await.unwrap()
}

/// Waits until `holds` does.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let waited = tokio::time::timeout(DEADLINE, async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert!(waited.is_ok(), "never happens: {what}");
}
