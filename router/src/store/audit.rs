//! What the operator has read or changed of tenants' data.

use protocol::api::AuditEntry;
use protocol::{EventId, TenantId};

use super::{Row, StoreError, Tx};
use crate::params;

/// Writes down that something is about to be done.
pub fn begin(
    tx: &mut Tx<'_>,
    tenant: Option<&TenantId>,
    entry: &AuditEntry,
) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO audit_log (id, at, tenant_id, action, target, address, request_id)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        params![
            entry.id,
            entry.at,
            tenant,
            entry.action,
            entry.target,
            entry.address,
            entry.request_id
        ],
    )?;
    Ok(())
}

/// Writes down what was answered, and whose data it was where only the answer knew.
pub fn end(
    tx: &mut Tx<'_>,
    tenant: Option<&TenantId>,
    id: &EventId,
    status: u16,
) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE audit_log SET status = ?2, tenant_id = COALESCE(tenant_id, ?3) WHERE id = ?1",
        params![id, status, tenant],
    )?;
    Ok(())
}

/// The log, newest first: of one tenant's data, or all of it. One row more than `limit` where there is more.
pub fn list(
    tx: &mut Tx<'_>,
    tenant: Option<&TenantId>,
    before: Option<&str>,
    limit: u32,
) -> Result<Vec<AuditEntry>, StoreError> {
    const COLUMNS: &str =
        "SELECT id, at, tenant_id, action, target, address, request_id, status FROM audit_log";
    let (before, limit) = (before.unwrap_or("~"), limit.saturating_add(1));
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

fn read(row: &Row<'_>) -> Result<AuditEntry, StoreError> {
    Ok(AuditEntry {
        id: row.get(0)?,
        at: row.get(1)?,
        tenant: row.get(2)?,
        action: row.text(3)?,
        target: row.text(4)?,
        address: row.opt_text(5)?,
        request_id: row.text(6)?,
        status: row.get(7)?,
    })
}
