//! What a person or a program reads on standard output.

use std::io::{StdoutLock, Write};

use anstream::AutoStream;
use clap::builder::styling::{AnsiColor, Style};
use comfy_table::{ContentArrangement, Table, presets};
use protocol::{Status, UnixMs};
use serde::Serialize;

use super::failure::Failure;

/// What stands where there is nothing.
pub(crate) const NOTHING: &str = "-";
/// Characters of a text that a table shows.
const TEXT_SHOWN_MAX: usize = 40;

/// Standard output: JSON or words, colours on a terminal only.
#[derive(Debug)]
pub(crate) struct Screen {
    json: bool,
    out: AutoStream<StdoutLock<'static>>,
}

impl Screen {
    pub(crate) fn new(json: bool) -> Self {
        Self { json, out: anstream::stdout().lock() }
    }

    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// A value for programs.
    pub(crate) fn json(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(value).map_err(std::io::Error::from)?;
        self.line(&text)
    }

    /// A value on one line, for programs that follow.
    pub(crate) fn json_line(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string(value).map_err(std::io::Error::from)?;
        self.line(&text)
    }

    pub(crate) fn line(&mut self, text: &str) -> Result<(), Failure> {
        writeln!(self.out, "{text}")?;
        Ok(self.out.flush()?)
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.out.write_all(bytes)?;
        Ok(self.out.flush()?)
    }

    /// A table; `none` is said when it has no rows.
    pub(crate) fn table<const COLUMNS: usize>(
        &mut self,
        header: [&str; COLUMNS],
        rows: Vec<[String; COLUMNS]>,
        none: &str,
    ) -> Result<(), Failure> {
        if rows.is_empty() {
            return self.line(none);
        }
        // A cell may come from far away: a host's name, an endpoint's answer.
        let rows = rows.into_iter().map(|row| row.map(|cell| one_line(&cell)));
        let mut table = Table::new();
        table
            .load_style(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Disabled)
            .set_header(header)
            .add_rows(rows);
        // The padding of the last column would be copied along with ids and secrets.
        for line in table.lines() {
            writeln!(self.out, "{}", line.trim())?;
        }
        Ok(self.out.flush()?)
    }
}

/// A moment to the second, or a dash.
pub(crate) fn time(at: impl Into<Option<UnixMs>>) -> String {
    at.into().map_or_else(
        || NOTHING.to_owned(),
        |at| match at.to_string().split_once('.') {
            Some((seconds, _)) => format!("{}Z", seconds.replace('T', " ")),
            None => at.to_string(),
        },
    )
}

/// A value, or a dash.
pub(crate) fn or_nothing(value: Option<impl ToString>) -> String {
    value.map_or_else(|| NOTHING.to_owned(), |value| value.to_string())
}

/// A text on one line. Control characters would reach into the terminal.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The beginning of a text, on one line.
pub(crate) fn beginning(text: &str) -> String {
    let mut line: String = one_line(text).chars().take(TEXT_SHOWN_MAX).collect();
    if text.chars().nth(TEXT_SHOWN_MAX).is_some() {
        line.push('…');
    }
    line
}

/// A whole text without what could steer the terminal; lines stay lines.
pub(crate) fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || *c == '\n' || *c == '\t').collect()
}

/// A length of time between two steps.
pub(crate) fn between(ms: i64) -> String {
    match ms {
        ..1_000 => format!("+{} ms", ms.max(0)),
        1_000..60_000 => format!("+{}.{} s", ms / 1_000, ms % 1_000 / 100),
        60_000..3_600_000 => format!("+{} min {} s", ms / 60_000, ms % 60_000 / 1_000),
        3_600_000.. => format!("+{} h {} min", ms / 3_600_000, ms % 3_600_000 / 60_000),
    }
}

/// The colour of a status on a terminal.
pub(crate) fn style(status: Status) -> Style {
    match status {
        Status::Sent | Status::Delivered | Status::Read | Status::Received => {
            AnsiColor::Green.on_default()
        }
        Status::Queued | Status::Scheduled | Status::Dispatching => AnsiColor::Cyan.on_default(),
        Status::Unknown | Status::Canceled => AnsiColor::Yellow.on_default(),
        Status::Failed | Status::Blocked | Status::Expired => AnsiColor::Red.on_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_distances_are_short() {
        assert_eq!(time(UnixMs(1_795_348_800_250)), "2026-11-22 12:00:00Z");
        assert_eq!(time(None), NOTHING);
        let shown: Vec<String> =
            [-5, 0, 999, 1_000, 61_500, 3_660_000].into_iter().map(between).collect();
        assert_eq!(shown, ["+0 ms", "+0 ms", "+999 ms", "+1.0 s", "+1 min 1 s", "+1 h 1 min"]);
    }

    #[test]
    fn a_text_cannot_steer_the_terminal() {
        assert_eq!(beginning("a\n\u{1b}[2Jb"), "a  [2Jb");
        assert_eq!(printable("a\n\u{1b}]0;x\u{7}b"), "a\n]0;xb");
        assert_eq!(beginning(&"x".repeat(41)).chars().count(), 41);
        assert!(beginning(&"x".repeat(41)).ends_with('…'));
        assert_eq!(beginning(&"x".repeat(40)), "x".repeat(40));
    }
}
