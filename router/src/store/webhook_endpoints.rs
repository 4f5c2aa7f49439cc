//! A tenant's webhook endpoints, and what was delivered to them.

use protocol::api::{WebhookAttempt, WebhookDelivery, WebhookEndpoint};
use protocol::{DeliveryId, EndpointId, TenantId};

use super::{Json, Row, StoreError, Tx};
use crate::params;

/// Stores an endpoint with the secret that its deliveries are signed with.
pub fn insert(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    endpoint: &WebhookEndpoint,
    secret: &str,
) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO webhook_endpoints (id, tenant_id, url, secret, events, created_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![
            endpoint.id,
            tenant,
            endpoint.url,
            secret,
            Json(&endpoint.events),
            endpoint.created_at
        ],
    )?;
    Ok(())
}

/// How many endpoints the tenant has.
pub fn count(tx: &mut Tx<'_>, tenant: &TenantId) -> Result<u32, StoreError> {
    tx.query_row(
        "SELECT count(*) FROM webhook_endpoints WHERE tenant_id = ?1",
        params![tenant],
        |row| row.get(0),
    )
}

const COLUMNS: &str =
    "SELECT id, url, events, disabled_at, disabled_reason, created_at FROM webhook_endpoints";

/// One endpoint, or `None` where the tenant has no such endpoint.
pub fn get(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    id: &EndpointId,
) -> Result<Option<WebhookEndpoint>, StoreError> {
    tx.query_opt(&format!("{COLUMNS} WHERE id = ?1 AND tenant_id = ?2"), params![id, tenant], read)
}

/// The tenant's endpoints, newest first. One row more than `limit` where there is more.
pub fn list(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    before: Option<&str>,
    limit: u32,
) -> Result<Vec<WebhookEndpoint>, StoreError> {
    tx.query(
        &format!("{COLUMNS} WHERE tenant_id = ?1 AND id < ?2 ORDER BY id DESC LIMIT ?3"),
        params![tenant, before.unwrap_or("~"), limit.saturating_add(1)],
        read,
    )
}

fn read(row: &Row<'_>) -> Result<WebhookEndpoint, StoreError> {
    Ok(WebhookEndpoint {
        id: row.get(0)?,
        url: row.text(1)?,
        events: row.get::<Json<Vec<String>>>(2)?.0,
        disabled_at: row.get(3)?,
        disabled_reason: row.get(4)?,
        created_at: row.get(5)?,
    })
}

/// Deletes an endpoint and all that was or is to be delivered to it; false where the tenant has no such endpoint.
pub fn delete(tx: &mut Tx<'_>, tenant: &TenantId, id: &EndpointId) -> Result<bool, StoreError> {
    if get(tx, tenant, id)?.is_none() {
        return Ok(false);
    }
    tx.execute(
        "DELETE FROM webhook_attempts WHERE job_id IN
            (SELECT id FROM webhook_jobs WHERE endpoint_id = ?1 AND tenant_id = ?2)",
        params![id, tenant],
    )?;
    tx.execute(
        "DELETE FROM webhook_jobs WHERE endpoint_id = ?1 AND tenant_id = ?2",
        params![id, tenant],
    )?;
    tx.execute(
        "DELETE FROM webhook_endpoints WHERE id = ?1 AND tenant_id = ?2",
        params![id, tenant],
    )?;
    Ok(true)
}

/// What was or is to be delivered to an endpoint, newest first. One row more than `limit` where there is more.
pub fn deliveries(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    endpoint: &EndpointId,
    before: Option<&str>,
    limit: u32,
) -> Result<Vec<WebhookDelivery>, StoreError> {
    let mut page = tx.query(
        "SELECT id, endpoint_id, event_id, type, state, run_at, created_at FROM webhook_jobs
         WHERE endpoint_id = ?1 AND tenant_id = ?2 AND id < ?3 ORDER BY id DESC LIMIT ?4",
        params![endpoint, tenant, before.unwrap_or("~"), limit.saturating_add(1)],
        |row| {
            let state = row.text(4)?;
            Ok(WebhookDelivery {
                id: row.get(0)?,
                endpoint: row.get(1)?,
                event: row.get(2)?,
                kind: row.text(3)?,
                next_at: if state == "pending" { Some(row.get(5)?) } else { None },
                state,
                attempts: Vec::new(),
                created_at: row.get(6)?,
            })
        },
    )?;
    for delivery in &mut page {
        delivery.attempts = attempts(tx, tenant, &delivery.id)?;
    }
    Ok(page)
}

fn attempts(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    delivery: &DeliveryId,
) -> Result<Vec<WebhookAttempt>, StoreError> {
    tx.query(
        "SELECT a.at, a.status, a.error, a.ms FROM webhook_attempts a
         JOIN webhook_jobs j ON j.id = a.job_id
         WHERE a.job_id = ?1 AND j.tenant_id = ?2 ORDER BY a.attempt",
        params![delivery, tenant],
        |row| {
            Ok(WebhookAttempt {
                at: row.get(0)?,
                status: row.get(1)?,
                error: row.get(2)?,
                duration_ms: row.get(3)?,
            })
        },
    )
}
