//! What is kept for a while only: proofs and records of work that is over. Messages and their stories are not among it.

use protocol::UnixMs;

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
    /// Events of Stripe, which repeats none after so long, and what waited for a tenant in vain.
    pub stripe: usize,
}

impl Pruned {
    /// How many in all.
    pub fn rows(self) -> usize {
        self.unplaced + self.guids + self.deliveries + self.dead_letters + self.stripe
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
        + tx.execute(STRIPE_WAITING, step)?
        + tx.execute(STRIPE_CREDITS, step)?;
    Ok(Pruned { unplaced, guids, deliveries, dead_letters, stripe })
}

const UNPLACED: &str = "DELETE FROM unplaced_events WHERE (phone_id, journal, seq) IN
     (SELECT phone_id, journal, seq FROM unplaced_events WHERE at < ?1 ORDER BY at LIMIT ?2)";

const STRIPE_EVENTS: &str = "DELETE FROM stripe_events WHERE id IN
     (SELECT id FROM stripe_events WHERE at < ?1 ORDER BY at LIMIT ?2)";
const STRIPE_WAITING: &str = "DELETE FROM stripe_waiting WHERE customer IN
     (SELECT customer FROM stripe_waiting WHERE at < ?1 ORDER BY at LIMIT ?2)";

const STRIPE_CREDITS: &str = "DELETE FROM stripe_waiting_credits WHERE (customer, reference) IN
     (SELECT customer, reference FROM stripe_waiting_credits WHERE at < ?1 ORDER BY at LIMIT ?2)";

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
    use crate::store::{Value, migrate};

    const DAY_MS: i64 = 86_400_000;
    const NOW: UnixMs = UnixMs(1_700_000_000_000);

    fn store() -> rusqlite::Connection {
        let mut connection = rusqlite::Connection::open_in_memory().unwrap();
        migrate(&mut connection).unwrap();
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
                 claimed_until, created_at) VALUES (?1, 'whk', 'ten', 'evt', 't', 'b', ?2, ?3, 1, NULL, 0)",
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
            Pruned { unplaced: 3, guids: 3, deliveries: 2, dead_letters: 0, stripe: 0 }
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
            }
        );
        assert_eq!(
            prune(&mut tx, before).unwrap(),
            Pruned { unplaced: 3, guids: 3, deliveries: 3, dead_letters: 0, stripe: 0 }
        );
        assert_eq!(prune(&mut tx, before).unwrap(), Pruned::default());
        assert!(all(&mut tx, "SELECT job_id FROM webhook_attempts").is_empty());
    }

    #[test]
    fn a_step_reads_only_what_it_deletes() {
        let connection = store();
        for (sql, index) in [
            (UNPLACED, "unplaced_events_by_age (at<?)"),
            (GUIDS, "received_guids_by_age (at<?)"),
            (ATTEMPTS, "webhook_jobs_over (run_at<?)"),
            (DELIVERIES, "webhook_jobs_over (run_at<?)"),
        ] {
            let plan = Tx::sqlite(&connection)
                .query(&format!("EXPLAIN QUERY PLAN {sql}"), &[Value::Null, Value::Null], |row| {
                    row.text(3)
                })
                .unwrap()
                .join("; ");
            assert!(plan.contains(index), "{sql}: {plan}");
            assert!(!plan.contains("SCAN"), "{sql}: {plan}");
        }
    }
}
