//! Webhooks on their way: the outbox that is written together with the change it tells of, and what the
//! delivery worker does with it.

use protocol::api::{WebhookBody, WebhookData};
use protocol::{DeliveryId, EndpointId, EventId, TenantId, UnixMs};

use super::{Row, StoreError, Tx};
use crate::clock;
use crate::params;

/// A job that has been claimed, with all that its delivery needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimedJob {
    /// Its id.
    pub id: DeliveryId,
    /// The `webhook-id`: the same across retries and endpoints.
    pub event: EventId,
    /// Whose.
    pub tenant: TenantId,
    /// The event's type.
    pub kind: String,
    /// What is posted, byte for byte the same in every attempt.
    pub body: String,
    /// Attempts made before this one.
    pub attempts: u32,
}

/// Where a job goes.
#[derive(Clone, PartialEq, Eq)]
pub struct Target {
    /// The endpoint.
    pub endpoint: EndpointId,
    /// Whose.
    pub tenant: TenantId,
    /// Where it is.
    pub url: String,
    /// `whsec_…`.
    pub secret: String,
    /// Switched off.
    pub disabled: bool,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The secret stays out of logs, and a URL may carry one in its query.
        f.debug_struct("Target").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

/// One attempt, as it went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// When it began.
    pub at: UnixMs,
    /// What the endpoint answered, if it answered.
    pub status: Option<u16>,
    /// What went wrong, if something did.
    pub error: Option<String>,
    /// How long it took.
    pub ms: u64,
}

/// What becomes of a job after an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// The endpoint has it.
    Delivered,
    /// Another attempt at this time.
    Retry {
        /// When.
        at: UnixMs,
    },
    /// No more attempts.
    GiveUp,
}

/// Puts an event into the outbox of every endpoint of the tenant that wants its type; answers how many those are.
///
/// Call it in the transaction that makes the change: either both are on disk or neither.
pub fn enqueue(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    kind: &str,
    data: &WebhookData,
    at: UnixMs,
) -> Result<usize, StoreError> {
    enqueue_at(tx, tenant, kind, data, (at, at))
}

/// [`enqueue`] for what happened at another time than now, or by another clock than ours: a phone whose clock is wrong
/// must not put off the delivery.
pub fn enqueue_at(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    kind: &str,
    data: &WebhookData,
    (happened, at): (UnixMs, UnixMs),
) -> Result<usize, StoreError> {
    let endpoints = tx.query(
        "SELECT id, events FROM webhook_endpoints WHERE tenant_id = ?1 AND disabled_at IS NULL ORDER BY id",
        params![tenant.as_str()],
        |row| Ok((row.text(0)?, row.text(1)?)),
    )?;
    let mut wanted = Vec::with_capacity(endpoints.len());
    for (endpoint, events) in endpoints {
        if wants(&events, kind) {
            wanted.push(endpoint);
        }
    }
    if wanted.is_empty() {
        return Ok(0);
    }
    let body = WebhookBody { kind: kind.to_owned(), timestamp: happened, data: data.clone() };
    let body = serde_json::to_string(&body)
        .map_err(|error| StoreError::corrupt("webhook_jobs.body", error))?;
    let event = EventId::new(at.0, clock::random());
    for endpoint in &wanted {
        let id = DeliveryId::new(at.0, clock::random());
        tx.execute(
            "INSERT INTO webhook_jobs
                 (id, endpoint_id, tenant_id, event_id, type, body, state, run_at, attempts, created_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, 'pending', ?7, 0, ?7)",
            params![id.as_str(), endpoint, tenant.as_str(), event.as_str(), kind, body, at],
        )?;
    }
    Ok(wanted.len())
}

/// Whether an endpoint's JSON list of types names `kind`; an empty list and `*` mean all. So does a damaged one: rather
/// a webhook too many than a change of state that fails because it cannot be told.
fn wants(events: &str, kind: &str) -> bool {
    match serde_json::from_str::<Vec<String>>(events) {
        Ok(list) => list.is_empty() || list.iter().any(|wanted| wanted == "*" || wanted == kind),
        Err(error) => {
            tracing::error!(error = %error, "webhooks: an endpoint's list of types is damaged");
            true
        }
    }
}

/// An endpoint that has something waiting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Which endpoint.
    pub endpoint: EndpointId,
    /// When the first of it is due.
    pub due: UnixMs,
    /// Its last attempt failed.
    pub failing: bool,
}

/// Every endpoint that has something waiting.
///
/// The recursion jumps from endpoint to endpoint along the index, so that its cost grows with the endpoints that
/// have work and not with the work.
pub fn waiting_endpoints(tx: &mut Tx<'_>) -> Result<Vec<Waiting>, StoreError> {
    tx.query(WAITING, params![], |row| {
        Ok(Waiting { endpoint: row.parse(0)?, due: row.get(1)?, failing: row.get(2)? })
    })
}

pub(super) const WAITING: &str = "WITH RECURSIVE waiting (id) AS (
             SELECT MIN(endpoint_id) FROM webhook_jobs WHERE state = 'pending'
             UNION ALL
             SELECT (SELECT MIN(j.endpoint_id) FROM webhook_jobs j
                     WHERE j.state = 'pending' AND j.endpoint_id > waiting.id)
             FROM waiting WHERE waiting.id IS NOT NULL)
         SELECT waiting.id, (SELECT MIN(j.run_at) FROM webhook_jobs j
                             WHERE j.state = 'pending' AND j.endpoint_id = waiting.id),
             EXISTS (SELECT 1 FROM webhook_endpoints e
                     WHERE e.id = waiting.id AND e.failing_since IS NOT NULL)
         FROM waiting WHERE waiting.id IS NOT NULL";

/// Claims up to `limit` due jobs of an endpoint until `until`: a job whose worker dies falls due again then.
pub fn claim(
    tx: &mut Tx<'_>,
    endpoint: &EndpointId,
    now: UnixMs,
    until: UnixMs,
    limit: usize,
) -> Result<Option<(Target, Vec<ClaimedJob>)>, StoreError> {
    let target = tx.query_opt(
        "SELECT id, tenant_id, url, secret, disabled_at IS NOT NULL FROM webhook_endpoints WHERE id = ?1",
        params![endpoint.as_str()],
        |row| {
            Ok(Target {
                endpoint: row.parse(0)?,
                tenant: row.parse(1)?,
                url: row.text(2)?,
                secret: row.text(3)?,
                disabled: row.get(4)?,
            })
        },
    )?;
    let Some(target) = target else { return Ok(None) };
    if target.disabled {
        // What waited for an endpoint that was switched off is not delivered; it can be replayed. The rest of a
        // long queue is for the next turns.
        fail_pending(tx, endpoint)?;
        return Ok(None);
    }
    let mut jobs = tx.query(
        &claim_sql(tx.dialect().skip_locked()),
        params![endpoint.as_str(), now, until, limit],
        claimed,
    )?;
    jobs.sort_by(|left, right| left.id.cmp(&right.id));
    Ok(Some((target, jobs)))
}

pub(super) fn claim_sql(skip_locked: &str) -> String {
    format!(
        "UPDATE webhook_jobs SET run_at = ?3, claimed_until = ?3 WHERE id IN (
             SELECT id FROM webhook_jobs
             WHERE endpoint_id = ?1 AND state = 'pending' AND run_at <= ?2
             ORDER BY run_at LIMIT ?4{skip_locked})
         RETURNING id, event_id, tenant_id, type, body, attempts"
    )
}

fn claimed(row: &Row<'_>) -> Result<ClaimedJob, StoreError> {
    Ok(ClaimedJob {
        id: row.parse(0)?,
        event: row.parse(1)?,
        tenant: row.parse(2)?,
        kind: row.text(3)?,
        body: row.text(4)?,
        attempts: row.get(5)?,
    })
}

/// Writes down an attempt and what follows from it.
pub fn finish(
    tx: &mut Tx<'_>,
    job: &DeliveryId,
    number: u32,
    attempt: &Attempt,
    after: After,
) -> Result<(), StoreError> {
    let (state, run_at) = match after {
        After::Delivered => ("delivered", attempt.at),
        After::Retry { at } => ("pending", at),
        After::GiveUp => ("failed", attempt.at),
    };
    let known = tx.execute(
        "UPDATE webhook_jobs SET state = ?2, run_at = ?3, attempts = ?4, claimed_until = NULL WHERE id = ?1",
        params![job.as_str(), state, run_at, number],
    )?;
    // The tenant may have deleted the endpoint, with all that was on its way, while this was on its way.
    if known == 0 {
        return Ok(());
    }
    tx.execute(
        "INSERT INTO webhook_attempts (job_id, attempt, at, status, error, ms)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (job_id, attempt) DO NOTHING",
        params![job.as_str(), number, attempt.at, attempt.status, attempt.error, attempt.ms],
    )?;
    Ok(())
}

/// Notes whether an endpoint works; answers since when it has been failing without a success between.
pub fn note_health(
    tx: &mut Tx<'_>,
    endpoint: &EndpointId,
    works: bool,
    now: UnixMs,
) -> Result<Option<UnixMs>, StoreError> {
    if works {
        tx.execute(
            "UPDATE webhook_endpoints SET failing_since = NULL WHERE id = ?1 AND failing_since IS NOT NULL",
            params![endpoint.as_str()],
        )?;
        return Ok(None);
    }
    tx.query_opt(
        "UPDATE webhook_endpoints SET failing_since = COALESCE(failing_since, ?2) WHERE id = ?1
         RETURNING failing_since",
        params![endpoint.as_str(), now],
        |row| row.get(0),
    )
}

/// Switches an endpoint off, with the reason; what waits for it fails, step by step. False when it was off already or is gone.
pub fn disable(
    tx: &mut Tx<'_>,
    endpoint: &EndpointId,
    reason: &str,
    now: UnixMs,
) -> Result<bool, StoreError> {
    let changed = tx.execute(
        "UPDATE webhook_endpoints SET disabled_at = ?2, disabled_reason = ?3
         WHERE id = ?1 AND disabled_at IS NULL",
        params![endpoint.as_str(), now, reason],
    )?;
    fail_pending(tx, endpoint)?;
    Ok(changed > 0)
}

fn fail_pending(tx: &mut Tx<'_>, endpoint: &EndpointId) -> Result<(), StoreError> {
    tx.execute(FAIL_PENDING, params![endpoint.as_str(), FAIL_ROWS])?;
    Ok(())
}

pub(super) const FAIL_PENDING: &str =
    "UPDATE webhook_jobs SET state = 'failed', claimed_until = NULL
     WHERE id IN (SELECT id FROM webhook_jobs WHERE endpoint_id = ?1 AND state = 'pending'
                  ORDER BY run_at LIMIT ?2)";

/// Rows failed in one go: an endpoint may have been behind by days, and the writer has other work to do.
const FAIL_ROWS: usize = 1_000;
