//! All SQL of our own file: what this phone was told, did and saw.
//!
//! SQLite in WAL mode with `synchronous=FULL`: when [`Journal::commit`] returns, the changes of a
//! whole turn of the event loop are on the disk, by one fsync. A journal is never repaired or
//! made anew by itself: forgetting what was sent is how messages are doubled.

mod inspect;
mod rows;

use std::collections::BTreeSet;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use protocol::pipe::{Attempt, EventLine};
use protocol::{PhoneId, UnixMs};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OptionalExtension as _, Transaction, params};

pub(crate) use inspect::{Inspection, inspect};

use crate::clock::Now;
use crate::inbound::Seen;
use crate::outbound::{Body, Change, SendRecord, Told};

/// Applied in order; `PRAGMA user_version` counts them. Never edited once released.
const MIGRATIONS: &[&str] = &[
    include_str!("../migrations/0001_init.sql"),
    include_str!("../migrations/0002_seen.sql"),
    include_str!("../migrations/0003_parts.sql"),
    include_str!("../migrations/0004_prints.sql"),
];

/// How long an attempt that is over is remembered. A router offers an attempt again for minutes;
/// a week covers one that was down over a long weekend.
const FINAL_KEPT_MS: i64 = 7 * 24 * 60 * 60 * 1000;

/// How long it is remembered at least what came in: iCloud puts in copies of messages that are weeks
/// old. What a rebuilt or restored chat.db could show as new is remembered in any case.
const HEARD_KEPT_MS: i64 = 90 * 24 * 60 * 60 * 1000;

/// Only a person with a SQLite shell can hold a lock on this file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// What can go wrong with the journal. All of it ends the bridge: what it cannot write down it
/// must not do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JournalError {
    #[error("journal {}: {doing}", path.display())]
    Sqlite {
        path: PathBuf,
        doing: &'static str,
        #[source]
        source: rusqlite::Error,
    },
    #[error("journal {}: cannot be created", path.display())]
    Create {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// A file that this program does not understand.
    #[error("journal {}: {what}", path.display())]
    Foreign { path: PathBuf, what: String },
}

/// The open journal.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    connection: Connection,
    id: String,
}

/// A message that came in and was told.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Heard {
    pub(crate) guid: String,
    /// Its content, as a number.
    pub(crate) print: Option<u64>,
    /// What was told of it since.
    pub(crate) seen: Option<Seen>,
}

/// What the journal holds besides sends and events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) last_seq: u64,
    pub(crate) acked_seq: u64,
    pub(crate) max_epoch: u64,
    pub(crate) cursor: Option<String>,
    pub(crate) account: Option<String>,
}

impl Journal {
    /// Opens the journal of this phone, or makes a new one with this id.
    pub(crate) fn open(
        path: &Path,
        phone: &PhoneId,
        new_id: &str,
        now: Now,
    ) -> Result<Self, JournalError> {
        // Created before SQLite does, so that neither it nor its WAL is ever readable by others.
        std::fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path)
            .and_then(|file| file.set_permissions(std::fs::Permissions::from_mode(0o600)))
            .map_err(|source| JournalError::Create { path: path.to_owned(), source })?;
        let failed =
            |doing| move |source| JournalError::Sqlite { path: path.to_owned(), doing, source };
        let foreign = |what: String| JournalError::Foreign { path: path.to_owned(), what };
        let mut connection = Connection::open(path).map_err(failed("cannot be opened"))?;
        configure(&connection).map_err(failed("cannot be configured"))?;
        let version: u32 = connection
            .query_row("PRAGMA user_version", [], |row| row.get(0))
            .map_err(failed("cannot be read"))?;
        let version = usize::try_from(version).unwrap_or(usize::MAX);
        if version > MIGRATIONS.len() {
            return Err(foreign(format!(
                "has version {version}, this program knows up to {}; run the newer program",
                MIGRATIONS.len()
            )));
        }
        for (index, migration) in MIGRATIONS.iter().enumerate().skip(version) {
            let tx = connection.transaction().map_err(failed("cannot be migrated"))?;
            tx.execute_batch(migration).map_err(failed("cannot be migrated"))?;
            tx.pragma_update(
                None,
                "user_version",
                i64::try_from(index).unwrap_or(i64::MAX).saturating_add(1),
            )
            .map_err(failed("cannot be migrated"))?;
            tx.commit().map_err(failed("cannot be migrated"))?;
        }
        connection
            .execute(
                "INSERT INTO meta (only_row, journal, phone, created_ms, last_seq, acked_seq, max_epoch)
                 VALUES (1, ?1, ?2, ?3, 0, 0, 0) ON CONFLICT DO NOTHING",
                params![new_id, phone.as_str(), now.wall.0],
            )
            .map_err(failed("cannot be written"))?;
        let (id, of): (String, String) = connection
            .query_row("SELECT journal, phone FROM meta", [], |row| Ok((row.get(0)?, row.get(1)?)))
            .map_err(failed("cannot be read"))?;
        if of != phone.as_str() {
            return Err(foreign(format!(
                "belongs to phone {of}, not to {phone}; give every phone its own state_dir"
            )));
        }
        Ok(Self { path: path.to_owned(), connection, id })
    }

    /// The id of this file.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn meta(&self) -> Result<Meta, JournalError> {
        self.connection
            .query_row(
                "SELECT last_seq, acked_seq, max_epoch, cursor, account FROM meta",
                [],
                |row| {
                    Ok(Meta {
                        last_seq: rows::count(row, 0)?,
                        acked_seq: rows::count(row, 1)?,
                        max_epoch: rows::count(row, 2)?,
                        cursor: row.get(3)?,
                        account: row.get(4)?,
                    })
                },
            )
            .map_err(|source| self.failed("cannot be read", source))
    }

    /// Everything that is not final, oldest first.
    pub(crate) fn live_sends(&self) -> Result<Vec<SendRecord>, JournalError> {
        let read = || {
            self.connection
                .prepare_cached(rows::SELECT_LIVE)?
                .query_map([], rows::read)?
                .collect::<Result<Vec<_>, _>>()
        };
        read().map_err(|source| self.failed("its sends cannot be read", source))
    }

    /// The rows of chat.db that belong to our sends.
    pub(crate) fn claims(&self) -> Result<BTreeSet<String>, JournalError> {
        let read = || {
            self.connection
                .prepare_cached("SELECT guid FROM claims")?
                .query_map([], |row| row.get(0))?
                .collect::<Result<BTreeSet<_>, _>>()
        };
        read().map_err(|source| self.failed("its claims cannot be read", source))
    }

    /// Of these guids those that were told, with what was told of them since.
    pub(crate) fn heard_of(&self, guids: &[&str]) -> Result<Vec<Heard>, JournalError> {
        let read = || {
            let mut statement = self
                .connection
                .prepare_cached("SELECT guid, print, seen FROM heard WHERE guid = ?1")?;
            let mut heard = Vec::new();
            for guid in guids {
                heard.extend(statement.query_row([guid], rows::heard).optional()?);
            }
            Ok(heard)
        };
        read().map_err(|source| self.failed("what it has heard cannot be read", source))
    }

    /// The guid under which something of this content was told first.
    pub(crate) fn heard_as(&self, print: u64) -> Result<Option<String>, JournalError> {
        let read = || {
            self.connection
                .prepare_cached(
                    "SELECT guid FROM heard WHERE print = ?1 ORDER BY at_ms, guid LIMIT 1",
                )?
                .query_row([print.cast_signed()], |row| row.get(0))
                .optional()
        };
        read().map_err(|source| self.failed("what it has heard cannot be read", source))
    }

    /// What came in and was told, oldest first, at most so many.
    pub(crate) fn heard(&self, limit: usize) -> Result<Vec<Heard>, JournalError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let read = || {
            let mut heard = self
                .connection
                .prepare_cached("SELECT guid, print, seen FROM heard ORDER BY at_ms DESC LIMIT ?1")?
                .query_map([limit], rows::heard)?
                .collect::<Result<Vec<Heard>, _>>()?;
            heard.reverse();
            Ok(heard)
        };
        read().map_err(|source| self.failed("what it has heard cannot be read", source))
    }

    /// What was last told of an attempt, over or not.
    pub(crate) fn told(&self, attempt: &Attempt) -> Result<Option<Told>, JournalError> {
        let read = || {
            self.connection
                .prepare_cached(
                    "SELECT told_seq, told FROM sends WHERE message = ?1 AND attempt = ?2",
                )?
                .query_row(params![attempt.message.as_str(), attempt.attempt], |row| {
                    Ok(Told { seq: rows::count(row, 0)?, fact: rows::json(row, 1)? })
                })
                .optional()
        };
        read().map_err(|source| self.failed("its sends cannot be read", source))
    }

    /// Events from this seq on, at most so many.
    pub(crate) fn events(&self, from: u64, limit: usize) -> Result<Vec<EventLine>, JournalError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let read = || {
            self.connection
                .prepare_cached(
                    "SELECT seq, at_ms, epoch, event FROM events WHERE seq >= ?1 ORDER BY seq LIMIT ?2",
                )?
                .query_map(params![rows::int(from), limit], |row| {
                    Ok(EventLine {
                        seq: rows::count(row, 0)?,
                        at: UnixMs(row.get(1)?),
                        epoch: row.get::<_, Option<i64>>(2)?.and_then(|epoch| u64::try_from(epoch).ok()),
                        event: rows::json(row, 3)?,
                    })
                })?
                .collect::<Result<Vec<_>, _>>()
        };
        read().map_err(|source| self.failed("its events cannot be read", source))
    }

    /// Writes the changes of a turn: all of them or none, on the disk when this returns.
    pub(crate) fn commit(&mut self, changes: &[Change], now: Now) -> Result<(), JournalError> {
        if changes.is_empty() {
            return Ok(());
        }
        let path = &self.path;
        let failed = |source| JournalError::Sqlite {
            path: path.clone(),
            doing: "cannot be written",
            source,
        };
        let tx = self.connection.transaction().map_err(failed)?;
        for change in changes {
            write(&tx, change, now).map_err(failed)?;
        }
        tx.commit().map_err(failed)
    }

    /// Forgets what is over for more than a week, and what came in long ago: of that, nothing since
    /// `needed`, which is how far back a resynchronisation may have to read.
    pub(crate) fn prune(&mut self, needed: Option<UnixMs>, now: Now) -> Result<(), JournalError> {
        let before = now.wall.0.saturating_sub(FINAL_KEPT_MS);
        let mut prune = || {
            let tx = self.connection.transaction()?;
            tx.execute("DELETE FROM sends WHERE state = 'final' AND since_ms < ?1", [before])?;
            tx.execute("DELETE FROM claims WHERE at_ms < ?1", [before])?;
            let before = now.wall.plus_ms(-HEARD_KEPT_MS);
            let before = needed.map_or(before, |needed| needed.min(before)).0;
            tx.execute("DELETE FROM heard WHERE at_ms < ?1", [before])?;
            tx.commit()
        };
        prune().map_err(|source| self.failed("cannot be pruned", source))
    }

    fn failed(&self, doing: &'static str, source: rusqlite::Error) -> JournalError {
        JournalError::Sqlite { path: self.path.clone(), doing, source }
    }
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    // On macOS a plain fsync leaves the data in the drive's cache.
    connection.pragma_update(None, "fullfsync", true)?;
    connection.pragma_update(None, "secure_delete", true)?;
    // In KiB, as SQLite takes it: rows are looked up one by one, a large cache holds memory for nothing.
    connection.pragma_update(None, "cache_size", -256_i64)?;
    connection.set_prepared_statement_cache_capacity(32);
    // Statements are planned once: else SQLite plans two for each message anew, since what is bound to them could decide whether
    // a partial index fits. No plan here depends on that; tests hold both.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    Ok(())
}

fn write(tx: &Transaction<'_>, change: &Change, now: Now) -> rusqlite::Result<()> {
    match change {
        Change::Put(send) => match &send.body {
            Body::Live { work, phase } => rows::put_live(tx, send, work, phase, now),
            Body::Final { at } => rows::put_final(tx, send, *at, now),
        },
        Change::Told { attempt, told } => rows::put_told(tx, attempt, told),
        Change::Claim { guid } => tx
            .prepare_cached(
                "INSERT INTO claims (guid, at_ms) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
            )?
            .execute(params![guid, now.wall.0])
            .map(drop),
        Change::Heard { guid, print } => tx
            .prepare_cached(
                "INSERT INTO heard (guid, at_ms, print) VALUES (?1, ?2, ?3)
                 ON CONFLICT (guid) DO UPDATE SET at_ms = excluded.at_ms,
                 print = coalesce(excluded.print, print)",
            )?
            .execute(params![guid, now.wall.0, print.map(u64::cast_signed)])
            .map(drop),
        Change::Seen { guid, seen } => tx
            .prepare_cached(
                "INSERT INTO heard (guid, at_ms, seen) VALUES (?1, ?2, ?3)
                 ON CONFLICT (guid) DO UPDATE SET seen = excluded.seen",
            )?
            .execute(params![guid, now.wall.0, rows::to_json(seen)?])
            .map(drop),
        Change::Event(line) => {
            tx.prepare_cached(
                "INSERT INTO events (seq, at_ms, epoch, event) VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute(params![
                rows::int(line.seq),
                line.at.0,
                line.epoch.map(rows::int),
                rows::to_json(&line.event)?
            ])?;
            tx.prepare_cached("UPDATE meta SET last_seq = ?1")?
                .execute([rows::int(line.seq)])
                .map(drop)
        }
        Change::MaxEpoch(epoch) => tx
            .prepare_cached("UPDATE meta SET max_epoch = MAX(max_epoch, ?1)")?
            .execute([rows::int(*epoch)])
            .map(drop),
        Change::Acked(seq) => {
            tx.prepare_cached("UPDATE meta SET acked_seq = MAX(acked_seq, MIN(?1, last_seq))")?
                .execute([rows::int(*seq)])?;
            tx.prepare_cached("DELETE FROM events WHERE seq <= ?1")?
                .execute([rows::int(*seq)])
                .map(drop)
        }
        Change::Cursor(cursor) => {
            tx.prepare_cached("UPDATE meta SET cursor = ?1")?.execute([cursor]).map(drop)
        }
        Change::Account(account) => {
            tx.prepare_cached("UPDATE meta SET account = ?1")?.execute([account]).map(drop)
        }
    }
}

#[cfg(test)]
mod tests;
