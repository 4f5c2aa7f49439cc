//! One session of the link, independent of any transport: what came in and the time go in, frames and deliveries come out.
//!
//! What must hold, whatever is cut or repeated:
//!
//! - An event is forwarded only as the next of its journal, counted from what the router acknowledged. Everything else
//!   is dropped here, because the bridge repeats what is not acknowledged; so nothing has to be remembered between sessions.
//! - A lease counts from the moment its renewal was *asked* for, never from when the answer came: an answer that took ten
//!   seconds is ten seconds old.
//! - A dead wire ends the session within seconds: whoever hears nothing asks, and whoever is not answered is alone.
//! - So does a router whose wire lives and that answers nothing: after three pings, and sooner while a lease depends on it.

use std::collections::{BTreeMap, VecDeque};

use protocol::{
    PROTOCOL, PhoneId, UnixMs, WireError, limits,
    link::{
        ASK_AFTER_MS, CLOCK_SKEW_MAX_S, HELLO_WITHIN_MS, HOST_SILENCE_MS, HostFrame, HostHealth,
        HostHello, LEASE_TTL_MS, PING_EVERY_MS, PINGS_MISSED_MAX, PhoneReport, RENEW_EVERY_MS,
        RouterFrame, Welcome, close,
    },
    pipe::{Command, EventLine},
};

use crate::{
    backoff::Cause,
    clock::ContinuousMs,
    link::{LinkInput, LinkOutput},
    proxy::ProxyFailure,
};

/// Frames on their way out before no further input is taken: events wait with the bridges, where they are safe.
pub(crate) const OUTBOX_INPUT_MAX: usize = 64;
/// Frames on their way out at most. The room above [`OUTBOX_INPUT_MAX`] is for pings, renewals and the answers to what
/// the router sends, and for one word about each phone, as after a welcome; a peer that fills it does not read.
pub(crate) const OUTBOX_MAX: usize = OUTBOX_INPUT_MAX + limits::PHONES_PER_HOST_MAX + 64;
/// Renewals whose time of asking is remembered; at one in 5 s the oldest is far beyond any lease.
const RENEWALS_KEPT: usize = 8;
/// No acknowledgement for so long while events are on the way: they are offered again. Below the 15 s after which the
/// bridge repeats on its own, so that its repetition is forwarded.
const REWIND_AFTER_MS: u64 = 10_000;
/// A question about a journal that was not answered is asked again after so long.
const ASK_AGAIN_MS: u64 = 10_000;
/// An answer is waited for at least so long, whatever is configured.
const ANSWER_WITHIN_MIN_MS: u64 = 500;
/// While a lease depends on the router's answers, so long without any is the end: the lease is over by then.
const LEASED_SILENCE_MS: u64 = LEASE_TTL_MS;
/// Otherwise three missed pings.
#[expect(clippy::as_conversions, reason = "a widening in a constant, where From is not available")]
const SILENCE_MS: u64 = PING_EVERY_MS * PINGS_MISSED_MAX as u64;
/// After the router's `bye` its close is awaited for so long.
const CLOSE_WITHIN_MS: u64 = 2_000;

/// Why a session, or the attempt to make one, ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Ended {
    /// This side was asked to stop.
    #[error("asked to stop")]
    Shutdown,
    /// This side was asked for another connection.
    #[error("asked to dial anew")]
    Redial,
    /// The router has dialled this host anew.
    #[error("the router has dialled anew")]
    Replaced,
    /// No connection to the router.
    #[error("cannot connect to the router: {0}")]
    Connect(String),
    /// The router's certificate, or TLS itself.
    #[error("TLS with the router failed: {0}")]
    Tls(String),
    /// No way through the proxy before the router.
    #[error("the proxy {proxy} {why}")]
    Proxy {
        /// Its host and port.
        proxy: String,
        /// What is wrong with it.
        why: ProxyFailure,
    },
    /// Something that is no router answered the upgrade: a page, or the way to one.
    #[error(
        "HTTP {status} instead of a WebSocket{}: this is no Switchboard router. A captive portal (log in at that network's \
         page, or use another network), a proxy, or another site at `url` of [router]",
        page(location.as_deref())
    )]
    Intercepted {
        /// The HTTP status, 2xx or 3xx.
        status: u16,
        /// Where it leads.
        location: Option<String>,
    },
    /// The router answered the upgrade with something else than a WebSocket.
    #[error("the router answered the upgrade with HTTP {status}{}", upgrade_remedy(*status))]
    Upgrade {
        /// The HTTP status.
        status: u16,
    },
    /// The other side refused the time that this one has signed.
    #[error(
        "refused for the time (clock_skew): {}. Set this machine's clock automatically (on a Mac: System Settings → General → \
         Date & Time). It is tried again within seconds",
        skewed(*ahead_s)
    )]
    ClockSkew {
        /// By how many seconds this clock is ahead of the other one; none where the other one does not show.
        ahead_s: Option<i64>,
    },
    /// The upgrade broke off or broke the rules.
    #[error("the upgrade failed: {0}")]
    Handshake(String),
    /// The router closed the WebSocket.
    #[error("closed by the router with {code}: {reason}")]
    Closed {
        /// The close code; 1005 when there was none.
        code: u16,
        /// Its words.
        reason: String,
    },
    /// The router said goodbye and did not close in time.
    #[error("the router said goodbye: {0}")]
    Bye(String),
    /// The connection broke.
    #[error("connection lost: {0}")]
    Lost(String),
    /// No welcome in time.
    #[error("no welcome within {HELLO_WITHIN_MS} ms")]
    NoWelcome,
    /// Nothing was heard for too long.
    #[error("nothing heard for {0} ms")]
    Silent(u64),
    /// A write did not finish in time.
    #[error("a write took longer than {0} ms")]
    WriteLate(u64),
    /// The router does not read what it is sent.
    #[error("the router does not read: {0} frames waiting")]
    OutboxFull(usize),
}

fn page(location: Option<&str>) -> String {
    location.map(|location| format!(" ({location})")).unwrap_or_default()
}

fn skewed(ahead_s: Option<i64>) -> String {
    match ahead_s {
        Some(ahead_s @ 0..) => format!("this clock is {ahead_s} s ahead of the other side's"),
        Some(ahead_s) => {
            format!("this clock is {} s behind the other side's", ahead_s.unsigned_abs())
        }
        None => "the clocks differ by more than a minute".to_owned(),
    }
}

/// What an operator can do about a refused upgrade.
fn upgrade_remedy(status: u16) -> &'static str {
    match status {
        401 | 403 => {
            ": it does not know this host and key; run `switchboard host enroll` and restart"
        }
        404 | 405 => {
            ": is `url` of [router] the address of a Switchboard router, without a path of its API?"
        }
        407 => ": a proxy stands in the way; name it as `proxy` of [router]",
        511 => ": log in at this network's page, or use another network",
        _ => "",
    }
}

impl Ended {
    /// What the delay before the next attempt depends on.
    pub fn redial_cause(&self) -> Cause {
        match self {
            Self::Upgrade { status: 401 | 403 }
            | Self::Closed { code: close::NOT_AUTHORISED | close::PROTOCOL_TOO_OLD, .. } => {
                Cause::Refused
            }
            Self::Proxy { why, .. } if why.is_refusal() => Cause::Refused,
            Self::ClockSkew { .. } => Cause::Skewed,
            Self::Closed { code: close::REPLACED, .. } => Cause::Replaced,
            Self::Closed { code: close::DRAINING, .. } => Cause::Draining,
            Self::Redial | Self::Replaced => Cause::Asked,
            Self::Shutdown
            | Self::Connect(_)
            | Self::Tls(_)
            | Self::Proxy { .. }
            | Self::Intercepted { .. }
            | Self::Upgrade { .. }
            | Self::Handshake(_)
            | Self::Closed { .. }
            | Self::Bye(_)
            | Self::Lost(_)
            | Self::NoWelcome
            | Self::Silent(_)
            | Self::WriteLate(_)
            | Self::OutboxFull(_) => Cause::Lost,
        }
    }
}

/// The two clocks at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    pub(crate) continuous: ContinuousMs,
    pub(crate) wall: UnixMs,
}

/// What can happen to a session.
#[derive(Debug)]
pub(crate) enum Input {
    /// The WebSocket is open.
    Opened,
    /// A frame of the router.
    Frame(RouterFrame),
    /// A frame of the router that is not one.
    Refused(WireError),
    /// The supervisor says something.
    Local(LinkInput),
    /// Time has passed.
    Tick,
    /// A frame has left.
    Written,
    /// The connection ended, and why.
    Gone(Ended),
    /// This side is to stop.
    Stop,
}

/// What a session wants done.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// Send this frame; tell [`Input::Written`] when it has left.
    Send(HostFrame),
    /// Hand this to the supervisor.
    Deliver(LinkOutput),
    /// The session is over; nothing follows.
    End(Ended),
}

/// What the link knows of the host's phones, between sessions too. It is what the supervisor told and can tell again.
#[derive(Debug, Default)]
pub(crate) struct Phones {
    reports: BTreeMap<PhoneId, PhoneReport>,
    health: HostHealth,
}

impl Phones {
    /// Takes what the supervisor says; events say nothing about a phone's state.
    pub(crate) fn learn(&mut self, input: LinkInput) {
        match input {
            LinkInput::Phone { report, started: _ } => self.put(report),
            LinkInput::Forget(phone) => {
                self.reports.remove(&phone);
            }
            LinkInput::Health(health) => self.health = health,
            // Outside of a session nobody waits for it; whoever asks asks again.
            LinkInput::Released { .. } | LinkInput::Canary(_) => {}
            LinkInput::Event { phone, journal, line } => {
                if let Some(report) = self.reports.get_mut(&phone)
                    && report.journal.as_ref() == Some(&journal)
                {
                    report.last_seq = report.last_seq.max(line.seq);
                }
            }
        }
    }

    fn put(&mut self, mut report: PhoneReport) {
        let known = self.reports.get(&report.phone);
        if known.is_none() && self.reports.len() >= limits::PHONES_PER_HOST_MAX {
            tracing::error!(phone = %report.phone, "more phones than one host may announce");
            return;
        }
        report.epoch = report.epoch.max(known.and_then(|known| known.epoch));
        if let Some(known) = known.filter(|known| known.journal == report.journal) {
            report.acked_seq = report.acked_seq.max(known.acked_seq);
        }
        self.reports.insert(report.phone.clone(), report);
    }

    /// Notes how far a journal is acknowledged: what a later session tells a router that may have lost it.
    fn acked(&mut self, phone: &PhoneId, journal: &str, seq: u64) {
        if let Some(report) = self.reports.get_mut(phone)
            && report.journal.as_deref() == Some(journal)
        {
            report.acked_seq = report.acked_seq.max(seq);
        }
    }

    /// Notes a granted epoch. False when a newer one is known: epochs only grow.
    fn grant(&mut self, phone: &PhoneId, epoch: u64) -> bool {
        match self.reports.get_mut(phone) {
            Some(report) if report.epoch.is_none_or(|known| known <= epoch) => {
                report.epoch = Some(epoch);
                true
            }
            Some(_) | None => false,
        }
    }

    /// Notes the epoch of a release: a lease of an older one that is still on its way is not taken any more.
    fn released(&mut self, phone: &PhoneId, epoch: u64) {
        if let Some(report) = self.reports.get_mut(phone) {
            report.epoch = report.epoch.max(Some(epoch));
        }
    }

    fn all(&self) -> Vec<PhoneReport> {
        self.reports.values().cloned().collect()
    }
}

/// Counts since they were last taken.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) forwarded: u64,
    pub(crate) dropped: u64,
    pub(crate) refused: u64,
    pub(crate) stray: u64,
    pub(crate) rewinds: u64,
    /// The newest time from a ping to its pong.
    pub(crate) rtt_ms: Option<u64>,
}

/// How far the session is.
#[derive(Debug, PartialEq, Eq)]
enum Phase {
    /// Not open yet.
    Closed,
    /// Hello is sent, welcome is awaited.
    Greeting { since: ContinuousMs },
    /// Welcome.
    Live { since: ContinuousMs, next_renew: ContinuousMs, next_ping: ContinuousMs },
    /// The router has said goodbye; its close is awaited.
    Leaving { since: ContinuousMs, live_since: Option<ContinuousMs>, reason: String },
    /// Over.
    Ended { lived_ms: u64, was_live: bool },
}

/// How far the router and a journal are in step.
#[derive(Debug, PartialEq, Eq)]
enum Sync {
    /// No journal is known, or the router has to be asked about it.
    None,
    /// The router was asked how far it has this journal.
    Asked { journal: String, at: ContinuousMs },
    /// In step: `acked` is the router's word, `next` what is forwarded next, `progress` when `acked` last moved.
    Step { journal: String, acked: u64, next: u64, progress: ContinuousMs },
}

/// A lease as it was granted.
#[derive(Clone, Copy, Debug)]
struct Grant {
    epoch: u64,
    ttl_ms: u64,
    issued_ms: ContinuousMs,
}

/// A phone in this session.
#[derive(Debug)]
struct Line {
    sync: Sync,
    /// The router has granted a lease in this session and not revoked it.
    leased: bool,
    /// Changed after hello and before welcome: the router must be told.
    changed: bool,
}

/// The state machine of one session.
#[derive(Debug)]
pub(crate) struct Session {
    boot: String,
    version: String,
    phones: Phones,
    lines: BTreeMap<PhoneId, Line>,
    phase: Phase,
    /// Frames given out and not yet written.
    outbox: usize,
    /// (number, when it was asked) of the last renewals; number 0 is hello.
    renewals: VecDeque<(u64, ContinuousMs)>,
    renewal: u64,
    /// When any frame came.
    heard: ContinuousMs,
    /// When one came that the router's own side of the session says. Its pings say only that the wire is whole.
    answered: ContinuousMs,
    /// Since when an answer is awaited, nothing having come before or since.
    asked: Option<ContinuousMs>,
    /// The router answers questions about canaries.
    canaries: bool,
    /// How long nothing may be heard.
    silence_ms: u64,
    /// Added to the first ping, so that the hosts behind one router do not ping in step.
    ping_jitter_ms: u64,
    counts: Counts,
    /// What the newest ping said, and when it was sent.
    pinged: Option<(UnixMs, ContinuousMs)>,
}

impl Session {
    pub(crate) fn new(boot: String, version: String, phones: Phones, random: u64) -> Self {
        Self {
            boot,
            version,
            phones,
            lines: BTreeMap::new(),
            phase: Phase::Closed,
            outbox: 0,
            renewals: VecDeque::new(),
            renewal: 0,
            heard: 0,
            answered: 0,
            asked: None,
            canaries: false,
            silence_ms: HOST_SILENCE_MS,
            ping_jitter_ms: random % PING_EVERY_MS,
            counts: Counts::default(),
            pinged: None,
        }
    }

    /// With another patience than [`HOST_SILENCE_MS`].
    pub(crate) fn with_silence(self, silence_ms: u64) -> Self {
        Self { silence_ms, ..self }
    }

    /// The socket is not being read: what is not heard says nothing about the wire.
    pub(crate) fn does_not_listen(&mut self, now: ContinuousMs) {
        self.heard = now;
        self.asked = None;
    }

    /// False while the outbox has no room for what the supervisor says: its channel must wait.
    pub(crate) fn takes_input(&self) -> bool {
        self.outbox < OUTBOX_INPUT_MAX
    }

    /// True from welcome to the end.
    pub(crate) fn is_live(&self) -> bool {
        matches!(self.phase, Phase::Live { .. })
    }

    /// True when it was ever welcome.
    pub(crate) fn was_live(&self) -> bool {
        match self.phase {
            Phase::Live { .. } => true,
            Phase::Leaving { live_since, .. } => live_since.is_some(),
            Phase::Ended { was_live, .. } => was_live,
            Phase::Closed | Phase::Greeting { .. } => false,
        }
    }

    /// How long it was welcome: the measure of a good session.
    pub(crate) fn lived_ms(&self, now: ContinuousMs) -> u64 {
        match self.phase {
            Phase::Live { since, .. } | Phase::Leaving { live_since: Some(since), .. } => {
                now.saturating_sub(since)
            }
            Phase::Ended { lived_ms, .. } => lived_ms,
            Phase::Closed | Phase::Greeting { .. } | Phase::Leaving { live_since: None, .. } => 0,
        }
    }

    /// What has to be remembered for the next session.
    pub(crate) fn into_phones(self) -> Phones {
        self.phones
    }

    pub(crate) fn take_counts(&mut self) -> Counts {
        std::mem::take(&mut self.counts)
    }

    /// When [`Input::Tick`] is due at the latest.
    pub(crate) fn deadline(&self) -> Option<ContinuousMs> {
        match self.phase {
            Phase::Closed | Phase::Ended { .. } => None,
            Phase::Greeting { since } => Some(since + HELLO_WITHIN_MS),
            Phase::Leaving { since, .. } => Some(since + CLOSE_WITHIN_MS),
            Phase::Live { next_renew, next_ping, .. } => {
                let unanswered = self.answered + self.silence_allowed();
                let wire = match self.asked {
                    Some(asked) => asked + self.answer_within(),
                    None => self.heard + ASK_AFTER_MS,
                };
                let lines = self.lines.values().filter_map(Line::deadline).min();
                let first = next_renew.min(next_ping).min(unanswered).min(wire);
                Some(lines.map_or(first, |line| line.min(first)))
            }
        }
    }

    /// Takes one input and says what is to be done about it.
    pub(crate) fn step(&mut self, input: Input, now: Now) -> Vec<Output> {
        let mut out = Vec::new();
        if matches!(self.phase, Phase::Ended { .. }) {
            return out;
        }
        match input {
            Input::Opened => self.open(now, &mut out),
            Input::Frame(frame) => {
                self.hear(!matches!(frame, RouterFrame::Ping { .. }), now.continuous);
                self.frame(frame, now, &mut out);
            }
            Input::Refused(error) => {
                // A newer router may say more than this host understands; what it understands goes on working.
                self.hear(true, now.continuous);
                self.counts.refused += 1;
                tracing::warn!(%error, label = error.label(), "frame refused");
            }
            Input::Local(local) => self.local(local, now, &mut out),
            Input::Tick => {}
            Input::Written => self.outbox = self.outbox.saturating_sub(1),
            Input::Gone(why) => {
                let why = match (&self.phase, why) {
                    // The word said before explains the end better than the broken line; a close code says most.
                    (Phase::Leaving { reason, .. }, Ended::Lost(_)) => Ended::Bye(reason.clone()),
                    (_, why) => why,
                };
                self.end(why, now, &mut out);
            }
            Input::Stop => {
                if self.is_live() {
                    self.send(HostFrame::Bye { reason: "supervisor stops".to_owned() }, &mut out);
                }
                self.end(Ended::Shutdown, now, &mut out);
            }
        }
        self.pass_time(now, &mut out);
        if self.outbox > OUTBOX_MAX {
            self.end(Ended::OutboxFull(self.outbox), now, &mut out);
        }
        out
    }

    fn hear(&mut self, answers: bool, now: ContinuousMs) {
        self.heard = now;
        self.asked = None;
        if answers {
            self.answered = now;
        }
    }

    fn send(&mut self, frame: HostFrame, out: &mut Vec<Output>) {
        self.outbox += 1;
        out.push(Output::Send(frame));
    }

    fn end(&mut self, why: Ended, now: Now, out: &mut Vec<Output>) {
        if matches!(self.phase, Phase::Ended { .. }) {
            return;
        }
        let lived_ms = self.lived_ms(now.continuous);
        self.phase = Phase::Ended { lived_ms, was_live: self.was_live() };
        out.push(Output::End(why));
    }

    fn open(&mut self, now: Now, out: &mut Vec<Output>) {
        self.phase = Phase::Greeting { since: now.continuous };
        self.hear(true, now.continuous);
        self.renewals.push_back((0, now.continuous));
        let phones = self.phones.all();
        for report in &phones {
            let sync = match &report.journal {
                Some(journal) => Sync::Asked { journal: journal.clone(), at: now.continuous },
                None => Sync::None,
            };
            self.lines.insert(report.phone.clone(), Line { sync, leased: false, changed: false });
        }
        let hello = HostHello {
            protocol: PROTOCOL,
            version: self.version.clone(),
            boot: self.boot.clone(),
            clock: now.wall,
            phones,
        };
        self.send(HostFrame::Hello(hello), out);
    }

    fn frame(&mut self, frame: RouterFrame, now: Now, out: &mut Vec<Output>) {
        if let RouterFrame::Welcome(welcome) = frame {
            return self.welcome(&welcome, now, out);
        }
        if let RouterFrame::Bye { reason } = frame {
            let live_since = match self.phase {
                Phase::Live { since, .. } => Some(since),
                Phase::Closed
                | Phase::Greeting { .. }
                | Phase::Leaving { .. }
                | Phase::Ended { .. } => None,
            };
            self.phase = Phase::Leaving { since: now.continuous, live_since, reason };
            return;
        }
        if !self.is_live() {
            // Nothing counts before welcome and after bye: neither side could say what it refers to.
            self.stray("frame outside of a session");
            return;
        }
        match frame {
            RouterFrame::Lease { phone, epoch, ttl_ms, renewal } => {
                let asked = self.renewals.iter().find(|(number, _)| *number == renewal);
                match asked.copied() {
                    Some((_, issued_ms)) => {
                        self.lease(phone, Grant { epoch, ttl_ms, issued_ms }, now, out);
                    }
                    None => self.stray("lease for a renewal that was not asked"),
                }
            }
            RouterFrame::Revoke { phone, epoch } => match self.lines.get_mut(&phone) {
                Some(line) => {
                    line.leased = false;
                    out.push(Output::Deliver(LinkOutput::Revoke { phone, epoch }));
                }
                None => self.stray("revoke for a phone that is not here"),
            },
            RouterFrame::Release { phone, epoch } => match self.lines.get_mut(&phone) {
                Some(line) => {
                    line.leased = false;
                    self.phones.released(&phone, epoch);
                    out.push(Output::Deliver(LinkOutput::Release { phone, epoch }));
                }
                None => self.stray("release of a phone that is not here"),
            },
            RouterFrame::Ack { phone, journal, seq } => self.ack(phone, journal, seq, now, out),
            RouterFrame::Command { phone, epoch, command } => {
                let ours = self.lines.contains_key(&phone);
                match command {
                    Command::Send(_)
                    | Command::Cancel { .. }
                    | Command::Capability { .. }
                    | Command::Seek(_)
                        if ours =>
                    {
                        out.push(Output::Deliver(LinkOutput::Command { phone, epoch, command }));
                    }
                    Command::Send(_)
                    | Command::Cancel { .. }
                    | Command::Capability { .. }
                    | Command::Seek(_) => {
                        self.stray("command for a phone that is not here");
                    }
                    // Starting, stopping and leasing bridges is the supervisor's business alone.
                    Command::Lease { .. }
                    | Command::Revoke { .. }
                    | Command::Release { .. }
                    | Command::Ack { .. }
                    | Command::Replay
                    | Command::Pause { .. }
                    | Command::Block { .. }
                    | Command::Preflight
                    | Command::Drain { .. }
                    | Command::Stop { .. } => {
                        self.stray("command that is not the router's to give");
                    }
                }
            }
            RouterFrame::Canary(told) => out.push(Output::Deliver(LinkOutput::Canary(told))),
            RouterFrame::Ping { at } => self.send(HostFrame::Pong { at }, out),
            RouterFrame::Pong { at } => {
                // Only the newest ping is waited for; of an older one it is not known when it was sent.
                if let Some((_, sent)) = self.pinged.take_if(|(said, _)| *said == at) {
                    self.counts.rtt_ms = Some(now.continuous.saturating_sub(sent));
                }
            }
            RouterFrame::Welcome(_) | RouterFrame::Bye { .. } => {}
        }
    }

    fn stray(&mut self, what: &'static str) {
        self.counts.stray += 1;
        tracing::debug!(what, "stray frame");
    }

    fn welcome(&mut self, welcome: &Welcome, now: Now, out: &mut Vec<Output>) {
        let Phase::Greeting { since: hello_sent } = self.phase else {
            self.stray("second welcome");
            return;
        };
        let skew_ms = welcome.clock.since(now.wall);
        if skew_ms.abs() > CLOCK_SKEW_MAX_S * 1_000 {
            tracing::warn!(
                skew_ms,
                "the router's clock differs: deadlines of messages will be off"
            );
        }
        self.phase = Phase::Live {
            since: now.continuous,
            next_renew: hello_sent + RENEW_EVERY_MS,
            next_ping: now.continuous + self.ping_jitter_ms,
        };
        self.canaries = welcome.canaries;
        out.push(Output::Deliver(LinkOutput::Connected {
            session: welcome.session.clone(),
            canaries: welcome.canaries,
        }));
        for theirs in &welcome.phones {
            let Some(line) = self.lines.get_mut(&theirs.phone) else {
                self.stray("welcome for a phone that is not here");
                continue;
            };
            // A journal that began after hello is not the one that the router speaks of.
            if let Sync::Asked { journal, .. } = &line.sync
                && !line.changed
            {
                let journal = journal.clone();
                line.step(&journal, theirs.acked_seq, now.continuous);
                out.push(Output::Deliver(LinkOutput::Ack {
                    phone: theirs.phone.clone(),
                    journal,
                    seq: theirs.acked_seq,
                    replay: true,
                }));
            }
            if let Some(epoch) = theirs.epoch {
                let grant = Grant { epoch, ttl_ms: theirs.ttl_ms, issued_ms: hello_sent };
                self.lease(theirs.phone.clone(), grant, now, out);
            }
        }
        for phone in self.lines.keys() {
            if !welcome.phones.iter().any(|theirs| theirs.phone == *phone) {
                tracing::warn!(%phone, "the router does not know this phone as this host's: enrol it");
            }
        }
        let changed: Vec<PhoneId> = self
            .lines
            .iter()
            .filter(|(_, line)| line.changed)
            .map(|(phone, _)| phone.clone())
            .collect();
        for phone in changed {
            self.tell(&phone, now, out);
        }
    }

    fn lease(&mut self, phone: PhoneId, grant: Grant, now: Now, out: &mut Vec<Output>) {
        let Grant { epoch, ttl_ms, issued_ms } = grant;
        let Some(line) = self.lines.get_mut(&phone) else {
            self.stray("lease for a phone that is not here");
            return;
        };
        if issued_ms.saturating_add(ttl_ms) <= now.continuous {
            self.stray("lease that was over when it came");
            return;
        }
        if !self.phones.grant(&phone, epoch) {
            self.stray("lease of an older epoch");
            return;
        }
        line.leased = true;
        out.push(Output::Deliver(LinkOutput::Lease { phone, epoch, ttl_ms, issued_ms }));
    }

    fn ack(&mut self, phone: PhoneId, journal: String, seq: u64, now: Now, out: &mut Vec<Output>) {
        let Some(line) = self.lines.get_mut(&phone) else {
            self.stray("ack for a phone that is not here");
            return;
        };
        let replay = match &mut line.sync {
            Sync::Asked { journal: asked, .. } if *asked == journal => {
                line.step(&journal, seq, now.continuous);
                true
            }
            Sync::Step { journal: ours, acked, next, progress } if *ours == journal => {
                if seq > *acked {
                    *acked = seq;
                    *progress = now.continuous;
                }
                // The router has more than was forwarded here: an older answer had set the step too low, and the bridge
                // may have said the next event already.
                let ahead = seq >= *next;
                *next = (*next).max(seq.saturating_add(1));
                ahead
            }
            Sync::None | Sync::Asked { .. } | Sync::Step { .. } => {
                self.stray("ack of another journal");
                return;
            }
        };
        self.phones.acked(&phone, &journal, seq);
        out.push(Output::Deliver(LinkOutput::Ack { phone, journal, seq, replay }));
    }

    fn local(&mut self, local: LinkInput, now: Now, out: &mut Vec<Output>) {
        match local {
            LinkInput::Event { phone, journal, line } => {
                self.event(phone, journal, line, now, out);
            }
            LinkInput::Health(health) => self.phones.health = health,
            LinkInput::Released { phone, epoch } => {
                if self.is_live() {
                    self.send(HostFrame::Released { phone, epoch }, out);
                }
            }
            LinkInput::Canary(ask) => {
                if self.is_live() && self.canaries {
                    self.send(HostFrame::Canary(ask), out);
                }
            }
            LinkInput::Forget(phone) => {
                self.phones.learn(LinkInput::Forget(phone.clone()));
                self.lines.remove(&phone);
            }
            LinkInput::Phone { report, started } => {
                let phone = report.phone.clone();
                self.phones.put(report);
                let Some(report) = self.phones.reports.get(&phone) else { return };
                let line = self.lines.entry(phone.clone()).or_insert(Line {
                    sync: Sync::None,
                    leased: false,
                    changed: true,
                });
                if started || line.journal() != report.journal.as_deref() {
                    line.sync = Sync::None;
                }
                line.changed = true;
                if self.is_live() {
                    self.tell(&phone, now, out);
                }
            }
        }
    }

    /// Tells the router how a phone stands, and asks about its journal unless both are in step.
    fn tell(&mut self, phone: &PhoneId, now: Now, out: &mut Vec<Output>) {
        let (Some(report), Some(line)) =
            (self.phones.reports.get(phone), self.lines.get_mut(phone))
        else {
            return;
        };
        line.changed = false;
        if !matches!(line.sync, Sync::Step { .. }) {
            line.sync = match &report.journal {
                Some(journal) => Sync::Asked { journal: journal.clone(), at: now.continuous },
                None => Sync::None,
            };
        }
        let frame = HostFrame::Phone(report.clone());
        self.send(frame, out);
    }

    fn event(
        &mut self,
        phone: PhoneId,
        journal: String,
        event: EventLine,
        now: Now,
        out: &mut Vec<Output>,
    ) {
        if let Some(report) = self.phones.reports.get_mut(&phone)
            && report.journal.as_ref() == Some(&journal)
        {
            report.last_seq = report.last_seq.max(event.seq);
        }
        let room = self.takes_input();
        let live = self.is_live();
        match self.lines.get_mut(&phone).map(|line| &mut line.sync) {
            Some(Sync::Step { journal: ours, acked, next, progress })
                if live && room && *ours == journal && *next == event.seq =>
            {
                if *next == acked.saturating_add(1) {
                    *progress = now.continuous;
                }
                *next = next.saturating_add(1);
            }
            Some(Sync::Step { .. } | Sync::Asked { .. } | Sync::None) | None => {
                self.counts.dropped += 1;
                return;
            }
        }
        self.counts.forwarded += 1;
        let EventLine { seq, at, epoch, event } = event;
        let frame = protocol::link::EventFrame { phone, journal, seq, epoch, at, event };
        self.send(HostFrame::Event(frame), out);
    }

    fn silence_allowed(&self) -> u64 {
        if self.lines.values().any(|line| line.leased) { LEASED_SILENCE_MS } else { SILENCE_MS }
    }

    /// How long after the question for it an answer is awaited.
    fn answer_within(&self) -> u64 {
        self.silence_ms.saturating_sub(ASK_AFTER_MS).max(ANSWER_WITHIN_MIN_MS)
    }

    fn pass_time(&mut self, now: Now, out: &mut Vec<Output>) {
        let silence = now.continuous.saturating_sub(self.heard);
        let unanswered = now.continuous.saturating_sub(self.answered);
        let dead = self
            .asked
            .is_some_and(|asked| now.continuous.saturating_sub(asked) >= self.answer_within());
        let asks = self.asked.is_none() && silence >= ASK_AFTER_MS;
        let allowed = self.silence_allowed();
        match &mut self.phase {
            Phase::Closed | Phase::Ended { .. } => {}
            Phase::Greeting { since } => {
                if now.continuous >= *since + HELLO_WITHIN_MS {
                    self.end(Ended::NoWelcome, now, out);
                }
            }
            Phase::Leaving { since, reason, .. } => {
                if now.continuous >= *since + CLOSE_WITHIN_MS {
                    let reason = std::mem::take(reason);
                    self.end(Ended::Bye(reason), now, out);
                }
            }
            Phase::Live { next_renew, next_ping, .. } => {
                if dead {
                    return self.end(Ended::Silent(silence), now, out);
                }
                if unanswered >= allowed {
                    return self.end(Ended::Silent(unanswered), now, out);
                }
                let regular = now.continuous >= *next_ping;
                if regular {
                    *next_ping = now.continuous + PING_EVERY_MS;
                }
                let ping = regular || asks;
                if asks {
                    self.asked = Some(now.continuous);
                }
                let renew = now.continuous >= *next_renew;
                if renew {
                    *next_renew = now.continuous + RENEW_EVERY_MS;
                }
                if renew {
                    self.renew(now, out);
                }
                if ping {
                    self.pinged = Some((now.wall, now.continuous));
                    self.send(HostFrame::Ping { at: now.wall }, out);
                }
                self.repeat(now, out);
            }
        }
    }

    fn renew(&mut self, now: Now, out: &mut Vec<Output>) {
        self.renewal += 1;
        if self.renewals.len() >= RENEWALS_KEPT {
            self.renewals.pop_front();
        }
        self.renewals.push_back((self.renewal, now.continuous));
        let frame = HostFrame::Renew {
            renewal: self.renewal,
            phones: self.phones.all(),
            health: self.phones.health.clone(),
        };
        self.send(frame, out);
    }

    /// Asks again what was not answered, and offers again what was not acknowledged.
    fn repeat(&mut self, now: Now, out: &mut Vec<Output>) {
        let mut ask = Vec::new();
        for (phone, line) in &mut self.lines {
            if line.deadline().is_none_or(|deadline| deadline > now.continuous) {
                continue;
            }
            match &mut line.sync {
                Sync::None => {}
                Sync::Asked { .. } => ask.push(phone.clone()),
                Sync::Step { journal, acked, next, progress } => {
                    self.counts.rewinds += 1;
                    *next = acked.saturating_add(1);
                    *progress = now.continuous;
                    out.push(Output::Deliver(LinkOutput::Ack {
                        phone: phone.clone(),
                        journal: journal.clone(),
                        seq: *acked,
                        replay: true,
                    }));
                }
            }
        }
        for phone in ask {
            self.tell(&phone, now, out);
        }
    }
}

impl Line {
    fn step(&mut self, journal: &str, acked: u64, now: ContinuousMs) {
        self.sync = Sync::Step {
            journal: journal.to_owned(),
            acked,
            next: acked.saturating_add(1),
            progress: now,
        };
    }

    fn journal(&self) -> Option<&str> {
        match &self.sync {
            Sync::None => None,
            Sync::Asked { journal, .. } | Sync::Step { journal, .. } => Some(journal),
        }
    }

    fn deadline(&self) -> Option<ContinuousMs> {
        match &self.sync {
            Sync::Asked { at, .. } => Some(*at + ASK_AGAIN_MS),
            Sync::Step { acked, next, progress, .. } if *next > acked.saturating_add(1) => {
                Some(*progress + REWIND_AFTER_MS)
            }
            Sync::None | Sync::Step { .. } => None,
        }
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
