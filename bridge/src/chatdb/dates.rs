//! Where in the table the rows of a time begin.
//!
//! Rows are numbered as they come, and dated as they were sent: iCloud puts old messages in behind newer
//! ones. So the dates do not grow with the numbers, and nothing can be found by halving. Where dates are
//! indexed, the rows at or after an instant are looked through in the index; elsewhere the table is, from
//! the front. Either is done in short reads, so that no transaction grows with the database.

use std::ops::RangeInclusive;

use protocol::UnixMs;
use rusqlite::types::Value;

use super::cells::Cells;
use super::pulse::LATEST_MS;
use super::rows::apple_dates;
use super::{ChatDb, NotReady};

/// Entries of the index looked at in one read: about two milliseconds.
const ENTRIES_A_READ: u16 = 5_000;
/// Rows looked at in one read where there is no index: a date stands behind a row's text and blob, so
/// that each costs a page of the disk or more.
const ROWS_A_READ: u16 = 1_000;

impl ChatDb {
    /// The row before the first one that is dated at or after an instant; rows after it are read from
    /// there. The newest row when there is none.
    pub fn rowid_before(&self, at: UnixMs) -> Result<i64, NotReady> {
        self.rowid_before_above(at, 0)
    }

    /// The same for the rows above a number alone; never below that number.
    pub fn rowid_before_above(&self, at: UnixMs, above: i64) -> Result<i64, NotReady> {
        // The smallest number at or after the instant, not the largest before it: what iCloud inserts
        // late stands behind newer ones.
        let first = if self.schema.dated_after.is_empty() {
            self.first_in_table(at, above)?
        } else {
            self.first_in_index(at, above)?
        };
        match first {
            Some(first) => Ok(first.saturating_sub(1).max(above)),
            None => Ok(self.max_rowid()?.max(above)),
        }
    }

    fn first_in_index(&self, at: UnixMs, above: i64) -> Result<Option<i64>, NotReady> {
        let mut first: Option<i64> = None;
        for range in ranges(at) {
            let mut key = (Value::Integer(*range.start()), i64::MIN);
            loop {
                let entries: Vec<(i64, Value)> = self.run(|connection| {
                    connection
                        .prepare_cached(&self.schema.dated_after)?
                        .query_map((&key.0, key.1, range.end(), ENTRIES_A_READ), |row| {
                            Ok((row.get(0)?, row.get(1)?))
                        })?
                        .collect()
                })?;
                let rowids = entries.iter().map(|(rowid, _)| *rowid).filter(|rowid| *rowid > above);
                first = first.into_iter().chain(rowids).min();
                match entries.into_iter().nth(usize::from(ENTRIES_A_READ) - 1) {
                    Some((rowid, date)) => key = (date, rowid),
                    None => break,
                }
            }
        }
        Ok(first)
    }

    fn first_in_table(&self, at: UnixMs, above: i64) -> Result<Option<i64>, NotReady> {
        let ranges = ranges(at);
        let mut from = above;
        loop {
            let rows: Vec<(i64, i64)> = self.run(|connection| {
                connection
                    .prepare_cached(
                        "SELECT ROWID, date FROM message WHERE ROWID > ?1 ORDER BY ROWID LIMIT ?2 + 0",
                    )?
                    .query_map((from, ROWS_A_READ), |row| {
                        let cells = Cells::of(row);
                        Ok((cells.integer(0), cells.integer(1)))
                    })?
                    .collect()
            })?;
            let is_in = |date: &i64| ranges.iter().any(|range| range.contains(date));
            if let Some((rowid, _)) = rows.iter().find(|(_, date)| is_in(date)) {
                return Ok(Some(*rowid));
            }
            match rows.last() {
                Some((last, _)) => from = *last,
                None => return Ok(None),
            }
        }
    }
}

/// Dates at or after an instant, in nanoseconds and in seconds, without those that mean "never".
fn ranges(at: UnixMs) -> [RangeInclusive<i64>; 2] {
    let (nanoseconds, seconds) = apple_dates(at);
    let (nanoseconds_max, seconds_max) = apple_dates(UnixMs(LATEST_MS));
    [nanoseconds..=nanoseconds_max, seconds..=seconds_max]
}
