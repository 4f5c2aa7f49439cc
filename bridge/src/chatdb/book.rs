//! Addresses and chats by their row numbers, kept between reads.
//!
//! Joining them to every row costs more than reading the row. There are some hundreds of them to
//! hundreds of thousands of messages, and they hardly ever change; what is kept is forgotten whenever
//! another connection has committed, so that a chat that has moved to junk is seen there.

use std::sync::Arc;

use protocol::pipe::Conversation;
use rusqlite::{CachedStatement, Connection, OptionalExtension as _};
use rustc_hash::FxHashMap;

use super::cells::Cells;
use super::rows::chat_place;
use super::schema::Schema;

/// Most addresses, and most chats, kept from one read to the next: a few megabytes. Beyond that all are
/// forgotten and looked up anew.
const KEPT_MAX: usize = 20_000;
/// The same of chats whose members are kept.
const PARTICIPANTS_KEPT_MAX: usize = 500;
/// Most members of a group that are told of.
const PARTICIPANTS_MAX: i64 = 256;

/// A chat, as far as it matters to a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chat {
    /// The conversation.
    pub conversation: Conversation,
    /// `is_filtered`: 0 main list, 1 unknown senders, 2 junk.
    pub filtered: i64,
    /// `is_blackholed`: its other side is blocked.
    pub blocked: bool,
    /// `is_pending_review` (macOS 26).
    pub pending_review: bool,
    /// The name of a group.
    pub name: Option<String>,
}

impl Chat {
    /// A chat of which nothing is known but where it is.
    pub fn of(conversation: Conversation) -> Self {
        Self { conversation, filtered: 0, blocked: false, pending_review: false, name: None }
    }
}

/// Addresses and chats in the order in which they were met. Rows name them by their places and keep
/// the pages: were each of them counted for every row, by two threads, each would wait for the
/// other's counter longer than reading the row takes.
#[derive(Debug, Clone, Default)]
pub(super) struct Pages {
    handles: Arc<Vec<Arc<str>>>,
    chats: Arc<Vec<Arc<Chat>>>,
}

impl Pages {
    /// The address at a place.
    pub(super) fn handle(&self, place: Option<usize>) -> Option<&Arc<str>> {
        self.handles.get(place?)
    }

    /// The chat at a place.
    pub(super) fn chat(&self, place: Option<usize>) -> Option<&Arc<Chat>> {
        self.chats.get(place?)
    }
}

/// Adds to a page that rows may still keep: they keep the shorter one.
fn add<T: Clone>(page: &mut Arc<Vec<T>>, one: T) -> usize {
    let page = Arc::make_mut(page);
    page.push(one);
    page.len() - 1
}

/// What is kept between reads.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// `data_version` at which it was read.
    version: Option<i64>,
    pages: Pages,
    /// Places by row numbers.
    handles: FxHashMap<i64, Option<usize>>,
    chats: FxHashMap<i64, Option<usize>>,
    /// Row numbers of the chats, by their places.
    chat_rowids: Vec<i64>,
    /// Who is in a chat, by its place.
    participants: FxHashMap<usize, Vec<Arc<str>>>,
}

/// The book of one connection while it is read in.
pub(super) struct Book<'c> {
    connection: &'c Connection,
    schema: &'c Schema,
    kept: &'c mut Kept,
}

impl<'c> Book<'c> {
    /// Opens it, and forgets what may have changed since.
    pub(super) fn open(
        connection: &'c Connection,
        schema: &'c Schema,
        kept: &'c mut Kept,
    ) -> rusqlite::Result<Self> {
        let version: i64 =
            connection.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))?;
        let is_full = kept.handles.len().max(kept.chats.len()) >= KEPT_MAX;
        if kept.version != Some(version) || is_full {
            *kept = Kept { version: Some(version), ..Kept::default() };
        }
        if kept.participants.len() >= PARTICIPANTS_KEPT_MAX {
            kept.participants.clear();
        }
        Ok(Self { connection, schema, kept })
    }

    /// What asks for the columns of one row that most rows do not have.
    pub(super) fn rare(&self) -> rusqlite::Result<CachedStatement<'c>> {
        self.connection.prepare_cached(&self.schema.rare)
    }

    /// What the places stand for.
    pub(super) fn pages(&self) -> &Pages {
        &self.kept.pages
    }

    /// The place of a handle's address; none for 0 and for what is not there.
    pub(super) fn handle(&mut self, rowid: i64) -> rusqlite::Result<Option<usize>> {
        if rowid <= 0 {
            return Ok(None);
        }
        if let Some(place) = self.kept.handles.get(&rowid) {
            return Ok(*place);
        }
        let found: Option<Option<String>> = self
            .connection
            .prepare_cached("SELECT id FROM handle WHERE ROWID = ?1")?
            .query_row([rowid], |row| Ok(Cells::of(row).filled(0)))
            .optional()?;
        let place = found.flatten().map(|id| add(&mut self.kept.pages.handles, id.into()));
        self.kept.handles.insert(rowid, place);
        Ok(place)
    }

    /// The place of a chat; none for what is not there.
    pub(super) fn chat(&mut self, rowid: i64) -> rusqlite::Result<Option<usize>> {
        if let Some(place) = self.kept.chats.get(&rowid) {
            return Ok(*place);
        }
        let found = self
            .connection
            .prepare_cached(&self.schema.chat_by_id)?
            .query_row([rowid], |row| {
                let cells = Cells::of(row);
                let Some(guid) = cells.text(0) else { return Ok(None) };
                Ok(Some(Chat {
                    conversation: chat_place(&guid, cells.number(1)),
                    filtered: cells.integer(2),
                    blocked: cells.flag(3),
                    pending_review: cells.flag(4),
                    name: cells.filled(5),
                }))
            })
            .optional()?;
        let place = found.flatten().map(|chat| {
            self.kept.chat_rowids.push(rowid);
            add(&mut self.kept.pages.chats, Arc::new(chat))
        });
        self.kept.chats.insert(rowid, place);
        Ok(place)
    }

    /// Who is in the chat at a place, the owner of the phone not counted.
    pub(super) fn participants(&mut self, chat: usize) -> rusqlite::Result<Vec<Arc<str>>> {
        if let Some(known) = self.kept.participants.get(&chat) {
            return Ok(known.clone());
        }
        let Some(rowid) = self.kept.chat_rowids.get(chat).copied() else { return Ok(Vec::new()) };
        if self.schema.participants.is_empty() {
            return Ok(Vec::new());
        }
        let handles: Vec<i64> = self
            .connection
            .prepare_cached(&self.schema.participants)?
            .query_map([rowid, PARTICIPANTS_MAX], |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        let mut addresses = Vec::with_capacity(handles.len());
        for handle in handles {
            let place = self.handle(handle)?;
            // One person may have a handle for each service.
            if let Some(address) = self.pages().handle(place)
                && !addresses.contains(address)
            {
                addresses.push(Arc::clone(address));
            }
        }
        self.kept.participants.insert(chat, addresses.clone());
        Ok(addresses)
    }
}
