//! Jobs and attempts: what dispatch reads, and writes down.

use protocol::api::{Direction, Media};
use protocol::{
    Channel, ChannelChoice, Class, E164, HostId, MessageId, PhoneId, Reason, Recipient, Status,
    TenantId, UnixMs,
};

use super::change::{self, Change};
use super::events::{self, NewEvent};
use super::{Json, Row, StoreError, Tx};
use crate::params;
use crate::pool::Caps;
use crate::resolve::Candidate;
use crate::warming::DAY_MS;

/// A phone's number.
pub fn number_of(tx: &mut Tx<'_>, phone: &PhoneId) -> Result<Option<E164>, StoreError> {
    tx.query_opt("SELECT number FROM phones WHERE id = ?1", params![phone], |row| row.get(0))
}

/// A waiting message whose life is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overdue {
    /// The message.
    pub message: MessageId,
    /// Whose.
    pub tenant: TenantId,
}

/// Waiting messages that have outlived their life: what a full pool leaves lying. At most `limit`.
///
/// The condition on the status is the index's own, word for word: so the index is used, and its size is that of the
/// queue.
pub fn overdue(tx: &mut Tx<'_>, now: UnixMs, limit: usize) -> Result<Vec<Overdue>, StoreError> {
    tx.query(OVERDUE, params![now, limit], |row| {
        Ok(Overdue { message: row.get(0)?, tenant: row.get(1)? })
    })
}

const OVERDUE: &str = "SELECT id, tenant_id FROM messages
     WHERE status IN ('queued', 'scheduled') AND expires_at <= ?1 ORDER BY expires_at LIMIT ?2";

/// Makes jobs that wait for a phone due, because one has become able: `limit` of them, those after `after` in the order
/// of their messages' ids. Answers the last one; `None` when there was none.
pub fn wake_held(
    tx: &mut Tx<'_>,
    after: Option<&MessageId>,
    now: UnixMs,
    limit: usize,
) -> Result<Option<MessageId>, StoreError> {
    let woken: Vec<MessageId> = tx.query(
        WAKE_HELD,
        params![Reason::NoPhoneAvailable, now, after.map_or("", MessageId::as_str), limit],
        |row| row.get(0),
    )?;
    Ok(woken.into_iter().max())
}

// What is due is said to be: otherwise each of them would be moved over once more when jobs are claimed.
const WAKE_HELD: &str =
    "UPDATE jobs SET run_at = ?2, held_reason = NULL, ready = 1 WHERE message_id IN (
         SELECT message_id FROM jobs WHERE held_reason = ?1 AND message_id > ?3
         ORDER BY message_id LIMIT ?4)
     RETURNING message_id";

/// Tenants whose messages look whether a place has become free.
const WAKE_TENANTS: usize = 256;

/// Makes the first `each` of every tenant's jobs that wait for a place among new contacts due, because one may have become free
/// before its time, on a phone that not everybody may use. Those that find none wait on.
pub fn wake_warming(tx: &mut Tx<'_>, each: usize, now: UnixMs) -> Result<(), StoreError> {
    wake_some(tx, Reason::WarmingCap, each, now)
}

/// The first `each` of every tenant's jobs that are held for `held` become due.
fn wake_some(tx: &mut Tx<'_>, held: Reason, each: usize, now: UnixMs) -> Result<(), StoreError> {
    tx.query(WAKE_SOME, params![held, now, WAKE_TENANTS, each], |_row| Ok(()))?;
    Ok(())
}

// The recursion jumps from tenant to tenant, past all that each has waiting.
const WAKE_SOME: &str = "WITH RECURSIVE waiting (tenant, number) AS (
         SELECT (SELECT MIN(tenant_id) FROM jobs WHERE held_reason = ?1), 1
         UNION ALL
         SELECT (SELECT MIN(j.tenant_id) FROM jobs j WHERE j.held_reason = ?1 AND j.tenant_id > waiting.tenant),
             waiting.number + 1
         FROM waiting WHERE waiting.tenant IS NOT NULL AND waiting.number < ?3)
     UPDATE jobs SET run_at = ?2, held_reason = NULL, ready = 1 WHERE message_id IN (
         SELECT j.message_id FROM waiting CROSS JOIN jobs j WHERE waiting.tenant IS NOT NULL AND j.message_id IN (
             SELECT f.message_id FROM jobs f WHERE f.held_reason = ?1 AND f.tenant_id = waiting.tenant
             ORDER BY f.message_id LIMIT ?4))
     RETURNING message_id";

/// What dispatch needs of a message.
#[derive(Debug, Clone, PartialEq)]
pub struct Outbound {
    /// Its status.
    pub status: Status,
    /// A confirmation of ours.
    pub internal: bool,
    /// Made with a test key, or the answer to what a phone of the sandbox was told.
    pub test: bool,
    /// Whom it goes to.
    pub recipient: Recipient,
    /// The number that was asked for.
    pub from: Option<E164>,
    /// The channel that was asked for.
    pub channel: ChannelChoice,
    /// Channels to be tried after it, where that was asked for.
    pub fallback: Option<Vec<Channel>>,
    /// How urgent.
    pub class: Class,
    /// By which class it takes its turn where it waits: as the tenant says, until the rules have judged that; a confirmation
    /// of ours as a code.
    pub judged_as: Class,
    /// Its text.
    pub text: String,
    /// Files that go with it.
    pub media: Vec<Media>,
    /// Attempts so far.
    pub attempts: u32,
    /// How many steps its story has.
    pub sequence: u64,
    /// When it was accepted.
    pub accepted_at: UnixMs,
    /// Not after.
    pub expires_at: UnixMs,
    /// It is wanted back.
    pub cancel_asked: bool,
    /// Why it is wanted back, where that is not the tenant's wish.
    pub recall_reason: Option<Reason>,
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
             expires_at, cancel_asked, held_reason, recall_reason, created_at, test,
             fallback, media, sequence
         FROM messages WHERE id = ?1 AND tenant_id = ?2 AND direction = 'outbound'",
        params![id, tenant],
        |row| {
            let fallback: Option<Json<Vec<Channel>>> = row.get(14)?;
            let media: Option<Json<Vec<Media>>> = row.get(15)?;
            Ok(Outbound {
                fallback: fallback.map(|json| json.0),
                media: media.map(|json| json.0).unwrap_or_default(),
                status: row.get(0)?,
                internal: row.get(1)?,
                recipient: row.get(2)?,
                from: row.get(3)?,
                channel: row.get(4)?,
                class: row.get(5)?,
                judged_as: if row.get(1)? { Class::Otp } else { row.get(5)? },
                text: row.opt_text(6)?.unwrap_or_default(),
                attempts: row.get(7)?,
                expires_at: row.get(8)?,
                cancel_asked: row.get(9)?,
                held_reason: row.get(10)?,
                recall_reason: row.get(11)?,
                accepted_at: row.get(12)?,
                test: row.get(13)?,
                sequence: row.get(16)?,
            })
        },
    )
}

/// A phone of the pool, with what only the store knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolPhone {
    /// What the choice is made by; `online` is still to be filled in, what depends on the time by [`Self::measure`], and
    /// what depends on the recipient by [`crate::pool::candidate`].
    pub candidate: Candidate,
    /// Its number.
    pub number: E164,
    /// The host that serves it.
    pub host: Option<HostId>,
    /// The epoch of its lease.
    pub epoch: Option<u64>,
    /// The journal that its bridge has.
    pub journal: Option<String>,
    /// The phone that has taken its place.
    pub replaced_by: Option<PhoneId>,
    /// When something next becomes true or untrue of it by time alone.
    pub turns_ms: i64,
    /// Its own cap of messages a day, where it has one.
    daily_cap: Option<u32>,
    /// Since when its number is used.
    in_service_ms: i64,
    /// When it had its new contacts of the last 24 hours, ascending.
    new_contacts: Vec<i64>,
    /// Until when its host's lease allows it to be given messages; 0 where it does not.
    lease_until_ms: i64,
    /// It is being handed over to another host until then.
    handed_until_ms: i64,
    /// Which day its messages were counted on, and how many there were.
    counted: (i64, i64),
    /// Its open attempts.
    under_way: u32,
    /// When the oldest offer that it has not answered was first made.
    oldest_offer_ms: Option<i64>,
}

impl PoolPhone {
    /// Takes in what [`dispatched`] has just written about this phone, as reading it anew would.
    pub(crate) fn give(&mut self, new_contact: bool, now: UnixMs) {
        let today = now.0.div_euclid(DAY_MS);
        let (day, count) = self.counted;
        self.counted = (today, if day == today { count.saturating_add(1) } else { 1 });
        self.candidate.last_used_ms = now.0;
        self.under_way = self.under_way.saturating_add(1);
        self.oldest_offer_ms = Some(self.oldest_offer_ms.map_or(now.0, |oldest| oldest.min(now.0)));
        if new_contact {
            let place = self.new_contacts.partition_point(|time| *time <= now.0);
            self.new_contacts.insert(place, now.0);
        }
    }

    /// Fills in what depends on the time and on the caps.
    pub fn measure(&mut self, caps: &Caps, now: UnixMs) {
        let over = self.new_contacts.partition_point(|time| *time <= now.plus_ms(-DAY_MS).0);
        self.new_contacts.drain(..over);
        let today = now.0.div_euclid(DAY_MS);
        let (day, count) = self.counted;
        let cap = i64::from(self.daily_cap.unwrap_or(caps.daily));
        let silent_ms = self.oldest_offer_ms.map(|at| at.saturating_add(UNANSWERED_MS));
        let new_from_ms =
            caps.warming.next_new_contact(self.in_service_ms, &self.new_contacts, now.0);
        let candidate = &mut self.candidate;
        candidate.messages_today = if day == today { count } else { 0 };
        candidate.capped = candidate.messages_today >= cap;
        candidate.leased = self.lease_until_ms > now.0 && self.handed_until_ms <= now.0;
        let silent = silent_ms.is_some_and(|at| at <= now.0);
        candidate.in_flight = if silent { u32::MAX } else { self.under_way };
        candidate.new_from_ms = new_from_ms;
        let midnight = today.saturating_add(1).saturating_mul(DAY_MS);
        let moments = [
            self.lease_until_ms,
            self.handed_until_ms,
            silent_ms.unwrap_or(0),
            new_from_ms,
            midnight,
        ];
        self.turns_ms = moments.into_iter().filter(|at| *at > now.0).min().unwrap_or(i64::MAX);
    }
}

/// Every phone, as it stands; with `warms`, its new contacts as well, which count only where they are limited.
pub fn pool(tx: &mut Tx<'_>, warms: bool, now: UnixMs) -> Result<Vec<PoolPhone>, StoreError> {
    let mut phones = tx.query(&format!("{POOL} ORDER BY p.id"), params![], read_pool_phone)?;
    for phone in &mut phones {
        complete(tx, phone, warms, now)?;
    }
    Ok(phones)
}

/// One phone, as [`pool`] reads it.
pub fn pool_phone(
    tx: &mut Tx<'_>,
    id: &PhoneId,
    warms: bool,
    now: UnixMs,
) -> Result<Option<PoolPhone>, StoreError> {
    let mut phone = tx.query_opt(POOL_PHONE, params![id], read_pool_phone)?;
    if let Some(phone) = &mut phone {
        complete(tx, phone, warms, now)?;
    }
    Ok(phone)
}

macro_rules! pool_sql {
    ($condition:literal) => {
        concat!(
            "SELECT p.id, p.number, p.host_id, p.exclusive_tenant_id,
                 p.state = 'ready' AND p.blocked_at IS NULL, p.channels,
                 p.warming_priority, p.messages_today, p.day, p.last_used_at, l.epoch,
                 CASE WHEN l.host_id = p.host_id AND l.released = 0 AND p.replaced_by IS NULL
                     AND h.drained_at IS NULL THEN l.expires_at END,
                 CASE WHEN p.handed_to IS NULL THEN 0 ELSE p.handed_until END,
                 p.journal, p.replaced_by, p.daily_cap, COALESCE(p.in_service_at, p.created_at), p.sandbox
             FROM phones p LEFT JOIN leases l ON l.phone_id = p.id LEFT JOIN hosts h ON h.id = p.host_id ",
            $condition
        )
    };
}
// A provider's number stands among the phones and is none: the pool does not know it.
const POOL: &str = pool_sql!("WHERE p.provider IS NULL");
const POOL_PHONE: &str = pool_sql!("WHERE p.id = ?1 AND p.provider IS NULL");

fn read_pool_phone(row: &Row<'_>) -> Result<PoolPhone, StoreError> {
    let Json(channels): Json<Vec<Channel>> = row.get(5)?;
    Ok(PoolPhone {
        number: row.get(1)?,
        host: row.get(2)?,
        epoch: row.get(10)?,
        journal: row.get(13)?,
        replaced_by: row.get(14)?,
        turns_ms: i64::MIN,
        daily_cap: row.get(15)?,
        in_service_ms: row.int(16)?,
        new_contacts: Vec::new(),
        lease_until_ms: row.get::<Option<i64>>(11)?.unwrap_or(0),
        handed_until_ms: row.get::<Option<i64>>(12)?.unwrap_or(i64::MAX),
        counted: (row.int(8)?, row.int(7)?),
        under_way: 0,
        oldest_offer_ms: None,
        candidate: Candidate {
            phone: row.get(0)?,
            exclusive_to: row.get(3)?,
            sandbox: row.get(17)?,
            sticky_ms: None,
            known: false,
            new_from_ms: i64::MAX,
            capped: true,
            online: false,
            ready: row.get(4)?,
            leased: false,
            channels,
            in_flight: u32::MAX,
            messages_today: 0,
            warming_priority: row.int(6)?,
            last_used_ms: row.get::<Option<i64>>(9)?.unwrap_or(0),
        },
    })
}

fn complete(
    tx: &mut Tx<'_>,
    phone: &mut PoolPhone,
    warms: bool,
    now: UnixMs,
) -> Result<(), StoreError> {
    let id = phone.candidate.phone.clone();
    (phone.under_way, phone.oldest_offer_ms) =
        tx.query_row(IN_FLIGHT, params![id, phone.journal], |row| Ok((row.get(0)?, row.get(1)?)))?;
    if warms {
        phone.new_contacts = new_contacts(tx, &id, now)?;
    }
    Ok(())
}

/// When a phone had its new contacts of the last 24 hours, ascending.
fn new_contacts(tx: &mut Tx<'_>, phone: &PhoneId, now: UnixMs) -> Result<Vec<i64>, StoreError> {
    tx.query(NEW_CONTACTS, params![phone, now.plus_ms(-DAY_MS)], |row| row.int(0))
}

const NEW_CONTACTS: &str = "SELECT since FROM phone_contacts WHERE counted = 1 AND phone_id = ?1 AND since > ?2 ORDER BY since";

/// A bridge answers an offer within milliseconds. One that has left an offer without an answer for so long counts as
/// having its hands full: its host may have frozen or lost its power, and all that is given to it until its lease is over
/// would be `unknown`.
const UNANSWERED_MS: i64 = 2_000;

/// The open attempts of a phone, and the oldest offer among them without an answer. What a bridge with another journal
/// had takes no place of the one that is there now.
const IN_FLIGHT: &str =
    "SELECT COUNT(*), MIN(CASE WHEN state = 'offered' THEN first_offered_at END) FROM attempts
     WHERE phone_id = ?1 AND state <> 'done' AND (journal IS NULL OR ?2 IS NULL OR journal = ?2)";

/// What a recipient is to a tenant and to the phones.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Relations {
    /// The phones that they have talked with for the tenant, and when last; the newest first.
    pub sticky: Vec<(PhoneId, i64)>,
    /// The tenant's messages to them since they last wrote to it.
    pub unanswered: u32,
    /// The phones that they have exchanged messages with, for any tenant.
    pub known: Vec<PhoneId>,
}

/// Phones that one person talks with are few; of more than this the oldest talks count for nothing.
const RELATIONS_MAX: usize = 256;

/// What a recipient is to a tenant and to the phones.
pub fn relations(
    tx: &mut Tx<'_>,
    (tenant, test): (&TenantId, bool),
    recipient: &Recipient,
) -> Result<Relations, StoreError> {
    let mut relations = Relations::default();
    // Sorted here: for few rows a sorter of SQLite's costs more than reading them.
    tx.query(RELATIONS, params![tenant, recipient, test], |row| {
        relations.sticky.push((row.get(0)?, row.int(1)?));
        relations.unanswered = relations.unanswered.saturating_add(row.get(2)?);
        Ok(())
    })?;
    relations.sticky.sort_by(|one, other| other.1.cmp(&one.1).then_with(|| one.0.cmp(&other.0)));
    relations.sticky.truncate(RELATIONS_MAX);
    relations.known = tx.query(
        "SELECT phone_id FROM phone_contacts WHERE recipient = ?1 LIMIT ?2",
        params![recipient, RELATIONS_MAX],
        |row| row.get(0),
    )?;
    Ok(relations)
}

const RELATIONS: &str =
    "SELECT b.phone_id, b.last_at, b.unanswered FROM bindings b CROSS JOIN phones p
     WHERE b.tenant_id = ?1 AND b.recipient = ?2 AND p.id = b.phone_id AND p.sandbox = ?3";

/// Notes that a recipient has written to a phone.
pub fn heard(
    tx: &mut Tx<'_>,
    (recipient, phone): (&Recipient, &PhoneId),
    now: UnixMs,
) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO phone_contacts (recipient, phone_id, since, counted, attempts, heard) VALUES (?1, ?2, ?3, 0, 0, 1)
         ON CONFLICT (recipient, phone_id) DO UPDATE SET heard = 1 WHERE phone_contacts.heard = 0",
        params![recipient, phone, now],
    )?;
    Ok(())
}

/// Notes that an attempt of this phone goes to a recipient. True for a new contact: the phone has not met them before.
fn contacted(
    tx: &mut Tx<'_>,
    (recipient, phone): (&Recipient, &PhoneId),
    now: UnixMs,
) -> Result<bool, StoreError> {
    let new = tx.execute(
        "INSERT INTO phone_contacts (recipient, phone_id, since, counted, attempts, heard) VALUES (?1, ?2, ?3, 1, 1, 0)
         ON CONFLICT (recipient, phone_id) DO NOTHING",
        params![recipient, phone, now],
    )?;
    if new > 0 {
        return Ok(true);
    }
    // One that counts and has a single attempt was made by this one.
    tx.query_row(
        "UPDATE phone_contacts SET attempts = attempts + 1 WHERE recipient = ?1 AND phone_id = ?2
         RETURNING counted = 1 AND attempts = 1",
        params![recipient, phone],
        |row| row.get(0),
    )
}

/// What a phone may do in a day.
#[derive(Debug, Clone, Copy)]
pub struct DayCap {
    /// Messages, where the phone has no cap of its own.
    pub daily: u32,
    /// Of them at one time.
    pub in_hand: u32,
}

/// Messages of a tenant that look at a place which became free: the first may wait for another phone.
const WAKE_FOR_A_PLACE: usize = 4;

/// Takes back what an attempt counted for that was provably never started: the phone's message of that day, the new
/// contact that it made, the message that went unanswered, its place in the conversation.
pub fn give_back(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    (message, attempt): (&MessageId, u32),
    (recipient, phone): (&Recipient, &PhoneId),
    (internal, cap): (bool, DayCap),
    now: UnixMs,
) -> Result<(), StoreError> {
    // While a phone was full, as many as it may have in hand can have been turned down together.
    let was_full = tx.query_opt(
        "UPDATE phones SET messages_today = messages_today - 1 WHERE id = ?1 AND messages_today > 0
             AND day = (SELECT first_offered_at / ?4 FROM attempts WHERE message_id = ?2 AND attempt = ?3)
         RETURNING provider IS NULL AND day = ?5 / ?4 AND messages_today + ?7 >= COALESCE(daily_cap, ?6)",
        params![phone, message, attempt, DAY_MS, now, cap.daily, cap.in_hand],
        |row| row.get(0),
    )?;
    if was_full == Some(true) {
        // Whoever found it full waits for midnight.
        wake_some(tx, Reason::NoPhoneAvailable, WAKE_FOR_A_PLACE, now)?;
    }
    // Another attempt to the same contact, made meanwhile, keeps the place, and from now on: it may be the younger one.
    tx.execute(
        "UPDATE phone_contacts SET attempts = attempts - 1,
             counted = CASE WHEN attempts > 1 THEN counted ELSE 0 END,
             since = CASE WHEN attempts > 1 AND counted = 1 THEN ?3 ELSE since END
         WHERE recipient = ?1 AND phone_id = ?2 AND attempts > 0",
        params![recipient, phone, now],
    )?;
    let free = tx.execute(
        "DELETE FROM phone_contacts WHERE recipient = ?1 AND phone_id = ?2 AND attempts = 0 AND heard = 0",
        params![recipient, phone],
    )?;
    if free > 0 {
        wake_warming(tx, 1, now)?;
    }
    if internal {
        return Ok(());
    }
    one_less_unanswered(tx, tenant, (recipient, phone))?;
    // What waits because too much went unanswered may go now.
    wake_for(tx, (tenant, recipient), Reason::Unanswered, now)?;
    unbind(tx, tenant, (message, attempt), (recipient, phone))
}

/// Takes an attempt that was never started out of what a tenant and a recipient have talked about on a phone. What they
/// have talked besides stands as before: a reply goes to whom it answers, and a STOP reaches who has written.
fn unbind(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    (message, attempt): (&MessageId, u32),
    (recipient, phone): (&Recipient, &PhoneId),
) -> Result<(), StoreError> {
    // Whether something else was sent is asked of the messages: a reply on any phone sets `unanswered` to 0 on all.
    let sent: Option<UnixMs> =
        tx.query_row(SENT_BESIDE, params![tenant, recipient, phone, message], |row| row.get(0))?;
    let heard: Option<UnixMs> = tx
        .query_opt(
            "SELECT last_inbound_at FROM bindings WHERE tenant_id = ?1 AND recipient = ?2 AND phone_id = ?3",
            params![tenant, recipient, phone],
            |row| row.get(0),
        )?
        .flatten();
    let Some(last) = sent.max(heard) else {
        tx.execute(
            "DELETE FROM bindings WHERE tenant_id = ?1 AND recipient = ?2 AND phone_id = ?3 AND unanswered = 0",
            params![tenant, recipient, phone],
        )?;
        return Ok(());
    };
    let direction = if heard == Some(last) { Direction::Inbound } else { Direction::Outbound };
    tx.execute(
        "UPDATE bindings SET last_at = ?6, last_direction = ?7
         WHERE tenant_id = ?1 AND recipient = ?2 AND phone_id = ?3 AND last_at = (
             SELECT first_offered_at FROM attempts WHERE message_id = ?4 AND attempt = ?5)",
        params![tenant, recipient, phone, message, attempt, last, direction],
    )?;
    Ok(())
}

/// When the newest message was handed over that a tenant has sent to a recipient on a phone, or may have sent, but for one.
const SENT_BESIDE: &str =
    "SELECT MAX(COALESCE(a.first_offered_at, a.offered_at)) FROM messages m JOIN attempts a ON a.message_id = m.id
     WHERE m.tenant_id = ?1 AND m.recipient = ?2 AND a.phone_id = ?3 AND m.id <> ?4
         AND m.status IN ('dispatching', 'sent', 'delivered', 'read', 'unknown')";

/// Of the messages that a recipient has not answered on a phone one was none.
pub fn one_less_unanswered(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    (recipient, phone): (&Recipient, &PhoneId),
) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE bindings SET unanswered = unanswered - 1
         WHERE tenant_id = ?1 AND recipient = ?2 AND phone_id = ?3 AND unanswered > 0",
        params![tenant, recipient, phone],
    )?;
    Ok(())
}

/// Notes that a tenant has written to a recipient on a phone after all, where that is not known any more.
pub fn bind_anew(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    (recipient, phone): (&Recipient, &PhoneId),
    at: UnixMs,
) -> Result<(), StoreError> {
    let bound = tx.query_opt(
        "SELECT 1 FROM bindings WHERE tenant_id = ?1 AND recipient = ?2 AND phone_id = ?3",
        params![tenant, recipient, phone],
        |row| row.int(0),
    )?;
    if bound.is_some() { Ok(()) } else { bind(tx, tenant, (recipient, phone), Talk::Ours, at) }
}

/// Who has said something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Talk {
    /// The recipient.
    Theirs,
    /// The tenant.
    Ours,
    /// The router, in the tenant's name: what it confirms asks for no answer.
    Confirmation,
}

impl Talk {
    const fn direction(self) -> Direction {
        match self {
            Self::Theirs => Direction::Inbound,
            Self::Ours | Self::Confirmation => Direction::Outbound,
        }
    }
}

/// Notes that a recipient and a phone have talked for a tenant. Somebody who writes is owed an answer: what waits for
/// that is due.
pub fn bind(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    (recipient, phone): (&Recipient, &PhoneId),
    talk: Talk,
    at: UnixMs,
) -> Result<(), StoreError> {
    let direction = talk.direction();
    let inbound = (direction == Direction::Inbound).then_some(at);
    tx.execute(
        "INSERT INTO bindings (tenant_id, recipient, phone_id, last_at, last_direction, last_inbound_at, unanswered)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
         ON CONFLICT (recipient, phone_id, tenant_id) DO UPDATE SET
             last_at = CASE WHEN excluded.last_at >= bindings.last_at
                            THEN excluded.last_at ELSE bindings.last_at END,
             last_direction = CASE WHEN excluded.last_at >= bindings.last_at
                                   THEN excluded.last_direction ELSE bindings.last_direction END,
             last_inbound_at = CASE
                 WHEN bindings.last_inbound_at IS NULL OR excluded.last_inbound_at > bindings.last_inbound_at
                 THEN COALESCE(excluded.last_inbound_at, bindings.last_inbound_at)
                 ELSE bindings.last_inbound_at END,
             unanswered = bindings.unanswered + excluded.unanswered",
        params![
            tenant,
            recipient,
            phone,
            at,
            direction,
            inbound,
            talk == Talk::Ours
        ],
    )?;
    if talk == Talk::Theirs {
        let answered = tx.execute(
            "UPDATE bindings SET unanswered = 0 WHERE tenant_id = ?1 AND recipient = ?2 AND unanswered > 0
                 AND EXISTS (SELECT 1 FROM phones p JOIN phones here ON here.sandbox = p.sandbox
                             WHERE p.id = bindings.phone_id AND here.id = ?3)",
            params![tenant, recipient, phone],
        )?;
        if answered > 0 {
            wake_for(tx, (tenant, recipient), Reason::Unanswered, at)?;
        }
    }
    Ok(())
}

/// What a message waits for by its job, or `otherwise` where it has none.
pub fn waits_for(
    tx: &mut Tx<'_>,
    (tenant, id): (&TenantId, &MessageId),
    otherwise: Option<Reason>,
) -> Result<Option<Reason>, StoreError> {
    let of_job = tx.query_opt(
        "SELECT held_reason FROM jobs WHERE message_id = ?1 AND tenant_id = ?2",
        params![id, tenant],
        |row| row.get(0),
    )?;
    Ok(of_job.unwrap_or(otherwise))
}

/// What a tenant's messages to one recipient wait for may have changed: those held for `reason` are looked at again.
pub fn wake_for(
    tx: &mut Tx<'_>,
    (tenant, recipient): (&TenantId, &Recipient),
    reason: Reason,
    now: UnixMs,
) -> Result<(), StoreError> {
    tx.execute(WAKE_FOR, params![tenant, recipient, now, reason])?;
    Ok(())
}

const WAKE_FOR: &str =
    "UPDATE jobs SET run_at = ?3, held_reason = NULL WHERE held_reason = ?4 AND message_id IN (
         SELECT id FROM messages WHERE tenant_id = ?1 AND recipient = ?2 AND on_the_way = 1
             AND status IN ('queued', 'scheduled', 'dispatching') AND kind = 'tenant')";

/// An attempt as it is handed to a phone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewAttempt<'a> {
    /// Its number, from 1.
    pub attempt: u32,
    /// The phone.
    pub phone: &'a PhoneId,
    /// The epoch of the phone's lease.
    pub epoch: u64,
    /// The journal that the phone's bridge has now.
    pub journal: Option<&'a str>,
    /// Channels in the order to try.
    pub route: &'a [Channel],
    /// Not to be started after.
    pub start_before: UnixMs,
    /// How many steps the message's story has before.
    pub sequence: u64,
    /// It is a confirmation of ours.
    pub internal: bool,
}

/// Writes down that a message goes to a phone: attempt, counters, binding, step; its job is done with. True when the
/// recipient is a new contact of the phone.
pub fn dispatched(
    tx: &mut Tx<'_>,
    (tenant, id): (&TenantId, &MessageId),
    recipient: &Recipient,
    new: &NewAttempt<'_>,
    now: UnixMs,
) -> Result<bool, StoreError> {
    tx.execute(
        "INSERT INTO attempts
             (message_id, attempt, tenant_id, phone_id, epoch, state, route, offered_at, start_before, journal,
              first_offered_at)
         VALUES (?1, ?2, ?3, ?4, ?5, 'offered', ?6, ?7, ?8, ?9, ?7)",
        params![
            id,
            new.attempt,
            tenant,
            new.phone,
            new.epoch,
            Json(new.route),
            now,
            new.start_before,
            new.journal
        ],
    )?;
    tx.execute(
        "UPDATE phones SET messages_today = CASE WHEN day = ?2 THEN messages_today + 1 ELSE 1 END, day = ?2,
             last_used_at = ?3 WHERE id = ?1",
        params![new.phone, now.0.div_euclid(DAY_MS), now],
    )?;
    let new_contact = contacted(tx, (recipient, new.phone), now)?;
    let talk = if new.internal { Talk::Confirmation } else { Talk::Ours };
    bind(tx, tenant, (recipient, new.phone), talk, now)?;
    // As [`change::make`] would, in one statement: it happens to every message, and what it was before is known.
    let sequence = new.sequence.saturating_add(1);
    let changed = tx.execute(
        "UPDATE messages SET attempts = ?3, phone_id = ?4, status = ?5, reason = NULL, detail = NULL, held_reason = NULL,
             next_at = NULL, sequence = ?7, updated_at = ?6, room = zeroblob(56)
         WHERE id = ?1 AND tenant_id = ?2 AND status IN ('queued', 'scheduled')",
        params![id, tenant, new.attempt, new.phone, Status::Dispatching, now, sequence],
    )?;
    if changed == 0 {
        return Err(StoreError::NoRow);
    }
    let step = NewEvent {
        phone: Some(new.phone),
        attempt: Some(new.attempt),
        ..NewEvent::new(Status::Dispatching.as_str(), now)
    };
    events::insert(tx, (tenant, id), sequence, &[step])?;
    drop_job(tx, tenant, id)?;
    Ok(new_contact)
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
             class_rank = excluded.class_rank, ready = 0, claims = 0",
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
    /// The host that has it to answer.
    pub host: Option<HostId>,
    /// The host serves the phone no more: it is to answer under this epoch of the lease, and to start nothing.
    pub released: Option<u64>,
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
    /// Files that go with it.
    pub media: Vec<Media>,
    /// How urgent.
    pub class: Class,
}

/// Whether the bridge that is there now is the one that the attempt was given to. Another one, with a new file or on
/// another host, does not know what the first has sent: it must not be asked to send it. Nor must one whose journal is
/// not known yet, as after an enrolment: it is another one until it says that it is not.
const SAME_JOURNAL: &str =
    "(a.journal IS NULL OR (p.journal IS NOT NULL AND a.journal = p.journal))";

/// The host that answers for an attempt: the serving one, or the one that has served the phone before and still has the
/// journal that the attempt was given to. Nobody, when that journal is gone.
const ANSWERS: &str = "CASE WHEN a.journal IS NULL OR (p.journal IS NOT NULL AND a.journal = p.journal) THEN p.host_id \
     ELSE (SELECT o.host_id FROM phone_hosts o WHERE o.phone_id = a.phone_id AND o.journal = a.journal LIMIT 1) END";

fn offer_sql() -> String {
    format!(
        "SELECT a.message_id, a.tenant_id, a.attempt, a.phone_id, {ANSWERS}, a.epoch, a.route, a.start_before,
             m.recipient, m.text, m.class,
             CASE WHEN {SAME_JOURNAL} THEN NULL ELSE (SELECT epoch FROM leases WHERE phone_id = a.phone_id) END,
             m.media
         FROM attempts a JOIN messages m ON m.id = a.message_id JOIN phones p ON p.id = a.phone_id"
    )
}

fn offer(row: &Row<'_>) -> Result<Offer, StoreError> {
    let Json(route): Json<Vec<Channel>> = row.get(6)?;
    let media: Option<Json<Vec<Media>>> = row.get(12)?;
    Ok(Offer {
        media: media.map(|json| json.0).unwrap_or_default(),
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
        released: row.get(11)?,
    })
}

/// The attempts of a phone without an answer that were last offered at or before `offered_until`, oldest first; they
/// count as offered at `now`. What is wanted back is not among them.
pub fn offer_again(
    tx: &mut Tx<'_>,
    phone: &PhoneId,
    offered_until: UnixMs,
    now: UnixMs,
    limit: usize,
) -> Result<Vec<Offer>, StoreError> {
    let offers = tx.query(&offer_again_sql(), params![phone, offered_until, limit], offer)?;
    for one in &offers {
        tx.execute(
            "UPDATE attempts SET offered_at = ?3 WHERE message_id = ?1 AND attempt = ?2",
            params![one.message, one.attempt, now],
        )?;
    }
    Ok(offers)
}

/// The condition of the index of what is open, word for word, and then what is asked: SQLite does not see that the one follows
/// from the other.
pub(super) const OFFERED: &str = "a.state <> 'done' AND a.state = 'offered'";

fn offer_again_sql() -> String {
    format!(
        "{} WHERE a.phone_id = ?1 AND {OFFERED} AND a.offered_at <= ?2
             AND m.cancel_asked = 0 AND {ANSWERS} IS NOT NULL
         ORDER BY a.offered_at LIMIT ?3",
        offer_sql()
    )
}

/// The phones that have attempts without an answer, last offered at or before `offered_until`, and the hosts to ask.
pub fn unanswered_phones(
    tx: &mut Tx<'_>,
    offered_until: UnixMs,
) -> Result<Vec<(PhoneId, Option<HostId>)>, StoreError> {
    tx.query(
        &format!(
            "SELECT DISTINCT a.phone_id, {ANSWERS} FROM attempts a JOIN phones p ON p.id = a.phone_id
             WHERE {OFFERED} AND a.offered_at <= ?1"
        ),
        params![offered_until],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )
}

/// A host that serves a phone no more and has something of it in hand.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Former {
    /// The host.
    pub host: HostId,
    /// The phone.
    pub phone: PhoneId,
    /// The epoch of the phone's lease.
    pub epoch: u64,
}

/// The hosts that have taken attempts for a phone which another host serves now, last asked for them at or before
/// `asked_until`; they count as asked at `now`. Such a host can start none of them and has to give them back, so that the
/// other one can send them: a bridge that was down at the hand-over has not heard of it. At most `limit` attempts.
pub fn former_hosts(
    tx: &mut Tx<'_>,
    asked_until: UnixMs,
    now: UnixMs,
    limit: usize,
) -> Result<std::collections::BTreeSet<Former>, StoreError> {
    let taken = tx.query(FORMER_HOSTS, params![asked_until, limit], |row| {
        let former = Former { host: row.get(2)?, phone: row.get(3)?, epoch: row.get(4)? };
        Ok((row.get::<MessageId>(0)?, row.get::<u32>(1)?, former))
    })?;
    for (message, attempt, _) in &taken {
        tx.execute(
            "UPDATE attempts SET offered_at = ?3 WHERE message_id = ?1 AND attempt = ?2",
            params![message, attempt, now],
        )?;
    }
    Ok(taken.into_iter().map(|(_, _, former)| former).collect())
}

const FORMER_HOSTS: &str = "SELECT a.message_id, a.attempt, o.host_id, a.phone_id, l.epoch
     FROM attempts a JOIN phones p ON p.id = a.phone_id
     JOIN phone_hosts o ON o.phone_id = a.phone_id AND o.journal = a.journal AND o.host_id <> p.host_id
     JOIN leases l ON l.phone_id = a.phone_id
     WHERE a.state <> 'done' AND a.state = 'accepted' AND a.offered_at <= ?1
         AND (p.journal IS NULL OR a.journal <> p.journal) LIMIT ?2";

/// An attempt that a phone has, without what it was given: enough to take it back or to give it up, and readable
/// whatever became of the message's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// Which message.
    pub message: MessageId,
    /// Whose.
    pub tenant: TenantId,
    /// Which attempt.
    pub attempt: u32,
    /// The phone.
    pub phone: PhoneId,
    /// The host that has it to answer.
    pub host: Option<HostId>,
    /// Under which epoch.
    pub epoch: u64,
}

fn given_sql() -> String {
    format!(
        "SELECT a.message_id, a.tenant_id, a.attempt, a.phone_id, {ANSWERS}, a.epoch
         FROM attempts a JOIN phones p ON p.id = a.phone_id"
    )
}

fn given(row: &Row<'_>) -> Result<Given, StoreError> {
    Ok(Given {
        message: row.get(0)?,
        tenant: row.get(1)?,
        attempt: row.get(2)?,
        phone: row.get(3)?,
        host: row.get(4)?,
        epoch: row.get(5)?,
    })
}

/// The open attempts of a message.
pub fn open_attempts(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    id: &MessageId,
) -> Result<Vec<Given>, StoreError> {
    tx.query(&open_attempts_sql(), params![id, tenant], given)
}

fn open_attempts_sql() -> String {
    format!("{} WHERE a.message_id = ?1 AND a.tenant_id = ?2 AND a.state <> 'done'", given_sql())
}

/// Wants a message back from every phone that has it: they are asked until they answer, and not offered it again.
/// `reason` is the rule that forbids it, where one does.
pub fn want_back(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    id: &MessageId,
    reason: Option<Reason>,
) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE messages SET cancel_asked = 1, recall_reason = COALESCE(?3, recall_reason) WHERE id = ?1 AND tenant_id = ?2",
        params![id, tenant, reason],
    )?;
    Ok(())
}

/// Open attempts of messages that are wanted back, last asked for at or before `asked_until`, the longest unasked
/// first; they count as asked for at `now`. Of one phone or of all. At most `limit`.
pub fn recalls(
    tx: &mut Tx<'_>,
    phone: Option<&PhoneId>,
    asked_until: UnixMs,
    now: UnixMs,
    limit: usize,
) -> Result<Vec<Given>, StoreError> {
    let recalls =
        tx.query(&recalls_sql(phone.is_some()), params![asked_until, limit, phone], given)?;
    for one in &recalls {
        tx.execute(
            "UPDATE attempts SET offered_at = ?3 WHERE message_id = ?1 AND attempt = ?2",
            params![one.message, one.attempt, now],
        )?;
    }
    Ok(recalls)
}

fn recalls_sql(one_phone: bool) -> String {
    let of_phone = if one_phone { "a.phone_id = ?3" } else { "?3 IS NULL" };
    format!(
        "{} JOIN messages m ON m.id = a.message_id
         WHERE a.state <> 'done' AND {of_phone} AND a.offered_at <= ?1 AND m.cancel_asked <> 0
             AND {ANSWERS} IS NOT NULL
         ORDER BY a.offered_at LIMIT ?2",
        given_sql()
    )
}

/// Open attempts that should have been started before `before` and about which nothing final was heard.
pub fn lost(tx: &mut Tx<'_>, before: UnixMs, limit: usize) -> Result<Vec<Given>, StoreError> {
    tx.query(&lost_sql(), params![before, limit], given)
}

fn lost_sql() -> String {
    // What a provider has is settled by its reports and by looking it up.
    format!(
        "{} WHERE a.state <> 'done' AND a.start_before < ?1 AND p.provider IS NULL LIMIT ?2",
        given_sql()
    )
}

/// Nobody knows what the host did with it: `unknown`, and never sent again by us. An answer that comes later still counts.
pub fn host_lost(tx: &mut Tx<'_>, given: &Given, now: UnixMs) -> Result<(), StoreError> {
    // It may have been answered since it was looked up.
    if attempt(tx, &given.message, given.attempt)?.is_none_or(|row| row.state == "done") {
        return Ok(());
    }
    set_attempt_state(tx, &given.message, given.attempt, "done", now)?;
    let unknown = Change {
        phone: Some(&given.phone),
        attempt: Some(given.attempt),
        reason: Some(Reason::HostLost),
        ..Change::to(Status::Unknown, now)
    };
    change::make(tx, &given.tenant, &given.message, &unknown)?;
    drop_job(tx, &given.tenant, &given.message)
}

/// Open attempts of a phone that were given to another bridge than the one that it has now.
pub fn of_other_journals(tx: &mut Tx<'_>, phone: &PhoneId) -> Result<Vec<Given>, StoreError> {
    tx.query(&of_other_journals_sql(), params![phone], given)
}

fn of_other_journals_sql() -> String {
    format!(
        "{} WHERE a.phone_id = ?1 AND a.state <> 'done'
             AND (a.journal IS NULL OR p.journal IS NULL OR a.journal <> p.journal)",
        given_sql()
    )
}

/// An attempt, as an answer to it is judged by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptRow {
    /// Whose.
    pub tenant: TenantId,
    /// The phone that it was given to.
    pub phone: PhoneId,
    /// The journal that the phone's bridge had then.
    pub journal: Option<String>,
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
        "SELECT tenant_id, phone_id, state, journal FROM attempts WHERE message_id = ?1 AND attempt = ?2",
        params![message, attempt],
        |row| {
            Ok(AttemptRow {
                tenant: row.get(0)?,
                phone: row.get(1)?,
                state: row.text(2)?,
                journal: row.opt_text(3)?,
            })
        },
    )
}

/// Takes over an attempt that a phone speaks of and the store does not know: the store was restored from a copy made
/// before. The phone's journal is the witness, and the message must not be sent again. `None` when there is no such
/// message, or it has a newer attempt of its own.
pub fn adopt(
    tx: &mut Tx<'_>,
    message: &MessageId,
    attempt: u32,
    (phone, journal, epoch): (&PhoneId, &str, u64),
    now: UnixMs,
) -> Result<Option<AttemptRow>, StoreError> {
    let found = tx.query_opt(
        "SELECT tenant_id, status FROM messages WHERE id = ?1 AND direction = 'outbound' AND attempts < ?2",
        params![message, attempt],
        |row| Ok((row.get::<TenantId>(0)?, row.get::<Status>(1)?)),
    )?;
    let Some((tenant, status)) = found else { return Ok(None) };
    tx.execute(
        "INSERT INTO attempts
             (message_id, attempt, tenant_id, phone_id, epoch, state, route, offered_at, start_before, journal)
         VALUES (?1, ?2, ?3, ?4, ?5, 'accepted', '[]', ?6, ?6, ?7)",
        params![message, attempt, tenant, phone, epoch, now, journal],
    )?;
    tx.execute(
        "UPDATE messages SET attempts = ?3 WHERE id = ?1 AND tenant_id = ?2",
        params![message, tenant, attempt],
    )?;
    if matches!(status, Status::Queued | Status::Scheduled) {
        let step = Change {
            phone: Some(phone),
            attempt: Some(attempt),
            tell: false,
            ..Change::to(Status::Dispatching, now)
        };
        change::make(tx, &tenant, message, &step)?;
        drop_job(tx, &tenant, message)?;
    }
    let (phone, journal) = (phone.clone(), Some(journal.to_owned()));
    Ok(Some(AttemptRow { tenant, phone, journal, state: "accepted".to_owned() }))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{contacts, doubts, in_memory, inbound, providers, rules, webhook_jobs};

    /// What stands in the store grows; what a message costs must not.
    #[test]
    fn no_hot_query_reads_what_is_over() {
        let offers = offer_again_sql();
        let (one, all) = (recalls_sql(true), recalls_sql(false));
        let (lost, open) = (lost_sql(), open_attempts_sql());
        let (of_others, ordered) = (of_other_journals_sql(), providers::offered_sql());
        let connection = in_memory::open();
        for (sql, index) in [
            (OVERDUE, "messages_expiring (expires_at<?)"),
            (NEW_CONTACTS, "phone_contacts_counted (phone_id=? AND since>?)"),
            (WAKE_FOR, "messages_by_recipient (tenant_id=? AND recipient=? AND on_the_way=?)"),
            (WAKE_HELD, "jobs_held (held_reason=? AND message_id>?)"),
            (WAKE_SOME, "jobs_held_of (held_reason=? AND tenant_id>?)"),
            (WAKE_SOME, "jobs_held_of (held_reason=? AND tenant_id=?)"),
            (rules::LOOK_AGAIN, "jobs_held_of (held_reason=? AND tenant_id=? AND message_id>?)"),
            (offers.as_str(), "attempts_open (phone_id=? AND state=? AND offered_at<?)"),
            (one.as_str(), "attempts_open (phone_id=?)"),
            (all.as_str(), "attempts_open"),
            (lost.as_str(), "attempts_open"),
            (open.as_str(), "(message_id=?)"),
            (of_others.as_str(), "attempts_open (phone_id=?)"),
            (FORMER_HOSTS, "attempts_open"),
            (doubts::LIST, "messages_unknown (updated_at>?)"),
            (doubts::TWINS, "messages_by_recipient (tenant_id=? AND recipient=?)"),
            (SENT_BESIDE, "messages_by_recipient (tenant_id=? AND recipient=?)"),
            (IN_FLIGHT, "attempts_open (phone_id=?)"),
            (providers::WAITING, "attempts_open (phone_id=? AND state=?)"),
            (ordered.as_str(), "attempts_open (phone_id=? AND state=?)"),
            (
                inbound::ON_THE_WAY,
                "messages_by_recipient (tenant_id=? AND recipient=? AND on_the_way=?)",
            ),
            (rules::KNOWN, "USING PRIMARY KEY (recipient=?)"),
            (rules::OF_PERSON, "contacts_by_person (tenant_id=? AND test=? AND person=?)"),
            (contacts::OTHERS, "contacts_by_person (tenant_id=? AND test=? AND person=?)"),
            (inbound::TALKED_WITH, "PRIMARY KEY (recipient=? AND phone_id=?)"),
            (inbound::TALKED_AS_OTHERS, "contacts_linked (recipient=?)"),
            (inbound::TALKED_AS_OTHERS, "contacts_by_person (tenant_id=? AND test=? AND person=?)"),
            (inbound::TALKED_AS_OTHERS, "PRIMARY KEY (recipient=? AND phone_id=? AND tenant_id=?)"),
            (inbound::ACQUAINTED, "PRIMARY KEY (recipient=?)"),
            (inbound::ACQUAINTED, "contacts_linked (recipient=?)"),
            (inbound::TWIN, "messages_by_recipient (tenant_id=? AND recipient=? AND on_the_way=?)"),
            (inbound::BY_GUID, "messages_by_phone_guid (phone_id=? AND guid=?)"),
            (inbound::RECEIVED_AS, "messages_by_phone_guid (phone_id=? AND guid=?)"),
            (inbound::CAME_IN, "messages_by_phone_guid (phone_id=? AND guid=?)"),
            (webhook_jobs::WAITING, "webhook_jobs_due_by_endpoint"),
            (webhook_jobs::NEXT, "webhook_jobs_due_by_endpoint (endpoint_id=? AND run_at>?)"),
            (webhook_jobs::FAIL_PENDING, "webhook_jobs_due_by_endpoint (endpoint_id=?)"),
        ] {
            let plan = in_memory::plan(&connection, sql);
            assert!(plan.contains(index), "{sql}: {plan}");
            for scan in plan.split("; ").filter(|step| step.starts_with("SCAN")) {
                // Indexes of what is open alone, and the recursion's own rows, may be read from end to end.
                let small = ["attempts_open", "waiting", "CONSTANT ROW", "newest", "counted"];
                assert!(small.iter().any(|name| scan.contains(name)), "{sql}: {plan}");
            }
        }
    }
}
