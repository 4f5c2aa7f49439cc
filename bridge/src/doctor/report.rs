//! What `doctor` shows: an aligned table for people, one JSON object for programs, an exit code.

use std::io::{self, Write};

use clap::builder::styling::{AnsiColor, Style};
use protocol::PhoneId;
use serde::Serialize;

use crate::checks::{Check, Outcome};
use crate::exit::Exit;

/// Version of the JSON object; it grows when a field changes its meaning or goes away, not when one
/// is added.
const SCHEMA: u32 = 1;
/// Exit codes from the most specific cause to the least: a configuration that names the wrong things
/// explains whatever else fails, and a missing permission explains an account that cannot be asked.
const SPECIFIC: [Exit; 4] = [Exit::BadConfig, Exit::NoPermission, Exit::Unhealthy, Exit::TryAgain];

/// All checks of one phone.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Version of this object.
    pub schema: u32,
    /// The phone.
    pub phone: PhoneId,
    /// Whether no check is an error.
    pub ready: bool,
    /// What the program exits with.
    pub exit_code: u8,
    /// In the order in which they build on each other.
    pub checks: Vec<Check>,
}

impl Report {
    pub(super) fn new(phone: PhoneId, checks: Vec<Check>) -> Self {
        let exit = exit(&checks);
        Self { schema: SCHEMA, phone, ready: exit == Exit::Asked, exit_code: exit.code(), checks }
    }

    /// 0 when nothing is worse than a warning, else the code of the most specific error.
    pub fn exit(&self) -> Exit {
        exit(&self.checks)
    }

    /// Writes it as one JSON object on one line.
    pub fn write_json(&self, to: &mut impl Write) -> io::Result<()> {
        serde_json::to_writer(&mut *to, self)?;
        writeln!(to)
    }

    /// Writes it as a table, with colours: the stream takes them out where they do not belong.
    pub fn write_table(&self, to: &mut impl Write) -> io::Result<()> {
        let width = self.checks.iter().map(|check| check.subject.len()).max().unwrap_or(0);
        for check in &self.checks {
            let (word, style) = shown(check.outcome);
            writeln!(
                to,
                "{style}{word:7}{style:#}  {:width$}  {}",
                check.subject,
                line(&check.found)
            )?;
            if !check.remedy.is_empty() {
                writeln!(to, "{:7}  {:width$}  → {}", "", "", line(&check.remedy))?;
            }
        }
        let count = |outcome| self.checks.iter().filter(|check| check.outcome == outcome).count();
        let (errors, warnings) = (count(Outcome::Error), count(Outcome::Warning));
        let verdict = if self.ready { "can work" } else { "cannot work" };
        writeln!(to, "\n{} {verdict}: {errors} errors, {warnings} warnings", self.phone)
    }
}

fn exit(checks: &[Check]) -> Exit {
    let failed = |exit: &Exit| checks.iter().any(|check| check.exit == Some(*exit));
    SPECIFIC.into_iter().find(failed).unwrap_or(Exit::Asked)
}

fn shown(outcome: Outcome) -> (&'static str, Style) {
    match outcome {
        Outcome::Ok => ("ok", AnsiColor::Green.on_default()),
        Outcome::Warning => ("warning", AnsiColor::Yellow.on_default()),
        Outcome::Error => ("ERROR", AnsiColor::Red.on_default().bold()),
        Outcome::Skipped => ("skipped", Style::new().dimmed()),
    }
}

/// What was found may be the system's or Messages' words: on one line, and no escape sequences.
fn line(text: &str) -> String {
    text.chars().map(|char| if char.is_control() { ' ' } else { char }).collect()
}

#[cfg(test)]
mod tests {
    use protocol::Reason;

    use super::*;

    fn report() -> Report {
        Report::new(
            "pho_00000000000000000000000000".parse().unwrap(),
            vec![
                Check::ok("clock", "2026-11-22T12:00:00.000Z, and no message is ahead of it"),
                Check::warning("inbound", "nothing has come in for 4 days", "Write to it."),
                Check::error(
                    "automation",
                    "it\nis denied",
                    Reason::AutomationDenied,
                    Exit::NoPermission,
                )
                .with_remedy("Allow it."),
                Check::skipped("imessage_account", "cannot be asked"),
            ],
        )
    }

    fn plain(report: &Report) -> String {
        let mut out = anstream::StripStream::new(Vec::new());
        report.write_table(&mut out).unwrap();
        String::from_utf8(out.into_inner()).unwrap()
    }

    #[test]
    fn the_table_is_aligned_and_shows_remedies() {
        assert_eq!(
            plain(&report()),
            "\
ok       clock             2026-11-22T12:00:00.000Z, and no message is ahead of it
warning  inbound           nothing has come in for 4 days
                           → Write to it.
ERROR    automation        it is denied
                           → Allow it.
skipped  imessage_account  cannot be asked

pho_00000000000000000000000000 cannot work: 1 errors, 1 warnings
"
        );
    }

    #[test]
    fn colours_are_escape_sequences_around_the_first_word_only() {
        let mut out = Vec::new();
        report().write_table(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.starts_with("\u{1b}[32mok     \u{1b}[0m  clock"), "{text:?}");
        assert!(text.contains("\u{1b}[31m"), "{text:?}");
    }

    #[test]
    fn the_json_is_one_object_of_a_stable_shape() {
        let mut out = Vec::new();
        report().write_json(&mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            concat!(
                r#"{"schema":1,"phone":"pho_00000000000000000000000000","ready":false,"exit_code":77,"#,
                r#""checks":[{"check":"clock","outcome":"ok","found":"2026-11-22T12:00:00.000Z, and no "#,
                r#"message is ahead of it","remedy":""},{"check":"inbound","outcome":"warning","found":"#,
                r#""nothing has come in for 4 days","remedy":"Write to it."},{"check":"automation","#,
                r#""outcome":"error","found":"it\nis denied","remedy":"Allow it.","reason":"#,
                r#""automation_denied"},{"check":"imessage_account","outcome":"skipped","found":"#,
                r#""cannot be asked","remedy":""}]}"#,
                "\n"
            )
        );
    }

    #[test]
    fn the_most_specific_error_is_the_exit_code() {
        let error = |exit| Check::fault("x", "x", "x", exit);
        let warning = Check::warning("x", "x", "x");
        for (checks, expected) in [
            (vec![], 0),
            (vec![warning.clone(), Check::skipped("x", "x")], 0),
            (vec![error(Exit::TryAgain), warning], 75),
            (vec![error(Exit::TryAgain), error(Exit::Unhealthy)], 69),
            (vec![error(Exit::Unhealthy), error(Exit::NoPermission), error(Exit::TryAgain)], 77),
            (vec![error(Exit::NoPermission), error(Exit::BadConfig)], 78),
        ] {
            let report = Report::new("pho_00000000000000000000000000".parse().unwrap(), checks);
            assert_eq!(report.exit_code, expected);
            assert_eq!(report.ready, expected == 0);
        }
    }
}
