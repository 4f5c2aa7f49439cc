//! The ledger of credits: every change but the charges of messages is a row of it, never deleted.

use protocol::api::{CreditEntry, CreditSource};
use protocol::{EventId, TenantId, UnixMs};

use super::{Row, StoreError, Tx, accounts};
use crate::billing::Plans;
use crate::clock;
use crate::params;

/// Most credits of one change, and of one account: far from where the store's numbers end.
pub const AMOUNT_MAX: i64 = 1_000_000_000_000;
const CREDIT_MAX: i64 = 1_000_000_000_000_000;

/// A change of a credit, before it is booked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEntry {
    /// Credits to add; negative to take. At most [`AMOUNT_MAX`] either way.
    pub amount: i64,
    /// Who changes it.
    pub source: CreditSource,
    /// Why.
    pub reason: String,
    /// What it belongs to: booked once.
    pub reference: Option<String>,
}

/// What came of booking a change.
#[derive(Clone, Debug, PartialEq)]
pub enum Booked {
    /// It is booked.
    New(CreditEntry),
    /// Something of this reference was booked before; nothing was changed.
    Before(CreditEntry),
    /// The credit would be larger, or further below zero, than an account can have.
    TooMuch,
}

/// Changes a tenant's credit and writes down why, in one transaction. The tenant has to exist.
pub fn book(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    new: &NewEntry,
    plans: &Plans,
    now: UnixMs,
) -> Result<Booked, StoreError> {
    if let Some(reference) = &new.reference {
        let before = tx.query_opt(BY_REFERENCE, params![tenant, reference], read)?;
        if let Some(before) = before {
            return Ok(Booked::Before(before));
        }
    }
    accounts::open(tx, tenant, plans, now)?;
    let balance = tx.query_opt(
        "UPDATE billing_accounts SET credit = credit + ?2, updated_at = ?3
         WHERE tenant_id = ?1 AND credit + ?2 BETWEEN ?4 AND ?5 RETURNING credit",
        params![tenant, new.amount, now, -CREDIT_MAX, CREDIT_MAX],
        |row| row.int(0),
    )?;
    let Some(balance) = balance else { return Ok(Booked::TooMuch) };
    let entry = CreditEntry {
        id: EventId::new(now.0, clock::random()),
        tenant: tenant.clone(),
        at: now,
        amount: new.amount,
        balance,
        source: new.source,
        reason: new.reason.clone(),
        reference: new.reference.clone(),
    };
    tx.execute(
        "INSERT INTO credit_ledger (id, tenant_id, at, amount, balance, source, reason, reference)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        params![
            entry.id,
            tenant,
            now,
            entry.amount,
            balance,
            entry.source.as_str(),
            entry.reason,
            entry.reference
        ],
    )?;
    Ok(Booked::New(entry))
}

const BY_REFERENCE: &str =
    "SELECT id, tenant_id, at, amount, balance, source, reason, reference FROM credit_ledger
     WHERE tenant_id = ?1 AND reference = ?2";

/// A tenant's ledger, newest first. One row more than `limit` where there is more.
pub fn list(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    before: Option<&str>,
    limit: u32,
) -> Result<Vec<CreditEntry>, StoreError> {
    tx.query(
        "SELECT id, tenant_id, at, amount, balance, source, reason, reference FROM credit_ledger
         WHERE tenant_id = ?1 AND id < ?2 ORDER BY id DESC LIMIT ?3",
        params![tenant, before.unwrap_or("~"), limit.saturating_add(1)],
        read,
    )
}

fn read(row: &Row<'_>) -> Result<CreditEntry, StoreError> {
    Ok(CreditEntry {
        id: row.get(0)?,
        tenant: row.get(1)?,
        at: row.get(2)?,
        amount: row.int(3)?,
        balance: row.int(4)?,
        source: row.parse(5)?,
        reason: row.text(6)?,
        reference: row.opt_text(7)?,
    })
}
