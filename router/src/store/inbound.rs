//! Inbound messages, whose they are, and what they change: opt-outs, confirmations, what is told to tenants.

use protocol::api::{Direction, WebhookData};
use protocol::link::EventFrame;
use protocol::pipe::{ConversationKind, Received};
use protocol::{
    ChannelChoice, Class, E164, MessageId, PhoneId, Reason, Recipient, Status, TenantId, UnixMs,
};

use super::change::{self, Change};
use super::dispatch as rows;
use super::events::{self, NewEvent};
use super::{StoreError, Tx, contacts, webhook_jobs};
use crate::clock;
use crate::facts;
use crate::params;

/// The owner of what belongs to no tenant: an id that no tenant is ever given, so that no key opens it and no endpoint
/// hears of it. The operator reads it with everybody's messages.
pub fn nobody() -> TenantId {
    TenantId::new(0, [0; 10])
}

/// Keeps an event as it came, because it belongs to nothing we know or cannot be taken in.
pub fn keep_unplaced(
    tx: &mut Tx<'_>,
    frame: &EventFrame,
    why: &str,
    now: UnixMs,
) -> Result<(), StoreError> {
    let body = serde_json::to_string(&frame.event)
        .map_err(|error| StoreError::corrupt("unplaced_events.body", error))?;
    tx.execute(
        "INSERT INTO unplaced_events (phone_id, journal, seq, type, at, why, body)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT (phone_id, journal, seq) DO NOTHING",
        params![frame.phone, frame.journal, frame.seq, frame.event.kind(), now, why, body],
    )?;
    Ok(())
}

/// Takes an inbound message's guid; false when this phone has reported it before. A guid is kept for a while only, the
/// message for ever, so both are asked.
pub fn take_guid(
    tx: &mut Tx<'_>,
    phone: &PhoneId,
    (guid, journal): (&str, &str),
    now: UnixMs,
) -> Result<bool, StoreError> {
    let inserted = tx.execute(
        "INSERT INTO received_guids (phone_id, guid, at, journal) SELECT ?1, ?2, ?3, ?4
         WHERE NOT EXISTS (SELECT 1 FROM messages
                           WHERE phone_id = ?1 AND guid = ?2 AND direction = 'inbound')
         ON CONFLICT (phone_id, guid) DO NOTHING",
        params![phone, guid, now, journal],
    )?;
    Ok(inserted > 0)
}

/// Two Macs date the same message alike; a relayed text may come to them a moment apart.
const TWIN_WITHIN_MS: i64 = 2_000;

/// Newest messages of a sender among which a twin is looked for: far more than come within two seconds.
const TWIN_AMONG: usize = 50;

/// The guid of a message that another host's journal has told of the same phone: same sender, same text, same time. Each
/// of these has one twin a journal, so that two equal texts stay two.
pub fn twin(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    (phone, journal): (&PhoneId, &str),
    message: &Received,
) -> Result<Option<String>, StoreError> {
    tx.query_opt(
        TWIN,
        params![
            tenant,
            message.from,
            phone,
            message.text,
            journal,
            message.at.plus_ms(-TWIN_WITHIN_MS),
            message.at.plus_ms(TWIN_WITHIN_MS),
            TWIN_AMONG
        ],
        |row| row.text(0),
    )
}

/// What came in is on its way nowhere, and stands in its own order in the index.
pub(super) const TWIN: &str =
    "SELECT g.guid FROM (SELECT id, phone_id, guid, text, direction FROM messages
         WHERE tenant_id = ?1 AND recipient = ?2 AND on_the_way = 0 ORDER BY id DESC LIMIT ?8) newest
     JOIN received_guids g ON g.phone_id = newest.phone_id AND g.guid = newest.guid
     JOIN message_events e ON e.tenant_id = ?1 AND e.message_id = newest.id AND e.sequence = 1
     WHERE newest.phone_id = ?3 AND newest.direction = 'inbound' AND newest.text = ?4 AND g.journal <> ?5
         AND e.at BETWEEN ?6 AND ?7
         AND NOT EXISTS (SELECT 1 FROM received_guids t
                         WHERE t.phone_id = ?3 AND t.journal = ?5 AND t.twin_of = g.guid)
     ORDER BY newest.id LIMIT 1";

/// Notes that a second journal has told a message under the very guid of the first: it is that message's twin there.
pub fn told_twice(
    tx: &mut Tx<'_>,
    phone: &PhoneId,
    (guid, journal): (&str, &str),
    now: UnixMs,
) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO received_guids (phone_id, guid, at, journal, twin_of)
         SELECT ?1, ?2 || ' ' || guid, ?4, ?2, guid FROM received_guids
         WHERE phone_id = ?1 AND guid = ?3 AND journal <> ?2
         ON CONFLICT (phone_id, guid) DO NOTHING",
        params![phone, journal, guid, now],
    )?;
    Ok(())
}

/// Notes that a guid is another journal's word for a message that is here already.
pub fn is_twin(
    tx: &mut Tx<'_>,
    phone: &PhoneId,
    (guid, twin): (&str, &str),
) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE received_guids SET twin_of = ?3 WHERE phone_id = ?1 AND guid = ?2",
        params![phone, guid, twin],
    )?;
    Ok(())
}

/// Whether a guid was taken for another journal's word of an earlier message, and is not: the journal that told the
/// earlier one tells this guid as well, so that they are two messages, and the other host has not seen the first. It is
/// this journal's own from now on, and the other one's word is noted as its twin.
pub fn is_no_twin(
    tx: &mut Tx<'_>,
    phone: &PhoneId,
    (guid, journal): (&str, &str),
    now: UnixMs,
) -> Result<bool, StoreError> {
    let other: Option<String> = tx.query_opt(
        "SELECT t.journal FROM received_guids t
         JOIN received_guids first ON first.phone_id = t.phone_id AND first.guid = t.twin_of
         WHERE t.phone_id = ?1 AND t.guid = ?2 AND t.journal <> ?3 AND first.journal = ?3",
        params![phone, guid, journal],
        |row| row.text(0),
    )?;
    let Some(other) = other else { return Ok(false) };
    tx.execute(
        "UPDATE received_guids SET journal = ?3, twin_of = NULL WHERE phone_id = ?1 AND guid = ?2",
        params![phone, guid, journal],
    )?;
    told_twice(tx, phone, (guid, &other), now)?;
    Ok(true)
}

/// Whether another host's journal has told this of the phone before; noted where it has not. What one journal tells
/// twice is two things.
pub fn told_elsewhere(
    tx: &mut Tx<'_>,
    phone: &PhoneId,
    (what, journal): (&str, &str),
    now: UnixMs,
) -> Result<bool, StoreError> {
    let inserted = tx.execute(
        "INSERT INTO received_guids (phone_id, guid, at, journal) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (phone_id, guid) DO NOTHING",
        params![phone, what, now, journal],
    )?;
    if inserted > 0 {
        return Ok(false);
    }
    let first = tx.query_opt(
        "SELECT journal FROM received_guids WHERE phone_id = ?1 AND guid = ?2",
        params![phone, what],
        |row| row.opt_text(0),
    )?;
    Ok(first.flatten().is_some_and(|first| first != journal))
}

/// Who has talked with somebody on a phone, each the newest first, with when.
#[derive(Debug, Default)]
pub struct Talked {
    /// Tenants that have talked with this very recipient.
    pub with: Vec<(TenantId, UnixMs)>,
    /// Those that say that the recipient is a person with whom they have talked there by another number or address. Nobody
    /// has checked what they say, so that a STOP counts for them, and what is written is not shown to them.
    pub as_others: Vec<(TenantId, UnixMs)>,
}

/// The tenants that have talked with `recipient` on this phone.
pub fn talked_with(
    tx: &mut Tx<'_>,
    phone: &PhoneId,
    recipient: &Recipient,
) -> Result<Talked, StoreError> {
    let mut found = |sql| {
        tx.query(sql, params![phone, recipient, TALKED_MAX], |row| {
            Ok((row.get::<TenantId>(0)?, row.get(1)?))
        })
    };
    Ok(Talked { with: found(TALKED_WITH)?, as_others: found(TALKED_AS_OTHERS)? })
}

/// The tenants that may have something on its way to `recipient`, or to another number or address of the same person:
/// those that have talked with them on any phone, and those that know them by more than one.
pub fn acquainted(tx: &mut Tx<'_>, recipient: &Recipient) -> Result<Vec<TenantId>, StoreError> {
    tx.query(ACQUAINTED, params![recipient], |row| row.get(0))
}

pub(super) const ACQUAINTED: &str = "SELECT tenant_id FROM bindings WHERE recipient = ?1
     UNION SELECT tenant_id FROM contacts WHERE recipient = ?1 AND person IS NOT NULL";

pub(super) const TALKED_WITH: &str =
    "SELECT tenant_id, last_at FROM bindings WHERE phone_id = ?1 AND recipient = ?2
     ORDER BY last_at DESC, tenant_id LIMIT ?3";

/// What a tenant says of the sandbox counts on phones of the sandbox alone.
pub(super) const TALKED_AS_OTHERS: &str = "SELECT b.tenant_id, MAX(b.last_at) FROM contacts c CROSS JOIN contacts o
     CROSS JOIN bindings b CROSS JOIN phones p
     WHERE c.recipient = ?2 AND c.person IS NOT NULL AND o.tenant_id = c.tenant_id AND o.test = c.test
         AND o.person = c.person AND o.recipient <> ?2
         AND b.recipient = o.recipient AND b.phone_id = ?1 AND b.tenant_id = c.tenant_id
         AND p.id = ?1 AND p.sandbox = c.test
     GROUP BY b.tenant_id ORDER BY MAX(b.last_at) DESC, b.tenant_id LIMIT ?3";

/// Tenants that one person can have talked with on one phone: a STOP counts for all of them, so this is far beyond what
/// a phone can serve.
const TALKED_MAX: usize = 10_000;

/// Whether this is the number of one of our own phones.
pub fn is_own_number(tx: &mut Tx<'_>, number: &E164) -> Result<bool, StoreError> {
    let found = tx.query_opt("SELECT 1 FROM phones WHERE number = ?1", params![number], |row| {
        row.get::<i64>(0)
    })?;
    Ok(found.is_some())
}

/// The tenant that a phone is reserved for.
pub fn exclusive_tenant(tx: &mut Tx<'_>, phone: &PhoneId) -> Result<Option<TenantId>, StoreError> {
    let found = tx.query_opt(
        "SELECT exclusive_tenant_id FROM phones WHERE id = ?1",
        params![phone],
        |row| row.get::<Option<TenantId>>(0),
    )?;
    Ok(found.flatten())
}

/// A phone of the sandbox.
pub fn is_sandbox(tx: &mut Tx<'_>, phone: &PhoneId) -> Result<bool, StoreError> {
    let found =
        tx.query_opt("SELECT sandbox FROM phones WHERE id = ?1", params![phone], |row| row.get(0))?;
    Ok(found.unwrap_or(false))
}

/// The tenant, where there is exactly one.
pub fn only_tenant(tx: &mut Tx<'_>) -> Result<Option<TenantId>, StoreError> {
    let mut all =
        tx.query("SELECT id FROM tenants ORDER BY id LIMIT 2", params![], |row| row.get(0))?;
    Ok(if all.len() == 1 { all.pop() } else { None })
}

/// Stores an inbound message with its first event and its webhooks.
pub fn store_received(
    tx: &mut Tx<'_>,
    (tenant, test): (&TenantId, bool),
    (id, phone): (&MessageId, &PhoneId),
    message: &Received,
    now: UnixMs,
) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO messages (id, tenant_id, direction, kind, test, recipient, phone_id, channel_asked,
             channel_used, class, text, status, expires_at, attempts, sequence, guid, cancel_asked, created_at,
             updated_at, in_group)
         VALUES (?1, ?2, 'inbound', 'tenant', ?12, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, 0, 1, ?11, 0, ?10, ?10, ?13)",
        params![
            id,
            tenant,
            message.from,
            phone,
            choice(message.service),
            message.service,
            Class::Conversational,
            message.text,
            Status::Received,
            now,
            message.guid,
            test,
            (message.conversation.kind == ConversationKind::Group)
                .then_some(message.conversation.id.as_str())
        ],
    )?;
    let event = NewEvent {
        phone: Some(phone),
        channel: Some(message.service),
        ..NewEvent::new(Status::Received.as_str(), message.at)
    };
    events::insert(tx, (tenant, id), 1, &[event])?;
    rows::heard(tx, (&message.from, phone), now)?;
    let data = WebhookData {
        tenant: Some(tenant.clone()),
        message: Some(id.clone()),
        sequence: Some(1),
        status: Some(Status::Received),
        direction: Some(Direction::Inbound),
        recipient: Some(message.from.clone()),
        number: rows::number_of(tx, phone)?,
        phone: Some(phone.clone()),
        channel: Some(message.service),
        text: Some(message.text.clone()),
        conversation: Some(message.conversation.clone()),
        attachments: message.attachments.clone(),
        late: message.late,
        ..WebhookData::default()
    };
    webhook_jobs::enqueue(tx, (tenant, test), "message.received", &data, now)?;
    Ok(())
}

/// The choice that asks for just this channel.
fn choice(channel: protocol::Channel) -> ChannelChoice {
    match channel {
        protocol::Channel::Imessage => ChannelChoice::Imessage,
        protocol::Channel::Rcs => ChannelChoice::Rcs,
        protocol::Channel::Sms => ChannelChoice::Sms,
    }
}

/// Blocks everything that still waits to go to `recipient`, or to another number or address of the same person, and wants
/// back what a phone already has; answers how many both are, and the latter.
pub fn block_waiting(
    tx: &mut Tx<'_>,
    (tenant, test): (&TenantId, bool),
    recipient: &Recipient,
    now: UnixMs,
) -> Result<(u32, Vec<MessageId>), StoreError> {
    let mut waiting = on_the_way(tx, (tenant, test), recipient, "tenant")?;
    for other in contacts::others(tx, (tenant, test), recipient)? {
        waiting.append(&mut on_the_way(tx, (tenant, test), &other, "tenant")?);
    }
    let stopped = u32::try_from(waiting.len()).unwrap_or(u32::MAX);
    let mut with_phones = Vec::new();
    for (id, status) in waiting {
        if status == Status::Dispatching {
            rows::want_back(tx, tenant, &id, Some(Reason::OptedOut))?;
            with_phones.push(id);
            continue;
        }
        match block(tx, (tenant, &id), now) {
            Ok(()) => {}
            Err(error) if error.is_unavailable() => return Err(error),
            // One damaged message must not cost the person the opt-out.
            Err(error) => {
                tracing::error!(message = %id, error = %error, "inbound: a message cannot be read, so nothing is sent");
                change::block_unread(tx, tenant, &id, now)?;
            }
        }
    }
    Ok((stopped, with_phones))
}

fn block(
    tx: &mut Tx<'_>,
    (tenant, id): (&TenantId, &MessageId),
    now: UnixMs,
) -> Result<(), StoreError> {
    let reason = Reason::OptedOut;
    let change = Change { reason: Some(reason), ..Change::to(Status::Blocked, now) };
    if change::make(tx, tenant, id, &change)? {
        facts::blocked(tx, (tenant, id), reason, now)?;
    }
    rows::drop_job(tx, tenant, id)
}

/// Withdraws the confirmations of ours that still wait to go to `recipient`: there will be a newer one.
pub fn drop_confirmations(
    tx: &mut Tx<'_>,
    (tenant, test): (&TenantId, bool),
    recipient: &Recipient,
    now: UnixMs,
) -> Result<(), StoreError> {
    for (id, status) in on_the_way(tx, (tenant, test), recipient, "confirmation")? {
        if status == Status::Dispatching {
            continue;
        }
        let change = Change { reason: Some(Reason::Canceled), ..Change::to(Status::Canceled, now) };
        change::make(tx, tenant, &id, &change)?;
        rows::drop_job(tx, tenant, &id)?;
    }
    Ok(())
}

/// The messages of a kind that are on their way to `recipient`, in the order of their acceptance.
fn on_the_way(
    tx: &mut Tx<'_>,
    (tenant, test): (&TenantId, bool),
    recipient: &Recipient,
    kind: &str,
) -> Result<Vec<(MessageId, Status)>, StoreError> {
    tx.query(ON_THE_WAY, params![tenant, recipient, kind, test], |row| {
        Ok((row.get(0)?, row.get(1)?))
    })
}

/// What is on its way stands apart in the index, so that the recipient's history is not read.
pub(super) const ON_THE_WAY: &str = "SELECT id, status FROM messages
     WHERE tenant_id = ?1 AND recipient = ?2 AND on_the_way = 1
         AND status IN ('queued', 'scheduled', 'dispatching') AND kind = ?3 AND test = ?4 AND direction = 'outbound' ORDER BY id";

/// Tells the tenant that a contact has opted out or in again.
pub fn tell_contact(
    tx: &mut Tx<'_>,
    who: (&TenantId, bool),
    kind: &str,
    (recipient, phone, message): (&Recipient, &PhoneId, &MessageId),
    at: UnixMs,
) -> Result<(), StoreError> {
    let data = WebhookData {
        tenant: Some(who.0.clone()),
        message: Some(message.clone()),
        recipient: Some(recipient.clone()),
        number: rows::number_of(tx, phone)?,
        phone: Some(phone.clone()),
        ..WebhookData::default()
    };
    webhook_jobs::enqueue(tx, who, kind, &data, at)?;
    Ok(())
}

/// Tells the tenant that it, or the operator, has opted a recipient out or in again.
pub fn tell_opt_out(
    tx: &mut Tx<'_>,
    who: (&TenantId, bool),
    kind: &str,
    recipient: &Recipient,
    at: UnixMs,
) -> Result<(), StoreError> {
    let data = WebhookData {
        tenant: Some(who.0.clone()),
        recipient: Some(recipient.clone()),
        ..WebhookData::default()
    };
    webhook_jobs::enqueue(tx, who, kind, &data, at)?;
    Ok(())
}

/// Queues the one confirmation that follows a change of mind: from the same phone, over the same channel.
pub fn queue_confirmation(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    (phone, received): (&PhoneId, &Received),
    wording: &str,
    (now, expires_at): (UnixMs, UnixMs),
) -> Result<(), StoreError> {
    let brand =
        tx.query_opt("SELECT brand FROM tenants WHERE id = ?1", params![tenant], |row| {
            row.text(0)
        })?;
    let Some(brand) = brand else { return Ok(()) };
    let Some(number) = rows::number_of(tx, phone)? else { return Ok(()) };
    let id = MessageId::new(now.0, clock::random());
    tx.execute(
        "INSERT INTO messages (id, tenant_id, direction, kind, test, recipient, asked_from, channel_asked, class,
             text, status, expires_at, attempts, sequence, cancel_asked, created_at, updated_at, on_the_way)
         VALUES (?1, ?2, 'outbound', 'confirmation', COALESCE((SELECT sandbox FROM phones WHERE id = ?11), 0), ?3, ?4, ?5, ?6, ?7, ?8,
             ?9, 0, 1, 0, ?10, ?10, 1)",
        params![
            id,
            tenant,
            received.from,
            number,
            choice(received.service),
            Class::Transactional,
            format!("{brand}: {wording}"),
            Status::Queued,
            expires_at,
            now,
            phone
        ],
    )?;
    events::insert(tx, (tenant, &id), 1, &[NewEvent::new(Status::Queued.as_str(), now)])?;
    rows::put_job(tx, (tenant, &id), Class::Otp.rank(), now, None)
}

/// A message by Messages' own id on a phone.
pub fn by_guid(
    tx: &mut Tx<'_>,
    phone: &PhoneId,
    guid: &str,
) -> Result<Option<(TenantId, MessageId)>, StoreError> {
    tx.query_opt(BY_GUID, params![phone, guid], |row| Ok((row.get(0)?, row.get(1)?)))
}

pub(super) const BY_GUID: &str =
    "SELECT tenant_id, id FROM messages WHERE phone_id = ?1 AND guid = ?2";

/// A message that has come in, by its guid on a phone.
pub struct CameIn {
    /// Whose it is.
    pub tenant: TenantId,
    /// Its id.
    pub id: MessageId,
    /// Who wrote it.
    pub from: Recipient,
    /// Over which channel.
    pub service: protocol::Channel,
    /// The id of the group that it was written into.
    pub group: Option<String>,
    /// When its sender sent it.
    pub at: UnixMs,
    /// What it said, as long as that is kept.
    pub text: Option<String>,
}

impl std::fmt::Debug for CameIn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // What people write stays out of logs.
        f.debug_struct("CameIn").field("id", &self.id).finish_non_exhaustive()
    }
}

impl CameIn {
    /// Whose it is, where it is somebody's.
    pub fn owner(&self) -> Option<&TenantId> {
        Some(&self.tenant).filter(|tenant| **tenant != nobody())
    }
}

/// The message that has come in under this guid.
pub fn came_in(tx: &mut Tx<'_>, phone: &PhoneId, guid: &str) -> Result<Option<CameIn>, StoreError> {
    tx.query_opt(CAME_IN, params![phone, guid], |row| {
        Ok(CameIn {
            tenant: row.get(0)?,
            id: row.get(1)?,
            from: row.get(2)?,
            service: row.get(3)?,
            group: row.opt_text(4)?,
            at: row.get(5)?,
            text: row.opt_text(6)?,
        })
    })
}

pub(super) const CAME_IN: &str =
    "SELECT m.tenant_id, m.id, m.recipient, m.channel_used, m.in_group,
         COALESCE((SELECT e.at FROM message_events e
                   WHERE e.tenant_id = m.tenant_id AND e.message_id = m.id AND e.sequence = 1), m.created_at),
         m.text
     FROM messages m WHERE m.phone_id = ?1 AND m.guid = ?2 AND m.direction = 'inbound'";

/// The message that a phone has reported under this guid as coming from this sender.
pub fn received_as(
    tx: &mut Tx<'_>,
    phone: &PhoneId,
    (guid, from): (&str, &Recipient),
) -> Result<Option<MessageId>, StoreError> {
    tx.query_opt(RECEIVED_AS, params![phone, guid, from], |row| row.get(0))
}

pub(super) const RECEIVED_AS: &str = "SELECT id FROM messages
     WHERE phone_id = ?1 AND guid = ?2 AND direction = 'inbound' AND recipient = ?3";

/// Adds to a message's story what happened to it later (a reaction, an edit, its being taken back), and tells the tenant.
pub fn happened_to(
    tx: &mut Tx<'_>,
    (tenant, id): (&TenantId, &MessageId),
    phone: &PhoneId,
    kind: &str,
    change: serde_json::Value,
    (at, now): (UnixMs, UnixMs),
) -> Result<(), StoreError> {
    let event = NewEvent { phone: Some(phone), ..NewEvent::new(kind, at) };
    let sequence = events::append(tx, tenant, id, &[event])?;
    let Some(message) = super::messages::get(tx, tenant, id)? else {
        return Err(StoreError::NoRow);
    };
    let data = WebhookData {
        tenant: Some(tenant.clone()),
        message: Some(id.clone()),
        sequence: Some(sequence),
        status: Some(message.status),
        direction: Some(message.direction),
        recipient: Some(message.to),
        number: rows::number_of(tx, phone)?,
        phone: Some(phone.clone()),
        channel: message.channel_used,
        metadata: message.metadata,
        change: Some(change),
        ..WebhookData::default()
    };
    let test = super::messages::is_test(tx, tenant, id)?.unwrap_or(false);
    let kind = format!("message.{kind}");
    webhook_jobs::enqueue_at(tx, (tenant, test), &kind, &data, (at, now))?;
    Ok(())
}
