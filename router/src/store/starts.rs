//! When this router was started, and how the one before it ended.

use protocol::UnixMs;

use super::{StoreError, Tx};
use crate::params;
use crate::starts::{Life, Start};

/// Writes down a start.
pub fn begin(tx: &mut Tx<'_>, now: UnixMs) -> Result<Start, StoreError> {
    let last = tx.query_opt(
        "SELECT started_at, deaths, stopped, quiet_until FROM starts WHERE id = 1",
        params![],
        |row| {
            Ok(Life {
                started_at: row.get(0)?,
                deaths: row.get(1)?,
                stopped: row.get(2)?,
                quiet_until: row.get(3)?,
            })
        },
    )?;
    let start = Start::after(last, now);
    tx.execute(
        "INSERT INTO starts (id, started_at, deaths, stopped, quiet_until) VALUES (1, ?1, ?2, 0, ?3)
         ON CONFLICT (id) DO UPDATE SET started_at = excluded.started_at, deaths = excluded.deaths, stopped = 0,
             quiet_until = excluded.quiet_until",
        params![start.at, start.deaths, start.quiet_until],
    )?;
    Ok(start)
}

/// Writes down an orderly end, with nothing in hand.
pub fn end(tx: &mut Tx<'_>) -> Result<(), StoreError> {
    tx.execute("UPDATE starts SET stopped = 1 WHERE id = 1", params![])?;
    Ok(())
}
