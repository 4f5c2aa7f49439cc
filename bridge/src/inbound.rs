//! Rows of chat.db → events: what came in, in which order, and what is passed over and why. Pure.
//!
//! [`Inbox`] is the reading position. It is fed with the rows above [`Inbox::read_to`] and with
//! those that it holds ([`Inbox::held`]), read again. A row is held while it is not complete:
//! Messages writes a message first, and its place in a chat, its attachments and sometimes its text
//! a little later. After [`HOLD_MS`] it is taken as it is; a message is never dropped for what is
//! missing beside it. Other rows do not wait for it, but [`Inbox::safe_rowid`], the position to
//! remember, stays below it: after a crash it is read again, and guids show the repeated ones.

mod understand;

use std::collections::{BTreeMap, HashSet, VecDeque};

use protocol::pipe::{Conversation, Event};
use protocol::{Recipient, UnixMs};

pub use understand::{FILES_MAX, TEXT_BYTES_MAX, understand};

use crate::chatdb::Row;

/// How long an incomplete row is held. Joins follow within milliseconds; peers that gave up after 5
/// s dropped messages (imsg#118).
pub const HOLD_MS: i64 = 10_000;
/// Most rows held at a time; more than that is a database without joins, and nothing is gained by
/// waiting.
pub const HELD_MAX: usize = 1000;
/// A row that is so much older than one before it was put in by iCloud later. Replayed rows were
/// seen from 82 minutes old on, but phones that were offline deliver late as well: the mark is a
/// hint, not a reason to drop.
pub const LATE_MS: i64 = 6 * 3_600_000;
/// Guids remembered, so that a resynchronisation does not repeat what was just said.
pub const KNOWN_MAX: usize = 20_000;
/// A link's preview comes as a row of its own within about 2 s of the text.
const PREVIEW_MS: i64 = 5_000;
/// Balloon of link previews.
pub(crate) const LINK_BALLOON: &str = "com.apple.messages.URLBalloonProvider";

/// Why a row is not an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Skip {
    /// Own; its story is told by the send that it belongs to.
    Own,
    /// A notice of the system that changes nothing for us: location, `SharePlay`, kept audio.
    Notice,
    /// A sticker, a poll vote, or something else put onto a message.
    Association,
    /// A message of an app, without text.
    App,
    /// The preview of a link whose text was an event already.
    LinkPreview,
    /// Nothing in it: taken back, or never filled.
    Empty,
    /// The sender has neither number nor e-mail address.
    Sender,
    /// Said before, by guid.
    Known,
    /// Older than the window of a resynchronisation.
    Old,
}

impl Skip {
    /// For logs and counters.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Notice => "notice",
            Self::Association => "association",
            Self::App => "app",
            Self::LinkPreview => "link_preview",
            Self::Empty => "empty",
            Self::Sender => "sender",
            Self::Known => "known",
            Self::Old => "old",
        }
    }
}

/// What a row is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Understood {
    /// Something to tell.
    Event(Event),
    /// Nothing to tell.
    Skip(Skip),
    /// Not complete: read it again.
    Incomplete,
}

/// An event with the row that it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// The row.
    pub rowid: i64,
    /// What it tells.
    pub event: Event,
}

/// How much an inbox waits and remembers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// How long an incomplete row is held; 0 for not at all.
    pub hold_ms: i64,
    /// How many guids are remembered.
    pub known_max: usize,
}

impl Default for Patience {
    fn default() -> Self {
        Self { hold_ms: HOLD_MS, known_max: KNOWN_MAX }
    }
}

/// A position in the rows of one database, with what is open at it.
#[derive(Debug)]
pub struct Inbox {
    patience: Patience,
    read_to: i64,
    /// Held rows, and since when.
    held: BTreeMap<i64, UnixMs>,
    /// Largest date among the rows so far.
    newest: Option<UnixMs>,
    /// Rows up to this number with an older date are not told.
    window: Option<(i64, UnixMs)>,
    known: HashSet<String>,
    known_order: VecDeque<String>,
    last_text: Option<(Conversation, Recipient, String, UnixMs)>,
    skipped: BTreeMap<Skip, u64>,
}

impl Inbox {
    /// An inbox that has read up to and including `rowid`; `newest` is
    /// [`crate::chatdb::ChatDb::newest_date_at`] there.
    pub fn new(rowid: i64, newest: Option<UnixMs>, patience: Patience) -> Self {
        Self {
            patience,
            read_to: rowid,
            held: BTreeMap::new(),
            newest,
            window: None,
            known: HashSet::new(),
            known_order: VecDeque::new(),
            last_text: None,
            skipped: BTreeMap::new(),
        }
    }

    /// Starts over at `rowid` in a database whose rowids mean something else now: rows up to
    /// `up_to` are told only when their date is not before `since`, and nothing whose guid is known
    /// is told again.
    pub fn resync(&mut self, rowid: i64, since: UnixMs, up_to: i64) {
        self.read_to = rowid;
        self.held.clear();
        self.newest = None;
        self.window = Some((up_to, since));
        self.last_text = None;
    }

    /// Rows above this one have not been read.
    pub fn read_to(&self) -> i64 {
        self.read_to
    }

    /// Rows to read again.
    pub fn held(&self) -> Vec<i64> {
        self.held.keys().copied().collect()
    }

    /// The position to remember: nothing at or below it is open.
    pub fn safe_rowid(&self) -> i64 {
        self.held.first_key_value().map_or(self.read_to, |(first, _)| self.read_to.min(first - 1))
    }

    /// How many rows were passed over, by why.
    pub fn skipped(&self) -> &BTreeMap<Skip, u64> {
        &self.skipped
    }

    /// A message of that guid has been told, in an earlier life.
    pub fn know(&mut self, guid: &str) {
        if self.patience.known_max == 0 || self.known.contains(guid) {
            return;
        }
        if self.known_order.len() >= self.patience.known_max
            && let Some(oldest) = self.known_order.pop_front()
        {
            self.known.remove(&oldest);
        }
        self.known.insert(guid.to_owned());
        self.known_order.push_back(guid.to_owned());
    }

    /// Takes the rows above [`Inbox::read_to`], in order, and the rows of [`Inbox::held`] as they
    /// are now. Gives what is to be told, in the order of rowid within each.
    pub fn take(&mut self, rows: &[Row], held_rows: &[Row], now: UnixMs) -> Vec<Heard> {
        let mut heard = Vec::new();
        for row in held_rows {
            if let Some(since) = self.held.get(&row.rowid).copied() {
                self.consider(row, since, now, &mut heard);
            }
        }
        // What was not among the rows is gone from the database; forget it when its time is over.
        let hold_ms = self.patience.hold_ms;
        self.held.retain(|_, since| (0..hold_ms).contains(&now.since(*since)));
        for row in rows {
            if row.rowid <= self.read_to {
                continue;
            }
            self.read_to = row.rowid;
            self.consider(row, now, now, &mut heard);
        }
        heard
    }

    fn consider(&mut self, row: &Row, since: UnixMs, now: UnixMs, heard: &mut Vec<Heard>) {
        let late = self.is_late(row, now);
        // A clock that was set back must not hold a row for ever.
        let waited = now.since(since);
        let out_of_time = !(0..self.patience.hold_ms).contains(&waited);
        let full = self.held.len() >= HELD_MAX && !self.held.contains_key(&row.rowid);
        let understood = if self.known.contains(&row.guid) {
            Understood::Skip(Skip::Known)
        } else if self.is_outside_window(row) {
            Understood::Skip(Skip::Old)
        } else {
            understand(row, out_of_time || full, late, now)
        };
        match understood {
            Understood::Incomplete => {
                self.held.insert(row.rowid, since);
            }
            Understood::Skip(why) => {
                self.held.remove(&row.rowid);
                *self.skipped.entry(why).or_default() += 1;
            }
            Understood::Event(event) => {
                self.held.remove(&row.rowid);
                if self.is_preview(row, &event) {
                    *self.skipped.entry(Skip::LinkPreview).or_default() += 1;
                    return;
                }
                self.know(&row.guid);
                heard.push(Heard { rowid: row.rowid, event });
            }
        }
    }

    /// Old beside a row before it. The sender's clock may be wrong: a date ahead of ours must not
    /// make all that follows late.
    fn is_late(&mut self, row: &Row, now: UnixMs) -> bool {
        let Some(at) = row.at else { return false };
        let late = self.newest.is_some_and(|newest| newest.since(at) > LATE_MS);
        self.newest = self.newest.max(Some(at.min(now)));
        late
    }

    fn is_outside_window(&mut self, row: &Row) -> bool {
        match self.window {
            Some((up_to, _)) if row.rowid > up_to => {
                self.window = None;
                false
            }
            Some((_, since)) => row.at.is_none_or(|at| at < since),
            None => false,
        }
    }

    /// The preview of a link repeats the text, or a part of it, right after it.
    fn is_preview(&mut self, row: &Row, event: &Event) -> bool {
        let Event::Received(received) = event else { return false };
        let preview = row.balloon.as_deref() == Some(LINK_BALLOON)
            && self.last_text.as_ref().is_some_and(|(conversation, from, text, at)| {
                *conversation == received.conversation
                    && *from == received.from
                    && received.at.since(*at).abs() <= PREVIEW_MS
                    && text.contains(received.text.trim())
            });
        if !preview {
            self.last_text = Some((
                received.conversation.clone(),
                received.from.clone(),
                received.text.clone(),
                received.at,
            ));
        }
        preview
    }
}
