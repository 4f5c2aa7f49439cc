//! The seam to the database: `write(|tx| …)`, `read(|tx| …)`, and nothing else.
//!
//! Store functions are plain synchronous functions over [`Tx`], one file a subject, the tenant first in every signature
//! that touches a tenant's rows. They are written in the SQL that SQLite and PostgreSQL share: BIGINT milliseconds,
//! TEXT ids and JSON, `ON CONFLICT`, `RETURNING`, parameters as `?1` ([`Dialect`] rewrites them where an engine wants
//! another spelling). Only this file and its `engine` modules know rusqlite.
//!
//! **Writing.** One thread owns the writing connection. It takes the closures that are waiting, runs them in one
//! transaction and commits once; all of them are answered only when a thread of its own has brought the commit to the disk,
//! while the writer goes on ([`commits`]). A closure
//! that fails takes back its own rows and nobody else's: each runs in a SAVEPOINT, or can be run again
//! ([`Store::transact_often`]). A commit that fails fails them all.
//!
//! **Reading.** A few threads with connections of their own; each closure sees one snapshot, and is answered when all of it
//! is on disk.

mod commits;
mod dialect;
mod error;
#[cfg(test)]
pub(crate) mod in_memory;
mod log_writes;
mod migrate;
mod threads;
mod tx;
mod value;

pub mod accounts;
pub mod admin;
pub mod audit;
pub mod batches;
pub mod canaries;
pub mod capabilities;
pub mod change;
pub mod contacts;
pub mod credit;
pub mod dead_letters;
pub mod dispatch;
pub mod doubts;
pub mod events;
pub mod idempotency;
pub mod inbound;
pub mod keys;
pub mod lease;
pub mod ledger;
pub mod messages;
pub mod opt_outs;
pub mod providers;
pub mod queue;
pub mod retention;
pub mod rules;
pub mod standby;
pub mod starts;
pub mod stripe;
pub mod tally;
pub mod templates;
pub mod unplaced;
pub mod usage;
pub mod watch;
pub mod webhook_endpoints;
pub mod webhook_jobs;

use std::path::Path;
use std::sync::Arc;

use tokio::sync::oneshot;

pub use self::dialect::Dialect;
pub use self::error::StoreError;
pub use self::migrate::{MIGRATIONS, Migration, migrate};
pub(crate) use self::threads::LOG_MIB_MAX;
pub use self::tx::{Row, Tx};
pub use self::value::{Column, FromColumn, Json, ToValue, Value};

/// Parameters of a statement, each through [`ToValue`]: `params![tenant, now, "queued"]`.
#[macro_export]
macro_rules! params {
    ($($value:expr),* $(,)?) => {
        &[$($crate::store::ToValue::to_value(&$value)),*]
    };
}

/// A handle on the store; clones share the threads.
#[derive(Clone, Debug)]
pub struct Store {
    threads: Arc<threads::Threads>,
    lane: threads::Lane,
}

impl Store {
    /// Opens the file, brings its schema up to date and starts the threads.
    ///
    /// The file is made when it is missing. A schema newer than this program, or one whose applied migrations differ
    /// from the ones compiled in, is refused.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_with(path, 0)
    }

    /// [`Store::open`], with a log that is `log_mib` MiB long from the start: see `database_log_mib` in the configuration.
    pub fn open_with(path: &Path, log_mib: u32) -> Result<Self, StoreError> {
        let threads = Arc::new(threads::Threads::start(path, log_mib)?);
        Ok(Self { threads, lane: threads::Lane::Front })
    }

    /// The same store for work that nobody waits for at the other end of a connection: what the router works off by itself.
    /// Each transaction begins with some of it, and the rest has to wait for those who wait.
    #[must_use]
    pub fn behind(&self) -> Self {
        Self { threads: Arc::clone(&self.threads), lane: threads::Lane::Back }
    }

    /// Runs `work` in a write transaction of its own making: on `Ok` its rows are on disk when this returns; on `Err`
    /// nothing of it remains.
    pub async fn write<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        self.transact(work).await
    }

    /// [`Store::write`] for closures with an error of their own; such an error too takes everything back.
    pub async fn transact<T, E, F>(&self, work: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        F: FnOnce(&mut Tx<'_>) -> Result<T, E> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        self.threads.submit_write(self.lane, Box::new(threads::Work::once(work, answer))).await?;
        answered.await.map_err(|_closed| E::from(StoreError::Closed))?
    }

    /// [`Store::write`] for what happens to every message: see [`Store::transact_often`].
    pub async fn write_often<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnMut(&mut Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        self.transact_often(work).await
    }

    /// [`Store::transact`] for what happens to every message. Such closures share a transaction without being fenced off
    /// from each other, which costs half as much; where one fails after it has written, all of them are taken back and run
    /// once more, each for itself. So it must come to the same when it is run again.
    pub async fn transact_often<T, E, F>(&self, work: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        F: FnMut(&mut Tx<'_>) -> Result<T, E> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        self.threads.submit_write(self.lane, Box::new(threads::Work::often(work, answer))).await?;
        answered.await.map_err(|_closed| E::from(StoreError::Closed))?
    }

    /// Waits until the disk does not take what was written. Nothing is answered from then on ([`StoreError::Unsynced`]).
    pub async fn lost(&self) {
        self.threads.lost().await;
    }

    /// Runs `work` on a reading connection: one snapshot, no writing.
    pub async fn read<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        self.threads.submit_read(Box::new(threads::Work::once(work, answer))).await?;
        answered.await.map_err(|_closed| StoreError::Closed)?
    }
}
