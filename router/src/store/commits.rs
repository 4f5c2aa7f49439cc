//! Commits on their way to the disk.
//!
//! The writer commits into the log and goes on. A thread of its own syncs the log, which brings all commits so far to the disk
//! at once, and only then tells whoever waits for them: while the disk works, the next transaction is run. What is told to
//! anybody is on disk all the same. A read may see a commit that is not there yet, and its answer waits for it.
//!
//! Where the disk does not take the log, nobody knows what is there (the system forgets what it could not write, and the
//! next sync may succeed without it), so that nothing is answered any more: the router has to start anew, from what is
//! found on the disk.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use tokio::sync::watch;

use super::StoreError;
use super::threads::Job;

/// Commits that wait for the disk before the writer waits as well.
const WAITING_MAX: u64 = 16;

/// How far the disk is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Disk {
    /// The last commit that is there.
    synced: u64,
    /// It did not take one.
    lost: bool,
}

/// What waits for a commit to be on disk, to be answered then.
#[derive(Debug)]
struct Waiting {
    commit: u64,
    jobs: Vec<Box<dyn Job>>,
}

/// The numbers of commits; clones share them.
#[derive(Debug, Clone)]
pub(super) struct Commits {
    /// Commits that others may see: a number is given before its commit.
    begun: Arc<AtomicU64>,
    /// Commits that a sync brings to the disk.
    ended: Arc<AtomicU64>,
    disk: watch::Receiver<Disk>,
    waiting: Sender<Waiting>,
}

/// The thread's side.
#[derive(Debug)]
pub(super) struct Syncer<S> {
    ended: Arc<AtomicU64>,
    disk: watch::Sender<Disk>,
    waiting: Receiver<Waiting>,
    sync: S,
}

/// The writer's side and the thread's, which syncs the log by `sync`.
pub(super) fn commits<S: FnMut() -> io::Result<()>>(sync: S) -> (Commits, Syncer<S>) {
    let (begun, ended) = <(Arc<AtomicU64>, Arc<AtomicU64>)>::default();
    let (disk, seen) = watch::channel(Disk::default());
    let (give, waiting) = channel();
    let syncer = Syncer { ended: Arc::clone(&ended), disk, waiting, sync };
    (Commits { begun, ended, disk: seen, waiting: give }, syncer)
}

impl Commits {
    /// A commit begins: from here on others may see it.
    pub(super) fn begin(&self) {
        self.begun.fetch_add(1, Ordering::SeqCst);
    }

    /// The commit is written, though it may have more to do: from here on a sync brings it to the disk.
    pub(super) fn written(&self) {
        self.end(Vec::new());
    }

    /// It has ended, well or not; these are answered when it is on disk, with all that was before it.
    pub(super) fn end(&self, jobs: Vec<Box<dyn Job>>) {
        let commit = self.begun.load(Ordering::SeqCst);
        self.ended.store(commit, Ordering::SeqCst);
        self.wait(commit, jobs);
    }

    /// A read has ended: it is answered when all that it can have seen is on disk.
    pub(super) fn read(&self, job: Box<dyn Job>) {
        let commit = self.begun.load(Ordering::SeqCst);
        let Disk { synced, lost } = *self.disk.borrow();
        if commit <= synced && !lost {
            job.answer();
        } else {
            self.wait(commit, vec![job]);
        }
    }

    fn wait(&self, commit: u64, jobs: Vec<Box<dyn Job>>) {
        if let Err(gone) = self.waiting.send(Waiting { commit, jobs }) {
            fail(gone.0.jobs, &StoreError::Closed);
        }
    }

    /// The disk still works on a commit: more that comes meanwhile can share the next one.
    pub(super) fn under_way(&self) -> bool {
        let Disk { synced, lost } = *self.disk.borrow();
        synced < self.ended.load(Ordering::SeqCst) && !lost
    }

    /// Waits where the disk is far behind.
    pub(super) async fn room(&mut self) {
        self.behind_by(WAITING_MAX - 1).await;
    }

    /// Waits until all that has ended is on disk.
    pub(super) async fn settled(&mut self) {
        self.behind_by(0).await;
    }

    /// Waits until no more commits than these are not on disk, or it is clear that they never will be.
    async fn behind_by(&mut self, most: u64) {
        let ended = self.ended.load(Ordering::SeqCst);
        let near = |disk: &Disk| disk.lost || ended.saturating_sub(disk.synced) <= most;
        // Without the thread nothing more comes, and whoever waits goes on.
        let _closed = self.disk.wait_for(near).await;
    }

    /// The disk did not take a commit.
    pub(super) fn is_lost(&self) -> bool {
        self.disk.borrow().lost
    }

    /// Waits until the disk does not take a commit.
    pub(super) async fn lost(&self) {
        let mut disk = self.disk.clone();
        if disk.wait_for(|disk| disk.lost).await.is_err() {
            // The store is closed, and nothing was lost.
            std::future::pending::<()>().await;
        }
    }
}

impl<S: FnMut() -> io::Result<()>> Syncer<S> {
    /// Works until all others are gone.
    pub(super) fn run(mut self) {
        let mut all: Vec<Waiting> = Vec::new();
        while let Ok(first) = self.waiting.recv() {
            all.push(first);
            all.extend(self.waiting.try_iter());
            let wanted = all.iter().map(|waiting| waiting.commit).max().unwrap_or(0);
            let disk = self.reach(wanted);
            // A read may have seen a commit that has not ended, whose end comes here, too.
            let (there, not_yet) = std::mem::take(&mut all)
                .into_iter()
                .partition(|waiting| disk.lost || waiting.commit <= disk.synced);
            all = not_yet;
            for Waiting { jobs, .. } in there {
                if disk.lost {
                    fail(jobs, &StoreError::Unsynced);
                } else {
                    for job in jobs {
                        job.answer();
                    }
                }
            }
        }
        for waiting in all {
            fail(waiting.jobs, &StoreError::Closed);
        }
    }

    /// Brings to the disk what has ended, where it is not there.
    fn reach(&mut self, wanted: u64) -> Disk {
        let disk = *self.disk.borrow();
        let ended = self.ended.load(Ordering::SeqCst);
        // What is wanted may not have ended, and its end asks again.
        if disk.lost || wanted.min(ended) <= disk.synced {
            return disk;
        }
        let began = tokio::time::Instant::now();
        let disk = match (self.sync)() {
            Ok(()) => Disk { synced: ended, lost: false },
            Err(error) => {
                tracing::error!(%error, "{}", StoreError::Unsynced);
                Disk { lost: true, ..disk }
            }
        };
        metrics::histogram!("switchboard_store_sync_seconds").record(began.elapsed());
        self.disk.send_replace(disk);
        disk
    }
}

fn fail(jobs: Vec<Box<dyn Job>>, error: &StoreError) {
    for mut job in jobs {
        job.fail(error.clone());
        job.answer();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};
    use std::thread::JoinHandle;
    use std::time::Duration;

    use super::*;
    use crate::store::Tx;

    /// Says its name when it is answered, and how.
    #[derive(Debug)]
    struct Named(&'static str, Option<StoreError>, Sender<String>);

    impl Job for Named {
        fn run(&mut self, _: &mut Tx<'_>) -> bool {
            true
        }

        fn again(&self) -> bool {
            true
        }

        fn fail(&mut self, error: StoreError) {
            self.1 = Some(error);
        }

        fn answer(self: Box<Self>) {
            let how = self.1.map_or("on disk".to_owned(), |error| error.to_string());
            drop(self.2.send(format!("{}: {how}", self.0)));
        }
    }

    /// A disk that syncs when it is told to, and how.
    struct Bench {
        commits: Commits,
        /// The disk was asked to sync.
        asked: Receiver<()>,
        let_it: Sender<io::Result<()>>,
        say: Sender<String>,
        said: Receiver<String>,
        thread: JoinHandle<()>,
    }

    fn bench() -> Bench {
        let ((ask, asked), (let_it, may), (say, said)) = (channel(), channel(), channel());
        let (commits, syncer) = commits(move || {
            ask.send(()).unwrap();
            may.recv().unwrap()
        });
        let thread = std::thread::spawn(move || syncer.run());
        Bench { commits, asked, let_it, say, said, thread }
    }

    impl Bench {
        fn job(&self, name: &'static str) -> Box<dyn Job> {
            Box::new(Named(name, None, self.say.clone()))
        }

        fn commit(&self, name: &'static str) {
            self.commits.begin();
            self.commits.end(vec![self.job(name)]);
        }

        /// The disk syncs what it was asked for, and nobody has heard of that before.
        fn syncs(&self) {
            self.asked.recv().unwrap();
            assert!(self.is_quiet());
            self.let_it.send(Ok(())).unwrap();
        }

        fn is_quiet(&self) -> bool {
            self.said.recv_timeout(Duration::from_millis(50)).is_err()
        }

        fn hears(&self, expected: &[&str]) {
            for expected in expected {
                let heard = self.said.recv_timeout(Duration::from_secs(10)).unwrap();
                assert_eq!(heard, *expected);
            }
        }
    }

    #[test]
    fn nobody_is_told_before_it_is_on_disk_and_one_sync_serves_all_that_came_before_it() {
        let bench = bench();
        bench.commits.read(bench.job("at rest"));
        bench.hears(&["at rest: on disk"]);
        bench.commit("first");
        bench.asked.recv().unwrap();
        assert!(bench.commits.under_way());
        // The disk works on the first: what comes now is not in it.
        bench.commit("second");
        bench.commit("third");
        bench.commits.read(bench.job("a read"));
        assert!(bench.is_quiet());
        bench.let_it.send(Ok(())).unwrap();
        bench.hears(&["first: on disk"]);
        bench.syncs();
        bench.hears(&["second: on disk", "third: on disk", "a read: on disk"]);
        assert!(!bench.commits.under_way());
        drop((bench.commits, bench.let_it));
        bench.thread.join().unwrap();
        assert!(bench.asked.recv().is_err(), "no other sync");
    }

    #[test]
    fn a_read_waits_for_a_commit_that_it_may_have_seen_before_it_ended() {
        let bench = bench();
        bench.commits.begin();
        bench.commits.read(bench.job("a read"));
        // A sync would come too early for the commit.
        assert!(bench.is_quiet());
        assert!(bench.asked.try_recv().is_err());
        bench.commits.end(vec![bench.job("the commit")]);
        bench.syncs();
        bench.hears(&["a read: on disk", "the commit: on disk"]);
    }

    #[test]
    fn what_changes_nothing_waits_for_what_was_before_it_and_asks_for_no_sync() {
        let bench = bench();
        bench.commits.end(vec![bench.job("at rest")]);
        bench.hears(&["at rest: on disk"]);
        bench.commit("a change");
        bench.commits.end(vec![bench.job("a look")]);
        bench.syncs();
        bench.hears(&["a change: on disk", "a look: on disk"]);
        assert!(bench.asked.try_recv().is_err());
    }

    #[test]
    fn what_is_written_and_not_over_keeps_no_read_waiting() {
        let bench = bench();
        bench.commits.begin();
        bench.commits.read(bench.job("a read"));
        assert!(bench.is_quiet());
        bench.commits.written();
        bench.asked.recv().unwrap();
        bench.let_it.send(Ok(())).unwrap();
        bench.hears(&["a read: on disk"]);
        bench.commits.end(vec![bench.job("its writer")]);
        bench.hears(&["its writer: on disk"]);
    }

    #[tokio::test]
    async fn the_writer_waits_where_the_disk_is_far_behind() {
        let mut bench = bench();
        for _ in 0..WAITING_MAX {
            bench.commits.room().await;
            bench.commit("one");
        }
        let full = tokio::time::timeout(Duration::from_millis(50), bench.commits.room()).await;
        assert!(full.is_err());
        bench.let_it.send(Ok(())).unwrap();
        bench.commits.room().await;
    }

    #[test]
    fn after_a_sync_that_failed_nothing_is_answered_any_more() {
        let bench = bench();
        bench.commit("lost");
        bench.asked.recv().unwrap();
        bench.commit("after it");
        bench.let_it.send(Err(io::Error::other("broken"))).unwrap();
        let lost = |name: &str| format!("{name}: {}", StoreError::Unsynced);
        bench.hears(&[&lost("lost"), &lost("after it")]);
        assert!(bench.commits.is_lost());
        bench.commit("later");
        bench.commits.read(bench.job("a read"));
        bench.hears(&[&lost("later"), &lost("a read")]);
        assert!(bench.asked.try_recv().is_err(), "a later sync could succeed without it");
    }
}
