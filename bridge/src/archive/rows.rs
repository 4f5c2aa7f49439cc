//! Rows of a whole database in the order of their numbers, read by several threads.
//!
//! A thread claims the next range of rowids, reads it over a connection of its own and hands it over
//! with the number of its claim; whoever takes the batches puts them in order. Claims run only a few
//! batches ahead of what was taken, so that memory stays bounded whatever the database is.
//!
//! Nobody waits while there is work. A thread that reads decodes its batch as well, unless it is the
//! one that is taken next; and whoever takes batches reads one itself when none is there. So that a
//! database of long blobs and one of short texts, and either format, keep all processors busy.

use std::collections::BTreeMap;
use std::io;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::StreamError;
use crate::chatdb::{ChatDb, NotReady, RawRows, Row};

/// Rowids of one batch: read within a millisecond or two, so that Messages can checkpoint in between,
/// and so many that its three queries cost little beside its rows. Where rows are missing it is smaller.
const BATCH_ROWIDS: i64 = 400;
/// Batches that are claimed before the first of them is taken, besides one for each thread that reads:
/// they need not wait while another is looked at, nor one who is interrupted hold up the other. One more has been taken and
/// waits for the one before it. Rows are a few hundred bytes, so that a batch is a few hundred kilobytes.
const CLAIMS_AHEAD: u64 = 1;
/// Most threads that only read and decode: together they keep up with the one that writes.
const READERS_MAX: usize = 2;

/// A batch as it was read, or as somebody has decoded it.
#[derive(Debug)]
enum Batch {
    Raw(RawRows),
    Decoded(Vec<Row>, Decoder),
}

/// Which thread decoded rows, 0 for the one that takes them. Rows are written over by the thread that
/// wrote them first: what one allocates and another frees, both wait for.
type Decoder = usize;
/// The thread that takes rows.
const TAKER: Decoder = 0;

/// A batch, and the number of its claim.
type Read = (u64, Result<Batch, NotReady>);

/// Rows to look at now.
#[derive(Debug, Clone, Copy)]
pub(super) struct Taken<'r> {
    /// Never none.
    pub(super) rows: &'r [Row],
    /// Those of the next batch. They come again; until then they tell what the last of `rows` belong to.
    pub(super) following: &'r [Row],
}

/// Rows, and who has decoded them.
type Decoded = (Vec<Row>, Decoder);

/// Rows in the order of their numbers.
pub(super) struct Rows {
    claims: Arc<Claims>,
    batches: Receiver<Read>,
    /// Batches that came before their turn.
    early: BTreeMap<u64, Result<Batch, NotReady>>,
    /// Over which whoever takes reads, too.
    db: ChatDb,
    /// What was taken last.
    last: Decoded,
    /// What comes after it, or why it cannot; none before the first, and after the last.
    following: Option<Result<Decoded, StreamError>>,
}

impl Rows {
    /// Rows above `from`, up to and including `to`.
    pub(super) fn read(db: ChatDb, from: i64, to: i64) -> Result<Self, StreamError> {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        // One processor is that of the thread which takes the rows.
        Self::read_by(processors.saturating_sub(1).min(READERS_MAX), db, from, to)
    }

    fn read_by(readers: usize, db: ChatDb, from: i64, to: i64) -> Result<Self, StreamError> {
        let (give, batches) = sync_channel(READERS_MAX);
        // All are open before any of them reads. Where the files change meanwhile they are left out:
        // whoever takes reads everything.
        let others: Vec<ChatDb> = (0..readers).map_while(|_| db.another().ok()).collect();
        let claims = Arc::new(Claims::new(from, to, others.len()));
        for (decoder, db) in (TAKER + 1..).zip(others) {
            let reader = Reader { db, claims: Arc::clone(&claims), give: give.clone(), decoder };
            std::thread::Builder::new()
                .name("rows".to_owned())
                .spawn(move || reader.run())
                .map_err(StreamError::Thread)?;
        }
        // That no reader is left is known by there being nobody who could give.
        drop(give);
        let (early, last) = (BTreeMap::new(), (Vec::new(), TAKER));
        let mut rows = Self { claims, batches, early, db, last, following: None };
        rows.following = rows.fetch();
        Ok(rows)
    }

    /// The next rows; nothing when all have been taken.
    pub(super) fn next(&mut self) -> Option<Result<Taken<'_>, StreamError>> {
        let next = match self.following.take()? {
            Ok(next) => next,
            Err(why) => return Some(Err(why)),
        };
        let (rows, decoder) = std::mem::replace(&mut self.last, next);
        self.claims.give_back(rows, decoder);
        self.following = match self.fetch() {
            // What belongs to these rows may be among those that cannot be had.
            Some(Err(why)) => return Some(Err(why)),
            following => following,
        };
        let following = match &self.following {
            Some(Ok((rows, _))) => rows.as_slice(),
            Some(Err(_)) | None => &[],
        };
        Some(Ok(Taken { rows: &self.last.0, following }))
    }

    /// The next batch that is not empty.
    fn fetch(&mut self) -> Option<Result<Decoded, StreamError>> {
        loop {
            let next = self.claims.state().taken;
            let Some(batch) = self.early.remove(&next) else {
                match self.more(next) {
                    Ok(true) => continue,
                    Ok(false) => return None,
                    Err(why) => return Some(Err(why)),
                }
            };
            let batch = match batch {
                Ok(batch) => batch,
                Err(why) => return Some(Err(why.into())),
            };
            self.claims.taken();
            let (rows, decoder) = match batch {
                Batch::Raw(raw) => (self.claims.decode(raw, TAKER), TAKER),
                Batch::Decoded(rows, decoder) => (rows, decoder),
            };
            if !rows.is_empty() {
                return Some(Ok((rows, decoder)));
            }
            self.claims.give_back(rows, decoder);
        }
    }

    /// Waits for a batch, or reads one; false when `next` is beyond the last.
    fn more(&mut self, next: u64) -> Result<bool, StreamError> {
        let read = match self.batches.try_recv() {
            Ok(read) => Some(read),
            // Reading is better than waiting, be it a batch after the one that is waited for. Where
            // nobody else reads, this reads all.
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => match self.claims.try_next() {
                Some(claim) => Some(claim.read(&self.db, &self.claims)),
                None => self.batches.recv().ok(),
            },
        };
        match read {
            Some((number, batch)) => {
                self.early.insert(number, batch);
                Ok(true)
            }
            // Nobody reads any more: all is here, or a reader has died.
            None if next == self.claims.state().claimed => Ok(false),
            None => {
                let died = io::Error::other("a thread that read has ended before its time");
                Err(StreamError::Thread(died))
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
    ahead: u64,
    closed: bool,
    /// Batches that were decoded, to be filled again.
    used: Vec<RawRows>,
    /// Rows that were looked at, to be written over, for each thread that decodes.
    free: Vec<Vec<Vec<Row>>>,
}

impl State {
    fn is_far_ahead(&self) -> bool {
        self.claimed.saturating_sub(self.taken) >= self.ahead
    }
}

/// A range of rowids, the first one not counted in.
struct Claim {
    number: u64,
    above: i64,
    to: i64,
    rows: RawRows,
}

impl Claim {
    fn read(mut self, db: &ChatDb, claims: &Claims) -> Read {
        let read = db.raw_rows_between(self.above, self.to, &mut self.rows);
        let read = read.and_then(|()| {
            // Numbers may have jumped: what is missing is not looked for range by range.
            if self.rows.is_empty() && self.to < claims.to {
                let next = db.next_rowid(self.to)?;
                claims.skip_to(next.map_or(claims.to, |next| next.saturating_sub(1)));
            }
            Ok(Batch::Raw(self.rows))
        });
        (self.number, read)
    }
}

impl Claims {
    fn new(from: i64, to: i64, readers: usize) -> Self {
        let (used, free) = (Vec::new(), vec![Vec::new(); readers + 1]);
        let ahead = CLAIMS_AHEAD.saturating_add(u64::try_from(readers).unwrap_or(0));
        let state = State { at: from, claimed: 0, taken: 0, ahead, closed: false, used, free };
        Self { state: Mutex::new(state), changed: Condvar::new(), to }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in here is left half-way by a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next range, once it is near enough; none when all is claimed, or nobody wants more.
    fn next(&self) -> Option<Claim> {
        let is_early = |state: &mut State| !state.closed && state.is_far_ahead();
        let state = self.changed.wait_while(self.state(), is_early);
        self.claim(state.unwrap_or_else(PoisonError::into_inner))
    }

    /// The same without waiting for it to be near enough.
    fn try_next(&self) -> Option<Claim> {
        let state = self.state();
        if state.is_far_ahead() { None } else { self.claim(state) }
    }

    fn claim(&self, mut state: MutexGuard<'_, State>) -> Option<Claim> {
        if state.closed || state.at >= self.to {
            return None;
        }
        let above = state.at;
        let to = above.saturating_add(BATCH_ROWIDS).min(self.to);
        let number = state.claimed;
        state.at = to;
        state.claimed += 1;
        Some(Claim { number, above, to, rows: state.used.pop().unwrap_or_default() })
    }

    /// There is nothing between what is claimed and this.
    fn skip_to(&self, rowid: i64) {
        let mut state = self.state();
        state.at = state.at.max(rowid);
    }

    /// The next batch has been taken.
    fn taken(&self) {
        self.state().taken += 1;
        self.changed.notify_all();
    }

    /// These rows are not needed any more.
    fn give_back(&self, rows: Vec<Row>, decoder: Decoder) {
        if let Some(free) = self.state().free.get_mut(decoder) {
            free.push(rows);
        }
    }

    fn decode(&self, mut raw: RawRows, decoder: Decoder) -> Vec<Row> {
        let free = self.state().free.get_mut(decoder).and_then(Vec::pop);
        let mut rows = free.unwrap_or_default();
        raw.decode_into(&mut rows);
        self.state().used.push(raw);
        rows
    }

    /// Whether this is the batch that is taken next.
    fn is_next(&self, number: u64) -> bool {
        self.state().taken == number
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
    decoder: Decoder,
}

impl Reader {
    fn run(self) {
        while let Some(claim) = self.claims.next() {
            let (number, read) = claim.read(&self.db, &self.claims);
            let read = match read {
                // Whoever takes it next may be waiting for it already.
                Ok(Batch::Raw(raw)) if !self.claims.is_next(number) => {
                    let rows = self.claims.decode(raw, self.decoder);
                    Ok(Batch::Decoded(rows, self.decoder))
                }
                read => read,
            };
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
        let mut all = Vec::new();
        while let Some(read) = rows.next() {
            let taken = read.unwrap();
            all.extend(taken.rows.iter().map(|row| row.rowid));
            let following = taken.following.first();
            assert!(following.is_none_or(|row| Some(&row.rowid) > all.last()), "they come next");
            assert!(following.is_some() || all.last() == Some(&to), "the next ones are known");
        }
        all
    }

    #[test]
    fn all_rows_come_once_and_in_order_from_several_threads() {
        let (_dir, db) = database(5_000, "");
        for readers in [0, 1, 2, 4] {
            let db = db.another().unwrap();
            assert_eq!(rowids(readers, db, 17, 4_990), (18..=4_990).collect::<Vec<_>>());
        }
    }

    #[test]
    fn where_there_is_nothing_the_end_comes_at_once() {
        let (_dir, db) = database(10, "");
        for readers in [0, 1, 2] {
            for (from, to) in [(10, 10), (10, i64::MAX - 1)] {
                let db = db.another().unwrap();
                assert_eq!(rowids(readers, db, from, to), Vec::<i64>::new(), "{readers}");
            }
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
        let claims = Arc::new(Claims::new(0, 1_000, 1));
        let (give, batches) = sync_channel(READERS_MAX);
        let claimed = claims.next().unwrap();
        assert_eq!((claimed.number, claimed.above, claimed.to), (0, 0, BATCH_ROWIDS));
        let (_dir, db) = database(10, "");
        let another = db.another().unwrap();
        drop(Reader { db: another, claims: Arc::clone(&claims), give, decoder: TAKER + 1 });
        assert!(claims.next().is_none(), "nobody may go on without it");
        let (early, last) = (BTreeMap::new(), (Vec::new(), TAKER));
        let mut rows = Rows { claims, batches, early, db, last, following: None };
        rows.following = rows.fetch();
        assert!(matches!(rows.next(), Some(Err(StreamError::Thread(_)))));
    }

    #[test]
    fn claims_wait_until_batches_are_taken() {
        let claims = Arc::new(Claims::new(0, i64::MAX, 1));
        for number in 0..=CLAIMS_AHEAD {
            assert_eq!(claims.next().unwrap().number, number);
        }
        let waiting = std::thread::spawn({
            let claims = Arc::clone(&claims);
            move || claims.next().unwrap().number
        });
        claims.taken();
        assert_eq!(waiting.join().unwrap(), CLAIMS_AHEAD + 1);
    }
}
