//! The one connection of this process to one database.
//!
//! SQLite keeps the WAL index once per process and inode, not per connection. When the WAL and its
//! index were deleted and created again by Messages, a connection that is opened while another one
//! of this process still holds the old index gets that old index, and reads stale or wrong pages
//! for ever. So all users of a path share one connection, and it is closed before it is opened
//! again.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};

use rusqlite::Connection;

use super::{Cause, FileId, Files, NotReady, connect};
use crate::clock;

/// How often a database is opened whose files are replaced meanwhile, before that is said.
const OPENINGS_MAX: usize = 5;

/// Every path that is open, by its absolute form.
static OPEN: LazyLock<Mutex<HashMap<PathBuf, Weak<Shared>>>> = LazyLock::new(Mutex::default);

/// The connection to one path; closed when the last user lets go.
#[derive(Debug)]
pub(super) struct Shared {
    path: PathBuf,
    state: Mutex<State>,
    /// The longest read so far, in microseconds. Each statement is a transaction of its own, so that
    /// no transaction was longer.
    longest_us: AtomicU64,
    /// The same in steps of SQLite's machine, which no other process slows down.
    #[cfg(test)]
    steps: Arc<super::bounds::Steps>,
}

#[derive(Debug, Default)]
struct State {
    /// Counts openings, so that a user notices that the database under it is another one.
    generation: u64,
    open: Option<(Connection, Files)>,
}

impl Shared {
    /// The shared connection for a path, not necessarily open.
    pub(super) fn at(path: &Path) -> Arc<Self> {
        let key = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let mut all = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shared) = all.get(&key).and_then(Weak::upgrade) {
            return shared;
        }
        all.retain(|_, shared| shared.strong_count() > 0);
        let shared = Self::alone(path);
        all.insert(key, Arc::downgrade(&shared));
        shared
    }

    /// A connection that nobody else gets: for readings that end, beside the shared one. Files that are
    /// replaced meanwhile trouble it no more than the other.
    pub(super) fn alone(path: &Path) -> Arc<Self> {
        Arc::new(Self {
            path: path.to_owned(),
            state: Mutex::default(),
            longest_us: AtomicU64::new(0),
            #[cfg(test)]
            steps: Arc::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic while reading leaves a connection that can read again.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes sure that the files that are at the path now are the ones that are open, and gives the
    /// number of the opening.
    pub(super) fn open(&self) -> Result<u64, NotReady> {
        let mut state = self.state();
        match &state.open {
            Some((_, files)) if *files == Files::at(&self.path) => {}
            Some(_) | None => {
                // Closed first; see above.
                state.open = None;
                #[cfg_attr(not(test), expect(unused_mut, reason = "only tests count its steps"))]
                let (mut connection, files) = opened(&self.path, connected)?;
                #[cfg(test)]
                self.steps.count(&mut connection);
                state.open = Some((connection, files));
                state.generation += 1;
            }
        }
        Ok(state.generation)
    }

    /// Whether this opening is over, or the files at the path are no longer the ones that are open.
    pub(super) fn is_stale(&self, generation: u64) -> bool {
        let state = self.state();
        state.generation != generation
            || state.open.as_ref().is_none_or(|(_, files)| *files != Files::at(&self.path))
    }

    /// Which file the database is that is open.
    pub(super) fn database(&self) -> FileId {
        self.state().open.as_ref().and_then(|(_, files)| files.database).unwrap_or_default()
    }

    /// The files that are open; none when nothing is.
    pub(super) fn files(&self) -> Option<Files> {
        self.state().open.as_ref().map(|(_, files)| *files)
    }

    /// The longest read so far, in microseconds.
    pub(super) fn longest_us(&self) -> u64 {
        self.longest_us.load(Ordering::Relaxed)
    }

    /// The longest read so far, in steps of SQLite's machine.
    #[cfg(test)]
    pub(super) fn longest_steps(&self) -> u64 {
        self.steps.longest()
    }

    /// One short read in this opening.
    pub(super) fn run<T>(
        &self,
        generation: u64,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, NotReady> {
        let mut state = self.state();
        let connection = match &state.open {
            Some((connection, _)) if state.generation == generation => connection,
            Some(_) | None => {
                let detail = "the file was replaced: open it again";
                return Err(NotReady::new(&self.path, Cause::Failing, detail));
            }
        };
        let began = clock::continuous_us();
        let result = read(connection);
        #[cfg(test)]
        self.steps.settle();
        let took = u64::try_from(clock::continuous_us().saturating_sub(began)).unwrap_or(0);
        self.longest_us.fetch_max(took, Ordering::Relaxed);
        result.map_err(|error| {
            let why = NotReady::of_sqlite(&self.path, &error);
            // A lock passes. Anything else may come from files that changed under the connection.
            if why.cause != Cause::Locked {
                state.open = None;
            }
            why
        })
    }
}

/// A connection that has read: the first read opens the WAL and its index, and may create them.
fn connected(path: &Path) -> Result<Connection, NotReady> {
    let connection = connect(path)?;
    connection
        .query_row("SELECT COUNT(*) FROM sqlite_master", [], |row| row.get::<_, i64>(0))
        .map_err(|error| NotReady::of_sqlite(path, &error))?;
    Ok(connection)
}

/// Opens until the files at the path were the same before and after it: what is opened while Messages
/// makes its WAL anew may have the old one, would be taken for the new one, and never see a change.
fn opened(
    path: &Path,
    mut connected: impl FnMut(&Path) -> Result<Connection, NotReady>,
) -> Result<(Connection, Files), NotReady> {
    for _ in 0..OPENINGS_MAX {
        let before = Files::at(path);
        let connection = connected(path)?;
        if Files::at(path) == before {
            return Ok((connection, before));
        }
    }
    let detail = "its files are being replaced all the time: open it again";
    Err(NotReady::new(path, Cause::Failing, detail))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A database in WAL mode with one row, and the connection that keeps its WAL.
    fn written(path: &Path) -> Connection {
        let writer = Connection::open(path).unwrap();
        writer.pragma_update(None, "journal_mode", "wal").unwrap();
        writer
            .execute_batch("CREATE TABLE message (guid); INSERT INTO message VALUES ('A')")
            .unwrap();
        writer
    }

    #[test]
    fn a_wal_that_is_made_anew_while_it_is_opened_is_followed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("chat.db");
        let _writer = written(&path);
        let mut times = 0;
        let (_connection, files) = opened(&path, |path| {
            times += 1;
            let connection = connected(path)?;
            if times == 1 {
                let wal = super::super::beside(path, "-wal");
                let new = folder.path().join("new");
                std::fs::copy(&wal, &new).unwrap();
                std::fs::rename(&new, &wal).unwrap();
            }
            Ok(connection)
        })
        .unwrap();
        assert_eq!(times, 2, "the first one has a WAL that nobody writes to");
        assert_eq!(files, Files::at(&path));
        assert!(files.wal.is_some());
    }

    #[test]
    fn files_that_are_replaced_all_the_time_are_no_database() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("chat.db");
        drop(written(&path));
        let mut times = 0;
        let refused = opened(&path, |path| {
            times += 1;
            let connection = connected(path)?;
            let other = folder.path().join("other.db");
            drop(written(&other));
            std::fs::rename(&other, path).unwrap();
            Ok(connection)
        });
        assert_eq!(refused.unwrap_err().cause, Cause::Failing);
        assert_eq!(times, OPENINGS_MAX);
    }
}
