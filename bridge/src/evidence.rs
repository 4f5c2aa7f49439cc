//! What the event loop asks of chat.db, as a seam: the pure cores and their tests need no SQLite.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use protocol::pipe::{Event as Fact, NotReady};
use protocol::{Channel, Recipient, UnixMs};
use tokio::sync::mpsc;

use crate::chatdb::{
    ChatDb, Contact, PULSE_ROWS, Pulse, SendState, SentQuery, SentRow, StatusBits, Watch,
};
use crate::clock::Now;
use crate::inbound::{Seen, Told};
use crate::journal::{Heard, JournalError};
use crate::outbound::{Content, Dated, RowState};
use crate::reading::{Memory, Read, ReadError, Reading};

/// Rows of chat.db read in one turn for what came in.
const ROWS_A_TURN: usize = 250;

/// Something to tell, and by what it is known later.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct NewFact {
    pub(crate) fact: Fact,
    /// The guid of a message that is told for the first time, and its content as a number.
    pub(crate) heard: Option<(String, u64)>,
}

/// What came in, and how far chat.db has been read with it. All goes into one transaction.
#[derive(Debug, Default)]
pub(crate) struct News {
    pub(crate) facts: Vec<NewFact>,
    /// What was told of messages by now.
    pub(crate) seen: Vec<(String, Seen)>,
    /// Guids that are told with another one.
    pub(crate) joined: Vec<String>,
    /// The new cursor, when it has moved.
    pub(crate) cursor: Option<String>,
    /// There is more to read at once.
    pub(crate) more: bool,
}

/// Why there is no news.
#[derive(Debug)]
pub(crate) enum NoNews {
    /// chat.db cannot be read now.
    NotReady(NotReady),
    /// The journal cannot be read.
    Journal(JournalError),
}

impl From<NotReady> for NoNews {
    fn from(why: NotReady) -> Self {
        Self::NotReady(why)
    }
}

/// The evidence that chat.db gives. Every call is one short read; an error means that it cannot
/// be read now, and says why.
pub(crate) trait Evidence {
    /// Opens it, or opens it again when the files were replaced.
    fn refresh(&mut self) -> Result<(), NotReady>;
    /// The newest row.
    fn mark(&mut self) -> Result<i64, NotReady>;
    /// Own rows above the mark that can be this send, best first.
    /// Those dated before `since` are left out.
    fn rows(
        &mut self,
        mark: i64,
        since: UnixMs,
        to: &Recipient,
        content: &Content,
    ) -> Result<Vec<RowState>, NotReady>;
    /// Own rows dated within this time that hold this text for this recipient, whichever device has sent them. `None`
    /// where that cannot be told.
    fn dated(
        &mut self,
        between: (UnixMs, UnixMs),
        to: &Recipient,
        text: &str,
    ) -> Result<Option<Vec<Dated>>, NotReady>;
    /// The present state of rows.
    fn states(&mut self, rowids: &[i64]) -> Result<Vec<RowState>, NotReady>;
    /// The numbers that rows with these guids have now, of those that are there.
    fn numbers(&mut self, guids: &[String]) -> Result<Vec<(String, i64)>, NotReady>;
    /// The guid of the chat in which this recipient is written to over this channel, if there is one. For a
    /// group, in whatever service the group is.
    fn chat_guid(&mut self, to: &Recipient, channel: Channel) -> Result<Option<String>, NotReady>;
    /// What was exchanged with an address.
    fn contacts(&mut self, address: &str) -> Result<Vec<Contact>, NotReady>;
    /// The longest read so far, in microseconds.
    fn longest_read_us(&self) -> u64;
    /// What has come in since the cursor, and is not in `memory`.
    fn news(&mut self, memory: &impl Memory, now: Now) -> Result<News, NoNews>;
    /// What the newest rows say of the phone's health.
    fn pulse(&mut self, now: Now) -> Result<Pulse, NotReady>;
    /// A new end for hints that chat.db has changed, when there is one since the last call.
    fn hints(&mut self) -> Option<mpsc::Receiver<()>>;
}

/// chat.db itself.
///
/// Connection and watch live and die together. SQLite shares one mapping of the WAL index among
/// all connections of a process: while one of them holds an index that was deleted, a new one
/// gets the deleted one as well, and neither ever sees a change again.
#[derive(Debug)]
pub(crate) struct Database {
    path: PathBuf,
    open: Option<ChatDb>,
    watch: Option<Watch>,
    hints: Option<mpsc::Receiver<()>>,
    /// The files at the path just before the connection was opened.
    files: Files,
    reading: Reading,
}

/// Device and inode of the database, its WAL and its WAL index: a connection goes on with the
/// files that it opened, whatever becomes of their names.
type Files = [Option<(u64, u64)>; 3];

fn files(path: &Path) -> Files {
    ["", "-wal", "-shm"].map(|suffix| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        std::fs::metadata(name).ok().map(|file| (file.dev(), file.ino()))
    })
}

impl Database {
    /// `cursor` and what was `heard` are what the journal has.
    pub(crate) fn new(path: PathBuf, cursor: Option<&str>, heard: Vec<Heard>) -> Self {
        Self {
            path,
            open: None,
            watch: None,
            hints: None,
            files: Files::default(),
            reading: Reading::restore(cursor, heard),
        }
    }

    fn with<T>(
        &mut self,
        read: impl FnOnce(&ChatDb) -> Result<T, crate::chatdb::NotReady>,
    ) -> Result<T, NotReady> {
        self.refresh()?;
        let Some(database) = &self.open else {
            return Err(NotReady { reason: protocol::Reason::Starting, remedy: String::new() });
        };
        let result = read(database);
        if result.is_err() {
            // Whatever was wrong, the next call begins with a new connection.
            self.open = None;
        }
        result.map_err(|error| error.to_signal())
    }
}

impl Evidence for Database {
    fn refresh(&mut self) -> Result<(), NotReady> {
        let files = files(&self.path);
        if self.open.is_some() && files != self.files {
            tracing::info!("chat.db was replaced: opening it again");
            self.open = None;
        }
        if self.open.is_none() {
            // The watch's connection has to go as well; dropping it waits for its end.
            self.watch = None;
            self.files = files;
            self.open = Some(ChatDb::open(&self.path).map_err(|error| error.to_signal())?);
            self.reading.opened();
            match Watch::start(&self.path) {
                Ok((watch, hints)) => {
                    self.watch = Some(watch);
                    self.hints = Some(hints);
                }
                Err(error) => tracing::warn!(%error, "chat.db cannot be watched: it is polled"),
            }
        }
        Ok(())
    }

    fn mark(&mut self) -> Result<i64, NotReady> {
        self.with(ChatDb::max_rowid)
    }

    fn rows(
        &mut self,
        mark: i64,
        since: UnixMs,
        to: &Recipient,
        content: &Content,
    ) -> Result<Vec<RowState>, NotReady> {
        // Any service: Messages may have fallen back to SMS itself.
        let query = SentQuery { above_rowid: mark, to, content: content.sought(), channel: None };
        self.with(|database| {
            let mut rows: Vec<RowState> = database
                .find_sent(&query)?
                .into_iter()
                .filter(|row| row.at.is_none_or(|at| at >= since))
                .map(|row| RowState {
                    certain: row.certain && !is_from_elsewhere(&row.status),
                    ..state(row.rowid, row.guid, &row.status, false)
                })
                .collect();
            if rows.is_empty() {
                let ghosts = database.ghost_rows(mark, to)?;
                rows.extend(
                    ghosts
                        .into_iter()
                        .filter(|row| row.at.is_none_or(|at| at >= since))
                        .map(|row| state(row.rowid, row.guid, &row.status, true)),
                );
            }
            Ok(rows)
        })
    }

    fn dated(
        &mut self,
        between: (UnixMs, UnixMs),
        to: &Recipient,
        text: &str,
    ) -> Result<Option<Vec<Dated>>, NotReady> {
        self.with(|database| {
            let rows = database.find_dated(between, to, text)?;
            // A row without a date is in no time at all.
            Ok(rows.map(|rows| {
                let dated = |row: SentRow| {
                    let at = row.at?;
                    let certain = row.certain;
                    let state = state(row.rowid, row.guid, &row.status, false);
                    Some(Dated { at, row: RowState { certain, ..state } })
                };
                rows.into_iter().filter_map(dated).collect()
            }))
        })
    }

    fn states(&mut self, rowids: &[i64]) -> Result<Vec<RowState>, NotReady> {
        self.with(|database| {
            let mut states = Vec::with_capacity(rowids.len());
            for some in rowids.chunks(crate::chatdb::IDS_MAX) {
                states.extend(
                    database.send_states(some)?.into_iter().map(
                        |SendState { rowid, guid, status }| state(rowid, guid, &status, false),
                    ),
                );
            }
            Ok(states)
        })
    }

    fn numbers(&mut self, guids: &[String]) -> Result<Vec<(String, i64)>, NotReady> {
        self.with(|database| {
            let mut numbers = Vec::with_capacity(guids.len());
            for guid in guids {
                numbers.extend(database.rowid_of(guid)?.map(|rowid| (guid.clone(), rowid)));
            }
            Ok(numbers)
        })
    }

    fn chat_guid(&mut self, to: &Recipient, channel: Channel) -> Result<Option<String>, NotReady> {
        self.with(|database| Ok(database.existing_chat_for(to, channel)?.map(|chat| chat.guid)))
    }

    fn contacts(&mut self, address: &str) -> Result<Vec<Contact>, NotReady> {
        self.with(|database| database.contacts(address))
    }

    fn pulse(&mut self, now: Now) -> Result<Pulse, NotReady> {
        self.with(|database| database.pulse(PULSE_ROWS, now.wall))
    }

    fn hints(&mut self) -> Option<mpsc::Receiver<()>> {
        self.hints.take()
    }

    fn longest_read_us(&self) -> u64 {
        self.open.as_ref().map_or(0, ChatDb::longest_read_us)
    }

    fn news(&mut self, memory: &impl Memory, now: Now) -> Result<News, NoNews> {
        self.refresh()?;
        let Self { open, reading, .. } = self;
        let Some(database) = open else { return Ok(News::default()) };
        match reading.read(database, memory, ROWS_A_TURN, now) {
            Ok(read) => Ok(news(read)),
            Err(ReadError::NotReady(error)) => {
                self.open = None;
                Err(NoNews::NotReady(error.to_signal()))
            }
            Err(ReadError::Journal(error)) => Err(NoNews::Journal(error)),
        }
    }
}

/// What of a read is the daemon's to tell.
pub(crate) fn news(read: Read) -> News {
    let resync = read
        .resynced
        .map(|why| NewFact { fact: Fact::Resync { why: why.as_str().to_owned() }, heard: None });
    let heard = read.heard.into_iter().filter_map(|heard| match heard.told {
        Told::Event(fact) => {
            let heard = heard.print.and_then(|print| Some((guid_of(&fact)?, print)));
            Some(NewFact { fact, heard })
        }
        // The daemon tells the story of its own sends.
        Told::Own(_) => None,
    });
    News {
        facts: resync.into_iter().chain(heard).collect(),
        seen: read.seen,
        joined: read.joined,
        cursor: read.cursor,
        more: read.more,
    }
}

/// Whether a row looks like what another device of the account has sent: delivered without a date of
/// delivery (seen in the trackers of two other clients). Such a row may have our words and is not our send.
fn is_from_elsewhere(status: &StatusBits) -> bool {
    status.is_delivered && status.date_delivered.is_none()
}

fn state(rowid: i64, guid: String, status: &StatusBits, ghost: bool) -> RowState {
    RowState {
        rowid,
        guid,
        channel: status.service,
        error: status.error,
        is_sent: status.is_sent,
        delivered: status.is_delivered || status.date_delivered.is_some(),
        delivered_at: status.date_delivered,
        read_at: status.date_read,
        ghost,
        certain: true,
    }
}

/// The guid under which an event is known later.
fn guid_of(fact: &Fact) -> Option<String> {
    match fact {
        Fact::Received(received) => Some(received.guid.clone()),
        Fact::Reaction(reaction) => Some(reaction.guid.clone()),
        Fact::Group(change) => Some(change.guid.clone()),
        Fact::Notice(notice) => Some(notice.guid.clone()),
        Fact::UnknownKind(kind) => Some(kind.guid.clone()),
        Fact::Accepted(_)
        | Fact::Refused(_)
        | Fact::Started { .. }
        | Fact::Fallback { .. }
        | Fact::Sent { .. }
        | Fact::Delivered(_)
        | Fact::Read(_)
        | Fact::Failed(_)
        | Fact::Unknown(_)
        | Fact::Canceled(_)
        | Fact::Expired(_)
        | Fact::Edited(_)
        | Fact::Unsent(_)
        | Fact::Attachment(_)
        | Fact::Preview(_)
        | Fact::Capability(_)
        | Fact::Resync { .. }
        | Fact::Account { .. }
        | Fact::Other(_) => None,
    }
}
