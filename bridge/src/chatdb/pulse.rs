//! What the newest rows say about the health of this phone: when something last came in, went out
//! or was acknowledged, how many sends fail, and whether the clock can be right.

use std::collections::HashSet;

use protocol::{Channel, UnixMs};
use rusqlite::Connection;

use super::{ChatDb, NotReady, apple_ms};

/// Rows that a running bridge looks at once a minute: an hour of a busy phone is a few hundred.
pub const PULSE_ROWS: u32 = 2_000;
/// Rows that `doctor` looks at, once: weeks of a busy phone, some tens of milliseconds.
pub const PULSE_ROWS_DOCTOR: u32 = 50_000;
/// What counts as now.
const HOUR_MS: i64 = 60 * 60 * 1000;
/// A date so far ahead of this Mac's clock is no delay and no rounding: one of the two clocks is
/// wrong. Phones and Macs are kept within a second of each other by the network.
const AHEAD_MS: i64 = 10 * 60 * 1000;
/// 2100-01-01. Dates beyond it stand in real databases (the year 4001 for "never") and say nothing.
pub(crate) const LATEST_MS: i64 = 4_102_444_800_000;
/// chat.db error 22: not registered with the service. Many of them in a row are how a limit or a
/// block of the account shows.
const NOT_REGISTERED: i64 = 22;

/// What the newest rows say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pulse {
    /// The newest date of any row that is not ahead of the clock.
    pub newest: Option<UnixMs>,
    /// The newest date of a row that came in.
    pub newest_inbound: Option<UnixMs>,
    /// The newest date of an own row.
    pub newest_own: Option<UnixMs>,
    /// The newest SMS, either way.
    pub newest_sms: Option<UnixMs>,
    /// The newest RCS message, either way.
    pub newest_rcs: Option<UnixMs>,
    /// The newest receipt, delivered or read, of an own row.
    pub newest_receipt: Option<UnixMs>,
    /// Own rows of the last hour.
    pub own_last_hour: u64,
    /// Those of them that failed with error 22.
    pub not_registered_last_hour: u64,
    /// Own rows dated well ahead of the clock.
    pub own_ahead: u64,
    /// How many people have written something dated well ahead of the clock.
    pub senders_ahead: u64,
    /// Rows that were looked at.
    pub rows: u64,
}

/// What is looked at of a row.
#[derive(Debug, Clone, Copy)]
struct Beat {
    rowid: i64,
    at: Option<UnixMs>,
    own: bool,
    service: Option<Channel>,
    error: i64,
    sender: i64,
    scheduled: bool,
    receipt: Option<UnixMs>,
}

impl ChatDb {
    /// Looks at the newest rows, at most so many, by their numbers: no index is needed, so the time
    /// is bounded on every macOS.
    pub fn pulse(&self, rows: u32, now: UnixMs) -> Result<Pulse, NotReady> {
        let mut all = Vec::new();
        let (mut left, mut below) = (rows, i64::MAX);
        while left > 0 {
            // No read is longer than that of a running bridge.
            let some = self.run(|connection| beats(connection, below, left.min(PULSE_ROWS)))?;
            let Some(last) = some.last() else { break };
            below = last.rowid;
            left = left.saturating_sub(PULSE_ROWS);
            all.extend(some);
        }
        Ok(count(&all, now))
    }
}

/// The newest rows below a number, at most so many, newest first.
fn beats(connection: &Connection, below: i64, rows: u32) -> rusqlite::Result<Vec<Beat>> {
    let has: HashSet<String> = connection
        .prepare_cached("SELECT name FROM pragma_table_info('message')")?
        .query_map([], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    let column = |name: &str| if has.contains(name) { name.to_owned() } else { "0".to_owned() };
    let sql = format!(
        "SELECT date, is_from_me, service, {}, handle_id, {}, {}, {}, ROWID FROM message \
         WHERE ROWID < ?1 ORDER BY ROWID DESC LIMIT ?2 + 0",
        column("error"),
        column("schedule_type"),
        column("date_delivered"),
        column("date_read"),
    );
    // What has another type than Messages gives it reads as absent.
    let integer = |row: &rusqlite::Row<'_>, at: usize| match row.get_ref(at) {
        Ok(rusqlite::types::ValueRef::Integer(number)) => number,
        Ok(_) | Err(_) => 0,
    };
    connection
        .prepare_cached(&sql)?
        .query_map([below, i64::from(rows)], |row| {
            let service = match row.get_ref(2)? {
                rusqlite::types::ValueRef::Text(text) => {
                    std::str::from_utf8(text).ok().and_then(Channel::of_service)
                }
                rusqlite::types::ValueRef::Null
                | rusqlite::types::ValueRef::Integer(_)
                | rusqlite::types::ValueRef::Real(_)
                | rusqlite::types::ValueRef::Blob(_) => None,
            };
            Ok(Beat {
                rowid: row.get(8)?,
                at: apple_ms(integer(row, 0)),
                own: integer(row, 1) != 0,
                service,
                error: integer(row, 3),
                sender: integer(row, 4),
                // Send Later carries the date on which it is to go: it is rightly ahead.
                scheduled: integer(row, 5) != 0,
                receipt: apple_ms(integer(row, 6)).max(apple_ms(integer(row, 7))),
            })
        })?
        .collect()
}

fn count(beats: &[Beat], now: UnixMs) -> Pulse {
    let mut pulse = Pulse::default();
    let mut senders = HashSet::new();
    let bound = now.plus_ms(AHEAD_MS);
    for beat in beats {
        pulse.rows = pulse.rows.saturating_add(1);
        let Some(at) = beat.at.filter(|at| at.0 < LATEST_MS && !beat.scheduled) else { continue };
        if at > bound {
            if beat.own {
                pulse.own_ahead = pulse.own_ahead.saturating_add(1);
            } else if senders.insert(beat.sender) {
                pulse.senders_ahead = pulse.senders_ahead.saturating_add(1);
            }
            continue;
        }
        let at = Some(at);
        pulse.newest = pulse.newest.max(at);
        match beat.service {
            Some(Channel::Sms) => pulse.newest_sms = pulse.newest_sms.max(at),
            Some(Channel::Rcs) => pulse.newest_rcs = pulse.newest_rcs.max(at),
            Some(Channel::Imessage) | None => {}
        }
        if !beat.own {
            pulse.newest_inbound = pulse.newest_inbound.max(at);
            continue;
        }
        pulse.newest_own = pulse.newest_own.max(at);
        let receipt = beat.receipt.filter(|receipt| *receipt <= bound);
        pulse.newest_receipt = pulse.newest_receipt.max(receipt);
        if at.is_some_and(|at| now.since(at) < HOUR_MS) {
            pulse.own_last_hour = pulse.own_last_hour.saturating_add(1);
            if beat.error == NOT_REGISTERED {
                pulse.not_registered_last_hour = pulse.not_registered_last_hour.saturating_add(1);
            }
        }
    }
    pulse
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMs = UnixMs(1_795_000_000_000);

    fn beat(age_ms: i64, own: bool) -> Beat {
        Beat {
            rowid: 1,
            at: Some(NOW.plus_ms(-age_ms)),
            own,
            service: Some(Channel::Imessage),
            error: 0,
            sender: 1,
            scheduled: false,
            receipt: None,
        }
    }

    #[test]
    fn newest_dates_are_kept_apart() {
        let beats = [
            beat(5_000, true),
            beat(9_000, false),
            Beat { service: Some(Channel::Sms), ..beat(70_000, false) },
            Beat { service: Some(Channel::Rcs), receipt: Some(NOW), ..beat(HOUR_MS, true) },
        ];
        let pulse = count(&beats, NOW);
        assert_eq!(pulse.newest, Some(NOW.plus_ms(-5_000)));
        assert_eq!(pulse.newest_inbound, Some(NOW.plus_ms(-9_000)));
        assert_eq!(pulse.newest_sms, Some(NOW.plus_ms(-70_000)));
        assert_eq!(pulse.newest_rcs, Some(NOW.plus_ms(-HOUR_MS)));
        assert_eq!(pulse.newest_receipt, Some(NOW));
        assert_eq!((pulse.own_last_hour, pulse.rows), (1, 4));
    }

    #[test]
    fn only_own_failures_of_the_last_hour_are_a_burst() {
        let failed = |age_ms, own| Beat { error: NOT_REGISTERED, ..beat(age_ms, own) };
        let beats = [
            failed(0, true),
            failed(HOUR_MS - 1, true),
            failed(HOUR_MS, true),
            failed(0, false),
            Beat { error: 3, ..beat(0, true) },
        ];
        let pulse = count(&beats, NOW);
        assert_eq!((pulse.own_last_hour, pulse.not_registered_last_hour), (3, 2));
    }

    #[test]
    fn what_is_ahead_of_the_clock_is_counted_and_never_the_newest() {
        let ahead = |own, sender| Beat { sender, ..beat(-AHEAD_MS - 1, own) };
        let beats = [
            ahead(true, 0),
            ahead(false, 7),
            ahead(false, 7),
            ahead(false, 8),
            // Exactly at the bound is not ahead; Send Later rightly is; the year 4001 is nothing.
            beat(-AHEAD_MS, false),
            Beat { scheduled: true, ..ahead(true, 0) },
            Beat { at: Some(UnixMs(64_092_211_200_000)), ..beat(0, true) },
            Beat { at: None, ..beat(0, true) },
        ];
        let pulse = count(&beats, NOW);
        assert_eq!((pulse.own_ahead, pulse.senders_ahead), (1, 2));
        assert_eq!(pulse.newest, Some(NOW.plus_ms(AHEAD_MS)));
        assert_eq!(pulse.newest_own, None);
    }

    #[test]
    fn a_database_without_these_columns_reads_as_quiet() {
        let database = Connection::open_in_memory().unwrap();
        database
            .execute_batch(
                "CREATE TABLE message (guid, text, date, is_from_me, handle_id, service);
                 INSERT INTO message VALUES ('A', 'x', 'no number', 1, 1, x'00'),
                                            ('B', 'x', 0, 0, 1, NULL);",
            )
            .unwrap();
        let pulse = count(&beats(&database, i64::MAX, 10).unwrap(), NOW);
        assert_eq!(pulse, Pulse { rows: 2, ..Pulse::default() });
    }
}
