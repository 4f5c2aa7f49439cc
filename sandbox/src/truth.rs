//! The truth: what Messages was really asked to send, and took.
//!
//! `sends.jsonl` has one line for each, appended with a single write before anything else is done
//! about it. Whoever wants to know whether a text was sent twice counts there. What was refused
//! before Messages took it (-600, -1728, -1743) is in `refused.jsonl`.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::applescript::Content;
use crate::clock::AppleNs;
use crate::outcome::{Plan, Service};

/// The file of what was taken.
pub const SENDS: &str = "sends.jsonl";
/// The file of what was refused.
pub const REFUSED: &str = "refused.jsonl";

/// One text that Messages was asked to send.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Send {
    /// When, in RFC 3339.
    pub at: String,
    /// Which phone, with `+`.
    pub phone: String,
    /// To whom: an address or a group's id.
    pub to: String,
    /// Over which service.
    pub service: Service,
    /// The outcome, as in the table of outcomes.
    pub outcome: String,
    /// Whether the recipient gets it.
    pub reaches: bool,
    /// The guid of its row, if there ever is one.
    pub guid: String,
    /// SHA-256 of the text, in hexadecimal.
    pub text_sha256: String,
    /// The text; empty with a file.
    pub text: String,
    /// The path of a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
}

impl Send {
    /// What is to be recorded of a text or a file.
    pub fn new(phone: &str, to: &str, service: Service, content: Content<'_>, plan: &Plan) -> Self {
        let (text, file) = match content {
            Content::Text(text) => (text, None),
            Content::File(path) => ("", Some(path.to_owned())),
        };
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
        Self {
            at: AppleNs::now().rfc3339(),
            phone: phone.to_owned(),
            to: to.to_owned(),
            service,
            outcome: plan.outcome.to_owned(),
            reaches: plan.reaches(),
            guid: crate::chatdb::new_guid(),
            text_sha256: data_encoding::HEXLOWER.encode(digest.as_ref()),
            text: text.to_owned(),
            file,
        }
    }
}

/// The two files, open for appending.
#[derive(Debug)]
pub struct Truth {
    sends: File,
    refused: File,
}

impl Truth {
    /// Opens them in the sandbox's folder.
    pub fn open(dir: &Path) -> io::Result<Self> {
        let open = |name| OpenOptions::new().append(true).create(true).open(dir.join(name));
        Ok(Self { sends: open(SENDS)?, refused: open(REFUSED)? })
    }

    /// Appends a text to the file that it belongs to.
    pub fn record(&self, send: &Send, taken: bool) -> io::Result<()> {
        let mut line = serde_json::to_vec(send)?;
        line.push(b'\n');
        let mut file = if taken { &self.sends } else { &self.refused };
        // One write to a file opened for appending: lines never mix, not even of two processes.
        match file.write(&line)? {
            written if written == line.len() => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }
}

/// Reads what was taken. A folder in which nothing was sent yet has no sends.
pub fn sends(dir: &Path) -> io::Result<Vec<Send>> {
    let file = match File::open(dir.join(SENDS)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let lines = BufReader::new(file).lines();
    lines.map(|line| Ok(serde_json::from_str(&line?)?)).collect()
}

/// What sends can be counted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum CountBy {
    /// The text, or the path of the file.
    Text,
    /// The recipient.
    To,
    /// The phone.
    Phone,
    /// The service.
    Service,
    /// The outcome.
    Outcome,
}

/// How often each text, recipient and so on was sent.
pub fn count(sends: &[Send], by: CountBy) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for send in sends {
        let key = match by {
            CountBy::Text => send.file.as_deref().unwrap_or(&send.text),
            CountBy::To => send.to.as_str(),
            CountBy::Phone => send.phone.as_str(),
            CountBy::Service => send.service.as_str(),
            CountBy::Outcome => send.outcome.as_str(),
        };
        *counts.entry(key.to_owned()).or_insert(0) += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::plan;

    #[test]
    fn what_is_recorded_can_be_read_and_counted() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(sends(dir.path()).unwrap(), []);
        let truth = Truth::open(dir.path()).unwrap();
        for (to, text) in
            [("+12025550100", "a\nb"), ("+12025550110", "a\nb"), ("+12025550119", "c")]
        {
            let plan = plan(to, Service::Imessage);
            let send = Send::new("+15550100001", to, Service::Imessage, Content::Text(text), &plan);
            truth.record(&send, plan.is_taken()).unwrap();
        }
        let sends = sends(dir.path()).unwrap();
        assert_eq!(sends.len(), 2, "-600 is not taken");
        assert_eq!(sends.iter().map(|s| s.reaches).collect::<Vec<_>>(), [true, false]);
        assert_eq!(count(&sends, CountBy::Text), BTreeMap::from([("a\nb".to_owned(), 2)]));
        assert_eq!(count(&sends, CountBy::Outcome).len(), 2);
        let refused = std::fs::read_to_string(dir.path().join(REFUSED)).unwrap();
        assert_eq!(refused.lines().count(), 1);
    }
}
