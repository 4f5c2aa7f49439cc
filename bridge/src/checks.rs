//! What is found → what it means. Pure: `doctor` and the readiness of a running bridge judge by the
//! same functions, so that a phone is never called fit by one and unfit by the other.
//!
//! [`machine`] judges the Mac, [`messages`] the program and its accounts, [`history`] what chat.db
//! shows.

pub(crate) mod history;
pub(crate) mod machine;
pub(crate) mod messages;

use protocol::Reason;
pub use protocol::check::Outcome;
use protocol::pipe::NotReady;
use serde::Serialize;

use crate::exit::Exit;

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at: a stable name.
    #[serde(rename = "check")]
    pub subject: &'static str,
    /// How it is.
    pub outcome: Outcome,
    /// What was seen, in words for people.
    pub found: String,
    /// What to do about it, as a sentence; empty when nothing needs to be done.
    pub remedy: String,
    /// The stable code of an error that keeps a bridge from being ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// What an error makes the exit code.
    #[serde(skip)]
    pub(crate) exit: Option<Exit>,
}

impl Check {
    fn new(subject: &'static str, outcome: Outcome, found: impl Into<String>) -> Self {
        let (found, remedy) = (found.into(), String::new());
        Self { subject, outcome, found, remedy, reason: None, exit: None }
    }

    pub(crate) fn ok(subject: &'static str, found: impl Into<String>) -> Self {
        Self::new(subject, Outcome::Ok, found)
    }

    pub(crate) fn skipped(subject: &'static str, why: impl Into<String>) -> Self {
        Self::new(subject, Outcome::Skipped, why)
    }

    pub(crate) fn warning(
        subject: &'static str,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { remedy: remedy.into(), ..Self::new(subject, Outcome::Warning, found) }
    }

    /// An error with the remedy that belongs to its reason.
    pub(crate) fn error(
        subject: &'static str,
        found: impl Into<String>,
        reason: Reason,
        exit: Exit,
    ) -> Self {
        Self {
            remedy: remedy(reason).to_owned(),
            reason: Some(reason),
            exit: Some(exit),
            ..Self::new(subject, Outcome::Error, found)
        }
    }

    /// An error that has no code of readiness, with a remedy of its own.
    pub(crate) fn fault(
        subject: &'static str,
        found: impl Into<String>,
        remedy: impl Into<String>,
        exit: Exit,
    ) -> Self {
        let error = Self::new(subject, Outcome::Error, found);
        Self { remedy: remedy.into(), exit: Some(exit), ..error }
    }

    #[must_use]
    pub(crate) fn with_remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = remedy.into();
        self
    }

    /// As the pipe says it; none unless it keeps the bridge from being ready.
    pub(crate) fn not_ready(&self) -> Option<NotReady> {
        match self.outcome {
            Outcome::Error => {
                self.reason.map(|reason| NotReady { reason, remedy: self.remedy.clone() })
            }
            Outcome::Ok | Outcome::Warning | Outcome::Skipped => None,
        }
    }
}

/// What to do about a reason; empty where the reason does not tell.
pub(crate) fn remedy(reason: Reason) -> &'static str {
    if reason == Reason::AutomationDenied {
        "In System Settings → Privacy & Security → Automation, allow Switchboard to control Messages, \
         then restart this phone."
    } else if reason == Reason::AutomationConsent {
        "Look at this Mac's screen: macOS asks whether Switchboard may control Messages. Answer it, \
         then try again."
    } else if reason == Reason::MessagesNotRunning {
        "Open Messages in this login session."
    } else if reason == Reason::AccountBlocked {
        "Apple has blocked this account: have it lifted, or give the number up. Then say so by \
         `POST /v1/phones/{id}/unblock` of the dispatch API."
    } else if matches!(reason, Reason::AccountOffline | Reason::AccountUnusable) {
        "In Messages → Settings → iMessage, sign in, and check the network."
    } else if matches!(reason, Reason::MessagesTimeout | Reason::MessagesConnectionLost) {
        "Messages does not answer: look at this Mac's screen for a question of Messages or of macOS, or \
         quit and open Messages again."
    } else if reason == Reason::ScriptFault {
        "Run `switchboard-bridge doctor`: osascript cannot be started or does not take our scripts."
    } else if reason == Reason::DiskLow {
        "Free space on this disk; the bridge goes on by itself when there is enough."
    } else if reason == Reason::ClockWrong {
        "In System Settings → General → Date & Time, set date and time automatically."
    } else if reason == Reason::DatabasePermission {
        "In System Settings → Privacy & Security → Full Disk Access, remove the stale entry, add \
         Switchboard, switch it on, and restart the agent."
    } else {
        ""
    }
}

/// A length of time in words, one unit.
pub(crate) fn span(ms: i64) -> String {
    let plural =
        |count: i64, unit: &str| format!("{count} {unit}{}", if count == 1 { "" } else { "s" });
    match ms {
        ..1_000 => "less than a second".to_owned(),
        1_000..60_000 => plural(ms / 1_000, "second"),
        60_000..3_600_000 => plural(ms / 60_000, "minute"),
        3_600_000..86_400_000 => plural(ms / 3_600_000, "hour"),
        86_400_000.. => plural(ms / 86_400_000, "day"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_error_with_a_reason_keeps_a_bridge_from_being_ready() {
        let error = Check::error("disk", "full", Reason::DiskLow, Exit::TryAgain);
        let told = error.not_ready().unwrap();
        assert_eq!(told.reason, Reason::DiskLow);
        assert!(told.remedy.ends_with('.'), "{}", told.remedy);
        for check in [
            Check::ok("disk", "x"),
            Check::skipped("disk", "x"),
            Check::warning("disk", "x", "y"),
            Check::fault("disk", "x", "y", Exit::TryAgain),
        ] {
            assert_eq!(check.not_ready(), None, "{check:?}");
        }
    }

    #[test]
    fn every_reason_of_readiness_has_a_remedy() {
        for reason in [
            Reason::AutomationDenied,
            Reason::AutomationConsent,
            Reason::MessagesNotRunning,
            Reason::AccountOffline,
            Reason::AccountUnusable,
            Reason::MessagesTimeout,
            Reason::MessagesConnectionLost,
            Reason::ScriptFault,
            Reason::DiskLow,
            Reason::ClockWrong,
            Reason::DatabasePermission,
        ] {
            assert!(remedy(reason).ends_with('.'), "{reason}");
        }
        assert_eq!(remedy(Reason::OptedOut), "");
    }

    #[test]
    fn spans_are_one_unit() {
        let words: Vec<String> =
            [-1, 999, 1_000, 61_000, 3_600_000, 86_400_000, 200_000_000].map(span).to_vec();
        assert_eq!(
            words,
            [
                "less than a second",
                "less than a second",
                "1 second",
                "1 minute",
                "1 hour",
                "1 day",
                "2 days"
            ]
        );
    }
}
