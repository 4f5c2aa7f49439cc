//! Reading what came in: the position in chat.db, kept and verified.

use protocol::UnixMs;
use serde::{Deserialize, Serialize};

use super::News;
use crate::chatdb::{ChatDb, Cursor, Identity, NotReady, RESYNC_WINDOW_MS, Verified, verify};
use crate::clock::Now;
use crate::inbound;

/// The position is verified this often, besides every time that the database is opened.
const VERIFY_EVERY_MS: i64 = 60_000;

/// The position as the journal has it.
#[derive(Serialize, Deserialize)]
struct CursorJson {
    identity: String,
    rowid: i64,
    guid: String,
}

/// The reading position, in memory and in the journal.
#[derive(Debug)]
pub(super) struct Inbox {
    stored: Option<Cursor>,
    /// Guids told in an earlier life, until the reading begins.
    heard: Vec<String>,
    reading: Option<inbound::Inbox>,
    /// The stored position is wrong, even where the number happens to be the right one.
    replace: bool,
    verify_at_ms: i64,
}

impl Inbox {
    pub(super) fn restore(cursor: Option<&str>, heard: Vec<String>) -> Self {
        Self {
            stored: cursor.and_then(parse),
            heard,
            reading: None,
            replace: false,
            verify_at_ms: i64::MIN,
        }
    }

    /// The database was opened: what the numbers mean must be looked at before they are used.
    pub(super) fn opened(&mut self) {
        self.verify_at_ms = i64::MIN;
    }

    pub(super) fn read(
        &mut self,
        database: &ChatDb,
        limit: usize,
        now: Now,
    ) -> Result<News, NotReady> {
        if now.continuous_ms >= self.verify_at_ms {
            self.verify(database, now)?;
            self.verify_at_ms = now.continuous_ms.saturating_add(VERIFY_EVERY_MS);
        }
        let Some(reading) = &mut self.reading else { return Ok(News::default()) };
        let held = database.rows_by_ids(&reading.held())?;
        let rows = database.rows_after(reading.read_to(), limit)?;
        let more = rows.len() >= limit;
        let facts =
            reading.take(&rows, &held, now.wall).into_iter().map(|heard| heard.event).collect();
        let safe = reading.safe_rowid();
        let moved = self.replace || self.stored.as_ref().is_none_or(|stored| stored.rowid != safe);
        let cursor = if moved { Some(database.cursor_at(safe)?) } else { None };
        let cursor = cursor.filter(|cursor| self.stored.as_ref() != Some(cursor));
        let text = cursor.as_ref().map(text);
        self.replace = false;
        if let Some(cursor) = cursor {
            self.stored = Some(cursor);
        }
        Ok(News { facts, cursor: text, more })
    }

    fn verify(&mut self, database: &ChatDb, now: Now) -> Result<(), NotReady> {
        let Some(stored) = &self.stored else {
            // The first look ever: what came before this bridge is not news.
            let newest = database.max_rowid()?;
            self.begin(newest, database.newest_date_at(newest)?);
            return Ok(());
        };
        match verify(stored, &database.cursor_facts(stored)?) {
            Verified::Good => {
                if self.reading.is_none() {
                    let (rowid, newest) = (stored.rowid, database.newest_date_at(stored.rowid)?);
                    self.begin(rowid, newest);
                }
            }
            Verified::Resync(why) => {
                tracing::warn!(
                    why = why.as_str(),
                    "chat.db's numbers have changed: reading its last days again"
                );
                let since = UnixMs(now.wall.0.saturating_sub(RESYNC_WINDOW_MS));
                let from = database.rowid_before(since)?;
                let up_to = database.max_rowid()?;
                self.begin(from, None);
                self.replace = true;
                if let Some(reading) = &mut self.reading {
                    reading.resync(from, since, up_to);
                }
            }
        }
        Ok(())
    }

    fn begin(&mut self, rowid: i64, newest: Option<UnixMs>) {
        let mut reading = inbound::Inbox::new(rowid, newest, inbound::Patience::default());
        match self.reading.take() {
            // What was told in this life stays known.
            Some(mut before) => {
                before.resync(rowid, UnixMs(i64::MIN), i64::MIN);
                reading = before;
            }
            None => {
                for guid in self.heard.drain(..) {
                    reading.know(&guid);
                }
            }
        }
        self.reading = Some(reading);
    }
}

fn text(cursor: &Cursor) -> String {
    let json = CursorJson {
        identity: cursor.identity.to_text(),
        rowid: cursor.rowid,
        guid: cursor.guid.clone(),
    };
    serde_json::to_string(&json).unwrap_or_default()
}

/// A cursor that cannot be read is none: reading begins at the newest row, loudly.
fn parse(text: &str) -> Option<Cursor> {
    let json: Option<CursorJson> = serde_json::from_str(text).ok();
    let cursor = json.and_then(|json| {
        Some(Cursor {
            identity: Identity::from_text(&json.identity)?,
            rowid: json.rowid,
            guid: json.guid,
        })
    });
    if cursor.is_none() {
        tracing::error!("the journal's cursor cannot be read: starting at the newest row");
    }
    cursor
}
