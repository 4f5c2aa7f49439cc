//! The sliding re-read: rows that were read and may still change.
//!
//! Of every young row a digest is kept of what may change about it. After a change of the database
//! the newest rows are compared at once and the others in rotation, a bounded number a turn; when all
//! have been compared since the last change, nothing is done until the next one.

use std::collections::BTreeMap;

use protocol::UnixMs;

use crate::chatdb::{ChatDb, NotReady};

/// Rows younger than this are compared. Messages lets its users edit for 15 minutes; files and
/// previews may take a day.
pub(super) const YOUNG_MS: i64 = 48 * 3_600_000;
/// Most rows compared, the newest ones: 16 bytes each. A phone that hears more in two days does not
/// get the older ones compared.
const YOUNG_MAX: i64 = 20_000;
/// Rows compared on every change.
const HOT: i64 = 200;
/// Rows compared in rotation in one turn: about two milliseconds.
const COLD_A_TURN: i64 = 1_000;
/// They are compared in steps of so many, and a turn ends early with a step that shows changes: those
/// rows are read whole, and when nothing was compared before they are all of them.
const COLD_A_STEP: i64 = 250;
/// Where the young rows begin is looked up this often.
const EDGE_EVERY_MS: i64 = 60_000;

/// What is to be compared now: rows from and to, both counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Due {
    /// The newest rows.
    hot: Option<(i64, i64)>,
    read_to: i64,
}

/// What a comparison has shown.
#[derive(Debug, Default)]
pub(super) struct Looked {
    /// Rows that have changed, or were never compared.
    pub(super) rowids: Vec<i64>,
    /// There is more to compare at once.
    pub(super) more: bool,
}

/// Digests, and where the rotation stands.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    digests: BTreeMap<i64, u64>,
    /// `data_version` and position of the last look.
    seen: Option<(i64, i64)>,
    /// The first young row.
    edge: Option<i64>,
    edge_at_ms: Option<i64>,
    /// The next rows of the rotation; none when all have been compared since the last change.
    next: Option<i64>,
    /// There was a change after this rotation had begun: another one follows.
    again: bool,
    /// The first rotation goes back to here.
    reach: Option<UnixMs>,
    /// A rotation has come to its end.
    round: bool,
}

impl Sweep {
    /// Nobody has compared anything since then: the first rotation goes back so far.
    pub(super) fn reach(&mut self, since: UnixMs) {
        self.reach = Some(since);
    }

    /// What was noticed was not read: all is compared anew.
    pub(super) fn forget(&mut self) {
        *self = Self { reach: self.reach, ..Self::default() };
    }

    /// What was noticed has been read.
    pub(super) fn settle(&mut self) {
        if std::mem::take(&mut self.round) && self.reach.take().is_some() {
            self.edge_at_ms = None;
        }
    }

    /// What is to be compared, if anything is.
    pub(super) fn due(&mut self, version: i64, read_to: i64) -> Option<Due> {
        let changed = self.seen != Some((version, read_to));
        self.seen = Some((version, read_to));
        if changed {
            // Everything is compared once after the newest change. A rotation goes on to its end before:
            // on a busy phone it would never get far otherwise.
            self.again = self.next.is_some();
            self.next = self.next.or(Some(i64::MIN));
            let hot = (read_to.saturating_sub(HOT).saturating_add(1), read_to);
            return Some(Due { hot: Some(hot), read_to });
        }
        self.next.map(|_| Due { hot: None, read_to })
    }

    /// Compares.
    pub(super) fn look(
        &mut self,
        database: &ChatDb,
        due: Due,
        young_since: UnixMs,
        now_ms: i64,
    ) -> Result<Looked, NotReady> {
        let is_old = |at: i64| now_ms.saturating_sub(at) >= EDGE_EVERY_MS || now_ms < at;
        if self.edge_at_ms.is_none_or(is_old) {
            let since = self.reach.map_or(young_since, |reach| reach.min(young_since));
            let old = due.read_to.saturating_sub(YOUNG_MAX);
            let edge = database.rowid_before_above(since, old)?.saturating_add(1);
            self.edge = Some(edge);
            self.edge_at_ms = Some(now_ms);
            self.digests = self.digests.split_off(&edge);
        }
        let edge = self.edge.unwrap_or(i64::MAX);
        let mut looked = Looked::default();
        let cold_end = due.read_to.saturating_sub(HOT);
        if let Some((from, to)) = due.hot {
            self.compare(database, from.max(edge), to, &mut looked)?;
        }
        if let Some(next) = self.next {
            let from = next.max(edge);
            let end = from.saturating_add(COLD_A_TURN - 1).min(cold_end);
            let mut to = from.saturating_sub(1);
            let before = looked.rowids.len();
            while to < end && looked.rowids.len() == before {
                let step = to.saturating_add(1);
                to = to.saturating_add(COLD_A_STEP).min(end);
                self.compare(database, step, to, &mut looked)?;
            }
            self.round = to >= cold_end;
            self.next = if self.round {
                std::mem::take(&mut self.again).then_some(i64::MIN)
            } else {
                Some(to.saturating_add(1))
            };
            looked.more = self.next.is_some();
        }
        Ok(looked)
    }

    fn compare(
        &mut self,
        database: &ChatDb,
        from: i64,
        to: i64,
        looked: &mut Looked,
    ) -> Result<(), NotReady> {
        if from > to {
            return Ok(());
        }
        for (rowid, digest) in database.digests(from, to)? {
            if self.digests.insert(rowid, digest) != Some(digest) {
                looked.rowids.push(rowid);
            }
        }
        Ok(())
    }
}
