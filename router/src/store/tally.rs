//! How much waits, for the numbers that alarms watch.

use protocol::Reason;

use super::{StoreError, Tx};
use crate::params;

/// Rows counted of one kind: an alarm rings long before, and a sample must stay cheap however long the queue is.
pub const COUNTED_MAX: u32 = 100_000;

/// How much waits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Jobs that are due and not claimed.
    pub jobs_due: u32,
    /// Messages held, by reason; only reasons that hold one.
    pub held: Vec<(Reason, u32)>,
    /// Webhook jobs not delivered yet.
    pub webhooks_pending: u32,
    /// Events without a place.
    pub unplaced: u32,
    /// Phones that can send, of hosts that have a session.
    pub phones_ready: u32,
}

/// Counts along indexes, each count up to [`COUNTED_MAX`].
pub fn take(tx: &mut Tx<'_>) -> Result<Tally, StoreError> {
    let mut held = Vec::new();
    for reason in Reason::ALL {
        let count = tx.query_row(HELD, params![reason, COUNTED_MAX], |row| row.get(0))?;
        if count > 0 {
            held.push((*reason, count));
        }
    }
    Ok(Tally {
        jobs_due: tx.query_row(DUE, params![COUNTED_MAX], |row| row.get(0))?,
        held,
        webhooks_pending: tx.query_row(PENDING, params![COUNTED_MAX], |row| row.get(0))?,
        unplaced: tx.query_row(UNPLACED, params![COUNTED_MAX], |row| row.get(0))?,
        phones_ready: tx.query_row(READY, params![], |row| row.get(0))?,
    })
}

const DUE: &str = "SELECT count(*) FROM (SELECT 1 FROM jobs WHERE ready = 1 LIMIT ?1) AS counted";
const HELD: &str =
    "SELECT count(*) FROM (SELECT 1 FROM jobs WHERE held_reason = ?1 LIMIT ?2) AS counted";
const PENDING: &str = "SELECT count(*) FROM (SELECT 1 FROM webhook_jobs
     WHERE state = 'pending' LIMIT ?1) AS counted";
const UNPLACED: &str = "SELECT count(*) FROM (SELECT 1 FROM unplaced_events LIMIT ?1) AS counted";
const READY: &str = "SELECT count(*) FROM phones p JOIN hosts h ON h.id = p.host_id
     WHERE p.state = 'ready' AND h.session IS NOT NULL";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::in_memory;

    #[test]
    fn what_waits_is_counted_and_nothing_else() {
        let connection = in_memory::open_loose();
        assert_eq!(take(&mut Tx::sqlite(&connection)).unwrap(), Tally::default());
        connection
            .execute_batch(
                "INSERT INTO jobs (message_id, tenant_id, run_at, class_rank, ready, held_reason) VALUES
                     ('a', 't', 100, 0, 1, NULL), ('b', 't', 99, 0, 1, 'quiet_hours'),
                     ('c', 't', 101, 0, 0, 'quiet_hours'), ('d', 't', 500, 0, 0, NULL),
                     ('e', 't', 500, 0, 0, 'no_phone_available');
                 INSERT INTO webhook_jobs (id, endpoint_id, tenant_id, event_id, type, body, state, run_at,
                     attempts, created_at) VALUES
                     ('a', 'w', 't', 'e', 'k', 'b', 'pending', 900, 0, 0),
                     ('b', 'w', 't', 'e', 'k', 'b', 'failed', 1, 0, 0),
                     ('c', 'w', 't', 'e', 'k', 'b', 'delivered', 1, 0, 0);
                 INSERT INTO unplaced_events VALUES ('p', 'j', 1, 'k', 1, 'w', '{}');
                 INSERT INTO hosts (id, name, public_key, session, created_at)
                 VALUES ('on', 'n', x'01', 's', 0), ('off', 'n', x'02', NULL, 0);
                 INSERT INTO phones (id, number, host_id, state, reasons, channels, warming_priority,
                     messages_today, day, created_at, updated_at) VALUES
                     ('1', '1', 'on', 'ready', '[]', '[]', 0, 0, 0, 0, 0),
                     ('2', '2', 'on', 'not_ready', '[]', '[]', 0, 0, 0, 0, 0),
                     ('3', '3', 'off', 'ready', '[]', '[]', 0, 0, 0, 0, 0)",
            )
            .unwrap();
        let tally = take(&mut Tx::sqlite(&connection)).unwrap();
        let held: Vec<(&str, u32)> =
            tally.held.iter().map(|(reason, count)| (reason.as_str(), *count)).collect();
        assert_eq!(held.len(), 2, "{held:?}");
        assert!(held.contains(&("quiet_hours", 2)), "{held:?}");
        assert!(held.contains(&("no_phone_available", 1)), "{held:?}");
        assert_eq!(
            (tally.jobs_due, tally.webhooks_pending, tally.unplaced, tally.phones_ready),
            (2, 1, 1, 1)
        );
    }

    #[test]
    fn every_count_goes_along_an_index() {
        let connection = in_memory::open_loose();
        for (sql, index) in [
            (DUE, "COVERING INDEX jobs_ready"),
            (HELD, "COVERING INDEX jobs_held (held_reason=?)"),
            (PENDING, "COVERING INDEX webhook_jobs_due_by_endpoint"),
            (UNPLACED, "COVERING INDEX"),
        ] {
            let plan = in_memory::plan(&connection, sql);
            assert!(plan.contains(index), "{sql}: {plan}");
        }
    }
}
