//! `switchboard-bridge export`: everything that a database holds, as JSON lines or for people.
//!
//! An export into a file is written beside it and renamed at the end. Now and then
//! ([`Args::note_every`]) what is written is brought to the disk, and a note says how far it goes; an
//! export that was interrupted, however hard, goes on there, and what comes out is the same to the
//! byte. A lock on the half-written file keeps a second export of the same name away.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, IsTerminal as _, Seek as _, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, TrySendError, sync_channel};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use protocol::pipe::{Conversation, Event};
use protocol::{Reason, UnixMs};
use serde::{Deserialize, Serialize};

use super::text::TextWriter;
use super::{OUT_BYTES, Rows, StreamError, impatient, tell_each};
use crate::chatdb::{ChatDb, Cursor, Identity, NotReady, Row, Verified, verify};
use crate::clock;
use crate::exit::Exit;
use crate::inbound::{Heard, Own, Told};
use crate::line;
use crate::watch::Since;

/// What is written between two notes, unless it is asked for otherwise: a fraction of a second's
/// work, and so much that bringing it to the disk does not make the export slower.
const NOTE_EVERY_MIB: u32 = 32;
const MIB: u64 = 1024 * 1024;
/// The version of the note's form and of what it says was written: up to version 1 a preview in the batch after its text was
/// told by itself.
const NOTE_VERSION: u32 = 2;
/// How often a person sees progress.
const DRAWS_A_SECOND: u8 = 8;
/// How often progress is told where nobody draws.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// How an export looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One JSON object a line, with everything that is known.
    Jsonl,
    /// For people: a line a message, with local times.
    Txt,
}

/// Arguments of `switchboard-bridge export`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct Args {
    /// The database to export, for example ~/Library/Messages/chat.db, or a copy of it.
    #[arg(long, value_name = "PATH")]
    pub db: PathBuf,
    /// JSON lines, or text for people.
    #[arg(long, value_enum, default_value_t = Format::Jsonl)]
    pub format: Format,
    /// Where to write; standard output when left out. An export into a file that was interrupted goes
    /// on when it is asked for again.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Where to begin: a row number (rows above it), an RFC 3339 time, or `start`.
    #[arg(long, value_name = "ROWID|TIME|start", default_value = "start")]
    pub since: Since,
    /// Leave out what was sent at or after this RFC 3339 time.
    #[arg(long, value_name = "TIME")]
    pub until: Option<UnixMs>,
    /// Only this conversation: a number, an e-mail address, or the id of a group.
    #[arg(long, value_name = "ID")]
    pub conversation: Option<String>,
    /// Forget what an interrupted export has written, and begin anew.
    #[arg(long)]
    pub restart: bool,
    /// After how much a file is brought to the disk and a note made: so much may have to be written
    /// again after an interruption.
    #[arg(long, value_name = "MIB", default_value_t = NOTE_EVERY_MIB)]
    pub note_every: u32,
    /// Say nothing about the progress.
    #[arg(long)]
    pub quiet: bool,
}

/// Why an export ended early.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// Reading or formatting failed.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// A file cannot be written.
    #[error("{}: {doing}; once that is mended, run the same command again and it goes on", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The file is there already.
    #[error("{} is there already: name another file, or remove it first", path.display())]
    Exists {
        /// Which.
        path: PathBuf,
    },
    /// Another process writes it.
    #[error("{}: another export is writing it; let it end, or name another file", path.display())]
    Busy {
        /// The half-written file.
        path: PathBuf,
    },
    /// What is half-written belongs to something else.
    #[error("{}: {what}; run it with --restart to begin anew", path.display())]
    Foreign {
        /// The note.
        path: PathBuf,
        /// What does not fit.
        what: &'static str,
    },
}

impl ExportError {
    /// The exit code that says what to do.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Stream(StreamError::NotReady(why))
                if why.reason() == Reason::DatabasePermission =>
            {
                Exit::NoPermission
            }
            Self::Stream(StreamError::NotReady(_)) => Exit::Unhealthy,
            Self::Stream(_) | Self::File { .. } | Self::Busy { .. } => Exit::TryAgain,
            Self::Exists { .. } | Self::Foreign { .. } => Exit::BadConfig,
        }
    }

    fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Stream(StreamError::Out(error)) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

impl From<NotReady> for ExportError {
    fn from(why: NotReady) -> Self {
        Self::Stream(why.into())
    }
}

/// How far an export into a file is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    version: u32,
    format: Format,
    since: String,
    until: Option<UnixMs>,
    conversation: Option<String>,
    /// Which database, and the row up to which all is written, with its guid.
    identity: String,
    rowid: i64,
    guid: String,
    /// The row before the last batch: what it leaves open is looked at again.
    before: i64,
    /// The newest date before that.
    newest: Option<UnixMs>,
    /// The last row of the export.
    to: i64,
    /// Bytes that are on the disk.
    bytes: u64,
    /// Which instant counts as now.
    now: UnixMs,
}

/// Exports. With a closed standard output it ends in silence: whoever read it has seen enough.
pub fn run(args: &Args, stdout: impl Write) -> Result<(), ExportError> {
    let ended = if let Some(path) = &args.out {
        into_file(args, path)
    } else {
        let db = ChatDb::open(&args.db)?;
        let plan = Plan::new(args, &db)?;
        export(args, db, &plan, stdout, |_, _| Ok(()))
    };
    match ended {
        Err(error) if error.is_closed_pipe() => Ok(()),
        other => other,
    }
}

/// What is exported, and from where.
#[derive(Debug, Clone)]
struct Plan {
    /// The rows above this one are read.
    from: i64,
    /// The rows above this one are written.
    write_from: i64,
    newest: Option<UnixMs>,
    to: i64,
    now: UnixMs,
    bytes: u64,
}

impl Plan {
    fn new(args: &Args, db: &ChatDb) -> Result<Self, NotReady> {
        let from = match args.since {
            Since::Start => 0,
            Since::Now => db.max_rowid()?,
            Since::Rowid(rowid) => rowid,
            Since::At(at) => db.rowid_before(at)?,
        };
        Ok(Self {
            from,
            write_from: from,
            newest: db.newest_date_at(from)?,
            to: db.max_rowid()?,
            now: clock::now().wall,
            bytes: 0,
        })
    }
}

fn since_text(since: Since) -> String {
    match since {
        Since::Now => "now".to_owned(),
        Since::Start => "start".to_owned(),
        Since::Rowid(rowid) => rowid.to_string(),
        Since::At(at) => at.to_string(),
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Where batches end, and how far the output is there.
#[derive(Debug, Clone, Copy)]
struct Mark {
    rowid: i64,
    before: i64,
    newest_before: Option<UnixMs>,
    bytes: u64,
}

fn into_file(args: &Args, path: &Path) -> Result<(), ExportError> {
    let (partial, note_path) = (beside(path, ".partial"), beside(path, ".partial.note"));
    let failed = |path: &Path, doing| {
        let path = path.to_owned();
        move |source| ExportError::File { path, doing, source }
    };
    if path.exists() {
        return Err(ExportError::Exists { path: path.to_owned() });
    }
    let db = ChatDb::open(&args.db)?;
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&partial)
        .map_err(failed(&partial, "cannot be opened"))?;
    // Before the note is read: it changes while another export is at work. The system gives the lock
    // up with the process, however that ends.
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(ExportError::Busy { path: partial }),
        Err(TryLockError::Error(error)) => {
            return Err(failed(&partial, "cannot be locked")(error));
        }
    }
    if args.restart {
        forget(&note_path)?;
    }
    let plan = match &read_note(&note_path)? {
        Some(note) => resume(args, note, &note_path, &db)?,
        None => Plan::new(args, &db)?,
    };
    // A note that outlived its file, or a disk that lost what it had promised.
    let there = file.metadata().map_err(failed(&partial, "cannot be looked at"))?.len();
    if there < plan.bytes {
        let what = "the half-written file beside it is shorter than the note says";
        return Err(ExportError::Foreign { path: note_path, what });
    }
    // What is beyond the note may be half a line.
    file.set_len(plan.bytes)
        .and_then(|()| file.seek(SeekFrom::Start(plan.bytes)))
        .map_err(failed(&partial, "cannot be cut to what is known to be good"))?;
    let identity = db.identity()?.to_text();
    let sync = file.try_clone().map_err(failed(&partial, "cannot be opened twice"))?;
    let note_every = u64::from(args.note_every) * MIB;
    let mut noted_bytes = plan.bytes;
    let (to, now) = (plan.to, plan.now);
    let (give, notes) = sync_channel(0);
    let noting = note_path.clone();
    let notes = std::thread::Builder::new()
        .name("notes".to_owned())
        .spawn(move || write_notes(&sync, &noting, &notes))
        .map_err(StreamError::Thread)?;
    let note = move |mark: Mark, guid: &str| {
        if mark.bytes - noted_bytes < note_every {
            return Ok(());
        }
        let note = Note {
            version: NOTE_VERSION,
            format: args.format,
            since: since_text(args.since),
            until: args.until,
            conversation: args.conversation.clone(),
            identity: identity.clone(),
            rowid: mark.rowid,
            guid: guid.to_owned(),
            before: mark.before,
            newest: mark.newest_before,
            to,
            bytes: mark.bytes,
            now,
        };
        match give.try_send(note) {
            Ok(()) => noted_bytes = mark.bytes,
            // The disk is slower: a note is made when it has done.
            Err(TrySendError::Full(_)) => {}
            Err(TrySendError::Disconnected(_)) => {
                return Err(io::Error::other("notes cannot be made any more"));
            }
        }
        Ok(())
    };
    let ended = export(args, db, &plan, &mut file, note);
    // Why no notes could be made says more than that they could not.
    match notes.join() {
        Ok(noted) => noted.map_err(StreamError::Out)?,
        Err(_panic) => {
            let died = io::Error::other("the thread that makes notes has died");
            return Err(StreamError::Thread(died).into());
        }
    }
    ended?;
    file.sync_all().map_err(failed(&partial, "cannot be brought to the disk"))?;
    std::fs::rename(&partial, path)
        .and_then(|()| sync_folder(path))
        .map_err(failed(path, "cannot be given its name"))?;
    forget(&note_path)
}

fn forget(note: &Path) -> Result<(), ExportError> {
    match std::fs::remove_file(note) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => {
            Err(ExportError::File { path: note.to_owned(), doing: "cannot be removed", source })
        }
    }
}

fn read_note(path: &Path) -> Result<Option<Note>, ExportError> {
    let foreign = |what| ExportError::Foreign { path: path.to_owned(), what };
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            let path = path.to_owned();
            return Err(ExportError::File { path, doing: "cannot be read", source });
        }
    };
    let note: Note =
        serde_json::from_str(&text).map_err(|_bad_note| foreign("is not a note of an export"))?;
    if note.version == NOTE_VERSION {
        Ok(Some(note))
    } else {
        Err(foreign("was written by another version"))
    }
}

/// Brings to the disk what is written, and notes how far it goes, while the export goes on.
fn write_notes(file: &File, path: &Path, notes: &Receiver<Note>) -> io::Result<()> {
    for note in notes {
        file.sync_data()?;
        write_note(path, &note)?;
    }
    Ok(())
}

/// The whole note or the one before: never half of one.
fn write_note(path: &Path, note: &Note) -> io::Result<()> {
    let fresh = beside(path, ".new");
    let mut file =
        OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&fresh)?;
    serde_json::to_writer(&mut file, note)?;
    file.sync_all()?;
    std::fs::rename(&fresh, path)?;
    sync_folder(path)
}

/// A name is on the disk when its folder is.
fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

/// Goes on after a note, if it is about the same export of the same database.
fn resume(args: &Args, note: &Note, path: &Path, db: &ChatDb) -> Result<Plan, ExportError> {
    let foreign = |what| Err(ExportError::Foreign { path: path.to_owned(), what });
    let same = note.format == args.format
        && note.since == since_text(args.since)
        && note.until == args.until
        && note.conversation == args.conversation;
    if !same {
        return foreign("belongs to an export with other arguments");
    }
    let Some(identity) = Identity::from_text(&note.identity) else {
        return foreign("is not a note of an export");
    };
    let cursor = Cursor { identity, rowid: note.rowid, guid: note.guid.clone() };
    let good = verify(&cursor, &db.cursor_facts(&cursor)?) == Verified::Good;
    // A row that is gone is no harm, one that has moved is: what follows it may stand below it now.
    let moved = db.rowid_of(&note.guid)?.is_some_and(|rowid| rowid != note.rowid);
    if !good || moved {
        return foreign("the database was rebuilt or replaced since, and its rows are others now");
    }
    Ok(Plan {
        from: note.before,
        write_from: note.rowid,
        newest: note.newest,
        to: note.to,
        now: note.now,
        bytes: note.bytes,
    })
}

fn export(
    args: &Args,
    db: ChatDb,
    plan: &Plan,
    mut out: impl Write,
    mut note: impl FnMut(Mark, &str) -> io::Result<()>,
) -> Result<(), ExportError> {
    let mut inbox = impatient(plan.from, plan.newest);
    let progress = Progress::new(args.quiet, plan.from, plan.to);
    let mut rows = Rows::read(db, plan.from, plan.to)?;
    let mut lines = Vec::with_capacity(OUT_BYTES);
    let mut text = TextWriter::local();
    let mut written = plan.bytes;
    let mut before = plan.from;
    while let Some(batch) = rows.next() {
        let batch = batch?;
        let newest_before = inbox.newest();
        let Some(last) = batch.rows.last() else { break };
        let mut rows = batch.rows.iter();
        tell_each(&mut inbox, batch, plan.now, |heard| {
            // It was written before, and was read for what it leaves open. Rows that went away since
            // the note was made let a batch reach further.
            if heard.rowid <= plan.write_from {
                return Ok(());
            }
            // Both are in the order of rowid, and several may come from one row.
            let row = advance(&mut rows, heard.rowid);
            if !is_wanted(args, heard, row) {
                return Ok(());
            }
            match args.format {
                Format::Jsonl => line::write(&mut lines, &heard.told)?,
                Format::Txt => {
                    let place = row.and_then(|row| row.place.conversation());
                    text.write(&mut lines, &heard.told, place);
                }
            }
            Ok(())
        })
        .map_err(StreamError::Json)?;
        if lines.len() >= OUT_BYTES / 2 {
            out.write_all(&lines).map_err(StreamError::Out)?;
            written = written.saturating_add(u64::try_from(lines.len()).unwrap_or(u64::MAX));
            lines.clear();
            let mark = Mark { rowid: last.rowid, before, newest_before, bytes: written };
            note(mark, &last.guid).map_err(StreamError::Out)?;
        }
        before = last.rowid;
        progress.at(last.rowid);
    }
    out.write_all(&lines).and_then(|()| out.flush()).map_err(StreamError::Out)?;
    progress.finish();
    Ok(())
}

/// The row of that number, from rows in order of which earlier ones are not needed any more.
fn advance<'r>(rows: &mut std::slice::Iter<'r, Row>, rowid: i64) -> Option<&'r Row> {
    let skip = rows.as_slice().partition_point(|row| row.rowid < rowid);
    *rows = rows.as_slice().get(skip..).unwrap_or_default().iter();
    rows.as_slice().first().filter(|row| row.rowid == rowid)
}

/// Whether it lies in the chosen time and conversation. An edit or what was taken back belongs where
/// its message does: an archive of a conversation has both or neither.
fn is_wanted(args: &Args, heard: &Heard, row: Option<&Row>) -> bool {
    if args.until.is_none() && args.conversation.is_none() {
        return true;
    }
    let (told_in, told_at) = place_and_time(&heard.told);
    let row_in = row.and_then(|row| row.place.conversation());
    let at = row.and_then(|row| row.at).or(told_at);
    args.until.is_none_or(|until| at.is_none_or(|at| at < until))
        && args.conversation.as_ref().is_none_or(|wanted| {
            told_in.or(row_in).is_some_and(|place| place.id.eq_ignore_ascii_case(wanted))
        })
}

fn place_and_time(told: &Told) -> (Option<&Conversation>, Option<UnixMs>) {
    match told {
        Told::Own(Own::Message(own)) => (own.conversation.as_ref(), Some(own.at)),
        Told::Own(Own::Reaction(own)) => (own.conversation.as_ref(), Some(own.at)),
        Told::Event(Event::Received(event)) => (Some(&event.conversation), Some(event.at)),
        Told::Event(Event::Reaction(event)) => (Some(&event.conversation), Some(event.at)),
        Told::Event(Event::Group(event)) => (Some(&event.conversation), Some(event.at)),
        Told::Event(Event::Notice(event)) => (Some(&event.conversation), Some(event.at)),
        Told::Event(Event::UnknownKind(event)) => (event.conversation.as_ref(), Some(event.at)),
        Told::Event(
            Event::Edited(_)
            | Event::Unsent(_)
            | Event::Attachment(_)
            | Event::Preview(_)
            | Event::Accepted(_)
            | Event::Refused(_)
            | Event::Started { .. }
            | Event::Fallback { .. }
            | Event::Sent { .. }
            | Event::Delivered(_)
            | Event::Read(_)
            | Event::Failed(_)
            | Event::Unknown(_)
            | Event::Canceled(_)
            | Event::Expired(_)
            | Event::Capability(_)
            | Event::Resync { .. }
            | Event::Account { .. }
            | Event::Other(_),
        ) => (None, None),
    }
}

/// How far it is, for people.
struct Progress {
    bar: Option<ProgressBar>,
    from: i64,
    told: std::cell::Cell<i64>,
    tell: bool,
}

impl Progress {
    fn new(quiet: bool, from: i64, to: i64) -> Self {
        let terminal = io::stderr().is_terminal();
        let total = u64::try_from(to.saturating_sub(from)).unwrap_or(0);
        let bar = (!quiet && terminal).then(|| {
            let target = ProgressDrawTarget::stderr_with_hz(DRAWS_A_SECOND);
            let bar = ProgressBar::with_draw_target(Some(total), target);
            let style =
                "{bar:40} {percent:>3} %  {human_pos} of {human_len} rows, {per_sec}, {eta} left";
            bar.with_style(
                ProgressStyle::with_template(style)
                    .unwrap_or_else(|_bad_template| ProgressStyle::default_bar()),
            )
        });
        let tell = !quiet && !terminal;
        Self { bar, from, told: std::cell::Cell::new(clock::now().continuous_ms), tell }
    }

    fn at(&self, rowid: i64) {
        let done = u64::try_from(rowid.saturating_sub(self.from)).unwrap_or(0);
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        } else if self.tell {
            let now = clock::now().continuous_ms;
            let every = i64::try_from(TELL_EVERY.as_millis()).unwrap_or(i64::MAX);
            if now.saturating_sub(self.told.get()) >= every {
                self.told.set(now);
                tracing::info!(rows = done, "exporting");
            }
        }
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish();
        }
    }
}
