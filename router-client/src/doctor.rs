//! What `doctor` finds on a Mac, as the supervisor says it and the operator's tool shows it.
//!
//! A check has the shape that `switchboard-bridge doctor --json` gives its own, so that a report holds both.

use std::io::{self, Write};

use clap::builder::styling::{AnsiColor, Style};
use protocol::PhoneId;
pub use protocol::check::Outcome;
use serde::{Deserialize, Serialize};

/// Version of the object; it grows when a field changes its meaning or goes away, not when one is added.
pub const SCHEMA: u32 = 1;
/// Exit codes from the one that explains the others to the least: `sysexits(3)`.
const SPECIFIC: [u8; 4] = [78, 77, 69, 75];

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// A stable name.
    #[serde(rename = "check")]
    pub subject: String,
    /// How it is.
    pub outcome: Outcome,
    /// What was seen, for people.
    pub found: String,
    /// What to do about it; empty when nothing needs to be done.
    #[serde(default)]
    pub remedy: String,
    /// A bridge's code of an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Check {
    /// A check without a remedy.
    pub fn new(subject: &str, outcome: Outcome, found: impl Into<String>) -> Self {
        let (subject, found) = (subject.to_owned(), found.into());
        Self { subject, outcome, found, remedy: String::new(), reason: None }
    }

    /// The same with what to do.
    #[must_use]
    pub fn with_remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = remedy.into();
        self
    }
}

/// What a bridge's own doctor says of its phone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhoneReport {
    /// The phone.
    pub phone: PhoneId,
    /// Whether no check is an error.
    pub ready: bool,
    /// What its doctor ended with.
    pub exit_code: u8,
    /// In the order in which they build on each other.
    pub checks: Vec<Check>,
}

/// Everything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Version of this object.
    pub schema: u32,
    /// Whether no check is an error.
    pub ready: bool,
    /// The code of the most specific error, or 0.
    pub exit_code: u8,
    /// The Mac's.
    pub checks: Vec<Check>,
    /// The phones'.
    pub phones: Vec<PhoneReport>,
}

impl Report {
    /// Of checks, each error with the exit code that it means.
    pub fn new(checks: Vec<(Check, u8)>, phones: Vec<PhoneReport>) -> Self {
        let codes: Vec<u8> = checks
            .iter()
            .filter(|(check, _)| check.outcome == Outcome::Error)
            .map(|(_, code)| *code)
            .chain(phones.iter().map(|phone| phone.exit_code))
            .collect();
        let known = SPECIFIC.into_iter().find(|code| codes.contains(code));
        let other = codes.iter().copied().find(|code| *code != 0);
        let exit_code = known.or(other).unwrap_or(0);
        let checks = checks.into_iter().map(|(check, _)| check).collect();
        Self { schema: SCHEMA, ready: exit_code == 0, exit_code, checks, phones }
    }

    /// Writes it as tables; the stream takes the colours out where they do not belong.
    pub fn write_table(&self, to: &mut impl Write) -> io::Result<()> {
        write_checks(to, &self.checks)?;
        for phone in &self.phones {
            writeln!(to, "\n{}", phone.phone)?;
            write_checks(to, &phone.checks)?;
        }
        let all = || self.checks.iter().chain(self.phones.iter().flat_map(|phone| &phone.checks));
        let count = |outcome| all().filter(|check| check.outcome == outcome).count();
        let verdict = if self.ready { "can work" } else { "cannot work" };
        let (errors, warnings) = (count(Outcome::Error), count(Outcome::Warning));
        writeln!(to, "\nthis Mac {verdict}: {errors} errors, {warnings} warnings")
    }
}

fn write_checks(to: &mut impl Write, checks: &[Check]) -> io::Result<()> {
    // The words of the system, of Messages or of a newer program: on one line, and no escape sequences.
    let line = |text: &str| -> String {
        text.chars().map(|char| if char.is_control() { ' ' } else { char }).collect()
    };
    let width = checks.iter().map(|check| check.subject.len()).max().unwrap_or(0);
    for check in checks {
        let (word, style) = match check.outcome {
            Outcome::Ok => ("ok", AnsiColor::Green.on_default()),
            Outcome::Warning => ("warning", AnsiColor::Yellow.on_default()),
            Outcome::Error => ("ERROR", AnsiColor::Red.on_default().bold()),
            Outcome::Skipped => ("skipped", Style::new().dimmed()),
        };
        let (subject, found) = (line(&check.subject), line(&check.found));
        writeln!(to, "{style}{word:7}{style:#}  {subject:width$}  {found}")?;
        if !check.remedy.is_empty() {
            writeln!(to, "{:7}  {:width$}  → {}", "", "", line(&check.remedy))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(outcome: Outcome) -> Check {
        Check::new("sleep", outcome, "it\u{1b}sleeps").with_remedy("Wake it.")
    }

    #[test]
    fn the_code_that_explains_the_others_counts_and_warnings_have_none() {
        let error = |code| (check(Outcome::Error), code);
        let phone = |exit_code| PhoneReport {
            phone: "pho_00000000000000000000000000".parse().unwrap(),
            ready: exit_code == 0,
            exit_code,
            checks: Vec::new(),
        };
        for (checks, phones, expected) in [
            (vec![], vec![], 0),
            (vec![(check(Outcome::Warning), 69), (check(Outcome::Skipped), 78)], vec![phone(0)], 0),
            (vec![error(75)], vec![phone(69)], 69),
            (vec![error(69)], vec![phone(77), phone(75)], 77),
            (vec![error(78)], vec![phone(77)], 78),
            (vec![], vec![phone(70)], 70),
        ] {
            let report = Report::new(checks, phones);
            assert_eq!((report.exit_code, report.ready), (expected, expected == 0));
        }
    }

    #[test]
    fn the_table_says_everything_and_steers_no_terminal() {
        let phone = "pho_00000000000000000000000000".parse().unwrap();
        let phones = vec![PhoneReport {
            phone,
            ready: true,
            exit_code: 0,
            checks: vec![check(Outcome::Ok)],
        }];
        let mut out = anstream::StripStream::new(Vec::new());
        Report::new(vec![(check(Outcome::Error), 69)], phones).write_table(&mut out).unwrap();
        assert_eq!(
            String::from_utf8(out.into_inner()).unwrap(),
            "ERROR    sleep  it sleeps\n                → Wake it.\n\npho_00000000000000000000000000\n\
             ok       sleep  it sleeps\n                → Wake it.\n\nthis Mac cannot work: 1 errors, 0 warnings\n"
        );
    }

    #[test]
    fn a_bridges_report_is_understood() {
        let said = r#"{"schema":1,"phone":"pho_00000000000000000000000000","ready":false,"exit_code":77,
            "checks":[{"check":"automation","outcome":"error","found":"x","remedy":"y",
            "reason":"automation_denied"},{"check":"clock","outcome":"ok","found":"z","remedy":""}]}"#;
        let report: PhoneReport = serde_json::from_str(said).unwrap();
        assert_eq!(report.exit_code, 77);
        assert_eq!(report.checks[0].reason.as_deref(), Some("automation_denied"));
    }
}
