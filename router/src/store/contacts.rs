//! What tenants know of the people they write to; what test keys say of them, messages of the sandbox alone obey.

use protocol::api::Contact;
use protocol::{Reason, Recipient, TenantId, UnixMs};

use super::{Row, StoreError, Tx, dispatch};
use crate::params;

/// Writes down what a tenant knows of somebody, in place of what it knew before. What waits for its hour there is looked at
/// again.
pub fn put(
    tx: &mut Tx<'_>,
    (tenant, test): (&TenantId, bool),
    recipient: &Recipient,
    (time_zone, state): (Option<&str>, Option<&str>),
    now: UnixMs,
) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO contacts (tenant_id, recipient, time_zone, state, created_at, updated_at, test)
         VALUES (?1, ?2, ?3, ?4, ?5, ?5, ?6)
         ON CONFLICT (tenant_id, test, recipient) DO UPDATE SET time_zone = excluded.time_zone,
             state = excluded.state, updated_at = excluded.updated_at",
        params![tenant, recipient, time_zone, state, now, test],
    )?;
    dispatch::wake_for(tx, (tenant, recipient), Reason::QuietHours, now)
}

/// One contact.
pub fn get(
    tx: &mut Tx<'_>,
    (tenant, test): (&TenantId, bool),
    recipient: &Recipient,
) -> Result<Option<Contact>, StoreError> {
    tx.query_opt(
        "SELECT recipient, time_zone, state, created_at, updated_at FROM contacts
         WHERE tenant_id = ?1 AND test = ?3 AND recipient = ?2",
        params![tenant, recipient, test],
        contact,
    )
}

/// A tenant's contacts by recipient, after `after`. Answers one row more than `limit` where there is more.
pub fn list(
    tx: &mut Tx<'_>,
    (tenant, test): (&TenantId, bool),
    after: &str,
    limit: u32,
) -> Result<Vec<Contact>, StoreError> {
    tx.query(
        "SELECT recipient, time_zone, state, created_at, updated_at FROM contacts
         WHERE tenant_id = ?1 AND test = ?4 AND recipient > ?2 ORDER BY recipient LIMIT ?3",
        params![tenant, after, limit.saturating_add(1), test],
        contact,
    )
}

/// Forgets what was known of somebody; false when nothing was.
pub fn delete(
    tx: &mut Tx<'_>,
    (tenant, test): (&TenantId, bool),
    recipient: &Recipient,
) -> Result<bool, StoreError> {
    let deleted = tx.execute(
        "DELETE FROM contacts WHERE tenant_id = ?1 AND test = ?3 AND recipient = ?2",
        params![tenant, recipient, test],
    )?;
    Ok(deleted > 0)
}

fn contact(row: &Row<'_>) -> Result<Contact, StoreError> {
    Ok(Contact {
        recipient: row.get(0)?,
        time_zone: row.opt_text(1)?,
        state: row.opt_text(2)?,
        created_at: row.get(3)?,
        updated_at: row.get(4)?,
    })
}
