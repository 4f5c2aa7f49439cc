//! An export for people: one message a line, local time, conversation, author, text.
//!
//! ```text
//! 2026-11-22 13:30:16 +01:00  +12025550143  them  See you at eight [photo.jpg, image/jpeg]
//! 2026-11-22 13:31:02 +01:00  +12025550143  me  On my way
//! 2026-11-22 13:31:40 +01:00  group chat831  +12025550177  reacted with love to 5E1B…, part 0
//! ```
//!
//! The lines of a longer text stand below each other, indented. Everything that is not somebody's
//! text stands in square brackets.

use jiff::tz::{Offset, TimeZone};
use jiff::{Timestamp, ToSpan as _};
use protocol::UnixMs;
use protocol::pipe::{Conversation, ConversationKind, Details, Event, InboundAttachment};

use crate::inbound::{Own, OwnMessage, Told};
use crate::line::Progress;

/// Offsets of time zones change at quarters of an hour, if they do.
const QUARTER_MS: i64 = 15 * 60 * 1000;
const DAY_MS: i64 = 24 * 3_600_000;
const INDENT: &str = "    ";

/// Writes lines, and remembers what the last times had in common.
#[derive(Debug)]
pub(super) struct TextWriter {
    zone: TimeZone,
    /// A quarter of an hour (by number since 1970) with its offset in milliseconds and as text.
    quarter: Option<(i64, i64, String)>,
    /// A local day (by number since 1970) as text.
    day: Option<(i64, String)>,
}

impl TextWriter {
    /// In the time zone of this machine.
    pub(super) fn local() -> Self {
        Self::in_zone(TimeZone::system())
    }

    pub(super) fn in_zone(zone: TimeZone) -> Self {
        Self { zone, quarter: None, day: None }
    }

    /// Adds the lines of what is told; `place` is the conversation of its row, for what does not name
    /// one itself.
    pub(super) fn write(&mut self, out: &mut Vec<u8>, told: &Told, place: Option<&Conversation>) {
        match told {
            Told::Own(Own::Message(own)) => self.own(out, own),
            Told::Own(Own::Reaction(own)) => {
                self.head(out, own.at, own.conversation.as_ref(), "me");
                reaction(out, &own.kind, own.emoji.as_deref(), own.removed, &own.target, own.part);
                out.push(b'\n');
            }
            Told::Event(event) => self.event(out, event, place),
        }
    }

    fn own(&mut self, out: &mut Vec<u8>, own: &OwnMessage) {
        self.head(out, own.at, own.conversation.as_ref(), "me");
        content(out, &own.text, &own.attachments, &own.details);
        match Progress::of(own) {
            Progress::Scheduled => push(out, &[" [to be sent then]"]),
            Progress::Pending => push(out, &[" [not sent yet]"]),
            Progress::Failed => {
                push(out, &[" [not delivered, error ", &own.status.error.to_string(), "]"]);
            }
            Progress::Sent => {
                if let Some(at) = own.status.date_read {
                    push(out, &[" [read "]);
                    self.time(out, at);
                    out.push(b']');
                }
            }
        }
        out.push(b'\n');
    }

    fn event(&mut self, out: &mut Vec<u8>, event: &Event, place: Option<&Conversation>) {
        match event {
            Event::Received(received) => {
                let author = author(&received.conversation, received.from.address());
                self.head(out, received.at, Some(&received.conversation), author);
                content(out, &received.text, &received.attachments, &received.details);
                if received.late {
                    push(out, &[" [put in later]"]);
                }
            }
            Event::Reaction(it) => {
                let author = author(&it.conversation, it.from.address());
                self.head(out, it.at, Some(&it.conversation), author);
                reaction(out, &it.kind, it.emoji.as_deref(), it.removed, &it.target, it.part);
            }
            Event::Group(change) => {
                let by = change.by.as_ref().map_or("me", |by| by.address());
                self.head(out, change.at, Some(&change.conversation), by);
                push(out, &["[group: ", &change.change]);
                if let Some(subject) = &change.subject {
                    push(out, &[" ", subject]);
                }
                out.push(b']');
            }
            Event::Notice(notice) => {
                let from = notice.from.as_ref().map_or("me", |from| from.address());
                self.head(out, notice.at, Some(&notice.conversation), from);
                push(out, &["[", &notice.kind, "]"]);
            }
            Event::UnknownKind(kind) => {
                let from = kind.from.as_ref().map_or("me", |from| from.address());
                self.head(out, kind.at, kind.conversation.as_ref(), from);
                indented(out, &kind.text);
                if !kind.text.is_empty() {
                    out.push(b' ');
                }
                let numbers = [
                    kind.item_type,
                    kind.group_action_type,
                    kind.associated_message_type,
                    kind.message_action_type,
                ];
                push(out, &["[unknown kind"]);
                for number in numbers {
                    push(out, &[" ", &number.to_string()]);
                }
                out.push(b']');
            }
            Event::Edited(edited) => {
                self.head(out, edited.at, place, if edited.from_me { "me" } else { "them" });
                push(out, &["[edited ", &edited.guid, ", part ", &edited.part.to_string(), "] "]);
                for version in edited.history.iter().take(edited.history.len().saturating_sub(1)) {
                    indented(out, &version.text);
                    push(out, &[" → "]);
                }
                indented(out, &edited.text);
            }
            Event::Unsent(unsent) => {
                self.head(out, unsent.at, place, if unsent.from_me { "me" } else { "them" });
                push(out, &["[took back ", &unsent.guid]);
                for part in &unsent.parts {
                    push(out, &[", part ", &part.to_string()]);
                }
                out.push(b']');
            }
            Event::Attachment(change) => {
                self.head(out, change.at, place, "them");
                push(out, &["[file of ", &change.message, "] "]);
                file(out, &change.attachment);
            }
            Event::Preview(change) => {
                self.head(out, change.at, place, "them");
                push(out, &["[preview of ", &change.message, ": ", &change.preview.url]);
                if let Some(title) = &change.preview.title {
                    push(out, &[", ", title]);
                }
                out.push(b']');
            }
            // What our own sends and phones say is not in a database.
            Event::Accepted(_)
            | Event::Refused(_)
            | Event::Started { .. }
            | Event::Fallback { .. }
            | Event::Sent { .. }
            | Event::Delivered(_)
            | Event::Read(_)
            | Event::Failed(_)
            | Event::Unknown(_)
            | Event::Canceled(_)
            | Event::Expired(_)
            | Event::Capability(_)
            | Event::Resync { .. }
            | Event::Account { .. }
            | Event::Other(_) => return,
        }
        out.push(b'\n');
    }

    fn head(
        &mut self,
        out: &mut Vec<u8>,
        at: UnixMs,
        conversation: Option<&Conversation>,
        author: &str,
    ) {
        self.time(out, at);
        push(out, &["  "]);
        match conversation {
            Some(place) => {
                if place.kind == ConversationKind::Group {
                    push(out, &["group "]);
                }
                line_of(out, &place.id);
            }
            None => push(out, &["-"]),
        }
        push(out, &["  "]);
        line_of(out, author);
        push(out, &["  "]);
    }

    fn time(&mut self, out: &mut Vec<u8>, at: UnixMs) {
        let quarter = at.0.div_euclid(QUARTER_MS);
        if self.quarter.as_ref().is_none_or(|(known, _, _)| *known != quarter) {
            let offset = Timestamp::from_millisecond(at.0)
                .map_or(Offset::UTC, |time| self.zone.to_offset(time));
            let seconds = i64::from(offset.seconds());
            let (sign, minutes) =
                if seconds < 0 { ('-', -seconds / 60) } else { ('+', seconds / 60) };
            let text = format!(" {sign}{:02}:{:02}", minutes / 60, minutes % 60);
            self.quarter = Some((quarter, seconds * 1000, text));
        }
        let shift = self.quarter.as_ref().map_or(0, |(_, shift, _)| *shift);
        let local = at.0.saturating_add(shift);
        let day = local.div_euclid(DAY_MS);
        if self.day.as_ref().is_none_or(|(known, _)| *known != day) {
            let date = jiff::civil::date(1970, 1, 1)
                .checked_add(day.days())
                .map_or_else(|_| day.to_string(), |date| date.to_string());
            self.day = Some((day, date));
        }
        if let Some((_, date)) = &self.day {
            push(out, &[date, " "]);
        }
        let second = local.rem_euclid(DAY_MS) / 1000;
        two(out, second / 3600);
        out.push(b':');
        two(out, second / 60 % 60);
        out.push(b':');
        two(out, second % 60);
        if let Some((_, _, offset)) = &self.quarter {
            push(out, &[offset]);
        }
    }
}

/// A number below 100 with two digits.
fn two(out: &mut Vec<u8>, number: i64) {
    let digit = |digit: i64| b'0'.saturating_add(u8::try_from(digit % 10).unwrap_or(0));
    out.extend([digit(number / 10), digit(number)]);
}

fn push(out: &mut Vec<u8>, words: &[&str]) {
    for word in words {
        out.extend_from_slice(word.as_bytes());
    }
}

/// In a conversation with one other side, that is who writes.
fn author<'a>(conversation: &Conversation, from: &'a str) -> &'a str {
    if conversation.kind == ConversationKind::Direct && conversation.id.eq_ignore_ascii_case(from) {
        "them"
    } else {
        from
    }
}

/// A word that must stay on its line.
fn line_of(out: &mut Vec<u8>, word: &str) {
    // Without a way out of the loop, sixteen bytes are looked at together.
    if !word.bytes().fold(false, |any, byte| any | byte.is_ascii_control()) {
        return push(out, &[word]);
    }
    out.extend(word.bytes().map(|byte| if byte.is_ascii_control() { b' ' } else { byte }));
}

/// A text whose further lines are indented, so that a line that begins with a time is a message.
fn indented(out: &mut Vec<u8>, text: &str) {
    let text = text.trim_end();
    // Most texts are one line, which is seen at a glance. U+2028 and U+2029 begin with this byte.
    if memchr::memchr3(b'\n', b'\r', 0xe2, text.as_bytes()).is_none() {
        return push(out, &[text]);
    }
    let mut lines = text.split(['\n', '\r', '\u{2028}', '\u{2029}']);
    if let Some(first) = lines.next() {
        push(out, &[first]);
    }
    for line in lines {
        push(out, &["\n", INDENT, line]);
    }
}

fn content(out: &mut Vec<u8>, text: &str, files: &[InboundAttachment], details: &Details) {
    if let Some(subject) = &details.subject {
        push(out, &["[subject: "]);
        line_of(out, subject);
        push(out, &["] "]);
    }
    if let Some(reply) = &details.reply_to {
        push(out, &["[answer to ", &reply.guid, ", part ", &reply.part.to_string(), "] "]);
    }
    indented(out, text);
    for attachment in files {
        out.push(b' ');
        file(out, attachment);
    }
    let mut bracket = |words: &[&str]| {
        push(out, &[" ["]);
        for word in words {
            line_of(out, word);
        }
        out.push(b']');
    };
    if let Some(app) = &details.app {
        bracket(&["app: ", app.name.as_deref().unwrap_or(&app.id)]);
        if let Some(caption) = &app.caption {
            bracket(&[caption]);
        }
    }
    if let Some(preview) = &details.preview {
        bracket(&["link: ", preview.title.as_deref().unwrap_or(&preview.url)]);
    }
    if let Some(said) = &details.transcription {
        bracket(&["said: ", said]);
    }
    if let Some(effect) = &details.effect {
        bracket(&["effect: ", effect]);
    }
    if let Some(filter) = &details.filter {
        bracket(&["filter: ", filter]);
    }
    for (is, word) in [
        (details.downgraded, "sent as SMS instead"),
        (details.satellite, "by satellite"),
        (details.sos, "emergency"),
        (details.spam, "spam"),
        (details.deleted, "deleted"),
        (details.undecodable, "could not be read"),
    ] {
        if is {
            bracket(&[word]);
        }
    }
}

fn file(out: &mut Vec<u8>, file: &InboundAttachment) {
    out.push(b'[');
    if let Some(shows) = file.description.as_ref().filter(|_| file.emoji_image) {
        push(out, &["emoji: "]);
        line_of(out, shows);
        push(out, &[", "]);
    }
    line_of(out, file.name.as_deref().unwrap_or("file"));
    if let Some(mime) = &file.mime {
        push(out, &[", "]);
        line_of(out, mime);
    }
    if !file.complete {
        push(out, &[", not here"]);
    }
    out.push(b']');
}

fn reaction(
    out: &mut Vec<u8>,
    kind: &str,
    emoji: Option<&str>,
    removed: bool,
    target: &str,
    part: u32,
) {
    let what = emoji.unwrap_or(kind);
    let verb = if removed { "took back " } else { "reacted with " };
    push(out, &["[", verb]);
    line_of(out, what);
    push(out, &[" to "]);
    line_of(out, target);
    push(out, &[", part ", &part.to_string(), "]"]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chatdb::StatusBits;
    use crate::inbound::OwnReaction;

    #[test]
    fn times_are_local_and_say_by_how_much() {
        let zone = TimeZone::get("Europe/Berlin").unwrap_or(TimeZone::fixed(jiff::tz::offset(1)));
        let mut text = TextWriter::in_zone(zone);
        let mut time = |at: &str| {
            let mut out = Vec::new();
            text.time(&mut out, at.parse().unwrap());
            String::from_utf8(out).unwrap()
        };
        assert_eq!(time("2026-11-22T12:30:16Z"), "2026-11-22 13:30:16 +01:00");
        assert_eq!(time("2026-11-22T23:59:59.900Z"), "2026-11-23 00:59:59 +01:00");
        assert_eq!(time("1969-12-31T23:00:00Z"), "1970-01-01 00:00:00 +01:00");
        let mut text = TextWriter::in_zone(TimeZone::fixed(Offset::from_seconds(-12_600).unwrap()));
        let mut out = Vec::new();
        text.time(&mut out, UnixMs(0));
        assert_eq!(String::from_utf8(out).unwrap(), "1969-12-31 20:30:00 -03:30");
    }

    fn own(text: &str, status: StatusBits, schedule: Option<i64>) -> Told {
        Told::Own(Own::Message(OwnMessage {
            rowid: 7,
            guid: "OWN".to_owned(),
            conversation: Some(Conversation {
                kind: ConversationKind::Direct,
                id: "+12025550143".to_owned(),
            }),
            text: text.to_owned(),
            attachments: Vec::new(),
            at: UnixMs(1_763_812_800_000),
            late: false,
            schedule,
            status,
            details: Box::default(),
        }))
    }

    /// One of every kind: the protocol's examples of what a database can tell, and own rows. What
    /// people read changes only where a review sees it; `UPDATE_GOLDEN=1` writes the file anew.
    #[test]
    fn every_kind_reads_as_it_did() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut text = TextWriter::in_zone(TimeZone::fixed(jiff::tz::offset(1)));
        let mut out = Vec::new();
        let place = Conversation { kind: ConversationKind::Group, id: "chat831".to_owned() };
        let kinds = [
            "received",
            "reaction",
            "edited",
            "unsent",
            "attachment",
            "preview",
            "group",
            "notice",
            "unknown_kind",
        ];
        for kind in kinds {
            let example = root.join(format!("../protocol/tests/golden/pipe/up_event_{kind}.json"));
            let example = std::fs::read_to_string(example).unwrap();
            let protocol::pipe::Up::Event(line) = protocol::pipe::parse_up(&example).unwrap()
            else {
                panic!("{kind} is no event");
            };
            let before = out.len();
            text.write(&mut out, &Told::Event(line.event), Some(&place));
            assert!(out.len() > before, "{kind} says nothing");
        }
        let sent = StatusBits { is_sent: true, ..StatusBits::default() };
        let read = StatusBits { date_read: Some(UnixMs(1_763_812_860_000)), ..sent };
        let failed = StatusBits { error: 22, ..StatusBits::default() };
        for told in [
            own("sent\nin two lines", sent, None),
            own("read", read, None),
            own("on its way", StatusBits::default(), None),
            own("failed", failed, None),
            own("later", StatusBits::default(), Some(1)),
            Told::Own(Own::Reaction(OwnReaction {
                rowid: 8,
                guid: "OWN2".to_owned(),
                conversation: None,
                target: "THEIRS".to_owned(),
                part: 1,
                kind: "emoji".to_owned(),
                emoji: Some("🎉".to_owned()),
                attachments: Vec::new(),
                removed: true,
                at: UnixMs(1_763_812_800_000),
                late: false,
            })),
        ] {
            text.write(&mut out, &told, None);
        }
        let written = String::from_utf8(out).unwrap();
        let golden = root.join("tests/data/export.txt");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&golden, &written).unwrap();
        }
        assert_eq!(written, std::fs::read_to_string(golden).unwrap());
    }

    #[test]
    fn only_a_message_begins_a_line() {
        let mut out = Vec::new();
        indented(&mut out, "one\n2026-11-22 13:30:16\rthree\n");
        assert_eq!(String::from_utf8(out).unwrap(), "one\n    2026-11-22 13:30:16\n    three");
        for (text, lines) in [
            ("one \u{2713} line ", "one \u{2713} line"),
            ("one\u{2028}two\u{2029}three", "one\n    two\n    three"),
            ("", ""),
        ] {
            let mut out = Vec::new();
            indented(&mut out, text);
            assert_eq!(String::from_utf8(out).unwrap(), lines);
        }
    }
}
