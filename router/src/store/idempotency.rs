//! Answers kept under a caller's idempotency key, written in the transaction of the work that they tell of.

use protocol::UnixMs;

use super::{StoreError, Tx};
use crate::params;

/// An answer that was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// SHA-256 of the body that it answered.
    pub fingerprint: [u8; 32],
    /// Its HTTP status.
    pub status: u16,
    /// Its body.
    pub body: String,
}

/// Which answer: whose key, on which route.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Slot {
    /// The tenant's id (with `/test` behind it for test keys), `operator` or `enrolment`.
    pub scope: String,
    /// Method and route.
    pub route: String,
    /// The caller's key.
    pub key: String,
}

/// Rows forgotten in one transaction, so that forgetting never holds up accepting.
const FORGET_BATCH: u32 = 500;

/// The answer kept in a slot, unless it is older than `since`.
pub fn get(tx: &mut Tx<'_>, slot: &Slot, since: UnixMs) -> Result<Option<Kept>, StoreError> {
    tx.query_opt(
        "SELECT fingerprint, status, body FROM idempotency
         WHERE scope = ?1 AND route = ?2 AND key = ?3 AND created_at >= ?4",
        params![slot.scope, slot.route, slot.key, since],
        |row| Ok(Kept { fingerprint: row.get(0)?, status: row.get(1)?, body: row.get(2)? }),
    )
}

/// Keeps an answer; one that was forgotten already is replaced.
pub fn keep(tx: &mut Tx<'_>, slot: &Slot, kept: &Kept, now: UnixMs) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO idempotency (scope, route, key, fingerprint, status, body, created_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
         ON CONFLICT (scope, route, key) DO UPDATE SET fingerprint = excluded.fingerprint,
            status = excluded.status, body = excluded.body, created_at = excluded.created_at",
        params![slot.scope, slot.route, slot.key, kept.fingerprint, kept.status, kept.body, now],
    )?;
    Ok(())
}

/// Forgets some of the answers older than `before`; answers how many.
pub fn forget(tx: &mut Tx<'_>, before: UnixMs) -> Result<usize, StoreError> {
    tx.execute(
        "DELETE FROM idempotency WHERE (scope, route, key) IN
            (SELECT scope, route, key FROM idempotency WHERE created_at < ?1 ORDER BY created_at LIMIT ?2)",
        params![before, FORGET_BATCH],
    )
}
