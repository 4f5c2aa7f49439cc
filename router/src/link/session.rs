//! One session with one host, from its first frame to its last.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::ControlFlow;
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message};
use data_encoding::HEXLOWER;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{FutureExt as _, Sink, SinkExt as _, Stream, StreamExt as _};
use protocol::link::{
    EventFrame, HELLO_WITHIN_MS, HostFrame, HostHealth, HostHello, PhoneReport, PhoneState,
    RouterFrame, Welcome, WelcomePhone, close, parse_host,
};
use protocol::{HostId, PROTOCOL_MIN, PhoneId, UnixMs};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::{Ending, Registered};
use crate::lease::Decision;
use crate::server::AppState;
use crate::store::lease::{self as rows, Asked, Reported};
use crate::store::{StoreError, Tx, standby};
use crate::{canaries, clock, dispatch, inbound};

/// Frames read at once before they are handled: what a host has sent while the store was at the last batch. As many as
/// its bridges may have on the way without an acknowledgement.
const BATCH_FRAMES: usize = protocol::limits::EVENT_WINDOW;

/// The same in bytes: frames of ordinary size come nowhere near, and a host that says much holds little memory.
const BATCH_BYTES: usize = 4 * protocol::limits::FRAME_BYTES_MAX;

/// Answers of the owner waiting for the writer. The owner waits when it is full: a host that does not read is not read.
const ANSWERS: usize = 64;

/// A phone that another host has is not asked for again sooner than this.
const ASK_AGAIN_MIN: Duration = Duration::from_millis(20);

/// Every write ends within this time, or the session does.
const WRITE_WITHIN: Duration = Duration::from_millis(HELLO_WITHIN_MS);

/// RFC 6455's code for a peer that breaks the protocol.
const PROTOCOL_ERROR: u16 = 1002;
/// RFC 6455's code for a normal end.
const NORMAL: u16 = 1000;

/// What the writer is told.
#[derive(Debug)]
enum Out {
    Frame(RouterFrame),
    Close(u16, &'static str),
}

/// Why a session has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The socket is gone, or can no longer be read.
    Gone,
    /// We close it, with a code and a word for people.
    Close(u16, &'static str),
}

struct Session {
    app: AppState,
    host: HostId,
    id: String,
    answers: mpsc::Sender<Out>,
    /// The phones that this host serves or stands by for.
    phones: HashSet<PhoneId>,
    /// The newest renewal that was answered. A lease that is granted later counts from it.
    renewal: u64,
    /// Phones whose lease another host has: what was said of them last, and when asking again can help. A host that
    /// stands by does not have to wait for its next renewal.
    waits: BTreeMap<PhoneId, (PhoneReport, UnixMs)>,
    /// What was said of each phone last.
    reports: BTreeMap<PhoneId, PhoneReport>,
    /// When anything was last heard, or could not be because nobody listened.
    heard: Instant,
}

/// Something that carries the messages of a session, whoever has opened it.
pub(super) trait Socket<E>:
    Stream<Item = Result<Message, E>> + Sink<Message, Error = E> + Send + Unpin + 'static
{
}
impl<T, E> Socket<E> for T where
    T: Stream<Item = Result<Message, E>> + Sink<Message, Error = E> + Send + Unpin + 'static
{
}

/// The life of a session: how it ended, and how long it was welcome.
pub(super) async fn run<S, E>(app: AppState, host: HostId, socket: S) -> (End, Duration)
where
    S: Socket<E>,
    E: std::fmt::Display + Send + 'static,
{
    let (sink, mut frames) = socket.split();
    let mut lived = Duration::ZERO;
    let id = HEXLOWER.encode(&clock::random::<8>());
    let (answers, answered) = mpsc::channel(ANSWERS);
    let (commands, commanded) = mpsc::channel(1);
    let writer = app.tasks.spawn(write(AppState::clone(&app), sink, answered, commanded));
    let mut session = Session {
        app: AppState::clone(&app),
        host: host.clone(),
        id: id.clone(),
        answers,
        phones: HashSet::new(),
        renewal: 0,
        waits: BTreeMap::new(),
        reports: BTreeMap::new(),
        heard: Instant::now(),
    };
    let end = match session.hello(&mut frames).await {
        Err(end) => end,
        Ok(hello) => {
            let Registered { outbox, ending, free } = app.links.register(&host, &id);
            tracing::info!(host = %host, session = %id, version = %hello.version, "link: a session has begun");
            let welcomed = session.welcome(hello).await;
            let began = Instant::now();
            let end = match welcomed {
                Err(end) => end,
                Ok(()) => {
                    // Commands flow only after the welcome: a host ignores nothing that comes in order.
                    if commands.send(outbox).await.is_err() {
                        End::Gone
                    } else {
                        let end = session.live(&mut frames, ending, &free).await;
                        lived = began.elapsed();
                        end
                    }
                }
            };
            if app.links.unregister(&host, &id) {
                let (gone, session) = (host.clone(), id.clone());
                let noted =
                    app.store.write(move |tx| rows::session_ended(tx, &gone, &session)).await;
                if let Err(error) = noted {
                    tracing::warn!(host = %host, error = %error, "link: the end of a session was not written down");
                }
            }
            tracing::info!(host = %host, session = %id, end = ?end, "link: a session has ended");
            end
        }
    };
    if let End::Close(code, why) = end {
        // The writer has died of its own accord when it no longer listens.
        drop(session.answers.send(Out::Close(code, why)).await);
    }
    drop(session);
    drop(commands);
    // The writer ends by itself: every write of it has a deadline.
    if let Err(error) = writer.await {
        tracing::error!(host = %host, error = %error, "link: the writer panicked");
    }
    (end, lived)
}

/// The writer: the owner's answers first, then commands, and where there is neither a ping. That is not the owner's to do:
/// one that waits for the store would seem gone.
async fn write<S, E>(
    app: AppState,
    mut sink: SplitSink<S, Message>,
    mut answers: mpsc::Receiver<Out>,
    mut given: mpsc::Receiver<mpsc::Receiver<RouterFrame>>,
) where
    S: Sink<Message, Error = E>,
    E: std::fmt::Display,
{
    let every = Duration::from_millis(app.config.link.ping_ms);
    let mut commands: Option<mpsc::Receiver<RouterFrame>> = None;
    let mut said = Instant::now();
    loop {
        // Before the welcome nothing counts.
        let greeted = commands.is_some();
        let out = tokio::select! {
            biased;
            answer = answers.recv() => match answer {
                Some(out) => out,
                None => return,
            },
            Some(outbox) = given.recv(), if commands.is_none() => {
                commands = Some(outbox);
                continue;
            }
            Some(frame) = next(&mut commands) => Out::Frame(frame),
            () = sleep_until(said + every), if greeted => {
                Out::Frame(RouterFrame::Ping { at: app.clock.now() })
            }
        };
        said = Instant::now();
        let (message, last) = match out {
            Out::Frame(frame) => match serde_json::to_string(&frame) {
                Ok(text) => (Message::Text(text.into()), false),
                Err(error) => {
                    tracing::error!(error = %error, "link: a frame cannot be written as JSON");
                    continue;
                }
            },
            Out::Close(code, why) => {
                (Message::Close(Some(CloseFrame { code, reason: why.into() })), true)
            }
        };
        match timeout(WRITE_WITHIN, sink.send(message)).await {
            Ok(Ok(())) if !last => {}
            Ok(Ok(())) => return,
            Ok(Err(error)) => {
                tracing::debug!(error = %error, "link: a write failed");
                return;
            }
            Err(_elapsed) => {
                tracing::warn!("link: a host does not read");
                return;
            }
        }
    }
}

/// The next command; never, where there is no outbox yet, and never again once it is closed.
async fn next(commands: &mut Option<mpsc::Receiver<RouterFrame>>) -> Option<RouterFrame> {
    match commands {
        Some(outbox) => match outbox.recv().await {
            Some(frame) => Some(frame),
            None => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

/// What came from the socket.
enum Came {
    Frame(Box<HostFrame>),
    /// Something that is not for us: a WebSocket ping, a refused frame.
    Nothing,
}

/// What a message weighs in memory.
fn weight(message: &Message) -> usize {
    match message {
        Message::Text(text) => text.len(),
        Message::Binary(bytes) | Message::Ping(bytes) | Message::Pong(bytes) => bytes.len(),
        Message::Close(_) => 0,
    }
}

/// Reads a message. Frames that cannot be understood are refused by name and counted; the session goes on.
fn understand(host: &HostId, message: Message) -> Result<Came, End> {
    match message {
        Message::Text(text) => match parse_host(text.as_str()) {
            Ok(frame) => Ok(Came::Frame(Box::new(frame))),
            Err(error) => {
                metrics::counter!("switchboard_link_refused_frames_total", "why" => error.label())
                    .increment(1);
                tracing::warn!(host = %host, error = %error, "link: a frame was refused");
                Ok(Came::Nothing)
            }
        },
        Message::Binary(_) => {
            metrics::counter!("switchboard_link_refused_frames_total", "why" => "binary")
                .increment(1);
            tracing::warn!(host = %host, "link: a binary frame was refused");
            Ok(Came::Nothing)
        }
        Message::Ping(_) | Message::Pong(_) => Ok(Came::Nothing),
        Message::Close(_) => Err(End::Gone),
    }
}

impl Session {
    /// The first frame, in time and of a version that we speak.
    async fn hello<S, E>(&mut self, frames: &mut SplitStream<S>) -> Result<HostHello, End>
    where
        S: Stream<Item = Result<Message, E>> + Unpin,
    {
        let deadline = Instant::now() + Duration::from_millis(HELLO_WITHIN_MS);
        loop {
            let message = tokio::select! {
                () = self.app.stop.cancelled() => {
                    return Err(End::Close(close::DRAINING, "draining"));
                }
                () = sleep_until(deadline) => {
                    return Err(End::Close(PROTOCOL_ERROR, "no hello in time"));
                }
                message = frames.next() => match message {
                    None | Some(Err(_)) => return Err(End::Gone),
                    Some(Ok(message)) => message,
                },
            };
            let protocol_only = matches!(message, Message::Ping(_) | Message::Pong(_));
            let frame = match understand(&self.host, message)? {
                Came::Nothing if protocol_only => continue,
                Came::Nothing => None,
                Came::Frame(frame) => Some(*frame),
            };
            let Some(HostFrame::Hello(hello)) = frame else {
                return Err(End::Close(PROTOCOL_ERROR, "hello must come first"));
            };
            if hello.protocol < PROTOCOL_MIN {
                return Err(End::Close(close::PROTOCOL_TOO_OLD, "protocol too old"));
            }
            return Ok(hello);
        }
    }

    /// Takes in the hello and answers it.
    async fn welcome(&mut self, hello: HostHello) -> Result<(), End> {
        let now = self.app.clock.now();
        let (host, id, policy) = (self.host.clone(), self.id.clone(), self.app.lease_policy());
        let (own, phones, asked, foreign) = self
            .app
            .store
            .write(move |tx| {
                rows::session_began(tx, &host, &id, (&hello.boot, &hello.version), now)?;
                let own = standby::phones_of(tx, &host)?;
                rows::not_reported(tx, &host, &own, &named(&hello.phones), now)?;
                let (mut phones, mut answers, mut foreign) = (Vec::new(), Vec::new(), Vec::new());
                for report in hello.phones.into_iter().take(protocol::limits::PHONES_PER_HOST_MAX) {
                    if rows::report(tx, &host, &report, now)? == Reported::Foreign {
                        foreign.push(report.phone);
                        continue;
                    }
                    let asked = rows::ask(tx, policy, (&report.phone, &host), report.epoch, now)?;
                    phones.push(WelcomePhone {
                        phone: report.phone.clone(),
                        epoch: epoch_of(&asked.decision),
                        ttl_ms: u64::try_from(policy.ttl_ms).unwrap_or(0),
                        acked_seq: acked(tx, &report, now)?,
                    });
                    answers.push((report, asked));
                }
                Ok((own, phones, answers, foreign))
            })
            .await
            .map_err(|error| self.store_failed(&error))?;
        for phone in foreign {
            self.foreign(&phone);
        }
        self.phones = own.into_iter().collect();
        let welcome = Welcome { session: self.id.clone(), clock: now, phones, canaries: true };
        self.answer(RouterFrame::Welcome(welcome)).await?;
        let mut ready = Vec::new();
        for (report, asked) in asked {
            let (phone, state) = (report.phone.clone(), report.state);
            self.note(&report);
            let epoch = self.asked(report, &asked).await?;
            if epoch.is_some() && state == PhoneState::Ready {
                ready.push(phone);
            }
        }
        self.phones_came(&ready, now).await?;
        self.ask_of_doubts().await
    }

    /// What was lost with this host, or with another one of its phones, it may know the end of.
    async fn ask_of_doubts(&self) -> Result<(), End> {
        dispatch::ask_of_doubts(&self.app, Some(&self.host))
            .await
            .map_err(|error| self.store_failed(&error))
    }

    /// What an answer to a question for a lease means beside the lease itself: a phone that goes to another host, one
    /// that came from another, one that is to be asked for again.
    async fn asked(&mut self, report: PhoneReport, asked: &Asked) -> Result<Option<u64>, End> {
        let phone = report.phone.clone();
        if let Some(took) = &asked.took {
            let kind = if took.planned { "planned" } else { "lost" };
            metrics::counter!("switchboard_failovers_total", "type" => kind).increment(1);
            tracing::warn!(phone = %phone, host = %self.host, kind, lost = took.lost, "link: the phone is served by another host now");
            self.app.bells.webhooks.notify_one();
        }
        let Decision::Refuse { until_ms } = &asked.decision else {
            self.waits.remove(&phone);
            return Ok(epoch_of(&asked.decision));
        };
        self.waits.insert(phone.clone(), (report, UnixMs(*until_ms)));
        if let Some(epoch) = asked.release {
            self.answer(RouterFrame::Release { phone, epoch }).await?;
        }
        Ok(None)
    }

    /// Asks again for the phones that may be free by now.
    async fn ask_again(&mut self, all: bool) -> Result<(), End> {
        let now = self.app.clock.now();
        let due: Vec<PhoneReport> = self
            .waits
            .values()
            .filter(|(_, until)| all || *until <= now)
            .map(|(report, _)| report.clone())
            .collect();
        if due.is_empty() { Ok(()) } else { self.lease(self.renewal, due, None).await }
    }

    /// How long until asking again for a phone can help.
    fn next_free(&self) -> Option<Duration> {
        let now = self.app.clock.now();
        let first = self.waits.values().map(|(_, until)| until.since(now)).min()?;
        // Not in a circle, whatever the clocks say.
        Some(Duration::from_millis(u64::try_from(first).unwrap_or(0)).max(ASK_AGAIN_MIN))
    }

    /// Phones may have become able: what waited for one is due, and what was offered to them is offered again.
    async fn phones_came(&self, phones: &[PhoneId], now: UnixMs) -> Result<(), End> {
        if phones.is_empty() {
            return Ok(());
        }
        dispatch::phone_became_able(&self.app).await.map_err(|error| self.store_failed(&error))?;
        for phone in phones {
            dispatch::offer_all(&self.app, phone, now)
                .await
                .map_err(|error| self.store_failed(&error))?;
        }
        Ok(())
    }

    /// From the welcome to the end.
    async fn live<S, E>(
        &mut self,
        frames: &mut SplitStream<S>,
        mut ending: watch::Receiver<Ending>,
        free: &Notify,
    ) -> End
    where
        S: Stream<Item = Result<Message, E>> + Unpin,
    {
        let silence = Duration::from_millis(self.app.config.link.silence_ms);
        self.heard = Instant::now();
        let app = AppState::clone(&self.app);
        loop {
            let next_free = self.next_free();
            let waited = async {
                match next_free {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            let step = tokio::select! {
                biased;
                () = app.stop.cancelled() => {
                    let bye = RouterFrame::Bye { reason: "the router is stopping".to_owned() };
                    match self.answer(bye).await {
                        Ok(()) => ControlFlow::Break(End::Close(close::DRAINING, "draining")),
                        Err(end) => ControlFlow::Break(end),
                    }
                }
                changed = ending.changed() => match changed {
                    Ok(()) => ControlFlow::Break(End::Close(close::REPLACED, "replaced")),
                    Err(_gone) => ControlFlow::Break(End::Close(close::REPLACED, "replaced")),
                },
                () = free.notified() => flow(self.ask_again(true).await),
                () = waited => flow(self.ask_again(false).await),
                message = frames.next() => self.take(frames, message).await,
                () = self.answers.closed() => ControlFlow::Break(End::Gone),
                // After everything that has come has been read: what kept this task from it was not the host.
                () = sleep_until(self.heard + silence) => {
                    ControlFlow::Break(End::Close(NORMAL, "nothing heard"))
                }
            };
            if let ControlFlow::Break(end) = step {
                return end;
            }
        }
    }

    /// Takes a message, and with it everything else that has already come.
    async fn take<S, E>(
        &mut self,
        frames: &mut SplitStream<S>,
        first: Option<Result<Message, E>>,
    ) -> ControlFlow<End>
    where
        S: Stream<Item = Result<Message, E>> + Unpin,
    {
        let mut next = Some(first);
        let mut events: Vec<EventFrame> = Vec::new();
        let (mut count, mut bytes) = (0_usize, 0_usize);
        let mut end = None;
        while let Some(came) = next {
            count += 1;
            let frame = match came {
                None | Some(Err(_)) => Err(End::Gone),
                Some(Ok(message)) => {
                    bytes += weight(&message);
                    understand(&self.host, message)
                }
            };
            match frame {
                Err(gone) => {
                    end = Some(gone);
                    break;
                }
                Ok(Came::Nothing) => {}
                Ok(Came::Frame(frame)) => match *frame {
                    HostFrame::Event(event) if self.phones.contains(&event.phone) => {
                        events.push(event);
                    }
                    HostFrame::Event(event) => self.foreign(&event.phone),
                    other @ (HostFrame::Hello(_)
                    | HostFrame::Renew { .. }
                    | HostFrame::Phone(_)
                    | HostFrame::Released { .. }
                    | HostFrame::Canary(_)
                    | HostFrame::Ping { .. }
                    | HostFrame::Pong { .. }
                    | HostFrame::Bye { .. }) => {
                        // Everything is handled in the order it came.
                        let before = std::mem::take(&mut events);
                        if let Err(end) = self.events(before).await {
                            return ControlFlow::Break(end);
                        }
                        self.frame(other).await?;
                    }
                },
            }
            let more = count < BATCH_FRAMES && bytes < BATCH_BYTES;
            next = if more { frames.next().now_or_never() } else { None };
        }
        // Events that came before the end count: they are safe here, acknowledged or not.
        let taken = self.events(events).await;
        self.heard = Instant::now();
        if let Err(end) = taken {
            return ControlFlow::Break(end);
        }
        end.map_or(ControlFlow::Continue(()), ControlFlow::Break)
    }

    async fn events(&mut self, events: Vec<EventFrame>) -> Result<(), End> {
        if events.is_empty() {
            return Ok(());
        }
        let acks =
            inbound::take(&self.app, events).await.map_err(|error| self.store_failed(&error))?;
        for ((phone, journal), seq) in acks {
            self.answer(RouterFrame::Ack { phone, journal, seq }).await?;
        }
        Ok(())
    }

    async fn frame(&mut self, frame: HostFrame) -> ControlFlow<End> {
        match frame {
            HostFrame::Hello(_) => ControlFlow::Break(End::Close(PROTOCOL_ERROR, "a second hello")),
            HostFrame::Renew { renewal, phones, health } => {
                self.renewal = renewal;
                // What the host does not speak of any more is not asked for in its name.
                let spoken_of = named(&phones);
                self.waits.retain(|phone, _| spoken_of.contains(phone));
                self.reports.retain(|phone, _| spoken_of.contains(phone));
                flow(self.lease(renewal, phones, Some(health)).await)
            }
            HostFrame::Released { phone, epoch } => flow(self.released(phone, epoch).await),
            HostFrame::Phone(report) => flow(self.phone(report).await),
            HostFrame::Canary(ask) => {
                // No canary is worth the wire: whoever is not answered asks again.
                if let Err(error) = canaries::asked(&self.app, &self.host, ask).await {
                    tracing::warn!(host = %self.host, %error, "link: asked about a canary, and cannot say");
                }
                ControlFlow::Continue(())
            }
            // Events are taken in runs by the caller; one alone is a run of one.
            HostFrame::Event(event) => flow(self.events(vec![event]).await),
            HostFrame::Ping { at } => flow(self.answer(RouterFrame::Pong { at }).await),
            HostFrame::Pong { .. } => ControlFlow::Continue(()),
            HostFrame::Bye { reason } => {
                tracing::info!(host = %self.host, reason = %reason, "link: the host says bye");
                ControlFlow::Break(End::Close(NORMAL, "bye"))
            }
        }
    }

    /// Extends or grants leases, and takes in how the phones and the host are.
    async fn lease(
        &mut self,
        renewal: u64,
        reports: Vec<PhoneReport>,
        health: Option<HostHealth>,
    ) -> Result<(), End> {
        let now = self.app.clock.now();
        let (host, policy) = (self.host.clone(), self.app.lease_policy());
        let health = health.map(|health| {
            self.app.links.tunnel_is(&self.host, &self.id, health.tunnel);
            health.power.map(|power| power.level)
        });
        let named = named(&reports);
        let asked = reports
            .into_iter()
            .take(protocol::limits::PHONES_PER_HOST_MAX)
            .collect::<Vec<PhoneReport>>();
        let (own, answers) = self
            .app
            .store
            .write(move |tx| {
                let own = standby::phones_of(tx, &host)?;
                // A renewal of the host's own speaks of all its phones; one that is asked in its name does not.
                if let Some(power) = health {
                    rows::host_seen(tx, &host, power, now)?;
                    rows::not_reported(tx, &host, &own, &named, now)?;
                }
                let mut answers = Vec::with_capacity(asked.len());
                for report in asked {
                    let reported = rows::report(tx, &host, &report, now)?;
                    let asked = if reported == Reported::Foreign {
                        None
                    } else {
                        Some(rows::ask(tx, policy, (&report.phone, &host), report.epoch, now)?)
                    };
                    answers.push((report, reported, asked));
                }
                Ok((own, answers))
            })
            .await
            .map_err(|error| self.store_failed(&error))?;
        self.phones = own.into_iter().collect();
        let mut came = Vec::new();
        for (report, reported, asked) in answers {
            let (phone, held, state) = (report.phone.clone(), report.epoch, report.state);
            let Some(asked) = asked else {
                self.waits.remove(&phone);
                self.reports.remove(&phone);
                self.foreign(&phone);
                self.revoke(phone, held).await?;
                continue;
            };
            self.note(&report);
            let Some(epoch) = self.asked(report, &asked).await? else {
                if asked.release.is_none() {
                    self.revoke(phone, held).await?;
                }
                continue;
            };
            let news = reported == Reported::BecameReady || asked.lapsed || held != Some(epoch);
            if news && state == PhoneState::Ready {
                came.push(phone.clone());
            }
            let ttl_ms = u64::try_from(policy.ttl_ms).unwrap_or(0);
            self.answer(RouterFrame::Lease { phone, epoch, ttl_ms, renewal }).await?;
        }
        self.phones_came(&came, now).await
    }

    /// A host sends no more for a phone: the one that waits for it may have it at once. From now on this one stands by:
    /// it may be given the phone back before it has asked for it itself.
    async fn released(&mut self, phone: PhoneId, epoch: u64) -> Result<(), End> {
        let now = self.app.clock.now();
        let (host, of) = (self.host.clone(), phone.clone());
        let heir = self
            .app
            .store
            .write(move |tx| standby::released(tx, (&of, &host), epoch, now))
            .await
            .map_err(|error| self.store_failed(&error))?;
        if let Some(heir) = heir {
            tracing::info!(host = %self.host, phone = %phone, epoch, heir = %heir, "link: a phone is released");
            let policy = self.app.lease_policy();
            let until = now.plus_ms(policy.ttl_ms.saturating_add(policy.grace_ms));
            if let Some(report) = self.reports.get(&phone) {
                let report = PhoneReport { epoch: None, ..report.clone() };
                self.waits.insert(phone, (report, until));
            }
            self.app.links.may_be_free(&heir);
        }
        Ok(())
    }

    async fn revoke(&mut self, phone: PhoneId, held: Option<u64>) -> Result<(), End> {
        match held {
            Some(epoch) => self.answer(RouterFrame::Revoke { phone, epoch }).await,
            None => Ok(()),
        }
    }

    /// A bridge has started, or changed its journal or state.
    async fn phone(&mut self, report: PhoneReport) -> Result<(), End> {
        let now = self.app.clock.now();
        let (host, copy) = (self.host.clone(), report.clone());
        let (reported, seq) = self
            .app
            .store
            .write(move |tx| {
                let reported = rows::report(tx, &host, &copy, now)?;
                let seq = if reported == Reported::Foreign { 0 } else { acked(tx, &copy, now)? };
                Ok((reported, seq))
            })
            .await
            .map_err(|error| self.store_failed(&error))?;
        if reported == Reported::Foreign {
            self.foreign(&report.phone);
            return Ok(());
        }
        self.phones.insert(report.phone.clone());
        self.note(&report);
        if let Some((waiting, _)) = self.waits.get_mut(&report.phone) {
            waiting.clone_from(&report);
        }
        let ready = report.state == PhoneState::Ready && reported != Reported::Standby;
        if let Some(journal) = report.journal {
            let phone = report.phone.clone();
            self.answer(RouterFrame::Ack { phone, journal, seq }).await?;
            self.ask_of_doubts().await?;
        }
        if ready { self.phones_came(&[report.phone], now).await } else { Ok(()) }
    }

    /// Keeps what was said of a phone.
    fn note(&mut self, report: &PhoneReport) {
        self.app.links.head_is(&self.host, &self.id, report);
        self.reports.insert(report.phone.clone(), report.clone());
    }

    fn foreign(&self, phone: &PhoneId) {
        metrics::counter!("switchboard_link_foreign_phones_total").increment(1);
        tracing::warn!(host = %self.host, phone = %phone, "link: not a phone of this host");
    }

    async fn answer(&self, frame: RouterFrame) -> Result<(), End> {
        self.answers.send(Out::Frame(frame)).await.map_err(|_writer_gone| End::Gone)
    }

    /// Without the store nothing can be taken in: the host keeps everything and dials again.
    fn store_failed(&self, error: &StoreError) -> End {
        tracing::warn!(host = %self.host, error = %error, "link: the store does not answer");
        End::Close(close::DRAINING, "the store does not answer")
    }
}

fn flow(result: Result<(), End>) -> ControlFlow<End> {
    match result {
        Ok(()) => ControlFlow::Continue(()),
        Err(end) => ControlFlow::Break(end),
    }
}

fn named(reports: &[PhoneReport]) -> BTreeSet<PhoneId> {
    reports.iter().map(|report| report.phone.clone()).collect()
}

fn epoch_of(decision: &Decision) -> Option<u64> {
    match decision {
        Decision::Grant(lease) | Decision::Renew(lease) => Some(lease.epoch),
        Decision::Refuse { .. } => None,
    }
}

fn acked(tx: &mut Tx<'_>, report: &PhoneReport, now: UnixMs) -> Result<u64, StoreError> {
    let Some(journal) = &report.journal else { return Ok(0) };
    let known = rows::acked_seq(tx, &report.phone, journal)?;
    if report.acked_seq <= known {
        return Ok(known);
    }
    // We acknowledged more than we know of: this store is older than that, as a restored backup is. The bridge has
    // forgotten those events, so waiting for them would hold up everything after them for ever.
    metrics::counter!("switchboard_inbound_lost_seqs_total").increment(report.acked_seq - known);
    tracing::error!(
        phone = %report.phone, journal, known, acknowledged = report.acked_seq,
        "events that were acknowledged before are not in this store; going on after them"
    );
    rows::set_acked_seq(tx, &report.phone, journal, report.acked_seq, now)?;
    Ok(report.acked_seq)
}
