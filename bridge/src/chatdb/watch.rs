//! Notices that the database has changed: file events as a hint, a poll of `PRAGMA data_version` as
//! the truth.
//!
//! File events are lost under load and after sleep, and a WAL that was deleted and created again
//! ends a watch on it (imsg#126). So the events only shorten the wait: a thread of its own polls at
//! least every [`POLL_EVERY`] whatever they say, on the connection that [`super::ChatDb`] reads
//! over. A file that was replaced is opened again, and counts as a change.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc::error::TrySendError;

use super::shared::Shared;
use super::{Files, beside};

/// Longest time between two looks at `data_version`.
pub(crate) const POLL_EVERY: Duration = Duration::from_millis(250);
/// A commit makes several file events; one look after they have settled is enough.
const SETTLE: Duration = Duration::from_millis(2);
/// While there is no database to open, how many polls pass between two tries.
const REOPEN_EVERY_POLLS: u64 = 4;

/// What a watch has done, for heartbeats. Every number only grows.
#[derive(Debug, Default)]
pub struct WatchCounters {
    polls: AtomicU64,
    changes: AtomicU64,
    hints: AtomicU64,
    reopened: AtomicU64,
}

impl WatchCounters {
    /// Looks at the database.
    pub fn polls(&self) -> u64 {
        self.polls.load(Ordering::Relaxed)
    }

    /// Changes seen.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    /// File events taken.
    pub fn hints(&self) -> u64 {
        self.hints.load(Ordering::Relaxed)
    }

    /// Times that the files were found replaced.
    pub fn reopened(&self) -> u64 {
        self.reopened.load(Ordering::Relaxed)
    }
}

/// Looks after a file event, besides the one at once. The event tells of a write to the WAL; the
/// commit becomes visible later, after an fsync that may take its time, with a write to the shared
/// memory of which no event tells. So for a while after an event it is looked often, first every few
/// milliseconds; a look costs some microseconds. Without these such a commit would wait for the poll.
const ECHO_FIRST: Duration = Duration::from_millis(1);
/// Each look comes half as late again as the one before, up to this.
const ECHO_MAX: Duration = Duration::from_millis(10);
/// After so long without another event the poll alone goes on.
const ECHOES_FOR: Duration = Duration::from_millis(300);

/// How long to wait for the next look after an event, and since when there was none.
#[derive(Debug, Clone, Copy)]
struct Echo {
    next: Duration,
    passed: Duration,
}

impl Echo {
    const OVER: Self = Self { next: POLL_EVERY, passed: ECHOES_FOR };

    /// An event has come.
    fn begin() -> Self {
        Self { next: ECHO_FIRST, passed: Duration::ZERO }
    }

    /// The poll alone goes on.
    fn is_over(self) -> bool {
        self.passed >= ECHOES_FOR
    }

    /// A look without an event before it.
    fn go_on(self) -> Self {
        let passed = self.passed.saturating_add(self.next);
        if passed >= ECHOES_FOR {
            return Self::OVER;
        }
        Self { next: self.next.saturating_mul(3).div_f32(2.0).min(ECHO_MAX), passed }
    }
}

/// A running watch; ends when dropped.
#[derive(Debug)]
pub struct Watch {
    counters: Arc<WatchCounters>,
    stop: Arc<AtomicBool>,
    wake: SyncSender<()>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Starts a watch on the database at `path`, which need not exist yet, and gives the end on
    /// which one `()` arrives after a change. Changes coalesce: whoever takes one reads all that is
    /// new. The first one comes at once.
    ///
    /// The receiver should ask [`super::ChatDb::is_stale`] and open again when it says so.
    pub fn start(path: &Path) -> std::io::Result<(Self, tokio::sync::mpsc::Receiver<()>)> {
        Self::start_with(path, true)
    }

    /// The same, with file events or by polling alone.
    pub fn start_with(
        path: &Path,
        events: bool,
    ) -> std::io::Result<(Self, tokio::sync::mpsc::Receiver<()>)> {
        Self::start_polling(path, events, POLL_EVERY)
    }

    fn start_polling(
        path: &Path,
        events: bool,
        poll_every: Duration,
    ) -> std::io::Result<(Self, tokio::sync::mpsc::Receiver<()>)> {
        // One place: a change that nobody has taken yet says everything that a second would.
        let (changed, changes) = tokio::sync::mpsc::channel(1);
        let (wake, woken) = sync_channel(1);
        let counters = Arc::new(WatchCounters::default());
        let stop = Arc::new(AtomicBool::new(false));
        let worker = Worker {
            path: path.to_owned(),
            counters: Arc::clone(&counters),
            stop: Arc::clone(&stop),
            changed,
            woken,
            hints: Hints::new(path, events.then_some(&wake), &counters),
            shared: Shared::at(path),
            seen: None,
            files: Files::default(),
            poll_every,
        };
        let thread = std::thread::Builder::new()
            .name("chatdb-watch".to_owned())
            .spawn(move || worker.run())?;
        Ok((Self { counters, stop, wake, thread: Some(thread) }, changes))
    }

    /// What it has done.
    pub fn counters(&self) -> &Arc<WatchCounters> {
        &self.counters
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        nudge(&self.wake);
        if let Some(thread) = self.thread.take() {
            // The worker does not panic; if it did, the message is on stderr already.
            drop(thread.join());
        }
    }
}

/// File events on the database, its WAL and their directory.
struct Hints {
    watcher: Option<RecommendedWatcher>,
    paths: [PathBuf; 3],
}

impl Hints {
    fn new(path: &Path, wake: Option<&SyncSender<()>>, counters: &Arc<WatchCounters>) -> Self {
        let watcher = wake.map(|wake| Self::watcher(wake.clone(), Arc::clone(counters)));
        let watcher = match watcher {
            Some(Ok(watcher)) => Some(watcher),
            Some(Err(error)) => {
                tracing::warn!(%error, "no file events: chat.db is polled alone");
                None
            }
            None => None,
        };
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            Some(_) | None => PathBuf::from("."),
        };
        Self { watcher, paths: [path.to_owned(), beside(path, "-wal"), directory] }
    }

    fn watcher(
        wake: SyncSender<()>,
        counters: Arc<WatchCounters>,
    ) -> notify::Result<RecommendedWatcher> {
        notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // That somebody opens or reads the files is no change, and we do so ourselves. An error
            // is as good a reason to look as an event: it may be about events that were lost.
            if event.is_ok_and(|event| event.kind.is_access()) {
                return;
            }
            counters.hints.fetch_add(1, Ordering::Relaxed);
            nudge(&wake);
        })
    }

    /// Watches the files that are there now; the old watches may be on files that are gone.
    fn arm(&mut self) {
        let Some(watcher) = &mut self.watcher else { return };
        for path in &self.paths {
            if let Err(error) = watcher.unwatch(path) {
                tracing::trace!(%error, "was not watched");
            }
            if let Err(error) = watcher.watch(path, RecursiveMode::NonRecursive) {
                tracing::debug!(path = %path.display(), %error, "not watched: the poll will see it");
            }
        }
    }
}

struct Worker {
    path: PathBuf,
    counters: Arc<WatchCounters>,
    stop: Arc<AtomicBool>,
    changed: tokio::sync::mpsc::Sender<()>,
    woken: Receiver<()>,
    hints: Hints,
    shared: Arc<Shared>,
    /// Opening and `data_version` at the last look; none when the database could not be looked at.
    seen: Option<(u64, i64)>,
    files: Files,
    poll_every: Duration,
}

impl Worker {
    fn run(mut self) {
        self.hints.arm();
        self.look();
        self.tell();
        let mut echo = Echo::OVER;
        while !self.stop.load(Ordering::Relaxed) && !self.changed.is_closed() {
            let wait = if echo.is_over() { self.poll_every } else { echo.next };
            match self.woken.recv_timeout(wait) {
                Ok(()) => {
                    echo = Echo::begin();
                    // Wait for the rest of the commit's events, and take them together.
                    match self.woken.recv_timeout(SETTLE) {
                        Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                        Err(RecvTimeoutError::Disconnected) => return,
                    }
                }
                Err(RecvTimeoutError::Timeout) => echo = echo.go_on(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if self.look() {
                self.counters.changes.fetch_add(1, Ordering::Relaxed);
                self.tell();
            }
        }
    }

    /// Whether something has changed since the last look.
    fn look(&mut self) -> bool {
        let polls = self.counters.polls.fetch_add(1, Ordering::Relaxed);
        // While it cannot be opened, the files are looked at each time and it is tried now and
        // then.
        let files = Files::at(&self.path);
        if self.seen.is_none() && files == self.files && !polls.is_multiple_of(REOPEN_EVERY_POLLS) {
            return false;
        }
        let replaced = files != self.files;
        if replaced {
            self.hints.arm();
        }
        let seen = self.shared.open().and_then(|generation| {
            let version = self.shared.run(generation, |connection| {
                connection
                    .prepare_cached("PRAGMA data_version")?
                    .query_row([], |row| row.get::<_, i64>(0))
            })?;
            Ok((generation, version))
        });
        let seen = match seen {
            Ok(seen) => Some(seen),
            // Whoever reads will meet the same and say so.
            Err(error) => {
                tracing::debug!(%error, "cannot look at the database");
                None
            }
        };
        let before = std::mem::replace(&mut self.seen, seen);
        let generation = |seen: Option<(u64, i64)>| seen.map(|(generation, _)| generation);
        let opened = generation(seen) != generation(before);
        // Opening a WAL database may itself have created the WAL.
        self.files = if opened || seen.is_none() { Files::at(&self.path) } else { files };
        if replaced || opened {
            self.counters.reopened.fetch_add(1, Ordering::Relaxed);
        }
        replaced || seen != before
    }

    fn tell(&self) {
        match self.changed.try_send(()) {
            // Full: the change before has not been taken yet, and reading it will show this one as
            // well. Closed: the loop ends by itself.
            Ok(()) | Err(TrySendError::Full(()) | TrySendError::Closed(())) => {}
        }
    }
}

/// Wakes the worker.
fn nudge(wake: &SyncSender<()>) {
    match wake.try_send(()) {
        // Full means that it is about to wake anyway; disconnected means that it has ended.
        Ok(()) | Err(mpsc::TrySendError::Full(()) | mpsc::TrySendError::Disconnected(())) => {}
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;

    /// Whether a commit is noticed when nothing has happened for a while.
    async fn notices_a_commit(events: bool, poll_every: Duration) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chat.db");
        let writer = Connection::open(&path).unwrap();
        writer.pragma_update(None, "journal_mode", "wal").unwrap();
        writer.execute_batch("CREATE TABLE message (guid)").unwrap();
        let (watch, mut changes) = Watch::start_polling(&path, events, poll_every).unwrap();
        let mut change = async |within| tokio::time::timeout(within, changes.recv()).await;
        change(Duration::from_secs(20)).await.expect("the first one comes at once");
        while change(ECHOES_FOR.saturating_mul(2)).await.is_ok() {}
        writer.execute_batch("INSERT INTO message VALUES ('A')").unwrap();
        change(Duration::from_secs(20)).await.expect("the commit is noticed").unwrap();
        assert_eq!(watch.counters().hints() > 0, events);
    }

    #[tokio::test]
    async fn file_events_alone_tell_of_a_commit() {
        notices_a_commit(true, Duration::from_hours(1)).await;
    }

    #[tokio::test]
    async fn polling_alone_tells_of_a_commit() {
        notices_a_commit(false, POLL_EVERY).await;
    }

    #[test]
    fn looks_after_an_event_are_frequent_and_end() {
        let mut echo = Echo::begin();
        let mut looks = 0;
        while echo.next != POLL_EVERY {
            assert!(echo.next <= ECHO_MAX);
            echo = echo.go_on();
            looks += 1;
        }
        assert!((30..60).contains(&looks), "{looks}");
        assert_eq!(echo.go_on().next, POLL_EVERY);
    }
}
