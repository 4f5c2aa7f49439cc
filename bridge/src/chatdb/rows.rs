//! Rows of Apple's database as our own types.

use std::collections::HashMap;

use protocol::pipe::{Conversation, ConversationKind};
use protocol::{Channel, Recipient, UnixMs};
use rusqlite::types::ValueRef;

use super::schema::STATUS_AT;
use crate::typedstream;

/// 2001-01-01T00:00:00Z, from where Apple counts, in milliseconds since 1970.
const APPLE_EPOCH_MS: i64 = 978_307_200_000;
/// Dates from here on are nanoseconds (macOS 10.13 and later), smaller ones seconds. In nanoseconds
/// it is 17 minutes into 2001, in seconds the year 33,658.
const NANOSECONDS_FROM: i64 = 1_000_000_000_000;
/// 2100-01-01. Messages uses dates thousands of years ahead for "never".
const PLAUSIBLE_MS_MAX: i64 = 4_102_444_800_000;
/// `chat.style` of a group.
const STYLE_GROUP: i64 = 43;
/// `schedule_type` of Send Later: such a row is not sent before its date.
const SEND_LATER: i64 = 2;
/// `attachment.transfer_state` of a file that is here.
const TRANSFER_COMPLETE: i64 = 5;
/// Stands in the text for an attachment.
const OBJECT_REPLACEMENT: char = '\u{fffc}';

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
pub(super) struct Cells<'r, 's>(pub(super) &'r rusqlite::Row<'s>);

impl<'r> Cells<'r, '_> {
    fn value(&self, at: usize) -> ValueRef<'r> {
        self.0.get_ref(at).unwrap_or(ValueRef::Null)
    }

    fn integer(&self, at: usize) -> i64 {
        match self.value(at) {
            ValueRef::Integer(number) => number,
            ValueRef::Null | ValueRef::Real(_) | ValueRef::Text(_) | ValueRef::Blob(_) => 0,
        }
    }

    fn flag(&self, at: usize) -> bool {
        self.integer(at) != 0
    }

    fn text(&self, at: usize) -> Option<String> {
        match self.value(at) {
            ValueRef::Text(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
            ValueRef::Null | ValueRef::Integer(_) | ValueRef::Real(_) | ValueRef::Blob(_) => None,
        }
    }

    fn filled(&self, at: usize) -> Option<String> {
        self.text(at).filter(|text| !text.is_empty())
    }

    fn blob(&self, at: usize) -> Option<&'r [u8]> {
        match self.value(at) {
            ValueRef::Blob(bytes) => Some(bytes),
            ValueRef::Null | ValueRef::Integer(_) | ValueRef::Real(_) | ValueRef::Text(_) => None,
        }
    }

    fn channel(&self, at: usize) -> Option<Channel> {
        match self.value(at) {
            ValueRef::Text(bytes) => str::from_utf8(bytes).ok().and_then(Channel::of_service),
            ValueRef::Null | ValueRef::Integer(_) | ValueRef::Real(_) | ValueRef::Blob(_) => None,
        }
    }
}

/// The chat that a row belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Known.
    In(Conversation),
    /// The row is in no chat: its join has not been written yet, or was deleted, or it is a ghost.
    Pending,
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
    /// `total_bytes`.
    pub bytes: u64,
    /// The file has been downloaded.
    pub complete: bool,
    /// Where Messages has it, `~` for the home directory.
    pub filename: Option<String>,
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "they are Apple's columns, each independent of the others"
)]
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
    pub handle: Option<String>,
    /// For changes of a group: whom it is about.
    pub other_handle: Option<String>,
    /// Its chat.
    pub place: Place,
    /// The text, from `text` or `attributedBody`, with U+FFFC for each attachment; empty when there
    /// is none.
    pub text: String,
    /// There is a body, and it could not be decoded.
    pub undecodable: bool,
    /// Its files, in the order in which the text shows them.
    pub attachments: Vec<Attachment>,
    /// `cache_has_attachments`.
    pub has_attachments: bool,
    /// 0 is a message; others are notices of the system.
    pub item_type: i64,
    /// With `item_type` 1 and 3: what happened.
    pub group_action: i64,
    /// With `item_type` 2: the new name.
    pub group_title: Option<String>,
    /// 0 for a message of its own; 2000 to 3999 are reactions.
    pub associated_type: i64,
    /// `p:0/GUID`, `bp:GUID` or a guid.
    pub associated_guid: Option<String>,
    /// The emoji of a reaction of type 2006 or 3006.
    pub associated_emoji: Option<String>,
    /// The app that it belongs to.
    pub balloon: Option<String>,
    /// `is_empty`; set for messages that were taken back on macOS 26.
    pub is_empty: bool,
    /// `is_system_message`.
    pub is_system: bool,
    /// Written by Send Later.
    pub is_scheduled: bool,
    /// Order of transfer guids in the text; used up when the attachments are added.
    pub(crate) order: Vec<String>,
    /// What may still change.
    pub status: StatusBits,
}

impl Row {
    pub(super) fn read(cells: &Cells<'_, '_>) -> Self {
        let column = |at: usize| at + 4;
        let has_attachments = cells.flag(column(14));
        let mut text = cells.text(column(4)).unwrap_or_default();
        let mut undecodable = false;
        let mut order = Vec::new();
        if let Some(body) = cells.blob(3).filter(|body| !body.is_empty()) {
            let decoded = if has_attachments {
                typedstream::decode(body).map(|decoded| {
                    order = decoded.transfer_guids().map(str::to_owned).collect();
                    decoded.text
                })
            } else {
                typedstream::decode_text(body)
            };
            match decoded {
                Ok(decoded) if text.is_empty() => text = decoded,
                Ok(_) => {}
                Err(error) => match error.salvaged {
                    Some(salvaged) if text.is_empty() => text = salvaged,
                    Some(_) => {}
                    None => undecodable = text.is_empty(),
                },
            }
        }
        Self {
            rowid: cells.integer(0),
            guid: cells.text(column(0)).unwrap_or_default(),
            from_me: cells.flag(column(1)),
            at: apple_ms(cells.integer(column(2))),
            handle: cells.filled(1),
            other_handle: cells.filled(2),
            place: Place::Pending,
            text,
            undecodable,
            attachments: Vec::new(),
            has_attachments,
            item_type: cells.integer(column(5)),
            group_action: cells.integer(column(6)),
            group_title: cells.filled(column(7)),
            associated_type: cells.integer(column(8)),
            associated_guid: cells.filled(column(9)),
            associated_emoji: cells.filled(column(10)),
            balloon: cells.filled(column(11)),
            is_empty: cells.flag(column(12)),
            is_system: cells.flag(column(13)),
            is_scheduled: cells.integer(column(15)) == SEND_LATER,
            order,
            status: StatusBits::read(cells, STATUS_AT),
        }
    }

    /// Own, a plain message, and without text, files or chat.
    pub fn is_ghost(&self) -> bool {
        self.from_me
            && self.is_plain()
            && self.place == Place::Pending
            && self.visible_text().is_empty()
            && self.attachments.is_empty()
            && !self.has_attachments
    }

    /// A message, not a notice of the system or a reaction.
    pub fn is_plain(&self) -> bool {
        self.item_type == 0 && self.associated_type == 0 && !self.is_system
    }

    /// The text without the marks of attachments, and without space around it.
    pub fn visible_text(&self) -> String {
        if self.text.contains(OBJECT_REPLACEMENT) {
            self.text.replace(OBJECT_REPLACEMENT, "").trim().to_owned()
        } else {
            self.text.trim().to_owned()
        }
    }

    /// Files that the text shows or the row announces and that are not joined yet.
    pub fn missing_attachments(&self) -> bool {
        let shown = self.text.chars().filter(|c| *c == OBJECT_REPLACEMENT).count();
        self.attachments.len() < shown.max(usize::from(self.has_attachments))
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

/// Sets the chat of each row. Rows come in the order of rowid, joins in any.
pub(super) fn join_places(
    rows: &mut [Row],
    joins: &mut rusqlite::Rows<'_>,
) -> rusqlite::Result<()> {
    let mut at = 0_usize;
    while let Some(join) = joins.next()? {
        let cells = Cells(join);
        let rowid = cells.integer(0);
        // Joins mostly come in the order of the rows as well: look at the next place first.
        let place = match rows.get(at) {
            Some(row) if row.rowid == rowid => Some(at),
            _ => rows.binary_search_by_key(&rowid, |row| row.rowid).ok(),
        };
        let Some(place) = place else { continue };
        at = place + 1;
        if let Some(row) = rows.get_mut(place)
            && row.place == Place::Pending
            && let ValueRef::Text(guid) = cells.value(1)
        {
            let guid = String::from_utf8_lossy(guid);
            row.place = Place::In(chat_place(&guid, Some(cells.integer(2))));
        }
    }
    Ok(())
}

/// Adds the files of each row, and puts them in the order of the text.
pub(super) fn attach(rows: &mut [Row], files: &mut rusqlite::Rows<'_>) -> rusqlite::Result<()> {
    while let Some(file) = files.next()? {
        let cells = Cells(file);
        let Ok(place) = rows.binary_search_by_key(&cells.integer(0), |row| row.rowid) else {
            continue;
        };
        if let Some(row) = rows.get_mut(place) {
            row.attachments.push(Attachment {
                guid: cells.text(1).unwrap_or_default(),
                name: cells.filled(2),
                mime: cells.filled(3),
                bytes: u64::try_from(cells.integer(4)).unwrap_or(0),
                complete: cells.integer(5) == TRANSFER_COMPLETE,
                filename: cells.filled(6),
            });
        }
    }
    for row in rows.iter_mut().filter(|row| row.attachments.len() > 1 && !row.order.is_empty()) {
        let order: HashMap<&str, usize> =
            row.order.iter().enumerate().map(|(at, guid)| (guid.as_str(), at)).collect();
        // Stable: files that the text does not show stay behind, in the order of their rows.
        row.attachments
            .sort_by_key(|file| order.get(file.guid.as_str()).copied().unwrap_or(usize::MAX));
    }
    Ok(())
}

/// Which send a row is looked for.
#[derive(Debug, Clone)]
pub struct SentQuery<'q> {
    /// The newest rowid before the send.
    pub above_rowid: i64,
    /// Whom it went to.
    pub to: &'q Recipient,
    /// What was sent.
    pub text: &'q str,
    /// Only rows of this service; none for any, which is right where Messages may have fallen back
    /// to SMS itself.
    pub channel: Option<Channel>,
}

/// A row that is the send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SentRow {
    /// Number of the row.
    pub rowid: i64,
    /// Apple's id of the message.
    pub guid: String,
    /// The same text; false when Messages has rewritten it.
    pub exact: bool,
    /// In the right chat; false when the row is in no chat yet.
    pub placed: bool,
    /// Its chat or its handle is the recipient's; false when it has neither and may be anybody's.
    pub certain: bool,
    /// When.
    pub at: Option<UnixMs>,
    /// What may still change.
    pub status: StatusBits,
}

/// Whether a row is the send that is looked for.
pub(super) fn sent_row(row: Row, query: &SentQuery<'_>) -> Option<SentRow> {
    if !row.is_plain() || row.is_scheduled {
        return None;
    }
    if query.channel.is_some() && query.channel != row.status.service {
        return None;
    }
    if !may_be_to(&row, query.to) {
        return None;
    }
    let text = row.visible_text();
    let exact = text == query.text.trim();
    // An empty text would fold equal to any other empty one: that is a ghost, not a match.
    if !exact && (text.is_empty() || fold(&text) != fold(query.text)) {
        return None;
    }
    let certain = match (&row.place, query.to) {
        (Place::In(_), _) => true,
        (Place::Pending, Recipient::Group(_)) => false,
        // A handle that is there was compared.
        (Place::Pending, Recipient::Number(_) | Recipient::Email(_) | Recipient::Service(_)) => {
            row.handle.is_some()
        }
    };
    Some(SentRow {
        certain,
        rowid: row.rowid,
        guid: row.guid,
        exact,
        placed: matches!(row.place, Place::In(_)),
        at: row.at,
        status: row.status,
    })
}

/// Whether nothing speaks against the row having gone to this recipient.
pub(super) fn may_be_to(row: &Row, to: &Recipient) -> bool {
    match (&row.place, to) {
        (Place::In(place), Recipient::Group(id)) => {
            place.kind == ConversationKind::Group && place.id == *id
        }
        (Place::In(place), Recipient::Number(_) | Recipient::Email(_) | Recipient::Service(_)) => {
            place.kind == ConversationKind::Direct
                && (same_address(&place.id, to.address())
                    || row.handle.as_deref().is_some_and(|h| same_address(h, to.address())))
        }
        (Place::Pending, Recipient::Group(_)) => true,
        (Place::Pending, Recipient::Number(_) | Recipient::Email(_) | Recipient::Service(_)) => {
            row.handle.as_deref().is_none_or(|handle| same_address(handle, to.address()))
        }
    }
}

/// Whether two addresses are the same: e-mail addresses in any case, numbers with any punctuation.
pub fn same_address(left: &str, right: &str) -> bool {
    if left == right {
        return true;
    }
    if left.contains('@') || right.contains('@') {
        return left.eq_ignore_ascii_case(right);
    }
    let digits = |text: &str| text.bytes().filter(u8::is_ascii_digit).collect::<Vec<_>>();
    left.starts_with('+') && right.starts_with('+') && digits(left) == digits(right)
}

/// A text with everything made equal that Messages is known to rewrite: quotes, dashes, the
/// ellipsis, spaces, invisible characters.
pub fn fold(text: &str) -> String {
    let mut folded = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\u{201c}'..='\u{201f}' | '«' | '»' | '\u{2033}' => folded.push('"'),
            '\u{2018}'..='\u{201b}' | '\u{2032}' | '`' | '´' => folded.push('\''),
            '\u{2026}' => folded.push_str("..."),
            '-' | '\u{2010}'..='\u{2015}' => {
                // Two hyphens become one dash.
                if !folded.ends_with('-') {
                    folded.push('-');
                }
            }
            OBJECT_REPLACEMENT
            | '\u{200b}'..='\u{200f}'
            | '\u{2060}'
            | '\u{feff}'
            | '\u{fe0e}'
            | '\u{fe0f}' => {}
            space if space.is_whitespace() => {
                if !folded.is_empty() && !folded.ends_with(' ') {
                    folded.push(' ');
                }
            }
            other => folded.push(other),
        }
    }
    folded.truncate(folded.trim_end().len());
    folded
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

    #[test]
    fn what_messages_rewrites_folds_equal_and_nothing_else() {
        for (sent, stored) in [
            ("\"Hi\" -- it's me...", "\u{201c}Hi\u{201d} \u{2014} it\u{2019}s me\u{2026}"),
            ("a  b\n", " a\u{a0}b"),
            ("x\u{fe0f}", "x"),
        ] {
            assert_eq!(fold(sent), fold(stored));
        }
        for (left, right) in [("Hi", "hi"), ("a b", "ab"), ("1.5", "15"), ("a-b", "ab"), ("é", "e")]
        {
            assert_ne!(fold(left), fold(right));
        }
    }

    #[test]
    fn addresses_compare_by_what_they_reach() {
        assert!(same_address("Anna@Example.org", "anna@example.org"));
        assert!(same_address("+1 (202) 555-0101", "+12025550101"));
        assert!(!same_address("+12025550101", "+12025550102"));
        assert!(!same_address("2025550101", "+12025550101"));
        assert!(!same_address("", "+12025550101"));
    }

    proptest! {
        #[test]
        fn folding_twice_changes_nothing(text in "\\PC{0,60}|[ \\-\"'.\u{2019}\u{2026}\u{2014}\n]{0,20}") {
            let once = fold(&text);
            prop_assert_eq!(fold(&once), once);
        }

        #[test]
        fn any_date_is_read_without_a_panic(date: i64) {
            if let Some(at) = apple_ms(date) {
                prop_assert!(at.0 > 0 && at.0 <= PLAUSIBLE_MS_MAX);
            }
        }
    }
}
