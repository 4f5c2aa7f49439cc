//! A look at a journal from outside, by a process that does not own it. Nothing is changed.

use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _};

use super::{JournalError, MIGRATIONS, rows};

/// The owner's transactions take milliseconds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);

/// What a journal says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Inspection {
    /// The phone that it belongs to.
    pub(crate) phone: String,
    /// What SQLite's own check says: `ok`, or the first fault.
    pub(crate) fault: Option<String>,
    /// Whether this program knows its version.
    pub(crate) known: bool,
    /// Events that the router has not acknowledged.
    pub(crate) unacked: u64,
    /// Sends that have not come to an end.
    pub(crate) live: u64,
    /// What was last told of the account.
    pub(crate) account: Option<String>,
}

/// Looks at the journal at this path; none when there is none yet.
pub(crate) fn inspect(path: &Path) -> Result<Option<Inspection>, JournalError> {
    if !path.exists() {
        return Ok(None);
    }
    let failed =
        |source| JournalError::Sqlite { path: path.to_owned(), doing: "cannot be read", source };
    read(path).map_err(failed)
}

fn read(path: &Path) -> rusqlite::Result<Option<Inspection>> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    // The owner may be running: its WAL is its own.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.pragma_update(None, "query_only", true)?;
    let verdict: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    let version: u32 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if version == 0 {
        // Created, and nothing written yet.
        return Ok(None);
    }
    let meta = connection
        .query_row("SELECT phone, account FROM meta", [], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((phone, account)) = meta else { return Ok(None) };
    let count = |sql: &str| connection.query_row(sql, [], |row| rows::count(row, 0));
    Ok(Some(Inspection {
        phone,
        fault: (verdict != "ok").then_some(verdict),
        known: usize::try_from(version).is_ok_and(|version| version <= MIGRATIONS.len()),
        unacked: count("SELECT COUNT(*) FROM events")?,
        live: count("SELECT COUNT(*) FROM sends WHERE state <> 'final'")?,
        account,
    }))
}

#[cfg(test)]
mod tests {
    use protocol::PhoneId;

    use super::super::Journal;
    use super::*;

    #[test]
    fn a_journal_tells_of_itself_also_while_it_is_open() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.db");
        assert_eq!(inspect(&path).unwrap(), None);
        let phone: PhoneId = "pho_00000000000000000000000000".parse().unwrap();
        let journal = Journal::open(&path, &phone, "jrn_1", crate::clock::now()).unwrap();
        let seen = inspect(&path).unwrap().unwrap();
        assert_eq!(seen.phone, phone.as_str());
        assert_eq!((seen.fault, seen.known, seen.unacked, seen.live), (None, true, 0, 0));
        drop(journal);
        assert!(inspect(&path).unwrap().is_some());
    }

    #[test]
    fn what_is_no_journal_is_an_error_and_an_empty_file_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.db");
        std::fs::write(&path, "").unwrap();
        assert_eq!(inspect(&path).unwrap(), None);
        std::fs::write(&path, "this is a diary, and no database at all").unwrap();
        assert!(inspect(&path).is_err());
    }
}
