//! Quota and credit: reserved when messages are accepted, given back when they were never begun.
//!
//! [`reserve`] decides in one conditional UPDATE, so that no two callers can be given the same last message. What a message
//! was charged is a row of `charges`, which [`give_back`] deletes: nothing is given back twice.

use protocol::api::{QuotaWarning, WebhookData};
use protocol::{ChannelChoice, Class, MessageId, TenantId, UnixMs};

use super::usage::{Numbers, Place};
use super::{StoreError, Tx, webhook_jobs};
use crate::billing::{self, Day, Month, Refusal, Standing, Terms};
use crate::params;

/// What messages cost whom, reserved already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    charge: Option<Charge>,
}

/// What each message of a reservation costs.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Charge {
    payer: TenantId,
    month: Month,
    price: u32,
}

impl Reservation {
    /// Nothing is reserved: test keys, and messages of our own.
    pub const FREE: Self = Self { charge: None };

    /// Credits that each message costs.
    pub fn price(&self) -> u32 {
        self.charge.as_ref().map_or(0, |charge| charge.price)
    }
}

/// Reserves quota and credit of whoever pays for `tenant`, for so many messages at once or for none of them.
///
/// A tenant without limits costs one look-up and no write. What is reserved belongs to messages that are accepted with it in
/// the same transaction ([`super::messages::accept`]), or is given back by [`release`].
pub fn reserve(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    units: u32,
    now: UnixMs,
) -> Result<Result<Reservation, Refusal>, StoreError> {
    let payer: Option<TenantId> = tx.query_opt(PAYER, params![tenant], |row| row.get(0))?;
    let Some(payer) = payer else { return Ok(Ok(Reservation::FREE)) };
    let month = Month::of(now);
    let taken = tx.query_opt(RESERVE, params![payer, month.number(), units], |row| {
        let quota: Option<u64> = row.get(1)?;
        Ok((row.get::<u64>(0)?, quota, row.get(2)?, row.get::<u32>(3)?, row.int(4)?))
    })?;
    let Some((used, quota, price, warned, month)) = taken else {
        return refused(tx, &payer, units, month).map(Err);
    };
    let month = month_of(month)?;
    if let Some(quota) = quota {
        for percent in billing::warnings(quota, used, warned) {
            warn(tx, &payer, (percent, quota, used), month, now)?;
        }
    }
    Ok(Ok(Reservation { charge: Some(Charge { payer, month, price }) }))
}

/// Who pays, where anything is to be paid or counted.
const PAYER: &str = "SELECT p.tenant_id FROM billing_accounts a
     JOIN billing_accounts p ON p.tenant_id = COALESCE(a.payer_id, a.tenant_id)
     WHERE a.tenant_id = ?1 AND (p.quota IS NOT NULL OR p.price > 0)";

/// A clock that steps back over the end of a month goes on with the newer one: no quota is given twice.
const RESERVE: &str = "UPDATE billing_accounts SET
         used = CASE WHEN month >= ?2 THEN used ELSE 0 END + ?3,
         warned = CASE WHEN month >= ?2 THEN warned ELSE 0 END,
         month = CASE WHEN month >= ?2 THEN month ELSE ?2 END,
         credit = credit - price * ?3
     WHERE tenant_id = ?1
         AND (quota IS NULL OR CASE WHEN month >= ?2 THEN used ELSE 0 END + ?3 <= quota)
         AND (price = 0 OR credit >= price * ?3)
     RETURNING used, quota, price, warned, month";

fn month_of(number: i64) -> Result<Month, StoreError> {
    Month::from_number(number).ok_or_else(|| StoreError::Corrupt(format!("{number} is no month")))
}

/// Why one more message of a tenant would be refused; reserves nothing.
pub fn would_refuse(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    now: UnixMs,
) -> Result<Option<Refusal>, StoreError> {
    let payer: Option<TenantId> = tx.query_opt(PAYER, params![tenant], |row| row.get(0))?;
    let Some(payer) = payer else { return Ok(None) };
    let (standing, month) = standing(tx, &payer, Month::of(now))?;
    Ok(billing::refusal(&standing, 1, month))
}

/// How whoever pays stands in a month, or in the newer one that an account has seen.
fn standing(
    tx: &mut Tx<'_>,
    payer: &TenantId,
    month: Month,
) -> Result<(Standing, Month), StoreError> {
    tx.query_row(
        "SELECT quota, price, CASE WHEN month >= ?2 THEN used ELSE 0 END, credit,
             CASE WHEN month >= ?2 THEN month ELSE ?2 END
         FROM billing_accounts WHERE tenant_id = ?1",
        params![payer, month.number()],
        |row| {
            let terms = Terms { quota: row.get(0)?, price: row.get(1)? };
            let standing = Standing { terms, used: row.get(2)?, credit: row.int(3)? };
            Ok((standing, month_of(row.int(4)?)?))
        },
    )
}

/// Says why nothing was reserved.
fn refused(
    tx: &mut Tx<'_>,
    payer: &TenantId,
    units: u32,
    month: Month,
) -> Result<Refusal, StoreError> {
    let (standing, month) = standing(tx, payer, month)?;
    let refusal = billing::refusal(&standing, u64::from(units), month);
    let reason = match refusal {
        Some(Refusal::InsufficientCredit { .. }) => "insufficient_credit",
        Some(Refusal::QuotaExceeded { .. }) | None => "quota_exceeded",
    };
    metrics::counter!("switchboard_reservations_refused_total", "reason" => reason).increment(1);
    // The statement that refused and this one read the same row in the same transaction.
    refusal.ok_or(StoreError::NoRow)
}

/// Tells who pays, once a month, that so much of the quota is used.
fn warn(
    tx: &mut Tx<'_>,
    payer: &TenantId,
    (percent, quota, used): (u32, u64, u64),
    month: Month,
    now: UnixMs,
) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE billing_accounts SET warned = ?2 WHERE tenant_id = ?1",
        params![payer, percent],
    )?;
    let warning =
        QuotaWarning { percent, used, quota, month: month.to_string(), resets_at: month.ends_at() };
    let data =
        WebhookData { tenant: Some(payer.clone()), quota: Some(warning), ..WebhookData::default() };
    webhook_jobs::enqueue(tx, (payer, false), "usage.quota_warning", &data, now)?;
    let percent = percent.to_string();
    metrics::counter!("switchboard_quota_warnings_total", "percent" => percent).increment(1);
    Ok(())
}

/// Tells what there is to tell of a quota that is new: it may be smaller than what is used already.
pub(super) fn warn_of_new_quota(
    tx: &mut Tx<'_>,
    payer: &TenantId,
    now: UnixMs,
) -> Result<(), StoreError> {
    let standing = tx.query_opt(
        "SELECT quota, used, warned, month FROM billing_accounts
         WHERE tenant_id = ?1 AND payer_id IS NULL AND quota IS NOT NULL AND used > 0 AND month >= ?2",
        params![payer, Month::of(now).number()],
        |row| Ok((row.get::<u64>(0)?, row.get::<u64>(1)?, row.get(2)?, month_of(row.int(3)?)?)),
    )?;
    let Some((quota, used, warned, month)) = standing else { return Ok(()) };
    for percent in billing::warnings(quota, used, warned) {
        warn(tx, payer, (percent, quota, used), month, now)?;
    }
    Ok(())
}

/// Gives back what was reserved for messages that are not accepted after all.
pub fn release(
    tx: &mut Tx<'_>,
    reservation: &Reservation,
    units: u32,
    now: UnixMs,
) -> Result<(), StoreError> {
    let Some(charge) = &reservation.charge else { return Ok(()) };
    let credits = i64::from(charge.price).saturating_mul(i64::from(units));
    refund(tx, &charge.payer, (charge.month, i64::from(units)), credits, now)
}

fn refund(
    tx: &mut Tx<'_>,
    payer: &TenantId,
    (month, units): (Month, i64),
    credits: i64,
    now: UnixMs,
) -> Result<(), StoreError> {
    // A month that is over has no quota to give back to.
    tx.execute(
        "UPDATE billing_accounts SET credit = credit + ?2,
             used = CASE WHEN month = ?3 AND used >= ?4 THEN used - ?4 ELSE used END, updated_at = ?5
         WHERE tenant_id = ?1",
        params![payer, credits, month.number(), units, now],
    )?;
    Ok(())
}

/// Counts an accepted message and writes down what it was charged.
pub(super) fn accepted(
    tx: &mut Tx<'_>,
    (tenant, id): (&TenantId, &MessageId),
    (class, channel): (Class, ChannelChoice),
    segments: u32,
    reservation: &Reservation,
    now: UnixMs,
) -> Result<(), StoreError> {
    if let Some(charge) = &reservation.charge {
        tx.execute(
            "INSERT INTO charges (message_id, tenant_id, payer_id, month, credits) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![id, tenant, charge.payer, charge.month.number(), charge.price],
        )?;
    }
    let numbers = Numbers {
        accepted: 1,
        segments: u64::from(segments),
        credits: u64::from(reservation.price()),
        ..Numbers::default()
    };
    let place = Place { tenant: tenant.clone(), day: Day::of(now), class, channel };
    tx.counts().add(place, numbers);
    Ok(())
}

/// A message of a tenant has ended without being sent: what it was charged is given back, unless a phone has begun to send
/// it. Call it in the transaction that ends the message; again, it does nothing, where `again` says so of a message that
/// had ended before.
///
/// One that nothing was charged for is counted as returned, too: what counts against a quota that comes later is what was
/// accepted and is not.
pub fn give_back(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    (id, again): (&MessageId, bool),
    now: UnixMs,
) -> Result<(), StoreError> {
    let given = tx.query_opt(GIVE_BACK, params![id, tenant], |row| {
        Ok((row.get::<TenantId>(0)?, month_of(row.int(1)?)?, row.get::<u64>(2)?))
    })?;
    let credits = match given {
        Some((payer, month, credits)) => {
            let amount = i64::try_from(credits).unwrap_or(i64::MAX);
            refund(tx, &payer, (month, 1), amount, now)?;
            credits
        }
        None if again => return Ok(()),
        None => {
            let settled = tx.query_opt(SETTLED, params![id, tenant], |row| row.int(0))?;
            if settled.is_some() {
                return Ok(());
            }
            0
        }
    };
    let of = tx.query_opt(
        "SELECT class, channel_asked FROM messages WHERE id = ?1 AND tenant_id = ?2",
        params![id, tenant],
        |row| Ok((row.get(0)?, row.get(1)?)),
    );
    let (class, channel) = match of {
        Ok(found) => found.unwrap_or((Class::Marketing, ChannelChoice::Auto)),
        Err(error) if error.is_unavailable() => return Err(error),
        // A row that cannot be read is ended all the same, and its money is given back.
        Err(_damaged) => (Class::Marketing, ChannelChoice::Auto),
    };
    let numbers = Numbers { returned: 1, credits_returned: credits, ..Numbers::default() };
    let place = Place { tenant: tenant.clone(), day: Day::of(now), class, channel };
    tx.counts().add(place, numbers);
    Ok(())
}

/// Whether a message was charged something that was not given back.
pub(super) fn is_charged(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    id: &MessageId,
) -> Result<bool, StoreError> {
    let found = tx.query_opt(
        "SELECT 1 FROM charges WHERE message_id = ?1 AND tenant_id = ?2",
        params![id, tenant],
        |row| row.int(0),
    )?;
    Ok(found.is_some())
}

/// Lets what one message was charged pay for another one in its place. What a phone had begun of the first is not given back
/// for the second either.
pub(super) fn carry_over(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    (from, to): (&MessageId, &MessageId),
) -> Result<(), StoreError> {
    tx.execute(CARRY_OVER, params![from, tenant, to])?;
    Ok(())
}

/// The steps of a story that say that a phone or a provider has begun: what has one of them is paid for.
macro_rules! begun {
    () => {
        "('started', 'fallback', 'sent', 'delivered', 'read')"
    };
}
pub(super) use begun;

const CARRY_OVER: &str = concat!(
    "UPDATE charges SET message_id = ?3, begun = CASE WHEN begun = 1 OR EXISTS (
         SELECT 1 FROM message_events e WHERE e.message_id = ?1 AND e.tenant_id = ?2 AND e.type IN ",
    begun!(),
    ") THEN 1 ELSE 0 END WHERE message_id = ?1 AND tenant_id = ?2"
);

/// What a phone says before it hands a message to Messages is `started`; what it was never heard to say of a message that
/// has ended as not sent, it has not done.
const GIVE_BACK: &str = concat!(
    "DELETE FROM charges WHERE message_id = ?1 AND tenant_id = ?2 AND begun = 0 AND NOT EXISTS (
         SELECT 1 FROM message_events e WHERE e.message_id = ?1 AND e.tenant_id = ?2 AND e.type IN ",
    begun!(),
    ") RETURNING payer_id, month, credits"
);

/// A message that was charged, that a phone or a provider has begun, or that was not counted when it was accepted.
const SETTLED: &str = concat!(
    "SELECT 1 WHERE EXISTS (SELECT 1 FROM charges WHERE message_id = ?1 AND tenant_id = ?2)
         OR EXISTS (SELECT 1 FROM messages m WHERE m.id = ?1 AND m.tenant_id = ?2 AND (m.test = 1 OR m.kind = 'confirmation'))
         OR EXISTS (SELECT 1 FROM message_events e WHERE e.message_id = ?1 AND e.tenant_id = ?2 AND e.type IN ",
    begun!(),
    ")"
);
