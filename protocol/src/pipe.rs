//! The pipe: one JSON object a line between a supervisor and a bridge.
//!
//! The supervisor starts the bridge as a program. [`Command`]s go down its stdin, [`Up`] lines
//! come up its stdout, its log goes to stderr. End of file on stdin means that the supervisor is
//! gone: start nothing more, finish or kill the running osascript within 5 s, exit.
//!
//! Events are journaled before they are written, carry a `seq` that is contiguous in one journal
//! (1, 2, 3, …), and are repeated until acknowledged. Signals are said once.

mod content;

use serde::{Deserialize, Serialize};

pub use content::{
    App, AttachmentChange, Details, Edited, GroupChange, InboundAttachment, LinkPreview, Notice,
    PreviewChange, Reaction, Received, ReplyTo, TextPart, TextRun, TransferState, UnknownKind,
    Unsent, Version,
};

use crate::wire::{WireError, parse_tagged};
use crate::{Channel, Class, MessageId, PhoneId, Reason, Recipient, UnixMs, limits};

/// What a supervisor tells a bridge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Command {
    /// Send this message; at most once per (message, attempt).
    Send(Send),
    /// Do not start this attempt, if it has not started. Answered with the present state.
    Cancel {
        /// Which message.
        message: MessageId,
        /// Which attempt of it.
        attempt: u32,
    },
    /// Opens or extends the gate.
    Lease {
        /// The lease's epoch; older ones are refused from now on.
        epoch: u64,
        /// How long it holds from `issued_ms`, in milliseconds.
        ttl_ms: u64,
        /// When the renewal that it answers was sent, on this machine's continuous clock, in
        /// milliseconds (`CLOCK_MONOTONIC_RAW` on macOS, `CLOCK_BOOTTIME` on Linux).
        issued_ms: u64,
    },
    /// Closes the gate for this epoch and all older ones.
    Revoke {
        /// The epoch that ends.
        epoch: u64,
    },
    /// The phone goes to another host: closes the gate for every epoch older than this one, for good. What was not
    /// started is refused as stale; answered with [`Up::Released`] once no script runs.
    Release {
        /// Everything older ends.
        epoch: u64,
    },
    /// The router has every event of this journal up to `seq`.
    Ack {
        /// Which journal; an acknowledgement of another one is ignored.
        journal: String,
        /// Up to and including.
        seq: u64,
    },
    /// Say every event again that is not acknowledged: the listener is new.
    Replay,
    /// Over which channels can this address be reached? Answered with [`Event::Capability`].
    Capability {
        /// Which address.
        to: Recipient,
    },
    /// Has Messages sent this, though another bridge of the account was asked to? Answered with [`Event::Sent`] where
    /// chat.db proves it, and otherwise with nothing: the doubt stays.
    Seek(Seek),
    /// Start no osascript, for a send or for a question, until this time is over: Messages is being
    /// restarted. What is queued stays queued. Said again while it lasts, so that a supervisor that
    /// dies leaves nobody waiting; 0 ends it. Answered with a heartbeat.
    Pause {
        /// For so long from now, in milliseconds of the continuous clock.
        for_ms: u64,
        /// The osascript of a text that has run for longer is ended, and its send settled: Messages was
        /// asked meanwhile and did not answer. None waits for its own deadline, as a file always does.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        end_after_ms: Option<u64>,
    },
    /// Apple has blocked the account, or no longer: an operator says so, for nothing on a Mac does.
    /// Kept in the journal; while it is blocked nothing starts, whatever the account answers.
    Block {
        /// Whether it is blocked.
        blocked: bool,
    },
    /// This machine has slept, or something else makes what was last seen old news: look at the Mac, at chat.db and at the
    /// account now, and not when the regular look is due. What was known holds until then. A bridge that does not know this
    /// command refuses the line and looks when it is due.
    Preflight,
    /// Finish what is started, start nothing new, then exit 0.
    Drain {
        /// After so many milliseconds exit all the same.
        deadline_ms: u64,
    },
    /// Start nothing new and exit 0 as soon as the running osascript has ended.
    Stop {
        /// After so many milliseconds kill it and exit.
        deadline_ms: u64,
    },
}

/// One attempt to send one message on one phone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Send {
    /// Which message.
    pub message: MessageId,
    /// Which attempt of it, from 1.
    pub attempt: u32,
    /// The epoch under which it was dispatched.
    pub epoch: u64,
    /// Whom it goes to.
    pub to: Recipient,
    /// Its text; may be empty only when there are attachments.
    pub text: String,
    /// What goes with it, by URL.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attachments: Vec<OutboundAttachment>,
    /// Channels in the order to try; the next only after a provable failure of the one before.
    pub route: Vec<Channel>,
    /// How urgent it is.
    #[serde(default = "least_urgent")]
    pub class: Class,
    /// Wall-clock time after which it must not be started.
    pub start_before: UnixMs,
    /// The conversation that it belongs to, where one exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation: Option<Conversation>,
}

/// Attempts that a lost bridge had in hand, which other devices of the account may have heard of. All of them have the
/// same text for the same recipient: which row is whose can only be told by looking at them together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seek {
    /// Whom they went to.
    pub to: Recipient,
    /// Their text.
    pub text: String,
    /// They cannot have been sent before.
    pub since: UnixMs,
    /// They cannot have been sent after.
    pub until: UnixMs,
    /// The attempts, oldest first.
    pub attempts: Vec<Attempt>,
    /// Guids of what the phone has sent to the recipient in the same words, and is known to have sent: rows of these
    /// prove nothing about the attempts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub known: Vec<String>,
}

fn least_urgent() -> Class {
    Class::Marketing
}

/// A file that the bridge fetches and sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutboundAttachment {
    /// Where it is; HTTPS only.
    pub url: String,
    /// The name under which the recipient sees it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Lower-case hexadecimal SHA-256 that it must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// A conversation, named independently of the device and the macOS version that show it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Conversation {
    /// Direct or group.
    pub kind: ConversationKind,
    /// The other side's address, or the group's id.
    pub id: String,
}

/// With one other side, or with several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConversationKind {
    /// One other side.
    Direct,
    /// Several.
    Group,
}

/// A line from a bridge: a journaled event, or a signal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Up {
    /// A journaled event; repeated until acknowledged.
    Event(EventLine),
    /// First line of a bridge.
    Hello(Hello),
    /// It can send: database readable, Messages answers, account connected.
    Ready,
    /// It cannot send now, and why.
    NotReady {
        /// Every reason that holds.
        reasons: Vec<NotReady>,
    },
    /// Answers [`Command::Release`]: no script runs, and none of an older epoch will be started.
    Released {
        /// The release's epoch.
        epoch: u64,
    },
    /// Alive and working; every 5 s.
    Heartbeat(Heartbeat),
}

/// An event with its place in the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventLine {
    /// Its number in the journal, contiguous from 1.
    pub seq: u64,
    /// When it was journaled.
    pub at: UnixMs,
    /// The newest epoch that the bridge had seen then; none before the first lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// What happened.
    pub event: Event,
}

/// First line of a bridge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Version of this contract.
    pub protocol: u32,
    /// Version of the program.
    pub version: String,
    /// The phone that it serves.
    pub phone: PhoneId,
    /// Id of its journal; a new file has a new one.
    pub journal: String,
    /// The newest event in it; 0 when there is none.
    pub last_seq: u64,
    /// Everything up to this one is acknowledged and forgotten.
    #[serde(default)]
    pub acked_seq: u64,
    /// Its process id.
    pub pid: u32,
}

/// Why a bridge cannot send now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotReady {
    /// The stable code.
    pub reason: Reason,
    /// What to do about it, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub remedy: String,
}

/// What a bridge has been doing; every number only grows unless it says otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Heartbeat {
    /// When chat.db was last polled.
    pub last_poll: Option<UnixMs>,
    /// When it was last seen to have changed.
    pub last_change: Option<UnixMs>,
    /// When the last message came in.
    pub last_inbound: Option<UnixMs>,
    /// When the newest receipt, delivered or read, came.
    pub last_receipt: Option<UnixMs>,
    /// Own messages of the last hour, whoever sent them; goes up and down.
    pub own_last_hour: u64,
    /// Those of them that failed as not registered (chat.db error 22); goes up and down. Most of
    /// many is how a limit or a block of the account shows.
    pub not_registered_last_hour: u64,
    /// Age of the running osascript in milliseconds; none when none runs.
    pub osascript_age_ms: Option<u64>,
    /// Osascripts that have ended.
    pub osascript_ended: u64,
    /// How long all of these ran, in milliseconds.
    pub osascript_total_ms: u64,
    /// How long the last of them ran, in milliseconds; none before the first. Goes up and down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub osascript_last_ms: Option<u64>,
    /// It was asked to [pause](Command::Pause) and starts no osascript; nor does one of an earlier
    /// life run, whose age is not known.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
    /// Sends accepted and not started; goes up and down.
    pub queued: u64,
    /// Sends started and not final; goes up and down.
    pub in_flight: u64,
    /// Events not acknowledged; goes up and down.
    pub unacked: u64,
    /// The longest read of chat.db so far, in microseconds: for so long Messages could not fold its
    /// WAL into the file.
    pub longest_read_us: u64,
    /// Turns of the event loop: a hung loop shows here.
    pub turns: u64,
    /// Lines refused.
    pub refused_lines: u64,
}

/// One fact, journaled before it was said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    /// The attempt is in the journal.
    Accepted(Attempt),
    /// The attempt is not taken, and never will be.
    Refused(AttemptReason),
    /// Handed to Messages.
    Started {
        /// Which attempt.
        #[serde(flatten)]
        attempt: Attempt,
        /// Over which channel.
        channel: Channel,
    },
    /// One channel provably failed, and the route goes on with another.
    Fallback {
        /// Which attempt.
        #[serde(flatten)]
        attempt: Attempt,
        /// The channel that failed.
        from: Channel,
        /// The one that is tried next.
        to: Channel,
        /// Why.
        reason: Reason,
        /// For people; never the text.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        detail: String,
    },
    /// Its row is in chat.db, and Messages says that it was sent.
    Sent {
        /// Which attempt.
        #[serde(flatten)]
        attempt: Attempt,
        /// The channel really used; a downgrade shows here.
        channel: Channel,
        /// The row's guid.
        guid: String,
    },
    /// It reached a device of the recipient.
    Delivered(Receipt),
    /// The recipient has read it.
    Read(Receipt),
    /// Provably not sent.
    Failed(AttemptReason),
    /// Handed over, outcome not provable within the window; may still be followed by the truth.
    Unknown(AttemptReason),
    /// Withdrawn before it started; it never will.
    Canceled(Attempt),
    /// Its time ran out before it started; it never will.
    Expired(Attempt),
    /// A message came in.
    Received(Received),
    /// Somebody reacted to an earlier message.
    Reaction(Reaction),
    /// An earlier message was edited.
    Edited(Edited),
    /// An earlier message was taken back, whole or in part.
    Unsent(Unsent),
    /// A file that an earlier message announced has come, or will not come.
    Attachment(AttachmentChange),
    /// The preview of a link in an earlier message has come.
    Preview(PreviewChange),
    /// A group changed.
    Group(GroupChange),
    /// The system says something in a conversation that is no message.
    Notice(Notice),
    /// A row of a kind that this build does not know, by its numbers.
    UnknownKind(UnknownKind),
    /// What is known of the channels of an address.
    Capability(Capability),
    /// The row numbers of chat.db mean something else now; its last days were read again.
    Resync {
        /// `renumbered`, `younger`, `replaced`.
        why: String,
    },
    /// The account's state changed.
    Account {
        /// What it is now.
        state: AccountState,
        /// For people.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        detail: String,
    },
    /// What a newer bridge says and this build does not understand. It is carried on as it stands,
    /// so that a bridge may be upgraded alone and its journal never gets stuck.
    #[serde(untagged)]
    Other(OtherEvent),
}

/// An event of a type, or with fields, that this build does not know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtherEvent {
    /// The tag that it carries.
    #[serde(rename = "type")]
    pub kind: String,
    /// All its other fields.
    #[serde(flatten)]
    pub fields: serde_json::Map<String, serde_json::Value>,
}

impl Event {
    /// The tag that stands in `type`; `other` for what this build does not know, so that what is
    /// counted by it stays bounded.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Accepted(_) => "accepted",
            Self::Refused(_) => "refused",
            Self::Started { .. } => "started",
            Self::Fallback { .. } => "fallback",
            Self::Sent { .. } => "sent",
            Self::Delivered(_) => "delivered",
            Self::Read(_) => "read",
            Self::Failed(_) => "failed",
            Self::Unknown(_) => "unknown",
            Self::Canceled(_) => "canceled",
            Self::Expired(_) => "expired",
            Self::Received(_) => "received",
            Self::Reaction(_) => "reaction",
            Self::Edited(_) => "edited",
            Self::Unsent(_) => "unsent",
            Self::Attachment(_) => "attachment",
            Self::Preview(_) => "preview",
            Self::Group(_) => "group",
            Self::Notice(_) => "notice",
            Self::UnknownKind(_) => "unknown_kind",
            Self::Capability(_) => "capability",
            Self::Resync { .. } => "resync",
            Self::Account { .. } => "account",
            Self::Other(_) => "other",
        }
    }

    /// The attempt that it is about, if it is about one.
    pub const fn attempt(&self) -> Option<&Attempt> {
        match self {
            Self::Accepted(attempt) | Self::Canceled(attempt) | Self::Expired(attempt) => {
                Some(attempt)
            }
            Self::Refused(about) | Self::Failed(about) | Self::Unknown(about) => {
                Some(&about.attempt)
            }
            Self::Delivered(receipt) | Self::Read(receipt) => Some(&receipt.attempt),
            Self::Started { attempt, .. }
            | Self::Fallback { attempt, .. }
            | Self::Sent { attempt, .. } => Some(attempt),
            Self::Received(_)
            | Self::Reaction(_)
            | Self::Edited(_)
            | Self::Unsent(_)
            | Self::Attachment(_)
            | Self::Preview(_)
            | Self::Group(_)
            | Self::Notice(_)
            | Self::UnknownKind(_)
            | Self::Capability(_)
            | Self::Resync { .. }
            | Self::Account { .. }
            | Self::Other(_) => None,
        }
    }
}

/// Which attempt of which message.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Attempt {
    /// The message.
    pub message: MessageId,
    /// The attempt, from 1.
    pub attempt: u32,
}

/// An attempt, and why it came to this.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptReason {
    /// Which attempt.
    #[serde(flatten)]
    pub attempt: Attempt,
    /// The stable code.
    pub reason: Reason,
    /// For people: an error number, never the text.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// Another attempt, here or elsewhere, may succeed and cannot double the message.
    #[serde(default)]
    pub retryable: bool,
    /// The channel that it was about, where one was tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel: Option<Channel>,
}

/// A receipt for an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// Which attempt.
    #[serde(flatten)]
    pub attempt: Attempt,
    /// The row's guid.
    pub guid: String,
    /// When, by chat.db; the time of noticing where chat.db does not say.
    pub at: UnixMs,
}

/// What is known of the channels of an address, from chat.db's history and from own results.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capability {
    /// Which address.
    pub to: Recipient,
    /// One entry a channel of which something is known.
    pub channels: Vec<ChannelCapability>,
}

/// What is known of one channel of an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelCapability {
    /// Which channel.
    pub channel: Channel,
    /// Whether it reaches the address.
    pub able: bool,
    /// When that was seen.
    pub at: UnixMs,
    /// Seen in the result of one of our sends; otherwise in chat.db's history.
    #[serde(default)]
    pub own_result: bool,
}

/// State of the Apple account behind a phone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AccountState {
    /// Connected.
    Ready,
    /// Something does not work; sending may.
    Degraded,
    /// Signed out.
    SignedOut,
    /// Apple has blocked it: no sends, and no fail-over to another Mac of the same account.
    Blocked,
    /// A permission is missing on this Mac.
    NoPermission,
}

const COMMANDS: &[&str] = &[
    "send",
    "cancel",
    "lease",
    "revoke",
    "release",
    "ack",
    "replay",
    "capability",
    "seek",
    "pause",
    "block",
    "preflight",
    "drain",
    "stop",
];
const UPS: &[&str] = &["event", "hello", "ready", "not_ready", "released", "heartbeat"];

/// Parses one line from a supervisor, without its newline.
pub fn parse_command(line: &str) -> Result<Command, WireError> {
    parse_tagged(line, limits::LINE_BYTES_MAX, COMMANDS)
}

/// Parses one line from a bridge, without its newline.
pub fn parse_up(line: &str) -> Result<Up, WireError> {
    parse_tagged(line, limits::LINE_BYTES_MAX, UPS)
}
