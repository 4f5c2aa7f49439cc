//! Reading a whole database, fast and in little memory.
//!
//! One thread reads rows, batch by batch, and never holds a read transaction longer than a batch
//! takes; another one looks at what is in them and writes. A few batches wait between the two, so
//! that neither does and memory stays bounded whatever the database is.

mod export;
mod text;

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use protocol::UnixMs;

use crate::chatdb::{ChatDb, NotReady, RawRows, Row};
use crate::inbound::{Batch, Heard, Inbox, Patience};
use crate::line;

pub use export::{Args, ExportError, Format, run};

/// Rows of one batch: read within a millisecond or two, so that Messages can checkpoint in between, and
/// large enough that its three queries cost nothing beside its rows.
const BATCH_ROWS: usize = 400;
/// Batches between the threads. Rows are a few hundred bytes, so that this is about a megabyte.
const BATCHES_AHEAD: usize = 2;
/// Bytes gathered before they are written.
const OUT_BYTES: usize = 256 * 1024;

/// Why reading everything ended early.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The database cannot be read.
    #[error("cannot read the database")]
    NotReady(#[from] NotReady),
    /// The output cannot be written.
    #[error("cannot write the output")]
    Out(#[source] io::Error),
    /// An event that has no JSON form.
    #[error("cannot write an event as JSON")]
    Json(#[source] serde_json::Error),
    /// The system refuses a thread.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
}

/// Rows in the order of their numbers, read on a thread of its own.
struct Rows {
    batches: Receiver<Result<RawRows, NotReady>>,
    /// Batches that were looked at, to be filled again.
    used: SyncSender<RawRows>,
}

impl Rows {
    /// Rows above `from`, up to and including `to`.
    fn read(db: ChatDb, from: i64, to: i64) -> io::Result<Self> {
        let (give, batches) = sync_channel(BATCHES_AHEAD);
        let (used, again) = sync_channel::<RawRows>(BATCHES_AHEAD + 2);
        std::thread::Builder::new().name("rows".to_owned()).spawn(move || {
            let mut at = from;
            while at < to {
                let mut rows = again.try_recv().unwrap_or_default();
                let read = db.raw_rows_after(at, BATCH_ROWS, &mut rows);
                rows.truncate_above(to);
                let last = rows.last_rowid();
                let batch = read.map(|()| rows);
                let over = batch.is_err() || last.is_none();
                if batch.as_ref().is_ok_and(RawRows::is_empty) {
                    return;
                }
                // Nobody takes any more when the output is closed.
                if give.send(batch).is_err() || over {
                    return;
                }
                at = last.unwrap_or(to);
            }
        })?;
        Ok(Self { batches, used })
    }

    fn next(&self) -> Option<Result<Vec<Row>, NotReady>> {
        let batch = self.batches.recv().ok()?;
        Some(batch.map(|mut rows| {
            let decoded = rows.decode();
            match self.used.try_send(rows) {
                // Where there is no room, or nobody reads any more, it is simply freed.
                Ok(()) | Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {}
            }
            decoded
        }))
    }
}

/// An inbox that neither waits nor remembers: everything is there already.
fn impatient(from: i64, newest: Option<UnixMs>) -> Inbox {
    Inbox::new(from, newest, Patience { hold_ms: 0, known_max: 0 })
}

/// Tells each thing that these rows say while it lasts. The first error is the last thing that is
/// tried, and is given back.
fn tell_each<E>(
    inbox: &mut Inbox,
    rows: &[Row],
    now: UnixMs,
    mut tell: impl FnMut(&Heard) -> Result<(), E>,
) -> Result<(), E> {
    let mut told = Ok(());
    // Whoever reads once remembers nothing.
    let _noted = inbox.take_each(Batch::of(rows), now, &mut |heard| {
        if told.is_ok() {
            told = tell(&heard);
        }
    });
    told
}

/// Writes everything above a row that is there now as JSON lines.
pub(crate) fn stream(
    db: ChatDb,
    from: i64,
    now: UnixMs,
    mut out: impl Write,
) -> Result<(), StreamError> {
    let mut inbox = impatient(from, db.newest_date_at(from)?);
    let to = db.max_rowid()?;
    let rows = Rows::read(db, from, to).map_err(StreamError::Thread)?;
    let mut lines = Vec::with_capacity(OUT_BYTES);
    while let Some(batch) = rows.next() {
        tell_each(&mut inbox, &batch?, now, |heard| line::write(&mut lines, &heard.told))
            .map_err(StreamError::Json)?;
        if lines.len() >= OUT_BYTES / 2 {
            out.write_all(&lines).map_err(StreamError::Out)?;
            lines.clear();
        }
    }
    out.write_all(&lines).and_then(|()| out.flush()).map_err(StreamError::Out)
}
