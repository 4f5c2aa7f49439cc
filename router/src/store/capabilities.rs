//! What is known of the channels of recipients: learnt from what became of a tenant's messages, from what came in, and
//! from what a phone answers when it is asked.

use protocol::api::{Capabilities, ChannelKnown};
use protocol::pipe::Capability;
use protocol::{Channel, MessageId, PhoneId, Recipient, TenantId, UnixMs};

use super::{StoreError, Tx};
use crate::params;
use crate::route::Abilities;

/// The same, seen again sooner than this, is not written again: it costs a write and tells nothing.
const SAME_AGAIN_MS: i64 = 3_600_000;

/// A phone that was asked longer ago than this answers nobody any more.
const ANSWERED_WITHIN_MS: i64 = 3_600_000;

/// Channels of a recipient at most.
const CHANNELS: usize = 3;

const LEARN: &str = "ON CONFLICT (tenant_id, test, recipient, channel) DO UPDATE SET able = excluded.able, at = excluded.at
     WHERE excluded.at > capabilities.at
         AND (excluded.able <> capabilities.able OR excluded.at - capabilities.at > ?7)";

/// Takes in that a channel reaches a recipient, or does not. What was seen later stays.
pub fn learn(
    tx: &mut Tx<'_>,
    (tenant, test): (&TenantId, bool),
    recipient: &Recipient,
    (channel, able): (Channel, bool),
    at: UnixMs,
) -> Result<(), StoreError> {
    if matches!(recipient, Recipient::Group(_) | Recipient::Service(_)) {
        return Ok(());
    }
    tx.execute(
        &format!(
            "INSERT INTO capabilities (tenant_id, test, recipient, channel, able, at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6) {LEARN}"
        ),
        params![tenant, test, recipient, channel, able, at, SAME_AGAIN_MS],
    )?;
    Ok(())
}

/// The same, from a message and what became of it: of its other side, for its tenant.
pub fn learn_from(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    message: &MessageId,
    (channel, able): (Channel, bool),
    at: UnixMs,
) -> Result<(), StoreError> {
    // As above: what a group's service is says nothing of a member, and to services nothing is sent.
    tx.execute(
        &format!(
            "INSERT INTO capabilities (tenant_id, test, recipient, channel, able, at)
             SELECT tenant_id, test, recipient, ?3, ?4, ?5 FROM messages
             WHERE id = ?1 AND tenant_id = ?2 AND recipient NOT LIKE ?6 AND recipient NOT LIKE ?8 {LEARN}"
        ),
        params![message, tenant, channel, able, at, "group:%", SAME_AGAIN_MS, "service:%"],
    )?;
    Ok(())
}

/// What is known, and was seen after `since`.
pub fn fresh(
    tx: &mut Tx<'_>,
    (tenant, test): (&TenantId, bool),
    recipient: &Recipient,
    since: UnixMs,
) -> Result<Abilities, StoreError> {
    let mut known = Abilities::default();
    tx.query(
        "SELECT channel, able FROM capabilities
         WHERE tenant_id = ?1 AND test = ?2 AND recipient = ?3 AND at > ?4 LIMIT ?5",
        params![tenant, test, recipient, since, CHANNELS],
        |row| {
            known.learn(row.get(0)?, row.get(1)?);
            Ok(())
        },
    )?;
    Ok(known)
}

/// What is known of one recipient; without channels where nothing is.
pub fn get(
    tx: &mut Tx<'_>,
    (tenant, test): (&TenantId, bool),
    recipient: &Recipient,
    since: UnixMs,
) -> Result<Capabilities, StoreError> {
    let channels = tx.query(
        "SELECT channel, able, at FROM capabilities
         WHERE tenant_id = ?1 AND test = ?2 AND recipient = ?3 ORDER BY channel LIMIT ?4",
        params![tenant, test, recipient, CHANNELS],
        |row| {
            let at: UnixMs = row.get(2)?;
            Ok(ChannelKnown { channel: row.get(0)?, able: row.get(1)?, at, fresh: at > since })
        },
    )?;
    let asked_at = tx.query_row(
        "SELECT MAX(asked_at) FROM capability_questions WHERE tenant_id = ?1 AND test = ?2 AND recipient = ?3",
        params![tenant, test, recipient],
        |row| row.get(0),
    )?;
    Ok(Capabilities { recipient: recipient.clone(), channels, asked_at })
}

/// Recipients of whom something is known, in order, after `after`. Answers one more than `limit` where there is more.
pub fn list(
    tx: &mut Tx<'_>,
    (tenant, test): (&TenantId, bool),
    (after, limit): (&str, u32),
    since: UnixMs,
) -> Result<Vec<Capabilities>, StoreError> {
    let recipients: Vec<Recipient> = tx.query(
        "SELECT DISTINCT recipient FROM capabilities
         WHERE tenant_id = ?1 AND test = ?2 AND recipient > ?3 ORDER BY recipient LIMIT ?4",
        params![tenant, test, after, limit.saturating_add(1)],
        |row| row.get(0),
    )?;
    recipients.iter().map(|recipient| get(tx, (tenant, test), recipient, since)).collect()
}

/// Notes that a tenant has a phone asked.
pub fn asked(
    tx: &mut Tx<'_>,
    (tenant, test): (&TenantId, bool),
    (phone, recipient): (&PhoneId, &Recipient),
    now: UnixMs,
) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO capability_questions (phone_id, recipient, tenant_id, test, asked_at)
         VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT (phone_id, recipient, tenant_id, test) DO UPDATE SET asked_at = excluded.asked_at",
        params![phone, recipient, tenant, test, now],
    )?;
    Ok(())
}

/// Writes a phone's answer down for those who have asked it of late, and for nobody else.
pub fn answered(
    tx: &mut Tx<'_>,
    phone: &PhoneId,
    answer: &Capability,
    now: UnixMs,
) -> Result<(), StoreError> {
    let who: Vec<(TenantId, bool)> = tx.query(
        "SELECT tenant_id, test FROM capability_questions
         WHERE phone_id = ?1 AND recipient = ?2 AND asked_at > ?3",
        params![phone, answer.to, now.plus_ms(-ANSWERED_WITHIN_MS)],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    for (tenant, test) in &who {
        for known in &answer.channels {
            // A clock that is ahead must not make an answer last.
            let at = known.at.min(now);
            learn(tx, (tenant, *test), &answer.to, (known.channel, known.able), at)?;
        }
    }
    Ok(())
}
