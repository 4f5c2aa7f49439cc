//! Providers of SMS: who they are, what waits for them, what they have taken.
//!
//! A provider's number stands among the phones, so that conversations, attempts and stories are as with any other; no
//! host serves it, and the pool does not know it. An attempt is `offered` when it is decided, `started` in a commit before
//! the provider is asked, and `done` when it is known what came of it.

use protocol::api::ProviderKind;
use protocol::{E164, MessageId, PhoneId, Recipient, Status, TenantId, UnixMs};

use super::dispatch::OFFERED;
use super::{Row, StoreError, Tx};
use crate::billing::Day;
use crate::params;
use crate::providers::choice::Figures;
use crate::providers::seal::Sealed;
use crate::warming::DAY_MS;

/// Providers that there can be: the operator sets each of them up by hand.
pub const PROVIDERS_MAX: usize = 16;

/// A provider as it stands in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProviderRow {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: ProviderKind,
    /// Under which id its number stands among phones.
    pub phone: PhoneId,
    /// Its number.
    pub number: E164,
    /// What of its settings is no secret, as JSON.
    pub settings: String,
    /// Its secrets.
    pub sealed: Sealed,
    /// The operator has enabled it.
    pub enabled: bool,
    /// Lower is asked first.
    pub priority: i64,
    /// When it was last changed.
    pub updated_at: UnixMs,
}

/// What is written of a provider.
#[derive(Debug, Clone)]
pub struct NewProvider {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: ProviderKind,
    /// The id of its number, where it is new.
    pub phone: PhoneId,
    /// Its number.
    pub number: E164,
    /// What of its settings is no secret, as JSON.
    pub settings: String,
    /// Its secrets.
    pub sealed: Sealed,
    /// Lower is asked first.
    pub priority: i64,
}

/// Why a provider cannot be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CannotSet {
    /// The number is a phone's or another provider's.
    NumberTaken,
    /// It is of another kind already.
    OtherKind,
    /// There are as many as there can be.
    TooMany,
}

const COLUMNS: &str = "SELECT v.name, v.kind, v.phone_id, p.number, v.settings, v.key_id, v.credentials, v.enabled, v.priority,
         v.updated_at FROM providers v JOIN phones p ON p.id = v.phone_id";

fn read(row: &Row<'_>) -> Result<ProviderRow, StoreError> {
    Ok(ProviderRow {
        name: row.text(0)?,
        kind: row.parse(1)?,
        phone: row.get(2)?,
        number: row.get(3)?,
        settings: row.text(4)?,
        sealed: Sealed { key_id: row.text(5)?, bytes: row.get(6)? },
        enabled: row.get(7)?,
        priority: row.int(8)?,
        updated_at: row.get(9)?,
    })
}

/// Every provider, by name.
pub fn list(tx: &mut Tx<'_>) -> Result<Vec<ProviderRow>, StoreError> {
    tx.query(&format!("{COLUMNS} ORDER BY v.name"), params![], read)
}

/// One provider.
pub fn get(tx: &mut Tx<'_>, name: &str) -> Result<Option<ProviderRow>, StoreError> {
    tx.query_opt(&format!("{COLUMNS} WHERE v.name = ?1"), params![name], read)
}

/// Adds a provider, not enabled, or changes one, which stays as enabled as it was.
pub fn set(
    tx: &mut Tx<'_>,
    new: &NewProvider,
    now: UnixMs,
) -> Result<Result<(), CannotSet>, StoreError> {
    let before = get(tx, &new.name)?;
    if before.as_ref().is_some_and(|before| before.kind != new.kind) {
        return Ok(Err(CannotSet::OtherKind));
    }
    let count: usize = tx.query_row("SELECT count(*) FROM providers", params![], |row| {
        Ok(usize::try_from(row.int(0)?).unwrap_or(usize::MAX))
    })?;
    if before.is_none() && count >= PROVIDERS_MAX {
        return Ok(Err(CannotSet::TooMany));
    }
    let phone = match before {
        Some(before) => before.phone,
        // The conversations of a provider that was deleted go on with whoever has its number next.
        None => of_nobody(tx, &new.number)?.unwrap_or_else(|| new.phone.clone()),
    };
    let taken = tx.query_opt(
        "SELECT 1 FROM phones WHERE number = ?1 AND id <> ?2",
        params![new.number, phone],
        |row| row.int(0),
    )?;
    if taken.is_some() {
        return Ok(Err(CannotSet::NumberTaken));
    }
    tx.execute(
        "INSERT INTO phones (id, number, host_id, label, state, reasons, channels, warming_priority,
             messages_today, day, created_at, updated_at, sandbox, provider)
         VALUES (?1, ?2, NULL, ?3, 'stopped', '[]', '[\"sms\"]', 0, 0, ?4, ?5, ?5, 0, ?3)
         ON CONFLICT (id) DO UPDATE SET number = excluded.number, label = excluded.label,
             provider = excluded.provider, updated_at = excluded.updated_at",
        params![phone, new.number, new.name, now.0.div_euclid(DAY_MS), now],
    )?;
    tx.execute(
        "INSERT INTO providers (name, kind, phone_id, settings, key_id, credentials, enabled, priority, created_at,
             updated_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, 0, ?7, ?8, ?8)
         ON CONFLICT (name) DO UPDATE SET settings = excluded.settings, key_id = excluded.key_id,
             credentials = excluded.credentials, priority = excluded.priority, updated_at = excluded.updated_at",
        params![
            new.name,
            new.kind.as_str(),
            phone,
            new.settings,
            new.sealed.key_id,
            new.sealed.bytes,
            new.priority,
            now
        ],
    )?;
    Ok(Ok(()))
}

/// Where the number of a deleted provider stands among the phones.
fn of_nobody(tx: &mut Tx<'_>, number: &E164) -> Result<Option<PhoneId>, StoreError> {
    tx.query_opt(
        "SELECT p.id FROM phones p WHERE p.number = ?1 AND p.provider IS NOT NULL
             AND NOT EXISTS (SELECT 1 FROM providers v WHERE v.phone_id = p.id)",
        params![number],
        |row| row.get(0),
    )
}

/// Deletes a provider with its credentials; its number stays among the phones, where conversations and stories know it, and
/// nothing is sent from it. False when there is none of this name.
pub fn delete(tx: &mut Tx<'_>, name: &str) -> Result<bool, StoreError> {
    tx.execute(
        "UPDATE provider_choices SET switched_to = NULL WHERE switched_to = ?1",
        params![name],
    )?;
    Ok(tx.execute("DELETE FROM providers WHERE name = ?1", params![name])? > 0)
}

/// What a provider has that has not ended, up to `limit`: attempts that wait for it or that it has been asked for.
pub fn under_way(
    tx: &mut Tx<'_>,
    phone: &PhoneId,
    limit: usize,
) -> Result<Vec<Ordered>, StoreError> {
    tx.query(
        &format!("{ORDERED} WHERE a.phone_id = ?1 AND a.state <> 'done' LIMIT ?2"),
        params![phone, limit],
        read_ordered,
    )
}

/// Nothing of a provider's is looked for any more; answers how many were, at most `limit`.
pub fn look_no_more(tx: &mut Tx<'_>, phone: &PhoneId, limit: usize) -> Result<usize, StoreError> {
    tx.execute(
        "UPDATE provider_attempts SET look_at = NULL WHERE (message_id, attempt) IN (
             SELECT message_id, attempt FROM provider_attempts WHERE phone_id = ?1 AND look_at IS NOT NULL LIMIT ?2)",
        params![phone, limit],
    )
}

/// Enables a provider or disables it; false when there is none of this name.
pub fn enable(tx: &mut Tx<'_>, name: &str, on: bool, now: UnixMs) -> Result<bool, StoreError> {
    let changed = tx.execute(
        "UPDATE providers SET enabled = ?2, updated_at = ?3 WHERE name = ?1",
        params![name, on, now],
    )?;
    Ok(changed > 0)
}

/// Keeps credentials under another key than before, unless they have been changed meanwhile.
pub fn reseal(
    tx: &mut Tx<'_>,
    name: &str,
    (before, after): (&Sealed, &Sealed),
) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE providers SET key_id = ?2, credentials = ?3 WHERE name = ?1 AND credentials = ?4",
        params![name, after.key_id, after.bytes, before.bytes],
    )?;
    Ok(())
}

/// What the operator has set for all providers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chosen {
    /// Monthly recurring revenue in US cents, and of when that is.
    pub mrr: Option<(u64, UnixMs)>,
    /// The flag that allows Twilio.
    pub twilio_allowed: bool,
    /// The provider that is asked first, whatever its priority.
    pub switched_to: Option<String>,
}

impl Chosen {
    /// With what was counted, what Twilio's conditions are measured by.
    pub fn figures(&self, sms_a_day: Option<u64>) -> Figures {
        Figures { sms_a_day, mrr: self.mrr, twilio_allowed: self.twilio_allowed }
    }
}

/// What the operator has set for all providers.
pub fn chosen(tx: &mut Tx<'_>) -> Result<Chosen, StoreError> {
    let found = tx.query_opt(
        "SELECT mrr_cents, mrr_as_of, twilio_allowed, switched_to FROM provider_choices WHERE id = 1",
        params![],
        |row| {
            let cents: Option<u64> = row.get(0)?;
            let as_of: Option<UnixMs> = row.get(1)?;
            Ok(Chosen {
                mrr: cents.zip(as_of),
                twilio_allowed: row.get(2)?,
                switched_to: row.opt_text(3)?,
            })
        },
    )?;
    Ok(found.unwrap_or_default())
}

/// Sets what is chosen for all providers.
pub fn choose(tx: &mut Tx<'_>, chosen: &Chosen) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO provider_choices (id, mrr_cents, mrr_as_of, twilio_allowed, switched_to)
         VALUES (1, ?1, ?2, ?3, ?4)
         ON CONFLICT (id) DO UPDATE SET mrr_cents = excluded.mrr_cents, mrr_as_of = excluded.mrr_as_of,
             twilio_allowed = excluded.twilio_allowed, switched_to = excluded.switched_to",
        params![
            chosen.mrr.map(|(cents, _)| cents),
            chosen.mrr.map(|(_, as_of)| as_of),
            chosen.twilio_allowed,
            chosen.switched_to
        ],
    )?;
    Ok(())
}

/// How many messages were sent as SMS, by phones and providers alike, on the better one of yesterday and today (UTC): today
/// is not over.
pub fn sms_a_day(tx: &mut Tx<'_>, now: UnixMs) -> Result<u64, StoreError> {
    let days = [now.plus_ms(-DAY_MS), now].map(|at| Day::of(at).number());
    let counts = tx.query(SMS_BY_DAY, params![days[0], days[1]], |row| row.get::<u64>(0))?;
    Ok(counts.into_iter().max().unwrap_or(0))
}

const SMS_BY_DAY: &str = "SELECT CAST(SUM(sent) AS BIGINT) FROM usage
     WHERE day IN (?1, ?2) AND channel = 'sms' GROUP BY day";

/// How many attempts wait for a provider to be asked, up to `limit`.
pub fn waiting(tx: &mut Tx<'_>, phone: &PhoneId, limit: usize) -> Result<usize, StoreError> {
    tx.query_row(WAITING, params![phone, limit], |row| {
        Ok(usize::try_from(row.int(0)?).unwrap_or(usize::MAX))
    })
}

// As [`OFFERED`].
pub(super) const WAITING: &str = "SELECT count(*) FROM (SELECT 1 FROM attempts
     WHERE phone_id = ?1 AND state <> 'done' AND state = 'offered' LIMIT ?2) AS counted";

/// The phones and providers' numbers that a message has been tried on.
pub fn tried(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    message: &MessageId,
) -> Result<Vec<PhoneId>, StoreError> {
    tx.query(
        "SELECT DISTINCT phone_id FROM attempts WHERE message_id = ?1 AND tenant_id = ?2",
        params![message, tenant],
        |row| row.get(0),
    )
}

/// Notes until when a provider may keep an attempt that was just decided.
pub fn ordered(
    tx: &mut Tx<'_>,
    (tenant, message, attempt): (&TenantId, &MessageId, u32),
    phone: &PhoneId,
    keep_until: UnixMs,
) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO provider_attempts (message_id, attempt, tenant_id, phone_id, keep_until, looks)
         VALUES (?1, ?2, ?3, ?4, ?5, 0)",
        params![message, attempt, tenant, phone, keep_until],
    )?;
    Ok(())
}

/// An attempt that a provider is to be asked for, or was.
#[derive(Clone, PartialEq, Eq)]
pub struct Ordered {
    /// Which message.
    pub message: MessageId,
    /// Whose.
    pub tenant: TenantId,
    /// Which attempt.
    pub attempt: u32,
    /// Whom it goes to.
    pub recipient: Recipient,
    /// Its text.
    pub text: String,
    /// Not to be started after.
    pub start_before: UnixMs,
    /// How long the provider may keep it.
    pub keep_until: UnixMs,
    /// It is wanted back.
    pub cancel_asked: bool,
    /// How the message stands.
    pub status: Status,
    /// The provider's id of it.
    pub id: Option<String>,
    /// When the provider was asked to send it.
    pub asked_at: Option<UnixMs>,
    /// How often it was looked for.
    pub looks: u32,
}

impl std::fmt::Debug for Ordered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ordered")
            .field("message", &self.message)
            .field("attempt", &self.attempt)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

const ORDERED: &str = "SELECT o.message_id, o.tenant_id, o.attempt, m.recipient, m.text, a.start_before, o.keep_until,
         m.cancel_asked, m.status, o.provider_id, o.asked_at, o.looks, o.phone_id
     FROM provider_attempts o
     JOIN attempts a ON a.message_id = o.message_id AND a.attempt = o.attempt AND a.tenant_id = o.tenant_id
     JOIN messages m ON m.id = o.message_id AND m.tenant_id = o.tenant_id";

fn read_ordered(row: &Row<'_>) -> Result<Ordered, StoreError> {
    Ok(Ordered {
        message: row.get(0)?,
        tenant: row.get(1)?,
        attempt: row.get(2)?,
        recipient: row.get(3)?,
        text: row.opt_text(4)?.unwrap_or_default(),
        start_before: row.get(5)?,
        keep_until: row.get(6)?,
        cancel_asked: row.get(7)?,
        status: row.get(8)?,
        id: row.opt_text(9)?,
        asked_at: row.get(10)?,
        looks: row.get(11)?,
    })
}

/// What waits for a provider to be asked, the oldest first.
pub fn offered(tx: &mut Tx<'_>, phone: &PhoneId, limit: usize) -> Result<Vec<Ordered>, StoreError> {
    tx.query(&offered_sql(), params![phone, limit], read_ordered)
}

pub(super) fn offered_sql() -> String {
    format!("{ORDERED} WHERE a.phone_id = ?1 AND {OFFERED} ORDER BY a.offered_at LIMIT ?2")
}

/// What a provider was being asked for when the router ended: nobody knows how far it came.
pub fn orphans(tx: &mut Tx<'_>, limit: usize) -> Result<Vec<(PhoneId, Ordered)>, StoreError> {
    tx.query(
        &format!(
            "{ORDERED} WHERE a.state = 'started' AND a.state <> 'done' AND o.provider_id IS NULL AND o.asked_at IS NOT NULL LIMIT ?1"
        ),
        params![limit],
        |row| Ok((row.get(12)?, read_ordered(row)?)),
    )
}

/// One attempt at a provider.
pub fn attempt(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    (message, attempt): (&MessageId, u32),
) -> Result<Option<Ordered>, StoreError> {
    tx.query_opt(
        &format!("{ORDERED} WHERE o.message_id = ?1 AND o.attempt = ?2 AND o.tenant_id = ?3"),
        params![message, attempt, tenant],
        read_ordered,
    )
}

/// The attempt that a provider knows by this id.
pub fn by_provider_id(
    tx: &mut Tx<'_>,
    phone: &PhoneId,
    id: &str,
) -> Result<Option<(TenantId, MessageId, u32)>, StoreError> {
    tx.query_opt(BY_PROVIDER_ID, params![phone, id], |row| {
        Ok((row.get(0)?, row.get(1)?, row.get(2)?))
    })
}

const BY_PROVIDER_ID: &str = "SELECT tenant_id, message_id, attempt FROM provider_attempts
     WHERE phone_id = ?1 AND provider_id = ?2";

/// Whose an attempt is that a provider speaks of by our own words, if it was given to this provider.
pub fn by_own_id(
    tx: &mut Tx<'_>,
    phone: &PhoneId,
    (message, attempt): (&MessageId, u32),
) -> Result<Option<(TenantId, Option<String>)>, StoreError> {
    tx.query_opt(BY_OWN_ID, params![message, attempt, phone], |row| {
        Ok((row.get(0)?, row.opt_text(1)?))
    })
}

const BY_OWN_ID: &str = "SELECT tenant_id, provider_id FROM provider_attempts
     WHERE message_id = ?1 AND attempt = ?2 AND phone_id = ?3";

/// The provider is asked now: on disk before the first byte of it.
pub fn asked(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    (message, attempt): (&MessageId, u32),
    now: UnixMs,
) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE provider_attempts SET asked_at = ?4 WHERE message_id = ?1 AND attempt = ?2 AND tenant_id = ?3",
        params![message, attempt, tenant, now],
    )?;
    Ok(())
}

/// The provider's id is known. One that another attempt has is not taken.
pub fn known_as(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    (message, attempt): (&MessageId, u32),
    id: &str,
) -> Result<bool, StoreError> {
    let changed = tx.execute(
        "UPDATE provider_attempts SET provider_id = ?4 WHERE message_id = ?1 AND attempt = ?2 AND tenant_id = ?3
             AND (provider_id IS NULL OR provider_id = ?4) AND NOT EXISTS (
                 SELECT 1 FROM provider_attempts x WHERE x.phone_id = provider_attempts.phone_id
                     AND x.provider_id = ?4 AND x.message_id <> ?1)",
        params![message, attempt, tenant, id],
    )?;
    Ok(changed > 0)
}

/// When it is looked for next; never, with `None`. `looks` is how often it was.
pub fn look_again(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    (message, attempt): (&MessageId, u32),
    (at, looks): (Option<UnixMs>, u32),
) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE provider_attempts SET look_at = ?4, looks = ?5
         WHERE message_id = ?1 AND attempt = ?2 AND tenant_id = ?3",
        params![message, attempt, tenant, at, looks],
    )?;
    Ok(())
}

/// What is to be looked for at a provider, the longest due first.
pub fn to_look_up(
    tx: &mut Tx<'_>,
    phone: &PhoneId,
    now: UnixMs,
    limit: usize,
) -> Result<Vec<Ordered>, StoreError> {
    tx.query(
        &format!("{ORDERED} WHERE o.phone_id = ?1 AND o.look_at <= ?2 ORDER BY o.look_at LIMIT ?3"),
        params![phone, now, limit],
        read_ordered,
    )
}

/// Whether a number among the phones is a provider's.
pub fn is_provider(tx: &mut Tx<'_>, phone: &PhoneId) -> Result<bool, StoreError> {
    let found = tx.query_opt(
        "SELECT provider IS NOT NULL FROM phones WHERE id = ?1",
        params![phone],
        |row| row.get(0),
    )?;
    Ok(found.unwrap_or(false))
}
