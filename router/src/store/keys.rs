//! API keys: a hash, what it may do, and until when.

use protocol::api::ApiKey;
use protocol::{KeyId, TenantId, UnixMs};

use super::{Json, Row, StoreError, Tx};
use crate::params;

/// A key as it is made. The key itself is never stored.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// The key, without its secret.
    pub key: ApiKey,
    /// SHA-256 of the secret.
    pub hash: [u8; 32],
    /// What it may do.
    pub scopes: Vec<String>,
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
    /// When it ends.
    pub expires_at: Option<UnixMs>,
    /// When it was revoked.
    pub revoked_at: Option<UnixMs>,
}

/// Stores a key; [`StoreError::Constraint`] where its tenant does not exist.
pub fn insert(tx: &mut Tx<'_>, tenant: &TenantId, new: &NewKey) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO api_keys (id, tenant_id, name, prefix, hash, scopes, test, expires_at, created_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        params![
            new.key.id,
            tenant,
            new.key.name,
            new.key.prefix,
            new.hash,
            Json(&new.scopes),
            new.key.test,
            new.key.expires_at,
            new.key.created_at
        ],
    )?;
    Ok(())
}

/// The key that begins so.
pub fn by_prefix(tx: &mut Tx<'_>, prefix: &str) -> Result<Option<Credential>, StoreError> {
    tx.query_opt(
        "SELECT id, tenant_id, hash, scopes, test, expires_at, revoked_at FROM api_keys WHERE prefix = ?1",
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

/// Revokes a key, for the operator; false where there is none. A second time changes nothing.
pub fn revoke(tx: &mut Tx<'_>, key: &KeyId, now: UnixMs) -> Result<bool, StoreError> {
    let rows = tx.execute(
        "UPDATE api_keys SET revoked_at = coalesce(revoked_at, ?2) WHERE id = ?1",
        params![key, now],
    )?;
    Ok(rows > 0)
}

/// Keys, newest first, of one tenant or of all, for the operator. One row more than `limit` where there is more.
pub fn list(
    tx: &mut Tx<'_>,
    tenant: Option<&TenantId>,
    before: Option<&str>,
    limit: u32,
) -> Result<Vec<(ApiKey, Vec<String>)>, StoreError> {
    // Two statements, so that either is served by an index.
    const COLUMNS: &str = "SELECT id, tenant_id, name, prefix, test, created_at, expires_at, revoked_at, last_used_at, \
         scopes FROM api_keys";
    // Behind every id: ids are prefix and 0-9a-v.
    let before = before.unwrap_or("~");
    let limit = limit.saturating_add(1);
    match tenant {
        Some(tenant) => tx.query(
            &format!("{COLUMNS} WHERE tenant_id = ?1 AND id < ?2 ORDER BY id DESC LIMIT ?3"),
            params![tenant, before, limit],
            read,
        ),
        None => tx.query(
            &format!("{COLUMNS} WHERE id < ?1 ORDER BY id DESC LIMIT ?2"),
            params![before, limit],
            read,
        ),
    }
}

fn read(row: &Row<'_>) -> Result<(ApiKey, Vec<String>), StoreError> {
    let key = ApiKey {
        id: row.get(0)?,
        tenant: row.get(1)?,
        name: row.get(2)?,
        prefix: row.get(3)?,
        test: row.get(4)?,
        created_at: row.get(5)?,
        expires_at: row.get(6)?,
        revoked_at: row.get(7)?,
        last_used_at: row.get(8)?,
    };
    Ok((key, row.get::<Json<Vec<String>>>(9)?.0))
}
