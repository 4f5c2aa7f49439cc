//! How many messages of a batch stand where, for whoever asks again and again.
//!
//! A count reads an entry of an index for every message of the batch. So that what polling costs does not grow with the
//! batch, that of a large one is told again for a while, and one large one is counted at a time, whoever asks.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use protocol::api::BatchState;
use protocol::{BatchId, Status, TenantId, UnixMs};

use crate::store::{Store, StoreError, batches};

/// Messages of a batch up to which each answer counts anew: that takes a millisecond or two.
const SMALL_ROWS: u64 = 10_000;
/// Messages for each millisecond that a count is told again: ten seconds for a million of them, which are counted in a few
/// tenths of one. A batch that has come to another state is counted anew: what is said to be over is told as it ended.
const ROWS_A_MS: u64 = 100;

/// For how long the count of so many messages is told again.
fn lasts_ms(rows: u64) -> u64 {
    if rows <= SMALL_ROWS { 0 } else { rows / ROWS_A_MS }
}

/// How many messages stand where.
type Counts = BTreeMap<Status, u64>;

#[derive(Debug, Clone)]
struct Counted {
    at: UnixMs,
    rows: u64,
    state: BatchState,
    counts: Counts,
}

impl Counted {
    /// A clock that was put back makes none last longer.
    fn lasts(&self, now: UnixMs) -> bool {
        now.since(self.at).unsigned_abs() < lasts_ms(self.rows)
    }
}

/// The counts of large batches that are told again; those that last no longer are forgotten with the next one.
#[derive(Debug, Default)]
pub struct Outcomes {
    counted: Mutex<HashMap<BatchId, Counted>>,
    turn: tokio::sync::Mutex<()>,
}

impl Outcomes {
    /// Those of a batch of the tenant that is in this state and has so many messages.
    pub async fn of(
        &self,
        store: &Store,
        (tenant, id): (&TenantId, &BatchId),
        (state, rows): (BatchState, u64),
        now: UnixMs,
    ) -> Result<Counts, StoreError> {
        if rows <= SMALL_ROWS {
            return count(store, tenant, id).await;
        }
        if let Some(counts) = self.known(id, state, now) {
            return Ok(counts);
        }
        let _turn = self.turn.lock().await;
        // Whoever had the turn may have counted this one.
        if let Some(counts) = self.known(id, state, now) {
            return Ok(counts);
        }
        let counts = count(store, tenant, id).await?;
        let mut counted = self.counted();
        counted.retain(|_, one| one.lasts(now));
        counted.insert(id.clone(), Counted { at: now, rows, state, counts: counts.clone() });
        Ok(counts)
    }

    fn known(&self, id: &BatchId, state: BatchState, now: UnixMs) -> Option<Counts> {
        let counted = self.counted();
        let known = counted.get(id).filter(|one| one.state == state && one.lasts(now));
        known.map(|one| one.counts.clone())
    }

    fn counted(&self) -> MutexGuard<'_, HashMap<BatchId, Counted>> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn count(store: &Store, tenant: &TenantId, id: &BatchId) -> Result<Counts, StoreError> {
    let (tenant, id) = (tenant.clone(), id.clone());
    store.read(move |tx| batches::outcomes(tx, &tenant, &id)).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params;

    #[test]
    fn the_more_messages_the_longer_a_count_lasts() {
        for (rows, ms) in [(0, 0), (10_000, 0), (10_001, 100), (1_000_000, 10_000)] {
            assert_eq!(lasts_ms(rows), ms, "{rows}");
        }
    }

    #[tokio::test]
    async fn a_large_batch_is_counted_once_in_a_while_and_a_small_one_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store.db")).unwrap();
        let (tenant, id) = (TenantId::new(1, [1; 10]), BatchId::new(1, [1; 10]));
        let (whose, batch) = (tenant.clone(), id.clone());
        let add = async |message: &'static str| {
            let (whose, batch) = (whose.clone(), batch.clone());
            store
                .write(move |tx| {
                    tx.execute(
                        "INSERT INTO messages (id, tenant_id, batch_id, direction, kind, class, test, channel_asked,
                             status, recipient, expires_at, attempts, sequence, cancel_asked, created_at, updated_at)
                         VALUES (?1, ?2, ?3, 'outbound', 'tenant', 'marketing', 0, 'auto',
                             'queued', '+12025550143', 0, 0, 0, 0, 0, 0)",
                        params![message, whose, batch],
                    )
                })
                .await
                .unwrap();
        };
        let (whose, batch) = (tenant.clone(), id.clone());
        store
            .write(move |tx| {
                tx.execute(
                    "INSERT INTO tenants (id, name, brand, created_at) VALUES (?1, 'Acme', 'Acme', 0)",
                    params![whose],
                )?;
                tx.execute(
                    "INSERT INTO batches (id, tenant_id, test, name, state, text, variables, channel_asked, class,
                         recipients, duplicates, invalid, expanded, created_at, updated_at)
                     VALUES (?1, ?2, 0, 'a', 'running', 'b', '{}', 'auto', 'marketing', 0, 0, 0, 0, 0, 0)",
                    params![batch, whose],
                )
            })
            .await
            .unwrap();
        let outcomes = Outcomes::default();
        let counted_in = async |state: BatchState, rows: u64, now: i64| {
            let found = outcomes.of(&store, (&tenant, &id), (state, rows), UnixMs(now));
            found.await.unwrap().values().sum::<u64>()
        };
        let counted = async |rows: u64, now: i64| counted_in(BatchState::Running, rows, now).await;
        add("msg_a").await;
        assert_eq!((counted(1, 0).await, counted(20_000, 0).await), (1, 1));
        add("msg_b").await;
        // A small one is as it is; a large one as it was a moment ago, on either side of a clock that was put back.
        assert_eq!((counted(1, 1).await, counted(20_000, 199).await), (2, 1));
        assert_eq!(counted(20_000, -199).await, 1);
        assert_eq!(counted(20_000, 200).await, 2);
        // Of two who ask at once, one counts.
        add("msg_c").await;
        let both = tokio::join!(counted(20_000, 500), counted(20_000, 500));
        assert_eq!(both, (3, 3));
        // What is over is told as it ended.
        add("msg_d").await;
        assert_eq!(counted(20_000, 501).await, 3);
        assert_eq!(counted_in(BatchState::Completed, 20_000, 501).await, 4);
        assert_eq!(outcomes.counted().len(), 1);
    }
}
