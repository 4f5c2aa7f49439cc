//! Rows of Apple's database as our own types.

use std::borrow::Cow;
use std::sync::Arc;

use protocol::pipe::{App, Conversation, ConversationKind, LinkPreview, TransferState};
use protocol::{Channel, UnixMs};
use rusqlite::types::ValueRef;

use super::book::{Book, Chat, Pages};
use super::schema::{at, bit, flag};
use crate::payload::{self, LINK_BALLOON};
use crate::summary::{self, Summary};
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

/// The columns of a row, read leniently: a NULL or a value of another type is the type's zero.
/// Apple's columns are not ours to be strict about.
pub(super) struct Cells<'r, 's> {
    row: &'r rusqlite::Row<'s>,
    /// What stands from [`at::FIRST_RARE`] on, where a row of messages has anything there.
    rare: Option<&'r rusqlite::Row<'s>>,
}

impl<'r, 's> Cells<'r, 's> {
    pub(super) fn of(row: &'r rusqlite::Row<'s>) -> Self {
        Self { row, rare: None }
    }

    /// Of a row query, with what the query after rare columns has found.
    pub(super) fn with_rare(self, rare: Option<&'r rusqlite::Row<'s>>) -> Self {
        Self { rare, ..self }
    }

    pub(super) fn value(&self, at: usize) -> ValueRef<'r> {
        let cell = match at.checked_sub(at::FIRST_RARE) {
            None => self.row.get_ref(at),
            Some(at) => match self.rare {
                Some(rare) => rare.get_ref(at),
                None => return ValueRef::Null,
            },
        };
        cell.unwrap_or(ValueRef::Null)
    }

    pub(super) fn integer(&self, at: usize) -> i64 {
        match self.value(at) {
            ValueRef::Integer(number) => number,
            ValueRef::Null | ValueRef::Real(_) | ValueRef::Text(_) | ValueRef::Blob(_) => 0,
        }
    }

    pub(super) fn flag(&self, at: usize) -> bool {
        self.integer(at) != 0
    }

    pub(super) fn text(&self, at: usize) -> Option<String> {
        match self.value(at) {
            ValueRef::Text(bytes) => Some(text_of(bytes).into_owned()),
            ValueRef::Null | ValueRef::Integer(_) | ValueRef::Real(_) | ValueRef::Blob(_) => None,
        }
    }

    pub(super) fn filled(&self, at: usize) -> Option<String> {
        self.text(at).filter(|text| !text.is_empty())
    }

    pub(super) fn blob(&self, at: usize) -> Option<&'r [u8]> {
        match self.value(at) {
            ValueRef::Blob(bytes) => Some(bytes),
            ValueRef::Null | ValueRef::Integer(_) | ValueRef::Real(_) | ValueRef::Text(_) => None,
        }
    }

    /// A number, told apart from NULL.
    pub(super) fn number(&self, at: usize) -> Option<i64> {
        match self.value(at) {
            ValueRef::Integer(number) => Some(number),
            ValueRef::Null | ValueRef::Real(_) | ValueRef::Text(_) | ValueRef::Blob(_) => None,
        }
    }

    /// A text as it stands.
    fn bytes(&self, at: usize) -> Option<&'r [u8]> {
        match self.value(at) {
            ValueRef::Text(bytes) => Some(bytes),
            ValueRef::Null | ValueRef::Integer(_) | ValueRef::Real(_) | ValueRef::Blob(_) => None,
        }
    }

    fn channel(&self, at: usize) -> Option<Channel> {
        match self.value(at) {
            ValueRef::Text(bytes) => str::from_utf8(bytes).ok().and_then(Channel::of_service),
            ValueRef::Null | ValueRef::Integer(_) | ValueRef::Real(_) | ValueRef::Blob(_) => None,
        }
    }
}

/// A text, with U+FFFD for what is not UTF-8. Looking at all of it first is several times faster than
/// looking for what does not fit.
fn text_of(bytes: &[u8]) -> Cow<'_, str> {
    match str::from_utf8(bytes) {
        Ok(text) => Cow::Borrowed(text),
        Err(_) => String::from_utf8_lossy(bytes),
    }
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
fn transfer_state(number: i64) -> TransferState {
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
    is_rare: bool,
}

/// Rows as they were read: numbers, and the bytes of their texts and blobs, which nobody has looked
/// at yet. All bytes of a batch lie in one buffer, so that reading a row allocates nothing, and a
/// batch is made on one thread, looked at on another and used again by the first.
#[derive(Debug, Default)]
pub struct RawRows {
    rows: Vec<RawRow>,
    rares: Vec<RawRare>,
    bytes: Vec<u8>,
    files: Vec<(i64, Attachment)>,
    /// Whose places the rows have.
    pages: Option<Pages>,
}

/// A stretch of a batch's bytes; an empty one is none.
#[derive(Debug, Clone, Copy, Default)]
struct Span {
    start: usize,
    length: usize,
}

#[derive(Debug)]
struct RawRow {
    rowid: i64,
    from_me: bool,
    at: Option<UnixMs>,
    /// Places in the book.
    handle: Option<usize>,
    chat: Option<usize>,
    part_count: Option<i64>,
    flags: Flags,
    status: StatusBits,
    guid: Span,
    text: Span,
    body: Span,
    summary: Span,
    /// Place of what most rows do not have: they are handed from thread to thread without it.
    rare: Option<usize>,
}

/// What most rows do not have.
#[derive(Debug, Default)]
struct RawRare {
    /// Place among the book's addresses.
    other_handle: Option<usize>,
    participants: Vec<Arc<str>>,
    item_type: i64,
    group_action: i64,
    share_status: i64,
    message_action: i64,
    associated_type: i64,
    edited_at: Option<UnixMs>,
    filter_action: i64,
    schedule: Option<i64>,
    subject: Span,
    group_title: Span,
    associated_guid: Span,
    associated_emoji: Span,
    balloon: Span,
    payload: Span,
    thread_guid: Span,
    thread_part: Span,
    effect: Span,
}

/// How iMessage over a satellite stands in `message.service`.
const SATELLITE_SERVICE: &[u8] = b"iMessageLite";

impl RawRows {
    /// Forgets the rows and keeps the room.
    pub fn clear(&mut self) {
        self.rows.clear();
        self.rares.clear();
        self.bytes.clear();
        self.files.clear();
        self.pages = None;
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The number of the last row.
    pub fn last_rowid(&self) -> Option<i64> {
        self.rows.last().map(|row| row.rowid)
    }

    /// The number of the first row.
    pub fn first_rowid(&self) -> Option<i64> {
        self.rows.first().map(|row| row.rowid)
    }

    pub(super) fn reverse(&mut self) {
        self.rows.reverse();
    }

    pub(super) fn rowids(&self) -> impl Iterator<Item = i64> {
        self.rows.iter().map(|row| row.rowid)
    }

    fn keep(&mut self, bytes: Option<&[u8]>) -> Span {
        let Some(bytes) = bytes else { return Span::default() };
        let span = Span { start: self.bytes.len(), length: bytes.len() };
        self.bytes.extend_from_slice(bytes);
        span
    }

    pub(super) fn push(
        &mut self,
        cells: &Cells<'_, '_>,
        book: &mut Book<'_>,
    ) -> rusqlite::Result<()> {
        let bits = cells.integer(at::BITS);
        let says = |bit: i64| bits & bit != 0;
        let (service, lite) = match cells.bytes(at::SERVICE) {
            Some(service) => (
                str::from_utf8(service).ok().and_then(Channel::of_service),
                service.eq_ignore_ascii_case(SATELLITE_SERVICE),
            ),
            None => (None, false),
        };
        let handle = book.handle(cells.integer(at::HANDLE))?;
        let to_self = match (book.pages().handle(handle), cells.bytes(at::CALLER)) {
            (Some(handle), Some(caller)) => handle.as_bytes() == caller,
            (Some(_) | None, _) => false,
        };
        let mut row = RawRow {
            rowid: cells.integer(at::ROWID),
            from_me: says(bit::FROM_ME),
            at: apple_ms(cells.integer(at::DATE)),
            handle,
            chat: None,
            part_count: cells.number(at::PART_COUNT),
            flags: Flags {
                has_attachments: says(bit::HAS_ATTACHMENTS),
                satellite: lite,
                to_self,
                ..Flags::default()
            },
            status: StatusBits {
                service,
                is_sent: says(bit::IS_SENT),
                is_delivered: says(bit::IS_DELIVERED),
                is_finished: says(bit::IS_FINISHED),
                is_read: says(bit::IS_READ),
                date_delivered: apple_ms(cells.integer(at::DATE_DELIVERED)),
                date_read: apple_ms(cells.integer(at::DATE_READ)),
                ..StatusBits::default()
            },
            guid: self.keep(cells.bytes(at::GUID)),
            text: self.keep(cells.bytes(at::TEXT)),
            body: self.keep(cells.blob(at::BODY)),
            summary: self.keep(cells.blob(at::SUMMARY)),
            rare: None,
        };
        if cells.rare.is_some() {
            row.rare = Some(self.rares.len());
            self.push_rare(&mut row, cells, book)?;
        }
        self.rows.push(row);
        Ok(())
    }

    fn push_rare(
        &mut self,
        row: &mut RawRow,
        cells: &Cells<'_, '_>,
        book: &mut Book<'_>,
    ) -> rusqlite::Result<()> {
        let bits = cells.integer(at::FLAGS);
        let says = |flag: i64| bits & flag != 0;
        row.status.error = cells.integer(at::ERROR);
        row.status.was_downgraded = says(flag::WAS_DOWNGRADED);
        let flags = &mut row.flags;
        flags.empty = says(flag::IS_EMPTY);
        flags.system = says(flag::IS_SYSTEM);
        flags.audio = says(flag::IS_AUDIO);
        flags.satellite |= says(flag::IS_STEWIE | flag::OFF_GRID | flag::PENDING_SATELLITE);
        flags.sos = says(flag::IS_SOS);
        flags.critical = says(flag::IS_CRITICAL | flag::TIME_SENSITIVE);
        flags.spam = says(flag::IS_SPAM);
        flags.auto_reply = says(flag::AUTO_REPLY);
        let rare = RawRare {
            other_handle: book.handle(cells.integer(at::OTHER_HANDLE))?,
            participants: Vec::new(),
            item_type: cells.integer(at::ITEM_TYPE),
            group_action: cells.integer(at::GROUP_ACTION),
            share_status: cells.integer(at::SHARE_STATUS),
            message_action: cells.integer(at::MESSAGE_ACTION),
            associated_type: cells.integer(at::ASSOCIATED_TYPE),
            edited_at: apple_ms(cells.integer(at::DATE_EDITED)),
            filter_action: cells.integer(at::FILTER_ACTION),
            // 2 is Send Later, and 1 was seen on such rows: neither is sent before its date.
            schedule: says(flag::SCHEDULE_TYPE).then(|| cells.integer(at::SCHEDULE_STATE)),
            subject: self.keep(cells.bytes(at::SUBJECT)),
            group_title: self.keep(cells.bytes(at::GROUP_TITLE)),
            associated_guid: self.keep(cells.bytes(at::ASSOCIATED_GUID)),
            associated_emoji: self.keep(cells.bytes(at::ASSOCIATED_EMOJI)),
            balloon: self.keep(cells.bytes(at::BALLOON)),
            payload: self.keep(cells.blob(at::PAYLOAD)),
            thread_guid: self.keep(cells.bytes(at::THREAD_GUID)),
            thread_part: self.keep(cells.bytes(at::THREAD_PART)),
            effect: self.keep(cells.bytes(at::EFFECT)),
        };
        row.flags.payload = rare.balloon.length > 0 && rare.payload.length > 0;
        self.rares.push(rare);
        Ok(())
    }

    /// Sets the chat of each row. Rows come in the order of rowid, joins in any.
    pub(super) fn place(
        &mut self,
        book: &mut Book<'_>,
        joins: &mut rusqlite::Rows<'_>,
        deleted: bool,
    ) -> rusqlite::Result<()> {
        let mut at = 0_usize;
        while let Some(join) = joins.next()? {
            let cells = Cells::of(join);
            let (rowid, chat) = (cells.integer(0), cells.integer(1));
            // Joins mostly come in the order of the rows as well: look at the next place first.
            let place = match self.rows.get(at) {
                Some(row) if row.rowid == rowid => Some(at),
                Some(_) | None => self.rows.binary_search_by_key(&rowid, |row| row.rowid).ok(),
            };
            let Some(place) = place else { continue };
            at = place + 1;
            if let Some(row) = self.rows.get_mut(place)
                && row.chat.is_none()
            {
                row.chat = book.chat(chat)?;
                row.flags.deleted = deleted && row.chat.is_some();
            }
        }
        Ok(())
    }

    /// The rows that are in no chat.
    pub(super) fn pending(&self) -> Vec<i64> {
        self.rows.iter().filter(|row| row.chat.is_none()).map(|row| row.rowid).collect()
    }

    /// Looks up who is in the chats of which a row tells a change.
    pub(super) fn add_participants(&mut self, book: &mut Book<'_>) -> rusqlite::Result<()> {
        for row in &self.rows {
            if let Some(rare) = row.rare.and_then(|place| self.rares.get_mut(place))
                && rare.item_type != 0
                && let Some(chat) = row.chat
            {
                rare.participants = book.participants(chat)?;
            }
        }
        Ok(())
    }

    /// Nothing more is looked up for these rows.
    pub(super) fn close(&mut self, book: &Book<'_>) {
        self.pages = Some(book.pages().clone());
    }

    /// A file, in the order of the rows.
    pub(super) fn attach(&mut self, cells: &Cells<'_, '_>) {
        let file = Attachment {
            guid: cells.text(1).unwrap_or_default(),
            name: cells.filled(2),
            mime: cells.filled(3),
            uti: cells.filled(4),
            bytes: u64::try_from(cells.integer(5)).unwrap_or(0),
            state: transfer_state(cells.integer(6)),
            filename: cells.filled(7),
            sticker: cells.flag(8),
            hidden: cells.flag(9),
            part: None,
            position: None,
            emoji_image: cells.filled(11).is_some(),
            description: cells.filled(10),
        };
        self.files.push((cells.integer(0), file));
    }

    /// Looks at everything, and forgets it.
    pub fn decode(&mut self) -> Vec<Row> {
        let mut decoded = Vec::new();
        self.decode_into(&mut decoded);
        decoded
    }

    /// The same in place of what is there: a batch after the other in the same memory.
    pub fn decode_into(&mut self, decoded: &mut Vec<Row>) {
        let Self { rows, rares, bytes, files, pages } = self;
        let pages = pages.take().unwrap_or_default();
        let mut files = files.drain(..).peekable();
        decoded.resize_with(rows.len(), Row::default);
        for (raw, row) in rows.drain(..).zip(decoded) {
            let rowid = raw.rowid;
            while files.next_if(|(message, _)| *message < rowid).is_some() {}
            empty(&mut row.attachments);
            while let Some((_, file)) = files.next_if(|(message, _)| *message == rowid) {
                row.attachments.push(file);
            }
            row.place = match pages.chat(raw.chat) {
                Some(chat) => Place::In(Arc::clone(chat)),
                None => Place::Pending,
            };
            row.handle = pages.handle(raw.handle).map(Arc::clone);
            match raw.rare.and_then(|place| rares.get_mut(place)) {
                Some(rare) => {
                    let rare = std::mem::take(rare);
                    row.other_handle = pages.handle(rare.other_handle).map(Arc::clone);
                    row.set_rare(rare, bytes);
                    row.is_rare = true;
                }
                None if row.is_rare => row.clear_rare(),
                None => {}
            }
            raw.decode_into(row, bytes);
        }
        drop(files);
        self.clear();
    }
}

impl Span {
    fn of(self, bytes: &[u8]) -> &[u8] {
        bytes.get(self.start..self.start.saturating_add(self.length)).unwrap_or_default()
    }

    fn filled(self, bytes: &[u8]) -> Option<String> {
        (self.length > 0).then(|| text_of(self.of(bytes)).into_owned())
    }
}

/// Longest memory of a text, in bytes, and largest of a list, that serves the next row as well: what
/// most rows need. Kept whatever their size, rows would come to hold the longest text each has seen.
const KEPT_BYTES_MAX: usize = 256;
const KEPT_MAX: usize = 4;

/// Writes a text into the memory of an earlier one.
fn set(text: &mut String, bytes: &[u8]) {
    if text.capacity() > KEPT_BYTES_MAX {
        *text = String::new();
    }
    text.clear();
    text.push_str(&text_of(bytes));
}

fn empty<T>(list: &mut Vec<T>) {
    if list.capacity() > KEPT_MAX {
        *list = Vec::new();
    }
    list.clear();
}

impl Row {
    /// What most rows do not have.
    fn set_rare(&mut self, rare: RawRare, bytes: &[u8]) {
        self.participants = rare.participants;
        self.subject = rare.subject.filled(bytes);
        self.item_type = rare.item_type;
        self.group_action = rare.group_action;
        self.group_title = rare.group_title.filled(bytes);
        self.share_status = rare.share_status;
        self.message_action = rare.message_action;
        self.associated_type = rare.associated_type;
        self.associated_guid = rare.associated_guid.filled(bytes);
        self.associated_emoji = rare.associated_emoji.filled(bytes);
        self.balloon = rare.balloon.filled(bytes);
        self.thread_guid = rare.thread_guid.filled(bytes);
        self.thread_part = rare.thread_part.filled(bytes);
        self.effect = rare.effect.filled(bytes);
        self.edited_at = rare.edited_at;
        self.filter_action = rare.filter_action;
        self.schedule = rare.schedule;
        self.app = None;
        self.preview = None;
        if let Some(balloon) = &self.balloon {
            let payload = rare.payload.of(bytes);
            if balloon == LINK_BALLOON {
                self.preview = payload::link_preview(payload).map(Box::new);
            } else {
                self.app = Some(Box::new(payload::app(balloon, payload)));
            }
        }
    }

    /// The row before it in the same memory may have had something of it.
    fn clear_rare(&mut self) {
        self.other_handle = None;
        self.set_rare(RawRare::default(), &[]);
        self.is_rare = false;
    }
}

impl RawRow {
    /// Everything but what is rare, what is in other tables, and places in the batch.
    fn decode_into(&self, row: &mut Row, bytes: &[u8]) {
        row.rowid = self.rowid;
        row.from_me = self.from_me;
        row.at = self.at;
        row.part_count = self.part_count;
        row.flags = self.flags;
        row.status = self.status;
        empty(&mut row.runs);
        row.summary = Summary::default();
        set(&mut row.guid, self.guid.of(bytes));
        set(&mut row.text, self.text.of(bytes));
        if self.summary.length > 0 {
            match summary::parse(self.summary.of(bytes)) {
                Ok(summary) => row.summary = summary,
                Err(error) => tracing::debug!(rowid = row.rowid, %error, "passed over"),
            }
        }
        if self.body.length > 0 {
            decode_body(row, self.body.of(bytes));
        }
        row.order_attachments();
    }
}

fn decode_body(row: &mut Row, body: &[u8]) {
    // Decoding the text alone is several times cheaper, and most texts have nothing else. What is left
    // when parts were taken back need not be part 0, even where it is one text.
    let is_parted =
        row.part_count.is_some_and(|parts| parts > 1) || !row.summary.retracted.is_empty();
    let decoded = if row.flags.has_attachments || is_parted || typedstream::is_notable(body) {
        typedstream::decode(body).map(|decoded| (decoded.text, decoded.runs))
    } else if row.text.is_empty() {
        match typedstream::text(body) {
            Ok(text) => {
                row.text.push_str(text);
                return;
            }
            Err(error) => Err(error),
        }
    } else {
        return;
    };
    match decoded {
        Ok((text, runs)) => {
            // Runs count in the text that they stand with.
            if row.text.is_empty() || row.text == text {
                row.text = text;
                row.runs = runs;
            }
        }
        Err(error) => match error.salvaged {
            Some(salvaged) if row.text.is_empty() => row.text = salvaged,
            Some(_) => {}
            None => row.flags.undecodable = row.text.is_empty(),
        },
    }
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
    fn order_attachments(&mut self) {
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
