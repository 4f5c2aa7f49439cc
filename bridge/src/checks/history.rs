//! chat.db: may it be read, is it Messages', is it alive, and what does it tell of the account.

use std::path::Path;

use protocol::{Channel, Reason, UnixMs};

use super::{Check, span};
use crate::chatdb::{Cause, Census, NotReady, Pulse};
use crate::exit::Exit;

/// A phone that people write to hears something in so many days. One that only sends may not, which
/// is why silence is never an error.
const QUIET_MS: i64 = 3 * 24 * 60 * 60 * 1000;
/// Text Message Forwarding that has worked within so many days is taken to work still.
const FORWARDED_MS: i64 = 30 * 24 * 60 * 60 * 1000;
/// So many failures with error 22 in an hour are more than a few wrong numbers...
const BURST_MIN: u64 = 5;
/// ...when they are at least one in so many sends.
const BURST_ONE_IN: u64 = 2;
/// Most names of new columns and tables that are shown; the count says the rest.
const NAMES_SHOWN_MAX: usize = 5;

/// `EPERM`: what macOS answers without Full Disk Access.
const EPERM: i32 = 1;
/// `ENOENT`.
const ENOENT: i32 = 2;
/// `EACCES`: the file's own mode or owner.
const EACCES: i32 = 13;
/// `ENOTDIR`.
const ENOTDIR: i32 = 20;

/// How an attempt to open the file ended: well, or with the system's number and words.
pub(crate) type Opened = Result<(), (Option<i32>, String)>;

/// Whether the file may be read at all. macOS answers EPERM where Full Disk Access is missing, and
/// EACCES where only the file's mode or owner forbids it (facts on macOS, section 2).
pub(crate) fn full_disk_access(path: &Path, opened: &Opened) -> Check {
    let check = "full_disk_access";
    let path = path.display();
    let denied =
        |found: String| Check::error(check, found, Reason::DatabasePermission, Exit::NoPermission);
    match opened {
        Ok(()) => Check::ok(check, format!("{path} may be opened")),
        Err((Some(EPERM), why)) => denied(format!("{path}: macOS refuses it ({why})")),
        Err((Some(EACCES), why)) => {
            denied(format!("{path}: its mode or its owner forbids it ({why})")).with_remedy(
                "Run the bridge as the user whose Messages this is, and correct the file's mode.",
            )
        }
        Err((Some(ENOENT | ENOTDIR), _)) => Check::error(
            check,
            format!("{path} does not exist"),
            Reason::DatabaseMissing,
            Exit::Unhealthy,
        )
        .with_remedy(
            "Sign in to Messages in this user's session, or correct `chat_db` in the configuration.",
        ),
        Err((_, why)) => Check::error(
            check,
            format!("{path}: {why}"),
            Reason::DatabaseLocked,
            Exit::TryAgain,
        )
        .with_remedy("Look at the disk: its health, its free space, whether it is mounted."),
    }
}

/// Whether SQLite can read it as Messages' database. SQLite says 14 or 23 where Full Disk Access is
/// missing for what lies beside the file.
pub(crate) fn database(path: &Path, state: Result<&Pulse, &NotReady>, now: UnixMs) -> Check {
    let check = "chat_db";
    match state {
        Ok(Pulse { rows: 0, .. }) => Check::warning(
            check,
            format!("{} is readable and has no messages", path.display()),
            "Send one message by hand, to see that this account works.",
        ),
        Ok(pulse) => Check::ok(
            check,
            match pulse.newest {
                Some(newest) => format!("readable, its newest message is {} old", age(now, newest)),
                None => "readable; no message has a date that could be right".to_owned(),
            },
        ),
        Err(why) => {
            let exit = match why.cause {
                Cause::Denied => Exit::NoPermission,
                Cause::Locked | Cause::Failing => Exit::TryAgain,
                Cause::Missing | Cause::Empty | Cause::Damaged => Exit::Unhealthy,
                Cause::Foreign => Exit::BadConfig,
            };
            let found = format!("{} {} ({})", path.display(), why.cause, why.detail);
            let error = Check::error(check, found, why.reason(), exit);
            if error.remedy.is_empty() {
                error.with_remedy(sentence(why.cause.remedy()))
            } else {
                error
            }
        }
    }
}

/// What is known of the schema. New columns are no error: what is not known is not read.
pub(crate) fn schema(census: &Census) -> Check {
    let found = match census.looks_like {
        Some(version) => format!("looks like macOS {version}"),
        None => "looks like a macOS before 12".to_owned(),
    };
    let count = census.unknown_columns.len().saturating_add(census.unknown_tables.len());
    if count == 0 {
        return Check::ok("schema", found);
    }
    let names: Vec<&str> = census
        .unknown_columns
        .iter()
        .chain(&census.unknown_tables)
        .take(NAMES_SHOWN_MAX)
        .map(String::as_str)
        .collect();
    let more = if count > names.len() { ", …" } else { "" };
    Check::warning(
        "schema",
        format!(
            "{found}, with {count} columns and tables that are new to this program: {}{more}",
            names.join(", ")
        ),
        "Nothing is lost by it; look for a newer version of this program.",
    )
}

/// How long ago something came in. No check can tell a phone that nobody writes to from one that
/// hears nothing any more.
pub(crate) fn inbound(pulse: &Pulse, now: UnixMs) -> Check {
    let check = "inbound";
    let remedy = "If people should have written, write to this phone yourself. If that does not \
                  arrive, bring Messages to the front, then quit and open it again.";
    match pulse.newest_inbound {
        None => Check::warning(check, "nothing has ever come in that could be seen", remedy),
        Some(at) if now.since(at) > QUIET_MS => {
            Check::warning(check, format!("nothing has come in for {}", age(now, at)), remedy)
        }
        Some(at) => Check::ok(check, format!("the last message came in {} ago", age(now, at))),
    }
}

/// Whether Messages refuses more than wrong numbers: what a limit or a block of the account looks
/// like from here.
pub(crate) fn refusals(pulse: &Pulse) -> Check {
    let (failed, own) = (pulse.not_registered_last_hour, pulse.own_last_hour);
    let found = format!("{failed} of {own} own messages of the last hour failed with error 22");
    if failed >= BURST_MIN && failed.saturating_mul(BURST_ONE_IN) >= own {
        Check::warning(
            "error_22",
            found,
            "Stop sending to new people from this phone, and send one message by hand to somebody who \
             has iMessage. If that fails too, Apple limits or blocks this account.",
        )
    } else {
        Check::ok("error_22", found)
    }
}

/// Whether texts by SMS or RCS reach this Mac: only history can tell, no setting of the Mac does.
pub(crate) fn forwarding(pulse: &Pulse, channels: &[Channel], account: bool, now: UnixMs) -> Check {
    let check = "text_forwarding";
    let newest = pulse.newest_sms.max(pulse.newest_rcs);
    let seen = newest.filter(|at| now.since(*at) <= FORWARDED_MS);
    match (seen, account) {
        (Some(at), _) => {
            Check::ok(check, format!("the last SMS or RCS message is {} old", age(now, at)))
        }
        (None, true) => Check::ok(check, "an account for SMS is connected; no message yet"),
        (None, false) if !channels.iter().any(|channel| *channel != Channel::Imessage) => {
            Check::skipped(check, "this phone uses neither SMS nor RCS")
        }
        (None, false) => Check::warning(
            check,
            match newest {
                Some(at) => format!("no SMS or RCS message for {}", age(now, at)),
                None => "no SMS or RCS message has ever been seen".to_owned(),
            },
            "On the iPhone, in Settings → Messages → Text Message Forwarding, allow this Mac; or take \
             \"sms\" and \"rcs\" out of `default_channels`.",
        ),
    }
}

fn age(now: UnixMs, at: UnixMs) -> String {
    span(now.since(at))
}

/// A remedy of chat.db's, which is a part of a sentence elsewhere.
fn sentence(words: &str) -> String {
    let mut chars = words.chars();
    let first = chars.next().map(|first| first.to_uppercase().to_string()).unwrap_or_default();
    format!("{first}{}.", chars.as_str())
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::*;

    const NOW: UnixMs = UnixMs(1_795_000_000_000);
    const DAY_MS: i64 = 24 * 60 * 60 * 1000;

    #[test]
    fn a_missing_permission_a_wrong_owner_and_a_missing_file_are_three_things() {
        let path = Path::new("/Users/x/Library/Messages/chat.db");
        let look = |number| full_disk_access(path, &Err((number, "why".to_owned())));
        for (number, reason, exit) in [
            (Some(EPERM), Reason::DatabasePermission, Exit::NoPermission),
            (Some(EACCES), Reason::DatabasePermission, Exit::NoPermission),
            (Some(ENOENT), Reason::DatabaseMissing, Exit::Unhealthy),
            (Some(ENOTDIR), Reason::DatabaseMissing, Exit::Unhealthy),
            (Some(5), Reason::DatabaseLocked, Exit::TryAgain),
            (None, Reason::DatabaseLocked, Exit::TryAgain),
        ] {
            let check = look(number);
            assert_eq!((check.reason, check.exit), (Some(reason), Some(exit)), "{number:?}");
            assert!(check.remedy.ends_with('.'), "{check:?}");
        }
        assert!(look(Some(EPERM)).remedy.contains("Full Disk Access"));
        assert!(!look(Some(EACCES)).remedy.contains("Full Disk Access"));
        assert_eq!(full_disk_access(path, &Ok(())).outcome, Outcome::Ok);
    }

    #[test]
    fn every_cause_of_an_unreadable_database_has_its_exit_code() {
        let path = Path::new("/x/chat.db");
        for (cause, exit) in [
            (Cause::Missing, Exit::Unhealthy),
            (Cause::Empty, Exit::Unhealthy),
            (Cause::Denied, Exit::NoPermission),
            (Cause::Locked, Exit::TryAgain),
            (Cause::Foreign, Exit::BadConfig),
            (Cause::Damaged, Exit::Unhealthy),
            (Cause::Failing, Exit::TryAgain),
        ] {
            let check = database(path, Err(&NotReady::new(path, cause, "why")), NOW);
            assert_eq!(check.exit, Some(exit), "{cause:?}");
            assert!(check.remedy.ends_with('.'), "{check:?}");
        }
        let empty = database(path, Ok(&Pulse::default()), NOW);
        assert_eq!(empty.outcome, Outcome::Warning);
        let alive = Pulse { rows: 1, newest: Some(NOW.plus_ms(-60_000)), ..Pulse::default() };
        assert_eq!(
            database(path, Ok(&alive), NOW).found,
            "readable, its newest message is 1 minute old"
        );
    }

    #[test]
    fn a_new_schema_is_a_warning_that_counts_and_names() {
        let known = Census { looks_like: Some("15"), ..Census::default() };
        assert_eq!(schema(&known).outcome, Outcome::Ok);
        let columns = (0..7).map(|at| format!("message.c{at}")).collect();
        let check = schema(&Census { unknown_columns: columns, ..known });
        assert_eq!(check.outcome, Outcome::Warning);
        assert!(check.found.contains("with 7 columns"), "{}", check.found);
        assert!(check.found.ends_with("message.c4, …"), "{}", check.found);
    }

    #[test]
    fn silence_is_a_warning_after_three_days() {
        let heard =
            |age_ms: i64| Pulse { newest_inbound: Some(NOW.plus_ms(-age_ms)), ..Pulse::default() };
        assert_eq!(inbound(&heard(QUIET_MS), NOW).outcome, Outcome::Ok);
        assert_eq!(inbound(&heard(QUIET_MS + 1), NOW).outcome, Outcome::Warning);
        assert_eq!(inbound(&Pulse::default(), NOW).outcome, Outcome::Warning);
    }

    #[test]
    fn a_burst_is_many_and_a_large_part() {
        for (failed, own, expected) in [
            (0, 0, Outcome::Ok),
            (4, 4, Outcome::Ok),
            (5, 5, Outcome::Warning),
            (5, 10, Outcome::Warning),
            (5, 11, Outcome::Ok),
            (100, 201, Outcome::Ok),
        ] {
            let pulse =
                Pulse { own_last_hour: own, not_registered_last_hour: failed, ..Pulse::default() };
            assert_eq!(refusals(&pulse).outcome, expected, "{failed} of {own}");
        }
    }

    #[test]
    fn forwarding_is_seen_in_history_or_in_an_account() {
        let imessage: &[Channel] = &[Channel::Imessage];
        let both: &[Channel] = &[Channel::Imessage, Channel::Sms];
        let never = Pulse::default();
        let sms = |age_ms: i64| Pulse { newest_sms: Some(NOW.plus_ms(-age_ms)), ..never };
        let rcs = Pulse { newest_rcs: Some(NOW.plus_ms(-DAY_MS)), ..never };
        for (pulse, channels, account, expected) in [
            (sms(FORWARDED_MS), both, false, Outcome::Ok),
            (sms(FORWARDED_MS + 1), both, false, Outcome::Warning),
            (rcs, imessage, false, Outcome::Ok),
            (never, both, true, Outcome::Ok),
            (never, both, false, Outcome::Warning),
            (never, imessage, false, Outcome::Skipped),
        ] {
            let check = forwarding(&pulse, channels, account, NOW);
            assert_eq!(check.outcome, expected, "{pulse:?} {channels:?} {account}");
        }
    }
}
