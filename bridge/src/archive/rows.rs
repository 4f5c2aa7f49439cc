//! Rows of a whole database in the order of their numbers, read by several threads.
//!
//! A thread claims the next range of rowids, reads it over a connection of its own and hands it over
//! with the number of its claim; whoever takes the batches puts them in order. Claims run only a few
//! batches ahead of what was taken, so that memory stays bounded whatever the database is.

use std::collections::BTreeMap;
use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::StreamError;
use crate::chatdb::{ChatDb, NotReady, RawRows, Row};

/// Rowids of one batch: read within a millisecond or two, so that Messages can checkpoint in between,
/// and so many that its three queries cost little beside its rows. Where rows are missing it is smaller.
const BATCH_ROWIDS: i64 = 400;
/// Batches that are claimed before the first of them is taken. Rows are a few hundred bytes, so that
/// this is about a megabyte.
const CLAIMS_AHEAD: u64 = 4;
/// Most threads that read: together they keep up with the one that writes.
const READERS_MAX: usize = 2;
/// With fewer processors than this, one that reads and one that writes have them all.
const PROCESSORS_FOR_TWO: usize = 3;

/// A batch, and the number of its claim.
type Read = (u64, Result<RawRows, NotReady>);

/// Rows in the order of their numbers.
pub(super) struct Rows {
    claims: Arc<Claims>,
    batches: Receiver<Read>,
    /// Batches that came before their turn.
    early: BTreeMap<u64, Result<RawRows, NotReady>>,
}

impl Rows {
    /// Rows above `from`, up to and including `to`.
    pub(super) fn read(db: ChatDb, from: i64, to: i64) -> Result<Self, StreamError> {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let readers = if processors < PROCESSORS_FOR_TWO { 1 } else { READERS_MAX };
        Self::read_by(readers, db, from, to)
    }

    fn read_by(readers: usize, db: ChatDb, from: i64, to: i64) -> Result<Self, StreamError> {
        let claims = Arc::new(Claims::new(from, to));
        let (give, batches) = sync_channel(READERS_MAX);
        let others = (1..readers).map(|_| db.another()).collect::<Result<Vec<_>, _>>()?;
        for db in std::iter::once(db).chain(others) {
            let reader = Reader { db, claims: Arc::clone(&claims), give: give.clone() };
            std::thread::Builder::new()
                .name("rows".to_owned())
                .spawn(move || reader.run())
                .map_err(StreamError::Thread)?;
        }
        Ok(Self { claims, batches, early: BTreeMap::new() })
    }

    /// Puts the next rows, never none, in place of what is there; nothing when all have been taken.
    pub(super) fn next(&mut self, rows: &mut Vec<Row>) -> Option<Result<(), StreamError>> {
        loop {
            let next = self.claims.state().taken;
            let mut batch = match self.early.remove(&next) {
                Some(Ok(batch)) => batch,
                Some(Err(why)) => return Some(Err(why.into())),
                None => match self.batches.recv() {
                    Ok((number, batch)) => {
                        self.early.insert(number, batch);
                        continue;
                    }
                    // Nobody reads any more: all is here, or a reader has died.
                    Err(_) if next == self.claims.state().claimed => return None,
                    Err(_) => {
                        let died = io::Error::other("a thread that read has ended before its time");
                        return Some(Err(StreamError::Thread(died)));
                    }
                },
            };
            batch.decode_into(rows);
            self.claims.taken(batch);
            if !rows.is_empty() {
                return Some(Ok(()));
            }
        }
    }
}

impl Drop for Rows {
    fn drop(&mut self) {
        self.claims.close();
    }
}

/// Which rowids are read by whom.
struct Claims {
    state: Mutex<State>,
    /// There may be something to claim again, or never will be.
    changed: Condvar,
    to: i64,
}

struct State {
    /// Up to here everything is claimed.
    at: i64,
    claimed: u64,
    taken: u64,
    closed: bool,
    /// Batches that were looked at, to be filled again.
    used: Vec<RawRows>,
}

/// A range of rowids, the first one not counted in.
struct Claim {
    number: u64,
    above: i64,
    to: i64,
    batch: RawRows,
}

impl Claims {
    fn new(from: i64, to: i64) -> Self {
        let state = State { at: from, claimed: 0, taken: 0, closed: false, used: Vec::new() };
        Self { state: Mutex::new(state), changed: Condvar::new(), to }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in here is left half-way by a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next range, once it is near enough; none when all is claimed, or nobody wants more.
    fn next(&self) -> Option<Claim> {
        let is_early = |state: &mut State| {
            !state.closed && state.claimed.saturating_sub(state.taken) >= CLAIMS_AHEAD
        };
        let state = self.changed.wait_while(self.state(), is_early);
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        if state.closed || state.at >= self.to {
            return None;
        }
        let above = state.at;
        let to = above.saturating_add(BATCH_ROWIDS).min(self.to);
        let number = state.claimed;
        state.at = to;
        state.claimed += 1;
        Some(Claim { number, above, to, batch: state.used.pop().unwrap_or_default() })
    }

    /// There is nothing between what is claimed and this.
    fn skip_to(&self, rowid: i64) {
        let mut state = self.state();
        state.at = state.at.max(rowid);
    }

    /// The next batch has been taken, and may be filled again.
    fn taken(&self, used: RawRows) {
        let mut state = self.state();
        state.taken += 1;
        state.used.push(used);
        drop(state);
        self.changed.notify_all();
    }

    /// Nothing more is claimed.
    fn close(&self) {
        self.state().closed = true;
        self.changed.notify_all();
    }
}

/// One thread that reads.
struct Reader {
    db: ChatDb,
    claims: Arc<Claims>,
    give: SyncSender<Read>,
}

impl Reader {
    fn run(self) {
        while let Some(Claim { number, above, to, mut batch }) = self.claims.next() {
            let read = self.db.raw_rows_between(above, to, &mut batch);
            let read = read.and_then(|()| {
                // Numbers may have jumped: what is missing is not looked for range by range.
                if batch.is_empty() && to < self.claims.to {
                    let next = self.db.next_rowid(to)?;
                    self.claims.skip_to(next.map_or(self.claims.to, |next| next.saturating_sub(1)));
                }
                Ok(batch)
            });
            let failed = read.is_err();
            // Nobody takes any more when the output is closed.
            if self.give.send((number, read)).is_err() || failed {
                return;
            }
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // Also where it dies: nobody may wait for what it had claimed.
        self.claims.close();
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;
    use sandbox::chatdb::MacOs;
    use sandbox::generate::{self, Settings};

    use super::*;

    /// A database of so many messages, of which some have other numbers.
    fn database(messages: u64, renumber: &str) -> (tempfile::TempDir, ChatDb) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chat.db");
        let settings = Settings {
            db: path.clone(),
            macos: MacOs::Sequoia,
            messages,
            chats: 5,
            null_text_every: 0,
            mix: false,
            seed: 7,
        };
        generate::run(&settings).unwrap();
        let connection = Connection::open(&path).unwrap();
        connection.pragma_update(None, "foreign_keys", false).unwrap();
        connection.execute_batch(renumber).unwrap();
        (dir, ChatDb::open(&path).unwrap())
    }

    fn rowids(readers: usize, db: ChatDb, from: i64, to: i64) -> Vec<i64> {
        let mut rows = Rows::read_by(readers, db, from, to).unwrap();
        let (mut batch, mut all) = (Vec::new(), Vec::new());
        while let Some(read) = rows.next(&mut batch) {
            read.unwrap();
            all.extend(batch.iter().map(|row| row.rowid));
        }
        all
    }

    #[test]
    fn all_rows_come_once_and_in_order_from_several_threads() {
        let (_dir, db) = database(5_000, "");
        for readers in [1, 2, 4] {
            let db = db.another().unwrap();
            assert_eq!(rowids(readers, db, 17, 4_990), (18..=4_990).collect::<Vec<_>>());
        }
    }

    #[test]
    fn numbers_that_jump_are_not_looked_for_range_by_range() {
        const FAR: i64 = 4_000_000_000_000;
        let jump = format!("UPDATE message SET ROWID = ROWID + {FAR} WHERE ROWID > 1000");
        let (_dir, db) = database(1_200, &jump);
        let all: Vec<i64> = (1..=1_000).chain(FAR + 1_001..=FAR + 1_200).collect();
        // A range takes some microseconds at best: ten thousand millions of them would take days.
        assert_eq!(rowids(READERS_MAX, db, 0, FAR + 1_200), all);
    }

    #[test]
    fn a_reader_that_dies_is_no_end_of_the_rows() {
        let claims = Arc::new(Claims::new(0, 1_000));
        let (give, batches) = sync_channel(READERS_MAX);
        let claimed = claims.next().unwrap();
        assert_eq!((claimed.number, claimed.above, claimed.to), (0, 0, BATCH_ROWIDS));
        let (_dir, db) = database(10, "");
        drop(Reader { db, claims: Arc::clone(&claims), give });
        assert!(claims.next().is_none(), "nobody may go on without it");
        let mut rows = Rows { claims, batches, early: BTreeMap::new() };
        assert!(matches!(rows.next(&mut Vec::new()), Some(Err(StreamError::Thread(_)))));
    }

    #[test]
    fn claims_wait_until_batches_are_taken() {
        let claims = Arc::new(Claims::new(0, i64::MAX));
        for number in 0..CLAIMS_AHEAD {
            assert_eq!(claims.next().unwrap().number, number);
        }
        let waiting = std::thread::spawn({
            let claims = Arc::clone(&claims);
            move || claims.next().unwrap().number
        });
        claims.taken(RawRows::default());
        assert_eq!(waiting.join().unwrap(), CLAIMS_AHEAD);
    }
}
