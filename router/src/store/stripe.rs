//! What Stripe tells: taken once, in the transaction of what it changes.

use protocol::api::CreditSource;
use protocol::{TenantId, UnixMs};

use super::ledger::{Booked, NewEntry};
use super::{StoreError, Tx, accounts, admin, ledger};
use crate::billing::Plans;
use crate::billing::stripe::{Event, Moved, News, Subscription, Told, counts, moved};
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
            let Some(customer) = &event.customer else { return Ok(Outcome::UnknownCustomer) };
            let told =
                Told { subscription: id.clone(), since: *since, plan: plan.map(ToOwned::to_owned) };
            let before = subscriptions(tx, customer)?;
            let others = before.iter().filter(|one| one.subscription != told.subscription);
            let after: Vec<Told> = others.chain([&told]).cloned().collect();
            let moved = moved(&before, &after, id);
            if let (Some(_), Moved::To(plan)) = (&tenant, &moved)
                && plans.terms(plan.as_deref()).is_none()
            {
                // What counts now was told under a configuration that had its plan. Nothing is noted, so that this can be
                // sent again when there is such a plan.
                return Ok(Outcome::UnknownPrice);
            }
            if !note(tx, customer, (&told, event.created, *rank), tenant.is_none(), now)? {
                return Ok(Outcome::Outdated);
            }
            let Some(tenant) = tenant else { return Ok(Outcome::UnknownCustomer) };
            match moved {
                Moved::To(plan) => {
                    accounts::set_plan(tx, &tenant, plan.as_deref(), plans, now)?;
                    Ok(Outcome::PlanSet)
                }
                Moved::Unmoved => Ok(Outcome::Outdated),
                Moved::Foreign => Ok(Outcome::Ignored),
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
    bind_with_plan(tx, tenant, customer, plans, now)?;
    Ok(true)
}

/// [`bind`], and gives a customer that is new the plan that was waiting for it.
fn bind_with_plan(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    customer: &str,
    plans: &Plans,
    now: UnixMs,
) -> Result<(), StoreError> {
    if bind(tx, tenant, Some(customer), plans, now)?
        && let Some(plan) = plan_that_counts(tx, tenant, customer, plans)?
    {
        accounts::set_plan(tx, tenant, Some(&plan), plans, now)?;
    }
    Ok(())
}

/// Notes which customer a tenant is, and makes up for what was told of it before but for its plan; true where it was not known
/// to be that customer. [`StoreError::Constraint`] where another tenant is that one.
pub fn bind(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    customer: Option<&str>,
    plans: &Plans,
    now: UnixMs,
) -> Result<bool, StoreError> {
    accounts::open(tx, tenant, plans, now)?;
    let known = match customer {
        Some(customer) => of_customer(tx, customer)?.as_ref() == Some(tenant),
        None => false,
    };
    accounts::set_customer(tx, tenant, customer, now)?;
    let Some(customer) = customer else { return Ok(false) };
    if !known {
        tx.execute(
            "UPDATE stripe_subscriptions SET passing = 0 WHERE customer = ?1 AND plan IS NOT NULL",
            params![customer],
        )?;
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
    Ok(!known)
}

/// The plan of the customer's subscription that counts, where one does and the plan is configured.
pub fn plan_that_counts(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    customer: &str,
    plans: &Plans,
) -> Result<Option<String>, StoreError> {
    let all = subscriptions(tx, customer)?;
    let Some(told) = counts(&all) else { return Ok(None) };
    if plans.terms(told.plan.as_deref()).is_none() {
        tracing::warn!(tenant = %tenant, plan = told.plan, "stripe: a subscription waited for its tenant since a configuration that had this plan");
        return Ok(None);
    }
    Ok(told.plan.clone())
}

/// What is known of a customer's subscriptions.
fn subscriptions(tx: &mut Tx<'_>, customer: &str) -> Result<Vec<Told>, StoreError> {
    tx.query(SUBSCRIPTIONS, params![customer], |row| {
        Ok(Told { subscription: row.text(0)?, since: row.int(1)?, plan: row.opt_text(2)? })
    })
}

const SUBSCRIPTIONS: &str =
    "SELECT subscription, since, plan FROM stripe_subscriptions WHERE customer = ?1";

/// Notes a word about a subscription; false where a newer one came before. Of two words of one second, of which their ids
/// say nothing, the one that comes later counts. An end is kept as well: one that is unpaid or
/// paused may give its plan again later, and what was said before that may not.
fn note(
    tx: &mut Tx<'_>,
    customer: &str,
    (told, created, rank): (&Told, i64, i64),
    waits: bool,
    now: UnixMs,
) -> Result<bool, StoreError> {
    let passing = waits || told.plan.is_none();
    let noted = tx.execute(
        "INSERT INTO stripe_subscriptions (customer, subscription, since, created, rank, plan, passing, at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
         ON CONFLICT (customer, subscription) DO UPDATE SET since = excluded.since, created = excluded.created,
             rank = excluded.rank, plan = excluded.plan, passing = excluded.passing,
             at = excluded.at
         WHERE (excluded.created, excluded.rank) >= (stripe_subscriptions.created, stripe_subscriptions.rank)",
        params![customer, told.subscription, told.since, created, rank, told.plan, passing, now],
    )?;
    Ok(noted > 0)
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::billing::Terms;
    use crate::store::in_memory;

    const PLANS: [&str; 3] = ["small", "large", "huge"];

    fn plans() -> Plans {
        let terms = Terms { quota: Some(5), price: 0 };
        Plans::new(
            "none".to_owned(),
            PLANS.iter().chain(&["none"]).map(|name| ((*name).to_owned(), terms)),
        )
        .unwrap()
    }

    /// The plan after these events, and what is told of who the customer is at `bound` of them.
    fn plan_after(events: &[Event], bound: usize) -> Option<String> {
        let connection = in_memory::open_loose();
        let mut tx = Tx::sqlite(&connection);
        let (tenant, plans) = (TenantId::new(1, [1; 10]), plans());
        tx.execute(
            "INSERT INTO tenants (id, name, brand, created_at) VALUES (?1, 'Acme', 'Acme', 0)",
            params![tenant],
        )
        .unwrap();
        for (number, event) in events.iter().enumerate() {
            if number == bound {
                bind_with_plan(&mut tx, &tenant, "cus", &plans, UnixMs(0)).unwrap();
            }
            take(&mut tx, event, &plans, UnixMs(0)).unwrap();
        }
        bind_with_plan(&mut tx, &tenant, "cus", &plans, UnixMs(0)).unwrap();
        tx.query_row("SELECT plan FROM billing_accounts", params![], |row| row.opt_text(0)).unwrap()
    }

    fn event() -> impl Strategy<Value = (usize, i64, i64, Option<usize>)> {
        (0_usize..3, 0_i64..6, 0_i64..3, proptest::option::of(0..PLANS.len()))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn the_same_events_end_in_the_same_plan_whatever_their_order(
            (events, mixed) in prop::collection::vec(event(), 1..10).prop_flat_map(|events| {
                let numbers: Vec<usize> = (0..events.len()).chain(0..events.len()).collect();
                (Just(events), Just(numbers).prop_shuffle())
            }),
            bound in 0_usize..20,
        ) {
            let events: Vec<Event> = events.iter().enumerate().map(|(number, (of, created, rank, plan))| Event {
                id: format!("evt_{number}"),
                kind: "customer.subscription.updated".to_owned(),
                // No two of one second and rank: their order would be that in which they come.
                created: *created * 100 + i64::try_from(number).unwrap(),
                customer: Some("cus".to_owned()),
                tenant: None,
                news: News::Subscription {
                    id: format!("sub_{of}"),
                    since: 100 - i64::try_from(*of).unwrap(),
                    state: match plan {
                        Some(plan) if *rank < 2 => Subscription::Gives(PLANS[*plan].to_owned()),
                        Some(_) | None => Subscription::Ended,
                    },
                    rank: *rank,
                },
            }).collect();
            let mixed: Vec<Event> = mixed.into_iter().map(|number| events[number].clone()).collect();
            // The last word of each subscription, and of those that give a plan the one that was made last.
            let expected = (0..3).find_map(|of| {
                let word = |event: &&Event| match &event.news {
                    News::Subscription { id, rank, .. } if *id == format!("sub_{of}") => Some((event.created, *rank, event.id.clone())),
                    News::Subscription { .. } | News::Paid { .. } | News::PaidMore { .. } | News::Bound | News::Other => None,
                };
                let last = events.iter().filter(|event| word(event).is_some()).max_by_key(word)?;
                match &last.news {
                    News::Subscription { state: Subscription::Gives(plan), .. } => Some(plan.clone()),
                    News::Subscription { .. } | News::Paid { .. } | News::PaidMore { .. } | News::Bound | News::Other => None,
                }
            });
            prop_assert_eq!(plan_after(&events, bound), expected.clone());
            prop_assert_eq!(plan_after(&mixed, bound), expected);
        }
    }
}
