//! The Mac: its clocks, its disks, the folder of the bridge, the program that runs AppleScript.

use std::path::Path;

use protocol::{Reason, UnixMs};

use super::Check;
use crate::chatdb::{LATEST_MS, Pulse};
use crate::exit::Exit;

/// 2026-01-01. This program is younger, so a clock that shows less is wrong: a Mac whose battery
/// died begins years earlier.
const EARLIEST_MS: i64 = 1_767_225_600_000;
/// So many people whose dates are ahead of ours, together with a row of our own, are no accident.
/// One alone may have a wrong clock, and must not be able to stop this phone with it.
const SENDERS_AHEAD: u64 = 2;
/// A disk warns at so many times the space at which the bridge stops.
const WARN_TIMES: u64 = 4;
/// What is low is enough again only with a quarter more: a log that is rotated must not make the
/// bridge ready and not ready in turn.
const RECOVERED_QUARTERS: u64 = 5;
const MIB: u64 = 1024 * 1024;

/// What is known of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Disk {
    Measured {
        /// Free to us, in bytes.
        free: u64,
    },
    /// The system did not say; in its words.
    Unknown(String),
}

/// Whether there is space for what is written there. `was_low` is how the last look ended.
pub(crate) fn disk(
    check: &'static str,
    path: &Path,
    disk: &Disk,
    low_mib: u64,
    was_low: bool,
) -> Check {
    let free = match disk {
        Disk::Measured { free } => free / MIB,
        Disk::Unknown(why) => {
            return Check::warning(
                check,
                format!("the space at {} cannot be measured: {why}", path.display()),
                "See whether the folder exists and its disk is mounted.",
            );
        }
    };
    let found = format!("{free} MiB free at {}", path.display());
    let bound =
        if was_low { low_mib.saturating_mul(RECOVERED_QUARTERS) / WARN_TIMES } else { low_mib };
    if free < bound {
        Check::error(check, format!("{found}, less than {bound}"), Reason::DiskLow, Exit::TryAgain)
    } else if free < low_mib.saturating_mul(WARN_TIMES) {
        Check::warning(
            check,
            found,
            format!("Free some space: below {low_mib} MiB nothing is sent any more."),
        )
    } else {
        Check::ok(check, found)
    }
}

/// Both clocks, the continuous one read twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Clocks {
    pub(crate) wall: UnixMs,
    pub(crate) continuous_ms: (i64, i64),
}

/// Whether the clocks can be right. A clock that is behind makes expired messages look fresh, and
/// night look like day; leases hang on the continuous one.
pub(crate) fn clock(clocks: Clocks, pulse: Option<&Pulse>) -> Check {
    let wrong = |found: String| Check::error("clock", found, Reason::ClockWrong, Exit::TryAgain);
    let (first, second) = clocks.continuous_ms;
    if first <= 0 || first == i64::MAX || second < first {
        return Check::error(
            "clock",
            "the clock that runs on in sleep cannot be read or runs backwards",
            Reason::ClockWrong,
            Exit::TryAgain,
        )
        .with_remedy("Restart this Mac; leases cannot be trusted without this clock.");
    }
    let wall = clocks.wall;
    if !(EARLIEST_MS..LATEST_MS).contains(&wall.0) {
        return wrong(format!("{wall} cannot be the time"));
    }
    let Some(pulse) = pulse else {
        return Check::ok("clock", format!("{wall}; not compared with chat.db"));
    };
    match (pulse.own_ahead, pulse.senders_ahead) {
        (0, 0) => Check::ok("clock", format!("{wall}, and no message is ahead of it")),
        (own, senders) if own > 0 && senders >= SENDERS_AHEAD => wrong(format!(
            "{wall} is behind: {own} own messages and those of {senders} people are dated later"
        )),
        (own, senders) => Check::warning(
            "clock",
            format!("{wall}; {own} own messages and those of {senders} people are dated later"),
            "See whether this Mac sets its time automatically. If it does, the others' clocks are \
             wrong, or this one was for a while, and nothing needs to be done.",
        ),
    }
}

/// What is known of the folder of the bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StateDir {
    /// It is ours to write in, with this mode.
    Usable {
        mode: u32,
    },
    /// It is in use by the bridge of this phone, which is as it should be.
    InUse {
        mode: u32,
    },
    Unusable(String),
}

/// Whether the bridge can keep its files there, and keep them to itself: the journal holds texts.
pub(crate) fn state_dir(path: &Path, state: &StateDir) -> Check {
    let (mode, found) = match state {
        StateDir::Usable { mode } => (mode, format!("{} is writable", path.display())),
        StateDir::InUse { mode } => {
            (mode, format!("{} is in use: the bridge of this phone runs", path.display()))
        }
        StateDir::Unusable(why) => {
            return Check::fault(
                "state_dir",
                why,
                "Make the folder writable for this user, or choose another `state_dir`.",
                Exit::BadConfig,
            );
        }
    };
    // The last nine bits are who may do what; group and others must not.
    let open_to_others = mode & 0o077;
    if open_to_others == 0 {
        Check::ok("state_dir", found)
    } else {
        Check::warning(
            "state_dir",
            format!("{found}, but others may look into it (mode {:03o})", mode & 0o777),
            format!("Run `chmod 700 {}`: the journal holds texts of messages.", path.display()),
        )
    }
}

/// What is known of the program that runs AppleScript.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Program {
    Executable,
    Missing,
    NotExecutable,
}

/// Whether osascript is there and may be run.
pub(crate) fn osascript(path: &Path, program: Program) -> Check {
    let wrong = |what: &str| {
        Check::error(
            "osascript",
            format!("{} {what}", path.display()),
            Reason::ScriptFault,
            Exit::BadConfig,
        )
        .with_remedy("Correct `osascript` in the configuration; on a Mac it is /usr/bin/osascript.")
    };
    match program {
        Program::Executable => Check::ok("osascript", format!("{} may be run", path.display())),
        Program::Missing => wrong("does not exist"),
        Program::NotExecutable => wrong("is not a program that may be run"),
    }
}

/// Whether an osascript of an earlier run of the bridge is still working; none when that cannot be
/// told, because a bridge runs and its own osascript looks the same.
pub(crate) fn orphan(runs: Option<bool>) -> Check {
    match runs {
        None => Check::skipped("orphan", "the bridge of this phone runs and looks itself"),
        Some(false) => Check::ok("orphan", "no osascript of an earlier run is left"),
        Some(true) => Check::error(
            "orphan",
            "an osascript of an earlier run is still working",
            Reason::MessagesTimeout,
            Exit::TryAgain,
        )
        .with_remedy("Wait for it: the bridge ends it by itself. Until then nothing is sent."),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::*;

    #[test]
    fn a_disk_is_judged_by_what_is_free() {
        let path = Path::new("/x");
        let look = |free_mib: u64, was_low| {
            let facts = Disk::Measured { free: free_mib * MIB };
            disk("state_disk", path, &facts, 100, was_low).outcome
        };
        for (free, was_low, expected) in [
            (0, false, Outcome::Error),
            (99, false, Outcome::Error),
            (100, false, Outcome::Warning),
            (399, false, Outcome::Warning),
            (400, false, Outcome::Ok),
            // Low stays low until there is a quarter more.
            (100, true, Outcome::Error),
            (124, true, Outcome::Error),
            (125, true, Outcome::Warning),
            (400, true, Outcome::Ok),
        ] {
            assert_eq!(look(free, was_low), expected, "{free} MiB, was low: {was_low}");
        }
        let unknown = disk("state_disk", path, &Disk::Unknown("EIO".to_owned()), 100, false);
        assert_eq!(unknown.outcome, Outcome::Warning);
        assert_eq!(unknown.not_ready(), None);
        let full = disk("state_disk", path, &Disk::Measured { free: 0 }, 100, false);
        assert_eq!((full.reason, full.exit), (Some(Reason::DiskLow), Some(Exit::TryAgain)));
        // No limit overflows.
        let all = disk("state_disk", path, &Disk::Measured { free: u64::MAX }, u64::MAX, true);
        assert_eq!(all.outcome, Outcome::Error);
    }

    #[test]
    fn a_clock_is_wrong_only_when_it_must_be() {
        let good = Clocks { wall: UnixMs(1_795_000_000_000), continuous_ms: (5, 5) };
        let at = |ms| Clocks { wall: UnixMs(ms), ..good };
        let ticks = |first, second| Clocks { continuous_ms: (first, second), ..good };
        let ahead =
            |own_ahead, senders_ahead| Pulse { own_ahead, senders_ahead, ..Pulse::default() };
        for (clocks, pulse, expected) in [
            (good, None, Outcome::Ok),
            (good, Some(ahead(0, 0)), Outcome::Ok),
            // Anybody can date his own messages; that stops nobody's phone.
            (good, Some(ahead(0, 50)), Outcome::Warning),
            // Left over from a day on which this Mac was ahead.
            (good, Some(ahead(50, 0)), Outcome::Warning),
            (good, Some(ahead(1, 1)), Outcome::Warning),
            (good, Some(ahead(1, 2)), Outcome::Error),
            (at(0), None, Outcome::Error),
            (at(EARLIEST_MS - 1), None, Outcome::Error),
            (at(EARLIEST_MS), None, Outcome::Ok),
            (at(LATEST_MS - 1), None, Outcome::Ok),
            (at(LATEST_MS), None, Outcome::Error),
            (ticks(0, 0), None, Outcome::Error),
            (ticks(9, 8), None, Outcome::Error),
            (ticks(i64::MAX, i64::MAX), None, Outcome::Error),
        ] {
            let check = clock(clocks, pulse.as_ref());
            assert_eq!(check.outcome, expected, "{clocks:?} {pulse:?}");
            assert_eq!(check.not_ready().is_some(), expected == Outcome::Error, "{check:?}");
        }
    }

    #[test]
    fn a_state_dir_is_usable_and_private() {
        let path = Path::new("/x");
        for (state, expected) in [
            (StateDir::Usable { mode: 0o40_700 }, Outcome::Ok),
            (StateDir::InUse { mode: 0o40_700 }, Outcome::Ok),
            (StateDir::Usable { mode: 0o40_755 }, Outcome::Warning),
            (StateDir::InUse { mode: 0o40_710 }, Outcome::Warning),
            (StateDir::Unusable("read-only".to_owned()), Outcome::Error),
        ] {
            assert_eq!(state_dir(path, &state).outcome, expected, "{state:?}");
        }
    }

    #[test]
    fn a_program_is_there_and_may_be_run() {
        let look = |program| osascript(Path::new("/x"), program);
        assert_eq!(look(Program::Executable).outcome, Outcome::Ok);
        for program in [Program::Missing, Program::NotExecutable] {
            assert_eq!(look(program).exit, Some(Exit::BadConfig), "{program:?}");
        }
    }

    #[test]
    fn an_orphan_is_temporary() {
        assert_eq!(orphan(Some(true)).exit, Some(Exit::TryAgain));
        assert_eq!(orphan(Some(false)).outcome, Outcome::Ok);
        assert_eq!(orphan(None).outcome, Outcome::Skipped);
    }
}
