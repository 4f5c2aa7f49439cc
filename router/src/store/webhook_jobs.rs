//! Webhooks on their way: the outbox that is written together with the change it tells of, and what the
//! delivery worker does with it.

use std::collections::BTreeSet;

use protocol::api::{WEBHOOK_TEST, WebhookBody, WebhookData};
use protocol::{DeliveryId, EndpointId, EventId, TenantId, UnixMs};

use super::{StoreError, Tx, webhook_endpoints};
use crate::clock;
use crate::params;

/// A job that is due, with all that its delivery needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DueJob {
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
    /// Those among them that were made before it was last replayed: the schedule has begun anew since.
    pub round_from: u32,
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
    /// `whsec_…`: what it is signed with, the newest first.
    pub secrets: Vec<String>,
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
    /// How the answer's body began.
    pub response: Option<String>,
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

/// Puts an event into the outbox of every endpoint of the tenant that wants its type; answers how many those are. What
/// happens in the sandbox (`true`) is told to the sandbox's endpoints alone, and nothing else is.
///
/// Call it in the transaction that makes the change: either both are on disk or neither.
pub fn enqueue(
    tx: &mut Tx<'_>,
    who: (&TenantId, bool),
    kind: &str,
    data: &WebhookData,
    at: UnixMs,
) -> Result<usize, StoreError> {
    enqueue_at(tx, who, kind, data, (at, at))
}

/// [`enqueue`] for what happened at another time than now, or by another clock than ours: a phone whose clock is wrong
/// must not put off the delivery.
pub fn enqueue_at(
    tx: &mut Tx<'_>,
    (tenant, test): (&TenantId, bool),
    kind: &str,
    data: &WebhookData,
    (happened, at): (UnixMs, UnixMs),
) -> Result<usize, StoreError> {
    let endpoints = tx.query(
        "SELECT id, events FROM webhook_endpoints WHERE tenant_id = ?1 AND test = ?2 AND disabled_at IS NULL
         ORDER BY id",
        params![tenant.as_str(), test],
        // The change itself does not fail because an endpoint is damaged.
        |row| Ok((row.text(0).ok(), row.text(1))),
    )?;
    let mut wanted = Vec::with_capacity(endpoints.len());
    for (endpoint, events) in endpoints {
        if wants(events, kind) {
            wanted.extend(endpoint);
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
        insert(tx, tenant, endpoint, (&event, kind, &body), at)?;
    }
    Ok(wanted.len())
}

/// Puts an event that says nothing but that it is a test into the outbox of one endpoint, whatever types that wants.
pub fn enqueue_test(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    endpoint: &EndpointId,
    at: UnixMs,
) -> Result<DeliveryId, StoreError> {
    let data = WebhookData {
        tenant: Some(tenant.clone()),
        detail: Some("This is a test; nothing has happened.".to_owned()),
        ..WebhookData::default()
    };
    let body = WebhookBody { kind: WEBHOOK_TEST.to_owned(), timestamp: at, data };
    let body = serde_json::to_string(&body)
        .map_err(|error| StoreError::corrupt("webhook_jobs.body", error))?;
    let event = EventId::new(at.0, clock::random());
    insert(tx, tenant, endpoint.as_str(), (&event, WEBHOOK_TEST, &body), at)
}

fn insert(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    endpoint: &str,
    (event, kind, body): (&EventId, &str, &str),
    at: UnixMs,
) -> Result<DeliveryId, StoreError> {
    let id = DeliveryId::new(at.0, clock::random());
    tx.execute(
        "INSERT INTO webhook_jobs
             (id, endpoint_id, tenant_id, event_id, type, body, state, run_at, attempts, created_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, 'pending', ?7, 0, ?7)",
        params![id, endpoint, tenant, event, kind, body, at],
    )?;
    Ok(id)
}

/// Whether an endpoint's JSON list of types names `kind`; an empty list and `*` mean all. So does a damaged one: rather
/// a webhook too many than a change of state that fails because it cannot be told.
fn wants(events: Result<String, StoreError>, kind: &str) -> bool {
    let list = events.and_then(|events| {
        serde_json::from_str::<Vec<String>>(&events)
            .map_err(|error| StoreError::corrupt("webhook_endpoints.events", error))
    });
    match list {
        Ok(list) => list.is_empty() || list.iter().any(|wanted| wanted == "*" || wanted == kind),
        Err(error) => {
            tracing::error!(error = %error, "webhooks: an endpoint's list of types is damaged");
            true
        }
    }
}

/// Before everything that falls due.
const NEVER: UnixMs = UnixMs(i64::MIN);

/// An endpoint that has something waiting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Which endpoint.
    pub endpoint: EndpointId,
    /// When the first of it is due; `None` where all of it is left alone.
    pub due: Option<UnixMs>,
    /// Attempts that have failed since one did not.
    pub failures: u32,
    /// Nothing is to be posted before that.
    pub paused_until: Option<UnixMs>,
}

/// The id of an endpoint that cannot be read, and why.
pub type Damaged = (String, StoreError);

/// Every endpoint that has something waiting. What fell due by `left_alone` does not count.
///
/// The recursion jumps from endpoint to endpoint along the index, so that its cost grows with the endpoints that
/// have work and not with the work. What is read of an endpoint whose row is damaged is its id and what is wrong.
pub fn waiting_endpoints(
    tx: &mut Tx<'_>,
    left_alone: Option<UnixMs>,
) -> Result<Vec<Result<Waiting, Damaged>>, StoreError> {
    tx.query(WAITING, params![left_alone.unwrap_or(NEVER)], |row| {
        let read = || -> Result<Waiting, StoreError> {
            Ok(Waiting {
                endpoint: row.parse(0)?,
                // A job whose time cannot be read is found, and failed, with what is due.
                due: row.get(1).unwrap_or(Some(NEVER)),
                failures: row.get(2)?,
                // What waits for an endpoint that is off is failed without delay.
                paused_until: if row.get(4)? { None } else { row.get(3)? },
            })
        };
        Ok(read().map_err(|error| (row.text(0).unwrap_or_default(), error)))
    })
}

pub(super) const WAITING: &str = "WITH RECURSIVE waiting (id) AS (
             SELECT MIN(endpoint_id) FROM webhook_jobs WHERE state = 'pending'
             UNION ALL
             SELECT (SELECT MIN(j.endpoint_id) FROM webhook_jobs j
                     WHERE j.state = 'pending' AND j.endpoint_id > waiting.id)
             FROM waiting WHERE waiting.id IS NOT NULL)
         SELECT waiting.id, (SELECT MIN(j.run_at) FROM webhook_jobs j
                             WHERE j.state = 'pending' AND j.endpoint_id = waiting.id AND j.run_at > ?1),
             e.failures, e.paused_until, e.disabled_at IS NOT NULL
         FROM waiting JOIN webhook_endpoints e ON e.id = waiting.id
         WHERE waiting.id IS NOT NULL AND COALESCE(e.disabled_reason, '') <> 'deleted'";

/// What is next for an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Next {
    /// Where it goes.
    pub target: Target,
    /// What is due, the longest due first.
    pub jobs: Vec<DueJob>,
    /// When the first one that is not among them falls due.
    pub later: Option<UnixMs>,
    /// Rows of jobs that are due and cannot be read: they are to be failed, or they would stand before the others for ever.
    pub damaged: Vec<i64>,
}

/// Up to `limit` due jobs of an endpoint that are not `under_way`; `None` where it is gone.
///
/// What is under way is known to the one worker that there is, and to nobody else: what a dead router had under way is due
/// as if it had never been tried. What fell due by `left_alone` waits (see [`crate::starts`]). A job whose row cannot be read
/// is said in the log and is [`Next::damaged`].
pub fn next(
    tx: &mut Tx<'_>,
    endpoint: &EndpointId,
    now: UnixMs,
    left_alone: Option<UnixMs>,
    (under_way, limit): (&BTreeSet<DeliveryId>, usize),
) -> Result<Option<Next>, StoreError> {
    let target = tx.query_opt(
        "SELECT id, tenant_id, url, secret, disabled_at IS NOT NULL, previous_secret, previous_until
         FROM webhook_endpoints WHERE id = ?1",
        params![endpoint],
        |row| {
            let mut secrets = vec![row.text(3)?];
            let previous = webhook_endpoints::previous(row.opt_text(5)?.as_deref(), row.get(6)?, now)?;
            secrets.extend(previous.into_iter().map(|one| one.secret));
            Ok(Target {
                endpoint: row.parse(0)?,
                tenant: row.parse(1)?,
                url: row.text(2)?,
                secrets,
                disabled: row.get(4)?,
            })
        },
    )?;
    let Some(target) = target else { return Ok(None) };
    let mut next = Next { target, jobs: Vec::new(), later: None, damaged: Vec::new() };
    if next.target.disabled {
        return Ok(Some(next));
    }
    let rows = under_way.len().saturating_add(limit).saturating_add(1);
    tx.query(NEXT, params![endpoint, rows, left_alone.unwrap_or(NEVER)], |row| {
        let mut place = || -> Result<(), StoreError> {
            let id: DeliveryId = row.parse(0)?;
            if next.later.is_some() || under_way.contains(&id) {
                return Ok(());
            }
            let run_at = row.get(1)?;
            if run_at > now || next.jobs.len() >= limit {
                next.later = Some(run_at);
                return Ok(());
            }
            next.jobs.push(DueJob {
                id,
                event: row.parse(2)?,
                tenant: row.parse(3)?,
                kind: row.text(4)?,
                body: row.text(5)?,
                attempts: row.get(6)?,
                round_from: row.get(7)?,
            });
            Ok(())
        };
        if let Err(error) = place() {
            let delivery = row.text(0).unwrap_or_default();
            tracing::error!(delivery, error = %error, "webhooks: a delivery's row is damaged; it is failed");
            next.damaged.push(row.int(8)?);
        }
        Ok(())
    })?;
    Ok(Some(next))
}

pub(super) const NEXT: &str =
    "SELECT id, run_at, event_id, tenant_id, type, body, attempts, round_from, rowid FROM webhook_jobs
     WHERE endpoint_id = ?1 AND state = 'pending' AND run_at > ?3 ORDER BY run_at LIMIT ?2";

/// Fails the deliveries of these rows, which cannot be read: nothing could be posted of them.
pub fn fail_damaged(tx: &mut Tx<'_>, rows: &[i64]) -> Result<(), StoreError> {
    for row in rows {
        tx.execute(
            "UPDATE webhook_jobs SET state = 'failed' WHERE rowid = ?1 AND state = 'pending'",
            params![*row],
        )?;
    }
    Ok(())
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
        "UPDATE webhook_jobs SET state = ?2, run_at = ?3, attempts = ?4 WHERE id = ?1",
        params![job.as_str(), state, run_at, number],
    )?;
    // The tenant may have deleted the endpoint, with all that was on its way, while this was on its way.
    if known == 0 {
        return Ok(());
    }
    tx.execute(
        "INSERT INTO webhook_attempts (job_id, attempt, at, status, error, ms, response)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT (job_id, attempt) DO NOTHING",
        params![
            job,
            number,
            attempt.at,
            attempt.status,
            attempt.error,
            attempt.ms,
            attempt.response
        ],
    )?;
    Ok(())
}

/// Notes that an endpoint works, where it still is where it was called.
pub fn works(tx: &mut Tx<'_>, called: &Target) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE webhook_endpoints SET failing_since = NULL, failures = 0, paused_until = NULL
         WHERE id = ?1 AND url = ?2 AND failures > 0",
        params![called.endpoint, called.url],
    )?;
    Ok(())
}

/// Whether an endpoint still is where it was called. What was answered elsewhere says nothing of it.
pub fn is_there(tx: &mut Tx<'_>, called: &Target) -> Result<bool, StoreError> {
    let found = tx.query_opt(
        "SELECT 1 FROM webhook_endpoints WHERE id = ?1 AND url = ?2",
        params![called.endpoint, called.url],
        |row| row.int(0),
    )?;
    Ok(found.is_some())
}

/// Notes that an endpoint has failed; answers since when it has without a success between, and how often. `None` where it
/// is gone, or elsewhere than it was called. What was begun before the endpoint was left alone says nothing that was not known
/// then, and is not counted: of many deliveries under way one outage fails all.
pub fn fails(
    tx: &mut Tx<'_>,
    called: &Target,
    (began, now): (UnixMs, UnixMs),
) -> Result<Option<(UnixMs, u32)>, StoreError> {
    tx.query_opt(
        "UPDATE webhook_endpoints SET failing_since = COALESCE(failing_since, ?2),
             failures = failures + CASE WHEN paused_until > ?4 THEN 0 ELSE 1 END
         WHERE id = ?1 AND url = ?3 RETURNING failing_since, failures",
        params![called.endpoint, now, called.url, began],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )
}

/// Leaves an endpoint alone until then, if it is not left alone for longer already, and still is where it was called.
pub fn pause(tx: &mut Tx<'_>, called: &Target, until: UnixMs) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE webhook_endpoints SET paused_until = ?2
         WHERE id = ?1 AND url = ?3 AND (paused_until IS NULL OR paused_until < ?2)",
        params![called.endpoint, until, called.url],
    )?;
    Ok(())
}

/// Switches an endpoint off, with the reason; what waits for it fails, step by step. False when it was off already, is gone,
/// or elsewhere than it was called.
pub fn disable(
    tx: &mut Tx<'_>,
    called: &Target,
    reason: &str,
    now: UnixMs,
) -> Result<bool, StoreError> {
    let changed = tx.execute(
        "UPDATE webhook_endpoints SET disabled_at = ?2, disabled_reason = ?3
         WHERE id = ?1 AND url = ?4 AND disabled_at IS NULL",
        params![called.endpoint, now, reason, called.url],
    )?;
    fail_pending(tx, &called.endpoint)?;
    Ok(changed > 0)
}

/// Fails what waits for an endpoint that is switched off: it is not delivered, and can be replayed. A part of it, where
/// it is much.
pub fn fail_pending(tx: &mut Tx<'_>, endpoint: &EndpointId) -> Result<(), StoreError> {
    tx.execute(FAIL_PENDING, params![endpoint.as_str(), FAIL_ROWS])?;
    Ok(())
}

pub(super) const FAIL_PENDING: &str = "UPDATE webhook_jobs SET state = 'failed'
     WHERE id IN (SELECT id FROM webhook_jobs WHERE endpoint_id = ?1 AND state = 'pending'
                  AND EXISTS (SELECT 1 FROM webhook_endpoints e WHERE e.id = ?1 AND e.disabled_at IS NOT NULL)
                  ORDER BY run_at LIMIT ?2)";

/// Rows failed in one go: an endpoint may have been behind by days, and the writer has other work to do.
const FAIL_ROWS: usize = 1_000;
