//! What Stripe tells: taken once, in the transaction of what it changes.

use protocol::api::CreditSource;
use protocol::{TenantId, UnixMs};

use super::ledger::{Booked, NewEntry};
use super::{Row, StoreError, Tx, accounts, admin, ledger};
use crate::billing::Plans;
use crate::billing::stripe::{Event, News, Subscription, Told, moves};
use crate::params;

/// What came of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A plan was set.
    PlanSet,
    /// Credits were added.
    CreditAdded,
    /// The customer is known to be a tenant now.
    Bound,
    /// It was taken before.
    Repeated,
    /// Newer news came before it.
    Outdated,
    /// No tenant is this customer; what it gives is kept until one is.
    UnknownCustomer,
    /// The tenant that it names is another customer, or there is none such.
    UnknownTenant,
    /// No plan stands for its price.
    UnknownPrice,
    /// An invoice has more lines than the event shows, and Stripe cannot be asked for them.
    Incomplete,
    /// The credit would be larger than an account can have.
    TooMuch,
    /// It concerns nothing here.
    Ignored,
}

impl Outcome {
    /// As it stands in the store, the metrics and the answer.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PlanSet => "plan_set",
            Self::CreditAdded => "credit_added",
            Self::Bound => "bound",
            Self::Repeated => "repeated",
            Self::Outdated => "outdated",
            Self::UnknownCustomer => "unknown_customer",
            Self::UnknownTenant => "unknown_tenant",
            Self::UnknownPrice => "unknown_price",
            Self::Incomplete => "incomplete",
            Self::TooMuch => "too_much",
            Self::Ignored => "ignored",
        }
    }
}

/// Takes an event. The same one again changes nothing, unless it had to be left undone: whoever sets up what was missing
/// has it sent again from Stripe's dashboard.
pub fn take(
    tx: &mut Tx<'_>,
    event: &Event,
    plans: &Plans,
    now: UnixMs,
) -> Result<Outcome, StoreError> {
    let new = tx.execute(
        "INSERT INTO stripe_events (id, type, created, at, outcome) VALUES (?1, ?2, ?3, ?4, '')
         ON CONFLICT (id) DO UPDATE SET at = excluded.at
         WHERE stripe_events.outcome IN ('unknown_customer', 'unknown_tenant', 'unknown_price', 'incomplete',
             'too_much')",
        params![event.id, event.kind, event.created, now],
    )?;
    if new == 0 {
        return Ok(Outcome::Repeated);
    }
    let outcome = act(tx, event, plans, now)?;
    tx.execute(
        "UPDATE stripe_events SET outcome = ?2 WHERE id = ?1",
        params![event.id, outcome.as_str()],
    )?;
    Ok(outcome)
}

fn act(tx: &mut Tx<'_>, event: &Event, plans: &Plans, now: UnixMs) -> Result<Outcome, StoreError> {
    if event.news == News::Other {
        return Ok(Outcome::Ignored);
    }
    let known = match &event.customer {
        Some(customer) => of_customer(tx, customer)?,
        None => None,
    };
    let (tenant, bound) = match (known, &event.tenant) {
        (Some(known), Some(named)) if known != *named => return Ok(Outcome::UnknownTenant),
        (Some(known), _) => (Some(known), false),
        (None, Some(named)) => {
            if !name(tx, named, event.customer.as_deref(), plans, now)? {
                return Ok(Outcome::UnknownTenant);
            }
            (Some(named.clone()), true)
        }
        (None, None) => (None, false),
    };
    match (&event.news, tenant) {
        (News::Subscription { id, since, state, rank }, tenant) => {
            let plan = match state {
                Subscription::Gives(plan) => Some(plan.as_str()),
                Subscription::Ended => None,
                Subscription::UnknownPrice => return Ok(Outcome::UnknownPrice),
                Subscription::Pending => return Ok(Outcome::Ignored),
            };
            let told = Told {
                subscription: id.clone(),
                since: *since,
                at: (event.created, *rank),
                ended: plan.is_none(),
            };
            if let Some(customer) = &event.customer
                && !still_counts(tx, customer, &told, now)?
            {
                return Ok(Outcome::Outdated);
            }
            match (tenant, &event.customer) {
                (Some(tenant), _) => move_plan(tx, &tenant, &told, plan, plans, now),
                (None, Some(customer)) => {
                    wait(tx, customer, &told, plan, now)?;
                    Ok(Outcome::UnknownCustomer)
                }
                (None, None) => Ok(Outcome::UnknownCustomer),
            }
        }
        (News::PaidMore { .. }, _) => Ok(Outcome::Incomplete),
        (News::Paid { credits, reference }, None) if *credits > 0 => {
            if let Some(customer) = &event.customer {
                wait_with(tx, customer, (reference, *credits, &event.kind), now)?;
            }
            Ok(Outcome::UnknownCustomer)
        }
        (_, None) => Ok(Outcome::UnknownCustomer),
        (News::Paid { credits, reference }, Some(tenant)) if *credits > 0 => {
            let bought = (reference.clone(), *credits, event.kind.clone());
            Ok(match add(tx, &tenant, bought, plans, now)? {
                Booked::New(_) => Outcome::CreditAdded,
                Booked::Before(_) => Outcome::Repeated,
                Booked::TooMuch => Outcome::TooMuch,
            })
        }
        (News::Paid { .. } | News::Bound | News::Other, Some(_)) => {
            Ok(if bound { Outcome::Bound } else { Outcome::Ignored })
        }
    }
}

/// Books what was paid for: the reference, the credits, and the type of the event.
fn add(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    (reference, credits, reason): (String, i64, String),
    plans: &Plans,
    now: UnixMs,
) -> Result<Booked, StoreError> {
    let new = NewEntry {
        amount: credits.min(ledger::AMOUNT_MAX),
        source: CreditSource::Stripe,
        reason,
        reference: Some(reference),
    };
    ledger::book(tx, tenant, &new, plans, now)
}

/// The tenant that is this customer.
fn of_customer(tx: &mut Tx<'_>, customer: &str) -> Result<Option<TenantId>, StoreError> {
    tx.query_opt(OF_CUSTOMER, params![customer], |row| row.get(0))
}

const OF_CUSTOMER: &str = "SELECT tenant_id FROM billing_accounts WHERE stripe_customer = ?1";

/// An event names the tenant that its customer is, of which nothing was known. False where that cannot be.
fn name(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    customer: Option<&str>,
    plans: &Plans,
    now: UnixMs,
) -> Result<bool, StoreError> {
    if !admin::tenant_exists(tx, tenant)? {
        return Ok(false);
    }
    let Some(customer) = customer else { return Ok(true) };
    let other = tx.query_opt(
        "SELECT 1 FROM billing_accounts WHERE tenant_id = ?1 AND stripe_customer <> ?2",
        params![tenant, customer],
        |row| row.int(0),
    )?;
    if other.is_some() {
        return Ok(false);
    }
    bind(tx, tenant, Some(customer), plans, now)?;
    Ok(true)
}

/// Notes which customer a tenant is, and makes up for what was told of it before; [`StoreError::Constraint`] where another
/// tenant is that one.
pub fn bind(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    customer: Option<&str>,
    plans: &Plans,
    now: UnixMs,
) -> Result<(), StoreError> {
    accounts::open(tx, tenant, plans, now)?;
    accounts::set_customer(tx, tenant, customer, now)?;
    let Some(customer) = customer else { return Ok(()) };
    let waited = tx.query_opt(
        "DELETE FROM stripe_waiting WHERE customer = ?1 RETURNING subscription, since, created, rank, plan IS NULL, plan",
        params![customer],
        |row| Ok((told(row)?, row.opt_text(5)?)),
    )?;
    if let Some((told, plan)) = waited {
        move_plan(tx, tenant, &told, plan.as_deref(), plans, now)?;
    }
    let bought = tx.query(
        "DELETE FROM stripe_waiting_credits WHERE customer = ?1 RETURNING reference, credits, reason",
        params![customer],
        |row| Ok((row.text(0)?, row.int(1)?, row.text(2)?)),
    )?;
    for bought in bought {
        if add(tx, tenant, bought.clone(), plans, now)? == Booked::TooMuch {
            tracing::error!(tenant = %tenant, reference = bought.0, credits = bought.1, "stripe: credits that were paid for are more than an account can have");
        }
    }
    Ok(())
}

/// What was told of a subscription, as its columns stand in every statement here.
fn told(row: &Row<'_>) -> Result<Told, StoreError> {
    Ok(Told {
        subscription: row.text(0)?,
        since: row.int(1)?,
        at: (row.int(2)?, row.int(3)?),
        ended: row.get(4)?,
    })
}

/// Whether what is told of a subscription is no older than its end. An end is remembered, whichever subscription counts: one
/// that is unpaid or paused may give its plan again later, and what was said before that may not.
fn still_counts(
    tx: &mut Tx<'_>,
    customer: &str,
    new: &Told,
    now: UnixMs,
) -> Result<bool, StoreError> {
    if new.ended {
        tx.execute(
            "INSERT INTO stripe_ended (customer, subscription, created, rank, at) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (customer, subscription) DO UPDATE SET created = excluded.created, rank = excluded.rank,
                 at = excluded.at
             WHERE (excluded.created, excluded.rank) > (stripe_ended.created, stripe_ended.rank)",
            params![customer, new.subscription, new.at.0, new.at.1, now],
        )?;
        return Ok(true);
    }
    let ended_since = tx.query_opt(
        "SELECT 1 FROM stripe_ended
         WHERE customer = ?1 AND subscription = ?2 AND (created, rank) > (?3, ?4)",
        params![customer, new.subscription, new.at.0, new.at.1],
        |row| row.int(0),
    )?;
    Ok(ended_since.is_none())
}

/// Keeps what nobody's customer has paid for.
fn wait_with(
    tx: &mut Tx<'_>,
    customer: &str,
    (reference, credits, reason): (&str, i64, &str),
    now: UnixMs,
) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO stripe_waiting_credits (customer, reference, credits, reason, at) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT (customer, reference) DO NOTHING",
        params![customer, reference, credits, reason, now],
    )?;
    Ok(())
}

/// Keeps what a subscription of nobody's gives, the newest word of it.
fn wait(
    tx: &mut Tx<'_>,
    customer: &str,
    new: &Told,
    plan: Option<&str>,
    now: UnixMs,
) -> Result<(), StoreError> {
    let last = tx.query_opt(
        "SELECT subscription, since, created, rank, plan IS NULL FROM stripe_waiting WHERE customer = ?1",
        params![customer],
        told,
    )?;
    if moves(last.as_ref(), new) {
        tx.execute(
            "INSERT INTO stripe_waiting (customer, subscription, plan, created, rank, at, since)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
             ON CONFLICT (customer) DO UPDATE SET subscription = excluded.subscription, plan = excluded.plan,
                 created = excluded.created, rank = excluded.rank, at = excluded.at, since = excluded.since",
            params![customer, new.subscription, plan, new.at.0, new.at.1, now, new.since],
        )?;
    }
    Ok(())
}

/// Puts a tenant on the plan that its subscription gives, `None` for the default one, unless newer news came before.
fn move_plan(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    new: &Told,
    plan: Option<&str>,
    plans: &Plans,
    now: UnixMs,
) -> Result<Outcome, StoreError> {
    let last = tx.query_opt(
        "SELECT stripe_subscription, stripe_since, stripe_at, stripe_rank, stripe_ended FROM billing_accounts
         WHERE tenant_id = ?1 AND stripe_subscription IS NOT NULL",
        params![tenant],
        told,
    )?;
    if !moves(last.as_ref(), new) {
        return Ok(Outcome::Outdated);
    }
    if last.is_none() && plan.is_none() {
        // It never gave the plan that the tenant has: a first payment that was never made, say. That it has ended is
        // kept, so that what is told late of it counts for nothing.
        accounts::open(tx, tenant, plans, now)?;
        note(tx, tenant, new)?;
        return Ok(Outcome::Ignored);
    }
    if !accounts::set_plan(tx, tenant, plan, plans, now)? {
        // It waited for its tenant since a configuration that had this plan.
        return Ok(Outcome::UnknownPrice);
    }
    note(tx, tenant, new)?;
    Ok(Outcome::PlanSet)
}

/// Notes which word of which subscription was the newest.
fn note(tx: &mut Tx<'_>, tenant: &TenantId, new: &Told) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE billing_accounts SET stripe_subscription = ?2, stripe_at = ?3, stripe_rank = ?4, stripe_since = ?5,
             stripe_ended = ?6 WHERE tenant_id = ?1",
        params![tenant, new.subscription, new.at.0, new.at.1, new.since, new.ended],
    )?;
    Ok(())
}
