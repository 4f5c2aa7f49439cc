//! Why the database cannot be read now, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use protocol::Reason;
use rusqlite::ErrorCode;

/// The database cannot be read now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {cause} ({detail}); {}", path.display(), cause.remedy())]
pub struct NotReady {
    /// Where it should be.
    pub path: PathBuf,
    /// What is wrong.
    pub cause: Cause,
    /// SQLite's or the system's own words.
    pub detail: String,
}

/// What is wrong with a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    /// No such file.
    #[error("does not exist")]
    Missing,
    /// A file without content, or not a file.
    #[error("is empty")]
    Empty,
    /// The system refuses to open it.
    #[error("may not be opened")]
    Denied,
    /// Another process holds it locked.
    #[error("is locked")]
    Locked,
    /// A SQLite database, but not of Messages, or not SQLite at all.
    #[error("is not a Messages database")]
    Foreign,
    /// Cut off or damaged.
    #[error("is damaged")]
    Damaged,
    /// The disk or the system failed.
    #[error("cannot be read")]
    Failing,
}

impl Cause {
    /// What the operator can do.
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::Missing => {
                "sign in to Messages in this user's session, or correct `chat_db` in the configuration"
            }
            Self::Empty => {
                "open Messages once in this user's session, so that it creates its database"
            }
            Self::Denied => {
                "grant Full Disk Access to switchboard-bridge in System Settings, Privacy & Security, and start it again"
            }
            Self::Locked => {
                "end the other program that holds the database locked; Messages itself never does so for long"
            }
            Self::Foreign => "point `chat_db` at ~/Library/Messages/chat.db",
            Self::Damaged => {
                "quit Messages and let it rebuild its database, or restore it from a backup together with its -wal file"
            }
            Self::Failing => "look at the disk: its health, its free space, whether it is mounted",
        }
    }

    /// The stable code.
    pub const fn reason(self) -> Reason {
        match self {
            Self::Missing => Reason::DatabaseMissing,
            Self::Denied => Reason::DatabasePermission,
            Self::Locked | Self::Failing => Reason::DatabaseLocked,
            Self::Empty | Self::Foreign | Self::Damaged => Reason::DatabaseForeign,
        }
    }
}

impl NotReady {
    pub(crate) fn new(path: &Path, cause: Cause, detail: impl Into<String>) -> Self {
        Self { path: path.to_owned(), cause, detail: detail.into() }
    }

    /// The stable code.
    pub const fn reason(&self) -> Reason {
        self.cause.reason()
    }

    /// As the pipe says it.
    pub fn to_signal(&self) -> protocol::pipe::NotReady {
        protocol::pipe::NotReady {
            reason: self.reason(),
            remedy: format!("{}: {}; {}", self.path.display(), self.cause, self.cause.remedy()),
        }
    }

    pub(crate) fn of_io(path: &Path, error: &io::Error) -> Self {
        let kind = error.kind();
        let cause = if matches!(kind, io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) {
            Cause::Missing
        } else if kind == io::ErrorKind::PermissionDenied {
            // EACCES and EPERM; without Full Disk Access macOS answers EPERM.
            Cause::Denied
        } else {
            Cause::Failing
        };
        Self::new(path, cause, error.to_string())
    }

    pub(crate) fn of_sqlite(path: &Path, error: &rusqlite::Error) -> Self {
        let detail = error.to_string();
        let rusqlite::Error::SqliteFailure(failure, _) = error else {
            // A column of another type or a query that returns nothing: not the tables that
            // Messages makes.
            return Self::new(path, Cause::Foreign, detail);
        };
        let is = |codes: &[ErrorCode]| codes.contains(&failure.code);
        let cause = if is(&[
            ErrorCode::CannotOpen,
            ErrorCode::AuthorizationForStatementDenied,
            ErrorCode::PermissionDenied,
        ]) {
            // Without Full Disk Access SQLite says 14 or 23.
            if path.exists() { Cause::Denied } else { Cause::Missing }
        } else if is(&[ErrorCode::DatabaseBusy, ErrorCode::DatabaseLocked]) {
            Cause::Locked
        } else if is(&[ErrorCode::NotADatabase, ErrorCode::Unknown]) {
            // `Unknown` is SQLite's plain error: a table or column that is not there.
            Cause::Foreign
        } else if is(&[ErrorCode::DatabaseCorrupt]) {
            Cause::Damaged
        } else {
            Cause::Failing
        };
        Self::new(path, cause, detail)
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::ffi;

    use super::*;

    #[test]
    fn each_code_of_sqlite_has_a_cause() {
        let here = Path::new("/");
        let gone = Path::new("/nonexistent/chat.db");
        for (path, code, expected) in [
            (here, ffi::SQLITE_CANTOPEN, Cause::Denied),
            (gone, ffi::SQLITE_CANTOPEN, Cause::Missing),
            (here, ffi::SQLITE_AUTH, Cause::Denied),
            (here, ffi::SQLITE_PERM, Cause::Denied),
            (here, ffi::SQLITE_BUSY, Cause::Locked),
            (here, ffi::SQLITE_BUSY_RECOVERY, Cause::Locked),
            (here, ffi::SQLITE_LOCKED, Cause::Locked),
            (here, ffi::SQLITE_CORRUPT, Cause::Damaged),
            (here, ffi::SQLITE_NOTADB, Cause::Foreign),
            (here, ffi::SQLITE_ERROR, Cause::Foreign),
            (here, ffi::SQLITE_IOERR_SHORT_READ, Cause::Failing),
            (here, ffi::SQLITE_FULL, Cause::Failing),
        ] {
            let error = rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
            assert_eq!(NotReady::of_sqlite(path, &error).cause, expected, "{code}");
        }
        let no_rows = rusqlite::Error::QueryReturnedNoRows;
        assert_eq!(NotReady::of_sqlite(here, &no_rows).cause, Cause::Foreign);
    }

    #[test]
    fn each_error_of_the_system_has_a_cause() {
        // EPERM, EACCES, ENOENT, ENOTDIR, EIO.
        for (code, expected) in [
            (1, Cause::Denied),
            (13, Cause::Denied),
            (2, Cause::Missing),
            (20, Cause::Missing),
            (5, Cause::Failing),
        ] {
            let error = io::Error::from_raw_os_error(code);
            assert_eq!(NotReady::of_io(Path::new("/"), &error).cause, expected, "{code}");
        }
    }
}
