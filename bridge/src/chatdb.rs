//! Every query on Apple's database.
//!
//! [`ChatDb`] reads over one long-lived, read-only connection to a `chat.db`, which it shares with
//! [`Watch`]; every call is one short read that holds no transaction afterwards, so that Messages
//! can checkpoint its WAL. What comes out are our own types: [`Row`] for a message with its
//! conversation, [`SendState`] for what may still change about an own send. Columns differ between
//! macOS versions and even between two Macs of one version, so [`schema`] probes them and what is
//! missing reads as NULL.
//!
//! Nothing here writes: the connection is opened read-only, `query_only` is set, and closing it
//! makes no checkpoint. SQLite itself touches `-shm` (the WAL index), which is how a reader of a
//! WAL database announces itself.
//!
//! Every failure is a [`NotReady`] with the reason and its remedy: a missing, locked, damaged or
//! forbidden database is a state that the bridge reports and waits out, never a crash.

mod book;
#[cfg(test)]
mod bounds;
mod cells;
mod census;
mod contacts;
mod cursor;
mod dates;
mod error;
mod pulse;
mod raw;
mod rows;
mod schema;
mod sent;
mod shared;
mod watch;

use std::cell::RefCell;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use protocol::{Channel, Recipient, UnixMs};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};

pub use book::Chat;
pub use census::Census;
pub use contacts::Contact;
pub use cursor::{Cursor, CursorFacts, RESYNC_WINDOW_MS, ResyncReason, Verified, verify};
pub use error::{Cause, NotReady};
pub(crate) use pulse::LATEST_MS;
pub use pulse::{PULSE_ROWS, PULSE_ROWS_DOCTOR, Pulse};
pub use raw::RawRows;
pub use rows::{Attachment, Flags, Place, Row, SendState, StatusBits, apple_ms, chat_place};
pub use sent::{SentQuery, SentRow, Sought, fold, same_address};
pub use watch::{Watch, WatchCounters};

use book::{Book, Kept};
use cells::Cells;
use schema::{Schema, at, bit};
use sent::{may_be_to, sent_row};
use shared::Shared;

/// How long SQLite waits for a lock. Readers of a WAL database hardly ever wait; two seconds is
/// long for that and short enough that a bridge waiting here still sends its heartbeats.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);
/// Page cache in KiB (negative, as SQLite takes it): what is cached is void after each commit of Messages, and the system has
/// the pages in memory. A large cache would hold them twice, for as long as nothing happens.
const CACHE_KIB: i64 = -128;
/// Prepared statements kept; there are about twenty different ones.
const STATEMENTS: usize = 32;
/// Most own rows above the mark that are looked at for one send, the newest ones. Sends are serial,
/// so there are one or two; only for a send in doubt there are those of all later sends.
const SENT_CANDIDATES: usize = 500;
/// Most own rows of the time of a lost send that are looked at. That time is some minutes, and a phone sends about one a
/// second: where there are more, the answer would be a guess.
const DATED_CANDIDATES: usize = 1_000;
/// How far back from the newest row unjoined rows are looked for.
const UNJOINED_ROWS: i64 = 500;
/// Rows below a cursor whose dates give the running maximum for `late`. Backfills come in blocks of
/// up to some hundred rows.
const NEWEST_DATE_ROWS: i64 = 500;
/// A copy's date is that of its original; macOS versions cut it differently.
const COPY_SLACK_MS: i64 = 1_000;
/// Rows looked at for the original of a copy; more within two seconds is no conversation.
const TWINS_MAX: i64 = 64;
/// Most ids in one call; callers pass what is in flight, or what is held.
pub const IDS_MAX: usize = 1000;

/// Which database this is. After a restore or a rebuild the path is the same and the content is
/// not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Device of the file.
    pub device: u64,
    /// Inode of the file.
    pub inode: u64,
    /// When the file was made, in nanoseconds since 1970, where its volume tells: some give the inode of a file that is gone
    /// to the next one.
    pub born_ns: Option<i64>,
    /// Messages' own id of the database, where it has one (`_UniqueIdentifier`).
    pub unique: Option<String>,
}

impl Identity {
    /// As one string, for a journal. What reads it without the time of birth takes that for a part of the id and finds
    /// another file, which is the careful way.
    pub fn to_text(&self) -> String {
        let unique = self.unique.as_deref().unwrap_or_default();
        let born = self.born_ns.map(|born| format!("#{born}")).unwrap_or_default();
        format!("{}:{}:{unique}{born}", self.device, self.inode)
    }

    /// Reads [`Identity::to_text`].
    pub fn from_text(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, ':');
        let device = parts.next()?.parse().ok()?;
        let inode = parts.next()?.parse().ok()?;
        let rest = parts.next()?;
        let born =
            rest.rsplit_once('#').and_then(|(unique, born)| Some((unique, born.parse().ok()?)));
        let (unique, born_ns) = born.map_or((rest, None), |(unique, born)| (unique, Some(born)));
        let unique = (!unique.is_empty()).then(|| unique.to_owned());
        Some(Self { device, inode, born_ns, unique })
    }
}

/// Which file is at a path: device, inode, and when it was made where the volume tells ([`Identity::born_ns`]).
pub(crate) type FileId = (u64, u64, Option<i64>);

/// Which files are the database, its WAL and the WAL's index: a connection goes on reading the
/// files that it opened, also after they were replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Files {
    database: Option<FileId>,
    wal: Option<FileId>,
    index: Option<FileId>,
}

impl Files {
    pub(crate) fn at(path: &Path) -> Self {
        // A stat that fails is the same to us as a file that is not there: both mean that the
        // connection is stale.
        let id = |path: &Path| {
            let file = std::fs::metadata(path).ok()?;
            let born = file.created().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
            let born_ns = born.and_then(|since| i64::try_from(since.as_nanos()).ok());
            Some((file.dev(), file.ino(), born_ns))
        };
        Self {
            database: id(path),
            wal: id(&beside(path, "-wal")),
            index: id(&beside(path, "-shm")),
        }
    }
}

/// `chat.db` + `-wal`.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// A chat through which a recipient can be written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatRef {
    /// The guid exactly as in the database: AppleScript resolves no other form.
    pub guid: String,
    /// The service of the chat.
    pub service: Option<Channel>,
}

/// An open Messages database.
pub struct ChatDb {
    path: PathBuf,
    shared: Arc<Shared>,
    generation: u64,
    schema: Schema,
    kept: RefCell<Kept>,
}

impl std::fmt::Debug for ChatDb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatDb").field("path", &self.path).finish_non_exhaustive()
    }
}

impl ChatDb {
    /// Opens the database read-only and probes its schema.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, NotReady> {
        let path = path.as_ref();
        let shared = Shared::at(path);
        let generation = shared.open()?;
        let schema = shared
            .run(generation, |connection| Ok(Schema::probe(connection, path)))
            .and_then(|probed| probed)?;
        Ok(Self { path: path.to_owned(), shared, generation, schema, kept: RefCell::default() })
    }

    /// The same files over a connection of its own, for another thread of a reading that ends. Whoever
    /// goes on reading must have no other: see [`Shared`]. Refused where a file was replaced.
    pub(crate) fn another(&self) -> Result<Self, NotReady> {
        let shared = Shared::alone(&self.path);
        let generation = shared.open()?;
        if shared.files() != self.shared.files() {
            let detail = "the file was replaced: open it again";
            return Err(NotReady::new(&self.path, Cause::Failing, detail));
        }
        let (path, schema) = (self.path.clone(), self.schema.clone());
        Ok(Self { path, shared, generation, schema, kept: RefCell::default() })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the files at the path are no longer the ones that are open here: open again. Costs
    /// three `stat`s.
    pub fn is_stale(&self) -> bool {
        self.shared.is_stale(self.generation)
    }

    /// The longest read of this database by this process so far, in microseconds; no transaction was
    /// longer.
    pub fn longest_read_us(&self) -> u64 {
        self.shared.longest_us()
    }

    /// Which database this is.
    pub fn identity(&self) -> Result<Identity, NotReady> {
        let (device, inode, born_ns) = self.shared.database();
        let unique = if self.schema.has_properties {
            self.run(|connection| {
                connection
                    .prepare_cached(
                        "SELECT value FROM _SqliteDatabaseProperties WHERE key = '_UniqueIdentifier'",
                    )?
                    .query_row([], |row| row.get::<_, Option<String>>(0))
                    .optional()
            })?
            .flatten()
        } else {
            None
        };
        Ok(Identity { device, inode, born_ns, unique })
    }

    /// Changes whenever another connection has committed since the last call on this one;
    /// microseconds.
    pub fn data_version(&self) -> Result<i64, NotReady> {
        self.one("PRAGMA data_version", [])
    }

    /// The newest rowid; 0 when there are no messages. The mark before a send.
    pub fn max_rowid(&self) -> Result<i64, NotReady> {
        self.one("SELECT COALESCE(MAX(ROWID), 0) FROM message", [])
    }

    /// The guid of a row; none when there is no such row.
    pub fn guid_at(&self, rowid: i64) -> Result<Option<String>, NotReady> {
        self.run(|connection| {
            connection
                .prepare_cached("SELECT guid FROM message WHERE ROWID = ?1")?
                .query_row([rowid], |row| row.get(0))
                .optional()
        })
    }

    /// The number of the row with that guid; none when there is no such row.
    pub fn rowid_of(&self, guid: &str) -> Result<Option<i64>, NotReady> {
        self.run(|connection| {
            connection
                .prepare_cached("SELECT ROWID FROM message WHERE guid = ?1")?
                .query_row([guid], |row| row.get(0))
                .optional()
        })
    }

    /// The largest rowid that was ever given out: SQLite keeps it for AUTOINCREMENT tables, so it
    /// does not go down when rows are deleted.
    pub fn highest_rowid_ever(&self) -> Result<i64, NotReady> {
        let sequence: Option<Option<i64>> = self.run(|connection| {
            connection
                .prepare_cached("SELECT seq FROM sqlite_sequence WHERE name = 'message'")?
                .query_row([], |row| row.get(0))
                .optional()
        })?;
        Ok(sequence.flatten().unwrap_or(0).max(self.max_rowid()?))
    }

    /// What [`verify`] needs to know about a cursor.
    pub fn cursor_facts(&self, cursor: &Cursor) -> Result<CursorFacts, NotReady> {
        Ok(CursorFacts {
            identity: self.identity()?,
            guid: self.guid_at(cursor.rowid)?,
            highest_rowid_ever: self.highest_rowid_ever()?,
        })
    }

    /// A cursor at this rowid, or at the newest row below it.
    pub fn cursor_at(&self, rowid: i64) -> Result<Cursor, NotReady> {
        let found: Option<(i64, String)> = self.run(|connection| {
            connection
                .prepare_cached(
                    "SELECT ROWID, guid FROM message WHERE ROWID <= ?1 ORDER BY ROWID DESC LIMIT 1",
                )?
                .query_row([rowid], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()
        })?;
        let (rowid, guid) = found.unwrap_or_default();
        Ok(Cursor { identity: self.identity()?, rowid, guid })
    }

    /// The newest date among the rows just below and at this rowid: what `late` is measured
    /// against.
    pub fn newest_date_at(&self, rowid: i64) -> Result<Option<UnixMs>, NotReady> {
        let date: Option<i64> = self.one(
            "SELECT MAX(date) FROM (SELECT date FROM message WHERE ROWID <= ?1 ORDER BY ROWID DESC LIMIT ?2 + 0)",
            [rowid, NEWEST_DATE_ROWS],
        )?;
        Ok(date.and_then(apple_ms))
    }

    /// Rows above a rowid in order, at most `limit`: three queries for the whole batch. Every kind
    /// of row is in it; [`crate::inbound`] says which become events.
    pub fn rows_after(&self, rowid: i64, limit: usize) -> Result<Vec<Row>, NotReady> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut rows = RawRows::default();
        self.raw_rows(&self.schema.rows_after, [rowid, limit], &mut rows)?;
        Ok(rows.decode())
    }

    /// Rows above one rowid, up to and including another one, for whoever decodes them elsewhere. What is
    /// in `rows` is forgotten.
    pub(crate) fn raw_rows_between(
        &self,
        above: i64,
        to: i64,
        rows: &mut RawRows,
    ) -> Result<(), NotReady> {
        self.raw_rows(&self.schema.rows_between, [above, to], rows)
    }

    /// The first rowid above this one.
    pub(crate) fn next_rowid(&self, above: i64) -> Result<Option<i64>, NotReady> {
        self.one("SELECT MIN(ROWID) FROM message WHERE ROWID > ?1", [above])
    }

    fn raw_rows(&self, sql: &str, bounds: [i64; 2], rows: &mut RawRows) -> Result<(), NotReady> {
        self.read(|connection, book| {
            read_rows(connection, book, sql, bounds, rows)?;
            let (Some(first), Some(last)) = (rows.first_rowid(), rows.last_rowid()) else {
                return Ok(());
            };
            let beside = (&*self.schema.joins_between, &*self.schema.files_between);
            self.complete(connection, book, rows, beside, [first, last])
        })
    }

    /// Rows by rowid, in order; those that do not exist (any more) are left out. At most
    /// [`IDS_MAX`] ids are looked at.
    pub fn rows_by_ids(&self, rowids: &[i64]) -> Result<Vec<Row>, NotReady> {
        if rowids.is_empty() {
            return Ok(Vec::new());
        }
        let ids = ids_json(rowids);
        let mut rows = self.read(|connection, book| {
            let mut rows = RawRows::default();
            read_rows(connection, book, &self.schema.rows_by_ids, [&ids], &mut rows)?;
            self.complete_some(connection, book, &mut rows)?;
            Ok(rows)
        })?;
        Ok(rows.decode())
    }

    /// What may change about the rows of a range, each as a number: two that differ say that the
    /// row has changed. Cheap: no blob is read.
    pub fn digests(&self, from: i64, to: i64) -> Result<Vec<(i64, u64)>, NotReady> {
        self.run(|connection| {
            let mut digests: Vec<(i64, u64)> = Vec::new();
            let mut statement = connection.prepare_cached(&self.schema.digests_between)?;
            let columns = statement.column_count();
            let mut rows = statement.query([from, to])?;
            while let Some(row) = rows.next()? {
                let cells = Cells::of(row);
                let digest = (1..columns)
                    .fold(0, |digest, column| mix(digest, cells.number(column).unwrap_or(-1)));
                digests.push((cells.integer(0), digest));
            }
            if self.schema.file_states_between.is_empty() {
                return Ok(digests);
            }
            let mut statement = connection.prepare_cached(&self.schema.file_states_between)?;
            let mut files = statement.query([from, to])?;
            while let Some(file) = files.next()? {
                let cells = Cells::of(file);
                let place = digests.binary_search_by_key(&cells.integer(0), |(rowid, _)| *rowid);
                if let Ok(place) = place
                    && let Some((_, digest)) = digests.get_mut(place)
                {
                    // Files come in any order: what each adds does not depend on the others.
                    let file = mix(mix(1, cells.integer(1)), cells.integer(2));
                    *digest = digest.wrapping_add(file);
                }
            }
            Ok(digests)
        })
    }

    /// The guid of an older row with the same content: conversation, sender, direction and text, and
    /// the same date, or that date without its fraction of a second. Copies that iCloud puts in have
    /// all these in common, and new guids and row numbers.
    pub fn original_of(&self, row: &Row) -> Result<Option<String>, NotReady> {
        let Some(at) = row.at else { return Ok(None) };
        Ok(self
            .rows_beside(row, COPY_SLACK_MS)?
            .into_iter()
            .find(|other| {
                other.at.is_some_and(|other| is_same_moment(other, at))
                    && other.from_me == row.from_me
                    && other.handle == row.handle
                    && other.place.conversation() == row.place.conversation()
                    && other.associated_type == row.associated_type
                    && other.associated_guid == row.associated_guid
                    && other.text == row.text
                    && other.attachments.len() == row.attachments.len()
            })
            .map(|other| other.guid))
    }

    /// Rows below this one whose dates are within so much of its own.
    pub fn rows_beside(&self, row: &Row, slack_ms: i64) -> Result<Vec<Row>, NotReady> {
        // Without an index on dates it would be a walk through the whole table.
        let Some(at) = row.at.filter(|_| !self.schema.twins.is_empty()) else {
            return Ok(Vec::new());
        };
        let (from, _) = rows::apple_dates(at.plus_ms(-slack_ms));
        let (to, _) = rows::apple_dates(at.plus_ms(slack_ms));
        let mut found = self.read(|connection, book| {
            let params = params![from, to, row.rowid, TWINS_MAX];
            let mut found = RawRows::default();
            read_rows(connection, book, &self.schema.twins, params, &mut found)?;
            self.complete_some(connection, book, &mut found)?;
            Ok(found)
        })?;
        Ok(found.decode())
    }

    /// Rows near the end of the table that belong to no chat (yet), newest last.
    pub fn recent_unjoined(&self) -> Result<Vec<Row>, NotReady> {
        let from = self.max_rowid()?.saturating_sub(UNJOINED_ROWS);
        let mut rows = self.rows_after(from, usize::try_from(UNJOINED_ROWS).unwrap_or(IDS_MAX))?;
        rows.retain(|row| row.place == Place::Pending);
        Ok(rows)
    }

    /// Own rows above the mark that are this send, best match first: same text before text that
    /// Messages has rewritten (quotes, spaces, ellipsis, dashes), then by age. Rows in another chat
    /// or to another address are never returned; rows that are in no chat yet are, when their
    /// handle or the lack of one does not speak against it ([`SentRow::placed`] is false then).
    pub fn find_sent(&self, query: &SentQuery<'_>) -> Result<Vec<SentRow>, NotReady> {
        let rows = self.own_rows_above(query.above_rowid)?;
        let mut found: Vec<SentRow> =
            rows.into_iter().filter_map(|row| sent_row(row, query)).collect();
        found.sort_by_key(|row| (!row.exact, !row.placed, row.rowid));
        Ok(found)
    }

    /// Own rows of this time that hold this text for this recipient, whoever of the account's devices has sent them,
    /// oldest first. None where they cannot be told without reading the whole table, or are too many to be looked at.
    pub fn find_dated(
        &self,
        (since, until): (UnixMs, UnixMs),
        to: &Recipient,
        text: &str,
    ) -> Result<Option<Vec<SentRow>>, NotReady> {
        if self.schema.own_dated.is_empty() {
            return Ok(None);
        }
        let (from, _) = rows::apple_dates(since);
        let (to_date, _) = rows::apple_dates(until);
        let limit = i64::try_from(DATED_CANDIDATES).unwrap_or(i64::MAX);
        let mut rows = self.read(|connection, book| {
            let params = params![from, to_date, limit];
            let mut rows = RawRows::default();
            read_rows(connection, book, &self.schema.own_dated, params, &mut rows)?;
            self.complete_some(connection, book, &mut rows)?;
            Ok(rows)
        })?;
        if rows.rowids().count() >= DATED_CANDIDATES {
            return Ok(None);
        }
        let query = SentQuery { above_rowid: 0, to, content: Sought::Text(text), channel: None };
        let mut found: Vec<SentRow> =
            rows.decode().into_iter().filter_map(|row| sent_row(row, &query)).collect();
        found.sort_by_key(|row| (row.at, row.rowid));
        Ok(Some(found))
    }

    /// Ghost rows: own, above the mark, without text, files or chat, to this recipient. macOS 26
    /// writes one when a group is addressed by a guid that it does not really resolve, and reports
    /// success (imsg#90).
    pub fn ghost_rows(&self, above_rowid: i64, to: &Recipient) -> Result<Vec<Row>, NotReady> {
        let mut rows = self.own_rows_above(above_rowid)?;
        rows.retain(|row| row.is_ghost() && may_be_to(row, to));
        Ok(rows)
    }

    /// What Messages says about these rows now, in the order of rowid; rows that are gone are left
    /// out.
    pub fn send_states(&self, rowids: &[i64]) -> Result<Vec<SendState>, NotReady> {
        if rowids.is_empty() {
            return Ok(Vec::new());
        }
        let ids = ids_json(rowids);
        self.run(|connection| {
            connection
                .prepare_cached(&self.schema.states_by_ids)?
                .query_map([&ids], |row| Ok(SendState::read(&Cells::of(row))))?
                .collect()
        })
    }

    /// An existing chat with this recipient, the newest one of this channel. For a group, in
    /// whatever service the group is.
    pub fn existing_chat_for(
        &self,
        to: &Recipient,
        channel: Channel,
    ) -> Result<Option<ChatRef>, NotReady> {
        let chats: Vec<(String, Option<String>)> = self.run(|connection| {
            connection
                .prepare_cached(
                    "SELECT guid, service_name FROM chat WHERE chat_identifier = ?1 ORDER BY ROWID DESC",
                )?
                .query_map([to.address()], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect()
        })?;
        let group = matches!(to, Recipient::Group(_));
        Ok(chats
            .into_iter()
            .map(|(guid, service)| {
                let service = service.as_deref().and_then(Channel::of_service);
                ChatRef { guid, service }
            })
            .find(|chat| {
                let place = chat_place(&chat.guid, None);
                match place.kind {
                    protocol::pipe::ConversationKind::Group => group,
                    protocol::pipe::ConversationKind::Direct => {
                        !group && chat.service == Some(channel)
                    }
                }
            }))
    }

    fn own_rows_above(&self, rowid: i64) -> Result<Vec<Row>, NotReady> {
        let limit = i64::try_from(SENT_CANDIDATES).unwrap_or(i64::MAX);
        let mut rows = self.read(|connection, book| {
            let sql = &self.schema.own_rows_after;
            let mut rows = RawRows::default();
            read_rows(connection, book, sql, params![rowid, limit], &mut rows)?;
            rows.reverse();
            self.complete_some(connection, book, &mut rows)?;
            Ok(rows)
        })?;
        Ok(rows.decode())
    }

    fn read<T>(
        &self,
        read: impl FnOnce(&Connection, &mut Book<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, NotReady> {
        let mut kept = self.kept.borrow_mut();
        self.run(|connection| {
            let mut book = Book::open(connection, &self.schema, &mut kept)?;
            read(connection, &mut book)
        })
    }

    /// Adds chats and attachments to rows in the order of rowid, by their numbers.
    fn complete_some(
        &self,
        connection: &Connection,
        book: &mut Book<'_>,
        rows: &mut RawRows,
    ) -> rusqlite::Result<()> {
        let ids = ids_json(&rows.rowids().collect::<Vec<_>>());
        let beside = (&*self.schema.joins_by_ids, &*self.schema.files_by_ids);
        self.complete(connection, book, rows, beside, [&ids])
    }

    fn complete(
        &self,
        connection: &Connection,
        book: &mut Book<'_>,
        rows: &mut RawRows,
        (joins, files): (&str, &str),
        params: impl rusqlite::Params + Clone,
    ) -> rusqlite::Result<()> {
        let mut statement = connection.prepare_cached(joins)?;
        rows.place(book, &mut statement.query(params.clone())?, false)?;
        if !self.schema.deleted_by_ids.is_empty() {
            let mut statement = connection.prepare_cached(&self.schema.deleted_by_ids)?;
            for some in rows.pending().chunks(IDS_MAX) {
                rows.place(book, &mut statement.query([ids_json(some)])?, true)?;
            }
        }
        rows.add_participants(book)?;
        rows.close(book);
        if files.is_empty() {
            return Ok(());
        }
        let mut statement = connection.prepare_cached(files)?;
        let mut found = statement.query(params)?;
        while let Some(file) = found.next()? {
            rows.attach(&Cells::of(file));
        }
        Ok(())
    }

    fn one<T: rusqlite::types::FromSql>(
        &self,
        sql: &str,
        params: impl rusqlite::Params,
    ) -> Result<T, NotReady> {
        self.run(|connection| connection.prepare_cached(sql)?.query_row(params, |row| row.get(0)))
    }

    fn run<T>(&self, read: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, NotReady> {
        self.shared.run(self.generation, read)
    }
}

/// The same date, where one of them may have lost its fraction of a second. Two messages of the same
/// words within one second are two.
fn is_same_moment(left: UnixMs, right: UnixMs) -> bool {
    let cut = |at: UnixMs| at.0.rem_euclid(1_000) == 0;
    let second = |at: UnixMs| at.0.div_euclid(1_000);
    left == right || (second(left) == second(right) && (cut(left) || cut(right)))
}

/// FNV-1a over the bytes of a number: digests live as long as the process, and only ever tell change
/// from no change.
fn mix(digest: u64, number: i64) -> u64 {
    number.to_le_bytes().iter().fold(digest ^ 0xcbf2_9ce4_8422_2325, |digest, byte| {
        (digest ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

fn read_rows(
    connection: &Connection,
    book: &mut Book<'_>,
    sql: &str,
    params: impl rusqlite::Params,
    rows: &mut RawRows,
) -> rusqlite::Result<()> {
    rows.clear();
    let mut statement = connection.prepare_cached(sql)?;
    let mut rare = book.rare()?;
    let mut found = statement.query(params)?;
    while let Some(row) = found.next()? {
        let cells = Cells::of(row);
        if cells.integer(at::BITS) & bit::RARE != 0 {
            // The query around it is still under way, so that both see the same row.
            let mut more = rare.query([cells.integer(at::ROWID)])?;
            rows.push(&cells.with_rare(more.next()?), book)?;
        } else {
            rows.push(&cells, book)?;
        }
    }
    Ok(())
}

/// A read-only connection that cannot write, by three means.
pub(crate) fn connect(path: &Path) -> Result<Connection, NotReady> {
    let file = std::fs::metadata(path).map_err(|error| NotReady::of_io(path, &error))?;
    if !file.is_file() || file.len() == 0 {
        return Err(NotReady::new(path, Cause::Empty, "not a file, or an empty one"));
    }
    let sqlite = |error: rusqlite::Error| NotReady::of_sqlite(path, &error);
    // The file is never opened beside SQLite: closing a second descriptor would drop SQLite's locks
    // (POSIX).
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(sqlite)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(sqlite)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    // The last connection to close would otherwise fold the WAL into the database.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map_err(sqlite)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true).map_err(sqlite)?;
    // Statements are planned once: else SQLite plans each anew for other numbers bound to it.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map_err(sqlite)?;
    connection.pragma_update(None, "query_only", true).map_err(sqlite)?;
    connection.pragma_update(None, "cache_size", CACHE_KIB).map_err(sqlite)?;
    connection.pragma_update(None, "mmap_size", 0_i64).map_err(sqlite)?;
    Ok(connection)
}

/// Ids as the JSON array that `json_each` takes: one statement for any number of them.
fn ids_json(ids: &[i64]) -> String {
    let mut json = String::with_capacity(ids.len() * 8 + 2);
    json.push('[');
    for (at, id) in ids.iter().take(IDS_MAX).enumerate() {
        if at > 0 {
            json.push(',');
        }
        json.push_str(&id.to_string());
    }
    json.push(']');
    json
}
