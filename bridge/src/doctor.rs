//! Preflight: everything that must be true on this Mac for one phone, each with its remedy.
//!
//! This module gathers facts, by the very roads that the bridge uses: SQLite on chat.db, osascript
//! with a script. A check that asks for a permission in another way would prove something else.
//! What the facts mean is decided in [`crate::checks`], which a running bridge uses as well.
//!
//! Nothing is sent, and Messages is not started by the question. A question of macOS may appear on
//! the screen: that is what `doctor` is run for. While the bridge of the phone runs, osascript is
//! left to it alone, and its last word about the account is shown.

mod report;

use std::path::Path;
use std::time::Duration;

use protocol::Channel;
use tokio_util::sync::CancellationToken;

use crate::chatdb::{ChatDb, NotReady, PULSE_ROWS_DOCTOR, Pulse};
use crate::checks::history::{database, forwarding, full_disk_access, inbound, refusals, schema};
use crate::checks::machine::{
    Clocks, Program, StateDir, clock, disk, orphan, osascript, state_dir,
};
use crate::checks::messages::{Answer, ended, judge, other_account};
use crate::checks::{Check, Outcome};
use crate::config::Config;
use crate::daemon::{DaemonError, Lock, chain};
use crate::exit::Exit;
use crate::journal::{Inspection, JournalError, inspect};
use crate::machine;
use crate::osascript::{ACCOUNT, Osascript, PrepareError};

pub use report::Report;

/// An osascript that takes longer is held up by a question on the screen: the script itself gives
/// Messages five seconds, and to start it takes a fraction of one.
const PATIENCE: Duration = Duration::from_secs(15);
/// The bound of osascript's own, so far behind [`PATIENCE`] that it is never met first.
const PATIENCE_TIMES: u32 = 4;

/// Runs every check.
pub async fn examine(config: &Config) -> Report {
    let (state, lock) = take_lock(&config.state_dir);
    let journal = inspect(&config.state_dir.join("journal.db"));
    let history = History::read(&config.chat_db);

    let mut checks = vec![clock(history.clocks, history.pulse.as_ref().ok())];
    checks.push(state_dir(&config.state_dir, &state));
    let attachments = machine::attachments(&config.chat_db);
    for (name, path) in
        [("state_disk", config.state_dir.as_path()), ("attachments_disk", attachments.as_path())]
    {
        checks.push(disk(name, path, &machine::disk(path), config.disk_low_mib, false));
    }
    checks.push(judge_journal(config, &journal));

    let program = machine::program(&config.osascript);
    checks.push(osascript(&config.osascript, program));
    let road =
        Osascript::new(config.osascript.clone(), &config.state_dir, PATIENCE * PATIENCE_TIMES);
    let orphan_runs = match lock {
        Some(_) => road.orphan_runs().ok(),
        None => None,
    };
    checks.push(orphan(orphan_runs));

    checks.extend(history.checks);
    let now = history.clocks.wall;

    let answers = match may_ask(lock.is_some(), program, orphan_runs, journal.as_ref().ok()) {
        Ok(()) => Answers::ask(&road, config.osascript_deadline.min(PATIENCE)).await,
        Err(why) => Answers::none(&why),
    };
    checks.extend(judge(&answers.imessage));
    let uses = |channel| config.default_channels.contains(&channel);
    let sms = other_account(Channel::Sms, uses(Channel::Sms), &answers.sms);
    let rcs = other_account(Channel::Rcs, uses(Channel::Rcs), &answers.rcs);
    if let Ok(pulse) = &history.pulse {
        let account = sms.outcome == Outcome::Ok || rcs.outcome == Outcome::Ok;
        checks.push(forwarding(pulse, &config.default_channels, account, now));
    } else {
        checks.push(Check::skipped("text_forwarding", "chat.db cannot be read"));
    }
    checks.extend([sms, rcs]);
    drop(lock);
    Report::new(config.phone.clone(), checks)
}

fn take_lock(path: &Path) -> (StateDir, Option<Lock>) {
    let lock = Lock::take(path);
    let mode = machine::mode(path);
    match lock {
        Ok(lock) => (StateDir::Usable { mode }, Some(lock)),
        Err(DaemonError::Locked { .. }) => (StateDir::InUse { mode }, None),
        Err(error) => (StateDir::Unusable(chain(&error)), None),
    }
}

fn judge_journal(config: &Config, seen: &Result<Option<Inspection>, JournalError>) -> Check {
    let check = "journal";
    let remedy = "Keep the file, and look at the disk. A journal is never replaced by hand while its \
                  sends are open: what it forgets may be sent twice.";
    match seen {
        Ok(None) => Check::ok(check, "there is none yet; the first run makes it"),
        Ok(Some(seen)) if seen.phone != config.phone.as_str() => Check::fault(
            check,
            format!("belongs to phone {}", seen.phone),
            "Give every phone its own `state_dir`.",
            Exit::BadConfig,
        ),
        Ok(Some(seen)) if !seen.known => Check::fault(
            check,
            "was written by a newer version of this program",
            "Run the newer program.",
            Exit::BadConfig,
        ),
        Ok(Some(Inspection { fault: Some(fault), .. })) => {
            Check::fault(check, format!("is damaged: {fault}"), remedy, Exit::TryAgain)
        }
        Ok(Some(seen)) => Check::ok(
            check,
            format!("whole; {} events not acknowledged, {} sends open", seen.unacked, seen.live),
        ),
        Err(error) => Check::fault(check, chain(error), remedy, Exit::TryAgain),
    }
}

/// What chat.db shows.
struct History {
    clocks: Clocks,
    pulse: Result<Pulse, NotReady>,
    checks: Vec<Check>,
}

impl History {
    fn read(path: &Path) -> Self {
        let first = crate::clock::now();
        // Before SQLite opens it: only a plain open tells EPERM from EACCES.
        let opened = machine::open(path);
        let access = full_disk_access(path, &opened);
        let refused = access.outcome == Outcome::Error;
        let database_open = ChatDb::open(path);
        let second = crate::clock::now();
        let clocks = Clocks {
            wall: second.wall,
            continuous_ms: (first.continuous_ms, second.continuous_ms),
        };
        let read = database_open.and_then(|database| {
            Ok((database.pulse(PULSE_ROWS_DOCTOR, clocks.wall)?, database.census()?))
        });
        let mut checks = vec![access];
        let skipped = |why: &'static str| {
            ["schema", "inbound", "error_22"].map(|check| Check::skipped(check, why))
        };
        match &read {
            Ok((pulse, census)) => checks.extend([
                database(path, Ok(pulse), clocks.wall),
                schema(census),
                inbound(pulse, clocks.wall),
                refusals(pulse),
            ]),
            Err(_) if refused => {
                checks.push(Check::skipped("chat_db", "it cannot be opened"));
                checks.extend(skipped("chat.db cannot be opened"));
            }
            Err(why) => {
                checks.push(database(path, Err(why), clocks.wall));
                checks.extend(skipped("chat.db cannot be read"));
            }
        }
        Self { clocks, pulse: read.map(|(pulse, _)| pulse), checks }
    }
}

/// Whether osascript may be started by us, or why not.
fn may_ask(
    locked: bool,
    program: Program,
    orphan_runs: Option<bool>,
    journal: Option<&Option<Inspection>>,
) -> Result<(), String> {
    if !locked {
        let said = journal.and_then(Option::as_ref).and_then(|seen| seen.account.as_deref());
        return Err(match said {
            Some(account) => format!(
                "the bridge runs, or its folder cannot be used; its last word: {}",
                account.trim_end()
            ),
            None => "the bridge runs, or its folder cannot be used; only it may ask".to_owned(),
        });
    }
    match (program, orphan_runs) {
        (Program::Executable, Some(true)) => {
            Err("an osascript of an earlier run is still working".to_owned())
        }
        (Program::Executable, Some(false) | None) => Ok(()),
        (Program::Missing | Program::NotExecutable, _) => {
            Err("osascript cannot be started".to_owned())
        }
    }
}

/// What Messages says of its accounts.
struct Answers {
    imessage: Answer,
    sms: Answer,
    rcs: Answer,
}

impl Answers {
    fn none(why: &str) -> Self {
        let none = || Answer::NotAsked(why.to_owned());
        Self { imessage: none(), sms: none(), rcs: none() }
    }

    /// One question after the other. Where the first is not answered the others would wait in vain.
    async fn ask(road: &Osascript, patience: Duration) -> Self {
        let imessage = ask(road, Channel::Imessage, patience).await;
        let granted = |check: &Check| check.subject == "automation" && check.outcome == Outcome::Ok;
        if !judge(&imessage).iter().any(granted) {
            return Self { imessage, ..Self::none("Messages could not be asked") };
        }
        let sms = ask(road, Channel::Sms, patience).await;
        let rcs = ask(road, Channel::Rcs, patience).await;
        Self { imessage, sms, rcs }
    }
}

async fn ask(road: &Osascript, channel: Channel, patience: Duration) -> Answer {
    let prepared = match road.prepare(&[channel.service()]) {
        Ok(prepared) => prepared,
        Err(error @ PrepareError::Orphan) => return Answer::NotAsked(error.to_string()),
        Err(error) => return Answer::NotStarted(chain(&error)),
    };
    let running = match prepared.hand_over(ACCOUNT) {
        Ok(running) => running,
        Err(failed) => {
            let (running, error) = *failed;
            // It has ended already, or is ended now; what it says counts for nothing.
            let kill = CancellationToken::new();
            kill.cancel();
            running.finish(kill).await;
            return Answer::NotStarted(format!("osascript ended before it took a script: {error}"));
        }
    };
    let kill = CancellationToken::new();
    let finish = running.finish(kill.clone());
    tokio::pin!(finish);
    tokio::select! {
        disposition = &mut finish => ended(disposition, false),
        () = tokio::time::sleep(patience) => {
            kill.cancel();
            ended(finish.await, true)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inspection(change: impl FnOnce(&mut Inspection)) -> Inspection {
        let mut seen = Inspection {
            phone: "pho_00000000000000000000000000".to_owned(),
            fault: None,
            known: true,
            unacked: 3,
            live: 1,
            account: Some("Ready ".to_owned()),
        };
        change(&mut seen);
        seen
    }

    #[test]
    fn a_journal_is_whole_known_and_of_this_phone() {
        let config = Config::parse(Path::new("x"), crate::config::DEFAULT).unwrap();
        for (seen, exit) in [
            (None, None),
            (Some(inspection(|_| ())), None),
            (Some(inspection(|seen| seen.phone = "pho_x".to_owned())), Some(Exit::BadConfig)),
            (Some(inspection(|seen| seen.known = false)), Some(Exit::BadConfig)),
            (Some(inspection(|seen| seen.fault = Some("row 3".to_owned()))), Some(Exit::TryAgain)),
        ] {
            let check = judge_journal(&config, &Ok(seen.clone()));
            assert_eq!(check.exit, exit, "{seen:?}");
        }
    }

    #[test]
    fn only_who_holds_the_lock_asks_and_nobody_past_an_orphan() {
        let seen = Some(inspection(|_| ()));
        assert_eq!(may_ask(true, Program::Executable, Some(false), Some(&seen)), Ok(()));
        assert!(
            may_ask(false, Program::Executable, None, Some(&seen)).unwrap_err().ends_with("Ready")
        );
        assert!(may_ask(false, Program::Executable, None, None).is_err());
        assert!(may_ask(true, Program::Executable, Some(true), None).is_err());
        assert!(may_ask(true, Program::Missing, Some(false), None).is_err());
        assert!(may_ask(true, Program::NotExecutable, Some(false), None).is_err());
    }
}
