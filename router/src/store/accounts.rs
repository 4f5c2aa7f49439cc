//! Accounts: which plan a tenant has, and who pays for it.
//!
//! The terms of a plan are copied into the accounts that have it, so that one statement decides about a message. They are
//! copied anew when the router starts ([`apply`]), because plans are configuration.

use protocol::{TenantId, UnixMs};

use super::{StoreError, Tx, credit, usage};
use crate::billing::{Month, Plans, Terms};
use crate::params;

/// An account, as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Its plan; the default one where it has none of its own.
    pub plan: Option<String>,
    /// What the plan says.
    pub terms: Terms,
    /// The tenant that pays for this one.
    pub payer: Option<TenantId>,
    /// Credits that are there.
    pub credit: i64,
    /// Messages of this month that count against the quota.
    pub used: u64,
    /// The customer of Stripe's.
    pub stripe_customer: Option<String>,
}

/// A tenant's account in the month of `now`; that of whoever has none where it has none. `None`: there is no such tenant.
pub fn get(tx: &mut Tx<'_>, tenant: &TenantId, now: UnixMs) -> Result<Option<Account>, StoreError> {
    let month = Month::of(now);
    let found = tx.query_opt(
        "SELECT a.plan, a.quota, COALESCE(a.price, 0), a.payer_id, COALESCE(a.credit, 0),
             CASE WHEN a.month >= ?2 THEN a.used ELSE 0 END, a.stripe_customer
         FROM tenants t LEFT JOIN billing_accounts a ON a.tenant_id = ?1 WHERE t.id = ?1",
        params![tenant, month.number()],
        |row| {
            Ok(Account {
                plan: row.opt_text(0)?,
                terms: Terms { quota: row.get(1)?, price: row.get(2)? },
                payer: row.get(3)?,
                credit: row.int(4)?,
                used: row.get(5)?,
                stripe_customer: row.opt_text(6)?,
            })
        },
    )?;
    let Some(mut account) = found else { return Ok(None) };
    if account.terms.are_free() {
        // Nothing is reserved there, so nothing is counted there either.
        account.used = usage::accepted_in(tx, tenant, month)?;
    }
    Ok(Some(account))
}

/// Makes an account for a tenant that has none, on the default plan.
pub fn open(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    plans: &Plans,
    now: UnixMs,
) -> Result<(), StoreError> {
    let new = tx.execute(
        "INSERT INTO billing_accounts (tenant_id, price, credit, month, used, warned, updated_at)
         VALUES (?1, 0, 0, ?2, 0, 0, ?3) ON CONFLICT (tenant_id) DO NOTHING",
        params![tenant, Month::of(now).number(), now],
    )?;
    if new > 0 {
        set_terms(tx, tenant, plans.terms(None).unwrap_or_default(), now)?;
    }
    Ok(())
}

/// [`open`], where the default plan has limits: without any, no row is needed to know so.
pub fn open_new(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    plans: &Plans,
    now: UnixMs,
) -> Result<(), StoreError> {
    if plans.terms(None).is_some_and(|terms| !terms.are_free()) {
        open(tx, tenant, plans, now)?;
    }
    Ok(())
}

/// Puts a tenant on a plan, `None` for the default one. False where there is no such plan.
///
/// What was used this month stays used, whatever the plan before it was.
pub fn set_plan(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    plan: Option<&str>,
    plans: &Plans,
    now: UnixMs,
) -> Result<bool, StoreError> {
    let Some(terms) = plans.terms(plan) else { return Ok(false) };
    open(tx, tenant, plans, now)?;
    set_terms(tx, tenant, terms, now)?;
    tx.execute(
        "UPDATE billing_accounts SET plan = ?2 WHERE tenant_id = ?1",
        params![tenant, plan],
    )?;
    Ok(true)
}

/// Writes what a plan says into an account. A quota that is new has its own warnings.
fn set_terms(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    terms: Terms,
    now: UnixMs,
) -> Result<(), StoreError> {
    let old = tx.query_row(
        "SELECT quota, price FROM billing_accounts WHERE tenant_id = ?1",
        params![tenant],
        |row| Ok(Terms { quota: row.get(0)?, price: row.get(1)? }),
    )?;
    if old == terms {
        return Ok(());
    }
    tx.execute(
        "UPDATE billing_accounts SET quota = ?2, price = ?3, updated_at = ?4,
             warned = CASE WHEN ?5 = 1 THEN warned ELSE 0 END WHERE tenant_id = ?1",
        params![tenant, terms.quota, terms.price, now, old.quota == terms.quota],
    )?;
    if old.are_free() {
        let month = Month::of(now);
        let used = usage::accepted_in(tx, tenant, month)?;
        tx.execute(
            "UPDATE billing_accounts SET used = ?2, month = ?3 WHERE tenant_id = ?1",
            params![tenant, used, month.number()],
        )?;
    }
    credit::warn_of_new_quota(tx, tenant, now)
}

/// Why a tenant is not paid for by another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayerRefused {
    /// There is no such tenant.
    Unknown,
    /// It is the tenant itself.
    Itself,
    /// Somebody pays for that one, too: a chain would hide who is charged.
    IsPaidFor,
    /// The tenant pays for others.
    PaysForOthers,
}

/// Names the tenant that pays for `tenant` from now on; `None` for itself.
pub fn set_payer(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    payer: Option<&TenantId>,
    plans: &Plans,
    now: UnixMs,
) -> Result<Result<(), PayerRefused>, StoreError> {
    open(tx, tenant, plans, now)?;
    if let Some(payer) = payer {
        if payer == tenant {
            return Ok(Err(PayerRefused::Itself));
        }
        if !super::admin::tenant_exists(tx, payer)? {
            return Ok(Err(PayerRefused::Unknown));
        }
        let paid_for = tx.query_opt(
            "SELECT 1 FROM billing_accounts WHERE tenant_id = ?1 AND payer_id IS NOT NULL",
            params![payer],
            |row| row.int(0),
        )?;
        if paid_for.is_some() {
            return Ok(Err(PayerRefused::IsPaidFor));
        }
        if !paid_by(tx, tenant, 1)?.is_empty() {
            return Ok(Err(PayerRefused::PaysForOthers));
        }
        open(tx, payer, plans, now)?;
    }
    tx.execute(
        "UPDATE billing_accounts SET payer_id = ?2, updated_at = ?3 WHERE tenant_id = ?1",
        params![tenant, payer, now],
    )?;
    Ok(Ok(()))
}

/// Notes which customer of Stripe's a tenant is; [`StoreError::Constraint`] where another tenant is that one.
pub fn set_customer(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    customer: Option<&str>,
    now: UnixMs,
) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE billing_accounts SET stripe_customer = ?2, updated_at = ?3
         WHERE tenant_id = ?1 AND COALESCE(stripe_customer, '') <> COALESCE(?2, '')",
        params![tenant, customer, now],
    )?;
    Ok(())
}

/// The tenants that `payer` pays for, at most `limit`.
pub fn paid_by(tx: &mut Tx<'_>, payer: &TenantId, limit: u32) -> Result<Vec<TenantId>, StoreError> {
    tx.query(PAID_BY, params![payer, limit], |row| row.get(0))
}

const PAID_BY: &str =
    "SELECT tenant_id FROM billing_accounts WHERE payer_id = ?1 ORDER BY tenant_id LIMIT ?2";

/// Copies what the configured plans say into the accounts. Answers the plans that accounts have and nobody has configured:
/// those accounts keep what their plan said last.
pub fn apply(tx: &mut Tx<'_>, plans: &Plans, now: UnixMs) -> Result<Vec<String>, StoreError> {
    let default = plans.terms(None).unwrap_or_default();
    if !default.are_free() {
        let new: Vec<TenantId> = tx.query(WITHOUT, params![], |row| row.get(0))?;
        for tenant in &new {
            open(tx, tenant, plans, now)?;
        }
    }
    let named = plans.iter().map(|(name, terms)| (Some(name), terms));
    for (plan, terms) in named.chain([(None, default)]) {
        let otherwise: Vec<TenantId> = tx.query(
            OTHERWISE,
            params![plan.unwrap_or(""), terms.quota.map_or(-1, i64_of), terms.price],
            |row| row.get(0),
        )?;
        for tenant in &otherwise {
            set_terms(tx, tenant, terms, now)?;
        }
    }
    let known: Vec<&str> = plans.iter().map(|(name, _)| name).collect();
    let mut gone = tx.query(PLANS, params![], |row| row.text(0))?;
    gone.retain(|plan| !known.contains(&plan.as_str()));
    Ok(gone)
}

fn i64_of(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

const WITHOUT: &str =
    "SELECT t.id FROM tenants t LEFT JOIN billing_accounts a ON a.tenant_id = t.id
     WHERE a.plan IS NULL AND a.price IS NULL";
const OTHERWISE: &str = "SELECT tenant_id FROM billing_accounts
     WHERE COALESCE(plan, '') = ?1 AND (COALESCE(quota, -1) <> ?2 OR price <> ?3)";
const PLANS: &str =
    "SELECT DISTINCT plan FROM billing_accounts WHERE plan IS NOT NULL ORDER BY plan";
