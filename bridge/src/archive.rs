//! Reading a whole database, fast and in little memory.
//!
//! Threads read rows, batch by batch, and never hold a read transaction longer than a batch takes;
//! another one looks at what is in them and writes. A few batches wait between them, so that
//! nobody else does and memory stays bounded whatever the database is.

mod export;
mod rows;
mod text;

use std::io::{self, Write};

use protocol::UnixMs;

use self::rows::{Rows, Taken};
use crate::chatdb::{ChatDb, NotReady};
use crate::inbound::{Batch, Heard, Inbox, Patience};
use crate::line;

pub use export::{Args, ExportError, Format, run};

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

/// An inbox that neither waits nor remembers: everything is there already.
fn impatient(from: i64, newest: Option<UnixMs>) -> Inbox {
    Inbox::new(from, newest, Patience { hold_ms: 0, known_max: 0 })
}

/// Tells each thing that these rows say while it lasts. The first error is the last thing that is
/// tried, and is given back.
fn tell_each<E>(
    inbox: &mut Inbox,
    taken: Taken<'_>,
    now: UnixMs,
    mut tell: impl FnMut(&Heard) -> Result<(), E>,
) -> Result<(), E> {
    let mut told = Ok(());
    // Whoever reads once remembers nothing.
    let _noted = inbox.take_each(
        Batch { following: taken.following, ..Batch::of(taken.rows) },
        now,
        &mut |heard| {
            if told.is_ok() {
                told = tell(&heard);
            }
        },
    );
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
    let mut rows = Rows::read(db, from, to)?;
    let mut lines = Vec::with_capacity(OUT_BYTES);
    while let Some(batch) = rows.next() {
        tell_each(&mut inbox, batch?, now, |heard| line::write(&mut lines, &heard.told))
            .map_err(StreamError::Json)?;
        if lines.len() >= OUT_BYTES / 2 {
            out.write_all(&lines).map_err(StreamError::Out)?;
            lines.clear();
        }
    }
    out.write_all(&lines).and_then(|()| out.flush()).map_err(StreamError::Out)
}
