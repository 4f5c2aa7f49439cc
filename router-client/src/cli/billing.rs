//! `usage`, `billing`, `credits` and `plans`: what is used, what it costs, and who pays.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use protocol::TenantId;
use protocol::api::{
    ChangeCredit, CreditEntry, Plan, SetBilling, TenantBilling, UsagePeriod, UsageRow,
};

use super::{
    client::{Client, Request, Who, typed, typed_rows},
    failure::Failure,
    messages::new_key,
    screen::{NOTHING, Screen, or_nothing, time},
};

/// Rows of the ledger that are shown unless asked otherwise.
const ENTRIES_DEFAULT: u32 = 50;

#[derive(Debug, Args)]
pub(crate) struct Usage {
    /// As the operator: of this tenant only
    #[arg(long)]
    tenant: Option<TenantId>,
    /// What a row sums up: day or month
    #[arg(long, default_value_t = UsagePeriod::Month)]
    period: UsagePeriod,
    /// The first day, such as 2026-11-01 [default: the first of this month]
    #[arg(long, value_name = "DAY")]
    from: Option<String>,
    /// The last day, such as 2026-11-30 [default: today]
    #[arg(long, value_name = "DAY")]
    to: Option<String>,
    /// A row for each class and channel
    #[arg(long)]
    detail: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Shows a tenant's plan and credit: with a tenant's key its own
    Show {
        /// As the operator: of this tenant
        tenant: Option<TenantId>,
    },
    /// Sets a tenant's plan, and who pays; what is left out stays as it is
    Set {
        /// Whose
        tenant: TenantId,
        /// The plan's name: `switchboard plans` lists them
        #[arg(long, value_name = "NAME", conflicts_with = "default_plan")]
        plan: Option<String>,
        /// The plan of whoever has been given none
        #[arg(long)]
        default_plan: bool,
        /// The tenant that pays from now on
        #[arg(long, value_name = "TENANT", conflicts_with = "pays_itself")]
        payer: Option<TenantId>,
        /// The tenant pays for itself
        #[arg(long)]
        pays_itself: bool,
        /// The customer of Stripe's that the tenant is, such as `cus_…`
        #[arg(long, value_name = "CUSTOMER", conflicts_with = "no_stripe_customer")]
        stripe_customer: Option<String>,
        /// The tenant is no customer of Stripe's
        #[arg(long)]
        no_stripe_customer: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Credits {
    /// Adds credits to a tenant; a negative number takes some
    Add {
        /// Whose
        tenant: TenantId,
        /// How many
        #[arg(allow_negative_numbers = true)]
        amount: i64,
        /// Why
        #[arg(long)]
        reason: String,
        /// What it belongs to, such as an invoice: the same reference is booked once
        #[arg(long)]
        reference: Option<String>,
    },
    /// Lists how a credit changed, newest first: with a tenant's key its own
    List {
        /// As the operator: of this tenant
        tenant: Option<TenantId>,
        /// So many at most
        #[arg(long, default_value_t = ENTRIES_DEFAULT, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
    },
}

pub(crate) async fn usage(
    screen: &mut Screen,
    client: &Client,
    usage: Usage,
) -> Result<(), Failure> {
    let who = if usage.tenant.is_some() { Who::Operator } else { client.messages_as() };
    let path = match who {
        Who::Tenant => "/v1/usage",
        Who::Operator | Who::TenantOrOperator | Who::Anybody => "/v1/admin/usage",
    };
    let mut filters = vec![("period", usage.period.to_string())];
    filters.extend(usage.tenant.map(|tenant| ("tenant", tenant.to_string())));
    filters.extend(usage.from.map(|day| ("from", day)));
    filters.extend(usage.to.map(|day| ("to", day)));
    let page = client.list(who, path, &filters, usize::MAX).await?;
    if screen.is_json() {
        return screen.json(&page);
    }
    let rows = typed_rows::<UsageRow>(&page)?;
    let rows = if usage.detail { rows } else { summed(rows) };
    let rows = rows.into_iter().map(|row| {
        let kind = |word: String| if usage.detail { word } else { "all".to_owned() };
        [
            row.period,
            or_nothing(row.tenant),
            kind(row.class.to_string()),
            kind(row.channel.to_string()),
            row.accepted.to_string(),
            row.segments.to_string(),
            row.sent.to_string(),
            row.returned.to_string(),
            row.credits.saturating_sub(row.credits_returned).to_string(),
        ]
    });
    screen.table(
        [
            "PERIOD", "TENANT", "CLASS", "CHANNEL", "ACCEPTED", "SEGMENTS", "SENT", "RETURNED",
            "CREDITS",
        ],
        rows.collect(),
        "nothing was used in this time",
    )
}

/// One row a tenant and period, in the order in which they first stand there.
fn summed(rows: Vec<UsageRow>) -> Vec<UsageRow> {
    let mut places: BTreeMap<(Option<TenantId>, String), usize> = BTreeMap::new();
    let mut sums: Vec<UsageRow> = Vec::new();
    for row in rows {
        let place = (row.tenant.clone(), row.period.clone());
        let Some(sum) = places.get(&place).and_then(|index| sums.get_mut(*index)) else {
            places.insert(place, sums.len());
            sums.push(row);
            continue;
        };
        for (sum, more) in [
            (&mut sum.accepted, row.accepted),
            (&mut sum.segments, row.segments),
            (&mut sum.sent, row.sent),
            (&mut sum.returned, row.returned),
            (&mut sum.credits, row.credits),
            (&mut sum.credits_returned, row.credits_returned),
        ] {
            *sum = sum.saturating_add(more);
        }
    }
    sums
}

pub(crate) async fn run(
    screen: &mut Screen,
    client: &Client,
    command: Command,
) -> Result<(), Failure> {
    let answer = match command {
        Command::Show { tenant: None } => {
            client.call(&Request::get(Who::Tenant, "/v1/billing")).await?
        }
        Command::Show { tenant: Some(tenant) } => {
            client.call(&Request::get(Who::Operator, path(&tenant))).await?
        }
        Command::Set {
            tenant,
            plan,
            default_plan,
            payer,
            pays_itself,
            stripe_customer,
            no_stripe_customer,
        } => {
            let now: TenantBilling =
                typed(client.call(&Request::get(Who::Operator, path(&tenant))).await?)?;
            let kept = (!default_plan && !now.plan_is_default).then_some(now.plan);
            let new = SetBilling {
                plan: plan.or(kept),
                billing_account_id: payer.or(now.billing_account_id.filter(|_payer| !pays_itself)),
                stripe_customer_id: stripe_customer
                    .or(now.stripe_customer_id.filter(|_customer| !no_stripe_customer)),
            };
            client.call(&Request::put(Who::Operator, path(&tenant)).body(&new)?).await?
        }
    };
    if screen.is_json() {
        return screen.json(&answer);
    }
    show(screen, typed(answer)?)
}

fn path(tenant: &TenantId) -> String {
    format!("/v1/admin/tenants/{tenant}/billing")
}

fn show(screen: &mut Screen, billing: TenantBilling) -> Result<(), Failure> {
    let default = if billing.plan_is_default { " (the default)" } else { "" };
    let quota = billing.messages_per_month;
    let rows = [
        ("plan", format!("{}{default}", billing.plan)),
        ("messages a month", quota.map_or("any number".to_owned(), |quota| quota.to_string())),
        ("credits a message", billing.credits_per_message.to_string()),
        (
            "used",
            format!("{} in {}, until {}", billing.used, billing.month, time(billing.resets_at)),
        ),
        ("credit", billing.credit.to_string()),
        ("paid by", billing.billing_account_id.map_or("itself".to_owned(), |id| id.to_string())),
        ("customer of Stripe's", billing.stripe_customer_id.unwrap_or(NOTHING.to_owned())),
    ];
    let rows = rows.into_iter().map(|(name, value)| [name.to_owned(), value]).collect();
    screen.table(["OF", "IS"], rows, "there is nothing")
}

pub(crate) async fn credits(
    screen: &mut Screen,
    client: &Client,
    command: Credits,
) -> Result<(), Failure> {
    match command {
        Credits::Add { tenant, amount, reason, reference } => {
            let path = format!("/v1/admin/tenants/{tenant}/credits");
            let body = ChangeCredit { amount, reason, reference };
            // Booked once, also where the network fails and it is asked again.
            let request =
                Request::post(Who::Operator, path).body(&body)?.idempotency_key(new_key());
            let answer = client.call(&request).await?;
            if screen.is_json() {
                return screen.json(&answer);
            }
            let entry: CreditEntry = typed(answer)?;
            screen.line(&format!(
                "booked {}: {:+} credits, {} are there",
                entry.id, entry.amount, entry.balance
            ))
        }
        Credits::List { tenant, limit } => {
            let limit = usize::try_from(limit).unwrap_or(usize::MAX);
            let page = match tenant {
                Some(tenant) => {
                    let path = format!("/v1/admin/tenants/{tenant}/credits");
                    client.list(Who::Operator, &path, &[], limit).await?
                }
                None => client.list(Who::Tenant, "/v1/credits", &[], limit).await?,
            };
            if screen.is_json() {
                return screen.json(&page);
            }
            let rows = typed_rows::<CreditEntry>(&page)?.into_iter().map(|entry| {
                [
                    time(entry.at),
                    format!("{:+}", entry.amount),
                    entry.balance.to_string(),
                    entry.source.to_string(),
                    entry.reason,
                    or_nothing(entry.reference),
                ]
            });
            screen.table(
                ["AT", "CREDITS", "THEN THERE", "BY", "REASON", "REFERENCE"],
                rows.collect(),
                "the credit was never changed",
            )
        }
    }
}

pub(crate) async fn plans(screen: &mut Screen, client: &Client) -> Result<(), Failure> {
    let page = client.list(Who::Operator, "/v1/admin/plans", &[], usize::MAX).await?;
    if screen.is_json() {
        return screen.json(&page);
    }
    let rows = typed_rows::<Plan>(&page)?.into_iter().map(|plan| {
        [
            plan.name,
            plan.messages_per_month.map_or("any number".to_owned(), |quota| quota.to_string()),
            plan.credits_per_message.to_string(),
            if plan.is_default { "yes" } else { NOTHING }.to_owned(),
        ]
    });
    screen.table(
        ["PLAN", "MESSAGES A MONTH", "CREDITS A MESSAGE", "DEFAULT"],
        rows.collect(),
        "there is no plan",
    )
}

#[cfg(test)]
mod tests {
    use protocol::{ChannelChoice, Class};

    use super::*;

    #[test]
    fn rows_of_one_tenant_and_period_are_summed_up_in_their_order() {
        let tenant = |n: u8| Some(TenantId::new(1, [n; 10]));
        let row = |tenant, period: &str, class, accepted| UsageRow {
            period: period.to_owned(),
            tenant,
            class,
            channel: ChannelChoice::Auto,
            accepted,
            segments: accepted * 2,
            sent: 1,
            returned: 0,
            credits: 3,
            credits_returned: 1,
        };
        let sums = summed(vec![
            row(tenant(2), "2026-11", Class::Otp, 5),
            row(tenant(2), "2026-11", Class::Marketing, 7),
            row(tenant(2), "2026-10", Class::Otp, 1),
            row(tenant(1), "2026-11", Class::Otp, 4),
        ]);
        let told: Vec<_> =
            sums.iter().map(|s| (s.period.as_str(), s.accepted, s.credits)).collect();
        assert_eq!(told, [("2026-11", 12, 6), ("2026-10", 1, 3), ("2026-11", 4, 3)]);
        assert_eq!(sums[0].segments, 24);
    }
}
