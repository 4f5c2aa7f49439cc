//! Attachments: rows of their own, named in the text's runs, which is where their order stands.

use std::path::{Path, PathBuf};

use rusqlite::types::Value as Sql;

use super::{Author, Row, count};
use crate::typedstream::{self, AttributedText, Attributes, Value};

/// How far a file has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transfer {
    /// Not downloaded.
    Waiting,
    /// Downloading.
    Running,
    /// Complete.
    Complete,
    /// Failed.
    Failed,
}

impl Transfer {
    /// What stands in `transfer_state`. No public row confirms 6, a failure.
    pub const fn number(self) -> i64 {
        match self {
            Self::Waiting => 0,
            Self::Running => 3,
            Self::Complete => 5,
            Self::Failed => 6,
        }
    }
}

/// A row of `attachment` before it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// Its guid, such as `at_0_` and the guid of its message.
    pub guid: String,
    /// Where the file is: an absolute path, or one that begins with `~/Library/Messages`.
    pub path: PathBuf,
    /// The name that it was sent with.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// How far it has come.
    pub transfer: Transfer,
    /// Whether it is a sticker.
    pub sticker: bool,
    /// Hidden ones are not shown: previews of links.
    pub hidden: bool,
    /// What a drawn emoji shows, in words.
    pub shows: Option<String>,
}

/// Extension, uniform type identifier, MIME type.
const TYPES: [(&str, &str, &str); 16] = [
    ("jpg", "public.jpeg", "image/jpeg"),
    ("jpeg", "public.jpeg", "image/jpeg"),
    ("png", "public.png", "image/png"),
    ("gif", "com.compuserve.gif", "image/gif"),
    ("heic", "public.heic", "image/heic"),
    ("heics", "public.heics", "image/heic-sequence"),
    ("webp", "org.webmproject.webp", "image/webp"),
    ("mov", "com.apple.quicktime-movie", "video/quicktime"),
    ("mp4", "public.mpeg-4", "video/mp4"),
    ("caf", "com.apple.coreaudio-format", "audio/x-caf"),
    ("m4a", "com.apple.m4a-audio", "audio/x-m4a"),
    ("amr", "org.3gpp.adaptive-multi-rate-audio", "audio/amr"),
    ("pdf", "com.adobe.pdf", "application/pdf"),
    ("txt", "public.plain-text", "text/plain"),
    ("vcf", "public.vcard", "text/vcard"),
    ("zip", "public.zip-archive", "application/zip"),
];

impl Attachment {
    /// A complete file. Parts of a message give it its guid; see [`Parts`].
    pub fn new(path: impl Into<PathBuf>, bytes: u64) -> Self {
        let path = path.into();
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        Self {
            guid: super::new_guid(),
            path,
            name,
            bytes,
            transfer: Transfer::Complete,
            sticker: false,
            hidden: false,
            shows: None,
        }
    }

    /// The same as a sticker.
    #[must_use]
    pub fn sticker(mut self) -> Self {
        self.sticker = true;
        self
    }

    /// The same as a drawn emoji of this.
    #[must_use]
    pub fn showing(mut self, what: &str) -> Self {
        self.shows = Some(what.to_owned());
        self
    }

    /// The same, not downloaded yet.
    #[must_use]
    pub fn waiting(mut self) -> Self {
        self.transfer = Transfer::Waiting;
        self
    }

    /// Uniform type identifier and MIME type by its extension, if they are known.
    pub fn types(&self) -> Option<(&'static str, &'static str)> {
        let extension = Path::new(&self.name).extension()?.to_str()?;
        let found = TYPES.iter().find(|(known, _, _)| known.eq_ignore_ascii_case(extension));
        found.map(|(_, uti, mime)| (*uti, *mime))
    }

    pub(super) fn columns(&self, row: &Row) -> Vec<(&'static str, Sql)> {
        let text = |text: &str| Sql::Text(text.to_owned());
        let (uti, mime) =
            self.types().map_or((Sql::Null, Sql::Null), |(uti, mime)| (text(uti), text(mime)));
        // `created_date` has whole seconds in these columns.
        let seconds = row.date.0 / 1_000_000_000;
        vec![
            ("guid", text(&self.guid)),
            ("original_guid", text(&self.guid)),
            ("created_date", seconds.into()),
            ("start_date", seconds.into()),
            ("filename", text(&self.path.to_string_lossy())),
            ("uti", uti),
            ("mime_type", mime),
            ("transfer_state", self.transfer.number().into()),
            ("is_outgoing", i64::from(row.author == Author::Me).into()),
            ("transfer_name", text(&self.name)),
            ("total_bytes", i64::try_from(self.bytes).unwrap_or(i64::MAX).into()),
            ("is_sticker", i64::from(self.sticker).into()),
            ("hide_attachment", i64::from(self.hidden).into()),
            (
                "emoji_image_content_identifier",
                self.shows.as_ref().map_or(Sql::Null, |_| text(&self.guid)),
            ),
            ("emoji_image_short_description", self.shows.as_deref().map_or(Sql::Null, text)),
        ]
    }
}

/// A message in the making, part by part: texts and files in the order in which they are shown.
#[derive(Debug, Clone)]
pub struct Parts {
    guid: String,
    runs: Vec<(String, Attributes)>,
    next: i32,
    attachments: Vec<Attachment>,
}

impl Parts {
    /// The parts of the message of that guid.
    pub fn of(guid: &str) -> Self {
        Self { guid: guid.to_owned(), runs: Vec::new(), next: 0, attachments: Vec::new() }
    }

    /// And then this text in the part of what is before it.
    #[must_use]
    pub fn more_text(mut self, text: &str) -> Self {
        self.next = (self.next - 1).max(0);
        self.text(text)
    }

    /// And then this drawn emoji, in the part of the text before it: that is how public rows have it,
    /// and its guid does not name the part.
    #[must_use]
    pub fn emoji(mut self, drawn: Attachment) -> Self {
        self.next = (self.next - 1).max(0);
        let (_, part) = self.number();
        let file = (typedstream::FILE.to_owned(), Value::Text(drawn.guid.clone()));
        let image = (typedstream::EMOJI_IMAGE.to_owned(), Value::Number(1));
        self.runs.push((typedstream::ATTACHMENT_CHAR.to_string(), vec![image, file, part]));
        self.attachments.push(drawn);
        self
    }

    fn number(&mut self) -> (i32, (String, Value)) {
        let part = self.next;
        self.next += 1;
        (part, (typedstream::PART.to_owned(), Value::Number(part)))
    }

    /// And then this text.
    #[must_use]
    pub fn text(mut self, text: &str) -> Self {
        let (_, part) = self.number();
        self.runs.push((text.to_owned(), vec![part]));
        self
    }

    /// And then this text with its marks.
    #[must_use]
    pub fn attributed(mut self, text: &AttributedText) -> Self {
        let (_, part) = self.number();
        let units: Vec<u16> = text.text().encode_utf16().collect();
        let mut at = 0;
        for (len, attributes) in text.runs() {
            let slice = units.get(at..at + len).unwrap_or_default();
            let others = attributes.iter().filter(|(key, _)| key != typedstream::PART).cloned();
            let attributes = others.chain([part.clone()]).collect();
            self.runs.push((String::from_utf16_lossy(slice), attributes));
            at += len;
        }
        self
    }

    /// And then this file.
    #[must_use]
    pub fn file(self, attachment: Attachment) -> Self {
        self.file_with(attachment, None)
    }

    /// And then this recording, with what was said in it.
    #[must_use]
    pub fn recording(self, attachment: Attachment, said: &str) -> Self {
        let said = Value::Text(said.to_owned());
        self.file_with(attachment, Some((typedstream::TRANSCRIPTION.to_owned(), said)))
    }

    fn file_with(mut self, mut attachment: Attachment, more: Option<(String, Value)>) -> Self {
        let (number, part) = self.number();
        attachment.guid = format!("at_{number}_{}", self.guid);
        let file = (typedstream::FILE.to_owned(), Value::Text(attachment.guid.clone()));
        let mut attributes = vec![file, part];
        attributes.extend(more);
        self.runs.push((typedstream::ATTACHMENT_CHAR.to_string(), attributes));
        self.attachments.push(attachment);
        self
    }

    /// The text with its runs, and the attachments.
    pub fn finish(self) -> (AttributedText, Vec<Attachment>) {
        let runs: Vec<_> = self
            .runs
            .iter()
            .map(|(text, attributes)| (text.as_str(), attributes.clone()))
            .collect();
        (AttributedText::from_runs(&runs).mutable(), self.attachments)
    }
}

impl Row {
    /// The same with these parts, which must be of its guid. The rows of `attachment` are written
    /// in the opposite order, so that no reader can take theirs for the parts'.
    #[must_use]
    pub fn parts(self, parts: Parts) -> Self {
        let (text, mut attachments) = parts.finish();
        attachments.reverse();
        let mut row = self.body(text);
        row.attachments = attachments;
        row
    }

    /// The same as an audio message: one recording, with what was said in it.
    #[must_use]
    pub fn audio(self, recording: Attachment, said: &str) -> Self {
        let parts = Parts::of(&self.guid).recording(recording, said);
        self.parts(parts).with("is_audio_message", 1).with("is_expirable", 1)
    }

    /// The same as a sticker put on a part of another message.
    #[must_use]
    pub fn sticker_on(self, target: &super::reaction::Target, sticker: Attachment) -> Self {
        let parts = Parts::of(&self.guid).file(sticker.sticker());
        let row = self.parts(parts).with("associated_message_type", 1000);
        row.with("associated_message_guid", target.to_string())
            .with("associated_message_range_location", 0)
            .with("associated_message_range_length", count(1))
    }
}

/// The folder of a new attachment below `Attachments`: two levels of two digits and a guid.
pub fn folder(guid: &str) -> PathBuf {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, guid.as_bytes());
    let first = digest.as_ref().first().copied().unwrap_or_default();
    PathBuf::from(format!("{first:02x}"))
        .join(format!("{:02}", first & 0x0f))
        .join(super::new_guid())
}
