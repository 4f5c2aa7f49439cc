//! A message's story: immutable events, numbered from 1.

use std::sync::LazyLock;

use protocol::api::MessageEvent;
use protocol::{Channel, EventId, MessageId, PhoneId, Reason, TenantId, UnixMs};

use super::{Row, StoreError, Tx};
use crate::clock;
use crate::params;

/// One step to be added to a message's story.
#[derive(Clone, Copy, Debug)]
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

/// Steps that are written in one statement; more take another one.
const TOGETHER: usize = 4;

/// Adds steps and answers the last one's sequence; [`StoreError::NoRow`] where the tenant has no such message.
///
/// The message's `sequence` and `updated_at` move with them. Its status does not: that is the caller's, in the same
/// transaction, because not every step changes it.
pub fn append(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    message: &MessageId,
    steps: &[NewEvent<'_>],
) -> Result<u64, StoreError> {
    let count = u64::try_from(steps.len()).unwrap_or(u64::MAX);
    let sequence: u64 = tx.query_row(
        "UPDATE messages SET sequence = sequence + ?4, updated_at = COALESCE(?3, updated_at)
         WHERE id = ?1 AND tenant_id = ?2 RETURNING sequence",
        params![message, tenant, steps.last().map(|step| step.at), count],
        |row| row.get(0),
    )?;
    insert(tx, (tenant, message), sequence.saturating_add(1).saturating_sub(count), steps)?;
    Ok(sequence)
}

/// Writes steps under numbers from `first` on that the caller has already given out (a message's first events, in its own
/// insert).
pub(crate) fn insert(
    tx: &mut Tx<'_>,
    (tenant, message): (&TenantId, &MessageId),
    first: u64,
    steps: &[NewEvent<'_>],
) -> Result<(), StoreError> {
    static SQL: LazyLock<[String; TOGETHER]> =
        LazyLock::new(|| std::array::from_fn(|index| insert_sql(index.saturating_add(1))));
    let mut sequence = first;
    for together in steps.chunks(TOGETHER) {
        let mut values = Vec::with_capacity(COLUMNS * together.len());
        for step in together {
            let id = EventId::new(step.at.0, clock::random());
            values.extend_from_slice(params![
                id,
                message,
                tenant,
                sequence,
                step.kind,
                step.at,
                step.phone,
                step.attempt,
                step.channel,
                step.reason,
                step.detail
            ]);
            sequence = sequence.saturating_add(1);
        }
        if let Some(sql) = SQL.get(together.len().saturating_sub(1)) {
            tx.execute(sql, &values)?;
        }
    }
    Ok(())
}

const COLUMNS: usize = 11;

/// A statement that writes so many steps.
fn insert_sql(steps: usize) -> String {
    let row = |step: usize| {
        let places = (1..=COLUMNS).map(|column| format!("?{}", step * COLUMNS + column));
        format!("({})", places.collect::<Vec<_>>().join(", "))
    };
    let rows: Vec<String> = (0..steps).map(row).collect();
    format!(
        "INSERT OR FAIL INTO message_events
             (id, message_id, tenant_id, sequence, type, at, phone_id, attempt, channel, reason, detail)
         VALUES {}",
        rows.join(", ")
    )
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
