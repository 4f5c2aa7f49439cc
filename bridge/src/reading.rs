//! Reading what happens in a chat.db, and never missing or repeating it: the position, kept and
//! verified, new rows, rows that wait for what belongs to them, and older rows that change.
//!
//! The daemon keeps the position in its journal, in the transaction that holds what was told; whoever
//! merely watches keeps it in memory.

mod sweep;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use protocol::UnixMs;
use serde::{Deserialize, Serialize};

use crate::chatdb::{
    ChatDb, Cursor, IDS_MAX, Identity, NotReady, RESYNC_WINDOW_MS, ResyncReason, Row, Verified,
    verify,
};
use crate::clock::Now;
use crate::inbound::{
    Batch, Heard, Inbox, KNOWN_MAX, Known, Noted, PREVIEW_MS, Patience, Seen, Taken, Window, print,
};
use crate::journal::{self, Journal, JournalError};
use sweep::Sweep;

/// The position is verified this often, besides every time that the database is opened.
const VERIFY_EVERY_MS: i64 = 60_000;
/// A message that comes after a phone is read for the first time may be dated so much before: it was on
/// its way, and its sender's clock may be behind.
const BEFORE_FIRST_MS: i64 = 3_600_000;
/// A sender's clock may be ahead: what is dated within a window may have been told before it.
const AHEAD_MS: i64 = 24 * 3_600_000;

/// What was told in this life and in earlier ones, all of it: what is in memory is bounded.
pub(crate) trait Memory {
    /// Of these guids those that were told, with what was told of them since.
    fn of_guids(&self, guids: &[&str]) -> Result<Vec<journal::Heard>, JournalError>;
    /// The guid under which something of this content was told first.
    fn of_print(&self, print: u64) -> Result<Option<String>, JournalError>;
}

impl Memory for Journal {
    fn of_guids(&self, guids: &[&str]) -> Result<Vec<journal::Heard>, JournalError> {
        self.heard_of(guids)
    }

    fn of_print(&self, print: u64) -> Result<Option<String>, JournalError> {
        self.heard_as(print)
    }
}

/// That of whoever merely watches: what is beyond memory is forgotten.
#[derive(Debug)]
pub(crate) struct Forgetful;

impl Memory for Forgetful {
    fn of_guids(&self, _: &[&str]) -> Result<Vec<journal::Heard>, JournalError> {
        Ok(Vec::new())
    }

    fn of_print(&self, _: u64) -> Result<Option<String>, JournalError> {
        Ok(None)
    }
}

/// Why nothing was read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// That passes.
    #[error("chat.db cannot be read now")]
    NotReady(#[from] NotReady),
    /// Without it nobody knows what was told.
    #[error("what was told cannot be looked up")]
    Journal(#[from] JournalError),
}

/// The position as the journal has it.
#[derive(Debug, Default, Serialize, Deserialize)]
struct CursorJson {
    identity: String,
    rowid: i64,
    guid: String,
    /// The newest date among the rows up to there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    newest: Option<UnixMs>,
    /// When this phone was read for the first time: what was there before is not news.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    since: Option<UnixMs>,
    /// The window of a resynchronisation that is not over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    window: Option<Window>,
}

/// What of the journal's position is not the cursor.
#[derive(Debug, Clone, Copy, Default)]
struct Beside {
    newest: Option<UnixMs>,
    since: Option<UnixMs>,
    window: Option<Window>,
}

/// What one read has shown.
#[derive(Debug, Default)]
pub(crate) struct Read {
    /// To be told, in order.
    pub(crate) heard: Vec<Heard>,
    /// What was told of messages by now.
    pub(crate) seen: Vec<(String, Seen)>,
    /// Guids that are told with another one.
    pub(crate) joined: Vec<String>,
    /// The new position, when it has moved.
    pub(crate) cursor: Option<String>,
    /// The numbers of the database mean something else now: why.
    pub(crate) resynced: Option<ResyncReason>,
    /// There is more to read at once.
    pub(crate) more: bool,
}

/// What one read takes from the database, before anything is made of it.
#[derive(Debug, Default)]
struct Gathered {
    rows: Vec<Row>,
    held: Vec<Row>,
    changed: Vec<Row>,
    /// Guids of what rows may be copies of, by the rows' numbers.
    originals: HashMap<i64, String>,
    more: bool,
}

/// The reading position, in memory and in the journal.
#[derive(Debug)]
pub(crate) struct Reading {
    stored: Option<Cursor>,
    beside: Beside,
    /// What an earlier life has told, until the reading begins.
    heard: Vec<journal::Heard>,
    /// That is all that was ever told.
    whole: bool,
    inbox: Option<Inbox>,
    /// The last row that was read in this life, which stands above the stored position while rows are
    /// held.
    last: Option<(i64, String)>,
    sweep: Sweep,
    /// The stored position is wrong, even where the number happens to be the right one.
    replace: bool,
    /// To be told with the next read.
    resynced: Option<ResyncReason>,
    verify_at_ms: i64,
    /// `data_version` at the last verification.
    verified: Option<i64>,
}

impl Reading {
    /// Goes on where an earlier life stood, or begins at the newest row.
    pub(crate) fn restore(cursor: Option<&str>, heard: Vec<journal::Heard>) -> Self {
        let whole = heard.len() < KNOWN_MAX;
        Self::with_memory(cursor, heard, whole)
    }

    /// The same; `whole` where nothing else was ever told.
    fn with_memory(cursor: Option<&str>, heard: Vec<journal::Heard>, whole: bool) -> Self {
        let (stored, beside) = cursor.and_then(parse).unzip();
        Self {
            stored,
            beside: beside.unwrap_or_default(),
            heard,
            whole,
            inbox: None,
            last: None,
            sweep: Sweep::default(),
            replace: false,
            resynced: None,
            verify_at_ms: i64::MIN,
            verified: None,
        }
    }

    /// Begins above a row; what stands at and below it is not told.
    pub(crate) fn beginning_at(
        database: &ChatDb,
        rowid: i64,
        since: UnixMs,
    ) -> Result<Self, NotReady> {
        let mut reading = Self::restore(None, Vec::new());
        reading.stored = Some(database.cursor_at(rowid)?);
        reading.beside.since = Some(since);
        reading.beside.newest = database.newest_date_at(rowid)?;
        reading.begin(rowid, reading.beside.newest);
        Ok(reading)
    }

    /// The database was opened: what the numbers mean must be looked at before they are used.
    pub(crate) fn opened(&mut self) {
        self.verify_at_ms = i64::MIN;
    }

    /// Reads at most so many new rows, and what has changed about older ones.
    pub(crate) fn read(
        &mut self,
        database: &ChatDb,
        memory: &impl Memory,
        limit: usize,
        now: Now,
    ) -> Result<Read, ReadError> {
        // Before anything is read at numbers that may mean something else since the last change.
        let version = database.data_version()?;
        if now.continuous_ms >= self.verify_at_ms || self.verified != Some(version) {
            self.verify(database, now)?;
            self.verify_at_ms = now.continuous_ms.saturating_add(VERIFY_EVERY_MS);
            self.verified = Some(version);
        }
        let gathered = match self.gather(database, memory, (limit, version), now) {
            Ok(gathered) => gathered,
            Err(error) => {
                // What has changed was noticed and not read.
                self.sweep.forget();
                return Err(error);
            }
        };
        self.sweep.settle();
        // From here on nothing may fail: what is taken counts as told.
        let Some(inbox) = &mut self.inbox else { return Ok(Read::default()) };
        let Gathered { rows, held, changed, originals, more } = gathered;
        let original = |row: &Row| originals.get(&row.rowid).cloned();
        let batch = Batch {
            rows: &rows,
            held: &held,
            following: &[],
            changed: &changed,
            original: &original,
        };
        let Taken { heard, noted: Noted { seen, joined } } = inbox.take(batch, now.wall);
        if let Some(row) = rows.last() {
            self.last = Some((row.rowid, row.guid.clone()));
        }
        let newest = rows.iter().filter_map(|row| row.at).max().map(|at| at.min(now.wall));
        self.beside.newest = self.beside.newest.max(newest);
        let cursor = self.moved(database).unwrap_or_else(|error| {
            // It moves with the next read.
            tracing::debug!(%error, "the position stays where it was");
            None
        });
        let resynced = self.resynced.take();
        Ok(Read { heard, seen, joined, cursor, resynced, more })
    }

    /// Everything of one read that may fail.
    fn gather(
        &mut self,
        database: &ChatDb,
        memory: &impl Memory,
        (limit, version): (usize, i64),
        now: Now,
    ) -> Result<Gathered, ReadError> {
        let Some(inbox) = &mut self.inbox else { return Ok(Gathered::default()) };
        let held = database.rows_by_ids(&inbox.held())?;
        let rows = database.rows_after(inbox.read_to(), limit)?;
        let mut more = rows.len() >= limit;
        let mut changed = Vec::new();
        if let Some(due) = self.sweep.due(version, inbox.read_to()) {
            let since = now.wall.plus_ms(-sweep::YOUNG_MS);
            let looked = self.sweep.look(database, due, since, now.continuous_ms)?;
            more |= looked.more;
            for some in looked.rowids.chunks(IDS_MAX) {
                changed.extend(database.rows_by_ids(some)?);
            }
        }
        for rows in [&held, &rows, &changed] {
            recall(inbox.known_mut(), memory, rows)?;
        }
        // Of what has changed something may be told where the message was told or found empty, or has
        // come since this phone is read.
        let since = self.beside.since;
        changed.retain(|row| {
            !inbox.is_held(row.rowid)
                && (inbox.known().remembers(&row.guid)
                    || since.is_none_or(|since| row.at.is_some_and(|at| at >= since)))
        });
        let mut beside = Vec::new();
        for orphan in [&held, &rows, &changed].into_iter().flat_map(|rows| inbox.orphans(rows)) {
            beside.extend(database.rows_beside(orphan, PREVIEW_MS)?);
        }
        recall(inbox.known_mut(), memory, &beside)?;
        inbox.remind(&beside);
        let mut originals = HashMap::new();
        for row in [&held, &rows].into_iter().flat_map(|rows| inbox.suspects(rows, now.wall)) {
            let original = match memory.of_print(print(row))? {
                Some(guid) => Some(guid),
                None => database.original_of(row)?,
            };
            originals.extend(original.map(|guid| (row.rowid, guid)));
        }
        Ok(Gathered { rows, held, changed, originals, more })
    }

    /// The new position for the journal, when it has moved.
    fn moved(&mut self, database: &ChatDb) -> Result<Option<String>, NotReady> {
        let Some(inbox) = &self.inbox else { return Ok(None) };
        let safe = inbox.safe_rowid();
        let over = self.beside.window.is_some() && inbox.window().is_none();
        let same = self.stored.as_ref().is_some_and(|stored| stored.rowid == safe);
        if same && !self.replace && !over {
            return Ok(None);
        }
        let cursor = database.cursor_at(safe)?;
        self.beside.window = inbox.window();
        let same = self.stored.as_ref() == Some(&cursor) && !self.replace && !over;
        self.replace = false;
        if same {
            return Ok(None);
        }
        let text = text(&cursor, self.beside);
        self.stored = Some(cursor);
        Ok(Some(text))
    }

    fn verify(&mut self, database: &ChatDb, now: Now) -> Result<(), NotReady> {
        let Some(stored) = &self.stored else {
            if self.inbox.is_none() {
                // The first look ever: what came before this bridge is not news.
                let rowid = database.max_rowid()?;
                let newest = database.newest_date_at(rowid)?;
                self.beside.since = Some(now.wall);
                self.beside.newest = newest.map(|newest| newest.min(now.wall));
                self.begin(rowid, newest);
            }
            return Ok(());
        };
        let facts = database.cursor_facts(stored)?;
        // What was read stands above the position while rows are held. Numbers larger than any that
        // was ever given out mean that another state of the file was put in its place.
        let read_to = self.inbox.as_ref().map(Inbox::read_to);
        let is_gone = read_to.is_some_and(|read| read > facts.highest_rowid_ever);
        let is_other = match &self.last {
            Some((rowid, guid)) => database.guid_at(*rowid)?.is_some_and(|now| now != *guid),
            None => false,
        };
        let verified = match verify(stored, &facts) {
            Verified::Good if is_gone => Verified::Resync(ResyncReason::Younger),
            Verified::Good if is_other => Verified::Resync(ResyncReason::Renumbered),
            verified @ (Verified::Good | Verified::Resync(_)) => verified,
        };
        match verified {
            Verified::Good => {
                if self.inbox.is_none() {
                    let rowid = stored.rowid;
                    let newest = self.beside.newest.max(database.newest_date_at(rowid)?);
                    self.begin(rowid, newest);
                    if let Some(inbox) = &mut self.inbox {
                        inbox.set_window(self.beside.window);
                    }
                }
                Ok(())
            }
            Verified::Resync(why) => self.resync(database, why, now),
        }
    }

    /// Reads the last days again, as far back as what was read last should that be longer ago, but
    /// nothing that was there before this phone was read.
    fn resync(&mut self, database: &ChatDb, why: ResyncReason, now: Now) -> Result<(), NotReady> {
        let last = self.beside.newest.map_or(now.wall, |newest| newest.min(now.wall));
        let since = last.plus_ms(-RESYNC_WINDOW_MS);
        let first = self.beside.since.map(|first| first.plus_ms(-BEFORE_FIRST_MS));
        let since = first.map_or(since, |first| first.max(since));
        let from = database.rowid_before(since)?;
        let up_to = database.max_rowid()?;
        // From here on the numbers mean what they mean now, also where the next read fails half-way.
        let position = database.cursor_at(from)?;
        tracing::warn!(
            why = why.as_str(),
            "chat.db's numbers have changed: reading its last days again"
        );
        self.begin(from, self.beside.newest);
        self.stored = Some(position);
        self.last = None;
        self.replace = true;
        self.resynced = Some(why);
        self.sweep.forget();
        if let Some(inbox) = &mut self.inbox {
            inbox.resync(from, Window { up_to, since });
        }
        Ok(())
    }

    /// Begins to read, if that was not begun yet: what was told in this life stays known.
    fn begin(&mut self, rowid: i64, newest: Option<UnixMs>) {
        if self.inbox.is_some() {
            return;
        }
        let mut known = Known::new(KNOWN_MAX);
        if !self.whole {
            known.is_part();
        }
        for heard in self.heard.drain(..) {
            learn(&mut known, heard);
        }
        self.inbox = Some(Inbox::with_memory(rowid, newest, Patience::default(), known));
        // What has happened to messages since the last life is as old as what that one read.
        if let Some(newest) = self.beside.newest {
            self.sweep.reach(newest.plus_ms(-sweep::YOUNG_MS));
        }
    }
}

fn learn(known: &mut Known, heard: journal::Heard) {
    known.learn(&heard.guid, heard.print);
    if let Some(seen) = heard.seen {
        known.remember(&heard.guid, seen);
    }
}

/// Brings back into memory what was told of these rows.
fn recall(known: &mut Known, memory: &impl Memory, rows: &[Row]) -> Result<(), JournalError> {
    let unsure: Vec<&str> =
        rows.iter().map(|row| row.guid.as_str()).filter(|guid| !known.is_sure_of(guid)).collect();
    if unsure.is_empty() {
        return Ok(());
    }
    for heard in memory.of_guids(&unsure)? {
        learn(known, heard);
    }
    Ok(())
}

/// How far back what was told may be needed for the position, or for a resynchronisation from it.
pub(crate) fn needed_since(cursor: &str) -> Option<UnixMs> {
    let (_, beside) = parse(cursor)?;
    let ahead = |since: UnixMs| since.plus_ms(-AHEAD_MS);
    let next = beside.newest.map(|newest| ahead(newest.plus_ms(-RESYNC_WINDOW_MS)));
    let open = beside.window.map(|window| ahead(window.since));
    match (next, open) {
        (Some(next), Some(open)) => Some(next.min(open)),
        (one, other) => one.or(other),
    }
}

fn text(cursor: &Cursor, beside: Beside) -> String {
    let json = CursorJson {
        identity: cursor.identity.to_text(),
        rowid: cursor.rowid,
        guid: cursor.guid.clone(),
        newest: beside.newest,
        since: beside.since,
        window: beside.window,
    };
    serde_json::to_string(&json).unwrap_or_default()
}

/// A cursor that cannot be read is none: reading begins at the newest row, loudly.
fn parse(text: &str) -> Option<(Cursor, Beside)> {
    let json: Option<CursorJson> = serde_json::from_str(text).ok();
    let cursor = json.and_then(|json| {
        let cursor = Cursor {
            identity: Identity::from_text(&json.identity)?,
            rowid: json.rowid,
            guid: json.guid,
        };
        let beside = Beside { newest: json.newest, since: json.since, window: json.window };
        Some((cursor, beside))
    });
    if cursor.is_none() {
        tracing::error!("the journal's cursor cannot be read: starting at the newest row");
    }
    cursor
}
