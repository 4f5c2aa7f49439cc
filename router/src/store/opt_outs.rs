//! Recipients who must not be written to, as tenants read them.

use protocol::TenantId;
use protocol::api::OptOut;

use super::{StoreError, Tx};
use crate::params;

/// A tenant's opt-outs by recipient, after `after`. Answers one row more than `limit` where there is more.
pub fn list(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    after: &str,
    limit: u32,
) -> Result<Vec<OptOut>, StoreError> {
    tx.query(
        "SELECT recipient, method, at, message_id FROM opt_outs
         WHERE tenant_id = ?1 AND recipient > ?2 AND state = 'opted_out' ORDER BY recipient LIMIT ?3",
        params![tenant, after, limit.saturating_add(1)],
        |row| {
            Ok(OptOut {
                recipient: row.get(0)?,
                method: row.get(1)?,
                at: row.get(2)?,
                message: row.get(3)?,
            })
        },
    )
}
