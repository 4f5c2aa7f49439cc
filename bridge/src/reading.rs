//! Reading what happens in a chat.db, and never missing or repeating it: the position, kept and
//! verified, new rows, rows that wait for what belongs to them, and older rows that change.
//!
//! The daemon keeps the position in its journal, in the transaction that holds what was told; whoever
//! merely watches keeps it in memory.

mod sweep;

use protocol::UnixMs;
use serde::{Deserialize, Serialize};

use crate::chatdb::{
    ChatDb, Cursor, IDS_MAX, Identity, NotReady, RESYNC_WINDOW_MS, ResyncReason, Row, Verified,
    verify,
};
use crate::clock::Now;
use crate::inbound::{Batch, Heard, Inbox, KNOWN_MAX, Known, Patience, Seen, Window};
use crate::journal;
use sweep::Sweep;

/// The position is verified this often, besides every time that the database is opened.
const VERIFY_EVERY_MS: i64 = 60_000;
/// A resynchronisation goes back this much beyond the date of the last row that was read: phones that
/// were offline deliver late.
const RESYNC_SLACK_MS: i64 = 24 * 3_600_000;

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
    /// The new position, when it has moved.
    pub(crate) cursor: Option<String>,
    /// The numbers of the database mean something else now: why.
    pub(crate) resynced: Option<ResyncReason>,
    /// There is more to read at once.
    pub(crate) more: bool,
}

/// The reading position, in memory and in the journal.
#[derive(Debug)]
pub(crate) struct Reading {
    stored: Option<Cursor>,
    beside: Beside,
    /// What an earlier life has told, until the reading begins.
    heard: Vec<journal::Heard>,
    inbox: Option<Inbox>,
    sweep: Sweep,
    /// The stored position is wrong, even where the number happens to be the right one.
    replace: bool,
    /// To be told with the next read.
    resynced: Option<ResyncReason>,
    verify_at_ms: i64,
}

impl Reading {
    /// Goes on where an earlier life stood, or begins at the newest row.
    pub(crate) fn restore(cursor: Option<&str>, heard: Vec<journal::Heard>) -> Self {
        let (stored, beside) = cursor.and_then(parse).unzip();
        Self {
            stored,
            beside: beside.unwrap_or_default(),
            heard,
            inbox: None,
            sweep: Sweep::default(),
            replace: false,
            resynced: None,
            verify_at_ms: i64::MIN,
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
        reading.begin(rowid, database.newest_date_at(rowid)?);
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
        limit: usize,
        now: Now,
    ) -> Result<Read, NotReady> {
        if now.continuous_ms >= self.verify_at_ms || self.has_jumped_back(database)? {
            self.verify(database, now)?;
            self.verify_at_ms = now.continuous_ms.saturating_add(VERIFY_EVERY_MS);
        }
        let Some(inbox) = &mut self.inbox else { return Ok(Read::default()) };
        let held = database.rows_by_ids(&inbox.held())?;
        let rows = database.rows_after(inbox.read_to(), limit)?;
        let mut more = rows.len() >= limit;
        let version = database.data_version()?;
        let due = self.sweep.due(version, inbox.read_to());
        let changed = match due {
            Some(due) => {
                let since = now.wall.plus_ms(-sweep::YOUNG_MS);
                let looked = self.sweep.look(database, due, since, now.continuous_ms)?;
                more |= looked.more;
                self.changed(database, &looked.rowids)?
            }
            None => Vec::new(),
        };
        let Some(inbox) = &mut self.inbox else { return Ok(Read::default()) };
        let original = |row: &Row| {
            database.original_of(row).unwrap_or_else(|error| {
                tracing::warn!(%error, "the original of a late row could not be looked for");
                None
            })
        };
        let batch = Batch { rows: &rows, held: &held, changed: &changed, original: &original };
        let taken = inbox.take(batch, now.wall);
        let newest = rows.iter().filter_map(|row| row.at).max().map(|at| at.min(now.wall));
        self.beside.newest = self.beside.newest.max(newest);
        let cursor = self.moved(database)?;
        let resynced = self.resynced.take();
        Ok(Read { heard: taken.heard, seen: taken.seen, cursor, resynced, more })
    }

    /// Rows that have changed and of which something may be told: that were told, or have come since
    /// this phone is read.
    fn changed(&self, database: &ChatDb, rowids: &[i64]) -> Result<Vec<Row>, NotReady> {
        let Some(inbox) = &self.inbox else { return Ok(Vec::new()) };
        let mut rows = Vec::with_capacity(rowids.len());
        for some in rowids.chunks(IDS_MAX) {
            rows.extend(database.rows_by_ids(some)?);
        }
        let since = self.beside.since;
        rows.retain(|row| {
            !inbox.is_held(row.rowid)
                && (inbox.known().has(&row.guid)
                    || since.is_none_or(|since| row.at.is_some_and(|at| at >= since)))
        });
        Ok(rows)
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
        self.beside.window = inbox.window();
        let cursor = database.cursor_at(safe)?;
        let same = self.stored.as_ref() == Some(&cursor) && !self.replace && !over;
        self.replace = false;
        if same {
            return Ok(None);
        }
        let text = text(&cursor, self.beside);
        self.stored = Some(cursor);
        Ok(Some(text))
    }

    /// The numbers that were read are larger than any that is there now: another file was copied over
    /// this one, or an older state of it.
    fn has_jumped_back(&self, database: &ChatDb) -> Result<bool, NotReady> {
        let Some(inbox) = &self.inbox else { return Ok(false) };
        Ok(database.max_rowid()? < inbox.read_to()
            && database.highest_rowid_ever()? < inbox.read_to())
    }

    fn verify(&mut self, database: &ChatDb, now: Now) -> Result<(), NotReady> {
        let Some(stored) = &self.stored else {
            // The first look ever: what came before this bridge is not news.
            let newest = database.max_rowid()?;
            self.beside.since = Some(now.wall);
            self.begin(newest, database.newest_date_at(newest)?);
            return Ok(());
        };
        match verify(stored, &database.cursor_facts(stored)?) {
            Verified::Good => {
                if self.inbox.is_none() {
                    let (rowid, newest) = (stored.rowid, database.newest_date_at(stored.rowid)?);
                    self.begin(rowid, newest);
                    if let Some(inbox) = &mut self.inbox {
                        inbox.set_window(self.beside.window);
                    }
                }
            }
            Verified::Resync(why) => {
                tracing::warn!(
                    why = why.as_str(),
                    "chat.db's numbers have changed: reading its last days again"
                );
                // As far back as what was read last, should that be longer ago than usual.
                let week = now.wall.plus_ms(-RESYNC_WINDOW_MS);
                let last = self.beside.newest.map(|at| at.plus_ms(-RESYNC_SLACK_MS));
                let since = last.map_or(week, |last| week.min(last));
                let from = database.rowid_before(since)?;
                let up_to = database.max_rowid()?;
                self.begin(from, None);
                self.replace = true;
                self.resynced = Some(why);
                self.sweep = Sweep::default();
                if let Some(inbox) = &mut self.inbox {
                    inbox.resync(from, Window { up_to, since });
                }
            }
        }
        Ok(())
    }

    /// Begins to read, if that was not begun yet: what was told in this life stays known.
    fn begin(&mut self, rowid: i64, newest: Option<UnixMs>) {
        if self.inbox.is_some() {
            return;
        }
        let mut known = Known::new(KNOWN_MAX);
        for heard in self.heard.drain(..) {
            known.learn(&heard.guid, heard.print);
            if let Some(seen) = heard.seen {
                known.remember(&heard.guid, seen);
            }
        }
        let patience = Patience::default();
        self.inbox = Some(Inbox::with_memory(rowid, newest, patience, known));
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
