//! Jobs, attempts, and every change of an outbound message after it was accepted.

use protocol::api::{Direction, Message, WebhookData};
use protocol::{
    Channel, ChannelChoice, Class, E164, HostId, MessageId, PhoneId, Reason, Recipient, Status,
    TenantId, UnixMs,
};

use super::events::{self, NewEvent};
use super::{Json, Row, StoreError, Tx, messages, webhook_jobs};
use crate::compliance::OptOut;
use crate::params;
use crate::resolve::Candidate;

/// A day, in milliseconds: `phones.day` counts them since 1970, UTC.
const DAY_MS: i64 = 24 * 3_600 * 1_000;

/// What becomes of a message, and why.
#[derive(Debug, Clone)]
pub struct Change<'a> {
    /// The step in the story: a status, or `accepted`, `started`, `fallback`, `held`, `retry`, `refused`.
    pub kind: &'a str,
    /// The status that the step asks for; none when it changes no status.
    pub status: Option<Status>,
    /// When it happened.
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
    /// When it is looked at again, for what waits.
    pub next_at: Option<UnixMs>,
    /// Messages' own id, where it is now known.
    pub guid: Option<&'a str>,
    /// Whether the tenant's webhooks are told.
    pub tell: bool,
}

impl<'a> Change<'a> {
    /// A change to `status`, told to the tenant.
    pub fn to(status: Status, at: UnixMs) -> Self {
        Self { status: Some(status), tell: true, ..Self::step(status.as_str(), at) }
    }

    /// A step that changes no status.
    pub fn step(kind: &'a str, at: UnixMs) -> Self {
        Self {
            kind,
            status: None,
            at,
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
}

/// Makes a change: the step in the story, the message's columns, the tenant's webhooks. False, and nothing written,
/// when the message is past it: a status never goes backwards.
pub fn change(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    id: &MessageId,
    change: &Change<'_>,
) -> Result<bool, StoreError> {
    let Some(before) = messages::get(tx, tenant, id)? else { return Err(StoreError::NoRow) };
    let status = match change.status {
        // Held again, or retried while it still counts as queued: a step without a new status.
        Some(next) if next == before.status && next == Status::Queued => next,
        Some(next) => match before.status.advance(next) {
            Some(next) => next,
            None => return Ok(false),
        },
        None => before.status,
    };
    let sequence = events::append(
        tx,
        tenant,
        id,
        &NewEvent {
            kind: change.kind,
            at: change.at,
            phone: change.phone,
            attempt: change.attempt,
            channel: change.channel,
            reason: change.reason,
            detail: change.detail,
        },
    )?;
    if change.status.is_some() {
        let held = (status == Status::Queued).then_some(change.reason).flatten();
        let reason = status.is_final().then_some(change.reason).flatten();
        tx.execute(
            "UPDATE messages SET status = ?3, reason = ?4, detail = ?5, held_reason = ?6, next_at = ?7,
                 channel_used = COALESCE(?8, channel_used), guid = COALESCE(?9, guid),
                 phone_id = COALESCE(?10, phone_id)
             WHERE id = ?1 AND tenant_id = ?2",
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
                change.phone
            ],
        )?;
    }
    if change.tell {
        tell(tx, tenant, &before, change, status, sequence)?;
    }
    Ok(true)
}

/// Puts the change into the tenant's outbox, unless the message is a confirmation of ours.
fn tell(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    before: &Message,
    change: &Change<'_>,
    status: Status,
    sequence: u64,
) -> Result<(), StoreError> {
    let ours = tx.query_row(
        "SELECT kind = 'confirmation' FROM messages WHERE id = ?1 AND tenant_id = ?2",
        params![before.id, tenant],
        |row| row.get(0),
    )?;
    if ours {
        return Ok(());
    }
    let phone = change.phone.cloned().or_else(|| before.phone.clone());
    let number = match &phone {
        Some(phone) => number_of(tx, phone)?,
        None => before.from.clone(),
    };
    let data = WebhookData {
        tenant: Some(tenant.clone()),
        message: Some(before.id.clone()),
        sequence: Some(sequence),
        status: Some(status),
        direction: Some(Direction::Outbound),
        recipient: Some(before.to.clone()),
        number,
        phone,
        channel: change.channel.or(before.channel_used),
        reason: change.reason,
        detail: change.detail.map(ToOwned::to_owned),
        next_at: change.next_at,
        metadata: before.metadata.clone(),
        ..WebhookData::default()
    };
    webhook_jobs::enqueue(tx, tenant, &format!("message.{}", change.kind), &data, change.at)?;
    Ok(())
}

/// Blocks a message whose row cannot be read, without reading it: nobody can be told more than that.
pub fn block_unread(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    id: &MessageId,
    now: UnixMs,
) -> Result<(), StoreError> {
    let reason = Some(Reason::CheckFailed);
    let event = NewEvent { reason, ..NewEvent::new(Status::Blocked.as_str(), now) };
    events::append(tx, tenant, id, &event)?;
    tx.execute(
        "UPDATE messages SET status = ?3, reason = ?4, held_reason = NULL, next_at = NULL
         WHERE id = ?1 AND tenant_id = ?2",
        params![id, tenant, Status::Blocked, reason],
    )?;
    drop_job(tx, tenant, id)
}

/// A phone's number.
pub fn number_of(tx: &mut Tx<'_>, phone: &PhoneId) -> Result<Option<E164>, StoreError> {
    tx.query_opt("SELECT number FROM phones WHERE id = ?1", params![phone], |row| row.get(0))
}

/// A job that has been claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimed {
    /// The message.
    pub message: MessageId,
    /// Whose.
    pub tenant: TenantId,
}

/// Claims up to `limit` due jobs, the most urgent class first. A claim moves the job to `until`, where it falls due
/// again by itself if its worker dies.
pub fn claim(
    tx: &mut Tx<'_>,
    worker: &str,
    (now, until): (UnixMs, UnixMs),
    limit: usize,
) -> Result<Vec<Claimed>, StoreError> {
    let skip_locked = tx.dialect().skip_locked();
    let sql = format!(
        "UPDATE jobs SET run_at = ?3, claimed_by = ?4, claimed_until = ?3 WHERE message_id IN (
             SELECT message_id FROM jobs WHERE class_rank = ?1 AND run_at <= ?2
             ORDER BY run_at LIMIT ?5{skip_locked})
         RETURNING message_id, tenant_id"
    );
    let mut claimed = Vec::new();
    for class in Class::ALL {
        let room = limit.saturating_sub(claimed.len());
        if room == 0 {
            break;
        }
        let mut of_class =
            tx.query(&sql, params![class.rank(), now, until, worker, room], |row| {
                Ok(Claimed { message: row.get(0)?, tenant: row.get(1)? })
            })?;
        // RETURNING promises no order; ids sort by the time of acceptance.
        of_class.sort_by(|left, right| left.message.cmp(&right.message));
        claimed.append(&mut of_class);
    }
    Ok(claimed)
}

/// When the next job falls due.
pub fn next_due(tx: &mut Tx<'_>) -> Result<Option<UnixMs>, StoreError> {
    tx.query_row("SELECT MIN(run_at) FROM jobs", params![], |row| row.get(0))
}

/// Due jobs whose messages have outlived their life: what a full pool leaves lying. At most `limit`.
pub fn overdue(tx: &mut Tx<'_>, now: UnixMs, limit: usize) -> Result<Vec<Claimed>, StoreError> {
    tx.query(
        "SELECT j.message_id, j.tenant_id FROM jobs j JOIN messages m ON m.id = j.message_id
         WHERE j.run_at <= ?1 AND m.expires_at <= ?1 ORDER BY j.run_at LIMIT ?2",
        params![now, limit],
        |row| Ok(Claimed { message: row.get(0)?, tenant: row.get(1)? }),
    )
}

/// Makes every job that waits for a phone due, because one has become able; answers how many those are.
pub fn wake_held(tx: &mut Tx<'_>, now: UnixMs) -> Result<usize, StoreError> {
    tx.execute(
        "UPDATE jobs SET run_at = ?2, held_reason = NULL WHERE held_reason = ?1",
        params![Reason::NoPhoneAvailable, now],
    )
}

/// What dispatch needs of a message.
#[derive(Debug, Clone, PartialEq)]
pub struct Outbound {
    /// Its status.
    pub status: Status,
    /// A confirmation of ours.
    pub internal: bool,
    /// Whom it goes to.
    pub recipient: Recipient,
    /// The number that was asked for.
    pub from: Option<E164>,
    /// The channel that was asked for.
    pub channel: ChannelChoice,
    /// How urgent.
    pub class: Class,
    /// Its text.
    pub text: String,
    /// Attempts so far.
    pub attempts: u32,
    /// Not after.
    pub expires_at: UnixMs,
    /// The tenant or the operator wants it back.
    pub cancel_asked: bool,
    /// What it waits for.
    pub held_reason: Option<Reason>,
}

/// A message as dispatch needs it.
pub fn outbound(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    id: &MessageId,
) -> Result<Option<Outbound>, StoreError> {
    tx.query_opt(
        "SELECT status, kind = 'confirmation', recipient, asked_from, channel_asked, class, text, attempts,
             expires_at, cancel_asked, held_reason
         FROM messages WHERE id = ?1 AND tenant_id = ?2 AND direction = 'outbound'",
        params![id, tenant],
        |row| {
            Ok(Outbound {
                status: row.get(0)?,
                internal: row.get(1)?,
                recipient: row.get(2)?,
                from: row.get(3)?,
                channel: row.get(4)?,
                class: row.get(5)?,
                text: row.opt_text(6)?.unwrap_or_default(),
                attempts: row.get(7)?,
                expires_at: row.get(8)?,
                cancel_asked: row.get(9)?,
                held_reason: row.get(10)?,
            })
        },
    )
}

/// Whether a recipient has opted out of a tenant's messages.
pub fn opt_out(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    recipient: &Recipient,
) -> Result<OptOut, StoreError> {
    let state = tx.query_opt(
        "SELECT state FROM opt_outs WHERE tenant_id = ?1 AND recipient = ?2",
        params![tenant, recipient],
        |row| row.text(0),
    )?;
    Ok(match state.as_deref() {
        None | Some("opted_in") => OptOut::Clear,
        Some("opted_out") => OptOut::OptedOut,
        Some(_) => OptOut::Unreadable,
    })
}

/// A phone of the pool, with what only the store knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolPhone {
    /// What the choice is made by; `online` and `sticky_ms` are still to be filled in.
    pub candidate: Candidate,
    /// Its number.
    pub number: E164,
    /// The host that serves it.
    pub host: Option<HostId>,
    /// The epoch of its lease.
    pub epoch: Option<u64>,
}

/// Every phone, as it stands.
pub fn pool(tx: &mut Tx<'_>, now: UnixMs) -> Result<Vec<PoolPhone>, StoreError> {
    let today = now.0.div_euclid(DAY_MS);
    let busy: std::collections::HashMap<PhoneId, u32> = tx
        .query(
            "SELECT phone_id, COUNT(*) FROM attempts WHERE state <> 'done' GROUP BY phone_id",
            params![],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?
        .into_iter()
        .collect();
    tx.query(
        "SELECT p.id, p.number, p.host_id, p.exclusive_tenant_id, p.state = 'ready', p.channels,
             p.warming_priority, CASE WHEN p.day = ?1 THEN p.messages_today ELSE 0 END, p.last_used_at,
             l.epoch, l.host_id = p.host_id AND l.expires_at > ?2
         FROM phones p LEFT JOIN leases l ON l.phone_id = p.id ORDER BY p.id",
        params![today, now],
        |row| pool_phone(row, &busy),
    )
}

fn pool_phone(
    row: &Row<'_>,
    busy: &std::collections::HashMap<PhoneId, u32>,
) -> Result<PoolPhone, StoreError> {
    let phone: PhoneId = row.get(0)?;
    let Json(channels): Json<Vec<Channel>> = row.get(5)?;
    let in_flight = busy.get(&phone).copied().unwrap_or(0);
    Ok(PoolPhone {
        number: row.get(1)?,
        host: row.get(2)?,
        epoch: row.get(9)?,
        candidate: Candidate {
            phone,
            exclusive_to: row.get(3)?,
            sticky_ms: None,
            online: false,
            ready: row.get(4)?,
            leased: row.get::<Option<bool>>(10)?.unwrap_or(false),
            channels,
            in_flight,
            messages_today: row.int(7)?,
            warming_priority: row.int(6)?,
            last_used_ms: row.get::<Option<i64>>(8)?.unwrap_or(0),
        },
    })
}

/// The phones that a recipient has talked with for a tenant, and when last.
pub fn bindings(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    recipient: &Recipient,
) -> Result<Vec<(PhoneId, i64)>, StoreError> {
    tx.query(
        "SELECT phone_id, last_at FROM bindings WHERE tenant_id = ?1 AND recipient = ?2",
        params![tenant, recipient],
        |row| Ok((row.get(0)?, row.int(1)?)),
    )
}

/// Notes that a recipient and a phone have talked for a tenant.
pub fn bind(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    (recipient, phone): (&Recipient, &PhoneId),
    direction: Direction,
    at: UnixMs,
) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO bindings (tenant_id, recipient, phone_id, last_at, last_direction)
         VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT (tenant_id, recipient, phone_id) DO UPDATE
             SET last_at = excluded.last_at, last_direction = excluded.last_direction
             WHERE excluded.last_at >= bindings.last_at",
        params![tenant, recipient, phone, at, direction],
    )?;
    Ok(())
}

/// An attempt as it is handed to a phone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewAttempt<'a> {
    /// Its number, from 1.
    pub attempt: u32,
    /// The phone.
    pub phone: &'a PhoneId,
    /// The epoch of the phone's lease.
    pub epoch: u64,
    /// Channels in the order to try.
    pub route: &'a [Channel],
    /// Not to be started after.
    pub start_before: UnixMs,
}

/// Writes down that a message goes to a phone: attempt, counters, binding, step; its job is done with.
pub fn dispatched(
    tx: &mut Tx<'_>,
    (tenant, id): (&TenantId, &MessageId),
    recipient: &Recipient,
    new: &NewAttempt<'_>,
    now: UnixMs,
) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO attempts
             (message_id, attempt, tenant_id, phone_id, epoch, state, route, offered_at, start_before)
         VALUES (?1, ?2, ?3, ?4, ?5, 'offered', ?6, ?7, ?8)",
        params![id, new.attempt, tenant, new.phone, new.epoch, Json(new.route), now, new.start_before],
    )?;
    tx.execute(
        "UPDATE messages SET attempts = ?3 WHERE id = ?1 AND tenant_id = ?2",
        params![id, tenant, new.attempt],
    )?;
    tx.execute(
        "UPDATE phones SET messages_today = CASE WHEN day = ?2 THEN messages_today + 1 ELSE 1 END, day = ?2,
             last_used_at = ?3 WHERE id = ?1",
        params![new.phone, now.0.div_euclid(DAY_MS), now],
    )?;
    bind(tx, tenant, (recipient, new.phone), Direction::Outbound, now)?;
    let step = Change {
        phone: Some(new.phone),
        attempt: Some(new.attempt),
        tell: false,
        ..Change::to(Status::Dispatching, now)
    };
    change(tx, tenant, id, &step)?;
    drop_job(tx, tenant, id)
}

/// The message needs no more dispatching.
pub fn drop_job(tx: &mut Tx<'_>, tenant: &TenantId, id: &MessageId) -> Result<(), StoreError> {
    tx.execute("DELETE FROM jobs WHERE message_id = ?1 AND tenant_id = ?2", params![id, tenant])?;
    Ok(())
}

/// The message is to be looked at (again) at `run_at`; `held` says what it waits for.
pub fn put_job(
    tx: &mut Tx<'_>,
    (tenant, id): (&TenantId, &MessageId),
    class_rank: u8,
    run_at: UnixMs,
    held: Option<Reason>,
) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO jobs (message_id, tenant_id, run_at, class_rank, held_reason) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT (message_id) DO UPDATE SET run_at = excluded.run_at, held_reason = excluded.held_reason,
             claimed_by = NULL, claimed_until = NULL",
        params![id, tenant, run_at, class_rank, held],
    )?;
    Ok(())
}

/// An attempt with all that offering it to its phone needs.
#[derive(Debug, Clone, PartialEq)]
pub struct Offer {
    /// Which message.
    pub message: MessageId,
    /// Whose.
    pub tenant: TenantId,
    /// Which attempt.
    pub attempt: u32,
    /// To which phone.
    pub phone: PhoneId,
    /// The host that serves it.
    pub host: Option<HostId>,
    /// Under which epoch.
    pub epoch: u64,
    /// Channels in the order to try.
    pub route: Vec<Channel>,
    /// Not to be started after.
    pub start_before: UnixMs,
    /// Whom it goes to.
    pub recipient: Recipient,
    /// Its text.
    pub text: String,
    /// How urgent.
    pub class: Class,
}

const OFFER: &str = "SELECT a.message_id, a.tenant_id, a.attempt, a.phone_id, p.host_id, a.epoch, a.route, \
     a.start_before, m.recipient, m.text, m.class \
     FROM attempts a JOIN messages m ON m.id = a.message_id JOIN phones p ON p.id = a.phone_id";

fn offer(row: &Row<'_>) -> Result<Offer, StoreError> {
    let Json(route): Json<Vec<Channel>> = row.get(6)?;
    Ok(Offer {
        message: row.get(0)?,
        tenant: row.get(1)?,
        attempt: row.get(2)?,
        phone: row.get(3)?,
        host: row.get(4)?,
        epoch: row.get(5)?,
        route,
        start_before: row.get(7)?,
        recipient: row.get(8)?,
        text: row.opt_text(9)?.unwrap_or_default(),
        class: row.get(10)?,
    })
}

/// The attempts of a phone without an answer that were last offered at or before `offered_until`, oldest first; they
/// count as offered at `now`.
pub fn offer_again(
    tx: &mut Tx<'_>,
    phone: &PhoneId,
    offered_until: UnixMs,
    now: UnixMs,
    limit: usize,
) -> Result<Vec<Offer>, StoreError> {
    let offers = tx.query(
        &format!(
            "{OFFER} WHERE a.phone_id = ?1 AND a.state = 'offered' AND a.offered_at <= ?2
             ORDER BY a.offered_at LIMIT ?3"
        ),
        params![phone, offered_until, limit],
        offer,
    )?;
    for one in &offers {
        tx.execute(
            "UPDATE attempts SET offered_at = ?3 WHERE message_id = ?1 AND attempt = ?2",
            params![one.message, one.attempt, now],
        )?;
    }
    Ok(offers)
}

/// The phones that have attempts without an answer, last offered at or before `offered_until`.
pub fn unanswered_phones(
    tx: &mut Tx<'_>,
    offered_until: UnixMs,
) -> Result<Vec<(PhoneId, Option<HostId>)>, StoreError> {
    tx.query(
        "SELECT DISTINCT a.phone_id, p.host_id FROM attempts a JOIN phones p ON p.id = a.phone_id
         WHERE a.state = 'offered' AND a.offered_at <= ?1",
        params![offered_until],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )
}

/// The open attempts of a message.
pub fn open_attempts(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    id: &MessageId,
) -> Result<Vec<Offer>, StoreError> {
    tx.query(
        &format!("{OFFER} WHERE a.message_id = ?1 AND a.tenant_id = ?2 AND a.state <> 'done'"),
        params![id, tenant],
        offer,
    )
}

/// Open attempts of messages that are wanted back: the cancel is said until it is answered. At most `limit`.
pub fn recalls(tx: &mut Tx<'_>, limit: usize) -> Result<Vec<Offer>, StoreError> {
    tx.query(
        &format!("{OFFER} WHERE a.state <> 'done' AND m.cancel_asked <> 0 LIMIT ?1"),
        params![limit],
        offer,
    )
}

/// Open attempts that should have been started before `before` and about which nothing final was heard.
pub fn lost(tx: &mut Tx<'_>, before: UnixMs, limit: usize) -> Result<Vec<Offer>, StoreError> {
    tx.query(
        &format!("{OFFER} WHERE a.state <> 'done' AND a.start_before < ?1 LIMIT ?2"),
        params![before, limit],
        offer,
    )
}

/// An attempt, as an answer to it is judged by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptRow {
    /// Whose.
    pub tenant: TenantId,
    /// The phone that it was given to.
    pub phone: PhoneId,
    /// `offered`, `accepted`, `started` or `done`.
    pub state: String,
}

/// One attempt.
pub fn attempt(
    tx: &mut Tx<'_>,
    message: &MessageId,
    attempt: u32,
) -> Result<Option<AttemptRow>, StoreError> {
    tx.query_opt(
        "SELECT tenant_id, phone_id, state FROM attempts WHERE message_id = ?1 AND attempt = ?2",
        params![message, attempt],
        |row| Ok(AttemptRow { tenant: row.get(0)?, phone: row.get(1)?, state: row.text(2)? }),
    )
}

/// Moves an attempt on; one that is done stays done.
pub fn set_attempt_state(
    tx: &mut Tx<'_>,
    message: &MessageId,
    attempt: u32,
    state: &str,
    now: UnixMs,
) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE attempts SET state = ?3, answered_at = COALESCE(answered_at, ?4)
         WHERE message_id = ?1 AND attempt = ?2 AND state <> 'done'",
        params![message, attempt, state, now],
    )?;
    Ok(())
}

/// Failed attempts of a message so far: the steps `retry` in its story.
pub fn failures(tx: &mut Tx<'_>, tenant: &TenantId, id: &MessageId) -> Result<u32, StoreError> {
    tx.query_row(
        "SELECT COUNT(*) FROM message_events WHERE message_id = ?1 AND tenant_id = ?2 AND type = 'retry'",
        params![id, tenant],
        |row| row.get(0),
    )
}
