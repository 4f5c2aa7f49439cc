//! The link: one JSON object a text frame between a host and the router, whoever dialled.

use serde::{Deserialize, Serialize};

use crate::pipe::{Command, Event};
use crate::wire::{WireError, parse_tagged};
use crate::{E164, HostId, MessageId, PhoneId, UnixMs, limits};

/// Path of the link on the router, and on a host behind cloudflared.
pub const PATH: &str = "/v1/link";

/// A host renews its leases so often.
pub const RENEW_EVERY_MS: u64 = 5_000;

/// A lease holds so long from the renewal that it answers.
pub const LEASE_TTL_MS: u64 = 15_000;

/// The router waits so much longer than a lease's end before another host may have the phone.
pub const LEASE_GRACE_MS: u64 = 5_000;

/// A host pings so often, whatever else is said. Cloudflare ends idle connections after about 100 s (buildbot#4078).
pub const PING_EVERY_MS: u64 = 20_000;

/// So many pings that the router itself does not answer end a session, where no lease ends it sooner.
pub const PINGS_MISSED_MAX: u32 = 3;

/// A router that has nothing to say for so long pings: a wire that goes dead without a word is noticed by what is missing.
/// Idle, this is about 20 MB a day.
pub const IDLE_PING_MS: u64 = 1_500;

/// A host that has heard nothing for so long asks by a ping: also a router that says nothing of its own accord must answer.
pub const ASK_AFTER_MS: u64 = 2_000;

/// Nothing was heard for so long, though it was asked for: the wire is dead, for the host.
pub const HOST_SILENCE_MS: u64 = 4_000;

/// The same for the router. Longer, for a host notices first, and its new session ends the old one.
pub const ROUTER_SILENCE_MS: u64 = 6_000;

/// The first frame of either side must come within this time; so must every write.
pub const HELLO_WITHIN_MS: u64 = 10_000;

/// Largest difference between the two sides' clocks for a signed request, in seconds.
pub const CLOCK_SKEW_MAX_S: i64 = 60;

/// Why a WebSocket was closed.
pub mod close {
    /// The signature, the host or the clock is not right.
    pub const NOT_AUTHORISED: u16 = 4401;
    /// A newer session of the same host has taken over.
    pub const REPLACED: u16 = 4409;
    /// The other side speaks a version that this one does not.
    pub const PROTOCOL_TOO_OLD: u16 = 4426;
    /// The router is stopping: redial at once.
    pub const DRAINING: u16 = 4503;
}

/// What a host tells the router.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum HostFrame {
    /// First frame; counts as renewal 0.
    Hello(HostHello),
    /// Asks for every lease to be extended.
    Renew {
        /// Numbered from 1 in a session; the lease that answers names it.
        renewal: u64,
        /// Every phone of this host, as it stands.
        phones: Vec<PhoneReport>,
        /// How the host itself is.
        #[serde(default)]
        health: HostHealth,
    },
    /// A bridge has started, changed its journal or its state.
    Phone(PhoneReport),
    /// An event of a bridge's journal.
    Event(EventFrame),
    /// Answers [`RouterFrame::Release`]: nothing is being handed to Messages, and nothing older than this epoch will be.
    Released {
        /// Which phone.
        phone: PhoneId,
        /// The release's epoch.
        epoch: u64,
    },
    /// Asks about a canary to a phone of another host, where [`Welcome::canaries`] says that it is answered.
    Canary(CanaryAsk),
    /// Are you there?
    Ping {
        /// The asker's clock.
        at: UnixMs,
    },
    /// Answers a ping.
    Pong {
        /// The ping's `at`.
        at: UnixMs,
    },
    /// The host ends the session.
    Bye {
        /// Why, for people.
        reason: String,
    },
}

/// A question about one canary: before it is written, and again while it is under way, until the answer ends it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CanaryAsk {
    /// The canary's id.
    pub message: MessageId,
    /// The phone of the asking host that writes it.
    pub from: PhoneId,
    /// The number of the phone that is to hear it.
    pub to: E164,
}

/// What the router knows of a canary: the answer to a question, and said again of its own accord when it arrives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CanaryTold {
    /// The canary's id.
    pub message: MessageId,
    /// How it stands.
    pub standing: CanaryStanding,
}

/// How a canary stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum CanaryStanding {
    /// It has arrived.
    Seen {
        /// At which phone.
        phone: PhoneId,
        /// The host that told of it first, where that is still known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        host: Option<HostId>,
        /// When that phone's bridge noted it, by its host's clock.
        at: UnixMs,
        /// For so long the router has known of it when it said this.
        waited_ms: u64,
    },
    /// The phone is ready, nothing that it has noted is still on its way, and this canary is not among it.
    NotSeen,
    /// The phone is not heard now: its host has no session, it is not ready, or what it has noted is on its way.
    Away,
    /// This is not a canary between a phone of the asking host and another phone of this router, both of the sandbox or neither.
    Strange,
    /// A word that this build does not know; nothing follows from it.
    #[serde(other)]
    Unknown,
}

/// First frame of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostHello {
    /// Version of this contract.
    pub protocol: u32,
    /// Version of the program.
    pub version: String,
    /// A new one each time the supervisor starts.
    pub boot: String,
    /// Its wall clock.
    pub clock: UnixMs,
    /// Every phone that it serves.
    pub phones: Vec<PhoneReport>,
}

/// A phone, as its host sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhoneReport {
    /// Which phone.
    pub phone: PhoneId,
    /// Its bridge's journal; none before the bridge's first hello.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journal: Option<String>,
    /// The newest event in it.
    #[serde(default)]
    pub last_seq: u64,
    /// Everything up to this one was acknowledged, so the bridge has forgotten it. A router that
    /// knows less has lost it (a restored backup) and goes on from here.
    #[serde(default)]
    pub acked_seq: u64,
    /// The newest epoch that the host holds for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// What its bridge is doing.
    pub state: PhoneState,
    /// Why it is not ready, in stable codes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<crate::Reason>,
}

/// What a phone's bridge is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum PhoneState {
    /// Not running, on purpose.
    Stopped,
    /// Started, not ready yet.
    Starting,
    /// Can send.
    Ready,
    /// Runs, but cannot send.
    NotReady,
    /// Finishes what is started, takes nothing new.
    Draining,
    /// Waits to be restarted after it ended.
    Backoff,
    /// Restarted too often; tried every five minutes.
    Parked,
}

impl PhoneState {
    /// Every state.
    pub const ALL: [Self; 7] = [
        Self::Stopped,
        Self::Starting,
        Self::Ready,
        Self::NotReady,
        Self::Draining,
        Self::Backoff,
        Self::Parked,
    ];

    /// The stable word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::NotReady => "not_ready",
            Self::Draining => "draining",
            Self::Backoff => "backoff",
            Self::Parked => "parked",
        }
    }

    /// The state behind a word of a store.
    pub fn of(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == word)
    }
}

/// How a host is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostHealth {
    /// Seconds since the supervisor started.
    pub uptime_s: u64,
    /// Bridges restarted since then.
    pub restarts: u64,
    /// Free disk space where its state lies, in bytes.
    pub disk_free: Option<u64>,
    /// What it runs on; none where that is not watched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub power: Option<HostPower>,
    /// Its ways to the internet; none where they are not watched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<HostNetwork>,
    /// How its Messages is; none where nobody keeps it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages_app: Option<HostMessagesApp>,
    /// How its tunnel is; none where it runs none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<HostTunnel>,
}

/// How the tunnel of a host is, as the keeper of its cloudflared finds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HostTunnel {
    /// What it is doing.
    pub state: TunnelState,
    /// What it waits for, or why it is restarted, as a stable code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// What to do about it, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// Since when it is in this state.
    pub since: UnixMs,
    /// Connections to Cloudflare's edge.
    #[serde(default)]
    pub connections: u64,
    /// How often it was started again since the supervisor started, whoever ended it.
    #[serde(default)]
    pub restarts: u64,
    /// How often the supervisor restarted it within the last hour, which is capped.
    #[serde(default)]
    pub restarts_last_hour: u32,
    /// It would be restarted, and has been as often as is allowed.
    #[serde(default)]
    pub capped: bool,
}

/// What a tunnel is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum TunnelState {
    /// It is not there, and will be started.
    Waiting,
    /// It is being started.
    Starting,
    /// It is connected to the edge.
    Ready,
    /// It runs and is not connected.
    Unready,
    /// It is being ended.
    Stopping,
    /// It has ended for good.
    Stopped,
    /// A word that this build does not know.
    #[serde(other)]
    Unknown,
}

impl TunnelState {
    /// Every state.
    pub const ALL: [Self; 7] = [
        Self::Waiting,
        Self::Starting,
        Self::Ready,
        Self::Unready,
        Self::Stopping,
        Self::Stopped,
        Self::Unknown,
    ];

    /// The stable word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Unready => "unready",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Unknown => "unknown",
        }
    }
}

/// How Messages is on a host, as its keeper finds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostMessagesApp {
    /// What follows from the rest.
    pub state: MessagesAppState,
    /// What is wrong, as a stable code; none while it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// What to do about it, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// Since when it is in this state.
    pub since: UnixMs,
    /// How often it was brought back since the supervisor started.
    pub recoveries: u64,
    /// How often that was tried in vain.
    pub failures: u64,
    /// How long the last recovery took, from the first question without an answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_recovery_ms: Option<u64>,
    /// Restarts of it within the last hour, which are capped.
    pub restarts_last_hour: u32,
}

/// Whether Messages answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MessagesAppState {
    /// It answers.
    Ok,
    /// It did not answer and is being restarted.
    Recovering,
    /// It does not answer, and restarting does not help, or may not be tried now.
    Degraded,
    /// It was not asked yet, or a word that this build does not know.
    #[serde(other)]
    Unknown,
}

impl MessagesAppState {
    /// Every state.
    pub const ALL: [Self; 4] = [Self::Ok, Self::Recovering, Self::Degraded, Self::Unknown];

    /// The stable word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Recovering => "recovering",
            Self::Degraded => "degraded",
            Self::Unknown => "unknown",
        }
    }
}

/// What a host runs on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostPower {
    /// What follows from the rest, steadied: a blip changes nothing.
    pub level: PowerLevel,
    /// Where the power comes from, as last read.
    pub source: PowerSource,
    /// How full the battery is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<u8>,
    /// How long it is said to last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minutes: Option<u32>,
}

/// How much work a host can be given, as far as its power goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PowerLevel {
    /// It runs on mains.
    Mains,
    /// It runs on a battery: work is better given to others.
    Battery,
    /// The battery is nearly empty: it takes no new work.
    Low,
    /// It cannot be told.
    #[serde(other)]
    Unknown,
}

impl PowerLevel {
    /// Every level.
    pub const ALL: [Self; 4] = [Self::Mains, Self::Battery, Self::Low, Self::Unknown];

    /// The stable word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Mains => "mains",
            Self::Battery => "battery",
            Self::Low => "low",
            Self::Unknown => "unknown",
        }
    }
}

/// Where power comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PowerSource {
    /// The wall.
    Mains,
    /// The battery inside.
    Battery,
    /// An uninterruptible power supply that is not fed any more.
    Ups,
    /// A word that this build does not know, or none.
    #[serde(other)]
    Unknown,
}

/// The ways of a host to the internet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostNetwork {
    /// The name of the uplink that is in use, or, where the host only observes, the one that should be.
    pub chosen: String,
    /// Whether the host switches, or only observes.
    pub switches: bool,
    /// Too many switches: it stays where it is for a while, and somebody should look.
    #[serde(default)]
    pub locked: bool,
    /// Every uplink, in order of preference.
    pub uplinks: Vec<HostUplink>,
}

/// One way to the internet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostUplink {
    /// What the operator calls it.
    pub name: String,
    /// How it is, steadied: one lost probe changes nothing.
    pub state: UplinkState,
    /// Whether the router answered over it when it was last asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub router: Option<bool>,
}

/// How a way to the internet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UplinkState {
    /// It leads to the internet.
    Good,
    /// Something else answers in the place of those that are asked: a portal that wants a login.
    Captive,
    /// Nobody answers over it.
    Down,
    /// It was not asked often enough yet, or a word that this build does not know.
    #[serde(other)]
    Unknown,
}

impl UplinkState {
    /// Every state.
    pub const ALL: [Self; 4] = [Self::Good, Self::Captive, Self::Down, Self::Unknown];

    /// The stable word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Captive => "captive",
            Self::Down => "down",
            Self::Unknown => "unknown",
        }
    }
}

/// An event of a bridge's journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventFrame {
    /// Whose.
    pub phone: PhoneId,
    /// Which journal.
    pub journal: String,
    /// Its number there. The router takes only the one after the last that it has.
    pub seq: u64,
    /// The newest epoch that the bridge had seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// When it was journaled.
    pub at: UnixMs,
    /// What happened.
    pub event: Event,
}

/// What the router tells a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum RouterFrame {
    /// Answers hello; its leases answer renewal 0.
    Welcome(Welcome),
    /// The host may send for this phone.
    Lease {
        /// Which phone.
        phone: PhoneId,
        /// The lease's epoch.
        epoch: u64,
        /// How long it holds, from when the host sent the renewal.
        ttl_ms: u64,
        /// The renewal that it answers.
        renewal: u64,
    },
    /// The host may no longer send for this phone.
    Revoke {
        /// Which phone.
        phone: PhoneId,
        /// The epoch that ends.
        epoch: u64,
    },
    /// The phone goes to another host: start nothing more of an epoch older than this one, give back what was not
    /// started, and say when no script runs any more.
    Release {
        /// Which phone.
        phone: PhoneId,
        /// Everything older ends.
        epoch: u64,
    },
    /// The router has every event of this journal up to `seq`.
    Ack {
        /// Whose.
        phone: PhoneId,
        /// Which journal.
        journal: String,
        /// Up to and including.
        seq: u64,
    },
    /// For a bridge: `send`, `cancel`, `capability` or `seek`.
    Command {
        /// Which phone.
        phone: PhoneId,
        /// The epoch under which the router dispatched it.
        epoch: u64,
        /// The command.
        command: Command,
    },
    /// How a canary stands that this host has asked about.
    Canary(CanaryTold),
    /// Are you there?
    Ping {
        /// The asker's clock.
        at: UnixMs,
    },
    /// Answers a ping.
    Pong {
        /// The ping's `at`.
        at: UnixMs,
    },
    /// The router ends the session.
    Bye {
        /// Why, for people.
        reason: String,
    },
}

/// Answers hello.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// Id of this session, for logs.
    pub session: String,
    /// The router's wall clock.
    pub clock: UnixMs,
    /// Every announced phone that the router knows as this host's, those for which it stands by among them.
    pub phones: Vec<WelcomePhone>,
    /// It answers [`HostFrame::Canary`]; an older router does not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub canaries: bool,
}

/// A phone, as the router sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WelcomePhone {
    /// Which phone.
    pub phone: PhoneId,
    /// The epoch of the host's lease; none when another host holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// How long the lease holds, from when hello was sent.
    pub ttl_ms: u64,
    /// The last event that the router has of the announced journal; the host goes on after it.
    pub acked_seq: u64,
}

const HOST_FRAMES: &[&str] =
    &["hello", "renew", "phone", "event", "released", "canary", "ping", "pong", "bye"];
const ROUTER_FRAMES: &[&str] =
    &["welcome", "lease", "revoke", "release", "ack", "command", "canary", "ping", "pong", "bye"];

/// Parses one frame from a host.
pub fn parse_host(frame: &str) -> Result<HostFrame, WireError> {
    parse_tagged(frame, limits::FRAME_BYTES_MAX, HOST_FRAMES)
}

/// Parses one frame from the router.
pub fn parse_router(frame: &str) -> Result<RouterFrame, WireError> {
    parse_tagged(frame, limits::FRAME_BYTES_MAX, ROUTER_FRAMES)
}

/// The `Authorization` of an upgrade request. Made and checked elsewhere: here is only its form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorization {
    /// Who asks.
    pub host: HostId,
    /// Seconds since 1970, by the asker's clock.
    pub ts: i64,
    /// Never used twice within the allowed skew; 16 to 64 characters of base64url.
    pub nonce: String,
    /// Ed25519 over [`Authorization::signed`], in unpadded base64url.
    pub sig: String,
}

/// An `Authorization` header that is not ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "not an authorisation of the form Switchboard host=\"…\", ts=\"…\", nonce=\"…\", sig=\"…\""
)]
pub struct BadAuthorization;

const SCHEME: &str = "Switchboard ";
const NONCE_LEN: std::ops::RangeInclusive<usize> = 16..=64;
/// An Ed25519 signature in unpadded base64url.
const SIG_LEN: usize = 86;

impl Authorization {
    /// The bytes that a host signs when it dials the router.
    pub fn signed(method: &str, path: &str, host: &HostId, ts: i64, nonce: &str) -> String {
        format!("switchboard-link-v1\n{method}\n{path}\n{host}\n{ts}\n{nonce}")
    }

    /// The bytes that a router signs when it dials this host. The first word differs, so that neither side's signature
    /// can be taken for the other's; the host is in it, so that it opens no other.
    pub fn signed_by_router(
        method: &str,
        path: &str,
        host: &HostId,
        ts: i64,
        nonce: &str,
    ) -> String {
        format!("switchboard-dial-v1\n{method}\n{path}\n{host}\n{ts}\n{nonce}")
    }

    /// The bytes that a dialled host signs, over the nonce of the request: whoever stands in its place cannot.
    pub fn answered(host: &HostId, nonce: &str) -> String {
        format!("switchboard-answer-v1\n{host}\n{nonce}")
    }
}

/// The header of a refused upgrade that has the problem's code: of a body that follows, whoever dials may see nothing.
pub const PROBLEM_HEADER: &str = "switchboard-problem";

/// The problem of a request whose signed time is too far from ours ([`CLOCK_SKEW_MAX_S`]). The clock of a machine that has just
/// started is put right within seconds.
pub const CLOCK_SKEW: &str = "clock_skew";

/// The header of a dialled host's answer that has its signature, in unpadded base64url.
pub const PROOF_HEADER: &str = "switchboard-proof";

impl std::fmt::Display for Authorization {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { host, ts, nonce, sig } = self;
        write!(f, "{SCHEME}host=\"{host}\", ts=\"{ts}\", nonce=\"{nonce}\", sig=\"{sig}\"")
    }
}

impl std::str::FromStr for Authorization {
    type Err = BadAuthorization;
    fn from_str(header: &str) -> Result<Self, BadAuthorization> {
        let (mut host, mut ts, mut nonce, mut sig) = (None, None, None, None);
        for part in header.strip_prefix(SCHEME).ok_or(BadAuthorization)?.split(',') {
            let (name, value) = part.trim().split_once('=').ok_or(BadAuthorization)?;
            let value = value
                .strip_prefix('"')
                .and_then(|value| value.strip_suffix('"'))
                .ok_or(BadAuthorization)?;
            let slot = match name {
                "host" => &mut host,
                "ts" => &mut ts,
                "nonce" => &mut nonce,
                "sig" => &mut sig,
                _ => return Err(BadAuthorization),
            };
            if slot.replace(value).is_some() {
                return Err(BadAuthorization);
            }
        }
        let url_safe =
            |text: &&str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        let nonce = nonce.filter(url_safe).filter(|text| NONCE_LEN.contains(&text.len()));
        let sig = sig.filter(url_safe).filter(|text| text.len() == SIG_LEN);
        Ok(Self {
            host: host.and_then(|id| id.parse().ok()).ok_or(BadAuthorization)?,
            ts: ts.and_then(|ts| ts.parse().ok()).ok_or(BadAuthorization)?,
            nonce: nonce.ok_or(BadAuthorization)?.to_owned(),
            sig: sig.ok_or(BadAuthorization)?.to_owned(),
        })
    }
}

/// What a host sends to be enrolled, once, with a one-time token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EnrolRequest {
    /// The one-time token.
    pub token: String,
    /// A name for people.
    pub name: String,
    /// Ed25519 public key, unpadded base64url.
    pub public_key: String,
    /// The phones that it serves.
    pub phones: Vec<EnrolPhone>,
}

/// A phone that a host serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EnrolPhone {
    /// Its number.
    pub number: E164,
    /// A name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// What it can send by; iMessage and SMS when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channels: Option<Vec<crate::Channel>>,
    /// The host only stands by for it: another one serves it, and this one reads along until it has to take over.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub standby: bool,
    /// It is a phone of the sandbox: it takes what test keys send and nothing else.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sandbox: bool,
}

/// What enrolment gives. The host keeps it, with the router's address, in `enrolment.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EnrolResponse {
    /// The host's id.
    pub host: HostId,
    /// The ids of its phones.
    pub phones: Vec<EnrolledPhone>,
    /// The router's own Ed25519 public key, unpadded base64url: by it a host knows the router that dials it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub router_key: Option<String>,
}

/// A phone with its id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EnrolledPhone {
    /// Its id.
    pub phone: PhoneId,
    /// Its number.
    pub number: E164,
}

/// The file `enrolment.json` in a host's state folder, written by `switchboard host enroll`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolment {
    /// Base URL of the router, `http://` or `https://`.
    pub router: String,
    /// The host's id.
    pub host: HostId,
    /// Its phones.
    pub phones: Vec<EnrolledPhone>,
    /// The router's public key, where it gave one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub router_key: Option<String>,
}
