//! What is kept for a while only: proofs and records of work that is over. Messages and their stories are not among it, nor
//! is the ledger of credits.

use protocol::api::BatchState;
use protocol::{BatchId, Channel, EventId, MessageId, Reason, Recipient, TenantId, UnixMs};

use super::credit::begun;
use super::{StoreError, Tx};
use crate::params;

/// How long it is kept: 30 days, longer than any trouble with a phone or an endpoint goes unnoticed.
pub const KEPT_MS: i64 = 30 * 86_400_000;

/// Rows of one table deleted in one transaction, so that pruning never holds up accepting.
const STEP_ROWS: usize = 500;

/// Rows deleted, by what they were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Unplaced events.
    pub unplaced: usize,
    /// Guids of messages received.
    pub guids: usize,
    /// Webhook jobs that had ended; their attempts went with them.
    pub deliveries: usize,
    /// Dead letters that nobody has looked after; the messages themselves stay.
    pub dead_letters: usize,
    /// Events of Stripe, which repeats none after so long, ends of subscriptions, and what waited for a tenant in vain.
    pub stripe: usize,
    /// What phones were asked of recipients.
    pub questions: usize,
}

impl Pruned {
    /// How many in all.
    pub fn rows(self) -> usize {
        self.unplaced
            + self.guids
            + self.deliveries
            + self.dead_letters
            + self.stripe
            + self.questions
    }
}

/// Deletes some of what ended before `before`; nothing more is left when it answers nothing.
pub fn prune(tx: &mut Tx<'_>, before: UnixMs) -> Result<Pruned, StoreError> {
    let step = params![before, STEP_ROWS];
    let unplaced = tx.execute(UNPLACED, step)?;
    let guids = tx.execute(GUIDS, step)?;
    tx.execute(ATTEMPTS, step)?;
    let deliveries = tx.execute(DELIVERIES, step)?;
    let dead_letters = tx.execute(DEAD_LETTERS, step)?;
    let stripe = tx.execute(STRIPE_EVENTS, step)?
        + tx.execute(STRIPE_CREDITS, step)?
        + tx.execute(SUBSCRIPTIONS, step)?;
    let questions = tx.execute(QUESTIONS, step)?;
    Ok(Pruned { unplaced, guids, deliveries, dead_letters, stripe, questions })
}

/// Deletes some of the recipients of batches that ended before `before`, the batch that ended first at first; answers how
/// many rows it has changed. What they have become stays, and so do the batch and its counts.
pub fn recipients(tx: &mut Tx<'_>, before: UnixMs, now: UnixMs) -> Result<usize, StoreError> {
    let over: Option<BatchId> = tx.query_opt(BATCHES_OVER, params![before], |row| row.get(0))?;
    let Some(batch) = over else { return Ok(0) };
    let deleted = tx.execute(RECIPIENTS, params![batch, STEP_ROWS])?;
    if deleted < STEP_ROWS {
        tx.execute(FORGOTTEN, params![batch, now])?;
        return Ok(deleted.saturating_add(1));
    }
    Ok(deleted)
}

const BATCHES_OVER: &str = "SELECT id FROM batches
     WHERE ended_at IS NOT NULL AND forgotten_at IS NULL AND ended_at < ?1 ORDER BY ended_at LIMIT 1";
const RECIPIENTS: &str = "DELETE FROM batch_recipients WHERE batch_id = ?1 AND position IN
     (SELECT position FROM batch_recipients WHERE batch_id = ?1 ORDER BY position LIMIT ?2)";
const FORGOTTEN: &str = "UPDATE batches SET forgotten_at = ?2 WHERE id = ?1";

/// Looks through some of the charges of messages that were accepted before `before`, those behind `after`, and deletes
/// what can no longer be given back: whatever a phone or a provider has begun is paid for, and a message that nobody knows
/// the end of is not among it. Answers how many, and the last that was looked at; `None` where there are no more.
pub fn charges(
    tx: &mut Tx<'_>,
    before: UnixMs,
    after: Option<&MessageId>,
) -> Result<(usize, Option<MessageId>), StoreError> {
    // Ids sort by time: the least one of an instant stands before all of them.
    let end = MessageId::new(before.0, [0; 10]);
    let after = after.map_or("", MessageId::as_str);
    let page: Vec<MessageId> =
        tx.query(OLD_CHARGES, params![after, end, STEP_ROWS], |row| row.get(0))?;
    let Some(last) = page.into_iter().next_back() else { return Ok((0, None)) };
    let deleted = tx.execute(CHARGES, params![after, last])?;
    Ok((deleted, Some(last)))
}

const OLD_CHARGES: &str = "SELECT message_id FROM charges WHERE message_id > ?1 AND message_id < ?2
     ORDER BY message_id LIMIT ?3";
/// What has one of the steps with which [`super::credit::give_back`] gives nothing back, or was paid for a message that had.
const CHARGES: &str = concat!(
    "DELETE FROM charges WHERE message_id > ?1 AND message_id <= ?2 AND (begun = 1 OR EXISTS (
         SELECT 1 FROM message_events e WHERE e.message_id = charges.message_id AND e.tenant_id = charges.tenant_id
             AND e.type IN ",
    begun!(),
    "))"
);

/// Deletes some of what the operator did before `before`; answers how many rows.
pub fn audit(tx: &mut Tx<'_>, before: UnixMs) -> Result<usize, StoreError> {
    tx.execute(AUDIT, params![EventId::new(before.0, [0; 10]), STEP_ROWS])
}

/// Withdraws some of the batches that are drafts or paused and were last changed before `before`, as their tenants could;
/// answers how many. They end like any batch that is withdrawn, and their recipients go like any other's.
pub fn idle_batches(tx: &mut Tx<'_>, before: UnixMs, now: UnixMs) -> Result<usize, StoreError> {
    tx.execute(
        IDLE_BATCHES,
        params![before, STEP_ROWS, BatchState::Canceling, Reason::Expired, now],
    )
}

const IDLE_BATCHES: &str = "UPDATE batches SET state = ?3, reason = ?4, updated_at = ?5 WHERE id IN
     (SELECT id FROM batches WHERE state IN ('draft', 'paused') AND updated_at < ?1 ORDER BY updated_at LIMIT ?2)";

/// The key of what is known of one channel of one recipient: tenant, mode, recipient and channel.
pub type Known = (TenantId, bool, Recipient, Channel);

/// Looks through some of what is known of the channels of recipients, behind `after`, and deletes what was last seen before
/// `before`. Answers how many rows, and the last that was looked at; `None` where there are no more. There is no index by
/// age: every message would pay for it.
pub fn capabilities(
    tx: &mut Tx<'_>,
    before: UnixMs,
    after: Option<&Known>,
) -> Result<(usize, Option<Known>), StoreError> {
    let (tenant, test, recipient, channel) = match after {
        Some((tenant, test, recipient, channel)) => {
            (tenant.as_str(), *test, recipient.to_string(), channel.as_str())
        }
        None => ("", false, String::new(), ""),
    };
    let key = params![tenant, test, recipient, channel, LOOKED_AT_ROWS];
    let page: Vec<Known> =
        tx.query(KNOWN, key, |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?;
    let Some(last) = page.into_iter().next_back() else { return Ok((0, None)) };
    let deleted = tx.execute(
        UNSEEN,
        params![tenant, test, recipient, channel, last.0, last.1, last.2, last.3, before],
    )?;
    Ok((deleted, Some(last)))
}

/// Rows of one table that are looked at in one transaction: a few milliseconds.
const LOOKED_AT_ROWS: usize = 2_000;

const KNOWN: &str = "SELECT tenant_id, test, recipient, channel FROM capabilities
     WHERE (tenant_id, test, recipient, channel) > (?1, ?2, ?3, ?4)
     ORDER BY tenant_id, test, recipient, channel LIMIT ?5";
const UNSEEN: &str =
    "DELETE FROM capabilities WHERE (tenant_id, test, recipient, channel) > (?1, ?2, ?3, ?4)
     AND (tenant_id, test, recipient, channel) <= (?5, ?6, ?7, ?8) AND at < ?9";

const AUDIT: &str = "DELETE FROM audit_log WHERE id IN
     (SELECT id FROM audit_log WHERE id < ?1 ORDER BY id LIMIT ?2)";

const UNPLACED: &str = "DELETE FROM unplaced_events WHERE (phone_id, journal, seq) IN
     (SELECT phone_id, journal, seq FROM unplaced_events WHERE at < ?1 ORDER BY at LIMIT ?2)";

const STRIPE_EVENTS: &str = "DELETE FROM stripe_events WHERE id IN
     (SELECT id FROM stripe_events WHERE at < ?1 ORDER BY at LIMIT ?2)";
const STRIPE_CREDITS: &str = "DELETE FROM stripe_waiting_credits WHERE (customer, reference) IN
     (SELECT customer, reference FROM stripe_waiting_credits WHERE at < ?1 ORDER BY at LIMIT ?2)";

const SUBSCRIPTIONS: &str = "DELETE FROM stripe_subscriptions WHERE (customer, subscription) IN
     (SELECT customer, subscription FROM stripe_subscriptions WHERE passing = 1 AND at < ?1 ORDER BY at LIMIT ?2)";

const QUESTIONS: &str = "DELETE FROM capability_questions WHERE (phone_id, recipient, tenant_id, test) IN
     (SELECT phone_id, recipient, tenant_id, test FROM capability_questions WHERE asked_at < ?1 ORDER BY asked_at LIMIT ?2)";

const DEAD_LETTERS: &str = "DELETE FROM dead_letters WHERE message_id IN
     (SELECT message_id FROM dead_letters WHERE at < ?1 ORDER BY at LIMIT ?2)";

// A message reported again after this is still known by its own row.
const GUIDS: &str = "DELETE FROM received_guids WHERE (phone_id, guid) IN
     (SELECT phone_id, guid FROM received_guids WHERE at < ?1 ORDER BY at LIMIT ?2)";

// `run_at` of a job that is over is when its last attempt was, or the next would have been. Both statements must choose the same jobs.
const ATTEMPTS: &str = "DELETE FROM webhook_attempts WHERE job_id IN
     (SELECT id FROM webhook_jobs WHERE state <> 'pending' AND run_at < ?1 ORDER BY run_at, id LIMIT ?2)";
const DELIVERIES: &str = "DELETE FROM webhook_jobs WHERE id IN
     (SELECT id FROM webhook_jobs WHERE state <> 'pending' AND run_at < ?1 ORDER BY run_at, id LIMIT ?2)";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::in_memory;

    const DAY_MS: i64 = 86_400_000;
    const NOW: UnixMs = UnixMs(1_700_000_000_000);

    fn store() -> rusqlite::Connection {
        let connection = in_memory::open();
        connection
            .execute_batch(
                "INSERT INTO tenants (id, name, brand, created_at) VALUES ('ten', 'Acme', 'Acme', 0);
                 INSERT INTO webhook_endpoints (id, tenant_id, url, secret, events, created_at)
                 VALUES ('whk', 'ten', 'u', 's', '[]', 0)",
            )
            .unwrap();
        connection
    }

    fn days_ago(days: i64) -> UnixMs {
        NOW.plus_ms(-days * DAY_MS)
    }

    fn add(tx: &mut Tx<'_>, name: &str, state: &str, at: UnixMs) {
        tx.execute(
            "INSERT INTO unplaced_events VALUES ('pho', ?1, 1, 'sent', ?2, 'why', '{}')",
            params![name, at],
        )
        .unwrap();
        tx.execute(
            "INSERT INTO received_guids (phone_id, guid, at) VALUES ('pho', ?1, ?2)",
            params![name, at],
        )
        .unwrap();
        tx.execute(
            "INSERT INTO webhook_jobs (id, endpoint_id, tenant_id, event_id, type, body, state, run_at, attempts,
                 created_at) VALUES (?1, 'whk', 'ten', 'evt', 't', 'b', ?2, ?3, 1, 0)",
            params![name, state, at],
        )
        .unwrap();
        tx.execute(
            "INSERT INTO webhook_attempts (job_id, attempt, at, status, error, ms) VALUES (?1, 1, ?2, 200, NULL, 1), (?1, 2, ?2, 200, NULL, 1)",
            params![name, at],
        )
        .unwrap();
        tx.execute(
            "INSERT INTO messages (id, tenant_id, direction, kind, test, recipient, channel_asked, class, status,
                expires_at, attempts, sequence, cancel_asked, created_at, updated_at)
             VALUES (?1, 'ten', 'outbound', 'tenant', 0, 'r', 'auto', 'otp', 'sent', ?2, 0, 1, 0, ?2, ?2)",
            params![name, at],
        )
        .unwrap();
        tx.execute(
            "INSERT INTO message_events (id, message_id, tenant_id, sequence, type, at)
             VALUES (?1, ?1, 'ten', 1, 'sent', ?2)",
            params![name, at],
        )
        .unwrap();
    }

    fn all(tx: &mut Tx<'_>, sql: &str) -> Vec<String> {
        tx.query(sql, params![], |row| row.text(0)).unwrap()
    }

    #[test]
    fn what_is_old_and_over_goes_and_all_else_stays() {
        let connection = store();
        let mut tx = Tx::sqlite(&connection);
        for (name, state, at) in [
            ("a_old_delivered", "delivered", days_ago(31)),
            ("b_old_failed", "failed", days_ago(400)),
            ("c_old_pending", "pending", days_ago(31)),
            ("d_new_delivered", "delivered", days_ago(29)),
            ("e_new_failed", "failed", NOW),
        ] {
            add(&mut tx, name, state, at);
        }
        let before = NOW.plus_ms(-KEPT_MS);
        let pruned = prune(&mut tx, before).unwrap();
        assert_eq!(
            pruned,
            Pruned {
                unplaced: 3,
                guids: 3,
                deliveries: 2,
                dead_letters: 0,
                stripe: 0,
                questions: 0
            }
        );
        assert_eq!(prune(&mut tx, before).unwrap().rows(), 0);
        let young = ["d_new_delivered", "e_new_failed"];
        let open = ["c_old_pending", "d_new_delivered", "e_new_failed"];
        assert_eq!(all(&mut tx, "SELECT journal FROM unplaced_events ORDER BY 1"), young);
        assert_eq!(all(&mut tx, "SELECT guid FROM received_guids ORDER BY 1"), young);
        assert_eq!(all(&mut tx, "SELECT id FROM webhook_jobs ORDER BY 1"), open);
        assert_eq!(all(&mut tx, "SELECT DISTINCT job_id FROM webhook_attempts ORDER BY 1"), open);
        // The history of messages is for ever.
        assert_eq!(all(&mut tx, "SELECT id FROM messages").len(), 5);
        assert_eq!(all(&mut tx, "SELECT id FROM message_events").len(), 5);
    }

    #[test]
    fn a_step_is_small_and_the_steps_come_to_an_end() {
        let connection = store();
        let mut tx = Tx::sqlite(&connection);
        for number in 0..STEP_ROWS + 3 {
            add(&mut tx, &format!("{number}"), "failed", days_ago(40));
        }
        let before = NOW.plus_ms(-KEPT_MS);
        let first = prune(&mut tx, before).unwrap();
        assert_eq!(
            first,
            Pruned {
                unplaced: STEP_ROWS,
                guids: STEP_ROWS,
                deliveries: STEP_ROWS,
                dead_letters: 0,
                stripe: 0,
                questions: 0,
            }
        );
        assert_eq!(
            prune(&mut tx, before).unwrap(),
            Pruned {
                unplaced: 3,
                guids: 3,
                deliveries: 3,
                dead_letters: 0,
                stripe: 0,
                questions: 0
            }
        );
        assert_eq!(prune(&mut tx, before).unwrap(), Pruned::default());
        assert!(all(&mut tx, "SELECT job_id FROM webhook_attempts").is_empty());
    }

    #[test]
    fn the_recipients_of_a_batch_go_when_it_is_long_over() {
        let connection = store();
        let mut tx = Tx::sqlite(&connection);
        for (batch, state, ended) in [
            ("bat_a", "completed", Some(days_ago(91))),
            ("bat_b", "canceled", Some(days_ago(92))),
            ("bat_c", "completed", Some(days_ago(89))),
            ("bat_d", "paused", None),
        ] {
            let id = BatchId::new(ended.map_or(0, |at| at.0), [batch.as_bytes()[4]; 10]);
            tx.execute(
                "INSERT INTO batches (id, tenant_id, test, name, state, variables, channel_asked, class, recipients,
                     duplicates, invalid, expanded, created_at, updated_at, ended_at)
                 VALUES (?1, 'ten', 0, ?2, ?3, '{}', 'auto', 'otp', 501, 0, 0, 501, 0, 0, ?4)",
                params![id, batch, state, ended],
            )
            .unwrap();
            for position in 0..=STEP_ROWS {
                tx.execute(
                    "INSERT INTO batch_recipients (batch_id, position, tenant_id, recipient) VALUES (?1, ?2, 'ten', ?3)",
                    params![id, position, format!("r{position}")],
                )
                .unwrap();
            }
        }
        let before = days_ago(90);
        let step = |tx: &mut Tx<'_>| recipients(tx, before, NOW).unwrap();
        // Each batch in two steps, the second of which notes that it is done.
        let steps: Vec<usize> = (0..5).map(|_| step(&mut tx)).collect();
        assert_eq!(steps, [STEP_ROWS, 2, STEP_ROWS, 2, 0]);
        let left = "SELECT DISTINCT b.name FROM batch_recipients r JOIN batches b ON b.id = r.batch_id ORDER BY 1";
        assert_eq!(all(&mut tx, left), ["bat_c", "bat_d"]);
        let forgotten = "SELECT name FROM batches WHERE forgotten_at IS NOT NULL ORDER BY 1";
        assert_eq!(all(&mut tx, forgotten), ["bat_a", "bat_b"]);
    }

    #[test]
    fn a_charge_goes_only_when_nothing_can_be_given_back() {
        let connection = store();
        let mut tx = Tx::sqlite(&connection);
        let charge = |tx: &mut Tx<'_>, at: UnixMs, number: u8, step: &str| {
            let id = MessageId::new(at.0, [number; 10]);
            tx.execute(
                "INSERT INTO messages (id, tenant_id, direction, kind, test, recipient, channel_asked, class, status,
                    expires_at, attempts, sequence, cancel_asked, created_at, updated_at)
                 VALUES (?1, 'ten', 'outbound', 'tenant', 0, 'r', 'auto', 'otp', 'unknown', ?2, 0, 1, 0, ?2, ?2)",
                params![id, at],
            )
            .unwrap();
            tx.execute(
                "INSERT INTO message_events (id, message_id, tenant_id, sequence, type, at)
                 VALUES (?1, ?1, 'ten', 1, ?2, ?3)",
                params![id, step, at],
            )
            .unwrap();
            tx.execute(
                "INSERT INTO charges (message_id, tenant_id, payer_id, month, credits) VALUES (?1, 'ten', 'ten', 202311, 1)",
                params![id],
            )
            .unwrap();
            id.to_string()
        };
        // More than a page of old ones that may still be given back, before one that may not.
        let mut kept: Vec<String> = (0..=STEP_ROWS)
            .map(|number| {
                let at = days_ago(500).plus_ms(i64::try_from(number).unwrap());
                charge(&mut tx, at, 1, "dispatching")
            })
            .collect();
        charge(&mut tx, days_ago(450), 1, "started");
        charge(&mut tx, days_ago(450), 2, "delivered");
        let carried = charge(&mut tx, days_ago(450), 3, "queued");
        tx.execute("UPDATE charges SET begun = 1 WHERE message_id = ?1", params![carried]).unwrap();
        kept.push(charge(&mut tx, days_ago(399), 3, "delivered"));
        let (mut after, mut deleted) = (None, 0);
        loop {
            let (some, last) = charges(&mut tx, days_ago(400), after.as_ref()).unwrap();
            deleted += some;
            after = last;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(deleted, 3);
        assert_eq!(all(&mut tx, "SELECT message_id FROM charges ORDER BY 1"), kept);
    }

    #[test]
    fn the_operators_log_has_an_end() {
        let connection = store();
        let mut tx = Tx::sqlite(&connection);
        for days in [401, 399] {
            let id = EventId::new(days_ago(days).0, [1; 10]);
            tx.execute(
                "INSERT INTO audit_log (id, at, action, target, request_id) VALUES (?1, ?2, 'a', ?3, 'r')",
                params![id, days_ago(days), format!("{days}")],
            )
            .unwrap();
        }
        assert_eq!(audit(&mut tx, days_ago(400)).unwrap(), 1);
        assert_eq!(all(&mut tx, "SELECT target FROM audit_log"), ["399"]);
        assert_eq!(audit(&mut tx, days_ago(400)).unwrap(), 0);
    }

    #[test]
    fn a_batch_that_nobody_goes_on_with_is_withdrawn() {
        let connection = store();
        let mut tx = Tx::sqlite(&connection);
        for (number, name, state, changed) in [
            (1, "forgotten draft", "draft", days_ago(31)),
            (2, "forgotten pause", "paused", days_ago(400)),
            (3, "new draft", "draft", days_ago(29)),
            (4, "running", "running", days_ago(31)),
            (5, "scheduled", "scheduled", days_ago(31)),
        ] {
            tx.execute(
                "INSERT INTO batches (id, tenant_id, test, name, state, variables, channel_asked, class, recipients,
                     duplicates, invalid, expanded, created_at, updated_at)
                 VALUES (?1, 'ten', 0, ?2, ?3, '{}', 'auto', 'marketing', 1, 0, 0, 0, 0, ?4)",
                params![BatchId::new(0, [number; 10]), name, state, changed],
            )
            .unwrap();
        }
        assert_eq!(idle_batches(&mut tx, days_ago(30), NOW).unwrap(), 2);
        assert_eq!(idle_batches(&mut tx, days_ago(30), NOW).unwrap(), 0);
        let withdrawn =
            "SELECT name FROM batches WHERE state = 'canceling' AND reason = 'expired' ORDER BY 1";
        assert_eq!(all(&mut tx, withdrawn), ["forgotten draft", "forgotten pause"]);
    }

    #[test]
    fn what_was_not_seen_for_long_is_known_no_more() {
        let connection = store();
        let mut tx = Tx::sqlite(&connection);
        let tenants = [TenantId::new(1, [1; 10]), TenantId::new(1, [2; 10])];
        for tenant in &tenants {
            for number in 0..LOOKED_AT_ROWS {
                for (channel, test, days) in [("imessage", number % 2, 91), ("sms", 0, 89)] {
                    tx.execute(
                        "INSERT INTO capabilities (tenant_id, test, recipient, channel, able, at)
                         VALUES (?1, ?2, ?3, ?4, 1, ?5)",
                        params![
                            tenant,
                            test,
                            format!("+1202555{number:04}"),
                            channel,
                            days_ago(days)
                        ],
                    )
                    .unwrap();
                }
            }
        }
        let (mut after, mut deleted, mut steps) = (None, 0, 0);
        loop {
            let (some, last) = capabilities(&mut tx, days_ago(90), after.as_ref()).unwrap();
            (deleted, after, steps) = (deleted + some, last, steps + 1);
            if after.is_none() {
                break;
            }
        }
        assert_eq!((deleted, steps), (2 * LOOKED_AT_ROWS, 5), "in small steps");
        let left = all(&mut tx, "SELECT DISTINCT channel FROM capabilities");
        let count = tx.query_row("SELECT COUNT(*) FROM capabilities", params![], |row| row.int(0));
        assert_eq!((left, count.unwrap()), (vec!["sms".to_owned()], 4_000));
    }

    #[test]
    fn that_a_subscription_has_ended_is_known_for_a_while() {
        let connection = store();
        let mut tx = Tx::sqlite(&connection);
        for (subscription, taken, passing) in [
            ("sub_old", days_ago(31), true),
            ("sub_new", days_ago(29), true),
            ("sub_counts", days_ago(31), false),
        ] {
            tx.execute(
                "INSERT INTO stripe_subscriptions (customer, subscription, since, created, rank, passing, at)
                 VALUES ('cus', ?1, 1, 1, 2, ?3, ?2)",
                params![subscription, taken, passing],
            )
            .unwrap();
        }
        assert_eq!(prune(&mut tx, days_ago(30)).unwrap().stripe, 1);
        assert_eq!(
            all(&mut tx, "SELECT subscription FROM stripe_subscriptions ORDER BY 1"),
            ["sub_counts", "sub_new"]
        );
    }

    #[test]
    fn a_step_reads_only_what_it_deletes() {
        let connection = store();
        for (sql, index) in [
            (UNPLACED, "unplaced_events_by_age (at<?)"),
            (GUIDS, "received_guids_by_age (at<?)"),
            (QUESTIONS, "capability_questions_by_age (asked_at<?)"),
            (SUBSCRIPTIONS, "stripe_subscriptions_by_age (at<?)"),
            (ATTEMPTS, "webhook_jobs_over (run_at<?)"),
            (DELIVERIES, "webhook_jobs_over (run_at<?)"),
            (BATCHES_OVER, "batches_over (ended_at>? AND ended_at<?)"),
            (RECIPIENTS, "(batch_id=?)"),
            (OLD_CHARGES, "(message_id>? AND message_id<?)"),
            (CHARGES, "(message_id>? AND message_id<?)"),
            (AUDIT, "(id<?)"),
            (IDLE_BATCHES, "batches_idle (updated_at<?)"),
            (KNOWN, "((tenant_id,test,recipient,channel)>(?,?,?,?))"),
            (UNSEEN, "((tenant_id,test,recipient,channel)>(?,?,?,?)"),
        ] {
            let plan = in_memory::plan(&connection, sql);
            assert!(plan.contains(index), "{sql}: {plan}");
            assert!(!plan.contains("SCAN"), "{sql}: {plan}");
        }
    }
}
