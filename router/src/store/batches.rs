//! Batches: one text to many recipients, who become messages page by page.

use std::collections::BTreeMap;

use protocol::api::{Batch, BatchRecipient, BatchState, UsedTemplate, WebhookData};
use protocol::{BatchId, Class, MessageId, Reason, Recipient, Status, TenantId, UnixMs};

use super::credit::{self, Reservation};
use super::messages::{self, NewMessage};
use super::{Json, Row, StoreError, Tx, templates, webhook_jobs};
use crate::billing::Refusal;
use crate::clock;
use crate::compliance::class::fits_batch;
use crate::config;
use crate::params;
use crate::template::Template;

/// Rows deleted in one transaction, so that tidying up holds up nobody.
const SWEEP_ROWS: usize = 2_000;
/// Batches at work that one look finds; the next one looks behind them.
pub const AT_WORK_ROWS: usize = 1_000;

/// Makes a batch.
pub fn insert(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    new: &Batch,
    test: bool,
) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO batches (id, tenant_id, test, name, state, text, template_id, template_version, variables,
             asked_from, channel_asked, class, metadata, send_at, ttl_s, recipients, duplicates, invalid, expanded,
             created_at, updated_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, 0, 0, 0, 0, ?16, ?16)",
        params![
            new.id,
            tenant,
            test,
            new.name,
            new.state,
            new.text,
            new.template.as_ref().map(|used| &used.id),
            new.template.as_ref().map(|used| used.version),
            Json(&new.variables),
            new.from,
            new.channel,
            new.class,
            new.metadata.as_ref().map(Json),
            new.send_at,
            new.ttl_seconds,
            new.created_at
        ],
    )?;
    Ok(())
}

const COLUMNS: &str = "SELECT id, name, state, reason, text, template_id, template_version, variables, channel_asked, \
     class, asked_from, send_at, ttl_s, metadata, recipients, duplicates, invalid, expanded, created_at, updated_at, \
     started_at, ended_at, test, forgotten_at FROM batches";

fn read(row: &Row<'_>) -> Result<Batch, StoreError> {
    let metadata: Option<Json<BTreeMap<String, String>>> = row.get(13)?;
    Ok(Batch {
        id: row.get(0)?,
        name: row.text(1)?,
        state: row.parse(2)?,
        reason: row.get(3)?,
        text: row.opt_text(4)?,
        template: match (row.get(5)?, row.get(6)?) {
            (Some(id), Some(version)) => Some(UsedTemplate { id, version }),
            _ => None,
        },
        variables: row.get::<Json<BTreeMap<String, String>>>(7)?.0,
        channel: row.get(8)?,
        class: row.get(9)?,
        from: row.get(10)?,
        send_at: row.get(11)?,
        ttl_seconds: row.get(12)?,
        metadata: metadata.map(|json| json.0),
        recipients: row.get(14)?,
        duplicates: row.get(15)?,
        invalid: row.get(16)?,
        expanded: row.get(17)?,
        outcomes: None,
        created_at: row.get(18)?,
        updated_at: row.get(19)?,
        started_at: row.get(20)?,
        ended_at: row.get(21)?,
        forgotten_at: row.get(23)?,
    })
}

/// A batch and whether it belongs to the sandbox; `None` where the tenant has no such batch.
pub fn get(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    id: &BatchId,
) -> Result<Option<(Batch, bool)>, StoreError> {
    tx.query_opt(
        &format!("{COLUMNS} WHERE id = ?1 AND tenant_id = ?2"),
        params![id, tenant],
        |row| Ok((read(row)?, row.get(22)?)),
    )
}

/// A tenant's batches, newest first; with `test` those of the sandbox alone. Answers one row more than `limit` where
/// there is more.
pub fn list(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    test: bool,
    before: Option<&str>,
    limit: u32,
) -> Result<Vec<Batch>, StoreError> {
    // Behind every id: ids are prefix and 0-9a-v.
    let before = before.unwrap_or("~");
    tx.query(
        &format!(
            "{COLUMNS} WHERE tenant_id = ?1 AND id < ?2 AND test >= ?4 ORDER BY id DESC LIMIT ?3"
        ),
        params![tenant, before, limit.saturating_add(1), test],
        read,
    )
}

/// How many batches of a tenant have not ended.
pub fn open(tx: &mut Tx<'_>, tenant: &TenantId) -> Result<u32, StoreError> {
    tx.query_row(
        "SELECT COUNT(*) FROM batches
         WHERE tenant_id = ?1 AND state IN ('draft', 'scheduled', 'running', 'paused', 'canceling')",
        params![tenant],
        |row| row.get(0),
    )
}

/// How many messages of a batch stand where.
pub fn outcomes(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    id: &BatchId,
) -> Result<BTreeMap<Status, u64>, StoreError> {
    // The tenant by way of the batch: an index over both would be one more for every message.
    let counts = tx.query(OUTCOMES, params![id, tenant], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(counts.into_iter().collect())
}

const OUTCOMES: &str =
    "SELECT m.status, COUNT(*) FROM batches b JOIN messages m ON m.batch_id = b.id
     WHERE b.id = ?1 AND b.tenant_id = ?2 GROUP BY m.status";

/// A recipient on its way into a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRecipient {
    /// Who.
    pub recipient: Recipient,
    /// What stands for each variable.
    pub variables: BTreeMap<String, String>,
}

/// Writes recipients behind the last one, `from` being its position; answers the position of the last that is new. Who is
/// there already is left out. They do not count before [`count_in`].
pub fn add(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    id: &BatchId,
    from: u64,
    rows: &[NewRecipient],
) -> Result<u64, StoreError> {
    let mut last = from;
    for row in rows {
        let variables = (!row.variables.is_empty()).then_some(Json(&row.variables));
        let added = tx.execute(
            "INSERT INTO batch_recipients (batch_id, position, tenant_id, recipient, variables)
             VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (batch_id, recipient) DO NOTHING",
            params![id, last.saturating_add(1), tenant, row.recipient, variables],
        )?;
        last = last.saturating_add(u64::try_from(added).unwrap_or(0));
    }
    Ok(last)
}

/// What a chunk adds to a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Chunk {
    /// The recipients that the batch had.
    pub before: u64,
    /// The recipients that it has.
    pub after: u64,
    /// Rows that named one again.
    pub duplicates: u64,
    /// Rows that could not be used.
    pub invalid: u64,
}

/// Lets the recipients of a chunk count. False where the batch is no draft any more, or has got others meanwhile.
pub fn count_in(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    id: &BatchId,
    chunk: Chunk,
    now: UnixMs,
) -> Result<bool, StoreError> {
    let rows = tx.execute(
        "UPDATE batches SET recipients = ?4, duplicates = duplicates + ?5, invalid = invalid + ?6, updated_at = ?7
         WHERE id = ?1 AND tenant_id = ?2 AND state = 'draft' AND recipients = ?3",
        params![id, tenant, chunk.before, chunk.after, chunk.duplicates, chunk.invalid, now],
    )?;
    Ok(rows > 0)
}

/// Deletes some of the rows that an upload has left that did not end; answers how many.
pub fn sweep(tx: &mut Tx<'_>, tenant: &TenantId, id: &BatchId) -> Result<usize, StoreError> {
    tx.execute(
        "DELETE FROM batch_recipients WHERE batch_id = ?1 AND position IN (
             SELECT r.position FROM batch_recipients r JOIN batches b ON b.id = r.batch_id
             WHERE r.batch_id = ?1 AND b.tenant_id = ?2 AND r.position > b.recipients
             ORDER BY r.position LIMIT ?3)",
        params![id, tenant, SWEEP_ROWS],
    )
}

/// Recipients that one page looks at where only some of them are asked for: what it costs must not grow with how rare those
/// are.
pub const LOOKED_AT_ROWS: u32 = 5_000;

/// Recipients behind `after`, in their order, with what has come of them. Answers at most `limit`.
pub fn recipients(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    id: &BatchId,
    after: u64,
    limit: u32,
) -> Result<Vec<BatchRecipient>, StoreError> {
    tx.query(RECIPIENTS, params![id, tenant, after, limit], |row| {
        let reason: Option<Reason> = row.get(4)?;
        let held: Option<Reason> = row.get(5)?;
        Ok(BatchRecipient {
            number: row.get(0)?,
            to: row.get(1)?,
            message: row.get(2)?,
            status: row.get(3)?,
            reason: reason.or(held),
            updated_at: row.get(6)?,
        })
    })
}

const RECIPIENTS: &str =
    "SELECT r.position, r.recipient, r.message_id, m.status, m.reason, m.held_reason, m.updated_at
     FROM batches b JOIN batch_recipients r ON r.batch_id = b.id AND r.position <= b.recipients
         LEFT JOIN messages m ON m.id = r.message_id
     WHERE b.id = ?1 AND b.tenant_id = ?2 AND r.batch_id = ?1 AND r.position > ?3 ORDER BY r.position LIMIT ?4";

/// Moves a batch.
fn set_state(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    id: &BatchId,
    (state, reason): (BatchState, Option<Reason>),
    now: UnixMs,
) -> Result<(), StoreError> {
    let started = matches!(state, BatchState::Scheduled | BatchState::Running).then_some(now);
    let ended = matches!(state, BatchState::Canceled | BatchState::Completed).then_some(now);
    tx.execute(
        "UPDATE batches SET state = ?3, reason = ?4, updated_at = ?5, started_at = COALESCE(started_at, ?6),
             ended_at = ?7 WHERE id = ?1 AND tenant_id = ?2",
        params![id, tenant, state, reason, now, started, ended],
    )?;
    Ok(())
}

/// What is wanted of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Begin.
    Start,
    /// Make no more messages for now.
    Pause,
    /// Go on.
    Resume,
    /// Withdraw everything that can be.
    Cancel,
}

/// Where a batch goes when this is wanted of it; `None` where that cannot be. What is wanted and is so already is no
/// fault.
pub fn next_state(state: BatchState, wish: Wish, is_early: bool) -> Option<BatchState> {
    use BatchState::{Canceled, Canceling, Completed, Draft, Paused, Running, Scheduled};
    let going = if is_early { Scheduled } else { Running };
    match (wish, state) {
        (Wish::Start, Draft) | (Wish::Resume, Paused) => Some(going),
        (Wish::Start | Wish::Resume, Scheduled | Running)
        | (Wish::Cancel, Canceling | Canceled) => Some(state),
        (Wish::Pause, Scheduled | Running | Paused) => Some(Paused),
        (Wish::Cancel, Draft | Scheduled | Running | Paused) => Some(Canceling),
        (Wish::Start, Paused | Canceling | Canceled | Completed)
        | (Wish::Pause | Wish::Resume, Draft | Canceling | Canceled | Completed)
        | (Wish::Cancel, Completed) => None,
    }
}

/// How a wish went.
#[derive(Debug, Clone, PartialEq)]
pub enum Turned {
    /// As it is now.
    Now(Box<Batch>),
    /// It stands where that cannot be.
    NotFrom(BatchState),
    /// It has no recipients.
    Empty,
}

/// Does what is wanted of a batch; `None` where the tenant has no such batch.
pub fn turn(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    id: &BatchId,
    wish: Wish,
    now: UnixMs,
) -> Result<Option<Turned>, StoreError> {
    let Some((batch, _test)) = get(tx, tenant, id)? else { return Ok(None) };
    let is_early = batch.send_at.is_some_and(|at| at > now);
    let Some(state) = next_state(batch.state, wish, is_early) else {
        return Ok(Some(Turned::NotFrom(batch.state)));
    };
    if wish == Wish::Start && batch.recipients == 0 {
        return Ok(Some(Turned::Empty));
    }
    if state == batch.state {
        return Ok(Some(Turned::Now(Box::new(batch))));
    }
    set_state(tx, tenant, id, (state, None), now)?;
    let batch = get(tx, tenant, id)?.ok_or(StoreError::NoRow)?.0;
    Ok(Some(Turned::Now(Box::new(batch))))
}

/// Batches behind `after` that have something to be done by `now`, in the order in which they were made; at most `limit`.
/// Those that wait for their time are not among them.
pub fn at_work(
    tx: &mut Tx<'_>,
    after: Option<&BatchId>,
    now: UnixMs,
    limit: usize,
) -> Result<Vec<(TenantId, BatchId)>, StoreError> {
    let after = after.map_or("", BatchId::as_str);
    tx.query(AT_WORK, params![after, now, limit], |row| Ok((row.get(0)?, row.get(1)?)))
}

const AT_WORK: &str =
    "SELECT tenant_id, id FROM batches WHERE state IN ('scheduled', 'running', 'canceling') AND id > ?1
         AND (state <> 'scheduled' OR send_at IS NULL OR send_at <= ?2)
     ORDER BY id LIMIT ?3";

/// How much is done in one step.
#[derive(Debug, Clone, Copy)]
pub struct Measure {
    /// Rows of a page.
    pub page: u32,
    /// Lives of messages that name none, and how many of a batch may wait in the queue.
    pub lives: config::Messages,
}

/// What a step came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// So many recipients have become messages; there is more to do.
    Expanded(usize),
    /// These messages were withdrawn, or are asked back from their phones; there may be more.
    Canceled(Vec<MessageId>),
    /// Its state has changed.
    Turned(BatchState),
    /// There is nothing to do now.
    Waits,
}

/// Does the next bit of a batch's work: one page of it, in the caller's transaction, with the place it has come to. What
/// is cut off anywhere is done again from there, so that nobody is left out and nobody is written to twice.
pub fn step(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    id: &BatchId,
    measure: &Measure,
    now: UnixMs,
) -> Result<Step, StoreError> {
    let Some((batch, test)) = get(tx, tenant, id)? else { return Ok(Step::Waits) };
    let turned = |tx: &mut Tx<'_>, state, reason| {
        set_state(tx, tenant, id, (state, reason), now)?;
        tell(tx, (tenant, test), &batch, (state, reason), now)?;
        Ok(Step::Turned(state))
    };
    match batch.state {
        BatchState::Scheduled if batch.send_at.is_some_and(|at| at > now) => Ok(Step::Waits),
        BatchState::Scheduled => turned(tx, BatchState::Running, None),
        BatchState::Running if batch.expanded < batch.recipients => {
            if queued(tx, tenant, id, measure.lives.batch_queued)? >= measure.lives.batch_queued {
                return Ok(Step::Waits);
            }
            let left = batch.recipients.saturating_sub(batch.expanded);
            let wanted = measure.page.min(u32::try_from(left).unwrap_or(u32::MAX));
            match paid(tx, tenant, if test { 0 } else { wanted }, now)? {
                Ok((reservation, rows)) => {
                    let rows = if test { wanted } else { rows };
                    let lives = &measure.lives;
                    expand(tx, tenant, (&batch, test), (&reservation, rows, lives), now)
                        .map(Step::Expanded)
                }
                // Nothing pays for the next one: the tenant resumes it when something does.
                Err(reason) => turned(tx, BatchState::Paused, Some(reason)),
            }
        }
        BatchState::Running if is_under_way(tx, tenant, id)? => Ok(Step::Waits),
        BatchState::Running => turned(tx, BatchState::Completed, None),
        BatchState::Canceling => {
            let withdrawn = withdraw(tx, tenant, id, measure.page, now)?;
            if !withdrawn.is_empty() {
                return Ok(Step::Canceled(withdrawn));
            }
            turned(tx, BatchState::Canceled, batch.reason)
        }
        BatchState::Draft | BatchState::Paused | BatchState::Canceled | BatchState::Completed => {
            Ok(Step::Waits)
        }
    }
}

/// Pauses a batch of which a step cannot be done: something of it cannot be read, and would not be the next time.
pub fn stall(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    id: &BatchId,
    now: UnixMs,
) -> Result<(), StoreError> {
    let (state, reason) = (BatchState::Paused, Some(Reason::CheckFailed));
    set_state(tx, tenant, id, (state, reason), now)?;
    match get(tx, tenant, id) {
        Ok(Some((batch, test))) => tell(tx, (tenant, test), &batch, (state, reason), now),
        Ok(None) => Ok(()),
        Err(error) if error.is_unavailable() => Err(error),
        // Its own row is what cannot be read; whoever looks at it is told so.
        Err(_damaged) => Ok(()),
    }
}

/// Puts the end of a batch into the tenant's outbox.
fn tell(
    tx: &mut Tx<'_>,
    (tenant, test): (&TenantId, bool),
    batch: &Batch,
    (state, reason): (BatchState, Option<Reason>),
    now: UnixMs,
) -> Result<(), StoreError> {
    use BatchState::{Canceled, Completed, Paused};
    if !matches!(state, Completed | Canceled | Paused) {
        return Ok(());
    }
    let data = WebhookData {
        tenant: Some(tenant.clone()),
        batch: Some(batch.id.clone()),
        reason,
        metadata: batch.metadata.clone(),
        ..WebhookData::default()
    };
    webhook_jobs::enqueue(tx, (tenant, test), &format!("batch.{state}"), &data, now)?;
    Ok(())
}

/// Messages of a batch that could be sent now, counted up to `max`.
fn queued(tx: &mut Tx<'_>, tenant: &TenantId, id: &BatchId, max: u32) -> Result<u32, StoreError> {
    tx.query_row(QUEUED, params![id, tenant, max], |row| row.get(0))
}

const QUEUED: &str = "SELECT COUNT(*) FROM (SELECT 1 FROM messages WHERE batch_id = ?1 AND status = 'queued'
         AND held_reason IS NULL AND EXISTS (SELECT 1 FROM batches b WHERE b.id = ?1 AND b.tenant_id = ?2)
     LIMIT ?3) q";

/// Whether a message of a batch has not ended.
fn is_under_way(tx: &mut Tx<'_>, tenant: &TenantId, id: &BatchId) -> Result<bool, StoreError> {
    for status in [Status::Queued, Status::Scheduled, Status::Dispatching] {
        let found = tx.query_opt(
            "SELECT 1 FROM messages WHERE batch_id = ?1 AND status = ?3 AND tenant_id = ?2 LIMIT 1",
            params![id, tenant, status],
            |row| row.int(0),
        )?;
        if found.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Reserves what so many messages cost, or as many of them as can be paid for; why not, where that is none.
fn paid(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    wanted: u32,
    now: UnixMs,
) -> Result<Result<(Reservation, u32), Reason>, StoreError> {
    if wanted == 0 {
        return Ok(Ok((Reservation::FREE, 0)));
    }
    let mut wanted = wanted;
    loop {
        let refusal = match credit::reserve(tx, tenant, wanted, now)? {
            Ok(reservation) => return Ok(Ok((reservation, wanted))),
            Err(refusal) => refusal,
        };
        // What the quota leaves may be more than there is credit for, and the other way round. It gets less each time.
        let left = u32::try_from(refusal.left()).unwrap_or(u32::MAX);
        wanted = wanted.saturating_sub(1).min(left);
        if wanted == 0 {
            return Ok(Err(match refusal {
                Refusal::QuotaExceeded { .. } => Reason::QuotaExceeded,
                Refusal::InsufficientCredit { .. } => Reason::InsufficientCredit,
            }));
        }
    }
}

/// Turns the next page of recipients into messages.
fn expand(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    (batch, test): (&Batch, bool),
    (reservation, page, lives): (&Reservation, u32, &config::Messages),
    now: UnixMs,
) -> Result<usize, StoreError> {
    type Found = (u64, Recipient, Option<Json<BTreeMap<String, String>>>);
    let (template, mut defaults) = wording(tx, tenant, batch)?;
    defaults.extend(batch.variables.iter().map(|(name, value)| (name.clone(), value.clone())));
    let rows: Vec<Found> =
        tx.query(PAGE, params![batch.id, tenant, batch.expanded, batch.recipients, page], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })?;
    let made = u32::try_from(rows.len()).unwrap_or(u32::MAX);
    if made == 0 && page > 0 {
        // Nobody may be charged, page after page, for recipients who are not there.
        return Err(StoreError::corrupt("batches.recipients", "more than there are"));
    }
    credit::release(tx, reservation, page.saturating_sub(made), now)?;
    // A draft from before such a class was refused.
    let class = if fits_batch(batch.class) { batch.class } else { Class::Marketing };
    let life_s = batch.ttl_seconds.unwrap_or_else(|| lives.life_s_of(class));
    let expires_at = now.plus_ms(i64::from(life_s) * 1_000);
    let mut last = batch.expanded;
    let none = BTreeMap::new();
    for (position, recipient, variables) in &rows {
        let values = variables.as_ref().map_or(&none, |json| &json.0);
        let text = template.render(&defaults, values).map_err(|lacks| {
            // It was tried out when the recipient was added.
            StoreError::corrupt("batch_recipients.variables", format!("{} lacks", lacks.len()))
        })?;
        let new = NewMessage {
            id: MessageId::new(now.0, clock::random()),
            test,
            recipient: recipient.clone(),
            from: batch.from.clone(),
            channel: batch.channel,
            class,
            text,
            template: batch.template.clone(),
            batch: Some(batch.id.clone()),
            fallback: None,
            media: Vec::new(),
            metadata: batch.metadata.clone(),
            send_at: None,
            expires_at,
            now,
        };
        messages::accept(tx, tenant, &new, reservation)?;
        tx.execute(
            "UPDATE batch_recipients SET message_id = ?4 WHERE batch_id = ?1 AND position = ?3 AND tenant_id = ?2",
            params![batch.id, tenant, position, new.id],
        )?;
        last = *position;
    }
    tx.execute(
        "UPDATE batches SET expanded = ?3 WHERE id = ?1 AND tenant_id = ?2",
        params![batch.id, tenant, last],
    )?;
    Ok(rows.len())
}

const PAGE: &str = "SELECT position, recipient, variables FROM batch_recipients
     WHERE batch_id = ?1 AND tenant_id = ?2 AND position > ?3 AND position <= ?4 ORDER BY position LIMIT ?5";

/// What a batch says, and what stands for variables that nobody gives.
pub fn wording(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    batch: &Batch,
) -> Result<(Template, BTreeMap<String, String>), StoreError> {
    let Some(used) = &batch.template else {
        return Ok((Template::plain(batch.text.as_deref().unwrap_or_default()), BTreeMap::new()));
    };
    let version = templates::pinned(tx, tenant, &used.id, used.version)?;
    let version = version.ok_or(StoreError::NoRow)?;
    let template = Template::parse(&version.text)
        .map_err(|fault| StoreError::corrupt("template_versions.text", fault.code()))?;
    Ok((template, version.defaults))
}

/// Withdraws some of a batch's messages, at once or by asking the phone that has them; answers which.
fn withdraw(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    id: &BatchId,
    limit: u32,
    now: UnixMs,
) -> Result<Vec<MessageId>, StoreError> {
    // What is given to a phone meanwhile is found after what waits. What comes back from one is asked for already.
    for status in [Status::Queued, Status::Scheduled, Status::Dispatching] {
        let found: Vec<MessageId> = tx.query(
            "SELECT id FROM messages WHERE batch_id = ?1 AND status = ?3 AND tenant_id = ?2 AND cancel_asked = 0
             LIMIT ?4",
            params![id, tenant, status, limit],
            |row| row.get(0),
        )?;
        if found.is_empty() {
            continue;
        }
        for message in &found {
            messages::cancel(tx, tenant, message, now)?;
        }
        return Ok(found);
    }
    Ok(Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::in_memory;

    #[test]
    fn a_batch_goes_only_where_it_can() {
        use BatchState::{Canceled, Canceling, Completed, Draft, Paused, Running, Scheduled};
        for state in BatchState::ALL.iter().copied() {
            let next = |wish| next_state(state, wish, false);
            let started = match state {
                Draft | Scheduled | Running => true,
                Paused | Canceling | Canceled | Completed => false,
            };
            assert_eq!(next(Wish::Start).is_some(), started, "{state}");
            let over = matches!(state, Canceling | Canceled | Completed);
            assert_eq!(next(Wish::Pause).is_some(), !over && state != Draft, "{state}");
            assert_eq!(next(Wish::Resume).is_some(), !over && state != Draft, "{state}");
            assert_eq!(next(Wish::Cancel).is_some(), state != Completed, "{state}");
            // What is over does not come back.
            for wish in [Wish::Start, Wish::Pause, Wish::Resume, Wish::Cancel] {
                assert!(!over || next(wish).is_none_or(|next| next == state), "{state} {wish:?}");
            }
        }
        assert_eq!(next_state(Draft, Wish::Start, true), Some(Scheduled));
        assert_eq!(next_state(Paused, Wish::Resume, true), Some(Scheduled));
        assert_eq!(next_state(Paused, Wish::Resume, false), Some(Running));
    }

    #[test]
    fn those_that_wait_for_their_time_keep_nobody_from_a_turn() {
        let connection = in_memory::open_loose();
        let (tenant, now) = (TenantId::new(1, [1; 10]), UnixMs(1_000));
        let mut tx = Tx::sqlite(&connection);
        let mut make = |at: i64, state: BatchState, send_at: Option<i64>| {
            let id = BatchId::new(at, [0; 10]);
            tx.execute(
                "INSERT INTO batches (id, tenant_id, test, name, state, text, variables, channel_asked, class, send_at,
                     recipients, duplicates, invalid, expanded, created_at, updated_at)
                 VALUES (?1, ?2, 0, 'a', ?3, 'b', '{}', 'auto', 'marketing', ?4, 0, 0, 0, 0, 0, 0)",
                params![id, tenant, state, send_at],
            )
            .unwrap();
            id
        };
        for at in 1..=5 {
            make(at, BatchState::Scheduled, Some(now.0 + 1));
        }
        let due = make(6, BatchState::Scheduled, Some(now.0));
        make(7, BatchState::Paused, None);
        let running = make(8, BatchState::Running, Some(now.0 + 1));
        let canceling = make(9, BatchState::Canceling, None);
        let mut look = |after: Option<&BatchId>| -> Vec<BatchId> {
            let found = at_work(&mut tx, after, now, 2).unwrap();
            found.into_iter().map(|(_tenant, id)| id).collect()
        };
        assert_eq!(look(None), [due.clone(), running.clone()]);
        assert_eq!(look(Some(&due)), [running.clone(), canceling.clone()]);
        assert_eq!(look(Some(&running)), std::slice::from_ref(&canceling));
        assert_eq!(look(Some(&canceling)), []);
    }

    #[test]
    fn nothing_that_is_asked_again_and_again_reads_more_than_it_needs() {
        let connection = in_memory::open();
        for (sql, index) in [
            (OUTCOMES, "messages_of_batch (batch_id=?)"),
            (QUEUED, "messages_of_batch (batch_id=? AND status=? AND held_reason=?)"),
            (RECIPIENTS, "(batch_id=? AND position>?"),
            (PAGE, "(batch_id=? AND position>? AND position<?)"),
            (AT_WORK, "batches_at_work"),
        ] {
            let plan = in_memory::plan(&connection, sql);
            assert!(plan.contains(index), "{sql}: {plan}");
            assert!(!plan.contains("TEMP B-TREE"), "{sql}: {plan}");
        }
    }
}
