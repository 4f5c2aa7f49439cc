//! Rows as SQLite gives them, gathered by one thread and decoded by any.

use std::sync::Arc;

use protocol::{Channel, UnixMs};

use super::book::{Book, Pages};
use super::cells::{Cells, text_of};
use super::rows::{Attachment, Flags, Place, Row, StatusBits, apple_ms, transfer_state};
use super::schema::{at, bit, flag};
use crate::payload::{self, LINK_BALLOON};
use crate::summary::{self, Summary};
use crate::typedstream;

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
