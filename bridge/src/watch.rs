//! `switchboard-bridge watch`: what happens in a chat.db, one JSON object a line, read-only and
//! without a journal.
//!
//! Inbound messages are told as the protocol's events. Own messages are told in the same words
//! (`sent`, `delivered`, `read`, `failed`) with the row's guid, since a foreign chat.db knows
//! nothing of our messages and attempts. Useful to look at a Mac before it joins the shelf, and to
//! measure reading: `--once --since start` reads everything and ends.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use protocol::pipe::Conversation;
use protocol::{Channel, UnixMs};
use serde::Serialize;

use crate::chatdb::{
    ChatDb, Cursor, NotReady, Place, RESYNC_WINDOW_MS, Row, StatusBits, Verified, Watch, verify,
};
use crate::clock;
use crate::inbound::{Heard, Inbox, Patience};

/// Rows of one read. Large enough that the three queries of a batch cost nothing beside its rows,
/// small enough that a batch of long texts stays within a few megabytes.
const BATCH_ROWS: usize = 1000;
/// How often held rows are looked at again, and a database that could not be opened is tried again.
const TICK: Duration = Duration::from_secs(1);
/// How often the cursor is verified.
const VERIFY_EVERY_MS: i64 = 60_000;
/// Most own rows followed for receipts; with more, the oldest are let go. Also the most ids of one
/// query.
const FOLLOWED_MAX: usize = 1000;
/// How long an own row is followed.
const FOLLOW_MS: i64 = 48 * 3_600_000;
/// Bytes of the output buffer: a system call for some hundred lines.
const OUT_BYTES: usize = 64 * 1024;

/// Arguments of `switchboard-bridge watch`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct Args {
    /// The database to watch, for example ~/Library/Messages/chat.db.
    #[arg(long, value_name = "PATH")]
    pub db: PathBuf,
    /// Where to begin: a row number (rows above it), an RFC 3339 time, `now` or `start`.
    #[arg(long, value_name = "ROWID|TIME|now|start", default_value = "now")]
    pub since: Since,
    /// Tell what is there and end, instead of waiting for more.
    #[arg(long)]
    pub once: bool,
}

/// Where to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// With what comes from now on.
    Now,
    /// With the first row.
    Start,
    /// With the first row above this one.
    Rowid(i64),
    /// With the first row that is not older than this.
    At(UnixMs),
}

/// Neither a row number nor a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("neither a row number, an RFC 3339 time, `now` nor `start`")]
pub struct BadSince;

impl FromStr for Since {
    type Err = BadSince;

    fn from_str(text: &str) -> Result<Self, BadSince> {
        match text {
            "now" => Ok(Self::Now),
            "start" => Ok(Self::Start),
            _ => match text.parse() {
                Ok(rowid) => Ok(Self::Rowid(rowid)),
                Err(_) => text.parse().map(Self::At).or(Err(BadSince)),
            },
        }
    }
}

/// Why watching ended.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The database cannot be read; with `--once` there is no later.
    #[error("cannot read the database")]
    NotReady(#[from] NotReady),
    /// The output cannot be written.
    #[error("cannot write the output")]
    Out(#[source] io::Error),
    /// The thread that watches the file could not be started.
    #[error("cannot watch the database")]
    Watch(#[source] io::Error),
    /// An event that has no JSON form.
    #[error("cannot write an event as JSON")]
    Json(#[source] serde_json::Error),
}

/// What became of an own message.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Own<'r> {
    Sent {
        rowid: i64,
        guid: &'r str,
        conversation: Option<&'r Conversation>,
        channel: Option<Channel>,
        downgraded: bool,
        text: &'r str,
        at: Option<UnixMs>,
    },
    Delivered {
        rowid: i64,
        guid: &'r str,
        at: Option<UnixMs>,
    },
    Read {
        rowid: i64,
        guid: &'r str,
        at: Option<UnixMs>,
    },
    Failed {
        rowid: i64,
        guid: &'r str,
        conversation: Option<&'r Conversation>,
        channel: Option<Channel>,
        error: i64,
    },
}

/// What has been told of an own row. Each word once, and never backwards.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each word is told once, and failed may come after sent"
)]
struct Told {
    sent: bool,
    delivered: bool,
    read: bool,
    failed: bool,
}

/// The words that a row has earned and that have not been told.
fn untold<'r>(told: &mut Told, row: &'r Row) -> Vec<Own<'r>> {
    let mut words = Vec::new();
    let StatusBits { service: channel, error, .. } = row.status;
    let conversation = match &row.place {
        Place::In(conversation) => Some(conversation),
        Place::Pending => None,
    };
    let (rowid, guid) = (row.rowid, row.guid.as_str());
    if error != 0 {
        if !std::mem::replace(&mut told.failed, true) {
            words.push(Own::Failed { rowid, guid, conversation, channel, error });
        }
        return words;
    }
    let is_sent = row.status.is_sent || row.status.is_delivered;
    if is_sent && !std::mem::replace(&mut told.sent, true) {
        // A message that first failed and was sent again by hand.
        told.failed = false;
        words.push(Own::Sent {
            rowid,
            guid,
            conversation,
            channel,
            downgraded: row.status.was_downgraded,
            text: &row.text,
            at: row.at,
        });
    }
    let is_read = row.status.date_read.is_some();
    let is_delivered = row.status.is_delivered || is_read;
    if is_sent && is_delivered && !std::mem::replace(&mut told.delivered, true) {
        words.push(Own::Delivered { rowid, guid, at: row.status.date_delivered });
    }
    if is_sent && is_read && !std::mem::replace(&mut told.read, true) {
        words.push(Own::Read { rowid, guid, at: row.status.date_read });
    }
    words
}

/// Own rows whose story may go on.
#[derive(Debug, Default)]
struct Followed {
    rows: BTreeMap<i64, (StatusBits, Told)>,
}

impl Followed {
    fn add(&mut self, row: &Row, told: Told, now: UnixMs) {
        let young = row.at.is_none_or(|at| now.since(at) < FOLLOW_MS);
        if !young || told.read {
            return;
        }
        self.rows.insert(row.rowid, (row.status, told));
        if self.rows.len() > FOLLOWED_MAX {
            self.rows.pop_first();
        }
    }
}

/// Everything that is open while watching.
struct Watching<W: Write> {
    args: Args,
    out: BufWriter<W>,
    line: Vec<u8>,
    followed: Followed,
    open: Option<(ChatDb, Inbox)>,
    cursor: Option<Cursor>,
    verified: UnixMs,
}

/// Tells what happens in the database until the process is stopped, the reader of `out` goes away,
/// or, with [`Args::once`], everything has been told.
pub async fn run(args: Args, out: impl Write) -> Result<(), WatchError> {
    let ended = if args.once {
        Watching::new(args, out).turn(clock::now().wall)
    } else {
        follow(args, out).await
    };
    match ended {
        // Whoever read along has seen enough.
        Err(WatchError::Out(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

async fn follow(args: Args, out: impl Write) -> Result<(), WatchError> {
    let (watch, mut changes) = Watch::start(&args.db).map_err(WatchError::Watch)?;
    let mut watching = Watching::new(args, out);
    // Said once per reason: whoever waits for a database need not read it every second.
    let mut told = None;
    loop {
        match watching.turn(clock::now().wall) {
            Ok(()) => told = None,
            Err(WatchError::NotReady(why)) => {
                if told.replace(why.reason()) != Some(why.reason()) {
                    tracing::warn!(error = %why, "waiting for the database");
                }
                watching.open = None;
            }
            Err(other) => return Err(other),
        }
        // A tick without a change still looks at held rows. The watch cannot end before we do; if
        // it did, the ticks go on.
        if let Ok(None) = tokio::time::timeout(TICK, changes.recv()).await {
            tokio::time::sleep(TICK).await;
        }
        tracing::trace!(polls = watch.counters().polls(), "look");
    }
}

impl<W: Write> Watching<W> {
    fn new(args: Args, out: W) -> Self {
        Self {
            args,
            out: BufWriter::with_capacity(OUT_BYTES, out),
            line: Vec::new(),
            followed: Followed::default(),
            open: None,
            cursor: None,
            verified: UnixMs(0),
        }
    }

    /// Reads and tells everything that is new.
    fn turn(&mut self, now: UnixMs) -> Result<(), WatchError> {
        let (db, mut inbox) = self.ready(now)?;
        let told = self.tell_new(&db, &mut inbox, now);
        // The position stays valid also when this turn failed half-way.
        self.open = Some((db, inbox));
        told?;
        self.out.flush().map_err(WatchError::Out)
    }

    /// The database, opened (again) if need be, and the position in it.
    fn ready(&mut self, now: UnixMs) -> Result<(ChatDb, Inbox), WatchError> {
        let (db, inbox) = match self.open.take() {
            Some((db, inbox)) if db.is_stale() => (ChatDb::open(&self.args.db)?, Some(inbox)),
            Some((db, inbox)) => (db, Some(inbox)),
            None => (ChatDb::open(&self.args.db)?, None),
        };
        let reopened = inbox.is_none();
        let mut inbox = match inbox {
            Some(inbox) => inbox,
            None => self.begin(&db)?,
        };
        let due = reopened || now.since(self.verified).abs() >= VERIFY_EVERY_MS || db.is_stale();
        if let Some(cursor) = &self.cursor
            && (due || db.identity()? != cursor.identity)
        {
            self.verified = now;
            match verify(cursor, &db.cursor_facts(cursor)?) {
                Verified::Good => {}
                Verified::Resync(why) => {
                    tracing::warn!(why = why.as_str(), "row numbers have changed: reading by date");
                    let since = now.plus_ms(-RESYNC_WINDOW_MS);
                    inbox.resync(db.rowid_before(since)?, since, db.max_rowid()?);
                    self.followed = Followed::default();
                }
            }
        }
        Ok((db, inbox))
    }

    /// The position to begin at.
    fn begin(&self, db: &ChatDb) -> Result<Inbox, WatchError> {
        let rowid = match (&self.cursor, self.args.since) {
            (Some(cursor), _) => cursor.rowid,
            (None, Since::Start) => 0,
            (None, Since::Now) => db.max_rowid()?,
            (None, Since::Rowid(rowid)) => rowid,
            (None, Since::At(at)) => db.rowid_before(at)?,
        };
        let patience = if self.args.once {
            Patience { hold_ms: 0, known_max: 0 }
        } else {
            Patience::default()
        };
        Ok(Inbox::new(rowid, db.newest_date_at(rowid)?, patience))
    }

    fn tell_new(&mut self, db: &ChatDb, inbox: &mut Inbox, now: UnixMs) -> Result<(), WatchError> {
        let mut held = db.rows_by_ids(&inbox.held())?;
        loop {
            let rows = db.rows_after(inbox.read_to(), BATCH_ROWS)?;
            let heard = inbox.take(&rows, &held, now);
            held.clear();
            self.tell_batch(&rows, &heard, now)?;
            if rows.len() < BATCH_ROWS {
                break;
            }
        }
        if !self.args.once {
            self.tell_followed(db, now)?;
            self.cursor = Some(db.cursor_at(inbox.safe_rowid())?);
        }
        Ok(())
    }

    /// Own rows and events in the order of their rows.
    fn tell_batch(&mut self, rows: &[Row], heard: &[Heard], now: UnixMs) -> Result<(), WatchError> {
        let mut heard = heard.iter().peekable();
        for row in rows {
            while let Some(earlier) = heard.next_if(|heard| heard.rowid <= row.rowid) {
                self.write(&earlier.event)?;
            }
            if row.from_me && row.is_plain() {
                let mut told = Told::default();
                for word in untold(&mut told, row) {
                    self.write(&word)?;
                }
                if !self.args.once {
                    self.followed.add(row, told, now);
                }
            }
        }
        for rest in heard {
            self.write(&rest.event)?;
        }
        Ok(())
    }

    /// What has changed about own rows.
    fn tell_followed(&mut self, db: &ChatDb, now: UnixMs) -> Result<(), WatchError> {
        let rowids: Vec<i64> = self.followed.rows.keys().copied().collect();
        let states = db.send_states(&rowids)?;
        let changed: Vec<i64> = states
            .iter()
            .filter(|state| {
                self.followed.rows.get(&state.rowid).is_some_and(|(was, _)| *was != state.status)
            })
            .map(|state| state.rowid)
            .collect();
        for row in db.rows_by_ids(&changed)? {
            let Some((_, mut told)) = self.followed.rows.remove(&row.rowid) else { continue };
            for word in untold(&mut told, &row) {
                self.write(&word)?;
            }
            self.followed.add(&row, told, now);
        }
        Ok(())
    }

    fn write(&mut self, line: &impl Serialize) -> Result<(), WatchError> {
        self.line.clear();
        serde_json::to_writer(&mut self.line, line).map_err(WatchError::Json)?;
        self.line.push(b'\n');
        self.out.write_all(&self.line).map_err(WatchError::Out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_is_a_row_a_time_or_a_word() {
        assert_eq!("now".parse(), Ok(Since::Now));
        assert_eq!("start".parse(), Ok(Since::Start));
        assert_eq!("42".parse(), Ok(Since::Rowid(42)));
        assert_eq!("1970-01-01T00:00:01Z".parse(), Ok(Since::At(UnixMs(1000))));
        for bad in ["", "yesterday", "2026-11-22", "4 2"] {
            assert_eq!(bad.parse::<Since>(), Err(BadSince), "{bad}");
        }
    }
}
