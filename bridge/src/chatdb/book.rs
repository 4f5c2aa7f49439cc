//! Addresses and chats by their row numbers, kept between reads.
//!
//! Joining them to every row costs more than reading the row. There are some hundreds of them to
//! hundreds of thousands of messages, and they hardly ever change; what is kept is forgotten whenever
//! another connection has committed, so that a chat that has moved to junk is seen there.

use std::sync::Arc;

use protocol::pipe::Conversation;
use rusqlite::{CachedStatement, Connection, OptionalExtension as _};
use rustc_hash::FxHashMap;

use super::rows::{Cells, chat_place};
use super::schema::Schema;

/// Most addresses, and most chats, kept at a time: a few megabytes. Beyond that all are forgotten and
/// looked up anew.
const KEPT_MAX: usize = 20_000;
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

/// What is kept between reads.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// `data_version` at which it was read.
    version: Option<i64>,
    handles: FxHashMap<i64, Option<Arc<str>>>,
    chats: FxHashMap<i64, Option<Arc<Chat>>>,
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
        if kept.version != Some(version) {
            *kept = Kept { version: Some(version), ..Kept::default() };
        }
        Ok(Self { connection, schema, kept })
    }

    /// What asks for the columns of one row that most rows do not have.
    pub(super) fn rare(&self) -> rusqlite::Result<CachedStatement<'c>> {
        self.connection.prepare_cached(&self.schema.rare)
    }

    /// The address of a handle; none for 0 and for what is not there.
    pub(super) fn handle(&mut self, rowid: i64) -> rusqlite::Result<Option<Arc<str>>> {
        if rowid <= 0 {
            return Ok(None);
        }
        if let Some(handle) = self.kept.handles.get(&rowid) {
            return Ok(handle.clone());
        }
        let found: Option<Option<String>> = self
            .connection
            .prepare_cached("SELECT id FROM handle WHERE ROWID = ?1")?
            .query_row([rowid], |row| Ok(Cells::of(row).filled(0)))
            .optional()?;
        let handle: Option<Arc<str>> = found.flatten().map(Into::into);
        if self.kept.handles.len() >= KEPT_MAX {
            self.kept.handles.clear();
        }
        self.kept.handles.insert(rowid, handle.clone());
        Ok(handle)
    }

    /// A chat; none for what is not there.
    pub(super) fn chat(&mut self, rowid: i64) -> rusqlite::Result<Option<Arc<Chat>>> {
        if let Some(chat) = self.kept.chats.get(&rowid) {
            return Ok(chat.clone());
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
        let chat = found.flatten().map(Arc::new);
        if self.kept.chats.len() >= KEPT_MAX {
            self.kept.chats.clear();
        }
        self.kept.chats.insert(rowid, chat.clone());
        Ok(chat)
    }

    /// Who is in a chat, the owner of the phone not counted.
    pub(super) fn participants(&mut self, chat: i64) -> rusqlite::Result<Vec<Arc<str>>> {
        if self.schema.participants.is_empty() {
            return Ok(Vec::new());
        }
        let handles: Vec<i64> = self
            .connection
            .prepare_cached(&self.schema.participants)?
            .query_map([chat, PARTICIPANTS_MAX], |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        let mut addresses = Vec::with_capacity(handles.len());
        for handle in handles {
            // One person may have a handle for each service.
            if let Some(address) = self.handle(handle)?
                && !addresses.contains(&address)
            {
                addresses.push(address);
            }
        }
        Ok(addresses)
    }
}
