//! Messages.app: does it run, may it be controlled, which accounts does it have and how are they.

use protocol::pipe::AccountState;
use protocol::{Channel, Reason};

use super::Check;
use crate::exit::Exit;
use crate::osascript::{Disposition, Failure};

/// A word of Messages' own that is shown is cut.
const WORD_CHARS_MAX: usize = 40;
/// What the script of `doctor` returns when Messages does not run. It asks without starting it: a
/// `tell` would.
const NOT_RUNNING: &str = "not running";

/// What an answer to the question for an account's state says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Why this account cannot send; none when it can.
    pub(crate) reason: Option<Reason>,
    pub(crate) state: AccountState,
    /// For people; never a text of a message.
    pub(crate) detail: String,
}

/// Judges an answer. Which words there are besides `connected` and `connecting` is Messages' own
/// matter: every other one means that nothing can be sent.
pub(crate) fn standing(disposition: &Disposition) -> Standing {
    match disposition {
        Disposition::Succeeded { output } if output == "connected" => {
            Standing { reason: None, state: AccountState::Ready, detail: String::new() }
        }
        Disposition::Succeeded { output } if output == "connecting" => Standing {
            reason: Some(Reason::AccountOffline),
            state: AccountState::Degraded,
            detail: "connecting".to_owned(),
        },
        Disposition::Succeeded { output } if output == NOT_RUNNING => Standing {
            reason: Some(Reason::MessagesNotRunning),
            state: AccountState::Degraded,
            detail: NOT_RUNNING.to_owned(),
        },
        Disposition::Succeeded { output } => Standing {
            reason: Some(Reason::AccountOffline),
            state: AccountState::SignedOut,
            detail: output
                .chars()
                .map(|char| if char.is_control() { ' ' } else { char })
                .take(WORD_CHARS_MAX)
                .collect(),
        },
        Disposition::NotStarted(failure) | Disposition::MayHaveCompleted(failure) => Standing {
            reason: Some(failure.reason),
            state: state_of(failure.reason),
            detail: failure.detail.clone(),
        },
    }
}

fn state_of(reason: Reason) -> AccountState {
    if matches!(reason, Reason::AutomationDenied | Reason::AutomationConsent) {
        AccountState::NoPermission
    } else if reason == Reason::AccountUnusable {
        AccountState::SignedOut
    } else {
        AccountState::Degraded
    }
}

/// What became of a question to Messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It ended by itself.
    Ended(Disposition),
    /// It neither ended nor timed out: macOS holds the Apple event back while it asks on the screen
    /// whether that is allowed. Messages that hangs is -1712, because the script has a timeout.
    /// (facts on macOS, section 2; unverified on 26 and later.)
    Hung,
    /// It could not be started.
    NotStarted(String),
    /// It was not asked, and why.
    NotAsked(String),
}

/// The three things that the first answer tells: whether Messages runs, whether it may be
/// controlled, and how the iMessage account is.
pub(crate) fn judge(answer: &Answer) -> Vec<Check> {
    let (running, automation, account) = ("messages", "automation", "imessage_account");
    let all_skipped =
        |why: &str| [running, automation, account].map(|check| Check::skipped(check, why)).to_vec();
    let disposition = match answer {
        Answer::NotAsked(why) => return all_skipped(why),
        Answer::NotStarted(why) => {
            return vec![
                Check::skipped(running, "osascript cannot be started"),
                Check::error(automation, why, Reason::ScriptFault, Exit::BadConfig).with_remedy(
                    "Correct `osascript` in the configuration; on a Mac it is /usr/bin/osascript.",
                ),
                Check::skipped(account, "osascript cannot be started"),
            ];
        }
        Answer::Hung => {
            return vec![
                Check::skipped(running, "not told while Messages cannot be asked"),
                Check::error(
                    automation,
                    "osascript hangs: a question waits on this Mac's screen",
                    Reason::AutomationConsent,
                    Exit::NoPermission,
                ),
                Check::skipped(account, "not told while Messages cannot be asked"),
            ];
        }
        Answer::Ended(disposition) => disposition,
    };
    let standing = standing(disposition);
    let Some(reason) = standing.reason else {
        return vec![
            Check::ok(running, "Messages runs"),
            Check::ok(automation, "Messages may be controlled"),
            Check::ok(account, "connected"),
        ];
    };
    let found = format!("{reason} ({})", standing.detail);
    match Obstacle::of(reason) {
        Obstacle::NotRunning => vec![
            Check::error(running, "Messages does not run", reason, Exit::Unhealthy),
            Check::skipped(automation, "only a Messages that runs can be asked"),
            Check::skipped(account, "only a Messages that runs can be asked"),
        ],
        Obstacle::Permission => vec![
            Check::ok(running, "Messages runs"),
            Check::error(automation, found, reason, Exit::NoPermission),
            Check::skipped(account, "only a Messages that may be controlled can be asked"),
        ],
        Obstacle::Account => {
            let found = match standing.detail.as_str() {
                "connecting" => "connecting".to_owned(),
                _ if reason == Reason::AccountUnusable => {
                    format!("there is no such account ({})", standing.detail)
                }
                word => format!("signed out or offline ({word})"),
            };
            // What is connecting may be connected in a moment.
            let exit = if standing.state == AccountState::Degraded {
                Exit::TryAgain
            } else {
                Exit::Unhealthy
            };
            vec![
                Check::ok(running, "Messages runs"),
                Check::ok(automation, "Messages may be controlled"),
                Check::error(account, found, reason, exit),
            ]
        }
        Obstacle::Silence => vec![
            Check::error(running, found, reason, Exit::TryAgain),
            Check::skipped(automation, "Messages does not answer"),
            Check::skipped(account, "Messages does not answer"),
        ],
        Obstacle::Question => vec![
            Check::skipped(running, "the question itself failed"),
            Check::error(automation, found, reason, Exit::Unhealthy)
                .with_remedy("Run osascript by hand in this login session, and see what it says."),
            Check::skipped(account, "the question itself failed"),
        ],
    }
}

/// What stands between us and an account that is connected.
enum Obstacle {
    NotRunning,
    Permission,
    Account,
    Silence,
    /// Nothing that is known to have to do with Messages.
    Question,
}

impl Obstacle {
    fn of(reason: Reason) -> Self {
        if reason == Reason::MessagesNotRunning {
            Self::NotRunning
        } else if matches!(reason, Reason::AutomationDenied | Reason::AutomationConsent) {
            Self::Permission
        } else if matches!(reason, Reason::AccountOffline | Reason::AccountUnusable) {
            Self::Account
        } else if matches!(reason, Reason::MessagesTimeout | Reason::MessagesConnectionLost) {
            Self::Silence
        } else {
            Self::Question
        }
    }
}

/// An account that is needed only for a channel of this phone.
pub(crate) fn other_account(channel: Channel, configured: bool, answer: &Answer) -> Check {
    let (check, remedy) = match channel {
        Channel::Sms => (
            "sms_account",
            "On the iPhone, in Settings → Messages → Text Message Forwarding, allow this Mac; or take \
             \"sms\" out of `default_channels`.",
        ),
        Channel::Rcs | Channel::Imessage => (
            "rcs_account",
            "Switch RCS on in the iPhone's settings for Messages; or take \"rcs\" out of \
             `default_channels`.",
        ),
    };
    let disposition = match answer {
        Answer::Ended(disposition) => disposition,
        Answer::Hung => return Check::skipped(check, "osascript hangs"),
        Answer::NotStarted(why) | Answer::NotAsked(why) => return Check::skipped(check, why),
    };
    let standing = standing(disposition);
    let about_account = |reason| {
        matches!(reason, Reason::AccountUnusable | Reason::AccountOffline | Reason::NotResolved)
    };
    match standing.reason {
        None => Check::ok(check, "connected"),
        Some(reason) if !configured && about_account(reason) => {
            Check::skipped(check, "there is none, and this phone does not use that channel")
        }
        Some(reason) if about_account(reason) => {
            let found = if standing.detail.starts_with("AppleScript") {
                format!("there is none ({})", standing.detail)
            } else {
                standing.detail
            };
            Check::warning(check, found, remedy)
        }
        Some(reason) => Check::skipped(check, format!("{reason} ({})", standing.detail)),
    }
}

/// An answer that was refused by a rule of ours rather than by Messages; for the tables of tests.
#[cfg(test)]
pub(crate) fn failed(reason: Reason, detail: &str) -> Disposition {
    Disposition::MayHaveCompleted(Failure { reason, detail: detail.to_owned(), retryable: false })
}

/// Tells apart the two ends of an osascript that was killed: by us, because it hung, or because it
/// wrote without end.
pub(crate) fn ended(disposition: Disposition, hung: bool) -> Answer {
    let killed = match &disposition {
        Disposition::Succeeded { .. } => false,
        Disposition::NotStarted(Failure { reason, .. })
        | Disposition::MayHaveCompleted(Failure { reason, .. }) => {
            *reason == Reason::MessagesTimeout
        }
    };
    if hung && killed { Answer::Hung } else { Answer::Ended(disposition) }
}

#[cfg(test)]
mod tests {
    use super::super::Outcome::{Error, Ok, Skipped, Warning};
    use super::*;
    use crate::osascript::of_number;

    fn said(word: &str) -> Answer {
        Answer::Ended(Disposition::Succeeded { output: word.to_owned() })
    }

    fn number(number: i32) -> Answer {
        Answer::Ended(of_number(number))
    }

    #[test]
    fn every_answer_tells_of_messages_of_the_permission_and_of_the_account() {
        for (answer, outcomes, exit) in [
            (said("connected"), [Ok, Ok, Ok], None),
            (said("connecting"), [Ok, Ok, Error], Some(Exit::TryAgain)),
            (said("disconnected"), [Ok, Ok, Error], Some(Exit::Unhealthy)),
            (said("disconnecting"), [Ok, Ok, Error], Some(Exit::Unhealthy)),
            (said(""), [Ok, Ok, Error], Some(Exit::Unhealthy)),
            (said("not running"), [Error, Skipped, Skipped], Some(Exit::Unhealthy)),
            (number(-600), [Error, Skipped, Skipped], Some(Exit::Unhealthy)),
            (number(-1743), [Ok, Error, Skipped], Some(Exit::NoPermission)),
            (number(-1744), [Ok, Error, Skipped], Some(Exit::NoPermission)),
            (number(-2753), [Ok, Ok, Error], Some(Exit::Unhealthy)),
            (number(-1719), [Ok, Ok, Error], Some(Exit::Unhealthy)),
            (number(-1712), [Error, Skipped, Skipped], Some(Exit::TryAgain)),
            (number(-609), [Error, Skipped, Skipped], Some(Exit::TryAgain)),
            (number(-1700), [Skipped, Error, Skipped], Some(Exit::Unhealthy)),
            (number(-9999), [Skipped, Error, Skipped], Some(Exit::Unhealthy)),
            (Answer::Hung, [Skipped, Error, Skipped], Some(Exit::NoPermission)),
            (Answer::NotStarted("x".to_owned()), [Skipped, Error, Skipped], Some(Exit::BadConfig)),
            (Answer::NotAsked("x".to_owned()), [Skipped, Skipped, Skipped], None),
        ] {
            let checks = judge(&answer);
            let found: Vec<_> = checks.iter().map(|check| check.outcome).collect();
            assert_eq!(found, outcomes, "{answer:?}");
            assert_eq!(checks.iter().find_map(|check| check.exit), exit, "{answer:?}");
            for check in checks {
                let needs = check.outcome == Error;
                assert_eq!(check.remedy.ends_with('.'), needs, "{answer:?} {check:?}");
            }
        }
    }

    #[test]
    fn a_denied_permission_a_waiting_question_and_a_hanging_messages_are_three_things() {
        let reason = |answer: &Answer| judge(answer).iter().find_map(|check| check.reason).unwrap();
        assert_eq!(reason(&number(-1743)), Reason::AutomationDenied);
        assert_eq!(reason(&Answer::Hung), Reason::AutomationConsent);
        assert_eq!(reason(&number(-1712)), Reason::MessagesTimeout);
        let killed = || failed(Reason::MessagesTimeout, "killed");
        assert_eq!(ended(killed(), true), Answer::Hung);
        assert_eq!(ended(killed(), false), Answer::Ended(killed()));
        // It ended in the same moment: its word counts.
        let connected = Disposition::Succeeded { output: "connected".to_owned() };
        assert_eq!(ended(connected.clone(), true), Answer::Ended(connected));
    }

    #[test]
    fn other_accounts_are_missed_only_where_their_channel_is_used() {
        for channel in [Channel::Sms, Channel::Rcs] {
            for (answer, used, unused) in [
                (said("connected"), Ok, Ok),
                (said("disconnected"), Warning, Skipped),
                (number(-1719), Warning, Skipped),
                (number(-1743), Skipped, Skipped),
                (number(-600), Skipped, Skipped),
                (Answer::Hung, Skipped, Skipped),
                (Answer::NotAsked("x".to_owned()), Skipped, Skipped),
            ] {
                assert_eq!(other_account(channel, true, &answer).outcome, used, "{answer:?}");
                assert_eq!(other_account(channel, false, &answer).outcome, unused, "{answer:?}");
            }
        }
    }

    #[test]
    fn words_of_messages_are_cut_and_cannot_steer_a_terminal() {
        let output = format!("\u{1b}[2J{}", "x".repeat(400));
        let standing = standing(&Disposition::Succeeded { output });
        assert_eq!(standing.detail.chars().count(), WORD_CHARS_MAX);
        assert!(!standing.detail.contains('\u{1b}'));
    }
}
