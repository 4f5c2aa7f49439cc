//! The threads behind the store: one that writes, a few that read.

use std::fs::File;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use tokio::sync::{mpsc, oneshot};

use super::usage::{self, Counts};
use super::{StoreError, Tx, dispatch, migrate};

/// Closures waiting for the writer. At some tens of microseconds each this is well under a second of work; more
/// waiting would only be answered after its caller has given up.
const WRITE_QUEUE: usize = 4_096;
/// Closures waiting for a reader.
const READ_QUEUE: usize = 1_024;
/// How long a caller waits for a place in a queue before it is told `Busy`.
const QUEUE_WAIT: Duration = Duration::from_secs(5);
/// Closures in one transaction. Beyond a few hundred the fsync is already shared out to nothing, and the first of the
/// batch waits for the last.
const BATCH_MAX: usize = 512;
/// Reading threads. Reads are index lookups; more threads than cores would only queue on the same pages.
const READERS: usize = 4;
/// Prepared statements kept per connection: more than the crate has.
const STATEMENTS: usize = 512;
/// Whose pages are kept in memory. What does not fit is read from the system's own cache, which costs little more: it is the
/// upper levels of the indexes that everything goes through.
#[derive(Debug, Clone, Copy)]
enum Cache {
    Writer,
    Reader,
}

impl Cache {
    /// KiB are negative there.
    const fn pragma(self) -> i64 {
        match self {
            Self::Writer => -16_384,
            Self::Reader => -2_048,
        }
    }
}

/// How long SQLite itself waits for a lock that another process (a backup, an operator's shell) holds.
const LOCK_WAIT: Duration = Duration::from_secs(5);

/// A closure on its way to a thread and back.
pub(super) trait Job: Send {
    /// Runs the closure; true where its rows are to be kept.
    fn run(&mut self, tx: &mut Tx<'_>) -> bool;
    /// Replaces whatever the closure answered: its rows are gone.
    fn fail(&mut self, error: StoreError);
    /// Tells the caller.
    fn answer(self: Box<Self>);
}

/// The one kind of [`Job`].
pub(super) struct Work<T, E, F> {
    body: Option<F>,
    result: Option<Result<T, E>>,
    answer: oneshot::Sender<Result<T, E>>,
}

impl<T, E, F> Work<T, E, F> {
    pub(super) fn new(work: F, answer: oneshot::Sender<Result<T, E>>) -> Self {
        Self { body: Some(work), result: None, answer }
    }
}

impl<T, E, F> Job for Work<T, E, F>
where
    T: Send,
    E: From<StoreError> + Send,
    F: FnOnce(&mut Tx<'_>) -> Result<T, E> + Send,
{
    fn run(&mut self, tx: &mut Tx<'_>) -> bool {
        let Some(work) = self.body.take() else { return false };
        let result = catch_unwind(AssertUnwindSafe(|| work(tx)))
            .unwrap_or_else(|_panic| Err(E::from(StoreError::Panicked)));
        let keep = result.is_ok();
        self.result = Some(result);
        keep
    }

    fn fail(&mut self, error: StoreError) {
        self.body = None;
        self.result = Some(Err(E::from(error)));
    }

    fn answer(self: Box<Self>) {
        if let Some(result) = self.result {
            // A caller that went away (its connection was cut) has no use for the answer.
            drop(self.answer.send(result));
        }
    }
}

type Queue = mpsc::Sender<Box<dyn Job>>;
type Waiting = mpsc::Receiver<Box<dyn Job>>;

/// The queues to the threads. The threads end when this is dropped and what was queued is done.
#[derive(Debug)]
pub(super) struct Threads {
    write: Queue,
    read: Queue,
    // Held as long as the store is open, so that no second router writes to the same file.
    _lock: File,
}

impl std::fmt::Debug for dyn Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Job")
    }
}

impl Threads {
    pub(super) fn start(path: &Path) -> Result<Self, StoreError> {
        let path = &resolved(path)?;
        let lock = lock(path)?;
        let place = Place::of(path)?;
        let mut writer = open(path, Cache::Writer)?;
        // Checkpoints stop the writer while they copy the log into the file: not at every 4 MB, but at 16; and a log
        // that grew behind a long reader is cut back.
        writer.pragma_update(None, "wal_autocheckpoint", 4_096)?;
        writer.pragma_update(None, "journal_size_limit", 64 * 1024 * 1024)?;
        migrate(&mut writer)?;
        writer.execute_batch(dispatch::WATCH)?;

        let (write, waiting) = mpsc::channel(WRITE_QUEUE);
        spawn("store-writer", move || write_all(&writer, &place, waiting))?;

        let (read, waiting) = mpsc::channel(READ_QUEUE);
        let waiting = Arc::new(Mutex::new(waiting));
        for _ in 0..READERS {
            let reader = open(path, Cache::Reader)?;
            reader.pragma_update(None, "query_only", true)?;
            let waiting = Arc::clone(&waiting);
            spawn("store-reader", move || read_all(&reader, &waiting))?;
        }
        Ok(Self { write, read, _lock: lock })
    }

    pub(super) async fn submit_write(&self, job: Box<dyn Job>) -> Result<(), StoreError> {
        submit(&self.write, job).await
    }

    pub(super) async fn submit_read(&self, job: Box<dyn Job>) -> Result<(), StoreError> {
        submit(&self.read, job).await
    }
}

async fn submit(queue: &Queue, job: Box<dyn Job>) -> Result<(), StoreError> {
    queue.send_timeout(job, QUEUE_WAIT).await.map_err(|refused| match refused {
        mpsc::error::SendTimeoutError::Timeout(_) => StoreError::Busy,
        mpsc::error::SendTimeoutError::Closed(_) => StoreError::Closed,
    })
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), StoreError> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .map(drop)
        .map_err(|error| StoreError::Schema(format!("no thread for the store: {error}")))
}

/// The file behind the name, so that two names (a link, a folder with dots) do not make two locks.
fn resolved(path: &Path) -> Result<PathBuf, StoreError> {
    if let Ok(path) = path.canonicalize() {
        return Ok(path);
    }
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        Some(_) | None => Path::new("."),
    };
    let folder = folder.canonicalize().map_err(|error| cannot_open(folder, error))?;
    let name = path.file_name().ok_or_else(|| {
        cannot_open(path, std::io::Error::from(std::io::ErrorKind::InvalidFilename))
    })?;
    Ok(folder.join(name))
}

fn cannot_open(path: &Path, source: std::io::Error) -> StoreError {
    StoreError::Open { path: path.display().to_string(), source: Arc::new(source) }
}

/// A file by its name and by what the name stood for when it was opened.
struct Place {
    path: PathBuf,
    file: (u64, u64),
}

impl Place {
    /// Makes the file where there is none, for its owner alone: it holds what people write to each other, and the
    /// secrets that webhooks are signed with. SQLite gives its other files the same mode.
    fn of(path: &Path) -> Result<Self, StoreError> {
        if !path.exists() {
            File::options()
                .create_new(true)
                .write(true)
                .mode(0o600)
                .open(path)
                .map_err(|error| cannot_open(path, error))?;
        }
        let file = Self::file(path).map_err(|error| cannot_open(path, error))?;
        Ok(Self { path: path.to_owned(), file })
    }

    fn file(path: &Path) -> std::io::Result<(u64, u64)> {
        std::fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
    }

    /// The name still leads to the file. SQLite goes on writing into a file that has been deleted; a message accepted
    /// into it would be gone with the process (sqlite.org/howtocorrupt.html, section 2.4).
    fn still_leads_there(&self) -> bool {
        Self::file(&self.path).is_ok_and(|file| file == self.file)
    }
}

fn lock(path: &Path) -> Result<File, StoreError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let lock_path = PathBuf::from(name);
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&lock_path)
        .map_err(|error| cannot_open(&lock_path, error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(StoreError::InUse),
        Err(std::fs::TryLockError::Error(error)) => Err(cannot_open(&lock_path, error)),
    }
}

fn open(path: &Path, cache: Cache) -> Result<Connection, StoreError> {
    let connection = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    connection.busy_timeout(LOCK_WAIT)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    // A plan is made once. Otherwise SQLite plans most statements anew whenever a parameter is bound, because its value
    // might have led to another plan: that costs more than running them.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // FULL: a commit is on disk before it is answered. That is what the API's 202 promises.
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "cache_size", cache.pragma())?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    Ok(connection)
}

fn write_all(connection: &Connection, place: &Place, mut waiting: Waiting) {
    let mut losses = 0;
    while let Some(mut first) = waiting.blocking_recv() {
        if !place.still_leads_there() {
            tracing::error!(path = %place.path.display(), "{}", StoreError::Replaced);
            first.fail(StoreError::Replaced);
            first.answer();
            continue;
        }
        let mut batch = vec![first];
        if let Err(error) = write_batch(connection, &mut batch, &mut waiting, &mut losses) {
            losses += 1;
            tracing::error!(%error, jobs = batch.len(), "a store commit failed; nothing of it remains");
            if !connection.is_autocommit()
                && let Err(error) = run(connection, "ROLLBACK")
            {
                tracing::error!(%error, "the failed transaction could not be rolled back");
            }
            for job in &mut batch {
                job.fail(error.clone());
            }
        }
        metrics::histogram!("switchboard_store_batch_jobs")
            .record(f64::from(u32::try_from(batch.len()).unwrap_or(u32::MAX)));
        for job in batch {
            job.answer();
        }
    }
}

/// Runs everything that waits in one transaction. `Err` means that nothing of the batch remains.
fn write_batch(
    connection: &Connection,
    batch: &mut Vec<Box<dyn Job>>,
    waiting: &mut Waiting,
    losses: &mut u64,
) -> Result<(), StoreError> {
    run(connection, "BEGIN IMMEDIATE")?;
    let mut counts = Counts::default();
    let mut next = 0;
    while let Some(job) = batch.get_mut(next) {
        run(connection, "SAVEPOINT job")?;
        let mut tx = Tx::after(connection, *losses);
        if job.run(&mut tx) {
            counts.merge(tx.take_counts());
        } else {
            *losses += u64::from(tx.is_remembered());
            // Disk full and I/O errors end the whole transaction inside SQLite, neighbours' rows included
            // (sqlite.org/lang_transaction.html, "Response To Errors Within A Transaction").
            if connection.is_autocommit() {
                return Err(StoreError::Full);
            }
            run(connection, "ROLLBACK TO job")?;
        }
        run(connection, "RELEASE job")?;
        next += 1;
        if next == batch.len()
            && batch.len() < BATCH_MAX
            && let Ok(job) = waiting.try_recv()
        {
            batch.push(job);
        }
    }
    usage::write(&mut Tx::after(connection, *losses), &counts)?;
    run(connection, "COMMIT")
}

fn read_all(connection: &Connection, waiting: &Mutex<Waiting>) {
    loop {
        // The lock is held while waiting: one reader waits for work, the others for the lock.
        let job = waiting.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv();
        let Some(mut job) = job else { return };
        if let Err(error) = read_one(connection, job.as_mut()) {
            job.fail(error);
        }
        job.answer();
    }
}

fn read_one(connection: &Connection, job: &mut dyn Job) -> Result<(), StoreError> {
    run(connection, "BEGIN")?;
    job.run(&mut Tx::sqlite(connection));
    if connection.is_autocommit() {
        return Ok(());
    }
    run(connection, "COMMIT")
}

fn run(connection: &Connection, sql: &str) -> Result<(), StoreError> {
    connection.prepare_cached(sql)?.execute([])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use rusqlite::StatementStatus;

    use super::*;

    #[test]
    fn a_statement_is_not_planned_anew_for_other_values() {
        let folder = tempfile::tempdir().unwrap();
        let mut connection = open(&folder.path().join("store.db"), Cache::Writer).unwrap();
        migrate(&mut connection).unwrap();
        let sql = "SELECT p.number FROM messages m LEFT JOIN phones p ON p.id = m.phone_id
                   WHERE m.tenant_id = ?1 AND m.recipient = ?2 ORDER BY m.id DESC LIMIT ?3";
        for round in 0..3 {
            let mut statement = connection.prepare_cached(sql).unwrap();
            let values = (round.to_string(), format!("+{round}"), 10 + round);
            assert!(!statement.exists(values).unwrap());
            assert_eq!(statement.get_status(StatementStatus::RePrepare), 0, "round {round}");
        }
    }
}
