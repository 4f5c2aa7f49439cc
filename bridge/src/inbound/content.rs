//! What a message says, whoever wrote it: text, what is said about stretches of it, files, and
//! everything else that columns and blobs know. Pure.

use protocol::limits;
use protocol::pipe::{Details, InboundAttachment, ReplyTo, TextPart, TextRun, TransferState};
use serde::Serialize;

use crate::chatdb::{Attachment, Chat, Place, Row};
use crate::payload;
use crate::typedstream::{self, Attribute, Run};

/// Longest inbound text, in bytes. Escaped sixfold it still fits into one line of the pipe.
pub const TEXT_BYTES_MAX: usize = 100_000;
/// Most files listed of one message, for the same reason. A longer album is cut.
pub const FILES_MAX: usize = 100;
/// Longest name, address or guid listed, in bytes; file systems allow 255.
pub(super) const NAME_BYTES_MAX: usize = 255;
/// Longest path listed, in bytes; macOS allows 1024.
const PATH_BYTES_MAX: usize = 1024;
/// Most stretches listed of one text, and the longest value of one.
const RUNS_MAX: usize = 200;
const VALUE_BYTES_MAX: usize = 512;
/// Longest transcription, in bytes: half an hour of speech.
const TRANSCRIPTION_BYTES_MAX: usize = 20_000;
/// Most that a message's content may take of a line of the pipe, as JSON. The rest is for what stands around it:
/// ids, addresses, the envelopes of pipe and link.
const CONTENT_BYTES_MAX: usize = limits::LINE_BYTES_MAX - 64 * 1024;
/// Most that everything but text, files and runs can take, as JSON: a transcription of control characters, and
/// eight texts of an app's payload of them.
const DETAILS_BYTES_MAX: usize =
    6 * (TRANSCRIPTION_BYTES_MAX + 8 * payload::TEXT_BYTES_MAX) + 32 * 1024;
/// Most that a file or a run takes as JSON beside its texts: names of fields and numbers.
const FIELDS_BYTES_MAX: usize = 300;
/// Stands in the text for an attachment, and for an app's message.
const MARKS: [char; 2] = ['\u{fffc}', '\u{fffd}'];

/// What a message says.
#[derive(Debug, Clone, PartialEq)]
pub struct Content {
    /// Without the marks of attachments.
    pub text: String,
    /// In the order of the text.
    pub attachments: Vec<InboundAttachment>,
    /// Everything else.
    pub details: Box<Details>,
}

impl Content {
    /// What this row says. A preview in its own row is that row's.
    pub(super) fn of(row: &Row) -> Self {
        let (text, mut details) = (text(row), Box::new(details(row)));
        if row.attachments.is_empty() && details.runs.is_empty() {
            return Self { text, attachments: Vec::new(), details };
        }
        let mut left =
            CONTENT_BYTES_MAX.saturating_sub(DETAILS_BYTES_MAX).saturating_sub(escaped(&text));
        let attachments = fitting(listed(row), &mut left);
        details.runs = fitting(details.runs, &mut left);
        Self { text, attachments, details }
    }
}

/// Whether it has a text that somebody wrote.
pub(super) fn has_text(row: &Row) -> bool {
    row.text.chars().any(|c| !MARKS.contains(&c) && !c.is_whitespace())
}

/// Its text; empty for files and apps alone, U+FFFD for one that could not be read.
pub(super) fn text(row: &Row) -> String {
    if has_text(row) {
        let text =
            if row.shows_files() { row.text.replace('\u{fffc}', "") } else { row.text.clone() };
        cut(text, TEXT_BYTES_MAX)
    } else if row.flags.undecodable {
        // Somebody wrote something, and this is the character for what could not be read.
        char::REPLACEMENT_CHARACTER.to_string()
    } else {
        String::new()
    }
}

/// Its files.
pub(super) fn files(row: &Row) -> Vec<InboundAttachment> {
    let mut left = CONTENT_BYTES_MAX;
    fitting(listed(row), &mut left)
}

fn listed(row: &Row) -> Vec<InboundAttachment> {
    row.attachments.iter().take(FILES_MAX).map(file).collect()
}

/// What a text takes as JSON, at most: control characters take six bytes.
fn escaped(text: &str) -> usize {
    let long = |byte: &u8| *byte < b' ' || matches!(byte, b'"' | b'\\' | 0x7f);
    text.len().saturating_add(text.bytes().filter(long).count().saturating_mul(5))
}

/// What has texts of others in it, and a form as JSON.
trait Measured: Serialize {
    /// Bytes of its texts.
    fn text_bytes(&self) -> usize;
}

impl Measured for InboundAttachment {
    fn text_bytes(&self) -> usize {
        let named = [&self.name, &self.mime, &self.uti, &self.path, &self.description];
        self.guid.len() + named.into_iter().flatten().map(String::len).sum::<usize>()
    }
}

impl Measured for TextRun {
    fn text_bytes(&self) -> usize {
        self.kind.len() + self.value.as_ref().map_or(0, String::len)
    }
}

/// Those in front that fit into what is left. A line that is too long could never be told, and nothing after
/// it either; names, paths and mentions are others' words.
fn fitting<T: Measured>(all: Vec<T>, left: &mut usize) -> Vec<T> {
    // Nearly always all of them fit, even if each byte took six, and need not be written to be measured.
    let most = all.iter().fold(0_usize, |most, one| {
        most.saturating_add(one.text_bytes().saturating_mul(6)).saturating_add(FIELDS_BYTES_MAX)
    });
    if let Some(rest) = left.checked_sub(most) {
        *left = rest;
        return all;
    }
    all.into_iter()
        .map_while(|one| {
            // What cannot be written as JSON would not be told.
            let bytes = serde_json::to_vec(&one).ok()?.len().saturating_add(1);
            *left = left.checked_sub(bytes)?;
            Some(one)
        })
        .collect()
}

pub(super) fn file(file: &Attachment) -> InboundAttachment {
    let name = |name: &Option<String>| name.clone().map(|name| cut(name, NAME_BYTES_MAX));
    InboundAttachment {
        guid: cut(file.guid.clone(), NAME_BYTES_MAX),
        name: name(&file.name),
        mime: name(&file.mime),
        uti: name(&file.uti),
        bytes: file.bytes,
        complete: file.state == TransferState::Complete,
        state: file.state,
        path: file.filename.clone().map(|path| cut(path, PATH_BYTES_MAX)),
        part: file.part,
        position: file.position,
        sticker: file.sticker,
        emoji_image: file.emoji_image,
        description: name(&file.description),
    }
}

fn details(row: &Row) -> Details {
    let flags = row.flags;
    Details {
        subject: row.subject.clone().map(|subject| cut(subject, VALUE_BYTES_MAX)),
        runs: runs(row),
        parts: parts(row),
        reply_to: reply_to(row),
        effect: row.effect.as_deref().map(effect),
        app: row.app.as_deref().cloned(),
        preview: row.preview.as_deref().cloned(),
        audio: flags.audio,
        transcription: transcription(row),
        downgraded: row.status.was_downgraded,
        satellite: flags.satellite,
        sos: flags.sos,
        critical: flags.critical,
        spam: flags.spam,
        filter: filter(row),
        deleted: flags.deleted,
        to_self: flags.to_self,
        auto_reply: flags.auto_reply,
        undecodable: flags.undecodable,
        copy_of: None,
    }
}

/// Which stretch of the text is which part, counted in the text without its marks; nothing where all
/// of it is part 0.
fn parts(row: &Row) -> Vec<TextPart> {
    let mut parts: Vec<TextPart> = Vec::new();
    let (mut start, mut part) = (0_u32, 0_u32);
    for run in &row.runs {
        let text = row.text.get(run.bytes.clone()).unwrap_or_default();
        let shown = text.chars().filter(|c| *c != '\u{fffc}').count();
        let length = u32::try_from(shown).unwrap_or(u32::MAX);
        // Some runs have no number, such as traces of a shared photo: they go with what is before.
        let number = run.get(typedstream::MESSAGE_PART).and_then(Attribute::as_integer);
        part = number.and_then(|number| u32::try_from(number).ok()).unwrap_or(part);
        if length > 0 {
            let is_full = parts.len() >= RUNS_MAX;
            match parts.last_mut().filter(|last| last.part == part) {
                Some(last) => last.length = start.saturating_add(length).saturating_sub(last.start),
                None if is_full => break,
                None => parts.push(TextPart { part, start, length }),
            }
        }
        start = start.saturating_add(length);
    }
    if parts.iter().all(|stretch| stretch.part == 0) { Vec::new() } else { parts }
}

/// What attributes say about stretches of the text, counted in the text without its marks.
fn runs(row: &Row) -> Vec<TextRun> {
    let mut runs: Vec<TextRun> = Vec::new();
    let mut start = 0_u32;
    for run in &row.runs {
        let text = row.text.get(run.bytes.clone()).unwrap_or_default();
        let shown = text.chars().filter(|c| *c != '\u{fffc}').count();
        let length = u32::try_from(shown).unwrap_or(u32::MAX);
        if length > 0 {
            for (kind, value) in said(run, text) {
                let value = value.map(|value| cut(value, VALUE_BYTES_MAX));
                // Two neighbours that differ in something else say this together.
                let is_full = runs.len() >= RUNS_MAX;
                let earlier = runs.iter_mut().rev().find(|earlier| {
                    earlier.kind == kind
                        && earlier.value == value
                        && earlier.start.saturating_add(earlier.length) == start
                });
                if let Some(earlier) = earlier {
                    earlier.length = earlier.length.saturating_add(length);
                } else if !is_full {
                    runs.push(TextRun { start, length, kind: kind.to_owned(), value });
                }
            }
        }
        start = start.saturating_add(length);
    }
    runs
}

/// What one stretch is.
fn said(run: &Run, text: &str) -> Vec<(&'static str, Option<String>)> {
    let mut said = Vec::new();
    for (name, value) in run.attributes.iter() {
        let words = || value.as_str().map(str::to_owned);
        // A style that is switched off says nothing.
        let is_on = value.as_integer() != Some(0);
        let found = match &**name {
            typedstream::MENTION => ("mention", words()),
            typedstream::LINK => ("link", words()),
            // Its dictionary repeats the characters that it stands on.
            typedstream::ONE_TIME_CODE => ("one_time_code", Some(text.to_owned())),
            typedstream::CALENDAR_EVENT => ("date", None),
            typedstream::ADDRESS => ("address", None),
            typedstream::MONEY => ("money", None),
            typedstream::BOLD if is_on => ("bold", None),
            typedstream::ITALIC if is_on => ("italic", None),
            typedstream::UNDERLINE if is_on => ("underline", None),
            typedstream::STRIKETHROUGH if is_on => ("strikethrough", None),
            typedstream::ANIMATION if is_on => ("animation", value.as_integer().map(animation)),
            // Links are told as links.
            typedstream::DATA_DETECTED if run.get(typedstream::LINK).is_none() => {
                ("detected", None)
            }
            _ => continue,
        };
        said.push(found);
    }
    said
}

/// The names of animations; that these numbers stand for them is unverified.
fn animation(number: i64) -> String {
    match number {
        4 => "ripple",
        5 => "big",
        6 => "bloom",
        8 => "nod",
        9 => "shake",
        10 => "jitter",
        11 => "small",
        12 => "explode",
        _ => return number.to_string(),
    }
    .to_owned()
}

/// The originator of a thread; `reply_to_guid` is merely the message before this one.
fn reply_to(row: &Row) -> Option<ReplyTo> {
    let guid = row.thread_guid.clone()?;
    let part = row.thread_part.as_deref().and_then(|part| part.split(':').next());
    let part = part.and_then(|part| part.parse().ok()).unwrap_or(0);
    Some(ReplyTo { guid: cut(guid, NAME_BYTES_MAX), part })
}

/// `com.apple.messages.effect.CKConfettiEffect` → `confetti`.
fn effect(id: &str) -> String {
    let known = match id.rsplit('.').next().unwrap_or(id) {
        "impact" => "slam",
        "loud" => "loud",
        "gentle" => "gentle",
        "invisibleink" => "invisible_ink",
        "CKEchoEffect" => "echo",
        "CKSpotlightEffect" => "spotlight",
        "CKHappyBirthdayEffect" => "balloons",
        "CKConfettiEffect" => "confetti",
        "CKHeartEffect" => "heart",
        "CKLasersEffect" => "lasers",
        "CKFireworksEffect" => "fireworks",
        "CKSparklesEffect" => "sparkles",
        "CKShootingStarEffect" => "shooting_star",
        _ => return cut(id.to_owned(), NAME_BYTES_MAX),
    };
    known.to_owned()
}

fn transcription(row: &Row) -> Option<String> {
    row.runs
        .iter()
        .find_map(|run| run.get(typedstream::TRANSCRIPTION).and_then(Attribute::as_str))
        .map(|said| cut(said.to_owned(), TRANSCRIPTION_BYTES_MAX))
}

/// Where Messages' filters have put it. What is said of the message goes before what is said of its
/// chat.
fn filter(row: &Row) -> Option<String> {
    let of_chat = |chat: &Chat| {
        if chat.blocked {
            return Some("blocked".to_owned());
        }
        if chat.pending_review {
            return Some("pending_review".to_owned());
        }
        match chat.filtered {
            0 => None,
            1 => Some("unknown_sender".to_owned()),
            2 => Some("junk".to_owned()),
            other => Some(format!("filter_{other}")),
        }
    };
    match row.filter_action {
        2 => Some("junk".to_owned()),
        3 => Some("promotion".to_owned()),
        4 => Some("transaction".to_owned()),
        // 0 is unfiltered, 1 allowed.
        0 | 1 => match &row.place {
            Place::In(chat) => of_chat(chat),
            Place::Pending => None,
        },
        other => Some(format!("action_{other}")),
    }
}

/// At most so many bytes, cut between characters, with a mark that it was cut.
pub(super) fn cut(mut text: String, bytes: usize) -> String {
    if text.len() > bytes {
        text.truncate(text.floor_char_boundary(bytes.saturating_sub('…'.len_utf8())));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_file_or_run_takes_more_than_is_reckoned_for_its_texts() {
        // A control character takes six bytes. All fields are named, so that none is forgotten here.
        let bells = || "\u{7}".repeat(200);
        let file = InboundAttachment {
            guid: bells(),
            name: Some(bells()),
            mime: Some(bells()),
            uti: Some(bells()),
            bytes: u64::MAX,
            complete: false,
            state: TransferState::Downloading,
            path: Some(bells()),
            part: Some(u32::MAX),
            position: Some(u32::MAX),
            sticker: true,
            emoji_image: true,
            description: Some(bells()),
        };
        let run =
            TextRun { start: u32::MAX, length: u32::MAX, kind: bells(), value: Some(bells()) };
        let [written, reckoned] = [
            [serde_json::to_vec(&file).unwrap().len(), serde_json::to_vec(&run).unwrap().len()],
            [file.text_bytes(), run.text_bytes()].map(|texts| texts * 6 + FIELDS_BYTES_MAX),
        ];
        assert!(written[0] < reckoned[0] && written[1] < reckoned[1], "{written:?} {reckoned:?}");
    }
}
