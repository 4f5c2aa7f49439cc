//! What becomes of a text: recipient and service in, a plan of timed steps out. Pure.
//!
//! The recipient's number chooses, so that a test or a test key can have every outcome without a
//! setting anywhere: numbers of the form `+1 NPA 555 01xx`, which no subscriber has, where the last
//! two digits are the row of [`TABLE`]. What the outcomes look like in chat.db follows what is
//! publicly reported of Messages; the sources stand in the table's notes.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// The service that a row, a handle or an account belongs to, spelled as chat.db spells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Service {
    /// Apple's own.
    #[serde(rename = "iMessage")]
    Imessage,
    /// Rich Communication Services, from macOS 15 on.
    #[serde(rename = "RCS")]
    Rcs,
    /// Text messages, relayed by an iPhone.
    #[serde(rename = "SMS")]
    Sms,
}

impl Service {
    /// The spelling in chat.db and in Messages' scripting dictionary.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Imessage => "iMessage",
            Self::Rcs => "RCS",
            Self::Sms => "SMS",
        }
    }

    /// The service of that name. AppleScript does not distinguish upper from lower case.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Imessage, Self::Rcs, Self::Sms]
            .into_iter()
            .find(|service| service.as_str().eq_ignore_ascii_case(name))
    }
}

/// What osascript is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The script goes on; exit 0.
    Done,
    /// The Apple event fails with this number.
    Error(i32),
    /// Nothing ever: osascript stays until somebody kills it.
    Never,
}

/// How a row of an own text looks when it is first visible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirstLook {
    /// Being sent: `is_finished`, `is_sent`, `is_delivered` and `error` are 0.
    Sending,
    /// Failed from the start: `is_finished` 1, `is_sent` 0 and this `error`.
    Failed(i64),
    /// The ghost of imsg#90: empty text, SMS handle, in no chat, never sent.
    Ghost,
}

/// One thing that Messages does. Each that writes is a transaction of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// osascript gets its answer.
    Answer(Answer),
    /// Checkpoints the WAL, deletes it with its index, and opens the database anew.
    DropWal,
    /// Another device of the account has sent the same words: its row comes in.
    OtherDevice,
    /// The row becomes visible, before it is in its chat.
    Row(FirstLook),
    /// The row gets its `chat_message_join`.
    Join,
    /// Messages takes the next Apple event.
    Free,
    /// `is_finished` 1, `is_sent` 1; a recipient that is a phone of this sandbox gets the text.
    Sent,
    /// Messages sent it as SMS by itself: service SMS, `was_downgraded` 1, sent.
    Downgraded,
    /// `is_finished` 1 and this `error`.
    Failed(i64),
    /// `is_delivered` 1 and its date.
    Delivered,
    /// `date_read` and `is_read`.
    Read,
}

/// An action and when it is due, counted from the moment Messages takes up the Apple event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Milliseconds at speed 1.
    pub at_ms: u64,
    /// The action.
    pub action: Action,
}

/// What becomes of one text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The name of the outcome, as in the table.
    pub outcome: &'static str,
    /// Whether Messages rewrites quotes, dashes and dots of the text.
    pub rewrites: bool,
    /// The steps in the order in which they happen.
    pub steps: Vec<Step>,
}

impl Plan {
    /// Whether Messages takes the text at all. An event that is refused before that (-600, -1728,
    /// -1743) leaves no trace and may be repeated without any risk of a second text.
    pub fn is_taken(&self) -> bool {
        ![
            Case::NotRunning,
            Case::NotAuthorised,
            Case::NoSuchObject,
            Case::NoAccount,
            Case::BadValue,
        ]
        .iter()
        .any(|case| case.name() == self.outcome)
    }

    /// Whether the text reaches the recipient.
    pub fn reaches(&self) -> bool {
        self.steps.iter().any(|step| matches!(step.action, Action::Sent | Action::Downgraded))
    }
}

/// osascript returns 100 to 120 ms after its start (measured on macOS 26 by imessage-max).
const ANSWER_MS: u64 = 110;
/// The row is visible about 26 ms later (same source).
const ROW_MS: u64 = 136;
/// A row is visible before its join (imessage-kit's backfill query; imsg#118).
const JOIN_MS: u64 = 146;
/// Handed to Apple's servers.
const SENT_MS: u64 = 250;
/// From sent to delivered. Fixtures of platform-imessage show 0.5 to 1.2 s after the row's date.
const DELIVERED_AFTER_MS: u64 = 300;
/// From delivered to read.
const READ_AFTER_MS: u64 = 600;

/// The outcomes that Messages.app and the networks are known to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Case {
    Delivered,
    Read,
    Sent,
    NotRegistered,
    FailsAtOnce,
    NetworkError,
    HangsBefore,
    HangsAfter,
    Slow,
    NotAuthorised,
    TimeoutWritten,
    TimeoutNothing,
    NotRunning,
    NoSuchObject,
    Downgraded,
    Ghost,
    LateRow,
    Rewritten,
    NeverSent,
    LateSent,
    DropsWal,
    Unloaded,
    ConnectionLost,
    QuitsHalfway,
    Restarted,
    NoAccount,
    BadValue,
    OtherDevice,
    Unreadable,
}

impl Case {
    const fn name(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Read => "read",
            Self::Sent => "sent",
            Self::NotRegistered => "not_registered",
            Self::FailsAtOnce => "fails_at_once",
            Self::NetworkError => "network_error",
            Self::HangsBefore => "hangs_before_row",
            Self::HangsAfter => "hangs_after_row",
            Self::Slow => "slow",
            Self::NotAuthorised => "not_authorised",
            Self::TimeoutWritten => "timeout_but_written",
            Self::TimeoutNothing => "timeout_nothing_written",
            Self::NotRunning => "not_running",
            Self::NoSuchObject => "no_such_object",
            Self::Downgraded => "downgraded",
            Self::Ghost => "ghost",
            Self::LateRow => "late_row",
            Self::Rewritten => "rewritten",
            Self::NeverSent => "never_sent",
            Self::LateSent => "late_sent",
            Self::DropsWal => "drops_wal",
            Self::Unloaded => "unloaded",
            Self::ConnectionLost => "connection_lost",
            Self::QuitsHalfway => "quits_halfway",
            Self::Restarted => "restarted",
            Self::NoAccount => "no_account",
            Self::BadValue => "bad_value",
            Self::OtherDevice => "other_device",
            Self::Unreadable => "unreadable",
        }
    }
}

/// A row of the printed table: the numbers, the cases per service, and what one sees.
#[derive(Debug, Clone, Copy)]
struct Entry {
    first: u8,
    last: u8,
    imessage: Case,
    rcs: Case,
    sms: Case,
    note: &'static str,
}

const fn all(digits: u8, case: Case, note: &'static str) -> Entry {
    Entry { first: digits, last: digits, imessage: case, rcs: case, sms: case, note }
}

/// The table. A number that is in none of its rows has the outcome of [`OTHERS`].
const TABLE: &[Entry] = &[
    Entry {
        first: 0,
        last: 0,
        imessage: Case::Delivered,
        rcs: Case::Delivered,
        sms: Case::Sent,
        note: "row, sent, delivered 0.3 s later; by SMS sent, no receipt ever",
    },
    Entry {
        first: 1,
        last: 1,
        imessage: Case::Read,
        rcs: Case::Read,
        sms: Case::Sent,
        note: "as 00, and read 0.6 s after that",
    },
    Entry {
        first: 2,
        last: 9,
        imessage: Case::Delivered,
        rcs: Case::Delivered,
        sms: Case::Sent,
        note: "as 00",
    },
    Entry {
        first: 10,
        last: 10,
        imessage: Case::NotRegistered,
        rcs: Case::NotRegistered,
        sms: Case::Sent,
        note: "not on iMessage nor RCS: row at once with error=22, is_sent=0; SMS works",
    },
    Entry {
        first: 11,
        last: 11,
        imessage: Case::NotRegistered,
        rcs: Case::NotRegistered,
        sms: Case::FailsAtOnce,
        note: "as 10, and SMS fails too: row at once with error=1",
    },
    all(12, Case::NetworkError, "row, then error=3 (network) one second later"),
    all(13, Case::HangsBefore, "osascript hangs until killed, nothing is written"),
    all(14, Case::HangsAfter, "the row is written and sent, osascript hangs until killed"),
    all(15, Case::Slow, "osascript takes 2 s, the row is there after 1 s, sent"),
    all(16, Case::NotAuthorised, "-1743, nothing is done"),
    all(17, Case::TimeoutWritten, "-1712 after 1 s, the row is written 0.2 s later and sent"),
    all(18, Case::TimeoutNothing, "-1712 after 1 s, nothing is ever written"),
    all(19, Case::NotRunning, "-600, nothing is done"),
    all(20, Case::NoSuchObject, "-1728 before anything is sent"),
    Entry {
        first: 21,
        last: 21,
        imessage: Case::Downgraded,
        rcs: Case::Downgraded,
        sms: Case::Sent,
        note: "row, then Messages itself sends it as SMS: service=SMS, was_downgraded=1, is_sent=1",
    },
    all(22, Case::Ghost, "exit 0 and a ghost row: empty text, SMS handle, in no chat (imsg#90)"),
    all(23, Case::LateRow, "exit 0, the row is written 3 s later, sent"),
    all(24, Case::Rewritten, "as 00, but straight quotes, dots and dashes become typographic"),
    all(25, Case::NeverSent, "row with is_finished, is_sent, error all 0, for ever"),
    all(26, Case::LateSent, "row, is_sent=1 only 2 s later, delivered"),
    Entry {
        first: 27,
        last: 27,
        imessage: Case::NotRegistered,
        rcs: Case::Delivered,
        sms: Case::FailsAtOnce,
        note: "RCS only: error=22 on iMessage, error=1 on SMS",
    },
    all(30, Case::DropsWal, "the WAL is checkpointed, deleted and made anew, then as 00"),
    Entry {
        first: 31,
        last: 31,
        imessage: Case::Unloaded,
        rcs: Case::Unloaded,
        sms: Case::Sent,
        note: "`chat id` gives -1728 though chat.db has the chat; by participant as 00",
    },
    all(32, Case::ConnectionLost, "-609 after 0.1 s, nothing is ever written"),
    all(33, Case::QuitsHalfway, "-609 when the row is written; it is sent"),
    all(34, Case::Restarted, "1002 when the row is written; it is sent"),
    all(35, Case::NoAccount, "-2753, nothing is done"),
    all(36, Case::BadValue, "-1700, nothing is done"),
    all(
        37,
        Case::OtherDevice,
        "another device of the account sends the same words first, then as 00",
    ),
];

/// Every other number and every e-mail address: a user of iMessage, as 00.
const OTHERS: Entry = Entry {
    first: 0,
    last: 0,
    imessage: Case::Delivered,
    rcs: Case::Delivered,
    sms: Case::Sent,
    note: "every other number and address: as 00",
};

/// The last two digits, if the number is of the form `+1 NPA 555 01xx`.
fn test_digits(address: &str) -> Option<u8> {
    let national = address.strip_prefix("+1")?;
    if national.len() != 10 || !national.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    national.get(3..)?.strip_prefix("55501")?.parse().ok()
}

/// What becomes of a text to one address over one service.
pub fn plan(address: &str, service: Service) -> Plan {
    let entry = match test_digits(address) {
        Some(digits) => TABLE.iter().find(|e| (e.first..=e.last).contains(&digits)),
        None => None,
    }
    .unwrap_or(&OTHERS);
    let is_email = address.contains('@');
    let case = if is_email && service != Service::Imessage {
        // A phone's text message cannot go to an e-mail address; Messages finds no participant.
        Case::NoSuchObject
    } else if !is_email && !address.starts_with('+') {
        // Without '+' the script succeeds and the message fails (mac_messages_mcp PR#58, #51).
        Case::NotRegistered
    } else {
        match service {
            Service::Imessage => entry.imessage,
            Service::Rcs => entry.rcs,
            Service::Sms => entry.sms,
        }
    };
    steps(case, service)
}

/// What becomes of a text into an existing group: sent, and no receipt, because Apple itself waits
/// for receipts of direct conversations only (chat.db's index of undelivered messages says so).
pub fn group_plan() -> Plan {
    steps(Case::Sent, Service::Imessage)
}

/// Whether Messages does not know a chat by its id although chat.db has it (imsg#244, cpo#1012).
pub fn is_unloaded(address: &str) -> bool {
    test_digits(address) == Some(31)
}

/// What becomes of a file that Messages may not read: success, and a row that fails (imsg#110).
pub fn unreadable_plan() -> Plan {
    steps(Case::Unreadable, Service::Imessage)
}

/// What becomes of a text into a group that is named like a direct chat (`any;-;chat…`): success
/// and a ghost row (imsg#90).
pub fn ghost_plan() -> Plan {
    steps(Case::Ghost, Service::Imessage)
}

fn steps(case: Case, service: Service) -> Plan {
    let at = |at_ms, action| Step { at_ms, action };
    let answer = |at_ms, answer| Step { at_ms, action: Action::Answer(answer) };
    let refused = |number| vec![answer(5, Answer::Error(number)), at(5, Action::Free)];
    // A row that is there at `row_ms` and sent at `sent_ms`, with the receipts of its service.
    let sending = |row_ms: u64, sent_ms: u64, read: bool| {
        let join_ms = row_ms.saturating_add(JOIN_MS - ROW_MS);
        let delivered_ms = sent_ms.saturating_add(DELIVERED_AFTER_MS);
        let mut steps = vec![
            at(row_ms, Action::Row(FirstLook::Sending)),
            at(join_ms, Action::Join),
            at(sent_ms.max(join_ms), Action::Sent),
        ];
        if service != Service::Sms {
            steps.push(at(delivered_ms, Action::Delivered));
            if read {
                steps.push(at(delivered_ms.saturating_add(READ_AFTER_MS), Action::Read));
            }
        }
        steps
    };
    let usual = [answer(ANSWER_MS, Answer::Done), at(JOIN_MS, Action::Free)];
    let failed = |error| {
        vec![
            at(ROW_MS, Action::Row(FirstLook::Failed(error))),
            at(JOIN_MS, Action::Join),
            usual[0],
            usual[1],
        ]
    };
    let with = |mut more: Vec<Step>, some: &[Step]| {
        more.extend_from_slice(some);
        more
    };
    let mut steps = match case {
        Case::Delivered | Case::Rewritten | Case::Unloaded => {
            with(sending(ROW_MS, SENT_MS, false), &usual)
        }
        Case::Read => with(sending(ROW_MS, SENT_MS, true), &usual),
        Case::Sent => vec![
            at(ROW_MS, Action::Row(FirstLook::Sending)),
            at(JOIN_MS, Action::Join),
            at(SENT_MS, Action::Sent),
            usual[0],
            usual[1],
        ],
        Case::NotRegistered => failed(22),
        Case::FailsAtOnce => failed(1),
        Case::Unreadable => failed(25),
        Case::NetworkError => vec![
            at(ROW_MS, Action::Row(FirstLook::Sending)),
            at(JOIN_MS, Action::Join),
            at(ROW_MS + 1_000, Action::Failed(3)),
            usual[0],
            usual[1],
        ],
        // No `Free`: Messages takes the next event only when the hanging osascript is gone.
        Case::HangsBefore => vec![answer(ANSWER_MS, Answer::Never)],
        Case::HangsAfter => {
            with(sending(ROW_MS, SENT_MS, false), &[answer(ANSWER_MS, Answer::Never)])
        }
        Case::Slow => with(
            sending(1_000, 1_100, false),
            &[answer(2_000, Answer::Done), at(2_000, Action::Free)],
        ),
        Case::NotAuthorised => refused(-1743),
        Case::TimeoutWritten => with(
            sending(1_200, 1_400, false),
            &[answer(1_000, Answer::Error(-1712)), at(1_210, Action::Free)],
        ),
        Case::TimeoutNothing => {
            vec![answer(1_000, Answer::Error(-1712)), at(1_000, Action::Free)]
        }
        Case::NotRunning => refused(-600),
        Case::NoSuchObject => refused(-1728),
        Case::NoAccount => refused(-2753),
        Case::BadValue => refused(-1700),
        Case::ConnectionLost => {
            vec![answer(ANSWER_MS, Answer::Error(-609)), at(ANSWER_MS, Action::Free)]
        }
        Case::QuitsHalfway | Case::Restarted => {
            let number = if case == Case::Restarted { 1002 } else { -609 };
            let ends = [answer(JOIN_MS, Answer::Error(number)), at(JOIN_MS, Action::Free)];
            with(sending(ROW_MS, SENT_MS, false), &ends)
        }
        Case::OtherDevice => with(
            with(vec![at(ROW_MS - 20, Action::OtherDevice)], &sending(ROW_MS, SENT_MS, false)),
            &usual,
        ),
        Case::Downgraded => vec![
            at(ROW_MS, Action::Row(FirstLook::Sending)),
            at(JOIN_MS, Action::Join),
            at(ROW_MS + 600, Action::Downgraded),
            usual[0],
            usual[1],
        ],
        Case::Ghost => with(vec![at(ROW_MS, Action::Row(FirstLook::Ghost))], &usual),
        // Free at once: the late row must not delay what is sent after it.
        Case::LateRow => with(
            sending(ANSWER_MS + 3_000, ANSWER_MS + 3_100, false),
            &[answer(ANSWER_MS, Answer::Done), at(ANSWER_MS, Action::Free)],
        ),
        Case::NeverSent => with(
            vec![at(ROW_MS, Action::Row(FirstLook::Sending)), at(JOIN_MS, Action::Join)],
            &usual,
        ),
        Case::LateSent => with(sending(ROW_MS, ROW_MS + 2_000, false), &usual),
        Case::DropsWal => with(
            with(vec![at(ROW_MS - 1, Action::DropWal)], &sending(ROW_MS, SENT_MS, false)),
            &usual,
        ),
    };
    // Stable, so that of two steps at one moment the one named first comes first.
    steps.sort_by_key(|step| step.at_ms);
    Plan { outcome: case.name(), rewrites: case == Case::Rewritten, steps }
}

/// What Messages makes of a text when "smart" punctuation is on.
pub fn rewritten(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut before = ' ';
    for c in text.replace("...", "…").replace("--", "—").chars() {
        let opens = before.is_whitespace() || matches!(before, '(' | '[' | '“' | '‘' | '—');
        let written = match c {
            '"' if opens => '“',
            '"' => '”',
            '\'' if opens => '‘',
            '\'' => '’',
            other => other,
        };
        out.push(written);
        before = written;
    }
    out
}

/// The table as Markdown: what `switchboard-sandbox outcomes` prints and the README shows.
pub fn table() -> String {
    let mut out = String::from(
        "| +1 NPA 555 | iMessage | RCS | SMS | what one sees |\n|---|---|---|---|---|\n",
    );
    for entry in TABLE.iter().chain([&OTHERS]) {
        let numbers = if entry.note == OTHERS.note {
            String::from("others")
        } else if entry.first == entry.last {
            format!("01{:02}", entry.first)
        } else {
            format!("01{:02}–01{:02}", entry.first, entry.last)
        };
        let (imessage, rcs, sms) = (entry.imessage.name(), entry.rcs.name(), entry.sms.name());
        // Writing to a String cannot fail.
        writeln!(out, "| {numbers} | {imessage} | {rcs} | {sms} | {} |", entry.note)
            .expect("a String takes everything");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn actions(address: &str, service: Service) -> Vec<Action> {
        plan(address, service).steps.into_iter().map(|step| step.action).collect()
    }

    #[test]
    fn the_last_two_digits_choose_whatever_the_area_code() {
        for npa in ["202", "415", "907"] {
            assert_eq!(
                plan(&format!("+1{npa}5550110"), Service::Imessage).outcome,
                "not_registered"
            );
        }
        for other in
            ["+12025560110", "+12025550210", "+4915155501101", "+1202555011", "+15550100001"]
        {
            assert_eq!(plan(other, Service::Imessage).outcome, "delivered", "{other}");
        }
    }

    #[test]
    fn an_ordinary_text_is_answered_then_written_then_joined_then_sent_then_delivered() {
        assert_eq!(
            actions("+12025550100", Service::Imessage),
            [
                Action::Answer(Answer::Done),
                Action::Row(FirstLook::Sending),
                Action::Join,
                Action::Free,
                Action::Sent,
                Action::Delivered
            ]
        );
    }

    #[test]
    fn sms_never_has_a_receipt() {
        for digits in 0..=99 {
            let steps = actions(&format!("+120255501{digits:02}"), Service::Sms);
            assert!(!steps.contains(&Action::Delivered), "{digits}");
            assert!(!steps.contains(&Action::Read), "{digits}");
        }
    }

    #[test]
    fn what_is_refused_writes_nothing_and_is_not_taken() {
        for (digits, number) in [(16, -1743), (19, -600), (20, -1728), (35, -2753), (36, -1700)] {
            for service in [Service::Imessage, Service::Rcs, Service::Sms] {
                let plan = plan(&format!("+120255501{digits:02}"), service);
                assert!(!plan.is_taken());
                assert!(!plan.reaches());
                let actions: Vec<_> = plan.steps.iter().map(|s| s.action).collect();
                assert_eq!(actions, [Action::Answer(Answer::Error(number)), Action::Free]);
            }
        }
    }

    #[test]
    fn every_plan_is_in_order_answers_once_and_joins_every_row_but_a_ghost() {
        let mut addresses: Vec<String> = (0..=99).map(|d| format!("+130355501{d:02}")).collect();
        addresses.extend(["+491701234567", "a@example.test", "4915112345"].map(String::from));
        for address in addresses {
            for service in [Service::Imessage, Service::Rcs, Service::Sms] {
                let plan = plan(&address, service);
                let why = format!("{address} {}", service.as_str());
                assert!(plan.steps.is_sorted_by_key(|s| s.at_ms), "{why}");
                let count =
                    |is: fn(&Action) -> bool| plan.steps.iter().filter(|s| is(&s.action)).count();
                assert_eq!(count(|a| matches!(a, Action::Answer(_))), 1, "{why}");
                let never = count(|a| matches!(a, Action::Answer(Answer::Never)));
                assert_eq!(count(|a| matches!(a, Action::Free)), 1 - never, "{why}");
                let rows = count(|a| matches!(a, Action::Row(_)));
                let ghosts = count(|a| matches!(a, Action::Row(FirstLook::Ghost)));
                assert_eq!(count(|a| matches!(a, Action::Join)), rows - ghosts, "{why}");
                assert!(rows <= 1, "{why}");
            }
        }
    }

    #[test]
    fn a_number_without_plus_fails_as_not_registered() {
        assert_eq!(plan("12025550100", Service::Imessage).outcome, "not_registered");
        assert_eq!(plan("a@example.test", Service::Imessage).outcome, "delivered");
        assert_eq!(plan("a@example.test", Service::Sms).outcome, "no_such_object");
    }

    #[test]
    fn smart_punctuation_opens_and_closes() {
        assert_eq!(
            rewritten(r#"He said "it's" (or 'that')... -- no"#),
            "He said “it’s” (or ‘that’)… — no"
        );
        assert_eq!(rewritten("plain"), "plain");
    }

    #[test]
    fn the_readme_shows_the_table_that_the_program_prints() {
        assert!(include_str!("../README.md").contains(&table()), "{}", table());
    }
}
