//! `switchboard-bridge watch`: what happens in a chat.db, one JSON object a line, read-only and
//! without a journal.
//!
//! What comes in is told as the protocol's events, edits and files that come later included. Own
//! messages are told in the same words (`sent`, `delivered`, `read`, `failed`) with the row's guid,
//! since a foreign chat.db knows nothing of our messages and attempts. Useful to look at a Mac before
//! it joins the shelf; `--once` ends after what is there, as `export` does.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use protocol::UnixMs;
use protocol::pipe::Event;
use serde::Serialize;

use crate::archive;
use crate::chatdb::{ChatDb, NotReady, StatusBits, Watch};
use crate::clock::{self, Now};
use crate::inbound::{Own, OwnMessage, Told, Understood, understand};
use crate::line::{self, Progress};
use crate::reading::{Forgetful, ReadError, Reading};

/// Rows of one read: a read is over within milliseconds, and what else waits is not kept.
const BATCH_ROWS: usize = 500;
/// How often held rows are looked at again, and a database that could not be opened is tried again.
const TICK: Duration = Duration::from_secs(1);
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
    /// Look every quarter of a second, without waiting for file events: for volumes that have none,
    /// such as network shares.
    #[arg(long)]
    pub poll_only: bool,
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

/// What became of an own message after it was told.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Receipt<'r> {
    Delivered { rowid: i64, guid: &'r str, at: Option<UnixMs> },
    Read { rowid: i64, guid: &'r str, at: Option<UnixMs> },
}

/// What has been told of an own row. Each word once, and never backwards.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each word is told once, and failed may come after sent"
)]
struct Words {
    scheduled: bool,
    sent: bool,
    delivered: bool,
    read: bool,
    failed: bool,
}

/// Own rows whose story may go on.
#[derive(Debug, Default)]
struct Followed {
    rows: BTreeMap<i64, (StatusBits, Words)>,
}

impl Followed {
    fn add(&mut self, message: &OwnMessage, words: Words, now: UnixMs) {
        if now.since(message.at) >= FOLLOW_MS || words.read {
            return;
        }
        self.rows.insert(message.rowid, (message.status, words));
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
    open: Option<ChatDb>,
    reading: Option<Reading>,
}

/// Tells what happens in the database until the process is stopped, the reader of `out` goes away,
/// or, with [`Args::once`], everything has been told.
pub async fn run(args: Args, out: impl Write) -> Result<(), WatchError> {
    let ended = if args.once { once(&args, out) } else { follow(args, out).await };
    match ended {
        // Whoever read along has seen enough.
        Err(WatchError::Out(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

fn once(args: &Args, out: impl Write) -> Result<(), WatchError> {
    let db = ChatDb::open(&args.db)?;
    let from = first(&db, args.since)?;
    archive::stream(db, from, clock::now().wall, out).map_err(|error| match error {
        archive::StreamError::NotReady(why) => WatchError::NotReady(why),
        archive::StreamError::Out(error) => WatchError::Out(error),
        archive::StreamError::Json(error) => WatchError::Json(error),
        archive::StreamError::Thread(error) => WatchError::Watch(error),
    })
}

/// The position to begin at.
fn first(db: &ChatDb, since: Since) -> Result<i64, NotReady> {
    match since {
        Since::Start => Ok(0),
        Since::Now => db.max_rowid(),
        Since::Rowid(rowid) => Ok(rowid),
        Since::At(at) => db.rowid_before(at),
    }
}

async fn follow(args: Args, out: impl Write) -> Result<(), WatchError> {
    let (watch, mut changes) =
        Watch::start_with(&args.db, !args.poll_only).map_err(WatchError::Watch)?;
    let mut watching = Watching::new(args, out);
    // Said once per reason: whoever waits for a database need not read it every second.
    let mut told = None;
    loop {
        match watching.turn(clock::now()) {
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
            reading: None,
        }
    }

    /// Reads and tells everything that is new.
    fn turn(&mut self, now: Now) -> Result<(), WatchError> {
        let (db, mut reading) = self.ready()?;
        let told = self.tell(&db, &mut reading, now);
        self.open = Some(db);
        // The position stays valid also when this turn failed half-way.
        self.reading = Some(reading);
        told?;
        self.out.flush().map_err(WatchError::Out)
    }

    /// The database, opened (again) if need be, and the position in it.
    fn ready(&mut self) -> Result<(ChatDb, Reading), WatchError> {
        let (db, opened) = match self.open.take() {
            Some(db) if !db.is_stale() => (db, false),
            Some(_) | None => (ChatDb::open(&self.args.db)?, true),
        };
        let mut reading = match self.reading.take() {
            Some(reading) => reading,
            None => match self.args.since {
                Since::Now => Reading::restore(None, Vec::new()),
                since @ (Since::Start | Since::Rowid(_) | Since::At(_)) => {
                    Reading::beginning_at(&db, first(&db, since)?, UnixMs(i64::MIN))?
                }
            },
        };
        if opened {
            reading.opened();
        }
        Ok((db, reading))
    }

    fn tell(&mut self, db: &ChatDb, reading: &mut Reading, now: Now) -> Result<(), WatchError> {
        loop {
            let read = match reading.read(db, &Forgetful, BATCH_ROWS, now) {
                Ok(read) => read,
                Err(ReadError::NotReady(why)) => return Err(why.into()),
                // It has none.
                Err(ReadError::Journal(error)) => {
                    return Err(WatchError::Watch(io::Error::other(error)));
                }
            };
            if let Some(why) = read.resynced {
                self.followed = Followed::default();
                let why = why.as_str().to_owned();
                self.say(&Told::Event(Event::Resync { why }))?;
            }
            for heard in &read.heard {
                match &heard.told {
                    Told::Own(Own::Message(message)) => {
                        self.follow(message, Words::default(), now.wall)?;
                    }
                    told @ (Told::Event(_) | Told::Own(Own::Reaction(_))) => self.say(told)?,
                }
            }
            if !read.more {
                break;
            }
        }
        self.tell_followed(db, now.wall)
    }

    /// The words that an own message has earned and that have not been told.
    fn follow(
        &mut self,
        message: &OwnMessage,
        mut words: Words,
        now: UnixMs,
    ) -> Result<(), WatchError> {
        let told = match Progress::of(message) {
            // It is told when it is known what became of it.
            Progress::Pending => true,
            Progress::Scheduled => std::mem::replace(&mut words.scheduled, true),
            Progress::Failed => std::mem::replace(&mut words.failed, true),
            Progress::Sent => {
                // A message that first failed and was sent again by hand.
                words.failed = false;
                std::mem::replace(&mut words.sent, true)
            }
        };
        if !told {
            self.say(&Told::Own(Own::Message(message.clone())))?;
        }
        let (rowid, guid, status) = (message.rowid, message.guid.as_str(), &message.status);
        if words.sent && !words.failed {
            let is_read = status.date_read.is_some();
            if (status.is_delivered || is_read) && !std::mem::replace(&mut words.delivered, true) {
                self.write(&Receipt::Delivered { rowid, guid, at: status.date_delivered })?;
            }
            if is_read && !std::mem::replace(&mut words.read, true) {
                self.write(&Receipt::Read { rowid, guid, at: status.date_read })?;
            }
        }
        self.followed.add(message, words, now);
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
            let Some((_, words)) = self.followed.rows.remove(&row.rowid) else { continue };
            if let Understood::Own(Own::Message(message)) = understand(&row, true, false, now) {
                self.follow(&message, words, now)?;
            }
        }
        Ok(())
    }

    fn say(&mut self, told: &Told) -> Result<(), WatchError> {
        self.line.clear();
        line::write(&mut self.line, told).map_err(WatchError::Json)?;
        self.out.write_all(&self.line).map_err(WatchError::Out)
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
