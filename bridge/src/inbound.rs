//! Rows of chat.db → events: what came in, in which order, and what is passed over and why. Pure.
//!
//! [`Inbox`] is the reading position. It is fed with the rows above [`Inbox::read_to`], with those
//! that it holds ([`Inbox::held`]), read again, and with older rows that have changed. A row is held
//! while it is not complete: Messages writes a message first, and its place in a chat, its
//! attachments and sometimes its text a little later. After [`HOLD_MS`] it is taken as it is; a
//! message is never dropped for what is missing beside it. Other rows do not wait for it, but
//! [`Inbox::safe_rowid`], the position to remember, stays below it: after a crash it is read again,
//! and guids show the repeated ones.
//!
//! What happens to a message later is told from the difference between what was told of it
//! ([`Seen`]) and its row ([`changes()`]).

mod changes;
mod content;
mod link;
mod memory;
mod own;
mod understand;

use std::collections::BTreeMap;

use protocol::UnixMs;
use protocol::pipe::Event;

pub use changes::{Seen, changes};
pub use content::{Content, FILES_MAX, TEXT_BYTES_MAX};
pub(crate) use link::PREVIEW_MS;
pub(crate) use memory::print;
pub use memory::{KNOWN_MAX, Known};
pub use own::{Own, OwnMessage, OwnReaction};
pub use understand::understand;

use crate::chatdb::Row;
use link::Links;

/// How long an incomplete row is held. Joins follow within milliseconds; peers that gave up after 5
/// s dropped messages (imsg#118).
pub const HOLD_MS: i64 = 10_000;
/// How long a text with a link is held for its preview, which Messages writes as a row of its own
/// within about two seconds (imsg's settle time is the same).
pub const SETTLE_MS: i64 = 2_000;
/// Most rows held at a time; more than that is a database without joins, and nothing is gained by
/// waiting.
pub const HELD_MAX: usize = 1000;
/// A row that is so much older than one before it was put in by iCloud later. Replayed rows were
/// seen from 82 minutes old on, but phones that were offline deliver late as well: the mark is a
/// hint, not a reason to drop.
pub const LATE_MS: i64 = 6 * 3_600_000;

/// Why a row is not an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Skip {
    /// The preview of a link whose text carries it.
    LinkPreview,
    /// Nothing in it: taken back before it was seen, or never filled.
    Empty,
    /// Said before, by guid.
    Known,
    /// Older than the window of a resynchronisation.
    Old,
}

impl Skip {
    /// For logs and counters.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::LinkPreview => "link_preview",
            Self::Empty => "empty",
            Self::Known => "known",
            Self::Old => "old",
        }
    }
}

/// What a row is.
#[derive(Debug, Clone, PartialEq)]
pub enum Understood {
    /// Something to tell.
    Event(Event),
    /// Something that this account has written itself.
    Own(Own),
    /// Nothing to tell.
    Skip(Skip),
    /// Not complete: read it again.
    Incomplete,
}

/// What a row tells.
#[derive(Debug, Clone, PartialEq)]
pub enum Told {
    /// An event.
    Event(Event),
    /// An own row; whoever tells the story of own sends needs it not.
    Own(Own),
}

/// What is told, with the row that it comes from.
#[derive(Debug, Clone, PartialEq)]
pub struct Heard {
    /// The row.
    pub rowid: i64,
    /// What it tells.
    pub told: Told,
    /// By what a late copy is known, for what is told for the first time.
    pub print: Option<u64>,
}

/// Rows to take.
#[derive(Clone, Copy)]
pub struct Batch<'r> {
    /// Those above [`Inbox::read_to`], in order.
    pub rows: &'r [Row],
    /// Those of [`Inbox::held`], as they are now.
    pub held: &'r [Row],
    /// Those that follow `rows` and are taken after them: here they are only looked at, for what belongs to the last of `rows`.
    pub following: &'r [Row],
    /// Older ones that have changed.
    pub changed: &'r [Row],
    /// The guid of an older row of the database with the same content, for a row that is late.
    pub original: &'r dyn Fn(&Row) -> Option<String>,
}

impl std::fmt::Debug for Batch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batch").field("rows", &self.rows.len()).finish_non_exhaustive()
    }
}

impl<'r> Batch<'r> {
    /// New rows alone.
    pub fn of(rows: &'r [Row]) -> Self {
        Self { rows, held: &[], following: &[], changed: &[], original: &|_| None }
    }
}

/// What came of a batch.
#[derive(Debug, Default)]
pub struct Taken {
    /// To be told, in the order of rowid within held, changed and new rows.
    pub heard: Vec<Heard>,
    /// To be remembered with it.
    pub noted: Noted,
}

/// Where what comes of a batch goes.
struct Telling<'t> {
    hear: &'t mut dyn FnMut(Heard),
    noted: Noted,
}

/// What is to be remembered of a batch.
#[derive(Debug, Default)]
pub struct Noted {
    /// What was told of these messages by now.
    pub seen: Vec<(String, Seen)>,
    /// Guids of rows that are told with another one, and never alone.
    pub joined: Vec<String>,
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

/// Rows whose numbers mean something else now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Window {
    /// Rows up to this number …
    pub up_to: i64,
    /// … are told only when they are not older than this.
    pub since: UnixMs,
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
    window: Option<Window>,
    known: Known,
    links: Links,
    skipped: BTreeMap<Skip, u64>,
}

impl Inbox {
    /// An inbox that has read up to and including `rowid`; `newest` is
    /// [`crate::chatdb::ChatDb::newest_date_at`] there.
    pub fn new(rowid: i64, newest: Option<UnixMs>, patience: Patience) -> Self {
        Self::with_memory(rowid, newest, patience, Known::new(patience.known_max))
    }

    /// The same with what an earlier life has told.
    pub fn with_memory(
        rowid: i64,
        newest: Option<UnixMs>,
        patience: Patience,
        known: Known,
    ) -> Self {
        Self {
            patience,
            read_to: rowid,
            held: BTreeMap::new(),
            newest,
            window: None,
            known,
            links: Links::default(),
            skipped: BTreeMap::new(),
        }
    }

    /// Starts over at `rowid` in a database whose rowids mean something else now: nothing whose
    /// guid is known is told again, and of what is in the window only what is not too old. In which
    /// order the window is read says nothing: late in it is what is old beside what was read before.
    pub fn resync(&mut self, rowid: i64, window: Window) {
        self.read_to = rowid;
        self.held.clear();
        self.window = Some(window);
        self.links = Links::default();
    }

    /// The window of a resynchronisation that is not over, to be remembered with the position.
    pub fn window(&self) -> Option<Window> {
        self.window
    }

    /// Goes on in the window of a resynchronisation that an earlier life has begun.
    pub fn set_window(&mut self, window: Option<Window>) {
        self.window = window;
    }

    /// The newest date among the rows so far, against which lateness is measured.
    pub fn newest(&self) -> Option<UnixMs> {
        self.newest
    }

    /// Rows above this one have not been read.
    pub fn read_to(&self) -> i64 {
        self.read_to
    }

    /// Rows to read again.
    pub fn held(&self) -> Vec<i64> {
        self.held.keys().copied().collect()
    }

    /// Whether this row is being held.
    pub fn is_held(&self, rowid: i64) -> bool {
        self.held.contains_key(&rowid)
    }

    /// The position to remember: nothing at or below it is open.
    pub fn safe_rowid(&self) -> i64 {
        self.held.first_key_value().map_or(self.read_to, |(first, _)| self.read_to.min(first - 1))
    }

    /// How many rows were passed over, by why.
    pub fn skipped(&self) -> &BTreeMap<Skip, u64> {
        &self.skipped
    }

    /// What was told.
    pub fn known(&self) -> &Known {
        &self.known
    }

    /// The same, to be completed from what keeps all of it.
    pub fn known_mut(&mut self) -> &mut Known {
        &mut self.known
    }

    /// Those of these rows that may be copies of others: for them [`Batch::original`] may be asked.
    pub fn suspects<'r>(&self, rows: &'r [Row], now: UnixMs) -> Vec<&'r Row> {
        let newest = rows.iter().filter_map(|row| row.at).max().map(|at| at.min(now));
        let newest = self.newest.max(newest);
        let is_old =
            |row: &Row| newest.zip(row.at).is_some_and(|(newest, at)| newest.since(at) > LATE_MS);
        rows.iter()
            .filter(|row| !self.known.has(&row.guid) && (self.is_in_window(row) || is_old(row)))
            .collect()
    }

    /// Those of these rows that are previews of a text that nobody has in mind (any more): an earlier
    /// life may have told it.
    pub fn orphans<'r>(&self, rows: &'r [Row]) -> Vec<&'r Row> {
        let is_orphan = |row: &&Row| {
            link::is_preview(row)
                && (!self.known.has(&row.guid) || self.known.seen(&row.guid).is_untold())
                && !self.links.is_joined(row)
                && self.links.is_preview_of_told(row).is_none()
        };
        rows.iter().filter(is_orphan).collect()
    }

    /// Brings texts with links back to mind, where they were told.
    pub fn remind(&mut self, rows: &[Row]) {
        for row in rows {
            if self.known.has(&row.guid) {
                self.links.told(row);
            }
        }
    }

    fn is_in_window(&self, row: &Row) -> bool {
        self.window.is_some_and(|window| row.rowid <= window.up_to)
    }

    /// Takes rows. What is told first is what was held, then what has changed, then what is new.
    pub fn take(&mut self, batch: Batch<'_>, now: UnixMs) -> Taken {
        // Nearly every row is told, and nearly always once.
        let mut heard = Vec::with_capacity(batch.rows.len());
        let noted = self.take_each(batch, now, &mut |one| heard.push(one));
        Taken { heard, noted }
    }

    /// The same for whoever needs each only while it is told: nothing is gathered.
    pub fn take_each(
        &mut self,
        batch: Batch<'_>,
        now: UnixMs,
        hear: &mut dyn FnMut(Heard),
    ) -> Noted {
        let mut telling = Telling { hear, noted: Noted::default() };
        for row in batch.held {
            if let Some(since) = self.held.get(&row.rowid).copied() {
                self.consider(row, since, batch, now, &mut telling);
            }
        }
        // What was not among the rows is gone from the database; forget it when its time is over.
        let hold_ms = self.patience.hold_ms;
        self.held.retain(|_, since| (0..hold_ms).contains(&now.since(*since)));
        for row in batch.changed {
            if !self.held.contains_key(&row.rowid) && row.rowid <= self.read_to {
                self.reconsider(row, batch, now, &mut telling);
            }
        }
        for row in batch.rows {
            if row.rowid <= self.read_to {
                continue;
            }
            self.read_to = row.rowid;
            self.consider(row, now, batch, now, &mut telling);
        }
        telling.noted
    }

    fn skip(&mut self, why: Skip) {
        *self.skipped.entry(why).or_default() += 1;
    }

    fn consider(
        &mut self,
        row: &Row,
        since: UnixMs,
        batch: Batch<'_>,
        now: UnixMs,
        telling: &mut Telling<'_>,
    ) {
        let near = [batch.held, batch.rows];
        let in_window = self.is_in_window(row);
        let late = self.is_late(row, in_window, now);
        // A clock that was set back must not hold a row for ever.
        let waited = now.since(since);
        let hold_ms = self.patience.hold_ms;
        let is_over = |bound_ms: i64| !(0..bound_ms.min(hold_ms)).contains(&waited);
        let full = self.held.len() >= HELD_MAX && !self.held.contains_key(&row.rowid);
        if self.known.has(&row.guid) {
            self.held.remove(&row.rowid);
            self.skip(Skip::Known);
            // What has happened to it while its numbers were wrong.
            self.reconsider(row, batch, now, telling);
            return;
        }
        if self.is_outside_window(row) {
            self.held.remove(&row.rowid);
            self.skip(Skip::Old);
            return;
        }
        let of_told = || self.links.is_preview_of_told(row).map(Some);
        if let Some(message) = self.links.joined(row).map(link::Joined::untold).or_else(of_told) {
            self.held.remove(&row.rowid);
            self.skip(Skip::LinkPreview);
            self.join(row, message, now, telling);
            return;
        }
        let mut understood = understand(row, is_over(HOLD_MS) || full, late, now);
        if row.awaits_payload() && !is_over(SETTLE_MS) && !full {
            understood = Understood::Incomplete;
        }
        // In a window the text may stand behind its preview.
        if in_window && link::is_preview(row) && !is_over(HOLD_MS) && !full {
            understood = Understood::Incomplete;
        }
        if link::awaits_preview(row) && understood != Understood::Incomplete {
            let preview = link::preview_among(row, &near, batch.following, in_window);
            if preview.is_none_or(Row::awaits_payload) && !is_over(SETTLE_MS) && !full {
                understood = Understood::Incomplete;
            } else if let Some(preview) = preview {
                self.links.join(preview, row);
                attach_preview(&mut understood, preview);
            }
        }
        match understood {
            Understood::Incomplete => {
                self.held.insert(row.rowid, since);
            }
            Understood::Skip(why) => {
                self.held.remove(&row.rowid);
                self.skip(why);
                let mut seen = Seen::untold();
                self.tell_changes(row, &mut seen, now, telling);
                self.remember(row, seen, telling);
            }
            Understood::Event(event) => {
                self.held.remove(&row.rowid);
                self.links.told(row);
                let event = self.matched(row, event, late || in_window, batch);
                self.tell(row, Told::Event(event), now, telling);
            }
            Understood::Own(own) => {
                self.held.remove(&row.rowid);
                self.links.told(row);
                self.tell(row, Told::Own(own), now, telling);
            }
        }
    }

    /// This row is told with another one; when it was not, of which message it is the preview.
    fn join(&mut self, row: &Row, untold: Option<String>, now: UnixMs, telling: &mut Telling<'_>) {
        self.known.learn(&row.guid, None);
        telling.noted.joined.push(row.guid.clone());
        if let Some(message) = untold {
            let mut seen = Seen::preview_of(message);
            self.tell_changes(row, &mut seen, now, telling);
            self.remember(row, seen, telling);
        }
    }

    /// Tells a row for the first time, and what has happened to it already.
    fn tell(&mut self, row: &Row, told: Told, now: UnixMs, telling: &mut Telling<'_>) {
        // Whoever reads once remembers nothing.
        let print = (self.patience.known_max > 0).then(|| print(row));
        self.known.learn(&row.guid, print);
        (telling.hear)(Heard { rowid: row.rowid, told, print });
        // What it was told with is no change; and whoever reads once remembers nothing.
        if self.patience.known_max == 0 && row.summary.is_empty() {
            return;
        }
        let mut seen = Seen::told(row);
        self.tell_changes(row, &mut seen, now, telling);
        self.remember(row, seen, telling);
    }

    fn tell_changes(&self, row: &Row, seen: &mut Seen, now: UnixMs, telling: &mut Telling<'_>) {
        // Whoever reads once has not seen it happen: of what has no date of its own, the message's is
        // nearer the truth than the hour of reading, and the same at every reading.
        let now = if self.patience.hold_ms == 0 { row.at.unwrap_or(now) } else { now };
        for event in changes(seen, row, now) {
            (telling.hear)(Heard { rowid: row.rowid, told: Told::Event(event), print: None });
        }
    }

    fn remember(&mut self, row: &Row, seen: Seen, telling: &mut Telling<'_>) {
        // Whoever reads once remembers nothing.
        if self.patience.known_max == 0 {
            return;
        }
        if self.known.remember(&row.guid, seen.clone()) {
            telling.noted.seen.push((row.guid.clone(), seen));
        }
    }

    /// A row that was read before, and has changed.
    fn reconsider(&mut self, row: &Row, batch: Batch<'_>, now: UnixMs, telling: &mut Telling<'_>) {
        let mut seen = self.known.seen(&row.guid);
        if seen.is_untold() {
            // It was empty when it was read, and shows now of which text it is the preview.
            if let Some(message) = self.links.is_preview_of_told(row) {
                self.join(row, Some(message), now, telling);
                return;
            }
            let understood = understand(row, true, false, now);
            let told = match understood {
                Understood::Event(event) => Told::Event(self.matched(row, event, false, batch)),
                Understood::Own(own) => Told::Own(own),
                Understood::Skip(_) | Understood::Incomplete => {
                    self.tell_changes(row, &mut seen, now, telling);
                    self.remember(row, seen, telling);
                    return;
                }
            };
            self.tell(row, told, now, telling);
            return;
        }
        self.tell_changes(row, &mut seen, now, telling);
        self.remember(row, seen, telling);
    }

    /// Old beside a row before it. The sender's clock may be wrong: a date ahead of ours must not
    /// make all that follows late.
    fn is_late(&mut self, row: &Row, in_window: bool, now: UnixMs) -> bool {
        let Some(at) = row.at else { return false };
        let late = self.newest.is_some_and(|newest| newest.since(at) > LATE_MS);
        if !in_window {
            self.newest = self.newest.max(Some(at.min(now)));
        }
        late
    }

    /// The event of a row that may be a copy of one that was told.
    fn matched(&self, row: &Row, mut event: Event, suspicious: bool, batch: Batch<'_>) -> Event {
        if suspicious && let Event::Received(received) = &mut event {
            received.details.copy_of =
                self.known.by_print(print(row)).or_else(|| (batch.original)(row));
            // In the window of a resynchronisation nothing is older than what came before it.
            received.late |= received.details.copy_of.is_some();
        }
        event
    }

    fn is_outside_window(&mut self, row: &Row) -> bool {
        match self.window {
            Some(window) if row.rowid > window.up_to => {
                self.window = None;
                false
            }
            Some(window) => row.at.is_none_or(|at| at < window.since),
            None => false,
        }
    }
}

fn attach_preview(understood: &mut Understood, preview: &Row) {
    match understood {
        Understood::Event(Event::Received(received)) => {
            received.details.preview = preview.preview.as_deref().cloned();
        }
        Understood::Own(Own::Message(message)) => {
            message.details.preview = preview.preview.as_deref().cloned();
        }
        Understood::Event(_)
        | Understood::Own(_)
        | Understood::Skip(_)
        | Understood::Incomplete => {}
    }
}
