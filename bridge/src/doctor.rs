//! Preflight: everything that must be true on this Mac for one phone, each with its remedy.
//!
//! The checks use the very roads that the bridge uses: SQLite on chat.db, osascript with the
//! probe. A check that asks for a permission in another way would prove something else.

use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::chatdb::ChatDb;
use crate::config::Config;
use crate::daemon::{DaemonError, Lock, chain};
use crate::exit::Exit;
use crate::health::Health;
use crate::osascript::{Disposition, Osascript, PROBE, PrepareError};

/// What a check found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// As it must be.
    Good,
    /// Worth knowing; the bridge works all the same.
    Note,
    /// The bridge cannot work like this.
    Bad,
}

/// One thing that must be true.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// What was looked at.
    #[serde(rename = "check")]
    pub subject: &'static str,
    /// How it is.
    pub outcome: Outcome,
    /// What was seen.
    pub found: String,
    /// What to do about it; empty when nothing needs to be done.
    pub remedy: String,
}

/// All checks.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Whether the bridge can work.
    pub ready: bool,
    /// In the order in which they build on each other.
    pub checks: Vec<Check>,
}

impl Report {
    /// 0 when the bridge can work, else 69.
    pub fn exit(&self) -> Exit {
        if self.ready { Exit::Asked } else { Exit::Unhealthy }
    }

    /// Writes it for people, or as one JSON object.
    pub fn write(&self, to: &mut impl Write, json: bool) -> io::Result<()> {
        if json {
            serde_json::to_writer(&mut *to, self)?;
            return writeln!(to);
        }
        let width = self.checks.iter().map(|check| check.subject.len()).max().unwrap_or(0);
        for check in &self.checks {
            let word = match check.outcome {
                Outcome::Good => "good",
                Outcome::Note => "note",
                Outcome::Bad => "BAD ",
            };
            writeln!(to, "{word}  {:width$}  {}", check.subject, check.found)?;
            if !check.remedy.is_empty() {
                writeln!(to, "      {:width$}  → {}", "", check.remedy)?;
            }
        }
        Ok(())
    }
}

/// Runs every check.
pub async fn examine(config: &Config) -> Report {
    let mut checks = Vec::new();
    let (state, lock) = state_dir(&config.state_dir);
    checks.push(state);
    checks.extend(chat_db(&config.chat_db));
    match lock {
        Some(_lock) => checks.push(account(config).await),
        None => checks.push(Check {
            subject: "account",
            outcome: Outcome::Note,
            found: "not asked: only the process that holds the lock may start osascript".to_owned(),
            remedy: String::new(),
        }),
    }
    Report { ready: checks.iter().all(|check| check.outcome != Outcome::Bad), checks }
}

fn state_dir(path: &Path) -> (Check, Option<Lock>) {
    let check = |outcome, found: String, remedy: &str| Check {
        subject: "state_dir",
        outcome,
        found,
        remedy: remedy.to_owned(),
    };
    match Lock::take(path) {
        Ok(lock) => {
            (check(Outcome::Good, format!("{} is writable", path.display()), ""), Some(lock))
        }
        Err(error @ DaemonError::Locked { .. }) => {
            (check(Outcome::Note, format!("the bridge of this phone runs: {error}"), ""), None)
        }
        Err(error) => {
            let remedy = "make the folder writable for this user, or choose another state_dir";
            (check(Outcome::Bad, chain(&error), remedy), None)
        }
    }
}

fn chat_db(path: &Path) -> Vec<Check> {
    let database = match ChatDb::open(path) {
        Ok(database) => database,
        Err(why) => {
            return vec![Check {
                subject: "chat.db",
                outcome: Outcome::Bad,
                found: format!("{}: {} ({})", path.display(), why.cause, why.detail),
                remedy: why.cause.remedy().to_owned(),
            }];
        }
    };
    let newest =
        database.max_rowid().and_then(|rowid| Ok((rowid, database.newest_date_at(rowid)?)));
    vec![match newest {
        Ok((0, _)) => Check {
            subject: "chat.db",
            outcome: Outcome::Note,
            found: format!("{} is readable and empty", path.display()),
            remedy: "send one message by hand, to see that this account works".to_owned(),
        },
        Ok((rowid, newest)) => Check {
            subject: "chat.db",
            outcome: Outcome::Good,
            found: match newest {
                Some(at) => format!("readable, newest row {rowid} of {at}"),
                None => format!("readable, newest row {rowid}"),
            },
            remedy: String::new(),
        },
        Err(why) => Check {
            subject: "chat.db",
            outcome: Outcome::Bad,
            found: format!("{}: {} ({})", path.display(), why.cause, why.detail),
            remedy: why.cause.remedy().to_owned(),
        },
    }]
}

/// Asks the account by the road of a send. It may put a question on the screen: that is what
/// `doctor` is run for.
async fn account(config: &Config) -> Check {
    let osascript =
        Osascript::new(config.osascript.clone(), &config.state_dir, config.osascript_deadline);
    let bad = |found: String, remedy: String| Check {
        subject: "account",
        outcome: Outcome::Bad,
        found,
        remedy,
    };
    let prepared = match osascript.prepare(&[]) {
        Ok(prepared) => prepared,
        Err(error @ PrepareError::Orphan) => {
            return bad(error.to_string(), "wait for it, or end it".to_owned());
        }
        Err(error) => {
            return bad(chain(&error), "correct `osascript` in the configuration".to_owned());
        }
    };
    let disposition = match prepared.hand_over(PROBE) {
        Ok(running) => running.finish(CancellationToken::new()).await,
        Err(failed) => {
            let (running, error) = *failed;
            running.finish(CancellationToken::new()).await;
            return bad(
                format!("osascript ended before it took a script: {error}"),
                "run it by hand and see what it says".to_owned(),
            );
        }
    };
    let mut health = Health::new(0, 0);
    health.database(Ok(()));
    health.orphan(false);
    let news = health.probed(&disposition, 0);
    if health.is_usable() {
        return Check {
            subject: "account",
            outcome: Outcome::Good,
            found: "Messages may be controlled, and its account is connected".to_owned(),
            remedy: String::new(),
        };
    }
    let remedy = health.remedy().unwrap_or_default();
    match disposition {
        Disposition::Succeeded { output } => bad(format!("the account is {output:?}"), remedy),
        Disposition::NotStarted(failure) | Disposition::MayHaveCompleted(failure) => {
            bad(format!("{} ({}): {:?}", failure.reason, failure.detail, news.state), remedy)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(outcome: Outcome) -> Report {
        let check = Check {
            subject: "chat.db",
            outcome,
            found: "seen".to_owned(),
            remedy: "do".to_owned(),
        };
        Report { ready: outcome != Outcome::Bad, checks: vec![check] }
    }

    #[test]
    fn a_bad_check_is_an_exit_code_and_shows_its_remedy() {
        let mut out = Vec::new();
        report(Outcome::Bad).write(&mut out, false).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "BAD   chat.db  seen\n               → do\n");
        assert_eq!(report(Outcome::Bad).exit(), Exit::Unhealthy);
        assert_eq!(report(Outcome::Note).exit(), Exit::Asked);
    }

    #[test]
    fn the_json_form_is_one_object() {
        let mut out = Vec::new();
        report(Outcome::Good).write(&mut out, true).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(json["ready"], true);
        assert_eq!(json["checks"][0]["outcome"], "good");
    }
}
