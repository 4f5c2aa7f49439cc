//! The threads behind the store: one that writes, one that brings what was written to the disk, a few that read.

use std::fs::File;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::hooks::Wal;
use rusqlite::{Connection, OpenFlags};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::commits::{Commits, commits};
use super::usage::{self, Counts};
use super::{StoreError, Tx, log_writes, migrate, watch};

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
/// What a connection is for.
#[derive(Debug, Clone, Copy)]
enum Role {
    Writer,
    Reader,
}

impl Role {
    /// What is kept of the file in memory; KiB are negative there. What does not fit is read from the system's own cache,
    /// which costs little more: it is the upper levels of the indexes that everything goes through. More would cost: where a
    /// page was divided, SQLite has used a page number far behind the end of the file for a moment, and looks at the commit
    /// through all that is kept for pages that lie there (`pcache1TruncateUnsafe`). Of 16 MiB that took a seventh of the
    /// writer's time.
    const fn cache(self) -> i64 {
        match self {
            Self::Writer => -4_096,
            Self::Reader => -1_024,
        }
    }

    const fn synchronous(self) -> &'static str {
        match self {
            Self::Writer => "NORMAL",
            Self::Reader => "FULL",
        }
    }
}

/// Pages of the log (of 4 KiB) after which it is copied into the file, by a thread of its own: the writer does not stop.
/// Whoever writes to many recipients changes pages all over their index; the longer the log, the more often a page has
/// changed before it is copied, and beside a long history that is most of what is copied.
const LOG_PAGES: i32 = 16_384;
/// Pages of the log at which the writer copies the rest itself, 256 MiB. While it writes on, the other one never sees the
/// log's end, and only a log that was copied to its end begins anew.
const LOG_PAGES_MAX: i32 = 65_536;
/// The same in MiB.
pub(crate) const LOG_MIB_MAX: u32 = LOG_PAGES_MAX.unsigned_abs() / 256;

/// How long SQLite itself waits for a lock that another process (a backup, an operator's shell) holds.
const LOCK_WAIT: Duration = Duration::from_secs(5);

/// Time that the closures of one transaction take, but for the last of them.
const BATCH_TIME: Duration = Duration::from_millis(10);
/// The same from the first on that somebody waits for: he is answered when those that came with his are done.
const FRONT_TIME: Duration = Duration::from_millis(4);
/// With what nobody waits for each transaction begins, for so long, so that it goes on however many wait.
const BACK_TIME: Duration = Duration::from_millis(1);

/// Who waits for a closure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    /// Somebody at the other end of a connection.
    Front,
    /// Nobody but the router itself, which works off what is there.
    Back,
}

/// A closure on its way to a thread and back.
pub(super) trait Job: Send {
    /// Runs the closure; true where its rows are to be kept.
    fn run(&mut self, tx: &mut Tx<'_>) -> bool;
    /// It can be run again after its rows were taken back, and comes to the same.
    fn again(&self) -> bool;
    /// Replaces whatever the closure answered: its rows are gone.
    fn fail(&mut self, error: StoreError);
    /// Tells the caller.
    fn answer(self: Box<Self>);
}

/// A closure that can be run once, or as often as it takes ([`Job::again`]).
pub(super) enum Body<O, A> {
    Once(Option<O>),
    Again(A),
}

/// The one kind of [`Job`].
pub(super) struct Work<T, E, O, A> {
    body: Body<O, A>,
    result: Option<Result<T, E>>,
    answer: oneshot::Sender<Result<T, E>>,
}

/// The body of what cannot be run again.
pub(super) type Never<T, E> = fn(&mut Tx<'_>) -> Result<T, E>;

impl<T, E, O> Work<T, E, O, Never<T, E>> {
    pub(super) fn once(work: O, answer: oneshot::Sender<Result<T, E>>) -> Self {
        Self { body: Body::Once(Some(work)), result: None, answer }
    }
}

impl<T, E, A> Work<T, E, Never<T, E>, A> {
    pub(super) fn often(work: A, answer: oneshot::Sender<Result<T, E>>) -> Self {
        Self { body: Body::Again(work), result: None, answer }
    }
}

impl<T, E, O, A> Job for Work<T, E, O, A>
where
    T: Send,
    E: From<StoreError> + Send,
    O: FnOnce(&mut Tx<'_>) -> Result<T, E> + Send,
    A: FnMut(&mut Tx<'_>) -> Result<T, E> + Send,
{
    fn run(&mut self, tx: &mut Tx<'_>) -> bool {
        let result = match &mut self.body {
            Body::Once(work) => {
                let Some(work) = work.take() else { return false };
                catch_unwind(AssertUnwindSafe(|| work(tx)))
            }
            Body::Again(work) => catch_unwind(AssertUnwindSafe(|| work(tx))),
        };
        let result = result.unwrap_or_else(|_panic| Err(E::from(StoreError::Panicked)));
        let keep = result.is_ok();
        self.result = Some(result);
        keep
    }

    fn again(&self) -> bool {
        matches!(self.body, Body::Again(_))
    }

    fn fail(&mut self, error: StoreError) {
        self.result = Some(Err(E::from(error)));
    }

    fn answer(self: Box<Self>) {
        let Self { body, result, answer } = *self;
        // What the closure held, it holds no more once its caller knows.
        drop(body);
        if let Some(result) = result {
            // A caller that went away (its connection was cut) has no use for the answer.
            drop(answer.send(result));
        }
    }
}

type Queue = mpsc::Sender<Box<dyn Job>>;
type Waiting = mpsc::Receiver<Box<dyn Job>>;

/// The queues to the threads. The threads end when this is dropped and what was queued is done.
#[derive(Debug)]
pub(super) struct Threads {
    write: Queue,
    behind: Queue,
    read: Queue,
    commits: Commits,
    // Held as long as the store is open, so that no second router writes to the same file.
    _lock: File,
}

impl std::fmt::Debug for dyn Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Job")
    }
}

impl Threads {
    pub(super) fn start(path: &Path, log_mib: u32) -> Result<Self, StoreError> {
        let path = &resolved(path)?;
        let lock = lock(path)?;
        let place = Place::of(path)?;
        // A step may change and sort more than memory holds, which the writer's connection keeps there.
        let mut migrated = open(path, Role::Reader)?;
        settle_log(&migrated)?;
        migrated.pragma_update(None, "temp_store", "FILE")?;
        migrate(&mut migrated)?;
        drop(migrated);
        let mut writer = open(path, Role::Writer)?;
        // A log that grew behind a long reader is cut back.
        writer.pragma_update(None, "journal_size_limit", i64::from(LOG_PAGES_MAX) * 4_096)?;
        watch::start(&writer)?;
        let copier = open(path, Role::Reader)?;

        let (write, front) = mpsc::channel(WRITE_QUEUE);
        let (behind, back) = mpsc::channel(WRITE_QUEUE);
        // The log is there since the first read, and stays as long as it is open.
        // Nobody's commit may come in between, not even that of an operator's shell.
        match run(&writer, "BEGIN IMMEDIATE") {
            Ok(()) => {
                let longer = lengthen(&beside(path, "-wal"), u64::from(log_mib) << 20);
                run(&writer, "ROLLBACK")?;
                longer.map_err(|error| cannot_open(path, error))?;
            }
            Err(error) => {
                tracing::warn!(%error, "another program writes to the store's file: its log grows as it is written");
            }
        }
        let log = File::open(beside(path, "-wal"));
        let log = log.map_err(|error| cannot_open(path, error))?;
        // What an earlier router left in it may be known to the system and not to the disk.
        log.sync_data().map_err(|error| cannot_open(path, error))?;
        let (commits, syncer) = commits(move || log.sync_data());
        spawn("store-disk", move || syncer.run())?;
        copy_log(&mut writer, copier, commits.clone())?;
        let waits = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .map_err(|error| StoreError::Schema(format!("no thread for the store: {error}")))?;
        let now = Instant::now();
        let writer = Writer {
            connection: writer,
            place,
            front,
            back,
            waits,
            until: now,
            back_until: now,
            next: None,
            losses: 0,
            commits: commits.clone(),
        };
        spawn("store-writer", move || writer.run())?;

        let (read, waiting) = mpsc::channel(READ_QUEUE);
        let waiting = Arc::new(Mutex::new(waiting));
        for _ in 0..READERS {
            let reader = open(path, Role::Reader)?;
            reader.pragma_update(None, "query_only", true)?;
            let (waiting, commits) = (Arc::clone(&waiting), commits.clone());
            spawn("store-reader", move || read_all(&reader, &waiting, &commits))?;
        }
        Ok(Self { write, behind, read, commits, _lock: lock })
    }

    /// Waits until the disk does not take what was written.
    pub(super) async fn lost(&self) {
        self.commits.lost().await;
    }

    pub(super) async fn submit_write(
        &self,
        lane: Lane,
        job: Box<dyn Job>,
    ) -> Result<(), StoreError> {
        let queue = match lane {
            Lane::Front => &self.write,
            Lane::Back => &self.behind,
        };
        submit(queue, job).await
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

/// The file beside the database, `store.db` + `-wal`.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn lock(path: &Path) -> Result<File, StoreError> {
    let lock_path = beside(path, ".lock");
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

fn open(path: &Path, role: Role) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = match role {
        Role::Writer => log_writes::open(path, flags)?,
        Role::Reader => Connection::open_with_flags(path, flags)?,
    };
    connection.busy_timeout(LOCK_WAIT)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    // A plan is made once. Otherwise SQLite plans most statements anew whenever a parameter is bound, because its value
    // might have led to another plan: that costs more than running them.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // A commit is on disk before it is answered: that is what the API's 202 promises. The writer's are brought there by a
    // thread of its own; NORMAL syncs what must be there before something else is written, and leaves out commits.
    connection.pragma_update(None, "synchronous", role.synchronous())?;
    // On macOS a sync that reaches the disk and not only its memory, as those of the log are.
    connection.pragma_update(None, "checkpoint_fullfsync", true)?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "cache_size", role.cache())?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    Ok(connection)
}

/// The writing thread: its connection, and what waits for it.
struct Writer {
    connection: Connection,
    place: Place,
    front: Waiting,
    back: Waiting,
    /// Waits for either.
    waits: tokio::runtime::Runtime,
    /// When the transaction ends, and until when it prefers what nobody waits for.
    until: Instant,
    back_until: Instant,
    /// Taken from its queue, and not of the kind that was being run.
    next: Option<(Lane, Box<dyn Job>)>,
    /// Transactions so far whose rows were taken back after somebody had remembered them.
    losses: u64,
    commits: Commits,
}

impl Writer {
    fn run(mut self) {
        while let Some((lane, mut first)) = self.next.take().or_else(|| self.wait()) {
            self.waits.block_on(self.commits.room());
            if self.commits.is_lost() {
                first.fail(StoreError::Unsynced);
                first.answer();
                continue;
            }
            if !self.place.still_leads_there() {
                tracing::error!(path = %self.place.path.display(), "{}", StoreError::Replaced);
                first.fail(StoreError::Replaced);
                first.answer();
                continue;
            }
            let again = first.again();
            let began = Instant::now();
            self.until = began + BATCH_TIME;
            self.back_until = began + BACK_TIME;
            self.took(lane, began);
            let mut batch = vec![first];
            let written = if again {
                match self.write_together(&mut batch) {
                    // Each by itself, so that only what fails is taken back.
                    Ok(false) => self.write_apart(&mut batch, false),
                    written => written.map(drop),
                }
            } else {
                self.write_apart(&mut batch, true)
            };
            if let Err(error) = written {
                tracing::error!(%error, jobs = batch.len(), "a store commit failed; nothing of it remains");
                self.roll_back();
                for job in &mut batch {
                    job.fail(error.clone());
                }
            }
            metrics::histogram!("switchboard_store_batch_jobs")
                .record(f64::from(u32::try_from(batch.len()).unwrap_or(u32::MAX)));
            self.commits.end(batch);
        }
    }

    /// The next closure, whoever waits for it; none, when both queues are closed and empty.
    fn wait(&mut self) -> Option<(Lane, Box<dyn Job>)> {
        let (front, back) = (&mut self.front, &mut self.back);
        self.waits.block_on(either(front, back))
    }

    /// The next closure that comes while the disk works on earlier commits: it could take the one of this transaction no
    /// sooner, and what comes until then shares it.
    fn wait_for_disk(&mut self) -> Option<(Lane, Box<dyn Job>)> {
        let (front, back, commits) = (&mut self.front, &mut self.back, &mut self.commits);
        let until = self.until;
        if !commits.under_way() {
            return None;
        }
        self.waits.block_on(async {
            tokio::select! {
                biased;
                next = either(front, back) => next,
                () = commits.settled() => None,
                () = tokio::time::sleep_until(until) => None,
            }
        })
    }

    fn took(&mut self, lane: Lane, now: Instant) {
        if lane == Lane::Front {
            self.until = self.until.min(now + FRONT_TIME);
        }
    }

    fn roll_back(&mut self) {
        self.losses += 1;
        if !self.connection.is_autocommit()
            && let Err(error) = run(&self.connection, "ROLLBACK")
        {
            tracing::error!(%error, "the failed transaction could not be rolled back");
        }
    }

    /// The next closure that waits, where it is of the same kind and the transaction has room and time for it.
    fn more(&mut self, batch: &mut Vec<Box<dyn Job>>, again: bool) {
        let now = Instant::now();
        if batch.len() >= BATCH_MAX || now >= self.until {
            return;
        }
        let front = |writer: &mut Self| writer.front.try_recv().ok().map(|job| (Lane::Front, job));
        let back = |writer: &mut Self| writer.back.try_recv().ok().map(|job| (Lane::Back, job));
        let next = if now < self.back_until {
            back(self).or_else(|| front(self))
        } else {
            front(self).or_else(|| back(self))
        };
        match next.or_else(|| self.wait_for_disk()) {
            Some((lane, job)) if job.again() == again => {
                self.took(lane, now);
                batch.push(job);
            }
            other => self.next = other,
        }
    }

    /// Runs what can be run again in one transaction, without a savepoint for each: SQLite keeps a copy of every page that
    /// is changed within one, and at each statement walks over the copies so far. False, and nothing of the batch remains,
    /// where one has failed after it had written.
    fn write_together(&mut self, batch: &mut Vec<Box<dyn Job>>) -> Result<bool, StoreError> {
        run(&self.connection, "BEGIN IMMEDIATE")?;
        let began = self.connection.total_changes();
        let mut counts = Counts::default();
        let mut next = 0;
        while let Some(job) = batch.get_mut(next) {
            let before = self.connection.total_changes();
            let mut tx = Tx::after(&self.connection, self.losses);
            if job.run(&mut tx) {
                counts.merge(tx.take_counts());
            } else if self.connection.is_autocommit() || self.connection.total_changes() != before {
                self.roll_back();
                return Ok(false);
            }
            next += 1;
            if next == batch.len() {
                self.more(batch, true);
            }
        }
        self.commit(&counts, began)?;
        Ok(true)
    }

    /// Commits what has changed since there were so many changes; where nothing has, the disk is not asked.
    fn commit(&mut self, counts: &Counts, before: u64) -> Result<(), StoreError> {
        usage::write(&mut Tx::after(&self.connection, self.losses), counts)?;
        if self.connection.total_changes() != before {
            self.commits.begin();
        }
        run(&self.connection, "COMMIT")
    }

    /// Runs closures in one transaction, each in a savepoint; with `more`, those that wait as well. `Err` means that
    /// nothing of the batch remains.
    fn write_apart(&mut self, batch: &mut Vec<Box<dyn Job>>, more: bool) -> Result<(), StoreError> {
        run(&self.connection, "BEGIN IMMEDIATE")?;
        let began = self.connection.total_changes();
        let mut next = 0;
        while let Some(job) = batch.get_mut(next) {
            run(&self.connection, "SAVEPOINT job")?;
            let mut tx = Tx::after(&self.connection, self.losses);
            if job.run(&mut tx) {
                // At once: what comes behind it may ask how much was used.
                tx.write_counts()?;
            } else {
                self.losses += u64::from(tx.is_remembered());
                // Disk full and I/O errors end the whole transaction inside SQLite, neighbours' rows included
                // (sqlite.org/lang_transaction.html, "Response To Errors Within A Transaction").
                if self.connection.is_autocommit() {
                    return Err(StoreError::Full);
                }
                run(&self.connection, "ROLLBACK TO job")?;
            }
            run(&self.connection, "RELEASE job")?;
            next += 1;
            if more && next == batch.len() {
                self.more(batch, false);
            }
        }
        self.commit(&Counts::default(), began)
    }
}

/// Copies what an earlier router left in the log into the file, and begins the log anew. Where its disk had failed, the system may
/// show what it never wrote: nothing is to be written behind that.
fn settle_log(connection: &Connection) -> Result<(), StoreError> {
    let busy: bool =
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
    if busy {
        tracing::warn!("another program reads the store's file: its log is not begun anew");
    }
    Ok(())
}

/// Makes the log `length` bytes long, with zeros behind what is in it: SQLite takes them for its end, as it does what an
/// earlier round has left there (sqlite.org/walformat.html). To be called with
/// the right to write: what another adds to it meanwhile would be lost.
///
/// A commit that makes the log longer waits for the file system's own journal as well, and on ext4 for what other programs have
/// written beside it. One that writes over what is there does not: 0.2 instead of 0.4 ms.
fn lengthen(log: &Path, length: u64) -> std::io::Result<()> {
    const STEP: &[u8] = &[0; 1 << 18];
    let file = File::options().write(true).open(log)?;
    let before = file.metadata()?.len();
    let mut end = before;
    while end < length {
        let step = usize::try_from(length - end).map_or(STEP.len(), |rest| rest.min(STEP.len()));
        let zeros = STEP.get(..step).unwrap_or(STEP);
        if let Err(error) = file.write_all_at(zeros, end) {
            tracing::warn!(%error, "no room for the store's log at its full length: it grows as it is written");
            return file.set_len(before);
        }
        end = end.saturating_add(u64::try_from(step).unwrap_or(u64::MAX));
    }
    Ok(())
}

/// Copies the log into the file from time to time, on a connection of its own.
fn copy_log(
    writer: &mut Connection,
    copier: Connection,
    commits: Commits,
) -> Result<(), StoreError> {
    let (bell, rings) = std::sync::mpsc::sync_channel::<()>(1);
    let mut copied = 0;
    writer.wal_hook(Some(move |log: &mut Wal, pages: i32| {
        if pages < copied {
            copied = 0;
        }
        if pages >= LOG_PAGES_MAX {
            // Who has seen this commit waits for the disk, and not for the copy.
            commits.written();
            // What fails is tried again at the next commit. This one is in the log, whatever comes of it.
            if let Err(error) = log.checkpoint() {
                tracing::warn!(%error, "the store's log could not be copied into its file");
            }
        } else if pages >= copied.saturating_add(LOG_PAGES) {
            // Where it does not, it rings already.
            let _rings = bell.try_send(()).is_ok();
            copied = pages;
        }
        Ok(())
    }))?;
    spawn("store-log", move || {
        while rings.recv().is_ok() {
            let copied = copier.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_row| Ok(()));
            if let Err(error) = copied {
                tracing::warn!(%error, "the store's log could not be copied into its file");
            }
        }
    })
}

/// The next closure of either queue; none, when both are closed and empty.
async fn either(front: &mut Waiting, back: &mut Waiting) -> Option<(Lane, Box<dyn Job>)> {
    tokio::select! {
        biased;
        Some(job) = back.recv() => Some((Lane::Back, job)),
        Some(job) = front.recv() => Some((Lane::Front, job)),
        else => None,
    }
}

fn read_all(connection: &Connection, waiting: &Mutex<Waiting>, commits: &Commits) {
    loop {
        // The lock is held while waiting: one reader waits for work, the others for the lock.
        let job = waiting.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv();
        let Some(mut job) = job else { return };
        if let Err(error) = read_one(connection, job.as_mut()) {
            job.fail(error);
        }
        commits.read(job);
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
        let mut connection = open(&folder.path().join("store.db"), Role::Writer).unwrap();
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
