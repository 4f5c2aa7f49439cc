//! What was accepted beside what the sandbox was really asked to send: the books must agree.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result};
use protocol::Status;
use protocol::api::{Direction, Message};
use serde::Deserialize;

/// One line of the sandbox's own count: Messages was really asked to send this.
#[derive(Debug, Clone, Deserialize)]
pub struct Asked {
    /// The phone's number.
    pub phone: String,
    /// The address.
    pub to: String,
    /// The service, as AppleScript names it.
    pub service: String,
    /// The outcome that the sandbox's table has for it.
    #[serde(default)]
    pub outcome: String,
    /// Whether the recipient gets it.
    #[serde(default)]
    pub reaches: bool,
    /// The text.
    #[serde(default)]
    pub text: String,
    /// The path of a file.
    #[serde(default)]
    pub file: Option<String>,
}

/// Reads the sandbox's count. A last line that is still being written is left out.
pub fn asked(file: &Path) -> Result<Vec<Asked>> {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        Err(error) => return Err(error).with_context(|| file.display().to_string()),
    };
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("sends file: {line}")))
        .collect()
}

/// The books, compared.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Books {
    /// Messages that the router answered with 202.
    pub accepted: usize,
    /// Of these, shown as sent, delivered or read.
    pub sent: usize,
    /// Of these, `unknown`: handed over, outcome not provable, left to the operator.
    pub unknown: usize,
    /// Texts for which Messages was asked more than once.
    pub doubled: Vec<String>,
    /// Messages shown as sent for which Messages was never asked.
    pub phantom: Vec<String>,
    /// Messages in an end other than sent or unknown, or in no end at all.
    pub lost: Vec<String>,
    /// Messages shown as unknown although Messages was asked for them.
    pub unknown_but_sent: Vec<String>,
}

/// Compares accepted messages, each with a text of its own, with the sandbox's count.
pub fn compare(messages: &[Message], asked: &[Asked]) -> Books {
    let mut count: BTreeMap<&str, usize> = BTreeMap::new();
    for asked in asked {
        *count.entry(asked.text.as_str()).or_default() += 1;
    }
    let mut books = Books::default();
    for message in messages.iter().filter(|message| message.direction == Direction::Outbound) {
        books.accepted += 1;
        let times = count.get(message.text.as_str()).copied().unwrap_or(0);
        let name = format!("{} ({}, asked {times} times)", message.text, message.status);
        if times > 1 {
            books.doubled.push(name.clone());
        }
        if message.status.is_sent() {
            books.sent += 1;
            if times == 0 {
                books.phantom.push(name);
            }
        } else if message.status == Status::Unknown {
            books.unknown += 1;
            if times > 0 {
                books.unknown_but_sent.push(name);
            }
        } else {
            books.lost.push(name);
        }
    }
    books
}
