//! Money: what is used, by whom, and who pays.

use super::{ChannelChoice, Class, Deserialize, EventId, Serialize, TenantId, UnixMs};

crate::code::codes! {
    /// What one row of the usage sums up.
    pub enum UsagePeriod {
        /// A calendar day (UTC).
        Day = "day",
        /// A calendar month (UTC).
        Month = "month",
    }
}

crate::code::codes! {
    /// Who has changed a credit.
    pub enum CreditSource {
        /// The operator.
        Operator = "operator",
        /// A payment, told by Stripe.
        Stripe = "stripe",
    }
}

bodies! {
/// What was used in one period, by class and channel. Messages of test keys and confirmations of opt-outs are not counted.
pub struct UsageRow {
    /// The day, such as `2026-11-27`, or the month, such as `2026-11` (UTC).
    pub period: String,
    /// Whose; only where the operator asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<TenantId>,
    /// What the messages were for.
    pub class: Class,
    /// The channel that was asked for; of `sent`, the one that was used.
    pub channel: ChannelChoice,
    /// Messages accepted.
    pub accepted: u64,
    /// Segments of those, if they all went as SMS.
    pub segments: u64,
    /// Messages that were seen as sent.
    pub sent: u64,
    /// Messages that ended before a phone had begun to send them: they count against no quota, and their credits are back.
    pub returned: u64,
    /// Credits charged.
    pub credits: u64,
    /// Credits given back.
    pub credits_returned: u64,
}

/// How a tenant's plan and credit stand.
pub struct TenantBilling {
    /// Whose.
    pub tenant: TenantId,
    /// The plan's name.
    pub plan: String,
    /// The plan is the one of everybody that has been given none.
    pub plan_is_default: bool,
    /// Messages that the plan allows a month; none where it allows any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub messages_per_month: Option<u64>,
    /// Credits that a message costs.
    pub credits_per_message: u32,
    /// The month (UTC) that is counted, such as `2026-11`.
    pub month: String,
    /// Messages of this month that count against the quota, those of tenants that this one pays for among them.
    pub used: u64,
    /// When the quota begins anew.
    pub resets_at: UnixMs,
    /// Credits that are there.
    pub credit: i64,
    /// The tenant that pays for this one; none where it pays for itself. Its plan and its credit count then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub billing_account_id: Option<TenantId>,
    /// The customer of Stripe's that this tenant is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stripe_customer_id: Option<String>,
}

/// `PUT /v1/admin/tenants/{id}/billing`: what is left out goes back to its default.
#[serde(deny_unknown_fields)]
#[derive(Default)]
pub struct SetBilling {
    /// The plan's name; the default one when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 50))]
    pub plan: Option<String>,
    /// The tenant that pays from now on; itself when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub billing_account_id: Option<TenantId>,
    /// The customer of Stripe's that this tenant is; none when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 100))]
    pub stripe_customer_id: Option<String>,
}

/// `POST /v1/admin/tenants/{id}/credits`.
#[serde(deny_unknown_fields)]
pub struct ChangeCredit {
    /// Credits to add; negative to take.
    pub amount: i64,
    /// Why, up to 200 characters.
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 200))]
    pub reason: String,
    /// What it belongs to, such as an invoice: the same reference is booked once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 200))]
    pub reference: Option<String>,
}

/// One change of a credit. What messages cost stands in the usage.
pub struct CreditEntry {
    /// Its id.
    pub id: EventId,
    /// Whose credit.
    pub tenant: TenantId,
    /// When.
    pub at: UnixMs,
    /// Credits added; negative where they were taken.
    pub amount: i64,
    /// The credit after it.
    pub balance: i64,
    /// Who has changed it.
    pub source: CreditSource,
    /// Why.
    pub reason: String,
    /// What it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
}

/// What became of an event of Stripe's.
pub struct StripeTaken {
    /// Such as `plan_set`, `credit_added` or `ignored`.
    pub outcome: String,
}

/// A plan that the operator has set up.
pub struct Plan {
    /// Its name.
    pub name: String,
    /// Everybody is on it that has been given none.
    pub is_default: bool,
    /// Messages a month; none for any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub messages_per_month: Option<u64>,
    /// Credits that a message costs.
    pub credits_per_message: u32,
}

/// So much of a month's quota is used.
pub struct QuotaWarning {
    /// 80 or 100. Each is told once a month.
    pub percent: u32,
    /// Messages used.
    pub used: u64,
    /// Messages that the plan allows.
    pub quota: u64,
    /// The month (UTC), such as `2026-11`.
    pub month: String,
    /// When the quota begins anew.
    pub resets_at: UnixMs,
}
}
