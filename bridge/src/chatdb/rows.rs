//! Rows of Apple's database as our own types.

use std::sync::Arc;

use protocol::pipe::{App, Conversation, ConversationKind, LinkPreview, TransferState};
use protocol::{Channel, UnixMs};

use super::book::Chat;
use super::cells::Cells;
use crate::payload::LINK_BALLOON;
use crate::summary::Summary;
use crate::typedstream::{self, Run};

/// 2001-01-01T00:00:00Z, from where Apple counts, in milliseconds since 1970.
const APPLE_EPOCH_MS: i64 = 978_307_200_000;
/// Dates from here on are nanoseconds (macOS 10.13 and later), smaller ones seconds. In nanoseconds
/// it is 17 minutes into 2001, in seconds the year 33,658.
const NANOSECONDS_FROM: i64 = 1_000_000_000_000;
/// 2100-01-01. Messages uses dates thousands of years ahead for "never".
const PLAUSIBLE_MS_MAX: i64 = 4_102_444_800_000;
/// `chat.style` of a group.
const STYLE_GROUP: i64 = 43;
/// Stands in the text for an attachment.
pub(super) const OBJECT_REPLACEMENT: char = '\u{fffc}';

/// A date of chat.db; none for 0, NULL, negative and "never".
pub fn apple_ms(date: i64) -> Option<UnixMs> {
    if date <= 0 {
        return None;
    }
    let since_2001 =
        if date >= NANOSECONDS_FROM { date / 1_000_000 } else { date.saturating_mul(1000) };
    let ms = since_2001.saturating_add(APPLE_EPOCH_MS);
    (ms <= PLAUSIBLE_MS_MAX).then_some(UnixMs(ms))
}

/// An instant as chat.db would write it: in nanoseconds, and in seconds as macOS 10.12 did. Never
/// below the smallest number that reads as nanoseconds.
pub(super) fn apple_dates(at: UnixMs) -> (i64, i64) {
    let ms = at.0.saturating_sub(APPLE_EPOCH_MS).max(0);
    (ms.saturating_mul(1_000_000).max(NANOSECONDS_FROM), ms / 1000)
}

/// The chat that a row belongs to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Place {
    /// Known.
    In(Arc<Chat>),
    /// The row is in no chat: its join has not been written yet, or was deleted, or it is a ghost.
    #[default]
    Pending,
}

impl Place {
    /// The conversation, where it is known.
    pub fn conversation(&self) -> Option<&Conversation> {
        match self {
            Self::In(chat) => Some(&chat.conversation),
            Self::Pending => None,
        }
    }
}

/// What may still change about a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "they are Apple's columns, each independent of the others"
)]
pub struct StatusBits {
    /// The service really used; none for one that we do not know.
    pub service: Option<Channel>,
    /// 0, or an `FZErrorType`; 22 is "not registered with iMessage".
    pub error: i64,
    /// `is_sent`.
    pub is_sent: bool,
    /// `is_delivered`.
    pub is_delivered: bool,
    /// `is_finished`.
    pub is_finished: bool,
    /// `is_read`: for own rows by the recipient, for inbound ones by ourselves.
    pub is_read: bool,
    /// Messages sent it as SMS instead.
    pub was_downgraded: bool,
    /// `date_delivered`.
    pub date_delivered: Option<UnixMs>,
    /// `date_read`.
    pub date_read: Option<UnixMs>,
}

impl StatusBits {
    /// From the nine status columns that begin at `at`.
    fn read(cells: &Cells<'_, '_>, at: usize) -> Self {
        Self {
            service: cells.channel(at),
            error: cells.integer(at + 1),
            is_sent: cells.flag(at + 2),
            is_delivered: cells.flag(at + 3),
            is_finished: cells.flag(at + 4),
            is_read: cells.flag(at + 5),
            was_downgraded: cells.flag(at + 6),
            date_delivered: apple_ms(cells.integer(at + 7)),
            date_read: apple_ms(cells.integer(at + 8)),
        }
    }
}

/// What Messages says about an own row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SendState {
    /// Which row.
    pub rowid: i64,
    /// Its guid.
    pub guid: String,
    /// What may change.
    pub status: StatusBits,
}

impl SendState {
    pub(super) fn read(cells: &Cells<'_, '_>) -> Self {
        Self {
            rowid: cells.integer(0),
            guid: cells.text(1).unwrap_or_default(),
            status: StatusBits::read(cells, 2),
        }
    }
}

/// A file that a row carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// Transfer guid; the text's runs refer to it.
    pub guid: String,
    /// `transfer_name`.
    pub name: Option<String>,
    /// `mime_type`.
    pub mime: Option<String>,
    /// `uti`.
    pub uti: Option<String>,
    /// `total_bytes`.
    pub bytes: u64,
    /// How far the file is.
    pub state: TransferState,
    /// Where Messages has it, `~` for the home directory.
    pub filename: Option<String>,
    /// `is_sticker`.
    pub sticker: bool,
    /// `hide_attachment`: not shown, such as the picture of a link's preview.
    pub hidden: bool,
    /// The part of the message that it is, where the text shows it.
    pub part: Option<u32>,
    /// Before which character of the text without its marks it stands.
    pub position: Option<u32>,
    /// It is a character of the text's: a drawn emoji.
    pub emoji_image: bool,
    /// `emoji_image_short_description`.
    pub description: Option<String>,
}

/// `attachment.transfer_state`: 0 not downloaded, 3 downloading, 5 complete. What lies between is on
/// its way; that larger numbers are failures is unverified.
pub(super) fn transfer_state(number: i64) -> TransferState {
    match number {
        5 => TransferState::Complete,
        1..=4 => TransferState::Downloading,
        6.. => TransferState::Failed,
        _ => TransferState::Pending,
    }
}

/// What columns say with a yes or no.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "they are Apple's columns, each independent of the others"
)]
pub struct Flags {
    /// `cache_has_attachments`.
    pub has_attachments: bool,
    /// `is_empty`; set for messages that were taken back on macOS 26.
    pub empty: bool,
    /// `is_system_message`.
    pub system: bool,
    /// `is_audio_message`.
    pub audio: bool,
    /// Sent or received by satellite: `is_stewie`, `sent_or_received_off_grid`,
    /// `is_pending_satellite_send`, or the service `iMessageLite`.
    pub satellite: bool,
    /// `is_sos`.
    pub sos: bool,
    /// `is_critical` or `is_time_sensitive`.
    pub critical: bool,
    /// `is_spam`.
    pub spam: bool,
    /// `is_auto_reply`.
    pub auto_reply: bool,
    /// It lies in Recently Deleted.
    pub deleted: bool,
    /// There is a body, and it could not be decoded.
    pub undecodable: bool,
    /// `destination_caller_id` is the other side's address: written to oneself.
    pub to_self: bool,
    /// `payload_data` is there.
    pub payload: bool,
}

/// A message.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Row {
    /// Number of the row.
    pub rowid: i64,
    /// Apple's id of the message.
    pub guid: String,
    /// Own.
    pub from_me: bool,
    /// When its sender sent it.
    pub at: Option<UnixMs>,
    /// The other side's address, as in `handle.id`. For own rows in a group, none.
    pub handle: Option<Arc<str>>,
    /// For changes of a group: whom it is about.
    pub other_handle: Option<Arc<str>>,
    /// Its chat.
    pub place: Place,
    /// For changes of a group: who is in it, the owner of the phone not counted.
    pub participants: Vec<Arc<str>>,
    /// The text, from `text` or `attributedBody`, with U+FFFC for each attachment; empty when there
    /// is none.
    pub text: String,
    /// What is said about stretches of the text; empty where nothing notable is said.
    pub runs: Vec<Run>,
    /// The subject line.
    pub subject: Option<String>,
    /// Its files, in the order in which the text shows them.
    pub attachments: Vec<Attachment>,
    /// 0 is a message; others are notices of the system.
    pub item_type: i64,
    /// With `item_type` 1 and 3: what happened.
    pub group_action: i64,
    /// With `item_type` 2: the new name.
    pub group_title: Option<String>,
    /// With `item_type` 4: whether sharing began (0) or ended.
    pub share_status: i64,
    /// `message_action_type`.
    pub message_action: i64,
    /// 0 for a message of its own; 2000 to 3999 are reactions.
    pub associated_type: i64,
    /// `p:0/GUID`, `bp:GUID` or a guid.
    pub associated_guid: Option<String>,
    /// The emoji of a reaction of type 2006 or 3006.
    pub associated_emoji: Option<String>,
    /// The app that it belongs to.
    pub balloon: Option<String>,
    /// What an app says in it.
    pub app: Option<Box<App>>,
    /// What Messages shows for its link.
    pub preview: Option<Box<LinkPreview>>,
    /// Guid of the message whose thread it answers.
    pub thread_guid: Option<String>,
    /// `part:start:length` of what is answered.
    pub thread_part: Option<String>,
    /// `expressive_send_style_id`.
    pub effect: Option<String>,
    /// `part_count`; 0 for a message that was taken back whole.
    pub part_count: Option<i64>,
    /// `date_edited`, set for edits and unsends, but not everywhere.
    pub edited_at: Option<UnixMs>,
    /// What became of its parts.
    pub summary: Summary,
    /// `filter_action`: 1 allow, 2 junk, 3 promotion, 4 transaction (macOS 27).
    pub filter_action: i64,
    /// Written by Send Later: `schedule_state`, 1 pending, 2 sent, 3 failed.
    pub schedule: Option<i64>,
    /// What columns say with a yes or no.
    pub flags: Flags,
    /// What may still change.
    pub status: StatusBits,
    /// Something is there of what most rows do not have.
    pub(super) is_rare: bool,
}

impl Row {
    /// Own, a plain message, and without text, files or chat.
    pub fn is_ghost(&self) -> bool {
        self.from_me
            && self.is_plain()
            && self.place == Place::Pending
            && self.visible_text().is_empty()
            && self.attachments.is_empty()
            && !self.flags.has_attachments
    }

    /// A message, not a notice of the system or a reaction.
    pub fn is_plain(&self) -> bool {
        self.item_type == 0 && self.associated_type == 0 && !self.flags.system
    }

    /// The text without the marks of attachments, and without space around it.
    pub fn visible_text(&self) -> String {
        if self.shows_files() {
            self.text.replace(OBJECT_REPLACEMENT, "").trim().to_owned()
        } else {
            self.text.trim().to_owned()
        }
    }

    /// Whether the text has a place for a file.
    pub fn shows_files(&self) -> bool {
        // Most texts do not have the first byte of the mark, which is seen faster than that they do not
        // have the whole character.
        memchr::memchr(0xef, self.text.as_bytes()).is_some()
            && self.text.contains(OBJECT_REPLACEMENT)
    }

    /// An app's message or a link's preview whose content has not been written yet: Messages may write
    /// the row first. Messages of an app that belong to an earlier one of their session are 2 and 3.
    pub fn awaits_payload(&self) -> bool {
        self.item_type == 0
            && matches!(self.associated_type, 0 | 2 | 3)
            && !self.flags.system
            && match self.balloon.as_deref() {
                Some(LINK_BALLOON) => self.preview.is_none(),
                Some(_) => !self.flags.payload,
                None => false,
            }
    }

    /// Files that the text shows or the row announces and that are not joined yet.
    pub fn missing_attachments(&self) -> bool {
        let shown =
            if self.shows_files() { self.text.matches(OBJECT_REPLACEMENT).count() } else { 0 };
        self.attachments.len() < shown.max(usize::from(self.flags.has_attachments))
    }

    /// Puts the files into the order of the text, by their transfer guids in its runs: the order of
    /// their rows says nothing. What the text does not show stays behind; what is hidden and not
    /// shown is left out.
    pub(super) fn order_attachments(&mut self) {
        if self.attachments.is_empty() {
            return;
        }
        let mut position = 0_u32;
        for run in &self.runs {
            let text = self.text.get(run.bytes.clone()).unwrap_or_default();
            if let Some(guid) =
                run.get(typedstream::FILE_TRANSFER_GUID).and_then(typedstream::Attribute::as_str)
                && let Some(file) = self.attachments.iter_mut().find(|file| file.guid == guid)
            {
                let part = run.get(typedstream::MESSAGE_PART);
                file.part = part
                    .and_then(typedstream::Attribute::as_integer)
                    .and_then(|part| u32::try_from(part).ok());
                file.position = Some(position);
                // Its number is 1 where it was seen: public rows have it on drawn emoji, Memoji and
                // stickers that were sent between characters, in the part of those characters.
                file.emoji_image |= run.get(typedstream::EMOJI_IMAGE).is_some();
            }
            let shown = text.chars().filter(|c| *c != OBJECT_REPLACEMENT).count();
            position = position.saturating_add(u32::try_from(shown).unwrap_or(u32::MAX));
        }
        self.attachments.retain(|file| !file.hidden || file.position.is_some());
        // Stable: files that the text does not show keep the order of their rows.
        self.attachments
            .sort_by_key(|file| (file.position.unwrap_or(u32::MAX), file.part.unwrap_or(u32::MAX)));
    }
}

/// A chat's guid (`iMessage;-;+1…`, `any;+;chat…`) as a conversation: the service in front says
/// nothing reliable since macOS 26.
pub fn chat_place(guid: &str, style: Option<i64>) -> Conversation {
    let mut parts = guid.splitn(3, ';');
    let (kind, id) = match (parts.next(), parts.next(), parts.next()) {
        (Some(_), Some("+"), Some(id)) => (ConversationKind::Group, id),
        (Some(_), Some("-"), Some(id)) => (ConversationKind::Direct, id),
        _ => (ConversationKind::Direct, guid),
    };
    let kind = if style == Some(STYLE_GROUP) { ConversationKind::Group } else { kind };
    let id = if id.contains('@') { id.to_ascii_lowercase() } else { id.to_owned() };
    Conversation { kind, id }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn dates_are_nanoseconds_or_seconds_and_never_bogus() {
        let ms = |date| apple_ms(date).map(|at| at.0);
        assert_eq!(ms(657_208_635_075_000_000), Some(1_635_515_835_075));
        assert_eq!(ms(657_208_635), Some(1_635_515_835_000));
        assert_eq!(ms(0), None);
        assert_eq!(ms(-1), None);
        assert_eq!(ms(i64::MIN), None);
        assert_eq!(ms(i64::MAX), None);
        assert_eq!(ms(64_092_211_200), None, "distantFuture");
    }

    #[test]
    fn chat_guids_lose_their_service() {
        let group = |id: &str| (ConversationKind::Group, id.to_owned());
        let direct = |id: &str| (ConversationKind::Direct, id.to_owned());
        for (guid, style, expected) in [
            ("iMessage;-;+12025550101", Some(45), direct("+12025550101")),
            ("SMS;-;+12025550101", Some(45), direct("+12025550101")),
            ("any;-;+12025550101", None, direct("+12025550101")),
            ("any;-;Anna@Example.org", Some(45), direct("anna@example.org")),
            ("iMessage;+;chat831", Some(43), group("chat831")),
            ("any;+;chat831", None, group("chat831")),
            ("any;-;chat831", Some(43), group("chat831")),
            ("any;-;urn:biz:1;2", Some(45), direct("urn:biz:1;2")),
            ("nonsense", None, direct("nonsense")),
            ("", None, direct("")),
        ] {
            let place = chat_place(guid, style);
            assert_eq!((place.kind, place.id), expected, "{guid}");
        }
    }

    proptest! {
        #[test]
        fn any_date_is_read_without_a_panic(date: i64) {
            if let Some(at) = apple_ms(date) {
                prop_assert!(at.0 > 0 && at.0 <= PLAUSIBLE_MS_MAX);
            }
        }
    }
}
