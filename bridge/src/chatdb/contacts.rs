//! What was exchanged with one address, for what that says of its channels.

use protocol::{Channel, UnixMs};
use rusqlite::{Connection, params};

use super::cells::Cells;
use super::error::NotReady;
use super::rows::apple_ms;
use super::{ChatDb, schema};

/// The newest messages of each handle that are looked at. What is older says little about today.
const MESSAGES_A_HANDLE: i64 = 50;
/// One address has up to three handles (iMessage, SMS, RCS); more would not be one address.
const HANDLES_MAX: i64 = 8;
/// Where messages are not indexed by handle, only the newest are looked at.
const UNINDEXED_ROWS: i64 = 5_000;

/// One message to or from an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contact {
    /// Apple's id of the message.
    pub guid: String,
    /// Over which channel.
    pub channel: Channel,
    /// Whether the phone's owner wrote it.
    pub own: bool,
    /// `error`; 0 where all is well.
    pub error: i64,
    /// Whether it left.
    pub is_sent: bool,
    /// When.
    pub at: UnixMs,
}

impl ChatDb {
    /// The newest messages to and from an address, newest first for each of its handles.
    pub fn contacts(&self, address: &str) -> Result<Vec<Contact>, NotReady> {
        let last = self.max_rowid()?;
        self.run(|connection| contacts(connection, address, last))
    }
}

fn contacts(connection: &Connection, address: &str, last: i64) -> rusqlite::Result<Vec<Contact>> {
    // `+` keeps the planner on the index by handle and date where there is one: by the number it would walk
    // through all that was ever written.
    let (from, newer) = if schema::has_index(connection, "message", "handle_id")? {
        (0, "+ROWID > ?2")
    } else {
        (last.saturating_sub(UNINDEXED_ROWS), "ROWID > ?2")
    };
    let sql = format!(
        "SELECT guid, service, is_from_me, error, is_sent, date FROM message
         WHERE handle_id = ?1 AND {newer} ORDER BY date DESC LIMIT ?3 + 0"
    );
    let handles: Vec<i64> = connection
        .prepare_cached("SELECT ROWID FROM handle WHERE id = ?1 LIMIT ?2 + 0")?
        .query_map(params![address, HANDLES_MAX], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    let mut found = Vec::new();
    for handle in handles {
        let mut query = connection.prepare_cached(&sql)?;
        let mut rows = query.query(params![handle, from, MESSAGES_A_HANDLE])?;
        while let Some(row) = rows.next()? {
            let cells = Cells::of(row);
            let channel = cells.text(1).as_deref().and_then(Channel::of_service);
            let (Some(guid), Some(channel), Some(at)) =
                (cells.text(0), channel, apple_ms(cells.integer(5)))
            else {
                continue;
            };
            found.push(Contact {
                guid,
                channel,
                own: cells.flag(2),
                error: cells.integer(3),
                is_sent: cells.flag(4),
                at,
            });
        }
    }
    Ok(found)
}
