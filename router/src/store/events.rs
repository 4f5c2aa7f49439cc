//! A message's story: immutable events, numbered from 1.

use protocol::api::MessageEvent;
use protocol::{Channel, EventId, MessageId, PhoneId, Reason, TenantId, UnixMs};

use super::{Row, StoreError, Tx};
use crate::clock;
use crate::params;

/// One step to be added to a message's story.
#[derive(Clone, Debug)]
pub struct NewEvent<'a> {
    /// A status, or `accepted`, `started`, `fallback`, `held`, `retry`, `refused`.
    pub kind: &'a str,
    /// When it happened, by the clock of whoever saw it.
    pub at: UnixMs,
    /// On which phone.
    pub phone: Option<&'a PhoneId>,
    /// In which attempt.
    pub attempt: Option<u32>,
    /// Over which channel.
    pub channel: Option<Channel>,
    /// Why.
    pub reason: Option<Reason>,
    /// For people; never the text.
    pub detail: Option<&'a str>,
}

impl<'a> NewEvent<'a> {
    /// A step with nothing to say but its kind.
    pub fn new(kind: &'a str, at: UnixMs) -> Self {
        Self { kind, at, phone: None, attempt: None, channel: None, reason: None, detail: None }
    }
}

/// Adds a step and answers its sequence; [`StoreError::NoRow`] where the tenant has no such message.
///
/// The message's `sequence` and `updated_at` move with it. Its status does not: that is the caller's, in the same
/// transaction, because not every step changes it.
pub fn append(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    message: &MessageId,
    event: &NewEvent<'_>,
) -> Result<u64, StoreError> {
    let sequence: u64 = tx.query_row(
        "UPDATE messages SET sequence = sequence + 1, updated_at = ?3
         WHERE id = ?1 AND tenant_id = ?2 RETURNING sequence",
        params![message, tenant, event.at],
        |row| row.get(0),
    )?;
    insert(tx, tenant, message, sequence, event)?;
    Ok(sequence)
}

/// Writes the step under a number that the caller has already given out (a message's first events, in its own insert).
pub(crate) fn insert(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    message: &MessageId,
    sequence: u64,
    event: &NewEvent<'_>,
) -> Result<EventId, StoreError> {
    let id = EventId::new(event.at.0, clock::random());
    tx.execute(
        "INSERT INTO message_events
            (id, message_id, tenant_id, sequence, type, at, phone_id, attempt, channel, reason, detail)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
        params![
            id,
            message,
            tenant,
            sequence,
            event.kind,
            event.at,
            event.phone,
            event.attempt,
            event.channel,
            event.reason,
            event.detail
        ],
    )?;
    Ok(id)
}

/// A message's story after `after` (0 for all), oldest first, at most `limit` steps.
pub fn list(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    message: &MessageId,
    after: u64,
    limit: u32,
) -> Result<Vec<MessageEvent>, StoreError> {
    tx.query(
        "SELECT id, message_id, sequence, type, at, phone_id, attempt, channel, reason, detail
         FROM message_events WHERE message_id = ?1 AND tenant_id = ?2 AND sequence > ?3
         ORDER BY sequence LIMIT ?4",
        params![message, tenant, after, limit],
        read,
    )
}

fn read(row: &Row<'_>) -> Result<MessageEvent, StoreError> {
    Ok(MessageEvent {
        id: row.get(0)?,
        message: row.get(1)?,
        sequence: row.get(2)?,
        kind: row.get(3)?,
        at: row.get(4)?,
        phone: row.get(5)?,
        attempt: row.get(6)?,
        channel: row.get(7)?,
        reason: row.get(8)?,
        detail: row.get(9)?,
    })
}
