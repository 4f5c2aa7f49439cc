//! A tenant's webhook endpoints, and what was delivered to them.

use protocol::api::{WebhookAttempt, WebhookDelivery, WebhookEndpoint};
use protocol::{DeliveryId, EndpointId, TenantId, UnixMs};
use serde::{Deserialize, Serialize};

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
        "INSERT INTO webhook_endpoints (id, tenant_id, url, secret, events, created_at, description, test)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        params![
            endpoint.id,
            tenant,
            endpoint.url,
            secret,
            Json(&endpoint.events),
            endpoint.created_at,
            endpoint.description,
            endpoint.test
        ],
    )?;
    Ok(())
}

/// How many endpoints the tenant has.
pub fn count(tx: &mut Tx<'_>, tenant: &TenantId) -> Result<u32, StoreError> {
    tx.query_row(
        &format!("SELECT count(*) FROM webhook_endpoints WHERE tenant_id = ?1 AND {THERE}"),
        params![tenant],
        |row| row.get(0),
    )
}

/// Why an endpoint is off that its tenant has deleted: it is hidden from everybody, and goes for good once nothing is left
/// of what was delivered to it ([`sweep`]).
const DELETED: &str = "deleted";

/// What every question of a tenant about endpoints leaves out: those that are deleted.
const THERE: &str = "COALESCE(disabled_reason, '') <> 'deleted'";

const COLUMNS: &str = "SELECT id, url, events, disabled_at, disabled_reason, created_at, description, \
     failing_since, failures, paused_until, previous_until, test FROM webhook_endpoints";

/// One endpoint, or `None` where the tenant has no such endpoint; with `true` only of the sandbox.
pub fn get(
    tx: &mut Tx<'_>,
    (tenant, test): (&TenantId, bool),
    id: &EndpointId,
) -> Result<Option<WebhookEndpoint>, StoreError> {
    tx.query_opt(
        &format!("{COLUMNS} WHERE id = ?1 AND tenant_id = ?2 AND test >= ?3 AND {THERE}"),
        params![id, tenant, test],
        read,
    )
}

/// Whether an endpoint is one of the sandbox.
pub fn is_test(tx: &mut Tx<'_>, tenant: &TenantId, id: &EndpointId) -> Result<bool, StoreError> {
    let test = tx.query_opt(
        "SELECT test FROM webhook_endpoints WHERE id = ?1 AND tenant_id = ?2",
        params![id, tenant],
        |row| row.get(0),
    )?;
    Ok(test.unwrap_or(false))
}

/// The tenant's endpoints, newest first, with `true` only those of the sandbox. One row more than `limit` where there is
/// more.
pub fn list(
    tx: &mut Tx<'_>,
    (tenant, test): (&TenantId, bool),
    before: Option<&str>,
    limit: u32,
) -> Result<Vec<WebhookEndpoint>, StoreError> {
    tx.query(
        &format!(
            "{COLUMNS} WHERE tenant_id = ?1 AND id < ?2 AND test >= ?4 AND {THERE}
             ORDER BY id DESC LIMIT ?3"
        ),
        params![tenant, before.unwrap_or("~"), limit.saturating_add(1), test],
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
        description: row.get(6)?,
        failing_since: row.get(7)?,
        failures: row.get(8)?,
        paused_until: row.get(9)?,
        old_secret_until: row.get(10)?,
        test: row.get(11)?,
    })
}

/// Writes down what a tenant may change of an endpoint; false where the tenant has no such endpoint.
///
/// One that is switched on again begins anew: whatever failed before counts for nothing.
pub fn update(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    endpoint: &WebhookEndpoint,
) -> Result<bool, StoreError> {
    let changed = tx.execute(
        &format!(
            "UPDATE webhook_endpoints SET url = ?3, events = ?4, description = ?5, disabled_at = ?6,
                 disabled_reason = ?7, failing_since = ?8, failures = ?9, paused_until = ?10
             WHERE id = ?1 AND tenant_id = ?2 AND {THERE}"
        ),
        params![
            endpoint.id,
            tenant,
            endpoint.url,
            Json(&endpoint.events),
            endpoint.description,
            endpoint.disabled_at,
            endpoint.disabled_reason,
            endpoint.failing_since,
            endpoint.failures,
            endpoint.paused_until
        ],
    )?;
    Ok(changed > 0)
}

/// Secrets that may still sign beside the newest one. Whoever gives out more within one overlap loses the one that would
/// have ended first: a header has to end somewhere.
pub const PREVIOUS_MAX: usize = 4;

/// A secret that an endpoint had before, and until when it signs.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Previous {
    /// `whsec_…`
    pub secret: String,
    /// Its end.
    pub until: UnixMs,
}

impl std::fmt::Debug for Previous {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The secret stays out of logs.
        f.debug_struct("Previous").field("until", &self.until).finish_non_exhaustive()
    }
}

/// The secrets that sign beside the newest one at `now`, the newest first, as the two columns have them: a list, or, from
/// before there were several, one secret that signs until `until`.
pub fn previous(
    kept: Option<&str>,
    until: Option<UnixMs>,
    now: UnixMs,
) -> Result<Vec<Previous>, StoreError> {
    let mut all: Vec<Previous> = match kept {
        None => Vec::new(),
        Some(list) if list.starts_with('[') => serde_json::from_str(list).map_err(|_secret| {
            // The cause might show what it could not read.
            StoreError::corrupt("webhook_endpoints.previous_secret", "no list of secrets")
        })?,
        Some(secret) => {
            let secret = secret.to_owned();
            until.map(|until| Previous { secret, until }).into_iter().collect()
        }
    };
    all.retain(|one| one.until > now);
    Ok(all)
}

/// The secrets that sign beside a new one, of the last one and those before it. Whoever ends the last one at once has reason
/// to trust none that is older.
fn handed_down(before: Vec<Previous>, last: Previous, now: UnixMs) -> Vec<Previous> {
    if last.until <= now {
        return Vec::new();
    }
    let mut all: Vec<Previous> =
        std::iter::once(last).chain(before).filter(|one| one.until > now).collect();
    while all.len() > PREVIOUS_MAX {
        let first = all.iter().enumerate().min_by_key(|(_, one)| one.until).map(|(at, _)| at);
        all.remove(first.unwrap_or(0));
    }
    all
}

/// Gives an endpoint a new secret; the one that it had signs beside it until then, and so do those before it until their
/// own ends, or none of them where there is no overlap. False where the tenant has no such endpoint.
pub fn rotate(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    (id, secret): (&EndpointId, &str),
    (old_until, now): (UnixMs, UnixMs),
) -> Result<bool, StoreError> {
    type Kept = (String, Option<String>, Option<UnixMs>);
    let kept: Option<Kept> = tx.query_opt(
        &format!(
            "SELECT secret, previous_secret, previous_until FROM webhook_endpoints
             WHERE id = ?1 AND tenant_id = ?2 AND {THERE}"
        ),
        params![id, tenant],
        |row| Ok((row.text(0)?, row.opt_text(1)?, row.get(2)?)),
    )?;
    let Some((last, kept, until)) = kept else { return Ok(false) };
    let before = previous(kept.as_deref(), until, now)?;
    let last = Previous { secret: last, until: old_until };
    let all = handed_down(before, last, now);
    let until = all.iter().map(|one| one.until).max();
    tx.execute(
        "UPDATE webhook_endpoints SET secret = ?3, previous_secret = ?4, previous_until = ?5
         WHERE id = ?1 AND tenant_id = ?2",
        params![id, tenant, secret, (!all.is_empty()).then_some(Json(&all)), until],
    )?;
    Ok(true)
}

/// Deletes an endpoint: from now on nobody sees it and nothing is posted to it. False where the tenant has no such endpoint.
///
/// What was or is to be delivered to it may be hundreds of thousands of rows, and goes step by step behind everything else
/// ([`sweep`]).
pub fn delete(
    tx: &mut Tx<'_>,
    (tenant, test): (&TenantId, bool),
    id: &EndpointId,
    now: UnixMs,
) -> Result<bool, StoreError> {
    let changed = tx.execute(
        &format!(
            "UPDATE webhook_endpoints SET disabled_at = ?4, disabled_reason = ?5
             WHERE id = ?1 AND tenant_id = ?2 AND test >= ?3 AND {THERE}"
        ),
        params![id, tenant, test, now, DELETED],
    )?;
    Ok(changed > 0)
}

/// The endpoints that are deleted and not swept yet.
pub fn deleted(tx: &mut Tx<'_>) -> Result<Vec<EndpointId>, StoreError> {
    tx.query(
        "SELECT id FROM webhook_endpoints WHERE disabled_reason = ?1 ORDER BY id",
        params![DELETED],
        |row| row.get(0),
    )
}

/// Deliveries swept in one transaction: the writer has other work to do.
const SWEEP_ROWS: usize = 1_000;

// Both statements must choose the same deliveries.
const SWEEP_ATTEMPTS: &str = "DELETE FROM webhook_attempts WHERE job_id IN
     (SELECT j.id FROM webhook_endpoints e JOIN webhook_jobs j ON j.endpoint_id = e.id
      WHERE e.id = ?1 AND e.disabled_reason = ?3 AND j.endpoint_id = ?1 ORDER BY j.id LIMIT ?2)";
const SWEEP_JOBS: &str = "DELETE FROM webhook_jobs WHERE id IN
     (SELECT j.id FROM webhook_endpoints e JOIN webhook_jobs j ON j.endpoint_id = e.id
      WHERE e.id = ?1 AND e.disabled_reason = ?3 AND j.endpoint_id = ?1 ORDER BY j.id LIMIT ?2)";

/// Deletes some of what was or is to be delivered to an endpoint that is deleted, and with the last of it the endpoint
/// itself; false once that is gone.
pub fn sweep(tx: &mut Tx<'_>, id: &EndpointId) -> Result<bool, StoreError> {
    tx.execute(SWEEP_ATTEMPTS, params![id, SWEEP_ROWS, DELETED])?;
    if tx.execute(SWEEP_JOBS, params![id, SWEEP_ROWS, DELETED])? > 0 {
        return Ok(true);
    }
    tx.execute(
        "DELETE FROM webhook_endpoints WHERE id = ?1 AND disabled_reason = ?2",
        params![id, DELETED],
    )?;
    Ok(false)
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
        &format!(
            "{DELIVERY} WHERE endpoint_id = ?1 AND tenant_id = ?2 AND id < ?3 ORDER BY id DESC LIMIT ?4"
        ),
        params![endpoint, tenant, before.unwrap_or("~"), limit.saturating_add(1)],
        read_delivery,
    )?;
    for delivery in &mut page {
        delivery.attempts = attempts(tx, tenant, &delivery.id)?;
    }
    Ok(page)
}

const DELIVERY: &str =
    "SELECT id, endpoint_id, event_id, type, state, run_at, created_at FROM webhook_jobs";

fn read_delivery(row: &Row<'_>) -> Result<WebhookDelivery, StoreError> {
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
}

/// One delivery with every attempt, or `None` where the tenant has no such delivery; with `true` only to an endpoint of the
/// sandbox.
pub fn delivery(
    tx: &mut Tx<'_>,
    (tenant, test): (&TenantId, bool),
    id: &DeliveryId,
) -> Result<Option<WebhookDelivery>, StoreError> {
    let found = tx.query_opt(
        &format!("{DELIVERY} WHERE id = ?1 AND tenant_id = ?2"),
        params![id, tenant],
        read_delivery,
    )?;
    let Some(mut delivery) = found else { return Ok(None) };
    if get(tx, (tenant, test), &delivery.endpoint)?.is_none() {
        return Ok(None);
    }
    delivery.attempts = attempts(tx, tenant, id)?;
    Ok(Some(delivery))
}

/// Makes a delivery again, from the beginning of its schedule. One that is under way right now is that.
pub fn replay(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    id: &DeliveryId,
    now: UnixMs,
) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE webhook_jobs SET state = 'pending', run_at = ?3, round_from = attempts
         WHERE id = ?1 AND tenant_id = ?2",
        params![id, tenant, now],
    )?;
    Ok(())
}

/// Which deliveries of an endpoint are to be made again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// From this time on.
    pub since: UnixMs,
    /// Before this time.
    pub until: UnixMs,
    /// Those that were delivered, too, and not only those that failed.
    pub delivered: bool,
    /// Only later ones than this.
    pub after: Option<DeliveryId>,
}

/// Makes deliveries of a time again, oldest first; answers how many, and the last where there may be more.
pub fn replay_range(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    endpoint: &EndpointId,
    range: &Range,
    (now, limit): (UnixMs, usize),
) -> Result<(usize, Option<DeliveryId>), StoreError> {
    // Ids sort by time: the least one of an instant stands before all of them.
    let least = |at: UnixMs| DeliveryId::new(at.0, [0; 10]);
    let from = range
        .after
        .clone()
        .map_or_else(|| least(range.since), |after| after.max(least(range.since)));
    let states = if range.delivered { "state <> 'pending'" } else { "state = 'failed'" };
    let mut again: Vec<DeliveryId> = tx.query(
        &format!(
            "UPDATE webhook_jobs SET state = 'pending', run_at = ?5, round_from = attempts
             WHERE id IN (SELECT id FROM webhook_jobs
                 WHERE endpoint_id = ?1 AND tenant_id = ?2 AND id > ?3 AND id < ?4 AND {states} ORDER BY id LIMIT ?6)
             RETURNING id"
        ),
        params![endpoint, tenant, from, least(range.until), now, limit],
        |row| row.get(0),
    )?;
    again.sort();
    let more = again.len() >= limit;
    Ok((again.len(), again.pop().filter(|_| more)))
}

fn attempts(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    delivery: &DeliveryId,
) -> Result<Vec<WebhookAttempt>, StoreError> {
    tx.query(
        "SELECT a.at, a.status, a.error, a.ms, a.response FROM webhook_attempts a
         JOIN webhook_jobs j ON j.id = a.job_id
         WHERE a.job_id = ?1 AND j.tenant_id = ?2 ORDER BY a.attempt",
        params![delivery, tenant],
        |row| {
            Ok(WebhookAttempt {
                at: row.get(0)?,
                status: row.get(1)?,
                error: row.get(2)?,
                duration_ms: row.get(3)?,
                response: row.get(4)?,
            })
        },
    )
}
