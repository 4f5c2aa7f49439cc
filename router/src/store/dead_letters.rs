//! Dead letters: messages whose attempts are used up, or that ended the router, kept for somebody to look at.
//!
//! One that is tried again becomes a new message with an id of its own. The old one has ended, its tenant was told so, and a
//! status never goes backwards; under the old id, a late answer about an attempt of its first life could not be told from one
//! about its second.

use std::collections::BTreeMap;

use protocol::api::{DeadLetter, Message};
use protocol::{E164, MessageId, Reason, Status, TenantId, UnixMs};

use super::change::{self, Change};
use super::credit::Reservation;
use super::dispatch as rows;
use super::messages::{self, NewMessage, Window};
use super::{Json, StoreError, Tx, credit};
use crate::billing::Refusal;
use crate::params;

/// Keeps a message that has failed, and tells its tenant.
pub fn keep(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    id: &MessageId,
    reason: Reason,
    now: UnixMs,
) -> Result<(), StoreError> {
    let new = tx.execute(
        "INSERT INTO dead_letters (message_id, tenant_id, at, reason) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (message_id) DO NOTHING",
        params![id, tenant, now, reason],
    )?;
    if new > 0 {
        let step = Change { reason: Some(reason), tell: true, ..Change::step("dead_letter", now) };
        change::make(tx, tenant, id, &step)?;
    }
    Ok(())
}

/// Dead letters, newest message first: a tenant's, of which only those of the sandbox where `test`, or everybody's. One row
/// more than the window's limit where there is more.
pub fn list(
    tx: &mut Tx<'_>,
    tenant: Option<&TenantId>,
    test: bool,
    window: &Window,
) -> Result<Vec<DeadLetter>, StoreError> {
    let before = window.before.as_deref().unwrap_or("~");
    let limit = window.limit.saturating_add(1);
    let found: Vec<(MessageId, TenantId, UnixMs, Reason)> = match tenant {
        Some(tenant) => tx.query(OF_TENANT, params![tenant, before, limit, test], read)?,
        None => tx.query(OF_ALL, params![before, limit], read)?,
    };
    let mut letters = Vec::with_capacity(found.len());
    for (id, tenant, at, reason) in found {
        if let Some(message) = messages::get(tx, &tenant, &id)? {
            letters.push(DeadLetter { tenant, at, reason, message });
        }
    }
    Ok(letters)
}

const OF_TENANT: &str = "SELECT message_id, tenant_id, at, reason FROM dead_letters
     WHERE tenant_id = ?1 AND message_id < ?2
         AND (?4 = 0 OR (SELECT m.test FROM messages m WHERE m.id = message_id AND m.tenant_id = ?1) = 1)
     ORDER BY message_id DESC LIMIT ?3";
const OF_ALL: &str = "SELECT message_id, tenant_id, at, reason FROM dead_letters
     WHERE message_id < ?1 ORDER BY message_id DESC LIMIT ?2";

fn read(row: &super::Row<'_>) -> Result<(MessageId, TenantId, UnixMs, Reason), StoreError> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
}

/// Whose dead letter it is, for the operator.
pub fn owner(tx: &mut Tx<'_>, id: &MessageId) -> Result<Option<TenantId>, StoreError> {
    tx.query_opt("SELECT tenant_id FROM dead_letters WHERE message_id = ?1", params![id], |row| {
        row.get(0)
    })
}

/// One dead letter of a tenant.
pub fn get(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    id: &MessageId,
) -> Result<Option<DeadLetter>, StoreError> {
    let found = tx.query_opt(
        "SELECT message_id, tenant_id, at, reason FROM dead_letters WHERE message_id = ?1 AND tenant_id = ?2",
        params![id, tenant],
        read,
    )?;
    let Some((id, tenant, at, reason)) = found else { return Ok(None) };
    let message = messages::get(tx, &tenant, &id)?;
    Ok(message.map(|message| DeadLetter { tenant, at, reason, message }))
}

/// What came of trying again.
#[derive(Debug, Clone, PartialEq)]
pub enum Retried {
    /// As this message.
    As(Box<Message>),
    /// It may have been sent, whole or in part.
    MayHaveBeenSent,
    /// Whoever pays for the tenant cannot pay for the new message.
    Refused(Refusal),
}

/// Tries a dead letter again, as a new message with as long a life as it had, which is paid for once. Only what provably
/// nothing was sent of: not one whose status has changed since, nor one of which a part was sent. `None`: the tenant has no
/// such dead letter.
pub fn retry(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    id: &MessageId,
    (new_id, now): (MessageId, UnixMs),
) -> Result<Option<Retried>, StoreError> {
    type Asked = (Option<E164>, Option<Json<BTreeMap<String, String>>>, bool);
    let Some(letter) = get(tx, tenant, id)? else { return Ok(None) };
    let old = letter.message;
    let open = !rows::open_attempts(tx, tenant, id)?.is_empty();
    if old.status != Status::Failed || old.reason == Some(Reason::PartlySent) || open {
        return Ok(Some(Retried::MayHaveBeenSent));
    }
    let (from, metadata, test): Asked = tx.query_row(
        "SELECT asked_from, metadata, test FROM messages WHERE id = ?1 AND tenant_id = ?2",
        params![id, tenant],
        |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
    )?;
    let began = old.send_at.unwrap_or(old.created_at);
    let life_ms = old.expires_at.map_or(0, |end| end.since(began));
    let new = NewMessage {
        id: new_id,
        test,
        recipient: old.to,
        from,
        channel: old.channel,
        fallback: old.fallback,
        class: old.class,
        text: old.text,
        template: old.template,
        media: old.media,
        batch: None,
        metadata: metadata.map(|json| json.0),
        send_at: None,
        expires_at: now.plus_ms(life_ms),
        now,
    };
    // What a phone never began was given back when it failed; what one did begin is paid for, and pays for another try.
    let message = if credit::is_charged(tx, tenant, id)? {
        let message = messages::accept(tx, tenant, &new, &Reservation::FREE)?;
        credit::carry_over(tx, tenant, (id, &message.id))?;
        message
    } else {
        match messages::reserve(tx, tenant, &new)? {
            Ok(reservation) => messages::accept(tx, tenant, &new, &reservation)?,
            Err(refusal) => return Ok(Some(Retried::Refused(refusal))),
        }
    };
    forget(tx, tenant, id)?;
    let detail = format!("as {}", message.id);
    let step = Change { detail: Some(&detail), ..Change::step("retried", now) };
    change::make(tx, tenant, id, &step)?;
    Ok(Some(Retried::As(Box::new(message))))
}

/// Discards a dead letter; the message and its story stay. False where the tenant has none.
pub fn discard(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    id: &MessageId,
    now: UnixMs,
) -> Result<bool, StoreError> {
    if !forget(tx, tenant, id)? {
        return Ok(false);
    }
    change::make(tx, tenant, id, &Change::step("discarded", now))?;
    Ok(true)
}

fn forget(tx: &mut Tx<'_>, tenant: &TenantId, id: &MessageId) -> Result<bool, StoreError> {
    let gone = tx.execute(
        "DELETE FROM dead_letters WHERE message_id = ?1 AND tenant_id = ?2",
        params![id, tenant],
    )?;
    Ok(gone > 0)
}
