//! What a store can answer besides rows.

use std::sync::Arc;

use rusqlite::ErrorCode;

/// Why a store function did not do its work. Nothing of the work remains in any of these cases.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The queue in front of the store stayed full; try again later.
    #[error("the store is busy")]
    Busy,
    /// The store has been shut down.
    #[error("the store is closed")]
    Closed,
    /// The disk (or the configured size) is used up.
    #[error("the store's disk is full")]
    Full,
    /// The file (or its folder, or its lock) could not be opened.
    #[error("{path}")]
    Open {
        /// Which file.
        path: String,
        /// Why.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// Under the file's name there is no file any more, or another one: what is written now would be found by nobody.
    #[error("the store's file was moved, deleted or replaced while it was open")]
    Replaced,
    /// The disk did not take what was written, and nobody knows what of it is there: the router has to start anew.
    #[error("the disk did not take what the store has written: the router has to start anew")]
    Unsynced,
    /// The file could not be read or written.
    #[error("the store's file could not be read or written")]
    Io(#[source] Arc<rusqlite::Error>),
    /// A constraint refused the row; the text is the engine's description, with table and columns.
    #[error("the constraint {0} refused the row")]
    Constraint(String),
    /// The file is damaged, or a row holds what no version of this program writes.
    #[error("the store holds damaged data: {0}")]
    Corrupt(String),
    /// Another process has this file open for writing.
    #[error("another router is using the store's file")]
    InUse,
    /// A query that must answer one row answered none.
    #[error("the row is missing")]
    NoRow,
    /// The schema cannot be used by this program.
    #[error("the schema cannot be used: {0}")]
    Schema(String),
    /// The closure panicked; its rows were taken back.
    #[error("a store function panicked")]
    Panicked,
    /// Any other failure of the engine.
    #[error("the statement failed")]
    Sql(#[source] Arc<rusqlite::Error>),
}

impl StoreError {
    /// True where the same call may well succeed later, and the caller should be told so (503).
    pub fn is_unavailable(&self) -> bool {
        match self {
            Self::Busy
            | Self::Closed
            | Self::Full
            | Self::Replaced
            | Self::Unsynced
            | Self::Io(_) => true,
            Self::Constraint(_)
            | Self::Corrupt(_)
            | Self::InUse
            | Self::NoRow
            | Self::Open { .. }
            | Self::Schema(_)
            | Self::Panicked
            | Self::Sql(_) => false,
        }
    }

    /// A row whose text does not parse as what the column promises.
    pub fn corrupt(column: &str, detail: impl std::fmt::Display) -> Self {
        Self::Corrupt(format!("{column}: {detail}"))
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        if matches!(error, rusqlite::Error::QueryReturnedNoRows) {
            return Self::NoRow;
        }
        let Some(code) = error.sqlite_error_code() else { return Self::Sql(Arc::new(error)) };
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "rusqlite's enum is open: it says `non_exhaustive`"
        )]
        match code {
            ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => Self::Busy,
            ErrorCode::DiskFull => Self::Full,
            ErrorCode::SystemIoFailure | ErrorCode::CannotOpen | ErrorCode::ReadOnly => {
                Self::Io(Arc::new(error))
            }
            ErrorCode::ConstraintViolation => Self::Constraint(error.to_string()),
            ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => {
                Self::Corrupt(error.to_string())
            }
            _ => Self::Sql(Arc::new(error)),
        }
    }
}
