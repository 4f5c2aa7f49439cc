//! What can go wrong in a command, what to do about it, and the exit code that says which kind it was.

use std::io::{self, Write};

use clap::builder::styling::{AnsiColor, Style};
use protocol::api::Problem;
use serde_json::json;

use super::screen::printable;

/// Why a command failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The command cannot be understood, or a file that it names cannot.
    Usage { detail: String, remedy: String },
    /// No answer from the router.
    Unreachable { url: String, detail: String },
    /// The router does not know who asks, or does not let them.
    NotAuthorised { problem: Option<Box<Problem>>, detail: String, remedy: String },
    /// The router said no.
    Refused { problem: Box<Problem> },
    /// The router answered something that is not of its contract.
    Strange { detail: String },
    /// The message was accepted, but did not arrive.
    NotSent { detail: String },
    /// Something must be changed on this Mac first.
    Unhealthy { code: u8, detail: String, remedy: String },
    /// Something on this machine.
    Local(anyhow::Error),
    /// Whoever read the output has stopped reading.
    OutputClosed,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::OutputClosed;
        }
        Self::Local(anyhow::Error::new(error).context("write the output"))
    }
}

const ERROR: Style = AnsiColor::Red.on_default().bold();
const HELP: Style = AnsiColor::Cyan.on_default().bold();

impl Failure {
    pub(crate) fn usage(detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Usage { detail: detail.into(), remedy: remedy.into() }
    }

    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::OutputClosed => 0,
            Self::Refused { .. } | Self::Strange { .. } | Self::NotSent { .. } | Self::Local(_) => {
                1
            }
            Self::Usage { .. } => 2,
            Self::Unreachable { .. } => 69,
            Self::NotAuthorised { .. } => 77,
            Self::Unhealthy { code, .. } => *code,
        }
    }

    /// True when the same request may succeed a little later: the router is being restarted, or has too much to do.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused { problem } => problem.status == 429 || problem.status >= 500,
            Self::Usage { .. }
            | Self::NotAuthorised { .. }
            | Self::Strange { .. }
            | Self::NotSent { .. }
            | Self::Unhealthy { .. }
            | Self::Local(_)
            | Self::OutputClosed => false,
        }
    }

    /// Says what went wrong and what to do about it.
    pub(crate) fn report(&self, to: &mut impl Write, json: bool) -> io::Result<()> {
        if matches!(self, Self::OutputClosed) {
            return Ok(());
        }
        if json {
            let mut object = json!({ "error": self.sentence(), "exit_code": self.exit_code() });
            if let (Some(remedy), Some(fields)) = (self.remedy(), object.as_object_mut()) {
                fields.insert("remedy".to_owned(), remedy.into());
            }
            if let (Some(problem), Some(fields)) = (self.problem(), object.as_object_mut()) {
                fields.insert("problem".to_owned(), serde_json::to_value(problem)?);
            }
            return writeln!(to, "{object}");
        }
        // Its words may be those of whatever answers at a wrong address.
        writeln!(to, "{ERROR}error:{ERROR:#} {}", printable(&self.sentence()))?;
        for field in self.problem().map(|problem| problem.errors.as_slice()).unwrap_or_default() {
            let line = format!("  {}: {} ({})", field.pointer, field.detail, field.code);
            writeln!(to, "{}", printable(&line))?;
        }
        if let Some(request) = self.problem().and_then(|problem| problem.request_id.as_ref()) {
            writeln!(to, "  request: {}", printable(request))?;
        }
        if let Some(remedy) = self.remedy() {
            writeln!(to, "{HELP}help:{HELP:#} {remedy}")?;
        }
        Ok(())
    }

    fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Refused { problem } => Some(problem),
            Self::NotAuthorised { problem, .. } => problem.as_deref(),
            Self::Usage { .. }
            | Self::Unreachable { .. }
            | Self::Strange { .. }
            | Self::NotSent { .. }
            | Self::Unhealthy { .. }
            | Self::Local(_)
            | Self::OutputClosed => None,
        }
    }

    /// What went wrong, on one line.
    pub(crate) fn sentence(&self) -> String {
        match self {
            Self::Usage { detail, .. }
            | Self::Strange { detail }
            | Self::NotSent { detail }
            | Self::Unhealthy { detail, .. }
            | Self::NotAuthorised { detail, .. } => detail.clone(),
            Self::Unreachable { url, detail } => {
                format!("cannot reach the router at {url}: {detail}")
            }
            Self::Refused { problem } => {
                let words = problem.detail.as_deref().unwrap_or(&problem.title);
                format!("the router said no: {words} ({}, HTTP {})", problem.code, problem.status)
            }
            Self::Local(error) => format!("{error:#}"),
            Self::OutputClosed => "the output was closed".to_owned(),
        }
    }

    fn remedy(&self) -> Option<String> {
        match self {
            Self::Usage { remedy, .. }
            | Self::NotAuthorised { remedy, .. }
            | Self::Unhealthy { remedy, .. } => Some(remedy.clone()),
            Self::Unreachable { url, detail } => {
                let remedy = if url.starts_with("https:") && detail.contains("InvalidContentType") {
                    "it does not speak TLS at this port: write http:// in --url or SWITCHBOARD_URL"
                } else {
                    "is it running? Its address is given by --url or SWITCHBOARD_URL"
                };
                Some(remedy.to_owned())
            }
            Self::Refused { problem } => match problem.status {
                404 => Some("list what exists, with the key of the same tenant".to_owned()),
                409 if problem.code == "not_cancelable" => {
                    Some("look at its present state with `switchboard message ID`".to_owned())
                }
                429 => Some("wait a little and try again".to_owned()),
                500.. => Some("the router's log has the cause under the request's id".to_owned()),
                _ => None,
            },
            Self::Strange { .. } => {
                Some("is this address a Switchboard router of the same version?".to_owned())
            }
            Self::NotSent { .. } | Self::Local(_) | Self::OutputClosed => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_field_and_the_request() {
        let problem = serde_json::from_value(json!({
            "type": "urn:switchboard:problem:invalid", "title": "Invalid", "status": 422,
            "code": "invalid",
            "request_id": "req_1",
            "errors": [{ "pointer": "/to", "code": "not_possible", "detail": "no such number" }],
        }));
        let failure = Failure::Refused { problem: Box::new(problem.unwrap()) };
        let mut text = Vec::new();
        failure.report(&mut anstream::StripStream::new(&mut text), false).unwrap();
        assert_eq!(
            String::from_utf8(text).unwrap(),
            "error: the router said no: Invalid (invalid, HTTP 422)\n  \
             /to: no such number (not_possible)\n  request: req_1\n"
        );
        assert_eq!(failure.exit_code(), 1);
    }

    #[test]
    fn a_strangers_words_cannot_steer_the_terminal() {
        let failure = Failure::Strange { detail: "a\u{1b}]0;x\u{7}b".to_owned() };
        let mut text = Vec::new();
        failure.report(&mut text, false).unwrap();
        assert!(String::from_utf8(text).unwrap().contains("a]0;xb"));
    }

    #[test]
    fn a_closed_output_is_no_failure() {
        let failure = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!(failure.exit_code(), 0);
    }
}
