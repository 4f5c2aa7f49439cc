//! A small AppleScript: what programs say to Messages, and nothing else. Pure.
//!
//! As in the real one the whole script is compiled before any of it runs, so a script that is cut
//! off does nothing. The language is `on run argv`, `set … to`, `tell application "Messages"`,
//! `if … is …`, `if application "Messages" is (not) running`, `with timeout of`, `try … on error
//! number …`, `quit`, `close windows`, `send … to participant … of …`, `send … to chat id …`, `id of chat id …`, `(POSIX file …)
//! as alias`, accounts and their connection status, `&`, `return`, `log` and comments. All else is a
//! syntax error.

mod parse;
mod run;

pub use parse::{Script, parse};
pub use run::run;

/// Where in the script something is: from and to, in characters, as osascript prints them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span {
    /// The first character.
    pub from: usize,
    /// The character after the last.
    pub to: usize,
}

/// Why a script did not run, or stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScriptError {
    /// Whether it was found before anything ran.
    pub syntax: bool,
    /// The number that osascript prints in parentheses.
    pub number: i32,
    /// The sentence before it.
    pub message: String,
    /// Where.
    pub span: Span,
}

impl std::fmt::Display for ScriptError {
    /// As osascript writes it: `from:to: execution error: sentence (number)`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = if self.syntax { "syntax error" } else { "execution error" };
        let Self { number, message, span: Span { from, to }, .. } = self;
        write!(f, "{from}:{to}: {kind}: {message} ({number})")
    }
}

impl std::error::Error for ScriptError {}

/// An Apple event that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventError {
    /// The error number, such as -1728.
    pub number: i32,
    /// The sentence after "Messages got an error: ".
    pub message: String,
}

impl EventError {
    /// An error with the sentence that Apple has for it.
    pub fn new(number: i32) -> Self {
        let message = match number {
            -600 => "Application isn’t running.",
            -609 => "Connection is invalid.",
            -1712 => "AppleEvent timed out.",
            -1728 => "Can’t get object.",
            -1743 => "Not authorized to send Apple events to Messages.",
            -2753 => "The variable is not defined.",
            _ => "An error of type was returned.",
        };
        Self { number, message: message.to_owned() }
    }

    /// An error about something that is not there (-1728).
    pub fn cannot_get(what: &str) -> Self {
        Self { number: -1728, message: format!("Can’t get {what}.") }
    }
}

/// What a script sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content<'c> {
    /// A text.
    Text(&'c str),
    /// The file of this path.
    File(&'c str),
}

/// What a script can ask of Messages. Each is an Apple event that may fail; `timeout_s` is what
/// `with timeout of` around it says, if anything.
pub trait Messages {
    /// Whether there is an account of this service. A name that is no service is not defined.
    fn account(&mut self, service: &str, timeout_s: Option<u64>) -> Result<(), EventError>;
    /// `connected`, `connecting`, `disconnected` or `disconnecting`.
    fn connection_status(
        &mut self,
        service: &str,
        timeout_s: Option<u64>,
    ) -> Result<String, EventError>;
    /// How many accounts there are.
    fn count_accounts(&mut self, timeout_s: Option<u64>) -> Result<i64, EventError>;
    /// Whether Messages runs. Needs no permission, and does not start it.
    fn is_running(&mut self) -> bool;
    /// Whether there is a file of this path. AppleScript's own question; Messages does not hear of it.
    fn is_file(&mut self, path: &str) -> bool;
    /// Whether Messages knows a chat of that guid.
    fn chat(&mut self, guid: &str, timeout_s: Option<u64>) -> Result<(), EventError>;
    /// Sends to an address over an account of this service.
    fn send_to_participant(
        &mut self,
        service: &str,
        address: &str,
        content: Content<'_>,
        timeout_s: Option<u64>,
    ) -> Result<(), EventError>;
    /// Sends into the chat of that guid.
    fn send_to_chat(
        &mut self,
        guid: &str,
        content: Content<'_>,
        timeout_s: Option<u64>,
    ) -> Result<(), EventError>;
    /// Asks Messages to quit.
    fn quit(&mut self, timeout_s: Option<u64>) -> Result<(), EventError>;
    /// Closes its windows; it goes on running.
    fn close_windows(&mut self, timeout_s: Option<u64>) -> Result<(), EventError>;
    /// What `log` writes (to stderr).
    fn log(&mut self, line: &str);
}

#[cfg(test)]
mod tests;
