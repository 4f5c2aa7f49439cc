//! Every change of an outbound message after it was accepted: the step in its story, its columns, what it means for what
//! the tenant pays, the tenant's webhooks.

use std::collections::BTreeMap;

use protocol::api::{Direction, Settled, WebhookData};
use protocol::{
    Channel, ChannelChoice, Class, E164, MessageId, PhoneId, Reason, Recipient, Status, TenantId,
    UnixMs,
};

use super::events::{self, NewEvent};
use super::usage::{Numbers, Place};
use super::{Json, StoreError, Tx, credit, dispatch, webhook_jobs};
use crate::billing::Day;
use crate::params;

/// What becomes of a message, and why.
#[derive(Debug, Clone, Copy)]
pub struct Change<'a> {
    /// The step in the story: a status, or `accepted`, `started`, `fallback`, `held`, `retry`, `refused`.
    pub kind: &'a str,
    /// The status that the step asks for; none when it changes no status.
    pub status: Option<Status>,
    /// When it happened, by the clock of whoever saw it.
    pub at: UnixMs,
    /// When it is written down, by our clock: what is told of it falls due then.
    pub now: UnixMs,
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
    /// When it is looked at again, for what waits.
    pub next_at: Option<UnixMs>,
    /// Messages' own id, where it is now known.
    pub guid: Option<&'a str>,
    /// Whether the tenant's webhooks are told.
    pub tell: bool,
}

impl<'a> Change<'a> {
    /// A change to `status` that happens now, told to the tenant.
    pub fn to(status: Status, at: UnixMs) -> Self {
        Self { status: Some(status), tell: true, ..Self::step(status.as_str(), at) }
    }

    /// A step that changes no status.
    pub fn step(kind: &'a str, at: UnixMs) -> Self {
        Self {
            kind,
            status: None,
            at,
            now: at,
            phone: None,
            attempt: None,
            channel: None,
            reason: None,
            detail: None,
            next_at: None,
            guid: None,
            tell: false,
        }
    }

    fn event(&self) -> NewEvent<'a> {
        NewEvent {
            kind: self.kind,
            at: self.at,
            phone: self.phone,
            attempt: self.attempt,
            channel: self.channel,
            reason: self.reason,
            detail: self.detail,
        }
    }
}

/// What a message is before a change: as much of it as a change needs.
#[derive(Debug, Clone, PartialEq)]
pub struct Standing {
    /// Its status.
    pub status: Status,
    /// How many steps its story has.
    pub sequence: u64,
    /// A confirmation of ours.
    pub internal: bool,
    /// Of the sandbox.
    pub test: bool,
    /// Whom it goes to.
    pub recipient: Recipient,
    /// Attempts so far.
    pub attempts: u32,
    class: Class,
    channel: ChannelChoice,
    channel_used: Option<Channel>,
    phone: Option<PhoneId>,
    /// Its phone's, or the one that was asked for.
    number: Option<E164>,
    metadata: Option<BTreeMap<String, String>>,
}

/// A message as it stands; `None` where the tenant has no such message.
pub fn standing(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    id: &MessageId,
) -> Result<Option<Standing>, StoreError> {
    tx.query_opt(
        "SELECT m.status, m.sequence, m.kind = 'confirmation', m.test, m.recipient, m.attempts, m.class,
             m.channel_asked, m.channel_used, m.phone_id, COALESCE(p.number, m.asked_from), m.metadata
         FROM messages m LEFT JOIN phones p ON p.id = m.phone_id WHERE m.id = ?1 AND m.tenant_id = ?2",
        params![id, tenant],
        |row| {
            let metadata: Option<Json<BTreeMap<String, String>>> = row.get(11)?;
            Ok(Standing {
                status: row.get(0)?,
                sequence: row.get(1)?,
                internal: row.get(2)?,
                test: row.get(3)?,
                recipient: row.get(4)?,
                attempts: row.get(5)?,
                class: row.get(6)?,
                channel: row.get(7)?,
                channel_used: row.get(8)?,
                phone: row.get(9)?,
                number: row.get(10)?,
                metadata: metadata.map(|json| json.0),
            })
        },
    )
}

/// Makes a change: the step in the story, the message's columns, the tenant's webhooks. False, and nothing written,
/// when the message is past it: a status never goes backwards.
pub fn make(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    id: &MessageId,
    change: &Change<'_>,
) -> Result<bool, StoreError> {
    // A step that changes nothing and is told to nobody need not know what the message was before.
    if change.status.is_none() && !change.tell {
        events::append(tx, tenant, id, &[change.event()])?;
        return Ok(true);
    }
    let Some(before) = standing(tx, tenant, id)? else { return Err(StoreError::NoRow) };
    make_of(tx, (tenant, id), &before, &[], change)
}

/// [`make`] of a message that was looked up in this transaction, after `steps` that change no status and are told to
/// nobody. They are written whatever becomes of the change.
pub fn make_of(
    tx: &mut Tx<'_>,
    (tenant, id): (&TenantId, &MessageId),
    before: &Standing,
    steps: &[NewEvent<'_>],
    change: &Change<'_>,
) -> Result<bool, StoreError> {
    let status = match change.status {
        // Held again, or retried while it still counts as queued: a step without a new status.
        Some(next) if next == before.status && next == Status::Queued => Some(next),
        Some(next) => before.status.advance(next),
        None => Some(before.status),
    };
    let Some(status) = status else {
        if !steps.is_empty() {
            events::append(tx, tenant, id, steps)?;
        }
        return Ok(false);
    };
    let mut all = steps.to_vec();
    all.push(change.event());
    let sequence = if change.status.is_some() {
        let first = before.sequence.saturating_add(1);
        let held = (status == Status::Queued).then_some(change.reason).flatten();
        let reason = status.is_final().then_some(change.reason).flatten();
        let last = before.sequence.saturating_add(u64::try_from(all.len()).unwrap_or(u64::MAX));
        // Naming a column writes each index that has it, even where it stays what it was.
        let place = match (before.status.is_final(), status.is_final()) {
            (false, false) | (true, true) => "",
            (false, true) => "on_the_way = 0,",
            (true, false) => "on_the_way = 1,",
        };
        tx.execute(
            &format!(
                "UPDATE messages SET {place} status = ?3, reason = ?4, detail = ?5, held_reason = ?6, next_at = ?7,
                     channel_used = COALESCE(?8, channel_used), guid = COALESCE(?9, guid),
                     phone_id = COALESCE(?10, phone_id), sequence = ?12, updated_at = ?11,
                     room = CASE WHEN ?9 IS NULL THEN room END
                 WHERE id = ?1 AND tenant_id = ?2"
            ),
            params![
                id,
                tenant,
                status,
                reason,
                change.detail.filter(|_| status.is_final()),
                held,
                change.next_at,
                change.channel.filter(|_| status.is_sent()),
                change.guid,
                change.phone,
                change.at,
                last
            ],
        )?;
        events::insert(tx, (tenant, id), first, &all)?;
        if !before.internal && !before.test {
            settle(tx, (tenant, id), before, change, status)?;
        }
        last
    } else {
        events::append(tx, tenant, id, &all)?
    };
    if change.tell && !before.internal {
        tell(tx, (tenant, id), before, change, (status, sequence))?;
    }
    Ok(true)
}

/// What nobody knew of a message, the operator has found out. `reason` is why nobody knew.
pub fn settle_unknown(
    tx: &mut Tx<'_>,
    (tenant, id): (&TenantId, &MessageId),
    outcome: Settled,
    reason: Option<Reason>,
    now: UnixMs,
) -> Result<bool, StoreError> {
    let (status, reason) = match outcome {
        Settled::Sent => (Status::Sent, None),
        Settled::Failed => (Status::Failed, reason),
    };
    let detail = Some("settled by the operator");
    make(tx, tenant, id, &Change { reason, detail, ..Change::to(status, now) })
}

/// Moves the moment at which what waits is looked at again; that is no step in its story.
pub fn set_next_at(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    id: &MessageId,
    next_at: UnixMs,
) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE messages SET next_at = ?3 WHERE id = ?1 AND tenant_id = ?2 AND next_at <> ?3",
        params![id, tenant, next_at],
    )?;
    Ok(())
}

/// What a change means for what the tenant uses and pays: it is counted as sent once, and given back where it never was.
fn settle(
    tx: &mut Tx<'_>,
    (tenant, id): (&TenantId, &MessageId),
    before: &Standing,
    change: &Change<'_>,
    status: Status,
) -> Result<(), StoreError> {
    match status {
        // What was sent, then failed, and is proven after all has its channel already.
        Status::Sent | Status::Delivered | Status::Read
            if !before.status.is_sent() && before.channel_used.is_none() =>
        {
            let channel = change.channel.map_or(before.channel, ChannelChoice::from);
            let day = Day::of(change.now);
            let place = Place { tenant: tenant.clone(), day, class: before.class, channel };
            tx.counts().add(place, Numbers { sent: 1, ..Numbers::default() });
            Ok(())
        }
        Status::Failed | Status::Blocked | Status::Expired | Status::Canceled => {
            // What nobody knew of has not been given back.
            let again = before.status.is_final() && before.status != Status::Unknown;
            credit::give_back(tx, tenant, (id, again), change.now)
        }
        Status::Queued
        | Status::Scheduled
        | Status::Dispatching
        | Status::Sent
        | Status::Delivered
        | Status::Read
        | Status::Unknown
        | Status::Received => Ok(()),
    }
}

/// Puts the change into the tenant's outbox.
fn tell(
    tx: &mut Tx<'_>,
    (tenant, id): (&TenantId, &MessageId),
    before: &Standing,
    change: &Change<'_>,
    (status, sequence): (Status, u64),
) -> Result<(), StoreError> {
    let phone = change.phone.cloned().or_else(|| before.phone.clone());
    let number = match &phone {
        Some(other) if phone != before.phone => dispatch::number_of(tx, other)?,
        Some(_) | None => before.number.clone(),
    };
    let data = WebhookData {
        tenant: Some(tenant.clone()),
        message: Some(id.clone()),
        sequence: Some(sequence),
        status: Some(status),
        direction: Some(Direction::Outbound),
        recipient: Some(before.recipient.clone()),
        number,
        phone,
        channel: change.channel.or(before.channel_used),
        reason: change.reason,
        detail: change.detail.map(ToOwned::to_owned),
        next_at: change.next_at,
        metadata: before.metadata.clone(),
        ..WebhookData::default()
    };
    let kind = format!("message.{}", change.kind);
    webhook_jobs::enqueue_at(tx, (tenant, before.test), &kind, &data, (change.at, change.now))?;
    Ok(())
}

/// Blocks a message whose row cannot be read, without reading it: nobody can be told more than that. One that a phone
/// has, or that has ended, is left as it is.
pub fn block_unread(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    id: &MessageId,
    now: UnixMs,
) -> Result<(), StoreError> {
    let reason = Some(Reason::CheckFailed);
    let changed = tx.execute(
        "UPDATE messages SET status = ?3, reason = ?4, held_reason = NULL, next_at = NULL, on_the_way = 0
         WHERE id = ?1 AND tenant_id = ?2 AND status IN ('queued', 'scheduled')",
        params![id, tenant, Status::Blocked, reason],
    )?;
    if changed > 0 {
        let event = NewEvent { reason, ..NewEvent::new(Status::Blocked.as_str(), now) };
        events::append(tx, tenant, id, &[event])?;
        credit::give_back(tx, tenant, (id, false), now)?;
    }
    dispatch::drop_job(tx, tenant, id)
}
