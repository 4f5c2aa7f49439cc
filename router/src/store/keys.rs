//! API keys: a hash, what it may do, and until when.

use protocol::api::{ApiKey, Tier};
use protocol::{KeyId, TenantId, UnixMs};

use super::{Json, Row, StoreError, Tx};
use crate::network::Network;
use crate::params;
use crate::rate::Rate;

/// How often keys of each tier may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiers {
    /// Of a key that names none.
    pub default: Tier,
    /// Of those that begin.
    pub starter: Rate,
    /// Of those that have grown.
    pub growth: Rate,
}

impl Tiers {
    /// The tier of a row, and what it means.
    fn of(&self, tier: Option<Tier>, own: Option<Rate>) -> Result<(Tier, Rate), StoreError> {
        let tier = tier.unwrap_or(self.default);
        let rate = match tier {
            Tier::Starter => self.starter,
            Tier::Growth => self.growth,
            Tier::Custom => {
                own.ok_or_else(|| StoreError::Corrupt("a key without its own rate".to_owned()))?
            }
        };
        Ok((tier, rate))
    }
}

/// A key as it is made. The key itself is never stored.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// The key, without its secret.
    pub key: ApiKey,
    /// SHA-256 of the secret.
    pub hash: [u8; 32],
    /// The tier that it names, if it does, and the rate of a custom one.
    pub tier: Option<Tier>,
}

/// What authentication needs of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// The key.
    pub id: KeyId,
    /// Whose.
    pub tenant: TenantId,
    /// SHA-256 of the secret.
    pub hash: [u8; 32],
    /// What it may do.
    pub scopes: Vec<String>,
    /// For the sandbox only.
    pub test: bool,
    /// From where it may be used; from anywhere when empty.
    pub allow: Vec<Network>,
    /// How often it may be used.
    pub rate: Rate,
    /// When it ends.
    pub expires_at: Option<UnixMs>,
    /// When it was revoked.
    pub revoked_at: Option<UnixMs>,
}

/// Stores a key; [`StoreError::Constraint`] where its tenant does not exist.
pub fn insert(tx: &mut Tx<'_>, tenant: &TenantId, new: &NewKey) -> Result<(), StoreError> {
    let custom = new.tier == Some(Tier::Custom);
    tx.execute(
        "INSERT INTO api_keys (id, tenant_id, name, prefix, hash, scopes, test, expires_at, created_at, allow, tier,
             per_second, burst)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
        params![
            new.key.id,
            tenant,
            new.key.name,
            new.key.prefix,
            new.hash,
            Json(&new.key.scopes),
            new.key.test,
            new.key.expires_at,
            new.key.created_at,
            (!new.key.allow.is_empty()).then_some(Json(&new.key.allow)),
            new.tier.map(Tier::as_str),
            custom.then_some(new.key.per_second),
            custom.then_some(new.key.burst)
        ],
    )?;
    Ok(())
}

/// The key that begins so.
pub fn by_prefix(
    tx: &mut Tx<'_>,
    prefix: &str,
    tiers: &Tiers,
) -> Result<Option<Credential>, StoreError> {
    tx.query_opt(
        "SELECT id, tenant_id, hash, scopes, test, expires_at, revoked_at, tier, per_second, burst, allow
         FROM api_keys WHERE prefix = ?1",
        params![prefix],
        |row| {
            Ok(Credential {
                id: row.get(0)?,
                tenant: row.get(1)?,
                hash: row.get(2)?,
                scopes: row.get::<Json<Vec<String>>>(3)?.0,
                test: row.get(4)?,
                expires_at: row.get(5)?,
                revoked_at: row.get(6)?,
                rate: tiers.of(row.parse_opt(7)?, own_rate(row, 8)?)?.1,
                allow: networks(row, 10)?,
            })
        },
    )
}

/// Notes that a key was used.
pub fn used(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    key: &KeyId,
    now: UnixMs,
) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE api_keys SET last_used_at = ?3 WHERE id = ?1 AND tenant_id = ?2",
        params![key, tenant, now],
    )?;
    Ok(())
}

fn own_rate(row: &Row<'_>, index: usize) -> Result<Option<Rate>, StoreError> {
    let (per_second, burst): (Option<u32>, Option<u32>) = (row.get(index)?, row.get(index + 1)?);
    Ok(per_second.zip(burst).map(|(per_second, burst)| Rate { per_second, burst }))
}

/// A list that cannot be read makes the key unusable: it must not open the door to everybody.
fn networks(row: &Row<'_>, index: usize) -> Result<Vec<Network>, StoreError> {
    Ok(row.get::<Option<Json<Vec<Network>>>>(index)?.map(|list| list.0).unwrap_or_default())
}

/// Whose a key is, for the operator.
pub fn owner(tx: &mut Tx<'_>, key: &KeyId) -> Result<Option<TenantId>, StoreError> {
    tx.query_opt("SELECT tenant_id FROM api_keys WHERE id = ?1", params![key], |row| row.get(0))
}

/// Revokes a key; false where the tenant has none such. A second time changes nothing.
pub fn revoke(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    key: &KeyId,
    now: UnixMs,
) -> Result<bool, StoreError> {
    let rows = tx.execute(
        "UPDATE api_keys SET revoked_at = coalesce(revoked_at, ?3) WHERE id = ?1 AND tenant_id = ?2",
        params![key, tenant, now],
    )?;
    Ok(rows > 0)
}

/// Notes that another key takes this one's place, and ends it at `until` where it does not end before.
pub fn replaced(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    (key, by): (&KeyId, &KeyId),
    until: UnixMs,
) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE api_keys SET rotated_to = ?3,
             expires_at = CASE WHEN expires_at IS NULL OR expires_at > ?4 THEN ?4 ELSE expires_at END
         WHERE id = ?1 AND tenant_id = ?2",
        params![key, tenant, by, until],
    )?;
    Ok(())
}

/// One key and the tier that it names; `None` where the tenant has no such key.
pub fn get(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    key: &KeyId,
    tiers: &Tiers,
) -> Result<Option<(ApiKey, Option<Tier>)>, StoreError> {
    tx.query_opt(
        &format!("{COLUMNS} WHERE id = ?1 AND tenant_id = ?2"),
        params![key, tenant],
        |row| Ok((read(row, tiers)?, row.parse_opt(10)?)),
    )
}

const COLUMNS: &str = "SELECT id, tenant_id, name, prefix, test, created_at, expires_at, revoked_at, last_used_at, \
     scopes, tier, per_second, burst, allow, rotated_to FROM api_keys";

/// Keys, newest first, of one tenant or of all, for the operator. One row more than `limit` where there is more.
pub fn list(
    tx: &mut Tx<'_>,
    tenant: Option<&TenantId>,
    tiers: &Tiers,
    before: Option<&str>,
    limit: u32,
) -> Result<Vec<ApiKey>, StoreError> {
    // Behind every id: ids are prefix and 0-9a-v.
    let before = before.unwrap_or("~");
    let limit = limit.saturating_add(1);
    // Two statements, so that either is served by an index.
    match tenant {
        Some(tenant) => tx.query(
            &format!("{COLUMNS} WHERE tenant_id = ?1 AND id < ?2 ORDER BY id DESC LIMIT ?3"),
            params![tenant, before, limit],
            |row| read(row, tiers),
        ),
        None => tx.query(
            &format!("{COLUMNS} WHERE id < ?1 ORDER BY id DESC LIMIT ?2"),
            params![before, limit],
            |row| read(row, tiers),
        ),
    }
}

fn read(row: &Row<'_>, tiers: &Tiers) -> Result<ApiKey, StoreError> {
    let (tier, rate) = tiers.of(row.parse_opt(10)?, own_rate(row, 11)?)?;
    Ok(ApiKey {
        id: row.get(0)?,
        tenant: row.get(1)?,
        name: row.get(2)?,
        prefix: row.get(3)?,
        test: row.get(4)?,
        created_at: row.get(5)?,
        expires_at: row.get(6)?,
        revoked_at: row.get(7)?,
        last_used_at: row.get(8)?,
        scopes: row.get::<Json<Vec<String>>>(9)?.0,
        allow: networks(row, 13)?.iter().map(ToString::to_string).collect(),
        tier,
        per_second: rate.per_second,
        burst: rate.burst,
        rotated_to: row.get(14)?,
    })
}
