//! Reason codes: why a message is held, blocked, failed, refused or unknown. Stable for ever.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

macro_rules! reasons {
    ($( $(#[doc = $doc:literal])+ $variant:ident = $text:literal, )+) => {
        /// Why something is so. The same word in API, webhooks, logs and stores.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason {
            $( $(#[doc = $doc])+ $variant, )+
            /// A code from a newer peer that this build does not know.
            Other,
        }

        impl Reason {
            /// Every code that this build writes.
            pub const ALL: &'static [Self] = &[ $( Self::$variant, )+ ];

            /// The stable code.
            pub const fn as_str(self) -> &'static str {
                match self { $( Self::$variant => $text, )+ Self::Other => "other" }
            }

            /// What the code means, in one sentence.
            pub const fn meaning(self) -> &'static str {
                match self {
                    $( Self::$variant => concat!($($doc),+).trim_ascii(), )+
                    Self::Other => "A code from a newer peer that this build does not know.",
                }
            }

            /// The reason behind a code; one that is not on the list is [`Reason::Other`].
            pub fn of(code: &str) -> Self {
                match code { $( $text => Self::$variant, )+ _ => Self::Other }
            }
        }
    };
}

reasons! {
    /// The recipient has opted out of this tenant's messages.
    OptedOut = "opted_out",
    /// It is night where the recipient may be.
    QuietHours = "quiet_hours",
    /// The content breaks a rule of the tenant or the operator.
    Content = "content",
    /// The phone has reached its cap of new contacts.
    WarmingCap = "warming_cap",
    /// The recipient has left as many messages in a row unanswered as they may be sent; it goes when they write.
    Unanswered = "unanswered",
    /// A check could not be carried out, so nothing is sent.
    CheckFailed = "check_failed",
    /// No phone can send this now: all are offline, not ready, busy or lack the channel.
    NoPhoneAvailable = "no_phone_available",
    /// The phone that was asked for does not exist or is not the tenant's to use.
    PhoneNotAllowed = "phone_not_allowed",
    /// Its time ran out before it could be sent.
    Expired = "expired",
    /// The tenant or the operator withdrew it.
    Canceled = "canceled",
    /// The messages of the plan are used up for this month.
    QuotaExceeded = "quota_exceeded",
    /// The credit does not pay for it.
    InsufficientCredit = "insufficient_credit",
    /// Every attempt is used up.
    AttemptsExhausted = "attempts_exhausted",
    /// The router was ended, again and again, while it looked at it.
    Poisoned = "poisoned",
    /// The host that it was given to is gone, and what it did with it is not known.
    HostLost = "host_lost",

    /// The command's epoch is older than one that the bridge has seen.
    StaleEpoch = "stale_epoch",
    /// The phone cannot send over any channel of the route.
    UnknownChannel = "unknown_channel",
    /// The address is not one that the channel can reach.
    BadAddress = "bad_address",
    /// The bridge's queue is full.
    QueueFull = "queue_full",
    /// The text or the attachments break a limit of the bridge.
    BadContent = "bad_content",
    /// Attachments cannot be sent by this bridge.
    AttachmentsUnsupported = "attachments_unsupported",
    /// An attachment cannot be fetched from where it is said to be, or not be kept here.
    AttachmentUnavailable = "attachment_unavailable",
    /// The attachments are larger than what a message may carry.
    AttachmentTooLarge = "attachment_too_large",
    /// An attachment is of a kind that may not be sent, or is not what it says.
    AttachmentType = "attachment_type",
    /// An attachment is not the file whose SHA-256 was given.
    AttachmentMismatch = "attachment_mismatch",
    /// Some parts of the message, files or text, were sent and the rest never will be.
    PartlySent = "partly_sent",

    /// The recipient is not registered with this service (chat.db error 22).
    NotRegistered = "not_registered",
    /// The network failed while sending (chat.db errors 3, 6, 8, 9, 10).
    Network = "network",
    /// The service refused it (chat.db error 20, 24).
    ServiceRejected = "service_rejected",
    /// The account cannot send: disabled, unknown, signed out or not up to date (chat.db errors 30 to 33, 40).
    AccountUnusable = "account_unusable",
    /// Messages says Not Delivered, with an error that has no better word.
    NotDelivered = "not_delivered",
    /// Messages is not running (AppleScript -600).
    MessagesNotRunning = "messages_not_running",
    /// The bridge may not control Messages (AppleScript -1743).
    AutomationDenied = "automation_denied",
    /// Messages could not resolve the chat or the address before sending (AppleScript -1728).
    NotResolved = "not_resolved",
    /// The script failed in a way that points to a fault of ours (AppleScript -1700, -2741 and others).
    ScriptFault = "script_fault",
    /// Messages did not answer in time (AppleScript -1712), or osascript had to be killed.
    MessagesTimeout = "messages_timeout",
    /// The connection to Messages broke while it was asked to send (AppleScript -609).
    MessagesConnectionLost = "messages_connection_lost",
    /// Messages is being restarted because it did not answer; nothing starts until it does.
    MessagesRestarting = "messages_restarting",
    /// Messages took the text but wrote a row that leads nowhere.
    GhostRow = "ghost_row",
    /// The bridge ended while the send was in flight, and chat.db does not show it.
    BridgeInterrupted = "bridge_interrupted",
    /// Messages took the text, and chat.db does not show it.
    NoEvidence = "no_evidence",
    /// The row is there, but Messages has not said within its window that it was sent.
    NotConfirmed = "not_confirmed",

    /// An SMS provider has not taken it, and provably not sent it.
    ProviderRefused = "provider_refused",
    /// An SMS provider has given no answer that says whether it sends it; its report or a look-up settles it.
    ProviderSilent = "provider_silent",

    /// chat.db does not exist: Messages was never used by this user.
    DatabaseMissing = "database_missing",
    /// chat.db cannot be opened: Full Disk Access is missing.
    DatabasePermission = "database_permission",
    /// chat.db is locked for longer than the wait.
    DatabaseLocked = "database_locked",
    /// The file is not a Messages database, is empty or is damaged.
    DatabaseForeign = "database_foreign",
    /// The account is not connected to its service.
    AccountOffline = "account_offline",
    /// Apple has blocked the account, by an operator's word: nothing is sent, and no other Mac takes over, for it has the same account.
    AccountBlocked = "account_blocked",
    /// macOS has not yet been told whether the bridge may control Messages (AppleScript -1744, or a question on the screen).
    AutomationConsent = "automation_consent",
    /// A disk that the bridge or Messages writes to is nearly full.
    DiskLow = "disk_low",
    /// The host runs on a battery that is nearly empty, so it takes no new work.
    PowerLow = "power_low",
    /// The Mac's clock cannot be right, and with it no deadline.
    ClockWrong = "clock_wrong",
    /// The bridge has just started and has not finished its checks.
    Starting = "starting",
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Reason {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|code| Self::of(&code))
    }
}

crate::code::string_schema!(Reason, "opted_out");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_reads_back_and_is_snake_case() {
        for reason in Reason::ALL.iter().copied() {
            assert_eq!(Reason::of(reason.as_str()), reason);
            assert!(
                reason.as_str().bytes().all(|b| b.is_ascii_lowercase() || b == b'_'),
                "{reason}"
            );
            assert!(reason.meaning().ends_with('.'), "{reason}");
        }
    }

    #[test]
    fn a_newer_peers_code_does_not_lose_the_event() {
        let reason: Reason = serde_json::from_str("\"reason_of_tomorrow\"").unwrap();
        assert_eq!(reason, Reason::Other);
    }
}
